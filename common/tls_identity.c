/* SPDX-License-Identifier: MIT */
/*
 * A host's key and certificate, and the certificates it trusts.
 *
 *   DIR 0700		    key.pem 0600	cert.pem	trusted/NAME.pem
 *
 * Every file is written beside its name, made durable and renamed: none is ever there in part. The folder is locked by whoever
 * writes. A key counts as made when key.pem is there, so cert.pem comes first; replacing both cannot be one step, and being
 * killed between leaves a key and a certificate that do not belong together, which loading notices.
 *
 * There is no authority to sign: a certificate only carries a public key, so it is trusted as a whole, byte for byte, or not.
 */
#include "common/tls_identity.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <openssl/bn.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include "common/tls_gcm.h"

#define TLS_PEM_MAX	(64u << 10)
#define TLS_TRUSTED_MAX 4096u
#define TLS_DAY_S	(24 * 60 * 60)
#define TLS_VALID_S	((time_t)3652 * TLS_DAY_S) /* 10 years */
/* P-256 has 128 bits of security (NIST SP 800-57 part 1, table 2). */
#define TLS_KEY_BITS_OF_SECURITY 128

static const struct {
	const char *name, *label;
} tls_ciphers[] = {
	{"TLS_AES_128_GCM_SHA256", "AES-128-GCM"},
	{"TLS_AES_256_GCM_SHA384", "AES-256-GCM"},
	{"TLS_CHACHA20_POLY1305_SHA256", "CHACHA20-POLY1305"},
};

const char *tls_cipher_label(const char *name)
{
	for (size_t i = 0; i < sizeof(tls_ciphers) / sizeof(tls_ciphers[0]); i++) {
		if (!strcmp(name, tls_ciphers[i].name))
			return tls_ciphers[i].label;
	}
	return name;
}

const char *tls_reason(void)
{
	const char *text = ERR_reason_error_string(ERR_peek_last_error());

	ERR_clear_error();
	return text ? text : "no reason given";
}

/* ---- certificates ---- */

static int certificate_extend(X509 *cert, int nid, const char *value)
{
	X509_EXTENSION *ext = X509V3_EXT_conf_nid(NULL, NULL, nid, value);
	int ok = ext && X509_add_ext(cert, ext, -1);

	X509_EXTENSION_free(ext);
	return ok;
}

static int certificate_number(X509 *cert)
{
	BIGNUM *n = BN_new();
	/* 127 random bits: positive, and in the 20 octets that RFC 5280 allows. */
	int ok = n && BN_rand(n, 127, BN_RAND_TOP_ANY, BN_RAND_BOTTOM_ANY) &&
		 BN_to_ASN1_INTEGER(n, X509_get_serialNumber(cert));

	BN_free(n);
	return ok;
}

int tls_certificate_make(EVP_PKEY *key, const char *cn, time_t from, time_t until, X509 **out)
{
	X509 *cert = X509_new();
	X509_NAME *name = cert ? X509_get_subject_name(cert) : NULL;
	const unsigned char *text = (const unsigned char *)cn;

	*out = NULL;
	if (cert && X509_set_version(cert, X509_VERSION_3) && certificate_number(cert) &&
	    X509_time_adj(X509_getm_notBefore(cert), 0, &from) &&
	    X509_time_adj(X509_getm_notAfter(cert), 0, &until) &&
	    X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_UTF8, text, -1, -1, 0) &&
	    X509_set_issuer_name(cert, name) && X509_set_pubkey(cert, key) &&
	    certificate_extend(cert, NID_basic_constraints, "critical,CA:FALSE") &&
	    certificate_extend(cert, NID_key_usage, "critical,digitalSignature") &&
	    certificate_extend(cert, NID_ext_key_usage, "serverAuth,clientAuth") &&
	    X509_sign(cert, key, EVP_sha256())) {
		*out = cert;
		return 0;
	}
	X509_free(cert);
	ERR_clear_error();
	return -ENOMEM;
}

void tls_certificate_fingerprint(const X509 *cert, char out[TLS_FINGERPRINT_SIZE])
{
	unsigned char md[EVP_MAX_MD_SIZE];
	unsigned length = 0;
	size_t n;

	n = (size_t)snprintf(out, TLS_FINGERPRINT_SIZE, "SHA256");
	if (!X509_digest(cert, EVP_sha256(), md, &length))
		snprintf(out, TLS_FINGERPRINT_SIZE, "(no memory for the fingerprint)");
	for (unsigned i = 0; i < length && n + 4 <= TLS_FINGERPRINT_SIZE; i++, n += 3)
		snprintf(out + n, TLS_FINGERPRINT_SIZE - n, ":%02X", md[i]);
}

