/* SPDX-License-Identifier: MIT */
/* Connections at rest, and a guest that moves. */
#include "vsock-bulk.h"

/* ---- moves ---- */

static bool event_came(struct guest *at)
{
	struct driver_used e;
	uint32_t id;

	if (!driver_take_used(at->d, EVENT, &e))
		return false;
	ck_assert_uint_eq(e.len, 4);
	driver_peek(at->d, at->event_mem, &id, 4);
	ck_assert_uint_eq(id, 0);
	return true;
}

/* Bytes that wait in a unix socket: to be read by us, and sent by us and not read yet. */
static void waiting(int fd, int bytes[2])
{
	ck_assert_int_eq(ioctl(fd, SIOCINQ, &bytes[0]), 0);
	ck_assert_int_eq(ioctl(fd, SIOCOUTQ, &bytes[1]), 0);
}

/* Between quiesce and resume nothing moves; afterwards all does, in order. */
START_TEST(failed_move)
{
	struct bulk b = {.want_out = BULK / 4, .want_in = BULK / 4, .seed = 5};
	const struct device_ops *ops = g->d->v->dev.ops;

	b.fd = connect_in(g, &b.s, 52, 4096);
	for (unsigned pass = 0; pass < 4; pass++) {
		int before[2], after[2];

		bulk_some(&b);
		driver_quiesce(g->d);
		/* What both sides do meanwhile waits. */
		bulk_guest_sends(&b);
		bulk_host(&b);
		waiting(b.fd, before);
		driver_watch(g->d);
		driver_kick_always(g->d, RX);
		driver_kick_always(g->d, TX);
		if (pass % 2) {
			/* Up to the last step, which fails. */
			ops->release(&g->d->v->dev);
			ck_assert_int_ne(access(g->cfg.path, F_OK), 0);
		}
		driver_settle(g->d);
		waiting(b.fd, after);
		ck_assert_int_eq(before[0], after[0]);
		ck_assert_int_eq(before[1], after[1]);
		ck_assert_uint_eq(driver_check_dirty(g->d), 0);
		ck_assert_uint_eq(driver_clean(g->d), 0);
		if (pass % 2)
			acquire(g);
		driver_resume(g->d);
	}
	run_bulk(&b, 1);
	/* No event: nothing has happened to the guest. */
	give_event(g);
	driver_settle(g->d);
	ck_assert(!event_came(g));
	ck_assert_uint_eq(stats_of(g).connections, 1);
	close(b.fd);
}
END_TEST

/* Each page that the device stores into is marked, payload and rings alike. */
START_TEST(stores_are_marked)
{
	static uint8_t data[3 * RX_DATA];
	unsigned payload = 0;
	int fd = connect_in(g, &s, 52, 1 << 16);
	struct packet p;

	memset(data, 0xa5, sizeof(data));
	driver_watch(g->d);
	ck_assert_int_eq(send(fd, data, sizeof(data), 0), sizeof(data));
	send_text(g, &s, "x");
	host_expect(g, fd, "x");
	while (payload < sizeof(data)) {
		next_packet(g, &p);
		payload += p.hdr.len;
	}
	/* Three of payload at the least, and the used ring of each queue. */
	ck_assert_uint_ge(driver_check_dirty(g->d), 5);
	close(fd);
}
END_TEST

/* Who comes while the device is at rest is served when it goes on. */
START_TEST(newcomers_at_rest)
{
	int l = host_listen(g, 5), early = host_connect(g), late;
	bool in[2] = {false, false}, out = false;
	int before[2], after[2];
	struct packet p;

	driver_settle(g->d);
	driver_quiesce(g->d);
	host_say(early, "CONNECT 60\n");
	waiting(early, before);
	late = host_connect(g);
	host_say(late, "CONNECT 61\n");
	s = (struct gsock){.port = 70, .host_port = 5};
	send_op(g, &s, VSOCK_OP_REQUEST, 0);
	driver_settle(g->d);
	waiting(early, after);
	ck_assert_int_eq(before[1], after[1]);
	ck_assert_int_lt(accept(l, NULL, NULL), 0);
	driver_resume(g->d);
	while (!in[0] || !in[1] || !out) {
		next_packet(g, &p);
		if (p.hdr.op == VSOCK_OP_RESPONSE) {
			ck_assert_uint_eq(p.hdr.dst_port, 70);
			ck_assert(!out);
			out = true;
			continue;
		}
		ck_assert_uint_eq(p.hdr.op, VSOCK_OP_REQUEST);
		ck_assert(p.hdr.dst_port == 60 || p.hdr.dst_port == 61);
		ck_assert(!in[p.hdr.dst_port - 60]);
		in[p.hdr.dst_port - 60] = true;
	}
	expect_silence(g);
	close(early);
	close(late);
	close(l);
}
END_TEST

