/* SPDX-License-Identifier: MIT */
/*
 * Operations on a disk image, asynchronous, by io_uring on the loop.
 *
 * Theory of operation: a struct disk_op is one read, write, sync, discard or zeroing of any length;
 * here it becomes as many io_uring operations as it takes, one after the other:
 *
 *	- at most DISK_PIECE_MAX bytes at a time, so that one huge request does not keep the loop;
 *	- what the kernel did in part is gone on with;
 *	- direct I/O with buffers or offsets that it does not take goes through a bounce buffer; a
 *	  write of part of a unit reads the unit first, and while it does no other write is under
 *	  way, so that neither loses the other's bytes;
 *	- zeroing uses the best that the image's file system has, in the end a write of zeros;
 *	- what must be durable on completion is (RWF_DSYNC, or a sync behind it).
 *
 * All of it on the loop's thread.
 */
#ifndef GODWIT_DISK_IO_H
#define GODWIT_DISK_IO_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "disk_image.h"
#include "loop.h"

#define DISK_IOV_MAX 128U
#define DISK_PIECE_MAX (2U << 20)
#define DISK_BOUNCE_MAX (128U << 10)

enum disk_verb {
	DISK_READ,
	DISK_WRITE,
	DISK_SYNC,    /* what was written before it started becomes durable */
	DISK_DISCARD, /* the range's content is of no interest any more */
	DISK_ZERO,
};

struct disk_io {
	struct loop *loop;
	const struct disk_image *image;
	bool no_punch, no_zero_range; /* learnt: not supported there */

	/* Writes under way, or one alone; those that wait for their turn. */
	unsigned writers;
	bool exclusive;
	struct disk_op *waiting, **waiting_tail;
};

struct disk_op {
	/* Set by whoever starts it. Offsets and lengths in bytes, inside the image. */
	enum disk_verb verb;
	uint64_t offset, len;	 /* len > 0, but for DISK_SYNC; reads, writes: whole sectors */
	const struct iovec *iov; /* reads, writes: the data are iov[0 .. n_iov) from iov_at on */
	uint32_t n_iov;		 /* at most DISK_IOV_MAX */
	uint64_t iov_at;
	bool durable; /* writes, discards, zeroing: durable on completion */
	bool unmap;   /* DISK_ZERO: the space may be given back to the host */

	/*
	 * Ended: 0 or -errno (-ENODATA: the image ends before it). op->done bytes of a read are
	 * there, from the start; of one that failed more may have been stored.
	 */
	void (*ended)(struct disk_op *op, int err);

	/* Stores bytes of a read, at an offset into its data, that were bounced. */
	void (*store)(struct disk_op *op, uint64_t at, const void *buf, size_t len);

	/* disk_io's own. */
	struct loop_op io;
	struct disk_io *disk;
	struct disk_op *next; /* waiting */
	uint64_t done;	      /* bytes */
	int step;
	bool bounced, alone;
	uint32_t piece, head; /* bytes of the present piece; where it starts in the bounce buffer */
	uint32_t window;      /* bytes of the bounce buffer in use */
	uint8_t *bounce;
	struct iovec part[DISK_IOV_MAX];
};

/* image and loop stay the caller's. The image may be acquired anew while no op is under way. */
void disk_io_init(struct disk_io *disk, struct loop *loop, const struct disk_image *image);

/*
 * Starts op, which must not be under way. ended() is called later, never from here. -ENOMEM, and
 * -EOPNOTSUPP for a discard that is known to be impossible: it has not started.
 */
int disk_io_start(struct disk_io *disk, struct disk_op *op);

/*
 * Cancels op if it is under way and returns when the kernel has let go of its memory; ended() is
 * not called. For destroying: call it for every op, and start none after the first.
 */
void disk_io_abandon(struct disk_io *disk, struct disk_op *op);

#endif
