/* SPDX-License-Identifier: MIT */
/*
 * Theory of operation: the backend is open from acquire() to release(), but for the times in which
 * it is gone. Everything that we wait for is an operation of the loop, counted in `armed`; a
 * quiesce has the loop cancel them all and waits until none is left, since a poll that is pending
 * holds on to the file that it polls, and with it to the tap that the destination wants.
 *
 * What is armed again after a resume is up to virtio's serving of every queue (polls for frames and
 * room) and to on_work() (everything else), both on the loop's thread.
 */
#include "virtio_net.h"

#include <errno.h>
#include <poll.h>
#include <stddef.h>
#include <string.h>

#include "net_device.h"

#define READY_NS (5 * NS_PER_SEC) /* a backend's own start */

static struct virtio_net *to_net(struct device *d)
{
	return container_of(d, struct virtio_net, v.dev);
}

static const struct net_backend_ops *backend_ops(const struct vm_net *cfg)
{
	return cfg->kind == VM_NET_TAP ? &net_tap_ops : &net_passt_ops;
}

/* ---- configuration ---- */

struct net_config net_get_config(const struct virtio_net *n)
{
	struct net_config c;

	memcpy(&c, n->v.config, sizeof(c));
	return c;
}

void net_set_config(struct virtio_net *n, const struct net_config *c)
{
	virtio_set_config(&n->v, 0, c, sizeof(*c));
}

/* ---- queues ---- */

/* Without MQ there is one pair, and the control queue behind it (virtio 1.2, section 5.1.2). */
static unsigned ctrl_queue(const struct virtio_net *n)
{
	return virtio_has(&n->v, NET_F_MQ) ? 2 * n->max_pairs : 2;
}

static void net_serve(struct virtio *v, unsigned queue)
{
	struct virtio_net *n = net_of(v);

	if (virtio_has(v, NET_F_CTRL_VQ) && queue == ctrl_queue(n))
		net_serve_ctrl(n, queue);
	else if (queue / 2 >= n->pairs)
		return;
	else if (queue % 2)
		net_serve_tx(n, &n->pair[queue / 2]);
	else
		net_serve_rx(n, &n->pair[queue / 2]);
}

static void set_use(struct virtio_net *n, uint64_t guest_offloads)
{
	int ret;

	n->pairs = 1;
	n->guest_offloads = guest_offloads;
	ret = net_configure(n);
	if (ret)
		log_warn("net %u: %s: offloads and queues: %s", n->v.dev.instance, n->b->ops->name,
			 strerror(-ret));
}

static void net_activate(struct virtio *v)
{
	set_use(net_of(v), v->features & NET_F_GUEST_OFFLOADS);
}

static void net_on_reset(struct virtio *v)
{
	struct virtio_net *n = net_of(v);
	struct net_config c = net_get_config(n);

	for (unsigned i = 0; i < n->max_pairs; i++)
		net_drop_held(n, &n->pair[i]);
	n->announce_left = 0;
	memcpy(c.mac, n->cfg.mac, sizeof(c.mac));
	c.status &= (uint16_t)~NET_ANNOUNCE;
	net_set_config(n, &c);
	set_use(n, 0);
}

static const struct virtio_ops net_virtio_ops = {
	.type = VIRTIO_TYPE_NET,
	.name = "net",
	.activate = net_activate,
	.serve = net_serve,
	.reset = net_on_reset,
};

/* ---- life ---- */

static int check_common(const struct vm_net *cfg, struct errmsg *err)
{
	static const uint8_t none[6];
	const struct net_backend_ops *ops = backend_ops(cfg);

	if (cfg->kind != VM_NET_TAP && cfg->kind != VM_NET_USER)
		return errmsg_set(err, -EINVAL, "net: no such kind: %u", cfg->kind);
	if ((cfg->mac[0] & 1) || memcmp(cfg->mac, none, sizeof(none)) == 0)
		return errmsg_set(err, -EINVAL,
				  "net: %02x:%02x:%02x:%02x:%02x:%02x is not the address of one "
				  "card; the first byte must be even, as in 52:54:00:12:34:56",
				  cfg->mac[0], cfg->mac[1], cfg->mac[2], cfg->mac[3], cfg->mac[4],
				  cfg->mac[5]);
	if (cfg->queues == 0 || cfg->queues > NET_MAX_PAIRS)
		return errmsg_set(err, -EINVAL, "net: 1 to %u queues", NET_MAX_PAIRS);
	if (cfg->queues > 1 && !ops->pairs)
		return errmsg_set(err, -EINVAL, "net: several queues need a tap");
	return 0;
}

