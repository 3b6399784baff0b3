/* SPDX-License-Identifier: MIT */
/*
 * Throttled vCPUs on real KVM: how much of its work a guest gets done, and that nobody waits for a
 * nap. What a vCPU gets is measured in its own CPU time, so that a busy host does not matter.
 */
#include "../throttle.h"

#include "kvm-fixture.h"

#define COUNT_GPA(id) (0x20000U + (id)*0x1000U)
#define LONG_NS (30 * NS_PER_SEC)

static struct machine *m;

/* Each vCPU counts in its own page; those from `busy` on halt instead. */
static void begin(uint32_t vcpus, uint32_t busy)
{
	/* 1: incq (%rdi); jmp 1b */
	static const uint8_t counts[] = {0x48, 0xff, 0x07, 0xeb, 0xfb};
	/* cli; 1: hlt; jmp 1b */
	static const uint8_t halts[] = {0xfa, 0xf4, 0xeb, 0xfd};
	struct kvm_mp_state mp = {.mp_state = KVM_MP_STATE_RUNNABLE};

	m = machine_new(RAM_MIN, vcpus);
	for (uint32_t i = 0; i < vcpus; i++) {
		struct kvm_regs r = {.rdi = COUNT_GPA(i)};

		machine_code(m, i, counts, sizeof(counts), &r);
		KVM_MUST(m->vm->vcpu[i].fd, KVM_GET_REGS, &r);
		r.rip += i < busy ? 0 : 0x100;
		KVM_MUST(m->vm->vcpu[i].fd, KVM_SET_REGS, &r);
		KVM_MUST(m->vm->vcpu[i].fd, KVM_SET_MP_STATE, &mp);
	}
	ck_assert_int_eq(ram_write(&m->vm->ram, KVM_CODE + 0x100, halts, sizeof(halts)), 0);
	ck_assert_int_eq(vm_start(m->vm, &m->err), 0);
	vm_resume(m->vm, VM_PAUSE_START);
}

static uint64_t count(unsigned id)
{
	return *(const volatile uint64_t *)ram_ptr(&m->vm->ram, COUNT_GPA(id), 8);
}

static uint64_t cpu_ns(unsigned id)
{
	struct timespec ts;
	clockid_t clock;

	ck_assert_int_eq(pthread_getcpuclockid(m->vm->vcpu[id].thread, &clock), 0);
	ck_assert_int_eq(clock_gettime(clock, &ts), 0);
	return (uint64_t)ts.tv_sec * NS_PER_SEC + (uint64_t)ts.tv_nsec;
}

static void runs_on(unsigned id)
{
	uint64_t before = count(id), deadline = now_ns() + LONG_NS;

	while (count(id) == before && now_ns() < deadline)
		usleep(100);
	ck_assert_msg(count(id) != before, "vCPU %u stands still", id);
}

/* Until it has been slowed for so long; the CPU time that it has used meanwhile. */
static uint64_t used_while_slowed(unsigned id, uint64_t slowed_ns)
{
	uint64_t cpu = cpu_ns(id), slowed = vm_slowed_ns(m->vm, id), deadline = now_ns() + LONG_NS;

	while (vm_slowed_ns(m->vm, id) < slowed + slowed_ns && now_ns() < deadline)
		usleep(1000);
	ck_assert_msg(vm_slowed_ns(m->vm, id) >= slowed + slowed_ns, "slowed by %llu us only",
		      (unsigned long long)(vm_slowed_ns(m->vm, id) - slowed) / 1000);
	return cpu_ns(id) - cpu;
}

