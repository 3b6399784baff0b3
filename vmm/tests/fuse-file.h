/* SPDX-License-Identifier: MIT */
/*
 * A file whose faults a test decides: reads, writes and syncs that hang until they are let go, or
 * that fail.
 *
 * A process of its own serves it through /dev/fuse, so that everything above, from the kernel's
 * file layer to io_uring and its workers, meets a disk that is really slow or really broken. The
 * mount is in a mount namespace of the test's (and a user namespace, unless root runs it), and goes
 * with it. The server is not a thread of the test: a process whose own thread is what its stuck
 * requests wait for could not even be killed.
 *
 *	struct fuse_file *f = fuse_file_new(SIZE, &why);	NULL where the host forbids it
 *	f->path						to open
 *	fuse_file_stall(f, FUSE_STALL_WRITE);		those that come from now on hang
 *	f->shared->stalled				how many do
 *	fuse_file_stall(f, 0);				all go on
 *	f->shared->error[FUSE_FAIL_WRITE] = EIO;
 *	fuse_file_free(f);
 */
#ifndef GODWIT_TESTS_FUSE_FILE_H
#define GODWIT_TESTS_FUSE_FILE_H

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../util.h"

#define FUSE_FILE_MAX_WRITE 131072U
#define FUSE_FILE_STALLED_MAX 64
#define FUSE_FILE_LIFE_S 60 /* after which a server ends, whatever became of the test */

enum { FUSE_STALL_READ = 1, FUSE_STALL_WRITE = 2, FUSE_STALL_SYNC = 4 };
enum { FUSE_FAIL_READ, FUSE_FAIL_WRITE, FUSE_FAIL_SYNC, FUSE_FAIL_N };

/* Shared with the server. */
struct fuse_shared {
	atomic_uint stall;
	atomic_int error[FUSE_FAIL_N]; /* errno, 0 for none */
	atomic_uint stalled;	       /* hang at this moment */
	atomic_uint reads, writes, syncs;
	atomic_uint dsync_writes; /* of writes, those that were to be durable at once */
	atomic_uint unsynced;	  /* writes since the last sync that succeeded */
	atomic_ullong size;
	uint8_t data[];
};

struct fuse_file {
	struct fuse_shared *shared;
	char path[256];
	pid_t server;
	int wake;
	uint64_t max;
};

/* ---- the server ---- */

struct fuse_msg {
	struct fuse_in_header h;
	uint8_t body[FUSE_FILE_MAX_WRITE + 4096];
};

struct fuse_server {
	struct fuse_shared *s;
	int dev;
	struct fuse_msg *stalled[FUSE_FILE_STALLED_MAX];
	unsigned n_stalled;
};

static inline void fuse_reply(const struct fuse_server *v, uint64_t unique, int error,
			      const void *buf, size_t len)
{
	struct fuse_out_header h = {.error = -error, .unique = unique};
	struct iovec iov[2] = {{&h, sizeof(h)}, {(void *)(uintptr_t)buf, len}};

	if (error)
		len = iov[1].iov_len = 0;
	h.len = (uint32_t)(sizeof(h) + len);
	(void)!writev(v->dev, iov, 2);
}

static inline void fuse_reply_attr(const struct fuse_server *v, uint64_t unique)
{
	struct fuse_attr_out out = {.attr = {
					    .ino = FUSE_ROOT_ID,
					    .size = v->s->size,
					    .mode = S_IFREG | 0600,
					    .nlink = 1,
					    .uid = geteuid(),
					    .gid = getegid(),
					    .blksize = 4096,
				    }};

	fuse_reply(v, unique, 0, &out, sizeof(out));
}

static inline void fuse_reply_init(const struct fuse_server *v, const struct fuse_msg *m)
{
	const struct fuse_init_in *in = (const void *)m->body;
	struct fuse_init_out out = {
		.major = FUSE_KERNEL_VERSION,
		.minor = MIN(in->minor, (uint32_t)FUSE_KERNEL_MINOR_VERSION),
		.max_readahead = in->max_readahead,
		.flags = FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_ASYNC_DIO | FUSE_MAX_PAGES,
		.max_background = 256,
		.congestion_threshold = 200,
		.max_write = FUSE_FILE_MAX_WRITE,
		.time_gran = 1,
		.max_pages = FUSE_FILE_MAX_WRITE / 4096,
	};

	fuse_reply(v, m->h.unique, 0, &out, sizeof(out));
}

