/* SPDX-License-Identifier: MIT */
/*
 * A packet on its way from one TUN device to the other: IPv4, with the header of struct
 * virtio_net_hdr (virtio 1.2, 5.1.6) before it, as IFF_VNET_HDR has it.
 *
 * Theory of operation: TCP hands whole runs of segments to a device that says it can cut them up,
 * with one header, and sums that are not made yet; at a gigabit that is what makes a relay in user
 * space possible. Networks lose and damage single segments, so a run can be taken apart into
 * shorter ones, down to a single segment, each with the header that it would have had.
 */
#ifndef GODWIT_NETRELAY_PACKET_H
#define GODWIT_NETRELAY_PACKET_H

#include <linux/virtio_net.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PACKET_MAX 65536U /* bytes of IP */

struct packet {
	struct packet *next;
	uint64_t due_ns;
	uint32_t len; /* of data: the IP packet */
	struct virtio_net_hdr vnet;
	uint8_t data[]; /* right behind vnet: both are read and written as one */
};

/* What the device reads and writes of p. */
#define PACKET_IO(p) ((void *)((char *)(p) + offsetof(struct packet, vnet)))
#define PACKET_IO_LEN(p) (sizeof((p)->vnet) + (p)->len)

/* How a packet divides. One that is not a run is one segment. */
struct packet_shape {
	uint32_t header; /* bytes of IP and TCP header that each segment has; without TCP: of IP */
	uint32_t ip;	 /* of these: IP */
	uint32_t mss;	 /* payload of each segment but the last */
	uint32_t segments;
	bool tcp;
};

/* Uninitialised, for len bytes; NULL without memory. The caller's, to free(). */
struct packet *packet_new(uint32_t len);

/* False: not an IPv4 packet that is whole, or a run of something else than TCP segments. */
bool packet_parse(const struct packet *p, struct packet_shape *s);

/* Bytes of IP that n of its segments from `from` on are on the wire, headers included. */
uint32_t packet_wire_bytes(const struct packet *p, const struct packet_shape *s, uint32_t from,
			   uint32_t n);

/* A new packet of n segments from `from` on; NULL without memory. */
struct packet *packet_take(const struct packet *p, const struct packet_shape *s, uint32_t from,
			   uint32_t n);

/*
 * Flips one bit of a packet of one segment, having made its sums first: so the receiver's kernel
 * throws it away. bit is any number; it is taken modulo the packet's bits.
 */
void packet_damage(struct packet *p, uint64_t bit);

/*
 * The same to the payload of TCP, with sums that are right again: the receiver's program gets it.
 * False: has no such payload, and is as it was.
 */
bool packet_forge(struct packet *p, uint64_t bit);

#endif
