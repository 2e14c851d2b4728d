/* SPDX-License-Identifier: MIT */
/* `pagurus host init|cert|trust|check|list`: this host's key, and the hosts that it trusts. verb_evacuate.c has `evacuate`. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/pagurus/check.h"
#include "tools/pagurus/host_trust.h"
#include "tools/pagurus/hosts.h"
#include "tools/pagurus/message.h"
#include "tools/pagurus/options.h"
#include "tools/pagurus/paths.h"
#include "tools/pagurus/units.h"
#include "tools/pagurus/verbs.h"

static int fail(const struct pgr_error *err, int status)
{
	fprintf(stderr, "pagurus: %s\n", err->text);
	return status;
}

static int host_init(int argc, char **argv)
{
	struct paths paths;
	const char *name = NULL;
	bool force = false;
	char own[256] = "", print[128];
	const struct option_spec options[] = {
		{"name", OPTION_STRING, &name, "NAME",
		 "what other hosts call this one (default: its host name)", 0, 0},
		{"force", OPTION_FLAG, &force, NULL,
		 "replace the key that is there; every other host must trust the new one", 0, 0},
		PATHS_OPTION_CONFIG(&paths),
		{NULL, OPTION_FLAG, NULL, NULL, NULL, 0, 0},
	};
	const struct usage usage = {"pagurus host init [OPTIONS]",
				    "Make this host's key and certificate.", options, 0, 0};
	struct pgr_error err = PGR_ERROR_NONE;
	int count, status;
	char *pem = NULL;

	paths_init(&paths);
	if (!options_parse(&usage, argc, argv, &count, &status))
		return status;
	gethostname(own, sizeof(own) - 1);
	if (!name)
		name = own;
	if (!units_name_ok(name))
		return options_complain(&usage, "--name \"%s\": letters, digits, '.', '_', '-'",
					name);
	if (paths_make_dir(paths.config, &err) ||
	    tls_identity_create(paths.config, name, force, &err) ||
	    host_own_certificate(paths.config, &pem, &err) || tls_fingerprint(pem, print, &err)) {
		free(pem);
		return fail(&err, EXIT_FAILED);
	}
	free(pem);
	printf("This host is %s. Fingerprint: %s\nNext: `pagurus host trust HOST` for each host to exchange guests with, then `systemctl start pagurus`.\n",
	       name, print);
	return EXIT_OK;
}

static int host_cert(int argc, char **argv)
{
	struct paths paths;
	const struct option_spec options[] = {
		PATHS_OPTION_CONFIG(&paths),
		{NULL, OPTION_FLAG, NULL, NULL, NULL, 0, 0},
	};
	const struct usage usage = {
		"pagurus host cert [OPTIONS]",
		"Print this host's certificate, for `pagurus host trust NAME --file` on others.",
		options, 0, 0};
	struct pgr_error err = PGR_ERROR_NONE;
	int count, status;
	char *pem;

	paths_init(&paths);
	if (!options_parse(&usage, argc, argv, &count, &status))
		return status;
	if (host_own_certificate(paths.config, &pem, &err))
		return fail(&err, EXIT_FAILED);
	fputs(pem, stdout);
	free(pem);
	return EXIT_OK;
}

static int host_trust(int argc, char **argv)
{
	struct host_trust t = {.file = NULL};
	const struct option_spec options[] = {
		{"file", OPTION_STRING, &t.file, "CERT.pem",
		 "their certificate; - for standard input (default: fetch it over ssh)", 0, 0},
		{"ssh", OPTION_STRING, &t.ssh, "[USER@]HOST",
		 "where ssh reaches them (default: HOST as root)", 0, 0},
		{"address", OPTION_STRING, &t.address, "ADDR[:PORT]",
		 "where their daemon listens (default: HOST, port 7117)", 0, 0},
		{"our-address", OPTION_STRING, &t.our_address, "ADDR[:PORT]",
		 "over ssh: where they find our daemon (default: our name)", 0, 0},
		PATHS_OPTION_CONFIG(&t.paths),
		{NULL, OPTION_FLAG, NULL, NULL, NULL, 0, 0},
	};
	const struct usage usage = {
		"pagurus host trust [OPTIONS] HOST",
		"Exchange certificates with a host, so that guests can move both ways. Over ssh both sides are set up at once;\nwith --file only this one.",
		options, 1, 1};
	struct pgr_error err = PGR_ERROR_NONE;
	int count, status;

	paths_init(&t.paths);
	if (!options_parse(&usage, argc, argv, &count, &status))
		return status;
	t.name = argv[0];
	if (!units_name_ok(t.name))
		return options_complain(&usage, "\"%s\" is no host name", t.name);
	if (t.file && (t.ssh || t.our_address))
		return options_complain(&usage, "--file does not go with --ssh or --our-address");
	return host_trust_run(&t, &err) ? fail(&err, EXIT_FAILED) : EXIT_OK;
}

static void show_fact(const json_t *facts, const char *key, const char *words,
		      char *(*text_of)(uint64_t, char[UNITS_TEXT]))
{
	const json_t *value = json_object_get(facts, key);
	char text[UNITS_TEXT];

	if (json_is_string(value))
		printf("  %-14s %s\n", words, json_string_value(value));
	else if (json_is_integer(value) && text_of)
		printf("  %-14s %s\n", words, text_of((uint64_t)json_integer_value(value), text));
	else if (json_is_integer(value))
		printf("  %-14s %lld\n", words, (long long)json_integer_value(value));
}

static void show_facts(const char *name, const json_t *facts)
{
	long long offset = json_integer_value(json_object_get(facts, "clock_offset_ns"));
	char text[UNITS_TEXT];

	printf("Host %s is ready; the certificates agree in both directions.\n", name);
	show_fact(facts, "pagurus", "pagurus", NULL);
	show_fact(facts, "connection", "connection", NULL);
	show_fact(facts, "hypervisor", "hypervisor", NULL);
	show_fact(facts, "why_no_hypervisor", "no hypervisor", NULL);
	show_fact(facts, "kernel", "kernel", NULL);
	show_fact(facts, "processors", "processors", NULL);
	show_fact(facts, "free_memory_bytes", "free memory", units_show_size);
	show_fact(facts, "round_trip_ns", "round trip", units_show_ns);
	printf("  %-14s %s%s\n", "its clock", units_show_ns((uint64_t)llabs(offset), text),
	       offset < 0 ? " behind ours" : " ahead of ours");
}

static int host_check(int argc, char **argv)
{
	struct paths paths;
	bool json = false;
	const struct option_spec options[] = {
		{"json", OPTION_FLAG, &json, NULL, "one JSON object", 0, 0},
		PATHS_OPTION_CONFIG(&paths),
		{NULL, OPTION_FLAG, NULL, NULL, NULL, 0, 0},
	};
	const struct usage usage = {"pagurus host check [OPTIONS] HOST[:PORT]",
				    "Ask a host whether it is ready to take guests from here.",
				    options, 1, 1};
	struct pgr_error err = PGR_ERROR_NONE;
	struct tls_identity *id = NULL;
	struct host_address h;
	json_t *facts = NULL;
	int count, status, rc;

	paths_init(&paths);
	if (!options_parse(&usage, argc, argv, &count, &status))
		return status;
	rc = tls_identity_load(paths.config, &id, &err);
	if (!rc)
		rc = hosts_find(paths.config, argv[0], &h, &err);
	if (!rc)
		rc = check_ask(&h, id, &facts, &err);
	if (id)
		tls_identity_free(id);
	if (json) {
		if (!facts)
			facts = json_object();
		json_object_set_new(facts, "ok", json_boolean(!rc));
		if (rc)
			json_object_set_new(facts, "error", message_string(err.text));
		json_dumpf(facts, stdout, JSON_COMPACT | JSON_SORT_KEYS);
		putchar('\n');
	} else if (!rc) {
		show_facts(h.name, facts);
	}
	json_decref(facts);
	if (!rc)
		return EXIT_OK;
	return fail(&err, rc == -EACCES ? EXIT_REFUSED : EXIT_FAILED);
}

static int show_host(void *ctx, const struct host_address *h)
{
	const struct paths *paths = ctx;
	struct pgr_error err = PGR_ERROR_NONE;
	char path[PATH_MAX], print[128] = "unreadable";
	char *pem = NULL;

	snprintf(path, sizeof(path), "%s/trusted/%s.pem", paths->config, h->name);
	if (!host_read_pem(path, &pem, &err))
		tls_fingerprint(pem, print, &err);
	free(pem);
	printf("%-16s %s:%u  %s\n", h->name, h->address, h->port, print);
	return 0;
}

static int host_list(int argc, char **argv)
{
	struct paths paths;
	const struct option_spec options[] = {
		PATHS_OPTION_CONFIG(&paths),
		{NULL, OPTION_FLAG, NULL, NULL, NULL, 0, 0},
	};
	const struct usage usage = {
		"pagurus host list [OPTIONS]",
		"The hosts that are trusted here, with address and fingerprint.", options, 0, 0};
	struct pgr_error err = PGR_ERROR_NONE;
	int count, status;

	paths_init(&paths);
	if (!options_parse(&usage, argc, argv, &count, &status))
		return status;
	return hosts_each(paths.config, show_host, &paths, &err) ? fail(&err, EXIT_FAILED)
								 : EXIT_OK;
}

int verb_host(int argc, char **argv)
{
	static const struct option_action actions[] = {
		{"init", host_init, "make this host's key and certificate"},
		{"cert", host_cert, "print this host's certificate"},
		{"trust", host_trust, "exchange certificates with a host"},
		{"check", host_check, "ask a host whether it is ready"},
		{"list", host_list, "the hosts that are trusted"},
		{"evacuate", host_evacuate, "move every guest off this host"},
	};

	return options_run_action(actions, sizeof(actions) / sizeof(actions[0]), argc, argv);
}
