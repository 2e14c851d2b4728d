// SPDX-License-Identifier: MIT
/*
 * Written pages through userfaultfd's write protection, in two ways.
 *
 * uffd: the first write to a protected page stops the writer and wakes a handler thread, which marks the page and unprotects it.
 * clean() takes the marks and protects these pages again. Both do so under one lock, for this order must not be
 * possible: handler marks P; clean takes the mark and protects P; handler unprotects P; the writer writes, unmarked. A write between
 * taking the mark and protecting needs no fault: the page is in the answer of this clean() and is read after it.
 *
 * uffd-async: the kernel unprotects by itself and keeps the mark in the page table; PAGEMAP_SCAN with PM_SCAN_WP_MATCHING
 * reports and protects each page in one step under the page table's lock. No writer waits for anybody.
 */
#include "migrate/guest_sim_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Newer than Debian 12's headers; numbers from Documentation/admin-guide/mm/{userfaultfd,pagemap}.rst and the running kernel's ABI. */
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#ifndef UFFD_FEATURE_WP_UNPOPULATED
#define UFFD_FEATURE_WP_UNPOPULATED (1ull << 13)
#endif
#ifndef UFFD_FEATURE_WP_ASYNC
#define UFFD_FEATURE_WP_ASYNC (1ull << 15)
#endif
#ifndef PAGEMAP_SCAN
struct page_region {
	uint64_t start;
	uint64_t end;
	uint64_t categories;
};
struct pm_scan_arg {
	uint64_t size;
	uint64_t flags;
	uint64_t start;
	uint64_t end;
	uint64_t walk_end;
	uint64_t vec;
	uint64_t vec_len;
	uint64_t max_pages;
	uint64_t category_inverted;
	uint64_t category_mask;
	uint64_t category_anyof_mask;
	uint64_t return_mask;
};
#define PAGEMAP_SCAN	      _IOWR('f', 16, struct pm_scan_arg)
#define PM_SCAN_WP_MATCHING   (1u << 0)
#define PM_SCAN_CHECK_WPASYNC (1u << 1)
#define PAGE_IS_WRITTEN	      (1u << 1)
#endif
_Static_assert(sizeof(struct pm_scan_arg) == 96, "kernel ABI");
_Static_assert(sizeof(struct page_region) == 24, "kernel ABI");

#define SCAN_REGIONS 512u

struct uffd_tracker {
	struct sim_tracker tracker;
	uint8_t *base;
	uint64_t pages;
	int fd;
	/* uffd */
	int quit_fd;
	pthread_t handler;
	bool handler_runs;
	pthread_mutex_t lock; /* dirty together with the protection of its pages */
	uint64_t *dirty;
	atomic_int failed; /* negative errno: the handler could not unprotect a page */
	/* uffd-async */
	int pagemap_fd;
	struct page_region region[SCAN_REGIONS];
};

static struct uffd_tracker *uffd_of(struct sim_tracker *t)
{
	return (struct uffd_tracker *)t;
}

static int protect(struct uffd_tracker *u, uint64_t page, uint64_t pages, bool on)
{
	struct uffdio_writeprotect wp = {
		.range = {(uint64_t)(uintptr_t)u->base + page * PGR_PAGE_SIZE,
			  pages * PGR_PAGE_SIZE},
		.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};

	/* -EAGAIN: the address space is changing (another thread maps memory). */
	while (ioctl(u->fd, UFFDIO_WRITEPROTECT, &wp))
		if (errno != EAGAIN && errno != EINTR)
			return -errno;
	return 0;
}

static int uffd_open(uint64_t features, struct pgr_error *err)
{
	struct uffdio_api api = {.api = UFFD_API, .features = features};
	/* Without user-mode-only the kernel's own writes (read() into guest memory) are found too, but it wants privilege. */
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (fd < 0)
		fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	if (fd < 0)
		return pgr_fail_errno(err, -errno, "guest_sim: userfaultfd is not to be had");
	if (ioctl(fd, UFFDIO_API, &api)) {
		int rc = -errno;

		close(fd);
		return pgr_fail_errno(err, rc,
				      "guest_sim: this kernel's userfaultfd lacks features %#llx",
				      (unsigned long long)features);
	}
	return fd;
}

static void uffd_free(struct uffd_tracker *u)
{
	if (u->fd >= 0)
		close(u->fd);
	if (u->quit_fd >= 0)
		close(u->quit_fd);
	if (u->pagemap_fd >= 0)
		close(u->pagemap_fd);
	pthread_mutex_destroy(&u->lock);
	free(u->dirty);
	free(u);
}

