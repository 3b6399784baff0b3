/* SPDX-License-Identifier: MIT */
/* The rings as they should be; test-virtq-hostile.c has what they should not. */
#include <sched.h>

#include "virtq-fixture.h"

/* ---- setting up ---- */

START_TEST(sizes_and_addresses)
{
	static const uint16_t bad_sizes[] = {0, 3, 5, 6, 7, 63, 65, 96, 127, 256, 1024, 0xffff};
	static const struct {
		uint64_t desc, avail, used;
		bool ok;
	} rings[] = {
		{0x10000, 0x20000, 0x30000, true},
		{0x10008, 0x20000, 0x30000, false},
		{0x10010, 0x20000, 0x30000, true},
		{0x10000, 0x20001, 0x30000, false},
		{0x10000, 0x20002, 0x30000, true},
		{0x10000, 0x20000, 0x30002, false},
		{0x10000, 0x20000, 0x30004, true},
		/* To the last byte of RAM, event fields included, and one unit beyond. */
		{RAM_MIN - 16 * 128, 0x20000, 0x30000, true},
		{RAM_MIN - 16 * 127, 0x20000, 0x30000, false},
		{0x10000, RAM_MIN - 6 - 2 * 128, 0x30000, true},
		{0x10000, RAM_MIN - 4 - 2 * 128, 0x30000, false},
		{0x10000, 0x20000, RAM_MIN - 8 - 8 * 128, true},
		{0x10000, 0x20000, RAM_MIN - 4 - 8 * 128, false},
		{RAM_MIN, 0x20000, 0x30000, false},
		{UINT64_MAX - 15, 0x20000, 0x30000, false},
		{0x10000, UINT64_MAX - 1, 0x30000, false},
		{0x10000, 0x20000, UINT64_MAX - 3, false},
		{0x10000, 0x20000, UINT64_MAX - 16 * 64 + 1, false},
		{1ULL << 63, 0x20000, 0x30000, false},
	};

	start(128, false);
	for (size_t i = 0; i < ARRAY_SIZE(bad_sizes); i++) {
		virtq_reset(&q);
		q.desc = dq->desc;
		q.avail = dq->avail;
		q.used = dq->used;
		q.size = bad_sizes[i];
		ck_assert_int_eq(virtq_enable(&q, ram, false), -EPROTO);
		ck_assert(!q.ready);
	}
	for (uint16_t size = 1; size <= 128; size = (uint16_t)(size * 2)) {
		virtq_reset(&q);
		q.desc = dq->desc;
		q.avail = dq->avail;
		q.used = dq->used;
		q.size = size;
		ck_assert_int_eq(virtq_enable(&q, ram, false), 0);
		ck_assert(q.ready);
	}
	for (size_t i = 0; i < ARRAY_SIZE(rings); i++) {
		virtq_reset(&q);
		q.desc = rings[i].desc;
		q.avail = rings[i].avail;
		q.used = rings[i].used;
		ck_assert_msg(virtq_enable(&q, ram, true) == (rings[i].ok ? 0 : -EPROTO),
			      "rings %zu", i);
		ck_assert_uint_eq(q.ready, rings[i].ok);
		/* The same when it comes in a state. */
		q.ready = true;
		ck_assert_int_eq(virtq_check(&q, ram, true), rings[i].ok ? 0 : -EPROTO);
	}
	end();
}
END_TEST

