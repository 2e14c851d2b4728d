// SPDX-License-Identifier: MIT
/*
 * Disks on Ceph (block_rbd.h) over a library that is an image in memory, answers in a thread of its own and not in the order of the calls, and fails when it
 * is told to. tests/storage/test_ceph has the real one.
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "storage/block_driver.h"
#include "storage/block_rbd.h"
#include "storage/rbd_library.h"
#include "storage/rbd_name.h"
#include "tests/unit/unit.h"

#define SIZE   (6u << 20)
#define OBJECT (1u << 20)
#define NAME   "rbd:pool/web"
#define SNAPS  100

/* ---- the library ---- */

struct one {
	int kind;
	uint64_t offset, length;
	struct iovec iov[128];
	int nr_iov;
	rbd_callback_t over;
	void *ctx;
	ssize_t result;
	struct one *next;
};

static struct {
	pthread_mutex_t lock;
	pthread_cond_t wake;
	pthread_t thread;
	bool ending;
	struct one *pending;
	unsigned held; /* answers that wait for more calls, so that later ones are answered first */
	uint8_t data[SIZE + OBJECT];
	bool there[SIZE / OBJECT + 1];
	uint64_t size, features;
	int lock_says;
	unsigned snaps;
	/* Of everything that is made and has to go. */
	int clusters, pools, images, completions;
	unsigned calls, fail_at; /* the n-th call fails; 0: none */
	int fail_with;
} ceph = {.lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};

static int handle;

static int counted(void)
{
	int ret;

	pthread_mutex_lock(&ceph.lock);
	ret = ++ceph.calls == ceph.fail_at ? ceph.fail_with : 0;
	pthread_mutex_unlock(&ceph.lock);
	return ret;
}

static int made(int *what, void **out)
{
	int ret = counted();

	if (!ret) {
		++*what;
		*out = &handle;
	}
	return ret;
}

static int fake_create(rados_t *out, const char *const id)
{
	CHECK(!id || !strcmp(id, "me"));
	return made(&ceph.clusters, out);
}

static int fake_conf_set(rados_t c, const char *option, const char *value)
{
	(void)c;
	CHECK(!strcmp(option, "client_mount_timeout") && atoi(value) > 0);
	return counted();
}

static int fake_conf_read(rados_t c, const char *path)
{
	(void)c;
	CHECK(!path || !strcmp(path, "/c"));
	return counted();
}

static int fake_connect(rados_t c)
{
	(void)c;
	return counted();
}

static void fake_shutdown(rados_t c)
{
	CHECK(c == &handle && !ceph.pools && !ceph.images);
	ceph.clusters--;
}

static int fake_pool(rados_t c, const char *name, rados_ioctx_t *out)
{
	(void)c;
	CHECK(!strcmp(name, "pool"));
	return made(&ceph.pools, out);
}

static void fake_pool_end(rados_ioctx_t p)
{
	CHECK(p == &handle && !ceph.images);
	ceph.pools--;
}

static int fake_open(rados_ioctx_t p, const char *name, rbd_image_t *out, const char *snapshot)
{
	(void)p;
	(void)snapshot;
	CHECK(!strcmp(name, "web"));
	return made(&ceph.images, out);
}

static int fake_close(rbd_image_t i)
{
	CHECK(i == &handle);
	ceph.images--;
	return counted();
}

static int fake_stat(rbd_image_t i, rbd_image_info_t *out, size_t size)
{
	(void)i;
	CHECK_EQ(size, sizeof(*out));
	out->size = ceph.size;
	out->obj_size = OBJECT;
	return counted();
}

static int fake_features(rbd_image_t i, uint64_t *out)
{
	(void)i;
	*out = ceph.features;
	return counted();
}

static int fake_lock(rbd_image_t i, rbd_lock_mode_t mode)
{
	(void)i;
	CHECK_EQ(mode, RBD_LOCK_MODE_EXCLUSIVE);
	return ceph.lock_says ? ceph.lock_says : counted();
}

static int fake_resize(rbd_image_t i, uint64_t size)
{
	int ret = counted();

	(void)i;
	if (!ret)
		ceph.size = size;
	return ret;
}

static int fake_snap_create(rbd_image_t i, const char *name)
{
	(void)i;
	(void)name;
	return counted();
}

static int fake_rollback(rbd_image_t i, const char *name, librbd_progress_fn_t progress, void *ctx)
{
	(void)i;
	CHECK(!strcmp(name, "s7"));
	progress(1, 2, ctx);
	return counted();
}

