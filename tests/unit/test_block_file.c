// SPDX-License-Identifier: MIT
/*
 * Files and devices as disks, on the real thing.
 *
 * BLOCK_TEST_DIR: the folder to work in, by default /var/tmp; tests/storage/test_file_systems runs this on several file systems.
 * BLOCK_TEST_FULL: that folder may be filled up. BLOCK_TEST_DEVICE: a block device whose contents may go.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "storage/block.h"
#include "tests/unit/unit.h"

#define SIZE (4u << 20)

static struct loop *loop;
static struct block *disk;
static struct pgr_error err;
static char folder[256], path[300], other[300];

static void setup(void)
{
	const char *where = getenv("BLOCK_TEST_DIR");

	err = PGR_ERROR_NONE;
	snprintf(folder, sizeof(folder), "%s/block-test-XXXXXX", where ? where : "/var/tmp");
	CHECK(mkdtemp(folder));
	snprintf(path, sizeof(path), "%s/disk", folder);
	snprintf(other, sizeof(other), "%s/other", folder);
	CHECK_EQ(loop_create(&loop, NULL), 0);
}

static void teardown(void)
{
	CHECK_EQ(block_close(disk, &err), 0);
	disk = NULL;
	loop_free(loop);
	unlink(path);
	unlink(other);
	CHECK_EQ(rmdir(folder), 0); /* nothing else was left in it */
}

static void make_file(const char *name, uint64_t size)
{
	int fd = open(name, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);

	CHECK(fd >= 0 && ftruncate(fd, (off_t)size) == 0);
	close(fd);
}

static void must_open(const struct block_options *o)
{
	int ret = block_open_file(loop, path, o, &disk, &err);

	CHECK_MSG(ret == 0, "%s", err.text);
}

static void compare_with_file(const uint8_t *model, size_t size)
{
	uint8_t *back = malloc(size + 1);
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	CHECK(back && fd >= 0);
	CHECK_EQ(pread(fd, back, size + 1, 0), size);
	CHECK_MEM(back, model, size);
	close(fd);
	free(back);
}

/* ---- contents ---- */

static void model_test(const struct block_options *o, uint64_t size)
{
	uint64_t random = unit_seed();
	uint8_t *model = calloc(1, size), *data = malloc(size + 64);

	must_open(o);
	CHECK_EQ(block_info(disk)->size, size);
	for (int i = 0; i < 400; i++) {
		uint64_t offset = unit_below(&random, size),
			 length = 1 + unit_below(&random, 70000);
		bool aligned = unit_below(&random, 2);
		uint8_t *from = data + unit_below(&random, 2) * 33;

		if (aligned) {
			offset &= ~4095ull;
			length = (length + 4095) & ~4095ull;
		}
		if (offset + length > size)
			length = size - offset;
		switch (unit_below(&random, 8)) {
		case 0:
			CHECK_EQ(block_zero(disk, offset, length,
					    unit_below(&random, 2) ? BLOCK_UNMAP : 0, &err),
				 0);
			memset(model + offset, 0, length);
			break;
		case 1:
			CHECK_EQ(block_flush(disk, &err), 0);
			break;
		case 2:
		case 3:
			CHECK_EQ(block_read(disk, offset, from, length, &err), 0);
			CHECK_MEM(from, model + offset, length);
			break;
		default:
			unit_fill_random(&random, from, length);
			CHECK_EQ(block_write(disk, offset, from, length,
					     unit_below(&random, 4) ? 0 : BLOCK_FUA, &err),
				 0);
			memcpy(model + offset, from, length);
		}
		if (i % 100 == 99) {
			CHECK_EQ(block_close(disk, &err), 0);
			must_open(o);
		}
	}
	compare_with_file(model, size);
	free(model);
	free(data);
}

static void holds_what_was_written(void)
{
	setup();
	make_file(path, SIZE);
	model_test(NULL, SIZE);
	teardown();
}

static void holds_it_through_the_page_cache(void)
{
	const struct block_options o = {.cached = true};

	setup();
	make_file(path, SIZE);
	model_test(&o, SIZE);
	CHECK_EQ(block_info(disk)->block_size, 512);
	teardown();
}

static void sizes_that_are_no_multiple(void)
{
	setup();
	make_file(path, 100001);
	model_test(NULL, 100001);
	CHECK_HAS(block_info(disk)->note, "page cache");
	teardown();
}

