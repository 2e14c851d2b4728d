/* SPDX-License-Identifier: MIT */
/*
 * The provider of AES-GCM by itself: known answers, the same as OpenSSL's own on random messages in random pieces, and what it must
 * refuse. TLS with it: test_tls.c.
 */
#include <stdlib.h>

#include <openssl/core_names.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/params.h>
#include <openssl/provider.h>

#include "common/tls_gcm.h"
#include "tests/unit/unit.h"

#define LONGEST 70000u
#define AAD	256u
#define TAG	16u
#define IV	12u
#define CASES	4000u

static const char *const names[] = {"AES-128-GCM", "AES-256-GCM"};

static EVP_CIPHER *ours(const char *name)
{
	EVP_CIPHER *c;

	tls_gcm_use(TLS_GCM_ALWAYS);
	CHECK_MSG(tls_gcm_properties(), "the provider could not be loaded");
	c = EVP_CIPHER_fetch(NULL, name, tls_gcm_properties());
	CHECK(c);
	CHECK_STR(OSSL_PROVIDER_get0_name(EVP_CIPHER_get0_provider(c)), TLS_GCM_PROVIDER);
	return c;
}

static EVP_CIPHER *theirs(const char *name)
{
	EVP_CIPHER *c = EVP_CIPHER_fetch(NULL, name, "provider=default");

	CHECK(c);
	return c;
}

/* ---- messages ---- */

struct message {
	unsigned char key[32];
	unsigned char iv[IV];
	unsigned char aad[AAD];
	size_t aad_length;
	size_t length;
	unsigned char *in;
	unsigned char *out;
	unsigned char tag[TAG];
};

/* Give length bytes to the cipher in pieces, in place when in is out. pieces NULL: at once. */
static int feed(EVP_CIPHER_CTX *ctx, unsigned char *out, const unsigned char *in, size_t length,
		uint64_t *pieces)
{
	for (size_t at = 0; at < length;) {
		uint64_t most = pieces ? unit_below(pieces, unit_below(pieces, 8) ? 50 : 20000) + 1
				       : length;
		int n = (int)(most < length - at ? most : length - at);
		int done;

		if (EVP_CipherUpdate(ctx, out ? out + at : NULL, &done, in + at, n) != 1)
			return 0;
		CHECK_EQ(done, n);
		at += (size_t)n;
	}
	return 1;
}

/* Encrypt or decrypt the whole message; what the last call returned. */
static int run(EVP_CIPHER_CTX *ctx, const EVP_CIPHER *c, struct message *m, bool encrypt,
	       uint64_t *pieces)
{
	unsigned char none[16];
	int n;
	int ret;

	CHECK_EQ(EVP_CipherInit_ex2(ctx, c, m->key, m->iv, encrypt, NULL), 1);
	if (!encrypt)
		CHECK_EQ(EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_SET_TAG, TAG, m->tag), 1);
	CHECK_EQ(feed(ctx, NULL, m->aad, m->aad_length, pieces), 1);
	CHECK_EQ(feed(ctx, m->out, m->in, m->length, pieces), 1);
	ret = EVP_CipherFinal_ex(ctx, none, &n);
	if (ret == 1 && encrypt)
		CHECK_EQ(EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, TAG, m->tag), 1);
	CHECK(ret != 1 || n == 0);
	ERR_clear_error();
	return ret;
}

static size_t unhex(const char *hex, unsigned char *out)
{
	size_t n = strlen(hex) / 2;

	for (size_t i = 0; i < n; i++) {
		char byte[3] = {hex[2 * i], hex[2 * i + 1], 0};

		out[i] = (unsigned char)strtoul(byte, NULL, 16);
	}
	return n;
}

/* The messages of the specification of GCM (McGrew and Viega, appendix B) whose IV has 96 bits. */
#define ZERO_16 "00000000000000000000000000000000"
#define KEY_16	"feffe9928665731c6d6a8f9467308308"
#define PLAIN_60                                                           \
	"d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72" \
	"1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
