/* SPDX-License-Identifier: MIT */
/*
 * The architectural state of a vCPU, one function a register class, each serving save and load.
 *
 * Order (what other VMMs ship and KVM's own dependencies ask for): MP_STATE, REGS, SREGS, XSAVE,
 * XCRS, DEBUGREGS, LAPIC, MSRs, VCPU_EVENTS. REGS clears pending exceptions, so events come last;
 * LAPIC needs the APIC base that is part of SREGS, and comes before the MSRs. The TSC belongs to
 * clock.c and must be set before the TSC deadline, hence vcpu_arm_timer().
 *
 * For who only looks at a saved state (sbuf.h) the same functions run without KVM.
 */
#include <errno.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "kvm.h"
#include "msr.h"
#include "vcpu.h"
#include "vm.h"

#define MSR_KVM_WALL_CLOCK 0x11U
#define MSR_KVM_WALL_CLOCK_NEW 0x4b564d00U
#define MSR_LIST_MAX 1024U

#define LAPIC_LVTT 0x320U
#define LAPIC_LVT_MASKED (1U << 16)
#define LAPIC_LVTT_MODE(x) (((x) >> 17) & 3U)
#define LAPIC_LVTT_DEADLINE 2U

/*
 * A register class that KVM moves by a pair of ioctls: reads it when saving, gives it to the
 * field list, writes it when loading.
 */
static void begin(struct vcpu *v, struct sbuf *s, unsigned long get, void *state)
{
	int ret;

	if (s->err || sb_looking(s))
		return;
	ret = kvm_ioctl_ptr(v->fd, get, state);
	if (ret)
		sb_fail(s, ret);
}

static void commit(struct vcpu *v, struct sbuf *s, unsigned long set, void *state, const char *what,
		   struct errmsg *err)
{
	int ret;

	if (!s->loading || s->err || sb_looking(s))
		return;
	ret = kvm_ioctl_ptr(v->fd, set, state);
	if (ret) {
		errmsg_set(err, ret, "vCPU %u: this host's KVM refuses the saved %s: %s", v->id,
			   what, strerror(-ret));
		sb_fail(s, ret);
	}
}

static void mp_state(struct vcpu *v, struct sbuf *s, struct errmsg *err)
{
	struct kvm_mp_state mp = {0};

	begin(v, s, KVM_GET_MP_STATE, &mp);
	sb_u32(s, &mp.mp_state);
	commit(v, s, KVM_SET_MP_STATE, &mp, "run state", err);
}

static void regs(struct vcpu *v, struct sbuf *s, struct errmsg *err)
{
	struct kvm_regs r = {0};

	begin(v, s, KVM_GET_REGS, &r);
	sb_int(s, r.rax, 64);
	sb_int(s, r.rbx, 64);
	sb_int(s, r.rcx, 64);
	sb_int(s, r.rdx, 64);
	sb_int(s, r.rsi, 64);
	sb_int(s, r.rdi, 64);
	sb_int(s, r.rsp, 64);
	sb_int(s, r.rbp, 64);
	sb_int(s, r.r8, 64);
	sb_int(s, r.r9, 64);
	sb_int(s, r.r10, 64);
	sb_int(s, r.r11, 64);
	sb_int(s, r.r12, 64);
	sb_int(s, r.r13, 64);
	sb_int(s, r.r14, 64);
	sb_int(s, r.r15, 64);
	sb_int(s, r.rip, 64);
	sb_int(s, r.rflags, 64);
	commit(v, s, KVM_SET_REGS, &r, "registers", err);
}

static void segment(struct kvm_segment *g, struct sbuf *s, const char *name)
{
	size_t mark = sb_enter(s, "%s", name);

	sb_int(s, g->base, 64);
	sb_x32(s, &g->limit);
	sb_x16(s, &g->selector);
	sb_x8(s, &g->type);
	sb_u8(s, &g->present);
	sb_u8(s, &g->dpl);
	sb_u8(s, &g->db);
	sb_u8(s, &g->s);
	sb_u8(s, &g->l);
	sb_u8(s, &g->g);
	sb_u8(s, &g->avl);
	sb_u8(s, &g->unusable);
	sb_leave(s, mark);
}

