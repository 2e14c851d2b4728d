// SPDX-License-Identifier: MIT
/*
 * SIM_STATE: what a simulated guest was doing. One record: a header, the vCPUs, then the working sets of all vCPUs in order, each page
 * with its generation, pfns ascending within a vCPU. Little-endian as the rest of the stream (this file is x86-64's).
 */
#include "migrate/guest_sim_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define STATE_MAGIC   0x314d4953u /* "SIM1" */
#define WRITE_MIN     8u
#define WRITE_MAX     4080u
#define STATE_CONTENT ((1u << GUEST_SIM_TEXT) | (1u << GUEST_SIM_RANDOM))

struct state_header {
	uint32_t magic;
	uint32_t vcpus;
	uint64_t nr_pfns;
	uint64_t seed;
	uint64_t rate;
	uint32_t pattern;     /* enum guest_sim_pattern */
	uint32_t content;     /* enum guest_sim_content: TEXT or RANDOM */
	uint32_t write_bytes; /* multiple of 8, 8 .. 4080 */
	uint32_t reserved;
	uint64_t fixed_digest;
	uint64_t fixed_pages;
};
_Static_assert(sizeof(struct state_header) == 64, "wire format");

struct state_vcpu {
	uint64_t rng;
	uint64_t position;
	uint64_t writes;
	uint32_t nr_pages;
	uint32_t reserved;
};
_Static_assert(sizeof(struct state_vcpu) == 32, "wire format");
_Static_assert(sizeof(struct state_header) + SIM_VCPUS_MAX * sizeof(struct state_vcpu) +
			       GUEST_SIM_WORKING_SET_MAX * sizeof(struct sim_page_state) <=
		       PGR_RECORD_MAX,
	       "one record holds it");

int sim_state_pack(struct sim_workload *w, const struct sim_fixed *fixed, uint8_t **body,
		   size_t *length, struct pgr_error *err)
{
	struct state_header h = {
		.magic = STATE_MAGIC,
		.vcpus = w->vcpus,
		.nr_pfns = w->memory->nr_pfns,
		.seed = w->seed,
		.rate = w->rate,
		.pattern = w->pattern,
		.content = w->content,
		.write_bytes = w->write_bytes,
		.fixed_digest = fixed->digest,
		.fixed_pages = fixed->pages,
	};
	size_t total = sizeof(h) + w->vcpus * sizeof(struct state_vcpu);
	uint8_t *at;

	for (unsigned i = 0; i < w->vcpus; i++)
		total += w->vcpu[i].nr_pages * sizeof(struct sim_page_state);
	at = malloc(total);
	if (!at)
		return pgr_fail(err, -ENOMEM, "guest_sim: no memory for %zu bytes of state", total);
	*body = at;
	*length = total;
	memcpy(at, &h, sizeof(h));
	at += sizeof(h);
	for (unsigned i = 0; i < w->vcpus; i++) {
		struct sim_vcpu *v = &w->vcpu[i];
		struct state_vcpu s = {.rng = v->rng,
				       .position = v->position,
				       .writes = v->writes,
				       .nr_pages = v->nr_pages};

		memcpy(at, &s, sizeof(s));
		at += sizeof(s);
	}
	for (unsigned i = 0; i < w->vcpus; i++) {
		size_t bytes = w->vcpu[i].nr_pages * sizeof(struct sim_page_state);

		if (bytes)
			memcpy(at, w->vcpu[i].page, bytes);
		at += bytes;
	}
	return 0;
}

static int check_header(const struct state_header *h, const struct sim_workload *w,
			struct pgr_error *err)
{
	if (h->magic != STATE_MAGIC)
		return pgr_fail(err, -EPROTO, "SIM_STATE: magic is %08" PRIx32 ", not %08x",
				h->magic, STATE_MAGIC);
	if (!h->vcpus || h->vcpus > SIM_VCPUS_MAX)
		return pgr_fail(err, -EPROTO, "SIM_STATE: %" PRIu32 " vCPUs, 1 to %u are possible",
				h->vcpus, SIM_VCPUS_MAX);
	if (h->nr_pfns != w->memory->nr_pfns)
		return pgr_fail(err, -EPROTO,
				"SIM_STATE: of a guest with %" PRIu64
				" pages, this one has %" PRIu64,
				h->nr_pfns, w->memory->nr_pfns);
	if (h->pattern > GUEST_SIM_HOT || h->content >= 32 || !(STATE_CONTENT >> h->content & 1))
		return pgr_fail(err, -EPROTO,
				"SIM_STATE: pattern %" PRIu32 " or content %" PRIu32 " is unknown",
				h->pattern, h->content);
	if (h->write_bytes < WRITE_MIN || h->write_bytes > WRITE_MAX || h->write_bytes % 8 ||
	    h->reserved)
		return pgr_fail(err, -EPROTO,
				"SIM_STATE: writes of %" PRIu32
				" bytes (8 to 4080, a multiple of 8) or reserved field %" PRIu32
				" not zero",
				h->write_bytes, h->reserved);
	return 0;
}

