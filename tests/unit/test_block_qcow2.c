// SPDX-License-Identifier: MIT
/*
 * Reading qcow2 images: those that qemu-img makes, in all its usual variants, and those that nobody should have made.
 *
 * What the contents are, qemu-img says as well: each image is compared with what it converts to.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "storage/block_qcow2.h"
#include "storage/fiber.h"
#include "storage/qcow2.h"
#include "tests/storage/tape.h"
#include "tests/unit/in_folder.h"
#include "tests/unit/unit.h"

static struct loop *loop;
static struct block *disk;
static struct pgr_error err;
static char folder[64], path[128];

static void setup(void)
{
	err = PGR_ERROR_NONE;
	disk = NULL;
	snprintf(folder, sizeof(folder), "/var/tmp/qcow2-test-XXXXXX");
	CHECK(mkdtemp(folder));
	snprintf(path, sizeof(path), "%s/image", folder);
	CHECK_EQ(loop_create(&loop, NULL), 0);
}

static void teardown(void)
{
	CHECK_EQ(block_close(disk, &err), 0);
	loop_free(loop);
	CHECK_EQ(in_folder(folder, "rm -rf %s", folder), 0);
}

static void must_open(const char *name)
{
	int ret;

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	ret = block_open_qcow2(loop, path, NULL, &disk, &err);
	CHECK_MSG(ret == 0, "%s", err.text);
}

static void must_not_open(const char *name, int code, const char *part)
{
	struct block *b;

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	CHECK_EQ(block_open_qcow2(loop, path, NULL, &b, &err), code);
	CHECK_HAS(err.text, part);
}

static uint8_t *load(const char *name, uint64_t *size)
{
	struct stat st;
	uint8_t *data;
	char full[256];
	int fd;

	snprintf(full, sizeof(full), "%s/%s", folder, name);
	fd = open(full, O_RDONLY | O_CLOEXEC);
	CHECK(fd >= 0 && fstat(fd, &st) == 0);
	*size = (uint64_t)st.st_size;
	data = malloc(*size + 1);
	CHECK(data && read(fd, data, *size) == st.st_size);
	close(fd);
	return data;
}

/* The image in ./name reads as what qemu-img converts it to, in pieces of all sorts. */
static void compare(const char *name)
{
	uint64_t size, random = unit_seed(), at = 0;
	uint8_t *want, *got;

	CHECK_EQ(in_folder(folder, "qemu-img convert -O raw %s raw", name), 0);
	want = load("raw", &size);
	got = malloc(size);
	must_open(name);
	CHECK_EQ(block_info(disk)->size, size);
	while (at < size) {
		uint64_t n = size - at < 1u << 20 ? size - at : 1u << 20;

		CHECK_MSG(block_read(disk, at, got + at, n, &err) == 0, "%s", err.text);
		at += n;
	}
	CHECK_MEM(got, want, size);
	for (int i = 0; i < 300; i++) {
		uint64_t offset = unit_below(&random, size), n = 1 + unit_below(&random, 100000);

		if (n > size - offset)
			n = size - offset;
		CHECK_EQ(block_read(disk, offset, got, n, &err), 0);
		CHECK_MEM(got, want + offset, n);
	}
	/* What is said to be zeros is, and everything has a status. */
	for (at = 0; at < size;) {
		struct block_extent e;

		CHECK_EQ(block_status(disk, at, size - at, &e, &err), 0);
		CHECK(e.length > 0 && e.length <= size - at);
		if (e.flags & BLOCK_EXTENT_ZERO)
			for (uint64_t i = at; i < at + e.length; i++)
				CHECK(want[i] == 0);
		else
			CHECK(e.flags & BLOCK_EXTENT_DATA);
		at += e.length;
	}
	CHECK_EQ(block_close(disk, &err), 0);
	disk = NULL;
	free(want);
	free(got);
}

/* Data, zeros and holes, also in the middle of clusters. */
static void fill(const char *name)
{
	CHECK_EQ(
		in_folder(
			folder,
			"qemu-io -f qcow2 -c 'write -q -P 1 0 200k' -c 'write -q -P 2 1000k 3000k' -c 'write -q -z 1200k 900k' "
			"-c 'discard -q 3000k 64k' -c 'write -q -P 3 5000512 512' -c 'write -q -P 4 8191k 1k' %s",
			name),
		0);
}

