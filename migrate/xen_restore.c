// SPDX-License-Identifier: MIT
#include "migrate/xen_restore.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "migrate/xen_save_helper.h"

/* How long libxl may take for a step in which it only has to answer. */
#define ANSWER_MS 300000

/*
 * libxl's stream, version 2 (docs/specs/libxl-migration-stream of Xen): a header in network order,
 * then records.
 */
struct libxl_header {
	uint64_t ident;
	uint32_t version;
	uint32_t options;
};
_Static_assert(sizeof(struct libxl_header) == 16, "libxl stream");
#define LIBXL_IDENT 0x4c6962786c466d74ull /* "LibxlFmt" */
struct libxl_record {
	uint32_t type;
	uint32_t length;
};
_Static_assert(sizeof(struct libxl_record) == 8, "libxl stream");
#define LIBXL_END	    0u
#define LIBXL_LIBXC_CONTEXT 1u

/* Messages from a save helper to libxl 4.17. */
#define MESSAGE_STATIC_DATA_DONE 8u
#define MESSAGE_RESTORE_RESULTS	 9u
#define MESSAGE_COMPLETE	 10u
/* What a stream without the records would lack: libxl then applies what the configuration says. */
#define MISSING_CPUID 1u
#define MISSING_MSR   2u

struct xen_restore {
	struct xen_toolstack *tools;
	libxl_domain_config *config;
	pthread_t thread;
	bool threaded;
	int stream[2]; /* ours, libxl's */
	int done;      /* eventfd: libxl returned */
	int to_libxl, from_libxl;
	int rc; /* of libxl, valid when done */
	uint32_t domid;
};

static void *run_libxl(void *arg)
{
	struct xen_restore *r = arg;
	libxl_domain_restore_params params;
	uint64_t one = 1;

	libxl_domain_restore_params_init(&params);
	params.stream_version = 2;
	r->rc = libxl_domain_create_restore(xen_toolstack_ctx(r->tools), r->config, &r->domid,
					    r->stream[1], -1, &params, NULL, NULL);
	libxl_domain_restore_params_dispose(&params);
	if (write(r->done, &one, sizeof(one)) != sizeof(one))
		abort();
	return NULL;
}

/* Wait until fd can be read. -ECONNABORTED: libxl gave up before. */
static int wait_readable(struct xen_restore *r, int fd)
{
	struct pollfd p[2] = {{.fd = fd, .events = POLLIN}, {.fd = r->done, .events = POLLIN}};
	int n;

	do
		n = poll(p, 2, ANSWER_MS);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	if (!n)
		return -ETIMEDOUT;
	/* Both: what was said before the end still counts. */
	return p[0].revents & POLLIN ? 0 : -ECONNABORTED;
}

/* A step with libxl failed with rc; say what libxl thinks when it is the one that failed. */
static int step_failed(struct xen_restore *r, int rc, struct pgr_error *err, const char *what)
{
	if (rc != -ECONNABORTED)
		return pgr_fail_errno(err, rc, "%s", what);
	pthread_join(r->thread, NULL);
	r->threaded = false;
	rc = xen_toolstack_failed(r->tools, r->rc, err, "%s", what);
	return rc ? rc : pgr_fail(err, -EIO, "%s: libxl ended too early", what);
}

static int send_stream(struct xen_restore *r, const void *data, size_t length)
{
	ssize_t n = send(r->stream[0], data, length, MSG_NOSIGNAL);

	if (n < 0)
		return -errno;
	return (size_t)n == length ? 0 : -EPIPE;
}

static int send_opening(struct xen_restore *r)
{
	const struct {
		struct libxl_header head;
		struct libxl_record memory;
	} opening = {
		.head = {.ident = htobe64(LIBXL_IDENT), .version = htobe32(2)},
		.memory = {.type = LIBXL_LIBXC_CONTEXT},
	};

	return send_stream(r, &opening, sizeof(opening));
}

static int take_descriptors(struct xen_restore *r, struct msghdr *m)
{
	struct cmsghdr *c = CMSG_FIRSTHDR(m);
	int fds[2];

	if (!c || c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS ||
	    c->cmsg_len != CMSG_LEN(sizeof(fds)) || (m->msg_flags & MSG_CTRUNC))
		return -EPROTO;
	memcpy(fds, CMSG_DATA(c), sizeof(fds));
	r->from_libxl = fds[0];
	r->to_libxl = fds[1];
	return 0;
}

static int receive_hello(struct xen_restore *r, struct xen_helper_hello *hello)
{
	union {
		struct cmsghdr align;
		char room[CMSG_SPACE(2 * sizeof(int))];
	} control;
	struct iovec iov = {.iov_base = hello, .iov_len = sizeof(*hello)};
	struct msghdr m = {.msg_iov = &iov,
			   .msg_iovlen = 1,
			   .msg_control = control.room,
			   .msg_controllen = sizeof(control.room)};
	ssize_t n;
	int rc = wait_readable(r, r->stream[0]);

	if (rc)
		return rc;
	n = recvmsg(r->stream[0], &m, MSG_CMSG_CLOEXEC);
	if (n < 0)
		return -errno;
	rc = take_descriptors(r, &m);
	if (rc)
		return rc;
	if (n != sizeof(*hello) || hello->magic != XEN_HELPER_MAGIC)
		return -EPROTO;
	/* Other callbacks: another libxl, whose messages have other numbers. */
	if (hello->callbacks != XEN_HELPER_CALLBACKS || hello->stream)
		return -EPROTONOSUPPORT;
	return 0;
}