int virtio_net_check(const struct vm_net *net, struct errmsg *err)
{
	int ret = check_common(net, err);

	return ret ? ret : backend_ops(net)->check(net, err);
}

static uint64_t features_of(const struct virtio_net *n)
{
	uint64_t f = NET_F_MTU | NET_F_MAC | NET_F_MRG_RXBUF | NET_F_STATUS | NET_F_CTRL_VQ |
		     NET_F_CTRL_RX | NET_F_GUEST_ANNOUNCE | NET_F_CTRL_MAC_ADDR;

	if (n->b->ops->offloads)
		f |= NET_F_HOST_OFFLOADS | NET_F_GUEST_OFFLOADS | NET_F_CTRL_GUEST_OFFLOADS;
	if (n->max_pairs > 1)
		f |= NET_F_MQ;
	return f;
}

static int net_init(struct device *d, const void *config)
{
	struct virtio_net *n = to_net(d);
	struct net_config c = {.status = NET_LINK_UP};
	uint16_t queue_max[2 * NET_MAX_PAIRS + 1];
	struct errmsg err = {""};
	int ret;

	n->cfg = *(const struct vm_net *)config;
	ret = check_common(&n->cfg, NULL);
	if (ret)
		return ret;
	ret = backend_ops(&n->cfg)->create(&n->b, &n->cfg);
	if (ret)
		return ret;
	n->max_pairs = n->cfg.queues;
	n->pairs = 1;
	net_link_init(n);
	net_rings_init(n);
	for (size_t i = 0; i < ARRAY_SIZE(queue_max); i++)
		queue_max[i] = NET_QUEUE_SIZE;
	ret = virtio_init(&n->v, &net_virtio_ops, features_of(n), queue_max, 2 * n->max_pairs + 1);
	if (ret) {
		n->b->ops->destroy(n->b);
		return ret;
	}
	memcpy(c.mac, n->cfg.mac, sizeof(c.mac));
	c.max_pairs = (uint16_t)n->max_pairs;
	c.mtu = n->b->mtu;
	n->v.config_len = sizeof(c);
	memcpy(n->v.config, &c, sizeof(c));
	/* Its start takes time that a guest need not wait for. If it fails, acquire() says so. */
	if (n->b->ops->harmless(n->b) && net_open_backend(n, &err))
		log_debug("net %u: %s", d->instance, err.text);
	return 0;
}

static void net_destroy(struct device *d)
{
	struct virtio_net *n = to_net(d);

	loop_unpost(d->vm->loop, &n->work);
	net_each_op(n, loop_cancel_wait);
	n->b->ops->destroy(n->b);
	virtio_destroy(&n->v);
}

static int net_quiesce(struct device *d, uint64_t deadline_ns)
{
	struct virtio_net *n = to_net(d);
	struct virtio *v = &n->v;
	struct timespec at = {
		.tv_sec = (time_t)(deadline_ns / NS_PER_SEC),
		.tv_nsec = (long)(deadline_ns % NS_PER_SEC),
	};
	int ret = virtio_quiesce(d, deadline_ns);

	if (ret)
		return ret;
	loop_post(d->vm->loop, &n->work);
	pthread_mutex_lock(&v->lock);
	while (n->armed && ret == 0)
		ret = -pthread_cond_timedwait(&v->idle, &v->lock, &at);
	ret = n->armed ? ret : 0;
	if (ret) {
		v->stopped = false;
		virtio_serve_all(v);
		loop_post(d->vm->loop, &n->work);
	}
	pthread_mutex_unlock(&v->lock);
	return ret;
}

static void net_resume(struct device *d)
{
	struct virtio_net *n = to_net(d);

	pthread_mutex_lock(&n->v.lock);
	if (n->v.came)
		net_start_announcing(n);
	pthread_mutex_unlock(&n->v.lock);
	virtio_resume(d);
	loop_post(d->vm->loop, &n->work);
}

static int open_and_wait(struct virtio_net *n, struct errmsg *err)
{
	const struct net_backend_ops *ops = n->b->ops;
	int ret;

	if (!n->b->open) {
		ret = net_open(n, err);
		if (ret)
			return ret;
	}
	ret = ops->ready ? ops->ready(n->b, now_ns() + READY_NS, err) : 0;
	if (ret)
		ops->close(n->b);
	return ret;
}

