// SPDX-License-Identifier: MIT
/*
 * In dom0 of a host that was booted with fault-injection: domains are made, filled, used and ended by the toolstack's own libraries while allocation n
 * of the hypervisor's fails, for n = 1, 2, ... until nothing fails any more; then the same while all allocations from n on fail, the end of the
 * domain included. A step that fails does not keep the next ones from being tried. After each n as many pages are free as before, and at last all
 * references are recounted.
 *
 *	vmm_faults each [FIRST [LAST]]
 *	vmm_faults lives N		makes and ends N without any failure, and compares
 *	vmm_faults after COMMAND	runs it (it may let allocations fail by xl debug-keys), ends that, waits for all domains but dom0 to be gone,
 *					compares in the same way, and says its status
 */
/* The headers of the libraries want the compiler's own language. */
#undef __STRICT_ANSI__

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <xenctrl.h>
#include <xenevtchn.h>
#include <xenforeignmemory.h>
#include <xengnttab.h>

#include <xen/grant_table.h>
#include <xen/memory.h>

#define PAGES	     16u
#define GRANTS	     32u
#define FIRST_GRANT  16u
#define GRANT_FRAMES 4u
#define PORTS	     300u /* more than two buckets */
#define VCPUS	     36u  /* some beyond those that the shared page has room for */
#define TEXT	     32768u
#define PATIENCE_MS  600000u
#define NR_MOST	     2000u

enum step {
	CREATE,
	VCPUS_MADE,
	MEMORY_LIMIT,
	POPULATE,
	PORTS_MADE,
	BIND,
	NOTIFY,
	MAP_TABLE,
	MAP_GRANTS,
	MAP_FOREIGN,
	STEPS
};
static const char *const step_name[STEPS] = {
	"create", "vCPUs",  "memory limit", "populate", "ports",
	"bind",	  "notify", "grant table",  "grants",	"foreign frames"};
static xc_interface *xch;
static xenevtchn_handle *events;
static xengnttab_handle *grants;
static xenforeignmemory_handle *foreign;
static unsigned failures_of[STEPS];

static void die(const char *what)
{
	printf("FAIL %s: %s\n", what, strerror(errno));
	exit(1);
}

/* The last number behind the words in what the hypervisor says to debug keys; -1: it does not say that. */
static long ask(const char *keys, const char *words)
{
	static char text[TEXT + 1];
	static uint32_t index;
	unsigned nr;
	long last = -1;

	if (xc_send_debug_keys(xch, keys))
		die("debug keys");
	do {
		nr = TEXT;
		if (xc_readconsolering(xch, text, &nr, 0, 1, &index))
			die("the log");
		text[nr] = 0;
		for (const char *p = text; (p = strstr(p, words)); p++)
			last = strtol(p + strlen(words), NULL, 10);
	} while (nr == TEXT);
	return last;
}

/* How many allocations were made to fail since the last time; from now on the nth does, or all from it on. */
static unsigned long arm(unsigned long n, bool on)
{
	char keys[32];
	long failed;

	snprintf(keys, sizeof(keys), "%lu%c", n, on ? 'F' : 'f');
	failed = ask(keys, "Allocations: ");
	if (failed < 0)
		die("the hypervisor does not let allocations fail");
	return (unsigned long)failed;
}

static uint64_t free_pages(void)
{
	xc_physinfo_t info = {0};

	if (xc_physinfo(xch, &info))
		die("physinfo");
	return info.free_pages;
}

static bool exists(uint32_t id)
{
	xc_dominfo_t info;

	return xc_domain_getinfo(xch, id, 1, &info) == 1 && info.domid == id;
}

/* Whether there is a domain beside dom0. */
static bool others(void)
{
	xc_dominfo_t info;

	return xc_domain_getinfo(xch, 1, 1, &info) == 1;
}

static void note(enum step s, bool good)
{
	failures_of[s] += !good;
}

/* What a toolstack and backends do with a domain. */
static void use(uint32_t id)
{
	xen_pfn_t mfn[PAGES];
	uint32_t ref[GRANTS];
	void *table = NULL, *mapped;
	xenforeignmemory_resource_handle *resource;
	int port = -1, other;
	bool good = true;

	note(VCPUS_MADE, !xc_domain_max_vcpus(xch, id, VCPUS));
	note(MEMORY_LIMIT, !xc_domain_setmaxmem(xch, id, (uint64_t)PAGES * 4));
	for (unsigned i = 0; i < PAGES; i++)
		mfn[i] = i;
	note(POPULATE, !xc_domain_populate_physmap_exact(xch, id, PAGES, 0, 0, mfn));
	for (unsigned i = 0; i < PORTS && good; i++) {
		int fresh = xc_evtchn_alloc_unbound(xch, id, 0);

		good = fresh > 0;
		port = good ? fresh : port;
	}
	note(PORTS_MADE, good);
	if (port > 0) {
		other = xenevtchn_bind_interdomain(events, id, (evtchn_port_t)port);
		note(BIND, other > 0);
		if (other > 0) {
			note(NOTIFY, !xenevtchn_notify(events, (evtchn_port_t)other));
			xenevtchn_unbind(events, (evtchn_port_t)other);
		}
	}
	resource = xenforeignmemory_map_resource(foreign, (domid_t)id, XENMEM_resource_grant_table,
						 XENMEM_resource_grant_table_id_shared, 0,
						 GRANT_FRAMES, &table, PROT_READ | PROT_WRITE, 0);
	note(MAP_TABLE, resource != NULL);
	for (unsigned i = 0; resource && i < GRANTS; i++) {
		grant_entry_v1_t *e = (grant_entry_v1_t *)table + FIRST_GRANT + i;

		ref[i] = FIRST_GRANT + i;
		e->frame = (uint32_t)mfn[i % PAGES];
		e->domid = 0;
		__atomic_store_n(&e->flags, GTF_permit_access, __ATOMIC_SEQ_CST);
	}
	if (resource) {
		mapped = xengnttab_map_domain_grant_refs(grants, GRANTS, id, ref,
							 PROT_READ | PROT_WRITE);
		note(MAP_GRANTS, mapped != NULL);
		if (mapped) {
			memset(mapped, 0x5a, (size_t)GRANTS * XC_PAGE_SIZE);
			xengnttab_unmap(grants, mapped, GRANTS);
		}
		xenforeignmemory_unmap_resource(foreign, resource);
	}
	mapped = xenforeignmemory_map(foreign, id, PROT_READ | PROT_WRITE, PAGES, mfn, NULL);
	note(MAP_FOREIGN, mapped != NULL);
	if (mapped) {
		memset(mapped, 0xa5, (size_t)PAGES * XC_PAGE_SIZE);
		xenforeignmemory_unmap(foreign, mapped, PAGES);
	}
}

