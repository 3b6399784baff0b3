/* SPDX-License-Identifier: MIT */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tls_parts.h"
#include "uri.h"

/* Both hash by SHA-256, as a pre-shared key's suite must. */
#define SUITES "TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256"
#define PSK_SUITE "\x13\x01" /* the first of them */
#define PSK_IDENTITY "godwit"

/* The library's own word on what it did not like; takes it off the queue. */
static const char *library_text(void)
{
	unsigned long e = ERR_get_error();
	const char *text = e ? ERR_reason_error_string(e) : NULL;

	ERR_clear_error();
	return text ? text : "no reason known";
}

/* ---- files ---- */

/* An fd of a file that may be read; one that holds a secret is nobody else's. */
static int open_file(const char *option, const char *path, bool secret, struct errmsg *err)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	struct stat st;

	if (fd < 0)
		return errmsg_set(err, -errno, "--%s %s: %s", option, path, strerror(errno));
	if (fstat(fd, &st) || !S_ISREG(st.st_mode)) {
		close(fd);
		return errmsg_set(err, -EINVAL, "--%s %s: this is not a file", option, path);
	}
	if (secret && (st.st_mode & (S_IRWXO | S_IWGRP))) {
		close(fd);
		return errmsg_set(err, -EINVAL,
				  "--%s %s: others than its owner may use it (mode %04o): chmod "
				  "600, and make a new key if somebody else may have read it",
				  option, path, st.st_mode & 07777U);
	}
	return fd;
}

static int check_readable(const char *option, const char *path, struct errmsg *err)
{
	int fd = open_file(option, path, false, err);

	if (fd < 0)
		return fd;
	close(fd);
	return 0;
}

static int load_certificate(struct tls *t, const char *path, struct errmsg *err)
{
	const X509 *x;
	int ret = check_readable("tls-cert", path, err);

	if (ret)
		return ret;
	if (SSL_CTX_use_certificate_chain_file(t->ctx, path) != 1)
		return errmsg_set(err, -EINVAL, "--tls-cert %s: no certificate in PEM form (%s)",
				  path, library_text());
	x = SSL_CTX_get0_certificate(t->ctx);
	if (X509_cmp_current_time(X509_get0_notAfter(x)) < 0)
		log_warn("--tls-cert %s: the certificate has expired: others will refuse it", path);
	else if (X509_cmp_current_time(X509_get0_notBefore(x)) > 0)
		log_warn("--tls-cert %s: the certificate is not valid yet", path);
	return 0;
}

/* The library would ask on the terminal. */
static int no_passphrase(char *buf, int size, int writing, void *asked)
{
	(void)buf;
	(void)size;
	(void)writing;
	*(bool *)asked = true;
	return -1;
}

static int load_key(struct tls *t, const char *path, const char *cert, struct errmsg *err)
{
	int fd = open_file("tls-key", path, true, err), ret = 0;
	bool asked = false;
	EVP_PKEY *key = NULL;
	BIO *bio;

	if (fd < 0)
		return fd;
	bio = BIO_new_fd(fd, BIO_CLOSE);
	if (!bio) {
		close(fd);
		return errmsg_set(err, -ENOMEM, "no memory for a key");
	}
	key = PEM_read_bio_PrivateKey(bio, NULL, no_passphrase, &asked);
	BIO_free(bio);
	if (asked)
		ret = errmsg_set(err, -EINVAL,
				 "--tls-key %s: the key is locked with a passphrase: save it "
				 "without one ('openssl pkey -in %s -out NEW')",
				 path, path);
	else if (!key)
		ret = errmsg_set(err, -EINVAL, "--tls-key %s: no private key in PEM form (%s)",
				 path, library_text());
	/* With the certificate there already, it must be its key. */
	else if (SSL_CTX_use_PrivateKey(t->ctx, key) != 1)
		ret = errmsg_set(err, -EINVAL,
				 "--tls-key %s is not the key of the certificate in --tls-cert %s",
				 path, cert);
	EVP_PKEY_free(key);
	ERR_clear_error();
	return ret;
}

