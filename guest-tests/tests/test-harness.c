/* SPDX-License-Identifier: MIT */
/*
 * The harness itself: that it sees what processes do, and above all that what should fail does, is
 * counted and is shown. For that the program runs itself with a suite of bad tests.
 */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "harness.h"

#define MS 10000

static struct proc *sh(const char *script)
{
	return proc_start("sh", "/bin/sh", "-c", script, NULL);
}

/* ---- what a good test sees ---- */

START_TEST(lines)
{
	struct proc *p =
		sh("echo one; echo two >&2; printf 'three\\r\\nfo'; read x; printf 'ur five'");

	ck_assert_str_eq(proc_expect(p, "^t.r?ee$|^three$", MS), "three");
	ck_assert_str_eq(proc_expect_err(p, "two", MS), "two");
	/* Half a line is none. */
	ck_assert_ptr_null(proc_try(p, "fo", 50));
	proc_send(p, "x\n");
	ck_assert_str_eq(proc_next(p, MS), "four five");
	ck_assert_ptr_null(proc_next(p, MS));
	proc_ended(p, 0, MS);
	ck_assert_str_eq(p->out.buf, "one\nthree\r\nfour five");
}
END_TEST

START_TEST(exit_codes)
{
	struct proc *p = sh("read x; exit 7");

	need(proc_running(p), "it does not wait for input");
	proc_close(p);
	ck_assert_int_eq(proc_wait(p, MS), 7);
	need(!proc_running(p), "it has ended");
	p = sh("exec sleep 100");
	proc_kill(p, SIGKILL);
	proc_ended(p, 128 + SIGKILL, MS);
	proc_ended(proc_start("none", "/no/such/program", NULL), 127, MS);
}
END_TEST

/* More than any pipe holds, there and back, with nobody looking at it meanwhile. */
START_TEST(much)
{
	size_t len = 4 << 20;
	char *bytes = malloc(len);
	struct proc *p = proc_start("cat", "cat", NULL);

	ck_assert_ptr_nonnull(bytes);
	for (size_t i = 0; i < len; i++)
		bytes[i] = (char)(i * 2654435761U >> 13);
	proc_send_bytes(p, bytes, len);
	proc_close(p);
	proc_ended(p, 0, MS);
	ck_assert_uint_eq(p->out.len, len);
	ck_assert_mem_eq(p->out.buf, bytes, len);
	free(bytes);
}
END_TEST

START_TEST(values)
{
	const char *line =
		"x a=1 ab=22 text=\"b=3 c\" w=word big=18446744073709551615 neg=-1 bad=1x";
	json_t *j = json_of("noise\n{\"a\":{\"b\":2.5},\"s\":\"t\"}\n");
	uint64_t v;

	ck_assert_uint_eq(kv(line, "a"), 1);
	ck_assert_uint_eq(kv(line, "ab"), 22);
	ck_assert_uint_eq(kv(line, "big"), UINT64_MAX);
	ck_assert_str_eq(kv_text(line, "text"), "b=3 c");
	ck_assert_str_eq(kv_text(line, "w"), "word");
	need(!kv_find(line, "c", &v) && !kv_find(line, "neg", &v) && !kv_find(line, "bad", &v),
	     "numbers that are none");
	ck_assert_double_eq(json_num(j, "a.b"), 2.5);
	ck_assert_str_eq(json_text(j, "s"), "t");
}
END_TEST

/* A line that a move cuts in two is one line. */
START_TEST(cut_line)
{
	struct guest g = {.proc = sh("printf 'taken\\none\\ntw'")};
	struct dest d = {.proc = sh("printf 'listening x\\no\\nthree\\n'"), .name = "there"};

	g.proc->guest = d.proc->guest = true;
	guest_expect(&g, "^taken$", MS);
	proc_expect(d.proc, "^listening", MS);
	guest_moved(&g, &d);
	ck_assert_str_eq(guest_next(&g, MS), "one");
	ck_assert_str_eq(guest_next(&g, MS), "two");
	ck_assert_str_eq(guest_next(&g, MS), "three");
	ck_assert_ptr_null(guest_next(&g, MS));
	ck_assert_str_eq(g.name, "there");
}
END_TEST

/* ---- tests that are wrong ---- */

START_TEST(bad_line)
{
	proc_expect(sh("echo something else; sleep 100"), "^never$", 200);
}
END_TEST

START_TEST(bad_end)
{
	proc_expect(sh("echo the last words >&2"), "^never$", MS);
}
END_TEST

START_TEST(bad_exit)
{
	proc_ended(sh("echo because >&2; exit 3"), 0, MS);
}
END_TEST

