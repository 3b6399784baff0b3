/* SPDX-License-Identifier: MIT */
/*
 * A machine for one device, without KVM: a bus and a loop.
 *
 * irq_set() and vm_set_end() are defined here, so the linker takes neither irq.o nor vm.o out of
 * the library and a test sees what the device did with its line. Include it in one file of a
 * test program only.
 */
#ifndef GODWIT_TESTS_DEVICE_FIXTURE_H
#define GODWIT_TESTS_DEVICE_FIXTURE_H

#include <check.h>
#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../device.h"
#include "../irq.h"
#include "../vm.h"

#define DEADLINE_NS (10 * NS_PER_SEC)

struct fixture {
	struct vm vm;
	struct loop loop;
	struct device *dev;
};

/* Of every line: its level and how often it rose. */
static atomic_bool fixture_level[IRQ_GSI_MAX + 1];
static atomic_uint fixture_rises[IRQ_GSI_MAX + 1];

void irq_set(const struct irq_line *line, bool level)
{
	ck_assert_uint_le(line->gsi, IRQ_GSI_MAX);
	if (!atomic_exchange(&fixture_level[line->gsi], level) && level)
		fixture_rises[line->gsi]++;
}

void vm_set_end(struct vm *vm, enum vm_end end, const char *fmt, ...)
{
	va_list ap;

	if (vm->end != VM_END_NONE)
		return;
	vm->end = end;
	va_start(ap, fmt);
	vsnprintf(vm->end_why.text, sizeof(vm->end_why.text), fmt, ap);
	va_end(ap);
}

/* As vm_add_device(): a device after init and reset. */
static inline struct fixture *fixture_new(const struct device_ops *ops, const void *config,
					  uint64_t ram_size)
{
	struct fixture *f = calloc(1, sizeof(*f));

	ck_assert_ptr_nonnull(f);
	ck_assert_int_eq(loop_init(&f->loop), 0);
	f->vm.loop = &f->loop;
	f->vm.vm_fd = -1;
	f->vm.cfg.ram_size = ram_size;
	f->dev = calloc(1, ops->size);
	ck_assert_ptr_nonnull(f->dev);
	f->dev->ops = ops;
	f->dev->vm = &f->vm;
	ck_assert_int_eq(ops->init(f->dev, config), 0);
	ops->reset(f->dev);
	return f;
}

static inline void fixture_free(struct fixture *f)
{
	f->dev->ops->destroy(f->dev);
	free(f->dev);
	loop_destroy(&f->loop);
	free(f);
}

static inline unsigned fixture_in(struct fixture *f, uint64_t port)
{
	return (unsigned)bus_read(&f->vm.pio, port, 1);
}

static inline void fixture_out(struct fixture *f, uint64_t port, unsigned value)
{
	bus_write(&f->vm.pio, port, 1, value);
}

/* The device's section body, saved at rest. */
static inline void fixture_save(struct fixture *f, struct sbuf *s)
{
	ck_assert_int_eq(f->dev->ops->quiesce(f->dev, now_ns() + DEADLINE_NS), 0);
	sb_init_save(s);
	s->version = f->dev->ops->version;
	f->dev->ops->fields(f->dev, s);
	ck_assert_int_eq(s->err, 0);
}

/* Loads len bytes into a fresh device, up to and with loaded(); 0 or -errno. */
static inline int fixture_load(struct fixture *f, const void *data, size_t len)
{
	struct sbuf s;

	sb_init_load(&s, data, len);
	s.version = f->dev->ops->version;
	f->dev->ops->fields(f->dev, &s);
	sb_end(&s);
	if (s.err)
		return s.err;
	return f->dev->ops->loaded ? f->dev->ops->loaded(f->dev) : 0;
}

/* Runs the loop until the line is up; false when it stays down for timeout_ns. */
static inline bool fixture_wait_irq(struct fixture *f, uint32_t gsi, uint64_t timeout_ns)
{
	uint64_t deadline = now_ns() + timeout_ns;

	while (!fixture_level[gsi]) {
		uint64_t now = now_ns();

		if (now >= deadline)
			return false;
		ck_assert_int_eq(loop_step(&f->loop, deadline - now), 0);
	}
	return true;
}

static inline int fixture_main(Suite *suite)
{
	SRunner *runner = srunner_create(suite);
	int failed;

	srunner_run_all(runner, CK_ENV);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

#endif
