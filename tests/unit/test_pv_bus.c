// SPDX-License-Identifier: MIT
/* The back end's states: what front ends, toolstacks and dying processes may do to a disk, with a xenstore in this process. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "storage/pv_bus.h"
#include "tests/unit/unit.h"

#define NODES_MAX 64u
#define BACK	  "/local/domain/0/backend/qdisk/3/51712"
#define FRONT	  "/local/domain/3/device/vbd/51712"

struct rig {
	struct {
		char path[PV_PATH], value[128];
	} node[NODES_MAX];
	struct pv_bus *b;
	unsigned opens, connects, disconnects, stops, says;
	uint64_t resize;
	struct pv_open open;
	struct pv_connection connection;
};

static unsigned find(const struct rig *r, const char *path)
{
	unsigned i = 0;

	while (i < NODES_MAX && strcmp(r->node[i].path, path) != 0)
		i++;
	return i;
}

static char *fake_read(void *ctx, const char *path)
{
	struct rig *r = ctx;
	unsigned i = find(r, path);

	return i < NODES_MAX ? strdup(r->node[i].value) : NULL;
}

static void fake_write(void *ctx, const char *path, const char *value)
{
	struct rig *r = ctx;
	unsigned i = find(r, path);

	if (i == NODES_MAX)
		i = find(r, "");
	CHECK(i < NODES_MAX);
	snprintf(r->node[i].path, PV_PATH, "%s", path);
	snprintf(r->node[i].value, sizeof(r->node[i].value), "%s", value);
}

static void fake_remove(void *ctx, const char *path)
{
	struct rig *r = ctx;
	unsigned i = find(r, path);

	if (i < NODES_MAX)
		r->node[i].path[0] = '\0';
}

static void fake_open(void *ctx, const struct pv_open *o)
{
	struct rig *r = ctx;

	r->opens++;
	r->open = *o;
}

static void fake_connect(void *ctx, const struct pv_connection *c)
{
	struct rig *r = ctx;

	r->connects++;
	r->connection = *c;
}

static void fake_disconnect(void *ctx)
{
	((struct rig *)ctx)->disconnects++;
}

static void fake_resize(void *ctx, uint64_t size)
{
	((struct rig *)ctx)->resize = size;
}

static void fake_stop(void *ctx)
{
	((struct rig *)ctx)->stops++;
}

static void fake_say(void *ctx, const char *text)
{
	CHECK(text[0] != '\0');
	((struct rig *)ctx)->says++;
}

static const struct pv_bus_ops ops = {
	.read = fake_read,
	.write = fake_write,
	.remove = fake_remove,
	.open = fake_open,
	.connect = fake_connect,
	.disconnect = fake_disconnect,
	.resize = fake_resize,
	.stop = fake_stop,
	.say = fake_say,
};

static void set(struct rig *r, const char *folder, const char *name, const char *value)
{
	char path[PV_PATH];

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	if (value)
		fake_write(r, path, value);
	else
		fake_remove(r, path);
}

static void back(struct rig *r, const char *name, const char *value)
{
	set(r, BACK, name, value);
}

static void front(struct rig *r, const char *name, const char *value)
{
	set(r, FRONT, name, value);
}

static const char *value(struct rig *r, const char *folder, const char *name)
{
	char path[PV_PATH];
	unsigned i;

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	i = find(r, path);
	return i < NODES_MAX ? r->node[i].value : "";
}

#define CHECK_STATE(r, state) CHECK_STR(value(r, BACK, "state"), state)

static void goes_to(struct rig *r, const char *state)
{
	front(r, "state", state);
	pv_bus_changed(r->b);
}

static const struct pv_opened opened = {
	.size = 1 << 20, .block_size = 4096, .granularity = 65536, .can_discard = 1};

/* As libxl leaves it. */
static void set_up(struct rig *r)
{
	memset(r, 0, sizeof(*r));
	back(r, "frontend", FRONT);
	back(r, "params", "qcow2:/disks/a:b.img");
	back(r, "online", "1");
	back(r, "state", "1");
	back(r, "dev", "xvda");
	back(r, "mode", "w");
	back(r, "device-type", "disk");
	back(r, "discard-enable", "1");
	front(r, "state", "1");
	CHECK_EQ(pv_bus_new(BACK, 100, &ops, r, &r->b), 0);
}

