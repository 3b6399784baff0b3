/* SPDX-License-Identifier: MIT */
/*
 * Dirty tracking on real KVM, by its log and by its rings: what the guest stores, and what we
 * store, and when it is forgotten.
 *
 * A reset of the rings that KVM does not do as it should is made here: ioctl() of this program is
 * its own.
 */
#include "../dirty.h"

#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/syscall.h>

#include "../../vmm/tests/kvm-fixture.h"

static struct machine *m;
static struct dirty d;
static struct dirty_config how; /* as the case says */

/* ---- resets ---- */

static unsigned n_resets;
static void (*before_reset)(void);
static int cut_by, cut_left; /* a reset tells of so many less; and the next one of them */
static bool resets_fail;

int ioctl(int fd, unsigned long request, ...)
{
	va_list ap;
	void *arg;
	int ret;

	va_start(ap, request);
	arg = va_arg(ap, void *);
	va_end(ap);
	if (request != KVM_RESET_DIRTY_RINGS)
		return (int)syscall(SYS_ioctl, fd, request, arg);
	n_resets++;
	if (before_reset)
		before_reset();
	if (resets_fail)
		return 0;
	ret = (int)syscall(SYS_ioctl, fd, request, arg) + cut_left;
	cut_left = 0;
	if (ret > cut_by) {
		cut_left = cut_by;
		ret -= cut_by;
		cut_by = 0;
	}
	return ret;
}

/* ---- a machine ---- */

static void begin(uint64_t ram_size)
{
	m = machine_new_dirty(ram_size, 1, how);
	machine_user_store_code(m);
	ck_assert_msg(dirty_start(&d, m->vm, &m->err) == 0, "%s", m->err.text);
}

static void end(void)
{
	dirty_stop(&d);
	machine_free(m);
}

static uint64_t collect(void)
{
	uint64_t pages = UINT64_MAX, n = 0;

	ck_assert_msg(dirty_collect(&d, &pages, &m->err) == 0, "%s", m->err.text);
	for (uint64_t w = 0; w < d.n_words; w++)
		n += (unsigned)__builtin_popcountll(d.bitmap[w]);
	ck_assert_uint_eq(pages, n);
	return pages;
}

static bool has(uint64_t page)
{
	return d.bitmap[page / 64] >> page % 64 & 1;
}

/* As a round does: forget range by range, and take the bits out. */
static void clear_all(void)
{
	for (uint64_t w = 0; w < d.n_words; w += 8) {
		uint64_t n = MIN(8U, d.n_words - w);

		ck_assert_msg(dirty_clear(&d, w, n, &m->err) == 0, "%s", m->err.text);
		memset(d.bitmap + w, 0, n * 8);
	}
}

/* Down to a guest that stands still and a log that is empty. */
static void settle(void)
{
	collect();
	clear_all();
	/* What the guest's first instruction did to its page tables. */
	kvm_guest_store(m->vm, MIB, 1);
	collect();
	clear_all();
	ck_assert_uint_eq(collect(), 0);
}

START_TEST(starts_full)
{
	/* Not a whole number of bitmap words. */
	begin(RAM_MIN + 5 * PAGE_SIZE);
	ck_assert_uint_eq(collect(), RAM_MIN / PAGE_SIZE + 5);
	settle();
	/* Again, for a second migration: full again. */
	dirty_stop(&d);
	ck_assert_msg(dirty_start(&d, m->vm, &m->err) == 0, "%s", m->err.text);
	ck_assert_uint_eq(collect(), RAM_MIN / PAGE_SIZE + 5);
	end();
}
END_TEST

START_TEST(guest_stores)
{
	begin(RAM_MIN);
	settle();
	kvm_guest_store(m->vm, 700 * PAGE_SIZE + 16, 7);
	ck_assert_uint_eq(collect(), 1);
	ck_assert(has(700));
	clear_all();
	ck_assert_uint_eq(collect(), 0);
	/* Cleared, it is seen again. */
	for (unsigned i = 0; i < 5; i++) {
		kvm_guest_store(m->vm, 700 * PAGE_SIZE + 16, i);
		ck_assert_uint_eq(collect(), 1);
		clear_all();
	}
	/* Over a page's end: both. */
	kvm_guest_store(m->vm, 701 * PAGE_SIZE - 4, 7);
	ck_assert_uint_eq(collect(), 2);
	ck_assert(has(700) && has(701));
	end();
}
END_TEST

