// SPDX-License-Identifier: MIT
/*
 * Written pages through page protection and SIGSEGV, for kernels without userfaultfd's write protection.
 *
 * The handler first makes the block writable and then marks it; clean() first takes the marks and then protects. No order of the two loses a
 * write for good:
 *   - handler unprotects, clean finds no mark, handler marks: the next clean reports it;
 *   - clean takes an older mark, handler unprotects and marks, clean protects: the writer faults once more;
 *   - clean takes the mark, handler unprotects, clean protects, handler marks: the same.
 * Another thread may write between "unprotect" and "mark" without a fault. The mark then follows when the handler goes on, so the write is in
 * the next answer at the latest; and when the guest is held every handler has returned, so the last answer is complete.
 *
 * Each change of protection may split a mapping, and the kernel bounds their number (vm.max_map_count, 65530). So large
 * guests are protected in blocks of several pages, all of which are reported when one is written.
 */
#include "migrate/guest_sim_internal.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* Half of the kernel's default for mappings, for the process has others. */
#define BLOCKS_MAX   32768u
#define TRACKERS_MAX 16u

struct mprotect_tracker {
	struct sim_tracker tracker;
	uint8_t *base;
	uint64_t pages;
	uint64_t block; /* pages protected together */
	uint64_t blocks;
	atomic_bool
		overflow; /* the kernel would not split: everything is writable and counts as written */
	_Atomic uint64_t dirty[]; /* bit per block */
};

/*
 * What the signal handler looks through. A tracker is freed only when no handler can be inside (see `inside`). Its range stays in the slot:
 * a thread that faulted just before stop() made memory writable may reach the handler after it, and shall just try again. It may do so once
 * in every epoch, which each stop() begins; a second fault in the same epoch is no late one.
 */
static struct {
	_Atomic(struct mprotect_tracker *) tracker;
	_Atomic(uint8_t *) base;
	atomic_size_t bytes;
} active[TRACKERS_MAX];
static atomic_uint inside;
static atomic_uint_fast64_t epoch = 1;
static _Thread_local void *late;
static _Thread_local uint64_t late_epoch;
static pthread_mutex_t setup_lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned next_slot; /* under setup_lock; the slot left longest is used first */
static bool installed;	   /* under setup_lock; the handler stays for the life of the process */
static struct sigaction previous;

static struct mprotect_tracker *mprotect_of(struct sim_tracker *t)
{
	return (struct mprotect_tracker *)t;
}

static uint64_t block_pages(const struct mprotect_tracker *p, uint64_t block, uint64_t blocks)
{
	uint64_t first = block * p->block, end = (block + blocks) * p->block;

	return (end > p->pages ? p->pages : end) - first;
}

static int protect_blocks(struct mprotect_tracker *p, uint64_t block, uint64_t blocks, int prot)
{
	return mprotect(p->base + block * p->block * PGR_PAGE_SIZE,
			block_pages(p, block, blocks) * PGR_PAGE_SIZE, prot)
		       ? -errno
		       : 0;
}

static void let_write(struct mprotect_tracker *p, uint8_t *address)
{
	uint64_t block = (uint64_t)(address - p->base) / PGR_PAGE_SIZE / p->block;

	if (!protect_blocks(p, block, 1, PROT_READ | PROT_WRITE)) {
		sim_bit_set(p->dirty, block);
	} else {
		/* One mapping needs no splitting. */
		(void)protect_blocks(p, 0, p->blocks, PROT_READ | PROT_WRITE);
		atomic_store(&p->overflow, true);
	}
}

static bool within(const uint8_t *address, const uint8_t *base, size_t bytes)
{
	return address >= base && address < base + bytes;
}

/* In the writer's thread, in a signal handler: atomics and mprotect() only. */
static bool found_write(uint8_t *address)
{
	bool was_ours = false, ours = false;

	atomic_fetch_add(&inside, 1);
	for (unsigned i = 0; i < TRACKERS_MAX && !ours; i++) {
		struct mprotect_tracker *p = atomic_load(&active[i].tracker);

		if (p && within(address, p->base, p->pages * PGR_PAGE_SIZE)) {
			let_write(p, address);
			ours = true;
		} else if (within(address, atomic_load(&active[i].base),
				  atomic_load(&active[i].bytes))) {
			was_ours = true;
		}
	}
	atomic_fetch_sub(&inside, 1);
	if (!ours && was_ours) {
		/* Read after the slots: who saw one emptied sees the epoch that this began. */
		uint64_t now = atomic_load(&epoch);

		ours = late != address || late_epoch != now;
		late = address;
		late_epoch = now;
	}
	return ours;
}

static void on_segv(int sig, siginfo_t *info, void *context)
{
	int saved = errno;

	if (!found_write(info->si_addr)) {
		if (previous.sa_flags & SA_SIGINFO) {
			previous.sa_sigaction(sig, info, context);
		} else if (previous.sa_handler == SIG_DFL || previous.sa_handler == SIG_IGN) {
			/* The instruction faults again and the process dies as it would have. */
			signal(sig, SIG_DFL);
		} else {
			previous.sa_handler(sig);
		}
	}
	errno = saved;
}

