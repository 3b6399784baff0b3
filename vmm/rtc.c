/* SPDX-License-Identifier: MIT */
/*
 * Theory of operation: the time of day is this host's UTC plus an offset, which is 0 until the
 * guest sets its clock. Nothing ticks: time registers are worked out when they are read, and so are
 * the flags of register C, from the second and the tick up to which they were last looked at. A
 * timer runs only while an interrupt is enabled whose flag the guest has not yet to clear, and only
 * to the moment when that flag will be set.
 *
 * While the clock is stopped (SET, or the divider held in reset) the time registers are plain
 * bytes in cmos[]; when it is let go they become the new time.
 *
 * UIP covers the last 2.2 ms of each second, so a guest that found it clear has that long to read
 * the registers before they change. The real chip promises 244 us and then spends 2 ms on the
 * update; a guest whose every access leaves for the host needs more, and the update none.
 *
 * The loop's timers can be armed on the loop's thread only: vCPU threads post `arm`.
 */
#include "rtc.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <string.h>
#include <time.h>

#include "irq.h"
#include "loop.h"
#include "ram.h"
#include "util.h"
#include "vm.h"

#define PORT_INDEX 0x70U
#define N_PORTS 2U
#define CMOS_SIZE 128U

#define REG_SECONDS 0x00U
#define REG_SECONDS_ALARM 0x01U
#define REG_MINUTES 0x02U
#define REG_MINUTES_ALARM 0x03U
#define REG_HOURS 0x04U
#define REG_HOURS_ALARM 0x05U
#define REG_WEEKDAY 0x06U
#define REG_DAY 0x07U
#define REG_MONTH 0x08U
#define REG_YEAR 0x09U
#define REG_A 0x0aU
#define REG_B 0x0bU
#define REG_C 0x0cU
#define REG_D 0x0dU
#define REG_EQUIPMENT 0x14U
#define REG_CENTURY 0x32U

#define A_UIP 0x80U
#define A_DIVIDER_RESET 0x60U /* both set: the divider chain is held */
#define A_RATE 0x0fU
#define A_DEFAULT 0x26U /* 32768 Hz time base, 1024 Hz */

#define B_SET 0x80U
#define B_UIE 0x10U
#define B_BINARY 0x04U
#define B_24H 0x02U

/* Flags of C stand where their enable bits are in B. */
#define C_IRQF 0x80U
#define C_PF 0x40U
#define C_AF 0x20U
#define C_UF 0x10U
#define C_FLAGS (C_PF | C_AF | C_UF)

#define D_VALID 0x80U
#define EQUIPMENT_FPU 0x02U
#define HOURS_PM 0x80U
#define ALARM_ANY 0xc0U

#define CRYSTAL_HZ 32768U
#define UIP_NS 2228000U	     /* 244 us of warning and 1984 us of update */
#define DIVIDER_NS 500000000 /* from the divider's release to the first update */
#define DAY_S 86400
#define OFFSET_MAX_S (30000LL * 366 * DAY_S) /* more than four digits of any kind can say */
/* A timer longer than this is cut, so that a step of the host's clock is noticed. */
#define TIMER_MAX_NS (60 * NS_PER_SEC)

struct rtc {
	struct device dev;
	pthread_mutex_t lock;
	struct irq_line irq;
	bool level;
	bool at_rest;
	struct loop_task arm;
	struct loop_op timer;	  /* loop's thread only, as the next two */
	uint64_t timer_expiry_ns; /* now_ns() time */
	bool dying;

	uint8_t index;
	uint8_t cmos[CMOS_SIZE]; /* the registers too; of C only the flags */
	int64_t offset_s;	 /* guest's time = CLOCK_REALTIME + offset */
	uint32_t offset_ns;	 /* below a second */
	int64_t seen_s;		 /* UF and AF take account of the seconds up to this one, */
	uint64_t seen_tick;	 /* PF of the periodic ticks up to this one */
};

struct instant {
	int64_t s; /* since 1970 */
	uint32_t ns;
};

static struct rtc *to_rtc(struct device *d)
{
	return container_of(d, struct rtc, dev);
}

static struct instant guest_now(const struct rtc *r)
{
	uint64_t ns = realtime_ns() + r->offset_ns;

	return (struct instant){.s = (int64_t)(ns / NS_PER_SEC) + r->offset_s,
				.ns = (uint32_t)(ns % NS_PER_SEC)};
}

static bool divider_held(const struct rtc *r)
{
	return (r->cmos[REG_A] & A_DIVIDER_RESET) == A_DIVIDER_RESET;
}

