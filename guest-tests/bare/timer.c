/* SPDX-License-Identifier: MIT */
/*
 * timer: lets two timers interrupt and notices when one of them stops.
 *
 * One is the local APIC's, by TSC deadline or else periodic; the other is the PIT, through the I/O
 * APIC or else the PICs. A timer counts as lost when nothing came for ten periods, and a second,
 * *during which this CPU was running*: the main loop adds up the time between its readings of the
 * clock, each one as a period at most, so that a pause of the whole machine is no loss.
 *
 * The handlers run in ring 0, which some hosts emulate; they do as little as they can.
 */

#include "contract.h"
#include "rt/rt.h"

#define MSR_TSC_DEADLINE 0x6e0
#define LVT_PERIODIC 0x20000
#define LVT_DEADLINE 0x40000
#define LVT_MASKED 0x10000
#define TIMER_DIV_1 0xb
#define ICR_SELF 0x40000

#define VECTOR_LAPIC 0x40
#define VECTOR_PIT 0x41

#define PIT_HZ 1193182
#define PIT_COMMAND 0x43
#define PIT_CHANNEL0 0x40
#define PIT_CH0_RATE 0x34 /* channel 0, both bytes, mode 2 */

#define HZ_MIN 20 /* what 16 bits of the PIT can count to */
#define HZ_MAX 1000
#define LOST_PERIODS 10
#define LOST_US 1000000 /* hosts that emulate timers may be late by many periods */
#define CALIBRATE_US 20000
#define CALIBRATE_TRIES 20
#define POLL_US 5000

struct source {
	const char *name;
	uint64_t period;	    /* cycles */
	volatile uint64_t ticks;    /* by the handler from here */
	volatile uint64_t last;	    /* clock at the latest tick */
	volatile uint64_t late_max; /* cycles */
	uint64_t deadline;
	uint64_t seen;	/* by the main loop from here */
	uint64_t quiet; /* cycles of running time without a tick */
	uint64_t lost;
	bool on, is_lost;
};

enum lapic_mode { LAPIC_DEADLINE, LAPIC_PERIODIC, LAPIC_OFF };
enum pit_mode { PIT_IOAPIC, PIT_PIC, PIT_OFF, PIT_AUTO };

static struct source lapic, pit;
static bool halt;

/* --- Handlers --- */

static void count(struct source *s, uint64_t now)
{
	uint64_t interval = now - s->last;

	/* The first tick has nothing to be late against. */
	if (s->ticks && interval > s->period && interval - s->period > s->late_max)
		s->late_max = interval - s->period;
	s->last = now;
	s->ticks++;
}

static void on_lapic(const struct rt_frame *frame)
{
	(void)frame;
	count(&lapic, rt_tsc());
	rt_lapic_write(LAPIC_EOI, 0);
}

/*
 * The MSR can only be written in ring 0, that is here; so the first call, which arms the timer for
 * the first time, comes by an interrupt that the CPU sends itself.
 */
static void on_deadline(const struct rt_frame *frame)
{
	uint64_t now = rt_tsc();

	(void)frame;
	if (lapic.deadline == 0) {
		lapic.deadline = now;
	} else {
		count(&lapic, now);
		if (now - lapic.deadline > lapic.late_max)
			lapic.late_max = now - lapic.deadline;
	}
	lapic.deadline += lapic.period;
	if ((int64_t)(lapic.deadline - now) <= 0)
		lapic.deadline = now + lapic.period;
	rt_lapic_write(LAPIC_EOI, 0);
	rt_wrmsr(MSR_TSC_DEADLINE, lapic.deadline);
}

static void on_pit_ioapic(const struct rt_frame *frame)
{
	(void)frame;
	count(&pit, rt_tsc());
	rt_lapic_write(LAPIC_EOI, 0);
}

static void on_pit_pic(const struct rt_frame *frame)
{
	(void)frame;
	count(&pit, rt_tsc());
	rt_pic_eoi();
}

/* --- Setting up --- */

static uint64_t patience(const struct source *s)
{
	uint64_t least = rt_us_to_cycles(LOST_US), periods = LOST_PERIODS * s->period;

	return periods > least ? periods : least;
}

