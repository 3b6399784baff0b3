/* SPDX-License-Identifier: MIT */
/*
 * Either side of a migration dies, or the connection does, at every step of it. Before COMMIT the
 * guest goes on at the source; once COMMIT may be out the source never runs it again by itself;
 * and there are never two.
 */
#include <signal.h>
#include <string.h>

#include "faults.h"

/* What a side says of a peer that went away. */
#define GONE "(closed the connection|connection to the (source|destination) broke|went away)"

/*
 * The steps of a move up to READY, as seen by the relay. At each of these the frame has been
 * delivered, or not, and nothing comes after it.
 */
static const struct step {
	enum relay_dir dir;
	unsigned type;
	enum relay_when when;
} steps[] = {
	{TO_DEST, RELAY_PRELUDE, RELAY_BEFORE},	  {TO_DEST, RELAY_PRELUDE, RELAY_AFTER},
	{TO_SOURCE, RELAY_PRELUDE, RELAY_AFTER},  {TO_DEST, WIRE_HELLO, RELAY_BEFORE},
	{TO_DEST, WIRE_HELLO, RELAY_AFTER},	  {TO_SOURCE, WIRE_HELLO_OK, RELAY_AFTER},
	{TO_DEST, WIRE_PING, RELAY_AFTER},	  {TO_SOURCE, WIRE_PONG, RELAY_AFTER},
	{TO_DEST, WIRE_PAGES, RELAY_AFTER},	  {TO_DEST, WIRE_ROUND_END, RELAY_BEFORE},
	{TO_SOURCE, WIRE_ROUND_ACK, RELAY_AFTER}, {TO_DEST, WIRE_STATE, RELAY_BEFORE},
	{TO_DEST, WIRE_STATE, RELAY_AFTER},	  {TO_DEST, WIRE_PROOF, RELAY_BEFORE},
	{TO_DEST, WIRE_PROOF, RELAY_AFTER},	  {TO_SOURCE, WIRE_READY, RELAY_BEFORE},
};
#define N_STEPS ((int)(sizeof(steps) / sizeof(steps[0])))
#define NO_WORD 0 /* nothing at all has come to the destination */

static void act_at(struct scene *s, const struct step *at, enum relay_what what,
		   struct proc *victim)
{
	relay_act(s->relay, (struct relay_act){.dir = at->dir,
					       .type = at->type,
					       .when = at->when,
					       .what = what,
					       .victim = victim});
}

START_TEST(dest_killed)
{
	struct scene s;

	scene_start(&s, _i % 2 ? "tcp:127.0.0.1:0" : "unix:");
	act_at(&s, &steps[_i], RELAY_KILL, s.d.proc);
	scene_migrate(&s);
	scene_report(&s, 1, GONE);
	dest_dead(&s);
	source_owns(&s);
}
END_TEST

/* READY has come: the source may still notice that nobody is there to be told COMMIT, or not. */
START_TEST(dest_killed_when_ready)
{
	static const struct step ready = {TO_SOURCE, WIRE_READY, RELAY_AFTER};
	struct scene s;
	int status;

	scene_start(&s, "unix:");
	act_at(&s, &ready, RELAY_KILL, s.d.proc);
	scene_migrate(&s);
	status = proc_wait(s.migrate, 30000);
	need(status == 1 || status == 3, "exit code %d", status);
	scene_report(&s, status, GONE);
	dest_dead(&s);
	if (status == 1) {
		source_owns(&s);
	} else {
		source_uncertain(&s);
		force_resume(&s);
	}
}
END_TEST

static const struct step commit_steps[] = {
	{TO_DEST, WIRE_COMMIT, RELAY_BEFORE},
	{TO_DEST, WIRE_COMMIT, RELAY_AFTER},
	{TO_SOURCE, WIRE_RUNNING, RELAY_BEFORE},
};
#define COMMIT_LOST 0
#define N_COMMIT_STEPS ((int)(sizeof(commit_steps) / sizeof(commit_steps[0])))

