/* SPDX-License-Identifier: MIT */
/*
 * void fpu_hold_sse(const struct fpu_image *in, struct fpu_image *out, uint64_t cycles)
 * and the same for avx and avx512.
 *
 * Load every floating-point and vector register from *in, spin for that many TSC cycles touching
 * none of them, then store them all to *out. The layout of the image is that of struct fpu_image
 * in fpu.c.
 */

#define X87		0	/* 8 registers, 16 bytes apart, 10 bytes each */
#define MXCSR		128
#define CONTROL		132
#define STATUS		134
#define MASKS		192	/* k0 to k7 */
#define VECTORS		256	/* 64 bytes for each register */

	.text

	.macro load_x87
	fninit
	fldcw	CONTROL(%rdi)
	.irp	n, 7, 6, 5, 4, 3, 2, 1, 0
	fldt	X87 + 16 * \n(%rdi)
	.endr
	ldmxcsr	MXCSR(%rdi)
	.endm

	.macro store_x87
	fnstsw	STATUS(%rsi)
	fnstcw	CONTROL(%rsi)
	.irp	n, 0, 1, 2, 3, 4, 5, 6, 7
	fstpt	X87 + 16 * \n(%rsi)
	.endr
	stmxcsr	MXCSR(%rsi)
	/* What C code would find, had it used any of this. */
	fninit
	.endm

	.macro spin
	movq	%rdx, %r8
	rdtsc
	shlq	$32, %rdx
	orq	%rdx, %rax
	addq	%rax, %r8
1:	rdtsc
	shlq	$32, %rdx
	orq	%rdx, %rax
	cmpq	%r8, %rax
	jb	1b
	.endm

	.globl	fpu_hold_sse
fpu_hold_sse:
	load_x87
	.irp	n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
	movups	VECTORS + 64 * \n(%rdi), %xmm\n
	.endr
	spin
	.irp	n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
	movups	%xmm\n, VECTORS + 64 * \n(%rsi)
	.endr
	store_x87
	ret

	.globl	fpu_hold_avx
fpu_hold_avx:
	load_x87
	.irp	n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
	vmovups	VECTORS + 64 * \n(%rdi), %ymm\n
	.endr
	spin
	.irp	n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
	vmovups	%ymm\n, VECTORS + 64 * \n(%rsi)
	.endr
	store_x87
	vzeroupper
	ret

	.globl	fpu_hold_avx512
fpu_hold_avx512:
	load_x87
	.irp	n, 0, 1, 2, 3, 4, 5, 6, 7
	kmovw	MASKS + 8 * \n(%rdi), %k\n
	.endr
	.irp	n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, \
		16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
	vmovups	VECTORS + 64 * \n(%rdi), %zmm\n
	.endr
	spin
	.irp	n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, \
		16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
	vmovups	%zmm\n, VECTORS + 64 * \n(%rsi)
	.endr
	.irp	n, 0, 1, 2, 3, 4, 5, 6, 7
	kmovw	%k\n, MASKS + 8 * \n(%rsi)
	.endr
	store_x87
	vzeroupper
	ret

	.section .note.GNU-stack, "", @progbits
