/* SPDX-License-Identifier: MIT */
/*
 * The body of a hash_page_fn, for files that the Makefile compiles for a vector unit each. Inline
 * (XXH_INLINE_ALL): a call through the shared library for each page costs more than it should, and
 * the library is compiled for the oldest CPU.
 */
#include "../vmm/util.h"
#include "hash_page.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#define HASH_PAGE_WITH(unit)                                                                       \
	void hash_page_##unit(const void *page, uint64_t seed, uint64_t out[2])                    \
	{                                                                                          \
		XXH128_hash_t x = XXH3_128bits_withSeed(page, PAGE_SIZE, seed);                    \
                                                                                                   \
		out[0] = x.low64;                                                                  \
		out[1] = x.high64;                                                                 \
	}
