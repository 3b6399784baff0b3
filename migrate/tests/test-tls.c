/* SPDX-License-Identifier: MIT */
/*
 * Protected connections: whose credentials are taken, who is let in, what becomes of a stream that
 * is cut, damaged or played again, and how fast each side feels the other.
 */
#include "../tls.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../../vmm/tests/check-main.h"
#include "../conn.h"
#include "../door.h"
#include "../tls_parts.h"
#include "../uri.h"
#include "tls-certs.h"

#define SOON (30 * NS_PER_SEC)
#define URI "tls:127.0.0.1:1"
#define PSK_A "00112233445566778899aabbccddeeff00112233445566778899AABBCCDDEEFF\n"
#define PSK_B "ff112233445566778899aabbccddeeff"

static char dir[64];
static struct errmsg err;

static void make_files(void)
{
	struct certs_ca ca, other;
	FILE *f;

	signal(SIGPIPE, SIG_IGN);
	strcpy(dir, "/tmp/godwit-tls-XXXXXX");
	ck_assert_ptr_nonnull(mkdtemp(dir));
	certs_ca(&ca, dir, "ca");
	certs_ca(&other, dir, "other-ca");
	certs_host(&ca, dir, "a", &(struct certs_spec){.names = "IP:127.0.0.1,DNS:a.test"});
	certs_host(&ca, dir, "b", &(struct certs_spec){.names = "IP:127.0.0.1,DNS:b.test"});
	certs_host(&ca, dir, "server",
		   &(struct certs_spec){.names = "IP:127.0.0.1", .purpose = "serverAuth"});
	certs_host(&ca, dir, "client",
		   &(struct certs_spec){.names = "IP:127.0.0.1", .purpose = "clientAuth"});
	certs_host(&ca, dir, "elsewhere", &(struct certs_spec){.names = "DNS:elsewhere.test"});
	certs_host(&ca, dir, "expired",
		   &(struct certs_spec){.names = "IP:127.0.0.1", .from_s = -7200, .to_s = -3600});
	certs_host(&ca, dir, "early",
		   &(struct certs_spec){.names = "IP:127.0.0.1", .from_s = 3600, .to_s = 7200});
	certs_host(&other, dir, "stranger", &(struct certs_spec){.names = "IP:127.0.0.1"});
	certs_write(dir, "psk-a", PSK_A, 0600);
	certs_write(dir, "psk-b", PSK_B, 0600);
	certs_write(dir, "garbage", "this is no key\n", 0600);
	certs_write(dir, "short", "0123456789abcdef0123456789abcd\n", 0600);
	certs_write(dir, "odd", "0123456789abcdef0123456789abcdef0\n", 0600);
	certs_write(dir, "nohex", "0123456789abcdef0123456789abcdeg\n", 0600);
	certs_write(dir, "open-psk", PSK_A, 0604);
	f = certs_create(dir, "locked", 0600);
	ck_assert_int_eq(
		PEM_write_PrivateKey(f, ca.key, EVP_aes_128_cbc(), NULL, 0, NULL, (void *)"secret"),
		1);
	fclose(f);
	f = certs_create(dir, "open-key", 0644);
	ck_assert_int_eq(PEM_write_PrivateKey(f, ca.key, NULL, NULL, 0, NULL, NULL), 1);
	fclose(f);
	certs_ca_free(&ca);
	certs_ca_free(&other);
	err = (struct errmsg){0};
}

static void remove_files(void)
{
	char command[128];

	snprintf(command, sizeof(command), "rm -r %s", dir);
	ck_assert_int_eq(system(command), 0);
}

static void put_path(char out[VM_PATH_MAX], const char *name, const char *suffix)
{
	if (name)
		snprintf(out, VM_PATH_MAX, "%s/%s%s", dir, name, suffix);
}

/* "psk-a", or a host whose peer is of ca. */
static struct migrate_tls files_of(const char *who, const char *name)
{
	struct migrate_tls files = {.name = ""};

	if (strncmp(who, "psk", 3) == 0) {
		put_path(files.psk, who, "");
		return files;
	}
	put_path(files.cert, who, ".pem");
	put_path(files.key, who, ".key");
	put_path(files.ca, "ca", ".pem");
	snprintf(files.name, sizeof(files.name), "%s", name ? name : "");
	return files;
}

static struct tls *load(const char *who, bool listens, const char *name)
{
	struct migrate_tls files = files_of(who, name);
	struct tls *t = NULL;

	ck_assert_msg(tls_load(&t, &files, URI, listens, &err) == 0, "%s", err.text);
	return t;
}

/* ---- files ---- */

