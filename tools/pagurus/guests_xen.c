/* SPDX-License-Identifier: MIT */
#include "tools/pagurus/guests_xen.h"

#include <errno.h>
#include <libxl.h>
#include <libxl_utils.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "migrate/guest_xen.h"
#include "migrate/xen_console_log.h"
#include "migrate/xen_disks.h"
#include "migrate/xen_quiet.h"
#include "migrate/xen_start.h"
#include "tools/pagurus/message.h"
#include "tools/pagurus/units.h"

/* A libxl context and the domain found through it. */
struct found {
	xentoollog_logger_stdiostream *log;
	libxl_ctx *ctx;
	uint32_t domid;
	bool paused, suspended;
	char name[300];
};

static void close_libxl(struct found *f)
{
	if (f->ctx)
		libxl_ctx_free(f->ctx);
	if (f->log)
		xtl_logger_destroy((xentoollog_logger *)f->log);
	*f = (struct found){.ctx = NULL};
}

static int open_libxl(struct found *f, struct pgr_error *err)
{
	*f = (struct found){.ctx = NULL};
	/* libxl's own complaint is useless when there is simply no Xen. */
	if (access("/proc/xen/capabilities", F_OK) && access("/dev/xen/privcmd", F_OK))
		return pgr_fail(err, -ENOTSUP, "this host does not run under Xen or Pagurus");
	f->log = xtl_createlogger_stdiostream(stderr, XTL_ERROR, 0);
	if (!f->log || libxl_ctx_alloc(&f->ctx, LIBXL_VERSION, 0, (xentoollog_logger *)f->log)) {
		close_libxl(f);
		return pgr_fail(
			err, -ENOTSUP,
			"libxl does not answer: is this the control domain, and are you root?");
	}
	return 0;
}

static int find(const uint8_t uuid[16], struct found *f, struct pgr_error *err)
{
	char text[UNITS_UUID], *name;
	libxl_dominfo *list;
	int i, nr = 0, rc;

	rc = open_libxl(f, err);
	if (rc)
		return rc;
	list = libxl_list_domain(f->ctx, &nr);
	rc = -ENOENT;
	for (i = 0; list && i < nr; i++) {
		if (memcmp(libxl_uuid_bytearray(&list[i].uuid), uuid, 16) || list[i].dying)
			continue;
		f->domid = list[i].domid;
		f->paused = list[i].paused;
		f->suspended = list[i].shutdown &&
			       list[i].shutdown_reason == LIBXL_SHUTDOWN_REASON_SUSPEND;
		name = libxl_domid_to_name(f->ctx, f->domid);
		snprintf(f->name, sizeof(f->name), "%s", name ? name : "");
		free(name);
		rc = 0;
	}
	if (list)
		libxl_dominfo_list_free(list, nr);
	if (!rc)
		return 0;
	close_libxl(f);
	return pgr_fail(err, rc, "there is no domain with the uuid %s here",
			units_uuid(uuid, text));
}

static int libxl_said(struct pgr_error *err, int rc, const char *what, const struct found *f)
{
	if (!rc)
		return 0;
	return pgr_fail(
		err, -EIO,
		"libxl could not %s domain %u (%s): error %d; its own message is in the log", what,
		f->domid, f->name, rc);
}

static void run_keeper(uint32_t domid, bool later)
{
	char number[16];

	/* A grandchild of init: it outlives this process and nobody has to reap it. */
	if (setsid() < 0 || fork() || chdir("/"))
		_exit(0);
	snprintf(number, sizeof(number), "%u", domid);
	execl("/proc/self/exe", "pagurus", "keeper", number, later ? "later" : NULL, (char *)NULL);
	_exit(127);
}

static int start_keeper(uint32_t domid, bool later, struct pgr_error *err)
{
	pid_t child = fork();
	int status;

	if (!child)
		run_keeper(domid, later);
	if (child < 0)
		return pgr_fail_errno(err, -errno, "no keeper process for domain %u", domid);
	waitpid(child, &status, 0);
	return 0;
}

