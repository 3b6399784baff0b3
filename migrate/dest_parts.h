/* SPDX-License-Identifier: MIT */
/*
 * What the files of the destination share: dest.c, dest_hello.c, dest_keep.c and dest_proof.c.
 */
#ifndef GODWIT_MIGRATE_DEST_PARTS_H
#define GODWIT_MIGRATE_DEST_PARTS_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "conn.h"
#include "door.h"
#include "handshake.h"
#include "hashes.h"
#include "lanes.h"
#include "migrate.h"
#include "pulse.h"
#include "store.h"

/* What is left of a guest when its connection broke; the table of it is receiver.hashes. */
struct kept {
	bool valid;
	struct ram ram;
	uint64_t id[2]; /* of the guest */
	uint64_t session;
};

struct receiver {
	struct receive_options opt;
	struct tls *tls; /* of a tls: URI; else NULL */
	struct loop *loop;
	struct loop_task done_task, loop_task;
	void (*done)(void *arg);
	void *done_arg;
	pthread_t thread;
	bool thread_started;
	int cancel_fd, listen_fd;
	int base_fd; /* -1: none */

	pthread_mutex_t lock; /* guards the next six */
	struct migrate_stats stats;
	bool cancelled;
	bool committed;
	/* Until the loop's thread has done it. */
	int (*loop_fn)(struct receiver *r, void *arg);
	void *loop_arg;
	int loop_ret;
	pthread_cond_t loop_done;

	/* The thread's own. */
	struct vm *vm;
	struct conn conn;
	struct pulse pulse;
	struct hashes hashes;
	struct errmsg err;
	uint64_t start_ns, stop_ns;
	struct store store;
	struct door door;
	struct lanes lanes; /* the other connections */
	uint64_t session;
	struct kept kept;
	bool holding;	     /* a source has begun, whose guest is to be kept */
	uint64_t keep_until; /* now_ns(); of what is kept */
	uint64_t received;   /* bytes, on connections that are over */
	uint8_t *state;
	uint32_t state_len;
	struct page_hash root;
	enum migrate_phase phase;
	enum migrate_verify verify;
	bool running;
};

/* ---- dest.c ---- */

void dest_publish(struct receiver *r);
void dest_set_phase(struct receiver *r, enum migrate_phase phase);
bool dest_was_cancelled(struct receiver *r);

/* While something takes its time here: is it still wanted, by both sides? -errno, cause in r->err.
 */
int dest_still_wanted(void *receiver);

/*
 * Has fn done by the loop's thread: devices use the loop as they are built, and let go of it.
 * Nobody ends the loop before we are done. What fn returns.
 */
int dest_on_loop(struct receiver *r, int (*fn)(struct receiver *r, void *arg), void *arg);

/* ---- dest_hello.c: 0, or -errno with the cause in r->err, as the following ---- */

int dest_on_hello(struct receiver *r, const struct wire_frame *f, const uint8_t *payload);

/* ---- dest_proof.c ---- */

/* Takes *payload over. */
int dest_on_state(struct receiver *r, const struct wire_frame *f, uint8_t **payload);
int dest_on_proof(struct receiver *r, const uint8_t *payload);

/* ---- dest_keep.c ---- */

/* Waits for a source and takes its connection. While something is kept: for so long. */
int dest_take_source(struct receiver *r);

/*
 * After serving a connection has failed with ret: is what has come so far kept for another one?
 * Then it is, and 0. Else ret.
 */
int dest_keep(struct receiver *r, int ret);

#endif
