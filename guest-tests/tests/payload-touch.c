/* SPDX-License-Identifier: MIT */
/* touch: a word here and there in all of RAM, so that guests larger than the host can be tested. */
#include "../bare/rt/rt.h"
#include "payload-contract.h"

#define HIGH (4ul << 30)

static struct rt_range ranges[RT_MAX_RANGES];
static uint32_t nr_ranges;
static uint64_t stride;

static uint64_t content(uint64_t addr)
{
	return (addr + 1) * 0x9e3779b97f4a7c15ul;
}

/* The words lie at different places of their pages. */
static volatile uint64_t *word(uint64_t page)
{
	return (volatile uint64_t *)(page + page / stride * 8 % RT_PAGE_SIZE);
}

static void store(void)
{
	uint64_t words = 0, high = 0, top = 0;

	for (uint32_t i = 0; i < nr_ranges; i++) {
		/* The last page of a range as well: holes begin there. */
		uint64_t last = ranges[i].base + ranges[i].size - RT_PAGE_SIZE;

		for (uint64_t at = ranges[i].base;; at = last - at > stride ? at + stride : last) {
			*word(at) = content(at);
			words++;
			high += at >= HIGH;
			top = (uint64_t)word(at);
			if (at == last)
				break;
		}
	}
	rt_printf(TOUCH_READY_FMT "\n", words, high, top);
}

static void compare(const char *fmt)
{
	uint64_t words = 0, errors = 0;

	for (uint32_t i = 0; i < nr_ranges; i++) {
		uint64_t last = ranges[i].base + ranges[i].size - RT_PAGE_SIZE;

		for (uint64_t at = ranges[i].base;; at = last - at > stride ? at + stride : last) {
			uint64_t got = *word(at);

			words++;
			if (got != content(at) && errors++ < 20)
				rt_printf(TOUCH_ERROR_FMT "\n", (uint64_t)word(at), content(at),
					  got);
			if (at == last)
				break;
		}
	}
	rt_printf(fmt, words, errors);
}

static void touch(void)
{
	stride = rt_option("stride", 16ul << 20) & ~(RT_PAGE_SIZE - 1);
	if (!stride)
		rt_panic("stride= is less than a page");
	nr_ranges = RT_MAX_RANGES;
	rt_alloc_ranges(rt_free_pages(), ranges, &nr_ranges);
	store();
	for (;;) {
		int c = rt_getc();

		if (c == 'q')
			break;
		if (c == 'v')
			compare(TOUCH_VERIFY_FMT "\n");
		else
			rt_relax();
	}
	compare(TOUCH_DONE_FMT "\n");
}

const struct rt_payload rt_payload = {.name = "touch", .main = touch};
