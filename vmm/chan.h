/* SPDX-License-Identifier: MIT */
/*
 * A byte channel between a character device and the host's side of it.
 *
 * Theory of operation: two bounded rings under one lock. The device puts what the guest sends into
 * `out`, the console takes it; the console puts what the user types into `in`, the device takes
 * it. Neither side ever waits: a full `out` means that the device shows itself busy to the guest
 * until there is room, so nothing is lost when the reader is slow. Each side has a callback
 * that the other one calls when it made progress:
 *
 *	device_kick	after any bytes went into `in` or out of `out`
 *	host_kick	when `out` stops being empty, when `in` has drained to one half, at a thaw
 *
 * The host's side is told of changes rather than of bytes because it goes on by itself while there
 * is something to do, and each telling costs a wake-up. Callbacks run without the channel's lock
 * held, on the thread of whoever caused them; that thread may hold the lock of its own side. So
 * host_kick, which a device may cause with its lock held, must not call the channel back: it hands
 * the work to another thread.
 *
 * On a migration the device carries what is still in both rings: bytes not yet written here are
 * written at the destination. chan_freeze() makes that exact: when it returns no byte is on its
 * way out or in any more, and none moves on the host's side until chan_thaw().
 */
#ifndef GODWIT_CHAN_H
#define GODWIT_CHAN_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "sbuf.h"

#define CHAN_OUT_SIZE 65536U
#define CHAN_IN_SIZE 4096U

struct chan_ring {
	uint8_t *data;
	uint32_t size;
	uint32_t head; /* next byte to take */
	uint32_t len;
};

struct chan {
	pthread_mutex_t lock;
	struct chan_ring out; /* guest to host */
	struct chan_ring in;  /* host to guest */
	bool frozen;
	/* Told when bytes for it or room for it came. */
	void (*device_kick)(void *arg);
	void *device_arg;
	void (*host_kick)(void *arg);
	void *host_arg;
};

/* Both rings empty, nobody to tell. 0 or -ENOMEM. */
int chan_init(struct chan *c);
void chan_destroy(struct chan *c);

/*
 * Who is told of progress; NULL for nobody. A kick that has already begun on another thread may
 * still run when this returns: take a side away only when the other one is at rest.
 */
void chan_set_device(struct chan *c, void (*kick)(void *arg), void *arg);
void chan_set_host(struct chan *c, void (*kick)(void *arg), void *arg);

/* Device's side: bytes taken or given, 0 when full or empty. */
size_t chan_send(struct chan *c, const void *buf, size_t len);
size_t chan_recv(struct chan *c, void *buf, size_t len);
size_t chan_send_room(struct chan *c);
size_t chan_recv_avail(struct chan *c);

/*
 * Host's side. chan_host_write() passes waiting output to write(arg, buf, len), which gives how
 * many bytes it took (0: none now) or -errno, with the lock held, so that freeze is exact;
 * write must not block. One call passes one contiguous piece, not all there may be. Returns what
 * write returned, 0 when there was nothing or it is frozen.
 */
ssize_t chan_host_write(struct chan *c, ssize_t (*write)(void *arg, const void *buf, size_t len),
			void *arg);

/*
 * The same for input: read(arg, buf, len) fills at most len bytes, which are taken off their
 * source and given to the guest in one step. Returns what read returned; 0 also when there is no
 * room or it is frozen, and read was not called then.
 */
ssize_t chan_host_read(struct chan *c, ssize_t (*read)(void *arg, void *buf, size_t len),
		       void *arg);

/* Gives input that the host has in hand: bytes taken, fewer when full, none when frozen. */
size_t chan_host_put(struct chan *c, const void *buf, size_t len);

/* Bytes that could be written or put now: both are 0 while frozen. */
size_t chan_host_pending(struct chan *c);
size_t chan_host_room(struct chan *c);

void chan_freeze(struct chan *c);
void chan_thaw(struct chan *c);

/*
 * Both rings' contents, for the device's field list. Loading replaces them, and leaves the channel
 * frozen: what came is written only once the machine runs here. Who only looks needs no c.
 */
void chan_fields(struct chan *c, struct sbuf *s);

#endif
