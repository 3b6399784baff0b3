/* SPDX-License-Identifier: MIT */
/*
 * The queues of the device: packets between them and vsock_mux.c, which knows the connections.
 *
 * After a move the guest is sent TRANSPORT_RESET. Its driver handles that event and its receive
 * queue in whatever order it likes, and the event ends every connection that exists by then, so
 * one that is made a moment later must not become known to it before. Hence nothing else is said
 * (mux.closed) until the driver has put a new buffer into the event queue, which it does once it
 * has handled the event. A driver that has not done so after HOLD_NS is not waited for any longer;
 * nor is one that has given no buffer for the event, which gets it when it does.
 */
#include "virtio_vsock.h"

#include <errno.h>
#include <string.h>

#include "virtio.h"
#include "vm_devices.h"
#include "vsock_mux.h"

#define QUEUE_RX 0U
#define QUEUE_TX 1U
#define QUEUE_EVENT 2U
#define N_QUEUES 3U
#define EVENT_QUEUE_SIZE 64U

#define VSOCK_F_STREAM VIRTIO_F(0)
#define EVENT_TRANSPORT_RESET 0U

/* Packets of each direction in one go on the loop's thread. */
#define TURN 256

#define HOLD_LOOK_NS (5 * NS_PER_MS)
#define HOLD_NS (2 * NS_PER_SEC)

struct virtio_vsock {
	struct virtio v;
	struct vsock_mux mux;
	struct iovec iov[VSOCK_QUEUE];

	bool reset_owed;    /* the guest is still to be sent TRANSPORT_RESET */
	uint16_t event_idx; /* how many event buffers the driver had given when it was sent */
	unsigned holds;	    /* looks at that that are left */
	struct loop_op hold_op;
};

static struct virtio_vsock *to_vsock(struct virtio *v)
{
	return container_of(v, struct virtio_vsock, v);
}

static struct virtio_vsock *of_device(struct device *d)
{
	return container_of(d, struct virtio_vsock, v.dev);
}

/* ---- packets ---- */

static struct virtq_chain new_chain(struct virtio_vsock *s)
{
	return (struct virtq_chain){.iov = s->iov, .max = ARRAY_SIZE(s->iov)};
}

/* From the guest. */
static void serve_tx(struct virtio_vsock *s)
{
	struct virtio *v = &s->v;
	struct virtio_turn turn = virtio_begin_turn(v, QUEUE_TX, TURN);
	struct virtq_chain c = new_chain(s);

	/* While the guest takes none of our answers we take none of its packets (5.10.6.1.2). */
	while (!vsock_mux_full(&s->mux) && virtio_next(&turn, &c)) {
		struct vsock_hdr hdr;

		if (virtq_read(&c, 0, &hdr, sizeof(hdr)) < sizeof(hdr)) {
			virtio_fail(v, "a packet without a whole header");
			break;
		}
		vsock_mux_packet(&s->mux, &hdr, &c);
		virtq_push(&v->queue[QUEUE_TX].q, &v->dev.vm->ram, c.head, 0);
		turn.left--;
	}
	if (turn.left < TURN)
		virtio_signal(v, QUEUE_TX);
}

/* To the guest. */
static void serve_rx(struct virtio_vsock *s)
{
	struct virtio *v = &s->v;
	struct ram *ram = &v->dev.vm->ram;
	struct virtq *q = &v->queue[QUEUE_RX].q;
	struct virtio_turn turn = virtio_begin_turn(v, QUEUE_RX, TURN);
	struct virtq_chain c = new_chain(s);

	while (vsock_mux_has_packet(&s->mux) && virtio_next(&turn, &c)) {
		struct vsock_hdr hdr;
		int len;

		if (c.in_len <= VSOCK_HDR_LEN) {
			virtio_fail(v, "a receive buffer without room for data");
			break;
		}
		len = vsock_mux_next(&s->mux, &c, &hdr);
		if (len < 0) {
			virtq_unpop(q);
			continue;
		}
		virtq_stored(&c, ram, VSOCK_HDR_LEN, (uint64_t)len);
		virtq_write(&c, ram, 0, &hdr, sizeof(hdr));
		virtq_push(q, ram, c.head, (uint32_t)VSOCK_HDR_LEN + (uint32_t)len);
		turn.left--;
	}
	if (turn.left < TURN)
		virtio_signal(v, QUEUE_RX);
}

