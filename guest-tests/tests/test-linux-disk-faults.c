/* SPDX-License-Identifier: MIT */
/*
 * Either side of a move dies while a Linux guest works on the ext4 of its disk, at every step.
 * Afterwards one guest runs, or none and one can be started; its disk is locked by it, or free; the
 * file system is sound once its journal has been replayed, by e2fsck or by a kernel; and all that
 * the guest was told is durable is there.
 *
 * A guest takes seconds to boot on an emulated host, so it lives through as many deaths around it
 * as it can, and where it dies itself the next one goes on with its disk.
 *
 * Environment: GODWIT_TEST_ALL_STEPS  1: at each step either side dies; by default one of them
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#include "../linux/records.h"
#include "disks.h"
#include "steps.h"
#include "test-linux.h"

#define DISK_SIZE (24 * MIB)
#define WORK_MS 30000
#define TOOL_MS 20000
#define REPORT_MS 500
#define SILENT_MS 700 /* more than the time between the guest's reports */

#define WORK                                                                                       \
	"quiet mitigations=off " LX_PATIENCE "gt.mode=disk gt.procs=1 gt.mem=2M gt.clock_us=5000 " \
	"gt.report=500"

struct story {
	struct lx x; /* the guest, wherever it lives */
	const char *disk;
	uint64_t told[RECORDS_KINDS]; /* what of its writes was durable when it was last heard of */
	unsigned guests, attempts;
	struct attempt a;
};

/* ---- what the guest was told ---- */

static uint64_t worker_value(const char *body, int kind)
{
	return kv(body, harness_path("%s0", records_names[kind]));
}

static void take_durable(struct story *s, const char *body)
{
	for (int kind = 0; kind < RECORDS_KINDS; kind++) {
		uint64_t n = worker_value(body, kind);

		if (n > s->told[kind])
			s->told[kind] = n;
	}
}

/* All that has come out of a process, be it taken already or not; a last half line does not count.
 */
static void learn(struct story *s, const struct proc *p)
{
	for (const char *at = p->out.buf, *end; at && (end = strchr(at, '\n')); at = end + 1) {
		struct gt_line line;

		if (gt_parse(at, &line) > 0 && strcmp(line.word, "durable") == 0)
			take_durable(s, harness_path("%.*s", (int)line.body_len, line.body));
	}
	for (int kind = 0; kind < RECORDS_KINDS; kind++)
		need(s->told[kind] > 0, "%s: nothing was durable", records_names[kind]);
}

/* ---- the disk ---- */

static void tool(const char *what, int most, ...) __attribute__((sentinel));

/* Runs a program, which must end with this status at most. */
static void tool(const char *what, int most, ...)
{
	const char *argv[10] = {what};
	struct proc *p;
	va_list ap;
	int status;

	va_start(ap, most);
	for (unsigned i = 1; i < 9 && (argv[i] = va_arg(ap, const char *)); i++)
		;
	va_end(ap);
	p = proc_startv(what, argv);
	status = proc_wait(p, TOOL_MS);
	need(status <= most, "%s ends with %d: %s%s", what, status, p->out.buf ? p->out.buf : "",
	     p->err.buf ? p->err.buf : "");
}

static void make_disk(struct story *s)
{
	s->disk = disk_new("disk", DISK_SIZE);
	setenv("PATH", harness_path("%s:/usr/sbin:/sbin", getenv("PATH")), 1);
	tool("mke2fs", 0, "-q", "-t", "ext4", "-b4096", "-Jsize=4",
	     "-Elazy_itable_init=0,lazy_journal_init=0", s->disk, NULL);
}

/* What a file system without a guest holds, below a folder. */
static void look_at_records(const struct story *s, const char *folder)
{
	for (int kind = 0; kind < RECORDS_KINDS; kind++) {
		const char *path = harness_path("%s/%s", folder, records_names[kind]);
		int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		uint64_t found = 0;
		char err[300];

		need(fd >= 0, "%s: %s", path, strerror(errno));
		need(records_look(fd, (enum records_kind)kind, s->told[kind], &found, err,
				  sizeof(err)) == 0,
		     "%s", err);
		need(found >= s->told[kind], "%s: %lu writes, of %lu", path, found, s->told[kind]);
		close(fd);
	}
}

