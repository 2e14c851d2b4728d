// SPDX-License-Identifier: MIT
#include "storage/lvm_name.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

/* LVM-, and 32 letters each for the group and the volume; parts of a volume have something behind that. */
#define UUID_PREFIX "LVM-"
#define UUID_LENGTH (4 + 64)

#define LETTERS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+_.-"

bool lvm_name_is_valid(const char *name)
{
	size_t length = strlen(name);

	return length && length < LVM_NAME && strspn(name, LETTERS) == length && name[0] != '-' &&
	       strcmp(name, ".") != 0 && strcmp(name, "..") != 0;
}

static bool take(char *out, const char *text, size_t length)
{
	if (!length || length >= LVM_NAME)
		return false;
	memcpy(out, text, length);
	out[length] = 0;
	return lvm_name_is_valid(out);
}

bool lvm_name_of_map(const char *map, struct lvm_name *out)
{
	char *parts[] = {out->vg, out->lv};
	unsigned part = 0, n = 0;

	for (const char *c = map; *c; c++) {
		bool dash = *c == '-';

		if (dash && c[1] == '-')
			c++;
		else if (dash) {
			if (part)
				return false;
			parts[part++][n] = 0;
			n = 0;
			continue;
		}
		if (n == LVM_NAME - 1)
			return false;
		parts[part][n++] = *c;
	}
	parts[part][n] = 0;
	return part && lvm_name_is_valid(out->vg) && lvm_name_is_valid(out->lv);
}

/* One line of the kernel's about a device. */
static bool read_about(dev_t device, const char *what, char *out, size_t size)
{
	char path[128];
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/dm/%s", major(device), minor(device),
		 what);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	n = read(fd, out, size - 1);
	close(fd);
	if (n <= 0)
		return false;
	out[n] = 0;
	out[strcspn(out, "\n")] = 0;
	return true;
}

static bool of_device(dev_t device, struct lvm_name *out)
{
	char text[4 * LVM_NAME];

	if (!read_about(device, "uuid", text, sizeof(text)) ||
	    strncmp(text, UUID_PREFIX, strlen(UUID_PREFIX)) != 0 || strlen(text) != UUID_LENGTH)
		return false;
	return read_about(device, "name", text, sizeof(text)) && lvm_name_of_map(text, out);
}

/* VG/LV and nothing else. */
static bool split(const char *text, struct lvm_name *out)
{
	const char *slash = strchr(text, '/');

	return slash && take(out->vg, text, (size_t)(slash - text)) &&
	       take(out->lv, slash + 1, strlen(slash + 1));
}

bool lvm_find(const char *disk, struct lvm_name *out)
{
	struct stat st;

	if (!stat(disk, &st))
		return S_ISBLK(st.st_mode) && of_device(st.st_rdev, out);
	if (!strncmp(disk, "/dev/", 5))
		return split(disk + 5, out) && strcmp(out->vg, "mapper") != 0;
	return split(disk, out) && access(out->vg, F_OK);
}

const char *lvm_device(const char *disk, char out[LVM_DEVICE])
{
	struct lvm_name name;
	struct stat st;

	if (disk[0] == '/' || !lvm_find(disk, &name) || !stat(disk, &st))
		return disk;
	snprintf(out, LVM_DEVICE, "/dev/%s/%s", name.vg, name.lv);
	return !stat(out, &st) && S_ISBLK(st.st_mode) ? out : disk;
}
