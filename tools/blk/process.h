/* SPDX-License-Identifier: MIT */
/* A disk's process and its journal, from the keeper's side. */
#ifndef PAGURUS_BLK_PROCESS_H
#define PAGURUS_BLK_PROCESS_H

#include <sys/types.h>

#include "common/error.h"
#include "storage/pv_journal.h"

#define PROCESS_JOURNALS "/run/pagurus/disks"

struct process_journal {
	int fd;
	void *memory;
	char path[128];
};

/* Where journals are, made when it is not there; root's alone. -errno, with a sentence. */
int process_make_folder(struct pgr_error *err);
/* The journal of that disk, made when there is none; root's alone. -errno, with a sentence. */
int process_journal_open(struct process_journal *j, uint32_t domid, unsigned devid,
			 struct pgr_error *err);
/* What it is about; 0: nothing. */
uint64_t process_journal_generation(const struct process_journal *j);
/* Its file goes, too. */
void process_journal_remove(struct process_journal *j);

/* Start the process; its number, or -errno with a sentence. *control is our end of its socket, which the caller closes. */
pid_t process_start(const struct process_journal *j, uint32_t domid, uid_t uid, const char *name,
		    int *control, struct pgr_error *err);

/* The same for a relay (relay.h) to the server in uri; disk, which stays the caller's, is its end of a stream to the disk's process. */
pid_t process_start_relay(const char *uri, int disk, uid_t uid, int *control,
			  struct pgr_error *err);

#endif
