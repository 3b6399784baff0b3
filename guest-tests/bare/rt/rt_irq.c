/* SPDX-License-Identifier: MIT */
/*
 * Interrupt controllers: both 8259 PICs, the I/O APIC, and the switch in front of the CPU.
 *
 * The payload runs with interrupts on. Ring 3 cannot be trusted with CLI and STI where ring 0 is
 * emulated, so they are turned on as the ring is left; hence everything is masked before that, and
 * a payload sets its handler before it unmasks a source.
 */

#include "private.h"

#define PIC1 0x20
#define PIC2 0xa0
#define ICW1_INIT 0x11 /* edge triggered, cascaded, ICW4 follows */
#define ICW4_8086 0x01
#define PIC_EOI 0x20

#define IOAPIC_BASE 0xfec00000ul
#define IOAPIC_SELECT 0x00
#define IOAPIC_WINDOW 0x10
#define IOAPIC_VERSION 0x01
#define IOAPIC_REDIRECT 0x10
#define IOAPIC_MASKED (1u << 16)

#define LVT_MASKED (1u << 16)
#define LVT_EXTINT 0x700
#define SVR_ENABLE 0x100
#define VECTOR_SPURIOUS 0xff

static void ioapic_write(uint32_t reg, uint32_t value)
{
	*(volatile uint32_t *)(IOAPIC_BASE + IOAPIC_SELECT) = reg;
	*(volatile uint32_t *)(IOAPIC_BASE + IOAPIC_WINDOW) = value;
}

static uint32_t ioapic_read(uint32_t reg)
{
	*(volatile uint32_t *)(IOAPIC_BASE + IOAPIC_SELECT) = reg;
	return *(volatile uint32_t *)(IOAPIC_BASE + IOAPIC_WINDOW);
}

static void spurious(const struct rt_frame *frame)
{
	(void)frame;
}

void rt_lapic_check(const struct rt_cpu *cpu)
{
	uint32_t a, b, c, d, id = rt_lapic_read(LAPIC_ID) >> 24;

	rt_cpuid(1, 0, &a, &b, &c, &d);
	if (id != b >> 24)
		rt_panic("CPUID and the local APIC disagree on the APIC id");
	if (id != cpu->apic_id)
		rt_panic("the CPU that started is not the one that was asked for");
}

void rt_lapic_enable(void)
{
	rt_lapic_write(LAPIC_SVR, SVR_ENABLE | VECTOR_SPURIOUS);
}

void rt_irq_init(void)
{
	static const uint16_t pics[] = {PIC1, PIC2};

	rt_lapic_check(&rt.cpus[0]);
	rt_on_interrupt(VECTOR_SPURIOUS, spurious);
	for (uint16_t i = 0; i < 2; i++) {
		rt_outb(pics[i], ICW1_INIT);
		rt_outb(pics[i] + 1, (uint8_t)(RT_VECTOR_PIC + 8 * i));
		rt_outb(pics[i] + 1, i == 0 ? 0x04 : 0x02); /* the second hangs at IRQ 2 */
		rt_outb(pics[i] + 1, ICW4_8086);
		rt_outb(pics[i] + 1, 0xff);
	}
	rt_lapic_enable();
	rt_lapic_write(LAPIC_LVT_LINT0, LVT_MASKED);
	rt_lapic_write(LAPIC_LVT_TIMER, LVT_MASKED);
}

void rt_pic_unmask(uint32_t irq)
{
	rt_outb(PIC1 + 1, (uint8_t) ~(1u << irq));
	rt_lapic_write(LAPIC_LVT_LINT0, LVT_EXTINT);
}

void rt_pic_eoi(void)
{
	rt_outb(PIC1, PIC_EOI);
}

bool rt_ioapic_route(uint32_t pin, uint32_t vector, uint32_t apic_id)
{
	uint32_t version = ioapic_read(IOAPIC_VERSION);

	if (version == 0xffffffff || pin > ((version >> 16) & 0xff))
		return false;
	ioapic_write(IOAPIC_REDIRECT + 2 * pin, IOAPIC_MASKED);
	ioapic_write(IOAPIC_REDIRECT + 2 * pin + 1, apic_id << 24);
	ioapic_write(IOAPIC_REDIRECT + 2 * pin, vector);
	return true;
}

void rt_ioapic_mask(uint32_t pin)
{
	ioapic_write(IOAPIC_REDIRECT + 2 * pin, IOAPIC_MASKED);
}