static const struct {
	const char *cert, *key, *ca, *psk, *why;
} bad_files[] = {
	{"none.pem", "a.key", "ca.pem", NULL, "--tls-cert %s/none.pem: No such file"},
	{"a.pem", "none.key", "ca.pem", NULL, "--tls-key %s/none.key: No such file"},
	{"a.pem", "a.key", "none.pem", NULL, "--tls-ca %s/none.pem: No such file"},
	{NULL, NULL, NULL, "none", "--tls-psk %s/none: No such file"},
	{"", "a.key", "ca.pem", NULL, "--tls-cert %s/: this is not a file"},
	{"garbage", "a.key", "ca.pem", NULL, "--tls-cert %s/garbage: no certificate in PEM form"},
	{"a.pem", "garbage", "ca.pem", NULL, "--tls-key %s/garbage: no private key in PEM form"},
	{"a.pem", "a.key", "garbage", NULL, "--tls-ca %s/garbage: no certificate in PEM form"},
	{"a.pem", "b.key", "ca.pem", NULL, "--tls-key %s/b.key is not the key of the certificate"},
	{"a.pem", "open-key", "ca.pem", NULL, "--tls-key %s/open-key: others than its owner"},
	{"a.pem", "locked", "ca.pem", NULL, "--tls-key %s/locked: the key is locked"},
	{NULL, NULL, NULL, "garbage", "--tls-psk %s/garbage: want 32 to 128 hexadecimal digits"},
	{NULL, NULL, NULL, "short", "--tls-psk %s/short: want 32 to 128"},
	{NULL, NULL, NULL, "odd", "--tls-psk %s/odd: want 32 to 128"},
	{NULL, NULL, NULL, "nohex", "--tls-psk %s/nohex: want 32 to 128"},
	{NULL, NULL, NULL, "open-psk", "--tls-psk %s/open-psk: others than its owner"},
};

START_TEST(wrong_files)
{
	struct migrate_tls bad = {.name = ""};
	struct tls *t = NULL;
	char want[256];

	put_path(bad.cert, bad_files[_i].cert, "");
	put_path(bad.key, bad_files[_i].key, "");
	put_path(bad.ca, bad_files[_i].ca, "");
	put_path(bad.psk, bad_files[_i].psk, "");
	snprintf(want, sizeof(want), bad_files[_i].why, dir);
	ck_assert_int_lt(tls_load(&t, &bad, URI, _i % 2, &err), 0);
	ck_assert_msg(strstr(err.text, want), "%s", err.text);
}
END_TEST

START_TEST(together)
{
	static const struct {
		const char *uri;
		const char *cert, *key, *ca, *psk, *name;
		const char *why; /* NULL: fine */
	} some[] = {
		{"tcp:h:1", "", "", "", "", "", NULL},
		{"unix:/x", "", "", "", "", "", NULL},
		{"tls:h:1", "c", "k", "a", "", "", NULL},
		{"tls:h:1", "c", "k", "a", "", "n", NULL},
		{"tls:h:1", "", "", "", "p", "", NULL},
		{"tls:h:1", "", "", "", "", "", "needs --tls-cert"},
		{"tls:h:1", "c", "k", "", "", "", "needs --tls-cert"},
		{"tls:h:1", "c", "", "a", "", "", "needs --tls-cert"},
		{"tls:h:1", "", "k", "a", "", "", "needs --tls-cert"},
		{"tls:h:1", "c", "k", "a", "p", "", "--tls-psk stands alone"},
		{"tls:h:1", "", "", "", "p", "n", "--tls-psk stands alone"},
		{"tcp:h:1", "c", "k", "a", "", "", "tcp:h:1 is none"},
		{"unix:/x", "", "", "", "p", "", "unix:/x is none"},
	};

	for (size_t i = 0; i < ARRAY_SIZE(some); i++) {
		struct migrate_tls t = {.name = ""};
		int ret;

		strcpy(t.cert, some[i].cert);
		strcpy(t.key, some[i].key);
		strcpy(t.ca, some[i].ca);
		strcpy(t.psk, some[i].psk);
		strcpy(t.name, some[i].name);
		err = (struct errmsg){0};
		ret = migrate_check_tls(some[i].uri, &t, &err);
		ck_assert_msg(ret == (some[i].why ? -EINVAL : 0), "case %zu", i);
		ck_assert_msg(!some[i].why || strstr(err.text, some[i].why), "%s", err.text);
	}
}
END_TEST

/* A URI without a host is no name for a certificate. */
START_TEST(no_name)
{
	struct migrate_tls files = files_of("a", NULL);
	struct tls *t = NULL;

	ck_assert_int_eq(tls_load(&t, &files, "tls::1", false, &err), -EINVAL);
	ck_assert_msg(strstr(err.text, "--tls-name"), "%s", err.text);
	strcpy(files.name, "a.test");
	ck_assert_int_eq(tls_load(&t, &files, "tls::1", false, &err), 0);
	tls_free(t);
}
END_TEST

/* ---- two sides ---- */

