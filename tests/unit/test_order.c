// SPDX-License-Identifier: MIT
/*
 * The order of records: whole streams are taken; a stream with one record left out, doubled,
 * exchanged or foreign is refused where the page of the format says so.
 */
#include <errno.h>
#include <stdio.h>

#include "migrate/stream.h"
#include "tests/unit/stream_samples.h"
#include "tests/unit/unit.h"

#define R(name)                        \
	{                              \
		.type = PGR_REC_##name \
	}
#define PAGES(n)                                    \
	{                                           \
		.type = PGR_REC_PAGES, .round = (n) \
	}
#define ROUND(n)                                        \
	{                                               \
		.type = PGR_REC_ROUND_END, .round = (n) \
	}
#define AT(name, n)                                 \
	{                                           \
		.type = PGR_REC_##name, .vcpu = (n) \
	}
#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static const struct sample_record pv_migrate[] = {
	R(HELLO),
	R(IDENTITY),
	R(CPU_POLICY),
	R(CONFIG),
	R(OPEN),
	PAGES(0),
	PAGES(0),
	ROUND(0),
	ROUND(1),
	PAGES(2),
	ROUND(2),
	R(STOP),
	PAGES(3),
	ROUND(3),
	R(VERIFY),
	PAGES(4),
	ROUND(4),
	R(PV_INFO),
	AT(PV_P2M_FRAMES, 0),
	AT(PV_P2M_FRAMES, 2),
	R(TSC_INFO),
	AT(VCPU_CONTEXT, 0),
	AT(VCPU_EXTENDED, 0),
	AT(VCPU_XSAVE, 0),
	AT(VCPU_MSRS, 0),
	AT(VCPU_CONTEXT, 1),
	AT(VCPU_MSRS, 1),
	AT(VCPU_CONTEXT, 5),
	R(PV_SHARED_INFO),
	R(DIGEST),
	R(END),
	R(COMMIT),
};

static const struct sample_record sim_image[] = {
	R(HELLO), R(IDENTITY),	R(CONFIG), R(OPEN),  R(STOP),  PAGES(0),
	ROUND(0), R(SIM_STATE), R(DIGEST), R(INDEX), R(INDEX), R(END),
};

static const struct sample_record checkpoint[] = {
	R(HELLO), R(IDENTITY), R(CONFIG),    R(PARENT), R(OPEN),
	R(STOP),  ROUND(0),    R(SIM_STATE), R(DIGEST), R(END),
};

static const struct sample_record other_channel[] = {
	PAGES(0),  ROUND(0), ROUND(1), PAGES(2), ROUND(2),
	R(VERIFY), PAGES(3), PAGES(3), ROUND(3), R(END),
};

static const struct sample_record target_0[] = {
	R(HELLO_REPLY), R(PRECHECK), R(ACK), R(ACK), R(READY), R(ACK), R(RUNNING), R(CONNECTED),
};
static const struct sample_record target_resumed[] = {
	R(RESUME_REPLY),
	R(ACK),
	R(READY),
	R(RUNNING),
};
static const struct sample_record target_other[] = {R(ACK), R(ACK)};
static const struct sample_record query[] = {R(QUERY)};
static const struct sample_record status[] = {R(STATUS)};
static const struct sample_record check[] = {R(CHECK)};
static const struct sample_record check_reply[] = {R(CHECK_REPLY)};
static const struct sample_record resume[] = {R(RESUME)};

static const struct stream_case {
	const char *name;
	enum stream_side side;
	enum pgr_kind kind;
	unsigned channel;
	bool sim;
	const struct sample_record *record;
	size_t nr;
} cases[] = {
#define CASE(array, side, kind, channel, sim)                         \
	{                                                             \
#array, side, kind, channel, sim, array, COUNT(array) \
	}
	CASE(pv_migrate, STREAM_FROM_SOURCE, PGR_KIND_MIGRATE, 0, false),
	CASE(sim_image, STREAM_FROM_SOURCE, PGR_KIND_IMAGE, 0, true),
	CASE(checkpoint, STREAM_FROM_SOURCE, PGR_KIND_CHECKPOINT, 0, true),
	CASE(other_channel, STREAM_FROM_SOURCE, PGR_KIND_MIGRATE, 3, false),
	CASE(target_0, STREAM_FROM_TARGET, PGR_KIND_MIGRATE, 0, false),
	CASE(target_resumed, STREAM_FROM_TARGET, PGR_KIND_MIGRATE, 0, false),
	CASE(target_other, STREAM_FROM_TARGET, PGR_KIND_MIGRATE, 2, false),
	CASE(query, STREAM_FROM_SOURCE, PGR_KIND_MIGRATE, 0, false),
	CASE(status, STREAM_FROM_TARGET, PGR_KIND_MIGRATE, 0, false),
	CASE(check, STREAM_FROM_SOURCE, PGR_KIND_MIGRATE, 0, false),
	CASE(check_reply, STREAM_FROM_TARGET, PGR_KIND_MIGRATE, 0, false),
	CASE(resume, STREAM_FROM_SOURCE, PGR_KIND_MIGRATE, 0, false),
};

