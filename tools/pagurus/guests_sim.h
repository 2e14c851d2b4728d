/* SPDX-License-Identifier: MIT */
/* Simulated guests by their description on the command line. */
#ifndef PAGURUS_GUESTS_SIM_H
#define PAGURUS_GUESTS_SIM_H

#include <stdbool.h>

#include "common/error.h"
#include "migrate/guest.h"

/*
 * Make the guest that "name=web,memory=64M,..." describes and let it run. Keys: name, memory, seed, vcpus, set (working set), rate,
 * write (bytes), pattern (sequential|uniform|hot), content (zero|text|binaries|random|mixed), absent (per mille), tables (pages),
 * track (auto|...), fault (NAME:N, several). -EINVAL: names the key.
 */
int guests_sim_source(const char *text, struct guest_source **out, struct pgr_error *err);

/*
 * For tests of a target: faults from the environment PAGURUS_SIM_FAULTS ("map:3,start"), and what connected() tells from
 * PAGURUS_SIM_CONNECTED ("devices_ns,announced_ns,devices,waiting"; with devices waiting there is always more to wait for).
 */
int guests_sim_sink(bool paused, struct guest_sink **out, struct pgr_error *err);

/* Let it run for run_ms, then check every page. */
int guests_sim_started(struct guest_sink *s, unsigned run_ms, struct pgr_error *err);

/* That the guest behind the source runs and is whole. */
int guests_sim_check_source(struct guest_source *g, struct pgr_error *err);

#endif