static void connect_tcp(int fds[2])
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t len = sizeof(a);
	int l = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	ck_assert_int_eq(bind(l, (struct sockaddr *)&a, len), 0);
	ck_assert_int_eq(listen(l, 1), 0);
	ck_assert_int_eq(getsockname(l, (struct sockaddr *)&a, &len), 0);
	fds[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	ck_assert_int_eq(connect(fds[0], (struct sockaddr *)&a, len), 0);
	fds[1] = accept(l, NULL, NULL);
	ck_assert_int_ge(fds[1], 0);
	close(l);
}

/* One side's handshake, in a thread. */
struct side {
	struct tls *tls;
	struct tls_link *link;
	int fd, ret;
	struct errmsg err;
	pthread_t thread;
};

static void *run_shake(void *arg)
{
	struct side *s = arg;
	char sink[4096];

	s->ret = tls_shake(&s->link, s->tls, s->fd, -1, now_ns() + SOON, &s->err);
	/* As the door does: lets the peer read the refusal. */
	if (s->ret && s->tls->listens) {
		shutdown(s->fd, SHUT_WR);
		while (recv(s->fd, sink, sizeof(sink), 0) > 0)
			;
		close(s->fd);
	}
	return NULL;
}

static struct side source, dest;

/* On these two sockets, which are joined by whatever is between them. */
static void shake_over(int source_fd, int dest_fd)
{
	source.fd = source_fd;
	dest.fd = dest_fd;
	source.err = dest.err = (struct errmsg){0};
	ck_assert_int_eq(pthread_create(&dest.thread, NULL, run_shake, &dest), 0);
	run_shake(&source);
}

static void good_sides(const char *source_who, const char *dest_who)
{
	source = (struct side){.tls = load(source_who, false, NULL)};
	dest = (struct side){.tls = load(dest_who, true, NULL)};
}

static void free_sides(void)
{
	tls_free(source.tls);
	tls_free(dest.tls);
}

static void both_shaken(void)
{
	pthread_join(dest.thread, NULL);
	ck_assert_msg(source.ret == 0, "%s", source.err.text);
	ck_assert_msg(dest.ret == 0, "%s", dest.err.text);
}

static struct conn src, dst;

static void make_conns(void)
{
	ck_assert_int_eq(conn_init_over(&src, source.fd, source.link, -1, "destination", &err), 0);
	ck_assert_int_eq(conn_init_over(&dst, dest.fd, dest.link, -1, "source", &err), 0);
}

static void connect_sides(const char *source_who, const char *dest_who)
{
	int fds[2];

	connect_tcp(fds);
	good_sides(source_who, dest_who);
	shake_over(fds[0], fds[1]);
	both_shaken();
	make_conns();
}

static const char *const pairs[][2] = {{"a", "b"}, {"client", "server"}, {"psk-a", "psk-a"}};

/* Frames both ways, and an end that is in order. */
START_TEST(talks)
{
	uint64_t session = 0, ping = 77, got = 0;
	uint32_t len;

	connect_sides(pairs[_i][0], pairs[_i][1]);
	ck_assert(src.tcp && src.local && dst.tcp);
	ck_assert_int_eq(conn_send_prelude(&src, 5, &err), 0);
	ck_assert_int_eq(conn_recv_prelude(&dst, &session, &err), 0);
	ck_assert_uint_eq(session, 5);
	ck_assert_int_eq(conn_send(&src, WIRE_PING, &ping, sizeof(ping), NULL, &err), 0);
	ck_assert_int_eq(conn_expect(&dst, WIRE_PING, &got, sizeof(got), &len, &err), 0);
	ck_assert_uint_eq(got, ping);
	ck_assert_int_eq(conn_send(&dst, WIRE_READY, NULL, 0, NULL, &err), 0);
	ck_assert_int_eq(conn_expect(&src, WIRE_READY, NULL, 0, &len, &err), 0);
	ck_assert(!conn_peer_gone(&dst));
	/* What was said before the end still comes. */
	ck_assert_int_eq(conn_send(&src, WIRE_JOIN, NULL, 0, NULL, &err), 0);
	conn_close(&src);
	ck_assert_int_eq(conn_expect(&dst, WIRE_JOIN, NULL, 0, &len, &err), 0);
	ck_assert_int_eq(conn_expect(&dst, WIRE_JOIN, NULL, 0, &len, &err), -ECONNRESET);
	ck_assert_str_eq(err.text, "the source closed the connection");
	ck_assert(conn_peer_gone(&dst));
	conn_close(&dst);
	free_sides();
}
END_TEST

