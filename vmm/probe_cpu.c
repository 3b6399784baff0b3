/* SPDX-License-Identifier: MIT */
/*
 * Theory of operation: some KVMs run only ring 3 on the processor and interpret ring 0, some
 * hundred times slower and with holes. A name or a flag does not tell; a guest that tries does.
 * Speed is judged by CPU time per instruction, the best of a few runs, so that a busy host does not
 * look like an emulated one: native code takes some nanoseconds even under software emulation of
 * the whole host, interpreted code takes hundreds.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "probe_code.h"
#include "probe_parts.h"

#define NATIVE_MAX_NS 50.0 /* per instruction */
#define LOOP_INSTRUCTIONS 2U
#define LOOP_SHORT 4000U
#define LOOP_LONG 200000U
#define SPEED_RUNS 5

/* CPUID leaf 0, EBX */
#define VENDOR_AMD 0x68747541U	 /* "Auth" */
#define VENDOR_HYGON 0x6f677948U /* "Hygo" */

#define REMEDY_HOST                                                                                \
	"use a host whose KVM runs guest kernels by VMX or SVM (nested will do), or "              \
	"scripts/emulated-host of godwit's sources"

/* The shared guest, or NULL with the reason in item. */
static struct probe_guest *get_guest(struct probe_ctx *ctx, struct probe_item *item)
{
	int ret;

	if (ctx->has_guest && ctx->guest.end != GUEST_DONE) {
		probe_guest_destroy(&ctx->guest);
		ctx->has_guest = false;
	}
	if (ctx->has_guest)
		return &ctx->guest;
	ret = probe_guest_init(&ctx->guest, ctx->kvm_fd, NULL);
	if (ret) {
		probe_not(item, PROBE_MISSING, "see the kernel's log for what KVM says",
			  "cannot make a VM: %s", strerror(-ret));
		return NULL;
	}
	ctx->has_guest = true;
	return &ctx->guest;
}

/* Runs e; a run that hangs gets a second chance, for a host may have been busy. */
static bool passes(struct probe_ctx *ctx, struct probe_item *item, const struct probe_entry *e)
{
	for (int attempt = 0; attempt < 2; attempt++) {
		struct probe_guest *g = get_guest(ctx, item);

		if (!g)
			return false;
		if (probe_guest_run(g, e) != GUEST_HANG)
			return g->end == GUEST_DONE && g->value == PROBE_PASS;
	}
	return false;
}

/* As passes(), and fills the item; what the code is called is `what`. */
static void try_one(struct probe_ctx *ctx, struct probe_item *item, const struct probe_entry *e,
		    const char *what)
{
	char how[80];

	if (passes(ctx, item, e))
		probe_ok(item, "%s works", what);
	else if (ctx->has_guest)
		probe_not(item, PROBE_MISSING, REMEDY_HOST, "%s %s", what,
			  probe_guest_describe(&ctx->guest, how, sizeof(how)));
}

static double per_instruction(uint64_t time, uint64_t base, uint64_t n)
{
	return (double)(time - MIN(base, time)) / (double)(LOOP_INSTRUCTIONS * n);
}

/* Lowers *best to the CPU time of one loop of n turns. False when it does not run. */
static bool time_loop(struct probe_ctx *ctx, struct probe_item *item, bool user, uint64_t n,
		      uint64_t *best)
{
	const struct probe_entry e = {.code = probe_code_loop, .user = user, .rcx = n};
	uint64_t start = thread_cpu_ns();

	if (!passes(ctx, item, &e))
		return false;
	*best = MIN(*best, thread_cpu_ns() - start);
	return true;
}

/*
 * Nanoseconds per instruction, less what entry and exit cost. A loop that is short enough for
 * interpreted code is run until it has been fast once; then a longer one gives the figure.
 */
static bool measure(struct probe_ctx *ctx, struct probe_item *item, bool user, double *ns)
{
	uint64_t base = UINT64_MAX, quick = UINT64_MAX, full = UINT64_MAX;
	bool native = false;

	for (int i = 0; i < SPEED_RUNS; i++)
		if (!time_loop(ctx, item, user, 1, &base))
			return false;
	for (int i = 0; i < SPEED_RUNS && !native; i++) {
		if (!time_loop(ctx, item, user, LOOP_SHORT, &quick))
			return false;
		*ns = per_instruction(quick, base, LOOP_SHORT);
		native = *ns <= NATIVE_MAX_NS;
	}
	for (int i = 0; i < SPEED_RUNS && native; i++) {
		if (!time_loop(ctx, item, user, LOOP_LONG, &full))
			return false;
		*ns = MIN(*ns, per_instruction(full, base, LOOP_LONG));
	}
	return true;
}

static void speed(struct probe_ctx *ctx, struct probe_item *item, bool user)
{
	const char *ring = user ? "ring 3" : "ring 0";
	char how[80];
	double ns;

	if (measure(ctx, item, user, &ns)) {
		if (ns < 1.0)
			probe_ok(item, "%s runs natively, under 1 ns an instruction", ring);
		else if (ns <= NATIVE_MAX_NS)
			probe_ok(item, "%s runs natively, %.1f ns an instruction", ring, ns);
		else
			/* Slow user code still runs; slow kernels do not come up in a lifetime. */
			probe_not(item, user ? PROBE_LIMITED : PROBE_MISSING, REMEDY_HOST,
				  "%s is emulated, %.0f ns an instruction", ring, ns);
	} else if (ctx->has_guest) {
		probe_not(item, PROBE_MISSING, REMEDY_HOST, "a loop in %s %s", ring,
			  probe_guest_describe(&ctx->guest, how, sizeof(how)));
	}
}

