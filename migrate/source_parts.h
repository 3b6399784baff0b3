/* SPDX-License-Identifier: MIT */
/*
 * What the files of the source share: source.c, source_connect.c, source_rounds.c,
 * source_throttle.c and source_handover.c.
 */
#ifndef GODWIT_MIGRATE_SOURCE_PARTS_H
#define GODWIT_MIGRATE_SOURCE_PARTS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "conn.h"
#include "dirty.h"
#include "estimate.h"
#include "hashes.h"
#include "migrate.h"
#include "pages.h"
#include "policy.h"
#include "pulse.h"
#include "rate.h"
#include "senders.h"

/* What is known of a vCPU of the guest that moves. */
struct source_vcpu {
	uint64_t pages;	    /* dirty_ring_pages_of() at the latest look */
	uint64_t slowed_ns; /* vm_slowed_ns() at the start */
	bool writes;	    /* a notable share of what becomes dirty */
};

struct migration {
	struct vm *vm;
	struct migrate_options opt;
	struct tls *tls; /* of a tls: URI; else NULL */
	struct loop *loop;
	struct loop_task done_task;
	void (*done)(void *arg);
	void *done_arg;
	pthread_t thread;
	int cancel_fd;

	struct rate rate;     /* of all connections together; any thread */
	pthread_mutex_t lock; /* guards the next three */
	struct migrate_stats stats;
	bool cancelled;
	bool committed; /* COMMIT may be out: cancelling is over */

	/* The coordinator's own. */
	struct conn conn;
	struct pulse pulse;
	struct dirty dirty;
	struct hashes hashes;
	struct page_path path; /* of the first connection, which is the coordinator's */
	struct page_work work;
	struct senders senders; /* the other connections */
	uint64_t session, seed; /* the same on each connection that takes a broken one's place */
	struct page_hash *held; /* digests of what the destination holds, or NULL: nothing */
	struct errmsg err;
	uint64_t start_ns, deadline_ns;
	uint64_t reconnect_wait; /* before the latest try; 0: there was none */
	uint64_t broke_sent;	 /* pages sent until the latest connection broke */
	uint64_t past_bytes;	 /* of connections that broke, as are: */
	uint64_t past_cpu_ns;
	uint64_t past_tried, past_uncopied; /* of the bytes, without a copy */
	struct page_counts past;
	uint64_t round_start_ns, round_start_sent, round_start_cpu, round_pages;
	uint64_t last_bytes_per_s; /* of the round before */
	uint64_t collect_ns;	   /* what finding the round's pages took */
	struct page_counts round_start_counts;
	struct mark {
		uint64_t ns, done;
	} mark[2]; /* in this round: pages dealt with some seconds ago, and since */
	uint64_t round_start_each[MIGRATE_CONNECTIONS_MAX]; /* bytes of each connection */
	struct estimate estimate;
	struct policy_choice choice;
	struct policy policy;
	struct source_vcpu *vcpus;
	bool looked;	      /* at who writes */
	unsigned throttle;    /* percent, at present */
	double hash_ns;	      /* of a page of RAM, where all are hashed at the pause; else 0 */
	int64_t clock_offset; /* destination's now_ns() less ours */
	uint64_t clocks_at;   /* when that was measured */
	uint64_t rtt;
	uint64_t pause_start;
	bool released; /* disks' locks and the like are free for the destination */
	bool uncertain;
	bool own_fault; /* what failed is not the connection's */
};

/* ---- source.c ---- */

/* CPU time that the threads which send have used, the calling one among them. Between rounds only.
 */
uint64_t source_cpu_ns(struct migration *m);

void source_set_phase(struct migration *m, enum migrate_phase phase);

/* What all connections have sent so far: bytes, and pages. */
uint64_t source_sum_up(const struct migration *m, struct page_counts *pages);

/* Brings the figures that others look at up to date. */
void source_publish(struct migration *m);

/* Lets what was asked for by migrate_tune() count from here on. */
void source_take_tuning(struct migration *m);

/* Bytes that each connection has sent, into bytes[], without a copy into uncopied[]; how many they
 * are. */
unsigned source_each(const struct migration *m, uint64_t bytes[MIGRATE_CONNECTIONS_MAX],
		     uint64_t uncopied[MIGRATE_CONNECTIONS_MAX]);

/* Reasons to stop that do not come from the connection: -ESHUTDOWN, -ETIME with the cause. */
int source_check_stop(struct migration *m, struct errmsg *err);

/* ---- source_connect.c: 0, or -errno with the cause in m->err, as the following ---- */

/* Connects and shakes hands. */
int source_connect(struct migration *m);

/* After ret: has only the connection failed, so that another may take its place? */
bool source_may_reconnect(struct migration *m, int ret);

/* Lets the guest run on, drops what is left of the connection, and tries to get another. */
int source_reconnect(struct migration *m, bool *quiesced);

/* Makes table and bitmap agree with what the destination holds. After dirty tracking has begun. */
int source_take_stock(struct migration *m);

/* ---- source_rounds.c ---- */

/* From the start of dirty tracking until what is left fits the pause. */
int source_precopy(struct migration *m);

/* The pages of the next round. */
int source_collect(struct migration *m, uint64_t *pages);

/* Sends a round, whose number is in *round. */
int source_send_round(struct migration *m, uint64_t pages, uint32_t *round);

/* What the destination acknowledges is stored. */
int source_await_ack(struct migration *m, uint32_t round);

/* Notes what the round that ends now was. */
void source_note_round(struct migration *m);

/* ---- source_throttle.c ---- */

/* Before the first round. -ENOMEM with the cause in m->err. */
int source_throttle_init(struct migration *m);

/* After each collection: who has written the pages that it found? */
void source_throttle_look(struct migration *m);

/* Slows the guest by so many percent from now on, or lets it run freely again with 0. */
void source_throttle_set(struct migration *m, unsigned percent);

/* Brings the figures of it up to date. With m->lock held. */
void source_throttle_publish(struct migration *m);

/* Releases the guest, whatever has become of the move; its figures stay. */
void source_throttle_end(struct migration *m);

/* ---- source_handover.c ---- */

/* The pause: the last pages, state, proof, COMMIT. *quiesced: devices are at rest. */
int source_stop_and_copy(struct migration *m, bool *quiesced);

/* After all of it, or after what failed with ret: who runs the guest now. */
enum migrate_status source_settle(struct migration *m, int ret, bool quiesced);

#endif
