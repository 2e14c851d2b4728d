// SPDX-License-Identifier: MIT
/*
 * Writing qcow2 images: random requests, many at a time, against a model; after each run the image is checked by our own checker and by qemu-img,
 * which has to read the same.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "storage/block_qcow2.h"
#include "storage/fiber.h"
#include "storage/qcow2_check.h"
#include "tests/unit/in_folder.h"
#include "tests/unit/unit.h"

#define MIB	(1u << 20)
#define AT_ONCE 24u
#define LARGEST (20u * MIB)
#define LONGEST (192u << 10)

static struct loop *loop;
static struct block *disk;
static struct pgr_error err;
static char folder[64], path[128];
static uint8_t *model;
static uint64_t size, seed;

/* In memory: sectors of 4096 bytes, larger than the smallest clusters; on a disk they mostly have 512. */
static void setup(bool in_memory)
{
	err = PGR_ERROR_NONE;
	disk = NULL;
	seed = unit_seed();
	snprintf(folder, sizeof(folder), "%s/qcow2-test-XXXXXX",
		 in_memory ? "/dev/shm" : "/var/tmp");
	CHECK(mkdtemp(folder));
	snprintf(path, sizeof(path), "%s/image", folder);
	CHECK_EQ(loop_create(&loop, NULL), 0);
}

static void teardown(void)
{
	CHECK_EQ(block_close(disk, &err), 0);
	loop_free(loop);
	free(model);
	model = NULL;
	CHECK_EQ(in_folder(folder, "rm -rf %s", folder), 0);
}

static void must_open(bool read_only)
{
	const struct block_options o = {.read_only = read_only};
	int ret = block_open_qcow2(loop, path, &o, &disk, &err);

	CHECK_MSG(ret == 0, "%s", err.text);
	size = block_info(disk)->size;
}

static void must_close(void)
{
	CHECK_MSG(block_close(disk, &err) == 0, "%s", err.text);
	disk = NULL;
}

/* The model is what the disk reads as now. */
static void load_model(void)
{
	free(model);
	model = malloc(LARGEST + LONGEST);
	for (uint64_t at = 0; at < size; at += MIB)
		CHECK_EQ(block_read(disk, at, model + at, size - at < MIB ? size - at : MIB, &err),
			 0);
}

static void compare(void)
{
	uint8_t *data = malloc(MIB);

	CHECK_EQ(block_info(disk)->size, size);
	for (uint64_t at = 0; at < size; at += MIB) {
		uint64_t n = size - at < MIB ? size - at : MIB;

		CHECK_EQ(block_read(disk, at, data, n, &err), 0);
		for (uint64_t i = 0; i < n; i++)
			if (data[i] != model[at + i])
				CHECK_MSG(false, "byte %llu is %u, not %u",
					  (unsigned long long)(at + i), data[i], model[at + i]);
	}
	free(data);
}

static void found(void *ctx, const char *sentence)
{
	(void)ctx;
	printf("# %s\n", sentence);
}

static struct qcow2_check check_file(bool repair)
{
	const struct block_options o = {.read_only = !repair, .grows = true};
	struct qcow2_check c = {.repair = repair, .found = found};
	struct block *file;

	CHECK_EQ(block_open_file(loop, path, &o, &file, &err), 0);
	CHECK_MSG(qcow2_check(file, &c, &err) == 0, "%s", err.text);
	CHECK_EQ(block_close(file, &err), 0);
	return c;
}

/* The closed image is sound, and qemu-img reads the model in it. */
static void must_be_sound(void)
{
	struct qcow2_check c = check_file(false);
	char full[256];
	FILE *f;

	CHECK_EQ(c.damages, 0);
	CHECK_EQ(c.leaks, 0);
	CHECK_MSG(in_folder(folder, "qemu-img check -f qcow2 image") == 0, "qemu-img check");
	snprintf(full, sizeof(full), "%s/model", folder);
	f = fopen(full, "w");
	CHECK(f && fwrite(model, 1, size, f) == size && fclose(f) == 0);
	CHECK_MSG(in_folder(folder, "qemu-img compare -f raw -F qcow2 model image") == 0,
		  "qemu-img compare");
}

/* ---- random requests at the same time ---- */

struct job {
	struct block_request r;
	struct iovec iov;
	uint8_t *data;
	bool busy;
};

static struct job jobs[AT_ONCE];
static unsigned busy;

static void job_done(struct block_request *r, const struct pgr_error *e)
{
	struct job *j = (struct job *)r;

	if (e)
		CHECK_MSG(false, "%s", e->text);
	j->busy = false;
	busy--;
}

