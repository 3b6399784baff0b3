/* SPDX-License-Identifier: MIT */
/*
 * Decisions between rounds: of guests that are made up here, whose moves follow from a few numbers,
 * and of moves that were recorded (traces/): each is a report of `godwit migrate --json`.
 */
#include "../policy.h"

#include <glob.h>
#include <stdio.h>
#include <string.h>

#include "../../vmm/report_trace.h"
#include "../../vmm/tests/check-main.h"
#include "../../vmm/util.h"

#define LINK 100e6 /* bytes a second, of the links here */
#define RAM 1000e6 /* which takes 10 s */
#define FIXED_MS 4
#define DOWNTIME_MS 50
#define ROUNDS_MAX 5000U

/* ---- guests made up ---- */

/* It writes so many bytes a second, of the hot ones round and round. */
struct model {
	double rate, hot, link;
	/* From after round `at` for `rounds` rounds: by this factor more, and over so much more. */
	unsigned at, rounds;
	double more, link_factor;
	double noise;	    /* rate is off by up to this part, to and fro */
	double left, now_s; /* as it stands */
	struct policy_choice choice;
	struct policy policy;
	struct policy_facts facts;
	struct policy_decision d;
	unsigned round, throttle, throttle_max, told, stuck_rounds, first_stuck;
	bool was_stuck;
};

static void start(struct model *g, double rate, double hot, enum on_timeout what)
{
	*g = (struct model){.rate = rate, .hot = hot, .link = LINK, .more = 1, .link_factor = 1};
	g->left = RAM;
	g->choice =
		(struct policy_choice){.downtime_ns = DOWNTIME_MS * NS_PER_MS, .on_timeout = what};
}

static uint64_t ns(double s)
{
	return s > 0 ? (uint64_t)(s * 1e9) : 0;
}

static void step(struct model *g)
{
	bool burst = g->round >= g->at && g->round < g->at + g->rounds;
	double rate = g->rate * (burst ? g->more : 1) * (100 - g->throttle) / 100;
	double link = g->link * (burst ? g->link_factor : 1);
	double round_s = g->left / link + 0.001, next_s;

	rate *= 1 + g->noise * (g->round % 3 - 1.0);
	g->now_s += round_s;
	g->left = MIN(rate * round_s, burst ? RAM : g->hot);
	next_s = g->left / link + 0.001;
	g->round++;
	g->facts = (struct policy_facts){
		.round = g->round,
		.elapsed_ns = ns(g->now_s),
		.round_ns = ns(round_s),
		.pages = (uint64_t)(g->left / PAGE_SIZE),
		.wire_bytes = (uint64_t)g->left,
		.pages_ns = ns(g->left / link),
		.next_ns = ns(MIN(rate * next_s, g->hot) / link),
		.fixed_ns = FIXED_MS * NS_PER_MS,
		.rtt_ns = NS_PER_MS,
		.sent_per_s = (uint64_t)link,
		.dirty_pages_per_s = (uint64_t)(g->left / round_s / PAGE_SIZE),
		.throttle = g->throttle,
	};
	policy_decide(&g->policy, &g->choice, &g->facts, &g->d);
	g->throttle = g->d.throttle;
	g->throttle_max = MAX(g->throttle_max, g->throttle);
	g->told += g->d.tell;
	if (!g->d.converging) {
		if (!g->stuck_rounds++)
			g->first_stuck = g->round;
		ck_assert_msg(strstr(g->d.why.text, "/s") || g->d.tell, "no numbers: '%s'",
			      g->d.why.text);
	}
	if (g->d.action == POLICY_PAUSE) {
		uint64_t need = g->facts.pages_ns + FIXED_MS * NS_PER_MS;

		ck_assert_msg(need <= g->choice.downtime_ns, "paused with %llu ms to go",
			      (unsigned long long)(need / NS_PER_MS));
	}
}

/* To its end, or for so many rounds. */
static void run(struct model *g, unsigned rounds)
{
	do {
		step(g);
	} while (g->d.action == POLICY_ROUND && g->round < rounds);
}

static void need_action(const struct model *g, enum policy_action action)
{
	ck_assert_msg(g->d.action == action, "%s after %u rounds and %.0f s, throttle %u: %s",
		      policy_action_name(g->d.action), g->round, g->now_s, g->throttle,
		      g->d.why.text);
}

