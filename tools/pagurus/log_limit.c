/* SPDX-License-Identifier: MIT */
#include "tools/pagurus/log_limit.h"

#include "tools/pagurus/units.h"

#define BURST	  10u
#define REFILL_MS 1000u

unsigned log_limit_refill(struct log_limit *k)
{
	uint64_t now = units_now_ms();
	unsigned suppressed = k->suppressed;

	if (now < k->refill_ms)
		return 0;
	k->suppressed = 0;
	k->left = BURST;
	k->refill_ms = now + REFILL_MS;
	return suppressed;
}

bool log_limit_pass(struct log_limit *k)
{
	if (k->left) {
		k->left--;
		return true;
	}
	k->suppressed++;
	return false;
}
