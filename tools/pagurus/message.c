/* SPDX-License-Identifier: MIT */
#include "tools/pagurus/message.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int packet_send(int socket, const json_t *message, int fd, bool wait)
{
	char *text = json_dumps(message, JSON_COMPACT);
	struct iovec iov;
	struct msghdr header = {.msg_iov = &iov, .msg_iovlen = 1};
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(sizeof(int))];
	} control;
	ssize_t n;
	int rc = 0;

	if (!text)
		return -ENOMEM;
	iov = (struct iovec){.iov_base = text, .iov_len = strlen(text)};
	if (iov.iov_len > MESSAGE_MAX) {
		rc = -EMSGSIZE;
		goto out;
	}
	if (fd >= 0) {
		struct cmsghdr *c;

		memset(&control, 0, sizeof(control));
		header.msg_control = control.space;
		header.msg_controllen = sizeof(control.space);
		c = CMSG_FIRSTHDR(&header);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(c), &fd, sizeof(int));
	}
	do
		n = sendmsg(socket, &header, MSG_NOSIGNAL | (wait ? 0 : MSG_DONTWAIT));
	while (n < 0 && errno == EINTR);
	if (n < 0)
		rc = errno == ECONNRESET ? -EPIPE : -errno;
out:
	free(text);
	return rc;
}

/* Keep the first descriptor that came with a packet and close any other. */
static int take_fds(struct msghdr *header)
{
	struct cmsghdr *c;
	int fd, kept = -1;
	size_t i, nr;

	for (c = CMSG_FIRSTHDR(header); c; c = CMSG_NXTHDR(header, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		nr = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (i = 0; i < nr; i++) {
			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
			if (kept < 0)
				kept = fd;
			else
				close(fd);
		}
	}
	return kept;
}

int packet_receive(int socket, json_t **message, int *fd)
{
	char *text = malloc(MESSAGE_MAX);
	struct iovec iov = {.iov_base = text, .iov_len = MESSAGE_MAX};
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(4 * sizeof(int))];
	} control;
	struct msghdr header = {.msg_iov = &iov, .msg_iovlen = 1};
	ssize_t n;
	int rc = 0;

	*message = NULL;
	*fd = -1;
	if (!text)
		return -ENOMEM;
	header.msg_control = control.space;
	header.msg_controllen = sizeof(control.space);
	do
		n = recvmsg(socket, &header, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n < 0) {
		rc = errno == ECONNRESET ? -ENODATA : -errno;
		goto out;
	}
	if (!n) {
		rc = -ENODATA;
		goto out;
	}
	*fd = take_fds(&header);
	if (!(header.msg_flags & (MSG_TRUNC | MSG_CTRUNC)))
		*message = json_loadb(text, (size_t)n, 0, NULL);
	if (!json_is_object(*message)) {
		json_decref(*message);
		*message = NULL;
		if (*fd >= 0)
			close(*fd);
		*fd = -1;
		rc = -EPROTO;
	}
out:
	free(text);
	return rc;
}

int line_fill(struct line_reader *r, int fd)
{
	ssize_t n;

	if (!r->data) {
		r->data = malloc(MESSAGE_MAX);
		if (!r->data)
			return -ENOMEM;
	}
	if (r->used == MESSAGE_MAX)
		return -EMSGSIZE;
	n = read(fd, r->data + r->used, MESSAGE_MAX - r->used);
	if (n < 0)
		return errno == ECONNRESET ? -ENODATA : -errno;
	if (!n)
		return -ENODATA;
	r->used += (size_t)n;
	return 0;
}

json_t *line_next(struct line_reader *r, bool *bad)
{
	char *end = r->used ? memchr(r->data, '\n', r->used) : NULL;
	json_t *message;
	size_t length;

	*bad = false;
	if (!end)
		return NULL;
	length = (size_t)(end - r->data);
	message = json_loadb(r->data, length, 0, NULL);
	if (!json_is_object(message)) {
		json_decref(message);
		message = NULL;
		*bad = true;
	}
	r->used -= length + 1;
	memmove(r->data, end + 1, r->used);
	return message;
}

void line_free(struct line_reader *r)
{
	free(r->data);
	*r = (struct line_reader){0};
}

int line_write(int fd, const json_t *message)
{
	char *text = json_dumps(message, JSON_COMPACT);
	size_t length, at = 0;
	ssize_t n;
	int rc = 0;

	if (!text)
		return -ENOMEM;
	length = strlen(text);
	text[length++] = '\n'; /* in place of the terminator: the length is known */
	while (at < length) {
		n = write(fd, text + at, length - at);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0) {
			rc = -errno;
			break;
		}
		at += (size_t)n;
	}
	free(text);
	return rc;
}

const char *message_text(const json_t *message, const char *key)
{
	const char *text = json_string_value(json_object_get(message, key));

	return text ? text : "";
}

unsigned long long message_number(const json_t *message, const char *key)
{
	json_int_t value = json_integer_value(json_object_get(message, key));

	return value > 0 ? (unsigned long long)value : 0;
}

bool message_flag(const json_t *message, const char *key)
{
	return json_is_true(json_object_get(message, key));
}

json_t *message_string(const char *text)
{
	json_t *value = json_string(text);
	char *copy, *c;

	if (value)
		return value;
	copy = strdup(text);
	if (!copy)
		abort();
	for (c = copy; *c; c++)
		if (*c & 0x80)
			*c = '?';
	value = json_string(copy);
	if (!value)
		abort();
	free(copy);
	return value;
}

json_t *message_text_object(const char *type, const char *text)
{
	json_t *message = json_object();

	if (!message || json_object_set_new(message, "type", json_string(type)) ||
	    json_object_set_new(message, "text", message_string(text)))
		abort();
	return message;
}
