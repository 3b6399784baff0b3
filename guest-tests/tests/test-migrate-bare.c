/* SPDX-License-Identifier: MIT */
/*
 * Bare guests that check themselves, moved again and again while they work: memory under every
 * kind of writer, registers, several CPUs, timers, the serial line. Each move goes to a new
 * process.
 *
 * GODWIT_TEST_MOVES is how many moves the memory matrix makes altogether (200).
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "../bare/contract.h"
#include "harness.h"
#include "payload-contract.h"

#define COUNT(a) ((int)(sizeof(a) / sizeof((a)[0])))

#define LINE_MS 15000

/* Beyond what the engine says: other work on a small host, on the CPUs of either side. */
#define GAP_ABOVE_MS 400
/* What the guest's clock cannot see: the last page before the pause, rounding. */
#define GAP_BELOW_MS 2

static unsigned total_moves;

/* Both transports in turn. */
static const char *uri(unsigned n)
{
	return n % 2 ? "unix:" : "tcp:127.0.0.1:0";
}

static const char *ask(struct guest *g, const char *cmd, const char *answer)
{
	guest_send(g, cmd);
	return guest_expect(g, answer, LINE_MS);
}

/* ---- memory ---- */

static const char *const kinds[] = {"new", "same", "few", "zero", "flip", "idle"};
static const char *const rates[] = {"0", "20M", "200M"};
#define WRITERS (COUNT(kinds) * COUNT(rates))

/* The first few of the matrix have every kind and every rate. */
static unsigned writer_moves(int i)
{
	return total_moves / (unsigned)WRITERS + ((unsigned)i < total_moves % (unsigned)WRITERS);
}

/*
 * The engine counts from before the pause until it knows that the guest runs again; the guest's
 * clock stands from within the pause to somewhere within the commit.
 */
static void need_gap(const struct move *m, const char *line)
{
	double gap_ms = (double)kv(line, "gap_us") / 1000;
	double least = m->downtime_ms - m->pause_ms - m->commit_ms - GAP_BELOW_MS;

	need(gap_ms >= least,
	     "the guest saw %.1f ms, of a downtime of %.1f (pause %.1f, commit %.1f)", gap_ms,
	     m->downtime_ms, m->pause_ms, m->commit_ms);
	need(gap_ms <= m->downtime_ms + harness_slow(GAP_ABOVE_MS),
	     "the guest saw %.1f ms, the engine %.1f", gap_ms, m->downtime_ms);
}

static void need_proof(struct guest *g, const struct move *m)
{
	double pages = json_num(m->json, "ram_bytes") / 4096;

	ck_assert_str_eq(json_text(m->json, "verify"), "full");
	need((double)m->verified >= pages, "%s: %.0f of %.0f pages verified", g->name,
	     (double)m->verified, pages);
	need(m->rounds > 0 && m->wire_bytes > 0 && m->scanned >= m->sent, "%s",
	     json_dumps(m->json, JSON_COMPACT));
	need(json_num(m->json, "zerocopy.tried_bytes") <= (double)m->wire_bytes &&
		     json_num(m->json, "zerocopy.uncopied_bytes") <=
			     json_num(m->json, "zerocopy.tried_bytes"),
	     "%s", json_dumps(m->json, JSON_COMPACT));
}

/* What the report tells of each round adds up to what it tells of the move. */
static void need_rounds(const struct move *m)
{
	const json_t *list = json_object_get(m->json, "per_round"), *r;
	double scanned = 0, sent = 0, bytes = 0, ms = 0;
	size_t i;

	json_array_foreach(list, i, r)
	{
		scanned += json_num(r, "pages");
		sent += json_num(r, "sent");
		bytes += json_num(r, "wire_bytes");
		ms += json_num(r, "ms");
	}
	if (m->rounds > json_array_size(list) && json_array_size(list) == 64)
		return;
	ck_assert_uint_eq(json_array_size(list), m->rounds);
	need(scanned == (double)m->scanned && sent == (double)m->sent &&
		     bytes <= (double)m->wire_bytes && bytes > 0.9 * (double)m->sent * 32 &&
		     ms > 0 && ms <= m->total_ms,
	     "%s", json_dumps(m->json, JSON_COMPACT));
}

/* For a guest that dirties faster than a slow host can send. */
static const char *downtime(void)
{
	return harness_path("--downtime=%dms", harness_slow(300));
}

