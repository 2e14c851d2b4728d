/* SPDX-License-Identifier: MIT */
/*
 * Channels in clear: sockets, pipes, TCP, files; cancelling, timeouts, dying peers; the bandwidth cap and planned faults.
 *
 * No test looks at how long something took except for "not before" and, where a hang is the failure, for minutes.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "migrate/channel.h"
#include "migrate/channel_fault.h"
#include "migrate/channel_fd.h"
#include "migrate/channel_io.h"
#include "migrate/channel_limit.h"
#include "tests/unit/channel_pump.h"
#include "tests/unit/unit.h"

#define BULK (64u << 20)

static struct pgr_error err;

static struct channel *wrap(int fd, unsigned timeout_ms)
{
	struct channel *c;

	CHECK_MSG(!channel_from_fd(fd, timeout_ms, "test", &c, &err), "%s", err.text);
	return c;
}

static void pair(struct channel *c[2], unsigned timeout_ms)
{
	int fd[2];

	CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd), 0);
	c[0] = wrap(fd[0], timeout_ms);
	c[1] = wrap(fd[1], timeout_ms);
}

static int put(struct channel *c, const void *data, size_t n)
{
	struct iovec iov = {.iov_base = (void *)(uintptr_t)data, .iov_len = n};

	return c->ops->write(c, &iov, 1, &err);
}

static int get(struct channel *c, void *data, size_t n)
{
	return c->ops->read(c, data, n, &err);
}

static void tcp_pair(const char *host, struct channel *c[2])
{
	uint16_t port = 0;
	int fds[4];
	int fd;
	int nr = channel_tcp_listen(host, &port, fds, &err);

	CHECK_MSG(nr == 1, "%d: %s", nr, err.text);
	CHECK_MSG(!channel_tcp_connect(host, port, 10000, -1, &fd, &err), "%s", err.text);
	c[0] = wrap(fd, 60000);
	CHECK_EQ(channel_wait(fds[0], POLLIN, -1, INT64_MAX), 0);
	fd = accept4(fds[0], NULL, NULL, SOCK_CLOEXEC);
	CHECK(fd >= 0);
	c[1] = wrap(fd, 60000);
	close(fds[0]);
}

static void close_both(struct channel *c[2])
{
	c[0]->ops->close(c[0]);
	c[1]->ops->close(c[1]);
}

static void unix_carries_both_directions(void)
{
	struct channel *c[2];

	pair(c, 60000);
	pump_both(c, BULK, 1);
	CHECK_EQ(c[0]->written, BULK);
	CHECK_EQ(c[0]->read, BULK);
	close_both(c);
}

static void tcp_carries_both_directions(void)
{
	struct channel *c[2];

	tcp_pair("127.0.0.1", c);
	pump_both(c, BULK, 2);
	close_both(c);
}

static void tcp_listens_on_both_families(void)
{
	uint16_t port = 0;
	int fds[4];
	int again[4];
	int fd;
	int nr = channel_tcp_listen(NULL, &port, fds, &err);
	uint16_t taken;

	CHECK_MSG(nr >= 1, "%s", err.text);
	CHECK(port != 0);
	CHECK_MSG(!channel_tcp_connect("localhost", port, 10000, -1, &fd, &err), "%s", err.text);
	close(fd);
	taken = port;
	CHECK_EQ(channel_tcp_listen(NULL, &taken, again, &err), -EADDRINUSE);
	CHECK_EQ(taken, port);
	CHECK_HAS(err.text, "choose another port");
	for (int i = 0; i < nr; i++)
		close(fds[i]);
	CHECK_EQ(channel_tcp_connect("127.0.0.1", port, 10000, -1, &fd, &err), -ECONNREFUSED);
	CHECK_EQ(fd, -1);
	CHECK_HAS(err.text, "pagurus daemon");
}

static void tcp_connect_can_be_cancelled(void)
{
	int cancel = eventfd(1, EFD_CLOEXEC);
	uint16_t port = 0;
	int fds[4];
	int fd[64];
	int ret = 0;
	int n = 0;
	int listener = socket(AF_INET, SOCK_STREAM, 0);
	struct sockaddr_storage a;
	socklen_t len = sizeof(a);

	CHECK_EQ(channel_tcp_listen("127.0.0.1", &port, fds, &err), 1);
	/* A listener whose queue is full answers nobody: shrink it and fill it. */
	CHECK_EQ(listen(fds[0], 0), 0);
	CHECK_EQ(getsockname(fds[0], (struct sockaddr *)&a, &len), 0);
	while (n < 64 && !ret) {
		ret = channel_tcp_connect("127.0.0.1", port, 200, -1, &fd[n], &err);
		n += !ret;
	}
	CHECK_EQ(ret, -ETIMEDOUT);
	CHECK_HAS(err.text, "firewall");
	CHECK_EQ(channel_tcp_connect("127.0.0.1", port, CHANNEL_TIMEOUT_NONE, cancel, &fd[n], &err),
		 -ECANCELED);
	while (n > 0)
		close(fd[--n]);
	close(fds[0]);
	close(listener);
	close(cancel);
}

