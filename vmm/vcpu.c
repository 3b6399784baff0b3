/* SPDX-License-Identifier: MIT */
/*
 * The vCPU's thread: KVM_RUN and its exits. See vcpu.h for how it is stopped.
 *
 * What makes the stop exact is that a thread parks only after KVM_RUN has returned EINTR: KVM
 * completes the access of the previous exit (moves the instruction pointer, stores what a read
 * gave) on the way in, before it looks at immediate_exit. A thread that parked right after it
 * had served an exit would leave an access half done, and the guest would do it twice. A thread
 * that is throttled naps in the same place.
 */
#include "vcpu.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vm.h"

#define KICK_SIGNAL SIGUSR1

int vcpu_init(struct vcpu *v, struct vm *vm, unsigned id, struct errmsg *err)
{
	void *run;
	int ret;

	*v = (struct vcpu){.vm = vm, .id = id, .fd = -1, .parked = true};
	v->fd = ioctl(vm->vm_fd, KVM_CREATE_VCPU, (unsigned long)id);
	if (v->fd < 0)
		return errmsg_set(err, -errno, "creating vCPU %u: %s", id, strerror(errno));
	v->run_size = (size_t)vm->caps.mmap_size;
	run = mmap(NULL, v->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, v->fd, 0);
	if (run == MAP_FAILED) {
		ret = errmsg_set(err, -errno, "mapping vCPU %u: %s", id, strerror(errno));
		vcpu_destroy(v);
		return ret;
	}
	v->run = run;
	ret = dirty_ring_map(v, err);
	if (ret)
		vcpu_destroy(v);
	return ret;
}

void vcpu_join(struct vcpu *v)
{
	if (v->thread_started)
		pthread_join(v->thread, NULL);
	v->thread_started = false;
}

void vcpu_destroy(struct vcpu *v)
{
	vcpu_join(v);
	dirty_ring_unmap(v);
	if (v->run)
		munmap(v->run, v->run_size);
	if (v->fd >= 0)
		close(v->fd);
	*v = (struct vcpu){.fd = -1};
}

