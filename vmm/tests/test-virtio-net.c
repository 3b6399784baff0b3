/* SPDX-License-Identifier: MIT */
/*
 * virtio-net over its rings, with a stand-in for passt at the other end: what is the same with
 * every backend, and the life of a backend that can go away.
 */
#include "check-main.h"
#include "net-fixture.h"

#define RX 0U
#define TX 1U
#define CONTROL 2U

static struct fake fake;
static uint8_t frame[NET_FRAME_MAX + 16], got[NET_FRAME_MAX + 16];
static const struct net_hdr plain;

static struct vm_net user_net(void)
{
	return (struct vm_net){.kind = VM_NET_USER, .mac = GUEST_MAC, .queues = 1};
}

static struct driver *up(uint64_t features)
{
	const struct vm_net cfg = user_net();
	struct driver *d;

	fake_init(&fake);
	d = net_new(&cfg);
	fake_accept(&fake);
	driver_up(d, features);
	return d;
}

static void down(struct driver *d)
{
	driver_free(d);
	fake_destroy(&fake);
}

static void need_frame(struct driver *d, const uint8_t *want, size_t len)
{
	ck_assert_uint_eq(fake_recv(&fake, d, got), len);
	ck_assert_mem_eq(got, want, len);
}

/* A frame of that length arrives at the guest whole; in how many buffers. */
static unsigned need_received(struct driver *d, size_t len)
{
	struct net_hdr hdr;

	ck_assert_uint_eq(guest_recv(d, 0, &hdr, got), len);
	ck_assert_mem_eq(got, frame, len);
	ck_assert_uint_eq(hdr.flags, 0);
	ck_assert_uint_eq(hdr.gso_type, NET_GSO_NONE);
	return hdr.num_buffers;
}

/* Frames go both ways. */
static void need_traffic(struct driver *d)
{
	make_frame(frame, 300, peer_mac, guest_mac, 11);
	guest_send(d, 0, NULL, frame, 300);
	need_frame(d, frame, 300);
	guest_add_rx(d, 0, 1, 2048);
	driver_kick(d, RX);
	make_frame(frame, 200, guest_mac, peer_mac, 12);
	fake_send(&fake, frame, 200);
	need_received(d, 200);
}

START_TEST(offers)
{
	struct driver *d = up(0);
	struct net_config c = net_see_config(d);
	uint64_t need = NET_F_MAC | NET_F_STATUS | NET_F_MTU | NET_F_MRG_RXBUF | NET_F_CTRL_VQ |
			NET_F_CTRL_RX | NET_F_CTRL_MAC_ADDR | NET_F_GUEST_ANNOUNCE;

	ck_assert_uint_eq(d->v->offered & need, need);
	ck_assert_uint_eq(d->v->offered & (NET_F_HOST_OFFLOADS | NET_F_GUEST_OFFLOADS | NET_F_MQ),
			  0);
	ck_assert_mem_eq(c.mac, guest_mac, 6);
	ck_assert_uint_eq(c.status, NET_LINK_UP);
	ck_assert_uint_eq(c.mtu, 65520);
	ck_assert_uint_eq(d->v->ops->type, 1);
	down(d);
}
END_TEST

/* What check() says, and that init() refuses the same. */
static void need_refusal(const struct vm_net *cfg, bool by_init, const char *why)
{
	struct errmsg err = {""};
	struct vm vm = {0};
	struct loop loop;

	ck_assert_int_lt(virtio_net_check(cfg, &err), 0);
	ck_assert_msg(strstr(err.text, why) != NULL, "%s", err.text);
	if (!by_init)
		return;
	ck_assert_int_eq(loop_init(&loop), 0);
	vm.loop = &loop;
	{
		struct device *d = calloc(1, virtio_net_ops.size);

		d->ops = &virtio_net_ops;
		d->vm = &vm;
		ck_assert_int_eq(virtio_net_ops.init(d, cfg), -EINVAL);
		free(d);
	}
	loop_destroy(&loop);
}

START_TEST(refuses)
{
	struct errmsg err = {""};
	struct vm_net cfg = user_net();

	fake_init(&fake);
	ck_assert_int_eq(virtio_net_check(&cfg, &err), 0);
	cfg.mac[0] = 0x53;
	need_refusal(&cfg, true, "53:54:00:12:34:56");
	memset(cfg.mac, 0, 6);
	need_refusal(&cfg, true, "00:00:00:00:00:00");
	cfg = user_net();
	cfg.queues = 0;
	need_refusal(&cfg, true, "queues");
	cfg.queues = VM_MAX_DEVICE_QUEUES + 1;
	need_refusal(&cfg, true, "queues");
	cfg.queues = 2;
	need_refusal(&cfg, true, "need a tap");
	cfg = user_net();
	cfg.kind = 7;
	need_refusal(&cfg, true, "kind");
	cfg = user_net();
	cfg.n_forwards = 1;
	cfg.forward[0] = (struct vm_forward){.host_port = 0, .guest_port = 22};
	need_refusal(&cfg, true, "port 0");
	cfg.forward[0] = (struct vm_forward){.host_port = 22, .guest_port = 0};
	need_refusal(&cfg, true, "port 0");
	/* Nothing but an address becomes a part of passt's command line. */
	cfg.forward[0] =
		(struct vm_forward){.host = "1.2.3.4/5,6", .host_port = 1, .guest_port = 1};
	need_refusal(&cfg, true, "1.2.3.4/5,6");
	cfg.forward[0] = (struct vm_forward){.host = "localhost", .host_port = 1, .guest_port = 1};
	need_refusal(&cfg, true, "localhost");
	cfg = user_net();
	setenv("PATH", "/nowhere::/nowhere/else", 1);
	need_refusal(&cfg, false, "install the Debian package passt");
	unsetenv("PATH");
	need_refusal(&cfg, false, "install the Debian package passt");
	fake_destroy(&fake);
}
END_TEST

