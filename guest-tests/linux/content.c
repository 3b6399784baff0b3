/* SPDX-License-Identifier: MIT */
#include "content.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

void content_make(uint64_t *page, size_t words, uint64_t stamp, unsigned int patches, uint64_t seed)
{
	uint64_t key = mix(stamp ^ mix(seed));
	uint64_t mask = stamp & STAMP_COMPRESS ? 0xff : UINT64_MAX;

	if (stamp == 0) {
		memset(page, 0, words * sizeof(*page));
		return;
	}
	page[0] = stamp;
	for (size_t i = 1; i < words; i++) {
		/*
		 * Cheaper than mix(): the guest may be an emulated one, and this loop is most of
		 * its work.
		 */
		uint64_t x = key + i * UINT64_C(0x9e3779b97f4a7c15);

		x = (x ^ (x >> 32)) * UINT64_C(0xd6e8feb86659fd93);
		page[i] = (x ^ (x >> 29)) & mask;
	}
	for (unsigned int k = 0; k < patches; k++)
		content_patch(page, words, stamp, k, seed);
}

void content_patch(uint64_t *page, size_t words, uint64_t stamp, unsigned int k, uint64_t seed)
{
	uint64_t r = mix(stamp ^ mix(seed + k + 1));
	size_t at = 1 + (size_t)(r % (words - 1));
	unsigned char bytes[3] = {(unsigned char)(r >> 40), (unsigned char)(r >> 48),
				  (unsigned char)k};

	/* Three bytes, not a word: the least that a delta encoder could be asked to carry. */
	memcpy(&page[at], bytes, sizeof(bytes));
}

void content_explain(const uint64_t *have, const uint64_t *want, size_t words, uint64_t seed,
		     char *text, size_t size)
{
	size_t first = words, differ = 0, zero = 0, other = 0;
	uint64_t made[PAGE_WORDS];

	for (size_t i = 0; i < words; i++) {
		if (have[i] != want[i]) {
			differ++;
			if (first == words)
				first = i;
		}
		zero += have[i] == 0;
	}
	if (first == words) {
		/*
		 * It was wrong when compared and is right now: somebody writes it at this moment.
		 */
		snprintf(text, size, "differed, and does not when looked at again");
		return;
	}
	if (words <= PAGE_WORDS && have[0] != 0) {
		content_make(made, words, have[0], 0, seed);
		for (size_t i = 0; i < words; i++)
			other += have[i] == made[i];
	}
	snprintf(text, size,
		 "byte=%zu words_wrong=%zu have=%016" PRIx64 " want=%016" PRIx64
		 " stamp_have=%016" PRIx64 " stamp_want=%016" PRIx64 " looks=%s",
		 first * sizeof(*have), differ, have[first], want[first], have[0], want[0],
		 zero == words				    ? "zero"
		 : other == words && have[0] != want[0]	    ? "whole-old-page"
		 : other + 8 >= words && have[0] != want[0] ? "old-page-patched"
		 : differ <= 8				    ? "few-words"
							    : "mixed");
}
