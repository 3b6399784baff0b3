/* SPDX-License-Identifier: MIT */
/*
 * What this host can do, found by doing it.
 *
 * `godwit doctor` shows the list; `godwit run` asks only probe_linux().
 */
#ifndef GODWIT_PROBE_H
#define GODWIT_PROBE_H

#include <stdbool.h>
#include <stdint.h>

#include "log.h"

enum probe_result {
	PROBE_OK,
	PROBE_MISSING,
	PROBE_LIMITED, /* works, but less than one would wish: text says what */
};

struct probe_item {
	const char *name; /* short and stable, also in JSON: "ring0-speed", "dirty-ring" */
	enum probe_result result;
	bool needed_run;   /* bare guests cannot run without it */
	bool needed_linux; /* Linux guests cannot run without it */
	bool needed_migration;
	char detail[160]; /* what was measured or seen */
	char remedy[256]; /* what to do about it; "" when ok */
};

#define PROBE_MAX 48

struct probe_report {
	unsigned n;
	struct probe_item item[PROBE_MAX];
	bool can_run; /* bare guests */
	bool can_linux;
	bool can_migrate;
};

/* Runs every probe; under a second or so. Never fails as a whole: what fails is an item. */
void probe_all(struct probe_report *r);

/* The same with another device than /dev/kvm. */
void probe_all_with(const char *kvm_path, struct probe_report *r);

/*
 * Can this KVM run Linux: ring 0 at native speed, with int3 and friends? Runs a tiny guest;
 * takes a few milliseconds where it can. 0, or -ENOTSUP with one line in err (what is wrong
 * and what to do), or -errno when KVM itself failed.
 */
int probe_linux(struct errmsg *err);

#endif
