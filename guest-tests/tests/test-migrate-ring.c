/* SPDX-License-Identifier: MIT */
/*
 * Moves of bare guests whose dirty pages are found by KVM's dirty rings, most of them by rings that
 * are much too short: guests that write flat out then leave for a full ring all the time. Whichever
 * way a host has is its own business: guests go from one with rings to one without and back.
 *
 * GODWIT_TEST_MOVES is how many moves the guests that write make altogether (72).
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "../bare/contract.h"
#include "harness.h"

#define COUNT(a) ((int)(sizeof(a) / sizeof((a)[0])))

#define LINE_MS 15000
#define MOVE_MS 60000

static const char *const kinds[] = {"new", "same", "few", "zero", "flip", "idle"};
static const char *const rates[] = {"0", "200M"};

static unsigned total_moves;

static const char *uri(unsigned n)
{
	return n % 2 ? "unix:" : "tcp:127.0.0.1:0";
}

static const char *ask(struct guest *g, const char *cmd, const char *answer)
{
	guest_send(g, cmd);
	return guest_expect(g, answer, LINE_MS);
}

/* For a guest that dirties faster than a slow host can send. */
static const char *downtime(void)
{
	return harness_path("--downtime=%dms", harness_slow(300));
}

static void start_writer(struct guest *g, const char *dirty, const char *options)
{
	guest_start(g, "ring", "-v", "--dirty", dirty, "-m", "64M", "-c", "3", "-k",
		    bare_elf("dirty"), "-p", harness_path("ws=8M report=0 %s", options), NULL);
	proc_fatal(g->proc, BARE_DIRTY_ERROR "| panic ");
	guest_expect(g, "^dirty ready ", LINE_MS);
}

/* All pages are as the guest left them, by its own word. */
static void intact(struct guest *g)
{
	const char *line = ask(g, "v", "^dirty verify ");

	need(kv(line, "errors") == 0, "%s", line);
}

static void end_writer(struct guest *g)
{
	guest_send(g, "q");
	guest_expect(g, "^dirty done .* errors=0$", LINE_MS);
	guest_ended(g, 0, LINE_MS);
}

/* To a new process that has this --dirty, and says so if it has rings. */
static void move_to(struct guest *g, const char *dirty, unsigned n, const char *verify)
{
	bool ring = strncmp(dirty, "ring", 4) == 0;
	struct proc *migrate;
	struct move m;
	struct dest d;

	dest_start(&d, harness_path("ring-%u", n + 2), uri(n), "-v", "--dirty", dirty, NULL);
	migrate = move_start(g, d.uri, verify, downtime(), n % 3 ? "--connections=3" : "-v", NULL);
	move_report(migrate, 0, &m, MOVE_MS);
	guest_moved(g, &d);
	need(ring == !!strstr(d.proc->err.buf, "dirty rings of "), "--dirty %s: '%s'", dirty,
	     d.proc->err.buf);
}

static const char *const ways[] = {"ring:256", "log", "ring:256", "ring:512", "auto", "ring"};

/* From each way to each of its neighbours, under every kind of writer. */
START_TEST(writer)
{
	const char *kind = kinds[_i % COUNT(kinds)], *rate = rates[_i / COUNT(kinds)];
	unsigned moves = total_moves / (unsigned)(COUNT(kinds) * COUNT(rates));
	struct guest g;

	start_writer(&g, "ring:256",
		     harness_path("kind=%s rate=%s cpus=%d seed=%d", kind, rate, 1 + _i % 3, _i));
	for (unsigned n = 0; n < (moves ? moves : 1); n++) {
		move_to(&g, ways[(n + 1) % COUNT(ways)], n,
			_i % 2 ? "--verify=stream" : "--verify=full");
		intact(&g);
	}
	end_writer(&g);
}
END_TEST

/* A round that lasts until all of a large set has been written: rings do get full, many times. */
START_TEST(full)
{
	struct guest g;

	start_writer(&g, "ring:256", harness_path("kind=%s cpus=3", kinds[_i]));
	for (unsigned n = 0; n < 2; n++) {
		struct proc *source = g.proc, *migrate;
		struct move m;
		struct dest d;

		dest_start(&d, harness_path("full-%u", n), uri(n), "-v", "--dirty=ring:256", NULL);
		migrate = move_start(&g, slow_link(&d, 16 << 20), "--compress=off",
				     harness_path("--downtime=%dms", harness_slow(2000)),
				     n ? "--verify=full" : "--verify=stream", NULL);
		move_report(migrate, 0, &m, MOVE_MS);
		guest_moved(&g, &d);
		/* Where all are zeros at the moment a round is soon over. */
		if (strcmp(kinds[_i], "zero"))
			proc_expect_err(source, "dirty rings were full [1-9]", LINE_MS);
		intact(&g);
	}
	end_writer(&g);
}
END_TEST

static bool is_sending(void *arg)
{
	struct guest *g = arg;
	json_t *status = guest_status(g);

	return !strcmp(json_text(status, "state"), "migrating") &&
	       !strcmp(json_text(status, "migration.phase"), "pre-copy");
}

/*
 * What is left in the rings of a move that was given up stops nobody, and does not spoil the next
 * move.
 */
