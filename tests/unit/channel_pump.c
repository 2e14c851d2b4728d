/* SPDX-License-Identifier: MIT */
#include "tests/unit/channel_pump.h"

#include <pthread.h>
#include <stdlib.h>

#include "tests/unit/unit.h"

#define PUMP_MAX (64u << 20)

struct pump {
	struct channel *c;
	size_t length;
	uint64_t seed;
	pthread_t thread;
};

char *pump_data(size_t length)
{
	static char *data;
	uint64_t state = 42;

	CHECK(length <= PUMP_MAX);
	if (!data) {
		data = malloc(PUMP_MAX);
		CHECK(data);
		unit_fill_random(&state, data, PUMP_MAX);
	}
	return data;
}

/* Sizes over seven decades, each decade as likely: many tiny, some huge. */
static size_t piece(uint64_t *state, size_t left)
{
	size_t n = (size_t)unit_below(state, UINT64_C(1) << unit_below(state, 23)) + 1;

	return n < left ? n : left;
}

static void *pump_send(void *arg)
{
	struct pump *p = arg;
	struct pgr_error err;

	for (size_t at = 0; at < p->length;) {
		struct iovec iov[16];
		unsigned nr = (unsigned)unit_below(&p->seed, 16) + 1;
		unsigned i;

		for (i = 0; i < nr && at < p->length; i++) {
			iov[i].iov_base = pump_data(p->length) + at;
			iov[i].iov_len = piece(&p->seed, p->length - at);
			at += iov[i].iov_len;
		}
		CHECK_MSG(!p->c->ops->write(p->c, iov, i, &err), "%s", err.text);
	}
	return NULL;
}

static void *pump_receive(void *arg)
{
	struct pump *p = arg;
	struct pgr_error err;
	char *back = malloc(PUMP_MAX);

	CHECK(back);
	for (size_t at = 0, n; at < p->length; at += n) {
		n = piece(&p->seed, p->length - at);
		CHECK_MSG(!p->c->ops->read(p->c, back, n, &err), "%s", err.text);
		CHECK_MSG(!memcmp(back, pump_data(p->length) + at, n),
			  "%zu bytes from byte %zu on are not what was sent", n, at);
	}
	free(back);
	return NULL;
}

void pump_both(struct channel *c[2], size_t length, uint64_t seed)
{
	struct pump p[4];

	pump_data(length); /* made once, before there are threads */
	for (int i = 0; i < 4; i++) {
		p[i] = (struct pump){
			.c = c[i % 2], .length = length, .seed = seed * 4 + (uint64_t)i};
		CHECK_EQ(
			pthread_create(&p[i].thread, NULL, i < 2 ? pump_send : pump_receive, &p[i]),
			0);
	}
	for (int i = 0; i < 4; i++)
		CHECK_EQ(pthread_join(p[i].thread, NULL), 0);
}
