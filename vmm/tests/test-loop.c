/* SPDX-License-Identifier: MIT */
#include "../loop.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../util.h"
#include "check-main.h"

static struct loop loop;

static void begin(void)
{
	ck_assert_int_eq(loop_init(&loop), 0);
}

static void end(void)
{
	loop_destroy(&loop);
}

/* An operation that keeps its result. */
struct seen {
	struct loop_op op;
	unsigned times;
	int32_t res;
};

static void on_done(struct loop_op *op, int32_t res)
{
	struct seen *s = container_of(op, struct seen, op);

	s->times++;
	s->res = res;
}

static struct seen a_seen(void)
{
	return (struct seen){.op = {.done = on_done}};
}

static void run_until(const unsigned *times, unsigned want)
{
	uint64_t deadline = now_ns() + 10 * NS_PER_SEC;

	while (*times < want) {
		ck_assert_msg(now_ns() < deadline, "%u of %u", *times, want);
		ck_assert_int_eq(loop_step(&loop, NS_PER_SEC), 0);
	}
}

START_TEST(timers)
{
	struct seen s = a_seen(), other = a_seen();
	uint64_t start;

	begin();
	start = now_ns();
	loop_timer(&loop, &other.op, 3600 * NS_PER_SEC);
	loop_timer(&loop, &s.op, 20 * NS_PER_MS);
	ck_assert(s.op.pending);
	run_until(&s.times, 1);
	ck_assert_uint_ge(now_ns() - start, 20 * NS_PER_MS);
	ck_assert_int_eq(s.res, -ETIME);
	ck_assert(!s.op.pending);
	ck_assert_uint_eq(other.times, 0);

	loop_cancel(&loop, &other.op);
	run_until(&other.times, 1);
	ck_assert_int_eq(other.res, -ECANCELED);
	/* One that is not pending. */
	loop_cancel(&loop, &other.op);
	ck_assert_int_eq(loop_step(&loop, 0), 0);
	ck_assert_uint_eq(other.times, 1);
	end();
}
END_TEST

/* Any operation of io_uring, and several times the same op. */
START_TEST(operations)
{
	struct seen in = a_seen(), ready = a_seen();
	char buf[8] = "";
	int fds[2];

	begin();
	ck_assert_int_eq(pipe(fds), 0);
	for (unsigned i = 1; i <= 3; i++) {
		loop_poll(&loop, &ready.op, fds[0], POLLIN);
		ck_assert_int_eq(loop_step(&loop, 0), 0);
		ck_assert_uint_eq(ready.times, i - 1);
		ck_assert_int_eq(write_exact(fds[1], "abc", 3), 0);
		run_until(&ready.times, i);
		ck_assert(ready.res & POLLIN);
		io_uring_prep_read(loop_sqe(&loop, &in.op), fds[0], buf, sizeof(buf), 0);
		run_until(&in.times, i);
		ck_assert_int_eq(in.res, 3);
		ck_assert_mem_eq(buf, "abc", 3);
	}
	close(fds[1]);
	io_uring_prep_read(loop_sqe(&loop, &in.op), fds[0], buf, sizeof(buf), 0);
	run_until(&in.times, 4);
	ck_assert_int_eq(in.res, 0);
	close(fds[0]);
	end();
}
END_TEST

#define MANY 1000

/* More at once than the queue has entries. */
START_TEST(many)
{
	static struct seen s[MANY];

	begin();
	for (unsigned i = 0; i < MANY; i++) {
		s[i] = a_seen();
		loop_timer(&loop, &s[i].op, NS_PER_MS + i * 1000);
	}
	for (unsigned i = 0; i < MANY; i++)
		run_until(&s[i].times, 1);
	for (unsigned i = 0; i < MANY; i++) {
		ck_assert_uint_eq(s[i].times, 1);
		ck_assert_int_eq(s[i].res, -ETIME);
	}
	end();
}
END_TEST

/* ---- tasks ---- */

struct note {
	struct loop_task task;
	unsigned times, order;
	bool again;
};

static unsigned order;

static void run_note(struct loop_task *t)
{
	struct note *n = container_of(t, struct note, task);

	n->times++;
	n->order = ++order;
	/* It is free to be posted again as soon as it runs. */
	if (n->again && n->times < 5)
		loop_post(&loop, t);
}

