// SPDX-License-Identifier: MIT
/*
 * A wish that the guest's disks be held: protocol-spec/disk_hold.md. While there is one no process has a disk open: those that serve end when everything is
 * done and flushed, and are replaced when the wish goes; new ones only see to it that their disk could be opened, and wait.
 */
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/blk/keeper_internal.h"

void keeper_hold_failed(struct disk *d, const char *why)
{
	struct keeper *k = d->keeper;

	keeper_say(d, why);
	if (!k->wish_failed[0])
		snprintf(k->wish_failed, sizeof(k->wish_failed), "%s: %s", pv_bus_name(d->bus),
			 why);
}

static void let_go(struct disk *d)
{
	if (pv_bus_done(d->bus))
		return;
	if (d->again.link) {
		loop_disarm(d->keeper->loop, &d->again);
		d->released = true;
	} else if (d->pid && pv_bus_is_open(d->bus)) {
		keeper_tell(d, &(struct control_message){.kind = CONTROL_RELEASE});
	} else if (d->pid && !d->held) {
		/* It waits for the disk, or is about to open it: it has done nothing to it, and does not listen. */
		d->released = true;
		kill(d->pid, SIGKILL);
	}
}

void keeper_start_anew(struct disk *d)
{
	d->released = false;
	keeper_next_process(d);
}

static void use(struct disk *d)
{
	d->held = false;
	if (pv_bus_done(d->bus))
		return;
	if (d->released && !d->pid)
		keeper_start_anew(d);
	else if (d->pid && !d->released && !pv_bus_is_open(d->bus))
		keeper_tell(d, &(struct control_message){.kind = CONTROL_OPEN,
							 .open = *pv_bus_target(d->bus)});
}

static char *read_wish(const struct keeper *k)
{
	char path[64];

	snprintf(path, sizeof(path), PGR_DISK_HOLD_WISH, k->domid);
	return xs_read(k->store, XBT_NULL, path, NULL);
}

static bool has_state(const struct keeper *k)
{
	char path[64], *state;

	snprintf(path, sizeof(path), PGR_DISK_HOLD_STATE, k->domid);
	state = xs_read(k->store, XBT_NULL, path, NULL);
	free(state);
	return state != NULL;
}

static void show_state(struct keeper *k, const char *format, ...)
	__attribute__((format(printf, 2, 3)));

static void show_state(struct keeper *k, const char *format, ...)
{
	char value[PGR_DISK_HOLD_WISH_MAX + PGR_DISK_HOLD_SENTENCE_MAX + 16], there[64];
	struct store_value v = {.value = value};
	va_list ap;

	va_start(ap, format);
	vsnprintf(value, sizeof(value), format, ap);
	va_end(ap);
	snprintf(there, sizeof(there), PGR_DISK_HOLD_FOLDER, k->domid);
	snprintf(v.path, sizeof(v.path), PGR_DISK_HOLD_STATE, k->domid);
	keeper_store_write(k, there, &v, 1);
}

/* Once nothing is open any more. */
void keeper_answer_wish(struct keeper *k)
{
	for (struct disk *d = k->disks; d; d = d->next)
		if ((d->pid && !d->held) || d->relay.pid)
			return;
	k->wish_answered = true;
	if (k->wish_failed[0])
		show_state(k, PGR_DISK_FAILED "%s %s", k->wish, k->wish_failed);
	else
		show_state(k, PGR_DISK_HELD "%s", k->wish);
}

void keeper_look_for_wish(struct keeper *k)
{
	bool was_held = k->wish[0];
	char *wish = read_wish(k);

	/* Not taken away: the folder is gone, and so is the guest, which runs elsewhere. */
	if (was_held && !wish && !has_state(k))
		return;
	snprintf(k->wish, sizeof(k->wish), "%s", wish ? wish : "");
	free(wish);
	k->wish_answered = false;
	if (!k->wish[0] && (was_held || !k->announced)) {
		k->wish_failed[0] = '\0';
		show_state(k, PGR_DISK_USED);
	}
	for (struct disk *d = k->disks; d; d = d->next) {
		if (k->wish[0] && !was_held)
			let_go(d);
		else if (!k->wish[0] && was_held)
			use(d);
	}
}
