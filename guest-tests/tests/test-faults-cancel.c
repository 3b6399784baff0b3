/* SPDX-License-Identifier: MIT */
/*
 * Somebody changes their mind: the user of `migrate`, of `receive`, or the guest itself. While the
 * source owns the guest it runs on there untouched and can be moved again; once COMMIT is out it is
 * too late.
 *
 * The relay holds the stream at the step in question, so that nothing here depends on being quick.
 */
#include <signal.h>
#include <string.h>

#include "faults.h"

static const struct step {
	enum relay_dir dir;
	unsigned type;
} steps[] = {
	{TO_DEST, RELAY_PRELUDE},    {TO_SOURCE, WIRE_HELLO_OK}, {TO_DEST, WIRE_PAGES},
	{TO_SOURCE, WIRE_ROUND_ACK}, {TO_DEST, WIRE_STATE},	 {TO_DEST, WIRE_PROOF},
	{TO_SOURCE, WIRE_READY},
};
#define N_STEPS ((int)(sizeof(steps) / sizeof(steps[0])))

/* A move that stands still before this frame. */
static void held(struct scene *s, enum relay_dir dir, unsigned type)
{
	scene_start(s, "unix:");
	relay_act(s->relay, (struct relay_act){.dir = dir, .type = type, .what = RELAY_HOLD});
	scene_migrate(s);
	relay_wait(s->relay, 0, 30000);
}

static void cancelled(struct scene *s)
{
	scene_report(s, 1, "cancelled");
	need(strcmp(s->m.status, "cancelled") == 0, "status '%s'", s->m.status);
	relay_go(s->relay);
	dest_refused(s, "source (cancelled|closed the connection)|connection to the source broke");
	source_owns(s);
}

START_TEST(cancel_command)
{
	struct scene s;

	held(&s, steps[_i].dir, steps[_i].type);
	godwit_run(0, "cancel", s.g.name, NULL);
	cancelled(&s);
}
END_TEST

START_TEST(interrupt)
{
	struct scene s;

	held(&s, steps[_i].dir, steps[_i].type);
	proc_kill(s.migrate, SIGINT);
	cancelled(&s);
}
END_TEST

/* A second one leaves `migrate`, which then does not know the end; the guest's process goes on. */
START_TEST(interrupt_twice)
{
	struct scene s;

	held(&s, TO_SOURCE, WIRE_RUNNING);
	proc_kill(s.migrate, SIGINT);
	proc_expect_err(s.migrate, "cannot cancel: too late", 10000);
	proc_kill(s.migrate, SIGINT);
	scene_report(&s, 3, "left, the migration goes on");
	relay_go(s.relay);
	guest_ended(&s.g, 0, 10000);
	dest_owns(&s);
}
END_TEST

START_TEST(too_late)
{
	static const struct step late[] = {{TO_DEST, WIRE_COMMIT}, {TO_SOURCE, WIRE_RUNNING}};
	struct scene s;
	struct proc *p;

	held(&s, late[_i].dir, late[_i].type);
	p = godwit_run(1, "cancel", s.g.name, NULL);
	need(strstr(p->err.buf, "too late"), "%s", p->err.buf);
	relay_go(s.relay);
	scene_report(&s, 0, "");
	guest_ended(&s.g, 0, 10000);
	dest_owns(&s);
}
END_TEST

START_TEST(nothing_to_cancel)
{
	struct scene s;
	struct proc *p;

	scene_start(&s, "unix:");
	p = godwit_run(1, "cancel", s.g.name, NULL);
	need(strstr(p->err.buf, "no migration is running"), "%s", p->err.buf);
	source_owns(&s);
}
END_TEST

/* The process whose guest has not come yet is told to end: by signals, `cancel` and `stop`. */
START_TEST(receiver_gives_up)
{
	struct scene s;
	int status = 1;

	held(&s, TO_DEST, WIRE_PAGES);
	switch (_i) {
	case 0:
		proc_kill(s.d.proc, SIGTERM);
		status = 128 + SIGTERM;
		break;
	case 1:
		proc_kill(s.d.proc, SIGINT);
		status = 128 + SIGINT;
		break;
	case 2:
		godwit_run(0, "cancel", s.d.name, NULL);
		break;
	default:
		godwit_run(0, "stop", s.d.name, NULL);
	}
	proc_ended(s.d.proc, status, 10000);
	need(!proc_next(s.d.proc, 0), "the receiver let something run");
	relay_go(s.relay);
	scene_report(&s, 1,
		     "destination (says: cancelled|closed the connection)|"
		     "connection to the destination broke");
	source_owns(&s);
}
END_TEST

/* The receiver's user comes too late: COMMIT has made the guest run there. */
START_TEST(receiver_too_late)
{
	struct scene s;
	struct proc *p;

	held(&s, TO_SOURCE, WIRE_RUNNING);
	guest_intact(s.d.proc);
	p = godwit_run(1, "cancel", s.d.name, NULL);
	need(strstr(p->err.buf, "no migration is running"), "%s", p->err.buf);
	relay_go(s.relay);
	scene_report(&s, 0, "");
	guest_ended(&s.g, 0, 10000);
	dest_owns(&s);
}
END_TEST

/* COMMIT is out when the destination has been told to give up: its refusal is its word that nothing
 * has run there, and the source goes on.
 */
