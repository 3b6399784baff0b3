/* SPDX-License-Identifier: MIT */
/*
 * Memory: the map above 4 GiB and an allocator that only gives.
 *
 * What is free is a list of ranges in ascending order; allocations take from the start of the first
 * range that fits. The first MiB is left alone (firmware tables, the trampoline), and so is the
 * image.
 */

#include "private.h"

#define GIB (1ul << 30)
#define STATIC_MAP (4 * GIB) /* entry.S maps this much */
#define LARGE_PAGE (1ul << 21)
#define PTE_TABLE 0x07ul
#define PTE_RAM 0x87ul

static struct rt_range free_ranges[RT_MAX_RANGES];
static uint32_t nr_free;

static uint64_t page_up(uint64_t addr)
{
	return (addr + RT_PAGE_SIZE - 1) & ~(RT_PAGE_SIZE - 1);
}

static void add_free(uint64_t base, uint64_t end)
{
	uint64_t image_end = page_up((uint64_t)rt_image_end);
	uint32_t i;

	if (base < image_end)
		base = image_end;
	base = page_up(base);
	end &= ~(RT_PAGE_SIZE - 1);
	if (base >= end)
		return;
	for (i = nr_free; i > 0 && free_ranges[i - 1].base > base; i--)
		free_ranges[i] = free_ranges[i - 1];
	free_ranges[i].base = base;
	free_ranges[i].size = end - base;
	nr_free++;
}

/* A page directory is linked in only when it is complete, for the CPU may look at it at once. */
static void map_gib(uint64_t base)
{
	uint64_t index = base / GIB, *pd;

	if (index >= 512)
		rt_panic("RAM above 512 GiB");
	if (rt_pdpt[index])
		return;
	pd = rt_alloc(RT_PAGE_SIZE);
	for (uint64_t i = 0; i < 512; i++)
		pd[i] = (base & ~(GIB - 1)) + i * LARGE_PAGE + PTE_RAM;
	__atomic_store_n(&rt_pdpt[index], (uint64_t)pd + PTE_TABLE, __ATOMIC_RELEASE);
}

void rt_mem_init(void)
{
	/* What is mapped already first: the page tables for the rest are taken from it. */
	for (uint32_t i = 0; i < rt.nr_ram; i++) {
		uint64_t base = rt.ram[i].base, end = base + rt.ram[i].size;

		if (end < base)
			rt_panic("memory map: a range wraps");
		if (base < STATIC_MAP)
			add_free(base, end < STATIC_MAP ? end : STATIC_MAP);
	}
	for (uint32_t i = 0; i < rt.nr_ram; i++) {
		uint64_t base = rt.ram[i].base, end = base + rt.ram[i].size;

		if (base < STATIC_MAP)
			base = STATIC_MAP;
		if (base >= end)
			continue;
		for (uint64_t gib = base & ~(GIB - 1); gib < end; gib += GIB)
			map_gib(gib);
		if (nr_free == RT_MAX_RANGES)
			rt_panic("memory map: too many ranges");
		add_free(base, end);
	}
}

void *rt_alloc(uint64_t size)
{
	size = page_up(size);
	for (uint32_t i = 0; i < nr_free; i++) {
		uint64_t base = free_ranges[i].base;

		if (free_ranges[i].size < size)
			continue;
		free_ranges[i].base += size;
		free_ranges[i].size -= size;
		return (void *)base;
	}
	rt_panic("out of memory");
}

uint64_t rt_free_pages(void)
{
	uint64_t pages = 0;

	for (uint32_t i = 0; i < nr_free; i++)
		pages += free_ranges[i].size / RT_PAGE_SIZE;
	return pages;
}

void rt_alloc_ranges(uint64_t pages, struct rt_range *out, uint32_t *nr)
{
	uint64_t left = pages * RT_PAGE_SIZE;
	uint32_t n = 0;

	if (pages > rt_free_pages())
		rt_panic("out of memory");
	for (uint32_t i = 0; i < nr_free && left; i++) {
		uint64_t take = free_ranges[i].size < left ? free_ranges[i].size : left;

		if (take == 0)
			continue;
		if (n == *nr)
			rt_panic("out of memory: too scattered");
		out[n].base = free_ranges[i].base;
		out[n].size = take;
		free_ranges[i].base += take;
		free_ranges[i].size -= take;
		left -= take;
		n++;
	}
	*nr = n;
}