/* The hole below 4 GiB is no RAM, and nothing lies on both sides of it. */
START_TEST(around_the_hole)
{
	static const struct {
		uint64_t at;
		bool ok;
	} parts[] = {
		{RAM_LOW_MAX - 16 * 16, true},
		{RAM_LOW_MAX - 16 * 8, false},
		{RAM_LOW_MAX, false},
		{0xd0000000, false},
		{RAM_HIGH_BASE - 16 * 8, false},
		{RAM_HIGH_BASE, true},
		{RAM_HIGH_BASE + 16 * MIB, false},
		{RAM_HIGH_BASE + 16 * MIB - 256, true},
	};

	start_in(RAM_LOW_MAX + 16 * MIB, 16, false);
	for (size_t i = 0; i < ARRAY_SIZE(parts); i++) {
		virtq_reset(&q);
		q.desc = parts[i].at;
		q.avail = dq->avail;
		q.used = dq->used;
		ck_assert_msg(virtq_enable(&q, ram, false) == (parts[i].ok ? 0 : -EPROTO),
			      "table at %#llx", (unsigned long long)parts[i].at);
	}
	q.desc = dq->desc;
	ck_assert_int_eq(virtq_enable(&q, ram, false), 0);
	for (size_t i = 0; i < ARRAY_SIZE(parts); i++) {
		driver_desc(d, 0, 0, parts[i].at, 256, 0, 0);
		dq->avail_idx = q.next_avail;
		driver_offer(d, 0, 0);
		if (parts[i].ok) {
			ck_assert_int_eq(pop(), 1);
			need_iov(0, parts[i].at, 256);
		} else {
			pop_refused("a buffer around the hole");
		}
		/* An indirect table there, whose second descriptor is its last. */
		if (ram_ptr(ram, parts[i].at, 16))
			driver_desc_at(d, parts[i].at, 0, 4096, 1, DRIVER_NEXT, 15);
		driver_desc(d, 0, 0, parts[i].at, 256, DRIVER_INDIRECT, 0);
		if (parts[i].ok) {
			driver_desc_at(d, parts[i].at, 15, 4096, 2, 0, 0);
			dq->avail_idx = q.next_avail;
			driver_offer(d, 0, 0);
			ck_assert_int_eq(pop(), 1);
			ck_assert_uint_eq(c.n_out, 2);
		} else {
			pop_refused("a table around the hole");
		}
	}
	end();
}
END_TEST

START_TEST(not_ready)
{
	start(8, _i);
	driver_add(d, 0, &(struct driver_buf){DRIVER_FIRST_GPA, 1, false}, 1);
	q.ready = false;
	driver_watch(d);
	ck_assert_int_eq(pop(), 0);
	ck_assert(!virtq_pending(&q, ram));
	ck_assert(!virtq_want_kicks(&q, ram));
	virtq_no_kicks(&q, ram);
	virtq_push(&q, ram, 0, 1);
	virtq_put(&q, ram, 0, 0, 1);
	virtq_publish(&q, ram, 1);
	ck_assert(!virtq_must_signal(&q, ram));
	ck_assert_uint_eq(driver_check_dirty(d), 0);
	ck_assert_uint_eq(driver_clean(d), 0);
	/* Reset leaves only the largest size. */
	q.next_avail = q.next_used = q.signalled = 7;
	q.signalled_valid = q.event_idx = q.ready = true;
	q.size = 4;
	virtq_reset(&q);
	ck_assert_uint_eq(q.max, 8);
	ck_assert_uint_eq(q.size, 8);
	ck_assert(!q.ready && !q.signalled_valid && !q.event_idx);
	ck_assert_uint_eq(q.next_avail | q.next_used | q.signalled, 0);
	ck_assert_uint_eq(q.desc | q.avail | q.used, 0);
	end();
}
END_TEST

/* ---- chains ---- */

