/* SPDX-License-Identifier: MIT */
/*
 * The balloon over its queues: what is given back is gone from the memfd, marked, and nothing else
 * is; whatever a driver says, and however much of it at once.
 */
#include "../virtio_balloon.h"

#include <fcntl.h>
#include <sys/syscall.h>

#include "check-main.h"
#include "virtio-driver.h"

enum { INFLATE, DEFLATE, STATS, REPORT_LINUX, REPORT_SPEC };

#define F_STATS VIRTIO_F(1)
#define F_OOM VIRTIO_F(2)
#define F_HINT VIRTIO_F(3)
#define F_POISON VIRTIO_F(4)
#define F_REPORTING VIRTIO_F(5)
#define F_USUAL (F_STATS | F_OOM | F_REPORTING | VIRTIO_RING_EVENT_IDX | VIRTIO_RING_INDIRECT)

#define POOL (2 * MIB) /* of a test's own pages; rings and buffers are below */
#define POOL_PAGE (POOL / PAGE_SIZE)

/* What a test waits for comes quickly; else the usual time is longer than any test takes. */
#define INTERVAL (NS_PER_SEC / 2)

static struct virtio_balloon_config config;
static struct driver *d;

/* Calls by which pages are punched out, and the most pages of one. */
static unsigned n_punches;
static off_t longest_punch;

int fallocate(int fd, int mode, off_t offset, off_t len)
{
	n_punches++;
	longest_punch = MAX(longest_punch, len / (off_t)PAGE_SIZE);
	return (int)syscall(SYS_fallocate, fd, mode, offset, len);
}

static void begin(uint64_t features)
{
	d = driver_new(&virtio_balloon_ops, &config, RAM_MIN);
	driver_up(d, features);
}

static void end(void)
{
	ck_assert_uint_lt(d->top, POOL);
	driver_free(d);
	config.stats_interval_ns = 0;
}

/* Pages from POOL_PAGE on hold something. */
static void fill(uint64_t first, uint64_t n)
{
	memset(driver_mem(d, (POOL_PAGE + first) * PAGE_SIZE, n * PAGE_SIZE), 0x5a, n * PAGE_SIZE);
}

/* Looks at the memfd first: reading a hole would allocate it. */
static bool is_hole(uint64_t page)
{
	uint64_t at = page, n;

	return !ram_next_populated(&d->vm->ram, &at, &n) || at > page;
}

/* Of the n pages from POOL_PAGE on exactly those with a bit are holes and marked dirty. */
static void need_given(const bool *given, uint64_t n)
{
	for (uint64_t i = 0; i < n; i++) {
		uint64_t page = POOL_PAGE + i;

		ck_assert_msg(is_hole(page) == given[i], "page %llu %s given back",
			      (unsigned long long)i, given[i] ? "was not" : "was");
		ck_assert_msg(driver_is_dirty(d, page * PAGE_SIZE) == given[i],
			      "page %llu %s marked", (unsigned long long)i,
			      given[i] ? "is not" : "is");
	}
}

static void write32(unsigned offset, uint32_t value)
{
	virtio_config_write(d->v, offset, 4, value);
}

static uint32_t read32(unsigned offset)
{
	return (uint32_t)virtio_config_read(d->v, offset, 4);
}

/* A chain of one array of page frame numbers, made available and kicked. */
static uint16_t give_raw(unsigned queue, const uint32_t *pfn, uint32_t bytes)
{
	struct driver_buf b = {.gpa = driver_alloc(d, bytes), .len = bytes};
	uint16_t head;

	driver_poke(d, b.gpa, pfn, bytes);
	head = driver_add(d, queue, &b, 1);
	driver_kick(d, queue);
	return head;
}

static void give(unsigned queue, const uint32_t *pfn, uint32_t n)
{
	uint16_t head = give_raw(queue, pfn, 4 * n);
	struct driver_used e = driver_wait_used(d, queue);

	ck_assert_uint_eq(e.id, head);
	ck_assert_uint_eq(e.len, 0);
	ck_assert_uint_ge(driver_irqs(d, queue), 1);
}

static void report_bufs(unsigned queue, const struct driver_buf *b, unsigned n)
{
	uint16_t head = driver_add(d, queue, b, n);
	struct driver_used e;

	driver_kick(d, queue);
	e = driver_wait_used(d, queue);
	ck_assert_uint_eq(e.id, head);
	ck_assert_uint_eq(e.len, 0);
}

/* ---- the balloon ---- */

