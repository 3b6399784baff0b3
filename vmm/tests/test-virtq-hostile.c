/* SPDX-License-Identifier: MIT */
/* Rings as no driver should write them: all of it is refused, and nothing comes of it. */
#include "virtq-fixture.h"

/* ---- hostile rings ---- */

static void offer_one(const struct driver_desc *desc, unsigned n, unsigned head)
{
	for (unsigned i = 0; i < n; i++)
		driver_desc(d, 0, i, desc[i].addr, desc[i].len, desc[i].flags, desc[i].next);
	driver_offer(d, 0, head);
}

#define G DRIVER_FIRST_GPA
#define W DRIVER_WRITE
#define N DRIVER_NEXT
#define I DRIVER_INDIRECT
#define T (8 * MIB) /* an indirect table */

/* clang-format off */
static const struct {
	const char *what;
	unsigned head;
	struct driver_desc desc[4], table[4];
} mistakes[] = {
	{"a head beyond the table", 8, {{0}}, {{0}}},
	{"a head far beyond the table", 0xffff, {{0}}, {{0}}},
	{"next beyond the table", 0, {{G, 1, N, 8}}, {{0}}},
	{"next far beyond the table", 0, {{G, 1, N, 0xffff}}, {{0}}},
	{"a circle of one", 0, {{G, 1, N, 0}}, {{0}}},
	{"a circle of one without bytes", 0, {{G, 0, N, 0}}, {{0}}},
	{"a circle of two", 0, {{G, 1, N, 1}, {G, 1, N, 0}}, {{0}}},
	{"a circle off the head", 0, {{G, 1, N, 1}, {G, 1, N, 2}, {G, 1, N, 1}}, {{0}}},
	{"the end of RAM", 0, {{RAM_MIN, 1, 0, 0}}, {{0}}},
	{"across the end of RAM", 0, {{RAM_MIN - 1, 2, 0, 0}}, {{0}}},
	{"across the end of RAM, to write", 0, {{RAM_MIN - 1, 2, W, 0}}, {{0}}},
	{"the hole", 0, {{0xd0000000, 4, W, 0}}, {{0}}},
	{"above 4 GiB", 0, {{RAM_HIGH_BASE, 4, W, 0}}, {{0}}},
	{"the end of the address space", 0, {{UINT64_MAX, 1, 0, 0}}, {{0}}},
	{"around the end of the address space", 0, {{UINT64_MAX, 2, 0, 0}}, {{0}}},
	{"far around the address space", 0, {{UINT64_MAX - 0xffff, UINT32_MAX, W, 0}}, {{0}}},
	{"all lengths", 0, {{0, UINT32_MAX, W, 0}}, {{0}}},
	{"no bytes outside RAM", 0, {{UINT64_MAX, 0, 0, 0}}, {{0}}},
	{"to read behind to write", 0, {{G, 1, W | N, 1}, {G, 1, 0, 0}}, {{0}}},
	{"no bytes to read behind to write", 0, {{G, 1, W | N, 1}, {G, 0, 0, 0}}, {{0}}},
	{"the second outside RAM", 0, {{G, 1, N, 1}, {RAM_MIN, 1, 0, 0}}, {{0}}},
	{"a table of no bytes", 0, {{T, 0, I, 0}}, {{G, 1, 0, 0}}},
	{"a table of 8 bytes", 0, {{T, 8, I, 0}}, {{G, 1, 0, 0}}},
	{"a table of 17 bytes", 0, {{T, 17, I, 0}}, {{G, 1, 0, 0}}},
	{"a table of more than the queue has", 0, {{T, 9 * 16, I, 0}}, {{G, 1, 0, 0}}},
	{"a table of 4 GiB", 0, {{T, 0xfffffff0, I, 0}}, {{G, 1, 0, 0}}},
	{"a table outside RAM", 0, {{RAM_MIN, 16, I, 0}}, {{0}}},
	{"a table across the end of RAM", 0, {{RAM_MIN - 8, 16, I, 0}}, {{0}}},
	{"a table at the end of the address space", 0, {{UINT64_MAX - 15, 32, I, 0}}, {{0}}},
	{"a table across the end of the address space", 0, {{UINT64_MAX - 7, 16, I, 0}}, {{0}}},
	{"a table and a next", 0, {{T, 16, I | N, 1}, {G, 1, 0, 0}}, {{G, 1, 0, 0}}},
	{"a table in a table", 0, {{T, 32, I, 0}}, {{T + 16, 16, I, 0}, {G, 1, 0, 0}}},
	{"a table in a table, second", 0, {{T, 32, I, 0}}, {{G, 1, N, 1}, {T, 16, I, 0}}},
	{"next beyond a table", 0, {{T, 32, I, 0}}, {{G, 1, N, 2}, {G, 1, 0, 0}}},
	{"next far beyond a table", 0, {{T, 32, I, 0}}, {{G, 1, N, 0xffff}}},
	{"a circle in a table", 0, {{T, 32, I, 0}}, {{G, 1, N, 1}, {G, 1, N, 0}}},
	{"a table's buffer outside RAM", 0, {{T, 16, I, 0}}, {{RAM_MIN, 1, W, 0}}},
	{"order across a table", 0, {{G, 1, W | N, 1}, {T, 16, I, 0}}, {{G, 1, 0, 0}}},
};
/* clang-format on */

