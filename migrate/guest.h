/* SPDX-License-Identifier: MIT */
/*
 * A guest that can be moved, seen from both ends.
 *
 * Two implementations: guest_xen (libxenctrl, libxenforeignmemory; Pagurus and Xen 4.17) and guest_sim (a memory region
 * in this process). Neither knows of channels, encodings or policy.
 *
 * Units: pfn = pseudo-physical frame number of 4096 bytes. Page types are enum pgr_page_type of protocol-spec/stream.h.
 * Contents are always canonical: page tables hold pfns where the running guest has machine frame numbers; the Xen
 * implementation translates on read and on finish.
 *
 * Threads: read()/release() (source) and map()/unmap() (sink) may be called by several threads at once, each with its own
 * `worker` index below GUEST_WORKERS_MAX; everything else is called by one thread at a time.
 *
 * Errors: negative errno with a sentence in err. After a failed call the object may only be resumed, destroyed or closed.
 */
#ifndef PAGURUS_GUEST_H
#define PAGURUS_GUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "protocol-spec/stream.h"

#define GUEST_WORKERS_MAX 32u

struct guest_info {
	enum pgr_guest_kind kind;
	char name[256];
	uint8_t uuid[16];
	uint64_t nr_pfns;   /* pfns are 0 .. nr_pfns-1 */
	uint64_t populated; /* of them hold memory now (an estimate while the guest runs) */
	uint32_t vcpus;
	bool can_log_dirty;
	char why_not[200]; /* when it cannot: a sentence for the user */
};

/* A disk that comes along. */
struct guest_disk {
	char vdev[PGR_DISK_VDEV_MAX + 1];
	char path[PGR_DISK_PATH_MAX + 1]; /* of its file, the same at both ends */
	uint64_t size, used;		  /* bytes: of the disk, of storage that it takes */
	enum pgr_disk_format format;
};

/* What the opening of a stream says about a guest. Strings and arrays are malloc'd and owned by this structure. */
struct guest_description {
	struct guest_info info;
	enum pgr_config_format config_format;
	char *config; /* text, NUL-terminated for convenience */
	struct pgr_cpu_leaf *leaves;
	uint32_t nr_leaves;
	struct pgr_msr *msrs;
	uint32_t nr_msrs;
	struct guest_disk *disks; /* those that come along; the others are where both reach them */
	unsigned nr_disks;
};

/* Whether the disk in that file comes along. */
bool guest_disk_comes(const struct guest_description *d, const char *path);

void guest_description_free(struct guest_description *d);

/*
 * Some pages of a guest, accessible until released. page[i] is NULL for a pfn that holds no memory.
 * base: when not NULL, page[i] == base + i * 4096 for every i (no holes), so that runs can be processed at once.
 */
struct guest_batch {
	unsigned nr;
	uint8_t *base;
	uint8_t *page[PGR_BATCH_MAX];
	uint8_t type[PGR_BATCH_MAX];
	void *priv; /* the implementation's */
};

/* One record of guest state; emitted by the source, consumed by the sink in the same order. */
typedef int guest_state_fn(void *ctx, uint32_t type, const void *body, size_t length,
			   struct pgr_error *err);

/* ---- source ---- */

struct guest_source;

struct guest_source_ops {
	const char *name;

	/* Fills d (caller frees). The guest runs. */
	int (*describe)(struct guest_source *g, struct guest_description *d, struct pgr_error *err);

	/* Start logging writes: from the return on every written pfn is reported by a later log_clean. -EOPNOTSUPP: cannot. */
	int (*log_start)(struct guest_source *g, struct pgr_error *err);
	/*
	 * OR into bitmap (nr_pfns bits, bit pfn%64 of word pfn/64) each pfn written since the last call and forget them,
	 * atomically with respect to the guest: a write after the call is reported by the next. *count: pages newly set.
	 */
	int (*log_clean)(struct guest_source *g, uint64_t *bitmap, uint64_t *count,
			 struct pgr_error *err);
	int (*log_stop)(struct guest_source *g, struct pgr_error *err);

	/* Slow the guest to `percent` (1..100) of its speed; 100 restores. -EOPNOTSUPP: cannot. */
	int (*throttle)(struct guest_source *g, unsigned percent, struct pgr_error *err);

