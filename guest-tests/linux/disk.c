/* SPDX-License-Identifier: MIT */
#include "disk.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define MODULES "/modules"
#define WAIT_MS 10000
#define TRY_MS 20
#define CHUNK 65536

static int load_one(const char *name)
{
	char path[300];
	int fd, ret;

	snprintf(path, sizeof(path), MODULES "/%s", name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	ret = syscall(SYS_finit_module, fd, "", 0) < 0 ? -errno : 0;
	close(fd);
	return ret;
}

static int not_hidden(const struct dirent *e)
{
	return e->d_name[0] != '.';
}

int modules_load(char *err, size_t err_size)
{
	struct dirent **list;
	int n = scandir(MODULES, &list, not_hidden, alphasort), ret = 0;

	if (n < 0 && errno == ENOENT)
		return 0;
	if (n < 0) {
		ret = -errno;
		snprintf(err, err_size, MODULES ": %s", strerror(errno));
		return ret;
	}
	for (int i = 0; i < n; i++) {
		if (ret == 0) {
			ret = load_one(list[i]->d_name);
			if (ret)
				snprintf(err, err_size, "module %s: %s", list[i]->d_name,
					 strerror(-ret));
		}
		free(list[i]);
	}
	free(list);
	return ret;
}

int disk_mount(const char *dir, char *err, size_t err_size)
{
	const struct timespec pause = {.tv_nsec = TRY_MS * 1000000L};
	int ret;

	/* The device's name is there a moment after its driver. */
	for (int ms = 0; access(DISK_DEVICE, F_OK) < 0 && ms < WAIT_MS; ms += TRY_MS)
		nanosleep(&pause, NULL);
	mkdir(dir, 0755);
	/* After an error writers fail, and say so. */
	if (mount(DISK_DEVICE, dir, "ext4", MS_NOATIME, "errors=remount-ro") == 0)
		return 0;
	ret = -errno;
	snprintf(err, err_size, "mounting " DISK_DEVICE ": %s", strerror(errno));
	return ret;
}

int64_t disk_cache(uint64_t bytes)
{
	static char chunk[CHUNK];
	/* Stays open: the cache of a device that nobody has open goes. */
	static int fd = -1;
	uint64_t done = 0;
	ssize_t n = 0;

	if (fd < 0)
		fd = open(DISK_DEVICE, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || lseek(fd, 0, SEEK_SET) < 0)
		return -errno;
	while (done < bytes) {
		uint64_t want = bytes - done;

		n = read(fd, chunk, want < CHUNK ? (size_t)want : CHUNK);
		if (n <= 0)
			break;
		done += (uint64_t)n;
	}
	return n < 0 ? -errno : (int64_t)done;
}
