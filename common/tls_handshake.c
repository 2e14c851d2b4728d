// SPDX-License-Identifier: MIT
/* Why a TLS handshake between hosts failed, and what a person can do about it. */
#include "common/tls_identity.h"

#include <errno.h>

#include <openssl/err.h>

int tls_fail_refused(const char *peer, const struct tls_check *k, struct pgr_error *err)
{
	switch (k->refusal) {
	case REFUSED_EXPIRED:
		return pgr_fail(
			err, -EACCES,
			"%s: this host refused the other end's certificate %s (\"%s\"): it has expired; run `pagurus host init --force` on %s and `pagurus host trust %s` on this host, and check this host's clock",
			peer, k->fingerprint, k->name, k->found->name, k->found->name);
	case REFUSED_EARLY:
		return pgr_fail(
			err, -EACCES,
			"%s: this host refused the other end's certificate %s (\"%s\"): it is not valid yet; set the clocks of this host and of %s, then retry",
			peer, k->fingerprint, k->name, k->found->name);
	case REFUSED_NAME:
		return pgr_fail(
			err, -EACCES,
			"%s: this host refused the other end's certificate %s: it is that of %s, not of %s; check the address, or run `pagurus host trust %s` on this host if that host has a new certificate",
			peer, k->fingerprint, k->found->name, k->expect, k->expect);
	default:
		return pgr_fail(
			err, -EACCES,
			"%s: this host refused the other end's certificate %s (\"%s\"): it is not trusted here; if it is the right host's (compare with `pagurus host check` there), run `pagurus host trust %s` on this host",
			peer, k->fingerprint, k->name, k->expect ? k->expect : k->name);
	}
}

/* The other side sent an alert about our certificate, or about something else. */
static int fail_alert(const char *peer, int alert, const struct tls_identity *id,
		      struct pgr_error *err)
{
	const char *why;
	int code = -EACCES;

	switch (alert) {
	case SSL_AD_UNKNOWN_CA:
	case SSL_AD_CERTIFICATE_UNKNOWN:
		why = "it is not trusted there; if that is the right host, run `pagurus host trust` for this host on the other host";
		break;
	case SSL_AD_CERTIFICATE_EXPIRED:
		why = "it has expired; run `pagurus host init --force` on this host and `pagurus host trust` for it on the other host, and check the other host's clock";
		break;
	case SSL_AD_BAD_CERTIFICATE:
		why = "it is not valid yet by the other host's clock; set both clocks, then retry";
		break;
	case SSL_AD_CERTIFICATE_REVOKED:
		why = "the other host expects another host here; check the names, or run `pagurus host trust` for this host on the other host";
		break;
	case SSL_AD_CERTIFICATE_REQUIRED:
		why = "it was not sent; run `pagurus host init` on this host";
		break;
	case SSL_AD_PROTOCOL_VERSION:
		return pgr_fail(err, -EPROTO,
				"%s: the other end does not accept TLS 1.3; update it", peer);
	default:
		return pgr_fail(
			err, -EPROTO,
			"%s: the other end ended the TLS handshake (alert %d, %s); look into its log",
			peer, alert, SSL_alert_desc_string_long(alert));
	}
	return pgr_fail(err, code,
			"%s: the other end refused this host's certificate %s (\"%s\"): %s", peer,
			id->fingerprint, id->name, why);
}

int tls_fail_handshake(const char *peer, const struct tls_check *k, struct pgr_error *err)
{
	int reason = ERR_GET_REASON(ERR_peek_last_error());

	ERR_clear_error();
	if (k->refusal != REFUSED_NOT)
		return tls_fail_refused(peer, k, err);
	if (reason > SSL_AD_REASON_OFFSET && reason <= SSL_AD_REASON_OFFSET + 255)
		return fail_alert(peer, reason - SSL_AD_REASON_OFFSET, k->id, err);
	switch (reason) {
	case SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE:
		return pgr_fail(
			err, -EACCES,
			"%s: the other end sent no certificate, which this host requires; run `pagurus host init` there",
			peer);
	case SSL_R_UNSUPPORTED_PROTOCOL:
	case SSL_R_WRONG_SSL_VERSION:
	case SSL_R_WRONG_VERSION_NUMBER:
	case SSL_R_TLSV1_ALERT_PROTOCOL_VERSION:
		return pgr_fail(
			err, -EPROTO,
			"%s: the other end does not offer TLS 1.3, which this host requires; update it",
			peer);
	case ERR_R_MALLOC_FAILURE:
		return pgr_fail(err, -ENOMEM, "%s: no memory for the TLS handshake", peer);
	default:
		return pgr_fail(err, -EPROTO, "%s: the TLS handshake failed (%s)", peer,
				ERR_reason_error_string(ERR_PACK(ERR_LIB_SSL, 0, reason)));
	}
}
