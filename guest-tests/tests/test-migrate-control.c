/* SPDX-License-Identifier: MIT */
/* Migrations as their user drives them: watched, given up, refused, and tried again. */
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../bare/contract.h"
#include "harness.h"
#include "payload-contract.h"

#define LINE_MS 15000

/*
 * A guest that rewrites its working set faster than the link could ever carry it away, and a move
 * that therefore lasts until somebody ends it. A round takes longer than a busy host leaves a vCPU
 * alone: one in which nothing was written would be the end.
 */
#define LINK_SPEED (20ul << 20)

static void start_busy(struct guest *g)
{
	guest_start(g, "busy", "-m", "128M", "-k", bare_elf("dirty"), "-p",
		    "kind=new ws=32M report=0", NULL);
	proc_fatal(g->proc, BARE_DIRTY_ERROR "| panic ");
	guest_expect(g, "^dirty ready ", LINE_MS);
}

static struct proc *start_endless(struct guest *g, struct dest *d)
{
	dest_start(d, "there", "tcp:127.0.0.1:0", NULL);
	return move_start(g, slow_link(d, LINK_SPEED), "--downtime=1us", "--on-timeout=continue",
			  NULL);
}

static bool is_migrating(void *arg)
{
	return !strcmp(json_text(guest_status(arg), "state"), "migrating");
}

static bool is_under_way(void *arg)
{
	json_t *s = guest_status(arg);

	return !strcmp(json_text(s, "state"), "migrating") && json_num(s, "migration.round") >= 2;
}

static void wait_under_way(struct guest *g)
{
	need(harness_until(is_under_way, g, LINE_MS), "the second round was not reached");
}

/* It works, its memory is right, and it can still be moved. */
static void need_well(struct guest *g)
{
	uint64_t writes;

	ck_assert_str_eq(json_text(guest_status(g), "state"), "running");
	guest_send(g, "r");
	writes = kv(guest_expect(g, "^dirty t_ms=", LINE_MS), "writes");
	guest_send(g, "v");
	guest_expect(g, "^dirty verify .* errors=0$", LINE_MS);
	guest_send(g, "r");
	need(kv(guest_expect(g, "^dirty t_ms=", LINE_MS), "writes") > writes, "it writes no more");
	guest_move(g, NULL, "unix:", "--downtime=2s", "--verify=full", NULL);
	guest_send(g, "q");
	guest_expect(g, "^dirty done .* errors=0$", LINE_MS);
	guest_ended(g, 0, LINE_MS);
}

/* The priority (nice(1)) of a thread of p's, by its name. */
static long niceness(const struct proc *p, const char *thread)
{
	const char *tasks = harness_path("/proc/%d/task", (int)p->pid);
	DIR *dir = opendir(tasks);
	const struct dirent *e;
	char line[512] = "";
	long value;

	ck_assert_ptr_nonnull(dir);
	while (!strstr(line, harness_path("(%s) ", thread)) && (e = readdir(dir))) {
		FILE *f = fopen(harness_path("%s/%s/stat", tasks, e->d_name), "r");

		if (f && !fgets(line, sizeof(line), f))
			line[0] = 0;
		if (f)
			fclose(f);
	}
	closedir(dir);
	need(strstr(line, harness_path("(%s) ", thread)), "no thread '%s'", thread);
	/* proc(5): its 19th field, and what is in parentheses is the second. */
	ck_assert_int_eq(sscanf(strrchr(line, ')'),
				") %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s "
				"%*s %ld",
				&value),
			 1);
	return value;
}