#define CIPHER_60                                                          \
	"42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e" \
	"21d514b25466931c7d8f6a5aac84aa051ba30b396a0aac973d58e091"
#define CIPHER_60_256                                                      \
	"522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa" \
	"8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662"
#define AAD_20	"feedfacedeadbeeffeedfacedeadbeefabaddad2"
#define IV_12	"cafebabefacedbaddecaf888"
#define ZERO_12 "000000000000000000000000"

static const struct {
	const char *key, *iv, *aad, *plain, *cipher, *tag;
} known[] = {
	{ZERO_16, ZERO_12, "", "", "", "58e2fccefa7e3061367f1d57a4e7455a"},
	{ZERO_16, ZERO_12, "", ZERO_16, "0388dace60b6a392f328c2b971b2fe78",
	 "ab6e47d42cec13bdf53a67b21257bddf"},
	{KEY_16, IV_12, "", PLAIN_60 "1aafd255", CIPHER_60 "473f5985",
	 "4d5c2af327cd64a62cf35abd2ba6fab4"},
	{KEY_16, IV_12, AAD_20, PLAIN_60, CIPHER_60, "5bc94fbc3221a5db94fae95ae7121a47"},
	{ZERO_16 ZERO_16, ZERO_12, "", "", "", "530f8afbc74536b9a963b4f1c4cb738b"},
	{ZERO_16 ZERO_16, ZERO_12, "", ZERO_16, "cea7403d4d606b6e074ec5d3baf39d18",
	 "d0d1c8a799996bf0265b98b5d48ab919"},
	{KEY_16 KEY_16, IV_12, "", PLAIN_60 "1aafd255", CIPHER_60_256 "898015ad",
	 "b094dac5d93471bdec1a502270e3cc6c"},
	{KEY_16 KEY_16, IV_12, AAD_20, PLAIN_60, CIPHER_60_256, "76fc6ece0f4e1768cddf8853bb2d551b"},
};

static void answers_are_the_known_ones(void)
{
	unsigned char plain[64], cipher[64], out[64], tag[TAG];

	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
		EVP_CIPHER *c = ours(names[strlen(known[i].key) == 64]);
		EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
		struct message m = {.in = plain, .out = out};

		unhex(known[i].key, m.key);
		unhex(known[i].iv, m.iv);
		unhex(known[i].cipher, cipher);
		unhex(known[i].tag, tag);
		m.aad_length = unhex(known[i].aad, m.aad);
		m.length = unhex(known[i].plain, plain);
		CHECK_EQ(run(ctx, c, &m, true, NULL), 1);
		CHECK_MEM(out, cipher, m.length);
		CHECK_MEM(m.tag, tag, TAG);
		m.in = cipher;
		CHECK_EQ(run(ctx, c, &m, false, NULL), 1);
		CHECK_MEM(out, plain, m.length);
		EVP_CIPHER_CTX_free(ctx);
		EVP_CIPHER_free(c);
	}
}

/* Mostly short, sometimes a TLS record and more. */
static size_t any_length(uint64_t *random)
{
	switch (unit_below(random, 8)) {
	case 0:
		return unit_below(random, LONGEST + 1);
	case 1:
		return 16384 + unit_below(random, 3);
	default:
		return unit_below(random, 1000);
	}
}

