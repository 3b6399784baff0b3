/* SPDX-License-Identifier: MIT */
/* What a vsock device is, and how connections come and go. */
#include "vsock-guest.h"

/* ---- what it is ---- */

START_TEST(what_it_is)
{
	struct stat st;

	ck_assert_uint_eq(g->d->v->ops->type, 19);
	ck_assert_uint_eq(g->d->v->n_queues, 3);
	ck_assert_uint_eq(g->d->v->config_len, 8);
	ck_assert_uint_eq(virtio_config_read(g->d->v, 0, 8), CID);
	ck_assert_uint_eq(virtio_config_read(g->d->v, 4, 4), 0);
	ck_assert_uint_eq(g->d->v->offered & 0xffffff, 1);
	virtio_config_write(g->d->v, 0, 8, 7);
	ck_assert_uint_eq(virtio_config_read(g->d->v, 0, 8), CID);
	ck_assert_int_eq(stat(g->cfg.path, &st), 0);
	ck_assert_uint_eq(st.st_mode & 07777, 0600);
	ck_assert(S_ISSOCK(st.st_mode));
	expect_silence(g);
}
END_TEST

static int try_init(uint64_t cid, size_t path_len)
{
	struct loop loop;
	struct vm vm = {.loop = &loop};
	struct vm_vsock cfg = {.present = true, .cid = cid};
	struct device *dev = calloc(1, virtio_vsock_ops.size);
	int ret;

	ck_assert_ptr_nonnull(dev);
	ck_assert_int_eq(loop_init(&loop), 0);
	memset(cfg.path, 'p', path_len);
	dev->ops = &virtio_vsock_ops;
	dev->vm = &vm;
	ret = virtio_vsock_ops.init(dev, &cfg);
	if (ret == 0)
		virtio_vsock_ops.destroy(dev);
	free(dev);
	loop_destroy(&loop);
	return ret;
}

START_TEST(what_it_cannot_be)
{
	ck_assert_int_eq(try_init(3, 10), 0);
	ck_assert_int_eq(try_init(UINT32_MAX - 1, 10), 0);
	ck_assert_int_eq(try_init(2, 10), -EINVAL);
	ck_assert_int_eq(try_init(UINT32_MAX, 10), -EINVAL);
	ck_assert_int_eq(try_init(UINT32_MAX + 4ULL, 10), -EINVAL);
	ck_assert_int_eq(try_init(3, 0), -EINVAL);
	ck_assert_int_eq(try_init(3, VSOCK_PATH_MAX), 0);
	ck_assert_int_eq(try_init(3, VSOCK_PATH_MAX + 1), -ENAMETOOLONG);
}
END_TEST

/* ---- resets ---- */

START_TEST(driver_resets)
{
	int fd = connect_in(g, &s, 52, 1 << 16), fd2, fd3;

	fd2 = host_connect(g);
	driver_settle(g->d);
	virtio_set_status(g->d->v, 0);
	host_expect_eof(g, fd);
	host_expect_eof(g, fd2);
	ck_assert_uint_eq(stats_of(g).connections, 0);
	/* Who comes now waits until there is a driver again. */
	fd3 = host_connect(g);
	host_say(fd3, "CONNECT 9\n");
	driver_settle(g->d);
	ck_assert(host_silent(fd3));
	guest_up(g, UINT64_MAX);
	give_rx(g, RX_BUFS);
	s = (struct gsock){.port = 9, .host_port = VSOCK_FIRST_PORT + 1, .buf_alloc = 100};
	expect_op(g, &s, VSOCK_OP_REQUEST);
	send_op(g, &s, VSOCK_OP_RESPONSE, 0);
	host_expect(g, fd3, "OK 1073741825\n");
	close(fd);
	close(fd2);
	close(fd3);
}
END_TEST

/* ---- the socket's file ---- */

START_TEST(live_owner)
{
	struct guest *other = calloc(1, sizeof(*other));
	struct errmsg err = {""};
	struct stat st;
	int fd;

	ck_assert_ptr_nonnull(other);
	other->cfg = g->cfg;
	other->d = driver_new(&virtio_vsock_ops, &other->cfg, RAM_MIN);
	ck_assert_int_eq(other->d->v->dev.ops->acquire(&other->d->v->dev, &err), -EADDRINUSE);
	ck_assert_ptr_nonnull(strstr(err.text, g->cfg.path));
	guest_free(other);
	/* Nothing has happened to the one that has it. */
	ck_assert_int_eq(stat(g->cfg.path, &st), 0);
	fd = connect_in(g, &s, 52, 1 << 16);
	close(fd);
}
END_TEST

