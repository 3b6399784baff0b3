/* SPDX-License-Identifier: MIT */
/* Whether a guest fits into a host's memory; the sections of HELLO are test-state's. */
#include "../handshake.h"

#include <errno.h>
#include <string.h>

#include "../../vmm/tests/check-main.h"

static struct hello h;
static struct errmsg err;

static int check(uint64_t size, uint64_t used, uint64_t want, uint64_t total, uint64_t available)
{
	struct host_memory m = {.total = total, .available = available};

	h.cfg.ram_size = size;
	h.ram_used = used;
	err = (struct errmsg){""};
	return hello_check_memory(&h, want, &m, &err);
}

START_TEST(what_is_used_must_be_there)
{
	ck_assert_int_eq(check(8 * GIB, 4 * GIB, 0, 16 * GIB, 4 * GIB), 0);
	ck_assert_int_eq(check(8 * GIB, 4 * GIB + 1, 0, 16 * GIB, 4 * GIB), -ENOMEM);
	ck_assert_int_eq(check(8 * GIB, 5 * GIB, 0, 16 * GIB, 4 * GIB), -ENOMEM);
	ck_assert_str_eq(err.text, "the guest uses 5 GiB of memory, this host has 4 GiB available");
	/* Named or not. */
	ck_assert_int_eq(check(8 * GIB, 5 * GIB, 8 * GIB, 16 * GIB, 4 * GIB), -ENOMEM);
}
END_TEST

START_TEST(size_may_be_beyond_but_not_beyond_reason)
{
	/* A guest may be larger than its host: it uses little of what it has. */
	ck_assert_int_eq(check(64 * GIB, GIB, 0, 24 * GIB, 4 * GIB), 0);
	ck_assert_int_eq(check(16 * 24 * GIB, GIB, 0, 24 * GIB, 4 * GIB), 0);
	ck_assert_int_eq(check(16 * 24 * GIB + PAGE_SIZE, GIB, 0, 24 * GIB, 4 * GIB), -ENOTSUP);
	ck_assert_int_eq(check(1ULL << 62, GIB, 0, 24 * GIB, 4 * GIB), -ENOTSUP);
	ck_assert_msg(strstr(err.text, "4 EiB of RAM, which is more than 16 times the 24 GiB") &&
			      strstr(err.text, "'godwit receive -m 4503599627370496K'"),
		      "%s", err.text);
	/* Unless somebody said that he means it. */
	ck_assert_int_eq(check(1ULL << 62, GIB, 1ULL << 62, 24 * GIB, 4 * GIB), 0);
	/* A host that does not tell has no limit, nor has one whose limit no number can be. */
	ck_assert_int_eq(check(1ULL << 62, GIB, 0, UINT64_MAX, UINT64_MAX), 0);
	ck_assert_int_eq(check(UINT64_MAX, GIB, 0, 1ULL << 61, 4 * GIB), 0);
}
END_TEST

START_TEST(growing_ends_before_memory_does)
{
	struct host_memory m = {.total = 24 * GIB, .available = MEMORY_STEP + MEMORY_RESERVE};

	err = (struct errmsg){""};
	ck_assert_int_eq(host_memory_check_step(&m, &err), 0);
	m.available--;
	ck_assert_int_eq(host_memory_check_step(&m, &err), -ENOMEM);
	ck_assert_msg(strstr(err.text, "runs out of memory"), "%s", err.text);
	m.available = UINT64_MAX;
	ck_assert_int_eq(host_memory_check_step(&m, &err), 0);
}
END_TEST

START_TEST(this_host_has_some)
{
	struct host_memory m;

	host_memory_read(&m);
	ck_assert_uint_gt(m.total, 16 * MIB);
	ck_assert_uint_gt(m.available, 0);
	ck_assert_uint_le(m.available, m.total);
}
END_TEST

int main(void)
{
	const TTest *const tests[] = {
		what_is_used_must_be_there,
		size_may_be_beyond_but_not_beyond_reason,
		growing_ends_before_memory_does,
		this_host_has_some,
	};

	return check_main("handshake", tests, ARRAY_SIZE(tests));
}