/* As the real one: what does not fit is an error, and how many there are. */
static int fake_snap_list(rbd_image_t i, rbd_snap_info_t *out, int *max)
{
	static char names[SNAPS][16];
	int ret = counted();

	(void)i;
	if (ret)
		return ret;
	if (*max < (int)ceph.snaps) {
		*max = (int)ceph.snaps;
		return -ERANGE;
	}
	for (unsigned n = 0; n < ceph.snaps; n++) {
		snprintf(names[n], sizeof(names[n]), "s%u", n);
		out[n] = (rbd_snap_info_t){.id = n, .size = SIZE, .name = names[n]};
	}
	return (int)ceph.snaps;
}

static void fake_snap_list_end(rbd_snap_info_t *list)
{
	CHECK(list);
}

static int fake_timestamp(rbd_image_t i, uint64_t id, struct timespec *out)
{
	(void)i;
	out->tv_sec = (time_t)id + 1000;
	return 0;
}

/* Each object that was written, one after the other; a callback that does not want more ends it with what it said. */
static int fake_diff(rbd_image_t i, const char *from, uint64_t offset, uint64_t length,
		     uint8_t parent, uint8_t whole, int (*found)(uint64_t, size_t, int, void *),
		     void *ctx)
{
	int ret = counted();

	(void)i;
	CHECK(!from && parent == 1 && whole == 1 && offset % OBJECT == 0);
	for (uint64_t at = offset; !ret && at < offset + length; at += OBJECT)
		if (ceph.there[at / OBJECT])
			ret = found(at, at + OBJECT > ceph.size ? (size_t)(ceph.size - at) : OBJECT,
				    1, ctx);
	return ret;
}

/* ---- its requests ---- */

static void do_one(struct one *o)
{
	uint8_t *at = ceph.data + o->offset;

	o->result = counted();
	if (o->result)
		return;
	CHECK(o->offset + o->length <= ceph.size);
	for (uint64_t k = o->offset / OBJECT; o->kind == 'w' && k * OBJECT < o->offset + o->length;
	     k++)
		ceph.there[k] = true;
	for (int i = 0; i < o->nr_iov; i++) {
		if (o->kind == 'r')
			memcpy(o->iov[i].iov_base, at, o->iov[i].iov_len);
		else
			memcpy(at, o->iov[i].iov_base, o->iov[i].iov_len);
		at += o->iov[i].iov_len;
	}
	if (o->kind == 'z')
		memset(at, 0, o->length);
	if (o->kind == 'r')
		o->result = (ssize_t)o->length;
}

static void *answer(void *arg)
{
	(void)arg;
	pthread_mutex_lock(&ceph.lock);
	while (!ceph.ending || ceph.pending) {
		struct one *o = ceph.pending;

		if (!o) {
			pthread_cond_wait(&ceph.wake, &ceph.lock);
			continue;
		}
		/* The newest first. */
		ceph.pending = o->next;
		pthread_mutex_unlock(&ceph.lock);
		do_one(o);
		o->over(o, o->ctx);
		pthread_mutex_lock(&ceph.lock);
	}
	pthread_mutex_unlock(&ceph.lock);
	return NULL;
}

static int fake_completion(void *ctx, rbd_callback_t over, rbd_completion_t *out)
{
	int ret = counted();
	struct one *o = ret ? NULL : calloc(1, sizeof(*o));

	if (ret)
		return ret;
	o->over = over;
	o->ctx = ctx;
	__atomic_add_fetch(&ceph.completions, 1, __ATOMIC_SEQ_CST);
	*out = o;
	return 0;
}

static void fake_release(rbd_completion_t c)
{
	__atomic_sub_fetch(&ceph.completions, 1, __ATOMIC_SEQ_CST);
	free(c);
}

static ssize_t fake_result(rbd_completion_t c)
{
	return ((struct one *)c)->result;
}

static int begin(int kind, uint64_t offset, uint64_t length, const struct iovec *iov, int nr,
		 rbd_completion_t c)
{
	struct one *o = c;
	int ret = counted();

	if (ret)
		return ret;
	o->kind = kind;
	o->offset = offset;
	o->length = length;
	o->nr_iov = nr;
	for (int i = 0; i < nr; i++) {
		o->iov[i] = iov[i];
		o->length += iov[i].iov_len;
	}
	pthread_mutex_lock(&ceph.lock);
	o->next = ceph.pending;
	ceph.pending = o;
	pthread_cond_signal(&ceph.wake);
	pthread_mutex_unlock(&ceph.lock);
	return 0;
}

