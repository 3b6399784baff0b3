/* SPDX-License-Identifier: MIT */
/*
 * Linux guests go back and forth between processes while theirs work: nothing that they hold may
 * change, no clock may go back, no character of their serial line may be lost or doubled.
 *
 * Environment: GODWIT_TEST_MOVES  how often a guest moves (20)
 */
#include <stdlib.h>
#include <time.h>

#include "test-linux.h"

/*
 * Little of everything, and a good deal of time in between: what counts is the kind of work that a
 * move meets.
 */
#define WORK "quiet " LX_PATIENCE "gt.mode=stress gt.procs=2 gt.mem=6M gt.rate=50 gt.clock_us=5000"

#define FLOOD_EVERY 3 /* moves: both transports */

struct journey {
	struct lx x;
	unsigned cpus;
	unsigned floods, cut; /* moves amid a flood; those of them that cut a line in two */
	uint64_t gap_us;      /* the largest that the guest saw */
	uint64_t pages;	      /* that it had verified when last asked */
	double downtime_ms;   /* the longest by the engine */
	double total_ms;      /* of all moves */
};

static void set_out(struct journey *j, const char *kernel, const char *cpus)
{
	*j = (struct journey){.cpus = (unsigned)atoi(cpus)};
	guest_start(&j->x.g, "vm", "-m", "96M", "-c", cpus, "-k", lx_kernel(kernel), "-i",
		    lx_initrd(), "-p", WORK, NULL);
	lx_ready(&j->x, j->cpus);
	while (kv(lx_expect(&j->x, "", LX_BOOT_MS), "full") == 0)
		;
}

/* A report that was asked for: everybody lives, and has moved on since the last. */
static void look(struct journey *j)
{
	const char *report = lx_ask(&j->x, "r", "");
	uint64_t workers = kv(j->x.ready, "workers"), pages;

	/* A worker may have had no time yet since the last look. */
	for (int i = 0; kv(report, "alive") != workers || kv(report, "pages") <= j->pages; i++) {
		need(i < 30, "not all workers move: '%s'", report);
		report = lx_expect(&j->x, "", LX_ANSWER_MS);
	}
	pages = kv(report, "pages");
	need(kv(report, "full") == 1, "'%s'", report);
	j->pages = pages;
	if (kv(report, "gap_us") > j->gap_us)
		j->gap_us = kv(report, "gap_us");
}

/* ---- floods ---- */

/*
 * A flood is as long as it has to be for a move to come in the middle of it, however fast the host:
 * its first line is there before the move begins, and it is told to end only when lines have come
 * that the destination alone can have written.
 */

static void check_flood(const char *body, uint64_t i)
{
	char data[GT_FLOOD_LEN + 1];

	ck_assert_uint_eq(kv(body, "i"), i);
	gt_flood_data((uint32_t)i, data);
	ck_assert_str_eq(kv_text(body, "data"), data);
}

static void start_flood(struct journey *j)
{
	guest_send(&j->x.g, GT_CMD_FLOOD "0\n");
	check_flood(lx_expect(&j->x, "flood", LX_ANSWER_MS), 0);
}

/* Takes line i, which must be the next one. False if it is the end instead, after i lines. */
static bool flood_line(struct journey *j, uint64_t i)
{
	const char *text, *body = NULL;

	while (!body && (text = proc_next(j->x.g.proc, LX_ANSWER_MS)))
		body = lx_take(&j->x, text);
	need(body, "line %llu of a flood does not come", (unsigned long long)i);
	if (strcmp(j->x.word, "flooded") == 0) {
		ck_assert_uint_eq(kv(body, "n"), i);
		return false;
	}
	ck_assert_str_eq(j->x.word, "flood");
	check_flood(body, i);
	return true;
}

/* The rest of the flood, all of it and in order. source: what that side has written in all. */
static void end_flood(struct journey *j, const char *source)
{
	uint64_t here = 0, i = 1;
	const char *p = source;

	while ((p = strstr(p, " flood i=")) && (p = strchr(p, '\n')))
		here++;
	need(here > 0 && !strstr(source, " flooded "), "the flood was over before the move");
	/* One line may be half the source's. */
	while (i < here + 2)
		need(flood_line(j, i++), "it ended by itself");
	guest_send(&j->x.g, GT_CMD_ECHO "enough\n");
	while (flood_line(j, i))
		i++;
	ck_assert_str_eq(lx_expect(&j->x, "echo", LX_ANSWER_MS), "echo enough");
	j->floods++;
	j->cut += source[strlen(source) - 1] != '\n';
	harness_say("a flood of %llu lines, %llu of them from the source", (unsigned long long)i,
		    (unsigned long long)here);
}