START_TEST(not_installed)
{
	const struct vm_net cfg = user_net();
	struct errmsg err = {""};
	struct driver *d;

	setenv("PATH", "/nowhere", 1);
	d = driver_new(&virtio_net_ops, &cfg, RAM_MIN);
	ck_assert_int_eq(virtio_net_ops.acquire(&d->v->dev, &err), -ENOENT);
	ck_assert_msg(strstr(err.text, "install the Debian package passt") != NULL, "%s", err.text);
	driver_free(d);
}
END_TEST

/* It starts and ends again: the reason it gave is the message. */
START_TEST(does_not_start)
{
	const struct vm_net cfg = user_net();
	struct errmsg err = {""};
	struct driver *d;

	fake_init(&fake);
	setenv("FAKE_PASST_FAILS", "1", 1);
	d = driver_new(&virtio_net_ops, &cfg, RAM_MIN);
	ck_assert_int_lt(virtio_net_ops.acquire(&d->v->dev, &err), 0);
	ck_assert_msg(strstr(err.text, "exit status 1: Failed to bind, exiting") != NULL, "%s",
		      err.text);
	/* Whoever tries again gets it when it works. */
	unsetenv("FAKE_PASST_FAILS");
	net_acquired(d);
	fake_accept(&fake);
	driver_up(d, ALL_FEATURES);
	need_traffic(d);
	down(d);
}
END_TEST

START_TEST(command_line)
{
	struct vm_net cfg = user_net();
	struct driver *d;

	cfg.n_forwards = 3;
	cfg.forward[0] = (struct vm_forward){.host_port = 2222, .guest_port = 22};
	cfg.forward[1] = (struct vm_forward){
		.udp = true, .host = "127.0.0.1", .host_port = 5353, .guest_port = 53};
	cfg.forward[2] = (struct vm_forward){.host = "::1", .host_port = 8080, .guest_port = 80};
	fake_init(&fake);
	d = driver_new(&virtio_net_ops, &cfg, RAM_MIN);
	/* Its ports may still be another machine's that the guest is to come from. */
	driver_settle(d);
	ck_assert(!is_readable(fake.listener));
	net_acquired(d);
	fake_accept(&fake);
	ck_assert_msg(strstr(fake.args, "--tcp-ports 2222:22 --udp-ports 127.0.0.1/5353:53 "
					"--tcp-ports ::1/8080:80 ") != NULL,
		      "%s", fake.args);
	ck_assert_ptr_nonnull(strstr(fake.args, "--foreground --quiet --fd 3 "));
	ck_assert_ptr_nonnull(strstr(fake.args, "--mtu 65520 "));
	down(d);
}
END_TEST

START_TEST(sends)
{
	struct driver *d = up(ALL_FEATURES);
	struct net_counters c;
	size_t sent = 0;

	for (unsigned parts = 1; parts <= 8; parts++) {
		size_t len = 14 + parts * parts * 1000;

		make_frame(frame, len, peer_mac, guest_mac, parts);
		guest_queue(d, 0, &plain, frame, len, parts);
		driver_kick(d, TX);
		need_frame(d, frame, len);
		ck_assert_uint_eq(driver_wait_used(d, TX).len, 0);
		ck_assert_uint_ge(driver_irqs(d, TX), 1);
		sent += len;
	}
	c = net_count(d);
	ck_assert_uint_eq(c.tx_packets, 8);
	ck_assert_uint_eq(c.tx_bytes, sent);
	ck_assert_uint_eq(c.tx_dropped, 0);
	ck_assert(c.link_up);
	down(d);
}
END_TEST

/* More than the socket takes: what is left waits in the ring, nothing gets lost or torn. */
static void fill(uint64_t features)
{
	struct driver *d = up(features);
	unsigned n = 200, at_once = 0;
	struct driver_used e;

	for (unsigned i = 0; i < n; i++) {
		make_frame(frame, 30000 + i, peer_mac, guest_mac, i);
		guest_queue(d, 0, &plain, frame, 30000 + i, 3);
	}
	driver_kick(d, TX);
	driver_settle(d);
	while (driver_take_used(d, TX, &e))
		at_once++;
	ck_assert_uint_lt(at_once, n / 2);
	ck_assert_uint_gt(at_once, 0);
	for (unsigned i = 0; i < n; i++) {
		make_frame(frame, 30000 + i, peer_mac, guest_mac, i);
		need_frame(d, frame, 30000 + i);
	}
	for (unsigned i = at_once; i < n; i++)
		driver_wait_used(d, TX);
	ck_assert_uint_eq(net_count(d).tx_packets, n);
	ck_assert_uint_eq(net_count(d).tx_dropped, 0);
	need_traffic(d);
	down(d);
}

START_TEST(send_when_full)
{
	fill(ALL_FEATURES);
}
END_TEST

