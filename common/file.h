/* SPDX-License-Identifier: MIT */
#ifndef PAGURUS_FILE_H
#define PAGURUS_FILE_H

#include <stddef.h>

/* Make durable which files the folder of path has: after a file got its name, or lost it. 0 or -errno. Any thread. */
int file_sync_folder_of(const char *path);
/* How many bytes of a path are its folder, with the slash behind it; 0: it has none. */
size_t file_folder_length(const char *path);

#endif
