/* SPDX-License-Identifier: MIT */
#include "../eta.h"

#include "../../vmm/tests/check-main.h"
#include "../../vmm/util.h"

static uint64_t round_ns, move_ns;

/* 10,000 pages a second are sent, a third of the round is over after a second. */
static struct eta_now third(void)
{
	return (struct eta_now){
		.round_ns = NS_PER_SEC,
		.sample_ns = NS_PER_SEC,
		.sample_pages = 10000,
		.remaining_pages = 20000,
		.dirty_known = true,
		.target_ns = 50 * NS_PER_MS,
		.downtime_ns = 20 * NS_PER_MS,
	};
}

static void ask(const struct eta_now *e)
{
	eta_estimate(e, &round_ns, &move_ns);
}

static void ck_about(uint64_t ns, double seconds)
{
	ck_assert_double_eq_tol((double)ns / 1e9, seconds, 0.01);
}

START_TEST(idle_guest)
{
	struct eta_now e = third();

	ask(&e);
	ck_about(round_ns, 2);
	ck_about(move_ns, 2.02);
}
END_TEST

/* The first round: nobody knows what the guest writes. */
START_TEST(not_known_yet)
{
	struct eta_now e = third();

	e.dirty_known = false;
	ask(&e);
	ck_about(round_ns, 2);
	ck_assert_uint_eq(move_ns, 0);
}
END_TEST

/* Half as fast as it is sent: 3 s, 1.5 s, 750 ms, ... until 50 ms are allowed. */
START_TEST(rounds_become_shorter)
{
	struct eta_now e = third();

	e.dirty_pages_per_s = 5000;
	ask(&e);
	ck_about(round_ns, 2);
	ck_about(move_ns, 2 + 1.5 + 0.75 + 0.375 + 0.1875 + 0.09375 + 0.046875);
	/* More is allowed: it is over sooner. */
	e.target_ns = NS_PER_SEC;
	ask(&e);
	ck_about(move_ns, 2 + 1.5 + 0.75);
}
END_TEST

START_TEST(never_ends)
{
	struct eta_now e = third();

	e.dirty_pages_per_s = 9900;
	ask(&e);
	ck_about(round_ns, 2);
	ck_assert_uint_eq(move_ns, 0);
	e.dirty_pages_per_s = 1000000;
	ask(&e);
	ck_assert_uint_eq(move_ns, 0);
	/* Unless so much is allowed. */
	e.target_ns = 400 * NS_PER_SEC;
	ask(&e);
	ck_about(move_ns, 302);
	/* Nothing is allowed: it need not come to an end here for that. */
	e = third();
	e.dirty_pages_per_s = 8000;
	e.target_ns = 0;
	ask(&e);
	ck_assert_uint_gt(move_ns, 2 * NS_PER_SEC);
}
END_TEST

/* What was seen lately counts, if it is enough to tell; else what earlier rounds have cost. */
START_TEST(samples)
{
	struct eta_now e = third();

	e.page_ns = 400000;
	ask(&e);
	ck_about(round_ns, 2);
	e.sample_pages = 10;
	ask(&e);
	ck_about(round_ns, 8);
	e.sample_pages = 10000;
	e.sample_ns = 10 * NS_PER_MS;
	ask(&e);
	ck_about(round_ns, 8);
	e.page_ns = 0;
	ask(&e);
	ck_assert(round_ns == 0 && move_ns == 0);
	e.sample_ns = e.sample_pages = 0;
	ask(&e);
	ck_assert(round_ns == 0 && move_ns == 0);
}
END_TEST

int main(void)
{
	const TTest *const tests[] = {idle_guest, not_known_yet, rounds_become_shorter, never_ends,
				      samples};

	return check_main("eta", tests, ARRAY_SIZE(tests));
}