START_TEST(send_when_full_without_event_index)
{
	fill(ALL_FEATURES & ~VIRTIO_RING_EVENT_IDX);
}
END_TEST

START_TEST(receives)
{
	struct driver *d = up(ALL_FEATURES);
	struct net_counters c;

	guest_add_rx(d, 0, 8, 2048);
	driver_kick(d, RX);
	driver_settle(d);
	driver_irqs(d, RX);
	driver_watch(d);
	make_frame(frame, 1514, guest_mac, peer_mac, 1);
	fake_send(&fake, frame, 1514);
	ck_assert_uint_eq(need_received(d, 1514), 1);
	ck_assert_uint_ge(driver_irqs(d, RX), 1);
	ck_assert_uint_ge(driver_check_dirty(d), 2);
	make_frame(frame, 14, guest_mac, peer_mac, 2);
	fake_send(&fake, frame, 14);
	ck_assert_uint_eq(need_received(d, 14), 1);
	c = net_count(d);
	ck_assert_uint_eq(c.rx_packets, 2);
	ck_assert_uint_eq(c.rx_bytes, 1528);
	ck_assert_uint_eq(c.rx_dropped, 0);
	down(d);
}
END_TEST

/* Over several buffers, the largest frame over 44 of them. */
START_TEST(receives_merged)
{
	struct driver *d = up(ALL_FEATURES);

	guest_add_rx(d, 0, 60, 1500);
	driver_kick(d, RX);
	driver_watch(d);
	make_frame(frame, 5000, guest_mac, peer_mac, 1);
	fake_send(&fake, frame, 5000);
	ck_assert_uint_eq(need_received(d, 5000), 4);
	make_frame(frame, NET_FRAME_MAX, guest_mac, peer_mac, 2);
	fake_send(&fake, frame, NET_FRAME_MAX);
	ck_assert_uint_eq(need_received(d, NET_FRAME_MAX), 44);
	/* Exactly full: not one more. */
	make_frame(frame, 3000 - 12, guest_mac, peer_mac, 3);
	fake_send(&fake, frame, 3000 - 12);
	ck_assert_uint_eq(need_received(d, 3000 - 12), 2);
	driver_check_dirty(d);
	down(d);
}
END_TEST

START_TEST(receives_unmerged)
{
	struct driver *d = up(ALL_FEATURES & ~NET_F_MRG_RXBUF);
	struct driver_used e;

	guest_add_rx(d, 0, 1, 70000);
	guest_add_rx(d, 0, 4, 1526);
	driver_kick(d, RX);
	make_frame(frame, 65000, guest_mac, peer_mac, 1);
	fake_send(&fake, frame, 65000);
	ck_assert_uint_eq(need_received(d, 65000), 1);
	/* The next buffer is too small; it stays for a frame that it can take. */
	fake_send(&fake, frame, 1515);
	make_frame(frame, 1514, guest_mac, peer_mac, 2);
	fake_send(&fake, frame, 1514);
	ck_assert_uint_eq(need_received(d, 1514), 1);
	ck_assert(!driver_take_used(d, RX, &e));
	ck_assert_uint_eq(net_count(d).rx_dropped, 1);
	down(d);
}
END_TEST

/* A frame waits for buffers, and for enough of them; the driver is asked for a kick. */
static void wait_for_buffers(uint64_t features)
{
	struct driver *d = up(features);

	make_frame(frame, 5000, guest_mac, peer_mac, 1);
	fake_send(&fake, frame, 5000);
	driver_settle(d);
	ck_assert_uint_eq(driver_used_idx(d, RX), 0);
	for (unsigned i = 0; i < 3; i++) {
		guest_add_rx(d, 0, 1, 1500);
		ck_assert(driver_kick(d, RX));
		driver_settle(d);
		ck_assert_uint_eq(driver_used_idx(d, RX), 0);
	}
	guest_add_rx(d, 0, 1, 1500);
	ck_assert(driver_kick(d, RX));
	ck_assert_uint_eq(need_received(d, 5000), 4);
	ck_assert_uint_eq(net_count(d).rx_dropped, 0);
	need_traffic(d);
	down(d);
}

START_TEST(waits_for_buffers)
{
	wait_for_buffers(ALL_FEATURES);
}
END_TEST

START_TEST(waits_for_buffers_without_event_index)
{
	wait_for_buffers(ALL_FEATURES & ~VIRTIO_RING_EVENT_IDX);
}
END_TEST

/* A frame that even a full ring cannot take is dropped, and stands in nobody's way. */
START_TEST(never_fits)
{
	struct driver *d = up(ALL_FEATURES);

	guest_add_rx(d, 0, NET_QUEUE_SIZE, 64);
	driver_kick(d, RX);
	make_frame(frame, 60000, guest_mac, peer_mac, 1);
	fake_send(&fake, frame, 60000);
	make_frame(frame, 600, guest_mac, peer_mac, 2);
	fake_send(&fake, frame, 600);
	ck_assert_uint_eq(need_received(d, 600), 10);
	ck_assert_uint_eq(net_count(d).rx_dropped, 1);
	down(d);
}
END_TEST