/* A store after the harvest, before the clearing: of that page, and of its neighbour. */
START_TEST(nothing_between_is_lost)
{
	begin(RAM_MIN);
	settle();
	kvm_guest_store(m->vm, 640 * PAGE_SIZE, 1);
	ck_assert_uint_eq(collect(), 1);
	kvm_guest_store(m->vm, 641 * PAGE_SIZE, 1);
	clear_all();
	/* The page that was not in the harvest must still be in the log. */
	ck_assert_uint_eq(collect(), 1);
	ck_assert(has(641));
	clear_all();
	/* A store after the clearing belongs to the next one. */
	kvm_guest_store(m->vm, 640 * PAGE_SIZE, 2);
	ck_assert_uint_eq(collect(), 1);
	ck_assert(has(640));
	end();
}
END_TEST

/* Looking does not forget. */
START_TEST(log_looks)
{
	begin(RAM_MIN);
	settle();
	kvm_guest_store(m->vm, 700 * PAGE_SIZE, 7);
	ck_assert_uint_eq(collect(), 1);
	memset(d.bitmap, 0, d.n_words * 8);
	ck_assert_uint_eq(collect(), 1);
	clear_all();
	ck_assert_uint_eq(collect(), 0);
	end();
}
END_TEST

/* A range that is not cleared stays. */
START_TEST(log_ranges)
{
	begin(RAM_MIN);
	settle();
	kvm_guest_store(m->vm, 600 * PAGE_SIZE, 1);
	kvm_guest_store(m->vm, 900 * PAGE_SIZE, 1);
	ck_assert_uint_eq(collect(), 2);
	ck_assert_int_eq(dirty_clear(&d, 600 / 64, 1, &m->err), 0);
	memset(d.bitmap, 0, d.n_words * 8);
	ck_assert_uint_eq(collect(), 1);
	ck_assert(has(900));
	ck_assert_int_eq(dirty_clear(&d, 0, d.n_words, &m->err), 0);
	memset(d.bitmap, 0, d.n_words * 8);
	ck_assert_uint_eq(collect(), 0);
	end();
}
END_TEST

/* KVM does not see what we store: each way to do it is found all the same. */
START_TEST(own_stores)
{
	static uint8_t page[PAGE_SIZE];
	struct ram *ram;
	int fd;

	begin(RAM_MIN);
	settle();
	ram = &m->vm->ram;
	memset(page, 1, sizeof(page));
	ck_assert_int_eq(ram_write(ram, 650 * PAGE_SIZE - 1, "ab", 2), 0);
	ck_assert_uint_eq(collect(), 2);
	ck_assert(has(649) && has(650));
	clear_all();
	ck_assert_int_eq(ram_zero(ram, 660 * PAGE_SIZE, 10), 0);
	ck_assert_uint_eq(collect(), 1);
	ck_assert(has(660));
	clear_all();
	memcpy(ram_dma_page(ram, ram->npages - 1), page, PAGE_SIZE);
	ram_dma_done(ram, ram_page(ram, ram->npages - 1), PAGE_SIZE);
	ck_assert_uint_eq(collect(), 1);
	ck_assert(has(ram->npages - 1));
	clear_all();
	ck_assert_int_eq(ram_zero_pages(ram, 670, 3), 0);
	ck_assert_uint_eq(collect(), 3);
	ck_assert(has(670) && has(672));
	clear_all();
	fd = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	ck_assert_int_eq(ram_write_file(ram, 680 * PAGE_SIZE, fd, 0, PAGE_SIZE + 1), 0);
	close(fd);
	ck_assert_uint_eq(collect(), 2);
	ck_assert(has(680) && has(681));
	clear_all();
	ck_assert_uint_eq(collect(), 0);
	/* What was stored before tracking began is part of the first round. */
	dirty_stop(&d);
	ck_assert_int_eq(ram_write(ram, 690 * PAGE_SIZE, "x", 1), 0);
	ck_assert_int_eq(dirty_start(&d, m->vm, &m->err), 0);
	ck_assert_uint_eq(collect(), ram->npages);
	end();
}
END_TEST