static bool is_free(uint64_t offset, uint64_t length)
{
	for (unsigned i = 0; i < AT_ONCE; i++)
		if (jobs[i].busy && offset < jobs[i].r.offset + jobs[i].r.length &&
		    jobs[i].r.offset < offset + length)
			return false;
	return true;
}

static void start(struct job *j, unsigned unit)
{
	uint64_t random = unit_below(&seed, 100);
	uint64_t longest = unit_below(&seed, 4) ? 20000 : LONGEST;
	uint64_t length = 1 + unit_below(&seed, longest), offset = unit_below(&seed, size);

	offset -= offset % unit;
	length += unit - length % unit;
	if (length > size - offset)
		length = size - offset;
	if (random >= 97)
		offset = length = 0;
	else if (!is_free(offset, length))
		return;
	j->r = (struct block_request){.op = random < 70	  ? BLOCK_WRITE
					    : random < 80 ? BLOCK_ZERO
					    : random < 90 ? BLOCK_DISCARD
					    : random < 97 ? BLOCK_READ
							  : BLOCK_FLUSH,
				      .flags = random & 1 ? BLOCK_UNMAP : 0,
				      .offset = offset,
				      .length = length,
				      .iov = &j->iov,
				      .nr_iov = 1,
				      .done = job_done};
	if (!j->data)
		j->data = malloc(LONGEST + 4096);
	j->iov = (struct iovec){.iov_base = j->data, .iov_len = length};
	unit_fill_random(&seed, j->data, length < 64 ? length : 64);
	for (uint64_t i = 64; i < length; i++)
		j->data[i] = (uint8_t)(j->data[i % 64] + i / 64);
	if (j->r.op == BLOCK_WRITE)
		memcpy(model + offset, j->data, length);
	if (j->r.op == BLOCK_ZERO)
		memset(model + offset, 0, length);
	j->busy = true;
	busy++;
	block_submit(disk, &j->r);
	/* What it leaves is read afterwards. */
	if (j->r.op == BLOCK_DISCARD) {
		while (j->busy)
			loop_turn(loop, true);
		CHECK_EQ(block_read(disk, offset, j->data, length, &err), 0);
		for (uint64_t i = 0; i < length; i++)
			CHECK(j->data[i] == 0 || j->data[i] == model[offset + i]);
		memcpy(model + offset, j->data, length);
	}
}

static void run(unsigned requests, unsigned unit)
{
	for (unsigned i = 0; i < requests; i++) {
		struct job *j = &jobs[i % AT_ONCE];

		while (j->busy)
			loop_turn(loop, true);
		start(j, unit);
	}
	while (busy)
		loop_turn(loop, true);
}

static void exercise(unsigned unit)
{
	must_open(false);
	load_model();
	run(150, unit);
	compare();
	must_close();
	must_be_sound();
	must_open(false);
	run(100, unit);
	compare();
	must_close();
	must_be_sound();
}

static void images_of_all_kinds(void)
{
	static const char *const options[] = {
		"compat=0.10",
		"compat=1.1",
		"cluster_size=512",
		"cluster_size=4k",
		"cluster_size=2M",
		"lazy_refcounts=on",
		"refcount_bits=1",
		"refcount_bits=2,cluster_size=4k",
		"refcount_bits=64,cluster_size=4k",
		"preallocation=metadata",
		"preallocation=full",
		"compression_type=zstd",
	};

	setup(true);
	if (in_folder_has_qemu(folder))
		for (unsigned i = 0; i < sizeof(options) / sizeof(options[0]); i++) {
			printf("# %s\n", options[i]);
			CHECK_EQ(in_folder(folder, "qemu-img create -f qcow2 -o %s image 8M",
					   options[i]),
				 0);
			exercise(i & 1 ? 512 : 1);
		}
	teardown();
}

