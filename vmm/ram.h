/* SPDX-License-Identifier: MIT */
/*
 * Guest RAM: one file in memory, mapped once, seen by the guest as at most two regions.
 *
 *	gpa 0 ......... low_size        (at most 3 GiB; the hole below 4 GiB is for devices)
 *	gpa 4 GiB ..... 4 GiB + rest
 *
 * Offset in the file is contiguous over both regions, and so is the page index (offset / 4096)
 * that dirty tracking, hashes and the wire use: page i of a guest is the same page on every host
 * that agrees on the size.
 *
 * Reading: ram_ptr() gives a checked const pointer. Writing: only the functions of this file store
 * into guest RAM. KVM's dirty log knows the guest's own writes and nothing of ours, so each store
 * here also marks own_dirty, which dirty tracking merges into every round.
 */
#ifndef GODWIT_RAM_H
#define GODWIT_RAM_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "log.h"
#include "util.h"

#define RAM_MIN (16 * MIB)
#define RAM_LOW_MAX (3 * GIB)
#define RAM_HIGH_BASE (4 * GIB)

struct ram_region {
	uint64_t gpa;
	uint64_t size;
	uint64_t offset; /* in the file */
	uint8_t *host;
};

struct ram {
	int fd;
	bool huge;     /* in huge pages, as far as the host has them; see ram_file.h */
	bool no_holes; /* it cannot be told which pages hold nothing: all may */
	uint64_t size;
	uint64_t npages;
	uint8_t *host; /* all of it, size bytes */
	unsigned nregions;
	struct ram_region region[2];
	_Atomic uint64_t *own_dirty; /* a bit a page: stored by us since it was last taken */
};

/*
 * Allocates and maps size bytes (a multiple of the page size, at least RAM_MIN). Memory is not
 * reserved: a guest may be larger than the host's free memory. huge: in huge pages if that can be;
 * memory that is given back page by page may then be taken again. -EINVAL, -ENOMEM, -errno with the
 * cause in err.
 */
int ram_init(struct ram *ram, uint64_t size, bool huge, struct errmsg *err);
void ram_destroy(struct ram *ram);

/* Gives all of it to another owner, whose own there must be none of. from is as destroyed. */
void ram_move(struct ram *to, struct ram *from);

/* Highest guest-physical address in use, plus one. */
uint64_t ram_end_gpa(uint64_t size);

/* Host address of [gpa, gpa + len) for reading, or NULL unless all of it lies in one region. */
const void *ram_ptr(const struct ram *ram, uint64_t gpa, uint64_t len);

/* Host address of a page by its index; index < npages. For reading. */
static inline const uint8_t *ram_page(const struct ram *ram, uint64_t index)
{
	return ram->host + index * PAGE_SIZE;
}

/* Copies out of or into guest RAM. 0, or -EFAULT and nothing done when out of range. */
int ram_read(const struct ram *ram, uint64_t gpa, void *buf, uint64_t len);
int ram_write(struct ram *ram, uint64_t gpa, const void *buf, uint64_t len);

/* Stores zeros. As ram_write(). */
int ram_zero(struct ram *ram, uint64_t gpa, uint64_t len);

/* Reads len bytes from a file at offset straight into guest RAM. -EFAULT, -ENODATA, -errno. */
int ram_write_file(struct ram *ram, uint64_t gpa, int fd, uint64_t offset, uint64_t len);

/* Makes n pages from index on read as zeros and gives their memory back. 0 or -errno. */
int ram_zero_pages(struct ram *ram, uint64_t index, uint64_t n);

/*
 * Buffers of the guest that are stored into by address, because a vector names them or because
 * the kernel does it (a disk read that is under way). ram_dma() is ram_ptr() for them. Who stores
 * through it calls ram_dma_done() for what may have been stored, after the last byte and before
 * the guest is told; ram_dma_write() does both, for bytes that we have.
 */
void *ram_dma(struct ram *ram, uint64_t gpa, uint64_t len);
void *ram_dma_page(struct ram *ram, uint64_t index); /* the whole page; index < npages */
void ram_dma_done(struct ram *ram, const void *host, uint64_t len);
void ram_dma_write(struct ram *ram, void *host, const void *buf, uint64_t len);

/*
 * Next run of pages at or after *index that may hold something (a hole in the file reads as
 * zeros and has never been touched): sets *index and *n. false when there is none.
 */
bool ram_next_populated(const struct ram *ram, uint64_t *index, uint64_t *n);

/*
 * Sets a bit (bit 0 for page `base`) for each page of [first, end) that nobody has touched, or that
 * was given back: it reads as zeros, and reading it would allocate it. True of a moment only. At
 * most RAM_HOLES_MAX pages from base on.
 */
#define RAM_HOLES_MAX 512U
void ram_find_holes(const struct ram *ram, uint64_t base, uint64_t first, uint64_t end,
		    uint64_t holes[RAM_HOLES_MAX / 64]);

/* Bytes of RAM that hold something, that is: that the host has memory for now. */
uint64_t ram_used(const struct ram *ram);

/* Takes and clears 64 bits of own_dirty, pages word * 64 on. */
static inline uint64_t ram_take_own_dirty(struct ram *ram, uint64_t word)
{
	/* Most hold nothing, and to look is much cheaper than to take. */
	if (!atomic_load_explicit(&ram->own_dirty[word], memory_order_relaxed))
		return 0;
	return atomic_exchange_explicit(&ram->own_dirty[word], 0, memory_order_acq_rel);
}

#endif
