/* SPDX-License-Identifier: MIT */
/* Bare guests that boot, run, take input and end, and do not move. */
#include "harness.h"

START_TEST(hello)
{
	struct guest g;
	const char *line;

	guest_start(&g, "vm", "-m", "64M", "-k", bare_elf("hello"), "-p", "some words", NULL);
	line = guest_expect(&g, "^hello cmdline=", 10000);
	ck_assert_str_eq(kv_text(line, "cmdline"), "some words");
	guest_expect(&g, "^hello done$", 5000);
	guest_ended(&g, 0, 5000);
}
END_TEST

START_TEST(mv)
{
	struct guest g;
	struct move m;

	guest_start(&g, "vm", "-m", "64M", "-k", bare_elf("dirty"), "-p", "ws=8M", NULL);
	guest_expect(&g, "^dirty ready ", 10000);
	guest_move(&g, &m, "tcp:127.0.0.1:0", "--verify=full", NULL);
	guest_move(&g, &m, "unix:", "--verify=full", NULL);
	need(m.downtime_ms < 500, "paused for %.1f ms", m.downtime_ms);
	guest_send(&g, "q");
	guest_expect(&g, "^dirty done .* errors=0$", 10000);
	guest_ended(&g, 0, 10000);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("bare");
	TCase *tc = harness_case(s, "hello", 30);

	tcase_add_test(tc, hello);
	tcase_add_test(tc, mv);
	return harness_main(s);
}
