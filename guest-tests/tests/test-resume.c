/* SPDX-License-Identifier: MIT */
/*
 * Connections that break: the move goes on over another one from where it was, and nobody starts
 * over. The same for a guest that comes home to where an older image of its memory is.
 *
 * GODWIT_TEST_CUTS is how many moves are cut at some point of the stream (8), GODWIT_TEST_SEED
 * which (1), GODWIT_TEST_BASE_MIB the RAM of the guest that comes home (256).
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../../migrate/wire.h"
#include "../bare/contract.h"
#include "harness.h"
#include "relay.h"

#define COUNT(a) ((int)(sizeof(a) / sizeof((a)[0])))
#define LINE_MS 15000
#define MOVE_MS 90000
#define MB ((double)MIB)

/* In the sockets' buffers and the batches of both connections. */
#define FLIGHT_MAX (8 * MB)

static unsigned total_cuts, first_seed;

static void next_dest(struct guest *g, struct dest *d, const char *uri)
{
	dest_start(d, harness_path("%s-%u", g->base, g->moves + 1), uri, "--keep=60s", NULL);
}

/* A move to d over this link, which must get there. */
static void move_over(struct guest *g, struct dest *d, const struct link_plan *plan, struct move *m)
{
	const char *uri = planned_link(d, plan);

	move_report(move_start(g, uri, "--verify=full", "--reconnect=60s", NULL), 0, m, MOVE_MS);
	guest_moved(g, d);
	proc_fatal(g->proc, BARE_DIRTY_ERROR "| panic ");
}

/* ---- at some point ---- */

static uint64_t draw(uint64_t *state, uint64_t below)
{
	*state = *state * 6364136223846793005ULL + 1442695040888963407ULL;
	return (*state >> 33) % below;
}

/*
 * The end is known unless the very last frames were cut: then somebody looks, as a user would, and
 * the guest runs where it is found.
 */
static void settle_uncertain(struct guest *g, struct dest *d)
{
	if (proc_try(d->proc, "^dirty ", 3000)) {
		godwit_run(0, "resolve", "--discard", g->name, NULL);
		guest_follow(g, d);
		return;
	}
	proc_kill(d->proc, SIGKILL);
	proc_wait(d->proc, 10000);
	godwit_run(0, "resolve", "--run", g->name, NULL);
}

START_TEST(anywhere)
{
	uint64_t state = first_seed, bytes, uncertain = 0, cuts = 0;
	struct guest g;
	struct move m;

	dirty_start(&g, "r", "64M", "ws=24M rate=10M report=1");
	guest_move(&g, &m, "unix:", NULL);
	proc_fatal(g.proc, BARE_DIRTY_ERROR "| panic ");
	bytes = m.wire_bytes;
	for (unsigned n = 0; n < total_cuts; n++) {
		struct link_plan plan = {.n_cuts = 1 + (unsigned)draw(&state, 2)};
		struct proc *p;
		struct dest d;
		int code;

		plan.how = draw(&state, 2) ? LINK_RESET : LINK_CLOSE;
		plan.at[0] = draw(&state, bytes);
		plan.at[1] = plan.at[0] + draw(&state, bytes);
		next_dest(&g, &d, n % 2 ? "tcp:127.0.0.1:0" : "unix:");
		p = move_start(&g, planned_link(&d, &plan), "--verify=full", "--reconnect=60s",
			       draw(&state, 2) ? "--connections=1" : "--connections=3", NULL);
		code = proc_wait(p, MOVE_MS);
		need(code == 0 || code == 3, "cut at %llu and %llu of %llu: exit code %d: %s",
		     (unsigned long long)plan.at[0], (unsigned long long)plan.at[1],
		     (unsigned long long)bytes, code, p->err.buf);
		if (code == 3) {
			uncertain++;
			settle_uncertain(&g, &d);
		} else {
			move_report(p, 0, &m, MOVE_MS);
			cuts += (uint64_t)json_num(m.json, "reconnects");
			guest_moved(&g, &d);
		}
		proc_fatal(g.proc, BARE_DIRTY_ERROR "| panic ");
		dirty_intact(&g);
	}
	harness_say("%u moves, %llu connections made anew, %llu with an uncertain end", total_cuts,
		    (unsigned long long)cuts, (unsigned long long)uncertain);
	need(cuts > 0, "no connection broke");
	dirty_finish(&g);
}
END_TEST

