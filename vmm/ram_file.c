/* SPDX-License-Identifier: MIT */
/*
 * Theory of operation: a memfd is a file of a tmpfs that the kernel keeps for itself. Whether that
 * one uses huge pages is a setting of the whole host, "no" by default; but a tmpfs of our own has
 * its own setting. So we make one, for this file alone: it is mounted nowhere, and goes away with
 * the file. That takes the right to mount, which a user has in a user namespace of his own: a child
 * enters one and hands the file over. Nothing there allocates memory, so
 * threads of ours do no harm. Where none of that works a memfd has to do.
 *
 * Huge pages are worth that: RAM comes into being 512 pages at a time, which is most of what
 * receiving a guest costs, and both the guest's and our walks over it miss the TLB less. They come
 * with khugepaged, though, which fills the holes of a split one again after a while: not for a
 * guest that gives memory back page by page. And while it does so an old kernel forgets for a
 * moment what is in memory, so there we do without.
 */
#include "ram_file.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include "util.h"

#define THP_SETTINGS "/sys/kernel/mm/transparent_hugepage/"

/* Is the setting this word? A kernel without it has no huge pages: "never". */
static bool setting_is(const char *path, const char *word)
{
	char text[128] = "[never]";
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd >= 0) {
		ssize_t n = read(fd, text, sizeof(text) - 1);

		text[MAX(n, 0)] = 0;
		close(fd);
	}
	return strstr(text, word);
}

/* Linux 6.4 is the first in which data never looks like a hole. */
static bool kernel_is_old(void)
{
	struct utsname u;
	unsigned major = 0, minor = 0;

	return uname(&u) || sscanf(u.release, "%u.%u", &major, &minor) != 2 || major < 6 ||
	       (major == 6 && minor < 4);
}

bool ram_file_knows_holes(bool huge)
{
	const char *memfds = THP_SETTINGS "shmem_enabled";

	return !kernel_is_old() ||
	       (!huge && (setting_is(memfds, "[never]") || setting_is(memfds, "[deny]") ||
			  setting_is(memfds, "[advise]")));
}

static int set(int fs, const char *key, const char *value)
{
	return (int)syscall(SYS_fsconfig, fs, FSCONFIG_SET_STRING, key, value, 0);
}

/* A file of a new tmpfs that nobody else sees. */
static int huge_file(void)
{
	int fs = (int)syscall(SYS_fsopen, "tmpfs", FSOPEN_CLOEXEC), mount = -1, fd = -1;

	/* within_size: no page beyond the end, so a small guest is not made larger than it is. */
	if (fs >= 0 && set(fs, "huge", "within_size") == 0 && set(fs, "size", "0") == 0 &&
	    syscall(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0) == 0)
		mount = (int)syscall(SYS_fsmount, fs, FSMOUNT_CLOEXEC, 0);
	if (mount >= 0)
		fd = openat(mount, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (mount >= 0)
		close(mount);
	if (fs >= 0)
		close(fs);
	return fd;
}

union fd_message {
	struct cmsghdr head;
	char space[CMSG_SPACE(sizeof(int))];
};

static void send_fd(int to, int fd)
{
	union fd_message control = {0};
	char byte = 0;
	struct iovec iov = {.iov_base = &byte, .iov_len = 1};
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};

	control.head.cmsg_level = SOL_SOCKET;
	control.head.cmsg_type = SCM_RIGHTS;
	control.head.cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(&control.head), &fd, sizeof(fd));
	(void)!sendmsg(to, &msg, MSG_NOSIGNAL);
}

static int recv_fd(int from)
{
	union fd_message control = {0};
	char byte;
	struct iovec iov = {.iov_base = &byte, .iov_len = 1};
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	int fd = -1;

	if (recvmsg(from, &msg, MSG_CMSG_CLOEXEC) == 1 && msg.msg_controllen == sizeof(control) &&
	    control.head.cmsg_type == SCM_RIGHTS)
		memcpy(&fd, CMSG_DATA(&control.head), sizeof(fd));
	return fd;
}

static bool write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	size_t len = strlen(text);
	bool ok = fd >= 0 && write(fd, text, len) == (ssize_t)len;

	if (fd >= 0)
		close(fd);
	return ok;
}

/* Without a name there nobody can own a file there. */
static bool enter_user_namespace(void)
{
	char uids[32], gids[32];

	snprintf(uids, sizeof(uids), "0 %u 1", geteuid());
	snprintf(gids, sizeof(gids), "0 %u 1", getegid());
	return unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0 &&
	       write_text("/proc/self/setgroups", "deny") &&
	       write_text("/proc/self/uid_map", uids) && write_text("/proc/self/gid_map", gids);
}

/* The same through a child in a user namespace of its own, for who may not mount. */
static int huge_file_by_child(void)
{
	int pair[2], fd;
	pid_t pid;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
		return -1;
	pid = fork();
	if (pid == 0) {
		if (enter_user_namespace()) {
			fd = huge_file();
			if (fd >= 0)
				send_fd(pair[1], fd);
		}
		_exit(0);
	}
	close(pair[1]);
	fd = pid < 0 ? -1 : recv_fd(pair[0]);
	close(pair[0]);
	if (pid > 0)
		waitpid(pid, NULL, 0);
	return fd;
}

int ram_file_open(bool *huge)
{
	int fd = -1;

	if (*huge && !setting_is(THP_SETTINGS "enabled", "[never]") && !kernel_is_old()) {
		fd = huge_file();
		if (fd < 0)
			fd = huge_file_by_child();
	}
	*huge = fd >= 0;
	if (fd < 0)
		fd = memfd_create("godwit-ram", MFD_CLOEXEC);
	return fd < 0 ? -errno : fd;
}