/* More than one turn's worth. */
START_TEST(floods)
{
	struct driver *d = up(ALL_FEATURES);

	guest_add_rx(d, 0, NET_QUEUE_SIZE, 256);
	driver_kick(d, RX);
	driver_settle(d);
	for (unsigned i = 0; i < 200; i += 100) {
		for (unsigned k = i; k < i + 100; k++) {
			make_frame(frame, 60 + k % 90, guest_mac, peer_mac, k);
			fake_send(&fake, frame, 60 + k % 90);
		}
		for (unsigned k = i; k < i + 100; k++) {
			make_frame(frame, 60 + k % 90, guest_mac, peer_mac, k);
			ck_assert_uint_eq(need_received(d, 60 + k % 90), 1);
		}
	}
	down(d);
}
END_TEST

/* The stream comes in pieces that know nothing of frames. */
START_TEST(stream_in_pieces)
{
	static uint8_t stream[200000];
	struct driver *d = up(ALL_FEATURES);
	size_t lens[] = {14, 60, 1514, 9014, 15, 65534, 65553, 100, 14}, end = 0, at = 0;

	guest_add_rx(d, 0, 120, 1500);
	driver_kick(d, RX);
	for (unsigned i = 0; i < ARRAY_SIZE(lens); i++) {
		uint32_t be = htonl((uint32_t)lens[i]);

		memcpy(stream + end, &be, 4);
		make_frame(stream + end + 4, lens[i], guest_mac, peer_mac, i);
		end += 4 + lens[i];
	}
	/* Byte by byte at first, then in odd lengths. */
	for (unsigned i = 0; i < ARRAY_SIZE(lens);) {
		struct net_hdr hdr;
		size_t len;

		if (at < end) {
			size_t piece = at < 200 ? 1 : MIN((size_t)7919, end - at);

			ck_assert_int_eq(send(fake.frames, stream + at, piece, 0), (ssize_t)piece);
			at += piece;
		}
		driver_step(d, at < end ? 0 : 10 * NS_PER_MS);
		driver_settle(d);
		while ((len = guest_take(d, 0, &hdr, got))) {
			ck_assert_uint_lt(i, ARRAY_SIZE(lens));
			ck_assert_uint_eq(len, lens[i]);
			make_frame(frame, len, guest_mac, peer_mac, i);
			ck_assert_mem_eq(got, frame, len);
			i++;
		}
	}
	ck_assert_uint_eq(at, end);
	down(d);
}
END_TEST

/* The link goes down, comes up with another one, and works. */
static void need_comeback(struct driver *d)
{
	driver_run_until(d, !net_link_is_up(d));
	ck_assert_uint_ge(driver_config_irqs(d), 1);
	/* Nobody hears what is sent meanwhile, but it is acknowledged. */
	guest_send(d, 0, NULL, frame, 100);
	ck_assert_uint_ge(net_count(d).tx_dropped, 1);
	driver_run_until(d, net_link_is_up(d));
	ck_assert_uint_ge(driver_config_irqs(d), 1);
	fake_accept(&fake);
	need_traffic(d);
}

START_TEST(impossible_length)
{
	static const uint32_t lens[] = {0x7fffffff, NET_FRAME_MAX + 1, 13, 0};
	struct driver *d = up(ALL_FEATURES);

	guest_add_rx(d, 0, 4, 1500);
	driver_kick(d, RX);
	for (unsigned i = 0; i < 2; i++) {
		uint32_t be = htonl(lens[2 * i]);

		ck_assert_int_eq(send(fake.frames, &be, 4, 0), 4);
		need_comeback(d);
	}
	down(d);
}
END_TEST

START_TEST(child_dies)
{
	struct driver *d = up(ALL_FEATURES);

	need_traffic(d);
	fake_exit(&fake, 7);
	need_comeback(d);
	/* Found out by a send, too. */
	shutdown(fake.frames, SHUT_RD);
	make_frame(frame, 100, peer_mac, guest_mac, 1);
	guest_send(d, 0, NULL, frame, 100);
	need_comeback(d);
	down(d);
}
END_TEST

/* It cannot be started again for a while. */
START_TEST(stays_away)
{
	struct driver *d = up(ALL_FEATURES);
	uint64_t begin;

	setenv("PATH", "/nowhere", 1);
	fake_exit(&fake, 1);
	driver_run_until(d, !net_link_is_up(d));
	begin = now_ns();
	driver_run_until(d, now_ns() - begin > 500 * NS_PER_MS);
	ck_assert(!net_link_is_up(d));
	ck_assert_uint_ge(net_dev(d)->retry_ns, 400 * NS_PER_MS);
	setenv("PATH", fake.dir, 1);
	driver_run_until(d, net_link_is_up(d));
	fake_accept(&fake);
	need_traffic(d);
	down(d);
}
END_TEST

START_TEST(hostile_sends)
{
	struct driver *d = up(ALL_FEATURES);
	static const size_t bad[] = {0, 1, 13, NET_FRAME_MAX + 1, 1 << 20, 40 << 20};

	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
		struct driver_buf b = {.gpa = DRIVER_FIRST_GPA, .len = (uint32_t)(12 + bad[i])};

		driver_add(d, TX, &b, 1);
		driver_kick(d, TX);
		driver_wait_used(d, TX);
		ck_assert_uint_eq(net_count(d).tx_dropped, i + 1);
	}
	/* A part to write is nothing to send. */
	{
		struct driver_buf b[] = {{DRIVER_FIRST_GPA, 12 + 100, false},
					 {DRIVER_FIRST_GPA, 100, true}};

		driver_add(d, TX, b, 2);
		driver_kick(d, TX);
		ck_assert_uint_eq(fake_recv(&fake, d, got), 100);
		driver_wait_used(d, TX);
	}
	need_traffic(d);
	/* Not even a header. */
	{
		struct driver_buf b = {.gpa = DRIVER_FIRST_GPA, .len = 11};

		driver_add(d, TX, &b, 1);
		driver_kick(d, TX);
		driver_run_until(d, driver_needs_reset(d));
	}
	need_silence(d, fake.frames);
	/* The driver starts over. */
	driver_up(d, ALL_FEATURES);
	need_traffic(d);
	down(d);
}
END_TEST

