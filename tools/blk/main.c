// SPDX-License-Identifier: MIT
/*
 * pagurus-blk: libxl starts it in QEMU's place ("device_model_override") with QEMU's arguments. What concerns disks is used, what asks for something
 * that only QEMU has is refused, the rest is left alone. With --serve it is one disk's process, with --relay one of a disk's connections with TLS.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/blk/keeper.h"
#include "tools/blk/relay.h"
#include "tools/blk/serve.h"

#define DOMID_MAX 0x7fefu
#define UID_MAX	  0x7fffffffu

static void usage(void)
{
	fputs("Usage: pagurus-blk -xen-domid N [options of libxl's device model]...\n"
	      "Serves the disks of a Xen guest with backendtype=qdisk. libxl starts it: in the guest's configuration, say\n"
	      "  device_model_override = \"/usr/lib/pagurus/pagurus-blk\"\n"
	      "See pagurus-blk(8).\n",
	      stderr);
}

/* The value of ",name=" in a list of options; NULL: it is not there, or no room. */
static char *option(const char *list, const char *name, char *out, size_t size)
{
	size_t length = strlen(name);

	for (const char *at = list; at; at = strchr(at, ',')) {
		at += *at == ',';
		if (!strncmp(at, name, length) && at[length] == '=') {
			size_t n = strcspn(at + length + 1, ",");

			if (n >= size)
				return NULL;
			memcpy(out, at + length + 1, n);
			out[n] = '\0';
			return out;
		}
	}
	return NULL;
}

static int parse_number(const char *text, unsigned long max, unsigned long *out)
{
	char *end;

	*out = strtoul(text, &end, 10);
	return text[0] < '0' || text[0] > '9' || *end || *out > max ? -1 : 0;
}

/* A framebuffer, a channel and 9pfs need QEMU. */
static int refuse(const char *what)
{
	fprintf(stderr,
		"pagurus-blk: this guest wants %s, which only QEMU has; take device_model_override out of its configuration, or that\n",
		what);
	return 1;
}

static int keep(int argc, char **argv)
{
	static char paths[KEEPER_SOCKETS_MAX][128];
	struct keeper_options o = {.domid = 0};
	unsigned nr_paths = 0;
	unsigned long domid = 0;

	for (int i = 1; i + 1 < argc; i++) {
		const char *name = argv[i], *value = argv[i + 1];

		if (!strcmp(name, "-xen-domid")) {
			if (parse_number(value, DOMID_MAX, &domid)) {
				usage();
				return 2;
			}
		} else if (!strcmp(name, "-chardev")) {
			if (!strstr(value, "id=libxl-cmd") && !strstr(value, "id=libxenstat-cmd"))
				return refuse("a channel");
			if (nr_paths < KEEPER_SOCKETS_MAX &&
			    option(value, "path", paths[nr_paths], sizeof(paths[0]))) {
				o.sockets[nr_paths] = paths[nr_paths];
				nr_paths++;
			}
		} else if (!strcmp(name, "-vnc") && strcmp(value, "none") != 0) {
			return refuse("a framebuffer");
		} else if (!strcmp(name, "-fsdev")) {
			return refuse("a shared folder");
		} else {
			continue;
		}
		i++;
	}
	if (!domid) {
		usage();
		return 2;
	}
	o.domid = (uint32_t)domid;
	return keep_disks(&o);
}

int main(int argc, char **argv)
{
	unsigned long domid, uid;

	if (argc == 5 && !strcmp(argv[1], "--serve") && !parse_number(argv[2], DOMID_MAX, &domid) &&
	    !parse_number(argv[3], UID_MAX, &uid) && uid)
		return serve_disk((uint32_t)domid, (uid_t)uid);
	if (argc == 4 && !strcmp(argv[1], "--relay") && !parse_number(argv[2], UID_MAX, &uid) &&
	    uid)
		return relay_disk((uid_t)uid, argv[3]);
	return keep(argc, argv);
}