START_TEST(chains)
{
	uint64_t m;

	start(8, false);
	m = driver_alloc_pages(d, 8 * PAGE_SIZE);
	for (unsigned i = 0; i < 100; i++) {
		const struct driver_buf bufs[] = {
			{m, 16, false},
			{m + PAGE_SIZE, 0, false},
			{m + 100, 5, false},
			{m + 2 * PAGE_SIZE, 5000, true},
			{m + 7 * PAGE_SIZE, 0, true},
			{m + 4 * PAGE_SIZE, 1, true},
		};
		uint16_t head;

		ck_assert_int_eq(pop(), 0);
		ck_assert(!virtq_pending(&q, ram));
		if (i % 3 == 0)
			head = driver_add(d, 0, bufs, 6);
		else if (i % 3 == 1)
			head = driver_add_indirect(d, 0, bufs, 6);
		else {
			/* Two of the queue's, then a table as the last. */
			uint64_t table = driver_alloc(d, 8 * 16);

			for (unsigned k = 2; k < 6; k++)
				driver_desc_at(d, table, k - 2, bufs[k].gpa, bufs[k].len,
					       driver_flags_of(&bufs[k], k == 5), k - 1);
			head = dq->free_head;
			driver_desc(d, 0, head, m, 16, DRIVER_NEXT, dq->link[head]);
			/* That the table is marked as to be written means nothing. */
			driver_desc(d, 0, dq->link[head], table, 4 * 16,
				    DRIVER_INDIRECT | DRIVER_WRITE, 0);
			driver_offer(d, 0, head);
		}
		ck_assert(virtq_pending(&q, ram));
		driver_watch(d);
		ck_assert_int_eq(pop(), 1);
		ck_assert_uint_eq(c.head, head);
		ck_assert_uint_eq(c.n_out, 2);
		ck_assert_uint_eq(c.n_in, 2);
		ck_assert_uint_eq(c.out_len, 21);
		ck_assert_uint_eq(c.in_len, 5001);
		need_iov(0, m, 16);
		need_iov(1, m + 100, 5);
		need_iov(2, m + 2 * PAGE_SIZE, 5000);
		need_iov(3, m + 4 * PAGE_SIZE, 1);
		ck_assert_int_eq(pop(), 0);
		/* Put back, it comes again. */
		virtq_unpop(&q);
		ck_assert(virtq_pending(&q, ram));
		ck_assert_int_eq(pop(), 1);
		ck_assert_uint_eq(c.head, head);
		ck_assert_uint_eq(driver_clean(d), 0);
		virtq_push(&q, ram, head, 17);
		ck_assert_uint_eq(driver_check_dirty(d), 1);
		if (i % 3 != 2) {
			struct driver_used e;

			ck_assert(driver_take_used(d, 0, &e));
			ck_assert_uint_eq(e.id, head);
			ck_assert_uint_eq(e.len, 17);
		} else {
			dq->seen++;
		}
	}
	end();
}
END_TEST

/* As many as there can be, in a chain and on the ring. */
START_TEST(full)
{
	struct driver_buf bufs[16];
	struct driver_used e;

	start(16, _i);
	for (unsigned i = 0; i < 16; i++)
		bufs[i] = (struct driver_buf){DRIVER_FIRST_GPA + i, 1 + i, i >= 8};
	driver_add(d, 0, bufs, 16);
	c.max = 16;
	ck_assert_int_eq(pop(), 1);
	ck_assert_uint_eq(c.n_out, 8);
	ck_assert_uint_eq(c.n_in, 8);
	virtq_push(&q, ram, c.head, 0);
	ck_assert(driver_take_used(d, 0, &e));
	driver_add_indirect(d, 0, bufs, 16);
	ck_assert_int_eq(pop(), 1);
	ck_assert_uint_eq(c.n_out + c.n_in, 16);
	virtq_push(&q, ram, c.head, 0);
	ck_assert(driver_take_used(d, 0, &e));
	for (unsigned i = 0; i < 16; i++)
		driver_add(d, 0, bufs, 1);
	for (unsigned i = 0; i < 16; i++)
		ck_assert_int_eq(pop(), 1);
	ck_assert_int_eq(pop(), 0);
	end();
}
END_TEST

/* Through both ends of the 16-bit indices, taken in order and given back in another. */
START_TEST(wraps_around)
{
	const uint16_t size = _i & 2 ? 1 : 8;
	uint32_t n = 0, back = 0;

	start(size, _i & 1);
	while (back < 65536 + 1000) {
		uint16_t heads[8];
		uint32_t lens[8];
		unsigned batch = n % size + 1;

		for (unsigned i = 0; i < batch; i++) {
			const struct driver_buf b = {DRIVER_FIRST_GPA + n, n % 1000 + 1, n & 1};

			driver_add(d, 0, &b, 1);
			n++;
		}
		for (unsigned i = 0; i < batch; i++) {
			if (pop() != 1)
				ck_abort_msg("chain %u of %u did not come", i, n);
			heads[i] = c.head;
			lens[i] = (uint32_t)(c.in_len + c.out_len);
			if (lens[i] != (n - batch + i) % 1000 + 1)
				ck_abort_msg("chain %u has %u bytes", n - batch + i, lens[i]);
		}
		if (pop() != 0)
			ck_abort_msg("one too many");
		for (unsigned i = batch; i-- > 0;)
			virtq_push(&q, ram, heads[i], lens[i]);
		for (unsigned i = batch; i-- > 0; back++) {
			struct driver_used e;

			if (!driver_take_used(d, 0, &e) || e.id != heads[i] || e.len != lens[i])
				ck_abort_msg("used entry %u is wrong", back);
		}
		if (driver_used_idx(d, 0) != (uint16_t)back || q.next_used != (uint16_t)back ||
		    q.next_avail != (uint16_t)back)
			ck_abort_msg("indices after %u", back);
	}
	end();
}
END_TEST

