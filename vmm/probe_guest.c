/* SPDX-License-Identifier: MIT */
/*
 * Theory of operation: a KVM that is incomplete may spin on an instruction for ever, so each run is
 * bounded by a timer. Its signal is blocked in this thread and let through by KVM_RUN only
 * (KVM_SET_SIGNAL_MASK): it makes KVM_RUN return EINTR, no handler ever runs, and the pending
 * signal is taken back before the thread's mask is restored. Nothing of the process changes.
 */
#include "probe_guest.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kvm.h"
#include "probe_code.h"
#include "util.h"

#define GUEST_PML4 0x1000U
#define GUEST_PDPT 0x2000U
#define GUEST_PD 0x3000U
#define GUEST_GDT 0x4000U
#define GUEST_IDT 0x5000U
#define GUEST_TSS 0x6000U
#define GUEST_CODE 0xa000U
#define GUEST_STACK 0xd000U
#define GUEST_USER_STACK 0xf000U

#define SELECTOR_CODE 0x08
#define SELECTOR_DATA 0x10
#define SELECTOR_TSS 0x30

#define TSS_SIZE 104U /* no I/O bitmap */

#define PTE_FLAGS 0x67U /* present, writable, user, accessed, dirty */
#define PDE_LARGE 0x80U

#define CR0_VALUE 0x80010033U /* PE MP ET NE WP PG */
#define CR4_VALUE 0x620U      /* PAE OSFXSR OSXMMEXCPT */
#define CR4_OSXSAVE (1U << 18)
#define EFER_VALUE 0x501U /* SCE LME LMA */

#define CPUID_XSAVE (1U << 26) /* leaf 1, ECX */
#define CPUID_ENTRIES 256U
#define TIMER_SIGNAL SIGALRM
#define KERNEL_SIGSET_SIZE 8U

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

static void put64(struct probe_guest *g, uint32_t gpa, uint64_t value)
{
	memcpy(g->mem + gpa, &value, sizeof(value));
}

static void set_gate(struct probe_guest *g, unsigned vector, const uint8_t *label)
{
	uint64_t addr = GUEST_CODE + (uint64_t)(label - probe_code);
	uint64_t low = (addr & 0xffff) | (uint64_t)SELECTOR_CODE << 16 |
		       (uint64_t)0xee00 << 32 /* present, DPL 3, interrupt gate */ |
		       (addr >> 16 & 0xffff) << 48;

	put64(g, GUEST_IDT + vector * 16, low);
	put64(g, GUEST_IDT + vector * 16 + 8, addr >> 32);
}

static void fill_memory(struct probe_guest *g)
{
	static const uint64_t gdt[] = {
		0,
		0x00af9b000000ffff, /* 0x08 ring-0 code */
		0x00cf93000000ffff, /* 0x10 ring-0 data */
		0,		    /* 0x18 sysret's base */
		0x00cff3000000ffff, /* 0x20 ring-3 data */
		0x00affb000000ffff, /* 0x28 ring-3 code */
	};

	put64(g, GUEST_PML4, GUEST_PDPT | PTE_FLAGS);
	put64(g, GUEST_PDPT, GUEST_PD | PTE_FLAGS);
	put64(g, GUEST_PD, 0 | PTE_FLAGS | PDE_LARGE);
	memcpy(g->mem + GUEST_GDT, gdt, sizeof(gdt));
	put64(g, GUEST_TSS + 4, GUEST_STACK); /* RSP0 */
	g->mem[GUEST_TSS + 102] = TSS_SIZE;   /* where the I/O bitmap would be */
	memcpy(g->mem + GUEST_CODE, probe_code, (size_t)(probe_code_end - probe_code));
}

static int make_timer(struct probe_guest *g)
{
	struct sigevent ev = {
		.sigev_notify = SIGEV_THREAD_ID,
		.sigev_signo = TIMER_SIGNAL,
	};
	union {
		struct kvm_signal_mask mask;
		uint8_t bytes[sizeof(struct kvm_signal_mask) + KERNEL_SIGSET_SIZE];
	} m = {0};
	sigset_t set;

	ev.sigev_notify_thread_id = gettid();
	if (timer_create(CLOCK_MONOTONIC, &ev, &g->timer))
		return -errno;
	g->has_timer = true;

	pthread_sigmask(SIG_SETMASK, NULL, &set);
	sigdelset(&set, TIMER_SIGNAL);
	m.mask.len = KERNEL_SIGSET_SIZE;
	memcpy(m.bytes + sizeof(struct kvm_signal_mask), &set, KERNEL_SIGSET_SIZE);
	return kvm_ioctl_ptr(g->vcpu_fd, KVM_SET_SIGNAL_MASK, &m);
}

