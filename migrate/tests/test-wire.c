/* SPDX-License-Identifier: MIT */
#include "../wire.h"

#include <errno.h>
#include <string.h>

#include "../../vmm/tests/check-main.h"

#define NPAGES 1000ULL

static struct wire_batch head;
static struct wire_desc desc[WIRE_BATCH_DESCS + 8];
static const char *why;

static struct wire_desc data_page(uint64_t index)
{
	return (struct wire_desc){.index = index, .count = 1, .kind = WIRE_PAGE_DATA};
}

static struct wire_desc zeros(uint64_t index, uint32_t count)
{
	return (struct wire_desc){.index = index, .count = count, .kind = WIRE_PAGE_ZERO};
}

static uint32_t length(void)
{
	return (uint32_t)(sizeof(head) + head.n_descs * sizeof(desc[0]) +
			  wire_batch_contents(&head));
}

static int check(void)
{
	why = "";
	return wire_check_batch(&head, desc, length(), NPAGES, &why);
}

static void refused(const char *text)
{
	ck_assert_int_eq(check(), -EPROTO);
	ck_assert_msg(strstr(why, text), "'%s' instead of '%s'", why, text);
}

START_TEST(good_batches)
{
	head = (struct wire_batch){.n_descs = 3, .n_data = 2};
	desc[0] = data_page(0);
	desc[1] = zeros(1, 7);
	desc[2] = data_page(NPAGES - 1);
	ck_assert_int_eq(check(), 0);
	/* All of RAM at once. */
	head = (struct wire_batch){.n_descs = 1};
	desc[0] = zeros(0, NPAGES);
	ck_assert_int_eq(check(), 0);
	/* As many as there may be. */
	head = (struct wire_batch){.n_descs = WIRE_BATCH_DESCS, .n_data = WIRE_BATCH_PAGES};
	for (unsigned i = 0; i < WIRE_BATCH_DESCS; i++)
		desc[i] = i % 2 ? data_page(i) : zeros(i, 1);
	ck_assert_int_eq(check(), 0);
	ck_assert_uint_le(length(), wire_max_length(WIRE_PAGES));
}
END_TEST

START_TEST(counts)
{
	head = (struct wire_batch){.n_descs = 0};
	refused("counts beyond the limits");
	head = (struct wire_batch){.n_descs = WIRE_BATCH_DESCS + 1};
	refused("counts beyond the limits");
	head = (struct wire_batch){.n_descs = WIRE_BATCH_DESCS, .n_data = WIRE_BATCH_PAGES + 1};
	refused("counts beyond the limits");
	/* That their product wraps must not help. */
	head = (struct wire_batch){.n_descs = 0x80000001, .n_data = 1};
	ck_assert_int_eq(wire_check_batch(&head, desc, 16 + 32 + 4096, NPAGES, &why), -EPROTO);
	head = (struct wire_batch){.n_descs = 1, .n_data = 0x100001};
	ck_assert_int_eq(wire_check_batch(&head, desc, 16 + 32 + 4096, NPAGES, &why), -EPROTO);
}
END_TEST

START_TEST(lengths)
{
	head = (struct wire_batch){.n_descs = 2, .n_data = 1};
	desc[0] = data_page(5);
	desc[1] = zeros(6, 1);
	ck_assert_int_eq(check(), 0);
	for (uint32_t len = 0; len < 2 * length(); len++) {
		int ret = wire_check_batch(&head, desc, len, NPAGES, &why);

		ck_assert_int_eq(ret, len == length() ? 0 : -EPROTO);
	}
}
END_TEST