/* What it uses and what it naps are in the proportion asked for, whoever else wants the CPU. */
START_TEST(gets_its_share)
{
	static const unsigned percents[] = {20, 50, 90, 99};
	unsigned percent = percents[_i];
	/* Naps of a whole second or more: the ends do not matter. */
	uint64_t naps = (percent == 99 ? 2000 : 1000) * NS_PER_MS, used, want;

	begin(1, 1);
	runs_on(0);
	vm_throttle(m->vm, 0, percent);
	used_while_slowed(0, NS_PER_MS);
	used = used_while_slowed(0, naps);
	want = naps * (100 - percent) / percent;
	/* A nap may end late, never early; so it may be less by much, but not more. */
	ck_assert_msg(used < want * 2 && used > want / 4, "%u %%: it used %llu us, should %llu",
		      percent, (unsigned long long)used / 1000, (unsigned long long)want / 1000);
	machine_free(m);
}
END_TEST

/* All of it is given back: naps are over, and there are no more. */
START_TEST(released)
{
	uint64_t slowed;

	begin(2, 2);
	vm_throttle(m->vm, THROTTLE_ALL_VCPUS, 99);
	used_while_slowed(0, 200 * NS_PER_MS);
	used_while_slowed(1, 200 * NS_PER_MS);
	vm_throttle(m->vm, THROTTLE_ALL_VCPUS, 0);
	for (unsigned i = 0; i < 2; i++) {
		uint64_t cpu = cpu_ns(i), deadline = now_ns() + LONG_NS;

		/* One that naps when it is released has its nap counted then. */
		runs_on(i);
		slowed = vm_slowed_ns(m->vm, i);
		while (cpu_ns(i) < cpu + 50 * NS_PER_MS && now_ns() < deadline)
			usleep(1000);
		ck_assert_uint_ge(cpu_ns(i), cpu + 50 * NS_PER_MS);
		ck_assert_uint_eq(vm_slowed_ns(m->vm, i), slowed);
	}
	/* And again, less. */
	vm_throttle(m->vm, 0, 30);
	used_while_slowed(0, 20 * NS_PER_MS);
	machine_free(m);
}
END_TEST

