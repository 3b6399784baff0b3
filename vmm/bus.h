/* SPDX-License-Identifier: MIT */
/*
 * Address dispatch: port I/O and MMIO ranges to their devices.
 *
 * Ranges are added while the machine is built and never change while vCPUs run, so look-ups need
 * no lock; handlers are called on vCPU threads, several at once, and lock their own device.
 */
#ifndef GODWIT_BUS_H
#define GODWIT_BUS_H

#include <stdint.h>

#define BUS_MAX_RANGES 64

struct bus_ops {
	/* offset from the range's base; size 1, 2, 4 or 8 and within the range. */
	uint64_t (*read)(void *dev, uint64_t offset, unsigned size);
	void (*write)(void *dev, uint64_t offset, unsigned size, uint64_t value);
};

struct bus_range {
	uint64_t base;
	uint64_t len;
	const char *name;
	const struct bus_ops *ops;
	void *dev;
};

struct bus {
	unsigned n;
	struct bus_range range[BUS_MAX_RANGES]; /* sorted by base, disjoint */
};

/* -EEXIST when it overlaps another, -ENOSPC, -EINVAL (empty or wrapping range). */
int bus_add(struct bus *bus, const struct bus_range *range);

/*
 * One access. Nobody there, or an access that leaves its range: reads give all ones, writes are
 * dropped, as on a PC's bus.
 */
uint64_t bus_read(const struct bus *bus, uint64_t addr, unsigned size);
void bus_write(const struct bus *bus, uint64_t addr, unsigned size, uint64_t value);

#endif
