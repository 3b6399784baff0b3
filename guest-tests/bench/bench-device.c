/* SPDX-License-Identifier: MIT */
#include "bench-device.h"

#include <dirent.h>
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"

static struct {
	unsigned n;    /* of CPUs that we may use, three at most: */
	size_t cpu[3]; /* the guest's, the device's, the other end's */
} cpus;

static void pin(pid_t tid, size_t cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	/* A thread that ends meanwhile needs none. */
	need(!sched_setaffinity(tid, sizeof(set), &set) || errno == ESRCH, "CPU %zu: %s", cpu,
	     strerror(errno));
}

void device_cpus_begin(void)
{
	cpu_set_t set;

	need(!sched_getaffinity(0, sizeof(set), &set), "CPUs: %s", strerror(errno));
	for (size_t cpu = 0; cpu < CPU_SETSIZE && cpus.n < 3; cpu++) {
		if (CPU_ISSET(cpu, &set))
			cpus.cpu[cpus.n++] = cpu;
	}
	/* With a single one there is nothing to share out. */
	if (cpus.n >= 2)
		pin(0, cpus.cpu[1]);
}

void device_cpus_peer(void)
{
	if (cpus.n >= 3)
		pin(0, cpus.cpu[2]);
}

void device_cpus_guest(const struct proc *p)
{
	const char *path = harness_path("/proc/%d/task", (int)p->pid);
	DIR *dir = opendir(path);
	unsigned found = 0;
	struct dirent *e;

	need(dir, "%s: %s", path, strerror(errno));
	while ((e = readdir(dir))) {
		char name[32] = "";
		FILE *f;

		if (e->d_name[0] == '.')
			continue;
		f = fopen(harness_path("%s/%s/comm", path, e->d_name), "re");
		if (!f)
			continue;
		if (fgets(name, sizeof(name), f) &&
		    (strncmp(name, "vcpu", 4) == 0 || strncmp(name, "CPU ", 4) == 0)) {
			found++;
			if (cpus.n >= 2)
				pin((pid_t)strtol(e->d_name, NULL, 10), cpus.cpu[0]);
		}
		fclose(f);
	}
	closedir(dir);
	need(found, "%s: no thread that runs the guest", p->label);
}

double device_cpu_s(const struct proc *p)
{
	return bench_cpu(p->pid) - bench_cpu_vcpus(p->pid);
}
