/* SPDX-License-Identifier: MIT */
/*
 * The transport on the real KVM: a guest's store to QueueNotify reaches the device without an
 * exit, and what the device signals reaches the guest's interrupt controller.
 */
#include "kvm-fixture.h"

#include <poll.h>

#include "../virtio_mmio.h"
#include "fake-virtio.h"
#include "virtio-driver.h"

#define RAM_SIZE (32 * MIB)
#define SLOT 5U
#define PAGE_TABLE 0x6000U /* of the fourth GiB, where the slots are */
#define FIRST_VECTOR 0x50U

#define LAPIC_SVR 0xf0U
#define LAPIC_IRR 0x200U
#define LAPIC_ENABLED 0x100U

static struct machine *m;
static struct virtio *v;
static struct driver *d;

static void setup(void)
{
	struct virtio_mmio_config cfg = {.slot = SLOT};
	struct errmsg err = {""};

	m = machine_new(RAM_SIZE, 1);
	ck_assert_int_eq(vm_add_device(m->vm, &fake_ops, 0, NULL, &err), 0);
	v = cfg.v = container_of(vm_find_device(m->vm, "fake", 0), struct virtio, dev);
	ck_assert_msg(vm_add_device(m->vm, &virtio_mmio_ops, SLOT, &cfg, &err) == 0, "%s",
		      err.text);
	d = driver_of(m->vm, v);
}

static void teardown(void)
{
	driver_free(d);
	machine_free(m);
}

/* ---- the guest's store ---- */

static void map_slots(void)
{
	put64(&m->vm->ram, 0x2000 + 3 * 8, PAGE_TABLE | 0x27);
	for (uint64_t i = 0; i < 512; i++)
		put64(&m->vm->ram, PAGE_TABLE + i * 8, (3 * GIB + i * 2 * MIB) | 0xe7);
}

/*
 * Stores 32 bits. The number of exits that reached us on the way: 0 when KVM took it, and 1 for
 * a store to a register.
 */
static unsigned guest_writes(uint64_t gpa, uint32_t value)
{
	/* mov %eax, (%rdi); out %al, $0x90; jmp . */
	static const uint8_t code[] = {0x89, 0x07, 0xe6, KVM_DONE_PORT, 0xeb, 0xfe};
	const struct kvm_regs regs = {.rdi = gpa, .rax = value};
	struct vcpu *cpu = &m->vm->vcpu[0];
	unsigned exits = 0;

	machine_code(m, 0, code, sizeof(code), &regs);
	map_slots();
	for (;;) {
		int ret;

		do
			ret = ioctl(cpu->fd, KVM_RUN, 0);
		while (ret < 0 && errno == EINTR);
		ck_assert_msg(ret == 0, "KVM_RUN: %s", strerror(errno));
		if (cpu->run->exit_reason != KVM_EXIT_MMIO)
			break;
		ck_assert_uint_eq(cpu->run->mmio.phys_addr, gpa);
		ck_assert_uint_eq(cpu->run->mmio.len, 4);
		ck_assert(cpu->run->mmio.is_write);
		bus_write(&m->vm->mmio, gpa, 4, value);
		exits++;
	}
	ck_assert_msg(cpu->run->exit_reason == KVM_EXIT_IO && cpu->run->io.port == KVM_DONE_PORT,
		      "the guest left by exit %u", cpu->run->exit_reason);
	return exits;
}

START_TEST(kicks)
{
	uint64_t base = virtio_mmio_gpa(SLOT);

	driver_up(d, UINT64_MAX);
	for (unsigned i = 0; i < FAKE_QUEUES; i++) {
		driver_add(d, i, &(struct driver_buf){DRIVER_FIRST_GPA, 1, true}, 1);
		driver_settle(d);
		ck_assert_uint_eq(driver_used_idx(d, i), 0);
		ck_assert_uint_eq(guest_writes(base + 0x50, i), 0);
		driver_wait_used(d, i);
		for (unsigned k = 0; k < FAKE_QUEUES; k++)
			ck_assert_uint_eq(driver_used_idx(d, k), k <= i);
	}
	/* For no queue: we get it, and drop it. So do stores to other registers come. */
	ck_assert_uint_eq(guest_writes(base + 0x50, FAKE_QUEUES), 1);
	ck_assert_uint_eq(guest_writes(base + 0x50, UINT32_MAX), 1);
	ck_assert_uint_eq(guest_writes(base + 0x70, 0), 1);
	ck_assert_uint_eq(v->status, 0);
	driver_settle(d);
}
END_TEST

/* ---- interrupts ---- */

