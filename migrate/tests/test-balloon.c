/* SPDX-License-Identifier: MIT */
/*
 * Whole moves within this process of a guest that has given memory back, or gives it back while it
 * is moved: only what it holds is sent, neither side's host has memory for the rest, and what it
 * holds arrives.
 */
#include "../../vmm/virtio_balloon.h"
#include "../hashes.h"
#include "../migrate.h"

#include <stdio.h>

#include "../../vmm/tests/kvm-fixture.h"
#include "../../vmm/tests/virtio-driver.h"

/*
 * Guest-physical: its code and counter, the driver's rings and arrays (from 1 MiB on), memory that
 * it holds, and memory that it gives back.
 */
#define SIZE (128 * MIB)
#define COUNT_GPA 0x20000ULL
#define KEPT (16 * MIB)
#define GIVEN (32 * MIB)
#define N_GIVEN ((uint32_t)((SIZE - GIVEN) / PAGE_SIZE))
#define SLACK (4 * MIB) /* memory comes in pieces of 2 MiB */

enum { INFLATE, STATS = 2, REPORTS };
#define FEATURES (VIRTIO_F(1) | VIRTIO_F(5) | VIRTIO_RING_EVENT_IDX)

static struct machine *m;
static struct driver *here, *there;
static struct receiver *receiver;
static bool source_done, dest_done;
static char dir[] = "/tmp/godwit-balloon-XXXXXX", uri[MIGRATE_URI_MAX];

/* ---- a machine with a balloon, at either side ---- */

static struct driver *driver_for(struct vm *vm)
{
	return driver_of(vm, container_of(vm->devices, struct virtio, dev));
}

static uint64_t count_of(struct vm *vm)
{
	return *(const volatile uint64_t *)ram_ptr(&vm->ram, COUNT_GPA, 8);
}

/* On the loop's thread, which is this test's. */
static int build(void *arg, struct vm_config *cfg, const struct cpuid *cpuid, struct vm **out,
		 struct errmsg *err)
{
	struct vm *vm = NULL;
	int ret = vm_create(&vm, cfg, cpuid, &m->loop, err);

	(void)arg;
	if (ret == 0)
		ret = vm_add_device(vm, &virtio_balloon_ops, 0, NULL, err);
	*out = vm;
	if (ret == 0) {
		there = driver_for(vm);
		memcpy(there->queue, here->queue, sizeof(here->queue));
		there->top = here->top;
	}
	return ret;
}

static void set_flag(void *arg)
{
	*(bool *)arg = true;
}

static void begin(void)
{
	/* 1: incq (%rdi); jmp 1b */
	static const uint8_t code[] = {0x48, 0xff, 0x07, 0xeb, 0xfb};
	struct kvm_regs regs = {.rdi = COUNT_GPA};
	struct receive_options opt = {.build = build};
	uint8_t *p;

	ck_assert_ptr_nonnull(mkdtemp(dir));
	m = machine_new(SIZE, 1);
	ck_assert_int_eq(vm_add_device(m->vm, &virtio_balloon_ops, 0, NULL, &m->err), 0);
	here = driver_for(m->vm);
	p = driver_mem(here, KEPT, SIZE - KEPT);
	for (uint64_t i = 0; i < SIZE - KEPT; i += 64)
		*(uint64_t *)(void *)(p + i) = (KEPT + i) * 0x9e3779b97f4a7c15ULL | 1;
	machine_code(m, 0, code, sizeof(code), &regs);
	ck_assert_int_eq(vm_start(m->vm, &m->err), 0);
	vm_resume(m->vm, VM_PAUSE_START);
	driver_up(here, FEATURES);

	snprintf(opt.uri, sizeof(opt.uri), "unix:%s/s", dir);
	ck_assert_msg(receive_listen(&receiver, &opt, uri, &m->err) == 0, "%s", m->err.text);
	ck_assert_int_eq(receive_start(receiver, &m->loop, set_flag, &dest_done, &m->err), 0);
}

