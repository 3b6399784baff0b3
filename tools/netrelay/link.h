/* SPDX-License-Identifier: MIT */
/*
 * One direction of the link: what happens to packets, and when they arrive. It has no clock and no
 * device of its own: the caller says what time it is.
 *
 * Theory of operation: a packet first waits for its turn in the queue of the narrowest place of the
 * way, whose clock `free_ns` says when all that waits there will have passed; a queue that is full
 * drops it. Having passed, it is lost, damaged or doubled by chance, and what is left of it arrives
 * a delay later. A run of segments (packet.h) goes through in pieces of about a millisecond, and
 * chance deals with each segment alone.
 */
#ifndef GODWIT_NETRELAY_LINK_H
#define GODWIT_NETRELAY_LINK_H

#include <stdbool.h>
#include <stdint.h>

#include "packet.h"

struct link_config {
	uint64_t rate; /* bits of IP a second; 0: no limit */
	uint64_t delay_ns;
	uint64_t jitter_ns; /* the delay is up to this more or less; order is kept */
	uint64_t queue_ns;  /* what waits at most; 0: the round trip, but 50 ms and 16 packets at
			       least */
	double loss, duplicate, reorder; /* probability for each segment */
	double corrupt, corrupt_fixed;	 /* for each bit */
};

/* Counts of segments, but for bytes. */
struct link_stats {
	uint64_t sent, sent_bytes; /* came in from the sender */
	uint64_t delivered, bytes; /* to the receiver's device */
	uint64_t dropped;	   /* by a full queue */
	uint64_t cut;		   /* while the link was */
	uint64_t lost, duplicated, reordered, corrupted, forged;
	uint64_t foreign; /* not IPv4: no link for these */
	uint64_t late_ns,
		late_max_ns; /* how much later than due, all packets together; and the most */
	uint64_t timely;     /* packets (not segments) that late_ns is of */
};

struct link {
	struct link_config config;
	bool cut; /* takes nothing, delivers nothing: link_cut() */
	uint64_t random;
	uint64_t free_ns, last_due_ns;
	double corrupt_in, forge_in; /* bits until the next one */
	struct packet *head, *tail;  /* by due_ns */
	uint64_t held;		     /* bytes in the list */
	struct link_stats stats;
};

void link_init(struct link *l, const struct link_config *c, uint64_t seed);

/* For packets from now on. What is on its way arrives as it would have. */
void link_configure(struct link *l, const struct link_config *c);

/* Cuts it: what is on its way is gone. Or joins it. */
void link_cut(struct link *l, bool cut);

/* Takes p over. */
void link_push(struct link *l, struct packet *p, uint64_t now_ns);

/* When link_pop() will have something; UINT64_MAX: not before a link_push(). */
uint64_t link_due(const struct link *l);

/* The next packet that has arrived by now, in order; the caller's. NULL: none. */
struct packet *link_pop(struct link *l, uint64_t now_ns);

void link_free(struct link *l);

#endif
