// SPDX-License-Identifier: MIT
/* The memory of a simulated guest: one mapping, and for each pfn whether it holds memory and its type. */
#include "migrate/guest_sim_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "migrate/stream.h"

static atomic_uint_fast64_t allocated;

uint64_t guest_sim_allocated(void)
{
	return atomic_load(&allocated);
}

int sim_memory_create(struct sim_memory *m, uint64_t nr_pfns, struct pgr_error *err)
{
	size_t bytes = nr_pfns * PGR_PAGE_SIZE;
	void *base;

	*m = (struct sim_memory){.nr_pfns = nr_pfns};
	base = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (base == MAP_FAILED)
		return pgr_fail_errno(err, -errno,
				      "guest_sim: cannot map %" PRIu64 " MiB for the guest",
				      (uint64_t)bytes >> 20);
	m->base = base;
	atomic_fetch_add(&allocated, bytes);
	/* Writes are logged by the page: a huge page would be split at the first of them, at the workload's cost. */
	(void)madvise(base, bytes, MADV_NOHUGEPAGE);
	m->present = calloc(sim_words(nr_pfns), sizeof(*m->present));
	m->changed = calloc(sim_words(nr_pfns), sizeof(*m->changed));
	m->type = calloc(nr_pfns, 1);
	if (!m->present || !m->changed || !m->type) {
		sim_memory_free(m);
		return pgr_fail(err, -ENOMEM,
				"guest_sim: no memory for the tables of %" PRIu64 " pages",
				nr_pfns);
	}
	return 0;
}

void sim_memory_free(struct sim_memory *m)
{
	if (m->base) {
		munmap(m->base, m->nr_pfns * PGR_PAGE_SIZE);
		atomic_fetch_sub(&allocated, m->nr_pfns * PGR_PAGE_SIZE);
	}
	free(m->present);
	free(m->changed);
	free(m->type);
	*m = (struct sim_memory){0};
}

int sim_memory_populate(struct sim_memory *m, struct pgr_error *err)
{
	for (uint64_t pfn = 0; pfn < m->nr_pfns;) {
		uint64_t end = pfn;

		while (end < m->nr_pfns && sim_bit(m->present, end))
			end++;
		if (end > pfn && madvise(sim_memory_page(m, pfn), (end - pfn) * PGR_PAGE_SIZE,
					 MADV_POPULATE_WRITE))
			return pgr_fail_errno(err, -errno,
					      "guest_sim: cannot populate pages %" PRIu64
					      " to %" PRIu64,
					      pfn, end - 1);
		pfn = end + 1;
	}
	return 0;
}

int sim_memory_check(const struct sim_memory *m, const uint64_t *pfns, unsigned nr,
		     struct pgr_error *err)
{
	if (nr > PGR_BATCH_MAX)
		return pgr_fail(err, -EINVAL,
				"guest_sim: %u pages asked for at once, at most %u are possible",
				nr, PGR_BATCH_MAX);
	for (unsigned i = 0; i < nr; i++)
		if (pfns[i] >= m->nr_pfns)
			return pgr_fail(err, -EINVAL,
					"guest_sim: pfn %" PRIu64
					" asked for, the guest has %" PRIu64,
					pfns[i], m->nr_pfns);
	return 0;
}

void sim_memory_batch(const struct sim_memory *m, const uint64_t *pfns, unsigned nr,
		      struct guest_batch *b)
{
	bool contiguous = nr > 0;

	b->nr = nr;
	b->priv = NULL;
	for (unsigned i = 0; i < nr; i++) {
		bool present = sim_bit(m->present, pfns[i]);

		b->page[i] = present ? sim_memory_page(m, pfns[i]) : NULL;
		b->type[i] = present ? m->type[pfns[i]] : PGR_TYPE_ORDINARY;
		contiguous = contiguous && present && pfns[i] == pfns[0] + i;
	}
	b->base = contiguous ? b->page[0] : NULL;
}

int sim_memory_drop(struct sim_memory *m, uint64_t pfn, struct pgr_error *err)
{
	sim_bit_clear(m->present, pfn);
	m->type[pfn] = PGR_TYPE_ORDINARY;
	if (madvise(sim_memory_page(m, pfn), PGR_PAGE_SIZE, MADV_DONTNEED))
		return pgr_fail_errno(err, -errno,
				      "guest_sim: cannot give the memory of pfn %" PRIu64 " back",
				      pfn);
	return 0;
}

uint64_t sim_page_digest(const struct sim_memory *m, uint64_t pfn)
{
	return stream_page_digest(pfn, stream_crc(0, sim_memory_page(m, pfn), PGR_PAGE_SIZE));
}

void sim_memory_digest(const struct sim_memory *m, const uint64_t *except, uint64_t *digest,
		       uint64_t *pages)
{
	*digest = 0;
	*pages = 0;
	for (uint64_t pfn = 0; pfn < m->nr_pfns; pfn++) {
		if (!sim_bit(m->present, pfn) || (except && except[pfn / 64] >> (pfn % 64) & 1))
			continue;
		*digest += sim_page_digest(m, pfn);
		(*pages)++;
	}
}