static inline void fuse_do_read(const struct fuse_server *v, const struct fuse_msg *m)
{
	const struct fuse_read_in *in = (const void *)m->body;
	uint64_t size = v->s->size, at = MIN(in->offset, size);

	v->s->reads++;
	fuse_reply(v, m->h.unique, v->s->error[FUSE_FAIL_READ], v->s->data + at,
		   MIN(in->size, size - at));
}

static inline void fuse_do_write(const struct fuse_server *v, const struct fuse_msg *m)
{
	const struct fuse_write_in *in = (const void *)m->body;
	struct fuse_write_out out = {.size = in->size};
	int error = v->s->error[FUSE_FAIL_WRITE];

	v->s->writes++;
	v->s->unsynced++;
	if (in->flags & O_DSYNC)
		v->s->dsync_writes++;
	if (!error && in->offset + in->size > v->s->size)
		error = ENOSPC;
	if (!error)
		memcpy(v->s->data + in->offset, m->body + sizeof(*in), in->size);
	fuse_reply(v, m->h.unique, error, &out, sizeof(out));
}

static inline void fuse_do_sync(const struct fuse_server *v, const struct fuse_msg *m)
{
	int error = v->s->error[FUSE_FAIL_SYNC];

	v->s->syncs++;
	if (!error)
		v->s->unsynced = 0;
	fuse_reply(v, m->h.unique, error, NULL, 0);
}

static inline unsigned fuse_stall_of(uint32_t opcode)
{
	switch (opcode) {
	case FUSE_READ:
		return FUSE_STALL_READ;
	case FUSE_WRITE:
		return FUSE_STALL_WRITE;
	case FUSE_FSYNC:
		return FUSE_STALL_SYNC;
	default:
		return 0;
	}
}

static inline void fuse_serve(const struct fuse_server *v, const struct fuse_msg *m)
{
	struct fuse_open_out open_out = {.open_flags = FOPEN_DIRECT_IO};

	switch (m->h.opcode) {
	case FUSE_INIT:
		fuse_reply_init(v, m);
		break;
	case FUSE_GETATTR:
		fuse_reply_attr(v, m->h.unique);
		break;
	case FUSE_OPEN:
		fuse_reply(v, m->h.unique, 0, &open_out, sizeof(open_out));
		break;
	case FUSE_READ:
		fuse_do_read(v, m);
		break;
	case FUSE_WRITE:
		fuse_do_write(v, m);
		break;
	case FUSE_FSYNC:
		fuse_do_sync(v, m);
		break;
	case FUSE_FLUSH:
	case FUSE_RELEASE:
		fuse_reply(v, m->h.unique, 0, NULL, 0);
		break;
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
	case FUSE_INTERRUPT: /* what hangs, hangs */
		break;
	default:
		fuse_reply(v, m->h.unique, ENOSYS, NULL, 0);
	}
}

static inline void fuse_let_go(struct fuse_server *v)
{
	unsigned kept = 0;

	for (unsigned i = 0; i < v->n_stalled; i++) {
		struct fuse_msg *m = v->stalled[i];

		if (v->s->stall & fuse_stall_of(m->h.opcode)) {
			v->stalled[kept++] = m;
			continue;
		}
		v->s->stalled--;
		fuse_serve(v, m);
		free(m);
	}
	v->n_stalled = kept;
}

/* Never returns. */
static inline void fuse_server_run(struct fuse_server *v, int wake)
{
	struct pollfd fds[2] = {{.fd = v->dev, .events = POLLIN}, {.fd = wake, .events = POLLIN}};
	struct fuse_msg *m = malloc(sizeof(*m));
	uint64_t count;

	while (m) {
		ssize_t n;

		if (poll(fds, 2, -1) < 0 && errno != EINTR)
			break;
		if (fds[1].revents & POLLIN) {
			(void)!read(wake, &count, sizeof(count));
			fuse_let_go(v);
		}
		if (fds[0].revents & (POLLERR | POLLHUP))
			break;
		if (!(fds[0].revents & POLLIN))
			continue;
		n = read(v->dev, m, sizeof(*m));
		if (n < 0 && errno == ENODEV)
			break;
		if (n < (ssize_t)sizeof(m->h))
			continue;
		if ((v->s->stall & fuse_stall_of(m->h.opcode)) &&
		    v->n_stalled < FUSE_FILE_STALLED_MAX) {
			v->stalled[v->n_stalled++] = m;
			v->s->stalled++;
			m = malloc(sizeof(*m));
		} else {
			fuse_serve(v, m);
		}
	}
	_exit(0);
}