/* From its making to its end. */
static void one_life(void)
{
	struct xen_domctl_createdomain config = {
		.max_vcpus = VCPUS,
		.max_evtchn_port = -1,
		.max_grant_frames = (int32_t)GRANT_FRAMES * 2,
		.max_maptrack_frames = 8,
	};
	uint32_t id = 0;

	if (xc_domain_create(xch, &id, &config)) {
		note(CREATE, false);
		return;
	}
	use(id);
	if (xc_domain_destroy(xch, id))
		die("a domain cannot be ended");
	for (unsigned ms = 0; exists(id); ms++) {
		if (ms == PATIENCE_MS)
			die("a domain does not come to its end");
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	}
}

static bool is_as_before(uint64_t free)
{
	uint64_t now = free_pages();

	for (unsigned ms = 0; now != free && ms < PATIENCE_MS; ms++) {
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
		now = free_pages();
	}
	if (now != free)
		printf("FAIL %llu pages are free, %llu before\n", (unsigned long long)now,
		       (unsigned long long)free);
	return now == free;
}

static void audit(void)
{
	if (ask("a", "references, all counted right") < 0)
		die("the hypervisor does not count all references right");
}

/* Until nothing fails any more; how many n that took. */
static unsigned long go_through(unsigned long first, unsigned long last, bool on)
{
	uint64_t free = free_pages();
	unsigned long n = first, failed;

	memset(failures_of, 0, sizeof(failures_of));
	do {
		arm(n, on);
		one_life();
		failed = arm(0, false);
		if (!is_as_before(free) || (!on && failed > 1)) {
			printf("FAIL allocation %lu%s: %lu failed\n", n,
			       on ? " and all behind it" : "", failed);
			exit(1);
		}
	} while (failed && n++ < last);
	printf("  failures of steps:");
	for (unsigned s = 0; s < STEPS; s++)
		printf(" %s %u", step_name[s], failures_of[s]);
	printf("\n");
	return n - first;
}

/* 0: all of it worked. Without failures nothing may go wrong. */
static int lives(unsigned long n)
{
	uint64_t free;

	/* dom0 keeps what it needs for its first: an event bucket, a page of handles. */
	arm(0, false);
	one_life();
	/* A domain is off the list a moment before the last of its memory is back. */
	sleep(1);
	free = free_pages();
	while (n--)
		one_life();
	for (unsigned s = 0; s < STEPS; s++) {
		if (failures_of[s]) {
			printf("FAIL without any failure: %s\n", step_name[s]);
			return 1;
		}
	}
	audit();
	return !is_as_before(free);
}

static int each(unsigned long first, unsigned long last)
{
	if (lives(0))
		return 1;
	printf("one allocation fails: each of %lu\n", go_through(first, last, false));
	printf("all allocations fail from one on: from each of %lu\n",
	       go_through(first, last, true));
	audit();
	return 0;
}

static int after(const char *command)
{
	uint64_t free = free_pages();
	unsigned long failed;
	int status;

	arm(0, false);
	status = system(command);
	failed = arm(0, false);
	for (unsigned ms = 0; others(); ms++) {
		if (ms == PATIENCE_MS) {
			printf("FAIL there is still a domain\n");
			return 1;
		}
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
	}
	audit();
	printf("%lu allocations failed, status %d\n", failed, WEXITSTATUS(status));
	return !is_as_before(free);
}

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	xch = xc_interface_open(NULL, NULL, 0);
	events = xenevtchn_open(NULL, 0);
	grants = xengnttab_open(NULL, 0);
	foreign = xenforeignmemory_open(NULL, 0);
	if (!xch || !events || !grants || !foreign)
		die("interfaces");
	if (argc == 3 && !strcmp(argv[1], "after"))
		return after(argv[2]);
	if (argc == 3 && !strcmp(argv[1], "lives"))
		return lives(strtoul(argv[2], NULL, 0));
	if (argc < 2 || strcmp(argv[1], "each"))
		return 2;
	return each(argc > 2 ? strtoul(argv[2], NULL, 0) : 1,
		    argc > 3 ? strtoul(argv[3], NULL, 0) : NR_MOST);
}
