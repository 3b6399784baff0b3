/* SPDX-License-Identifier: MIT */
/*
 * What measuring a device needs: who runs on which CPU, and what the device costs. The guest polls,
 * so its CPU is busy all the time; where the scheduler puts what serves it makes more of a
 * difference than who serves it. So the guest has one CPU for itself, the device another one, and
 * the program at the other end, if there is one, a third, or where there are only two the device's.
 */
#ifndef GODWIT_BENCH_DEVICE_H
#define GODWIT_BENCH_DEVICE_H

#include "../tests/harness.h"

/* The least ratio of rates that counts as equal: runs of one and the same differ by as much. */
#define BENCH_DEVICE_EQUAL 0.97

/* First thing in a run: what it starts is to run on the device's CPU. */
void device_cpus_begin(void);

/* This process is the other end. */
void device_cpus_peer(void);

/* The guest in p is up: its vCPUs' threads go to their CPU. */
void device_cpus_guest(const struct proc *p);

/* CPU seconds that its threads have used, but for those that run the guest. */
double device_cpu_s(const struct proc *p);

#endif
