/* SPDX-License-Identifier: MIT */
/*
 * The vectors of protocol-spec/vectors for tests of C readers: made into a temporary folder once per program, removed at its end.
 * Tests run from the root of the tree.
 */
#ifndef PAGURUS_TEST_VECTORS_H
#define PAGURUS_TEST_VECTORS_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
#include "protocol-spec/stream.h"

/* No vector's guest is larger. */
#define VECTORS_PFNS_MAX 1024u
#define VECTORS_PATH	 512

/* Where the reader under test puts a guest's memory; emptied before each vector. */
struct vectors_memory {
	uint8_t page[VECTORS_PFNS_MAX][PGR_PAGE_SIZE];
	bool present[VECTORS_PFNS_MAX];
	uint64_t nr_pfns;
};
extern struct vectors_memory vectors_memory;

/* about: NAME.json as make.py writes it; owned by vectors_each. */
struct vector {
	char name[128];
	json_t *about;
};

/* Call check for each vector, good and bad. */
void vectors_each(void (*check)(const struct vector *v));

bool vector_accepts(const struct vector *v);
/* The string KEY of about is VALUE. */
bool vector_is(const struct vector *v, const char *key, const char *value);
/* The file of a part. */
void vectors_path(const char *vector, const char *part, char path[VECTORS_PATH]);

/* Reads one part; 0 or a negative errno. */
typedef int vector_reads_fn(const char *vector, const char *part, struct pgr_error *err);
/* All parts in order until one is refused; 0 or what refused it. */
int vector_each_part(const struct vector *v, vector_reads_fn *reads, struct pgr_error *err);
/* CHECK that vectors_memory holds what the expected decoding says. */
void vector_check_memory(const struct vector *v);

#endif