START_TEST(offer)
{
	d = driver_new(&virtio_balloon_ops, &config, RAM_MIN);
	ck_assert_uint_eq(d->v->ops->type, 5);
	ck_assert_uint_eq(d->v->offered & 0xff, F_STATS | F_OOM | F_POISON | F_REPORTING);
	ck_assert_uint_eq(d->v->offered & F_HINT, 0);
	for (unsigned i = 0; i < 16; i += 4)
		ck_assert_uint_eq(read32(i), 0);
	ck_assert_uint_eq(d->v->config_len, 16);
	driver_free(d);
}
END_TEST

START_TEST(inflates)
{
	/* Up, down, alone, twice, one that never held anything; across the chunks of an array. */
	const unsigned some[] = {3, 4, 5, 20, 19, 18, 17, 40, 7, 7, 9, 300};
	uint32_t pfn[900];
	bool given[1024] = {false};
	uint64_t used;

	begin(F_USUAL);
	fill(0, 1024);
	driver_watch(d);
	used = ram_used(&d->vm->ram);
	for (size_t i = 0; i < ARRAY_SIZE(some); i++) {
		pfn[i] = (uint32_t)(POOL_PAGE + some[i]);
		given[some[i]] = true;
	}
	give(INFLATE, pfn, ARRAY_SIZE(some));
	ck_assert_uint_eq(n_punches, 7);
	need_given(given, 1024);
	driver_check_dirty(d);
	/* Less a page of the test's own for the array. */
	ck_assert_uint_ge(used - ram_used(&d->vm->ram), 10 * PAGE_SIZE);

	for (unsigned i = 0; i < 900; i++) {
		pfn[i] = (uint32_t)(POOL_PAGE + 1000 - i);
		given[1000 - i] = true;
	}
	n_punches = 0;
	give(INFLATE, pfn, 900);
	ck_assert_uint_eq(n_punches, 1);
	need_given(given, 1024);
	/* What is given back may be used again, and given again. */
	fill(500, 3);
	driver_clean(d);
	memset(given, 0, sizeof(given));
	pfn[0] = (uint32_t)(POOL_PAGE + 501);
	give(INFLATE, pfn, 1);
	ck_assert(is_hole(POOL_PAGE + 501) && !is_hole(POOL_PAGE + 500) &&
		  !is_hole(POOL_PAGE + 502));
	end();
}
END_TEST

/* Over several buffers, whose borders are no borders of numbers, by an indirect table. */
START_TEST(inflates_by_many_buffers)
{
	struct driver_buf b[100];
	uint32_t pfn[250];
	bool given[512] = {false};
	uint64_t gpa;

	begin(F_USUAL);
	fill(0, 512);
	driver_clean(d);
	for (unsigned i = 0; i < 250; i++) {
		pfn[i] = (uint32_t)(POOL_PAGE + 2 * i);
		given[2 * i] = true;
	}
	gpa = driver_alloc(d, sizeof(pfn));
	driver_poke(d, gpa, pfn, sizeof(pfn));
	for (unsigned i = 0; i < 100; i++)
		b[i] = (struct driver_buf){.gpa = gpa + i * 10, .len = 10};
	driver_add_indirect(d, INFLATE, b, 100);
	driver_kick(d, INFLATE);
	driver_wait_used(d, INFLATE);
	need_given(given, 512);
	/* The rest of an array that ends in the middle of a number is not one. */
	driver_clean(d);
	fill(0, 4);
	pfn[1] = (uint32_t)(POOL_PAGE + 2);
	give_raw(INFLATE, pfn, 7);
	driver_wait_used(d, INFLATE);
	ck_assert(is_hole(POOL_PAGE) && !is_hole(POOL_PAGE + 2));
	ck_assert(!driver_needs_reset(d));
	end();
}
END_TEST

/* Above the hole below 4 GiB a page's number is not its place in the memfd. */
START_TEST(inflates_high_memory)
{
	const uint64_t high = RAM_HIGH_BASE / PAGE_SIZE, place = RAM_LOW_MAX / PAGE_SIZE;
	uint32_t pfn[] = {(uint32_t)high + 1, (uint32_t)place - 1, (uint32_t)high + 15};

	d = driver_new(&virtio_balloon_ops, &config, RAM_LOW_MAX + 16 * PAGE_SIZE);
	driver_up(d, F_USUAL);
	memset(driver_mem(d, RAM_LOW_MAX - 2 * PAGE_SIZE, 2 * PAGE_SIZE), 1, 2 * PAGE_SIZE);
	memset(driver_mem(d, RAM_HIGH_BASE, 16 * PAGE_SIZE), 1, 16 * PAGE_SIZE);
	give(INFLATE, pfn, ARRAY_SIZE(pfn));
	for (uint64_t i = 0; i < 16; i++)
		ck_assert_int_eq(is_hole(place + i), i == 1 || i == 15);
	ck_assert(is_hole(place - 1) && !is_hole(place - 2));
	/* One run must not go from one region's end to the other's start. */
	fill(0, 1);
	ck_assert(!driver_needs_reset(d));
	driver_free(d);
}
END_TEST