/* Slower than the link, by little or much: paused, and never doubted. */
START_TEST(converges)
{
	static const double rates[] = {0, 1e6, 10e6, 50e6, 80e6, 90e6};
	struct model g;

	for (int what = 0; what < 3; what++) {
		start(&g, rates[_i], RAM, (enum on_timeout)what);
		run(&g, ROUNDS_MAX);
		need_action(&g, POLICY_PAUSE);
		ck_assert_uint_eq(g.stuck_rounds + g.told + g.throttle_max, 0);
	}
}
END_TEST

/* Faster than the link: seen within a few rounds, and said once. */
START_TEST(does_not_converge)
{
	static const double rates[] = {100e6, 130e6, 500e6, 5e9};
	struct model g;

	start(&g, rates[_i], _i % 2 ? 200e6 : RAM, ON_TIMEOUT_CONTINUE);
	run(&g, 12);
	need_action(&g, POLICY_ROUND);
	ck_assert(!g.d.converging);
	ck_assert_uint_ge(g.first_stuck, POLICY_WINDOW);
	ck_assert_uint_le(g.first_stuck, 7);
	ck_assert_uint_eq(g.told, 1);
	ck_assert_msg(strstr(g.d.why.text, "the connection carries 95.4 MiB/s") &&
			      strstr(g.d.why.text, "50 ms are allowed"),
		      "%s", g.d.why.text);
}
END_TEST

/* What is no lack of convergence. */
START_TEST(not_misjudged)
{
	struct model g;

	/* A burst of two rounds in which it writes a hundred times as much. */
	for (unsigned at = 1; at < 6; at++) {
		start(&g, 30e6, RAM, ON_TIMEOUT_THROTTLE);
		g.at = at;
		g.rounds = 2;
		g.more = 100;
		run(&g, ROUNDS_MAX);
		need_action(&g, POLICY_PAUSE);
		ck_assert_msg(!g.stuck_rounds, "burst at %u: %u rounds", at, g.stuck_rounds);
	}
	/* The first round is short, for most of RAM is zeros; the second is longer. */
	start(&g, 60e6, RAM, ON_TIMEOUT_THROTTLE);
	g.left = 10e6;
	g.rounds = 1;
	g.more = 20;
	run(&g, ROUNDS_MAX);
	need_action(&g, POLICY_PAUSE);
	ck_assert_uint_eq(g.stuck_rounds, 0);
	/* The link loses half of its speed, which is still enough; or is slow for three rounds. */
	start(&g, 35e6, RAM, ON_TIMEOUT_THROTTLE);
	g.at = 2;
	g.rounds = 1000;
	g.link_factor = 0.5;
	run(&g, ROUNDS_MAX);
	need_action(&g, POLICY_PAUSE);
	ck_assert_uint_eq(g.stuck_rounds, 0);
	/* Rates that are never the same. */
	start(&g, 65e6, RAM, ON_TIMEOUT_THROTTLE);
	g.noise = 0.2;
	run(&g, ROUNDS_MAX);
	need_action(&g, POLICY_PAUSE);
	ck_assert_uint_eq(g.stuck_rounds, 0);
}
END_TEST

/* Noise does not hide it either. */
START_TEST(seen_through_noise)
{
	struct model g;

	start(&g, 3e9, 300e6, ON_TIMEOUT_CONTINUE);
	g.noise = 0.3;
	run(&g, 100);
	ck_assert_uint_ge(g.stuck_rounds, 90);
	start(&g, 120e6, RAM, ON_TIMEOUT_CONTINUE);
	g.noise = 0.2;
	run(&g, 100);
	ck_assert_uint_ge(g.stuck_rounds, 60);
	ck_assert_uint_eq(g.told, 1);
}
END_TEST

/* It says so, and takes it back when the guest has quietened. */
START_TEST(converges_again)
{
	struct model g;

	start(&g, 20e6, RAM, ON_TIMEOUT_CONTINUE);
	g.rounds = 20;
	g.more = 10;
	run(&g, 20);
	ck_assert(!g.d.converging);
	run(&g, ROUNDS_MAX);
	need_action(&g, POLICY_PAUSE);
	ck_assert(g.d.converging && !g.d.why.text[0]);
	ck_assert_uint_lt(g.round, 32);
}
END_TEST

