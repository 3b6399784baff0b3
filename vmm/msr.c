/* SPDX-License-Identifier: MIT */
#include "msr.h"

#include <errno.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>

/* struct kvm_msrs with room for one entry. */
struct one_msr {
	uint32_t nmsrs;
	uint32_t pad;
	struct kvm_msr_entry entry;
};

int msr_get(int vcpu_fd, uint32_t index, uint64_t *value)
{
	struct one_msr m = {.nmsrs = 1, .entry.index = index};
	int n = ioctl(vcpu_fd, KVM_GET_MSRS, &m);

	if (n != 1)
		return n < 0 ? -errno : -ENOENT;
	*value = m.entry.data;
	return 0;
}

int msr_set(int vcpu_fd, uint32_t index, uint64_t value)
{
	struct one_msr m = {.nmsrs = 1, .entry = {.index = index, .data = value}};
	int n = ioctl(vcpu_fd, KVM_SET_MSRS, &m);

	return n == 1 ? 0 : n < 0 ? -errno : -ENOENT;
}
