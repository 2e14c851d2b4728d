/* SPDX-License-Identifier: MIT */
/*
 * The clusters of an image's file that hold its own tables: a set of numbers. No data is ever written there, whatever the image says.
 */
#ifndef PAGURUS_QCOW2_GUARD_H
#define PAGURUS_QCOW2_GUARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct qcow2_guard {
	uint64_t *place;
	size_t size, used; /* size: a power of two, or 0 */
};

/* 0, -EEXIST (it is there already), -ENOMEM. */
int qcow2_guard_add(struct qcow2_guard *g, uint64_t cluster);
bool qcow2_guard_has(const struct qcow2_guard *g, uint64_t cluster);
/* Idempotent. */
void qcow2_guard_remove(struct qcow2_guard *g, uint64_t cluster);
void qcow2_guard_free(struct qcow2_guard *g);

#endif
