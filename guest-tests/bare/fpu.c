/* SPDX-License-Identifier: MIT */
/*
 * fpu: keeps known values in all floating-point and vector registers and checks that they stay.
 *
 * In rounds of a millisecond each CPU loads x87, SSE, AVX and AVX-512 registers, as far as the
 * machine has them, with values that no earlier round had, spins, and compares what is there now.
 * Nearly all of the time the registers are live, so whatever saves and restores a CPU does so in
 * the middle of a round.
 */

#include "contract.h"
#include "rt/rt.h"

#define ROUND_US 1000
#define POLL_US 5000
#define X87_REGS 8
#define MASK_REGS 8
#define VECTOR_REGS 32
#define X87_BYTES 10

/* fpu_hold.S knows this layout. */
struct fpu_image {
	uint64_t x87[X87_REGS][2]; /* 10 bytes of each count */
	uint32_t mxcsr;
	uint16_t control;
	uint16_t status;
	uint64_t pad[7];
	uint64_t masks[MASK_REGS];
	uint64_t vectors[VECTOR_REGS][8];
};

_Static_assert(offsetof(struct fpu_image, mxcsr) == 128, "fpu_hold.S");
_Static_assert(offsetof(struct fpu_image, masks) == 192, "fpu_hold.S");
_Static_assert(offsetof(struct fpu_image, vectors) == 256, "fpu_hold.S");

void fpu_hold_sse(const struct fpu_image *in, struct fpu_image *out, uint64_t cycles);
void fpu_hold_avx(const struct fpu_image *in, struct fpu_image *out, uint64_t cycles);
void fpu_hold_avx512(const struct fpu_image *in, struct fpu_image *out, uint64_t cycles);

enum level { LEVEL_SSE, LEVEL_AVX, LEVEL_AVX512 };

static const struct {
	void (*hold)(const struct fpu_image *in, struct fpu_image *out, uint64_t cycles);
	uint32_t registers, bytes;
} levels[] = {
	[LEVEL_SSE] = {fpu_hold_sse, 16, 16},
	[LEVEL_AVX] = {fpu_hold_avx, 16, 32},
	[LEVEL_AVX512] = {fpu_hold_avx512, 32, 64},
};

static struct {
	enum level level;
	uint64_t round; /* cycles */
	uint32_t cpus;
	uint32_t printed; /* atomic */
	struct {
		uint64_t checks, errors; /* atomic */
		struct fpu_image in, out;
	} __attribute__((aligned(64))) cpu[RT_MAX_CPUS];
} fpu;

static uint64_t next_random(uint64_t *state)
{
	uint64_t x = *state += 0x9e3779b97f4a7c15;

	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
	x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
	return x ^ (x >> 31);
}

static void make_image(struct fpu_image *image, uint64_t *state)
{
	uint32_t modes = (uint32_t)next_random(state);

	for (uint32_t i = 0; i < X87_REGS; i++) {
		/* A finite number in normal form, so that no load can raise anything. */
		image->x87[i][0] = next_random(state) | (1ul << 63);
		image->x87[i][1] = 0x3fff - 100 + next_random(state) % 200;
		if (next_random(state) & 1)
			image->x87[i][1] |= 0x8000;
	}
	/* All exceptions masked; rounding, precision, flush-to-zero and the sticky flags vary. */
	image->mxcsr = 0x1f80 | (modes & 0xe03f);
	image->control = (uint16_t)(0x027f | ((modes >> 16) & 0xd00));
	image->status = 0; /* eight loads wrap the stack top back to 0 */
	for (uint32_t i = 0; i < MASK_REGS; i++)
		image->masks[i] = next_random(state) & 0xffff;
	for (uint32_t i = 0; i < VECTOR_REGS; i++)
		for (uint32_t j = 0; j < 8; j++)
			image->vectors[i][j] = next_random(state);
}

static void fault(uint32_t cpu, const char *what, uint32_t n, uint64_t want, uint64_t got)
{
	__atomic_fetch_add(&fpu.cpu[cpu].errors, 1, __ATOMIC_RELAXED);
	if (__atomic_fetch_add(&fpu.printed, 1, __ATOMIC_RELAXED) < BARE_MAX_ERRORS)
		rt_printf(BARE_FPU_ERROR "cpu=%u reg=%s%u want=0x%lx got=0x%lx\n", cpu, what, n,
			  want, got);
}