/* The slot that had this range last, else the one left longest ago. TRACKERS_MAX: all are in use. */
static unsigned choose_slot(const uint8_t *base)
{
	for (unsigned i = 0; i < TRACKERS_MAX; i++)
		if (!atomic_load(&active[i].tracker) && atomic_load(&active[i].base) == base)
			return i;
	for (unsigned i = 0; i < TRACKERS_MAX; i++) {
		unsigned slot = (next_slot + i) % TRACKERS_MAX;

		if (!atomic_load(&active[slot].tracker)) {
			next_slot = slot + 1;
			return slot;
		}
	}
	return TRACKERS_MAX;
}

static int enter(struct mprotect_tracker *p, struct pgr_error *err)
{
	struct sigaction sa = {.sa_sigaction = on_segv,
			       .sa_flags = SA_SIGINFO | SA_RESTART | SA_NODEFER};
	unsigned slot;
	int rc = 0;

	sigemptyset(&sa.sa_mask);
	pthread_mutex_lock(&setup_lock);
	slot = choose_slot(p->base);
	if (slot == TRACKERS_MAX)
		rc = pgr_fail(
			err, -EBUSY,
			"guest_sim: %u guests are already logged through mprotect in this process, no more are possible",
			TRACKERS_MAX);
	else if (!installed && sigaction(SIGSEGV, &sa, &previous))
		rc = pgr_fail_errno(err, -errno, "guest_sim: cannot handle SIGSEGV");
	if (!rc) {
		installed = true;
		atomic_store(&active[slot].base, p->base);
		atomic_store(&active[slot].bytes, p->pages * PGR_PAGE_SIZE);
		atomic_store(&active[slot].tracker, p);
	}
	pthread_mutex_unlock(&setup_lock);
	return rc;
}

static void leave(struct mprotect_tracker *p)
{
	pthread_mutex_lock(&setup_lock);
	atomic_fetch_add(&epoch, 1);
	for (unsigned i = 0; i < TRACKERS_MAX; i++)
		if (atomic_load(&active[i].tracker) == p)
			atomic_store(&active[i].tracker, NULL);
	while (atomic_load(&inside))
		sched_yield();
	pthread_mutex_unlock(&setup_lock);
}

static void mprotect_stop(struct sim_tracker *t)
{
	struct mprotect_tracker *p = mprotect_of(t);

	(void)protect_blocks(p, 0, p->blocks, PROT_READ | PROT_WRITE);
	leave(p);
	free(p);
}

static int mprotect_start(uint8_t *base, uint64_t pages, struct sim_tracker **out,
			  struct pgr_error *err)
{
	struct mprotect_tracker *p;
	uint64_t block = 1;
	int rc;

	while ((pages + block - 1) / block > BLOCKS_MAX)
		block *= 2;
	p = calloc(1, sizeof(*p) + sim_words((pages + block - 1) / block) * sizeof(p->dirty[0]));
	if (!p)
		return pgr_fail(err, -ENOMEM, "guest_sim: no memory for a tracker");
	p->tracker.ops = &sim_track_mprotect;
	p->base = base;
	p->pages = pages;
	p->block = block;
	p->blocks = (pages + block - 1) / block;
	rc = enter(p, err);
	if (rc) {
		free(p);
		return rc;
	}
	rc = protect_blocks(p, 0, p->blocks, PROT_READ);
	if (rc) {
		mprotect_stop(&p->tracker);
		return pgr_fail_errno(err, rc, "guest_sim: cannot write-protect the guest");
	}
	*out = &p->tracker;
	return 0;
}

static int protect_run(void *ctx, uint64_t block, uint64_t blocks)
{
	return protect_blocks(ctx, block, blocks, PROT_READ);
}

static void mark_pages(const struct mprotect_tracker *p, uint64_t block, uint64_t *bitmap)
{
	uint64_t first = block * p->block;

	for (uint64_t i = 0; i < block_pages(p, block, 1); i++)
		bitmap[(first + i) / 64] |= 1ull << ((first + i) % 64);
}

static int mprotect_clean(struct sim_tracker *t, uint64_t *bitmap, struct pgr_error *err)
{
	struct mprotect_tracker *p = mprotect_of(t);
	bool all = atomic_exchange(&p->overflow, false);
	int rc = 0;

	if (all) {
		for (uint64_t block = 0; block < p->blocks; block++)
			mark_pages(p, block, bitmap);
		for (uint64_t i = 0; i < sim_words(p->blocks); i++)
			atomic_store(&p->dirty[i], 0);
		rc = protect_blocks(p, 0, p->blocks, PROT_READ);
	}
	for (uint64_t i = 0; i < sim_words(p->blocks) && !rc; i++) {
		uint64_t word = atomic_load_explicit(&p->dirty[i], memory_order_relaxed)
					? atomic_exchange(&p->dirty[i], 0)
					: 0;

		for (uint64_t left = word; left; left &= left - 1)
			mark_pages(p, i * 64 + (unsigned)__builtin_ctzll(left), bitmap);
		rc = sim_track_runs(word, i * 64, protect_run, p);
	}
	if (rc == -ENOMEM) {
		/* Too many mappings: let all be written, and say so next time. */
		rc = protect_blocks(p, 0, p->blocks, PROT_READ | PROT_WRITE);
		atomic_store(&p->overflow, true);
	}
	return rc ? pgr_fail_errno(err, rc,
				   "guest_sim: cannot change the protection of the guest's pages")
		  : 0;
}

const struct sim_tracker_ops sim_track_mprotect = {
	.name = "mprotect",
	.start = mprotect_start,
	.clean = mprotect_clean,
	.stop = mprotect_stop,
};
