/* SPDX-License-Identifier: MIT */
#include "tools/pagurus/fault.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>

/* Whether "ACTION@NAME" is an element of the list. */
static int wanted(const char *list, const char *action, const char *name)
{
	size_t a = strlen(action), n = strlen(name), length;

	for (; *list; list += length + (list[length] == ',')) {
		length = strcspn(list, ",");
		if (length == a + 1 + n && !memcmp(list, action, a) && list[a] == '@' &&
		    !memcmp(list + a + 1, name, n))
			return 1;
	}
	return 0;
}

void fault_point(const char *name)
{
	const char *list = getenv("PAGURUS_FAULTS");

	if (!list)
		return;
	if (wanted(list, "kill", name))
		raise(SIGKILL);
	if (wanted(list, "stop", name))
		raise(SIGSTOP);
}
