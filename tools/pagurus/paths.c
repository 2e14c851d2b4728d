/* SPDX-License-Identifier: MIT */
#include "tools/pagurus/paths.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *from_environment(const char *name, const char *otherwise)
{
	const char *value = getenv(name);

	return value && value[0] ? value : otherwise;
}

void paths_init(struct paths *p)
{
	p->config = from_environment("PAGURUS_CONFIG", "/etc/pagurus");
	p->state = from_environment("PAGURUS_STATE", "/var/lib/pagurus");
	p->control = from_environment("PAGURUS_CONTROL", "/run/pagurus/control.sock");
	p->disks = from_environment("PAGURUS_DISKS", "/run/pagurus/disks");
}

int paths_socket(const char *path, struct sockaddr_un *out, struct pgr_error *err)
{
	*out = (struct sockaddr_un){.sun_family = AF_UNIX};
	if (snprintf(out->sun_path, sizeof(out->sun_path), "%s", path) >=
	    (int)sizeof(out->sun_path))
		return pgr_fail(err, -ENAMETOOLONG,
				"%s: longer than the %zu characters that a socket's name may have",
				path, sizeof(out->sun_path) - 1);
	return 0;
}

int paths_make_dir(const char *path, struct pgr_error *err)
{
	char part[PATH_MAX], *slash;
	struct stat st;

	if (snprintf(part, sizeof(part), "%s", path) >= (int)sizeof(part))
		return pgr_fail(err, -ENAMETOOLONG, "%s: the name is too long", path);
	for (slash = strchr(part + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
		*slash = 0;
		if (mkdir(part, 0755) && errno != EEXIST)
			return pgr_fail_errno(err, -errno, "cannot make the folder %s", part);
		*slash = '/';
	}
	if (mkdir(part, 0700) && errno != EEXIST)
		return pgr_fail_errno(err, -errno, "cannot make the folder %s", part);
	if (stat(part, &st))
		return pgr_fail_errno(err, -errno, "cannot look at %s", part);
	if (!S_ISDIR(st.st_mode))
		return pgr_fail(err, -ENOTDIR, "%s is not a folder", part);
	return 0;
}

static int sync_dir(const char *dir, struct pgr_error *err)
{
	int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC), rc = 0;

	if (fd < 0)
		return pgr_fail_errno(err, -errno, "cannot open the folder %s", dir);
	if (fsync(fd))
		rc = pgr_fail_errno(err, -errno, "cannot make %s durable", dir);
	close(fd);
	return rc;
}

int paths_write_json(const char *dir, const char *name, const json_t *value, struct pgr_error *err)
{
	char path[PATH_MAX], partial[PATH_MAX];
	char *text = json_dumps(value, JSON_INDENT(1));
	FILE *file = NULL;
	int fd, rc = 0;

	if (!text)
		return pgr_fail(err, -ENOMEM, "no memory to write %s/%s", dir, name);
	if (snprintf(path, sizeof(path), "%s/%s", dir, name) >= (int)sizeof(path) ||
	    snprintf(partial, sizeof(partial), "%s/.%s.%d", dir, name, (int)getpid()) >=
		    (int)sizeof(partial)) {
		rc = pgr_fail(err, -ENAMETOOLONG, "%s/%s: the name is too long", dir, name);
		goto out;
	}
	unlink(partial); /* of a process that had this number before and died here */
	fd = open(partial, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd >= 0)
		file = fdopen(fd, "w");
	if (!file) {
		rc = pgr_fail_errno(err, -errno, "cannot create %s", partial);
		if (fd >= 0)
			close(fd);
		goto out;
	}
	if (fprintf(file, "%s\n", text) < 0 || fflush(file) || fsync(fd))
		rc = pgr_fail_errno(err, -errno, "cannot write %s", partial);
	if (fclose(file) && !rc)
		rc = pgr_fail_errno(err, -errno, "cannot write %s", partial);
	if (!rc && rename(partial, path))
		rc = pgr_fail_errno(err, -errno, "cannot rename %s to %s", partial, path);
	if (rc)
		unlink(partial);
	else
		rc = sync_dir(dir, err);
out:
	free(text);
	return rc;
}

int paths_remove(const char *dir, const char *name, struct pgr_error *err)
{
	char path[PATH_MAX];

	if (snprintf(path, sizeof(path), "%s/%s", dir, name) >= (int)sizeof(path))
		return pgr_fail(err, -ENAMETOOLONG, "%s/%s: the name is too long", dir, name);
	if (unlink(path))
		return errno == ENOENT ? 0 : pgr_fail_errno(err, -errno, "cannot remove %s", path);
	return sync_dir(dir, err);
}

int paths_read_json(const char *dir, const char *name, json_t **out, struct pgr_error *err)
{
	char path[PATH_MAX];
	json_error_t where;
	FILE *f;

	*out = NULL;
	if (snprintf(path, sizeof(path), "%s/%s", dir, name) >= (int)sizeof(path))
		return pgr_fail(err, -ENAMETOOLONG, "%s/%s: the name is too long", dir, name);
	/* Not json_loadfd, which makes a system call for each byte. */
	f = fopen(path, "re");
	if (!f)
		return pgr_fail_errno(err, -errno, "cannot open %s", path);
	*out = json_loadf(f, 0, &where);
	fclose(f);
	if (!json_is_object(*out)) {
		json_decref(*out);
		*out = NULL;
		return pgr_fail(err, -EBADMSG, "%s, line %d: not what was written there: %s", path,
				where.line, where.text);
	}
	return 0;
}
