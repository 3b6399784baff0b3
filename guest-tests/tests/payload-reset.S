/* SPDX-License-Identifier: MIT */
/*
 * reset: says that it is there, waits for a byte, and ends the machine as that byte says. See
 * payload-contract.h. It stays in the 32-bit protected mode that PVH starts in, without a stack.
 */
#define COM1		0x3f8
#define COM1_LSR	0x3fd
#define LSR_DATA	0x01
#define LSR_THRE	0x20
#define PM1A_CONTROL	0x604
#define PM1A_SLEEP	0x2000

	.section .note.Xen, "a", @note
	.balign	4
	.long	4			/* name size */
	.long	4			/* descriptor size */
	.long	18			/* XEN_ELFNOTE_PHYS32_ENTRY */
	.asciz	"Xen"
	.long	pvh_entry

	.text
	.code32
	.globl	pvh_entry
pvh_entry:
	cld
	movl	$text, %esi
1:	movw	$COM1_LSR, %dx
	inb	%dx, %al
	testb	$LSR_THRE, %al
	jz	1b
	lodsb
	testb	%al, %al
	jz	wait
	movw	$COM1, %dx
	outb	%al, %dx
	jmp	1b

wait:	pause
	movw	$COM1_LSR, %dx
	inb	%dx, %al
	testb	$LSR_DATA, %al
	jz	wait
	movw	$COM1, %dx
	inb	%dx, %al
	cmpb	$'t', %al
	je	triple_fault
	cmpb	$'k', %al
	je	keyboard
	cmpb	$'c', %al
	je	reset_control
	cmpb	$'q', %al
	jne	wait
	movw	$PM1A_CONTROL, %dx
	movw	$PM1A_SLEEP, %ax
	outw	%ax, %dx
	jmp	wait

	/* With no interrupt table an exception cannot be delivered, nor the one about that. */
triple_fault:
	lidt	no_idt
	ud2

keyboard:
	movb	$0xfe, %al
	outb	%al, $0x64
	jmp	wait

reset_control:
	movw	$0xcf9, %dx
	movb	$0x06, %al
	outb	%al, %dx
	jmp	wait

	.section .rodata, "a"
text:	.asciz	"reset ready\n"
no_idt:	.word	0
	.long	0

	.section .note.GNU-stack, "", @progbits
