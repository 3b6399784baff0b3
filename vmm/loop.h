/* SPDX-License-Identifier: MIT */
/*
 * Event loop on io_uring, run by the main thread.
 *
 * Theory of operation: whatever is waited for is a struct loop_op inside the structure that waits;
 * its done() runs on the loop's thread when the operation ends. One operation is pending per
 * loop_op at a time. Any io_uring operation that loop.c lists can be prepared on the SQE of
 * loop_sqe(), so disks and sockets need nothing more than this. Other threads hand work over with
 * loop_post().
 *
 * Going to sleep and being woken costs more than a short wait does. So what can be seen in memory,
 * such as a ring that a guest fills, is looked at (struct loop_look) for a little while before the
 * loop sleeps. Where something is expected at once that is longer, and the longer the more often it
 * was of use.
 */
#ifndef GODWIT_LOOP_H
#define GODWIT_LOOP_H

#include <liburing.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

struct loop_op;

/* res is the CQE's result: a count, a poll mask, or -errno (-ETIME for a timer that expired). */
typedef void loop_done_fn(struct loop_op *op, int32_t res);

struct loop_op {
	loop_done_fn *done;
	bool pending;
	struct __kernel_timespec ts; /* of a timer: the kernel reads it after submission */
};

/* Work for the loop's thread, from another thread. Owned by the poster; free again once run() runs.
 */
struct loop_task {
	void (*run)(struct loop_task *task);
	struct loop_task *next;
	bool queued;
};

/* Something to look at before the loop next sleeps. Both functions run on the loop's thread. */
struct loop_look {
	/* Is there something? Then it has been served. */
	bool (*look)(struct loop_look *look);
	/*
	 * The loop is about to sleep, and this is off its list: whoever brings more has to wake it
	 * from now on. True when something has come before that was arranged; it has been served.
	 */
	bool (*sleep)(struct loop_look *look);
	struct loop_look *next;
	bool listed;
};

/* What is expected at once; of several the last of these counts. */
enum loop_hope {
	LOOP_NOTHING,
	LOOP_COMPLETION, /* of an operation that waits for a device, and for no other thread */
	LOOP_ANSWER, /* what is looked at will find something: its driver has what it waited for */
	LOOP_HOPES,
};

struct loop {
	struct io_uring ring;
	struct loop_op wake_op;
	int wake_fd;
	uint64_t wake_buf;
	bool running;
	pthread_mutex_t lock; /* guards tasks */
	struct loop_task *tasks, **tasks_tail;
	struct loop_look *looks; /* loop's thread only, as the next four */
	enum loop_hope hope;
	uint64_t look_ns[LOOP_HOPES]; /* for how long, with each */
	bool missed;
	bool one_cpu;	   /* nobody can bring anything while we look: once is enough */
	struct loop_late { /* completions that loop_cancel_wait() met */
		struct loop_op *op;
		int32_t res;
	} * late;
	size_t n_late, late_cap;
};

/* 0 or -errno (-ENOSYS, -EPERM where io_uring is not there or not allowed). */
int loop_init(struct loop *l);
void loop_destroy(struct loop *l);

/*
 * An SQE bound to op; prepare it with io_uring_prep_*() at once. It is submitted when the loop
 * next waits. Never NULL: a full queue is submitted first. op must not be pending.
 */
struct io_uring_sqe *loop_sqe(struct loop *l, struct loop_op *op);

/* One-shot poll for mask (POLLIN, POLLOUT): res of done() is the mask that came true. */
void loop_poll(struct loop *l, struct loop_op *op, int fd, unsigned mask);

/* One-shot timer; done() gets -ETIME when it expires, -ECANCELED when cancelled. */
void loop_timer(struct loop *l, struct loop_op *op, uint64_t ns);

/* Asks a pending op to end; its done() still runs, with -ECANCELED or with its result. */
void loop_cancel(struct loop *l, struct loop_op *op);

/*
 * Cancels op and returns once it has ended; its done() is not called. For who is about to free
 * it. What else completes meanwhile is served later, by the loop. Loop's thread only.
 */
void loop_cancel_wait(struct loop *l, struct loop_op *op);

/* Queues task for the loop's thread; any thread may call it. A task already queued stays once. */
void loop_post(struct loop *l, struct loop_task *task);

/* Takes task back if it has not run yet. Loop's thread only. */
void loop_unpost(struct loop *l, struct loop_task *task);

/* Has it looked at before the loop next sleeps, and for how long. Loop's thread only. */
void loop_look(struct loop *l, struct loop_look *look);
void loop_expect(struct loop *l, enum loop_hope hope);

/* Somebody has had to wake the loop for what it had looked for. Loop's thread only. */
void loop_missed(struct loop *l);

/* Not any more; its sleep() is not called. Loop's thread only. */
void loop_unlook(struct loop *l, struct loop_look *look);

/* Runs until loop_stop(). 0 or -errno. */
int loop_run(struct loop *l);

/* Waits for events once, at most timeout_ns (UINT64_MAX: for ever), and runs what came. */
int loop_step(struct loop *l, uint64_t timeout_ns);

/* Makes loop_run() return after the present batch. Loop's thread only. */
void loop_stop(struct loop *l);

#endif
