/* SPDX-License-Identifier: MIT */
/*
 * The register worker: known values in every vector, x87 and control register that the CPU has,
 * left there while the kernel switches contexts and the machine moves, then stored and compared
 * bit by bit; and a calculation in floating point whose result, to the last bit, is known.
 *
 * A register lives only in the machine's state, never in a memory page, so this is what checks
 * the XSAVE image.
 */
#include <stdlib.h>
#include <string.h>

#include "content.h"
#include "work.h"

#define VECTORS 32
#define VECTOR_BYTES 64
#define YIELDS 16 /* system calls with the registers loaded */
#define SPIN 2000 /* loop turns between them */

struct regs {
	unsigned char vector[VECTORS][VECTOR_BYTES];
	uint64_t mask[8];	  /* k0-k7 */
	unsigned char x87[8][16]; /* 80 bits each */
};

enum level {
	LEVEL_SSE,
	LEVEL_AVX,
	LEVEL_AVX512,
};

/*
 * MXCSR with rounding to zero, control word with rounding down and single precision: neither is
 * the default.
 */
static const uint32_t mxcsr_test = 0x1f80 | 0x6000;
static const uint16_t x87_test = 0x037f - 0x0300 + 0x0400;

/* The macros below are lists of assembly, one line an instruction. */
/* clang-format off */

/*
 * What happens between loading and storing: YIELDS times sched_yield (system call 24, which
 * clobbers rax, rcx and r11) and a spin. rbx counts the one, rcx the other.
 */
#define WAIT \
	"mov %[yields], %%ebx\n" \
	"1:\n" \
	"mov $24, %%eax\n" \
	"syscall\n" \
	"mov %[spin], %%ecx\n" \
	"2:\n" \
	"dec %%ecx\n" \
	"jnz 2b\n" \
	"dec %%ebx\n" \
	"jnz 1b\n"

/* M for each register number. r is the name of the operand with the address of a struct regs. */
#define X8(M, r) M(r, 0) M(r, 1) M(r, 2) M(r, 3) M(r, 4) M(r, 5) M(r, 6) M(r, 7)
#define X16(M, r) \
	X8(M, r) M(r, 8) M(r, 9) M(r, 10) M(r, 11) M(r, 12) M(r, 13) M(r, 14) M(r, 15)
#define X32(M, r) \
	X16(M, r) \
	M(r, 16) M(r, 17) M(r, 18) M(r, 19) M(r, 20) M(r, 21) M(r, 22) M(r, 23) \
	M(r, 24) M(r, 25) M(r, 26) M(r, 27) M(r, 28) M(r, 29) M(r, 30) M(r, 31)

#define LOAD_SSE(r, n) "movups " #n "*64(%[" #r "]), %%xmm" #n "\n"
#define STORE_SSE(r, n) "movups %%xmm" #n ", " #n "*64(%[" #r "])\n"
#define LOAD_AVX(r, n) "vmovups " #n "*64(%[" #r "]), %%ymm" #n "\n"
#define STORE_AVX(r, n) "vmovups %%ymm" #n ", " #n "*64(%[" #r "])\n"
#define LOAD_AVX512(r, n) "vmovups " #n "*64(%[" #r "]), %%zmm" #n "\n"
#define STORE_AVX512(r, n) "vmovups %%zmm" #n ", " #n "*64(%[" #r "])\n"
#define LOAD_K(r, n) "kmovw 2048+" #n "*8(%[" #r "]), %%k" #n "\n"
#define STORE_K(r, n) "kmovw %%k" #n ", 2048+" #n "*8(%[" #r "])\n"
/* The x87 registers are a stack: stored in the reverse order of loading. */
#define LOAD_X87(r, n) "fldt 2048+64+" #n "*16(%[" #r "])\n"
#define STORE_X87(r, n) "fstpt 2048+64+(7-" #n ")*16(%[" #r "])\n"

#define OPERANDS(in, out) \
	: : [in] "r"(in), [out] "r"(out), [yields] "i"(YIELDS), [spin] "i"(SPIN) \
	: "rax", "rbx", "rcx", "r11", "memory", "cc", \
	  "st", "st(1)", "st(2)", "st(3)", "st(4)", "st(5)", "st(6)", "st(7)", \
	  "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", \
	  "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"

_Static_assert(offsetof(struct regs, mask) == 2048 && offsetof(struct regs, x87) == 2048 + 64,
	       "the offsets in the assembly");

static void hold_sse(const struct regs *in, struct regs *out)
{
	__asm__ volatile(X8(LOAD_X87, in) X16(LOAD_SSE, in)
			 WAIT
			 X16(STORE_SSE, out) X8(STORE_X87, out)
			 OPERANDS(in, out));
}

static void hold_avx(const struct regs *in, struct regs *out)
{
	__asm__ volatile(X8(LOAD_X87, in) X16(LOAD_AVX, in)
			 WAIT
			 X16(STORE_AVX, out) "vzeroupper\n" X8(STORE_X87, out)
			 OPERANDS(in, out));
}

/*
 * zmm16-31 and the masks are unknown to a compiler that was not told of AVX-512, so nothing of
 * its own is in them.
 */