/* What is in the ring when the device is put to rest stays there, and goes on its way later. */
START_TEST(ring_at_rest)
{
	enum { OPEN, LINGER, NO_DRIVER } state = (unsigned)_i;
	int fd = connect_in(g, &s, 52, 1 << 16);
	uint32_t total = stuff(), n = 0;
	struct packet p;

	if (state != OPEN)
		send_op(g, &s, VSOCK_OP_RST, 0);
	driver_settle(g->d);
	driver_quiesce(g->d);
	if (state == NO_DRIVER)
		virtio_set_status(g->d->v, 0);
	/* The host's program reads all that had been written to it, and no more comes. */
	n = unstuff_some(fd, n, total);
	driver_settle(g->d);
	ck_assert_uint_eq(unstuff_some(fd, n, total), n);
	ck_assert_uint_eq(total - n, VSOCK_BUF);
	driver_resume(g->d);
	if (state == OPEN) {
		send_op(g, &s, VSOCK_OP_SHUTDOWN, VSOCK_SHUT_BOTH);
		do
			next_packet(g, &p);
		while (p.hdr.op == VSOCK_OP_CREDIT_UPDATE);
		ck_assert_uint_eq(p.hdr.op, VSOCK_OP_RST);
	}
	unstuff(fd, n, total);
	close(fd);
}
END_TEST

/* Gives up the socket there and takes it here, and goes on. */
static struct guest *arrive(struct guest *from)
{
	struct guest *to = guest_move(from);

	virtio_vsock_ops.release(&from->d->v->dev);
	driver_settle(to->d);
	driver_watch(to->d);
	acquire(to);
	/* The destination keeps quiet until it is resumed. */
	driver_settle(to->d);
	ck_assert_uint_eq(driver_check_dirty(to->d), 0);
	driver_resume(to->d);
	return to;
}

START_TEST(move)
{
	struct gsock out, in, asking;
	int l = host_listen(g, 5), fd_in, fd_out, fd_new, fd_asking = host_connect(g);
	struct guest *from = g;
	struct packet p;

	give_event(g);
	give_event(g);
	fd_in = connect_in(g, &in, 52, 1 << 16);
	fd_out = connect_out(g, &out, l, 1000, 5, 1 << 16);
	host_say(fd_asking, "CONNECT 60\n");
	next_packet(g, &p);
	asking = (struct gsock){.port = 60, .host_port = p.hdr.src_port};
	g = arrive(from);

	/* The event comes first, and nothing else before the guest has handled it. */
	fd_new = host_connect(g);
	host_say(fd_new, "CONNECT 52\n");
	driver_run_until(g->d, event_came(g));
	ck_assert_uint_ne(driver_irqs(g->d, EVENT), 0);
	ck_assert_uint_eq(virtio_config_read(g->d->v, 0, 8), CID);
	send_op(g, &out, VSOCK_OP_CREDIT_REQUEST, 0);
	expect_silence(g);
	give_event(g);

	/* The guest is told of each that it had, whatever it made of the event. */
	for (unsigned n = 0; n < 3; n++) {
		next_packet(g, &p);
		ck_assert_uint_eq(p.hdr.op, VSOCK_OP_RST);
		ck_assert((p.hdr.dst_port == 52 && p.hdr.src_port == in.host_port) ||
			  (p.hdr.dst_port == 1000 && p.hdr.src_port == 5) ||
			  (p.hdr.dst_port == 60 && p.hdr.src_port == asking.host_port));
	}
	/* And then of the new one, at a port that is none of the old ones. */
	next_packet(g, &p);
	ck_assert_uint_eq(p.hdr.op, VSOCK_OP_REQUEST);
	ck_assert_uint_eq(p.hdr.dst_port, 52);
	ck_assert_uint_gt(p.hdr.src_port, asking.host_port);
	s = (struct gsock){.port = 52, .host_port = p.hdr.src_port, .buf_alloc = 4096};
	send_op(g, &s, VSOCK_OP_RESPONSE, 0);
	host_expect(g, fd_new, "OK ");
	ck_assert_uint_eq(stats_of(g).connections, 1);
	expect_silence(g);
	/* Nothing is left of the old ones; the source's programs see their end. */
	send_op(g, &in, VSOCK_OP_CREDIT_REQUEST, 0);
	expect_op(g, &in, VSOCK_OP_RST);
	ck_assert(host_silent(fd_in));
	ck_assert_int_eq(access(g->cfg.path, F_OK), 0);
	guest_free(from);
	ck_assert_int_eq(access(g->cfg.path, F_OK), 0);
	host_expect_eof(g, fd_in);
	host_expect_eof(g, fd_out);
	host_expect_eof(g, fd_asking);
	/* Once is enough. */
	driver_quiesce(g->d);
	driver_resume(g->d);
	ck_assert(!event_came(g));
	ck_assert_uint_eq(stats_of(g).connections, 1);
	close(fd_in);
	close(fd_out);
	close(fd_asking);
	close(fd_new);
	close(l);
}
END_TEST