/* Does it tick at all? */
static bool ticks(struct source *s)
{
	uint64_t start = rt_tsc(), before = s->ticks;

	while (rt_tsc() - start < patience(s))
		if (s->ticks != before)
			return true;
	return false;
}

/* What the APIC timer counts in that many cycles, 0: it does not count. */
static uint64_t lapic_counts(uint64_t cycles)
{
	uint64_t start, before, after = 0;
	uint32_t left = 0;

	rt_lapic_write(LAPIC_TIMER_DIV, TIMER_DIV_1);
	rt_lapic_write(LAPIC_LVT_TIMER, LVT_MASKED | VECTOR_LAPIC);
	/* A reading that something came between is no good. */
	for (int i = 0; i < CALIBRATE_TRIES; i++) {
		rt_lapic_write(LAPIC_TIMER_INIT, 0xffffffff);
		start = rt_tsc();
		while (rt_tsc() - start < rt_us_to_cycles(CALIBRATE_US))
			rt_relax();
		before = rt_tsc();
		left = rt_lapic_read(LAPIC_TIMER_NOW);
		after = rt_tsc();
		if (after - before < (before - start) / 100)
			break;
	}
	rt_lapic_write(LAPIC_TIMER_INIT, 0);
	return (0xffffffff - left) * cycles / (after - start);
}

static void start_periodic(uint64_t hz)
{
	uint64_t counts = lapic_counts(rt.tsc_khz * 1000 / hz);

	if (counts == 0 || counts > 0xffffffff)
		rt_panic("the APIC timer does not count");
	rt_lapic_write(LAPIC_LVT_TIMER, LVT_PERIODIC | VECTOR_LAPIC);
	rt_lapic_write(LAPIC_TIMER_INIT, (uint32_t)counts);
}

static void start_lapic(enum lapic_mode mode, uint64_t hz)
{
	if (mode == LAPIC_OFF)
		return;
	lapic.period = rt.tsc_khz * 1000 / hz;
	lapic.on = true;
	lapic.name = mode == LAPIC_DEADLINE ? "deadline" : "periodic";
	if (mode == LAPIC_DEADLINE) {
		if (!rt.cpuid.tsc_deadline)
			rt_panic("the CPU has no TSC deadline timer");
		rt_on_interrupt(VECTOR_LAPIC, on_deadline);
		rt_lapic_write(LAPIC_LVT_TIMER, LVT_DEADLINE | VECTOR_LAPIC);
		rt_lapic_write(LAPIC_ICR_LOW, ICR_SELF | VECTOR_LAPIC);
	} else {
		rt_on_interrupt(VECTOR_LAPIC, on_lapic);
		start_periodic(hz);
	}
}

static bool try_ioapic(void)
{
	uint32_t pin = rt_isa_pin(0);

	rt_on_interrupt(VECTOR_PIT, on_pit_ioapic);
	if (!rt_ioapic_route(pin, VECTOR_PIT, rt.cpus[0].apic_id))
		return false;
	if (ticks(&pit))
		return true;
	/* Without an override in the MADT the timer may still be wired as on every PC: to pin 2. */
	rt_ioapic_mask(pin);
	if (pin != 0 || !rt_ioapic_route(2, VECTOR_PIT, rt.cpus[0].apic_id))
		return false;
	if (ticks(&pit))
		return true;
	rt_ioapic_mask(2);
	return false;
}

static bool try_pic(void)
{
	rt_on_interrupt(RT_VECTOR_PIC, on_pit_pic);
	rt_pic_unmask(0);
	return ticks(&pit);
}

static void start_pit(enum pit_mode mode, uint64_t hz)
{
	uint32_t divisor = (uint32_t)(PIT_HZ / hz);

	if (mode == PIT_OFF)
		return;
	pit.period = rt.tsc_khz * 1000 * divisor / PIT_HZ;
	rt_outb(PIT_COMMAND, PIT_CH0_RATE);
	rt_outb(PIT_CHANNEL0, (uint8_t)divisor);
	rt_outb(PIT_CHANNEL0, (uint8_t)(divisor >> 8));
	if (mode != PIT_PIC && try_ioapic())
		pit.name = "ioapic";
	else if (mode != PIT_IOAPIC && try_pic())
		pit.name = "pic";
	pit.on = pit.name != NULL;
	if (!pit.on && mode != PIT_AUTO)
		rt_panic("the PIT does not interrupt in the way pit= asks for");
}

