// SPDX-License-Identifier: MIT
/*
 * The process, as far as this file knows:
 *
 *   OPENING ─ open ─> OPEN ─ connecting ─> CONNECTING ─> CONNECTED ─ letting go ─> DISCONNECTING ─> OPEN
 *      └ failed, or not needed any more: NONE                └ it died: OPENING, and again
 *
 * The state in xenstore is ours (`own`), but the toolstack may write Closing there, when the disk is to be unplugged, and never anything else.
 *
 *   Initialising   until the disk is open
 *   InitWait       open; what we offer is published; the front end may connect
 *   Connected      served. It is written again when the size has changed: front ends then look at it
 *   Closing        the front end should let go, or has begun to; it is served until it has
 *   Closed         it has. A front end that begins again has us in InitWait again, unless the disk was unplugged
 */
#include "storage/pv_bus.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xen/xen.h>

#include <xen/io/protocols.h>
#include <xen/io/xenbus.h>

#define NUMBER_MAX 24

enum process { NONE, OPENING, OPEN, CONNECTING, CONNECTED, DISCONNECTING };

struct pv_bus {
	const struct pv_bus_ops *ops;
	void *ctx;
	char backend[PV_PATH], frontend[PV_PATH], name[32];
	enum process process;
	enum xenbus_state own;
	uint64_t generation; /* of the newest connection */
	struct pv_open open;
	struct pv_opened opened;
	struct pv_connection connection;
	bool no_discard; /* the toolstack's wish */
	bool cdrom;
	bool attached; /* there is a connection, whether a process serves it now or not */
	bool unplug, ending, broken, failed, resizing;
};

/* ---- nodes ---- */

static char *node(const struct pv_bus *b, const char *folder, const char *name)
{
	char path[2 * PV_PATH];

	if (!folder[0] || snprintf(path, sizeof(path), "%s/%s", folder, name) >= (int)sizeof(path))
		return NULL;
	return b->ops->read(b->ctx, path);
}

static void node_copy(const struct pv_bus *b, const char *folder, const char *name, char *out,
		      size_t size)
{
	char *value = node(b, folder, name);

	snprintf(out, size, "%s", value ? value : "");
	free(value);
}

/* A decimal number; `none` when there is no such node, UINT64_MAX when it is no number. */
static uint64_t number(const struct pv_bus *b, const char *folder, const char *name, uint64_t none)
{
	char *value = node(b, folder, name);
	uint64_t result = none;
	char *end;

	if (value) {
		errno = 0;
		result = strtoull(value, &end, 10);
		if (value[0] < '0' || value[0] > '9' || *end || errno)
			result = UINT64_MAX;
	}
	free(value);
	return result;
}

static void publish_text(const struct pv_bus *b, const char *name, const char *value)
{
	char path[PV_PATH + 64];

	snprintf(path, sizeof(path), "%s/%s", b->backend, name);
	b->ops->write(b->ctx, path, value);
}

static void publish(const struct pv_bus *b, const char *name, uint64_t value)
{
	char text[NUMBER_MAX];

	snprintf(text, sizeof(text), "%llu", (unsigned long long)value);
	publish_text(b, name, text);
}

static void set_state(struct pv_bus *b, enum xenbus_state state)
{
	b->own = state;
	publish(b, "state", state);
}

/* A line for the log, and where the toolstack and the operator find it in xenstore. */
static void complain(struct pv_bus *b, const char *text)
{
	b->ops->say(b->ctx, text);
	publish_text(b, "error", text);
}

/* ---- what we offer, and what was agreed on ---- */

static void offer(struct pv_bus *b)
{
	bool discard = b->opened.can_discard && !b->no_discard && !b->open.read_only;

	publish(b, "feature-flush-cache", 1);
	publish(b, "feature-barrier", 1);
	publish(b, "feature-persistent", 1);
	publish(b, "feature-max-indirect-segments", PV_SEGMENTS_MAX);
	publish(b, "max-ring-page-order", PV_RING_ORDER_MAX);
	publish(b, "max-ring-pages", 1u << PV_RING_ORDER_MAX);
	publish(b, "multi-queue-max-queues", PV_QUEUES_MAX);
	publish(b, "feature-discard", discard);
	if (discard) {
		publish(b, "discard-granularity", b->opened.granularity);
		publish(b, "discard-alignment", 0);
		publish(b, "discard-secure", 0);
	}
	set_state(b, XenbusStateInitWait);
}

