/* SPDX-License-Identifier: MIT */
/*
 * A real machine on /dev/kvm for unit tests: vm_create() as godwit does it, and a vCPU in 64-bit
 * mode that runs a few instructions of the test's.
 *
 * Guest-physical: page tables from 0x1000 on (the first GiB and the one from 4 GiB on, mapped to
 * themselves), GDT at 0x5000, code at 0x8000, stack below 0x10000.
 */
#ifndef GODWIT_TESTS_KVM_FIXTURE_H
#define GODWIT_TESTS_KVM_FIXTURE_H

#include <errno.h>
#include <linux/kvm.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "../kvm.h"
#include "../vm.h"
#include "check-main.h"

#define KVM_CODE 0x8000U
/* A write to it is the end of kvm_guest_store(): a port, or where there is no RAM. */
#define KVM_DONE_PORT 0x90U
#define KVM_DONE_GPA (RAM_HIGH_BASE + 512 * MIB)

struct machine {
	struct loop loop;
	struct cpuid host, cpuid;
	struct vm *vm;
	struct errmsg err;
};

static inline bool kvm_here(void)
{
	return access("/dev/kvm", R_OK | W_OK) == 0;
}

static inline bool kvm_has_dirty_ring(void)
{
	struct errmsg err = {""};
	struct kvm_caps caps;
	int fd = kvm_open(&caps, &err);

	if (fd >= 0)
		close(fd);
	return fd >= 0 && caps.dirty_ring;
}

/* A test asks for no more than it needs: the table of a host is built once a machine. */
static inline struct machine *machine_new_dirty(uint64_t ram_size, uint32_t vcpus,
						struct dirty_config dirty)
{
	struct machine *m = calloc(1, sizeof(*m));
	struct vm_config cfg = {
		.name = "test", .ram_size = ram_size, .vcpus = vcpus, .dirty = dirty};
	struct kvm_caps caps;
	int fd;

	ck_assert_ptr_nonnull(m);
	fd = kvm_open(&caps, &m->err);
	ck_assert_msg(fd >= 0, "%s", m->err.text);
	ck_assert_int_eq(cpuid_host(&m->host, fd, "", &m->err), 0);
	close(fd);
	ck_assert_int_eq(cpuid_build(&m->cpuid, &m->host, vcpus, &m->err), 0);
	ck_assert_int_eq(loop_init(&m->loop), 0);
	ck_assert_msg(vm_create(&m->vm, &cfg, &m->cpuid, &m->loop, &m->err) == 0, "%s",
		      m->err.text);
	return m;
}

static inline struct machine *machine_new(uint64_t ram_size, uint32_t vcpus)
{
	return machine_new_dirty(ram_size, vcpus, (struct dirty_config){.how = DIRTY_LOG});
}

static inline void machine_free(struct machine *m)
{
	vm_destroy(m->vm);
	loop_destroy(&m->loop);
	free(m);
}

static inline void kvm_must(int fd, unsigned long request, void *arg, const char *what)
{
	int ret = kvm_ioctl_ptr(fd, request, arg);

	ck_assert_msg(ret >= 0, "%s: %s", what, strerror(-ret));
}
#define KVM_MUST(fd, request, arg) kvm_must(fd, request, arg, #request)

static inline void put64(struct ram *ram, uint64_t gpa, uint64_t value)
{
	ck_assert_int_eq(ram_write(ram, gpa, &value, sizeof(value)), 0);
}

/*
 * Page tables (marked as used, so that the processor does not store to them later), GDT and the
 * segment registers of 64-bit ring 0.
 */
static inline void machine_long_mode(struct machine *m, unsigned id)
{
	struct kvm_segment code = {.limit = UINT32_MAX,
				   .selector = 8,
				   .type = 11,
				   .present = 1,
				   .s = 1,
				   .l = 1,
				   .g = 1};
	struct kvm_segment data = {.limit = UINT32_MAX,
				   .selector = 16,
				   .type = 3,
				   .present = 1,
				   .db = 1,
				   .s = 1,
				   .g = 1};
	struct ram *ram = &m->vm->ram;
	int fd = m->vm->vcpu[id].fd;
	struct kvm_sregs s;

	put64(ram, 0x1000, 0x2000 | 0x27);
	put64(ram, 0x2000, 0x3000 | 0x27);
	put64(ram, 0x2000 + 4 * 8, 0x4000 | 0x27);
	for (uint64_t i = 0; i < 512; i++) {
		put64(ram, 0x3000 + i * 8, i * 2 * MIB | 0xe7);
		put64(ram, 0x4000 + i * 8, (RAM_HIGH_BASE + i * 2 * MIB) | 0xe7);
	}
	put64(ram, 0x5000, 0);
	put64(ram, 0x5008, 0x00af9b000000ffff);
	put64(ram, 0x5010, 0x00cf93000000ffff);

	KVM_MUST(fd, KVM_GET_SREGS, &s);
	s.cs = code;
	s.ds = s.es = s.fs = s.gs = s.ss = data;
	s.gdt.base = 0x5000;
	s.gdt.limit = 0x17;
	s.cr3 = 0x1000;
	s.cr4 = 1 << 5;
	s.efer = 0x500;
	s.cr0 = 0x80010033;
	KVM_MUST(fd, KVM_SET_SREGS, &s);
}

