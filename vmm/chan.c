/* SPDX-License-Identifier: MIT */
#include "chan.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "util.h"

static int ring_init(struct chan_ring *r, uint32_t size)
{
	*r = (struct chan_ring){.data = malloc(size), .size = size};
	return r->data ? 0 : -ENOMEM;
}

static uint32_t ring_room(const struct chan_ring *r)
{
	return r->size - r->len;
}

/* The piece of free space that can be filled without wrapping. */
static uint8_t *ring_free_piece(const struct chan_ring *r, uint32_t *len)
{
	uint32_t tail = (r->head + r->len) % r->size;

	*len = MIN(ring_room(r), r->size - tail);
	return r->data + tail;
}

/* The piece of contents that can be taken without wrapping. */
static uint8_t *ring_full_piece(const struct chan_ring *r, uint32_t *len)
{
	*len = MIN(r->len, r->size - r->head);
	return r->data + r->head;
}

static void ring_drop(struct chan_ring *r, uint32_t len)
{
	r->head = (r->head + len) % r->size;
	r->len -= len;
}

static size_t ring_put(struct chan_ring *r, const void *buf, size_t len)
{
	const uint8_t *from = buf;
	size_t done = 0;

	while (done < len && ring_room(r) > 0) {
		uint32_t piece;
		uint8_t *to = ring_free_piece(r, &piece);

		piece = (uint32_t)MIN(piece, len - done);
		memcpy(to, from + done, piece);
		r->len += piece;
		done += piece;
	}
	return done;
}

static size_t ring_take(struct chan_ring *r, void *buf, size_t len)
{
	uint8_t *to = buf;
	size_t done = 0;

	while (done < len && r->len > 0) {
		uint32_t piece;
		const uint8_t *from = ring_full_piece(r, &piece);

		piece = (uint32_t)MIN(piece, len - done);
		memcpy(to + done, from, piece);
		ring_drop(r, piece);
		done += piece;
	}
	return done;
}

int chan_init(struct chan *c)
{
	int ret;

	memset(c, 0, sizeof(*c));
	ret = ring_init(&c->out, CHAN_OUT_SIZE);
	if (ret)
		return ret;
	ret = ring_init(&c->in, CHAN_IN_SIZE);
	if (ret) {
		free(c->out.data);
		return ret;
	}
	pthread_mutex_init(&c->lock, NULL);
	return 0;
}

void chan_destroy(struct chan *c)
{
	free(c->out.data);
	free(c->in.data);
	pthread_mutex_destroy(&c->lock);
}

void chan_set_device(struct chan *c, void (*kick)(void *arg), void *arg)
{
	pthread_mutex_lock(&c->lock);
	c->device_kick = kick;
	c->device_arg = arg;
	pthread_mutex_unlock(&c->lock);
}

void chan_set_host(struct chan *c, void (*kick)(void *arg), void *arg)
{
	pthread_mutex_lock(&c->lock);
	c->host_kick = kick;
	c->host_arg = arg;
	pthread_mutex_unlock(&c->lock);
}

/* Both give the lock back and then, when there is news, tell the side. */
static void unlock_kick_device(struct chan *c, bool news)
{
	void (*kick)(void *arg) = news ? c->device_kick : NULL;
	void *arg = c->device_arg;

	pthread_mutex_unlock(&c->lock);
	if (kick)
		kick(arg);
}

static void unlock_kick_host(struct chan *c, bool news)
{
	void (*kick)(void *arg) = news ? c->host_kick : NULL;
	void *arg = c->host_arg;

	pthread_mutex_unlock(&c->lock);
	if (kick)
		kick(arg);
}

size_t chan_send(struct chan *c, const void *buf, size_t len)
{
	bool was_empty;
	size_t n;

	pthread_mutex_lock(&c->lock);
	was_empty = c->out.len == 0;
	n = ring_put(&c->out, buf, len);
	unlock_kick_host(c, was_empty && n > 0);
	return n;
}

size_t chan_recv(struct chan *c, void *buf, size_t len)
{
	bool was_above;
	size_t n;

	pthread_mutex_lock(&c->lock);
	was_above = c->in.len > c->in.size / 2;
	n = ring_take(&c->in, buf, len);
	unlock_kick_host(c, was_above && c->in.len <= c->in.size / 2);
	return n;
}