static void blocks_of_4096(void)
{
	const struct block_options o = {.block_size = 4096}, wrong = {.block_size = 1024};

	setup();
	make_file(path, SIZE);
	CHECK_EQ(block_open_file(loop, path, &wrong, &disk, &err), -EINVAL);
	must_open(&o);
	CHECK_EQ(block_info(disk)->block_size, 4096);
	teardown();
}

/* The file of an image format: longer with what is written, zeros beyond. */
static void a_file_that_grows(void)
{
	const struct block_options o = {.grows = true};
	static uint8_t data[10000], back[20000], zeros[10000];
	struct stat st;

	setup();
	make_file(path, 700);
	memset(data, 9, sizeof(data));
	must_open(&o);
	CHECK_EQ(block_read(disk, 0, back, 20000, &err), 0);
	CHECK_MEM(back, zeros, 10000);
	CHECK_EQ(block_write(disk, 12345, data, 10000, 0, &err), 0);
	CHECK(block_info(disk)->size >= 22345);
	CHECK_EQ(block_read(disk, 12000, back, 20000, &err), 0);
	CHECK_MEM(back, zeros, 345);
	CHECK_MEM(back + 345, data, 10000);
	CHECK_MEM(back + 10345, zeros, 9655);
	CHECK_EQ(block_zero(disk, 65536, 65536, 0, &err), 0);
	CHECK(stat(path, &st) == 0 && st.st_size == 131072);
	CHECK_EQ(block_info(disk)->size, 131072);
	teardown();
}

/* ---- many at once ---- */

static unsigned finished, failures;

static void count(struct block_request *r, const struct pgr_error *e)
{
	(void)r;
	finished++;
	failures += e != NULL;
}

static void hundreds_at_once(void)
{
	static struct block_request r[600];
	static struct iovec iov[600][2];
	uint8_t *data = aligned_alloc(4096, 600 * 4096), *back = malloc(600 * 4096);
	uint64_t random = 11;

	setup();
	make_file(path, SIZE);
	must_open(NULL);
	unit_fill_random(&random, data, 600 * 4096);
	finished = failures = 0;
	for (unsigned i = 0; i < 600; i++) {
		iov[i][0] = (struct iovec){.iov_base = data + i * 4096, .iov_len = 1024};
		iov[i][1] = (struct iovec){.iov_base = data + i * 4096 + 1024, .iov_len = 3072};
		r[i] = (struct block_request){.op = BLOCK_WRITE,
					      .offset = i * 4096,
					      .length = 4096,
					      .iov = iov[i],
					      .nr_iov = 2,
					      .done = count};
		block_submit(disk, &r[i]);
	}
	while (finished < 600)
		loop_turn(loop, true);
	CHECK_EQ(failures, 0);
	CHECK_EQ(block_read(disk, 0, back, 600 * 4096, &err), 0);
	CHECK_MEM(back, data, 600 * 4096);
	teardown();
	free(data);
	free(back);
}

/* More pieces of memory than go to the kernel at once. */
static void a_request_in_a_thousand_pieces(void)
{
	static struct iovec iov[1024];
	struct block_request r = {.op = BLOCK_WRITE,
				  .offset = 4096,
				  .length = 1024 * 512,
				  .iov = iov,
				  .nr_iov = 1024,
				  .done = count};
	uint8_t *data = aligned_alloc(4096, 1024 * 1024), *back = malloc(1024 * 512);

	setup();
	make_file(path, SIZE);
	must_open(NULL);
	for (unsigned i = 0; i < 1024; i++) {
		iov[i] = (struct iovec){.iov_base = data + i * 1024, .iov_len = 512};
		memset(data + i * 1024, (int)i, 512);
	}
	finished = failures = 0;
	block_submit(disk, &r);
	while (!finished)
		loop_turn(loop, true);
	CHECK_EQ(failures, 0);
	CHECK_EQ(block_read(disk, 4096, back, 1024 * 512, &err), 0);
	for (unsigned i = 0; i < 1024 * 512; i++)
		CHECK_EQ(back[i], i / 512 % 256);
	teardown();
	free(data);
	free(back);
}

/* ---- space ---- */

static uint64_t bytes_with(uint32_t flags)
{
	uint64_t at = 0, sum = 0;

	while (at < SIZE) {
		struct block_extent e;

		CHECK_EQ(block_status(disk, at, SIZE - at, &e, &err), 0);
		CHECK(e.length > 0 && e.length <= SIZE - at);
		CHECK(!(e.flags & BLOCK_EXTENT_AT) || e.at == at);
		if ((e.flags & flags) == flags)
			sum += e.length;
		at += e.length;
	}
	return sum;
}