/*
 * The image as a crash has left it. Of a copy, so that a guest's kernel finds the original as it
 * is.
 */
static void look_at_disk(struct story *s)
{
	const char *copy = harness_path("%s/copy", harness_tmp());
	const char *folder = harness_path("%s/files", harness_tmp());

	tool("cp", 0, "--sparse=always", s->disk, copy, NULL);
	/* 1: it has replayed, or cleaned up after, what was under way. */
	tool("e2fsck", 1, "-p", copy, NULL);
	tool("e2fsck", 0, "-fn", copy, NULL);
	tool("mkdir", 0, folder, NULL);
	tool("debugfs", 0, "-R", harness_path("rdump / %s", folder), copy, NULL);
	look_at_records(s, folder);
	tool("rm", 0, "-r", copy, folder, NULL);
}

/* ---- guests ---- */

/* A guest on the disk, which must find there whatever was durable. */
static void boot(struct story *s)
{
	uint64_t started = harness_now_ms();
	unsigned found = 0;

	guest_start(&s->x.g, harness_path("vm-%u", ++s->guests), "-m", "96M", "-k",
		    lx_kernel("6.1/vmlinux"), "-i", lx_initrd_virtio(), "-p", WORK, "--disk",
		    s->disk, NULL);
	lx_ready(&s->x, 1);
	while (found < RECORDS_KINDS) {
		const char *body = lx_expect(&s->x, "found", WORK_MS);

		for (int kind = 0; kind < RECORDS_KINDS; kind++) {
			if (strcmp(kv_text(body, "worker"),
				   harness_path("%s0", records_names[kind])) != 0)
				continue;
			need(kv(body, "n") >= s->told[kind],
			     "%s: the guest finds %lu writes, and %lu were durable",
			     records_names[kind], kv(body, "n"), s->told[kind]);
			found++;
		}
	}
	harness_say("guest %u is up after %.1f s", s->guests,
		    (double)(harness_now_ms() - started) / 1000);
}

/* Each of its workers writes on, and no other guest is let near the disk. */
static void works(struct story *s)
{
	uint64_t until = harness_now_ms() + (uint64_t)harness_slow(WORK_MS);
	uint64_t before[RECORDS_KINDS];
	bool all;

	lx_ask(&s->x, "r", "");
	take_durable(s, lx_expect(&s->x, "durable", LX_ANSWER_MS));
	memcpy(before, s->told, sizeof(before));
	do {
		need(harness_now_ms() < until, "not all of its workers get on");
		take_durable(s, lx_expect(&s->x, "durable", LX_ANSWER_MS));
		all = true;
		for (int kind = 0; kind < RECORDS_KINDS; kind++)
			all = all && s->told[kind] >= before[kind] + 2;
	} while (!all);
	disk_in_use(s->disk);
}

/* Paused: nothing comes any more. What has come until now is kept in order. */
static void silent(struct story *s, struct proc *p)
{
	const char *text;

	while (p == s->x.g.proc && (text = proc_next(p, 20)))
		lx_take(&s->x, text);
	text = proc_next(p, SILENT_MS);
	need(!text, "%s runs and must not: '%s'", p->label, text);
}

static void quit(struct story *s)
{
	guest_send(&s->x.g, "q\n");
	lx_done(&s->x);
	learn(s, s->x.g.proc);
	tool("e2fsck", 0, "-fn", s->disk, NULL);
	look_at_disk(s);
	harness_say("%u moves were broken, %u guests started; durable: log %lu, slots %lu, swap "
		    "%lu, names %lu",
		    s->attempts, s->guests, s->told[RECORDS_IN_LOG], s->told[RECORDS_IN_SLOTS],
		    s->told[RECORDS_IN_SWAP], s->told[RECORDS_IN_NAMES]);
}

/* ---- moves ---- */

static void story_start(struct story *s)
{
	*s = (struct story){.disk = NULL};
	make_disk(s);
	boot(s);
	works(s);
}

static void attempt(struct story *s, int step, enum relay_what what, bool source)
{
	unsigned n = ++s->attempts;

	attempt_start(&s->a, harness_path("there-%u", n), n % 2 ? "unix:" : "tcp:127.0.0.1:0");
	attempt_act(&s->a, step, what, source ? s->x.g.proc : s->a.dest.proc);
	attempt_run(&s->a, &s->x.g);
	harness_say("%s %s at %d, %s", source ? "source" : "destination",
		    what == RELAY_KILL ? "killed" : "cut off", step, step_name(step));
}