static void end(void)
{
	struct vm *arrived = there->vm;

	receive_free(receiver);
	driver_free(here);
	driver_free(there);
	vm_destroy(arrived);
	machine_free(m);
	rmdir(dir);
}

/* The guest gives all that it does not keep, in an order that makes many turns of it. */
static void add_all_given(unsigned stride)
{
	uint64_t gpa = driver_alloc(here, N_GIVEN * sizeof(uint32_t));
	struct driver_buf b = {.gpa = gpa, .len = N_GIVEN * (uint32_t)sizeof(uint32_t)};
	uint32_t *pfn = driver_mem(here, gpa, b.len);

	for (uint32_t i = 0; i < N_GIVEN; i++)
		pfn[i] = (uint32_t)(GIVEN / PAGE_SIZE) + i * stride % N_GIVEN;
	driver_add(here, INFLATE, &b, 1);
}

/* The host's side of the move; at_precopy, when not NULL, is called once pages are on their way. */
static void move(enum migrate_verify verify, void (*at_precopy)(void), struct migrate_stats *from)
{
	struct migrate_options opt = {.downtime_ns = NS_PER_SEC,
				      .timeout_ns = 60 * NS_PER_SEC,
				      .verify = verify,
				      .compress = MIGRATE_COMPRESS_OFF};
	uint64_t deadline = now_ns() + 50 * NS_PER_SEC;
	struct migrate_stats to;
	struct migration *mig;

	snprintf(opt.uri, sizeof(opt.uri), "%s", uri);
	ck_assert_msg(migrate_start(&mig, m->vm, &opt, set_flag, &source_done, &m->err) == 0, "%s",
		      m->err.text);
	while (!(source_done && dest_done) && now_ns() < deadline) {
		ck_assert_int_eq(loop_step(&m->loop, NS_PER_MS), 0);
		migrate_get_stats(mig, from);
		if (at_precopy && from->phase == MIGRATE_PRECOPY && from->pages_scanned) {
			at_precopy();
			at_precopy = NULL;
		}
	}
	ck_assert_msg(source_done && dest_done, "no end of it");
	migrate_get_stats(mig, from);
	receive_get_stats(receiver, &to);
	migrate_free(mig);
	ck_assert_msg(from->status == MIGRATE_COMPLETED, "%s", from->error.text);
	ck_assert_msg(to.status == MIGRATE_COMPLETED, "%s", to.error.text);
	ck_assert(!at_precopy);
}

static bool is_hole(const struct ram *ram, uint64_t page)
{
	uint64_t at = page, n;

	return !ram_next_populated(ram, &at, &n) || at > page;
}

/* Pages that hold nothing: they were given back, and then the host got memory for them again. */
static uint64_t taken_again(const struct ram *ram)
{
	uint64_t n, taken = 0;

	for (uint64_t i = GIVEN / PAGE_SIZE; ram_next_populated(ram, &i, &n); i += n) {
		for (uint64_t page = i; page < i + n; page++)
			taken += page_is_zero(ram_page(ram, page));
	}
	return taken;
}

/* What the guest keeps is there; of what it gave, no more than `most` pages, and those are zeros.
 */
static void check_arrived(uint64_t most)
{
	const struct ram *ram = &there->vm->ram;
	uint64_t count = count_of(there->vm), deadline = now_ns() + 10 * NS_PER_SEC;

	ck_assert_mem_eq(ram_ptr(ram, KEPT, GIVEN - KEPT), ram_ptr(&m->vm->ram, KEPT, GIVEN - KEPT),
			 GIVEN - KEPT);
	for (uint64_t page = GIVEN / PAGE_SIZE; page < SIZE / PAGE_SIZE; page++)
		ck_assert_msg(is_hole(ram, page) || (most && page_is_zero(ram_page(ram, page))),
			      "page %llu", (unsigned long long)page);
	ck_assert_uint_le(taken_again(ram), most);
	ck_assert_uint_ge(count, count_of(m->vm));
	while (count_of(there->vm) == count && now_ns() < deadline)
		usleep(100);
	ck_assert_uint_gt(count_of(there->vm), count);
}

