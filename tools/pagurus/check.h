/* SPDX-License-Identifier: MIT */
/* The question "are you ready to take guests?" between two hosts: CHECK and CHECK_REPLY of stream.md. */
#ifndef PAGURUS_CHECK_H
#define PAGURUS_CHECK_H

#include <stdbool.h>

#include <jansson.h>

#include "tools/pagurus/connect.h"

/* Answer one on a connection with TLS done. Does not close c. */
int check_answer(struct channel *c, bool allow_sim, uint64_t sim_free, struct pgr_error *err);

/*
 * Ask host h. *facts: what it says about itself (hostile: shown, never acted upon), with "round_trip_ns", "clock_offset_ns"
 * (its clock less ours) and "connection" added. Owned by the caller.
 */
int check_ask(const struct host_address *h, const struct tls_identity *id, json_t **facts,
	      struct pgr_error *err);

#endif
