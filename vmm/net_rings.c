/* SPDX-License-Identifier: MIT */
/*
 * Frames between rings and backend.
 *
 * To the guest: a frame is taken from the backend only when the ring has buffers; what does not
 * come stays where it is, and the host drops what is too much. With MRG_RXBUF a frame may take
 * several buffers; when those that are there do not suffice it is held until the driver adds more.
 * So one of three things is waited for: a frame (poll), buffers (kick), or more of them (kick).
 *
 * From the guest: a frame goes out straight from its buffers. When the backend is full the chain is
 * put back and room is polled for.
 *
 * At most BATCH frames a turn, with one interrupt at its end: others have work in the loop, and
 * wait for the device's lock, too.
 */
#include "net_device.h"

#include <errno.h>
#include <poll.h>
#include <string.h>

#define BATCH 64U

static struct ram *ram_of(struct virtio_net *n)
{
	return &n->v.dev.vm->ram;
}

static unsigned rx_index(const struct net_pair *p)
{
	return 2 * p->index;
}

static unsigned tx_index(const struct net_pair *p)
{
	return 2 * p->index + 1;
}

/* ---- to the guest ---- */

void net_drop_held(struct virtio_net *n, struct net_pair *p)
{
	if (p->held)
		n->counters.rx_dropped++;
	p->held = false;
}

/*
 * Makes the header one that the driver can have: of frames that were queued before the guest turned
 * an offload off, some may still be of the old kind. false: it has no use for this frame.
 */
static bool fit_header(const struct virtio_net *n, struct net_hdr *hdr)
{
	uint64_t need = 0;

	switch (hdr->gso_type & ~NET_GSO_ECN) {
	case NET_GSO_NONE:
		break;
	case NET_GSO_TCPV4:
		need = NET_F_GUEST_TSO4;
		break;
	case NET_GSO_TCPV6:
		need = NET_F_GUEST_TSO6;
		break;
	default:
		return false;
	}
	if (hdr->gso_type & NET_GSO_ECN)
		need |= NET_F_GUEST_ECN;
	if (hdr->flags & NET_HDR_NEEDS_CSUM)
		need |= NET_F_GUEST_CSUM;
	if (need & ~n->guest_offloads)
		return false;
	hdr->flags &= NET_HDR_NEEDS_CSUM | NET_HDR_DATA_VALID;
	if (!(n->guest_offloads & NET_F_GUEST_CSUM))
		hdr->flags = 0;
	return true;
}

enum delivery {
	DELIVERED,
	DROPPED,
	NEED_BUFFERS, /* a kick will come when there are more */
	TRY_AGAIN,    /* more have come just now */
};

/*
 * Stores the frame that p holds into as many chains as it takes. They are popped one by one, and
 * all of them are put back when they do not suffice.
 */
static enum delivery deliver(struct virtio_net *n, struct net_pair *p)
{
	struct virtio *v = &n->v;
	unsigned queue = rx_index(p);
	struct virtq *q = &v->queue[queue].q;
	struct ram *ram = ram_of(n);
	struct virtq_chain first = {.iov = n->iov[0], .max = NET_QUEUE_SIZE};
	struct virtq_chain next = {.iov = n->iov[1], .max = NET_QUEUE_SIZE};
	bool mergeable = virtio_has(v, NET_F_MRG_RXBUF);
	struct net_hdr hdr = p->frame.hdr;
	enum delivery outcome = DROPPED;
	uint16_t chains = 0;
	size_t done = 0;

	if (!fit_header(n, &hdr))
		return DROPPED;
	while (done < p->frame.len) {
		struct virtq_chain *c = chains == 0 ? &first : &next;
		size_t skip = chains == 0 ? sizeof(hdr) : 0;
		size_t take;

		if (chains == q->size || (chains == 1 && !mergeable))
			goto put_back;
		if (!virtio_pop(v, queue, c)) {
			/* The event index must be beyond what is there, or no kick comes. */
			bool more = virtio_want_kicks(v, queue);

			if (!virtio_live(v))
				return DROPPED;
			outcome = more ? TRY_AGAIN : NEED_BUFFERS;
			goto put_back;
		}
		if (c->in_len <= skip) {
			virtio_fail(v, "queue %u: a receive buffer of %llu bytes", queue,
				    (unsigned long long)c->in_len);
			return DROPPED;
		}
		take = MIN(p->frame.len - done, c->in_len - skip);
		virtq_write(c, ram, skip, p->frame.data + done, take);
		virtq_put(q, ram, chains, c->head, (uint32_t)(skip + take));
		done += take;
		chains++;
	}
	hdr.num_buffers = chains;
	virtq_write(&first, ram, 0, &hdr, sizeof(hdr));
	virtq_publish(q, ram, chains);
	return DELIVERED;
put_back:
	while (chains-- > 0)
		virtq_unpop(q);
	return outcome;
}

/* false: there is nothing more to do now. */
static bool rx_one(struct virtio_net *n, struct net_pair *p)
{
	struct virtq *q = &n->v.queue[rx_index(p)].q;
	int ret;

	if (!p->held) {
		if (!virtq_pending(q, ram_of(n)) && !virtq_want_kicks(q, ram_of(n)))
			return false;
		ret = n->b->ops->recv(n->b, p->index, &p->frame);
		if (ret == 0)
			net_poll(n, &p->rx_poll, n->b->ops->fd(n->b, p->index), POLLIN);
		else if (ret < 0)
			net_lost(n);
		if (ret <= 0)
			return false;
		p->held = true;
	}
	switch (deliver(n, p)) {
	case NEED_BUFFERS:
		return false;
	case TRY_AGAIN:
		return true;
	case DELIVERED:
		n->counters.rx_packets++;
		n->counters.rx_bytes += p->frame.len;
		break;
	case DROPPED:
		n->counters.rx_dropped++;
		break;
	}
	p->held = false;
	return virtio_live(&n->v);
}

