// SPDX-License-Identifier: MIT
#include "verify_fail.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <unistd.h>

static const char *const names[FINDING_KINDS] = {
	[FINDING_NONE] = "none",   [FINDING_CONTENT] = "content",
	[FINDING_STALE] = "stale", [FINDING_FOREIGN] = "foreign",
	[FINDING_ZERO] = "zero",   [FINDING_CHECKSUM] = "checksum",
	[FINDING_COUNT] = "count", [FINDING_REGISTER] = "register",
	[FINDING_CHURN] = "churn",
};

const char *finding_name(enum finding_kind kind)
{
	return names[kind];
}

_Noreturn void verify_fail(const struct finding *finding)
{
	static atomic_flag failed = ATOMIC_FLAG_INIT;

	if (atomic_flag_test_and_set(&failed))
		for (;;)
			pause();
	printf("VERIFIER FAILED addr=0x%" PRIx64 " kind=%s page=%" PRIu64 " expected=0x%016" PRIx64
	       " found=0x%016" PRIx64 " detail=%" PRIu64 "\n",
	       finding->address, finding_name(finding->kind), finding->page, finding->expected,
	       finding->found, finding->detail);
	fflush(stdout);
	_exit(1);
}