static bool stopped(const struct rtc *r)
{
	return (r->cmos[REG_B] & B_SET) || divider_held(r);
}

/* Numbers as the guest has chosen to see them. */
static uint8_t encode(const struct rtc *r, int v)
{
	if (r->cmos[REG_B] & B_BINARY)
		return (uint8_t)v;
	return (uint8_t)((v / 10) << 4 | v % 10);
}

static int decode(const struct rtc *r, uint8_t v)
{
	if (r->cmos[REG_B] & B_BINARY)
		return v;
	return (v >> 4) * 10 + (v & 0xf);
}

static uint8_t encode_hours(const struct rtc *r, int h)
{
	if (r->cmos[REG_B] & B_24H)
		return encode(r, h);
	return (uint8_t)(encode(r, h % 12 ? h % 12 : 12) | (h >= 12 ? HOURS_PM : 0));
}

static int decode_hours(const struct rtc *r, uint8_t v)
{
	if (r->cmos[REG_B] & B_24H)
		return decode(r, v);
	return decode(r, v & (uint8_t)~HOURS_PM) % 12 + (v & HOURS_PM ? 12 : 0);
}

static bool is_time_reg(unsigned reg)
{
	switch (reg) {
	case REG_SECONDS:
	case REG_MINUTES:
	case REG_HOURS:
	case REG_WEEKDAY:
	case REG_DAY:
	case REG_MONTH:
	case REG_YEAR:
	case REG_CENTURY:
		return true;
	default:
		return false;
	}
}

/* Puts the running time into the time registers. */
static void latch_time(struct rtc *r)
{
	time_t t = guest_now(r).s;
	struct tm tm = {0};
	int year;

	gmtime_r(&t, &tm);
	year = tm.tm_year + 1900;
	r->cmos[REG_SECONDS] = encode(r, tm.tm_sec);
	r->cmos[REG_MINUTES] = encode(r, tm.tm_min);
	r->cmos[REG_HOURS] = encode_hours(r, tm.tm_hour);
	r->cmos[REG_WEEKDAY] = encode(r, tm.tm_wday + 1);
	r->cmos[REG_DAY] = encode(r, tm.tm_mday);
	r->cmos[REG_MONTH] = encode(r, tm.tm_mon + 1);
	r->cmos[REG_YEAR] = encode(r, year % 100);
	r->cmos[REG_CENTURY] = encode(r, year / 100 % 100);
}

/* Is there a periodic tick? */
static bool ticking(const struct rtc *r)
{
	return (r->cmos[REG_A] & A_RATE) && !divider_held(r);
}

/* Its period is 1 << tick_shift() cycles: rates 1 and 2 are 8 and 9 once more. */
static unsigned tick_shift(const struct rtc *r)
{
	unsigned rate = r->cmos[REG_A] & A_RATE;

	return rate < 3 ? rate + 6 : rate - 1;
}

/* The crystal's since 1970; modulo 2^64, only changes matter. */
static uint64_t cycles(struct instant t)
{
	return (uint64_t)t.s * CRYSTAL_HZ + (uint64_t)t.ns * CRYSTAL_HZ / NS_PER_SEC;
}

static void forget_past(struct rtc *r, struct instant t)
{
	r->seen_s = t.s;
	r->seen_tick = cycles(t) >> tick_shift(r);
}

/* Makes the time registers the time, ns into their second. */
static void set_time(struct rtc *r, uint32_t ns)
{
	struct tm tm = {
		.tm_sec = decode(r, r->cmos[REG_SECONDS]),
		.tm_min = decode(r, r->cmos[REG_MINUTES]),
		.tm_hour = decode_hours(r, r->cmos[REG_HOURS]),
		.tm_mday = decode(r, r->cmos[REG_DAY]),
		.tm_mon = decode(r, r->cmos[REG_MONTH]) - 1,
		.tm_year =
			decode(r, r->cmos[REG_CENTURY]) * 100 + decode(r, r->cmos[REG_YEAR]) - 1900,
	};
	uint64_t now = realtime_ns();
	int64_t diff_ns = (int64_t)ns - (int64_t)(now % NS_PER_SEC);

	r->offset_s = timegm(&tm) - (int64_t)(now / NS_PER_SEC);
	if (diff_ns < 0) {
		diff_ns += (int64_t)NS_PER_SEC;
		r->offset_s--;
	}
	r->offset_ns = (uint32_t)diff_ns;
	forget_past(r, guest_now(r));
}