static int load_ca(struct tls *t, const char *path, struct errmsg *err)
{
	int ret = check_readable("tls-ca", path, err);

	if (ret)
		return ret;
	if (SSL_CTX_load_verify_file(t->ctx, path) != 1)
		return errmsg_set(err, -EINVAL, "--tls-ca %s: no certificate in PEM form (%s)",
				  path, library_text());
	return 0;
}

static int hex_digit(char c)
{
	if (!isxdigit((unsigned char)c))
		return -1;
	return c <= '9' ? c - '0' : (c | ' ') - 'a' + 10;
}

/* Hexadecimal digits, and blanks after them. */
static int load_psk(struct tls *t, const char *path, struct errmsg *err)
{
	int fd = open_file("tls-psk", path, true, err);
	char text[2 * TLS_PSK_MAX + 16];
	ssize_t n;
	size_t len = 0;

	if (fd < 0)
		return fd;
	n = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (n < 0)
		return errmsg_set(err, -EIO, "--tls-psk %s cannot be read", path);
	text[n] = 0;
	while (hex_digit(text[len]) >= 0)
		len++;
	if (len % 2 || len < 2 * (size_t)TLS_PSK_MIN || len > 2 * (size_t)TLS_PSK_MAX ||
	    strspn(text + len, " \t\r\n") != (size_t)n - len) {
		explicit_bzero(text, sizeof(text));
		return errmsg_set(err, -EINVAL,
				  "--tls-psk %s: want %u to %u hexadecimal digits, as 'openssl "
				  "rand -hex 32' prints them",
				  path, 2 * TLS_PSK_MIN, 2 * TLS_PSK_MAX);
	}
	t->psk_len = len / 2;
	for (size_t i = 0; i < t->psk_len; i++)
		t->psk[i] = (uint8_t)(hex_digit(text[2 * i]) << 4 | hex_digit(text[2 * i + 1]));
	explicit_bzero(text, sizeof(text));
	return 0;
}

/* ---- pre-shared keys ---- */

/* To the library an external key is a session to resume (SSL_CTX_set_psk_use_session_callback(3)).
 */
static SSL_SESSION *psk_session(SSL *ssl)
{
	const struct tls *t = SSL_CTX_get_app_data(SSL_get_SSL_CTX(ssl));
	const SSL_CIPHER *cipher = SSL_CIPHER_find(ssl, (const unsigned char *)PSK_SUITE);
	SSL_SESSION *s = SSL_SESSION_new();

	if (s && cipher && SSL_SESSION_set1_master_key(s, t->psk, t->psk_len) == 1 &&
	    SSL_SESSION_set_cipher(s, cipher) == 1 &&
	    SSL_SESSION_set_protocol_version(s, TLS1_3_VERSION) == 1)
		return s;
	SSL_SESSION_free(s);
	return NULL;
}

/* Of the source. */
static int use_psk(SSL *ssl, const EVP_MD *md, const unsigned char **id, size_t *id_len,
		   SSL_SESSION **session)
{
	(void)md;
	*id = (const unsigned char *)PSK_IDENTITY;
	*id_len = strlen(PSK_IDENTITY);
	*session = psk_session(ssl);
	return *session != NULL;
}

/* Of the destination. Another identity is no key of ours: there is nothing else to go on with. */
static int find_psk(SSL *ssl, const unsigned char *id, size_t id_len, SSL_SESSION **session)
{
	*session = NULL;
	if (id_len != strlen(PSK_IDENTITY) || memcmp(id, PSK_IDENTITY, id_len) != 0)
		return 1;
	*session = psk_session(ssl);
	return *session != NULL;
}

/* ---- credentials ---- */

