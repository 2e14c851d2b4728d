// SPDX-License-Identifier: MIT
/*
 * The simulated guest: no write is lost by any tracker, what travels goes on where it stopped, and its self-check finds every page that
 * is not the one that was written.
 *
 * `carry` is the smallest engine there can be: rounds of clean and copy, suspend, last round, state, finish, start.
 */
#include "migrate/guest_sim_internal.h"
#include "tests/unit/unit.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MIB (1u << 20)

static const enum guest_sim_track all_trackers[] = {GUEST_SIM_TRACK_UFFD_ASYNC,
						    GUEST_SIM_TRACK_UFFD, GUEST_SIM_TRACK_MPROTECT};
#define NR_TRACKERS (sizeof(all_trackers) / sizeof(all_trackers[0]))

/* Run fn with each way of tracking that this machine has; mprotect is everywhere. */
static void for_each_tracker(void (*fn)(enum guest_sim_track t))
{
	CHECK(guest_sim_track_works(GUEST_SIM_TRACK_MPROTECT));
	for (unsigned i = 0; i < NR_TRACKERS; i++) {
		if (guest_sim_track_works(all_trackers[i]))
			fn(all_trackers[i]);
		else
			printf("note: no %s on this machine\n",
			       guest_sim_track_name(all_trackers[i]));
	}
}

static void nap_ms(long ms)
{
	struct timespec ts = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L};

	nanosleep(&ts, NULL);
}

static struct guest_sim_options busy(enum guest_sim_track t)
{
	return (struct guest_sim_options){
		.name = "busy",
		.seed = 7,
		.memory = 8 * MIB,
		.absent_permille = 100,
		.page_table_pages = 70,
		.vcpus = 2,
		.workload = {.working_set = MIB,
			     .pattern = GUEST_SIM_UNIFORM,
			     .write_bytes = 256,
			     .content = GUEST_SIM_RANDOM},
		.track = t,
	};
}

static struct guest_sim_options idle(void)
{
	return (struct guest_sim_options){.seed = 3, .memory = MIB};
}

static struct guest_source *make_source(const struct guest_sim_options *o,
					const struct guest_sim_fault *fault)
{
	struct guest_source *s = NULL;
	struct pgr_error err = PGR_ERROR_NONE;
	int rc = guest_sim_source_create(o, fault, fault ? 1 : 0, &s, &err);

	CHECK_MSG(!rc, "%s", err.text);
	return s;
}

static struct guest_sink *make_sink(const struct guest_sim_sink_options *o,
				    const struct guest_sim_fault *fault)
{
	struct guest_sink *s = NULL;

	CHECK_EQ(guest_sim_sink_open(o, fault, fault ? 1 : 0, &s, NULL), 0);
	return s;
}

static void remove_source(struct guest_source *s)
{
	struct guest_sim *g = guest_sim_of_source(s);

	s->ops->close(s);
	guest_sim_destroy(g);
}

static void nothing_left(void)
{
	CHECK_EQ(guest_sim_count(NULL), 0);
	CHECK_EQ(guest_sim_allocated(), 0);
}

static uint64_t writes_of(struct guest_sim *g)
{
	struct guest_sim_status st;

	guest_sim_status(g, &st);
	return st.writes;
}

/* Until the guest has written this much more, however long it takes; a guest that never does hangs the test visibly. */
static void wait_for_writes(struct guest_sim *g, uint64_t more)
{
	uint64_t until = writes_of(g) + more;

	while (writes_of(g) < until)
		nap_ms(1);
}

/* ---- carrying a guest from source to sink ---- */

static int carry_pages(struct guest_source *s, struct guest_sink *k, const uint64_t *pfns,
		       unsigned nr, struct pgr_error *err)
{
	struct guest_batch from, to;
	uint64_t present[PGR_BATCH_MAX], absent[PGR_BATCH_MAX];
	uint8_t types[PGR_BATCH_MAX];
	unsigned nr_present = 0, nr_absent = 0, at = 0;
	int rc = s->ops->read(s, 0, pfns, nr, &from, err);

	if (rc)
		return rc;
	for (unsigned i = 0; i < nr; i++) {
		if (from.page[i]) {
			types[nr_present] = from.type[i];
			present[nr_present++] = pfns[i];
		} else {
			absent[nr_absent++] = pfns[i];
		}
	}
	rc = k->ops->map(k, 0, present, nr_present, &to, err);
	if (rc)
		goto out;
	for (unsigned i = 0; i < nr; i++)
		if (from.page[i])
			memcpy(to.page[at++], from.page[i], PGR_PAGE_SIZE);
	k->ops->unmap(k, 0, &to);
	rc = k->ops->set_types(k, 0, present, types, nr_present, err);
	if (!rc)
		rc = k->ops->discard(k, 0, absent, nr_absent, err);
out:
	s->ops->release(s, 0, &from);
	return rc;
}

static int carry_bitmap(struct guest_source *s, struct guest_sink *k, uint64_t *bitmap,
			uint64_t nr_pfns, struct pgr_error *err)
{
	uint64_t pfns[PGR_BATCH_MAX];
	unsigned nr = 0;
	int rc = 0;

	for (uint64_t pfn = 0; pfn <= nr_pfns && !rc; pfn++) {
		if (pfn < nr_pfns && bitmap[pfn / 64] >> (pfn % 64) & 1)
			pfns[nr++] = pfn;
		if (nr == PGR_BATCH_MAX || (pfn == nr_pfns && nr)) {
			rc = carry_pages(s, k, pfns, nr, err);
			nr = 0;
		}
	}
	memset(bitmap, 0, sim_words(nr_pfns) * sizeof(*bitmap));
	return rc;
}

struct sink_state_ctx {
	struct guest_sink *sink;
};

static int to_sink(void *ctx, uint32_t type, const void *body, size_t length, struct pgr_error *err)
{
	struct sink_state_ctx *c = ctx;

	return c->sink->ops->state(c->sink, type, body, length, err);
}

/* Up to a complete guest at the sink and a suspended one at the source. */
static int carry(struct guest_source *s, struct guest_sink *k, unsigned rounds,
		 struct pgr_error *err)
{
	struct guest_description d = {0};
	struct guest_refusals refusals = {0};
	struct sink_state_ctx ctx = {k};
	uint64_t *bitmap = NULL;
	uint64_t count, nr_pfns;
	int rc = s->ops->describe(s, &d, err);

	if (rc)
		return rc;
	nr_pfns = d.info.nr_pfns;
	bitmap = malloc(sim_words(nr_pfns) * sizeof(*bitmap));
	memset(bitmap, 0xff, sim_words(nr_pfns) * sizeof(*bitmap));
	rc = k->ops->precheck(k, &d, &refusals, err);
	if (!rc && refusals.nr)
		rc = pgr_fail(err, -EPERM, "%s", refusals.text[0]);
	if (!rc)
		rc = k->ops->create(k, &d, err);
	if (!rc)
		rc = s->ops->log_start(s, err);
	for (unsigned i = 0; i < rounds && !rc; i++) {
		rc = carry_bitmap(s, k, bitmap, nr_pfns, err);
		if (!rc)
			rc = s->ops->throttle(s, 100 - i % 2, err);
		if (!rc)
			rc = s->ops->log_clean(s, bitmap, &count, err);
	}
	if (!rc)
		rc = s->ops->suspend(s, 60000, err);
	if (!rc)
		rc = s->ops->let_go(s, 60000, err);
	if (!rc)
		rc = s->ops->log_clean(s, bitmap, &count, err);
	if (!rc)
		rc = s->ops->log_stop(s, err);
	if (!rc)
		rc = carry_bitmap(s, k, bitmap, nr_pfns, err);
	if (!rc)
		rc = s->ops->state(s, to_sink, &ctx, err);
	if (!rc)
		rc = k->ops->finish(k, err);
	free(bitmap);
	guest_description_free(&d);
	return rc;
}

