/* SPDX-License-Identifier: MIT */
/* What goes through connections: much, within credit, and what a hostile guest makes up. */
#include "vsock-bulk.h"

/* ---- much data ---- */

static const uint32_t allocs[] = {1, 100, 4096, 5000, 1 << 16, 1 << 20};

START_TEST(much_both_ways)
{
	uint32_t alloc = allocs[_i];
	struct bulk b = {.want_out = BULK, .want_in = BULK, .seed = 1234};
	uint64_t in, out;

	/* Tiny windows take a packet per byte or so. */
	if (alloc < 1000)
		b.want_in = alloc * 5000;
	b.fd = connect_in(g, &b.s, 52, alloc);
	run_bulk(&b, 1);
	in = stats_of(g).to_guest;
	out = stats_of(g).from_guest;
	ck_assert_uint_eq(in, b.want_in);
	ck_assert_uint_eq(out, b.want_out);
	close(b.fd);
}
END_TEST

/* The device's end of a connection. */
static struct vsock_conn *device_end(const struct gsock *of)
{
	struct vsock_conn *c = vsock_mux_find(&to_vsock(g->d->v)->mux, of->port, of->host_port);

	ck_assert_ptr_nonnull(c);
	return c;
}

/* A socket that takes little at a time: most goes through the connection's ring, round and round.
 */
START_TEST(much_through_ring)
{
	struct bulk b = {.want_out = BULK, .seed = 4321, .gulp = 3000};
	const int least = 1;

	b.fd = connect_in(g, &b.s, 52, 4096);
	ck_assert_int_eq(
		setsockopt(device_end(&b.s)->fd, SOL_SOCKET, SO_SNDBUF, &least, sizeof(least)), 0);
	run_bulk(&b, 1);
	/* Nothing is left of it. */
	driver_settle(g->d);
	ck_assert_ptr_null(device_end(&b.s)->buf);
	close(b.fd);
}
END_TEST

/* Without the ring's options, and the other way of connecting. */
START_TEST(much_without_features)
{
	struct bulk b = {.want_out = BULK / 4, .want_in = BULK / 4, .seed = 99};
	int l;

	guest_up(g, 0);
	give_rx(g, RX_BUFS);
	l = host_listen(g, 5);
	b.fd = connect_out(g, &b.s, l, 1000, 5, 1 << 14);
	run_bulk(&b, 1);
	close(b.fd);
	close(l);
}
END_TEST

/* The counters go round: 32 bits, from just below the end of them. */
START_TEST(counters_wrap)
{
	struct bulk b = {.want_out = BULK / 8, .want_in = BULK / 8, .seed = 7};
	struct vsock_conn *c;

	b.fd = connect_in(g, &b.s, 52, 4096);
	c = device_end(&b.s);
	b.s.fwd_cnt = c->tx_cnt = c->peer_fwd_cnt = UINT32_MAX - 10000;
	b.s.tx_cnt = b.s.peer_fwd = c->fwd_cnt = c->told_fwd_cnt = UINT32_MAX - 20000;
	run_bulk(&b, 1);
	ck_assert_uint_lt(c->tx_cnt, BULK);
	ck_assert_uint_lt(c->fwd_cnt, BULK);
	close(b.fd);
}
END_TEST

/* Many at once, and each of them gets on. */
START_TEST(many_with_data)
{
	struct bulk b[40];
	int l = host_listen(g, 5);

	for (unsigned i = 0; i < ARRAY_SIZE(b); i++) {
		b[i] = (struct bulk){.want_out = 200000, .want_in = 200000, .seed = i};
		if (i % 2)
			b[i].fd = connect_in(g, &b[i].s, 52, 4096);
		else
			b[i].fd = connect_out(g, &b[i].s, l, 1000 + i, 5, 4096);
	}
	ck_assert_uint_eq(stats_of(g).connections, ARRAY_SIZE(b));
	run_bulk(b, ARRAY_SIZE(b));
	for (unsigned i = 0; i < ARRAY_SIZE(b); i++)
		close(b[i].fd);
	close(l);
}
END_TEST