static int fake_readv(rbd_image_t i, const struct iovec *iov, int nr, uint64_t offset,
		      rbd_completion_t c)
{
	(void)i;
	return begin('r', offset, 0, iov, nr, c);
}

static int fake_writev(rbd_image_t i, const struct iovec *iov, int nr, uint64_t offset,
		       rbd_completion_t c)
{
	(void)i;
	return begin('w', offset, 0, iov, nr, c);
}

static int fake_discard(rbd_image_t i, uint64_t offset, uint64_t length, rbd_completion_t c)
{
	(void)i;
	return begin('z', offset, length, NULL, 0, c);
}

static int fake_zeroes(rbd_image_t i, uint64_t offset, size_t length, rbd_completion_t c, int flags,
		       int op_flags)
{
	(void)i;
	CHECK(!(flags & ~RBD_WRITE_ZEROES_FLAG_THICK_PROVISION) && !op_flags);
	return begin('z', offset, length, NULL, 0, c);
}

static int fake_flush(rbd_image_t i, rbd_completion_t c)
{
	(void)i;
	return begin('f', 0, 0, NULL, 0, c);
}

static int fake_image_create(rados_ioctx_t p, const char *name, uint64_t size,
			     rbd_image_options_t options)
{
	(void)p;
	CHECK(!strcmp(name, "web") && size == SIZE && options == &handle);
	return counted();
}

static void fake_options(rbd_image_options_t *out)
{
	*out = &handle;
}

static void fake_options_end(rbd_image_options_t options)
{
	CHECK(options == &handle);
}

static const struct rbd_library fake = {
	.rados_create = fake_create,
	.rados_conf_set = fake_conf_set,
	.rados_conf_read_file = fake_conf_read,
	.rados_connect = fake_connect,
	.rados_shutdown = fake_shutdown,
	.rados_ioctx_create = fake_pool,
	.rados_ioctx_destroy = fake_pool_end,
	.rbd_create4 = fake_image_create,
	.rbd_image_options_create = fake_options,
	.rbd_image_options_destroy = fake_options_end,
	.rbd_open = fake_open,
	.rbd_open_read_only = fake_open,
	.rbd_close = fake_close,
	.rbd_stat = fake_stat,
	.rbd_get_features = fake_features,
	.rbd_resize = fake_resize,
	.rbd_lock_acquire = fake_lock,
	.rbd_diff_iterate2 = fake_diff,
	.rbd_snap_create = fake_snap_create,
	.rbd_snap_remove = fake_snap_create,
	.rbd_snap_list = fake_snap_list,
	.rbd_snap_list_end = fake_snap_list_end,
	.rbd_snap_get_timestamp = fake_timestamp,
	.rbd_snap_rollback_with_progress = fake_rollback,
	.rbd_aio_create_completion = fake_completion,
	.rbd_aio_get_return_value = fake_result,
	.rbd_aio_release = fake_release,
	.rbd_aio_readv = fake_readv,
	.rbd_aio_writev = fake_writev,
	.rbd_aio_discard = fake_discard,
	.rbd_aio_write_zeroes = fake_zeroes,
	.rbd_aio_flush = fake_flush,
};

/* ---- the frame ---- */

static struct loop *loop;
static struct block *disk;
static struct pgr_error err;

static void fresh(void)
{
	memset(ceph.data, 0, sizeof(ceph.data));
	memset(ceph.there, 0, sizeof(ceph.there));
	ceph.size = SIZE;
	ceph.features = RBD_FEATURES_DEFAULT;
	ceph.lock_says = 0;
	ceph.calls = ceph.fail_at = 0;
	ceph.fail_with = -EIO;
	ceph.ending = false;
	ceph.snaps = 0;
	err = PGR_ERROR_NONE;
	disk = NULL;
	rbd_library_set(&fake);
	CHECK_EQ(pthread_create(&ceph.thread, NULL, answer, NULL), 0);
	CHECK_EQ(loop_create(&loop, NULL), 0);
}

