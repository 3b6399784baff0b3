/* SPDX-License-Identifier: MIT */
#include "uri.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "../vmm/util.h"

struct target {
	bool is_unix;
	char host[128];
	char port[16];
	struct sockaddr_un un;
};

/* All of these begin with four characters. */
static int parse_tcp(const char *uri, struct target *t, struct errmsg *err)
{
	const char *rest = uri + 4, *colon = strrchr(rest, ':');
	size_t len;
	uint64_t port;

	if (!colon)
		return errmsg_set(err, -EINVAL, "%s: no port; want %.4sHOST:PORT", uri, uri);
	if (parse_u64(colon + 1, 0, 65535, &port))
		return errmsg_set(err, -EINVAL, "%s: \"%s\" is not a port", uri, colon + 1);
	len = (size_t)(colon - rest);
	if (len >= 2 && rest[0] == '[' && rest[len - 1] == ']') {
		rest++;
		len -= 2;
	} else if (memchr(rest, ':', len)) {
		return errmsg_set(err, -EINVAL,
				  "%s: write an IPv6 address in brackets, %.4s[ADDRESS]:PORT", uri,
				  uri);
	}
	if (len >= sizeof(t->host))
		return errmsg_set(err, -EINVAL, "%s: the host's name is too long", uri);
	memcpy(t->host, rest, len);
	t->host[len] = 0;
	snprintf(t->port, sizeof(t->port), "%u", (unsigned)port);
	return 0;
}

bool uri_is_tls(const char *uri)
{
	return strncmp(uri, "tls:", 4) == 0;
}

static int parse(const char *uri, struct target *t, struct errmsg *err)
{
	*t = (struct target){0};
	if (strncmp(uri, "tcp:", 4) == 0 || uri_is_tls(uri))
		return parse_tcp(uri, t, err);
	if (strncmp(uri, "unix:", 5) == 0) {
		const char *path = uri + 5;

		if (!*path || strlen(path) >= sizeof(t->un.sun_path))
			return errmsg_set(err, -EINVAL, "%s: the path must have 1 to %zu bytes",
					  uri, sizeof(t->un.sun_path) - 1);
		t->is_unix = true;
		t->un.sun_family = AF_UNIX;
		memcpy(t->un.sun_path, path, strlen(path) + 1);
		return 0;
	}
	return errmsg_set(err, -EINVAL, "%s: want tcp:HOST:PORT, tls:HOST:PORT or unix:PATH", uri);
}

int uri_check(const char *uri, struct errmsg *err)
{
	struct target t;

	return parse(uri, &t, err);
}

int uri_host(const char *uri, char *out, size_t len, struct errmsg *err)
{
	struct target t;
	int ret = parse(uri, &t, err);

	if (ret == 0)
		snprintf(out, len, "%s", t.host);
	return ret;
}

static bool is_loopback(const char *host)
{
	struct in6_addr in6;
	struct in_addr in;

	if (strcmp(host, "localhost") == 0)
		return true;
	if (inet_pton(AF_INET, host, &in) == 1)
		return ntohl(in.s_addr) >> 24 == 127;
	if (inet_pton(AF_INET6, host, &in6) != 1)
		return false;
	return IN6_IS_ADDR_LOOPBACK(&in6) || (IN6_IS_ADDR_V4MAPPED(&in6) && in6.s6_addr[12] == 127);
}

bool uri_is_exposed(const char *uri, bool listens)
{
	struct errmsg ignored = {0};
	struct target t;

	if (uri_is_tls(uri) || parse(uri, &t, &ignored) || t.is_unix)
		return false;
	return t.host[0] ? !is_loopback(t.host) : listens;
}

static int resolve(const struct target *t, int flags, struct addrinfo **list, const char *uri,
		   struct errmsg *err)
{
	struct addrinfo hints = {
		.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = flags};
	int ret = getaddrinfo(t->host[0] ? t->host : NULL, t->port, &hints, list);

