// SPDX-License-Identifier: MIT
/*
 * What a disk's process may still do when it has given up the rest: serve its file, and mirror it over a socket that it was passed. And its relay: TLS with a server, and
 * passing on what is said.
 */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "storage/block_nbd.h"
#include "storage/mirror.h"
#include "storage/nbd_relay.h"
#include "storage/nbd_server.h"
#include "storage/nbd_starttls.h"
#include "tests/storage/tape.h"
#include "tests/unit/tls_hosts.h"
#include "tests/unit/unit.h"
#include "tools/blk/confine.c" /* NOLINT(bugprone-suspicious-include) */

#define SIZE (3u << 20)

static uint8_t contents[SIZE];

static int open_file(const char *name, struct loop *l, struct block **out)
{
	struct pgr_error err = PGR_ERROR_NONE;
	int fd = open(name, O_RDWR | O_CREAT, 0600);

	if (fd < 0 || ftruncate(fd, SIZE))
		return -1;
	close(fd);
	return block_open_file(l, name, NULL, out, &err);
}

static bool is_control(uint32_t number)
{
	for (unsigned i = 0; i < NR_CONTROLS; i++)
		if (controls[i] == number)
			return true;
	return false;
}

/* What each number comes to on a file that has none of them: refused, or told that the file does not know it. */
static bool controls_are_few(int fd)
{
	for (uint32_t number = 0; number < 0x10000; number++) {
		bool refused = syscall(SYS_ioctl, fd, number, 0) && errno == EPERM;

		if (refused == is_control(number))
			return false;
	}
	for (unsigned i = 0; i < NR_CONTROLS; i++) {
		if (!syscall(SYS_ioctl, fd, controls[i], 0) || errno != ENOTTY)
			return false;
		/* With another size of what it points to it is another one. */
		if (!syscall(SYS_ioctl, fd, controls[i] ^ (1u << 29), 0) || errno != EPERM)
			return false;
	}
	/* Bits that the kernel leaves out neither help nor hinder. */
	return syscall(SYS_ioctl, fd, 0x5401ull | 1ull << 32, 0) && errno == EPERM &&
	       syscall(SYS_ioctl, fd, BLKSSZGET | 1ull << 32, 0) && errno == ENOTTY;
}

/* A socket without a connection gets none by sending, as it would without the filter; what is connected is sent to. */
static bool sending_connects_nobody(int tcp, const struct sockaddr_in *to, int connected)
{
	struct iovec iov = {(void *)"x", 1};
	struct msghdr m = {.msg_iov = &iov,
			   .msg_iovlen = 1,
			   .msg_name = (void *)to,
			   .msg_namelen = sizeof(*to)};
	const struct sockaddr *a = (const struct sockaddr *)to;

	if (sendto(tcp, "x", 1, MSG_FASTOPEN, a, sizeof(*to)) >= 0 || errno != EPERM ||
	    sendmsg(tcp, &m, MSG_FASTOPEN | MSG_NOSIGNAL) >= 0 || errno != EPERM ||
	    sendto(tcp, "x", 1, MSG_NOSIGNAL, a, sizeof(*to)) >= 0 || errno != EPIPE)
		return false;
	m.msg_name = NULL;
	m.msg_namelen = 0;
	return send(connected, "x", 1, MSG_NOSIGNAL) == 1 &&
	       sendmsg(connected, &m, MSG_NOSIGNAL) == 1;
}

/* The disk's process; its exit status says how far it came. */
static int child(int server)
{
	struct pgr_error err = PGR_ERROR_NONE;
	struct block *source = NULL, *destination = NULL, *b = NULL;
	struct loop *l;
	struct sockaddr_in nearby = {.sin_family = AF_INET,
				     .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
				     .sin_port = htons(1)};
	int plain, tcp, pair[2];

	if (loop_create(&l, &err) || open_file("source", l, &source))
		return 1;
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair))
		return 1;
	plain = open("source", O_RDONLY | O_CLOEXEC);
	tcp = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	/* So it would be. */
	if (sendto(tcp, "x", 1, MSG_FASTOPEN, (const struct sockaddr *)&nearby, sizeof(nearby)) >=
		    0 ||
	    errno != ECONNREFUSED)
		return 13;
	/* As confine_user() does, which needs root. */
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || confine_calls(l, &err))
		return 2;
	if (open("/dev/null", O_RDONLY | O_CLOEXEC) >= 0 || errno != EPERM)
		return 3;
	if (fork() >= 0)
		return 4;
	if (!controls_are_few(plain))
		return 11;
	if (!sending_connects_nobody(tcp, &nearby, pair[0]))
		return 14;
	/* A connection that is no good any more is ended so. */
	if (shutdown(pair[0], SHUT_RDWR))
		return 12;
	if (block_write(source, 0, contents, SIZE / 2, 0, &err))
		return 5;
	if (block_open_nbd_socket(l, server, "the other", NULL, &destination, &err))
		return 6;
	if (mirror_open(source, destination, &(struct mirror_options){.zeroed = true}, &b, &err))
		return 7;
	if (mirror_wait(b, &err) || block_write(b, 1u << 20, contents + 512, 8192, 0, &err))
		return 8;
	if (mirror_finish(b, MIRROR_STAY, &err))
		return 9;
	return block_close(mirror_unwrap(b), &err) ? 10 : 0;
}

