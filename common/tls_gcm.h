/* SPDX-License-Identifier: MIT */
/*
 * AES-GCM by IPsec-MB for OpenSSL: three times as fast as OpenSSL 3.0's own where the processor has VAES and VPCLMULQDQ.
 * Internal to tls_identity.c and tests. Any thread. Why: docs/decisions/006-aes-gcm.md.
 */
#ifndef PAGURUS_TLS_GCM_H
#define PAGURUS_TLS_GCM_H

/* The provider's name in OpenSSL's property queries. */
#define TLS_GCM_PROVIDER "pagurus"

/*
 * The property query to make an SSL_CTX of the default library context with: one that prefers the provider, or NULL (OpenSSL as it
 * is) where the processor gains nothing, where this host's OpenSSL is configured to take AES-GCM from elsewhere than its default
 * provider, or where the provider could not be loaded. Static text.
 */
const char *tls_gcm_properties(void);

/*
 * For tests: what tls_gcm_properties() answers from now on. ALWAYS: the provider also where it gains nothing (IPsec-MB has code for
 * every x86-64); NULL still where it could not be loaded.
 */
enum tls_gcm_use { TLS_GCM_WHERE_FAST, TLS_GCM_ALWAYS, TLS_GCM_NEVER };
void tls_gcm_use(enum tls_gcm_use use);
/* Also for tests: how many ciphers (one for each direction of a connection) the provider is now. */
unsigned tls_gcm_contexts(void);

#endif
