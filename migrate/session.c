/* SPDX-License-Identifier: MIT */
#include "migrate/session_internal.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/text.h"

static const char *const phase_names[] = {
	[SESSION_CONNECT] = "connect", [SESSION_PRECHECK] = "precheck",
	[SESSION_ROUNDS] = "rounds",   [SESSION_RECEIVE] = "receive",
	[SESSION_STOP] = "stop",       [SESSION_FINISH] = "finish",
	[SESSION_VERIFY] = "verify",   [SESSION_WAIT] = "wait",
	[SESSION_READY] = "ready",     [SESSION_COMMIT] = "commit",
	[SESSION_CLEANUP] = "cleanup", [SESSION_DONE] = "done",
	[SESSION_FAILED] = "failed",   [SESSION_RECONNECT] = "reconnect",
	[SESSION_DISKS] = "disks",
};

const char *session_phase_name(enum session_phase p)
{
	if ((unsigned)p >= sizeof(phase_names) / sizeof(phase_names[0]))
		return "unknown";
	return phase_names[p];
}

uint64_t session_now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

void session_cond_init(pthread_cond_t *c)
{
	pthread_condattr_t a;

	pthread_condattr_init(&a);
	pthread_condattr_setclock(&a, CLOCK_MONOTONIC);
	pthread_cond_init(c, &a);
	pthread_condattr_destroy(&a);
}

bool session_cond_wait_until(pthread_cond_t *c, pthread_mutex_t *m, uint64_t until_ns)
{
	struct timespec t = {.tv_sec = (time_t)(until_ns / 1000000000ull),
			     .tv_nsec = (long)(until_ns % 1000000000ull)};

	return pthread_cond_timedwait(c, m, &t) != ETIMEDOUT;
}

int session_channel_write(void *ctx, const struct iovec *iov, unsigned nr, struct pgr_error *err)
{
	struct channel *c = ctx;

	return c->ops->write(c, iov, nr, err);
}

int session_channel_read(void *ctx, void *data, size_t length, struct pgr_error *err)
{
	struct channel *c = ctx;

	return c->ops->read(c, data, length, err);
}

bool session_is_loss(int code)
{
	switch (code) {
	case -EPIPE:
	case -ECONNRESET:
	case -ECONNABORTED:
	case -ECONNREFUSED:
	case -ETIMEDOUT:
	case -ENODATA:
	case -ENETUNREACH:
	case -EHOSTUNREACH:
	case -ENETDOWN:
		return true;
	default:
		return false;
	}
}

static const struct {
	enum pgr_abort_reason reason;
	int code;
} abort_codes[] = {
	{PGR_ABORT_CANCELLED, -ECANCELED},	{PGR_ABORT_REFUSED, -EPERM},
	{PGR_ABORT_CORRUPT, -EBADMSG},		{PGR_ABORT_PROTOCOL, -EPROTO},
	{PGR_ABORT_RESOURCES, -ENOMEM},		{PGR_ABORT_RESOURCES, -ENOSPC},
	{PGR_ABORT_PROTOCOL, -EPROTONOSUPPORT}, {PGR_ABORT_GUEST, -EIO},
};
#define NR_ABORT_CODES (sizeof(abort_codes) / sizeof(abort_codes[0]))

enum pgr_abort_reason session_abort_reason(int code)
{
	for (unsigned i = 0; i < NR_ABORT_CODES; i++)
		if (abort_codes[i].code == code)
			return abort_codes[i].reason;
	return PGR_ABORT_INTERNAL;
}

int session_abort_error(struct pgr_error *err, const char *who, const struct stream_record *rec)
{
	struct pgr_abort a;
	int code = -EREMOTEIO;
	char text[sizeof(err->text)];

	memcpy(&a, rec->body, sizeof(a));
	for (unsigned i = 0; i < NR_ABORT_CODES; i++)
		if (abort_codes[i].reason == a.reason) {
			code = abort_codes[i].code;
			break;
		}
	text_plain(text, sizeof(text), (const char *)rec->body + sizeof(a),
		   rec->length - sizeof(a));
	return pgr_fail(err, code, "%s says: %s", who, text);
}

