// SPDX-License-Identifier: MIT
/*
 * A Xen guest into a scratch file and back, with the operations of guest.h and nothing else of the
 * engine: what goes wrong here is guest_xen's.
 *
 *	xen_scratch save GUEST FILE [keep]	suspend, write everything, destroy (or let it go on)
 *	xen_scratch restore FILE [fail=STEP]	make it, fill it, start it; fail: stop after that step and clean up
 *	xen_scratch restore FILE lie=NAME	the same with one thing in the file forged; must be refused
 *	xen_scratch cycle GUEST FILE N		save and restore N times
 *	xen_scratch suspend-timeout GUEST MS	the suspend must time out and leave the guest running
 *	xen_scratch suspend-late GUEST DOMID MS	it is paused after it began to suspend until the time is over; then it goes on
 *	xen_scratch describe GUEST
 *	xen_scratch precheck FILE
 *
 * The file is a heap of host-order structures for this program only. Steps: create, map, types,
 * state, finish.
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <xenstore.h>

#include "migrate/guest_xen.h"
#include "migrate/page_scan.h"
#include "migrate/xen_calls.h"

static struct pgr_error err;

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static void put(FILE *f, const void *p, size_t n)
{
	if (n && fwrite(p, n, 1, f) != 1) {
		perror("write");
		exit(2);
	}
}

static void get(FILE *f, void *p, size_t n)
{
	if (n && fread(p, n, 1, f) != 1) {
		perror("read");
		exit(2);
	}
}

static int failed(const char *what)
{
	fprintf(stderr, "%s: %s (%d)\n", what, err.text, err.code);
	return 1;
}

/* ---- description ---- */

static void put_description(FILE *f, const struct guest_description *d)
{
	uint64_t n = strlen(d->config);

	put(f, d, sizeof(*d));
	put(f, &n, sizeof(n));
	put(f, d->config, n);
	put(f, d->leaves, d->nr_leaves * sizeof(*d->leaves));
	put(f, d->msrs, d->nr_msrs * sizeof(*d->msrs));
}

static void get_description(FILE *f, struct guest_description *d)
{
	uint64_t n;

	get(f, d, sizeof(*d));
	get(f, &n, sizeof(n));
	d->config = calloc(1, n + 1);
	d->leaves = calloc(d->nr_leaves + 1, sizeof(*d->leaves));
	d->msrs = calloc(d->nr_msrs + 1, sizeof(*d->msrs));
	if (!d->config || !d->leaves || !d->msrs)
		exit(2);
	get(f, d->config, n);
	get(f, d->leaves, d->nr_leaves * sizeof(*d->leaves));
	get(f, d->msrs, d->nr_msrs * sizeof(*d->msrs));
}

/* ---- saving ---- */

/* A page in the file: pfn, type, whether contents follow. */
struct page_head {
	uint64_t pfn;
	uint32_t type;
	uint32_t full;
};
#define LAST UINT64_MAX

static int save_pages(struct guest_source *g, FILE *f, uint64_t nr_pfns)
{
	uint64_t pfns[PGR_BATCH_MAX], first, i, nr;
	struct guest_batch b;
	struct page_head h;

	for (first = 0; first < nr_pfns; first += nr) {
		nr = nr_pfns - first < PGR_BATCH_MAX ? nr_pfns - first : PGR_BATCH_MAX;
		for (i = 0; i < nr; i++)
			pfns[i] = first + i;
		if (g->ops->read(g, 0, pfns, (unsigned)nr, &b, &err))
			return failed("read");
		for (i = 0; i < nr; i++) {
			if (!b.page[i])
				continue;
			h = (struct page_head){.pfn = pfns[i],
					       .type = b.type[i],
					       .full = !page_is_zero(b.page[i])};
			put(f, &h, sizeof(h));
			if (h.full)
				put(f, b.page[i], PGR_PAGE_SIZE);
		}
		g->ops->release(g, 0, &b);
	}
	h = (struct page_head){.pfn = LAST};
	put(f, &h, sizeof(h));
	return 0;
}

