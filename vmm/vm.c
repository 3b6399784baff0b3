/* SPDX-License-Identifier: MIT */
#include "vm.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

/* Pages that Intel's KVM wants for real mode, in the hole below 4 GiB. */
#define IDENTITY_MAP_GPA 0xfeffc000ULL
#define TSS_GPA 0xfeffd000ULL

/* APIC ids that 8 bits cannot name need KVM's wide format. */
#define XAPIC_MAX_VCPUS 255U

void vm_config_fields(struct vm_config *c, struct sbuf *s)
{
	sb_str(s, c->name, sizeof(c->name));
	sb_u64(s, &c->ram_size);
	sb_u32_range(s, &c->vcpus, 1, VM_MAX_VCPUS);
	sb_str(s, c->kernel, sizeof(c->kernel));
	sb_str(s, c->initrd, sizeof(c->initrd));
	sb_str(s, c->cmdline, sizeof(c->cmdline));
	vm_devices_fields(&c->devices, s);
	sb_x64(s, &c->id[0]);
	sb_x64(s, &c->id[1]);
}

static int add_memslots(struct vm *vm, struct errmsg *err)
{
	for (unsigned i = 0; i < vm->ram.nregions; i++) {
		const struct ram_region *r = &vm->ram.region[i];
		struct kvm_userspace_memory_region slot = {
			.slot = i,
			.guest_phys_addr = r->gpa,
			.memory_size = r->size,
			.userspace_addr = (uintptr_t)r->host,
		};
		int ret = kvm_ioctl_ptr(vm->vm_fd, KVM_SET_USER_MEMORY_REGION, &slot);

		if (ret)
			return errmsg_set(err, ret,
					  "KVM refuses %llu MiB of guest RAM at %#llx (%s): "
					  "use a smaller -m",
					  (unsigned long long)(r->size / MIB),
					  (unsigned long long)r->gpa, strerror(-ret));
	}
	return 0;
}

static int check_config(const struct vm *vm, struct errmsg *err)
{
	const struct kvm_cpuid_entry2 *e = cpuid_find(&vm->cpuid, 0x80000008, 0);
	unsigned phys_bits = e ? e->eax & 0xff : 36;
	char size[32];

	if (vm->cfg.vcpus < 1 || vm->cfg.vcpus > VM_MAX_VCPUS ||
	    (int)vm->cfg.vcpus > vm->caps.max_vcpus)
		return errmsg_set(err, -EINVAL, "%u vCPUs: this host's KVM takes 1 to %u",
				  vm->cfg.vcpus, MIN((unsigned)vm->caps.max_vcpus, VM_MAX_VCPUS));
	/* Every x86-64 CPU has 36; a table that says less came from nowhere good. */
	if (phys_bits < 36)
		return errmsg_set(err, -EINVAL, "a CPU of %u physical address bits", phys_bits);
	if (vm->cfg.ram_size > (1ULL << MIN(phys_bits, 52U)) - RAM_HIGH_BASE)
		return errmsg_set(
			err, -EINVAL,
			"%s of RAM: the CPU's %u physical address bits do not reach that far",
			format_size(size, sizeof(size), vm->cfg.ram_size), phys_bits);
	return 0;
}

static int set_vm_capabilities(struct vm *vm, struct errmsg *err)
{
	struct kvm_enable_cap cap = {.cap = KVM_CAP_X2APIC_API};
	uint64_t identity = IDENTITY_MAP_GPA;
	int ret;

	ret = kvm_ioctl_ptr(vm->vm_fd, KVM_SET_IDENTITY_MAP_ADDR, &identity);
	if (ret)
		return errmsg_set(err, ret, "KVM_SET_IDENTITY_MAP_ADDR: %s", strerror(-ret));
	ret = kvm_ioctl(vm->vm_fd, KVM_SET_TSS_ADDR, TSS_GPA);
	if (ret)
		return errmsg_set(err, ret, "KVM_SET_TSS_ADDR: %s", strerror(-ret));
	if (vm->cfg.vcpus > XAPIC_MAX_VCPUS) {
		cap.args[0] = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
		ret = kvm_ioctl_ptr(vm->vm_fd, KVM_ENABLE_CAP, &cap);
		if (ret)
			return errmsg_set(err, ret, "more than %u vCPUs: KVM_CAP_X2APIC_API: %s",
					  XAPIC_MAX_VCPUS, strerror(-ret));
	}
	return irqchip_init(vm->vm_fd, err);
}

