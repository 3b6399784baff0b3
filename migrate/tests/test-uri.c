/* SPDX-License-Identifier: MIT */
#include "../uri.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "../../vmm/tests/check-main.h"
#include "../migrate.h"

#define LONG 10

static char dir[] = "/tmp/godwit-uri-XXXXXX";
static char uri[MIGRATE_URI_MAX], out[MIGRATE_URI_MAX];
static struct errmsg err;

static void begin(void)
{
	strcpy(dir, "/tmp/godwit-uri-XXXXXX");
	ck_assert_ptr_nonnull(mkdtemp(dir));
	snprintf(uri, sizeof(uri), "unix:%s/s", dir);
	err = (struct errmsg){""};
}

static void end(void)
{
	uri_unlink(uri);
	ck_assert_msg(rmdir(dir) == 0, "%s: %s", dir, strerror(errno));
}

START_TEST(good_ones)
{
	static const char *const good[] = {
		"tcp:host:1", "tcp:127.0.0.1:65535", "tcp:127.0.0.1:0",
		"tcp::4444",  "tcp:[::1]:4444",	     "tcp:[fe80::1]:0",
		"tls:host:1", "tls:[::1]:4444",	     "unix:/tmp/s",
		"unix:s",     "unix:/a:b",	     "unix: ",
	};

	for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
		err = (struct errmsg){""};
		ck_assert_msg(uri_check(good[i], &err) == 0, "%s: %s", good[i], err.text);
	}
}
END_TEST

START_TEST(bad_ones)
{
	static const struct {
		const char *uri, *why;
	} bad[] = {
		{"", "want tcp:HOST:PORT, tls:HOST:PORT or unix:PATH"},
		{"tcp", "want tcp:HOST:PORT"},
		{"host:1", "want tcp:HOST:PORT"},
		{"udp:host:1", "want tcp:HOST:PORT"},
		{"TCP:host:1", "want tcp:HOST:PORT"},
		{" tcp:host:1", "want tcp:HOST:PORT"},
		{"tcp:", "no port"},
		{"tcp:host", "no port"},
		{"tcp:host:", "not a port"},
		{"tcp:host:-1", "not a port"},
		{"tcp:host:65536", "not a port"},
		{"tcp:host:99999999999999999999", "not a port"},
		{"tcp:host:1x", "not a port"},
		{"tcp:host: 1", "not a port"},
		{"tcp:::1:4444", "brackets"},
		{"tcp:a:b:1", "brackets"},
		{"tls:host", "want tls:HOST:PORT"},
		{"tls:host:1x", "not a port"},
		{"tls:::1:4444", "tls:[ADDRESS]:PORT"},
		{"TLS:host:1", "want tcp:HOST:PORT"},
		{"unix:", "1 to 107 bytes"},
	};
	char text[400];

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		err = (struct errmsg){""};
		ck_assert_msg(uri_check(bad[i].uri, &err) == -EINVAL, "'%s'", bad[i].uri);
		ck_assert_msg(strstr(err.text, bad[i].why), "'%s': %s", bad[i].uri, err.text);
		/* Nor do the others open anything for it. */
		ck_assert_int_eq(uri_connect(bad[i].uri, -1, NS_PER_SEC, NULL), -EINVAL);
		ck_assert_int_eq(uri_listen(bad[i].uri, out, sizeof(out), NULL), -EINVAL);
	}
	memset(text, 'x', sizeof(text));
	memcpy(text, "unix:", 5);
	text[5 + 108] = '\0';
	ck_assert_int_eq(uri_check(text, &err), -EINVAL);
	text[5 + 107] = '\0';
	ck_assert_int_eq(uri_check(text, &err), 0);
	memset(text, 'x', sizeof(text));
	memcpy(text, "tcp:", 4);
	strcpy(text + 300, ":1");
	ck_assert_int_eq(uri_check(text, &err), -EINVAL);
}
END_TEST