static void sregs(struct vcpu *v, struct sbuf *s, struct errmsg *err)
{
	struct kvm_sregs r = {0};

	begin(v, s, KVM_GET_SREGS, &r);
	segment(&r.cs, s, "cs");
	segment(&r.ds, s, "ds");
	segment(&r.es, s, "es");
	segment(&r.fs, s, "fs");
	segment(&r.gs, s, "gs");
	segment(&r.ss, s, "ss");
	segment(&r.tr, s, "tr");
	segment(&r.ldt, s, "ldt");
	sb_int(s, r.gdt.base, 64);
	sb_x16(s, &r.gdt.limit);
	sb_int(s, r.idt.base, 64);
	sb_x16(s, &r.idt.limit);
	sb_int(s, r.cr0, 64);
	sb_int(s, r.cr2, 64);
	sb_int(s, r.cr3, 64);
	sb_int(s, r.cr4, 64);
	sb_int(s, r.cr8, 64);
	sb_int(s, r.efer, 64);
	sb_int(s, r.apic_base, 64);
	for (uint32_t i = 0; i < ARRAY_SIZE(r.interrupt_bitmap); i++) {
		sb_index(s, i);
		sb_int(s, r.interrupt_bitmap[i], 64);
	}
	commit(v, s, KVM_SET_SREGS, &r, "system registers", err);
}

/* The area is architectural (SDM volume 1 chapter 13, standard format); its size is the host's. */
static void xsave(struct vcpu *v, struct sbuf *s, struct errmsg *err)
{
	/* Who only looks takes that of any host. */
	size_t most = sb_looking(s) ? s->len : (size_t)v->vm->caps.xsave_size;
	size_t have = MAX(most, sizeof(struct kvm_xsave));
	bool wide = v->vm->caps.xsave_size > (int)sizeof(struct kvm_xsave);
	uint32_t size = (uint32_t)have;
	uint8_t *area = calloc(1, have);

	if (!area) {
		sb_fail(s, -ENOMEM);
		return;
	}
	begin(v, s, wide ? KVM_GET_XSAVE2 : KVM_GET_XSAVE, area);
	sb_u32_as(s, &size, "xsave_size", SB_NUMBER);
	if (!s->err && size > have) {
		errmsg_set(err, -ENOTSUP,
			   "vCPU %u: saved XSAVE area of %u bytes, this host's KVM takes %zu",
			   v->id, size, have);
		sb_fail(s, -ENOTSUP);
	}
	if (!s->err) {
		if (s->loading)
			memset(area, 0, have);
		sb_bytes_as(s, area, size, "xsave");
	}
	commit(v, s, KVM_SET_XSAVE, area, "FPU and vector registers", err);
	free(area);
}

static void xcrs(struct vcpu *v, struct sbuf *s, struct errmsg *err)
{
	struct kvm_xcrs x = {0};

	begin(v, s, KVM_GET_XCRS, &x);
	sb_u32_range(s, &x.nr_xcrs, 0, KVM_MAX_XCRS);
	for (uint32_t i = 0; i < x.nr_xcrs && !s->err; i++) {
		sb_index(s, i);
		sb_u32(s, &x.xcrs[i].xcr);
		sb_int(s, x.xcrs[i].value, 64);
	}
	if (x.nr_xcrs)
		commit(v, s, KVM_SET_XCRS, &x, "XCR0", err);
}

static void debugregs(struct vcpu *v, struct sbuf *s, struct errmsg *err)
{
	struct kvm_debugregs d = {0};

	begin(v, s, KVM_GET_DEBUGREGS, &d);
	for (uint32_t i = 0; i < ARRAY_SIZE(d.db); i++) {
		sb_index(s, i);
		sb_int(s, d.db[i], 64);
	}
	sb_int(s, d.dr6, 64);
	sb_int(s, d.dr7, 64);
	commit(v, s, KVM_SET_DEBUGREGS, &d, "debug registers", err);
}

static uint32_t lapic_reg(const struct kvm_lapic_state *l, unsigned offset)
{
	uint32_t value;

	memcpy(&value, l->regs + offset, sizeof(value));
	return value;
}

/* The APIC's register page as the architecture lays it out: one in every 16 bytes. */
static void lapic(struct vcpu *v, struct sbuf *s, uint32_t *lvtt, struct errmsg *err)
{
	struct kvm_lapic_state l = {0};

	begin(v, s, KVM_GET_LAPIC, &l);
	for (uint32_t at = 0; at < sizeof(l.regs); at += 16) {
		uint32_t reg = lapic_reg(&l, at);

		sb_key(s, at);
		sb_u32_as(s, &reg, "lapic[at]", SB_BITS);
		if (s->loading)
			memcpy(l.regs + at, &reg, sizeof(reg));
		sb_bytes_as(s, l.regs + at + sizeof(reg), 16 - sizeof(reg), NULL);
	}
	commit(v, s, KVM_SET_LAPIC, &l, "local APIC", err);
	*lvtt = lapic_reg(&l, LAPIC_LVTT);
}