static void images_of_qemu_img(void)
{
	static const char *const options[] = {
		"compat=0.10",
		"compat=1.1",
		"cluster_size=512",
		"cluster_size=4k",
		"cluster_size=2M",
		"lazy_refcounts=on",
		"refcount_bits=1",
		"refcount_bits=64,cluster_size=8k",
		"preallocation=metadata",
		"preallocation=falloc",
		"preallocation=full",
		"compression_type=zstd",
	};

	setup();
	if (in_folder_has_qemu(folder)) {
		for (unsigned i = 0; i < sizeof(options) / sizeof(options[0]); i++) {
			CHECK_EQ(in_folder(folder, "qemu-img create -f qcow2 -o %s image 8M",
					   options[i]),
				 0);
			fill("image");
			compare("image");
			CHECK_EQ(in_folder(folder,
					   "qemu-img convert -c -O qcow2 -o %s image packed",
					   i < 5 || i > 10 ? options[i] : "compat=1.1"),
				 0);
			compare("packed");
		}
	}
	teardown();
}

static void images_with_snapshots_and_bitmaps(void)
{
	setup();
	if (in_folder_has_qemu(folder)) {
		CHECK_EQ(
			in_folder(
				folder,
				"qemu-img create -f qcow2 image 8M && qemu-img bitmap --add image b0"),
			0);
		fill("image");
		CHECK_EQ(
			in_folder(
				folder,
				"qemu-img snapshot -c one image && qemu-io -c 'write -q -P 9 100k 300k' image && qemu-img bitmap --disable image b0"),
			0);
		compare("image");
	}
	teardown();
}

static void sizes_that_are_no_multiple(void)
{
	setup();
	if (in_folder_has_qemu(folder)) {
		CHECK_EQ(
			in_folder(
				folder,
				"qemu-img create -f qcow2 image 100001 && qemu-io -c 'write -q -P 7 0 97k' image"),
			0);
		compare("image");
		CHECK_EQ(in_folder(folder, "qemu-img create -f qcow2 image 0"), 0);
		must_open("image");
		CHECK_EQ(block_info(disk)->size, 0);
		CHECK_EQ(block_read(disk, 0, path, 1, &err), -ERANGE);
	}
	teardown();
}

static void chains(void)
{
	setup();
	if (in_folder_has_qemu(folder)) {
		CHECK_EQ(
			in_folder(
				folder,
				"mkdir below && head -c 3000000 /dev/urandom >below/base && qemu-img create -f qcow2 -b base -F raw below/middle 4M && "
				"qemu-img create -f qcow2 -o cluster_size=4k -b below/middle -F qcow2 top 8M"),
			0);
		compare("top");
		CHECK_EQ(
			in_folder(
				folder,
				"qemu-io -c 'write -q -P 5 1M 100k' -c 'write -q -z 2M 64k' below/middle && qemu-io -c 'write -q -P 6 2900k 300k' top"),
			0);
		compare("top");
		/* From another folder, by an absolute name, by file:, and through a link. */
		CHECK_EQ(
			in_folder(
				folder,
				"qemu-img rebase -u -b $PWD/below/middle -F qcow2 top && ln -s top link"),
			0);
		compare("link");
		CHECK_EQ(in_folder(folder,
				   "qemu-img rebase -u -b file:$PWD/below/middle -F qcow2 top"),
			 0);
		compare("top");
	}
	teardown();
}

static int fiber_result;
static bool fiber_over;

static void use_in_fiber(void *ctx)
{
	uint8_t data[4096] = {0};

	fiber_result = block_open_qcow2(loop, ctx, NULL, &disk, &err);
	if (!fiber_result)
		fiber_result = block_read(disk, 0, data, sizeof(data), &err);
	if (!fiber_result)
		fiber_result = block_close(disk, &err);
	if (!fiber_result && data[4095] != 5)
		fiber_result = -EBADMSG;
	fiber_over = true;
}

/* As deep as is allowed, on the stack of a fiber; one deeper is refused, and one that comes back to itself. */
static void the_deepest_chain(void)
{
	setup();
	if (in_folder_has_qemu(folder)) {
		CHECK_EQ(
			in_folder(
				folder,
				"qemu-img create -f qcow2 i1 1M && qemu-io -c 'write -q -P 5 0 4k' i1 && for i in $(seq 2 65); do "
				"qemu-img create -u -f qcow2 -b i$((i - 1)) -F qcow2 i$i 1M || exit 1; done"),
			0);
		must_not_open("i65", -ELOOP, "more than 64");
		snprintf(path, sizeof(path), "%s/i64", folder);
		fiber_over = false;
		CHECK_EQ(fiber_start(loop, use_in_fiber, path), 0);
		while (!fiber_over)
			loop_turn(loop, true);
		CHECK_MSG(fiber_result == 0, "%s", err.text);
		disk = NULL;
		CHECK_EQ(in_folder(folder, "qemu-img rebase -u -b i9 -F qcow2 i3"), 0);
		must_not_open("i12", -ELOOP, "comes back");
	}
	teardown();
}