struct state_head {
	uint32_t type, length;
};

static int put_state(void *ctx, uint32_t type, const void *body, size_t length, struct pgr_error *e)
{
	struct state_head h = {.type = type, .length = (uint32_t)length};

	(void)e;
	put(ctx, &h, sizeof(h));
	put(ctx, body, length);
	return 0;
}

static int save(const char *name, const char *path, bool keep)
{
	struct guest_source *g;
	struct guest_description d;
	struct state_head last = {0};
	double t[6];
	FILE *f = fopen(path, "we");
	int rc = 1;

	if (!f) {
		perror(path);
		return 2;
	}
	if (guest_xen_source_open(name, &g, &err)) {
		fclose(f);
		return failed("open");
	}
	if (g->ops->describe(g, &d, &err)) {
		failed("describe");
		goto out;
	}
	put_description(f, &d);
	t[0] = now();
	if (g->ops->suspend(g, 30000, &err)) {
		failed("suspend");
		goto out;
	}
	t[1] = now();
	if (save_pages(g, f, d.info.nr_pfns))
		goto resume;
	t[2] = now();
	if (g->ops->state(g, put_state, f, &err)) {
		failed("state");
		goto resume;
	}
	put(f, &last, sizeof(last));
	t[3] = now();
	if (keep ? g->ops->resume(g, &err) : g->ops->destroy(g, &err)) {
		failed(keep ? "resume" : "destroy");
		goto resume;
	}
	t[4] = now();
	printf("saved %s: %" PRIu64 " pages, %" PRIu64
	       " populated; suspend %.3f pages %.3f state %.3f %s %.3f s\n",
	       d.info.name, d.info.nr_pfns, d.info.populated, t[1] - t[0], t[2] - t[1], t[3] - t[2],
	       keep ? "resume" : "destroy", t[4] - t[3]);
	rc = 0;
	goto out;
resume:
	if (g->ops->resume(g, &err))
		failed("resume");
out:
	guest_description_free(&d);
	g->ops->close(g);
	fclose(f);
	return rc;
}

/* ---- lies: what a hostile peer could send ---- */

static const char *lie = "";
static uint64_t nr_pfns; /* of the guest in the file */

static bool lying(const char *name)
{
	return !strcmp(lie, name);
}

static void lie_in_table(uint64_t *entry)
{
	for (unsigned i = 0; i < 512; i++) {
		if (!(entry[i] & 1))
			continue;
		if (lying("table-beyond")) {
			entry[i] = (entry[i] & 0xfff) | (nr_pfns + 5) << 12;
			lie = "told";
			return;
		}
		/* Every page becomes writable, page tables too. */
		if (lying("table-writable"))
			entry[i] |= 2;
	}
}

static void lie_in_page(uint8_t *page, uint8_t *type)
{
	/*
	 * struct start_info: magic, nr_pages, shared_info, flags, store_mfn (56), evtchn, console
	 * mfn (72)
	 */
	static const char magic[] = "xen-";

	if (*type == PGR_TYPE_L1)
		lie_in_table((uint64_t *)page);
	if (*type != PGR_TYPE_ORDINARY || memcmp(page, magic, sizeof(magic) - 1))
		return;
	if (lying("store-is-console"))
		memcpy(page + 56, page + 72, 8);
	if (lying("store-beyond"))
		memset(page + 56, 0x7f, 8);
	if (lying("start-info-table"))
		*type = PGR_TYPE_L4 | PGR_TYPE_PINNED;
}

static void set64(uint8_t *body, size_t at, uint64_t value)
{
	memcpy(body + at, &value, sizeof(value));
}

