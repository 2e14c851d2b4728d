// SPDX-License-Identifier: MIT
/*
 * Which record may come when: the order of protocol-spec/stream.md as a state machine.
 *
 * A state is a row of `states`: the name of what may come, and a list of (record, next state). What
 * a table cannot say is a small function of the record (round numbers, ascending vCPUs, the end's
 * counters); it runs before the step and may refuse it. ABORT, KEEPALIVE and NOTE are legal in
 * every state and change nothing, except that nothing follows ABORT, nor a file's END.
 *
 * stream_order.state holds the row's number, four bits of HELLO (needed again later) and a
 * counter: disks while those come, the next P2M frame while those come, one more than the last vCPU while vCPUs come.
 *
 * What needs more memory than this is the reader's: that a codec or transform is among the
 * features, what ROUND_END counts, that the P2M frames cover the guest, that VERIFY covers what was
 * sent.
 *
 * From the source, channel 0:
 *
 *	NEW -HELLO-> IDENTITY -> CPU_POLICY? -> CONFIG -> DISK* -> PARENT? -OPEN-> ROUNDS <-> IN_ROUND
 *	ROUNDS -STOP-> FINAL <-> IN_FINAL;  FINAL -VERIFY-> VERIFYING -ROUND_END-> VERIFIED
 *	FINAL, VERIFIED -PV_INFO or SIM_STATE-> ... -DIGEST-> INDEXING -END-> ENDED -COMMIT-> DONE
 *
 * On a DISK connection, both sides: NEW -DISK_ATTACH-> DISK_BYTES -empty DISK_DATA-> DONE.
 *
 * Other channels: ROUNDS, IN_ROUND, VERIFYING, VERIFIED without STOP and state, then END.
 */
#include "migrate/stream.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

enum state {
	DONE, /* nothing more */
	ABORTED,
	NEW,
	AFTER_HELLO,
	AFTER_IDENTITY,
	AFTER_CPU_POLICY,
	AFTER_CONFIG,
	AFTER_DISK,
	AFTER_PARENT,
	ROUNDS,
	IN_ROUND,
	FINAL,
	IN_FINAL,
	VERIFYING,
	VERIFIED,
	AFTER_PV_INFO,
	IN_P2M,
	AFTER_TSC,
	AFTER_CONTEXT,
	AFTER_EXTENDED,
	AFTER_XSAVE,
	AFTER_MSRS,
	DEVICES,
	AFTER_SIM_STATE,
	INDEXING,
	ENDED,
	OTHER_NEW,
	OTHER_ROUNDS,
	OTHER_IN_ROUND,
	OTHER_VERIFYING,
	OTHER_VERIFIED,
	TARGET_NEW,
	AFTER_HELLO_REPLY,
	ACKS,
	TARGET_RESUMED,
	TARGET_READY,
	TARGET_RUNNING,
	TARGET_OTHER_NEW,
	TARGET_OTHER_ACKS,
	DISK_BYTES,
	NR_STATES
};

#define STATE_BITS    7
#define SIM_BIT	      (1u << STATE_BITS)
#define STILL_BIT     (2u << STATE_BITS) /* HELLO.live is 0 */
#define VERIFY_BIT    (4u << STATE_BITS) /* HELLO offers VERIFY */
#define DISKS_BIT     (8u << STATE_BITS) /* HELLO says that disks come along */
#define COUNTER_SHIFT (STATE_BITS + 4)
#define STEPS_MAX     8

_Static_assert(NR_STATES <= 1u << STATE_BITS, "the row's number has its bits");
/* A P2M page holds 512 entries. */
_Static_assert(PGR_PFNS_MAX / 512 < 1u << (32 - COUNTER_SHIFT), "the counter counts P2M frames");
_Static_assert(PGR_VCPUS_MAX < 1u << (32 - COUNTER_SHIFT), "the counter counts vCPUs");

typedef int guard_fn(struct stream_order *o, const struct stream_record *rec,
		     struct pgr_error *err);

struct step {
	uint32_t type; /* 0 ends the list */
	enum state next;
	guard_fn *guard;
};

static enum state row_of(const struct stream_order *o)
{
	return o->state & ((1u << STATE_BITS) - 1);
}

static uint32_t counter_of(const struct stream_order *o)
{
	return o->state >> COUNTER_SHIFT;
}

static void set_row(struct stream_order *o, enum state row)
{
	o->state = (o->state & ~((1u << STATE_BITS) - 1)) | row;
}

static void set_counter(struct stream_order *o, uint32_t counter)
{
	o->state = (o->state & ((1u << COUNTER_SHIFT) - 1)) | counter << COUNTER_SHIFT;
}