static void over(void)
{
	loop_free(loop);
	pthread_mutex_lock(&ceph.lock);
	ceph.ending = true;
	pthread_cond_signal(&ceph.wake);
	pthread_mutex_unlock(&ceph.lock);
	pthread_join(ceph.thread, NULL);
	rbd_library_set(NULL);
	CHECK_EQ(ceph.clusters, 0);
	CHECK_EQ(ceph.pools, 0);
	CHECK_EQ(ceph.images, 0);
	CHECK_EQ(ceph.completions, 0);
}

static void must_open(const char *name, struct block_options o)
{
	int ret = block_open_rbd(loop, name, &o, &disk, &err);

	CHECK_MSG(!ret, "%s", err.text);
}

/* ---- names ---- */

static void names(void)
{
	static const char *const wrong[] = {"rbd:",
					    "rbd:pool",
					    "rbd:/web",
					    "rbd:pool/",
					    "rbd:pool/a/b",
					    "rbd:pool/web@",
					    "rbd:pool/@snap",
					    "rbd:pool/web@a@b",
					    "rbd:pool/web@a/b",
					    "rbd:pool/web?",
					    "rbd:pool/web?x=y",
					    "rbd:pool/web?conf=",
					    "rbd:pool/web?conf=/c&",
					    "rbd:pool/web?conf=/c&conf=/d",
					    "rbd:pool/web?id=a&id=b",
					    "rbd:pool/we\nb",
					    "rbd:po\x1bol/web",
					    "rbd:pool/web?conf=/\x07",
					    "file:pool/web",
					    "rbd:?conf=/c"};
	struct rbd_name n;
	char many[300] = "rbd:pool/";

	CHECK(rbd_name_is("rbd:x") && !rbd_name_is("/dev/rbd/x") && !rbd_name_is("rbd"));
	for (unsigned i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		err = PGR_ERROR_NONE;
		CHECK_MSG(rbd_name_parse(wrong[i], &n, &err) == -EINVAL, "%s", wrong[i]);
		CHECK_HAS(err.text, "rbd:POOL/IMAGE");
	}
	memset(many + strlen(many), 'x', RBD_NAME_PART);
	CHECK_EQ(rbd_name_parse(many, &n, &err), -EINVAL);
	CHECK_EQ(rbd_name_parse("rbd:pool/web", &n, &err), 0);
	CHECK(!strcmp(n.pool, "pool") && !strcmp(n.image, "web") && !n.snapshot[0] && !n.conf[0] &&
	      !n.id[0]);
	CHECK_EQ(rbd_name_parse("rbd:p/w@s?id=me&conf=/e/c?x", &n, &err), 0);
	CHECK(!strcmp(n.pool, "p") && !strcmp(n.image, "w") && !strcmp(n.snapshot, "s") &&
	      !strcmp(n.conf, "/e/c?x") && !strcmp(n.id, "me"));
	CHECK_EQ(rbd_name_check_snapshot("monday", &err), 0);
	CHECK_EQ(rbd_name_check_snapshot("", &err), -EINVAL);
	CHECK_EQ(rbd_name_check_snapshot("a@b", &err), -EINVAL);
	CHECK_EQ(rbd_name_check_snapshot("a/b", &err), -EINVAL);
	CHECK_EQ(rbd_name_check_snapshot(many, &err), -EINVAL);
}

/* ---- what it does ---- */

static void same_as_a_model(void)
{
	static uint8_t model[SIZE], back[SIZE];
	unsigned seed = 5;

	fresh();
	must_open(NAME "?conf=/c&id=me", (struct block_options){.read_only = false});
	CHECK_EQ(block_info(disk)->size, SIZE);
	for (int i = 0; i < 400; i++) {
		uint64_t at = (uint64_t)rand_r(&seed) % SIZE;
		uint64_t n = (uint64_t)rand_r(&seed) % (i % 7 ? 9000 : SIZE) + 1;

		n = n < SIZE - at ? n : SIZE - at;
		switch (rand_r(&seed) % 4) {
		case 0:
			CHECK_EQ(block_zero(disk, at, n, i & 1 ? BLOCK_UNMAP : 0, &err), 0);
			memset(model + at, 0, n);
			break;
		case 1:
			CHECK_EQ(block_discard(disk, at, n, &err), 0);
			memset(model + at, 0, n);
			break;
		case 2:
			memset(back, i, n);
			CHECK_EQ(block_write(disk, at, back, n, i & 2 ? BLOCK_FUA : 0, &err), 0);
			memset(model + at, i, n);
			break;
		default:
			CHECK_EQ(block_read(disk, at, back, n, &err), 0);
			CHECK_MEM(back, model + at, n);
		}
	}
	CHECK_EQ(block_read(disk, 0, back, SIZE, &err), 0);
	CHECK_MEM(back, model, SIZE);
	CHECK_MEM(ceph.data, model, SIZE);
	CHECK_EQ(block_zero(disk, 0, 512, BLOCK_FAST, &err), -EOPNOTSUPP);
	CHECK_EQ(block_close(disk, &err), 0);
	over();
}