static int net_acquire(struct device *d, struct errmsg *err)
{
	struct virtio_net *n = to_net(d);
	struct errmsg why = {""};
	bool early;
	int ret;

	pthread_mutex_lock(&n->v.lock);
	early = n->b->open;
	ret = open_and_wait(n, &why);
	if (ret && early) {
		why.text[0] = '\0';
		ret = open_and_wait(n, &why);
	}
	if (ret == 0) {
		n->acquired = true;
		net_link_up(n);
	}
	pthread_mutex_unlock(&n->v.lock);
	if (ret)
		return errmsg_set(err, ret, "net %u: %s", d->instance, why.text);
	loop_post(d->vm->loop, &n->work);
	return 0;
}

static void net_release(struct device *d)
{
	struct virtio_net *n = to_net(d);

	pthread_mutex_lock(&n->v.lock);
	n->acquired = false;
	n->b->ops->close(n->b);
	for (unsigned i = 0; i < n->max_pairs; i++)
		net_drop_held(n, &n->pair[i]);
	pthread_mutex_unlock(&n->v.lock);
}

void virtio_net_counters(struct device *d, struct net_counters *c)
{
	struct virtio_net *n = to_net(d);

	pthread_mutex_lock(&n->v.lock);
	*c = n->counters;
	c->link_up = net_get_config(n).status & NET_LINK_UP;
	pthread_mutex_unlock(&n->v.lock);
}

/* ---- state ---- */

static void net_fields(struct device *d, struct sbuf *s)
{
	struct virtio_net *n = to_net(d);

	virtio_fields(d, s);
	sb_u32_range(s, &n->pairs, 1, n->max_pairs);
	sb_x64(s, &n->guest_offloads);
}

static void net_blank(struct device *d)
{
	struct virtio_net *n = to_net(d);

	n->v.config_len = sizeof(struct net_config);
	n->max_pairs = NET_MAX_PAIRS;
}

static int net_loaded(struct device *d)
{
	struct virtio_net *n = to_net(d);
	const struct net_config c = net_get_config(n);
	int ret = virtio_loaded(d);

	if (ret)
		return ret;
	if ((c.mac[0] & 1) || (c.status & ~(NET_LINK_UP | NET_ANNOUNCE)) ||
	    c.max_pairs != n->max_pairs || c.mtu < NET_MTU_MIN || c.mtu > n->b->mtu)
		return -EPROTO;
	if (n->pairs > 1 && !virtio_has(&n->v, NET_F_MQ))
		return -EPROTO;
	if (n->guest_offloads & ~(n->v.features & NET_F_GUEST_OFFLOADS))
		return -EPROTO;
	n->b->mtu = c.mtu;
	return net_configure(n);
}

/* A frame that the guest may send must fit here, too. */
static void net_shape(struct device *d, struct sbuf *s, struct errmsg *err)
{
	struct virtio_net *n = to_net(d);
	uint16_t mtu = sb_looking(s) ? 0 : n->b->mtu;

	virtio_shape(d, s, err);
	sb_u16(s, &mtu);
	if (!s->loading || s->err || sb_looking(s))
		return;
	if (mtu < NET_MTU_MIN)
		sb_fail(s, -EPROTO);
	else if (mtu > n->b->mtu && n->cfg.kind == VM_NET_TAP)
		sb_fail(s,
			errmsg_set(err, -ENOTSUP,
				   "net %u: the guest may send frames of %u bytes, %s takes %u: ip "
				   "link set dev %s mtu %u",
				   d->instance, mtu, n->cfg.tap, n->b->mtu, n->cfg.tap, mtu));
	else if (mtu > n->b->mtu)
		sb_fail(s, errmsg_set(err, -ENOTSUP,
				      "net %u: the guest may send frames of %u bytes, user "
				      "networking takes %u; give it a tap",
				      d->instance, mtu, n->b->mtu));
	else
		n->b->mtu = mtu;
}

const struct device_ops virtio_net_ops = {
	.tag = "virtio-net",
	.size = sizeof(struct virtio_net),
	.version = 1,
	.min_version = 1,
	.init = net_init,
	.reset = virtio_reset,
	.quiesce = net_quiesce,
	.resume = net_resume,
	.fields = net_fields,
	.blank = net_blank,
	.loaded = net_loaded,
	.shape = net_shape,
	.acquire = net_acquire,
	.release = net_release,
	.destroy = net_destroy,
};
