// SPDX-License-Identifier: MIT
/* Sample records and streams: see stream_samples.h. */
#include "tests/unit/stream_samples.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int memory_write(void *ctx, const struct iovec *iov, unsigned nr, struct pgr_error *err)
{
	struct memory_stream *m = ctx;

	if (++m->calls == m->fail_at)
		return pgr_fail(err, m->fail_code, "the write fails");
	for (unsigned i = 0; i < nr; i++) {
		if (m->length + iov[i].iov_len > m->capacity) {
			size_t size = 2 * (m->length + iov[i].iov_len);
			uint8_t *p = realloc(m->data, size);

			if (!p)
				return pgr_fail(err, -ENOMEM, "no memory");
			m->data = p;
			m->capacity = size;
		}
		memcpy(m->data + m->length, iov[i].iov_base, iov[i].iov_len);
		m->length += iov[i].iov_len;
	}
	return 0;
}

int memory_read(void *ctx, void *data, size_t length, struct pgr_error *err)
{
	struct memory_stream *m = ctx;

	if (++m->calls == m->fail_at)
		return pgr_fail(err, m->fail_code, "the read fails");
	if (length > m->longest_read)
		m->longest_read = length;
	if (m->at == m->length)
		return pgr_fail(err, -ENODATA, "the end");
	if (length > m->length - m->at) {
		m->at = m->length;
		return pgr_fail(err, -EPIPE, "the end in the middle");
	}
	memcpy(data, m->data + m->at, length);
	m->at += length;
	return 0;
}

void memory_free(struct memory_stream *m)
{
	free(m->data);
	*m = (struct memory_stream){0};
}

static const uint32_t types[] = {
	PGR_REC_HELLO,	       PGR_REC_IDENTITY,
	PGR_REC_CPU_POLICY,    PGR_REC_CONFIG,
	PGR_REC_PARENT,	       PGR_REC_OPEN,
	PGR_REC_PAGES,	       PGR_REC_ROUND_END,
	PGR_REC_STOP,	       PGR_REC_VERIFY,
	PGR_REC_DIGEST,	       PGR_REC_PV_INFO,
	PGR_REC_PV_P2M_FRAMES, PGR_REC_PV_SHARED_INFO,
	PGR_REC_VCPU_CONTEXT,  PGR_REC_VCPU_EXTENDED,
	PGR_REC_VCPU_XSAVE,    PGR_REC_VCPU_MSRS,
	PGR_REC_TSC_INFO,      PGR_REC_SIM_STATE,
	PGR_REC_DISK,	       PGR_REC_DISK_ATTACH,
	PGR_REC_DISK_DATA,     PGR_REC_HELLO_REPLY,
	PGR_REC_PRECHECK,      PGR_REC_ACK,
	PGR_REC_READY,	       PGR_REC_COMMIT,
	PGR_REC_RUNNING,       PGR_REC_ABORT,
	PGR_REC_QUERY,	       PGR_REC_STATUS,
	PGR_REC_RESUME,	       PGR_REC_RESUME_REPLY,
	PGR_REC_CHECK,	       PGR_REC_CHECK_REPLY,
	PGR_REC_KEEPALIVE,     PGR_REC_CONNECTED,
	PGR_REC_INDEX,	       PGR_REC_NOTE,
	PGR_REC_END,
};

const uint32_t *sample_types(size_t *nr)
{
	*nr = sizeof(types) / sizeof(types[0]);
	return types;
}

static size_t put(uint8_t *body, size_t at, const void *data, size_t length)
{
	memcpy(body + at, data, length);
	return at + length;
}

#define PUT(...) put(body, 0, &(__VA_ARGS__), sizeof(__VA_ARGS__))

static size_t sample_pages(uint32_t round, uint8_t *body)
{
	const uint64_t word[] = {
		PGR_PAGE_WORD(round, PGR_DATA, 0),
		PGR_PAGE_WORD(round + 1, PGR_ZERO, PGR_TYPE_L1),
		PGR_PAGE_WORD(round + 2, PGR_ABSENT, 0),
	};
	const struct pgr_group group = {PGR_CODEC_RAW, 1, PGR_PAGE_SIZE, 0};
	size_t n = PUT((struct pgr_pages){.nr_pages = 3, .nr_groups = 1, .round = round});

	n = put(body, n, word, sizeof(word));
	n = put(body, n, &group, sizeof(group));
	memset(body + n, 0x5a, PGR_PAGE_SIZE);
	return n + PGR_PAGE_SIZE;
}

