/* SPDX-License-Identifier: MIT */
/* The limit of what is sent, on a clock of its own. */
#include "../rate.h"

#include <stdbool.h>
#include <stdlib.h>

#include "../../vmm/tests/check-main.h"

#define START (7 * NS_PER_SEC)
#define CONNS_MAX 8U

static struct rate rate;

/* One that sends all it may: when it may send its next piece, and how long that is. */
struct sender {
	uint64_t at;
	size_t piece;
	uint64_t sent;
};

/* What went out when, in order. */
static struct event {
	uint64_t at;
	size_t bytes;
} events[2000000];
static size_t n_events;

/* Who has to wait wakes `late` ns after its turn has come. */
static void send_next(struct sender *s, uint64_t now, uint64_t late)
{
	s->piece = rate_piece(&rate);
	s->at = rate_take(&rate, now, s->piece);
	s->at += s->at > now ? late : 0;
}

/* n connections send for `seconds`. */
static void run(struct sender *s, unsigned n, double seconds, uint64_t late)
{
	uint64_t end = START + (uint64_t)(seconds * 1e9);

	n_events = 0;
	for (unsigned i = 0; i < n; i++) {
		s[i].sent = 0;
		send_next(&s[i], START, late);
	}
	for (;;) {
		struct sender *next = &s[0];
		uint64_t at;

		for (unsigned i = 1; i < n; i++)
			next = s[i].at < next->at ? &s[i] : next;
		at = next->at;
		if (at >= end)
			return;
		ck_assert_uint_lt(n_events, ARRAY_SIZE(events));
		events[n_events++] = (struct event){at, next->piece};
		next->sent += next->piece;
		send_next(next, at, late);
	}
}

/* The most of any window of one second, and all of it. */
static uint64_t worst_second(uint64_t *total)
{
	uint64_t sum = 0, worst = 0;
	size_t first = 0;

	*total = 0;
	for (size_t i = 0; i < n_events; i++) {
		sum += events[i].bytes;
		*total += events[i].bytes;
		while (events[first].at + NS_PER_SEC <= events[i].at)
			sum -= events[first++].bytes;
		worst = MAX(worst, sum);
	}
	return worst;
}

static const uint64_t rates[] = {8000, 125000, 1250000, 12500000, 125000000, 1250000000};

START_TEST(holds)
{
	struct sender s[CONNS_MAX];
	uint64_t total, worst;

	for (size_t r = 0; r < ARRAY_SIZE(rates); r++) {
		for (unsigned n = 1; n <= CONNS_MAX; n += n == 1 ? 2 : 5) {
			double most = (double)rates[r] * 1.03;

			rate_init(&rate, rates[r]);
			run(s, n, 4, 50 * NS_PER_US);
			worst = worst_second(&total);
			ck_assert_msg((double)worst <= most, "%lu bytes/s, %u connections: %lu",
				      rates[r], n, worst);
			ck_assert_msg((double)total >= 3.98 * (double)rates[r], "%lu: %lu",
				      rates[r], total);
			rate_destroy(&rate);
		}
	}
}
END_TEST

/* Who wakes late catches up, but not for longer than the credit. */
START_TEST(late)
{
	struct sender s[1];
	uint64_t total;

	rate_init(&rate, 1250000);
	run(s, 1, 4, 8 * NS_PER_MS);
	ck_assert_uint_le(worst_second(&total), 1250000 * 103 / 100);
	ck_assert_uint_ge(total, 4 * 1250000 * 98 / 100);
	/* A rest of a minute earns no more than one of a moment. */
	send_next(s, START + 64 * NS_PER_SEC, 0);
	ck_assert_uint_eq(s[0].at, START + 64 * NS_PER_SEC);
	n_events = 0;
	while (s[0].at < START + 65 * NS_PER_SEC) {
		events[n_events++] = (struct event){s[0].at, s[0].piece};
		send_next(s, s[0].at, 0);
	}
	ck_assert_uint_le(worst_second(&total), 1250000 * 103 / 100);
	rate_destroy(&rate);
}
END_TEST

START_TEST(fair)
{
	struct sender s[CONNS_MAX];

	rate_init(&rate, 12500000);
	/* One that is always late among others that are not would be the worst of it. */
	run(s, CONNS_MAX, 4, 100 * NS_PER_US);
	for (unsigned i = 1; i < CONNS_MAX; i++)
		ck_assert_msg(s[i].sent * 100 >= s[0].sent * 95 &&
				      s[i].sent * 95 <= s[0].sent * 100,
			      "%lu and %lu", s[i].sent, s[0].sent);
	rate_destroy(&rate);
}
END_TEST

/* Frames are short where the rate is low, so that what follows is not long in coming. */
START_TEST(frames)
{
	const size_t most = 64 * PAGE_SIZE;

	rate_init(&rate, 0);
	ck_assert_uint_eq(rate_frame(&rate, most), most);
	ck_assert_uint_eq(rate_piece(&rate), SIZE_MAX);
	rate_set(&rate, 8000);
	ck_assert_uint_eq(rate_frame(&rate, most), PAGE_SIZE);
	ck_assert_uint_eq(rate_piece(&rate), 16);
	rate_set(&rate, 1250000);
	ck_assert_uint_ge(rate_frame(&rate, most), PAGE_SIZE);
	ck_assert_uint_le(rate_frame(&rate, most), 1250000 / 20);
	ck_assert_uint_le(rate_piece(&rate), 12500);
	rate_set(&rate, INT64_MAX);
	ck_assert_uint_eq(rate_frame(&rate, most), most);
	ck_assert_uint_gt(rate_piece(&rate), most);
	rate_destroy(&rate);
}
END_TEST

START_TEST(unlimited)
{
	rate_init(&rate, 0);
	for (unsigned i = 0; i < 1000; i++)
		ck_assert_uint_eq(rate_take(&rate, START, 1U << 30), START);
	rate_destroy(&rate);
}
END_TEST

/* A change counts at once, in both directions. */
START_TEST(changed)
{
	uint64_t at;

	rate_init(&rate, 1000000);
	rate_take(&rate, START, 100000);
	/* 100 ms less the credit are promised. */
	ck_assert_uint_eq(rate_take(&rate, START, 1000), START + 100 * NS_PER_MS - RATE_CREDIT_NS);
	rate_set(&rate, 10000);
	at = rate_take(&rate, START, 1000);
	ck_assert_uint_eq(rate_take(&rate, START, 1000), at + 100 * NS_PER_MS);
	rate_set(&rate, 100000000);
	at = rate_take(&rate, START, 1000);
	ck_assert_uint_eq(rate_take(&rate, START, 1000), at + 10 * NS_PER_US);
	rate_set(&rate, 0);
	ck_assert_uint_eq(rate_take(&rate, START, 1000), START);
	rate_destroy(&rate);
}
END_TEST

/* What could not be sent is others'. */
START_TEST(given_back)
{
	uint64_t at;

	rate_init(&rate, 1000000);
	rate_take(&rate, START, 100000);
	at = rate_take(&rate, START, 1000);
	rate_give_back(&rate, 1000);
	ck_assert_uint_eq(rate_take(&rate, START, 1000), at);
	rate_give_back(&rate, 101000);
	ck_assert_uint_eq(rate_take(&rate, START, 1000), START);
	rate_destroy(&rate);
}
END_TEST

int main(void)
{
	const TTest *const tests[] = {holds, late, fair, frames, unlimited, changed, given_back};

	return check_main("rate", tests, ARRAY_SIZE(tests));
}