static const char *connections(unsigned n)
{
	static const char *const some[] = {"--connections=1", "--connections=3", "--connections=8"};

	return some[n % COUNT(some)];
}

static const char *compress(unsigned n)
{
	static const char *const some[] = {"--compress=zstd", "--compress=auto", "--compress=off",
					   "--compress=zstd:2"};

	return some[n % COUNT(some)];
}

START_TEST(writer)
{
	static const char *const ram[] = {"64M", "96M", "128M"};
	const char *kind = kinds[_i % COUNT(kinds)];
	const char *rate = rates[(_i / COUNT(kinds) + _i) % COUNT(rates)];
	int cpus = 1 + _i % 2;
	/* Flat out, what is dirty at the end is the whole set: it has to fit the downtime. */
	const char *args = harness_path("kind=%s rate=%s ws=%s cpus=%d report=0 seed=%d%s", kind,
					rate, rate[0] == '0' ? "8M" : "12M", cpus, _i + 1,
					_i % 4 < 2 ? " content=text" : "");
	uint64_t t_ms = 0, pages, writes = 0;
	const char *line;
	struct guest g;
	struct move m;

	harness_say("%s: %u moves", args, writer_moves(_i));
	guest_start(&g, "w", "-m", ram[_i % 3], "-c", harness_path("%d", cpus), "-k",
		    bare_elf("dirty"), "-p", args, NULL);
	proc_fatal(g.proc, BARE_DIRTY_ERROR "| panic ");
	line = guest_expect(&g, "^dirty ready ", LINE_MS);
	ck_assert_str_eq(kv_text(line, "kind"), kind);
	pages = kv(line, "ws") / 4096;
	for (unsigned n = 0; n < writer_moves(_i); n++) {
		/* The answer says that the gaps have been forgotten. */
		line = ask(&g, "zr", "^dirty t_ms=");
		need(kv(line, "t_ms") >= t_ms, "the clock went back from %lu: %s", t_ms, line);
		t_ms = kv(line, "t_ms");
		guest_move(&g, &m, uri(n + (unsigned)_i), "--verify=full", downtime(),
			   "--timeout=50s", connections(n), compress(n + (unsigned)_i), NULL);
		line = ask(&g, "r", "^dirty t_ms=");
		need(kv(line, "t_ms") >= t_ms, "the clock went back from %lu: %s", t_ms, line);
		t_ms = kv(line, "t_ms");
		need_gap(&m, line);
		need_proof(&g, &m);
		need_rounds(&m);
		need(!strcmp(kind, "idle") || kv(line, "writes") > writes, "it writes no more: %s",
		     line);
		writes = kv(line, "writes");
		if (n % 3 == 2) {
			line = ask(&g, "v", "^dirty verify ");
			need(kv(line, "errors") == 0 && kv(line, "pages") == pages, "%s", line);
		}
	}
	guest_send(&g, "q");
	line = guest_expect(&g, "^dirty verify ", LINE_MS);
	need(kv(line, "errors") == 0 && kv(line, "pages") == pages, "%s", line);
	line = guest_expect(&g, "^dirty done ", LINE_MS);
	ck_assert_uint_eq(kv(line, "errors"), 0);
	guest_ended(&g, 0, LINE_MS);
}
END_TEST

/* The guest's own word for it, without the help of --verify=full. */
START_TEST(unaided)
{
	struct guest g;

	guest_start(&g, "u", "-m", "64M", "-c", "2", "-k", bare_elf("dirty"), "-p",
		    harness_path("kind=%s ws=8M cpus=2 report=0", kinds[_i]), NULL);
	proc_fatal(g.proc, BARE_DIRTY_ERROR "| panic ");
	guest_expect(&g, "^dirty ready ", LINE_MS);
	for (unsigned n = 0; n < 3; n++) {
		guest_move(&g, NULL, uri(n), downtime(), connections(n), compress(n + (unsigned)_i),
			   NULL);
		ck_assert_uint_eq(kv(ask(&g, "v", "^dirty verify "), "errors"), 0);
	}
	guest_send(&g, "q");
	guest_expect(&g, "^dirty done .* errors=0$", LINE_MS);
	guest_ended(&g, 0, LINE_MS);
}
END_TEST

