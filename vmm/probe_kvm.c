/* SPDX-License-Identifier: MIT */
#include <linux/kvm.h>
#include <string.h>
#include <unistd.h>

#include "probe_parts.h"

void probe_vcpus(struct probe_ctx *ctx, struct probe_item *item)
{
	probe_ok(item, "up to %d a guest; CPUs online here: %ld", ctx->caps.max_vcpus,
		 sysconf(_SC_NPROCESSORS_ONLN));
}

void probe_tsc(struct probe_ctx *ctx, struct probe_item *item)
{
	struct kvm_device_attr offset = {
		.group = KVM_VCPU_TSC_CTRL,
		.attr = KVM_VCPU_TSC_OFFSET,
	};
	struct kvm_clock_data clock = {0};
	struct probe_guest g;
	bool stable, exact;
	int khz, ret;

	ret = probe_guest_init(&g, ctx->kvm_fd, NULL);
	if (ret) {
		probe_not(item, PROBE_MISSING, "see the kernel's log for what KVM says",
			  "cannot make a VM: %s", strerror(-ret));
		return;
	}
	khz = kvm_ioctl(g.vcpu_fd, KVM_GET_TSC_KHZ, 0);
	ret = kvm_ioctl_ptr(g.vm_fd, KVM_GET_CLOCK, &clock);
	stable = ret == 0 && clock.flags & KVM_CLOCK_TSC_STABLE;
	exact = kvm_ioctl_ptr(g.vcpu_fd, KVM_HAS_DEVICE_ATTR, &offset) == 0;
	probe_guest_destroy(&g);

	if (khz <= 0 || ret)
		probe_not(item, PROBE_LIMITED,
			  "move guests only to and from hosts with the same clock",
			  "KVM tells neither frequency nor clock");
	else if (!ctx->caps.tsc_control)
		probe_not(
			item, PROBE_LIMITED,
			"move guests between hosts whose TSCs run at the same frequency (250 ppm)",
			"%.3f MHz%s, %s offsets, no scaling", khz / 1000.0,
			stable ? ", stable" : "", exact ? "exact" : "no exact");
	else
		probe_ok(item, "%.3f MHz%s, %s offsets, scaling", khz / 1000.0,
			 stable ? ", stable" : "", exact ? "exact" : "no exact");
}
