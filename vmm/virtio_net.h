/* SPDX-License-Identifier: MIT */
/*
 * virtio-net (virtio 1.2, section 5.1): an Ethernet card whose frames go to a tap of the host, or
 * through passt, which needs no privilege.
 *
 *	tap	checksum and segmentation offload both ways, up to VM_MAX_DEVICE_QUEUES pairs
 *	user	no offloads, one pair, an MTU of 65520; TCP and UDP ports forwarded to the guest
 *
 * Migration: the destination attaches to its tap, or has passt work, when it takes the guest over,
 * not before; the source has let go by then, so on one host the two may use the same tap. At its
 * first resume there the guest's address is announced: by RARP frames of ours, several with growing
 * delays, so that switches learn its new place; and by the guest itself, which is asked to
 * (GUEST_ANNOUNCE). A frame that was read for the guest and found no buffers is lost if the guest
 * moves. With the user backend TCP connections through passt are not carried along: they end at
 * passt, and passt's end with the source.
 *
 * A backend that goes away (the tap is removed, passt dies) takes the guest's link down, is tried
 * again with growing delays and, when it is back, takes the link up.
 */
#ifndef GODWIT_VIRTIO_NET_H
#define GODWIT_VIRTIO_NET_H

#include <stdbool.h>
#include <stdint.h>

#include "device.h"
#include "vm_devices.h"

/* config: const struct vm_net *. Its MAC must be chosen: not 0, no multicast one. */
extern const struct device_ops virtio_net_ops;

/*
 * Can this host have that device? To be asked before it is added, for init() has no words: 0, or
 * -errno with what is wrong and its remedy in err. Takes nothing.
 */
int virtio_net_check(const struct vm_net *net, struct errmsg *err);

/* Since the device was made, on this host. Sent and received as the guest sees it. */
struct net_counters {
	uint64_t rx_packets, rx_bytes; /* Ethernet frames without virtio's header */
	uint64_t rx_dropped;	       /* that the guest had no use for, or no room */
	uint64_t tx_packets, tx_bytes;
	uint64_t tx_dropped; /* malformed, refused by the backend, or while the link was down */
	bool link_up;
};

/* Any thread. */
void virtio_net_counters(struct device *d, struct net_counters *c);

#endif
