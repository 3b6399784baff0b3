/* SPDX-License-Identifier: MIT */
#include "../ram.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "check-main.h"

static struct ram ram;
static struct errmsg err;

static void make(uint64_t size)
{
	err = (struct errmsg){""};
	ck_assert_msg(ram_init(&ram, size, true, &err) == 0, "%s", err.text);
}

/* The pages marked as stored by us since the last look, which must be exactly these. */
static void need_dirty(uint64_t first, uint64_t n)
{
	for (uint64_t w = 0; w < ALIGN_UP(ram.npages, 64ULL) / 64; w++) {
		uint64_t bits = ram_take_own_dirty(&ram, w), want = 0;

		for (unsigned b = 0; b < 64; b++) {
			uint64_t page = w * 64 + b;

			if (page >= first && page < first + n)
				want |= 1ULL << b;
		}
		ck_assert_msg(bits == want, "pages from %llu: %#llx instead of %#llx",
			      (unsigned long long)w * 64, (unsigned long long)bits,
			      (unsigned long long)want);
	}
}

START_TEST(sizes)
{
	static const uint64_t bad[] = {
		0,	     1,		 PAGE_SIZE,  RAM_MIN - PAGE_SIZE,
		RAM_MIN + 1, UINT64_MAX, 1ULL << 63, (1ULL << 63) + PAGE_SIZE};

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		err = (struct errmsg){""};
		ck_assert_int_lt(ram_init(&ram, bad[i], true, &err), 0);
		ck_assert_msg(err.text[0], "no reason for %llu", (unsigned long long)bad[i]);
		ck_assert_int_eq(ram.fd, -1);
	}
	make(RAM_MIN);
	ck_assert_uint_eq(ram.npages, RAM_MIN / PAGE_SIZE);
	ck_assert_uint_eq(ram.nregions, 1);
	ram_destroy(&ram);
	make(RAM_LOW_MAX);
	ck_assert_uint_eq(ram.nregions, 1);
	ram_destroy(&ram);
	/* Far more than any host has: it is only reserved. */
	make(RAM_LOW_MAX + 64 * GIB);
	ck_assert_uint_eq(ram.nregions, 2);
	ck_assert_uint_eq(ram_used(&ram), 0);
	ram_destroy(&ram);
	ck_assert_uint_eq(ram_end_gpa(64 * MIB), 64 * MIB);
	ck_assert_uint_eq(ram_end_gpa(RAM_LOW_MAX), RAM_LOW_MAX);
	ck_assert_uint_eq(ram_end_gpa(RAM_LOW_MAX + MIB), RAM_HIGH_BASE + MIB);
}
END_TEST

/* Both regions' edges, the hole, and lengths that wrap. */
START_TEST(bounds)
{
	uint64_t size = RAM_LOW_MAX + 32 * MIB, end = RAM_HIGH_BASE + 32 * MIB;
	uint8_t b[2];

	make(size);
	ck_assert_ptr_eq(ram_ptr(&ram, 0, 1), ram.host);
	ck_assert_ptr_nonnull(ram_ptr(&ram, 0, RAM_LOW_MAX));
	ck_assert_ptr_null(ram_ptr(&ram, 0, RAM_LOW_MAX + 1));
	ck_assert_ptr_eq(ram_ptr(&ram, RAM_LOW_MAX - 1, 1), ram.host + RAM_LOW_MAX - 1);
	ck_assert_ptr_null(ram_ptr(&ram, RAM_LOW_MAX - 1, 2));
	ck_assert_ptr_null(ram_ptr(&ram, RAM_LOW_MAX, 1));
	ck_assert_ptr_null(ram_ptr(&ram, RAM_HIGH_BASE - 1, 1));
	ck_assert_ptr_null(ram_ptr(&ram, RAM_HIGH_BASE - 1, 2));
	ck_assert_ptr_eq(ram_ptr(&ram, RAM_HIGH_BASE, 1), ram.host + RAM_LOW_MAX);
	ck_assert_ptr_eq(ram_ptr(&ram, end - 1, 1), ram.host + size - 1);
	ck_assert_ptr_null(ram_ptr(&ram, end - 1, 2));
	ck_assert_ptr_null(ram_ptr(&ram, end, 1));
	ck_assert_ptr_null(ram_ptr(&ram, UINT64_MAX, 1));
	ck_assert_ptr_null(ram_ptr(&ram, PAGE_SIZE, UINT64_MAX));
	ck_assert_ptr_null(ram_ptr(&ram, PAGE_SIZE, UINT64_MAX - PAGE_SIZE + 1));
	ck_assert_ptr_null(ram_ptr(&ram, UINT64_MAX - 1, 4));

	ck_assert_int_eq(ram_read(&ram, end - 1, b, 2), -EFAULT);
	ck_assert_int_eq(ram_write(&ram, end - 1, b, 2), -EFAULT);
	ck_assert_int_eq(ram_zero(&ram, RAM_LOW_MAX - 1, 2), -EFAULT);
	ck_assert_int_eq(ram_write_file(&ram, end - 1, -1, 0, 2), -EFAULT);
	ck_assert_int_eq(ram_zero_pages(&ram, ram.npages, 1), -EFAULT);
	ck_assert_int_eq(ram_zero_pages(&ram, 1, ram.npages), -EFAULT);
	ck_assert_int_eq(ram_zero_pages(&ram, 1, UINT64_MAX), -EFAULT);
	need_dirty(0, 0);
	ram_destroy(&ram);
}
END_TEST