static void compare(uint64_t *random, EVP_CIPHER_CTX *ctx[2], const EVP_CIPHER *a,
		    const EVP_CIPHER *b, unsigned char *buffer[3])
{
	struct message m;
	unsigned char tag[TAG];
	size_t at;

	unit_fill_random(random, &m, sizeof(m));
	m.aad_length = unit_below(random, 4) ? unit_below(random, 20) : unit_below(random, AAD + 1);
	m.length = any_length(random);
	unit_fill_random(random, buffer[0], m.length);
	m.in = buffer[0];
	m.out = buffer[1];
	CHECK_EQ(run(ctx[1], b, &m, true, random), 1);
	memcpy(tag, m.tag, TAG);
	m.out = buffer[2];
	if (unit_below(random, 2)) {
		memcpy(m.out, m.in, m.length);
		m.in = m.out;
	}
	CHECK_EQ(run(ctx[0], a, &m, true, random), 1);
	CHECK_MEM(buffer[2], buffer[1], m.length);
	CHECK_MEM(m.tag, tag, TAG);
	/* And back, from the other's bytes. */
	m.in = buffer[1];
	m.out = unit_below(random, 2) ? buffer[1] : buffer[2];
	CHECK_EQ(run(ctx[0], a, &m, false, random), 1);
	CHECK_MEM(m.out, buffer[0], m.length);
	/* One changed bit anywhere. */
	m.in = buffer[0];
	m.out = buffer[1];
	CHECK_EQ(run(ctx[0], a, &m, true, NULL), 1);
	m.in = m.out;
	m.out = buffer[2];
	at = unit_below(random, 8 * (TAG + m.length + m.aad_length));
	if (at < 8 * TAG)
		m.tag[at / 8] ^= (unsigned char)(1 << at % 8);
	else if (at < 8 * (TAG + m.length))
		m.in[at / 8 - TAG] ^= (unsigned char)(1 << at % 8);
	else
		m.aad[at / 8 - TAG - m.length] ^= (unsigned char)(1 << at % 8);
	CHECK_EQ(run(ctx[0], a, &m, false, random), 0);
}

static void answers_are_those_of_openssl(void)
{
	uint64_t random = unit_seed();
	unsigned char *buffer[3];

	for (int i = 0; i < 3; i++) {
		buffer[i] = malloc(LONGEST);
		CHECK(buffer[i]);
	}
	for (int k = 0; k < 2; k++) {
		EVP_CIPHER *a = ours(names[k]), *b = theirs(names[k]);
		/* One context for all messages, as TLS does it. */
		EVP_CIPHER_CTX *ctx[2] = {EVP_CIPHER_CTX_new(), EVP_CIPHER_CTX_new()};

		for (unsigned i = 0; i < CASES; i++)
			compare(&random, ctx, a, b, buffer);
		EVP_CIPHER_CTX_free(ctx[0]);
		EVP_CIPHER_CTX_free(ctx[1]);
		EVP_CIPHER_free(a);
		EVP_CIPHER_free(b);
	}
	for (int i = 0; i < 3; i++)
		free(buffer[i]);
}

/* ---- what it says of itself ---- */

static void both_describe_themselves_alike(void)
{
	const unsigned long flags = EVP_CIPH_MODE | EVP_CIPH_FLAG_AEAD_CIPHER | EVP_CIPH_CUSTOM_IV;

	for (int k = 0; k < 2; k++) {
		EVP_CIPHER *a = ours(names[k]), *b = theirs(names[k]);
		EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();

		CHECK_EQ(EVP_CIPHER_get_key_length(a), EVP_CIPHER_get_key_length(b));
		CHECK_EQ(EVP_CIPHER_get_iv_length(a), EVP_CIPHER_get_iv_length(b));
		CHECK_EQ(EVP_CIPHER_get_block_size(a), EVP_CIPHER_get_block_size(b));
		CHECK_EQ(EVP_CIPHER_get_nid(a), EVP_CIPHER_get_nid(b));
		CHECK_EQ(EVP_CIPHER_get_flags(a) & flags, EVP_CIPHER_get_flags(b) & flags);
		CHECK_EQ(EVP_CipherInit_ex2(ctx, a, NULL, NULL, 1, NULL), 1);
		CHECK_EQ(EVP_CIPHER_CTX_get_key_length(ctx), EVP_CIPHER_get_key_length(b));
		CHECK_EQ(EVP_CIPHER_CTX_get_iv_length(ctx), IV);
		CHECK_EQ(EVP_CIPHER_CTX_get_tag_length(ctx), TAG);
		EVP_CIPHER_CTX_free(ctx);
		EVP_CIPHER_free(a);
		EVP_CIPHER_free(b);
	}
}

