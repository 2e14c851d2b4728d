/* SPDX-License-Identifier: MIT */
/*
 * The hosts that this one trusts: their certificates are CONFIG/trusted/NAME.pem, their addresses CONFIG/hosts.json.
 */
#ifndef PAGURUS_HOSTS_H
#define PAGURUS_HOSTS_H

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"

struct host_address {
	char name[256];	   /* of the trusted certificate */
	char address[256]; /* name or IP address to connect to */
	uint16_t port;
};

/*
 * What the user named: NAME or NAME:PORT, NAME being trusted. The address is the recorded one, else the name itself; the port is
 * what the user wrote, else the recorded one, else the default. -ENOENT: not trusted (says what to do). -EINVAL: no name.
 */
int hosts_find(const char *config, const char *text, struct host_address *h, struct pgr_error *err);

bool hosts_is_trusted(const char *config, const char *name);

/* Record where NAME is found; durable. */
int hosts_record(const char *config, const struct host_address *h, struct pgr_error *err);

/* Call each() for every trusted host, by name. */
int hosts_each(const char *config, int (*each)(void *ctx, const struct host_address *h), void *ctx,
	       struct pgr_error *err);

#endif