START_TEST(bad_numbers)
{
	const struct {
		uint64_t ram;
		uint32_t pfn;
	} bad[] = {
		{RAM_MIN, RAM_MIN / PAGE_SIZE},
		{RAM_MIN, UINT32_MAX},
		{RAM_MIN, 1U << 20},
		{RAM_LOW_MAX + 16 * MIB, RAM_LOW_MAX / PAGE_SIZE},
		{RAM_LOW_MAX + 16 * MIB, RAM_HIGH_BASE / PAGE_SIZE - 1},
		{RAM_LOW_MAX + 16 * MIB, (RAM_HIGH_BASE + 16 * MIB) / PAGE_SIZE},
	};

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		uint32_t pfn[] = {POOL_PAGE, bad[i].pfn, POOL_PAGE + 1};
		struct driver_used e;

		d = driver_new(&virtio_balloon_ops, &config, bad[i].ram);
		driver_up(d, F_USUAL);
		fill(0, 2);
		give_raw(INFLATE, pfn, sizeof(pfn));
		driver_run_until(d, driver_needs_reset(d));
		driver_settle(d);
		ck_assert(!driver_take_used(d, INFLATE, &e));
		ck_assert(!is_hole(POOL_PAGE + 1));
		/* And all is well after a reset. */
		driver_up(d, F_USUAL);
		give(INFLATE, pfn, 1);
		ck_assert(is_hole(POOL_PAGE));
		driver_free(d);
	}
}
END_TEST

START_TEST(deflates)
{
	uint32_t pfn[] = {POOL_PAGE, UINT32_MAX, POOL_PAGE + 1};

	begin(F_USUAL);
	fill(0, 2);
	driver_clean(d);
	give(DEFLATE, pfn, ARRAY_SIZE(pfn));
	/* A courtesy: the guest may have used the pages already. */
	need_given((const bool[]){false, false}, 2);
	ck_assert(!driver_needs_reset(d));
	end();
}
END_TEST

/* ---- much at once ---- */

/* n chains or buffers that all name the same numbers, much more than a turn takes. */
static void give_much(unsigned buffers, uint32_t pages)
{
	uint32_t *pfn = calloc(pages, sizeof(*pfn));
	struct driver_buf b[100];
	uint64_t gpa = driver_alloc(d, pages * sizeof(*pfn));

	ck_assert_ptr_nonnull(pfn);
	fill(0, pages);
	/* Never two in a row. */
	for (uint32_t i = 0; i < pages; i++)
		pfn[i] = (uint32_t)(POOL_PAGE + i * 7 % pages);
	driver_poke(d, gpa, pfn, pages * sizeof(*pfn));
	free(pfn);
	for (unsigned i = 0; i < buffers; i++)
		b[i] = (struct driver_buf){.gpa = gpa, .len = pages * (uint32_t)sizeof(*pfn)};
	driver_add(d, INFLATE, b, buffers);
	driver_kick(d, INFLATE);
}

/* The loop's thread serves others in between. */
START_TEST(takes_turns)
{
	struct driver_mark mark = {.task = {.run = driver_on_mark}};
	uint32_t deflate[] = {POOL_PAGE};
	struct driver_used e;
	unsigned turns = 0;

	begin(F_USUAL);
	give_much(20, 2000);
	while (!driver_take_used(d, INFLATE, &e)) {
		mark.ran = false;
		loop_post(d->loop, &mark.task);
		while (!mark.ran)
			driver_step(d, NS_PER_SEC);
		turns++;
		ck_assert_uint_lt(turns, 1000);
		/* Another queue of the same device, too. */
		if (turns == 5)
			give_raw(DEFLATE, deflate, 4);
		if (turns == 20)
			ck_assert(driver_take_used(d, DEFLATE, &e));
	}
	ck_assert_uint_gt(turns, 50);
	for (uint64_t i = 0; i < 2000; i++)
		ck_assert(is_hole(POOL_PAGE + i));
	end();
}
END_TEST