static void tcp_refuses_a_wrong_name(void)
{
	uint16_t port = 1;
	int fds[4];
	int fd;

	CHECK_EQ(channel_tcp_connect("no-such-host.invalid", 1, 60000, -1, &fd, &err),
		 -EADDRNOTAVAIL);
	CHECK_HAS(err.text, "give its address");
	CHECK_EQ(channel_tcp_listen("no-such-host.invalid", &port, fds, &err), -EADDRNOTAVAIL);
}

static void orderly_end_differs_from_a_cut(void)
{
	struct channel *c[2];
	char buf[8];

	pair(c, 60000);
	CHECK_EQ(put(c[0], "abcd", 4), 0);
	c[0]->ops->close(c[0]);
	CHECK_EQ(get(c[1], buf, 0), 0);
	CHECK_EQ(get(c[1], buf, 2), 0);
	CHECK_EQ(get(c[1], buf, 3), -EPIPE);
	CHECK_HAS(err.text, "after 2 of 3");
	CHECK_EQ(get(c[1], buf, 1), -ENODATA);
	/* SIGPIPE has its default action here: it would end the test program. */
	CHECK_EQ(put(c[1], "x", 1), -EPIPE);
	c[1]->ops->close(c[1]);
}

/* What is there comes, between least and most; what an exact read had read ahead comes first. */
static void some_bytes_are_read(void)
{
	const struct fault_plan plan = {.kind = FAULT_NONE};
	struct channel *c[2];
	char back[16];
	size_t got;

	pair(c, 60000);
	CHECK_EQ(put(c[0], "0123456789", 10), 0);
	CHECK_EQ(get(c[1], back, 2), 0);
	CHECK_EQ(channel_fd_read_some(c[1], back, 1, 5, &got, &err), 0);
	CHECK_EQ(got, 5);
	CHECK_MEM(back, "23456", 5);
	CHECK_EQ(channel_fd_read_some(c[1], back, 1, 16, &got, &err), 0);
	CHECK_EQ(got, 3);
	CHECK_MEM(back, "789", 3);
	CHECK_EQ(put(c[0], "abc", 3), 0);
	CHECK_EQ(channel_fd_read_some(c[1], back, 3, 3, &got, &err), 0);
	CHECK_EQ(got, 3);
	CHECK_MEM(back, "abc", 3);
	CHECK_EQ(put(c[0], "defgh", 5), 0);
	CHECK_EQ(channel_fd_read_some(c[1], back, 2, 16, &got, &err), 0);
	CHECK_EQ(got, 5);
	CHECK_EQ(c[1]->read, 18);
	/* Another kind gives what is asked for at least. */
	CHECK_EQ(channel_fault_wrap(c[1], &plan, &c[1], &err), 0);
	CHECK_EQ(put(c[0], "ijklm", 5), 0);
	CHECK_EQ(channel_fd_read_some(c[1], back, 2, 16, &got, &err), 0);
	CHECK_EQ(got, 2);
	CHECK_MEM(back, "ij", 2);
	close_both(c);

	pair(c, 60000);
	CHECK_EQ(put(c[0], "x", 1), 0);
	c[0]->ops->close(c[0]);
	CHECK_EQ(channel_fd_read_some(c[1], back, 2, 16, &got, &err), -EPIPE);
	CHECK_HAS(err.text, "after 1 of 2 expected bytes");
	CHECK_EQ(channel_fd_read_some(c[1], back, 2, 16, &got, &err), -ENODATA);
	c[1]->ops->shutdown(c[1]);
	CHECK_EQ(channel_fd_read_some(c[1], back, 2, 16, &got, &err), -ECANCELED);
	c[1]->ops->close(c[1]);
}