static int remember_hello(struct stream_order *o, const struct stream_record *rec,
			  struct pgr_error *err)
{
	const struct pgr_hello *h = (const void *)rec->body;

	(void)err;
	if (h->guest_kind == PGR_GUEST_SIM)
		o->state |= SIM_BIT;
	if (!h->live)
		o->state |= STILL_BIT;
	if (h->features & PGR_FEATURE_VERIFY)
		o->state |= VERIFY_BIT;
	if (h->features & PGR_FEATURE_DISKS)
		o->state |= DISKS_BIT;
	return 0;
}

static int verify_offered(struct stream_order *o, const struct stream_record *rec,
			  struct pgr_error *err)
{
	(void)rec;
	return o->state & VERIFY_BIT ? 0 : pgr_fail(err, -EPROTO, "HELLO did not offer to verify");
}

/* OPEN without PARENT. */
static int parent_needless(struct stream_order *o, const struct stream_record *rec,
			   struct pgr_error *err)
{
	(void)rec;
	return o->kind != PGR_KIND_CHECKPOINT
		       ? 0
		       : pgr_fail(err, -EPROTO, "a checkpoint needs a PARENT");
}

static int parent_allowed(struct stream_order *o, const struct stream_record *rec,
			  struct pgr_error *err)
{
	(void)rec;
	if (o->kind == PGR_KIND_CHECKPOINT || o->kind == PGR_KIND_REPLICATE)
		return 0;
	return pgr_fail(err, -EPROTO, "only a checkpoint or a replica has a parent");
}

static int one_more_disk(struct stream_order *o, const struct stream_record *rec,
			 struct pgr_error *err)
{
	(void)rec;
	if (!(o->state & DISKS_BIT) || o->kind != PGR_KIND_MIGRATE)
		return pgr_fail(err, -EPROTO, "HELLO did not say that disks come along");
	if (counter_of(o) == PGR_DISKS_MAX)
		return pgr_fail(err, -EPROTO, "more than %u disks come along", PGR_DISKS_MAX);
	set_counter(o, counter_of(o) + 1);
	return 0;
}

/* Disks were promised. */
static int disks_needless(struct stream_order *o, const struct stream_record *rec,
			  struct pgr_error *err)
{
	if (o->state & DISKS_BIT)
		return pgr_fail(err, -EPROTO, "HELLO says that disks come along, and none does");
	return parent_needless(o, rec, err);
}

static int disk_bytes(struct stream_order *o, const struct stream_record *rec,
		      struct pgr_error *err)
{
	(void)o;
	(void)err;
	return rec->length ? 0 : 1;
}

static int round_is(const struct stream_order *o, uint32_t round, struct pgr_error *err)
{
	if (round == o->round)
		return 0;
	return pgr_fail(err, -EPROTO, "it belongs to round %u where round %u is due", round,
			o->round);
}

static int pages_round(struct stream_order *o, const struct stream_record *rec,
		       struct pgr_error *err)
{
	const struct pgr_pages *b = (const void *)rec->body;

	return round_is(o, b->round, err);
}

static int live_round(struct stream_order *o, const struct stream_record *rec,
		      struct pgr_error *err)
{
	if (o->state & STILL_BIT)
		return pgr_fail(err, -EPROTO, "HELLO said that no pages come before STOP");
	return pages_round(o, rec, err);
}

static int end_round(struct stream_order *o, const struct stream_record *rec, struct pgr_error *err)
{
	const struct pgr_round_end *b = (const void *)rec->body;
	int rc = round_is(o, b->round, err);

	if (!rc)
		o->round++;
	return rc;
}

static int guest_kind_is(const struct stream_order *o, bool sim, struct pgr_error *err)
{
	if (!!(o->state & SIM_BIT) == sim)
		return 0;
	return pgr_fail(err, -EPROTO, "this state does not belong to the %s guest of HELLO",
			sim ? "PV" : "simulated");
}

static int pv_begins(struct stream_order *o, const struct stream_record *rec, struct pgr_error *err)
{
	(void)rec;
	set_counter(o, 0);
	return guest_kind_is(o, false, err);
}

static int sim_begins(struct stream_order *o, const struct stream_record *rec,
		      struct pgr_error *err)
{
	(void)rec;
	return guest_kind_is(o, true, err);
}

static int p2m_follows(struct stream_order *o, const struct stream_record *rec,
		       struct pgr_error *err)
{
	const struct pgr_pv_p2m_frames *b = (const void *)rec->body;
	uint32_t next = counter_of(o);