/* ---- before the move ---- */

static void after_ballooning(enum migrate_verify verify)
{
	static const uint8_t entry[10] = {4, 0, 0, 0, 0x10}; /* free: 1 MiB */
	struct driver_buf b;
	struct driver_used e;
	struct migrate_stats from;
	struct balloon_stats s;
	uint64_t used;

	begin();
	add_all_given(1);
	driver_kick(here, INFLATE);
	driver_wait_used(here, INFLATE);
	b = (struct driver_buf){.gpa = driver_alloc(here, sizeof(entry)), .len = sizeof(entry)};
	driver_poke(here, b.gpa, entry, sizeof(entry));
	driver_add(here, STATS, &b, 1);
	driver_kick(here, STATS);
	driver_settle(here);
	virtio_balloon_stats(&here->v->dev, &s);
	ck_assert_uint_eq(s.free, MIB);
	used = ram_used(&m->vm->ram);
	ck_assert_uint_lt(used, GIVEN - KEPT + SLACK);

	move(verify, NULL, &from);
	ck_assert_uint_gt(from.wire_bytes, GIVEN - KEPT);
	ck_assert_uint_lt(from.wire_bytes, GIVEN - KEPT + SLACK);
	ck_assert_uint_le(ram_used(&m->vm->ram), used + 16 * PAGE_SIZE);
	ck_assert_uint_le(ram_used(&there->vm->ram), used + 16 * PAGE_SIZE);
	check_arrived(0);
	/* There it goes on: the buffer comes back, and figures and pages are taken. */
	memcpy(there->queue, here->queue, sizeof(here->queue));
	ck_assert_uint_eq(driver_wait_used(there, STATS).id, 0);
	ck_assert(!driver_take_used(here, STATS, &e));
	driver_add(there, STATS, &b, 1);
	driver_kick(there, STATS);
	b = (struct driver_buf){.gpa = KEPT, .len = MIB, .in = true};
	driver_add(there, REPORTS, &b, 1);
	driver_kick(there, REPORTS);
	driver_wait_used(there, REPORTS);
	ck_assert(is_hole(&there->vm->ram, KEPT / PAGE_SIZE));
	driver_settle(there);
	virtio_balloon_stats(&there->v->dev, &s);
	ck_assert_uint_eq(s.free, MIB);
	end();
}

START_TEST(ballooned)
{
	after_ballooning(MIGRATE_VERIFY_STREAM);
}
END_TEST

START_TEST(ballooned_and_verified)
{
	after_ballooning(MIGRATE_VERIFY_FULL);
}
END_TEST

/* ---- during the move ---- */

static void kick_inflate(void)
{
	driver_kick_always(here, INFLATE);
}

START_TEST(balloons_while_it_moves)
{
	struct migrate_stats from;
	struct driver_used e;

	begin();
	/* All that a driver stores is there before the first round. */
	add_all_given(5);
	move(MIGRATE_VERIFY_FULL, kick_inflate, &from);
	ck_assert_uint_gt(from.pages_zero, 0);
	/* Only what was given back between the look and the copy. */
	ck_assert_uint_lt(taken_again(&m->vm->ram), N_GIVEN / 8);
	memcpy(there->queue, here->queue, sizeof(here->queue));
	driver_wait_used(there, INFLATE);
	ck_assert(!driver_take_used(there, INFLATE, &e));
	check_arrived(N_GIVEN / 8);
	end();
}
END_TEST

int main(void)
{
	const TTest *const tests[] = {ballooned, ballooned_and_verified, balloons_while_it_moves};

	if (!kvm_here())
		return check_skip("balloon", "no /dev/kvm");
	return check_main("balloon", tests, ARRAY_SIZE(tests));
}
