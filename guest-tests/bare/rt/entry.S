/* SPDX-License-Identifier: MIT */
/*
 * Entry points of a bare payload: PVH start, application-processor start, interrupt stubs and the
 * drop to ring 3.
 *
 * A PVH loader jumps to pvh_entry in 32-bit protected mode, paging off, interrupts off, EBX
 * holding the physical address of struct hvm_start_info.  The page tables for the first 4 GiB are
 * laid out by the assembler, so that a host that emulates ring 0 executes a few dozen
 * instructions between here and C.  Every page is user-accessible: the payload may move to ring 3
 * and keep using the same addresses.
 */

#include "layout.h"

#define CR0_PE		0x00000001
#define CR0_PG		0x80000000
#define CR4_PAE		0x00000020
#define MSR_EFER	0xc0000080
#define EFER_LME	0x00000100

#define PTE_TABLE	0x007		/* present, writable, user */
#define PTE_RAM		0x087		/* the same, 2 MiB page */
#define PTE_MMIO	0x09f		/* the same, cache disabled and write-through */

/* --- The ELF note by which a PVH loader finds the entry. --- */

	.section .note.Xen, "a", @note
	.balign	4
	.long	4			/* name size */
	.long	4			/* descriptor size */
	.long	18			/* XEN_ELFNOTE_PHYS32_ENTRY */
	.asciz	"Xen"
	.long	pvh_entry

/* --- Page tables: identity map of the first 4 GiB.  rt_mem.c adds what lies above. --- */

	.section .data.page_tables, "aw"
	.balign	4096
	.globl	rt_pml4
rt_pml4:
	.quad	rt_pdpt + PTE_TABLE
	.fill	511, 8, 0
	.globl	rt_pdpt
rt_pdpt:
	.quad	rt_pd + 0x0000 + PTE_TABLE
	.quad	rt_pd + 0x1000 + PTE_TABLE
	.quad	rt_pd + 0x2000 + PTE_TABLE
	.quad	rt_pd + 0x3000 + PTE_TABLE
	.fill	508, 8, 0
rt_pd:
	/* RAM, as far as the IOAPIC's 2 MiB; from there on devices. */
	.set	addr, 0
	.rept	0xfec00000 / 0x200000
	.quad	addr + PTE_RAM
	.set	addr, addr + 0x200000
	.endr
	.rept	(0x100000000 - 0xfec00000) / 0x200000
	.quad	addr + PTE_MMIO
	.set	addr, addr + 0x200000
	.endr

/* --- Descriptors. --- */

	.section .data.gdt, "aw"
	.balign	16
	.globl	rt_gdt
rt_gdt:
	.quad	0
	.quad	0x00cf9b000000ffff	/* SEL_CODE32 */
	.quad	0x00af9b000000ffff	/* SEL_KCODE */
	.quad	0x00cf93000000ffff	/* SEL_KDATA */
	.quad	0x00cffb000000ffff	/* user code 32, only a place in SYSEXIT's order */
	.quad	0x00cff3000000ffff	/* user data 32, likewise */
	.quad	0x00affb000000ffff	/* SEL_UCODE */
	.quad	0x00cff3000000ffff	/* SEL_UDATA */
	.fill	2 * RT_MAX_CPUS, 8, 0	/* SEL_TSS: one 16-byte descriptor for each CPU */
rt_gdt_end:
	.globl	rt_gdt_ptr
rt_gdt_ptr:
	.word	rt_gdt_end - rt_gdt - 1
	.quad	rt_gdt

	.section .bss
	.balign	16
boot_stack:
	.skip	RT_STACK_SIZE
boot_stack_top:

/* --- The boot processor. --- */

	.text
	.code32
	.globl	pvh_entry
pvh_entry:
	cld
	movl	$boot_stack_top, %esp
	lgdt	rt_gdt_ptr
	call	enable_long_mode
	ljmp	$SEL_KCODE, $boot64

/* Turn on PAE, long mode and paging; still in a 32-bit segment when it returns. EBX is kept. */
enable_long_mode:
	movl	%cr4, %eax
	orl	$CR4_PAE, %eax
	movl	%eax, %cr4
	movl	$rt_pml4, %eax
	movl	%eax, %cr3
	movl	$MSR_EFER, %ecx
	rdmsr
	orl	$EFER_LME, %eax
	wrmsr
	movl	%cr0, %eax
	orl	$(CR0_PG | CR0_PE), %eax
	movl	%eax, %cr0
	ret

	.code64
