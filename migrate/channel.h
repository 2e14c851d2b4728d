/* SPDX-License-Identifier: MIT */
/*
 * Bytes to and from a peer or a file: TCP, Unix socket, pipe, file; in clear or through TLS 1.3.
 *
 * A channel knows nothing of records. One thread may write and another may read at the same time (full duplex, also with
 * TLS); two writers or two readers may not. Every wait can be ended from another thread with channel_shutdown().
 */
#ifndef PAGURUS_CHANNEL_H
#define PAGURUS_CHANNEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "common/error.h"
#include "common/identity.h"

struct channel;

struct channel_ops {
	/*
	 * Write all of iov (nr <= 16) or fail. 0 or -EPIPE/-ECONNRESET (peer gone), -ETIMEDOUT (no progress for the timeout),
	 * -ECANCELED (after shutdown), -ENOSPC and the like for files.
	 */
	int (*write)(struct channel *c, const struct iovec *iov, unsigned nr,
		     struct pgr_error *err);
	/* Read exactly length bytes or fail. Orderly end at the first byte: -ENODATA; in the middle: -EPIPE. Others as write. */
	int (*read)(struct channel *c, void *data, size_t length, struct pgr_error *err);
	/* Make what was written durable (files: fsync of the file; else nothing). */
	int (*sync)(struct channel *c, struct pgr_error *err);
	/* Thread-safe: every present and future wait fails with -ECANCELED. */
	void (*shutdown)(struct channel *c);
	/* Free; no other thread may be in a call. */
	void (*close)(struct channel *c);
};

struct channel {
	const struct channel_ops *ops;
	char peer[128];	  /* for messages: "b:7777 (TLS 1.3, AES-256-GCM)", "file /x/y" */
	uint64_t written; /* bytes so far, as given to write() */
	uint64_t read;
};

#define CHANNEL_TIMEOUT_NONE 0u

/* Takes ownership of fd (stream socket, pipe or terminal); closed by close(). timeout_ms: longest time without progress. */
int channel_from_fd(int fd, unsigned timeout_ms, const char *peer, struct channel **out,
		    struct pgr_error *err);

/* A regular file. Writing: created exclusively as PATH.partial mode 0600; channel_file_commit renames it when it is complete and durable. */
int channel_file_create(const char *path, bool overwrite, struct channel **out,
			struct pgr_error *err);
int channel_file_commit(struct channel *c, struct pgr_error *err);
/* close() of a file that was created and not committed removes PATH.partial. */
int channel_file_open(const char *path, struct channel **out, struct pgr_error *err);
/* Absolute seek of a file opened for reading; -ESPIPE for others. Size in *size when not NULL. */
int channel_file_seek(struct channel *c, uint64_t offset, uint64_t *size, struct pgr_error *err);

/* host may be a name, an IPv4 or IPv6 address; tries all addresses. TCP_NODELAY, keepalive. Interruptible by cancel_fd readable (-1: none). */
int channel_tcp_connect(const char *host, uint16_t port, unsigned timeout_ms, int cancel_fd,
			int *out_fd, struct pgr_error *err);
/* Listening sockets on host:port (NULL: any address, both families). Port 0: any; *port says which. Up to 4 fds; returns their number. */
int channel_tcp_listen(const char *host, uint16_t *port, int fds[4], struct pgr_error *err);

/* ---- TLS 1.3, both ends authenticated by pinned certificates ---- */

enum tls_role { TLS_CLIENT, TLS_SERVER };
/*
 * Handshake over c, which is owned by the result from then on (also on failure: closed). expect: name of the trusted
 * certificate that the peer must have, NULL for any trusted one; the name found is put into peer_name.
 * -EACCES: a stranger, or an expired or unknown certificate (the text says which side refused which certificate and what to do).
 */
int channel_tls(struct channel *c, enum tls_role role, const struct tls_identity *id,
		const char *expect, char peer_name[256], struct channel **out,
		struct pgr_error *err);

#endif
