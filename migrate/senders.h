/* SPDX-License-Identifier: MIT */
/*
 * The source's other connections: a worker thread each, that sends pages beside the coordinator.
 *
 * A round is shared out in ranges (see pages.h), so that each worker takes as much as its
 * connection carries. A worker's connection says ROUND_END when no range is left; the coordinator
 * says it last, on its own. The destination waits for all of them before it takes anything of the
 * next round: that, and not the scheduler, keeps an old content from being stored over a new one.
 */
#ifndef GODWIT_MIGRATE_SENDERS_H
#define GODWIT_MIGRATE_SENDERS_H

#include <pthread.h>

#include "conn.h"
#include "pages.h"

struct senders;

struct sender {
	struct senders *all;
	struct conn conn;
	struct page_path path;
	pthread_t thread;
	bool started;
	int ret; /* of the first round that failed */
	struct errmsg err;
	uint64_t cpu_ns; /* when its latest round was over */
};

struct senders {
	unsigned n;
	struct sender *sender;
	pthread_mutex_t lock; /* guards the rest, and ret and err of each */
	pthread_cond_t changed;
	uint32_t round; /* that they are to work on */
	unsigned busy;	/* who have not done with it */
	bool quit;
};

/*
 * Opens n connections to uri (with tls, as of dial()), which join `session`, and starts their
 * workers; like: the coordinator's page path, for all but the connection, which has the same
 * limits. -errno with the cause in err; senders_close() is due in any case.
 */
int senders_open(struct senders *s, unsigned n, const char *uri, struct tls *tls, int cancel_fd,
		 uint64_t session, const struct page_path *like, struct errmsg *err);

/* Lets the workers send what path.work has; at once. */
void senders_begin_round(struct senders *s, uint32_t round);

/* Waits until each has sent its part and ROUND_END. The first failure's -errno, with its cause. */
int senders_end_round(struct senders *s, struct errmsg *err);

/* What each of them has sent, into bytes[]; without a copy into uncopied[]. How many they are. */
unsigned senders_each(const struct senders *s, uint64_t *bytes, uint64_t *uncopied);

/* Every wait of theirs ends at this time (now_ns()). Between rounds only. */
void senders_set_deadline(struct senders *s, uint64_t deadline_ns);

/* Adds what they have sent and counted so far. */
void senders_add(const struct senders *s, uint64_t *bytes, struct page_counts *counts);

/*
 * Adds what they have tried to send without a copy, and what was. Between rounds senders_settle()
 * first takes in what the kernel has said on that since the latest one.
 */
void senders_settle(struct senders *s);
void senders_add_zerocopy(const struct senders *s, uint64_t *tried, uint64_t *uncopied);

/* CPU time that they had used when their latest round was over. Between rounds only. */
uint64_t senders_cpu_ns(struct senders *s);

/* Breaks their connections, ends the threads, frees all; adds their CPU time. Fine on a zeroed one.
 */
void senders_close(struct senders *s, uint64_t *cpu_ns);

#endif
