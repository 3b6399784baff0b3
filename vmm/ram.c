/* SPDX-License-Identifier: MIT */
#include "ram.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ram_file.h"

#define HUGE_PAGE (2 * MIB)

/* Huge pages can be mapped as such where address and offset agree. NULL with errno. */
static uint8_t *map_aligned(int fd, uint64_t size)
{
	uint8_t *space = mmap(NULL, size + HUGE_PAGE, PROT_NONE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	uint8_t *host = (uint8_t *)ALIGN_UP((uintptr_t)space, (uintptr_t)HUGE_PAGE);
	size_t before = (size_t)(host - space);

	if (space == MAP_FAILED)
		return NULL;
	if (before)
		munmap(space, before);
	munmap(host + size, HUGE_PAGE - before);
	if (mmap(host, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE | MAP_FIXED, fd,
		 0) != MAP_FAILED)
		return host;
	munmap(host, size);
	return NULL;
}

int ram_init(struct ram *ram, uint64_t size, bool huge, struct errmsg *err)
{
	char text[32];
	uint64_t words;
	int ret;

	memset(ram, 0, sizeof(*ram));
	ram->fd = -1;
	if (size < RAM_MIN || size % PAGE_SIZE)
		return errmsg_set(err, -EINVAL,
				  "RAM size %llu: must be at least 16M and whole 4 KiB pages",
				  (unsigned long long)size);
	format_size(text, sizeof(text), size);
	ram->size = size;
	ram->npages = size / PAGE_SIZE;

	ram->huge = huge;
	ram->fd = ram_file_open(&ram->huge);
	ram->no_holes = !ram_file_knows_holes(ram->huge);
	if (ram->fd < 0) {
		ret = errmsg_set(err, ram->fd, "a file for guest RAM: %s", strerror(-ram->fd));
		goto fail;
	}
	if (size > INT64_MAX || ftruncate(ram->fd, (off_t)size)) {
		ret = errmsg_set(err, -ENOMEM,
				 "this host refuses %s of guest RAM: %s; use a smaller -m", text,
				 strerror(size > INT64_MAX ? EFBIG : errno));
		goto fail;
	}
	ram->host = map_aligned(ram->fd, size);
	if (!ram->host) {
		ret = errmsg_set(err, -ENOMEM,
				 "this host refuses to map %s of guest RAM: %s; use a smaller -m",
				 text, strerror(errno));
		goto fail;
	}
	/* Guest RAM is of no use in a core file, and would fill the disk. */
	madvise(ram->host, size, MADV_DONTDUMP);

	/* mmap, so that the bitmap of a huge guest costs nothing until it is touched. */
	words = ALIGN_UP(ram->npages, 64ULL) / 64;
	ram->own_dirty = mmap(NULL, words * 8, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (ram->own_dirty == MAP_FAILED) {
		ram->own_dirty = NULL;
		ret = errmsg_set(err, -ENOMEM, "no memory for the dirty bitmap of %s of guest RAM",
				 text);
		goto fail;
	}

	ram->region[0] = (struct ram_region){.size = MIN(size, RAM_LOW_MAX), .host = ram->host};
	ram->nregions = 1;
	if (size > RAM_LOW_MAX) {
		ram->region[1] = (struct ram_region){
			.gpa = RAM_HIGH_BASE,
			.size = size - RAM_LOW_MAX,
			.offset = RAM_LOW_MAX,
			.host = ram->host + RAM_LOW_MAX,
		};
		ram->nregions = 2;
	}
	return 0;
fail:
	ram_destroy(ram);
	return ret;
}

void ram_destroy(struct ram *ram)
{
	if (ram->own_dirty)
		munmap((void *)ram->own_dirty, ALIGN_UP(ram->npages, 64ULL) / 8);
	if (ram->host)
		munmap(ram->host, ram->size);
	if (ram->fd >= 0)
		close(ram->fd);
	memset(ram, 0, sizeof(*ram));
	ram->fd = -1;
}

void ram_move(struct ram *to, struct ram *from)
{
	*to = *from;
	memset(from, 0, sizeof(*from));
	from->fd = -1;
}

uint64_t ram_end_gpa(uint64_t size)
{
	return size > RAM_LOW_MAX ? RAM_HIGH_BASE + (size - RAM_LOW_MAX) : size;
}

/* The region and host address of a whole range, or NULL. */
static uint8_t *lookup(const struct ram *ram, uint64_t gpa, uint64_t len, uint64_t *offset)
{
	for (unsigned i = 0; i < ram->nregions; i++) {
		const struct ram_region *r = &ram->region[i];

		if (gpa < r->gpa || gpa - r->gpa > r->size || len > r->size - (gpa - r->gpa))
			continue;
		*offset = r->offset + (gpa - r->gpa);
		return r->host + (gpa - r->gpa);
	}
	return NULL;
}

const void *ram_ptr(const struct ram *ram, uint64_t gpa, uint64_t len)
{
	uint64_t offset;

	return lookup(ram, gpa, len, &offset);
}

/*
 * Our own stores are dirty too. The mark comes after the store: a page that is copied between
 * the two is copied again, the other way round the store could be missed.
 */
static void mark_dirty(struct ram *ram, uint64_t offset, uint64_t len)
{
	if (len == 0)
		return;
	for (uint64_t page = offset / PAGE_SIZE; page <= (offset + len - 1) / PAGE_SIZE; page++)
		atomic_fetch_or_explicit(&ram->own_dirty[page / 64], 1ULL << (page % 64),
					 memory_order_release);
}

int ram_read(const struct ram *ram, uint64_t gpa, void *buf, uint64_t len)
{
	const void *p = ram_ptr(ram, gpa, len);

	if (!p)
		return -EFAULT;
	memcpy(buf, p, len);
	return 0;
}

int ram_write(struct ram *ram, uint64_t gpa, const void *buf, uint64_t len)
{
	uint64_t offset;
	uint8_t *p = lookup(ram, gpa, len, &offset);

	if (!p)
		return -EFAULT;
	memcpy(p, buf, len);
	mark_dirty(ram, offset, len);
	return 0;
}

int ram_zero(struct ram *ram, uint64_t gpa, uint64_t len)
{
	uint64_t offset;
	uint8_t *p = lookup(ram, gpa, len, &offset);

	if (!p)
		return -EFAULT;
	memset(p, 0, len);
	mark_dirty(ram, offset, len);
	return 0;
}

int ram_write_file(struct ram *ram, uint64_t gpa, int fd, uint64_t file_offset, uint64_t len)
{
	uint64_t offset;
	uint8_t *p = lookup(ram, gpa, len, &offset);
	int ret;

	if (!p)
		return -EFAULT;
	ret = pread_exact(fd, p, len, file_offset);
	mark_dirty(ram, offset, len);
	return ret;
}

int ram_zero_pages(struct ram *ram, uint64_t index, uint64_t n)
{
	if (index >= ram->npages || n > ram->npages - index)
		return -EFAULT;
	if (fallocate(ram->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
		      (off_t)(index * PAGE_SIZE), (off_t)(n * PAGE_SIZE)))
		return -errno;
	mark_dirty(ram, index * PAGE_SIZE, n * PAGE_SIZE);
	return 0;
}

void *ram_dma(struct ram *ram, uint64_t gpa, uint64_t len)
{
	uint64_t offset;

	return lookup(ram, gpa, len, &offset);
}

void *ram_dma_page(struct ram *ram, uint64_t index)
{
	return ram->host + index * PAGE_SIZE;
}

void ram_dma_done(struct ram *ram, const void *host, uint64_t len)
{
	mark_dirty(ram, (uint64_t)((const uint8_t *)host - ram->host), len);
}

void ram_dma_write(struct ram *ram, void *host, const void *buf, uint64_t len)
{
	memcpy(host, buf, len);
	ram_dma_done(ram, host, len);
}

uint64_t ram_used(const struct ram *ram)
{
	struct stat st;

	return fstat(ram->fd, &st) ? ram->size : MIN((uint64_t)st.st_blocks * 512, ram->size);
}

/* The first page at or after index that may hold something; index itself where nobody knows. */
static uint64_t next_data(const struct ram *ram, uint64_t index)
{
	off_t at;

	if (ram->no_holes)
		return index;
	at = lseek(ram->fd, (off_t)(index * PAGE_SIZE), SEEK_DATA);
	if (at < 0)
		return errno == ENXIO ? ram->npages : index;
	return MAX((uint64_t)at / PAGE_SIZE, index);
}

bool ram_next_populated(const struct ram *ram, uint64_t *index, uint64_t *n)
{
	off_t end;

	if (*index < ram->npages)
		*index = next_data(ram, *index);
	if (*index >= ram->npages)
		return false;
	end = ram->no_holes ? -1 : lseek(ram->fd, (off_t)(*index * PAGE_SIZE), SEEK_HOLE);
	*n = (end < 0 ? ram->npages : ALIGN_UP((uint64_t)end, PAGE_SIZE) / PAGE_SIZE) - *index;
	return true;
}

/*
 * SEEK_DATA tells how long a hole is at the price of one call; but SEEK_HOLE walks through all
 * memory that lies behind, which would make a walk over all of RAM quadratic. So pages in memory
 * are found with mincore(). It takes those in swap for absent, hence SEEK_DATA has the last word on
 * each that is not there.
 */
void ram_find_holes(const struct ram *ram, uint64_t base, uint64_t first, uint64_t end,
		    uint64_t holes[RAM_HOLES_MAX / 64])
{
	unsigned char in_core[RAM_HOLES_MAX];
	bool asked = false;

	memset(holes, 0, RAM_HOLES_MAX / 8);
	if (ram->no_holes)
		return;
	for (uint64_t at = first; at < end;) {
		uint64_t data = next_data(ram, at);

		for (; at < MIN(data, end); at++)
			holes[(at - base) / 64] |= 1ULL << ((at - base) % 64);
		if (++at >= end)
			break;
		if (!asked && mincore(ram->host + at * PAGE_SIZE, (end - at) * PAGE_SIZE,
				      in_core + (at - first)))
			break; /* not known: none is taken for a hole */
		asked = true;
		while (at < end && in_core[at - first] & 1)
			at++;
	}
}
