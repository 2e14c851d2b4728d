/* SPDX-License-Identifier: MIT */
#include "tools/pagurus/host_trust.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "migrate/channel.h"
#include "common/tls_identity.h"
#include "tools/pagurus/hosts.h"
#include "tools/pagurus/units.h"

#define PEM_MAX (64u << 10)

static int read_all(int fd, const char *what, char **out, struct pgr_error *err)
{
	char *text = malloc(PEM_MAX + 1);
	size_t used = 0;
	ssize_t n;

	if (!text)
		return pgr_fail(err, -ENOMEM, "no memory to read %s", what);
	while ((n = read(fd, text + used, PEM_MAX + 1 - used)) != 0) {
		if (n < 0 && errno == EINTR)
			continue;
		if (n > 0)
			used += (size_t)n;
		if (n > 0 && used <= PEM_MAX)
			continue;
		free(text);
		return n < 0 ? pgr_fail_errno(err, -errno, "cannot read %s", what)
			     : pgr_fail(err, -EFBIG, "%s is too long for a certificate", what);
	}
	text[used] = 0;
	*out = text;
	return 0;
}

int host_read_pem(const char *path, char **pem, struct pgr_error *err)
{
	int fd, rc;

	*pem = NULL;
	if (!strcmp(path, "-"))
		return read_all(STDIN_FILENO, "standard input", pem, err);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return pgr_fail_errno(err, -errno, "cannot open %s", path);
	rc = read_all(fd, path, pem, err);
	close(fd);
	return rc;
}

int host_own_certificate(const char *config, char **pem, struct pgr_error *err)
{
	char path[PATH_MAX];
	int rc;

	snprintf(path, sizeof(path), "%s/cert.pem", config);
	rc = host_read_pem(path, pem, err);
	if (rc == -ENOENT)
		return pgr_fail(err, rc, "%s is not there: run `pagurus host init` first", path);
	return rc;
}

/* ---- over ssh ---- */

static void become_ssh(int in, int out, const char *where, const char *command)
{
	dup2(in, STDIN_FILENO);
	dup2(out, STDOUT_FILENO);
	signal(SIGPIPE, SIG_DFL);
	execlp("ssh", "ssh", "-T", "-o", "ConnectTimeout=15", "--", where, command, (char *)NULL);
	perror("pagurus: cannot start ssh");
	_exit(127);
}

static void write_all(int fd, const char *text)
{
	size_t length = strlen(text), at = 0;
	ssize_t n;

	/* A peer that does not read shows in its exit status. */
	while (at < length) {
		n = write(fd, text + at, length - at);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		at += (size_t)n;
	}
}

/* Run a command there, give it INPUT, take what it prints. Its complaints go to our standard error. */
static int over_ssh(const char *where, const char *command, const char *input, char **output,
		    struct pgr_error *err)
{
	int to[2], from[2], status = 0, rc;
	pid_t child;

	*output = NULL;
	if (pipe2(to, O_CLOEXEC))
		return pgr_fail_errno(err, -errno, "no pipe for ssh");
	if (pipe2(from, O_CLOEXEC)) {
		rc = pgr_fail_errno(err, -errno, "no pipe for ssh");
		close(to[0]);
		close(to[1]);
		return rc;
	}
	signal(SIGPIPE, SIG_IGN);
	child = fork();
	if (!child)
		become_ssh(to[0], from[1], where, command);
	close(to[0]);
	close(from[1]);
	if (child > 0)
		write_all(to[1], input);
	close(to[1]);
	rc = child < 0 ? pgr_fail_errno(err, -errno, "no process for ssh")
		       : read_all(from[0], "what ssh brought", output, err);
	close(from[0]);
	if (child > 0)
		while (waitpid(child, &status, 0) < 0 && errno == EINTR)
			;
	if (!rc && status)
		rc = pgr_fail(
			err, -EIO,
			"`ssh %s %s` failed (its message is above); by hand: `pagurus host cert` there, `pagurus host trust --file` here, and the other way round",
			where, command);
	if (rc) {
		free(*output);
		*output = NULL;
	}
	return rc;
}

/* ---- */

static int accept_certificate(const struct host_trust *t, const char *pem, struct pgr_error *err)
{
	struct host_address h = {.port = PATHS_PORT};
	char print[128];
	int rc;

	snprintf(h.name, sizeof(h.name), "%s", t->name);
	snprintf(h.address, sizeof(h.address), "%s", t->name);
	if (t->address && units_host_port(t->address, h.address, sizeof(h.address), &h.port))
		return pgr_fail(err, -EINVAL, "--address %s: write ADDR or ADDR:PORT", t->address);
	rc = tls_identity_trust(t->paths.config, t->name, pem, err);
	if (!rc)
		rc = tls_fingerprint(pem, print, err);
	/* Without an address an earlier one stays. */
	if (!rc && t->address)
		rc = hosts_record(t->paths.config, &h, err);
	if (!rc)
		printf("Host %s is trusted here.   Its fingerprint: %s\n", t->name, print);
	return rc;
}

/* Our own name, as our certificate says it. */
static int our_name(const char *config, char out[TLS_NAME_MAX + 1], struct pgr_error *err)
{
	struct tls_identity *id;
	int rc = tls_identity_load(config, &id, err);

	if (rc)
		return rc;
	snprintf(out, TLS_NAME_MAX + 1, "%s", id->name);
	tls_identity_free(id);
	if (units_name_ok(out))
		return 0;
	return pgr_fail(
		err, -EINVAL,
		"this host's certificate has no usable name: run `pagurus host init --force --name NAME`");
}

/* An address that may go through the shell over there. */
static bool plain_address(const char *text)
{
	return strspn(text,
		      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.:_-[]") ==
	       strlen(text);
}

static int trust_over_ssh(const struct host_trust *t, struct pgr_error *err)
{
	char where[300], command[800], name[TLS_NAME_MAX + 1], print[128], address[400] = "";
	char *theirs = NULL, *ours = NULL, *said = NULL;
	int rc;

	snprintf(where, sizeof(where), "%s%s", t->ssh ? "" : "root@", t->ssh ? t->ssh : t->name);
	if (t->our_address && !plain_address(t->our_address))
		return pgr_fail(err, -EINVAL, "--our-address %s: write ADDR or ADDR:PORT",
				t->our_address);
	if (t->our_address)
		snprintf(address, sizeof(address), "--address '%.300s' ", t->our_address);
	rc = host_own_certificate(t->paths.config, &ours, err);
	if (!rc)
		rc = our_name(t->paths.config, name, err);
	if (!rc)
		rc = over_ssh(where, "pagurus host cert", "", &theirs, err);
	if (!rc)
		rc = accept_certificate(t, theirs, err);
	if (!rc) {
		snprintf(command, sizeof(command), "pagurus host trust --file - %s%s", address,
			 name);
		rc = over_ssh(where, command, ours, &said, err);
	}
	if (!rc)
		rc = tls_fingerprint(ours, print, err);
	if (!rc)
		printf("This host is trusted there as %s. Its fingerprint: %s\n", name, print);
	free(theirs);
	free(ours);
	free(said);
	return rc;
}

int host_trust_run(const struct host_trust *t, struct pgr_error *err)
{
	char *pem = NULL;
	int rc;

	if (!t->file)
		return trust_over_ssh(t, err);
	rc = host_read_pem(t->file, &pem, err);
	if (!rc)
		rc = accept_certificate(t, pem, err);
	free(pem);
	return rc;
}