struct msr_range {
	uint32_t first, last;
};

/* Not the guest's state, or state of what cpuid.c takes away from every guest. */
static const struct msr_range msr_left_out[] = {
	{MSR_TSC, MSR_TSC},		      /* clock.c */
	{0x8b, 0x8b},			      /* microcode revision: this host's */
	{0xc1, 0xc8},			      /* performance counters */
	{0xce, 0xce},			      /* platform info: this host's */
	{0xcf, 0xcf},			      /* core capabilities: this host's */
	{0x186, 0x18d},			      /* event selectors */
	{0x309, 0x30c},			      /* fixed counters */
	{0x345, 0x345},			      /* perf capabilities */
	{0x38d, 0x390},			      /* counter control */
	{0x3f1, 0x3f1},			      /* PEBS */
	{0x3f2, 0x3f2},			      /* PEBS */
	{0x480, 0x493},			      /* VMX capabilities */
	{0x4c1, 0x4c8},			      /* performance counters */
	{0x560, 0x58f},			      /* processor trace */
	{0x600, 0x600},			      /* debug store */
	{MSR_TSC_DEADLINE, MSR_TSC_DEADLINE}, /* vcpu_arm_timer() */
	{0x40000000, 0x400001ff},	      /* Hyper-V's, which is not offered */
	{0xc0000300, 0xc0000302},	      /* AMD counter control */
	{0xc0010000, 0xc0010007},	      /* AMD performance counters */
	{0xc0010117, 0xc0010117},	      /* nested SVM's save area */
	{0xc0010200, 0xc001020f},	      /* AMD performance counters */
};

/* The guest's, though KVM_GET_MSR_INDEX_LIST leaves them out: MTRRs. */
static const struct msr_range msr_added[] = {
	{0x200, 0x20f}, {0x250, 0x250}, {0x258, 0x259}, {0x268, 0x26f}, {0x2ff, 0x2ff},
};

static bool msr_wanted(uint32_t index)
{
	for (size_t i = 0; i < ARRAY_SIZE(msr_left_out); i++) {
		if (index >= msr_left_out[i].first && index <= msr_left_out[i].last)
			return false;
	}
	return true;
}

/* Indices to save: what KVM lists less what is left out, plus what is added. Freed by the caller.
 */
static int msr_indices(struct vm *vm, uint32_t **out, uint32_t *n_out)
{
	struct kvm_msr_list *list;
	uint32_t *index, n = 0;
	int ret;

	list = calloc(1, sizeof(*list) + MSR_LIST_MAX * sizeof(list->indices[0]));
	index = calloc(MSR_LIST_MAX + 64, sizeof(*index));
	if (!list || !index) {
		ret = -ENOMEM;
		goto fail;
	}
	list->nmsrs = MSR_LIST_MAX;
	ret = kvm_ioctl_ptr(vm->kvm_fd, KVM_GET_MSR_INDEX_LIST, list);
	if (ret)
		goto fail;
	for (uint32_t i = 0; i < list->nmsrs; i++) {
		if (msr_wanted(list->indices[i]))
			index[n++] = list->indices[i];
	}
	for (size_t r = 0; r < ARRAY_SIZE(msr_added); r++) {
		for (uint32_t m = msr_added[r].first; m <= msr_added[r].last; m++)
			index[n++] = m;
	}
	free(list);
	*out = index;
	*n_out = n;
	return 0;
fail:
	free(list);
	free(index);
	return ret;
}

/*
 * KVM_GET_MSRS and KVM_SET_MSRS stop at the first index they refuse; this goes on after it.
 * ok[i] says which were done.
 */
static int all_msrs(struct vcpu *v, unsigned long request, struct kvm_msrs *chunk,
		    struct kvm_msr_entry *e, uint32_t n, bool *ok)
{
	uint32_t at = 0;

	while (at < n) {
		int done;

		/* KVM takes fewer than 256 at a time. */
		chunk->nmsrs = MIN(n - at, 255U);
		memcpy(chunk->entries, e + at, chunk->nmsrs * sizeof(*e));
		done = ioctl(v->fd, request, chunk);
		if (done < 0)
			return -errno;
		memcpy(e + at, chunk->entries, (unsigned)done * sizeof(*e));
		memset(ok + at, true, (unsigned)done);
		at += (unsigned)done;
		if ((unsigned)done < chunk->nmsrs)
			ok[at++] = false;
	}
	return 0;
}

