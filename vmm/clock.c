/* SPDX-License-Identifier: MIT */
#include "clock.h"

#include <errno.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <string.h>

#include "kvm.h"
#include "msr.h"

/* KVM itself takes this much for a rounding difference and does not scale for it. */
#define TSC_TOLERANCE_PPM 250U

/* Two readings belong to one instant only if nobody else had the CPU between them. */
#define TRIES 5U

/* An ioctl that has taken longer was not alone. */
#define SET_NS (50 * NS_PER_US)

static int tsc_offset(const struct vcpu *v, unsigned long request, uint64_t *offset)
{
	struct kvm_device_attr attr = {
		.group = KVM_VCPU_TSC_CTRL,
		.attr = KVM_VCPU_TSC_OFFSET,
		.addr = (uintptr_t)offset,
	};

	return kvm_ioctl_ptr(v->fd, request, &attr);
}

static int read_tsc(struct vm *vm, uint64_t *tsc)
{
	return msr_get(vm->vcpu[0].fd, MSR_TSC, tsc);
}

static int read_kvmclock(struct vm *vm, uint64_t *clock)
{
	struct kvm_clock_data data = {0};
	int ret = kvm_ioctl_ptr(vm->vm_fd, KVM_GET_CLOCK, &data);

	*clock = data.clock;
	return ret;
}

static int read_realtime(struct vm *vm, uint64_t *realtime)
{
	(void)vm;
	*realtime = realtime_ns();
	return 0;
}

/* What a clock shows, and when it was so: of a few readings the quickest counts. */
static int clock_at(struct vm *vm, int (*read_it)(struct vm *vm, uint64_t *value), uint64_t *value,
		    uint64_t *at_ns)
{
	uint64_t best = UINT64_MAX;

	*value = *at_ns = 0;
	for (unsigned i = 0; i < TRIES; i++) {
		uint64_t before = now_ns(), v, took;
		int ret = read_it(vm, &v);

		if (ret)
			return ret;
		took = now_ns() - before;
		if (took < best) {
			best = took;
			*value = v;
			*at_ns = before + took / 2;
		}
	}
	return 0;
}

static uint64_t cycles(uint64_t ns, uint64_t khz)
{
	return (uint64_t)((unsigned __int128)ns * khz / 1000000U);
}

int clock_read(struct vm *vm, struct vm_clock *c, struct errmsg *err)
{
	uint64_t base, shown, shown_at, offset0, offset;
	int ret;

	memset(c, 0, sizeof(*c));
	c->n = vm->n_vcpus;
	c->tsc_khz = vm->tsc_khz;
	c->tsc = calloc(c->n, sizeof(*c->tsc));
	if (!c->tsc)
		return errmsg_set(err, -ENOMEM, "no memory for %u TSCs", c->n);

	ret = clock_at(vm, read_tsc, &base, &c->read_at_ns);
	if (ret) {
		errmsg_set(err, ret, "reading the TSC: %s", strerror(-ret));
		goto fail;
	}
	ret = clock_at(vm, read_kvmclock, &shown, &shown_at);
	if (ret) {
		errmsg_set(err, ret, "KVM_GET_CLOCK: %s", strerror(-ret));
		goto fail;
	}
	/* Both belong to one instant. */
	c->kvmclock_ns = shown - (shown_at - c->read_at_ns);

	for (unsigned i = 0; i < c->n; i++) {
		c->tsc[i] = base;
		if (i > 0 && tsc_offset(&vm->vcpu[0], KVM_GET_DEVICE_ATTR, &offset0) == 0 &&
		    tsc_offset(&vm->vcpu[i], KVM_GET_DEVICE_ATTR, &offset) == 0)
			c->tsc[i] += offset - offset0;
	}
	return 0;
fail:
	clock_free(c);
	return ret;
}

static int check_tsc(const struct vm *vm, uint64_t tsc_khz, struct errmsg *err)
{
	uint64_t diff = tsc_khz > vm->tsc_khz ? tsc_khz - vm->tsc_khz : vm->tsc_khz - tsc_khz;

	if (tsc_khz == 0 || vm->tsc_khz == 0 || vm->caps.tsc_control)
		return 0;
	if (diff > vm->tsc_khz * TSC_TOLERANCE_PPM / 1000000U)
		return errmsg_set(err, -ENOTSUP,
				  "the guest's TSC runs at %llu kHz, this host's at %llu kHz and "
				  "it cannot scale",
				  (unsigned long long)tsc_khz, (unsigned long long)vm->tsc_khz);
	return 0;
}