static void setup(void)
{
	static const char *const lapic_modes[] = {"deadline", "periodic", "off", NULL};
	static const char *const pit_modes[] = {"ioapic", "pic", "off", "auto", NULL};
	bool has_deadline = rt.cpuid.tsc_deadline;
	static const char *const idles[] = {"spin", "halt", NULL};
	uint64_t hz = rt_option("hz", 100);
	uint32_t lapic_mode = rt_option_word("lapic", lapic_modes,
					     has_deadline ? LAPIC_DEADLINE : LAPIC_PERIODIC);
	uint32_t pit_mode = rt_option_word("pit", pit_modes, PIT_AUTO);

	if (hz < HZ_MIN || hz > HZ_MAX)
		rt_panic("hz= must be from 20 to 1000");
	halt = rt_option_word("idle", idles, 0) == 1;
	if (halt && rt.ring == 3)
		rt_skip("idle=halt needs ring 0, which is emulated here or was not asked for");
	start_lapic((enum lapic_mode)lapic_mode, hz);
	if (lapic.on && !ticks(&lapic))
		rt_skip("the APIC timer does not interrupt");
	start_pit((enum pit_mode)pit_mode, hz);
	if (!lapic.on && !pit.on)
		rt_skip("no timer to watch");
	/* What was late while the other one was tried and set up is of no interest. */
	lapic.late_max = pit.late_max = 0;
	rt_printf(BARE_TIMER_READY_FMT "\n", lapic.on ? lapic.name : "none",
		  pit.on ? pit.name : "none", hz, (uint64_t)rt.ring);
}

/* --- The main loop --- */

static void watch(struct source *s, uint64_t passed)
{
	uint64_t now_ticks = s->ticks;

	if (!s->on)
		return;
	if (now_ticks != s->seen) {
		s->seen = now_ticks;
		s->quiet = 0;
		s->is_lost = false;
		return;
	}
	s->quiet += passed < s->period ? passed : s->period;
	if (s->quiet > patience(s) && !s->is_lost) {
		s->is_lost = true;
		s->lost++;
		rt_printf(BARE_TIMER_ERROR "lost src=%s ticks=%lu\n", s->name, now_ticks);
	}
}

static void report(const char *fmt, uint64_t since_ready)
{
	uint64_t late = lapic.late_max > pit.late_max ? lapic.late_max : pit.late_max;

	rt_printf(fmt, lapic.ticks + pit.ticks, rt_cycles_to_ns(late) / 1000, lapic.lost + pit.lost,
		  lapic.ticks, pit.ticks, rt_cycles_to_ns(since_ready) / 1000000);
}

static void run(void)
{
	uint64_t report_every = rt_us_to_cycles(rt_option("report", 1) * 1000000);
	uint64_t run_for = rt_us_to_cycles(rt_option("secs", 0) * 1000000);
	uint64_t poll_every = rt_us_to_cycles(POLL_US);
	uint64_t start, last, last_poll, last_report;

	setup();
	start = last = last_poll = last_report = rt_tsc();
	for (;;) {
		uint64_t now = rt_tsc();
		int c = -1;

		watch(&lapic, now - last);
		watch(&pit, now - last);
		last = now;
		if (now - last_poll >= poll_every) {
			c = rt_getc();
			last_poll = now;
		}
		if (c == BARE_CMD_QUIT || (run_for && now - start >= run_for))
			break;
		if (c == BARE_CMD_RESET)
			lapic.late_max = pit.late_max = 0;
		if (c == BARE_CMD_REPORT || (report_every && now - last_report >= report_every)) {
			report(BARE_TIMER_REPORT_FMT "\n", now - start);
			last_report = now;
		}
		if (halt)
			__asm__ volatile("hlt" : : : "memory");
	}
	report(BARE_TIMER_DONE_FMT "\n", last - start);
}

const struct rt_payload rt_payload = {.name = "timer", .main = run, .interrupts = true};
