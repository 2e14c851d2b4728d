// SPDX-License-Identifier: MIT
/*
 * What a simulated guest does: its vCPU threads and its verifier.
 *
 * A page of a working set begins with a head that names it and its generation; the rest is cut into chunks of write_bytes. The write
 * that makes generation g fills chunk g mod n from (seed, pfn, g). So the generation says for each chunk which write made it last,
 * and the whole page can be checked against a number that is kept elsewhere; chunks that no write has reached keep what the guest was made with.
 *
 * Safe point: between two writes, when page, generation and generator agree. A held workload has all threads there. A vCPU holds its lock
 * during a write, also while the write waits for a tracker, so the verifier never sees half a write.
 */
#include "migrate/guest_sim_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct page_head {
	uint64_t tag; /* from seed and pfn: a page in the wrong place is found */
	uint64_t generation;
};
#define BODY_BYTES ((unsigned)(PGR_PAGE_SIZE - sizeof(struct page_head)))
_Static_assert(sizeof(struct page_head) == 16, "options promise 4080 bytes of body");

/* A throttled thread runs for a part of this and sleeps for the rest. */
#define DUTY_NS 10000000ull
/* Behind its rate by more than this (it was stopped or waited for a tracker) a vCPU does not catch up. */
#define CATCH_UP_NS 20000000ull
/* Sleeping for less costs more than it saves. */
#define NAP_NS	      500000ull
#define VERIFY_NAP_NS 1000000ull
/* Pages that the verifier checks between two naps. */
#define VERIFY_RUN 16u

/* ---- a page ---- */

static unsigned chunk_count(const struct sim_workload *w)
{
	return (BODY_BYTES + w->write_bytes - 1) / w->write_bytes;
}

static unsigned chunk_bytes(const struct sim_workload *w, unsigned chunk)
{
	unsigned at = chunk * w->write_bytes;

	return at + w->write_bytes > BODY_BYTES ? BODY_BYTES - at : w->write_bytes;
}

static uint64_t chunk_seed(const struct sim_workload *w, uint32_t pfn, uint32_t generation)
{
	return sim_mix(w->seed ^ (uint64_t)pfn << 32, generation);
}

static void page_begin(const struct sim_workload *w, const struct sim_page_state *p)
{
	struct page_head head = {.tag = sim_mix(w->seed, p->pfn), .generation = p->generation};

	memcpy(sim_memory_page(w->memory, p->pfn), &head, sizeof(head));
}

static void page_write(const struct sim_workload *w, struct sim_page_state *p)
{
	unsigned chunk;
	uint8_t *body = sim_memory_page(w->memory, p->pfn) + sizeof(struct page_head);

	/* A page that was written 2^32 times rests: its generation must not come round. */
	if (p->generation == UINT32_MAX)
		return;
	p->generation++;
	chunk = p->generation % chunk_count(w);
	sim_content_fill(w->content, chunk_seed(w, p->pfn, p->generation),
			 body + (size_t)chunk * w->write_bytes, chunk_bytes(w, chunk));
	page_begin(w, p);
}

/* What is wrong with a page, as text; true: nothing. */
static bool page_right(const struct sim_workload *w, const struct sim_page_state *p, char why[200])
{
	const uint8_t *page = sim_memory_page(w->memory, p->pfn);
	unsigned chunks = chunk_count(w);
	uint8_t expected[PGR_PAGE_SIZE];
	struct page_head head;

	memcpy(&head, page, sizeof(head));
	if (head.tag != sim_mix(w->seed, p->pfn)) {
		snprintf(why, 200,
			 "pfn %" PRIu32
			 " is not the page that the workload wrote there: tag %016" PRIx64,
			 p->pfn, head.tag);
		return false;
	}
	if (head.generation != p->generation) {
		snprintf(why, 200,
			 "pfn %" PRIu32 " is of generation %" PRIu64 ", written last was %" PRIu32
			 "%s",
			 p->pfn, head.generation, p->generation,
			 head.generation < p->generation ? ": a stale page" : "");
		return false;
	}
	for (unsigned chunk = 0; chunk < chunks; chunk++) {
		uint32_t age = (p->generation % chunks + chunks - chunk) % chunks;

		/* Not written yet (generation 0 is the page as it was made). */
		if (age >= p->generation)
			continue;
		sim_content_fill(w->content, chunk_seed(w, p->pfn, p->generation - age), expected,
				 chunk_bytes(w, chunk));
		if (0 != memcmp(expected, page + sizeof(head) + (size_t)chunk * w->write_bytes,
				chunk_bytes(w, chunk))) {
			snprintf(why, 200,
				 "pfn %" PRIu32 ", generation %" PRIu32
				 ": bytes %u to %u are not those of write %" PRIu32,
				 p->pfn, p->generation,
				 (unsigned)sizeof(head) + chunk * w->write_bytes,
				 (unsigned)sizeof(head) + chunk * w->write_bytes +
					 chunk_bytes(w, chunk) - 1,
				 p->generation - age);
			return false;
		}
	}
	return true;
}

