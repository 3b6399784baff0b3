/* SPDX-License-Identifier: MIT */
/*
 * The device's link: the backend's comings and goings, announcements of the guest's address, and
 * what of it the loop waits for.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>

#include "net_device.h"

/* Tries to open a backend again: after the first delay, doubled each time up to the last. */
#define RETRY_FIRST_NS (100 * NS_PER_MS)
#define RETRY_LAST_NS (30 * NS_PER_SEC)
#define RETRY_STEADY_NS (10 * NS_PER_SEC) /* open for that long: start with the first again */

#define ANNOUNCEMENTS 5U
#define ANNOUNCE_STEP_NS (100 * NS_PER_MS) /* 50 ms, then 100 ms more each time */

void net_set_status(struct virtio_net *n, uint16_t set, uint16_t clear)
{
	struct net_config c = net_get_config(n);

	c.status = (uint16_t)((c.status & ~clear) | set);
	net_set_config(n, &c);
}

/* ---- what the loop does for us ---- */

void net_poll(struct virtio_net *n, struct loop_op *op, int fd, unsigned mask)
{
	if (op->pending)
		return;
	n->armed++;
	loop_poll(n->v.dev.vm->loop, op, fd, mask);
}

static void set_timer(struct virtio_net *n, struct loop_op *op, uint64_t ns)
{
	if (op->pending)
		return;
	n->armed++;
	loop_timer(n->v.dev.vm->loop, op, ns);
}

void net_disarmed(struct virtio_net *n)
{
	if (--n->armed == 0)
		pthread_cond_broadcast(&n->v.idle);
}

void net_each_op(struct virtio_net *n, void (*fn)(struct loop *, struct loop_op *))
{
	struct loop *loop = n->v.dev.vm->loop;

	for (unsigned i = 0; i < NET_MAX_PAIRS; i++) {
		fn(loop, &n->pair[i].rx_poll);
		fn(loop, &n->pair[i].tx_poll);
	}
	fn(loop, &n->watch);
	fn(loop, &n->retry);
	fn(loop, &n->announce);
}

/* ---- the backend ---- */

static unsigned wanted_offloads(const struct virtio_net *n)
{
	uint64_t g = n->guest_offloads;

	return (g & NET_F_GUEST_CSUM ? NET_OFFLOAD_CSUM : 0U) |
	       (g & NET_F_GUEST_TSO4 ? NET_OFFLOAD_TSO4 : 0U) |
	       (g & NET_F_GUEST_TSO6 ? NET_OFFLOAD_TSO6 : 0U) |
	       (g & NET_F_GUEST_ECN ? NET_OFFLOAD_ECN : 0U);
}

int net_configure(struct virtio_net *n)
{
	const struct net_backend_ops *ops = n->b->ops;

	if (!n->b->open || !ops->configure)
		return 0;
	return ops->configure(n->b, n->pairs, wanted_offloads(n));
}

struct opening {
	struct net_backend *b;
	struct errmsg *err;
};

static int open_backend(void *arg)
{
	struct opening *o = arg;

	return o->b->ops->open(o->b, o->err);
}

int net_open_backend(struct virtio_net *n, struct errmsg *err)
{
	struct opening o = {.b = n->b, .err = err};

	return confine_call(n->v.dev.vm->cfg.confine, open_backend, &o);
}

int net_open(struct virtio_net *n, struct errmsg *err)
{
	int ret = net_open_backend(n, err);

	if (ret)
		return ret;
	ret = net_configure(n);
	if (ret) {
		n->b->ops->close(n->b);
		return errmsg_set(err, ret, "%s: offloads and queues of the guest: %s",
				  n->b->ops->name, strerror(-ret));
	}
	n->opened_ns = now_ns();
	return 0;
}

/* Polls may outlive what they polled; this is about the backend that is open now. */
static bool is_gone(const struct virtio_net *n)
{
	struct pollfd fd = {.events = POLLIN};

	if (!n->b->open)
		return false;
	fd.fd = n->b->ops->watch_fd(n->b);
	return poll(&fd, 1, 0) > 0;
}

static void watch_backend(struct virtio_net *n)
{
	if (n->b->open && n->b->ops->watch_fd)
		net_poll(n, &n->watch, n->b->ops->watch_fd(n->b), POLLIN);
}

void net_lost(struct virtio_net *n)
{
	if (!n->b->open)
		return;
	/* What is polled for ends by itself, with the tap or the peer of the socket. */
	n->b->ops->close(n->b);
	for (unsigned i = 0; i < n->max_pairs; i++)
		net_drop_held(n, &n->pair[i]);
	net_set_status(n, 0, NET_LINK_UP);
	if (now_ns() - n->opened_ns >= RETRY_STEADY_NS)
		n->retry_ns = RETRY_FIRST_NS;
	log_warn("net %u: %s; its link is down, next try in %llu ms", n->v.dev.instance,
		 n->b->gone.text, (unsigned long long)(n->retry_ns / NS_PER_MS));
	set_timer(n, &n->retry, n->retry_ns);
}