static void hold_avx512(const struct regs *in, struct regs *out)
{
	__asm__ volatile(X8(LOAD_X87, in) X32(LOAD_AVX512, in) X8(LOAD_K, in)
			 WAIT
			 X8(STORE_K, out) X32(STORE_AVX512, out) "vzeroupper\n" X8(STORE_X87, out)
			 OPERANDS(in, out));
}

/* clang-format on */

static enum level cpu_level(void)
{
	__builtin_cpu_init();
	if (__builtin_cpu_supports("avx512f"))
		return LEVEL_AVX512;
	return __builtin_cpu_supports("avx") ? LEVEL_AVX : LEVEL_SSE;
}

const char *regs_level(void)
{
	static const char *const names[] = {
		[LEVEL_SSE] = "sse", [LEVEL_AVX] = "avx", [LEVEL_AVX512] = "avx512"};

	return names[cpu_level()];
}

/* Pseudo-random values for every register the level has; zero for those it has not. */
static void regs_fill(struct regs *r, enum level level, uint64_t *rng)
{
	static const size_t bytes[] = {[LEVEL_SSE] = 16, [LEVEL_AVX] = 32, [LEVEL_AVX512] = 64};
	size_t vectors = level == LEVEL_AVX512 ? 32 : 16;

	memset(r, 0, sizeof(*r));
	for (size_t v = 0; v < vectors; v++) {
		for (size_t i = 0; i < bytes[level]; i += 8) {
			uint64_t x = rng_next(rng);

			memcpy(&r->vector[v][i], &x, sizeof(x));
		}
	}
	for (size_t k = 0; k < 8; k++) {
		/*
		 * kmovw holds 16 bits and stores 16; a normal, finite number of 80 bits loads and
		 * stores as it is.
		 */
		uint64_t mantissa = rng_next(rng) | UINT64_C(1) << 63;
		uint16_t exponent = (uint16_t)(0x3fff - 40 + rng_next(rng) % 80);

		if (level == LEVEL_AVX512)
			r->mask[k] = rng_next(rng) & 0xffff;
		memcpy(r->x87[k], &mantissa, sizeof(mantissa));
		memcpy(r->x87[k] + 8, &exponent, sizeof(exponent));
	}
}

/*
 * A chaotic series: a single wrong bit anywhere grows to a wrong result. volatile keeps it at run
 * time.
 */
static double series(void)
{
	volatile double x = 0.3, r = 3.99;

	for (int i = 0; i < 500; i++)
		x = r * x * (1.0 - x);
	return x;
}

static void regs_round(struct worker *w, enum level level, uint64_t *rng, double want)
{
	static struct regs in, out;
	uint32_t mxcsr_old, mxcsr_now;
	uint16_t x87_old, x87_now;
	double got = series();
	size_t at;

	regs_fill(&in, level, rng);
	memset(&out, 0, sizeof(out));
	__asm__ volatile("stmxcsr %0\n fnstcw %1" : "=m"(mxcsr_old), "=m"(x87_old));
	__asm__ volatile("ldmxcsr %0\n fldcw %1" : : "m"(mxcsr_test), "m"(x87_test));
	switch (level) {
	case LEVEL_SSE:
		hold_sse(&in, &out);
		break;
	case LEVEL_AVX:
		hold_avx(&in, &out);
		break;
	case LEVEL_AVX512:
		hold_avx512(&in, &out);
		break;
	}
	__asm__ volatile("stmxcsr %0\n fnstcw %1" : "=m"(mxcsr_now), "=m"(x87_now));
	__asm__ volatile("ldmxcsr %0\n fldcw %1" : : "m"(mxcsr_old), "m"(x87_old));

	if (worker_fault(w, FAULT_REGS))
		out.vector[5][9] ^= 0x40;
	if (memcmp(&in, &out, sizeof(in)) != 0) {
		for (at = 0; ((unsigned char *)&in)[at] == ((unsigned char *)&out)[at]; at++)
			;
		worker_error(w,
			     "registers came back different: byte %zu of the image (vectors of 64 "
			     "from 0, masks "
			     "from 2048, x87 from 2112)",
			     at);
	} else if (mxcsr_now != mxcsr_test || x87_now != x87_test) {
		worker_error(w, "mxcsr is 0x%x, was 0x%x; x87 control word is 0x%x, was 0x%x",
			     mxcsr_now, mxcsr_test, x87_now, x87_test);
	} else if (memcmp(&got, &want, sizeof(got)) != 0) {
		worker_error(w, "a calculation gave %.17g, must give %.17g", got, want);
	} else {
		add(&w->slot->regs, 1);
	}
}

static uint64_t no_pages(struct worker *w)
{
	(void)w;
	return 0;
}

void work_regs(struct worker *w)
{
	enum level level = cpu_level();
	uint64_t rng = mix(w->sh->seed + 61) | 1;
	double want = series();

	w->verify = no_pages;
	for (;;) {
		worker_turn(w);
		regs_round(w, level, &rng, want);
		worker_rest(w, w->opt->regs_us);
	}
}
