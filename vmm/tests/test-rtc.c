/* SPDX-License-Identifier: MIT */
/* The clock through its two ports. Tests of interrupts wait for real time to pass: under 2 s each.
 */
#include "device-fixture.h"

#include <pthread.h>
#include <time.h>

#include "../rtc.h"

#define A 0x0aU
#define B 0x0bU
#define C 0x0cU
#define D 0x0dU

#define A_UIP 0x80U
#define A_RUN 0x20U
#define A_DIVIDER_RESET 0x70U
#define B_SET 0x80U
#define B_PIE 0x40U
#define B_AIE 0x20U
#define B_UIE 0x10U
#define B_BINARY 0x04U
#define B_24H 0x02U
#define C_IRQF 0x80U
#define C_PF 0x40U
#define C_AF 0x20U
#define C_UF 0x10U

static struct fixture *f;

static void setup(void)
{
	f = fixture_new(&rtc_ops, NULL, 16 * MIB);
}

static void teardown(void)
{
	fixture_free(f);
}

static unsigned get_from(struct fixture *on, unsigned reg)
{
	fixture_out(on, 0x70, reg);
	return fixture_in(on, 0x71);
}

static unsigned get(unsigned reg)
{
	return get_from(f, reg);
}

static void set(unsigned reg, unsigned v)
{
	fixture_out(f, 0x70, reg);
	fixture_out(f, 0x71, v);
}

static bool irq_level(void)
{
	return fixture_level[IRQ_RTC];
}

static unsigned bcd(int v)
{
	return (unsigned)(v / 10 * 16 + v % 10);
}

/* Runs the loop, with whatever happens, for a time. */
static void run_for(uint64_t ns)
{
	uint64_t deadline = now_ns() + ns;

	for (uint64_t now = now_ns(); now < deadline; now = now_ns())
		ck_assert_int_eq(loop_step(&f->loop, deadline - now), 0);
}

/* As Linux sets it: clock and divider stopped. BCD, 24 hours. */
static void set_time(int year, int mon, int day, int h, int m, int s)
{
	unsigned control = get(B), freq = get(A);

	set(B, control | B_SET);
	set(A, freq | A_DIVIDER_RESET);
	set(9, bcd(year % 100));
	set(0x32, bcd(year / 100));
	set(8, bcd(mon));
	set(7, bcd(day));
	set(4, bcd(h));
	set(2, bcd(m));
	set(0, bcd(s));
	set(B, control);
	set(A, freq);
}

static void check_time_of(struct fixture *on, int year, int mon, int day, int h, int m, int s)
{
	ck_assert_uint_eq(get_from(on, 0), bcd(s));
	ck_assert_uint_eq(get_from(on, 2), bcd(m));
	ck_assert_uint_eq(get_from(on, 4), bcd(h));
	ck_assert_uint_eq(get_from(on, 7), bcd(day));
	ck_assert_uint_eq(get_from(on, 8), bcd(mon));
	ck_assert_uint_eq(get_from(on, 9), bcd(year % 100));
	ck_assert_uint_eq(get_from(on, 0x32), bcd(year / 100));
}

static void check_time(int year, int mon, int day, int h, int m, int s)
{
	check_time_of(f, year, mon, day, h, m, s);
}

/* The time in BCD and 24 hours, as seconds since 1970. */
static int64_t get_seconds(struct fixture *on)
{
	struct tm tm = {0};
	unsigned v[7];

	for (size_t i = 0; i < ARRAY_SIZE(v); i++) {
		static const unsigned reg[] = {0, 2, 4, 7, 8, 9, 0x32};

		v[i] = get_from(on, reg[i]);
		v[i] = v[i] / 16 * 10 + v[i] % 16;
	}
	tm.tm_sec = (int)v[0];
	tm.tm_min = (int)v[1];
	tm.tm_hour = (int)v[2];
	tm.tm_mday = (int)v[3];
	tm.tm_mon = (int)v[4] - 1;
	tm.tm_year = (int)(v[6] * 100 + v[5]) - 1900;
	return timegm(&tm);
}

