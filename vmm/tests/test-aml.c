/* SPDX-License-Identifier: MIT */
/* The AML builder, byte for byte against the encodings of ACPI 6.x chapter 20. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "../aml.h"
#include "../util.h"

static struct aml a;

static void setup(void)
{
	aml_init(&a);
}

static void teardown(void)
{
	aml_free(&a);
}

#define CHECK_BYTES(...)                                                                           \
	do {                                                                                       \
		const uint8_t want[] = {__VA_ARGS__};                                              \
		ck_assert_int_eq(a.err, 0);                                                        \
		ck_assert_uint_eq(a.depth, 0);                                                     \
		ck_assert_uint_eq(a.len, sizeof(want));                                            \
		ck_assert_mem_eq(a.data, want, sizeof(want));                                      \
	} while (0)

START_TEST(integers)
{
	aml_integer(&a, 0);
	aml_integer(&a, 1);
	aml_integer(&a, 2);
	aml_integer(&a, 0xff);
	aml_integer(&a, 0x100);
	aml_integer(&a, 0xffff);
	aml_integer(&a, 0x10000);
	aml_integer(&a, 0xffffffff);
	aml_integer(&a, 0x123456789abcdef0);
	CHECK_BYTES(0x00, 0x01, 0x0a, 2, 0x0a, 0xff, 0x0b, 0x00, 0x01, 0x0b, 0xff, 0xff, 0x0c, 0, 0,
		    1, 0, 0x0c, 0xff, 0xff, 0xff, 0xff, 0x0e, 0xf0, 0xde, 0xbc, 0x9a, 0x78, 0x56,
		    0x34, 0x12);
}
END_TEST

START_TEST(names)
{
	aml_name(&a, "_HID");
	aml_name(&a, "A");
	aml_name(&a, "\\_S5");
	aml_name(&a, "^^B1");
	aml_name(&a, "_SB.COM1");
	aml_name(&a, "\\A.B.C");
	CHECK_BYTES(8, '_', 'H', 'I', 'D', 8, 'A', '_', '_', '_', 8, '\\', '_', 'S', '5', '_', 8,
		    '^', '^', 'B', '1', '_', '_', 8, 0x2e, '_', 'S', 'B', '_', 'C', 'O', 'M', '1',
		    8, '\\', 0x2f, 3, 'A', '_', '_', '_', 'B', '_', '_', '_', 'C', '_', '_', '_');
}
END_TEST

START_TEST(values)
{
	aml_string(&a, "LNRO0005");
	aml_eisaid(&a, "PNP0501");
	aml_return(&a);
	aml_integer(&a, 0);
	CHECK_BYTES(0x0d, 'L', 'N', 'R', 'O', '0', '0', '0', '5', 0, 0x0c, 0x41, 0xd0, 0x05, 0x01,
		    0xa4, 0);
}
END_TEST

START_TEST(containers)
{
	aml_scope(&a, "\\_SB");
	aml_device(&a, "VIO0");
	aml_end(&a);
	aml_end(&a);
	aml_package(&a, 2);
	aml_integer(&a, 5);
	aml_integer(&a, 0);
	aml_end(&a);
	aml_method(&a, "_STA", 2, true);
	aml_return(&a);
	aml_integer(&a, 15);
	aml_end(&a);
	CHECK_BYTES(0x10, 13, '\\', '_', 'S', 'B', '_', 0x5b, 0x82, 5, 'V', 'I', 'O', '0', 0x12, 5,
		    2, 0x0a, 5, 0, 0x14, 9, '_', 'S', 'T', 'A', 0x0a, 0xa4, 0x0a, 15);
}
END_TEST

START_TEST(resources)
{
	aml_resources(&a);
	aml_res_io(&a, 0x3f8, 8);
	aml_res_irq(&a, 4);
	aml_res_memory32(&a, 0xd0001000, 0x200, true);
	aml_res_interrupt(&a, 17, AML_EDGE_HIGH);
	aml_res_interrupt(&a, 18, AML_LEVEL_HIGH);
	aml_end(&a);
	CHECK_BYTES(0x11, 46, 0x0a, 43, 0x47, 1, 0xf8, 0x03, 0xf8, 0x03, 1, 8, 0x22, 0x10, 0, 0x86,
		    9, 0, 1, 0x00, 0x10, 0x00, 0xd0, 0x00, 0x02, 0, 0, 0x89, 6, 0, 3, 1, 17, 0, 0,
		    0, 0x89, 6, 0, 1, 1, 18, 0, 0, 0, 0x79, 0);
}
END_TEST

/* PkgLength grows with what it measures: one byte to 63, then 12, 20 and 28 bits, itself included.
 */
