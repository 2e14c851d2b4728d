/* SPDX-License-Identifier: MIT */
/* The commands of LVM2, and the volumes of a group as its reports have them. Everything here blocks: offload.h. */
#ifndef PAGURUS_LVM_COMMAND_H
#define PAGURUS_LVM_COMMAND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "storage/lvm_name.h"

struct lvm_volume {
	char name[LVM_NAME], origin[LVM_NAME], pool[LVM_NAME];
	char of[LVM_NAME]; /* the disk whose snapshot it is, by its tag; "": it has none */
	uint64_t size;	   /* of the volume; of a classic snapshot the room for what changes */
	uint64_t origin_size;
	double filled; /* per cent; negative: unknown */
	int64_t made;  /* seconds since 1970 */
	bool open, merging, invalid;
};

struct lvm_group {
	struct lvm_volume *list;
	unsigned nr;
};

/* A command with its arguments, NULL last. -ENOPKG (LVM2 is not installed), -EIO with its last words. */
int lvm_run_words(struct pgr_error *err, const char *const *words);
#define lvm_run(err, ...) lvm_run_words(err, (const char *const[]){__VA_ARGS__, NULL})
/* All volumes of the group. To be freed also on failure. */
int lvm_load(const char *group, struct lvm_group *out, struct pgr_error *err);
void lvm_free(struct lvm_group *g);
/* NULL: there is none of that name. */
const struct lvm_volume *lvm_volume_of(const struct lvm_group *g, const char *name);

#endif
