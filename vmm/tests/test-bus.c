/* SPDX-License-Identifier: MIT */
#include "../bus.h"

#include <errno.h>
#include <string.h>

#include "../util.h"
#include "check-main.h"

/* A device that remembers the last access. */
struct dev {
	uint64_t offset, value;
	unsigned size, reads, writes;
};

static uint64_t dev_read(void *arg, uint64_t offset, unsigned size)
{
	struct dev *d = arg;

	d->reads++;
	d->offset = offset;
	d->size = size;
	return d->value;
}

static void dev_write(void *arg, uint64_t offset, unsigned size, uint64_t value)
{
	struct dev *d = arg;

	d->writes++;
	d->offset = offset;
	d->size = size;
	d->value = value;
}

static const struct bus_ops ops = {.read = dev_read, .write = dev_write};

static int add(struct bus *bus, uint64_t base, uint64_t len, struct dev *d)
{
	return bus_add(bus,
		       &(struct bus_range){
			       .base = base, .len = len, .name = "dev", .ops = &ops, .dev = d});
}

START_TEST(dispatch)
{
	struct dev d[3] = {{.value = 1}, {.value = 2}, {.value = 3}};
	struct bus bus = {.n = 0};

	/* Not in order of their addresses; side by side. */
	ck_assert_int_eq(add(&bus, 0x3f8, 8, &d[1]), 0);
	ck_assert_int_eq(add(&bus, 0x60, 1, &d[0]), 0);
	ck_assert_int_eq(add(&bus, 0x400, 0x10, &d[2]), 0);
	ck_assert_uint_eq(bus_read(&bus, 0x60, 1), 1);
	ck_assert_uint_eq(bus_read(&bus, 0x3f8, 1), 2);
	ck_assert_uint_eq(bus_read(&bus, 0x3ff, 1), 2);
	ck_assert_uint_eq(d[1].offset, 7);
	ck_assert_uint_eq(bus_read(&bus, 0x400, 4), 3);
	ck_assert_uint_eq(bus_read(&bus, 0x40c, 4), 3);
	ck_assert(d[2].offset == 12 && d[2].size == 4);
	bus_write(&bus, 0x3fb, 2, 0x1234);
	ck_assert(d[1].offset == 3 && d[1].size == 2 && d[1].value == 0x1234);
}
END_TEST

/* Nobody there, or only for a part of it. */
START_TEST(nobody)
{
	struct dev d = {.value = 5}, high = {.value = 6};
	struct bus bus = {.n = 0};

	ck_assert_uint_eq(bus_read(&bus, 0, 1), UINT64_MAX);
	bus_write(&bus, 0, 1, 1);
	ck_assert_int_eq(add(&bus, 0x100, 8, &d), 0);
	ck_assert_int_eq(add(&bus, UINT64_MAX - 15, 15, &high), 0);
	ck_assert_uint_eq(bus_read(&bus, 0xff, 1), UINT64_MAX);
	ck_assert_uint_eq(bus_read(&bus, 0x108, 1), UINT64_MAX);
	ck_assert_uint_eq(bus_read(&bus, 0xff, 2), UINT64_MAX);
	ck_assert_uint_eq(bus_read(&bus, 0x105, 4), UINT64_MAX);
	ck_assert_uint_eq(bus_read(&bus, 0x107, 2), UINT64_MAX);
	ck_assert_uint_eq(bus_read(&bus, UINT64_MAX, 1), UINT64_MAX);
	ck_assert_uint_eq(bus_read(&bus, UINT64_MAX, 8), UINT64_MAX);
	ck_assert_uint_eq(bus_read(&bus, UINT64_MAX - 4, 8), UINT64_MAX);
	bus_write(&bus, 0x107, 2, 9);
	ck_assert(d.reads == 0 && d.writes == 0 && high.reads == 0);
	ck_assert_uint_eq(bus_read(&bus, 0x100, 8), 5);
	ck_assert_uint_eq(bus_read(&bus, UINT64_MAX - 8, 8), 6);
}
END_TEST

START_TEST(bad_ranges)
{
	struct bus bus = {.n = 0};
	struct dev d = {0};

	ck_assert_int_eq(add(&bus, 0x100, 0, &d), -EINVAL);
	ck_assert_int_eq(add(&bus, UINT64_MAX, 2, &d), -EINVAL);
	ck_assert_int_eq(add(&bus, 0x100, 0x10, &d), 0);
	ck_assert_int_eq(add(&bus, 0x100, 0x10, &d), -EEXIST);
	ck_assert_int_eq(add(&bus, 0x10f, 1, &d), -EEXIST);
	ck_assert_int_eq(add(&bus, 0xff, 2, &d), -EEXIST);
	ck_assert_int_eq(add(&bus, 0, UINT64_MAX, &d), -EEXIST);
	ck_assert_uint_eq(bus.n, 1);
	ck_assert_int_eq(add(&bus, 0x110, 1, &d), 0);
	ck_assert_int_eq(add(&bus, 0xff, 1, &d), 0);
	for (unsigned i = bus.n; i < BUS_MAX_RANGES; i++)
		ck_assert_int_eq(add(&bus, 0x1000 + i * 16, 16, &d), 0);
	ck_assert_int_eq(add(&bus, 0x9000, 1, &d), -ENOSPC);
	/* Full, and still in order. */
	for (unsigned i = 1; i < bus.n; i++)
		ck_assert(bus.range[i - 1].base + bus.range[i - 1].len <= bus.range[i].base);
	ck_assert_uint_eq(bus_read(&bus, 0x1000 + 63 * 16, 1), 0);
	ck_assert_uint_eq(d.reads, 1);
}
END_TEST

int main(void)
{
	const TTest *const tests[] = {dispatch, nobody, bad_ranges};

	return check_main("bus", tests, ARRAY_SIZE(tests));
}
