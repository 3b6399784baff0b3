/* SPDX-License-Identifier: MIT */
/* What conn.c, conn_recv.c, conn_send.c and conn_batch.c (batches going out) have of each other. */
#ifndef GODWIT_MIGRATE_CONN_PARTS_H
#define GODWIT_MIGRATE_CONN_PARTS_H

#include "conn.h"

/* What a completion belongs to. */
enum conn_tag {
	TAG_NONE,
	TAG_SEND,
	TAG_RECV,
	TAG_CANCEL_POLL,
	TAG_BATCH, /* the first one; CONN_BATCHES in all */
};

/* ---- conn.c ---- */

/* A new operation, submitted by the next conn_step(). */
struct io_uring_sqe *conn_sqe(struct conn *c, unsigned tag);

/* Takes what has completed; waits for at most wait_ns when nothing has. */
int conn_step(struct conn *c, uint64_t wait_ns);

/* Waits until *done. The operation stays under way on an error; the connection is lost then. */
int conn_wait(struct conn *c, const bool *done);

/* An operation on a buffer of the caller's must not outlive his call: breaks the connection. */
void conn_end_operation(struct conn *c, const bool *done, int how);

/* Moves a message on by n bytes; true when nothing is left. */
bool conn_advance(struct msghdr *msg, size_t n);

/* Not 0: the peer has been silent for so long, which was too long, here or on the main one. */
uint64_t conn_dead_ns(const struct conn *c);

/* MSG_WAITALL where the kernel can tell of progress within an operation, else nothing. */
int conn_waitall(const struct conn *c);

/* Says what went wrong; -errno. */
int conn_error(struct conn *c, int ret, struct errmsg *err);

/* ---- conn_recv.c ---- */

/* Takes in what a peer that has only to listen has said: that it lives. What else it says is that
 * it cannot go on: its -errno, as of conn_recv_header(). */
int conn_listen(struct conn *c, struct errmsg *err);

/* ---- conn_send.c ---- */

/*
 * Makes of a message the piece that may be sent next, and has the operation that is prepared after
 * this wait for its turn. After it: takes note of its result, and makes the message whole again.
 */
void conn_pace(struct conn *c, struct msghdr *msg);
void conn_paced(struct conn *c, struct msghdr *msg, int res);

/* Of a frame: none of its bytes has been handed over yet; all have been. */
void conn_begin_frame(struct conn *c);
void conn_end_frame(struct conn *c);

/* conn_error() of a send: what the peer said before it left counts more than how it left. */
int conn_send_error(struct conn *c, int ret, struct errmsg *err);

/* ---- conn_batch.c ---- */

/* Those of which nothing has been sent yet never will be. */
void conn_batches_drop(struct conn *c);

int conn_batches_init(struct conn *c, struct errmsg *err);

/* A completion of b's: of a send, or that the kernel has done with its memory. */
void conn_batch_completed(struct conn *c, struct conn_batch *b, const struct io_uring_cqe *cqe);

/* Handles the completed send of the oldest batch and starts the next. */
int conn_batches_reap(struct conn *c, struct errmsg *err);

/*
 * Makes the kernel let go of the batches' memory; the socket has been shut down. What the peer has
 * not acknowledged is lost if there are batches that were sent without a copy: then this closes
 * the socket.
 */
void conn_batches_end(struct conn *c);
void conn_batches_free(struct conn *c);

#endif