/* Always an end, and not before its time: with a time given that, without when it is hopeless. */
START_TEST(cancel_ends)
{
	static const double rates[] = {95e6, 100e6, 200e6, 3e9};
	static const double hot[] = {8e6, 60e6, RAM};

	for (unsigned i = 0; i < ARRAY_SIZE(hot); i++) {
		for (unsigned given = 0; given < 2; given++) {
			struct model g;
			double first;

			start(&g, rates[_i], hot[i], ON_TIMEOUT_CANCEL);
			g.choice.timeout_ns = given * 200 * NS_PER_SEC;
			run(&g, 1);
			first = g.now_s;
			run(&g, ROUNDS_MAX);
			if (g.d.action == POLICY_PAUSE)
				continue;
			need_action(&g, POLICY_GIVE_UP);
			if (given) {
				ck_assert(g.now_s >= 200 && g.now_s < 250);
				ck_assert_ptr_nonnull(strstr(g.d.why.text, "within the time"));
				continue;
			}
			ck_assert_uint_gt(g.round, 10);
			ck_assert(g.now_s >= MAX(30, 3 * first) && g.now_s < 3600);
			ck_assert_msg(
				strstr(g.d.why.text, "does not converge: the guest dirties") &&
					strstr(g.d.why.text, "--on-timeout=throttle"),
				"%s", g.d.why.text);
		}
	}
}
END_TEST

/* A gap of progress that is not long enough is none. */
START_TEST(patience)
{
	struct model g;

	/* Nine rounds of it, which take 90 s. */
	start(&g, 20e6, RAM, ON_TIMEOUT_CANCEL);
	g.at = 1;
	g.rounds = 9;
	g.more = 6;
	run(&g, ROUNDS_MAX);
	need_action(&g, POLICY_PAUSE);
	ck_assert_uint_gt(g.stuck_rounds, 3);
	/* As slow as that, but each round brings something. */
	start(&g, 94e6, RAM, ON_TIMEOUT_CANCEL);
	run(&g, ROUNDS_MAX);
	need_action(&g, POLICY_PAUSE);
}
END_TEST

/* The time is no limit, which is said once. */
START_TEST(continue_goes_on)
{
	struct model g;
	unsigned told = 0;

	start(&g, 3e9, 100e6, ON_TIMEOUT_CONTINUE);
	g.choice.timeout_ns = 20 * NS_PER_SEC;
	while (g.round < 1000) {
		step(&g);
		need_action(&g, POLICY_ROUND);
		told += g.d.tell && strstr(g.d.why.text, "it goes on");
		ck_assert(g.now_s >= 20 || !told);
	}
	ck_assert_uint_eq(told, 1);
	ck_assert_uint_eq(g.throttle_max, 0);
	ck_assert_uint_eq(policy_limit_ns(&g.choice), UINT64_MAX);
}
END_TEST

/* Slowed as far as it needs and no further, however fast it writes, and then it pauses. */
START_TEST(throttle_converges)
{
	static const double rates[] = {100e6, 150e6, 400e6, 2e9};
	unsigned most = 0;

	for (unsigned i = 0; i < ARRAY_SIZE(rates); i++) {
		struct model g;
		unsigned last = 0;

		start(&g, rates[i], _i ? 150e6 : RAM, ON_TIMEOUT_THROTTLE);
		do {
			step(&g);
			ck_assert_msg(g.throttle <= last + 30, "from %u to %u", last, g.throttle);
			last = g.throttle;
		} while (g.d.action == POLICY_ROUND && g.round < 60);
		need_action(&g, POLICY_PAUSE);
		/* Some of it would not have been enough, much more than that is too much. */
		ck_assert(rates[i] * (100 - g.throttle_max) / 100 < LINK);
		ck_assert(rates[i] * (100 - g.throttle_max) / 100 > LINK / 8);
		ck_assert_uint_ge(g.throttle_max, most);
		most = g.throttle_max;
		ck_assert_uint_eq(g.told, 1);
	}
}
END_TEST

/* The more it writes, the more it is slowed, whatever went before. */
START_TEST(throttle_is_monotone)
{
	struct model g;

	start(&g, 300e6, 400e6, ON_TIMEOUT_THROTTLE);
	for (unsigned n = 0; n < 20 && g.d.action == POLICY_ROUND; n++) {
		struct policy before = g.policy;
		unsigned last = 0;

		step(&g);
		for (double need = 0.06; need < 40; need *= 1.2) {
			struct policy_facts f = g.facts;
			struct policy p = before;
			struct policy_decision d;

			f.pages_ns = ns(need);
			policy_decide(&p, &g.choice, &f, &d);
			ck_assert_msg(d.throttle >= last, "round %u: %u after %u for %.2f s",
				      g.round, d.throttle, last, need);
			ck_assert_uint_le(d.throttle, POLICY_THROTTLE_MAX);
			last = d.throttle;
		}
	}
}
END_TEST

