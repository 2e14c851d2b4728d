/* SPDX-License-Identifier: MIT */
/*
 * Reads, writes and syncs of a file through the kernel's asynchronous interface (libaio): one queue a loop, its completions by eventfd.
 *
 * What is asked for in one turn of the loop goes to the kernel in one system call. At most AIO_DEPTH are with the kernel; who comes later
 * waits for a place, first come, first served.
 */
#ifndef PAGURUS_AIO_H
#define PAGURUS_AIO_H

#include <sys/uio.h>

#include "storage/loop.h"

#define AIO_DEPTH   256u
#define AIO_IOV_MAX 1024u /* the kernel's */

enum aio_op { AIO_READ, AIO_WRITE, AIO_SYNC /* of data and what is needed to read it */ };

struct aio_job {
	enum aio_op op;
	int fd;
	bool durable; /* AIO_WRITE: on stable storage before it is over */
	uint64_t offset;
	const struct iovec *iov;
	unsigned nr_iov;
};

/*
 * Do it and wait for it. Bytes that went over, which may be fewer than asked for; or a negative errno: -EINVAL also when the alignment is
 * not the file's, -ENOSYS or -EINVAL for AIO_SYNC where the kernel cannot, -EAGAIN without resources for a queue.
 */
int64_t aio(struct loop *l, const struct aio_job *job);

#endif
