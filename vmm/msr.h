/* SPDX-License-Identifier: MIT */
/* One model-specific register of a vCPU at a time. */
#ifndef GODWIT_MSR_H
#define GODWIT_MSR_H

#include <stdint.h>

#define MSR_TSC 0x10U
#define MSR_TSC_DEADLINE 0x6e0U

/* 0, -ENOENT when KVM does not have it (or, writing, not that value), -errno. */
int msr_get(int vcpu_fd, uint32_t index, uint64_t *value);
int msr_set(int vcpu_fd, uint32_t index, uint64_t value);

#endif