static bool punches_holes(void)
{
	return block_info(disk)->can_discard && !strstr(folder, "ramfs");
}

static void holes_come_and_go(void)
{
	static struct block_extent extent[8];
	struct block_request r = {.op = BLOCK_STATUS,
				  .length = SIZE,
				  .extents = extent,
				  .nr_extents = 8,
				  .done = count};
	uint8_t *data = malloc(1u << 20);

	setup();
	memset(data, 1, 1u << 20);
	make_file(path, SIZE);
	must_open(NULL);
	CHECK_EQ(block_write(disk, 1u << 20, data, 1u << 20, 0, &err), 0);
	CHECK_EQ(block_flush(disk, &err), 0);
	CHECK_EQ(block_discard(disk, 1u << 20, 1u << 19, &err), 0);
	if (punches_holes()) {
		CHECK_EQ(bytes_with(BLOCK_EXTENT_DATA), 1u << 19);
		CHECK_EQ(bytes_with(BLOCK_EXTENT_ZERO), SIZE - (1u << 19));
		finished = 0;
		block_submit(disk, &r);
		while (!finished)
			loop_turn(loop, true);
		CHECK_EQ(r.nr_extents, 3);
		CHECK_EQ(extent[0].length, (1u << 20) + (1u << 19));
		CHECK(extent[1].flags & BLOCK_EXTENT_DATA);
		CHECK_EQ(block_zero(disk, 0, SIZE, BLOCK_UNMAP, &err), 0);
		CHECK_EQ(bytes_with(BLOCK_EXTENT_DATA), 0);
	}
	CHECK_EQ(block_zero(disk, 0, SIZE, 0, &err), 0);
	CHECK_EQ(block_read(disk, 1u << 20, data, 1u << 20, &err), 0);
	for (unsigned i = 0; i < 1u << 20; i++)
		CHECK(data[i] == 0);
	teardown();
	free(data);
}

static void another_size(void)
{
	uint8_t data[512] = {5};

	setup();
	make_file(path, SIZE);
	must_open(NULL);
	CHECK_EQ(block_write(disk, SIZE - 512, data, 512, 0, &err), 0);
	CHECK_EQ(block_resize(disk, 2 * SIZE, &err), 0);
	CHECK_EQ(block_info(disk)->size, 2 * SIZE);
	CHECK_EQ(block_write(disk, 2 * SIZE - 512, data, 512, 0, &err), 0);
	CHECK_EQ(block_resize(disk, SIZE - 4096, &err), 0);
	CHECK_EQ(block_resize(disk, SIZE, &err), 0);
	CHECK_EQ(block_read(disk, SIZE - 512, data, 512, &err), 0);
	CHECK_EQ(data[0], 0);
	if (block_info(disk)->note[0] == '\0')
		CHECK_EQ(block_resize(disk, SIZE + 1, &err), -EINVAL);
	teardown();
}

/* The file system is full: the request fails, nothing is lost, and when there is room it succeeds. */
static void a_full_file_system(void)
{
	static uint8_t data[1u << 20], back[1u << 20];
	uint64_t at = 0;
	int ret = 0;

	CHECK_EQ(sizeof(data), sizeof(back));
	if (!getenv("BLOCK_TEST_FULL"))
		return;
	setup();
	make_file(path, 4ull << 30);
	make_file(other, 0);
	{
		int fd = open(other, O_WRONLY | O_CLOEXEC);

		CHECK(fd >= 0 && posix_fallocate(fd, 0, 8 << 20) == 0);
		close(fd);
	}
	must_open(NULL);
	for (at = 0; at < 4ull << 30; at += 1u << 20) {
		memset(data, (int)(at >> 20) + 1, 1u << 20);
		ret = block_write(disk, at, data, 1u << 20, 0, &err);
		if (ret)
			break;
	}
	CHECK_EQ(ret, -ENOSPC);
	CHECK_HAS(err.text, "make room and try again");
	CHECK_EQ(truncate(other, 0), 0);
	sync();
	CHECK_EQ(block_write(disk, at, data, 1u << 20, 0, &err), 0);
	CHECK_EQ(block_flush(disk, &err), 0);
	for (uint64_t i = 0; i <= at; i += 1u << 20) {
		CHECK_EQ(block_read(disk, i, back, 1u << 20, &err), 0);
		CHECK_EQ(back[0], (uint8_t)((i >> 20) + 1));
		CHECK_EQ(back[(1u << 20) - 1], (uint8_t)((i >> 20) + 1));
	}
	teardown();
}