/* Over raw and qcow2 files, shorter, longer, with other clusters. */
static void over_backing_files(void)
{
	static const char *const make[] = {
		"qemu-img create -f qcow2 -b base -F qcow2 image",
		"qemu-img create -f qcow2 -o cluster_size=4k -b base -F qcow2 image 12M",
		"qemu-img create -f qcow2 -o compat=0.10 -b raw -F raw image 9M",
		"qemu-img create -f qcow2 -o cluster_size=512 -b raw -F raw image 3000000",
		"qemu-img create -f qcow2 -o cluster_size=2M -b base -F qcow2 image 16M",
		"qemu-img create -f qcow2 -b base -F qcow2 middle && qemu-io -c 'write -q -P 9 1M 1M' middle && qemu-img create -f qcow2 -b middle -F qcow2 image",
	};

	setup(true);
	if (in_folder_has_qemu(folder)) {
		CHECK_EQ(
			in_folder(
				folder,
				"qemu-img create -f qcow2 base 8M && qemu-io -f qcow2 -c 'write -q -P 1 0 3000k' -c 'write -q -z 1M 300k' -c 'write -q -P 2 5M 2M' base && "
				"qemu-img convert -O raw base raw && qemu-img convert -c -O qcow2 base packed"),
			0);
		for (unsigned i = 0; i < sizeof(make) / sizeof(make[0]); i++) {
			printf("# %s\n", make[i]);
			CHECK_EQ(in_folder(folder, "%s", make[i]), 0);
			exercise(i & 1 ? 1 : 512);
		}
		/* Packed clusters, which share clusters of the file with each other. */
		CHECK_EQ(in_folder(folder, "cp packed image"), 0);
		exercise(512);
	}
	teardown();
}

/* What qemu-img has snapshots of stays as it was; what it kept bitmaps of is void. */
static void snapshots_and_bitmaps_inside(void)
{
	setup(false);
	if (in_folder_has_qemu(folder)) {
		CHECK_EQ(
			in_folder(
				folder,
				"qemu-img create -f qcow2 -o cluster_size=4k image 8M && qemu-io -f qcow2 -c 'write -q -P 1 0 6M' image && "
				"qemu-img snapshot -c one image && qemu-io -f qcow2 -c 'write -q -P 2 1M 1M' image && qemu-img snapshot -c two image && "
				"qemu-img convert -l one -O raw image one && qemu-img convert -l two -O raw image two"),
			0);
		exercise(512);
		CHECK_EQ(
			in_folder(
				folder,
				"qemu-img convert -l one -O raw image one.now && qemu-img convert -l two -O raw image two.now && cmp one one.now && cmp two two.now"),
			0);
		CHECK_EQ(
			in_folder(
				folder,
				"qemu-img snapshot -d one image && qemu-img snapshot -a two image"),
			0);
		exercise(512);
		CHECK_EQ(
			in_folder(
				folder,
				"qemu-img create -f qcow2 image 8M && qemu-img bitmap --add image b0 && qemu-io -c 'write -q 0 1M' image"),
			0);
		must_open(false);
		CHECK_STR(block_info(disk)->note, "");
		load_model();
		CHECK_EQ(block_write(disk, 0, "x", 1, 0, &err), 0);
		must_close();
		CHECK_EQ(
			in_folder(
				folder,
				"qemu-img check image && qemu-img info image | grep -q b0 && ! qemu-img info image | grep -q in-use"),
			0);
		CHECK_EQ(check_file(true).damages, 0);
		CHECK_EQ(in_folder(folder, "qemu-img check image"), 0);
	}
	teardown();
}

static void growing_and_shrinking(void)
{
	static const char *const options[] = {"compat=0.10,cluster_size=512", "cluster_size=512",
					      "cluster_size=4k", "compat=1.1"};

	setup(true);
	for (unsigned i = 0;
	     in_folder_has_qemu(folder) && i < 2 * sizeof(options) / sizeof(options[0]); i++) {
		const char *o = options[i / 2];
		static const uint64_t sizes[] = {5000000, 5000192, 20u * MIB, 3u * MIB, 8u * MIB};

		CHECK_EQ(
			in_folder(
				folder,
				"rm -f image; qemu-img create -f raw base 10M && qemu-io -f raw -c 'write -q -P 7 0 10M' base"),
			0);
		CHECK_EQ(in_folder(folder, "qemu-img create -f qcow2 -o %s %s image 4M", o,
				   i & 1 ? "-b base -F raw" : ""),
			 0);
		must_open(false);
		load_model();
		for (unsigned n = 0; n < sizeof(sizes) / sizeof(sizes[0]); n++) {
			run(30, 512);
			if (sizes[n] > size)
				memset(model + size, 0, sizes[n] - size);
			CHECK_MSG(block_resize(disk, sizes[n], &err) == 0, "%s", err.text);
			size = sizes[n];
			compare();
		}
		must_close();
		must_be_sound();
	}
	teardown();
}

