/* SPDX-License-Identifier: MIT */
/*
 * virtio-net over taps of a network namespace of its own; at their other end a packet socket, for
 * which frames of any size and kind go in and out with their virtio header.
 */
#include <netinet/in.h>

#include "check-main.h"
#include "net-fixture.h"

static uint8_t frame[NET_FRAME_MAX], got[NET_FRAME_MAX];
static struct virtio_net_hdr seen;

static struct vm_net tap_net(const char *name, uint16_t queues)
{
	struct vm_net cfg = {.kind = VM_NET_TAP, .mac = GUEST_MAC, .queues = queues};

	snprintf(cfg.tap, sizeof(cfg.tap), "%s", name);
	return cfg;
}

/* A tap, a device on it that is up, and a peer. */
static struct driver *up(const char *name, uint16_t queues, uint64_t features, int *peer)
{
	const struct vm_net cfg = tap_net(name, queues);
	struct driver *d;

	tap_add(name, queues > 1 ? IFF_MULTI_QUEUE : 0);
	d = net_new(&cfg);
	driver_up(d, features);
	*peer = tap_peer(name);
	return d;
}

static void down(struct driver *d, int peer)
{
	driver_free(d);
	close(peer);
}

static void need_traffic(struct driver *d, int peer)
{
	struct net_hdr hdr;

	make_frame(frame, 300, peer_mac, guest_mac, 1);
	guest_send(d, 0, NULL, frame, 300);
	ck_assert_uint_eq(tap_peer_recv(peer, d, &seen, got), 300);
	ck_assert_mem_eq(got, frame, 300);
	guest_add_rx(d, 0, 1, 2048);
	driver_kick(d, 0);
	make_frame(frame, 1514, guest_mac, peer_mac, 2);
	tap_peer_send(peer, NULL, frame, 1514);
	ck_assert_uint_eq(guest_recv(d, 0, &hdr, got), 1514);
	ck_assert_mem_eq(got, frame, 1514);
	ck_assert_uint_eq(hdr.gso_type, NET_GSO_NONE);
}

/* A TCP segment of that payload, with a checksum that is still to be finished. */
static size_t make_tcp(uint8_t *f, const uint8_t *to, const uint8_t *from, size_t payload)
{
	uint8_t *tcp = f + L4_AT;
	uint32_t a = 0x0a000001, b = 0x0a000002;

	memset(tcp, 0, 20);
	put16(tcp, 1234);
	put16(tcp + 2, 80);
	tcp[12] = 5 << 4;
	tcp[13] = 0x18;
	put16(tcp + 14, 65535);
	put16(tcp + 16, pseudo_sum(a, b, IPPROTO_TCP, 20 + payload));
	for (size_t i = 0; i < payload; i++)
		tcp[20 + i] = (uint8_t)(i * 13 + (i >> 8));
	return finish_ip(f, to, from, a, b, IPPROTO_TCP, 20 + payload);
}

static const struct net_hdr tso = {
	.flags = NET_HDR_NEEDS_CSUM,
	.gso_type = NET_GSO_TCPV4,
	.hdr_len = 54,
	.gso_size = 1448,
	.csum_start = L4_AT,
	.csum_offset = 16,
};

static struct virtio_net_hdr as_peer(const struct net_hdr *h)
{
	return (struct virtio_net_hdr){
		.flags = h->flags,
		.gso_type = h->gso_type,
		.hdr_len = h->hdr_len,
		.gso_size = h->gso_size,
		.csum_start = h->csum_start,
		.csum_offset = h->csum_offset,
	};
}

/* The checksum over pseudo header and segment is all right. */
static bool tcp_sum_ok(const uint8_t *f, size_t len)
{
	size_t l4 = len - L4_AT;

	return ip_sum(f + L4_AT, l4, pseudo_sum(0x0a000001, 0x0a000002, IPPROTO_TCP, l4)) == 0xffff;
}

