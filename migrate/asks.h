/* SPDX-License-Identifier: MIT */
/*
 * What the source asks of the destination, so that it can send deltas (delta.h).
 *
 * Theory of operation: pages that are about to be sent again are asked for in one go, as many as
 * fit; the answer is waited for, and each of them is then sent by it. What that saves is the rest
 * of the page on the wire; what it costs is the time of a round trip, two times hashing, and the
 * answer's way. Both are known: the network's speed and round trip from the rounds so far, the
 * size of deltas from those that were sent. While deltas do not pay, a few pages are tried now and
 * then, ever more rarely.
 *
 * Only what was sent in an earlier round is asked for, and each connection asks for what it sends
 * itself: so nothing changes at the destination between the answer and the delta.
 */
#ifndef GODWIT_MIGRATE_ASKS_H
#define GODWIT_MIGRATE_ASKS_H

#include <stdbool.h>
#include <stdint.h>

#include "conn.h"
#include "delta.h"

/* The network, as the latest rounds found it. */
struct asks_network {
	double byte_ns; /* 0: not known */
	uint64_t rtt_ns;
};

struct asks {
	bool on;
	unsigned wait, rest; /* ranges of pages until the next try, and how many that were last */
	double delta;	     /* bytes that a page asked for comes to, as seen lately */
	uint64_t *index;     /* asked for, ascending */
	struct delta_hashes *have;
	unsigned n, next;
	uint64_t sent_pages, sent_bytes; /* of what was asked for, so far */
};

void asks_init(struct asks *a);
void asks_free(struct asks *a);

/* Begins a new list; how many pages it may have: 0 when nothing is to be asked for now. -ENOMEM. */
int asks_begin(struct asks *a, struct errmsg *err);

/* Puts a page on it, after all that are there. */
static inline void asks_add(struct asks *a, uint64_t index)
{
	a->index[a->n++] = index;
}

/* Asks for what is on the list, if that pays. 0, or as conn_send() and conn_expect(). */
int asks_send(struct asks *a, struct conn *c, const struct asks_network *net, struct errmsg *err);

/* What the destination has of a page; NULL if it was not asked for. In ascending order. */
const struct delta_hashes *asks_have(struct asks *a, uint64_t index);

/* A page that was asked for took so many bytes. */
void asks_count(struct asks *a, uint32_t bytes);

/* All on the list are sent: does it pay? */
void asks_decide(struct asks *a, const struct asks_network *net);

#endif