START_TEST(watched)
{
	struct proc *migrate;
	json_t *s, *later;
	struct guest g;
	struct dest d;
	struct move m;

	start_busy(&g);
	migrate = start_endless(&g, &d);
	wait_under_way(&g);
	s = guest_status(&g);
	need(strncmp(json_text(s, "migration.uri"), "unix:/", 6) == 0, "%s", json_dumps(s, 0));
	ck_assert_str_eq(json_text(s, "migration.phase"), "pre-copy");
	need(json_num(s, "migration.ram_bytes") >= 128 << 20, "%s", json_dumps(s, 0));
	later = guest_status(&g);
	while (json_num(later, "migration.round") < json_num(s, "migration.round") + 2)
		later = guest_status(&g);
	need(json_num(later, "migration.wire_bytes") > json_num(s, "migration.wire_bytes") &&
		     json_num(later, "migration.elapsed_ms") >
			     json_num(s, "migration.elapsed_ms") &&
		     json_num(later, "migration.pages.scanned") >
			     json_num(s, "migration.pages.scanned") &&
		     json_num(later, "migration.dirty_pages_per_s") > 0,
	     "no progress from %s to %s", json_dumps(s, JSON_COMPACT),
	     json_dumps(later, JSON_COMPACT));
	/* The other side knows what comes, and the guest lives meanwhile. (It must go on writing.)
	 */
	s = json_of(godwit_run(0, "status", "--json", d.name, NULL)->out.buf);
	ck_assert_str_eq(json_text(s, "state"), "receiving");
	guest_send(&g, "r");
	guest_expect(&g, "^dirty t_ms=", LINE_MS);
	/* A guest has the CPU sooner than those who carry its pages. */
	need(niceness(g.proc, "migrate-send") > niceness(g.proc, "vcpu0"), "they are equal here");
	need(niceness(d.proc, "receive-pages") > niceness(g.proc, "vcpu0"), "and there");
	/* Another one at the same time is refused, and harms nothing. */
	move_report(move_start(&g, "tcp:127.0.0.1:9", NULL), 1, &m, LINE_MS);
	need(strstr(m.error, "migration"), "'%s'", m.error);
	godwit_run(1, "pause", g.name, NULL);
	need(proc_running(migrate), "the first one ended");
	godwit_run(0, "cancel", g.name, NULL);
	move_report(migrate, 1, &m, LINE_MS);
	guest_send(&g, "v");
	guest_expect(&g, "^dirty verify .* errors=0$", LINE_MS);
	guest_send(&g, "q");
	guest_ended(&g, 0, LINE_MS);
}
END_TEST

START_TEST(cancelled)
{
	struct proc *migrate;
	struct guest g;
	struct dest d;
	struct move m;

	start_busy(&g);
	/* Nothing to cancel yet. */
	godwit_run(1, "cancel", g.name, NULL);
	migrate = start_endless(&g, &d);
	wait_under_way(&g);
	if (_i == 0)
		godwit_run(0, "cancel", g.name, NULL);
	else
		proc_kill(migrate, _i == 1 ? SIGINT : SIGTERM);
	move_report(migrate, 1, &m, LINE_MS);
	ck_assert_str_eq(m.status, "cancelled");
	/* Nothing came there: not done, and not a guest of two places. */
	proc_ended(d.proc, 1, LINE_MS);
	need_well(&g);
}
END_TEST

/* The destination gives up. */
START_TEST(cancelled_there)
{
	struct proc *migrate;
	struct guest g;
	struct dest d;
	struct move m;

	start_busy(&g);
	migrate = start_endless(&g, &d);
	wait_under_way(&g);
	if (_i == 0)
		godwit_run(0, "cancel", d.name, NULL);
	else
		proc_kill(d.proc, _i == 1 ? SIGTERM : SIGKILL);
	move_report(migrate, 1, &m, LINE_MS);
	ck_assert_str_eq(m.status, "failed");
	proc_wait(d.proc, LINE_MS);
	need(d.proc->status != 0, "the destination took that for a success");
	need_well(&g);
}
END_TEST

START_TEST(takes_too_long)
{
	struct proc *migrate;
	struct guest g;
	struct dest d;
	struct move m;

	start_busy(&g);
	dest_start(&d, "there", "unix:", NULL);
	migrate = move_start(&g, slow_link(&d, LINK_SPEED), "--downtime=1us", "--timeout=500ms",
			     NULL);
	move_report(migrate, 1, &m, LINE_MS);
	ck_assert_str_eq(m.status, "failed");
	need(m.error[0], "it does not say why");
	proc_ended(d.proc, 1, LINE_MS);
	need_well(&g);
}
END_TEST

