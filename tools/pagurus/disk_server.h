/* SPDX-License-Identifier: MIT */
/* Servers of disks on this host: who has a disk open, and having it do what cannot be done beside it. */
#ifndef PAGURUS_DISK_SERVER_H
#define PAGURUS_DISK_SERVER_H

#include <jansson.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "common/error.h"

/* What each answer but the last is given to; NULL: nobody. */
typedef void disk_server_fn(void *ctx, const json_t *answer);

/*
 * Ask each server of a disk on this host until one has what the request (live_command.h; given up) is about: the disk or the guest. 1: *result is its
 * answer, the caller's to free. 0: none has it. -errno with a sentence: what the server said; -ECANCELED after a signal (interrupt.h). Progress is shown, as
 * JSON or on the terminal. A server that says nothing is left out, which standard error is told.
 */
int disk_server_ask(const char *folder, json_t *request, bool json, disk_server_fn *each, void *ctx,
		    json_t **result, struct pgr_error *err);
/*
 * Ask all of them (request is given up); what goes wrong with one leaves the others alone. One that says nothing for long is left out: each gets
 * {"type":"silent","server":its socket} for it.
 */
void disk_servers_each(const char *folder, json_t *request, disk_server_fn *each, void *ctx);

/*
 * Have whoever serves the disk mirror it to the NBD server behind the socket (storage/pv_mirror.h), until it lets go of the disk. 0: the other has everything.
 * progress gets its lines. A socket whose other end is shut ends it; after *stop its last word is waited for, but not for ever: -ECANCELED.
 */
int disk_server_mirror(const char *folder, const char *path, int socket, const atomic_bool *stop,
		       disk_server_fn *progress, void *ctx, struct pgr_error *err);

/* The sentence about one that says nothing, on standard error. */
void disk_server_warn(const char *server);

#endif