static int by_length(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

/* A nap of this guest's takes 99 ms and more; whoever pauses it does not wait for it. */
START_TEST(pause_cuts_a_nap)
{
	uint64_t ns[21], stood;

	begin(2, 2);
	vm_throttle(m->vm, THROTTLE_ALL_VCPUS, 99);
	used_while_slowed(0, 200 * NS_PER_MS);
	for (unsigned i = 0; i < ARRAY_SIZE(ns); i++) {
		uint64_t start = now_ns();

		ck_assert_int_eq(vm_pause(m->vm, VM_PAUSE_USER), 0);
		ns[i] = now_ns() - start;
		stood = count(0) + count(1);
		usleep(i % 4 * 1000);
		ck_assert_uint_eq(count(0) + count(1), stood);
		vm_resume(m->vm, VM_PAUSE_USER);
		runs_on(i % 2);
	}
	qsort(ns, ARRAY_SIZE(ns), sizeof(*ns), by_length);
	/* Not the typical one: a busy host lets vCPUs wait for a processor. */
	ck_assert_msg(ns[ARRAY_SIZE(ns) / 4] < 20 * NS_PER_MS, "a pause takes %llu us",
		      (unsigned long long)ns[ARRAY_SIZE(ns) / 4] / 1000);
	machine_free(m);
}
END_TEST

/* Standing is not napping: it is not counted, and the pause does not make one nap longer. */
START_TEST(paused_does_not_nap)
{
	uint64_t slowed;

	begin(1, 1);
	vm_throttle(m->vm, 0, 99);
	used_while_slowed(0, 100 * NS_PER_MS);
	ck_assert_int_eq(vm_pause(m->vm, VM_PAUSE_USER), 0);
	slowed = vm_slowed_ns(m->vm, 0);
	usleep(150000);
	ck_assert_uint_eq(vm_slowed_ns(m->vm, 0), slowed);
	/* Set and released while it stands. */
	vm_throttle(m->vm, 0, 0);
	vm_throttle(m->vm, 0, 50);
	vm_throttle(m->vm, 0, 0);
	vm_resume(m->vm, VM_PAUSE_USER);
	runs_on(0);
	machine_free(m);
}
END_TEST

/* An idle vCPU has nothing taken away, whether it is meant or not; nor has one that is not meant.
 */
START_TEST(only_who_works)
{
	begin(3, 2);
	vm_throttle(m->vm, THROTTLE_ALL_VCPUS, 90);
	vm_throttle(m->vm, 1, 0);
	used_while_slowed(0, 500 * NS_PER_MS);
	ck_assert_msg(vm_slowed_ns(m->vm, 2) < 50 * NS_PER_MS, "the idle one napped %llu us",
		      (unsigned long long)vm_slowed_ns(m->vm, 2) / 1000);
	ck_assert_msg(vm_slowed_ns(m->vm, 1) < 50 * NS_PER_MS, "one that is free napped %llu us",
		      (unsigned long long)vm_slowed_ns(m->vm, 1) / 1000);
	machine_free(m);
}
END_TEST

/* Before its threads have started, and when it ends in the middle of a nap. */
START_TEST(any_time)
{
	uint64_t start;

	m = machine_new(RAM_MIN, 2);
	vm_throttle(m->vm, THROTTLE_ALL_VCPUS, 50);
	machine_free(m);

	begin(2, 2);
	/* More than there is. */
	vm_throttle(m->vm, THROTTLE_ALL_VCPUS, 1000);
	used_while_slowed(0, 100 * NS_PER_MS);
	start = now_ns();
	machine_free(m);
	ck_assert_uint_lt(now_ns() - start, LONG_NS);
}
END_TEST

/* An access that is under way when a slice ends is done once: every value is written. */
static uint64_t heard, wrong;

static void hear(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	(void)dev;
	(void)offset;
	(void)size;
	wrong += (uint8_t)value != (uint8_t)(heard + 1);
	__atomic_store_n(&heard, heard + 1, __ATOMIC_RELAXED);
}

static uint64_t nothing_read(void *dev, uint64_t offset, unsigned size)
{
	(void)dev;
	(void)offset;
	(void)size;
	return 0;
}

START_TEST(accesses_are_exact)
{
	static const struct bus_ops ops = {.read = nothing_read, .write = hear};
	/* xor %eax, %eax; 1: inc %eax; out %al, $0x9b; jmp 1b */
	static const uint8_t code[] = {0x31, 0xc0, 0xff, 0xc0, 0xe6, 0x9b, 0xeb, 0xfa};
	struct bus_range port = {.base = 0x9b, .len = 1, .name = "hear", .ops = &ops};
	struct kvm_regs r = {0};

	heard = wrong = 0;
	m = machine_new(RAM_MIN, 1);
	ck_assert_int_eq(bus_add(&m->vm->pio, &port), 0);
	machine_code(m, 0, code, sizeof(code), &r);
	ck_assert_int_eq(vm_start(m->vm, &m->err), 0);
	vm_resume(m->vm, VM_PAUSE_START);
	for (unsigned percent = 1; percent < 99; percent += 24) {
		vm_throttle(m->vm, 0, percent);
		used_while_slowed(0, 40 * NS_PER_MS);
	}
	ck_assert_int_eq(vm_pause(m->vm, VM_PAUSE_USER), 0);
	ck_assert_uint_gt(heard, 256);
	ck_assert_uint_eq(wrong, 0);
	KVM_MUST(m->vm->vcpu[0].fd, KVM_GET_REGS, &r);
	ck_assert_uint_le(r.rax - heard, 1);
	machine_free(m);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("throttle");
	TCase *tc = tcase_create("throttle");

	if (!kvm_here())
		return check_skip("throttle", "no /dev/kvm");
	tcase_set_timeout(tc, 120);
	tcase_add_loop_test(tc, gets_its_share, 0, 4);
	tcase_add_test(tc, released);
	tcase_add_test(tc, pause_cuts_a_nap);
	tcase_add_test(tc, paused_does_not_nap);
	tcase_add_test(tc, only_who_works);
	tcase_add_test(tc, any_time);
	tcase_add_test(tc, accesses_are_exact);
	suite_add_tcase(s, tc);
	return check_run(s);
}