/* Several used entries become visible in one go. */
START_TEST(put_and_publish)
{
	start(8, _i);
	for (unsigned round = 0; round < 16000; round++) {
		unsigned n = round % 8 + 1;
		struct driver_used e;

		for (unsigned i = 0; i < n; i++) {
			driver_add(d, 0, &(struct driver_buf){DRIVER_FIRST_GPA, 1, true}, 1);
			if (pop() != 1)
				ck_abort_msg("nothing came");
			virtq_put(&q, ram, (uint16_t)i, c.head, round + i);
			if (driver_take_used(d, 0, &e))
				ck_abort_msg("visible before it is published");
		}
		virtq_publish(&q, ram, (uint16_t)n);
		for (unsigned i = 0; i < n; i++) {
			if (!driver_take_used(d, 0, &e) || e.len != round + i)
				ck_abort_msg("entry %u of %u", i, n);
		}
		if (driver_take_used(d, 0, &e))
			ck_abort_msg("one too many");
	}
	end();
}
END_TEST

/* ---- what is stored is dirty ---- */

START_TEST(marks_of_the_ring)
{
	uint64_t entry;

	start(1024, _i);
	/* The ring has three pages: an entry beyond the first, idx in the first. */
	for (unsigned i = 0; i < 1500; i++) {
		driver_add(d, 0, &(struct driver_buf){DRIVER_FIRST_GPA, 1, true}, 1);
		driver_clean(d);
		ck_assert_int_eq(pop(), 1);
		ck_assert_uint_eq(driver_clean(d), 0);
		entry = dq->used + 4 + 8 * (i % 1024);
		virtq_put(&q, ram, 0, c.head, 5);
		driver_need_dirty(d, (uint64_t[]){entry, entry + 7}, 2);
		virtq_publish(&q, ram, 1);
		driver_need_dirty(d, (uint64_t[]){dq->used + 2}, 1);
		ck_assert(driver_take_used(d, 0, &(struct driver_used){0}));
		virtq_must_signal(&q, ram);
		ck_assert_uint_eq(driver_clean(d), 0);
	}
	virtq_no_kicks(&q, ram);
	if (_i)
		ck_assert_uint_eq(driver_clean(d), 0);
	else
		driver_need_dirty(d, (uint64_t[]){dq->used}, 1);
	virtq_want_kicks(&q, ram);
	driver_need_dirty(d, (uint64_t[]){_i ? dq->used + 4 + 8 * 1024 : dq->used}, 1);
	end();
}
END_TEST