/* What Linux's front end writes. */
static void agree(struct rig *r)
{
	front(r, "protocol", "x86_64-abi");
	front(r, "ring-ref", "8");
	front(r, "event-channel", "9");
	front(r, "feature-persistent", "1");
}

static void bring_up(struct rig *r)
{
	set_up(r);
	pv_bus_start(r->b, 0);
	pv_bus_opened(r->b, &opened);
	agree(r);
	goes_to(r, "3");
	pv_bus_connected(r->b);
	goes_to(r, "4");
	CHECK_STATE(r, "4");
}

static void tear_down(struct rig *r)
{
	pv_bus_free(r->b);
}

static void up_and_down(void)
{
	struct rig r;

	set_up(&r);
	pv_bus_start(r.b, 0);
	CHECK_EQ(r.opens, 1);
	CHECK_STR(r.open.path, "/disks/a:b.img");
	CHECK_STR(r.open.format, "qcow2");
	CHECK_EQ(r.open.read_only, 0);
	CHECK_STR(pv_bus_name(r.b), "xvda");
	CHECK_STATE(&r, "1");
	pv_bus_opened(r.b, &opened);
	CHECK_STATE(&r, "2");
	CHECK_STR(value(&r, BACK, "feature-flush-cache"), "1");
	CHECK_STR(value(&r, BACK, "feature-discard"), "1");
	CHECK_STR(value(&r, BACK, "discard-secure"), "0");
	CHECK_STR(value(&r, BACK, "discard-granularity"), "65536");
	CHECK_STR(value(&r, BACK, "max-ring-page-order"), "4");
	pv_bus_changed(r.b);
	CHECK_EQ(r.connects, 0);

	agree(&r);
	goes_to(&r, "3");
	CHECK_EQ(r.connects, 1);
	CHECK_EQ(r.connection.generation, 101);
	CHECK_EQ(r.connection.nr_queues, 1);
	CHECK_EQ(r.connection.order, 0);
	CHECK_EQ(r.connection.queue[0].port, 9);
	CHECK_EQ(r.connection.queue[0].ref[0], 8);
	CHECK_EQ(r.connection.persistent, 1);
	CHECK_EQ(r.connection.abi, PV_ABI_64);
	CHECK_EQ(r.connection.sector_shift, 9);
	CHECK_STATE(&r, "2");
	pv_bus_connected(r.b);
	CHECK_STATE(&r, "4");
	CHECK_STR(value(&r, BACK, "sectors"), "2048");
	CHECK_STR(value(&r, BACK, "sector-size"), "512");
	CHECK_STR(value(&r, BACK, "physical-sector-size"), "4096");
	CHECK_STR(value(&r, BACK, "info"), "0");
	goes_to(&r, "4");

	/* A guest that shuts down: Closing is answered with Closing, and it is served until it is Closed. */
	goes_to(&r, "5");
	CHECK_STATE(&r, "5");
	CHECK_EQ(r.disconnects, 0);
	goes_to(&r, "6");
	CHECK_EQ(r.disconnects, 1);
	CHECK_STATE(&r, "5");
	pv_bus_disconnected(r.b);
	CHECK_STATE(&r, "6");
	CHECK_EQ(r.stops, 0);
	/* It comes back, with another kernel. */
	goes_to(&r, "1");
	CHECK_STATE(&r, "2");
	goes_to(&r, "3");
	CHECK_EQ(r.connects, 2);
	CHECK_EQ(r.connection.generation, 102);
	pv_bus_connected(r.b);
	CHECK_STATE(&r, "4");
	pv_bus_end(r.b);
	CHECK_EQ(r.disconnects, 2);
	pv_bus_disconnected(r.b);
	CHECK_STATE(&r, "6");
	CHECK_EQ(r.stops, 1);
	CHECK(pv_bus_done(r.b));
	CHECK_EQ(r.says, 0);
	tear_down(&r);
}

