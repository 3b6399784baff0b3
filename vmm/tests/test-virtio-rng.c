/* SPDX-License-Identifier: MIT */
#include "../virtio_rng.h"

#include "check-main.h"
#include "virtio-driver.h"

static struct driver *d;

static void up(uint64_t features)
{
	d = driver_new(&virtio_rng_ops, NULL, RAM_MIN);
	driver_up(d, features);
}

/* Bytes of [gpa, gpa + len) that are not 0; of random ones 1 in 256 is. */
static uint64_t nonzero(uint64_t gpa, uint64_t len)
{
	const uint8_t *p = driver_mem(d, gpa, len);
	uint64_t n = 0;

	for (uint64_t i = 0; i < len; i++)
		n += p[i] != 0;
	return n;
}

START_TEST(what_it_is)
{
	up(UINT64_MAX);
	ck_assert_uint_eq(d->v->ops->type, 4);
	ck_assert_uint_eq(d->v->n_queues, 1);
	ck_assert_uint_eq(d->v->config_len, 0);
	driver_free(d);
}
END_TEST

/* Direct and indirect, with and without the event index. */
START_TEST(fills_buffers)
{
	static const uint64_t features[] = {0, VIRTIO_RING_EVENT_IDX, VIRTIO_RING_INDIRECT,
					    UINT64_MAX};
	uint64_t a, b, mem;

	up(features[_i]);
	mem = driver_alloc_pages(d, 4 * PAGE_SIZE);
	a = mem + 100;
	b = mem + 2 * PAGE_SIZE;
	for (unsigned i = 0; i < 300; i++) {
		const struct driver_buf bufs[] = {{a, 64, true}, {b, PAGE_SIZE + 7, true}};
		uint16_t head;
		struct driver_used e;

		memset(driver_mem(d, mem, 4 * PAGE_SIZE), 0, 4 * PAGE_SIZE);
		driver_settle(d);
		if (virtio_has(d->v, VIRTIO_RING_INDIRECT) && i % 2)
			head = driver_add_indirect(d, 0, bufs, 2);
		else
			head = driver_add(d, 0, bufs, 2);
		driver_watch(d);
		ck_assert(driver_kick(d, 0));
		e = driver_wait_used(d, 0);
		ck_assert_uint_eq(e.id, head);
		ck_assert_uint_eq(e.len, 64 + PAGE_SIZE + 7);
		driver_run_until(d, driver_irqs(d, 0) == 1);
		/* The used ring, and the buffers' three pages. */
		ck_assert_uint_eq(driver_check_dirty(d), 4);
		ck_assert_uint_gt(nonzero(a, 64), 40);
		ck_assert_uint_gt(nonzero(b, PAGE_SIZE + 7), PAGE_SIZE - 100);
		ck_assert_uint_eq(nonzero(mem, 100), 0);
		ck_assert_uint_eq(nonzero(a + 64, b - a - 64), 0);
		ck_assert_uint_eq(nonzero(b + PAGE_SIZE + 7, PAGE_SIZE - 7), 0);
	}
	driver_free(d);
}
END_TEST

/* A buffer beyond the limit gets as much as the limit, and nothing behind it. */
START_TEST(bounded)
{
	const uint32_t len = 4 * MIB;
	struct driver_used e;
	uint64_t mem;

	up(0);
	mem = driver_alloc_pages(d, len);
	driver_add(d, 0, &(struct driver_buf){mem, len, true}, 1);
	driver_kick(d, 0);
	e = driver_wait_used(d, 0);
	ck_assert_uint_eq(e.len, VIRTIO_RNG_MAX);
	ck_assert_uint_gt(nonzero(mem, VIRTIO_RNG_MAX), VIRTIO_RNG_MAX * 9 / 10);
	ck_assert_uint_eq(nonzero(mem + VIRTIO_RNG_MAX, len - VIRTIO_RNG_MAX), 0);
	driver_free(d);
}
END_TEST