	if (b->first != next)
		return pgr_fail(err, -EPROTO, "it begins with P2M frame %u where %u is due",
				b->first, next);
	if (b->count > PGR_PFNS_MAX / 512 - next)
		return pgr_fail(err, -EPROTO, "%u P2M frames are more than any guest has",
				next + b->count);
	set_counter(o, next + b->count);
	return 0;
}

/* The first vCPU after the P2M frames: the counter begins anew. */
static int first_vcpu(struct stream_order *o, const struct stream_record *rec,
		      struct pgr_error *err)
{
	const struct pgr_vcpu *b = (const void *)rec->body;

	(void)err;
	set_counter(o, b->vcpu + 1);
	return 0;
}

static int next_vcpu(struct stream_order *o, const struct stream_record *rec, struct pgr_error *err)
{
	const struct pgr_vcpu *b = (const void *)rec->body;

	if (b->vcpu < counter_of(o))
		return pgr_fail(err, -EPROTO, "vCPU %u comes after vCPU %u", b->vcpu,
				counter_of(o) - 1);
	set_counter(o, b->vcpu + 1);
	return 0;
}

static int same_vcpu(struct stream_order *o, const struct stream_record *rec, struct pgr_error *err)
{
	const struct pgr_vcpu *b = (const void *)rec->body;

	if (b->vcpu + 1 != counter_of(o))
		return pgr_fail(err, -EPROTO,
				"it is for vCPU %u but the last context was vCPU %u's", b->vcpu,
				counter_of(o) - 1);
	return 0;
}

static bool is_file(const struct stream_order *o)
{
	return o->kind == PGR_KIND_IMAGE || o->kind == PGR_KIND_CHECKPOINT;
}

static int conversation_allowed(struct stream_order *o, const struct stream_record *rec,
				struct pgr_error *err)
{
	(void)rec;
	return is_file(o) ? pgr_fail(err, -EPROTO, "a file holds no conversation") : 0;
}

static int index_allowed(struct stream_order *o, const struct stream_record *rec,
			 struct pgr_error *err)
{
	(void)rec;
	return is_file(o) ? 0 : pgr_fail(err, -EPROTO, "only a file has an index");
}

/*
 * Sequence numbers go on over a resume and so do END's records; offsets do not, so bytes are
 * compared in files only.
 */
static int end_counts(struct stream_order *o, const struct stream_record *rec,
		      struct pgr_error *err)
{
	const struct pgr_end *b = (const void *)rec->body;

	if (b->records != rec->sequence)
		return pgr_fail(err, -EPROTO, "it counts %llu records before it; there were %u",
				(unsigned long long)b->records, rec->sequence);
	if (is_file(o) && b->bytes != rec->offset)
		return pgr_fail(err, -EPROTO, "it counts %llu bytes before it; there were %llu",
				(unsigned long long)b->bytes, (unsigned long long)rec->offset);
	return 0;
}

static int commit_allowed(struct stream_order *o, const struct stream_record *rec,
			  struct pgr_error *err)
{
	(void)rec;
	if (o->kind == PGR_KIND_MIGRATE)
		return 0;
	return pgr_fail(err, -EPROTO, "only a migration is committed");
}

/* After a refusal the target has nothing more to say. */
static int precheck_passed(struct stream_order *o, const struct stream_record *rec,
			   struct pgr_error *err)
{
	const struct pgr_precheck *b = (const void *)rec->body;

	(void)o;
	(void)err;
	return b->refusals ? 1 : 0;
}

#define PAGES_IN(row)                           \
	{                                       \
		PGR_REC_PAGES, row, pages_round \
	}
#define ROUND_TO(row)                             \
	{                                         \
		PGR_REC_ROUND_END, row, end_round \
	}
#define STATE_BEGINS                                           \
	{PGR_REC_PV_INFO, AFTER_PV_INFO, pv_begins},           \
	{                                                      \
		PGR_REC_SIM_STATE, AFTER_SIM_STATE, sim_begins \
	}
#define AFTER_A_VCPU                                      \
	{PGR_REC_VCPU_CONTEXT, AFTER_CONTEXT, next_vcpu}, \
	{                                                 \
		PGR_REC_PV_SHARED_INFO, DEVICES, NULL     \
	}
#define EXTENDED                                                 \
	{                                                        \
		PGR_REC_VCPU_EXTENDED, AFTER_EXTENDED, same_vcpu \
	}
#define XSAVE                                              \
	{                                                  \
		PGR_REC_VCPU_XSAVE, AFTER_XSAVE, same_vcpu \
	}