/* ---- the threads ---- */

static struct timespec deadline(uint64_t at_ns)
{
	return (struct timespec){.tv_sec = (time_t)(at_ns / 1000000000u),
				 .tv_nsec = (long)(at_ns % 1000000000u)};
}

/* Sleep until then, or until the workload is held or ends. */
static void nap(struct sim_workload *w, uint64_t until_ns)
{
	struct timespec ts = deadline(until_ns);

	pthread_mutex_lock(&w->lock);
	while (!atomic_load(&w->hold) && !atomic_load(&w->quit) &&
	       pthread_cond_timedwait(&w->changed, &w->lock, &ts) != ETIMEDOUT)
		;
	pthread_mutex_unlock(&w->lock);
}

/* The safe point. false: the thread shall end. */
static bool may_go_on(struct sim_workload *w)
{
	if (!atomic_load(&w->hold) && !atomic_load(&w->quit))
		return true;
	pthread_mutex_lock(&w->lock);
	w->parked++;
	pthread_cond_broadcast(&w->changed);
	while (atomic_load(&w->hold) && !atomic_load(&w->quit))
		pthread_cond_wait(&w->changed, &w->lock);
	w->parked--;
	pthread_mutex_unlock(&w->lock);
	return !atomic_load(&w->quit);
}

static uint32_t next_page(struct sim_vcpu *v)
{
	uint64_t r;
	uint32_t hot = v->nr_pages / 10 ? v->nr_pages / 10 : 1;

	switch (v->w->pattern) {
	case GUEST_SIM_UNIFORM:
		return (uint32_t)(sim_random(&v->rng) % v->nr_pages);
	case GUEST_SIM_HOT:
		r = sim_random(&v->rng);
		return (uint32_t)(r % 10 ? (r >> 8) % hot : (r >> 8) % v->nr_pages);
	default:
		return (uint32_t)(v->position++ % v->nr_pages);
	}
}

static void vcpu_write(struct sim_vcpu *v)
{
	pthread_mutex_lock(&v->lock);
	page_write(v->w, &v->page[next_page(v)]);
	v->writes++;
	pthread_mutex_unlock(&v->lock);
}

/* When a vCPU may write next. */
struct pace {
	uint64_t due;	     /* limited rate: of the next write */
	uint64_t duty_start; /* no limit: the present period */
};

static void pace_wait(struct sim_workload *w, struct pace *p)
{
	unsigned speed = atomic_load(&w->speed);
	uint64_t now = sim_now_ns();

	if (w->rate) {
		uint64_t interval = PGR_PAGE_SIZE * 1000000000ull * w->vcpus / w->rate;

		if (now > p->due + CATCH_UP_NS)
			p->due = now;
		p->due += interval * 100 / speed;
		if (p->due > now + NAP_NS)
			nap(w, p->due);
		return;
	}
	if (now - p->duty_start >= DUTY_NS)
		p->duty_start = now;
	if (now - p->duty_start >= DUTY_NS * speed / 100)
		nap(w, p->duty_start + DUTY_NS);
}