START_TEST(offers)
{
	struct driver *d;
	int peer;

	d = up("gw0", 1, 0, &peer);
	ck_assert_uint_eq(d->v->offered & NET_F_HOST_OFFLOADS, NET_F_HOST_OFFLOADS);
	ck_assert_uint_eq(d->v->offered & NET_F_GUEST_OFFLOADS, NET_F_GUEST_OFFLOADS);
	ck_assert_uint_eq(d->v->offered & NET_F_MQ, 0);
	ck_assert_uint_eq(net_see_config(d).mtu, 1500);
	ck_assert_uint_eq(net_see_config(d).max_pairs, 1);
	down(d, peer);
	if_set_mtu("gw0", 9000);
	{
		const struct vm_net cfg = tap_net("gw0", 1);

		d = net_new(&cfg);
		ck_assert_uint_eq(net_see_config(d).mtu, 9000);
		driver_free(d);
	}
	d = up("gw1", 4, 0, &peer);
	ck_assert_uint_ne(d->v->offered & NET_F_MQ, 0);
	ck_assert_uint_eq(net_see_config(d).max_pairs, 4);
	ck_assert_uint_eq(d->v->n_queues, 9);
	down(d, peer);
}
END_TEST

/* What check() says, if it can find out, and acquire() says anyway. */
static void need_refusal(const struct vm_net *cfg, int ret, const char *why, bool check_knows)
{
	struct errmsg err = {""};
	struct driver *d;

	if (check_knows) {
		ck_assert_int_eq(virtio_net_check(cfg, &err), ret);
		ck_assert_msg(strstr(err.text, why) != NULL, "%s", err.text);
		ck_assert_msg(strstr(err.text, cfg->tap) != NULL, "%s", err.text);
		err.text[0] = '\0';
	}
	d = driver_new(&virtio_net_ops, cfg, RAM_MIN);
	ck_assert_int_eq(virtio_net_ops.acquire(&d->v->dev, &err), ret);
	ck_assert_msg(strstr(err.text, why) != NULL, "%s", err.text);
	ck_assert_msg(strstr(err.text, cfg->tap) != NULL, "%s", err.text);
	driver_free(d);
}

static bool sees_taps_in_sys(const char *name)
{
	char path[128];

	snprintf(path, sizeof(path), "/sys/class/net/%s/tun_flags", name);
	return access(path, R_OK) == 0;
}

START_TEST(refuses)
{
	struct vm_net cfg = tap_net("gw-none", 1);
	struct errmsg err = {""};
	struct driver *d;
	bool sys;

	ck_assert_int_eq(virtio_net_check(&cfg, &err), -ENODEV);
	ck_assert_msg(strstr(err.text, "ip tuntap add dev gw-none mode tap user $USER") != NULL,
		      "%s", err.text);
	/* It was not made by looking. */
	ck_assert_uint_eq(if_nametoindex("gw-none"), 0);
	err.text[0] = '\0';
	cfg = tap_net("gw%d", 2);
	ck_assert_int_eq(virtio_net_check(&cfg, &err), -ENODEV);
	ck_assert_msg(strstr(err.text, "multi_queue") != NULL, "%s", err.text);

	tap_add("gw0", 0);
	sys = sees_taps_in_sys("gw0");
	cfg = tap_net("gw0", 1);
	ck_assert_int_eq(virtio_net_check(&cfg, &err), 0);
	cfg = tap_net("gw0", 2);
	need_refusal(&cfg, -EINVAL, "mode tap multi_queue", sys);
	cfg = tap_net("lo", 1);
	need_refusal(&cfg, -EINVAL, "lo is not a tap", sys);

	cfg = tap_net("gw0", 1);
	d = net_new(&cfg);
	need_refusal(&cfg, -EBUSY, "in use by another process", false);
	driver_free(d);

	/* Gone since it was looked at: nobody makes another one. */
	d = driver_new(&virtio_net_ops, &cfg, RAM_MIN);
	if_del("gw0");
	err.text[0] = '\0';
	ck_assert_int_eq(virtio_net_ops.acquire(&d->v->dev, &err), -ENODEV);
	ck_assert_uint_eq(if_nametoindex("gw0"), 0);
	driver_free(d);
	tap_add("gw0", 0);
}
END_TEST