#define MSRS                                             \
	{                                                \
		PGR_REC_VCPU_MSRS, AFTER_MSRS, same_vcpu \
	}
#define CONFIG                                     \
	{                                          \
		PGR_REC_CONFIG, AFTER_CONFIG, NULL \
	}

static const struct step states[NR_STATES][STEPS_MAX] = {
	[DONE] = {{0}},
	[ABORTED] = {{0}},
	[NEW] = {{PGR_REC_HELLO, AFTER_HELLO, remember_hello},
		 {PGR_REC_RESUME, DONE, conversation_allowed},
		 {PGR_REC_QUERY, DONE, conversation_allowed},
		 {PGR_REC_CHECK, DONE, conversation_allowed},
		 {PGR_REC_DISK_ATTACH, DISK_BYTES, conversation_allowed}},
	[AFTER_HELLO] = {{PGR_REC_IDENTITY, AFTER_IDENTITY, NULL}},
	[AFTER_IDENTITY] = {CONFIG, {PGR_REC_CPU_POLICY, AFTER_CPU_POLICY, NULL}},
	[AFTER_CPU_POLICY] = {CONFIG},
	[AFTER_CONFIG] = {{PGR_REC_OPEN, ROUNDS, disks_needless},
			  {PGR_REC_PARENT, AFTER_PARENT, parent_allowed},
			  {PGR_REC_DISK, AFTER_DISK, one_more_disk}},
	[AFTER_DISK] = {{PGR_REC_OPEN, ROUNDS, NULL}, {PGR_REC_DISK, AFTER_DISK, one_more_disk}},
	[AFTER_PARENT] = {{PGR_REC_OPEN, ROUNDS, NULL}},
	[ROUNDS] = {{PGR_REC_PAGES, IN_ROUND, live_round},
		    ROUND_TO(ROUNDS),
		    {PGR_REC_STOP, FINAL, NULL}},
	[IN_ROUND] = {PAGES_IN(IN_ROUND), ROUND_TO(ROUNDS)},
	[FINAL] = {PAGES_IN(IN_FINAL),
		   ROUND_TO(FINAL),
		   {PGR_REC_VERIFY, VERIFYING, verify_offered},
		   STATE_BEGINS},
	[IN_FINAL] = {PAGES_IN(IN_FINAL), ROUND_TO(FINAL)},
	[VERIFYING] = {PAGES_IN(VERIFYING), ROUND_TO(VERIFIED)},
	[VERIFIED] = {STATE_BEGINS},
	[AFTER_PV_INFO] = {{PGR_REC_PV_P2M_FRAMES, IN_P2M, p2m_follows}},
	[IN_P2M] = {{PGR_REC_PV_P2M_FRAMES, IN_P2M, p2m_follows},
		    {PGR_REC_TSC_INFO, AFTER_TSC, NULL},
		    {PGR_REC_VCPU_CONTEXT, AFTER_CONTEXT, first_vcpu}},
	[AFTER_TSC] = {{PGR_REC_VCPU_CONTEXT, AFTER_CONTEXT, first_vcpu}},
	[AFTER_CONTEXT] = {EXTENDED, XSAVE, MSRS, AFTER_A_VCPU},
	[AFTER_EXTENDED] = {XSAVE, MSRS, AFTER_A_VCPU},
	[AFTER_XSAVE] = {MSRS, AFTER_A_VCPU},
	[AFTER_MSRS] = {AFTER_A_VCPU},
	[DEVICES] = {{PGR_REC_DEVICE_STATE, DEVICES, NULL}, {PGR_REC_DIGEST, INDEXING, NULL}},
	[AFTER_SIM_STATE] = {{PGR_REC_DIGEST, INDEXING, NULL}},
	[INDEXING] = {{PGR_REC_INDEX, INDEXING, index_allowed}, {PGR_REC_END, ENDED, end_counts}},
	[ENDED] = {{PGR_REC_COMMIT, DONE, commit_allowed}},
	[OTHER_NEW] = {PAGES_IN(OTHER_IN_ROUND),
		       ROUND_TO(OTHER_ROUNDS),
		       {PGR_REC_VERIFY, OTHER_VERIFYING, NULL},
		       {PGR_REC_END, DONE, end_counts},
		       {PGR_REC_RESUME, DONE, NULL}},
	[OTHER_ROUNDS] = {PAGES_IN(OTHER_IN_ROUND),
			  ROUND_TO(OTHER_ROUNDS),
			  {PGR_REC_VERIFY, OTHER_VERIFYING, NULL},
			  {PGR_REC_END, DONE, end_counts}},
	[OTHER_IN_ROUND] = {PAGES_IN(OTHER_IN_ROUND), ROUND_TO(OTHER_ROUNDS)},
	[OTHER_VERIFYING] = {PAGES_IN(OTHER_VERIFYING), ROUND_TO(OTHER_VERIFIED)},
	[OTHER_VERIFIED] = {{PGR_REC_END, DONE, end_counts}},
	[TARGET_NEW] = {{PGR_REC_HELLO_REPLY, AFTER_HELLO_REPLY, NULL},
			{PGR_REC_RESUME_REPLY, TARGET_RESUMED, NULL},
			{PGR_REC_STATUS, DONE, NULL},
			{PGR_REC_CHECK_REPLY, DONE, NULL},
			{PGR_REC_DISK_DATA, DISK_BYTES, disk_bytes}},
	[AFTER_HELLO_REPLY] = {{PGR_REC_PRECHECK, ACKS, precheck_passed}},
	[ACKS] = {{PGR_REC_ACK, ACKS, NULL}, {PGR_REC_READY, TARGET_READY, NULL}},
	[TARGET_RESUMED] = {{PGR_REC_ACK, TARGET_RESUMED, NULL},
			    {PGR_REC_READY, TARGET_READY, NULL},
			    {PGR_REC_RUNNING, TARGET_RUNNING, NULL}},
	[TARGET_READY] = {{PGR_REC_ACK, TARGET_READY, NULL},
			  {PGR_REC_RUNNING, TARGET_RUNNING, NULL}},
	[TARGET_RUNNING] = {{PGR_REC_CONNECTED, DONE, NULL}},
	[TARGET_OTHER_NEW] = {{PGR_REC_ACK, TARGET_OTHER_ACKS, NULL},
			      {PGR_REC_RESUME_REPLY, TARGET_OTHER_ACKS, NULL}},
	[TARGET_OTHER_ACKS] = {{PGR_REC_ACK, TARGET_OTHER_ACKS, NULL}},
	[DISK_BYTES] = {{PGR_REC_DISK_DATA, DISK_BYTES, disk_bytes}},
};

