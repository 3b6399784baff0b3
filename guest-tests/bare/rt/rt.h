/* SPDX-License-Identifier: MIT */
/*
 * The runtime of the bare payloads: everything between the PVH loader and the payload's main().
 *
 * A payload is one file that defines rt_payload and includes nothing but this header and the
 * serial contract. When its main() runs, the whole of RAM is mapped one to one, the console and the
 * clock work, exceptions end in a panic line, and the CPU is in the ring where the host runs code
 * at full speed: ring 0 everywhere but on hosts that emulate ring 0, where it is ring 3. In both
 * rings port I/O and every mapped address can be used; privileged instructions only in ring 0.
 *
 * No SSE in compiled code: the runtime itself is executed by instruction emulators.
 */
#ifndef GODWIT_BARE_RT_H
#define GODWIT_BARE_RT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "layout.h"

#define RT_PAGE_SIZE 4096ul
#define RT_MAX_RANGES 32

struct rt_range {
	uint64_t base;
	uint64_t size;
};

/* One CPU. The boot processor is number 0. */
struct rt_cpu {
	uint32_t index;
	uint32_t apic_id;
	uint32_t online; /* atomic: set by the CPU itself once it has reached C */
	void (*fn)(struct rt_cpu *cpu);
	void *arg;
	uint64_t stack0; /* tops of its stacks: ring 0 and interrupts, ring 3 */
	uint64_t stack3;
};

/* What an interrupt or exception leaves on the stack. */
struct rt_frame {
	uint64_t r15, r14, r13, r12, r11, r10, r9, r8, rdi, rsi, rbp, rbx, rdx, rcx, rax;
	uint64_t vector, err, rip, cs, rflags, rsp, ss;
};

/* CPUID results taken in ring 0; on hosts that emulate ring 0, ring 3 sees another CPUID. */
struct rt_cpuid {
	bool intel;
	bool xsave, avx, avx512, tsc_deadline;
	uint32_t xsave_size; /* bytes of the XSAVE area for what is enabled now */
};

/* All that the runtime knows; filled in before main(), constant afterwards. */
struct rt_state {
	char cmdline[2048];
	struct rt_range ram[RT_MAX_RANGES]; /* RAM by the memory map, in its order */
	uint32_t nr_ram;
	uint64_t ram_bytes;
	uint64_t rsdp;	       /* address of the ACPI root pointer, 0: none */
	uint32_t ring;	       /* in which main() runs: 0 or 3 */
	uint64_t ring0_cycles; /* of one turn of a two-instruction loop in ring 0 */
	uint64_t tsc_khz;
	const char *tsc_from; /* one word: where tsc_khz comes from */
	struct rt_cpuid cpuid;
	uint32_t nr_cpus; /* usable CPUs by the MADT; the boot processor is cpus[0] */
	struct rt_cpu cpus[RT_MAX_CPUS];
	uint8_t isa_pin[16]; /* by the MADT; the same number where it says nothing */
};

extern struct rt_state rt;

struct rt_payload {
	const char *name;   /* first word of every line */
	void (*main)(void); /* when it returns the machine is powered off */
	bool vectors;	    /* enable XSAVE and AVX state */
	bool interrupts;    /* set up the controllers, run main() with interrupts on */
};

extern const struct rt_payload rt_payload;

/* --- Console (COM1) --- */

/*
 * printf to the console. Understands %s %c %d %u %x, the last three also as %l., a field width with
 * optional leading 0, and %%. The line is put together first and sent as a whole, so lines of
 * several CPUs do not mix; it is cut at 3000 bytes.
 */
