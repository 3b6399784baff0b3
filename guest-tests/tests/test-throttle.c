/* SPDX-License-Identifier: MIT */
/*
 * Guests that write faster than a link carries, and what --on-timeout makes of their moves.
 *
 * By construction, and however fast the host: a round takes as long as the link needs for the hot
 * set, and in that time the guest writes all of it again, many times over where it is not slowed.
 * What it writes when slowed as far as possible is less than the link carries, of a guest that has
 * a rate; one that writes flat out is for moves that are not to end.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdio.h>
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
/* For moves that are not to end: a round takes longer than a busy host leaves a vCPU alone. */
#define FLOOD "kind=new ws=8M hot=6M report=0"
/* A busy host may leave its vCPU alone for a whole round: then it needs not be slowed. */
#define TRIES 4U
#define WITH_RATE HOT " rate=60M catch_up=1000"

/* Of several naps, one of which is 100 ms long at most. */
#define MEASURE_MS 400
/* A vCPU sleeps so long only in naps. */
#define NAPPED_NS 20000000

static void start_writer(struct guest *g, const char *dirty, const char *work)
{
	guest_start(g, "writer", "--dirty", dirty, "-m", "64M", "-c", "2", "-k", bare_elf("dirty"),
		    "-p", work, NULL);
	proc_fatal(g->proc, BARE_DIRTY_ERROR "| panic ");
	guest_expect(g, "^dirty ready ", LINE_MS);
}

/* A file of /proc; "" when it has gone. */
static const char *text_of(const char *path)
{
	char buf[128] = "";
	FILE *f = fopen(path, "r");

	if (f) {
		buf[fread(buf, 1, sizeof(buf) - 1, f)] = 0;
		fclose(f);
	}
	return harness_path("%s", buf);
}

/*
 * How long a vCPU's thread wanted to run since it was made, in ns: it had a processor, or waited
 * for one. Its guest spins, so that it wants to all the time, however busy the host is, but for
 * naps.
 */
static uint64_t awake_ns(struct guest *g, unsigned vcpu)
{
	const char *dir = harness_path("/proc/%d/task", (int)g->proc->pid);
	const char *name = harness_path("vcpu%u\n", vcpu);
	uint64_t ran, waited;
	struct dirent *e;
	DIR *d = opendir(dir);

	need(d, "%s: %s", dir, strerror(errno));
	while ((e = readdir(d))) {
		if (strcmp(text_of(harness_path("%s/%s/comm", dir, e->d_name)), name) == 0)
			break;
	}
	need(e, "no thread of vCPU %u", vcpu);
	name = text_of(harness_path("%s/%s/schedstat", dir, e->d_name));
	closedir(d);
	need(sscanf(name, "%" SCNu64 " %" SCNu64, &ran, &waited) == 2, "schedstat says '%s'", name);
	return ran + waited;
}

/* The part of the time that it was awake, of a moment. */
static double awake(struct guest *g, unsigned vcpu)
{
	uint64_t start = harness_now_ms(), since = awake_ns(g, vcpu), ms;

	while ((ms = harness_now_ms() - start) < MEASURE_MS)
		harness_pump(MEASURE_MS - (int)ms);
	return (double)(awake_ns(g, vcpu) - since) / 1e6 / (double)ms;
}

/* Nothing holds it back any more, and its memory is right. */
static void need_free(struct guest *g)
{
	double part = 0;

	for (unsigned i = 0; i < 10 && part < 0.9; i++)
		part = awake(g, 0);
	need(part >= 0.9, "it naps for %.0f %% of the time", 100 - 100 * part);
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
	struct proc *source = NULL, *migrate;
	const char *said;
	struct guest g;
	struct move m;
	struct dest d;

	start_writer(&g, "auto", WITH_RATE);
	for (unsigned n = 0; n < TRIES; n++) {
		source = g.proc;
		dest_start(&d, harness_path("there-%u", n), "unix:", NULL);
		migrate =
			move_start(&g, slow_link(&d, LINK_SPEED), "--downtime=100ms",
				   "--timeout=10m", "--on-timeout=throttle", "--verify=full", NULL);
		move_report(migrate, 0, &m, MOVE_MS);
		guest_moved(&g, &d);
		if (json_num(m.json, "throttle.max_percent") > 0)
			break;
	}
	need(json_num(m.json, "throttle.max_percent") >= 30 &&
		     json_num(m.json, "throttle.max_percent") <= 99 &&
		     json_num(m.json, "throttle.guest_slowed_ms") > 100,
	     "%s", json_dumps(json_object_get(m.json, "throttle"), JSON_COMPACT));
	ck_assert_str_eq(json_text(m.json, "on_timeout"), "throttle");
	said = source->err.buf;
	need(count(said, "does not converge: the guest dirties ") == 1 && strstr(said, "MiB/s"),
	     "'%s'", said);
	/* Nothing of it has moved along. */
	need_free(&g);
	quit(&g);
}
END_TEST

