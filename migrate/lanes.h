/* SPDX-License-Identifier: MIT */
/*
 * The destination's other connections: a thread each that stores the pages which come on it. They
 * keep step by rounds: whoever has read ROUND_END reads on only when all have, so that no content
 * of one round can be stored over one of the next.
 */
#ifndef GODWIT_MIGRATE_LANES_H
#define GODWIT_MIGRATE_LANES_H

#include <pthread.h>

#include "conn.h"
#include "door.h"
#include "store.h"

struct lanes;

struct lane {
	struct lanes *all;
	struct conn conn;
	struct store store;
	pthread_t thread;
	bool started;
	uint32_t ended; /* the round whose end it has read; guarded by the lock, as are: */
	int ret;
	struct errmsg err;
	uint64_t cpu_ns;
};

struct lanes {
	unsigned n;
	struct lane *lane;
	uint64_t limit_ns;    /* without any progress, of those that have not ended their round */
	int main_fd;	      /* shut for reading when one fails, so that its reader hears of it */
	pthread_mutex_t lock; /* guards: */
	pthread_cond_t changed;
	uint32_t released; /* rounds up to this one are over on all connections */
	bool quit;
};

/*
 * Waits until n connections of the session have come in by the door and joined, and starts to store
 * what comes on them; rounds: that are over; main: the source's first connection, whose limit is
 * theirs, too, and on which it may fail meanwhile. Others that come are turned away. -ETIMEDOUT,
 * -ECANCELED, -errno with the cause in err; lanes_close() is due in any case.
 */
int lanes_open(struct lanes *l, unsigned n, struct door *door, int cancel_fd, uint64_t session,
	       uint32_t rounds, struct conn *main, const struct store *like, struct errmsg *err);

/* Waits for the end of the round on all of them, then lets them go on. The first failure's -errno,
 * -ETIMEDOUT when nothing comes any more. */
int lanes_end_round(struct lanes *l, uint32_t round, struct errmsg *err);

/* Has one failed? Its -errno with the cause in err, or 0. */
int lanes_failed(struct lanes *l, struct errmsg *err);

/* Adds what they have received and stored so far. */
void lanes_add(struct lanes *l, uint64_t *bytes, uint64_t *stored, uint64_t *zeroed);

/* Breaks the connections, ends the threads, frees all; adds their CPU time. Fine on a zeroed one.
 */
void lanes_close(struct lanes *l, uint64_t *cpu_ns);

#endif
