/* SPDX-License-Identifier: MIT */
/*
 * Deltas: of a page that the destination holds in an older form, only what has changed.
 *
 * Theory of operation: the source keeps no old contents, which would take as much memory as the
 * pages themselves. It asks the destination (WIRE_ASK), which has them, and which answers with a
 * hash of each block of those pages (WIRE_HAVE). Blocks whose hash is another one now go on the
 * wire. The destination puts them into its page and then hashes the whole page, as it does with
 * every page: a delta that was made from a wrong hash is noticed there.
 *
 * On the wire a delta is the changed blocks, in order, and a mask of which ones they are.
 */
#ifndef GODWIT_MIGRATE_DELTA_H
#define GODWIT_MIGRATE_DELTA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../vmm/util.h"

#define DELTA_BLOCK 32U
#define DELTA_BLOCKS ((unsigned)(PAGE_SIZE / DELTA_BLOCK))

/* Bit i % 64 of word i / 64: block i has changed. */
struct delta_mask {
	uint64_t word[2];
};

/* Of each block the low 48 bits of XXH3-64, seeded as the hashes of pages are. */
struct delta_hashes {
	uint32_t low[DELTA_BLOCKS];
	uint16_t high[DELTA_BLOCKS];
};
_Static_assert(DELTA_BLOCKS == 128, "a mask has 128 bits");
_Static_assert(sizeof(struct delta_hashes) == 768, "hashes of blocks are 768 bytes on the wire");

/* A delta of so many bytes or more is none: the page itself is as good. */
#define DELTA_MAX (PAGE_SIZE * 3 / 4)

void delta_hash(const void *page, uint64_t seed, struct delta_hashes *out);

/* Makes the page into its delta against what `have` tells of: its length, or 0, and the page is
 * left as it is, when that would not be less than DELTA_MAX. */
uint32_t delta_make(void *page, uint64_t seed, const struct delta_hashes *have);

/* May a delta be so long? */
bool delta_length_ok(uint32_t len);

/* Puts the blocks of a delta of len bytes (delta_length_ok()) into the page. -EPROTO when its mask
 * does not fit its length; the page is left as it is. */
int delta_apply(void *page, const void *delta, uint32_t len);

#endif