static void a_pipe_is_a_channel(void)
{
	static const char text[] = "through a pipe";
	struct channel *r, *w;
	char buf[sizeof(text)];
	int fd[2];

	CHECK_EQ(pipe2(fd, O_CLOEXEC), 0);
	r = wrap(fd[0], 60000);
	w = wrap(fd[1], 200);
	CHECK_EQ(put(w, text, sizeof(text)), 0);
	CHECK_EQ(get(r, buf, sizeof(text)), 0);
	CHECK_STR(buf, text);
	CHECK_EQ(put(w, pump_data(4u << 20), 4u << 20), -ETIMEDOUT);
	r->ops->close(r);
	CHECK_EQ(put(w, "x", 1), -EPIPE);
	CHECK_EQ(w->ops->sync(w, &err), 0);
	w->ops->close(w);
}

static void a_shared_pipe_stays_blocking(void)
{
	struct channel *r;
	int fd[2];
	int mine;

	CHECK_EQ(pipe2(fd, O_CLOEXEC), 0);
	mine = dup(fd[0]);
	r = wrap(fd[0], 60000);
	CHECK_EQ(fcntl(mine, F_GETFL) & O_NONBLOCK, 0);
	r->ops->close(r);
	close(mine);
	close(fd[1]);
}

static void a_full_device_says_so(void)
{
	struct channel *w = wrap(open("/dev/full", O_WRONLY | O_CLOEXEC), 60000);

	CHECK_EQ(put(w, "x", 1), -ENOSPC);
	w->ops->close(w);
}

static void a_file_descriptor_keeps_its_position(void)
{
	FILE *file = tmpfile();
	struct channel *r;
	char buf[4];
	int fd = dup(fileno(file));

	CHECK_EQ(write(fd, "0123456789", 10), 10);
	CHECK_EQ(lseek(fd, 6, SEEK_SET), 6);
	r = wrap(fd, 60000);
	CHECK_EQ(get(r, buf, 4), 0);
	CHECK_MEM(buf, "6789", 4);
	CHECK_EQ(get(r, buf, 1), -ENODATA);
	r->ops->close(r);
	fclose(file);
}

static void what_is_no_stream_is_refused(void)
{
	struct channel *c;

	CHECK_EQ(channel_from_fd(socket(AF_UNIX, SOCK_DGRAM, 0), 0, "d", &c, &err), -EPROTOTYPE);
	CHECK(!c);
	CHECK_EQ(channel_from_fd(-1, 0, "none", &c, &err), -EBADF);
	CHECK(!c);
}

static void too_many_pieces_are_refused(void)
{
	struct iovec iov[17] = {0};
	struct channel *c[2];

	pair(c, 60000);
	CHECK_EQ(c[0]->ops->write(c[0], iov, 17, &err), -EINVAL);
	CHECK_EQ(c[0]->ops->write(c[0], iov, 16, &err), 0);
	close_both(c);
}

static void silence_times_out(void)
{
	struct channel *c[2];
	int64_t before = channel_now_ns();
	char b;

	pair(c, 50);
	CHECK_EQ(get(c[0], &b, 1), -ETIMEDOUT);
	CHECK(channel_now_ns() - before >= 50 * 1000000);
	CHECK_EQ(put(c[0], pump_data(BULK), BULK), -ETIMEDOUT);
	CHECK_HAS(err.text, "no progress");
	close_both(c);
}

/* Bytes that come slower than all at once but faster than the timeout: progress. */
static void *drip(void *arg)
{
	struct channel *c = arg;

	for (int i = 0; i < 8; i++) {
		usleep(40000);
		if (put(c, "x", 1))
			break;
	}
	return NULL;
}

static void slow_progress_is_progress(void)
{
	struct channel *c[2];
	pthread_t t;
	char buf[8];

	/* The eight drips take longer together than the timeout. */
	pair(c, 250);
	CHECK_EQ(pthread_create(&t, NULL, drip, c[1]), 0);
	CHECK_MSG(!get(c[0], buf, 8), "%s", err.text);
	pthread_join(t, NULL);
	CHECK_MEM(buf, "xxxxxxxx", 8);
	close_both(c);
}

static void *blocked_read(void *arg)
{
	struct pgr_error mine;
	struct channel *c = arg;
	char b;

	return (void *)(intptr_t)c->ops->read(c, &b, 1, &mine);
}

