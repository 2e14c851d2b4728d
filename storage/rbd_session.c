// SPDX-License-Identifier: MIT
#include "storage/rbd_session.h"

#include <errno.h>
#include <stddef.h>

/* Seconds that nobody of the cluster answers when it is come to; Ceph's own default is five minutes. */
#define MOUNT_TIMEOUT "60"

static const char *text_or_null(const char *text)
{
	return text[0] ? text : NULL;
}

static int fail_conf(const struct rbd_session *s, int ret, struct pgr_error *err)
{
	const char *conf = s->name.conf[0] ? s->name.conf : "/etc/ceph/ceph.conf";

	return pgr_fail_errno(
		err, ret,
		"the configuration of Ceph, %s, cannot be read; say ?conf=PATH behind the disk's name if it is another file",
		conf);
}

static int come_to_cluster(struct rbd_session *s, struct pgr_error *err)
{
	const struct rbd_library *lib = s->lib;
	int ret = lib->rados_create(&s->cluster, text_or_null(s->name.id));

	if (ret) {
		s->cluster = NULL;
		return pgr_fail_errno(err, ret, "Ceph's library cannot be used");
	}
	ret = lib->rados_conf_set(s->cluster, "client_mount_timeout", MOUNT_TIMEOUT);
	if (!ret)
		ret = lib->rados_conf_read_file(s->cluster, text_or_null(s->name.conf));
	if (ret)
		return fail_conf(s, ret, err);
	ret = lib->rados_connect(s->cluster);
	if (ret)
		return pgr_fail_errno(
			err, ret,
			"the Ceph cluster cannot be reached as client.%s; `ceph -s` with the same configuration says more",
			s->name.id[0] ? s->name.id : "admin");
	return 0;
}

int rbd_session_begin(struct rbd_session *s, struct pgr_error *err)
{
	int ret;

	s->cluster = NULL;
	s->pool = NULL;
	s->image = NULL;
	s->lib = rbd_library_get(err);
	if (!s->lib)
		return -ENOPKG;
	ret = come_to_cluster(s, err);
	if (ret)
		return ret;
	ret = s->lib->rados_ioctx_create(s->cluster, s->name.pool, &s->pool);
	if (ret) {
		s->pool = NULL;
		return pgr_fail_errno(err, ret, "the pool %s of Ceph cannot be used", s->name.pool);
	}
	return 0;
}

int rbd_session_open(struct rbd_session *s, bool read_only, struct pgr_error *err)
{
	const struct rbd_name *n = &s->name;
	const char *snapshot = text_or_null(n->snapshot);
	int ret = read_only ? s->lib->rbd_open_read_only(s->pool, n->image, &s->image, snapshot)
			    : s->lib->rbd_open(s->pool, n->image, &s->image, snapshot);

	if (!ret)
		return 0;
	s->image = NULL;
	if (ret == -ENOENT && !snapshot)
		return pgr_fail(
			err, ret,
			"the pool %s has no image %s; pagurus disk create rbd:%s/%s SIZE makes one",
			n->pool, n->image, n->pool, n->image);
	return pgr_fail_errno(err, ret, "the image %s%s%s in the pool %s cannot be opened",
			      n->image, snapshot ? "@" : "", n->snapshot, n->pool);
}

int rbd_session_lock(struct rbd_session *s, struct pgr_error *err)
{
	uint64_t features = 0;
	int ret = s->lib->rbd_get_features(s->image, &features);

	if (!ret && features & RBD_FEATURE_EXCLUSIVE_LOCK)
		ret = s->lib->rbd_lock_acquire(s->image, RBD_LOCK_MODE_EXCLUSIVE);
	if (ret == -EBUSY || ret == -EROFS || ret == -EAGAIN)
		return pgr_fail(
			err, -EAGAIN,
			"somebody else has its exclusive lock (`rbd lock ls %s/%s`), so it is in use",
			s->name.pool, s->name.image);
	return ret ? pgr_fail_errno(err, ret, "its exclusive lock cannot be had") : 0;
}

int rbd_session_end(struct rbd_session *s)
{
	int ret = s->image ? s->lib->rbd_close(s->image) : 0;

	if (s->pool)
		s->lib->rados_ioctx_destroy(s->pool);
	if (s->cluster)
		s->lib->rados_shutdown(s->cluster);
	s->image = s->pool = s->cluster = NULL;
	return ret;
}
