/* SPDX-License-Identifier: MIT */
/*
 * One connection of a migration: frames over a stream socket through an io_uring of its own.
 *
 * Theory of operation: the coordinator thread sends control frames and waits for each; batches of
 * pages are built in a few staging buffers that circle between free, filled and in flight:
 *
 *	conn_batch()          a free buffer (waits for one)
 *	... fill it ...
 *	conn_send_batch()     queued behind the others; the next can be filled meanwhile
 *
 * A stream keeps order only if one send is under way at a time, so the queue is worked off in
 * order. Every wait also watches cancel_fd and a limit for how long the peer may make no progress:
 * neither take nor send a single byte. That alone would not notice a peer that is gone while there
 * is nothing to say: on the main connection each side therefore says IDLE whenever it has said
 * nothing else for a moment, whatever its threads are waiting for, and takes a peer that says
 * nothing at all for as long as the limit for dead (pulse.h). On the others, which may be silent
 * between rounds, TCP itself looks after that.
 *
 * With a limit for the rate (rate.h) a send is of no more than what may go at once. Its turn is
 * waited for in the kernel, by a timeout that the send is linked to: so waiting for one's turn is
 * waiting for the send, and whoever does so watches all that is watched there.
 *
 * A protected connection (tls.h) is a socket here like any other, whose other end is this
 * process's: what is asked of the kernel about TCP, it is asked about the socket behind it.
 *
 * Large batches are first sent without a copy (IORING_OP_SEND_ZC): the socket then refers to the
 * batch's own memory, which is free again only when the peer has acknowledged it and the kernel
 * has said so. That is given up for the connection, without a word, where it does not pay: the
 * socket cannot do it, the kernel reports that it had to copy after all (as over loopback) or
 * cannot report it, or the round trip is so long that the network would wait for free batches.
 */
#ifndef GODWIT_MIGRATE_CONN_H
#define GODWIT_MIGRATE_CONN_H

#include <liburing.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#include "../vmm/log.h"
#include "rate.h"
#include "tls.h"
#include "wire.h"

#define CONN_BATCHES 4U
#define CONN_BATCH_BYTES ((size_t)WIRE_BATCH_PAGES * PAGE_SIZE)
#define CONN_HEADERS_BYTES (2 * PAGE_SIZE)   /* room for what goes before a batch's data */
#define CONN_LIMIT_DEFAULT (30 * NS_PER_SEC) /* without any progress the peer counts as dead */
#define CONN_LIMIT_MIN NS_PER_SEC
/* A side says that it is alive this often: a quarter of the least that its peer may have as limit.
 */
#define CONN_TELL_NS (CONN_LIMIT_MIN / 4)
#define CONN_OPEN_LIMIT (10 * NS_PER_SEC)   /* for a connection to come about */
#define CONN_PRELUDE_LIMIT (5 * NS_PER_SEC) /* the first thing that a source does is to send it */

enum conn_zerocopy {
	CONN_ZEROCOPY_AUTO,   /* as long as it pays */
	CONN_ZEROCOPY_NEVER,  /* also once it has been given up */
	CONN_ZEROCOPY_ALWAYS, /* as long as it can be done at all: for tests */
};

struct conn_batch {
	struct wire_batch head;
	struct wire_desc desc[WIRE_BATCH_DESCS];
	uint8_t *data;	 /* WIRE_BATCH_PAGES pages, page aligned, CONN_HEADERS_BYTES before them */
	uint8_t *packed; /* instead of data, if head.packed; CONN_BATCH_BYTES by malloc, or NULL */
	/*
	 * Or, instead of data, pieces of the caller's memory, in order, which stay as they are
	 * until the batch has been sent: iov[1] to iov[n_pieces].
	 */
	unsigned n_pieces;
	struct iovec iov[1 + WIRE_BATCH_DESCS];
	struct msghdr msg;
	size_t room;	   /* for contents: CONN_BATCH_BYTES, or less where the rate is low */
	unsigned held;	   /* sends whose memory the kernel may still refer to */
	bool zerocopy;	   /* the latest of them was to be without a copy */
	bool copied;	   /* one of them was not */
	uint64_t zc_bytes; /* sent so, and not yet known whether without a copy */
};