static void *blocked_write(void *arg)
{
	struct pgr_error mine;
	struct iovec iov = {.iov_base = pump_data(BULK), .iov_len = BULK};
	struct channel *c = arg;

	return (void *)(intptr_t)c->ops->write(c, &iov, 1, &mine);
}

static void cancel_wakes(struct channel *reader, struct channel *writer)
{
	pthread_t r, w;
	void *ret;

	CHECK_EQ(pthread_create(&r, NULL, blocked_read, reader), 0);
	CHECK_EQ(pthread_create(&w, NULL, blocked_write, writer), 0);
	usleep(50000); /* so that they wait; without it the test is still right */
	reader->ops->shutdown(reader);
	writer->ops->shutdown(writer);
	pthread_join(r, &ret);
	CHECK_EQ((intptr_t)ret, -ECANCELED);
	pthread_join(w, &ret);
	CHECK_EQ((intptr_t)ret, -ECANCELED);
	CHECK_EQ(put(writer, "x", 1), -ECANCELED);
	CHECK_HAS(err.text, "cancelled on this side");
}

static void cancel_wakes_a_socket(void)
{
	struct channel *c[2];
	char b;

	pair(c, CHANNEL_TIMEOUT_NONE);
	cancel_wakes(c[0], c[0]);
	CHECK_EQ(get(c[0], &b, 1), -ECANCELED);
	/* The peer sees what had gone out and then the end. */
	while (!get(c[1], &b, 1))
		;
	CHECK(err.code == -ENODATA || err.code == -ECONNRESET);
	close_both(c);
}

static void cancel_wakes_a_pipe(void)
{
	struct channel *c[4];
	int a[2], b[2];

	CHECK_EQ(pipe2(a, O_CLOEXEC), 0);
	CHECK_EQ(pipe2(b, O_CLOEXEC), 0);
	c[0] = wrap(a[0], CHANNEL_TIMEOUT_NONE);
	c[1] = wrap(a[1], CHANNEL_TIMEOUT_NONE);
	c[2] = wrap(b[0], CHANNEL_TIMEOUT_NONE);
	c[3] = wrap(b[1], CHANNEL_TIMEOUT_NONE);
	cancel_wakes(c[0], c[3]);
	for (int i = 0; i < 4; i++)
		c[i]->ops->close(c[i]);
}

/* A process that reads a little and is killed. */
static void a_killed_peer_is_noticed(void)
{
	struct channel *c[2];
	char buf[100];
	pid_t pid;
	int fd[2];

	CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd), 0);
	pid = fork();
	if (pid == 0) {
		close(fd[0]);
		c[1] = wrap(fd[1], 60000);
		if (get(c[1], buf, sizeof(buf)) || put(c[1], "ab", 2))
			_exit(1);
		raise(SIGKILL);
	}
	close(fd[1]);
	c[0] = wrap(fd[0], 60000);
	CHECK_EQ(put(c[0], buf, sizeof(buf)), 0);
	CHECK_EQ(get(c[0], buf, 1), 0);
	CHECK_EQ(waitpid(pid, NULL, 0), pid);
	CHECK_EQ(get(c[0], buf, 2), -EPIPE);
	CHECK_EQ(put(c[0], buf, 1), -EPIPE);
	CHECK_HAS(err.text, "the other end is gone");
	c[0]->ops->close(c[0]);
}

/* ---- files ---- */

static char folder[64];

static void remove_folder(void)
{
	if (folder[0])
		rmdir(folder);
}

static const char *in_folder(const char *name)
{
	static char path[512];

	if (!folder[0]) {
		strcpy(folder, "/tmp/test_channel.XXXXXX");
		CHECK(mkdtemp(folder));
		atexit(remove_folder);
	}
	snprintf(path, sizeof(path), "%s/%s", folder, name);
	return path;
}

static bool is_there(const char *name)
{
	return access(in_folder(name), F_OK) == 0;
}

static struct channel *create(const char *name, bool overwrite)
{
	struct channel *c;

	CHECK_MSG(!channel_file_create(in_folder(name), overwrite, &c, &err), "%s", err.text);
	return c;
}

static struct channel *open_file(const char *name)
{
	struct channel *c;

	CHECK_MSG(!channel_file_open(in_folder(name), &c, &err), "%s", err.text);
	return c;
}