START_TEST(package_lengths)
{
	static const struct {
		size_t string; /* bytes of the string in the package, with opcode and NUL */
		size_t n;
		uint8_t head[4];
	} cases[] = {
		{61, 1, {63}},
		{62, 2, {0x41, 0x04}},
		{4092, 2, {0x4f, 0xff}},
		{4093, 3, {0x81, 0x00, 0x01}},
		{1048571, 3, {0x8f, 0xff, 0xff}},
		{1048572, 4, {0xc1, 0x00, 0x00, 0x01}},
	};
	char *text;

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		aml_init(&a);
		text = malloc(cases[i].string);
		ck_assert_ptr_nonnull(text);
		memset(text, 'x', cases[i].string);
		text[cases[i].string - 2] = '\0';
		aml_package(&a, 1);
		aml_string(&a, text);
		aml_end(&a);
		free(text);
		ck_assert_int_eq(a.err, 0);
		ck_assert_uint_eq(a.len, 1 + cases[i].n + 1 + cases[i].string);
		ck_assert_mem_eq(a.data + 1, cases[i].head, cases[i].n);
		ck_assert_uint_eq(a.data[1 + cases[i].n], 1);
		aml_free(&a);
	}
}
END_TEST

START_TEST(mistakes)
{
	static const char *const bad_names[] = {"",   "ABCDE", "abc", "1AB", "A..B",
						"A.", ".A",    "A B", "\\"};

	for (size_t i = 0; i < ARRAY_SIZE(bad_names); i++) {
		aml_init(&a);
		aml_name(&a, bad_names[i]);
		ck_assert_msg(a.err == -EINVAL, "name \"%s\" was taken", bad_names[i]);
		aml_free(&a);
	}
	aml_eisaid(&a, "PNP050");
	ck_assert_int_eq(a.err, -EINVAL);
	aml_free(&a);
	aml_eisaid(&a, "PNP05G1");
	ck_assert_int_eq(a.err, -EINVAL);
	aml_free(&a);
	aml_end(&a); /* nothing open */
	ck_assert_int_eq(a.err, -EINVAL);
	aml_free(&a);
	aml_device(&a, "DEV");
	aml_res_irq(&a, 4); /* not in a resource template */
	ck_assert_int_eq(a.err, -EINVAL);
	aml_free(&a);
	aml_resources(&a);
	aml_res_irq(&a, 16);
	ck_assert_int_eq(a.err, -EINVAL);
	aml_free(&a);
	for (unsigned i = 0; i <= AML_MAX_DEPTH; i++)
		aml_scope(&a, "DEEP");
	ck_assert_int_eq(a.err, -EINVAL);
	/* A latched error keeps everything else from happening. */
	for (unsigned i = 0; i <= AML_MAX_DEPTH; i++)
		aml_end(&a);
	aml_integer(&a, 0);
	ck_assert_int_eq(a.err, -EINVAL);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("aml");
	TCase *tc = tcase_create("aml");
	SRunner *runner;
	int failed;

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_test(tc, integers);
	tcase_add_test(tc, names);
	tcase_add_test(tc, values);
	tcase_add_test(tc, containers);
	tcase_add_test(tc, resources);
	tcase_add_test(tc, package_lengths);
	tcase_add_test(tc, mistakes);
	suite_add_tcase(suite, tc);
	runner = srunner_create(suite);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
