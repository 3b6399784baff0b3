/* SPDX-License-Identifier: MIT */
#include "kvm.h"

#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/kvm.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fault.h"

#define KVM_PATH "/dev/kvm"

/* CPUID.1:ECX and CPUID.80000001h:ECX */
#define CPUID_VMX (1U << 5)
#define CPUID_HYPERVISOR (1U << 31)
#define CPUID_SVM (1U << 2)

#define NEED(cap_, why_)                                                                           \
	{                                                                                          \
		.cap = KVM_CAP_##cap_, .name = "KVM_CAP_" #cap_, .why = why_                       \
	}
#define NEED_MIGRATE(cap_, why_)                                                                   \
	{                                                                                          \
		.cap = KVM_CAP_##cap_, .name = "KVM_CAP_" #cap_, .why = why_,                      \
		.for_migration = true                                                              \
	}

/*
 * KVM_CAP_XCRS is not among them: KVM shows it only where the CPU has XSAVE, and without XSAVE
 * there is no XCR to carry.
 */
const struct kvm_need kvm_needs[] = {
	NEED(USER_MEMORY, "guest RAM in this process"),
	NEED(NR_MEMSLOTS, "RAM below and above 4 GiB as two slots"),
	NEED(DESTROY_MEMORY_REGION_WORKS, "slots that can be taken away again"),
	NEED(SYNC_MMU, "RAM pages given back to the host while mapped"),
	NEED(MAX_VCPUS, "the limit on -c"),
	NEED(SET_TSS_ADDR, "real mode on Intel CPUs"),
	NEED(SET_IDENTITY_MAP_ADDR, "real mode on Intel CPUs"),
	NEED(EXT_CPUID, "the guest's CPUID table"),
	NEED(IRQCHIP, "PICs, IOAPIC and local APICs in the kernel"),
	NEED(PIT2, "the i8254 timer in the kernel"),
	NEED(IRQFD, "interrupts without a system call"),
	NEED(IOEVENTFD, "doorbells without an exit to user space"),
	NEED(IMMEDIATE_EXIT, "stopping a vCPU with no access half done"),
	NEED(ADJUST_CLOCK, "kvmclock"),
	NEED(KVMCLOCK_CTRL, "guests' watchdogs forgive a pause"),
	NEED_MIGRATE(MANUAL_DIRTY_LOG_PROTECT2, "dirty log cleared page range by page range"),
	NEED_MIGRATE(PIT_STATE2, "the timer's state"),
	NEED_MIGRATE(MP_STATE, "which vCPUs are halted or not started"),
	NEED_MIGRATE(VCPU_EVENTS, "pending exceptions and interrupts"),
	NEED_MIGRATE(XSAVE, "floating point and vector registers"),
	NEED_MIGRATE(DEBUGREGS, "debug registers"),
	NEED_MIGRATE(GET_TSC_KHZ, "the guest's TSC frequency"),
	{.name = NULL},
};

int kvm_ioctl(int fd, unsigned long request, uintptr_t arg)
{
	int ret;

	if (fault_at(FAULT_REFUSE, "kvm"))
		return -EIO;
	do
		ret = ioctl(fd, request, arg);
	while (ret < 0 && errno == EINTR);
	return ret < 0 ? -errno : ret;
}

int kvm_ioeventfd(int vm_fd, uint64_t gpa, uint32_t len, uint64_t value, int fd, bool on)
{
	struct kvm_ioeventfd io = {
		.datamatch = value,
		.addr = gpa,
		.len = len,
		.fd = fd,
		.flags = KVM_IOEVENTFD_FLAG_DATAMATCH,
	};

	if (!on)
		io.flags |= KVM_IOEVENTFD_FLAG_DEASSIGN;
	return kvm_ioctl_ptr(vm_fd, KVM_IOEVENTFD, &io);
}

int kvm_irqfd(int vm_fd, uint32_t gsi, int fd)
{
	struct kvm_irqfd irq = {.fd = (uint32_t)fd, .gsi = gsi};

	return kvm_ioctl_ptr(vm_fd, KVM_IRQFD, &irq);
}

int kvm_check_cap(int fd, int cap)
{
	int ret = kvm_ioctl(fd, KVM_CHECK_EXTENSION, (uintptr_t)cap);

	return MAX(ret, 0);
}

/* What to do where there is no KVM device, as far as the CPU tells. */
static const char *device_remedy(void)
{
	unsigned a, b, c = 0, d, svm = 0;

	if (!__get_cpuid(1, &a, &b, &c, &d))
		c = 0;
	if (!__get_cpuid(0x80000001, &a, &b, &svm, &d))
		svm = 0;
	if (c & CPUID_VMX)
		return "load its module: `sudo modprobe kvm_intel`; in a container, pass the "
		       "device in";
	if (svm & CPUID_SVM)
		return "load its module: `sudo modprobe kvm_amd`; in a container, pass the device "
		       "in";
	if (c & CPUID_HYPERVISOR)
		return "this machine is itself a virtual one without VMX or SVM: turn on nested "
		       "virtualisation for it";
	return "this CPU shows neither VMX nor SVM: turn on virtualisation in the firmware";
}

