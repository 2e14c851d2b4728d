/* SPDX-License-Identifier: MIT */
/*
 * The keeper of one domain: does what its configuration says for the day it powers off, reboots or crashes, as the process that
 * `xl create` leaves behind does for a domain that was created here.
 *
 * It ends when the domain is gone, whoever removed it: moved away, destroyed by `xl destroy`, or by this process. A domain that stands
 * suspended is being moved or saved: it is left alone until it runs again or is gone.
 *
 * There is one for a domain: a lock. For a domain that was suspended and goes on where it was, it is the second in line: what `xl create`
 * left behind takes a suspension for the end and goes, unless it was too short to be seen; libvirt's daemon stays. So it waits then for
 * whether somebody else does it.
 */
#include <errno.h>
#include <fcntl.h>
#include <libxl.h>
#include <libxl_event.h>
#include <libxl_utils.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "tools/pagurus/units.h"
#include "tools/pagurus/verbs.h"

#define DUMP_DIR "/var/lib/xen/dump"

#define RUN_DIR	 "/run/pagurus"
#define LOCK_DIR RUN_DIR "/keepers"
/* Whoever else looks after a domain has begun by then: to destroy it is the first. */
#define LATER_S 30

/* Beside the logs of the other parts that look after guests. */
#define KEEPER_LOG "/var/log/xen/pagurus-keeper.log"

struct keeper {
	libxl_ctx *ctx;
	uint32_t domid;
	bool later; /* somebody else may look after it as well */
	int lock;   /* -1: none */
	libxl_evgen_domain_death *death;
	libxl_domain_config config;
};

static void say(const struct keeper *k, const char *text)
{
	fprintf(stderr, "pagurus: keeper of domain %u: %s\n", k->domid, text);
}

/* ---- one for a domain ---- */

static void lock_path(const struct keeper *k, char path[64])
{
	snprintf(path, 64, LOCK_DIR "/%u", k->domid);
}