	/* Ask the guest to stop in a movable state and wait. -ETIMEDOUT with the guest running on when it does not answer. */
	int (*suspend)(struct guest_source *g, unsigned timeout_ms, struct pgr_error *err);
	/*
	 * Let it go on here after suspend. Idempotent; also legal when the guest never stopped. -EINPROGRESS: it runs, but it had begun to
	 * suspend when suspend() gave it up, and may stop yet: to be called again later.
	 */
	int (*resume)(struct guest_source *g, struct pgr_error *err);

	/*
	 * After suspend: have the guest's disks flushed and closed, so that the target may open them, and nothing that serves them write to its
	 * memory any more. resume() takes it back. NULL: it has nothing of the kind. -ETIMEDOUT and others: the guest cannot go.
	 */
	int (*let_go)(struct guest_source *g, unsigned timeout_ms, struct pgr_error *err);

	/* Fill b for nr pfns (nr <= PGR_BATCH_MAX). While the guest runs contents may change under the reader. */
	int (*read)(struct guest_source *g, unsigned worker, const uint64_t *pfns, unsigned nr,
		    struct guest_batch *b, struct pgr_error *err);
	void (*release)(struct guest_source *g, unsigned worker, struct guest_batch *b);

	/* Emit the state records of the suspended guest, in the order of stream.md. */
	int (*state)(struct guest_source *g, guest_state_fn *emit, void *ctx,
		     struct pgr_error *err);

	/* The guest runs elsewhere now: remove it here. */
	int (*destroy)(struct guest_source *g, struct pgr_error *err);
	/* Free the object; the guest stays as it is (logging and throttling are switched off). */
	void (*close)(struct guest_source *g);
};

struct guest_source {
	const struct guest_source_ops *ops;
};

/* ---- sink: the guest that is being put together at the target or out of a file ---- */

struct guest_sink;

/* Refusals of a precheck: each a sentence that says what to change. */
#define GUEST_REFUSALS_MAX 16
struct guest_refusals {
	unsigned nr;
	char text[GUEST_REFUSALS_MAX][256];
};
void guest_refuse(struct guest_refusals *r, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

struct guest_sink_ops {
	const char *name;

	/* Everything that can be known before memory moves. 0 with r->nr == 0: welcome. Touches nothing. */
	int (*precheck)(struct guest_sink *s, const struct guest_description *d,
			struct guest_refusals *r, struct pgr_error *err);

	/* Make the domain: reserved memory, not runnable, not visible under its final name. */
	int (*create)(struct guest_sink *s, const struct guest_description *d,
		      struct pgr_error *err);

	/* Writable access to nr pfns, populating those without memory (zero filled). b->page[i] is never NULL. */
	int (*map)(struct guest_sink *s, unsigned worker, const uint64_t *pfns, unsigned nr,
		   struct guest_batch *b, struct pgr_error *err);
	void (*unmap)(struct guest_sink *s, unsigned worker, struct guest_batch *b);

	/* The pages' types as sent last; types[i] is enum pgr_page_type. Called by workers after the contents are in. */
	int (*set_types)(struct guest_sink *s, unsigned worker, const uint64_t *pfns,
			 const uint8_t *types, unsigned nr, struct pgr_error *err);

	/* These pfns hold no memory (any more). */
	int (*discard)(struct guest_sink *s, unsigned worker, const uint64_t *pfns, unsigned nr,
		       struct pgr_error *err);

	/* One state record. Body is hostile: check. */
	int (*state)(struct guest_sink *s, uint32_t type, const void *body, size_t length,
		     struct pgr_error *err);

	/* All is here: build what is needed so that start() is a formality. No map() after this. */
	int (*finish)(struct guest_sink *s, struct pgr_error *err);

	/* Point of no return: give it its name and let it run. On failure the guest has not run and destroy() is legal. */
	int (*start)(struct guest_sink *s, struct pgr_error *err);

	/*
	 * After start(): wait up to timeout_ms until the guest's devices are connected here and a frame has come out of one of its network
	 * interfaces. out says what is known so far; what cannot be told is zero. 0: there is nothing more to wait for. -ETIMEDOUT: there
	 * is, call again. Another error: it cannot be told, and the guest is none the worse for it.
	 */
	int (*connected)(struct guest_sink *s, unsigned timeout_ms, struct pgr_connected *out,
			 struct pgr_error *err);

	/* Remove everything that create() and later calls made. Idempotent. */
	int (*destroy)(struct guest_sink *s, struct pgr_error *err);
	/* Free the object; a started guest runs on, one that was not started is destroyed. */
	void (*close)(struct guest_sink *s);
};

struct guest_sink {
	const struct guest_sink_ops *ops;
};

#endif