/* True: leave the record out. Offsets are those of stream.md, 8 bytes of vCPU number first. */
static bool lie_in_state(uint32_t type, uint8_t *body)
{
	switch (type) {
	case PGR_REC_PV_INFO:
		if (lying("start-info-beyond"))
			set64(body, 16, nr_pfns);
		break;
	case PGR_REC_PV_P2M_FRAMES:
		if (lying("p2m-beyond"))
			set64(body, 8, nr_pfns);
		if (lying("p2m-short"))
			return true;
		break;
	case PGR_REC_VCPU_CONTEXT:
		if (lying("cr3-beyond"))
			set64(body, 8 + 5008, nr_pfns << 12);
		if (lying("cr3-ordinary"))
			set64(body, 8 + 5008, 0x1000);
		if (lying("gdt-many"))
			set64(body, 8 + 4960, 100000);
		if (lying("gdt-beyond"))
			set64(body, 8 + 4832, nr_pfns + 1);
		if (lying("rdx"))
			set64(body, 8 + 616, 1);
		if (lying("callback"))
			set64(body, 8 + 5112, 0x1234567890abcdefull); /* not canonical */
		if (lying("vcpu-many"))
			set64(body, 0, 511);
		break;
	case PGR_REC_VCPU_XSAVE:
		if (lying("xsave-size"))
			set64(body, 16, 1u << 20);
		if (lying("xsave-features"))
			memset(body + 24, 0xff, 16);
		break;
	case PGR_REC_PV_SHARED_INFO:
		if (lying("no-shared-info"))
			return true;
		if (lying("shared-info-cr3"))
			set64(body, 3112, nr_pfns << 12);
		break;
	}
	return false;
}

/* ---- restoring ---- */

struct batch {
	unsigned nr;
	uint64_t pfn[PGR_BATCH_MAX];
	uint8_t type[PGR_BATCH_MAX];
	bool full[PGR_BATCH_MAX];
	uint8_t data[PGR_BATCH_MAX][PGR_PAGE_SIZE];
};

static int flush(struct guest_sink *s, struct batch *in, const char *fail)
{
	struct guest_batch b;
	unsigned i;

	if (!in->nr)
		return 0;
	if (s->ops->map(s, 0, in->pfn, in->nr, &b, &err))
		return failed("map");
	for (i = 0; i < in->nr; i++)
		if (in->full[i])
			memcpy(b.page[i], in->data[i], PGR_PAGE_SIZE);
	s->ops->unmap(s, 0, &b);
	if (strcmp(fail, "types") && s->ops->set_types(s, 0, in->pfn, in->type, in->nr, &err))
		return failed("set_types");
	in->nr = 0;
	return 0;
}

static int restore_pages(struct guest_sink *s, FILE *f, const char *fail)
{
	static struct batch in;
	struct page_head h;

	in.nr = 0;
	for (;;) {
		get(f, &h, sizeof(h));
		if (h.pfn == LAST)
			return flush(s, &in, fail);
		in.pfn[in.nr] = h.pfn;
		in.type[in.nr] = (uint8_t)h.type;
		in.full[in.nr] = h.full;
		if (h.full)
			get(f, in.data[in.nr], PGR_PAGE_SIZE);
		if (h.full)
			lie_in_page(in.data[in.nr], &in.type[in.nr]);
		in.nr++;
		if (in.nr == PGR_BATCH_MAX) {
			if (flush(s, &in, fail))
				return 1;
			if (!strcmp(fail, "map"))
				return failed("stopped by request after the first batch");
		}
	}
}

static int restore_state(struct guest_sink *s, FILE *f)
{
	static uint8_t body[PGR_RECORD_MAX];
	struct state_head h;

	for (;;) {
		get(f, &h, sizeof(h));
		if (!h.type)
			return 0;
		if (h.length > sizeof(body))
			return 1;
		get(f, body, h.length);
		if (lie_in_state(h.type, body))
			continue;
		if (s->ops->state(s, h.type, body, h.length, &err))
			return failed("state");
	}
}

static int print_refusals(struct guest_sink *s, const struct guest_description *d)
{
	struct guest_refusals r;

	if (s->ops->precheck(s, d, &r, &err))
		return failed("precheck");
	for (unsigned i = 0; i < r.nr; i++)
		printf("refused: %s\n", r.text[i]);
	return r.nr ? 3 : 0;
}

