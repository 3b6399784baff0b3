/* SPDX-License-Identifier: MIT */
/*
 * A man in the middle of a migration who knows its frames: he listens where `godwit migrate` is
 * sent, connects on to the real receiver, and does what he was told at exactly one frame.
 *
 *	struct relay *r = relay_start("unix:", d.uri);
 *
 *	relay_act(r, (struct relay_act){.dir = TO_DEST, .type = WIRE_STATE, .when = RELAY_AFTER,
 *					.what = RELAY_KILL, .victim = d.proc});
 *	move_start(&g, r->uri, NULL);
 *	...
 *	relay_all_done(r);
 *
 * Theory of operation: it runs within the harness's waits (harness_watch()), so it needs no thread
 * and nothing happens while the test looks at something else. A frame is taken in whole before it
 * is passed on, by migrate/wire.h; bytes that are no frame are passed on as they come. What was
 * forwarded before an act is delivered to the socket before the act happens. When one side closes
 * its direction, so does the relay towards the other, once all before it has been delivered.
 *
 * One connection a relay; its memory lives as long as the test.
 */
#ifndef GODWIT_TESTS_RELAY_H
#define GODWIT_TESTS_RELAY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../../migrate/wire.h"
#include "harness.h"

enum relay_dir {
	TO_DEST,   /* what the source sends */
	TO_SOURCE, /* what the destination answers */
};

#define RELAY_PRELUDE 0U /* type of the prelude, which is no frame */

struct relay_frame {
	enum relay_dir dir;
	unsigned type;	/* enum wire_type or RELAY_PRELUDE */
	unsigned nth;	/* of its type and direction, from 1 */
	uint8_t *bytes; /* header and payload */
	size_t len;	/* of both; may be made smaller */
};

static inline struct wire_frame *relay_header(struct relay_frame *f)
{
	return (struct wire_frame *)(void *)f->bytes;
}

static inline uint8_t *relay_payload(struct relay_frame *f)
{
	return f->bytes + sizeof(struct wire_frame);
}

static inline size_t relay_payload_len(const struct relay_frame *f)
{
	return f->len - sizeof(struct wire_frame);
}

/* Makes the frame's check right again after it was changed. */
void relay_fix(struct relay_frame *f);

enum relay_when {
	RELAY_BEFORE, /* instead of forwarding it, for KILL and CUT */
	RELAY_AFTER,
};

enum relay_what {
	RELAY_KILL,  /* SIGKILL to victim; the connection ends at this point */
	RELAY_CUT,   /* ends the connection, in order: both sides read an end of file */
	RELAY_RESET, /* ends it with a TCP reset, what is on its way gets lost */
	RELAY_DROP,  /* the frame is not forwarded */
	RELAY_TWICE, /* it is forwarded twice */
	RELAY_SWAP,  /* it is forwarded after the one that follows */
	RELAY_SHORT, /* its first `at` bytes are forwarded, then the connection is cut */
	RELAY_FLIP,  /* bit `at` of its payload is changed (of a prelude: of all of it) */
	RELAY_EDIT,  /* edit() may change it */
	RELAY_HOLD,  /* this direction stands still until relay_go() */
};

struct relay_act {
	enum relay_dir dir;
	unsigned type;
	unsigned nth; /* 0: 1 */
	enum relay_when when;
	enum relay_what what;
	struct proc *victim;
	size_t at;
	bool fix; /* FLIP and EDIT: the check is made right again, only deeper ones can notice */
	void (*edit)(void *arg, struct relay_frame *f);
	void *arg;
	bool done; /* by the relay */
};

#define RELAY_MAX_ACTS 8

struct relay_queue {
	uint8_t *data;
	size_t len, cap;
};

/* One of the two connections. */
struct relay_side {
	struct relay *relay;
	int fd;			  /* -1 before it is there */
	enum relay_dir dir;	  /* of what is read from it */
	struct relay_queue in;	  /* read and not taken yet */
	struct relay_queue out;	  /* forwarded and not written yet */
	bool in_ended, out_ended; /* end of file came; is to be sent, or has been */
	bool out_shut;
	bool raw; /* no frames: bytes pass as they are */
	bool held;
	bool prelude; /* has come */
	unsigned count[WIRE_N_TYPES];
	uint32_t seq;		  /* of the next frame forwarded, see renumber */
	struct relay_queue later; /* of RELAY_SWAP */
	struct relay_act *after;  /* to be done once out has drained */
};

struct relay {
	char uri[256];	  /* where to send the source */
	char to_uri[256]; /* the receiver's */
	int listen_fd;
	struct relay_side side[2]; /* [TO_DEST]: the source's, which is read for TO_DEST */
	struct relay_act act[RELAY_MAX_ACTS];
	unsigned n_acts;
	/*
	 * Frames forwarded are numbered anew, with their checks: a frame dropped, doubled or
	 * swapped does not show in the numbers then.
	 */
	bool renumber;
	/* What the source sent, frame by frame and with the edits, when asked for before. */
	bool record;
	struct relay_queue tape;
	struct relay_take {
		unsigned type;
		size_t at, len; /* in tape.data */
	} * take;
	unsigned n_takes;
	bool ended;	   /* cut: nothing is forwarded any more */
	bool reset;	   /* and how */
	char trace[16384]; /* "S:prelude D:prelude S:HELLO ...", for messages */
};

/*
 * Listens at uri ("unix:" for a socket in the scratch folder, or "tcp:127.0.0.1:0") for one
 * source, to pass it on to to_uri.
 */
struct relay *relay_start(const char *uri, const char *to_uri);

/* Adds an act; those for one frame are done in this order, each once. */
void relay_act(struct relay *r, struct relay_act act);

/* Waits until the n-th act (from 0) has been done. */
void relay_wait(struct relay *r, unsigned n, int timeout_ms);

/* Both directions stand still from now on; what has been forwarded is still delivered. */
void relay_hold(struct relay *r);

/* Lets a held direction go on. */
void relay_go(struct relay *r);

/* Ends the connection now, as RELAY_CUT does. */
void relay_cut(struct relay *r);

/* Frames of this type that have come so far, be they forwarded or not. */
unsigned relay_seen(const struct relay *r, enum relay_dir dir, unsigned type);

/* Fails the test unless every act has been done: a fault that did not happen proves nothing. */
void relay_all_done(struct relay *r);

/* "HELLO", "prelude" */
const char *relay_type_name(unsigned type);

/* A socket connected to, or listening at, a unix: or tcp: URI; out gets the URI of the latter. */
int relay_connect(const char *uri);
int relay_listen(const char *uri, char out[256]);

#endif
