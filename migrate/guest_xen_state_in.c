// SPDX-License-Identifier: MIT
/*
 * State records of a stream, taken in: sizes, numbers and repetitions are checked here; that frame
 * numbers hold memory of the right kind when the guest is put together, for only then the memory is
 * known.
 */
#include "migrate/guest_xen_sink.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define ENTRIES (XEN_PAGE_SIZE / (unsigned)sizeof(uint64_t))
/* The largest XSAVE state of any processor so far is below 12 KiB. */
#define XSAVE_MAX 65536u
#define MSRS_MAX  256u

void xen_state_free(struct xen_state_in *in)
{
	unsigned i;

	for (i = 0; i < PGR_VCPUS_MAX; i++) {
		if (!in->vcpu[i])
			continue;
		free(in->vcpu[i]->xsave);
		free(in->vcpu[i]->msrs);
		free(in->vcpu[i]);
		in->vcpu[i] = NULL;
	}
	free(in->table_pfns);
	in->table_pfns = NULL;
	in->has_info = in->has_tsc = in->has_shared_info = false;
	in->nr_table = in->table_filled = 0;
}

static int bad_length(const char *what, size_t length, struct pgr_error *err)
{
	return pgr_fail(err, -EPROTO, "a record %s of %zu bytes has the wrong size", what, length);
}

static int twice(const char *what, struct pgr_error *err)
{
	return pgr_fail(err, -EPROTO, "the record %s came twice", what);
}

static int take_info(struct xen_sink *s, const void *body, size_t length, struct pgr_error *err)
{
	struct xen_state_in *in = &s->in;
	struct pgr_pv_info info;

	if (length != sizeof(info))
		return bad_length("PV_INFO", length, err);
	if (in->has_info)
		return twice("PV_INFO", err);
	memcpy(&info, body, sizeof(info));
	if (info.word_size != 8 || info.levels != 4 || info.nr_pfns != s->nr_pfns ||
	    info.start_info_pfn >= s->nr_pfns)
		return pgr_fail(
			err, -EPROTO,
			"PV_INFO describes another guest: %u-byte words, %u levels, %" PRIu64
			" pages, start_info in page %" PRIu64,
			info.word_size, info.levels, info.nr_pfns, info.start_info_pfn);
	in->nr_table = (s->nr_pfns + ENTRIES - 1) / ENTRIES;
	in->table_pfns = calloc(in->nr_table, sizeof(*in->table_pfns));
	if (!in->table_pfns)
		return pgr_fail(err, -ENOMEM, "no memory for the list of P2M pages");
	in->start_info_pfn = info.start_info_pfn;
	in->has_info = true;
	return 0;
}

static int take_p2m(struct xen_sink *s, const uint8_t *body, size_t length, struct pgr_error *err)
{
	struct xen_state_in *in = &s->in;
	struct pgr_pv_p2m_frames head;
	uint64_t i, *pfn;

	if (length < sizeof(head))
		return bad_length("PV_P2M_FRAMES", length, err);
	memcpy(&head, body, sizeof(head));
	if (!in->has_info || head.first != in->table_filled || !head.count ||
	    head.count > in->nr_table - in->table_filled)
		return pgr_fail(err, -EPROTO,
				"PV_P2M_FRAMES has pages %u to %" PRIu64 " where %" PRIu64
				" of %" PRIu64 " is next",
				head.first, (uint64_t)head.first + head.count, in->table_filled,
				in->nr_table);
	if (length != sizeof(head) + (size_t)head.count * sizeof(*pfn))
		return bad_length("PV_P2M_FRAMES", length, err);
	pfn = in->table_pfns + in->table_filled;
	memcpy(pfn, body + sizeof(head), (size_t)head.count * sizeof(*pfn));
	for (i = 0; i < head.count; i++)
		if (pfn[i] >= s->nr_pfns)
			return pgr_fail(err, -EPROTO,
					"PV_P2M_FRAMES names page %" PRIu64 " of %" PRIu64, pfn[i],
					s->nr_pfns);
	in->table_filled += head.count;
	return 0;
}

static int take_tsc(struct xen_sink *s, const void *body, size_t length, struct pgr_error *err)
{
	if (length != sizeof(s->in.tsc))
		return bad_length("TSC_INFO", length, err);
	if (s->in.has_tsc)
		return twice("TSC_INFO", err);
	memcpy(&s->in.tsc, body, length);
	s->in.has_tsc = true;
	return 0;
}

static int take_shared_info(struct xen_sink *s, const void *body, size_t length,
			    struct pgr_error *err)
{
	if (length != sizeof(s->in.shared_info))
		return bad_length("PV_SHARED_INFO", length, err);
	if (s->in.has_shared_info)
		return twice("PV_SHARED_INFO", err);
	memcpy(s->in.shared_info, body, length);
	s->in.has_shared_info = true;
	return 0;
}

/* ---- vCPUs: each record begins with the number ---- */