/* One that always has something to say does not silence another. */
START_TEST(taking_turns)
{
	static uint8_t much[60000];
	unsigned of_a = 0, of_b = 0;
	struct gsock a, b;
	int fda = connect_in(g, &a, 1, 1 << 20), fdb = connect_in(g, &b, 2, 1 << 20);

	/* They wait for receive buffers, all of the one before any of the other. */
	g->starve = true;
	for (unsigned i = 0; i < RX_BUFS; i++) {
		struct packet p;

		host_say(fda, "x");
		next_packet(g, &p);
	}
	ck_assert_int_eq(send(fda, much, sizeof(much), 0), sizeof(much));
	driver_settle(g->d);
	ck_assert_int_eq(send(fdb, much, sizeof(much), 0), sizeof(much));
	driver_settle(g->d);
	expect_idle(g);
	g->starve = false;
	give_rx(g, 8);
	for (unsigned i = 0; i < 8; i++) {
		struct packet p;

		next_packet(g, &p);
		ck_assert_uint_eq(p.hdr.op, VSOCK_OP_RW);
		of_a += p.hdr.dst_port == 1;
		of_b += p.hdr.dst_port == 2;
	}
	ck_assert_uint_eq(of_a, 4);
	ck_assert_uint_eq(of_b, 4);
	close(fda);
	close(fdb);
}
END_TEST

/* ---- credit ---- */

START_TEST(no_credit_no_data)
{
	int fd = connect_in(g, &s, 52, 5);
	struct packet p;

	host_say(fd, "0123456789");
	expect_packet(g, &s, VSOCK_OP_RW, &p);
	ck_assert_uint_eq(p.hdr.len, 5);
	/* It asks, once. */
	expect_op(g, &s, VSOCK_OP_CREDIT_REQUEST);
	send_op(g, &s, VSOCK_OP_CREDIT_UPDATE, 0);
	expect_silence(g);
	expect_idle(g);
	s.fwd_cnt = 2;
	send_op(g, &s, VSOCK_OP_CREDIT_UPDATE, 0);
	expect_packet(g, &s, VSOCK_OP_RW, &p);
	ck_assert_uint_eq(p.hdr.len, 2);
	ck_assert_mem_eq(p.data, "56", 2);
	expect_op(g, &s, VSOCK_OP_CREDIT_REQUEST);
	/* Taking a buffer back is not a licence. */
	s.buf_alloc = 1;
	s.fwd_cnt = 7;
	send_op(g, &s, VSOCK_OP_CREDIT_UPDATE, 0);
	expect_packet(g, &s, VSOCK_OP_RW, &p);
	ck_assert_uint_eq(p.hdr.len, 1);
	expect_op(g, &s, VSOCK_OP_CREDIT_REQUEST);
	/* Nor is having taken what was never sent. */
	s.buf_alloc = 1 << 16;
	s.fwd_cnt = 1000;
	send_op(g, &s, VSOCK_OP_CREDIT_UPDATE, 0);
	expect_silence(g);
	s.fwd_cnt = 8;
	send_op(g, &s, VSOCK_OP_CREDIT_UPDATE, 0);
	expect_guest_text(g, &s, "89");
	close(fd);
}
END_TEST

START_TEST(credit_is_told)
{
	int fd = connect_in(g, &s, 52, 1 << 16);
	uint32_t before;

	send_text(g, &s, "12345");
	host_expect(g, fd, "12345");
	send_op(g, &s, VSOCK_OP_CREDIT_REQUEST, 0);
	expect_op(g, &s, VSOCK_OP_CREDIT_UPDATE);
	ck_assert_uint_eq(s.peer_fwd, 5);
	ck_assert_uint_eq(s.peer_alloc, VSOCK_BUF);
	before = stuff();
	/* All that the device has not passed on is what it lets the guest send. */
	ck_assert_uint_eq(5 + before - s.peer_fwd, VSOCK_BUF);
	/* With the reader back, credit comes back. */
	do {
		uint8_t data[8192];

		driver_step(g->d, NS_PER_MS);
		if (recv(fd, data, sizeof(data), 0) < 0)
			ck_assert_int_eq(errno, EAGAIN);
	} while (driver_used_idx(g->d, RX) == g->d->queue[RX].seen);
	expect_op(g, &s, VSOCK_OP_CREDIT_UPDATE);
	ck_assert_uint_ge(gsock_credit(&s), VSOCK_BUF / 2);
	close(fd);
}
END_TEST

START_TEST(beyond_credit)
{
	int fd = connect_in(g, &s, 52, 1 << 16);

	stuff();
	send_data(g, &s, "x", 1);
	expect_op(g, &s, VSOCK_OP_RST);
	ck_assert_uint_eq(stats_of(g).connections, 0);
	/* There is no such connection now. */
	send_data(g, &s, "x", 1);
	expect_op(g, &s, VSOCK_OP_RST);
	close(fd);
}
END_TEST