START_TEST(of_somebody_else)
{
	const struct vm_net cfg = tap_net("gw0", 1);
	struct errmsg err = {""};
	bool sys;

	tap_add("gw0", 0);
	sys = sees_taps_in_sys("gw0");
	ck_assert_int_eq(tap_ioctl("gw0", 0, TUNSETOWNER, 0), 0);
	if (seteuid(65534) != 0)
		return; /* in a namespace of one user there is nobody else */
	if (eaccess("/dev/net/tun", R_OK | W_OK) == 0)
		need_refusal(&cfg, -EPERM, "mode tap user $USER", sys);
	else
		need_refusal(&cfg, -EACCES, "read and write", true);
	ck_assert_int_eq(seteuid(0), 0);
	ck_assert_int_eq(tap_ioctl("gw0", 0, TUNSETOWNER, 65534), 0);
	ck_assert_int_eq(seteuid(65534), 0);
	err.text[0] = '\0';
	if (eaccess("/dev/net/tun", R_OK | W_OK) == 0) {
		ck_assert_int_eq(virtio_net_check(&cfg, &err), 0);
		driver_free(net_new(&cfg));
	}
	ck_assert_int_eq(seteuid(0), 0);
}
END_TEST

/* One of several queues does where one is wanted. */
START_TEST(one_of_many)
{
	const struct vm_net cfg = tap_net("gw0", 1);
	struct errmsg err = {""};
	struct driver *d;
	int peer;

	tap_add("gw0", IFF_MULTI_QUEUE);
	ck_assert_int_eq(virtio_net_check(&cfg, &err), 0);
	d = net_new(&cfg);
	driver_up(d, ALL_FEATURES);
	peer = tap_peer("gw0");
	need_traffic(d, peer);
	down(d, peer);
}
END_TEST

START_TEST(both_ways)
{
	struct driver *d;
	int peer;

	d = up("gw0", 1, ALL_FEATURES, &peer);
	for (unsigned i = 0; i < 20; i++)
		need_traffic(d, peer);
	ck_assert_uint_eq(net_count(d).tx_packets, 20);
	ck_assert_uint_eq(net_count(d).rx_packets, 20);
	ck_assert_uint_eq(net_count(d).rx_bytes, 20 * 1514);
	down(d, peer);
}
END_TEST

START_TEST(sends_large)
{
	struct driver *d;
	size_t len;
	int peer;

	d = up("gw0", 1, ALL_FEATURES, &peer);
	len = make_tcp(frame, peer_mac, guest_mac, 60000);
	guest_send(d, 0, &tso, frame, len);
	ck_assert_uint_eq(tap_peer_recv(peer, d, &seen, got), len);
	ck_assert_mem_eq(got, frame, len);
	ck_assert_uint_eq(seen.gso_type, VIRTIO_NET_HDR_GSO_TCPV4);
	ck_assert_uint_eq(seen.gso_size, 1448);
	ck_assert_uint_eq(seen.flags, VIRTIO_NET_HDR_F_NEEDS_CSUM);
	ck_assert_uint_eq(seen.csum_start, L4_AT);
	ck_assert_uint_eq(net_count(d).tx_bytes, len);
	down(d, peer);
}
END_TEST