size_t session_abort_body(void *buffer, const struct pgr_error *err)
{
	struct pgr_abort a = {.reason = session_abort_reason(err->code)};
	size_t n = strlen(err->text);

	memcpy(buffer, &a, sizeof(a));
	memcpy((uint8_t *)buffer + sizeof(a), err->text, n);
	return sizeof(a) + n;
}

uint64_t session_record_bytes(const struct iovec *parts, unsigned nr)
{
	uint64_t length = 0;

	for (unsigned i = 0; i < nr; i++)
		length += parts[i].iov_len;
	return sizeof(struct pgr_record) + ((length + 7) & ~7ull);
}

void session_encode_stats_add(struct encode_stats *sum, const struct encode_stats *s)
{
	sum->pages += s->pages;
	sum->zero += s->zero;
	sum->delta += s->delta;
	sum->plain += s->plain;
	sum->absent += s->absent;
	sum->bytes_in += s->bytes_in;
	sum->bytes_out += s->bytes_out;
	sum->raw_groups += s->raw_groups;
	sum->lz4_groups += s->lz4_groups;
	sum->zstd_groups += s->zstd_groups;
	sum->saved_zero += s->saved_zero;
	sum->saved_delta += s->saved_delta;
	sum->saved_compress += s->saved_compress;
}

/* ---- ledger ---- */

uint64_t ledger_bytes(uint64_t nr_pfns)
{
	return nr_pfns * sizeof(uint32_t) + (nr_pfns + 63) / 64 * sizeof(uint64_t);
}

int ledger_init(struct page_ledger *l, uint64_t nr_pfns, struct pgr_error *err)
{
	l->nr_pfns = nr_pfns;
	l->crc = calloc(nr_pfns ? nr_pfns : 1, sizeof(*l->crc));
	l->present = calloc((nr_pfns + 63) / 64 + 1, sizeof(*l->present));
	if (!l->crc || !l->present) {
		ledger_free(l);
		return pgr_fail(err, -ENOMEM, "no memory for the checksums of %llu pages",
				(unsigned long long)nr_pfns);
	}
	return 0;
}

void ledger_free(struct page_ledger *l)
{
	free(l->crc);
	free(l->present);
	l->crc = NULL;
	l->present = NULL;
}

bool ledger_is_present(const struct page_ledger *l, uint64_t pfn)
{
	return __atomic_load_n(&l->present[pfn / 64], __ATOMIC_RELAXED) >> pfn % 64 & 1;
}

void ledger_absent(struct page_ledger *l, struct ledger_sum *sum, uint64_t pfn)
{
	if (!ledger_is_present(l, pfn))
		return;
	sum->digest -= stream_page_digest(pfn, l->crc[pfn]);
	sum->pages--;
	__atomic_fetch_and(&l->present[pfn / 64], ~(1ull << pfn % 64), __ATOMIC_RELAXED);
}

void ledger_set(struct page_ledger *l, struct ledger_sum *sum, uint64_t pfn, uint32_t crc)
{
	if (ledger_is_present(l, pfn)) {
		sum->digest -= stream_page_digest(pfn, l->crc[pfn]);
	} else {
		/* A word holds pfns of one lane only where stripes are aligned to 64, which the peer need not do. */
		__atomic_fetch_or(&l->present[pfn / 64], 1ull << pfn % 64, __ATOMIC_RELAXED);
		sum->pages++;
	}
	sum->digest += stream_page_digest(pfn, crc);
	l->crc[pfn] = crc;
}

/* ---- reporter ---- */

