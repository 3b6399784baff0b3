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

/*
 * Two readings belong to one instant only if nobody else had the CPU between them: of so many tries
 * the quickest counts.
 */
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

/* The TSC of vCPU 0, and when it was so. */
static int tsc_at(struct vm *vm, uint64_t *tsc, uint64_t *at_ns)
{
	uint64_t best = UINT64_MAX;

	for (unsigned i = 0; i < TRIES; i++) {
		uint64_t before = now_ns(), t = 0, took;
		int ret = msr_get(vm->vcpu[0].fd, MSR_TSC, &t);

		if (ret)
			return ret;
		took = now_ns() - before;
		if (took < best) {
			best = took;
			*tsc = t;
			*at_ns = before + took / 2;
		}
	}
	return 0;
}

/* The guest's kvmclock, and when it was so. */
static int kvmclock_at(struct vm *vm, uint64_t *clock, uint64_t *at_ns)
{
	uint64_t best = UINT64_MAX;

	for (unsigned i = 0; i < TRIES; i++) {
		struct kvm_clock_data data = {0};
		uint64_t before = now_ns(), took;
		int ret = kvm_ioctl_ptr(vm->vm_fd, KVM_GET_CLOCK, &data);

		if (ret)
			return ret;
		took = now_ns() - before;
		if (took < best) {
			best = took;
			*clock = data.clock;
			*at_ns = before + took / 2;
		}
	}
	return 0;
}

/* The host's time of day, and when it was so. */
static uint64_t realtime_at(uint64_t *at_ns)
{
	uint64_t best = UINT64_MAX, real = 0;

	for (unsigned i = 0; i < TRIES; i++) {
		uint64_t before = now_ns(), r = realtime_ns(), took = now_ns() - before;

		if (took < best) {
			best = took;
			real = r;
			*at_ns = before + took / 2;
		}
	}
	return real;
}

static uint64_t cycles(uint64_t ns, uint64_t khz)
{
	return (uint64_t)((unsigned __int128)ns * khz / 1000000U);
}

int clock_read(struct vm *vm, struct vm_clock *c, struct errmsg *err)
{
	uint64_t base, clock = 0, clock_at = 0, offset0, offset;
	int ret;

	memset(c, 0, sizeof(*c));
	c->n = vm->n_vcpus;
	c->tsc_khz = vm->tsc_khz;
	c->tsc = calloc(c->n, sizeof(*c->tsc));
	if (!c->tsc)
		return errmsg_set(err, -ENOMEM, "no memory for %u TSCs", c->n);

	ret = tsc_at(vm, &base, &c->read_at_ns);
	if (ret) {
		errmsg_set(err, ret, "reading the TSC: %s", strerror(-ret));
		goto fail;
	}
	ret = kvmclock_at(vm, &clock, &clock_at);
	if (ret) {
		errmsg_set(err, ret, "KVM_GET_CLOCK: %s", strerror(-ret));
		goto fail;
	}
	/* Both belong to one instant. */
	c->kvmclock_ns = clock - (clock_at - c->read_at_ns);

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
 * The kvmclock as it is due when KVM comes to set it. Where KVM cannot say when that is, a thread
 * that has to wait for the CPU just then leaves the guest with two clocks that are apart, and with
 * a kernel that trusts one of them no more: it is done again as long as it takes long.
 */
static int set_kvmclock(struct vm *vm, const struct vm_clock *c)
{
	struct kvm_clock_data data;
	uint64_t took = UINT64_MAX, at;
	int ret = 0;

	for (unsigned i = 0; i < TRIES && took > SET_NS && ret == 0; i++) {
		data = (struct kvm_clock_data){.flags = 0};
		at = now_ns();
		if (vm->caps.clock_realtime) {
			data.flags = KVM_CLOCK_REALTIME;
			data.realtime = realtime_at(&at);
		}
		data.clock = c->kvmclock_ns + since(c, at);
		ret = kvm_ioctl_ptr(vm->vm_fd, KVM_SET_CLOCK, &data);
		took = vm->caps.clock_realtime ? 0 : now_ns() - at;
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

		ret = tsc_at(vm, &shown, &at);
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
