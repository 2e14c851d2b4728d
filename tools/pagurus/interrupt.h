/* SPDX-License-Identifier: MIT */
/* Ctrl-C, SIGTERM and a lost terminal as a flag, for verbs that do the work themselves. */
#ifndef PAGURUS_INTERRUPT_H
#define PAGURUS_INTERRUPT_H

#include <stdatomic.h>

/* Catch them from now on; the flag becomes true with the first. SIGPIPE is ignored. */
const atomic_bool *interrupt_catch(void);
/* The same flag, for what may or may not be done by a verb that catches them. */
const atomic_bool *interrupt_flag(void);
/* What the signals so far asked for is under way: the flag is false again, until the next one. */
void interrupt_forget(void);

#endif
