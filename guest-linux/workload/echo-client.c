// SPDX-License-Identifier: MIT
/*
 * echo-client - asks an echo server all the time, and reports the longest silence and what was lost.
 *
 * Sends a numbered message every few milliseconds whether or not answers come. The gap that it reports
 * is the longest time without an answer, seen from here: the downtime that a user of the server feels.
 */
#include <errno.h>
#include <inttypes.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include "clock.h"
#include "echo.h"
#include "options.h"
#include "parse.h"

/* An unanswered TCP connection attempt is made again after this. */
#define CONNECT_NS (1 * NS_PER_S)
/*
 * Asked to end, it waits so long for the answers that are still on their way. After a standstill
 * TCP sends again only when about as much time has passed once more.
 */
/* What is asked while nobody answers, bytes: more than a minute's with the usual interval. */
#define SEND_ROOM   (256 << 10)
#define LAST_NS	    (10 * NS_PER_S)
#define LAST_TCP_NS (120 * NS_PER_S)

static volatile sig_atomic_t ending;

struct session {
	const struct addrinfo *peer;
	int fd; /* -1: not connected */
	bool tcp, connecting;
	uint32_t run;
	int64_t interval_ns, report_ns, since_connect, last_answer;
	int64_t longest, since_last;
	uint64_t sent, received, bad, reconnects, rtt_sum, rtt_count;
	uint8_t partial[sizeof(struct echo_message)]; /* of an answer over TCP */
	size_t have;
	uint8_t outgoing[sizeof(struct echo_message)]; /* rest of a message TCP took in part */
	size_t unsent;
};

static void disconnect(struct session *session)
{
	if (session->fd >= 0)
		close(session->fd);
	session->fd = -1;
	session->have = 0;
	session->unsent = 0;
}