START_TEST(marks_of_buffers)
{
	uint8_t bytes[2 * PAGE_SIZE];
	uint64_t m;

	start(8, false);
	memset(bytes, 0xab, sizeof(bytes));
	m = driver_alloc_pages(d, 16 * PAGE_SIZE);
	driver_add(d, 0,
		   (struct driver_buf[]){{m, 100, false},
					 {m + 2 * PAGE_SIZE - 10, 20, true},
					 {m + 5 * PAGE_SIZE, PAGE_SIZE + 1, true},
					 {m + 9 * PAGE_SIZE, 8, true}},
		   4);
	driver_watch(d);
	ck_assert_int_eq(pop(), 1);

	ck_assert_uint_eq(virtq_write(&c, ram, 0, bytes, 1), 1);
	driver_need_dirty(d, (uint64_t[]){m + PAGE_SIZE}, 1);
	ck_assert_uint_eq(virtq_write(&c, ram, 9, bytes, 2), 2);
	driver_need_dirty(d, (uint64_t[]){m + PAGE_SIZE, m + 2 * PAGE_SIZE}, 2);
	ck_assert_uint_eq(virtq_write(&c, ram, 19, bytes, 2), 2);
	driver_need_dirty(d, (uint64_t[]){m + 2 * PAGE_SIZE, m + 5 * PAGE_SIZE}, 2);
	ck_assert_uint_eq(virtq_write(&c, ram, 20 + PAGE_SIZE, bytes, 1), 1);
	driver_need_dirty(d, (uint64_t[]){m + 6 * PAGE_SIZE}, 1);
	/* To the end and not beyond. */
	ck_assert_uint_eq(virtq_write(&c, ram, 20 + PAGE_SIZE + 1, bytes, 100), 8);
	driver_need_dirty(d, (uint64_t[]){m + 9 * PAGE_SIZE}, 1);
	ck_assert_uint_eq(virtq_write(&c, ram, 20 + PAGE_SIZE + 9, bytes, 1), 0);
	ck_assert_uint_eq(virtq_write(&c, ram, UINT64_MAX, bytes, 1), 0);
	ck_assert_uint_eq(virtq_write(&c, ram, 0, bytes, 0), 0);
	ck_assert_uint_eq(driver_clean(d), 0);
	ck_assert_uint_eq(virtq_write(&c, ram, 0, bytes, sizeof(bytes)), 20 + PAGE_SIZE + 9);
	ck_assert_uint_eq(driver_check_dirty(d), 5);
	driver_clean(d);
	ck_assert(memcmp(driver_mem(d, m + 2 * PAGE_SIZE - 10, 20), bytes, 20) == 0);
	ck_assert(memcmp(driver_mem(d, m + 9 * PAGE_SIZE, 8), bytes, 8) == 0);
	/* What is around it and the part to read stay as they were. */
	ck_assert_uint_eq(*(uint8_t *)driver_mem(d, m + 2 * PAGE_SIZE - 11, 1), 0);
	ck_assert_uint_eq(*(uint8_t *)driver_mem(d, m + 2 * PAGE_SIZE + 10, 1), 0);
	ck_assert_uint_eq(*(uint8_t *)driver_mem(d, m + 9 * PAGE_SIZE + 8, 1), 0);
	ck_assert_uint_eq(*(uint8_t *)driver_mem(d, m, 1), 0);

	/* The same of what the kernel has stored. */
	virtq_stored(&c, ram, 0, 10);
	driver_need_dirty(d, (uint64_t[]){m + PAGE_SIZE}, 1);
	virtq_stored(&c, ram, 10, 11);
	driver_need_dirty(d, (uint64_t[]){m + 2 * PAGE_SIZE, m + 5 * PAGE_SIZE}, 2);
	virtq_stored(&c, ram, 0, 20 + PAGE_SIZE + 9);
	driver_need_dirty(d,
			  (uint64_t[]){m + PAGE_SIZE, m + 2 * PAGE_SIZE, m + 5 * PAGE_SIZE,
				       m + 6 * PAGE_SIZE, m + 9 * PAGE_SIZE},
			  5);
	virtq_stored(&c, ram, 20 + PAGE_SIZE + 1, UINT64_MAX);
	driver_need_dirty(d, (uint64_t[]){m + 9 * PAGE_SIZE}, 1);
	virtq_stored(&c, ram, 0, 0);
	virtq_stored(&c, ram, 20 + PAGE_SIZE + 9, 5);
	virtq_stored(&c, ram, UINT64_MAX, 5);
	ck_assert_uint_eq(driver_clean(d), 0);
	end();
}
END_TEST

START_TEST(reading)
{
	uint8_t bytes[300], out[300];
	uint64_t m;

	start(8, false);
	for (unsigned i = 0; i < sizeof(bytes); i++)
		bytes[i] = (uint8_t)(i * 7);
	m = driver_alloc_pages(d, PAGE_SIZE);
	driver_poke(d, m, bytes, 100);
	driver_poke(d, m + 1000, bytes + 100, 200);
	driver_add(d, 0,
		   (struct driver_buf[]){
			   {m, 100, false}, {m + 1000, 200, false}, {m + 2000, 50, true}},
		   3);
	ck_assert_int_eq(pop(), 1);
	for (unsigned from = 0; from < 300; from += 7) {
		for (unsigned len = 0; len < 300; len += 11) {
			size_t want = MIN(len, 300 - from);

			memset(out, 0, sizeof(out));
			ck_assert_uint_eq(virtq_read(&c, from, out, len), want);
			ck_assert(memcmp(out, bytes + from, want) == 0);
			ck_assert(want == sizeof(out) || out[want] == 0);
		}
	}
	ck_assert_uint_eq(virtq_read(&c, 300, out, 1), 0);
	ck_assert_uint_eq(virtq_read(&c, UINT64_MAX, out, 1), 0);
	end();
}
END_TEST

