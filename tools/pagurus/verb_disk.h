/* SPDX-License-Identifier: MIT */
/* What the actions of `pagurus disk` share. Each is called with argv[0] its own name and returns the exit status. */
#ifndef PAGURUS_VERB_DISK_H
#define PAGURUS_VERB_DISK_H

#include <jansson.h>

#include "storage/disk.h"

int disk_info(int argc, char **argv);
int disk_map(int argc, char **argv);
int disk_convert(int argc, char **argv);
int disk_export(int argc, char **argv);
int disk_bitmap(int argc, char **argv);
int disk_mirror(int argc, char **argv);
int disk_serve(int argc, char **argv);
int disk_create(int argc, char **argv);
int disk_check(int argc, char **argv);
int disk_resize(int argc, char **argv);
int disk_snapshot(int argc, char **argv);
int disk_list(int argc, char **argv);
int disk_revert(int argc, char **argv);
int disk_commit(int argc, char **argv);
int disk_delete(int argc, char **argv);

/* The error on standard error, or as a JSON object {"type":"error"} on standard output. The exit status: EXIT_CANCELLED for -ECANCELED, else EXIT_FAILED. */
int disk_fail(const struct pgr_error *err, bool json);
/* The names in path's folder are durable when it returns 0. */
int disk_sync_folder(const char *path, struct pgr_error *err);
/* One line of JSON; o is given up. */
void disk_print_json(json_t *o);
/* Loop and disk, for reading; closed by disk_done(). unlocked: also one that is in use. */
int disk_open_to_read(const char *path, const char *format, bool unlocked, struct loop **l,
		      struct block **b, struct pgr_error *err);
/* For writing: nobody else has it meanwhile. The caller closes both. */
int disk_open_to_write(const char *path, const char *format, struct loop **l, struct block **b,
		       struct pgr_error *err);
void disk_done(struct loop *l, struct block *b);

/* Ask the server of a disk that is in use for "info" or "check". As disk_keep_moment(). */
int disk_ask_server(const char *what, const char *disk, json_t **result, struct pgr_error *err);
/*
 * Have the server of a disk that is in use keep what it holds now as the snapshot of that name. 1: *result is its answer, the caller's; 0: no server of this
 * host has the disk; -errno with a sentence.
 */
int disk_keep_moment(const char *disk, const char *name, json_t **result, struct pgr_error *err);
/* As `pagurus disk delete`, in use or not, and says nothing. Waiting. */
int disk_remove_snapshot(const char *disk, const char *name, bool json, struct pgr_error *err);

#define DISK_OPTION_FORMAT(value)                                                     \
	{                                                                             \
		"format", OPTION_STRING, (value), "FORMAT",                           \
			"raw or qcow2 (default: what the end of the name says)", 0, 0 \
	}
#define DISK_OPTION_JSON(value)                                                           \
	{                                                                                 \
		"json", OPTION_FLAG, (value), NULL, "print JSON, one object a line", 0, 0 \
	}

#endif
