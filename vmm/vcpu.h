/* SPDX-License-Identifier: MIT */
/*
 * A virtual CPU: its KVM fd, its thread, its state.
 *
 * Theory of operation: the thread runs KVM_RUN and serves exits until it is asked to park. Who
 * asks sets the VM's pause reasons, sets immediate_exit and sends SIGUSR1; the thread completes a
 * port or MMIO access that is half done by re-entering KVM with immediate_exit, then counts
 * itself as parked. vm_pause() waits for that acknowledgement; nobody guesses by time.
 */
#ifndef GODWIT_VCPU_H
#define GODWIT_VCPU_H

#include <linux/kvm.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "log.h"
#include "sbuf.h"
#include "throttle.h"

struct vm;

struct vcpu {
	struct vm *vm;
	unsigned id;
	int fd;
	struct kvm_run *run;
	size_t run_size;
	struct kvm_dirty_gfn *ring; /* NULL without; see dirty_ring.h */
	uint32_t ring_next;	    /* entry to be harvested next, as far as it has been counted */
	uint64_t ring_pages;	    /* harvested so far */
	pthread_t thread;
	bool thread_started;
	bool parked; /* under vm->lock */
	struct throttle throttle;
	uint64_t tsc_deadline; /* loaded, not yet armed */
	uint64_t exits;	       /* for status; written by the thread only */
};

/* Creates the vCPU and sets its CPUID. vm->cpuid must be there. -errno with the cause in err. */
int vcpu_init(struct vcpu *v, struct vm *vm, unsigned id, struct errmsg *err);
void vcpu_destroy(struct vcpu *v);

/* Waits for its thread to end, which has been told to. */
void vcpu_join(struct vcpu *v);

/* Starts the thread, which parks at once while the VM is paused. */
int vcpu_start(struct vcpu *v, struct errmsg *err);

/* Makes a running vCPU look at the VM's requests. Any thread. */
void vcpu_kick(struct vcpu *v);

/*
 * Architectural state as one field list, in the order that KVM needs. Stopped vCPUs only.
 * When loading, err names the register class or MSR that this host refused; s->err is latched.
 * The TSC is not here but in the machine's clock (clock.h), and the TSC deadline, which must
 * follow it, is only kept by a load: vcpu_arm_timer() sets it. For who only looks (sbuf.h) zeroes
 * are enough of a vCPU and its VM.
 */
void vcpu_fields(struct vcpu *v, struct sbuf *s, struct errmsg *err);

/* After vcpu_fields() loaded and the clock is set: arms the TSC-deadline timer. -errno. */
int vcpu_arm_timer(struct vcpu *v);

/*
 * MSRs of the guest's that hold anything at this moment, of those that vcpu_fields() saves: what a
 * destination must have. The vCPU may run; it is called out of the guest for it, for as long as an
 * exit takes, and nothing of it changes. *out is the caller's to free(). 0 or -errno.
 */
#define VCPU_MSRS_MAX 2048U
int vcpu_msrs_in_use(struct vcpu *v, uint32_t **out, uint32_t *n_out);

/* Has this host's KVM all of these? -ENOTSUP with the first missing one in err. Stopped vCPUs. */
int vcpu_check_msrs(struct vcpu *v, const uint32_t *index, uint32_t n, struct errmsg *err);

#endif