static int make_context(struct tls *t)
{
	SSL_CTX *ctx = SSL_CTX_new(t->listens ? TLS_server_method() : TLS_client_method());

	if (!ctx)
		return -ENOMEM;
	t->ctx = ctx;
	SSL_CTX_set_app_data(ctx, t);
	if (SSL_CTX_set_min_proto_version(ctx, TLS1_3_VERSION) != 1 ||
	    SSL_CTX_set_max_proto_version(ctx, TLS1_3_VERSION) != 1 ||
	    SSL_CTX_set_ciphersuites(ctx, SUITES) != 1 || SSL_CTX_set_num_tickets(ctx, 0) != 1)
		return -ENOTSUP;
	/* Sessions there are none of, but a pre-shared key counts as one; who accepts names his. */
	if (t->listens && SSL_CTX_set_session_id_context(ctx, (const unsigned char *)PSK_IDENTITY,
							 sizeof(PSK_IDENTITY) - 1) != 1)
		return -ENOTSUP;
	SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
	SSL_CTX_set_options(ctx, SSL_OP_NO_TICKET);
	SSL_CTX_clear_options(ctx, SSL_OP_IGNORE_UNEXPECTED_EOF);
	SSL_CTX_set_mode(ctx, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
	SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
	/* A read takes several records from the kernel. */
	SSL_CTX_set_read_ahead(ctx, 1);
	SSL_CTX_set_default_read_buffer_len(ctx, TLS_PUMP_BYTES);
	return 0;
}

static int load_files(struct tls *t, const struct migrate_tls *files, struct errmsg *err)
{
	int ret;

	if (files->psk[0]) {
		SSL_CTX_set_psk_use_session_callback(t->ctx, use_psk);
		SSL_CTX_set_psk_find_session_callback(t->ctx, find_psk);
		return load_psk(t, files->psk, err);
	}
	ret = load_certificate(t, files->cert, err);
	if (ret == 0)
		ret = load_key(t, files->key, files->cert, err);
	if (ret == 0)
		ret = load_ca(t, files->ca, err);
	return ret;
}

/* Which name the destination's certificate must have. */
static int take_name(struct tls *t, const struct migrate_tls *files, const char *uri,
		     struct errmsg *err)
{
	int ret;

	if (t->listens || t->psk_len)
		return 0;
	_Static_assert(sizeof(t->name) == sizeof(files->name), "the same text");
	memcpy(t->name, files->name, sizeof(t->name));
	ret = t->name[0] ? 0 : uri_host(uri, t->name, sizeof(t->name), err);
	if (ret == 0 && !t->name[0])
		ret = errmsg_set(err, -EINVAL,
				 "%s names no host that a certificate could be for: name it, or "
				 "give --tls-name",
				 uri);
	return ret;
}

int tls_load(struct tls **out, const struct migrate_tls *files, const char *uri, bool listens,
	     struct errmsg *err)
{
	struct tls *t = calloc(1, sizeof(*t));
	int ret;

	if (!t)
		return errmsg_set(err, -ENOMEM, "no memory for TLS");
	t->listens = listens;
	t->rekey_records = TLS_REKEY_RECORDS;
	ERR_clear_error();
	ret = make_context(t);
	if (ret)
		errmsg_set(err, ret, "OpenSSL offers no TLS 1.3 here: %s", library_text());
	if (ret == 0)
		ret = load_files(t, files, err);
	if (ret == 0)
		ret = take_name(t, files, uri, err);
	if (ret) {
		tls_free(t);
		return ret;
	}
	*out = t;
	return 0;
}

void tls_free(struct tls *t)
{
	if (!t)
		return;
	SSL_CTX_free(t->ctx);
	explicit_bzero(t, sizeof(*t));
	free(t);
}

/* ---- handshake ---- */

static int wait_ready(int fd, short events, int cancel_fd, uint64_t deadline)
{
	for (;;) {
		struct pollfd p[] = {{.fd = fd, .events = events},
				     {.fd = cancel_fd, .events = POLLIN}};
		uint64_t now = now_ns();
		int n;

		if (now >= deadline)
			return -ETIMEDOUT;
		n = poll(p, 2, (int)MIN((deadline - now) / NS_PER_MS + 1, 3600000ULL));
		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0 && p[1].revents)
			return -ECANCELED;
		if (n > 0)
			return 0;
	}
}

