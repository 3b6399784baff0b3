/* SPDX-License-Identifier: MIT */
/*
 * How long the pause would take, from what the rounds so far have cost.
 *
 * Reading and hashing pages, and sending what is left of them, go on side by side; the pause takes
 * as long as the slower of the two, and a fixed part besides:
 *
 *	work	pages * work of a page		pages that turn out unchanged are work, too
 *	wire	bytes expected * time of a byte	by what dirty pages came to in the latest round,
 *						but no more of them than it had: others may all
 *						be new
 */
#ifndef GODWIT_MIGRATE_ESTIMATE_H
#define GODWIT_MIGRATE_ESTIMATE_H

#include <stdbool.h>
#include <stdint.h>

struct estimate {
	double page_ns;	   /* work for a page */
	double byte_ns;	   /* on the wire; 0: not known */
	double page_bytes; /* of a page that is sent whole, framing included */
	double seen_bytes; /* of a dirty page, in the latest round but the first */
	uint64_t seen;	   /* pages of that round; 0: there was none */
	double cap_ns;	   /* of a byte, that it takes at least; 0: no limit is set */
	bool stale;	   /* byte_ns is of a limit that has been raised since */
	bool firm;	   /* of so many bytes that it is the network's speed and no hiccup's */
};

/* What a round has cost. */
struct round_cost {
	uint64_t ns;	  /* until the destination had it all */
	uint64_t work_ns; /* CPU time of those who send; they share the pages */
	unsigned workers;
	uint64_t bytes; /* on the wire */
	uint64_t scanned, sent;
	uint64_t partly; /* of those sent: without all of their content */
};

void estimate_init(struct estimate *e);

/* Learns from a round; first: the one that had all of RAM. */
void estimate_learn(struct estimate *e, const struct round_cost *c, bool first);

/*
 * What may be sent from now on, 0 for no limit. It counts at once when it is slower than what was
 * measured; when it has been raised, the next round's speed counts, however short it was.
 */
void estimate_set_cap(struct estimate *e, uint64_t bytes_per_s);

/* Of a byte on the wire; 0: not known. */
double estimate_byte_ns(const struct estimate *e);

/* Nanoseconds that so many dirty pages would take. */
uint64_t estimate_pages_ns(const struct estimate *e, uint64_t pages);

/* Bytes on the wire that they would come to. */
uint64_t estimate_bytes(const struct estimate *e, uint64_t pages);

/*
 * Nanoseconds that the pages would take which become dirty while so many are sent in a round of
 * their own; these became dirty in the round_ns before.
 */
uint64_t estimate_next_ns(const struct estimate *e, uint64_t pages, uint64_t round_ns,
			  uint64_t rtt_ns);

#endif
