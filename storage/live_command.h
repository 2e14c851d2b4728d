/* SPDX-License-Identifier: MIT */
/*
 * Commands of the operator about disks that a server has open: JSON objects over its line_server.h. A line each way is an object.
 *
 *   {"request":"snapshot","disk":PATH,"name":NAME}             "result" with "path" and "held_ns"
 *   {"request":"delete","disk":PATH,"name":NAME[,"rate":N]}    "progress" with "done" and "size", then "result" with "path"
 *   {"request":"commit","disk":PATH[,"rate":N]}                the same
 *   {"request":"info"|"check","disk":PATH}                     "result" with what struct live_look has
 *
 * The first answer to each is {"type":"begun"}, the last {"type":"result"} or {"type":"error","code","text"}. {"type":"elsewhere"}, the only one: PATH is no
 * disk of this server. A server that ends before its first answer has done nothing.
 */
#ifndef PAGURUS_LIVE_COMMAND_H
#define PAGURUS_LIVE_COMMAND_H

#include <jansson.h>

#include "storage/line_server.h"
#include "storage/live.h"

/* One line; o is given up. */
void live_put(struct line_client *c, json_t *o);
void live_put_error(struct line_client *c, const struct pgr_error *err);

/* "" when it is missing or no text. */
const char *live_text(const json_t *request, const char *key);

/*
 * Do one of the commands above on these disks; "snapshot" may have several. 0: *result is its last answer, to be sent; 1: it is none of them; -errno
 * with a sentence: not sent yet. In a fiber; the caller sees to it that nobody else changes their layers.
 */
int live_command(const json_t *request, const struct live_disk *disks, unsigned nr,
		 struct line_client *client, json_t **result, struct pgr_error *err);

#endif
