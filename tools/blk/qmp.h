/* SPDX-License-Identifier: MIT */
/*
 * The little of QEMU's machine protocol that libxl and xentop speak with whoever serves a guest's disks: lines of JSON over a Unix socket.
 * Only root can connect; what comes is checked all the same.
 */
#ifndef PAGURUS_BLK_QMP_H
#define PAGURUS_BLK_QMP_H

#include <stdbool.h>

#include "storage/line_server.h"

/* A disk as xentop wants to know it. */
struct qmp_disk {
	const char *name, *path;
	uint64_t reads, writes, read_bytes, written_bytes;
};

/* The index-th; false: there are no more. */
typedef bool qmp_disk_fn(void *ctx, unsigned index, struct qmp_disk *out);

struct qmp_disks {
	qmp_disk_fn *get;
	void *ctx;
};

/* Listen there; ended by line_server_stop(). disks: to be kept until then. -errno, with a sentence. */
int qmp_listen(struct loop *l, const char *path, const struct qmp_disks *disks,
	       struct line_server **out, struct pgr_error *err);

/*
 * The answer to a line, malloc'd and with its end of line; NULL: no memory. *quit is set for "quit".
 */
char *qmp_answer(const struct qmp_disks *disks, const char *line, bool *quit);

#endif