static bool alarm_hits(const struct rtc *r, unsigned reg, int value)
{
	uint8_t v = r->cmos[reg];

	if ((v & ALARM_ANY) == ALARM_ANY)
		return true;
	return (reg == REG_HOURS_ALARM ? decode_hours(r, v) : decode(r, v)) == value;
}

/* First second after t at which the alarm goes off; INT64_MAX when its registers make no time. */
static int64_t next_alarm(const struct rtc *r, int64_t t)
{
	int64_t at = t + 1;

	while (at <= t + DAY_S) {
		int day = (int)((at % DAY_S + DAY_S) % DAY_S);

		if (!alarm_hits(r, REG_HOURS_ALARM, day / 3600))
			at += 3600 - day % 3600;
		else if (!alarm_hits(r, REG_MINUTES_ALARM, day / 60 % 60))
			at += 60 - day % 60;
		else if (!alarm_hits(r, REG_SECONDS_ALARM, day % 60))
			at++;
		else
			return at;
	}
	return INT64_MAX;
}

static void update_irq(struct rtc *r)
{
	bool level = r->cmos[REG_C] & r->cmos[REG_B] & C_FLAGS;

	if (level == r->level)
		return;
	r->level = level;
	irq_set(&r->irq, level);
}

/* Sets the flags of all that has happened by now, and the interrupt line with them. */
static void catch_up(struct rtc *r)
{
	struct instant t = guest_now(r);

	if (!stopped(r) && t.s != r->seen_s) {
		if (t.s > r->seen_s) {
			r->cmos[REG_C] |= C_UF;
			if (next_alarm(r, r->seen_s) <= t.s)
				r->cmos[REG_C] |= C_AF;
		}
		r->seen_s = t.s; /* or the host's clock was set back */
	}
	if (ticking(r)) {
		uint64_t tick = cycles(t) >> tick_shift(r);

		if (tick != r->seen_tick)
			r->cmos[REG_C] |= C_PF;
		r->seen_tick = tick;
	}
	update_irq(r);
}

/* Enabled interrupts whose flag is still to come. */
static unsigned awaited(const struct rtc *r)
{
	unsigned flags = r->cmos[REG_B] & ~r->cmos[REG_C] & C_FLAGS;

	if (stopped(r))
		flags &= ~(C_UF | C_AF);
	if (!ticking(r))
		flags &= ~C_PF;
	return flags;
}

/* Nanoseconds until the next flag that interrupts; UINT64_MAX when none will. */
static uint64_t next_event(const struct rtc *r)
{
	struct instant t = guest_now(r);
	unsigned flags = awaited(r);
	uint64_t next = UINT64_MAX;

	if (flags & C_PF) {
		uint64_t period = 1ULL << tick_shift(r);
		uint64_t left = period - (cycles(t) & (period - 1));
		uint64_t part = (uint64_t)t.ns * CRYSTAL_HZ % NS_PER_SEC;

		next = (left * NS_PER_SEC - part + CRYSTAL_HZ - 1) / CRYSTAL_HZ;
	}
	if (flags & C_UF)
		next = MIN(next, NS_PER_SEC - t.ns);
	if (flags & C_AF) {
		int64_t at = next_alarm(r, t.s);

		if (at != INT64_MAX)
			next = MIN(next, (uint64_t)(at - t.s) * NS_PER_SEC - t.ns);
	}
	return next == UINT64_MAX ? next : MIN(next, TIMER_MAX_NS);
}

/* On the loop's thread. A pending timer that fires early enough is left: it looks again then. */
static void arm_timer(struct rtc *r)
{
	uint64_t ns = UINT64_MAX;
	uint64_t expiry;

	pthread_mutex_lock(&r->lock);
	if (!r->at_rest) {
		catch_up(r);
		ns = next_event(r);
	}
	pthread_mutex_unlock(&r->lock);
	if (ns == UINT64_MAX)
		return;
	expiry = now_ns() + ns;
	if (!r->timer.pending) {
		r->timer_expiry_ns = expiry;
		loop_timer(r->dev.vm->loop, &r->timer, ns);
	} else if (expiry < r->timer_expiry_ns) {
		loop_cancel(r->dev.vm->loop, &r->timer);
	}
}

static void on_timer(struct loop_op *op, int32_t res)
{
	struct rtc *r = container_of(op, struct rtc, timer);

	(void)res; /* expired or cancelled: either way the registers say what comes next */
	if (!r->dying)
		arm_timer(r);
}

