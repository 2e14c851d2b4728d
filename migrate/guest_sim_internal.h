/* SPDX-License-Identifier: MIT */
/* What the files of guest_sim share. The state diagram of a guest is in guest_sim_machine.c. */
#ifndef PAGURUS_GUEST_SIM_INTERNAL_H
#define PAGURUS_GUEST_SIM_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "migrate/guest_sim.h"

#define SIM_VCPUS_MAX 64u

static inline uint64_t sim_words(uint64_t bits)
{
	return (bits + 63) / 64;
}

/* splitmix64: one step of a generator whose state is a counter; also a good mixer of two numbers. */
static inline uint64_t sim_random(uint64_t *state)
{
	uint64_t x = *state += 0x9e3779b97f4a7c15ull;

	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ x >> 27) * 0x94d049bb133111ebull;
	return x ^ x >> 31;
}

static inline uint64_t sim_mix(uint64_t a, uint64_t b)
{
	uint64_t state = a ^ b * 0xd6e8feb86659fd93ull;

	return sim_random(&state);
}

uint64_t sim_now_ns(void);

/* ---- contents (guest_sim_content.c) ---- */

/* length bytes (a multiple of 8) of TEXT, RANDOM or ZERO that follow from seed alone. */
void sim_content_fill(enum guest_sim_content kind, uint64_t seed, uint8_t *to, size_t length);
/* Fill present pages of all memory as the options say. */
struct sim_memory;
int sim_content_memory(const struct guest_sim_options *o, struct sim_memory *m,
		       struct pgr_error *err);

/* ---- memory (guest_sim_memory.c) ---- */

struct sim_memory {
	uint8_t *base;
	uint64_t nr_pfns;
	_Atomic uint64_t *present; /* bitmap: holds memory */
	_Atomic uint64_t *changed; /* bitmap: present changed since the last log_clean */
	uint8_t *type;
};

int sim_memory_create(struct sim_memory *m, uint64_t nr_pfns, struct pgr_error *err);
void sim_memory_free(struct sim_memory *m);
/* Every page backed by a frame now, so that nothing is charged to the workload or the reader later. */
int sim_memory_populate(struct sim_memory *m, struct pgr_error *err);

static inline uint8_t *sim_memory_page(const struct sim_memory *m, uint64_t pfn)
{
	return m->base + pfn * PGR_PAGE_SIZE;
}

static inline bool sim_bit(const _Atomic uint64_t *map, uint64_t pfn)
{
	return atomic_load_explicit(&map[pfn / 64], memory_order_relaxed) >> (pfn % 64) & 1;
}

static inline void sim_bit_set(_Atomic uint64_t *map, uint64_t pfn)
{
	atomic_fetch_or(&map[pfn / 64], 1ull << (pfn % 64));
}

static inline void sim_bit_clear(_Atomic uint64_t *map, uint64_t pfn)
{
	atomic_fetch_and(&map[pfn / 64], ~(1ull << (pfn % 64)));
}

/* -EINVAL names the first pfn that is not the guest's. */
int sim_memory_check(const struct sim_memory *m, const uint64_t *pfns, unsigned nr,
		     struct pgr_error *err);
/* The batch for pfns that were checked; absent pages are NULL. */
void sim_memory_batch(const struct sim_memory *m, const uint64_t *pfns, unsigned nr,
		      struct guest_batch *b);
/* Give the frame of a pfn back. Its contents read as zero from then on. */
int sim_memory_drop(struct sim_memory *m, uint64_t pfn, struct pgr_error *err);
/* Sum of the digests of present pages that are not in `except` (NULL: none). */
void sim_memory_digest(const struct sim_memory *m, const uint64_t *except, uint64_t *digest,
		       uint64_t *pages);
uint64_t sim_page_digest(const struct sim_memory *m, uint64_t pfn);

/* ---- dirty tracking (guest_sim_track*.c) ---- */

struct sim_tracker;

struct sim_tracker_ops {
	const char *name;
	/* See guest_source_ops.log_start: writes to base .. base + pages are found from the return on. */
	int (*start)(uint8_t *base, uint64_t pages, struct sim_tracker **out,
		     struct pgr_error *err);
	/* OR the written pages into bitmap and forget them, atomically for writers. */
	int (*clean)(struct sim_tracker *t, uint64_t *bitmap, struct pgr_error *err);
	/* Memory is plain again; frees t. Writers may run. */
	void (*stop)(struct sim_tracker *t);
};

struct sim_tracker {
	const struct sim_tracker_ops *ops;
};

extern const struct sim_tracker_ops sim_track_uffd_async;
extern const struct sim_tracker_ops sim_track_uffd;
extern const struct sim_tracker_ops sim_track_mprotect;

/* The operations for t on this machine, NULL: none works. */
const struct sim_tracker_ops *sim_track_choose(enum guest_sim_track t);

/* Calls fn for each run of consecutive set bits of a word; pages are counted from first. */
typedef int sim_run_fn(void *ctx, uint64_t page, uint64_t pages);
int sim_track_runs(uint64_t word, uint64_t first, sim_run_fn *fn, void *ctx);