/* ---- at each step ---- */

static const struct {
	unsigned type;
	bool to_source;
} steps[] = {
	{WIRE_PAGES, false}, {WIRE_ROUND_END, false}, {WIRE_ROUND_ACK, true},
	{WIRE_STATE, false}, {WIRE_PROOF, false},     {WIRE_READY, true},
};

START_TEST(at_step)
{
	const struct link_plan plan = {
		.n_cuts = 1,
		.at_type = steps[_i].type,
		.to_source = steps[_i].to_source,
	};
	struct guest g;
	struct dest d;
	struct move m;

	dirty_start(&g, "r", "64M", "ws=24M rate=10M report=0");
	next_dest(&g, &d, "unix:");
	move_over(&g, &d, &plan, &m);
	ck_assert_uint_eq((unsigned)json_num(m.json, "reconnects"), 1);
	need(steps[_i].type == WIRE_PAGES || json_num(m.json, "held_pages") > 0, "%s",
	     json_dumps(m.json, JSON_COMPACT));
	dirty_intact(&g);
	dirty_finish(&g);
}
END_TEST

/* ---- half a connection ---- */

/*
 * The source has noticed, and is back at the door; the receiver, which would take its time, is told
 * by that.
 */
START_TEST(half_open)
{
	const struct link_plan plan = {.n_cuts = 1, .at = {20 << 20}, .how = LINK_SILENCE};
	struct guest g;
	struct dest d;
	struct move m;

	dirty_start(&g, "r", "64M", "ws=40M kind=idle report=0");
	dest_start(&d, "half", _i ? "tcp:127.0.0.1:0" : "unix:", "--keep=60s", "--peer-timeout=10m",
		   NULL);
	move_report(move_start(&g, planned_link(&d, &plan), "--verify=full", "--reconnect=60s",
			       "--peer-timeout=2s", NULL),
		    0, &m, MOVE_MS);
	need(json_num(m.json, "reconnects") >= 1, "%s", json_dumps(m.json, JSON_COMPACT));
	need(json_num(m.json, "held_pages") > 1000, "%s", json_dumps(m.json, JSON_COMPACT));
	guest_moved(&g, &d);
	harness_say("%.1f s", m.total_ms / 1000);
	dirty_intact(&g);
	dirty_finish(&g);
}
END_TEST

/* ---- what is sent again ---- */

static double dirtied(const struct move *m, double mib_per_s)
{
	return m->total_ms / 1000 * mib_per_s * MB;
}

START_TEST(sent_once)
{
	const double rate = _i ? 20 : 0;
	struct link_plan plan = {.n_cuts = 3};
	double all, most;
	struct guest g;
	struct move m;
	struct dest d;

	dirty_start(&g, "r", "256M",
		    _i ? "ws=200M kind=new rate=20M report=0" : "ws=200M kind=idle report=0");
	all = 200 * MB;
	for (unsigned i = 0; i < plan.n_cuts; i++)
		plan.at[i] = (uint64_t)(all * (i + 1) / 4);
	next_dest(&g, &d, "unix:");
	move_over(&g, &d, &plan, &m);
	ck_assert_uint_eq((unsigned)json_num(m.json, "reconnects"), plan.n_cuts);
	most = (all + plan.n_cuts * FLIGHT_MAX + dirtied(&m, rate)) * 1.05;
	need((double)m.wire_bytes <= most, "%.1f MiB on the wire for %.0f MiB, at most %.1f",
	     (double)m.wire_bytes / MB, all / MB, most / MB);
	harness_say("%.1f MiB on the wire for %.0f MiB, cut %u times", (double)m.wire_bytes / MB,
		    all / MB, plan.n_cuts);
	dirty_finish(&g);
}
END_TEST

/* ---- by hand ---- */