void rt_printf(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void rt_putc(char c);
/* A byte received, or -1. One port read when there is none. */
int rt_getc(void);
/* If set, called after every access to a console port, so that a payload can read the clock. */
extern void (*rt_console_hook)(void);

/* --- The end --- */

/* `<name> panic why="..."`, then power-off. */
void rt_panic(const char *why) __attribute__((noreturn));
/* The same with a detail after the reason: why="REASON: DETAIL". */
void rt_panic_at(const char *why, const char *detail) __attribute__((noreturn));
/* `<name> skip why="..."`, `<name> done`, then power-off: this host cannot run the payload. */
void rt_skip(const char *why) __attribute__((noreturn));
/* ACPI S5 through the PM1a port; where that does nothing, a triple fault. */
void rt_poweroff(void) __attribute__((noreturn));

/* --- Memory functions; the compiler calls them by itself too --- */

void *memcpy(void *restrict dst, const void *restrict src, size_t n);
void *memset(void *dst, int c, size_t n);
void *memmove(void *dst, const void *src, size_t n);
int memcmp(const void *a, const void *b, size_t n);
size_t rt_strlen(const char *s);

/* --- Command line --- */

/* The number after `key=`, K, M or G included, or `missing`; panics if it is no number. */
uint64_t rt_option(const char *key, uint64_t missing);
/*
 * Which of the words (a list ended by NULL) follows `key=`, counted from 0; `missing` if the key
 * is not there. Panics if it is another word.
 */
uint32_t rt_option_word(const char *key, const char *const *words, uint32_t missing);

/* --- Time --- */

static inline uint64_t rt_tsc(void)
{
	uint32_t lo, hi;

	__asm__ volatile("rdtsc" : "=a"(lo), "=d"(hi));
	return ((uint64_t)hi << 32) | lo;
}

/* Cycles to nano-, micro- and milliseconds, and back. Exact to a cycle for spans of years. */
uint64_t rt_cycles_to_ns(uint64_t cycles);
uint64_t rt_us_to_cycles(uint64_t us);

/* --- Memory --- */

/*
 * Take `size` bytes of unused RAM, page aligned and in one piece; rounded up to pages. Returned
 * memory is as the loader left it. Panics when there is no such piece.
 */
void *rt_alloc(uint64_t size);
/* RAM that is still unused, in pages, over all ranges. */
uint64_t rt_free_pages(void);
/*
 * Take `pages` pages, if need be from several ranges: up to *nr ranges are written to out, in
 * ascending order of address, and *nr says how many. Panics when RAM does not suffice.
 */
void rt_alloc_ranges(uint64_t pages, struct rt_range *out, uint32_t *nr);

/* --- CPUs and interrupts --- */

/*
 * Start CPU number `index` (1 .. rt.nr_cpus - 1): it runs fn(cpu) in the same ring as the caller
 * and, when fn returns, idles for ever. Returns once it is up; panics when it does not come.
 */
void rt_cpu_start(uint32_t index, void (*fn)(struct rt_cpu *cpu), void *arg);

/* Handler of one vector (32..255). It runs in ring 0 with interrupts off, on whichever CPU. */
void rt_on_interrupt(uint32_t vector, void (*fn)(const struct rt_frame *frame));

/*
 * Interrupt controllers. With rt_payload.interrupts all sources are masked and interrupts are on
 * when main() begins; the PICs' vectors then start at RT_VECTOR_PIC. All of it works in both rings.
 */
#define RT_VECTOR_PIC 0x20
/* Unmask one of IRQ 0..7 at the first PIC, and let the local APIC of this CPU accept the PICs. */
void rt_pic_unmask(uint32_t irq);
void rt_pic_eoi(void);
/* Route a pin of the I/O APIC (edge, active high) to a vector of one CPU; false: no such pin. */
bool rt_ioapic_route(uint32_t pin, uint32_t vector, uint32_t apic_id);
void rt_ioapic_mask(uint32_t pin);
/* Pin of the I/O APIC that ISA interrupt `irq` arrives at, by the MADT's overrides. */
uint32_t rt_isa_pin(uint32_t irq);
/* Software-enable the local APIC; the boot CPU's is when interrupts are on. */
void rt_lapic_enable(void);

/* Local APIC registers, by their offset in the page. They can be used in both rings. */
#define RT_LAPIC_BASE 0xfee00000ul
#define LAPIC_ID 0x020
#define LAPIC_EOI 0x0b0
#define LAPIC_SVR 0x0f0
#define LAPIC_ICR_LOW 0x300
#define LAPIC_ICR_HIGH 0x310
#define LAPIC_LVT_TIMER 0x320
#define LAPIC_LVT_LINT0 0x350
#define LAPIC_TIMER_INIT 0x380
#define LAPIC_TIMER_NOW 0x390
#define LAPIC_TIMER_DIV 0x3e0

static inline uint32_t rt_lapic_read(uint32_t reg)
{
	return *(volatile uint32_t *)(RT_LAPIC_BASE + reg);
}

static inline void rt_lapic_write(uint32_t reg, uint32_t value)
{
	*(volatile uint32_t *)(RT_LAPIC_BASE + reg) = value;
}

/* --- Instructions --- */

static inline void rt_outb(uint16_t port, uint8_t value)
{
	__asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline void rt_outw(uint16_t port, uint16_t value)
{
	__asm__ volatile("outw %0, %1" : : "a"(value), "Nd"(port));
}

static inline uint8_t rt_inb(uint16_t port)
{
	uint8_t value;

	__asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
	return value;
}

static inline uint64_t rt_rdmsr(uint32_t msr)
{
	uint32_t lo, hi;

	__asm__ volatile("rdmsr" : "=a"(lo), "=d"(hi) : "c"(msr));
	return ((uint64_t)hi << 32) | lo;
}

static inline void rt_wrmsr(uint32_t msr, uint64_t value)
{
	__asm__ volatile("wrmsr"
			 :
			 : "c"(msr), "a"((uint32_t)value), "d"((uint32_t)(value >> 32))
			 : "memory");
}

static inline void rt_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t *a, uint32_t *b, uint32_t *c,
			    uint32_t *d)
{
	__asm__ volatile("cpuid"
			 : "=a"(*a), "=b"(*b), "=c"(*c), "=d"(*d)
			 : "a"(leaf), "c"(subleaf));
}

static inline void rt_relax(void)
{
	__asm__ volatile("pause" : : : "memory");
}

#endif