static size_t sample_vcpu(uint32_t type, uint8_t *body)
{
	const struct pgr_msr msr = {.index = 0xc0000103, .value = 7};
	const uint64_t xsave[] = {7, 592, 3, 7};
	const uint32_t extended[] = {0, 64};
	size_t n = PUT((struct pgr_vcpu){.vcpu = 0});

	switch (type) {
	case PGR_REC_VCPU_CONTEXT:
		return n + 5168;
	case PGR_REC_VCPU_EXTENDED:
		put(body, n, extended, sizeof(extended));
		return n + 64;
	case PGR_REC_VCPU_XSAVE:
		return put(body, n, xsave, sizeof(xsave)) + 576;
	default:
		return put(body, n, &msr, sizeof(msr));
	}
}

static size_t sample_text(size_t at, const char *text, uint8_t *body)
{
	return put(body, at, text, strlen(text));
}

static size_t sample_opening(uint32_t type, uint8_t *body)
{
	const struct pgr_cpu_leaf leaf = {.leaf = 1, .subleaf = UINT32_MAX};
	const struct pgr_msr msr = {.index = 0x10a, .value = 1};
	size_t n;

	switch (type) {
	case PGR_REC_HELLO:
		return PUT((struct pgr_hello){.guest_kind = PGR_GUEST_PV64,
					      .features = 0x1f,
					      .nr_pfns = 1024,
					      .populated = 1000,
					      .vcpus = 2,
					      .live = 1});
	case PGR_REC_IDENTITY:
		return sample_text(sizeof(struct pgr_identity), "g\xc3\xa4st", body);
	case PGR_REC_CPU_POLICY:
		n = PUT((struct pgr_cpu_policy){.nr_leaves = 1, .nr_msrs = 1});
		n = put(body, n, &leaf, sizeof(leaf));
		return put(body, n, &msr, sizeof(msr));
	case PGR_REC_CONFIG:
		n = PUT((struct pgr_config){.format = PGR_CONFIG_LIBXL_JSON});
		return sample_text(n, "{\n\t\"c_info\": {}\n}", body);
	case PGR_REC_PARENT:
		return PUT((struct pgr_parent){.digest = 5, .generation = 1});
	default:
		return 0;
	}
}

static size_t sample_memory(uint32_t type, uint32_t round, uint8_t *body)
{
	switch (type) {
	case PGR_REC_PAGES:
		return sample_pages(round, body);
	case PGR_REC_ROUND_END:
		return PUT((struct pgr_round_end){.round = round, .pages = 3, .bytes = 4168});
	case PGR_REC_STOP:
		return PUT((struct pgr_stop){.wallclock_ns = 1});
	case PGR_REC_DIGEST:
	case PGR_REC_READY:
		return PUT((struct pgr_digest){.digest = 9, .pages = 2});
	case PGR_REC_INDEX:
		return PUT((struct pgr_index_entry){
			.offset = 400, .first_pfn = 0, .last_pfn = 2, .nr_pages = 3});
	case PGR_REC_END:
		return PUT((struct pgr_end){.records = 3, .bytes = 400});
	default:
		return 0;
	}
}

static size_t sample_state(uint32_t type, uint8_t *body)
{
	const uint64_t frame[] = {7, 8};
	size_t n;

	switch (type) {
	case PGR_REC_PV_INFO:
		return PUT((struct pgr_pv_info){
			.word_size = 8, .levels = 4, .nr_pfns = 1024, .start_info_pfn = 3});
	case PGR_REC_PV_P2M_FRAMES:
		n = PUT((struct pgr_pv_p2m_frames){.first = 0, .count = 2});
		return put(body, n, frame, sizeof(frame));
	case PGR_REC_PV_SHARED_INFO:
		return PGR_PAGE_SIZE;
	case PGR_REC_TSC_INFO:
		return PUT((struct pgr_tsc_info){.mode = 1, .khz = 2000000});
	case PGR_REC_SIM_STATE:
		return sample_text(0, "registers", body);
	default:
		return sample_vcpu(type, body);
	}
}

