/* SPDX-License-Identifier: MIT */
/*
 * The files that a disk is known to stand on: its own and those below it, as they were when it was opened, and the layers that were made for it since. Whoever
 * has more rights than the process that writes the disk goes by this, and not by what that process may have written into a header.
 */
#ifndef PAGURUS_LIVE_PINS_H
#define PAGURUS_LIVE_PINS_H

#include <stdbool.h>
#include <sys/types.h>

#include "common/error.h"

struct live_pins {
	struct live_pin {
		dev_t dev;
		ino_t ino;
	} * list;
	unsigned nr;
};

/*
 * Those of the disk at path, with what its header names, and so on; to what cannot be read, or is no file, nothing is added. Blocking, for a header a
 * layer. -ENOMEM.
 */
int live_pins_begin(struct live_pins *p, const char *path, const char *format,
		    struct pgr_error *err);
/* One that is open is known from now on. -ENOMEM, or what fstat() says. */
int live_pins_add(struct live_pins *p, int fd, struct pgr_error *err);
bool live_pins_have(const struct live_pins *p, dev_t dev, ino_t ino);
void live_pins_free(struct live_pins *p);

#endif
