/* SPDX-License-Identifier: MIT */
/*
 * Dirty tracking: which pages may differ from what was last read.
 *
 * Theory of operation: KVM keeps a bit a page for the guest's writes (KVM_GET_DIRTY_LOG with
 * KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: reading does not clear), RAM keeps one for our own. A round
 * first adds both to `bitmap`; then, range by range, clears and reads:
 *
 *	dirty_collect()            what is to be sent in this round
 *	  dirty_clear(range)       forget, so that a later write is seen
 *	  ... copy the pages ...   never before: a write between would be lost
 *
 * Ranges are whole words of 64 pages, as KVM wants them.
 *
 * With KVM's dirty rings (vmm/dirty_ring.h) the collection itself forgets, all pages at once, and
 * dirty_clear() has nothing left to do: a page is forgotten earlier before it is read, and is found
 * again if it is written in between.
 */
#ifndef GODWIT_MIGRATE_DIRTY_H
#define GODWIT_MIGRATE_DIRTY_H

#include <stdint.h>

#include "../vmm/vm.h"

struct dirty {
	struct vm *vm;
	uint64_t n_words;
	uint64_t *bitmap;  /* a bit a page by index: still to be sent; who sends takes bits out */
	uint64_t *scratch; /* KVM's log of a slot; with rings, what was harvested since the last
			      round */
	bool logging;
};

/* Starts logging with every page dirty. -errno with the cause in err. */
int dirty_start(struct dirty *d, struct vm *vm, struct errmsg *err);

/* Stops logging and frees; fine on one that never started. */
void dirty_stop(struct dirty *d);

/* Every page counts as dirty: the destination holds none of them. */
void dirty_mark_all(struct dirty *d);

/* Adds what was written since it was last cleared; *pages counts the bitmap. */
int dirty_collect(struct dirty *d, uint64_t *pages, struct errmsg *err);

/* Takes n words from `word` on out of KVM's log, as far as they are set in bitmap. */
int dirty_clear(struct dirty *d, uint64_t word, uint64_t n, struct errmsg *err);

#endif
