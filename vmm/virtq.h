/* SPDX-License-Identifier: MIT */
/*
 * Split virtqueue, the device's side (virtio 1.2, section 2.7), with indirect descriptors and the
 * event index.
 *
 * Theory of operation: the driver fills the available ring with heads of descriptor chains; a
 * device takes one with virtq_pop(), which checks all of it and turns it into an iovec of host
 * addresses, and gives it back with virtq_push(), in any order. Everything in guest memory may
 * change under us: each field is read once and what was read is what is checked. Whatever the
 * guest gets wrong makes virtq_pop() fail with -EPROTO; its device then stops until it is reset.
 *
 * Notifications: while a queue is being served the device wants no kicks (virtq_no_kicks()); when
 * it is empty the device asks for one again and looks a last time (virtq_want_kicks()).
 *
 * Not locked: the device's lock guards its queues.
 */
#ifndef GODWIT_VIRTQ_H
#define GODWIT_VIRTQ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "ram.h"
#include "sbuf.h"

#define VIRTQ_MAX_SIZE 1024U

struct virtq {
	uint16_t max;  /* largest size that the driver may choose; fixed */
	uint16_t size; /* a power of two, at most max */
	bool ready;
	uint64_t desc, avail, used; /* gpas of the three parts, checked by virtq_enable() */

	uint16_t next_avail; /* of the next head to take; counts on and on, as on the ring */
	uint16_t next_used;  /* of the next used entry */
	uint16_t signalled;  /* next_used when the driver was last interrupted */
	bool signalled_valid;
	bool event_idx; /* negotiated, as virtq_enable() was told */
	bool kicks;	/* were asked for */
};

/*
 * A chain that was taken. The caller sets iov and max before virtq_pop(); iov[0 .. n_out) are for
 * the device to read, iov[n_out .. n_out + n_in) to write.
 */
struct virtq_chain {
	struct iovec *iov;
	uint32_t max;
	uint16_t head;
	uint32_t n_out, n_in;
	uint64_t out_len, in_len;
};

/* Forgets everything but max. */
void virtq_reset(struct virtq *q);

/*
 * Checks size and addresses that the driver has set, and makes the queue ready. -EPROTO: not a
 * power of two, misaligned, or outside guest RAM; the queue is not ready then.
 */
int virtq_enable(struct virtq *q, const struct ram *ram, bool event_idx);

/*
 * Takes the next chain. 1 when there was one, 0 when the ring is empty or the queue not ready,
 * -EPROTO with what is wrong in *why when the driver made a mistake (a chain longer than c->max
 * among them).
 */
int virtq_pop(struct virtq *q, struct ram *ram, struct virtq_chain *c, const char **why);

/* Puts back the chain that was popped last and not pushed: the next pop gives it again. */
void virtq_unpop(struct virtq *q);

/* Are there chains to take? */
bool virtq_pending(const struct virtq *q, const struct ram *ram);

/*
 * Gives a chain back: written bytes are in its writable part, from its start. Data that the
 * device stored is visible to the driver before the entry is. Interrupting is the caller's.
 */
void virtq_push(struct virtq *q, struct ram *ram, uint16_t head, uint32_t written);

/*
 * Several at once (a packet over many buffers): virtq_put() each with its offset from 0, then
 * virtq_publish() makes n of them visible in one go.
 */
void virtq_put(struct virtq *q, struct ram *ram, uint16_t offset, uint16_t head, uint32_t written);
void virtq_publish(struct virtq *q, struct ram *ram, uint16_t n);

/* Does the driver want an interrupt for what was pushed since the last time this was asked? */
bool virtq_must_signal(struct virtq *q, const struct ram *ram);

/* Tells the driver that kicks are not needed now. */
void virtq_no_kicks(struct virtq *q, struct ram *ram);

/* Asks for a kick at the next chain; true when one has come already (then serve on). */
bool virtq_want_kicks(struct virtq *q, struct ram *ram);

/*
 * Copies out of the readable part, or into the writable part, from offset on; marks what it
 * stores. The bytes copied: less than len where the chain ends.
 */
size_t virtq_read(const struct virtq_chain *c, uint64_t offset, void *buf, size_t len);
size_t virtq_write(const struct virtq_chain *c, struct ram *ram, uint64_t offset, const void *buf,
		   size_t len);

/* Marks len bytes of the writable part, from offset on, that the kernel has stored. */
void virtq_stored(const struct virtq_chain *c, struct ram *ram, uint64_t offset, uint64_t len);

/*
 * A part of a vector: fills out[] (max entries) with the len bytes from offset on of iov[0 .. n).
 * The number of entries; 0 when they are too few or the vector is too short.
 */
uint32_t iov_slice(const struct iovec *iov, uint32_t n, uint64_t offset, uint64_t len,
		   struct iovec *out, uint32_t max);

/* State. Once loaded, virtq_check() says whether the queue can be that: -EPROTO. */
void virtq_fields(struct virtq *q, struct sbuf *s);
int virtq_check(struct virtq *q, const struct ram *ram, bool event_idx);

#endif
