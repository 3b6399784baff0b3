/* SPDX-License-Identifier: MIT */
/* Much data in both directions at once, over any number of connections, each byte looked at. */
#ifndef GODWIT_TESTS_VSOCK_BULK_H
#define GODWIT_TESTS_VSOCK_BULK_H

#include "vsock-guest.h"

#define BULK (10U * 1024 * 1024)

/* Bytes that differ by place: nothing may be lost, doubled or swapped. */
static inline void fill_pattern(uint8_t *p, uint32_t at, size_t n, uint32_t seed)
{
	for (size_t i = 0; i < n; i++) {
		uint32_t x = (at + (uint32_t)i) * 2654435761U ^ seed;

		p[i] = (uint8_t)(x >> 16 ^ x >> 8);
	}
}

static inline void check_pattern(const uint8_t *p, uint32_t at, size_t n, uint32_t seed)
{
	uint8_t want[RX_DATA * 4];

	ck_assert_uint_le(n, sizeof(want));
	fill_pattern(want, at, n, seed);
	ck_assert_msg(memcmp(p, want, n) == 0, "wrong bytes in [%u, %u)", at, at + (uint32_t)n);
}

struct bulk {
	struct gsock s;
	int fd;
	uint32_t want_out, want_in; /* of guest to host, and host to guest */
	uint32_t sent, got;	    /* guest to host */
	uint32_t said, heard;	    /* host to guest */
	uint32_t unread;	    /* heard, and not yet taken out of the guest's buffer */
	uint32_t seed;
	uint32_t gulp; /* most bytes that the host reads at a time, 0 for no limit */
};

static inline bool bulk_done(const struct bulk *b)
{
	return b->got == b->want_out && b->heard == b->want_in;
}

/* The guest sends a packet, if it has credit. */
static inline void bulk_guest_sends(struct bulk *b)
{
	uint8_t data[4096];
	uint32_t n = MIN(gsock_credit(&b->s), 1 + b->sent % sizeof(data));

	reclaim_tx(g);
	n = MIN(n, b->want_out - b->sent);
	if (n == 0 || g->tx_used >= TX_SLOTS / 2)
		return;
	fill_pattern(data, b->sent, n, b->seed);
	send_data(g, &b->s, data, n);
	b->sent += n;
}

static inline void bulk_guest_reads(struct bulk *b)
{
	if (b->unread == 0)
		return;
	b->s.fwd_cnt += b->unread;
	b->unread = 0;
	send_op(g, &b->s, VSOCK_OP_CREDIT_UPDATE, 0);
}

static inline void bulk_guest_hears(struct bulk *bulks, unsigned n)
{
	struct packet p;

	while (take_packet(g, &p)) {
		struct bulk *b = bulks;

		while (b < bulks + n &&
		       (b->s.port != p.hdr.dst_port || b->s.host_port != p.hdr.src_port))
			b++;
		ck_assert(b < bulks + n);
		b->s.peer_alloc = p.hdr.buf_alloc;
		b->s.peer_fwd = p.hdr.fwd_cnt;
		ck_assert_uint_le(b->s.tx_cnt - p.hdr.fwd_cnt, VSOCK_BUF);
		switch (p.hdr.op) {
		case VSOCK_OP_RW:
			check_pattern(p.data, b->heard, p.hdr.len, ~b->seed);
			b->heard += p.hdr.len;
			b->unread += p.hdr.len;
			/* Never more than there is credit for. */
			ck_assert_uint_le(b->unread, b->s.buf_alloc);
			break;
		case VSOCK_OP_CREDIT_UPDATE:
			break;
		case VSOCK_OP_CREDIT_REQUEST:
			send_op(g, &b->s, VSOCK_OP_CREDIT_UPDATE, 0);
			break;
		default:
			ck_abort_msg("op %u in the midst of data", p.hdr.op);
		}
	}
}

static inline void bulk_host(struct bulk *b)
{
	uint8_t data[RX_DATA * 2];
	ssize_t n;

	n = recv(b->fd, data, 1 + b->got % (b->gulp ? b->gulp : sizeof(data)), 0);
	if (n > 0) {
		check_pattern(data, b->got, (size_t)n, b->seed);
		b->got += (uint32_t)n;
	}
	ck_assert(n > 0 || (n < 0 && errno == EAGAIN));
	if (b->said == b->want_in)
		return;
	n = (ssize_t)MIN(sizeof(data), b->want_in - b->said);
	fill_pattern(data, b->said, (size_t)n, ~b->seed);
	n = send(b->fd, data, (size_t)n, MSG_NOSIGNAL);
	ck_assert(n > 0 || (n < 0 && errno == EAGAIN));
	b->said += (uint32_t)MAX(n, 0);
}

static inline void run_bulk(struct bulk *bulks, unsigned n)
{
	uint64_t deadline = now_ns() + 50 * NS_PER_SEC;
	unsigned round = 0, done = 0;

	while (done < n) {
		ck_assert_msg(now_ns() < deadline, "stuck: sent %u got %u said %u heard %u",
			      bulks->sent, bulks->got, bulks->said, bulks->heard);
		done = 0;
		for (struct bulk *b = bulks; b < bulks + n; b++) {
			bulk_guest_sends(b);
			bulk_host(b);
			/* A reader that is not always there at once. */
			if (round % 3 == 0)
				bulk_guest_reads(b);
			done += bulk_done(b);
		}
		driver_step(g->d, 0);
		bulk_guest_hears(bulks, n);
		round++;
	}
	for (struct bulk *b = bulks; b < bulks + n; b++)
		ck_assert_uint_eq(b->sent - b->s.peer_fwd <= VSOCK_BUF, 1);
}

/* Some more in both directions, and stops in the midst of it. */
static inline void bulk_some(struct bulk *b)
{
	struct bulk part = *b;

	part.want_out = MIN(b->want_out, b->got + BULK / 32);
	part.want_in = MIN(b->want_in, b->heard + BULK / 32);
	part.want_out = MAX(part.want_out, b->sent);
	part.want_in = MAX(part.want_in, b->said);
	run_bulk(&part, 1);
	part.want_out = b->want_out;
	part.want_in = b->want_in;
	*b = part;
	for (unsigned i = 0; i < 20; i++) {
		bulk_guest_sends(b);
		bulk_host(b);
		driver_step(g->d, 0);
	}
	driver_settle(g->d);
}

#endif
