/* SPDX-License-Identifier: MIT */
/*
 * Guests that write faster than a link carries, and what --on-timeout makes of their moves.
 *
 * By construction, and however fast the host: a round takes as long as the link needs for the hot
 * set, and in that time the guest writes all of it again, many times over where it is not slowed.
 * What it writes when slowed as far as possible is less than the link carries, of a guest that has
 * a rate; one that writes flat out is for moves that are not to end.
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "../bare/contract.h"
#include "harness.h"

#define LINE_MS 15000
#define MOVE_MS 60000
#define MIB (1ul << 20)

#define LINK_SPEED (4 * MIB)
#define HOT "kind=new ws=6M hot=4M report=0"
#define WITH_RATE HOT " rate=60M catch_up=1000"

/* Work is compared over so much of the guest's own time. */
#define MEASURE_MS 500

static void start_writer(struct guest *g, const char *dirty, const char *work)
{
	guest_start(g, "writer", "--dirty", dirty, "-m", "64M", "-c", "2", "-k", bare_elf("dirty"),
		    "-p", work, NULL);
	proc_fatal(g->proc, BARE_DIRTY_ERROR "| panic ");
	guest_expect(g, "^dirty ready ", LINE_MS);
}

static const char *look(struct guest *g)
{
	guest_send(g, "r");
	return guest_expect(g, "^dirty t_ms=", LINE_MS);
}

/* Pages that it rewrites in a second, by its own clock. */
static uint64_t work_rate(struct guest *g)
{
	const char *from = look(g), *to;
	uint64_t until = harness_now_ms() + (uint64_t)harness_slow(LINE_MS), ms;

	do {
		harness_pump(50);
		to = look(g);
		ms = kv(to, "t_ms") - kv(from, "t_ms");
	} while (ms < MEASURE_MS && harness_now_ms() < until);
	need(ms >= MEASURE_MS, "its clock stands still: %s", to);
	return (kv(to, "writes") - kv(from, "writes")) * 1000 / ms;
}

/* Nothing holds it back any more, and its memory is right. A busy host may well take half. */
static void need_free(struct guest *g, uint64_t rate_before)
{
	uint64_t rate = 0;

	for (unsigned i = 0; i < 10 && rate < rate_before / 3; i++)
		rate = work_rate(g);
	need(rate >= rate_before / 3, "%lu pages a second, it was %lu", (unsigned long)rate,
	     (unsigned long)rate_before);
	guest_send(g, "v");
	guest_expect(g, "^dirty verify .* errors=0$", LINE_MS);
}

static void quit(struct guest *g)
{
	guest_send(g, "q");
	guest_expect(g, "^dirty done .* errors=0$", LINE_MS);
	guest_ended(g, 0, LINE_MS);
}

static unsigned count(const char *text, const char *what)
{
	unsigned n = 0;

	for (; (text = strstr(text, what)); text++)
		n++;
	return n;
}

struct wait {
	struct guest *g;
	unsigned percent;
};

static bool is_slowed(void *arg)
{
	struct wait *w = arg;
	json_t *s = guest_status(w->g);

	return strcmp(json_text(s, "state"), "migrating") == 0 &&
	       json_num(s, "migration.throttle_percent") >= w->percent;
}

/* ---- throttle ---- */

/* It would never end, and it does; the report says what that took of the guest. */
START_TEST(converges)
{
	struct proc *source, *migrate;
	const char *said;
	uint64_t rate;
	struct guest g;
	struct move m;
	struct dest d;

	start_writer(&g, "auto", WITH_RATE);
	source = g.proc;
	rate = work_rate(&g);
	dest_start(&d, "there", "unix:", NULL);
	migrate = move_start(&g, slow_link(&d, LINK_SPEED), "--downtime=100ms", "--timeout=10m",
			     "--on-timeout=throttle", "--verify=full", NULL);
	move_report(migrate, 0, &m, MOVE_MS);
	guest_moved(&g, &d);
	need(json_num(m.json, "throttle.max_percent") >= 30 &&
		     json_num(m.json, "throttle.max_percent") <= 99 &&
		     json_num(m.json, "throttle.guest_slowed_ms") > 100,
	     "%s", json_dumps(json_object_get(m.json, "throttle"), JSON_COMPACT));
	ck_assert_str_eq(json_text(m.json, "on_timeout"), "throttle");
	need(m.pause_ms < harness_slow(50), "a nap was waited for: %.1f ms", m.pause_ms);
	said = source->err.buf;
	need(count(said, "does not converge: the guest dirties ") == 1 && strstr(said, "MiB/s"),
	     "'%s'", said);
	/* Nothing of it has moved along. */
	need_free(&g, rate);
	quit(&g);
}
END_TEST

