/* SPDX-License-Identifier: MIT */
#include "policy.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* Rounds that only make a pause shorter which is short enough. */
#define FITTED_ROUNDS_MAX 4U
#define SHORTER 0.7
#define LAST_ROUND_MAX (100 * NS_PER_MS)

/* A pause that is shorter by less is as long. */
#define NOTABLY 0.85
/* Rounds of a millisecond say little of a guest that works by the tenth of a second. */
#define STUCK_ROUNDS 3U
#define STUCK_MIN (500 * NS_PER_MS)

/* How long a move that does not converge is gone on with when no time was given. */
#define HOPELESS_ROUNDS 10U
#define HOPELESS_MIN (30 * NS_PER_SEC)
#define HOPELESS_FIRST_ROUNDS 3U

/* Length of the next round by that of this one: aimed at; too much; more than is needed. */
#define RATIO_WANTED 0.5
#define RATIO_HIGH 0.8
#define RATIO_LOW 0.25
/* What a guest has left of its CPU time changes by so many percent of all, and by this factor. */
#define STEP_MAX 30.0
#define STEP_FACTOR 2.0
#define STEP_STUCK 0.7
/* Less is not worth it. */
#define THROTTLE_MIN 5U

/* A round trip that is shorter than this may be a busy host's as well as the network's. */
#define FLOOR_MIN (10 * NS_PER_MS)

static const char *const on_timeout_names[] = {"cancel", "throttle", "continue"};

const char *policy_on_timeout_name(enum on_timeout what)
{
	return on_timeout_names[what];
}

int policy_parse_on_timeout(const char *text, enum on_timeout *what)
{
	for (size_t i = 0; i < ARRAY_SIZE(on_timeout_names); i++) {
		if (strcmp(text, on_timeout_names[i]) == 0) {
			*what = (enum on_timeout)i;
			return 0;
		}
	}
	return -EINVAL;
}

const char *policy_action_name(enum policy_action action)
{
	static const char *const names[] = {"round", "pause", "give up"};

	return names[action];
}

static uint64_t timeout_ns(const struct policy_choice *c)
{
	return c->timeout_ns ? c->timeout_ns : POLICY_TIMEOUT_DEFAULT;
}

uint64_t policy_limit_ns(const struct policy_choice *c)
{
	uint64_t ns = timeout_ns(c);

	switch (c->on_timeout) {
	case ON_TIMEOUT_CANCEL:
		return ns;
	case ON_TIMEOUT_THROTTLE:
		return MIN(ns, UINT64_MAX / 2) * 2;
	case ON_TIMEOUT_CONTINUE:
		break;
	}
	return UINT64_MAX;
}

uint64_t policy_slowest_from_ns(const struct policy_choice *c)
{
	return c->on_timeout == ON_TIMEOUT_THROTTLE ? timeout_ns(c) : UINT64_MAX;
}

void policy_late_text(uint32_t round, uint64_t dirty_pages_per_s, uint64_t sent_per_s,
		      struct errmsg *why)
{
	char sent[32], dirty[32];

	format_size(sent, sizeof(sent), sent_per_s);
	format_size(dirty, sizeof(dirty), dirty_pages_per_s * PAGE_SIZE);
	if (round <= 1)
		errmsg_set(
			why, 0,
			"not done within the time allowed: sending %s/s, which was not enough to "
			"send all of the memory once; allow more --timeout",
			sent);
	else
		errmsg_set(why, 0,
			   "not done within the time allowed: dirtying %s/s, sending %s/s; allow "
			   "more --timeout or --downtime, slow the guest down with "
			   "--on-timeout=throttle, or quieten it",
			   dirty, sent);
}

bool policy_beyond_reach(const struct policy_choice *c, uint64_t floor_ns, uint64_t rtt_ns,
			 struct errmsg *why)
{
	/* Some room for pages, and for both hosts. */
	uint64_t enough_ms = (floor_ns + floor_ns / 4 + 20 * NS_PER_MS) / NS_PER_MS;