/* One who gives up says why, and is read, whatever was under way. */
START_TEST(last_words)
{
	uint32_t len;

	connect_sides("a", "b");
	ck_assert_int_eq(conn_send(&dst, WIRE_READY, NULL, 0, NULL, &err), 0);
	/* With its answer unread. */
	conn_fail(&src, WIRE_FAIL, "a reason");
	conn_close(&src);
	ck_assert_int_eq(conn_expect(&dst, WIRE_READY, NULL, 0, &len, &err), -ECONNABORTED);
	ck_assert_str_eq(err.text, "the source says: a reason");
	conn_close(&dst);
	free_sides();
}
END_TEST

/* ---- who is refused ---- */

static const struct {
	const char *source, *dest, *name;
	const char *source_says, *dest_says;
} refused[] = {
	{"a", "stranger", NULL, "the destination's certificate is not of the CA",
	 "the source refuses our certificate: it is not of the CA"},
	{"a", "expired", NULL, "the destination's certificate has expired",
	 "the source refuses our certificate: it has expired"},
	{"a", "early", NULL, "the destination's certificate is not valid yet",
	 "the source refuses our certificate"},
	{"a", "elsewhere", NULL, "the destination's certificate is not for '127.0.0.1'",
	 "the source refuses our certificate"},
	{"a", "b", "a.test", "the destination's certificate is not for 'a.test'",
	 "the source refuses our certificate"},
	{"a", "client", NULL,
	 "the destination's certificate is not good: ", "the source refuses our certificate"},
	{"stranger", "b", NULL, "the destination refuses our certificate: it is not of the CA",
	 "the source's certificate is not of the CA"},
	{"expired", "b", NULL, "the destination refuses our certificate: it has expired",
	 "the source's certificate has expired"},
	{"early", "b", NULL, "the destination refuses our certificate",
	 "the source's certificate is not valid yet"},
	{"server", "b", NULL, "the destination refuses our certificate",
	 "the source's certificate is not good: "},
	{"psk-b", "psk-a", NULL, "the destination holds another pre-shared key",
	 "the source holds another pre-shared key"},
	{"psk-a", "b", NULL, "the destination shows a certificate and does not use the pre-shared",
	 "the source refuses our certificate"},
	{"a", "psk-a", NULL, "the destination uses no certificates",
	 "the source does not use a pre-shared key"},
	{"none", "b", NULL, "the destination wants a certificate of us",
	 "the source has no certificate"},
};

/* One who trusts the CA and shows nothing. */
static struct tls *load_without_certificate(void)
{
	struct tls *with = load("a", false, NULL), *t = calloc(1, sizeof(*t));
	char ca[VM_PATH_MAX];

	ck_assert_ptr_nonnull(t);
	memcpy(t, with, sizeof(*t));
	t->ctx = SSL_CTX_new(TLS_client_method());
	put_path(ca, "ca", ".pem");
	ck_assert_int_eq(SSL_CTX_load_verify_file(t->ctx, ca), 1);
	SSL_CTX_set_verify(t->ctx, SSL_VERIFY_PEER, NULL);
	tls_free(with);
	return t;
}

/* The source hears of the destination's refusal with the first bytes that it waits for. */
static void hear_refusal(void)
{
	uint64_t session;

	if (source.ret)
		return;
	ck_assert_int_eq(conn_init_over(&src, source.fd, source.link, -1, "destination", &err), 0);
	source.ret = conn_send_prelude(&src, 1, &source.err);
	if (source.ret == 0)
		source.ret = conn_recv_prelude(&src, &session, &source.err);
	conn_close(&src);
}

START_TEST(refuses)
{
	int fds[2];

	connect_tcp(fds);
	if (strcmp(refused[_i].source, "none") == 0)
		source = (struct side){.tls = load_without_certificate()};
	else
		source = (struct side){.tls = load(refused[_i].source, false, refused[_i].name)};
	dest = (struct side){.tls = load(refused[_i].dest, true, NULL)};
	shake_over(fds[0], fds[1]);
	hear_refusal();
	pthread_join(dest.thread, NULL);
	ck_assert_msg(source.ret == -EACCES, "%d: %s", source.ret, source.err.text);
	ck_assert_msg(dest.ret == -EACCES, "%d: %s", dest.ret, dest.err.text);
	ck_assert_msg(strstr(source.err.text, refused[_i].source_says), "%s", source.err.text);
	ck_assert_msg(strstr(dest.err.text, refused[_i].dest_says), "%s", dest.err.text);
	free_sides();
}
END_TEST

/* A name that is given counts, not that of the URI. */
START_TEST(given_name)
{
	int fds[2];

	connect_tcp(fds);
	source = (struct side){.tls = load("a", false, "elsewhere.test")};
	dest = (struct side){.tls = load("elsewhere", true, NULL)};
	shake_over(fds[0], fds[1]);
	both_shaken();
	tls_close(source.link);
	tls_close(dest.link);
	free_sides();
}
END_TEST

