/* SPDX-License-Identifier: MIT */
/*
 * Where sources come in: a thread that accepts connections for as long as the receiver lives, and
 * sorts them by the session that their prelude names.
 *
 * Nobody is let in but peers of the one session, once there is one; a source that breaks off and
 * comes back is let in while its old connection still looks alive here. Who belongs to another
 * move is told so, and who says nothing is let go.
 *
 * Where sources have to show who they are (tls.h), they do so here, one at a time, within the time
 * that there is for the prelude: nobody else at the receiver hears of one who cannot.
 */
#ifndef GODWIT_MIGRATE_DOOR_H
#define GODWIT_MIGRATE_DOOR_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "../vmm/log.h"
#include "tls.h"
#include "wire.h"

#define DOOR_QUEUE 64U

struct arrival {
	int fd;
	struct tls_link *tls;	     /* NULL: plain; else fd is its socket */
	struct wire_prelude prelude; /* as it came, not checked */
};

struct door {
	int listen_fd, quit_fd;
	struct tls *tls;	   /* NULL: sources are plain */
	struct log_limit refusals; /* the thread's */
	int arrived_fd;		   /* readable after an arrival */
	pthread_t thread;
	bool up;
	pthread_mutex_t lock;		  /* guards: */
	struct arrival queue[DOOR_QUEUE]; /* oldest first */
	unsigned n;
	bool busy; /* only peers of this session come in: */
	uint64_t session;
};

/*
 * Starts to let peers in from listen_fd, which stays the caller's, as does tls (NULL: they are
 * plain). -errno with the cause in err.
 */
int door_open(struct door *d, int listen_fd, struct tls *tls, struct errmsg *err);

/* Ends the thread, closes what is in the queue. Fine on a zeroed one. */
void door_close(struct door *d);

/* From now on only peers of this session are let in; or, with busy false, any. */
void door_admit(struct door *d, bool busy, uint64_t session);

/* Is somebody in the queue who has not left again? Any thread. */
bool door_waiting(struct door *d);

/*
 * Waits for one who was let in; a->fd, or a->tls, is the caller's then (conn_init_over()).
 * -ETIMEDOUT after deadline_ns (now_ns(); UINT64_MAX: never), -ECANCELED when cancel_fd is
 * readable, with the cause in err.
 */
int door_wait(struct door *d, uint64_t deadline_ns, int cancel_fd, struct arrival *a,
	      struct errmsg *err);

#endif
