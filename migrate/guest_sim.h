/* SPDX-License-Identifier: MIT */
/*
 * A guest that is a memory region of this process, with threads as its vCPUs.
 *
 * The engine is run, attacked and measured against it where there is no hypervisor. It is honest where that matters: its memory
 * is written by real threads while it moves, writes are found by the kernel's own means (userfaultfd, page protection), and
 * what it was doing travels, so that it goes on where it stopped and can prove that every page is the one it wrote.
 *
 * Each vCPU owns a working set of pages. A write to a page raises the page's generation and fills one part of the page with bytes that
 * follow from (seed, pfn, generation) alone. The generations are kept outside of the guest's memory and travel as SIM_STATE: a page
 * that arrives stale, torn or changed is one whose contents do not follow from its generation. A verifier thread looks
 * for such a page all the time while the guest runs; it reports the first it finds on standard error and in guest_sim_status().
 *
 * A guest lives in a registry of this process, apart from the source and sink objects that work on it, as a domain lives in a
 * hypervisor: closing a source leaves it as it is, destroying removes it.
 *
 * Threads: every function may be called from any thread; one guest by one thread at a time, except where guest.h says
 * otherwise. Errors: negative errno with a sentence.
 */
#ifndef PAGURUS_GUEST_SIM_H
#define PAGURUS_GUEST_SIM_H

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
#include "migrate/guest.h"

enum guest_sim_content {
	GUEST_SIM_ZERO,
	GUEST_SIM_TEXT,	    /* words of a small vocabulary, deterministic */
	GUEST_SIM_BINARIES, /* programs and libraries of this machine, read when the guest is made */
	GUEST_SIM_RANDOM,   /* incompressible, deterministic */
	GUEST_SIM_MIXED, /* runs of 1 to 64 pages: 35 % zero, 20 % text, 30 % binaries, 15 % random */
};
const char *guest_sim_content_name(enum guest_sim_content c); /* "zero", "text" ... */

enum guest_sim_pattern {
	GUEST_SIM_SEQUENTIAL,
	GUEST_SIM_UNIFORM, /* any page of the working set, equally likely */
	GUEST_SIM_HOT,	   /* nine writes in ten go to a tenth of the working set */
};

enum guest_sim_track {
	GUEST_SIM_TRACK_AUTO,	    /* the first of the next three that works here */
	GUEST_SIM_TRACK_UFFD_ASYNC, /* userfaultfd, resolved by the kernel; PAGEMAP_SCAN (Linux 6.7) */
	GUEST_SIM_TRACK_UFFD,	    /* userfaultfd write-protect, a handler thread (Linux 5.7) */
	GUEST_SIM_TRACK_MPROTECT, /* mprotect and SIGSEGV; above 128 MiB it reports whole blocks of pages */
	GUEST_SIM_TRACK_NONE, /* a guest whose writes cannot be logged */
};
const char *guest_sim_track_name(enum guest_sim_track t);
/* Whether the kernel and the rights of this process allow it (tried, not guessed). NONE: always. */
bool guest_sim_track_works(enum guest_sim_track t);

#define GUEST_SIM_REGIONS_MAX 8u
/* Pages of the working sets of all vCPUs together: their generations travel in one record. 1 GiB less a little. */
#define GUEST_SIM_WORKING_SET_MAX 261000u

