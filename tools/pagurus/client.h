/* SPDX-License-Identifier: MIT */
/* A command's side of the daemon's control socket; daemon_control.c lists the requests. */
#ifndef PAGURUS_CLIENT_H
#define PAGURUS_CLIENT_H

#include <jansson.h>

#include "common/error.h"

/* Connect. -ENOENT, -ECONNREFUSED: no daemon (says how to start it). */
int client_open(const char *control, int *fd, struct pgr_error *err);

/* One request (taken over) and one answer, owned by the caller; an answer of type "error" becomes -EINVAL with its text. */
int client_ask(const char *control, json_t *request, json_t **answer, struct pgr_error *err);
/* The same for a request that has several: the first of that type; NULL: of any. */
int client_ask_for(const char *control, json_t *request, const char *type, json_t **answer,
		   struct pgr_error *err);

#endif
