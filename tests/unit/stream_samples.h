/* SPDX-License-Identifier: MIT */
/*
 * For tests of the codec and its users: a stream in memory, a right body for each record type, and
 * whole streams in order.
 */
#ifndef PAGURUS_STREAM_SAMPLES_H
#define PAGURUS_STREAM_SAMPLES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "migrate/stream.h"

#define SAMPLE_MAX 8192u

/*
 * A stream in memory: written to the end, read from `at`. fail_at: the call that fails (1: the
 * first), 0: none.
 */
struct memory_stream {
	uint8_t *data;
	size_t length, capacity, at;
	unsigned calls, fail_at;
	int fail_code;
	size_t longest_read;
};

int memory_write(void *ctx, const struct iovec *iov, unsigned nr, struct pgr_error *err);
int memory_read(void *ctx, void *data, size_t length, struct pgr_error *err);
void memory_free(struct memory_stream *m);

/* All types of version 1; nr of them. */
const uint32_t *sample_types(size_t *nr);

/*
 * A body that is right for the type, at most SAMPLE_MAX bytes, into body (aligned to 8); its
 * length. round: for PAGES and ROUND_END.
 */
size_t sample_body(uint32_t type, uint32_t round, uint8_t *body);

/* One record of a sample stream. */
struct sample_record {
	uint32_t type;
	uint32_t round; /* PAGES, ROUND_END */
	uint32_t vcpu;	/* VCPU_*; first frame of PV_P2M_FRAMES */
};

/* Write the records as a stream (END with right counters); 0 or an error. */
int sample_write(struct memory_stream *m, enum pgr_kind kind, unsigned channel, bool sim,
		 const struct sample_record *r, size_t nr, struct pgr_error *err);

#endif
