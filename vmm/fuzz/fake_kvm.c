/* SPDX-License-Identifier: MIT */
#include "fake_kvm.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "../msr.h"
#include "fuzz.h"

#define FDS_MAX 1024
#define XSAVE_SIZE 8192U /* more than the 4 KiB of the elder call */
#define TSC_KHZ 2000000U
#define TSC_KHZ_MAX 0x7fffffffU
#define HALT_NS 200000L

/* EFER: SCE, LME, LMA, NXE, SVME, LMSLE, FFXSR, TCE */
#define EFER_KNOWN 0xfd01ULL

static const uint32_t msr_known[] = {
	0x1b,	    0x174,	0x175,	    0x176,	0x1a0,	    0x277,	0x2ff,	    0x6e0,
	0x4b564d00, 0x4b564d01, 0x4b564d02, 0xc0000080, 0xc0000081, 0xc0000082, 0xc0000102, 0x10,
};

#define MSR_PAT_AT 5U /* IA32_PAT, which holds something after a reset */

struct fake_vcpu {
	struct kvm_mp_state mp;
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	uint8_t xsave[XSAVE_SIZE];
	struct kvm_xcrs xcrs;
	struct kvm_debugregs debug;
	struct kvm_lapic_state lapic;
	struct kvm_vcpu_events events;
	uint64_t msr[ARRAY_SIZE(msr_known)];
	uint64_t tsc_offset;
	uint32_t tsc_khz; /* 0: the host's */
};

#define SLOTS 2
#define LINES 24U

struct fake_vm {
	uint64_t slot_pages[SLOTS];
	bool told[SLOTS]; /* of the first dirty log that all is dirty */
	struct kvm_irqchip chip[3];
	struct kvm_pit_state2 pit;
	struct kvm_clock_data clock;
	bool line[LINES];
};

/* What an fd stands for; /dev/kvm itself has none. A number that comes again is another one. */
struct fake {
	struct fake_vm vm;
	struct fake_vcpu vcpu;
};
static struct fake *fakes[FDS_MAX];

static unsigned host_kind; /* enum fake_kvm_host */

void fake_kvm_set_host(unsigned h)
{
	host_kind = h;
}

static const struct kvm_cpuid_entry2 cpuid_entries[] = {
	{.function = 0, .eax = 0xd, .ebx = 0x68747541, .ecx = 0x444d4163, .edx = 0x69746e65},
	{.function = 1, .eax = 0x800f12, .ecx = 0x7ed8320b, .edx = 0x178bfbff},
	{.function = 7, .flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX, .ebx = 0x209c01a9},
	{.function = 0xd,
	 .flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
	 .eax = 7,
	 .ebx = 0x340,
	 .ecx = 0x340},
	{.function = 0xd, .index = 1, .flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX, .eax = 1},
	{.function = 0x40000000,
	 .eax = 0x40000001,
	 .ebx = 0x4b4d564b,
	 .ecx = 0x564b4d56,
	 .edx = 0x4d},
	{.function = 0x40000001, .eax = 0x01000009},
	{.function = 0x80000000, .eax = 0x80000008},
	{.function = 0x80000001, .ecx = 0x121, .edx = 0x2fd3fbff},
	{.function = 0x80000008, .eax = 0x3028},
};

static int new_fd(off_t size)
{
	int fd = memfd_create("fake-kvm", MFD_CLOEXEC);

	fuzz_need(fd >= 0 && fd < FDS_MAX && ftruncate(fd, size) == 0, "no fd for KVM: %s",
		  strerror(errno));
	free(fakes[fd]);
	fakes[fd] = calloc(1, sizeof(*fakes[fd]));
	fuzz_need(fakes[fd], "no memory");
	fakes[fd]->vcpu.msr[MSR_PAT_AT] = 0x0007040600070406ULL;
	fakes[fd]->vcpu.xcrs = (struct kvm_xcrs){.nr_xcrs = 1, .xcrs[0] = {.value = 1}};
	return fd;
}

int __wrap_kvm_open(struct kvm_caps *caps, struct errmsg *err);
int __wrap_kvm_open(struct kvm_caps *caps, struct errmsg *err)
{
	int fd = new_fd(0);
	int ret = kvm_read_caps(fd, caps, err);

	fuzz_need(ret == 0, "this KVM is not good enough: %s", err->text);
	return fd;
}

static int check_extension(uintptr_t cap)
{
	switch (cap) {
	case KVM_CAP_MAX_VCPUS:
		return FAKE_KVM_VCPUS;
	case KVM_CAP_XSAVE2:
		return XSAVE_SIZE;
	case KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2:
		return KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET;
	case KVM_CAP_TSC_CONTROL:
		return !!(host_kind & FAKE_KVM_SCALES_TSC);
	case KVM_CAP_DIRTY_LOG_RING:
	case KVM_CAP_DIRTY_LOG_RING_ACQ_REL:
		return 0;
	default:
		return 1;
	}
}

