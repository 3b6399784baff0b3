/* SPDX-License-Identifier: MIT */
/*
 * /dev/kvm: opening it, the capabilities that godwit cannot do without, and those it uses.
 */
#ifndef GODWIT_KVM_H
#define GODWIT_KVM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "log.h"

struct kvm_need {
	int cap; /* KVM_CAP_* */
	const char *name;
	const char *why;    /* what godwit does with it */
	bool for_migration; /* needed to migrate, not to run */
};

/* Every capability that is needed, ended by a NULL name. doctor prints it, kvm_open checks it. */
extern const struct kvm_need kvm_needs[];

struct kvm_caps {
	int max_vcpus;
	int mmap_size;	/* of struct kvm_run */
	int xsave_size; /* bytes of KVM_GET_XSAVE2, 0 where only the 4 KiB call is there; set per VM
			 */
	bool manual_protect; /* KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 */
	bool initially_set;  /* with KVM_DIRTY_LOG_INITIALLY_SET */
	bool tsc_control;
};

/* ioctl that goes on after EINTR and gives -errno. */
int kvm_ioctl(int fd, unsigned long request, uintptr_t arg);
#define kvm_ioctl_ptr(fd, req, ptr) kvm_ioctl(fd, req, (uintptr_t)(ptr))

/*
 * Opens /dev/kvm and checks API version and every need. The fd, or -errno with the cause and the
 * remedy in err.
 */
int kvm_open(struct kvm_caps *caps, struct errmsg *err);

#endif