struct conn {
	int fd;
	struct tls_link *tls; /* what carries it on to the peer; NULL: nothing, fd goes there */
	int cancel_fd;	      /* readable: give up. -1: none */
	struct io_uring ring;
	bool ring_up;
	uint32_t seq_out, seq_in;
	_Atomic uint64_t sent, received; /* bytes; others may look */
	uint64_t blocked_ns;		 /* spent waiting for a free batch: the network is slow */
	struct rate *rate;		 /* shared by the move's connections; NULL: no limit */
	struct __kernel_timespec turn;	 /* when the next piece may be sent */
	struct conn_cut {
		struct iovec *iov; /* the last of the piece; NULL when nothing is cut off */
		size_t len, n;	   /* its own length; pieces of the whole message */
	} cut;
	uint64_t limit_ns;	  /* see conn_set_limit() */
	pthread_mutex_t out_lock; /* guards: */
	bool out_busy;		  /* its owner is in the middle of a frame; else also: seq_out */
	bool tells;		  /* conn_tell() does */
	uint64_t told_sent;	  /* `sent` when it looked last */
	_Atomic uint64_t dead_ns; /* not 0: nothing came for so long (pulse.h); others may set it */
	const struct conn *main;  /* of another than the main one: the peer is dead if there */
	struct conn_batch batch[CONN_BATCHES];
	unsigned next_free; /* batches circle in this order */
	unsigned queued;    /* filled and not yet sent, oldest first */
	uint8_t *memory;    /* of the batches: room for headers, then data, of each */
	enum conn_zerocopy zerocopy;
	bool zc_begun;				/* the next two are known */
	bool zc_report;				/* the kernel says whether it had to copy */
	bool zc_registered;			/* it knows our memory */
	unsigned zc_starved;			/* see weigh_wait() */
	_Atomic uint64_t zc_tried, zc_uncopied; /* bytes, of `sent`; others may look */
	unsigned due; /* conn_poll() leaves a frame of this type for later; 0: none may have come */
	bool between_frames;
	bool tcp;     /* what its peer's host has taken can be asked of the kernel */
	bool local;   /* both ends are on this host */
	bool patient; /* the peer may be silent between frames for as long as it likes */
	bool cancel_polled;
	bool cancelled;
	bool send_done, recv_done;
	bool batch_moved;     /* a batch has been sent, or let go of */
	bool peer_failed;     /* a FAIL frame came: the peer's own word that it has given up */
	uint64_t deadline_ns; /* now_ns() after which every wait fails; UINT64_MAX: none */
	int send_res, recv_res;
	const char *peer; /* "destination" or "source", for messages */
};

/* Takes fd over in any case. 0 or -errno with the cause in err. */
int conn_init(struct conn *c, int fd, int cancel_fd, const char *peer, struct errmsg *err);

/*
 * The same of a socket that TLS has been spoken on, or, with tls NULL, of a plain one; fd is
 * tls_socket() then. Takes tls over, too.
 */
int conn_init_over(struct conn *c, int fd, struct tls_link *tls, int cancel_fd, const char *peer,
		   struct errmsg *err);

/* CPU time of a thread of its own, which a protected one has, so far. */
uint64_t conn_cpu_ns(const struct conn *c);

/*
 * How long the peer may make no progress, CONN_LIMIT_DEFAULT unless it is set; TCP gets the same
 * for what it can notice by itself.
 */
void conn_set_limit(struct conn *c, uint64_t limit_ns);

/* Makes every operation under way, and each later one, fail. Any thread, as long as it is open. */
void conn_break(struct conn *c);

/* Closes the socket, frees all; what the peer has not acknowledged may be lost. */
void conn_close(struct conn *c);