/* A worker that died may have left something on. */
static int resume_found(struct found *f, struct pgr_error *err)
{
	int rc = 0;

	xen_quiet_end(f->domid);
	xen_disks_use(f->domid);
	if (f->suspended)
		rc = libxl_said(err, libxl_domain_resume(f->ctx, f->domid, 1, NULL), "resume", f);
	if (f->suspended && !rc)
		start_keeper(f->domid, true, NULL);
	guest_xen_put_aids_away(f->domid);
	return rc;
}

int guests_xen_make_run(const uint8_t uuid[16], bool *stood, bool stopped, struct pgr_error *err)
{
	struct found f;
	int rc = find(uuid, &f, err);

	if (rc)
		return rc;
	*stood = f.suspended && stopped;
	/* One that was never stopped by us, and stands still, is somebody else's, with all that is switched on for it. */
	rc = f.suspended && !stopped ? 0 : resume_found(&f, err);
	close_libxl(&f);
	return rc;
}

static int destroy_found(struct found *f, struct pgr_error *err)
{
	return libxl_said(err, libxl_domain_destroy(f->ctx, f->domid, NULL), "destroy", f);
}

/* Length of the name without the mark of an arriving guest; 0: it has no such mark. */
static size_t incoming_stem(const char *name)
{
	size_t length = strlen(name), mark = strlen(GUEST_XEN_INCOMING);

	return length > mark && !strcmp(name + length - mark, GUEST_XEN_INCOMING) ? length - mark
										  : 0;
}

int guests_xen_remove_incoming(const uint8_t uuid[16], struct pgr_error *err)
{
	struct found f;
	int rc = find(uuid, &f, err);

	if (rc)
		return rc;
	/* Never one that has its final name: that is a guest that lives here. */
	if (incoming_stem(f.name) || !f.name[0]) {
		rc = destroy_found(&f, err);
		if (!rc && f.name[0])
			xen_console_log_remove(f.name);
		if (!rc)
			xen_disks_forget(f.domid);
	}
	close_libxl(&f);
	return rc;
}

int guests_xen_start_incoming(const uint8_t uuid[16], struct pgr_error *err)
{
	struct found f;
	char final[sizeof(f.name)];
	int rc = find(uuid, &f, err);
	const char *step;
	size_t stem;

	if (rc)
		return rc;
	stem = incoming_stem(f.name);
	snprintf(final, sizeof(final), "%.*s", (int)stem, f.name);
	rc = xen_start(f.ctx, f.domid, stem ? f.name : NULL, final, f.paused, &step);
	rc = libxl_said(err, rc, step, &f);
	close_libxl(&f);
	return rc;
}

int guests_xen_remove_suspended(const uint8_t uuid[16], struct pgr_error *err)
{
	struct found f;
	int rc = find(uuid, &f, err);

	if (rc)
		return rc;
	if (f.suspended)
		rc = destroy_found(&f, err);
	close_libxl(&f);
	return rc;
}

int guests_xen_source(const char *name, struct guest_source **out, struct pgr_error *err)
{
	return guest_xen_source_open(name, out, err);
}

int guests_xen_sink(bool paused, const char *rename, struct guest_sink **out, struct pgr_error *err)
{
	const struct guest_xen_sink_options o = {.rename = rename, .paused = paused};

	return guest_xen_sink_open(&o, out, err);
}

/* ---- a suspended domain as a source ---- */

struct suspended {
	struct guest_source source; /* first */
	struct found found;
};

static int suspended_resume(struct guest_source *g, struct pgr_error *err)
{
	return resume_found(&((struct suspended *)g)->found, err);
}

static int suspended_destroy(struct guest_source *g, struct pgr_error *err)
{
	return destroy_found(&((struct suspended *)g)->found, err);
}

static void suspended_close(struct guest_source *g)
{
	close_libxl(&((struct suspended *)g)->found);
	free(g);
}

static const struct guest_source_ops suspended_ops = {
	.name = "suspended",
	.resume = suspended_resume,
	.destroy = suspended_destroy,
	.close = suspended_close,
};

int guests_xen_open_suspended(const uint8_t uuid[16], struct guest_source **out,
			      struct pgr_error *err)
{
	struct suspended *s = calloc(1, sizeof(*s));
	int rc;

