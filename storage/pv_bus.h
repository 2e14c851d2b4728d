/* SPDX-License-Identifier: MIT */
/*
 * The back end's part of the agreement about one disk in xenstore (xen/io/xenbus.h, xen/io/blkif.h): when the disk's process opens it, connects to the
 * guest, lets go of it. Policy only: xenstore and the process are functions of the caller's, told what to do here and telling here what
 * happened. One thread; none of the functions is called back within another call of this file but those of struct pv_bus_ops.
 *
 * What is below the back end's path was written by the toolstack and by us; what is below the front end's was written by the guest, and is
 * checked before it goes to the process, which checks it again.
 */
#ifndef PAGURUS_PV_BUS_H
#define PAGURUS_PV_BUS_H

#include "storage/pv_disk.h"

#define PV_PATH 512u

/* What the process is to open. */
struct pv_open {
	char path[PV_PATH];
	char format[16]; /* "raw" or "qcow2" */
	uint32_t read_only;
};

/* What it has opened. */
struct pv_opened {
	uint64_t size;
	uint32_t block_size, granularity, can_discard;
};

struct pv_bus_ops {
	/* The value, to be freed; NULL: there is no such node. */
	char *(*read)(void *ctx, const char *path);
	void (*write)(void *ctx, const char *path, const char *value);
	void (*remove)(void *ctx, const char *path);
	/* Start the disk's process and have it open that; pv_bus_opened() or pv_bus_open_failed() follows. Again after pv_bus_died(). */
	void (*open)(void *ctx, const struct pv_open *o);
	/* pv_bus_connected() or pv_bus_connect_failed() follows. */
	void (*connect)(void *ctx, const struct pv_connection *c);
	/* pv_bus_disconnected() follows. */
	void (*disconnect)(void *ctx);
	/* pv_bus_resized() or pv_bus_resize_failed() follows. */
	void (*resize)(void *ctx, uint64_t size);
	/* The process is not needed any more, and the disk is done with: pv_bus_done(). */
	void (*stop)(void *ctx);
	/* A line for the log. */
	void (*say)(void *ctx, const char *text);
};

struct pv_bus;

/*
 * backend: the path of the disk's nodes, "/local/domain/0/backend/qdisk/3/51712". generation: its connections get the numbers after this one, so
 * it is one that no earlier connection of this disk had. -ENOMEM.
 */
int pv_bus_new(const char *backend, uint64_t generation, const struct pv_bus_ops *ops, void *ctx,
	       struct pv_bus **out);
void pv_bus_free(struct pv_bus *b);

/*
 * Begin: opens the disk. resumable: the generation of the connection that the journal is about, or 0; when xenstore says that the guest is connected,
 * that is gone on with.
 */
void pv_bus_start(struct pv_bus *b, uint64_t resumable);
/* Something may have changed in xenstore. */
void pv_bus_changed(struct pv_bus *b);

/* What the process says. After pv_bus_open_failed() it is expected to end by itself. */
void pv_bus_opened(struct pv_bus *b, const struct pv_opened *o);
void pv_bus_open_failed(struct pv_bus *b, const char *why);
void pv_bus_connected(struct pv_bus *b);
void pv_bus_connect_failed(struct pv_bus *b, const char *why);
void pv_bus_disconnected(struct pv_bus *b);
void pv_bus_broken(struct pv_bus *b, const char *why);
void pv_bus_resized(struct pv_bus *b, uint64_t size);
void pv_bus_resize_failed(struct pv_bus *b, const char *why);
/* It died: the caller starts another one by itself, which opens the same; then it is connected to where the guest is. */
void pv_bus_died(struct pv_bus *b);

/* The host's part is over (the guest was destroyed, or we are to end): let go of the guest, then stop(). */
void pv_bus_end(struct pv_bus *b);

/* stop() was called. */
bool pv_bus_done(const struct pv_bus *b);
/* The disk is open, or could not be opened. */
bool pv_bus_is_open(const struct pv_bus *b);
bool pv_bus_has_failed(const struct pv_bus *b);
/* Where the front end's nodes are; "" when xenstore does not say. */
const char *pv_bus_frontend(const struct pv_bus *b);
const char *pv_bus_backend(const struct pv_bus *b);
/* What is or was to be opened. */
const struct pv_open *pv_bus_target(const struct pv_bus *b);
/* "xvda", or the number. */
const char *pv_bus_name(const struct pv_bus *b);

#endif
