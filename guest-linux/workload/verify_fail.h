/* SPDX-License-Identifier: MIT */
/*
 * verify_fail - what a check says that found something wrong.
 *
 * The checks return a struct finding and do not print, so that the self test can corrupt things on
 * purpose; the running program hands the first finding to verify_fail, which ends the process.
 */
#ifndef WORKLOAD_VERIFY_FAIL_H
#define WORKLOAD_VERIFY_FAIL_H

#include <stdint.h>

enum finding_kind {
	FINDING_NONE,
	FINDING_CONTENT,  /* a page differs from what was written, and is no page we know */
	FINDING_STALE,	  /* a page holds one of its older generations */
	FINDING_FOREIGN,  /* a page holds the content of another page */
	FINDING_ZERO,	  /* a page is all zero */
	FINDING_CHECKSUM, /* a page is as expected, its checksum in the table is not */
	FINDING_COUNT,	  /* the generations in the table do not add up to what was written */
	FINDING_REGISTER, /* a register did not keep its value */
	FINDING_CHURN,	  /* a page that was mapped, shared with a child or moved differs */
	FINDING_KINDS,
};

struct finding {
	enum finding_kind kind;
	uint64_t address;  /* of the first wrong byte; registers: offset in the register image */
	uint64_t page;	   /* number of the page; registers: 0 */
	uint64_t expected; /* the word that should be there */
	uint64_t found;	   /* the word that is there */
	uint64_t detail;   /* stale: the old generation; foreign: the other page's number */
};

/* The word printed for @kind; a constant string. */
const char *finding_name(enum finding_kind kind);

/*
 * Prints "VERIFIER FAILED ..." to standard output and exits with status 1. Of several threads that
 * call it only the first prints. Does not return.
 */
_Noreturn void verify_fail(const struct finding *finding);

#endif
