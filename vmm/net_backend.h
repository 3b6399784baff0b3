/* SPDX-License-Identifier: MIT */
/*
 * What carries a network device's frames outside: a tap, or passt.
 *
 * A backend knows nothing of rings and guests. Each function is called with the device's lock held
 * (so never two at a time) and none waits, but ready() and the end of a child in close().
 *
 * "Gone" (-ENOLINK) is what a backend is when it can carry nothing more: the tap was removed, passt
 * has ended or speaks nonsense. It is closed then, and may be opened again.
 */
#ifndef GODWIT_NET_BACKEND_H
#define GODWIT_NET_BACKEND_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "log.h"
#include "vm_devices.h"

/*
 * In front of each frame, in both directions (virtio 1.2, section 5.1.6; little-endian). It is
 * also what a tap takes and gives (TUNSETVNETHDRSZ, TUNSETVNETLE).
 */
struct net_hdr {
	uint8_t flags;
	uint8_t gso_type;
	uint16_t hdr_len;
	uint16_t gso_size;
	uint16_t csum_start;
	uint16_t csum_offset;
	uint16_t num_buffers; /* towards the guest: chains that the frame takes */
};
_Static_assert(sizeof(struct net_hdr) == 12, "virtio 1.2, 5.1.6");

#define NET_HDR_NEEDS_CSUM 1U
#define NET_HDR_DATA_VALID 2U
#define NET_GSO_NONE 0U
#define NET_GSO_TCPV4 1U
#define NET_GSO_TCPV6 4U
#define NET_GSO_ECN 0x80U /* may be added to the two */

/* A frame is an Ethernet header at least; at most the largest IP packet, tagged. */
#define NET_FRAME_MIN 14U
#define NET_FRAME_MAX (65535U + 18U)

#define NET_MTU_MIN 68U
#define NET_MAX_PAIRS ((unsigned)VM_MAX_DEVICE_QUEUES)

/* Of frames towards the guest, what the guest can do without. */
enum net_offload {
	NET_OFFLOAD_CSUM = 1, /* a checksum; the others need this one, too */
	NET_OFFLOAD_TSO4 = 2, /* being cut to the MTU */
	NET_OFFLOAD_TSO6 = 4,
	NET_OFFLOAD_ECN = 8,
};

/* A frame for the guest; data is the backend's, until its next recv() of that pair or close(). */
struct net_frame {
	struct net_hdr hdr;
	const uint8_t *data;
	size_t len;
};

struct net_backend;

struct net_backend_ops {
	const char *name;
	bool offloads; /* carries what struct net_hdr can ask for, both ways */
	bool pairs;    /* can have more than one queue pair */

	/* Could this host open it? Without taking anything. 0, or -errno with remedy in err. */
	int (*check)(const struct vm_net *cfg, struct errmsg *err);

	/* A closed one. cfg is copied. -errno. */
	int (*create)(struct net_backend **out, const struct vm_net *cfg);
	void (*destroy)(struct net_backend *b); /* closes it first */

	/* Attaches or starts; one pair, no offloads. -errno with cause and remedy in err. */
	int (*open)(struct net_backend *b, struct errmsg *err);

	/* May be opened by a machine whose guest is not here yet: nobody else can want it. */
	bool (*harmless)(const struct net_backend *b);

	/* Waits until an opened one works, at most until deadline_ns. -errno in err. May be NULL.
	 */
	int (*ready)(struct net_backend *b, uint64_t deadline_ns, struct errmsg *err);

	/* Gives up everything that open() took. Fills b->gone, unless recv() or so did. */
	void (*close)(struct net_backend *b);

	/* Pairs in use, and enum net_offload bits. -errno. May be NULL where there is no choice. */
	int (*configure)(struct net_backend *b, unsigned pairs, unsigned offloads);

	/* To be polled for POLLIN before recv() and for POLLOUT before send(). */
	int (*fd)(const struct net_backend *b, unsigned pair);

	/* Readable when it is gone; NULL where only recv() tells. */
	int (*watch_fd)(const struct net_backend *b);

	/* The next frame: 1, 0 when there is none now, -ENOLINK. */
	int (*recv)(struct net_backend *b, unsigned pair, struct net_frame *f);

	/*
	 * Sends the frame of len bytes behind the struct net_hdr that iov[0 .. n) starts with. 0,
	 * or 1 when the rest of it is for flush() to send; -EAGAIN and nothing is taken, -ENOLINK,
	 * and any other -errno when this frame is refused and dropped.
	 */
	int (*send)(struct net_backend *b, unsigned pair, const struct iovec *iov, uint32_t n,
		    size_t len);

	/* Sends the rest: 0, -EAGAIN, -ENOLINK. May be NULL. */
	int (*flush)(struct net_backend *b);
};

struct net_backend {
	const struct net_backend_ops *ops;
	struct vm_net cfg;
	bool open;
	uint16_t mtu; /* of frames without their header; known from create() on */
	struct errmsg gone;
};

extern const struct net_backend_ops net_tap_ops;
extern const struct net_backend_ops net_passt_ops;

#endif