	if (floor_ns <= MAX(c->downtime_ns, FLOOR_MIN) || c->on_timeout == ON_TIMEOUT_CONTINUE)
		return false;
	errmsg_set(
		why, 0,
		"the handover alone stops the guest for %.0f ms on this network (round trip %.1f "
		"ms), %.3g ms are allowed: try --downtime=%llums",
		(double)floor_ns / (double)NS_PER_MS, (double)rtt_ns / (double)NS_PER_MS,
		(double)c->downtime_ns / (double)NS_PER_MS, (unsigned long long)enough_ms);
	return true;
}

/* What the numbers are that do not come down. */
static void stuck_text(const struct policy_choice *c, const struct policy_facts *f,
		       struct errmsg *why)
{
	uint64_t dirty = f->dirty_pages_per_s * PAGE_SIZE, need = f->pages_ns + f->fixed_ns;
	char dirty_text[32], sent_text[32], slowed[48] = "";

	format_size(dirty_text, sizeof(dirty_text), dirty);
	format_size(sent_text, sizeof(sent_text), f->sent_per_s);
	if (f->throttle)
		snprintf(slowed, sizeof(slowed), ", though slowed by %u %%", f->throttle);
	errmsg_set(why, 0,
		   "does not converge: the guest dirties %s/s%s, the connection carries %s/s; "
		   "the pause would take %.1f ms (%.1f of it for pages), %.3g ms are allowed",
		   dirty_text, slowed, sent_text, (double)need / (double)NS_PER_MS,
		   (double)f->pages_ns / (double)NS_PER_MS,
		   (double)c->downtime_ns / (double)NS_PER_MS);
}

static void hopeless_text(const struct policy *p, const struct policy_choice *c,
			  const struct policy_facts *f, struct errmsg *why)
{
	struct errmsg stuck = {""};

	stuck_text(c, f, &stuck);
	errmsg_set(why, 0,
		   "%.300s; no progress in %u rounds and %.0f s: allow more --downtime, slow the "
		   "guest down with --on-timeout=throttle, or quieten it",
		   stuck.text, f->round - p->record_round,
		   (double)(f->elapsed_ns - p->record_at_ns) / (double)NS_PER_SEC);
}

static bool notably_less(uint64_t ns, uint64_t than)
{
	return (double)ns <= NOTABLY * (double)than;
}

/* Does it converge, by the latest rounds? */
static bool progresses(const struct policy *p)
{
	uint64_t need[POLICY_WINDOW]; /* the latest first */

	if (p->rounds < POLICY_WINDOW)
		return true;
	for (uint32_t i = 0; i < POLICY_WINDOW; i++)
		need[i] = p->need_ns[(p->rounds - 1 - i) % POLICY_WINDOW];
	return notably_less(MIN(need[0], need[1]), MIN(need[2], need[3])) ||
	       notably_less(need[0], need[2]);
}

static void note(struct policy *p, const struct policy_facts *f)
{
	if (p->rounds == 0) {
		p->first_ns = f->round_ns;
		p->progress_ns = f->elapsed_ns;
		p->record_ns = UINT64_MAX;
	}
	p->need_ns[p->rounds++ % POLICY_WINDOW] = f->pages_ns;
	if (notably_less(f->pages_ns, p->record_ns)) {
		p->record_ns = f->pages_ns;
		p->record_at_ns = f->elapsed_ns;
		p->record_round = f->round;
	}
	if (progresses(p)) {
		p->without = 0;
		/* Of the first rounds it cannot be told: they count if it turns out so. */
		if (p->rounds >= POLICY_WINDOW)
			p->progress_ns = f->elapsed_ns;
	} else {
		p->without++;
	}
	p->stuck = p->without >= STUCK_ROUNDS && f->elapsed_ns - p->progress_ns >= STUCK_MIN;
}

/*
 * Enough for the pause? When the fixed part alone is above what the user wants, waiting for fewer
 * pages does not help below half of the target.
 */
static bool fits(const struct policy_choice *c, const struct policy_facts *f)
{
	uint64_t target = c->downtime_ns;

	return f->pages_ns <= (f->fixed_ns < target / 2 ? target - f->fixed_ns : target / 2);
}