START_TEST(indices)
{
	static const struct {
		uint64_t index;
		uint32_t count;
	} bad[] = {
		{NPAGES, 1},	      {NPAGES - 1, 2}, {0, (uint32_t)NPAGES + 1},
		{UINT64_MAX, 1},      {UINT64_MAX, 2}, {NPAGES - 1, ~0U},
		{UINT64_MAX - 5, 10}, {1ULL << 52, 1}, {(1ULL << 63) + 1, 1},
	};

	head = (struct wire_batch){.n_descs = 1};
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		desc[0] = zeros(bad[i].index, bad[i].count);
		refused("page beyond the guest's RAM");
	}
	/* In the last of many. */
	head = (struct wire_batch){.n_descs = WIRE_BATCH_DESCS};
	for (unsigned i = 0; i < WIRE_BATCH_DESCS; i++)
		desc[i] = zeros(i, 1);
	ck_assert_int_eq(check(), 0);
	desc[WIRE_BATCH_DESCS - 1].index = NPAGES;
	refused("page beyond the guest's RAM");
}
END_TEST

START_TEST(kinds)
{
	head = (struct wire_batch){.n_descs = 1, .n_data = 1};
	desc[0] = data_page(3);
	ck_assert_int_eq(check(), 0);
	desc[0].count = 2;
	refused("unknown kind");
	desc[0] = data_page(3);
	desc[0].kind = 0;
	refused("unknown kind");
	desc[0].kind = WIRE_PAGE_DELTA + 1;
	refused("unknown kind");
	desc[0] = zeros(3, 0);
	refused("unknown kind");
	desc[0].kind = UINT32_MAX;
	refused("unknown kind");
	/* Contents for what has none, and none for what has. */
	desc[0] = zeros(3, 1);
	refused("contents and descriptors disagree");
	head = (struct wire_batch){.n_descs = 2, .n_data = 1};
	desc[0] = data_page(3);
	desc[1] = data_page(4);
	refused("contents and descriptors disagree");
}
END_TEST

START_TEST(packed)
{
	head = (struct wire_batch){.n_descs = 2, .n_data = 1, .packed = 100};
	desc[0] = data_page(5);
	desc[1] = zeros(6, 1);
	ck_assert_int_eq(check(), 0);
	ck_assert_uint_eq(length(), sizeof(head) + 2 * sizeof(desc[0]) + 100);
	head.packed = PAGE_SIZE - 1;
	ck_assert_int_eq(check(), 0);
	head.packed = PAGE_SIZE;
	refused("no smaller");
	head.packed = UINT32_MAX;
	refused("no smaller");
	head = (struct wire_batch){.n_descs = 1, .packed = 1};
	desc[0] = zeros(6, 1);
	refused("no smaller");
}
END_TEST

static struct wire_desc delta(uint64_t index, uint32_t len)
{
	return (struct wire_desc){.index = index, .count = len, .kind = WIRE_PAGE_DELTA};
}

/* A mask of 16 bytes and blocks of 32. */
START_TEST(deltas)
{
	head = (struct wire_batch){.n_descs = 3, .n_data = 1, .delta = 16 + 80};
	desc[0] = delta(5, 16);
	desc[1] = data_page(6);
	desc[2] = delta(7, 80);
	ck_assert_int_eq(check(), 0);
	ck_assert_uint_eq(length(), sizeof(head) + 3 * sizeof(desc[0]) + PAGE_SIZE + 96);
	head.packed = PAGE_SIZE + 95;
	ck_assert_int_eq(check(), 0);
	head.packed = PAGE_SIZE + 96;
	refused("no smaller");
	head.packed = 0;
	desc[2].index = NPAGES;
	refused("page beyond the guest's RAM");
	desc[2] = delta(7, 112);
	refused("contents and descriptors disagree");
	for (uint32_t len = 0; len <= PAGE_SIZE + 16; len++) {
		desc[2] = delta(7, len);
		head.delta = 16 + len;
		if (len >= 16 && len < PAGE_SIZE * 3 / 4 && len % 32 == 16)
			ck_assert_int_eq(check(), 0);
		else
			refused("unknown kind");
	}
	desc[2] = delta(7, UINT32_MAX - 15);
	head.delta = 0;
	refused("unknown kind");
	/* More than a receiver has room for. */
	head = (struct wire_batch){
		.n_descs = 2, .n_data = WIRE_BATCH_PAGES - 1, .delta = PAGE_SIZE + 1};
	refused("limits");
	head.delta = UINT32_MAX;
	refused("limits");
}
END_TEST

