/* SPDX-License-Identifier: MIT */
/* Who is let in, who is turned away, and who is only waited for so long. */
#include "../door.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "../../vmm/tests/check-main.h"
#include "../conn.h"
#include "../uri.h"

#define SESSION 0x1122334455667788ULL
/* Nothing here takes as long unless it hangs. */
#define SOON (30 * NS_PER_SEC)
#define FULL DOOR_QUEUE

static struct door door;
static int listen_fd, cancel_fd;
static char uri[64], out[64];
static struct errmsg err;

static void begin(void)
{
	err = (struct errmsg){0};
	snprintf(uri, sizeof(uri), "unix:/tmp/godwit-door-%d", (int)getpid());
	listen_fd = uri_listen(uri, out, sizeof(out), &err);
	ck_assert_msg(listen_fd >= 0, "%s", err.text);
	cancel_fd = eventfd(0, EFD_CLOEXEC);
	ck_assert_int_eq(door_open(&door, listen_fd, NULL, &err), 0);
}

static void end(void)
{
	door_close(&door);
	close(listen_fd);
	close(cancel_fd);
	uri_unlink(uri);
}

static int knock(void)
{
	struct timeval tv = {.tv_sec = 20};
	int fd = uri_connect(out, -1, 10 * NS_PER_SEC, &err);

	ck_assert_msg(fd >= 0, "%s", err.text);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
	return fd;
}

static void say_part(int fd, uint64_t session, size_t from, size_t len)
{
	struct wire_prelude p = {
		.version = WIRE_VERSION, .min_version = WIRE_MIN_VERSION, .session = session};

	memcpy(p.magic, WIRE_MAGIC, sizeof(p.magic));
	ck_assert_int_eq(write_exact(fd, (char *)&p + from, len), 0);
}

static void say(int fd, uint64_t session, size_t len)
{
	say_part(fd, session, 0, len);
}

static int come(uint64_t session)
{
	int fd = knock();

	say(fd, session, sizeof(struct wire_prelude));
	return fd;
}

/* The peer is told why not, in words that a source understands. */
static void refused(int fd)
{
	struct wire_prelude p;
	struct wire_frame f;
	char text[WIRE_TEXT_MAX + 1] = "";

	ck_assert_int_eq(read_exact(fd, &p, sizeof(p)), 0);
	ck_assert_mem_eq(p.magic, WIRE_MAGIC, sizeof(p.magic));
	ck_assert_int_eq(read_exact(fd, &f, sizeof(f)), 0);
	ck_assert_uint_eq(f.type, WIRE_REFUSE);
	ck_assert_uint_le(f.length, WIRE_TEXT_MAX);
	ck_assert_int_eq(read_exact(fd, text, f.length), 0);
	ck_assert_uint_eq(f.check, wire_check_sum(&f, text, f.length));
	ck_assert_msg(strstr(text, "is taking in another guest"), "%s", text);
	ck_assert_int_eq(read_exact(fd, text, 1), -ENODATA);
	close(fd);
}

/* Ended without a word. */
static void let_go(int fd)
{
	char byte;

	ck_assert_int_eq(read_exact(fd, &byte, 1), -ENODATA);
	close(fd);
}

static int await_one(struct arrival *a)
{
	return door_wait(&door, now_ns() + SOON, cancel_fd, a, &err);
}

/* Lets the next one in, whose session it is. */
static void lets_in(uint64_t session)
{
	struct arrival a;

	ck_assert_msg(await_one(&a) == 0, "%s", err.text);
	ck_assert_uint_eq(a.prelude.session, session);
	close(a.fd);
}

/* Until so many wait. */
static void in_queue(unsigned n)
{
	uint64_t until = now_ns() + SOON;
	unsigned now = ~n;

	while (now != n && now_ns() < until) {
		pthread_mutex_lock(&door.lock);
		now = door.n;
		pthread_mutex_unlock(&door.lock);
		poll(NULL, 0, 5);
	}
	ck_assert_uint_eq(now, n);
}

START_TEST(in_order)
{
	int fd[3];

	begin();
	ck_assert(!door_waiting(&door));
	/* Also one whose prelude comes in pieces. */
	fd[0] = knock();
	for (size_t i = 0; i < sizeof(struct wire_prelude); i += 8) {
		ck_assert(!door_waiting(&door));
		say_part(fd[0], SESSION, i, 8);
		poll(NULL, 0, 20);
	}
	fd[1] = come(SESSION + 1);
	fd[2] = come(SESSION);
	lets_in(SESSION);
	lets_in(SESSION + 1);
	lets_in(SESSION);
	ck_assert(!door_waiting(&door));
	for (unsigned i = 0; i < 3; i++)
		close(fd[i]);
	end();
}
END_TEST

START_TEST(busy)
{
	int own;

	begin();
	door_admit(&door, true, SESSION);
	refused(come(SESSION + 1));
	own = come(SESSION);
	lets_in(SESSION);
	close(own);
	door_admit(&door, false, 0);
	own = come(SESSION + 1);
	lets_in(SESSION + 1);
	close(own);
	end();
}
END_TEST

