/* SPDX-License-Identifier: MIT */
/*
 * Images for guests that run the virtio payload, and what must be in them afterwards. See
 * ../bare/sector.h for what the payload writes.
 */
#ifndef GODWIT_TESTS_DISKS_H
#define GODWIT_TESTS_DISKS_H

#include "../bare/contract.h"
#include "harness.h"

/* Lines of the payload that end a test; for proc_fatal(). */
#define DISK_FATAL BARE_VIRTIO_ERROR "| panic "

/* A disk as its guest has described it. */
struct disk {
	const char *path;
	uint64_t index, block, chunks, seed;
};

/* An empty image in the scratch folder. Its path. */
const char *disk_new(const char *name, uint64_t size);

/* Takes the guest's lines up to `ready`; the first n must be of disks with these images. */
void disks_ready(struct proc *p, struct disk *disks, unsigned n);

/* The most that the guest in p has been told is durable: writes before this number. */
uint64_t disk_told(const struct proc *p, const struct disk *d);

/*
 * Looks at the image: all writes before number n have been done. If exact, none since; otherwise
 * later ones may be there. A chunk that was never written is not looked at.
 */
void disk_check(const struct disk *d, uint64_t n, bool exact);

/* `q`: the guest must find all as it should be, and end; and so must the images. */
void disks_quit(struct proc *p, const struct disk *disks, unsigned n);

/* `godwit run` on this disk (as for --disk) must be refused since it is in use. */
void disk_in_use(const char *disk);

/* A fresh guest can be started on the image, which it writes anew, and ends. */
void disk_is_free(const struct disk *d);

/* Two more lines about durable writes, or a second's worth of work. */
void disk_works(struct proc *p);

#endif