START_TEST(hostile_chains)
{
	start(8, _i % 2);
	for (unsigned i = 0; i < 4; i++)
		driver_desc_at(d, T, i, mistakes[_i / 2].table[i].addr,
			       mistakes[_i / 2].table[i].len, mistakes[_i / 2].table[i].flags,
			       mistakes[_i / 2].table[i].next);
	offer_one(mistakes[_i / 2].desc, 4, mistakes[_i / 2].head);
	pop_refused(mistakes[_i / 2].what);
	/* It does not become right by asking again. */
	pop_refused(mistakes[_i / 2].what);
	end();
}
END_TEST

/* An idx that says more than the ring can hold, in either direction. */
START_TEST(hostile_index)
{
	static const uint16_t ahead[] = {9, 10, 256, 0x7fff, 0x8000, 0xffff};

	start(8, false);
	for (unsigned at = 0; at < 70000; at += 1009) {
		q.next_avail = (uint16_t)at;
		for (size_t i = 0; i < ARRAY_SIZE(ahead); i++) {
			driver_set_avail_idx(d, 0, (uint16_t)(at + ahead[i]));
			pop_refused("an index that jumps");
		}
		driver_desc(d, 0, 0, G, 1, 0, 0);
		driver_set_avail_idx(d, 0, (uint16_t)(at + 8));
		ck_assert_int_eq(pop(), 1);
	}
	end();
}
END_TEST

/* Longer than the caller's vector, and more bytes than a length can say. */
START_TEST(too_much)
{
	static struct driver_buf bufs[512];

	start(512, false);
	for (unsigned i = 0; i < 4; i++)
		bufs[i] = (struct driver_buf){G, 1, i >= 2};
	driver_add(d, 0, bufs, 4);
	for (c.max = 0; c.max < 4; c.max++)
		pop_refused("more buffers than the caller takes");
	ck_assert_int_eq(pop(), 1);
	driver_add_indirect(d, 0, bufs, 4);
	c.max = 3;
	pop_refused("more buffers than the caller takes");
	c.max = 4;
	ck_assert_int_eq(pop(), 1);
	/* Buffers without bytes take no place in it. */
	for (unsigned i = 0; i < 50; i++)
		bufs[i] = (struct driver_buf){G, i == 20, false};
	driver_add(d, 0, bufs, 50);
	c.max = 1;
	ck_assert_int_eq(pop(), 1);
	ck_assert_uint_eq(c.n_out, 1);
	end();

	for (unsigned in = 0; in < 2; in++) {
		start(512, false);
		for (unsigned i = 0; i < 257; i++)
			bufs[i] = (struct driver_buf){0, RAM_MIN, in};
		driver_add(d, 0, bufs, 255);
		ck_assert_int_eq(pop(), 1);
		ck_assert_uint_eq(in ? c.in_len : c.out_len, 255 * RAM_MIN);
		driver_add(d, 0, bufs, 257);
		pop_refused("4 GiB and more");
		end();
	}
}
END_TEST

