/* SPDX-License-Identifier: MIT */
/* replay-policy as people plan with it: on the recordings of migrate/tests/traces. */
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../../vmm/tests/check-main.h"

static char out[65536];

/* Runs it with these words on a recording; its exit status, and all it says in out. */
static int replay(const char *options, const char *trace)
{
	char self[512] = "", cmd[2048];
	int root = (int)(strstr(__FILE__, "tools/tests/") - __FILE__), status;
	size_t len;
	FILE *f;

	ck_assert(readlink("/proc/self/exe", self, sizeof(self) - 1) > 0);
	*strrchr(self, '/') = 0; /* tests/ is beside it */
	snprintf(cmd, sizeof(cmd), "%s/../replay-policy %s %.*s%s%s 2>&1", self, options, root,
		 __FILE__, trace[0] ? "migrate/tests/traces/" : "", trace);
	f = popen(cmd, "r");
	ck_assert_ptr_nonnull(f);
	len = fread(out, 1, sizeof(out) - 1, f);
	out[len] = 0;
	status = pclose(f);
	ck_assert_msg(WIFEXITED(status), "%s: %s", cmd, out);
	return WEXITSTATUS(status);
}

static void says(const char *what)
{
	ck_assert_msg(strstr(out, what), "no '%s' in:\n%s", what, out);
}

/* Without options it is as it was. */
START_TEST(as_it_was)
{
	ck_assert_int_eq(replay("", "throttle.json"), 0);
	says("it does not converge: the guest dirties ");
	says("pauses after ");
	ck_assert_ptr_null(strstr(out, "! "));
	ck_assert_int_eq(replay("", "diverges.json"), 1);
	says("is given up after ");
	says("no progress in ");
}
END_TEST

/* What would it have taken? */
START_TEST(with_other_limits)
{
	ck_assert_int_eq(replay("--downtime=2s", "diverges.json"), 0);
	says("! pause");
	ck_assert_int_eq(replay("--on-timeout=throttle", "diverges.json"), 1);
	says(" 30%  ! round");
	says("where the recording ends");
	ck_assert_int_eq(replay("--timeout=3s", "diverges.json"), 1);
	says("not done within the time allowed");
	ck_assert_int_eq(replay("--downtime 1us --on-timeout=continue", "converges.json"), 1);
	says("would have gone on after ");
}
END_TEST

START_TEST(wrong_words)
{
	ck_assert_int_eq(replay("--downtime=soon", "idle.json"), 2);
	says("'soon'");
	ck_assert_int_eq(replay("--on-timeout=never", "idle.json"), 2);
	says("'never'");
	ck_assert_int_eq(replay("", "none.json"), 2);
	says("none.json");
	ck_assert_int_eq(replay("--help </dev/null #", ""), 0);
	says("usage: ");
	ck_assert_int_eq(replay("</dev/null 2>&1 #", ""), 2);
}
END_TEST

/* A report that has no rounds with figures says so. */
START_TEST(not_a_trace)
{
	ck_assert_int_eq(
		replay("<<'END' 2>&1 #\n{\"status\":\"failed\",\"per_round\":[{\"round\":1}]}\n"
		       "END\n#",
		       ""),
		2);
	says("no rounds with figures");
}
END_TEST

int main(void)
{
	const TTest *const tests[] = {as_it_was, with_other_limits, wrong_words, not_a_trace};

	return check_main("replay-policy", tests, sizeof(tests) / sizeof(*tests));
}
