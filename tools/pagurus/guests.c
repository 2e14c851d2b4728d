/* SPDX-License-Identifier: MIT */
#include "tools/pagurus/guests.h"

#include <errno.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include "tools/pagurus/guests_sim.h"
#include "tools/pagurus/guests_xen.h"
#include "tools/pagurus/message.h"

int guests_open_source(const char *name, struct guest_source **out, struct pgr_error *err)
{
	if (!strncmp(name, "sim:", 4))
		return guests_sim_source(name + 4, out, err);
	return guests_xen_source(name, out, err);
}

int guests_check_source(struct guest_source *g, enum pgr_guest_kind kind, struct pgr_error *err)
{
	return kind == PGR_GUEST_SIM ? guests_sim_check_source(g, err) : 0;
}

/* A simulated guest ends with the process that died: nothing of it is here. */
static int gone(const struct journal *j, struct pgr_error *err)
{
	return pgr_fail(err, -ENOENT, "the simulated guest %s ended with its process", j->guest);
}

int guests_make_run(const struct journal *j, bool *stood, struct pgr_error *err)
{
	/* What was not about to be stopped was not stopped, and what goes on already is not stopped any more. */
	return j->kind == PGR_GUEST_SIM
		       ? gone(j, err)
		       : guests_xen_make_run(j->uuid, stood,
					     j->mark != SESSION_MARK_BEGIN &&
						     j->mark != SESSION_MARK_RETURNED,
					     err);
}

int guests_remove_incoming(const struct journal *j, struct pgr_error *err)
{
	return j->kind == PGR_GUEST_SIM ? 0 : guests_xen_remove_incoming(j->uuid, err);
}

int guests_start_incoming(const struct journal *j, struct pgr_error *err)
{
	int rc = j->kind == PGR_GUEST_SIM ? gone(j, err) : guests_xen_start_incoming(j->uuid, err);

	return rc ? rc : guests_xen_watch(j->uuid, false, err);
}

void guests_look_after(enum pgr_guest_kind kind, const uint8_t uuid[16])
{
	struct pgr_error ignored = PGR_ERROR_NONE;

	if (kind != PGR_GUEST_SIM)
		guests_xen_watch(uuid, true, &ignored);
}

int guests_remove_suspended(const struct journal *j, struct pgr_error *err)
{
	return j->kind == PGR_GUEST_SIM ? 0 : guests_xen_remove_suspended(j->uuid, err);
}

int guests_open_suspended(const struct journal *j, struct guest_source **out, struct pgr_error *err)
{
	return j->kind == PGR_GUEST_SIM ? gone(j, err)
					: guests_xen_open_suspended(j->uuid, out, err);
}

int guests_each(int (*each)(void *ctx, const struct guest_here *g), void *ctx,
		struct pgr_error *err)
{
	return guests_xen_each(each, ctx, err);
}

static int look_at_sim(const char *name, struct guest_here *g, struct pgr_error *err)
{
	struct guest_description about = {.config = NULL};
	struct guest_source *source;
	int rc = guests_open_source(name, &source, err);

	if (rc)
		return rc;
	rc = source->ops->describe(source, &about, err);
	/* It was made only to look at it. */
	if (!rc)
		rc = source->ops->destroy(source, err);
	source->ops->close(source);
	if (rc) {
		guest_description_free(&about);
		return rc;
	}
	*g = (struct guest_here){.memory = about.info.populated * PGR_PAGE_SIZE,
				 .vcpus = about.info.vcpus};
	memcpy(g->name, about.info.name, sizeof(g->name));
	memcpy(g->uuid, about.info.uuid, sizeof(g->uuid));
	guest_description_free(&about);
	return 0;
}

int guests_look(const char *name, struct guest_here *g, struct pgr_error *err)
{
	return strncmp(name, "sim:", 4) ? guests_xen_look(name, g, err) : look_at_sim(name, g, err);
}

json_t *guests_host_facts(bool allow_sim, uint64_t sim_free)
{
	struct timespec now;
	struct utsname u;
	json_t *facts = json_object();

	uname(&u);
	clock_gettime(CLOCK_REALTIME, &now);
	json_object_set_new(facts, "pagurus", json_string(PAGURUS_VERSION));
	json_object_set_new(facts, "stream_version", json_integer(PGR_VERSION));
	json_object_set_new(facts, "hostname", message_string(u.nodename));
	json_object_set_new(facts, "kernel", message_string(u.release));
	json_object_set_new(facts, "processors", json_integer(sysconf(_SC_NPROCESSORS_ONLN)));
	json_object_set_new(facts, "clock_ns",
			    json_integer((json_int_t)now.tv_sec * 1000000000 + now.tv_nsec));
	json_object_set_new(facts, "allow_sim", json_boolean(allow_sim));
	guests_xen_facts(facts);
	if (sim_free)
		json_object_set_new(facts, "free_memory_bytes", json_integer((json_int_t)sim_free));
	return facts;
}