	if (ret)
		return errmsg_set(err, -EHOSTUNREACH, "%s: %s", uri, gai_strerror(ret));
	return 0;
}

/* poll() on fd and cancel_fd until the deadline. 0, -ECANCELED, -ETIMEDOUT, -errno. */
static int wait_for(int fd, short events, int cancel_fd, uint64_t deadline)
{
	for (;;) {
		struct pollfd p[2] = {{.fd = fd, .events = events},
				      {.fd = cancel_fd, .events = POLLIN}};
		uint64_t now = now_ns();
		int timeout = -1, n;

		if (deadline != UINT64_MAX) {
			if (now >= deadline)
				return -ETIMEDOUT;
			timeout = (int)MIN((deadline - now) / NS_PER_MS + 1, 3600000ULL);
		}
		n = poll(p, 2, timeout);
		if (n < 0 && errno != EINTR)
			return -errno;
		if (n <= 0)
			continue;
		if (p[1].revents)
			return -ECANCELED;
		if (p[0].revents)
			return 0;
	}
}

static void set_blocking(int fd)
{
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
}

static void set_tcp_options(int fd)
{
	int one = 1;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
}

static int connect_one(int family, const struct sockaddr *addr, socklen_t len, int cancel_fd,
		       uint64_t deadline)
{
	int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int ret, error = 0;
	socklen_t error_len = sizeof(error);

	if (fd < 0)
		return -errno;
	ret = connect(fd, addr, len) ? -errno : 0;
	/* A unix socket whose queue is full: nothing tells when there is room. */
	while (ret == -EAGAIN) {
		ret = wait_for(-1, 0, cancel_fd, MIN(deadline, now_ns() + 20 * NS_PER_MS));
		if (ret == -ETIMEDOUT && now_ns() < deadline)
			ret = connect(fd, addr, len) ? -errno : 0;
	}
	if (ret == -EINPROGRESS) {
		ret = wait_for(fd, POLLOUT, cancel_fd, deadline);
		if (ret == 0 && getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &error_len) == 0)
			ret = -error;
	}
	if (ret) {
		close(fd);
		return ret;
	}
	set_blocking(fd);
	if (family != AF_UNIX)
		set_tcp_options(fd);
	return fd;
}

int uri_connect(const char *uri, int cancel_fd, uint64_t timeout_ns, struct errmsg *err)
{
	uint64_t deadline = now_ns() + timeout_ns;
	struct addrinfo *list;
	struct target t;
	int ret;

	ret = parse(uri, &t, err);
	if (ret)
		return ret;
	if (t.is_unix) {
		ret = connect_one(AF_UNIX, (const struct sockaddr *)&t.un, sizeof(t.un), cancel_fd,
				  deadline);
	} else {
		ret = resolve(&t, 0, &list, uri, err);
		if (ret)
			return ret;
		ret = -EHOSTUNREACH;
		for (const struct addrinfo *a = list; a; a = a->ai_next) {
			ret = connect_one(a->ai_family, a->ai_addr, a->ai_addrlen, cancel_fd,
					  deadline);
			if (ret >= 0 || ret == -ECANCELED)
				break;
		}
		freeaddrinfo(list);
	}
	if (ret == -ECANCELED)
		return errmsg_set(err, ret, "cancelled");
	if (ret == -ECONNREFUSED || ret == -ENOENT)
		return errmsg_set(err, ret,
				  "nobody listens at %s: start `godwit receive %s` there first",
				  uri, uri);
	if (ret < 0)
		return errmsg_set(err, ret, "connecting to %s: %s", uri, strerror(-ret));
	return ret;
}

static int bind_error(const char *uri, int error, struct errmsg *err)
{
	if (error == EADDRINUSE)
		return errmsg_set(err, -error,
				  "%s is in use by another process; choose another address", uri);
	return errmsg_set(err, -error, "listening at %s: %s", uri, strerror(error));
}