static void publish_size(struct pv_bus *b)
{
	uint32_t sector = 1u << b->connection.sector_shift;
	uint32_t physical = b->opened.block_size;

	if (physical < sector || b->opened.size % physical)
		physical = sector;
	publish(b, "sector-size", sector);
	publish(b, "physical-sector-size", physical);
	publish(b, "sectors", b->opened.size >> b->connection.sector_shift);
	publish(b, "info", (b->open.read_only ? 4u : 0u) | (b->cdrom ? 1u : 0u));
}

/* One queue's ring and port, below folder. */
static bool agree_on_queue(const struct pv_bus *b, const char *folder, bool one_page,
			   struct pv_queue_at *at, uint32_t order)
{
	uint64_t port = number(b, folder, "event-channel", UINT64_MAX);

	if (port > UINT32_MAX)
		return false;
	at->port = (uint32_t)port;
	for (unsigned i = 0; i < 1u << order; i++) {
		char name[NUMBER_MAX];
		uint64_t ref;

		snprintf(name, sizeof(name), "ring-ref%u", i);
		ref = number(b, folder, one_page ? "ring-ref" : name, UINT64_MAX);
		if (ref > UINT32_MAX)
			return false;
		at->ref[i] = (uint32_t)ref;
	}
	return true;
}

static bool agree_on_protocol(const struct pv_bus *b, struct pv_connection *c)
{
	char protocol[32];

	node_copy(b, b->frontend, "protocol", protocol, sizeof(protocol));
	c->abi = !strcmp(protocol, XEN_IO_PROTO_ABI_X86_32) ? PV_ABI_32 : PV_ABI_64;
	return c->abi == PV_ABI_32 || !protocol[0] || !strcmp(protocol, XEN_IO_PROTO_ABI_X86_64);
}

/* 1 << order pages: the number is said in either of two ways. */
static bool agree_on_pages(const struct pv_bus *b, struct pv_connection *c, bool *one_page)
{
	uint64_t order = number(b, b->frontend, "ring-page-order", UINT64_MAX - 1);
	uint64_t pages = number(b, b->frontend, "num-ring-pages", 1);

	*one_page = order == UINT64_MAX - 1 && pages == 1;
	if (order == UINT64_MAX - 1)
		for (order = 0; order < 63 && 1ull << order < pages; order++)
			;
	c->order = (uint32_t)order;
	return order <= PV_RING_ORDER_MAX;
}

/* Everything that the front end says; what is wrong with it, or NULL. */
static const char *agree(const struct pv_bus *b, struct pv_connection *c)
{
	uint64_t queues = number(b, b->frontend, "multi-queue-num-queues", 1);
	bool one_page, named;

	if (!agree_on_protocol(b, c))
		return "its protocol is not known";
	if (!agree_on_pages(b, c, &one_page))
		return "its rings have more pages than were offered";
	if (!queues || queues > PV_QUEUES_MAX)
		return "it has more queues than were offered";
	c->nr_queues = (uint32_t)queues;
	c->persistent = number(b, b->frontend, "feature-persistent", 0) == 1;
	c->sector_shift = number(b, b->frontend, "feature-large-sector-size", 0) == 1 &&
					  b->opened.block_size == PV_PAGE &&
					  !(b->opened.size % PV_PAGE)
				  ? 12
				  : 9;
	c->read_only = b->open.read_only;
	c->discards = b->opened.can_discard && !b->no_discard;
	named = queues > 1;
	for (unsigned i = 0; i < queues; i++) {
		char folder[PV_PATH + NUMBER_MAX];
		int n = named ? snprintf(folder, sizeof(folder), "%s/queue-%u", b->frontend, i)
			      : snprintf(folder, sizeof(folder), "%s", b->frontend);

		if (n >= (int)sizeof(folder) ||
		    !agree_on_queue(b, folder, one_page, &c->queue[i], c->order))
			return "it does not say where its ring is";
	}
	return NULL;
}

static void begin_to_connect(struct pv_bus *b)
{
	struct pv_connection c = {.generation = b->connection.generation};
	const char *wrong = agree(b, &c);

	if (!b->attached)
		c.generation = ++b->generation;
	if (wrong) {
		pv_bus_broken(b, wrong);
		return;
	}
	b->connection = c;
	b->process = CONNECTING;
	b->ops->connect(b->ctx, &b->connection);
}

