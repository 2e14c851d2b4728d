/* SPDX-License-Identifier: MIT */
#include "migrate/channel_fault.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "migrate/channel_io.h"

struct channel_fault {
	struct channel c;
	struct channel *inner;
	struct fault_plan plan;
	uint64_t calls; /* on the plan's side, so touched by one thread */
	atomic_bool fired;
	atomic_bool cancelled; /* by the user, not by the fault */
};

static const char *const fault_kinds[] = {
	[FAULT_FAIL] = "fail", [FAULT_CUT] = "cut",   [FAULT_SHORT] = "short",
	[FAULT_FLIP] = "flip", [FAULT_DROP] = "drop",
};
static const char *const fault_sides[] = {[FAULT_READ] = "read", [FAULT_WRITE] = "write"};
static const char *const fault_units[] = {[FAULT_CALL] = "call", [FAULT_BYTE] = "byte"};

#define COUNT(a) (int)(sizeof(a) / sizeof((a)[0]))

static struct channel_fault *to_fault(struct channel *c)
{
	return (struct channel_fault *)c;
}

/* Whether the call that moves length bytes after `before` ones is the one; *place: where in it. */
static bool fault_strikes(struct channel_fault *f, enum fault_side side, uint64_t before,
			  size_t length, size_t *place)
{
	const struct fault_plan *p = &f->plan;
	bool strikes;

	if (p->kind == FAULT_NONE || p->side != side || atomic_load(&f->fired))
		return false;
	f->calls++;
	if (p->unit == FAULT_CALL) {
		strikes = f->calls == p->at;
		*place = p->kind == FAULT_SHORT || p->kind == FAULT_DROP ? length / 2 : 0;
	} else {
		strikes = p->at >= before && p->at - before < length;
		*place = (size_t)(p->at - before);
	}
	if (strikes)
		atomic_store(&f->fired, true);
	return strikes;
}

static int fault_end(struct channel_fault *f, struct pgr_error *err)
{
	switch (f->plan.kind) {
	case FAULT_FAIL:
		return pgr_fail(err, -EIO, "%s: failed as planned", f->c.peer);
	case FAULT_CUT:
		f->inner->ops->shutdown(f->inner);
		return pgr_fail(err, -ECONNRESET, "%s: cut as planned", f->c.peer);
	case FAULT_SHORT:
		f->inner->ops->shutdown(f->inner);
		return pgr_fail(err, -EPIPE, "%s: ended short as planned", f->c.peer);
	default:
		return 0;
	}
}

/* The fault cuts with shutdown(): to the other thread and to later calls it must not look like the user's. */
static int fault_result(struct channel_fault *f, int ret, struct pgr_error *err)
{
	if (ret != -ECANCELED || !atomic_load(&f->fired) || atomic_load(&f->cancelled))
		return ret;
	return pgr_fail(err, -ECONNRESET, "%s: was cut as planned", f->c.peer);
}

/* The bytes of the call that the fault lets pass; the whole of it when a bit of it is to be inverted. */
static size_t fault_passes(const struct fault_plan *p, size_t length, size_t place)
{
	if (p->kind == FAULT_FLIP)
		return length;
	return p->kind == FAULT_SHORT || p->kind == FAULT_DROP ? place : 0;
}

static int fault_write(struct channel *c, const struct iovec *iov, unsigned nr,
		       struct pgr_error *err)
{
	struct channel_fault *f = to_fault(c);
	size_t total = 0;
	size_t place;
	size_t at = 0;
	struct iovec one;
	int ret;

	for (unsigned i = 0; i < nr; i++)
		total += iov[i].iov_len;
	if (!fault_strikes(f, FAULT_WRITE, c->written, total, &place)) {
		ret = f->inner->ops->write(f->inner, iov, nr, err);
		goto out;
	}
	/* The caller's bytes are const: change a copy. */
	one = (struct iovec){.iov_base = malloc(total + 1),
			     .iov_len = fault_passes(&f->plan, total, place)};
	if (!one.iov_base)
		return pgr_fail(err, -ENOMEM, "%s: no memory for the fault", c->peer);
	for (unsigned i = 0; i < nr; at += iov[i++].iov_len)
		memcpy((char *)one.iov_base + at, iov[i].iov_base, iov[i].iov_len);
	if (f->plan.kind == FAULT_FLIP && total > 0)
		((unsigned char *)one.iov_base)[place] ^= 1;
	ret = one.iov_len ? f->inner->ops->write(f->inner, &one, 1, err) : 0;
	free(one.iov_base);
	if (!ret)
		ret = fault_end(f, err);
out:
	if (!ret)
		channel_count(&c->written, total);
	return fault_result(f, ret, err);
}

