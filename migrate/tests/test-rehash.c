/* SPDX-License-Identifier: MIT */
/* RAM against the table: each page that differs is found, and the first one is named. */
#include "../rehash.h"

#include <errno.h>
#include <string.h>

#include "../../vmm/tests/check-main.h"

/* Several ranges for several threads. */
#define SIZE (64 * MIB)
#define NPAGES (SIZE / PAGE_SIZE)

static struct ram ram;
static struct hashes h;
static uint8_t page[PAGE_SIZE];

static void begin(void)
{
	struct errmsg err = {""};

	ck_assert_msg(ram_init(&ram, SIZE, true, &err) == 0, "%s", err.text);
	ck_assert_int_eq(hashes_init(&h, ram.npages, 42), 0);
}

static void end(void)
{
	hashes_free(&h);
	ram_destroy(&ram);
}

static void store(uint64_t index, uint8_t value)
{
	memset(page, value, sizeof(page));
	page[index % PAGE_SIZE] ^= 0x80;
	if (ram_write(&ram, index * PAGE_SIZE, page, PAGE_SIZE))
		ck_abort_msg("no page %llu", (unsigned long long)index);
	hashes_set(&h, index, hash_page(&h, ram_page(&ram, index)));
}

/* 0 when RAM is as the table says, else 1 + the page that is not. */
static uint64_t differs(void)
{
	uint64_t index = UINT64_MAX, cpu = 0;
	int ret = rehash_compare(&h, &ram, &index, NULL, NULL, &cpu);

	ck_assert(ret == 0 || ret == -EBADMSG);
	return ret ? 1 + index : 0;
}

static void flip(uint64_t index, uint64_t low, uint64_t high)
{
	struct page_hash hash = h.table[index];

	hash.low ^= low;
	hash.high ^= high;
	hashes_set(&h, index, hash);
}

START_TEST(ram_is_compared)
{
	begin();
	ck_assert_uint_eq(differs(), 0);
	store(0, 1);
	store(700, 2);
	store(NPAGES - 1, 3);
	ck_assert_uint_eq(differs(), 0);
	/* A flipped bit in each of them. */
	for (unsigned i = 0; i < 3; i++) {
		static const uint64_t pages[] = {0, 700, NPAGES - 1};
		uint64_t gpa = pages[i] * PAGE_SIZE + 1000 * i + 95;
		uint8_t byte;

		ck_assert_int_eq(ram_read(&ram, gpa, &byte, 1), 0);
		byte ^= 4;
		ck_assert_int_eq(ram_write(&ram, gpa, &byte, 1), 0);
		ck_assert_uint_eq(differs(), 1 + pages[i]);
		byte ^= 4;
		ck_assert_int_eq(ram_write(&ram, gpa, &byte, 1), 0);
		ck_assert_uint_eq(differs(), 0);
	}
	end();
}
END_TEST

/* What the table calls content and RAM has not, and the other way round. */
START_TEST(holes_are_compared)
{
	begin();
	store(500, 9);
	/* A byte where nothing was ever stored. */
	ck_assert_int_eq(ram_write(&ram, 900 * PAGE_SIZE + 3, "x", 1), 0);
	ck_assert_uint_eq(differs(), 1 + 900);
	ck_assert_int_eq(ram_zero_pages(&ram, 900, 1), 0);
	ck_assert_uint_eq(differs(), 0);
	/* Content lost to a hole: before, between, after what is there. */
	ck_assert_int_eq(ram_zero_pages(&ram, 500, 1), 0);
	ck_assert_uint_eq(differs(), 1 + 500);
	store(500, 9);
	for (unsigned i = 0; i < 3; i++) {
		static const uint64_t lost[] = {3, 501, NPAGES - 1};

		h.table[lost[i]].low = 1;
		ck_assert_uint_eq(differs(), 1 + lost[i]);
		h.table[lost[i]] = h.zero;
	}
	/* A page of zeros that has memory is as good as a hole. */
	memset(page, 0, sizeof(page));
	ck_assert_int_eq(ram_write(&ram, 600 * PAGE_SIZE, page, PAGE_SIZE), 0);
	ck_assert_uint_eq(differs(), 0);
	end();
}
END_TEST

static int count_tick(void *arg)
{
	(*(unsigned *)arg)++;
	return 0;
}

static int end_tick(void *arg)
{
	(*(unsigned *)arg)++;
	return -ECANCELED;
}

START_TEST(comparing_says_that_it_lives)
{
	unsigned ticks = 0;
	uint64_t index, cpu = 0;

	begin();
	for (uint64_t i = 0; i < NPAGES; i++)
		store(i, (uint8_t)(1 + i % 200));
	ck_assert_int_eq(rehash_compare(&h, &ram, &index, count_tick, &ticks, &cpu), 0);
	ck_assert_uint_ge(ticks, 1);
	/* Told to end it does, before it finds what is wrong further on. */
	store(NPAGES - 1, 1);
	flip(NPAGES - 1, 1, 0);
	ticks = 0;
	ck_assert_int_eq(rehash_compare(&h, &ram, &index, end_tick, &ticks, &cpu), -ECANCELED);
	ck_assert_uint_eq(ticks, 1);
	end();
}
END_TEST

/* However the threads share it out, it is the first one that is named. */
START_TEST(the_first_of_many)
{
	begin();
	for (uint64_t i = 0; i < NPAGES; i++)
		store(i, (uint8_t)(1 + i % 200));
	ck_assert_uint_eq(differs(), 0);
	for (uint64_t i = NPAGES; i-- > 0;) {
		if (i % 1999)
			continue;
		flip(i, 1, 0);
		ck_assert_uint_eq(differs(), 1 + i);
	}
	end();
}
END_TEST

int main(void)
{
	const TTest *const tests[] = {
		ram_is_compared,
		holes_are_compared,
		comparing_says_that_it_lives,
		the_first_of_many,
	};

	return check_main("rehash", tests, ARRAY_SIZE(tests));
}
