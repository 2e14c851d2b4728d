// SPDX-License-Identifier: MIT
/*
 * A disk's process may make no socket. When the connection to its NBD server is lost, the keeper makes another one, to the address in the disk's
 * configuration, and passes it on; the process greets the server and sends again what is needed (block_nbd.h). The guest waits meanwhile. With TLS the first
 * connection is made so, too: what is passed on then leads to a relay (keeper_relay.c).
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "storage/nbd_dial.h"
#include "storage/offload.h"
#include "tools/blk/keeper_internal.h"

struct dial {
	struct disk *disk;
	char uri[PV_PATH];
	int socket;
	struct pgr_error err;
};

static int connect_to(void *ctx)
{
	struct dial *x = ctx;

	return nbd_dial(x->uri, &x->socket, &x->err);
}

static void answer(struct disk *d, int socket, const struct pgr_error *err)
{
	struct control_message m = {.kind = CONTROL_DIALLED};

	control_put_error(&m, err);
	/* A process that has died is found by its end. */
	(void)control_send_fd(d->control.fd, &m, socket);
}

/* What the operator is told: once that it is gone, with the reason, and once that it is back. A disk that is not open yet says itself why not. */
static void say(struct disk *d, const struct pgr_error *err)
{
	if (!pv_bus_is_open(d->bus))
		return;
	if (!err->code && d->lost)
		keeper_say(d, "connected to its server again");
	else if (err->code && !d->lost)
		keeper_say(d, err->text);
	if (err->code && !d->lost)
		keeper_say(d, "it is tried again; the guest waits");
	d->lost = err->code != 0;
}

static int make(struct dial *x)
{
	struct disk *d = x->disk;

	if (nbd_address_takes_identity(x->uri))
		return keeper_relay(d, x->uri, &x->socket, &x->err);
	return offload(d->keeper->loop, connect_to, x);
}

/* For the process that asks now; who comes after it meanwhile asks anew. */
static void dial(struct dial *x)
{
	struct disk *d = x->disk;
	pid_t asked = d->asked;
	int ret;

	x->socket = -1;
	x->err = PGR_ERROR_NONE;
	snprintf(x->uri, sizeof(x->uri), "%s", pv_bus_target(d->bus)->path);
	ret = make(x);
	if (ret && !x->err.code)
		pgr_fail_errno(&x->err, ret, "%s: cannot be reached", x->uri);
	if (d->asked == asked) {
		d->asked = 0;
		if (d->pid == asked) {
			say(d, &x->err);
			answer(d, x->socket, &x->err);
		}
	}
	if (x->socket >= 0)
		close(x->socket);
}

static void run(void *ctx)
{
	struct dial *x = ctx;
	struct disk *d = x->disk;

	while (d->asked)
		dial(x);
	d->dialling = false;
	d->users--;
	loop_defer(d->keeper->loop, &d->keeper->look);
	free(x);
}

void keeper_dial(struct disk *d)
{
	struct dial *x;
	struct pgr_error err = PGR_ERROR_NONE;

	d->asked = d->pid;
	if (d->dialling)
		return;
	x = calloc(1, sizeof(*x));
	d->dialling = true;
	d->users++;
	if (x) {
		x->disk = d;
		if (!fiber_start(d->keeper->loop, run, x))
			return;
	}
	d->dialling = false;
	d->users--;
	d->asked = 0;
	free(x);
	pgr_fail(&err, -ENOMEM, "no memory to connect again");
	answer(d, -1, &err);
}
