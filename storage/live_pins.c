// SPDX-License-Identifier: MIT
#include "storage/live_pins.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "storage/block_qcow2.h"
#include "storage/qcow2_layer.h"

#define HEADER_MOST (64u << 10)

bool live_pins_have(const struct live_pins *p, dev_t dev, ino_t ino)
{
	for (unsigned i = 0; i < p->nr; i++)
		if (p->list[i].dev == dev && p->list[i].ino == ino)
			return true;
	return false;
}

int live_pins_add(struct live_pins *p, int fd, struct pgr_error *err)
{
	struct live_pin *list;
	struct stat st;

	if (fstat(fd, &st))
		return pgr_fail_errno(err, -errno, "a layer cannot be looked at");
	if (live_pins_have(p, st.st_dev, st.st_ino))
		return 0;
	list = realloc(p->list, (p->nr + 1) * sizeof(*list));
	if (!list)
		return pgr_fail(err, -ENOMEM, "no memory to remember a layer");
	list[p->nr++] = (struct live_pin){.dev = st.st_dev, .ino = st.st_ino};
	p->list = list;
	return 0;
}

/* The path of what the image in fd stands on, malloc'd, and whether that is one, too; NULL: nothing, or it cannot be said. */
static char *below(int fd, const char *path, bool *image)
{
	struct qcow2_header h;
	struct stat st;
	uint8_t *bytes = malloc(HEADER_MOST);
	ssize_t n = bytes ? pread(fd, bytes, HEADER_MOST, 0) : -1;
	char *out = NULL;

	if (n > 0 && !fstat(fd, &st) &&
	    !qcow2_header_parse(bytes, (size_t)n, (uint64_t)st.st_size, path, &h, NULL) &&
	    h.backing[0] && qcow2_layer_is_file(h.backing)) {
		out = qcow2_layer_path(path, h.backing);
		*image = !strcmp(h.backing_format, "qcow2");
	}
	free(bytes);
	return out;
}

int live_pins_begin(struct live_pins *p, const char *path, const char *format,
		    struct pgr_error *err)
{
	bool image = !strcmp(format, "qcow2");
	char *at = strdup(path), *next;
	int ret = at ? 0 : pgr_fail(err, -ENOMEM, "no memory to remember layers");

	for (unsigned n = 0; at && n < QCOW2_CHAIN_MAX && !ret; n++) {
		int fd = open(at, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);

		if (fd < 0)
			break;
		ret = live_pins_add(p, fd, err);
		next = image ? below(fd, at, &image) : NULL;
		close(fd);
		free(at);
		at = next;
	}
	free(at);
	return ret;
}

void live_pins_free(struct live_pins *p)
{
	free(p->list);
	*p = (struct live_pins){.list = NULL};
}