START_TEST(dead_owner)
{
	struct sockaddr_un addr;
	struct errmsg err = {""};
	int fd = socket(AF_UNIX, SOCK_STREAM, 0), file;

	virtio_vsock_ops.release(&g->d->v->dev);
	ck_assert_int_ne(access(g->cfg.path, F_OK), 0);
	addr = address_of(g->cfg.path);
	ck_assert_int_eq(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	close(fd);
	ck_assert_int_eq(access(g->cfg.path, F_OK), 0);
	acquire(g);
	fd = connect_in(g, &s, 52, 1 << 16);
	close(fd);
	expect_shutdown(g, &s, VSOCK_SHUT_BOTH);

	/* What is no socket stays. */
	virtio_vsock_ops.release(&g->d->v->dev);
	file = open(g->cfg.path, O_CREAT | O_WRONLY, 0600);
	ck_assert_int_ge(file, 0);
	close(file);
	ck_assert_int_eq(virtio_vsock_ops.acquire(&g->d->v->dev, &err), -EEXIST);
	ck_assert_str_ne(err.text, "");
	ck_assert_int_eq(access(g->cfg.path, F_OK), 0);
	/* Nor is somebody else's taken away. */
	unlink(g->cfg.path);
	acquire(g);
	unlink(g->cfg.path);
	file = open(g->cfg.path, O_CREAT | O_WRONLY, 0600);
	close(file);
	virtio_vsock_ops.release(&g->d->v->dev);
	ck_assert_int_eq(access(g->cfg.path, F_OK), 0);
}
END_TEST

START_TEST(no_folder)
{
	struct guest *other = calloc(1, sizeof(*other));
	struct errmsg err = {""};

	ck_assert_ptr_nonnull(other);
	other->cfg = g->cfg;
	snprintf(other->cfg.path, sizeof(other->cfg.path), "%s/none/v.sock", test_dir);
	other->d = driver_new(&virtio_vsock_ops, &other->cfg, RAM_MIN);
	ck_assert_int_eq(other->d->v->dev.ops->acquire(&other->d->v->dev, &err), -ENOENT);
	ck_assert_ptr_nonnull(strstr(err.text, other->cfg.path));
	guest_free(other);
}
END_TEST

/* ---- connecting ---- */

START_TEST(host_to_guest)
{
	int fd = connect_in(g, &s, 52, 1 << 16);

	ck_assert_uint_ge(s.host_port, VSOCK_FIRST_PORT);
	ck_assert_uint_eq(s.peer_alloc, VSOCK_BUF);
	host_say(fd, "hello guest");
	expect_guest_text(g, &s, "hello guest");
	send_text(g, &s, "hello host");
	host_expect(g, fd, "hello host");
	ck_assert_uint_eq(stats_of(g).connections, 1);
	ck_assert_uint_eq(stats_of(g).to_guest, 11);
	ck_assert_uint_eq(stats_of(g).from_guest, 10);
	close(fd);
	expect_shutdown(g, &s, VSOCK_SHUT_BOTH);
	send_op(g, &s, VSOCK_OP_RST, 0);
	driver_run_until(g->d, stats_of(g).connections == 0);
	expect_silence(g);
}
END_TEST

/* What comes right behind the line, and a line in pieces. */
START_TEST(line_and_data)
{
	int fd = host_connect(g);
	struct packet p;

	host_say(fd, "conn");
	expect_idle(g);
	host_say(fd, "ect \t 7");
	driver_settle(g->d);
	host_say(fd, "7 \r\nGET /\n");
	next_packet(g, &p);
	ck_assert_uint_eq(p.hdr.op, VSOCK_OP_REQUEST);
	ck_assert_uint_eq(p.hdr.dst_port, 77);
	ck_assert_uint_eq(p.hdr.src_cid, 2);
	ck_assert_uint_eq(p.hdr.type, 1);
	ck_assert_uint_eq(p.hdr.buf_alloc, VSOCK_BUF);
	/* Nothing of it before the guest has accepted. */
	expect_silence(g);
	s = (struct gsock){.port = 77, .host_port = p.hdr.src_port, .buf_alloc = 4096};
	send_op(g, &s, VSOCK_OP_RESPONSE, 0);
	expect_guest_text(g, &s, "GET /\n");
	close(fd);
}
END_TEST

START_TEST(bad_lines)
{
	static const char *const lines[] = {
		"\n",
		"HELLO 52\n",
		"CONNECT\n",
		"CONNECT \n",
		"CONNECT52\n",
		"CONNECT -1\n",
		"CONNECT 52x\n",
		"CONNECT 52 53\n",
		"CONNECT 4294967295\n",
		"CONNECT 4294967296\n",
		"CONNECT 99999999999999999999\n",
		"CONNECT 00000000000000000000000052\n",
		"CONNECT 52                         ",
		"CONNECTCONNECTCONNECTCONNECTCONNECTCONNECT 52\n",
	};

	for (size_t i = 0; i < ARRAY_SIZE(lines); i++) {
		int fd = host_connect(g);
		ssize_t ret;
		char byte;

		host_say(fd, lines[i]);
		driver_run_until(g->d, (ret = recv(fd, &byte, 1, 0)) >= 0 || errno != EAGAIN);
		/* A reset where it left some of it unread. */
		ck_assert_msg(ret == 0 || errno == ECONNRESET, "%s", lines[i]);
		close(fd);
	}
	expect_silence(g);
	driver_settle(g->d);
	ck_assert_uint_eq(stats_of(g).connections, 0);
}
END_TEST

START_TEST(refused_by_guest)
{
	int fd = host_connect(g);
	struct packet p;

	host_say(fd, "CONNECT 52\n");
	next_packet(g, &p);
	ck_assert_uint_eq(p.hdr.op, VSOCK_OP_REQUEST);
	s = (struct gsock){.port = 52, .host_port = p.hdr.src_port};
	send_op(g, &s, VSOCK_OP_RST, 0);
	host_expect_eof(g, fd);
	expect_silence(g);
	close(fd);
}
END_TEST

/* The program goes away while the guest is asked: it is told, and its late answer refused. */
START_TEST(gone_before_response)
{
	int fd = host_connect(g);
	uint64_t start;
	struct packet p;

	host_say(fd, "CONNECT 52\n");
	next_packet(g, &p);
	s = (struct gsock){.port = 52, .host_port = p.hdr.src_port};
	expect_idle(g);
	start = now_ns();
	close(fd);
	expect_op(g, &s, VSOCK_OP_RST);
	ck_assert_uint_lt(now_ns() - start, 5 * NS_PER_SEC); /* not by time */
	send_op(g, &s, VSOCK_OP_RESPONSE, 0);
	expect_op(g, &s, VSOCK_OP_RST);
	expect_silence(g);
}
END_TEST

/* And what it has not been asked it need not be told of. */
START_TEST(gone_before_request)
{
	int fd;

	guest_up(g, UINT64_MAX); /* no receive buffers */
	fd = host_connect(g);
	host_say(fd, "CONNECT 52\n");
	driver_settle(g->d);
	close(fd);
	driver_settle(g->d);
	give_rx(g, RX_BUFS);
	expect_silence(g);
}
END_TEST

START_TEST(gone_before_line)
{
	int fd = host_connect(g);

	driver_settle(g->d);
	host_say(fd, "CONNE");
	driver_settle(g->d);
	close(fd);
	expect_silence(g);
}
END_TEST

START_TEST(guest_to_host)
{
	int l = host_listen(g, 1024), fd;

	fd = connect_out(g, &s, l, 40000, 1024, 1 << 16);
	send_text(g, &s, "hello host");
	host_expect(g, fd, "hello host");
	host_say(fd, "hello guest");
	expect_guest_text(g, &s, "hello guest");
	send_op(g, &s, VSOCK_OP_SHUTDOWN, VSOCK_SHUT_BOTH);
	expect_op(g, &s, VSOCK_OP_RST);
	host_expect_eof(g, fd);
	expect_silence(g);
	ck_assert_uint_eq(stats_of(g).connections, 0);
	close(fd);
	close(l);
}
END_TEST

/* Here connect() is refused, and so is taking the socket away: the helper does both. */
static void *serve_confined(void *listener)
{
	int fd;

	confine_thread(g->d->v->dev.vm->cfg.confine, CONFINE_LOOP);
	ck_assert_int_eq(socket(AF_UNIX, SOCK_STREAM, 0), -1);
	ck_assert_int_eq(errno, EPERM);
	fd = connect_out(g, &s, *(int *)listener, 40000, 1024, 1 << 16);
	send_text(g, &s, "hello host");
	host_expect(g, fd, "hello host");
	close(fd);
	expect_op(g, &s, VSOCK_OP_SHUTDOWN);
	s = (struct gsock){.port = 1, .host_port = 9};
	send_op(g, &s, VSOCK_OP_REQUEST, 0);
	expect_op(g, &s, VSOCK_OP_RST);
	g->d->v->dev.ops->release(&g->d->v->dev);
	return NULL;
}

START_TEST(confined)
{
	struct confine confine;
	struct errmsg err = {""};
	int l = host_listen(g, 1024);
	pthread_t thread;

	if (CONFINE_DEFAULT == CONFINE_OFF || confine_probe_seccomp())
		return;
	ck_assert_msg(confine_start(&confine, CONFINE_ON, &err) == 0, "%s", err.text);
	g->d->v->dev.vm->cfg.confine = &confine;
	ck_assert_int_eq(pthread_create(&thread, NULL, serve_confined, &l), 0);
	ck_assert_int_eq(pthread_join(thread, NULL), 0);
	ck_assert_int_ne(access(g->cfg.path, F_OK), 0);
	g->d->v->dev.vm->cfg.confine = NULL;
	confine_stop(&confine);
	close(l);
}
END_TEST

START_TEST(nobody_listens)
{
	int l = host_listen(g, 9);

	close(l); /* its file stays: refused */
	s = (struct gsock){.port = 1, .host_port = 9};
	send_op(g, &s, VSOCK_OP_REQUEST, 0);
	expect_op(g, &s, VSOCK_OP_RST);
	s.host_port = UINT32_MAX; /* no file */
	send_op(g, &s, VSOCK_OP_REQUEST, 0);
	expect_op(g, &s, VSOCK_OP_RST);
	ck_assert_uint_eq(stats_of(g).connections, 0);
}
END_TEST

/* ---- ends ---- */

START_TEST(host_half_closes)
{
	int fd = connect_in(g, &s, 52, 1 << 16);

	host_say(fd, "question");
	shutdown(fd, SHUT_WR);
	expect_guest_text(g, &s, "question");
	expect_shutdown(g, &s, VSOCK_SHUT_SEND);
	expect_silence(g);
	expect_idle(g);
	send_text(g, &s, "answer");
	host_expect(g, fd, "answer");
	send_op(g, &s, VSOCK_OP_SHUTDOWN, VSOCK_SHUT_BOTH);
	expect_op(g, &s, VSOCK_OP_RST);
	host_expect_eof(g, fd);
	close(fd);
	expect_silence(g);
}
END_TEST

START_TEST(host_half_closes_then_closes)
{
	int fd = connect_in(g, &s, 52, 1 << 16);

	shutdown(fd, SHUT_WR);
	expect_shutdown(g, &s, VSOCK_SHUT_SEND);
	close(fd);
	expect_shutdown(g, &s, VSOCK_SHUT_BOTH);
	send_op(g, &s, VSOCK_OP_RST, 0);
	expect_silence(g);
	ck_assert_uint_eq(stats_of(g).connections, 0);
}
END_TEST

/* The host does not read any more, but sends on. */
START_TEST(host_stops_reading)
{
	int fd = connect_in(g, &s, 52, 1 << 16);

	shutdown(fd, SHUT_RD);
	send_text(g, &s, "nobody hears this");
	expect_shutdown(g, &s, VSOCK_SHUT_RCV);
	host_say(fd, "still here");
	expect_guest_text(g, &s, "still here");
	/* What is on its way anyhow is dropped, and its credit given back. */
	for (unsigned i = 0; i < 5; i++) {
		static const char junk[8000];

		send_data(g, &s, junk, sizeof(junk));
	}
	expect_op(g, &s, VSOCK_OP_CREDIT_UPDATE);
	ck_assert_uint_ge(s.peer_fwd, VSOCK_BUF / 2);
	expect_idle(g);
	close(fd);
	expect_shutdown(g, &s, VSOCK_SHUT_BOTH);
	expect_idle(g);
}
END_TEST

/* What had not gone to it yet is dropped too. */
START_TEST(host_stops_reading_full)
{
	int fd = connect_in(g, &s, 52, 1 << 16);
	uint32_t total = stuff();

	shutdown(fd, SHUT_RD);
	expect_shutdown(g, &s, VSOCK_SHUT_RCV);
	ck_assert_uint_eq(s.peer_fwd, total);
	expect_idle(g);
	send_op(g, &s, VSOCK_OP_SHUTDOWN, VSOCK_SHUT_BOTH);
	expect_op(g, &s, VSOCK_OP_RST);
	close(fd);
}
END_TEST

START_TEST(guest_half_closes)
{
	int fd = connect_in(g, &s, 52, 1 << 16);

	send_text(g, &s, "question");
	send_op(g, &s, VSOCK_OP_SHUTDOWN, VSOCK_SHUT_SEND);
	host_expect(g, fd, "question");
	host_expect_eof(g, fd);
	host_say(fd, "answer");
	expect_guest_text(g, &s, "answer");
	expect_silence(g);
	close(fd);
	expect_shutdown(g, &s, VSOCK_SHUT_BOTH);
	send_op(g, &s, VSOCK_OP_SHUTDOWN, VSOCK_SHUT_BOTH);
	expect_op(g, &s, VSOCK_OP_RST);
	expect_silence(g);
}
END_TEST

START_TEST(guest_stops_reading)
{
	int fd = connect_in(g, &s, 52, 1 << 16);

	send_op(g, &s, VSOCK_OP_SHUTDOWN, VSOCK_SHUT_RCV);
	driver_settle(g->d);
	ck_assert_int_lt(send(fd, "x", 1, MSG_NOSIGNAL), 0);
	ck_assert_int_eq(errno, EPIPE);
	expect_idle(g);
	send_text(g, &s, "still here");
	host_expect(g, fd, "still here");
	/* The other half: that is all of it. */
	send_op(g, &s, VSOCK_OP_SHUTDOWN, VSOCK_SHUT_SEND);
	expect_op(g, &s, VSOCK_OP_RST);
	host_expect_eof(g, fd);
	close(fd);
	expect_silence(g);
}
END_TEST

/* A guest that does not read any more still learns that the host has gone. */
START_TEST(guest_stops_reading_host_goes)
{
	int fd = connect_in(g, &s, 52, 1 << 16);

	send_op(g, &s, VSOCK_OP_SHUTDOWN, VSOCK_SHUT_RCV);
	driver_settle(g->d);
	close(fd);
	expect_shutdown(g, &s, VSOCK_SHUT_BOTH);
	send_op(g, &s, VSOCK_OP_RST, 0);
	expect_silence(g);
}
END_TEST

/* The host program dies with unread data; the guest has not. */
START_TEST(host_vanishes)
{
	int fd = connect_in(g, &s, 52, 1 << 16);
	struct packet p;

	send_text(g, &s, "never read");
	driver_settle(g->d);
	host_say(fd, "last words");
	close(fd);
	/* All it had said, then the end of it, one way or the other. */
	expect_guest_text(g, &s, "last words");
	next_packet(g, &p);
	ck_assert(p.hdr.op == VSOCK_OP_RST ||
		  (p.hdr.op == VSOCK_OP_SHUTDOWN && p.hdr.flags == VSOCK_SHUT_BOTH));
}
END_TEST

/* The time that the one connection may still take for what it waits for is nearly over. */
static void nearly_over(void)
{
	struct vsock_conn *c = LIST_FIRST(&to_vsock(g->d->v)->mux.all);

	ck_assert_ptr_nonnull(c);
	ck_assert_uint_gt(c->ticks, 1);
	c->ticks = 1;
}

/* No RST answers our SHUTDOWN: after a while the guest is sent one. */
START_TEST(guest_does_not_answer_shutdown)
{
	int fd = connect_in(g, &s, 52, 1 << 16);

	close(fd);
	expect_shutdown(g, &s, VSOCK_SHUT_BOTH);
	nearly_over();
	expect_op(g, &s, VSOCK_OP_RST);
	ck_assert_uint_eq(stats_of(g).connections, 0);
}
END_TEST

START_TEST(guest_does_not_answer_request)
{
	int fd = host_connect(g);
	struct packet p;

	host_say(fd, "CONNECT 52\n");
	next_packet(g, &p);
	s = (struct gsock){.port = 52, .host_port = p.hdr.src_port};
	nearly_over();
	host_expect_eof(g, fd);
	expect_op(g, &s, VSOCK_OP_RST);
	close(fd);
	expect_silence(g);
}
END_TEST

START_TEST(no_line_comes)
{
	int fd = host_connect(g);

	driver_settle(g->d);
	nearly_over();
	host_expect_eof(g, fd);
	close(fd);
	expect_silence(g);
}
END_TEST

/* One that is established has all the time in the world, whatever it took to get there. */
START_TEST(no_limit_when_open)
{
	int fd = connect_in(g, &s, 52, 1 << 16);

	ck_assert_uint_eq(LIST_FIRST(&to_vsock(g->d->v)->mux.all)->ticks, 0);
	close(fd);
}
END_TEST

/* A guest that closes is answered when all it had sent is delivered. */
START_TEST(guest_closes_with_data_pending)
{
	int fd = connect_in(g, &s, 52, 1 << 16);
	uint32_t total = stuff();

	ck_assert_uint_ge(total, VSOCK_BUF);
	/* Nor does it matter that the host has sent all it had to send. */
	shutdown(fd, SHUT_WR);
	expect_shutdown(g, &s, VSOCK_SHUT_SEND);
	expect_idle(g);
	send_op(g, &s, VSOCK_OP_SHUTDOWN, VSOCK_SHUT_BOTH);
	expect_silence(g);
	expect_idle(g);
	unstuff(fd, 0, total);
	do {
		struct packet p;

		next_packet(g, &p);
		if (p.hdr.op == VSOCK_OP_RST)
			break;
		ck_assert_uint_eq(p.hdr.op, VSOCK_OP_CREDIT_UPDATE);
	} while (true);
	close(fd);
}
END_TEST

/* So is what a guest had sent that did not wait, or that was reset. */
START_TEST(guest_aborts_with_data_pending)
{
	int fd = connect_in(g, &s, 52, 1 << 16);
	uint32_t total = stuff();

	if (_i == 0)
		send_op(g, &s, VSOCK_OP_RST, 0);
	else
		virtio_set_status(g->d->v, 0);
	driver_settle(g->d);
	ck_assert_uint_eq(stats_of(g).connections, 0);
	expect_idle(g);
	unstuff(fd, 0, total);
	close(fd);
}
END_TEST

/* And nobody waits for ever for a program that has gone. */
START_TEST(lingering_for_nobody)
{
	int fd = connect_in(g, &s, 52, 1 << 16);

	stuff();
	send_op(g, &s, VSOCK_OP_RST, 0);
	driver_settle(g->d);
	close(fd);
	fd = connect_in(g, &s, 53, 1 << 16); /* the loop has run */
	close(fd);
	expect_shutdown(g, &s, VSOCK_SHUT_BOTH);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("virtio-vsock");
	TCase *tc;

	tc = new_case(suite, "device");
	tcase_add_test(tc, what_it_is);
	tcase_add_test(tc, what_it_cannot_be);
	tcase_add_test(tc, driver_resets);
	tcase_add_test(tc, live_owner);
	tcase_add_test(tc, dead_owner);
	tcase_add_test(tc, no_folder);

	tc = new_case(suite, "connections");
	tcase_add_test(tc, host_to_guest);
	tcase_add_test(tc, line_and_data);
	tcase_add_test(tc, bad_lines);
	tcase_add_test(tc, refused_by_guest);
	tcase_add_test(tc, gone_before_response);
	tcase_add_test(tc, gone_before_request);
	tcase_add_test(tc, gone_before_line);
	tcase_add_test(tc, guest_to_host);
	tcase_add_test(tc, confined);
	tcase_add_test(tc, nobody_listens);

	tc = new_case(suite, "ends");
	tcase_add_test(tc, host_half_closes);
	tcase_add_test(tc, host_half_closes_then_closes);
	tcase_add_test(tc, host_stops_reading);
	tcase_add_test(tc, host_stops_reading_full);
	tcase_add_test(tc, guest_half_closes);
	tcase_add_test(tc, guest_stops_reading);
	tcase_add_test(tc, guest_stops_reading_host_goes);
	tcase_add_test(tc, host_vanishes);
	tcase_add_test(tc, guest_does_not_answer_shutdown);
	tcase_add_test(tc, guest_does_not_answer_request);
	tcase_add_test(tc, no_line_comes);
	tcase_add_test(tc, no_limit_when_open);
	tcase_add_test(tc, guest_closes_with_data_pending);
	tcase_add_loop_test(tc, guest_aborts_with_data_pending, 0, 2);
	tcase_add_test(tc, lingering_for_nobody);
	return run_suite(suite);
}