static void what_is_not_supported_is_named(void)
{
	static const struct {
		const char *make, *said;
		int code;
	} cases[] = {
		{"qemu-img create -f qcow2 -o data_file=d,data_file_raw=on image 1M",
		 "another file", -EOPNOTSUPP},
		{"qemu-img create -f qcow2 -o extended_l2=on image 1M", "subclusters", -EOPNOTSUPP},
		{"qemu-img create -f qcow2 --object secret,id=s,data=x -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 image 1M",
		 "encrypted", -EOPNOTSUPP},
		{"qemu-img create -f qcow2 image 1M && printf '\\200' | dd of=image bs=1 seek=72 conv=notrunc",
		 "bit 63", -EOPNOTSUPP},
		{"qemu-img create -f qcow2 -u -b nbd://host/x -F raw image 1M", "is no file",
		 -EOPNOTSUPP},
		{"qemu-img create -f qcow2 -u -b missing -F raw image 1M", "missing", -ENOENT},
		{"qemu-img create -f qcow2 -u -b image -F qcow2 x 1M && mv x image", "comes back",
		 -ELOOP},
		{"qemu-img create -f vmdk base 1M && qemu-img create -f qcow2 -b base -F vmdk image",
		 "vmdk", -EOPNOTSUPP},
		{"head -c 70000 /dev/urandom >image", "not a qcow2 image", -EINVAL},
		{": >image", "not a qcow2 image", -EINVAL},
	};

	setup();
	if (in_folder_has_qemu(folder))
		for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
			CHECK_MSG(in_folder(folder, "rm -f image && { %s; }", cases[i].make) == 0,
				  "%s", cases[i].make);
			must_not_open("image", cases[i].code, cases[i].said);
		}
	teardown();
}

/* ---- hostile images ---- */

#define CLUSTER 4096u

static uint8_t *image; /* 5 clusters: header, refcounts (none), first table, second table, data */

static void put64(uint64_t at, uint64_t value)
{
	value = htobe64(value);
	memcpy(image + at, &value, 8);
}

static void put32(uint64_t at, uint32_t value)
{
	value = htobe32(value);
	memcpy(image + at, &value, 4);
}

static void make_image(void)
{
	free(image);
	image = calloc(5, CLUSTER);
	put32(0, QCOW2_MAGIC);
	put32(4, 3);
	put32(20, 12);
	put64(24, 1u << 20);
	put32(36, 1);
	put64(40, 2 * CLUSTER);
	put32(96, 4);
	put32(100, 104);
	put64(2 * CLUSTER, 3 * CLUSTER | 1ull << 63);
	put64(3 * CLUSTER, 4 * CLUSTER | 1ull << 63);
	memset(image + 4 * CLUSTER, 0x5a, CLUSTER);
}

static int open_hostile(struct tape **t)
{
	const struct tape_options o = {.grows = true, .seed = 1};

	*t = tape_new(image, 5 * CLUSTER);
	return block_open_qcow2_over(tape_open(*t, loop, &o), NULL, NULL, &disk, &err);
}

static void hostile_headers(void)
{
	static const struct {
		unsigned at, size;
		uint64_t value;
		const char *said;
	} cases[] = {
		{4, 4, 1, "version 1"},
		{4, 4, 4, "version 4"},
		{8, 8, 200, ""},
		{20, 4, 8, "2^8"},
		{20, 4, 22, "2^22"},
		{20, 4, ~0u, "2^"},
		{24, 8, ~0ull, "more than"},
		{24, 8, 1ull << 40, "are needed"},
		{36, 4, 0, "0 entries"},
		{36, 4, ~0u, "entries"},
		{40, 8, 1, "first table"},
		{40, 8, ~0ull - 4095, "first table"},
		{40, 8, 1ull << 40, "first table"},
		{56, 4, ~0u, "reference counts"},
		{96, 4, 7, "2^7 bits"},
		{100, 4, 96, "96 bytes"},
		{100, 4, 108, "108 bytes"},
		{100, 4, 1u << 30, "header of"},
		{72, 8, 8, "says twice"},
		{32, 4, 1, "encrypted"},
	};

	setup();
	for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct tape *t;
		int ret;

		make_image();
		if (cases[i].size == 4)
			put32(cases[i].at, (uint32_t)cases[i].value);
		else
			put64(cases[i].at, cases[i].value);
		put32(16, cases[i].at == 8 ? ~0u : 0);
		ret = open_hostile(&t);
		CHECK_MSG(ret == -EINVAL || ret == -EOPNOTSUPP, "case %u: %d", i, ret);
		CHECK_HAS(err.text, cases[i].said);
		tape_free(t);
	}
	disk = NULL;
	teardown();
}

