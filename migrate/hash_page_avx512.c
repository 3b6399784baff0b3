/* SPDX-License-Identifier: MIT */
#include "hash_page_with.h"

HASH_PAGE_WITH(avx512)
