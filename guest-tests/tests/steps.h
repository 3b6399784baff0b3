/* SPDX-License-Identifier: MIT */
/*
 * The steps of a move at which either side may die, and moves to which that happens: what the tests
 * of guests with disks share.
 */
#ifndef GODWIT_TESTS_STEPS_H
#define GODWIT_TESTS_STEPS_H

#include "relay.h"

struct step {
	enum relay_dir dir;
	unsigned type;
	enum relay_when when;
};

/* In this order a move goes through them; from COMMIT on the guest may run at the destination. */
#define N_STEPS 12
#define COMMIT_LOST 9
#define COMMIT_CAME 10
#define ANSWER_LOST 11
extern const struct step steps[N_STEPS];

/* "PAGES passed", "COMMIT lost" */
const char *step_name(int step);

/* A move that will not go as it should. */
struct attempt {
	struct dest dest;
	struct relay *relay;
	struct move m;
	int status; /* exit code of migrate */
};

/* A receiver of this name and a relay before it. uri: as for dest_start(). */
void attempt_start(struct attempt *a, const char *name, const char *uri);

/* What is to happen at this step. */
void attempt_act(struct attempt *a, int step, enum relay_what what, struct proc *victim);

/* Moves the guest there, and waits until `migrate` is back and all that was to happen has. */
void attempt_run(struct attempt *a, struct guest *g);

/* The receiver has not let a guest run: nothing has come out of it. */
void never_ran(struct proc *receiver);

#endif