static int stopped(const char *fail, const char *step)
{
	if (strcmp(fail, step))
		return 0;
	fprintf(stderr, "stopped by request after %s\n", step);
	return 1;
}

static int restore(const char *path, const char *fail, bool only_check)
{
	const struct guest_xen_sink_options o = {.paused = !strcmp(fail, "paused")};
	struct guest_sink *s;
	struct guest_description d;
	double t[7] = {0};
	FILE *f = fopen(path, "re");
	int rc = 1;

	if (!f) {
		perror(path);
		return 2;
	}
	get_description(f, &d);
	nr_pfns = d.info.nr_pfns;
	if (guest_xen_sink_open(&o, &s, &err)) {
		fclose(f);
		guest_description_free(&d);
		return failed("open");
	}
	t[0] = now();
	rc = print_refusals(s, &d);
	if (rc || only_check)
		goto out;
	rc = 1;
	t[1] = now();
	if (s->ops->create(s, &d, &err)) {
		failed("create");
		goto out;
	}
	t[2] = now();
	if (stopped(fail, "create") || restore_pages(s, f, fail))
		goto out;
	t[3] = now();
	if (strcmp(fail, "state") && restore_state(s, f))
		goto out;
	if (s->ops->finish(s, &err)) {
		failed("finish");
		goto out;
	}
	t[4] = now();
	if (stopped(fail, "finish"))
		goto out;
	if (s->ops->start(s, &err)) {
		failed("start");
		goto out;
	}
	t[5] = now();
	printf("restored %s as domain %u: check %.3f create %.3f pages %.3f finish %.3f start %.3f s\n",
	       d.info.name, guest_xen_sink_domid(s), t[1] - t[0], t[2] - t[1], t[3] - t[2],
	       t[4] - t[3], t[5] - t[4]);
	rc = 0;
out:
	s->ops->close(s);
	guest_description_free(&d);
	fclose(f);
	return rc;
}

/* ---- the rest ---- */

static int suspend_timeout(const char *name, unsigned ms)
{
	struct guest_source *g;
	int rc;

	if (guest_xen_source_open(name, &g, &err))
		return failed("open");
	rc = g->ops->suspend(g, ms, &err);
	printf("suspend: %d %s\n", rc, rc ? err.text : "suspended");
	if (g->ops->resume(g, &err))
		failed("resume");
	g->ops->close(g);
	return rc == -ETIMEDOUT ? 0 : 1;
}

/* The domain to be paused as soon as it has begun to suspend: when it takes the request out of Xenstore. */
struct pauser {
	struct xen_calls calls;
	struct xs_handle *xs;
	uint32_t domid;
	char path[64];
	int rc; /* of the pause */
};

static int set_paused(struct pauser *p, bool paused)
{
	struct xen_domctl op = {.cmd = paused ? XEN_DOMCTL_pausedomain : XEN_DOMCTL_unpausedomain,
				.domain = (domid_t)p->domid};

	return xen_domctl(&p->calls, &op);
}

static void *pause_when_begun(void *arg)
{
	struct pauser *p = arg;
	bool asked = false;
	unsigned n;
	char *value, **event;

	for (;;) {
		event = xs_read_watch(p->xs, &n);
		if (!event)
			return NULL;
		free(event);
		value = xs_read(p->xs, XBT_NULL, p->path, &n);
		if (value && !strcmp(value, "suspend")) {
			asked = true;
		} else if (asked) {
			p->rc = set_paused(p, true);
			free(value);
			return NULL;
		}
		free(value);
	}
}

/*
 * Pause the guest in the middle of its suspend until the time is over. 0: so it was, and it was resumed when it had stopped after all, or it never
 * did stop; 4: it had stopped before it could be paused, or did not begin.
 */