struct guest_sim_options {
	const char *name; /* NULL: "sim" */
	uint8_t uuid[16]; /* all zero: made from the seed */
	uint64_t seed;	  /* everything but BINARIES follows from it */
	uint64_t memory;  /* bytes, a multiple of 4096, at least 64 KiB */
	struct {
		enum guest_sim_content content;
		unsigned share; /* of all shares; regions follow one another in pfn order */
	} region[GUEST_SIM_REGIONS_MAX];
	unsigned nr_regions;	  /* 0: one of GUEST_SIM_MIXED */
	unsigned absent_permille; /* pages that hold no memory, 0 .. 900, anywhere */
	unsigned
		page_table_pages; /* fake page tables (levels 1 to 4, top pinned) in front of memory */
	unsigned vcpus;		  /* 0: 1; at most 64 */
	struct {
		uint64_t working_set; /* bytes over all vCPUs; 0: the guest idles */
		uint64_t
			rate; /* bytes of pages dirtied a second over all vCPUs, 0: as fast as it can */
		enum guest_sim_pattern pattern;
		unsigned
			write_bytes; /* of a page changed by one write: 8 .. 4080, rounded up to 8; 0: 4080 */
		enum guest_sim_content
			content; /* of what is written: TEXT or RANDOM; others: TEXT */
	} workload;
	enum guest_sim_track track;
};

/* ---- faults: named, chosen from outside, each at most once (nth counts from 1) ---- */

enum guest_sim_fault_point {
	GUEST_SIM_FAULT_NONE,
	/* source */
	GUEST_SIM_FAULT_DESCRIBE,
	GUEST_SIM_FAULT_LOG_START,
	GUEST_SIM_FAULT_LOG_CLEAN,
	GUEST_SIM_FAULT_LOG_STOP,
	GUEST_SIM_FAULT_THROTTLE,
	GUEST_SIM_FAULT_READ,
	GUEST_SIM_FAULT_SUSPEND, /* fails at once, the guest runs on */
	GUEST_SIM_FAULT_LET_GO,
	GUEST_SIM_FAULT_SUSPEND_TIMEOUT, /* the guest does not answer: -ETIMEDOUT after the timeout, it runs on */
	GUEST_SIM_FAULT_STATE,
	GUEST_SIM_FAULT_RESUME,
	GUEST_SIM_FAULT_DESTROY,
	/* sink */
	GUEST_SIM_FAULT_PRECHECK,	 /* the call fails */
	GUEST_SIM_FAULT_PRECHECK_REFUSE, /* the call refuses */
	GUEST_SIM_FAULT_CREATE,
	GUEST_SIM_FAULT_MAP,
	GUEST_SIM_FAULT_SET_TYPES,
	GUEST_SIM_FAULT_DISCARD,
	GUEST_SIM_FAULT_SINK_STATE,
	GUEST_SIM_FAULT_FINISH,
	GUEST_SIM_FAULT_START,
	GUEST_SIM_FAULT_CONNECTED,
	GUEST_SIM_FAULT_SINK_DESTROY,
	GUEST_SIM_FAULT_POINTS,
};

struct guest_sim_fault {
	enum guest_sim_fault_point point;
	unsigned nth; /* 0 and 1: the first call */
	int code; /* negative errno; 0: -ENOMEM for CREATE and MAP, -ETIMEDOUT for SUSPEND_TIMEOUT, else -EIO */
};

/* "log-clean", "map" ... */
const char *guest_sim_fault_name(enum guest_sim_fault_point p);
/* "map:17" or "map" to a fault. -EINVAL: no such name, or not a number from 1 to 2^31. */
int guest_sim_fault_parse(const char *text, struct guest_sim_fault *f, struct pgr_error *err);

/* ---- guests ---- */

struct guest_sim; /* valid until it is destroyed */

/*
 * Make a guest and let it run. -EINVAL: options out of range; -ENOMEM; -ENOENT: BINARIES wanted and none readable; -EAGAIN: threads;
 * -EOPNOTSUPP: the tracker asked for does not work here.
 */
int guest_sim_create(const struct guest_sim_options *o, struct guest_sim **out,
		     struct pgr_error *err);
/* Stop its threads and free everything. No source or sink may be open on it. */
void guest_sim_destroy(struct guest_sim *g);

/* A source for g; several one after another, not at once (-EBUSY). faults: copied, NULL for none. */
int guest_sim_source_open(struct guest_sim *g, const struct guest_sim_fault *faults,
			  unsigned nr_faults, struct guest_source **out, struct pgr_error *err);