/* RAM on both sides of the hole below 4 GiB, most of it never touched. */
START_TEST(large)
{
	const char *line;
	struct guest g;
	uint64_t words;

	guest_start(&g, "large", "-m", "5G", "-k", bare_elf("touch"), "-p", "stride=4M", NULL);
	proc_fatal(g.proc, "^touch error| panic ");
	words = kv(guest_expect(&g, "^touch ready ", LINE_MS), "words");
	for (unsigned n = 0; n < 2; n++) {
		guest_move(&g, NULL, uri(n), NULL);
		line = ask(&g, "v", "^touch verify ");
		need(kv(line, "errors") == 0 && kv(line, "words") == words, "%s", line);
	}
	guest_send(&g, "q");
	guest_expect(&g, "^touch done .* errors=0$", LINE_MS);
	guest_ended(&g, 0, LINE_MS);
}
END_TEST

/* ---- CPUs ---- */

static unsigned few_moves(void)
{
	return total_moves < 50 ? 3 : 10;
}

START_TEST(registers)
{
	uint64_t checks;
	const char *line;
	struct guest g;

	guest_start(&g, "fpu", "-m", "64M", "-c", "2", "-k", bare_elf("fpu"), "-p",
		    "cpus=2 report=0", NULL);
	proc_fatal(g.proc, BARE_FPU_ERROR "| panic ");
	if (strstr(guest_expect(&g, "^fpu (ready|skip) ", LINE_MS), " skip "))
		harness_skip("the host cannot run it");
	checks = kv(ask(&g, "v", "^fpu checks="), "checks");
	for (unsigned n = 0; n < few_moves(); n++) {
		guest_move(&g, NULL, uri(n), "--verify=full", NULL);
		/* The answer may still be of before; the one after that is not. */
		line = ask(&g, "v", "^fpu checks=");
		line = ask(&g, "v", "^fpu checks=");
		need(kv(line, "errors") == 0 && kv(line, "checks") > checks, "%s", line);
		checks = kv(line, "checks");
	}
	guest_send(&g, "q");
	guest_expect(&g, "^fpu done .* errors=0$", LINE_MS);
	guest_ended(&g, 0, LINE_MS);
}
END_TEST

START_TEST(smp)
{
	const char *cpus = _i ? "4" : "2", *line;
	uint64_t ipis;
	struct guest g;

	guest_start(&g, "smp", "-m", "64M", "-c", cpus, "-k", bare_elf("smp"), "-p", "report=0",
		    NULL);
	proc_fatal(g.proc, BARE_SMP_ERROR "| panic ");
	ck_assert_str_eq(kv_text(guest_expect(&g, "^smp cpus=", LINE_MS), "cpus"), cpus);
	ipis = kv(ask(&g, "r", "^smp tick="), "ipis");
	for (unsigned n = 0; n < few_moves(); n++) {
		guest_move(&g, NULL, uri(n), "--verify=full", "--downtime=300ms", NULL);
		/* min is the least any CPU did since the line before: all of that after the move.
		 */
		ask(&g, "r", "^smp tick=");
		do {
			line = ask(&g, "r", "^smp tick=");
		} while (kv(line, "min") == 0 || kv(line, "ipis") <= ipis);
		ipis = kv(line, "ipis");
		ck_assert_uint_eq(kv(line, "errors"), 0);
	}
	guest_send(&g, "q");
	guest_expect(&g, "^smp done .* errors=0 ", LINE_MS);
	guest_ended(&g, 0, LINE_MS);
}
END_TEST

/*
 * Long as it may be, the pause is not longer than a few short rounds more would make it: at 8 MiB/s
 * 4 MiB take half a second, in which the guest writes what takes 60 ms, and so on.
 */
START_TEST(shorter_than_allowed)
{
	struct guest g;
	struct move m;

	guest_start(&g, "w", "-m", "64M", "-k", bare_elf("dirty"), "-p",
		    "kind=new rate=1M ws=4M report=0", NULL);
	proc_fatal(g.proc, BARE_DIRTY_ERROR "| panic ");
	guest_expect(&g, "^dirty ready ", LINE_MS);
	guest_move(&g, &m, uri(0), "--downtime=20s", "--bandwidth=8M", "--compress=off", NULL);
	need(m.rounds >= 3, "%s", json_dumps(m.json, JSON_COMPACT));
	guest_send(&g, "q");
	guest_expect(&g, "^dirty done .* errors=0$", LINE_MS);
	guest_ended(&g, 0, LINE_MS);
}
END_TEST

