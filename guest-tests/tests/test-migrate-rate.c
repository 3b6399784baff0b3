/* SPDX-License-Identifier: MIT */
/*
 * Moves that may send no more than so much: whether that is held, as a meter between the two sides
 * sees it, what can be changed while a guest moves, and what is told of it meanwhile.
 */
#include <stdio.h>
#include <string.h>

#include "harness.h"
#include "meter.h"

#define LINE_MS 15000
#define MOVE_MS 90000

struct scene {
	struct guest g;
	struct dest d;
	struct meter *meter;
	struct proc *migrate;
};

static void guest_up(struct guest *g, const char *cmdline)
{
	guest_start(g, "capped", "-m", "64M", "-k", bare_elf("dirty"), "-p",
		    harness_path("report=0 %s", cmdline), NULL);
	proc_fatal(g->proc, "^dirty (error|panic) ");
	guest_expect(g, "^dirty ready ", LINE_MS);
}

static void start(struct scene *s, const char *dest, const char *bandwidth, const char *connections,
		  const char *downtime)
{
	dest_start(&s->d, dest, "unix:", NULL);
	s->meter = meter_start(&s->d);
	s->migrate = move_start(&s->g, meter_uri(s->meter), "--compress=off", bandwidth,
				connections, downtime, NULL);
}

static void quit(struct guest *g)
{
	guest_send(g, "q");
	guest_expect(g, "^dirty done .* errors=0$", LINE_MS);
	guest_ended(g, 0, LINE_MS);
}

/* ---- the limit ---- */

/* Of a second: what pieces and credit come to, see migrate/rate.h, and a little. */
#define ABOVE 1.03

static const struct cap {
	const char *bandwidth, *connections;
	double bytes_per_s;
	const char *ws; /* sent in about 3 s */
} caps[] = {
	{"--bandwidth=10Mbit", "--connections=1", 1250000, "4M"},
	{"--bandwidth=10Mbit", "--connections=3", 1250000, "4M"},
	{"--bandwidth=5M", "--connections=1", 5 * 1048576, "16M"},
	{"--bandwidth=40Mbit", "--connections=3", 5000000, "16M"},
};

START_TEST(held)
{
	const struct cap *cap = &caps[_i];
	double mean = 0, worst = 0;
	struct scene s;
	struct move m;

	guest_up(&s.g, harness_path("kind=new rate=64K ws=%s", cap->ws));
	/* Less may be this host's doing, which stands still at times: once must do. */
	for (unsigned n = 0; n < 4; n++) {

		start(&s, harness_path("dest-%u", n), cap->bandwidth, cap->connections,
		      "--downtime=300ms");
		move_report(s.migrate, 0, &m, MOVE_MS);
		worst = (double)meter_worst(s.meter, 1000, 0) / cap->bytes_per_s;
		need(worst <= ABOVE, "%s: %.3f of it in a second", cap->bandwidth, worst);
		need(meter_connections(s.meter) == (unsigned)(cap->connections[14] - '0'),
		     "%u connections", meter_connections(s.meter));
		ck_assert_uint_eq(meter_bytes(s.meter), m.wire_bytes);
		mean = meter_mean(s.meter) / cap->bytes_per_s;
		guest_moved(&s.g, &s.d);
		if (worst >= 0.95 && mean >= 0.7)
			break;
	}
	need(worst >= 0.95 && mean >= 0.7, "%s: only %.2f of it in a second, %.2f in all",
	     cap->bandwidth, worst, mean);
	quit(&s.g);
}
END_TEST

/* What remains is sent no faster when the guest stands still, and that was known before. */
START_TEST(held_at_the_pause)
{
	struct scene s;
	struct move m;

	guest_up(&s.g, "kind=new rate=0 ws=2M");
	/* All of it is always dirty, and takes about 2 s. */
	start(&s, "dest", "--bandwidth=1M", "--connections=1", "--downtime=20s");
	move_report(s.migrate, 0, &m, MOVE_MS);
	need((double)meter_worst(s.meter, 1000, 0) <= ABOVE * 1048576, "%lu bytes in a second",
	     meter_worst(s.meter, 1000, 0));
	need(m.downtime_ms >= 1800, "%.0f ms for 2 MiB", m.downtime_ms);
	need(json_num(m.json, "estimate_downtime_ms") >= 1600, "expected %.0f ms, took %.0f",
	     json_num(m.json, "estimate_downtime_ms"), m.downtime_ms);
	guest_moved(&s.g, &s.d);
	quit(&s.g);
}
END_TEST

