// SPDX-License-Identifier: MIT
#include "migrate/xen_disks.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xenstore.h>

#include "common/text.h"
#include "migrate/xen_store.h"
#include "protocol-spec/disk_hold.h"

#define PATH_MAX_HERE 80u
#define TOKEN	      "disks"

bool xen_disks_are_ours(const libxl_domain_config *config)
{
	const char *program = config->b_info.device_model;

	for (int i = 0; i < config->num_disks; i++)
		if (config->disks[i].backend != LIBXL_DISK_BACKEND_QDISK)
			return false;
	return !config->num_disks || (program && !strcmp(program, PGR_DISK_PROGRAM));
}

static struct xs_handle *open_store(struct pgr_error *err)
{
	struct xs_handle *xs = xs_open(0);

	if (!xs)
		pgr_fail_errno(err, -EIO, "Xenstore cannot be reached");
	return xs;
}

static int write_wish(struct xs_handle *xs, uint32_t domid, char wish[PGR_DISK_HOLD_WISH_MAX],
		      struct pgr_error *err)
{
	char path[PATH_MAX_HERE];

	snprintf(path, sizeof(path), PGR_DISK_HOLD_WISH, domid);
	snprintf(wish, PGR_DISK_HOLD_WISH_MAX, "%llu", (unsigned long long)xen_now_ns());
	if (xs_write(xs, XBT_NULL, path, wish, (unsigned)strlen(wish)))
		return 0;
	return pgr_fail_errno(err, -errno, "Xenstore does not take %s", path);
}

int xen_disks_hold(uint32_t domid, struct pgr_error *err)
{
	struct xs_handle *xs = open_store(err);
	char wish[PGR_DISK_HOLD_WISH_MAX];
	int rc;

	if (!xs)
		return -EIO;
	rc = write_wish(xs, domid, wish, err);
	xs_close(xs);
	return rc;
}

/* Whether the state answers the wish; what is wrong with the disks is in err. */
static bool is_answer(const char *state, const char *wish, struct pgr_error *err)
{
	const size_t held = strlen(PGR_DISK_HELD), failed = strlen(PGR_DISK_FAILED);
	char plain[PGR_DISK_HOLD_SENTENCE_MAX];
	const char *sentence;

	if (!strncmp(state, PGR_DISK_HELD, held))
		return !strcmp(state + held, wish);
	if (strncmp(state, PGR_DISK_FAILED, failed) != 0 ||
	    strncmp(state + failed, wish, strlen(wish)) != 0 || state[failed + strlen(wish)] != ' ')
		return false;
	sentence = state + failed + strlen(wish) + 1;
	text_plain(plain, sizeof(plain), sentence, strlen(sentence));
	pgr_fail(err, -EIO, "a disk of the guest could not be let go of: %s", plain);
	return true;
}

static int wait_for_answer(struct xs_handle *xs, const char *path, const char *wish,
			   unsigned timeout_ms, struct pgr_error *err)
{
	uint64_t until_ns = xen_now_ns() + timeout_ms * 1000000ull, now;
	struct pgr_error why = PGR_ERROR_NONE;
	bool answered = false;

	for (;;) {
		unsigned length;
		char *state = xs_read(xs, XBT_NULL, path, &length);

		answered = state && is_answer(state, wish, &why);
		free(state);
		if (answered) {
			if (why.code && err)
				*err = why;
			return why.code;
		}
		now = xen_now_ns();
		if (now >= until_ns)
			return pgr_fail(
				err, -ETIMEDOUT,
				"the guest's disks were not flushed and closed within %u ms: does their storage answer? See /var/log/xen/qemu-dm-*.log",
				timeout_ms);
		xen_store_wait(xs, (int)((until_ns - now) / 1000000 + 1));
	}
}

static int let_go(struct xs_handle *xs, uint32_t domid, unsigned timeout_ms, struct pgr_error *err)
{
	char path[PATH_MAX_HERE], wish[PGR_DISK_HOLD_WISH_MAX], *state;
	unsigned length;
	int rc;

	snprintf(path, sizeof(path), PGR_DISK_HOLD_STATE, domid);
	state = xs_read(xs, XBT_NULL, path, &length);
	if (!state)
		return 0;
	free(state);
	if (!xs_watch(xs, path, TOKEN))
		return pgr_fail_errno(err, -errno, "Xenstore does not watch %s", path);
	rc = write_wish(xs, domid, wish, err);
	return rc ? rc : wait_for_answer(xs, path, wish, timeout_ms, err);
}

int xen_disks_let_go(uint32_t domid, unsigned timeout_ms, struct pgr_error *err)
{
	struct xs_handle *xs = open_store(err);
	int rc;

	if (!xs)
		return -EIO;
	rc = let_go(xs, domid, timeout_ms, err);
	xs_close(xs);
	return rc;
}

void xen_disks_use(uint32_t domid)
{
	char path[PATH_MAX_HERE];

	snprintf(path, sizeof(path), PGR_DISK_HOLD_WISH, domid);
	xen_store_remove(path);
}

void xen_disks_forget(uint32_t domid)
{
	char path[PATH_MAX_HERE];

	snprintf(path, sizeof(path), PGR_DISK_HOLD_FOLDER, domid);
	xen_store_remove(path);
}
