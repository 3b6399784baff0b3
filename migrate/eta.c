/* SPDX-License-Identifier: MIT */
#include "eta.h"

#include "../vmm/util.h"

/* So little says nothing of the rest; a few batches are always counted before they are sent. */
#define SAMPLE_NS (100 * NS_PER_MS)
#define SAMPLE_PAGES 256U

/* A round that takes more than this of the one before it: the move does not come to an end soon. */
#define CONVERGES 0.9

void eta_estimate(const struct eta_now *e, uint64_t *round_ns, uint64_t *move_ns)
{
	double page_ns = e->page_ns, rest, length, shrinks, move;

	*round_ns = *move_ns = 0;
	if (e->sample_ns >= SAMPLE_NS && e->sample_pages >= SAMPLE_PAGES)
		page_ns = (double)e->sample_ns / (double)e->sample_pages;
	if (page_ns <= 0)
		return;
	move = rest = (double)e->remaining_pages * page_ns;
	*round_ns = (uint64_t)rest;
	if (!e->dirty_known)
		return;
	/* Nanoseconds of sending for one of writing. */
	shrinks = (double)e->dirty_pages_per_s * (e->page_ns > 0 ? e->page_ns : page_ns) /
		  (double)NS_PER_SEC;
	length = ((double)e->round_ns + rest) * shrinks;
	if (shrinks > CONVERGES && length > (double)e->target_ns)
		return;
	while (length > (double)MAX(e->target_ns, NS_PER_US)) {
		move += length;
		length *= shrinks;
	}
	*move_ns = (uint64_t)(move + MAX(length, (double)e->downtime_ns));
}
