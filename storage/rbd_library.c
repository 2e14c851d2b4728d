// SPDX-License-Identifier: MIT
#include "storage/rbd_library.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <string.h>

#define RADOS_FILE "librados.so.2"
#define RBD_FILE   "librbd.so.1"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct rbd_library real;
static const struct rbd_library *given;
static bool loaded;

static void *open_library(const char *file, struct pgr_error *err)
{
	void *library = dlopen(file, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);

	if (!library)
		pgr_fail(
			err, -ENOPKG,
			"disks on Ceph need its library, which is not installed here or cannot be loaded (%s): apt-get install librbd1",
			dlerror());
	return library;
}

/* A pointer to a function cannot be assigned from one to an object, says C; POSIX says that they are of one size. */
static int find(void *library, const char *name, void *where, struct pgr_error *err)
{
	void *function = dlsym(library, name);

	if (!function)
		return pgr_fail(
			err, -ENOPKG,
			"the library of Ceph that is installed here has no %s, so it is too old: apt-get install librbd1",
			name);
	memcpy(where, &function, sizeof(function));
	return 0;
}

static int load(struct pgr_error *err)
{
	void *rados = open_library(RADOS_FILE, err), *rbd = rados ? open_library(RBD_FILE, err) : 0;
	int ret = rbd ? 0 : -ENOPKG;

#define X(name)   \
	if (!ret) \
		ret = find(rados, #name, &real.name, err);
	RADOS_FUNCTIONS(X)
#undef X
#define X(name)   \
	if (!ret) \
		ret = find(rbd, #name, &real.name, err);
	RBD_FUNCTIONS(X)
#undef X
	return ret;
}

const struct rbd_library *rbd_library_get(struct pgr_error *err)
{
	const struct rbd_library *found = given;

	pthread_mutex_lock(&lock);
	if (!found && !loaded)
		loaded = !load(err);
	if (!found && loaded)
		found = &real;
	pthread_mutex_unlock(&lock);
	return found;
}

void rbd_library_set(const struct rbd_library *functions)
{
	given = functions;
}
