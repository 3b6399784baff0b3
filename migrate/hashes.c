/* SPDX-License-Identifier: MIT */
#include "hashes.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <xxhash.h>

#define TICK_PAGES 8192U
#define PARTS (HASHES_CHUNK / HASHES_PART) /* of a chunk */

static struct page_hash from_xxh(XXH128_hash_t x)
{
	return (struct page_hash){.low = x.low64, .high = x.high64};
}

int hashes_init(struct hashes *h, uint64_t npages, uint64_t seed)
{
	static const uint8_t zeros[PAGE_SIZE];
	size_t chunks, parts;

	*h = (struct hashes){.seed = seed, .npages = npages, .page = hash_page_best()};
	h->mask = hash_page(h, zeros);
	chunks = hashes_n_chunks(h);
	h->digest = calloc(chunks + 1, sizeof(*h->digest));
	parts = chunks * PARTS;
	h->part = calloc(parts + 1, sizeof(*h->part));
	h->fresh = calloc(parts + 1, sizeof(*h->fresh));
	h->table = mmap(NULL, npages * sizeof(*h->table), PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (h->table == MAP_FAILED)
		h->table = NULL;
	if (h->table && h->digest && h->part && h->fresh)
		return 0;
	hashes_free(h);
	return -ENOMEM;
}

void hashes_free(struct hashes *h)
{
	if (h->table)
		munmap(h->table, h->npages * sizeof(*h->table));
	free(h->digest);
	free(h->part);
	free(h->fresh);
	*h = (struct hashes){0};
}

void hashes_clear(struct hashes *h)
{
	for (uint64_t i = 0; i < h->npages; i++) {
		/* Where there was nothing no memory is taken for saying so. */
		if (!hash_equal(&h->table[i], &h->zero))
			hashes_set(h, i, h->zero);
	}
}

struct page_hash hash_page(const struct hashes *h, const void *page)
{
	uint64_t x[2];

	h->page(page, h->seed, x);
	return (struct page_hash){.low = x[0] ^ h->mask.low, .high = x[1] ^ h->mask.high};
}

bool page_is_zero(const void *page)
{
	const uint64_t *p = page;

	/* Most pages that are not zero show it in their first word. */
	if (p[0] | p[1])
		return false;
	return memcmp(p, p + 2, PAGE_SIZE - 16) == 0;
}

uint64_t hashes_n_chunks(const struct hashes *h)
{
	return (h->npages + HASHES_CHUNK - 1) / HASHES_CHUNK;
}

static struct page_hash digest_of(const struct hashes *h, const struct page_hash *hash, uint64_t n)
{
	return from_xxh(XXH3_128bits_withSeed(hash, n * sizeof(*hash), h->seed));
}

/* true when one was not of what the table says. */
static bool refresh_parts(struct hashes *h, uint64_t first, uint64_t n)
{
	bool any = false;

	for (uint64_t i = first; i < first + n; i++) {
		uint64_t page = i * HASHES_PART;

		if (atomic_load_explicit(&h->fresh[i], memory_order_relaxed))
			continue;
		atomic_exchange_explicit(&h->fresh[i], 1, memory_order_acquire);
		any = true;
		h->part[i] =
			digest_of(h, h->table + page, MIN(h->npages - page, (uint64_t)HASHES_PART));
	}
	return any;
}

void hashes_refresh(struct hashes *h)
{
	uint64_t parts = (h->npages + HASHES_PART - 1) / HASHES_PART;

	for (uint64_t first = 0; first < parts; first += PARTS) {
		uint64_t n = MIN(parts - first, (uint64_t)PARTS);

		if (refresh_parts(h, first, n))
			h->digest[first / PARTS] = digest_of(h, h->part + first, n);
	}
}

struct page_hash *hashes_proof(struct hashes *h, const void *state, size_t state_len, size_t *n,
			       struct page_hash *root)
{
	size_t chunks = hashes_n_chunks(h);
	struct page_hash *digest = malloc((chunks + 1) * sizeof(*digest));

	if (!digest)
		return NULL;
	hashes_refresh(h);
	if (chunks)
		memcpy(digest, h->digest, chunks * sizeof(*digest));
	digest[chunks] = from_xxh(XXH3_128bits_withSeed(state, state_len, h->seed));
	*n = chunks + 1;
	*root = from_xxh(XXH3_128bits_withSeed(digest, *n * sizeof(*digest), h->seed));
	return digest;
}

uint64_t hashes_proof_len(const struct hashes *h)
{
	return (hashes_n_chunks(h) + 1) * sizeof(struct page_hash);
}

int hashes_from_ram(struct hashes *h, const struct ram *ram, int (*tick)(void *arg), void *arg)
{
	uint64_t first = 0, n, hashed = 0;
	int ret;

	hashes_clear(h);
	for (; ram_next_populated(ram, &first, &n); first += n) {
		for (uint64_t i = first; i < first + n; i++) {
			struct page_hash now = hash_page(h, ram_page(ram, i));

			if (!hash_equal(&now, &h->table[i]))
				hashes_set(h, i, now);
			ret = tick && hashed++ % TICK_PAGES == 0 ? tick(arg) : 0;
			if (ret)
				return ret;
		}
	}
	return 0;
}

uint64_t hashes_count_held(const struct hashes *h)
{
	uint64_t n = 0;

	for (uint64_t i = 0; i < h->npages; i++)
		n += !hash_equal(&h->table[i], &h->zero);
	return n;
}
