/* SPDX-License-Identifier: MIT */
#include "rundir.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "util.h"

#define NAMES_TRIED 10000
/* What is done with a lock before listening is a few calls; on a busy host they may take long. */
#define LOCK_BUSY_NS (2 * NS_PER_SEC)

int rundir_path(char dir[RUNDIR_PATH_MAX], bool create, struct errmsg *err)
{
	const char *own = getenv("GODWIT_RUNDIR");
	const char *xdg = getenv("XDG_RUNTIME_DIR");
	struct stat st;
	int n;

	if (own && own[0])
		n = snprintf(dir, RUNDIR_PATH_MAX, "%s", own);
	else if (xdg && xdg[0])
		n = snprintf(dir, RUNDIR_PATH_MAX, "%s/godwit", xdg);
	else if (geteuid() == 0)
		n = snprintf(dir, RUNDIR_PATH_MAX, "/run/godwit");
	else
		n = snprintf(dir, RUNDIR_PATH_MAX, "/tmp/godwit-%u", geteuid());
	if (n < 0 || (size_t)n >= RUNDIR_PATH_MAX)
		return errmsg_set(err, -ENAMETOOLONG,
				  "the folder for control sockets has too long a path: set "
				  "GODWIT_RUNDIR to a shorter one");

	if (create && mkdir(dir, 0700) && errno != EEXIST)
		return errmsg_set(err, -errno,
				  "cannot create the folder for control sockets %s: %s "
				  "(GODWIT_RUNDIR chooses another)",
				  dir, strerror(errno));
	/* Not through a symbolic link: in /tmp anybody could have put one there. */
	if (lstat(dir, &st))
		return errmsg_set(err, -errno, "%s: %s", dir, strerror(errno));
	if (!S_ISDIR(st.st_mode))
		return errmsg_set(err, -ENOTDIR, "%s is not a folder", dir);
	if (geteuid() != 0 && st.st_uid != geteuid())
		return errmsg_set(err, -EPERM,
				  "%s belongs to user %u: set GODWIT_RUNDIR to a folder of yours",
				  dir, st.st_uid);
	if (st.st_mode & 022)
		return errmsg_set(err, -EPERM,
				  "%s can be written by others: chmod 700 it, or set GODWIT_RUNDIR",
				  dir);
	return 0;
}

int rundir_address(const char *dir, const char *name, struct sockaddr_un *addr, struct errmsg *err)
{
	int n;

	memset(addr, 0, sizeof(*addr));
	addr->sun_family = AF_UNIX;
	n = snprintf(addr->sun_path, sizeof(addr->sun_path), "%s/%s.sock", dir, name);
	if (n < 0 || (size_t)n >= sizeof(addr->sun_path))
		return errmsg_set(err, -ENAMETOOLONG,
				  "%s/%s.sock is too long for a socket's path: take a shorter name "
				  "or set GODWIT_RUNDIR",
				  dir, name);
	return 0;
}

/*
 * Opens and locks the lock file. The fd, -EWOULDBLOCK when somebody else holds it, or -errno. Goes
 * on when the file that was locked has been unlinked meanwhile by the owner who went.
 */
static int take_lock(const char *path)
{
	for (int tries = 0; tries < 100; tries++) {
		struct stat there, ours;
		int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
		int err;

		if (fd < 0)
			return -errno;
		if (flock(fd, LOCK_EX | LOCK_NB)) {
			err = errno;
			close(fd);
			return -err;
		}
		if (fstat(fd, &ours) == 0 && lstat(path, &there) == 0 &&
		    ours.st_ino == there.st_ino && ours.st_dev == there.st_dev)
			return fd;
		close(fd);
	}
	return -EWOULDBLOCK;
}

/* Does a live process listen there? Only a dead one's socket refuses. */
static bool somebody_listens(const struct sockaddr_un *addr)
{
	AUTO_CLOSE int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return true;
	if (connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) == 0)
		return true;
	return errno != ECONNREFUSED && errno != ENOENT;
}

/* flock() knows no time limit: this tries as long as the holder may be one who only passes by. */
static int take_lock_soon(const char *path, const struct sockaddr_un *addr)
{
	uint64_t deadline = now_ns() + LOCK_BUSY_NS;
	int fd = take_lock(path);

	while (fd == -EWOULDBLOCK && now_ns() < deadline && !somebody_listens(addr)) {
		poll(NULL, 0, 1);
		fd = take_lock(path);
	}
	return fd;
}

static int listen_at(const struct sockaddr_un *addr)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int err;

	if (fd < 0)
		return -errno;
	/* Before bind: the socket's file gets the mode that the socket has. */
	if (fchmod(fd, 0600) == 0 && bind(fd, (const struct sockaddr *)addr, sizeof(*addr)) == 0) {
		if (listen(fd, 64) == 0)
			return fd;
		err = errno;
		unlink(addr->sun_path);
	} else {
		err = errno;
	}
	close(fd);
	return -err;
}

/* .sock to .lock: the same length. */
static void lock_path(char path[RUNDIR_PATH_MAX], const struct sockaddr_un *addr)
{
	snprintf(path, RUNDIR_PATH_MAX, "%s", addr->sun_path);
	strcpy(path + strlen(path) - 4, "lock");
}