/* ---- hostile headers ---- */

enum { SILENCE, REFUSED, RESET };

static const struct hostile {
	const char *what;
	size_t offset, size;
	uint64_t value;
	unsigned op;
	int answer;
} hostiles[] = {
#define FIELD(f) offsetof(struct vsock_hdr, f), sizeof(((struct vsock_hdr *)0)->f)
	{"somebody else's CID", FIELD(src_cid), 4, VSOCK_OP_RW, SILENCE},
	{"the host's CID", FIELD(src_cid), 2, VSOCK_OP_RW, SILENCE},
	{"high bits in its CID", FIELD(src_cid), CID | 1ULL << 32, VSOCK_OP_RW, SILENCE},
	{"to another guest", FIELD(dst_cid), 4, VSOCK_OP_REQUEST, REFUSED},
	{"to itself", FIELD(dst_cid), CID, VSOCK_OP_RW, REFUSED},
	{"to the hypervisor", FIELD(dst_cid), 0, VSOCK_OP_RW, REFUSED},
	{"high bits in the host's CID", FIELD(dst_cid), 2 | 1ULL << 32, VSOCK_OP_RW, REFUSED},
	{"from another port", FIELD(src_port), 53, VSOCK_OP_RW, REFUSED},
	{"to another port", FIELD(dst_port), 53, VSOCK_OP_RW, REFUSED},
	{"RST to another port", FIELD(dst_port), 53, VSOCK_OP_RST, SILENCE},
	{"more than it sends", FIELD(len), 5, VSOCK_OP_RW, RESET},
	{"much more than it sends", FIELD(len), UINT32_MAX, VSOCK_OP_RW, RESET},
	{"just so that it overflows", FIELD(len), UINT32_MAX - 43, VSOCK_OP_RW, RESET},
	{"no data", FIELD(len), 0, VSOCK_OP_RW, SILENCE},
	{"control with a length", FIELD(len), UINT32_MAX, VSOCK_OP_CREDIT_UPDATE, SILENCE},
	{"SEQPACKET", FIELD(type), 2, VSOCK_OP_RW, REFUSED},
	{"type 0", FIELD(type), 0, VSOCK_OP_REQUEST, REFUSED},
	{"RST of no type", FIELD(type), 0xffff, VSOCK_OP_RST, SILENCE},
	{"op 0", FIELD(op), 0, 0, RESET},
	{"op 8", FIELD(op), 8, 0, RESET},
	{"op 32", FIELD(op), 32, 0, RESET},
	{"op 65535", FIELD(op), 65535, 0, RESET},
	{"a second REQUEST", FIELD(op), VSOCK_OP_REQUEST, 0, RESET},
	{"RESPONSE to nothing", FIELD(op), VSOCK_OP_RESPONSE, 0, RESET},
	{"flags of data", FIELD(flags), UINT32_MAX, VSOCK_OP_RW, SILENCE},
	{"SHUTDOWN of nothing", FIELD(flags), 0xfffffffc, VSOCK_OP_SHUTDOWN, SILENCE},
	{"SHUTDOWN and more", FIELD(flags), UINT32_MAX, VSOCK_OP_SHUTDOWN, RESET},
	{"no buffer", FIELD(buf_alloc), 0, VSOCK_OP_RW, SILENCE},
	{"all the buffer there is", FIELD(buf_alloc), UINT32_MAX, VSOCK_OP_RW, SILENCE},
	{"taken what was not sent", FIELD(fwd_cnt), 0x80000000, VSOCK_OP_RW, SILENCE},
#undef FIELD
};

