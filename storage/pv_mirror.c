// SPDX-License-Identifier: MIT
#include "storage/pv_mirror.h"

#include <errno.h>
#include <unistd.h>

#include "storage/block_nbd.h"

#define LOOK_NS	     200000000ull
#define LOOKS_A_READ 5
/* As of a session's connections: the disk's is alive while the storage behind it need not be. */
#define SILENCE_MS 20000u

/* ---- the guest waits while the block under it is another ---- */

static void hold(struct pv_mirror *m)
{
	m->holding = true;
	wait_begin(&m->held, m->loop);
	pv_disk_release(m->disk);
	wait_for(&m->held);
}

bool pv_mirror_released(struct pv_mirror *m)
{
	bool ours = m->holding;

	m->holding = false;
	if (ours)
		wait_end(&m->held);
	return ours;
}

/* Over that block, unless it was released for good meanwhile: then that is said again, for the first word of it may have been taken for ours. */
static void serve(struct pv_mirror *m, struct block *b)
{
	pv_disk_go_on(m->disk, b);
	if (m->leaving)
		pv_disk_release(m->disk);
}

void pv_mirror_leave(struct pv_mirror *m)
{
	m->leaving = true;
}

void pv_mirror_end(struct pv_mirror *m, enum pv_mirror_end how)
{
	m->end = how;
	wait_queue_wake_all(&m->changed);
}

/* ---- from its beginning to its end ---- */

static bool is_wanted(const struct pv_mirror *m)
{
	return m->end == PV_MIRROR_GO_ON && !m->leaving;
}

static int closing(const struct pv_mirror *m, struct pgr_error *err)
{
	return pgr_fail(err, -ECANCELED, "%s: is being closed", block_info(m->source)->name);
}

static int put_under(struct pv_mirror *m, struct block *destination, struct block **mirror,
		     struct pgr_error *err)
{
	const struct mirror_options o = {.zeroed = true};
	int ret;

	if (!is_wanted(m))
		return closing(m, err);
	hold(m);
	ret = is_wanted(m) ? mirror_open(m->source, destination, &o, mirror, err) : closing(m, err);
	serve(m, ret ? m->source : *mirror);
	return ret;
}

struct look {
	struct loop_timer timer; /* first */
	struct pv_mirror *mirror;
};

static void on_look(struct loop_timer *t)
{
	wait_queue_wake_all(&((struct look *)t)->mirror->changed);
}

/* Whether the other side is still there, which a disk that nobody writes would not notice. */
static bool is_there(struct block *destination, struct pgr_error *err)
{
	uint8_t sector[BLOCK_SECTOR];

	return !block_read(destination, 0, sector, sizeof(sector), err);
}

/* Until its end, or until it fails; why is what the other side failed of, when the mirror has not noticed. */
static void watch(struct pv_mirror *m, const struct block *mirror, struct block *destination,
		  void (*progress)(void *ctx, const struct mirror_status *s), void *ctx,
		  struct pgr_error *why)
{
	struct look look = {.timer = {.fire = on_look}, .mirror = m};
	struct mirror_status s;

	for (unsigned looks = 1;; looks++) {
		mirror_status(mirror, &s);
		progress(ctx, &s);
		if (m->end != PV_MIRROR_GO_ON || s.phase == MIRROR_FAILED)
			break;
		if (looks % LOOKS_A_READ == 0 && !is_there(destination, why))
			break;
		loop_arm(m->loop, &look.timer, loop_now_ns() + LOOK_NS);
		wait_queue_join(&m->changed, m->loop);
	}
	loop_disarm(m->loop, &look.timer);
}

/* Why it ended without being finished. */
static int why_not(struct pv_mirror *m, const struct block *mirror, const struct pgr_error *lost,
		   struct pgr_error *err)
{
	struct mirror_status s;

	mirror_status(mirror, &s);
	if (s.phase != MIRROR_FAILED && lost->code) {
		*err = *lost;
		return err->code;
	}
	if (s.phase != MIRROR_FAILED)
		return pgr_fail(err, -ECANCELED, "%s: its mirror was cancelled",
				block_info(m->source)->name);
	*err = s.why;
	return s.why.code;
}

/* The disk is served from its own storage afterwards, or by nobody. */
static int take_away(struct pv_mirror *m, struct block *mirror, const struct pgr_error *lost,
		     struct pgr_error *err)
{
	int ret;

	if (m->end == PV_MIRROR_FINISH) {
		ret = mirror_finish(mirror, MIRROR_STAY, err);
	} else {
		ret = why_not(m, mirror, lost, err);
		mirror_cancel(mirror);
	}
	/* Released for good, nothing is under way any more. */
	if (m->end != PV_MIRROR_FINISH)
		hold(m);
	mirror_unwrap(mirror);
	serve(m, m->source);
	return ret;
}

static int run(struct pv_mirror *m, int socket,
	       void (*progress)(void *ctx, const struct mirror_status *s), void *ctx,
	       struct pgr_error *err)
{
	struct block *destination = NULL, *mirror;
	struct pgr_error lost = PGR_ERROR_NONE;
	const struct block_options o = {.silence_ms = m->silence_ms ? m->silence_ms : SILENCE_MS};
	int ret = block_open_nbd_socket(m->loop, socket, "the disk at the other host", &o,
					&destination, err);

	if (!ret)
		ret = put_under(m, destination, &mirror, err);
	if (ret) {
		block_close(destination, NULL);
		return ret;
	}
	watch(m, mirror, destination, progress, ctx, &lost);
	return take_away(m, mirror, &lost, err);
}

int pv_mirror_run(struct pv_mirror *m, int socket,
		  void (*progress)(void *ctx, const struct mirror_status *s), void *ctx,
		  struct pgr_error *err)
{
	int ret;

	if (m->running) {
		close(socket);
		return pgr_fail(err, -EBUSY, "%s: is being copied to another host already",
				block_info(m->source)->name);
	}
	m->running = true;
	m->end = PV_MIRROR_GO_ON;
	ret = run(m, socket, progress, ctx, err);
	m->running = false;
	return ret;
}
