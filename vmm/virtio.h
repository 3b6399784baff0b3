/* SPDX-License-Identifier: MIT */
/*
 * What every virtio device is (virtio 1.2, chapters 2 and 3), apart from the transport that shows
 * it to the guest.
 *
 *	struct virtio_blk { struct virtio v; ... }	the device model: queues, requests
 *	struct virtio_mmio				the transport: registers, kicks, interrupts
 *
 * The two meet in struct virtio only. A device model has the ordinary struct device_ops, most of
 * whose members are the virtio_*() functions below, and a struct virtio_ops for what only it knows.
 *
 * Threads: kicks are served on the loop's thread, registers are read and written on vCPU threads;
 * v->lock guards everything in struct virtio and in the structure around it. Each function of
 * struct virtio_ops is called with it held.
 *
 * Requests: a device that lets buffers of the guest out of its hands (to the kernel, for a disk
 * read, say) counts them: virtio_begin() when it starts, virtio_end() when the last byte has been
 * stored and the chain was pushed. A reset and a quiesce wait until the count is 0, so there is
 * never a store into memory that the guest has taken back, and none after the last harvest of a
 * migration.
 *
 * Life, as the guest drives it: RESET -> ACKNOWLEDGE -> DRIVER -> FEATURES_OK (features are
 * negotiated) -> queues are set up -> DRIVER_OK (activate() and, from then on, serve()). A
 * guest's mistake sets NEEDS_RESET and nothing is served until the driver resets the device.
 *
 * To write a device model: embed struct virtio first; in init() call virtio_init(), and
 * virtio_destroy() last in destroy(); the rest as this file says.
 */
#ifndef GODWIT_VIRTIO_H
#define GODWIT_VIRTIO_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "device.h"
#include "loop.h"
#include "virtq.h"
#include "vm.h"

#define VIRTIO_MAX_QUEUES 18U
#define VIRTIO_CONFIG_MAX 64U /* bytes of device configuration at most */

/* Feature bits of the ring and the transport (virtio 1.2, section 6). */
#define VIRTIO_F(bit) (1ULL << (bit))
#define VIRTIO_RING_INDIRECT VIRTIO_F(28)
#define VIRTIO_RING_EVENT_IDX VIRTIO_F(29)
#define VIRTIO_VERSION_1 VIRTIO_F(32)

/* Device types (virtio 1.2, chapter 5). */
#define VIRTIO_TYPE_NET 1U
#define VIRTIO_TYPE_BLK 2U
#define VIRTIO_TYPE_CONSOLE 3U
#define VIRTIO_TYPE_RNG 4U
#define VIRTIO_TYPE_BALLOON 5U
#define VIRTIO_TYPE_VSOCK 19U

/* Device status (virtio 1.2, section 2.1). */
#define VIRTIO_ACKNOWLEDGE 1U
#define VIRTIO_DRIVER 2U
#define VIRTIO_DRIVER_OK 4U
#define VIRTIO_FEATURES_OK 8U
#define VIRTIO_NEEDS_RESET 64U
#define VIRTIO_FAILED 128U

struct virtio;

/* All with v->lock held. */
struct virtio_ops {
	uint32_t type;	  /* VIRTIO_TYPE_* */
	const char *name; /* as in messages: "disk", "net" */

	/* DRIVER_OK: features are negotiated (v->features), queues ready. May be NULL. */
	void (*activate)(struct virtio *v);

	/*
	 * Serves a queue that was kicked, or may have been (after DRIVER_OK and after a resume
	 * every ready queue is served once). Loop's thread. Only while virtio_live(v).
	 */
	void (*serve)(struct virtio *v, unsigned queue);

	/* Forgets what the driver made of the device; requests have ended. May be NULL. */
	void (*reset)(struct virtio *v);

	/*
	 * Device configuration: v->config[] is what the guest reads. A driver may write only the
	 * bytes [writable, writable + writable_len) of it, and each such write is told here once it
	 * is done (may be NULL).
	 */
	unsigned writable, writable_len;
	void (*config_written)(struct virtio *v);
};

/* The transport's side. All with v->lock held, any thread. */
struct virtio_transport {
	/* Interrupts for used buffers (of any queue), or for a changed configuration. */
	void (*signal_queue)(void *transport, unsigned queue);
	void (*signal_config)(void *transport);
};

struct virtio_queue {
	struct virtq q;
	struct virtio *v;
	unsigned index;
	int kick_fd;	     /* eventfd; the transport has the guest's kicks written to it */
	struct loop_op kick; /* reads it */
	uint64_t kick_count;
	struct loop_look look; /* at the ring, instead of being kicked */
};

struct virtio {
	struct device dev;
	const struct virtio_ops *ops;
	pthread_mutex_t lock;
	pthread_cond_t idle; /* inflight came to 0 */
	const struct virtio_transport *transport;
	void *transport_arg;

	uint64_t offered;  /* features that the guest is offered; fixed once the guest runs */
	uint64_t features; /* that its driver took */
	uint8_t status;
	uint32_t generation; /* of the configuration */
	uint8_t config[VIRTIO_CONFIG_MAX];
	uint32_t config_len;

	unsigned n_queues;
	struct virtio_queue queue[VIRTIO_MAX_QUEUES];