/* Whoever asked for the migration may go away. */
START_TEST(left_alone)
{
	struct proc *migrate;
	struct guest g;
	struct dest d;

	start_busy(&g);
	migrate = start_endless(&g, &d);
	wait_under_way(&g);
	proc_kill(migrate, SIGKILL);
	proc_wait(migrate, LINE_MS);
	ck_assert_str_eq(json_text(guest_status(&g), "state"), "migrating");
	godwit_run(0, "cancel", g.name, NULL);
	ck_assert_str_eq(json_text(guest_status(&g), "migration.status"), "cancelled");
	proc_ended(d.proc, 1, LINE_MS);
	need_well(&g);
}
END_TEST

START_TEST(nobody_there)
{
	struct guest g;
	struct move m;

	start_busy(&g);
	move_report(move_start(&g, harness_path("unix:%s/none", harness_tmp()), NULL), 1, &m,
		    LINE_MS);
	need(strstr(m.error, "none"), "'%s' does not name the path", m.error);
	move_report(move_start(&g, "tcp:127.0.0.1:1", NULL), 1, &m, LINE_MS);
	need(strstr(m.error, "127.0.0.1"), "'%s' does not name the address", m.error);
	godwit_run(2, "migrate", g.name, "nonsense:", NULL);
	need_well(&g);
}
END_TEST

/* What the destination was told to insist on. */
START_TEST(refused)
{
	static const char *const demands[][2] = {{"-m", "64M"}, {"-c", "2"}};
	struct guest g;
	struct dest d;
	struct move m;

	start_busy(&g);
	dest_start(&d, "there", "unix:", demands[_i][0], demands[_i][1], NULL);
	move_report(move_start(&g, d.uri, NULL), 1, &m, LINE_MS);
	ck_assert_str_eq(m.status, "failed");
	need(m.downtime_ms == 0, "it was paused for that: %.3f ms", m.downtime_ms);
	need(strstr(m.error, _i ? "vCPU" : "RAM"), "'%s' does not name the cause", m.error);
	proc_ended(d.proc, 1, LINE_MS);
	need_well(&g);
}
END_TEST

/* A guest that ends by itself has not moved. */
START_TEST(ends_meanwhile)
{
	struct proc *migrate;
	struct guest g;
	struct dest d;
	struct move m;

	start_busy(&g);
	migrate = start_endless(&g, &d);
	wait_under_way(&g);
	guest_send(&g, "q");
	move_report(migrate, 1, &m, LINE_MS);
	guest_expect(&g, "^dirty done .* errors=0$", LINE_MS);
	guest_ended(&g, 0, LINE_MS);
	proc_ended(d.proc, 1, LINE_MS);
}
END_TEST

START_TEST(stopped_meanwhile)
{
	struct proc *migrate;
	struct guest g;
	struct dest d;
	struct move m;

	start_busy(&g);
	migrate = start_endless(&g, &d);
	wait_under_way(&g);
	godwit_run(0, "stop", "--force", g.name, NULL);
	move_report(migrate, 1, &m, LINE_MS);
	guest_ended(&g, 0, LINE_MS);
	proc_ended(d.proc, 1, LINE_MS);
}
END_TEST

/* ---- files that a reset needs, at the other side ---- */

static const char *kernel_copy(const char *name)
{
	const char *path = harness_path("%s/%s", harness_tmp(), name);

	proc_ended(proc_start("cp", "cp", bare_elf("reset"), path, NULL), 0, LINE_MS);
	return path;
}

static void start_resettable(struct guest *g, const char *name, const char *kernel)
{
	guest_start(g, name, "-m", "64M", "-k", kernel, NULL);
	guest_expect(g, "^reset ready$", LINE_MS);
}

static unsigned count(const char *text, const char *what)
{
	unsigned n = 0;

	for (const char *p = text; (p = strstr(p, what)); p++)
		n++;
	return n;
}