/* CPUs that the guest never started, and more of them than the host has. */
START_TEST(idle_cpus)
{
	struct guest g;

	guest_start(&g, "idle", "-m", "64M", "-c", "64", "-k", bare_elf("dirty"), "-p", "ws=4M",
		    NULL);
	guest_expect(&g, "^dirty ready ", LINE_MS);
	guest_move(&g, NULL, uri(0), "--verify=full", "--downtime=300ms", NULL);
	guest_send(&g, "q");
	guest_expect(&g, "^dirty done .* errors=0$", LINE_MS);
	guest_ended(&g, 0, LINE_MS);
}
END_TEST

static const char *const timers[] = {
	"lapic=deadline pit=ioapic",
	"lapic=periodic pit=pic",
	"lapic=deadline pit=off",
};

START_TEST(timer)
{
	bool has_lapic, has_pit;
	const char *line;
	struct guest g;

	guest_start(&g, "timer", "-m", "64M", "-k", bare_elf("timer"), "-p",
		    harness_path("%s report=0", timers[_i]), NULL);
	proc_fatal(g.proc, BARE_TIMER_ERROR "| panic ");
	line = guest_expect(&g, "^timer (ready|skip) ", LINE_MS);
	if (strstr(line, " skip "))
		harness_skip("%s: %s", timers[_i], kv_text(line, "why"));
	has_lapic = strcmp(kv_text(line, "src"), "none");
	has_pit = strcmp(kv_text(line, "pit"), "none");
	for (unsigned n = 0; n < few_moves(); n++) {
		uint64_t lapic, pit;
		unsigned asked = 0;

		guest_move(&g, NULL, uri(n), "--verify=full", NULL);
		line = ask(&g, "r", "^timer ticks=");
		lapic = kv(line, "lapic");
		pit = kv(line, "pit");
		/* Each timer goes on ticking on this side. */
		do {
			need(asked++ < 2000, "a timer stands still: %s", line);
			line = ask(&g, "r", "^timer ticks=");
		} while ((has_lapic && kv(line, "lapic") < lapic + 3) ||
			 (has_pit && kv(line, "pit") < pit + 3));
	}
	guest_send(&g, "q");
	guest_expect(&g, "^timer done .* lost=0 ", LINE_MS);
	guest_ended(&g, 0, LINE_MS);
}
END_TEST

/* ---- the serial line ---- */

/* Takes the lines that are there. Each must be the next one, whole. */
static void check_lines(struct guest *g, uint64_t *n, int timeout_ms)
{
	const char *line;

	while ((line = guest_next(g, timeout_ms))) {
		if (!strncmp(line, "serial got=", 11))
			continue;
		(*n)++;
		ck_assert_str_eq(line, harness_path(SERIAL_FMT, *n, SERIAL_CHECK(*n)));
		timeout_ms = 0;
	}
}

START_TEST(serial)
{
	uint64_t n = 0, before;
	const char *line;
	struct guest g;

	guest_start(&g, "serial", "-m", "64M", "-k", bare_elf("serial"), NULL);
	check_lines(&g, &n, LINE_MS);
	for (unsigned i = 0; i < few_moves(); i++) {
		struct proc *migrate;
		struct move m;
		struct dest d;

		dest_start(&d, harness_path("serial-%u", i + 1), uri(i), NULL);
		migrate = move_start(&g, d.uri, "--verify=full", NULL);
		while (proc_running(migrate)) {
			check_lines(&g, &n, 0);
			harness_pump(5);
		}
		move_report(migrate, 0, &m, LINE_MS);
		guest_moved(&g, &d);
		before = n;
		while (n < before + 20)
			check_lines(&g, &n, LINE_MS);
	}
	guest_send(&g, "q");
	while ((line = guest_next(&g, LINE_MS)) && strncmp(line, "serial done", 11)) {
		n++;
		ck_assert_str_eq(line, harness_path(SERIAL_FMT, n, SERIAL_CHECK(n)));
	}
	ck_assert_ptr_nonnull(line);
	ck_assert_str_eq(line, harness_path(SERIAL_DONE_FMT, n));
	guest_ended(&g, 0, LINE_MS);
}
END_TEST