static int claim_in(const char *dir, struct rundir_claim *c, const char *name, struct errmsg *err)
{
	int ret;

	memset(c, 0, sizeof(*c));
	c->lock_fd = c->listen_fd = -1;
	ret = rundir_address(dir, name, &c->addr, err);
	if (ret)
		return ret;
	snprintf(c->name, sizeof(c->name), "%s", name);
	lock_path(c->lock_path, &c->addr);

	c->lock_fd = take_lock_soon(c->lock_path, &c->addr);
	if (c->lock_fd == -EWOULDBLOCK)
		return errmsg_set(err, -EADDRINUSE,
				  "name already taken: a guest '%s' runs here (see godwit list)",
				  name);
	if (c->lock_fd < 0)
		return errmsg_set(err, c->lock_fd, "cannot lock %s: %s", c->lock_path,
				  strerror(-c->lock_fd));
	/* Whoever listens without the lock has lost its lock file: not ours to push aside. */
	if (somebody_listens(&c->addr)) {
		ret = errmsg_set(err, -EADDRINUSE,
				 "name already taken: somebody listens at %s (see godwit list)",
				 c->addr.sun_path);
		goto unlock;
	}
	unlink(c->addr.sun_path);
	c->listen_fd = listen_at(&c->addr);
	if (c->listen_fd < 0) {
		ret = errmsg_set(err, c->listen_fd, "cannot listen at %s: %s", c->addr.sun_path,
				 strerror(-c->listen_fd));
		goto unlock;
	}
	return 0;

unlock:
	unlink(c->lock_path);
	close(c->lock_fd);
	c->lock_fd = -1;
	return ret;
}

int rundir_claim(struct rundir_claim *c, const char *name, struct errmsg *err)
{
	char dir[RUNDIR_PATH_MAX];
	int ret = rundir_path(dir, true, err);

	return ret ? ret : claim_in(dir, c, name, err);
}

int rundir_claim_free(struct rundir_claim *c, const char *prefix, unsigned first,
		      struct errmsg *err)
{
	char dir[RUNDIR_PATH_MAX];
	int ret = rundir_path(dir, true, err);

	if (ret)
		return ret;
	for (unsigned i = first; i < NAMES_TRIED; i++) {
		char number[16], name[VM_NAME_MAX];
		struct errmsg why = {""};

		snprintf(number, sizeof(number), "%u", i);
		/* The number must survive where the prefix is as long as a name can be. */
		snprintf(name, sizeof(name), "%.*s%s", (int)(sizeof(name) - 1 - strlen(number)),
			 prefix, number);
		ret = claim_in(dir, c, name, &why);
		if (ret != -EADDRINUSE)
			return ret ? errmsg_set(err, ret, "%s", why.text) : 0;
	}
	return errmsg_set(err, -EADDRINUSE, "no free name of the kind %sN", prefix);
}

void rundir_release(struct rundir_claim *c)
{
	if (c->lock_fd < 0)
		return;
	unlink(c->addr.sun_path);
	close(c->listen_fd);
	unlink(c->lock_path);
	close(c->lock_fd);
	c->lock_fd = c->listen_fd = -1;
}

void rundir_remove_dead(const char *name)
{
	char dir[RUNDIR_PATH_MAX], path[RUNDIR_PATH_MAX];
	struct sockaddr_un addr;
	int fd;

	if (rundir_path(dir, false, NULL) || rundir_address(dir, name, &addr, NULL))
		return;
	lock_path(path, &addr);
	fd = take_lock(path);
	if (fd < 0)
		return;
	/* As it was found dead before we had the lock, somebody may have come and stayed. */
	if (!somebody_listens(&addr))
		unlink(addr.sun_path);
	unlink(path);
	close(fd);
}

static int compare_names(const void *a, const void *b)
{
	return strverscmp(a, b);
}

int rundir_list(char (**names)[VM_NAME_MAX], struct errmsg *err)
{
	static const char suffix[] = ".sock";
	char dir[RUNDIR_PATH_MAX];
	struct errmsg why = {""};
	struct dirent *e;
	size_t n = 0, cap = 0;
	DIR *d;
	int ret;

	*names = NULL;
	ret = rundir_path(dir, false, &why);
	if (ret == -ENOENT)
		return 0;
	if (ret)
		return errmsg_set(err, ret, "%s", why.text);
	d = opendir(dir);
	if (!d)
		return errmsg_set(err, -errno, "cannot read %s: %s", dir, strerror(errno));
	while ((e = readdir(d))) {
		size_t len = strlen(e->d_name);
		char name[VM_NAME_MAX];

		if (len <= strlen(suffix) || len - strlen(suffix) >= sizeof(name) ||
		    strcmp(e->d_name + len - strlen(suffix), suffix) != 0)
			continue;
		len -= strlen(suffix);
		memcpy(name, e->d_name, len);
		name[len] = '\0';
		if (n == cap) {
			size_t more = cap ? 2 * cap : 16;
			void *p = realloc(*names, more * sizeof(**names));

			if (!p) {
				closedir(d);
				free(*names);
				*names = NULL;
				return errmsg_set(err, -ENOMEM, "out of memory");
			}
			*names = p;
			cap = more;
		}
		memcpy((*names)[n++], name, sizeof(name));
	}
	closedir(d);
	if (n)
		qsort(*names, n, sizeof(**names), compare_names);
	return (int)n;
}
