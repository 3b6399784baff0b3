/* SPDX-License-Identifier: MIT */
#include "rate.h"

void rate_init(struct rate *r, uint64_t bytes_per_s)
{
	pthread_mutex_init(&r->lock, NULL);
	r->due_ns = 0;
	r->bytes_per_s = bytes_per_s;
}

void rate_destroy(struct rate *r)
{
	pthread_mutex_destroy(&r->lock);
}

void rate_set(struct rate *r, uint64_t bytes_per_s)
{
	r->bytes_per_s = bytes_per_s;
}

/* Bytes that go in so much time, in whole ones. */
static size_t bytes_in(uint64_t bytes_per_s, uint64_t ns)
{
	double n = (double)bytes_per_s * (double)ns / (double)NS_PER_SEC;

	return n < (double)(SIZE_MAX / 2) ? (size_t)n : SIZE_MAX / 2;
}

size_t rate_piece(const struct rate *r)
{
	uint64_t bytes_per_s = r->bytes_per_s;

	if (bytes_per_s == 0)
		return SIZE_MAX;
	return MAX(bytes_in(bytes_per_s, RATE_PIECE_NS), 1U);
}

size_t rate_frame(const struct rate *r, size_t most)
{
	uint64_t bytes_per_s = r->bytes_per_s;
	size_t n = bytes_per_s ? bytes_in(bytes_per_s, RATE_FRAME_NS) : most;

	return n < PAGE_SIZE ? PAGE_SIZE : MIN(n, most);
}

uint64_t rate_take(struct rate *r, uint64_t now, size_t bytes)
{
	uint64_t bytes_per_s = r->bytes_per_s;
	double at, oldest = (double)now - (double)RATE_CREDIT_NS;

	if (bytes_per_s == 0)
		return now;
	pthread_mutex_lock(&r->lock);
	at = MAX(r->due_ns, oldest);
	r->due_ns = at + (double)bytes * (double)NS_PER_SEC / (double)bytes_per_s;
	pthread_mutex_unlock(&r->lock);
	return at > (double)now ? (uint64_t)at : now;
}

void rate_give_back(struct rate *r, size_t bytes)
{
	uint64_t bytes_per_s = r->bytes_per_s;

	if (bytes_per_s == 0)
		return;
	pthread_mutex_lock(&r->lock);
	r->due_ns -= (double)bytes * (double)NS_PER_SEC / (double)bytes_per_s;
	pthread_mutex_unlock(&r->lock);
}