static void only_those_who_ask_get_it(void)
{
	EVP_CIPHER *c;

	EVP_CIPHER_free(ours(names[0]));
	for (int k = 0; k < 2; k++) {
		c = EVP_CIPHER_fetch(NULL, names[k], NULL);
		CHECK(c);
		CHECK_STR(OSSL_PROVIDER_get0_name(EVP_CIPHER_get0_provider(c)), "default");
		EVP_CIPHER_free(c);
		/* A host that allows certified code only does not get it. */
		c = EVP_CIPHER_fetch(NULL, names[k], "?provider=" TLS_GCM_PROVIDER ",fips=yes");
		CHECK(!c || strcmp(OSSL_PROVIDER_get0_name(EVP_CIPHER_get0_provider(c)),
				   TLS_GCM_PROVIDER) != 0);
		EVP_CIPHER_free(c);
	}
	/* What it does not have comes from OpenSSL's own. */
	c = EVP_CIPHER_fetch(NULL, "ChaCha20-Poly1305", tls_gcm_properties());
	CHECK(c);
	EVP_CIPHER_free(c);
	tls_gcm_use(TLS_GCM_NEVER);
	CHECK(!tls_gcm_properties());
	tls_gcm_use(TLS_GCM_WHERE_FAST);
	ERR_clear_error();
}

/* ---- what it refuses ---- */

static const unsigned char key[32] = "a key for the tests of refusals";
static const unsigned char iv[IV] = "and its iv";

static EVP_CIPHER_CTX *begun(int encrypt)
{
	EVP_CIPHER *c = ours(names[1]);
	EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();

	CHECK_EQ(EVP_CipherInit_ex2(ctx, c, key, iv, encrypt, NULL), 1);
	EVP_CIPHER_free(c);
	return ctx;
}

static void an_iv_serves_one_message(void)
{
	EVP_CIPHER_CTX *ctx = begun(1);
	unsigned char data[64] = {0};
	int n;

	CHECK_EQ(EVP_EncryptUpdate(ctx, data, &n, data, 10), 1);
	/* Additional data comes first. */
	CHECK_EQ(EVP_EncryptUpdate(ctx, NULL, &n, data, 10), 0);
	CHECK_EQ(EVP_EncryptFinal_ex(ctx, data, &n), 1);
	CHECK_EQ(EVP_EncryptUpdate(ctx, data, &n, data, 10), 0);
	CHECK_EQ(EVP_EncryptUpdate(ctx, NULL, &n, data, 10), 0);
	CHECK_EQ(EVP_EncryptFinal_ex(ctx, data, &n), 0);
	/* Neither does asking again without an IV, nor a new key, make it fresh. */
	CHECK_EQ(EVP_EncryptInit_ex2(ctx, NULL, NULL, NULL, NULL), 1);
	CHECK_EQ(EVP_EncryptUpdate(ctx, data, &n, data, 10), 0);
	CHECK_EQ(EVP_EncryptInit_ex2(ctx, NULL, key, NULL, NULL), 1);
	CHECK_EQ(EVP_EncryptUpdate(ctx, data, &n, data, 10), 0);
	CHECK_EQ(EVP_EncryptInit_ex2(ctx, NULL, NULL, iv, NULL), 1);
	CHECK_EQ(EVP_EncryptUpdate(ctx, data, &n, data, 10), 1);
	/* Nor does giving up a message. */
	CHECK_EQ(EVP_EncryptInit_ex2(ctx, NULL, NULL, NULL, NULL), 1);
	CHECK_EQ(EVP_EncryptUpdate(ctx, data, &n, data, 10), 0);
	EVP_CIPHER_CTX_free(ctx);
}