boot64:
	call	load_data_segments
	movl	%ebx, %edi
	movl	$boot_stack_top, %esp
	xorl	%ebp, %ebp
	call	rt_boot
	ud2

load_data_segments:
	movl	$SEL_KDATA, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	xorl	%eax, %eax
	movl	%eax, %fs
	movl	%eax, %gs
	ret

/*
 * --- Application processors. ---
 *
 * Copied to RT_TRAMPOLINE; CS:IP is RT_TRAMPOLINE >> 4 : 0 in real mode.  One processor at a time
 * goes through: rt_ap_stack and rt_ap_cpu are its own.
 */
	.code16
	.globl	rt_trampoline, rt_trampoline_end
rt_trampoline:
	cli
	cld
	movw	%cs, %ax
	movw	%ax, %ds
	lgdtl	trampoline_gdt_ptr - rt_trampoline
	movl	%cr0, %eax
	orl	$CR0_PE, %eax
	movl	%eax, %cr0
	ljmpl	$SEL_CODE32, $ap32
trampoline_gdt_ptr:
	.word	rt_gdt_end - rt_gdt - 1
	.long	rt_gdt
rt_trampoline_end:

	.code32
ap32:
	movl	$SEL_KDATA, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	movl	rt_ap_stack, %esp
	lgdt	rt_gdt_ptr
	call	enable_long_mode
	ljmp	$SEL_KCODE, $ap64

	.code64
ap64:
	call	load_data_segments
	movq	rt_ap_stack(%rip), %rsp
	movq	rt_ap_cpu(%rip), %rdi
	xorl	%ebp, %ebp
	call	rt_ap_boot
	ud2

/*
 * --- Leaving ring 0 for good: rt_enter_ring3(stack, fn, arg, by_sysexit, rflags). ---
 *
 * SYSEXIT keeps the flags POPF has set.  That matters on hosts that emulate ring 0: there an IOPL
 * given to IRETQ is lost, and with it port I/O.  Processors that have no 64-bit SYSEXIT (AMD) get
 * IRETQ.
 */
	.globl	rt_enter_ring3
rt_enter_ring3:
	leaq	-8(%rdi), %r11
	leaq	park(%rip), %rax	/* where fn returns to */
	movq	%rax, (%r11)
	movq	%rsi, %r10		/* fn */
	movq	%rdx, %rdi		/* arg */
	testl	%ecx, %ecx
	jz	1f
	movq	%r11, %rcx
	movq	%r10, %rdx
	pushq	%r8
	popfq
	sysexitq
1:	pushq	$(SEL_UDATA | 3)
	pushq	%r11
	pushq	%r8
	pushq	$(SEL_UCODE | 3)
	pushq	%r10
	iretq
park:	pause				/* HLT is for ring 0 */
	jmp	park

/*
 * --- Interrupts and exceptions. ---
 *
 * rt_vectors: 256 stubs, RT_VECTOR_STRIDE apart, each of which leaves on the stack what struct
 * rt_frame says.
 */
	.balign	16
	.globl	rt_vectors
rt_vectors:
	.set	vector, 0
	.rept	256
	.balign	RT_VECTOR_STRIDE
	.if	(vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || \
		(vector == 21) || (vector == 29) || (vector == 30)
	.else
	pushq	$0
	.endif
	pushq	$vector
	jmp	common_vector
	.set	vector, vector + 1
	.endr

common_vector:
	cld
	pushq	%rax
	pushq	%rcx
	pushq	%rdx
	pushq	%rbx
	pushq	%rbp
	pushq	%rsi
	pushq	%rdi
	pushq	%r8
	pushq	%r9
	pushq	%r10
	pushq	%r11
	pushq	%r12
	pushq	%r13
	pushq	%r14
	pushq	%r15
	movq	%rsp, %rdi
	movq	%rsp, %rbp
	andq	$-16, %rsp
	call	rt_trap
	movq	%rbp, %rsp
	popq	%r15
	popq	%r14
	popq	%r13
	popq	%r12
	popq	%r11
	popq	%r10
	popq	%r9
	popq	%r8
	popq	%rdi
	popq	%rsi
	popq	%rbp
	popq	%rbx
	popq	%rdx
	popq	%rcx
	popq	%rax
	addq	$16, %rsp
	iretq

	.section .note.GNU-stack, "", @progbits