/* Layer upon layer while requests are under way; each snapshot holds what the disk held then. */
static void snapshots_of_an_open_disk(void)
{
	uint8_t *then[4];

	setup(false);
	if (in_folder_has_qemu(folder)) {
		CHECK_EQ(
			in_folder(
				folder,
				"qemu-img create -f qcow2 -o cluster_size=4k image 8M && chmod 640 image && mkdir links && ln -s ../image links/link"),
			0);
		snprintf(path, sizeof(path), "%s/links/link", folder);
		must_open(false);
		CHECK(block_info(disk)->can_snapshot);
		load_model();
		for (unsigned i = 0; i < 4; i++) {
			char name[160];

			run(60, 512);
			then[i] = malloc(size);
			memcpy(then[i], model, size);
			snprintf(name, sizeof(name), "%s/s%u", folder, i);
			CHECK_MSG(block_snapshot(disk, name, &err) == 0, "%s", err.text);
			CHECK_HAS(block_info(disk)->name, "link");
			compare();
			CHECK_EQ(block_snapshot(disk, name, &err), -EEXIST);
			/* It may be read, and not written, while the disk is in use. */
			CHECK_EQ(in_folder(folder,
					   "qemu-img info s%u && ! qemu-io -c 'write 0 1' s%u", i,
					   i),
				 0);
		}
		run(60, 512);
		compare();
		must_close();
		must_be_sound();
		CHECK_EQ(
			in_folder(
				folder,
				"test $(stat -c %%a image) = 640 && test -L links/link && ls s* | wc -l | grep -qx 4 && qemu-img info --backing-chain image | grep -c '^image:' | grep -qx 5"),
			0);
		for (unsigned i = 0; i < 4; i++) {
			snprintf(path, sizeof(path), "%s/s%u", folder, i);
			memcpy(model, then[i], size);
			free(then[i]);
			must_open(true);
			compare();
			must_close();
			CHECK_EQ(in_folder(folder, "qemu-img check s%u", i), 0);
		}
	}
	teardown();
}

/* What a cut between the two steps leaves is no hindrance; what is somebody's is not touched. */
static void an_unfinished_snapshot(void)
{
	char name[160];

	setup(false);
	if (in_folder_has_qemu(folder)) {
		CHECK_EQ(
			in_folder(
				folder,
				"qemu-img create -f qcow2 image 8M && qemu-img create -f qcow2 -u -b s -F qcow2 x 8M && mv x s && qemu-img create -f qcow2 mine 8M"),
			0);
		must_open(false);
		load_model();
		run(30, 512);
		snprintf(name, sizeof(name), "%s/mine", folder);
		CHECK_EQ(block_snapshot(disk, name, &err), -EEXIST);
		snprintf(name, sizeof(name), "%s/no/s", folder);
		CHECK_EQ(block_snapshot(disk, name, &err), -ENOENT);
		CHECK_EQ(in_folder(folder, "mount -t tmpfs none $(mkdir -p other && echo other)"),
			 0);
		snprintf(name, sizeof(name), "%s/other/s", folder);
		CHECK_EQ(block_snapshot(disk, name, &err), -EXDEV);
		CHECK_HAS(err.text, "same folder");
		CHECK_EQ(in_folder(folder, "test -z \"$(ls other)\"; umount other"), 0);
		snprintf(name, sizeof(name), "%s/s", folder);
		CHECK_MSG(block_snapshot(disk, name, &err) == 0, "%s", err.text);
		run(30, 512);
		compare();
		must_close();
		must_be_sound();
	}
	teardown();
}

/* Every failure of an allocation on the way leaves the disk as it was. */
static void a_snapshot_without_memory(void)
{
	char name[160];
	unsigned n = 1;
	int ret;

	setup(false);
	if (in_folder_has_qemu(folder)) {
		CHECK_EQ(in_folder(folder, "qemu-img create -f qcow2 image 2M"), 0);
		must_open(false);
		load_model();
		for (;; n++) {
			snprintf(name, sizeof(name), "%s/s%u", folder, n);
			run(5, 512);
			CHECK_EQ(block_flush(disk, &err), 0);
			unit_fail_alloc(n);
			ret = block_snapshot(disk, name, &err);
			if (unit_fail_alloc(0) < n)
				break;
			/* A few are no matter of life and death. */
			if (ret) {
				CHECK_MSG(ret == -ENOMEM, "%u: %d: %s", n, ret, err.text);
				CHECK_EQ(in_folder(folder, "test ! -e s%u", n), 0);
			}
			compare();
		}
		CHECK_EQ(ret, 0);
		CHECK(n > 10);
		run(20, 512);
		compare();
		must_close();
		must_be_sound();
	}
	teardown();
}

UNIT_MAIN(TEST(images_of_all_kinds), TEST(over_backing_files), TEST(snapshots_and_bitmaps_inside),
	  TEST(growing_and_shrinking), TEST(snapshots_of_an_open_disk),
	  TEST(an_unfinished_snapshot), TEST(a_snapshot_without_memory))