static int make_vcpu(struct probe_guest *g)
{
	int size = kvm_ioctl(g->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
	void *run;
	int ret;

	if (size < (int)sizeof(struct kvm_run))
		return size < 0 ? size : -EPROTO;
	g->vcpu_fd = kvm_ioctl(g->vm_fd, KVM_CREATE_VCPU, 0);
	if (g->vcpu_fd < 0)
		return g->vcpu_fd;
	run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, g->vcpu_fd, 0);
	if (run == MAP_FAILED)
		return -errno;
	g->run = run;
	g->run_size = (size_t)size;

	g->cpuid = calloc(1, sizeof(*g->cpuid) + CPUID_ENTRIES * sizeof(g->cpuid->entries[0]));
	if (!g->cpuid)
		return -ENOMEM;
	g->cpuid->nent = CPUID_ENTRIES;
	ret = kvm_ioctl_ptr(g->kvm_fd, KVM_GET_SUPPORTED_CPUID, g->cpuid);
	if (!ret)
		ret = kvm_ioctl_ptr(g->vcpu_fd, KVM_SET_CPUID2, g->cpuid);
	if (!ret)
		ret = kvm_ioctl_ptr(g->vcpu_fd, KVM_GET_SREGS, &g->sregs0);
	return ret;
}

int probe_guest_set_flags(struct probe_guest *g, uint32_t flags)
{
	struct kvm_userspace_memory_region slot = {
		.slot = 0,
		.flags = flags,
		.guest_phys_addr = 0,
		.memory_size = PROBE_GUEST_SIZE,
		.userspace_addr = (uintptr_t)g->mem,
	};

	return kvm_ioctl_ptr(g->vm_fd, KVM_SET_USER_MEMORY_REGION, &slot);
}

int probe_guest_init(struct probe_guest *g, int kvm_fd, const struct probe_guest_opt *opt)
{
	void *mem;
	int ret;

	*g = (struct probe_guest){.kvm_fd = kvm_fd, .vm_fd = -1, .vcpu_fd = -1};
	mem = mmap(NULL, PROBE_GUEST_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
		   0);
	if (mem == MAP_FAILED)
		return -errno;
	g->mem = mem;

	ret = kvm_ioctl(kvm_fd, KVM_CREATE_VM, 0);
	if (ret < 0)
		goto fail;
	g->vm_fd = ret;
	if (opt && opt->cap) {
		struct kvm_enable_cap cap = {.cap = opt->cap, .args = {opt->arg}};

		ret = kvm_ioctl_ptr(g->vm_fd, KVM_ENABLE_CAP, &cap);
		if (ret)
			goto fail;
	}
	fill_memory(g);
	ret = probe_guest_set_flags(g, 0);
	if (!ret)
		ret = make_vcpu(g);
	if (!ret)
		ret = make_timer(g);
	if (!ret)
		return 0;
fail:
	probe_guest_destroy(g);
	return ret;
}

void probe_guest_destroy(struct probe_guest *g)
{
	if (g->has_timer)
		timer_delete(g->timer);
	if (g->run)
		munmap(g->run, g->run_size);
	if (g->vcpu_fd >= 0)
		close(g->vcpu_fd);
	if (g->vm_fd >= 0)
		close(g->vm_fd);
	if (g->mem)
		munmap(g->mem, PROBE_GUEST_SIZE);
	free(g->cpuid);
	*g = (struct probe_guest){.vm_fd = -1, .vcpu_fd = -1};
}

uint32_t probe_guest_cpuid(const struct probe_guest *g, uint32_t leaf, enum probe_cpuid_reg reg)
{
	for (uint32_t i = 0; i < g->cpuid->nent; i++) {
		const struct kvm_cpuid_entry2 *e = &g->cpuid->entries[i];
		const uint32_t value[] = {
			[PROBE_EAX] = e->eax,
			[PROBE_EBX] = e->ebx,
			[PROBE_ECX] = e->ecx,
			[PROBE_EDX] = e->edx,
		};

		if (e->function == leaf && e->index == 0)
			return value[reg];
	}
	return 0;
}

static int set_registers(struct probe_guest *g, const struct probe_entry *e)
{
	struct kvm_sregs s = g->sregs0;
	struct kvm_segment code = {
		.limit = 0xffffffff,
		.selector = e->user ? PROBE_SELECTOR_USER_CODE : SELECTOR_CODE,
		.type = 11,
		.present = 1,
		.dpl = e->user ? 3 : 0,
		.s = 1,
		.l = 1,
		.g = 1,
	};
	struct kvm_segment data = code;
	struct kvm_regs r = {
		.rip = GUEST_CODE + (uint64_t)(e->code - probe_code),
		.rsp = e->user ? GUEST_USER_STACK : GUEST_STACK,
		.rflags = 2,
		.rcx = e->rcx,
		.rdi = PROBE_GUEST_DATA,
		.rsi = GUEST_USER_STACK,
	};
	int ret;

	data.selector = e->user ? PROBE_SELECTOR_USER_DATA : SELECTOR_DATA;
	data.type = 3;
	data.l = 0;
	data.db = 1;
	s.cs = code;
	s.ds = s.es = s.fs = s.gs = s.ss = data;
	s.tr = (struct kvm_segment){
		.base = GUEST_TSS,
		.limit = TSS_SIZE - 1,
		.selector = SELECTOR_TSS,
		.type = 11,
		.present = 1,
	};
	s.gdt = (struct kvm_dtable){.base = GUEST_GDT, .limit = 6 * 8 - 1};
	s.idt = (struct kvm_dtable){.base = GUEST_IDT, .limit = 256 * 16 - 1};
	s.cr0 = CR0_VALUE;
	s.cr3 = GUEST_PML4;
	s.cr4 = CR4_VALUE;
	if (probe_guest_cpuid(g, 1, PROBE_ECX) & CPUID_XSAVE)
		s.cr4 |= CR4_OSXSAVE;
	s.efer = EFER_VALUE;

	ret = kvm_ioctl_ptr(g->vcpu_fd, KVM_SET_SREGS, &s);
	return ret ? ret : kvm_ioctl_ptr(g->vcpu_fd, KVM_SET_REGS, &r);
}