void net_serve_rx(struct virtio_net *n, struct net_pair *p)
{
	struct virtio_queue *q = &n->v.queue[rx_index(p)];
	uint16_t before = q->q.next_used;
	unsigned i = 0;

	if (!n->b->open || p->rx_poll.pending)
		return;
	virtq_no_kicks(&q->q, ram_of(n));
	while (i < BATCH && rx_one(n, p))
		i++;
	if (q->q.next_used != before) {
		/* What is received is answered. */
		virtio_expect(&n->v, tx_index(p));
		virtio_signal(&n->v, q->index);
	}
	if (i == BATCH)
		virtio_serve_all(&n->v);
}

/* ---- from the guest ---- */

/* What the backend makes of it: as its send(). */
static int send_frame(struct virtio_net *n, struct net_pair *p, const struct iovec *iov,
		      uint32_t n_iov, uint64_t bytes)
{
	uint64_t len = bytes - sizeof(struct net_hdr);
	int ret;

	if (len < NET_FRAME_MIN || len > NET_FRAME_MAX)
		return -EMSGSIZE;
	if (!n->b->open)
		return -ENETDOWN;
	ret = n->b->ops->send(n->b, p->index, iov, n_iov, (size_t)len);
	if (ret == -ENOLINK)
		net_lost(n);
	else if (ret == 1 || ret == -EAGAIN)
		net_poll(n, &p->tx_poll, n->b->ops->fd(n->b, p->index), POLLOUT);
	return ret;
}

/* false: there is nothing more to do now. */
static bool tx_one(struct virtio_net *n, struct net_pair *p)
{
	struct virtio *v = &n->v;
	struct virtq *q = &v->queue[tx_index(p)].q;
	struct virtq_chain c = {.iov = n->iov[0], .max = NET_QUEUE_SIZE};
	int ret;

	if (!virtio_take(v, tx_index(p), &c))
		return false;
	if (c.out_len < sizeof(struct net_hdr)) {
		virtio_fail(v, "queue %u: %llu bytes to send, less than a header", tx_index(p),
			    (unsigned long long)c.out_len);
		return false;
	}
	ret = send_frame(n, p, c.iov, c.n_out, c.out_len);
	if (ret == -EAGAIN) {
		virtq_unpop(q);
		return false;
	}
	if (ret < 0) {
		n->counters.tx_dropped++;
	} else {
		n->counters.tx_packets++;
		n->counters.tx_bytes += c.out_len - sizeof(struct net_hdr);
	}
	virtq_push(q, ram_of(n), c.head, 0);
	return ret != 1;
}

void net_serve_tx(struct virtio_net *n, struct net_pair *p)
{
	struct virtio_queue *q = &n->v.queue[tx_index(p)];
	uint16_t before = q->q.next_used;
	unsigned i = 0;

	if (p->tx_poll.pending)
		return;
	virtq_no_kicks(&q->q, ram_of(n));
	while (i < BATCH && tx_one(n, p))
		i++;
	if (q->q.next_used != before)
		virtio_signal(&n->v, q->index);
	if (i == BATCH)
		virtio_serve_all(&n->v);
}

void net_send_own(struct virtio_net *n, const void *frame, size_t len)
{
	struct net_hdr hdr = {0};
	const struct iovec iov[] = {
		{.iov_base = &hdr, .iov_len = sizeof(hdr)},
		{.iov_base = (void *)frame, .iov_len = len},
	};

	send_frame(n, &n->pair[0], iov, ARRAY_SIZE(iov), sizeof(hdr) + len);
}

void net_flush(struct virtio_net *n)
{
	int ret;

	if (!n->b->open || !n->b->ops->flush)
		return;
	ret = n->b->ops->flush(n->b);
	if (ret == -EAGAIN)
		net_poll(n, &n->pair[0].tx_poll, n->b->ops->fd(n->b, 0), POLLOUT);
	else if (ret)
		net_lost(n);
}

/* ---- what was polled for ---- */

static void on_readable(struct loop_op *op, int32_t res)
{
	struct net_pair *p = container_of(op, struct net_pair, rx_poll);
	struct virtio_net *n = p->n;

	(void)res;
	pthread_mutex_lock(&n->v.lock);
	net_disarmed(n);
	if (virtio_live(&n->v) && p->index < n->pairs)
		net_serve_rx(n, p);
	pthread_mutex_unlock(&n->v.lock);
}

static void on_writable(struct loop_op *op, int32_t res)
{
	struct net_pair *p = container_of(op, struct net_pair, tx_poll);
	struct virtio_net *n = p->n;

	(void)res;
	pthread_mutex_lock(&n->v.lock);
	net_disarmed(n);
	if (!n->v.stopped)
		net_flush(n);
	if (virtio_live(&n->v) && p->index < n->pairs)
		net_serve_tx(n, p);
	pthread_mutex_unlock(&n->v.lock);
}

void net_rings_init(struct virtio_net *n)
{
	for (unsigned i = 0; i < NET_MAX_PAIRS; i++) {
		n->pair[i].n = n;
		n->pair[i].index = i;
		n->pair[i].rx_poll.done = on_readable;
		n->pair[i].tx_poll.done = on_writable;
	}
}
