/* SPDX-License-Identifier: MIT */
/* Images for tests of disks: files in a folder of their own, which goes with the test. */
#ifndef GODWIT_TESTS_DISK_FIXTURE_H
#define GODWIT_TESTS_DISK_FIXTURE_H

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../vm_devices.h"

static char disk_folder[256];

static inline void disk_folder_make(void)
{
	const char *tmp = getenv("TMPDIR");

	snprintf(disk_folder, sizeof(disk_folder), "%s/godwit-disk-XXXXXX", tmp ? tmp : "/tmp");
	ck_assert_ptr_nonnull(mkdtemp(disk_folder));
}

/* For a checked fixture's teardown; names that tests use are given here. */
static inline void disk_folder_remove(void)
{
	static const char *const names[] = {"disk", "other", "moved", "fifo", "link"};
	char path[300];

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		snprintf(path, sizeof(path), "%s/%s", disk_folder, names[i]);
		unlink(path);
	}
	rmdir(disk_folder);
}

static inline void disk_path(char *path, const char *name)
{
	snprintf(path, VM_PATH_MAX, "%s/%s", disk_folder, name);
}

/* A description of an image of that name, of one queue, writable, writeback. */
static inline struct vm_disk disk_at(const char *name)
{
	struct vm_disk d = {.queues = 1};

	disk_path(d.path, name);
	return d;
}

/* The same with the file, which is all a hole. */
static inline struct vm_disk disk_new(const char *name, uint64_t size)
{
	struct vm_disk d = disk_at(name);
	int fd = open(d.path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(ftruncate(fd, (off_t)size), 0);
	close(fd);
	return d;
}

/* What is in the file, through another open of it. */
static inline void disk_peek(const struct vm_disk *d, uint64_t offset, void *buf, size_t len)
{
	int fd = open(d->path, O_RDONLY | O_CLOEXEC);

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(pread(fd, buf, len, (off_t)offset), (ssize_t)len);
	close(fd);
}

static inline void disk_poke(const struct vm_disk *d, uint64_t offset, const void *buf, size_t len)
{
	int fd = open(d->path, O_WRONLY | O_CLOEXEC);

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(pwrite(fd, buf, len, (off_t)offset), (ssize_t)len);
	close(fd);
}

/* Bytes that the file has on its disk. */
static inline uint64_t disk_allocated(const struct vm_disk *d)
{
	struct stat st;

	ck_assert_int_eq(stat(d->path, &st), 0);
	return (uint64_t)st.st_blocks * 512;
}

/* Bytes that differ from place to place and from seed to seed. */
static inline void disk_pattern(void *buf, size_t len, unsigned seed)
{
	uint8_t *p = buf;
	uint32_t x = seed * 2654435761U + 1;

	for (size_t i = 0; i < len; i++) {
		x = x * 1664525U + 1013904223U;
		p[i] = (uint8_t)(x >> 24);
	}
}

#endif
