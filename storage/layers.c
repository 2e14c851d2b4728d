// SPDX-License-Identifier: MIT
#include "storage/layers.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/file.h"
#include "storage/qcow2_layer.h"

#define END	".qcow2"
#define LEAVING ".leaving"

static bool ends_with(const char *text, const char *end)
{
	size_t length = strlen(text), n = strlen(end);

	return length > n && !strcmp(text + length - n, end);
}

static int no_memory(struct pgr_error *err)
{
	return pgr_fail(err, -ENOMEM, "no memory for the list of layers");
}

/* ---- reading them ---- */

static char *leaving_path(const char *path)
{
	char *out;

	return asprintf(&out, "%s%s", path, LEAVING) < 0 ? NULL : out;
}

int layers_set_leaving(const char *path, bool leaving)
{
	char *mark = leaving_path(path);
	int fd, ret = 0;

	if (!mark)
		return -ENOMEM;
	if (leaving) {
		fd = open(mark, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
		if (fd < 0)
			ret = -errno;
		else
			close(fd);
	} else if (unlink(mark) && errno != ENOENT) {
		ret = -errno;
	}
	free(mark);
	return ret ? ret : file_sync_folder_of(path);
}

int layers_begin_merge(const char *lower, struct pgr_error *err)
{
	int ret = layers_set_leaving(lower, true);

	return ret ? pgr_fail_errno(err, ret, "%s: a mark beside it cannot be made", lower) : 0;
}

int layers_remove(struct loop *l, const char *path, struct pgr_error *err)
{
	struct block *lock;
	int ret = block_open_file(l, path, NULL, &lock, err);

	if (ret)
		return ret;
	if (unlink(path))
		ret = pgr_fail_errno(err, -errno, "%s: cannot be removed", path);
	block_close(lock, NULL);
	return ret;
}

int layers_fail_stopped(const char *disk, struct pgr_error *err)
{
	return pgr_fail(
		err, -ECANCELED,
		"stopped; %s reads as before, and the same command goes on with what is left",
		disk);
}

bool layers_is_leaving(const char *path)
{
	char *mark = leaving_path(path);
	bool is = mark && !access(mark, F_OK);

	free(mark);
	return is;
}

int layers_check_whole(const char *path, struct pgr_error *err)
{
	if (!layers_is_leaving(path))
		return 0;
	return pgr_fail(
		err, -EINVAL,
		"%s: is being merged, so it does not hold any more what it held; finish that first",
		path);
}

static int find_file(const struct layers *s, const struct stat *st)
{
	for (unsigned i = 0; i < s->nr; i++)
		if (s->list[i].dev == st->st_dev && s->list[i].ino == st->st_ino)
			return (int)i;
	return -1;
}

/* The header of an image is written last. */
static bool is_blank(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	uint32_t magic = 0;
	ssize_t n = fd < 0 ? -1 : pread(fd, &magic, sizeof(magic), 0);

	if (fd >= 0)
		close(fd);
	return n >= 0 && !magic;
}

static int add(struct loop *l, struct layers *s, const char *path, bool raw, struct pgr_error *err);

static int add_below(struct loop *l, struct layers *s, int index, const struct qcow2_header *h,
		     struct pgr_error *err)
{
	char *below;
	int ret;

	if (!h->backing[0] || !qcow2_layer_is_file(h->backing))
		return 0;
	below = qcow2_layer_path(s->list[index].path, h->backing);
	if (!below)
		return no_memory(err);
	ret = add(l, s, below, strcmp(h->backing_format, "qcow2") != 0, err);
	free(below);
	if (ret >= 0)
		s->list[index].below = ret;
	/* What is missing is missing: the image cannot be opened, and says why. */
	return ret >= 0 || ret == -ENOENT ? 0 : ret;
}

/* Its index. -ENOENT: no such file. */
static int add(struct loop *l, struct layers *s, const char *path, bool raw, struct pgr_error *err)
{
	struct qcow2_header h = {.size = 0};
	struct layer *y;
	struct stat st;
	int index, ret;

	if (stat(path, &st))
		return pgr_fail_errno(err, errno == ENOENT ? -ENOENT : -errno,
				      "%s: cannot be looked at", path);
	index = find_file(s, &st);
	if (index >= 0)
		return index;
	if (s->nr == LAYERS_MAX)
		return pgr_fail(err, -EFBIG, "%s: its folder has more than %u images", path,
				LAYERS_MAX);
	index = (int)s->nr;
	y = &s->list[index];
	*y = (struct layer){.path = strdup(path),
			    .dev = st.st_dev,
			    .ino = st.st_ino,
			    .raw = raw,
			    .leaving = layers_is_leaving(path),
			    .size = (uint64_t)st.st_size,
			    .used = (uint64_t)st.st_blocks * 512,
			    .changed = st.st_mtime,
			    .below = -1};
	if (!y->path)
		return no_memory(err);
	s->nr++;
	if (raw)
		return index;
	ret = qcow2_layer_header(l, path, &h, err);
	if (ret == -ENOMEM)
		return ret;
	y->unclear = ret;
	y->blank = ret && is_blank(path);
	y->size = h.size;
	if (!ret)
		ret = add_below(l, s, index, &h, err);
	return ret == -ENOMEM || ret == -EFBIG ? ret : index;
}

static int add_folder(struct loop *l, const char *disk, struct layers *s, struct pgr_error *err)
{
	size_t folder = file_folder_length(disk);
	char *name = folder ? strndup(disk, folder) : strdup(".");
	struct dirent *e;
	DIR *d;
	int ret = 0;

	if (!name)
		return no_memory(err);
	d = opendir(name);
	if (!d) {
		ret = pgr_fail_errno(err, -errno, "%s: cannot be read", name);
		free(name);
		return ret;
	}
	while (!ret && (e = readdir(d))) {
		char *path;

		if (!ends_with(e->d_name, END))
			continue;
		if (asprintf(&path, "%.*s%s", (int)folder, disk, e->d_name) < 0) {
			ret = no_memory(err);
			break;
		}
		ret = add(l, s, path, false, err);
		free(path);
		/* Gone meanwhile, or nothing that can be looked at. */
		if (ret != -ENOMEM && ret != -EFBIG)
			ret = 0;
	}
	closedir(d);
	free(name);
	return ret;
}

int layers_load(struct loop *l, const char *disk, struct layers *out, struct pgr_error *err)
{
	int ret;

	*out = (struct layers){.list = calloc(LAYERS_MAX, sizeof(*out->list))};
	if (!out->list)
		return no_memory(err);
	ret = add(l, out, disk, !ends_with(disk, END), err);
	if (ret < 0)
		return ret;
	out->disk = ret;
	return add_folder(l, disk, out, err);
}

void layers_free(struct layers *s)
{
	for (unsigned i = 0; i < s->nr; i++)
		free(s->list[i].path);
	free(s->list);
	*s = (struct layers){.list = NULL};
}

/* ---- who stands on whom ---- */

int layers_child(const struct layers *s, int layer, struct pgr_error *err)
{
	int child = -1;

	for (unsigned i = 0; i < s->nr; i++) {
		if (s->list[i].unclear && !s->list[i].blank)
			return pgr_fail(
				err, -EEXIST,
				"%s: cannot be read, so it cannot be said what it stands on; move it to another folder first (pagurus disk info says what is wrong)",
				s->list[i].path);
		if (s->list[i].below != layer)
			continue;
		if (child >= 0)
			return pgr_fail(
				err, -EEXIST,
				"%s: both %s and %s stand on it, and perhaps more; delete or copy one of them first (pagurus disk list shows the tree)",
				s->list[layer].path, s->list[child].path, s->list[i].path);
		child = (int)i;
	}
	return child;
}

bool layers_stands_on(const struct layers *s, int upper, int lower)
{
	unsigned steps = 0;

	while (upper >= 0 && upper != lower && steps++ < s->nr)
		upper = s->list[upper].below;
	return upper == lower;
}

/* ---- names ---- */

/* The disk's file name without its end. */
static int stem_length(const char *disk)
{
	const char *dot = strrchr(disk + file_folder_length(disk), '.');

	return (int)(dot && dot != disk + file_folder_length(disk) ? (size_t)(dot - disk)
								   : strlen(disk));
}

char *layers_snapshot_path(const char *disk, const char *name)
{
	int stem = stem_length(disk);
	char *out;

	if (strchr(name, '/'))
		return strdup(name);
	if (ends_with(name, disk + stem) && disk[stem])
		return asprintf(&out, "%.*s%s", (int)file_folder_length(disk), disk, name) < 0
			       ? NULL
			       : out;
	return asprintf(&out, "%.*s.%s%s", stem, disk, name, disk + stem) < 0 ? NULL : out;
}

void layers_snapshot_name(const char *disk, const char *path, char *out, size_t size)
{
	const char *name = path + file_folder_length(path), *end = disk + stem_length(disk);
	size_t first = file_folder_length(disk), stem = (size_t)(end - disk) - first;

	if (!strncmp(name, disk + first, stem) && name[stem] == '.' && *end &&
	    strlen(name) > stem + 1 + strlen(end) && ends_with(name, end))
		snprintf(out, size, "%.*s", (int)(strlen(name) - stem - 1 - strlen(end)),
			 name + stem + 1);
	else
		snprintf(out, size, "%s", name);
}

int layers_find(const struct layers *s, const char *disk, const char *name, struct pgr_error *err)
{
	char *path = layers_snapshot_path(disk, name);
	struct stat st;
	int index;

	if (!path)
		return no_memory(err);
	index = stat(path, &st) ? -1 : find_file(s, &st);
	if (index < 0)
		pgr_fail(
			err, -ENOENT,
			"%s: has no snapshot \"%s\" (there is no layer %s); pagurus disk list shows those that it has",
			disk, name, path);
	free(path);
	return index < 0 ? -ENOENT : index;
}