/* The working set of one vCPU; seen: pages that an earlier one has. */
static int unpack_pages(struct sim_vcpu *v, unsigned index, const uint8_t *at, uint32_t nr,
			uint64_t *seen, struct pgr_error *err)
{
	uint64_t nr_pfns = v->w->memory->nr_pfns;

	if (!nr)
		return 0;
	v->page = calloc(nr, sizeof(*v->page));
	if (!v->page)
		return pgr_fail(err, -ENOMEM, "SIM_STATE: no memory for %" PRIu32 " generations",
				nr);
	memcpy(v->page, at, nr * sizeof(*v->page));
	for (uint32_t i = 0; i < nr; i++) {
		uint32_t pfn = v->page[i].pfn;

		if (pfn >= nr_pfns || (i && pfn <= v->page[i - 1].pfn) ||
		    seen[pfn / 64] >> (pfn % 64) & 1)
			return pgr_fail(err, -EPROTO,
					"SIM_STATE: vCPU %u, page %" PRIu32 ": pfn %" PRIu32
					" is out of range, out of order or another vCPU's",
					index, i, pfn);
		seen[pfn / 64] |= 1ull << (pfn % 64);
	}
	v->nr_pages = nr;
	return 0;
}

int sim_state_unpack(const void *body, size_t length, struct sim_workload *w,
		     struct sim_fixed *fixed, struct pgr_error *err)
{
	const uint8_t *bytes = body;
	struct state_header h;
	size_t at = sizeof(h), pages = 0;
	uint64_t *seen = NULL;
	int rc;

	if (length < sizeof(h))
		return pgr_fail(err, -EPROTO, "SIM_STATE: %zu bytes, its header has %zu", length,
				sizeof(h));
	memcpy(&h, bytes, sizeof(h));
	rc = check_header(&h, w, err);
	if (rc)
		return rc;
	if (length - at < h.vcpus * sizeof(struct state_vcpu))
		return pgr_fail(err, -EPROTO,
				"SIM_STATE: %zu bytes are too few for %" PRIu32 " vCPUs", length,
				h.vcpus);
	w->vcpus = h.vcpus;
	w->seed = h.seed;
	w->rate = h.rate;
	w->pattern = h.pattern;
	w->content = h.content;
	w->write_bytes = h.write_bytes;
	fixed->digest = h.fixed_digest;
	fixed->pages = h.fixed_pages;

	at += h.vcpus * sizeof(struct state_vcpu);
	seen = calloc(sim_words(h.nr_pfns), sizeof(*seen));
	if (!seen)
		return pgr_fail(err, -ENOMEM, "SIM_STATE: no memory to check it");
	for (unsigned i = 0; i < h.vcpus; i++) {
		struct state_vcpu s;

		memcpy(&s, bytes + sizeof(h) + i * sizeof(s), sizeof(s));
		w->vcpu[i].rng = s.rng;
		w->vcpu[i].position = s.position;
		w->vcpu[i].writes = s.writes;
		pages += s.nr_pages;
		if (s.reserved || s.nr_pages > (length - at) / sizeof(struct sim_page_state)) {
			rc = pgr_fail(
				err, -EPROTO,
				"SIM_STATE: vCPU %u: %" PRIu32
				" pages are more than its %zu bytes hold, or its reserved field is not zero",
				i, s.nr_pages, length);
			goto out;
		}
		rc = unpack_pages(&w->vcpu[i], i, bytes + at, s.nr_pages, seen, err);
		if (rc)
			goto out;
		at += s.nr_pages * sizeof(struct sim_page_state);
	}
	if (at != length || pages > GUEST_SIM_WORKING_SET_MAX)
		rc = pgr_fail(
			err, -EPROTO,
			"SIM_STATE: %zu bytes after the last page, or %zu pages, more than %u",
			length - at, pages, GUEST_SIM_WORKING_SET_MAX);
out:
	free(seen);
	return rc;
}
