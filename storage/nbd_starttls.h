/* SPDX-License-Identifier: MIT */
/*
 * The client's part of an NBD handshake until TLS is there, and a question for the export, so that what is wrong is found here and said in a sentence. Who goes
 * on from there (libnbd, behind nbd_relay.h) chooses the export by an option, as if nothing had been said but the greeting.
 *
 * Everything that the server says is read whole within limits, and exactly: nothing that came without TLS is left over for what comes with it.
 */
#ifndef PAGURUS_NBD_STARTTLS_H
#define PAGURUS_NBD_STARTTLS_H

#include <openssl/ssl.h>
#include <stdint.h>

#include "common/identity.h"

struct nbd_starttls {
	const char *name; /* of the disk, for messages */
	/* The server has to show a certificate that this host trusts (TLS 1.3); NULL: without TLS, for tests. */
	const struct tls_identity *identity;
	const char *expect;   /* and that under this name; NULL: under any */
	const char *export;   /* at most NBD_NAME_MAX bytes (nbd_proto.h) */
	uint64_t deadline_ns; /* loop_now_ns(): when all of it has to be over */
};

/*
 * fd is connected to the server and non-blocking; it stays the caller's. Waits; any thread; SIGPIPE is ignored. 0: *out is the connection over fd (SSL_free(); NULL
 * without an identity), whose writes may be done in part and from another place (SSL_MODE_ENABLE_PARTIAL_WRITE, SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER), and *flags what
 * both sides have greeted each other with (NBD_FIXED_NEWSTYLE, NBD_NO_ZEROES). -ETIMEDOUT, -EPROTO (no NBD server, or one that breaks its rules), -EOPNOTSUPP (it
 * has no TLS), -EACCES (a stranger; or we are one there), -ENOENT (no such export), -EPERM (it refuses it), -ECONNRESET, -ENOMEM.
 */
int nbd_starttls(int fd, const struct nbd_starttls *o, SSL **out, uint16_t *flags,
		 struct pgr_error *err);

#endif
