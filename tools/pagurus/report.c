/* SPDX-License-Identifier: MIT */
#include "tools/pagurus/report.h"

#include <errno.h>

#include "tools/pagurus/message.h"
#include "tools/pagurus/units.h"

static json_t *number(uint64_t value)
{
	return json_integer(value > INT64_MAX ? INT64_MAX : (json_int_t)value);
}

static json_t *encode_stats(const struct encode_stats *s)
{
	return json_pack("{so so so so so so so so so so}", "pages", number(s->pages), "zero",
			 number(s->zero), "delta", number(s->delta), "plain", number(s->plain),
			 "absent", number(s->absent), "bytes_in", number(s->bytes_in), "bytes_out",
			 number(s->bytes_out), "saved_zero", number(s->saved_zero), "saved_delta",
			 number(s->saved_delta), "saved_compress", number(s->saved_compress));
}

json_t *report_progress(const struct session_progress *p)
{
	return json_pack("{ss ss so so so so so so so so so so so so so so so}", "type", "progress",
			 "phase", session_phase_name(p->phase), "round", number(p->round),
			 "elapsed_ns", number(p->elapsed_ns), "pages_total", number(p->pages_total),
			 "pages_done", number(p->pages_done), "bytes", number(p->bytes_sent),
			 "disk_bytes", number(p->disk_bytes), "disk_left", number(p->disk_left),
			 "memory_bytes", number(p->memory_bytes), "rate", number(p->rate),
			 "memory_rate", number(p->memory_rate), "dirty_pages_rate",
			 number(p->dirty_rate), "predicted_downtime_ns",
			 number(p->predicted_downtime_ns), "left_ns", number(p->left_ns), "reason",
			 message_string(p->reason), "encode", encode_stats(&p->encode));
}

enum pgr_exit report_exit(const struct session_result *res, int code)
{
	if (!code)
		return EXIT_OK;
	if (res && res->outcome == SESSION_UNKNOWN)
		return EXIT_UNKNOWN;
	if (code == -ECANCELED)
		return EXIT_CANCELLED;
	/* EPERM: the precheck; EACCES: the certificate. */
	if (code == -EPERM || code == -EACCES)
		return EXIT_REFUSED;
	return EXIT_FAILED;
}

static const char *outcome_name(enum session_outcome o)
{
	return o == SESSION_MOVED ? "moved" : o == SESSION_UNKNOWN ? "unknown" : "stayed";
}

static json_t *result_details(const struct session_result *r)
{
	char digest[UNITS_TEXT];

	snprintf(digest, sizeof(digest), "%016llx", (unsigned long long)r->digest);
	return json_pack(
		"{so so so so so ss so sb so so so so so s{so so so so so so so so so so so so}}",
		"rounds", number(r->rounds), "elapsed_ns", number(r->elapsed_ns), "bytes",
		number(r->bytes), "memory_bytes", number(r->memory_bytes), "disk_bytes",
		number(r->disk_bytes), "digest", digest, "digest_pages", number(r->digest_pages),
		"verified", r->verified, "reconnects", number(r->reconnects), "encode",
		encode_stats(&r->encode), "peak_buffers", number(r->peak_buffers),
		"predicted_downtime_ns", number(r->last.predicted_downtime_ns), "reason",
		message_string(r->last.reason), "stop", "total_ns", number(r->stop.total),
		"suspend_ns", number(r->stop.suspend), "disks_ns", number(r->stop.disks),
		"pages_ns", number(r->stop.pages), "state_ns", number(r->stop.state), "verify_ns",
		number(r->stop.verify), "build_ns", number(r->stop.build), "start_ns",
		number(r->stop.start), "devices_ns", number(r->stop.connected.devices_ns),
		"announced_ns", number(r->stop.connected.announced_ns), "devices",
		number(r->stop.connected.devices), "devices_waiting",
		number(r->stop.connected.waiting));
}

json_t *report_result(const struct session_result *res, int code, const char *text)
{
	const char *outcome = res ? outcome_name(res->outcome) : "stayed";
	/* A success may have met and overcome errors on its way; their text is no part of it. */
	json_t *message = json_pack("{ss ss si si so}", "type", "result", "outcome", outcome,
				    "exit", (int)report_exit(res, code), "errno", -code, "text",
				    message_string(code ? text : ""));

	if (message && res)
		json_object_update_new(message, result_details(res));
	return message;
}

json_t *report_message(enum session_log level, const char *text)
{
	json_t *message = message_text_object("message", text);

	json_object_set_new(message, "level",
			    json_string(level == SESSION_WARNING ? "warning" : "info"));
	return message;
}
