/* SPDX-License-Identifier: MIT */
#include "dirty.h"

#include <errno.h>
#include <linux/kvm.h>
#include <string.h>
#include <sys/mman.h>

#include "../vmm/fault.h"
#include "../vmm/kvm.h"

static int set_logging(struct vm *vm, bool on)
{
	for (unsigned i = 0; i < vm->ram.nregions; i++) {
		const struct ram_region *r = &vm->ram.region[i];
		struct kvm_userspace_memory_region slot = {
			.slot = i,
			.flags = on ? KVM_MEM_LOG_DIRTY_PAGES : 0,
			.guest_phys_addr = r->gpa,
			.memory_size = r->size,
			.userspace_addr = (uintptr_t)r->host,
		};
		int ret = kvm_ioctl_ptr(vm->vm_fd, KVM_SET_USER_MEMORY_REGION, &slot);

		if (ret)
			return ret;
	}
	return 0;
}

static int enable_manual_protect(struct vm *vm, struct errmsg *err)
{
	struct kvm_enable_cap cap = {
		.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
		.args[0] = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
	};
	int ret;

	if (!vm->caps.manual_protect)
		return errmsg_set(err, -ENOTSUP,
				  "this host's KVM has no KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 (Linux "
				  "5.0): it cannot "
				  "migrate guests");
	/* Initially set: pages are write-protected as they are cleared, not all at once now. */
	if (vm->caps.initially_set)
		cap.args[0] |= KVM_DIRTY_LOG_INITIALLY_SET;
	ret = kvm_ioctl_ptr(vm->vm_fd, KVM_ENABLE_CAP, &cap);
	if (ret)
		return errmsg_set(err, ret, "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: %s",
				  strerror(-ret));
	return 0;
}

static bool has_ring(const struct dirty *d)
{
	return d->vm->dirty_ring.entries;
}

static int begin_ring(struct dirty *d, struct errmsg *err)
{
	int ret = dirty_ring_note_in(d->vm, d->scratch);

	return ret ? errmsg_set(err, ret, "KVM_RESET_DIRTY_RINGS: %s", strerror(-ret)) : 0;
}

void dirty_mark_all(struct dirty *d)
{
	memset(d->bitmap, 0xff, d->n_words * 8);
	if (d->vm->ram.npages % 64)
		d->bitmap[d->n_words - 1] = (1ULL << (d->vm->ram.npages % 64)) - 1;
}