/* The first vCPU tells the TSC's frequency, which a fresh machine's CPUID carries. */
static void learn_tsc(struct vm *vm)
{
	int khz = ioctl(vm->vcpu[0].fd, KVM_GET_TSC_KHZ, 0);

	vm->tsc_khz = khz > 0 ? (uint64_t)khz : 0;
	cpuid_set_tsc_khz(&vm->cpuid, (uint32_t)vm->tsc_khz);
}

static int create_vcpus(struct vm *vm, struct errmsg *err)
{
	struct cpuid *c;
	int ret = 0;

	vm->vcpu = calloc(vm->cfg.vcpus, sizeof(*vm->vcpu));
	c = malloc(sizeof(*c));
	if (!vm->vcpu || !c) {
		free(c);
		return errmsg_set(err, -ENOMEM, "no memory for %u vCPUs", vm->cfg.vcpus);
	}
	for (unsigned i = 0; i < vm->cfg.vcpus; i++) {
		ret = vcpu_init(&vm->vcpu[i], vm, i, err);
		if (ret)
			break;
		vm->n_vcpus++;
		if (i == 0)
			learn_tsc(vm);
		cpuid_for_vcpu(c, &vm->cpuid, i, vm->cfg.vcpus);
		ret = cpuid_set(vm->vcpu[i].fd, c);
		if (ret) {
			errmsg_set(err, ret, "KVM refuses the CPUID of vCPU %u: %s", i,
				   strerror(-ret));
			break;
		}
	}
	free(c);
	return ret;
}

static int init_ram(struct vm *vm, struct errmsg *err)
{
	struct ram *adopt = vm->cfg.adopt;

	vm->cfg.adopt = NULL;
	if (!adopt)
		return ram_init(&vm->ram, vm->cfg.ram_size, !vm->cfg.devices.balloon, err);
	if (adopt->size != vm->cfg.ram_size)
		return errmsg_set(err, -EINVAL, "the RAM to take over has another size");
	ram_move(&vm->ram, adopt);
	return 0;
}

int vm_create(struct vm **out, const struct vm_config *cfg, const struct cpuid *cpuid,
	      struct loop *loop, struct errmsg *err)
{
	struct vm *vm = calloc(1, sizeof(*vm));
	pthread_condattr_t attr;
	int ret;

	if (!vm)
		return errmsg_set(err, -ENOMEM, "no memory for the machine");
	pthread_mutex_init(&vm->lock, NULL);
	pthread_mutex_init(&vm->dirty_ring.lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&vm->changed, &attr);
	pthread_condattr_destroy(&attr);
	vm->cfg = *cfg;
	vm->cpuid = *cpuid;
	vm->loop = loop;
	vm->vm_fd = -1;
	vm->ram.fd = -1;
	vm->devices_tail = &vm->devices;
	vm->pause_reasons = VM_PAUSE_START;

	vm->kvm_fd = kvm_open(&vm->caps, err);
	if (vm->kvm_fd < 0) {
		ret = vm->kvm_fd;
		goto fail;
	}
	ret = check_config(vm, err);
	if (ret)
		goto fail;
	ret = init_ram(vm, err);
	if (ret)
		goto fail;
	vm->vm_fd = ioctl(vm->kvm_fd, KVM_CREATE_VM, 0);
	if (vm->vm_fd < 0) {
		ret = errmsg_set(err, -errno, "KVM_CREATE_VM: %s", strerror(errno));
		goto fail;
	}
	/* VM-wide: the size may depend on what the process has asked for. */
	ret = ioctl(vm->vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_XSAVE2);
	vm->caps.xsave_size = ret > 0 ? ret : 0;
	ret = set_vm_capabilities(vm, err);
	if (ret)
		goto fail;
	ret = dirty_ring_init(vm, err);
	if (ret)
		goto fail;
	ret = add_memslots(vm, err);
	if (ret)
		goto fail;
	ret = create_vcpus(vm, err);
	if (ret)
		goto fail;
	*out = vm;
	return 0;
fail:
	vm_destroy(vm);
	return ret;
}

static void destroy_devices(struct vm *vm)
{
	/* Last created, first destroyed. */
	while (vm->devices) {
		struct device **p = &vm->devices;
		struct device *d;

		while ((*p)->next)
			p = &(*p)->next;
		d = *p;
		*p = NULL;
		d->ops->destroy(d);
		free(d);
	}
}

