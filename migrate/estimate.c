/* SPDX-License-Identifier: MIT */
#include "estimate.h"

#include "../vmm/util.h"
#include "wire.h"

/* A round of fewer bytes is mostly round trips and says little of the network. */
#define WIRE_SAMPLE_MIN (4 * MIB)
/* The same for work. */
#define WORK_SAMPLE_MIN 256U

#define WHOLE_PAGE ((double)(PAGE_SIZE + sizeof(struct wire_desc)))

void estimate_init(struct estimate *e)
{
	*e = (struct estimate){.page_bytes = WHOLE_PAGE};
}

void estimate_learn(struct estimate *e, const struct round_cost *c, bool first)
{
	double byte_ns = c->bytes ? (double)c->ns / (double)c->bytes : 0, bytes;

	/* A few bytes only tell that it is no slower than that. */
	if (c->bytes >= WIRE_SAMPLE_MIN || e->stale || e->byte_ns <= 0 || byte_ns < e->byte_ns)
		e->byte_ns = byte_ns;
	e->firm |= c->bytes >= WIRE_SAMPLE_MIN;
	e->stale = false;
	if (c->scanned >= WORK_SAMPLE_MIN)
		e->page_ns = (double)c->work_ns / c->workers / (double)c->scanned;
	/* Others may all be new. */
	if (c->sent >= WORK_SAMPLE_MIN && c->partly < c->sent / 8)
		e->page_bytes = (double)c->bytes / (double)c->sent;
	/* The first round is of all pages, not of those that the guest writes. */
	if (first || c->scanned == 0)
		return;
	bytes = (double)c->bytes / (double)c->scanned;
	/* Two are better evidence, but no reason to hope. */
	if (e->seen && bytes < e->seen_bytes)
		bytes = (bytes + e->seen_bytes) / 2;
	e->seen_bytes = bytes;
	e->seen = c->scanned;
}

void estimate_set_cap(struct estimate *e, uint64_t bytes_per_s)
{
	double cap_ns = bytes_per_s ? (double)NS_PER_SEC / (double)bytes_per_s : 0;

	/* What was measured may have been the limit's doing. */
	if (cap_ns < e->cap_ns)
		e->stale = true;
	e->cap_ns = cap_ns;
}

double estimate_byte_ns(const struct estimate *e)
{
	return MAX(e->byte_ns, e->cap_ns);
}

static double bytes_of(const struct estimate *e, uint64_t pages)
{
	uint64_t known = MIN(pages, e->seen);

	return (double)known * e->seen_bytes + (double)(pages - known) * e->page_bytes;
}

uint64_t estimate_bytes(const struct estimate *e, uint64_t pages)
{
	return (uint64_t)bytes_of(e, pages);
}

uint64_t estimate_pages_ns(const struct estimate *e, uint64_t pages)
{
	double work = (double)pages * e->page_ns;
	double wire = bytes_of(e, pages) * estimate_byte_ns(e);

	return (uint64_t)(work > wire ? work : wire);
}

uint64_t estimate_next_ns(const struct estimate *e, uint64_t pages, uint64_t round_ns,
			  uint64_t rtt_ns)
{
	uint64_t ns = estimate_pages_ns(e, pages) + rtt_ns;

	if (round_ns == 0)
		return ns;
	/* As many a second as before; pages that are written again and again make it fewer. */
	return estimate_pages_ns(e, (uint64_t)((double)pages * (double)ns / (double)round_ns));
}