/*
 * Sends a frame after everything queued before it and waits until the socket has taken it.
 * -ECANCELED, -ETIMEDOUT, -errno with the cause in err. *taken (may be NULL) says whether any
 * byte of this frame may have left: false means that the peer surely cannot have it.
 */
int conn_send(struct conn *c, enum wire_type type, const void *payload, uint32_t length,
	      bool *taken, struct errmsg *err);

/* Adds a piece to a batch that has only pieces; one that goes on where the last ended is one with
 * it. */
void conn_batch_piece(struct conn_batch *b, const void *piece, size_t len);

/* A free batch to fill: head, desc and data. Waits for one; NULL with *ret set on an error. */
struct conn_batch *conn_batch(struct conn *c, int *ret, struct errmsg *err);

/* Queues a batch (head, desc, data filled in). Errors of earlier ones may come out here. */
int conn_send_batch(struct conn *c, struct conn_batch *b, struct errmsg *err);

/* Takes in what the kernel has to say on batches sent, without waiting: for zc_uncopied. */
void conn_settle(struct conn *c);

/* Waits until every batch has been taken by the socket. */
int conn_flush(struct conn *c, struct errmsg *err);

/*
 * Takes in what the kernel and the peer have to say, and goes on with what is queued, without
 * waiting: for one who sends pages, and has none to send for a while. 0, or as conn_send_batch().
 */
int conn_poll(struct conn *c, struct errmsg *err);

/*
 * Sends an IDLE frame if nothing has been sent since the last look and no frame is on its way.
 * Any thread, as long as it is open; once the owner has let it. conn_hush(): no more from here on,
 * as a frame follows after which there is nothing to say.
 */
void conn_tell(struct conn *c);
void conn_let_tell(struct conn *c);
void conn_hush(struct conn *c);

/* A number that changes whenever anything has come from the peer, read here or not. Any thread. */
uint64_t conn_heard(const struct conn *c);

/*
 * Receives the next frame's header and checks it: magic, sequence, length against its type. IDLE
 * frames are taken silently. FAIL and CANCEL frames end it: -ECONNABORTED with the peer's reason
 * in err. -ECONNRESET when the peer is gone, -EPROTO for a malformed one, -ECANCELED, -ETIMEDOUT.
 */
int conn_recv_header(struct conn *c, struct wire_frame *f, struct errmsg *err);

/* Receives exactly len bytes of payload. Errors as above. */
int conn_recv(struct conn *c, void *buf, size_t len, struct errmsg *err);

/* The same into n pieces, which it changes. */
int conn_recv_vec(struct conn *c, struct iovec *iov, unsigned n, struct errmsg *err);

/* Compares the frame's check with its payload. -EBADMSG with the cause in err. */
int conn_verify(const struct conn *c, const struct wire_frame *f, const void *payload, size_t len,
		struct errmsg *err);

/* A whole frame of the expected type with at most cap bytes of payload; *len is its length. */
int conn_expect(struct conn *c, enum wire_type type, void *payload, uint32_t cap, uint32_t *len,
		struct errmsg *err);

/*
 * Preludes. The source draws session, the destination repeats it. -EPROTO (not a godwit),
 * -EPROTONOSUPPORT (no common version: err names both).
 */
int conn_send_prelude(struct conn *c, uint64_t session, struct errmsg *err);
int conn_recv_prelude(struct conn *c, uint64_t *session, struct errmsg *err);

/* The same of one that has been received elsewhere, as this connection's first bytes. */
int conn_take_prelude(struct conn *c, const struct wire_prelude *p, uint64_t *session,
		      struct errmsg *err);

/* Tells the peer why this side gives up and lets it read that before the socket closes. */
void conn_fail(struct conn *c, enum wire_type type, const char *text);

/* Makes len bytes that the peer sent fit to be shown, and ends them; text has room for len + 1. */
void conn_clean_text(char *text, size_t len);

/* Has the peer closed or broken the connection, as far as is known here now? */
bool conn_peer_gone(const struct conn *c);

#endif
