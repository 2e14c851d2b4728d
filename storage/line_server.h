/* SPDX-License-Identifier: MIT */
/*
 * Commands to a server over a Unix socket: a line is a command, which runs in a fiber of its own; what it answers are lines, too. The lines of a connection
 * are done one after the other. Only root and the server's own user can connect; lengths are bounded all the same.
 */
#ifndef PAGURUS_LINE_SERVER_H
#define PAGURUS_LINE_SERVER_H

#include <stdatomic.h>
#include <stdbool.h>

#include "storage/loop.h"

#define LINE_SERVER_CLIENTS 16u
#define LINE_SERVER_LENGTH  8192u /* of a line that comes */

struct line_server;
struct line_client;

struct line_server_options {
	const char *path;
	const char *greeting; /* NULL: none */
	bool objects; /* a JSON object is a line also without an end of line, as for QEMU; blank lines are left out */
	/* In a fiber; line has no end of line any more. */
	void (*line)(void *ctx, struct line_client *c, char *line);
	void *ctx;
};

/* Listen there (0600); what is there already is replaced. -errno, with a sentence. What o points to is only needed by the call. */
int line_server_start(struct loop *l, const struct line_server_options *o, struct line_server **out,
		      struct pgr_error *err);
/* The file goes, commands that run see line_gone(), and it is waited for their end. Waiting. NULL is allowed. */
void line_server_stop(struct line_server *s);

/* Send text, which has its end of line. A client that does not read is hung up. */
void line_put(struct line_client *c, const char *text);
/* Nothing more is wanted of this client: hang up behind this command. */
void line_end(struct line_client *c);
/* The descriptor that came along with the line, or with one before it (SCM_RIGHTS; one at a time): the caller's from now on. -1: none. */
int line_take_descriptor(struct line_client *c);
/* Becomes true when the client has gone, or the server ends: what only it wanted need not go on. Good until the command ends. */
const atomic_bool *line_gone(const struct line_client *c);

#endif
