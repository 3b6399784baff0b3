/* SPDX-License-Identifier: MIT */
/* Dirty tracking on real KVM: what the guest stores, and what we store, and when it is forgotten.
 */
#include "../dirty.h"

#include <fcntl.h>

#include "../../vmm/tests/kvm-fixture.h"

static struct machine *m;
static struct dirty d;

static void begin(uint64_t ram_size)
{
	m = machine_new(ram_size, 1);
	machine_store_code(m);
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
	/* Looking does not forget. */
	memset(d.bitmap, 0, d.n_words * 8);
	ck_assert_uint_eq(collect(), 1);
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

/* A range that is not cleared stays. */
START_TEST(ranges)
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
START_TEST(stops)
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

int main(void)
{
	const TTest *const tests[] = {starts_full, guest_stores, nothing_between_is_lost,
				      ranges,	   own_stores,	 both,
				      two_regions, stops};

	if (!kvm_here())
		return check_skip("dirty", "no /dev/kvm");
	return check_main("dirty", tests, ARRAY_SIZE(tests));
}