/* ---- changes while it runs ---- */

struct amount {
	struct meter *meter;
	uint64_t bytes;
};

static bool has_sent(void *arg)
{
	const struct amount *a = arg;

	return meter_bytes(a->meter) >= a->bytes;
}

static void wait_sent(struct scene *s, uint64_t bytes)
{
	struct amount a = {s->meter, bytes};

	need(harness_until(has_sent, &a, MOVE_MS), "only %lu bytes were sent",
	     meter_bytes(s->meter));
}

static json_t *tune(struct guest *g, const char *option)
{
	return json_of(godwit_run(0, "tune", "--json", option, g->name, NULL)->out.buf);
}

START_TEST(changed)
{
	uint64_t since, bytes;
	struct scene s;
	struct move m;
	json_t *j;

	guest_up(&s.g, "kind=new rate=64K ws=24M");
	/* That would be 48 s. */
	start(&s, "dest", "--bandwidth=4Mbit", "--connections=2", "--downtime=5s");
	wait_sent(&s, 600000);
	j = tune(&s.g, "--bandwidth=64kbit");
	ck_assert(json_num(j, "bandwidth") == 8000 && json_num(j, "downtime_target_ms") == 5000);
	/* What was about to go may have its turn still: a piece of 2500 bytes on each connection.
	 */
	since = harness_now_ms();
	bytes = meter_bytes(s.meter);
	wait_sent(&s, bytes + 24000);
	need((double)meter_worst(s.meter, 1000, since) <= ABOVE * 8000 + 2 * 2500,
	     "%lu bytes in a second", meter_worst(s.meter, 1000, since));
	j = tune(&s.g, "--downtime=6s");
	ck_assert(json_num(j, "bandwidth") == 8000 && json_num(j, "downtime_target_ms") == 6000);
	j = tune(&s.g, "--bandwidth=unlimited");
	ck_assert(json_num(j, "bandwidth") == 0 && json_num(j, "downtime_target_ms") == 6000);
	move_report(s.migrate, 0, &m, MOVE_MS);
	ck_assert(json_num(m.json, "downtime_target_ms") == 6000);
	guest_moved(&s.g, &s.d);
	quit(&s.g);
}
END_TEST

/* Writes faster than may be sent: an end comes only with another pause, or another limit. */
START_TEST(endless)
{
	struct scene s;
	struct move m;
	json_t *j;

	guest_up(&s.g, "kind=new rate=0 ws=4M");
	start(&s, "dest", "--bandwidth=1M", "--connections=1", "--downtime=500ms");
	/* Into the third round, of four seconds each. */
	wait_sent(&s, 9 << 20);
	j = guest_status(&s.g);
	ck_assert_str_eq(json_text(j, "migration.phase"), "pre-copy");
	need(!json_object_get(json_object_get(j, "migration"), "eta_ms"),
	     "nobody can know when that ends: %s", json_dumps(j, JSON_COMPACT));
	need(json_num(j, "migration.round") >= 2 &&
		     json_num(j, "migration.estimate_downtime_ms") > 500 &&
		     json_num(j, "migration.dirty_pages_per_s") > 0,
	     "%s", json_dumps(j, JSON_COMPACT));
	if (_i)
		tune(&s.g, "--bandwidth=0");
	else
		tune(&s.g, "--downtime=20s");
	move_report(s.migrate, 0, &m, MOVE_MS);
	need(_i || m.downtime_ms > 1000, "%.0f ms", m.downtime_ms);
	guest_moved(&s.g, &s.d);
	quit(&s.g);
}
END_TEST

START_TEST(tune_refuses)
{
	struct guest g;
	struct dest d;
	struct proc *p;

	guest_up(&g, "ws=1M");
	p = godwit_run(1, "tune", "--bandwidth=1Gbit", g.name, NULL);
	need(strstr(p->err.buf, "no migration is running"), "%s", p->err.buf);
	dest_start(&d, "dest", "unix:", NULL);
	p = godwit_run(1, "tune", "--bandwidth=1Gbit", d.name, NULL);
	need(strstr(p->err.buf, "tune it there"), "%s", p->err.buf);
	godwit_run(2, "tune", "--bandwidth=1kbit", g.name, NULL);
	godwit_run(2, "tune", "--bandwidth=fast", g.name, NULL);
	godwit_run(2, "tune", "--downtime=0", g.name, NULL);
	godwit_run(2, "tune", NULL);
	quit(&g);
}
END_TEST

