/* SPDX-License-Identifier: MIT */
/* `pagurus host evacuate`: moves every guest off this host. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/pagurus/check.h"
#include "tools/pagurus/evacuation.h"
#include "tools/pagurus/hosts.h"
#include "tools/pagurus/message.h"
#include "tools/pagurus/options.h"
#include "tools/pagurus/paths.h"

struct evacuate {
	struct evacuation e;
	struct paths paths;
	struct tls_identity *id;
	const char *to;
	bool partial;
};

static int complain(const struct evacuate *v, int status, const char *text)
{
	if (v->e.json) {
		json_t *message = json_pack("{ss si so}", "type", "result", "exit", status, "text",
					    message_string(text));

		json_dumpf(message, stdout, JSON_COMPACT);
		putchar('\n');
		json_decref(message);
	}
	fprintf(stderr, "pagurus: %s\n", text);
	return status;
}

/* ---- hosts ---- */

/* Ask one host whether it is ready. -errno: it is not; nothing was added. */
static int add_host(struct evacuate *v, const char *name, const struct host_address *h,
		    struct pgr_error *err)
{
	struct refuge *r = &v->e.hosts[v->e.nr_hosts];
	json_t *facts = NULL;
	int rc;

	if (v->e.nr_hosts == EVACUATION_HOSTS_MAX)
		return pgr_fail(err, -E2BIG, "more than %u hosts: name some with --to",
				EVACUATION_HOSTS_MAX);
	rc = check_ask(h, v->id, &facts, err);
	if (rc)
		return rc;
	*r = (struct refuge){.known = json_is_integer(json_object_get(facts, "free_memory_bytes"))};
	snprintf(r->name, sizeof(r->name), "%s", name);
	r->left = r->known ? message_number(facts, "free_memory_bytes") : UINT64_MAX;
	if (json_is_string(json_object_get(facts, "hypervisor")) ||
	    message_flag(facts, "allow_sim"))
		v->e.nr_hosts++;
	else
		rc = pgr_fail(err, -ENOTSUP, "%s runs no hypervisor: %s", name,
			      message_text(facts, "why_no_hypervisor"));
	json_decref(facts);
	return rc;
}

/* A trusted host that does not answer is left out: there may be others. */
static int add_trusted(void *ctx, const struct host_address *h)
{
	struct evacuate *v = ctx;
	struct pgr_error err = PGR_ERROR_NONE;
	char text[sizeof(err.text) + 32];

	if (!add_host(v, h->name, h, &err))
		return 0;
	snprintf(text, sizeof(text), "left out: %s", err.text);
	evacuation_note(&v->e, NULL, text);
	return 0;
}

static bool is_there(const struct evacuate *v, const char *name)
{
	for (unsigned i = 0; i < v->e.nr_hosts; i++)
		if (!strcmp(v->e.hosts[i].name, name))
			return true;
	return false;
}

/* One that was named has to answer. */
static int add_named(struct evacuate *v, struct pgr_error *err)
{
	char *names = strdup(v->to), *rest = names, *name;
	struct host_address h;
	int rc = names ? 0 : pgr_fail(err, -ENOMEM, "no memory for the names of hosts");

	while (!rc && (name = strsep(&rest, ","))) {
		if (is_there(v, name))
			continue;
		rc = hosts_find(v->paths.config, name, &h, err);
		if (!rc)
			rc = add_host(v, name, &h, err);
	}
	free(names);
	return rc;
}

static int find_hosts(struct evacuate *v, struct pgr_error *err)
{
	int rc = tls_identity_load(v->paths.config, &v->id, err);

	if (!rc)
		rc = v->to ? add_named(v, err) : hosts_each(v->paths.config, add_trusted, v, err);
	if (!rc && !v->e.nr_hosts)
		rc = pgr_fail(
			err, -EHOSTUNREACH,
			"no host that is trusted here is ready to take guests: see `pagurus host list` and `pagurus host check`");
	return rc;
}

/* ---- guests ---- */

struct listing {
	struct evacuate *v;
	struct pgr_error *err;
};