/*
 * KVM lets nobody look at a vCPU that runs. One that is called out of the guest finds vm->lock
 * taken on its way back (park() in vcpu.c), and waits there while we look; to the guest that is an
 * exit like others, not a pause.
 */
static int read_running(struct vcpu *v, struct kvm_msrs *chunk, struct kvm_msr_entry *e, uint32_t n,
			bool *ok)
{
	int ret;

	pthread_mutex_lock(&v->vm->lock);
	if (!v->parked)
		vcpu_kick(v);
	ret = all_msrs(v, KVM_GET_MSRS, chunk, e, n, ok);
	pthread_mutex_unlock(&v->vm->lock);
	return ret;
}

int vcpu_msrs_in_use(struct vcpu *v, uint32_t **out, uint32_t *n_out)
{
	struct kvm_msr_entry *e = NULL;
	struct kvm_msrs *chunk = NULL;
	uint32_t *index = NULL, n = 0, used = 0;
	bool *ok = NULL;
	int ret = msr_indices(v->vm, &index, &n);

	if (ret)
		return ret;
	e = calloc(n + 1, sizeof(*e));
	ok = calloc(n + 1, sizeof(*ok));
	chunk = calloc(1, sizeof(*chunk) + (n + 1) * sizeof(*e));
	ret = e && ok && chunk ? 0 : -ENOMEM;
	for (uint32_t i = 0; i < n && ret == 0; i++)
		e[i].index = index[i];
	if (ret == 0)
		ret = read_running(v, chunk, e, n, ok);
	for (uint32_t i = 0; i < n && ret == 0; i++) {
		/* As load_msrs(), which does without a register that holds nothing. */
		if (ok[i] && e[i].data)
			index[used++] = e[i].index;
	}
	free(e);
	free(ok);
	free(chunk);
	if (ret) {
		free(index);
		return ret;
	}
	*out = index;
	*n_out = used;
	return 0;
}

int vcpu_check_msrs(struct vcpu *v, const uint32_t *index, uint32_t n, struct errmsg *err)
{
	for (uint32_t i = 0; i < n; i++) {
		uint64_t value;

		if (msr_get(v->fd, index[i], &value))
			return errmsg_set(
				err, -ENOTSUP,
				"the guest uses MSR %#x, which this host's KVM does not "
				"have: an older kernel, or another CPU, than the source's",
				index[i]);
	}
	return 0;
}

static void load_msrs(struct vcpu *v, struct sbuf *s, struct kvm_msrs *chunk,
		      struct kvm_msr_entry *e, uint32_t n, bool *ok, struct errmsg *err)
{
	uint32_t kept = 0;
	int ret;

	/*
	 * A write to kvmclock's wall-clock MSR makes KVM store the time at that guest address, now:
	 * into memory that is proved equal already and may be long used for something else. The
	 * guest writes it anew whenever it wants to know.
	 */
	for (uint32_t i = 0; i < n; i++) {
		if (e[i].index != MSR_KVM_WALL_CLOCK && e[i].index != MSR_KVM_WALL_CLOCK_NEW)
			e[kept++] = e[i];
	}
	n = kept;
	ret = all_msrs(v, KVM_SET_MSRS, chunk, e, n, ok);
	if (ret) {
		sb_fail(s, ret);
		return;
	}
	for (uint32_t i = 0; i < n; i++) {
		uint64_t here = 0;

		if (ok[i])
			continue;
		/* Refused is no loss where it holds that value anyhow, or never held any. */
		if ((msr_get(v->fd, e[i].index, &here) == 0 && here == e[i].data) || e[i].data == 0)
			continue;
		errmsg_set(err, -ENOTSUP, "vCPU %u: this host's KVM refuses MSR %#x = %#llx", v->id,
			   e[i].index, (unsigned long long)e[i].data);
		sb_fail(s, -ENOTSUP);
		return;
	}
}

/* What an MSR holds goes by its index. */
static void msr_entry(struct sbuf *s, struct kvm_msr_entry *e)
{
	uint64_t data = e->data;

	sb_u32_as(s, &e->index, NULL, SB_BITS);
	sb_key(s, e->index);
	sb_u64_as(s, &data, "msr[index]", SB_BITS);
	if (s->loading)
		e->data = data;
}