/* Each function that stores: the bytes are there, and their pages are marked, no others. */
START_TEST(stores_are_marked)
{
	static uint8_t page[PAGE_SIZE], big[3 * PAGE_SIZE], back[3 * PAGE_SIZE];
	char path[] = "/tmp/godwit-ram-XXXXXX";
	int fd;

	memset(big, 0x77, sizeof(big));
	memset(page, 0x55, sizeof(page));
	make(RAM_MIN);
	need_dirty(0, 0);

	ck_assert_int_eq(ram_write(&ram, 5 * PAGE_SIZE + 7, "x", 1), 0);
	need_dirty(5, 1);
	need_dirty(0, 0);
	ck_assert_int_eq(ram_write(&ram, 6 * PAGE_SIZE - 1, "xy", 2), 0);
	need_dirty(5, 2);
	ck_assert_int_eq(ram_write(&ram, 8 * PAGE_SIZE, big, sizeof(big)), 0);
	need_dirty(8, 3);
	ck_assert_int_eq(ram_read(&ram, 8 * PAGE_SIZE, back, sizeof(back)), 0);
	ck_assert_mem_eq(back, big, sizeof(big));
	/* Over a word of the bitmap. */
	ck_assert_int_eq(ram_write(&ram, 63 * PAGE_SIZE, big, 2 * PAGE_SIZE), 0);
	need_dirty(63, 2);
	ck_assert_int_eq(ram_write(&ram, 5 * PAGE_SIZE, big, 0), 0);
	need_dirty(0, 0);
	ck_assert_int_eq(ram_write(&ram, RAM_MIN, big, 0), 0);
	need_dirty(0, 0);

	ck_assert_int_eq(ram_zero(&ram, 9 * PAGE_SIZE - 1, 2), 0);
	need_dirty(8, 2);
	ck_assert_int_eq(ram_read(&ram, 9 * PAGE_SIZE - 2, back, 4), 0);
	ck_assert_mem_eq(back, "\x77\0\0\x77", 4);

	memcpy(ram_dma_page(&ram, ram.npages - 1), page, PAGE_SIZE);
	ram_dma_done(&ram, ram_page(&ram, ram.npages - 1), PAGE_SIZE);
	need_dirty(ram.npages - 1, 1);
	ck_assert_mem_eq(ram_page(&ram, ram.npages - 1), page, PAGE_SIZE);

	ck_assert_int_eq(ram_zero_pages(&ram, 8, 3), 0);
	need_dirty(8, 3);
	memset(back, 0, sizeof(back));
	ck_assert_mem_eq(ram_page(&ram, 8), back, 3 * PAGE_SIZE);

	fd = mkstemp(path);
	ck_assert_int_ge(fd, 0);
	unlink(path);
	ck_assert_int_eq(write_exact(fd, "....file's", 10), 0);
	ck_assert_int_eq(ram_write_file(&ram, 3 * PAGE_SIZE - 2, fd, 4, 6), 0);
	need_dirty(2, 2);
	ck_assert_int_eq(ram_read(&ram, 3 * PAGE_SIZE - 2, back, 6), 0);
	ck_assert_mem_eq(back, "file's", 6);
	/* A file that ends early may have stored some. */
	ck_assert_int_eq(ram_write_file(&ram, 20 * PAGE_SIZE, fd, 0, 2 * PAGE_SIZE), -ENODATA);
	need_dirty(20, 2);
	close(fd);
	ram_destroy(&ram);
}
END_TEST

START_TEST(index_is_offset)
{
	make(RAM_LOW_MAX + 32 * MIB);
	ck_assert_int_eq(ram_write(&ram, RAM_HIGH_BASE + 5 * PAGE_SIZE, "high", 4), 0);
	ck_assert_mem_eq(ram_page(&ram, RAM_LOW_MAX / PAGE_SIZE + 5), "high", 4);
	need_dirty(RAM_LOW_MAX / PAGE_SIZE + 5, 1);
	ram_destroy(&ram);
}
END_TEST