/* A move that was cut at half of it, and not tried again. */
static void left_half(struct guest *g, struct dest *d, const char *keep)
{
	const struct link_plan plan = {.n_cuts = 1, .at = {50 << 20}};
	struct move m;

	dirty_start(g, "r", "128M", "ws=100M kind=idle report=0");
	dest_start(d, "home", "unix:", keep, NULL);
	move_report(move_start(g, planned_link(d, &plan), NULL), 1, &m, MOVE_MS);
	need(strstr(m.error, "destination closed") || strstr(m.error, "broke"), "%s", m.error);
	proc_expect_err(d->proc, "are kept for .* for the source to come back", 10000);
	dirty_intact(g);
}

START_TEST(migrate_again)
{
	struct guest g;
	struct dest d;
	struct move m;

	left_half(&g, &d, "--keep=60s");
	move_report(move_start(&g, d.uri, "--verify=full", NULL), 0, &m, MOVE_MS);
	need(json_num(m.json, "held_pages") > 5000, "%s", json_dumps(m.json, JSON_COMPACT));
	need((double)m.wire_bytes < 80 * MB, "%.1f MiB", (double)m.wire_bytes / MB);
	guest_moved(&g, &d);
	dirty_intact(&g);
	dirty_finish(&g);
}
END_TEST

START_TEST(another_guest)
{
	struct guest g, other;
	struct dest d;
	struct move m;

	left_half(&g, &d, "--keep=60s");
	guest_start(&other, "o", "-m", "128M", "-k", bare_elf("dirty"), "-p", "ws=8M report=0",
		    NULL);
	guest_expect(&other, "^dirty ready ", LINE_MS);
	move_report(move_start(&other, d.uri, NULL), 1, &m, MOVE_MS);
	need(strstr(m.error, "waits for another guest to come back"), "%s", m.error);
	/* And it still does. */
	move_report(move_start(&g, d.uri, "--verify=full", NULL), 0, &m, MOVE_MS);
	need(json_num(m.json, "held_pages") > 5000, "%s", json_dumps(m.json, JSON_COMPACT));
	guest_moved(&g, &d);
	dirty_finish(&g);
}
END_TEST

/*
 * Somebody who is nobody's source comes first, is let in for as long as it takes to say so, and
 * says nothing, or that he has failed or cancelled. What is kept stays, and who it is kept for is
 * heard after him.
 */
START_TEST(strangers_first)
{
	const unsigned says[] = {0, WIRE_FAIL, WIRE_CANCEL};
	struct wire_prelude p = {
		.version = WIRE_VERSION, .min_version = WIRE_MIN_VERSION, .session = 77};
	struct wire_frame f = {.magic = WIRE_FRAME_MAGIC, .type = (uint16_t)says[_i]};
	struct timeval tv = {.tv_sec = harness_slow(20000) / 1000};
	struct guest g;
	struct dest d;
	struct move m;
	int fd;

	memcpy(p.magic, WIRE_MAGIC, sizeof(p.magic));
	f.check = wire_check_sum(&f, NULL, 0);
	left_half(&g, &d, "--keep=60s");
	fd = relay_connect(d.uri);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
	need(send(fd, &p, sizeof(p), 0) == sizeof(p), "%s", strerror(errno));
	need(recv(fd, &p, sizeof(p), MSG_WAITALL) == sizeof(p), "he is not let in");
	if (f.type)
		need(send(fd, &f, sizeof(f), 0) == sizeof(f), "%s", strerror(errno));
	move_report(move_start(&g, d.uri, "--verify=full", NULL), 0, &m, MOVE_MS);
	need(json_num(m.json, "held_pages") > 5000, "%s", json_dumps(m.json, JSON_COMPACT));
	close(fd);
	guest_moved(&g, &d);
	dirty_finish(&g);
}
END_TEST

START_TEST(kept_no_longer)
{
	struct guest g;
	struct dest d;

	left_half(&g, &d, "--keep=1s");
	proc_expect_err(d.proc, "no guest came to run here: the source has not come back in time",
			20000);
	proc_ended(d.proc, 1, 10000);
	dirty_intact(&g);
	dirty_finish(&g);
}
END_TEST