static void a_confined_process_mirrors(void)
{
	struct pgr_error err = PGR_ERROR_NONE;
	struct nbd_server *server;
	struct block *disk = NULL;
	struct loop *l;
	uint64_t state = unit_seed();
	uint8_t *got;
	char folder[] = "/var/tmp/pagurus-confine-XXXXXX";
	int pair[2], status = 0;
	pid_t pid;

	signal(SIGPIPE, SIG_IGN);
	CHECK(mkdtemp(folder) != NULL);
	CHECK_EQ(chdir(folder), 0);
	unit_fill_random(&state, contents, SIZE);
	CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair), 0);
	pid = fork();
	if (!pid) {
		close(pair[1]);
		/* Not by _exit(): before that, the sanitizer's code would want more than is allowed. */
		syscall(SYS_exit_group, child(pair[0]));
	}
	close(pair[0]);
	CHECK_EQ(loop_create(&l, &err), 0);
	CHECK_EQ(open_file("destination", l, &disk), 0);
	CHECK_EQ(nbd_server_create(l, NULL, &server, &err), 0);
	CHECK_EQ(nbd_server_export(server, &(struct nbd_export){.name = "", .disk = disk}, &err),
		 0);
	CHECK_EQ(nbd_server_accept(server, pair[1], &err), 0);
	while (nbd_server_connections(server))
		loop_turn(l, true);
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK_EQ(status, 0);
	got = malloc(SIZE);
	CHECK_EQ(block_read(disk, 0, got, SIZE, &err), 0);
	memcpy(contents + (1u << 20), contents + 512, 8192);
	memset(contents + SIZE / 2, 0, SIZE / 2);
	CHECK_MEM(got, contents, SIZE);
	free(got);
	nbd_server_free(server);
	CHECK_EQ(block_close(disk, &err), 0);
	loop_free(l);
	unlink("source");
	unlink("destination");
	CHECK_EQ(chdir("/"), 0);
	CHECK_EQ(rmdir(folder), 0);
}

/* ---- a relay ---- */

static void stop(void *ctx)
{
	loop_stop(ctx);
}

static bool is_refused(long result)
{
	return result < 0 && errno == EPERM;
}

/* Each call that could reach somebody else, or something that is not open. */
static bool relays_do_little(int fd)
{
	const struct sockaddr a = {.sa_family = AF_UNIX};
	struct msghdr m = {.msg_iov = NULL};

	return is_refused(socket(AF_INET, SOCK_STREAM, 0)) &&
	       is_refused(connect(fd, &a, sizeof(a))) &&
	       is_refused(sendto(fd, "x", 1, MSG_FASTOPEN, &a, sizeof(a))) &&
	       is_refused(sendmsg(fd, &m, 0)) && is_refused(recvmsg(fd, &m, 0)) &&
	       is_refused(open("/dev/null", O_RDONLY | O_CLOEXEC)) && is_refused(fork()) &&
	       is_refused(syscall(SYS_ioctl, fd, BLKGETSIZE64, 0)) &&
	       is_refused(kill(getppid(), 0)) && is_refused(setresuid(0, 0, 0));
}

static int relay_child(int server, int client)
{
	struct nbd_starttls o = {.name = "it", .expect = "b", .export = ""};
	struct pgr_error err = PGR_ERROR_NONE;
	struct tls_identity *id;
	struct nbd_relay *relay;
	struct loop *l;
	uint16_t flags;
	SSL *ssl;

	if (loop_create(&l, &err) || tls_identity_load(host_path("a", NULL), &id, &err))
		return 1;
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || confine_relay(&err))
		return 2;
	if (!relays_do_little(client))
		return 3;
	o.identity = id;
	o.deadline_ns = loop_now_ns() + UINT64_C(60000000000);
	if (nbd_starttls(server, &o, &ssl, &flags, &err))
		return 4;
	if (nbd_relay_new(l, ssl, client, flags, stop, l, &relay, &err))
		return 5;
	loop_run(l);
	return 0;
}

static void a_confined_relay_passes_on(void)
{
	struct pgr_error err = PGR_ERROR_NONE;
	struct nbd_options o = {.identity = NULL};
	struct tls_identity *id;
	struct nbd_server *server;
	struct tape *tape = tape_new(NULL, SIZE);
	struct block *disk, *b;
	struct loop *l;
	uint64_t state = unit_seed();
	uint8_t *got = malloc(SIZE);
	int to_server[2], to_client[2], status = 0;
	pid_t pid;

	signal(SIGPIPE, SIG_IGN);
	hosts_make_two();
	CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, to_server), 0);
	CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, to_client), 0);
	pid = fork();
	if (!pid) {
		close(to_server[1]);
		close(to_client[1]);
		syscall(SYS_exit_group, relay_child(to_server[0], to_client[0]));
	}
	close(to_server[0]);
	close(to_client[0]);
	CHECK_EQ(loop_create(&l, &err), 0);
	disk = tape_open(tape, l, &(struct tape_options){.seed = 1});
	id = host_load("b");
	o.identity = id;
	CHECK_EQ(nbd_server_create(l, &o, &server, &err), 0);
	CHECK_EQ(nbd_server_export(server, &(struct nbd_export){.name = "x", .disk = disk}, &err),
		 0);
	CHECK_EQ(nbd_server_accept(server, to_server[1], &err), 0);
	CHECK_MSG(!block_open_nbd_socket(l, to_client[1], "it", NULL, &b, &err), "%s", err.text);
	unit_fill_random(&state, contents, SIZE);
	CHECK_EQ(block_write(b, 0, contents, SIZE, 0, &err), 0);
	CHECK_EQ(block_read(b, 0, got, SIZE, &err), 0);
	CHECK_MEM(got, contents, SIZE);
	CHECK_EQ(block_close(b, &err), 0);
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK_EQ(status, 0);
	free(got);
	nbd_server_free(server);
	CHECK_EQ(block_close(disk, &err), 0);
	tape_free(tape);
	tls_identity_free(id);
	loop_free(l);
}

UNIT_MAIN(TEST(a_confined_process_mirrors), TEST(a_confined_relay_passes_on))
