/* SPDX-License-Identifier: MIT */
#include "bus.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

int bus_add(struct bus *bus, const struct bus_range *range)
{
	unsigned i;
	uint64_t end;

	if (range->len == 0 || __builtin_add_overflow(range->base, range->len, &end))
		return -EINVAL;
	if (bus->n == BUS_MAX_RANGES)
		return -ENOSPC;
	for (i = 0; i < bus->n && bus->range[i].base < end; i++) {
		if (range->base < bus->range[i].base + bus->range[i].len)
			return -EEXIST;
	}
	memmove(&bus->range[i + 1], &bus->range[i], (bus->n - i) * sizeof(bus->range[0]));
	bus->range[i] = *range;
	bus->n++;
	return 0;
}

static const struct bus_range *find(const struct bus *bus, uint64_t addr, unsigned size)
{
	unsigned lo = 0, hi = bus->n;

	while (lo < hi) {
		unsigned mid = (lo + hi) / 2;
		const struct bus_range *r = &bus->range[mid];

		if (addr < r->base)
			hi = mid;
		else if (addr - r->base >= r->len)
			lo = mid + 1;
		else
			return size <= r->len - (addr - r->base) ? r : NULL;
	}
	return NULL;
}

uint64_t bus_read(const struct bus *bus, uint64_t addr, unsigned size)
{
	const struct bus_range *r = find(bus, addr, size);

	return r ? r->ops->read(r->dev, addr - r->base, size) : UINT64_MAX;
}

void bus_write(const struct bus *bus, uint64_t addr, unsigned size, uint64_t value)
{
	const struct bus_range *r = find(bus, addr, size);

	if (r)
		r->ops->write(r->dev, addr - r->base, size, value);
}
