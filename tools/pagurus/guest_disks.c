// SPDX-License-Identifier: MIT
#include "tools/pagurus/guest_disks.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <jansson.h>

#include "migrate/stream.h"
#include "storage/disk.h"
#include "tools/pagurus/disk_server.h"
#include "tools/pagurus/message.h"

#define SECTOR 512u

struct listing {
	const char *folder;
	struct guest_disk *disks;
	unsigned nr;
	void (*note)(void *ctx, const char *text);
	void *ctx;
};

/* What the server of a disk says of it. */
struct served {
	uint64_t size;
	unsigned layers;
	char silent[256]; /* another one, that said nothing */
};

static void on_status(void *ctx, const json_t *answer)
{
	struct served *s = ctx;

	if (!strcmp(message_text(answer, "type"), "silent"))
		snprintf(s->silent, sizeof(s->silent), "%s", message_text(answer, "server"));
	if (strcmp(message_text(answer, "type"), "disk") != 0)
		return;
	s->size = message_number(answer, "size");
	s->layers = (unsigned)message_number(answer, "layers");
}

static int ask_server(const struct listing *l, struct guest_disk *d, struct pgr_error *err)
{
	struct served s = {.size = 0};
	char text[sizeof(d->path) + sizeof(d->vdev) + 100];

	disk_servers_each(
		l->folder,
		json_pack("{ss so}", "request", "status", "disk", message_string(d->path)),
		on_status, &s);
	if (!s.size && s.silent[0])
		return pgr_fail(
			err, -ETIMEDOUT,
			"the server of disks behind %s does not answer, and disk %s (%s) may be its: is its process stopped, or does its storage not answer?",
			s.silent, d->vdev, d->path);
	if (!s.size)
		return pgr_fail(
			err, -EOPNOTSUPP,
			"disk %s (%s) is not served by pagurus-blk, so it cannot be taken along: give the guest device_model_override = \"/usr/lib/pagurus/pagurus-blk\" and start it again, or move it without --with-disks",
			d->vdev, d->path);
	if (s.size % SECTOR || s.size > PGR_DISK_BYTES_MAX)
		return pgr_fail(
			err, -EINVAL,
			"disk %s (%s) has %llu bytes; only whole sectors of %u, up to 1 PiB, can be taken along",
			d->vdev, d->path, (unsigned long long)s.size, SECTOR);
	d->size = s.size;
	if (s.layers > 1) {
		/* What the others hold is not known here. */
		d->used = s.size;
		snprintf(
			text, sizeof(text),
			"disk %s (%s) has %u layers here; it will be one file there, without snapshots",
			d->vdev, d->path, s.layers);
		l->note(l->ctx, text);
	}
	return 0;
}

static int add(struct listing *l, const json_t *disk, struct pgr_error *err)
{
	const char *path = message_text(disk, "pdev_path"), *vdev = message_text(disk, "vdev");
	const char *format = message_text(disk, "format");
	struct guest_disk *d = &l->disks[l->nr];
	struct pgr_error wrong = PGR_ERROR_NONE;
	struct stat st;

	if (!path[0] || disk_is_address(path))
		return 0;
	if (l->nr == PGR_DISKS_MAX)
		return pgr_fail(err, -E2BIG, "the guest has more than %u disks to take along",
				PGR_DISKS_MAX);
	if (stream_check_disk_path(path, strlen(path), &wrong) || strlen(vdev) > PGR_DISK_VDEV_MAX)
		return pgr_fail(
			err, -EINVAL,
			"disk %s is %s: only a file that is named from / on, without . and .., can be taken along",
			vdev, path);
	if (stat(path, &st))
		return pgr_fail_errno(err, -errno, "disk %s is %s, which cannot be found", vdev,
				      path);
	if (!S_ISREG(st.st_mode))
		return pgr_fail(
			err, -EOPNOTSUPP,
			"disk %s is %s, which is no file: only disks in files can be taken along; copy it, or give both hosts the same storage",
			vdev, path);
	*d = (struct guest_disk){.used = (uint64_t)st.st_blocks * 512,
				 .format =
					 !strcmp(format, "qcow2") ? PGR_DISK_QCOW2 : PGR_DISK_RAW};
	snprintf(d->vdev, sizeof(d->vdev), "%s", vdev);
	snprintf(d->path, sizeof(d->path), "%s", path);
	l->nr++;
	return ask_server(l, d, err);
}

static json_t *config_of(const struct guest_description *d)
{
	return d->config_format == PGR_CONFIG_LIBXL_JSON && d->config
		       ? json_loads(d->config, 0, NULL)
		       : NULL;
}

int guest_disks_list(const struct guest_description *d, const char *folder, struct guest_disk **out,
		     unsigned *nr, void (*note)(void *ctx, const char *text), void *ctx,
		     struct pgr_error *err)
{
	struct listing l = {.folder = folder,
			    .disks = calloc(PGR_DISKS_MAX, sizeof(struct guest_disk)),
			    .note = note,
			    .ctx = ctx};
	json_t *config = config_of(d), *disk;
	size_t i;
	int rc = l.disks ? 0 : pgr_fail(err, -ENOMEM, "no memory for the list of disks");

	json_array_foreach(json_object_get(config, "disks"), i, disk)
	{
		if (!rc)
			rc = add(&l, disk, err);
	}
	if (!rc && !l.nr)
		rc = pgr_fail(
			err, -ENOENT,
			"the guest %s has no disk in a file of this host: move it without --with-disks",
			d->info.name);
	json_decref(config);
	if (rc) {
		free(l.disks);
		return rc;
	}
	*out = l.disks;
	*nr = l.nr;
	return 0;
}

bool guest_disks_has(const struct guest_description *d, const struct guest_disk *disk)
{
	json_t *config = config_of(d), *o;
	bool has = d->config_format != PGR_CONFIG_LIBXL_JSON;
	size_t i;

	json_array_foreach(json_object_get(config, "disks"), i, o)
	{
		has = has || (!strcmp(message_text(o, "pdev_path"), disk->path) &&
			      !strcmp(message_text(o, "vdev"), disk->vdev));
	}
	json_decref(config);
	return has;
}
