/* SPDX-License-Identifier: MIT */
#include "pulse.h"

#include <string.h>
#include <time.h>

/* With the lock held: until it is time for the next look. False when there is none. */
static bool wait_for_next(struct pulse *p)
{
	uint64_t until = now_ns() + CONN_TELL_NS;
	struct timespec at = {.tv_sec = (time_t)(until / NS_PER_SEC),
			      .tv_nsec = (long)(until % NS_PER_SEC)};

	while (!p->quit && now_ns() < until)
		pthread_cond_timedwait(&p->changed, &p->lock, &at);
	return !p->quit;
}

/* How long silence may last: as far as is known after so much of it. */
static uint64_t limit_of(const struct conn *c, uint64_t silent_ns, bool (*is_back)(void *arg),
			 void *arg)
{
	if (is_back && silent_ns >= PULSE_BACK_NS && is_back(arg))
		return MIN(c->limit_ns, PULSE_BACK_NS);
	return c->limit_ns;
}

static void *run_pulse(void *arg)
{
	struct pulse *p = arg;
	struct conn *c = p->conn;
	uint64_t heard = conn_heard(c), looked_ns = now_ns(), silent = 0;

	pthread_mutex_lock(&p->lock);
	while (wait_for_next(p)) {
		bool (*is_back)(void *) = p->is_back;
		void *is_back_arg = p->is_back_arg;
		uint64_t heard_now, now, limit;
		bool deaf = p->deaf;

		pthread_mutex_unlock(&p->lock);
		conn_tell(c);
		heard_now = conn_heard(c);
		now = now_ns();
		/* A host that stood still, and perhaps the peer with it, has heard nothing either.
		 */
		silent += MIN(now - looked_ns, 2 * CONN_TELL_NS);
		looked_ns = now;
		if (heard_now != heard || deaf)
			silent = 0;
		heard = heard_now;
		limit = limit_of(c, silent, is_back, is_back_arg);
		if (silent >= limit)
			c->dead_ns = limit;
		pthread_mutex_lock(&p->lock);
	}
	pthread_mutex_unlock(&p->lock);
	return NULL;
}

int pulse_start(struct pulse *p, struct conn *c, struct errmsg *err)
{
	pthread_condattr_t attr;
	int ret;

	*p = (struct pulse){.conn = c};
	pthread_mutex_init(&p->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&p->changed, &attr);
	pthread_condattr_destroy(&attr);
	conn_let_tell(c);
	ret = -pthread_create(&p->thread, NULL, run_pulse, p);
	if (ret) {
		pthread_cond_destroy(&p->changed);
		pthread_mutex_destroy(&p->lock);
		return errmsg_set(err, ret, "starting a thread of the migration: %s",
				  strerror(-ret));
	}
	p->started = true;
	pthread_setname_np(p->thread, "migrate-pulse");
	return 0;
}

void pulse_heed(struct pulse *p, bool (*is_back)(void *arg), void *arg)
{
	pthread_mutex_lock(&p->lock);
	p->is_back = is_back;
	p->is_back_arg = arg;
	pthread_mutex_unlock(&p->lock);
}

void pulse_expect_silence(struct pulse *p)
{
	if (!p->started)
		return;
	pthread_mutex_lock(&p->lock);
	p->deaf = true;
	pthread_mutex_unlock(&p->lock);
}

void pulse_stop(struct pulse *p)
{
	if (!p->started)
		return;
	pthread_mutex_lock(&p->lock);
	p->quit = true;
	pthread_cond_signal(&p->changed);
	pthread_mutex_unlock(&p->lock);
	pthread_join(p->thread, NULL);
	pthread_cond_destroy(&p->changed);
	pthread_mutex_destroy(&p->lock);
	*p = (struct pulse){0};
}