START_TEST(hostile_header)
{
	const struct hostile *h = &hostiles[_i];
	int fd = connect_in(g, &s, 52, 1 << 16);
	struct vsock_hdr hdr = header_of(&s, h->op);
	struct packet p;

	hdr.len = 4;
	memcpy((uint8_t *)&hdr + h->offset, &h->value, h->size);
	send_raw(g, &hdr, "data", 4);
	driver_run_until(g->d, (reclaim_tx(g), g->tx_used == 0));
	if (h->answer == SILENCE) {
		expect_silence(g);
	} else {
		next_packet(g, &p);
		ck_assert_msg(p.hdr.op == VSOCK_OP_RST, "%s: op %u", h->what, p.hdr.op);
		ck_assert_uint_eq(p.hdr.src_cid, hdr.dst_cid);
		ck_assert_uint_eq(p.hdr.src_port, hdr.dst_port);
		ck_assert_uint_eq(p.hdr.dst_port, hdr.src_port);
		ck_assert_uint_eq(p.hdr.type, hdr.type);
		expect_silence(g);
	}
	/* The connection itself is unharmed, or gone. */
	ck_assert_msg(stats_of(g).connections == (h->answer != RESET), "%s", h->what);
	ck_assert(!driver_needs_reset(g->d));
	if (h->answer == RESET) {
		char byte[8];

		while (recv(fd, byte, sizeof(byte), 0) > 0)
			;
		host_expect_eof(g, fd);
	} else {
		send_text(g, &s, "!");
		driver_settle(g->d);
		if (h->op == VSOCK_OP_RW && h->answer == SILENCE && hdr.len && hdr.src_cid == CID)
			host_expect(g, fd, "data");
		host_expect(g, fd, "!");
	}
	close(fd);
}
END_TEST

START_TEST(data_after_shutdown)
{
	int fd = connect_in(g, &s, 52, 1 << 16);

	send_op(g, &s, VSOCK_OP_SHUTDOWN, VSOCK_SHUT_SEND);
	send_text(g, &s, "more");
	expect_op(g, &s, VSOCK_OP_RST);
	close(fd);
}
END_TEST

START_TEST(data_before_response)
{
	int fd = host_connect(g);
	struct packet p;

	host_say(fd, "CONNECT 52\n");
	next_packet(g, &p);
	s = (struct gsock){.port = 52, .host_port = p.hdr.src_port};
	send_text(g, &s, "early");
	expect_op(g, &s, VSOCK_OP_RST);
	host_expect_eof(g, fd);
	close(fd);
}
END_TEST

/* A mistake of the driver's ends its connections before long, and a reset mends it. */
START_TEST(short_packet)
{
	const struct driver_buf buf = {g->tx_mem, VSOCK_HDR_LEN - 1, false};
	int fd = connect_in(g, &s, 52, 1 << 16);

	driver_run_until(g->d, (reclaim_tx(g), g->tx_used == 0));
	driver_add(g->d, TX, &buf, 1);
	driver_kick(g->d, TX);
	driver_run_until(g->d, driver_needs_reset(g->d));
	host_expect_eof(g, fd);
	close(fd);
	guest_up(g, UINT64_MAX);
	give_rx(g, RX_BUFS);
	fd = connect_in(g, &s, 52, 1 << 16);
	close(fd);
}
END_TEST

START_TEST(short_receive_buffer)
{
	const struct driver_buf buf = {g->tx_mem, VSOCK_HDR_LEN, true};
	int fd;

	guest_up(g, UINT64_MAX);
	driver_add(g->d, RX, &buf, 1);
	driver_kick(g->d, RX);
	fd = host_connect(g);
	host_say(fd, "CONNECT 52\n");
	driver_run_until(g->d, driver_needs_reset(g->d));
	close(fd);
}
END_TEST

static uint32_t rnd(uint32_t below)
{
	static uint32_t x = 2463534242;

	x ^= x << 13;
	x ^= x >> 17;
	x ^= x << 5;
	return x % below;
}

/* A packet of which anything may be wrong, for one of few ports, so that some of it is right. */
static void send_anything(void)
{
	static const uint32_t edges[] = {0, 1, 4096, VSOCK_BUF, UINT32_MAX};
	uint32_t recent = to_vsock(g->d->v)->mux.next_port - 1 - rnd(8);
	struct gsock any = {.port = 50 + rnd(4), .host_port = rnd(2) ? 5 : recent};
	struct vsock_hdr hdr = header_of(&any, 1 + rnd(8));
	static const uint8_t data[4000];
	uint32_t len = rnd(sizeof(data));

	hdr.buf_alloc = rnd(3) ? 1 << 16 : edges[rnd(ARRAY_SIZE(edges))];
	hdr.fwd_cnt = rnd(3) ? rnd(100000) : edges[rnd(ARRAY_SIZE(edges))];
	hdr.len = rnd(10) ? len : edges[rnd(ARRAY_SIZE(edges))];
	hdr.flags = rnd(5);
	if (rnd(30) == 0)
		hdr.src_cid = rnd(5);
	if (rnd(30) == 0)
		hdr.dst_cid = rnd(5);
	if (rnd(30) == 0)
		hdr.type = (uint16_t)rnd(4);
	send_raw(g, &hdr, data, hdr.op == VSOCK_OP_RW ? len : 0);
}