/* As long as there is room to spare, all of it. */
START_TEST(throttle_ends)
{
	struct policy_choice c = {.downtime_ns = NS_PER_MS, .on_timeout = ON_TIMEOUT_THROTTLE};
	struct policy_facts f = {.throttle = POLICY_THROTTLE_MAX, .pages_ns = 1ULL << 60};
	struct policy_decision d;
	struct policy p = {0};

	do {
		unsigned before = f.throttle;

		f.round++;
		f.elapsed_ns += NS_PER_SEC;
		f.round_ns = f.pages_ns;
		f.pages_ns /= 10;
		policy_decide(&p, &c, &f, &d);
		ck_assert_uint_lt(d.throttle, before);
		f.throttle = d.throttle;
	} while (f.throttle);
	ck_assert_uint_le(f.round, 12);
}
END_TEST

/* It writes much for a while only: what was taken is given back. */
START_TEST(throttle_is_released)
{
	struct model g;
	unsigned most;

	start(&g, 10e6, RAM, ON_TIMEOUT_THROTTLE);
	g.choice.downtime_ns = 5 * NS_PER_MS;
	g.rounds = 9;
	g.more = 40;
	run(&g, 9);
	most = g.throttle;
	ck_assert_uint_ge(most, 50);
	/* By much of what it has left at a time. */
	step(&g);
	need_action(&g, POLICY_ROUND);
	ck_assert_uint_lt(g.throttle, most);
	ck_assert_uint_ge(100 - g.throttle, (100 - most) * 3 / 2);
	ck_assert_uint_le(100 - g.throttle, (100 - most) * 2);
	run(&g, ROUNDS_MAX);
	need_action(&g, POLICY_PAUSE);
	ck_assert_uint_lt(g.throttle, most);
}
END_TEST

/* At the timeout as strong as it goes, and as long again after that it is over. */
START_TEST(throttle_at_the_timeout)
{
	struct model g;

	/* Even a hundredth of it writes its whole hot set in a round. */
	start(&g, 100e9, 60e6, ON_TIMEOUT_THROTTLE);
	g.choice.timeout_ns = 40 * NS_PER_SEC;
	ck_assert_uint_eq(policy_slowest_from_ns(&g.choice), 40 * NS_PER_SEC);
	run(&g, ROUNDS_MAX);
	need_action(&g, POLICY_GIVE_UP);
	ck_assert_uint_eq(g.throttle, POLICY_THROTTLE_MAX);
	ck_assert(g.now_s >= 80 && g.now_s < 82);
	/* It is so slow to be seen that the time is up before. */
	start(&g, 300e6, RAM, ON_TIMEOUT_THROTTLE);
	g.choice.timeout_ns = 19 * NS_PER_SEC;
	run(&g, 2);
	ck_assert_uint_eq(g.throttle, POLICY_THROTTLE_MAX);
	run(&g, ROUNDS_MAX);
	need_action(&g, POLICY_PAUSE);
}
END_TEST

/* Nobody but --on-timeout=throttle slows a guest. */
START_TEST(others_do_not_throttle)
{
	struct model g;

	for (int what = 0; what < 3; what += 2) {
		start(&g, 3e9, 100e6, (enum on_timeout)what);
		g.choice.timeout_ns = 100 * NS_PER_SEC;
		run(&g, 500);
		ck_assert_uint_eq(g.throttle_max, 0);
	}
}
END_TEST

/* ---- the last rounds ---- */

static struct policy_decision decide_short(double left_ms, double next_ms)
{
	struct policy_choice c = {.downtime_ns = 50 * NS_PER_MS};
	struct policy_facts f = {
		.round = 1,
		.elapsed_ns = NS_PER_SEC,
		.round_ns = 100 * NS_PER_MS,
		.pages_ns = ns(left_ms / 1e3),
		.next_ns = ns(next_ms / 1e3),
		.fixed_ns = 3 * NS_PER_MS,
		.rtt_ns = NS_PER_MS / 10,
	};
	struct policy p = {0};
	struct policy_decision d;

	policy_decide(&p, &c, &f, &d);
	return d;
}

