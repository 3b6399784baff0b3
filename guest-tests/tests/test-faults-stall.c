/* SPDX-License-Identifier: MIT */
/*
 * A connection that neither breaks nor delivers: each side gives its peer up when nothing has come
 * from it for --peer-timeout, in whatever phase, and the guest runs on where it is. A peer that is
 * only slow is waited for. All cases of a test wait at the same time.
 */
#include <signal.h>
#include <string.h>

#include "faults.h"

#define LIMIT_MS 2000
/* To notice it, to say so, to end: a busy host takes its time. */
#define MORE_MS 12000
#define WAIT_MS (LIMIT_MS + 2 * MORE_MS)

struct stall {
	struct guest g;
	struct dest d;
	struct relay *relay;
	struct proc *migrate;
};

static const char *limit(int ms)
{
	return harness_path("--peer-timeout=%dms", harness_slow(ms));
}

static void start_at(struct stall *s, const char *name, const char *cmdline, const char *uri,
		     int limit_ms)
{
	guest_start(&s->g, name, "-m", "64M", "-k", bare_elf("dirty"), "-p", cmdline, NULL);
	proc_fatal(s->g.proc, "^dirty (error|panic) ");
	guest_expect(&s->g, "^dirty ready ", 15000);
	dest_start(&s->d, harness_path("%s-dest", name), uri, limit(limit_ms), NULL);
}

/* Starts a move in which this frame, and then nothing more, is held in either direction. */
static void start(struct stall *s, const char *name, enum relay_dir dir, unsigned type)
{
	start_at(s, name, "ws=1M rate=256K", "unix:", LIMIT_MS);
	s->relay = relay_start("unix:", s->d.uri);
	relay_act(s->relay, (struct relay_act){.dir = dir, .type = type, .what = RELAY_HOLD});
	s->migrate = move_start(&s->g, s->relay->uri, "--connections=1", limit(LIMIT_MS), NULL);
	relay_wait(s->relay, 0, 30000);
	relay_hold(s->relay);
}

static void ended(struct stall *s, int status)
{
	struct move m;

	move_report(s->migrate, status, &m, WAIT_MS);
	need(strstr(m.error, "nothing has come from the destination") ||
		     strstr(m.error, "the destination has made no progress"),
	     "%s: %s", s->g.name, m.error);
	need(m.total_ms >= harness_slow(LIMIT_MS) * 0.9 &&
		     m.total_ms < harness_slow(LIMIT_MS + MORE_MS),
	     "%s: after %.0f ms", s->g.name, m.total_ms);
}

static void refused(struct stall *s)
{
	proc_ended(s->d.proc, 1, WAIT_MS);
	need(strstr(s->d.proc->err.buf, "nothing has come from the source") ||
		     strstr(s->d.proc->err.buf, "the source has made no progress"),
	     "%s", s->d.proc->err.buf);
	need(!proc_next(s->d.proc, 0), "%s let its guest run", s->d.name);
}

static void quit(struct proc *p)
{
	guest_intact(p);
	proc_send(p, "q");
	proc_expect(p, "^dirty done .* errors=0$", 10000);
	proc_ended(p, 0, 10000);
}

START_TEST(nothing_moves)
{
	/* Before anything is agreed on, in the rounds, at their ends, at the pause. */
	static const struct {
		const char *name;
		enum relay_dir dir;
		unsigned type;
	} at[] = {
		{"hello", TO_DEST, WIRE_HELLO},	    {"answer", TO_SOURCE, WIRE_HELLO_OK},
		{"pages", TO_DEST, WIRE_PAGES},	    {"end", TO_DEST, WIRE_ROUND_END},
		{"ack", TO_SOURCE, WIRE_ROUND_ACK}, {"state", TO_DEST, WIRE_STATE},
		{"ready", TO_SOURCE, WIRE_READY},
	};
	enum { N = sizeof(at) / sizeof(at[0]) };
	struct stall s[N];

	for (unsigned i = 0; i < N; i++)
		start(&s[i], at[i].name, at[i].dir, at[i].type);
	for (unsigned i = 0; i < N; i++) {
		ended(&s[i], 1);
		refused(&s[i]);
		quit(s[i].g.proc);
	}
}
END_TEST

/* The handover: who does not know says so, and never guesses. */
START_TEST(handover_stalls)
{
	struct stall commit, running;

	start(&commit, "commit", TO_DEST, WIRE_COMMIT);
	start(&running, "running", TO_SOURCE, WIRE_RUNNING);
	guest_intact(running.d.proc);

	ended(&commit, 3);
	refused(&commit);
	guest_silent(commit.g.proc);
	godwit_run(0, "resolve", "--discard", commit.g.name, NULL);

	ended(&running, 3);
	guest_silent(running.g.proc);
	quit(running.d.proc);
	godwit_run(0, "resolve", "--discard", running.g.name, NULL);
}
END_TEST

