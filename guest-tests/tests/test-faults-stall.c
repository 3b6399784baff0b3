/* SPDX-License-Identifier: MIT */
/*
 * A connection that neither breaks nor delivers: each side gives its peer up when it has made no
 * progress for the limit of half a minute. All cases wait at the same time.
 */
#include <string.h>

#include "faults.h"

/* CONN_IDLE_LIMIT, and some. */
#define LIMIT_MS 30000
#define WAIT_MS (LIMIT_MS + 15000)

#define NO_PROGRESS "made no progress for 30 s"
#define NO_ANSWER "does not answer in the time allowed"

struct stall {
	struct guest g;
	struct dest d;
	struct relay *relay;
	struct proc *migrate;
};

static void start(struct stall *s, const char *name, const char *dest, enum relay_dir dir,
		  unsigned type)
{
	guest_start(&s->g, name, "-m", "64M", "-k", bare_elf("dirty"), "-p", "ws=1M rate=256K",
		    NULL);
	proc_fatal(s->g.proc, "^dirty (error|panic) ");
	guest_expect(&s->g, "^dirty ready ", 15000);
	dest_start(&s->d, dest, "unix:", NULL);
	s->relay = relay_start("unix:", s->d.uri);
	relay_act(s->relay, (struct relay_act){.dir = dir, .type = type, .what = RELAY_HOLD});
	s->migrate = move_start(&s->g, s->relay->uri, "--connections=1", NULL);
	relay_wait(s->relay, 0, 30000);
}

static void ended(struct stall *s, int status, const char *error)
{
	struct move m;

	move_report(s->migrate, status, &m, WAIT_MS);
	need(strstr(m.error, error) || strstr(m.error, NO_ANSWER), "%s: %s", s->g.name, m.error);
	need(m.total_ms >= LIMIT_MS, "%s: after %.0f ms", s->g.name, m.total_ms);
}

static void refused(struct stall *s)
{
	proc_ended(s->d.proc, 1, WAIT_MS);
	need(strstr(s->d.proc->err.buf, NO_PROGRESS) || strstr(s->d.proc->err.buf, "the source"),
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
	struct stall pages, ready, running;

	start(&pages, "pages", "pages-dest", TO_DEST, WIRE_PAGES);
	start(&ready, "ready", "ready-dest", TO_SOURCE, WIRE_READY);
	start(&running, "running", "running-dest", TO_SOURCE, WIRE_RUNNING);
	/* Nobody knows anything wrong yet. */
	guest_intact(pages.g.proc);
	guest_intact(running.d.proc);

	ended(&pages, 1, NO_PROGRESS);
	refused(&pages);
	quit(pages.g.proc);

	ended(&ready, 1, NO_PROGRESS);
	refused(&ready);
	quit(ready.g.proc);

	ended(&running, 3, NO_PROGRESS);
	guest_silent(running.g.proc);
	quit(running.d.proc);
	godwit_run(0, "stop", "--force", running.g.name, NULL);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("faults-stall");

	if (!harness_kvm_works())
		return harness_skip_all("no KVM guest runs here");
	tcase_add_test(harness_case(s, "stall", 120), nothing_moves);
	return harness_main(s);
}