/* A large frame comes as one when the guest takes those, or cut and with checksums. */
static void receive_large(struct driver *d, int peer, bool whole)
{
	struct virtio_net_hdr to_kernel = as_peer(&tso);
	size_t len = make_tcp(frame, guest_mac, peer_mac, 50000), done = 0;
	struct net_hdr hdr;

	guest_add_rx(d, 0, 60, 1536);
	driver_kick(d, 0);
	tap_peer_send(peer, &to_kernel, frame, len);
	while (done < 50000) {
		size_t n = guest_recv(d, 0, &hdr, got);

		ck_assert_uint_gt(n, 54);
		ck_assert_mem_eq(got + 54, frame + 54 + done, n - 54);
		done += n - 54;
		if (whole) {
			ck_assert_uint_eq(n, len);
			ck_assert_uint_eq(hdr.gso_type, NET_GSO_TCPV4);
			ck_assert_uint_eq(hdr.gso_size, 1448);
			ck_assert_uint_eq(hdr.flags, NET_HDR_NEEDS_CSUM);
			ck_assert_uint_eq(hdr.csum_start, L4_AT);
			ck_assert_uint_eq(hdr.csum_offset, 16);
			ck_assert_uint_eq(hdr.num_buffers, (12 + len + 1535) / 1536);
		} else {
			ck_assert_uint_le(n, 1502);
			ck_assert_uint_eq(hdr.gso_type, NET_GSO_NONE);
			ck_assert_uint_eq(hdr.flags, 0);
			ck_assert(tcp_sum_ok(got, n));
		}
	}
	ck_assert_uint_eq(done, 50000);
	/* Give the buffers that are left back, for the next one. */
	driver_up(d, d->v->features);
}

START_TEST(receives_large)
{
	struct driver *d;
	int peer;

	d = up("gw0", 1, ALL_FEATURES, &peer);
	receive_large(d, peer, true);
	receive_large(d, peer, true);
	/* Another driver takes over, that does not want them. */
	driver_up(d, ALL_FEATURES & ~NET_F_GUEST_OFFLOADS);
	receive_large(d, peer, false);
	driver_up(d, ALL_FEATURES & ~NET_F_GUEST_CSUM);
	receive_large(d, peer, false);
	driver_up(d, ALL_FEATURES);
	receive_large(d, peer, true);
	down(d, peer);
}
END_TEST

START_TEST(offloads_by_command)
{
	uint64_t none = 0, csum = NET_F_GUEST_CSUM, odd = NET_F_GUEST_OFFLOADS | NET_F_HOST_TSO4;
	uint64_t all = NET_F_GUEST_OFFLOADS;
	struct virtio_net_hdr to_kernel = as_peer(&tso);
	struct net_hdr hdr;
	struct driver *d;
	size_t len;
	int peer;

	d = up("gw0", 1, ALL_FEATURES, &peer);
	ck_assert_uint_eq(guest_ctrl(d, 2, 5, 0, &odd, 8), 1);
	ck_assert_uint_eq(guest_ctrl(d, 2, 5, 0, &none, 8), 0);
	guest_add_rx(d, 0, 60, 1536);
	driver_kick(d, 0);
	len = make_tcp(frame, guest_mac, peer_mac, 3000);
	tap_peer_send(peer, &to_kernel, frame, len);
	for (unsigned i = 0; i < 3; i++) {
		size_t n = guest_recv(d, 0, &hdr, got);

		ck_assert_uint_le(n, 1502);
		ck_assert(tcp_sum_ok(got, n));
	}
	ck_assert_uint_eq(guest_ctrl(d, 2, 5, 0, &csum, 8), 0);
	tap_peer_send(peer, &to_kernel, frame, len);
	for (unsigned i = 0; i < 3; i++)
		ck_assert_uint_le(guest_recv(d, 0, &hdr, got), 1502);
	ck_assert_uint_eq(guest_ctrl(d, 2, 5, 0, &all, 8), 0);
	tap_peer_send(peer, &to_kernel, frame, len);
	ck_assert_uint_eq(guest_recv(d, 0, &hdr, got), len);
	/* One that was queued before the guest turned it off is not for it any more. */
	virtio_quiesce(&d->v->dev, now_ns() + NS_PER_SEC);
	tap_peer_send(peer, &to_kernel, frame, len);
	net_dev(d)->guest_offloads = 0;
	driver_resume(d);
	driver_run_until(d, net_count(d).rx_dropped == 1);
	down(d, peer);
}
END_TEST