static bool is_sending(void *arg)
{
	json_t *m = json_object_get(guest_status(arg), "migration");

	return m && json_object_get(m, "round") && json_num(m, "wire_bytes") > 500000;
}

/* The process is there, and its sockets take what they have room for; on several connections. */
START_TEST(stopped_process)
{
	struct stall s;
	struct move m;

	/* Seconds of sending, of which a stopped destination's sockets would take most. */
	start_at(&s, "stopped", "ws=24M rate=256K kind=new",
		 _i ? "tcp:127.0.0.1:0" : "unix:", LIMIT_MS);
	s.migrate = move_start(&s.g, s.d.uri, "--connections=3", limit(LIMIT_MS), "--bandwidth=1M",
			       "--compress=off", NULL);
	need(harness_until(is_sending, &s.g, 20000), "no round has begun");
	proc_kill(s.d.proc, SIGSTOP);
	move_report(s.migrate, 1, &m, WAIT_MS);
	need(strstr(m.error, "nothing has come from the destination for"), "%s", m.error);
	need(m.total_ms < harness_slow(LIMIT_MS + MORE_MS), "after %.0f ms", m.total_ms);
	proc_kill(s.d.proc, SIGCONT);
	proc_ended(s.d.proc, 1, WAIT_MS);
	quit(s.g.proc);
}
END_TEST

/* ---- slow is not dead ---- */

static bool never(void *arg)
{
	(void)arg;
	return false;
}

static void wait_ms(int ms)
{
	harness_until(never, NULL, ms);
}

/* Again and again nothing moves for a good part of the limit, in the rounds and at the pause. */
START_TEST(held_for_a_while)
{
	static const unsigned types[] = {WIRE_HELLO, WIRE_PAGES, WIRE_ROUND_END, WIRE_STATE};
	enum { N = sizeof(types) / sizeof(types[0]) };
	struct stall s;
	struct move m;

	start_at(&s, "held", "ws=1M rate=256K", "tcp:127.0.0.1:0", 4 * LIMIT_MS);
	s.relay = relay_start("tcp:127.0.0.1:0", s.d.uri);
	for (unsigned i = 0; i < N; i++)
		relay_act(s.relay,
			  (struct relay_act){.dir = TO_DEST, .type = types[i], .what = RELAY_HOLD});
	s.migrate = move_start(&s.g, s.relay->uri, "--connections=1", limit(4 * LIMIT_MS),
			       "--downtime=10s", NULL);
	for (unsigned i = 0; i < N; i++) {
		relay_wait(s.relay, i, 30000);
		relay_hold(s.relay);
		wait_ms(LIMIT_MS * 3 / 2);
		relay_go(s.relay);
	}
	move_report(s.migrate, 0, &m, 30000);
	need(m.total_ms >= N * LIMIT_MS, "%.0f ms", m.total_ms);
	guest_moved(&s.g, &s.d);
	quit(s.g.proc);
}
END_TEST

/* A batch of pages alone takes longer than the limit. */
START_TEST(trickle)
{
	struct stall s;
	struct move m;

	start_at(&s, "trickle", "ws=512K rate=1K", "tcp:127.0.0.1:0", LIMIT_MS);
	s.migrate = move_start(&s.g, slow_link(&s.d, 80 * 1024), "--connections=1",
			       "--compress=off", "--downtime=20s", limit(LIMIT_MS), NULL);
	move_report(s.migrate, 0, &m, 60000);
	need(m.total_ms >= 2 * LIMIT_MS, "%.0f ms", m.total_ms);
	guest_moved(&s.g, &s.d);
	quit(s.g.proc);
}
END_TEST

START_TEST(refuses_too_little)
{
	godwit_run(2, "migrate", "--peer-timeout=999ms", "vm", "unix:/x", NULL);
	godwit_run(2, "receive", "--peer-timeout=0", "unix:/x", NULL);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("faults-stall");
	TCase *tc;

	if (!harness_kvm_works())
		return harness_skip_all("no KVM guest runs here");
	tc = harness_case(s, "dead", 120);
	tcase_add_test(tc, nothing_moves);
	tcase_add_test(tc, handover_stalls);
	tcase_add_loop_test(tc, stopped_process, 0, 2);
	tc = harness_case(s, "slow", 120);
	tcase_add_test(tc, held_for_a_while);
	tcase_add_test(tc, trickle);
	tcase_add_test(tc, refuses_too_little);
	return harness_main(s);
}