static void run_arm(struct loop_task *task)
{
	arm_timer(container_of(task, struct rtc, arm));
}

/* With the lock held, on any thread: after anything that may bring the next interrupt nearer. */
static void post_arm(struct rtc *r)
{
	if (!r->at_rest && awaited(r))
		loop_post(r->dev.vm->loop, &r->arm);
}

static uint8_t read_reg(struct rtc *r)
{
	unsigned reg = r->index;
	uint8_t v;

	switch (reg) {
	case REG_A:
		v = r->cmos[REG_A];
		if (!stopped(r) && guest_now(r).ns >= NS_PER_SEC - UIP_NS)
			v |= A_UIP;
		return v;
	case REG_C:
		catch_up(r);
		v = r->cmos[REG_C];
		if (v & r->cmos[REG_B])
			v |= C_IRQF;
		r->cmos[REG_C] = 0;
		update_irq(r);
		post_arm(r);
		return v;
	default:
		if (is_time_reg(reg) && !stopped(r))
			latch_time(r);
		return r->cmos[reg];
	}
}

static void write_a(struct rtc *r, uint8_t v)
{
	bool was_held = divider_held(r);
	bool was_stopped = stopped(r);

	catch_up(r);
	if (!was_stopped)
		latch_time(r);
	r->cmos[REG_A] = v & (uint8_t)~A_UIP;
	if (was_held && !divider_held(r))
		set_time(r, DIVIDER_NS);
	r->seen_tick = cycles(guest_now(r)) >> tick_shift(r);
}

static void write_b(struct rtc *r, uint8_t v)
{
	bool was_stopped = stopped(r);

	catch_up(r);
	if (!was_stopped)
		latch_time(r);
	if (v & B_SET)
		v &= (uint8_t)~B_UIE;
	r->cmos[REG_B] = v;
	/* Stopped by SET alone, the divider ran on, and with it the part of a second. */
	if (was_stopped && !stopped(r))
		set_time(r, guest_now(r).ns);
}

static void write_reg(struct rtc *r, uint8_t v)
{
	unsigned reg = r->index;

	switch (reg) {
	case REG_A:
		write_a(r, v);
		break;
	case REG_B:
		write_b(r, v);
		break;
	case REG_C:
	case REG_D:
		return;
	default:
		catch_up(r);
		if (is_time_reg(reg) && !stopped(r)) {
			latch_time(r);
			r->cmos[reg] = v;
			set_time(r, guest_now(r).ns);
		} else {
			r->cmos[reg] = v;
		}
	}
	update_irq(r);
	post_arm(r);
}

static uint64_t rtc_read(void *dev, uint64_t offset, unsigned size)
{
	struct rtc *r = dev;
	uint64_t v = 0;

	pthread_mutex_lock(&r->lock);
	for (unsigned i = 0; i < size; i++) {
		/* The index cannot be read back. */
		uint8_t byte = offset + i == 0 ? 0xff : read_reg(r);

		v |= (uint64_t)byte << (8 * i);
	}
	pthread_mutex_unlock(&r->lock);
	return v;
}

static void rtc_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	struct rtc *r = dev;

	pthread_mutex_lock(&r->lock);
	for (unsigned i = 0; i < size; i++) {
		uint8_t byte = (uint8_t)(value >> (8 * i));

		if (offset + i == 0)
			r->index = byte % CMOS_SIZE; /* bit 7 masks NMIs, of which there are none */
		else
			write_reg(r, byte);
	}
	pthread_mutex_unlock(&r->lock);
}

static const struct bus_ops rtc_bus_ops = {.read = rtc_read, .write = rtc_write};

static void put_le(uint8_t *to, unsigned bytes, uint64_t v)
{
	uint64_t max = (1ULL << (8 * bytes)) - 1;

	v = MIN(v, max);
	for (unsigned i = 0; i < bytes; i++)
		to[i] = (uint8_t)(v >> (8 * i));
}

/* RAM sizes where PC firmware leaves them. */
static void fill_cmos(struct rtc *r)
{
	uint64_t size = r->dev.vm->cfg.ram_size;
	uint64_t low = MIN(size, RAM_LOW_MAX);

	r->cmos[REG_EQUIPMENT] = EQUIPMENT_FPU;
	put_le(&r->cmos[0x15], 2, 640);
	put_le(&r->cmos[0x17], 2, low > MIB ? (low - MIB) / KIB : 0);
	put_le(&r->cmos[0x30], 2, low > MIB ? (low - MIB) / KIB : 0);
	put_le(&r->cmos[0x34], 2, low > 16 * MIB ? (low - 16 * MIB) / (64 * KIB) : 0);
	put_le(&r->cmos[0x5b], 3, (size - low) / (64 * KIB));
}