/* Both directions, as long as it is fair to others on the loop. The guest is to be talked to. */
static void pump(struct virtio_vsock *s)
{
	bool was_full;

	serve_tx(s);
	was_full = vsock_mux_full(&s->mux);
	serve_rx(s);
	if (was_full && !vsock_mux_full(&s->mux))
		virtio_serve_all(&s->v);
}

static void on_mux(struct vsock_mux *m)
{
	pump(container_of(m, struct virtio_vsock, mux));
}

/* ---- the event ---- */

/* How many buffers for events the driver has given, ever (avail.idx; virtio 1.2, 2.7.6). */
static uint16_t event_buffers(struct virtio_vsock *s)
{
	uint16_t idx = 0;

	(void)ram_read(&s->v.dev.vm->ram, s->v.queue[QUEUE_EVENT].q.avail + 2, &idx, sizeof(idx));
	return idx;
}

static void send_event(struct virtio_vsock *s)
{
	struct virtio *v = &s->v;
	struct virtq_chain c = new_chain(s);
	const uint32_t id = EVENT_TRANSPORT_RESET;

	if (!virtio_take(v, QUEUE_EVENT, &c))
		return;
	if (c.in_len < sizeof(id)) {
		virtio_fail(v, "a buffer too small for an event");
		return;
	}
	s->event_idx = event_buffers(s);
	virtq_write(&c, &v->dev.vm->ram, 0, &id, sizeof(id));
	virtio_push(v, QUEUE_EVENT, c.head, sizeof(id));
	s->reset_owed = false;
}

/* From here on nothing is said until the guest has handled the event. */
static void begin_hold(struct virtio_vsock *s)
{
	s->mux.closed = true;
	s->holds = HOLD_NS / HOLD_LOOK_NS;
}

/* Is the guest ready to hear of new connections? */
static void look_at_hold(struct virtio_vsock *s)
{
	struct virtio *v = &s->v;

	if (s->reset_owed && v->queue[QUEUE_EVENT].q.ready)
		send_event(s);
	if (s->holds && (s->reset_owed || event_buffers(s) == s->event_idx)) {
		if (!s->hold_op.pending)
			loop_timer(v->dev.vm->loop, &s->hold_op, HOLD_LOOK_NS);
		return;
	}
	s->mux.closed = false;
	virtio_serve_all(v);
}

static void on_hold(struct loop_op *op, int32_t res)
{
	struct virtio_vsock *s = container_of(op, struct virtio_vsock, hold_op);

	if (res == -ECANCELED)
		return;
	pthread_mutex_lock(&s->v.lock);
	/* At rest no time goes by: resume has it looked at. */
	if (s->mux.closed && virtio_live(&s->v)) {
		if (s->holds)
			s->holds--;
		look_at_hold(s);
	}
	pthread_mutex_unlock(&s->v.lock);
}

/* ---- the device ---- */

static void vsock_serve(struct virtio *v, unsigned queue)
{
	struct virtio_vsock *s = to_vsock(v);

	if (queue == QUEUE_EVENT && s->reset_owed && !s->mux.closed &&
	    virtq_pending(&v->queue[queue].q, &v->dev.vm->ram)) {
		/* It comes late, and ends what has been made meanwhile. */
		vsock_mux_reset(&s->mux);
		begin_hold(s);
	}
	if (s->mux.closed) {
		look_at_hold(s);
		return;
	}
	vsock_mux_wake(&s->mux);
	pump(s);
}

static void vsock_reset(struct virtio *v)
{
	struct virtio_vsock *s = to_vsock(v);

	/* A new driver reads its CID and has no connections. */
	s->reset_owed = false;
	s->mux.closed = false;
	vsock_mux_reset(&s->mux);
}

static const struct virtio_ops vsock_ops = {
	.type = VIRTIO_TYPE_VSOCK,
	.name = "vsock",
	.serve = vsock_serve,
	.reset = vsock_reset,
};

