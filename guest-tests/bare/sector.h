/* SPDX-License-Identifier: MIT */
/*
 * What the virtio payload writes to a disk, and in which order: shared with the tests, which look
 * at the image from outside.
 *
 * A disk is cut into chunks, the unit of a request. Write number n (from 0) goes to one chunk, and
 * C writes in a row, C being the number of chunks, go to all of them; so `all writes before number
 * N are done` says how often each chunk has been written. That is the generation of its sectors.
 *
 * A sector tells what it is, all of it follows from that, and a sum covers it.
 */
#ifndef GODWIT_BARE_SECTOR_H
#define GODWIT_BARE_SECTOR_H

#include <stdbool.h>
#include <stdint.h>

#define SECTOR_SIZE 512u
#define SECTOR_WORDS 64u
#define SECTOR_MAGIC 0x74697764735f6477ul
#define SECTOR_STRIDE 7919u /* a prime */

enum { SECTOR_W_MAGIC, SECTOR_W_SEED, SECTOR_W_NUMBER, SECTOR_W_GEN, SECTOR_W_FILL };

/* The chunk that write n goes to. */
static inline uint64_t sector_chunk(uint64_t n, uint64_t chunks)
{
	return n % chunks * (chunks % SECTOR_STRIDE ? SECTOR_STRIDE : 1) % chunks;
}

/* The generation it has after that: how often it has been written. */
static inline uint64_t sector_gen(uint64_t n, uint64_t chunks)
{
	return n / chunks + 1;
}

static inline uint64_t sector_mix(uint64_t x)
{
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
	x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
	return x ^ (x >> 31);
}

/* Word i of the filling; key is of seed, number and generation. */
static inline uint64_t sector_fill(uint64_t key, uint64_t i)
{
	uint64_t x = key + i * 0x9e3779b97f4a7c15;

	x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93;
	return x ^ (x >> 29);
}

static inline uint64_t sector_key(uint64_t seed, uint64_t number, uint64_t gen)
{
	return sector_mix(sector_mix(seed * 0x9e3779b97f4a7c15 + number) +
			  gen * 0xd1b54a32d192ed03);
}

/* Over all words but the last, which holds it. */
static inline uint64_t sector_sum(const uint64_t *w)
{
	uint64_t sum = SECTOR_MAGIC;

	for (uint32_t i = 0; i + 1 < SECTOR_WORDS; i++)
		sum = (sum ^ w[i]) * 0x100000001b3 + (sum >> 47);
	return sum;
}

static inline void sector_make(uint64_t *w, uint64_t seed, uint64_t number, uint64_t gen)
{
	uint64_t key = sector_key(seed, number, gen);

	w[SECTOR_W_MAGIC] = SECTOR_MAGIC;
	w[SECTOR_W_SEED] = seed;
	w[SECTOR_W_NUMBER] = number;
	w[SECTOR_W_GEN] = gen;
	for (uint64_t i = SECTOR_W_FILL; i + 1 < SECTOR_WORDS; i++)
		w[i] = sector_fill(key, i);
	w[SECTOR_WORDS - 1] = sector_sum(w);
}

/* Is it the sector of this number and seed, whole, of the generation that it says itself? */
static inline bool sector_sound(const uint64_t *w, uint64_t seed, uint64_t number)
{
	uint64_t key = sector_key(seed, number, w[SECTOR_W_GEN]);

	if (w[SECTOR_W_MAGIC] != SECTOR_MAGIC || w[SECTOR_W_SEED] != seed ||
	    w[SECTOR_W_NUMBER] != number || w[SECTOR_WORDS - 1] != sector_sum(w))
		return false;
	for (uint64_t i = SECTOR_W_FILL; i + 1 < SECTOR_WORDS; i++) {
		if (w[i] != sector_fill(key, i))
			return false;
	}
	return true;
}

#endif
