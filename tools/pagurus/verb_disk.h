/* SPDX-License-Identifier: MIT */
/* What the actions of `pagurus disk` share. Each is called with argv[0] its own name and returns the exit status. */
#ifndef PAGURUS_VERB_DISK_H
#define PAGURUS_VERB_DISK_H

#include <jansson.h>

#include "storage/disk.h"

int disk_info(int argc, char **argv);
int disk_map(int argc, char **argv);
int disk_convert(int argc, char **argv);

/* The error on standard error, or as a JSON object {"type":"error"} on standard output; EXIT_FAILED. */
int disk_fail(const struct pgr_error *err, bool json);
/* One line of JSON; o is given up. */
void disk_print_json(json_t *o);
/* Loop and disk, for reading; closed by disk_done(). unlocked: also one that is in use. */
int disk_open_to_read(const char *path, const char *format, bool unlocked, struct loop **l,
		      struct block **b, struct pgr_error *err);
void disk_done(struct loop *l, struct block *b);

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