/* Both of a page's sources at once count it once. */
START_TEST(both)
{
	begin(RAM_MIN);
	settle();
	kvm_guest_store(m->vm, 600 * PAGE_SIZE, 1);
	ck_assert_int_eq(ram_write(&m->vm->ram, 600 * PAGE_SIZE + 8, "x", 1), 0);
	ck_assert_int_eq(ram_write(&m->vm->ram, 601 * PAGE_SIZE, "x", 1), 0);
	ck_assert_uint_eq(collect(), 2);
	clear_all();
	ck_assert_uint_eq(collect(), 0);
	end();
}
END_TEST

/* RAM above 4 GiB is a slot of its own, in the same bitmap. */
START_TEST(two_regions)
{
	const uint64_t high = RAM_LOW_MAX / PAGE_SIZE;

	begin(RAM_LOW_MAX + 16 * MIB);
	ck_assert_uint_eq(collect(), high + 4096);
	clear_all();
	kvm_guest_store(m->vm, MIB, 1);
	kvm_guest_store(m->vm, RAM_HIGH_BASE, 1);
	collect();
	clear_all();
	ck_assert_uint_eq(collect(), 0);
	kvm_guest_store(m->vm, RAM_HIGH_BASE + 77 * PAGE_SIZE, 1);
	kvm_guest_store(m->vm, RAM_HIGH_BASE + 16 * MIB - 8, 1);
	ck_assert_int_eq(ram_write(&m->vm->ram, RAM_LOW_MAX - 1, "x", 1), 0);
	ck_assert_uint_eq(collect(), 3);
	ck_assert(has(high + 77) && has(high + 4095) && has(high - 1));
	/* One call over the border of both. */
	ck_assert_int_eq(dirty_clear(&d, high / 64 - 4, 68, &m->err), 0);
	memset(d.bitmap, 0, d.n_words * 8);
	ck_assert_uint_eq(collect(), 0);
	end();
}
END_TEST

/* Stopped, the guest pays no more: the log is gone. */
START_TEST(log_stops)
{
	uint64_t bits[RAM_MIN / PAGE_SIZE / 64];
	struct kvm_dirty_log log = {.slot = 0, .dirty_bitmap = bits};

	begin(RAM_MIN);
	settle();
	ck_assert_int_eq(kvm_ioctl_ptr(m->vm->vm_fd, KVM_GET_DIRTY_LOG, &log), 0);
	dirty_stop(&d);
	ck_assert_int_eq(kvm_ioctl_ptr(m->vm->vm_fd, KVM_GET_DIRTY_LOG, &log), -ENOENT);
	kvm_guest_store(m->vm, MIB, 5);
	/* Fine on one that is stopped, and on one that never started. */
	dirty_stop(&d);
	d = (struct dirty){0};
	end();
}
END_TEST

/* ---- rings ---- */

static void store_pages(uint64_t first, uint64_t n)
{
	for (uint64_t i = 0; i < n; i++)
		kvm_guest_store(m->vm, (first + i) * PAGE_SIZE, i + 1);
}

static void need_pages(uint64_t first, uint64_t n)
{
	for (uint64_t i = 0; i < n; i++)
		ck_assert_msg(has(first + i), "page %lu is not dirty", first + i);
}

/*
 * More than a ring holds: what is harvested while a round works is for the next one, and the round
 * sees nothing of it.
 */
START_TEST(ring_fills)
{
	const uint64_t first = 700, n = 2 * DIRTY_RING_MIN;

	how.entries = DIRTY_RING_MIN;
	begin(RAM_MIN);
	settle();
	for (unsigned i = 0; i < 3; i++) {
		uint64_t filled = m->vm->dirty_ring.filled;

		store_pages(first, n);
		ck_assert_uint_gt(m->vm->dirty_ring.filled, filled);
		for (uint64_t w = 0; w < d.n_words; w++)
			ck_assert_uint_eq(d.bitmap[w], 0);
		ck_assert_uint_eq(collect(), n);
		need_pages(first, n);
		clear_all();
		ck_assert_uint_eq(collect(), 0);
	}
	/* Written again after they were harvested, before they are collected: no harm. */
	store_pages(first, n);
	store_pages(first, n);
	ck_assert_uint_eq(collect(), n);
	clear_all();
	end();
}
END_TEST