/* What the kernel does not believe is dropped and acknowledged; nothing else suffers. */
START_TEST(hostile_headers)
{
	struct net_hdr bad[] = {tso, tso, tso, tso, tso, tso};
	struct driver *d;
	size_t len;
	int peer;

	d = up("gw0", 1, ALL_FEATURES, &peer);
	bad[0].gso_type = 0x7f;
	bad[1].gso_size = 0;
	bad[2].csum_start = 0xffff;
	bad[3].hdr_len = 0xffff;
	bad[4].csum_start = 60000;
	bad[4].gso_type = NET_GSO_NONE;
	bad[5].csum_offset = 0xfffe;
	len = make_tcp(frame, peer_mac, guest_mac, 4000);
	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
		guest_send(d, 0, &bad[i], frame, len);
		ck_assert_msg(net_count(d).tx_dropped == i + 1, "header %u is believed", i);
	}
	driver_settle(d);
	ck_assert_uint_eq(tap_peer_take(peer, &seen, got), 0);
	ck_assert_uint_eq(net_count(d).tx_packets, 0);
	ck_assert(net_link_is_up(d));
	need_traffic(d, peer);
	down(d, peer);
}
END_TEST

START_TEST(tap_that_is_down)
{
	struct driver *d;
	int peer;

	d = up("gw0", 1, ALL_FEATURES, &peer);
	if_set_up("gw0", false);
	make_frame(frame, 100, peer_mac, guest_mac, 1);
	guest_send(d, 0, NULL, frame, 100);
	ck_assert_uint_eq(net_count(d).tx_dropped, 1);
	if_set_up("gw0", true);
	/* The socket hears of that as an error. */
	(void)recv(peer, got, sizeof(got), 0);
	need_traffic(d, peer);
	down(d, peer);
}
END_TEST

START_TEST(tap_goes_and_comes)
{
	struct driver *d;
	int peer;

	d = up("gw0", 1, ALL_FEATURES, &peer);
	guest_add_rx(d, 0, 1, 2048);
	driver_kick(d, 0);
	driver_settle(d);
	if_del("gw0");
	driver_run_until(d, !net_link_is_up(d));
	close(peer);
	tap_add("gw0", 0);
	driver_run_until(d, net_link_is_up(d));
	peer = tap_peer("gw0");
	need_traffic(d, peer);
	receive_large(d, peer, true);
	close(peer);

	/* Found out by a send: nothing was being waited for. */
	driver_up(d, ALL_FEATURES);
	driver_quiesce(d);
	driver_resume(d);
	if_del("gw0");
	ck_assert(net_link_is_up(d));
	make_frame(frame, 300, peer_mac, guest_mac, 1);
	guest_send(d, 0, NULL, frame, 300);
	ck_assert(!net_link_is_up(d));
	tap_add("gw0", 0);
	driver_run_until(d, net_link_is_up(d));
	peer = tap_peer("gw0");
	need_traffic(d, peer);
	down(d, peer);
}
END_TEST

/* Frames of many flows; which of two queues each came by. */
static void spread(struct driver *d, int peer, unsigned *by)
{
	const unsigned flows = 64;

	by[0] = by[1] = 0;
	for (unsigned i = 0; i < flows; i++) {
		uint8_t *udp = frame + L4_AT;

		put16(udp, 1000 + i);
		put16(udp + 2, 53);
		put16(udp + 4, 8 + 100);
		put16(udp + 6, 0);
		tap_peer_send(peer, NULL, frame,
			      finish_ip(frame, guest_mac, peer_mac, 0x0a000001 + i, 0x0a000002,
					IPPROTO_UDP, 108));
	}
	while (by[0] + by[1] < flows) {
		struct net_hdr hdr;

		driver_step(d, 10 * NS_PER_MS);
		for (unsigned q = 0; q < 2; q++) {
			while (guest_take(d, q, &hdr, got))
				by[q]++;
		}
	}
}

