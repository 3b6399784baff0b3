/* SPDX-License-Identifier: MIT */
/*
 * What the probe files share. A probe fills an item that already has its name and what it is
 * needed for; it says exactly once how it went, by probe_ok() or probe_not().
 */
#ifndef GODWIT_PROBE_PARTS_H
#define GODWIT_PROBE_PARTS_H

#include "kvm.h"
#include "probe.h"
#include "probe_guest.h"

struct probe_ctx {
	int kvm_fd; /* -1: no KVM; probes that need one are not called then */
	struct kvm_caps caps;
	/*
	 * A guest that probes of the CPU share, made when first asked for. Instructions that fail
	 * may leave a vCPU in any state, so after a failure it is thrown away.
	 */
	struct probe_guest guest;
	bool has_guest;
};

typedef void probe_fn(struct probe_ctx *ctx, struct probe_item *item);

void probe_ok(struct probe_item *item, const char *fmt, ...) PRINTF(2, 3);
void probe_not(struct probe_item *item, enum probe_result result, const char *remedy,
	       const char *fmt, ...) PRINTF(4, 5);

/* First line of a file under /proc or /sys as a number, or fallback. */
long probe_read_number(const char *path, long fallback);

/* probe_cpu.c */
probe_fn probe_guest_runs, probe_ring3, probe_ring0_speed, probe_ring0_int3;
probe_fn probe_ring0_instructions, probe_syscall, probe_hypercall;

/* probe_dirty.c */
probe_fn probe_dirty_log, probe_initially_set, probe_dirty_ring;

/* probe_kvm.c */
probe_fn probe_vcpus, probe_tsc;

/* probe_uring.c */
probe_fn probe_uring, probe_uring_zc, probe_memlock;

/* probe_host.c */
probe_fn probe_userfaultfd, probe_hugepages, probe_tap;

/* probe_confine.c */
probe_fn probe_seccomp, probe_landlock;

#endif
