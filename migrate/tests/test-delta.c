/* SPDX-License-Identifier: MIT */
#include "../delta.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "../../vmm/tests/check-main.h"

#define SEED 99

static uint8_t older[PAGE_SIZE], newer[PAGE_SIZE], made[PAGE_SIZE];
static struct delta_hashes have;

static void randomise(uint8_t *page)
{
	for (size_t i = 0; i < PAGE_SIZE; i++)
		page[i] = (uint8_t)random();
}

/* The delta from older to newer in `made`; its length. */
static uint32_t make(void)
{
	delta_hash(older, SEED, &have);
	memcpy(made, newer, PAGE_SIZE);
	return delta_make(made, SEED, &have);
}

static void arrives(uint32_t len)
{
	ck_assert(delta_length_ok(len));
	ck_assert_int_eq(delta_apply(older, made, len), 0);
	ck_assert_mem_eq(older, newer, PAGE_SIZE);
}

START_TEST(one_byte_each)
{
	randomise(older);
	memcpy(newer, older, PAGE_SIZE);
	for (size_t i = 0; i < PAGE_SIZE; i++) {
		newer[i] ^= (uint8_t)(1U << i % 8);
		ck_assert_uint_eq(make(), 16 + 32);
		arrives(16 + 32);
	}
	ck_assert_uint_eq(make(), 16);
	arrives(16);
}
END_TEST

START_TEST(any_blocks)
{
	unsigned whole = 0;

	for (unsigned n = 0; n < 2000; n++) {
		unsigned blocks = 0;
		uint32_t len;

		randomise(older);
		memcpy(newer, older, PAGE_SIZE);
		for (unsigned i = 0; i < DELTA_BLOCKS; i++) {
			if ((unsigned)random() % 2000 >= n)
				continue;
			newer[i * DELTA_BLOCK + (unsigned)random() % DELTA_BLOCK] ^= 0x40;
			blocks++;
		}
		len = make();
		if (blocks * DELTA_BLOCK + 16 >= DELTA_MAX) {
			ck_assert_uint_eq(len, 0);
			ck_assert_mem_eq(made, newer, PAGE_SIZE);
			whole++;
			continue;
		}
		ck_assert_uint_eq(len, blocks * DELTA_BLOCK + 16);
		arrives(len);
	}
	ck_assert_uint_gt(whole, 100);
	ck_assert_uint_lt(whole, 1000);
}
END_TEST

/* Another seed tells nothing. */
START_TEST(seeds)
{
	randomise(older);
	memcpy(newer, older, PAGE_SIZE);
	delta_hash(older, SEED + 1, &have);
	memcpy(made, newer, PAGE_SIZE);
	ck_assert_uint_eq(delta_make(made, SEED, &have), 0);
}
END_TEST

/* Whatever the mask says: the page or -EPROTO, and nothing beyond what came. */
START_TEST(hostile)
{
	for (unsigned n = 0; n < 4000; n++) {
		uint32_t len = 16 + 32 * ((unsigned)random() % 95);
		unsigned bits = n % 3 == 0 ? 0 : (unsigned)random() % 129;
		uint8_t *delta = malloc(len), *page = malloc(PAGE_SIZE), want[PAGE_SIZE];
		uint64_t mask[2] = {0};
		int ret;

		ck_assert(delta_length_ok(len));
		for (unsigned i = 0; i < bits; i++) {
			unsigned bit = (unsigned)random() % 128;

			mask[bit / 64] |= 1ULL << bit % 64;
		}
		bits = (unsigned)(__builtin_popcountll(mask[0]) + __builtin_popcountll(mask[1]));
		memset(delta, 1, len);
		memset(page, 2, PAGE_SIZE);
		memcpy(delta + len - 16, mask, 16);
		ret = delta_apply(page, delta, len);
		ck_assert_int_eq(ret, bits * 32 + 16 == len ? 0 : -EPROTO);
		for (unsigned i = 0; i < PAGE_SIZE; i++)
			want[i] = ret == 0 && mask[i / 2048] >> i / 32 % 64 & 1 ? 1 : 2;
		ck_assert_mem_eq(page, want, PAGE_SIZE);
		free(delta);
		free(page);
	}
	for (uint32_t len = 0; len < 2 * PAGE_SIZE; len++)
		ck_assert_int_eq(delta_length_ok(len),
				 len >= 16 && len < DELTA_MAX && len % 32 == 16);
}
END_TEST

int main(void)
{
	const TTest *const tests[] = {one_byte_each, any_blocks, seeds, hostile};

	return check_main("delta", tests, ARRAY_SIZE(tests));
}
