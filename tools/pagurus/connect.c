/* SPDX-License-Identifier: MIT */
#include "tools/pagurus/connect.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

void connect_preamble(struct pgr_preamble *p, const uint8_t session[PGR_SESSION_SIZE],
		      unsigned channel, enum pgr_purpose purpose)
{
	memset(p, 0, sizeof(*p));
	memcpy(p->magic, PGR_PREAMBLE_MAGIC, sizeof(p->magic));
	if (session)
		memcpy(p->session, session, PGR_SESSION_SIZE);
	p->channel = (uint16_t)channel;
	p->purpose = (uint16_t)purpose;
}

int connect_check_preamble(const struct pgr_preamble *p, struct pgr_error *err)
{
	static const uint8_t zero[PGR_SESSION_SIZE];
	bool no_session = !memcmp(p->session, zero, sizeof(zero));

	if (memcmp(p->magic, PGR_PREAMBLE_MAGIC, sizeof(p->magic)))
		return pgr_fail(err, -EPROTO, "it does not speak the pagurus protocol");
	if (p->purpose < PGR_PURPOSE_NEW || p->purpose > PGR_PURPOSE_DISK)
		return pgr_fail(err, -EPROTO, "unknown purpose %u in its preamble", p->purpose);
	if (p->channel >= PGR_CHANNELS_MAX || p->reserved)
		return pgr_fail(err, -EPROTO, "bad channel or reserved field in its preamble");
	if (no_session != (p->purpose == PGR_PURPOSE_CHECK))
		return pgr_fail(err, -EPROTO, "bad session in its preamble");
	return 0;
}

int connect_to(const struct host_address *h, const struct tls_identity *id,
	       const struct pgr_preamble *preamble, int cancel_fd, struct channel **out,
	       struct pgr_error *err)
{
	struct iovec iov = {.iov_base = (void *)preamble, .iov_len = sizeof(*preamble)};
	char label[sizeof(h->name) + sizeof(h->address) + 16], peer[256];
	struct channel *c;
	int fd, rc;

	rc = channel_tcp_connect(h->address, h->port, CONNECT_HANDSHAKE_MS, cancel_fd, &fd, err);
	if (rc)
		return rc;
	snprintf(label, sizeof(label), "%s:%u", h->name, h->port);
	rc = channel_from_fd(fd, CONNECT_IDLE_MS, label, &c, err);
	if (rc)
		return rc;
	rc = c->ops->write(c, &iov, 1, err);
	if (rc) {
		c->ops->close(c);
		return rc;
	}
	return channel_tls(c, TLS_CLIENT, id, h->name, peer, out, err);
}

int connect_address(int fd, union connect_address *out)
{
	socklen_t length = sizeof(*out);

	memset(out, 0, sizeof(*out));
	if (getpeername(fd, &out->any, &length) ||
	    (out->any.sa_family != AF_INET && out->any.sa_family != AF_INET6))
		return -ENOTCONN;
	return 0;
}

const char *connect_origin(int fd, char out[CONNECT_ORIGIN])
{
	union connect_address a;

	if (connect_address(fd, &a))
		snprintf(out, CONNECT_ORIGIN, "somebody who is gone");
	else if (a.any.sa_family == AF_INET)
		inet_ntop(AF_INET, &a.v4.sin_addr, out, CONNECT_ORIGIN);
	else
		inet_ntop(AF_INET6, &a.v6.sin6_addr, out, CONNECT_ORIGIN);
	return out;
}

int connect_from(int fd, const struct tls_identity *id, const char *expect, char peer_name[256],
		 struct channel **out, struct pgr_error *err)
{
	struct channel *c;
	char label[CONNECT_ORIGIN];
	int rc;

	rc = channel_from_fd(fd, CONNECT_IDLE_MS, connect_origin(fd, label), &c, err);
	if (rc)
		return rc;
	return channel_tls(c, TLS_SERVER, id, expect, peer_name, out, err);
}