/* For people, a line of the summary. */
START_TEST(summary)
{
	struct proc *migrate;
	struct guest g;
	struct dest d;

	start_writer(&g, "auto", WITH_RATE);
	dest_start(&d, "there", "tcp:127.0.0.1:0", NULL);
	migrate = godwit_start("migrate", "migrate", "-v", "--downtime=100ms", "--timeout=10m",
			       "--on-timeout=throttle", g.name, slow_link(&d, LINK_SPEED), NULL);
	proc_expect(migrate, "^completed in ", MOVE_MS);
	proc_expect(migrate, "^  the guest was slowed by up to [0-9]+ %, [0-9.]+ s in all$", 1000);
	proc_ended(migrate, 0, LINE_MS);
	need(strstr(migrate->err.buf, ", guest slowed by "), "'%s'", migrate->err.buf);
	guest_moved(&g, &d);
	quit(&g);
}
END_TEST

/* A guest that does converge is left alone. */
START_TEST(not_needed)
{
	struct guest g;
	struct move m;

	start_writer(&g, "auto", HOT " rate=100K");
	guest_move(&g, &m, "unix:", "--on-timeout=throttle", NULL);
	need(json_num(m.json, "throttle.max_percent") == 0 &&
		     json_num(m.json, "throttle.guest_slowed_ms") == 0,
	     "%s", json_dumps(json_object_get(m.json, "throttle"), JSON_COMPACT));
	quit(&g);
}
END_TEST

/*
 * However a move ends in which the guest is slowed, it is let go. The first round takes longer than
 * all of it: at the timeout the guest is slowed in the middle of it.
 */
START_TEST(released)
{
	struct wait w = {.percent = 99};
	uint64_t rate, slow;
	struct proc *migrate;
	struct guest g;
	struct move m;
	struct dest d;

	start_writer(&g, "auto", "kind=new ws=24M hot=4M report=0");
	rate = work_rate(&g);
	dest_start(&d, "there", "unix:", NULL);
	/* Looked after between batches, of which it carries about one a second. */
	migrate = move_start(&g, slow_link(&d, MIB * 1000 / (unsigned long)harness_slow(1000)),
			     harness_path("--timeout=%dms", harness_slow(4000)),
			     "--on-timeout=throttle", NULL);
	w.g = &g;
	need(harness_until(is_slowed, &w, MOVE_MS), "it is not slowed");
	slow = work_rate(&g);
	need(slow < rate / 2, "%lu pages a second, it was %lu", (unsigned long)slow,
	     (unsigned long)rate);
	if (_i == 0)
		godwit_run(0, "cancel", g.name, NULL);
	else
		proc_kill(d.proc, SIGKILL);
	move_report(migrate, 1, &m, LINE_MS);
	ck_assert_str_eq(m.status, _i ? "failed" : "cancelled");
	need(json_num(m.json, "throttle.max_percent") == 99, "%s",
	     json_dumps(json_object_get(m.json, "throttle"), JSON_COMPACT));
	proc_wait(d.proc, LINE_MS);
	need_free(&g, rate);
	quit(&g);
}
END_TEST

/*
 * At the timeout it is slowed as far as possible, and after as long again given up: sooner than the
 * link can have carried the working set once and the hot set again.
 */
START_TEST(throttled_in_vain)
{
	double timeout_ms = 900;
	struct proc *migrate;
	struct guest g;
	struct move m;
	struct dest d;
	uint64_t rate;

	start_writer(&g, "auto", HOT);
	rate = work_rate(&g);
	dest_start(&d, "there", "unix:", NULL);
	migrate =
		move_start(&g, slow_link(&d, LINK_SPEED), "--downtime=1us", "--on-timeout=throttle",
			   harness_path("--timeout=%.0fms", timeout_ms), NULL);
	move_report(migrate, 1, &m, MOVE_MS);
	need(strstr(m.error, "not done within the time allowed"), "'%s'", m.error);
	need(m.total_ms >= 2 * timeout_ms && m.downtime_ms == 0, "after %.0f ms", m.total_ms);
	need(json_num(m.json, "throttle.max_percent") == 99, "%s",
	     json_dumps(json_object_get(m.json, "throttle"), JSON_COMPACT));
	need_free(&g, rate);
	quit(&g);
}
END_TEST

static bool never(void *arg)
{
	(void)arg;
	return false;
}