START_TEST(hostile_buffers)
{
	struct driver *d = up(ALL_FEATURES);

	guest_add_rx(d, 0, 2, 12);
	driver_kick(d, RX);
	make_frame(frame, 100, guest_mac, peer_mac, 1);
	fake_send(&fake, frame, 100);
	driver_run_until(d, driver_needs_reset(d));
	driver_up(d, ALL_FEATURES);
	need_traffic(d);
	/* A chain that has nothing to write into. */
	{
		struct driver_buf b = {.gpa = DRIVER_FIRST_GPA, .len = 2000};

		driver_add(d, RX, &b, 1);
		driver_kick(d, RX);
	}
	fake_send(&fake, frame, 100);
	driver_run_until(d, driver_needs_reset(d));
	down(d);
}
END_TEST

static void mac_table(uint8_t *t, uint32_t unicast, uint32_t multicast)
{
	memset(t, 0x33, 8 + 6 * (unicast + multicast));
	memcpy(t, &unicast, 4);
	memcpy(t + 4 + 6 * unicast, &multicast, 4);
}

START_TEST(control)
{
	static const uint8_t other[6] = {0x52, 0x54, 0, 9, 8, 7}, multi[6] = {1, 0, 0x5e, 0, 0, 1};
	struct driver *d = up(ALL_FEATURES);
	uint8_t on = 1, odd = 2, table[128];
	uint16_t pairs = 1;
	uint64_t offloads = 0;

	ck_assert_uint_eq(guest_ctrl(d, CONTROL, 0, 0, &on, 1), 0);
	ck_assert_uint_eq(guest_ctrl(d, CONTROL, 0, 1, &on, 1), 0);
	ck_assert_uint_eq(guest_ctrl(d, CONTROL, 0, 0, &odd, 1), 1);
	ck_assert_uint_eq(guest_ctrl(d, CONTROL, 0, 0, table, 2), 1);
	ck_assert_uint_eq(guest_ctrl(d, CONTROL, 0, 0, NULL, 0), 1);
	ck_assert_uint_eq(guest_ctrl(d, CONTROL, 0, 2, &on, 1), 1); /* RX_EXTRA is not offered */
	mac_table(table, 1, 2);
	ck_assert_uint_eq(guest_ctrl(d, CONTROL, 1, 0, table, 26), 0);
	ck_assert_uint_eq(guest_ctrl(d, CONTROL, 1, 0, table, 25), 1);
	ck_assert_uint_eq(guest_ctrl(d, CONTROL, 1, 0, table, 27), 1);
	mac_table(table, 0, 0);
	ck_assert_uint_eq(guest_ctrl(d, CONTROL, 1, 0, table, 8), 0);
	memset(table, 0xff, 8);
	ck_assert_uint_eq(guest_ctrl(d, CONTROL, 1, 0, table, 8), 1);
	ck_assert_uint_eq(guest_ctrl(d, CONTROL, 1, 1, multi, 6), 1);
	ck_assert_mem_eq(net_see_config(d).mac, guest_mac, 6);
	ck_assert_uint_eq(guest_ctrl(d, CONTROL, 1, 1, other, 6), 0);
	ck_assert_mem_eq(net_see_config(d).mac, other, 6);
	ck_assert_uint_eq(guest_ctrl(d, CONTROL, 4, 0, &pairs, 2), 1); /* nor is MQ */
	ck_assert_uint_eq(guest_ctrl(d, CONTROL, 5, 0, &offloads, 8), 1);
	ck_assert_uint_eq(guest_ctrl(d, CONTROL, 77, 77, NULL, 0), 1);
	/* The address it had is the one it has after a reset. */
	driver_up(d, ALL_FEATURES);
	ck_assert_mem_eq(net_see_config(d).mac, guest_mac, 6);
	/* A command without a command, and one without room for an answer. */
	{
		uint64_t answer = driver_alloc(d, 1);
		struct driver_buf b[] = {{DRIVER_FIRST_GPA, 1, false}, {answer, 1, true}};
		uint8_t ack = 0xaa;

		driver_add(d, CONTROL, b, 2);
		driver_kick(d, CONTROL);
		driver_wait_used(d, CONTROL);
		driver_peek(d, answer, &ack, 1);
		ck_assert_uint_eq(ack, 1);
		driver_add(d, CONTROL, b, 1);
		driver_kick(d, CONTROL);
		driver_run_until(d, driver_needs_reset(d));
	}
	down(d);
}
END_TEST

