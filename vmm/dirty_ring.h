/* SPDX-License-Identifier: MIT */
/*
 * KVM's dirty rings: a list of written pages for each vCPU instead of a bit for each page.
 *
 * Theory of operation: KVM appends a page to the ring of the vCPU that first writes it. Who
 * harvests marks the entries, in order, and notes the pages; KVM_RESET_DIRTY_RINGS then takes the
 * marked ones out and write-protects their pages again. Both are done at once under one lock, so
 * a page that has been noted is one whose next write will be seen: it can be read from then on.
 *
 *	migration's thread, each round	dirty_ring_collect()
 *	a vCPU whose ring is full	dirty_ring_full(): harvests for all, and goes on
 *
 * What a vCPU harvests while a round works is noted for the next one. Nobody waits for a vCPU with
 * the lock held. Without a migration nothing is logged and rings stay empty.
 *
 * A reset can be cut short: from Linux 6.17 on KVM ends it when anything is pending for the thread,
 * and forgets to protect the pages that it had gathered last (up to 64). Which these are is not
 * known, so all are lost, and it is started over: see dirty_ring_collect(). If it happens right
 * after the last entry the number of entries does not show it; therefore nothing must be pending:
 * resets are made with all signals blocked, on a vCPU's thread or on one of their own, which have
 * no io_uring. What remains is a debugger or a freezer that comes at that very moment.
 *
 * What the processor still buffers (Intel's page-modification log) comes when its vCPU next leaves
 * the guest: in a later round, and in the last one all of it, as vCPUs stand then.
 */
#ifndef GODWIT_DIRTY_RING_H
#define GODWIT_DIRTY_RING_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "log.h"

struct vcpu;
struct vm;

/*
 * AUTO is the log. In pairs of runs on one busy machine of two CPUs neither was faster beyond the
 * spread: medians by log and ring of 17.5 and 18.7 ms for a round of 1,000 pages in 16 GiB, of 9.1
 * and 8.2 s for a move under 200 MiB/s of writes, 6.7 and 6.6 s under writes flat out. Collecting
 * and clearing 200 pages of 16 GiB took 0.3 to 0.4 ms either way. The log takes no memory, does not
 * protect all of RAM at the start, and has no resets to be cut short.
 */
enum dirty_how {
	DIRTY_AUTO,
	DIRTY_LOG,
	DIRTY_RING,
};

/* KVM wants a power of two. */
#define DIRTY_RING_MIN 256U
#define DIRTY_RING_MAX 65536U
#define DIRTY_RING_DEFAULT 16384U /* 64 MiB of pages, for 256 KiB of memory a vCPU */

/* How a process finds its guest's dirty pages. Each side of a move has its own. */
struct dirty_config {
	enum dirty_how how;
	uint32_t entries; /* of a ring; 0: DIRTY_RING_DEFAULT */
};

struct dirty_ring {
	uint32_t entries;     /* of each vCPU's ring; 0: there are none, use the dirty log */
	pthread_mutex_t lock; /* guards the rest, and the vCPUs' ring_next and ring_pages */
	uint64_t *pages;      /* a bit a page: harvested; NULL: nobody wants to know */
	bool lost;	      /* not all of it is in there */
	uint64_t filled;      /* how often a vCPU left the guest for a full ring */
};

/*
 * Enables rings if the machine's config says so; before it has vCPUs. -ENOTSUP where KVM has none,
 * -errno, with the cause in err.
 */
int dirty_ring_init(struct vm *vm, struct errmsg *err);

/* A vCPU's own, once it is made; nothing to do without rings. -errno with the cause in err. */
int dirty_ring_map(struct vcpu *v, struct errmsg *err);
void dirty_ring_unmap(struct vcpu *v);

/*
 * From here on pages are noted in this bitmap, a bit a page by index, which is all zeros; or, with
 * NULL, nowhere. What is in the rings is taken out before, and forgotten. 0 or -errno.
 */
int dirty_ring_note_in(struct vm *vm, uint64_t *pages);

/*
 * Moves to bitmap what has been noted and what is in the rings now. *lost: pages may be missing
 * from it, and writes to others may not be seen any more: logging must be turned off and on again,
 * and then all pages are to be taken for dirty. 0 or -errno.
 */
int dirty_ring_collect(struct vm *vm, uint64_t *bitmap, uint64_t n_words, bool *lost);

/*
 * How many pages have been harvested from this vCPU's ring since it was made: those that it wrote
 * before any other did. 0 without rings.
 */
uint64_t dirty_ring_pages_of(struct vm *vm, unsigned vcpu);

/* KVM_EXIT_DIRTY_RING_FULL, on the vCPU's thread. 0, or -errno: it would be full again at once. */
int dirty_ring_full(struct vcpu *v);

#endif
