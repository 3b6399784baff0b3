/* SPDX-License-Identifier: MIT */
/*
 * A vCPU's state on real KVM: what one machine had another one has after a load, register by
 * register as KVM shows them; and a stop leaves no access half done.
 */
#include "../vcpu.h"

#include <stdatomic.h>

#include "../msr.h"
#include "kvm-fixture.h"

#define RAM_SIZE RAM_MIN

/* ---- state ---- */

/* Values that no fresh vCPU has, each its own, so that none can be lost or change places. */
static void set_regs(int fd)
{
	struct kvm_regs r = {
		.rax = 0x1111111111111101,
		.rbx = 0x1111111111111102,
		.rcx = 0x1111111111111103,
		.rdx = 0x1111111111111104,
		.rsi = 0x1111111111111105,
		.rdi = 0x1111111111111106,
		.rsp = 0x1111111111111107,
		.rbp = 0x1111111111111108,
		.r8 = 0x1111111111111109,
		.r9 = 0x111111111111110a,
		.r10 = 0x111111111111110b,
		.r11 = 0x111111111111110c,
		.r12 = 0x111111111111110d,
		.r13 = 0x111111111111110e,
		.r14 = 0x111111111111110f,
		.r15 = 0x1111111111111110,
		.rip = 0x8000,
		.rflags = 0x40ad7,
	};

	KVM_MUST(fd, KVM_SET_REGS, &r);
}

static void set_sregs(struct machine *m, unsigned id)
{
	int fd = m->vm->vcpu[id].fd;
	struct kvm_sregs s;

	machine_long_mode(m, id);
	KVM_MUST(fd, KVM_GET_SREGS, &s);
	s.ds.base = 0x11000;
	s.es.base = 0x22000;
	s.fs.base = 0x33000;
	s.gs.base = 0x44000;
	s.es.limit = 0x7ffff;
	s.fs.selector = 0x18;
	s.tr.base = 0x55000;
	s.tr.limit = 0x67;
	s.tr.selector = 0x20;
	s.ldt.base = 0x66000;
	s.ldt.limit = 0x1f;
	s.ldt.selector = 0x28;
	s.ldt.present = 1;
	s.ldt.type = 2;
	s.ldt.unusable = 0;
	s.gdt.limit = 0x37;
	s.idt.base = 0x77000;
	s.idt.limit = 0xfff;
	s.cr2 = 0x1234567890;
	s.cr8 = 5;
	s.cr4 = 0x620;
	s.efer |= 1;
	KVM_MUST(fd, KVM_SET_SREGS, &s);
}

/*
 * FXSAVE's layout. By KVM_SET_FPU alone KVM would not know that these components are in use, and
 * give their initial state away.
 */
static void set_fpu(struct machine *m, int fd)
{
	size_t size = MAX((size_t)m->vm->caps.xsave_size, sizeof(struct kvm_xsave));
	bool wide = m->vm->caps.xsave_size > (int)sizeof(struct kvm_xsave);
	static const uint16_t fcw = 0x27f, fsw = 0x3800;
	static const uint32_t mxcsr = 0x1f00;
	uint8_t *area = calloc(1, size);

	ck_assert_ptr_nonnull(area);
	KVM_MUST(fd, wide ? KVM_GET_XSAVE2 : KVM_GET_XSAVE, area);
	memcpy(area, &fcw, 2);
	memcpy(area + 2, &fsw, 2);
	area[4] = 0xff;
	memcpy(area + 24, &mxcsr, 4);
	for (unsigned i = 0; i < 8; i++)
		memset(area + 32 + i * 16, 0x10 + (int)i, 10);
	for (unsigned i = 0; i < 16; i++)
		memset(area + 160 + i * 16, 0x80 + (int)i, 16);
	area[512] |= 3;
	KVM_MUST(fd, KVM_SET_XSAVE, area);
	free(area);
}