static void access_remedy(const char *path, struct errmsg *remedy)
{
	char buf[1024];
	struct group gr, *found = NULL;
	struct stat st;

	/* A group of its own with rw is how distributions do it; anything else needs an ACL. */
	if (stat(path, &st) == 0 && st.st_gid != 0 && (st.st_mode & 060) == 060)
		(void)getgrgid_r(st.st_gid, &gr, buf, sizeof(buf), &found);
	if (found)
		errmsg_set(remedy, 0,
			   "become a member of group %s: `sudo usermod -aG %s $USER`, then log in "
			   "again",
			   found->gr_name, found->gr_name);
	else
		errmsg_set(remedy, 0, "get access: `sudo setfacl -m u:$USER:rw %s`", path);
}

int kvm_open_path(const char *path, struct errmsg *cause, struct errmsg *remedy)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);
	int ret;

	if (fd < 0) {
		ret = -errno;
		if (ret == -EACCES || ret == -EPERM)
			access_remedy(path, remedy);
		else
			errmsg_set(remedy, 0, "%s", device_remedy());
		return errmsg_set(cause, ret, "no KVM: %s: %s", path, strerror(-ret));
	}

	ret = kvm_ioctl(fd, KVM_GET_API_VERSION, 0);
	if (ret == KVM_API_VERSION)
		return fd;
	close(fd);
	if (ret < 0) {
		errmsg_set(remedy, 0, "%s", device_remedy());
		return errmsg_set(cause, ret, "no KVM: %s is something else: %s", path,
				  strerror(-ret));
	}
	errmsg_set(remedy, 0, "use a Linux kernel of 5.2 or later");
	return errmsg_set(cause, -EPROTONOSUPPORT, "KVM API version %d, godwit speaks %d", ret,
			  KVM_API_VERSION);
}

int kvm_read_caps(int kvm_fd, struct kvm_caps *caps, struct errmsg *err)
{
	const struct kvm_need *need;
	int log;

	*caps = (struct kvm_caps){
		.max_vcpus = kvm_check_cap(kvm_fd, KVM_CAP_MAX_VCPUS),
		.mmap_size = kvm_ioctl(kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0),
		.xsave_size = kvm_check_cap(kvm_fd, KVM_CAP_XSAVE2),
		.tsc_control = kvm_check_cap(kvm_fd, KVM_CAP_TSC_CONTROL) > 0,
		.clock_realtime = kvm_check_cap(kvm_fd, KVM_CAP_ADJUST_CLOCK) & KVM_CLOCK_REALTIME,
	};
	log = kvm_check_cap(kvm_fd, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2);
	caps->manual_protect = log & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE;
	caps->initially_set = log & KVM_DIRTY_LOG_INITIALLY_SET;
	if (kvm_check_cap(kvm_fd, KVM_CAP_DIRTY_LOG_RING_ACQ_REL))
		caps->dirty_ring = KVM_CAP_DIRTY_LOG_RING_ACQ_REL;
	else if (kvm_check_cap(kvm_fd, KVM_CAP_DIRTY_LOG_RING))
		caps->dirty_ring = KVM_CAP_DIRTY_LOG_RING;
	for (need = kvm_needs; need->name && !caps->no_migrate; need++)
		if (need->for_migration && kvm_check_cap(kvm_fd, need->cap) == 0)
			caps->no_migrate = need->name;

	if (caps->mmap_size < (int)sizeof(struct kvm_run))
		return errmsg_set(err, caps->mmap_size < 0 ? caps->mmap_size : -EPROTO,
				  "KVM_GET_VCPU_MMAP_SIZE gives %d, too little for struct kvm_run",
				  caps->mmap_size);
	for (need = kvm_needs; need->name; need++)
		if (!need->for_migration && kvm_check_cap(kvm_fd, need->cap) == 0)
			return errmsg_set(err, -ENOTSUP,
					  "KVM lacks %s (%s): use a host with a complete KVM of "
					  "Linux 5.2 or later",
					  need->name, need->why);
	return 0;
}

int kvm_open(struct kvm_caps *caps, struct errmsg *err)
{
	struct errmsg cause = {""}, remedy = {""};
	int fd = kvm_open_path(KVM_PATH, &cause, &remedy);
	int ret;

	if (fd < 0)
		return errmsg_set(err, fd, "%.200s: %.280s", cause.text, remedy.text);
	ret = kvm_read_caps(fd, caps, err);
	if (ret) {
		close(fd);
		return ret;
	}
	return fd;
}