static void msrs(struct vcpu *v, struct sbuf *s, struct errmsg *err)
{
	struct kvm_msr_entry *e = NULL;
	struct kvm_msrs *chunk = NULL;
	uint32_t *index = NULL;
	bool *ok = NULL;
	uint32_t n = 0, count = 0;
	int ret;

	if (s->err)
		return;
	if (!s->loading) {
		ret = msr_indices(v->vm, &index, &n);
		if (ret) {
			sb_fail(s, ret);
			return;
		}
	} else {
		sb_u32_range_as(s, &n, 0, 2 * MSR_LIST_MAX, "msrs");
	}
	e = calloc(n + 1, sizeof(*e));
	ok = calloc(n + 1, sizeof(*ok));
	chunk = calloc(1, sizeof(*chunk) + (n + 1) * sizeof(*e));
	if (!e || !ok || !chunk) {
		sb_fail(s, -ENOMEM);
		goto out;
	}
	if (!s->loading) {
		for (uint32_t i = 0; index && i < n; i++)
			e[i].index = index[i];
		ret = all_msrs(v, KVM_GET_MSRS, chunk, e, n, ok);
		if (ret)
			sb_fail(s, ret);
		for (uint32_t i = 0; i < n; i++) {
			if (ok[i])
				e[count++] = e[i];
		}
		n = count;
		sb_u32(s, &n);
	}
	for (uint32_t i = 0; i < n && !s->err; i++)
		msr_entry(s, &e[i]);
	if (s->loading && !s->err && !sb_looking(s))
		load_msrs(v, s, chunk, e, n, ok, err);
out:
	free(index);
	free(e);
	free(ok);
	free(chunk);
}

static void events(struct vcpu *v, struct sbuf *s, struct errmsg *err)
{
	struct kvm_vcpu_events e = {0};
	uint32_t here;
	size_t mark;

	begin(v, s, KVM_GET_VCPU_EVENTS, &e);
	/* A class of events that this KVM does not know of must not be asked for. */
	here = e.flags | KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SIPI_VECTOR |
	       KVM_VCPUEVENT_VALID_SHADOW;
	mark = sb_enter(s, "events");
	sb_u8(s, &e.exception.injected);
	sb_u8(s, &e.exception.nr);
	sb_u8(s, &e.exception.has_error_code);
	sb_u8(s, &e.exception.pending);
	sb_x32(s, &e.exception.error_code);
	sb_u8(s, &e.interrupt.injected);
	sb_u8(s, &e.interrupt.nr);
	sb_u8(s, &e.interrupt.soft);
	sb_u8(s, &e.interrupt.shadow);
	sb_u8(s, &e.nmi.injected);
	sb_u8(s, &e.nmi.pending);
	sb_u8(s, &e.nmi.masked);
	sb_u32(s, &e.sipi_vector);
	sb_x32(s, &e.flags);
	sb_u8(s, &e.smi.smm);
	sb_u8(s, &e.smi.pending);
	sb_u8(s, &e.smi.smm_inside_nmi);
	sb_u8(s, &e.smi.latched_init);
	sb_leave(s, mark);
	e.flags &= here;
	commit(v, s, KVM_SET_VCPU_EVENTS, &e, "pending events", err);
}

static void timer(struct vcpu *v, struct sbuf *s, uint32_t lvtt)
{
	uint64_t deadline = 0;

	if (!s->loading && msr_get(v->fd, MSR_TSC_DEADLINE, &deadline) == 0) {
		/*
		 * A deadline that has just passed reads as 0, and its interrupt may not be in the
		 * LAPIC's state yet. One tick too many does no harm, a lost one stops the guest:
		 * let it fire again.
		 */
		if (deadline == 0 && LAPIC_LVTT_MODE(lvtt) == LAPIC_LVTT_DEADLINE &&
		    !(lvtt & LAPIC_LVT_MASKED))
			msr_get(v->fd, MSR_TSC, &deadline);
	}
	sb_u64_as(s, &deadline, "tsc_deadline", SB_NUMBER);
	if (s->loading)
		v->tsc_deadline = deadline;
}

void vcpu_fields(struct vcpu *v, struct sbuf *s, struct errmsg *err)
{
	uint32_t lvtt = 0;

	mp_state(v, s, err);
	regs(v, s, err);
	sregs(v, s, err);
	xsave(v, s, err);
	xcrs(v, s, err);
	debugregs(v, s, err);
	lapic(v, s, &lvtt, err);
	msrs(v, s, err);
	events(v, s, err);
	timer(v, s, lvtt);
}

int vcpu_arm_timer(struct vcpu *v)
{
	return v->tsc_deadline ? msr_set(v->fd, MSR_TSC_DEADLINE, v->tsc_deadline) : 0;
}