/* Comes to rest while a turn holds the lock. No other turn begins, however soon it could. */
static void rest_during_a_turn(void)
{
	struct driver_quiesce_job job = {.dev = &d->v->dev,
					 .deadline_ns = now_ns() + DRIVER_WAIT_NS};
	pthread_t thread;

	pthread_mutex_lock(&d->v->lock);
	ck_assert_int_eq(pthread_create(&thread, NULL, driver_quiesce_thread, &job), 0);
	while (!d->v->stopping)
		if (now_ns() >= job.deadline_ns)
			ck_abort_msg("coming to rest waits for its turn");
	pthread_mutex_unlock(&d->v->lock);
	driver_run_until(d, job.done);
	pthread_join(thread, NULL);
	ck_assert_int_eq(job.ret, 0);
}

/* In the middle of a chain: coming to rest waits for nothing, and the other side goes on. */
START_TEST(moves_between_turns)
{
	struct driver_used e;
	struct driver *sides[2];

	begin(F_USUAL);
	give_much(90, 2000);
	driver_run_until(d, is_hole(POOL_PAGE + 7));
	ck_assert_uint_eq(d->v->inflight, 0);
	rest_during_a_turn();
	sides[0] = d;
	sides[1] = driver_move(d, &config);
	/* At rest nothing is punched, at neither side. */
	for (unsigned i = 0; i < 2; i++) {
		d = sides[i];
		fill(0, 2000);
		driver_clean(d);
		driver_settle(d);
		ck_assert(!driver_take_used(d, INFLATE, &e));
		ck_assert_uint_eq(driver_clean(d), 0);
	}
	/* The destination goes on; and the source does, if it comes to that. */
	for (unsigned i = 2; i-- > 0;) {
		d = sides[i];
		driver_resume(d);
		ck_assert_uint_eq(driver_wait_used(d, INFLATE).len, 0);
		for (uint64_t k = 0; k < 2000; k++)
			ck_assert(is_hole(POOL_PAGE + k));
		ck_assert(!driver_needs_reset(d));
		end();
	}
}
END_TEST

/* No call takes for long: a thousand pages or so at a time. */
START_TEST(long_runs)
{
	const uint32_t n = (RAM_MIN - POOL) / PAGE_SIZE;
	const struct driver_buf all = {.gpa = POOL, .len = n * PAGE_SIZE, .in = true};
	uint32_t *pfn = calloc(n, sizeof(*pfn));

	ck_assert_ptr_nonnull(pfn);
	for (uint32_t i = 0; i < n; i++)
		pfn[i] = POOL_PAGE + i;
	begin(F_USUAL);
	for (unsigned i = 0; i < 2; i++) {
		fill(0, n);
		n_punches = 0;
		if (i == 0)
			give(INFLATE, pfn, n);
		else
			report_bufs(REPORT_LINUX, &all, 1);
		ck_assert_uint_le(n_punches, n / 1024 + 4);
		ck_assert_int_le(longest_punch, 1024);
		for (uint64_t k = 0; k < n; k++)
			ck_assert(is_hole(POOL_PAGE + k));
	}
	free(pfn);
	end();
}
END_TEST

/* A chain that is another one at the next turn hurts nobody, and a reset forgets it. */
START_TEST(changes_between_turns)
{
	uint32_t pfn[] = {POOL_PAGE};
	struct driver_used e;

	begin(F_USUAL);
	give_much(90, 2000);
	driver_run_until(d, is_hole(POOL_PAGE + 7));
	driver_desc(d, INFLATE, 0, POOL, 4, 0, 0);
	driver_wait_used(d, INFLATE);
	give(INFLATE, pfn, 1);

	give_much(90, 2000);
	driver_step(d, NS_PER_SEC);
	ck_assert(!driver_take_used(d, INFLATE, &e));
	driver_up(d, F_USUAL);
	fill(0, 1);
	give(INFLATE, pfn, 1);
	ck_assert(is_hole(POOL_PAGE));
	ck_assert(!driver_needs_reset(d));
	end();
}
END_TEST

/* ---- free pages ---- */