void tls_certificate_name(const X509 *cert, char out[TLS_NAME_MAX + 1])
{
	int n = X509_NAME_get_text_by_NID(X509_get_subject_name(cert), NID_commonName, out,
					  TLS_NAME_MAX + 1);

	if (n < 0)
		snprintf(out, TLS_NAME_MAX + 1, "(no name)");
	for (char *p = out; *p; p++) {
		if (*p < 0x20 || *p >= 0x7f)
			*p = '?';
	}
}

int tls_certificate_validity(const X509 *cert)
{
	/* X509_cmp_current_time: 0 is an unreadable time, which counts as outside. */
	if (X509_cmp_current_time(X509_get0_notAfter(cert)) <= 0)
		return -EKEYEXPIRED;
	if (X509_cmp_current_time(X509_get0_notBefore(cert)) >= 0)
		return -EAGAIN;
	return 0;
}

/* OpenSSL must never ask for a pass phrase on the terminal. */
static int no_passphrase(char *buf, int size, int rwflag, void *user)
{
	(void)buf;
	(void)size;
	(void)rwflag;
	(void)user;
	return -1;
}

/* The one certificate in pem; what names it in messages. */
static int certificate_parse(const char *pem, const char *what, X509 **out, struct pgr_error *err)
{
	size_t length = strlen(pem);
	BIO *bio = length <= TLS_PEM_MAX ? BIO_new_mem_buf(pem, (int)length) : NULL;
	X509 *more = NULL;
	int ret = 0;

	*out = NULL;
	if (bio)
		*out = PEM_read_bio_X509(bio, NULL, no_passphrase, NULL);
	if (*out)
		more = PEM_read_bio_X509(bio, NULL, no_passphrase, NULL);
	if (!*out)
		ret = pgr_fail(
			err, -EINVAL,
			"%s: is not a certificate in PEM form (%s); copy the other host's cert.pem again",
			what, length > TLS_PEM_MAX ? "too long" : tls_reason());
	else if (more)
		ret = pgr_fail(
			err, -EINVAL,
			"%s: holds more than one certificate; give exactly the other host's cert.pem",
			what);
	if (ret) {
		X509_free(*out);
		*out = NULL;
	}
	X509_free(more);
	BIO_free(bio);
	ERR_clear_error();
	return ret;
}

/* ---- files ---- */

