/* SPDX-License-Identifier: MIT */
/*
 * What it costs to have a guest at all: time from before the exec of godwit until its vCPU is let
 * go, and the process's own memory (PSS without the guest's RAM). Prints medians; the limits are
 * loose in time, since a busy machine is not godwit's fault, and tight in memory.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "harness.h"

#define RUNS 11
#define RAM_BYTES (64UL << 20) /* -m 64M: no other mapping is as large */
#define TIME_LIMIT_MS 100
#define PSS_LIMIT_KIB 3072.0

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000U + (uint64_t)ts.tv_nsec;
}

static double pss_kib_without_ram(pid_t pid)
{
	const char *path = harness_path("/proc/%d/smaps", (int)pid);
	FILE *f = fopen(path, "re");
	bool ram = false;
	double sum = 0;
	char line[512];

	need(f, "no %s", path);
	while (fgets(line, sizeof(line), f)) {
		unsigned long from, to;
		double kib;

		if (sscanf(line, "%lx-%lx", &from, &to) == 2)
			ram = to - from == RAM_BYTES;
		else if (!ram && sscanf(line, "Pss: %lf kB", &kib) == 1)
			sum += kib;
	}
	fclose(f);
	return sum;
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

START_TEST(start_up)
{
	double ms[RUNS], kib[RUNS];

	for (unsigned i = 0; i < RUNS; i++) {
		uint64_t before = now_ns();
		struct guest g;
		json_t *status;

		guest_start(&g, harness_path("g%u", i), "-m", "64M", "-k", bare_elf("dirty"), "-p",
			    "ws=1M kind=idle", NULL);
		guest_expect(&g, "^dirty ready ", 20000);
		status = guest_status(&g);
		ms[i] = (json_num(status, "started_monotonic_ns") - (double)before) / 1e6;
		kib[i] = pss_kib_without_ram(g.proc->pid);
		guest_send(&g, "q");
		guest_ended(&g, 0, 10000);
	}
	qsort(ms, RUNS, sizeof(*ms), by_value);
	qsort(kib, RUNS, sizeof(*kib), by_value);
	harness_say(
		"start-up to the guest's first instruction: median %.1f ms (%.1f to %.1f), aim 10",
		ms[RUNS / 2], ms[0], ms[RUNS - 1]);
	harness_say("own memory (PSS less guest RAM): median %.0f KiB (%.0f to %.0f), aim 3072",
		    kib[RUNS / 2], kib[0], kib[RUNS - 1]);
	need(ms[RUNS / 2] < harness_slow(TIME_LIMIT_MS), "start-up takes %.1f ms", ms[RUNS / 2]);
	if (!strstr(harness_godwit(), "san/"))
		need(kib[RUNS / 2] < PSS_LIMIT_KIB, "godwit itself takes %.0f KiB", kib[RUNS / 2]);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("startup");

	if (!harness_kvm_works())
		return harness_skip_all("no KVM here");
	tcase_add_test(harness_case(s, "startup", 120), start_up);
	return harness_main(s);
}