/* What vector registers there are beyond the FPU's. */
static void set_upper_halves(struct machine *m, int fd)
{
	size_t size = MAX((size_t)m->vm->caps.xsave_size, sizeof(struct kvm_xsave));
	bool wide = m->vm->caps.xsave_size > (int)sizeof(struct kvm_xsave);
	uint8_t *area = calloc(1, size);
	struct kvm_xcrs xcrs = {0};
	uint64_t bv;

	ck_assert_ptr_nonnull(area);
	if (kvm_ioctl_ptr(fd, KVM_GET_XCRS, &xcrs) == 0 && xcrs.nr_xcrs &&
	    cpuid_find(&m->cpuid, 0xd, 0) && (cpuid_find(&m->cpuid, 0xd, 0)->eax & 4)) {
		const struct kvm_cpuid_entry2 *ymm = cpuid_find(&m->cpuid, 0xd, 2);

		xcrs.xcrs[0].value = 7;
		KVM_MUST(fd, KVM_SET_XCRS, &xcrs);
		KVM_MUST(fd, wide ? KVM_GET_XSAVE2 : KVM_GET_XSAVE, area);
		memcpy(&bv, area + 512, 8);
		bv |= 4;
		memcpy(area + 512, &bv, 8);
		for (unsigned i = 0; i < 16; i++)
			memset(area + ymm->ebx + i * 16, 0xc0 + (int)i, 16);
		KVM_MUST(fd, KVM_SET_XSAVE, area);
	}
	free(area);
}

static void set_debugregs(int fd)
{
	struct kvm_debugregs d = {.db = {0x1000, 0x2000, 0x3000, 0x4000}, .dr6 = 0xffff4ff0};

	d.dr7 = 0x400;
	KVM_MUST(fd, KVM_SET_DEBUGREGS, &d);
}

static void set_lapic(int fd)
{
	static const struct {
		unsigned offset;
		uint32_t value;
	} regs[] = {
		{0xd0, 0x02000000},
		{0xf0, 0x1ff},
		{0x280, 0},
		{0x310, 0x03000000},
		{0x320, 0x100f1},
		{0x340, 0x100f2},
		{0x350, 0x10700},
		{0x360, 0x10400},
		{0x370, 0x100f3},
		{0x380, 0},
		{0x3e0, 0xb},
		/* Pending and in service. */
		{0x210, 0x00020000},
		{0x120, 0x01000000},
	};
	struct kvm_lapic_state l;

	KVM_MUST(fd, KVM_GET_LAPIC, &l);
	for (size_t i = 0; i < ARRAY_SIZE(regs); i++)
		memcpy(l.regs + regs[i].offset, &regs[i].value, 4);
	KVM_MUST(fd, KVM_SET_LAPIC, &l);
}

static const struct {
	uint32_t index;
	uint64_t value;
} msrs[] = {
	{0x174, 0x10},			  /* SYSENTER_CS */
	{0x175, 0xffff800000111000},	  /* SYSENTER_ESP */
	{0x176, 0xffff800000222000},	  /* SYSENTER_EIP */
	{0xc0000081, 0x0023001000000000}, /* STAR */
	{0xc0000082, 0xffff800000333000}, /* LSTAR */
	{0xc0000083, 0xffff800000444000}, /* CSTAR */
	{0xc0000084, 0x47700},		  /* SFMASK */
	{0xc0000102, 0xffff800000555000}, /* KERNEL_GS_BASE */
	{0xc0000103, 3},		  /* TSC_AUX */
	{0x277, 0x0007010600070106},	  /* PAT */
	{0x200, 0x80000006},		  /* MTRR base */
	{0x201, 0xfffff80000800},	  /* MTRR mask */
	{0x2ff, 0xc06},			  /* MTRR default */
	{0x1d9, 1},			  /* DEBUGCTL */
};

/* Is it the guest's at all? KVM lists those of features that it offers; of MTRRs it lists none. */
static bool is_listed(struct machine *m, uint32_t index)
{
	static struct {
		uint32_t n;
		uint32_t index[4096];
	} list;

	list.n = ARRAY_SIZE(list.index);
	KVM_MUST(m->vm->kvm_fd, KVM_GET_MSR_INDEX_LIST, &list);
	for (uint32_t i = 0; i < list.n; i++) {
		if (list.index[i] == index)
			return true;
	}
	return index >= 0x200 && index <= 0x2ff;
}

static void set_msrs(struct machine *m, int fd)
{
	unsigned taken = 0;

	for (size_t i = 0; i < ARRAY_SIZE(msrs); i++)
		taken += is_listed(m, msrs[i].index) &&
			 msr_set(fd, msrs[i].index, msrs[i].value) == 0;
	ck_assert_msg(taken >= 8, "this KVM takes %u of %zu MSRs", taken, ARRAY_SIZE(msrs));
}

