/* SPDX-License-Identifier: MIT */
#include "hash_page_with.h"

HASH_PAGE_WITH(sse2)

hash_page_fn *hash_page_best(void)
{
	if (__builtin_cpu_supports("avx512f"))
		return hash_page_avx512;
	return __builtin_cpu_supports("avx2") ? hash_page_avx2 : hash_page_sse2;
}