/* Write the records, read them, feed the order. 0, or the error, and which record it was. */
static int run(const struct stream_case *c, const struct sample_record *record, size_t nr,
	       size_t *where, struct pgr_error *err)
{
	struct memory_stream m = {0};
	struct stream_reader r;
	struct stream_record rec;
	struct stream_order o;
	struct pgr_stream_header h;
	int rc;

	CHECK_EQ(sample_write(&m, c->kind, c->channel, c->sim, record, nr, err), 0);
	stream_reader_init(&r, memory_read, &m);
	stream_order_init(&o, c->side, c->kind, c->channel);
	CHECK_EQ(stream_read_header(&r, &h, err), 0);
	for (*where = 0; *where < nr; ++*where) {
		CHECK_MSG(stream_read(&r, &rec, err) == 0, "%s", err->text);
		rc = stream_order_next(&o, &rec, err);
		if (rc)
			break;
	}
	stream_reader_free(&r);
	memory_free(&m);
	return *where < nr ? rc : 0;
}

/*
 * The order of the page, written a second time as an expression over the records: does it take this
 * sequence (perhaps unfinished)?
 */
struct grammar {
	const struct stream_case *c;
	const struct sample_record *record;
	size_t nr, at;
	uint32_t round;
};

static bool next_is(const struct grammar *g, uint32_t type)
{
	return g->at < g->nr && g->record[g->at].type == type;
}

static bool take(struct grammar *g, uint32_t type)
{
	if (!next_is(g, type))
		return false;
	g->at++;
	return true;
}

static bool at_end(const struct grammar *g)
{
	return g->at == g->nr;
}

/* PAGES* ROUND_END; false: none begins here or it is wrong or unfinished. */
static bool take_round(struct grammar *g)
{
	while (next_is(g, PGR_REC_PAGES)) {
		if (g->record[g->at].round != g->round)
			return false;
		g->at++;
	}
	if (!next_is(g, PGR_REC_ROUND_END) || g->record[g->at].round != g->round)
		return false;
	g->at++;
	g->round++;
	return true;
}

static bool memory_next(const struct grammar *g)
{
	return next_is(g, PGR_REC_PAGES) || next_is(g, PGR_REC_ROUND_END);
}

/* false: the last one is wrong or unfinished. */
static bool take_rounds(struct grammar *g)
{
	while (memory_next(g)) {
		if (!take_round(g))
			return false;
	}
	return true;
}

static bool take_vcpus(struct grammar *g)
{
	long last = -1;

	if (!next_is(g, PGR_REC_VCPU_CONTEXT))
		return false;
	while (next_is(g, PGR_REC_VCPU_CONTEXT) && (long)g->record[g->at].vcpu > last) {
		static const uint32_t more[] = {PGR_REC_VCPU_EXTENDED, PGR_REC_VCPU_XSAVE,
						PGR_REC_VCPU_MSRS};

		last = g->record[g->at++].vcpu;
		for (unsigned i = 0; i < COUNT(more); i++) {
			if (next_is(g, more[i]) && (long)g->record[g->at].vcpu == last)
				g->at++;
		}
	}
	return true;
}

static bool take_state(struct grammar *g)
{
	uint32_t frame = 0;

	if (g->c->sim)
		return take(g, PGR_REC_SIM_STATE);
	if (!take(g, PGR_REC_PV_INFO))
		return false;
	while (next_is(g, PGR_REC_PV_P2M_FRAMES) && g->record[g->at].vcpu == frame) {
		frame += 2; /* the sample's count */
		g->at++;
	}
	if (!frame)
		return false;
	take(g, PGR_REC_TSC_INFO);
	return take_vcpus(g) && take(g, PGR_REC_PV_SHARED_INFO);
}

static void take_end(struct grammar *g)
{
	bool file = g->c->kind != PGR_KIND_MIGRATE;

	while (file && take(g, PGR_REC_INDEX))
		;
	if (take(g, PGR_REC_END) && !file)
		take(g, PGR_REC_COMMIT);
}

