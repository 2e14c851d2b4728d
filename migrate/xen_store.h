/* SPDX-License-Identifier: MIT */
/* xen_store - what several files do with Xenstore. */
#ifndef PAGURUS_XEN_STORE_H
#define PAGURUS_XEN_STORE_H

#include <stdint.h>

struct xs_handle;

/* CLOCK_MONOTONIC. */
uint64_t xen_now_ns(void);

/* Forget what the watches have told so far. */
void xen_store_drain(struct xs_handle *xs);
/* Wait until a watch tells something, or so long; what it tells is forgotten. */
void xen_store_wait(struct xs_handle *xs, int timeout_ms);

/* A node and all below it; without an error where there is none, or no Xenstore. */
void xen_store_remove(const char *path);

#endif