/* Caller holds lock. */
static void report(struct reporter *r)
{
	uint64_t now = session_now_ns();

	r->progress.elapsed_ns = now - r->started_ns;
	if (r->tick)
		r->tick(r->ctx, &r->progress);
	if (now - r->last_ns > 100000000ull) {
		double seconds = (double)(now - r->last_ns) / 1e9;
		double weight = r->last_ns == r->started_ns ? 1.0 : 0.3;
		uint64_t memory = r->progress.encode.bytes_in;

		r->progress.rate =
			(uint64_t)((1 - weight) * (double)r->progress.rate +
				   weight * (double)(r->progress.bytes_sent - r->last_bytes) /
					   seconds);
		r->progress.memory_rate =
			(uint64_t)((1 - weight) * (double)r->progress.memory_rate +
				   weight * (double)(memory - r->last_memory) / seconds);
		r->last_ns = now;
		r->last_bytes = r->progress.bytes_sent;
		r->last_memory = memory;
	}
	if (r->owner && r->owner->progress)
		r->owner->progress(r->owner->ctx, &r->progress);
}

static void *reporter_main(void *arg)
{
	struct reporter *r = arg;

	pthread_mutex_lock(&r->lock);
	while (!r->stop) {
		session_cond_wait_until(&r->changed, &r->lock, session_now_ns() + 200000000ull);
		if (!r->stop)
			report(r);
	}
	pthread_mutex_unlock(&r->lock);
	return NULL;
}

int reporter_start(struct reporter *r, const struct session_owner *o,
		   void (*tick)(void *, struct session_progress *), void *ctx,
		   struct pgr_error *err)
{
	int rc;

	memset(r, 0, sizeof(*r));
	r->owner = o;
	r->tick = tick;
	r->ctx = ctx;
	r->started_ns = r->last_ns = session_now_ns();
	pthread_mutex_init(&r->lock, NULL);
	session_cond_init(&r->changed);
	rc = -pthread_create(&r->thread, NULL, reporter_main, r);
	if (rc) {
		pthread_cond_destroy(&r->changed);
		pthread_mutex_destroy(&r->lock);
		return pgr_fail_errno(err, rc, "cannot start the session's reporting thread");
	}
	r->running = true;
	return 0;
}

void reporter_stop(struct reporter *r)
{
	if (!r->running)
		return;
	pthread_mutex_lock(&r->lock);
	r->stop = true;
	pthread_cond_signal(&r->changed);
	pthread_mutex_unlock(&r->lock);
	pthread_join(r->thread, NULL);
	pthread_cond_destroy(&r->changed);
	pthread_mutex_destroy(&r->lock);
	r->running = false;
}

void reporter_phase(struct reporter *r, enum session_phase phase)
{
	pthread_mutex_lock(&r->lock);
	r->progress.phase = phase;
	report(r);
	pthread_mutex_unlock(&r->lock);
}

void reporter_message(struct reporter *r, enum session_log level, const char *fmt, ...)
{
	char text[1200];
	va_list ap;

	if (!r->owner || !r->owner->message)
		return;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	pthread_mutex_lock(&r->lock);
	r->owner->message(r->owner->ctx, level, text);
	pthread_mutex_unlock(&r->lock);
}

int reporter_mark(struct reporter *r, enum session_mark mark, struct pgr_error *err)
{
	int rc = 0;

	if (!r->owner || !r->owner->mark)
		return 0;
	pthread_mutex_lock(&r->lock);
	rc = r->owner->mark(r->owner->ctx, mark, err);
	pthread_mutex_unlock(&r->lock);
	return rc;
}

void reporter_moved(struct reporter *r)
{
	if (!r->owner || !r->owner->moved)
		return;
	pthread_mutex_lock(&r->lock);
	r->owner->moved(r->owner->ctx);
	pthread_mutex_unlock(&r->lock);
}

bool reporter_cancelled(const struct reporter *r)
{
	return r->owner && r->owner->cancel && atomic_load(r->owner->cancel);
}