START_TEST(cancelled_while_away)
{
	const struct link_plan plan = {.n_cuts = 1, .at = {30 << 20}};
	struct proc *p;
	struct guest g;
	struct dest d;
	struct move m;

	dirty_start(&g, "r", "64M", "ws=40M report=0 rate=5M");
	dest_start(&d, "home", "unix:", "--keep=60s", NULL);
	p = move_start(&g, planned_link(&d, &plan), _i ? "--reconnect=2s" : "--reconnect=60s",
		       NULL);
	proc_expect_err(d.proc, "are kept for", 30000);
	/* Nobody is there any more: the source tries in vain. */
	proc_kill(d.proc, SIGKILL);
	proc_wait(d.proc, 10000);
	if (_i == 0)
		godwit_run(-1, "cancel", g.name, NULL);
	move_report(p, 1, &m, MOVE_MS);
	if (_i == 1)
		need(strstr(m.error, "; and then: "), "%s", m.error);
	dirty_intact(&g);
	guest_move(&g, &m, "unix:", "--verify=full", NULL);
	dirty_intact(&g);
	dirty_finish(&g);
}
END_TEST

/* Another receiver in the place of the one that had half of it: it gets all. */
START_TEST(lost)
{
	const struct link_plan plan = {.n_cuts = 1, .at = {30 << 20}};
	struct dest d, other;
	struct proc *p;
	struct guest g;
	struct move m;

	dirty_start(&g, "r", "64M", "ws=40M kind=idle report=0");
	dest_start(&d, "first", "unix:", "--keep=60s", NULL);
	p = move_start(&g, planned_link(&d, &plan), "--reconnect=60s", "--verify=full", NULL);
	proc_expect_err(d.proc, "are kept for", 30000);
	proc_kill(d.proc, SIGKILL);
	proc_wait(d.proc, 10000);
	dest_start(&other, "second", d.uri, NULL);
	move_report(p, 0, &m, MOVE_MS);
	need(json_num(m.json, "held_pages") == 0 && (double)m.wire_bytes > 65 * MB, "%s",
	     json_dumps(m.json, JSON_COMPACT));
	guest_moved(&g, &other);
	dirty_intact(&g);
	dirty_finish(&g);
}
END_TEST

/* ---- more than one at the door ---- */

static bool in_precopy(void *arg)
{
	const json_t *migration = json_object_get(guest_status(arg), "migration");
	const char *phase = json_string_value(json_object_get(migration, "phase"));

	return phase && strcmp(phase, "pre-copy") == 0;
}

START_TEST(busy)
{
	struct guest g, other;
	struct proc *p;
	struct dest d;
	struct move m;

	dirty_start(&g, "r", "64M", "ws=40M kind=idle report=0");
	guest_start(&other, "o", "-m", "64M", "-k", bare_elf("dirty"), "-p", "ws=8M report=0",
		    NULL);
	guest_expect(&other, "^dirty ready ", LINE_MS);
	next_dest(&g, &d, "unix:");
	p = move_start(&g, slow_link(&d, 4 << 20), NULL);
	need(harness_until(in_precopy, &g, 10000), "no pre-copy");
	move_report(move_start(&other, d.uri, NULL), 1, &m, MOVE_MS);
	need(strstr(m.error, "is taking in another guest"), "%s", m.error);
	move_report(p, 0, &m, MOVE_MS);
	guest_moved(&g, &d);
	dirty_intact(&g);
	dirty_finish(&g);
}
END_TEST

/* ---- home ---- */

START_TEST(comes_home)
{
	unsigned mib = harness_env("GODWIT_TEST_BASE_MIB", 256);
	unsigned ws = mib - 56, hot = ws / 20;
	const char *image = harness_path("%s/ram", harness_tmp());
	const char *leave = harness_path("--leave=%s", image);
	double content = ws * MB;
	struct guest g;
	struct dest d;
	struct move m;

	dirty_start(&g, "r", harness_path("%uM", mib),
		    harness_path("ws=%uM hot=%uM kind=new rate=40M report=0", ws, hot));
	dest_start(&d, "away", "unix:", NULL);
	move_report(move_start(&g, d.uri, leave, NULL), 0, &m, MOVE_MS);
	guest_moved(&g, &d);
	need(access(image, R_OK) == 0, "no %s", image);
	/* Long enough to have written all of the hot part. */
	dirty_intact(&g);
	dest_start(&d, "home", "unix:", harness_path("--base=%s", image), NULL);
	move_report(move_start(&g, d.uri, "--verify=full", NULL), 0, &m, MOVE_MS);
	guest_moved(&g, &d);
	harness_say("%.2f %% of %u MiB on the wire", 100 * (double)m.wire_bytes / content, ws);
	need(json_num(m.json, "held_pages") * 4096 > content * 0.9, "%s",
	     json_dumps(m.json, JSON_COMPACT));
	need((double)m.wire_bytes < 0.08 * content + dirtied(&m, 40), "%.1f MiB of %u",
	     (double)m.wire_bytes / MB, ws);
	dirty_intact(&g);
	dirty_finish(&g);
}
END_TEST

