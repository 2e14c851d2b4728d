/* SPDX-License-Identifier: MIT */
/*
 * A provider for OpenSSL inside of this program: AES-128-GCM and AES-256-GCM as TLS 1.3 needs them, computed by IPsec-MB.
 *
 * A message goes through these states; every call in another state fails, so that no key stream is ever used twice:
 *
 *	GCM_IDLE  --init with IV-->  GCM_READY  --first data-->  GCM_DATA  --final-->  GCM_IDLE
 *	                                 `-------- final: no data --------------------'
 *
 * IPsec-MB wants all of the additional data at once, so that is kept until the first data or the end. The IV has 12 bytes and the
 * tag 16 (RFC 8446, 5.2 and 5.3); other lengths are refused, as is more additional data than GCM_AAD_MAX: TLS has five bytes.
 * Data is ciphered in place or from one buffer to another; buffers that overlap otherwise are not allowed, as in OpenSSL.
 *
 * IPsec-MB's own checks of arguments report through one variable of the whole process: nothing is left to them here.
 */
#include "common/tls_gcm.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <intel-ipsec-mb.h>

#include <openssl/core_dispatch.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/params.h>
#include <openssl/provider.h>

#define GCM_IV	    12u
#define GCM_TAG	    16u
#define GCM_AAD_MAX 256u
#define GCM_ALIGN   64u
/* NIST SP 800-38D, 5.2.1.1: 2^39 - 256 bits. */
#define GCM_DATA_MAX ((UINT64_C(1) << 36) - 32)

enum gcm_direction { GCM_DECRYPT, GCM_ENCRYPT };
enum gcm_state { GCM_IDLE, GCM_READY, GCM_DATA };

/* IPsec-MB's functions for one length of key. */
struct gcm_size {
	size_t key_length;
	aes_gcm_pre_t expand;
	aes_gcm_init_t init;
	aes_gcm_enc_dec_update_t update[2];
	aes_gcm_enc_dec_finalize_t finalize[2];
};

/* Filled before the provider is loaded, unchanged from then on. */
static struct gcm_size gcm_128;
static struct gcm_size gcm_256;

struct gcm {
	struct gcm_key_data key; /* aligned */
	struct gcm_context_data message;
	const struct gcm_size *size;
	enum gcm_direction direction;
	enum gcm_state state;
	bool has_key;
	bool has_tag; /* encrypting: made, decrypting: expected */
	unsigned char iv[GCM_IV];
	unsigned char tag[GCM_TAG];
	unsigned char aad[GCM_AAD_MAX];
	size_t aad_length;
	uint64_t length; /* data so far */
};

/* ---- contexts ---- */

static atomic_uint contexts;

static struct gcm *gcm_alloc(void)
{
	void *p;

	if (posix_memalign(&p, GCM_ALIGN, sizeof(struct gcm)))
		return NULL;
	atomic_fetch_add(&contexts, 1);
	return p;
}

static struct gcm *gcm_new(const struct gcm_size *size)
{
	struct gcm *g = gcm_alloc();

	if (g) {
		memset(g, 0, sizeof(*g));
		g->size = size;
	}
	return g;
}

static void *gcm_128_new(void *provider)
{
	(void)provider;
	return gcm_new(&gcm_128);
}

static void *gcm_256_new(void *provider)
{
	(void)provider;
	return gcm_new(&gcm_256);
}

static void gcm_free(void *context)
{
	if (!context)
		return;
	OPENSSL_cleanse(context, sizeof(struct gcm));
	free(context);
	atomic_fetch_sub(&contexts, 1);
}

static void *gcm_duplicate(void *context)
{
	struct gcm *copy = gcm_alloc();

	if (copy)
		memcpy(copy, context, sizeof(*copy));
	return copy;
}

/* ---- parameters ---- */