/* Connects to what listens, both ways, and a byte goes through. */
static void try_pair(const char *listen_uri, const char *want)
{
	int l, c, s;
	char b = 0;

	err = (struct errmsg){""};
	l = uri_listen(listen_uri, out, sizeof(out), &err);
	ck_assert_msg(l >= 0, "%s: %s", listen_uri, err.text);
	ck_assert_msg(strncmp(out, want, strlen(want)) == 0, "%s instead of %s", out, want);
	c = uri_connect(out, -1, LONG * NS_PER_SEC, &err);
	ck_assert_msg(c >= 0, "%s", err.text);
	s = uri_accept(l, -1, UINT64_MAX, &err);
	ck_assert_msg(s >= 0, "%s", err.text);
	ck_assert_int_eq(fcntl(c, F_GETFL) & O_NONBLOCK, 0);
	ck_assert_int_eq(fcntl(s, F_GETFD), FD_CLOEXEC);
	ck_assert_int_eq(fcntl(c, F_GETFD), FD_CLOEXEC);
	ck_assert_int_eq((int)write(c, "x", 1), 1);
	ck_assert_int_eq((int)read(s, &b, 1), 1);
	ck_assert_int_eq(b, 'x');
	close(l);
	close(c);
	close(s);
}

START_TEST(pairs)
{
	begin();
	try_pair(uri, uri);
	/* A port of 0 is told as the one it became. */
	try_pair("tcp:127.0.0.1:0", "tcp:127.0.0.1:");
	ck_assert_str_ne(out, "tcp:127.0.0.1:0");
	try_pair("tls:127.0.0.1:0", "tls:127.0.0.1:");
	end();
}
END_TEST

/* Which host a certificate is to be for, and what is seen by a network. */
START_TEST(hosts)
{
	static const struct {
		const char *uri, *host;
		bool exposed, exposed_listens;
	} some[] = {
		{"tcp:127.0.0.1:1", "127.0.0.1", false, false},
		{"tcp:127.9.9.9:1", "127.9.9.9", false, false},
		{"tcp:[::1]:1", "::1", false, false},
		{"tcp:[::ffff:127.0.0.1]:1", "::ffff:127.0.0.1", false, false},
		{"tcp:localhost:1", "localhost", false, false},
		{"tcp::1", "", false, true},
		{"tcp:0.0.0.0:1", "0.0.0.0", true, true},
		{"tcp:[::]:1", "::", true, true},
		{"tcp:10.0.0.1:1", "10.0.0.1", true, true},
		{"tcp:localhost.example.org:1", "localhost.example.org", true, true},
		{"tls:h.example.org:1", "h.example.org", false, false},
		{"tls:[2001:db8::7]:1", "2001:db8::7", false, false},
		{"tls::1", "", false, false},
		{"unix:/x", "", false, false},
	};
	char host[128];

	for (size_t i = 0; i < ARRAY_SIZE(some); i++) {
		ck_assert_int_eq(uri_host(some[i].uri, host, sizeof(host), &err), 0);
		ck_assert_str_eq(host, some[i].host);
		ck_assert_msg(uri_is_exposed(some[i].uri, false) == some[i].exposed, "%s",
			      some[i].uri);
		ck_assert_msg(uri_is_exposed(some[i].uri, true) == some[i].exposed_listens, "%s",
			      some[i].uri);
		ck_assert_int_eq(uri_is_tls(some[i].uri), strncmp(some[i].uri, "tls:", 4) == 0);
	}
	ck_assert_int_eq(uri_host("tls:x", host, sizeof(host), &err), -EINVAL);
}
END_TEST

START_TEST(in_use)
{
	char again[MIGRATE_URI_MAX];
	int l, t;

	begin();
	l = uri_listen(uri, out, sizeof(out), &err);
	ck_assert_int_ge(l, 0);
	ck_assert_int_eq(uri_listen(uri, again, sizeof(again), &err), -EADDRINUSE);
	ck_assert_msg(strstr(err.text, "in use"), "%s", err.text);
	t = uri_listen("tcp:127.0.0.1:0", out, sizeof(out), &err);
	ck_assert_int_ge(t, 0);
	ck_assert_int_eq(uri_listen(out, again, sizeof(again), &err), -EADDRINUSE);
	close(t);
	/* The file of one who is dead is taken over. */
	close(l);
	l = uri_listen(uri, out, sizeof(out), &err);
	ck_assert_int_ge(l, 0);
	close(l);
	end();
}
END_TEST