static void same_memory(struct guest_sim *a, struct guest_sim *b)
{
	uint64_t digest_a, digest_b, pages_a, pages_b;
	struct guest_sim_status st;

	guest_sim_status(a, &st);
	for (uint64_t pfn = 0; pfn < st.nr_pfns; pfn++) {
		uint8_t *page_a = guest_sim_page(a, pfn), *page_b = guest_sim_page(b, pfn);

		CHECK_EQ(!page_a, !page_b);
		CHECK_EQ(guest_sim_type(a, pfn), guest_sim_type(b, pfn));
		if (page_a)
			CHECK_MSG(!memcmp(page_a, page_b, PGR_PAGE_SIZE), "pfn %llu differs",
				  (unsigned long long)pfn);
	}
	guest_sim_digest(a, &digest_a, &pages_a);
	guest_sim_digest(b, &digest_b, &pages_b);
	CHECK_EQ(digest_a, digest_b);
	CHECK_EQ(pages_a, pages_b);
	CHECK_EQ(pages_a, st.populated);
}

static void check_healthy(struct guest_sim *g)
{
	struct pgr_error err = PGR_ERROR_NONE;
	struct guest_sim_status st;
	int rc = guest_sim_verify(g, &err);

	CHECK_MSG(!rc, "%s", err.text);
	guest_sim_status(g, &st);
	CHECK_MSG(!st.mismatches, "%s", st.mismatch);
	CHECK(st.checked > 0);
}

static void move_with(enum guest_sim_track t)
{
	struct guest_sim_options o = busy(t);
	struct guest_source *s = make_source(&o, NULL);
	struct guest_sim_sink_options ko = {.track = t};
	struct guest_sink *k = make_sink(&ko, NULL);
	struct guest_sim *a = guest_sim_of_source(s), *b;
	struct pgr_error err = PGR_ERROR_NONE;
	uint64_t overlaps = guest_sim_overlaps(), writes;
	uint8_t uuid[16];
	struct guest_sim_status st;
	int rc;

	memcpy(uuid, a->uuid, sizeof(uuid));
	wait_for_writes(a, 100);
	rc = carry(s, k, 20, &err);
	CHECK_MSG(!rc, "%s", err.text);
	guest_sim_status(a, &st);
	CHECK_STR(st.tracker, guest_sim_track_name(t));
	CHECK_EQ(st.life, GUEST_SIM_SUSPENDED);
	CHECK_EQ(guest_sim_running(uuid), 0);
	CHECK_EQ(guest_sim_count(uuid), 2);
	b = guest_sim_of_sink(k);
	same_memory(a, b);
	writes = writes_of(a);
	CHECK_EQ(writes_of(b), writes);
	CHECK(writes > 100);
	check_healthy(b);

	CHECK_EQ(k->ops->start(k, &err), 0);
	CHECK_EQ(guest_sim_running(uuid), 1);
	CHECK_EQ(s->ops->destroy(s, &err), 0);
	s->ops->close(s);
	k->ops->close(k);
	CHECK_EQ(guest_sim_count(uuid), 1);
	CHECK(guest_sim_find_running(uuid) == b);
	CHECK_EQ(guest_sim_overlaps(), overlaps);
	/* It goes on where it stopped, and moves on. */
	wait_for_writes(b, 500);
	check_healthy(b);
	CHECK_EQ(guest_sim_source_open(b, NULL, 0, &s, &err), 0);
	k = make_sink(NULL, NULL);
	rc = carry(s, k, 3, &err);
	CHECK_MSG(!rc, "%s", err.text);
	CHECK_EQ(s->ops->destroy(s, &err), 0);
	s->ops->close(s);
	CHECK_EQ(k->ops->start(k, &err), 0);
	wait_for_writes(guest_sim_of_sink(k), 100);
	check_healthy(guest_sim_of_sink(k));
	CHECK_EQ(k->ops->destroy(k, &err), 0);
	k->ops->close(k);
	nothing_left();
}

static void running_guest_moves_and_goes_on(void)
{
	for_each_tracker(move_with);
}

/* ---- trackers by themselves ---- */

#define HAMMER_PAGES   512u
#define HAMMER_THREADS 3u

struct hammer {
	uint8_t *base;
	unsigned slot;
	atomic_bool *stop;
	atomic_uint_fast64_t *done;
};

/* Each thread has its own counter in every page, so that several write the same page at once. */
static void *hammer_thread(void *arg)
{
	struct hammer *h = arg;
	uint64_t rng = h->slot + 1, n = 0;

	while (!atomic_load(h->stop)) {
		uint64_t page = sim_random(&rng) % HAMMER_PAGES;
		volatile uint64_t *counter =
			(volatile uint64_t *)(void *)(h->base + page * PGR_PAGE_SIZE) + h->slot * 9;

		*counter = *counter + 1;
		/* Let the other processor's guests live. */
		if (++n % 4096 == 0)
			nap_ms(1);
		atomic_fetch_add(h->done, 1);
	}
	return NULL;
}

static const struct sim_tracker_ops *ops_of(enum guest_sim_track t)
{
	const struct sim_tracker_ops *ops = sim_track_choose(t);

	CHECK(ops != NULL);
	return ops;
}

