// SPDX-License-Identifier: MIT
/*
 * In dom0: the log of what a guest writes, switched on, read and off while it runs.
 *
 *	vmm_log check DOMID TIMES	each time: on, copy all of its memory, copy what the log names, several times, hold the guest, copy what
 *					the log names, and all of its memory has to be as it was copied; off. The guest must not change its number of pages.
 *	vmm_log switch DOMID TIMES	on, read, off; nothing is held by it afterwards
 *	vmm_log keep DOMID SECONDS	on, read as often as a move of a small guest does, off: for how fast the guest is meanwhile
 *	vmm_log storm DOMID SECONDS	all operations in any order, with too little memory and with wrong arguments, until the guest is gone or the time is over
 */
#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "migrate/xen_calls.h"
#include "migrate/xen_frames.h"
#include "protocol-spec/dirty_log.h"

#define AT_ONCE	 256u /* frames in a call */
#define READINGS 4u
#define MOMENT                      \
	(struct timespec)           \
	{                           \
		.tv_nsec = 50000000 \
	}
#define PATIENCE   600u /* seconds */
#define KEEP_ROUND 3u
#define MIN(a, b)  ((a) < (b) ? (a) : (b))

static struct xen_calls calls;
static uint32_t domid;
static uint64_t nr_pfns;
static uint64_t *bits; /* shared */
static struct xen_domctl_shadow_op_stats all;
static double longest_on, longest_off, longest_read;

static _Noreturn void fail(const char *what, int rc)
{
	printf("FAIL %s: %s\n", what, strerror(rc < 0 ? -rc : rc));
	exit(1);
}