size_t chan_send_room(struct chan *c)
{
	size_t n;

	pthread_mutex_lock(&c->lock);
	n = ring_room(&c->out);
	pthread_mutex_unlock(&c->lock);
	return n;
}

size_t chan_recv_avail(struct chan *c)
{
	size_t n;

	pthread_mutex_lock(&c->lock);
	n = c->in.len;
	pthread_mutex_unlock(&c->lock);
	return n;
}

ssize_t chan_host_write(struct chan *c, ssize_t (*write)(void *arg, const void *buf, size_t len),
			void *arg)
{
	ssize_t n = 0;

	pthread_mutex_lock(&c->lock);
	if (!c->frozen && c->out.len > 0) {
		uint32_t piece;
		const uint8_t *from = ring_full_piece(&c->out, &piece);

		n = write(arg, from, piece);
		if (n > 0)
			ring_drop(&c->out, (uint32_t)MIN((size_t)n, piece));
	}
	unlock_kick_device(c, n > 0);
	return n;
}

ssize_t chan_host_read(struct chan *c, ssize_t (*read)(void *arg, void *buf, size_t len), void *arg)
{
	ssize_t n = 0;

	pthread_mutex_lock(&c->lock);
	if (!c->frozen && ring_room(&c->in) > 0) {
		uint32_t piece;
		uint8_t *to = ring_free_piece(&c->in, &piece);

		n = read(arg, to, piece);
		if (n > 0)
			c->in.len += (uint32_t)MIN((size_t)n, piece);
	}
	unlock_kick_device(c, n > 0);
	return n;
}

size_t chan_host_put(struct chan *c, const void *buf, size_t len)
{
	size_t n;

	pthread_mutex_lock(&c->lock);
	n = c->frozen ? 0 : ring_put(&c->in, buf, len);
	unlock_kick_device(c, n > 0);
	return n;
}

size_t chan_host_pending(struct chan *c)
{
	size_t n;

	pthread_mutex_lock(&c->lock);
	n = c->frozen ? 0 : c->out.len;
	pthread_mutex_unlock(&c->lock);
	return n;
}

size_t chan_host_room(struct chan *c)
{
	size_t n;

	pthread_mutex_lock(&c->lock);
	n = c->frozen ? 0 : ring_room(&c->in);
	pthread_mutex_unlock(&c->lock);
	return n;
}

void chan_freeze(struct chan *c)
{
	/* Host-side calls move bytes with the lock held: having it means that none is under way. */
	pthread_mutex_lock(&c->lock);
	c->frozen = true;
	pthread_mutex_unlock(&c->lock);
}

void chan_thaw(struct chan *c)
{
	bool was_frozen;

	pthread_mutex_lock(&c->lock);
	was_frozen = c->frozen;
	c->frozen = false;
	unlock_kick_host(c, was_frozen);
}

static void ring_fields(struct chan_ring *r, struct sbuf *s, const char *name)
{
	size_t mark = sb_enter(s, "%s", name);
	uint32_t len = r->len;
	uint8_t *bytes;

	sb_u32_range(s, &len, 0, r->size);
	if (s->err)
		return;
	bytes = malloc(r->size);
	if (!bytes) {
		sb_fail(s, -ENOMEM);
		return;
	}
	/* Saving must leave the ring as it is; loading must not touch it before all has arrived. */
	for (uint32_t i = 0; !s->loading && i < len; i++)
		bytes[i] = r->data[(r->head + i) % r->size];
	sb_bytes(s, bytes, len);
	sb_leave(s, mark);
	if (s->loading && !s->err && !sb_looking(s)) {
		memcpy(r->data, bytes, len);
		r->head = 0;
		r->len = len;
	}
	free(bytes);
}

void chan_fields(struct chan *c, struct sbuf *s)
{
	struct chan blank = {
		.lock = PTHREAD_MUTEX_INITIALIZER,
		.out.size = CHAN_OUT_SIZE,
		.in.size = CHAN_IN_SIZE,
	};

	if (sb_looking(s))
		c = &blank;
	pthread_mutex_lock(&c->lock);
	if (s->loading)
		c->frozen = true;
	ring_fields(&c->out, s, "out");
	ring_fields(&c->in, s, "in");
	pthread_mutex_unlock(&c->lock);
}