START_TEST(bad_wait)
{
	proc_wait(sh("sleep 100"), 200);
}
END_TEST

START_TEST(bad_value)
{
	kv("a=x", "a");
}
END_TEST

START_TEST(bad_json)
{
	json_num(json_of("{\"a\":1}"), "b");
}
END_TEST

START_TEST(bad_need)
{
	need(getpid() == 1, "%s", "seen");
}
END_TEST

START_TEST(bad_word)
{
	struct proc *p = sh("echo panic; echo fine");

	proc_fatal(p, "panic");
	proc_expect(p, "fine", MS);
}
END_TEST

START_TEST(bad_crash)
{
	sh("sleep 100");
	raise(SIGSEGV);
}
END_TEST

/* Check itself has to end it, and its child with it. */
START_TEST(bad_hang)
{
	proc_start("hang", "sleep", getenv("HARNESS_BAD"), NULL);
	pause();
}
END_TEST

START_TEST(bad_skip)
{
	sh("sleep 100");
	harness_skip("just so");
}
END_TEST

START_TEST(bad_none)
{
}
END_TEST

static Suite *bad_suite(bool only_skips)
{
	Suite *s = suite_create("bad");
	TCase *tc = harness_case(s, "bad", 2);

	tcase_add_test(tc, bad_skip);
	if (only_skips)
		return s;
	tcase_add_test(tc, bad_line);
	tcase_add_test(tc, bad_end);
	tcase_add_test(tc, bad_exit);
	tcase_add_test(tc, bad_wait);
	tcase_add_test(tc, bad_value);
	tcase_add_test(tc, bad_json);
	tcase_add_test(tc, bad_need);
	tcase_add_test(tc, bad_word);
	tcase_add_test(tc, bad_crash);
	tcase_add_test(tc, bad_hang);
	tcase_add_test(tc, bad_none);
	return s;
}

/* ---- and what becomes of them ---- */

static struct proc *run_bad(const char *what)
{
	char self[4096];
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);

	need(n > 0, "/proc/self/exe");
	self[n] = '\0';
	return proc_start("self", "env", "-u", "CK_RUN_CASE", "TMPDIR=/tmp",
			  harness_path("HARNESS_BAD=%s", what), self, NULL);
}

START_TEST(failures_count)
{
	static const char *const shown[] = {
		"no line like '\\^never\\$' within",
		"ended without a line like '\\^never\\$' \\(exit code 0\\)",
		"exit code 3 instead of 0: because",
		"has not ended within",
		"no number 'a=' in 'a=x'",
		"no number 'b' in \\{\"a\":1\\}",
		"not so: getpid\\(\\) == 1: seen",
		"said 'panic'",
		"Received signal 11",
		"Test timeout expired",
		"the last words",
	};
	/* A number that no other process has among its words. */
	const char *secs = harness_path("%d.125", 100000 + (int)getpid());
	struct proc *p = run_bad(secs);

	proc_ended(p, 1, 3 * MS);
	ck_assert_ptr_nonnull(strstr(p->out.buf, "\n1 passed, 10 failed, 1 skipped\n"));
	ck_assert_ptr_nonnull(strstr(p->err.buf, "SKIP bad_skip: just so\n"));
	for (size_t i = 0; i < sizeof(shown) / sizeof(shown[0]); i++) {
		p->out.taken = 0;
		proc_expect(p, shown[i], 0);
	}
	/* Nothing is left running. */
	proc_ended(proc_start("pgrep", "pgrep", "-f", harness_path("^sleep %s$", secs), NULL), 1,
		   MS);
}
END_TEST

START_TEST(skips_count)
{
	struct proc *p = run_bad("skip");

	proc_ended(p, 77, MS);
	ck_assert_ptr_nonnull(strstr(p->out.buf, "\n0 passed, 0 failed, 1 skipped\n"));
}
END_TEST

int main(void)
{
	const char *bad = getenv("HARNESS_BAD");
	TCase *tc;
	Suite *s;

	if (bad)
		return harness_main(bad_suite(strcmp(bad, "skip") == 0));
	s = suite_create("harness");
	tc = harness_case(s, "good", 30);
	tcase_add_test(tc, lines);
	tcase_add_test(tc, exit_codes);
	tcase_add_test(tc, much);
	tcase_add_test(tc, values);
	tcase_add_test(tc, cut_line);
	tc = harness_case(s, "bad", 60);
	tcase_add_test(tc, failures_count);
	tcase_add_test(tc, skips_count);
	return harness_main(s);
}
