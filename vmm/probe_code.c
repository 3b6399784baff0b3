/* SPDX-License-Identifier: MIT */
/*
 * Theory of operation: the blob lies in .rodata of this program and is copied into the probe's
 * guest. All of it is position independent. Registers on entry are as probe_guest.h says: rdi the
 * zeroed data area, rsi the top of the ring-3 stack, rcx an argument, the rest zero.
 */
#include "probe_code.h"

#define STR1(x) #x
#define STR(x) STR1(x)

/* clang-format off */
__asm__(
	".pushsection .rodata\n"
	".balign 16\n"

	".macro probe_label name\n"
	"	.globl \\name\n"
	"	\\name:\n"
	".endm\n"
	".macro probe_done\n"
	"	mov %al, " STR(PROBE_DONE) "\n"
	".endm\n"
	/* AL = PASS if the flags say equal, then the end. */
	".macro probe_pass_if_equal\n"
	"	mov $0, %eax\n"
	"	jne 9f\n"
	"	mov $" STR(PROBE_PASS) ", %al\n"
	"9:	probe_done\n"
	".endm\n"

	"probe_label probe_code\n"

	/* Exceptions nobody expects: the vector is what there is to say. */
	"probe_label probe_code_stubs\n"
	".set probe_vector, 0\n"
	".rept 32\n"
	"	.balign " STR(PROBE_STUB_SIZE) "\n"
	"	push $probe_vector\n"
	"	jmp probe_unexpected\n"
	"	.set probe_vector, probe_vector + 1\n"
	".endr\n"
	"probe_unexpected:\n"
	"	pop %rax\n"
	"	mov %al, " STR(PROBE_FAULT) "\n"
	"	hlt\n"

	"probe_label probe_on_trap\n"
	"	mov $" STR(PROBE_PASS) ", %al\n"
	"	iretq\n"

	"probe_label probe_on_fault2\n"
	"	addq $2, (%rsp)\n"
	"	mov $" STR(PROBE_PASS) ", %al\n"
	"	iretq\n"

	"probe_label probe_on_page_fault\n"
	"	add $8, %rsp\n"			/* the error code */
	"	addq $2, (%rsp)\n"
	"	mov %cr2, %rbx\n"
	"	cmp %rbx, %rdx\n"
	"	jne 1f\n"
	"	mov $" STR(PROBE_PASS) ", %al\n"
	"1:	iretq\n"

	"probe_label probe_on_user_trap\n"
	"	testb $3, 8(%rsp)\n"		/* CS it came from: ring 3 */
	"	jz 1f\n"
	"	mov $" STR(PROBE_PASS) ", %al\n"
	"1:	probe_done\n"

	"probe_label probe_code_loop\n"
	"1:	dec %rcx\n"
	"	jnz 1b\n"
	"	mov $" STR(PROBE_PASS) ", %al\n"
	"	probe_done\n"

	"probe_label probe_code_store\n"
	"	movb $1, (%rcx)\n"
	"	mov $" STR(PROBE_PASS) ", %al\n"
	"	probe_done\n"

	"probe_label probe_code_int3\n"
	"	int3\n"
	"	probe_done\n"

	"probe_label probe_code_intn\n"
	"	int $0x40\n"
	"	probe_done\n"

	"probe_label probe_code_ud2\n"
	"	ud2\n"
	"	probe_done\n"

	"probe_label probe_code_page_fault\n"
	"	mov $0x40000000, %edx\n"
	"	mov (%rdx), %bl\n"		/* two bytes: the handler skips them */
	"	probe_done\n"

	/* To ring 3 by iretq and back by an interrupt, through the TSS's stack. */
	"probe_label probe_code_user_int\n"
	"	lea 1f(%rip), %rbx\n"
	"	call probe_to_user\n"
	"1:	int $0x40\n"

	/* To ring 3 by iretq and back by syscall. */
	"probe_label probe_code_syscall\n"
	"	mov $0xc0000081, %ecx\n"	/* STAR: user base 0x18, kernel CS 0x08 */
	"	mov $0x00180008, %edx\n"
	"	xor %eax, %eax\n"
	"	wrmsr\n"
	"	lea 2f(%rip), %rax\n"		/* LSTAR */
	"	mov %rax, %rdx\n"
	"	shr $32, %rdx\n"
	"	mov $0xc0000082, %ecx\n"
	"	wrmsr\n"
	"	lea 1f(%rip), %rbx\n"
	"	call probe_to_user\n"
	"1:	syscall\n"
	"2:	mov %cs, %ecx\n"
	"	cmp $0x08, %ecx\n"
	"	probe_pass_if_equal\n"

	"probe_to_user:\n"			/* rbx: where to */
	"	push $" STR(PROBE_SELECTOR_USER_DATA) "\n"
	"	push %rsi\n"
	"	push $2\n"
	"	push $" STR(PROBE_SELECTOR_USER_CODE) "\n"
	"	push %rbx\n"
	"	xor %eax, %eax\n"
	"	iretq\n"

	"probe_label probe_code_popcnt\n"
	"	mov $0xf0f, %ebx\n"
	"	popcnt %ebx, %ecx\n"
	"	cmp $8, %ecx\n"
	"	probe_pass_if_equal\n"

	"probe_label probe_code_cmpxchg16b\n"
	"	xor %edx, %edx\n"
	"	mov $1, %ebx\n"
	"	mov $2, %ecx\n"
	"	lock cmpxchg16b (%rdi)\n"
	"	jne 1f\n"
	"	cmpq $2, 8(%rdi)\n"
	"1:	probe_pass_if_equal\n"

	"probe_label probe_code_xgetbv\n"
	"	xor %ecx, %ecx\n"
	"	xgetbv\n"
	"	and $1, %eax\n"
	"	cmp $1, %eax\n"
	"	probe_pass_if_equal\n"

	"probe_label probe_code_xsave\n"
	"	fninit\n"
	"	fld1\n"
	"	mov $1, %eax\n"
	"	xor %edx, %edx\n"
	"	xsave (%rdi)\n"
	"	fninit\n"
	"	xrstor (%rdi)\n"
	"	fstps 2048(%rdi)\n"
	"	cmpl $0x3f800000, 2048(%rdi)\n"
	"	probe_pass_if_equal\n"

	"probe_label probe_code_x87\n"
	"	fninit\n"
	"	fld1\n"
	"	fstps (%rdi)\n"
	"	cmpl $0x3f800000, (%rdi)\n"
	"	probe_pass_if_equal\n"

	"probe_label probe_code_sse2\n"
	"	pcmpeqd %xmm0, %xmm0\n"
	"	movmskps %xmm0, %ecx\n"
	"	cmp $0xf, %ecx\n"
	"	probe_pass_if_equal\n"

	"probe_label probe_code_bmi\n"
	"	mov $0xf0, %ebx\n"
	"	mov $0xff, %ecx\n"
	"	andn %ecx, %ebx, %edx\n"
	"	cmp $0x0f, %edx\n"
	"	probe_pass_if_equal\n"

	"probe_label probe_code_swapgs\n"
	"	movb $" STR(PROBE_PASS) ", (%rdi)\n"
	"	mov %edi, %eax\n"
	"	xor %edx, %edx\n"
	"	mov $0xc0000102, %ecx\n"	/* KERNEL_GS_BASE */
	"	wrmsr\n"
	"	swapgs\n"
	"	mov %gs:0, %al\n"
	"	probe_done\n"

	"probe_label probe_code_cr3\n"
	"	mov %cr3, %rbx\n"
	"	mov %rbx, %cr3\n"
	"	invlpg (%rdi)\n"
	"	mov %cr3, %rcx\n"
	"	cmp %rbx, %rcx\n"
	"	probe_pass_if_equal\n"

	/* An unknown hypercall: any answer will do, as long as there is one. */
	"probe_label probe_code_vmcall\n"
	"	mov $-1, %rax\n"
	"	vmcall\n"
	"	mov $" STR(PROBE_PASS) ", %al\n"
	"	probe_done\n"

	"probe_label probe_code_vmmcall\n"
	"	mov $-1, %rax\n"
	"	vmmcall\n"
	"	mov $" STR(PROBE_PASS) ", %al\n"
	"	probe_done\n"

	"probe_label probe_code_end\n"
	".popsection\n"
);
/* clang-format on */