static void dest_dies(struct story *s, int step)
{
	attempt(s, step, RELAY_KILL, false);
	proc_ended(s->a.dest.proc, 128 + SIGKILL, LX_END_MS);
	if (step < COMMIT_LOST) {
		need(s->a.status == 1, "exit code %d: %s", s->a.status, s->a.m.error);
		never_ran(s->a.dest.proc);
		works(s);
		return;
	}
	need(s->a.status == 3, "exit code %d: %s", s->a.status, s->a.m.error);
	silent(s, s->x.g.proc);
	/* It does not guess: the image is free, and it does not take it. */
	learn(s, s->x.g.proc);
	if (step == COMMIT_LOST) {
		look_at_disk(s);
		never_ran(s->a.dest.proc);
		godwit_run(0, "resolve", "--run", s->x.g.name, NULL);
		works(s);
		return;
	}
	/* It may have run there, and written: this memory is of no use any more. */
	learn(s, s->a.dest.proc);
	look_at_disk(s);
	godwit_run(0, "resolve", "--discard", s->x.g.name, NULL);
	guest_ended(&s->x.g, 0, LX_END_MS);
	boot(s);
	works(s);
}

/* The source does not know whether the guest runs there; its lock does. */
static void answer_lost(struct story *s)
{
	struct guest source = s->x.g;
	struct proc *p;

	attempt(s, ANSWER_LOST, RELAY_CUT, false);
	need(s->a.status == 3, "exit code %d: %s", s->a.status, s->a.m.error);
	guest_follow(&s->x.g, &s->a.dest);
	works(s);
	p = godwit_run(1, "resolve", "--run", source.name, NULL);
	need(strstr(p->err.buf, "it stays paused") && strstr(p->err.buf, s->disk) &&
		     strstr(p->err.buf, "in use"),
	     "'%s'", p->err.buf);
	silent(s, source.proc);
	works(s);
	/* Even now only a user may decide that. */
	need(proc_running(source.proc), "the source has ended by itself");
	godwit_run(0, "resolve", "--discard", source.name, NULL);
	guest_ended(&source, 0, LX_END_MS);
	works(s);
}

static void source_dies(struct story *s, int step)
{
	struct proc *source = s->x.g.proc;

	attempt(s, step, RELAY_KILL, true);
	need(s->a.status == 3, "exit code %d: %s", s->a.status, s->a.m.error);
	proc_ended(source, 128 + SIGKILL, LX_END_MS);
	if (step < COMMIT_CAME) {
		proc_ended(s->a.dest.proc, 1, LX_END_MS);
		never_ran(s->a.dest.proc);
		learn(s, source);
		look_at_disk(s);
		boot(s);
	} else {
		guest_follow(&s->x.g, &s->a.dest);
	}
	works(s);
}

static bool all_steps(void)
{
	return harness_env("GODWIT_TEST_ALL_STEPS", 0);
}

/* Where the source dies if only one side does: one step of each phase, as it costs a boot. */
static bool is_sources(int step)
{
	return (steps[step].type == WIRE_PAGES || steps[step].type == WIRE_STATE ||
		steps[step].type == WIRE_COMMIT) &&
	       steps[step].when == RELAY_AFTER;
}

/* First destinations die around a guest, then guests themselves, until one has arrived. */
START_TEST(either_dies)
{
	struct story s;

	story_start(&s);
	for (int i = 0; i < N_STEPS; i++) {
		if (all_steps() || (!is_sources(i) && i != ANSWER_LOST))
			dest_dies(&s, i);
	}
	answer_lost(&s);
	for (int i = 0; i < N_STEPS; i++) {
		if (all_steps() || is_sources(i))
			source_dies(&s, i);
	}
	quit(&s);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("linux-disk-faults");

	if (!harness_linux_works())
		return harness_skip_all(
			"no Linux guest runs on this host (godwit doctor says why)");
	tcase_add_test(harness_case(s, "either-dies", all_steps() ? 450 : 200), either_dies);
	return harness_main(s);
}