/* What programs of the host may do, to any of a few connections. */
static void host_does_anything(int *fd, int listener)
{
	static const char *const lines[] = {"CONNECT 50\n", "CONNECT 51\n", "CONNECT ", "HELLO\n"};
	static char data[70000];
	const char *line;

	switch (rnd(8)) {
	case 0:
		if (*fd >= 0)
			close(*fd);
		*fd = rnd(2) ? accept4(listener, NULL, NULL, SOCK_NONBLOCK) : host_connect(g);
		break;
	case 1:
		line = lines[rnd(ARRAY_SIZE(lines))];
		send(*fd, line, strlen(line), MSG_NOSIGNAL);
		break;
	case 2:
		shutdown(*fd, (int)rnd(3));
		break;
	case 3:
		send(*fd, data, rnd(sizeof(data)), MSG_NOSIGNAL);
		break;
	default:
		(void)!recv(*fd, data, rnd(sizeof(data)), 0);
	}
}

/*
 * Anything from both sides, in any order, with pauses: the device survives it, and forgets it all.
 * For the sanitizers more than for what is seen.
 */
START_TEST(anything)
{
	int fds[12], l = host_listen(g, 5);
	unsigned answers = 0;

	for (unsigned i = 0; i < ARRAY_SIZE(fds); i++)
		fds[i] = host_connect(g);
	for (unsigned i = 0; i < 20000; i++) {
		struct packet p;

		send_anything();
		host_does_anything(&fds[rnd(ARRAY_SIZE(fds))], l);
		if (rnd(4) == 0)
			driver_step(g->d, 0);
		if (rnd(500) == 0) {
			driver_quiesce(g->d);
			driver_settle(g->d);
			driver_resume(g->d);
		}
		while (take_packet(g, &p))
			answers++;
		ck_assert_uint_le(to_vsock(g->d->v)->mux.n_conns, 400);
	}
	ck_assert_uint_gt(answers, 1000);
	ck_assert_uint_gt(stats_of(g).to_guest, 100000);
	ck_assert_uint_gt(stats_of(g).from_guest, 100000);
	ck_assert(!driver_needs_reset(g->d));
	for (unsigned i = 0; i < ARRAY_SIZE(fds); i++) {
		if (fds[i] >= 0)
			close(fds[i]);
	}
	close(l);
	virtio_set_status(g->d->v, 0);
	driver_run_until(g->d, to_vsock(g->d->v)->mux.n_conns == 0);
	driver_settle(g->d);
	ck_assert(LIST_EMPTY(&to_vsock(g->d->v)->mux.dead));
	guest_up(g, UINT64_MAX);
	give_rx(g, RX_BUFS);
	fds[0] = connect_in(g, &s, 52, 1 << 16);
	close(fds[0]);
}
END_TEST

/* A packet in as many pieces as there can be. */
START_TEST(many_pieces)
{
	int fd = connect_in(g, &s, 52, 1 << 16);
	struct vsock_hdr hdr = header_of(&s, VSOCK_OP_RW);
	struct driver_buf bufs[VSOCK_QUEUE];
	uint8_t bytes[VSOCK_QUEUE + VSOCK_HDR_LEN];
	char text[VSOCK_QUEUE + 1] = "";
	unsigned n = ARRAY_SIZE(bufs);

	hdr.len = (uint32_t)(n - VSOCK_HDR_LEN);
	memcpy(bytes, &hdr, sizeof(hdr));
	for (unsigned i = 0; i < hdr.len; i++)
		text[i] = (char)('a' + i % 26);
	memcpy(bytes + sizeof(hdr), text, hdr.len);
	driver_poke(g->d, g->tx_mem, bytes, n);
	for (unsigned i = 0; i < n; i++)
		bufs[i] = (struct driver_buf){g->tx_mem + i, 1, false};
	driver_run_until(g->d, (reclaim_tx(g), g->tx_used == 0));
	driver_add_indirect(g->d, TX, bufs, n);
	g->tx_used++;
	driver_kick(g->d, TX);
	host_expect(g, fd, text);
	close(fd);
}
END_TEST

/* ---- bounds ---- */