START_TEST(tasks_in_order)
{
	struct note n[5] = {0};

	begin();
	order = 0;
	for (unsigned i = 0; i < ARRAY_SIZE(n); i++) {
		n[i].task.run = run_note;
		loop_post(&loop, &n[i].task);
		/* Posted twice, it runs once. */
		loop_post(&loop, &n[i].task);
	}
	run_until(&n[4].times, 1);
	for (unsigned i = 0; i < ARRAY_SIZE(n); i++) {
		ck_assert_uint_eq(n[i].times, 1);
		ck_assert_uint_eq(n[i].order, i + 1);
	}
	n[0].again = true;
	loop_post(&loop, &n[0].task);
	run_until(&n[0].times, 5);
	end();
}
END_TEST

START_TEST(tasks_taken_back)
{
	struct note n[4] = {0};

	begin();
	for (unsigned i = 0; i < ARRAY_SIZE(n); i++) {
		n[i].task.run = run_note;
		loop_post(&loop, &n[i].task);
	}
	/* From the middle, the end, and one that is not there any more. */
	loop_unpost(&loop, &n[1].task);
	loop_unpost(&loop, &n[3].task);
	loop_unpost(&loop, &n[3].task);
	ck_assert(!n[1].task.queued && !n[3].task.queued);
	loop_post(&loop, &n[1].task);
	run_until(&n[1].times, 1);
	ck_assert(n[0].times == 1 && n[2].times == 1 && n[3].times == 0);
	loop_post(&loop, &n[3].task);
	loop_unpost(&loop, &n[3].task);
	loop_post(&loop, &n[0].task);
	run_until(&n[0].times, 2);
	ck_assert_uint_eq(n[3].times, 0);
	end();
}
END_TEST

#define THREADS 4
#define POSTS 5000

static struct poster {
	struct loop_task task;
	pthread_t thread;
	_Atomic unsigned posted, run;
} posters[THREADS];

static void run_poster(struct loop_task *t)
{
	struct poster *p = container_of(t, struct poster, task);

	/* Whatever was posted before this began to run is covered by it. */
	p->run = p->posted;
}

static void *post_often(void *arg)
{
	struct poster *p = arg;

	for (unsigned i = 1; i <= POSTS; i++) {
		p->posted = i;
		loop_post(&loop, &p->task);
	}
	return NULL;
}

/* From other threads, while the loop runs: none gets lost. */
START_TEST(tasks_of_threads)
{
	uint64_t deadline = now_ns() + 20 * NS_PER_SEC;
	bool all;

	begin();
	for (unsigned i = 0; i < THREADS; i++) {
		posters[i] = (struct poster){.task = {.run = run_poster}};
		ck_assert_int_eq(pthread_create(&posters[i].thread, NULL, post_often, &posters[i]),
				 0);
	}
	do {
		ck_assert(now_ns() < deadline);
		ck_assert_int_eq(loop_step(&loop, NS_PER_SEC), 0);
		all = true;
		for (unsigned i = 0; i < THREADS; i++)
			all = all && posters[i].run == POSTS;
	} while (!all);
	for (unsigned i = 0; i < THREADS; i++)
		pthread_join(posters[i].thread, NULL);
	end();
}
END_TEST

static void *post_late(void *arg)
{
	usleep(20000);
	loop_post(&loop, arg);
	return NULL;
}

static void run_stop(struct loop_task *t)
{
	(void)t;
	loop_stop(&loop);
}

/* A loop that sleeps for ever is woken. */
START_TEST(woken)
{
	struct loop_task stop = {.run = run_stop};
	pthread_t t;

	begin();
	ck_assert_int_eq(pthread_create(&t, NULL, post_late, &stop), 0);
	ck_assert_int_eq(loop_run(&loop), 0);
	pthread_join(t, NULL);
	/* It can run again. */
	loop_post(&loop, &stop);
	ck_assert_int_eq(loop_run(&loop), 0);
	end();
}
END_TEST

START_TEST(steps_end_in_time)
{
	uint64_t start;

	begin();
	start = now_ns();
	ck_assert_int_eq(loop_step(&loop, 0), 0);
	ck_assert_int_eq(loop_step(&loop, 30 * NS_PER_MS), 0);
	ck_assert_uint_ge(now_ns() - start, 29 * NS_PER_MS);
	ck_assert_uint_lt(now_ns() - start, 10 * NS_PER_SEC);
	end();
}
END_TEST

/* Something in memory that is looked at: found when the count is used up. */
struct looked {
	struct loop_look look;
	unsigned looks, sleeps;
	unsigned find_after;
	bool late;		/* sleep() finds something */
	struct loop_task *task; /* posted by sleep() */
};

