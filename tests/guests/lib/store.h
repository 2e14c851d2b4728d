/* SPDX-License-Identifier: MIT */
/* xenstore, one request after the other. A guest that uses it defines `uses_store`. */
#ifndef TESTS_GUESTS_LIB_STORE_H
#define TESTS_GUESTS_LIB_STORE_H

#include "tests/guests/lib/guest.h"

/* What stands there, cut off where there is no room for it; false: there is no such node. */
bool store_read(const char *path, char *value, size_t size);
/* The number that stands there; `otherwise`: there is none. */
uint64_t store_number(const char *path, uint64_t otherwise);
void store_write(const char *path, const char *value);
/* Also when there is no such node. */
void store_remove(const char *path);

/* Sleep until there was an event on that port, or so long. */
void wait_for_event(uint32_t port, unsigned milliseconds);

#endif