/* A file that is no socket is somebody's: it is not removed. */
START_TEST(not_a_socket)
{
	int fd;

	begin();
	fd = open(uri + 5, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	ck_assert_int_ge(fd, 0);
	close(fd);
	ck_assert_int_lt(uri_listen(uri, out, sizeof(out), &err), 0);
	ck_assert_int_eq(access(uri + 5, F_OK), 0);
	end();
}
END_TEST

START_TEST(nobody)
{
	int l;

	begin();
	ck_assert_int_eq(uri_connect(uri, -1, LONG * NS_PER_SEC, &err), -ENOENT);
	ck_assert_msg(strstr(err.text, "nobody listens") && strstr(err.text, uri), "%s", err.text);
	err = (struct errmsg){""};
	l = uri_listen("tcp:127.0.0.1:0", out, sizeof(out), &err);
	ck_assert_int_ge(l, 0);
	close(l);
	ck_assert_int_eq(uri_connect(out, -1, LONG * NS_PER_SEC, &err), -ECONNREFUSED);
	ck_assert_msg(strstr(err.text, "nobody listens"), "%s", err.text);
	end();
}
END_TEST

/* Waiting ends when it is told to, and in time. */
START_TEST(given_up)
{
	uint64_t one = 1, start = now_ns();
	int cancel = eventfd(0, EFD_CLOEXEC), l;

	begin();
	l = uri_listen(uri, out, sizeof(out), &err);
	ck_assert_int_ge(l, 0);
	ck_assert_int_eq((int)write(cancel, &one, sizeof(one)), (int)sizeof(one));
	ck_assert_int_eq(uri_accept(l, -1, now_ns() + NS_PER_MS, &err), -ETIMEDOUT);
	err = (struct errmsg){""};
	ck_assert_int_eq(uri_accept(l, cancel, UINT64_MAX, &err), -ECANCELED);
	ck_assert_str_eq(err.text, "cancelled");
	close(l);
	/* TEST-NET-1 answers nobody; some hosts refuse at once. */
	err = (struct errmsg){""};
	ck_assert_int_lt(uri_connect("tcp:192.0.2.1:1", cancel, LONG * NS_PER_SEC, &err), 0);
	ck_assert_uint_lt(now_ns() - start, 5 * NS_PER_SEC);
	start = now_ns();
	err = (struct errmsg){""};
	ck_assert_int_lt(uri_connect("tcp:192.0.2.1:1", -1, NS_PER_SEC / 5, &err), 0);
	ck_assert_uint_lt(now_ns() - start, 5 * NS_PER_SEC);
	ck_assert_msg(strstr(err.text, "192.0.2.1"), "%s", err.text);
	close(cancel);
	end();
}
END_TEST

/* A full backlog of a unix socket: waits, and no longer than allowed. */
START_TEST(full_backlog)
{
	uint64_t start = now_ns();
	int l, fds[64], n = 0, last;

	begin();
	l = uri_listen(uri, out, sizeof(out), &err);
	ck_assert_int_ge(l, 0);
	do
		last = uri_connect(uri, -1, NS_PER_SEC / 5, &err);
	while (last >= 0 && (fds[n++] = last, n < 64));
	ck_assert_msg(last < 0, "64 connections that nobody took");
	ck_assert_uint_lt(now_ns() - start, LONG * NS_PER_SEC);
	while (n)
		close(fds[--n]);
	close(l);
	end();
}
END_TEST

int main(void)
{
	const TTest *const tests[] = {good_ones,    bad_ones, pairs,	hosts,	     in_use,
				      not_a_socket, nobody,   given_up, full_backlog};

	return check_main("uri", tests, ARRAY_SIZE(tests));
}