/* The descriptor, registered over the memory; nothing is protected yet. NULL: *code says why. */
static struct uffd_tracker *uffd_new(const struct sim_tracker_ops *ops, uint8_t *base,
				     uint64_t pages, uint64_t features, int *code,
				     struct pgr_error *err)
{
	struct uffdio_register reg = {
		.range = {(uint64_t)(uintptr_t)base, pages * PGR_PAGE_SIZE},
		.mode = UFFDIO_REGISTER_MODE_WP,
	};
	struct uffd_tracker *u = calloc(1, sizeof(*u));
	int rc;

	if (!u) {
		pgr_fail(err, -ENOMEM, "guest_sim: no memory for a tracker");
		*code = -ENOMEM;
		return NULL;
	}
	*u = (struct uffd_tracker){
		.tracker.ops = ops, .base = base, .pages = pages, .quit_fd = -1, .pagemap_fd = -1};
	pthread_mutex_init(&u->lock, NULL);
	u->fd = uffd_open(features, err);
	if (u->fd < 0) {
		rc = u->fd;
		goto fail;
	}
	if (ioctl(u->fd, UFFDIO_REGISTER, &reg)) {
		rc = -errno;
		pgr_fail_errno(
			err, rc,
			"guest_sim: userfaultfd refuses write protection of anonymous memory");
		goto fail;
	}
	return u;
fail:
	uffd_free(u);
	*code = rc;
	return NULL;
}

/* Unregistering takes the protection away and wakes writers that wait. */
static void uffd_unregister(struct uffd_tracker *u)
{
	struct uffdio_range range = {(uint64_t)(uintptr_t)u->base, u->pages * PGR_PAGE_SIZE};

	(void)ioctl(u->fd, UFFDIO_UNREGISTER, &range);
}

/* ---- uffd ---- */

static void handle_fault(struct uffd_tracker *u, uint64_t address)
{
	uint64_t page = (address - (uint64_t)(uintptr_t)u->base) / PGR_PAGE_SIZE;
	int rc;

	pthread_mutex_lock(&u->lock);
	u->dirty[page / 64] |= 1ull << (page % 64);
	rc = protect(u, page, 1, false);
	pthread_mutex_unlock(&u->lock);
	/* -ENOENT: unregistered meanwhile by stop(), which woke the writer. */
	if (rc && rc != -ENOENT)
		atomic_store(&u->failed, rc);
}

static void *handler_thread(void *arg)
{
	struct uffd_tracker *u = arg;
	struct pollfd fds[2] = {{.fd = u->fd, .events = POLLIN},
				{.fd = u->quit_fd, .events = POLLIN}};
	struct uffd_msg msg[32];

	for (;;) {
		ssize_t n;

		if (poll(fds, 2, -1) < 0)
			continue;
		if (fds[1].revents)
			return NULL;
		n = read(u->fd, msg, sizeof(msg));
		for (ssize_t i = 0; i < n / (ssize_t)sizeof(msg[0]); i++)
			if (msg[i].event == UFFD_EVENT_PAGEFAULT)
				handle_fault(u, msg[i].arg.pagefault.address);
	}
}

static void uffd_stop(struct sim_tracker *t)
{
	struct uffd_tracker *u = uffd_of(t);

	uffd_unregister(u);
	if (u->handler_runs) {
		/* The counter of an eventfd that nobody read cannot be full. */
		(void)eventfd_write(u->quit_fd, 1);
		pthread_join(u->handler, NULL);
	}
	uffd_free(u);
}

static int uffd_start(uint8_t *base, uint64_t pages, struct sim_tracker **out,
		      struct pgr_error *err)
{
	int rc = 0;
	struct uffd_tracker *u =
		uffd_new(&sim_track_uffd, base, pages, UFFD_FEATURE_PAGEFAULT_FLAG_WP, &rc, err);