/* Whatever the guest writes: what is taken lies in RAM, and is no more than can be. */
static void need_sane(void)
{
	uint64_t out = 0, in = 0;

	for (uint32_t i = 0; i < c.n_out + c.n_in; i++) {
		uint64_t at = (uint64_t)((uint8_t *)iov[i].iov_base - vm.ram.host);

		if ((uint8_t *)iov[i].iov_base < vm.ram.host || at > RAM_MIN ||
		    iov[i].iov_len > RAM_MIN - at || iov[i].iov_len == 0)
			ck_abort_msg("a buffer outside RAM");
		*(i < c.n_out ? &out : &in) += iov[i].iov_len;
	}
	if (c.n_out + c.n_in > c.max || out != c.out_len || in != c.in_len || in > UINT32_MAX ||
	    out > UINT32_MAX)
		ck_abort_msg("sums that are wrong");
}

START_TEST(random_rings)
{
	static const uint64_t addrs[] = {0,	      G,       T,	   T + 64,    RAM_MIN,
					 RAM_MIN - 1, 1 << 20, UINT64_MAX, 1ULL << 63};
	static const uint32_t lens[] = {0,  1,	 15,   16,	   32,	      48,
					64, 128, 4096, 0xfffffff0, UINT32_MAX};
	uint64_t state = 88172645463325252UL + (uint64_t)_i;
	unsigned taken = 0;

	start(8, _i & 1);
	c.max = 6;
	for (unsigned n = 0; n < 50000; n++) {
		/* A few descriptors at a time, here and in a table. */
		for (unsigned k = 0; k < 4; k++) {
			uint64_t r = rnd(&state);

			driver_desc_at(d, r & 1 ? T : dq->desc, (r >> 1) & 7,
				       addrs[(r >> 8) % ARRAY_SIZE(addrs)],
				       lens[(r >> 16) % ARRAY_SIZE(lens)], (r >> 24) & 7,
				       (unsigned)(r >> 32) % 10);
		}
		dq->avail_idx = q.next_avail;
		driver_offer(d, 0, (unsigned)(rnd(&state) % 9));
		if (pop() == 1) {
			need_sane();
			virtq_push(&q, ram, c.head, 0);
			taken++;
		}
	}
	ck_assert_uint_gt(taken, 1000);
	end();
}
END_TEST

/* ---- memory that changes while we look ---- */

static atomic_bool flip_on;

static void *flip(void *arg)
{
	struct driver_desc *desc = arg;

	for (unsigned i = 0; atomic_load(&flip_on); i++) {
		struct driver_desc a = {G, 16, 0, 0}, b = {UINT64_MAX - 7, UINT32_MAX, N | W, 9};

		/* Parts of one and of the other. */
		desc[0].addr = i & 1 ? a.addr : b.addr;
		desc[0].len = i & 2 ? a.len : b.len;
		desc[0].flags = i & 4 ? a.flags : b.flags;
		desc[0].next = i & 8 ? a.next : b.next;
		atomic_signal_fence(memory_order_seq_cst);
	}
	return NULL;
}

START_TEST(changes_while_read)
{
	unsigned taken = 0;
	pthread_t thread;

	start(8, false);
	flip_on = true;
	ck_assert_int_eq(pthread_create(&thread, NULL, flip, driver_mem(d, dq->desc, 16)), 0);
	for (unsigned i = 0; i < 100000; i++) {
		dq->avail_idx = q.next_avail;
		driver_offer(d, 0, 0);
		if (pop() == 1) {
			need_sane();
			taken++;
		}
	}
	flip_on = false;
	pthread_join(thread, NULL);
	ck_assert_uint_gt(taken, 0);
	end();
}
END_TEST

int main(void)
{
	const struct virtq_test tests[] = {
		{hostile_chains, 2 * (int)ARRAY_SIZE(mistakes)},
		{hostile_index, 1},
		{too_much, 1},
		{random_rings, 4},
		/* Guest memory has no owner: to TSan this is what it is, a race. */
		{changes_while_read, !UNDER_TSAN},
	};

	return virtq_main("virtq-hostile", tests, ARRAY_SIZE(tests));
}
