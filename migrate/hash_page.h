/* SPDX-License-Identifier: MIT */
/*
 * XXH3-128 of a page, compiled for each vector unit that XXH3 has code for. All give the same.
 */
#ifndef GODWIT_MIGRATE_HASH_PAGE_H
#define GODWIT_MIGRATE_HASH_PAGE_H

#include <stdint.h>

/* low, then high */
typedef void hash_page_fn(const void *page, uint64_t seed, uint64_t out[2]);

hash_page_fn hash_page_sse2, hash_page_avx2, hash_page_avx512;

/* The one for this CPU. */
hash_page_fn *hash_page_best(void);

#endif