static int add_guest(void *ctx, const struct guest_here *g)
{
	struct listing *l = ctx;

	if (!g->arriving)
		return evacuation_add(&l->v->e, g->name, g, l->err);
	evacuation_note(&l->v->e, NULL,
			"a guest is just arriving here; when it is there, say this again");
	return 0;
}

static int find_guests(struct evacuate *v, char **names, int count, struct pgr_error *err)
{
	struct listing l = {.v = v, .err = err};
	struct guest_here g;
	int rc = 0;

	if (!count)
		return guests_each(add_guest, &l, err);
	for (int i = 0; !rc && i < count; i++) {
		rc = guests_look(names[i], &g, err);
		if (!rc)
			rc = evacuation_add(&v->e, names[i], &g, err);
	}
	return rc;
}

/* ---- the whole ---- */

static int go(struct evacuate *v)
{
	struct pgr_error err = PGR_ERROR_NONE;
	unsigned without;

	if (evacuation_look(&v->e, &err) || evacuation_plan(&v->e, &err))
		return complain(v, EXIT_FAILED, err.text);
	evacuation_show_plan(&v->e);
	without = evacuation_count(&v->e, EVACUEE_STAYS);
	if (v->e.dry_run)
		return without ? EXIT_REFUSED : EXIT_OK;
	if (without && !v->partial)
		return complain(
			v, EXIT_REFUSED,
			"not every guest has a place, so none was moved; with --partial those that have one are");
	if (evacuation_run(&v->e, &err))
		return complain(v, EXIT_UNKNOWN, err.text);
	evacuation_show_report(&v->e);
	return evacuation_exit(&v->e);
}

static int evacuate(struct evacuate *v, char **names, int count)
{
	struct pgr_error err = PGR_ERROR_NONE;
	int rc = find_guests(v, names, count, &err);

	if (rc)
		return complain(v, EXIT_FAILED, err.text);
	if (!v->e.nr_guests) {
		if (v->e.json)
			evacuation_show_report(&v->e);
		else
			puts("No guest is here.");
		return EXIT_OK;
	}
	rc = find_hosts(v, &err);
	if (rc)
		return complain(v, rc == -EACCES ? EXIT_REFUSED : EXIT_FAILED, err.text);
	evacuation_sort(&v->e);
	return go(v);
}

int host_evacuate(int argc, char **argv)
{
	struct evacuate v = {.e.request = MOVE_REQUEST_DEFAULT};
	uint64_t at_once = 2;
	const struct option_spec options[] = {
		{"to", OPTION_STRING, &v.to, "HOST[,HOST...]",
		 "where to (default: every host that is trusted here)", 0, 0},
		{"at-once", OPTION_COUNT, &at_once, "N",
		 "guests that move at the same time, 1 to 16 (default 2)", 1, EVACUATION_MOVES_MAX},
		{"dry-run", OPTION_FLAG, &v.e.dry_run, NULL,
		 "show what would go where, move nothing", 0, 0},
		{"partial", OPTION_FLAG, &v.partial, NULL,
		 "move those that have a place even when others have none", 0, 0},
		MOVE_REQUEST_OPTIONS(&v.e.request),
		{"json", OPTION_FLAG, &v.e.json, NULL, "one JSON object a line", 0, 0},
		PATHS_OPTION_CONFIG(&v.paths),
		PATHS_OPTION_CONTROL(&v.paths),
		{NULL, OPTION_FLAG, NULL, NULL, NULL, 0, 0},
	};
	const struct usage usage = {
		"pagurus host evacuate [OPTIONS] [GUEST...]",
		"Move every guest (or those that are named) off this host, the largest first; --bandwidth is for all of them together.\nCtrl-C cancels: guests that have moved stay where they are, the others stay here. Said again, it goes on.",
		options, 0, 1000};
	int count, status;

	paths_init(&v.paths);
	if (!options_parse(&usage, argc, argv, &count, &status) ||
	    !move_request_check(&v.e.request, &usage, &status))
		return status;
	v.e.at_once = (unsigned)at_once;
	v.e.control = v.paths.control;
	status = evacuate(&v, argv, count);
	evacuation_free(&v.e);
	if (v.id)
		tls_identity_free(v.id);
	return status;
}