/* The toolstack unplugs it: the front end lets go when it wants to. */
static void unplug(void)
{
	struct rig r;

	bring_up(&r);
	back(&r, "online", "0");
	back(&r, "state", "5");
	pv_bus_changed(r.b);
	CHECK_EQ(r.disconnects, 0);
	/* Even when its process dies meanwhile. */
	pv_bus_died(r.b);
	CHECK_EQ(r.opens, 2);
	pv_bus_opened(r.b, &opened);
	CHECK_EQ(r.connects, 2);
	CHECK_EQ(r.connection.generation, 101);
	pv_bus_connected(r.b);
	CHECK_STATE(&r, "5");
	goes_to(&r, "6");
	CHECK_EQ(r.disconnects, 1);
	pv_bus_disconnected(r.b);
	CHECK_STATE(&r, "6");
	CHECK_EQ(r.stops, 1);
	tear_down(&r);

	/* One that no front end has connected to. */
	set_up(&r);
	pv_bus_start(r.b, 0);
	pv_bus_opened(r.b, &opened);
	back(&r, "online", "0");
	back(&r, "state", "5");
	pv_bus_changed(r.b);
	CHECK_STATE(&r, "6");
	CHECK_EQ(r.stops, 1);
	tear_down(&r);
}

/* The nodes vanish: the guest was destroyed. */
static void destroyed(void)
{
	struct rig r;

	bring_up(&r);
	memset(r.node, 0, sizeof(r.node));
	pv_bus_changed(r.b);
	CHECK_EQ(r.disconnects, 1);
	pv_bus_disconnected(r.b);
	CHECK_EQ(r.stops, 1);
	CHECK_EQ(find(&r, BACK "/state"), NODES_MAX);
	tear_down(&r);
}

static void deaths(void)
{
	struct rig r;

	/* While it opens, while it connects, while it serves, while it disconnects. */
	set_up(&r);
	pv_bus_start(r.b, 0);
	pv_bus_died(r.b);
	CHECK_EQ(r.opens, 2);
	pv_bus_opened(r.b, &opened);
	agree(&r);
	goes_to(&r, "3");
	pv_bus_died(r.b);
	CHECK_EQ(r.opens, 3);
	CHECK_STATE(&r, "2");
	pv_bus_opened(r.b, &opened);
	CHECK_EQ(r.connects, 2);
	pv_bus_connected(r.b);
	goes_to(&r, "4");
	pv_bus_died(r.b);
	CHECK_STATE(&r, "4");
	pv_bus_opened(r.b, &opened);
	CHECK_EQ(r.connects, 3);
	/* The same connection, whatever the front end says meanwhile. */
	CHECK_EQ(r.connection.generation, 102);
	pv_bus_connected(r.b);
	CHECK_STATE(&r, "4");
	goes_to(&r, "6");
	CHECK_EQ(r.disconnects, 1);
	pv_bus_died(r.b);
	CHECK_STATE(&r, "6");
	pv_bus_opened(r.b, &opened);
	CHECK_EQ(r.connects, 3);
	goes_to(&r, "1");
	goes_to(&r, "3");
	CHECK_EQ(r.connection.generation, 103);
	tear_down(&r);
}