static uint8_t *plain_memory(uint64_t pages)
{
	uint8_t *base = mmap(NULL, pages * PGR_PAGE_SIZE, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	CHECK(base != MAP_FAILED);
	return base;
}

static void copy_dirty(uint8_t *copy, const uint8_t *base, uint64_t *bitmap)
{
	for (uint64_t page = 0; page < HAMMER_PAGES; page++)
		if (bitmap[page / 64] >> (page % 64) & 1)
			memcpy(copy + page * PGR_PAGE_SIZE, base + page * PGR_PAGE_SIZE,
			       PGR_PAGE_SIZE);
	memset(bitmap, 0, HAMMER_PAGES / 8);
}

static void hammer_with(enum guest_sim_track t)
{
	uint8_t *base = plain_memory(HAMMER_PAGES), *copy = plain_memory(HAMMER_PAGES);
	uint64_t bitmap[HAMMER_PAGES / 64] = {0};
	pthread_t thread[HAMMER_THREADS];
	struct hammer h[HAMMER_THREADS];
	struct sim_tracker *tracker;
	atomic_uint_fast64_t done = 0;
	atomic_bool stop;

	/* Threads end before the last clean in one pass, and tracking ends before the threads in the other. */
	for (unsigned pass = 0; pass < 2; pass++) {
		atomic_store(&stop, false);
		CHECK_EQ(ops_of(t)->start(base, HAMMER_PAGES, &tracker, NULL), 0);
		memcpy(copy, base, HAMMER_PAGES * PGR_PAGE_SIZE);
		for (unsigned i = 0; i < HAMMER_THREADS; i++) {
			h[i] = (struct hammer){base, i, &stop, &done};
			CHECK_EQ(pthread_create(&thread[i], NULL, hammer_thread, &h[i]), 0);
		}
		for (unsigned i = 0; i < 300 || atomic_load(&done) < 20000; i++) {
			CHECK_EQ(tracker->ops->clean(tracker, bitmap, NULL), 0);
			copy_dirty(copy, base, bitmap);
		}
		if (pass)
			tracker->ops->stop(tracker);
		atomic_store(&stop, true);
		for (unsigned i = 0; i < HAMMER_THREADS; i++)
			pthread_join(thread[i], NULL);
		if (pass)
			continue;
		CHECK_EQ(tracker->ops->clean(tracker, bitmap, NULL), 0);
		copy_dirty(copy, base, bitmap);
		CHECK_MEM(base, copy, HAMMER_PAGES * PGR_PAGE_SIZE);
		CHECK_EQ(tracker->ops->clean(tracker, bitmap, NULL), 0);
		for (unsigned i = 0; i < HAMMER_PAGES / 64; i++)
			CHECK_EQ(bitmap[i], 0);
		tracker->ops->stop(tracker);
		atomic_store(&done, 0);
	}
	munmap(base, HAMMER_PAGES * PGR_PAGE_SIZE);
	munmap(copy, HAMMER_PAGES * PGR_PAGE_SIZE);
}

static void no_write_is_lost(void)
{
	for_each_tracker(hammer_with);
}

static void exact_with(enum guest_sim_track t)
{
	struct guest_sim_options o = idle();
	struct guest_source *s;
	struct guest_sim *g;
	uint64_t bitmap[4] = {0}, count = 99;
	struct pgr_error err;

	o.track = t;
	s = make_source(&o, NULL);
	g = guest_sim_of_source(s);
	CHECK_EQ(s->ops->log_clean(s, bitmap, &count, &err), -EINVAL);
	guest_sim_page(g, 9)[0] ^= 1;
	CHECK_EQ(s->ops->log_start(s, &err), 0);
	CHECK_EQ(s->ops->log_start(s, &err), -EBUSY);
	CHECK_EQ(s->ops->log_clean(s, bitmap, &count, &err), 0);
	CHECK_EQ(count, 0);
	guest_sim_page(g, 0)[0] ^= 1;
	guest_sim_page(g, 63)[4095] ^= 1;
	guest_sim_page(g, 64)[7] ^= 1;
	for (uint64_t pfn = 128; pfn < 192; pfn++)
		guest_sim_page(g, pfn)[pfn] ^= 1;
	guest_sim_page(g, 255)[7] ^= 1;
	bitmap[0] = 1; /* set before: not counted */
	CHECK_EQ(s->ops->log_clean(s, bitmap, &count, &err), 0);
	CHECK_EQ(count, 67);
	CHECK_EQ(bitmap[0], 1 | 1ull << 63);
	CHECK_EQ(bitmap[1], 1);
	CHECK_EQ(bitmap[2], ~0ull);
	CHECK_EQ(bitmap[3], 1ull << 63);
	memset(bitmap, 0, sizeof(bitmap));
	guest_sim_page(g, 70)[7] ^= 1;
	CHECK_EQ(s->ops->log_clean(s, bitmap, &count, &err), 0);
	CHECK_EQ(count, 1);
	CHECK_EQ(bitmap[1], 1ull << 6);
	CHECK_EQ(s->ops->log_stop(s, &err), 0);
	guest_sim_page(g, 71)[7] ^= 1;
	/* A log that is started again knows nothing of before. */
	CHECK_EQ(s->ops->log_start(s, &err), 0);
	CHECK_EQ(s->ops->log_clean(s, bitmap, &count, &err), 0);
	CHECK_EQ(count, 0);
	remove_source(s); /* closing switches it off */
	nothing_left();
}

static void exactly_the_written_pages_are_reported(void)
{
	for_each_tracker(exact_with);
}

static void mprotect_reports_blocks_of_large_guests(void)
{
	const uint64_t pages = 70000;
	uint8_t *base = mmap(NULL, pages * PGR_PAGE_SIZE, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	uint64_t *bitmap = calloc(sim_words(pages), sizeof(*bitmap));
	struct sim_tracker *t;

	CHECK(base != MAP_FAILED && bitmap);
	CHECK_EQ(sim_track_mprotect.start(base, pages, &t, NULL), 0);
	base[69999 * (size_t)PGR_PAGE_SIZE] = 1;
	base[5 * PGR_PAGE_SIZE] = 1;
	CHECK_EQ(t->ops->clean(t, bitmap, NULL), 0);
	CHECK_EQ(bitmap[0], 0xf0);
	CHECK_EQ(bitmap[69999 / 64], 0xfull << (69996 % 64));
	t->ops->stop(t);
	free(bitmap);
	munmap(base, pages * PGR_PAGE_SIZE);
}

/* Use up the kernel's number of mappings: every other page of a region gets another protection. */
static void mprotect_survives_too_many_mappings(void)
{
	const size_t spread = 200000;
	uint8_t *hog = mmap(NULL, spread * PGR_PAGE_SIZE, PROT_NONE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	uint8_t *base = plain_memory(64);
	uint64_t first = 0, second = 0, third = 0;
	struct sim_tracker *t;
	bool full = false;
	int rc[3];

	CHECK(hog != MAP_FAILED);
	CHECK_EQ(sim_track_mprotect.start(base, 64, &t, NULL), 0);
	for (size_t i = 0; i < spread && !full; i += 2)
		full = mprotect(hog + i * PGR_PAGE_SIZE, PGR_PAGE_SIZE, PROT_READ) != 0;
	base[7 * PGR_PAGE_SIZE] = 1;
	base[40 * PGR_PAGE_SIZE] = 1;
	rc[0] = t->ops->clean(t, &first, NULL);
	base[9 * PGR_PAGE_SIZE] = 1;
	rc[1] = t->ops->clean(t, &second, NULL);
	munmap(hog, spread * PGR_PAGE_SIZE);
	base[3 * PGR_PAGE_SIZE] = 1;
	rc[2] = t->ops->clean(t, &third, NULL);
	CHECK(full);
	CHECK_EQ(rc[0] | rc[1] | rc[2], 0);
	CHECK_EQ(first, ~0ull); /* all, for none could be told apart */
	CHECK_EQ(second, ~0ull);
	CHECK_EQ(third, 1 << 3);
	t->ops->stop(t);
	munmap(base, 64 * PGR_PAGE_SIZE);
}

static void other_faults_still_kill(void)
{
	uint8_t *base = plain_memory(2), *other = plain_memory(1);
	struct sim_tracker *t;
	int status;
	pid_t pid;

	CHECK_EQ(mprotect(other, PGR_PAGE_SIZE, PROT_READ), 0);
	CHECK_EQ(sim_track_mprotect.start(base, 2, &t, NULL), 0);
	fflush(NULL);
	pid = fork();
	if (!pid) {
		fclose(stderr); /* a sanitizer's report of what is wanted here */
		*(volatile uint8_t *)base = 1;
		*(volatile uint8_t *)other = 1;
		_exit(0);
	}
	CHECK(pid > 0);
	CHECK(waitpid(pid, &status, 0) == pid);
	CHECK(!WIFEXITED(status) || WEXITSTATUS(status) != 0);
	t->ops->stop(t);
	munmap(base, 2 * PGR_PAGE_SIZE);
	munmap(other, PGR_PAGE_SIZE);
}

static void runs_of_bits(void)
{
	uint64_t bitmap[1];
	struct {
		uint64_t word;
	} cases[] = {{0}, {1}, {1ull << 63}, {~0ull}, {0xf0f}, {0x8000000000000001ull}, {~1ull}};

	for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct sim_tracker *t;
		uint8_t *base = plain_memory(64);

		/* Through a tracker, so that the runs are those that get protected again. */
		CHECK_EQ(sim_track_mprotect.start(base, 64, &t, NULL), 0);
		for (unsigned round = 0; round < 2; round++) {
			for (unsigned bit = 0; bit < 64; bit++)
				if (cases[i].word >> bit & 1)
					base[bit * PGR_PAGE_SIZE]++;
			bitmap[0] = 0;
			CHECK_EQ(t->ops->clean(t, bitmap, NULL), 0);
			CHECK_EQ(bitmap[0], cases[i].word);
		}
		t->ops->stop(t);
		munmap(base, 64 * PGR_PAGE_SIZE);
	}
}

/* ---- the self-check must be able to fail ---- */

/* A suspended source after writes, and the page of its working set that was written most. */
static struct guest_source *worn_source(uint32_t *pfn)
{
	struct guest_sim_options o = busy(GUEST_SIM_TRACK_AUTO);
	struct guest_source *s = make_source(&o, NULL);
	struct guest_sim *g = guest_sim_of_source(s);
	struct sim_vcpu *v = &g->workload.vcpu[1];
	uint64_t writes = 0;
	uint32_t most = 0;

	/* The threads' shares of the processor may be uneven: it is this vCPU's writes that count. */
	while (writes < 4ull * v->nr_pages) {
		nap_ms(1);
		pthread_mutex_lock(&v->lock);
		writes = v->writes;
		pthread_mutex_unlock(&v->lock);
	}
	CHECK_EQ(s->ops->suspend(s, 60000, NULL), 0);
	for (uint32_t i = 0; i < v->nr_pages; i++)
		if (v->page[i].generation >= most) {
			most = v->page[i].generation;
			*pfn = v->page[i].pfn;
		}
	CHECK(most >= 2);
	check_healthy(g);
	return s;
}

static void stale_page_is_found(void)
{
	uint32_t pfn = 0;
	struct guest_source *s = worn_source(&pfn);
	struct guest_sim *g = guest_sim_of_source(s);
	uint8_t old[PGR_PAGE_SIZE];
	struct pgr_error err;
	struct guest_sim_status st;
	uint64_t until;
	char name[40];

	memcpy(old, guest_sim_page(g, pfn), PGR_PAGE_SIZE);
	CHECK_EQ(s->ops->resume(s, &err), 0);
	for (uint64_t now = 0; !now;) {
		uint64_t head[2];

		wait_for_writes(g, 200);
		memcpy(head, guest_sim_page(g, pfn), sizeof(head));
		memcpy(&until, old + 8, sizeof(until));
		now = head[1] > until;
	}
	CHECK_EQ(s->ops->suspend(s, 60000, &err), 0);
	memcpy(guest_sim_page(g, pfn), old, PGR_PAGE_SIZE);
	CHECK_EQ(guest_sim_verify(g, &err), -EBADMSG);
	snprintf(name, sizeof(name), "pfn %u ", pfn);
	CHECK_HAS(err.text, name);
	CHECK_HAS(err.text, "stale");
	guest_sim_status(g, &st);
	CHECK(st.mismatches > 0);
	CHECK_HAS(st.mismatch, "stale");
	remove_source(s);
	nothing_left();
}

static void the_verifier_thread_finds_it_by_itself(void)
{
	struct guest_sim_options o = idle();
	struct guest_source *s;
	struct guest_sim *g;
	struct guest_sim_status st;

	/* A guest that hardly writes: only the verifier looks. */
	o.workload.working_set = MIB / 4;
	o.workload.rate = 1;
	s = make_source(&o, NULL);
	g = guest_sim_of_source(s);
	CHECK_EQ(s->ops->suspend(s, 60000, NULL), 0);
	guest_sim_page(g, g->workload.vcpu[0].page[5].pfn)[0] ^= 1;
	CHECK_EQ(s->ops->resume(s, NULL), 0);
	do {
		nap_ms(1);
		guest_sim_status(g, &st);
	} while (!st.mismatches);
	CHECK_HAS(st.mismatch, "tag");
	remove_source(s);
}

static void every_kind_of_damage_is_found(void)
{
	uint32_t pfn = 0;
	struct guest_source *s = worn_source(&pfn);
	struct guest_sim *g = guest_sim_of_source(s);
	uint8_t *page = guest_sim_page(g, pfn), *other, keep[PGR_PAGE_SIZE];
	uint32_t generation;
	uint64_t bare = 0;
	struct pgr_error err;

	/* The bytes of the last write. */
	memcpy(&generation, page + 8, sizeof(generation));
	page[16 + generation % 16 * 256] ^= 0x10;
	CHECK_EQ(guest_sim_verify(g, &err), -EBADMSG);
	CHECK_HAS(err.text, "bytes");
	page[16 + generation % 16 * 256] ^= 0x10;
	/* Another page of the working set in its place. */
	other = guest_sim_page(g, g->workload.vcpu[0].page[0].pfn);
	memcpy(keep, page, sizeof(keep));
	memcpy(page, other, sizeof(keep));
	CHECK_EQ(guest_sim_verify(g, &err), -EBADMSG);
	CHECK_HAS(err.text, "tag");
	memcpy(page, keep, sizeof(keep));
	CHECK_EQ(guest_sim_verify(g, &err), 0);
	/* A page that nobody writes. */
	while (!guest_sim_page(g, bare))
		bare++;
	guest_sim_page(g, bare)[4000] ^= 1;
	CHECK_EQ(guest_sim_verify(g, &err), -EBADMSG);
	CHECK_HAS(err.text, "outside of the working sets");
	guest_sim_page(g, bare)[4000] ^= 1;
	CHECK_EQ(guest_sim_verify(g, &err), 0);
	remove_source(s);
}

static void two_running_at_once_is_noticed(void)
{
	struct guest_sim_options o = idle();
	uint64_t before = guest_sim_overlaps();
	struct guest_source *a = make_source(&o, NULL), *b = make_source(&o, NULL);

	CHECK_EQ(guest_sim_overlaps(), before + 1);
	CHECK_EQ(guest_sim_running(guest_sim_of_source(a)->uuid), 2);
	remove_source(a);
	remove_source(b);
}

/* ---- options and contents ---- */

static void options_are_checked(void)
{
	struct guest_sim *g;
	struct pgr_error err;

#define BAD(change)                                                \
	do {                                                       \
		struct guest_sim_options o = idle();               \
		change;                                            \
		CHECK_EQ(guest_sim_create(&o, &g, &err), -EINVAL); \
		CHECK(strlen(err.text) > 20);                      \
	} while (0)
	BAD(o.memory = 0);
	BAD(o.memory = 4096);
	BAD(o.memory = MIB + 1);
	BAD(o.memory = PGR_PFNS_MAX * PGR_PAGE_SIZE + PGR_PAGE_SIZE);
	BAD(o.vcpus = 65);
	BAD(o.absent_permille = 901);
	BAD(o.nr_regions = 9);
	BAD(o.nr_regions = 1);
	BAD((o.nr_regions = 1, o.region[0].share = 1, o.region[0].content = 9));
	BAD(o.workload.write_bytes = 7);
	BAD(o.workload.write_bytes = 4081);
	BAD(o.workload.pattern = 3);
	BAD(o.workload.working_set = MIB);
	BAD(o.workload.working_set = 1ull << 40);
	BAD(o.page_table_pages = 17);
#undef BAD
	nothing_left();
}

static struct guest_sim *content_guest(enum guest_sim_content c, uint64_t seed)
{
	struct guest_sim_options o = idle();
	struct guest_sim *g = NULL;

	o.seed = seed;
	o.nr_regions = 1;
	o.region[0].content = c;
	o.region[0].share = 1;
	CHECK_EQ(guest_sim_create(&o, &g, NULL), 0);
	return g;
}

static void contents_follow_from_the_seed(void)
{
	uint64_t digests[GUEST_SIM_MIXED + 1];

	for (unsigned c = GUEST_SIM_ZERO; c <= GUEST_SIM_MIXED; c++) {
		uint64_t digest, pages;

		for (unsigned again = 0; again < 2; again++) {
			struct guest_sim *g = content_guest(c, 11);

			guest_sim_digest(g, &digest, &pages);
			CHECK_EQ(pages, 256);
			if (again)
				CHECK_EQ(digest, digests[c]);
			digests[c] = digest;
			guest_sim_destroy(g);
		}
		for (unsigned other = 0; other < c; other++)
			CHECK(digests[other] != digests[c]);
		if (c == GUEST_SIM_TEXT || c == GUEST_SIM_RANDOM) {
			struct guest_sim *g = content_guest(c, 12);

			guest_sim_digest(g, &digest, &pages);
			CHECK(digest != digests[c]);
			guest_sim_destroy(g);
		}
	}
	nothing_left();
}

static void regions_follow_one_another(void)
{
	struct guest_sim_options o = idle();
	struct guest_sim *g;
	uint8_t zero[PGR_PAGE_SIZE] = {0};

	o.nr_regions = 3;
	o.region[0].content = GUEST_SIM_ZERO;
	o.region[0].share = 1;
	o.region[1].content = GUEST_SIM_BINARIES;
	o.region[1].share = 2;
	o.region[2].content = GUEST_SIM_TEXT;
	o.region[2].share = 1;
	CHECK_EQ(guest_sim_create(&o, &g, NULL), 0);
	for (uint64_t pfn = 0; pfn < 64; pfn++)
		CHECK_MEM(guest_sim_page(g, pfn), zero, PGR_PAGE_SIZE);
	CHECK_MEM(guest_sim_page(g, 64), "\177ELF", 4);
	for (uint64_t pfn = 192; pfn < 256; pfn++)
		CHECK(unit_differ(guest_sim_page(g, pfn), zero, PGR_PAGE_SIZE) < PGR_PAGE_SIZE);
	guest_sim_destroy(g);
}

static void description_and_page_tables(void)
{
	struct guest_sim_options o = busy(GUEST_SIM_TRACK_AUTO);
	struct guest_source *s = make_source(&o, NULL);
	struct guest_description d;
	unsigned absent = 0, tables = 0;
	struct guest_batch b;
	uint64_t pfn;

	CHECK_EQ(s->ops->describe(s, &d, NULL), 0);
	CHECK_EQ(d.info.kind, PGR_GUEST_SIM);
	CHECK_STR(d.info.name, "busy");
	CHECK_EQ(d.info.nr_pfns, 2048);
	CHECK_EQ(d.info.vcpus, 2);
	CHECK(d.info.can_log_dirty);
	CHECK(d.config && strlen(d.config) > 0);
	CHECK(d.nr_leaves > 0 && d.nr_msrs > 0);
	for (pfn = 0; pfn < d.info.nr_pfns; pfn++) {
		CHECK_EQ(s->ops->read(s, 3, &pfn, 1, &b, NULL), 0);
		CHECK_EQ(!b.page[0], !b.base);
		if (!b.page[0]) {
			absent++;
			CHECK_EQ(b.type[0], 0);
		} else if (b.type[0]) {
			const uint64_t *entry = (const uint64_t *)(const void *)b.page[0];

			tables++;
			for (unsigned i = 0; i < 512; i++)
				CHECK(!(entry[i] & 1) || entry[i] >> 12 < d.info.nr_pfns);
		}
		s->ops->release(s, 3, &b);
	}
	CHECK_EQ(tables, 70);
	CHECK(absent > 100 && absent < 350);
	CHECK_EQ(d.info.populated, d.info.nr_pfns - absent);
	guest_description_free(&d);
	guest_description_free(&d);
	guest_description_free(NULL);
	remove_source(s);
}

static void untrackable_guest_says_so(void)
{
	struct guest_sim_options o = idle();
	struct guest_source *s;
	struct guest_description d;
	struct pgr_error err;

	o.track = GUEST_SIM_TRACK_NONE;
	s = make_source(&o, NULL);
	CHECK_EQ(s->ops->describe(s, &d, NULL), 0);
	CHECK(!d.info.can_log_dirty);
	CHECK(strlen(d.info.why_not) > 20);
	CHECK_EQ(s->ops->log_start(s, &err), -EOPNOTSUPP);
	guest_description_free(&d);
	remove_source(s);
}

static void read_gives_runs_and_refuses_strangers(void)
{
	struct guest_sim_options o = idle();
	struct guest_source *s = make_source(&o, NULL);
	uint64_t pfns[PGR_BATCH_MAX + 1];
	struct guest_batch b;
	struct pgr_error err;

	for (unsigned i = 0; i <= PGR_BATCH_MAX; i++)
		pfns[i] = i;
	CHECK_EQ(s->ops->read(s, 0, pfns, PGR_BATCH_MAX, &b, &err), 0);
	CHECK_EQ(b.nr, PGR_BATCH_MAX);
	CHECK(b.base == b.page[0] && b.page[255] == b.base + 255 * PGR_PAGE_SIZE);
	CHECK_EQ(s->ops->read(s, 0, pfns, PGR_BATCH_MAX + 1, &b, &err), -EINVAL);
	pfns[1] = 5;
	CHECK_EQ(s->ops->read(s, 0, pfns, 3, &b, &err), 0);
	CHECK(!b.base && b.page[1]);
	pfns[2] = 256;
	CHECK_EQ(s->ops->read(s, 0, pfns, 3, &b, &err), -EINVAL);
	CHECK_HAS(err.text, "256");
	pfns[2] = UINT64_MAX;
	CHECK_EQ(s->ops->read(s, 0, pfns, 3, &b, &err), -EINVAL);
	remove_source(s);
}

/* ---- running and not running ---- */

static void suspend_resume_throttle(void)
{
	struct guest_sim_options o = busy(GUEST_SIM_TRACK_AUTO);
	struct guest_source *s = make_source(&o, NULL), *second;
	struct guest_sim *g = guest_sim_of_source(s);
	struct pgr_error err;
	struct guest_sim_status st;
	uint64_t digest[2], pages;

	CHECK_EQ(guest_sim_source_open(g, NULL, 0, &second, &err), -EBUSY);
	CHECK_EQ(s->ops->resume(s, &err), 0); /* never stopped: legal */
	CHECK_EQ(s->ops->state(s, to_sink, NULL, &err), -EBUSY);
	wait_for_writes(g, 10);
	CHECK_EQ(s->ops->suspend(s, 60000, &err), 0);
	guest_sim_status(g, &st);
	CHECK(st.suspend_ns > 0);
	guest_sim_digest(g, &digest[0], &pages);
	nap_ms(20);
	guest_sim_digest(g, &digest[1], &pages);
	CHECK_EQ(digest[0], digest[1]);
	CHECK_EQ(writes_of(g), st.writes);
	CHECK_EQ(s->ops->suspend(s, 60000, &err), 0);
	CHECK_EQ(guest_sim_running(g->uuid), 0);
	CHECK_EQ(s->ops->resume(s, &err), 0);
	CHECK_EQ(s->ops->resume(s, &err), 0);
	CHECK_EQ(guest_sim_running(g->uuid), 1);
	wait_for_writes(g, 10);
	CHECK_EQ(s->ops->throttle(s, 0, &err), -EINVAL);
	CHECK_EQ(s->ops->throttle(s, 101, &err), -EINVAL);
	CHECK_EQ(s->ops->throttle(s, 30, &err), 0);
	s->ops->close(s);
	guest_sim_status(g, &st);
	CHECK_EQ(st.speed, 100);
	CHECK_EQ(st.life, GUEST_SIM_RUNNING);
	guest_sim_destroy(g);
	nothing_left();
}

#define PACE_TRIES 8u

/* Writes a second at a speed. */
static double pace_at(struct guest_source *s, unsigned percent)
{
	struct guest_sim *g = guest_sim_of_source(s);
	uint64_t writes, begin;

	CHECK_EQ(s->ops->throttle(s, percent, NULL), 0);
	nap_ms(30); /* past the present period */
	writes = writes_of(g);
	begin = sim_now_ns();
	do {
		wait_for_writes(g, 50);
	} while (sim_now_ns() - begin < 150000000);
	return (double)(writes_of(g) - writes) * 1e9 / (double)(sim_now_ns() - begin);
}

static void throttle_slows_limited_and_unlimited(void)
{
	for (unsigned limited = 0; limited < 2; limited++) {
		struct guest_sim_options o = busy(GUEST_SIM_TRACK_NONE);
		struct guest_source *s;
		double fast = 0, slow = 0;

		o.vcpus = 1;
		o.workload.rate = limited ? 20000ull * PGR_PAGE_SIZE : 0;
		s = make_source(&o, NULL);
		/* 25 times is asked for; a quarter, and several tries, leave room for a busy machine and none for a throttle that does nothing. */
		for (unsigned i = 0; i < PACE_TRIES && slow * 4 >= fast; i++) {
			fast = pace_at(s, 100);
			slow = pace_at(s, 4);
		}
		CHECK_MSG(slow * 4 < fast, "%.0f writes/s at 4 percent, %.0f at 100", slow, fast);
		remove_source(s);
	}
}

static void a_stopped_log_releases_writers(enum guest_sim_track t)
{
	struct guest_sim_options o = busy(t);
	struct guest_source *s = make_source(&o, NULL);
	struct guest_sim *g = guest_sim_of_source(s);
	struct pgr_error err;

	for (unsigned i = 0; i < 50; i++) {
		CHECK_EQ(s->ops->log_start(s, &err), 0);
		wait_for_writes(g, 5);
		CHECK_EQ(s->ops->log_stop(s, &err), 0);
	}
	wait_for_writes(g, 50);
	CHECK_EQ(s->ops->log_start(s, &err), 0);
	/* Destroyed while it is logged and written. */
	CHECK_EQ(s->ops->destroy(s, &err), 0);
	CHECK(!guest_sim_of_source(s));
	CHECK_EQ(s->ops->suspend(s, 1, &err), -ENOENT);
	s->ops->close(s);
	nothing_left();
}

static void logging_on_and_off_under_load(void)
{
	for_each_tracker(a_stopped_log_releases_writers);
}

static void balloon_is_logged(void)
{
	struct guest_sim_options o = idle();
	struct guest_source *s = make_source(&o, NULL);
	struct guest_sim *g = guest_sim_of_source(s);
	uint64_t bitmap[4] = {0}, count, pfn = 200;
	struct guest_batch b;
	struct pgr_error err;

	CHECK_EQ(s->ops->log_start(s, &err), 0);
	CHECK_EQ(guest_sim_balloon(g, pfn, false, &err), 0);
	CHECK_EQ(guest_sim_balloon(g, 256, false, &err), -EINVAL);
	CHECK_EQ(s->ops->log_clean(s, bitmap, &count, &err), 0);
	CHECK_EQ(bitmap[3], 1ull << 8);
	CHECK_EQ(s->ops->read(s, 0, &pfn, 1, &b, &err), 0);
	CHECK(!b.page[0]);
	CHECK_EQ(guest_sim_verify(g, &err), 0);
	CHECK_EQ(guest_sim_balloon(g, pfn, true, &err), 0);
	CHECK_EQ(guest_sim_balloon(g, pfn, true, &err), 0);
	CHECK_EQ(s->ops->log_clean(s, bitmap, &count, &err), 0);
	CHECK(guest_sim_page(g, pfn)[0] == 0);
	CHECK_EQ(guest_sim_verify(g, &err), 0);
	remove_source(s);
}

/* ---- the sink ---- */

static void sink_refuses_what_is_out_of_order(void)
{
	struct guest_sim_options o = idle();
	struct guest_source *s = make_source(&o, NULL);
	struct guest_sink *k = make_sink(NULL, NULL);
	struct guest_description d;
	struct pgr_error err;
	struct guest_batch b;
	uint64_t pfn = 3, far = 256;
	uint8_t type = PGR_TYPE_L1, bad[] = {5, 16, 13};

	CHECK_EQ(s->ops->describe(s, &d, &err), 0);
	CHECK_EQ(k->ops->map(k, 0, &pfn, 1, &b, &err), -EINVAL);
	CHECK_EQ(k->ops->start(k, &err), -EINVAL);
	CHECK_EQ(k->ops->destroy(k, &err), 0);
	CHECK_EQ(k->ops->create(k, &d, &err), 0);
	CHECK_EQ(k->ops->create(k, &d, &err), -EINVAL);
	CHECK_EQ(k->ops->map(k, 0, &far, 1, &b, &err), -EINVAL);
	CHECK_EQ(k->ops->discard(k, 0, &far, 1, &err), -EINVAL);
	CHECK_EQ(k->ops->set_types(k, 0, &far, &type, 1, &err), -EINVAL);
	CHECK_EQ(k->ops->set_types(k, 0, &pfn, &type, 1, &err), -EPROTO);
	CHECK_EQ(k->ops->map(k, 0, &pfn, 1, &b, &err), 0);
	b.page[0][17] = 5;
	k->ops->unmap(k, 0, &b);
	CHECK_EQ(k->ops->set_types(k, 0, &pfn, &type, 1, &err), 0);
	for (unsigned i = 0; i < sizeof(bad); i++)
		CHECK_EQ(k->ops->set_types(k, 0, &pfn, &bad[i], 1, &err), -EPROTO);
	CHECK_EQ(guest_sim_type(guest_sim_of_sink(k), pfn), PGR_TYPE_L1);
	CHECK_EQ(k->ops->discard(k, 0, &pfn, 1, &err), 0);
	CHECK_EQ(k->ops->discard(k, 0, &pfn, 1, &err), 0);
	CHECK_EQ(guest_sim_type(guest_sim_of_sink(k), pfn), 0);
	CHECK_EQ(k->ops->map(k, 0, &pfn, 1, &b, &err), 0);
	CHECK_EQ(b.page[0][17], 0);
	CHECK_EQ(k->ops->finish(k, &err), -EPROTO);
	CHECK_HAS(err.text, "without SIM_STATE");
	CHECK_EQ(k->ops->start(k, &err), -EINVAL);
	CHECK_EQ(k->ops->state(k, PGR_REC_PV_INFO, "", 0, &err), -EPROTO);
	CHECK_EQ(guest_sim_count(NULL), 2);
	k->ops->close(k); /* destroys what was not started */
	CHECK_EQ(guest_sim_count(NULL), 1);
	guest_description_free(&d);
	remove_source(s);
	nothing_left();
}

static void sink_prechecks(void)
{
	struct guest_sim_options o = idle();
	struct guest_source *s = make_source(&o, NULL);
	struct guest_sim_sink_options small = {.memory_free = MIB - PGR_PAGE_SIZE};
	struct guest_sim_sink_options enough = {.memory_free = MIB};
	struct guest_sink *k = make_sink(&small, NULL), *fits = make_sink(&enough, NULL);
	struct guest_refusals r;
	struct guest_description d;

	CHECK_EQ(s->ops->describe(s, &d, NULL), 0);
	CHECK_EQ(fits->ops->precheck(fits, &d, &r, NULL), 0);
	CHECK_EQ(r.nr, 0);
	CHECK_EQ(k->ops->precheck(k, &d, &r, NULL), 0);
	CHECK_EQ(r.nr, 1);
	CHECK_HAS(r.text[0], "1020 KiB are free");
	d.info.kind = PGR_GUEST_PV64;
	d.info.nr_pfns = UINT64_MAX;
	d.info.vcpus = 0;
	CHECK_EQ(fits->ops->precheck(fits, &d, &r, NULL), 0);
	CHECK_EQ(r.nr, 3);
	CHECK_EQ(fits->ops->create(fits, &d, NULL), -EINVAL);
	CHECK_EQ(guest_sim_count(NULL), 1);
	guest_description_free(&d);
	k->ops->close(k);
	fits->ops->close(fits);
	remove_source(s);
}

static void refusals_stay_in_bounds(void)
{
	struct guest_refusals r = {0};

	for (unsigned i = 0; i < GUEST_REFUSALS_MAX + 3; i++)
		guest_refuse(&r, "refusal %u\nof many %0300u", i, i);
	CHECK_EQ(r.nr, GUEST_REFUSALS_MAX);
	CHECK_HAS(r.text[0], "refusal 0 of many 000");
	CHECK_HAS(r.text[15], "refusal 15 ");
	CHECK_EQ(strlen(r.text[3]), sizeof(r.text[3]) - 1);
}

static void started_paused_waits(void)
{
	struct guest_sim_options o = busy(GUEST_SIM_TRACK_AUTO);
	struct guest_source *s = make_source(&o, NULL);
	struct guest_sim_sink_options ko = {.start_paused = true};
	struct guest_sink *k = make_sink(&ko, NULL);
	struct guest_sim *g;
	struct pgr_error err = PGR_ERROR_NONE;
	int rc = carry(s, k, 1, &err);
	uint64_t before;

	CHECK_MSG(!rc, "%s", err.text);
	CHECK_EQ(s->ops->destroy(s, &err), 0);
	s->ops->close(s);
	g = guest_sim_of_sink(k);
	CHECK_EQ(k->ops->start(k, &err), 0);
	CHECK_EQ(guest_sim_running(g->uuid), 1);
	before = writes_of(g);
	nap_ms(20);
	CHECK_EQ(writes_of(g), before);
	guest_sim_unpause(g);
	wait_for_writes(g, 10);
	check_healthy(g);
	k->ops->close(k);
	guest_sim_destroy(g);
	nothing_left();
}

/* ---- hostile state ---- */

struct captured {
	uint8_t *body;
	size_t length;
};

static int capture(void *ctx, uint32_t type, const void *body, size_t length, struct pgr_error *err)
{
	struct captured *c = ctx;

	CHECK_EQ(type, PGR_REC_SIM_STATE);
	CHECK(length <= PGR_RECORD_MAX);
	c->body = malloc(length);
	if (!c->body)
		return pgr_fail(err, -ENOMEM, "no memory to capture the state");
	c->length = length;
	memcpy(c->body, body, length);
	return 0;
}

/* Take a state alone, over a memory that is all there. */
static int unpack(const void *body, size_t length, struct sim_memory *m, struct pgr_error *err)
{
	static struct sim_workload w;
	struct sim_fixed fixed;
	/* Of the exact size, so that a sanitizer sees every byte read behind it. */
	uint8_t *exact = malloc(length ? length : 1);
	int rc;

	memcpy(exact, body, length);
	sim_workload_init(&w, m);
	rc = sim_state_unpack(exact, length, &w, &fixed, err);
	if (!rc) {
		uint8_t *again;
		size_t again_length;

		CHECK_EQ(sim_state_pack(&w, &fixed, &again, &again_length, NULL), 0);
		CHECK_EQ(again_length, length);
		CHECK_MEM(again, exact, length);
		free(again);
	}
	sim_workload_free(&w);
	free(exact);
	return rc;
}

static void hostile_state_is_refused(void)
{
	struct guest_sim_options o = busy(GUEST_SIM_TRACK_NONE);
	struct guest_source *s;
	struct captured c = {0};
	struct sim_memory m;
	struct pgr_error err;
	unsigned refused = 0;

	o.workload.working_set = 8 * PGR_PAGE_SIZE;
	s = make_source(&o, NULL);
	CHECK_EQ(s->ops->suspend(s, 60000, &err), 0);
	CHECK_EQ(s->ops->state(s, capture, &c, &err), 0);
	CHECK_EQ(c.length, 64 + 2 * 32 + 8 * 8);
	m = guest_sim_of_source(s)->memory;
	CHECK_EQ(unpack(c.body, c.length, &m, &err), 0);
	for (size_t length = 0; length < c.length; length++) {
		CHECK_EQ(unpack(c.body, length, &m, &err), -EPROTO);
		CHECK_HAS(err.text, "SIM_STATE");
	}
	/* Any bit: refused with a sentence, or taken as it is; a wrong size, order or range is always refused. */
	for (size_t bit = 0; bit < c.length * 8; bit++) {
		int rc;

		c.body[bit / 8] ^= (uint8_t)(1u << bit % 8);
		rc = unpack(c.body, c.length, &m, &err);
		CHECK(!rc || rc == -EPROTO);
		refused += rc == -EPROTO;
		c.body[bit / 8] ^= (uint8_t)(1u << bit % 8);
	}
	/* Magic, vcpus, nr_pfns (64 bits), reserved fields, nr_pages: at least these bits matter always. */
	CHECK(refused >= 32 + 31 + 64 + 32 + 2 * (32 + 32));
	c.body = realloc(c.body, c.length + 8);
	memset(c.body + c.length, 0, 8);
	CHECK_EQ(unpack(c.body, c.length + 8, &m, &err), -EPROTO);
	free(c.body);
	remove_source(s);
}

static void workload_must_fit_the_memory_that_came(void)
{
	struct guest_sim_options o = busy(GUEST_SIM_TRACK_NONE);
	struct guest_source *s = make_source(&o, NULL);
	struct guest_sink *k = make_sink(NULL, NULL);
	struct sink_state_ctx ctx = {k};
	struct guest_description d;
	struct pgr_error err;

	CHECK_EQ(s->ops->describe(s, &d, &err), 0);
	CHECK_EQ(k->ops->create(k, &d, &err), 0);
	CHECK_EQ(s->ops->suspend(s, 60000, &err), 0);
	CHECK_EQ(s->ops->state(s, to_sink, &ctx, &err), 0);
	CHECK_EQ(s->ops->state(s, to_sink, &ctx, &err), -EPROTO); /* twice */
	CHECK_EQ(k->ops->finish(k, &err), -EPROTO);
	CHECK_HAS(err.text, "holds no memory");
	k->ops->close(k);
	guest_description_free(&d);
	remove_source(s);
	nothing_left();
}

/* ---- faults ---- */

/* What a session does after a failure: the guest runs at the source and nothing is at the sink. */
static void fails_and_recovers(enum guest_sim_fault_point p, unsigned nth)
{
	struct guest_sim_options o = busy(GUEST_SIM_TRACK_AUTO);
	struct guest_sim_fault f = {.point = p, .nth = nth};
	bool at_sink = p >= GUEST_SIM_FAULT_PRECHECK;
	struct guest_source *s;
	struct guest_sink *k;
	struct guest_sim *g;
	struct pgr_error err = PGR_ERROR_NONE;
	int rc;

	o.memory = 2 * MIB; /* two batches in the first round, whatever the guest writes */
	o.page_table_pages = 9;
	o.workload.working_set = MIB / 8;
	s = make_source(&o, at_sink ? NULL : &f);
	k = make_sink(NULL, at_sink ? &f : NULL);
	g = guest_sim_of_source(s);
	rc = carry(s, k, 3, &err);
	if (!rc)
		rc = k->ops->start(k, &err);
	if (p == GUEST_SIM_FAULT_DESTROY && !rc)
		rc = s->ops->destroy(s, &err);
	CHECK_MSG(rc, "fault %s:%u did not strike", guest_sim_fault_name(p), nth);
	CHECK(strlen(err.text) > 10);
	CHECK_EQ(err.code, rc);
	if (p != GUEST_SIM_FAULT_DESTROY) {
		CHECK_EQ(k->ops->destroy(k, &err), 0);
		CHECK_EQ(k->ops->destroy(k, &err), 0);
		CHECK_EQ(s->ops->resume(s, &err), 0);
		CHECK_EQ(guest_sim_running(g->uuid), 1);
		wait_for_writes(g, 10);
		check_healthy(g);
		/* The fault is spent: now it works. */
		s->ops->close(s);
		CHECK_EQ(guest_sim_source_open(g, NULL, 0, &s, &err), 0);
		rc = carry(s, k, 1, &err);
		CHECK_MSG(!rc, "%s", err.text);
		CHECK_EQ(k->ops->start(k, &err), 0);
	}
	CHECK_EQ(s->ops->destroy(s, &err), 0);
	s->ops->close(s);
	CHECK_EQ(guest_sim_count(NULL), 1);
	CHECK_EQ(k->ops->destroy(k, &err), 0);
	k->ops->close(k);
	nothing_left();
}

static void every_fault_strikes_and_is_survived(void)
{
	for (unsigned p = GUEST_SIM_FAULT_NONE + 1; p < GUEST_SIM_FAULT_POINTS; p++) {
		/* These are not on the way of carry(). */
		if (p == GUEST_SIM_FAULT_RESUME || p == GUEST_SIM_FAULT_SINK_DESTROY ||
		    p == GUEST_SIM_FAULT_SUSPEND_TIMEOUT || p == GUEST_SIM_FAULT_CONNECTED)
			continue;
		fails_and_recovers(p, 1);
	}
	fails_and_recovers(GUEST_SIM_FAULT_LOG_CLEAN, 3);
	fails_and_recovers(GUEST_SIM_FAULT_READ, 2);
	fails_and_recovers(GUEST_SIM_FAULT_MAP, 2);
	nothing_left();
}

static void suspend_resume_and_destroy_may_fail_alone(void)
{
	struct guest_sim_options o = busy(GUEST_SIM_TRACK_AUTO);
	struct guest_sim_fault f[] = {{.point = GUEST_SIM_FAULT_SUSPEND_TIMEOUT},
				      {.point = GUEST_SIM_FAULT_RESUME, .nth = 2, .code = -EPERM}};
	struct guest_sim_fault d = {.point = GUEST_SIM_FAULT_SINK_DESTROY};
	struct guest_source *s;
	struct guest_sink *k = make_sink(NULL, &d);
	struct guest_sim *g;
	struct pgr_error err;

	CHECK_EQ(guest_sim_source_create(&o, f, 2, &s, &err), 0);
	g = guest_sim_of_source(s);
	CHECK_EQ(s->ops->suspend(s, 5, &err), -ETIMEDOUT);
	CHECK_HAS(err.text, "runs on");
	CHECK_EQ(guest_sim_running(g->uuid), 1);
	wait_for_writes(g, 10);
	CHECK_EQ(s->ops->suspend(s, 60000, &err), 0);
	CHECK_EQ(s->ops->resume(s, &err), 0);
	CHECK_EQ(s->ops->suspend(s, 60000, &err), 0);
	CHECK_EQ(s->ops->resume(s, &err), -EPERM);
	CHECK_EQ(guest_sim_running(g->uuid), 0);
	CHECK_EQ(s->ops->resume(s, &err), 0);
	CHECK_EQ(k->ops->destroy(k, &err), -EIO);
	CHECK_EQ(k->ops->destroy(k, &err), 0);
	k->ops->close(k);
	remove_source(s);
}

static void fault_names(void)
{
	struct guest_sim_fault f;
	struct pgr_error err;
	const char *bad[] = {"",	"read:", "read:0", "read:x",	      "read:1x",
			     "read:-1", "reads", "none",   "read:99999999999"};

	for (unsigned p = GUEST_SIM_FAULT_NONE + 1; p < GUEST_SIM_FAULT_POINTS; p++) {
		CHECK_EQ(guest_sim_fault_parse(guest_sim_fault_name(p), &f, &err), 0);
		CHECK_EQ(f.point, p);
		CHECK_EQ(f.nth, 1);
	}
	CHECK_EQ(guest_sim_fault_parse("log-clean:17", &f, &err), 0);
	CHECK_EQ(f.point, GUEST_SIM_FAULT_LOG_CLEAN);
	CHECK_EQ(f.nth, 17);
	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		CHECK_EQ(guest_sim_fault_parse(bad[i], &f, &err), -EINVAL);
}

/* Fail the first allocation, the second ... until all of making, describing and carrying a guest succeeds. */
static void every_allocation_may_fail(void)
{
	unsigned long n = 0;
	unsigned failures = 0;
	bool done = false;

	while (!done) {
		struct guest_sim_options o = idle();
		struct guest_source *s = NULL;
		struct guest_sink *k = NULL;
		struct guest_description d = {0};
		struct pgr_error err = PGR_ERROR_NONE;
		struct captured c = {0};
		int rc;

		o.workload.working_set = MIB / 16;
		o.workload.rate = MIB;
		o.nr_regions = 1;
		o.region[0].content = GUEST_SIM_TEXT;
		o.region[0].share = 1;
		unit_fail_alloc(++n);
		rc = guest_sim_source_create(&o, NULL, 0, &s, &err);
		if (!rc)
			rc = guest_sim_sink_open(NULL, NULL, 0, &k, &err);
		if (!rc)
			rc = s->ops->describe(s, &d, &err);
		if (!rc)
			rc = k->ops->create(k, &d, &err);
		if (!rc)
			rc = s->ops->log_start(s, &err);
		if (!rc)
			rc = s->ops->suspend(s, 60000, &err);
		if (!rc)
			rc = s->ops->state(s, capture, &c, &err);
		if (!rc)
			rc = k->ops->state(k, PGR_REC_SIM_STATE, c.body, c.length, &err);
		done = unit_fail_alloc(0) < n;
		if (!done && rc) {
			failures++;
			CHECK_MSG(strlen(err.text) > 10, "allocation %lu: code %d without a text",
				  n, rc);
		} else if (done) {
			CHECK_MSG(!rc, "%s", err.text);
		}
		free(c.body);
		guest_description_free(&d);
		if (k)
			k->ops->close(k);
		if (s)
			remove_source(s);
		nothing_left();
	}
	CHECK(failures > 10);
}

UNIT_MAIN(TEST(runs_of_bits), TEST(exactly_the_written_pages_are_reported), TEST(no_write_is_lost),
	  TEST(mprotect_reports_blocks_of_large_guests), TEST(mprotect_survives_too_many_mappings),
	  TEST(other_faults_still_kill), TEST(running_guest_moves_and_goes_on),
	  TEST(logging_on_and_off_under_load), TEST(stale_page_is_found),
	  TEST(the_verifier_thread_finds_it_by_itself), TEST(every_kind_of_damage_is_found),
	  TEST(two_running_at_once_is_noticed), TEST(options_are_checked),
	  TEST(contents_follow_from_the_seed), TEST(regions_follow_one_another),
	  TEST(description_and_page_tables), TEST(untrackable_guest_says_so),
	  TEST(read_gives_runs_and_refuses_strangers), TEST(suspend_resume_throttle),
	  TEST(throttle_slows_limited_and_unlimited), TEST(balloon_is_logged),
	  TEST(sink_refuses_what_is_out_of_order), TEST(sink_prechecks),
	  TEST(refusals_stay_in_bounds), TEST(started_paused_waits), TEST(hostile_state_is_refused),
	  TEST(workload_must_fit_the_memory_that_came), TEST(every_fault_strikes_and_is_survived),
	  TEST(suspend_resume_and_destroy_may_fail_alone), TEST(fault_names),
	  TEST(every_allocation_may_fail))
