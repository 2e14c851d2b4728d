// SPDX-License-Identifier: MIT
#include "storage/block_nbd_tls.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "storage/nbd_address.h"

static const char *const names[] = {"ca-cert.pem", "client-cert.pem", "client-key.pem"};

static int append_file(int out, int folder, const char *name)
{
	int in = openat(folder, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW), ret = 0;
	char data[4096];
	ssize_t n;

	if (in < 0)
		return -errno;
	while (!ret && (n = read(in, data, sizeof(data))) > 0)
		ret = write(out, data, (size_t)n) == n ? 0 : -EIO;
	close(in);
	return ret;
}

static bool is_certificate(const char *name)
{
	size_t n = strlen(name);

	return name[0] != '.' && n > 4 && !strcmp(name + n - 4, ".pem");
}

/* All trusted certificates, one behind the other. */
static int join_trusted(const char *identity, const char *to)
{
	char path[PATH_MAX];
	struct dirent *entry;
	int out, ret = -ENOENT;
	DIR *list;

	snprintf(path, sizeof(path), "%s/trusted", identity);
	list = opendir(path);
	if (!list)
		return -errno;
	out = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (out < 0)
		ret = -errno;
	while (out >= 0 && (entry = readdir(list))) {
		if (!is_certificate(entry->d_name))
			continue;
		ret = append_file(out, dirfd(list), entry->d_name);
		if (ret)
			break;
	}
	closedir(list);
	if (out >= 0)
		close(out);
	return ret;
}

static int link_own(const char *identity, const char *name, const struct nbd_tls_folder *f,
		    const char *as)
{
	char from[PATH_MAX], to[PATH_MAX];
	char *whole;
	int ret;

	snprintf(from, sizeof(from), "%s/%s", identity, name);
	snprintf(to, sizeof(to), "%s/%s", f->path, as);
	whole = realpath(from, NULL);
	if (!whole)
		return -errno;
	ret = symlink(whole, to) ? -errno : 0;
	free(whole);
	return ret;
}

int nbd_tls_folder_make(struct nbd_tls_folder *f, const char *uri, const char *identity,
			struct pgr_error *err)
{
	char ca[PATH_MAX];
	int ret;

	f->path[0] = '\0';
	if (!identity || !nbd_address_takes_identity(uri))
		return 0;
	snprintf(f->path, sizeof(f->path), "/tmp/pagurus-nbd-XXXXXX");
	if (!mkdtemp(f->path)) {
		f->path[0] = '\0';
		return pgr_fail_errno(err, -errno, "/tmp: no folder for certificates can be made");
	}
	snprintf(ca, sizeof(ca), "%s/%s", f->path, names[0]);
	ret = link_own(identity, "cert.pem", f, names[1]);
	if (!ret)
		ret = link_own(identity, "key.pem", f, names[2]);
	if (ret == -ENOENT)
		pgr_fail(err, ret,
			 "%s: this host has no identity yet; run `pagurus host init` on this host",
			 identity);
	else if (!ret && (ret = join_trusted(identity, ca)) == -ENOENT)
		pgr_fail(
			err, ret,
			"%s/trusted: this host trusts no other yet; run `pagurus host trust` for the server's host on this host",
			identity);
	if (ret && err && !err->code)
		pgr_fail_errno(err, ret, "%s: its certificates cannot be used", identity);
	if (ret)
		nbd_tls_folder_remove(f);
	return ret;
}

void nbd_tls_folder_remove(struct nbd_tls_folder *f)
{
	char path[PATH_MAX];

	if (!f->path[0])
		return;
	for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		snprintf(path, sizeof(path), "%s/%s", f->path, names[i]);
		unlink(path);
	}
	rmdir(f->path);
	f->path[0] = '\0';
}
