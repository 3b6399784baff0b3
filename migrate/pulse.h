/* SPDX-License-Identifier: MIT */
/*
 * Signs of life on a move's main connection, in both directions.
 *
 * Theory of operation: a thread looks at the connection four times a second. Whenever this side has
 * said nothing since, and is not in the middle of a frame, it says IDLE (conn_tell()); it does so
 * whatever the connection's owner is doing: waiting for an answer, for other connections or for a
 * disk, stopping vCPUs, hashing. So a peer from which nothing at all comes, for as long as the
 * limit of the connection, is dead or cannot be reached: then `dead` is set, and every operation on
 * it and on the other connections of the move fails within a moment.
 */
#ifndef GODWIT_MIGRATE_PULSE_H
#define GODWIT_MIGRATE_PULSE_H

#include <pthread.h>
#include <stdbool.h>

#include "conn.h"

struct pulse {
	struct conn *conn;
	pthread_t thread;
	bool started;
	pthread_mutex_t lock; /* guards the rest */
	pthread_cond_t changed;
	bool quit, deaf;
};

/*
 * Begins; both preludes have been exchanged. The connection outlives it. -errno with the cause in
 * err; pulse_stop() is due only if it started.
 */
int pulse_start(struct pulse *p, struct conn *c, struct errmsg *err);

/* From here on the peer has nothing more to say: its silence is no sign of anything. */
void pulse_expect_silence(struct pulse *p);

/* Fine on a zeroed one. */
void pulse_stop(struct pulse *p);

#endif