/* A guest's REQUEST that the source did not see is served by the destination. */
START_TEST(move_with_request)
{
	int l = host_listen(g, 5), fd;
	struct guest *from = g;

	give_event(g);
	s = (struct gsock){.port = 70, .host_port = 5};
	driver_quiesce(g->d);
	send_op(g, &s, VSOCK_OP_REQUEST, 0);
	g = arrive(from);
	driver_run_until(g->d, event_came(g));
	expect_silence(g);
	give_event(g);
	expect_op(g, &s, VSOCK_OP_RESPONSE);
	fd = host_accept(g, l);
	send_text(g, &s, "here I am");
	host_expect(g, fd, "here I am");
	guest_free(from);
	close(fd);
	close(l);
}
END_TEST

/* No buffer for the event: vsock works after a while; the event comes when it can. */
START_TEST(move_without_event_buffer)
{
	struct guest *from = g;
	uint64_t start;
	int fd, fd_new;

	fd = connect_in(g, &s, 52, 1 << 16);
	g = arrive(from);
	start = now_ns();
	fd_new = host_connect(g);
	host_say(fd_new, "CONNECT 52\n");
	expect_op(g, &s, VSOCK_OP_RST);
	ck_assert_uint_ge(now_ns() - start, HOLD_NS / 2);
	s.host_port++;
	expect_op(g, &s, VSOCK_OP_REQUEST);
	send_op(g, &s, VSOCK_OP_RESPONSE, 0);
	host_expect(g, fd_new, "OK ");
	ck_assert(!event_came(g));
	/* It ends what there is, so the device forgets that too. */
	give_event(g);
	driver_run_until(g->d, event_came(g));
	give_event(g);
	driver_run_until(g->d, stats_of(g).connections == 0);
	close(fd_new);
	fd_new = connect_in(g, &s, 52, 1 << 16);
	guest_free(from);
	close(fd);
	close(fd_new);
}
END_TEST

/* On again before the guest has seen the event: the next one sends it. */
START_TEST(move_twice)
{
	struct guest *first = g, *second;
	int fd = connect_in(g, &s, 52, 1 << 16), fd_new;

	g = second = arrive(first);
	g = arrive(second);
	give_event(g);
	driver_run_until(g->d, event_came(g));
	give_event(g);
	expect_op(g, &s, VSOCK_OP_RST);
	fd_new = connect_in(g, &s, 52, 1 << 16);
	guest_free(first);
	guest_free(second);
	close(fd);
	close(fd_new);
}
END_TEST

/* A failed move away from where the guest has just come to. */
START_TEST(rest_while_held)
{
	struct guest *from = g;
	int fd = connect_in(g, &s, 52, 1 << 16);

	give_event(g);
	g = arrive(from);
	driver_quiesce(g->d);
	driver_settle(g->d);
	driver_resume(g->d);
	driver_run_until(g->d, event_came(g));
	expect_silence(g);
	give_event(g);
	expect_op(g, &s, VSOCK_OP_RST);
	guest_free(from);
	close(fd);
}
END_TEST

/* A driver that resets its device has no need of the event. */
START_TEST(reset_while_held)
{
	struct guest *from = g;
	int fd = connect_in(g, &s, 52, 1 << 16);

	g = arrive(from);
	guest_up(g, UINT64_MAX);
	give_rx(g, RX_BUFS);
	give_event(g);
	close(fd);
	fd = connect_in(g, &s, 52, 1 << 16);
	ck_assert(!event_came(g));
	guest_free(from);
	close(fd);
}
END_TEST

/* A machine that was moved before its driver was up. */
START_TEST(move_without_driver)
{
	struct guest *from = g;
	int fd;

	virtio_set_status(g->d->v, 0);
	g = arrive(from);
	guest_up(g, UINT64_MAX);
	give_rx(g, RX_BUFS);
	give_event(g);
	fd = connect_in(g, &s, 52, 1 << 16);
	ck_assert(!event_came(g));
	guest_free(from);
	close(fd);
}
END_TEST

/* The destination's own CID is what the guest reads there. */
START_TEST(move_to_other_cid)
{
	struct guest *from = g;

	give_event(g);
	g = calloc(1, sizeof(*g));
	ck_assert_ptr_nonnull(g);
	*g = *from;
	g->cfg.cid = 77;
	g->d = driver_move(from->d, &g->cfg);
	ck_assert_uint_eq(virtio_config_read(g->d->v, 0, 8), 77);
	driver_resume(g->d);
	driver_run_until(g->d, event_came(g));
	give_event(g);
	s = (struct gsock){.port = 1, .host_port = 2};
	send_op(g, &s, VSOCK_OP_CREDIT_REQUEST, 0); /* still as 3 */
	expect_silence(g);
	guest_free(from);
}
END_TEST