static int rtc_init(struct device *d, const void *config)
{
	struct rtc *r = to_rtc(d);
	const struct bus_range range = {
		.base = PORT_INDEX, .len = N_PORTS, .name = "rtc", .ops = &rtc_bus_ops, .dev = r};
	int ret;

	(void)config;
	ret = bus_add(&d->vm->pio, &range);
	if (ret)
		return ret;
	pthread_mutex_init(&r->lock, NULL);
	r->irq = vm_irq(d->vm, IRQ_RTC);
	r->arm.run = run_arm;
	r->timer.done = on_timer;
	return 0;
}

/* A battery keeps the time over a reset; at power-on it is the host's. */
static void rtc_reset(struct device *d)
{
	struct rtc *r = to_rtc(d);

	pthread_mutex_lock(&r->lock);
	r->index = 0;
	memset(r->cmos, 0, sizeof(r->cmos));
	r->cmos[REG_A] = A_DEFAULT;
	r->cmos[REG_B] = B_24H;
	r->cmos[REG_D] = D_VALID;
	fill_cmos(r);
	forget_past(r, guest_now(r));
	update_irq(r);
	pthread_mutex_unlock(&r->lock);
}

static int rtc_quiesce(struct device *d, uint64_t deadline_ns)
{
	struct rtc *r = to_rtc(d);

	(void)deadline_ns; /* a timer that fires at rest changes nothing */
	pthread_mutex_lock(&r->lock);
	r->at_rest = true;
	pthread_mutex_unlock(&r->lock);
	return 0;
}

/* Time went on: flags of what happened meanwhile are set now, once each. */
static void rtc_resume(struct device *d)
{
	struct rtc *r = to_rtc(d);

	pthread_mutex_lock(&r->lock);
	r->at_rest = false;
	catch_up(r);
	post_arm(r);
	pthread_mutex_unlock(&r->lock);
}

static void rtc_fields(struct device *d, struct sbuf *s)
{
	struct rtc *r = to_rtc(d);

	pthread_mutex_lock(&r->lock);
	if (s->loading)
		r->at_rest = true;
	sb_x8(s, &r->index);
	sb_bytes(s, r->cmos, sizeof(r->cmos));
	sb_i64(s, &r->offset_s);
	sb_u32_range(s, &r->offset_ns, 0, NS_PER_SEC - 1);
	sb_i64(s, &r->seen_s);
	sb_u64(s, &r->seen_tick);
	pthread_mutex_unlock(&r->lock);
}

static int rtc_loaded(struct device *d)
{
	struct rtc *r = to_rtc(d);
	int ret = 0;

	pthread_mutex_lock(&r->lock);
	if (r->index >= CMOS_SIZE || (r->cmos[REG_A] & A_UIP) || (r->cmos[REG_C] & ~C_FLAGS) ||
	    r->cmos[REG_D] != D_VALID || r->offset_s > OFFSET_MAX_S ||
	    r->offset_s < -OFFSET_MAX_S || r->seen_s > OFFSET_MAX_S || r->seen_s < -OFFSET_MAX_S) {
		ret = -EPROTO;
	} else {
		/* A new edge, as the interrupt controller may think that it has had this one. */
		irq_set(&r->irq, false);
		r->level = false;
		update_irq(r);
	}
	pthread_mutex_unlock(&r->lock);
	return ret;
}

static void rtc_destroy(struct device *d)
{
	struct rtc *r = to_rtc(d);
	struct loop *loop = d->vm->loop;

	r->dying = true;
	loop_unpost(loop, &r->arm);
	if (r->timer.pending)
		loop_cancel(loop, &r->timer);
	/* The kernel still holds the timer's memory; a cancelled one ends at once. */
	while (r->timer.pending && loop_step(loop, NS_PER_SEC) == 0)
		;
	pthread_mutex_destroy(&r->lock);
}

const struct device_ops rtc_ops = {
	.tag = "rtc",
	.size = sizeof(struct rtc),
	.version = 1,
	.min_version = 1,
	.init = rtc_init,
	.reset = rtc_reset,
	.quiesce = rtc_quiesce,
	.resume = rtc_resume,
	.fields = rtc_fields,
	.loaded = rtc_loaded,
	.destroy = rtc_destroy,
};