/* Where it cannot be left the guest has moved all the same, and whoever asked for it is told. */
START_TEST(cannot_leave)
{
	const char *image = harness_path("%s/nowhere/ram", harness_tmp());
	struct proc *migrate;
	struct guest g;
	struct dest d;
	struct move m;

	dirty_start(&g, "r", "64M", "ws=8M rate=4M report=0");
	dest_start(&d, "away", "unix:", NULL);
	migrate = move_start(&g, d.uri, harness_path("--leave=%s", image), NULL);
	move_report(migrate, 0, &m, MOVE_MS);
	need(strstr(json_text(m.json, "leave_error"), image), "%s",
	     json_dumps(m.json, JSON_COMPACT));
	need(strstr(migrate->err.buf, "has moved, but") && strstr(migrate->err.buf, image), "'%s'",
	     migrate->err.buf);
	guest_moved(&g, &d);
	dirty_intact(&g);
	dirty_finish(&g);
}
END_TEST

/* An image of something else is a bad guess, and no more. */
START_TEST(other_image)
{
	const char *image = harness_path("%s/ram", harness_tmp());
	FILE *f = fopen(image, "w");
	struct guest g;
	struct dest d;
	struct move m;

	ck_assert_ptr_nonnull(f);
	for (unsigned i = 0; i < (_i ? 64U : 63U) << 20; i += 8)
		fwrite("nonsense", 8, 1, f);
	fclose(f);
	dirty_start(&g, "r", "64M", "ws=24M rate=10M report=0");
	dest_start(&d, "home", "unix:", harness_path("--base=%s", image), NULL);
	move_report(move_start(&g, d.uri, "--verify=full", NULL), 0, &m, MOVE_MS);
	if (_i == 0)
		proc_expect_err(d.proc, "it has 66060288 bytes, the guest's RAM has 67108864",
				10000);
	guest_moved(&g, &d);
	dirty_intact(&g);
	dirty_finish(&g);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("resume");
	TCase *tc;

	if (!harness_kvm_works())
		return harness_skip_all("no KVM guest runs here: see godwit doctor");
	total_cuts = harness_env("GODWIT_TEST_CUTS", 8);
	first_seed = harness_env("GODWIT_TEST_SEED", 1);
	tcase_add_test(harness_case(s, "anywhere", 60 + 20 * total_cuts), anywhere);
	tcase_add_loop_test(harness_case(s, "steps", 120), at_step, 0, COUNT(steps));
	tcase_add_loop_test(harness_case(s, "half", 120), half_open, 0, 2);
	tcase_add_loop_test(harness_case(s, "again", 120), sent_once, 0, 2);
	tc = harness_case(s, "hand", 120);
	tcase_add_test(tc, migrate_again);
	tcase_add_test(tc, another_guest);
	tcase_add_loop_test(tc, strangers_first, 0, 3);
	tcase_add_test(tc, kept_no_longer);
	tcase_add_loop_test(tc, cancelled_while_away, 0, 2);
	tcase_add_test(harness_case(s, "lost", 120), lost);
	tcase_add_test(harness_case(s, "busy", 120), busy);
	tc = harness_case(s, "home", 300);
	tcase_add_test(tc, comes_home);
	tcase_add_test(tc, cannot_leave);
	tcase_add_loop_test(tc, other_image, 0, 2);
	return harness_main(s);
}