START_TEST(holes)
{
	uint64_t index = 0, n = 0;

	make(RAM_MIN);
	ck_assert(!ram_next_populated(&ram, &index, &n));
	ck_assert_uint_eq(ram_used(&ram), 0);
	ck_assert_int_eq(ram_write(&ram, 100 * PAGE_SIZE, "x", 1), 0);
	ck_assert_int_eq(ram_write(&ram, 101 * PAGE_SIZE, "x", 1), 0);
	ck_assert_int_eq(ram_write(&ram, RAM_MIN - 1, "x", 1), 0);
	index = 0;
	ck_assert(ram_next_populated(&ram, &index, &n));
	ck_assert(index <= 100 && index + n >= 102);
	ck_assert_uint_ge(ram_used(&ram), 3 * PAGE_SIZE);
	index = 101;
	ck_assert(ram_next_populated(&ram, &index, &n));
	ck_assert(index == 101 && n >= 1);
	index = index + n;
	ck_assert(ram_next_populated(&ram, &index, &n));
	ck_assert_uint_eq(index + n, ram.npages);
	index = ram.npages;
	ck_assert(!ram_next_populated(&ram, &index, &n));
	/* Given back. */
	ck_assert_int_eq(ram_zero_pages(&ram, 0, ram.npages), 0);
	index = 0;
	ck_assert(!ram_next_populated(&ram, &index, &n));
	ck_assert_uint_eq(ram_used(&ram), 0);
	ram_destroy(&ram);
}
END_TEST

/* Who cannot tell holes takes everything for data. */
START_TEST(holes_unknown)
{
	uint64_t bits[RAM_HOLES_MAX / 64], index = 7, n = 0;

	ck_assert_int_eq(ram_init(&ram, RAM_MIN, false, &err), 0);
	ram_find_holes(&ram, 0, 0, 64, bits);
	ck_assert_uint_eq(bits[0], ram.no_holes ? 0 : UINT64_MAX);
	ram.no_holes = true;
	ram_find_holes(&ram, 0, 0, 64, bits);
	ck_assert_uint_eq(bits[0], 0);
	ck_assert(ram_next_populated(&ram, &index, &n));
	ck_assert_uint_eq(index, 7);
	ck_assert_uint_eq(n, ram.npages - 7);
	ram_destroy(&ram);
}
END_TEST

/*
 * Where the host lets a tmpfs have huge pages, RAM is in some, for root and for others; who may
 * not even enter a user namespace has small ones.
 */
START_TEST(huge_pages)
{
	FILE *f = fopen("/sys/kernel/mm/transparent_hugepage/enabled", "re");
	bool others = geteuid() != 0 || _i;
	char text[64] = "[never]";

	if (f) {
		ck_assert_ptr_nonnull(fgets(text, sizeof(text), f));
		fclose(f);
	}
	if (_i && geteuid() == 0)
		ck_assert(setresgid(65534, 65534, 65534) == 0 &&
			  setresuid(65534, 65534, 65534) == 0);
	/* As after an exec, which this process has not had: its files in /proc are its own. */
	if (_i)
		ck_assert_int_eq(prctl(PR_SET_DUMPABLE, _i == 1), 0);
	make(RAM_MIN);
	ck_assert_uint_eq((uintptr_t)ram.host % (2 * MIB), 0);
	if (strstr(text, "[never]") || _i == 2)
		ck_assert(!ram.huge);
	else if (!others && !ram.huge)
		fprintf(stderr, "no huge pages: this kernel is older than Linux 6.4\n");
	else if (!ram.huge)
		fprintf(stderr, "no user namespaces here: no huge pages for uid %u\n", geteuid());
	ck_assert_int_eq(ram_zero(&ram, 5 * MIB, 1), 0);
	if (!ram.huge)
		ck_assert_uint_eq(ram_used(&ram), PAGE_SIZE);
	ck_assert_uint_le(ram_used(&ram), 2 * MIB);
	/* A single page can be given back all the same. */
	ck_assert_int_eq(ram_zero_pages(&ram, 5 * MIB / PAGE_SIZE, 1), 0);
	ck_assert_uint_le(ram_used(&ram), 2 * MIB - PAGE_SIZE);
	ram_destroy(&ram);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("ram");
	TCase *tc = tcase_create("ram");

	tcase_set_timeout(tc, 60);
	tcase_add_test(tc, sizes);
	tcase_add_test(tc, bounds);
	tcase_add_test(tc, stores_are_marked);
	tcase_add_test(tc, index_is_offset);
	tcase_add_test(tc, holes);
	tcase_add_test(tc, holes_unknown);
	tcase_add_loop_test(tc, huge_pages, 0, 3);
	suite_add_tcase(s, tc);
	return check_run(s);
}