START_TEST(no_control_queue)
{
	struct driver *d = up(ALL_FEATURES & ~NET_F_CTRL_VQ);
	struct driver_buf b[] = {{DRIVER_FIRST_GPA, 2, false}, {DRIVER_FIRST_GPA, 1, true}};

	driver_add(d, CONTROL, b, 2);
	driver_kick_always(d, CONTROL);
	need_traffic(d);
	ck_assert_uint_eq(driver_used_idx(d, CONTROL), 0);
	down(d);
}
END_TEST

/* Between quiesce and resume nothing is sent, received or stored; after it all of it is. */
START_TEST(quiet_at_rest)
{
	struct driver *d = up(ALL_FEATURES);
	unsigned n = 60;
	struct driver_used e;
	uint16_t used[2];
	size_t waiting = 0;

	guest_add_rx(d, 0, 8, 2048);
	driver_kick(d, RX);
	for (unsigned i = 0; i < n; i++) {
		make_frame(frame, 40000, peer_mac, guest_mac, i);
		guest_queue(d, 0, &plain, frame, 40000, 2);
	}
	driver_kick(d, TX);
	driver_settle(d);
	/* A frame is half sent now, and the socket full. */
	ck_assert_uint_gt(net_dev(d)->pair[0].tx_poll.pending, 0);
	driver_quiesce(d);
	driver_watch(d);
	used[0] = driver_used_idx(d, RX);
	used[1] = driver_used_idx(d, TX);
	make_frame(frame, 500, guest_mac, peer_mac, 99);
	fake_send(&fake, frame, 500);
	driver_kick_always(d, RX);
	driver_kick_always(d, TX);
	/* What the socket holds is all that comes. */
	for (;;) {
		ssize_t k = recv(fake.frames, got, sizeof(got), MSG_DONTWAIT);

		if (k <= 0)
			break;
		waiting += (size_t)k;
	}
	need_silence(d, fake.frames);
	ck_assert_uint_eq(driver_check_dirty(d), 0);
	ck_assert_uint_eq(driver_used_idx(d, RX), used[0]);
	ck_assert_uint_eq(driver_used_idx(d, TX), used[1]);
	ck_assert_uint_gt(waiting % 40004, 0);

	driver_resume(d);
	need_received(d, 500);
	/* The frame that was cut goes on where it was. */
	fake_read(&fake, d, got, 40004 - waiting % 40004);
	for (unsigned i = (unsigned)(waiting / 40004) + 1; i < n; i++) {
		make_frame(frame, 40000, peer_mac, guest_mac, i);
		need_frame(d, frame, 40000);
	}
	driver_settle(d);
	while (driver_take_used(d, TX, &e))
		used[1]++;
	ck_assert_uint_eq(net_count(d).tx_packets, n);
	down(d);
}
END_TEST

/* A half sent frame is completed after a resume even if there is nothing more to send. */
START_TEST(rest_after_rest)
{
	struct driver *d = up(ALL_FEATURES);
	size_t total = 0, half;
	unsigned n = 0;

	/* One by one, until the socket is full in the middle of one. */
	while (!net_dev(d)->pair[0].tx_poll.pending) {
		make_frame(frame, 40000, peer_mac, guest_mac, n++);
		guest_send(d, 0, NULL, frame, 40000);
		driver_settle(d);
		ck_assert_uint_lt(n, 1000);
	}
	half = n * 40004;
	driver_quiesce(d);
	for (ssize_t k; (k = recv(fake.frames, got, sizeof(got), MSG_DONTWAIT)) > 0;)
		total += (size_t)k;
	ck_assert_uint_lt(total, half);
	driver_resume(d);
	fake_read(&fake, d, got, half - total);
	need_traffic(d);
	down(d);
}
END_TEST

START_TEST(moves)
{
	static const uint8_t other[6] = {0x52, 0x54, 0, 9, 8, 7};
	const struct vm_net cfg = user_net();
	struct driver *d = up(ALL_FEATURES), *to;
	struct fake there = {.ctl = -1, .frames = -1};
	uint64_t last = 0, gap = 0;

	need_traffic(d);
	ck_assert_uint_eq(guest_ctrl(d, CONTROL, 1, 1, other, 6), 0);
	guest_add_rx(d, 0, 4, 2048);
	driver_kick(d, RX);
	driver_settle(d);
	/* A frame in the ring that was never kicked for. */
	make_frame(frame, 700, peer_mac, guest_mac, 5);
	driver_set_avail_flags(d, TX, 0);
	guest_queue(d, 0, &plain, frame, 700, 1);

	there.listener = fake.listener;
	to = driver_move(d, &cfg);
	/* It has been started early, for it needs nothing that the source has; but it is not used.
	 */
	fake_accept(&there);
	d->v->dev.ops->release(&d->v->dev);
	ck_assert_int_eq(recv(fake.frames, got, 1, MSG_DONTWAIT), 0);
	net_acquired(to);
	need_silence(to, there.frames);
	ck_assert_uint_eq(driver_config_irqs(to), 0);
	driver_free(d);

	driver_watch(to);
	driver_resume(to);
	ck_assert_uint_eq(driver_config_irqs(to), 1);
	ck_assert_uint_eq(net_see_config(to).status, NET_LINK_UP | NET_ANNOUNCE);
	ck_assert_mem_eq(net_see_config(to).mac, other, 6);
	close(fake.frames);
	fake.frames = there.frames;
	for (unsigned rarps = 0, frames = 0; rarps < 5 || frames < 1;) {
		size_t len = fake_recv(&fake, to, got);
		uint64_t now = now_ns();

		if (!is_announcement(got, len, other)) {
			ck_assert_uint_eq(len, 700);
			ck_assert_mem_eq(got, frame, 700);
			frames++;
			continue;
		}
		/* Each comes later after the one before it. */
		if (rarps > 1)
			ck_assert_uint_gt(now - last, gap);
		gap = rarps ? now - last : 0;
		last = now;
		rarps++;
	}
	need_silence(to, fake.frames);
	driver_wait_used(to, TX);
	ck_assert_uint_eq(guest_ctrl(to, CONTROL, 3, 0, NULL, 0), 0);
	ck_assert_uint_eq(net_see_config(to).status, NET_LINK_UP);
	driver_check_dirty(to);
	make_frame(frame, 200, guest_mac, peer_mac, 12);
	fake_send(&fake, frame, 200);
	need_received(to, 200);
	need_traffic(to);
	driver_free(to);
	close(there.ctl);
	fake_destroy(&fake);
}
END_TEST

