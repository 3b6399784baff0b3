/* SPDX-License-Identifier: MIT */
#include "dirty_ring.h"

#include <errno.h>
#include <linux/kvm.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>

#include "vm.h"

/* Resets in a row that do nothing, before it is taken that they never will. */
#define RESET_TRIES 1000U

int dirty_ring_init(struct vm *vm, struct errmsg *err)
{
	const struct dirty_config *c = &vm->cfg.dirty;
	uint32_t entries = c->entries ? c->entries : DIRTY_RING_DEFAULT;
	struct kvm_enable_cap cap = {
		.cap = (uint32_t)vm->caps.dirty_ring,
		.args[0] = entries * sizeof(struct kvm_dirty_gfn),
	};
	int ret;

	if (c->how != DIRTY_RING)
		return 0;
	if (!vm->caps.dirty_ring)
		return errmsg_set(err, -ENOTSUP,
				  "this host's KVM has no KVM_CAP_DIRTY_LOG_RING (Linux 5.11): use "
				  "--dirty log");
	ret = kvm_ioctl_ptr(vm->vm_fd, KVM_ENABLE_CAP, &cap);
	if (ret)
		return errmsg_set(err, ret,
				  "KVM_CAP_DIRTY_LOG_RING: KVM refuses rings of %u entries (%s): "
				  "use --dirty ring:N with another N, or --dirty log",
				  entries, strerror(-ret));
	vm->dirty_ring.entries = entries;
	log_debug("dirty rings of %u entries", entries);
	return 0;
}

static size_t ring_size(const struct vm *vm)
{
	return vm->dirty_ring.entries * sizeof(struct kvm_dirty_gfn);
}

int dirty_ring_map(struct vcpu *v, struct errmsg *err)
{
	void *ring;

	if (!v->vm->dirty_ring.entries)
		return 0;
	ring = mmap(NULL, ring_size(v->vm), PROT_READ | PROT_WRITE, MAP_SHARED, v->fd,
		    (off_t)(KVM_DIRTY_LOG_PAGE_OFFSET * PAGE_SIZE));
	if (ring == MAP_FAILED)
		return errmsg_set(err, -errno, "mapping the dirty ring of vCPU %u: %s", v->id,
				  strerror(errno));
	v->ring = ring;
	return 0;
}

void dirty_ring_unmap(struct vcpu *v)
{
	if (v->ring)
		munmap(v->ring, ring_size(v->vm));
	v->ring = NULL;
}

/* With the lock held. KVM says which page of which memslot; that there is one is for us to see. */
static void note(struct vm *vm, uint32_t slot, uint64_t page)
{
	const struct ram_region *r = &vm->ram.region[slot < vm->ram.nregions ? slot : 0];
	struct dirty_ring *d = &vm->dirty_ring;

	if (slot >= vm->ram.nregions || page >= r->size / PAGE_SIZE) {
		d->lost = true;
		return;
	}
	page += r->offset / PAGE_SIZE;
	if (d->pages)
		d->pages[page / 64] |= 1ULL << (page % 64);
}

/* With the lock held. How many entries it had. */
static uint64_t harvest_vcpu(struct vcpu *v)
{
	uint32_t entries = v->vm->dirty_ring.entries, n = 0;

	for (; n < entries; n++) {
		struct kvm_dirty_gfn *e = &v->ring[v->ring_next % entries];

		if (!(__atomic_load_n(&e->flags, __ATOMIC_ACQUIRE) & KVM_DIRTY_GFN_F_DIRTY))
			break;
		note(v->vm, e->slot, e->offset);
		__atomic_store_n(&e->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
		v->ring_next++;
	}
	v->ring_pages += n;
	return n;
}

/* With the lock held: n entries have been harvested. */
static int reset(struct vm *vm, uint64_t n)
{
	unsigned tries = 0;

	while (n) {
		int ret = kvm_ioctl(vm->vm_fd, KVM_RESET_DIRTY_RINGS, 0);

		if (ret < 0)
			return ret;
		if (ret == 0 && ++tries == RESET_TRIES)
			return -EIO;
		/* Cut short. If it did nothing, neither has it forgotten anything. */
		if (ret > 0 && (uint64_t)ret < n)
			vm->dirty_ring.lost = true;
		n -= MIN(n, (uint64_t)ret);
	}
	return 0;
}

/* With the lock held. */
static int harvest(struct vm *vm)
{
	sigset_t all, old;
	uint64_t n = 0;
	int ret;

	for (unsigned i = 0; i < vm->n_vcpus; i++)
		n += harvest_vcpu(&vm->vcpu[i]);
	if (!n)
		return 0;
	/* A vCPU's thread that is called to park, for one, is called after it. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	ret = reset(vm, n);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return ret;
}

struct harvester {
	struct vm *vm;
	int ret;
};

static void *run_harvester(void *arg)
{
	struct harvester *h = arg;

	h->ret = harvest(h->vm);
	return NULL;
}

/*
 * With the lock held. For threads that have an io_uring: its completions are no signals that could
 * be kept away, and a reset that they cut short right at its end does not even say so. A thread of
 * its own has none.
 */
static int harvest_apart(struct vm *vm)
{
	struct harvester h = {.vm = vm};
	sigset_t all, old;
	pthread_t thread;
	int ret;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	ret = -pthread_create(&thread, NULL, run_harvester, &h);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (ret)
		return ret;
	pthread_join(thread, NULL);
	return h.ret;
}

int dirty_ring_note_in(struct vm *vm, uint64_t *pages)
{
	struct dirty_ring *d = &vm->dirty_ring;
	int ret;

	pthread_mutex_lock(&d->lock);
	d->pages = NULL;
	ret = harvest_apart(vm);
	if (!pages && d->filled)
		log_debug("dirty rings were full %llu times", (unsigned long long)d->filled);
	d->pages = ret ? NULL : pages;
	d->lost = false;
	d->filled = 0;
	pthread_mutex_unlock(&d->lock);
	return ret;
}

int dirty_ring_collect(struct vm *vm, uint64_t *bitmap, uint64_t n_words, bool *lost)
{
	struct dirty_ring *d = &vm->dirty_ring;
	int ret;

	pthread_mutex_lock(&d->lock);
	ret = harvest_apart(vm);
	for (uint64_t w = 0; w < n_words && ret == 0; w++) {
		/* Few are set, and those that never were have no memory. */
		if (!d->pages[w])
			continue;
		bitmap[w] |= d->pages[w];
		d->pages[w] = 0;
	}
	*lost = d->lost;
	d->lost = false;
	pthread_mutex_unlock(&d->lock);
	return ret;
}

uint64_t dirty_ring_pages_of(struct vm *vm, unsigned vcpu)
{
	uint64_t pages;

	pthread_mutex_lock(&vm->dirty_ring.lock);
	pages = vm->vcpu[vcpu].ring_pages;
	pthread_mutex_unlock(&vm->dirty_ring.lock);
	return pages;
}

int dirty_ring_full(struct vcpu *v)
{
	struct dirty_ring *d = &v->vm->dirty_ring;
	int ret;

	pthread_mutex_lock(&d->lock);
	d->filled++;
	ret = harvest(v->vm);
	pthread_mutex_unlock(&d->lock);
	return ret;
}
