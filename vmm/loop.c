/* SPDX-License-Identifier: MIT */
#include "loop.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "uring.h"
#include "util.h"

#define LOOP_ENTRIES 256

/*
 * How long to look for work before sleeping: up to about what a sleep and a wake-up cost, a few
 * microseconds or tens of them on a virtual host, as more would be a waste. At least for the time
 * in which a driver that is adding more does so.
 */
#define LOOK_MIN_NS (2 * NS_PER_US)
#define LOOK_FIRST_NS (16 * NS_PER_US)
#define LOOK_MAX_NS (50 * NS_PER_US)

/*
 * All that anybody here has the kernel do; nothing that opens, connects or starts. A ring is as
 * good as system calls for that, and confined threads share this one (confine.h).
 */
static const uint8_t loop_ops[] = {
	IORING_OP_NOP,	   IORING_OP_READ,	IORING_OP_READV,    IORING_OP_WRITEV,
	IORING_OP_FSYNC,   IORING_OP_FALLOCATE, IORING_OP_POLL_ADD, IORING_OP_ASYNC_CANCEL,
	IORING_OP_TIMEOUT, IORING_OP_SEND,	IORING_OP_RECV,	    IORING_OP_ACCEPT,
};
static const struct uring_use loop_use = {
	.ops = loop_ops,
	.n_ops = ARRAY_SIZE(loop_ops),
	.sqe_flags = IOSQE_ASYNC,
};

static void arm_wake(struct loop *l);

/*
 * Runs what has been posted so far. What is posted meanwhile, by a task that goes on in turns say,
 * has woken the loop again and comes after the completions that wait.
 */
static void run_tasks(struct loop *l)
{
	unsigned n = 0;

	pthread_mutex_lock(&l->lock);
	for (struct loop_task *t = l->tasks; t; t = t->next)
		n++;
	pthread_mutex_unlock(&l->lock);
	for (; n > 0; n--) {
		struct loop_task *t;

		pthread_mutex_lock(&l->lock);
		t = l->tasks;
		if (t) {
			l->tasks = t->next;
			if (!l->tasks)
				l->tasks_tail = &l->tasks;
			t->queued = false;
		}
		pthread_mutex_unlock(&l->lock);
		if (!t)
			return;
		t->run(t);
	}
}

static void on_wake(struct loop_op *op, int32_t res)
{
	struct loop *l = container_of(op, struct loop, wake_op);

	if (res == -ECANCELED)
		return;
	arm_wake(l);
	run_tasks(l);
}

static void arm_wake(struct loop *l)
{
	l->wake_op.done = on_wake;
	io_uring_prep_read(loop_sqe(l, &l->wake_op), l->wake_fd, &l->wake_buf, sizeof(l->wake_buf),
			   0);
}

int loop_init(struct loop *l)
{
	int ret;

	memset(l, 0, sizeof(*l));
	l->tasks_tail = &l->tasks;
	l->look_ns[LOOP_NOTHING] = LOOK_MIN_NS;
	l->look_ns[LOOP_COMPLETION] = l->look_ns[LOOP_ANSWER] = LOOK_FIRST_NS;
	l->one_cpu = sysconf(_SC_NPROCESSORS_ONLN) == 1;
	l->wake_fd = eventfd(0, EFD_CLOEXEC);
	if (l->wake_fd < 0)
		return -errno;
	ret = uring_init(&l->ring, LOOP_ENTRIES, &loop_use);
	if (ret) {
		close(l->wake_fd);
		return ret;
	}
	pthread_mutex_init(&l->lock, NULL);
	arm_wake(l);
	return 0;
}

void loop_destroy(struct loop *l)
{
	io_uring_queue_exit(&l->ring);
	free(l->late);
	close(l->wake_fd);
	pthread_mutex_destroy(&l->lock);
}

static struct io_uring_sqe *get_sqe(struct loop *l)
{
	struct io_uring_sqe *sqe;

	while (!(sqe = io_uring_get_sqe(&l->ring)))
		io_uring_submit(&l->ring);
	return sqe;
}

struct io_uring_sqe *loop_sqe(struct loop *l, struct loop_op *op)
{
	struct io_uring_sqe *sqe = get_sqe(l);

