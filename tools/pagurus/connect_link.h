/* SPDX-License-Identifier: MIT */
/*
 * The source's way to its target: what struct source_params.connect needs.
 */
#ifndef PAGURUS_CONNECT_LINK_H
#define PAGURUS_CONNECT_LINK_H

#include "migrate/session.h"
#include "tools/pagurus/connect.h"

struct connect_link {
	struct host_address host;
	const struct tls_identity *id;
	uint8_t session[PGR_SESSION_SIZE];
	int cancel_fd;
};

/* source_params.connect with a struct connect_link as ctx; several threads may call. */
int connect_link_open(void *ctx, unsigned channel, enum pgr_purpose purpose, struct channel **out,
		      struct pgr_error *err);

#endif
