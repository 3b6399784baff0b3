/* SPDX-License-Identifier: MIT */
/*
 * Linux guests whose first process is guest-tests/linux/init: their lines, each checked as it is
 * taken. For the test-linux-*.c programs.
 *
 * Nothing may go wrong in such a guest, so whatever says that something did ends the test, whoever
 * waits for what: a damaged, lost or doubled line, a failed check, a dead worker, a complaint of
 * the kernel, a clock that went back.
 */
#ifndef GODWIT_TEST_LINUX_H
#define GODWIT_TEST_LINUX_H

#include <string.h>
#include <unistd.h>

#include "../linux/contract.h"
#include "harness.h"

#define LX_BOOT_MS 30000
#define LX_ANSWER_MS 10000
#define LX_END_MS 10000
#define LX_MOVE_MS 60000

/*
 * For the kernel's command line. An emulated host has one slow CPU for the guest's work and for the
 * move, and what is more a guest's CPU may spend seconds in one interrupt of its serial port:
 * watchdogs must be patient.
 */
#define LX_PATIENCE                                                                                \
	"watchdog_thresh=30 rcupdate.rcu_cpu_stall_timeout=100 gt.stuck_ms=60000 "                 \
	"gt.verify_ms=300000 "

#define COUNT(a) ((int)(sizeof(a) / sizeof((a)[0])))

struct lx {
	struct guest g;
	uint64_t next;	   /* the number that the next line must have */
	unsigned notes;	   /* complaints of the kernel that are known and harmless */
	char word[16];	   /* of the line taken last */
	const char *ready; /* the last ready line */
};

/* "6.1/vmlinuz" and so on, where scripts/guest-kernel puts them. */
static inline const char *lx_kernel(const char *which)
{
	const char *path = harness_path("%s/build/kernels/%s", harness_root(), which);

	if (access(path, R_OK))
		fail_test("%s is not there: scripts/guest-kernel %.*s fetches it", path,
			  (int)strcspn(which, "/"), which);
	return path;
}

static inline const char *lx_initrd(void)
{
	const char *path =
		harness_path("%s/build/guest-tests/linux/initramfs.cpio", harness_root());

	if (access(path, R_OK))
		fail_test("%s is not there: make linux-guest builds it", path);
	return path;
}

/* The same with modules for a disk and a balloon, for the kernel 6.1. */
static inline const char *lx_initrd_virtio(void)
{
	const char *path =
		harness_path("%s/build/guest-tests/linux/initramfs-virtio.cpio", harness_root());

	if (access(path, R_OK))
		fail_test("%s is not there: make linux-guest-virtio builds it", path);
	return path;
}

/*
 * Notes of the kernel that say nothing about this machine: a processor without constant TSC is not
 * taken to have it synchronised, and where CPUs are scarce timer interrupts are late and two
 * readings of a clock far apart, for which the kernel's watchdog then gives the TSC up. (Were the
 * clocks apart, that would have a line of its own: "skew".)
 */
static inline bool lx_harmless(const char *body)
{
	return strstr(body, "Marking TSC unstable due to TSCs unsynchronized") ||
	       strstr(body, "Marking TSC unstable due to clocksource watchdog") ||
	       strstr(body, "hrtimer: interrupt took") || strstr(body, "read-back delay of");
}

/* One line of serial output: the body of a line of the protocol, checked, or NULL for others. */
static inline const char *lx_take(struct lx *x, const char *text)
{
	struct gt_line line;
	const char *body;
	uint64_t back;
	int ret;

	/* The kernel ends its lines without regard to who else is writing. */
	ret = gt_parse(text, &line);
	if (ret == 0 && strstr(text, GT_PREFIX))
		fail_test("a line was damaged: '%s'", text);
	if (ret == 0)
		return NULL;
	need(ret > 0, "a line is damaged: '%s'", text);
	need(line.seq == x->next, "line %llu is missing or doubled, there came '%s'",
	     (unsigned long long)x->next, text);
	x->next++;
	memcpy(x->word, line.word, sizeof(x->word));
	body = harness_path("%.*s", (int)line.body_len, line.body);

	if (strcmp(line.word, "dmesg") == 0 && strstr(body, "class=note") && lx_harmless(body))
		x->notes++;
	else if (strcmp(line.word, "dmesg") == 0 || strcmp(line.word, "error") == 0 ||
		 strcmp(line.word, "death") == 0 || strcmp(line.word, "fatal") == 0 ||
		 strcmp(line.word, "unknown") == 0)
		fail_test("the guest says '%s'", body);
	else if (kv_find(body, "back", &back))
		need(back == 0 && kv(body, "errors") == 0, "the guest says '%s'", body);
	return body;
}

/* The body of the next line with this word ("" for a report); see contract.h. */
static inline const char *lx_expect(struct lx *x, const char *word, int timeout_ms)
{
	uint64_t deadline = harness_now_ms() + (uint64_t)harness_slow(timeout_ms);

	while (harness_now_ms() < deadline) {
		const char *text = proc_next(x->g.proc, timeout_ms), *body;

		if (!text)
			break;
		body = lx_take(x, text);
		if (body && strcmp(x->word, word) == 0)
			return body;
	}
	fail_test("%s: no line '%s' within %d ms%s", x->g.proc->label, word,
		  harness_slow(timeout_ms), x->g.proc->out.fd < 0 ? ": its output has ended" : "");
}

/* Sends a command, and takes lines up to the one with this word. */
static inline const char *lx_ask(struct lx *x, const char *command, const char *word)
{
	guest_send(&x->g, harness_path("%s\n", command));
	return lx_expect(x, word, LX_ANSWER_MS);
}

/* Up to the first line of a boot, which must find this machine. */
static inline void lx_ready(struct lx *x, unsigned cpus)
{
	x->next = 0;
	x->ready = lx_expect(x, "ready", LX_BOOT_MS);
	ck_assert_uint_eq(kv(x->ready, "version"), GT_VERSION);
	ck_assert_uint_eq(kv(x->ready, "cpus"), cpus);
}

/* Up to the last line, which must say that all is well; then godwit must end with 0. */
static inline const char *lx_done(struct lx *x)
{
	const char *done = lx_expect(x, "done", LX_BOOT_MS);
	const char *text;

	ck_assert_str_eq(kv_text(done, "status"), "pass");
	while ((text = proc_next(x->g.proc, LX_END_MS)))
		need(!lx_take(x, text), "after its last line came '%s'", text);
	guest_ended(&x->g, 0, LX_END_MS);
	return done;
}

/*
 * All that `info` says. It ends with a question of another kind, whose answer shows that there is
 * no more.
 */
static inline const char *lx_info(struct lx *x)
{
	const char *text, *all = "";

	guest_send(&x->g, "info\necho end\n");
	while ((text = proc_next(x->g.proc, LX_ANSWER_MS))) {
		const char *body = lx_take(x, text);

		if (body && strcmp(x->word, "echo") == 0)
			return all;
		if (body && strcmp(x->word, "info") == 0)
			all = harness_path("%s%s\n", all, body);
	}
	fail_test("no answer to `info`");
}

/* The texts of one key in that, joined by '\n'. */
static inline const char *lx_fact(const char *info, const char *key)
{
	const char *line = harness_path("info key=%s text=", key), *all = "";

	for (const char *p = info; (p = strstr(p, line)); p++) {
		const char *text = p + strlen(line);

		all = harness_path("%s%s%.*s", all, *all ? "\n" : "", (int)strcspn(text, "\n"),
				   text);
	}
	need(*all, "no key %s in: %s", key, info);
	return all;
}

#endif