/* struct virtio_vsock_config { le64 guest_cid; } (virtio 1.2, section 5.10.4) */
static void set_cid(struct virtio_vsock *s)
{
	s->v.config_len = sizeof(s->mux.cid);
	memcpy(s->v.config, &s->mux.cid, sizeof(s->mux.cid));
}

static int vsock_init(struct device *d, const void *config)
{
	static const uint16_t sizes[N_QUEUES] = {VSOCK_QUEUE, VSOCK_QUEUE, EVENT_QUEUE_SIZE};
	struct virtio_vsock *s = of_device(d);
	const struct vm_vsock *cfg = config;
	size_t len = strnlen(cfg->path, sizeof(cfg->path));
	int ret;

	/* 0 to 2 and the largest are nobody's, or the host's. */
	if (cfg->cid <= VSOCK_HOST_CID || cfg->cid >= UINT32_MAX) {
		log_error("vsock: the guest's CID must be 3 to 4294967294, not %llu",
			  (unsigned long long)cfg->cid);
		return -EINVAL;
	}
	if (len == 0 || len > VSOCK_PATH_MAX) {
		log_error("vsock: the socket's path must have 1 to %zu bytes", VSOCK_PATH_MAX);
		return len ? -ENAMETOOLONG : -EINVAL;
	}
	ret = virtio_init(&s->v, &vsock_ops, VSOCK_F_STREAM, sizes, N_QUEUES);
	if (ret)
		return ret;
	ret = vsock_mux_init(&s->mux, &s->v, cfg, on_mux);
	if (ret) {
		virtio_destroy(&s->v);
		return ret;
	}
	s->hold_op.done = on_hold;
	set_cid(s);
	return 0;
}

static void vsock_resume(struct device *d)
{
	struct virtio_vsock *s = of_device(d);

	pthread_mutex_lock(&s->v.lock);
	if (s->v.came && (s->v.status & VIRTIO_DRIVER_OK)) {
		s->reset_owed = true;
		begin_hold(s);
	}
	pthread_mutex_unlock(&s->v.lock);
	virtio_resume(d);
}

static void vsock_fields(struct device *d, struct sbuf *s)
{
	struct virtio_vsock *vs = of_device(d);

	virtio_fields(d, s);
	pthread_mutex_lock(&vs->v.lock);
	vsock_mux_fields(&vs->mux, s);
	pthread_mutex_unlock(&vs->v.lock);
}

static void vsock_blank(struct device *d)
{
	set_cid(of_device(d));
}

static int vsock_loaded(struct device *d)
{
	int ret = virtio_loaded(d);

	/* The guest reads its CID anew: it has the one that this side was told. */
	if (ret == 0)
		set_cid(of_device(d));
	return ret;
}

static int vsock_acquire(struct device *d, struct errmsg *err)
{
	return vsock_mux_listen(&of_device(d)->mux, err);
}

static void vsock_release(struct device *d)
{
	vsock_mux_unlisten(&of_device(d)->mux);
}

static void vsock_destroy(struct device *d)
{
	struct virtio_vsock *s = of_device(d);

	vsock_mux_destroy(&s->mux);
	loop_cancel_wait(d->vm->loop, &s->hold_op);
	virtio_destroy(&s->v);
}

void virtio_vsock_stats(struct device *d, struct virtio_vsock_stats *stats)
{
	struct virtio_vsock *s = of_device(d);

	pthread_mutex_lock(&s->v.lock);
	*stats = (struct virtio_vsock_stats){
		.connections = vsock_mux_open_conns(&s->mux),
		.to_guest = s->mux.to_guest,
		.from_guest = s->mux.from_guest,
	};
	pthread_mutex_unlock(&s->v.lock);
}

const struct device_ops virtio_vsock_ops = {
	.tag = "virtio-vsock",
	.size = sizeof(struct virtio_vsock),
	.version = 1,
	.min_version = 1,
	.init = vsock_init,
	.reset = virtio_reset,
	.quiesce = virtio_quiesce,
	.resume = vsock_resume,
	.fields = vsock_fields,
	.blank = vsock_blank,
	.loaded = vsock_loaded,
	.shape = virtio_shape,
	.acquire = vsock_acquire,
	.release = vsock_release,
	.destroy = vsock_destroy,
};
