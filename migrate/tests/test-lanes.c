/* SPDX-License-Identifier: MIT */
/* The destination's other connections, with a source made here that is ahead, late, or wrong. */
#include "../lanes.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../../vmm/tests/check-main.h"
#include "../uri.h"

#define N 2U
#define SESSION 0x1234567890abcdefULL
#define SEED 99
#define PAGE 77

/*
 * A ring that one thread has closed may be mapped again by another: liburing's calls for that are
 * its own, so the sanitizer takes the two for one.
 */
const char *__tsan_default_suppressions(void);
const char *__tsan_default_suppressions(void)
{
	return "race:io_uring_\n";
}

static char uri[64], out[64];
static int listen_fd;
static struct door door;
static struct ram ram;
static struct hashes hashes;
static struct store like;
static struct lanes lanes;
static struct conn source[N];
static struct conn main_conn, main_peer; /* where nothing is said, unless a test does */
static struct errmsg err, open_err;
static pthread_t opener;
static int opened;
static uint64_t cpu;

static void *open_all(void *arg)
{
	(void)arg;
	opened = lanes_open(&lanes, N, &door, -1, SESSION, 0, &main_conn, &like, &open_err);
	return NULL;
}

/* A peer that says this session, and what it joins with. */
static void join(struct conn *c, uint64_t session, enum wire_type type, bool taken)
{
	struct errmsg why = {0};
	uint64_t answer = 0;
	int fd = uri_connect(out, -1, 10 * NS_PER_SEC, &why);

	ck_assert_msg(fd >= 0, "%s", why.text);
	ck_assert_int_eq(conn_init(c, fd, -1, "destination", &why), 0);
	ck_assert_int_eq(conn_send_prelude(c, session, &why), 0);
	ck_assert_int_eq(conn_recv_prelude(c, &answer, &why) == 0, session == SESSION);
	if (session == SESSION)
		conn_send(c, type, NULL, 0, NULL, &why);
	if (!taken)
		conn_close(c);
}

/* Waits for connections. */
static void begin_to_open(void)
{
	int pair[2];

	snprintf(uri, sizeof(uri), "unix:/tmp/godwit-lanes-%d", (int)getpid());
	listen_fd = uri_listen(uri, out, sizeof(out), &err);
	ck_assert_msg(listen_fd >= 0, "%s", err.text);
	ck_assert_int_eq(door_open(&door, listen_fd, NULL, &err), 0);
	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	ck_assert_int_eq(conn_init(&main_conn, pair[0], -1, "source", &err), 0);
	ck_assert_int_eq(conn_init(&main_peer, pair[1], -1, "destination", &err), 0);
	conn_set_limit(&main_conn, CONN_LIMIT_DEFAULT);
	ck_assert_int_eq(ram_init(&ram, RAM_MIN, true, &err), 0);
	ck_assert_int_eq(hashes_init(&hashes, ram.npages, SEED), 0);
	like = (struct store){.ram = &ram, .hashes = &hashes};
	ck_assert_int_eq(pthread_create(&opener, NULL, open_all, NULL), 0);
}

static void begin(void)
{
	begin_to_open();
	/* Others that come meanwhile change nothing. */
	join(&source[0], SESSION + 1, WIRE_JOIN, false);
	join(&source[0], SESSION, WIRE_COMMIT, false);
	for (unsigned i = 0; i < N; i++)
		join(&source[i], SESSION, WIRE_JOIN, true);
	pthread_join(opener, NULL);
	ck_assert_msg(opened == 0, "%s", open_err.text);
	ck_assert_uint_eq(lanes.n, N);
}

static void end(void)
{
	lanes_close(&lanes, &cpu);
	for (unsigned i = 0; i < N; i++)
		conn_close(&source[i]);
	conn_close(&main_conn);
	conn_close(&main_peer);
	hashes_free(&hashes);
	ram_destroy(&ram);
	door_close(&door);
	close(listen_fd);
	uri_unlink(uri);
}

static void send_page(unsigned i, uint8_t value)
{
	int ret;
	struct conn_batch *b = conn_batch(&source[i], &ret, &err);

	ck_assert_ptr_nonnull(b);
	memset(b->data, value, PAGE_SIZE);
	b->head = (struct wire_batch){.n_descs = 1, .n_data = 1};
	b->desc[0] = (struct wire_desc){.index = PAGE,
					.count = 1,
					.kind = WIRE_PAGE_DATA,
					.hash = hash_page(&hashes, b->data)};
	ck_assert_int_eq(conn_send_batch(&source[i], b, &err), 0);
	ck_assert_int_eq(conn_flush(&source[i], &err), 0);
}

static void send_end(unsigned i, uint32_t round)
{
	ck_assert_int_eq(conn_send(&source[i], WIRE_ROUND_END, &round, sizeof(round), NULL, &err),
			 0);
}

static uint32_t ended(unsigned i)
{
	uint32_t n;

	pthread_mutex_lock(&lanes.lock);
	n = lanes.lane[i].ended;
	pthread_mutex_unlock(&lanes.lock);
	return n;
}

