/* SPDX-License-Identifier: MIT */
/*
 * Moves that would never come to their end: --timeout gives them up. The guest loses nothing by it,
 * its user learns why and what to do, and the receiver does not wait for ever.
 *
 * By construction, and however fast the host: the link carries less in the downtime allowed than
 * what the guest rewrites flat out, which so is dirty again after each round.
 */
#include <stdio.h>
#include <string.h>

#include "../bare/contract.h"
#include "harness.h"

#define LINE_MS 15000
#define MIB (1ul << 20)

#define LINK_SPEED (4 * MIB)
#define WORK "kind=new ws=12M report=0"
/*
 * In the second round: one takes 3 s, or more where the host stands still at times; but it does not
 * do so for as long that a guest would write nothing in one.
 */
#define TIMEOUT_MS 5000

static void start_busy(struct guest *g)
{
	guest_start(g, "busy", "-m", "64M", "-k", bare_elf("dirty"), "-p", WORK, NULL);
	proc_fatal(g->proc, BARE_DIRTY_ERROR "| panic ");
	guest_expect(g, "^dirty ready ", LINE_MS);
}

static uint64_t writes_of(struct guest *g)
{
	guest_send(g, "r");
	return kv(guest_expect(g, "^dirty t_ms=", LINE_MS), "writes");
}

static void need_all_right(struct guest *g)
{
	guest_send(g, "v");
	ck_assert_uint_eq(kv(guest_expect(g, "^dirty verify ", LINE_MS), "errors"), 0);
}

/* It works, its memory is right, and nothing keeps it from being moved with more patience. */
static void need_well(struct guest *g)
{
	uint64_t writes = writes_of(g);

	ck_assert_str_eq(json_text(guest_status(g), "state"), "running");
	need_all_right(g);
	need(writes_of(g) > writes, "it writes no more");
	guest_move(g, NULL, "unix:", "--downtime=5s", "--verify=full", NULL);
	need_all_right(g);
	guest_send(g, "q");
	guest_expect(g, "^dirty done .* errors=0$", LINE_MS);
	guest_ended(g, 0, LINE_MS);
}

/* The receiver ends, says on whose account, and has let nothing run. */
static void need_given_up(struct dest *d)
{
	proc_ended(d->proc, 1, LINE_MS);
	need(strstr(d->proc->err.buf, "the source says: not done within the time allowed"),
	     "the receiver says '%s'", d->proc->err.buf);
	need(strncmp(d->proc->out.buf, "listening ", 10) == 0 &&
		     strchr(d->proc->out.buf, '\n') == d->proc->out.buf + d->proc->out.len - 1,
	     "a guest spoke there: '%s'", d->proc->out.buf);
	need(!strstr(godwit_run(0, "list", NULL)->out.buf, d->name), "its name is still taken");
}

static void need_remedies(const char *error)
{
	need(strstr(error, "--timeout") && strstr(error, "--downtime"),
	     "'%s' does not say what to do", error);
}

static const char *timeout_option(void)
{
	return harness_path("--timeout=%dms", harness_slow(TIMEOUT_MS));
}

START_TEST(never_converges)
{
	char dirtying_unit[8], sending_unit[8];
	double dirtying, sending;
	const char *rates;
	uint64_t writes;
	struct proc *migrate;
	struct guest g;
	struct dest d;
	struct move m;

	start_busy(&g);
	writes = writes_of(&g);
	dest_start(&d, "there", _i ? "unix:" : "tcp:127.0.0.1:0", NULL);
	migrate =
		move_start(&g, slow_link(&d, LINK_SPEED), "--downtime=1ms", timeout_option(), NULL);
	move_report(migrate, 1, &m, TIMEOUT_MS + LINE_MS);
	ck_assert_str_eq(m.status, "failed");
	need(m.total_ms >= harness_slow(TIMEOUT_MS) && m.total_ms < harness_slow(3 * TIMEOUT_MS),
	     "it took %.0f ms", m.total_ms);
	need(m.rounds >= 2, "it was still in the first round");
	need(m.downtime_ms == 0, "it was paused for that: %.3f ms", m.downtime_ms);

	/* What was too fast, and what too slow. */
	rates = strstr(m.error, "dirtying ");
	need(rates && sscanf(rates, "dirtying %lf %7[A-Za-z]/s, sending %lf %7[A-Za-z]/s",
			     &dirtying, dirtying_unit, &sending, sending_unit) == 4,
	     "'%s' does not name the rates", m.error);
	need(dirtying > 0 && sending > 0 &&
		     (strcmp(dirtying_unit, "MiB") != 0 || dirtying <= 2 * LINK_SPEED / MIB),
	     "a round of the whole hot set at the speed of the link says otherwise: '%s'", m.error);
	need_remedies(m.error);
	need(strstr(migrate->err.buf, m.error), "stderr does not say so: '%s'", migrate->err.buf);
	ck_assert_str_eq(json_text(guest_status(&g), "migration.error"), m.error);

	need_given_up(&d);
	need(writes_of(&g) > writes, "it stood still");
	need_well(&g);
}
END_TEST

/* The time may be up before there was a single round to measure by. */
START_TEST(first_round)
{
	struct proc *migrate;
	struct guest g;
	struct dest d;

	start_busy(&g);
	dest_start(&d, "there", "unix:", NULL);
	migrate = godwit_start("migrate", "migrate", timeout_option(), g.name, slow_link(&d, MIB),
			       NULL);
	proc_ended(migrate, 1, TIMEOUT_MS + LINE_MS);
	/* There was no second look at what the guest dirties: only what is known is said. */
	need(strstr(migrate->err.buf, "allow more --timeout") &&
		     !strstr(migrate->err.buf, "dirtying"),
	     "'%s'", migrate->err.buf);
	ck_assert_uint_eq(migrate->out.len, 0);
	need(json_num(guest_status(&g), "migration.rounds") == 1, "not in the first round");
	need_given_up(&d);
	need_well(&g);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("migrate-timeout");
	TCase *tc;

	if (!harness_kvm_works())
		return harness_skip_all("no KVM guest runs on this host (godwit doctor says why)");
	tc = harness_case(s, "timeout", 120);
	tcase_add_loop_test(tc, never_converges, 0, 2);
	tcase_add_test(tc, first_round);
	return harness_main(s);
}