/* Without GUEST_ANNOUNCE only we announce; without a driver nobody does. */
START_TEST(announces_for_it)
{
	const struct vm_net cfg = user_net();
	struct driver *d = up(ALL_FEATURES & ~NET_F_GUEST_ANNOUNCE), *to;

	to = driver_move(d, &cfg);
	driver_free(d);
	fake_accept(&fake);
	net_acquired(to);
	driver_resume(to);
	for (unsigned i = 0; i < 5; i++)
		ck_assert(is_announcement(got, fake_recv(&fake, to, got), guest_mac));
	ck_assert_uint_eq(net_see_config(to).status, NET_LINK_UP);
	/* Back at rest in the middle of it all: silence. */
	driver_free(to);
	to = net_new(&cfg);
	fake_accept(&fake);
	d = driver_move(to, &cfg);
	driver_free(to);
	fake_accept(&fake);
	net_acquired(d);
	driver_resume(d);
	need_silence(d, fake.frames);
	down(d);
}
END_TEST

START_TEST(rests_while_announcing)
{
	const struct vm_net cfg = user_net();
	struct driver *d = up(ALL_FEATURES), *to;

	to = driver_move(d, &cfg);
	driver_free(d);
	fake_accept(&fake);
	net_acquired(to);
	driver_resume(to);
	ck_assert(is_announcement(got, fake_recv(&fake, to, got), guest_mac));
	driver_quiesce(to);
	while (is_readable(fake.frames))
		fake_recv(&fake, to, got);
	need_silence(to, fake.frames);
	driver_resume(to);
	ck_assert(is_announcement(got, fake_recv(&fake, to, got), guest_mac));
	down(to);
}
END_TEST

/* The hand-over failed: what was given up is taken again. */
START_TEST(taken_back)
{
	struct driver *d = up(ALL_FEATURES);

	need_traffic(d);
	driver_quiesce(d);
	d->v->dev.ops->release(&d->v->dev);
	ck_assert_int_eq(recv(fake.frames, got, 1, 0), 0);
	driver_settle(d);
	net_acquired(d);
	fake_accept(&fake);
	driver_resume(d);
	ck_assert(net_link_is_up(d));
	ck_assert_uint_eq(net_see_config(d).status, NET_LINK_UP);
	need_traffic(d);
	need_silence(d, fake.frames);
	down(d);
}
END_TEST

/* The link of a guest that comes is what it is here, and the driver hears of it. */
START_TEST(link_comes_up_by_moving)
{
	const struct vm_net cfg = user_net();
	struct driver *d = up(ALL_FEATURES & ~NET_F_GUEST_ANNOUNCE), *to;

	setenv("PATH", "/nowhere", 1);
	fake_exit(&fake, 1);
	driver_run_until(d, !net_link_is_up(d));
	setenv("PATH", fake.dir, 1);
	driver_quiesce(d);
	to = driver_move(d, &cfg);
	driver_free(d);
	fake_accept(&fake);
	ck_assert(!net_link_is_up(to));
	net_acquired(to);
	driver_resume(to);
	ck_assert(net_link_is_up(to));
	ck_assert_uint_eq(driver_config_irqs(to), 1);
	down(to);
}
END_TEST

/* Offsets in the section: of the configuration, and of our own fields from its end. */
#define AT_CONFIG 13U
#define FROM_END 12U

static int load_changed(struct driver *to, const struct sbuf *s, size_t at, uint8_t value)
{
	AUTO_FREE uint8_t *copy = malloc(s->len);

	memcpy(copy, s->data, s->len);
	copy[at] = value;
	return driver_load(to, copy, s->len);
}