/* A whole queue of the largest requests is served in turns: the loop's others come in between. */
START_TEST(takes_turns)
{
	unsigned n = 0, turns = 0;
	uint64_t mem;

	up(0);
	mem = driver_alloc_pages(d, VIRTIO_RNG_MAX);
	while (d->queue[0].n_free)
		driver_add(d, 0, &(struct driver_buf){mem, (uint32_t)VIRTIO_RNG_MAX, true}, 1);
	driver_kick(d, 0);
	while (n < d->queue[0].size) {
		struct driver_mark mark = {.task = {.run = driver_on_mark}};
		struct driver_used e;
		unsigned before = n;

		/* Posted ahead of the device's next turn. */
		loop_post(d->loop, &mark.task);
		driver_run_until(d, mark.ran);
		while (driver_take_used(d, 0, &e)) {
			ck_assert_uint_eq(e.len, VIRTIO_RNG_MAX);
			n++;
		}
		ck_assert_uint_le(n - before, 2);
		turns++;
	}
	ck_assert_uint_ge(turns, d->queue[0].size / 2);
	driver_settle(d);
	/* And it still hears of the next one. */
	driver_add(d, 0, &(struct driver_buf){mem, 8, true}, 1);
	ck_assert(driver_kick(d, 0));
	ck_assert_uint_eq(driver_wait_used(d, 0).len, 8);
	driver_free(d);
}
END_TEST

/*
 * A driver that goes on at once need not kick: the ring is looked at until the loop sleeps, and
 * only then is a kick asked for again.
 */
START_TEST(looked_at)
{
	struct driver_used e;
	uint64_t mem;

	up(_i ? VIRTIO_RING_EVENT_IDX : 0);
	mem = driver_alloc_pages(d, PAGE_SIZE);
	for (unsigned i = 0; i < 100; i++) {
		driver_settle(d);
		driver_add(d, 0, &(struct driver_buf){mem, 8, true}, 1);
		ck_assert(driver_kick(d, 0));
		driver_wait_used(d, 0);
		for (unsigned k = 0; k < 20; k++) {
			driver_add(d, 0, &(struct driver_buf){mem, 8, true}, 1);
			ck_assert(!driver_wants_kick(d, 0));
			while (!driver_take_used(d, 0, &e)) {
				/* Were it to sleep, it would for ever. */
				ck_assert(d->loop->looks);
				driver_step(d, NS_PER_SEC);
			}
		}
	}
	driver_free(d);
}
END_TEST

/* Drivers' mistakes stop the device, change nothing in RAM, and a reset heals it. */
START_TEST(mistakes)
{
	uint64_t mem;

	up(VIRTIO_RING_INDIRECT);
	mem = driver_alloc_pages(d, PAGE_SIZE);
	for (unsigned i = 0; i < 5; i++) {
		switch (i) {
		case 0: /* to read */
			driver_add(d, 0, &(struct driver_buf){mem, 64, false}, 1);
			break;
		case 1: /* to read and to write */
			driver_add(d, 0,
				   (struct driver_buf[]){{mem, 64, false}, {mem + 64, 64, true}},
				   2);
			break;
		case 2: /* nothing to write */
			driver_add(d, 0, &(struct driver_buf){mem, 0, true}, 1);
			break;
		case 3: /* outside RAM */
			driver_add(d, 0, &(struct driver_buf){RAM_MIN - 8, 9, true}, 1);
			break;
		default: /* a circle */
			driver_desc(d, 0, 0, mem, 1, DRIVER_NEXT | DRIVER_WRITE, 0);
			driver_offer(d, 0, 0);
		}
		driver_watch(d);
		driver_kick_always(d, 0);
		driver_run_until(d, driver_needs_reset(d));
		ck_assert_uint_eq(driver_config_irqs(d), 1);
		driver_settle(d);
		ck_assert_uint_eq(driver_irqs(d, 0), 0);
		ck_assert_uint_eq(driver_used_idx(d, 0), 0);
		ck_assert_uint_eq(nonzero(mem, PAGE_SIZE), 0);

		driver_up(d, VIRTIO_RING_INDIRECT);
		driver_add(d, 0, &(struct driver_buf){mem, 64, true}, 1);
		driver_kick(d, 0);
		ck_assert_uint_eq(driver_wait_used(d, 0).len, 64);
		driver_irqs(d, 0);
		memset(driver_mem(d, mem, PAGE_SIZE), 0, PAGE_SIZE);
		driver_up(d, VIRTIO_RING_INDIRECT);
	}
	driver_free(d);
}
END_TEST

