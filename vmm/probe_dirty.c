/* SPDX-License-Identifier: MIT */
/*
 * Theory of operation: a guest stores to one page and the log must name that page, no neighbour,
 * once per clearing. Stores are made in ring 0 and in ring 3, which take different ways where
 * ring 0 is emulated.
 */
#include <errno.h>
#include <linux/kvm.h>
#include <string.h>
#include <sys/mman.h>

#include "probe_code.h"
#include "probe_parts.h"

#define PAGES (PROBE_GUEST_SIZE / 4096U)
#define WORDS (PAGES / 64U)
#define TEST_PAGE 0x52U
#define RING_ENTRIES 4096U
#define RING_TURNS 3U

#define REMEDY_LOG "use a host with a complete KVM of Linux 5.2 or later"
#define REMEDY_OPTIONAL "nothing need be done: godwit does without"

static bool store(struct probe_guest *g, unsigned page, bool user)
{
	const struct probe_entry e = {
		.code = probe_code_store,
		.user = user,
		.rcx = page * PAGE_SIZE,
	};

	return probe_guest_run(g, &e) == GUEST_DONE && g->value == PROBE_PASS;
}

static int get_log(struct probe_guest *g, uint64_t bits[WORDS])
{
	struct kvm_dirty_log log = {.slot = 0, .dirty_bitmap = bits};

	memset(bits, 0, WORDS * sizeof(bits[0]));
	return kvm_ioctl_ptr(g->vm_fd, KVM_GET_DIRTY_LOG, &log);
}

/* Clears the bits that are set, 64 pages at a time as migration does. */
static int clear_log(struct probe_guest *g, uint64_t bits[WORDS])
{
	int ret = 0;

	for (uint32_t w = 0; w < WORDS && !ret; w++) {
		struct kvm_clear_dirty_log log = {
			.slot = 0,
			.num_pages = 64,
			.first_page = (uint64_t)w * 64,
			.dirty_bitmap = &bits[w],
		};

		if (bits[w])
			ret = kvm_ioctl_ptr(g->vm_fd, KVM_CLEAR_DIRTY_LOG, &log);
	}
	return ret;
}

static bool has_page(const uint64_t bits[WORDS], unsigned page)
{
	return bits[page / 64] >> (page % 64) & 1;
}

/* Store, see it twice (reading must not clear), clear it, see it gone. NULL, or what is wrong. */
static const char *one_turn(struct probe_guest *g, unsigned page, bool user)
{
	uint64_t bits[WORDS];

	if (!store(g, page, user))
		return "the guest cannot store while its RAM is logged";
	for (int i = 0; i < 2; i++) {
		if (get_log(g, bits))
			return "KVM_GET_DIRTY_LOG fails";
		if (!has_page(bits, page))
			return i ? "reading the log clears it" : "a store was not logged";
		if (has_page(bits, page + 1))
			return "a page that nobody wrote to was logged";
	}
	if (clear_log(g, bits))
		return "KVM_CLEAR_DIRTY_LOG fails";
	if (get_log(g, bits))
		return "KVM_GET_DIRTY_LOG fails";
	return has_page(bits, page) ? "a cleared page is still logged" : NULL;
}

/* all_set: the log must start with every page dirty, not clean. */
static const char *try_log(struct probe_guest *g, bool all_set)
{
	const char *wrong = NULL;
	uint64_t bits[WORDS];

	if (probe_guest_set_flags(g, KVM_MEM_LOG_DIRTY_PAGES))
		return "KVM_MEM_LOG_DIRTY_PAGES is refused";
	if (get_log(g, bits))
		return "KVM_GET_DIRTY_LOG fails";
	if (has_page(bits, TEST_PAGE) != all_set)
		return all_set ? "the log does not start full" : "the log does not start empty";
	if (clear_log(g, bits))
		return "KVM_CLEAR_DIRTY_LOG fails";
	for (unsigned i = 0; i < 4 && !wrong; i++)
		wrong = one_turn(g, TEST_PAGE, i % 2);
	return wrong;
}