START_TEST(dest_killed_after_commit)
{
	struct scene s;

	scene_start(&s, _i % 2 ? "tcp:127.0.0.1:0" : "unix:");
	act_at(&s, &commit_steps[_i], RELAY_KILL, s.d.proc);
	scene_migrate(&s);
	scene_report(&s, 3, GONE);
	proc_ended(s.d.proc, 128 + SIGKILL, 10000);
	source_uncertain(&s);
	/* In this test it is known that the other one is no more. */
	force_resume(&s);
}
END_TEST

START_TEST(source_killed)
{
	struct scene s;

	scene_start(&s, _i % 2 ? "unix:" : "tcp:127.0.0.1:0");
	act_at(&s, &steps[_i], RELAY_KILL, s.g.proc);
	scene_migrate(&s);
	/* Its process is gone and with it all that `migrate` could learn from. */
	scene_report(&s, 3, "process has ended");
	if (_i == NO_WORD)
		dest_listens(&s);
	else
		dest_refused(&s, "no guest came to run here: .*" GONE);
	proc_ended(s.g.proc, 128 + SIGKILL, 10000);
	godwit_run(1, "status", s.g.name, NULL);
}
END_TEST

START_TEST(source_killed_after_commit)
{
	struct scene s;

	scene_start(&s, _i % 2 ? "unix:" : "tcp:127.0.0.1:0");
	act_at(&s, &commit_steps[_i], RELAY_KILL, s.g.proc);
	scene_migrate(&s);
	scene_report(&s, 3, "process has ended");
	proc_ended(s.g.proc, 128 + SIGKILL, 10000);
	if (_i == COMMIT_LOST)
		dest_refused(&s, GONE);
	else
		dest_owns(&s);
}
END_TEST

START_TEST(connection_cut)
{
	struct scene s;

	scene_start(&s, _i % 2 ? "tcp:127.0.0.1:0" : "unix:");
	act_at(&s, &steps[_i], _i % 4 == 1 ? RELAY_RESET : RELAY_CUT, NULL);
	scene_migrate(&s);
	scene_report(&s, 1, GONE);
	if (_i == NO_WORD)
		dest_listens(&s);
	else
		dest_refused(&s, "no guest came to run here: .*" GONE);
	source_owns(&s);
}
END_TEST

START_TEST(connection_cut_after_commit)
{
	struct scene s;

	scene_start(&s, _i % 2 ? "tcp:127.0.0.1:0" : "unix:");
	act_at(&s, &commit_steps[_i], RELAY_CUT, NULL);
	scene_migrate(&s);
	scene_report(&s, 3, GONE);
	if (_i == COMMIT_LOST) {
		/* Nobody runs it now, and only a user may change that. */
		dest_refused(&s, GONE);
		source_uncertain(&s);
		force_resume(&s);
	} else {
		source_uncertain(&s);
		dest_owns(&s);
		/* Where it ran is known now; the source's copy is of no use any more. */
		godwit_run(0, "resolve", "--discard", s.g.name, NULL);
		guest_ended(&s.g, 0, 10000);
	}
}
END_TEST

/* Half a COMMIT is none for the destination, and for the source it may have been a whole one. */
START_TEST(half_a_commit)
{
	struct scene s;

	scene_start(&s, "unix:");
	relay_act(s.relay,
		  (struct relay_act){
			  .dir = TO_DEST, .type = WIRE_COMMIT, .what = RELAY_SHORT, .at = 30});
	scene_migrate(&s);
	scene_report(&s, 3, GONE);
	dest_refused(&s, GONE);
	source_uncertain(&s);
	force_resume(&s);
}
END_TEST

/*
 * The host aborts the source's socket (`ss -K`, a firewall's doing) while the destination runs
 * already: an error that looks like nothing else, and no word of the destination's.
 */