/* ---- what to do next ---- */

static bool is_served(enum xenbus_state front)
{
	return front == XenbusStateInitialised || front == XenbusStateConnected ||
	       front == XenbusStateClosing;
}

static void stop(struct pv_bus *b)
{
	b->ops->stop(b->ctx);
	b->process = NONE;
}

/* Nobody is connected, nor about to be. */
static void step_apart(struct pv_bus *b, enum xenbus_state front, bool there, bool online)
{
	bool begun = b->own != XenbusStateInitialising && b->own != XenbusStateClosed;
	bool left = !is_served(front) && (b->unplug || (begun && front != XenbusStateInitialising));

	if (b->ending || b->broken || !there || left) {
		if (b->own != XenbusStateClosed && there)
			set_state(b, XenbusStateClosed);
		b->own = XenbusStateClosed;
		b->attached = false;
		if (b->process != NONE && (b->ending || !there || !online))
			stop(b);
		return;
	}
	if (b->process != OPEN)
		return;
	if (b->own == XenbusStateInitialising ||
	    (b->own == XenbusStateClosed && front == XenbusStateInitialising && online))
		offer(b);
	if (is_served(front) &&
	    (b->attached || (b->own == XenbusStateInitWait && front != XenbusStateClosing)))
		begin_to_connect(b);
}

static void look_for_resize(struct pv_bus *b)
{
	uint64_t size;

	if (b->resizing || (b->process != CONNECTED && b->process != OPEN))
		return;
	size = number(b, b->backend, "resize", 0);
	if (!size)
		return;
	b->resizing = true;
	b->ops->resize(b->ctx, size);
}

void pv_bus_changed(struct pv_bus *b)
{
	enum xenbus_state front = (enum xenbus_state)number(b, b->frontend, "state", 0);
	uint64_t own = number(b, b->backend, "state", 0);
	bool there = own != XenbusStateUnknown;
	bool online = number(b, b->backend, "online", 0) == 1;

	if (own == XenbusStateClosing) {
		b->unplug = b->unplug || !online;
		if (b->own != XenbusStateClosed)
			b->own = XenbusStateClosing;
	}
	if (b->process == CONNECTING || b->process == DISCONNECTING)
		return;
	if (b->process == CONNECTED) {
		if (!is_served(front) || b->ending || b->broken || !there) {
			b->process = DISCONNECTING;
			b->ops->disconnect(b->ctx);
			return;
		}
		if (front == XenbusStateClosing && b->own != XenbusStateClosing)
			set_state(b, XenbusStateClosing);
	} else {
		step_apart(b, front, there, online);
	}
	look_for_resize(b);
}

/* ---- what the process says ---- */

void pv_bus_opened(struct pv_bus *b, const struct pv_opened *o)
{
	b->opened = *o;
	b->process = OPEN;
	pv_bus_changed(b);
}

void pv_bus_open_failed(struct pv_bus *b, const char *why)
{
	b->process = NONE;
	b->failed = b->broken = true;
	complain(b, why);
	pv_bus_changed(b);
}

void pv_bus_connected(struct pv_bus *b)
{
	b->process = CONNECTED;
	b->attached = true;
	publish_size(b);
	if (b->own == XenbusStateInitWait)
		set_state(b, XenbusStateConnected);
	pv_bus_changed(b);
}

void pv_bus_connect_failed(struct pv_bus *b, const char *why)
{
	b->process = OPEN;
	pv_bus_broken(b, why);
}

void pv_bus_disconnected(struct pv_bus *b)
{
	b->process = OPEN;
	b->attached = false;
	pv_bus_changed(b);
}

void pv_bus_broken(struct pv_bus *b, const char *why)
{
	char text[PV_PATH];

	snprintf(text, sizeof(text), "the guest's part of the disk is wrong: %s; it is closed",
		 why);
	b->broken = true;
	complain(b, text);
	pv_bus_changed(b);
}

static void resize_over(struct pv_bus *b)
{
	char path[PV_PATH + 16];

	b->resizing = false;
	snprintf(path, sizeof(path), "%s/resize", b->backend);
	b->ops->remove(b->ctx, path);
}