START_TEST(slices)
{
	static char mem[64];
	const struct iovec in[] = {{mem, 10}, {mem + 20, 5}, {mem + 30, 10}};
	struct iovec out[3];

	for (uint64_t from = 0; from < 25; from++) {
		for (uint64_t len = 1; from + len <= 25; len++) {
			uint32_t n = iov_slice(in, 3, from, len, out, 3);
			uint64_t at = from;

			ck_assert_uint_ge(n, 1);
			for (uint32_t i = 0; i < n; i++) {
				uint64_t off = at < 10 ? at : at < 15 ? at + 10 : at + 15;

				ck_assert_uint_gt(out[i].iov_len, 0);
				ck_assert_ptr_eq(out[i].iov_base, mem + off);
				at += out[i].iov_len;
			}
			ck_assert_uint_eq(at, from + len);
			/* One entry fewer is too few. */
			ck_assert_uint_eq(iov_slice(in, 3, from, len, out, n - 1), 0);
		}
		ck_assert_uint_eq(iov_slice(in, 3, from, 26 - from, out, 3), 0);
	}
	ck_assert_uint_eq(iov_slice(in, 3, 25, 1, out, 3), 0);
	ck_assert_uint_eq(iov_slice(in, 3, UINT64_MAX, 1, out, 3), 0);
	ck_assert_uint_eq(iov_slice(in, 3, 0, UINT64_MAX, out, 3), 0);
	ck_assert_uint_eq(iov_slice(in, 0, 0, 1, out, 3), 0);
}
END_TEST

/* ---- notifications ---- */

START_TEST(interrupts_by_flag)
{
	start(8, false);
	for (unsigned i = 0; i < 20; i++) {
		driver_set_avail_flags(d, 0, i % 2 ? DRIVER_NO_INTERRUPT : 0);
		driver_add(d, 0, &(struct driver_buf){DRIVER_FIRST_GPA, 1, true}, 1);
		ck_assert_int_eq(pop(), 1);
		virtq_push(&q, ram, c.head, 0);
		ck_assert_uint_eq(virtq_must_signal(&q, ram), i % 2 == 0);
		ck_assert(driver_take_used(d, 0, &(struct driver_used){0}));
	}
	end();
}
END_TEST

/* Has idx stepped over the event on its way from old to now? The long way round. */
static bool stepped_over(uint16_t event, uint16_t old, uint16_t now)
{
	for (uint16_t i = old; i != now; i++) {
		if (i == event)
			return true;
	}
	return false;
}

START_TEST(interrupts_by_event)
{
	uint64_t state = 4242;
	unsigned yes = 0;

	start(8, true);
	/* Nothing is known of before: rather one too many. */
	virtq_publish(&q, ram, 1);
	driver_set_used_event(d, 0, 1000);
	ck_assert(virtq_must_signal(&q, ram));
	for (unsigned i = 0; i < 100000; i++) {
		uint16_t old = q.next_used, n = (uint16_t)(rnd(&state) % 8 + 1);
		uint16_t event = (uint16_t)(old + rnd(&state) % 24 - 8);
		bool want = stepped_over(event, old, (uint16_t)(old + n)), got;

		driver_set_used_event(d, 0, event);
		virtq_publish(&q, ram, n);
		got = virtq_must_signal(&q, ram);
		if (got != want)
			ck_abort_msg("event %u, from %u to %u: %d", event, old, q.next_used, got);
		yes += got;
		/* Told once. */
		if (virtq_must_signal(&q, ram))
			ck_abort_msg("told twice");
	}
	ck_assert_uint_gt(yes, 10000);
	ck_assert_uint_lt(yes, 90000);
	end();
}
END_TEST

/*
 * No kick comes while we serve, but for the first chain of all with the event index, whose event
 * starts where the driver does.
 */