/*
 * The available ring's index is where the device says whether it wants kicks: each look finds it
 * changed. Nobody but the driver may be kept by that.
 */
START_TEST(index_goes_back)
{
	struct virtq *q;
	uint64_t mem;

	up(0);
	q = &d->v->queue[0].q;
	mem = driver_alloc_pages(d, PAGE_SIZE);
	driver_add(d, 0, &(struct driver_buf){mem, 8, true}, 1);
	driver_kick(d, 0);
	driver_wait_used(d, 0);
	virtio_set_ready(d->v, 0, false);
	q->avail = mem + 2;
	q->used = mem + 4;
	virtio_set_ready(d->v, 0, true);
	ck_assert(q->ready);
	driver_kick_always(d, 0);
	driver_run_until(d, driver_needs_reset(d));

	driver_up(d, 0);
	driver_add(d, 0, &(struct driver_buf){mem, 8, true}, 1);
	driver_kick(d, 0);
	ck_assert_uint_eq(driver_wait_used(d, 0).len, 8);
	driver_free(d);
}
END_TEST

/* What was queued while it was at rest is served after the move, at the destination only. */
START_TEST(moves)
{
	struct driver *to;
	uint64_t mem;

	up(UINT64_MAX);
	mem = driver_alloc_pages(d, PAGE_SIZE);
	for (unsigned i = 0; i < 3; i++) {
		driver_add(d, 0, &(struct driver_buf){mem, 16, true}, 1);
		driver_kick(d, 0);
		driver_wait_used(d, 0);
	}
	memset(driver_mem(d, mem, PAGE_SIZE), 0, PAGE_SIZE);
	driver_quiesce(d);
	driver_add(d, 0, &(struct driver_buf){mem, 16, true}, 1);
	driver_kick_always(d, 0);
	driver_settle(d);
	ck_assert_uint_eq(nonzero(mem, PAGE_SIZE), 0);

	to = driver_move(d, NULL);
	driver_settle(to);
	ck_assert_uint_eq(driver_used_idx(to, 0), 3);
	driver_watch(to);
	driver_resume(to);
	ck_assert_uint_eq(driver_used_idx(to, 0), 4);
	ck_assert_uint_eq(driver_check_dirty(to), 2);
	ck_assert_uint_eq(driver_irqs(to, 0), 1);
	ck_assert_uint_eq(driver_used_idx(d, 0), 3);
	ck_assert_uint_eq(nonzero(mem, PAGE_SIZE), 0);
	driver_free(d);
	d = to;
	ck_assert_uint_gt(nonzero(mem, 16), 8);
	driver_wait_used(d, 0);
	driver_add(d, 0, &(struct driver_buf){mem, 16, true}, 1);
	ck_assert(driver_kick(d, 0));
	driver_wait_used(d, 0);
	driver_free(d);
}
END_TEST

int main(void)
{
	const TTest *const tests[] = {what_it_is, bounded,	   takes_turns,
				      mistakes,	  index_goes_back, moves};
	Suite *s = suite_create("virtio-rng");
	TCase *tc = tcase_create("virtio-rng");
	SRunner *sr;
	int failed;

	tcase_set_timeout(tc, 60);
	for (size_t i = 0; i < ARRAY_SIZE(tests); i++)
		tcase_add_test(tc, tests[i]);
	tcase_add_loop_test(tc, fills_buffers, 0, 4);
	tcase_add_loop_test(tc, looked_at, 0, 2);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
