/* SPDX-License-Identifier: MIT */
#include "tools/pagurus/guests_sim.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "migrate/guest_sim.h"
#include "tools/pagurus/units.h"

#define FAULTS_MAX 8

struct sim_request {
	struct guest_sim_options options;
	struct guest_sim_fault faults[FAULTS_MAX];
	unsigned nr_faults;
	char name[256];
};

/* The value of an enumeration by its name; -1 for none. */
static int by_name(const char *(*name_of)(int), int nr, const char *text)
{
	for (int i = 0; i < nr; i++)
		if (name_of(i) && !strcmp(name_of(i), text))
			return i;
	return -1;
}

static const char *content_name(int i)
{
	return guest_sim_content_name((enum guest_sim_content)i);
}

static const char *track_name(int i)
{
	return guest_sim_track_name((enum guest_sim_track)i);
}

static const char *pattern_name(int i)
{
	static const char *const names[] = {"sequential", "uniform", "hot"};

	return names[i];
}

static int add_fault(struct sim_request *r, const char *text, struct pgr_error *err)
{
	if (r->nr_faults == FAULTS_MAX)
		return pgr_fail(err, -EINVAL, "more than %d faults", FAULTS_MAX);
	return guest_sim_fault_parse(text, &r->faults[r->nr_faults++], err);
}

static int set_content(struct sim_request *r, const char *value)
{
	int found = by_name(content_name, GUEST_SIM_MIXED + 1, value);

	if (found < 0)
		return -EINVAL;
	r->options.nr_regions = 1;
	r->options.region[0].content = (enum guest_sim_content)found;
	r->options.region[0].share = 1;
	return 0;
}

static int set_enumerations(struct sim_request *r, const char *key, const char *value)
{
	int found;

	if (!strcmp(key, "content"))
		return set_content(r, value);
	if (!strcmp(key, "track")) {
		found = by_name(track_name, GUEST_SIM_TRACK_NONE + 1, value);
		r->options.track = (enum guest_sim_track)found;
		return found < 0 ? -EINVAL : 0;
	}
	if (!strcmp(key, "pattern")) {
		found = by_name(pattern_name, GUEST_SIM_HOT + 1, value);
		r->options.workload.pattern = (enum guest_sim_pattern)found;
		return found < 0 ? -EINVAL : 0;
	}
	return -ENOENT;
}

static int set_number(struct sim_request *r, const char *key, const char *value)
{
	struct guest_sim_options *o = &r->options;
	uint64_t n;
	int rc = units_size(value, &n);

	if (rc)
		return rc;
	if (!strcmp(key, "memory"))
		o->memory = n;
	else if (!strcmp(key, "seed"))
		o->seed = n;
	else if (!strcmp(key, "set"))
		o->workload.working_set = n;
	else if (!strcmp(key, "rate"))
		o->workload.rate = n;
	else if (n > UINT32_MAX)
		return -ERANGE;
	else if (!strcmp(key, "vcpus"))
		o->vcpus = (unsigned)n;
	else if (!strcmp(key, "write"))
		o->workload.write_bytes = (unsigned)n;
	else if (!strcmp(key, "absent"))
		o->absent_permille = (unsigned)n;
	else if (!strcmp(key, "tables"))
		o->page_table_pages = (unsigned)n;
	else
		return -ENOENT;
	return 0;
}

static int set_key(struct sim_request *r, const char *key, const char *value, struct pgr_error *err)
{
	int rc;

	if (!strcmp(key, "name")) {
		if (!units_name_ok(value))
			return pgr_fail(err, -EINVAL, "sim:name=%s is no name", value);
		snprintf(r->name, sizeof(r->name), "%s", value);
		r->options.name = r->name;
		return 0;
	}
	if (!strcmp(key, "fault"))
		return add_fault(r, value, err);
	rc = set_enumerations(r, key, value);
	if (rc == -ENOENT)
		rc = set_number(r, key, value);
	if (rc == -ENOENT)
		return pgr_fail(err, -EINVAL, "sim: there is no key \"%s\"", key);
	if (rc)
		return pgr_fail(err, -EINVAL, "sim:%s=%s is not understood", key, value);
	return 0;
}

int guests_sim_source(const char *text, struct guest_source **out, struct pgr_error *err)
{
	struct sim_request r = {.options = {.memory = 64u << 20}};
	char *copy = strdup(text), *save = NULL, *part, *value;
	int rc = 0;

	if (!copy)
		return pgr_fail(err, -ENOMEM, "no memory");
	for (part = strtok_r(copy, ",", &save); part && !rc; part = strtok_r(NULL, ",", &save)) {
		value = strchr(part, '=');
		if (!value) {
			rc = pgr_fail(err, -EINVAL, "sim: \"%s\" is not KEY=VALUE", part);
			break;
		}
		*value++ = 0;
		rc = set_key(&r, part, value, err);
	}
	if (!rc)
		rc = guest_sim_source_create(&r.options, r.faults, r.nr_faults, out, err);
	free(copy);
	return rc;
}

static int set_connected(struct guest_sim_sink_options *o, struct pgr_error *err)
{
	const char *text = getenv("PAGURUS_SIM_CONNECTED");
	struct pgr_connected *c = &o->connected;

	if (text && sscanf(text, "%" SCNu64 ",%" SCNu64 ",%" SCNu32 ",%" SCNu32, &c->devices_ns,
			   &c->announced_ns, &c->devices, &c->waiting) != 4)
		return pgr_fail(err, -EINVAL, "PAGURUS_SIM_CONNECTED=%s is not four numbers", text);
	o->never_connected = c->waiting > 0;
	return 0;
}

int guests_sim_sink(bool paused, struct guest_sink **out, struct pgr_error *err)
{
	const char *wanted = getenv("PAGURUS_SIM_FAULTS");
	struct guest_sim_sink_options o = {.start_paused = paused};
	struct sim_request r = {.nr_faults = 0};
	char *copy = strdup(wanted ? wanted : ""), *save = NULL, *part;
	int rc;

	if (!copy)
		return pgr_fail(err, -ENOMEM, "no memory");
	rc = set_connected(&o, err);
	for (part = strtok_r(copy, ",", &save); part && !rc; part = strtok_r(NULL, ",", &save))
		rc = add_fault(&r, part, err);
	if (!rc)
		rc = guest_sim_sink_open(&o, r.faults, r.nr_faults, out, err);
	free(copy);
	return rc;
}

int guests_sim_started(struct guest_sink *s, unsigned run_ms, struct pgr_error *err)
{
	struct guest_sim *g = guest_sim_of_sink(s);
	struct timespec wait = {.tv_sec = run_ms / 1000, .tv_nsec = run_ms % 1000 * 1000000l};

	if (!g)
		return pgr_fail(err, -ENOENT, "the simulated guest is gone");
	guest_sim_unpause(g);
	nanosleep(&wait, NULL);
	return guest_sim_verify(g, err);
}

int guests_sim_check_source(struct guest_source *s, struct pgr_error *err)
{
	struct guest_sim *g = guest_sim_of_source(s);
	struct guest_sim_status st;

	if (!g)
		return pgr_fail(err, -ESHUTDOWN, "the simulated guest is gone");
	guest_sim_status(g, &st);
	if (st.life != GUEST_SIM_RUNNING)
		return pgr_fail(err, -ESHUTDOWN, "the simulated guest does not run");
	return guest_sim_verify(g, err);
}