START_TEST(several_queues)
{
	struct driver *d;
	uint16_t pairs;
	unsigned by[2];
	int peer;

	d = up("gw0", 2, ALL_FEATURES, &peer);
	for (unsigned q = 0; q < 2; q++) {
		guest_add_rx(d, q, 200, 256);
		driver_kick(d, 2 * q);
	}
	/* One pair until the driver asks for more. */
	spread(d, peer, by);
	ck_assert_uint_eq(by[1], 0);
	make_frame(frame, 100, peer_mac, guest_mac, 1);
	guest_queue(d, 1, &(struct net_hdr){0}, frame, 100, 1);
	driver_kick_always(d, 3);
	driver_settle(d);
	ck_assert_uint_eq(tap_peer_take(peer, &seen, got), 0);

	pairs = 3;
	ck_assert_uint_eq(guest_ctrl(d, 4, 4, 0, &pairs, 2), 1);
	pairs = 0;
	ck_assert_uint_eq(guest_ctrl(d, 4, 4, 0, &pairs, 2), 1);
	pairs = 2;
	ck_assert_uint_eq(guest_ctrl(d, 4, 4, 0, &pairs, 2), 0);
	/* What was queued before goes out now. */
	driver_wait_used(d, 3);
	ck_assert_uint_eq(tap_peer_recv(peer, d, &seen, got), 100);
	spread(d, peer, by);
	ck_assert_uint_gt(by[0], 0);
	ck_assert_uint_gt(by[1], 0);
	for (unsigned i = 0; i < 10; i++) {
		make_frame(frame, 100, peer_mac, guest_mac, i);
		guest_send(d, i % 2, NULL, frame, 100);
		ck_assert_uint_eq(tap_peer_recv(peer, d, &seen, got), 100);
		ck_assert_mem_eq(got, frame, 100);
	}

	/* And they move with it. */
	{
		const struct vm_net cfg = tap_net("gw0", 2);
		struct driver *to;

		to = driver_move(d, &cfg);
		d->v->dev.ops->release(&d->v->dev);
		driver_free(d);
		net_acquired(to);
		driver_resume(to);
		d = to;
	}
	spread(d, peer, by);
	ck_assert_uint_gt(by[0], 0);
	ck_assert_uint_gt(by[1], 0);
	pairs = 1;
	ck_assert_uint_eq(guest_ctrl(d, 4, 4, 0, &pairs, 2), 0);
	spread(d, peer, by);
	ck_assert_uint_eq(by[1], 0);

	/* A guest that moves while it boots anew, when the last driver had several. */
	pairs = 2;
	ck_assert_uint_eq(guest_ctrl(d, 4, 4, 0, &pairs, 2), 0);
	virtio_set_status(d->v, 0);
	{
		const struct vm_net cfg = tap_net("gw0", 2);
		struct driver *to = driver_move(d, &cfg);

		driver_free(d);
		while (tap_peer_take(peer, &seen, got))
			;
		net_acquired(to);
		driver_resume(to);
		driver_up(to, ALL_FEATURES & ~NET_F_MQ);
		need_traffic(to, peer);
		down(to, peer);
	}
}
END_TEST

/* A driver that does not know of several has its control queue behind the first pair. */
START_TEST(several_queues_unused)
{
	uint8_t on = 1;
	uint16_t pairs = 2;
	struct driver *d;
	int peer;

	d = up("gw0", 4, ALL_FEATURES & ~NET_F_MQ, &peer);
	ck_assert_uint_eq(guest_ctrl(d, 2, 0, 0, &on, 1), 0);
	ck_assert_uint_eq(guest_ctrl(d, 2, 4, 0, &pairs, 2), 1);
	need_traffic(d, peer);
	down(d, peer);
}
END_TEST