static const OSSL_PARAM *gcm_gettable(void *provider)
{
	static const OSSL_PARAM known[] = {OSSL_PARAM_uint(OSSL_CIPHER_PARAM_MODE, NULL),
					   OSSL_PARAM_int(OSSL_CIPHER_PARAM_AEAD, NULL),
					   OSSL_PARAM_int(OSSL_CIPHER_PARAM_CUSTOM_IV, NULL),
					   OSSL_PARAM_size_t(OSSL_CIPHER_PARAM_KEYLEN, NULL),
					   OSSL_PARAM_size_t(OSSL_CIPHER_PARAM_IVLEN, NULL),
					   OSSL_PARAM_size_t(OSSL_CIPHER_PARAM_BLOCK_SIZE, NULL),
					   OSSL_PARAM_END};

	(void)provider;
	return known;
}

/* Answer a question for a number, if it is asked. */
static bool answer(OSSL_PARAM params[], const char *key, size_t value)
{
	OSSL_PARAM *p = OSSL_PARAM_locate(params, key);

	return !p || OSSL_PARAM_set_size_t(p, value);
}

static int gcm_describe(const struct gcm_size *size, OSSL_PARAM params[])
{
	return answer(params, OSSL_CIPHER_PARAM_MODE, EVP_CIPH_GCM_MODE) &&
	       answer(params, OSSL_CIPHER_PARAM_AEAD, 1) &&
	       answer(params, OSSL_CIPHER_PARAM_CUSTOM_IV, 1) &&
	       answer(params, OSSL_CIPHER_PARAM_KEYLEN, size->key_length) &&
	       answer(params, OSSL_CIPHER_PARAM_IVLEN, GCM_IV) &&
	       answer(params, OSSL_CIPHER_PARAM_BLOCK_SIZE, 1);
}

static int gcm_128_describe(OSSL_PARAM params[])
{
	return gcm_describe(&gcm_128, params);
}

static int gcm_256_describe(OSSL_PARAM params[])
{
	return gcm_describe(&gcm_256, params);
}

static const OSSL_PARAM *gcm_context_gettable(void *context, void *provider)
{
	static const OSSL_PARAM known[] = {
		OSSL_PARAM_size_t(OSSL_CIPHER_PARAM_KEYLEN, NULL),
		OSSL_PARAM_size_t(OSSL_CIPHER_PARAM_IVLEN, NULL),
		OSSL_PARAM_size_t(OSSL_CIPHER_PARAM_AEAD_TAGLEN, NULL),
		OSSL_PARAM_octet_string(OSSL_CIPHER_PARAM_IV, NULL, 0),
		OSSL_PARAM_octet_string(OSSL_CIPHER_PARAM_UPDATED_IV, NULL, 0),
		OSSL_PARAM_octet_string(OSSL_CIPHER_PARAM_AEAD_TAG, NULL, 0),
		OSSL_PARAM_END};

	(void)context;
	(void)provider;
	return known;
}

static int gcm_get_one(const struct gcm *g, OSSL_PARAM *p)
{
	/* First the two that libssl asks for with every record. */
	if (!strcmp(p->key, OSSL_CIPHER_PARAM_IVLEN))
		return OSSL_PARAM_set_size_t(p, GCM_IV);
	if (!strcmp(p->key, OSSL_CIPHER_PARAM_AEAD_TAG))
		return g->direction == GCM_ENCRYPT && g->has_tag && p->data_size == GCM_TAG &&
		       OSSL_PARAM_set_octet_string(p, g->tag, GCM_TAG);
	if (!strcmp(p->key, OSSL_CIPHER_PARAM_KEYLEN))
		return OSSL_PARAM_set_size_t(p, g->size->key_length);
	if (!strcmp(p->key, OSSL_CIPHER_PARAM_AEAD_TAGLEN))
		return OSSL_PARAM_set_size_t(p, GCM_TAG);
	if (!strcmp(p->key, OSSL_CIPHER_PARAM_IV) || !strcmp(p->key, OSSL_CIPHER_PARAM_UPDATED_IV))
		return OSSL_PARAM_set_octet_string(p, g->iv, GCM_IV);
	return 1;
}

static int gcm_get(void *context, OSSL_PARAM params[])
{
	for (OSSL_PARAM *p = params; p->key; p++) {
		if (!gcm_get_one(context, p))
			return 0;
	}
	return 1;
}

