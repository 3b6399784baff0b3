/* SPDX-License-Identifier: MIT */
#include "unix_listen.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

/*
 * Is an owner of the socket alive? 0 when not. A datagram socket is refused by a dead one and does
 * not fit a living stream socket: its owner never hears of us, and does not take us for its peer.
 */
static int probe(const struct sockaddr_un *addr)
{
	int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	int ret;

	if (fd < 0)
		return -errno;
	ret = connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) ? -errno : 0;
	close(fd);
	if (ret == -ECONNREFUSED || ret == -ENOENT)
		return 0;
	return ret == 0 || ret == -EPROTOTYPE ? -EADDRINUSE : ret;
}

/* Takes away what a dead owner left. */
static int clear_path(const struct sockaddr_un *addr, const char *what, struct errmsg *err)
{
	const char *path = addr->sun_path;
	struct stat st;
	int ret;

	if (lstat(path, &st))
		return errno == ENOENT
			       ? 0
			       : errmsg_set(err, -errno, "%s: %s: %s", what, path, strerror(errno));
	if (!S_ISSOCK(st.st_mode))
		return errmsg_set(err, -EEXIST,
				  "%s: %s is there and is no socket: give another path", what,
				  path);
	ret = probe(addr);
	if (ret == -EADDRINUSE)
		return errmsg_set(err, ret,
				  "%s: somebody listens at %s already: give another path, one to "
				  "each guest",
				  what, path);
	if (ret)
		return errmsg_set(err, ret, "%s: cannot tell whose %s is: %s", what, path,
				  strerror(-ret));
	if (unlink(path) && errno != ENOENT)
		return errmsg_set(err, -errno, "%s: cannot remove the left-over %s: %s", what, path,
				  strerror(errno));
	return 0;
}

int unix_listen(struct unix_listen *l, const char *what, const char *path, int backlog,
		struct errmsg *err)
{
	struct stat st;
	int fd, ret;

	*l = (struct unix_listen){.addr.sun_family = AF_UNIX};
	if (strlen(path) >= sizeof(l->addr.sun_path))
		return errmsg_set(err, -ENAMETOOLONG, "%s: %s is too long: %zu bytes at most", what,
				  path, sizeof(l->addr.sun_path) - 1);
	memcpy(l->addr.sun_path, path, strlen(path));
	ret = clear_path(&l->addr, what, err);
	if (ret)
		return ret;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return errmsg_set(err, -errno, "%s: %s: %s", what, path, strerror(errno));
	/* The mode before bind(): the socket's file gets the mode that the socket has. */
	if (fchmod(fd, 0600) || bind(fd, (const struct sockaddr *)&l->addr, sizeof(l->addr))) {
		ret = -errno;
	} else if (listen(fd, backlog) || lstat(path, &st)) {
		ret = -errno;
		unlink(path);
	} else {
		l->dev = st.st_dev;
		l->ino = st.st_ino;
		return fd;
	}
	close(fd);
	return errmsg_set(err, ret, "%s: cannot listen at %s: %s", what, path, strerror(-ret));
}

static int take_away(void *arg)
{
	const struct unix_listen *l = arg;
	struct stat st;

	if (lstat(l->addr.sun_path, &st) == 0 && st.st_dev == l->dev && st.st_ino == l->ino)
		unlink(l->addr.sun_path);
	return 0;
}

void unix_unlisten(struct confine *confine, struct unix_listen *l)
{
	confine_call(confine, take_away, l);
}