static int suspend_late(const char *name, unsigned domid, unsigned ms)
{
	struct pauser p = {.domid = domid, .rc = -EAGAIN};
	struct guest_source *g;
	pthread_t thread;
	int rc, tries = 0;

	if (guest_xen_source_open(name, &g, &err) || xen_calls_open(&p.calls, &err))
		return failed("open");
	p.xs = xs_open(0);
	snprintf(p.path, sizeof(p.path), "/local/domain/%u/control/shutdown", p.domid);
	if (!p.xs || !xs_watch(p.xs, p.path, "late") ||
	    pthread_create(&thread, NULL, pause_when_begun, &p))
		return failed("watch");
	rc = g->ops->suspend(g, ms, &err);
	printf("suspend: %d %s\n", rc, rc ? err.text : "suspended");
	if (rc == -ETIMEDOUT)
		pthread_cancel(thread);
	pthread_join(thread, NULL);
	if (!p.rc && set_paused(&p, false))
		return failed("unpause");
	xs_close(p.xs);
	xen_calls_close(&p.calls);
	if (rc != -ECONNABORTED) {
		if (g->ops->resume(g, &err))
			failed("resume");
		g->ops->close(g);
		return 4;
	}
	while ((rc = g->ops->resume(g, &err)) == -EINPROGRESS && tries++ < 600)
		usleep(100000);
	printf("resume: %d after %d tries\n", rc, tries);
	g->ops->close(g);
	return rc ? 1 : 0;
}

static int describe(const char *name)
{
	struct guest_source *g;
	struct guest_description d;

	if (guest_xen_source_open(name, &g, &err))
		return failed("open");
	if (g->ops->describe(g, &d, &err)) {
		g->ops->close(g);
		return failed("describe");
	}
	printf("%s: %u vCPUs, %" PRIu64 " pages, %" PRIu64 " populated, %u leaves, %u MSRs, %s%s\n",
	       d.info.name, d.info.vcpus, d.info.nr_pfns, d.info.populated, d.nr_leaves, d.nr_msrs,
	       d.info.can_log_dirty ? "can log" : "cannot log: ", d.info.why_not);
	guest_description_free(&d);
	g->ops->close(g);
	return 0;
}

static int cycle(const char *name, const char *path, int n)
{
	int rc = 0;

	while (n-- > 0 && !rc) {
		rc = save(name, path, false);
		if (!rc)
			rc = restore(path, "", false);
		fflush(stdout);
	}
	return rc;
}

int main(int argc, char **argv)
{
	if (guest_xen_is_save_helper(argc, argv))
		return guest_xen_save_helper(argc, argv);
	signal(SIGPIPE, SIG_IGN);
	if (argc >= 4 && !strcmp(argv[1], "save"))
		return save(argv[2], argv[3], argc > 4);
	if (argc == 4 && !strcmp(argv[1], "restore") && !strncmp(argv[3], "lie=", 4)) {
		lie = argv[3] + 4;
		return restore(argv[2], "", false);
	}
	if (argc == 4 && !strcmp(argv[1], "restore") && !strncmp(argv[3], "fail=", 5))
		return restore(argv[2], argv[3] + 5, false);
	if (argc == 3 && !strcmp(argv[1], "restore"))
		return restore(argv[2], "", false);
	if (argc == 3 && !strcmp(argv[1], "precheck"))
		return restore(argv[2], "", true);
	if (argc == 5 && !strcmp(argv[1], "cycle"))
		return cycle(argv[2], argv[3], atoi(argv[4]));
	if (argc == 4 && !strcmp(argv[1], "suspend-timeout"))
		return suspend_timeout(argv[2], (unsigned)atoi(argv[3]));
	if (argc == 5 && !strcmp(argv[1], "suspend-late"))
		return suspend_late(argv[2], (unsigned)atoi(argv[3]), (unsigned)atoi(argv[4]));
	if (argc == 3 && !strcmp(argv[1], "describe"))
		return describe(argv[2]);
	fprintf(stderr,
		"usage: %s save|restore|cycle|suspend-timeout|suspend-late|describe|precheck ...\n",
		argv[0]);
	return 2;
}
