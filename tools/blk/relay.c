// SPDX-License-Identifier: MIT
#include "tools/blk/relay.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "storage/nbd_dial.h"
#include "storage/nbd_relay.h"
#include "storage/nbd_starttls.h"
#include "tools/blk/confine.h"
#include "tools/blk/control.h"

#define IDENTITY     "/etc/pagurus"
#define HANDSHAKE_NS UINT64_C(20000000000)

struct relay {
	const char *uri;
	struct nbd_address address;
	struct tls_identity *identity;
	struct loop *loop;
	int server;
	struct nbd_relay *passing;
};

/* The folder of this host's identity, as for `pagurus`. */
static const char *identity_folder(void)
{
	const char *folder = getenv("PAGURUS_CONFIG");

	return folder && folder[0] ? folder : IDENTITY;
}

/* Everything that takes a right or an open file. */
static int prepare(struct relay *y, uid_t uid, struct pgr_error *err)
{
	int ret = nbd_address_parse(y->uri, &y->address, err);

	if (!ret)
		ret = tls_identity_load(identity_folder(), &y->identity, err);
	if (!ret)
		ret = confine_user(uid, err);
	if (!ret)
		ret = loop_create(&y->loop, err);
	if (!ret)
		ret = nbd_dial_address(&y->address, y->uri, &y->server, err);
	return ret ? ret : confine_relay(err);
}

static void stop(void *ctx)
{
	loop_stop(ctx);
}

static int begin(struct relay *y, struct pgr_error *err)
{
	const struct nbd_starttls o = {.name = y->uri,
				       .identity = y->identity,
				       .expect = y->address.host[0] ? y->address.host : NULL,
				       .export = y->address.export,
				       .deadline_ns = loop_now_ns() + HANDSHAKE_NS};
	uint16_t flags;
	SSL *ssl;
	int ret = nbd_starttls(y->server, &o, &ssl, &flags, err);

	if (ret)
		return ret;
	return nbd_relay_new(y->loop, ssl, RELAY_FD, flags, stop, y->loop, &y->passing, err);
}

/* The keeper's answer; false: it has gone. By write(), which is what is left. */
static bool tell(const struct pgr_error *err)
{
	struct control_message m = {.kind = CONTROL_DIALLED};

	control_put_error(&m, err);
	if (write(CONTROL_FD, &m, sizeof(m)) != (ssize_t)sizeof(m))
		return false;
	close(CONTROL_FD);
	return true;
}

int relay_disk(uid_t uid, const char *uri)
{
	struct relay y = {.uri = uri, .server = -1};
	struct pgr_error err = PGR_ERROR_NONE;
	int ret;

	prctl(PR_SET_NAME, "pagurus-relay", 0, 0, 0);
	signal(SIGPIPE, SIG_IGN);
	ret = prepare(&y, uid, &err);
	if (!ret)
		ret = begin(&y, &err);
	err.code = ret;
	if (!tell(&err) || ret)
		return 1;
	loop_run(y.loop);
	nbd_relay_free(y.passing);
	return 0;
}
