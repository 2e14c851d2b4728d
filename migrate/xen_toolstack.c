// SPDX-License-Identifier: MIT
#include "migrate/xen_toolstack.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <libxl_event.h>

struct xen_toolstack {
	xentoollog_logger logger; /* first: libxl gives it back to the callbacks */
	libxl_ctx *ctx;
	pthread_mutex_t lock;
	char complaint[512]; /* the first error since begin() */
};

static void remember(xentoollog_logger *logger, xentoollog_level level, int errnoval,
		     const char *context, const char *format, va_list al)
	__attribute__((format(printf, 5, 0)));

static void remember(xentoollog_logger *logger, xentoollog_level level, int errnoval,
		     const char *context, const char *format, va_list al)
{
	struct xen_toolstack *t = (struct xen_toolstack *)logger;
	size_t used;

	(void)context;
	if (level < XTL_ERROR)
		return;
	/* The first complaint is the cause; those after it are its consequences. */
	pthread_mutex_lock(&t->lock);
	if (!t->complaint[0]) {
		vsnprintf(t->complaint, sizeof(t->complaint), format, al);
		used = strlen(t->complaint);
		if (errnoval > 0)
			snprintf(t->complaint + used, sizeof(t->complaint) - used, ": %s",
				 strerror(errnoval));
		for (char *c = t->complaint; *c; c++)
			if (*c == '\n' || *c == '\r')
				*c = ' ';
	}
	pthread_mutex_unlock(&t->lock);
}

static void no_progress(xentoollog_logger *logger, const char *context, const char *doing_what,
			int percent, unsigned long done, unsigned long total)
{
	(void)logger;
	(void)context;
	(void)doing_what;
	(void)percent;
	(void)done;
	(void)total;
}

static void no_destroy(xentoollog_logger *logger)
{
	(void)logger;
}

/*
 * libxl has to reap the save helper and hotplug scripts while the program has children of its own.
 * Must outlive every context.
 */
static const libxl_childproc_hooks reap_own_only = {
	.chldowner = libxl_sigchld_owner_libxl_always_selective_reap,
};

int xen_toolstack_open(struct xen_toolstack **out, struct pgr_error *err)
{
	struct xen_toolstack *t = calloc(1, sizeof(*t));

	if (!t)
		return pgr_fail(err, -ENOMEM, "no memory for libxl");
	pthread_mutex_init(&t->lock, NULL);
	t->logger.vmessage = remember;
	t->logger.progress = no_progress;
	t->logger.destroy = no_destroy;
	if (libxl_ctx_alloc(&t->ctx, LIBXL_VERSION, 0, &t->logger)) {
		pgr_fail(err, -ENOTSUP,
			 "libxl does not answer (%s): are the Xen tools running, and are you root?",
			 t->complaint);
		xen_toolstack_close(t);
		return -ENOTSUP;
	}
	libxl_childproc_setmode(t->ctx, &reap_own_only, NULL);
	*out = t;
	return 0;
}

void xen_toolstack_close(struct xen_toolstack *t)
{
	if (!t)
		return;
	if (t->ctx)
		libxl_ctx_free(t->ctx);
	pthread_mutex_destroy(&t->lock);
	free(t);
}

libxl_ctx *xen_toolstack_ctx(struct xen_toolstack *t)
{
	return t->ctx;
}

void xen_toolstack_begin(struct xen_toolstack *t)
{
	pthread_mutex_lock(&t->lock);
	t->complaint[0] = '\0';
	pthread_mutex_unlock(&t->lock);
}

static int errno_of(int rc)
{
	switch (rc) {
	case ERROR_NOMEM:
		return -ENOMEM;
	case ERROR_INVAL:
		return -EINVAL;
	case ERROR_TIMEDOUT:
	case ERROR_GUEST_TIMEDOUT:
		return -ETIMEDOUT;
	case ERROR_DOMAIN_NOTFOUND:
		return -ENOENT;
	case ERROR_ABORTED:
		return -ECANCELED;
	}
	return -EIO;
}

int xen_toolstack_failed(struct xen_toolstack *t, int rc, struct pgr_error *err, const char *what,
			 ...)
{
	char doing[256], why[sizeof(t->complaint)];
	va_list ap;

	if (!rc)
		return 0;
	va_start(ap, what);
	vsnprintf(doing, sizeof(doing), what, ap);
	va_end(ap);
	pthread_mutex_lock(&t->lock);
	snprintf(why, sizeof(why), "%s", t->complaint);
	pthread_mutex_unlock(&t->lock);
	if (!why[0])
		snprintf(why, sizeof(why), "libxl error %d", rc);
	return pgr_fail(err, errno_of(rc), "%s: %s", doing, why);
}