static int fault_read(struct channel *c, void *data, size_t length, struct pgr_error *err)
{
	struct channel_fault *f = to_fault(c);
	size_t place;
	bool strikes = fault_strikes(f, FAULT_READ, c->read, length, &place);
	size_t pass = strikes ? fault_passes(&f->plan, length, place) : length;
	int ret = 0;

	if (pass > 0 || !strikes)
		ret = f->inner->ops->read(f->inner, data, pass, err);
	if (!ret && strikes && f->plan.kind == FAULT_FLIP && length > 0)
		((unsigned char *)data)[place] ^= 1;
	if (!ret && strikes)
		ret = fault_end(f, err);
	if (!ret)
		channel_count(&c->read, length);
	return fault_result(f, ret, err);
}

static int fault_sync(struct channel *c, struct pgr_error *err)
{
	struct channel *inner = to_fault(c)->inner;

	return inner->ops->sync(inner, err);
}

static void fault_shutdown(struct channel *c)
{
	struct channel_fault *f = to_fault(c);

	atomic_store(&f->cancelled, true);
	f->inner->ops->shutdown(f->inner);
}

static void fault_close(struct channel *c)
{
	struct channel *inner = to_fault(c)->inner;

	inner->ops->close(inner);
	free(to_fault(c));
}

static const struct channel_ops fault_ops = {
	.write = fault_write,
	.read = fault_read,
	.sync = fault_sync,
	.shutdown = fault_shutdown,
	.close = fault_close,
};

/* The index of the name that text starts with and that sep follows; text is moved behind both. -1: none. */
static int fault_word(const char **text, const char *const *names, int nr, char sep)
{
	for (int i = 0; i < nr; i++) {
		size_t n = names[i] ? strlen(names[i]) : 0;

		if (n && !strncmp(*text, names[i], n) && (*text)[n] == sep) {
			*text += n + 1;
			return i;
		}
	}
	return -1;
}

int channel_fault_parse(const char *text, struct fault_plan *plan, struct pgr_error *err)
{
	const char *rest = text;
	char *end;
	int side;
	int kind;
	int unit;

	*plan = (struct fault_plan){.kind = FAULT_NONE};
	if (!strcmp(text, "none"))
		return 0;
	side = fault_word(&rest, fault_sides, COUNT(fault_sides), '-');
	kind = side < 0 ? -1 : fault_word(&rest, fault_kinds, COUNT(fault_kinds), '@');
	unit = kind < 0 ? -1 : fault_word(&rest, fault_units, COUNT(fault_units), ':');
	if (unit < 0 || *rest < '0' || *rest > '9' || (kind == FAULT_DROP && side == FAULT_READ))
		goto bad;
	errno = 0;
	plan->at = strtoull(rest, &end, 10);
	if (errno || *end || (unit == FAULT_CALL && plan->at == 0))
		goto bad;
	plan->kind = (enum fault_kind)kind;
	plan->side = (enum fault_side)side;
	plan->unit = (enum fault_unit)unit;
	return 0;
bad:
	return pgr_fail(
		err, -EINVAL,
		"fault \"%s\": not SIDE-KIND@UNIT:N, such as write-flip@byte:4096 (read-, write-; fail, cut, short, flip, drop; call from 1, byte from 0; no read-drop)",
		text);
}

int channel_fault_wrap(struct channel *inner, const struct fault_plan *plan, struct channel **out,
		       struct pgr_error *err)
{
	struct channel_fault *f = calloc(1, sizeof(*f));

	*out = NULL;
	if (!f) {
		inner->ops->close(inner);
		return pgr_fail(err, -ENOMEM, "no memory for a channel with a fault");
	}
	f->c.ops = &fault_ops;
	f->inner = inner;
	f->plan = *plan;
	channel_name(&f->c, "", inner->peer);
	*out = &f->c;
	return 0;
}

bool channel_fault_fired(struct channel *c)
{
	return atomic_load(&to_fault(c)->fired);
}