/* How many records the grammar takes: all of them, or where the first is wrong. */
static size_t parse_source_0(struct grammar *g)
{
	bool file = g->c->kind != PGR_KIND_MIGRATE;

	if (!file && take(g, PGR_REC_DISK_ATTACH)) {
		while (take(g, PGR_REC_DISK_DATA))
			;
		return g->at;
	}
	if (!take(g, PGR_REC_HELLO)) {
		if (!file && !take(g, PGR_REC_QUERY) && !take(g, PGR_REC_CHECK))
			take(g, PGR_REC_RESUME);
		return g->at;
	}
	if (!take(g, PGR_REC_IDENTITY))
		return g->at;
	take(g, PGR_REC_CPU_POLICY);
	if (!take(g, PGR_REC_CONFIG))
		return g->at;
	if (g->c->kind == PGR_KIND_CHECKPOINT && !take(g, PGR_REC_PARENT))
		return g->at;
	if (!take(g, PGR_REC_OPEN))
		return g->at;
	if (!take_rounds(g) || !take(g, PGR_REC_STOP) || !take_rounds(g))
		return g->at;
	if (take(g, PGR_REC_VERIFY) && !take_round(g))
		return g->at;
	if (take_state(g) && take(g, PGR_REC_DIGEST))
		take_end(g);
	return g->at;
}

static void whole_streams_are_taken(void)
{
	for (size_t i = 0; i < COUNT(cases); i++) {
		struct pgr_error err = PGR_ERROR_NONE;
		size_t where;

		CHECK_MSG(run(&cases[i], cases[i].record, cases[i].nr, &where, &err) == 0, "%s: %s",
			  cases[i].name, err.text);
	}
}

/* The state machine and the grammar agree on a changed stream, to the record. */
static void agree(const struct stream_case *c, const struct sample_record *record, size_t nr,
		  const char *what, size_t k)
{
	struct grammar g = {.c = c, .record = record, .nr = nr};
	struct pgr_error err = PGR_ERROR_NONE;
	size_t want = parse_source_0(&g), where;
	int rc = run(c, record, nr, &where, &err);

	CHECK_MSG(where == want, "%s, %s %zu: refused at %zu (%s), the grammar says %zu", c->name,
		  what, k, where, err.text, want);
	CHECK_EQ(rc, at_end(&g) ? 0 : -EPROTO);
	if (rc) {
		CHECK_HAS(err.text, "record ");
		CHECK_HAS(err.text, stream_type_name(record[where].type));
	}
}

static void one_record_left_out_doubled_or_exchanged(void)
{
	struct sample_record changed[64];

	for (size_t i = 0; i < 3; i++) {
		const struct stream_case *c = &cases[i];

		for (size_t k = 0; k < c->nr; k++) {
			memcpy(changed, c->record, k * sizeof(*changed));
			memcpy(changed + k, c->record + k + 1, (c->nr - k - 1) * sizeof(*changed));
			agree(c, changed, c->nr - 1, "without", k);

			memcpy(changed + k + 1, c->record + k, (c->nr - k) * sizeof(*changed));
			changed[k] = c->record[k];
			agree(c, changed, c->nr + 1, "doubled", k);

			if (k + 1 == c->nr)
				continue;
			memcpy(changed, c->record, c->nr * sizeof(*changed));
			changed[k] = c->record[k + 1];
			changed[k + 1] = c->record[k];
			agree(c, changed, c->nr, "exchanged", k);
		}
	}
}

/* Each type of record at each place. */
static void one_foreign_record(void)
{
	struct sample_record changed[64];
	size_t nr_types;
	const uint32_t *type = sample_types(&nr_types);

	for (size_t i = 0; i < 3; i++) {
		const struct stream_case *c = &cases[i];

		for (size_t k = 0; k <= c->nr; k++) {
			for (size_t t = 0; t < nr_types; t++) {
				if (type[t] == PGR_REC_KEEPALIVE || type[t] == PGR_REC_NOTE ||
				    type[t] == PGR_REC_ABORT)
					continue;
				memcpy(changed, c->record, k * sizeof(*changed));
				memcpy(changed + k + 1, c->record + k,
				       (c->nr - k) * sizeof(*changed));
				changed[k] = (struct sample_record){.type = type[t]};
				agree(c, changed, c->nr + 1, stream_type_name(type[t]), k);
			}
		}
	}
}