	unsigned inflight;
	struct log_limit mistakes; /* a driver can reset the device and make the next at once */
	bool stopped;		   /* quiesced, or built and not yet resumed or run */
	/*
	 * Is to be. Set without the lock, which who waits for it may not get for long while the
	 * loop's thread serves one turn after the other. No turn begins or goes on then.
	 */
	atomic_bool stopping;
	bool resetting;		     /* waits for inflight */
	bool came;		     /* was loaded and has not run here yet; see virtio_resume() */
	struct loop_task serve_task; /* serves every queue once */
};

/*
 * Prepares v, whose device is ops->... of d: queues of the given largest sizes (powers of two),
 * features besides those of the ring and VERSION_1, which are added. It can be kicked from then
 * on. -errno with nothing left behind.
 */
int virtio_init(struct virtio *v, const struct virtio_ops *ops, uint64_t features,
		const uint16_t *queue_max, unsigned n_queues);

/* Loop's thread; requests have ended (wait with virtio_wait_idle() before it, if need be). */
void virtio_destroy(struct virtio *v);

/* Members of struct device_ops; d is the start of a struct virtio. */
void virtio_reset(struct device *d);
int virtio_quiesce(struct device *d, uint64_t deadline_ns);
void virtio_resume(struct device *d);
void virtio_fields(struct device *d, struct sbuf *s); /* a device appends its own after it */
int virtio_loaded(struct device *d);
void virtio_shape(struct device *d, struct sbuf *s, struct errmsg *err);

/* Is the driver up and the device allowed to touch queues? */
static inline bool virtio_live(const struct virtio *v)
{
	return (v->status & VIRTIO_DRIVER_OK) && !(v->status & VIRTIO_NEEDS_RESET) && !v->stopped &&
	       !v->resetting;
}

static inline bool virtio_has(const struct virtio *v, uint64_t feature)
{
	return v->features & feature;
}

/* ---- for device models, with v->lock held ---- */

/* One more, or one less, request whose buffers somebody else may be storing into. */
void virtio_begin(struct virtio *v);
void virtio_end(struct virtio *v);

/*
 * Takes a chain of a queue: 1, or 0 when there is none or the device is not live. A driver's
 * mistake ends in virtio_fail() and 0.
 */
int virtio_pop(struct virtio *v, unsigned queue, struct virtq_chain *c);

/*
 * The driver kicks for its next chain from now on. True when there are some all the same, which
 * came before it knew; then it does not.
 */
bool virtio_want_kicks(struct virtio *v, unsigned queue);

/*
 * virtio_pop(), and a queue that is found empty is looked at by the loop until that sleeps; then
 * its driver is asked to kick for its next chain. Loop's thread.
 */
int virtio_take(struct virtio *v, unsigned queue, struct virtq_chain *c);

/*
 * A turn of a queue on the loop's thread. serve() begins one and takes chains with virtio_next()
 * until that returns 0: no chain is left, the device is not live any more, or `left`, from which
 * serve() takes what each chain cost it, is used up. Then others have their turn, and the queue is
 * served again after them. Kicks are not asked for meanwhile.
 */
struct virtio_turn {
	struct virtio *v;
	unsigned queue;
	int64_t left;
};

struct virtio_turn virtio_begin_turn(struct virtio *v, unsigned queue, int64_t left);
int virtio_next(struct virtio_turn *t, struct virtq_chain *c);

/*
 * The driver is about to get what it probably waits for, and to go on with more in this queue: the
 * loop looks at it for a while, and no kick is asked for meanwhile. Loop's thread.
 */
void virtio_expect(struct virtio *v, unsigned queue);

/* virtq_push() as above, and the interrupt if the driver wants one. Loop's thread. */
void virtio_push(struct virtio *v, unsigned queue, uint16_t head, uint32_t written);

/* The interrupt alone, after virtq_push() of several. */
void virtio_signal(struct virtio *v, unsigned queue);

/*
 * Stores new bytes into the configuration and tells the driver, if it is up, that it changed.
 * Nothing happens when they are what is there.
 */
void virtio_set_config(struct virtio *v, unsigned offset, const void *bytes, unsigned len);

/* The driver made a mistake: logged once, NEEDS_RESET, nothing more is served until a reset. */
void virtio_fail(struct virtio *v, const char *fmt, ...) PRINTF(2, 3);

/* Serves every ready queue on the loop's thread, soon. Any thread, lock held or not. */
void virtio_serve_all(struct virtio *v);

/* ---- for transports, v->lock not held ---- */

void virtio_attach(struct virtio *v, const struct virtio_transport *t, void *arg);

/* The driver writes the status register. Writing 0 returns when the device is reset. */
void virtio_set_status(struct virtio *v, uint8_t status);

/* The driver takes features, 32 at a time; ignored once FEATURES_OK is set. */
void virtio_set_features(struct virtio *v, unsigned word, uint32_t bits);

/* The driver makes a queue ready, or not. Its size and addresses are in v->queue[].q by then. */
void virtio_set_ready(struct virtio *v, unsigned queue, bool ready);

/* Device configuration: reads beyond it give 0, writes beyond it are dropped. */
uint64_t virtio_config_read(struct virtio *v, uint64_t offset, unsigned size);
void virtio_config_write(struct virtio *v, uint64_t offset, unsigned size, uint64_t value);

#endif