/* ---- the mount ---- */

static inline bool fuse_write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	bool ok = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);

	if (fd >= 0)
		close(fd);
	return ok;
}

/* A mount namespace of our own, in which we may mount. */
static inline const char *fuse_namespace(void)
{
	char map[64];
	uid_t uid = geteuid();
	gid_t gid = getegid();

	if (uid == 0) {
		if (unshare(CLONE_NEWNS))
			return "no mount namespace";
	} else {
		if (unshare(CLONE_NEWUSER | CLONE_NEWNS))
			return "no user namespace";
		snprintf(map, sizeof(map), "%u %u 1", uid, uid);
		if (!fuse_write_text("/proc/self/setgroups", "deny") ||
		    !fuse_write_text("/proc/self/uid_map", map))
			return "no mapping of users";
		snprintf(map, sizeof(map), "%u %u 1", gid, gid);
		if (!fuse_write_text("/proc/self/gid_map", map))
			return "no mapping of groups";
	}
	return mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ? "mounts are not private" : NULL;
}

static inline int fuse_mount(const char *path, const char **why)
{
	char options[128];
	int dev;

	*why = fuse_namespace();
	if (*why)
		return -1;
	dev = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	if (dev < 0) {
		*why = "no /dev/fuse";
		return -1;
	}
	/* The root of this file system is a file, over another. */
	snprintf(options, sizeof(options), "fd=%d,rootmode=100600,user_id=%u,group_id=%u", dev,
		 geteuid(), getegid());
	if (mount("godwit-test", path, "fuse", MS_NOSUID | MS_NODEV, options)) {
		*why = strerror(errno);
		close(dev);
		return -1;
	}
	return dev;
}

static inline struct fuse_file *fuse_file_new(uint64_t size, const char **why)
{
	struct fuse_file *f = calloc(1, sizeof(*f));
	struct fuse_server v = {0};
	struct stat st;
	int fd;

	ck_assert_ptr_nonnull(f);
	snprintf(f->path, sizeof(f->path), "/tmp/godwit-fuse-XXXXXX");
	fd = mkstemp(f->path);
	ck_assert_int_ge(fd, 0);
	close(fd);
	v.dev = fuse_mount(f->path, why);
	if (v.dev < 0) {
		unlink(f->path);
		free(f);
		return NULL;
	}
	f->max = sizeof(*f->shared) + size;
	f->shared = mmap(NULL, f->max, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ck_assert_ptr_ne(f->shared, MAP_FAILED);
	f->shared->size = size;
	f->wake = eventfd(0, EFD_CLOEXEC);
	ck_assert_int_ge(f->wake, 0);
	v.s = f->shared;
	f->server = fork();
	ck_assert_int_ge(f->server, 0);
	if (f->server == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		alarm(FUSE_FILE_LIFE_S);
		fuse_server_run(&v, f->wake);
	}
	close(v.dev);
	/* Until it was asked, the root of a mount is nobody's. */
	ck_assert_int_eq(stat(f->path, &st), 0);
	return f;
}

/* Ends the server first: whatever still hangs fails then. */
static inline void fuse_file_free(struct fuse_file *f)
{
	kill(f->server, SIGKILL);
	waitpid(f->server, NULL, 0);
	umount2(f->path, MNT_DETACH);
	unlink(f->path);
	close(f->wake);
	munmap(f->shared, f->max);
	free(f);
}

/* What hangs, a mask; the rest goes on. */
static inline void fuse_file_stall(struct fuse_file *f, unsigned mask)
{
	uint64_t one = 1;

	f->shared->stall = mask;
	ck_assert_int_eq(write(f->wake, &one, sizeof(one)), sizeof(one));
}

#endif