/* ---- snapshots ---- */

static void a_snapshot_by_reflink(void)
{
	uint8_t data[4096], back[4096];
	struct block *snapshot;
	int ret;

	setup();
	make_file(path, SIZE);
	must_open(NULL);
	memset(data, 1, sizeof(data));
	CHECK_EQ(block_write(disk, 8192, data, sizeof(data), 0, &err), 0);
	ret = block_snapshot(disk, other, &err);
	if (ret) {
		CHECK_EQ(ret, -EOPNOTSUPP);
		CHECK_HAS(err.text, "overlay");
		CHECK(access(other, F_OK) != 0);
		CHECK(!strstr(folder, "xfs") && !strstr(folder, "btrfs"));
	} else {
		memset(data, 2, sizeof(data));
		CHECK_EQ(block_write(disk, 8192, data, sizeof(data), 0, &err), 0);
		CHECK_EQ(block_open_file(loop, other, NULL, &snapshot, &err), 0);
		CHECK_EQ(block_read(snapshot, 8192, back, sizeof(back), &err), 0);
		CHECK_EQ(back[17], 1);
		CHECK_EQ(block_close(snapshot, &err), 0);
		CHECK_EQ(block_read(disk, 8192, back, sizeof(back), &err), 0);
		CHECK_MEM(back, data, sizeof(data));
		CHECK_EQ(block_snapshot(disk, other, &err), -EEXIST);
	}
	teardown();
}

/* ---- locks and refusals ---- */

/* The kernel may need some milliseconds to be done with a request whose result is there already. */
static void closed_is_unlocked(void)
{
	static uint8_t data[4096];
	struct iovec iov = {.iov_base = data, .iov_len = sizeof(data)};
	struct block_request r[8];

	setup();
	make_file(path, SIZE);
	for (int i = 0; i < 3000; i++) {
		must_open(NULL);
		finished = failures = 0;
		for (unsigned n = 0; n < 8; n++) {
			r[n] = (struct block_request){.op = n % 2 ? BLOCK_FLUSH : BLOCK_READ,
						      .offset = n % 2 ? 0 : n * 4096,
						      .length = n % 2 ? 0 : 4096,
						      .iov = n % 2 ? NULL : &iov,
						      .nr_iov = n % 2 ? 0 : 1,
						      .done = count};
			block_submit(disk, &r[n]);
		}
		while (finished < 8)
			loop_turn(loop, true);
		CHECK_EQ(failures, 0);
		CHECK_EQ(block_close(disk, &err), 0);
	}
	must_open(NULL);
	teardown();
}

static void one_writer_or_many_readers(void)
{
	const struct block_options reading = {.read_only = true},
				   looking = {.read_only = true, .unlocked = true};
	struct block *second;
	uint8_t data[512];

	setup();
	make_file(path, SIZE);
	must_open(NULL);
	CHECK_EQ(block_open_file(loop, path, NULL, &second, &err), -EAGAIN);
	CHECK_HAS(err.text, "in use");
	CHECK_EQ(block_open_file(loop, path, &reading, &second, &err), -EAGAIN);
	CHECK_EQ(block_open_file(loop, path, &looking, &second, &err), 0);
	CHECK_EQ(block_close(second, &err), 0);
	CHECK_EQ(block_close(disk, &err), 0);
	must_open(&reading);
	CHECK_EQ(block_open_file(loop, path, &reading, &second, &err), 0);
	CHECK_EQ(block_write(second, 0, data, 512, 0, &err), -EROFS);
	CHECK_EQ(block_resize(second, 512, &err), -EROFS);
	CHECK_EQ(block_close(second, &err), 0);
	CHECK_EQ(block_open_file(loop, path, NULL, &second, &err), -EAGAIN);
	teardown();
}

static int shell(const char *format, const char *name)
{
	char command[600];
	int status;

	snprintf(command, sizeof(command), format, name);
	status = system(command); /* NOLINT(cert-env33-c): the command is the test's own */
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* Looked at without taking one, which would be in QEMU's way. */
static bool is_locked(void)
{
	struct flock k = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 101, .l_len = 1};
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	CHECK(fd >= 0 && fcntl(fd, F_OFD_GETLK, &k) == 0);
	close(fd);
	return k.l_type != F_UNLCK;
}