static void set_events(int fd)
{
	struct kvm_vcpu_events e;

	KVM_MUST(fd, KVM_GET_VCPU_EVENTS, &e);
	e.exception.injected = 1;
	e.exception.nr = 14;
	e.exception.has_error_code = 1;
	e.exception.error_code = 6;
	e.nmi.pending = 1;
	e.nmi.masked = 1;
	e.interrupt.shadow = KVM_X86_SHADOW_INT_STI;
	e.sipi_vector = 0x9a;
	e.flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SIPI_VECTOR |
		  KVM_VCPUEVENT_VALID_SHADOW;
	KVM_MUST(fd, KVM_SET_VCPU_EVENTS, &e);
}

/* The state of a vCPU as KVM shows it. */
struct view {
	struct kvm_mp_state mp;
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	struct kvm_fpu fpu;
	struct kvm_xcrs xcrs;
	struct kvm_debugregs debugregs;
	struct kvm_lapic_state lapic;
	struct kvm_vcpu_events events;
	uint64_t msr[ARRAY_SIZE(msrs)];
	int msr_ret[ARRAY_SIZE(msrs)];
	uint8_t xsave[16384];
};

static void look(struct machine *m, unsigned id, struct view *w)
{
	bool wide = m->vm->caps.xsave_size > (int)sizeof(struct kvm_xsave);
	int fd = m->vm->vcpu[id].fd;

	memset(w, 0, sizeof(*w));
	KVM_MUST(fd, KVM_GET_MP_STATE, &w->mp);
	KVM_MUST(fd, KVM_GET_REGS, &w->regs);
	KVM_MUST(fd, KVM_GET_SREGS, &w->sregs);
	KVM_MUST(fd, KVM_GET_FPU, &w->fpu);
	KVM_MUST(fd, KVM_GET_XCRS, &w->xcrs);
	KVM_MUST(fd, KVM_GET_DEBUGREGS, &w->debugregs);
	KVM_MUST(fd, KVM_GET_LAPIC, &w->lapic);
	KVM_MUST(fd, KVM_GET_VCPU_EVENTS, &w->events);
	ck_assert_int_le(m->vm->caps.xsave_size, (int)sizeof(w->xsave));
	KVM_MUST(fd, wide ? KVM_GET_XSAVE2 : KVM_GET_XSAVE, w->xsave);
	for (size_t i = 0; i < ARRAY_SIZE(msrs); i++)
		w->msr_ret[i] = msr_get(fd, msrs[i].index, &w->msr[i]);
	/* The timer's current count runs on. */
	memset(w->lapic.regs + 0x390, 0, 4);
}

/* A vCPU in which everything differs from a fresh one. */
static void fill(struct machine *m, unsigned id)
{
	int fd = m->vm->vcpu[id].fd;

	set_sregs(m, id);
	set_regs(fd);
	set_fpu(m, fd);
	set_upper_halves(m, fd);
	set_debugregs(fd);
	set_lapic(fd);
	set_msrs(m, fd);
	set_events(fd);
}

static void save(struct machine *m, unsigned id, struct sbuf *s)
{
	struct errmsg err = {""};

	sb_init_save(s);
	vcpu_fields(&m->vm->vcpu[id], s, &err);
	ck_assert_msg(s->err == 0, "%s: %s", strerror(-s->err), err.text);
}

static void load(struct machine *m, unsigned id, const struct sbuf *s)
{
	struct errmsg err = {""};
	struct sbuf l;

	sb_init_load(&l, s->data, s->len);
	vcpu_fields(&m->vm->vcpu[id], &l, &err);
	sb_end(&l);
	ck_assert_msg(l.err == 0, "%s: %s", strerror(-l.err), err.text);
	ck_assert_int_eq(vcpu_arm_timer(&m->vm->vcpu[id]), 0);
}

#define NEED_SAME(field)                                                                           \
	do {                                                                                       \
		const uint8_t *pa = (const void *)&a.field, *pb = (const void *)&b.field;          \
		size_t at = 0;                                                                     \
                                                                                                   \
		while (at < sizeof(a.field) && pa[at] == pb[at])                                   \
			at++;                                                                      \
		ck_assert_msg(at == sizeof(a.field), #field " differs at byte %zu: %#x, now %#x",  \
			      at, pa[at], pb[at]);                                                 \
	} while (0)

