/* SPDX-License-Identifier: MIT */
/*
 * Connections between two daemons: TCP, the preamble in clear, then TLS with both certificates checked.
 */
#ifndef PAGURUS_CONNECT_H
#define PAGURUS_CONNECT_H

#include <netinet/in.h>
#include <sys/socket.h>

#include "common/error.h"
#include "migrate/channel.h"
#include "protocol-spec/stream.h"
#include "tools/pagurus/hosts.h"

/* Longest time without progress: while a connection is being made, and afterwards. */
#define CONNECT_HANDSHAKE_MS 10000u
#define CONNECT_IDLE_MS	     20000u
/* An incoming connection's whole handshake: who sends a byte now and then makes progress, too. */
#define CONNECT_STRANGER_MS 30000u

/*
 * Outgoing. cancel_fd: readable ends the wait (-1: none). The peer must have the certificate that is trusted under h->name.
 * Errors: channel_tcp_connect's and channel_tls's.
 */
int connect_to(const struct host_address *h, const struct tls_identity *id,
	       const struct pgr_preamble *preamble, int cancel_fd, struct channel **out,
	       struct pgr_error *err);

void connect_preamble(struct pgr_preamble *p, const uint8_t session[PGR_SESSION_SIZE],
		      unsigned channel, enum pgr_purpose purpose);

/* 0 or -EPROTO (says what is wrong with it). */
int connect_check_preamble(const struct pgr_preamble *p, struct pgr_error *err);

/* Where an accepted connection comes from. 0, or -ENOTCONN: it is gone, or of no kind that two hosts have between them. */
union connect_address {
	struct sockaddr any;
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;
};
int connect_address(int fd, union connect_address *out);
/* The same for messages. Returns out. */
#define CONNECT_ORIGIN 64
const char *connect_origin(int fd, char out[CONNECT_ORIGIN]);

/* Incoming, preamble read already: takes fd over, also on failure. peer_name gets the trusted name. */
int connect_from(int fd, const struct tls_identity *id, const char *expect, char peer_name[256],
		 struct channel **out, struct pgr_error *err);

#endif
