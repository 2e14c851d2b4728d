/* SPDX-License-Identifier: MIT */
#include "tools/pagurus/move_request.h"

#include "migrate/encode.h"
#include "tools/pagurus/message.h"

bool move_request_check(const struct move_request *r, const struct usage *u, int *status)
{
	enum encode_method method;

	if (encode_method_parse(r->compress, &method))
		return true;
	*status = options_complain(u, "--compress %s: lz4, zstd or none", r->compress);
	return false;
}

json_t *move_request_json(const struct move_request *r, const char *guest, const char *host,
			  bool dry_run)
{
	return json_pack("{ss so so ss sI sI sI sI sI sI sI sI sI sb sb sb}", "request", "migrate",
			 "guest", message_string(guest), "host", message_string(host), "compress",
			 r->compress, "downtime_ms", (json_int_t)r->downtime_ms, "bandwidth",
			 (json_int_t)r->bandwidth, "channels", (json_int_t)r->channels,
			 "max_rounds", (json_int_t)r->max_rounds, "max_time_ms",
			 (json_int_t)r->max_time_ms, "throttle", (json_int_t)r->throttle,
			 "delta_cache", (json_int_t)r->delta_cache, "reconnect_ms",
			 (json_int_t)r->reconnect_ms, "suspend_timeout_ms",
			 (json_int_t)r->suspend_timeout_ms, "verify", r->verify, "with_disks",
			 r->with_disks, "dry_run", dry_run);
}
