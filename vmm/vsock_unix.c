/* SPDX-License-Identifier: MIT */
#include "vsock_unix.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "util.h"

#define BACKLOG 128
#define LINE_MAX_LEN 64

static int address(struct sockaddr_un *addr, const char *path, const char *suffix)
{
	int n;

	memset(addr, 0, sizeof(*addr));
	addr->sun_family = AF_UNIX;
	n = snprintf(addr->sun_path, sizeof(addr->sun_path), "%s%s", path, suffix);
	return n < 0 || (size_t)n >= sizeof(addr->sun_path) ? -ENAMETOOLONG : 0;
}

static int new_socket(void)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	return fd < 0 ? -errno : fd;
}

static int connect_to(const struct sockaddr_un *addr)
{
	int fd = new_socket(), ret;

	if (fd < 0)
		return fd;
	if (connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) == 0)
		return fd;
	ret = -errno;
	close(fd);
	return ret;
}

int vsock_connect(const char *path, uint32_t port)
{
	struct sockaddr_un addr;
	char suffix[VSOCK_SUFFIX_MAX + 1];
	int ret;

	snprintf(suffix, sizeof(suffix), "_%u", port);
	ret = address(&addr, path, suffix);
	return ret ? ret : connect_to(&addr);
}

/* Takes away the socket of a dead owner. -EADDRINUSE: it lives, or it is no socket. */
static int remove_stale(const struct sockaddr_un *addr, struct errmsg *err)
{
	struct stat st;
	int fd;

	if (lstat(addr->sun_path, &st))
		return errno == ENOENT ? 0
				       : errmsg_set(err, -errno, "vsock: %s: %s", addr->sun_path,
						    strerror(errno));
	if (!S_ISSOCK(st.st_mode))
		return errmsg_set(err, -EADDRINUSE,
				  "vsock: %s is there and is no socket: give another path",
				  addr->sun_path);
	fd = connect_to(addr);
	if (fd >= 0)
		close(fd);
	/* Only a dead owner's socket refuses. */
	if (fd != -ECONNREFUSED)
		return errmsg_set(err, -EADDRINUSE,
				  "vsock: somebody listens at %s already: another guest? Give each "
				  "guest a path of its own",
				  addr->sun_path);
	if (unlink(addr->sun_path) && errno != ENOENT)
		return errmsg_set(err, -errno, "vsock: cannot remove the left-over %s: %s",
				  addr->sun_path, strerror(errno));
	return 0;
}

int vsock_listen(struct vsock_listener *l, const char *path, struct errmsg *err)
{
	struct stat st;
	int fd, ret;

	l->fd = -1;
	if (strlen(path) > VSOCK_PATH_MAX || address(&l->addr, path, ""))
		return errmsg_set(err, -ENAMETOOLONG,
				  "vsock: %s is too long: %zu bytes at most, so that there is room "
				  "for _PORT",
				  path, VSOCK_PATH_MAX);
	ret = remove_stale(&l->addr, err);
	if (ret)
		return ret;
	fd = new_socket();
	if (fd < 0)
		return errmsg_set(err, fd, "vsock: %s: %s", path, strerror(-fd));
	/* Before bind: the socket's file gets the mode that the socket has. */
	if (fchmod(fd, 0600) || bind(fd, (struct sockaddr *)&l->addr, sizeof(l->addr)))
		goto fail;
	if (listen(fd, BACKLOG) || lstat(path, &st)) {
		ret = -errno;
		unlink(path);
		errno = -ret;
		goto fail;
	}
	l->fd = fd;
	l->dev = st.st_dev;
	l->ino = st.st_ino;
	return 0;
fail:
	ret = errmsg_set(err, -errno, "vsock: cannot listen at %s: %s", path, strerror(errno));
	close(fd);
	return ret;
}

void vsock_unlisten(struct vsock_listener *l)
{
	struct stat st;

	if (l->fd < 0)
		return;
	if (lstat(l->addr.sun_path, &st) == 0 && st.st_dev == l->dev && st.st_ino == l->ino)
		unlink(l->addr.sun_path);
	close(l->fd);
	l->fd = -1;
}

int vsock_parse_connect(const char *line, size_t len, uint32_t *port)
{
	static const char word[] = "connect";
	char text[LINE_MAX_LEN];
	char *number;
	uint64_t value;
	int ret;

	if (len >= sizeof(text) || memchr(line, '\0', len))
		return -EINVAL;
	memcpy(text, line, len);
	while (len && isspace((unsigned char)text[len - 1]))
		len--;
	text[len] = '\0';
	if (strncasecmp(text, word, strlen(word)) != 0)
		return -EINVAL;
	number = text + strlen(word);
	if (!isblank((unsigned char)*number))
		return -EINVAL;
	number += strspn(number, " \t");
	/* The largest one means "any port" to a guest. */
	ret = parse_u64(number, 0, UINT32_MAX - 1, &value);
	if (ret)
		return ret;
	*port = (uint32_t)value;
	return 0;
}
