/* SPDX-License-Identifier: MIT */
/*
 * virtio block device (virtio 1.2, section 5.2) on a raw image or a block device of the host.
 *
 * Offered: up to 8 queues, flush, discard and write-zeroes; sectors of 512 bytes on blocks of
 * 4096, whatever the host's disk has, so that a guest may move between hosts whose disks differ.
 *
 * When the guest is told that a write is done, it is
 *	writeback, none		in the host's page cache, or in that of the host's disk; durable
 *				once a flush behind it is done. A driver that does not know
 *				flushes gets writethrough.
 *	writethrough		durable; the guest is offered no flush
 *	unsafe			somewhere; flushes do nothing. A crash of the host costs the file
 *				system, and so may a move to another host: for throw-away guests.
 *
 * Moving: a device that has come to rest has made all that the guest wrote durable (but unsafe),
 * so that a host that shares the storage reads it. The image is locked only by acquire(), and
 * nothing is read or written while it is not.
 */
#ifndef GODWIT_VIRTIO_BLK_H
#define GODWIT_VIRTIO_BLK_H

#include "device.h"

extern const struct device_ops virtio_blk_ops; /* config: const struct vm_disk *, not kept */

#endif
