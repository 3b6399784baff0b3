/* SPDX-License-Identifier: MIT */
/*
 * Descriptor tables, exceptions, floating-point state, and the choice of the ring.
 *
 * All CPUs share the GDT and the IDT. Each has a task state segment, for the stack that an
 * interrupt from ring 3 lands on and for the I/O bitmap; the bitmap exists once, after the last
 * TSS, where all of them reach it:
 *
 *     tss[0] tss[1] ... tss[63] | bitmap, all ports allowed | 0xff
 *
 * Ring 3 gets port I/O twice over, by IOPL 3 and by the bitmap, because an emulated IRETQ or
 * SYSEXIT may lose the IOPL.
 */

#include "../contract.h"
#include "private.h"

#define MSR_APIC_BASE 0x1b
#define MSR_SYSENTER_CS 0x174
#define APIC_BASE_X2APIC (1u << 10)
#define APIC_BASE_ENABLE (1u << 11)

#define CR0_MP (1ul << 1)
#define CR0_EM (1ul << 2)
#define CR0_TS (1ul << 3)
#define CR0_NE (1ul << 5)
#define CR4_OSFXSR (1ul << 9)
#define CR4_OSXMMEXCPT (1ul << 10)
#define CR4_OSXSAVE (1ul << 18)
#define XCR0_AVX 0x07
#define XCR0_AVX512 0xe0

#define RFLAGS_FIXED 0x0002
#define RFLAGS_IF 0x0200
#define RFLAGS_IOPL3 0x3000

#define GATE_INTERRUPT 0x8e00
#define DESC_TSS 0x89
#define IO_BITMAP_SIZE 8192

struct tss {
	uint32_t reserved0;
	uint64_t rsp[3];
	uint64_t reserved1;
	uint64_t ist[7];
	uint64_t reserved2;
	uint16_t reserved3;
	uint16_t io_bitmap;
	uint64_t pad;
} __attribute__((packed, aligned(8)));

struct gate {
	uint16_t offset_low;
	uint16_t selector;
	uint16_t flags;
	uint16_t offset_mid;
	uint32_t offset_high;
	uint32_t reserved;
};

struct descriptor_ptr {
	uint16_t limit;
	uint64_t base;
} __attribute__((packed));

static struct {
	struct tss tss[RT_MAX_CPUS];
	uint8_t io_bitmap[IO_BITMAP_SIZE];
	uint8_t end;
} tasks = {.end = 0xff};

static struct gate idt[256] __attribute__((aligned(16)));
static void (*handlers[256])(const struct rt_frame *frame);

void rt_cpu_init_tables(void)
{
	for (uint32_t v = 0; v < 256; v++) {
		uint64_t offset = (uint64_t)rt_vectors + v * RT_VECTOR_STRIDE;

		idt[v].offset_low = (uint16_t)offset;
		idt[v].selector = SEL_KCODE;
		idt[v].flags = GATE_INTERRUPT;
		idt[v].offset_mid = (uint16_t)(offset >> 16);
		idt[v].offset_high = (uint32_t)(offset >> 32);
	}
}

void rt_cpu_identify(void)
{
	uint32_t a, b, c, d, max;

	rt_cpuid(0, 0, &max, &b, &c, &d);
	rt.cpuid.intel = b == 0x756e6547; /* "Genu" */
	rt_cpuid(1, 0, &a, &b, &c, &d);
	rt.cpus[0].apic_id = b >> 24;
	rt.cpuid.xsave = (c >> 26) & 1;
	rt.cpuid.tsc_deadline = (c >> 24) & 1;
	rt.cpuid.avx = rt.cpuid.xsave && ((c >> 28) & 1);
	if (rt.cpuid.avx && max >= 13) {
		rt_cpuid(7, 0, &a, &b, &c, &d);
		rt.cpuid.avx512 = (b >> 16) & 1;
		rt_cpuid(13, 0, &a, &b, &c, &d);
		rt.cpuid.avx = (a & XCR0_AVX) == XCR0_AVX;
		rt.cpuid.avx512 = rt.cpuid.avx512 && (a & XCR0_AVX512) == XCR0_AVX512;
	}
}

