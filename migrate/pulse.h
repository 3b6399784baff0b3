/* SPDX-License-Identifier: MIT */
/*
 * Signs of life on a move's main connection, in both directions.
 *
 * Theory of operation: a thread looks at the connection four times a second. Whenever this side has
 * said nothing since, and is not in the middle of a frame, it says IDLE (conn_tell()); it does so
 * whatever the connection's owner is doing: waiting for an answer, for other connections or for a
 * disk, stopping vCPUs, hashing. So a peer from which nothing at all comes, for as long as the
 * limit of the connection, is dead or cannot be reached: then dead_ns is set, and every operation
 * on it and on the other connections of the move fails within a moment.
 *
 * One side may notice long before the other that a connection has broken, and be back. Where it is
 * known that the peer waits to be let in again (pulse_heed()), a much shorter silence will do.
 */
#ifndef GODWIT_MIGRATE_PULSE_H
#define GODWIT_MIGRATE_PULSE_H

#include <pthread.h>
#include <stdbool.h>

#include "conn.h"

/* Of a peer that is said to be back: twelve times that he would have said something. */
#define PULSE_BACK_NS (3 * NS_PER_SEC)

struct pulse {
	struct conn *conn;
	pthread_t thread;
	bool started;
	pthread_mutex_t lock; /* guards the rest */
	pthread_cond_t changed;
	bool quit, deaf;
	bool (*is_back)(void *arg);
	void *is_back_arg;
};

/*
 * Begins; both preludes have been exchanged. The connection outlives it. -errno with the cause in
 * err; pulse_stop() is due only if it started.
 */
int pulse_start(struct pulse *p, struct conn *c, struct errmsg *err);

/*
 * From here on is_back(arg), which any thread may call, is asked of a peer that has been silent for
 * PULSE_BACK_NS: is he elsewhere, and waits? Then this connection is dead.
 */
void pulse_heed(struct pulse *p, bool (*is_back)(void *arg), void *arg);

/* From here on the peer has nothing more to say: its silence is no sign of anything. */
void pulse_expect_silence(struct pulse *p);

/* Fine on a zeroed one. */
void pulse_stop(struct pulse *p);

#endif