/* State that no device can be in. */
START_TEST(hostile_state)
{
	int fd = connect_in(g, &s, 52, 1 << 16), fd2;
	struct gsock other;
	struct sbuf state;
	size_t at;

	fd2 = connect_in(g, &other, 53, 1 << 16);
	driver_quiesce(g->d);
	driver_save(g->d, &state);
	at = state.len - 2 * 8 - 8; /* next port, number, two pairs */
	for (unsigned i = 0; i < 7; i++) {
		struct driver *d = driver_arriving(g->d, &g->cfg);
		uint8_t *copy = malloc(state.len + 8);
		size_t len = state.len;
		uint32_t v;
		int ret;

		ck_assert_ptr_nonnull(copy);
		memset(copy, 0, state.len + 8);
		memcpy(copy, state.data, state.len);
		switch (i) {
		case 0: /* nothing wrong */
			break;
		case 1:
			v = VSOCK_FIRST_PORT - 1;
			memcpy(copy + at, &v, 4);
			break;
		case 2:
			v = VSOCK_LAST_PORT + 1;
			memcpy(copy + at, &v, 4);
			break;
		case 3:
			v = VSOCK_MAX_CONNS + 1;
			memcpy(copy + at + 4, &v, 4);
			break;
		case 4:
			v = VSOCK_MAX_CONNS;
			memcpy(copy + at + 4, &v, 4);
			break;
		case 5: /* the same twice */
			memcpy(copy + at + 16, copy + at + 8, 8);
			break;
		default:
			len -= 4;
		}
		ret = driver_load(d, copy, len);
		if (i == 0)
			ck_assert_int_eq(ret, 0);
		else
			ck_assert_msg(ret < 0, "%u", i);
		free(copy);
		driver_free(d);
	}
	sb_free(&state);
	driver_resume(g->d);
	ck_assert_uint_eq(stats_of(g).connections, 2);
	close(fd);
	close(fd2);
}
END_TEST

/* ---- with the loop on a thread of its own, as in the machine ---- */

static void *loop_thread(void *arg)
{
	ck_assert_int_eq(loop_run(arg), 0);
	return NULL;
}

static void on_stop(struct loop_task *task)
{
	(void)task;
	loop_stop(g->d->loop);
}

/* Resets, quiesces, and stops to listen while the loop is at work: for the sanitizers. */
START_TEST(threads)
{
	struct loop_task stop = {.run = on_stop};
	int fds[8], l = host_listen(g, 5);
	pthread_t thread;

	ck_assert_int_eq(pthread_create(&thread, NULL, loop_thread, g->d->loop), 0);
	for (unsigned i = 0; i < 100; i++) {
		const struct device_ops *ops = g->d->v->dev.ops;

		for (unsigned j = 0; j < ARRAY_SIZE(fds); j++) {
			fds[j] = host_connect(g);
			host_say(fds[j], "CONNECT 1\n");
		}
		ck_assert_int_eq(ops->quiesce(&g->d->v->dev, now_ns() + DRIVER_WAIT_NS), 0);
		if (i % 3 == 0) {
			ops->release(&g->d->v->dev);
			acquire(g);
		}
		ops->resume(&g->d->v->dev);
		for (unsigned j = 0; j < ARRAY_SIZE(fds); j++)
			close(fds[j]);
		driver_negotiate(g->d, UINT64_MAX);
		g->d->top = DRIVER_FIRST_GPA;
		for (unsigned q = 0; q < 3; q++)
			driver_queue_up(g->d, q, q == EVENT ? 64 : VSOCK_QUEUE);
		driver_ok(g->d);
		give_rx(g, RX_BUFS);
		stats_of(g);
	}
	loop_post(g->d->loop, &stop);
	pthread_join(thread, NULL);
	close(l);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("vsock-move");
	TCase *tc;

	tc = new_case(suite, "moves");
	tcase_add_test(tc, failed_move);
	tcase_add_test(tc, stores_are_marked);
	tcase_add_test(tc, newcomers_at_rest);
	tcase_add_loop_test(tc, ring_at_rest, 0, 3);
	tcase_add_test(tc, move);
	tcase_add_test(tc, move_with_request);
	tcase_add_test(tc, move_without_event_buffer);
	tcase_add_test(tc, move_twice);
	tcase_add_test(tc, rest_while_held);
	tcase_add_test(tc, reset_while_held);
	tcase_add_test(tc, move_without_driver);
	tcase_add_test(tc, move_to_other_cid);
	tcase_add_test(tc, hostile_state);

	tc = new_case(suite, "threads");
	tcase_add_test(tc, threads);
	return run_suite(suite);
}