static void compare(uint32_t cpu, const char *what, uint32_t n, const void *want, const void *got,
		    size_t len)
{
	if (memcmp(want, got, len) != 0) {
		uint64_t w = 0, g = 0;
		size_t at = 0;

		while (memcmp((const char *)want + at, (const char *)got + at, 1) == 0)
			at++;
		at &= ~7ul;
		memcpy(&w, (const char *)want + at, len - at < 8 ? len - at : 8);
		memcpy(&g, (const char *)got + at, len - at < 8 ? len - at : 8);
		fault(cpu, what, n, w, g);
	}
}

static void one_round(uint32_t cpu, uint64_t *state)
{
	struct fpu_image *in = &fpu.cpu[cpu].in, *out = &fpu.cpu[cpu].out;
	uint32_t i;

	make_image(in, state);
	memset(out, 0xee, sizeof(*out));
	levels[fpu.level].hold(in, out, fpu.round);
	for (i = 0; i < X87_REGS; i++)
		compare(cpu, "st", i, in->x87[i], out->x87[i], X87_BYTES);
	if (in->mxcsr != out->mxcsr)
		fault(cpu, "mxcsr", 0, in->mxcsr, out->mxcsr);
	if (in->control != out->control)
		fault(cpu, "fcw", 0, in->control, out->control);
	if (in->status != out->status)
		fault(cpu, "fsw", 0, in->status, out->status);
	for (i = 0; i < levels[fpu.level].registers; i++)
		compare(cpu, "vec", i, in->vectors[i], out->vectors[i], levels[fpu.level].bytes);
	if (fpu.level == LEVEL_AVX512)
		for (i = 0; i < MASK_REGS; i++)
			compare(cpu, "k", i, &in->masks[i], &out->masks[i], 2);
	__atomic_fetch_add(&fpu.cpu[cpu].checks, 1, __ATOMIC_RELAXED);
}

static void run_other(struct rt_cpu *cpu)
{
	uint64_t state = rt_tsc() + cpu->index;

	for (;;)
		one_round(cpu->index, &state);
}

static void report(const char *fmt)
{
	uint64_t checks = 0, errors = 0;

	for (uint32_t c = 0; c < fpu.cpus; c++) {
		checks += __atomic_load_n(&fpu.cpu[c].checks, __ATOMIC_RELAXED);
		errors += __atomic_load_n(&fpu.cpu[c].errors, __ATOMIC_RELAXED);
	}
	rt_printf(fmt, checks, errors);
}

static void setup(void)
{
	static const char *const words[] = {"sse", "avx", "avx512", NULL};
	enum level best = rt.cpuid.avx512 ? LEVEL_AVX512 : rt.cpuid.avx ? LEVEL_AVX : LEVEL_SSE;
	uint64_t cpus = rt_option("cpus", 1);

	fpu.level = (enum level)rt_option_word("vectors", words, best);
	if (fpu.level > best)
		rt_panic("vectors= asks for more than the machine has");
	if (cpus == 0 || cpus > rt.nr_cpus)
		rt_panic("cpus= is more than the machine has");
	fpu.cpus = (uint32_t)cpus;
	fpu.round = rt_us_to_cycles(ROUND_US);
	for (uint32_t c = 1; c < fpu.cpus; c++)
		rt_cpu_start(c, run_other, NULL);
	rt_printf(BARE_FPU_READY_FMT "\n", 1ul, 1ul, (uint64_t)(fpu.level >= LEVEL_AVX),
		  (uint64_t)(fpu.level >= LEVEL_AVX512), (uint64_t)rt.ring, cpus);
}

static void run(void)
{
	uint64_t report_every = rt_us_to_cycles(rt_option("report", 1) * 1000000);
	uint64_t run_for = rt_us_to_cycles(rt_option("secs", 0) * 1000000);
	uint64_t poll_every = rt_us_to_cycles(POLL_US);
	uint64_t state = rt_option("seed", 1), start, last_poll, last_report;

	setup();
	start = last_poll = last_report = rt_tsc();
	for (;;) {
		uint64_t now = rt_tsc();
		int c = -1;

		if (now - last_poll >= poll_every) {
			c = rt_getc();
			last_poll = now;
		}
		if (c == BARE_CMD_QUIT || (run_for && now - start >= run_for))
			break;
		if (c == BARE_CMD_REPORT || c == BARE_CMD_VERIFY ||
		    (report_every && now - last_report >= report_every)) {
			report(BARE_FPU_REPORT_FMT "\n");
			last_report = now;
		}
		one_round(0, &state);
	}
	report(BARE_FPU_DONE_FMT "\n");
}

const struct rt_payload rt_payload = {.name = "fpu", .main = run, .vectors = true};
