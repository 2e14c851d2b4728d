/* SPDX-License-Identifier: MIT */
/*
 * Where things are on a host, and writing small files so that a crash leaves the old or the new one.
 */
#ifndef PAGURUS_PATHS_H
#define PAGURUS_PATHS_H

#include <stddef.h>
#include <sys/un.h>

#include <jansson.h>

#include "common/error.h"
#include "tools/pagurus/options.h"

#define PATHS_PORT 7117

struct paths {
	const char *config;  /* key, certificates, known hosts */
	const char *state;   /* journals */
	const char *control; /* the daemon's socket */
	const char *disks;   /* folder of the sockets of disks' servers */
};

/* The defaults, or what PAGURUS_CONFIG, PAGURUS_STATE, PAGURUS_CONTROL and PAGURUS_DISKS in the environment say. */
void paths_init(struct paths *p);

/* Rows for a verb's option table. */
#define PATHS_OPTION_CONFIG(p)                                               \
	{                                                                    \
		"config", OPTION_STRING, &(p)->config, "DIR",                \
			"keys and certificates (default /etc/pagurus)", 0, 0 \
	}
#define PATHS_OPTION_STATE(p)                                                 \
	{                                                                     \
		"state", OPTION_STRING, &(p)->state, "DIR",                   \
			"the host's journal (default /var/lib/pagurus)", 0, 0 \
	}
#define PATHS_OPTION_CONTROL(p)                                                         \
	{                                                                               \
		"control", OPTION_STRING, &(p)->control, "SOCKET",                      \
			"the daemon's socket (default /run/pagurus/control.sock)", 0, 0 \
	}

/* The address of a Unix socket. -ENAMETOOLONG: more than such an address can hold. */
int paths_socket(const char *path, struct sockaddr_un *out, struct pgr_error *err);

/* Make PATH and what is missing above it, 0700 for the last. */
int paths_make_dir(const char *path, struct pgr_error *err);

/* Write VALUE as DIR/NAME, mode 0600: a temporary file, fsync, rename, fsync of DIR. Durable on return. */
int paths_write_json(const char *dir, const char *name, const json_t *value, struct pgr_error *err);
/* Remove DIR/NAME durably; not an error when it is not there. */
int paths_remove(const char *dir, const char *name, struct pgr_error *err);
/* The JSON object in DIR/NAME. -ENOENT, -EBADMSG (not JSON: says which line). */
int paths_read_json(const char *dir, const char *name, json_t **out, struct pgr_error *err);

#endif