START_TEST(test_power_on)
{
	int64_t diff = get_seconds(f) - time(NULL);

	ck_assert_int_ge(diff, -2);
	ck_assert_int_le(diff, 2);
	ck_assert_uint_eq(get(A) & 0x7f, 0x26);
	ck_assert_uint_eq(get(B), B_24H);
	ck_assert_uint_eq(get(C) & (unsigned)~(C_PF | C_UF), 0);
	ck_assert_uint_eq(get(D), 0x80);
	ck_assert_uint_eq(fixture_in(f, 0x70), 0xff);
	ck_assert(!irq_level());
}
END_TEST

START_TEST(test_set_and_get)
{
	static const struct {
		int year, mon, day, h, m, s, weekday;
	} times[] = {
		{2024, 2, 29, 23, 59, 58, 5},  {2000, 1, 1, 0, 0, 0, 7},
		{1999, 12, 31, 12, 34, 56, 6}, {1970, 1, 1, 0, 0, 0, 5},
		{2038, 1, 19, 3, 14, 8, 3},    {2099, 6, 15, 11, 0, 1, 2},
	};

	for (size_t i = 0; i < ARRAY_SIZE(times); i++) {
		set_time(times[i].year, times[i].mon, times[i].day, times[i].h, times[i].m,
			 times[i].s);
		check_time(times[i].year, times[i].mon, times[i].day, times[i].h, times[i].m,
			   times[i].s);
		ck_assert_uint_eq(get(6), (unsigned)times[i].weekday);
	}
}
END_TEST

START_TEST(test_number_formats)
{
	static const struct {
		unsigned h24, bcd12, bin12;
	} hours[] = {
		{0, 0x12, 12},	  {1, 0x01, 1},	    {11, 0x11, 11},
		{12, 0x92, 0x8c}, {13, 0x81, 0x81}, {23, 0x91, 0x8b},
	};

	for (size_t i = 0; i < ARRAY_SIZE(hours); i++) {
		set_time(2021, 10, 30, (int)hours[i].h24, 45, 30);
		set(B, B_24H | B_BINARY);
		ck_assert_uint_eq(get(4), hours[i].h24);
		ck_assert_uint_eq(get(0), 30);
		ck_assert_uint_eq(get(2), 45);
		ck_assert_uint_eq(get(7), 30);
		ck_assert_uint_eq(get(8), 10);
		ck_assert_uint_eq(get(9), 21);
		ck_assert_uint_eq(get(0x32), 20);
		set(B, B_BINARY);
		ck_assert_uint_eq(get(4), hours[i].bin12);
		set(B, 0);
		ck_assert_uint_eq(get(4), hours[i].bcd12);
		/* And back, as the guest writes it. */
		set(4, 0x05);
		set(4, hours[i].bcd12);
		set(B, B_24H);
		ck_assert_uint_eq(get(4), bcd((int)hours[i].h24));
	}
}
END_TEST

/* Without SET each register takes effect by itself. */
START_TEST(test_set_running)
{
	set_time(2022, 5, 6, 7, 8, 9);
	set(2, bcd(30));
	check_time(2022, 5, 6, 7, 30, 9);
	set(9, bcd(33));
	check_time(2033, 5, 6, 7, 30, 9);
	set(0x32, bcd(19));
	check_time(1933, 5, 6, 7, 30, 9);
}
END_TEST

START_TEST(test_set_bit_stops_the_clock)
{
	set_time(2022, 5, 6, 7, 8, 9); /* half a second from now it would be 10 */
	set(B, B_24H | B_SET);
	get(C);
	run_for(700 * NS_PER_MS);
	check_time(2022, 5, 6, 7, 8, 9);
	ck_assert_uint_eq(get(C) & (C_UF | C_AF), 0);
	ck_assert_uint_eq(get(A) & A_UIP, 0);
	/* It goes on from there, and a date that was half written stays one's own business. */
	set(7, bcd(31));
	set(8, bcd(2));
	ck_assert_uint_eq(get(7), bcd(31));
	set(7, bcd(28));
	set(B, B_24H);
	check_time(2022, 2, 28, 7, 8, 9);
}
END_TEST

/* SET clears UIE, or the guest would be interrupted for ever by a clock that stands. */
START_TEST(test_set_bit_clears_uie)
{
	set(B, B_24H | B_SET | B_UIE | B_AIE);
	ck_assert_uint_eq(get(B), B_24H | B_SET | B_AIE);
}
END_TEST