START_TEST(receiver_refuses_commit)
{
	struct scene s;

	held(&s, TO_DEST, WIRE_COMMIT);
	godwit_run(0, "cancel", s.d.name, NULL);
	proc_ended(s.d.proc, 1, 10000);
	need(!proc_next(s.d.proc, 0), "the receiver let something run");
	relay_go(s.relay);
	scene_report(&s, 1, "destination says: cancelled");
	source_owns(&s);
}
END_TEST

/* The guest powers off while it is moved: there is nothing to move then. */
START_TEST(guest_ends)
{
	struct scene s;

	held(&s, TO_DEST, WIRE_PAGES);
	guest_send(&s.g, "q");
	guest_expect(&s.g, "^dirty done .* errors=0$", 10000);
	scene_report(&s, 1, "the guest ended during the migration");
	relay_go(s.relay);
	guest_ended(&s.g, 0, 10000);
	dest_refused(&s, "source");
}
END_TEST

/* The guest's process is told to end while it moves. */
START_TEST(source_ends)
{
	struct scene s;

	held(&s, TO_DEST, WIRE_PAGES);
	if (_i == 0)
		proc_kill(s.g.proc, SIGTERM);
	else
		godwit_run(0, "stop", "--force", s.g.name, NULL);
	scene_report(&s, 1, "ended during the migration|cancelled");
	relay_go(s.relay);
	guest_ended(&s.g, _i == 0 ? 128 + SIGTERM : 0, 10000);
	dest_refused(&s, "source");
}
END_TEST

/* While COMMIT's answer is out the source says that it must not be ended; told again, it ends with
 * the code for what it does not know. */
START_TEST(source_ends_late)
{
	struct scene s;

	held(&s, TO_SOURCE, WIRE_RUNNING);
	proc_kill(s.g.proc, SIGTERM);
	proc_expect_err(s.g.proc, "being committed, waiting", 10000);
	proc_kill(s.g.proc, SIGTERM);
	proc_expect_err(s.g.proc, "left while a handover was being committed", 10000);
	relay_go(s.relay);
	proc_ended(s.g.proc, 3, 10000);
	scene_report(&s, 3, "process (has ended|ends)");
	dest_owns(&s);
}
END_TEST

START_TEST(one_at_a_time)
{
	struct scene s;
	struct proc *p;

	held(&s, TO_DEST, WIRE_PAGES);
	p = godwit_run(1, "migrate", s.g.name, "unix:/nowhere", NULL);
	need(strstr(p->err.buf, "a migration is running"), "%s", p->err.buf);
	p = godwit_run(1, "pause", s.g.name, NULL);
	need(strstr(p->err.buf, "a migration is running"), "%s", p->err.buf);
	relay_go(s.relay);
	scene_report(&s, 0, "");
	guest_ended(&s.g, 0, 10000);
	dest_owns(&s);
}
END_TEST

/*
 * A downtime of a microsecond is never reached by a guest that writes: given up in time. The relay
 * makes each round long enough for it to do so, however busy this host is.
 */
START_TEST(timeout)
{
	struct scene s;

	scene_start_with(&s, "unix:", "ws=8M", NULL);
	for (unsigned i = 0; i < 3; i++)
		relay_act(s.relay, (struct relay_act){.dir = TO_SOURCE,
						      .type = WIRE_ROUND_ACK,
						      .nth = i + 1,
						      .what = RELAY_HOLD});
	s.migrate = move_start(&s.g, s.relay->uri, "--connections=1", "--timeout",
			       harness_path("%dms", harness_slow(4000)), "--downtime", "1us", NULL);
	for (unsigned i = 0; i < 3; i++) {
		uint64_t until;

		relay_wait(s.relay, i, 30000);
		until = harness_now_ms() + (uint64_t)harness_slow(1600);
		while (harness_now_ms() < until)
			harness_pump((int)(until - harness_now_ms()));
		relay_go(s.relay);
	}
	scene_report(&s, 1, "not done within the time allowed: dirtying [0-9.]+ [A-Za-z]*/s");
	need(s.m.rounds == 3 && s.m.total_ms >= 4000, "%llu rounds in %.0f ms",
	     (unsigned long long)s.m.rounds, s.m.total_ms);
	dest_refused(&s, "not done within the time allowed");
	source_owns(&s);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("faults-cancel");

	if (!harness_kvm_works())
		return harness_skip_all("no KVM guest runs here");
	tcase_add_loop_test(harness_case(s, "cancel", 60), cancel_command, 0, N_STEPS);
	tcase_add_loop_test(harness_case(s, "interrupt", 60), interrupt, 0, N_STEPS);
	tcase_add_test(harness_case(s, "interrupt-twice", 60), interrupt_twice);
	tcase_add_loop_test(harness_case(s, "too-late", 60), too_late, 0, 2);
	tcase_add_test(harness_case(s, "nothing", 60), nothing_to_cancel);
	tcase_add_loop_test(harness_case(s, "receiver", 60), receiver_gives_up, 0, 4);
	tcase_add_test(harness_case(s, "receiver-late", 60), receiver_too_late);
	tcase_add_test(harness_case(s, "receiver-refuses", 60), receiver_refuses_commit);
	tcase_add_test(harness_case(s, "guest-ends", 60), guest_ends);
	tcase_add_loop_test(harness_case(s, "source-ends", 60), source_ends, 0, 2);
	tcase_add_test(harness_case(s, "source-ends-late", 60), source_ends_late);
	tcase_add_test(harness_case(s, "one", 60), one_at_a_time);
	tcase_add_test(harness_case(s, "timeout", 60), timeout);
	return harness_main(s);
}