static int supported_cpuid(struct kvm_cpuid2 *c)
{
	if (c->nent < ARRAY_SIZE(cpuid_entries))
		return -E2BIG;
	c->nent = ARRAY_SIZE(cpuid_entries);
	memcpy(c->entries, cpuid_entries, sizeof(cpuid_entries));
	return 0;
}

static int msr_list(struct kvm_msr_list *l)
{
	if (l->nmsrs < ARRAY_SIZE(msr_known))
		return -E2BIG;
	l->nmsrs = ARRAY_SIZE(msr_known);
	memcpy(l->indices, msr_known, sizeof(msr_known));
	return 0;
}

/* As far as the first one that is none. */
static int msrs(struct fake_vcpu *v, struct kvm_msrs *m, bool set)
{
	for (uint32_t i = 0; i < m->nmsrs; i++) {
		unsigned which = 0;

		while (which < ARRAY_SIZE(msr_known) && msr_known[which] != m->entries[i].index)
			which++;
		if (which == ARRAY_SIZE(msr_known))
			return (int)i;
		if (set)
			v->msr[which] = m->entries[i].data;
		else
			m->entries[i].data = v->msr[which];
	}
	return (int)m->nmsrs;
}

/* The clock's offset is all there is. */
static int tsc_offset(struct fake_vcpu *v, const struct kvm_device_attr *a, bool set)
{
	uint64_t *user = (void *)(uintptr_t)a->addr;

	if (a->group != KVM_VCPU_TSC_CTRL || a->attr != KVM_VCPU_TSC_OFFSET ||
	    host_kind & FAKE_KVM_NO_TSC_OFFSET)
		return -ENXIO;
	if (set)
		v->tsc_offset = *user;
	else
		*user = v->tsc_offset;
	return 0;
}

/* KVM looks at 32 bits of what it is given, and takes 0 for the host's own. */
static int set_tsc_khz(struct fake_vcpu *v, uint32_t khz)
{
	if (khz >= TSC_KHZ_MAX)
		return -EINVAL;
	v->tsc_khz = khz;
	return 0;
}

static int check_sregs(const struct kvm_sregs *s)
{
	/* Long mode without paging, paging without protection. */
	if (s->efer & ~EFER_KNOWN || (s->cr0 >> 32) || ((s->cr0 >> 31) && !(s->cr0 & 1)))
		return -EINVAL;
	return 0;
}

static int check_xcrs(const struct kvm_xcrs *x)
{
	for (uint32_t i = 0; i < x->nr_xcrs; i++) {
		if (x->xcrs[i].xcr != 0 || !(x->xcrs[i].value & 1) || x->xcrs[i].value & ~7ULL)
			return -EINVAL;
	}
	return 0;
}

#define GET(request, place)                                                                        \
	case request:                                                                              \
		memcpy(arg, &(place), sizeof(place));                                              \
		return 0
#define SET(request, place, check)                                                                 \
	case request:                                                                              \
		if (check)                                                                         \
			return -EINVAL;                                                            \
		memcpy(&(place), arg, sizeof(place));                                              \
		return 0

static int vcpu_request(struct fake_vcpu *v, unsigned long request, void *arg)
{
	static const struct timespec halt = {.tv_nsec = HALT_NS};

	switch (request) {
		GET(KVM_GET_MP_STATE, v->mp);
		SET(KVM_SET_MP_STATE, v->mp, ((struct kvm_mp_state *)arg)->mp_state > 4);
		GET(KVM_GET_REGS, v->regs);
		SET(KVM_SET_REGS, v->regs, false);
		GET(KVM_GET_SREGS, v->sregs);
		SET(KVM_SET_SREGS, v->sregs, check_sregs(arg));
		GET(KVM_GET_XSAVE2, v->xsave);
		SET(KVM_SET_XSAVE, v->xsave, false);
		GET(KVM_GET_XCRS, v->xcrs);
		SET(KVM_SET_XCRS, v->xcrs, check_xcrs(arg));
		GET(KVM_GET_DEBUGREGS, v->debug);
		SET(KVM_SET_DEBUGREGS, v->debug,
		    (((struct kvm_debugregs *)arg)->dr6 | ((struct kvm_debugregs *)arg)->dr7) >>
			    32);
		GET(KVM_GET_LAPIC, v->lapic);
		SET(KVM_SET_LAPIC, v->lapic, false);
		GET(KVM_GET_VCPU_EVENTS, v->events);
		SET(KVM_SET_VCPU_EVENTS, v->events, ((struct kvm_vcpu_events *)arg)->flags & ~0x7U);
	case KVM_GET_MSRS:
		return msrs(v, arg, false);
	case KVM_SET_MSRS:
		return msrs(v, arg, true);
	case KVM_GET_DEVICE_ATTR:
		return tsc_offset(v, arg, false);
	case KVM_SET_DEVICE_ATTR:
		return tsc_offset(v, arg, true);
	case KVM_GET_TSC_KHZ:
		return (int)(v->tsc_khz ? v->tsc_khz : TSC_KHZ);
	case KVM_SET_TSC_KHZ:
		return set_tsc_khz(v, (uint32_t)(uintptr_t)arg);
	case KVM_SET_CPUID2:
	case KVM_KVMCLOCK_CTRL:
		return 0;
	case KVM_RUN:
		nanosleep(&halt, NULL);
		return -EINTR;
	default:
		fuzz_bug("a request to a vCPU that this KVM does not know: %#lx", request);
	}
}

