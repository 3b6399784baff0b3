/* SPDX-License-Identifier: MIT */
/*
 * What all connections of a move may send together, in bytes a second.
 *
 * Theory of operation: a token bucket, kept as a point in time: when what has been promised so far
 * will have gone out at this rate. A connection asks for the bytes of its next piece and is told
 * when it may send them, which is when all that was promised before has gone: so connections take
 * turns, as pieces are of one length. Time that nobody used is kept for RATE_CREDIT_NS only; and
 * each connection may be late with one piece: so a second sees at most 0.8 % above the rate, and
 * 0.2 % more for each connection.
 *
 * Time is an argument: now_ns() of the caller. Any thread may call any of these.
 */
#ifndef GODWIT_MIGRATE_RATE_H
#define GODWIT_MIGRATE_RATE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "../vmm/util.h"

#define RATE_CREDIT_NS (8 * NS_PER_MS)
#define RATE_PIECE_NS (2 * NS_PER_MS)
/* What is put together for one frame of pages is no more than this much time's worth. */
#define RATE_FRAME_NS (50 * NS_PER_MS)

struct rate {
	pthread_mutex_t lock; /* guards: */
	double due_ns;	      /* when what was promised so far is out */
	_Atomic uint64_t bytes_per_s;
};

/* bytes_per_s 0: no limit. */
void rate_init(struct rate *r, uint64_t bytes_per_s);
void rate_destroy(struct rate *r);

/* From now on; what was promised before stays promised. */
void rate_set(struct rate *r, uint64_t bytes_per_s);

/* The present limit, 0 for none. */
static inline uint64_t rate_get(const struct rate *r)
{
	return r->bytes_per_s;
}

/* The longest piece that is to be asked for at once: at least 1; SIZE_MAX without a limit. */
size_t rate_piece(const struct rate *r);

/* Pages that one frame is to carry at most, in bytes: from one page to `most`. */
size_t rate_frame(const struct rate *r, size_t most);

/* Takes so many bytes: when they may be sent. That is `now` or later. */
uint64_t rate_take(struct rate *r, uint64_t now, size_t bytes);

/* Of these, so many were not sent after all. */
void rate_give_back(struct rate *r, size_t bytes);

#endif