START_TEST(all_of_it_arrives)
{
	static struct view fresh, a, b;
	struct machine *from = machine_new(RAM_SIZE, 2), *to = machine_new(RAM_SIZE, 2);
	struct kvm_mp_state halted = {.mp_state = KVM_MP_STATE_HALTED};
	struct sbuf s, again;

	look(to, 1, &fresh);
	fill(from, 1);
	KVM_MUST(from->vm->vcpu[1].fd, KVM_SET_MP_STATE, &halted);
	look(from, 1, &a);
	/* Else the test would prove nothing. */
	ck_assert(memcmp(&a.regs, &fresh.regs, sizeof(a.regs)) != 0);
	ck_assert(memcmp(&a.sregs, &fresh.sregs, sizeof(a.sregs)) != 0);
	ck_assert(memcmp(&a.fpu, &fresh.fpu, sizeof(a.fpu)) != 0);
	ck_assert(memcmp(&a.lapic, &fresh.lapic, sizeof(a.lapic)) != 0);
	ck_assert(memcmp(&a.debugregs, &fresh.debugregs, sizeof(a.debugregs)) != 0);
	ck_assert(memcmp(&a.events, &fresh.events, sizeof(a.events)) != 0);

	save(from, 1, &s);
	load(to, 1, &s);
	look(to, 1, &b);
	NEED_SAME(mp);
	NEED_SAME(regs);
	NEED_SAME(sregs);
	NEED_SAME(fpu);
	NEED_SAME(xcrs);
	NEED_SAME(xsave);
	NEED_SAME(debugregs);
	NEED_SAME(lapic);
	NEED_SAME(events);
	for (size_t i = 0; i < ARRAY_SIZE(msrs); i++)
		ck_assert_msg(a.msr_ret[i] == b.msr_ret[i] && a.msr[i] == b.msr[i],
			      "MSR %#x: %#llx, now %#llx", msrs[i].index,
			      (unsigned long long)a.msr[i], (unsigned long long)b.msr[i]);
	/* And it would arrive again the same. */
	save(to, 1, &again);
	ck_assert_uint_eq(again.len, s.len);
	ck_assert_mem_eq(again.data, s.data, s.len);
	sb_free(&s);
	sb_free(&again);
	machine_free(from);
	machine_free(to);
}
END_TEST

START_TEST(fresh_one_is_fresh)
{
	static struct view a, b;
	struct machine *from = machine_new(RAM_SIZE, 1), *to = machine_new(RAM_SIZE, 1);
	struct sbuf s;

	look(to, 0, &a);
	save(from, 0, &s);
	load(to, 0, &s);
	look(to, 0, &b);
	NEED_SAME(mp);
	NEED_SAME(regs);
	NEED_SAME(sregs);
	NEED_SAME(lapic);
	NEED_SAME(events);
	sb_free(&s);
	machine_free(from);
	machine_free(to);
}
END_TEST

/* A deadline that was saved is armed by vcpu_arm_timer() only. */
START_TEST(deadline_waits)
{
	struct machine *m = machine_new(RAM_SIZE, 1);
	struct vcpu *v = &m->vm->vcpu[0];
	struct sbuf s;

	save(m, 0, &s);
	v->tsc_deadline = 1234;
	load(m, 0, &s);
	ck_assert_uint_eq(v->tsc_deadline, 0);
	sb_free(&s);
	machine_free(m);
}
END_TEST

START_TEST(truncated)
{
	struct machine *from = machine_new(RAM_SIZE, 1), *to = machine_new(RAM_SIZE, 1);
	struct sbuf s, l;

	fill(from, 0);
	save(from, 0, &s);
	/* Each byte near the ends, where the small fields are; steps in between. */
	for (size_t cut = 0; cut < s.len; cut += cut < 600 || s.len - cut < 200 ? 1 : 61) {
		struct errmsg err = {""};
		uint8_t *exact = malloc(cut + 1);

		ck_assert_ptr_nonnull(exact);
		memcpy(exact, s.data, cut);
		sb_init_load(&l, exact, cut);
		vcpu_fields(&to->vm->vcpu[0], &l, &err);
		ck_assert_msg(l.err, "cut at %zu", cut);
		free(exact);
	}
	sb_free(&s);
	machine_free(from);
	machine_free(to);
}
END_TEST

