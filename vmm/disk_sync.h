/* SPDX-License-Identifier: MIT */
/*
 * Making a disk durable: the guest's flushes, and syncs for a hand-over, share one operation at a
 * time.
 *
 * Theory of operation: those that come while a sync is under way wait, and the next one does them
 * together. Each covers what was written before it started: `writes` counts completed changes,
 * `synced` is what it was at the start of the last sync that succeeded. The kernel tells a failed
 * write-back only once, so a failure fails every flush that may have relied on the data; when
 * there was none to tell, it is kept for the next flush, and until then the disk does not count
 * as durable.
 *
 * The owner's lock guards all of it; ended() is called with it held, on the loop's thread.
 */
#ifndef GODWIT_DISK_SYNC_H
#define GODWIT_DISK_SYNC_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "disk_io.h"

struct disk_flush {
	struct disk_flush *next;
	void (*ended)(struct disk_flush *f, int err); /* 0 or -errno */
};

struct disk_sync {
	struct disk_io *disk;
	pthread_mutex_t *lock;
	bool needless; /* nothing is ever written, or durability was not asked for */
	void (*failed)(struct disk_sync *s, int err); /* told of each failure; lock held */

	uint64_t writes, synced, covers; /* covers: of the one under way */
	bool running, again;
	bool lost;		   /* one failed that no flush was told of */
	struct disk_flush *served; /* by the one under way */
	struct disk_flush *behind; /* by the next */
	int err;		   /* of the last one */
	struct disk_op op;
	struct loop_task task;
	pthread_cond_t ended;
};

/* What it is given stays the owner's. */
void disk_sync_init(struct disk_sync *s, struct disk_io *disk, pthread_mutex_t *lock, bool needless,
		    void (*failed)(struct disk_sync *s, int err));

/* Loop's thread, lock not held. Flushes that wait are forgotten. */
void disk_sync_destroy(struct disk_sync *s);

/* Something was changed, or may have been, that is not durable yet. Lock held. */
void disk_sync_wrote(struct disk_sync *s);

/*
 * Makes all durable that was written before. 0: it is; -EINPROGRESS: f->ended() will tell; -EIO:
 * an earlier sync failed. Lock held, loop's thread.
 */
int disk_sync_flush(struct disk_sync *s, struct disk_flush *f);

/* Begins a sync in the background unless there is nothing to do. Any thread. */
void disk_sync_begin(struct disk_sync *s);

/*
 * Waits until all that was written is durable, at most until deadline (now_ns() time). Lock held;
 * not on the loop's thread. -ETIMEDOUT, or what a sync failed with.
 */
int disk_sync_wait(struct disk_sync *s, uint64_t deadline_ns);

#endif