static int take_context(struct xen_sink *s, uint32_t id, const void *body, size_t length,
			struct pgr_error *err)
{
	struct xen_vcpu_in *v;

	if (length != sizeof(v->context))
		return bad_length("VCPU_CONTEXT", length, err);
	if (s->in.vcpu[id])
		return twice("VCPU_CONTEXT", err);
	v = calloc(1, sizeof(*v));
	if (!v)
		return pgr_fail(err, -ENOMEM, "no memory for a vCPU");
	memcpy(&v->context, body, length);
	s->in.vcpu[id] = v;
	return 0;
}

static int take_extended(struct xen_vcpu_in *v, uint32_t id, const void *body, size_t length,
			 struct pgr_error *err)
{
	if (length != sizeof(v->extended))
		return bad_length("VCPU_EXTENDED", length, err);
	if (v->has_extended)
		return twice("VCPU_EXTENDED", err);
	memcpy(&v->extended, body, length);
	if (v->extended.vcpu != id || v->extended.size > sizeof(v->extended))
		return pgr_fail(err, -EPROTO, "VCPU_EXTENDED of vCPU %u is for vCPU %u, %u bytes",
				id, v->extended.vcpu, v->extended.size);
	v->has_extended = true;
	return 0;
}

static int take_xsave(struct xen_vcpu_in *v, const uint8_t *body, size_t length,
		      struct pgr_error *err)
{
	uint64_t head[2]; /* mask of features, size */

	if (length < sizeof(head) || length > sizeof(head) + XSAVE_MAX)
		return bad_length("VCPU_XSAVE", length, err);
	if (v->xsave)
		return twice("VCPU_XSAVE", err);
	memcpy(head, body, sizeof(head));
	if (head[1] != length - sizeof(head) || head[1] < 16)
		return bad_length("VCPU_XSAVE", length, err);
	v->xsave = malloc(head[1]);
	if (!v->xsave)
		return pgr_fail(err, -ENOMEM, "no memory for a vCPU's XSAVE state");
	memcpy(v->xsave, body + sizeof(head), head[1]);
	v->xsave_bytes = head[1];
	return 0;
}

static int take_msrs(struct xen_vcpu_in *v, const uint8_t *body, size_t length,
		     struct pgr_error *err)
{
	if (!length || length % sizeof(*v->msrs) || length > MSRS_MAX * sizeof(*v->msrs))
		return bad_length("VCPU_MSRS", length, err);
	if (v->msrs)
		return twice("VCPU_MSRS", err);
	v->msrs = malloc(length);
	if (!v->msrs)
		return pgr_fail(err, -ENOMEM, "no memory for a vCPU's MSRs");
	memcpy(v->msrs, body, length);
	v->nr_msrs = (uint32_t)(length / sizeof(*v->msrs));
	return 0;
}

static int take_vcpu(struct xen_sink *s, uint32_t type, const uint8_t *body, size_t length,
		     struct pgr_error *err)
{
	struct pgr_vcpu head;

	if (length < sizeof(head))
		return bad_length("of a vCPU", length, err);
	memcpy(&head, body, sizeof(head));
	if (head.vcpu >= s->vcpus || head.vcpu >= PGR_VCPUS_MAX)
		return pgr_fail(err, -EPROTO, "there is no vCPU %u in a guest of %u", head.vcpu,
				s->vcpus);
	body += sizeof(head);
	length -= sizeof(head);
	if (type == PGR_REC_VCPU_CONTEXT)
		return take_context(s, head.vcpu, body, length, err);
	if (!s->in.vcpu[head.vcpu])
		return pgr_fail(err, -EPROTO, "state of vCPU %u came before its context",
				head.vcpu);
	if (type == PGR_REC_VCPU_EXTENDED)
		return take_extended(s->in.vcpu[head.vcpu], head.vcpu, body, length, err);
	if (type == PGR_REC_VCPU_XSAVE)
		return take_xsave(s->in.vcpu[head.vcpu], body, length, err);
	return take_msrs(s->in.vcpu[head.vcpu], body, length, err);
}

int xen_sink_state(struct xen_sink *s, uint32_t type, const void *body, size_t length,
		   struct pgr_error *err)
{
	switch (type) {
	case PGR_REC_PV_INFO:
		return take_info(s, body, length, err);
	case PGR_REC_PV_P2M_FRAMES:
		return take_p2m(s, body, length, err);
	case PGR_REC_TSC_INFO:
		return take_tsc(s, body, length, err);
	case PGR_REC_PV_SHARED_INFO:
		return take_shared_info(s, body, length, err);
	case PGR_REC_VCPU_CONTEXT:
	case PGR_REC_VCPU_EXTENDED:
	case PGR_REC_VCPU_XSAVE:
	case PGR_REC_VCPU_MSRS:
		return take_vcpu(s, type, body, length, err);
	}
	return pgr_fail(err, -EPROTO, "a record of type %#x is not state of a Xen guest", type);
}
