/* SPDX-License-Identifier: MIT */
#include "../hashes.h"

#include <errno.h>
#include <string.h>

#include "../../vmm/tests/check-main.h"

#define NPAGES (RAM_MIN / PAGE_SIZE)

static struct ram ram;
static struct hashes h;
static uint8_t page[PAGE_SIZE];

static void begin(void)
{
	struct errmsg err = {""};

	ck_assert_msg(ram_init(&ram, RAM_MIN, true, &err) == 0, "%s", err.text);
	ck_assert_int_eq(hashes_init(&h, ram.npages, 42), 0);
}

static void end(void)
{
	hashes_free(&h);
	ram_destroy(&ram);
}

/* Whatever the CPU has, both sides of a move say the same of the same page. */
START_TEST(vector_units)
{
	uint64_t want[2], got[2];

	for (unsigned n = 0; n < 50; n++) {
		for (size_t i = 0; i < PAGE_SIZE; i++)
			page[i] = (uint8_t)(i * n + i / 251);
		hash_page_sse2(page, 42 + n, want);
		if (__builtin_cpu_supports("avx2")) {
			hash_page_avx2(page, 42 + n, got);
			ck_assert_mem_eq(got, want, sizeof(want));
		}
		if (__builtin_cpu_supports("avx512f")) {
			hash_page_avx512(page, 42 + n, got);
			ck_assert_mem_eq(got, want, sizeof(want));
		}
	}
}
END_TEST

START_TEST(zero_page)
{
	struct page_hash z, one;

	begin();
	memset(page, 0, sizeof(page));
	z = hash_page(&h, page);
	ck_assert(hash_equal(&z, &h.zero));
	for (uint64_t i = 0; i < h.npages; i++)
		ck_assert(hash_equal(&h.table[i], &h.zero));
	ck_assert(page_is_zero(page));
	for (size_t i = 0; i < PAGE_SIZE; i++) {
		page[i] = 1;
		ck_assert_msg(!page_is_zero(page), "byte %zu", i);
		one = hash_page(&h, page);
		ck_assert(!hash_equal(&one, &h.zero));
		page[i] = 0;
	}
	end();
}
END_TEST

/* A table is for one migration: another seed gives other hashes. */
START_TEST(seeds)
{
	struct page_hash a, b, again;
	struct hashes other;

	begin();
	ck_assert_int_eq(hashes_init(&other, 16, 43), 0);
	memset(page, 7, sizeof(page));
	a = hash_page(&h, page);
	b = hash_page(&other, page);
	again = hash_page(&h, page);
	ck_assert(!hash_equal(&a, &b));
	ck_assert(hash_equal(&a, &again));
	hashes_free(&other);
	end();
}
END_TEST

START_TEST(any_bit_counts)
{
	struct page_hash before, after;

	begin();
	memset(page, 0x33, sizeof(page));
	before = hash_page(&h, page);
	for (size_t bit = 0; bit < PAGE_SIZE * 8; bit += 61) {
		page[bit / 8] ^= (uint8_t)(1U << bit % 8);
		after = hash_page(&h, page);
		ck_assert(!hash_equal(&before, &after));
		page[bit / 8] ^= (uint8_t)(1U << bit % 8);
	}
	/* Both halves are compared. */
	after = before;
	after.high ^= 1;
	ck_assert(!hash_equal(&before, &after));
	after = before;
	after.low ^= 1ULL << 63;
	ck_assert(!hash_equal(&before, &after));
	end();
}
END_TEST

static void flip(uint64_t index, uint64_t low, uint64_t high)
{
	struct page_hash hash = h.table[index];

	hash.low ^= low;
	hash.high ^= high;
	hashes_set(&h, index, hash);
}

START_TEST(proofs)
{
	struct page_hash root, other_root, *digest, *other;
	uint64_t pages = 3 * HASHES_CHUNK + 5;
	size_t n, m;

	ck_assert_int_eq(hashes_init(&h, pages, 42), 0);
	ck_assert_uint_eq(hashes_n_chunks(&h), 4);
	digest = hashes_proof(&h, "state", 5, &n, &root);
	ck_assert_ptr_nonnull(digest);
	ck_assert_uint_eq(n, 5);
	/* Each page changes the digest of its chunk, no other, and the root. */
	for (uint64_t i = 0; i < pages; i += i % HASHES_CHUNK < 2 ? 1 : 173) {
		flip(i, 0, 1);
		other = hashes_proof(&h, "state", 5, &m, &other_root);
		ck_assert_ptr_nonnull(other);
		for (size_t c = 0; c < n; c++)
			ck_assert_int_eq(hash_equal(&digest[c], &other[c]), c != i / HASHES_CHUNK);
		ck_assert(!hash_equal(&root, &other_root));
		free(other);
		flip(i, 0, 1);
	}
	flip(pages - 1, 1, 0);
	other = hashes_proof(&h, "state", 5, &m, &other_root);
	ck_assert(!hash_equal(&digest[3], &other[3]));
	free(other);
	flip(pages - 1, 1, 0);
	/* And the state its own. */
	other = hashes_proof(&h, "State", 5, &m, &other_root);
	ck_assert(hash_equal(&digest[3], &other[3]) && !hash_equal(&digest[4], &other[4]));
	ck_assert(!hash_equal(&root, &other_root));
	free(other);
	free(digest);
	hashes_free(&h);
}
END_TEST

int main(void)
{
	const TTest *const tests[] = {
		vector_units, zero_page, seeds, any_bit_counts, proofs,
	};

	return check_main("hashes", tests, ARRAY_SIZE(tests));
}
