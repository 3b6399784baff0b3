/* SPDX-License-Identifier: MIT */
/*
 * Registers of the boot vCPU. The others wait for their startup IPI as KVM made them.
 */
#include <errno.h>
#include <linux/kvm.h>
#include <string.h>

#include "boot_image.h"
#include "boot_layout.h"
#include "msr.h"

#define CR0_PE (1ULL << 0)
#define CR0_ET (1ULL << 4) /* hard-wired */
#define CR0_PG (1ULL << 31)
#define CR4_PAE (1ULL << 5)
#define EFER_LME (1ULL << 8)
#define EFER_LMA (1ULL << 10)
#define RFLAGS_FIXED 0x2ULL /* interrupts off */

#define SEG_CODE 0xb /* execute, read, accessed */
#define SEG_DATA 0x3 /* read, write, accessed */
#define SEG_TSS_BUSY 0xb

#define MSR_MTRR_DEF_TYPE 0x2ffU
#define MTRR_ENABLE (1ULL << 11)
#define MTRR_WRITE_BACK 6ULL

static struct kvm_segment flat_segment(uint16_t selector, uint8_t type, bool is_64)
{
	return (struct kvm_segment){
		.limit = UINT32_MAX,
		.selector = selector,
		.type = type,
		.present = 1,
		.db = !is_64,
		.s = 1,
		.l = is_64,
		.g = 1,
	};
}

/* The same segment as the CPU would read it from a GDT. */
static uint64_t descriptor(const struct kvm_segment *s)
{
	uint64_t flags = (uint64_t)s->g << 3 | (uint64_t)s->db << 2 | (uint64_t)s->l << 1;
	uint64_t access = (uint64_t)s->present << 7 | (uint64_t)s->s << 4 | s->type;

	return 0xffffULL | access << 40 | 0xfULL << 48 | flags << 52;
}

static int set_sregs(struct vm *vm, const struct boot_regs *regs, struct errmsg *err)
{
	bool is_64 = regs->mode == BOOT_MODE_LONG;
	uint64_t gdt[BOOT_DS / 8 + 1] = {0};
	int fd = vm->vcpu[0].fd;
	struct kvm_sregs sregs;
	int ret;

	ret = kvm_ioctl_ptr(fd, KVM_GET_SREGS, &sregs);
	if (ret)
		return errmsg_set(err, ret, "KVM_GET_SREGS: %s", strerror(-ret));
	sregs.cs = flat_segment(BOOT_CS, SEG_CODE, is_64);
	sregs.ds = flat_segment(BOOT_DS, SEG_DATA, false);
	sregs.es = sregs.fs = sregs.gs = sregs.ss = sregs.ds;
	/* As PVH says; 64-bit mode wants a busy TSS too. */
	sregs.tr = (struct kvm_segment){.limit = 0x67, .type = SEG_TSS_BUSY, .present = 1};
	gdt[BOOT_CS / 8] = descriptor(&sregs.cs);
	gdt[BOOT_DS / 8] = descriptor(&sregs.ds);
	sregs.gdt = (struct kvm_dtable){.base = BOOT_GDT_GPA, .limit = sizeof(gdt) - 1};
	sregs.idt = (struct kvm_dtable){0};
	sregs.cr0 = CR0_PE | CR0_ET;
	sregs.cr3 = 0;
	sregs.cr4 = 0;
	sregs.efer = 0;
	if (is_64) {
		sregs.cr0 |= CR0_PG;
		sregs.cr3 = BOOT_PML4_GPA;
		sregs.cr4 = CR4_PAE;
		sregs.efer = EFER_LME | EFER_LMA;
	}
	ret = ram_write(&vm->ram, BOOT_GDT_GPA, gdt, sizeof(gdt));
	if (ret)
		return errmsg_set(err, ret, "writing the boot GDT: %s", strerror(-ret));
	ret = kvm_ioctl_ptr(fd, KVM_SET_SREGS, &sregs);
	if (ret)
		return errmsg_set(err, ret, "KVM_SET_SREGS for boot: %s", strerror(-ret));
	return 0;
}

/*
 * Firmware would have set the MTRRs; where they are off Linux does without PAT. A KVM or a CPUID
 * that has no MTRRs refuses the MSR, and the guest does not miss it.
 */
static void set_memory_types(struct vm *vm)
{
	for (uint32_t i = 0; i < vm->n_vcpus; i++) {
		if (msr_set(vm->vcpu[i].fd, MSR_MTRR_DEF_TYPE, MTRR_ENABLE | MTRR_WRITE_BACK))
			log_debug("vCPU %u: KVM takes no MTRR default type", i);
	}
}

int boot_set_regs(struct vm *vm, const struct boot_regs *regs, struct errmsg *err)
{
	const struct kvm_regs r = {
		.rip = regs->rip,
		.rbx = regs->rbx,
		.rsi = regs->rsi,
		.rflags = RFLAGS_FIXED,
	};
	int ret;

	ret = set_sregs(vm, regs, err);
	if (ret)
		return ret;
	ret = kvm_ioctl_ptr(vm->vcpu[0].fd, KVM_SET_REGS, &r);
	if (ret)
		return errmsg_set(err, ret, "KVM_SET_REGS for boot: %s", strerror(-ret));
	set_memory_types(vm);
	return 0;
}
