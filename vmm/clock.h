/* SPDX-License-Identifier: MIT */
/*
 * The machine's time: kvmclock and the vCPUs' TSCs, read at one instant and set at another.
 *
 * Theory of operation: guest time must not stand still while a machine moves, or its wall clock
 * would be behind ever after, and must not depend on the two hosts' wall clocks agreeing. So the
 * source reads both clocks at one instant and says when that was by the destination's monotonic
 * clock (the engine measures how far the two are apart, to half a round trip). The destination
 * sets the clocks to what they show by now; from then on they tick by themselves.
 *
 * All vCPUs' TSCs keep their distance to each other to the cycle: where KVM has
 * KVM_VCPU_TSC_OFFSET offsets are carried; elsewhere the same value is written to all, which KVM
 * treats as synchronisation.
 */
#ifndef GODWIT_CLOCK_H
#define GODWIT_CLOCK_H

#include <stdint.h>

#include "log.h"
#include "sbuf.h"
#include "vm.h"

struct vm_clock {
	uint64_t read_at_ns; /* the instant, in now_ns() of the host that is to set them */
	uint64_t kvmclock_ns;
	uint64_t tsc_khz;
	uint32_t n;    /* vCPUs */
	uint64_t *tsc; /* of each vCPU at the instant */
};

/*
 * Reads the clocks of a stopped machine; read_at_ns is this host's now_ns(), for the caller to
 * translate. clock_free() it. -errno with the cause in err.
 */
int clock_read(struct vm *vm, struct vm_clock *c, struct errmsg *err);

/*
 * Gives a machine that has not run the TSC frequency its guest knows. -ENOTSUP when this host
 * cannot: more than 250 ppm off and no scaling, or more than KVM takes. 0 kHz: unknown, nothing is
 * done.
 */
int clock_take_frequency(struct vm *vm, uint64_t tsc_khz, struct errmsg *err);

/*
 * Sets them to what they show now. The machine is stopped and has never run here. An instant in
 * the future counts as now. -errno with the cause in err.
 */
int clock_set(struct vm *vm, const struct vm_clock *c, struct errmsg *err);

void clock_fields(struct vm_clock *c, struct sbuf *s);
void clock_free(struct vm_clock *c);

#endif
