// SPDX-License-Identifier: MIT
/*
 * A hostile front end: rings, indexes, requests, lists of segments and grants from the input, against a disk on tape.
 *
 * The input begins with a byte of options and goes on with commands: a byte that says which, and what it needs. Whatever comes, each request that
 * was taken gets one response, no more is under way than may be, closing comes to its end and leaves nothing mapped or bound.
 */
#include <stdlib.h>
#include <string.h>

#include "tests/fuzz/on_tape.h"
#include "tests/unit/pv_fake_guest.c" /* NOLINT(bugprone-suspicious-include) */

#define DISK	  (256u << 10)
#define TURNS_MAX 100000u

struct input {
	const uint8_t *at, *end;
};

static uint32_t take_number(struct input *in, unsigned bytes)
{
	uint32_t value = 0;

	if ((size_t)(in->end - in->at) < bytes) {
		in->at = in->end;
		return 0;
	}
	memcpy(&value, in->at, bytes);
	in->at += bytes;
	return value;
}

static void some(struct input *in, void *out, size_t length)
{
	size_t have = (size_t)(in->end - in->at);

	memset(out, 0, length);
	memcpy(out, in->at, have < length ? have : length);
	in->at += have < length ? have : length;
}

struct state {
	struct loop *l;
	struct fake_guest *g;
	struct pv_disk *d;
	struct pv_connection c;
	struct fake_front front[PV_QUEUES_MAX];
	uint32_t start;
	bool broken, disconnected;
};

static void on_broken(void *ctx, const char *why)
{
	expect(why != NULL);
	expect(!((struct state *)ctx)->broken);
	((struct state *)ctx)->broken = true;
}

static void on_say(void *ctx, const char *text)
{
	(void)ctx;
	expect(text != NULL);
}

static void on_disconnected(void *ctx)
{
	((struct state *)ctx)->disconnected = true;
}

static const struct pv_disk_user user = {
	.broken = on_broken, .say = on_say, .disconnected = on_disconnected};

static void command(struct state *s, struct input *in)
{
	uint32_t what = take_number(in, 1);
	unsigned q = (what >> 4) % s->c.nr_queues;
	struct fake_front *f = &s->front[q];
	uint8_t raw[PV_RING_RAW];

	switch (what & 7) {
	case 0: /* a request, and the index as it should be */
	case 1:
		some(in, raw, sizeof(raw));
		fake_front_put(f, raw);
		fake_front_push(f);
		break;
	case 2:
		pv_disk_event(s->d, FAKE_PORT(q) + 100);
		break;
	case 3:
		loop_turn(s->l, false);
		break;
	case 4: /* one of the four indexes */
		fake_front_indexes(f)[(what >> 6) & 3] = s->start + take_number(in, 1);
		break;
	case 5: /* some bytes of any page, lists of segments above all */
		some(in, fake_page(s->g, 100 + take_number(in, 1)) + (take_number(in, 1) << 4), 16);
		break;
	case 6:
		s->g->ungranted[100 + take_number(in, 1)] ^= true;
		break;
	case 7: /* what is in a page is a request */
		memcpy(raw, fake_page(s->g, 100 + take_number(in, 1)), sizeof(raw));
		fake_front_put(f, raw);
		fake_front_push(f);
		break;
	}
	expect(pv_disk_running(s->d) <= PV_IO_MAX);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {data, data + size};
	uint32_t options = take_number(&in, 1);
	struct state s = {.g = fake_guest_new(), .start = options & 128 ? 0xffffffe0 : 0};
	struct tape *tape = tape_new(NULL, DISK);
	struct tape_options o = {.max_requests = PV_IO_MAX};
	void *memory = calloc(1, pv_journal_size());
	struct pv_journal *journal;
	struct block *b;

	s.c = (struct pv_connection){.generation = 1,
				     .nr_queues = 1 + (options & 3),
				     .order = options >> 2 & 1,
				     .abi = options >> 3 & 1,
				     .persistent = options >> 4 & 1,
				     .read_only = (options >> 5 & 3) == 1,
				     .discards = true,
				     .sector_shift = (options >> 5 & 3) == 2 ? 12 : 9};
	for (unsigned q = 0; q < s.c.nr_queues; q++)
		fake_front_init(&s.front[q], s.g, s.c.abi, s.c.order, 16 * q, s.start, q,
				&s.c.queue[q]);
	expect(memory && loop_create(&s.l, NULL) == 0);
	b = tape_open(tape, s.l, &o);
	expect(pv_journal_open(memory, &journal) == 0);
	expect(pv_disk_new(s.l, b, &fake_guest_ops, s.g, journal, &user, &s, &s.d) == 0);
	expect(pv_disk_connect(s.d, &s.c, NULL) == 0);
	while (in.at < in.end)
		command(&s, &in);
	pv_disk_disconnect(s.d);
	for (unsigned i = 0; i < TURNS_MAX && !s.disconnected; i++)
		loop_turn(s.l, false);
	expect(s.disconnected && !pv_disk_running(s.d));
	expect(s.g->mapped == 0 && s.g->bound == 0);
	pv_disk_free(s.d);
	pv_journal_close(journal);
	block_close(b, NULL);
	loop_free(s.l);
	tape_free(tape);
	free(memory);
	fake_guest_free(s.g);
	return 0;
}