/* Has vCPU id continue at KVM_CODE with these instructions and registers. */
static inline void machine_code(struct machine *m, unsigned id, const void *code, size_t len,
				const struct kvm_regs *regs)
{
	struct kvm_regs r = *regs;

	machine_long_mode(m, id);
	ck_assert_int_eq(ram_write(&m->vm->ram, KVM_CODE, code, len), 0);
	r.rip = KVM_CODE;
	r.rsp = 0x10000;
	r.rflags = 2;
	KVM_MUST(m->vm->vcpu[id].fd, KVM_SET_REGS, &r);
}

/*
 * The guest itself stores 8 bytes at gpa, in this thread and at once: its threads must not have
 * been started. machine_store_code() first, once.
 */
static inline void kvm_guest_store(struct vm *vm, uint64_t gpa, uint64_t value)
{
	struct kvm_regs r = {.rip = KVM_CODE,
			     .rsp = 0x10000,
			     .rflags = 2,
			     .rdi = gpa,
			     .rsi = KVM_DONE_GPA,
			     .rax = value};
	struct vcpu *v = &vm->vcpu[0];
	const struct kvm_run *run = v->run;
	bool full;
	int ret;

	KVM_MUST(v->fd, KVM_SET_REGS, &r);
	/* The exit of the time before was never completed; there is nothing to be done for it. */
	do {
		ret = ioctl(v->fd, KVM_RUN, 0);
		full = ret == 0 && run->exit_reason == KVM_EXIT_DIRTY_RING_FULL;
		ck_assert(!full || dirty_ring_full(v) == 0);
	} while (full || (ret < 0 && errno == EINTR));
	ck_assert_msg(ret == 0, "KVM_RUN: %s", strerror(errno));
	ck_assert_msg(
		(run->exit_reason == KVM_EXIT_IO && run->io.port == KVM_DONE_PORT) ||
			(run->exit_reason == KVM_EXIT_MMIO && run->mmio.phys_addr == KVM_DONE_GPA),
		"the guest left by exit %u", run->exit_reason);
	ck_assert(memcmp(ram_ptr(&vm->ram, gpa, sizeof(value)), &value, sizeof(value)) == 0);
}

static inline void machine_store_code(struct machine *m)
{
	/* mov %rax, (%rdi); out %al, $0x90; jmp . */
	static const uint8_t code[] = {0x48, 0x89, 0x07, 0xe6, KVM_DONE_PORT, 0xeb, 0xfe};

	machine_code(m, 0, code, sizeof(code), &(struct kvm_regs){0});
}

/*
 * The same in ring 3: where ring 0 is emulated, its stores are found dirty whether their pages are
 * write-protected or not.
 */
static inline void machine_user_store_code(struct machine *m)
{
	/* mov %rax, (%rdi); mov %al, (%rsi); jmp . */
	static const uint8_t code[] = {0x48, 0x89, 0x07, 0x88, 0x06, 0xeb, 0xfe};
	int fd = m->vm->vcpu[0].fd;
	struct kvm_sregs s;

	machine_code(m, 0, code, sizeof(code), &(struct kvm_regs){0});
	KVM_MUST(fd, KVM_GET_SREGS, &s);
	s.cs.selector = 0x1b;
	s.ds.selector = s.es.selector = s.fs.selector = s.gs.selector = s.ss.selector = 0x23;
	s.cs.dpl = s.ds.dpl = s.es.dpl = s.fs.dpl = s.gs.dpl = s.ss.dpl = 3;
	KVM_MUST(fd, KVM_SET_SREGS, &s);
}

#endif