int clock_take_frequency(struct vm *vm, uint64_t tsc_khz, struct errmsg *err)
{
	int ret = check_tsc(vm, tsc_khz, err);

	if (ret || tsc_khz == 0 || tsc_khz == vm->tsc_khz)
		return ret;
	if (!vm->caps.tsc_control)
		return 0;
	/* KVM looks at no more than 32 bits, and would take another frequency for it. */
	if (tsc_khz > UINT32_MAX)
		return errmsg_set(err, -ENOTSUP,
				  "the guest's TSC runs at %llu kHz, which is more than KVM can "
				  "give it",
				  (unsigned long long)tsc_khz);
	for (unsigned i = 0; i < vm->n_vcpus; i++) {
		ret = kvm_ioctl(vm->vcpu[i].fd, KVM_SET_TSC_KHZ, tsc_khz);
		if (ret)
			return errmsg_set(err, ret, "KVM_SET_TSC_KHZ %llu: %s",
					  (unsigned long long)tsc_khz, strerror(-ret));
	}
	vm->tsc_khz = tsc_khz;
	return 0;
}

/* Time from the instant to `at`. */
static uint64_t since(const struct vm_clock *c, uint64_t at)
{
	return at > c->read_at_ns ? at - c->read_at_ns : 0;
}

/*
 * The kvmclock as it is due when KVM comes to set it: a thread that has to wait for the CPU just
 * then would leave the guest with two clocks that are apart, and with a kernel that trusts one of
 * them no more. A KVM that cannot say when that is, is asked again as long as it takes long.
 */
static int set_kvmclock(struct vm *vm, const struct vm_clock *c)
{
	bool late = true;
	int ret = 0;

	for (unsigned i = 0; i < TRIES && late && ret == 0; i++) {
		struct kvm_clock_data data = {.flags = 0};
		uint64_t at = now_ns(), realtime;

		if (vm->caps.clock_realtime) {
			clock_at(vm, read_realtime, &realtime, &at);
			data.flags = KVM_CLOCK_REALTIME;
			data.realtime = realtime;
		}
		data.clock = c->kvmclock_ns + since(c, at);
		ret = kvm_ioctl_ptr(vm->vm_fd, KVM_SET_CLOCK, &data);
		late = !vm->caps.clock_realtime && now_ns() - at > SET_NS;
	}
	return ret;
}

int clock_set(struct vm *vm, const struct vm_clock *c, struct errmsg *err)
{
	uint64_t shown, at, offset, first;
	int ret;

	if (c->n != vm->n_vcpus)
		return errmsg_set(err, -EPROTO, "clock section of %u vCPUs for a machine of %u",
				  c->n, vm->n_vcpus);

	if (tsc_offset(&vm->vcpu[0], KVM_GET_DEVICE_ATTR, &offset) == 0) {
		uint64_t due;

		ret = clock_at(vm, read_tsc, &shown, &at);
		if (ret)
			return errmsg_set(err, ret, "reading the TSC: %s", strerror(-ret));
		due = c->tsc[0] + cycles(since(c, at), c->tsc_khz);
		first = offset + (due - shown);
		for (unsigned i = 0; i < c->n && ret == 0; i++) {
			offset = first + (c->tsc[i] - c->tsc[0]);
			ret = tsc_offset(&vm->vcpu[i], KVM_SET_DEVICE_ATTR, &offset);
		}
	} else {
		/* One value for all: KVM sees writes that agree and keeps the vCPUs in step. */
		shown = c->tsc[0] + cycles(since(c, now_ns()), c->tsc_khz);
		ret = 0;
		for (unsigned i = 0; i < c->n && ret == 0; i++)
			ret = msr_set(vm->vcpu[i].fd, MSR_TSC, shown);
	}
	if (ret)
		return errmsg_set(err, ret, "setting the TSC: %s", strerror(-ret));

	ret = set_kvmclock(vm, c);
	if (ret)
		return errmsg_set(err, ret, "KVM_SET_CLOCK: %s", strerror(-ret));
	return 0;
}

void clock_fields(struct vm_clock *c, struct sbuf *s)
{
	sb_u64(s, &c->read_at_ns);
	sb_u64(s, &c->kvmclock_ns);
	sb_u64(s, &c->tsc_khz);
	sb_u32_range_as(s, &c->n, 1, VM_MAX_VCPUS, "vcpus");
	if (s->loading && !s->err) {
		c->tsc = calloc(c->n, sizeof(*c->tsc));
		if (!c->tsc)
			sb_fail(s, -ENOMEM);
	}
	for (uint32_t i = 0; i < c->n && !s->err; i++) {
		sb_index(s, i);
		sb_u64(s, &c->tsc[i]);
	}
}

void clock_free(struct vm_clock *c)
{
	free(c->tsc);
	c->tsc = NULL;
}