static int irqchip(struct fake_vm *vm, struct kvm_irqchip *c, bool set)
{
	if (c->chip_id >= ARRAY_SIZE(vm->chip))
		return -EINVAL;
	if (set)
		vm->chip[c->chip_id] = *c;
	else
		c->chip = vm->chip[c->chip_id].chip;
	return 0;
}

static int irq_line(struct fake_vm *vm, const struct kvm_irq_level *l)
{
	fuzz_need(l->irq < LINES, "interrupt line %u", l->irq);
	vm->line[l->irq] = l->level;
	return 0;
}

bool fake_kvm_line(int vm_fd, uint32_t gsi)
{
	return fakes[vm_fd]->vm.line[gsi];
}

static int set_slot(struct fake_vm *vm, const struct kvm_userspace_memory_region *r)
{
	if (r->slot >= SLOTS)
		return -EINVAL;
	vm->slot_pages[r->slot] = r->memory_size / PAGE_SIZE;
	vm->told[r->slot] = false;
	return 0;
}

/* A guest that is halted writes nothing, but at first all counts as written. */
static int dirty_log(struct fake_vm *vm, const struct kvm_dirty_log *l)
{
	if (l->slot >= SLOTS)
		return -EINVAL;
	memset(l->dirty_bitmap, vm->told[l->slot] ? 0 : 0xff,
	       ALIGN_UP(vm->slot_pages[l->slot], 64ULL) / 8);
	vm->told[l->slot] = true;
	return 0;
}

static int request_of(int fd, unsigned long request, void *arg)
{
	struct fake *f = fd >= 0 && fd < FDS_MAX ? fakes[fd] : NULL;
	struct fake_vm *vm;

	/* Devices that a target has beside any machine. */
	if (!f)
		return -EBADF;
	vm = &f->vm;
	switch (request) {
	case KVM_GET_API_VERSION:
		return KVM_API_VERSION;
	case KVM_CHECK_EXTENSION:
		return check_extension((uintptr_t)arg);
	case KVM_GET_VCPU_MMAP_SIZE:
		return (int)(3 * PAGE_SIZE);
	case KVM_GET_SUPPORTED_CPUID:
		return supported_cpuid(arg);
	case KVM_GET_MSR_INDEX_LIST:
		return msr_list(arg);
	case KVM_CREATE_VM:
		return new_fd(0);
	case KVM_CREATE_VCPU:
		return new_fd(3 * PAGE_SIZE);
	case KVM_GET_IRQCHIP:
		return irqchip(vm, arg, false);
	case KVM_SET_IRQCHIP:
		return irqchip(vm, arg, true);
		GET(KVM_GET_PIT2, vm->pit);
		SET(KVM_SET_PIT2, vm->pit, false);
		GET(KVM_GET_CLOCK, vm->clock);
		SET(KVM_SET_CLOCK, vm->clock, ((struct kvm_clock_data *)arg)->flags);
	case KVM_SET_USER_MEMORY_REGION:
		return set_slot(vm, arg);
	case KVM_GET_DIRTY_LOG:
		return dirty_log(vm, arg);
	case KVM_IRQ_LINE:
		return irq_line(vm, arg);
	case KVM_SET_IDENTITY_MAP_ADDR:
	case KVM_SET_TSS_ADDR:
	case KVM_ENABLE_CAP:
	case KVM_CREATE_IRQCHIP:
	case KVM_SET_GSI_ROUTING:
	case KVM_CREATE_PIT2:
	case KVM_CLEAR_DIRTY_LOG:
	case KVM_IRQFD:
	case KVM_IOEVENTFD:
		return 0;
	default:
		return vcpu_request(&f->vcpu, request, arg);
	}
}

int __real_ioctl(int fd, unsigned long request, ...);
int __wrap_ioctl(int fd, unsigned long request, ...);
int __wrap_ioctl(int fd, unsigned long request, ...)
{
	va_list ap;
	void *arg;
	int ret;

	va_start(ap, request);
	arg = va_arg(ap, void *);
	va_end(ap);
	if (_IOC_TYPE(request) != KVMIO)
		return __real_ioctl(fd, request, arg);
	ret = request_of(fd, request, arg);
	if (ret >= 0)
		return ret;
	errno = -ret;
	return -1;
}

void fake_kvm_cpuid(struct cpuid *out, uint32_t vcpus)
{
	static struct cpuid host;
	struct errmsg err = {""};
	struct kvm_caps caps;
	int fd = __wrap_kvm_open(&caps, &err);

	fuzz_need(cpuid_host(&host, fd, "", &err) == 0 && cpuid_build(out, &host, vcpus, &err) == 0,
		  "the CPU: %s", err.text);
	close(fd);
}