static void destroy(struct vm *vm, struct ram *keep)
{
	pthread_mutex_lock(&vm->lock);
	vm->quit = true;
	vm->pause_reasons |= VM_PAUSE_END;
	for (unsigned i = 0; i < vm->n_vcpus; i++)
		vcpu_kick(&vm->vcpu[i]);
	pthread_cond_broadcast(&vm->changed);
	pthread_mutex_unlock(&vm->lock);
	/* First all threads: one may look at the dirty rings of all. */
	for (unsigned i = 0; i < vm->n_vcpus; i++)
		vcpu_join(&vm->vcpu[i]);
	for (unsigned i = 0; i < vm->n_vcpus; i++)
		vcpu_destroy(&vm->vcpu[i]);
	loop_unpost(vm->loop, &vm->end_task);
	destroy_devices(vm);
	free(vm->vcpu);
	if (vm->vm_fd >= 0)
		close(vm->vm_fd);
	if (keep)
		ram_move(keep, &vm->ram);
	else
		ram_destroy(&vm->ram);
	if (vm->kvm_fd >= 0)
		close(vm->kvm_fd);
	pthread_cond_destroy(&vm->changed);
	pthread_mutex_destroy(&vm->dirty_ring.lock);
	pthread_mutex_destroy(&vm->lock);
	free(vm);
}

void vm_destroy(struct vm *vm)
{
	if (vm)
		destroy(vm, NULL);
}

void vm_destroy_but_ram(struct vm *vm, struct ram *ram)
{
	destroy(vm, ram);
}

int vm_add_device(struct vm *vm, const struct device_ops *ops, uint32_t instance,
		  const void *config, struct errmsg *err)
{
	struct device *d = calloc(1, ops->size);
	int ret;

	if (!d)
		return errmsg_set(err, -ENOMEM, "no memory for device %s", ops->tag);
	d->ops = ops;
	d->vm = vm;
	d->instance = instance;
	ret = ops->init(d, config);
	if (ret) {
		free(d);
		return errmsg_set(err, ret, "device %s: %s", ops->tag, strerror(-ret));
	}
	ops->reset(d);
	*vm->devices_tail = d;
	vm->devices_tail = &d->next;
	return 0;
}

struct device *vm_find_device(const struct vm *vm, const char *tag, uint32_t instance)
{
	struct device *d;

	for (d = vm->devices; d; d = d->next) {
		if (d->instance == instance && strcmp(d->ops->tag, tag) == 0)
			break;
	}
	return d;
}

int vm_acquire_devices(struct vm *vm, struct errmsg *err)
{
	for (struct device *d = vm->devices; d; d = d->next) {
		int ret = d->ops->acquire ? d->ops->acquire(d, err) : 0;

		if (ret == 0)
			continue;
		for (struct device *done = vm->devices; done != d; done = done->next) {
			if (done->ops->release)
				done->ops->release(done);
		}
		return ret;
	}
	return 0;
}

void vm_release_devices(struct vm *vm)
{
	for (struct device *d = vm->devices; d; d = d->next) {
		if (d->ops->release)
			d->ops->release(d);
	}
}

void vm_prepare_devices(struct vm *vm)
{
	for (struct device *d = vm->devices; d; d = d->next) {
		if (d->ops->prepare)
			d->ops->prepare(d);
	}
}

int vm_start(struct vm *vm, struct errmsg *err)
{
	for (unsigned i = 0; i < vm->n_vcpus; i++) {
		int ret = vcpu_start(&vm->vcpu[i], err);

		if (ret)
			return ret;
		pthread_mutex_lock(&vm->lock);
		vm->n_started++;
		vm->n_parked++;
		pthread_mutex_unlock(&vm->lock);
	}
	return 0;
}

/* With vm->lock held. */
static void add_reason(struct vm *vm, unsigned reason)
{
	bool ran = vm->pause_reasons == 0;

	vm->pause_reasons |= reason;
	if (!ran)
		return;
	for (unsigned i = 0; i < vm->n_vcpus; i++)
		vcpu_kick(&vm->vcpu[i]);
	/* Those that nap. */
	pthread_cond_broadcast(&vm->changed);
}

