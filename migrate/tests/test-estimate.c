/* SPDX-License-Identifier: MIT */
#include "../estimate.h"

#include "../../vmm/tests/check-main.h"
#include "../../vmm/util.h"

#define PAGES 65536U

static struct estimate e;

/* A round of PAGES pages in `ms`, of which `sent` were sent whole. */
static void learn(uint64_t ms, uint64_t work_ms, uint64_t sent, bool first)
{
	struct round_cost c = {
		.ns = ms * NS_PER_MS,
		.work_ns = work_ms * NS_PER_MS,
		.workers = 1,
		.bytes = sent * (PAGE_SIZE + 32) + 28,
		.scanned = PAGES,
		.sent = sent,
	};

	estimate_learn(&e, &c, first);
}

static double ms_for(uint64_t pages)
{
	return (double)estimate_pages_ns(&e, pages) / (double)NS_PER_MS;
}

static void begin(void)
{
	estimate_init(&e);
}

/* As fast as the first round went, and in proportion. */
START_TEST(whole_pages)
{
	begin();
	learn(1000, 300, PAGES, true);
	ck_assert_double_eq_tol(ms_for(PAGES), 1000, 1);
	ck_assert_double_eq_tol(ms_for(PAGES / 64), 1000.0 / 64, 1);
	ck_assert_double_eq_tol(ms_for(0), 0, 0.01);
}
END_TEST

/* All of RAM was zeros: that says nothing of the pages that the guest writes. */
START_TEST(zeros_promise_nothing)
{
	begin();
	learn(1000, 100, PAGES / 2, true);
	ck_assert_double_eq_tol(ms_for(PAGES / 2), 1000, 1);
}
END_TEST

/* Dirty pages that turned out unchanged cost only to be looked at, but no more pages than that. */
START_TEST(unchanged_pages)
{
	begin();
	learn(1000, 300, PAGES, true);
	learn(40, 30, 0, false);
	ck_assert_double_eq_tol(ms_for(PAGES), 30, 1);
	ck_assert_double_ge(ms_for(2 * PAGES), 1000);
	/* The next round had new content again: both may come. */
	learn(1000, 300, PAGES, false);
	ck_assert_double_eq_tol(ms_for(PAGES), 1000, 1);
	learn(40, 30, 0, false);
	ck_assert_double_eq_tol(ms_for(PAGES), 500, 5);
}
END_TEST

/* A few bytes say that the network is no slower than that, never that it is. */
START_TEST(small_rounds)
{
	struct round_cost c = {
		.ns = 10 * NS_PER_MS, .workers = 1, .bytes = 100000, .scanned = 24, .sent = 24};
	double before;

	begin();
	learn(1000, 300, PAGES, true);
	estimate_learn(&e, &c, false);
	before = ms_for(PAGES);
	ck_assert_double_ge(before, 990);
	c.ns = 10000;
	estimate_learn(&e, &c, false);
	ck_assert_double_lt(ms_for(PAGES), before);
}
END_TEST

/* The work of several is shared. */
START_TEST(workers)
{
	struct round_cost c = {.ns = NS_PER_SEC,
			       .work_ns = 4 * NS_PER_SEC,
			       .workers = 4,
			       .bytes = 28,
			       .scanned = PAGES};

	begin();
	learn(1000, 300, PAGES, true);
	estimate_learn(&e, &c, false);
	ck_assert_double_eq_tol(ms_for(PAGES), 1000, 1);
}
END_TEST

/* What may be sent is less than the network can: that counts, at once and for small rounds too. */
START_TEST(limit)
{
	struct round_cost c = {
		.ns = 10 * NS_PER_MS, .workers = 1, .bytes = 100000, .scanned = 24, .sent = 24};
	const double bytes = (double)PAGES * (PAGE_SIZE + 32);

	begin();
	learn(1000, 300, PAGES, true);
	estimate_set_cap(&e, (uint64_t)(bytes / 10));
	ck_assert_double_eq_tol(ms_for(PAGES), 10000, 10);
	/* A burst at the start of a round is no sign that it is not held. */
	c.ns = 1000;
	estimate_learn(&e, &c, false);
	ck_assert_double_eq_tol(ms_for(PAGES), 10000, 10);
	/* One above what the network can is none. */
	begin();
	learn(1000, 300, PAGES, true);
	estimate_set_cap(&e, (uint64_t)(bytes * 10));
	ck_assert_double_eq_tol(ms_for(PAGES), 1000, 10);
}
END_TEST

/* Raised or lifted: the old speed says nothing any more, and the next round's counts, however short
 * it was. */
START_TEST(limit_raised)
{
	struct round_cost c = {.workers = 1, .bytes = 100000, .scanned = 24, .sent = 24};
	const double bytes = (double)PAGES * (PAGE_SIZE + 32);

	for (unsigned lifted = 0; lifted < 2; lifted++) {
		begin();
		estimate_set_cap(&e, (uint64_t)(bytes / 10));
		learn(10000, 300, PAGES, true);
		ck_assert_double_eq_tol(ms_for(PAGES), 10000, 10);
		estimate_set_cap(&e, lifted ? 0 : (uint64_t)bytes);
		/* As fast as the new limit lets it. */
		c.ns = (uint64_t)(100000 / bytes * 1e9);
		estimate_learn(&e, &c, false);
		ck_assert_double_eq_tol(ms_for(PAGES), 1000, 10);
		/* Or slower than before: the network is busy. */
		estimate_set_cap(&e, lifted ? 0 : (uint64_t)bytes * 2);
		c.ns *= 30;
		estimate_learn(&e, &c, false);
		ck_assert_double_eq_tol(ms_for(PAGES), lifted ? 1000 : 30000, 100);
	}
}
END_TEST

static double next_ms(uint64_t pages, uint64_t round_ms)
{
	return (double)estimate_next_ns(&e, pages, round_ms * NS_PER_MS, NS_PER_MS) /
	       (double)NS_PER_MS;
}

/* PAGES a second go over this network: what becomes dirty while some do. */
START_TEST(after_another_round)
{
	begin();
	learn(1000, 300, PAGES, true);
	/* 20 ms of pages, dirtied in 100 ms: a fifth of that is left, and what a round trip adds.
	 */
	ck_assert_double_eq_tol(next_ms(PAGES / 50, 100), 4.2, 0.1);
	/* Dirtied as fast as they are sent, or faster. */
	ck_assert_double_eq_tol(next_ms(PAGES / 50, 20), 21, 0.1);
	ck_assert_double_eq_tol(next_ms(PAGES / 50, 10), 42, 0.1);
	ck_assert_double_eq_tol(next_ms(0, 100), 0, 0.01);
	/* It is not known: no fewer. */
	ck_assert_double_ge(next_ms(PAGES / 50, 0), 20);
}
END_TEST

/* What pages come to follows what the latest round's did. */
START_TEST(bytes)
{
	begin();
	learn(1000, 300, PAGES, true);
	ck_assert_double_eq_tol((double)estimate_bytes(&e, PAGES), PAGES * 4128.0, 1000);
	learn(100, 30, PAGES / 2, false);
	ck_assert_double_eq_tol((double)estimate_bytes(&e, PAGES), PAGES * 2064.0, 1000);
	ck_assert_double_eq_tol((double)estimate_bytes(&e, 2 * PAGES), PAGES * 6192.0, 1000);
}
END_TEST

int main(void)
{
	const TTest *const tests[] = {
		whole_pages, zeros_promise_nothing, unchanged_pages, small_rounds,
		limit,	     limit_raised,	    workers,	     after_another_round,
		bytes};

	return check_main("estimate", tests, ARRAY_SIZE(tests));
}