int dirty_start(struct dirty *d, struct vm *vm, struct errmsg *err)
{
	int ret;

	*d = (struct dirty){.vm = vm, .n_words = ALIGN_UP(vm->ram.npages, 64ULL) / 64};
	d->bitmap = mmap(NULL, 2 * d->n_words * 8, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (d->bitmap == MAP_FAILED) {
		d->bitmap = NULL;
		return errmsg_set(err, -ENOMEM, "no memory for the dirty bitmap");
	}
	d->scratch = d->bitmap + d->n_words;
	ret = has_ring(d) ? begin_ring(d, err) : enable_manual_protect(vm, err);
	if (ret)
		goto fail;
	d->logging = true;
	ret = set_logging(vm, true);
	if (ret) {
		errmsg_set(err, ret, "starting the dirty log: %s", strerror(-ret));
		goto fail;
	}
	/* The first collection adds to this: a page that nobody writes from now on is sent too. */
	dirty_mark_all(d);
	return 0;
fail:
	dirty_stop(d);
	return ret;
}

void dirty_stop(struct dirty *d)
{
	if (d->logging)
		set_logging(d->vm, false);
	/* Nothing is added any more: what is left must not be found by the next migration. */
	if (d->logging && has_ring(d))
		dirty_ring_note_in(d->vm, NULL);
	if (d->bitmap)
		munmap(d->bitmap, 2 * d->n_words * 8);
	*d = (struct dirty){0};
}

/* KVM's log of one slot, added to the bitmap. */
static int collect_slot(struct dirty *d, unsigned slot, uint64_t *scratch)
{
	const struct ram_region *r = &d->vm->ram.region[slot];
	uint64_t first = r->offset / PAGE_SIZE / 64, n = ALIGN_UP(r->size / PAGE_SIZE, 64ULL) / 64;
	struct kvm_dirty_log log = {.slot = slot, .dirty_bitmap = scratch};
	int ret = kvm_ioctl_ptr(d->vm->vm_fd, KVM_GET_DIRTY_LOG, &log);

	if (ret)
		return ret;
	for (uint64_t i = 0; i < n; i++)
		d->bitmap[first + i] |= scratch[i];
	return 0;
}

static int collect_log(struct dirty *d, struct errmsg *err)
{
	for (unsigned i = 0; i < d->vm->ram.nregions; i++) {
		int ret = collect_slot(d, i, d->scratch);

		if (ret)
			return errmsg_set(err, ret, "KVM_GET_DIRTY_LOG: %s", strerror(-ret));
	}
	return 0;
}

static int collect_ring(struct dirty *d, struct errmsg *err)
{
	bool lost;
	int ret = dirty_ring_collect(d->vm, d->bitmap, d->n_words, &lost);

	if (ret)
		return errmsg_set(err, ret, "KVM_RESET_DIRTY_RINGS: %s", strerror(-ret));
	if (!lost)
		return 0;
	/* Turned on, all pages are write-protected; read after that, none is missed. */
	log_debug("the dirty rings do not know all pages: all of them count as dirty");
	ret = set_logging(d->vm, false);
	if (ret == 0)
		ret = set_logging(d->vm, true);
	if (ret)
		return errmsg_set(err, ret, "starting the dirty log again: %s", strerror(-ret));
	dirty_mark_all(d);
	return 0;
}

int dirty_collect(struct dirty *d, uint64_t *pages, struct errmsg *err)
{
	int ret = has_ring(d) ? collect_ring(d, err) : collect_log(d, err);
	struct ram *ram = &d->vm->ram;
	uint64_t n = 0;

	if (ret)
		return ret;
	for (uint64_t w = 0; w < d->n_words; w++) {
		/* KVM does not see what we store ourselves. */
		d->bitmap[w] |= ram_take_own_dirty(ram, w);
		if (d->bitmap[w] && fault_at(FAULT_DIRTY, "harvest"))
			d->bitmap[w] &= d->bitmap[w] - 1;
		if (d->bitmap[w])
			n += (unsigned)__builtin_popcountll(d->bitmap[w]);
	}
	*pages = n;
	return 0;
}

int dirty_clear(struct dirty *d, uint64_t word, uint64_t n, struct errmsg *err)
{
	/* Done for all pages when they were collected. */
	if (has_ring(d))
		return 0;
	for (unsigned i = 0; i < d->vm->ram.nregions && n; i++) {
		const struct ram_region *r = &d->vm->ram.region[i];
		uint64_t first = r->offset / PAGE_SIZE / 64, pages = r->size / PAGE_SIZE;
		uint64_t end = first + ALIGN_UP(pages, 64ULL) / 64, take;
		struct kvm_clear_dirty_log log;
		int ret;

		if (word < first || word >= end)
			continue;
		take = MIN(n, end - word);
		log = (struct kvm_clear_dirty_log){
			.slot = i,
			.first_page = (word - first) * 64,
			.num_pages = (uint32_t)MIN(take * 64, pages - (word - first) * 64),
			.dirty_bitmap = d->bitmap + word,
		};
		ret = kvm_ioctl_ptr(d->vm->vm_fd, KVM_CLEAR_DIRTY_LOG, &log);
		if (ret)
			return errmsg_set(err, ret, "KVM_CLEAR_DIRTY_LOG: %s", strerror(-ret));
		word += take;
		n -= take;
	}
	return 0;
}