static int read_text(int dir, const char *name, mode_t forbidden, const char *where, char **out,
		     struct pgr_error *err)
{
	int fd = openat(dir, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	char *text = NULL;
	struct stat st;
	ssize_t n;
	int ret = 0;

	*out = NULL;
	if (fd < 0 || fstat(fd, &st)) {
		ret = -errno;
		if (ret == -ENOENT)
			pgr_fail(
				err, ret,
				"%s/%s: not there: this host has no identity yet; run `pagurus host init` on this host",
				where, name);
		else
			pgr_fail_errno(err, ret, "%s/%s: cannot be opened", where, name);
		goto out;
	}
	if (!S_ISREG(st.st_mode) || st.st_size <= 0 || st.st_size > (off_t)TLS_PEM_MAX) {
		ret = pgr_fail(err, -EINVAL, "%s/%s: is not a PEM file of 1 to %u bytes", where,
			       name, TLS_PEM_MAX);
		goto out;
	}
	if (forbidden && ((st.st_mode & forbidden) || st.st_uid != geteuid())) {
		ret = pgr_fail(
			err, -EPERM,
			"%s/%s: others may have read this private key (owner %u, mode %04o); if nobody did, run `chown %u` and `chmod 600` on it, else `pagurus host init --force` and trust the new certificate on the other hosts",
			where, name, st.st_uid, st.st_mode & 07777, geteuid());
		goto out;
	}
	text = calloc(1, (size_t)st.st_size + 1);
	if (!text) {
		ret = pgr_fail(err, -ENOMEM, "%s/%s: no memory to read it", where, name);
		goto out;
	}
	n = pread(fd, text, (size_t)st.st_size, 0);
	if (n != st.st_size) {
		ret = pgr_fail_errno(err, n < 0 ? -errno : -EIO, "%s/%s: cannot be read", where,
				     name);
		free(text);
		goto out;
	}
	*out = text;
out:
	if (fd >= 0)
		close(fd);
	assert(ret < 0 || *out);
	return ret;
}

/* Write beside the name; rename_file() then puts it there. The folder is locked, so the temporary name is ours alone. */
static int write_beside(int dir, const char *name, const void *data, size_t length)
{
	char beside[TLS_NAME_MAX + 16];
	int fd;
	int ret = 0;

	snprintf(beside, sizeof(beside), ".%s.new", name);
	unlinkat(dir, beside, 0);
	fd = openat(dir, beside, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		return -errno;
	for (size_t at = 0; at < length && !ret;) {
		ssize_t n = write(fd, (const char *)data + at, length - at);

		if (n >= 0)
			at += (size_t)n;
		else if (errno != EINTR)
			ret = -errno;
	}
	if (!ret && fsync(fd))
		ret = -errno;
	close(fd);
	if (ret)
		unlinkat(dir, beside, 0);
	return ret;
}

static int rename_file(int dir, const char *name)
{
	char beside[TLS_NAME_MAX + 16];

	snprintf(beside, sizeof(beside), ".%s.new", name);
	return renameat(dir, beside, dir, name) ? -errno : 0;
}

static int write_file(int dir, const char *name, BIO *content)
{
	const char *data;
	long length = BIO_get_mem_data(content, &data);

	return write_beside(dir, name, data, (size_t)length);
}

/* A host's name becomes a file's name and a common name. */
static int check_name(const char *name, struct pgr_error *err)
{
	size_t n =
		strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_");

	if (n == 0 || name[n] || n > TLS_NAME_MAX || name[0] == '.' || name[0] == '-')
		return pgr_fail(
			err, -EINVAL,
			"host name \"%.80s\": not 1 to %u letters, digits, dots, hyphens and underlines that begin with a letter or digit; choose another name",
			name, TLS_NAME_MAX);
	return 0;
}

/* Open the identity's folder and lock it; nothing that others may write to is taken. */
static int open_folder(const char *dir, bool lock, int *out, struct pgr_error *err)
{
	struct stat st;
	int ret;
	int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	*out = -1;
	if (fd < 0 || fstat(fd, &st)) {
		ret = -errno;
		if (fd >= 0)
			close(fd);
		if (ret == -ENOENT)
			return pgr_fail(
				err, ret,
				"%s: not there: this host has no identity yet; run `pagurus host init` on this host",
				dir);
		return pgr_fail_errno(err, ret, "%s: cannot be opened", dir);
	}
	if (st.st_uid != geteuid() || (st.st_mode & 022)) {
		close(fd);
		return pgr_fail(
			err, -EPERM,
			"%s: others may write there (owner %u, mode %04o), so its keys cannot be relied on; run `chown %u` and `chmod 700` on it after checking what is in it",
			dir, st.st_uid, st.st_mode & 07777, geteuid());
	}
	if (lock && flock(fd, LOCK_EX)) {
		ret = -errno;
		close(fd);
		return pgr_fail_errno(err, ret, "%s: cannot be locked", dir);
	}
	*out = fd;
	return 0;
}

/* Open trusted/, making it when it is not there. */
static int open_trusted(int dir)
{
	int fd;

	if (mkdirat(dir, "trusted", 0700) && errno != EEXIST)
		return -errno;
	fd = openat(dir, "trusted", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

/* ---- making ---- */

int tls_identity_create(const char *dir, const char *name, bool force, struct pgr_error *err)
{
	EVP_PKEY *key = NULL;
	X509 *cert = NULL;
	/* Secure memory is wiped when it is freed. */
	BIO *key_pem = BIO_new(BIO_s_secmem());
	BIO *cert_pem = BIO_new(BIO_s_mem());
	const time_t now = time(NULL);
	int trusted = -1;
	int fd = -1;
	int ret = check_name(name, err);

	if (!ret && mkdir(dir, 0700) && errno != EEXIST)
		ret = pgr_fail_errno(err, -errno,
				     "%s: cannot be made; make the folder it is in first", dir);
	if (!ret)
		ret = open_folder(dir, true, &fd, err);
	if (ret)
		goto out;
	if (fchmod(fd, 0700)) {
		ret = pgr_fail_errno(err, -errno, "%s: cannot be closed to others", dir);
		goto out;
	}
	if (!force && !faccessat(fd, "key.pem", F_OK, AT_SYMLINK_NOFOLLOW)) {
		ret = pgr_fail(
			err, -EEXIST,
			"%s: this host has an identity already; with `--force` it gets a new one, which all other hosts must then trust again",
			dir);
		goto out;
	}
	key = EVP_EC_gen("P-256");
	/* Valid since yesterday: the other host's clock may be behind. */
	if (!key || !key_pem || !cert_pem ||
	    tls_certificate_make(key, name, now - TLS_DAY_S, now + TLS_VALID_S, &cert) ||
	    !PEM_write_bio_PrivateKey(key_pem, key, NULL, NULL, 0, NULL, NULL) ||
	    !PEM_write_bio_X509(cert_pem, cert)) {
		ret = pgr_fail(err, -ENOMEM, "%s: no key could be made (%s)", dir, tls_reason());
		goto out;
	}
	trusted = open_trusted(fd);
	ret = trusted < 0 ? trusted : write_file(fd, "key.pem", key_pem);
	if (!ret)
		ret = write_file(fd, "cert.pem", cert_pem);
	if (!ret)
		ret = rename_file(fd, "cert.pem");
	if (!ret)
		ret = rename_file(fd, "key.pem");
	if (!ret && fsync(fd))
		ret = -errno;
	if (ret)
		pgr_fail_errno(err, ret, "%s: the identity cannot be written", dir);
out:
	if (trusted >= 0)
		close(trusted);
	if (fd >= 0)
		close(fd);
	X509_free(cert);
	EVP_PKEY_free(key);
	BIO_free(key_pem);
	BIO_free(cert_pem);
	ERR_clear_error();
	return ret;
}

/* Whether a certificate may be trusted at all. */
static int check_certificate(X509 *cert, const char *name, struct pgr_error *err)
{
	EVP_PKEY *key = X509_get0_pubkey(cert);
	int validity = tls_certificate_validity(cert);

	if (!key || EVP_PKEY_get_security_bits(key) < TLS_KEY_BITS_OF_SECURITY)
		return pgr_fail(
			err, -EINVAL,
			"the certificate for %s: its key is weaker than P-256 or of an unknown kind; make a new one with `pagurus host init` there",
			name);
	if (validity == -EKEYEXPIRED)
		return pgr_fail(
			err, validity,
			"the certificate for %s: has expired; run `pagurus host init --force` there, and check this host's clock",
			name);
	if (validity)
		return pgr_fail(
			err, -EKEYREJECTED,
			"the certificate for %s: is not valid yet; check both hosts' clocks", name);
	return 0;
}

int tls_identity_trust(const char *dir, const char *name, const char *pem, struct pgr_error *err)
{
	char file[TLS_NAME_MAX + 8];
	X509 *cert = NULL;
	BIO *clean = NULL;
	int trusted = -1;
	int fd = -1;
	int ret = check_name(name, err);

	if (!ret)
		ret = certificate_parse(pem, name, &cert, err);
	if (!ret)
		ret = check_certificate(cert, name, err);
	if (!ret)
		ret = open_folder(dir, true, &fd, err);
	if (ret)
		goto out;
	/* What was around the certificate in the text is not kept. */
	clean = BIO_new(BIO_s_mem());
	if (!clean || !PEM_write_bio_X509(clean, cert)) {
		ret = pgr_fail(err, -ENOMEM, "no memory for the certificate of %s", name);
		goto out;
	}
	snprintf(file, sizeof(file), "%s.pem", name);
	trusted = open_trusted(fd);
	ret = trusted < 0 ? trusted : write_file(trusted, file, clean);
	if (!ret)
		ret = rename_file(trusted, file);
	if (!ret && fsync(trusted))
		ret = -errno;
	if (ret)
		pgr_fail_errno(err, ret, "%s/trusted/%s: cannot be written", dir, file);
out:
	if (trusted >= 0)
		close(trusted);
	if (fd >= 0)
		close(fd);
	X509_free(cert);
	BIO_free(clean);
	ERR_clear_error();
	return ret;
}

int tls_fingerprint(const char *pem, char out[TLS_FINGERPRINT_SIZE], struct pgr_error *err)
{
	X509 *cert;
	int ret = certificate_parse(pem, "the certificate", &cert, err);

	if (ret)
		return ret;
	tls_certificate_fingerprint(cert, out);
	X509_free(cert);
	return 0;
}

/* ---- verifying ---- */

static const struct tls_trusted *find_trusted(const struct tls_identity *id, X509 *cert)
{
	const struct tls_trusted *found = NULL;
	unsigned char *der = NULL;
	int length = i2d_X509(cert, &der);

	for (size_t i = 0; length > 0 && i < id->nr_trusted && !found; i++) {
		const struct tls_trusted *t = &id->trusted[i];

		if (t->der_length == length && !memcmp(t->der, der, (size_t)length))
			found = t;
	}
	OPENSSL_free(der);
	return found;
}

static enum tls_refusal check_peer(struct tls_check *k, X509 *cert)
{
	tls_certificate_name(cert, k->name);
	tls_certificate_fingerprint(cert, k->fingerprint);
	k->found = find_trusted(k->id, cert);
	if (!k->found)
		return REFUSED_UNKNOWN;
	switch (tls_certificate_validity(cert)) {
	case 0:
		break;
	case -EAGAIN:
		return REFUSED_EARLY;
	default:
		return REFUSED_EXPIRED;
	}
	if (k->expect && strcmp(k->expect, k->found->name))
		return REFUSED_NAME;
	return REFUSED_NOT;
}

/* OpenSSL's question whether the chain that the peer sent is good; the error chooses the alert that the peer gets. */
static int verify(X509_STORE_CTX *ctx, void *arg)
{
	static const int errors[] = {
		[REFUSED_NOT] = X509_V_OK,
		[REFUSED_UNKNOWN] = X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT, /* unknown_ca */
		[REFUSED_EXPIRED] = X509_V_ERR_CERT_HAS_EXPIRED, /* certificate_expired */
		[REFUSED_EARLY] = X509_V_ERR_CERT_NOT_YET_VALID, /* bad_certificate */
		[REFUSED_NAME] = X509_V_ERR_CERT_REVOKED,	 /* certificate_revoked */
	};
	SSL *ssl = X509_STORE_CTX_get_ex_data(ctx, SSL_get_ex_data_X509_STORE_CTX_idx());
	struct tls_check *k = SSL_get_app_data(ssl);
	X509 *cert = X509_STORE_CTX_get0_cert(ctx);

	(void)arg;
	if (!k || !cert) {
		X509_STORE_CTX_set_error(ctx, X509_V_ERR_UNSPECIFIED);
		return 0;
	}
	k->refusal = check_peer(k, cert);
	X509_STORE_CTX_set_error(ctx, errors[k->refusal]);
	return k->refusal == REFUSED_NOT;
}

/* ---- loading ---- */

static int load_own(struct tls_identity *id, int fd, const char *dir, EVP_PKEY **key,
		    struct pgr_error *err)
{
	char *text;
	BIO *bio;
	int ret = read_text(fd, "key.pem", 077, dir, &text, err);

	if (ret)
		return ret;
	bio = BIO_new_mem_buf(text, -1);
	*key = bio ? PEM_read_bio_PrivateKey(bio, NULL, no_passphrase, NULL) : NULL;
	BIO_free(bio);
	OPENSSL_cleanse(text, strlen(text));
	free(text);
	if (!*key)
		return pgr_fail(
			err, -EINVAL,
			"%s/key.pem: is not a private key (%s); restore it, or run `pagurus host init --force`",
			dir, tls_reason());
	ret = read_text(fd, "cert.pem", 0, dir, &text, err);
	if (ret)
		return ret;
	ret = certificate_parse(text, dir, &id->cert, err);
	free(text);
	if (ret)
		return ret;
	tls_certificate_name(id->cert, id->name);
	tls_certificate_fingerprint(id->cert, id->fingerprint);
	if (!X509_check_private_key(id->cert, *key))
		return pgr_fail(
			err, -EKEYREJECTED,
			"%s: key.pem and cert.pem do not belong together, perhaps because `pagurus host init` was interrupted; run `pagurus host init --force` and trust the new certificate on the other hosts",
			dir);
	if (tls_certificate_validity(id->cert) == -EKEYEXPIRED)
		return pgr_fail(
			err, -EKEYEXPIRED,
			"%s: this host's certificate has expired; check its clock, else run `pagurus host init --force` and trust the new certificate on the other hosts",
			dir);
	return 0;
}

static int load_context(struct tls_identity *id, EVP_PKEY *key, struct pgr_error *err)
{
	/* Where the processor has no AES, software AES is slow and leaks by its timing. */
	const char *order =
		__builtin_cpu_supports("aes")
			? "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
			: "TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384";

	id->ctx = SSL_CTX_new_ex(NULL, tls_gcm_properties(), TLS_method());
	if (!id->ctx || !SSL_CTX_set_min_proto_version(id->ctx, TLS1_3_VERSION) ||
	    !SSL_CTX_set_max_proto_version(id->ctx, TLS1_3_VERSION) ||
	    !SSL_CTX_set_ciphersuites(id->ctx, order) || !SSL_CTX_set_num_tickets(id->ctx, 0) ||
	    SSL_CTX_use_certificate(id->ctx, id->cert) != 1 ||
	    SSL_CTX_use_PrivateKey(id->ctx, key) != 1)
		return pgr_fail(err, -ENOMEM, "TLS cannot be set up (%s)", tls_reason());
	SSL_CTX_set_options(id->ctx, SSL_OP_NO_TICKET | SSL_OP_NO_COMPRESSION |
					     SSL_OP_CIPHER_SERVER_PREFERENCE);
	SSL_CTX_set_cert_verify_callback(id->ctx, verify, NULL);
	SSL_CTX_set_session_cache_mode(id->ctx, SSL_SESS_CACHE_OFF);
	return 0;
}

/* The host that a file in trusted/ is for; false: not such a file. */
static bool trusted_name(const char *file, char name[TLS_NAME_MAX + 1])
{
	size_t n = strlen(file);

	if (n <= 4 || n - 4 > TLS_NAME_MAX || strcmp(file + n - 4, ".pem"))
		return false;
	memcpy(name, file, n - 4);
	name[n - 4] = '\0';
	return check_name(name, NULL) == 0;
}

static int load_one(struct tls_identity *id, int fd, const char *file, const char *where,
		    struct pgr_error *err)
{
	struct tls_trusted t = {0};
	struct tls_trusted *list;
	char *text;
	int ret;

	if (!trusted_name(file, t.name))
		return 0;
	if (id->nr_trusted == TLS_TRUSTED_MAX)
		return pgr_fail(err, -E2BIG,
				"%s: more than %u certificates; remove what is not needed", where,
				TLS_TRUSTED_MAX);
	ret = read_text(fd, file, 0, where, &text, err);
	if (ret)
		return ret;
	ret = certificate_parse(text, t.name, &t.cert, err);
	free(text);
	if (ret)
		return ret;
	list = realloc(id->trusted, (id->nr_trusted + 1) * sizeof(*list));
	if (list)
		id->trusted = list;
	t.der_length = list ? i2d_X509(t.cert, &t.der) : -1;
	if (t.der_length <= 0) {
		X509_free(t.cert);
		return pgr_fail(err, -ENOMEM, "%s: no memory for the certificate of %s", where,
				t.name);
	}
	id->trusted[id->nr_trusted++] = t;
	return 0;
}

static int load_trusted(struct tls_identity *id, int dir, const char *where, struct pgr_error *err)
{
	char path[512];
	struct dirent *entry;
	int fd = openat(dir, "trusted", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	DIR *list = fd < 0 ? NULL : fdopendir(fd);
	int ret = 0;

	snprintf(path, sizeof(path), "%s/trusted", where);
	/* A host that trusts nobody yet is a host. */
	if (fd < 0 && errno == ENOENT)
		return 0;
	if (!list) {
		ret = pgr_fail_errno(err, -errno, "%s: cannot be read", path);
		if (fd >= 0)
			close(fd);
		return ret;
	}
	while (!ret && (entry = readdir(list)))
		ret = load_one(id, fd, entry->d_name, path, err);
	closedir(list);
	return ret;
}

int tls_identity_load(const char *dir, struct tls_identity **out, struct pgr_error *err)
{
	struct tls_identity *id = calloc(1, sizeof(*id));
	EVP_PKEY *key = NULL;
	int fd = -1;
	int ret;

	*out = NULL;
	if (!id)
		return pgr_fail(err, -ENOMEM, "%s: no memory for the identity", dir);
	ret = open_folder(dir, false, &fd, err);
	if (!ret)
		ret = load_own(id, fd, dir, &key, err);
	if (!ret)
		ret = load_trusted(id, fd, dir, err);
	if (!ret)
		ret = load_context(id, key, err);
	if (fd >= 0)
		close(fd);
	EVP_PKEY_free(key);
	ERR_clear_error();
	if (ret)
		tls_identity_free(id);
	else
		*out = id;
	return ret;
}

void tls_identity_free(struct tls_identity *id)
{
	if (!id)
		return;
	for (size_t i = 0; i < id->nr_trusted; i++) {
		X509_free(id->trusted[i].cert);
		OPENSSL_free(id->trusted[i].der);
	}
	free(id->trusted);
	X509_free(id->cert);
	SSL_CTX_free(id->ctx);
	free(id);
}
