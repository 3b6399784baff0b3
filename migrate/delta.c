/* SPDX-License-Identifier: MIT */
#include "delta.h"

#include <errno.h>
#include <string.h>

/* Inline: there are 128 calls a page. */
#define XXH_INLINE_ALL
#include <xxhash.h>

static uint64_t hash_block(const uint8_t *page, unsigned i, uint64_t seed)
{
	return XXH3_64bits_withSeed(page + i * (size_t)DELTA_BLOCK, DELTA_BLOCK, seed);
}

void delta_hash(const void *page, uint64_t seed, struct delta_hashes *out)
{
	for (unsigned i = 0; i < DELTA_BLOCKS; i++) {
		uint64_t hash = hash_block(page, i, seed);

		out->low[i] = (uint32_t)hash;
		out->high[i] = (uint16_t)(hash >> 32);
	}
}

static unsigned count_changed(const struct delta_mask *m)
{
	return (unsigned)(__builtin_popcountll(m->word[0]) + __builtin_popcountll(m->word[1]));
}

static uint32_t length_of(unsigned blocks)
{
	return blocks * DELTA_BLOCK + (uint32_t)sizeof(struct delta_mask);
}

static bool has(const struct delta_mask *m, unsigned i)
{
	return m->word[i / 64] >> i % 64 & 1;
}

uint32_t delta_make(void *page, uint64_t seed, const struct delta_hashes *have)
{
	struct delta_mask m = {{0}};
	uint8_t *bytes = page, *to = page;
	uint32_t len;

	for (unsigned i = 0; i < DELTA_BLOCKS; i++) {
		uint64_t hash = hash_block(bytes, i, seed);
		uint64_t changed =
			have->low[i] != (uint32_t)hash || have->high[i] != (uint16_t)(hash >> 32);

		m.word[i / 64] |= changed << i % 64;
	}
	len = length_of(count_changed(&m));
	if (len >= DELTA_MAX)
		return 0;
	for (unsigned i = 0; i < DELTA_BLOCKS; i++) {
		if (!has(&m, i))
			continue;
		memmove(to, bytes + i * (size_t)DELTA_BLOCK, DELTA_BLOCK);
		to += DELTA_BLOCK;
	}
	memcpy(to, &m, sizeof(m));
	return len;
}

bool delta_length_ok(uint32_t len)
{
	return len >= sizeof(struct delta_mask) && len < DELTA_MAX &&
	       (len - sizeof(struct delta_mask)) % DELTA_BLOCK == 0;
}

int delta_apply(void *page, const void *delta, uint32_t len)
{
	const uint8_t *from = delta;
	struct delta_mask m;

	memcpy(&m, from + len - sizeof(m), sizeof(m));
	if (length_of(count_changed(&m)) != len)
		return -EPROTO;
	for (unsigned i = 0; i < DELTA_BLOCKS; i++) {
		if (!has(&m, i))
			continue;
		memcpy((uint8_t *)page + i * (size_t)DELTA_BLOCK, from, DELTA_BLOCK);
		from += DELTA_BLOCK;
	}
	return 0;
}
