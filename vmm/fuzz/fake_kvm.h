/* SPDX-License-Identifier: MIT */
/*
 * As much of /dev/kvm as a machine that never runs needs, for fuzz targets: what a stream from
 * elsewhere reaches of vm.c, vcpu_state.c, clock.c and irq.c is run as it is, on hosts without KVM,
 * too.
 *
 * Theory of operation: the linker puts this in front of ioctl(). A request of KVM's is answered
 * here, everything else goes on to the kernel. What is set is kept and can be read again; what
 * every KVM refuses (an MSR that is none, reserved bits of EFER and XCR0, a run state that is none)
 * is refused. Files in memory stand for the file descriptors. A vCPU that runs is one that is
 * halted.
 *
 * Programs with it need --wrap=ioctl and --wrap=kvm_open.
 */
#ifndef GODWIT_FUZZ_FAKE_KVM_H
#define GODWIT_FUZZ_FAKE_KVM_H

#include <stdbool.h>

#include "../vm.h"

#define FAKE_KVM_VCPUS 4 /* KVM_CAP_MAX_VCPUS */

/* What hosts differ in. A target that sets it sets it for each input. */
enum fake_kvm_host {
	FAKE_KVM_SCALES_TSC = 1,    /* KVM_CAP_TSC_CONTROL */
	FAKE_KVM_NO_TSC_OFFSET = 2, /* KVM_VCPU_TSC_OFFSET came with Linux 5.16 */
	FAKE_KVM_HOSTS = 4,
};
void fake_kvm_set_host(unsigned host);

/* Is the line up, as KVM_IRQ_LINE was last told? */
bool fake_kvm_line(int vm_fd, uint32_t gsi);

/* The CPU that cpuid_build() makes for a guest here. */
void fake_kvm_cpuid(struct cpuid *out, uint32_t vcpus);

#endif
