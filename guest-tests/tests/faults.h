/* SPDX-License-Identifier: MIT */
/*
 * One guest, one receiver and a relay between them: what the tests of broken migrations share, and
 * above all what must be true afterwards.
 *
 * The guest is `dirty` at a moderate pace, each page checked before it is rewritten, so that
 * `errors=0` at the end means that no page was ever wrong.
 */
#ifndef GODWIT_TESTS_FAULTS_H
#define GODWIT_TESTS_FAULTS_H

#include "harness.h"
#include "relay.h"

struct scene {
	struct guest g;
	struct dest d;
	struct relay *relay;
	struct proc *migrate;
	struct move m;
};

/* A guest that runs, a receiver, a relay at uri ("unix:", "tcp:127.0.0.1:0"). */
void scene_start(struct scene *s, const char *uri);
/* The same with the guest's command line (see contract.h) and words for `godwit receive`. */
void scene_start_with(struct scene *s, const char *uri, const char *cmdline, ...)
	__attribute__((sentinel));

/* Starts `migrate` through the relay. */
void scene_migrate(struct scene *s);

/* Waits for the report of it and for the relay's acts. The error must match an extended regex. */
void scene_report(struct scene *s, int exit_code, const char *error);

/* The guest answers and all its memory is as it should be. */
void guest_intact(struct proc *p);

/* Nothing of a guest comes out of p for longer than a period of its reports. */
void guest_silent(struct proc *p);

/* The receiver's process has ended by itself with 1 and the reason, and let nothing run. */
void dest_refused(struct scene *s, const char *error);

/* The receiver has not taken that for a source: it waits on, and is ended here. */
void dest_listens(struct scene *s);

/* The receiver was killed; it had let nothing run. */
void dest_dead(struct scene *s);

/* The guest runs at the source and nowhere else, and can be moved to a fresh receiver. */
void source_owns(struct scene *s);

/* The guest runs at the destination, untouched. Ends it. */
void dest_owns(struct scene *s);

/* The source keeps it paused, says that it does not know, and refuses to run it. */
void source_uncertain(struct scene *s);

/* A user who knows better has the source's paused guest run on, and it is untouched. Ends it. */
void force_resume(struct scene *s);

#endif