	if (!s)
		return pgr_fail(err, -ENOMEM, "no memory for a guest");
	rc = find(uuid, &s->found, err);
	if (rc) {
		free(s);
		return rc;
	}
	s->source.ops = &suspended_ops;
	*out = &s->source;
	return 0;
}

/* ---- the keeper ---- */

int guests_xen_watch(const uint8_t uuid[16], bool later, struct pgr_error *err)
{
	struct found f;
	int rc = find(uuid, &f, err);

	if (rc)
		return rc;
	rc = start_keeper(f.domid, later, err);
	close_libxl(&f);
	return rc;
}

/* ---- what is here ---- */

static bool describe(struct found *f, const libxl_dominfo *info, struct guest_here *g)
{
	char *name;

	/* Not the control domain, and not what is about to be gone. */
	if (!info->domid || info->dying ||
	    (info->shutdown && info->shutdown_reason != LIBXL_SHUTDOWN_REASON_SUSPEND))
		return false;
	name = libxl_domid_to_name(f->ctx, info->domid);
	if (!name)
		return false;
	*g = (struct guest_here){.memory = info->current_memkb * 1024, .vcpus = info->vcpu_online};
	snprintf(g->name, sizeof(g->name), "%s", name);
	memcpy(g->uuid, libxl_uuid_bytearray_const(&info->uuid), sizeof(g->uuid));
	g->arriving = incoming_stem(name) > 0;
	free(name);
	return true;
}

int guests_xen_each(int (*each)(void *ctx, const struct guest_here *g), void *ctx,
		    struct pgr_error *err)
{
	libxl_dominfo *list;
	struct guest_here g;
	struct found f;
	int rc = open_libxl(&f, err), nr = 0;

	if (rc)
		return rc;
	list = libxl_list_domain(f.ctx, &nr);
	if (!list)
		rc = pgr_fail(err, -EIO, "libxl cannot list the guests");
	for (int i = 0; !rc && i < nr; i++)
		if (describe(&f, &list[i], &g))
			rc = each(ctx, &g);
	if (list)
		libxl_dominfo_list_free(list, nr);
	close_libxl(&f);
	return rc;
}

int guests_xen_look(const char *name, struct guest_here *g, struct pgr_error *err)
{
	libxl_dominfo info;
	struct found f;
	uint32_t domid;
	int rc = open_libxl(&f, err);

	if (rc)
		return rc;
	libxl_dominfo_init(&info);
	if (libxl_domain_qualifier_to_domid(f.ctx, name, &domid) ||
	    libxl_domain_info(f.ctx, &info, domid) || !describe(&f, &info, g))
		rc = pgr_fail(err, -ENOENT, "no guest is called %s here: see `xl list`", name);
	libxl_dominfo_dispose(&info);
	close_libxl(&f);
	return rc;
}

/* ---- facts ---- */

void guests_xen_facts(json_t *facts)
{
	struct pgr_error err = PGR_ERROR_NONE;
	const libxl_version_info *version;
	struct found f;
	libxl_physinfo physical;
	uint64_t free_kib = 0;
	char text[256];

	if (open_libxl(&f, &err)) {
		json_object_set_new(facts, "hypervisor", json_null());
		json_object_set_new(facts, "why_no_hypervisor", message_string(err.text));
		return;
	}
	version = libxl_get_version_info(f.ctx);
	if (version) {
		snprintf(text, sizeof(text), "Xen %d.%d%s", version->xen_version_major,
			 version->xen_version_minor, version->xen_version_extra);
		json_object_set_new(facts, "hypervisor", message_string(text));
	}
	libxl_physinfo_init(&physical);
	if (!libxl_get_physinfo(f.ctx, &physical)) {
		json_object_set_new(facts, "processors", json_integer(physical.nr_cpus));
		json_object_set_new(facts, "memory_bytes",
				    json_integer((json_int_t)physical.total_pages * 4096));
	}
	libxl_physinfo_dispose(&physical);
	if (!libxl_get_free_memory(f.ctx, &free_kib))
		json_object_set_new(facts, "free_memory_bytes",
				    json_integer((json_int_t)free_kib * 1024));
	close_libxl(&f);
}