static void nothing_works_without_a_key(void)
{
	EVP_CIPHER *c = ours(names[0]);
	EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
	unsigned char data[64] = {0};
	int n;

	CHECK_EQ(EVP_EncryptInit_ex2(ctx, c, NULL, NULL, NULL), 1);
	CHECK_EQ(EVP_EncryptUpdate(ctx, data, &n, data, 10), 0);
	CHECK_EQ(EVP_EncryptInit_ex2(ctx, NULL, NULL, iv, NULL), 1);
	CHECK_EQ(EVP_EncryptUpdate(ctx, data, &n, data, 10), 0);
	CHECK_EQ(EVP_EncryptFinal_ex(ctx, data, &n), 0);
	/* The key may come after the IV. */
	CHECK_EQ(EVP_EncryptInit_ex2(ctx, NULL, key, NULL, NULL), 1);
	CHECK_EQ(EVP_EncryptUpdate(ctx, data, &n, data, 10), 1);
	EVP_CIPHER_CTX_free(ctx);
	EVP_CIPHER_free(c);
}

static void other_lengths_are_refused(void)
{
	EVP_CIPHER_CTX *ctx = begun(1);
	unsigned char data[AAD + 1] = {0};
	int n;

	CHECK_EQ(EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_SET_IVLEN, IV, NULL), 1);
	CHECK(EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_SET_IVLEN, 16, NULL) <= 0);
	CHECK(EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_SET_IVLEN, 8, NULL) <= 0);
	CHECK(EVP_CIPHER_CTX_set_key_length(ctx, 16) <= 0);
	CHECK_EQ(EVP_EncryptUpdate(ctx, NULL, &n, data, AAD + 1), 0);
	CHECK_EQ(EVP_EncryptUpdate(ctx, NULL, &n, data, AAD), 1);
	CHECK_EQ(EVP_EncryptUpdate(ctx, NULL, &n, data, 1), 0);
	/* No tag before the end, and then all of it. */
	CHECK(EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, TAG, data) <= 0);
	CHECK_EQ(EVP_EncryptFinal_ex(ctx, data, &n), 1);
	CHECK(EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, 12, data) <= 0);
	CHECK_EQ(EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, TAG, data), 1);
	CHECK(EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_SET_TAG, TAG, data) <= 0);
	EVP_CIPHER_CTX_free(ctx);
}

static void a_tag_serves_one_message(void)
{
	unsigned char data[10] = {0}, out[64], tag[TAG];
	EVP_CIPHER_CTX *ctx = begun(1);
	int n;

	CHECK_EQ(EVP_EncryptUpdate(ctx, data, &n, data, sizeof(data)), 1);
	CHECK_EQ(EVP_EncryptFinal_ex(ctx, out, &n), 1);
	CHECK_EQ(EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, TAG, tag), 1);
	/* The one that was made here is not one that came. */
	CHECK_EQ(EVP_CipherInit_ex2(ctx, NULL, NULL, iv, 0, NULL), 1);
	CHECK_EQ(EVP_DecryptUpdate(ctx, out, &n, data, sizeof(data)), 1);
	CHECK_EQ(EVP_DecryptFinal_ex(ctx, out, &n), 0);
	/* No other length is one. */
	CHECK_EQ(EVP_CipherInit_ex2(ctx, NULL, NULL, iv, 0, NULL), 1);
	CHECK(EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_SET_TAG, 12, tag) <= 0);
	CHECK(EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_SET_TAG, TAG, NULL) <= 0);
	CHECK_EQ(EVP_DecryptUpdate(ctx, out, &n, data, sizeof(data)), 1);
	CHECK_EQ(EVP_DecryptFinal_ex(ctx, out, &n), 0);
	/* The right one is, once. */
	CHECK_EQ(EVP_CipherInit_ex2(ctx, NULL, NULL, iv, 0, NULL), 1);
	CHECK_EQ(EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_SET_TAG, TAG, tag), 1);
	CHECK(EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, TAG, tag) <= 0);
	CHECK_EQ(EVP_DecryptUpdate(ctx, out, &n, data, sizeof(data)), 1);
	CHECK_EQ(EVP_DecryptFinal_ex(ctx, out, &n), 1);
	CHECK_EQ(EVP_CipherInit_ex2(ctx, NULL, NULL, iv, 0, NULL), 1);
	CHECK_EQ(EVP_DecryptUpdate(ctx, out, &n, data, sizeof(data)), 1);
	CHECK_EQ(EVP_DecryptFinal_ex(ctx, out, &n), 0);
	EVP_CIPHER_CTX_free(ctx);
}

