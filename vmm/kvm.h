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
	int xsave_size; /* bytes of KVM_GET_XSAVE2, 0 where only the 4 KiB call is there; a VM may
			 * give another value */
	bool manual_protect;	/* KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 */
	bool initially_set;	/* with KVM_DIRTY_LOG_INITIALLY_SET */
	int dirty_ring;		/* KVM_CAP_DIRTY_LOG_RING_ACQ_REL or its elder, 0 without */
	bool tsc_control;	/* KVM can give a guest another TSC frequency than the host's */
	bool clock_realtime;	/* KVM_SET_CLOCK works out how late it is asked (Linux 5.16) */
	const char *no_migrate; /* first for_migration need that is missing, or NULL */
};

/* ioctl that goes on after EINTR and gives -errno. */
int kvm_ioctl(int fd, unsigned long request, uintptr_t arg);
#define kvm_ioctl_ptr(fd, req, ptr) kvm_ioctl(fd, req, (uintptr_t)(ptr))

/*
 * A guest's write of value, of len bytes, at gpa goes to the eventfd instead of ending KVM_RUN; or
 * no longer does. (KVM API, KVM_IOEVENTFD.)
 */
int kvm_ioeventfd(int vm_fd, uint64_t gpa, uint32_t len, uint64_t value, int fd, bool on);

/* What is written to the eventfd makes an edge at gsi, for as long as the VM lives. (KVM_IRQFD) */
int kvm_irqfd(int vm_fd, uint32_t gsi, int fd);

/* KVM_CHECK_EXTENSION on /dev/kvm or on a VM: 0 when it is not there, else its value. */
int kvm_check_cap(int fd, int cap);

/*
 * Opens /dev/kvm, checks API version and every need, fills caps. The fd, or -errno with the cause
 * and the remedy in err: -ENOENT, -ENXIO or -ENODEV (no KVM here), -EACCES, -EPROTONOSUPPORT (API
 * version), -ENOTSUP (a capability that running needs). Without one that only migration needs the
 * call succeeds and caps->no_migrate names it.
 */
int kvm_open(struct kvm_caps *caps, struct errmsg *err);

/*
 * The parts of kvm_open(), for who wants to look closer. Opens path and checks the API version;
 * cause and remedy apart when it fails.
 */
int kvm_open_path(const char *path, struct errmsg *cause, struct errmsg *remedy);

/* Fills caps from an open fd, as far as they are there even on an error, and checks the needs. */
int kvm_read_caps(int kvm_fd, struct kvm_caps *caps, struct errmsg *err);

#endif