static void load_tables(struct rt_cpu *cpu)
{
	const struct descriptor_ptr ptr = {.limit = sizeof(idt) - 1, .base = (uint64_t)idt};
	struct tss *tss = &tasks.tss[cpu->index];
	uint64_t base = (uint64_t)tss;
	uint64_t limit = (uint64_t)&tasks.end - base;
	uint64_t *desc = &rt_gdt[SEL_TSS / 8 + 2 * cpu->index];

	tss->rsp[0] = cpu->stack0;
	tss->io_bitmap = (uint16_t)((uint64_t)tasks.io_bitmap - base);
	desc[0] = (limit & 0xffff) | ((base & 0xffffff) << 16) | ((uint64_t)DESC_TSS << 40) |
		  (((limit >> 16) & 0xf) << 48) | (((base >> 24) & 0xff) << 56);
	desc[1] = base >> 32;
	__asm__ volatile("lidt %0" : : "m"(ptr));
	__asm__ volatile("ltr %w0" : : "r"(SEL_TSS + 16 * cpu->index));
}

static void enable_vectors(void)
{
	uint64_t cr0, cr4;

	__asm__ volatile("mov %%cr0, %0" : "=r"(cr0));
	__asm__ volatile("mov %%cr4, %0" : "=r"(cr4));
	cr0 = (cr0 & ~(CR0_EM | CR0_TS)) | CR0_MP | CR0_NE;
	cr4 |= CR4_OSFXSR | CR4_OSXMMEXCPT;
	if (rt.cpuid.avx)
		cr4 |= CR4_OSXSAVE;
	__asm__ volatile("mov %0, %%cr0" : : "r"(cr0));
	__asm__ volatile("mov %0, %%cr4" : : "r"(cr4));
	if (rt.cpuid.avx) {
		uint32_t xcr0 = XCR0_AVX | (rt.cpuid.avx512 ? XCR0_AVX512 : 0);
		uint32_t a, c, d;

		__asm__ volatile("xsetbv" : : "c"(0), "a"(xcr0), "d"(0));
		rt_cpuid(13, 0, &a, &rt.cpuid.xsave_size, &c, &d);
	}
}

void rt_cpu_init(struct rt_cpu *cpu)
{
	uint64_t apic = rt_rdmsr(MSR_APIC_BASE);

	load_tables(cpu);
	/* SYSEXIT's selectors; see layout.h. */
	rt_wrmsr(MSR_SYSENTER_CS, SEL_KCODE);
	/*
	 * The local APIC is used through memory, because that works in ring 3 too. Should the
	 * loader have left it in x2APIC mode, the way back leads through "disabled".
	 */
	if ((apic & APIC_BASE_X2APIC) || !(apic & APIC_BASE_ENABLE)) {
		rt_wrmsr(MSR_APIC_BASE, apic & ~(uint64_t)(APIC_BASE_X2APIC | APIC_BASE_ENABLE));
		rt_wrmsr(MSR_APIC_BASE, (apic & ~(uint64_t)APIC_BASE_X2APIC) | APIC_BASE_ENABLE);
	}
	if (rt_payload.vectors)
		enable_vectors();
}

void rt_cpu_enter(struct rt_cpu *cpu, void (*fn)(struct rt_cpu *cpu))
{
	if (rt.ring == 3)
		rt_enter_ring3(cpu->stack3, fn, cpu, rt.cpuid.intel,
			       RFLAGS_FIXED | RFLAGS_IOPL3 |
				       (rt_payload.interrupts ? RFLAGS_IF : 0));
	if (rt_payload.interrupts)
		__asm__ volatile("sti");
	fn(cpu);
	for (;;)
		__asm__ volatile("hlt");
}

void rt_cpu_triple_fault(void)
{
	/* An IDT of absent gates: the #UD cannot be delivered, nor what follows from that. */
	memset(idt, 0, sizeof(idt));
	for (;;)
		__asm__ volatile("ud2");
}

void rt_on_interrupt(uint32_t vector, void (*fn)(const struct rt_frame *frame))
{
	handlers[vector & 255] = fn;
}

void rt_trap(struct rt_frame *frame)
{
	uint64_t cr2;

	if (frame->vector >= 32 && handlers[frame->vector & 255]) {
		handlers[frame->vector & 255](frame);
		return;
	}
	__asm__ volatile("mov %%cr2, %0" : "=r"(cr2));
	rt_console_steal();
	rt_printf("%s " BARE_PANIC_TRAP_FMT "\n", rt_payload.name, frame->vector, frame->err,
		  frame->rip, cr2, frame->cs & 3);
	rt_poweroff();
}