/* It fits; one round more, where that makes the pause notably shorter. */
START_TEST(one_round_more)
{
	ck_assert_int_eq(decide_short(20, 4).action, POLICY_ROUND);
	/* Dirtied as fast as they are sent, or faster. */
	ck_assert_int_eq(decide_short(20, 20).action, POLICY_PAUSE);
	ck_assert_int_eq(decide_short(20, 40).action, POLICY_PAUSE);
	/* The rest of the pause is most of it. */
	ck_assert_int_eq(decide_short(1, 0.1).action, POLICY_PAUSE);
	ck_assert_int_eq(decide_short(0, 0).action, POLICY_PAUSE);
	/* It does not fit, however little another round helps. */
	ck_assert_int_eq(decide_short(60, 70).action, POLICY_ROUND);
}
END_TEST

START_TEST(few_rounds_more)
{
	struct model g;
	unsigned n = 0;

	/* Each makes it shorter, for ever. */
	start(&g, 60e6, RAM, ON_TIMEOUT_CANCEL);
	g.choice.downtime_ns = 20 * NS_PER_SEC;
	do {
		step(&g);
		g.facts.fixed_ns = 0;
		n++;
	} while (g.d.action == POLICY_ROUND && n < 100);
	need_action(&g, POLICY_PAUSE);
	ck_assert_uint_le(n, 10);
}
END_TEST

/* What cannot be had by fewer pages is not waited for. */
START_TEST(fixed_part_above_the_target)
{
	struct policy_choice c = {.downtime_ns = 2 * NS_PER_MS};
	struct policy_facts f = {.round = 1, .round_ns = NS_PER_SEC, .fixed_ns = 4 * NS_PER_MS};
	struct policy_decision d;
	struct policy p = {0};

	f.pages_ns = f.next_ns = NS_PER_MS;
	policy_decide(&p, &c, &f, &d);
	ck_assert_int_eq(d.action, POLICY_PAUSE);
	p = (struct policy){0};
	f.pages_ns = f.next_ns = NS_PER_MS + 1;
	policy_decide(&p, &c, &f, &d);
	ck_assert_int_eq(d.action, POLICY_ROUND);
}
END_TEST

/* ---- recorded moves ---- */

static json_t *load(const char *path)
{
	json_error_t err;
	json_t *j = json_load_file(path, 0, &err);

	ck_assert_msg(j, "%s:%d: %s", path, err.line, err.text);
	return j;
}

static const char *base(const char *path)
{
	return strrchr(path, '/') + 1;
}

/* traces/ beside this file. */
static const char *trace_path(const char *name)
{
	static char path[512];

	snprintf(path, sizeof(path), "%.*straces/%s", (int)(strrchr(__FILE__, '/') + 1 - __FILE__),
		 __FILE__, name);
	return path;
}

struct replay {
	unsigned rounds, stuck, told, throttle_max;
	struct policy_decision last;
};

/*
 * Under another choice the recorded guest would have gone on otherwise: it is replayed up to the
 * first decision that ends it, or all of it.
 */
static void replay(const json_t *trace, const struct policy_choice *c, bool as_recorded,
		   struct replay *r)
{
	struct policy_decision then;
	struct policy_facts f;
	struct policy p = {0};

	*r = (struct replay){0};
	while (r->last.action == POLICY_ROUND && report_trace_facts(trace, r->rounds, &f, &then)) {
		r->rounds++;
		policy_decide(&p, c, &f, &r->last);
		r->stuck += !r->last.converging;
		r->told += r->last.tell;
		r->throttle_max = MAX(r->throttle_max, r->last.throttle);
		if (r->last.action == POLICY_PAUSE)
			ck_assert_uint_le(f.pages_ns, c->downtime_ns);
		if (!as_recorded)
			continue;
		ck_assert_msg(r->last.action == then.action && r->last.throttle == then.throttle &&
				      r->last.converging == then.converging,
			      "round %u: %s, throttle %u; then it was %s, throttle %u", f.round,
			      policy_action_name(r->last.action), r->last.throttle,
			      policy_action_name(then.action), then.throttle);
	}
}

/* Replayed as they were driven, all go as they went. */
START_TEST(traces_repeat)
{
	glob_t found;

	ck_assert_int_eq(glob(trace_path("*.json"), 0, NULL, &found), 0);
	ck_assert_uint_ge(found.gl_pathc, 5);
	for (size_t i = 0; i < found.gl_pathc; i++) {
		json_t *trace = load(found.gl_pathv[i]);
		struct policy_choice c;
		struct replay r;

		report_trace_choice(trace, &c);
		ck_assert_uint_gt(c.downtime_ns, 0);
		replay(trace, &c, true, &r);
		ck_assert_msg(r.rounds, "%s has no rounds", base(found.gl_pathv[i]));
		json_decref(trace);
	}
	globfree(&found);
}
END_TEST