static void file_appears_only_when_committed(void)
{
	struct iovec iov[3] = {{(void *)"one ", 4}, {NULL, 0}, {(void *)"two", 3}};
	struct channel *c = create("f", false);
	struct stat st;
	char buf[8];

	CHECK_EQ(stat(in_folder("f.partial"), &st), 0);
	CHECK_EQ(st.st_mode & 07777, 0600);
	CHECK_EQ(c->ops->write(c, iov, 3, &err), 0);
	CHECK_EQ(c->ops->sync(c, &err), 0);
	CHECK(!is_there("f"));
	CHECK_EQ(get(c, buf, 1), -EBADF);
	CHECK_MSG(!channel_file_commit(c, &err), "%s", err.text);
	CHECK(is_there("f") && !is_there("f.partial"));
	CHECK_EQ(channel_file_commit(c, &err), -EINVAL);
	CHECK_EQ(c->written, 7);
	c->ops->close(c);
	CHECK(is_there("f"));
	c = open_file("f");
	CHECK_EQ(get(c, buf, 7), 0);
	CHECK_MEM(buf, "one two", 7);
	CHECK_EQ(put(c, "x", 1), -EBADF);
	c->ops->close(c);
	unlink(in_folder("f"));
}

static void file_not_committed_leaves_nothing(void)
{
	struct channel *c = create("g", false);

	CHECK_EQ(put(c, "x", 1), 0);
	CHECK(is_there("g.partial"));
	c->ops->close(c);
	CHECK(!is_there("g") && !is_there("g.partial"));
}

static void file_overwrites_only_when_told(void)
{
	struct channel *c = create("o", false);
	struct channel *d;
	char b;

	/* The name is taken while it is written: the commit must not replace either. */
	CHECK_EQ(close(open(in_folder("o"), O_CREAT | O_WRONLY, 0600)), 0);
	CHECK_EQ(put(c, "1", 1), 0);
	CHECK_EQ(channel_file_commit(c, &err), -EEXIST);
	c->ops->close(c);
	CHECK(is_there("o") && !is_there("o.partial"));
	CHECK_EQ(channel_file_create(in_folder("o"), false, &d, &err), -EEXIST);
	CHECK_HAS(err.text, "allow overwriting");
	CHECK(!d);
	c = create("o", true);
	CHECK_EQ(put(c, "2", 1), 0);
	CHECK_EQ(channel_file_commit(c, &err), 0);
	c->ops->close(c);
	c = open_file("o");
	CHECK_EQ(get(c, &b, 1), 0);
	CHECK_EQ(b, '2');
	c->ops->close(c);
	unlink(in_folder("o"));
	CHECK_EQ(mkdir(in_folder("o"), 0700), 0);
	CHECK_EQ(channel_file_create(in_folder("o"), true, &d, &err), -EINVAL);
	rmdir(in_folder("o"));
}

static void file_has_one_writer(void)
{
	struct channel *c = create("w", false);
	struct channel *d;
	pid_t pid;

	CHECK_EQ(channel_file_create(in_folder("w"), true, &d, &err), -EBUSY);
	CHECK_HAS(err.text, "another process is writing");
	CHECK_EQ(put(c, "x", 1), 0);
	CHECK_EQ(channel_file_commit(c, &err), 0);
	c->ops->close(c);
	unlink(in_folder("w"));
	/* A writer that was killed does not stop the next one. */
	pid = fork();
	if (pid == 0) {
		create("w", false);
		raise(SIGKILL);
	}
	CHECK_EQ(waitpid(pid, NULL, 0), pid);
	CHECK(is_there("w.partial"));
	c = create("w", false);
	c->ops->close(c);
	CHECK(!is_there("w.partial"));
	/* What is no writer's leftover is not touched. */
	CHECK_EQ(symlink("/dev/null", in_folder("w.partial")), 0);
	CHECK(channel_file_create(in_folder("w"), true, &d, &err) < 0);
	CHECK_EQ(unlink(in_folder("w.partial")), 0);
	CHECK_EQ(mkfifo(in_folder("w.partial"), 0600), 0);
	CHECK_EQ(channel_file_create(in_folder("w"), true, &d, &err), -EEXIST);
	CHECK_EQ(unlink(in_folder("w.partial")), 0);
}

