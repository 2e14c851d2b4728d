/* SPDX-License-Identifier: MIT */
/*
 * The log that xenconsoled keeps of a guest's console is named after the domain when it first saw
 * it: for one that arrived, after its provisional name. Told to open its logs again (SIGHUP, what
 * logrotate does), it takes the names of that moment.
 */
#ifndef PAGURUS_XEN_CONSOLE_LOG_H
#define PAGURUS_XEN_CONSOLE_LOG_H

#include <stdbool.h>
#include <sys/types.h>

/*
 * Best effort: a host without logs, or whose xenconsoled cannot be found, keeps the provisional
 * name. Any thread.
 */
void xen_console_log_reopen(void);

/*
 * Remove the log under the name that a domain had before xen_console_log_reopen(), once xenconsoled has
 * let go of it. A signal that comes while it opens its logs for another one is lost on it: it gets more. Where
 * nothing helps for two seconds the log stays, for what the guest says is in it. Best effort. Any thread.
 */
void xen_console_log_leave(const char *name);

/* For that: whether the process lets go of the file, with a SIGHUP now and then; true at once when it has not got it, or may not be looked at. */
bool xen_console_log_let_go(pid_t pid, const char *path);

/*
 * Remove the log under a name that no domain has any more and that never ran: there is nothing in it
 * but when it was opened. Best effort, where Debian and upstream put logs. Any thread.
 */
void xen_console_log_remove(const char *name);

#endif
