/* SPDX-License-Identifier: MIT */
/*
 * Frames between the netbench payload and the program at the other end of its network device.
 *
 * Each is an Ethernet frame with an IPv4 and a TCP header, so that a large one can be cut up by
 * whoever has to, and is addressed to nobody, so that no protocol stack answers it:
 *
 *	ethernet 14 | ipv4 20 | tcp 20 | struct netframe | content, whose last 8 bytes are a stamp
 *
 * Flow control: the receiver acknowledges, now and then, how many frames have come; the sender has
 * at most a given number of frames under way beyond that. A network device that works loses none,
 * so each frame must have the number after the one before it.
 */
#ifndef GODWIT_BARE_NETFRAME_H
#define GODWIT_BARE_NETFRAME_H

#include <stdbool.h>
#include <stdint.h>

#define NETFRAME_ETH 14u
#define NETFRAME_HEADERS (NETFRAME_ETH + 20u + 20u)
#define NETFRAME_MSS 1448u /* what large frames are cut into */

/* Lengths of frames, Ethernet header included. */
#define NETFRAME_SMALL 96u
#define NETFRAME_MTU (NETFRAME_ETH + 1500u)
#define NETFRAME_LARGE (NETFRAME_HEADERS + 45u * NETFRAME_MSS)

#define NETFRAME_MAX_DEPTH 512u

enum netframe_kind {
	NETFRAME_DATA = 1,
	NETFRAME_ACK, /* number: of the data frame that is expected next */
	NETFRAME_ASK, /* to be sent back as it is, but for the kind */
	NETFRAME_ANSWER,
};

#define NETFRAME_MAGIC 0x6764776eu

struct netframe {
	uint32_t magic;
	uint32_t kind;
	uint64_t number;
	uint32_t len;	 /* of the frame */
	uint32_t errors; /* of an ACK: what the receiver has found wrong so far */
} __attribute__((packed));

#define NETFRAME_STAMP(number) (0x6e65747374616d70ul ^ (number))

/* In front of each frame, to and from devices of virtio as well as taps and packet sockets. */
struct netframe_hdr {
	uint8_t flags;
	uint8_t gso_type;
	uint16_t hdr_len;
	uint16_t gso_size;
	uint16_t csum_start;
	uint16_t csum_offset;
	uint16_t buffers; /* not in those of packet sockets */
} __attribute__((packed));

#define NETFRAME_NEEDS_CSUM 1u
#define NETFRAME_GSO_TCPV4 1u

static inline void netframe_put16(uint8_t *at, uint32_t value)
{
	at[0] = (uint8_t)(value >> 8);
	at[1] = (uint8_t)value;
}

/* The headers of a frame of len bytes, from the guest or to it; content and stamp are the caller's.
 */
static inline void netframe_make(struct netframe_hdr *hdr, uint8_t *frame, uint32_t len,
				 bool from_guest)
{
	uint8_t *ip = frame + NETFRAME_ETH, *tcp = ip + 20;
	uint32_t sum = 0;

	for (uint32_t i = 0; i < NETFRAME_HEADERS; i++)
		frame[i] = 0;
	/* Local addresses that no interface has. */
	frame[0] = frame[6] = 0x02;
	frame[5] = from_guest ? 0xaa : 0xbb;
	frame[11] = from_guest ? 0xbb : 0xaa;
	netframe_put16(frame + 12, 0x0800);
	ip[0] = 0x45;
	netframe_put16(ip + 2, len - NETFRAME_ETH);
	ip[6] = 0x40; /* not to be fragmented */
	ip[8] = 64;
	ip[9] = 6;
	ip[12] = ip[16] = 198; /* 198.18.0.0/15 is for benchmarks */
	ip[13] = ip[17] = 18;
	ip[15] = from_guest ? 2 : 1;
	ip[19] = from_guest ? 1 : 2;
	for (uint32_t i = 0; i < 20; i += 2)
		sum += (uint32_t)ip[i] << 8 | ip[i + 1];
	sum = (sum & 0xffff) + (sum >> 16);
	netframe_put16(ip + 10, ~(sum + (sum >> 16)) & 0xffff);
	netframe_put16(tcp, 7);
	netframe_put16(tcp + 2, 7);
	tcp[12] = 5 << 4;
	tcp[13] = 0x10;
	/* The checksum is the device's work; the pseudo header's part of it is ours. */
	sum = 2 * ((198u << 8 | 18u)) + 1 + 2 + 6 + (len - NETFRAME_ETH - 20);
	sum = (sum & 0xffff) + (sum >> 16);
	netframe_put16(tcp + 16, sum + (sum >> 16));
	*hdr = (struct netframe_hdr){
		.flags = NETFRAME_NEEDS_CSUM,
		.csum_start = NETFRAME_ETH + 20,
		.csum_offset = 16,
		.hdr_len = NETFRAME_HEADERS,
	};
	if (len > NETFRAME_MTU) {
		hdr->gso_type = NETFRAME_GSO_TCPV4;
		hdr->gso_size = NETFRAME_MSS;
	}
}

#endif