/* The next frame from the guest's side that is no announcement; those are counted. */
static size_t next_frame(struct driver *d, int peer, unsigned *announcements)
{
	for (;;) {
		size_t len = tap_peer_recv(peer, d, &seen, got);

		if (!is_announcement(got, len, guest_mac))
			return len;
		(*announcements)++;
	}
}

/*
 * To the same tap: it is held on to up to release(), so that acquire() before it fails, and let go
 * of by then although frames were being waited for. What comes in between is not lost.
 */
START_TEST(moves_on_one_tap)
{
	const struct vm_net cfg = tap_net("gw0", 1);
	struct errmsg err = {""};
	unsigned announcements = 0;
	struct driver *d, *to;
	struct net_hdr hdr;
	int peer;

	d = up("gw0", 1, ALL_FEATURES, &peer);
	guest_add_rx(d, 0, 8, 2048);
	driver_kick(d, 0);
	driver_settle(d);
	ck_assert(net_dev(d)->pair[0].rx_poll.pending);
	to = driver_move(d, &cfg);
	ck_assert_int_eq(virtio_net_ops.acquire(&to->v->dev, &err), -EBUSY);
	d->v->dev.ops->release(&d->v->dev);
	net_acquired(to);
	make_frame(frame, 400, guest_mac, peer_mac, 3);
	tap_peer_send(peer, NULL, frame, 400);
	make_frame(frame, 500, peer_mac, guest_mac, 4);
	guest_queue(to, 0, &(struct net_hdr){0}, frame, 500, 2);
	driver_watch(to);
	{
		uint64_t end = now_ns() + QUIET_NS;

		while (now_ns() < end) {
			driver_step(to, 5 * NS_PER_MS);
			ck_assert_uint_eq(tap_peer_take(peer, &seen, got), 0);
		}
	}
	ck_assert_uint_eq(driver_check_dirty(to), 0);
	driver_free(d);

	driver_resume(to);
	ck_assert_uint_eq(net_see_config(to).status, NET_LINK_UP | NET_ANNOUNCE);
	ck_assert_uint_eq(next_frame(to, peer, &announcements), 500);
	make_frame(frame, 400, guest_mac, peer_mac, 3);
	ck_assert_uint_eq(guest_recv(to, 0, &hdr, got), 400);
	ck_assert_mem_eq(got, frame, 400);
	driver_check_dirty(to);
	while (announcements < 5) {
		size_t len = tap_peer_recv(peer, to, &seen, got);

		ck_assert(is_announcement(got, len, guest_mac));
		announcements++;
	}
	ck_assert_uint_eq(guest_ctrl(to, 2, 3, 0, NULL, 0), 0);
	ck_assert_uint_eq(net_see_config(to).status, NET_LINK_UP);
	/* The guest's offloads are set on the tap again. */
	{
		struct virtio_net_hdr to_kernel = as_peer(&tso);
		size_t len = make_tcp(frame, guest_mac, peer_mac, 6000);

		tap_peer_send(peer, &to_kernel, frame, len);
		ck_assert_uint_eq(guest_recv(to, 0, &hdr, got), len);
		ck_assert_uint_eq(hdr.gso_type, NET_GSO_TCPV4);
	}
	down(to, peer);
}
END_TEST

