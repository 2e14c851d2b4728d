/* SPDX-License-Identifier: MIT */
#include "tools/pagurus/connect_link.h"

int connect_link_open(void *ctx, unsigned channel, enum pgr_purpose purpose, struct channel **out,
		      struct pgr_error *err)
{
	const struct connect_link *l = ctx;
	struct pgr_preamble preamble;

	connect_preamble(&preamble, l->session, channel, purpose);
	return connect_to(&l->host, l->id, &preamble, l->cancel_fd, out, err);
}