static void connect_peer(struct session *session)
{
	const struct addrinfo *peer = session->peer;
	int on = 1, room = SEND_ROOM;

	session->since_connect = clock_ns(CLOCK_MONOTONIC);
	session->fd = socket(peer->ai_family, peer->ai_socktype | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (session->fd < 0)
		return;
	if (session->tcp) {
		setsockopt(session->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
		setsockopt(session->fd, SOL_SOCKET, SO_SNDBUF, &room, sizeof(room));
	}
	session->connecting = session->tcp;
	if (connect(session->fd, peer->ai_addr, peer->ai_addrlen) && errno != EINPROGRESS)
		disconnect(session);
}

static void lost_connection(struct session *session)
{
	disconnect(session);
	session->reconnects++;
}

/* A datagram socket reports that nobody listened before; that is a lost message, not the end. */
static bool harmless(const struct session *session, int error)
{
	return error == EAGAIN || error == EWOULDBLOCK || error == EINTR ||
	       (!session->tcp && (error == ECONNREFUSED || error == EHOSTUNREACH ||
				  error == ENETUNREACH || error == ENOBUFS));
}

/* What of the message is not with the kernel yet. */
static void push(struct session *session)
{
	ssize_t n =
		send(session->fd, session->outgoing + sizeof(session->outgoing) - session->unsent,
		     session->unsent, MSG_NOSIGNAL);

	if (n >= 0)
		session->unsent -= (size_t)n;
	else if (!harmless(session, errno))
		lost_connection(session);
	if (!session->tcp)
		session->unsent = 0;
}

static void send_message(struct session *session)
{
	struct echo_message message = {
		.magic = ECHO_MAGIC,
		.run = session->run,
		.sequence = session->sent,
		.sent_ns = clock_ns(CLOCK_MONOTONIC),
	};
	bool connected = session->fd >= 0 && !session->connecting;

	/* Before the first connection nothing can be lost. */
	if (session->sent == 0 && session->connecting)
		return;
	/* With a connection that has no room nothing new is asked, so nothing new is missing. */
	if (!connected || !session->unsent)
		session->sent++;
	if (!connected)
		return;
	if (!session->unsent) {
		memcpy(session->outgoing, &message, sizeof(message));
		session->unsent = sizeof(message);
	}
	push(session);
}

static void take_answer(struct session *session, const struct echo_message *message)
{
	int64_t now = clock_ns(CLOCK_MONOTONIC), gap = now - session->last_answer;

	if (message->magic != ECHO_MAGIC || message->run != session->run ||
	    message->sequence >= session->sent || message->sent_ns > now) {
		session->bad++;
		return;
	}
	session->received++;
	session->rtt_sum += (uint64_t)(now - message->sent_ns);
	session->rtt_count++;
	if (gap > session->since_last)
		session->since_last = gap;
	session->last_answer = now;
}

static void receive(struct session *session)
{
	struct echo_message message;
	ssize_t n;

	for (;;) {
		n = recv(session->fd, session->partial + session->have,
			 sizeof(message) - session->have, 0);
		if (n < 0 && harmless(session, errno))
			return;
		if (n < 0 || (n == 0 && session->tcp)) {
			lost_connection(session);
			return;
		}
		session->have += (size_t)n;
		if (session->have == sizeof(message)) {
			memcpy(&message, session->partial, sizeof(message));
			take_answer(session, &message);
		} else if (session->tcp) {
			continue;
		} else {
			session->bad++;
		}
		session->have = 0;
	}
}

static void finish_connect(struct session *session)
{
	int error = 0;
	socklen_t length = sizeof(error);

	getsockopt(session->fd, SOL_SOCKET, SO_ERROR, &error, &length);
	if (error)
		disconnect(session);
	else
		session->connecting = false;
}

/* Waits for answers until @when. */
static void listen_until(struct session *session, int64_t when)
{
	struct pollfd slot;
	int64_t now = clock_ns(CLOCK_MONOTONIC);
	struct timespec left;

	while (now < when) {
		slot.fd = session->fd;
		slot.events = session->connecting ? POLLOUT : POLLIN;
		left.tv_sec = (when - now) / NS_PER_S;
		left.tv_nsec = (when - now) % NS_PER_S;
		if (ppoll(&slot, 1, &left, NULL) > 0) {
			if (session->connecting)
				finish_connect(session);
			else
				receive(session);
		}
		now = clock_ns(CLOCK_MONOTONIC);
	}
}

static void report(struct session *session, int64_t now)
{
	int64_t silence = now - session->last_answer;
	double rtt = session->rtt_count ? (double)session->rtt_sum / (double)session->rtt_count : 0;

	/* A silence that still lasts counts: otherwise a dead server would look good. */
	if (silence > session->since_last)
		session->since_last = silence;
	if (session->since_last > session->longest)
		session->longest = session->since_last;
	printf("ECHO now_ms=%" PRId64 " longest_ms=%.3f since_last_ms=%.3f sent=%" PRIu64
	       " received=%" PRIu64 " missing=%" PRIu64 " bad=%" PRIu64 " reconnects=%" PRIu64
	       " rtt_ms=%.3f\n",
	       now / NS_PER_MS, (double)session->longest / NS_PER_MS,
	       (double)session->since_last / NS_PER_MS, session->sent, session->received,
	       session->sent - session->received, session->bad, session->reconnects,
	       rtt / NS_PER_MS);
	fflush(stdout);
	session->since_last = 0;
	session->rtt_sum = 0;
	session->rtt_count = 0;
}

static void on_signal(int number)
{
	(void)number;
	ending = 1;
}

/* What was sent and not answered yet may only be late. */
static void wait_for_the_last(struct session *session)
{
	int64_t now = clock_ns(CLOCK_MONOTONIC);
	int64_t end = now + (session->tcp ? LAST_TCP_NS : LAST_NS);

	while (session->received < session->sent && session->fd >= 0 && now < end) {
		if (session->unsent && !session->connecting)
			push(session);
		listen_until(session, now + session->interval_ns);
		now = clock_ns(CLOCK_MONOTONIC);
	}
	report(session, now);
}

static void run(struct session *session, uint64_t count)
{
	int64_t now = clock_ns(CLOCK_MONOTONIC), next = now, reported = now;
	uint64_t reports = 0;

	session->last_answer = now;
	connect_peer(session);
	while (!ending && (count == 0 || reports < count)) {
		if ((session->fd < 0 || session->connecting) &&
		    now - session->since_connect >= CONNECT_NS) {
			disconnect(session);
			connect_peer(session);
		}
		send_message(session);
		next += session->interval_ns;
		listen_until(session, next);
		now = clock_ns(CLOCK_MONOTONIC);
		/* After a standstill of this side: no burst to make up for it. */
		if (next < now - NS_PER_S)
			next = now;
		if (now - reported >= session->report_ns) {
			report(session, now);
			reported = now;
			reports++;
		}
	}
	if (ending)
		wait_for_the_last(session);
}

static void usage(void)
{
	puts("Usage: echo-client [OPTION]... HOST\n"
	     "Sends messages to an echo server and reports the longest time without an answer.\n"
	     "\n"
	     "  --port N        the server's port (7)\n"
	     "  --tcp           over TCP, connecting again when the connection ends (default: UDP)\n"
	     "  --interval MS   time between messages (10)\n"
	     "  --report MS     time between reports (1000)\n"
	     "  --count N       exit after N reports (0: never)\n"
	     "\n"
	     "  ECHO now_ms=N longest_ms=F since_last_ms=F sent=N received=N missing=N bad=N reconnects=N rtt_ms=F\n"
	     "longest_ms and since_last_ms are the longest silence since start and since the last\n"
	     "report; missing are messages without an answer so far; bad are answers that are not\n"
	     "what was sent; rtt_ms is the mean since the last report. SIGINT and SIGTERM end it with\n"
	     "a last report, after the answers that were still on their way. The exit status is 1\n"
	     "when no answer came at all.");
}

int main(int argc, char **argv)
{
	struct session session = {
		.fd = -1,
		.interval_ns = 10 * NS_PER_MS,
		.report_ns = NS_PER_S,
	};
	struct addrinfo hints = {0}, *peers;
	uint64_t count = 0;
	unsigned int number = ECHO_PORT;
	const struct option_row options[] = {
		OPTION_PORT(&number),
		{OPTION_FLAG, "--tcp", &session.tcp, 0, 0, NULL},
		OPTION_INTERVAL(&session.interval_ns),
		OPTION_REPORT(&session.report_ns),
		OPTION_COUNT(&count),
		OPTION_ROWS_END,
	};
	char port[8];
	int host = options_read(argc, argv, options, usage), rc;

	if (host + 1 != argc)
		usage_error("expects one HOST");

	snprintf(port, sizeof(port), "%u", number);
	hints.ai_socktype = session.tcp ? SOCK_STREAM : SOCK_DGRAM;
	rc = getaddrinfo(argv[host], port, &hints, &peers);
	if (rc) {
		fprintf(stderr, "echo-client: cannot find host '%s': %s\n", argv[host],
			gai_strerror(rc));
		return 1;
	}
	if (getrandom(&session.run, sizeof(session.run), 0) != sizeof(session.run)) {
		perror("echo-client: cannot get a random number");
		return 1;
	}
	session.peer = peers;
	signal(SIGINT, on_signal);
	signal(SIGTERM, on_signal);
	run(&session, count);
	disconnect(&session);
	freeaddrinfo(peers);
	return session.received ? 0 : 1;
}