/* KVM may refuse or take it; the process must live. */
START_TEST(flipped)
{
	struct machine *from = machine_new(RAM_SIZE, 1), *to = machine_new(RAM_SIZE, 1);
	uint64_t rng = 0x9e3779b97f4a7c15;
	struct sbuf s, l;

	fill(from, 0);
	save(from, 0, &s);
	for (unsigned i = 0; i < 400; i++) {
		struct errmsg err = {""};
		uint8_t *at;

		rng ^= rng << 13;
		rng ^= rng >> 7;
		rng ^= rng << 17;
		at = &s.data[rng % s.len];
		*at ^= (uint8_t)(1U << (rng >> 60) % 8);
		sb_init_load(&l, s.data, s.len);
		vcpu_fields(&to->vm->vcpu[0], &l, &err);
		if (i % 8 == 7) {
			sb_free(&s);
			save(from, 0, &s);
		}
	}
	sb_free(&s);
	machine_free(from);
	machine_free(to);
}
END_TEST

START_TEST(hostile_counts)
{
	static const uint32_t counts[] = {0xffffffff, 0x80000000, 0x7fffffff, 100000, 17};
	struct machine *m = machine_new(RAM_SIZE, 1);
	struct sbuf s, l;

	save(m, 0, &s);
	/* Every aligned word that could be a count, the real ones among them. */
	for (size_t i = 0; i < ARRAY_SIZE(counts); i++) {
		for (size_t at = 0; at + 4 <= s.len; at += s.len > 4000 && at > 500 ? 37 : 1) {
			struct errmsg err = {""};
			uint8_t old[4];

			memcpy(old, s.data + at, 4);
			memcpy(s.data + at, &counts[i], 4);
			sb_init_load(&l, s.data, s.len);
			vcpu_fields(&m->vm->vcpu[0], &l, &err);
			memcpy(s.data + at, old, 4);
		}
	}
	sb_free(&s);
	machine_free(m);
}
END_TEST

/* ---- stopping ---- */

/*
 * A device that is in the middle of an access when the stop is asked for: its handler waits until
 * it has been, and another thread asks while it waits.
 */
static struct slow {
	struct vm *vm;
	_Atomic bool in_access;
	_Atomic unsigned accesses;
	uint64_t written;
} slow;

static void wait_for_pause(void)
{
	uint64_t deadline = now_ns() + 10 * NS_PER_SEC;

	slow.accesses++;
	slow.in_access = true;
	while (!(vm_paused(slow.vm) & VM_PAUSE_USER) && now_ns() < deadline)
		usleep(100);
}

static uint64_t slow_read(void *dev, uint64_t offset, unsigned size)
{
	(void)dev;
	(void)offset;
	(void)size;
	wait_for_pause();
	return 0x42;
}

static void slow_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	(void)dev;
	(void)offset;
	(void)size;
	slow.written = value;
	wait_for_pause();
}

#define SLOW_PORT 0x99U
#define SLOW_GPA 0xd0000000ULL

static const struct bus_ops slow_ops = {.read = slow_read, .write = slow_write};

/* Starts the guest and stops it while it is in its first access. */
static void stop_in_access(struct machine *m, const void *code, size_t len,
			   const struct kvm_regs *regs, struct kvm_regs *after)
{
	struct bus_range port = {.base = SLOW_PORT, .len = 1, .name = "slow", .ops = &slow_ops};
	struct bus_range mmio = {.base = SLOW_GPA, .len = 8, .name = "slow", .ops = &slow_ops};
	uint64_t deadline = now_ns() + 10 * NS_PER_SEC;

	slow = (struct slow){.vm = m->vm};
	ck_assert_int_eq(bus_add(&m->vm->pio, &port), 0);
	ck_assert_int_eq(bus_add(&m->vm->mmio, &mmio), 0);
	machine_code(m, 0, code, len, regs);
	/* The last GiB below 4 GiB, where the device is. */
	put64(&m->vm->ram, 0x2000 + 3 * 8, 0x6000 | 7);
	for (uint64_t i = 0; i < 512; i++)
		put64(&m->vm->ram, 0x6000 + i * 8, (3 * GIB + i * 2 * MIB) | 0x97);
	ck_assert_int_eq(vm_start(m->vm, &m->err), 0);
	vm_resume(m->vm, VM_PAUSE_START);
	while (!slow.in_access && now_ns() < deadline)
		usleep(100);
	ck_assert_msg(slow.in_access, "the guest does not get there: %s", m->vm->end_why.text);
	vm_pause(m->vm, VM_PAUSE_USER);
	ck_assert_uint_eq(slow.accesses, 1);
	KVM_MUST(m->vm->vcpu[0].fd, KVM_GET_REGS, after);
}