/* Another keeper takes over where the journal allows it. */
static void another_keeper(void)
{
	struct rig r;

	set_up(&r);
	agree(&r);
	back(&r, "state", "4");
	front(&r, "state", "4");
	pv_bus_start(r.b, 77);
	pv_bus_opened(r.b, &opened);
	CHECK_EQ(r.connects, 1);
	CHECK_EQ(r.connection.generation, 77);
	pv_bus_connected(r.b);
	CHECK_STATE(&r, "4");
	tear_down(&r);

	set_up(&r);
	agree(&r);
	back(&r, "state", "4");
	front(&r, "state", "4");
	pv_bus_start(r.b, 0);
	CHECK(pv_bus_has_failed(r.b));
	CHECK_EQ(r.opens, 0);
	CHECK_STATE(&r, "6");
	tear_down(&r);
}

static void sizes(void)
{
	const struct pv_opened odd = {.size = (1 << 20) + 512, .block_size = 4096};
	struct rig r;

	bring_up(&r);
	back(&r, "resize", "2097152");
	pv_bus_changed(r.b);
	CHECK_EQ(r.resize, 2097152);
	r.resize = 0;
	pv_bus_changed(r.b);
	CHECK_EQ(r.resize, 0);
	back(&r, "state", "-");
	pv_bus_resized(r.b, 2097152);
	CHECK_STR(value(&r, BACK, "sectors"), "4096");
	CHECK_STATE(&r, "4"); /* written again: front ends look at it then */
	CHECK_STR(value(&r, BACK, "resize"), "");
	back(&r, "resize", "1");
	pv_bus_changed(r.b);
	pv_bus_resize_failed(r.b, "no");
	CHECK_STR(value(&r, BACK, "error"), "no");
	CHECK_STR(value(&r, BACK, "sectors"), "4096");
	tear_down(&r);

	/* A size that has no whole blocks is told in sectors. */
	set_up(&r);
	back(&r, "mode", "r");
	back(&r, "device-type", "cdrom");
	pv_bus_start(r.b, 0);
	CHECK_EQ(r.open.read_only, 1);
	pv_bus_opened(r.b, &odd);
	CHECK_STR(value(&r, BACK, "feature-discard"), "0");
	agree(&r);
	front(&r, "feature-large-sector-size", "1");
	goes_to(&r, "3");
	CHECK_EQ(r.connection.sector_shift, 9);
	CHECK_EQ(r.connection.read_only, 1);
	pv_bus_connected(r.b);
	CHECK_STR(value(&r, BACK, "physical-sector-size"), "512");
	CHECK_STR(value(&r, BACK, "sectors"), "2049");
	CHECK_STR(value(&r, BACK, "info"), "5");
	tear_down(&r);

	/* Large sectors where both can. */
	set_up(&r);
	pv_bus_start(r.b, 0);
	pv_bus_opened(r.b, &opened);
	agree(&r);
	front(&r, "feature-large-sector-size", "1");
	goes_to(&r, "3");
	CHECK_EQ(r.connection.sector_shift, 12);
	pv_bus_connected(r.b);
	CHECK_STR(value(&r, BACK, "sector-size"), "4096");
	CHECK_STR(value(&r, BACK, "sectors"), "256");
	tear_down(&r);
}

static void many_queues(void)
{
	struct rig r;

	set_up(&r);
	pv_bus_start(r.b, 0);
	pv_bus_opened(r.b, &opened);
	front(&r, "protocol", "x86_32-abi");
	front(&r, "multi-queue-num-queues", "2");
	front(&r, "ring-page-order", "1");
	front(&r, "queue-0/event-channel", "5");
	front(&r, "queue-0/ring-ref0", "10");
	front(&r, "queue-0/ring-ref1", "11");
	front(&r, "queue-1/event-channel", "6");
	front(&r, "queue-1/ring-ref0", "12");
	front(&r, "queue-1/ring-ref1", "4294967295");
	goes_to(&r, "4");
	CHECK_EQ(r.connects, 1);
	CHECK_EQ(r.connection.abi, PV_ABI_32);
	CHECK_EQ(r.connection.nr_queues, 2);
	CHECK_EQ(r.connection.order, 1);
	CHECK_EQ(r.connection.persistent, 0);
	CHECK_EQ(r.connection.queue[1].port, 6);
	CHECK_EQ(r.connection.queue[0].ref[1], 11);
	CHECK_EQ(r.connection.queue[1].ref[1], UINT32_MAX);
	tear_down(&r);
}

