/* SPDX-License-Identifier: MIT */
/*
 * How fast the TSC runs. In this order: what the command line says; the hypervisor's timing leaf
 * (0x40000010); kvmclock's multiplier; CPUID 0x15; the PIT by measurement; CPUID 0x16. The last
 * comes last because it describes the processor and not the virtual TSC.
 */

#include "private.h"

#define MSR_KVM_SYSTEM_TIME 0x4b564d01
#define KVM_CLOCKSOURCE2 (1u << 3)

#define PIT_HZ 1193182
#define PIT_CHANNEL0 0x40
#define PIT_COMMAND 0x43
#define PIT_CH0_ONESHOT 0x30 /* channel 0, both bytes, mode 0: counts down once */
#define PIT_CH0_LATCH 0x00
#define PIT_TICKS (PIT_HZ / 50) /* how long to measure */
#define PIT_TRIES 50
#define PIT_AGREE 1000 /* to one part in so many */
#define PIT_PATIENCE 2000000u

struct pvclock {
	uint32_t version;
	uint32_t pad;
	uint64_t tsc;
	uint64_t system_ns;
	uint32_t mul;
	int8_t shift;
	uint8_t flags;
	uint8_t pad2[2];
};

static uint64_t khz_cpuid16;

static void found(uint64_t khz, const char *from)
{
	if (rt.tsc_khz == 0 && khz) {
		rt.tsc_khz = khz;
		rt.tsc_from = from;
	}
}

/* KVM fills the structure in before it next enters the guest; the clock is turned off again. */
static uint64_t khz_of_kvmclock(void)
{
	static volatile struct pvclock clock __attribute__((aligned(64)));
	uint64_t khz;

	rt_wrmsr(MSR_KVM_SYSTEM_TIME, (uint64_t)&clock | 1);
	for (int i = 0; i < 100 && (clock.version == 0 || (clock.version & 1)); i++)
		;
	rt_wrmsr(MSR_KVM_SYSTEM_TIME, 0);
	if (clock.version == 0 || (clock.version & 1) || clock.mul == 0)
		return 0;
	/* ns = (cycles << shift) * mul >> 32, so cycles per ms: */
	khz = (1000000ul << 32) / clock.mul;
	return clock.shift < 0 ? khz << -clock.shift : khz >> clock.shift;
}

void rt_time_probe(void)
{
	uint32_t a, b, c, d, max;

	rt_cpuid(1, 0, &a, &b, &c, &d);
	if (c & (1u << 31)) {
		for (uint32_t leaf = 0x40000000; leaf <= 0x40000100; leaf += 0x100) {
			rt_cpuid(leaf, 0, &max, &b, &c, &d);
			if (max >= leaf + 0x10 && max < leaf + 0x100) {
				rt_cpuid(leaf + 0x10, 0, &a, &b, &c, &d);
				found(a, "hypervisor");
			}
			rt_cpuid(leaf, 0, &max, &b, &c, &d);
			if (b == 0x4b4d564b && c == 0x564b4d56 && d == 0x4d) { /* KVMKVMKVM */
				rt_cpuid(leaf + 1, 0, &a, &b, &c, &d);
				if (a & KVM_CLOCKSOURCE2)
					found(khz_of_kvmclock(), "kvmclock");
			}
		}
	}
	rt_cpuid(0, 0, &max, &b, &c, &d);
	if (max >= 0x15) {
		rt_cpuid(0x15, 0, &a, &b, &c, &d);
		if (a && b && c)
			found((uint64_t)c * b / a / 1000, "cpuid15");
	}
	if (max >= 0x16) {
		rt_cpuid(0x16, 0, &a, &b, &c, &d);
		khz_cpuid16 = (uint64_t)(a & 0xffff) * 1000;
	}
}

static uint16_t pit_count(void)
{
	uint16_t low;

	rt_outb(PIT_COMMAND, PIT_CH0_LATCH);
	low = rt_inb(PIT_CHANNEL0);
	return (uint16_t)(low | rt_inb(PIT_CHANNEL0) << 8);
}

/* One measurement. The counter wraps every 55 ms; a longer interruption makes the result wrong. */
static uint64_t measure_pit(void)
{
	uint16_t count = pit_count();
	uint64_t start = rt_tsc();
	uint32_t ticks = 0;

	for (uint32_t i = 0; i < PIT_PATIENCE; i++) {
		uint16_t now = pit_count();

		ticks += (uint16_t)(count - now);
		count = now;
		if (ticks >= PIT_TICKS)
			return (rt_tsc() - start) * PIT_HZ / ticks / 1000;
	}
	return 0;
}

/*
 * Channel 0, because the gate and the output of channel 2 are behind port 0x61, which small
 * machines lack. A busy host makes single measurements worthless, so two in a row must agree.
 */
static uint64_t khz_of_pit(void)
{
	uint64_t last, khz;

	rt_outb(PIT_COMMAND, PIT_CH0_ONESHOT);
	rt_outb(PIT_CHANNEL0, 0xff);
	rt_outb(PIT_CHANNEL0, 0xff);
	last = measure_pit();
	for (uint32_t i = 0; i < PIT_TRIES && last; i++) {
		khz = measure_pit();
		if ((khz > last ? khz - last : last - khz) < last / PIT_AGREE)
			return (khz + last) / 2;
		last = khz;
	}
	return 0;
}

void rt_time_init(void)
{
	uint64_t khz = rt_option("tsc_khz", 0);

	if (khz) {
		rt.tsc_khz = khz;
		rt.tsc_from = "cmdline";
	}
	if (rt.tsc_khz == 0)
		found(khz_of_pit(), "pit");
	found(khz_cpuid16, "cpuid16");
	if (rt.tsc_khz == 0)
		rt_panic("frequency of the TSC unknown: give tsc_khz=");
}

uint64_t rt_cycles_to_ns(uint64_t cycles)
{
	return cycles / rt.tsc_khz * 1000000 + cycles % rt.tsc_khz * 1000000 / rt.tsc_khz;
}

uint64_t rt_us_to_cycles(uint64_t us)
{
	return us / 1000 * rt.tsc_khz + us % 1000 * rt.tsc_khz / 1000;
}
