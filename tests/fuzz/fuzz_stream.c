// SPDX-License-Identifier: MIT
/*
 * A whole stream of hostile bytes through reader, order and decoder.
 *
 * The input is a stream as on the wire or in a file; bit 0 of the session's last byte chooses the
 * direction. Blind mutations would all end at the checksums, so the mutator takes the stream apart
 * into records, changes one thing, and puts it together again with right lengths, sequence numbers,
 * END counters and CRCs. One mutation in eight is left as raw bytes: the checks themselves are
 * under test too.
 *
 * Beyond sanitizers it asserts: what the decoder stored has the CRC it reported, and compares equal
 * with the same record.
 */
#include <stdlib.h>
#include <string.h>

#include "migrate/encode.h"
#include "migrate/stream.h"
/* The build makes a fuzzer of one file and the libraries. */
#include "tests/unit/stream_samples.c" /* NOLINT(bugprone-suspicious-include) */

#define NR_PFNS	    64u
#define RECORDS_MAX 64u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);

static _Alignas(4096) uint8_t memory[NR_PFNS][PGR_PAGE_SIZE];
static struct decoder *decoder;

static void must(bool condition)
{
	if (!condition)
		abort();
}

static void decode(const struct stream_record *rec)
{
	struct pgr_error err = PGR_ERROR_NONE;
	uint8_t *page[PGR_BATCH_MAX];
	struct decoded_header h;
	uint32_t crc[PGR_BATCH_MAX];
	bool contiguous = true, delta = false;
	int differs;

	if (!decoder)
		must(decoder_create(&decoder, &err) == 0);
	if (decoder_parse(decoder, rec->body, rec->length, NR_PFNS, &h, &err))
		return;
	must(h.nr > 0); /* and so page[0] is set below */
	for (unsigned i = 0; i < h.nr; i++) {
		page[i] = memory[h.pfn[i]];
		contiguous = contiguous && page[i] == page[0] + i * PGR_PAGE_SIZE;
		delta = delta || h.transform[i] == PGR_DELTA;
	}
	if (decoder_pages(decoder, page, contiguous ? page[0] : NULL, NULL, crc, &err)) {
		must(err.text[0] != '\0');
		return;
	}
	for (unsigned i = 0; i < h.nr; i++)
		must(h.transform[i] == PGR_ABSENT ||
		     crc[i] == stream_crc(0, page[i], PGR_PAGE_SIZE));
	if (!delta)
		must(decoder_compare(decoder, page, &differs, &err) == 0 && differs == -1);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct memory_stream m = {.data = (uint8_t *)data, .length = size};
	struct pgr_error err = PGR_ERROR_NONE;
	struct pgr_stream_header h;
	struct stream_record rec;
	struct stream_reader r;
	struct stream_order o;

	stream_reader_init(&r, memory_read, &m);
	if (stream_read_header(&r, &h, &err) == 0) {
		stream_order_init(&o,
				  h.session[PGR_SESSION_SIZE - 1] & 1 ? STREAM_FROM_TARGET
								      : STREAM_FROM_SOURCE,
				  (enum pgr_kind)h.kind, h.channel);
		while (stream_read(&r, &rec, &err) == 0) {
			if (stream_order_next(&o, &rec, &err))
				break;
			if (rec.type == PGR_REC_PAGES)
				decode(&rec);
		}
	}
	must(err.code < 0 && err.text[0] != '\0');
	must(r.capacity <= PGR_RECORD_MAX);
	stream_reader_free(&r);
	return 0;
}

/* ---- the mutator ---- */

struct piece {
	uint32_t type;
	size_t length;
	uint8_t *body;
};

struct pieces {
	struct pgr_stream_header header;
	struct piece piece[RECORDS_MAX];
	unsigned nr;
};

static uint32_t next_random(uint32_t *state)
{
	*state = *state * 1664525u + 1013904223u;
	return *state >> 8;
}

static uint8_t *copy_of(const void *data, size_t length, size_t room)
{
	uint8_t *p = calloc(1, room ? room : 1);

	must(p != NULL);
	if (length)
		memcpy(p, data, length);
	return p;
}

static void take_apart(const uint8_t *data, size_t size, struct pieces *s)
{
	size_t at = sizeof(s->header);

	memset(s, 0, sizeof(*s));
	if (size < at)
		return;
	memcpy(&s->header, data, at);
	while (s->nr < RECORDS_MAX && size - at >= sizeof(struct pgr_record)) {
		struct piece *p = &s->piece[s->nr++];
		struct pgr_record h;

		memcpy(&h, data + at, sizeof(h));
		at += sizeof(h);
		p->type = h.type;
		p->length = h.length < size - at ? h.length : size - at;
		p->body = copy_of(data + at, p->length, p->length);
		at += p->length + (-p->length & 7);
		if (at >= size)
			break;
	}
}

static void discard(struct pieces *s)
{
	for (unsigned i = 0; i < s->nr; i++)
		free(s->piece[i].body);
	s->nr = 0;
}

/* With everything right that a sender would make right. Records that do not fit are left out. */
static size_t put_together(struct pieces *s, uint8_t *data, size_t max_size)
{
	struct memory_stream m = {.data = data, .capacity = max_size};
	struct stream_writer w;
	struct iovec iov = {&s->header, sizeof(s->header)};

	memcpy(s->header.magic, PGR_STREAM_MAGIC, sizeof(s->header.magic));
	s->header.version = PGR_VERSION;
	s->header.crc = 0;
	s->header.crc = stream_crc(0, &s->header, sizeof(s->header));
	stream_writer_init(&w, memory_write, &m);
	must(memory_write(&m, &iov, 1, NULL) == 0);
	w.bytes = sizeof(s->header);
	for (unsigned i = 0; i < s->nr; i++) {
		struct piece *p = &s->piece[i];

		if (p->length + 24 > max_size - m.length)
			break;
		if (p->type == PGR_REC_END && p->length >= 16) {
			memcpy(p->body, &w.records, sizeof(w.records));
			memcpy(p->body + 8, &w.bytes, sizeof(w.bytes));
		}
		must(stream_write_body(&w, p->type, p->body, p->length, NULL) == 0);
	}
	/* Everything fitted, so m.data is still the caller's. */
	return m.length; /* NOLINT(clang-analyzer-unix.Malloc) */
}

