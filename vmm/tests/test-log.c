/* SPDX-License-Identifier: MIT */
#include "../log.h"

#include <string.h>
#include <time.h>
#include <unistd.h>

#include "check-main.h"

/* What a line looks like to whoever reads stderr. */
static const char *logged(const char *text)
{
	static char got[2048];
	int p[2], saved = dup(STDERR_FILENO);
	ssize_t n;

	ck_assert_int_eq(pipe(p), 0);
	dup2(p[1], STDERR_FILENO);
	log_info("%s", text);
	dup2(saved, STDERR_FILENO);
	close(saved);
	close(p[1]);
	n = read(p[0], got, sizeof(got) - 1);
	ck_assert_int_gt(n, 0);
	got[n] = '\0';
	close(p[0]);
	return got;
}

START_TEST(plain)
{
	ck_assert_str_eq(logged("all is well"), "godwit: all is well\n");
	log_set_raw_terminal(true);
	ck_assert_str_eq(logged("raw"), "godwit: raw\r\n");
}
END_TEST

/* A line stays one line and tells a terminal nothing but text. */
START_TEST(hostile)
{
	ck_assert_str_eq(logged("a\nb\r\033[2J\x7f\t\xc3\xa4"), "godwit: a?b??[2J??\xc3\xa4\n");
}
END_TEST

START_TEST(long_line)
{
	char text[3000];
	const char *got;

	memset(text, 'x', sizeof(text));
	text[sizeof(text) - 1] = '\0';
	got = logged(text);
	ck_assert_uint_lt(strlen(got), 1025);
	ck_assert_int_eq(got[strlen(got) - 1], '\n');
}
END_TEST

/* Time, as now_ns() sees it. */
static uint64_t clock_s;

int clock_gettime(clockid_t id, struct timespec *ts)
{
	(void)id;
	*ts = (struct timespec){.tv_sec = (time_t)clock_s};
	return 0;
}

START_TEST(limited)
{
	struct log_limit l = {0};

	clock_s = 1000;
	ck_assert(log_allowed(&l));
	ck_assert_str_eq(l.more, "");
	for (unsigned i = 0; i < 1000; i++)
		ck_assert(!log_allowed(&l));
	clock_s += LOG_LIMIT_NS / NS_PER_SEC - 1;
	ck_assert(!log_allowed(&l));
	clock_s += 1;
	ck_assert(log_allowed(&l));
	ck_assert_str_eq(l.more, " (and 1001 before it)");
	clock_s += LOG_LIMIT_NS / NS_PER_SEC;
	ck_assert(log_allowed(&l));
	ck_assert_str_eq(l.more, "");
}
END_TEST

int main(void)
{
	const TTest *const tests[] = {plain, hostile, long_line, limited};

	return check_main("log", tests, sizeof(tests) / sizeof(tests[0]));
}