/* Has KVM deliver our pins to the one LAPIC, as vectors from FIRST_VECTOR on. */
static void route(void)
{
	struct kvm_irqchip chip = {.chip_id = KVM_IRQCHIP_IOAPIC};
	struct kvm_lapic_state lapic;
	uint32_t svr = LAPIC_ENABLED | 0xff;
	int cpu = m->vm->vcpu[0].fd;

	KVM_MUST(m->vm->vm_fd, KVM_GET_IRQCHIP, &chip);
	for (unsigned pin = VIRTIO_MMIO_GSI; pin < VIRTIO_MMIO_GSI + VIRTIO_MMIO_GSIS; pin++)
		chip.chip.ioapic.redirtbl[pin].bits = FIRST_VECTOR + pin; /* edge, to APIC id 0 */
	KVM_MUST(m->vm->vm_fd, KVM_SET_IRQCHIP, &chip);
	KVM_MUST(cpu, KVM_GET_LAPIC, &lapic);
	memcpy(lapic.regs + LAPIC_SVR, &svr, sizeof(svr));
	memset(lapic.regs + LAPIC_IRR, 0, 0x80);
	KVM_MUST(cpu, KVM_SET_LAPIC, &lapic);
}

static bool pending(unsigned vector)
{
	struct kvm_lapic_state lapic;
	uint32_t word;

	KVM_MUST(m->vm->vcpu[0].fd, KVM_GET_LAPIC, &lapic);
	memcpy(&word, lapic.regs + LAPIC_IRR + vector / 32 * 0x10, sizeof(word));
	return word & (1U << vector % 32);
}

/* KVM delivers from a worker of its own. */
static bool interrupted(void)
{
	uint64_t deadline = now_ns() + DRIVER_WAIT_NS;

	while (!pending(FIRST_VECTOR + virtio_mmio_gsi(SLOT))) {
		if (now_ns() > deadline)
			return false;
		poll(NULL, 0, 1);
	}
	return true;
}

START_TEST(interrupts)
{
	unsigned vector = FIRST_VECTOR + virtio_mmio_gsi(SLOT);
	uint64_t status = virtio_mmio_gpa(SLOT) + 0x60, ack = virtio_mmio_gpa(SLOT) + 0x64;
	struct errmsg err = {""};

	route();
	driver_up(d, UINT64_MAX);
	driver_settle(d);
	ck_assert(!pending(vector));
	for (unsigned i = 0; i < 50; i++) {
		driver_add(d, i % 3, &(struct driver_buf){DRIVER_FIRST_GPA, 1, true}, 1);
		driver_kick(d, i % 3);
		driver_wait_used(d, i % 3);
		ck_assert_msg(interrupted(), "interrupt %u did not come", i);
		ck_assert_uint_eq(bus_read(&m->vm->mmio, status, 4), 1);
		bus_write(&m->vm->mmio, ack, 4, 1);
		route();
		ck_assert(!pending(vector));
	}
	/* One that the guest has not acknowledged comes again after a pause. */
	driver_add(d, 0, &(struct driver_buf){DRIVER_FIRST_GPA, 1, true}, 1);
	driver_kick(d, 0);
	driver_wait_used(d, 0);
	ck_assert(interrupted());
	ck_assert_int_eq(vm_quiesce_devices(m->vm, DRIVER_WAIT_NS, &err), 0);
	route();
	ck_assert(!pending(vector));
	vm_resume_devices(m->vm);
	ck_assert(interrupted());
}
END_TEST

/* A second one in the same slot, and that all is gone with the machine. */
START_TEST(comes_and_goes)
{
	struct virtio_mmio_config cfg = {.v = v, .slot = SLOT};
	struct errmsg err = {""};

	ck_assert_int_eq(vm_add_device(m->vm, &virtio_mmio_ops, SLOT, &cfg, &err), -EEXIST);
	for (unsigned i = 0; i < 3; i++) {
		teardown();
		setup();
	}
	driver_up(d, UINT64_MAX);
	driver_add(d, 0, &(struct driver_buf){DRIVER_FIRST_GPA, 1, true}, 1);
	ck_assert_uint_eq(guest_writes(virtio_mmio_gpa(SLOT) + 0x50, 0), 0);
	driver_wait_used(d, 0);
}
END_TEST

int main(void)
{
	const TTest *const tests[] = {kicks, interrupts, comes_and_goes};
	Suite *s;
	TCase *tc;
	SRunner *sr;
	int failed;

	if (!kvm_here())
		return check_skip("virtio-mmio-kvm", "no /dev/kvm that may be used");
	s = suite_create("virtio-mmio-kvm");
	tc = tcase_create("virtio-mmio-kvm");
	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_set_timeout(tc, 60);
	for (size_t i = 0; i < ARRAY_SIZE(tests); i++)
		tcase_add_test(tc, tests[i]);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
