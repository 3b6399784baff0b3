/* SPDX-License-Identifier: MIT */
/*
 * A Linux guest whose memory is full of what it has read from its disk gives some of it back, moves
 * without that, and has it again: as the guest sees it, as godwit says, and as the host's kernel
 * counts it for the process.
 *
 * The disk holds no two pages alike and none of zeros, so whatever of it is not sent when the guest
 * moves was given back.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>

#include "disks.h"
#include "test-linux.h"

#define MIB (UINT64_C(1) << 20)
#define MEMORY "112M"
#define CACHE (32 * MIB)
#define BALLOON (32 * MIB)
#define SLACK (4 * MIB) /* what a guest that idles may need, or let go, meanwhile */
#define BALLOON_MS 30000
#define WORK                                                                                       \
	"quiet mitigations=off " LX_PATIENCE "gt.mode=idle gt.procs=1 gt.mem=1M gt.clock_us=5000"

static const char *random_disk(void)
{
	const char *path = disk_new("disk", CACHE);
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	static uint64_t words[MIB / 8];
	uint64_t x = 88172645463325252U;

	for (unsigned i = 0; i < CACHE / MIB; i++) {
		for (unsigned k = 0; k < MIB / 8; k++) {
			x ^= x << 13;
			x ^= x >> 7;
			x ^= x << 17;
			words[k] = x;
		}
		need(write(fd, words, MIB) == (ssize_t)MIB, "%s: %s", path, strerror(errno));
	}
	close(fd);
	return path;
}

/* ---- what is to be seen of a guest's memory ---- */

struct sight {
	uint64_t given, asked, used; /* by godwit */
	uint64_t resident;	     /* by the host's kernel */
	uint64_t total, available;   /* by the guest's */
};

static uint64_t resident(const struct proc *p)
{
	static const char name[] = "RssShmem:";
	static char text[8192];
	const char *at;
	int fd = open(harness_path("/proc/%d/status", (int)p->pid), O_RDONLY | O_CLOEXEC);
	ssize_t n = read(fd, text, sizeof(text) - 1);

	need(n > 0, "/proc/%d/status: %s", (int)p->pid, strerror(errno));
	close(fd);
	text[n] = '\0';
	at = strstr(text, name);
	need(at, "no %s in: %s", name, text);
	return strtoull(at + strlen(name), NULL, 10) * 1024;
}

static json_t *balloon(struct guest *g)
{
	return json_of(godwit_run(0, "balloon", "--json", g->name, NULL)->out.buf);
}

static struct sight look(struct lx *x)
{
	const char *memory = lx_ask(x, GT_CMD_MEM, "mem");
	json_t *b = balloon(&x->g);

	return (struct sight){
		.given = (uint64_t)json_num(b, "actual_bytes"),
		.asked = (uint64_t)json_num(b, "target_bytes"),
		.used = (uint64_t)json_num(b, "used_bytes"),
		.resident = resident(x->g.proc),
		.total = kv(memory, "total_kib") * 1024,
		.available = kv(memory, "available_kib") * 1024,
	};
}

static void tell(const char *when, const struct sight *s)
{
	harness_say("%s: given back %lu MiB; takes %lu MiB, %lu resident; guest has %lu MiB, %lu "
		    "available",
		    when, s->given / MIB, s->used / MIB, s->resident / MIB, s->total / MIB,
		    s->available / MIB);
}

static struct sight ask(struct lx *x, uint64_t bytes, const char *when)
{
	uint64_t until = harness_now_ms() + (uint64_t)harness_slow(BALLOON_MS);
	struct sight s;

	godwit_run(0, "balloon", x->g.name, harness_path("%lu", bytes), NULL);
	while (json_num(balloon(&x->g), "actual_bytes") != (double)bytes) {
		need(harness_now_ms() < until, "%s: the guest does not get there", when);
		/* Asking without a pause would take the guest's time where there is one CPU. */
		lx_expect(x, "", LX_ANSWER_MS);
	}
	s = look(x);
	ck_assert_uint_eq(s.asked, bytes);
	ck_assert_uint_eq(s.given, bytes);
	tell(when, &s);
	return s;
}

static void read_disk(struct lx *x)
{
	ck_assert_uint_eq(kv(lx_ask(x, harness_path(GT_CMD_CACHE "%lu", CACHE), "cache"), "bytes"),
			  CACHE);
}

START_TEST(gives_back)
{
	struct sight full, given, there, flat, again;
	struct move with, without;
	struct lx x = {.next = 0};
	uint64_t fell;

	guest_start(&x.g, "vm", "-m", MEMORY, "-k", lx_kernel("6.1/vmlinux"), "-i",
		    lx_initrd_virtio(), "-p", WORK, "--disk", random_disk(), "--balloon", NULL);
	lx_ready(&x, 1);
	while (kv(lx_expect(&x, "", LX_BOOT_MS), "full") == 0)
		;
	read_disk(&x);
	guest_move(&x.g, &with, "unix:", "--compress=off", NULL);
	/* Here it takes what is not zeros, which is what was sent. */
	full = look(&x);
	tell("full", &full);
	need(full.used >= CACHE && full.resident >= CACHE, "less than was read is in memory");

	given = ask(&x, BALLOON, "inflated");
	need(given.available + BALLOON <= full.available + SLACK,
	     "the guest has as much as before");
	/* Each is a page of the cache that the guest did without. */
	need(given.used < full.used && given.resident < full.resident, "the host has got nothing");
	fell = full.used - given.used;
	need(fell >= CACHE / 6, "the host has got %lu KiB", fell / 1024);
	need(full.resident - given.resident + SLACK >= fell, "it is resident all the same");

	guest_move(&x.g, &without, "tcp:127.0.0.1:0", "--compress=off", NULL);
	harness_say("%lu MiB of pages were sent before, %lu after; of the wire %lu and %lu",
		    with.sent * 4096 / MIB, without.sent * 4096 / MIB, with.wire_bytes / MIB,
		    without.wire_bytes / MIB);
	need(without.zero * 4096 >= BALLOON, "%lu pages were sent as zeros", without.zero);
	need(without.sent * 4096 <= given.used + SLACK, "more was sent than it takes");
	need(without.sent * 4096 + fell <= with.sent * 4096 + SLACK, "what was given was sent");
	need(without.wire_bytes <= without.sent * 4096 + SLACK,
	     "more is on the wire than was sent");
	there = look(&x);
	tell("moved", &there);
	ck_assert_uint_eq(there.given, BALLOON);
	need(there.used <= given.used + SLACK && there.resident <= given.used + SLACK,
	     "it takes more there");

	flat = ask(&x, 0, "deflated");
	need(flat.available + SLACK >= full.available, "it has not got all of it again");
	/* And it can use it. */
	read_disk(&x);
	again = look(&x);
	tell("full again", &again);
	need(again.used >= flat.used + CACHE / 4 && again.resident >= flat.resident + CACHE / 4,
	     "it does not use it");
	guest_send(&x.g, "q\n");
	lx_done(&x);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("linux-balloon");

	if (!harness_linux_works())
		return harness_skip_all(
			"no Linux guest runs on this host (godwit doctor says why)");
	tcase_add_test(harness_case(s, "gives-back", 120), gives_back);
	return harness_main(s);
}
