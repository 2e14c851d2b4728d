/* SPDX-License-Identifier: MIT */
/*
 * echo - what echo-client and echod send each other.
 *
 * The server sends back every byte as it came; the message is the client's own business, and is
 * checked when it comes back. Fields are in the client's byte order.
 */
#ifndef WORKLOAD_ECHO_H
#define WORKLOAD_ECHO_H

#include <stdint.h>

#define ECHO_PORT  7
#define ECHO_MAGIC 0x6f686365u

struct echo_message {
	uint32_t magic;
	uint32_t run;	   /* random, the same for all messages of one client */
	uint64_t sequence; /* 0, 1, 2, ... */
	int64_t sent_ns;   /* CLOCK_MONOTONIC of the client */
};

_Static_assert(sizeof(struct echo_message) == 24, "goes over the wire");

#endif
