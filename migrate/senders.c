/* SPDX-License-Identifier: MIT */
#include "senders.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "dial.h"

static int send_part(struct sender *w, uint32_t round, struct errmsg *err)
{
	int ret = pages_send_round(&w->path, err);

	if (ret == 0)
		ret = conn_send(&w->conn, WIRE_ROUND_END, &round, sizeof(round), NULL, err);
	/* Nobody needs to go on. */
	if (ret)
		w->path.work->stop = true;
	return ret;
}

static void *run_sender(void *arg)
{
	struct sender *w = arg;
	struct senders *s = w->all;
	struct errmsg err = {0};
	uint32_t round = 0;
	int ret = 0;

	thread_give_way();
	pthread_mutex_lock(&s->lock);
	for (;;) {
		while (!s->quit && s->round == round)
			pthread_cond_wait(&s->changed, &s->lock);
		if (s->quit)
			break;
		round = s->round;
		pthread_mutex_unlock(&s->lock);
		if (ret == 0)
			ret = send_part(w, round, &err);
		pthread_mutex_lock(&s->lock);
		w->ret = ret;
		w->err = err;
		w->cpu_ns = thread_cpu_ns() + conn_cpu_ns(&w->conn);
		s->busy--;
		pthread_cond_broadcast(&s->changed);
	}
	w->cpu_ns = thread_cpu_ns() + conn_cpu_ns(&w->conn);
	pthread_mutex_unlock(&s->lock);
	return NULL;
}

static int open_sender(struct sender *w, const char *uri, struct tls *tls, int cancel_fd,
		       uint64_t session, struct errmsg *err)
{
	uint64_t answer = 0;
	int ret = dial(&w->conn, uri, tls, CONN_OPEN_LIMIT, cancel_fd, err);

	if (ret)
		return ret;
	w->conn.main = w->path.conn;
	w->conn.rate = w->path.conn->rate;
	conn_set_limit(&w->conn, w->path.conn->limit_ns);
	w->conn.deadline_ns = now_ns() + CONN_OPEN_LIMIT;
	ret = conn_send_prelude(&w->conn, session, err);
	if (ret == 0)
		ret = conn_recv_prelude(&w->conn, &answer, err);
	if (ret == 0 && answer != session)
		ret = errmsg_set(err, -EPROTO, "the destination answers another migration");
	if (ret == 0)
		ret = conn_send(&w->conn, WIRE_JOIN, NULL, 0, NULL, err);
	w->conn.deadline_ns = UINT64_MAX;
	if (ret)
		return ret;
	w->path.conn = &w->conn;
	w->path.tick = NULL;
	ret = -pthread_create(&w->thread, NULL, run_sender, w);
	if (ret)
		return errmsg_set(err, ret, "starting a thread of the migration: %s",
				  strerror(-ret));
	w->started = true;
	pthread_setname_np(w->thread, "migrate-send");
	return 0;
}

int senders_open(struct senders *s, unsigned n, const char *uri, struct tls *tls, int cancel_fd,
		 uint64_t session, const struct page_path *like, struct errmsg *err)
{
	int ret = 0;

	*s = (struct senders){.sender = calloc(n, sizeof(*s->sender))};
	pthread_mutex_init(&s->lock, NULL);
	pthread_cond_init(&s->changed, NULL);
	if (n && !s->sender)
		return errmsg_set(err, -ENOMEM, "no memory for %u connections", n);
	for (; s->n < n && ret == 0; s->n++) {
		struct sender *w = &s->sender[s->n];

		w->all = s;
		w->path = *like;
		w->conn.fd = -1;
		ret = open_sender(w, uri, tls, cancel_fd, session, err);
	}
	return ret;
}

void senders_begin_round(struct senders *s, uint32_t round)
{
	pthread_mutex_lock(&s->lock);
	s->round = round;
	s->busy = s->n;
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
}

int senders_end_round(struct senders *s, struct errmsg *err)
{
	int ret = 0;

	pthread_mutex_lock(&s->lock);
	while (s->busy)
		pthread_cond_wait(&s->changed, &s->lock);
	for (unsigned i = 0; i < s->n && ret == 0; i++) {
		ret = s->sender[i].ret;
		if (ret)
			errmsg_set(err, ret, "%s", s->sender[i].err.text);
	}
	pthread_mutex_unlock(&s->lock);
	return ret;
}

unsigned senders_each(const struct senders *s, uint64_t *bytes, uint64_t *uncopied)
{
	for (unsigned i = 0; i < s->n; i++) {
		bytes[i] = s->sender[i].conn.sent;
		uncopied[i] = s->sender[i].conn.zc_uncopied;
	}
	return s->n;
}

void senders_set_deadline(struct senders *s, uint64_t deadline_ns)
{
	for (unsigned i = 0; i < s->n; i++)
		s->sender[i].conn.deadline_ns = deadline_ns;
}

void senders_add(const struct senders *s, uint64_t *bytes, struct page_counts *counts)
{
	for (unsigned i = 0; i < s->n; i++) {
		*bytes += s->sender[i].conn.sent;
		page_counts_add(counts, &s->sender[i].path.total);
	}
}

void senders_settle(struct senders *s)
{
	for (unsigned i = 0; i < s->n; i++) {
		if (s->sender[i].started)
			conn_settle(&s->sender[i].conn);
	}
}

void senders_add_zerocopy(const struct senders *s, uint64_t *tried, uint64_t *uncopied)
{
	for (unsigned i = 0; i < s->n; i++) {
		*tried += s->sender[i].conn.zc_tried;
		*uncopied += s->sender[i].conn.zc_uncopied;
	}
}

uint64_t senders_cpu_ns(struct senders *s)
{
	uint64_t sum = 0;

	if (!s->n)
		return 0;
	pthread_mutex_lock(&s->lock);
	for (unsigned i = 0; i < s->n; i++)
		sum += s->sender[i].cpu_ns;
	pthread_mutex_unlock(&s->lock);
	return sum;
}

void senders_close(struct senders *s, uint64_t *cpu_ns)
{
	if (!s->sender)
		return;
	pthread_mutex_lock(&s->lock);
	s->quit = true;
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
	for (unsigned i = 0; i < s->n; i++) {
		if (s->sender[i].started)
			conn_break(&s->sender[i].conn);
	}
	for (unsigned i = 0; i < s->n; i++) {
		struct sender *w = &s->sender[i];

		if (w->started)
			pthread_join(w->thread, NULL);
		*cpu_ns += w->cpu_ns;
		page_path_free(&w->path);
		if (w->conn.fd >= 0)
			conn_close(&w->conn);
	}
	pthread_cond_destroy(&s->changed);
	pthread_mutex_destroy(&s->lock);
	free(s->sender);
	*s = (struct senders){0};
}