/* KEEPALIVE and NOTE anywhere but behind a file's end; after ABORT nothing. */
static void asides_may_come_anywhere(void)
{
	for (size_t i = 0; i < COUNT(cases); i++) {
		const struct stream_case *c = &cases[i];
		struct sample_record changed[64];
		struct pgr_error err;
		size_t where;

		for (size_t k = 0; k <= c->nr; k++) {
			bool behind = k == c->nr && c->kind != PGR_KIND_MIGRATE;

			memcpy(changed, c->record, k * sizeof(*changed));
			memcpy(changed + k + 1, c->record + k, (c->nr - k) * sizeof(*changed));
			changed[k].type = k % 2 ? PGR_REC_NOTE : PGR_REC_KEEPALIVE;
			CHECK_EQ(run(c, changed, c->nr + 1, &where, &err), behind ? -EPROTO : 0);
			changed[k].type = PGR_REC_ABORT;
			CHECK_EQ(run(c, changed, k + 1, &where, &err), behind ? -EPROTO : 0);
			changed[k + 1].type = PGR_REC_NOTE;
			CHECK_EQ(run(c, changed, k + 2, &where, &err), -EPROTO);
			CHECK_EQ(where, behind ? k : k + 1);
		}
	}
}

struct refusal {
	const struct sample_record *record;
	size_t nr;
	unsigned which; /* case whose side, kind and channel hold */
	const char *says;
};

static void refusals_say_what_is_due(void)
{
	static const struct sample_record pages_first[] = {PAGES(0)};
	static const struct sample_record unfinished[] = {R(HELLO), R(IDENTITY), R(CONFIG),
							  R(OPEN),  PAGES(0),	 R(STOP)};
	static const struct sample_record late_round[] = {R(HELLO), R(IDENTITY), R(CONFIG), R(OPEN),
							  PAGES(1)};
	static const struct sample_record parent[] = {R(HELLO), R(IDENTITY), R(CONFIG), R(PARENT)};
	static const struct sample_record no_parent[] = {R(HELLO), R(IDENTITY), R(CONFIG), R(OPEN)};
	static const struct sample_record other_jumps[] = {ROUND(0), ROUND(2)};
	static const struct sample_record other_stop[] = {ROUND(0), R(STOP)};
	static const struct sample_record other_unfinished[] = {PAGES(0), R(END)};
	static const struct sample_record early_ready[] = {R(HELLO_REPLY), R(READY)};
	static const struct sample_record early_running[] = {R(HELLO_REPLY), R(PRECHECK),
							     R(RUNNING)};
	static const struct sample_record twice_running[] = {R(RESUME_REPLY), R(RUNNING),
							     R(RUNNING)};
	static const struct sample_record twice_connected[] = {R(RESUME_REPLY), R(RUNNING),
							       R(CONNECTED), R(CONNECTED)};
	static const struct refusal refusals[] = {
		{pages_first, 1, 0, "HELLO, RESUME, QUERY, CHECK or DISK_ATTACH may come"},
		{pages_first, 1, 1, "HELLO, RESUME, QUERY, CHECK or DISK_ATTACH may come"},
		{query, 1, 1, "a file holds no conversation"},
		{unfinished, 6, 0, "PAGES or ROUND_END may come"},
		{late_round, 5, 0, "round 1 where round 0 is due"},
		{parent, 4, 0, "only a checkpoint or a replica"},
		{no_parent, 4, 2, "needs a PARENT"},
		{other_jumps, 2, 3, "round 2 where round 1 is due"},
		{other_stop, 2, 3, "PAGES, ROUND_END, VERIFY or END may come"},
		{other_unfinished, 2, 3, "PAGES or ROUND_END may come"},
		{early_ready, 2, 4, "PRECHECK may come"},
		{early_running, 3, 4, "ACK or READY may come"},
		{twice_running, 3, 5, "CONNECTED may come"},
		{twice_connected, 4, 5, "nothing may come"},
	};

	for (size_t i = 0; i < COUNT(refusals); i++) {
		const struct refusal *f = &refusals[i];
		struct pgr_error err = PGR_ERROR_NONE;
		size_t where;

		CHECK_EQ(run(&cases[f->which], f->record, f->nr, &where, &err), -EPROTO);
		CHECK_EQ(where, f->nr - 1);
		CHECK_HAS(err.text, f->says);
	}
}

/* Feed one record made by hand. */
static int feed(struct stream_order *o, uint32_t type, const void *body, uint32_t sequence,
		uint64_t offset, struct pgr_error *err)
{
	struct stream_record rec = {
		.type = type, .sequence = sequence, .offset = offset, .body = body};

	return stream_order_next(o, &rec, err);
}