static void *vcpu_thread(void *arg)
{
	struct sim_vcpu *v = arg;
	struct pace pace = {0};

	while (may_go_on(v->w)) {
		if (v->nr_pages)
			vcpu_write(v);
		else
			nap(v->w, sim_now_ns() + 1000 * DUTY_NS);
		pace_wait(v->w, &pace);
	}
	return NULL;
}

/* Fails loudly: the first mismatch goes to standard error, all are counted. */
static bool check_page(struct sim_vcpu *v, uint32_t index, char why[200])
{
	struct sim_workload *w = v->w;
	bool right;

	pthread_mutex_lock(&v->lock);
	right = page_right(w, &v->page[index], why);
	pthread_mutex_unlock(&v->lock);
	atomic_fetch_add(&w->checked, 1);
	if (right)
		return true;
	pthread_mutex_lock(&w->lock);
	if (!atomic_fetch_add(&w->mismatches, 1)) {
		memcpy(w->mismatch, why, sizeof(w->mismatch));
		fprintf(stderr, "guest_sim: self-check failed: %s\n", why);
	}
	pthread_mutex_unlock(&w->lock);
	return false;
}

static void *verifier_thread(void *arg)
{
	struct sim_workload *w = arg;
	unsigned vcpu = 0;
	uint32_t index = 0;
	char why[200];

	while (may_go_on(w)) {
		for (unsigned i = 0; i < VERIFY_RUN && !atomic_load(&w->hold); i++) {
			if (index < w->vcpu[vcpu].nr_pages) {
				check_page(&w->vcpu[vcpu], index++, why);
			} else {
				index = 0;
				vcpu = (vcpu + 1) % w->vcpus;
			}
		}
		nap(w, sim_now_ns() + VERIFY_NAP_NS);
	}
	return NULL;
}

int sim_workload_verify(struct sim_workload *w, struct pgr_error *err)
{
	char why[200];

	for (unsigned i = 0; i < w->vcpus; i++)
		for (uint32_t p = 0; p < w->vcpu[i].nr_pages; p++)
			if (!check_page(&w->vcpu[i], p, why))
				return pgr_fail(err, -EBADMSG, "guest_sim: self-check failed: %s",
						why);
	return 0;
}

/* ---- control ---- */

int sim_workload_init(struct sim_workload *w, struct sim_memory *m)
{
	pthread_condattr_t attr;

	*w = (struct sim_workload){.memory = m};
	atomic_store(&w->hold, true);
	atomic_store(&w->speed, 100);
	pthread_mutex_init(&w->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&w->changed, &attr);
	pthread_condattr_destroy(&attr);
	for (unsigned i = 0; i < SIM_VCPUS_MAX; i++) {
		w->vcpu[i].w = w;
		pthread_mutex_init(&w->vcpu[i].lock, NULL);
	}
	return 0;
}

static void join(struct sim_workload *w)
{
	pthread_mutex_lock(&w->lock);
	atomic_store(&w->quit, true);
	pthread_cond_broadcast(&w->changed);
	pthread_mutex_unlock(&w->lock);
	for (unsigned i = 0; i < w->threads; i++)
		pthread_join(i < w->vcpus ? w->vcpu[i].thread : w->verifier, NULL);
	w->threads = 0;
}

void sim_workload_free(struct sim_workload *w)
{
	join(w);
	for (unsigned i = 0; i < SIM_VCPUS_MAX; i++) {
		free(w->vcpu[i].page);
		pthread_mutex_destroy(&w->vcpu[i].lock);
	}
	pthread_cond_destroy(&w->changed);
	pthread_mutex_destroy(&w->lock);
}

int sim_workload_make(struct sim_workload *w, const struct guest_sim_options *o,
		      struct pgr_error *err)
{
	uint64_t wanted = o->workload.working_set / PGR_PAGE_SIZE;
	/* Not at the start of memory, as in a real guest. */
	uint64_t pfn = w->memory->nr_pfns / 8;

