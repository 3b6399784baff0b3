/* SPDX-License-Identifier: MIT */
/*
 * Inside of virtio-net: virtio_net.c has the device's life and its migration, net_link.c the
 * comings and goings of the backend, net_rings.c moves frames between rings and backend, net_ctrl.c
 * serves the control queue.
 *
 * Everything here is called with v.lock held, and on the loop's thread: all but what only changes
 * the configuration, opens, or has the backend configured.
 */
#ifndef GODWIT_NET_DEVICE_H
#define GODWIT_NET_DEVICE_H

#include "net_backend.h"
#include "virtio.h"
#include "virtio_net.h"

/* Features (virtio 1.2, section 5.1.3). */
#define NET_F_CSUM VIRTIO_F(0)
#define NET_F_GUEST_CSUM VIRTIO_F(1)
#define NET_F_CTRL_GUEST_OFFLOADS VIRTIO_F(2)
#define NET_F_MTU VIRTIO_F(3)
#define NET_F_MAC VIRTIO_F(5)
#define NET_F_GUEST_TSO4 VIRTIO_F(7)
#define NET_F_GUEST_TSO6 VIRTIO_F(8)
#define NET_F_GUEST_ECN VIRTIO_F(9)
#define NET_F_HOST_TSO4 VIRTIO_F(11)
#define NET_F_HOST_TSO6 VIRTIO_F(12)
#define NET_F_HOST_ECN VIRTIO_F(13)
#define NET_F_MRG_RXBUF VIRTIO_F(15)
#define NET_F_STATUS VIRTIO_F(16)
#define NET_F_CTRL_VQ VIRTIO_F(17)
#define NET_F_CTRL_RX VIRTIO_F(18)
#define NET_F_GUEST_ANNOUNCE VIRTIO_F(21)
#define NET_F_MQ VIRTIO_F(22)
#define NET_F_CTRL_MAC_ADDR VIRTIO_F(23)

#define NET_F_GUEST_OFFLOADS                                                                       \
	(NET_F_GUEST_CSUM | NET_F_GUEST_TSO4 | NET_F_GUEST_TSO6 | NET_F_GUEST_ECN)
#define NET_F_HOST_OFFLOADS (NET_F_CSUM | NET_F_HOST_TSO4 | NET_F_HOST_TSO6 | NET_F_HOST_ECN)

/* The guest's view of the device (virtio 1.2, section 5.1.4; little-endian). */
struct net_config {
	uint8_t mac[6];
	uint16_t status;
	uint16_t max_pairs;
	uint16_t mtu;
};
_Static_assert(sizeof(struct net_config) == 12, "virtio 1.2, 5.1.4");

#define NET_LINK_UP 1U
#define NET_ANNOUNCE 2U

#define NET_QUEUE_SIZE 256U

struct virtio_net;

struct net_pair {
	struct virtio_net *n;
	unsigned index;
	struct loop_op rx_poll, tx_poll; /* for frames, and for room */
	bool held;			 /* frame was received and waits for buffers */
	struct net_frame frame;
};

struct virtio_net {
	struct virtio v;
	struct vm_net cfg;
	struct net_backend *b;
	bool acquired; /* the backend is ours to have: opened, or tried again */

	unsigned max_pairs, pairs; /* pairs: in use */
	uint64_t guest_offloads;   /* of NET_F_GUEST_OFFLOADS, what the guest wants now */
	struct net_pair pair[NET_MAX_PAIRS];
	struct net_counters counters;

	unsigned armed;		 /* operations of ours that are pending in the loop */
	struct loop_task work;	 /* begins all that is not polls of queues, or ends everything */
	struct loop_op watch;	 /* the backend is gone */
	struct loop_op retry;	 /* time to open it again */
	struct loop_op announce; /* time for the next RARP frame */
	uint64_t retry_ns, opened_ns;
	unsigned announce_left;

	/* Scratch: chains of frames, one at a time. A chain has no more buffers than its queue. */
	struct iovec iov[2][NET_QUEUE_SIZE];
};

static inline struct virtio_net *net_of(struct virtio *v)
{
	return container_of(v, struct virtio_net, v);
}

/* ---- virtio_net.c ---- */

struct net_config net_get_config(const struct virtio_net *n);
void net_set_config(struct virtio_net *n, const struct net_config *c);

/* Has the backend do what pairs and guest_offloads say, if it is open. -errno. */
int net_configure(struct virtio_net *n);

/* ---- net_link.c ---- */

void net_link_init(struct virtio_net *n);

/* Sets and clears bits of the configuration's status. */
void net_set_status(struct virtio_net *n, uint16_t set, uint16_t clear);

/* Opens the backend as the guest has configured it. -errno with the cause in err. */
int net_open(struct virtio_net *n, struct errmsg *err);

/* Only the first of it: the backend's open(), by confine_call(). */
int net_open_backend(struct virtio_net *n, struct errmsg *err);

/* The backend works, for the first time. */
void net_link_up(struct virtio_net *n);

/* The backend is gone: closed, link down, and to be tried again. */
void net_lost(struct virtio_net *n);

/* The guest runs here for the first time: has it announce itself, and n->work do so for it. */
void net_start_announcing(struct virtio_net *n);

/* Waits for fd, unless op does so already. done() starts with net_disarmed(). */
void net_poll(struct virtio_net *n, struct loop_op *op, int fd, unsigned mask);
void net_disarmed(struct virtio_net *n);

/* For everything that may be pending in the loop. */
void net_each_op(struct virtio_net *n, void (*fn)(struct loop *, struct loop_op *));

/* ---- net_rings.c ---- */

void net_rings_init(struct virtio_net *n);
void net_serve_rx(struct virtio_net *n, struct net_pair *p);
void net_serve_tx(struct virtio_net *n, struct net_pair *p);

/* Forgets a frame that waits for buffers. */
void net_drop_held(struct virtio_net *n, struct net_pair *p);

/* Has the backend send the rest of a frame that it took a part of. */
void net_flush(struct virtio_net *n);

/* Sends a frame of ours, if it goes at once. */
void net_send_own(struct virtio_net *n, const void *frame, size_t len);

/* ---- net_ctrl.c ---- */

void net_serve_ctrl(struct virtio_net *n, unsigned queue);

#endif
