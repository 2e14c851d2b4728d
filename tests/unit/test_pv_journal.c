// SPDX-License-Identifier: MIT
/* The journal of requests under kill -9 at any instruction, and with contents that cannot be. */
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>
#include <xen/xen.h>

#include <xen/io/blkif.h>

#include "storage/pv_journal.h"
#include "tests/unit/pv_fake_guest.h"
#include "tests/unit/unit.h"

#define REQUESTS 7u
#define JOURNAL_LOOKED_AT \
	(4096u + 64u + 32u * 128u) /* its head and the slots of a ring of one page */

struct server {
	struct pv_journal *journal;
	struct pv_ring ring;
	struct {
		unsigned slot;
		uint8_t operation;
	} taken[PV_RING_ENTRIES];
	unsigned nr;
};

static void remember(void *ctx, unsigned queue, unsigned slot, const void *raw)
{
	struct server *s = ctx;

	(void)queue;
	s->taken[s->nr].slot = slot;
	memcpy(&s->taken[s->nr++].operation, raw, 1);
}

static void take(struct server *s)
{
	uint8_t raw[PV_RING_RAW];

	CHECK_EQ(pv_ring_take(&s->ring, raw), 1);
	remember(s, 0, pv_journal_take(s->journal, 0, &s->ring, raw), raw);
}

static void answer(struct server *s, unsigned i)
{
	pv_journal_answer(s->journal, 0, s->taken[i].slot, &s->ring, s->taken[i].operation, 0);
	s->taken[i] = s->taken[--s->nr];
}

/* What the process does that dies somewhere: answers overtake each other, and stand where requests stood that are still under way. */
static void live(struct server *s)
{
	take(s);
	take(s);
	take(s);
	answer(s, 2);
	answer(s, 1);
	pv_ring_publish(&s->ring);
	take(s);
	answer(s, 1);
	take(s);
	answer(s, 0);
	pv_ring_publish(&s->ring);
	answer(s, 0);
}

/* A new server over what is there takes over and does everything: each of the REQUESTS gets one answer. */
static void check_survivor(void *memory, struct fake_guest *g, struct fake_front front)
{
	struct server s = {.nr = 0};
	struct pv_answer a;
	unsigned answered[REQUESTS + 1] = {0};

	front.guest = g;
	CHECK_EQ(pv_journal_open(memory, &s.journal), 0);
	pv_ring_init(&s.ring, fake_page(g, 0), 0, PV_ABI_64);
	CHECK_EQ(pv_journal_recover(s.journal, 0, &s.ring, remember, &s), 0);
	while (s.ring.req_cons != front.req_prod)
		take(&s);
	while (s.nr)
		answer(&s, 0);
	pv_ring_publish(&s.ring);
	while (fake_front_get(&front, &a)) {
		CHECK_EQ(a.operation, BLKIF_OP_FLUSH_DISKCACHE);
		CHECK(a.id >= 1 && a.id <= REQUESTS);
		answered[a.id]++;
	}
	for (unsigned id = 1; id <= REQUESTS; id++)
		CHECK_MSG(answered[id] == 1, "request %u has %u answers", id, answered[id]);
	pv_journal_close(s.journal);
}

/*
 * The process is stopped after each of its instructions. Whenever that has changed something in the memory that survives it, a copy of it is what
 * kill -9 would have left there.
 */