/* Once the timer is off: takes its signal if it came meanwhile. */
static bool take_signal(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, TIMER_SIGNAL);
	return sigtimedwait(&set, NULL, &(struct timespec){0}) == TIMER_SIGNAL;
}

static enum guest_end read_exit(struct probe_guest *g)
{
	const struct kvm_run *run = g->run;

	switch (run->exit_reason) {
	case KVM_EXIT_MMIO:
		if (!run->mmio.is_write || run->mmio.len != 1)
			break;
		g->value = run->mmio.data[0];
		if (run->mmio.phys_addr == PROBE_DONE)
			return GUEST_DONE;
		if (run->mmio.phys_addr == PROBE_FAULT)
			return GUEST_FAULT;
		break;
	case KVM_EXIT_INTERNAL_ERROR:
		g->value = run->internal.suberror;
		return GUEST_INTERNAL;
	case KVM_EXIT_SHUTDOWN:
		return GUEST_SHUTDOWN;
	}
	g->value = run->exit_reason;
	return GUEST_OTHER;
}

static enum guest_end run_bounded(struct probe_guest *g)
{
	const struct itimerspec on = {.it_value.tv_nsec = PROBE_GUEST_LIMIT_NS}, off = {0};
	enum guest_end end;
	sigset_t block, old;
	bool late = false;
	int ret;

	sigemptyset(&block);
	sigaddset(&block, TIMER_SIGNAL);
	pthread_sigmask(SIG_BLOCK, &block, &old);
	timer_settime(g->timer, 0, &on, NULL);
	do {
		ret = ioctl(g->vcpu_fd, KVM_RUN, 0) < 0 ? errno : 0;
		if (ret == EINTR)
			late = take_signal();
	} while (ret == EINTR && !late);
	timer_settime(g->timer, 0, &off, NULL);
	(void)take_signal();

	if (late) {
		end = GUEST_HANG;
	} else if (ret) {
		g->value = (unsigned)ret;
		end = GUEST_ERROR;
	} else {
		end = read_exit(g);
		/* Let KVM finish the store, or it would do so after the next registers are set. */
		g->run->immediate_exit = 1;
		(void)ioctl(g->vcpu_fd, KVM_RUN, 0);
		g->run->immediate_exit = 0;
	}
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return end;
}

enum guest_end probe_guest_run(struct probe_guest *g, const struct probe_entry *e)
{
	int ret;

	for (unsigned v = 0; v < 32; v++)
		set_gate(g, v, probe_code_stubs + v * PROBE_STUB_SIZE);
	if (e->handler)
		set_gate(g, e->vector, e->handler);
	memset(g->mem + PROBE_GUEST_DATA, 0, PAGE_SIZE);
	g->value = 0;
	ret = set_registers(g, e);
	if (ret) {
		g->value = (unsigned)-ret;
		g->end = GUEST_ERROR;
	} else {
		g->end = run_bounded(g);
	}
	return g->end;
}

const char *probe_guest_describe(const struct probe_guest *g, char *buf, size_t len)
{
	switch (g->end) {
	case GUEST_DONE:
		snprintf(buf, len, "%s", g->value == PROBE_PASS ? "works" : "gives a wrong result");
		break;
	case GUEST_FAULT:
		snprintf(buf, len, "ends in exception %u", g->value);
		break;
	case GUEST_INTERNAL:
		snprintf(buf, len, "ends in KVM_EXIT_INTERNAL_ERROR");
		break;
	case GUEST_SHUTDOWN:
		snprintf(buf, len, "ends in a triple fault");
		break;
	case GUEST_HANG:
		snprintf(buf, len, "hangs");
		break;
	case GUEST_OTHER:
		snprintf(buf, len, "ends in KVM exit reason %u", g->value);
		break;
	case GUEST_ERROR:
		snprintf(buf, len, "ends in an error of KVM: %s", strerror((int)g->value));
		break;
	}
	return buf;
}
