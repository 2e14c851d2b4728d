/* SPDX-License-Identifier: MIT */
/*
 * JSON objects between the processes of this host: one a line over the control socket (command and daemon), one a packet with
 * perhaps a file descriptor over a SOCK_SEQPACKET pair (daemon and workers). Both ends are root on this host, yet lengths are
 * bounded and every text is parsed as hostile.
 */
#ifndef PAGURUS_MESSAGE_H
#define PAGURUS_MESSAGE_H

#include <stdbool.h>
#include <stddef.h>

#include <jansson.h>

#include "common/error.h"

/* Longest message in bytes. */
#define MESSAGE_MAX (64u << 10)

/* ---- packets ---- */

/* Takes over neither. fd -1: none. -EAGAIN: the other end does not read (only without wait); -EPIPE: it is gone; -EMSGSIZE. */
int packet_send(int socket, const json_t *message, int fd, bool wait);
/*
 * The next message, owned by the caller, and the descriptor that came along (close-on-exec) or -1. -ENODATA: the other end is
 * gone, -EAGAIN: none yet (non-blocking socket), -EPROTO: not a JSON object.
 */
int packet_receive(int socket, json_t **message, int *fd);

/* ---- lines ---- */

struct line_reader {
	char *data;
	size_t used;
	bool ended;
};

/* Read what is there, waiting for something when the descriptor is blocking. 0, -ENODATA at the end, -EMSGSIZE, -errno. */
int line_fill(struct line_reader *r, int fd);
/* The next complete message or NULL when there is none (*bad: a line that is no JSON object was met). */
json_t *line_next(struct line_reader *r, bool *bad);
void line_free(struct line_reader *r);

/* Write one message and '\n', waiting as long as needed. -EPIPE: the reader is gone. */
int line_write(int fd, const json_t *message);

/* ---- fields ---- */

/* Text of a field, "" when it is missing or no text. */
const char *message_text(const json_t *message, const char *key);
/* Number of a field that is a non-negative integer, else 0. */
unsigned long long message_number(const json_t *message, const char *key);
bool message_flag(const json_t *message, const char *key);

/* {"type": type, "text": text} with bytes that are no UTF-8 replaced by '?'. Never NULL: aborts without memory. */
json_t *message_text_object(const char *type, const char *text);
/* A JSON string of any bytes, as above. */
json_t *message_string(const char *text);

#endif