/* Input reaches the guest wherever it is, each byte once. */
START_TEST(input)
{
	struct guest g;

	guest_start(&g, "input", "-m", "64M", "-k", bare_elf("serial"), "-p", "report=10", NULL);
	guest_expect(&g, "^serial n=1 ", LINE_MS);
	for (unsigned i = 0; i < few_moves(); i++) {
		guest_send(&g, harness_path("%c", 'A' + (int)i));
		guest_expect(&g, harness_path("^serial got=%u count=%u$", 'A' + i, 2 * i + 1),
			     LINE_MS);
		guest_move(&g, NULL, uri(i), NULL);
		guest_send(&g, harness_path("%c", 'a' + (int)i));
		guest_expect(&g, harness_path("^serial got=%u count=%u$", 'a' + i, 2 * i + 2),
			     LINE_MS);
	}
	guest_send(&g, "q");
	guest_ended(&g, 0, LINE_MS);
}
END_TEST

static bool is_taken(void *arg)
{
	struct guest *g = arg;
	int waiting = -1;

	return g->proc->inlen == 0 && ioctl(g->proc->in, FIONREAD, &waiting) == 0 && waiting == 0;
}

/* What has been typed and the guest has not read yet goes with it, more than its UART holds. */
START_TEST(input_travels)
{
	static const char typed[] = "what has been typed and not been read yet";
	struct guest g;

	guest_start(&g, "typed", "-m", "64M", "-k", bare_elf("serial"), "-p", "report=10", NULL);
	guest_expect(&g, "^serial n=1 ", LINE_MS);
	godwit_run(0, "pause", g.name, NULL);
	guest_send(&g, typed);
	need(harness_until(is_taken, &g, LINE_MS), "godwit does not read its input");
	for (unsigned i = 0; i < 2; i++)
		guest_move(&g, NULL, uri(i), NULL);
	godwit_run(0, "resume", g.name, NULL);
	for (unsigned i = 0; typed[i]; i++)
		ck_assert_str_eq(guest_expect(&g, "^serial got=", LINE_MS),
				 harness_path(SERIAL_GOT_FMT, (unsigned long)typed[i], i + 1UL));
	guest_send(&g, "q");
	guest_ended(&g, 0, LINE_MS);
}
END_TEST

/* ---- the machine at the destination is a whole one: it resets, and moves on ---- */

START_TEST(reset_after_move)
{
	static const char *const ways[] = {"c", "k", "t"};
	struct guest g;

	guest_start(&g, "reset", "-m", "64M", "-c", "2", "-k", bare_elf("reset"), NULL);
	guest_expect(&g, "^reset ready$", LINE_MS);
	for (unsigned i = 0; i < 3; i++) {
		guest_move(&g, NULL, uri(i), "--verify=full", NULL);
		guest_send(&g, ways[i]);
		guest_expect(&g, "^reset ready$", LINE_MS);
	}
	guest_move(&g, NULL, uri(0), "--verify=full", NULL);
	guest_send(&g, "q");
	guest_ended(&g, 0, LINE_MS);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("migrate-bare");
	TCase *tc;
	int writers;

	if (!harness_kvm_works())
		return harness_skip_all("no KVM guest runs on this host (godwit doctor says why)");
	total_moves = harness_env("GODWIT_TEST_MOVES", 200);
	writers = total_moves < (unsigned)WRITERS ? (int)total_moves : WRITERS;

	tc = harness_case(s, "writers", 60 + 10 * (total_moves / (unsigned)WRITERS));
	tcase_add_loop_test(tc, writer, 0, writers);
	tc = harness_case(s, "unaided", 120);
	tcase_add_loop_test(tc, unaided, 0, COUNT(kinds));
	tc = harness_case(s, "rounds", 120);
	tcase_add_test(tc, shorter_than_allowed);
	tc = harness_case(s, "large", 180);
	tcase_add_test(tc, large);
	tc = harness_case(s, "cpus", 180);
	tcase_add_test(tc, registers);
	tcase_add_loop_test(tc, smp, 0, 2);
	tcase_add_test(tc, idle_cpus);
	tcase_add_loop_test(tc, timer, 0, COUNT(timers));
	tc = harness_case(s, "serial", 120);
	tcase_add_test(tc, serial);
	tcase_add_test(tc, input);
	tcase_add_test(tc, input_travels);
	tc = harness_case(s, "reset", 120);
	tcase_add_test(tc, reset_after_move);
	return harness_main(s);
}