static void hostile_tables(void)
{
	static const struct {
		unsigned at;
		uint64_t value;
		const char *said; /* NULL: it reads */
	} cases[] = {
		{2 * CLUSTER, 3 * CLUSTER + 512, "not that of a cluster"},
		{2 * CLUSTER, 5 * CLUSTER, "beyond the end"},
		{2 * CLUSTER, 3 * CLUSTER | 1, "reserved"},
		{3 * CLUSTER, 4 * CLUSTER | 2, "reserved"},
		{3 * CLUSTER, 4 * CLUSTER + 512, "not that of a cluster"},
		{3 * CLUSTER, 1ull << 50, "beyond the end"},
		{3 * CLUSTER, QCOW2_COMPRESSED | 1ull << 50, "beyond the end"},
		{3 * CLUSTER, QCOW2_COMPRESSED | 1ull << 63, "one owner"},
		{3 * CLUSTER, QCOW2_COMPRESSED | (4 * CLUSTER), "does not unpack"},
		{3 * CLUSTER,
		 QCOW2_COMPRESSED | (QCOW2_COMPRESSED - (1ull << 58)) | (4 * CLUSTER + 7),
		 "does not unpack"},
		/* The table is its own data: strange, but it can be read. */
		{3 * CLUSTER, 3 * CLUSTER, NULL},
		{3 * CLUSTER, QCOW2_ZERO | 4 * CLUSTER, NULL},
	};
	uint8_t data[CLUSTER];

	setup();
	for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct tape *t;
		int ret;

		make_image();
		put64(cases[i].at, cases[i].value);
		CHECK_EQ(open_hostile(&t), 0);
		ret = block_read(disk, 0, data, CLUSTER, &err);
		CHECK_MSG(ret == (cases[i].said ? -EIO : 0), "case %u: %d", i, ret);
		if (cases[i].said)
			CHECK_HAS(err.text, cases[i].said);
		/* The rest of the disk does not suffer. */
		if (cases[i].at == 3 * CLUSTER)
			CHECK_EQ(block_read(disk, CLUSTER, data, CLUSTER, &err), 0);
		CHECK_EQ(block_close(disk, &err), 0);
		tape_free(t);
	}
	disk = NULL;
	free(image);
	image = NULL;
	teardown();
}

static void every_failure_is_an_error(void)
{
	uint8_t data[CLUSTER];

	setup();
	for (unsigned kind = 0; kind < 2; kind++) {
		for (unsigned n = 1;; n++) {
			struct tape *t;
			int ret;

			make_image();
			t = tape_new(image, 5 * CLUSTER);
			disk = tape_open(t, loop, &(struct tape_options){.grows = true});
			if (kind)
				tape_fail(t, TAPE_READ, n, -EIO);
			else
				unit_fail_alloc(n);
			ret = block_open_qcow2_over(disk, NULL, NULL, &disk, &err);
			if (!ret) {
				ret = block_read(disk, 0, data, CLUSTER, &err);
				unit_fail_alloc(0);
				CHECK_EQ(block_close(disk, NULL), 0);
			}
			unit_fail_alloc(0);
			CHECK_MSG(ret == 0 || ret == (kind ? -EIO : -ENOMEM), "%d", ret);
			if (ret)
				CHECK(err.text[0] != '\0');
			else
				CHECK_EQ(data[17], 0x5a);
			tape_free(t);
			if (!ret)
				break;
			CHECK(n < 50);
		}
	}
	disk = NULL;
	free(image);
	image = NULL;
	teardown();
}

UNIT_MAIN(TEST(images_of_qemu_img), TEST(images_with_snapshots_and_bitmaps),
	  TEST(sizes_that_are_no_multiple), TEST(chains), TEST(the_deepest_chain),
	  TEST(what_is_not_supported_is_named), TEST(hostile_headers), TEST(hostile_tables),
	  TEST(every_failure_is_an_error))