/* Said once when it comes, and with path and remedy when it is too late. */
START_TEST(kernel_not_there)
{
	const char *kernel = kernel_copy("gone.elf");
	struct guest g;
	struct dest d;
	struct move m;

	start_resettable(&g, "vm", kernel);
	need(unlink(kernel) == 0, "cannot remove %s", kernel);
	if (_i == 0)
		dest_start(&d, "there", "unix:", NULL);
	else
		dest_start(&d, "there", "unix:", "--no-reboot", NULL);
	move_report(move_start(&g, d.uri, NULL), 0, &m, LINE_MS);
	guest_moved(&g, &d);
	if (_i == 0)
		proc_expect_err(d.proc,
				"warning: kernel .*/gone.elf is not on this host: .*"
				"'godwit receive -k FILE'",
				LINE_MS);
	guest_send(&g, "t");
	guest_ended(&g, _i ? 0 : 1, LINE_MS);
	ck_assert_uint_eq(count(d.proc->err.buf, "warning: "), _i ? 0 : 1);
	if (_i == 0)
		need(strstr(d.proc->err.buf, "gone.elf: No such file") &&
			     strstr(d.proc->err.buf, "'godwit receive -k KERNEL -i INITRD'"),
		     "'%s'", d.proc->err.buf);
}
END_TEST

/* The destination's user knows where it is. */
START_TEST(kernel_elsewhere)
{
	const char *kernel = kernel_copy("gone.elf");
	struct guest g;
	struct dest d;
	struct move m;

	start_resettable(&g, "vm", kernel);
	need(unlink(kernel) == 0, "cannot remove %s", kernel);
	dest_start(&d, "there", "unix:", "-k", kernel_copy("here.elf"), NULL);
	move_report(move_start(&g, d.uri, NULL), 0, &m, LINE_MS);
	guest_moved(&g, &d);
	for (unsigned i = 0; i < 2; i++) {
		guest_send(&g, "t");
		guest_expect(&g, "^reset ready$", LINE_MS);
	}
	ck_assert_uint_eq(count(d.proc->err.buf, "warning: "), 0);
	guest_send(&g, "q");
	guest_ended(&g, 0, LINE_MS);
}
END_TEST

/* ---- what the dead leave behind ---- */

static bool has_file(const char *name, const char *suffix)
{
	return access(harness_path("%s/%s.%s", getenv("GODWIT_RUNDIR"), name, suffix), F_OK) == 0;
}

struct look {
	const char *cmd, *live, *dead;
};

/* The kernel may go on listening for a moment after the process has gone. */
static bool is_cleared_away(void *arg)
{
	const struct look *l = arg;
	struct proc *p = godwit_run(0, l->cmd, NULL);

	need(strstr(p->out.buf, l->live) && !strstr(p->out.buf, l->dead), "'%s'", p->out.buf);
	need(p->err.len == 0, "'%s'", p->err.buf);
	return !has_file(l->dead, "sock") && !has_file(l->dead, "lock");
}

START_TEST(dead_are_cleared_away)
{
	struct guest dead, live;
	struct look look;

	start_resettable(&dead, "dead", bare_elf("reset"));
	start_resettable(&live, "live", bare_elf("reset"));
	proc_kill(dead.proc, SIGKILL);
	proc_wait(dead.proc, LINE_MS);
	need(has_file(dead.name, "sock") && has_file(dead.name, "lock"), "nothing was left");
	look.cmd = _i ? "status" : "list";
	look.live = live.name;
	look.dead = dead.name;
	need(harness_until(is_cleared_away, &look, LINE_MS), "still there");
	need(has_file(live.name, "sock") && has_file(live.name, "lock"), "the living one's, too");
	ck_assert_str_eq(json_text(guest_status(&live), "state"), "running");
	guest_send(&live, "q");
	guest_ended(&live, 0, LINE_MS);
}
END_TEST

/* ---- paused guests ---- */

static bool never(void *arg)
{
	(void)arg;
	return false;
}