	op->pending = true;
	/* io_uring_prep_*() clears the SQE but leaves user_data alone. */
	io_uring_sqe_set_data(sqe, op);
	return sqe;
}

void loop_poll(struct loop *l, struct loop_op *op, int fd, unsigned mask)
{
	io_uring_prep_poll_add(loop_sqe(l, op), fd, mask);
}

void loop_timer(struct loop *l, struct loop_op *op, uint64_t ns)
{
	op->ts.tv_sec = (long long)(ns / NS_PER_SEC);
	op->ts.tv_nsec = (long long)(ns % NS_PER_SEC);
	io_uring_prep_timeout(loop_sqe(l, op), &op->ts, 0, 0);
}

void loop_cancel(struct loop *l, struct loop_op *op)
{
	struct io_uring_sqe *sqe;

	if (!op->pending)
		return;
	sqe = get_sqe(l);
	io_uring_prep_cancel(sqe, op, 0);
	io_uring_sqe_set_data(sqe, NULL);
}

void loop_post(struct loop *l, struct loop_task *task)
{
	uint64_t one = 1;
	bool was_queued;

	pthread_mutex_lock(&l->lock);
	was_queued = task->queued;
	if (!was_queued) {
		task->queued = true;
		task->next = NULL;
		*l->tasks_tail = task;
		l->tasks_tail = &task->next;
	}
	pthread_mutex_unlock(&l->lock);
	if (!was_queued)
		(void)!write(l->wake_fd, &one, sizeof(one));
}

void loop_unpost(struct loop *l, struct loop_task *task)
{
	pthread_mutex_lock(&l->lock);
	if (task->queued) {
		struct loop_task **p = &l->tasks;

		while (*p != task)
			p = &(*p)->next;
		*p = task->next;
		if (!*p)
			l->tasks_tail = p;
		task->queued = false;
	}
	pthread_mutex_unlock(&l->lock);
}

static void complete(struct loop_op *op, int32_t res)
{
	op->pending = false;
	op->done(op, res);
}

static void run_completions(struct loop *l)
{
	struct io_uring_cqe *cqe;

	/* One may make more of them late. */
	for (size_t i = 0; i < l->n_late; i++) {
		if (l->late[i].op)
			complete(l->late[i].op, l->late[i].res);
	}
	l->n_late = 0;
	while (io_uring_peek_cqe(&l->ring, &cqe) == 0) {
		struct loop_op *op = io_uring_cqe_get_data(cqe);
		int32_t res = cqe->res;

		io_uring_cqe_seen(&l->ring, cqe);
		if (!op)
			continue;
		complete(op, res);
	}
}

/* Keeps a completion for the loop. */
static void put_late(struct loop *l, struct loop_op *op, int32_t res)
{
	if (l->n_late == l->late_cap) {
		size_t cap = l->late_cap ? 2 * l->late_cap : 64;
		struct loop_late *more = reallocarray(l->late, cap, sizeof(*more));

		/* Nothing that is waited for may get lost: rather too early than never. */
		if (!more) {
			complete(op, res);
			return;
		}
		l->late = more;
		l->late_cap = cap;
	}
	l->late[l->n_late++] = (struct loop_late){.op = op, .res = res};
}

void loop_cancel_wait(struct loop *l, struct loop_op *op)
{
	struct io_uring_cqe *cqe;

	for (size_t i = 0; i < l->n_late; i++) {
		if (l->late[i].op == op) {
			l->late[i].op = NULL;
			op->pending = false;
		}
	}
	loop_cancel(l, op);
	while (op->pending) {
		struct loop_op *which;

		if (io_uring_submit_and_wait(&l->ring, 1) < 0 ||
		    io_uring_peek_cqe(&l->ring, &cqe) != 0)
			continue;
		which = io_uring_cqe_get_data(cqe);
		if (which == op)
			op->pending = false;
		else if (which)
			put_late(l, which, cqe->res);
		io_uring_cqe_seen(&l->ring, cqe);
	}
}

void loop_look(struct loop *l, struct loop_look *look)
{
	if (look->listed)
		return;
	look->listed = true;
	look->next = l->looks;
	l->looks = look;
}

void loop_expect(struct loop *l, enum loop_hope hope)
{
	l->hope = MAX(l->hope, hope);
}

void loop_missed(struct loop *l)
{
	l->missed = true;
}

