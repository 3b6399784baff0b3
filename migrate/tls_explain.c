/* SPDX-License-Identifier: MIT */
/*
 * Why a TLS connection failed, in words that name the remedy. What the peer refuses comes as an
 * alert (RFC 8446, 6.2), which says little: the rest follows from what was being done.
 */
#include <errno.h>
#include <openssl/err.h>

#include "tls_parts.h"

/* Of the peer's certificate, by X509_V_ERR_*. */
static int explain_certificate(const struct tls_link *l, struct errmsg *err)
{
	long why = SSL_get_verify_result(l->ssl);

	if (l->tls->psk_len)
		return errmsg_set(err, -EACCES,
				  "the %s shows a certificate and does not use the pre-shared key: "
				  "is it started with --tls-psk?",
				  l->peer);
	switch (why) {
	case X509_V_ERR_CERT_HAS_EXPIRED:
		return errmsg_set(err, -EACCES, "the %s's certificate has expired", l->peer);
	case X509_V_ERR_CERT_NOT_YET_VALID:
		return errmsg_set(err, -EACCES,
				  "the %s's certificate is not valid yet: are both clocks right?",
				  l->peer);
	case X509_V_ERR_HOSTNAME_MISMATCH:
	case X509_V_ERR_IP_ADDRESS_MISMATCH:
		return errmsg_set(err, -EACCES,
				  "the %s's certificate is not for '%s': give the name that it is "
				  "for, in the URI or with --tls-name",
				  l->peer, l->tls->name);
	case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
	case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
	case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
	case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
	case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
	case X509_V_ERR_CERT_SIGNATURE_FAILURE:
		return errmsg_set(err, -EACCES,
				  "the %s's certificate is not of the CA that is trusted here "
				  "(--tls-ca)",
				  l->peer);
	default:
		return errmsg_set(err, -EACCES, "the %s's certificate is not good: %s", l->peer,
				  X509_verify_cert_error_string(why));
	}
}

static int explain_alert(const struct tls_link *l, int alert, struct errmsg *err)
{
	bool psk = l->tls->psk_len != 0;

	switch (alert) {
	case SSL_AD_CERTIFICATE_EXPIRED:
		return errmsg_set(err, -EACCES,
				  "the %s refuses our certificate: it has expired, or the %s's "
				  "clock is wrong",
				  l->peer, l->peer);
	case SSL_AD_UNKNOWN_CA:
		return errmsg_set(err, -EACCES,
				  "the %s refuses our certificate: it is not of the CA that is "
				  "trusted there",
				  l->peer);
	case SSL_AD_CERTIFICATE_REQUIRED:
		return errmsg_set(err, -EACCES, "the %s wants a certificate of us (--tls-cert)",
				  l->peer);
	case SSL_AD_BAD_CERTIFICATE:
	case SSL_AD_UNSUPPORTED_CERTIFICATE:
	case SSL_AD_CERTIFICATE_REVOKED:
	case SSL_AD_CERTIFICATE_UNKNOWN:
		return errmsg_set(err, -EACCES,
				  "the %s refuses our certificate (%s): is it right by its name, "
				  "purpose and time?",
				  l->peer, SSL_alert_desc_string_long(alert));
	case SSL_AD_DECRYPT_ERROR:
	case SSL_AD_ILLEGAL_PARAMETER: /* what OpenSSL 3.0 says of a binder that is not right */
		if (!psk)
			break;
		return errmsg_set(err, -EACCES,
				  "the %s holds another pre-shared key (--tls-psk) than this side",
				  l->peer);
	case SSL_AD_HANDSHAKE_FAILURE:
		return errmsg_set(err, -EACCES,
				  psk ? "the %s does not use a pre-shared key (--tls-psk)"
				      : "the %s uses no certificates: is it started with "
					"--tls-psk?",
				  l->peer);
	case SSL_AD_PROTOCOL_VERSION:
		return errmsg_set(err, -EACCES, "the %s does not speak TLS 1.3", l->peer);
	case SSL_AD_BAD_RECORD_MAC:
		return errmsg_set(err, -EBADMSG,
				  "what was sent to the %s was damaged on its way, or forged",
				  l->peer);
	default:
		break;
	}
	return errmsg_set(err, -EPROTO, "the %s has ended TLS: %s", l->peer,
			  SSL_alert_desc_string_long(alert));
}

/* The first of the library's errors that is of TLS itself; they are taken off the queue. */
static unsigned long take_error(void)
{
	unsigned long e, first = 0, any = 0;

	while ((e = ERR_get_error())) {
		any = e;
		if (!first && ERR_GET_LIB(e) == ERR_LIB_SSL)
			first = e;
	}
	return first ? first : any;
}

int tls_explain(const struct tls_link *l, int error, int sys, struct errmsg *err)
{
	unsigned long e = take_error();
	int reason = ERR_GET_LIB(e) == ERR_LIB_SSL ? ERR_GET_REASON(e) : 0;
	const char *text;

	if (error == SSL_ERROR_SYSCALL || reason == SSL_R_UNEXPECTED_EOF_WHILE_READING)
		return sys && error == SSL_ERROR_SYSCALL ? -sys : -ECONNRESET;
	if (error == SSL_ERROR_ZERO_RETURN)
		return -ECONNRESET;
	switch (reason) {
	case SSL_R_CERTIFICATE_VERIFY_FAILED:
		return explain_certificate(l, err);
	case SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE:
		return errmsg_set(err, -EACCES, "the %s has no certificate", l->peer);
	case SSL_R_BINDER_DOES_NOT_VERIFY:
		return errmsg_set(err, -EACCES,
				  "the %s holds another pre-shared key (--tls-psk) than this side",
				  l->peer);
	case SSL_R_NO_SHARED_CIPHER:
	case SSL_R_NO_SUITABLE_SIGNATURE_ALGORITHM:
		return errmsg_set(err, -EACCES,
				  l->tls->psk_len
					  ? "the %s does not use a pre-shared key "
					    "(--tls-psk)"
					  : "the %s has no means of TLS in common with this "
					    "side",
				  l->peer);
	case SSL_R_WRONG_VERSION_NUMBER:
	case SSL_R_UNSUPPORTED_PROTOCOL:
	case SSL_R_HTTP_REQUEST:
	case SSL_R_HTTPS_PROXY_REQUEST:
		return errmsg_set(err, -EPROTO, "the %s does not speak TLS 1.3", l->peer);
	case SSL_R_DECRYPTION_FAILED_OR_BAD_RECORD_MAC:
		return errmsg_set(err, -EBADMSG,
				  "what came from the %s was damaged on its way, or forged, or "
				  "played again",
				  l->peer);
	default:
		break;
	}
	if (reason > SSL_AD_REASON_OFFSET)
		return explain_alert(l, reason - SSL_AD_REASON_OFFSET, err);
	text = e ? ERR_reason_error_string(e) : NULL;
	return errmsg_set(err, -EPROTO, "TLS with the %s failed: %s", l->peer,
			  text ? text : "no reason known");
}
