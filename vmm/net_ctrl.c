/* SPDX-License-Identifier: MIT */
/*
 * The control queue (virtio 1.2, section 5.1.6.5): class, command and data to read, one byte to
 * write the answer to.
 *
 * What frames the guest wants to see (promiscuous, its multicast groups) is acknowledged and not
 * acted upon: it gets them all and has to look anyway, as the filter is best effort by the spec.
 */
#include "net_device.h"

#include <errno.h>
#include <string.h>

enum ack {
	ACK_OK,
	ACK_ERROR,
};

/* class << 8 | command */
enum {
	RX_PROMISC = 0x0000,
	RX_ALLMULTI = 0x0001,
	MAC_TABLE_SET = 0x0100,
	MAC_ADDR_SET = 0x0101,
	ANNOUNCE_ACK = 0x0300,
	MQ_PAIRS_SET = 0x0400,
	GUEST_OFFLOADS_SET = 0x0500,
};

#define BATCH 16U

/* The data of a command, which is len bytes and no other number. */
static bool read_data(const struct virtq_chain *c, void *data, size_t len)
{
	return c->out_len == 2 + len && virtq_read(c, 2, data, len) == len;
}

/* Two lists of addresses, unicast and multicast, each behind its u32 count. */
static bool is_mac_table(const struct virtq_chain *c)
{
	uint64_t at = 2;

	for (unsigned i = 0; i < 2; i++) {
		uint32_t count;

		if (virtq_read(c, at, &count, sizeof(count)) != sizeof(count))
			return false;
		at += sizeof(count) + 6ULL * count;
	}
	return at == c->out_len;
}

static bool set_mac(struct virtio_net *n, const struct virtq_chain *c)
{
	struct net_config config = net_get_config(n);

	if (!read_data(c, config.mac, sizeof(config.mac)) || (config.mac[0] & 1))
		return false;
	net_set_config(n, &config);
	return true;
}

static bool ack_announce(struct virtio_net *n, const struct virtq_chain *c)
{
	struct net_config config = net_get_config(n);

	if (c->out_len != 2)
		return false;
	config.status &= (uint16_t)~NET_ANNOUNCE;
	net_set_config(n, &config);
	return true;
}

static bool set_pairs(struct virtio_net *n, const struct virtq_chain *c)
{
	unsigned before = n->pairs;
	uint16_t pairs;

	if (!read_data(c, &pairs, sizeof(pairs)) || pairs == 0 || pairs > n->max_pairs)
		return false;
	n->pairs = pairs;
	if (net_configure(n)) {
		n->pairs = before;
		(void)net_configure(n);
		return false;
	}
	for (unsigned i = pairs; i < before; i++)
		net_drop_held(n, &n->pair[i]);
	/* Those that were added may have been filled and kicked before. */
	virtio_serve_all(&n->v);
	return true;
}

static bool set_offloads(struct virtio_net *n, const struct virtq_chain *c)
{
	uint64_t before = n->guest_offloads, offloads;

	if (!read_data(c, &offloads, sizeof(offloads)) ||
	    (offloads & ~(n->v.features & NET_F_GUEST_OFFLOADS)))
		return false;
	n->guest_offloads = offloads;
	if (net_configure(n) == 0)
		return true;
	n->guest_offloads = before;
	return false;
}

static bool obey(struct virtio_net *n, const struct virtq_chain *c)
{
	struct virtio *v = &n->v;
	uint8_t code[2], flag;

	if (virtq_read(c, 0, code, sizeof(code)) != sizeof(code))
		return false;
	switch (code[0] << 8 | code[1]) {
	case RX_PROMISC:
	case RX_ALLMULTI:
		return virtio_has(v, NET_F_CTRL_RX) && read_data(c, &flag, sizeof(flag)) &&
		       flag <= 1;
	case MAC_TABLE_SET:
		return virtio_has(v, NET_F_CTRL_RX) && is_mac_table(c);
	case MAC_ADDR_SET:
		return virtio_has(v, NET_F_CTRL_MAC_ADDR) && set_mac(n, c);
	case ANNOUNCE_ACK:
		return virtio_has(v, NET_F_GUEST_ANNOUNCE) && ack_announce(n, c);
	case MQ_PAIRS_SET:
		return virtio_has(v, NET_F_MQ) && set_pairs(n, c);
	case GUEST_OFFLOADS_SET:
		return virtio_has(v, NET_F_CTRL_GUEST_OFFLOADS) && set_offloads(n, c);
	default:
		return false;
	}
}

void net_serve_ctrl(struct virtio_net *n, unsigned queue)
{
	struct virtio *v = &n->v;
	struct ram *ram = &v->dev.vm->ram;

	for (unsigned i = 0; i < BATCH; i++) {
		struct virtq_chain c = {.iov = n->iov[0], .max = NET_QUEUE_SIZE};
		uint8_t ack = ACK_OK;

		if (!virtio_take(v, queue, &c))
			return;
		if (c.in_len == 0) {
			virtio_fail(v, "queue %u: no room for an answer", queue);
			return;
		}
		if (!obey(n, &c))
			ack = ACK_ERROR;
		virtq_write(&c, ram, 0, &ack, sizeof(ack));
		virtio_push(v, queue, c.head, sizeof(ack));
	}
	virtio_serve_all(v);
}