/* The access that was under way is done in full: the guest would not do it a second time. */
START_TEST(port_read_completes)
{
	/* in $0x99, %al; mov %al, %bl; jmp . */
	static const uint8_t code[] = {0xe4, SLOW_PORT, 0x88, 0xc3, 0xeb, 0xfe};
	struct machine *m = machine_new(RAM_SIZE, 1);
	struct kvm_regs r = {.rax = 0x11, .rbx = 0x22}, after;

	stop_in_access(m, code, sizeof(code), &r, &after);
	ck_assert_uint_ge(after.rip, KVM_CODE + 2);
	ck_assert_uint_eq(after.rax, 0x42);
	machine_free(m);
}
END_TEST

START_TEST(port_write_completes)
{
	static const uint8_t code[] = {0xe6, SLOW_PORT, 0xeb, 0xfe};
	struct machine *m = machine_new(RAM_SIZE, 1);
	struct kvm_regs r = {.rax = 0x77}, after;

	stop_in_access(m, code, sizeof(code), &r, &after);
	ck_assert_uint_eq(after.rip, KVM_CODE + 2);
	ck_assert_uint_eq(slow.written, 0x77);
	machine_free(m);
}
END_TEST

START_TEST(mmio_read_completes)
{
	/* mov (%rdi), %rax; jmp . */
	static const uint8_t code[] = {0x48, 0x8b, 0x07, 0xeb, 0xfe};
	struct machine *m = machine_new(RAM_SIZE, 1);
	struct kvm_regs r = {.rdi = SLOW_GPA}, after;

	stop_in_access(m, code, sizeof(code), &r, &after);
	ck_assert_uint_eq(after.rip, KVM_CODE + 3);
	ck_assert_uint_eq(after.rax, 0x42);
	machine_free(m);
}
END_TEST

/*
 * The stop of a guest that counts: it stands still until it is let go, however often that is.
 */
START_TEST(stands_still)
{
	/* 1: inc (%rdi) as a quadword; jmp 1b */
	static const uint8_t code[] = {0x48, 0xff, 0x07, 0xeb, 0xfb};
	struct machine *m = machine_new(RAM_SIZE, 1);
	struct kvm_regs r = {.rdi = 0x20000};
	uint64_t last = 0;

	machine_code(m, 0, code, sizeof(code), &r);
	ck_assert_int_eq(vm_start(m->vm, &m->err), 0);
	usleep(5000);
	ck_assert_msg(*(const uint64_t *)ram_ptr(&m->vm->ram, 0x20000, 8) == 0,
		      "it ran before it was let go");
	vm_resume(m->vm, VM_PAUSE_START);
	for (unsigned i = 0; i < 50; i++) {
		const volatile uint64_t *count = ram_ptr(&m->vm->ram, 0x20000, 8);
		uint64_t deadline = now_ns() + 10 * NS_PER_SEC, stopped;

		while (*count == last && now_ns() < deadline)
			usleep(10);
		vm_pause(m->vm, VM_PAUSE_USER);
		vm_pause(m->vm, VM_PAUSE_MIGRATE);
		stopped = *count;
		ck_assert_uint_gt(stopped, last);
		/* One reason taken away is not both. */
		vm_resume(m->vm, VM_PAUSE_USER);
		if (i % 10 == 0)
			usleep(2000);
		ck_assert_uint_eq(*count, stopped);
		last = stopped;
		vm_resume(m->vm, VM_PAUSE_MIGRATE);
	}
	machine_free(m);
}
END_TEST

/*
 * A handler that the host holds: whoever wants a pause is told which vCPU it is, the others go on,
 * and so does this one when it is let go.
 */
static struct stuck {
	_Atomic bool held, entered;
} stuck;

