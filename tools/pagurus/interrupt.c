/* SPDX-License-Identifier: MIT */
#include "tools/pagurus/interrupt.h"

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>

static atomic_bool interrupted;

static void on_signal(int number)
{
	(void)number;
	atomic_store(&interrupted, true);
}

const atomic_bool *interrupt_catch(void)
{
	static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};
	struct sigaction catch = {.sa_handler = on_signal, .sa_flags = SA_RESTART};

	sigemptyset(&catch.sa_mask);
	for (unsigned i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
		sigaction(numbers[i], &catch, NULL);
	/* As errors of write(): a reader that is gone, a limit on file sizes. */
	signal(SIGPIPE, SIG_IGN);
	signal(SIGXFSZ, SIG_IGN);
	return &interrupted;
}

const atomic_bool *interrupt_flag(void)
{
	return &interrupted;
}

void interrupt_forget(void)
{
	atomic_store(&interrupted, false);
}
