/* SPDX-License-Identifier: MIT */
/* The main() of a Check program of one case, and how one that needs KVM is skipped. */
#ifndef GODWIT_TESTS_CHECK_MAIN_H
#define GODWIT_TESTS_CHECK_MAIN_H

#include <check.h>
#include <stdio.h>
#include <stdlib.h>

#define EXIT_SKIPPED 77

/* Runs it and frees it; the status of main(). */
static inline int check_run(Suite *s)
{
	SRunner *sr = srunner_create(s);
	int failed;

	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

static inline int check_main(const char *name, const TTest *const *tests, size_t n)
{
	Suite *s = suite_create(name);
	TCase *tc = tcase_create(name);

	tcase_set_timeout(tc, 120);
	for (size_t i = 0; i < n; i++)
		tcase_add_test(tc, tests[i]);
	suite_add_tcase(s, tc);
	return check_run(s);
}

static inline int check_skip(const char *name, const char *why)
{
	fprintf(stderr, "SKIP %s: %s\n", name, why);
	return EXIT_SKIPPED;
}

#endif
