/* SPDX-License-Identifier: MIT */
/*
 * What pages hold: a pure function of a stamp (and of how often a few bytes were patched since),
 * so that the whole content can be made again at any time and compared, and a wrong page says
 * what it was.
 */
#ifndef GODWIT_GUEST_LINUX_CONTENT_H
#define GODWIT_GUEST_LINUX_CONTENT_H

#include <stddef.h>
#include <stdint.h>

#define PAGE_BYTES 4096u
#define PAGE_WORDS (PAGE_BYTES / sizeof(uint64_t))

/*
 * A zero stamp is a page of zeros. Else the first word is the stamp itself, and the rest follows
 * from it.
 */
#define STAMP_COMPRESS (UINT64_C(1) << 63) /* words hold one random byte in eight */
#define STAMP_SHARED (UINT64_C(1) << 62)   /* no owner: many pages hold this same content */

/* worker < 64, page < 2^24; gen wraps at 2^32, by when a page has been rewritten often enough. */
static inline uint64_t stamp_make(unsigned int worker, size_t page, uint64_t gen)
{
	return (uint64_t)(worker & 63) << 56 | (uint64_t)(page & 0xffffff) << 32 |
	       (gen & 0xffffffff);
}

/* A 64-bit mixer in the manner of splitmix: every input bit reaches every output bit. */
static inline uint64_t mix(uint64_t x)
{
	x += UINT64_C(0x9e3779b97f4a7c15);
	x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
	return x ^ (x >> 31);
}

/*
 * Fill words with the content of stamp under seed, patched `patches` times. words % PAGE_WORDS
 * may be anything.
 */
void content_make(uint64_t *page, size_t words, uint64_t stamp, unsigned int patches,
		  uint64_t seed);

/* Apply patch number k (from 0) to a page that has had the ones before. */
void content_patch(uint64_t *page, size_t words, uint64_t stamp, unsigned int k, uint64_t seed);

/*
 * Say in text how `have` differs from `want`: where, how much, and whether `have` is, as a whole,
 * the content of another stamp (an old page that was not brought up to date) or zeros (a page
 * that never arrived).
 */
void content_explain(const uint64_t *have, const uint64_t *want, size_t words, uint64_t seed,
		     char *text, size_t size);

#endif