/* ---- what is told meanwhile ---- */

START_TEST(told)
{
	double expected, sum = 0;
	const json_t *list, *c;
	struct scene s;
	struct move m;
	struct proc *p;
	json_t *j;
	size_t i;

	guest_up(&s.g, "kind=new rate=64K ws=16M");
	start(&s, "dest", "--bandwidth=8Mbit", "--connections=3", "--downtime=1s");
	wait_sent(&s, 3000000);
	j = json_object_get(guest_status(&s.g), "migration");
	ck_assert_str_eq(json_text(j, "phase"), "pre-copy");
	ck_assert(json_num(j, "round") == 1 && json_num(j, "bandwidth") == 1000000 &&
		  json_num(j, "downtime_target_ms") == 1000);
	list = json_object_get(j, "per_connection");
	ck_assert_uint_eq(json_array_size(list), 3);
	json_array_foreach(list, i, c)
	{
		need(json_num(c, "bytes_per_s") > 50000, "%s", json_dumps(j, JSON_COMPACT));
		sum += json_num(c, "wire_bytes");
	}
	/* Published ten times a second and more, where the host lets it. */
	need(sum >= 2000000 && sum <= json_num(j, "wire_bytes") * 1.1 + 100000, "%s",
	     json_dumps(j, JSON_COMPACT));
	/* Of what is left some is zeros; at no more than the limit it takes at most so long. */
	expected = json_num(j, "remaining_pages") * 4128 / 1000;
	need(json_num(j, "round_eta_ms") > 0 && json_num(j, "round_eta_ms") < expected * 3,
	     "%.0f ms expected: %s", expected, json_dumps(j, JSON_COMPACT));
	need(!json_object_get(j, "eta_ms"), "in the first round: %s", json_dumps(j, JSON_COMPACT));
	p = godwit_run(0, "status", s.g.name, NULL);
	need(strstr(p->out.buf, "8 Mbit/s") && strstr(p->out.buf, "connection 3:") &&
		     strstr(p->out.buf, "to go in this round"),
	     "%s", p->out.buf);
	tune(&s.g, "--bandwidth=0");
	move_report(s.migrate, 0, &m, MOVE_MS);
	guest_moved(&s.g, &s.d);
	quit(&s.g);
}
END_TEST

struct sight {
	struct guest *g;
	double eta_ms, elapsed_ms;
};

static bool sees_end(void *arg)
{
	struct sight *s = arg;
	json_t *j = json_object_get(guest_status(s->g), "migration");

	if (!json_object_get(j, "eta_ms"))
		return false;
	need(json_num(j, "round") >= 2, "in the first round: %s", json_dumps(j, JSON_COMPACT));
	s->eta_ms = json_num(j, "eta_ms");
	s->elapsed_ms = json_num(j, "elapsed_ms");
	return true;
}

/* Rounds become shorter: there is an end to be seen, and it is about then. */
START_TEST(foreseen)
{
	struct scene s;
	struct sight sight = {.g = &s.g};
	struct move m;

	guest_up(&s.g, "kind=new rate=900K ws=12M");
	start(&s, "dest", "--bandwidth=16Mbit", "--connections=1", "--downtime=300ms");
	/* In the second round, which is of about 5.5 MiB; or later, where this program is slow. */
	need(harness_until(sees_end, &sight, MOVE_MS), "nothing was foreseen");
	move_report(s.migrate, 0, &m, MOVE_MS);
	/* It takes 5 s from then; a host that stalls is believed to go on stalling. */
	need(sight.eta_ms < 10000 + 2 * (m.total_ms - sight.elapsed_ms),
	     "%.0f ms were foreseen, it took %.0f", sight.eta_ms, m.total_ms - sight.elapsed_ms);
	guest_moved(&s.g, &s.d);
	quit(&s.g);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("migrate-rate");
	TCase *tc;

	if (!harness_kvm_works())
		return harness_skip_all("no KVM guest runs here");
	tc = harness_case(s, "held", 120);
	tcase_add_loop_test(tc, held, 0, sizeof(caps) / sizeof(caps[0]));
	tcase_add_test(tc, held_at_the_pause);
	tc = harness_case(s, "changed", 120);
	tcase_add_test(tc, changed);
	tcase_add_loop_test(tc, endless, 0, 2);
	tcase_add_test(tc, tune_refuses);
	tc = harness_case(s, "told", 120);
	tcase_add_test(tc, told);
	tcase_add_test(tc, foreseen);
	return harness_main(s);
}
