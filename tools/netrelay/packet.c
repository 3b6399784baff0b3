/* SPDX-License-Identifier: MIT */
#include "packet.h"

#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>

#define TCP_FLAGS 13 /* offset of the byte in TCP's header */
#define TCP_CHECK 16
#define TCP_SEQ 4
#define IP_LENGTH 2
#define IP_ID 4
#define IP_CHECK 10

static uint16_t get16(const uint8_t *p)
{
	return (uint16_t)(p[0] << 8 | p[1]);
}

static void put16(uint8_t *p, uint32_t v)
{
	p[0] = (uint8_t)(v >> 8);
	p[1] = (uint8_t)v;
}

static uint32_t get32(const uint8_t *p)
{
	return (uint32_t)get16(p) << 16 | get16(p + 2);
}

static void put32(uint8_t *p, uint32_t v)
{
	put16(p, v >> 16);
	put16(p + 2, v & 0xffff);
}

/* The internet's sum (RFC 1071), not inverted. */
static uint16_t sum(const uint8_t *p, uint32_t len, uint32_t start)
{
	uint64_t s = start;

	for (; len > 1; p += 2, len -= 2)
		s += get16(p);
	if (len)
		s += (uint64_t)p[0] << 8;
	while (s >> 16)
		s = (s & 0xffff) + (s >> 16);
	return (uint16_t)s;
}

/* What TCP's sum has in it besides the segment: addresses, protocol, length. */
static uint16_t pseudo_sum(const uint8_t *ip, uint32_t tcp_len)
{
	return sum(ip + 12, 8, IPPROTO_TCP + tcp_len);
}

static void sum_ip(uint8_t *ip, uint32_t len)
{
	put16(ip + IP_CHECK, 0);
	put16(ip + IP_CHECK, (uint16_t)~sum(ip, len, 0));
}

struct packet *packet_new(uint32_t len)
{
	struct packet *p = malloc(sizeof(*p) + len);

	if (p)
		p->len = len;
	return p;
}

bool packet_parse(const struct packet *p, struct packet_shape *s)
{
	uint32_t ip, tcp;

	if (p->len < sizeof(struct iphdr) || p->data[0] >> 4 != 4)
		return false;
	ip = (p->data[0] & 15U) * 4;
	if (ip < sizeof(struct iphdr) || ip > p->len || get16(p->data + IP_LENGTH) != p->len)
		return false;
	*s = (struct packet_shape){.header = ip, .ip = ip, .mss = p->len - ip, .segments = 1};
	if (p->data[9] == IPPROTO_TCP && p->len >= ip + sizeof(struct tcphdr) &&
	    !(get16(p->data + 6) & 0x3fff)) { /* not a fragment */
		tcp = (p->data[ip + 12] >> 4) * 4U;
		if (tcp < sizeof(struct tcphdr) || ip + tcp > p->len)
			return false;
		s->tcp = true;
		s->header = ip + tcp;
		s->mss = p->len - s->header;
	}
	if (p->vnet.gso_type == VIRTIO_NET_HDR_GSO_NONE)
		return true;
	if (p->vnet.gso_type != VIRTIO_NET_HDR_GSO_TCPV4 || !s->tcp || !p->vnet.gso_size)
		return false;
	if (p->vnet.gso_size < s->mss) {
		s->segments = (s->mss + p->vnet.gso_size - 1) / p->vnet.gso_size;
		s->mss = p->vnet.gso_size;
	}
	return true;
}

static uint32_t payload_of(const struct packet *p, const struct packet_shape *s, uint32_t from,
			   uint32_t n)
{
	uint32_t all = p->len - s->header, start = from * s->mss;

	return all - start < n * s->mss ? all - start : n * s->mss;
}

uint32_t packet_wire_bytes(const struct packet *p, const struct packet_shape *s, uint32_t from,
			   uint32_t n)
{
	return n * s->header + payload_of(p, s, from, n);
}

struct packet *packet_take(const struct packet *p, const struct packet_shape *s, uint32_t from,
			   uint32_t n)
{
	uint32_t payload = payload_of(p, s, from, n);
	struct packet *t = packet_new(s->header + payload);
	uint8_t *tcp;

	if (!t)
		return NULL;
	t->vnet = p->vnet;
	memcpy(t->data, p->data, s->header);
	memcpy(t->data + s->header, p->data + s->header + from * s->mss, payload);
	if (n == s->segments)
		return t;

	put16(t->data + IP_LENGTH, t->len);
	put16(t->data + IP_ID, get16(p->data + IP_ID) + from);
	sum_ip(t->data, s->ip);
	tcp = t->data + s->ip;
	put32(tcp + TCP_SEQ, get32(tcp + TCP_SEQ) + from * s->mss);
	/* The end of a run ends its last segment, and its first one says that the window shrank. */
	if (from + n < s->segments)
		tcp[TCP_FLAGS] &= (uint8_t) ~(TH_FIN | TH_PUSH);
	if (from)
		tcp[TCP_FLAGS] &= (uint8_t)~0x80;
	put16(tcp + TCP_CHECK, pseudo_sum(t->data, t->len - s->ip));
	if (n == 1) {
		t->vnet.gso_type = VIRTIO_NET_HDR_GSO_NONE;
		t->vnet.gso_size = 0;
	}
	return t;
}

/* What a network device would have done. */
static void make_sum(struct packet *p)
{
	uint32_t start = p->vnet.csum_start, at = start + p->vnet.csum_offset;
	uint16_t s;

	if (p->vnet.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM && at + 2 <= p->len) {
		s = (uint16_t)~sum(p->data + start, p->len - start, 0);
		put16(p->data + at, s ? s : 0xffff);
	}
	p->vnet = (struct virtio_net_hdr){.flags = 0};
}

static void flip(uint8_t *data, uint64_t bit)
{
	data[bit / 8] ^= (uint8_t)(1U << bit % 8);
}

void packet_damage(struct packet *p, uint64_t bit)
{
	make_sum(p);
	flip(p->data, bit % (p->len * 8UL));
}

bool packet_forge(struct packet *p, uint64_t bit)
{
	struct packet_shape s;
	uint8_t *tcp;

	if (!packet_parse(p, &s) || !s.tcp || p->len == s.header)
		return false;
	flip(p->data + s.header, bit % ((p->len - s.header) * 8UL));
	tcp = p->data + s.ip;
	put16(tcp + TCP_CHECK, 0);
	put16(tcp + TCP_CHECK,
	      (uint16_t)~sum(tcp, p->len - s.ip, pseudo_sum(p->data, p->len - s.ip)));
	p->vnet = (struct virtio_net_hdr){.flags = 0};
	return true;
}
