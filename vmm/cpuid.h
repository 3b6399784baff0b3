/* SPDX-License-Identifier: MIT */
/*
 * The CPU that the guest sees.
 *
 * Theory of operation: the guest's CPUID is built once per machine from what KVM supports here,
 * less what the user takes away, with everything that depends on the moment or on this host's
 * topology removed; that table is the machine's identity, it travels with a migration and is
 * never rebuilt there. Per vCPU only the APIC id and topology leaves are patched. A destination
 * takes the table if every feature bit in it is one that its own KVM supports; otherwise it
 * refuses, naming the bits.
 */
#ifndef GODWIT_CPUID_H
#define GODWIT_CPUID_H

#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>

#include "log.h"
#include "sbuf.h"

#define CPUID_MAX 256

struct cpuid {
	uint32_t n;
	struct kvm_cpuid_entry2 entry[CPUID_MAX];
};

/*
 * What this host's KVM supports, less the features of mask: "-avx2,-sse4.2" (names as in
 * /proc/cpuinfo; NULL or "" takes nothing away). -EINVAL for an unknown name, -errno.
 */
int cpuid_host(struct cpuid *c, int kvm_fd, const char *mask, struct errmsg *err);

/* The machine's table out of the host's: stable leaves only, topology for n vCPUs. */
int cpuid_build(struct cpuid *c, const struct cpuid *host, unsigned n_vcpus, struct errmsg *err);

/* A copy of the machine's table with APIC id and topology of vCPU id. */
void cpuid_for_vcpu(struct cpuid *out, const struct cpuid *c, unsigned id, unsigned n_vcpus);

/*
 * Can a guest with table c run on host? 0, or -ENOTSUP with the names of what is missing in err:
 * feature bits by name, fewer physical address bits, a larger XSAVE area.
 */
int cpuid_check(const struct cpuid *c, const struct cpuid *host, struct errmsg *err);

/* The frequency leaf 0x40000010 of a table that has it still empty. */
void cpuid_set_tsc_khz(struct cpuid *c, uint32_t khz);

/* KVM_SET_CPUID2 on a vCPU. 0 or -errno. */
int cpuid_set(int vcpu_fd, const struct cpuid *c);

void cpuid_fields(struct cpuid *c, struct sbuf *s);

/* Entry of a leaf, or NULL. */
const struct kvm_cpuid_entry2 *cpuid_find(const struct cpuid *c, uint32_t function, uint32_t index);

#endif
