/* SPDX-License-Identifier: MIT */
#include "ram_image.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fault.h"

#define CHUNK (4 * MIB)

static int load_range(struct ram *ram, int fd, uint64_t first, uint64_t end)
{
	int ret = 0;

	for (unsigned i = 0; i < ram->nregions && ret == 0; i++) {
		const struct ram_region *r = &ram->region[i];
		uint64_t from = MAX(first, r->offset), to = MIN(end, r->offset + r->size);

		if (from < to)
			ret = ram_write_file(ram, r->gpa + (from - r->offset), fd, from, to - from);
	}
	return ret;
}

int ram_image_load(struct ram *ram, int fd, struct errmsg *err)
{
	struct stat st;
	uint64_t at = 0;

	if (fstat(fd, &st))
		return errmsg_set(err, -errno, "%s", strerror(errno));
	if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size != ram->size)
		return errmsg_set(err, -EINVAL, "it has %lld bytes, the guest's RAM has %llu",
				  (long long)st.st_size, (unsigned long long)ram->size);
	while (at < ram->size) {
		off_t data = lseek(fd, (off_t)at, SEEK_DATA), hole;
		uint64_t end;
		int ret;

		if (data < 0 && errno == ENXIO)
			break;
		/* A file system that knows no holes has data everywhere. */
		if (data < 0)
			data = (off_t)at;
		at = ALIGN_DOWN((uint64_t)data, PAGE_SIZE);
		/* From where the data is: before it, in the same page, there may be a hole. */
		hole = lseek(fd, data, SEEK_HOLE);
		end = hole < 0 ? ram->size : MIN(ALIGN_UP((uint64_t)hole, PAGE_SIZE), ram->size);
		ret = load_range(ram, fd, at, end);
		if (ret)
			return errmsg_set(err, ret, "reading it: %s", strerror(-ret));
		at = end;
	}
	return 0;
}

static int write_all(int fd, const uint8_t *from, uint64_t len, uint64_t offset)
{
	if (fault_at(FAULT_ENOSPC, "leave"))
		return -ENOSPC;
	while (len) {
		ssize_t n = pwrite(fd, from, MIN(len, CHUNK), (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -EIO;
		from += n;
		offset += (uint64_t)n;
		len -= (uint64_t)n;
	}
	return 0;
}

static int write_pages(const struct ram *ram, int fd)
{
	uint64_t first = 0, n;
	int ret = ftruncate(fd, (off_t)ram->size) ? -errno : 0;

	for (; ret == 0 && ram_next_populated(ram, &first, &n); first += n)
		ret = write_all(fd, ram_page(ram, first), n * PAGE_SIZE, first * PAGE_SIZE);
	if (ret == 0 && fsync(fd))
		ret = -errno;
	return ret;
}

int ram_image_save(const struct ram *ram, const char *path, struct errmsg *err)
{
	AUTO_FREE char *temporary = NULL;
	int fd, ret;

	if (asprintf(&temporary, "%s.XXXXXX", path) < 0) {
		temporary = NULL;
		return errmsg_set(err, -ENOMEM, "no memory for a file's name");
	}
	fd = mkostemp(temporary, O_CLOEXEC);
	if (fd < 0)
		return errmsg_set(err, -errno, "%s: %s", temporary, strerror(errno));
	ret = write_pages(ram, fd);
	if (close(fd) && ret == 0)
		ret = -errno;
	if (ret == 0 && rename(temporary, path))
		ret = -errno;
	if (ret) {
		unlink(temporary);
		errmsg_set(err, ret, "%s: %s", path, strerror(-ret));
	}
	return ret;
}