/* Who waited and turns out to be of another move; nobody else waits for those who do not leave. */
START_TEST(turned_away_later)
{
	int others[8], own[2];
	uint64_t since;

	begin();
	own[0] = come(SESSION);
	for (size_t i = 0; i < ARRAY_SIZE(others); i++)
		others[i] = come(SESSION + 1 + i);
	own[1] = come(SESSION);
	in_queue(ARRAY_SIZE(others) + 2);
	since = now_ns();
	door_admit(&door, true, SESSION);
	ck_assert_uint_lt(now_ns() - since, 5 * NS_PER_SEC);
	lets_in(SESSION);
	lets_in(SESSION);
	ck_assert(!door_waiting(&door));
	for (size_t i = 0; i < ARRAY_SIZE(others); i++)
		refused(others[i]);
	close(own[0]);
	close(own[1]);
	end();
}
END_TEST

/* One who says nothing, or half of it, is let go after a while; the next one is heard then. */
START_TEST(says_nothing)
{
	int silent = knock(), own;

	if (_i)
		say(silent, SESSION, sizeof(struct wire_prelude) / 2);
	own = come(SESSION);
	lets_in(SESSION);
	let_go(silent);
	close(own);
}
END_TEST

START_TEST(leaves_early)
{
	int fd, own;

	begin();
	for (unsigned i = 0; i < 20; i++) {
		fd = knock();
		if (i % 2)
			say(fd, SESSION, i);
		close(fd);
	}
	own = come(SESSION);
	lets_in(SESSION);
	close(own);
	end();
}
END_TEST

/* A full queue turns the next one away, unless some of those in it have left. */
START_TEST(full)
{
	int fd[FULL], own;

	begin();
	for (unsigned i = 0; i < FULL; i++)
		fd[i] = come(SESSION);
	refused(come(SESSION));
	ck_assert(door_waiting(&door));
	close(fd[10]);
	close(fd[FULL - 1]);
	own = come(SESSION + 1);
	in_queue(FULL - 1);
	for (unsigned i = 0; i < FULL - 2; i++)
		lets_in(SESSION);
	lets_in(SESSION + 1);
	close(own);
	for (unsigned i = 0; i < FULL; i++) {
		if (i != 10 && i != FULL - 1)
			close(fd[i]);
	}
	end();
}
END_TEST

START_TEST(left_is_not_waiting)
{
	int fd;

	begin();
	fd = come(SESSION);
	in_queue(1);
	ck_assert(door_waiting(&door));
	close(fd);
	ck_assert(!door_waiting(&door));
	end();
}
END_TEST

START_TEST(cancel)
{
	uint64_t one = 1;
	struct arrival a;

	begin();
	ck_assert_int_eq(door_wait(&door, now_ns() + 50 * NS_PER_MS, cancel_fd, &a, &err),
			 -ETIMEDOUT);
	ck_assert_msg(strstr(err.text, "no source came"), "%s", err.text);
	err = (struct errmsg){0};
	ck_assert_int_eq((int)write(cancel_fd, &one, sizeof(one)), (int)sizeof(one));
	ck_assert_int_eq(await_one(&a), -ECANCELED);
	ck_assert_str_eq(err.text, "cancelled");
	end();
}
END_TEST

/* Nobody is left with a connection that no one holds; and one who has not begun holds up nothing.
 */
START_TEST(closed)
{
	int waiting, silent;
	uint64_t since;

	begin();
	waiting = come(SESSION);
	in_queue(1);
	silent = knock();
	since = now_ns();
	end();
	ck_assert_uint_lt(now_ns() - since, CONN_PRELUDE_LIMIT);
	let_go(waiting);
	/* In the listener's queue, or at the door: closed or reset. */
	ck_assert_int_ne(read_exact(silent, &since, 1), 0);
	close(silent);
	door_close(&door);
}
END_TEST

static uint64_t cpu_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
	return (uint64_t)ts.tv_sec * NS_PER_SEC + (uint64_t)ts.tv_nsec;
}

/* Who cannot be accepted yet is waited for at ease. */
START_TEST(no_descriptors)
{
	struct sockaddr_un un = {.sun_family = AF_UNIX};
	struct rlimit was, few;
	uint64_t used;
	int fd;

	begin();
	ck_assert_int_eq(getrlimit(RLIMIT_NOFILE, &was), 0);
	few = (struct rlimit){.rlim_cur = 3, .rlim_max = was.rlim_max};
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &few), 0);
	strcpy(un.sun_path, uri + strlen("unix:"));
	ck_assert_int_eq(connect(fd, (struct sockaddr *)&un, sizeof(un)), 0);
	say(fd, SESSION, sizeof(struct wire_prelude));
	used = cpu_ns();
	poll(NULL, 0, 1000);
	used = cpu_ns() - used;
	ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &was), 0);
	ck_assert_uint_lt(used, NS_PER_SEC / 4);
	lets_in(SESSION);
	close(fd);
	end();
}
END_TEST

int main(void)
{
	Suite *s = suite_create("door");
	TCase *tc = tcase_create("door"), *silent = tcase_create("silent");

	tcase_set_timeout(tc, 60);
	tcase_add_test(tc, in_order);
	tcase_add_test(tc, busy);
	tcase_add_test(tc, turned_away_later);
	tcase_add_test(tc, leaves_early);
	tcase_add_test(tc, full);
	tcase_add_test(tc, left_is_not_waiting);
	tcase_add_test(tc, cancel);
	tcase_add_test(tc, closed);
	tcase_add_test(tc, no_descriptors);
	suite_add_tcase(s, tc);
	tcase_set_timeout(silent, 60);
	tcase_add_checked_fixture(silent, begin, end);
	tcase_add_loop_test(silent, says_nothing, 0, 2);
	suite_add_tcase(s, silent);
	return check_run(s);
}
