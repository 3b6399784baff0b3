/* SPDX-License-Identifier: MIT */
#include "meter.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "relay.h"

#define MAX_CONNS 8
#define CHUNK (256U * 1024)
#define TICK_MS 2

/* What is read at `from` and written at `to`. */
struct way {
	int from, to;
	char *data;
	size_t len, cap;
	bool ended, passed_on;
};

struct turn {
	uint64_t since, until; /* ns */
	uint64_t bytes;
};

struct meter {
	char uri[256], to_uri[256];
	int listen_fd;
	struct way way[2 * MAX_CONNS]; /* towards the receiver, and back */
	unsigned n_ways;
	pthread_t thread;
	pthread_mutex_t lock; /* guards the rest */
	struct turn *turns;
	size_t n_turns, cap_turns;
	uint64_t bytes;
	unsigned connections;
};

static uint64_t clock_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * NS_PER_SEC + (uint64_t)ts.tv_nsec;
}

/* A thread that is not the test's first can only end all of it. */
static void *must(void *p)
{
	if (!p)
		abort();
	return p;
}

/* Takes all that there is. */
static size_t drain(struct way *w)
{
	size_t got = 0;
	ssize_t n;

	while (!w->ended) {
		if (w->cap - w->len < CHUNK) {
			w->cap = 2 * w->cap + CHUNK;
			w->data = must(realloc(w->data, w->cap));
		}
		n = recv(w->from, w->data + w->len, CHUNK, MSG_DONTWAIT);
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			break;
		w->ended = n <= 0;
		w->len += n > 0 ? (size_t)n : 0;
		got += n > 0 ? (size_t)n : 0;
	}
	return got;
}

static void pass_on(struct way *w)
{
	ssize_t n = w->len ? send(w->to, w->data, w->len, MSG_DONTWAIT | MSG_NOSIGNAL) : 0;

	if (n < 0 && errno != EAGAIN && errno != EINTR)
		w->len = 0;
	if (n > 0) {
		w->len -= (size_t)n;
		memmove(w->data, w->data + n, w->len);
	}
	if (w->ended && w->len == 0 && !w->passed_on) {
		shutdown(w->to, SHUT_WR);
		w->passed_on = true;
	}
}

static void take_connection(struct meter *m)
{
	int from = accept4(m->listen_fd, NULL, NULL, SOCK_CLOEXEC), to;

	if (from < 0 || m->n_ways == 2 * MAX_CONNS)
		return;
	to = relay_connect(m->to_uri);
	m->way[m->n_ways++] = (struct way){.from = from, .to = to};
	m->way[m->n_ways++] = (struct way){.from = to, .to = from};
	pthread_mutex_lock(&m->lock);
	m->connections++;
	pthread_mutex_unlock(&m->lock);
}

static void note(struct meter *m, struct turn t)
{
	pthread_mutex_lock(&m->lock);
	if (m->n_turns == m->cap_turns) {
		m->cap_turns = 2 * m->cap_turns + 1024;
		m->turns = must(realloc(m->turns, m->cap_turns * sizeof(struct turn)));
	}
	m->turns[m->n_turns++] = t;
	m->bytes += t.bytes;
	pthread_mutex_unlock(&m->lock);
}

_Noreturn static void *run(void *arg)
{
	struct meter *m = arg;
	uint64_t before = clock_ns();

	for (;;) {
		struct pollfd p[1 + 4 * MAX_CONNS] = {{.fd = m->listen_fd, .events = POLLIN}};
		nfds_t n = 1;
		struct turn t = {.since = before};

		for (unsigned i = 0; i < m->n_ways; i++) {
			if (!m->way[i].ended)
				p[n++] = (struct pollfd){.fd = m->way[i].from, .events = POLLIN};
			if (m->way[i].len)
				p[n++] = (struct pollfd){.fd = m->way[i].to, .events = POLLOUT};
		}
		poll(p, n, TICK_MS);
		before = clock_ns();
		if (p[0].revents)
			take_connection(m);
		for (unsigned i = 0; i < m->n_ways; i++) {
			size_t got = drain(&m->way[i]);

			t.bytes += i % 2 ? 0 : got;
		}
		t.until = clock_ns();
		if (t.bytes)
			note(m, t);
		for (unsigned i = 0; i < m->n_ways; i++)
			pass_on(&m->way[i]);
	}
}

struct meter *meter_start(const struct dest *d)
{
	struct meter *m = must(calloc(1, sizeof(*m)));

	strcpy(m->to_uri, d->uri);
	m->listen_fd = relay_listen("unix:", m->uri);
	pthread_mutex_init(&m->lock, NULL);
	if (pthread_create(&m->thread, NULL, run, m))
		fail_test("no thread for a meter");
	return m;
}

const char *meter_uri(const struct meter *m)
{
	return m->uri;
}

uint64_t meter_bytes(struct meter *m)
{
	uint64_t bytes;

	pthread_mutex_lock(&m->lock);
	bytes = m->bytes;
	pthread_mutex_unlock(&m->lock);
	return bytes;
}

unsigned meter_connections(struct meter *m)
{
	unsigned n;

	pthread_mutex_lock(&m->lock);
	n = m->connections;
	pthread_mutex_unlock(&m->lock);
	return n;
}

uint64_t meter_worst(struct meter *m, unsigned window_ms, uint64_t since_ms)
{
	uint64_t window = window_ms * NS_PER_MS, worst = 0, sum = 0;
	size_t first = 0;

	pthread_mutex_lock(&m->lock);
	for (size_t i = 0; i < m->n_turns; i++) {
		sum += m->turns[i].bytes;
		while (first <= i && (m->turns[first].since + window < m->turns[i].until ||
				      m->turns[first].since < since_ms * NS_PER_MS))
			sum -= m->turns[first++].bytes;
		worst = MAX(worst, sum);
	}
	pthread_mutex_unlock(&m->lock);
	return worst;
}

double meter_mean(struct meter *m)
{
	double mean = 0;

	pthread_mutex_lock(&m->lock);
	if (m->n_turns > 1)
		mean = (double)m->bytes * 1e9 /
		       (double)(m->turns[m->n_turns - 1].until - m->turns[0].until);
	pthread_mutex_unlock(&m->lock);
	return mean;
}
