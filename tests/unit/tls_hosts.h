/* SPDX-License-Identifier: MIT */
/* Hosts for tests: folders with identities (common/identity.h), below one that goes at the end. What cannot be made fails the test. */
#ifndef PAGURUS_TEST_TLS_HOSTS_H
#define PAGURUS_TEST_TLS_HOSTS_H

#include "common/identity.h"

/* The path of a host's folder, or of a file in it; four may be in use at once. */
const char *host_path(const char *name, const char *file);
/* All of them. */
void hosts_remove(void);
/* What is in a file, until the next call. */
char *host_read(const char *path);
void host_make(const char *name);
/* host trusts whom from now on. */
void host_trust(const char *host, const char *whom);
/* tls_identity_free() */
struct tls_identity *host_load(const char *host);
/* Only hosts a and b, that trust each other. */
void hosts_make_two(void);

#endif