START_TEST(reports)
{
	const struct driver_buf b[] = {
		{.gpa = POOL, .len = 4 * PAGE_SIZE, .in = true},
		/* Only what is whole pages of it. */
		{.gpa = POOL + 6 * PAGE_SIZE - 1, .len = 2 * PAGE_SIZE + 2, .in = true},
		{.gpa = POOL + 10 * PAGE_SIZE + 1, .len = 2 * PAGE_SIZE - 2, .in = true},
		{.gpa = POOL + 13 * PAGE_SIZE + 1, .len = 7, .in = true},
		/* More than one call takes. */
		{.gpa = POOL + 20 * PAGE_SIZE, .len = 1100 * PAGE_SIZE, .in = true},
	};
	bool given[1200] = {false};
	uint64_t used;

	begin(F_USUAL);
	fill(0, 1200);
	driver_watch(d);
	used = ram_used(&d->vm->ram);
	report_bufs(REPORT_LINUX, b, ARRAY_SIZE(b));
	memset(given, true, 4);
	memset(given + 6, true, 2);
	memset(given + 20, true, 1100);
	need_given(given, 1200);
	driver_check_dirty(d);
	ck_assert_uint_eq(used - ram_used(&d->vm->ram), 1106 * PAGE_SIZE);
	end();
}
END_TEST

/* The queue's number, as virtio says and as Linux counts, with and without statistics. */
START_TEST(numbers_of_the_queue)
{
	const struct {
		uint64_t features;
		unsigned queue;
	} ways[] = {
		{F_REPORTING | F_STATS, 3},
		{F_REPORTING | F_STATS, 4},
		{F_REPORTING, 2},
		{F_REPORTING, 4},
	};
	const struct driver_buf b = {.gpa = POOL, .len = PAGE_SIZE, .in = true};

	for (size_t i = 0; i < ARRAY_SIZE(ways); i++) {
		begin(ways[i].features);
		fill(0, 1);
		report_bufs(ways[i].queue, &b, 1);
		ck_assert(is_hole(POOL_PAGE));
		end();
	}
}
END_TEST

/* What was not negotiated is not there. */
START_TEST(no_reporting)
{
	const struct driver_buf b = {.gpa = POOL, .len = PAGE_SIZE, .in = true};
	struct driver_used e;

	begin(F_STATS);
	fill(0, 1);
	for (unsigned queue = 3; queue < 5; queue++) {
		driver_add(d, queue, &b, 1);
		driver_kick_always(d, queue);
		driver_settle(d);
		ck_assert(!driver_take_used(d, queue, &e));
	}
	ck_assert(!is_hole(POOL_PAGE));
	end();
}
END_TEST

START_TEST(bad_report)
{
	const struct driver_buf mixed[] = {{.gpa = POOL, .len = PAGE_SIZE},
					   {.gpa = POOL, .len = PAGE_SIZE, .in = true}};
	const struct driver_buf outside = {.gpa = RAM_MIN - 1, .len = PAGE_SIZE, .in = true};

	begin(F_USUAL);
	fill(0, 1);
	driver_add(d, REPORT_LINUX, mixed, 2);
	driver_kick(d, REPORT_LINUX);
	driver_run_until(d, driver_needs_reset(d));
	ck_assert(!is_hole(POOL_PAGE));
	driver_up(d, F_USUAL);
	driver_add(d, REPORT_LINUX, &outside, 1);
	driver_kick(d, REPORT_LINUX);
	driver_run_until(d, driver_needs_reset(d));
	end();
}
END_TEST

/* A guest that fills its free pages keeps them, unless what it fills them with is zeros. */
START_TEST(poison)
{
	const struct {
		uint64_t features;
		uint32_t value;
		bool given;
	} ways[] = {
		{F_USUAL | F_POISON, 0xaaaaaaaa, false},
		{F_USUAL | F_POISON, 1, false},
		{F_USUAL | F_POISON, 0, true},
		{F_USUAL, 0xaaaaaaaa, true}, /* not negotiated: means nothing */
	};
	const struct driver_buf b = {.gpa = POOL, .len = PAGE_SIZE, .in = true};
	uint32_t pfn[] = {POOL_PAGE + 1};

	for (size_t i = 0; i < ARRAY_SIZE(ways); i++) {
		begin(ways[i].features);
		write32(12, ways[i].value);
		fill(0, 2);
		report_bufs(REPORT_LINUX, &b, 1);
		ck_assert_int_eq(is_hole(POOL_PAGE), ways[i].given);
		/* Ballooned pages are filled again by the guest. */
		give(INFLATE, pfn, 1);
		ck_assert(is_hole(POOL_PAGE + 1));
		/* A new driver is asked anew. */
		driver_up(d, F_USUAL | F_POISON);
		ck_assert_uint_eq(read32(12), 0);
		end();
	}
}
END_TEST

