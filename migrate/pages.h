/* SPDX-License-Identifier: MIT */
/*
 * The page path of the source: from a dirty bit to a frame on the wire.
 *
 *	clear the dirty bits of a range
 *	for each page: copy to staging -> zero? unchanged since sent? -> descriptor (+ content)
 *
 * What goes as content is the least of what is known to be enough: that it is the same as another
 * page which this connection has sent in this round, what has changed in it (asks.h), the page.
 * Looking for the same costs next to nothing and is always done; other connections' pages do not
 * count, as they may arrive later.
 *
 * A page is copied once, into the batch that will carry it, and everything is decided on that
 * copy: the guest may change the page meanwhile, so a hash of one moment and bytes of another
 * would leave the destination with a page that its hash does not tell. Only when the guest is at
 * rest, in the last round, pages are hashed and sent where they lie.
 *
 * A page that the host has no memory for, because the guest never touched it or gave it back, is
 * told as a hole without being read: a move must not make the guest larger, on either side. (One
 * that is given back just before its copy is allocated again by it. That costs little, and it is
 * sent as zeros all the same.)
 */
#ifndef GODWIT_MIGRATE_PAGES_H
#define GODWIT_MIGRATE_PAGES_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "../vmm/vm.h"
#include "asks.h"
#include "conn.h"
#include "dirty.h"
#include "hashes.h"
#include "pack.h"

#define PAGES_RANGE_WORDS                                                                          \
	(RAM_HOLES_MAX /                                                                           \
	 64) /* so many pages are cleared, then read, at a time                    \
			      */

/* Stored by one thread; others may look. */
struct page_counts {
	_Atomic uint64_t scanned, zero, unchanged, sent;
	_Atomic uint64_t packed, delta, copied; /* of those sent */
};

void page_counts_add(struct page_counts *to, const struct page_counts *from);

/* A round, as the workers of all connections share it. */
struct page_work {
	_Atomic uint64_t next;	 /* the word of the bitmap where the next range begins */
	_Atomic bool stop;	 /* one of them has failed */
	bool at_rest;		 /* the guest is, and its devices: set between rounds */
	struct asks_network net; /* set between rounds */
};

struct page_path {
	struct vm *vm;
	struct dirty *dirty;
	struct hashes *hashes; /* what the destination holds */
	struct page_work *work;
	struct conn *conn;
	struct conn_batch *batch; /* being filled, or NULL */
	bool direct;		  /* this round sends pages from where they lie */
	struct pack pack;
	struct asks asks;
	uint32_t *copies; /* pages sent in this round, by their hash: index + 1, or 0 */
	struct page_counts total;
	/* Called after each batch and range: progress, and a reason to stop (-errno). May be NULL.
	 */
	int (*tick)(void *arg, struct errmsg *err);
	void *tick_arg;
};

/* Frees what rounds have taken; what the path points to is others'. */
void page_path_free(struct page_path *p);

/*
 * Sends pages of dirty->bitmap, and takes their bits, until no range of the work is left. On return
 * all batches are queued and the last is on its way. -errno with the cause in err; 0 also when it
 * was stopped.
 */
int pages_send_round(struct page_path *p, struct errmsg *err);

#endif
