/* SPDX-License-Identifier: MIT */
/* One disk of the virtio payload: what it writes, reads, flushes and checks. */
#ifndef GODWIT_BARE_VIRTIO_DISK_H
#define GODWIT_BARE_VIRTIO_DISK_H

#include "virtio_dev.h"

#define DISK_MAX_DEPTH 64u

enum disk_op {
	DISK_NONE,
	DISK_READ,
	DISK_WRITE,
	DISK_FLUSH,
	DISK_ID,
};

struct disk_request {
	enum disk_op op;
	uint64_t n; /* write: its number; flush: what it makes durable; read: the chunk */
	uint64_t chunk;
	uint64_t start;	  /* cycles */
	uint8_t *data;	  /* a chunk */
	uint64_t *header; /* in a page of the request's own, as is the status */
	uint8_t *status;
};

#define DISK_KEPT 64u

/* What a read has brought, kept to be looked at again. */
struct disk_kept {
	uint8_t *data;
	uint64_t chunk;
	uint32_t gen; /* 0: nothing yet */
};

struct disk {
	struct vdev dev;
	struct vring ring;
	uint32_t index;
	bool readonly, flushes;
	bool retry; /* what ended with an I/O error */
	uint64_t seed;
	uint64_t block, chunks; /* sectors of a chunk */
	char serial[21];
	struct disk_request requests[DISK_MAX_DEPTH];
	struct disk_kept kept[DISK_KEPT];

	/* The sequence of sector.h. */
	uint64_t next;	  /* write */
	uint64_t durable; /* all before have been told durable */
	uint64_t flushed; /* `next` when the last flush was sent */
	bool flushing;
	uint32_t *gen; /* [chunks] generation there, 0: not known */
	uint8_t *busy; /* [chunks] a request is under way */
	uint64_t random, turn;

	uint64_t interval, due; /* cycles: between two writes; 0: flat out */
	uint64_t flush_every;	/* writes; 0: never */
	uint64_t reads, flushes_done, refused, errors;
	uint64_t slowest; /* cycles a request took */
};

/* Printed error lines, over all disks. */
extern uint64_t disk_errors_printed;

/* Called again and again by whatever waits here. */
extern void (*disk_wait_hook)(void);

/* Takes the block device in a slot into service; options are the command line's. */
void disk_start(struct disk *d, uint32_t index, uint32_t slot);

/* Takes what has come, sends what is due. */
void disk_step(struct disk *d, uint64_t now);

/* Sends no more, waits for what is under way, flushes, and reads all of it back. */
void disk_verify(struct disk *d);

#endif