/* Does a live process listen at the path? */
static bool unix_alive(const struct sockaddr_un *un)
{
	int fd = connect_one(AF_UNIX, (const struct sockaddr *)un, sizeof(*un), -1,
			     now_ns() + NS_PER_SEC);

	if (fd >= 0)
		close(fd);
	return fd >= 0 || (fd != -ECONNREFUSED && fd != -ENOENT);
}

/* Only a socket is ever taken over: any other file there is somebody's. */
static bool is_socket(const char *path)
{
	struct stat st;

	return lstat(path, &st) == 0 && S_ISSOCK(st.st_mode);
}

static int listen_unix(const struct target *t, const char *uri, struct errmsg *err)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int ret;

	if (fd < 0)
		return bind_error(uri, errno, err);
	ret = bind(fd, (const struct sockaddr *)&t->un, sizeof(t->un)) ? errno : 0;
	if (ret == EADDRINUSE && is_socket(t->un.sun_path) && !unix_alive(&t->un) &&
	    unlink(t->un.sun_path) == 0)
		ret = bind(fd, (const struct sockaddr *)&t->un, sizeof(t->un)) ? errno : 0;
	if (ret == 0 && listen(fd, 1))
		ret = errno;
	if (ret) {
		close(fd);
		return bind_error(uri, ret, err);
	}
	return fd;
}

static int listen_tcp(const struct target *t, const char *uri, struct errmsg *err)
{
	struct addrinfo *list;
	int fd = -1, one = 1;
	int ret = resolve(t, AI_PASSIVE, &list, uri, err);

	if (ret)
		return ret;
	ret = EHOSTUNREACH;
	for (const struct addrinfo *a = list; a && fd < 0; a = a->ai_next) {
		fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
		if (fd < 0) {
			ret = errno;
			continue;
		}
		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
		if (bind(fd, a->ai_addr, a->ai_addrlen) || listen(fd, 1)) {
			ret = errno;
			close(fd);
			fd = -1;
		}
	}
	freeaddrinfo(list);
	return fd >= 0 ? fd : bind_error(uri, ret, err);
}

int uri_listen(const char *uri, char *out, size_t len, struct errmsg *err)
{
	struct sockaddr_storage bound = {0};
	socklen_t bound_len = sizeof(bound);
	char port[16];
	struct target t;
	int fd, ret;

	ret = parse(uri, &t, err);
	if (ret)
		return ret;
	fd = t.is_unix ? listen_unix(&t, uri, err) : listen_tcp(&t, uri, err);
	if (fd < 0)
		return fd;
	snprintf(out, len, "%s", uri);
	if (t.is_unix || strcmp(t.port, "0") != 0)
		return fd;
	if (getsockname(fd, (struct sockaddr *)&bound, &bound_len) ||
	    getnameinfo((struct sockaddr *)&bound, bound_len, NULL, 0, port, sizeof(port),
			NI_NUMERICSERV)) {
		ret = bind_error(uri, EIO, err);
		close(fd);
		return ret;
	}
	snprintf(out, len, strchr(t.host, ':') ? "%.4s[%s]:%s" : "%.4s%s:%s", uri, t.host, port);
	return fd;
}

int uri_accept(int listen_fd, int cancel_fd, uint64_t deadline_ns, struct errmsg *err)
{
	int fd, domain = 0;
	socklen_t len = sizeof(domain);
	int ret = wait_for(listen_fd, POLLIN, cancel_fd, deadline_ns);

	if (ret)
		return errmsg_set(err, ret,
				  ret == -ECANCELED ? "cancelled" : "waiting for a source: %s",
				  strerror(-ret));
	fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC);
	if (fd < 0)
		return errmsg_set(err, -errno, "accepting a source: %s", strerror(errno));
	if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) == 0 && domain != AF_UNIX)
		set_tcp_options(fd);
	return fd;
}

void uri_unlink(const char *uri)
{
	struct target t;
	struct errmsg ignored = {0};

	if (parse(uri, &t, &ignored) == 0 && t.is_unix)
		unlink(t.un.sun_path);
}