/* Would the pause be notably shorter after another round, which itself takes little time? */
static bool round_pays(const struct policy_facts *f)
{
	return f->pages_ns + f->rtt_ns <= LAST_ROUND_MAX &&
	       (double)f->next_ns + (double)f->fixed_ns <
		       SHORTER * (double)(f->pages_ns + f->fixed_ns);
}

/* No time was given, and it has not become better for long. */
static bool hopeless(const struct policy *p, const struct policy_choice *c,
		     const struct policy_facts *f)
{
	return c->on_timeout == ON_TIMEOUT_CANCEL && !c->timeout_ns && p->stuck &&
	       f->round - p->record_round >= HOPELESS_ROUNDS &&
	       f->elapsed_ns - p->record_at_ns >=
		       MAX(HOPELESS_MIN, HOPELESS_FIRST_ROUNDS * p->first_ns);
}

/*
 * Of the share of its CPU time that the guest had in this round, what it is to have in the next
 * one. It is slowed further as long as rounds do not become notably shorter, and gets some of it
 * back once they do so much more than they need.
 */
static unsigned throttle_for(const struct policy *p, const struct policy_choice *c,
			     const struct policy_facts *f)
{
	double share = 100.0 - MIN(f->throttle, POLICY_THROTTLE_MAX), wanted = share;
	double ratio = (double)f->pages_ns / (double)MAX(f->round_ns, 1U);
	unsigned percent;

	if (c->on_timeout != ON_TIMEOUT_THROTTLE)
		return 0;
	if (f->elapsed_ns >= policy_slowest_from_ns(c))
		return POLICY_THROTTLE_MAX;
	if (!p->stuck && !f->throttle)
		return 0;
	if (p->stuck || ratio > RATIO_HIGH) {
		double aim = ratio * STEP_STUCK > RATIO_WANTED ? RATIO_WANTED / ratio : STEP_STUCK;

		wanted = MAX(share * aim, MAX(share - STEP_MAX, share / STEP_FACTOR));
	} else if (ratio < RATIO_LOW) {
		double most = MIN(share + STEP_MAX, share * STEP_FACTOR);

		wanted = share * RATIO_WANTED > most * ratio ? most : share * RATIO_WANTED / ratio;
	}
	percent = 100 - MIN((unsigned)wanted, 100U);
	return percent < THROTTLE_MIN ? 0 : MIN(percent, POLICY_THROTTLE_MAX);
}

void policy_decide(struct policy *p, const struct policy_choice *c, const struct policy_facts *f,
		   struct policy_decision *d)
{
	note(p, f);
	*d = (struct policy_decision){
		.action = POLICY_ROUND,
		.throttle = throttle_for(p, c, f),
		.converging = !p->stuck,
	};
	if (policy_beyond_reach(c, f->floor_ns, f->rtt_ns, &d->why)) {
		d->action = POLICY_GIVE_UP;
		return;
	}
	if (fits(c, f)) {
		d->converging = true;
		d->throttle = f->throttle;
		if (++p->fitted > FITTED_ROUNDS_MAX || f->elapsed_ns >= timeout_ns(c) ||
		    !round_pays(f))
			d->action = POLICY_PAUSE;
		return;
	}
	if (f->elapsed_ns >= policy_limit_ns(c)) {
		d->action = POLICY_GIVE_UP;
		policy_late_text(f->round, f->dirty_pages_per_s, f->sent_per_s, &d->why);
		return;
	}
	if (hopeless(p, c, f)) {
		d->action = POLICY_GIVE_UP;
		hopeless_text(p, c, f, &d->why);
		return;
	}
	if (p->stuck) {
		stuck_text(c, f, &d->why);
		d->tell = !p->told_stuck;
		p->told_stuck = true;
	}
	if (c->on_timeout == ON_TIMEOUT_CONTINUE && f->elapsed_ns >= timeout_ns(c) &&
	    !p->told_late) {
		struct errmsg why = d->why;

		d->why.text[0] = 0;
		errmsg_set(&d->why, 0, "its time is up, it goes on (--on-timeout=continue)%s%.350s",
			   why.text[0] ? "; it " : "", why.text);
		d->tell = p->told_late = true;
	}
}