/* A report of all there is, in turns. */
START_TEST(reports_in_turns)
{
	const uint64_t len = RAM_MIN - POOL;
	struct driver_buf b[40];
	struct driver_used e;
	unsigned turns = 0;

	begin(F_USUAL);
	for (unsigned i = 0; i < 40; i++)
		b[i] = (struct driver_buf){.gpa = POOL, .len = (uint32_t)len, .in = true};
	fill(0, len / PAGE_SIZE);
	driver_add(d, REPORT_LINUX, b, 40);
	driver_kick(d, REPORT_LINUX);
	while (!driver_take_used(d, REPORT_LINUX, &e)) {
		driver_step(d, NS_PER_SEC);
		ck_assert_uint_lt(++turns, 1000);
	}
	ck_assert_uint_gt(turns, 10);
	for (uint64_t i = 0; i < len / PAGE_SIZE; i++)
		ck_assert(is_hole(POOL_PAGE + i));
	end();
}
END_TEST

/* ---- statistics ---- */

static struct balloon_stats stats_now(struct driver *of)
{
	struct balloon_stats s;

	virtio_balloon_stats(&of->v->dev, &s);
	return s;
}

static void put_stat(uint8_t *at, uint16_t tag, uint64_t value)
{
	memcpy(at, &tag, 2);
	memcpy(at + 2, &value, 8);
}

static void send_stats(struct driver *of, const uint8_t *entries, uint32_t len)
{
	struct driver_buf b = {.gpa = driver_alloc(of, len ? len : 1), .len = len ? len : 1};

	driver_poke(of, b.gpa, entries, len);
	driver_add(of, STATS, &b, 1);
	driver_kick(of, STATS);
	driver_settle(of);
}

static void send_free(struct driver *of, uint64_t free_bytes)
{
	uint8_t e[10];

	put_stat(e, 4, free_bytes);
	send_stats(of, e, sizeof(e));
}

static void pass_a_while(struct driver *of)
{
	uint64_t deadline = now_ns() + 2 * INTERVAL;

	while (now_ns() < deadline)
		driver_step(of, INTERVAL);
}

START_TEST(figures)
{
	uint8_t e[12 * 10 + 9];
	struct balloon_stats s;

	config.stats_interval_ns = INTERVAL;
	begin(F_USUAL);
	s = stats_now(d);
	ck_assert(s.driver && s.age_ns == BALLOON_UNKNOWN && s.free == BALLOON_UNKNOWN);
	/* In any order, unknown ones among them, and part of one at the end. */
	for (unsigned i = 0; i < 12; i++)
		put_stat(e + 10 * i, (uint16_t)(11 - i), 1000 + 11 - i);
	put_stat(e, 0x100, 5);
	memset(e + 120, 0xff, 9);
	send_stats(d, e, sizeof(e));
	s = stats_now(d);
	ck_assert_uint_eq(s.swapped_in, 1000);
	ck_assert_uint_eq(s.swapped_out, 1001);
	ck_assert_uint_eq(s.major_faults, 1002);
	ck_assert_uint_eq(s.minor_faults, 1003);
	ck_assert_uint_eq(s.free, 1004);
	ck_assert_uint_eq(s.total, 1005);
	ck_assert_uint_eq(s.available, 1006);
	ck_assert_uint_eq(s.caches, 1007);
	ck_assert_uint_lt(s.age_ns, DRIVER_WAIT_NS);
	/* After a while new ones are asked for. */
	ck_assert_uint_eq(driver_wait_used(d, STATS).len, 0);
	ck_assert_uint_ge(stats_now(d).age_ns, INTERVAL);
	ck_assert_uint_eq(stats_now(d).free, 1004);
	ck_assert_uint_eq(driver_irqs(d, STATS), 1);
	/* What is not told then is not known. */
	send_free(d, 77);
	ck_assert_uint_eq(stats_now(d).free, 77);
	ck_assert_uint_eq(stats_now(d).total, BALLOON_UNKNOWN);
	/* And again. */
	driver_wait_used(d, STATS);
	end();
}
END_TEST

/* A driver that has more than one buffer there gets the older ones back. */
START_TEST(too_many_buffers)
{
	struct driver_used e;

	begin(F_USUAL);
	send_free(d, 1);
	ck_assert(!driver_take_used(d, STATS, &e));
	send_free(d, 2);
	ck_assert(driver_take_used(d, STATS, &e) && e.id == 0);
	send_free(d, 3);
	ck_assert(driver_take_used(d, STATS, &e) && e.id == 1);
	ck_assert(!driver_take_used(d, STATS, &e));
	ck_assert_uint_eq(stats_now(d).free, 3);
	ck_assert(!driver_needs_reset(d));
	end();
}
END_TEST