static void qemu_respects_our_lock_and_we_its(void)
{
	static const char write_it[] = "qemu-io -f raw -c 'write -q 0 512' %s >/dev/null 2>&1";
	static const char read_it[] = "qemu-io -r -f raw -c 'read -q 0 512' %s >/dev/null 2>&1";
	const struct block_options reading = {.read_only = true};
	FILE *qemu;
	char command[600];

	setup();
	make_file(path, SIZE);
	if (shell(write_it, path) == 127) {
		CHECK(true); /* without qemu-io */
		teardown();
		return;
	}
	must_open(NULL);
	CHECK_EQ(shell(write_it, path), 1);
	CHECK_EQ(block_close(disk, &err), 0);
	must_open(&reading);
	CHECK_EQ(shell(write_it, path), 1);
	CHECK_EQ(shell(read_it, path), 0);
	CHECK_EQ(block_close(disk, &err), 0);
	disk = NULL;
	CHECK_EQ(shell(write_it, path), 0);
	snprintf(command, sizeof(command), "qemu-io -f raw %s >/dev/null", path);
	qemu = popen(command, "we"); /* NOLINT(cert-env33-c) */
	CHECK(qemu);
	for (unsigned i = 0; !is_locked(); i++) {
		CHECK(i < 6000);
		usleep(10000);
	}
	CHECK_EQ(block_open_file(loop, path, NULL, &disk, &err), -EAGAIN);
	disk = NULL;
	pclose(qemu);
	teardown();
}

static void what_is_no_disk_is_refused(void)
{
	setup();
	CHECK_EQ(block_open_file(loop, path, NULL, &disk, &err), -ENOENT);
	CHECK_HAS(err.text, path);
	CHECK_EQ(block_open_file(loop, folder, NULL, &disk, &err), -EISDIR);
	CHECK_EQ(mkfifo(path, 0600), 0);
	CHECK_EQ(block_open_file(loop, path, NULL, &disk, &err), -EINVAL);
	CHECK_EQ(block_open_file(loop, "/dev/null", NULL, &disk, &err), -EINVAL);
	disk = NULL;
	teardown();
}

/* ---- a device ---- */

static void a_device(void)
{
	const char *device = getenv("BLOCK_TEST_DEVICE");
	static uint8_t data[1u << 20], back[1u << 20];
	uint64_t random = 4, size;

	CHECK_EQ(sizeof(data), sizeof(back));
	if (!device)
		return;
	setup();
	unit_fill_random(&random, data, 1u << 20);
	CHECK_MSG(block_open_file(loop, device, NULL, &disk, &err) == 0, "%s", err.text);
	size = block_info(disk)->size;
	CHECK(size > 4u << 20);
	CHECK(!block_info(disk)->can_snapshot);
	CHECK_EQ(block_write(disk, 1000, data, 1000000, 0, &err), 0);
	CHECK_EQ(block_read(disk, 1000, back, 1000000, &err), 0);
	CHECK_MEM(back, data, 1000000);
	CHECK_EQ(block_zero(disk, 4096, 1u << 19, BLOCK_FUA | BLOCK_UNMAP, &err), 0);
	CHECK_EQ(block_read(disk, 0, back, 1u << 20, &err), 0);
	for (unsigned i = 4096; i < 4096 + (1u << 19); i++)
		CHECK(back[i] == 0);
	CHECK_MEM(back + 1000, data, 3096);
	CHECK_EQ(block_discard(disk, 0, size, &err), 0);
	CHECK_EQ(block_flush(disk, &err), 0);
	CHECK_EQ(block_resize(disk, size, &err), 0);
	CHECK_EQ(block_resize(disk, size + 4096, &err), -EPERM);
	CHECK_EQ(block_info(disk)->size, size);
	CHECK_EQ(block_write(disk, size - 512, data, 513, 0, &err), -ERANGE);
	teardown();
}

UNIT_MAIN(TEST(holds_what_was_written), TEST(holds_it_through_the_page_cache),
	  TEST(sizes_that_are_no_multiple), TEST(blocks_of_4096), TEST(a_file_that_grows),
	  TEST(hundreds_at_once), TEST(a_request_in_a_thousand_pieces), TEST(holes_come_and_go),
	  TEST(another_size), TEST(a_full_file_system), TEST(a_snapshot_by_reflink),
	  TEST(closed_is_unlocked), TEST(one_writer_or_many_readers),
	  TEST(qemu_respects_our_lock_and_we_its), TEST(what_is_no_disk_is_refused), TEST(a_device))
