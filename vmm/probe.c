/* SPDX-License-Identifier: MIT */
/*
 * Theory of operation: one table of probes, run in order; each does the thing once and says what
 * came of it. The verdicts are nothing but the items' results, so what doctor shows explains
 * what `godwit run` and `godwit migrate` will do. Nothing is remembered between runs.
 */
#include "probe.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "probe_parts.h"

#define KVM_PATH "/dev/kvm"

enum need {
	RUN = 1, /* bare guests, and so all */
	LINUX = 2,
	MIGRATE = 4,
};

static const struct probe {
	const char *name;
	probe_fn *fn;
	unsigned needs;
	bool kvm; /* cannot be tried without */
} probes[] = {
	{"guest", probe_guest_runs, RUN, true},
	{"ring3", probe_ring3, RUN, true},
	{"ring0-speed", probe_ring0_speed, LINUX, true},
	{"ring0-int3", probe_ring0_int3, LINUX, true},
	{"ring0-instructions", probe_ring0_instructions, LINUX, true},
	{"syscall", probe_syscall, LINUX, true},
	{"hypercall", probe_hypercall, LINUX, true},
	{"vcpus", probe_vcpus, 0, true},
	{"tsc", probe_tsc, 0, true},
	{"dirty-log", probe_dirty_log, MIGRATE, true},
	{"dirty-log-initially-set", probe_initially_set, 0, true},
	{"dirty-ring", probe_dirty_ring, 0, true},
	{"io_uring", probe_uring, RUN | MIGRATE, false},
	{"io_uring-send-zc", probe_uring_zc, 0, false},
	{"memlock", probe_memlock, 0, false},
	{"hugepages", probe_hugepages, 0, false},
	{"userfaultfd", probe_userfaultfd, 0, false},
	{"tap", probe_tap, 0, false},
	{"seccomp", probe_seccomp, 0, false},
	{"landlock", probe_landlock, 0, false},
};

static void conclude(struct probe_item *item, enum probe_result result, const char *remedy,
		     const char *fmt, va_list ap)
{
	item->result = result;
	snprintf(item->remedy, sizeof(item->remedy), "%s", remedy);
	vsnprintf(item->detail, sizeof(item->detail), fmt, ap);
}

void probe_ok(struct probe_item *item, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	conclude(item, PROBE_OK, "", fmt, ap);
	va_end(ap);
}

void probe_not(struct probe_item *item, enum probe_result result, const char *remedy,
	       const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	conclude(item, result, remedy, fmt, ap);
	va_end(ap);
}

long probe_read_number(const char *path, long fallback)
{
	FILE *f = fopen(path, "re");
	long value;

	if (!f)
		return fallback;
	if (fscanf(f, "%ld", &value) != 1)
		value = fallback;
	fclose(f);
	return value;
}

static struct probe_item *add_item(struct probe_report *r, const char *name, unsigned needs)
{
	struct probe_item *item = &r->item[r->n++];

	*item = (struct probe_item){
		.name = name,
		.result = PROBE_MISSING,
		.needed_run = needs & RUN,
		.needed_linux = needs & LINUX,
		.needed_migration = needs & MIGRATE,
	};
	return item;
}

/* One item for /dev/kvm, one for all capabilities, and one more for each that is missing. */
static void probe_kvm(struct probe_ctx *ctx, const char *path, struct probe_report *r)
{
	struct probe_item *item = add_item(r, "kvm", RUN | LINUX | MIGRATE), *all;
	struct errmsg cause = {""}, remedy = {""};
	unsigned n = 0, missing = 0;

	ctx->kvm_fd = kvm_open_path(path, &cause, &remedy);
	all = add_item(r, "kvm-capabilities", 0);
	if (ctx->kvm_fd < 0) {
		probe_not(item, PROBE_MISSING, remedy.text, "%s", cause.text);
		probe_not(all, PROBE_MISSING, "", "not tried: no KVM");
		return;
	}
	probe_ok(item, "%s, API version 12", path);

	/* What it has to say of missing needs becomes items below. */
	if (kvm_read_caps(ctx->kvm_fd, &ctx->caps, &cause) && ctx->caps.mmap_size <= 0)
		probe_not(item, PROBE_MISSING, "use a host with a complete KVM", "%s", cause.text);
	for (const struct kvm_need *need = kvm_needs; need->name; need++, n++) {
		if (kvm_check_cap(ctx->kvm_fd, need->cap) > 0)
			continue;
		missing++;
		if (r->n == PROBE_MAX - ARRAY_SIZE(probes))
			continue;
		probe_not(add_item(r, need->name, need->for_migration ? MIGRATE : RUN),
			  PROBE_MISSING, "use a host with a complete KVM of Linux 5.2 or later",
			  "%s", need->why);
	}
	if (missing)
		probe_not(all, PROBE_MISSING, "see below", "%u of %u needed ones are missing",
			  missing, n);
	else
		probe_ok(all, "all %u needed ones are there", n);
}

static void run_probe(struct probe_ctx *ctx, const struct probe *p, struct probe_item *item)
{
	if (p->kvm && ctx->kvm_fd < 0)
		probe_not(item, PROBE_MISSING, "", "not tried: no KVM");
	else
		p->fn(ctx, item);
}

static void close_ctx(struct probe_ctx *ctx)
{
	if (ctx->has_guest)
		probe_guest_destroy(&ctx->guest);
	if (ctx->kvm_fd >= 0)
		close(ctx->kvm_fd);
}

static bool all_there(const struct probe_report *r, unsigned needs)
{
	for (unsigned i = 0; i < r->n; i++) {
		const struct probe_item *item = &r->item[i];

		if (item->result == PROBE_MISSING &&
		    ((item->needed_run && needs & RUN) || (item->needed_linux && needs & LINUX) ||
		     (item->needed_migration && needs & MIGRATE)))
			return false;
	}
	return true;
}

void probe_all_with(const char *kvm_path, struct probe_report *r)
{
	struct probe_ctx ctx = {.kvm_fd = -1};

	*r = (struct probe_report){0};
	probe_kvm(&ctx, kvm_path, r);
	for (size_t i = 0; i < ARRAY_SIZE(probes); i++)
		run_probe(&ctx, &probes[i], add_item(r, probes[i].name, probes[i].needs));
	close_ctx(&ctx);
	r->can_run = all_there(r, RUN);
	r->can_linux = all_there(r, RUN | LINUX);
	r->can_migrate = all_there(r, RUN | MIGRATE);
}

void probe_all(struct probe_report *r)
{
	probe_all_with(KVM_PATH, r);
}

int probe_linux(struct errmsg *err)
{
	struct probe_ctx ctx = {.kvm_fd = -1};
	int ret = 0;

	ctx.kvm_fd = kvm_open(&ctx.caps, err);
	if (ctx.kvm_fd < 0)
		return ctx.kvm_fd;
	for (size_t i = 0; i < ARRAY_SIZE(probes) && ret == 0; i++) {
		struct probe_item item = {.name = probes[i].name};

		if (!(probes[i].needs & LINUX))
			continue;
		run_probe(&ctx, &probes[i], &item);
		if (item.result == PROBE_MISSING)
			ret = errmsg_set(err, -ENOTSUP, "this KVM cannot run Linux: %s: %s",
					 item.detail, item.remedy);
	}
	close_ctx(&ctx);
	return ret;
}