START_TEST(hostile_state)
{
	const struct vm_net cfg = user_net();
	struct driver *d = up(ALL_FEATURES), *to;
	struct sbuf s;

	driver_quiesce(d);
	driver_save(d, &s);
	to = driver_arriving(d, &cfg);
	ck_assert_mem_eq(s.data + AT_CONFIG, guest_mac, 6);
	ck_assert_int_eq(load_changed(to, &s, AT_CONFIG, 0x53), -EPROTO);
	ck_assert_int_eq(load_changed(to, &s, AT_CONFIG + 6, 4), -EPROTO);
	ck_assert_int_eq(load_changed(to, &s, AT_CONFIG + 8, 2), -EPROTO);
	ck_assert_int_eq(load_changed(to, &s, AT_CONFIG + 10, 0xff), -EPROTO);
	ck_assert_int_ne(load_changed(to, &s, s.len - FROM_END, 0), 0);
	ck_assert_int_ne(load_changed(to, &s, s.len - FROM_END, 2), 0);
	ck_assert_int_eq(load_changed(to, &s, s.len - 8, 2), -EPROTO);
	ck_assert_int_ne(driver_load(to, s.data, s.len - 1), 0);
	s.data[AT_CONFIG + 11] = 0;
	ck_assert_int_eq(load_changed(to, &s, AT_CONFIG + 10, 67), -EPROTO);
	s.data[AT_CONFIG + 11] = 0xff;
	/* That was all that is wrong with it. */
	ck_assert_int_eq(driver_load(to, s.data, s.len), 0);
	sb_free(&s);
	driver_free(to);
	down(d);
}
END_TEST

static void on_field(struct sb_view *view, const char *name, const struct sb_field *f)
{
	static const char *const wanted[] = {"pairs", "queue[1].ready", "max[2]", "mtu"};
	uint64_t *seen = view->arg;

	for (size_t i = 0; i < ARRAY_SIZE(wanted); i++) {
		if (strcmp(name, wanted[i]) == 0)
			seen[i] = f->number;
	}
}

/* By who has no backend, nor anything else. */
START_TEST(looked_at)
{
	uint64_t seen[4] = {0};
	struct sb_view view = {.field = on_field, .arg = seen};
	struct driver *d = up(ALL_FEATURES);
	struct device *blank = calloc(1, virtio_net_ops.size);
	struct sbuf s, l;

	driver_quiesce(d);
	driver_save(d, &s);
	ck_assert_ptr_nonnull(blank);
	virtio_net_ops.blank(blank);
	sb_init_load(&l, s.data, s.len);
	sb_look(&l, &view);
	virtio_net_ops.fields(blank, &l);
	sb_end(&l);
	ck_assert_int_eq(l.err, 0);
	ck_assert(seen[0] == 1 && seen[1] == 1);
	sb_free(&s);
	driver_save_shape(d, &s);
	sb_init_load(&l, s.data, s.len);
	sb_look(&l, &view);
	virtio_net_ops.shape(blank, &l, NULL);
	sb_end(&l);
	ck_assert_int_eq(l.err, 0);
	ck_assert(seen[2] > 0 && seen[3] >= 1500);
	sb_free(&s);
	free(blank);
	down(d);
}
END_TEST

START_TEST(hostile_shape)
{
	struct driver *d = up(ALL_FEATURES);
	struct errmsg err = {""};
	struct sbuf s;

	driver_save_shape(d, &s);
	ck_assert_int_eq(driver_load_shape(d, s.data, s.len, &err), 0);
	s.data[s.len - 2] = 0xf1; /* 65521 */
	ck_assert_int_eq(driver_load_shape(d, s.data, s.len, &err), -ENOTSUP);
	ck_assert_msg(strstr(err.text, "65521") != NULL, "%s", err.text);
	s.data[s.len - 2] = s.data[s.len - 1] = 0;
	ck_assert_int_eq(driver_load_shape(d, s.data, s.len, &err), -EPROTO);
	sb_free(&s);
	down(d);
}
END_TEST

/* A driver resets its device, on another thread, while frames come and go. */
static void *reset_thread(void *arg)
{
	struct driver *d = arg;

	virtio_set_status(d->v, 0);
	return NULL;
}

START_TEST(reset_under_load)
{
	struct driver *d = up(ALL_FEATURES);

	for (unsigned round = 0; round < 20; round++) {
		pthread_t thread;

		guest_add_rx(d, 0, 200, 256);
		driver_kick(d, RX);
		for (unsigned i = 0; i < 100; i++) {
			make_frame(frame, 100, peer_mac, guest_mac, i);
			guest_queue(d, 0, &plain, frame, 100, 1);
			(void)fake_try_send(&fake, frame, 100);
		}
		driver_kick(d, TX);
		ck_assert_int_eq(pthread_create(&thread, NULL, reset_thread, d), 0);
		driver_step(d, NS_PER_MS);
		pthread_join(thread, NULL);
		driver_settle(d);
		ck_assert_uint_eq(d->v->status, 0);
		while (recv(fake.frames, got, sizeof(got), MSG_DONTWAIT) > 0)
			;
		driver_up(d, ALL_FEATURES);
	}
	down(d);
}
END_TEST

int main(int argc, char **argv)
{
	const TTest *const tests[] = {
		offers,
		refuses,
		not_installed,
		does_not_start,
		command_line,
		sends,
		send_when_full,
		send_when_full_without_event_index,
		receives,
		receives_merged,
		receives_unmerged,
		waits_for_buffers,
		waits_for_buffers_without_event_index,
		never_fits,
		floods,
		stream_in_pieces,
		impossible_length,
		child_dies,
		stays_away,
		hostile_sends,
		hostile_buffers,
		control,
		no_control_queue,
		quiet_at_rest,
		rest_after_rest,
		moves,
		announces_for_it,
		rests_while_announcing,
		taken_back,
		link_comes_up_by_moving,
		hostile_state,
		looked_at,
		hostile_shape,
		reset_under_load,
	};

	if (called_passt(argv))
		fake_passt(argc, argv);
	return check_main("virtio-net", tests, ARRAY_SIZE(tests));
}
