/* SPDX-License-Identifier: MIT */
/* Names of disks on Ceph: rbd:POOL/IMAGE[@SNAPSHOT][?conf=PATH&id=USER]. Nothing in them is escaped. */
#ifndef PAGURUS_RBD_NAME_H
#define PAGURUS_RBD_NAME_H

#include <limits.h>
#include <stdbool.h>

#include "common/error.h"

#define RBD_NAME_PART 128u

struct rbd_name {
	char pool[RBD_NAME_PART], image[RBD_NAME_PART];
	char snapshot[RBD_NAME_PART]; /* "": none, the disk as it is */
	char conf[PATH_MAX];	      /* "": Ceph's own default, /etc/ceph/ceph.conf */
	char id[RBD_NAME_PART];	      /* "": Ceph's own default, admin */
};

bool rbd_name_is(const char *name);
/* -EINVAL with a sentence. */
int rbd_name_parse(const char *name, struct rbd_name *out, struct pgr_error *err);
/* Whether a snapshot may have that name: -EINVAL with a sentence. */
int rbd_name_check_snapshot(const char *name, struct pgr_error *err);

#endif