static void file_ends_where_it_ends(void)
{
	struct channel *c = create("e", false);
	char *data = pump_data(300000);
	char *back = malloc(300000);
	uint64_t size;
	char b;

	CHECK_EQ(put(c, data, 300000), 0);
	CHECK_EQ(channel_file_seek(c, 0, NULL, &err), -ESPIPE);
	CHECK_EQ(channel_file_commit(c, &err), 0);
	c->ops->close(c);
	c = open_file("e");
	for (size_t at = 0, n = 1; at < 300000; at += n, n = n * 3 % 70001 + 1) {
		if (n > 300000 - at)
			n = 300000 - at;
		CHECK_EQ(get(c, back + at, n), 0);
	}
	CHECK_MEM(back, data, 300000);
	CHECK_EQ(get(c, &b, 1), -ENODATA);
	CHECK_EQ(channel_file_seek(c, 299990, &size, &err), 0);
	CHECK_EQ(size, 300000);
	CHECK_EQ(get(c, back, 20), -EPIPE);
	CHECK_HAS(err.text, "ends at byte 300000 where 10 more");
	CHECK_EQ(channel_file_seek(c, 7, NULL, &err), 0);
	CHECK_EQ(get(c, back, 100), 0);
	CHECK_MEM(back, data + 7, 100);
	CHECK_EQ(channel_file_seek(c, 1u << 30, NULL, &err), 0);
	CHECK_EQ(get(c, &b, 1), -ENODATA);
	CHECK_EQ(channel_file_seek(c, UINT64_MAX, NULL, &err), -EINVAL);
	c->ops->shutdown(c);
	CHECK_EQ(get(c, &b, 1), -ECANCELED);
	c->ops->close(c);
	unlink(in_folder("e"));
	free(back);
}

static void file_names_may_be_odd(void)
{
	static const char *const names[] = {" ",   "-rf",     "a\nb",	     "\x1b[31m", "%s%n",
					    "ü ✓", ".hidden", "a;b'\"$(x)`", "x.partial"};
	struct channel *c;
	char longest[256];

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		c = create(names[i], false);
		for (const char *p = c->peer; *p; p++)
			CHECK((unsigned char)*p >= 0x20);
		CHECK_EQ(channel_file_commit(c, &err), 0);
		c->ops->close(c);
		CHECK(is_there(names[i]));
		c = open_file(names[i]);
		c->ops->close(c);
		CHECK_EQ(unlink(in_folder(names[i])), 0);
	}
	memset(longest, 'n', sizeof(longest) - 1);
	longest[sizeof(longest) - 1] = '\0';
	CHECK_EQ(channel_file_create(in_folder(longest), false, &c, &err), -ENAMETOOLONG);
	CHECK_EQ(channel_file_create(in_folder(""), false, &c, &err), -EISDIR);
	CHECK_EQ(channel_file_create(in_folder(".."), false, &c, &err), -EISDIR);
	CHECK_EQ(channel_file_create(in_folder("no/such"), false, &c, &err), -ENOENT);
	CHECK_HAS(err.text, "folder");
	CHECK_EQ(channel_file_open(in_folder("none"), &c, &err), -ENOENT);
	CHECK_EQ(channel_file_open("/dev/null", &c, &err), -EINVAL);
	CHECK_EQ(channel_file_open("/tmp", &c, &err), -EINVAL);
	CHECK_EQ(mkfifo(in_folder("fifo"), 0600), 0);
	CHECK_EQ(channel_file_open(in_folder("fifo"), &c, &err), -EINVAL);
	CHECK_EQ(unlink(in_folder("fifo")), 0);
}

/* The limit on file size raises SIGXFSZ, whose default action would end the test program. */
static void file_size_limit_says_so(void)
{
	struct rlimit old, limit;
	struct channel *c = create("l", false);
	int ret;

	CHECK_EQ(getrlimit(RLIMIT_FSIZE, &old), 0);
	limit = old;
	limit.rlim_cur = 1 << 20;
	CHECK_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
	ret = put(c, pump_data(2u << 20), 2u << 20);
	CHECK_EQ(setrlimit(RLIMIT_FSIZE, &old), 0);
	CHECK_EQ(ret, -EFBIG);
	CHECK_HAS(err.text, "no room");
	c->ops->close(c);
	CHECK(!is_there("l.partial"));
}