static int shake(struct tls_link *l, int cancel_fd, uint64_t deadline, struct errmsg *err)
{
	for (;;) {
		int n, error, sys, ret;

		ERR_clear_error();
		errno = 0;
		n = SSL_do_handshake(l->ssl);
		sys = errno;
		if (n == 1)
			return 0;
		error = SSL_get_error(l->ssl, n);
		if (error != SSL_ERROR_WANT_READ && error != SSL_ERROR_WANT_WRITE) {
			ret = tls_explain(l, error, sys, err);
			return errmsg_set(err, ret, "the %s broke off the TLS handshake (%s)%s",
					  l->peer, strerror(-ret),
					  l->tls->listens ? "" : ": does it listen at a tls: URI?");
		}
		ret = wait_ready(l->net, error == SSL_ERROR_WANT_READ ? POLLIN : POLLOUT, cancel_fd,
				 deadline);
		if (ret == -ECANCELED)
			return errmsg_set(err, ret, "cancelled");
		if (ret)
			return errmsg_set(err, ret,
					  "the %s does not get on with the TLS handshake: %s",
					  l->peer, strerror(-ret));
	}
}

static int new_ssl(struct tls_link *l)
{
	const struct tls *t = l->tls;

	l->ssl = SSL_new(t->ctx);
	if (!l->ssl || SSL_set_fd(l->ssl, l->net) != 1)
		return -ENOMEM;
	if (t->listens) {
		SSL_set_accept_state(l->ssl);
		return 0;
	}
	SSL_set_connect_state(l->ssl);
	if (t->psk_len)
		return 0;
	/* Also one that is an IP address. */
	SSL_set_hostflags(l->ssl, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
	return SSL_set1_host(l->ssl, t->name) == 1 ? 0 : -ENOMEM;
}

int tls_shake(struct tls_link **out, struct tls *t, int fd, int cancel_fd, uint64_t deadline_ns,
	      struct errmsg *err)
{
	struct tls_link *l = calloc(1, sizeof(*l));
	int flags = fcntl(fd, F_GETFL), ret = -ENOMEM;

	if (!l)
		goto fail;
	l->tls = t;
	l->peer = t->listens ? "source" : "destination";
	l->net = fd;
	l->near = -1;
	fcntl(fd, F_SETFL, flags | O_NONBLOCK);
	ret = new_ssl(l);
	if (ret == 0)
		ret = shake(l, cancel_fd, deadline_ns, err);
	/* Nothing else is configured: this only says what holds already. */
	if (ret == 0 && t->psk_len && !SSL_session_reused(l->ssl))
		ret = errmsg_set(err, -EACCES, "the %s does not use the pre-shared key", l->peer);
	if (ret == 0) {
		*out = l;
		return 0;
	}
	SSL_free(l->ssl);
	free(l);
fail:
	ERR_clear_error();
	if (!t->listens)
		close(fd);
	return errmsg_set(err, ret, "TLS: %s", strerror(-ret));
}

/* ---- before the pump ---- */

static ssize_t outcome(struct tls_link *l, int n)
{
	struct errmsg ignored = {0};
	int sys = errno, error = SSL_get_error(l->ssl, n);

	if (n > 0)
		return n;
	if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE)
		return -EAGAIN;
	if (error == SSL_ERROR_ZERO_RETURN)
		return 0;
	l->broken = true;
	return tls_explain(l, error, sys, &ignored);
}

ssize_t tls_recv(struct tls_link *l, void *buf, size_t len)
{
	ERR_clear_error();
	errno = 0;
	return outcome(l, SSL_read(l->ssl, buf, (int)MIN(len, TLS_PUMP_BYTES)));
}

ssize_t tls_send(struct tls_link *l, const void *buf, size_t len)
{
	ERR_clear_error();
	errno = 0;
	return outcome(l, SSL_write(l->ssl, buf, (int)MIN(len, TLS_PUMP_BYTES)));
}

void tls_end(struct tls_link *l)
{
	ERR_clear_error();
	if (!l->broken)
		SSL_shutdown(l->ssl);
	ERR_clear_error();
	shutdown(l->net, SHUT_WR);
	l->broken = true;
}

int tls_socket(const struct tls_link *l)
{
	return l->net;
}
