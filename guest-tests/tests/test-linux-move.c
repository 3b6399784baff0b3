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
 * move meets. An emulated host has one slow CPU for all of this and for the move; see also
 * start_flood() for why a watchdog must be patient.
 */
#define WORK                                                                                       \
	"quiet watchdog_thresh=30 gt.mode=stress gt.procs=2 gt.mem=6M gt.rate=50 "                 \
	"gt.clock_us=5000 gt.stuck_ms=60000 gt.verify_ms=300000"

/* A host where a move takes less is so fast that a flood has to start before the move. */
#define SLOW_MOVE_MS 1000

struct journey {
	struct lx x;
	unsigned cpus;
	unsigned flooded;   /* moves that a flood met */
	uint64_t flood;	    /* lines of the next one */
	bool early;	    /* it starts before the move: during it there is no time */
	uint64_t gap_us;    /* the largest that the guest saw */
	uint64_t pages;	    /* that it had verified when last asked */
	double downtime_ms; /* the longest by the engine */
	double total_ms;    /* of all moves */
};

static void set_out(struct journey *j, const char *kernel, const char *cpus)
{
	*j = (struct journey){.cpus = (unsigned)atoi(cpus), .flood = 16};
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

/*
 * Floods are short: on an emulated host a character takes a good part of a millisecond, and while
 * one CPU goes on writing another spends all of that time in a single interrupt.
 */
static void start_flood(struct journey *j)
{
	guest_send(&j->x.g, harness_path("flood=%" PRIu64 "\n", j->flood));
}

/* Takes all of it, in order and complete. Reports do not come in between. */
static void end_flood(struct journey *j)
{
	for (uint64_t i = 0; i < j->flood; i++) {
		const char *line = lx_expect(&j->x, "flood", LX_ANSWER_MS);
		char data[GT_FLOOD_LEN + 1];

		gt_flood_data((uint32_t)i, data);
		ck_assert_uint_eq(kv(line, "i"), i);
		ck_assert_str_eq(kv_text(line, "data"), data);
	}
	ck_assert_uint_eq(kv(lx_expect(&j->x, "flooded", LX_ANSWER_MS), "n"), j->flood);
}

/* Did the move come in the middle of it? If not, the next one will be earlier or longer. */
static void judge_flood(struct journey *j, const char *source, double move_ms)
{
	if (!strstr(source, " flood i=0 "))
		j->early = move_ms < SLOW_MOVE_MS;
	else if (strstr(source, " flooded "))
		j->flood *= 2;
	else
		j->flooded++;
}

/* One move, in the middle of a flood if that is wanted. */
static void move(struct journey *j, const char *uri, bool flood, const char *verify)
{
	struct guest *g = &j->x.g;
	struct proc *source = g->proc, *migrate;
	size_t before;
	struct move m;
	struct dest d;

	lx_ask(&j->x, "z", "reset");
	dest_start(&d, harness_path("vm-%u", g->moves + 1), uri, NULL);
	before = source->out.len;
	if (flood && j->early)
		start_flood(j);
	migrate = move_start(g, d.uri, verify, "--verbose", NULL);
	/* The first round takes most of the time; what is left are the short ones before the pause.
	 */
	if (flood && !j->early) {
		proc_expect_err(migrate, "round ", LX_MOVE_MS);
		start_flood(j);
	}
	move_report(migrate, 0, &m, LX_MOVE_MS);
	need(m.verified > 0, "the engine verified nothing");
	guest_moved(g, &d);
	if (flood) {
		end_flood(j);
		judge_flood(j, source->out.buf + before, m.total_ms);
	}
	look(j);
	j->total_ms += m.total_ms;
	if (m.downtime_ms > j->downtime_ms)
		j->downtime_ms = m.downtime_ms;
	harness_say("move %u, %.4s%s: %.0f ms, %u rounds, paused for %.1f ms; largest gap so far "
		    "%llu ms",
		    g->moves, uri, flood ? " with a flood" : "", m.total_ms, (unsigned)m.rounds,
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
		    "%llu pages verified by it, %u floods met",
		    j->x.g.moves, j->total_ms / 1000, j->downtime_ms,
		    (unsigned long long)j->gap_us / 1000, (unsigned long long)j->pages, j->flooded);
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
	for (unsigned n = 0; n < moves; n++) {
		bool flood = j.flooded < 2 && n % 2 == 0;

		move(&j, n % 2 ? "unix:" : "tcp:127.0.0.1:0", flood,
		     n % 5 == 4 ? "--verify=full" : "--verify=stream");
	}
	/* Whether a move comes in the middle of a flood is the host's pace; nothing may be lost
	 * either way. */
	if (j.flooded < 2 && moves >= 8)
		harness_say("only %u of %u moves met a flood", j.flooded, moves);
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
		    lx_initrd(), "-p", "quiet gt.mode=idle gt.mem=1M", NULL);
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