/* Both in one. */
int guest_sim_source_create(const struct guest_sim_options *o, const struct guest_sim_fault *faults,
			    unsigned nr_faults, struct guest_source **out, struct pgr_error *err);

struct guest_sim_sink_options {
	uint64_t memory_free;	    /* what precheck has to offer, bytes; 0: no limit */
	bool start_paused;	    /* start() makes it runnable, guest_sim_unpause() lets it run */
	enum guest_sim_track track; /* for when it moves on */
	struct pgr_connected connected; /* what connected() tells: it has no devices of its own */
	bool never_connected;		/* there is always more to wait for */
};
/* o and faults may be NULL. -ENOMEM. */
int guest_sim_sink_open(const struct guest_sim_sink_options *o,
			const struct guest_sim_fault *faults, unsigned nr_faults,
			struct guest_sink **out, struct pgr_error *err);

/* The guest behind; NULL: destroyed, or (sink) not created yet. */
struct guest_sim *guest_sim_of_source(struct guest_source *s);
struct guest_sim *guest_sim_of_sink(struct guest_sink *s);

/* ---- looking at them, for tests ---- */

enum guest_sim_life {
	GUEST_SIM_BUILDING,  /* a sink is putting it together */
	GUEST_SIM_SUSPENDED, /* at a safe point, may be resumed */
	GUEST_SIM_RUNNING,   /* runnable */
};

struct guest_sim_status {
	enum guest_sim_life life;
	bool paused;	     /* RUNNING, but nobody has said unpause yet */
	uint64_t writes;     /* by all vCPUs since the guest was first made */
	uint64_t checked;    /* pages that the verifier compared since it runs here */
	uint64_t mismatches; /* of them wrong: must be 0 */
	char mismatch[200];  /* the first */
	uint64_t suspend_ns; /* how long the last suspend took */
	unsigned speed;	     /* throttle percent */
	const char *tracker; /* that logs or last logged; "" before the first log_start */
	uint64_t nr_pfns;
	uint64_t populated;
};
void guest_sim_status(struct guest_sim *g, struct guest_sim_status *st);

/* Let a guest of start_paused run. */
void guest_sim_unpause(struct guest_sim *g);

/*
 * Check every page of the guest now: working sets against their generations, all others against the digest that the guest had when
 * it was made. Running guests too. -EBADMSG: names the first page that is wrong.
 */
int guest_sim_verify(struct guest_sim *g, struct pgr_error *err);

/* Sum of stream_page_digest over the pfns that hold memory. Meaningful when the guest does not run. */
void guest_sim_digest(struct guest_sim *g, uint64_t *digest, uint64_t *pages);

/* The page's memory; NULL: absent. For tests that damage a guest or compare two. */
uint8_t *guest_sim_page(struct guest_sim *g, uint64_t pfn);
/* Its type, enum pgr_page_type. */
uint8_t guest_sim_type(struct guest_sim *g, uint64_t pfn);

/*
 * The balloon: give the memory of a pfn back (in: false) or take a zero page for it (in: true) while the guest runs. -EINVAL: out of
 * range, a page table or of a working set. The pfn is reported by the next log_clean.
 */
int guest_sim_balloon(struct guest_sim *g, uint64_t pfn, bool in, struct pgr_error *err);

/* Guests with this uuid in this process: runnable ones; all. uuid NULL: any. */
unsigned guest_sim_running(const uint8_t uuid[16]);
unsigned guest_sim_count(const uint8_t uuid[16]);
/* A runnable one, NULL if there is none. */
struct guest_sim *guest_sim_find_running(const uint8_t uuid[16]);
/* How often since the process began a guest became runnable while another with its uuid was: must be 0. */
uint64_t guest_sim_overlaps(void);
/* Bytes of guest memory mapped by all guests of this process. */
uint64_t guest_sim_allocated(void);

#endif