START_TEST(socket_aborted_after_commit)
{
	struct scene s;
	struct proc *ss;

	scene_start(&s, "tcp:127.0.0.1:0");
	relay_act(s.relay,
		  (struct relay_act){.dir = TO_SOURCE, .type = WIRE_RUNNING, .what = RELAY_HOLD});
	scene_migrate(&s);
	relay_wait(s.relay, 0, 30000);
	ss = proc_start("ss", "ss", "-K", "dst", "127.0.0.1", "dport", "=",
			strrchr(s.relay->uri, ':'), NULL);
	if (proc_wait(ss, 10000) || !strstr(ss->out.buf, "ESTAB") ||
	    strstr(ss->err.buf, "not permitted"))
		harness_skip("this host does not let a test abort a connection (ss -K)");
	scene_report(&s, 3, "abort|broke|closed");
	source_uncertain(&s);
	dest_owns(&s);
	godwit_run(0, "resolve", "--discard", s.g.name, NULL);
	guest_ended(&s.g, 0, 10000);
}
END_TEST

/*
 * While COMMIT is on its way nobody runs: the source does not any more, the destination does not
 * yet. The guest itself measures how long it stood.
 */
START_TEST(nobody_runs_before_commit)
{
	const int hold_ms = 1500;
	struct scene s;
	const char *line;
	uint64_t until;

	scene_start(&s, "unix:");
	relay_act(s.relay,
		  (struct relay_act){.dir = TO_DEST, .type = WIRE_COMMIT, .what = RELAY_HOLD});
	guest_send(&s.g, "z");
	guest_intact(s.g.proc);
	scene_migrate(&s);
	relay_wait(s.relay, 0, 30000);
	until = harness_now_ms() + (uint64_t)hold_ms;
	guest_silent(s.g.proc);
	while (harness_now_ms() < until)
		harness_pump((int)(until - harness_now_ms()));
	relay_go(s.relay);
	scene_report(&s, 0, "");
	guest_moved(&s.g, &s.d);
	guest_send(&s.g, "r");
	/* A report from before the move may still have been on its way. */
	do
		line = guest_expect(&s.g, "^dirty t_ms=", 10000);
	while (kv(line, "gap_us") < 1000000 && kv(line, "t_ms") < kv(line, "gap_at_ms") + 1000);
	need(kv(line, "gap_us") >= (uint64_t)(hold_ms - 10) * 1000,
	     "held for %d ms, and the guest stood for less: %s", hold_ms, line);
	need(s.m.commit_ms >= hold_ms - 10, "held for %d ms, reported %.1f", hold_ms,
	     s.m.commit_ms);
	guest_send(&s.g, "q");
	guest_expect(&s.g, "^dirty done .* errors=0$", 10000);
	guest_ended(&s.g, 0, 10000);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("faults");

	if (!harness_kvm_works())
		return harness_skip_all("no KVM guest runs here");
	tcase_add_loop_test(harness_case(s, "dest-killed", 60), dest_killed, 0, N_STEPS);
	tcase_add_test(harness_case(s, "dest-killed-ready", 60), dest_killed_when_ready);
	tcase_add_loop_test(harness_case(s, "dest-killed-commit", 60), dest_killed_after_commit, 0,
			    N_COMMIT_STEPS);
	tcase_add_loop_test(harness_case(s, "source-killed", 60), source_killed, 0, N_STEPS);
	tcase_add_loop_test(harness_case(s, "source-killed-commit", 60), source_killed_after_commit,
			    0, N_COMMIT_STEPS);
	tcase_add_loop_test(harness_case(s, "cut", 60), connection_cut, 0, N_STEPS);
	tcase_add_loop_test(harness_case(s, "cut-commit", 60), connection_cut_after_commit, 0,
			    N_COMMIT_STEPS);
	tcase_add_test(harness_case(s, "half-commit", 60), half_a_commit);
	tcase_add_test(harness_case(s, "aborted", 60), socket_aborted_after_commit);
	tcase_add_test(harness_case(s, "nobody-runs", 60), nobody_runs_before_commit);
	return harness_main(s);
}
