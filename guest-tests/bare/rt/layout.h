/* SPDX-License-Identifier: MIT */
/* Numbers that the assembler, the linker script's reader and the C code of the runtime share. */
#ifndef GODWIT_BARE_LAYOUT_H
#define GODWIT_BARE_LAYOUT_H

#define RT_MAX_CPUS 64

#define RT_STACK_SIZE 16384  /* bytes, one for each CPU and ring */
#define RT_TRAMPOLINE 0x8000 /* where application processors start; below 1 MiB */
#define RT_VECTOR_STRIDE 16  /* bytes between two interrupt stubs */

/*
 * Selectors.  SYSEXIT takes its two from SYSENTER_CS: code at +32, stack at +40; so the order
 * from SEL_KCODE on is fixed.
 */
#define SEL_CODE32 0x08
#define SEL_KCODE 0x10
#define SEL_KDATA 0x18
#define SEL_UCODE 0x30
#define SEL_UDATA 0x38
#define SEL_TSS 0x40

#endif