/* With rings, of two that work only the one that writes; with the log both. */
START_TEST(only_who_writes)
{
	struct wait w = {.percent = 30};
	struct proc *migrate;
	json_t *vcpus;
	struct guest g;
	struct move m;
	struct dest d;

	start_writer(&g, _i ? "log" : "ring", WITH_RATE " cpus=2 writers=1");
	dest_start(&d, "there", "unix:", NULL);
	migrate = move_start(&g, slow_link(&d, LINK_SPEED), "--downtime=1us", "--timeout=1h",
			     "--on-timeout=throttle", NULL);
	w.g = &g;
	need(harness_until(is_slowed, &w, MOVE_MS), "it is not slowed");
	/* Time for both to nap in, and not for the next steps. */
	harness_until(never, NULL, 300);
	godwit_run(0, "cancel", g.name, NULL);
	move_report(migrate, 1, &m, LINE_MS);
	vcpus = json_object_get(json_object_get(m.json, "throttle"), "vcpus");
	need(json_array_size(vcpus) == (_i ? 2 : 1) &&
		     json_num(json_array_get(vcpus, 0), "vcpu") == 0,
	     "%s", json_dumps(vcpus, JSON_COMPACT));
	quit(&g);
}
END_TEST

/* ---- cancel ---- */

static bool is_stuck(void *arg)
{
	json_t *s = guest_status(arg);

	return json_is_false(json_object_get(json_object_get(s, "migration"), "converging")) &&
	       strstr(json_text(s, "migration.not_converging"), "the connection carries ");
}

/* Without a time of its own a move that is hopeless is not gone on with for an hour. */
START_TEST(given_up)
{
	struct proc *migrate;
	const char *status;
	struct guest g;
	struct move m;
	struct dest d;
	uint64_t rate;

	start_writer(&g, "auto", HOT);
	rate = work_rate(&g);
	dest_start(&d, "there", "unix:", NULL);
	migrate = move_start(&g, slow_link(&d, LINK_SPEED), "--downtime=100ms", NULL);
	need(harness_until(is_stuck, &g, MOVE_MS), "it does not notice");
	status = godwit_run(0, "status", g.name, NULL)->out.buf;
	need(strstr(status, ", does not converge\n") &&
		     strstr(status, "it does not converge: the guest dirties "),
	     "'%s'", status);
	move_report(migrate, 1, &m, 2 * MOVE_MS);
	ck_assert_str_eq(m.status, "failed");
	need(m.total_ms >= 30000 && m.rounds > 10, "%lu rounds, %.0f ms", (unsigned long)m.rounds,
	     m.total_ms);
	need(strstr(m.error, "does not converge: the guest dirties ") &&
		     strstr(m.error, "--on-timeout=throttle") && strstr(m.error, "--downtime"),
	     "'%s'", m.error);
	need(count(g.proc->err.buf, "warning: the move of 'writer': does not converge") == 1,
	     "'%s'", g.proc->err.buf);
	need(json_num(m.json, "throttle.max_percent") == 0, "it was slowed");
	proc_ended(d.proc, 1, LINE_MS);
	need_free(&g, rate);
	quit(&g);
}
END_TEST

/* ---- continue ---- */

START_TEST(goes_on)
{
	struct proc *migrate;
	struct guest g;
	struct move m;
	struct dest d;

	start_writer(&g, "auto", HOT);
	dest_start(&d, "there", "unix:", NULL);
	migrate = move_start(&g, slow_link(&d, LINK_SPEED), "--downtime=1us", "--timeout=100ms",
			     "--on-timeout=continue", NULL);
	proc_expect_err(g.proc, "its time is up, it goes on", LINE_MS);
	need(harness_until(is_stuck, &g, MOVE_MS), "it does not go on");
	need(proc_running(migrate), "it has ended");
	need(count(g.proc->err.buf, "its time is up, it goes on") == 1, "'%s'", g.proc->err.buf);
	godwit_run(0, "cancel", g.name, NULL);
	move_report(migrate, 1, &m, LINE_MS);
	need(json_num(m.json, "throttle.max_percent") == 0, "it was slowed");
	quit(&g);
}
END_TEST

static bool has_ring(void)
{
	int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	bool has = fd >= 0 && ioctl(fd, KVM_CHECK_EXTENSION, KVM_CAP_DIRTY_LOG_RING) > 0;

	if (fd >= 0)
		close(fd);
	return has;
}

int main(void)
{
	Suite *s = suite_create("throttle");
	TCase *tc;

	if (!harness_kvm_works())
		return harness_skip_all("no KVM guest runs on this host (godwit doctor says why)");
	tc = harness_case(s, "throttle", 120);
	tcase_add_test(tc, converges);
	tcase_add_test(tc, summary);
	tcase_add_test(tc, not_needed);
	tcase_add_test(tc, throttled_in_vain);
	tcase_add_loop_test(harness_case(s, "released", 120), released, 0, 2);
	tcase_add_loop_test(harness_case(s, "who", 120), only_who_writes, has_ring() ? 0 : 1, 2);
	tcase_add_test(harness_case(s, "cancel", 180), given_up);
	tcase_add_test(harness_case(s, "continue", 120), goes_on);
	return harness_main(s);
}
