/* SPDX-License-Identifier: MIT */
/* CAs, certificates and keys for tests, by the library itself. */
#ifndef GODWIT_TESTS_TLS_CERTS_H
#define GODWIT_TESTS_TLS_CERTS_H

#include <check.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

struct certs_ca {
	X509 *cert;
	EVP_PKEY *key;
};

struct certs_spec {
	const char *names;   /* "DNS:a,IP:127.0.0.1"; NULL: none */
	const char *purpose; /* "serverAuth"; NULL: any */
	long from_s, to_s;   /* from now on; both 0: an hour, from an hour ago */
};

static inline void certs_extension(X509 *x, int nid, const char *value)
{
	X509_EXTENSION *e = X509V3_EXT_conf_nid(NULL, NULL, nid, value);

	ck_assert_ptr_nonnull(e);
	ck_assert_int_eq(X509_add_ext(x, e, -1), 1);
	X509_EXTENSION_free(e);
}

/* Signed by the CA, or by itself. */
static inline X509 *certs_make(const struct certs_ca *ca, const char *subject, EVP_PKEY *key,
			       const struct certs_spec *s)
{
	static long serial = 1000;
	bool dated = s->from_s || s->to_s;
	X509 *x = X509_new();

	ck_assert_ptr_nonnull(x);
	X509_set_version(x, 2);
	ASN1_INTEGER_set(X509_get_serialNumber(x), ++serial);
	X509_gmtime_adj(X509_getm_notBefore(x), dated ? s->from_s : -3600);
	X509_gmtime_adj(X509_getm_notAfter(x), dated ? s->to_s : 3600);
	X509_set_pubkey(x, key);
	X509_NAME_add_entry_by_txt(X509_get_subject_name(x), "CN", MBSTRING_ASC,
				   (const unsigned char *)subject, -1, -1, 0);
	X509_set_issuer_name(x, X509_get_subject_name(ca ? ca->cert : x));
	certs_extension(x, NID_basic_constraints, ca ? "critical,CA:FALSE" : "critical,CA:TRUE");
	if (s->names)
		certs_extension(x, NID_subject_alt_name, s->names);
	if (s->purpose)
		certs_extension(x, NID_ext_key_usage, s->purpose);
	ck_assert_int_gt(X509_sign(x, ca ? ca->key : key, EVP_sha256()), 0);
	return x;
}

static inline FILE *certs_create(const char *dir, const char *name, mode_t mode)
{
	char path[512];
	FILE *f;
	int fd;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	unlink(path);
	fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
	ck_assert_int_ge(fd, 0);
	f = fdopen(fd, "w");
	ck_assert_ptr_nonnull(f);
	return f;
}

static inline void certs_write(const char *dir, const char *name, const char *text, mode_t mode)
{
	FILE *f = certs_create(dir, name, mode);

	ck_assert_int_ge(fputs(text, f), 0);
	ck_assert_int_eq(fclose(f), 0);
}

/* dir/NAME.pem */
static inline void certs_ca(struct certs_ca *ca, const char *dir, const char *name)
{
	char file[64];
	FILE *f;

	ca->key = EVP_EC_gen("P-256");
	ck_assert_ptr_nonnull(ca->key);
	ca->cert = certs_make(NULL, name, ca->key, &(struct certs_spec){.to_s = 0});
	snprintf(file, sizeof(file), "%s.pem", name);
	f = certs_create(dir, file, 0644);
	ck_assert_int_eq(PEM_write_X509(f, ca->cert), 1);
	fclose(f);
}

/* dir/NAME.pem and dir/NAME.key */
static inline void certs_host(const struct certs_ca *ca, const char *dir, const char *name,
			      const struct certs_spec *s)
{
	EVP_PKEY *key = EVP_EC_gen("P-256");
	X509 *x = certs_make(ca, name, key, s);
	char file[64];
	FILE *f;

	snprintf(file, sizeof(file), "%s.pem", name);
	f = certs_create(dir, file, 0644);
	ck_assert_int_eq(PEM_write_X509(f, x), 1);
	fclose(f);
	snprintf(file, sizeof(file), "%s.key", name);
	f = certs_create(dir, file, 0600);
	ck_assert_int_eq(PEM_write_PrivateKey(f, key, NULL, NULL, 0, NULL, NULL), 1);
	fclose(f);
	X509_free(x);
	EVP_PKEY_free(key);
}

static inline void certs_ca_free(struct certs_ca *ca)
{
	X509_free(ca->cert);
	EVP_PKEY_free(ca->key);
}

#endif