/* The buffer goes along, its owner gets it back there, and only there. */
START_TEST(buffer_moves)
{
	struct driver_used e;
	struct driver *to, *third;

	begin(F_USUAL);
	send_free(d, 5);
	to = driver_move(d, &config);
	driver_settle(to);
	ck_assert(!driver_take_used(to, STATS, &e));
	ck_assert_uint_eq(stats_now(to).free, BALLOON_UNKNOWN);
	driver_resume(to);
	/* At once: nothing is known of the guest there. */
	ck_assert(driver_take_used(to, STATS, &e) && e.id == 0);
	send_free(to, 6);
	ck_assert_uint_eq(stats_now(to).free, 6);
	/* Held again, and moved again, the clock running; then one without a buffer. */
	third = driver_move(to, &config);
	driver_free(to);
	driver_resume(third);
	driver_wait_used(third, STATS);
	to = driver_move(third, &config);
	driver_free(third);
	driver_resume(to);
	ck_assert(!driver_take_used(to, STATS, &e));
	send_free(to, 7);
	ck_assert_uint_eq(stats_now(to).free, 7);
	driver_free(to);
	/* A source that goes on has lost nothing. */
	driver_resume(d);
	ck_assert(!driver_take_used(d, STATS, &e));
	ck_assert_uint_eq(stats_now(d).free, 5);
	end();
}
END_TEST

/* At rest nothing is given back, at neither side; then it is. */
START_TEST(buffer_rests)
{
	struct driver_used e;
	struct driver *to;

	config.stats_interval_ns = INTERVAL;
	begin(F_USUAL);
	send_free(d, 5);
	to = driver_move(d, &config);
	pass_a_while(to);
	pass_a_while(d);
	ck_assert(!driver_take_used(to, STATS, &e) && !driver_take_used(d, STATS, &e));
	driver_free(to);
	driver_resume(d);
	driver_wait_used(d, STATS);
	end();
}
END_TEST

/* A driver that takes its queue away, or makes it smaller, while a buffer of it is held. */
START_TEST(buffer_of_no_queue)
{
	struct virtq *q;
	struct driver *to;

	begin(F_USUAL);
	q = &d->v->queue[STATS].q;
	send_free(d, 5);
	send_free(d, 5);
	virtio_set_ready(d->v, STATS, false);
	to = driver_move(d, &config);
	driver_resume(to);
	driver_free(to);
	driver_resume(d);
	q->size = 1;
	virtio_set_ready(d->v, STATS, true);
	ck_assert(q->ready);
	to = driver_move(d, &config);
	driver_resume(to);
	driver_free(to);
	end();
}
END_TEST

START_TEST(reset_forgets)
{
	struct driver_used e;

	config.stats_interval_ns = INTERVAL;
	begin(F_USUAL);
	send_free(d, 5);
	write32(4, 17);
	driver_up(d, F_USUAL);
	ck_assert_uint_eq(stats_now(d).free, BALLOON_UNKNOWN);
	ck_assert_uint_eq(stats_now(d).actual, 0);
	/* The old buffer is the driver's own again. */
	pass_a_while(d);
	ck_assert(!driver_take_used(d, STATS, &e));
	end();
}
END_TEST

/* ---- the host's side, and state ---- */

static int set_target(uint64_t bytes)
{
	struct errmsg err = {""};
	int ret = virtio_balloon_set_target(&d->v->dev, bytes, &err);

	ck_assert_msg(!ret == !err.text[0], "%d with \"%s\"", ret, err.text);
	return ret;
}