/* ---- the workload (guest_sim_workload.c) ---- */

/* A page of a working set; travels in SIM_STATE as it is. */
struct sim_page_state {
	uint32_t pfn;
	uint32_t generation;
};
_Static_assert(sizeof(struct sim_page_state) == 8, "travels in SIM_STATE");

struct sim_workload;

struct sim_vcpu {
	struct sim_workload *w;
	pthread_t thread;
	pthread_mutex_t
		lock; /* the pages of this working set, their generations and the three below */
	uint64_t rng;
	uint64_t position;
	uint64_t writes;
	struct sim_page_state *page; /* ascending by pfn */
	uint32_t nr_pages;
};

struct sim_workload {
	struct sim_memory *memory;
	uint64_t seed;
	uint64_t rate; /* bytes a second, all vCPUs; 0: no limit */
	enum guest_sim_pattern pattern;
	enum guest_sim_content content;
	unsigned write_bytes;
	unsigned vcpus;
	struct sim_vcpu vcpu[SIM_VCPUS_MAX];

	pthread_t verifier;
	unsigned threads; /* that run: vcpus + 1, or 0 */
	pthread_mutex_t lock;
	pthread_cond_t changed; /* hold, quit, parked */
	atomic_bool hold;
	atomic_bool quit;
	unsigned parked;
	atomic_uint speed;
	atomic_uint_fast64_t checked;
	atomic_uint_fast64_t mismatches;
	char mismatch[200]; /* under lock */
};

int sim_workload_init(struct sim_workload *w, struct sim_memory *m);
/* Stops and joins the threads first. */
void sim_workload_free(struct sim_workload *w);
/* Choose the working sets out of present ordinary pages and give these their first generation. */
int sim_workload_make(struct sim_workload *w, const struct guest_sim_options *o,
		      struct pgr_error *err);
/* Make the threads, held. */
int sim_workload_launch(struct sim_workload *w, struct pgr_error *err);
/* Wait until every thread is at a safe point; -ETIMEDOUT: they run on. */
int sim_workload_hold(struct sim_workload *w, unsigned timeout_ms, struct pgr_error *err);
void sim_workload_release(struct sim_workload *w);
void sim_workload_throttle(struct sim_workload *w, unsigned percent);
uint64_t sim_workload_writes(struct sim_workload *w);
/* -EBADMSG names the first page of a working set that is wrong. */
int sim_workload_verify(struct sim_workload *w, struct pgr_error *err);
/* Bitmap of all working sets; caller frees; NULL: no memory. */
uint64_t *sim_workload_pages(struct sim_workload *w);

/* ---- the state that travels (guest_sim_state.c) ---- */

/* What all pages outside of the working sets must be. */
struct sim_fixed {
	uint64_t digest;
	uint64_t pages;
};

/* The body of SIM_STATE of a workload that is held; caller frees. -ENOMEM. */
int sim_state_pack(struct sim_workload *w, const struct sim_fixed *fixed, uint8_t **body,
		   size_t *length, struct pgr_error *err);
/* Hostile input into an initialised, empty workload. -EPROTO says which field; -ENOMEM. */
int sim_state_unpack(const void *body, size_t length, struct sim_workload *w,
		     struct sim_fixed *fixed, struct pgr_error *err);

/* ---- a whole guest (guest_sim_machine.c) ---- */

struct guest_sim {
	struct guest_sim *next; /* registry */
	char name[256];
	uint8_t uuid[16];
	unsigned vcpus;
	enum guest_sim_track track;
	struct sim_memory memory;
	struct sim_workload workload;
	struct sim_fixed fixed; /* under workload.lock */
	struct sim_tracker *tracker;
	const char *tracker_name;
	_Atomic(enum guest_sim_life) life; /* written under the registry's lock */
	atomic_bool paused;
	bool attached; /* a source is open; under the registry's lock */
	uint64_t suspend_ns;
};

int sim_machine_create(const char *name, const uint8_t uuid[16], uint64_t nr_pfns, unsigned vcpus,
		       enum guest_sim_track track, struct guest_sim **out, struct pgr_error *err);
int sim_machine_suspend(struct guest_sim *g, unsigned timeout_ms, struct pgr_error *err);
/* Runnable from here on; paused: but does not run yet. */
void sim_machine_run(struct guest_sim *g, bool paused);
/* false: another source has it. */
bool sim_machine_attach(struct guest_sim *g, bool attach);

/* ---- faults (guest_sim_fault.c) ---- */

#define SIM_FAULTS_MAX 8u
struct sim_faults {
	struct guest_sim_fault fault[SIM_FAULTS_MAX];
	unsigned nr;
	atomic_uint calls[GUEST_SIM_FAULT_POINTS];
};

int sim_faults_init(struct sim_faults *f, const struct guest_sim_fault *faults, unsigned nr,
		    struct pgr_error *err);
/* Count a call of this point: 0, or the code of the fault that strikes now (no text). Thread-safe. */
int sim_fault_code(struct sim_faults *f, enum guest_sim_fault_point p);
/* The same with a text. */
int sim_fault(struct sim_faults *f, enum guest_sim_fault_point p, struct pgr_error *err);

#endif