START_TEST(moves_to_another_tap)
{
	struct vm_net cfg = tap_net("gw1", 1);
	struct errmsg err = {""};
	struct driver *d, *to;
	struct sbuf shape;
	int peer, other;

	tap_add("gw1", 0);
	other = tap_peer("gw1");
	d = up("gw0", 1, ALL_FEATURES, &peer);
	to = driver_move(d, &cfg);
	net_acquired(to);
	driver_resume(to);
	for (unsigned i = 0; i < 5; i++) {
		size_t len = tap_peer_recv(other, to, &seen, got);

		ck_assert(is_announcement(got, len, guest_mac));
	}
	ck_assert_uint_eq(tap_peer_take(peer, &seen, got), 0);
	need_traffic(to, other);
	driver_free(to);
	driver_free(d);

	/* The guest may send frames that the other tap cannot take: told before anything moves. */
	if_set_mtu("gw0", 9000);
	cfg = tap_net("gw0", 1);
	d = net_new(&cfg);
	driver_save_shape(d, &shape);
	driver_free(d);
	cfg = tap_net("gw1", 1);
	d = driver_new(&virtio_net_ops, &cfg, RAM_MIN);
	ck_assert_int_eq(driver_load_shape(d, shape.data, shape.len, &err), -ENOTSUP);
	ck_assert_msg(strstr(err.text, "ip link set dev gw1 mtu 9000") != NULL, "%s", err.text);
	driver_free(d);
	/* One that takes more is as good; the guest goes on with what it has. */
	if_set_mtu("gw1", 9001);
	err.text[0] = '\0';
	d = driver_new(&virtio_net_ops, &cfg, RAM_MIN);
	ck_assert_int_eq(driver_load_shape(d, shape.data, shape.len, &err), 0);
	sb_free(&shape);
	driver_save_shape(d, &shape);
	ck_assert_int_eq(shape.data[shape.len - 2] | shape.data[shape.len - 1] << 8, 9000);
	sb_free(&shape);
	driver_free(d);
	close(peer);
	close(other);
}
END_TEST

/* At rest nothing is read from the tap nor written to it; the tap is let go of and taken back. */
START_TEST(quiet_at_rest)
{
	struct driver *d;
	struct net_hdr hdr;
	uint64_t end;
	int peer;

	d = up("gw0", 1, ALL_FEATURES, &peer);
	guest_add_rx(d, 0, 8, 2048);
	driver_kick(d, 0);
	driver_settle(d);
	driver_quiesce(d);
	driver_watch(d);
	make_frame(frame, 400, guest_mac, peer_mac, 3);
	tap_peer_send(peer, NULL, frame, 400);
	make_frame(frame, 500, peer_mac, guest_mac, 4);
	guest_queue(d, 0, &(struct net_hdr){0}, frame, 500, 2);
	driver_kick_always(d, 0);
	driver_kick_always(d, 1);
	end = now_ns() + QUIET_NS;
	while (now_ns() < end) {
		driver_step(d, 5 * NS_PER_MS);
		ck_assert_uint_eq(tap_peer_take(peer, &seen, got), 0);
	}
	ck_assert_uint_eq(driver_check_dirty(d), 0);
	ck_assert_uint_eq(driver_used_idx(d, 0), 0);
	ck_assert_uint_eq(driver_used_idx(d, 1), 0);
	driver_resume(d);
	ck_assert_uint_eq(guest_recv(d, 0, &hdr, got), 400);
	ck_assert_uint_eq(tap_peer_recv(peer, d, &seen, got), 500);
	driver_wait_used(d, 1);

	driver_quiesce(d);
	d->v->dev.ops->release(&d->v->dev);
	driver_free(net_new(
		&(struct vm_net){.kind = VM_NET_TAP, .mac = GUEST_MAC, .queues = 1, .tap = "gw0"}));
	net_acquired(d);
	driver_resume(d);
	need_traffic(d, peer);
	down(d, peer);
}
END_TEST

int main(void)
{
	const TTest *const tests[] = {
		offers,
		refuses,
		of_somebody_else,
		one_of_many,
		both_ways,
		sends_large,
		receives_large,
		offloads_by_command,
		hostile_headers,
		tap_that_is_down,
		tap_goes_and_comes,
		several_queues,
		several_queues_unused,
		moves_on_one_tap,
		moves_to_another_tap,
		quiet_at_rest,
	};
	const char *why = own_network();

	if (why)
		return check_skip("net-tap", why);
	return check_main("net-tap", tests, ARRAY_SIZE(tests));
}