void stream_order_init(struct stream_order *o, enum stream_side side, enum pgr_kind kind,
		       unsigned channel)
{
	static const enum state first[2][2] = {
		[STREAM_FROM_SOURCE] = {NEW, OTHER_NEW},
		[STREAM_FROM_TARGET] = {TARGET_NEW, TARGET_OTHER_NEW},
	};

	*o = (struct stream_order){
		.side = side,
		.kind = kind,
		.channel = channel,
		.state = first[side == STREAM_FROM_TARGET][channel != 0],
	};
}

/* "PAGES, ROUND_END or STOP" */
static void list_expected(enum state row, char *out, size_t size)
{
	const struct step *s = states[row];
	size_t n = 0;

	if (!s->type)
		snprintf(out, size, "nothing");
	for (; s->type && n < size; s++)
		n += (size_t)snprintf(out + n, size - n, "%s%s",
				      s == states[row] ? ""
				      : s[1].type      ? ", "
						       : " or ",
				      stream_type_name(s->type));
}

static int refuse(enum state row, struct pgr_error *err)
{
	char expected[200];

	list_expected(row, expected, sizeof(expected));
	return pgr_fail(err, -EPROTO, "it has no place here: %s may come", expected);
}

/* What may come at any time. */
static bool is_aside(uint32_t type)
{
	return type == PGR_REC_KEEPALIVE || type == PGR_REC_NOTE || type == PGR_REC_ABORT;
}

static int take(struct stream_order *o, const struct stream_record *rec, struct pgr_error *err)
{
	enum state row = row_of(o);

	if (row >= NR_STATES)
		return pgr_fail(err, -EINVAL, "the order was not initialised");
	if (is_aside(rec->type) && row != ABORTED && !(row == ENDED && is_file(o))) {
		if (rec->type == PGR_REC_ABORT)
			set_row(o, ABORTED);
		return 0;
	}
	for (const struct step *s = states[row]; s->type; s++) {
		int rc;

		if (s->type != rec->type)
			continue;
		rc = s->guard ? s->guard(o, rec, err) : 0;
		if (rc >= 0)
			set_row(o, rc ? DONE : s->next);
		return rc < 0 ? rc : 0;
	}
	return refuse(row, err);
}

int stream_order_next(struct stream_order *o, const struct stream_record *rec,
		      struct pgr_error *err)
{
	int rc = take(o, rec, err);

	if (rc)
		pgr_fail_prefix(err, "record %u %s at offset 0x%llx", rec->sequence,
				stream_type_name(rec->type), (unsigned long long)rec->offset);
	return rc;
}