void vcpu_kick(struct vcpu *v)
{
	__atomic_store_n(&v->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
	if (v->thread_started)
		pthread_kill(v->thread, KICK_SIGNAL);
}

static void serve_io(struct vcpu *v)
{
	struct kvm_run *run = v->run;
	uint8_t *data = (uint8_t *)run + run->io.data_offset;
	unsigned size = run->io.size;

	for (uint32_t i = 0; i < run->io.count; i++, data += size) {
		uint64_t value = 0;

		if (run->io.direction == KVM_EXIT_IO_OUT) {
			memcpy(&value, data, size);
			bus_write(&v->vm->pio, run->io.port, size, value);
		} else {
			value = bus_read(&v->vm->pio, run->io.port, size);
			memcpy(data, &value, size);
		}
	}
}

static void serve_mmio(struct vcpu *v)
{
	struct kvm_run *run = v->run;
	unsigned size = MIN(run->mmio.len, 8U);
	uint64_t value = 0;

	if (run->mmio.is_write) {
		memcpy(&value, run->mmio.data, size);
		bus_write(&v->vm->mmio, run->mmio.phys_addr, size, value);
	} else {
		value = bus_read(&v->vm->mmio, run->mmio.phys_addr, size);
		memcpy(run->mmio.data, &value, size);
	}
}

static void serve_system_event(struct vcpu *v)
{
	switch (v->run->system_event.type) {
	case KVM_SYSTEM_EVENT_SHUTDOWN:
		vm_set_end(v->vm, VM_END_POWEROFF, "system event");
		break;
	case KVM_SYSTEM_EVENT_RESET:
		vm_set_end(v->vm, VM_END_RESET, "system event");
		break;
	default:
		vm_set_end(v->vm, VM_END_CRASH, "KVM reported system event %u",
			   v->run->system_event.type);
	}
}

/* KVM could not go on: say where and, as far as it tells, at which instruction. */
static void crash_internal_error(struct vcpu *v)
{
	struct kvm_run *run = v->run;
	struct kvm_regs regs = {0};
	char bytes[64] = "";
	size_t n = 0;

	kvm_ioctl_ptr(v->fd, KVM_GET_REGS, &regs);
	if (run->internal.suberror == KVM_INTERNAL_ERROR_EMULATION &&
	    (run->emulation_failure.flags & KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES)) {
		unsigned size = MIN(run->emulation_failure.insn_size, 15U);

		n += (size_t)snprintf(bytes, sizeof(bytes), ", instruction");
		for (unsigned i = 0; i < size; i++)
			n += (size_t)snprintf(bytes + n, sizeof(bytes) - n, " %02x",
					      run->emulation_failure.insn_bytes[i]);
	}
	vm_set_end(v->vm, VM_END_CRASH,
		   "vCPU %u: KVM internal error %u at rip %#llx%s (a KVM that emulates ring 0 "
		   "cannot run every "
		   "guest: see `godwit doctor`)",
		   v->id, run->internal.suberror, (unsigned long long)regs.rip, bytes);
}

static void serve_ring_full(struct vcpu *v)
{
	int ret = dirty_ring_full(v);

	if (ret)
		vm_set_end(v->vm, VM_END_CRASH,
			   "vCPU %u: its dirty ring is full, KVM_RESET_DIRTY_RINGS: %s", v->id,
			   strerror(-ret));
}

static void serve_exit(struct vcpu *v)
{
	struct kvm_run *run = v->run;

	switch (run->exit_reason) {
	case KVM_EXIT_IO:
		serve_io(v);
		break;
	case KVM_EXIT_MMIO:
		serve_mmio(v);
		break;
	case KVM_EXIT_INTR:
	case KVM_EXIT_IRQ_WINDOW_OPEN:
		break;
	case KVM_EXIT_DIRTY_RING_FULL:
		serve_ring_full(v);
		break;
	case KVM_EXIT_SHUTDOWN:
		vm_set_end(v->vm, VM_END_RESET, "triple fault on vCPU %u", v->id);
		break;
	case KVM_EXIT_SYSTEM_EVENT:
		serve_system_event(v);
		break;
	case KVM_EXIT_INTERNAL_ERROR:
		crash_internal_error(v);
		break;
	case KVM_EXIT_FAIL_ENTRY:
		vm_set_end(v->vm, VM_END_CRASH,
			   "vCPU %u: hardware refuses to enter the guest, reason %#llx", v->id,
			   (unsigned long long)run->fail_entry.hardware_entry_failure_reason);
		break;
	default:
		vm_set_end(v->vm, VM_END_CRASH, "vCPU %u: KVM exit %u that godwit does not know",
			   v->id, run->exit_reason);
	}
}

/* With vm->lock held: waits while the VM is paused. */
static void stand(struct vcpu *v)
{
	struct vm *vm = v->vm;

	if (vm->pause_reasons && !v->parked) {
		v->parked = true;
		vm->n_parked++;
		pthread_cond_broadcast(&vm->changed);
	}
	while (vm->pause_reasons && !vm->quit)
		pthread_cond_wait(&vm->changed, &vm->lock);
	if (!vm->quit && v->parked) {
		v->parked = false;
		vm->n_parked--;
	}
}

/* Waits while the VM is paused, or this vCPU naps. false when the thread is to end. */
static bool park(struct vcpu *v)
{
	struct vm *vm = v->vm;
	bool quit;

	pthread_mutex_lock(&vm->lock);
	do {
		stand(v);
		throttle_nap(v);
	} while (vm->pause_reasons && !vm->quit);
	quit = vm->quit;
	if (!quit) {
		/* Under the lock: whoever pauses sets it after he has set his reason. */
		__atomic_store_n(&v->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
		throttle_arm(v, KICK_SIGNAL);
	}
	pthread_mutex_unlock(&vm->lock);
	return !quit;
}

static void *vcpu_thread(void *arg)
{
	struct vcpu *v = arg;
	char name[16];
	bool go;

	snprintf(name, sizeof(name), "vcpu%u", v->id);
	pthread_setname_np(pthread_self(), name);
	confine_thread(v->vm->cfg.confine, CONFINE_VCPU);
	go = park(v);
	while (go) {
		int ret = ioctl(v->fd, KVM_RUN, 0);

		if (ret == 0) {
			v->exits++;
			serve_exit(v);
		} else if (errno == EINTR || errno == EAGAIN) {
			go = park(v);
		} else {
			vm_set_end(v->vm, VM_END_CRASH, "vCPU %u: KVM_RUN: %s", v->id,
				   strerror(errno));
			go = park(v);
		}
	}
	throttle_end(v);
	return NULL;
}

/* It is enough that KVM_RUN returns; who kicks has set immediate_exit, a timer has not. */
static void on_kick(int sig, siginfo_t *info, void *context)
{
	struct vcpu *v = info->si_code == SI_TIMER ? info->si_value.sival_ptr : NULL;

	(void)sig;
	(void)context;
	if (v)
		__atomic_store_n(&v->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
}

int vcpu_start(struct vcpu *v, struct errmsg *err)
{
	struct sigaction sa = {.sa_sigaction = on_kick, .sa_flags = SA_SIGINFO};
	sigset_t block, old;
	int ret;

	sigemptyset(&sa.sa_mask);
	sigaction(KICK_SIGNAL, &sa, NULL);

	/* The process's signals are for the main thread; SIGSYS is for whom it is about. */
	sigfillset(&block);
	sigdelset(&block, KICK_SIGNAL);
	sigdelset(&block, SIGSYS);
	pthread_sigmask(SIG_SETMASK, &block, &old);
	ret = -pthread_create(&v->thread, NULL, vcpu_thread, v);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (ret)
		return errmsg_set(err, ret, "thread of vCPU %u: %s", v->id, strerror(-ret));
	v->thread_started = true;
	return 0;
}