START_TEST(target)
{
	const uint64_t size = 256 * MIB, most = size - 64 * MIB;
	struct driver *to;

	d = driver_new(&virtio_balloon_ops, &config, size);
	/* Before there is a driver. */
	ck_assert_int_eq(set_target(MIB), 0);
	ck_assert(!stats_now(d).driver);
	driver_up(d, F_USUAL);
	ck_assert_uint_eq(read32(0), MIB / PAGE_SIZE);
	driver_config_irqs(d);
	ck_assert_int_eq(set_target(2 * MIB + PAGE_SIZE - 1), 0);
	ck_assert_uint_eq(read32(0), 2 * MIB / PAGE_SIZE);
	ck_assert_uint_eq(driver_config_irqs(d), 1);
	ck_assert_uint_eq(stats_now(d).target, 2 * MIB);
	/* The driver says how far it is. The same wish again reminds one that is not there yet. */
	write32(4, 100);
	ck_assert_uint_eq(stats_now(d).actual, 100 * PAGE_SIZE);
	ck_assert_int_eq(set_target(2 * MIB), 0);
	ck_assert_uint_ge(driver_config_irqs(d), 1);
	ck_assert_uint_eq(read32(0), 2 * MIB / PAGE_SIZE);
	write32(4, 2 * MIB / PAGE_SIZE);
	ck_assert_int_eq(set_target(2 * MIB), 0);
	ck_assert_uint_eq(driver_config_irqs(d), 0);

	ck_assert_int_eq(set_target(most), 0);
	ck_assert_int_eq(set_target(most + 1), -EINVAL);
	ck_assert_int_eq(set_target(UINT64_MAX), -EINVAL);
	ck_assert_uint_eq(stats_now(d).target, most);
	/* A driver cannot write what is not its own. */
	write32(0, 1);
	virtio_config_write(d->v, 4, 8, UINT64_MAX);
	ck_assert_uint_eq(read32(0), most / PAGE_SIZE);
	ck_assert_uint_eq(read32(4), UINT32_MAX);
	ck_assert_uint_eq(read32(8), 0);
	ck_assert_uint_eq(stats_now(d).actual, UINT32_MAX * PAGE_SIZE);
	/* The wish outlives a reset, what the driver said does not. */
	driver_up(d, F_USUAL);
	ck_assert_uint_eq(stats_now(d).target, most);
	ck_assert_uint_eq(stats_now(d).actual, 0);
	/* Nor does it get lost on the way. */
	write32(4, 9);
	to = driver_move(d, &config);
	ck_assert_int_eq(set_target(0), -EBUSY);
	ck_assert_uint_eq(stats_now(to).target, most);
	ck_assert_uint_eq(stats_now(to).actual, 9 * PAGE_SIZE);
	driver_resume(d);
	ck_assert_int_eq(set_target(0), 0);
	driver_free(to);
	driver_free(d);

	d = driver_new(&virtio_balloon_ops, &config, RAM_MIN);
	ck_assert_int_eq(set_target(RAM_MIN / 2), 0);
	ck_assert_int_eq(set_target(RAM_MIN / 2 + 1), -EINVAL);
	driver_free(d);
}
END_TEST

/* Offsets into the section: what virtio_fields() writes before the configuration is fixed. */
#define AT_CONFIG (1 + 8 + 4)

static void try_state(const struct sbuf *good, size_t at, const void *bytes, size_t len, int want)
{
	uint8_t *bad = malloc(good->len);
	struct driver *to = driver_arriving(d, &config);

	ck_assert_ptr_nonnull(bad);
	memcpy(bad, good->data, good->len);
	memcpy(bad + at, bytes, len);
	ck_assert_int_eq(driver_load(to, bad, good->len), want);
	driver_free(to);
	free(bad);
}

START_TEST(hostile_state)
{
	uint32_t pages = RAM_MIN / PAGE_SIZE + 1, one = 1;
	uint8_t no_stats = (uint8_t)(F_USUAL & ~F_STATS), yes = 1, two = 2;
	uint16_t head = 128;
	struct sbuf s;

	begin(F_USUAL);
	send_free(d, 1);
	driver_quiesce(d);
	driver_save(d, &s);
	try_state(&s, 0, s.data, 1, 0);
	try_state(&s, AT_CONFIG, &pages, 4, -EPROTO);
	try_state(&s, AT_CONFIG + 8, &one, 4, -EPROTO);
	try_state(&s, s.len - 2, &head, 2, -EPROTO);
	try_state(&s, s.len - 3, &two, 1, -EPROTO);
	/* A buffer held of a queue that is not there. */
	try_state(&s, 1, &no_stats, 1, -EPROTO);
	sb_free(&s);
	driver_free(d);

	d = driver_new(&virtio_balloon_ops, &config, RAM_MIN);
	driver_negotiate(d, F_USUAL);
	driver_quiesce(d);
	driver_save(d, &s);
	try_state(&s, 0, s.data, 1, 0);
	try_state(&s, s.len - 3, &yes, 1, -EPROTO);
	sb_free(&s);
	driver_free(d);
}
END_TEST

int main(void)
{
	const TTest *const tests[] = {
		offer,
		inflates,
		inflates_by_many_buffers,
		inflates_high_memory,
		bad_numbers,
		deflates,
		takes_turns,
		moves_between_turns,
		long_runs,
		changes_between_turns,
		reports,
		numbers_of_the_queue,
		no_reporting,
		bad_report,
		poison,
		reports_in_turns,
		figures,
		too_many_buffers,
		buffer_moves,
		buffer_rests,
		buffer_of_no_queue,
		reset_forgets,
		target,
		hostile_state,
	};

	return check_main("virtio-balloon", tests, ARRAY_SIZE(tests));
}