void loop_unlook(struct loop *l, struct loop_look *look)
{
	struct loop_look **p = &l->looks;

	if (!look->listed)
		return;
	while (*p != look)
		p = &(*p)->next;
	*p = look->next;
	look->listed = false;
}

static bool look_once(struct loop *l)
{
	bool found = false;

	/* One that found something may be off the list now, or at its front again. */
	for (struct loop_look *k = l->looks, *next; k; k = next) {
		next = k->next;
		found |= k->look(k);
	}
	return found;
}

static void look_longer(struct loop *l, enum loop_hope hope)
{
	if (hope != LOOP_NOTHING)
		l->look_ns[hope] = MIN(2 * l->look_ns[hope], LOOK_MAX_NS);
}

static void look_shorter(struct loop *l, enum loop_hope hope)
{
	if (hope != LOOP_NOTHING)
		l->look_ns[hope] = MAX(l->look_ns[hope] / 2, LOOK_MIN_NS);
}

/* Looks until there is something, or it was long enough. */
static bool look_for_work(struct loop *l, enum loop_hope hope, uint64_t start, uint64_t timeout_ns)
{
	uint64_t most = l->one_cpu ? 0 : MIN(timeout_ns, l->look_ns[hope]);

	l->hope = LOOP_NOTHING;
	do {
		bool completed = io_uring_cq_ready(&l->ring);
		bool found = look_once(l);

		if (found || (completed && hope == LOOP_COMPLETION))
			look_longer(l, hope);
		else if (completed)
			loop_expect(l, hope); /* as before */
		if (found || completed)
			return true;
		__builtin_ia32_pause();
	} while (now_ns() - start < most);
	return false;
}

/* Nothing is there: whoever brings something has to wake us. False when it came just now. */
static bool may_sleep(struct loop *l)
{
	bool found = false;

	while (l->looks && !found) {
		struct loop_look *k = l->looks;

		loop_unlook(l, k);
		found = k->sleep(k);
	}
	return !found;
}

/*
 * What was hoped for came so soon after the look began that a longer one would have been better; or
 * it did not.
 */
static void learn_from_sleep(struct loop *l, enum loop_hope hope, uint64_t slept_ns)
{
	/* A kick takes time of its own, which an answer that is seen does not. */
	uint64_t soon = hope == LOOP_ANSWER ? 2 * LOOK_MAX_NS : LOOK_MAX_NS;
	bool came = hope == LOOP_ANSWER ? l->missed : true;

	if (came && slept_ns < soon && l->look_ns[hope] < LOOK_MAX_NS)
		look_longer(l, hope);
	else
		look_shorter(l, hope);
}

int loop_step(struct loop *l, uint64_t timeout_ns)
{
	struct __kernel_timespec ts = {
		.tv_sec = (long long)(timeout_ns / NS_PER_SEC),
		.tv_nsec = (long long)(timeout_ns % NS_PER_SEC),
	};
	enum loop_hope hope = l->hope;
	struct io_uring_cqe *cqe;
	uint64_t start = 0, slept_ns;
	int ret;

	if (l->n_late) {
		run_completions(l);
		return 0;
	}
	if (l->looks) {
		/* What is to be waited for has to be under way. */
		ret = io_uring_submit(&l->ring);
		if (ret < 0 && ret != -EINTR && ret != -EAGAIN && ret != -EBUSY)
			return ret;
		start = now_ns();
		if (look_for_work(l, hope, start, timeout_ns) || !may_sleep(l)) {
			run_completions(l);
			return 0;
		}
	}
	ret = io_uring_submit_and_wait_timeout(&l->ring, &cqe, 1,
					       timeout_ns == UINT64_MAX ? NULL : &ts, NULL);
	if (ret < 0 && ret != -EINTR && ret != -ETIME && ret != -EAGAIN)
		return ret;
	slept_ns = start ? now_ns() - start : 0;
	l->missed = false;
	run_completions(l);
	if (start)
		learn_from_sleep(l, hope, slept_ns);
	return 0;
}

int loop_run(struct loop *l)
{
	int ret = 0;

	l->running = true;
	while (l->running && ret == 0)
		ret = loop_step(l, UINT64_MAX);
	return ret;
}

void loop_stop(struct loop *l)
{
	l->running = false;
}
