/* SPDX-License-Identifier: MIT */
/*
 * Xen's public headers, as the tools of a control domain see them.
 *
 * They want GNU C (anonymous members, aligned handles) and take -std=c11 for a compiler that lacks
 * it, so that word is taken back while they are read. Not for files that include xenctrl.h, which
 * has its own macros of the same names.
 */
#ifndef PAGURUS_XEN_ABI_H
#define PAGURUS_XEN_ABI_H

#include <stdint.h>

#ifndef __XEN_TOOLS__
#define __XEN_TOOLS__ 1 /* NOLINT(bugprone-reserved-identifier): the headers' own switch */
#endif

#ifdef __STRICT_ANSI__
#define PAGURUS_STRICT_ANSI
#undef __STRICT_ANSI__
#endif

#include <xen/xen.h>
#include <xen/domctl.h>
#include <xen/grant_table.h>
#include <xen/memory.h>
#include <xen/sched.h>
#include <xen/sysctl.h>
#include <xen/version.h>
#include <xen/io/xs_wire.h>

#ifdef PAGURUS_STRICT_ANSI
#undef PAGURUS_STRICT_ANSI
#define __STRICT_ANSI__ 1 /* NOLINT(bugprone-reserved-identifier): put back what was there */
#endif

#define XEN_PAGE_SIZE	4096u
#define XEN_TABLE_SLOTS 512u
/*
 * Of a top table: what the hypervisor keeps for itself (HYPERVISOR_VIRT_START ..
 * HYPERVISOR_VIRT_END).
 */
#define XEN_L4_FIRST_RESERVED 256u
#define XEN_L4_LAST_RESERVED  271u

#endif