/* For people, a line of the summary. */
START_TEST(summary)
{
	const char *line = NULL;
	struct proc *migrate = NULL;
	struct guest g;
	struct dest d;

	start_writer(&g, "auto", WITH_RATE);
	for (unsigned n = 0; n < TRIES && !line; n++) {
		dest_start(&d, harness_path("there-%u", n), "tcp:127.0.0.1:0", NULL);
		migrate = godwit_start("migrate", "migrate", "-v", "--downtime=100ms",
				       "--timeout=10m", "--on-timeout=throttle", g.name,
				       slow_link(&d, LINK_SPEED), NULL);
		proc_expect(migrate, "^completed in ", MOVE_MS);
		line = proc_try(migrate,
				"^  the guest was slowed by up to [0-9]+ %, [0-9.]+ s in all$",
				LINE_MS);
		proc_ended(migrate, 0, LINE_MS);
		guest_moved(&g, &d);
	}
	need(line, "'%s'", migrate->out.buf);
	need(strstr(migrate->err.buf, ", guest slowed by "), "'%s'", migrate->err.buf);
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
	struct proc *migrate;
	double part;
	struct guest g;
	struct move m;
	struct dest d;

	start_writer(&g, "auto", "kind=new ws=24M hot=4M report=0");
	dest_start(&d, "there", "unix:", NULL);
	/* Looked after between batches, of which it carries about one a second. */
	migrate = move_start(&g, slow_link(&d, MIB * 1000 / (unsigned long)harness_slow(1000)),
			     harness_path("--timeout=%dms", harness_slow(4000)),
			     "--on-timeout=throttle", NULL);
	w.g = &g;
	need(harness_until(is_slowed, &w, MOVE_MS), "it is not slowed");
	part = awake(&g, 0);
	need(part < 0.5, "it naps for %.0f %% of the time only", 100 - 100 * part);
	if (_i == 0)
		godwit_run(0, "cancel", g.name, NULL);
	else
		proc_kill(d.proc, SIGKILL);
	move_report(migrate, 1, &m, LINE_MS);
	ck_assert_str_eq(m.status, _i ? "failed" : "cancelled");
	need(json_num(m.json, "throttle.max_percent") == 99, "%s",
	     json_dumps(json_object_get(m.json, "throttle"), JSON_COMPACT));
	proc_wait(d.proc, LINE_MS);
	need_free(&g);
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

	start_writer(&g, "auto", FLOOD);
	dest_start(&d, "there", "unix:", NULL);
	migrate =
		move_start(&g, slow_link(&d, LINK_SPEED), "--downtime=1us", "--on-timeout=throttle",
			   harness_path("--timeout=%.0fms", timeout_ms), NULL);
	move_report(migrate, 1, &m, MOVE_MS);
	need(strstr(m.error, "not done within the time allowed"), "'%s'", m.error);
	need(m.total_ms >= 2 * timeout_ms && m.downtime_ms == 0, "after %.0f ms", m.total_ms);
	need(json_num(m.json, "throttle.max_percent") == 99, "%s",
	     json_dumps(json_object_get(m.json, "throttle"), JSON_COMPACT));
	need_free(&g);
	quit(&g);
}
END_TEST

/* Since the guest was seen to be slowed. */
struct naps {
	struct guest *g;
	unsigned vcpus;
	uint64_t since_ms, awake_ns[2];
};

static bool have_napped(void *arg)
{
	struct naps *n = arg;

	for (unsigned i = 0; i < n->vcpus; i++) {
		uint64_t ns = awake_ns(n->g, i) - n->awake_ns[i];

		if ((harness_now_ms() - n->since_ms) * 1000000 < ns + NAPPED_NS)
			return false;
	}
	return true;
}

/* With rings, of two that work only the one that writes; with the log both. */
START_TEST(only_who_writes)
{
	struct wait w = {.percent = 30};
	struct proc *migrate;
	json_t *vcpus;
	struct guest g;
	struct naps n = {.g = &g, .vcpus = _i ? 2 : 1};
	struct move m;
	struct dest d;

	start_writer(&g, _i ? "log" : "ring", WITH_RATE " cpus=2 writers=1");
	dest_start(&d, "there", "unix:", NULL);
	migrate = move_start(&g, slow_link(&d, LINK_SPEED), "--downtime=1us", "--timeout=1h",
			     "--on-timeout=throttle", NULL);
	w.g = &g;
	need(harness_until(is_slowed, &w, MOVE_MS), "it is not slowed");
	for (unsigned i = 0; i < n.vcpus; i++)
		n.awake_ns[i] = awake_ns(&g, i);
	n.since_ms = harness_now_ms();
	need(harness_until(have_napped, &n, LINE_MS), "nobody naps");
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

	start_writer(&g, "auto", FLOOD);
	dest_start(&d, "there", "unix:", NULL);
	migrate = move_start(&g, slow_link(&d, LINK_SPEED), "--downtime=1us", NULL);
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
	need_free(&g);
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

	start_writer(&g, "auto", FLOOD);
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