static void must(const char *what, int rc)
{
	if (rc)
		fail(what, rc);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

static int shadow_op(struct xen_domctl_shadow_op *what, double *longest)
{
	struct xen_domctl op = {
		.cmd = XEN_DOMCTL_shadow_op, .domain = (domid_t)domid, .u.shadow_op = *what};
	double before = now();
	int rc = xen_domctl(&calls, &op);

	if (longest && now() - before > *longest)
		*longest = now() - before;
	*what = op.u.shadow_op;
	return rc;
}

static int plain(uint32_t what, double *longest)
{
	struct xen_domctl_shadow_op op = {.op = what};

	return shadow_op(&op, longest);
}

static int read_log(uint32_t what, struct xen_domctl_shadow_op_stats *stats)
{
	struct xen_domctl_shadow_op op = {.op = what, .pages = nr_pfns};
	int rc;

	set_xen_guest_handle(op.dirty_bitmap, (uint8_t *)bits);
	rc = shadow_op(&op, &longest_read);
	*stats = op.stats;
	return rc ? rc : op.pages == nr_pfns ? 0 : -ERANGE;
}

static bool is_set(uint64_t pfn)
{
	return bits[pfn / 64] >> pfn % 64 & 1;
}

static int read_parts(struct xen_domctl_shadow_op_stats *stats)
{
	struct xen_domctl_shadow_op op = {.mb = 0};
	int rc;

	memset(bits, 0, (nr_pfns + 7) / 8);
	do {
		uint64_t at = op.mb * (uint64_t)PGR_LOG_PART_PFNS;

		if (at >= nr_pfns)
			return -ERANGE;
		op.op = XEN_DOMCTL_SHADOW_OP_CLEAN;
		op.mode = PGR_LOG_PART;
		op.pages = PGR_LOG_PART_PFNS;
		set_xen_guest_handle(op.dirty_bitmap, (uint8_t *)bits + at / 8);
		rc = shadow_op(&op, &longest_read);
		if (at == 0)
			*stats = op.stats;
	} while (!rc && op.mb != PGR_LOG_PART_NONE);
	return rc;
}

/* The log, in parts or not, and what it says of itself. */
static void clean(void)
{
	struct xen_domctl_shadow_op_stats stats;
	uint64_t n = 0;

	must("the log cannot be read",
	     rand() % 2 ? read_log(XEN_DOMCTL_SHADOW_OP_CLEAN, &stats) : read_parts(&stats));
	for (uint64_t i = 0; i < (nr_pfns + 63) / 64; i++)
		n += (uint64_t)__builtin_popcountll(bits[i]);
	if (n != stats.dirty_count) {
		printf("FAIL %" PRIu64 " bits, the statistics say %u\n", n, stats.dirty_count);
		exit(1);
	}
	all.dirty_count += stats.dirty_count;
	all.fault_count += stats.fault_count;
}

static uint32_t allocation(void)
{
	struct xen_domctl_shadow_op op = {.op = XEN_DOMCTL_SHADOW_OP_GET_ALLOCATION};

	must("its memory is not told", shadow_op(&op, NULL));
	return op.mb;
}

static void on(void)
{
	must("on", plain(XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY, &longest_on));
	if (plain(XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY, NULL) != -EINVAL || !allocation())
		fail("it is on", EINVAL);
}

static void off(void)
{
	must("off", plain(XEN_DOMCTL_SHADOW_OP_OFF, &longest_off));
	if (allocation())
		fail("it is off and has memory", EINVAL);
}

static uint64_t free_pages(void)
{
	struct xen_sysctl op = {.cmd = XEN_SYSCTL_physinfo};

	must("physinfo", xen_sysctl(&calls, &op));
	return op.u.physinfo.free_pages;
}

/* ---- the guest's memory ---- */

static struct page {
	uint64_t pfn, frame;
} * page;
static uint64_t nr_pages;
static uint64_t *index_of; /* by pfn, 1 more; 0: none */
static char *seen, *copy;

static uint64_t pages_most(void)
{
	struct xen_domctl_getdomaininfo info;

	must("there is no such domain", xen_domain_info(&calls, domid, &info));
	return info.tot_pages + info.shr_pages + AT_ONCE;
}

/* Its frames are those that the hypervisor says something of; what they are to it stands in the table of all frames. */
static void find_pages(void)
{
	uint64_t most = pages_most(), *info = xen_calls_alloc(&calls, AT_ONCE * sizeof(*info));
	struct xen_frames frames = {0};
	struct pgr_error err;

	page = calloc(most, sizeof(*page));
	if (!page || !info || xen_frames_open(&frames, &calls, domid, &err))
		fail("no memory", ENOMEM);
	for (uint64_t at = 0; at < frames.m2p_entries; at += AT_ONCE) {
		for (unsigned i = 0; i < AT_ONCE; i++)
			info[i] = at + i;
		must("pages", xen_page_info(&calls, domid, info, AT_ONCE));
		for (unsigned i = 0; i < AT_ONCE && nr_pages < most; i++) {
			if ((info[i] & XEN_DOMCTL_PFINFO_LTAB_MASK) == XEN_DOMCTL_PFINFO_XTAB ||
			    frames.m2p[at + i] >= most * 4)
				continue;
			page[nr_pages++] = (struct page){frames.m2p[at + i], at + i};
			if (frames.m2p[at + i] >= nr_pfns)
				nr_pfns = frames.m2p[at + i] + 1;
		}
	}
	xen_frames_close(&frames);
	xen_calls_free(&calls, info);
}

static void map_pages(void)
{
	xen_pfn_t *frames = calloc(nr_pages, sizeof(*frames));
	int *errors = calloc(nr_pages, sizeof(*errors));

	index_of = calloc(nr_pfns, sizeof(*index_of));
	copy = malloc(nr_pages * XEN_PAGE_SIZE);
	if (!frames || !errors || !index_of || !copy)
		fail("no memory", ENOMEM);
	for (uint64_t i = 0; i < nr_pages; i++) {
		frames[i] = page[i].frame;
		index_of[page[i].pfn] = i + 1;
	}
	seen = xen_map(&calls, domid, PROT_READ, (unsigned)nr_pages, frames, errors);
	if (!seen)
		fail("its memory cannot be mapped", errno);
	for (uint64_t i = 0; i < nr_pages; i++)
		must("a page cannot be mapped", errors[i]);
	free(frames);
	free(errors);
}

static void copy_named(void)
{
	for (uint64_t pfn = 0; pfn < nr_pfns; pfn++) {
		uint64_t at = is_set(pfn) ? index_of[pfn] : 0;

		if (at)
			memcpy(copy + (at - 1) * XEN_PAGE_SIZE, seen + (at - 1) * XEN_PAGE_SIZE,
			       XEN_PAGE_SIZE);
	}
}

/* But for what has been written since, by others, as the log says. */
static void compare(void)
{
	struct xen_domctl_shadow_op_stats stats;
	uint64_t wrong = 0;

	for (uint64_t i = 0; i < nr_pages; i++) {
		const uint64_t *a = (uint64_t *)(copy + i * XEN_PAGE_SIZE);
		const uint64_t *b = (uint64_t *)(seen + i * XEN_PAGE_SIZE);
		unsigned k = 0;

		if (!memcmp(a, b, XEN_PAGE_SIZE))
			continue;
		must("a peek", read_log(XEN_DOMCTL_SHADOW_OP_PEEK, &stats));
		if (is_set(page[i].pfn))
			continue;
		while (a[k] == b[k])
			k++;
		if (wrong++ < 8)
			printf("FAIL page %" PRIx64 " in frame %" PRIx64 ": word %u is %" PRIx64
			       ", was %" PRIx64 "\n",
			       page[i].pfn, page[i].frame, k, b[k], a[k]);
	}
	if (wrong) {
		printf("FAIL %" PRIu64 " pages were written and not in the log\n", wrong);
		exit(1);
	}
}

static void hold(bool held)
{
	struct xen_domctl op = {.cmd = held ? XEN_DOMCTL_pausedomain : XEN_DOMCTL_unpausedomain,
				.domain = (domid_t)domid};

	must("the guest is not held or let go", xen_domctl(&calls, &op));
}

static void check(unsigned long times)
{
	map_pages();
	for (unsigned long t = 0; t < times; t++) {
		on();
		memcpy(copy, seen, nr_pages * XEN_PAGE_SIZE);
		for (unsigned r = 0; r < READINGS; r++) {
			nanosleep(&MOMENT, NULL);
			clean();
			copy_named();
		}
		hold(true);
		clean();
		copy_named();
		compare();
		if (t % 2)
			off();
		hold(false);
		if (t % 2 == 0)
			off();
	}
	xen_unmap(&calls, seen, (unsigned)nr_pages);
}

static void switch_often(unsigned long times)
{
	uint64_t before = free_pages();
	double end;

	for (unsigned long t = 0; t < times; t++) {
		on();
		for (unsigned long r = t % 3; r--;)
			clean();
		off();
	}
	for (end = now() + PATIENCE * 1e3; free_pages() != before && now() < end;)
		nanosleep(&MOMENT, NULL);
	if (free_pages() != before)
		fail("free pages", ENOMEM);
}

/* ---- anything ---- */

static int anything(void)
{
	struct xen_domctl_shadow_op op = {.pages = (uint64_t)rand() % (2 * nr_pfns)};

	set_xen_guest_handle(op.dirty_bitmap, (uint8_t *)bits);
	switch (rand() % 13) {
	case 0:
		op.op = XEN_DOMCTL_SHADOW_OP_OFF;
		break;
	case 1:
		op.op = XEN_DOMCTL_SHADOW_OP_ENABLE_TEST;
		break;
	case 2:
	case 3:
		op.op = XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY;
		break;
	case 4:
		op.op = XEN_DOMCTL_SHADOW_OP_SET_ALLOCATION;
		op.mb = rand() % 3 ? 1 : (uint32_t)rand() % 8;
		break;
	case 5:
		op.op = XEN_DOMCTL_SHADOW_OP_PEEK;
		break;
	case 6: /* memory that is not there */
		op.op = XEN_DOMCTL_SHADOW_OP_CLEAN;
		set_xen_guest_handle_raw(op.dirty_bitmap, (uint8_t *)4096);
		break;
	case 7: /* parts, one after the other and not */
		op.op = XEN_DOMCTL_SHADOW_OP_CLEAN;
		op.mode = PGR_LOG_PART;
		op.mb = (uint32_t)rand() % 4;
		op.pages = rand() % 8 ? PGR_LOG_PART_PFNS : op.pages;
		break;
	case 8:
		op.op = (uint32_t)rand() % 40;
		op.mode = (uint32_t)rand();
		break;
	default:
		op.op = XEN_DOMCTL_SHADOW_OP_CLEAN;
	}
	return shadow_op(&op, NULL);
}

static void storm(unsigned long seconds)
{
	double end = now() + (double)seconds * 1e3;
	unsigned long n = 0, done = 0;
	int rc = 0;

	printf("begun\n");
	fflush(stdout);
	while (now() < end && rc != -ESRCH && rc != -ENOENT) {
		rc = anything();
		n++;
		done += !rc;
		if (rc && rc != -EINVAL && rc != -EFAULT && rc != -ENOMEM && rc != -ESRCH)
			fail("an operation", rc);
		if (n % 8 == 0)
			nanosleep(&(struct timespec){.tv_nsec = rand() % 5000000}, NULL);
	}
	if (rc != -ESRCH)
		off();
	printf("%lu operations, %lu had effect\n", n, done);
	if (!done)
		fail("the storm", EINVAL);
}

static void keep(unsigned long seconds)
{
	on();
	for (unsigned long left = seconds; left; left -= MIN(left, KEEP_ROUND)) {
		sleep((unsigned)MIN(left, KEEP_ROUND));
		clean();
	}
	off();
}

int main(int argc, char **argv)
{
	unsigned long times = argc == 4 ? strtoul(argv[3], NULL, 0) : 0;
	struct pgr_error err;

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (!times)
		return 2;
	domid = (uint32_t)strtoul(argv[2], NULL, 0);
	must("interfaces", xen_calls_open(&calls, &err));
	find_pages();
	bits = xen_calls_alloc(&calls, (2 * nr_pfns + PGR_LOG_PART_PFNS) / 64 * 8);
	if (!nr_pages || !bits)
		fail("no memory", ENOMEM);
	if (!strcmp(argv[1], "check"))
		check(times);
	else if (!strcmp(argv[1], "switch"))
		switch_often(times);
	else if (!strcmp(argv[1], "keep"))
		keep(times);
	else if (!strcmp(argv[1], "storm"))
		storm(times);
	else
		return 2;
	printf("%s %lu: %" PRIu64
	       " pages; dirty %u, faults %u; longest: on %.1f ms, off %.1f ms, reading %.1f ms\n",
	       argv[1], times, nr_pages, all.dirty_count, all.fault_count, longest_on, longest_off,
	       longest_read);
	return 0;
}
