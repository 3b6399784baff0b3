/* SPDX-License-Identifier: MIT */
/*
 * The machine: everything that one guest consists of, in one structure that is passed along.
 *
 * Threads: the main thread runs the loop (console, control socket, timers); each vCPU has a
 * thread; a migration adds its coordinator. vm->lock guards pausing and the end of the machine.
 *
 * Pausing: the machine runs while no pause reason is set. vm_pause() adds a reason and returns
 * when every vCPU has acknowledged, with no port or MMIO access half done; vm_resume() takes the
 * reason away. Reasons are independent: a user's pause outlives a failed migration. Whoever waits
 * for a pause does so for a limited time: a host that holds a vCPU must not hold the rest.
 * Time goes on while a machine is paused, as it does for one that is being moved.
 */
#ifndef GODWIT_VM_H
#define GODWIT_VM_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "bus.h"
#include "confine.h"
#include "cpuid.h"
#include "device.h"
#include "dirty_ring.h"
#include "irq.h"
#include "kvm.h"
#include "log.h"
#include "loop.h"
#include "ram.h"
#include "sbuf.h"
#include "vcpu.h"
#include "vm_devices.h"

#define VM_NAME_MAX 64
#define VM_CMDLINE_MAX 4096
#define VM_MAX_VCPUS 1024

/* What a machine is made of; travels in the handshake of a migration, but for the last members. */
struct vm_config {
	char name[VM_NAME_MAX];
	uint64_t id[2]; /* random, the same wherever the guest goes; 0 and 0: it has none */
	uint64_t ram_size;
	uint32_t vcpus;
	char kernel[VM_PATH_MAX];
	char initrd[VM_PATH_MAX]; /* "" for none */
	char cmdline[VM_CMDLINE_MAX];
	struct vm_devices devices;
	/* Of this process, not of the guest: */
	struct dirty_config dirty;
	struct ram *adopt; /* NULL, or RAM of the guest's size to take over instead of fresh one */
	struct confine *confine; /* of its threads, and who does what they may not; may be NULL */
};

void vm_config_fields(struct vm_config *c, struct sbuf *s);

enum vm_pause {
	VM_PAUSE_START = 1,   /* not started yet, or restored and not yet committed */
	VM_PAUSE_USER = 2,    /* godwit pause */
	VM_PAUSE_MIGRATE = 4, /* stop-and-copy */
	VM_PAUSE_LOST = 8,    /* a handover whose outcome is unknown: only the user may decide */
	VM_PAUSE_END = 16,    /* the guest has ended; never taken away */
};

enum vm_end {
	VM_END_NONE,
	VM_END_POWEROFF,
	VM_END_RESET,
	VM_END_CRASH,	/* KVM or the guest did what cannot be gone on from; see end_why */
	VM_END_STOPPED, /* the user ended it */
	VM_END_MOVED,	/* runs at the other side of a migration now */
};

struct vm {
	struct vm_config cfg;
	struct loop *loop;
	int kvm_fd;
	int vm_fd;
	struct kvm_caps caps;
	struct ram ram;
	struct cpuid cpuid; /* the machine's table; see cpuid.h */
	struct bus pio;
	struct bus mmio;
	struct device *devices;
	struct device **devices_tail;
	uint32_t n_vcpus;
	struct vcpu *vcpu;
	struct dirty_ring dirty_ring;

	pthread_mutex_t lock;
	pthread_cond_t changed; /* a vCPU parked, or the reasons changed */
	unsigned pause_reasons;
	unsigned n_parked;
	unsigned n_started; /* vCPU threads that exist */
	bool quit;	    /* vCPU threads end */
	uint64_t tsc_khz;   /* of the guest's TSC */
	enum vm_end end;
	struct errmsg end_why;
	struct loop_task end_task;
	void (*on_end)(struct vm *vm, void *arg); /* on the loop's thread, once */
	void *on_end_arg;
};

/*
 * Builds the machine without devices and guest: KVM VM, RAM as memslots, irqchip, vCPUs with the
 * CPUID table `cpuid` (as built by cpuid_build(), or as it came from a migration's source). It is
 * paused with VM_PAUSE_START. -errno with the cause in err; nothing is left behind then.
 */
int vm_create(struct vm **out, const struct vm_config *cfg, const struct cpuid *cpuid,
	      struct loop *loop, struct errmsg *err);

/* Stops the vCPU threads, destroys devices in reverse order, frees all. NULL is allowed. */
void vm_destroy(struct vm *vm);

/* The same, but its RAM is moved to *ram. */
void vm_destroy_but_ram(struct vm *vm, struct ram *ram);

/* Allocates a device of ops->size, inits and resets it, appends it to the list. */
int vm_add_device(struct vm *vm, const struct device_ops *ops, uint32_t instance,
		  const void *config, struct errmsg *err);

/* The device of that tag and instance, or NULL. */
struct device *vm_find_device(const struct vm *vm, const char *tag, uint32_t instance);

/*
 * Takes for this guest what only one may have (see device.h), or gives it up. When one device
 * fails, those before it give theirs up again.
 */
int vm_acquire_devices(struct vm *vm, struct errmsg *err);
void vm_release_devices(struct vm *vm);

/* Tells every device that the pause of a move comes nearer. */
void vm_prepare_devices(struct vm *vm);

/* Starts the vCPU threads; they park while any pause reason is set. */
int vm_start(struct vm *vm, struct errmsg *err);

/*
 * How long vCPUs may take to acknowledge a pause. All that one does outside the guest is a device's
 * handler, which does not wait: a vCPU that takes longer is held up by something of the host's.
 */
#define VM_PAUSE_LIMIT (5 * NS_PER_SEC)

/*
 * Stops every vCPU for this reason and waits until each has acknowledged. May be called again.
 * -ETIMEDOUT when one has not in time: err (may be NULL) names it, the reason is taken away again
 * unless it was set before, and the guest goes on. Not from a vCPU's thread.
 */
int vm_pause_within(struct vm *vm, enum vm_pause reason, uint64_t timeout_ns, struct errmsg *err);

/* The same within VM_PAUSE_LIMIT. Of a machine whose vCPUs stand already it cannot fail. */
static inline int vm_pause(struct vm *vm, enum vm_pause reason)
{
	return vm_pause_within(vm, reason, VM_PAUSE_LIMIT, NULL);
}

/* Takes the reason away; the machine runs on if it was the last. Tells the guest's clock of the
 * gap. */
void vm_resume(struct vm *vm, enum vm_pause reason);

/* The reasons set at this moment; 0 when it runs. */
unsigned vm_paused(struct vm *vm);

/*
 * Ends the machine: vCPUs park for good and on_end runs on the loop's thread. The first end
 * counts, later ones are dropped. Any thread, vCPUs and devices included.
 */
void vm_set_end(struct vm *vm, enum vm_end end, const char *fmt, ...) PRINTF(3, 4);
enum vm_end vm_get_end(struct vm *vm);

/* Quiesces or resumes every device in order; on an error those already quiesced are resumed. */
int vm_quiesce_devices(struct vm *vm, uint64_t timeout_ns, struct errmsg *err);
void vm_resume_devices(struct vm *vm);

/* Lines for devices. */
static inline struct irq_line vm_irq(const struct vm *vm, uint32_t gsi)
{
	return (struct irq_line){.vm_fd = vm->vm_fd, .gsi = gsi};
}

#endif
