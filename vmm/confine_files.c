/* SPDX-License-Identifier: MIT */
/*
 * Landlock, by raw system calls, as glibc has no names for them and Debian 12's headers know its
 * first two versions only. A right that the running kernel does not know must not be asked for.
 */
#include <errno.h>
#include <linux/landlock.h>
#include <linux/seccomp.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "confine_parts.h"

/* From version 4 on: which rights of the network are handled. */
struct ruleset {
	uint64_t access_fs;
	uint64_t access_net;
};

/* How many of the rights of files each version knows: the lowest bits. */
static const uint8_t fs_rights[] = {13, 14, 15, 15, 16};
#define NET_VERSION 4
#define NET_BIND_AND_CONNECT 3

int confine_probe_landlock(void)
{
	long version =
		syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);

	return version < 0 ? -errno : (int)version;
}

int confine_make_ruleset(void)
{
	int version = confine_probe_landlock();
	struct ruleset r = {.access_fs = 0};
	size_t size = sizeof(r.access_fs);
	long fd;

	if (version <= 0)
		return version ? version : -ENOSYS;
	r.access_fs = (1ULL << fs_rights[MIN((size_t)version, sizeof(fs_rights)) - 1]) - 1;
	if (version >= NET_VERSION) {
		r.access_net = NET_BIND_AND_CONNECT;
		size = sizeof(r);
	}
	fd = syscall(SYS_landlock_create_ruleset, &r, size, 0);
	return fd < 0 ? -errno : (int)fd;
}

int confine_restrict_files(int ruleset)
{
	return syscall(SYS_landlock_restrict_self, ruleset, 0) ? -errno : 0;
}

int confine_probe_seccomp(void)
{
	uint32_t action = SECCOMP_RET_ERRNO;

	return syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &action) ? -errno : 0;
}