static void file_system_full_says_so(void)
{
	struct channel *c;

	CHECK_EQ(mkdir(in_folder("mnt"), 0700), 0);
	CHECK_MSG(!mount("test", in_folder("mnt"), "tmpfs", 0, "size=1m"), "mount: %s",
		  strerror(errno));
	c = create("mnt/full", false);
	CHECK_EQ(put(c, pump_data(2u << 20), 2u << 20), -ENOSPC);
	CHECK_HAS(err.text, "free space");
	c->ops->close(c);
	CHECK(!is_there("mnt/full.partial"));
	CHECK_EQ(umount(in_folder("mnt")), 0);
	CHECK_EQ(rmdir(in_folder("mnt")), 0);
	CHECK_EQ(rmdir(folder), 0);
	folder[0] = '\0';
}

/* ---- memory ---- */

static void no_memory_is_an_error_at_every_allocation(void)
{
	struct channel *c;

	for (unsigned long n = 1; n <= 2; n++) {
		int fd[2];

		CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd), 0);
		unit_fail_alloc(n);
		CHECK_EQ(channel_from_fd(fd[0], 0, "m", &c, &err), -ENOMEM);
		CHECK_EQ(fcntl(fd[0], F_GETFD), -1);
		unit_fail_alloc(n);
		CHECK_EQ(channel_file_open("/proc/self/exe", &c, &err), -ENOMEM);
		close(fd[1]);
	}
	unit_fail_alloc(1);
	CHECK_EQ(channel_file_create(in_folder("m"), false, &c, &err), -ENOMEM);
	unit_fail_alloc(0);
	CHECK(!is_there("m.partial"));
	CHECK_EQ(rmdir(folder), 0);
	folder[0] = '\0';
}

/* ---- the bandwidth cap ---- */

#define LIMIT_RATE  (4u << 20)
#define LIMIT_BURST (64u << 10)
#define LIMIT_TAKE  (16u << 10)

static void *take_some(void *arg)
{
	for (int i = 0; i < 16; i++)
		rate_limit_take(arg, LIMIT_TAKE, -1);
	return NULL;
}

static void limit_holds_over_threads(void)
{
	struct rate_limit *l;
	pthread_t t[4];
	int64_t before;
	double least;

	CHECK_EQ(rate_limit_new(LIMIT_RATE, LIMIT_BURST, &l), 0);
	before = channel_now_ns();
	for (int i = 0; i < 4; i++)
		CHECK_EQ(pthread_create(&t[i], NULL, take_some, l), 0);
	for (int i = 0; i < 4; i++)
		pthread_join(t[i], NULL);
	/* One mebibyte, less the burst and the one take that may leave the bucket in debt. */
	least = (64.0 * LIMIT_TAKE - LIMIT_BURST - LIMIT_TAKE) / LIMIT_RATE;
	CHECK((double)(channel_now_ns() - before) / 1e9 >= least);
	rate_limit_free(l);
}

static void limit_can_be_cancelled_and_changed(void)
{
	int cancel = eventfd(1, EFD_CLOEXEC);
	struct rate_limit *l;

	CHECK_EQ(rate_limit_take(NULL, UINT64_MAX, -1), 0);
	CHECK_EQ(rate_limit_new(RATE_UNLIMITED, 0, &l), 0);
	CHECK_EQ(rate_limit_take(l, UINT64_MAX, cancel), 0);
	rate_limit_set(l, 1, 1);
	/* The first leaves a debt of an hour, which a higher rate pays at once. */
	CHECK_EQ(rate_limit_take(l, 3600, cancel), 0);
	CHECK_EQ(rate_limit_take(l, 1, cancel), -ECANCELED);
	rate_limit_set(l, 1000000, 0);
	CHECK_EQ(rate_limit_take(l, 1000000, -1), 0);
	rate_limit_set(l, 1, 1);
	CHECK_EQ(rate_limit_take(l, 1, cancel), -ECANCELED);
	rate_limit_set(l, RATE_UNLIMITED, 0);
	CHECK_EQ(rate_limit_take(l, 1, cancel), 0);
	rate_limit_free(l);
	rate_limit_free(NULL);
	close(cancel);
}

/* ---- planned faults ---- */

static struct channel *with_fault(struct channel *inner, const char *text)
{
	struct fault_plan plan;
	struct channel *c;

	CHECK_MSG(!channel_fault_parse(text, &plan, &err), "%s", err.text);
	CHECK_EQ(channel_fault_wrap(inner, &plan, &c, &err), 0);
	return c;
}

