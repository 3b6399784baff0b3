/* SPDX-License-Identifier: MIT */
/*
 * A throw-away guest for probes: one vCPU in 64-bit mode on 1 MiB of RAM, no devices, that runs a
 * few instructions out of probe_code.c at a time.
 *
 * Guest-physical layout (one 2 MiB page, identity-mapped, user-accessible):
 *
 *	0x1000  PML4, PDPT, PD
 *	0x4000  GDT        0x5000 IDT        0x6000 TSS
 *	0xa000  code       0xd000 ring-0 stack's top      0xf000 ring-3 stack's top
 *	0x10000 data              0x100000 nothing: a store there is an exit
 */
#ifndef GODWIT_PROBE_GUEST_H
#define GODWIT_PROBE_GUEST_H

#include <linux/kvm.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#define PROBE_GUEST_SIZE 0x100000U
#define PROBE_GUEST_DATA 0x10000U

/* Longest time that a run may take before it counts as hanging. */
#define PROBE_GUEST_LIMIT_NS 200000000ULL

/* How a run ended. */
enum guest_end {
	GUEST_DONE,	/* the code's own end: value is its result */
	GUEST_FAULT,	/* an exception that the code did not expect: value is the vector */
	GUEST_INTERNAL, /* KVM_EXIT_INTERNAL_ERROR: value is the suberror */
	GUEST_SHUTDOWN, /* triple fault */
	GUEST_HANG,	/* time was up */
	GUEST_OTHER,	/* another exit: value is its reason */
	GUEST_ERROR,	/* KVM_RUN or a register call failed: value is the errno */
};

struct probe_guest {
	int kvm_fd; /* the caller's */
	int vm_fd;
	int vcpu_fd;
	struct kvm_run *run;
	size_t run_size;
	uint8_t *mem;
	struct kvm_sregs sregs0;  /* of the fresh vCPU */
	struct kvm_cpuid2 *cpuid; /* what KVM offers; the vCPU has all of it */
	timer_t timer;
	bool has_timer;
	enum guest_end end;
	unsigned value;
};

/* A KVM capability to enable on the VM before its vCPU is made; cap 0: none. */
struct probe_guest_opt {
	uint32_t cap;
	uint64_t arg;
};

/*
 * Makes the guest. g need not be initialised. -errno; nothing is left behind then. The timer
 * belongs to the calling thread: run the guest there.
 */
int probe_guest_init(struct probe_guest *g, int kvm_fd, const struct probe_guest_opt *opt);
void probe_guest_destroy(struct probe_guest *g);

/* RAM slot's flags (KVM_MEM_LOG_DIRTY_PAGES). 0 or -errno. */
int probe_guest_set_flags(struct probe_guest *g, uint32_t flags);

struct probe_entry {
	const uint8_t *code;	/* label in probe_code.c */
	const uint8_t *handler; /* gate for vector points here; NULL: counts as a fault */
	uint8_t vector;
	bool user;    /* starts in ring 3 */
	uint64_t rcx; /* argument; rdi is the data area's address always, rsi the ring-3 stack */
};

/*
 * Runs entry from a clean state (registers and data area) until it ends, at most
 * PROBE_GUEST_LIMIT_NS, into g->end and g->value. Returns g->end.
 */
enum guest_end probe_guest_run(struct probe_guest *g, const struct probe_entry *e);

enum probe_cpuid_reg {
	PROBE_EAX,
	PROBE_EBX,
	PROBE_ECX,
	PROBE_EDX,
};

/* A register of the guest's CPUID leaf (subleaf 0); 0 when there is no such leaf. */
uint32_t probe_guest_cpuid(const struct probe_guest *g, uint32_t leaf, enum probe_cpuid_reg reg);

/* "KVM_EXIT_INTERNAL_ERROR", "a #UD", ... of the last run, into buf; returns buf. */
const char *probe_guest_describe(const struct probe_guest *g, char *buf, size_t len);

#endif
