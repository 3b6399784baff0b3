/* SPDX-License-Identifier: MIT */
#include "steps.h"

#define MOVE_MS 40000

const struct step steps[N_STEPS] = {
	{TO_DEST, WIRE_HELLO, RELAY_AFTER},	  {TO_SOURCE, WIRE_HELLO_OK, RELAY_AFTER},
	{TO_DEST, WIRE_PAGES, RELAY_AFTER},	  {TO_DEST, WIRE_ROUND_END, RELAY_BEFORE},
	{TO_SOURCE, WIRE_ROUND_ACK, RELAY_AFTER}, {TO_DEST, WIRE_STATE, RELAY_BEFORE},
	{TO_DEST, WIRE_STATE, RELAY_AFTER},	  {TO_DEST, WIRE_PROOF, RELAY_AFTER},
	{TO_SOURCE, WIRE_READY, RELAY_BEFORE},	  {TO_DEST, WIRE_COMMIT, RELAY_BEFORE},
	{TO_DEST, WIRE_COMMIT, RELAY_AFTER},	  {TO_SOURCE, WIRE_RUNNING, RELAY_BEFORE},
};

const char *step_name(int step)
{
	return harness_path("%s %s", relay_type_name(steps[step].type),
			    steps[step].when == RELAY_AFTER ? "passed" : "lost");
}

void attempt_start(struct attempt *a, const char *name, const char *uri)
{
	*a = (struct attempt){.status = -1};
	dest_start(&a->dest, name, uri, NULL);
	a->relay = relay_start(uri, a->dest.uri);
}

void attempt_act(struct attempt *a, int step, enum relay_what what, struct proc *victim)
{
	relay_act(a->relay, (struct relay_act){.dir = steps[step].dir,
					       .type = steps[step].type,
					       .when = steps[step].when,
					       .what = what,
					       .victim = victim});
}

void attempt_run(struct attempt *a, struct guest *g)
{
	struct proc *migrate = move_start(g, a->relay->uri, "--connections=1", NULL);

	a->status = proc_wait(migrate, MOVE_MS);
	move_report(migrate, a->status, &a->m, MOVE_MS);
	relay_all_done(a->relay);
}

void never_ran(struct proc *receiver)
{
	const char *line = proc_next(receiver, 0);

	need(!line, "%s let the guest run: '%s'", receiver->label, line);
}