/* One message to libxl; one write, so that libxl never sees half of it. */
static int tell(struct xen_restore *r, uint16_t message, const void *fields, uint16_t length)
{
	uint16_t head[2] = {(uint16_t)(length + sizeof(message)), message};
	struct iovec iov[2] = {{.iov_base = head, .iov_len = sizeof(head)},
			       {.iov_base = (void *)(uintptr_t)fields, .iov_len = length}};
	ssize_t n;

	do
		n = writev(r->to_libxl, iov, 2);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return errno == EPIPE ? -ECONNABORTED : -errno;
	return (size_t)n == sizeof(head) + length ? 0 : -EPIPE;
}

static int ask(struct xen_restore *r, uint16_t message, const void *fields, uint16_t length)
{
	int32_t reply = 0;
	ssize_t n;
	int rc = tell(r, message, fields, length);

	if (!rc)
		rc = wait_readable(r, r->from_libxl);
	if (rc)
		return rc;
	n = read(r->from_libxl, &reply, sizeof(reply));
	if (n != sizeof(reply))
		return n < 0 ? -errno : -ECONNABORTED;
	return reply ? -ECONNABORTED : 0;
}

static int start(struct xen_restore *r, struct pgr_error *err)
{
	int rc;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, r->stream))
		return pgr_fail_errno(err, -errno, "no sockets for libxl");
	r->done = eventfd(0, EFD_CLOEXEC);
	if (r->done < 0)
		return pgr_fail_errno(err, -errno, "no event descriptor for libxl");
	/*
	 * libxl looks the helper up when it starts one. In the child this is the program that runs
	 * now, even if its file was replaced.
	 */
	if (setenv("LIBXL_SAVE_HELPER", "/proc/self/exe", 1))
		return pgr_fail_errno(err, -errno, "libxl's save helper cannot be chosen");
	xen_toolstack_begin(r->tools);
	rc = -pthread_create(&r->thread, NULL, run_libxl, r);
	if (rc)
		return pgr_fail_errno(err, rc, "no thread for libxl");
	r->threaded = true;
	return 0;
}

static void close_all(struct xen_restore *r)
{
	const int fds[] = {r->stream[0], r->stream[1], r->done, r->to_libxl, r->from_libxl};

	for (unsigned i = 0; i < sizeof(fds) / sizeof(fds[0]); i++)
		if (fds[i] >= 0)
			close(fds[i]);
	free(r);
}

int xen_restore_begin(struct xen_toolstack *tools, libxl_domain_config *config, bool with_policy,
		      struct xen_restore **out, struct xen_made *made, struct pgr_error *err)
{
	uint32_t missing = with_policy ? 0 : MISSING_CPUID | MISSING_MSR;
	struct xen_helper_hello hello = {0};
	struct xen_restore *r = malloc(sizeof(*r));
	int rc;

	if (!r)
		return pgr_fail(err, -ENOMEM, "no memory for a restore");
	*r = (struct xen_restore){
		.tools = tools,
		.config = config,
		.stream = {-1, -1},
		.done = -1,
		.to_libxl = -1,
		.from_libxl = -1,
	};
	rc = start(r, err);
	if (rc)
		goto fail;
	rc = send_opening(r);
	if (!rc)
		rc = receive_hello(r, &hello);
	if (rc == -EPROTONOSUPPORT) {
		pgr_fail(
			err, rc,
			"libxl wants callbacks %#x of its save helper and this program knows those of 4.17 (%#x): install the build for this release",
			hello.callbacks, XEN_HELPER_CALLBACKS);
		goto fail;
	}
	if (!rc)
		rc = ask(r, MESSAGE_STATIC_DATA_DONE, &missing, sizeof(missing));
	if (rc) {
		rc = step_failed(r, rc, err, "libxl could not make the domain");
		goto fail;
	}
	*made = (struct xen_made){
		.domid = hello.domid,
		.store_port = hello.store_port,
		.store_domid = hello.store_domid,
		.console_port = hello.console_port,
		.console_domid = hello.console_domid,
	};
	*out = r;
	return 0;
fail:
	xen_restore_abort(r);
	return rc;
}

int xen_restore_complete(struct xen_restore *r, uint64_t store_frame, uint64_t console_frame,
			 struct pgr_error *err)
{
	static const char what[] = "libxl could not finish the domain";
	const uint64_t frames[2] = {store_frame, console_frame};
	const int32_t result[2] = {0, 0};
	const struct {
		uint8_t status;
		struct libxl_record end;
	} __attribute__((packed)) last = {.status = 0, .end = {.type = LIBXL_END}};
	int rc;

	rc = tell(r, MESSAGE_RESTORE_RESULTS, frames, sizeof(frames));
	if (!rc)
		rc = ask(r, MESSAGE_COMPLETE, result, sizeof(result));
	if (!rc) {
		/* Closed, so that the helper's end is the end of its output. */
		close(r->to_libxl);
		close(r->from_libxl);
		r->to_libxl = r->from_libxl = -1;
		/* The helper takes the first byte, libxl the rest. */
		rc = send_stream(r, &last, sizeof(last));
	}
	if (rc)
		return step_failed(r, rc, err, what);
	pthread_join(r->thread, NULL);
	r->threaded = false;
	rc = xen_toolstack_failed(r->tools, r->rc, err, "%s", what);
	if (!rc)
		close_all(r);
	return rc;
}

void xen_restore_abort(struct xen_restore *r)
{
	const uint8_t status = 1;

	if (!r)
		return;
	if (r->threaded) {
		if (r->to_libxl >= 0)
			send_stream(r, &status, sizeof(status));
		/* Whoever still reads finds the end. */
		shutdown(r->stream[0], SHUT_RDWR);
		pthread_join(r->thread, NULL);
	}
	close_all(r);
}