static void kill_at_every_instruction(void)
{
	struct fake_guest *g = fake_guest_new(), *copy = fake_guest_new();
	size_t size = pv_journal_size();
	uint8_t *last = calloc(1, size), *left = malloc(size);
	struct server s = {.nr = 0};
	struct fake_front front;
	struct pv_queue_at at;
	uint8_t raw[PV_RING_RAW];
	unsigned changes = 0;
	int status;
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid_t pid;

	CHECK(memory != MAP_FAILED && last && left);
	/* Slots 30, 31, 0, 1 and so on, and indexes that overflow. */
	fake_front_init(&front, g, PV_ABI_64, 0, 0, 0xfffffffe, 0, &at);
	pv_ring_init(&s.ring, fake_page(g, 0), 0, PV_ABI_64);
	CHECK_EQ(pv_journal_open(memory, &s.journal), 0);
	pv_journal_begin(s.journal, 1, s.ring.entries);
	pv_journal_begin_queue(s.journal, 0, &s.ring);
	pv_journal_set_generation(s.journal, 1);
	for (uint64_t id = 1; id <= REQUESTS; id++) {
		fake_data(PV_ABI_64, raw, BLKIF_OP_FLUSH_DISKCACHE, id, 0, NULL, 0);
		fake_front_put(&front, raw);
	}
	fake_front_push(&front);
	pid = fork();
	CHECK(pid >= 0);
	if (!pid) {
		if (ptrace(PTRACE_TRACEME, 0, NULL, NULL))
			_exit(1);
		raise(SIGSTOP);
		live(&s);
		_exit(0);
	}
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	while (WIFSTOPPED(status)) {
		if (memcmp(last, memory, JOURNAL_LOOKED_AT) != 0 ||
		    memcmp(fake_page(copy, 1), fake_page(g, 0), PV_PAGE) != 0) {
			memcpy(last, memory, JOURNAL_LOOKED_AT);
			memcpy(left, memory, JOURNAL_LOOKED_AT);
			memcpy(fake_page(copy, 1), fake_page(g, 0), PV_PAGE);
			memcpy(fake_page(copy, 0), fake_page(g, 0), PV_PAGE);
			check_survivor(left, copy, front);
			changes++;
		}
		CHECK_EQ(ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL), 0);
		CHECK_EQ(waitpid(pid, &status, 0), pid);
	}
	CHECK_EQ(status, 0);
	CHECK_MSG(changes > 40, "only %u changes", changes);
	pv_journal_close(s.journal);
	munmap(memory, size);
	free(last);
	free(left);
	fake_guest_free(copy);
	fake_guest_free(g);
}

/* A journal that is damaged, or about other rings, is refused; whatever is in it, nothing is touched that is not its own. */
static void damaged(void)
{
	struct fake_guest *g = fake_guest_new();
	uint8_t *memory = calloc(1, pv_journal_size()), *good = malloc(pv_journal_size());
	uint64_t seed = unit_seed();
	struct server s = {.nr = 0};
	struct fake_front front;
	struct pv_queue_at at;
	uint8_t raw[PV_RING_RAW];
	unsigned refused = 0;

	CHECK(memory && good);
	fake_front_init(&front, g, PV_ABI_64, 0, 0, 0, 0, &at);
	pv_ring_init(&s.ring, fake_page(g, 0), 0, PV_ABI_64);
	CHECK_EQ(pv_journal_open(memory, &s.journal), 0);
	CHECK_EQ(pv_journal_generation(s.journal), 0);
	pv_journal_begin(s.journal, 1, s.ring.entries);
	pv_journal_begin_queue(s.journal, 0, &s.ring);
	pv_journal_set_generation(s.journal, 5);
	CHECK_EQ(pv_journal_recover(s.journal, 1, &s.ring, remember, &s), -EPROTO);
	for (unsigned i = 0; i < 20; i++) {
		fake_data(PV_ABI_64, raw, BLKIF_OP_FLUSH_DISKCACHE, i, 0, NULL, 0);
		fake_front_put(&front, raw);
	}
	fake_front_push(&front);
	for (unsigned i = 0; i < 20; i++) {
		CHECK_EQ(pv_ring_take(&s.ring, raw), 1);
		pv_journal_take(s.journal, 0, &s.ring, raw);
	}
	CHECK_EQ(pv_journal_recover(s.journal, 0, &s.ring, remember, &s), 0);
	CHECK_EQ(s.nr, 20);
	memcpy(good, memory, pv_journal_size());
	for (unsigned i = 0; i < 2000; i++) {
		memcpy(memory, good, pv_journal_size());
		/* The queue's indexes and its first slots. */
		memory[4096 + unit_below(&seed, i & 1 ? 8 : 64 + 128 * 32)] ^=
			(uint8_t)(1u << unit_below(&seed, 8));
		s.nr = 0;
		if (pv_journal_recover(s.journal, 0, &s.ring, remember, &s) == -EPROTO)
			refused++;
		CHECK(s.nr <= 32);
	}
	CHECK(refused > 500);
	/* Another version's is begun anew. */
	memory[8]++;
	pv_journal_close(s.journal);
	CHECK_EQ(pv_journal_open(memory, &s.journal), 0);
	CHECK_EQ(pv_journal_generation(s.journal), 0);
	pv_journal_close(s.journal);
	free(memory);
	free(good);
	fake_guest_free(g);
}

UNIT_MAIN(TEST(kill_at_every_instruction), TEST(damaged))