/* Answers that the guest does not take: its packets are not taken either, until it does. */
START_TEST(back_pressure)
{
	unsigned sent = 0, answers = 0;
	struct packet p;

	guest_up(g, UINT64_MAX); /* no receive buffers */
	s = (struct gsock){.port = 1, .host_port = 2};
	do {
		s.port++;
		send_op(g, &s, VSOCK_OP_CREDIT_REQUEST, 0);
		sent++;
		driver_settle(g->d);
		reclaim_tx(g);
	} while (g->tx_used < TX_SLOTS);
	ck_assert_uint_eq(sent, VSOCK_MAX_REPLIES + TX_SLOTS);
	give_rx(g, 1);
	driver_run_until(g->d, (reclaim_tx(g), g->tx_used == TX_SLOTS - 1));
	give_rx(g, RX_BUFS - 1);
	while (answers < sent) {
		next_packet(g, &p);
		ck_assert_uint_eq(p.hdr.op, VSOCK_OP_RST);
		/* In order. */
		ck_assert_uint_eq(p.hdr.dst_port, 2 + answers);
		answers++;
	}
	expect_silence(g);
	reclaim_tx(g);
	ck_assert_uint_eq(g->tx_used, 0);
}
END_TEST

START_TEST(too_many)
{
	static int fds[VSOCK_MAX_CONNS];
	static struct gsock socks[VSOCK_MAX_CONNS];
	int l = host_listen(g, 5), extra;

	for (unsigned i = 0; i < VSOCK_MAX_CONNS; i++)
		fds[i] = connect_out(g, &socks[i], l, 1000 + i, 5, 4096);
	ck_assert_uint_eq(stats_of(g).connections, VSOCK_MAX_CONNS);
	s = (struct gsock){.port = 1, .host_port = 5};
	send_op(g, &s, VSOCK_OP_REQUEST, 0);
	expect_op(g, &s, VSOCK_OP_RST);
	/* A program of the host has to wait for its turn. */
	extra = host_connect(g);
	host_say(extra, "CONNECT 52\n");
	expect_silence(g);
	expect_idle(g);
	ck_assert(host_silent(extra));
	/* All of them work. */
	for (unsigned i = 0; i < VSOCK_MAX_CONNS; i++) {
		char text[16];

		snprintf(text, sizeof(text), "%u", i);
		send_text(g, &socks[i], text);
		host_expect(g, fds[i], text);
		host_say(fds[i], text);
		expect_guest_text(g, &socks[i], text);
	}
	send_op(g, &socks[7], VSOCK_OP_SHUTDOWN, VSOCK_SHUT_BOTH);
	expect_op(g, &socks[7], VSOCK_OP_RST);
	s = (struct gsock){.port = 52, .host_port = VSOCK_FIRST_PORT};
	expect_op(g, &s, VSOCK_OP_REQUEST);
	/* All of them give way to a new driver's. */
	virtio_set_status(g->d->v, 0);
	driver_settle(g->d);
	guest_up(g, UINT64_MAX);
	give_rx(g, RX_BUFS);
	for (unsigned i = 0; i < VSOCK_MAX_CONNS; i++)
		close(fds[i]);
	close(extra);
	extra = connect_in(g, &s, 52, 4096);
	close(extra);
	close(l);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("vsock-data");
	TCase *tc;

	tc = new_case(suite, "data");
	tcase_add_loop_test(tc, much_both_ways, 0, ARRAY_SIZE(allocs));
	tcase_add_test(tc, much_through_ring);
	tcase_add_test(tc, much_without_features);
	tcase_add_test(tc, counters_wrap);
	tcase_add_test(tc, many_with_data);
	tcase_add_test(tc, taking_turns);

	tc = new_case(suite, "credit");
	tcase_add_test(tc, no_credit_no_data);
	tcase_add_test(tc, credit_is_told);
	tcase_add_test(tc, beyond_credit);

	tc = new_case(suite, "hostile");
	tcase_add_loop_test(tc, hostile_header, 0, ARRAY_SIZE(hostiles));
	tcase_add_test(tc, data_after_shutdown);
	tcase_add_test(tc, data_before_response);
	tcase_add_test(tc, short_packet);
	tcase_add_test(tc, short_receive_buffer);
	tcase_add_test(tc, anything);
	tcase_add_test(tc, many_pieces);

	tc = new_case(suite, "bounds");
	tcase_add_test(tc, back_pressure);
	tcase_add_test(tc, too_many);
	return run_suite(suite);
}