START_TEST(test_update_interrupt)
{
	uint64_t start, first;

	set_time(2024, 12, 31, 23, 59, 59);
	get(C);
	start = now_ns();
	set(B, B_24H | B_UIE);
	ck_assert(!irq_level());
	ck_assert(fixture_wait_irq(f, IRQ_RTC, 2 * NS_PER_SEC));
	first = now_ns() - start;
	check_time(2025, 1, 1, 0, 0, 0);
	/* The divider's release is half a second before the first update. */
	ck_assert_uint_ge(first, 350 * NS_PER_MS);
	ck_assert_uint_le(first, 900 * NS_PER_MS);
	ck_assert_uint_eq(get(C) & (C_IRQF | C_UF), C_IRQF | C_UF);
	ck_assert(!irq_level());
	ck_assert_uint_eq(get(C) & (C_IRQF | C_UF), 0);

	start = now_ns();
	ck_assert(fixture_wait_irq(f, IRQ_RTC, 2 * NS_PER_SEC));
	ck_assert_uint_ge(now_ns() - start, 500 * NS_PER_MS);
	check_time(2025, 1, 1, 0, 0, 1);
	ck_assert_uint_eq(fixture_rises[IRQ_RTC], 2);
}
END_TEST

/* Flags are set without their interrupts, and an interrupt enabled later is raised at once. */
START_TEST(test_polled_flags)
{
	set_time(2024, 1, 1, 0, 0, 0);
	get(C);
	run_for(600 * NS_PER_MS);
	ck_assert(!irq_level());
	ck_assert_uint_eq(get(C) & (C_UF | C_IRQF), C_UF);
	ck_assert_uint_eq(get(C) & C_UF, 0);

	set_time(2024, 1, 1, 0, 0, 0);
	run_for(600 * NS_PER_MS);
	set(B, B_24H | B_UIE);
	ck_assert(irq_level());
	set(B, B_24H);
	ck_assert(!irq_level());
}
END_TEST

START_TEST(test_alarm)
{
	static const struct {
		unsigned h, m, s;
		bool hits;
	} alarms[] = {
		{0x10, 0x21, 0x00, true},  {0xff, 0xff, 0x00, true},  {0xc0, 0x21, 0xff, true},
		{0x10, 0x21, 0x01, false}, {0x11, 0x21, 0x00, false}, {0xff, 0x20, 0xff, false},
	};

	/* The clock is at the same half second for all of them: one wait for each. */
	set_time(2024, 1, 1, 10, 20, 59);
	set(5, alarms[_i].h);
	set(3, alarms[_i].m);
	set(1, alarms[_i].s);
	get(C);
	set(B, B_24H | B_AIE);
	ck_assert_int_eq(fixture_wait_irq(f, IRQ_RTC, 700 * NS_PER_MS), alarms[_i].hits);
	ck_assert_uint_eq(get(C) & (C_AF | C_IRQF), alarms[_i].hits ? C_AF | C_IRQF : 0);
	ck_assert_uint_eq(get(5), alarms[_i].h);
	ck_assert_uint_eq(get(2), 0x21);
}
END_TEST

/* An alarm set on another thread than the loop's while its timer waits for a later one. */
static void *set_early_alarm(void *arg)
{
	(void)arg;
	set(1, 0xff);
	return NULL;
}

START_TEST(test_alarm_comes_nearer)
{
	pthread_t vcpu;

	set_time(2024, 1, 1, 10, 20, 10);
	set(5, 0xff);
	set(3, 0xff);
	set(1, 0x05); /* in 55 s */
	get(C);
	set(B, B_24H | B_AIE);
	run_for(10 * NS_PER_MS);
	pthread_create(&vcpu, NULL, set_early_alarm, NULL);
	ck_assert(fixture_wait_irq(f, IRQ_RTC, 2 * NS_PER_SEC));
	pthread_join(vcpu, NULL);
	ck_assert_uint_eq(get(0), 0x11);
}
END_TEST

