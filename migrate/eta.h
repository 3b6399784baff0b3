/* SPDX-License-Identifier: MIT */
/*
 * When a move will be over, if things go on as they do.
 *
 * The rest of this round takes as long as its pages have lately. The guest writes meanwhile: the
 * next round has what it has written in this one, is shorter by as much as the network is faster
 * than the guest, and so on until a round's pages fit the pause. Where rounds do not become
 * notably shorter nobody can say when that will be.
 */
#ifndef GODWIT_MIGRATE_ETA_H
#define GODWIT_MIGRATE_ETA_H

#include <stdbool.h>
#include <stdint.h>

struct eta_now {
	uint64_t round_ns;		  /* the present round, so far */
	uint64_t sample_ns, sample_pages; /* of these, lately: pages dealt with in so much time */
	uint64_t remaining_pages;	  /* of the round */
	double page_ns; /* what a page has cost in earlier rounds, and may now; 0: not known */
	uint64_t dirty_pages_per_s; /* that the guest writes */
	bool dirty_known;	    /* not in the first round */
	uint64_t target_ns;	    /* of the pause */
	uint64_t downtime_ns;	    /* that it is expected to take; 0: not known */
};

/* Until this round and the whole move are over; 0 for what cannot be told. */
void eta_estimate(const struct eta_now *e, uint64_t *round_ns, uint64_t *move_ns);

#endif
