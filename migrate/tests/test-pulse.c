/* SPDX-License-Identifier: MIT */
/* Signs of life: who gives them, who is taken for dead, and who is only slow. */
#include "../pulse.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../../vmm/tests/check-main.h"

#define LIMIT NS_PER_SEC
/* Of a peer that is alive: a busy host may not run it for a second. */
#define LONG_LIMIT (2 * NS_PER_SEC + NS_PER_SEC / 2)
/* To notice it takes a moment more; a busy host many. */
#define SOON (30 * NS_PER_SEC)

static struct conn c;
static struct pulse pulse;
static int peer;
static struct errmsg err;
static uint32_t peer_seq;

static void connect_tcp(int fds[2])
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t len = sizeof(a);
	int l = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;

	ck_assert_int_eq(bind(l, (struct sockaddr *)&a, len), 0);
	ck_assert_int_eq(listen(l, 1), 0);
	ck_assert_int_eq(getsockname(l, (struct sockaddr *)&a, &len), 0);
	fds[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	ck_assert_int_eq(connect(fds[0], (struct sockaddr *)&a, len), 0);
	fds[1] = accept(l, NULL, NULL);
	ck_assert_int_ge(fds[1], 0);
	/* Each small piece is a segment of its own. */
	setsockopt(fds[1], IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	close(l);
}

static void begin(bool tcp)
{
	struct timeval tv = {.tv_sec = 20};
	int fds[2];

	if (tcp)
		connect_tcp(fds);
	else
		ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	peer = fds[1];
	setsockopt(peer, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
	err = (struct errmsg){""};
	peer_seq = 0;
	ck_assert_msg(conn_init(&c, fds[0], -1, "peer", &err) == 0, "%s", err.text);
}

static void end(void)
{
	pulse_stop(&pulse);
	conn_close(&c);
	close(peer);
}

static void start_with(uint64_t limit)
{
	conn_set_limit(&c, limit);
	ck_assert_msg(pulse_start(&pulse, &c, &err) == 0, "%s", err.text);
}

static void start(void)
{
	start_with(LIMIT);
}

static void read_idle(uint32_t seq)
{
	struct wire_frame f;

	ck_assert_int_eq(read_exact(peer, &f, sizeof(f)), 0);
	ck_assert_uint_eq(f.magic, WIRE_FRAME_MAGIC);
	ck_assert_uint_eq(f.type, WIRE_IDLE);
	ck_assert_uint_eq(f.seq, seq);
	ck_assert_uint_eq(f.check, wire_check_sum(&f, NULL, 0));
}

/* Also while its owner does nothing at all; with the numbers that are due. */
START_TEST(tells)
{
	struct wire_frame f;

	begin(_i);
	start_with(60 * NS_PER_SEC);
	read_idle(0);
	read_idle(1);
	conn_hush(&c);
	ck_assert_int_eq(conn_send(&c, WIRE_READY, NULL, 0, NULL, &err), 0);
	do
		ck_assert_int_eq(read_exact(peer, &f, sizeof(f)), 0);
	while (f.type == WIRE_IDLE);
	ck_assert_uint_eq(f.type, WIRE_READY);
	/* Nothing after that. */
	pulse_stop(&pulse);
	conn_close(&c);
	ck_assert_int_eq(read_exact(peer, &f, sizeof(f)), -ENODATA);
	close(peer);
}
END_TEST

/* Never in the middle of a frame: here one of which only a part finds room. */
START_TEST(not_within_a_frame)
{
	struct wire_frame f;
	struct conn_batch *b;
	uint32_t seq = 0;
	bool batch = false;
	int ret;

	begin(false);
	b = conn_batch(&c, &ret, &err);
	ck_assert_ptr_nonnull(b);
	b->head = (struct wire_batch){.n_descs = 64, .n_data = 64};
	ck_assert_int_eq(conn_send_batch(&c, b, &err), 0);
	start_with(60 * NS_PER_SEC);
	poll(NULL, 0, 3 * CONN_TELL_NS / NS_PER_MS);
	while (!batch || seq < 3) {
		static char payload[sizeof(struct wire_batch) + 64 * sizeof(struct wire_desc) +
				    64 * PAGE_SIZE];

		ck_assert_int_eq(conn_poll(&c, &err), 0);
		if (poll(&(struct pollfd){.fd = peer, .events = POLLIN}, 1, 10) == 0)
			continue;
		ck_assert_int_eq(recv(peer, &f, sizeof(f), MSG_WAITALL), sizeof(f));
		ck_assert_uint_eq(f.magic, WIRE_FRAME_MAGIC);
		ck_assert_uint_eq(f.seq, seq++);
		if (f.type != WIRE_PAGES)
			continue;
		batch = true;
		ck_assert_uint_eq(f.length, sizeof(payload));
		for (size_t n = 0; n < sizeof(payload);) {
			ssize_t got = recv(peer, payload + n, sizeof(payload) - n, MSG_DONTWAIT);

			n += got > 0 ? (size_t)got : 0;
			ck_assert_int_eq(conn_poll(&c, &err), 0);
		}
	}
	end();
}
END_TEST

/* ---- the dead ---- */

START_TEST(silent)
{
	uint64_t since = now_ns();
	struct wire_frame f;

	begin(_i);
	start();
	ck_assert_int_eq(conn_recv_header(&c, &f, &err), -ETIMEDOUT);
	ck_assert_msg(strstr(err.text, "for 1 s"), "%s", err.text);
	ck_assert_uint_ge(now_ns() - since, LIMIT);
	ck_assert_uint_lt(now_ns() - since, SOON);
	end();
}
END_TEST

/* Its socket takes all that is sent, at a rate so low that it would do so for an hour. */
START_TEST(silent_while_sending)
{
	uint64_t since = now_ns();
	struct rate rate;
	int ret = 0;

	begin(_i);
	rate_init(&rate, 20000);
	c.rate = &rate;
	start();
	while (ret == 0) {
		struct conn_batch *b = conn_batch(&c, &ret, &err);

		if (!b)
			break;
		b->head = (struct wire_batch){.n_descs = 1, .n_data = 1};
		ret = conn_send_batch(&c, b, &err);
	}
	ck_assert_int_eq(ret, -ETIMEDOUT);
	ck_assert_msg(strstr(err.text, "nothing has come from the peer for 1 s"), "%s", err.text);
	ck_assert_uint_ge(now_ns() - since, LIMIT);
	ck_assert_uint_lt(now_ns() - since, SOON);
	end();
	rate_destroy(&rate);
}
END_TEST

/* Another connection of the same move, which may itself be silent for long. */
START_TEST(others_hear_of_it)
{
	uint64_t since = now_ns();
	struct wire_frame f;
	struct conn other;
	int fds[2];

	begin(false);
	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	ck_assert_int_eq(conn_init(&other, fds[0], -1, "peer", &err), 0);
	other.patient = true;
	other.main = &c;
	start();
	ck_assert_int_eq(conn_recv_header(&other, &f, &err), -ETIMEDOUT);
	ck_assert_uint_lt(now_ns() - since, SOON);
	conn_close(&other);
	close(fds[1]);
	end();
}
END_TEST

static bool is_back(void *arg)
{
	return *(atomic_bool *)arg;
}

/* Of one who is known to be back, less silence will do; of others, or who speaks, it does not. */
START_TEST(back_again)
{
	atomic_bool back = _i;
	uint64_t since = now_ns();
	struct wire_frame f;

	begin(false);
	start_with(60 * NS_PER_SEC);
	pulse_heed(&pulse, is_back, &back);
	c.deadline_ns = since + 5 * NS_PER_SEC;
	ck_assert_int_eq(conn_recv_header(&c, &f, &err), -ETIMEDOUT);
	ck_assert_msg(
		strstr(err.text, _i ? "nothing has come from the peer for 3 s" : "time allowed"),
		"%s", err.text);
	ck_assert_uint_ge(now_ns() - since, PULSE_BACK_NS);
	end();
}
END_TEST

START_TEST(silence_expected)
{
	struct wire_frame f = {
		.magic = WIRE_FRAME_MAGIC, .type = WIRE_RUNNING, .seq = 0, .length = 0};

	begin(false);
	start_with(LONG_LIMIT);
	pulse_expect_silence(&pulse);
	poll(NULL, 0, 3 * LONG_LIMIT / 2 / NS_PER_MS);
	f.check = wire_check_sum(&f, NULL, 0);
	ck_assert_int_eq(write_exact(peer, &f, sizeof(f)), 0);
	ck_assert_msg(conn_recv_header(&c, &f, &err) == 0, "%s", err.text);
	end();
}
END_TEST

/* ---- the slow ---- */

static atomic_bool stop;

static void *say_idle(void *arg)
{
	(void)arg;
	while (!stop) {
		struct wire_frame f = {
			.magic = WIRE_FRAME_MAGIC, .type = WIRE_IDLE, .seq = peer_seq++};

		f.check = wire_check_sum(&f, NULL, 0);
		if (write_exact(peer, &f, sizeof(f)))
			break;
		poll(NULL, 0, 100);
	}
	return NULL;
}

/* Twice the limit, and it is waited for. */
START_TEST(idle_is_alive)
{
	pthread_t t;

	begin(_i);
	start_with(LONG_LIMIT);
	stop = false;
	pthread_create(&t, NULL, say_idle, NULL);
	c.deadline_ns = now_ns() + 2 * LONG_LIMIT;
	ck_assert_int_eq(conn_expect(&c, WIRE_READY, NULL, 0, NULL, &err), -ETIMEDOUT);
	ck_assert_msg(strstr(err.text, "time allowed"), "%s", err.text);
	ck_assert_uint_ge(now_ns(), c.deadline_ns);
	stop = true;
	pthread_join(t, NULL);
	end();
}
END_TEST

#define PIECES 24U
static uint8_t large[PIECES * 100];

/* A frame that comes in pieces, each in time, all of it not. */
static void *trickle(void *arg)
{
	(void)arg;
	for (size_t i = 0; i < sizeof(large); i += sizeof(large) / PIECES) {
		if (write_exact(peer, large + i, sizeof(large) / PIECES))
			break;
		poll(NULL, 0, 2 * LONG_LIMIT / PIECES / NS_PER_MS);
	}
	return NULL;
}

START_TEST(trickle_comes)
{
	static uint8_t got[sizeof(large)];
	uint64_t since = now_ns();
	pthread_t t;

	begin(_i);
	start_with(LONG_LIMIT);
	memset(large, 0x5a, sizeof(large));
	pthread_create(&t, NULL, trickle, NULL);
	ck_assert_msg(conn_recv(&c, got, sizeof(got), &err) == 0, "%s", err.text);
	ck_assert_mem_eq(got, large, sizeof(got));
	ck_assert_uint_gt(now_ns() - since, 3 * LONG_LIMIT / 2);
	pthread_join(t, NULL);
	end();
}
END_TEST

/* Takes a little now and then, of far more than its socket has room for: a batch in 3.2 s. */
static void *sip(void *arg)
{
	static char buf[16 * KIB];

	(void)arg;
	while (!stop && recv(peer, buf, sizeof(buf), 0) > 0)
		poll(NULL, 0, 200);
	return NULL;
}

START_TEST(trickle_goes)
{
	const uint64_t limit = 3 * NS_PER_SEC;
	int ret, small = 32 * KIB;
	uint64_t since = now_ns();
	struct conn_batch *b;
	pthread_t t;

	begin(_i);
	/* Only the operation's own progress is looked at here. A window opens in large steps. */
	conn_set_limit(&c, limit);
	setsockopt(c.fd, SOL_SOCKET, SO_SNDBUF, &small, sizeof(small));
	setsockopt(peer, SOL_SOCKET, SO_RCVBUF, &small, sizeof(small));
	stop = false;
	pthread_create(&t, NULL, sip, NULL);
	while (now_ns() - since < 3 * limit) {
		b = conn_batch(&c, &ret, &err);
		ck_assert_msg(b, "%s", err.text);
		b->head = (struct wire_batch){.n_descs = 64, .n_data = 64};
		ck_assert_msg(conn_send_batch(&c, b, &err) == 0, "%s", err.text);
	}
	stop = true;
	conn_break(&c);
	pthread_join(t, NULL);
	end();
}
END_TEST

int main(void)
{
	Suite *s = suite_create("pulse");
	TCase *tc = tcase_create("pulse");

	tcase_set_timeout(tc, 120);
	/* Over a UNIX socket, then over TCP. */
	tcase_add_loop_test(tc, tells, 0, 2);
	tcase_add_test(tc, not_within_a_frame);
	tcase_add_loop_test(tc, silent, 0, 2);
	tcase_add_loop_test(tc, silent_while_sending, 0, 2);
	tcase_add_test(tc, others_hear_of_it);
	tcase_add_loop_test(tc, back_again, 0, 2);
	tcase_add_test(tc, silence_expected);
	tcase_add_loop_test(tc, idle_is_alive, 0, 2);
	tcase_add_loop_test(tc, trickle_comes, 0, 2);
	tcase_add_loop_test(tc, trickle_goes, 0, 2);
	suite_add_tcase(s, tc);
	return check_run(s);
}