START_TEST(kicks)
{
	start(8, _i);
	for (unsigned i = 0; i < 30000; i++) {
		virtq_no_kicks(&q, ram);
		for (unsigned k = 0; k < 3; k++) {
			driver_add(d, 0, &(struct driver_buf){DRIVER_FIRST_GPA, 1, true}, 1);
			if (driver_wants_kick(d, 0) != (_i && i == 0 && k == 0))
				ck_abort_msg("chain %u: kick %u", i, k);
		}
		for (unsigned k = 0; k < 3; k++) {
			if (!virtq_want_kicks(&q, ram))
				ck_abort_msg("did not see what came meanwhile");
			if (pop() != 1)
				ck_abort_msg("nothing to take");
			virtq_push(&q, ram, c.head, 0);
			driver_take_used(d, 0, &(struct driver_used){0});
		}
		if (virtq_want_kicks(&q, ram))
			ck_abort_msg("saw what is not there");
		if (_i ? driver_avail_event(d, 0) != q.next_avail : driver_used_flags(d, 0) != 0)
			ck_abort_msg("kicks are not wanted");
	}
	end();
}
END_TEST

/*
 * Two threads, device and driver, that wait to be notified whenever there is nothing to do. A
 * barrier that is missing, or a look in the wrong order, and both wait for good. They wait in a
 * loop: the window is a few instructions wide, and asleep they would hardly ever meet in it.
 */
static atomic_uint kicks_given, irqs_given;
static atomic_bool lost;
static uint64_t rounds;

/* Until the count is no longer what it was when it was last looked at. */
static bool wait_for(atomic_uint *count, unsigned *seen)
{
	uint64_t deadline = 0;

	for (unsigned spins = 0; atomic_load(count) == *seen; spins++) {
		if (spins % 1024 != 1023)
			continue;
		sched_yield();
		if (!deadline)
			deadline = now_ns() + 10 * NS_PER_SEC;
		if (now_ns() > deadline || atomic_load(&lost))
			return false;
	}
	*seen = atomic_load(count);
	return true;
}

static void *device_thread(void *arg)
{
	unsigned seen = 0;
	uint64_t n = 0;

	(void)arg;
	while (n < rounds) {
		virtq_no_kicks(&q, ram);
		while (pop() == 1) {
			virtq_push(&q, ram, c.head, 0);
			n++;
			if (virtq_must_signal(&q, ram))
				irqs_given++;
		}
		if (!virtq_want_kicks(&q, ram) && n < rounds && !wait_for(&kicks_given, &seen)) {
			lost = true;
			break;
		}
	}
	return NULL;
}

START_TEST(no_wakeup_is_missed)
{
	unsigned seen = 0;
	pthread_t thread;

	start(8, _i);
	rounds = UNDER_TSAN ? 50000 : 500000;
	for (unsigned i = 0; i < 8; i++)
		driver_desc(d, 0, i, DRIVER_FIRST_GPA, 1, DRIVER_WRITE, 0);
	ck_assert_int_eq(pthread_create(&thread, NULL, device_thread, NULL), 0);
	for (uint64_t n = 0; n < rounds && !lost; n++) {
		driver_offer(d, 0, n % 8);
		if (driver_wants_kick(d, 0))
			kicks_given++;
		/* Interrupts on, a last look, wait. */
		driver_set_avail_flags(d, 0, 0);
		driver_set_used_event(d, 0, (uint16_t)n);
		atomic_fetch_add(&d->barrier, 1);
		while (driver_used_idx(d, 0) != (uint16_t)(n + 1)) {
			if (!wait_for(&irqs_given, &seen)) {
				lost = true;
				break;
			}
		}
		driver_set_avail_flags(d, 0, DRIVER_NO_INTERRUPT);
	}
	pthread_join(thread, NULL);
	ck_assert_msg(!lost, "both wait");
	end();
}
END_TEST

/* ---- state ---- */