static void log_probe(struct probe_ctx *ctx, struct probe_item *item, bool all_set)
{
	const struct probe_guest_opt opt = {
		.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
		.arg = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE |
		       (all_set ? KVM_DIRTY_LOG_INITIALLY_SET : 0U),
	};
	enum probe_result bad = all_set ? PROBE_LIMITED : PROBE_MISSING;
	const char *remedy = all_set ? "use Linux 5.7 or later; until then the first round of a "
				       "migration slows the guest more"
				     : REMEDY_LOG;
	struct probe_guest g;
	const char *wrong;
	int ret;

	if (all_set ? !ctx->caps.initially_set : !ctx->caps.manual_protect) {
		probe_not(item, bad, remedy, "KVM does not offer it");
		return;
	}
	ret = probe_guest_init(&g, ctx->kvm_fd, &opt);
	if (ret) {
		probe_not(item, bad, remedy, "cannot make a VM with it: %s", strerror(-ret));
		return;
	}
	wrong = try_log(&g, all_set);
	if (wrong)
		probe_not(item, bad, remedy, "%s", wrong);
	else if (all_set)
		probe_ok(item, "starts full, pages are write-protected when cleared");
	else
		probe_ok(item, "stores logged, cleared by range and logged again");
	probe_guest_destroy(&g);
}

void probe_dirty_log(struct probe_ctx *ctx, struct probe_item *item)
{
	log_probe(ctx, item, false);
}

void probe_initially_set(struct probe_ctx *ctx, struct probe_item *item)
{
	log_probe(ctx, item, true);
}

/* Takes every entry from *next on; true when TEST_PAGE was among them. */
static bool harvest(struct kvm_dirty_gfn *ring, uint32_t *next, unsigned *count)
{
	bool found = false;

	for (*count = 0; *count < RING_ENTRIES; ++*count) {
		struct kvm_dirty_gfn *e = &ring[*next % RING_ENTRIES];

		if (!(__atomic_load_n(&e->flags, __ATOMIC_ACQUIRE) & KVM_DIRTY_GFN_F_DIRTY))
			break;
		found |= e->slot == 0 && e->offset == TEST_PAGE;
		__atomic_store_n(&e->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
		++*next;
	}
	return found;
}

static const char *try_ring(struct probe_guest *g, struct kvm_dirty_gfn *ring)
{
	uint32_t next = 0;
	unsigned count;

	if (probe_guest_set_flags(g, KVM_MEM_LOG_DIRTY_PAGES))
		return "KVM_MEM_LOG_DIRTY_PAGES is refused";
	for (unsigned i = 0; i < RING_TURNS; i++) {
		if (!store(g, TEST_PAGE, i > 0))
			return "the guest cannot store while its RAM is logged";
		if (!harvest(ring, &next, &count))
			return "a store is not in the ring";
		if (kvm_ioctl(g->vm_fd, KVM_RESET_DIRTY_RINGS, 0) != (int)count)
			return "KVM_RESET_DIRTY_RINGS does not take what was harvested";
	}
	return NULL;
}

void probe_dirty_ring(struct probe_ctx *ctx, struct probe_item *item)
{
	struct probe_guest_opt opt = {
		.cap = KVM_CAP_DIRTY_LOG_RING_ACQ_REL,
		.arg = RING_ENTRIES * sizeof(struct kvm_dirty_gfn),
	};
	struct probe_guest g;
	const char *wrong;
	void *ring;
	int ret;

	if (!kvm_check_cap(ctx->kvm_fd, KVM_CAP_DIRTY_LOG_RING_ACQ_REL))
		opt.cap = KVM_CAP_DIRTY_LOG_RING;
	if ((uint64_t)kvm_check_cap(ctx->kvm_fd, (int)opt.cap) < opt.arg) {
		probe_not(item, PROBE_MISSING, REMEDY_OPTIONAL, "KVM does not offer it");
		return;
	}
	ret = probe_guest_init(&g, ctx->kvm_fd, &opt);
	if (ret) {
		probe_not(item, PROBE_MISSING, REMEDY_OPTIONAL, "cannot make a VM with it: %s",
			  strerror(-ret));
		return;
	}
	ring = mmap(NULL, (size_t)opt.arg, PROT_READ | PROT_WRITE, MAP_SHARED, g.vcpu_fd,
		    (off_t)(KVM_DIRTY_LOG_PAGE_OFFSET * PAGE_SIZE));
	if (ring == MAP_FAILED) {
		probe_not(item, PROBE_MISSING, REMEDY_OPTIONAL, "cannot map it: %s",
			  strerror(errno));
	} else {
		wrong = try_ring(&g, ring);
		if (wrong)
			probe_not(item, PROBE_MISSING, REMEDY_OPTIONAL, "%s", wrong);
		else
			probe_ok(item, "stores harvested from the ring, reset and harvested again");
		munmap(ring, (size_t)opt.arg);
	}
	probe_guest_destroy(&g);
}