static bool on_look(struct loop_look *look)
{
	struct looked *k = container_of(look, struct looked, look);

	return ++k->looks == k->find_after;
}

static bool on_sleep(struct loop_look *look)
{
	struct looked *k = container_of(look, struct looked, look);

	k->sleeps++;
	ck_assert(!look->listed);
	if (k->task)
		loop_post(&loop, k->task);
	return k->late;
}

static struct looked a_looked(void)
{
	return (struct looked){.look = {.look = on_look, .sleep = on_sleep}};
}

/* What is looked at keeps the loop awake for as long as it is worth it, and no longer. */
START_TEST(looks)
{
	struct looked k = a_looked(), other = a_looked();
	struct seen s = a_seen();
	unsigned before;
	uint64_t start;

	begin();
	/* Found: it does not sleep, and goes on looking the next time. */
	k.find_after = 1;
	loop_look(&loop, &k.look);
	loop_look(&loop, &other.look);
	loop_look(&loop, &k.look);
	ck_assert_int_eq(loop_step(&loop, UINT64_MAX), 0);
	ck_assert_uint_eq(k.looks, 1);
	ck_assert_uint_eq(other.looks, 1);
	ck_assert(k.look.listed && other.look.listed);

	/* Nothing: all are told before it sleeps, and forgotten. */
	start = now_ns();
	ck_assert_int_eq(loop_step(&loop, 20 * NS_PER_MS), 0);
	ck_assert_uint_ge(now_ns() - start, 20 * NS_PER_MS);
	ck_assert_uint_eq(k.sleeps, 1);
	ck_assert_uint_eq(other.sleeps, 1);
	ck_assert(!k.look.listed && !other.look.listed && !loop.looks);
	before = k.looks;
	ck_assert_int_eq(loop_step(&loop, NS_PER_MS), 0);
	ck_assert_uint_eq(k.looks, before);

	/* It came at the last moment: no sleep either. */
	k.late = true;
	loop_look(&loop, &k.look);
	ck_assert_int_eq(loop_step(&loop, UINT64_MAX), 0);
	ck_assert_uint_eq(k.sleeps, 2);

	/* What completes meanwhile does so. */
	k = a_looked();
	loop_look(&loop, &k.look);
	io_uring_prep_nop(loop_sqe(&loop, &s.op));
	ck_assert_int_eq(loop_step(&loop, UINT64_MAX), 0);
	ck_assert_uint_eq(s.times, 1);
	loop_unlook(&loop, &k.look);
	loop_unlook(&loop, &k.look);
	ck_assert(!loop.looks);
	end();
}
END_TEST

static uint64_t look_ns_after(enum loop_hope hope, unsigned rounds, bool find)
{
	for (unsigned i = 0; i < rounds; i++) {
		struct looked k = a_looked();

		k.find_after = find ? 1 : 0;
		loop_look(&loop, &k.look);
		loop_expect(&loop, hope);
		loop_expect(&loop, LOOP_NOTHING);
		ck_assert_int_eq(loop_step(&loop, NS_PER_MS), 0);
		loop_unlook(&loop, &k.look);
	}
	return loop.look_ns[hope];
}

/* The longer the more often it was of use; hardly at all when it never was, or nothing hoped for.
 */
START_TEST(looks_longer)
{
	static const enum loop_hope hopes[] = {LOOP_COMPLETION, LOOP_ANSWER};
	uint64_t least;

	begin();
	least = look_ns_after(LOOP_NOTHING, 20, false);
	ck_assert_uint_gt(least, 0);
	ck_assert_uint_eq(look_ns_after(LOOP_NOTHING, 20, true), least);
	for (unsigned i = 0; i < ARRAY_SIZE(hopes); i++) {
		uint64_t useful = look_ns_after(hopes[i], 20, true);

		ck_assert_uint_gt(useful, 4 * least);
		ck_assert_uint_eq(look_ns_after(hopes[i], 20, true), useful);
		ck_assert_uint_eq(look_ns_after(hopes[i], 20, false), least);
		ck_assert_uint_eq(look_ns_after(hopes[i], 20, true), useful);
	}
	end();
}
END_TEST

static void on_missed(struct loop_task *task)
{
	(void)task;
	loop_missed(&loop);
}

static void on_other(struct loop_task *task)
{
	(void)task;
}

