/* SPDX-License-Identifier: MIT */
/* Other programs: started with a vector of arguments and no shell, with nothing of ours open, and listened to until they end. */
#ifndef PAGURUS_COMMAND_H
#define PAGURUS_COMMAND_H

#include "common/error.h"

#define COMMAND_OUTPUT_MAX (16u << 20)

/*
 * argv[0] is its path; NULL ends argv. Its standard input is empty, its language C, and Ctrl-C does not reach it. *out, unless out is NULL: its standard
 * output, malloc'd. Blocks (offload.h). 0: it ended with 0. -ENOENT: there is no such program. -EIO: it ended otherwise; the sentence has its last
 * words. -EFBIG: it says more than COMMAND_OUTPUT_MAX.
 */
int command_run(const char *const *argv, char **out, struct pgr_error *err);

#endif