static const OSSL_PARAM *gcm_settable(void *context, void *provider)
{
	static const OSSL_PARAM known[] = {
		OSSL_PARAM_size_t(OSSL_CIPHER_PARAM_KEYLEN, NULL),
		OSSL_PARAM_size_t(OSSL_CIPHER_PARAM_IVLEN, NULL),
		OSSL_PARAM_octet_string(OSSL_CIPHER_PARAM_AEAD_TAG, NULL, 0), OSSL_PARAM_END};

	(void)context;
	(void)provider;
	return known;
}

static int gcm_set_one(struct gcm *g, const OSSL_PARAM *p)
{
	size_t length;

	if (!strcmp(p->key, OSSL_CIPHER_PARAM_AEAD_TAG)) {
		if (g->direction != GCM_DECRYPT || p->data_type != OSSL_PARAM_OCTET_STRING ||
		    !p->data || p->data_size != GCM_TAG)
			return 0;
		memcpy(g->tag, p->data, GCM_TAG);
		g->has_tag = true;
		return 1;
	}
	/* Lengths may be set to what they are. */
	if (!strcmp(p->key, OSSL_CIPHER_PARAM_IVLEN))
		return OSSL_PARAM_get_size_t(p, &length) && length == GCM_IV;
	if (!strcmp(p->key, OSSL_CIPHER_PARAM_KEYLEN))
		return OSSL_PARAM_get_size_t(p, &length) && length == g->size->key_length;
	return 1;
}

static int gcm_set(void *context, const OSSL_PARAM params[])
{
	for (const OSSL_PARAM *p = params; p && p->key; p++) {
		if (!gcm_set_one(context, p))
			return 0;
	}
	return 1;
}

/* ---- messages ---- */

static int gcm_init(struct gcm *g, enum gcm_direction direction, const unsigned char *key,
		    size_t key_length, const unsigned char *iv, size_t iv_length,
		    const OSSL_PARAM params[])
{
	if ((key && key_length != g->size->key_length) || (iv && iv_length != GCM_IV))
		return 0;
	/* A tag that was made must never pass for one that is expected. */
	if (direction != g->direction || direction == GCM_ENCRYPT)
		g->has_tag = false;
	g->direction = direction;
	/* What was begun is given up; a new key may follow its IV. */
	if (g->state != GCM_READY)
		g->state = GCM_IDLE;
	if (key) {
		g->size->expand(key, &g->key);
		g->has_key = true;
	}
	if (iv) {
		memcpy(g->iv, iv, GCM_IV);
		g->state = GCM_READY;
	}
	g->aad_length = 0;
	g->length = 0;
	return gcm_set(g, params);
}

static int gcm_encrypt_init(void *context, const unsigned char *key, size_t key_length,
			    const unsigned char *iv, size_t iv_length, const OSSL_PARAM params[])
{
	return gcm_init(context, GCM_ENCRYPT, key, key_length, iv, iv_length, params);
}

static int gcm_decrypt_init(void *context, const unsigned char *key, size_t key_length,
			    const unsigned char *iv, size_t iv_length, const OSSL_PARAM params[])
{
	return gcm_init(context, GCM_DECRYPT, key, key_length, iv, iv_length, params);
}

/* The first data, or the end when there is none. */
static bool gcm_begin(struct gcm *g)
{
	if (g->state == GCM_DATA)
		return true;
	if (g->state != GCM_READY || !g->has_key)
		return false;
	g->size->init(&g->key, &g->message, g->iv, g->aad, g->aad_length);
	g->state = GCM_DATA;
	return true;
}

static int gcm_authenticate(struct gcm *g, const unsigned char *in, size_t length)
{
	if (g->state != GCM_READY || length > GCM_AAD_MAX - g->aad_length)
		return 0;
	memcpy(g->aad + g->aad_length, in, length);
	g->aad_length += length;
	return 1;
}

