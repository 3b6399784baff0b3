/* SPDX-License-Identifier: MIT */
#include "lanes.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#define LOOK_NS (100 * NS_PER_MS) /* at the source, while its connections are waited for */

static int end_round(struct lane *w, const struct wire_frame *f)
{
	struct lanes *l = w->all;
	uint32_t round = 0;
	int ret = 0;

	if (f->length == sizeof(round)) {
		ret = conn_recv(&w->conn, &round, sizeof(round), &w->err);
		if (ret == 0)
			ret = conn_verify(&w->conn, f, &round, sizeof(round), &w->err);
	}
	if (ret)
		return ret;
	pthread_mutex_lock(&l->lock);
	if (round != l->released + 1)
		ret = errmsg_set(&w->err, -EPROTO, "the source ended round %u in round %u", round,
				 l->released + 1);
	if (ret == 0)
		w->ended = round;
	pthread_cond_broadcast(&l->changed);
	while (ret == 0 && l->released < round && !l->quit)
		pthread_cond_wait(&l->changed, &l->lock);
	pthread_mutex_unlock(&l->lock);
	return ret;
}

static void *run_lane(void *arg)
{
	struct lane *w = arg;
	struct lanes *l = w->all;
	struct wire_frame f;
	int ret;

	thread_give_way();
	do {
		ret = conn_recv_header(&w->conn, &f, &w->err);
		if (ret == 0 && f.type == WIRE_PAGES)
			ret = store_batch(&w->store, &w->conn, &f, &w->err);
		else if (ret == 0 && f.type == WIRE_ASK)
			ret = store_answer(&w->store, &w->conn, &f, &w->err);
		else if (ret == 0 && f.type == WIRE_ROUND_END)
			ret = end_round(w, &f);
		else if (ret == 0)
			ret = errmsg_set(&w->err, -EPROTO,
					 "the source sent %s beside its main connection",
					 wire_type_name(f.type));
	} while (ret == 0);
	pthread_mutex_lock(&l->lock);
	w->ret = ret;
	w->cpu_ns = thread_cpu_ns() + conn_cpu_ns(&w->conn);
	if (!l->quit)
		shutdown(l->main_fd, SHUT_RD);
	pthread_cond_broadcast(&l->changed);
	pthread_mutex_unlock(&l->lock);
	return NULL;
}

/* Whoever has connected: 1 when it belongs to us, 0 when it was turned away. */
static int take_one(struct conn *c, const struct arrival *a, int cancel_fd, uint64_t session,
		    uint64_t deadline, const struct conn *main, struct errmsg *err)
{
	struct errmsg why = {0};
	uint64_t theirs = 0;
	int ret = conn_init_over(c, a->fd, a->tls, cancel_fd, "source", err);

	if (ret)
		return ret;
	c->main = main;
	conn_set_limit(c, main->limit_ns);
	c->deadline_ns = MIN(deadline, now_ns() + CONN_PRELUDE_LIMIT);
	ret = conn_take_prelude(c, &a->prelude, &theirs, &why);
	if (ret == 0 && theirs == session)
		ret = conn_send_prelude(c, session, &why);
	else if (ret == 0)
		ret = errmsg_set(&why, -EPROTO, "it is of another migration");
	if (ret == 0)
		ret = conn_expect(c, WIRE_JOIN, NULL, 0, NULL, &why);
	c->deadline_ns = UINT64_MAX;
	/* Between rounds there may be nothing to say for long. */
	c->patient = true;
	if (ret == 0)
		return 1;
	conn_close(c);
	if (ret == -ECANCELED)
		return errmsg_set(err, ret, "cancelled");
	log_debug("a peer that connected during a move was turned away: %s", why.text);
	return 0;
}

static int start_lane(struct lane *w, struct errmsg *err)
{
	int ret = -pthread_create(&w->thread, NULL, run_lane, w);

	if (ret)
		return errmsg_set(err, ret, "starting a thread of the migration: %s",
				  strerror(-ret));
	w->started = true;
	pthread_setname_np(w->thread, "receive-pages");
	return 0;
}

static int init_lanes(struct lanes *l, unsigned n, const struct conn *main)
{
	pthread_condattr_t attr;

	*l = (struct lanes){.lane = calloc(n, sizeof(*l->lane)),
			    .main_fd = main->fd,
			    .limit_ns = main->limit_ns};
	if (!l->lane)
		return -ENOMEM;
	pthread_mutex_init(&l->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&l->changed, &attr);
	pthread_condattr_destroy(&attr);
	return 0;
}

