// SPDX-License-Identifier: MIT
#include "tests/unit/tls_hosts.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "tests/unit/unit.h"

static char base[64];
static struct pgr_error err;

const char *host_path(const char *name, const char *file)
{
	static char path[4][512];
	static unsigned turn;
	char *p = path[turn++ % 4];

	if (!base[0]) {
		strcpy(base, "/tmp/test_hosts.XXXXXX");
		CHECK(mkdtemp(base));
		atexit(hosts_remove);
	}
	snprintf(p, sizeof(path[0]), "%s/%s%s%s", base, name, file ? "/" : "", file ? file : "");
	return p;
}

void hosts_remove(void)
{
	char command[128];

	snprintf(command, sizeof(command), "rm -rf '%s'", base);
	if (base[0] && system(command))
		fprintf(stderr, "%s could not be removed\n", base);
	base[0] = '\0';
}

char *host_read(const char *path)
{
	static char text[65536];
	FILE *f = fopen(path, "r");
	size_t n;

	CHECK_MSG(f, "%s: %s", path, strerror(errno));
	n = fread(text, 1, sizeof(text) - 1, f);
	text[n] = '\0';
	fclose(f);
	return text;
}

void host_make(const char *name)
{
	CHECK_MSG(!tls_identity_create(host_path(name, NULL), name, false, &err), "%s", err.text);
}

void host_trust(const char *host, const char *whom)
{
	CHECK_MSG(!tls_identity_trust(host_path(host, NULL), whom,
				      host_read(host_path(whom, "cert.pem")), &err),
		  "%s", err.text);
}

struct tls_identity *host_load(const char *host)
{
	struct tls_identity *id;

	CHECK_MSG(!tls_identity_load(host_path(host, NULL), &id, &err), "%s", err.text);
	return id;
}

void hosts_make_two(void)
{
	hosts_remove();
	host_make("a");
	host_make("b");
	host_trust("a", "b");
	host_trust("b", "a");
}
