/* SPDX-License-Identifier: MIT */
/*
 * A virtqueue without a device: the driver's side is virtio-driver.h's, of which only what works on
 * guest memory is used. Include it in one file of a test program only.
 */
#ifndef GODWIT_TESTS_VIRTQ_FIXTURE_H
#define GODWIT_TESTS_VIRTQ_FIXTURE_H

#include "../virtq.h"
#include "check-main.h"
#include "virtio-driver.h"

#define MAX_IOV 1024U

#if defined(__SANITIZE_THREAD__)
#define UNDER_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define UNDER_TSAN 1
#endif
#endif
#ifndef UNDER_TSAN
#define UNDER_TSAN 0
#endif

static struct vm vm;
static struct driver *d;
static struct driver_queue *dq;
static struct virtq q;
static struct iovec iov[MAX_IOV];
static struct virtq_chain c;

static struct ram *const ram = &vm.ram;

/* A ready queue with rings on pages of their own. */
static inline void start_in(uint64_t ram_size, uint16_t size, bool event_idx)
{
	struct errmsg err = {""};

	ck_assert_msg(ram_init(&vm.ram, ram_size, false, &err) == 0, "%s", err.text);
	d = driver_of(&vm, NULL);
	d->features = event_idx ? VIRTIO_RING_EVENT_IDX : 0;
	dq = &d->queue[0];
	*dq = (struct driver_queue){.size = size, .n_free = size};
	for (unsigned i = 0; i < size; i++)
		dq->link[i] = (uint16_t)(i + 1);
	dq->desc = driver_alloc_pages(d, 16ULL * size);
	dq->avail = driver_alloc_pages(d, 6 + 2ULL * size);
	dq->used = driver_alloc_pages(d, 6 + 8ULL * size);
	q = (struct virtq){.max = size};
	virtq_reset(&q);
	ck_assert_uint_eq(q.size, size);
	q.desc = dq->desc;
	q.avail = dq->avail;
	q.used = dq->used;
	ck_assert_int_eq(virtq_enable(&q, ram, event_idx), 0);
	c = (struct virtq_chain){.iov = iov, .max = MAX_IOV};
	driver_clean(d);
}

static inline void start(uint16_t size, bool event_idx)
{
	start_in(RAM_MIN, size, event_idx);
}

static inline void end(void)
{
	driver_free(d);
	ram_destroy(&vm.ram);
}

static inline int pop(void)
{
	const char *why = "";
	int ret = virtq_pop(&q, ram, &c, &why);

	if (ret < 0)
		ck_assert_msg(why[0] != 0, "no reason");
	return ret;
}

/* Of a guest's mistake nothing comes: no store, and the chain is not gone over. */
static inline void pop_refused(const char *what)
{
	uint16_t at = q.next_avail;

	driver_clean(d);
	ck_assert_msg(pop() == -EPROTO, "%s: was taken", what);
	ck_assert_uint_eq(q.next_avail, at);
	ck_assert_uint_eq(driver_clean(d), 0);
}

static inline void need_iov(unsigned i, uint64_t gpa, size_t len)
{
	ck_assert_uint_lt(i, c.n_out + c.n_in);
	ck_assert_ptr_eq(iov[i].iov_base, ram_ptr(ram, gpa, len));
	ck_assert_uint_eq(iov[i].iov_len, len);
}

static inline uint64_t rnd(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

struct virtq_test {
	const TTest *test;
	int loops;
};

static inline int virtq_main(const char *name, const struct virtq_test *tests, size_t n)
{
	Suite *s = suite_create(name);
	TCase *tc = tcase_create(name);
	SRunner *sr;
	int failed;

	tcase_set_timeout(tc, 60);
	for (size_t i = 0; i < n; i++) {
		if (tests[i].loops)
			tcase_add_loop_test(tc, tests[i].test, 0, tests[i].loops);
	}
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

#endif