START_TEST(test_periodic_interrupt)
{
	uint64_t start = now_ns(), took;
	unsigned n;

	set(A, A_RUN | 0x0c); /* 62.5 ms */
	get(C);
	set(B, B_24H | B_PIE);
	for (n = 0; n < 8; n++) {
		ck_assert(fixture_wait_irq(f, IRQ_RTC, NS_PER_SEC));
		ck_assert_uint_eq(get(C) & (C_PF | C_IRQF), C_PF | C_IRQF);
		ck_assert(!irq_level());
	}
	took = now_ns() - start;
	ck_assert_uint_ge(took, 7 * 62500 * NS_PER_US);
	ck_assert_uint_le(took, 2 * NS_PER_SEC);
	/* A guest that does not look at C is not interrupted again. */
	fixture_rises[IRQ_RTC] = 0;
	run_for(200 * NS_PER_MS);
	ck_assert_uint_eq(fixture_rises[IRQ_RTC], 1);

	set(A, A_RUN); /* rate 0 */
	get(C);
	run_for(150 * NS_PER_MS);
	ck_assert(!irq_level());
	ck_assert_uint_eq(get(C) & C_PF, 0);
	set(A, A_DIVIDER_RESET | 0x0c);
	get(C);
	run_for(150 * NS_PER_MS);
	ck_assert(!irq_level());
}
END_TEST

START_TEST(test_update_in_progress)
{
	uint64_t deadline = now_ns() + 10 * NS_PER_SEC;
	unsigned before;

	set_time(2024, 1, 1, 0, 0, 30);
	ck_assert_uint_eq(get(A) & A_UIP, 0);
	/* A window of 2 ms in each second, which a busy host may sleep through once. */
	do {
		before = get(0);
	} while (!(get(A) & A_UIP) && now_ns() < deadline);
	while ((get(A) & A_UIP) && now_ns() < deadline)
		;
	ck_assert_uint_lt(now_ns(), deadline);
	ck_assert_uint_gt(get(0), before);
	set(A, 0x26 | A_UIP); /* read-only */
	ck_assert_uint_eq(get(A), 0x26);
}
END_TEST

START_TEST(test_cmos_memory)
{
	struct fixture *big;
	unsigned kib, units;

	for (unsigned reg = 0x40; reg < 0x80; reg++)
		set(reg, reg ^ 0x5a);
	for (unsigned reg = 0x40; reg < 0x80; reg++)
		ck_assert_uint_eq(get(reg | 0x80), reg ^ 0x5a); /* bit 7 is the NMI mask */
	set(D, 0);
	ck_assert_uint_eq(get(D), 0x80);
	/* Index and data in one word. */
	bus_write(&f->vm.pio, 0x70, 2, 0x1234 << 8 | 0x50);
	ck_assert_uint_eq(get(0x50), 0x34);

	ck_assert_uint_eq(get(0x15) | get(0x16) << 8, 640);
	ck_assert_uint_eq(get(0x17) | get(0x18) << 8, 15 * 1024);
	ck_assert_uint_eq(get(0x34) | get(0x35) << 8, 0);

	big = fixture_new(&rtc_ops, NULL, 5 * GIB);
	kib = get_from(big, 0x30) | get_from(big, 0x31) << 8;
	ck_assert_uint_eq(kib, 0xffff);
	units = get_from(big, 0x34) | get_from(big, 0x35) << 8;
	ck_assert_uint_eq(units, (3 * GIB - 16 * MIB) / (64 * KIB));
	units = get_from(big, 0x5b) | get_from(big, 0x5c) << 8 | get_from(big, 0x5d) << 16;
	ck_assert_uint_eq(units, 2 * GIB / (64 * KIB));
	fixture_free(big);
}
END_TEST

START_TEST(test_reset)
{
	set_time(2001, 2, 3, 4, 5, 6);
	run_for(600 * NS_PER_MS);
	set(B, B_24H | B_UIE);
	ck_assert(irq_level());
	f->dev->ops->reset(f->dev);
	ck_assert(!irq_level());
	ck_assert_uint_eq(get(B), B_24H);
	check_time(2001, 2, 3, 4, 5, 7);
}
END_TEST