/* Each of these is the guest's nonsense: the disk is closed with a message, and stays so. */
static void nonsense(void)
{
	static const struct {
		const char *name, *value;
	} bad[] = {
		{"protocol", "arm-abi"},
		{"ring-ref", NULL},
		{"ring-ref", "4294967296"},
		{"ring-ref", "-1"},
		{"ring-ref", "8x"},
		{"event-channel", NULL},
		{"event-channel", "99999999999999999999999"},
		{"ring-page-order", "5"},
		{"ring-page-order", "4294967297"},
		{"ring-page-order", "0"}, /* ring-ref0 is not there */
		{"num-ring-pages", "32"},
		{"multi-queue-num-queues", "0"},
		{"multi-queue-num-queues", "5"},
		{"multi-queue-num-queues", "2"},
		{"multi-queue-num-queues", ""},
	};
	struct rig r;

	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		set_up(&r);
		pv_bus_start(r.b, 0);
		pv_bus_opened(r.b, &opened);
		agree(&r);
		front(&r, bad[i].name, bad[i].value);
		goes_to(&r, "3");
		CHECK_MSG(r.connects == 0 && r.says == 1, "%s = %s was accepted", bad[i].name,
			  bad[i].value);
		CHECK_STATE(&r, "6");
		goes_to(&r, "1");
		goes_to(&r, "3");
		CHECK_EQ(r.connects, 0);
		pv_bus_end(r.b);
		CHECK_EQ(r.stops, 1);
		tear_down(&r);
	}

	bring_up(&r);
	pv_bus_broken(r.b, "the index of its ring jumped");
	CHECK_EQ(r.disconnects, 1);
	CHECK_HAS(value(&r, BACK, "error"), "jumped");
	pv_bus_disconnected(r.b);
	CHECK_STATE(&r, "6");
	goes_to(&r, "1");
	CHECK_STATE(&r, "6");
	tear_down(&r);

	bring_up(&r);
	pv_bus_died(r.b);
	pv_bus_opened(r.b, &opened);
	pv_bus_connect_failed(r.b, "the guest's ring 0 cannot be mapped");
	CHECK_STATE(&r, "6");
	tear_down(&r);
}

static void cannot_be_opened(void)
{
	static const char *const bad[] = {"vhd:/a", "/a", "qcow2:", "empty:", ""};
	struct rig r;

	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		set_up(&r);
		back(&r, "params", bad[i]);
		pv_bus_start(r.b, 0);
		CHECK_EQ(r.opens, 0);
		CHECK(pv_bus_has_failed(r.b) && pv_bus_done(r.b));
		CHECK_STATE(&r, "6");
		tear_down(&r);
	}
	set_up(&r);
	back(&r, "params", "aio:/a");
	pv_bus_start(r.b, 0);
	CHECK_STR(r.open.format, "raw");
	pv_bus_open_failed(r.b, "there is no such file");
	CHECK(pv_bus_has_failed(r.b) && pv_bus_done(r.b));
	CHECK_STR(value(&r, BACK, "error"), "there is no such file");
	CHECK_EQ(r.stops, 0);
	tear_down(&r);
	/* Ended while it waits for a disk that is in use. */
	set_up(&r);
	pv_bus_start(r.b, 0);
	pv_bus_end(r.b);
	CHECK_EQ(r.stops, 1);
	CHECK_STATE(&r, "6");
	tear_down(&r);
}

UNIT_MAIN(TEST(up_and_down), TEST(unplug), TEST(destroyed), TEST(deaths), TEST(another_keeper),
	  TEST(sizes), TEST(many_queues), TEST(nonsense), TEST(cannot_be_opened))
