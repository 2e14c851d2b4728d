// SPDX-License-Identifier: MIT
#include "storage/rbd_name.h"

#include <errno.h>
#include <string.h>

#include "common/text.h"

#define PREFIX "rbd:"

bool rbd_name_is(const char *name)
{
	return !strncmp(name, PREFIX, strlen(PREFIX));
}

static int fail(const char *name, const char *why, struct pgr_error *err)
{
	char plain[256];

	text_plain(plain, sizeof(plain), name, strlen(name));
	return pgr_fail(
		err, -EINVAL,
		"%s: %s; a disk on Ceph is rbd:POOL/IMAGE, rbd:POOL/IMAGE@SNAPSHOT, and ?conf=PATH&id=USER behind it",
		plain, why);
}

/* No control characters: the name gets into messages. */
static bool take(char *out, size_t size, const char *text, size_t length)
{
	if (!length || length >= size)
		return false;
	text_plain(out, size, text, length);
	return strlen(out) == length && !memcmp(out, text, length);
}

static int take_option(struct rbd_name *out, const char *name, const char *text, size_t length,
		       struct pgr_error *err)
{
	if (length > 5 && !memcmp(text, "conf=", 5) && !out->conf[0])
		return take(out->conf, sizeof(out->conf), text + 5, length - 5)
			       ? 0
			       : fail(name, "the path behind conf= cannot be one", err);
	if (length > 3 && !memcmp(text, "id=", 3) && !out->id[0])
		return take(out->id, sizeof(out->id), text + 3, length - 3)
			       ? 0
			       : fail(name, "the name behind id= cannot be one", err);
	return fail(name, "conf= and id=, each once, are the options", err);
}

static int take_options(struct rbd_name *out, const char *name, const char *text,
			struct pgr_error *err)
{
	for (;;) {
		size_t length = strcspn(text, "&");
		int ret = take_option(out, name, text, length, err);

		if (ret || !text[length])
			return ret;
		text += length + 1;
	}
}

int rbd_name_parse(const char *name, struct rbd_name *out, struct pgr_error *err)
{
	const char *at = name + strlen(PREFIX), *end, *slash, *snapshot;

	*out = (struct rbd_name){.pool = ""};
	if (!rbd_name_is(name))
		return fail(name, "does not begin with rbd:", err);
	end = at + strcspn(at, "?");
	slash = memchr(at, '/', (size_t)(end - at));
	if (!slash || !take(out->pool, sizeof(out->pool), at, (size_t)(slash - at)))
		return fail(name, "has no pool that could be one", err);
	at = slash + 1;
	snapshot = memchr(at, '@', (size_t)(end - at));
	if (!take(out->image, sizeof(out->image), at, (size_t)((snapshot ? snapshot : end) - at)) ||
	    strchr(out->image, '/'))
		return fail(name, "has no image that could be one", err);
	if (snapshot && (!take(out->snapshot, sizeof(out->snapshot), snapshot + 1,
			       (size_t)(end - snapshot - 1)) ||
			 strpbrk(out->snapshot, "@/")))
		return fail(name, "has no snapshot that could be one", err);
	return *end ? take_options(out, name, end + 1, err) : 0;
}

int rbd_name_check_snapshot(const char *name, struct pgr_error *err)
{
	char part[RBD_NAME_PART];

	if (take(part, sizeof(part), name, strlen(name)) && !strpbrk(part, "@/?"))
		return 0;
	return pgr_fail(err, -EINVAL,
			"a snapshot on Ceph has a name of 1 to %u characters, without @, / and ?",
			RBD_NAME_PART - 1);
}
