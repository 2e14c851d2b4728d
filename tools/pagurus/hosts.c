/* SPDX-License-Identifier: MIT */
#include "tools/pagurus/hosts.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/pagurus/message.h"
#include "tools/pagurus/paths.h"
#include "tools/pagurus/units.h"

#define HOSTS_FILE "hosts.json"

bool hosts_is_trusted(const char *config, const char *name)
{
	char path[PATH_MAX];

	if (!units_name_ok(name) ||
	    snprintf(path, sizeof(path), "%s/trusted/%s.pem", config, name) >= (int)sizeof(path))
		return false;
	return !access(path, F_OK);
}

static int recorded(const char *config, struct host_address *h, struct pgr_error *err)
{
	struct pgr_error why = PGR_ERROR_NONE;
	json_t *all, *one;
	int rc = paths_read_json(config, HOSTS_FILE, &all, &why);

	if (rc == -ENOENT)
		return 0;
	if (rc)
		return pgr_fail(err, rc, "%s", why.text);
	one = json_object_get(all, h->name);
	if (message_text(one, "address")[0])
		snprintf(h->address, sizeof(h->address), "%s", message_text(one, "address"));
	if (message_number(one, "port") > 0 && message_number(one, "port") < 65536)
		h->port = (uint16_t)message_number(one, "port");
	json_decref(all);
	return 0;
}

int hosts_find(const char *config, const char *text, struct host_address *h, struct pgr_error *err)
{
	uint16_t port = 0;
	int rc;

	memset(h, 0, sizeof(*h));
	if (units_host_port(text, h->name, sizeof(h->name), &port))
		return pgr_fail(
			err, -EINVAL,
			"\"%s\" is no host: write NAME or NAME:PORT, as in `pagurus host list`",
			text);
	if (!hosts_is_trusted(config, h->name))
		return pgr_fail(err, -ENOENT,
				"host %s is not trusted here: run `pagurus host trust %s` first",
				h->name, h->name);
	snprintf(h->address, sizeof(h->address), "%s", h->name);
	h->port = PATHS_PORT;
	rc = recorded(config, h, err);
	if (port)
		h->port = port;
	return rc;
}

int hosts_record(const char *config, const struct host_address *h, struct pgr_error *err)
{
	struct pgr_error why = PGR_ERROR_NONE;
	json_t *all;
	int rc = paths_read_json(config, HOSTS_FILE, &all, &why);

	if (rc && rc != -ENOENT)
		return pgr_fail(err, rc, "%s", why.text);
	if (rc)
		all = json_object();
	json_object_set_new(all, h->name,
			    json_pack("{ss si}", "address", h->address, "port", (int)h->port));
	rc = paths_write_json(config, HOSTS_FILE, all, err);
	json_decref(all);
	return rc;
}

static int is_certificate(const struct dirent *d)
{
	size_t length = strlen(d->d_name);

	return d->d_name[0] != '.' && length > 4 && !strcmp(d->d_name + length - 4, ".pem");
}

int hosts_each(const char *config, int (*each)(void *ctx, const struct host_address *h), void *ctx,
	       struct pgr_error *err)
{
	char path[PATH_MAX], name[256];
	struct host_address h;
	struct dirent **names;
	int i, nr, rc = 0;

	if (snprintf(path, sizeof(path), "%s/trusted", config) >= (int)sizeof(path))
		return pgr_fail(err, -ENAMETOOLONG, "%s: the name is too long", config);
	nr = scandir(path, &names, is_certificate, alphasort);
	if (nr < 0)
		return errno == ENOENT ? 0 : pgr_fail_errno(err, -errno, "cannot read %s", path);
	for (i = 0; i < nr; i++) {
		snprintf(name, sizeof(name), "%.*s", (int)strlen(names[i]->d_name) - 4,
			 names[i]->d_name);
		if (!rc && units_name_ok(name))
			rc = hosts_find(config, name, &h, err);
		if (!rc && units_name_ok(name))
			rc = each(ctx, &h);
		free(names[i]);
	}
	free(names);
	return rc;
}