void pv_bus_resized(struct pv_bus *b, uint64_t size)
{
	b->opened.size = size;
	resize_over(b);
	if (b->process != CONNECTED || b->own != XenbusStateConnected)
		return;
	publish_size(b);
	set_state(b, XenbusStateConnected);
}

void pv_bus_resize_failed(struct pv_bus *b, const char *why)
{
	resize_over(b);
	complain(b, why);
}

void pv_bus_died(struct pv_bus *b)
{
	if (b->process == DISCONNECTING)
		b->attached = false;
	b->process = OPENING;
	b->resizing = false;
	pv_bus_changed(b);
	if (b->process == OPENING)
		b->ops->open(b->ctx, &b->open);
}

void pv_bus_end(struct pv_bus *b)
{
	b->ending = true;
	pv_bus_changed(b);
}

/* ---- beginning ---- */

/* "aio:/path" and "qcow2:/path", as libxl writes them. */
static const char *parse_params(struct pv_bus *b, const char *params)
{
	const char *colon = strchr(params, ':');
	size_t n = colon ? (size_t)(colon - params) : 0;

	if (n == 5 && !strncmp(params, "qcow2", n))
		snprintf(b->open.format, sizeof(b->open.format), "qcow2");
	else if (n == 3 && (!strncmp(params, "aio", n) || !strncmp(params, "raw", n)))
		snprintf(b->open.format, sizeof(b->open.format), "raw");
	else
		return "its format is not one that is served; raw and qcow2 are";
	if (!colon[1])
		return "it has no target";
	if (strlen(colon + 1) >= sizeof(b->open.path))
		return "the path of its target is too long";
	snprintf(b->open.path, sizeof(b->open.path), "%s", colon + 1);
	return NULL;
}

void pv_bus_start(struct pv_bus *b, uint64_t resumable)
{
	char mode[8], type[16], *params = node(b, b->backend, "params");
	const char *wrong = params ? parse_params(b, params) : "it has no target";

	free(params);
	node_copy(b, b->backend, "frontend", b->frontend, sizeof(b->frontend));
	node_copy(b, b->backend, "mode", mode, sizeof(mode));
	node_copy(b, b->backend, "device-type", type, sizeof(type));
	node_copy(b, b->backend, "dev", b->name, sizeof(b->name));
	b->open.read_only = strcmp(mode, "w") != 0;
	b->cdrom = !strcmp(type, "cdrom");
	b->no_discard = number(b, b->backend, "discard-enable", 1) == 0;
	b->own = XenbusStateInitialising;
	/* Where a process before us was: a guest that is connected goes on; without its journal it cannot. */
	if (number(b, b->backend, "state", 0) == XenbusStateConnected) {
		b->own = XenbusStateConnected;
		b->attached = true;
		b->connection.generation = resumable;
		if (!resumable)
			wrong = "it was connected before, and what was under way then is not known";
	}
	if (wrong) {
		pv_bus_open_failed(b, wrong);
		return;
	}
	b->process = OPENING;
	b->ops->open(b->ctx, &b->open);
}

int pv_bus_new(const char *backend, uint64_t generation, const struct pv_bus_ops *ops, void *ctx,
	       struct pv_bus **out)
{
	struct pv_bus *b = calloc(1, sizeof(*b));

	if (!b)
		return -ENOMEM;
	b->ops = ops;
	b->ctx = ctx;
	b->generation = generation;
	snprintf(b->backend, sizeof(b->backend), "%s", backend);
	*out = b;
	return 0;
}

void pv_bus_free(struct pv_bus *b)
{
	free(b);
}

bool pv_bus_done(const struct pv_bus *b)
{
	return b->process == NONE;
}

bool pv_bus_is_open(const struct pv_bus *b)
{
	return b->process >= OPEN;
}

bool pv_bus_has_failed(const struct pv_bus *b)
{
	return b->failed;
}

const char *pv_bus_frontend(const struct pv_bus *b)
{
	return b->frontend;
}

const char *pv_bus_backend(const struct pv_bus *b)
{
	return b->backend;
}

const char *pv_bus_name(const struct pv_bus *b)
{
	return b->name;
}

const struct pv_open *pv_bus_target(const struct pv_bus *b)
{
	return &b->open;
}