static void await_end(unsigned i, uint32_t round)
{
	uint64_t deadline = now_ns() + 20 * NS_PER_SEC;

	while (ended(i) < round && now_ns() < deadline)
		usleep(100);
	ck_assert_uint_eq(ended(i), round);
}

/*
 * One connection is at round 2 while the other still brings a page of round 1: what is stored last
 * is what the source sent last.
 */
START_TEST(rounds_keep_order)
{
	begin();
	for (uint32_t round = 1; round < 20; round++) {
		unsigned ahead = round % 2, late = !ahead;

		send_end(ahead, round);
		send_page(ahead, (uint8_t)(100 + round));
		await_end(ahead, round);
		/* It waits. Anything else it would have done by now, mostly. */
		usleep(2000);
		ck_assert_uint_ne(*ram_page(&ram, PAGE), 100 + round);
		send_page(late, (uint8_t)round);
		send_end(late, round);
		ck_assert_msg(lanes_end_round(&lanes, round, &err) == 0, "%s", err.text);
		/* The page of the next round, which is ended with it. */
		send_end(ahead, round + 1);
		send_end(late, round + 1);
		round++;
		ck_assert_msg(lanes_end_round(&lanes, round, &err) == 0, "%s", err.text);
		ck_assert_uint_eq(*ram_page(&ram, PAGE), 100 + round - 1);
	}
	end();
}
END_TEST

/* A source that gives up, or dies, before all of them are there is not waited for. */
START_TEST(no_more_will_come)
{
	begin_to_open();
	for (unsigned i = 0; i < N - 1; i++)
		join(&source[i], SESSION, WIRE_JOIN, true);
	if (_i)
		conn_break(&main_peer);
	else
		conn_fail(&main_peer, WIRE_FAIL, "no memory");
	pthread_join(opener, NULL);
	ck_assert_int_eq(opened, _i ? -ECONNRESET : -ECONNABORTED);
	ck_assert_msg(strstr(open_err.text, _i ? "closed the connection" : "says: no memory"),
		      "'%s'", open_err.text);
	source[N - 1].fd = -1;
	end();
}
END_TEST

/* What it says for later, as it may once it has begun the last of them, is for later. */
START_TEST(said_early)
{
	uint64_t now = 4711, then = 0;
	uint32_t len;

	begin_to_open();
	ck_assert_int_eq(conn_send(&main_peer, WIRE_PING, &now, sizeof(now), NULL, &err), 0);
	for (unsigned i = 0; i < N - 1; i++)
		join(&source[i], SESSION, WIRE_JOIN, true);
	/* Until it has been looked at, mostly. */
	usleep(300000);
	join(&source[N - 1], SESSION, WIRE_JOIN, true);
	pthread_join(opener, NULL);
	ck_assert_msg(opened == 0, "%s", open_err.text);
	ck_assert_msg(conn_expect(&main_conn, WIRE_PING, &then, sizeof(then), &len, &err) == 0,
		      "%s", err.text);
	ck_assert_uint_eq(then, now);
	end();
}
END_TEST

/* What one of them finds ends the move, with the reason. */
START_TEST(failures)
{
	static const char *const texts[] = {"was damaged", "beside its main", "ended round 3",
					    "closed the connection"};
	struct conn_batch *b;
	int ret;

	begin();
	switch (_i) {
	case 0:
		b = conn_batch(&source[1], &ret, &err);
		b->head = (struct wire_batch){.n_descs = 1, .n_data = 1};
		b->desc[0] = (struct wire_desc){.index = 1, .count = 1, .kind = WIRE_PAGE_DATA};
		memset(b->data, 1, PAGE_SIZE);
		ck_assert_int_eq(conn_send_batch(&source[1], b, &err), 0);
		ck_assert_int_eq(conn_flush(&source[1], &err), 0);
		break;
	case 1:
		ck_assert_int_eq(
			conn_send(&source[1], WIRE_COMMIT, "0123456789abcdef", 16, NULL, &err), 0);
		break;
	case 2:
		send_end(1, 3);
		break;
	default:
		conn_break(&source[1]);
	}
	send_end(0, 1);
	ck_assert_int_lt(lanes_end_round(&lanes, 1, &err), 0);
	ck_assert_msg(strstr(err.text, texts[_i]), "'%s'", err.text);
	err = (struct errmsg){0};
	ck_assert_int_lt(lanes_failed(&lanes, &err), 0);
	end();
}
END_TEST

int main(void)
{
	Suite *s = suite_create("lanes");
	TCase *tc = tcase_create("lanes");

	tcase_set_timeout(tc, 120);
	tcase_add_test(tc, rounds_keep_order);
	tcase_add_loop_test(tc, failures, 0, 4);
	tcase_add_loop_test(tc, no_more_will_come, 0, 2);
	tcase_add_test(tc, said_early);
	suite_add_tcase(s, tc);
	return check_run(s);
}