static void a_copy_goes_on_alone(void)
{
	EVP_CIPHER_CTX *a = begun(1), *b = EVP_CIPHER_CTX_new();
	unsigned char in[100], out[2][100], tag[2][TAG];
	unsigned before = tls_gcm_contexts();
	int n;

	memset(in, 7, sizeof(in));
	CHECK_EQ(EVP_EncryptUpdate(a, out[0], &n, in, 33), 1);
	memcpy(out[1], out[0], 33);
	CHECK_EQ(EVP_CIPHER_CTX_copy(b, a), 1);
	CHECK_EQ(tls_gcm_contexts(), before + 1);
	CHECK_EQ(EVP_EncryptUpdate(a, out[0] + 33, &n, in, 67), 1);
	CHECK_EQ(EVP_EncryptUpdate(b, out[1] + 33, &n, in, 67), 1);
	CHECK_EQ(EVP_EncryptFinal_ex(a, in, &n), 1);
	CHECK_EQ(EVP_CIPHER_CTX_ctrl(a, EVP_CTRL_AEAD_GET_TAG, TAG, tag[0]), 1);
	EVP_CIPHER_CTX_free(a);
	CHECK_EQ(EVP_EncryptFinal_ex(b, in, &n), 1);
	CHECK_EQ(EVP_CIPHER_CTX_ctrl(b, EVP_CTRL_AEAD_GET_TAG, TAG, tag[1]), 1);
	EVP_CIPHER_CTX_free(b);
	CHECK_MEM(out[0], out[1], sizeof(out[0]));
	CHECK_MEM(tag[0], tag[1], TAG);
	CHECK_EQ(tls_gcm_contexts(), before - 1);
}

static void no_memory_for_a_cipher(void)
{
	EVP_CIPHER *c = ours(names[0]);
	EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new(), *copy = EVP_CIPHER_CTX_new();

	unit_fail_alloc(1);
	CHECK_EQ(EVP_EncryptInit_ex2(ctx, c, key, iv, NULL), 0);
	CHECK(unit_fail_alloc(0) >= 1);
	CHECK_EQ(EVP_EncryptInit_ex2(ctx, c, key, iv, NULL), 1);
	unit_fail_alloc(1);
	CHECK_EQ(EVP_CIPHER_CTX_copy(copy, ctx), 0);
	CHECK(unit_fail_alloc(0) >= 1);
	EVP_CIPHER_CTX_free(ctx);
	EVP_CIPHER_CTX_free(copy);
	EVP_CIPHER_free(c);
	CHECK_EQ(tls_gcm_contexts(), 0);
	ERR_clear_error();
}

UNIT_MAIN(TEST(answers_are_the_known_ones), TEST(answers_are_those_of_openssl),
	  TEST(both_describe_themselves_alike), TEST(only_those_who_ask_get_it),
	  TEST(an_iv_serves_one_message), TEST(nothing_works_without_a_key),
	  TEST(other_lengths_are_refused), TEST(a_tag_serves_one_message),
	  TEST(a_copy_goes_on_alone), TEST(no_memory_for_a_cipher))