/* The next who comes in; whoever waits for him hears of it when the source gives up or dies. */
static int await_one(struct lanes *l, unsigned n, struct door *door, int cancel_fd,
		     uint64_t deadline, struct conn *main, struct arrival *a, struct errmsg *err)
{
	for (;;) {
		uint64_t look = MIN(deadline, now_ns() + LOOK_NS);
		struct errmsg why = {0};
		int ret = door_wait(door, look, cancel_fd, a, &why);

		if (ret != -ETIMEDOUT)
			return ret ? errmsg_set(err, ret, "%s", why.text) : 0;
		/* Once it has begun the last of them, it may go on. */
		main->due = WIRE_PING;
		ret = conn_poll(main, err);
		main->due = 0;
		if (ret)
			return ret;
		if (now_ns() >= deadline)
			return errmsg_set(err, -ETIMEDOUT,
					  "only %u of the source's %u connections came", l->n + 1,
					  n + 1);
	}
}

int lanes_open(struct lanes *l, unsigned n, struct door *door, int cancel_fd, uint64_t session,
	       uint32_t rounds, struct conn *main, const struct store *like, struct errmsg *err)
{
	uint64_t deadline = now_ns() + CONN_OPEN_LIMIT;
	int ret = init_lanes(l, n, main);

	l->released = rounds;
	if (ret)
		return errmsg_set(err, ret, "no memory for %u connections", n);
	while (l->n < n) {
		struct lane *w = &l->lane[l->n];
		struct arrival a;

		ret = await_one(l, n, door, cancel_fd, deadline, main, &a, err);
		if (ret)
			return ret;
		ret = take_one(&w->conn, &a, cancel_fd, session, deadline, main, err);
		if (ret < 0)
			return ret;
		if (ret == 0)
			continue;
		w->all = l;
		w->store.ram = like->ram;
		w->store.hashes = like->hashes;
		l->n++;
		ret = start_lane(w, err);
		if (ret)
			return ret;
	}
	return 0;
}

/* With the lock held: how many have not ended the round; the first failure's errno. */
static int count_behind(const struct lanes *l, uint32_t round, unsigned *behind, struct errmsg *err)
{
	*behind = 0;
	for (unsigned i = 0; i < l->n; i++) {
		const struct lane *w = &l->lane[i];

		if (w->ret)
			return errmsg_set(err, w->ret, "%s", w->err.text);
		*behind += w->ended < round;
	}
	return 0;
}

int lanes_end_round(struct lanes *l, uint32_t round, struct errmsg *err)
{
	uint64_t heard = 0, since = now_ns();
	unsigned behind;
	int ret;

	if (l->n == 0)
		return 0;
	pthread_mutex_lock(&l->lock);
	while ((ret = count_behind(l, round, &behind, err)) == 0 && behind) {
		uint64_t now = now_ns(), sum = 0;
		uint64_t next = now + CONN_TELL_NS;
		struct timespec at = {.tv_sec = (time_t)(next / NS_PER_SEC),
				      .tv_nsec = (long)(next % NS_PER_SEC)};

		for (unsigned i = 0; i < l->n; i++)
			sum += conn_heard(&l->lane[i].conn);
		if (sum != heard)
			since = now;
		heard = sum;
		if (now - since > l->limit_ns) {
			ret = errmsg_set(err, -ETIMEDOUT,
					 "%u of the source's connections have made no progress "
					 "for %.3g s",
					 behind, (double)l->limit_ns / (double)NS_PER_SEC);
			break;
		}
		pthread_cond_timedwait(&l->changed, &l->lock, &at);
	}
	if (ret == 0) {
		l->released = round;
		pthread_cond_broadcast(&l->changed);
	}
	pthread_mutex_unlock(&l->lock);
	return ret;
}

int lanes_failed(struct lanes *l, struct errmsg *err)
{
	unsigned behind;
	int ret;

	if (l->n == 0)
		return 0;
	pthread_mutex_lock(&l->lock);
	ret = count_behind(l, 0, &behind, err);
	pthread_mutex_unlock(&l->lock);
	return ret;
}

void lanes_add(struct lanes *l, uint64_t *bytes, uint64_t *stored, uint64_t *zeroed)
{
	for (unsigned i = 0; i < l->n; i++) {
		*bytes += l->lane[i].conn.received;
		*stored += l->lane[i].store.pages_stored;
		*zeroed += l->lane[i].store.pages_zeroed;
	}
}

void lanes_close(struct lanes *l, uint64_t *cpu_ns)
{
	if (!l->lane)
		return;
	pthread_mutex_lock(&l->lock);
	l->quit = true;
	pthread_cond_broadcast(&l->changed);
	pthread_mutex_unlock(&l->lock);
	for (unsigned i = 0; i < l->n; i++)
		conn_break(&l->lane[i].conn);
	for (unsigned i = 0; i < l->n; i++) {
		struct lane *w = &l->lane[i];

		if (w->started)
			pthread_join(w->thread, NULL);
		*cpu_ns += w->cpu_ns;
		unpack_free(&w->store.unpack);
		conn_close(&w->conn);
	}
	pthread_cond_destroy(&l->changed);
	pthread_mutex_destroy(&l->lock);
	free(l->lane);
	*l = (struct lanes){0};
}