struct many {
	struct block_request r;
	struct iovec iov[300];
	uint8_t data[300][64];
	bool done;
};

static unsigned left;

static void one_done(struct block_request *r, const struct pgr_error *why)
{
	CHECK_MSG(!why, "%s", why ? why->text : "");
	((struct many *)(void *)r)->done = true;
	left--;
}

/* Many at once, in more pieces than one call of librbd gets, and answered in another order. */
static void many_at_once(void)
{
	static struct many list[64];
	static uint8_t back[64 * 300 * 64];

	fresh();
	must_open(NAME, (struct block_options){.read_only = false});
	for (unsigned i = 0; i < 64; i++) {
		list[i] = (struct many){.r = {.op = BLOCK_WRITE,
					      .offset = i * 300 * 64,
					      .length = 300 * 64,
					      .iov = list[i].iov,
					      .nr_iov = 300,
					      .done = one_done}};
		for (unsigned k = 0; k < 300; k++) {
			memset(list[i].data[k], (int)(i * 5 + k), 64);
			list[i].iov[k] = (struct iovec){.iov_base = list[i].data[k], .iov_len = 64};
		}
		left++;
		block_submit(disk, &list[i].r);
	}
	while (left)
		loop_turn(loop, true);
	CHECK_EQ(block_read(disk, 0, back, sizeof(back), &err), 0);
	for (unsigned i = 0; i < 64; i++)
		CHECK_MEM(back + i * 300 * 64, list[i].data, 300 * 64);
	CHECK_EQ(block_close(disk, &err), 0);
	over();
}

static void must_say(uint64_t at, uint64_t length, uint32_t kind, uint64_t want)
{
	struct block_extent e;

	CHECK_EQ(block_status(disk, at, length, &e, &err), 0);
	CHECK_EQ(e.flags, kind | BLOCK_EXTENT_HERE);
	CHECK_EQ(e.length, want);
}

static void what_is_there(void)
{
	fresh();
	ceph.there[1] = ceph.there[2] = ceph.there[5] = true;
	for (int map = 0; map < 2; map++) {
		ceph.features = map ? RBD_FEATURES_DEFAULT : RBD_FEATURE_EXCLUSIVE_LOCK;
		must_open(NAME, (struct block_options){.read_only = true});
		must_say(0, SIZE, BLOCK_EXTENT_ZERO, OBJECT);
		must_say(0, 512, BLOCK_EXTENT_ZERO, 512);
		must_say(OBJECT, SIZE - OBJECT, BLOCK_EXTENT_DATA, 2 * OBJECT);
		must_say(OBJECT + 700, SIZE - OBJECT - 700, BLOCK_EXTENT_DATA, 2 * OBJECT - 700);
		must_say(OBJECT + 700, 100, BLOCK_EXTENT_DATA, 100);
		must_say(3 * OBJECT + 1, SIZE - 3 * OBJECT - 1, BLOCK_EXTENT_ZERO, 2 * OBJECT - 1);
		must_say(5 * OBJECT + 1, OBJECT - 1, BLOCK_EXTENT_DATA, OBJECT - 1);
		CHECK_EQ(block_close(disk, &err), 0);
	}
	over();
}

static void locks_and_refusals(void)
{
	fresh();
	ceph.lock_says = -EROFS;
	CHECK_EQ(block_open_rbd(loop, NAME, NULL, &disk, &err), -EAGAIN);
	CHECK_HAS(err.text, "exclusive lock");
	must_open(NAME, (struct block_options){.read_only = true});
	CHECK_EQ(block_write(disk, 0, "", 1, 0, &err), -EROFS);
	CHECK_EQ(block_close(disk, &err), 0);
	must_open(NAME, (struct block_options){.unlocked = true});
	CHECK_EQ(block_close(disk, &err), 0);
	/* Without the feature nobody is asked, and it is said. */
	ceph.features = 0;
	must_open(NAME, (struct block_options){.read_only = false});
	CHECK_HAS(block_info(disk)->note, "exclusive-lock");
	CHECK_EQ(block_read(disk, SIZE, &(char){0}, 1, &err), -ERANGE);
	CHECK_EQ(block_snapshot(disk, "a@b", &err), -EINVAL);
	CHECK_EQ(block_close(disk, &err), 0);
	err = PGR_ERROR_NONE;
	CHECK_EQ(block_open_rbd(loop, NAME "@old", NULL, &disk, &err), -EROFS);
	ceph.size = BLOCK_SIZE_MAX + 1;
	CHECK_EQ(block_open_rbd(loop, NAME, NULL, &disk, &err), -EFBIG);
	over();
}