/* Who does not speak TLS at all; or speaks, and stops. */
START_TEST(no_tls)
{
	struct errmsg why = {0};
	int fds[2];

	good_sides("a", "b");
	connect_tcp(fds);
	ck_assert_int_eq((int)write(fds[0], "GET / HTTP/1.1\r\n\r\n", 18), 18);
	ck_assert_int_eq(tls_shake(&dest.link, dest.tls, fds[1], -1, now_ns() + SOON, &why),
			 -EPROTO);
	ck_assert_msg(strstr(why.text, "the source does not speak TLS 1.3"), "%s", why.text);
	close(fds[0]);
	close(fds[1]);

	connect_tcp(fds);
	why = (struct errmsg){0};
	ck_assert_int_eq(
		tls_shake(&dest.link, dest.tls, fds[1], -1, now_ns() + 100 * NS_PER_MS, &why),
		-ETIMEDOUT);
	close(fds[0]);
	why = (struct errmsg){0};
	ck_assert_int_eq(tls_shake(&dest.link, dest.tls, fds[1], -1, now_ns() + SOON, &why),
			 -ECONNRESET);
	close(fds[1]);
	free_sides();
}
END_TEST

/* ---- somebody in between ---- */

/* Passes bytes on, and keeps those of the source; until they are `cut_at`, or damages one. */
struct man {
	int from_source, to_dest;
	_Atomic size_t cut_at, flip_at; /* of what the source sends; 0: never */
	_Atomic bool reset;
	uint8_t tape[256 * KIB];
	_Atomic size_t len;
	pthread_t thread;
};

static bool pass(struct man *m)
{
	uint8_t buf[4096];
	ssize_t n = recv(m->from_source, buf, sizeof(buf), MSG_DONTWAIT);

	if (n < 0)
		return errno == EAGAIN;
	for (ssize_t i = 0; i < n; i++) {
		ck_assert_uint_lt(m->len, sizeof(m->tape));
		m->tape[m->len++] = buf[i];
		if (m->flip_at && m->len == m->flip_at)
			buf[i] ^= 0x10;
		if (m->cut_at && m->len == m->cut_at) {
			(void)!send(m->to_dest, buf, (size_t)i + 1, MSG_NOSIGNAL);
			return false;
		}
	}
	return n > 0 && send(m->to_dest, buf, (size_t)n, MSG_NOSIGNAL) == n;
}

static bool pass_back(struct man *m)
{
	uint8_t buf[4096];
	ssize_t n = recv(m->to_dest, buf, sizeof(buf), MSG_DONTWAIT);

	if (n < 0)
		return errno == EAGAIN;
	return n > 0 && send(m->from_source, buf, (size_t)n, MSG_NOSIGNAL) == n;
}