static size_t sample_talk(uint32_t type, uint8_t *body)
{
	size_t n;

	switch (type) {
	case PGR_REC_HELLO_REPLY:
		return PUT((struct pgr_hello_reply){
			.version = PGR_VERSION, .features = 7, .channels = 4, .window = 8});
	case PGR_REC_PRECHECK:
		n = PUT((struct pgr_precheck){.refusals = 1});
		return sample_text(n, "not enough memory\n", body);
	case PGR_REC_ACK:
	case PGR_REC_RESUME:
	case PGR_REC_RESUME_REPLY:
		return PUT((struct pgr_resume){.next_sequence = 3});
	case PGR_REC_ABORT:
		n = PUT((struct pgr_abort){.reason = PGR_ABORT_CANCELLED});
		return sample_text(n, "cancelled by the user", body);
	case PGR_REC_STATUS:
		return PUT((struct pgr_status){.state = PGR_STATE_READY});
	case PGR_REC_CONNECTED:
		return PUT((struct pgr_connected){.devices_ns = 5, .devices = 2});
	case PGR_REC_CHECK_REPLY:
	case PGR_REC_NOTE:
		return sample_text(0, "{\"version\": \"0\"}", body);
	default:
		return 0;
	}
}

static size_t sample_disk(uint32_t type, uint8_t *body)
{
	size_t n;

	switch (type) {
	case PGR_REC_DISK:
		n = PUT((struct pgr_disk){
			.size = 4096, .used = 512, .format = PGR_DISK_RAW, .vdev_length = 4});
		return sample_text(n, "xvda/srv/disk", body);
	case PGR_REC_DISK_ATTACH:
		return PUT((struct pgr_disk_attach){.disk = 1});
	default:
		return sample_text(0, "NBDMAGIC", body);
	}
}

size_t sample_body(uint32_t type, uint32_t round, uint8_t *body)
{
	uint32_t plain = type & ~PGR_OPTIONAL;

	memset(body, 0, SAMPLE_MAX);
	if (plain < PGR_REC_PAGES)
		return sample_opening(type, body);
	if (plain < PGR_REC_PV_INFO || type == PGR_REC_INDEX || type == PGR_REC_END ||
	    type == PGR_REC_READY)
		return sample_memory(type, round, body);
	if (plain < PGR_REC_DISK)
		return sample_state(type, body);
	if (plain < PGR_REC_HELLO_REPLY)
		return sample_disk(type, body);
	return sample_talk(type, body);
}

/* Adapt a sample to its place in the stream. */
static void place(const struct sample_record *r, const struct stream_writer *w, bool sim,
		  uint8_t *body)
{
	switch (r->type) {
	case PGR_REC_HELLO:
		if (sim)
			((struct pgr_hello *)(void *)body)->guest_kind = PGR_GUEST_SIM;
		break;
	case PGR_REC_PV_P2M_FRAMES:
		((struct pgr_pv_p2m_frames *)(void *)body)->first = r->vcpu;
		break;
	case PGR_REC_VCPU_EXTENDED:
		memcpy(body + sizeof(struct pgr_vcpu), &r->vcpu, sizeof(r->vcpu));
		/* fall through */
	case PGR_REC_VCPU_CONTEXT:
	case PGR_REC_VCPU_XSAVE:
	case PGR_REC_VCPU_MSRS:
		((struct pgr_vcpu *)(void *)body)->vcpu = r->vcpu;
		break;
	case PGR_REC_PRECHECK:
		memset(body, 0, sizeof(struct pgr_precheck));
		break;
	case PGR_REC_END:
		*(struct pgr_end *)(void *)body =
			(struct pgr_end){.records = w->records, .bytes = w->bytes};
		break;
	default:
		break;
	}
}

int sample_write(struct memory_stream *m, enum pgr_kind kind, unsigned channel, bool sim,
		 const struct sample_record *r, size_t nr, struct pgr_error *err)
{
	static const uint8_t session[PGR_SESSION_SIZE] = {1, 2, 3};
	_Alignas(8) uint8_t body[SAMPLE_MAX];
	bool file = kind == PGR_KIND_IMAGE || kind == PGR_KIND_CHECKPOINT;
	struct stream_writer w;
	int rc;

	stream_writer_init(&w, memory_write, m);
	rc = stream_write_header(&w, kind, session, channel, file ? 1 : 4, err);
	for (size_t i = 0; i < nr && !rc; i++) {
		size_t length = sample_body(r[i].type, r[i].round, body);

		place(&r[i], &w, sim, body);
		if (r[i].type == PGR_REC_PRECHECK)
			length = sizeof(struct pgr_precheck);
		rc = stream_write_body(&w, r[i].type, body, length, err);
	}
	return rc;
}