void probe_ring0_speed(struct probe_ctx *ctx, struct probe_item *item)
{
	speed(ctx, item, false);
}

void probe_ring3(struct probe_ctx *ctx, struct probe_item *item)
{
	speed(ctx, item, true);
}

void probe_guest_runs(struct probe_ctx *ctx, struct probe_item *item)
{
	const struct probe_entry e = {
		.code = probe_code_store,
		.rcx = PROBE_GUEST_DATA + PAGE_SIZE,
	};
	uint64_t start = now_ns();
	struct probe_guest *g = get_guest(ctx, item);
	uint64_t made = now_ns();
	char how[80];

	if (!g)
		return;
	if (passes(ctx, item, &e) && ctx->guest.mem[e.rcx] == 1)
		probe_ok(item, "a VM is made in %.1f ms; it stores to RAM and exits",
			 (double)(made - start) / (double)NS_PER_MS);
	else if (ctx->has_guest)
		probe_not(item, PROBE_MISSING, "see the kernel's log for what KVM says",
			  "code in ring 0 that stores to RAM %s",
			  probe_guest_describe(&ctx->guest, how, sizeof(how)));
}

void probe_ring0_int3(struct probe_ctx *ctx, struct probe_item *item)
{
	const struct probe_entry e = {
		.code = probe_code_int3,
		.handler = probe_on_trap,
		.vector = 3,
	};

	try_one(ctx, item, &e, "int3 in ring 0");
}

void probe_syscall(struct probe_ctx *ctx, struct probe_item *item)
{
	const struct probe_entry e = {.code = probe_code_syscall};

	try_one(ctx, item, &e, "syscall from ring 3 into ring 0");
}

void probe_hypercall(struct probe_ctx *ctx, struct probe_item *item)
{
	struct probe_guest *g = get_guest(ctx, item);
	struct probe_entry e = {.code = probe_code_vmcall};
	uint32_t vendor;

	if (!g)
		return;
	vendor = probe_guest_cpuid(g, 0, PROBE_EBX);
	if (vendor == VENDOR_AMD || vendor == VENDOR_HYGON)
		e.code = probe_code_vmmcall;
	try_one(ctx, item, &e, "a hypercall from ring 0");
}

/* What else kernels do. With a leaf, only where the CPU has the feature. */
static const struct instruction {
	const char *name;
	struct probe_entry entry;
	uint32_t leaf;
	enum probe_cpuid_reg reg;
	unsigned bit;
} instructions[] = {
	{.name = "int n", .entry = {probe_code_intn, probe_on_trap, 0x40, false, 0}},
	{.name = "ud2", .entry = {probe_code_ud2, probe_on_fault2, 6, false, 0}},
	{.name = "#PF", .entry = {probe_code_page_fault, probe_on_page_fault, 14, false, 0}},
	{.name = "ring 3 trap", .entry = {probe_code_user_int, probe_on_user_trap, 0x40, false, 0}},
	{.name = "swapgs", .entry = {.code = probe_code_swapgs}},
	{.name = "cr3", .entry = {.code = probe_code_cr3}},
	{.name = "x87", .entry = {.code = probe_code_x87}},
	{.name = "sse2", .entry = {.code = probe_code_sse2}},
	{"popcnt", {.code = probe_code_popcnt}, 1, PROBE_ECX, 23},
	{"cmpxchg16b", {.code = probe_code_cmpxchg16b}, 1, PROBE_ECX, 13},
	{"xgetbv", {.code = probe_code_xgetbv}, 1, PROBE_ECX, 26},
	{"xsave", {.code = probe_code_xsave}, 1, PROBE_ECX, 26},
	{"bmi", {.code = probe_code_bmi}, 7, PROBE_EBX, 3},
};

static void append(char *list, size_t size, const char *name)
{
	size_t n = strlen(list);

	snprintf(list + n, size - n, "%s%s", n ? ", " : "", name);
}

void probe_ring0_instructions(struct probe_ctx *ctx, struct probe_item *item)
{
	char good[120] = "", bad[120] = "";

	for (size_t i = 0; i < ARRAY_SIZE(instructions); i++) {
		const struct instruction *in = &instructions[i];
		struct probe_guest *g = get_guest(ctx, item);

		if (!g)
			return;
		if (in->leaf && !(probe_guest_cpuid(g, in->leaf, in->reg) >> in->bit & 1))
			continue;
		if (passes(ctx, item, &in->entry))
			append(good, sizeof(good), in->name);
		else if (ctx->has_guest)
			append(bad, sizeof(bad), in->name);
		else
			return;
	}
	if (bad[0])
		probe_not(item, PROBE_MISSING, REMEDY_HOST, "fail in ring 0: %s", bad);
	else
		probe_ok(item, "work in ring 0: %s", good);
}