/* False: another one keeps it. Where no lock can be had it is kept all the same. */
static bool take_lock(struct keeper *k)
{
	struct stat ours, there;
	char path[64];

	mkdir(RUN_DIR, 0755);
	mkdir(LOCK_DIR, 0700);
	lock_path(k, path);
	for (;;) {
		k->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
		if (k->lock < 0)
			return true;
		if (flock(k->lock, LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK) {
			close(k->lock);
			k->lock = -1;
			return false;
		}
		/* The one before may have removed it in between. */
		if (!fstat(k->lock, &ours) && !stat(path, &there) && ours.st_ino == there.st_ino)
			return true;
		close(k->lock);
	}
}

static void drop_lock(struct keeper *k)
{
	char path[64];

	if (k->lock < 0)
		return;
	lock_path(k, path);
	unlink(path);
	close(k->lock);
	k->lock = -1;
}

/* Whether the domain is gone, or is not what it was. */
static bool is_taken(struct keeper *k)
{
	libxl_dominfo info;
	bool taken;
	int rc;

	libxl_dominfo_init(&info);
	rc = libxl_domain_info(k->ctx, &info, k->domid);
	taken = rc == ERROR_DOMAIN_NOTFOUND ||
		(!rc && (info.dying || !info.shutdown ||
			 libxl_uuid_compare(&info.uuid, &k->config.c_info.uuid)));
	libxl_dominfo_dispose(&info);
	return taken;
}

static bool somebody_acts(struct keeper *k)
{
	struct timespec pause = {.tv_sec = 1};

	for (unsigned i = 0; i < LATER_S; i++) {
		nanosleep(&pause, NULL);
		if (is_taken(k))
			return true;
	}
	return false;
}

/* ---- its life ---- */

static int listen_for_death(struct keeper *k)
{
	return libxl_evenable_domain_death(k->ctx, k->domid, 0, &k->death);
}

static void stop_listening(struct keeper *k)
{
	if (k->death)
		libxl_evdisable_domain_death(k->ctx, k->death);
	k->death = NULL;
}

/* True when it runs again, false when it is gone. */
static bool wait_while_suspended(struct keeper *k)
{
	struct timespec pause = {.tv_sec = 1};
	libxl_dominfo info;
	bool suspended;

	for (;;) {
		libxl_dominfo_init(&info);
		if (libxl_domain_info(k->ctx, &info, k->domid)) {
			libxl_dominfo_dispose(&info);
			return false;
		}
		suspended = info.shutdown && info.shutdown_reason == LIBXL_SHUTDOWN_REASON_SUSPEND;
		libxl_dominfo_dispose(&info);
		if (!suspended)
			return true;
		nanosleep(&pause, NULL);
	}
}

/*
 * The next one is as this one was at its end: devices come and go, names and limits change, and a disk that was taken away may be
 * another guest's by now. What cannot be read is as it was.
 */
static void look_again(struct keeper *k)
{
	libxl_domain_config now;

	libxl_domain_config_init(&now);
	if (libxl_retrieve_domain_configuration(k->ctx, k->domid, &now, NULL)) {
		say(k, "its configuration cannot be read again; that of its beginning is used");
		libxl_domain_config_dispose(&now);
		return;
	}
	libxl_domain_config_dispose(&k->config);
	k->config = now;
}

static libxl_action_on_shutdown action_for(const struct keeper *k, int reason)
{
	switch (reason) {
	case LIBXL_SHUTDOWN_REASON_POWEROFF:
		return k->config.on_poweroff;
	case LIBXL_SHUTDOWN_REASON_REBOOT:
		return k->config.on_reboot;
	case LIBXL_SHUTDOWN_REASON_WATCHDOG:
		return k->config.on_watchdog;
	case LIBXL_SHUTDOWN_REASON_SOFT_RESET:
		return k->config.on_soft_reset;
	default:
		return k->config.on_crash;
	}
}

static void dump_core(struct keeper *k)
{
	char path[512];

	mkdir(DUMP_DIR, 0700);
	snprintf(path, sizeof(path), DUMP_DIR "/%.200s.%lld", k->config.c_info.name,
		 (long long)time(NULL));
	if (libxl_domain_core_dump(k->ctx, k->domid, path, NULL))
		say(k, "could not write a core dump under " DUMP_DIR);
}

static int destroy(struct keeper *k)
{
	stop_listening(k);
	if (!libxl_domain_destroy(k->ctx, k->domid, NULL))
		return 0;
	say(k, "could not remove it");
	return -EIO;
}

/* Make room for its successor but keep it to be looked at. */
static void set_aside(struct keeper *k)
{
	libxl_uuid fresh;
	char suffix[32];

	snprintf(suffix, sizeof(suffix), "-%lld", (long long)time(NULL));
	stop_listening(k);
	libxl_uuid_generate(&fresh);
	if (libxl_domain_preserve(k->ctx, k->domid, &k->config.c_info, suffix, fresh))
		say(k, "could not set it aside under another name");
}

static int start_anew(struct keeper *k)
{
	bool ours;

	k->config.c_info.domid = INVALID_DOMID;
	drop_lock(k);
	k->later = false;
	if (libxl_domain_create_new(k->ctx, &k->config, &k->domid, NULL, NULL)) {
		say(k, "could not create it anew");
		return -EIO;
	}
	ours = take_lock(k);
	if ((ours && listen_for_death(k)) || libxl_domain_unpause(k->ctx, k->domid, NULL)) {
		say(k, "created it anew but could not start it");
		return -EIO;
	}
	/* Another one has seen it come, and keeps it. */
	return ours ? 0 : 1;
}

/* 0: go on watching (a new domain), 1: the end, negative: failed. */
static int act(struct keeper *k, libxl_action_on_shutdown action)
{
	int rc = 0;

	switch (action) {
	case LIBXL_ACTION_ON_SHUTDOWN_COREDUMP_DESTROY:
		dump_core(k);
		rc = destroy(k);
		return rc ? rc : 1;
	case LIBXL_ACTION_ON_SHUTDOWN_DESTROY:
		rc = destroy(k);
		return rc ? rc : 1;
	case LIBXL_ACTION_ON_SHUTDOWN_COREDUMP_RESTART:
		dump_core(k);
		rc = destroy(k);
		break;
	case LIBXL_ACTION_ON_SHUTDOWN_RESTART:
		rc = destroy(k);
		break;
	case LIBXL_ACTION_ON_SHUTDOWN_RESTART_RENAME:
		set_aside(k);
		break;
	default: /* PRESERVE, and SOFT_RESET, which PV guests do not have */
		return 1;
	}
	return rc ? rc : start_anew(k);
}

static int on_event(struct keeper *k, const libxl_event *event)
{
	int reason;

	if (event->domid != k->domid)
		return 0;
	if (event->type == LIBXL_EVENT_TYPE_DOMAIN_DEATH)
		return 1;
	if (event->type != LIBXL_EVENT_TYPE_DOMAIN_SHUTDOWN)
		return 0;
	reason = event->u.domain_shutdown.shutdown_reason;
	if (reason != LIBXL_SHUTDOWN_REASON_SUSPEND) {
		if (k->later && somebody_acts(k))
			return 1;
		look_again(k);
		return act(k, action_for(k, reason));
	}
	stop_listening(k);
	if (!wait_while_suspended(k))
		return 1;
	return listen_for_death(k) ? -EIO : 0;
}

static int watch(struct keeper *k)
{
	libxl_event *event;
	int rc = 0;

	while (!rc) {
		if (libxl_event_wait(k->ctx, &event, LIBXL_EVENTMASK_ALL, NULL, NULL)) {
			say(k, "libxl gives no events any more");
			return -EIO;
		}
		rc = on_event(k, event);
		libxl_event_free(k->ctx, event);
	}
	return rc < 0 ? rc : 0;
}

/* It outlives whoever started it, and must not hold that one's pipe or terminal open. */
static void let_go_of_terminal(void)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	int log = open(KEEPER_LOG, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);

	if (null < 0)
		return;
	dup2(null, STDIN_FILENO);
	dup2(null, STDOUT_FILENO);
	dup2(log < 0 ? null : log, STDERR_FILENO);
	if (log > STDERR_FILENO)
		close(log);
	if (null > STDERR_FILENO)
		close(null);
}