static void stuck_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	uint64_t deadline = now_ns() + 30 * NS_PER_SEC;

	(void)dev;
	(void)offset;
	(void)size;
	(void)value;
	stuck.entered = true;
	while (stuck.held && now_ns() < deadline)
		usleep(100);
}

static uint64_t nothing_read(void *dev, uint64_t offset, unsigned size)
{
	(void)dev;
	(void)offset;
	(void)size;
	return 0;
}

#define STUCK_PORT 0x9aU

static const struct bus_ops stuck_ops = {.read = nothing_read, .write = stuck_write};

static void counts_on(const volatile uint64_t *count, const char *who)
{
	uint64_t before = *count, deadline = now_ns() + 10 * NS_PER_SEC;

	while (*count == before && now_ns() < deadline)
		usleep(100);
	ck_assert_msg(*count != before, "%s does not count on", who);
}

START_TEST(held_up)
{
	/* 1: incq (%rdi); jmp 1b */
	static const uint8_t counts[] = {0x48, 0xff, 0x07, 0xeb, 0xfb};
	/* 1: incq (%rdi); out %al, $0x9a; jmp 1b */
	static const uint8_t asks[] = {0x48, 0xff, 0x07, 0xe6, STUCK_PORT, 0xeb, 0xf9};
	struct bus_range port = {.base = STUCK_PORT, .len = 1, .name = "stuck", .ops = &stuck_ops};
	struct machine *m = machine_new(RAM_SIZE, 2);
	struct kvm_regs r[2] = {{.rdi = 0x20000}, {.rdi = 0x21000}};
	const volatile uint64_t *count[2] = {ram_ptr(&m->vm->ram, 0x20000, 8),
					     ram_ptr(&m->vm->ram, 0x21000, 8)};
	struct kvm_mp_state mp = {.mp_state = KVM_MP_STATE_RUNNABLE};
	struct errmsg err = {""};
	uint64_t start, still;

	ck_assert_int_eq(bus_add(&m->vm->pio, &port), 0);
	machine_code(m, 0, counts, sizeof(counts), &r[0]);
	machine_code(m, 1, counts, sizeof(counts), &r[1]);
	ck_assert_int_eq(ram_write(&m->vm->ram, KVM_CODE + 0x100, asks, sizeof(asks)), 0);
	KVM_MUST(m->vm->vcpu[1].fd, KVM_GET_REGS, &r[1]);
	r[1].rip += 0x100;
	KVM_MUST(m->vm->vcpu[1].fd, KVM_SET_REGS, &r[1]);
	KVM_MUST(m->vm->vcpu[1].fd, KVM_SET_MP_STATE, &mp);
	stuck.held = true;
	ck_assert_int_eq(vm_start(m->vm, &m->err), 0);
	vm_resume(m->vm, VM_PAUSE_START);
	counts_on(count[0], "vCPU 0");
	for (unsigned i = 0; i < 1000 && !stuck.entered; i++)
		usleep(10000);
	ck_assert(stuck.entered);

	start = now_ns();
	ck_assert_int_eq(vm_pause_within(m->vm, VM_PAUSE_MIGRATE, 200 * NS_PER_MS, &err),
			 -ETIMEDOUT);
	ck_assert_uint_ge(now_ns() - start, 200 * NS_PER_MS);
	ck_assert_uint_lt(now_ns() - start, 10 * NS_PER_SEC);
	ck_assert_msg(strstr(err.text, "vCPU 1 "), "%s", err.text);
	ck_assert_uint_eq(vm_paused(m->vm), 0);
	counts_on(count[0], "vCPU 0, after the pause that was none,");
	/* No time at all is too little, too. */
	ck_assert_int_eq(vm_pause_within(m->vm, VM_PAUSE_USER, 0, NULL), -ETIMEDOUT);
	ck_assert_uint_eq(vm_paused(m->vm), 0);

	stuck.held = false;
	counts_on(count[1], "vCPU 1, let go,");
	err = (struct errmsg){""};
	ck_assert_int_eq(vm_pause_within(m->vm, VM_PAUSE_USER, 10 * NS_PER_SEC, &err), 0);
	ck_assert_str_eq(err.text, "");
	/* Two that ask, and one of them twice. */
	ck_assert_int_eq(vm_pause_within(m->vm, VM_PAUSE_MIGRATE, 0, NULL), 0);
	ck_assert_int_eq(vm_pause_within(m->vm, VM_PAUSE_USER, 0, NULL), 0);
	still = *count[0] + *count[1];
	usleep(2000);
	ck_assert_uint_eq(*count[0] + *count[1], still);
	vm_resume(m->vm, VM_PAUSE_MIGRATE);
	ck_assert_uint_eq(vm_paused(m->vm), VM_PAUSE_USER);
	vm_resume(m->vm, VM_PAUSE_USER);
	counts_on(count[0], "vCPU 0");
	counts_on(count[1], "vCPU 1");
	machine_free(m);
}
END_TEST