START_TEST(test_quiesce)
{
	set_time(2024, 1, 1, 0, 0, 0);
	get(C);
	set(B, B_24H | B_UIE);
	run_for(NS_PER_MS);
	ck_assert_int_eq(f->dev->ops->quiesce(f->dev, now_ns() + DEADLINE_NS), 0);
	run_for(700 * NS_PER_MS);
	ck_assert(!irq_level());
	/* What fell due meanwhile is told, once. */
	f->dev->ops->resume(f->dev);
	ck_assert(irq_level());
	ck_assert_uint_eq(get(C) & (C_UF | C_IRQF), C_UF | C_IRQF);
	ck_assert_uint_eq(fixture_rises[IRQ_RTC], 1);
	/* And the timer is armed again. */
	ck_assert(fixture_wait_irq(f, IRQ_RTC, 2 * NS_PER_SEC));
}
END_TEST

START_TEST(test_save_and_load)
{
	struct fixture *other;
	int64_t diff;
	struct sbuf s;

	set_time(1987, 6, 5, 4, 3, 2);
	set(5, 0x04);
	set(3, 0x03);
	set(1, 0x03); /* in half a second */
	set(0x40, 0x99);
	get(C);
	set(B, B_24H | B_AIE);
	fixture_save(f, &s);

	other = fixture_new(&rtc_ops, NULL, 16 * MIB);
	ck_assert_int_eq(fixture_load(other, s.data, s.len), 0);
	ck_assert(!irq_level());
	other->dev->ops->resume(other->dev);
	/* The index, then the rest. */
	ck_assert_uint_eq(fixture_in(other, 0x71), B_24H | B_AIE);
	diff = get_seconds(other) - get_seconds(f);
	ck_assert_int_ge(diff, -1);
	ck_assert_int_le(diff, 1);
	ck_assert_uint_eq(get_from(other, 5), 0x04);
	ck_assert_uint_eq(get_from(other, 0x40), 0x99);
	/* The alarm goes off there; here it is at rest. */
	ck_assert(fixture_wait_irq(other, IRQ_RTC, 2 * NS_PER_SEC));
	ck_assert_uint_eq(get_from(other, C) & (C_AF | C_IRQF), C_AF | C_IRQF);
	fixture_free(other);
	sb_free(&s);
}
END_TEST

/* An interrupt that fell due between save and load, and one that was pending before. */
START_TEST(test_interrupts_survive)
{
	struct fixture *other;
	struct sbuf s;

	set_time(2024, 1, 1, 0, 0, 0);
	get(C);
	set(B, B_24H | B_UIE);
	fixture_save(f, &s);
	run_for(700 * NS_PER_MS);
	other = fixture_new(&rtc_ops, NULL, 16 * MIB);
	ck_assert_int_eq(fixture_load(other, s.data, s.len), 0);
	other->dev->ops->resume(other->dev);
	ck_assert(irq_level());
	sb_free(&s);

	/* The interrupt controller has seen the line up: the next machine's must fall first. */
	fixture_save(other, &s);
	fixture_free(other);
	other = fixture_new(&rtc_ops, NULL, 16 * MIB);
	ck_assert(irq_level());
	fixture_rises[IRQ_RTC] = 0;
	ck_assert_int_eq(fixture_load(other, s.data, s.len), 0);
	ck_assert(irq_level());
	ck_assert_uint_eq(fixture_rises[IRQ_RTC], 1);
	other->dev->ops->resume(other->dev);
	ck_assert_uint_eq(get_from(other, C) & (C_UF | C_IRQF), C_UF | C_IRQF);
	fixture_free(other);
	sb_free(&s);
}
END_TEST

START_TEST(test_save_stopped)
{
	struct fixture *other;
	struct sbuf s;

	set_time(2010, 9, 8, 7, 6, 5);
	set(B, B_24H | B_SET);
	set(0, 0x44);
	fixture_save(f, &s);
	other = fixture_new(&rtc_ops, NULL, 16 * MIB);
	ck_assert_int_eq(fixture_load(other, s.data, s.len), 0);
	other->dev->ops->resume(other->dev);
	check_time_of(other, 2010, 9, 8, 7, 6, 44);
	fixture_out(other, 0x70, B);
	fixture_out(other, 0x71, B_24H);
	check_time_of(other, 2010, 9, 8, 7, 6, 44);
	fixture_free(other);
	sb_free(&s);
}
END_TEST

