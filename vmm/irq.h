/* SPDX-License-Identifier: MIT */
/*
 * Interrupts: the in-kernel irqchip (PICs, IOAPIC, LAPICs) and PIT, and lines into it.
 *
 * Legacy lines are gsi 0 to 15 (ISA, active high edge but for the SCI), more gsis of the one
 * IOAPIC up to 23 are for virtio-mmio devices.
 */
#ifndef GODWIT_IRQ_H
#define GODWIT_IRQ_H

#include <stdbool.h>
#include <stdint.h>

#include "log.h"
#include "sbuf.h"

#define IRQ_COM1 4U
#define IRQ_RTC 8U
#define IRQ_SCI 9U
#define IRQ_GSI_MAX 23U

/* A line of one device; level as the device drives it. */
struct irq_line {
	int vm_fd;
	uint32_t gsi;
};

/* Drives the line. Edge-triggered inputs see the change from false to true. */
void irq_set(const struct irq_line *line, bool level);

/* Creates irqchip and PIT. Before any vCPU. -errno with the cause in err. */
int irqchip_init(int vm_fd, struct errmsg *err);

/*
 * Field lists of the in-kernel chips; they read or write the kernel's state with vCPUs stopped.
 * PICs and IOAPIC, and the PIT. Errors are latched in s. vm_fd is not used for who only looks.
 */
void irqchip_fields(int vm_fd, struct sbuf *s);
void pit_fields(int vm_fd, struct sbuf *s);

#endif
