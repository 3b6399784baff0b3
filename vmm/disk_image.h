/* SPDX-License-Identifier: MIT */
/*
 * A disk's image on the host: a raw file (sparse or not) or a block device, opened, measured and
 * locked. No I/O to it is done here; that is disk_io.h's.
 *
 * Two guests must never write one image. The lock is an open file description lock on all of the
 * file, for writing or (read-only disks) for reading: it works over NFS and between two opens of
 * one process, it ends with the process, and it stands in the way of QEMU's image locks too. It is
 * taken by disk_image_acquire() and not when the image is opened, so that the destination of a
 * migration on the same host, or on another that shares the storage, can get ready while the
 * source still runs.
 */
#ifndef GODWIT_DISK_IMAGE_H
#define GODWIT_DISK_IMAGE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#include "log.h"
#include "vm_devices.h"

#define DISK_SECTOR 512U
#define DISK_ALIGN_MAX 65536U /* largest unit of direct I/O that is served */

struct disk_image {
	char path[VM_PATH_MAX];
	enum vm_cache cache;
	bool readonly;
	bool block; /* a block device, not a file */
	int fd;	    /* -1: not open */
	bool locked;
	bool ran;      /* was locked at some time: the guest knows this very file */
	uint64_t size; /* bytes, in whole sectors */
	uint32_t tail; /* bytes behind the last whole sector, which the guest does not see */

	/* Direct I/O: powers of two that offsets and lengths, or buffers, must be multiples of. */
	uint32_t io_align, mem_align; /* 1: any */
	bool io_blocks;		/* I/O must be begun by a worker: the caller might be blocked */
	uint32_t discard_align; /* of what can be given back to the host; 1: any */

	bool given_up;		 /* after it ran: `written` tells whether somebody wrote since */
	struct timespec written; /* of a file, when it was last written */

	dev_t dev; /* what was opened, to tell it from another file of that name */
	ino_t ino;
};

/*
 * Would this disk open? For the command line and for a receiver, before a machine is built with
 * it: -errno with the path, the cause and the remedy in err. Nothing stays open or locked.
 */
int disk_image_check(const struct vm_disk *disk, struct errmsg *err);

/*
 * Opens the image without locking it. -errno with the cause in err: not there, no permission,
 * -EINVAL neither file nor block device or smaller than a sector, -EOPNOTSUPP no direct I/O there.
 */
int disk_image_open(struct disk_image *img, const struct vm_disk *disk, struct errmsg *err);

/*
 * Takes the image for this guest: opens it anew (which is what makes NFS look at the server again),
 * locks it, and checks that it is what disk_image_open() saw. -EBUSY: another guest or process has
 * it; -ESTALE: another file, or of another size, now; other -errno. No I/O may be under way.
 */
int disk_image_acquire(struct disk_image *img, struct errmsg *err);

/*
 * Gives the image up for another guest. It stays open, so that acquiring again finds the same file
 * even where its name has gone. Everything written must be durable; no I/O may be under way.
 */
void disk_image_release(struct disk_image *img);

void disk_image_close(struct disk_image *img);

#endif