	w->seed = o->seed;
	w->rate = o->workload.rate;
	w->pattern = o->workload.pattern;
	w->content = o->workload.content == GUEST_SIM_RANDOM ? GUEST_SIM_RANDOM : GUEST_SIM_TEXT;
	w->write_bytes =
		o->workload.write_bytes ? (o->workload.write_bytes + 7) / 8 * 8 : BODY_BYTES;
	w->vcpus = o->vcpus ? o->vcpus : 1;
	for (unsigned i = 0; i < w->vcpus; i++) {
		struct sim_vcpu *v = &w->vcpu[i];
		uint64_t pages = wanted * (i + 1) / w->vcpus - wanted * i / w->vcpus;

		v->rng = sim_mix(o->seed, i);
		if (!pages)
			continue;
		v->page = calloc(pages, sizeof(*v->page));
		if (!v->page)
			return pgr_fail(err, -ENOMEM,
					"guest_sim: no memory for %" PRIu64 " generations", pages);
		for (; v->nr_pages < pages && pfn < w->memory->nr_pfns; pfn++) {
			if (!sim_bit(w->memory->present, pfn) ||
			    w->memory->type[pfn] != PGR_TYPE_ORDINARY)
				continue;
			v->page[v->nr_pages].pfn = (uint32_t)pfn;
			page_begin(w, &v->page[v->nr_pages++]);
		}
		if (v->nr_pages < pages)
			return pgr_fail(err, -EINVAL,
					"guest_sim: a working set of %" PRIu64
					" pages does not fit into the last 7/8 of %" PRIu64
					" pages less page tables and absent ones: make it smaller",
					wanted, w->memory->nr_pfns);
	}
	return 0;
}

int sim_workload_launch(struct sim_workload *w, struct pgr_error *err)
{
	for (w->threads = 0; w->threads <= w->vcpus; w->threads++) {
		struct sim_vcpu *v = &w->vcpu[w->threads];
		int rc = w->threads < w->vcpus
				 ? pthread_create(&v->thread, NULL, vcpu_thread, v)
				 : pthread_create(&w->verifier, NULL, verifier_thread, w);

		if (rc) {
			join(w);
			atomic_store(&w->quit, false);
			return pgr_fail_errno(err, -rc,
					      "guest_sim: cannot make a thread for the guest");
		}
	}
	return 0;
}

int sim_workload_hold(struct sim_workload *w, unsigned timeout_ms, struct pgr_error *err)
{
	struct timespec ts = deadline(sim_now_ns() + timeout_ms * 1000000ull);
	unsigned parked;

	pthread_mutex_lock(&w->lock);
	atomic_store(&w->hold, true);
	pthread_cond_broadcast(&w->changed);
	while (w->parked < w->threads)
		if (pthread_cond_timedwait(&w->changed, &w->lock, &ts) == ETIMEDOUT)
			break;
	parked = w->parked;
	pthread_mutex_unlock(&w->lock);
	if (parked < w->threads) {
		sim_workload_release(w);
		return pgr_fail(
			err, -ETIMEDOUT,
			"guest_sim: %u of %u threads of the guest reached a safe point in %u ms; it runs on: allow more time",
			parked, w->threads, timeout_ms);
	}
	return 0;
}

void sim_workload_release(struct sim_workload *w)
{
	pthread_mutex_lock(&w->lock);
	atomic_store(&w->hold, false);
	pthread_cond_broadcast(&w->changed);
	pthread_mutex_unlock(&w->lock);
}

void sim_workload_throttle(struct sim_workload *w, unsigned percent)
{
	atomic_store(&w->speed, percent);
}

uint64_t sim_workload_writes(struct sim_workload *w)
{
	uint64_t writes = 0;

	for (unsigned i = 0; i < w->vcpus; i++) {
		pthread_mutex_lock(&w->vcpu[i].lock);
		writes += w->vcpu[i].writes;
		pthread_mutex_unlock(&w->vcpu[i].lock);
	}
	return writes;
}

uint64_t *sim_workload_pages(struct sim_workload *w)
{
	uint64_t *map = calloc(sim_words(w->memory->nr_pfns), sizeof(*map));

	for (unsigned i = 0; map && i < w->vcpus; i++)
		for (uint32_t p = 0; p < w->vcpu[i].nr_pages; p++) {
			uint32_t pfn = w->vcpu[i].page[p].pfn;

			map[pfn / 64] |= 1ull << (pfn % 64);
		}
	return map;
}