/* What was on its way has come by now or comes yet, and after that nothing. */
static void need_silence(struct guest *g)
{
	size_t len;

	ck_assert_str_eq(json_text(guest_status(g), "state"), "paused");
	harness_until(never, NULL, 200);
	len = g->proc->out.len;
	harness_until(never, NULL, 300);
	ck_assert_uint_eq(g->proc->out.len, len);
}

/* Takes the lines up to a pause of this length; none may be missing after number *n. */
static void count_lines(struct guest *g, uint64_t *n, unsigned at_least, int timeout_ms)
{
	const char *line;
	unsigned lines = 0;

	while ((line = guest_next(g, timeout_ms))) {
		ck_assert_uint_eq(kv(line, "n"), ++*n);
		if (++lines == at_least)
			return;
	}
	need(!at_least, "only %u of %u lines", lines, at_least);
}

static void start_counting(struct guest *g, uint64_t *n)
{
	*n = 0;
	guest_start(g, "serial", "-m", "64M", "-k", bare_elf("serial"), NULL);
	count_lines(g, n, 5, LINE_MS);
}

/* It goes on where it stopped. */
static void resume_counting(struct guest *g, uint64_t *n)
{
	count_lines(g, n, 0, 0);
	godwit_run(0, "resume", g->name, NULL);
	ck_assert_str_eq(json_text(guest_status(g), "state"), "running");
	count_lines(g, n, 20, LINE_MS);
	guest_send(g, "q");
	guest_ended(g, 0, LINE_MS);
}

START_TEST(arrives_paused)
{
	struct guest g;
	struct dest d;
	struct move m;
	uint64_t n;

	start_counting(&g, &n);
	dest_start(&d, "there", "unix:", "--paused", NULL);
	move_report(move_start(&g, d.uri, NULL), 0, &m, LINE_MS);
	guest_moved(&g, &d);
	need_silence(&g);
	resume_counting(&g, &n);
}
END_TEST

/* Nobody but its user lets a paused guest run, however far it is moved. */
START_TEST(stays_paused)
{
	struct proc *migrate;
	struct guest g;
	struct dest d;
	struct move m;
	uint64_t n;

	start_counting(&g, &n);
	godwit_run(0, "pause", g.name, NULL);
	need_silence(&g);
	/* Not when a move fails either. */
	dest_start(&d, "refuses", "unix:", "-m", "32M", NULL);
	move_report(move_start(&g, d.uri, NULL), 1, &m, LINE_MS);
	need_silence(&g);
	dest_start(&d, "dies", "unix:", NULL);
	migrate = move_start(&g, slow_link(&d, 10000), NULL);
	need(harness_until(is_migrating, &g, LINE_MS), "it does not begin");
	proc_kill(d.proc, SIGKILL);
	move_report(migrate, 1, &m, LINE_MS);
	need_silence(&g);
	for (int i = 0; i < 3; i++) {
		guest_move(&g, NULL, i % 2 ? "unix:" : "tcp:127.0.0.1:0", "--verify=full", NULL);
		need_silence(&g);
	}
	resume_counting(&g, &n);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("migrate-control");
	TCase *tc;

	if (!harness_kvm_works())
		return harness_skip_all("no KVM guest runs on this host (godwit doctor says why)");
	tc = harness_case(s, "control", 90);
	tcase_add_test(tc, watched);
	tcase_add_loop_test(tc, cancelled, 0, 3);
	tcase_add_loop_test(tc, cancelled_there, 0, 3);
	tcase_add_test(tc, takes_too_long);
	tcase_add_test(tc, left_alone);
	tcase_add_test(tc, nobody_there);
	tcase_add_loop_test(tc, refused, 0, 2);
	tcase_add_test(tc, ends_meanwhile);
	tcase_add_test(tc, stopped_meanwhile);
	tc = harness_case(s, "files", 90);
	tcase_add_loop_test(tc, kernel_not_there, 0, 2);
	tcase_add_test(tc, kernel_elsewhere);
	tcase_add_loop_test(tc, dead_are_cleared_away, 0, 2);
	tc = harness_case(s, "paused", 90);
	tcase_add_test(tc, arrives_paused);
	tcase_add_test(tc, stays_paused);
	return harness_main(s);
}
