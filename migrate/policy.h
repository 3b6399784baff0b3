/* SPDX-License-Identifier: MIT */
/*
 * What follows a round of pre-copy: another one, the pause, a slower guest, or giving up.
 *
 * Theory of operation: a pure function of what was measured. After each round the source hands over
 * its facts and the history, which only this file knows; the same facts in the same order always
 * give the same decisions. So they can be replayed from a report (tools/replay-policy), and tested
 * against what was recorded.
 *
 *	pause		when the pages left are expected to fit what is allowed. A few short rounds
 *			may come before it, as long as each makes the pause notably shorter.
 *	not converging	by the latest four rounds, three times in a row: neither is the shortest
 *			pause of the two later ones notably shorter than that of the two before,
 *			nor has it become so over the last two. A burst that passes, or a link that
 *			was slow for a while, make the pause longer once, and then it falls; a
 *			guest that only writes ever again what it just wrote stays where it is.
 *	slower guest	by the ratio of the next round's length to this one's: below 1 rounds become
 *			shorter. A vCPU that runs half as long writes half as much, as long as it is
 *			not the same pages again: those are found out by doing it, in steps.
 */
#ifndef GODWIT_MIGRATE_POLICY_H
#define GODWIT_MIGRATE_POLICY_H

#include <stdbool.h>
#include <stdint.h>

#include "../vmm/log.h"
#include "../vmm/util.h"

/* What becomes of a move that has not reached its pause when its time is up. */
enum on_timeout {
	ON_TIMEOUT_CANCEL,   /* it is given up, the guest runs on */
	ON_TIMEOUT_THROTTLE, /* the guest is slowed, as soon as it is seen not to converge */
	ON_TIMEOUT_CONTINUE, /* it goes on */
};
/* "cancel", "throttle", "continue"; the parser's -EINVAL. */
const char *policy_on_timeout_name(enum on_timeout what);
int policy_parse_on_timeout(const char *text, enum on_timeout *what);

#define POLICY_TIMEOUT_DEFAULT (3600 * NS_PER_SEC)

/* What the user chose. */
struct policy_choice {
	uint64_t downtime_ns; /* that the pause may take */
	uint64_t timeout_ns;  /* until the pause; 0: not given */
	enum on_timeout on_timeout;
};

/* What was measured when a round had ended, and what is expected of the pages left. */
struct policy_facts {
	uint32_t round;	     /* from 1 */
	uint64_t elapsed_ns; /* since the move began */
	uint64_t round_ns;   /* this round: in this time the pages left became dirty */
	uint64_t pages;	     /* left */
	uint64_t wire_bytes; /* that they will come to */
	uint64_t pages_ns;   /* that they will take */
	uint64_t next_ns;    /* what is left after another round will take */
	uint64_t fixed_ns;   /* what the pause takes besides pages */
	uint64_t floor_ns;   /* and of this what the network takes: no host can make it shorter */
	uint64_t rtt_ns;
	uint64_t sent_per_s; /* bytes, in this round */
	uint64_t dirty_pages_per_s;
	uint32_t throttle; /* percent, in this round */
};

enum policy_action {
	POLICY_ROUND,
	POLICY_PAUSE,
	POLICY_GIVE_UP,
};
const char *policy_action_name(enum policy_action action); /* "round", "pause", "give up" */

#define POLICY_THROTTLE_MAX 99U /* percent */

struct policy_decision {
	enum policy_action action;
	unsigned throttle; /* percent, in the next round; 0 to POLICY_THROTTLE_MAX */
	bool converging;
	bool tell;	   /* why is news for the user */
	struct errmsg why; /* of giving up, and of not converging; else empty */
};

#define POLICY_WINDOW 4U /* rounds */

/* The history; all zeros at first. */
struct policy {
	uint64_t first_ns; /* of the first round */
	uint32_t rounds;
	uint64_t need_ns[POLICY_WINDOW]; /* for the pages left, after the latest rounds */
	uint64_t progress_ns;		 /* elapsed when it was last seen to converge */
	uint32_t without;		 /* rounds since then */
	uint64_t record_ns, record_at_ns;
	uint32_t record_round; /* the latest that made the pause notably shorter than any before */
	unsigned fitted;       /* rounds since the pause was short enough */
	bool stuck;	       /* does not converge */
	bool told_stuck, told_late;
};

/* Decides after a round. Rounds must come in order, none left out. */
void policy_decide(struct policy *p, const struct policy_choice *c, const struct policy_facts *f,
		   struct policy_decision *d);

/*
 * Is a pause beyond reach on this network that is no longer than the user allows, because state and
 * proof alone take floor_ns? Then why says so, and what would do. Nothing is beyond reach of a move
 * that is to go on whatever comes (ON_TIMEOUT_CONTINUE).
 */
bool policy_beyond_reach(const struct policy_choice *c, uint64_t floor_ns, uint64_t rtt_ns,
			 struct errmsg *why);

/* The time after which a move is given up, wherever it is; UINT64_MAX: never. */
uint64_t policy_limit_ns(const struct policy_choice *c);

/* Strongest throttle from then on, in the middle of a round, too; UINT64_MAX: never. */
uint64_t policy_slowest_from_ns(const struct policy_choice *c);

/* Why a move is given up that has reached its limit in this round, of which this is known. */
void policy_late_text(uint32_t round, uint64_t dirty_pages_per_s, uint64_t sent_per_s,
		      struct errmsg *why);

#endif