/* ---- MSRs in use ---- */

#define MSR_KERNEL_GS_BASE 0xc0000102U
#define MSR_NONE 0x7ffffff1U

static bool is_among(const uint32_t *index, uint32_t n, uint32_t msr)
{
	for (uint32_t i = 0; i < n; i++) {
		if (index[i] == msr)
			return true;
	}
	return false;
}

/* What a guest that runs has in use is learnt without stopping it, and another machine has it. */
START_TEST(msrs_in_use)
{
	static const uint8_t code[] = {0x48, 0xff, 0x07, 0xeb, 0xfb};
	static const uint32_t none[] = {MSR_NONE};
	struct machine *m = machine_new(RAM_SIZE, 1), *other = machine_new(RAM_SIZE, 1);
	const volatile uint64_t *count = ram_ptr(&m->vm->ram, 0x20000, 8);
	struct kvm_regs r = {.rdi = 0x20000};
	struct errmsg err = {""};
	uint64_t value;
	uint32_t *index, n;

	machine_code(m, 0, code, sizeof(code), &r);
	/* A fresh one, whose thread does not run; then with a register more. */
	ck_assert_int_eq(vcpu_msrs_in_use(&m->vm->vcpu[0], &index, &n), 0);
	ck_assert_uint_gt(n, 0);
	ck_assert_uint_le(n, VCPU_MSRS_MAX);
	ck_assert(!is_among(index, n, MSR_KERNEL_GS_BASE));
	ck_assert(!is_among(index, n, MSR_TSC));
	free(index);
	ck_assert_int_eq(msr_set(m->vm->vcpu[0].fd, MSR_KERNEL_GS_BASE, 0x1234000), 0);
	ck_assert_int_eq(vm_start(m->vm, &m->err), 0);
	vm_resume(m->vm, VM_PAUSE_START);
	for (unsigned i = 0; i < 20; i++) {
		counts_on(count, "the guest");
		ck_assert_int_eq(vcpu_msrs_in_use(&m->vm->vcpu[0], &index, &n), 0);
		ck_assert(is_among(index, n, MSR_KERNEL_GS_BASE));
		ck_assert_msg(vcpu_check_msrs(&other->vm->vcpu[0], index, n, &err) == 0, "%s",
			      err.text);
		free(index);
		ck_assert_uint_eq(vm_paused(m->vm), 0);
	}
	vm_pause(m->vm, VM_PAUSE_USER);
	ck_assert_int_eq(vcpu_msrs_in_use(&m->vm->vcpu[0], &index, &n), 0);
	ck_assert(is_among(index, n, MSR_KERNEL_GS_BASE));
	free(index);
	vm_resume(m->vm, VM_PAUSE_USER);
	counts_on(count, "the guest");
	/* A KVM with ignore_msrs=1 has them all. */
	if (msr_get(other->vm->vcpu[0].fd, MSR_NONE, &value)) {
		ck_assert_int_eq(vcpu_check_msrs(&other->vm->vcpu[0], none, 1, &err), -ENOTSUP);
		ck_assert_msg(strstr(err.text, "MSR 0x7ffffff1"), "%s", err.text);
	}
	machine_free(m);
	machine_free(other);
}
END_TEST

int main(void)
{
	const TTest *const tests[] = {
		all_of_it_arrives,
		fresh_one_is_fresh,
		deadline_waits,
		truncated,
		flipped,
		hostile_counts,
		port_read_completes,
		port_write_completes,
		mmio_read_completes,
		stands_still,
		held_up,
		msrs_in_use,
	};

	if (!kvm_here())
		return check_skip("vcpu", "no /dev/kvm");
	return check_main("vcpu", tests, ARRAY_SIZE(tests));
}