static void on_watch(struct loop_op *op, int32_t res)
{
	struct virtio_net *n = container_of(op, struct virtio_net, watch);

	(void)res;
	pthread_mutex_lock(&n->v.lock);
	net_disarmed(n);
	if (!n->v.stopped) {
		if (is_gone(n))
			net_lost(n);
		else
			watch_backend(n);
	}
	pthread_mutex_unlock(&n->v.lock);
}

static void on_retry(struct loop_op *op, int32_t res)
{
	struct virtio_net *n = container_of(op, struct virtio_net, retry);
	struct errmsg err = {""};

	pthread_mutex_lock(&n->v.lock);
	net_disarmed(n);
	if (res != -ETIME || n->v.stopped || !n->acquired || n->b->open)
		goto out;
	n->retry_ns = MIN(2 * n->retry_ns, RETRY_LAST_NS);
	if (net_open(n, &err)) {
		log_debug("net %u: %s; next try in %llu ms", n->v.dev.instance, err.text,
			  (unsigned long long)(n->retry_ns / NS_PER_MS));
		set_timer(n, &n->retry, n->retry_ns);
		goto out;
	}
	log_info("net %u: %s works again; its link is up", n->v.dev.instance, n->b->ops->name);
	net_set_status(n, NET_LINK_UP, 0);
	watch_backend(n);
	virtio_serve_all(&n->v);
out:
	pthread_mutex_unlock(&n->v.lock);
}

/* ---- announcing ---- */

/* "Who am I?", which makes switches learn where the asker is and disturbs nobody (RFC 903). */
struct rarp_frame {
	uint8_t to[6], from[6];
	uint8_t type[2];
	uint8_t hardware[2], protocol[2], hardware_len, protocol_len;
	uint8_t operation[2];
	uint8_t sender_mac[6], sender_ip[4];
	uint8_t target_mac[6], target_ip[4];
	uint8_t padding[18];
};
_Static_assert(sizeof(struct rarp_frame) == 60, "the shortest Ethernet frame");

static void send_announcement(struct virtio_net *n)
{
	const struct net_config c = net_get_config(n);
	struct rarp_frame f = {
		.to = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
		.type = {0x80, 0x35},
		.hardware = {0, 1},
		.protocol = {0x08, 0},
		.hardware_len = 6,
		.protocol_len = 4,
		.operation = {0, 3},
	};

	memcpy(f.from, c.mac, sizeof(f.from));
	memcpy(f.sender_mac, c.mac, sizeof(f.sender_mac));
	memcpy(f.target_mac, c.mac, sizeof(f.target_mac));
	net_send_own(n, &f, sizeof(f));
}

static void next_announcement(struct virtio_net *n)
{
	unsigned done = ANNOUNCEMENTS - n->announce_left;

	if (n->announce_left == 0 || n->announce.pending)
		return;
	send_announcement(n);
	if (--n->announce_left > 0)
		set_timer(n, &n->announce, ANNOUNCE_STEP_NS / 2 + done * ANNOUNCE_STEP_NS);
}

static void on_announce(struct loop_op *op, int32_t res)
{
	struct virtio_net *n = container_of(op, struct virtio_net, announce);

	(void)res;
	pthread_mutex_lock(&n->v.lock);
	net_disarmed(n);
	if (!n->v.stopped)
		next_announcement(n);
	pthread_mutex_unlock(&n->v.lock);
}

void net_start_announcing(struct virtio_net *n)
{
	if (!(n->v.status & VIRTIO_DRIVER_OK))
		return;
	n->announce_left = ANNOUNCEMENTS;
	if (virtio_has(&n->v, NET_F_GUEST_ANNOUNCE) && virtio_has(&n->v, NET_F_STATUS) &&
	    virtio_has(&n->v, NET_F_CTRL_VQ))
		net_set_status(n, NET_ANNOUNCE, 0);
}

/* ---- beginning and ending ---- */

/* What the loop has to begin after init, acquire and resume, or to end for a quiesce. */
static void on_work(struct loop_task *task)
{
	struct virtio_net *n = container_of(task, struct virtio_net, work);

	pthread_mutex_lock(&n->v.lock);
	if (n->v.stopped) {
		net_each_op(n, loop_cancel);
	} else if (n->acquired) {
		if (!n->b->open)
			set_timer(n, &n->retry, n->retry_ns);
		watch_backend(n);
		net_flush(n);
		next_announcement(n);
	}
	pthread_mutex_unlock(&n->v.lock);
}

void net_link_up(struct virtio_net *n)
{
	n->retry_ns = RETRY_FIRST_NS;
	net_set_status(n, NET_LINK_UP, 0);
}

void net_link_init(struct virtio_net *n)
{
	n->retry_ns = RETRY_FIRST_NS;
	n->work.run = on_work;
	n->watch.done = on_watch;
	n->retry.done = on_retry;
	n->announce.done = on_announce;
}