static void *run_man(void *arg)
{
	struct man *m = arg;
	struct linger reset = {.l_onoff = 1};
	struct pollfd p[] = {{.fd = m->from_source, .events = POLLIN},
			     {.fd = m->to_dest, .events = POLLIN}};

	do
		poll(p, 2, 1000);
	while (pass(m) && pass_back(m));
	if (m->reset) {
		setsockopt(m->from_source, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
		setsockopt(m->to_dest, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
	}
	close(m->from_source);
	close(m->to_dest);
	return NULL;
}

static struct man man;

static void begin_between(int fds[2])
{
	int near[2], far[2];

	connect_tcp(near);
	connect_tcp(far);
	man.from_source = near[1];
	man.to_dest = far[0];
	man.len = 0;
	fds[0] = near[0];
	fds[1] = far[1];
	ck_assert_int_eq(pthread_create(&man.thread, NULL, run_man, &man), 0);
}

/* The record of a frame without payload: RFC 8446, 5.2. */
#define RECORD (5 + sizeof(struct wire_frame) + 1 + 16)

static void connect_between(void)
{
	int fds[2];

	man = (struct man){.cut_at = 0};
	begin_between(fds);
	shake_over(fds[0], fds[1]);
	both_shaken();
	make_conns();
}

static void end_between(void)
{
	conn_close(&src);
	conn_close(&dst);
	pthread_join(man.thread, NULL);
}

/* A frame gets through. */
static void say_one(void)
{
	uint32_t len;

	ck_assert_int_eq(conn_send(&src, WIRE_JOIN, NULL, 0, NULL, &err), 0);
	ck_assert_int_eq(conn_expect(&dst, WIRE_JOIN, NULL, 0, &len, &err), 0);
}

/*
 * A stream that ends without TLS's word for it is cut, however it ends; at the last byte of a
 * record, too. What was whole is delivered.
 */
START_TEST(cut)
{
	uint32_t len;

	good_sides("a", "b");
	connect_between();
	say_one();
	man.reset = _i & 2;
	man.cut_at = man.len + (_i & 1 ? RECORD : RECORD / 2);
	ck_assert_int_eq(conn_send(&src, WIRE_JOIN, NULL, 0, NULL, &err), 0);
	/* A reset may take with it what was on its way. */
	if (_i == 1)
		ck_assert_int_eq(conn_expect(&dst, WIRE_JOIN, NULL, 0, &len, &err), 0);
	while (_i == 3 && conn_expect(&dst, WIRE_JOIN, NULL, 0, &len, &err) == 0)
		;
	err = (struct errmsg){0};
	ck_assert_int_eq(conn_expect(&dst, WIRE_JOIN, NULL, 0, &len, &err), -ECONNRESET);
	ck_assert_str_eq(err.text, "the connection to the source broke");
	err = (struct errmsg){0};
	ck_assert_int_eq(conn_expect(&src, WIRE_JOIN, NULL, 0, &len, &err), -ECONNRESET);
	ck_assert_str_eq(err.text, "the connection to the destination broke");
	end_between();
	free_sides();
}
END_TEST

START_TEST(damaged)
{
	uint32_t len;

	good_sides("a", "b");
	connect_between();
	say_one();
	man.flip_at = man.len + 20;
	ck_assert_int_eq(conn_send(&src, WIRE_JOIN, NULL, 0, NULL, &err), 0);
	ck_assert_int_eq(conn_expect(&dst, WIRE_JOIN, NULL, 0, &len, &err), -EBADMSG);
	ck_assert_msg(strstr(err.text, "damaged on its way, or forged"), "%s", err.text);
	err = (struct errmsg){0};
	ck_assert_int_eq(conn_expect(&src, WIRE_JOIN, NULL, 0, &len, &err), -EBADMSG);
	ck_assert_msg(strstr(err.text, "damaged on its way, or forged"), "%s", err.text);
	end_between();
	free_sides();
}
END_TEST

/* What a source once said, from its first byte on, said again by somebody else. */
START_TEST(replayed)
{
	struct errmsg why = {0};
	int fds[2];

	good_sides(_i ? "psk-a" : "a", _i ? "psk-a" : "b");
	connect_between();
	for (unsigned i = 0; i < 3; i++)
		say_one();
	end_between();
	/* He has not understood a word of it. */
	ck_assert_ptr_null(memmem(man.tape, man.len, "GDWT", 4));
	connect_tcp(fds);
	ck_assert_int_eq((int)write(fds[0], man.tape, man.len), (int)man.len);
	ck_assert_int_eq(tls_shake(&dest.link, dest.tls, fds[1], -1, now_ns() + SOON, &why),
			 -EBADMSG);
	ck_assert_msg(strstr(why.text, "or played again"), "%s", why.text);
	close(fds[0]);
	close(fds[1]);
	free_sides();
}
END_TEST

/* ---- many bytes ---- */

#define BULK (48 * MIB)

struct flow {
	int fd;
	uint64_t seed;
	bool good;
	pthread_t thread;
};

static uint64_t next(uint64_t *state)
{
	*state = *state * 6364136223846793005ULL + 1442695040888963407ULL;
	return *state;
}

static void *send_bulk(void *arg)
{
	struct flow *f = arg;
	uint64_t state = f->seed, buf[4096];

	f->good = true;
	for (uint64_t done = 0; done < BULK; done += sizeof(buf)) {
		for (size_t i = 0; i < ARRAY_SIZE(buf); i++)
			buf[i] = next(&state);
		f->good = f->good && write_exact(f->fd, buf, sizeof(buf)) == 0;
	}
	shutdown(f->fd, SHUT_WR);
	return NULL;
}

static void *receive_bulk(void *arg)
{
	struct flow *f = arg;
	uint64_t state = f->seed, buf[4096];
	char more;

	f->good = true;
	for (uint64_t done = 0; done < BULK && f->good; done += sizeof(buf)) {
		f->good = read_exact(f->fd, buf, sizeof(buf)) == 0;
		for (size_t i = 0; i < ARRAY_SIZE(buf); i++)
			f->good = f->good && buf[i] == next(&state);
	}
	f->good = f->good && read_exact(f->fd, &more, 1) == -ENODATA;
	return NULL;
}

/* Both ways at once, in order and whole, to an end that is in order; over many keys, if need be. */
START_TEST(bulk)
{
	void *(*const run[])(void *) = {send_bulk, receive_bulk, send_bulk, receive_bulk};
	struct flow flow[4];
	struct errmsg why;
	int fds[2], near, far;

	connect_tcp(fds);
	good_sides("a", "b");
	if (_i)
		source.tls->rekey_records = dest.tls->rekey_records = 50;
	shake_over(fds[0], fds[1]);
	both_shaken();
	ck_assert_int_eq(tls_start(source.link, &near, &err), 0);
	ck_assert_int_eq(tls_start(dest.link, &far, &err), 0);
	for (unsigned i = 0; i < 4; i++) {
		flow[i] = (struct flow){.fd = i == 0 || i == 3 ? near : far, .seed = i / 2};
		ck_assert_int_eq(pthread_create(&flow[i].thread, NULL, run[i], &flow[i]), 0);
	}
	for (unsigned i = 0; i < 4; i++) {
		pthread_join(flow[i].thread, NULL);
		ck_assert_msg(flow[i].good, "flow %u", i);
	}
	ck_assert_int_eq(tls_failed(source.link, &why), 0);
	ck_assert_int_eq(tls_failed(dest.link, &why), 0);
	close(near);
	close(far);
	/* 48 MiB take more than a tenth of a millisecond each. */
	ck_assert_uint_gt(tls_cpu_ns(source.link), NS_PER_MS);
	ck_assert_uint_gt(tls_cpu_ns(dest.link), NS_PER_MS);
	tls_close(source.link);
	tls_close(dest.link);
	free_sides();
}
END_TEST

/* A peer that takes nothing: so does this side soon, and it ends in good time nevertheless. */
START_TEST(stalled)
{
	static uint8_t buf[64 * KIB];
	int fds[2], near, small = 64 * 1024;
	uint64_t taken = 0, since;

	connect_tcp(fds);
	setsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof(small));
	setsockopt(fds[1], SOL_SOCKET, SO_RCVBUF, &small, sizeof(small));
	good_sides("a", "b");
	shake_over(fds[0], fds[1]);
	both_shaken();
	ck_assert_int_eq(tls_start(source.link, &near, &err), 0);
	while (poll(&(struct pollfd){.fd = near, .events = POLLOUT}, 1, 1000) > 0) {
		ssize_t n = send(near, buf, sizeof(buf), MSG_DONTWAIT | MSG_NOSIGNAL);

		ck_assert_int_gt(n, 0);
		taken += (uint64_t)n;
		ck_assert_uint_lt(taken, 4 * MIB);
	}
	since = now_ns();
	close(near);
	tls_close(source.link);
	ck_assert_uint_lt(now_ns() - since, TLS_LINGER_NS + 10 * NS_PER_SEC);
	tls_close(dest.link);
	free_sides();
}
END_TEST

/* One from which nothing comes, not even TCP's acknowledgement of being there, is dead in time. */
START_TEST(silent)
{
	uint64_t since;
	uint32_t len;

	connect_sides("a", "b");
	conn_set_limit(&src, NS_PER_SEC);
	since = now_ns();
	ck_assert_int_eq(conn_expect(&src, WIRE_READY, NULL, 0, &len, &err), -ETIMEDOUT);
	ck_assert_uint_ge(now_ns() - since, NS_PER_SEC);
	/* Broken off by another thread: at once. */
	conn_set_limit(&dst, 600 * NS_PER_SEC);
	conn_break(&dst);
	err = (struct errmsg){0};
	ck_assert_int_eq(conn_expect(&dst, WIRE_READY, NULL, 0, &len, &err), -ECONNRESET);
	conn_close(&src);
	conn_close(&dst);
	free_sides();
}
END_TEST

/* ---- the door ---- */

static struct door door;
static int listen_fd;
static char door_uri[64];

static void open_door(void)
{
	listen_fd = uri_listen("tls:127.0.0.1:0", door_uri, sizeof(door_uri), &err);
	ck_assert_msg(listen_fd >= 0, "%s", err.text);
	ck_assert_int_eq(door_open(&door, listen_fd, dest.tls, &err), 0);
}

static void close_door(void)
{
	door_close(&door);
	close(listen_fd);
}

static int knock(void)
{
	int fd = uri_connect(door_uri, -1, SOON, &err);

	ck_assert_msg(fd >= 0, "%s", err.text);
	return fd;
}

/* A source that is let in. */
static void come(uint64_t session)
{
	struct arrival a;
	uint64_t seen = 0;
	int ret;

	source.fd = knock();
	source.err = (struct errmsg){0};
	ret = tls_shake(&source.link, source.tls, source.fd, -1, now_ns() + SOON, &source.err);
	ck_assert_msg(ret == 0, "%s", source.err.text);
	ck_assert_int_eq(conn_init_over(&src, source.fd, source.link, -1, "destination", &err), 0);
	ck_assert_int_eq(conn_send_prelude(&src, session, &err), 0);
	ck_assert_msg(door_wait(&door, now_ns() + SOON, -1, &a, &err) == 0, "%s", err.text);
	ck_assert_int_eq(conn_init_over(&dst, a.fd, a.tls, -1, "source", &err), 0);
	ck_assert_int_eq(conn_take_prelude(&dst, &a.prelude, &seen, &err), 0);
	ck_assert_uint_eq(seen, session);
	ck_assert_int_eq(conn_send_prelude(&dst, session, &err), 0);
	ck_assert_int_eq(conn_recv_prelude(&src, &seen, &err), 0);
	conn_close(&dst);
	conn_close(&src);
}

/* Those who say half of it, or nonsense, or cannot show who they are, and the one after. */
START_TEST(at_the_door)
{
	static const uint8_t half[] = {0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3};
	struct wire_prelude p = {.version = WIRE_VERSION, .min_version = WIRE_MIN_VERSION};
	char text[256] = "";
	int fd = -1;

	good_sides("a", "b");
	open_door();
	if (_i < 3)
		fd = knock();
	switch (_i) {
	case 0: /* begins, and stops */
		ck_assert_int_eq((int)write(fd, half, sizeof(half)), (int)sizeof(half));
		break;
	case 1:
		ck_assert_int_eq((int)write(fd, "\r\n\r\n\r\n", 6), 6);
		break;
	case 2: /* a plain source is told */
		memcpy(p.magic, WIRE_MAGIC, sizeof(p.magic));
		ck_assert_int_eq((int)write(fd, &p, sizeof(p)), (int)sizeof(p));
		ck_assert_int_eq(read_exact(fd, text, sizeof(p) + sizeof(struct wire_frame)), 0);
		memset(text, 0, sizeof(text));
		ck_assert_int_ge((int)read(fd, text, sizeof(text) - 1), 0);
		ck_assert_msg(strstr(text, "by tls: only"), "%s", text);
		break;
	case 3: /* a stranger */
		tls_free(source.tls);
		source.tls = load("stranger", false, NULL);
		source.fd = knock();
		run_shake(&source);
		hear_refusal();
		ck_assert_msg(source.ret == -EACCES, "%s", source.err.text);
		tls_free(source.tls);
		source.tls = load("a", false, NULL);
		break;
	}
	come(9);
	if (fd >= 0)
		close(fd);
	close_door();
	free_sides();
}
END_TEST

/* One of another move is told so, by TLS; one in the queue who has left is no more. */
START_TEST(turned_away)
{
	char text[WIRE_TEXT_MAX + 1] = "";
	struct wire_frame f;
	uint64_t seen, until = now_ns() + SOON;

	good_sides("a", "b");
	open_door();
	door_admit(&door, true, 5);
	source.fd = knock();
	ck_assert_int_eq(tls_shake(&source.link, source.tls, source.fd, -1, now_ns() + SOON, &err),
			 0);
	ck_assert_int_eq(conn_init_over(&src, source.fd, source.link, -1, "destination", &err), 0);
	ck_assert_int_eq(conn_send_prelude(&src, 6, &err), 0);
	ck_assert_int_eq(conn_recv_prelude(&src, &seen, &err), 0);
	ck_assert_int_eq(conn_recv_header(&src, &f, &err), 0);
	ck_assert_uint_eq(f.type, WIRE_REFUSE);
	ck_assert_int_eq(conn_recv(&src, text, f.length, &err), 0);
	ck_assert_msg(strstr(text, "is taking in another guest"), "%s", text);
	conn_close(&src);

	source.fd = knock();
	ck_assert_int_eq(tls_shake(&source.link, source.tls, source.fd, -1, now_ns() + SOON, &err),
			 0);
	ck_assert_int_eq(conn_init_over(&src, source.fd, source.link, -1, "destination", &err), 0);
	ck_assert_int_eq(conn_send_prelude(&src, 5, &err), 0);
	while (!door_waiting(&door) && now_ns() < until)
		poll(NULL, 0, 5);
	ck_assert(door_waiting(&door));
	conn_close(&src);
	while (door_waiting(&door) && now_ns() < until)
		poll(NULL, 0, 5);
	ck_assert(!door_waiting(&door));
	close_door();
	free_sides();
}
END_TEST

int main(void)
{
	Suite *s = suite_create("tls");
	TCase *tc = tcase_create("tls");

	tcase_set_timeout(tc, 120);
	tcase_add_checked_fixture(tc, make_files, remove_files);
	tcase_add_loop_test(tc, wrong_files, 0, ARRAY_SIZE(bad_files));
	tcase_add_test(tc, together);
	tcase_add_test(tc, no_name);
	tcase_add_loop_test(tc, talks, 0, ARRAY_SIZE(pairs));
	tcase_add_test(tc, last_words);
	tcase_add_loop_test(tc, refuses, 0, ARRAY_SIZE(refused));
	tcase_add_test(tc, given_name);
	tcase_add_test(tc, no_tls);
	tcase_add_loop_test(tc, cut, 0, 4);
	tcase_add_test(tc, damaged);
	tcase_add_loop_test(tc, replayed, 0, 2);
	tcase_add_loop_test(tc, bulk, 0, 2);
	tcase_add_test(tc, stalled);
	tcase_add_test(tc, silent);
	tcase_add_loop_test(tc, at_the_door, 0, 4);
	tcase_add_test(tc, turned_away);
	suite_add_tcase(s, tc);
	return check_run(s);
}
