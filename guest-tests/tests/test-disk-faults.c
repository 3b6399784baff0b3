/* SPDX-License-Identifier: MIT */
/*
 * Either side of a move dies while the guest works on its disk, at every step. Afterwards one
 * guest at most runs, what it was told is durable is in the image, and no ghost holds that.
 */
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "disks.h"
#include "steps.h"

#define LINE_MS 20000
#define END_MS 10000
#define SILENT_MS 1300 /* more than the period of the guest's reports */

struct scene {
	struct disk d;
	struct guest g;
	struct attempt a;
};

static void scene_start(struct scene *s, bool tcp)
{
	*s = (struct scene){.d.path = disk_new("disk", 2 * MIB)};
	guest_start(&s->g, "vm", "-m", "32M", "-k", bare_elf("virtio"), "--disk", s->d.path, "-p",
		    "rate=4M flush_every=8 depth=16", NULL);
	disks_ready(s->g.proc, &s->d, 1);
	guest_expect(&s->g, "^virtio durable ", LINE_MS);
	attempt_start(&s->a, "there", tcp ? "tcp:127.0.0.1:0" : "unix:");
	proc_fatal(s->a.dest.proc, DISK_FATAL);
}

/* What the guest was told, wherever it was. */
static uint64_t told(const struct scene *s)
{
	uint64_t a = disk_told(s->g.proc, &s->d), b = disk_told(s->a.dest.proc, &s->d);

	need(a, "nothing was durable before the move");
	return a > b ? a : b;
}

static void silent(struct proc *p)
{
	const char *line;

	while (proc_try(p, "^virtio ", 20))
		;
	line = proc_try(p, "^virtio ", SILENT_MS);
	need(!line, "%s runs and must not: '%s'", p->label, line);
}

static void runs_on_at_source(struct scene *s)
{
	disk_works(s->g.proc);
	disk_in_use(s->d.path);
	disks_quit(s->g.proc, &s->d, 1);
}

static void runs_at_dest(struct scene *s)
{
	disk_works(s->a.dest.proc);
	disk_in_use(s->d.path);
	disks_quit(s->a.dest.proc, &s->d, 1);
}

/* Nobody has it: the image is as it should be, and free. */
static void is_left(struct scene *s)
{
	disk_check(&s->d, told(s), false);
	disk_is_free(&s->d);
}

START_TEST(dest_killed)
{
	struct scene s;

	scene_start(&s, _i % 2);
	attempt_act(&s.a, _i, RELAY_KILL, s.a.dest.proc);
	attempt_run(&s.a, &s.g);
	proc_ended(s.a.dest.proc, 128 + SIGKILL, END_MS);
	if (_i < COMMIT_LOST) {
		need(s.a.status == 1, "exit code %d: %s", s.a.status, s.a.m.error);
		never_ran(s.a.dest.proc);
		runs_on_at_source(&s);
		return;
	}
	need(s.a.status == 3, "exit code %d: %s", s.a.status, s.a.m.error);
	silent(s.g.proc);
	/* It does not guess: the image is free, and it does not take it. */
	disk_check(&s.d, told(&s), false);
	if (_i == COMMIT_LOST) {
		never_ran(s.a.dest.proc);
		godwit_run(0, "resolve", "--run", s.g.name, NULL);
		runs_on_at_source(&s);
		return;
	}
	/* It may have run there, and written: this memory is of no use any more. */
	godwit_run(0, "resolve", "--discard", s.g.name, NULL);
	guest_ended(&s.g, 0, END_MS);
	is_left(&s);
}
END_TEST

START_TEST(source_killed)
{
	struct scene s;

	scene_start(&s, !(_i % 2));
	attempt_act(&s.a, _i, RELAY_KILL, s.g.proc);
	attempt_run(&s.a, &s.g);
	need(s.a.status == 3, "exit code %d: %s", s.a.status, s.a.m.error);
	proc_ended(s.g.proc, 128 + SIGKILL, END_MS);
	if (_i < COMMIT_CAME) {
		proc_ended(s.a.dest.proc, 1, END_MS);
		never_ran(s.a.dest.proc);
		is_left(&s);
	} else {
		runs_at_dest(&s);
	}
}
END_TEST

START_TEST(connection_cut)
{
	struct scene s;

	scene_start(&s, _i % 2);
	attempt_act(&s.a, _i, RELAY_CUT, NULL);
	attempt_run(&s.a, &s.g);
	need(s.a.status == 1, "exit code %d: %s", s.a.status, s.a.m.error);
	proc_ended(s.a.dest.proc, 1, END_MS);
	never_ran(s.a.dest.proc);
	runs_on_at_source(&s);
}
END_TEST

/* The source does not know; its lock does. */
START_TEST(answer_lost)
{
	struct scene s;
	struct proc *p;

	scene_start(&s, _i);
	attempt_act(&s.a, ANSWER_LOST, RELAY_CUT, NULL);
	attempt_run(&s.a, &s.g);
	need(s.a.status == 3, "exit code %d: %s", s.a.status, s.a.m.error);
	disk_works(s.a.dest.proc);
	p = godwit_run(1, "resolve", "--run", s.g.name, NULL);
	need(strstr(p->err.buf, "it stays paused") && strstr(p->err.buf, s.d.path) &&
		     strstr(p->err.buf, "in use"),
	     "'%s'", p->err.buf);
	silent(s.g.proc);
	runs_at_dest(&s);
	/* Even now only a user may decide that. */
	silent(s.g.proc);
	godwit_run(0, "resolve", "--discard", s.g.name, NULL);
	guest_ended(&s.g, 0, END_MS);
	disk_is_free(&s.d);
}
END_TEST

/* COMMIT never came: the destination has ended, and the user knows that. */
START_TEST(commit_lost)
{
	struct scene s;

	scene_start(&s, _i);
	attempt_act(&s.a, COMMIT_LOST, RELAY_CUT, NULL);
	attempt_run(&s.a, &s.g);
	need(s.a.status == 3, "exit code %d: %s", s.a.status, s.a.m.error);
	proc_ended(s.a.dest.proc, 1, END_MS);
	never_ran(s.a.dest.proc);
	silent(s.g.proc);
	disk_check(&s.d, told(&s), false);
	godwit_run(0, "resolve", "--run", s.g.name, NULL);
	runs_on_at_source(&s);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("disk-faults");

	if (!harness_kvm_works())
		return harness_skip_all("no KVM guest runs on this host (godwit doctor says why)");
	tcase_add_loop_test(harness_case(s, "dest-killed", 90), dest_killed, 0, N_STEPS);
	tcase_add_loop_test(harness_case(s, "source-killed", 90), source_killed, 0, N_STEPS);
	tcase_add_loop_test(harness_case(s, "cut", 90), connection_cut, 0, COMMIT_LOST);
	tcase_add_loop_test(harness_case(s, "answer-lost", 90), answer_lost, 0, 2);
	tcase_add_loop_test(harness_case(s, "commit-lost", 90), commit_lost, 0, 2);
	return harness_main(s);
}