/* Whose pages they are is counted, however they come out of the ring. */
START_TEST(ring_counts)
{
	uint64_t before;

	begin(RAM_MIN);
	settle();
	before = dirty_ring_pages_of(m->vm, 0);
	for (unsigned i = 0; i < 5; i++)
		kvm_guest_store(m->vm, MIB + i * PAGE_SIZE, i);
	/* Again, before anybody has looked. */
	kvm_guest_store(m->vm, MIB, 7);
	ck_assert_int_eq(dirty_ring_full(&m->vm->vcpu[0]), 0);
	ck_assert_uint_eq(dirty_ring_pages_of(m->vm, 0), before + 5);
	kvm_guest_store(m->vm, MIB, 8);
	ck_assert_uint_eq(collect(), 5);
	ck_assert_uint_eq(dirty_ring_pages_of(m->vm, 0), before + 6);
	end();
}
END_TEST

/* Stopped with entries in the ring and pages noted: the next time starts as the first. */
START_TEST(ring_stops)
{
	how.entries = DIRTY_RING_MIN;
	begin(RAM_MIN);
	settle();
	store_pages(700, 2 * DIRTY_RING_MIN);
	dirty_stop(&d);
	/* Nobody wants to know: nothing fills, however much is stored. */
	store_pages(700, 4 * DIRTY_RING_MIN);
	ck_assert_uint_eq(m->vm->dirty_ring.filled, 0);
	ck_assert_int_eq(dirty_start(&d, m->vm, &m->err), 0);
	ck_assert_uint_eq(collect(), RAM_MIN / PAGE_SIZE);
	clear_all();
	settle();
	store_pages(800, 3);
	ck_assert_uint_eq(collect(), 3);
	need_pages(800, 3);
	dirty_stop(&d);
	/* Fine on one that is stopped, and on one that never started. */
	dirty_stop(&d);
	d = (struct dirty){0};
	end();
}
END_TEST

/* A vCPU that leaves with a full ring when all is over already. */
START_TEST(ring_full_late)
{
	begin(RAM_MIN);
	settle();
	store_pages(700, 5);
	ck_assert_int_eq(dirty_ring_note_in(m->vm, NULL), 0);
	store_pages(710, 5);
	ck_assert_int_eq(dirty_ring_full(&m->vm->vcpu[0]), 0);
	end();
}
END_TEST

/* KVM has forgotten to protect some: all are dirty, and seen from then on. */
START_TEST(ring_reset_is_cut_short)
{
	begin(RAM_MIN);
	settle();
	store_pages(700, 10);
	cut_by = 4;
	ck_assert_uint_eq(collect(), RAM_MIN / PAGE_SIZE);
	clear_all();
	settle();
	store_pages(700, 10);
	ck_assert_uint_eq(collect(), 10);
	need_pages(700, 10);
	clear_all();
	/* The same when it was a vCPU's. */
	store_pages(700, 10);
	cut_by = 4;
	ck_assert_int_eq(dirty_ring_full(&m->vm->vcpu[0]), 0);
	ck_assert_uint_eq(collect(), RAM_MIN / PAGE_SIZE);
	clear_all();
	settle();
	end();
}
END_TEST

START_TEST(ring_reset_does_nothing)
{
	uint64_t pages;

	begin(RAM_MIN);
	settle();
	store_pages(700, 10);
	resets_fail = true;
	ck_assert_int_eq(dirty_collect(&d, &pages, &m->err), -EIO);
	ck_assert_ptr_nonnull(strstr(m->err.text, "KVM_RESET_DIRTY_RINGS"));
	ck_assert_uint_lt(n_resets, 2000);
	resets_fail = false;
	end();
}
END_TEST

static void need_no_signals(void)
{
	sigset_t now;

	pthread_sigmask(SIG_BLOCK, NULL, &now);
	ck_assert(sigismember(&now, SIGUSR1) == 1);
}

