/* SPDX-License-Identifier: MIT */
/*
 * The driver's side of virtio-mmio (virtio 1.2, section 4.2) with split rings (2.7), without
 * interrupts: used buffers are found by polling, which works in ring 3 as well.
 */
#ifndef GODWIT_BARE_VIRTIO_DEV_H
#define GODWIT_BARE_VIRTIO_DEV_H

#include "rt/rt.h"

/* Of both machines that payloads run in: 32 of godwit, 24 of QEMU's microvm. */
#define VDEV_SLOTS 56u
#define VDEV_NET 1u
#define VDEV_BLK 2u
#define VDEV_CONSOLE 3u
#define VDEV_RNG 4u
#define VDEV_BALLOON 5u
#define VDEV_VSOCK 19u

#define VDEV_F(bit) (1ul << (bit))
#define VDEV_F_INDIRECT VDEV_F(28)
#define VDEV_F_EVENT_IDX VDEV_F(29)
#define VDEV_F_VERSION_1 VDEV_F(32)

struct vdev {
	uint32_t slot;
	uint64_t features; /* negotiated */
};

#define VRING_PARTS 4u	/* buffers of a request at most, where nothing else is said */
#define VRING_MOST 256u /* descriptors of a queue that are used: the same on all machines */

struct vbuf {
	void *addr;
	uint32_t len;
	bool in; /* the device stores into it */
};

/* Requests are known by a number, 0 .. requests - 1; each has its own descriptors. */
struct vring {
	struct vdev *dev;
	uint32_t index, size, requests;
	uint32_t parts; /* descriptors of each request */
	volatile struct vring_desc *desc, *indirect;
	volatile uint16_t *avail, *used;
	uint16_t next, seen; /* indexes: of the next request, of the next used buffer */
	uint32_t waiting;    /* requests that the device has */
	uint8_t *given;	     /* [requests] */
	uint64_t kicks;	     /* notifications that the device has asked for, and got */
};

/* What is in a slot: a device id, 0 for nothing. */
uint32_t vdev_id(uint32_t slot);

/* Resets the device of a slot and takes those of `wanted` that it offers. Panics if it refuses. */
void vdev_start(struct vdev *dev, uint32_t slot, uint64_t wanted);

/* 1, 2, 4 or 8 bytes of its configuration. */
uint64_t vdev_config(const struct vdev *dev, uint32_t offset, uint32_t size);

/* Sets a queue up for as many requests of VRING_PARTS buffers as it can take, `most` at most. */
void vring_start(struct vring *ring, struct vdev *dev, uint32_t index, uint32_t most);

/* The largest size of a queue; 0: it is not there. */
uint32_t vdev_queue_max(const struct vdev *dev, uint32_t index);

/* Where the parts of a queue are, wherever that is. false: the device does not take it. */
bool vdev_place(const struct vdev *dev, uint32_t index, uint32_t size, uint64_t desc,
		uint64_t avail, uint64_t used);
void vdev_unplace(const struct vdev *dev, uint32_t index);

void vdev_kick(const struct vdev *dev, uint32_t index);

/* Resets the device, waits for that, and leaves it alone. */
void vdev_reset(uint32_t slot);

/* The same for requests of `parts` buffers. */
void vring_start_of(struct vring *ring, struct vdev *dev, uint32_t index, uint32_t parts,
		    uint32_t most);

/* All queues are there. */
void vdev_ready(const struct vdev *dev);

/* Does the device say that it cannot go on? */
bool vdev_needs_reset(const struct vdev *dev);

/* Hands over request number `request`, which the device must not have; n buffers, out ones first.
 */
void vring_submit(struct vring *ring, uint32_t request, const struct vbuf *buf, uint32_t n);

/*
 * A request that the device has given back: true, its number, and how many bytes it says it has
 * stored. Panics when it is none that it had.
 */
bool vring_take(struct vring *ring, uint32_t *request, uint32_t *len);

#endif