/* What each of them is to show. */
static const struct {
	const char *name;
	bool stuck, throttled;
	enum policy_action end;
} shown[] = {
	{"idle.json", false, false, POLICY_PAUSE},   {"converges.json", false, false, POLICY_PAUSE},
	{"burst.json", false, false, POLICY_PAUSE},  {"diverges.json", true, false, POLICY_GIVE_UP},
	{"throttle.json", true, true, POLICY_PAUSE},
};

START_TEST(traces_show)
{
	json_t *trace = load(trace_path(shown[_i].name));
	struct policy_choice c;
	struct replay r;

	report_trace_choice(trace, &c);
	replay(trace, &c, false, &r);
	ck_assert_int_eq(r.last.action, shown[_i].end);
	ck_assert_msg(!!r.stuck == shown[_i].stuck, "%u of %u rounds", r.stuck, r.rounds);
	ck_assert_uint_eq(r.told, shown[_i].stuck);
	ck_assert_int_eq(r.throttle_max > 0, shown[_i].throttled);
	/* Never earlier than it was allowed, however little that is. */
	for (c.downtime_ns = 1000; c.downtime_ns < NS_PER_SEC; c.downtime_ns *= 3)
		replay(trace, &c, false, &r);
	json_decref(trace);
}
END_TEST

/* What no number of rounds makes shorter is said before any. */
START_TEST(beyond_reach)
{
	struct policy_choice c = {.downtime_ns = 50 * NS_PER_MS};
	struct policy_facts f = {.round = 1, .round_ns = NS_PER_SEC, .rtt_ns = 100 * NS_PER_MS};
	struct policy_decision d;
	struct policy p = {0};
	struct errmsg why = {""};

	ck_assert(!policy_beyond_reach(&c, 50 * NS_PER_MS, 25 * NS_PER_MS, &why));
	ck_assert_str_eq(why.text, "");
	ck_assert(policy_beyond_reach(&c, 200 * NS_PER_MS, 100 * NS_PER_MS, &why));
	ck_assert_str_eq(why.text,
			 "the handover alone stops the guest for 200 ms on this network "
			 "(round trip 100.0 ms), 50 ms are allowed: try --downtime=270ms");
	/* What is advised is enough. */
	why.text[0] = 0;
	c.downtime_ns = 270 * NS_PER_MS;
	ck_assert(!policy_beyond_reach(&c, 200 * NS_PER_MS, 100 * NS_PER_MS, &why));
	/* The least that anybody wants may be less than what a busy host takes for a round trip. */
	c.downtime_ns = 1000;
	ck_assert(!policy_beyond_reach(&c, 9 * NS_PER_MS, 4 * NS_PER_MS, &why));
	/* It may be known only when the speed is. */
	f.floor_ns = f.fixed_ns = 300 * NS_PER_MS;
	policy_decide(&p, &c, &f, &d);
	ck_assert_int_eq(d.action, POLICY_GIVE_UP);
	ck_assert_msg(strstr(d.why.text, "300 ms on this network"), "%s", d.why.text);
	p = (struct policy){0};
	c.on_timeout = ON_TIMEOUT_CONTINUE;
	policy_decide(&p, &c, &f, &d);
	ck_assert_int_ne(d.action, POLICY_GIVE_UP);
}
END_TEST

int main(void)
{
	const TTest *const tests[] = {
		not_misjudged,	 seen_through_noise,	 converges_again,
		patience,	 continue_goes_on,	 throttle_is_monotone,
		few_rounds_more, throttle_is_released,	 throttle_at_the_timeout,
		one_round_more,	 others_do_not_throttle, fixed_part_above_the_target,
		throttle_ends,	 beyond_reach,
	};
	Suite *s = suite_create("policy");
	TCase *tc = tcase_create("policy");

	for (size_t i = 0; i < ARRAY_SIZE(tests); i++)
		tcase_add_test(tc, tests[i]);
	tcase_add_loop_test(tc, converges, 0, 6);
	tcase_add_loop_test(tc, does_not_converge, 0, 4);
	tcase_add_loop_test(tc, cancel_ends, 0, 4);
	tcase_add_loop_test(tc, throttle_converges, 0, 2);
	suite_add_tcase(s, tc);
	tc = tcase_create("traces");
	tcase_add_test(tc, traces_repeat);
	tcase_add_loop_test(tc, traces_show, 0, ARRAY_SIZE(shown));
	suite_add_tcase(s, tc);
	return check_run(s);
}
