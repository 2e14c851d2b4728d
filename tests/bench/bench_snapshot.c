// SPDX-License-Identifier: MIT
/*
 * How long a disk that is open and was just written to takes for a snapshot.
 *
 *	bench_snapshot DISK TIMES
 *
 * DISK is a qcow2 image, and has TIMES more layers afterwards. Before each snapshot 16 requests of 64 KiB are written to random places of the disk and
 * not flushed, as that belongs to the snapshot. Prints for each a line with its milliseconds, and those of processor time, which other work on the machine
 * disturbs least.
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "storage/disk.h"

#define WRITES 16u
#define BYTES  (64u << 10)

static uint8_t data[BYTES] __attribute__((aligned(4096)));

static double now_ms(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

static void check(int rc, const struct pgr_error *err)
{
	if (rc) {
		fprintf(stderr, "bench_snapshot: %s\n", err->text);
		exit(1);
	}
}

static void write_some(struct block *b, struct pgr_error *err)
{
	static uint64_t random = 88172645463325252u;

	for (unsigned i = 0; i < WRITES; i++) {
		random ^= random << 13;
		random ^= random >> 7;
		random ^= random << 17;
		check(block_write(b, random % (block_info(b)->size / BYTES) * BYTES, data, BYTES, 0,
				  err),
		      err);
	}
}

int main(int argc, char **argv)
{
	const struct block_options options = {.max_requests = 32};
	struct pgr_error err = PGR_ERROR_NONE;
	struct loop *l;
	struct block *b;
	unsigned times;

	if (argc != 3) {
		fputs("usage: bench_snapshot DISK TIMES\n", stderr);
		return 2;
	}
	times = (unsigned)strtoul(argv[2], NULL, 10);
	check(loop_create(&l, &err), &err);
	check(disk_open(l, argv[1], "qcow2", &options, &b, &err), &err);
	for (unsigned i = 0; i < times; i++) {
		char name[4096];
		double began, began_cpu;

		snprintf(name, sizeof(name), "%s.%u", argv[1], i);
		write_some(b, &err);
		began = now_ms(CLOCK_MONOTONIC);
		began_cpu = now_ms(CLOCK_PROCESS_CPUTIME_ID);
		check(block_snapshot(b, name, &err), &err);
		printf("%.3f %.3f\n", now_ms(CLOCK_MONOTONIC) - began,
		       now_ms(CLOCK_PROCESS_CPUTIME_ID) - began_cpu);
	}
	check(block_close(b, &err), &err);
	loop_free(l);
	return 0;
}