/* Send eight bytes twice through the fault, on the side that the text says; what the receiver has then, in got. */
static void fault_run(const char *text, int ret[2], char got[17])
{
	bool reading = !strncmp(text, "read", 4);
	struct channel *c[2];

	memset(got, 0, 17);
	pair(c, 60000);
	c[reading] = with_fault(c[reading], text);
	for (int i = 0; i < 2; i++) {
		ret[i] = put(c[0], i ? "ijklmnop" : "abcdefgh", 8);
		if (reading)
			ret[i] = get(c[1], got + strlen(got), 8);
	}
	CHECK_EQ(channel_fault_fired(c[reading]), strcmp(text, "none") != 0);
	if (!reading) {
		c[0]->ops->close(c[0]);
		for (char *p = got; !get(c[1], p, 1); p++)
			;
		c[1]->ops->close(c[1]);
	} else {
		close_both(c);
	}
}

static void faults_strike_where_planned(void)
{
	static const struct {
		const char *text, *got;
		int ret[2];
	} table[] = {
		{"none", "abcdefghijklmnop", {0, 0}},
		{"write-fail@call:1", "ijklmnop", {-EIO, 0}},
		{"write-cut@call:2", "abcdefgh", {0, -ECONNRESET}},
		{"write-cut@call:1", "", {-ECONNRESET, -ECONNRESET}},
		{"write-short@call:2", "abcdefghijkl", {0, -EPIPE}},
		{"write-short@byte:3", "abc", {-EPIPE, -ECONNRESET}},
		{"write-flip@byte:9", "abcdefghikklmnop", {0, 0}},
		{"write-flip@call:1", "`bcdefghijklmnop", {0, 0}},
		{"write-drop@byte:6", "abcdefijklmnop", {0, 0}},
		{"read-fail@call:1", "abcdefgh", {-EIO, 0}},
		{"read-cut@byte:8", "abcdefgh", {0, -ECONNRESET}},
		{"read-short@byte:10", "abcdefghij", {0, -EPIPE}},
		{"read-flip@byte:1", "accdefghijklmnop", {0, 0}},
	};

	for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
		int ret[2];
		char got[17];

		fault_run(table[i].text, ret, got);
		CHECK_MSG(ret[0] == table[i].ret[0] && ret[1] == table[i].ret[1],
			  "%s: returned %d and %d", table[i].text, ret[0], ret[1]);
		CHECK_MSG(!strcmp(got, table[i].got), "%s: got \"%s\"", table[i].text, got);
	}
}

static void fault_names_are_checked(void)
{
	static const char *const bad[] = {"",
					  "write",
					  "write-flip",
					  "write-flip@byte",
					  "write-flip@byte:",
					  "write-flip@byte:x",
					  "write-flip@byte:1x",
					  "write-flip@call:0",
					  "read-drop@call:1",
					  "write-none@call:1",
					  "-flip@byte:1",
					  "write-flip@byte:99999999999999999999",
					  "writes-flip@byte:1"};
	struct fault_plan plan;

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		CHECK_MSG(channel_fault_parse(bad[i], &plan, &err) == -EINVAL, "\"%s\" taken",
			  bad[i]);
		CHECK_EQ(plan.kind, FAULT_NONE);
	}
}

UNIT_MAIN(TEST(unix_carries_both_directions), TEST(tcp_carries_both_directions),
	  TEST(tcp_listens_on_both_families), TEST(tcp_connect_can_be_cancelled),
	  TEST(tcp_refuses_a_wrong_name), TEST(orderly_end_differs_from_a_cut),
	  TEST(some_bytes_are_read), TEST(a_pipe_is_a_channel), TEST(a_shared_pipe_stays_blocking),
	  TEST(a_full_device_says_so), TEST(a_file_descriptor_keeps_its_position),
	  TEST(what_is_no_stream_is_refused), TEST(too_many_pieces_are_refused),
	  TEST(silence_times_out), TEST(slow_progress_is_progress), TEST(cancel_wakes_a_socket),
	  TEST(cancel_wakes_a_pipe), TEST(a_killed_peer_is_noticed),
	  TEST(file_appears_only_when_committed), TEST(file_not_committed_leaves_nothing),
	  TEST(file_overwrites_only_when_told), TEST(file_has_one_writer),
	  TEST(file_ends_where_it_ends), TEST(file_names_may_be_odd), TEST(file_size_limit_says_so),
	  TEST(file_system_full_says_so), TEST(no_memory_is_an_error_at_every_allocation),
	  TEST(limit_holds_over_threads), TEST(limit_can_be_cancelled_and_changed),
	  TEST(faults_strike_where_planned), TEST(fault_names_are_checked))
