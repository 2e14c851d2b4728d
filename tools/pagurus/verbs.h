/* SPDX-License-Identifier: MIT */
/*
 * The verbs of the pagurus command. Each is called with argv[0] the verb's own name and returns the exit status of the process.
 */
#ifndef PAGURUS_VERBS_H
#define PAGURUS_VERBS_H

/* Exit statuses; the man page lists them. Numbers never change. */
enum pgr_exit {
	EXIT_OK = 0,
	EXIT_FAILED = 1,  /* it did not work; the guest runs where it ran */
	EXIT_USAGE = 2,	  /* the command line is wrong; nothing was tried */
	EXIT_REFUSED = 3, /* the other host refused beforehand, or would refuse */
	EXIT_UNKNOWN =
		4, /* the guest was handed over and no answer came: it is found out in the background */
	EXIT_CANCELLED = 5, /* stopped on request; the guest runs where it ran */
	EXIT_LEAKS = 6,	    /* disk check: sound but for room that nothing uses */
	EXIT_DAMAGED = 7,   /* disk check: it is not */
};

int verb_daemon(int argc, char **argv);
int verb_host(int argc, char **argv);
int verb_migrate(int argc, char **argv);
int verb_save(int argc, char **argv);
int verb_restore(int argc, char **argv);
int verb_inspect(int argc, char **argv);
int verb_status(int argc, char **argv);
int verb_cancel(int argc, char **argv);
int verb_recover(int argc, char **argv);
int verb_disk(int argc, char **argv);
int verb_version(int argc, char **argv);

/* Of `pagurus host`, in a file of its own. */
int host_evacuate(int argc, char **argv);

/* Not for people: processes that the others start. */
int verb_worker(int argc, char **argv);
int verb_keeper(int argc, char **argv);

#endif
