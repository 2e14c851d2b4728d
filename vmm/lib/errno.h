/* SPDX-License-Identifier: MIT */
/* The error numbers of the ABI, by their usual names: xen/errno.h without its prefix. */
#pragma once

#ifdef VMM_HOSTED
#include <errno.h>
#else
#define XEN_ERRNO(name, value) name = (value),
enum errno_value {
#include <xen/errno.h>
};
#endif

/* Of our own: an operation was interrupted and begins again. No guest sees it. */
#ifndef ERESTART
#define ERESTART 85
#endif
