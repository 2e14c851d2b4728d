// SPDX-License-Identifier: MIT
/*
 * A hostile NBD client.
 *
 * The input is what the client sends: its first byte says how it came in (by itself, or with the handshake done for it, with and without structured
 * replies), and the second how the rest is cut. Then it closes. The server has to be rid of it, with every byte of its budget given back, and the disk
 * still has to work.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "storage/nbd_internal.h"
#include "tests/fuzz/on_tape.h"

#define SIZE	  (256u << 10)
#define TURNS_MAX 100000u

struct world {
	struct loop *loop;
	struct tape *tape;
	struct block *disk;
	struct dirty *dirty;
	struct nbd_server *server;
	int client;
};

static void build(struct world *w)
{
	const struct tape_options o = {.align = 512};
	int fds[2];

	w->tape = tape_new(NULL, SIZE);
	w->disk = tape_open(w->tape, w->loop, &o);
	expect(!dirty_create(SIZE, 4096, &w->dirty, NULL));
	dirty_attach(w->dirty, w->disk);
	expect(!nbd_server_create(w->loop, NULL, &w->server, NULL));
	expect(!nbd_server_export(w->server,
				  &(struct nbd_export){.name = "disk",
						       .description = "fuzzed",
						       .disk = w->disk,
						       .dirty = w->dirty},
				  NULL));
	expect(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds));
	w->client = fds[0];
	expect(!nbd_server_accept(w->server, fds[1], NULL));
}

/* Throw away what has come; false: the server has closed. */
static bool drain(const struct world *w)
{
	static uint8_t buffer[64 << 10];
	ssize_t n;

	do
		n = recv(w->client, buffer, sizeof(buffer), 0);
	while (n > 0);
	return n < 0;
}

static bool send_all(struct world *w, const uint8_t *data, size_t length)
{
	while (length) {
		ssize_t n = send(w->client, data, length, MSG_NOSIGNAL);

		if (n < 0 && errno != EAGAIN)
			return false;
		if (n > 0) {
			data += n;
			length -= (size_t)n;
		}
		loop_turn(w->loop, false);
		if (!drain(w))
			return false;
	}
	return true;
}

static bool shake_hands(struct world *w, bool structured)
{
	static const uint8_t hello[] = {0, 0, 0, 3};
	static const uint8_t options[] = "IHAVEOPT\0\0\0\x08\0\0\0\0"
					 "IHAVEOPT\0\0\0\x0a\0\0\0\x0c\0\0\0\x04"
					 "disk\0\0\0\0";
	static const uint8_t go[] = "IHAVEOPT\0\0\0\x07\0\0\0\x0a\0\0\0\x04"
				    "disk\0\0";

	return send_all(w, hello, sizeof(hello)) &&
	       (!structured || send_all(w, options, sizeof(options) - 1)) &&
	       send_all(w, go, sizeof(go) - 1);
}

static void attack(struct world *w, const uint8_t *data, size_t size)
{
	size_t cut = data[1] ? data[1] * 16u : size;

	if (data[0] % 3 && !shake_hands(w, data[0] % 3 == 2))
		return;
	data += 2;
	size -= 2;
	while (size) {
		size_t n = size < cut ? size : cut;

		if (!send_all(w, data, n))
			return;
		data += n;
		size -= n;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct loop *loop;
	struct world w = {.client = -1};
	uint8_t sector[512];
	unsigned turns = 0;

	if (size < 2)
		return 0;
	if (!loop) {
		signal(SIGPIPE, SIG_IGN);
		expect(!loop_create(&loop, NULL));
	}
	w.loop = loop;
	build(&w);
	attack(&w, data, size);
	for (int i = 0; i < 10; i++) {
		loop_turn(loop, false);
		drain(&w);
	}
	if (w.server->connections) {
		const struct nbd_connection *c = w.server->connections;

		expect(c->pieces <= NBD_PIECES && (c->used <= NBD_BUDGET || c->pieces == 1));
	}
	close(w.client);
	while (nbd_server_connections(w.server)) {
		loop_turn(loop, true);
		expect(++turns < TURNS_MAX);
	}
	expect(!block_read(w.disk, SIZE - 512, sector, 512, NULL));
	nbd_server_free(w.server);
	dirty_free(w.dirty);
	expect(!block_close(w.disk, NULL));
	tape_free(w.tape);
	return 0;
}