/* `count` is the page that it is a copy of. */
START_TEST(copies)
{
	head = (struct wire_batch){.n_descs = 2};
	desc[0] = zeros(1, 1);
	desc[1] = (struct wire_desc){.index = 9, .count = 0, .kind = WIRE_PAGE_COPY};
	ck_assert_int_eq(check(), 0);
	desc[1].count = NPAGES - 1;
	ck_assert_int_eq(check(), 0);
	desc[1].count = NPAGES;
	refused("page beyond the guest's RAM");
	desc[1].count = UINT32_MAX;
	refused("page beyond the guest's RAM");
	desc[1] = (struct wire_desc){.index = NPAGES, .count = 1, .kind = WIRE_PAGE_COPY};
	refused("page beyond the guest's RAM");
}
END_TEST

START_TEST(types)
{
	for (unsigned t = 1; t < WIRE_N_TYPES; t++) {
		ck_assert_str_ne(wire_type_name(t), "?");
		for (unsigned u = 1; u < t; u++)
			ck_assert_str_ne(wire_type_name(t), wire_type_name(u));
	}
	ck_assert_str_eq(wire_type_name(0), "?");
	ck_assert_str_eq(wire_type_name(WIRE_N_TYPES), "?");
	ck_assert_str_eq(wire_type_name(UINT32_MAX), "?");
	ck_assert_uint_eq(wire_max_length(0), 0);
	ck_assert_uint_eq(wire_max_length(WIRE_N_TYPES), 0);
	ck_assert_uint_eq(wire_max_length(UINT32_MAX), 0);
	ck_assert_uint_eq(wire_max_length(WIRE_FAIL), WIRE_TEXT_MAX);
	ck_assert_uint_eq(wire_max_length(WIRE_RUNNING), 0);
}
END_TEST

/* Every bit of what it covers counts: type, flags, length, number, payload. */
START_TEST(check_sums)
{
	struct wire_frame f = {
		.magic = WIRE_FRAME_MAGIC, .type = WIRE_PING, .length = 8, .seq = 77, .check = 5};
	uint8_t payload[8] = {1, 2, 3, 4, 5, 6, 7, 8};
	uint64_t sum = wire_check_sum(&f, payload, sizeof(payload));

	for (size_t bit = 0; bit < offsetof(struct wire_frame, check) * 8; bit++) {
		uint8_t *at = (uint8_t *)&f + bit / 8;

		*at ^= (uint8_t)(1U << bit % 8);
		ck_assert_uint_ne(wire_check_sum(&f, payload, sizeof(payload)), sum);
		*at ^= (uint8_t)(1U << bit % 8);
	}
	for (size_t bit = 0; bit < sizeof(payload) * 8; bit++) {
		payload[bit / 8] ^= (uint8_t)(1U << bit % 8);
		ck_assert_uint_ne(wire_check_sum(&f, payload, sizeof(payload)), sum);
		payload[bit / 8] ^= (uint8_t)(1U << bit % 8);
	}
	ck_assert_uint_ne(wire_check_sum(&f, payload, 7), sum);
	/* It does not cover itself. */
	f.check = 6;
	ck_assert_uint_eq(wire_check_sum(&f, payload, sizeof(payload)), sum);
	wire_check_sum(&f, NULL, 0);
}
END_TEST

int main(void)
{
	const TTest *const tests[] = {good_batches, counts, lengths, indices, kinds,
				      packed,	    deltas, copies,  types,   check_sums};

	return check_main("wire", tests, ARRAY_SIZE(tests));
}