static void hello_decides_what_may_follow(void)
{
	struct pgr_hello hello = {.guest_kind = PGR_GUEST_PV64, .nr_pfns = 8, .vcpus = 1};
	struct pgr_pages pages = {.nr_pages = 1};
	struct pgr_error err;
	struct stream_order o;

	stream_order_init(&o, STREAM_FROM_SOURCE, PGR_KIND_MIGRATE, 0);
	CHECK_EQ(feed(&o, PGR_REC_HELLO, &hello, 0, 40, &err), 0);
	CHECK_EQ(feed(&o, PGR_REC_IDENTITY, NULL, 1, 88, &err), 0);
	CHECK_EQ(feed(&o, PGR_REC_CONFIG, NULL, 2, 88, &err), 0);
	CHECK_EQ(feed(&o, PGR_REC_OPEN, NULL, 3, 88, &err), 0);
	CHECK_EQ(feed(&o, PGR_REC_PAGES, &pages, 4, 88, &err), -EPROTO);
	CHECK_HAS(err.text, "no pages come before STOP");
	CHECK_EQ(feed(&o, PGR_REC_STOP, NULL, 4, 88, &err), 0);
	CHECK_EQ(feed(&o, PGR_REC_VERIFY, NULL, 5, 88, &err), -EPROTO);
	CHECK_HAS(err.text, "did not offer to verify");
	CHECK_EQ(feed(&o, PGR_REC_SIM_STATE, NULL, 5, 88, &err), -EPROTO);
	CHECK_HAS(err.text, "does not belong to the PV guest");
	CHECK_EQ(feed(&o, PGR_REC_PV_INFO, NULL, 5, 88, &err), 0);
}

static void end_must_count_right(void)
{
	struct pgr_end end = {.records = 5, .bytes = 1000};
	struct pgr_error err;
	struct stream_order o;

	stream_order_init(&o, STREAM_FROM_SOURCE, PGR_KIND_MIGRATE, 1);
	CHECK_EQ(feed(&o, PGR_REC_END, &end, 4, 1000, &err), -EPROTO);
	CHECK_HAS(err.text, "counts 5 records before it; there were 4");
	CHECK_EQ(feed(&o, PGR_REC_END, &end, 5, 48, &err), 0); /* offset on a resumed connection */
}

static void refused_precheck_ends_it(void)
{
	struct pgr_precheck refused = {.refusals = 1};
	struct pgr_resume ack = {.next_sequence = 1};
	struct pgr_error err;
	struct stream_order o;

	stream_order_init(&o, STREAM_FROM_TARGET, PGR_KIND_MIGRATE, 0);
	CHECK_EQ(feed(&o, PGR_REC_HELLO_REPLY, NULL, 0, 40, &err), 0);
	CHECK_EQ(feed(&o, PGR_REC_PRECHECK, &refused, 1, 72, &err), 0);
	CHECK_EQ(feed(&o, PGR_REC_ACK, &ack, 2, 72, &err), -EPROTO);
	CHECK_HAS(err.text, "nothing may come");
}

/*
 * The state is a plain structure: saved before a connection is lost, put back after RESUME_REPLY.
 */
static void saved_order_goes_on(void)
{
	struct pgr_round_end end = {.round = 0};
	struct stream_order o, saved;
	struct pgr_error err;

	stream_order_init(&o, STREAM_FROM_SOURCE, PGR_KIND_MIGRATE, 1);
	CHECK_EQ(feed(&o, PGR_REC_ROUND_END, &end, 0, 40, &err), 0);
	saved = o;
	stream_order_init(&o, STREAM_FROM_SOURCE, PGR_KIND_MIGRATE, 1);
	CHECK_EQ(feed(&o, PGR_REC_RESUME, NULL, 0, 40, &err), 0);
	CHECK_EQ(feed(&o, PGR_REC_ROUND_END, &end, 1, 64, &err), -EPROTO);
	o = saved;
	end.round = 1;
	CHECK_EQ(feed(&o, PGR_REC_ROUND_END, &end, 1, 64, &err), 0);
}

static void uninitialised_order_is_refused(void)
{
	struct stream_order o = {.state = 0x7f};
	struct pgr_error err;

	CHECK_EQ(feed(&o, PGR_REC_OPEN, NULL, 0, 0, &err), -EINVAL);
}

UNIT_MAIN(TEST(whole_streams_are_taken), TEST(one_record_left_out_doubled_or_exchanged),
	  TEST(one_foreign_record), TEST(asides_may_come_anywhere), TEST(refusals_say_what_is_due),
	  TEST(hello_decides_what_may_follow), TEST(end_must_count_right),
	  TEST(refused_precheck_ends_it), TEST(saved_order_goes_on),
	  TEST(uninitialised_order_is_refused))
