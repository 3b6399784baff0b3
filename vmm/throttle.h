/* SPDX-License-Identifier: MIT */
/*
 * Slowing vCPUs down, so that a guest that writes faster than it can be sent may be moved at all.
 *
 * Theory of operation: a throttled vCPU's thread is called out of KVM_RUN by a timer of its own,
 * which sends it the signal it is kicked by. Once it has used a slice of CPU time it naps for as
 * long as makes that slice the share it may have:
 *
 *	nap = CPU time used * percent / (100 - percent)
 *
 * A vCPU that is idle, less than 3 % of the time busy, is not slowed. A slice is 1 to 5 ms: such
 * that slice and nap take 10 ms together, as far as that goes.
 *
 * The signal may come just before KVM_RUN, so the handler sets immediate_exit; the timer is armed
 * after that was last cleared. A nap is taken where a thread parks, for the same reason (vcpu.c),
 * and is a wait for what changes a machine: a pause, a release and the end of the machine cut it
 * short. A vCPU that stands in a pause does not nap.
 *
 * It is a timer of the clock on the wall: one of CPU time expires by task work, which KVM takes for
 * something that is pending when it resets dirty rings (dirty_ring.h).
 */
#ifndef GODWIT_THROTTLE_H
#define GODWIT_THROTTLE_H

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <time.h>

struct vcpu;
struct vm;

#define THROTTLE_MAX 99U	    /* percent */
#define THROTTLE_ALL_VCPUS UINT_MAX /* as a vCPU's number */

struct throttle {
	unsigned percent;   /* of its CPU time is taken away; under vm->lock */
	uint64_t slowed_ns; /* napped so far; under vm->lock */
	/* The thread's own. */
	timer_t timer;
	bool has_timer, no_timer; /* it has been made; it cannot be made */
	bool armed;
	bool measures; /* since the two below */
	uint64_t cpu_ns, wall_ns;
};

/*
 * From now on this vCPU, or all, have 100 - percent (at most THROTTLE_MAX) hundredths of the CPU
 * time that they would use; 0 releases at once. Nothing of it is part of a machine's state. Any
 * thread but a vCPU's.
 */
void vm_throttle(struct vm *vm, unsigned vcpu, unsigned percent);

/* Nanoseconds that this vCPU has napped since it was made. */
uint64_t vm_slowed_ns(struct vm *vm, unsigned vcpu);

/* ---- for the vCPU's thread, which holds vm->lock ---- */

/* Naps if it is time; returns early when the machine is to pause or to end. */
void throttle_nap(struct vcpu *v);

/* Before KVM_RUN, once immediate_exit has been cleared. signal: what a kick sends. */
void throttle_arm(struct vcpu *v, int signal);

/* The thread ends; no lock. */
void throttle_end(struct vcpu *v);

#endif