START_TEST(state)
{
	struct sbuf s, l;
	struct virtq r;

	start(8, _i);
	for (unsigned i = 0; i < 66000; i++) {
		driver_add(d, 0, &(struct driver_buf){DRIVER_FIRST_GPA, 1, true}, 1);
		if (pop() != 1)
			ck_abort_msg("nothing to take");
		virtq_push(&q, ram, c.head, 0);
		virtq_must_signal(&q, ram);
		driver_take_used(d, 0, &(struct driver_used){0});
	}
	driver_add(d, 0, &(struct driver_buf){DRIVER_FIRST_GPA, 2, true}, 1);
	sb_init_save(&s);
	virtq_fields(&q, &s);
	ck_assert_int_eq(s.err, 0);
	for (size_t len = 0; len <= s.len; len++) {
		r = (struct virtq){.max = 8};
		virtq_reset(&r);
		sb_init_load(&l, s.data, len);
		virtq_fields(&r, &l);
		ck_assert_int_eq(l.err, len == s.len ? 0 : -EPROTO);
	}
	sb_end(&l);
	ck_assert_int_eq(l.err, 0);
	ck_assert_int_eq(virtq_check(&r, ram, _i), 0);
	ck_assert_uint_eq(r.max, q.max);
	ck_assert_uint_eq(r.size, q.size);
	ck_assert_uint_eq(r.ready, q.ready);
	ck_assert_uint_eq(r.desc, q.desc);
	ck_assert_uint_eq(r.avail, q.avail);
	ck_assert_uint_eq(r.used, q.used);
	ck_assert_uint_eq(r.next_avail, q.next_avail);
	ck_assert_uint_eq(r.next_used, q.next_used);
	ck_assert_uint_eq(r.signalled, q.signalled);
	ck_assert_uint_eq(r.signalled_valid, q.signalled_valid);
	ck_assert_uint_eq(r.event_idx, q.event_idx);
	/* It goes on where the other one was, and interrupts as that one would have. */
	q = r;
	dq->own_event = true;
	driver_set_used_event(d, 0, (uint16_t)(q.next_used + 1));
	ck_assert_int_eq(pop(), 1);
	ck_assert_uint_eq(c.in_len, 2);
	virtq_push(&q, ram, c.head, 2);
	ck_assert_uint_eq(virtq_must_signal(&q, ram), !_i);
	ck_assert(driver_take_used(d, 0, &(struct driver_used){0}));
	sb_free(&s);
	end();
}
END_TEST

START_TEST(hostile_state)
{
	struct virtq good, bad;

	start(8, true);
	good = q;
	for (unsigned i = 0; i < 8; i++) {
		bad = good;
		switch (i) {
		case 0:
			bad.size = 0;
			break;
		case 1:
			bad.size = 16;
			break;
		case 2:
			bad.size = 7;
			break;
		case 3:
			bad.desc += 8;
			break;
		case 4:
			bad.desc = RAM_MIN;
			break;
		case 5:
			bad.avail = UINT64_MAX - 1;
			break;
		case 6:
			bad.used = RAM_MIN - 4;
			break;
		default:
			bad.used++;
		}
		ck_assert_int_eq(virtq_check(&bad, ram, true), -EPROTO);
		/* What is not ready is checked when the driver makes it ready. */
		bad.ready = false;
		ck_assert_int_eq(virtq_check(&bad, ram, true), 0);
		ck_assert_int_eq(virtq_enable(&bad, ram, true), -EPROTO);
	}
	/* Indices may be any: the ring then says what the driver may say. */
	q.next_avail = 0x1234;
	q.next_used = 0xffff;
	ck_assert_int_eq(virtq_check(&q, ram, true), 0);
	pop_refused("indices that do not fit the ring");
	virtq_push(&q, ram, 3, 1);
	ck_assert_uint_eq(driver_used_idx(d, 0), 0);
	end();
}
END_TEST

int main(void)
{
	const struct virtq_test tests[] = {
		{sizes_and_addresses, 1},
		{around_the_hole, 1},
		{not_ready, 2},
		{chains, 1},
		{full, 2},
		{wraps_around, 4},
		{put_and_publish, 2},
		{marks_of_the_ring, 2},
		{marks_of_buffers, 1},
		{reading, 1},
		{slices, 1},
		{interrupts_by_flag, 1},
		{interrupts_by_event, 1},
		{kicks, 2},
		{no_wakeup_is_missed, 2},
		{state, 2},
		{hostile_state, 1},
	};

	return virtq_main("virtq", tests, ARRAY_SIZE(tests));
}
