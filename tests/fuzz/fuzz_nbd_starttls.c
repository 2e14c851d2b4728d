// SPDX-License-Identifier: MIT
/*
 * Addresses of disks on NBD servers, and a hostile server's part of the handshake. The first byte says which: an address, a server that is asked for TLS, or one that
 * is asked for its export at once. What is an address stays one when its parts are put together again.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/identity.h"
#include "storage/loop.h"
#include "storage/nbd_address.h"
#include "storage/nbd_starttls.h"

#define TEXT_MAX 10000u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void expect(bool condition)
{
	if (!condition)
		abort();
}

static void escape(char *to, const char *from)
{
	for (; *from; from++)
		to += sprintf(to, "%%%02x", (uint8_t)*from);
	*to = '\0';
}

static void take_apart(const uint8_t *data, size_t size)
{
	static char text[TEXT_MAX], export[3 * NBD_NAME_MAX + 1], path[400], again[2 * TEXT_MAX];
	struct nbd_address a, b;

	if (size >= sizeof(text))
		return;
	memcpy(text, data, size);
	text[size] = '\0';
	nbd_address_takes_identity(text);
	if (nbd_address_parse(text, &a, NULL))
		return;
	expect(nbd_address_is(text) && a.port[0] && (a.host[0] || a.path[0]));
	escape(export, a.export);
	escape(path, a.path);
	snprintf(again, sizeof(again), "nbd%s%s://[%s]:%s/%s?socket=%s", a.tls ? "s" : "",
		 a.path[0] ? "+unix" : "", a.host, a.port, export, path);
	/* Such brackets cannot be empty, nor have one in them. */
	if (!a.host[0] || strchr(a.host, ']'))
		return;
	expect(!nbd_address_parse(again, &b, NULL));
	expect(!memcmp(&a, &b, sizeof(a)));
}

static void meet(const uint8_t *data, size_t size, const struct tls_identity *id)
{
	const struct nbd_starttls o = {.name = "fuzzed",
				       .identity = id,
				       .export = "disk",
				       .deadline_ns = loop_now_ns() + UINT64_C(10000000000)};
	struct pgr_error err = PGR_ERROR_NONE;
	uint16_t flags;
	SSL *ssl;
	int pair[2];

	expect(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair));
	if (send(pair[1], data, size, MSG_NOSIGNAL) == (ssize_t)size) {
		shutdown(pair[1], SHUT_WR);
		if (nbd_starttls(pair[0], &o, &ssl, &flags, &err))
			expect(err.code && err.text[0] && err.code != -ETIMEDOUT);
		else
			expect(!id && !ssl && flags & NBD_FIXED_NEWSTYLE);
	}
	close(pair[0]);
	close(pair[1]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct tls_identity *id;

	if (!size)
		return 0;
	if (!id) {
		char folder[] = "/tmp/fuzz_nbd_starttls.XXXXXX", command[100];

		signal(SIGPIPE, SIG_IGN);
		expect(mkdtemp(folder) && !tls_identity_create(folder, "a", false, NULL) &&
		       !tls_identity_load(folder, &id, NULL));
		snprintf(command, sizeof(command), "rm -r %s", folder);
		expect(!system(command)); /* NOLINT(cert-env33-c): the command is the test's own */
	}
	if (data[0] % 3 == 0)
		take_apart(data + 1, size - 1);
	else
		meet(data + 1, size - 1, data[0] % 3 == 1 ? id : NULL);
	return 0;
}
