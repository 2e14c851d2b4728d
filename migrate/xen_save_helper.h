/* SPDX-License-Identifier: MIT */
/*
 * What the save helper sends to the process that is restoring: guest_xen.h and xen_restore.h
 * explain.
 */
#ifndef PAGURUS_XEN_SAVE_HELPER_H
#define PAGURUS_XEN_SAVE_HELPER_H

#include <stdint.h>

#define XEN_HELPER_MAGIC 0x50475253u

/*
 * Sent once, with the descriptors of standard input and output attached. Same program on both ends.
 */
struct xen_helper_hello {
	uint32_t magic;
	uint32_t domid;
	uint32_t store_port, store_domid;
	uint32_t console_port, console_domid;
	uint32_t callbacks; /* what libxl wants to be told */
	uint32_t stream;    /* 0: plain */
};

/* static data done | restore results, as libxl 4.17 numbers them */
#define XEN_HELPER_CALLBACKS 0x300u

#endif