/* The look that an answer would have needed: it goes by what was missed, not by what else came. */
START_TEST(looks_as_missed)
{
	struct loop_task tasks[] = {{.run = on_other}, {.run = on_missed}};
	uint64_t ns[2], least;

	begin();
	least = look_ns_after(LOOP_NOTHING, 1, false);
	loop.one_cpu = true; /* does not wait to look */
	for (unsigned i = 0; i < ARRAY_SIZE(tasks); i++) {
		ns[i] = 0;
		for (unsigned k = 0; k < 1000; k++) {
			struct looked never = a_looked();

			loop.look_ns[LOOP_ANSWER] = 4 * least;
			loop_look(&loop, &never.look);
			loop_expect(&loop, LOOP_ANSWER);
			never.task = &tasks[i];
			ck_assert_int_eq(loop_step(&loop, NS_PER_SEC), 0);
			ns[i] = MAX(ns[i], loop.look_ns[LOOP_ANSWER]);
		}
	}
	ck_assert_uint_lt(ns[0], 4 * least);
	ck_assert_uint_gt(ns[1], 4 * least);
	end();
}
END_TEST

/* A completion is what was hoped for, or leaves the hope for an answer as it is. */
START_TEST(looks_for_completions)
{
	struct looked k = a_looked();
	struct seen s = a_seen();
	uint64_t before;

	begin();
	for (unsigned i = 0; i < 20; i++) {
		loop_look(&loop, &k.look);
		loop_expect(&loop, LOOP_COMPLETION);
		io_uring_prep_nop(loop_sqe(&loop, &s.op));
		ck_assert_int_eq(loop_step(&loop, UINT64_MAX), 0);
		ck_assert_uint_eq(s.times, i + 1);
		ck_assert_int_eq(loop.hope, LOOP_NOTHING);
	}
	ck_assert_uint_gt(loop.look_ns[LOOP_COMPLETION], loop.look_ns[LOOP_ANSWER]);
	before = loop.look_ns[LOOP_ANSWER];
	loop_expect(&loop, LOOP_ANSWER);
	io_uring_prep_nop(loop_sqe(&loop, &s.op));
	ck_assert_int_eq(loop_step(&loop, UINT64_MAX), 0);
	ck_assert_int_eq(loop.hope, LOOP_ANSWER);
	ck_assert_uint_eq(loop.look_ns[LOOP_ANSWER], before);
	loop_unlook(&loop, &k.look);
	end();
}
END_TEST

/* The ring does what the loop is for and no more: what opens, connects, makes or takes away. */
START_TEST(refuses)
{
	const struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(9)};
	const int sock = socket(AF_INET, SOCK_STREAM, 0);
	struct seen s = a_seen();
	struct io_uring_params p;
	int ret;

	begin();
	for (unsigned i = 0; i < 6; i++) {
		struct io_uring_sqe *sqe = loop_sqe(&loop, &s.op);

		switch (i) {
		case 0:
			io_uring_prep_openat(sqe, AT_FDCWD, "/dev/null", O_RDONLY, 0);
			break;
		case 1:
			io_uring_prep_connect(sqe, sock, (const struct sockaddr *)&a, sizeof(a));
			break;
		case 2:
			io_uring_prep_unlinkat(sqe, AT_FDCWD, "/nonexistent/file", 0);
			break;
		case 3:
			io_uring_prep_socket(sqe, AF_INET, SOCK_STREAM, 0, 0);
			break;
		case 4:
			io_uring_prep_close(sqe, sock);
			break;
		default:
			/* It knows no other files than ours, either. */
			io_uring_prep_nop(sqe);
			sqe->flags |= IOSQE_FIXED_FILE;
		}
		run_until(&s.times, i + 1);
		ck_assert_msg(s.res == -EACCES, "%u: %d", i, s.res);
	}
	ret = (int)syscall(SYS_io_uring_register, loop.ring.ring_fd, IORING_REGISTER_PROBE, &p, 0);
	ck_assert(ret < 0 && errno == EACCES);
	close(sock);
	end();
}
END_TEST

int main(void)
{
	const TTest *const tests[] = {
		timers,		operations,	   many,
		tasks_in_order, tasks_taken_back,  tasks_of_threads,
		woken,		steps_end_in_time, looks,
		looks_longer,	looks_as_missed,   looks_for_completions,
		refuses,
	};

	return check_main("loop", tests, ARRAY_SIZE(tests));
}