static int gcm_update(void *context, unsigned char *out, size_t *out_length, size_t out_size,
		      const unsigned char *in, size_t length)
{
	struct gcm *g = context;

	*out_length = 0;
	if (length == 0)
		return 1;
	if (!out) {
		*out_length = length;
		return gcm_authenticate(g, in, length);
	}
	if (out_size < length || length > GCM_DATA_MAX - g->length || !gcm_begin(g))
		return 0;
	g->size->update[g->direction](&g->key, &g->message, out, in, length);
	g->length += length;
	*out_length = length;
	return 1;
}

static int gcm_final(void *context, unsigned char *out, size_t *out_length, size_t out_size)
{
	struct gcm *g = context;
	unsigned char tag[GCM_TAG];
	int good;

	(void)out;
	(void)out_size;
	*out_length = 0;
	if (!gcm_begin(g))
		return 0;
	g->state = GCM_IDLE;
	g->size->finalize[g->direction](&g->key, &g->message, tag, GCM_TAG);
	if (g->direction == GCM_ENCRYPT) {
		memcpy(g->tag, tag, GCM_TAG);
		g->has_tag = true;
		return 1;
	}
	good = g->has_tag && !CRYPTO_memcmp(g->tag, tag, GCM_TAG);
	g->has_tag = false;
	/* The right tag of what somebody made up must not stay in memory. */
	OPENSSL_cleanse(tag, sizeof(tag));
	return good;
}

/* ---- the provider ---- */

/* OpenSSL keeps functions of all kinds in one type. */
#define ENTRY(id, function)                    \
	{                                      \
		id, (void (*)(void))(function) \
	}

#define GCM_FUNCTIONS(new, describe)                                                            \
	{                                                                                       \
		ENTRY(OSSL_FUNC_CIPHER_NEWCTX, new), ENTRY(OSSL_FUNC_CIPHER_FREECTX, gcm_free), \
			ENTRY(OSSL_FUNC_CIPHER_DUPCTX, gcm_duplicate),                          \
			ENTRY(OSSL_FUNC_CIPHER_ENCRYPT_INIT, gcm_encrypt_init),                 \
			ENTRY(OSSL_FUNC_CIPHER_DECRYPT_INIT, gcm_decrypt_init),                 \
			ENTRY(OSSL_FUNC_CIPHER_UPDATE, gcm_update),                             \
			ENTRY(OSSL_FUNC_CIPHER_FINAL, gcm_final),                               \
			ENTRY(OSSL_FUNC_CIPHER_GETTABLE_PARAMS, gcm_gettable),                  \
			ENTRY(OSSL_FUNC_CIPHER_GET_PARAMS, describe),                           \
			ENTRY(OSSL_FUNC_CIPHER_GETTABLE_CTX_PARAMS, gcm_context_gettable),      \
			ENTRY(OSSL_FUNC_CIPHER_GET_CTX_PARAMS, gcm_get),                        \
			ENTRY(OSSL_FUNC_CIPHER_SETTABLE_CTX_PARAMS, gcm_settable),              \
			ENTRY(OSSL_FUNC_CIPHER_SET_CTX_PARAMS, gcm_set),                        \
		{                                                                               \
			0, NULL                                                                 \
		}                                                                               \
	}

static const OSSL_DISPATCH gcm_128_functions[] = GCM_FUNCTIONS(gcm_128_new, gcm_128_describe);
static const OSSL_DISPATCH gcm_256_functions[] = GCM_FUNCTIONS(gcm_256_new, gcm_256_describe);

static const OSSL_ALGORITHM *provider_query(void *provider, int operation, int *no_cache)
{
	/* By all of the names that OpenSSL knows: libssl uses the second. */
	static const OSSL_ALGORITHM ciphers[] = {
		{"AES-128-GCM:id-aes128-GCM:2.16.840.1.101.3.4.1.6", "provider=" TLS_GCM_PROVIDER,
		 gcm_128_functions, "by IPsec-MB"},
		{"AES-256-GCM:id-aes256-GCM:2.16.840.1.101.3.4.1.46", "provider=" TLS_GCM_PROVIDER,
		 gcm_256_functions, "by IPsec-MB"},
		{NULL, NULL, NULL, NULL}};

	(void)provider;
	*no_cache = 0;
	return operation == OSSL_OP_CIPHER ? ciphers : NULL;
}

