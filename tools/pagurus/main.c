/* SPDX-License-Identifier: MIT */
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>

#include "migrate/guest_xen.h"
#include "protocol-spec/stream.h"
#include "tools/pagurus/options.h"
#include "tools/pagurus/verbs.h"

static const struct {
	const char *name;
	int (*run)(int argc, char **argv);
	const char *about; /* NULL: not for people */
} verbs[] = {
	{"migrate", verb_migrate, "move a running guest to another host"},
	{"save", verb_save, "stop a guest and put it into a file"},
	{"restore", verb_restore, "bring a guest back from a file"},
	{"inspect", verb_inspect, "explain and check a saved file"},
	{"status", verb_status, "sessions at work and those that wait for something"},
	{"cancel", verb_cancel, "stop a move; the guest stays where it is"},
	{"recover", verb_recover, "put right what a crash interrupted"},
	{"host", verb_host, "this host's key, and the hosts that it trusts"},
	{"disk", verb_disk, "what a disk image is and holds; copy it"},
	{"daemon", verb_daemon, "the host daemon"},
	{"version", verb_version, "what this is"},
	{"worker", verb_worker, NULL},
	{"keeper", verb_keeper, NULL},
};
#define NR_VERBS (sizeof(verbs) / sizeof(verbs[0]))

static void help(FILE *to)
{
	fputs("Usage: pagurus VERB [OPTIONS] ...\n\nMoves, saves and restores running guests.\n\n",
	      to);
	for (unsigned i = 0; i < NR_VERBS; i++)
		if (verbs[i].about)
			fprintf(to, "  %-10s %s\n", verbs[i].name, verbs[i].about);
	fputs("\n`pagurus VERB --help` explains one; pagurus(1) has more.\n", to);
}

int verb_version(int argc, char **argv)
{
	const struct option_spec options[] = {{NULL, OPTION_FLAG, NULL, NULL, NULL, 0, 0}};
	const struct usage usage = {"pagurus version", "What this is.", options, 0, 0};
	int count, status;

	if (!options_parse(&usage, argc, argv, &count, &status))
		return status;
	printf("pagurus %s, stream version %u\n", PAGURUS_VERSION, PGR_VERSION);
	return EXIT_OK;
}

int main(int argc, char **argv)
{
	/* libxl starts its save helper by a path that is this program. */
	if (guest_xen_is_save_helper(argc, argv))
		return guest_xen_save_helper(argc, argv);
	/* Started by way of /proc/self/exe the process would be called "exe". */
	prctl(PR_SET_NAME, "pagurus");
	if (argc < 2) {
		help(stderr);
		return EXIT_USAGE;
	}
	if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help")) {
		help(stdout);
		return EXIT_OK;
	}
	if (!strcmp(argv[1], "--version"))
		return verb_version(1, argv + 1);
	for (unsigned i = 0; i < NR_VERBS; i++)
		if (!strcmp(argv[1], verbs[i].name))
			return verbs[i].run(argc - 1, argv + 1);
	fprintf(stderr, "pagurus: there is no verb \"%s\"\n", argv[1]);
	help(stderr);
	return EXIT_USAGE;
}