	if (!u)
		return rc;
	u->dirty = calloc(sim_words(pages), sizeof(*u->dirty));
	u->quit_fd = eventfd(0, EFD_CLOEXEC);
	if (!u->dirty || u->quit_fd < 0) {
		rc = pgr_fail(err, -ENOMEM, "guest_sim: no memory or descriptor for a tracker");
		goto fail;
	}
	rc = pthread_create(&u->handler, NULL, handler_thread, u);
	if (rc) {
		rc = pgr_fail_errno(err, -rc,
				    "guest_sim: cannot make the thread that handles write faults");
		goto fail;
	}
	u->handler_runs = true;
	rc = protect(u, 0, pages, true);
	if (rc) {
		rc = pgr_fail_errno(err, rc,
				    "guest_sim: userfaultfd cannot write-protect the guest");
		goto fail;
	}
	*out = &u->tracker;
	return 0;
fail:
	uffd_stop(&u->tracker);
	return rc;
}

static int protect_run(void *ctx, uint64_t page, uint64_t pages)
{
	return protect(ctx, page, pages, true);
}

static int uffd_clean(struct sim_tracker *t, uint64_t *bitmap, struct pgr_error *err)
{
	struct uffd_tracker *u = uffd_of(t);
	int rc = atomic_load(&u->failed);

	/* The lock is taken for a word at a time, so a writer waits for 64 pages and not for all. */
	for (uint64_t i = 0; i < sim_words(u->pages) && !rc; i++) {
		pthread_mutex_lock(&u->lock);
		if (u->dirty[i]) {
			rc = sim_track_runs(u->dirty[i], i * 64, protect_run, u);
			bitmap[i] |= u->dirty[i];
			u->dirty[i] = 0;
		}
		pthread_mutex_unlock(&u->lock);
	}
	return rc ? pgr_fail_errno(
			    err, rc,
			    "guest_sim: userfaultfd could not change the protection of a page")
		  : 0;
}

const struct sim_tracker_ops sim_track_uffd = {
	.name = "uffd",
	.start = uffd_start,
	.clean = uffd_clean,
	.stop = uffd_stop,
};

/* ---- uffd-async ---- */

static void mark_range(struct uffd_tracker *u, const struct page_region *r, uint64_t *bitmap)
{
	uint64_t page = (r->start - (uint64_t)(uintptr_t)u->base) / PGR_PAGE_SIZE;
	uint64_t end = (r->end - (uint64_t)(uintptr_t)u->base) / PGR_PAGE_SIZE;

	for (; page < end; page++)
		bitmap[page / 64] |= 1ull << (page % 64);
}

static int async_clean(struct sim_tracker *t, uint64_t *bitmap, struct pgr_error *err)
{
	struct uffd_tracker *u = uffd_of(t);
	uint64_t end = (uint64_t)(uintptr_t)u->base + u->pages * PGR_PAGE_SIZE;
	struct pm_scan_arg scan = {
		.size = sizeof(scan),
		.flags = PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
		.start = (uint64_t)(uintptr_t)u->base,
		.end = end,
		.vec = (uint64_t)(uintptr_t)u->region,
		.vec_len = SCAN_REGIONS,
		.category_mask = PAGE_IS_WRITTEN,
		.return_mask = PAGE_IS_WRITTEN,
	};

	while (scan.start < end) {
		int n = ioctl(u->pagemap_fd, PAGEMAP_SCAN, &scan);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return pgr_fail_errno(err, -errno, "guest_sim: PAGEMAP_SCAN failed");
		for (int i = 0; i < n; i++)
			mark_range(u, &u->region[i], bitmap);
		scan.start = scan.walk_end;
	}
	return 0;
}

static void async_stop(struct sim_tracker *t)
{
	uffd_unregister(uffd_of(t));
	uffd_free(uffd_of(t));
}

static int async_start(uint8_t *base, uint64_t pages, struct sim_tracker **out,
		       struct pgr_error *err)
{
	int rc = 0;
	struct uffd_tracker *u =
		uffd_new(&sim_track_uffd_async, base, pages,
			 UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_UNPOPULATED |
				 UFFD_FEATURE_WP_ASYNC,
			 &rc, err);

	if (!u)
		return rc;
	u->pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (u->pagemap_fd < 0) {
		rc = pgr_fail_errno(err, -errno, "guest_sim: cannot open /proc/self/pagemap");
		goto fail;
	}
	rc = protect(u, 0, pages, true);
	if (rc) {
		rc = pgr_fail_errno(err, rc,
				    "guest_sim: userfaultfd cannot write-protect the guest");
		goto fail;
	}
	*out = &u->tracker;
	return 0;
fail:
	async_stop(&u->tracker);
	return rc;
}

const struct sim_tracker_ops sim_track_uffd_async = {
	.name = "uffd-async",
	.start = async_start,
	.clean = async_clean,
	.stop = async_stop,
};