static int provider_init(const OSSL_CORE_HANDLE *handle, const OSSL_DISPATCH *in,
			 const OSSL_DISPATCH **out, void **provider)
{
	static const OSSL_DISPATCH functions[] = {
		ENTRY(OSSL_FUNC_PROVIDER_QUERY_OPERATION, provider_query), {0, NULL}};

	(void)in;
	*out = functions;
	*provider = (void *)(uintptr_t)handle;
	return 1;
}

static pthread_once_t load_once = PTHREAD_ONCE_INIT;
static OSSL_PROVIDER *loaded; /* until the process ends */
static _Atomic enum tls_gcm_use gcm_use;

#define GCM_SIZE(m, bits)                                                              \
	((struct gcm_size){.key_length = IMB_GCM_##bits##_KEY_LEN,                     \
			   .expand = (m)->gcm##bits##_pre,                             \
			   .init = (m)->gcm##bits##_init,                              \
			   .update = {[GCM_ENCRYPT] = (m)->gcm##bits##_enc_update,     \
				      [GCM_DECRYPT] = (m)->gcm##bits##_dec_update},    \
			   .finalize = {[GCM_ENCRYPT] = (m)->gcm##bits##_enc_finalize, \
					[GCM_DECRYPT] = (m)->gcm##bits##_dec_finalize}})

/* Take IPsec-MB's functions for this processor; they need nothing of the manager that knows them. */
static bool take_functions(void)
{
	IMB_MGR *m = alloc_mb_mgr(0);
	bool sound;

	if (!m)
		return false;
	init_mb_mgr_auto(m, NULL);
	sound = !imb_get_errno(m) && (!(m->features & IMB_FEATURE_SELF_TEST) ||
				      (m->features & IMB_FEATURE_SELF_TEST_PASS));
	gcm_128 = GCM_SIZE(m, 128);
	gcm_256 = GCM_SIZE(m, 256);
	free_mb_mgr(m);
	return sound;
}

/* Whether IPsec-MB uses wider registers than OpenSSL. Where not, nothing of it runs, not even its tests of itself (5 ms). */
static bool is_fast(void)
{
	const uint64_t wide = IMB_FEATURE_AVX512_SKX | IMB_FEATURE_VAES | IMB_FEATURE_VPCLMULQDQ;

	/* The compiler's function also looks whether the kernel lets these registers be used. */
	return (imb_get_feature_flags() & wide) == wide && __builtin_cpu_supports("avx512f");
}

/* Whether AES-GCM would come from OpenSSL itself. A host that takes it from a certified module or a card does so on purpose. */
static bool is_ordinary(void)
{
	EVP_CIPHER *c = EVP_CIPHER_fetch(NULL, "AES-256-GCM", NULL);
	bool ordinary =
		c && !strcmp(OSSL_PROVIDER_get0_name(EVP_CIPHER_get0_provider(c)), "default");

	EVP_CIPHER_free(c);
	return ordinary;
}

static void load(void)
{
	if (take_functions() && is_ordinary() &&
	    OSSL_PROVIDER_add_builtin(NULL, TLS_GCM_PROVIDER, provider_init))
		/* 1: OpenSSL goes on loading its default provider when the configuration names none. */
		loaded = OSSL_PROVIDER_try_load(NULL, TLS_GCM_PROVIDER, 1);
	ERR_clear_error();
}

const char *tls_gcm_properties(void)
{
	enum tls_gcm_use use = atomic_load(&gcm_use);

	if (use == TLS_GCM_NEVER || (use == TLS_GCM_WHERE_FAST && !is_fast()))
		return NULL;
	pthread_once(&load_once, load);
	if (!loaded)
		return NULL;
	return "?provider=" TLS_GCM_PROVIDER;
}

void tls_gcm_use(enum tls_gcm_use use)
{
	atomic_store(&gcm_use, use);
}

unsigned tls_gcm_contexts(void)
{
	return atomic_load(&contexts);
}
