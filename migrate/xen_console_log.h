/* SPDX-License-Identifier: MIT */
/*
 * The log that xenconsoled keeps of a guest's console is named after the domain when it first saw
 * it: for one that arrived, after its provisional name. Told to open its logs again (SIGHUP, what
 * logrotate does), it takes the names of that moment.
 */
#ifndef PAGURUS_XEN_CONSOLE_LOG_H
#define PAGURUS_XEN_CONSOLE_LOG_H

/*
 * Best effort: a host without logs, or whose xenconsoled cannot be found, keeps the provisional
 * name. Any thread.
 */
void xen_console_log_reopen(void);

/*
 * Remove the log under a name that no domain has any more and that never ran: there is nothing in it
 * but when it was opened. Best effort, where Debian and upstream put logs. Any thread.
 */
void xen_console_log_remove(const char *name);

#endif