/* Whatever a guest makes of its clock, it can be moved. */
START_TEST(test_any_time_loads)
{
	static const unsigned values[] = {0x00, 0xff, 0x99, 0x7f};
	struct sbuf s;

	for (size_t i = 0; i < ARRAY_SIZE(values); i++) {
		for (unsigned b = 0; b <= (B_BINARY | B_24H); b += 2) {
			set(B, B_SET | b);
			for (unsigned reg = 0; reg < 10; reg++)
				set(reg, values[i]);
			set(0x32, values[i]);
			set(B, b | B_AIE);
			fixture_save(f, &s);
			ck_assert_int_eq(fixture_load(f, s.data, s.len), 0);
			f->dev->ops->resume(f->dev);
			get(0);
			get(C);
			sb_free(&s);
		}
	}
}
END_TEST

START_TEST(test_load_hostile)
{
	/* index, then cmos[]; then 8 bytes of seconds and 4 of nanoseconds */
	static const struct {
		size_t at;
		uint8_t value;
	} bad[] = {
		{0, 0x80},
		{1 + A, 0xa6},
		{1 + C, 0x01},
		{1 + D, 0},
		{1 + 128 + 6, 0x7f},
		{1 + 128 + 8 + 3, 0x7f},
		{1 + 128 + 12 + 6, 0x7f},
	};
	struct sbuf s;

	fixture_save(f, &s);
	for (size_t len = 0; len < s.len; len++)
		ck_assert_int_lt(fixture_load(f, s.data, len), 0);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		uint8_t good = s.data[bad[i].at];

		s.data[bad[i].at] = bad[i].value;
		ck_assert_int_lt(fixture_load(f, s.data, s.len), 0);
		s.data[bad[i].at] = good;
	}
	ck_assert_int_eq(fixture_load(f, s.data, s.len), 0);
	sb_free(&s);
}
END_TEST

/* Interrupts served on another thread than the loop's. */
struct vcpu_thread {
	atomic_bool quit;
	unsigned served;
};

static void *serve(void *arg)
{
	struct vcpu_thread *v = arg;

	while (!v->quit) {
		if (irq_level() && (get(C) & C_IRQF))
			v->served++;
	}
	return NULL;
}

START_TEST(test_threads)
{
	struct vcpu_thread v = {.served = 0};
	pthread_t thread;

	set(A, A_RUN | 0x08); /* 256 Hz */
	set(B, B_24H | B_PIE | B_UIE);
	pthread_create(&thread, NULL, serve, &v);
	run_for(500 * NS_PER_MS);
	v.quit = true;
	pthread_join(thread, NULL);
	ck_assert_uint_ge(v.served, 20);
	ck_assert_uint_le(v.served, 140);
}
END_TEST

static Suite *rtc_suite(void)
{
	Suite *s = suite_create("rtc");
	TCase *t = tcase_create("rtc");

	tcase_add_checked_fixture(t, setup, teardown);
	tcase_set_timeout(t, 30);
	tcase_add_test(t, test_power_on);
	tcase_add_test(t, test_set_and_get);
	tcase_add_test(t, test_number_formats);
	tcase_add_test(t, test_set_running);
	tcase_add_test(t, test_set_bit_stops_the_clock);
	tcase_add_test(t, test_set_bit_clears_uie);
	tcase_add_test(t, test_update_interrupt);
	tcase_add_test(t, test_polled_flags);
	tcase_add_loop_test(t, test_alarm, 0, 6);
	tcase_add_test(t, test_alarm_comes_nearer);
	tcase_add_test(t, test_periodic_interrupt);
	tcase_add_test(t, test_update_in_progress);
	tcase_add_test(t, test_cmos_memory);
	tcase_add_test(t, test_reset);
	tcase_add_test(t, test_quiesce);
	tcase_add_test(t, test_save_and_load);
	tcase_add_test(t, test_interrupts_survive);
	tcase_add_test(t, test_save_stopped);
	tcase_add_test(t, test_any_time_loads);
	tcase_add_test(t, test_load_hostile);
	tcase_add_test(t, test_threads);
	suite_add_tcase(s, t);
	return s;
}

int main(void)
{
	return fixture_main(rtc_suite());
}