/* What calls a vCPU's thread must not cut its reset short. */
START_TEST(ring_reset_without_signals)
{
	sigset_t now;

	begin(RAM_MIN);
	settle();
	store_pages(700, 1);
	n_resets = 0;
	before_reset = need_no_signals;
	ck_assert_int_eq(dirty_ring_full(&m->vm->vcpu[0]), 0);
	ck_assert_uint_eq(n_resets, 1);
	before_reset = NULL;
	pthread_sigmask(SIG_BLOCK, NULL, &now);
	ck_assert(sigismember(&now, SIGUSR1) == 0);
	end();
}
END_TEST

/* An entry that names no page of ours is not believed. */
START_TEST(ring_entry_is_wrong)
{
	begin(RAM_MIN);
	settle();
	for (unsigned i = 0; i < 2; i++) {
		struct vcpu *v = &m->vm->vcpu[0];
		struct kvm_dirty_gfn *e = &v->ring[v->ring_next % m->vm->dirty_ring.entries];

		store_pages(700, 1);
		ck_assert_uint_eq(e->offset, 700);
		if (i)
			e->slot = 7;
		else
			e->offset = RAM_MIN / PAGE_SIZE;
		ck_assert_uint_eq(collect(), RAM_MIN / PAGE_SIZE);
		clear_all();
		settle();
	}
	store_pages(700, 1);
	ck_assert_uint_eq(collect(), 1);
	end();
}
END_TEST

/* A host without rings, and one that has none of that size, say what to do. */
START_TEST(ring_refused)
{
	struct vm vm = {.cfg.dirty = how, .vm_fd = -1};
	struct errmsg err = {""};

	ck_assert_int_eq(dirty_ring_init(&vm, &err), -ENOTSUP);
	ck_assert_ptr_nonnull(strstr(err.text, "KVM_CAP_DIRTY_LOG_RING"));
	ck_assert_ptr_nonnull(strstr(err.text, "--dirty log"));
	vm.cfg.dirty.how = DIRTY_AUTO;
	ck_assert_int_eq(dirty_ring_init(&vm, &err), 0);
	ck_assert_uint_eq(vm.dirty_ring.entries, 0);

	begin(RAM_MIN);
	vm.cfg.dirty = (struct dirty_config){.how = DIRTY_RING, .entries = 3 * DIRTY_RING_MIN};
	vm.caps = m->vm->caps;
	vm.vm_fd = m->vm->vm_fd;
	err = (struct errmsg){""};
	ck_assert_int_eq(dirty_ring_init(&vm, &err), -EINVAL);
	ck_assert_ptr_nonnull(strstr(err.text, "rings of 768 entries"));
	end();
}
END_TEST

static void with_log(void)
{
	how = (struct dirty_config){.how = DIRTY_LOG};
}

static void with_ring(void)
{
	how = (struct dirty_config){.how = DIRTY_RING};
}

static void add_case(Suite *s, const char *name, SFun setup, const TTest *const *tests, size_t n)
{
	TCase *tc = tcase_create(name);

	tcase_set_timeout(tc, 120);
	tcase_add_checked_fixture(tc, setup, NULL);
	for (size_t i = 0; i < n; i++)
		tcase_add_test(tc, tests[i]);
	suite_add_tcase(s, tc);
}

int main(void)
{
	const TTest *const both_ways[] = {starts_full, guest_stores, nothing_between_is_lost,
					  own_stores,  both,	     two_regions};
	const TTest *const of_log[] = {log_looks, log_ranges, log_stops};
	const TTest *const of_ring[] = {ring_fills,
					ring_counts,
					ring_stops,
					ring_full_late,
					ring_reset_is_cut_short,
					ring_reset_does_nothing,
					ring_reset_without_signals,
					ring_entry_is_wrong,
					ring_refused};
	Suite *s = suite_create("dirty");

	if (!kvm_here())
		return check_skip("dirty", "no /dev/kvm");
	add_case(s, "log", with_log, both_ways, ARRAY_SIZE(both_ways));
	add_case(s, "of-log", with_log, of_log, ARRAY_SIZE(of_log));
	if (kvm_has_dirty_ring()) {
		add_case(s, "ring", with_ring, both_ways, ARRAY_SIZE(both_ways));
		add_case(s, "of-ring", with_ring, of_ring, ARRAY_SIZE(of_ring));
	} else {
		fprintf(stderr, "dirty: no KVM_CAP_DIRTY_LOG_RING here: rings are not tested\n");
	}
	return check_run(s);
}