static void insert(struct pieces *s, unsigned at, struct piece p)
{
	if (s->nr == RECORDS_MAX) {
		free(p.body);
		return;
	}
	memmove(&s->piece[at + 1], &s->piece[at], (s->nr - at) * sizeof(p));
	s->piece[at] = p;
	s->nr++;
}

static struct piece sample_piece(uint32_t *state)
{
	_Alignas(8) uint8_t body[SAMPLE_MAX];
	size_t nr, length;
	const uint32_t *type = sample_types(&nr);
	uint32_t t = type[next_random(state) % nr];

	length = sample_body(t, next_random(state) % 3, body);
	return (struct piece){t, length, copy_of(body, length, length)};
}

/*
 * A stream to begin with: one of some legal ones, so that the depths are reached without a corpus.
 */
static void begin(struct pieces *s, uint32_t *state)
{
	static const uint32_t source[] = {
		PGR_REC_HELLO,		PGR_REC_IDENTITY,   PGR_REC_CPU_POLICY,
		PGR_REC_CONFIG,		PGR_REC_OPEN,	    PGR_REC_PAGES,
		PGR_REC_ROUND_END,	PGR_REC_STOP,	    PGR_REC_PV_INFO,
		PGR_REC_PV_P2M_FRAMES,	PGR_REC_TSC_INFO,   PGR_REC_VCPU_CONTEXT,
		PGR_REC_VCPU_EXTENDED,	PGR_REC_VCPU_XSAVE, PGR_REC_VCPU_MSRS,
		PGR_REC_PV_SHARED_INFO, PGR_REC_DIGEST,	    PGR_REC_END,
		PGR_REC_COMMIT,
	};
	static const uint32_t other[] = {PGR_REC_PAGES, PGR_REC_ROUND_END, PGR_REC_END};
	static const uint32_t target[] = {PGR_REC_HELLO_REPLY, PGR_REC_PRECHECK, PGR_REC_ACK,
					  PGR_REC_READY,       PGR_REC_RUNNING,	 PGR_REC_CONNECTED};
	unsigned which = next_random(state) % 4;
	const uint32_t *type = which < 2 ? source : which == 2 ? other : target;
	size_t nr = which < 2	 ? sizeof(source) / sizeof(source[0])
		    : which == 2 ? sizeof(other) / sizeof(other[0])
				 : sizeof(target) / sizeof(target[0]);
	_Alignas(8) uint8_t body[SAMPLE_MAX];

	discard(s);
	memset(&s->header, 0, sizeof(s->header));
	s->header.kind = which == 1 ? PGR_KIND_IMAGE : PGR_KIND_MIGRATE;
	s->header.channel = which == 2;
	s->header.channels = which == 1 ? 1 : 4;
	s->header.session[PGR_SESSION_SIZE - 1] = which == 3;
	for (size_t i = 0; i < nr; i++) {
		size_t length = sample_body(type[i], 0, body);

		if (type[i] == PGR_REC_PRECHECK) {
			memset(body, 0, sizeof(struct pgr_precheck));
			length = sizeof(struct pgr_precheck);
		}
		s->piece[s->nr++] = (struct piece){type[i], length, copy_of(body, length, length)};
	}
}

static void change_body(struct piece *p, size_t max_size, uint32_t *state)
{
	size_t room = p->length + 64 < max_size ? p->length + 64 : max_size;
	uint8_t *bigger = copy_of(p->body, p->length < room ? p->length : room, room);

	/* Most fields stand at the beginning. */
	if (p->length > 256 && next_random(state) % 4)
		LLVMFuzzerMutate(bigger, 256, 256);
	else
		p->length = LLVMFuzzerMutate(bigger, p->length < room ? p->length : room, room);
	free(p->body);
	p->body = bigger;
}

static void change(struct pieces *s, size_t max_size, uint32_t *state)
{
	unsigned at = s->nr ? next_random(state) % s->nr : 0;
	struct piece *p = &s->piece[at], other;

	switch (s->nr ? next_random(state) % 10 : 9) {
	case 0:
		free(p->body);
		memmove(p, p + 1, (--s->nr - at) * sizeof(*p));
		break;
	case 1:
		other = (struct piece){p->type, p->length, copy_of(p->body, p->length, p->length)};
		insert(s, next_random(state) % (s->nr + 1), other);
		break;
	case 2:
		other = *p;
		*p = s->piece[s->nr - 1];
		s->piece[s->nr - 1] = other;
		break;
	case 3:
		insert(s, next_random(state) % (s->nr + 1), sample_piece(state));
		break;
	case 4:
		LLVMFuzzerMutate((uint8_t *)&s->header, sizeof(s->header), sizeof(s->header));
		break;
	case 9:
		begin(s, state);
		break;
	default:
		change_body(p, max_size, state);
		break;
	}
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
	static struct pieces s;
	uint32_t state = seed;

	if (max_size < sizeof(s.header) || next_random(&state) % 8 == 0)
		return LLVMFuzzerMutate(data, size, max_size);
	take_apart(data, size, &s);
	for (unsigned n = 1 + next_random(&state) % 3; n; n--)
		change(&s, max_size, &state);
	size = put_together(&s, data, max_size);
	discard(&s);
	return size;
}
