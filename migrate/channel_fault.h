/* SPDX-License-Identifier: MIT */
/*
 * A channel that goes wrong at a chosen moment, for tests. It hands everything on to the channel that it wraps until then.
 *
 * Threads: as for any channel. The fault strikes once; `fired` tells whether it has.
 */
#ifndef PAGURUS_CHANNEL_FAULT_H
#define PAGURUS_CHANNEL_FAULT_H

#include "migrate/channel.h"

enum fault_kind {
	FAULT_NONE,
	FAULT_FAIL, /* the call fails with -EIO and moves nothing; the connection stays usable */
	FAULT_CUT, /* the connection is cut before the call moves a byte: -ECONNRESET here, the end at the peer */
	FAULT_SHORT, /* the call moves its bytes up to the chosen place (a call: half of them), then as FAULT_CUT, -EPIPE */
	FAULT_FLIP, /* the lowest bit of the chosen byte (a call: its first) is inverted, nobody is told */
	FAULT_DROP, /* from the chosen place on the rest of the call is thrown away, nobody is told (writes only) */
};

enum fault_side { FAULT_READ, FAULT_WRITE };
enum fault_unit { FAULT_CALL, FAULT_BYTE };

struct fault_plan {
	enum fault_kind kind;
	enum fault_side side;
	enum fault_unit unit;
	uint64_t
		at; /* the number of the call (1: the first) or the offset of the byte (0: the first) on that side */
};

/*
 * "SIDE-KIND@UNIT:N", such as "write-flip@byte:4096" or "read-cut@call:3"; kinds: fail, cut, short, flip, drop. "none" is no
 * fault. -EINVAL.
 */
int channel_fault_parse(const char *text, struct fault_plan *plan, struct pgr_error *err);

/* Wrap inner, which belongs to the result from then on (on failure: closed). -ENOMEM. */
int channel_fault_wrap(struct channel *inner, const struct fault_plan *plan, struct channel **out,
		       struct pgr_error *err);
/* Whether the fault of c, a channel of channel_fault_wrap, has struck. Any thread. */
bool channel_fault_fired(struct channel *c);

#endif