int verb_keeper(int argc, char **argv)
{
	struct keeper k = {.ctx = NULL, .lock = -1};
	xentoollog_logger_stdiostream *log;
	uint64_t domid;
	int rc = -EIO;

	k.later = argc == 3 && !strcmp(argv[2], "later");
	if ((argc != 2 && !k.later) || units_count(argv[1], &domid) || !domid || domid >= 0x7ff0) {
		fputs("pagurus: keeper needs a domain number; it is started by pagurus itself\n",
		      stderr);
		return EXIT_USAGE;
	}
	k.domid = (uint32_t)domid;
	let_go_of_terminal();
	if (!take_lock(&k))
		return EXIT_OK;
	log = xtl_createlogger_stdiostream(stderr, XTL_ERROR, 0);
	libxl_domain_config_init(&k.config);
	if (!log || libxl_ctx_alloc(&k.ctx, LIBXL_VERSION, 0, (xentoollog_logger *)log))
		say(&k, "libxl does not answer");
	else if (libxl_retrieve_domain_configuration(k.ctx, k.domid, &k.config, NULL))
		say(&k, "its configuration cannot be read");
	else if (listen_for_death(&k))
		say(&k, "it cannot be watched");
	else
		rc = watch(&k);
	stop_listening(&k);
	drop_lock(&k);
	libxl_domain_config_dispose(&k.config);
	if (k.ctx)
		libxl_ctx_free(k.ctx);
	if (log)
		xtl_logger_destroy((xentoollog_logger *)log);
	return rc ? EXIT_FAILED : EXIT_OK;
}
