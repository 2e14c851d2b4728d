/* SPDX-License-Identifier: MIT */
/* How far work on a disk is, for a person or a program that watches; and disk_copy() with it, and Ctrl-C. */
#ifndef PAGURUS_DISK_PROGRESS_H
#define PAGURUS_DISK_PROGRESS_H

#include "storage/disk_copy.h"

struct disk_progress {
	bool json;	  /* as JSON on standard output, else on the terminal */
	uint64_t next_ms; /* not before; 0: at once */
	bool shown;
};

/* Say it, at most once a second. */
void disk_progress_show(struct disk_progress *p, uint64_t done, uint64_t size);
/* Nothing of it stays on the terminal. */
void disk_progress_end(struct disk_progress *p);

/* As disk_copy(); from 2 seconds on it says how far it is: on the terminal, or as JSON on standard output. stop is set here. */
int disk_copy_watched(struct disk_copy *c, bool json, struct pgr_error *err);

#endif