static void snapshots(void)
{
	struct snapshot_work w = {.disk = NAME "?conf=/c&id=me"};
	struct snapshots s = {.list = NULL};

	fresh();
	ceph.snaps = SNAPS;
	w.loop = loop;
	CHECK_EQ(block_rbd_snapshots.list(&w, &s, &err), 0);
	CHECK_EQ(s.nr, SNAPS);
	CHECK_EQ(s.size, SIZE);
	CHECK(!strcmp(s.list[7].name, "s7") &&
	      !strcmp(s.list[7].path, "rbd:pool/web@s7?conf=/c&id=me"));
	CHECK_EQ(s.list[7].made, 1007);
	snapshots_free(&s);
	w.name = "s7";
	CHECK_EQ(block_rbd_snapshots.revert(&w, &err), 0);
	free(w.path);
	ceph.lock_says = -EBUSY;
	err = PGR_ERROR_NONE;
	w.path = NULL;
	CHECK_EQ(block_rbd_snapshots.revert(&w, &err), -EAGAIN);
	w.name = "a@b";
	CHECK_EQ(block_rbd_snapshots.remove(&w, &err), -EINVAL);
	over();
}

/* ---- what goes wrong ---- */

/* All that can be done with a disk; the first error. */
static int everything(void)
{
	static uint8_t data[300];
	struct snapshot_work w = {.loop = loop, .disk = NAME};
	struct snapshots s = {.list = NULL};
	struct block_extent e;
	int ret = block_rbd_create(loop, NAME, SIZE, &err), ret2;

	if (ret)
		return ret;
	ret = block_open_rbd(loop, NAME, NULL, &disk, &err);
	if (ret)
		return ret;
	ret = block_write(disk, 1000, data, sizeof(data), 0, &err);
	if (!ret)
		ret = block_read(disk, 1000, data, sizeof(data), &err);
	if (!ret)
		ret = block_zero(disk, 0, 4096, BLOCK_UNMAP, &err);
	if (!ret)
		ret = block_discard(disk, 0, 4096, &err);
	if (!ret)
		ret = block_status(disk, 0, SIZE, &e, &err);
	if (!ret)
		ret = block_snapshot(disk, "monday", &err);
	if (!ret)
		ret = block_resize(disk, SIZE, &err);
	ret2 = block_close(disk, ret ? NULL : &err);
	ret = ret ? ret : ret2;
	if (!ret)
		ret = block_rbd_snapshots.list(&w, &s, &err);
	snapshots_free(&s);
	w.name = "s7";
	if (!ret)
		ret = block_rbd_snapshots.make(&w, &err);
	free(w.path);
	w.path = NULL;
	if (!ret)
		ret = block_rbd_snapshots.revert(&w, &err);
	free(w.path);
	return ret;
}

/* Each call of the library fails once: there is an error with the disk's name, and nothing is left behind. */
static void each_call_fails(void)
{
	static const int codes[] = {-EIO, -ENOENT, -ENOSPC, -ESHUTDOWN, -EROFS};
	unsigned n = 0, failed = 0;
	int ret;

	do {
		fresh();
		ceph.fail_with = codes[n % 5];
		ceph.fail_at = ++n;
		ret = everything();
		if (ret) {
			CHECK_EQ(err.code, ret);
			CHECK_HAS(err.text, NAME);
			failed++;
		}
		over();
	} while (ceph.calls >= n);
	CHECK_EQ(ret, 0);
	CHECK(failed > 40 && failed == n - 1);
}

UNIT_MAIN(TEST(names), TEST(same_as_a_model), TEST(many_at_once), TEST(what_is_there),
	  TEST(locks_and_refusals), TEST(snapshots), TEST(each_call_fails))
