/* SPDX-License-Identifier: MIT */
/* What the files of the runtime offer each other and entry.S; not for payloads. */
#ifndef GODWIT_BARE_PRIVATE_H
#define GODWIT_BARE_PRIVATE_H

#include "rt.h"

/* entry.S */
extern uint64_t rt_pdpt[512];
extern uint64_t rt_gdt[];
extern const char rt_trampoline[], rt_trampoline_end[];
extern const char rt_vectors[];
extern const char rt_image_end[];
void rt_enter_ring3(uint64_t stack, void (*fn)(struct rt_cpu *cpu), struct rt_cpu *cpu,
		    uint32_t by_sysexit, uint32_t rflags) __attribute__((noreturn));

/* rt_boot.c; called from entry.S */
void rt_boot(uint64_t start_info) __attribute__((noreturn));

/* rt_cpu.c: descriptor tables, vector state. All of it needs ring 0. */
void rt_cpu_init_tables(void);	      /* once, before the first rt_cpu_init */
void rt_cpu_init(struct rt_cpu *cpu); /* on each CPU */
void rt_cpu_identify(void);
void rt_cpu_enter(struct rt_cpu *cpu, void (*fn)(struct rt_cpu *cpu)) __attribute__((noreturn));
void rt_trap(struct rt_frame *frame);			  /* called from entry.S */
void rt_cpu_triple_fault(void) __attribute__((noreturn)); /* works in ring 3 too */

/* rt_smp.c */
extern uint64_t rt_ap_stack; /* read by entry.S */
extern struct rt_cpu *rt_ap_cpu;
void rt_ap_boot(struct rt_cpu *cpu) __attribute__((noreturn));
void rt_smp_read_madt(void);

/* rt_time.c */
void rt_time_probe(void); /* ring 0: ask CPUID and MSRs */
void rt_time_init(void);  /* command line, or else by measurement */

/* rt_irq.c */
void rt_irq_init(void);			       /* mask everything; before interrupts are on */
void rt_lapic_check(const struct rt_cpu *cpu); /* on that CPU, in ring 0: panics if ids disagree */

/* rt_mem.c */
void rt_mem_init(void); /* map what lies above 4 GiB, set up the allocator */

/* rt_console.c */
void rt_console_init(void);
void rt_console_steal(void); /* a panic prints whoever holds the lock */

#endif
