// SPDX-License-Identifier: MIT
/*
 * echod - sends back what it gets: over TCP, over UDP, or from standard input to standard output.
 *
 * One thread, no allocation. A TCP client that does not read what comes back is not read from either.
 */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "echo.h"
#include "options.h"
#include "parse.h"

#define CLIENTS 64
#define BUFFER	4096

/* Bytes from @from up to @to wait to be sent back. */
struct client {
	int fd;
	size_t from, to;
	uint8_t buffer[BUFFER];
};

enum { SLOT_LISTEN, SLOT_UDP, SLOT_CLIENTS };

static struct client clients[CLIENTS];
static struct pollfd slots[SLOT_CLIENTS + CLIENTS];

static int open_socket(int type, uint16_t port)
{
	struct sockaddr_in6 address = {
		.sin6_family = AF_INET6,
		.sin6_port = htons(port),
		.sin6_addr = IN6ADDR_ANY_INIT,
	};
	struct sockaddr_in address4 = {
		.sin_family = AF_INET,
		.sin_port = htons(port),
	};
	int off = 0, on = 1, fd, rc;

	/* One socket serves both versions of IP; a kernel without IPv6 gets the older one. */
	fd = socket(AF_INET6, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd >= 0) {
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
		rc = bind(fd, (struct sockaddr *)&address, sizeof(address));
	} else {
		fd = socket(AF_INET, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
		if (fd < 0)
			return -errno;
		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
		rc = bind(fd, (struct sockaddr *)&address4, sizeof(address4));
	}
	if (rc || (type == SOCK_STREAM && listen(fd, CLIENTS))) {
		rc = -errno;
		close(fd);
		return rc;
	}
	return fd;
}

static bool temporary(int error)
{
	return error == EAGAIN || error == EWOULDBLOCK || error == EINTR;
}

static void accept_client(int listener)
{
	int on = 1, fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	unsigned int i;

	if (fd < 0)
		return;
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	for (i = 0; i < CLIENTS; i++) {
		if (clients[i].fd < 0) {
			clients[i] = (struct client){.fd = fd};
			return;
		}
	}
	close(fd);
}

/* Returns false when the connection is over. */
static bool serve(struct client *client)
{
	ssize_t n;

	if (client->from == client->to) {
		n = read(client->fd, client->buffer, BUFFER);
		if (n <= 0)
			return n < 0 && temporary(errno);
		client->from = 0;
		client->to = (size_t)n;
	}
	n = write(client->fd, client->buffer + client->from, client->to - client->from);
	if (n < 0)
		return temporary(errno);
	client->from += (size_t)n;
	return true;
}

static void echo_datagram(int fd)
{
	struct sockaddr_storage peer;
	socklen_t length = sizeof(peer);
	uint8_t buffer[65536];
	ssize_t n = recvfrom(fd, buffer, sizeof(buffer), 0, (struct sockaddr *)&peer, &length);

	/* A datagram that cannot be sent back is lost, as datagrams are: the client counts it. */
	if (n >= 0 && sendto(fd, buffer, (size_t)n, 0, (struct sockaddr *)&peer, length) < 0 &&
	    !temporary(errno))
		fprintf(stderr, "ECHOD note: a datagram was not sent back: %s\n", strerror(errno));
}

static int run_network(uint16_t port)
{
	unsigned int i;

	slots[SLOT_LISTEN].fd = open_socket(SOCK_STREAM, port);
	slots[SLOT_UDP].fd = open_socket(SOCK_DGRAM, port);
	for (i = SLOT_LISTEN; i <= SLOT_UDP; i++) {
		slots[i].events = POLLIN;
		if (slots[i].fd < 0) {
			fprintf(stderr,
				"echod: cannot listen on port %u: %s; choose another with --port\n",
				port, strerror(-slots[i].fd));
			return 1;
		}
	}
	for (i = 0; i < CLIENTS; i++)
		clients[i].fd = -1;
	printf("ECHOD listening port=%u\n", port);
	fflush(stdout);
	for (;;) {
		for (i = 0; i < CLIENTS; i++) {
			slots[SLOT_CLIENTS + i].fd = clients[i].fd;
			slots[SLOT_CLIENTS + i].events =
				clients[i].from == clients[i].to ? POLLIN : POLLOUT;
		}
		if (poll(slots, SLOT_CLIENTS + CLIENTS, -1) < 0) {
			if (errno == EINTR)
				continue;
			perror("echod: cannot wait for clients");
			return 1;
		}
		for (i = 0; i < CLIENTS; i++) {
			if (slots[SLOT_CLIENTS + i].revents && !serve(&clients[i])) {
				close(clients[i].fd);
				clients[i].fd = -1;
				clients[i].from = clients[i].to = 0;
			}
		}
		if (slots[SLOT_LISTEN].revents)
			accept_client(slots[SLOT_LISTEN].fd);
		if (slots[SLOT_UDP].revents)
			echo_datagram(slots[SLOT_UDP].fd);
	}
}

static int run_stdio(void)
{
	char line[BUFFER];

	while (fgets(line, sizeof(line), stdin)) {
		if (fputs(line, stdout) == EOF || fflush(stdout) == EOF)
			return 1;
	}
	return ferror(stdin) ? 1 : 0;
}

static void usage(void)
{
	puts("Usage: echod [--port N] | --stdio\n"
	     "Sends back what it gets, over TCP and UDP on one port (7), IPv4 and IPv6.\n"
	     "\n"
	     "  --port N   the port\n"
	     "  --stdio    lines from standard input to standard output instead, for a console or pipe\n"
	     "\n"
	     "Prints ECHOD listening port=N when it is ready.");
}

int main(int argc, char **argv)
{
	unsigned int port = ECHO_PORT;
	bool stdio = false;
	const struct option_row options[] = {
		OPTION_PORT(&port),
		{OPTION_FLAG, "--stdio", &stdio, 0, 0, NULL},
		OPTION_ROWS_END,
	};
	int first = options_read(argc, argv, options, usage);

	if (first != argc)
		usage_error("unexpected '%s'", argv[first]);
	signal(SIGPIPE, SIG_IGN);
	return stdio ? run_stdio() : run_network((uint16_t)port);
}