/* With vm->lock held. */
static void take_reason_away(struct vm *vm, unsigned reason)
{
	if (vm->pause_reasons == reason) {
		/*
		 * So that the guest's watchdogs forgive the gap. EINVAL: this guest has no
		 * kvmclock. One that has not stopped had no gap, and KVM would have us wait for it.
		 */
		for (unsigned i = 0; i < vm->n_vcpus; i++) {
			if (vm->vcpu[i].parked)
				kvm_ioctl(vm->vcpu[i].fd, KVM_KVMCLOCK_CTRL, 0);
		}
	}
	vm->pause_reasons &= ~reason;
	pthread_cond_broadcast(&vm->changed);
}

/* With vm->lock held: somebody has not parked. */
static unsigned first_running(const struct vm *vm)
{
	unsigned i = 0;

	while (i + 1 < vm->n_vcpus && vm->vcpu[i].parked)
		i++;
	return i;
}

int vm_pause_within(struct vm *vm, enum vm_pause reason, uint64_t timeout_ns, struct errmsg *err)
{
	uint64_t start = now_ns(), end = start + MIN(timeout_ns, UINT64_MAX - start);
	struct timespec deadline = {.tv_sec = (time_t)(end / NS_PER_SEC),
				    .tv_nsec = (long)(end % NS_PER_SEC)};
	bool was_set;
	int ret = 0;

	pthread_mutex_lock(&vm->lock);
	was_set = vm->pause_reasons & (unsigned)reason;
	add_reason(vm, reason);
	while (vm->n_parked < vm->n_started && ret == 0)
		ret = -pthread_cond_timedwait(&vm->changed, &vm->lock, &deadline);
	if (vm->n_parked < vm->n_started) {
		errmsg_set(err, ret,
			   "vCPU %u has not stopped within %llu ms: something on this host holds "
			   "it up (slow storage, or a reader of the guest's output that takes "
			   "nothing)",
			   first_running(vm), (unsigned long long)(timeout_ns / NS_PER_MS));
		if (!was_set)
			take_reason_away(vm, reason);
	} else {
		ret = 0;
	}
	pthread_mutex_unlock(&vm->lock);
	return ret;
}

void vm_resume(struct vm *vm, enum vm_pause reason)
{
	pthread_mutex_lock(&vm->lock);
	take_reason_away(vm, reason);
	pthread_mutex_unlock(&vm->lock);
}

unsigned vm_paused(struct vm *vm)
{
	unsigned reasons;

	pthread_mutex_lock(&vm->lock);
	reasons = vm->pause_reasons;
	pthread_mutex_unlock(&vm->lock);
	return reasons;
}

static void run_end(struct loop_task *task)
{
	struct vm *vm = container_of(task, struct vm, end_task);

	if (vm->on_end)
		vm->on_end(vm, vm->on_end_arg);
}

void vm_set_end(struct vm *vm, enum vm_end end, const char *fmt, ...)
{
	bool first;
	va_list ap;

	pthread_mutex_lock(&vm->lock);
	first = vm->end == VM_END_NONE;
	if (first) {
		vm->end = end;
		va_start(ap, fmt);
		vsnprintf(vm->end_why.text, sizeof(vm->end_why.text), fmt, ap);
		va_end(ap);
		add_reason(vm, VM_PAUSE_END);
		vm->end_task.run = run_end;
	}
	pthread_mutex_unlock(&vm->lock);
	if (first)
		loop_post(vm->loop, &vm->end_task);
}

enum vm_end vm_get_end(struct vm *vm)
{
	enum vm_end end;

	pthread_mutex_lock(&vm->lock);
	end = vm->end;
	pthread_mutex_unlock(&vm->lock);
	return end;
}

int vm_quiesce_devices(struct vm *vm, uint64_t timeout_ns, struct errmsg *err)
{
	uint64_t deadline = now_ns() + timeout_ns;

	for (struct device *d = vm->devices; d; d = d->next) {
		int ret = d->ops->quiesce(d, deadline);

		if (ret == 0)
			continue;
		for (struct device *done = vm->devices; done != d; done = done->next)
			done->ops->resume(done);
		return errmsg_set(err, ret, "device %s %u does not come to rest: %s", d->ops->tag,
				  d->instance, strerror(-ret));
	}
	return 0;
}

void vm_resume_devices(struct vm *vm)
{
	for (struct device *d = vm->devices; d; d = d->next)
		d->ops->resume(d);
}