START_TEST(cancelled)
{
	struct guest g;

	start_writer(&g, _i ? "ring:256" : "ring", "kind=new cpus=3");
	for (unsigned n = 0; n < 3; n++) {
		struct proc *migrate;
		uint64_t writes;
		struct move m;
		struct dest d;

		dest_start(&d, harness_path("never-%u", n), uri(n), NULL);
		migrate = move_start(&g, slow_link(&d, 4 << 20), "--connections=2", NULL);
		need(harness_until(is_sending, &g, LINE_MS), "the move does not begin");
		/* Time to write in. */
		harness_pump(100 * (int)n);
		intact(&g);
		godwit_run(0, "cancel", g.name, NULL);
		move_report(migrate, 1, &m, LINE_MS);
		ck_assert_str_eq(m.status, "cancelled");
		proc_ended(d.proc, 1, LINE_MS);
		writes = kv(ask(&g, "r", "^dirty t_ms="), "writes");
		intact(&g);
		need(kv(ask(&g, "r", "^dirty t_ms="), "writes") > writes, "it writes no more");
	}
	move_to(&g, "log", 0, "--verify=full");
	intact(&g);
	end_writer(&g);
}
END_TEST

/* Paused and ended by their users while vCPUs leave for full rings. */
START_TEST(interrupted)
{
	struct proc *migrate;
	struct guest g;
	struct move m;
	struct dest d;

	start_writer(&g, "ring:256", "kind=new cpus=3");
	for (unsigned n = 0; n < 3; n++) {
		godwit_run(0, "pause", g.name, NULL);
		godwit_run(0, "resume", g.name, NULL);
	}
	dest_start(&d, "never", uri(1), NULL);
	migrate = move_start(&g, slow_link(&d, 4 << 20), NULL);
	need(harness_until(is_sending, &g, LINE_MS), "the move does not begin");
	godwit_run(0, "stop", "--force", g.name, NULL);
	move_report(migrate, 1, &m, LINE_MS);
	guest_ended(&g, 0, LINE_MS);
	proc_ended(d.proc, 1, LINE_MS);
}
END_TEST

START_TEST(smp)
{
	const char *line;
	struct guest g;

	guest_start(&g, "smp", "-v", "--dirty", "ring:256", "-m", "64M", "-c", "4", "-k",
		    bare_elf("smp"), "-p", "report=0", NULL);
	proc_fatal(g.proc, BARE_SMP_ERROR "| panic ");
	guest_expect(&g, "^smp cpus=4", LINE_MS);
	for (unsigned n = 0; n < 3; n++) {
		move_to(&g, "ring:256", n, "--verify=full");
		ask(&g, "r", "^smp tick=");
		do {
			line = ask(&g, "r", "^smp tick=");
		} while (kv(line, "min") == 0);
		ck_assert_uint_eq(kv(line, "errors"), 0);
	}
	guest_send(&g, "q");
	guest_expect(&g, "^smp done .* errors=0 ", LINE_MS);
	guest_ended(&g, 0, LINE_MS);
}
END_TEST

/* A guest that resets is a new machine of the same process, which finds pages as it did. */
START_TEST(resets)
{
	struct guest g;

	guest_start(&g, "reset", "-v", "--dirty", "ring:512", "-m", "64M", "-c", "2", "-k",
		    bare_elf("reset"), NULL);
	for (unsigned n = 0; n < 3; n++) {
		guest_expect(&g, "^reset ready$", LINE_MS);
		proc_expect_err(g.proc, "dirty rings of 512 entries", LINE_MS);
		if (n == 1) {
			move_to(&g, "ring:512", n, "--verify=full");
			proc_expect_err(g.proc, "dirty rings of 512 entries", LINE_MS);
		}
		guest_send(&g, n == 2 ? "q" : "k");
	}
	guest_ended(&g, 0, LINE_MS);
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

/* Where there are none that is said, with what to do. */
START_TEST(refused)
{
	struct proc *p =
		godwit_run(1, "run", "--dirty", "ring", "-m", "64M", "-k", bare_elf("hello"), NULL);

	need(strstr(p->err.buf, "no KVM_CAP_DIRTY_LOG_RING") && strstr(p->err.buf, "--dirty log"),
	     "%s", p->err.buf);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("migrate-ring");

	if (!harness_kvm_works())
		return harness_skip_all("no KVM guest runs on this host (godwit doctor says why)");
	if (!has_ring()) {
		tcase_add_test(harness_case(s, "refused", 60), refused);
		return harness_main(s);
	}
	total_moves = harness_env("GODWIT_TEST_MOVES", 72);
	tcase_add_loop_test(harness_case(s, "writers", 120), writer, 0,
			    COUNT(kinds) * COUNT(rates));
	/* But for "idle", the last one. */
	tcase_add_loop_test(harness_case(s, "full", 120), full, 0, COUNT(kinds) - 1);
	tcase_add_loop_test(harness_case(s, "cancelled", 120), cancelled, 0, 2);
	tcase_add_test(harness_case(s, "interrupted", 60), interrupted);
	tcase_add_test(harness_case(s, "smp", 120), smp);
	tcase_add_test(harness_case(s, "resets", 60), resets);
	return harness_main(s);
}
