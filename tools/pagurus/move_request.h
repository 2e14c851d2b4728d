/* SPDX-License-Identifier: MIT */
/* How a guest is to be moved: the options that `pagurus migrate` and `pagurus host evacuate` share, and the request for the daemon. */
#ifndef PAGURUS_MOVE_REQUEST_H
#define PAGURUS_MOVE_REQUEST_H

#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

#include "protocol-spec/stream.h"
#include "tools/pagurus/options.h"

struct move_request {
	const char *compress;
	uint64_t downtime_ms, bandwidth, channels, max_rounds, max_time_ms, throttle, delta_cache;
	uint64_t reconnect_ms, suspend_timeout_ms;
	bool verify, with_disks;
};

#define MOVE_REQUEST_DEFAULT                                                                 \
	{                                                                                    \
		.compress = "lz4", .downtime_ms = 300, .channels = 1, .throttle = 100,       \
		.reconnect_ms = 30000, .suspend_timeout_ms = 60000, .delta_cache = 64u << 20 \
	}

/* Rows for a verb's option table. */
/* clang-format off */
#define MOVE_REQUEST_OPTIONS(r)                                                                                             \
	{"downtime", OPTION_MS, &(r)->downtime_ms, "TIME",                                                                  \
	 "longest stop of a guest (default 300ms; 0: as short as possible)", 0, 86400000},                                  \
	{"bandwidth", OPTION_RATE, &(r)->bandwidth, "RATE", "most to send a second, as 100M or 1Gbit (default: no limit)",  \
	 0, 0},                                                                                                             \
	{"channels", OPTION_COUNT, &(r)->channels, "N", "connections, 1 to 16 (default 1)", 1, PGR_CHANNELS_MAX},           \
	{"compress", OPTION_STRING, &(r)->compress, "METHOD", "lz4 (default), zstd or none", 0, 0},                         \
	{"delta-cache", OPTION_SIZE, &(r)->delta_cache, "SIZE",                                                             \
	 "memory to remember sent pages in, for sending differences (default 64M; 0: none)", 0, 1ull << 36},                \
	{"verify", OPTION_FLAG, &(r)->verify, NULL, "send everything twice and compare", 0, 0},                             \
	{"with-disks", OPTION_FLAG, &(r)->with_disks, NULL,                                                                \
	 "take disks in files along, into new files of the same names", 0, 0},                                             \
	{"max-rounds", OPTION_COUNT, &(r)->max_rounds, "N",                                                                 \
	 "give up copying while it runs after so many rounds (default 30)", 0, 1000},                                       \
	{"max-time", OPTION_MS, &(r)->max_time_ms, "TIME", "give up after this long", 0, 604800000},                        \
	{"throttle", OPTION_COUNT, &(r)->throttle, "PERCENT",                                                               \
	 "slow the guest down to this much of its speed if needed (default 100: never)", 1, 100},                           \
	{"reconnect", OPTION_MS, &(r)->reconnect_ms, "TIME",                                                                \
	 "try so long to get a lost connection back, a third of it once the guest is stopped (default 30s)", 3, 3600000},   \
	{"suspend-timeout", OPTION_MS, &(r)->suspend_timeout_ms, "TIME",                                                    \
	 "give up when the guest does not stop by then (default 60s)", 1, 3600000}
/* clang-format on */

/* What the table cannot check. True: go on. False: *status is the exit status, the complaint was made. */
bool move_request_check(const struct move_request *r, const struct usage *u, int *status);

/* {"request":"migrate", ...}. Owned by the caller; NULL without memory. */
json_t *move_request_json(const struct move_request *r, const char *guest, const char *host,
			  bool dry_run);

#endif