/* ---- moves ---- */

/* One move, in the middle of a flood if that is wanted. */
static void move(struct journey *j, const char *uri, bool flood, const char *verify)
{
	struct guest *g = &j->x.g;
	struct proc *source = g->proc;
	size_t before;
	struct move m;
	struct dest d;

	lx_ask(&j->x, GT_CMD_ZERO, "reset");
	dest_start(&d, harness_path("vm-%u", g->moves + 1), uri, NULL);
	before = source->out.len;
	if (flood)
		start_flood(j);
	move_report(move_start(g, d.uri, verify, NULL), 0, &m, LX_MOVE_MS);
	need(m.verified > 0, "the engine verified nothing");
	guest_moved(g, &d);
	if (flood)
		end_flood(j, source->out.buf + before);
	look(j);
	j->total_ms += m.total_ms;
	if (m.downtime_ms > j->downtime_ms)
		j->downtime_ms = m.downtime_ms;
	harness_say("move %u, %.4s%s: %.0f ms, %u rounds, paused for %.1f ms; largest gap so far "
		    "%llu ms",
		    g->moves, uri, flood ? " amid a flood" : "", m.total_ms, (unsigned)m.rounds,
		    m.downtime_ms, (unsigned long long)j->gap_us / 1000);
}

/* Its clock still tells the time, it verifies all it holds, and ends well. */
static void arrive(struct journey *j)
{
	long long before = time(NULL), date = strtoll(lx_fact(lx_info(&j->x), "date"), NULL, 10);

	need(date >= before - 2 && date <= time(NULL) + 2, "it is %lld here, %lld there", before,
	     date);
	guest_send(&j->x.g, "q\n");
	lx_done(&j->x);
	harness_say("%u moves in %.1f s: paused for %.1f ms at most, guest's largest gap %llu ms, "
		    "%llu pages verified by it, %u moves amid a flood, %u of which cut a line",
		    j->x.g.moves, j->total_ms / 1000, j->downtime_ms,
		    (unsigned long long)j->gap_us / 1000, (unsigned long long)j->pages, j->floods,
		    j->cut);
}

static const struct {
	const char *kernel, *cpus;
} travellers[] = {
	{"6.1/vmlinuz", "1"},
	{"6.1/vmlinux", "2"},
};

START_TEST(back_and_forth)
{
	unsigned moves = harness_env("GODWIT_TEST_MOVES", 20);
	struct journey j;

	set_out(&j, travellers[_i].kernel, travellers[_i].cpus);
	for (unsigned n = 0; n < moves; n++)
		move(&j, n % 2 ? "unix:" : "tcp:127.0.0.1:0", n % FLOOD_EVERY == 0,
		     n % 5 == 4 ? "--verify=full" : "--verify=stream");
	ck_assert_uint_eq(j.floods, (moves + FLOOD_EVERY - 1) / FLOOD_EVERY);
	arrive(&j);
}
END_TEST

START_TEST(newer_kernel)
{
	struct journey j;

	set_out(&j, "6.12/vmlinuz", "2");
	move(&j, "unix:", false, "--verify=full");
	move(&j, "tcp:127.0.0.1:0", false, "--verify=stream");
	move(&j, "unix:", false, "--verify=stream");
	arrive(&j);
}
END_TEST

/* A guest that has moved still resets, from the files that it was booted from. */
START_TEST(reset_after_move)
{
	struct lx x = {.notes = 0};

	guest_start(&x.g, "vm", "-m", "96M", "-c", "2", "-k", lx_kernel("6.1/vmlinuz"), "-i",
		    lx_initrd(), "-p", "quiet " LX_PATIENCE "gt.mode=idle gt.mem=1M", NULL);
	lx_ready(&x, 2);
	guest_move(&x.g, NULL, "unix:", NULL);
	lx_ask(&x, "reboot", "reboot");
	lx_ready(&x, 2);
	guest_move(&x.g, NULL, "tcp:127.0.0.1:0", NULL);
	guest_send(&x.g, "q\n");
	lx_done(&x);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("linux-move");
	TCase *tc;

	if (!harness_linux_works())
		return harness_skip_all(
			"no Linux guest runs on this host (godwit doctor says why)");

	tc = harness_case(s, "back-and-forth", 60 + 20 * harness_env("GODWIT_TEST_MOVES", 20));
	tcase_add_loop_test(tc, back_and_forth, 0, COUNT(travellers));
	tc = harness_case(s, "newer-kernel", 120);
	tcase_add_test(tc, newer_kernel);
	tc = harness_case(s, "reset", 120);
	tcase_add_test(tc, reset_after_move);
	return harness_main(s);
}
