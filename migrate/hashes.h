/* SPDX-License-Identifier: MIT */
/*
 * Hash of every guest page: what the destination holds.
 *
 * The source's table says what the destination has been sent, never what the source last looked
 * at; the destination's own table says what it stored. Both start as "all zeros", which is what
 * fresh guest RAM is. XXH3-128 with a seed drawn for each migration, so that nobody can prepare
 * pages that collide, XORed with the hash of a page of zeros: so such a page hashes to 0, and a
 * fresh table is fresh memory, which costs nothing where the guest has no pages. 16 bytes for each
 * page that was ever sent: 0.39 % of RAM at most.
 *
 * The proof of equality is a digest of each chunk of the table, which is one of the digests of its
 * parts. Those of what has changed are taken while the guest runs, at the end of each round: at the
 * pause only the last round's parts are due, a KiB of the table for each page at most.
 */
#ifndef GODWIT_MIGRATE_HASHES_H
#define GODWIT_MIGRATE_HASHES_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../vmm/ram.h"
#include "hash_page.h"

#define HASHES_CHUNK 512U /* pages covered by one digest: 2 MiB */
#define HASHES_PART 64U

struct page_hash {
	uint64_t low;
	uint64_t high;
};

struct hashes {
	uint64_t seed;
	uint64_t npages;
	hash_page_fn *page;	  /* the quickest here */
	struct page_hash zero;	  /* of a page of zeros: 0 */
	struct page_hash mask;	  /* XXH3-128 of a page of zeros */
	struct page_hash *table;  /* to be read; hashes_set() writes */
	struct page_hash *digest; /* of each chunk */
	struct page_hash *part;	  /* digest of each part */
	_Atomic uint8_t *fresh;	  /* of each part: its digest is of what the table says now */
};

static inline bool hash_equal(const struct page_hash *a, const struct page_hash *b)
{
	return a->low == b->low && a->high == b->high;
}

/* All pages zero. -ENOMEM. */
int hashes_init(struct hashes *h, uint64_t npages, uint64_t seed);
void hashes_free(struct hashes *h);

/* All pages zero again. */
void hashes_clear(struct hashes *h);

/* One entry of the table. Any thread, if each page has only one at a time. */
static inline void hashes_set(struct hashes *h, uint64_t index, struct page_hash hash)
{
	__atomic_store_n(&h->table[index].low, hash.low, __ATOMIC_RELAXED);
	__atomic_store_n(&h->table[index].high, hash.high, __ATOMIC_RELAXED);
	/* After the entry: who looks at both meanwhile takes the digest again. */
	atomic_store_explicit(&h->fresh[index / HASHES_PART], 0, memory_order_release);
}

/* One entry, which another thread may be about to change: then it is the old one, or nonsense. */
static inline struct page_hash hashes_peek(const struct hashes *h, uint64_t index)
{
	return (struct page_hash){
		.low = __atomic_load_n(&h->table[index].low, __ATOMIC_RELAXED),
		.high = __atomic_load_n(&h->table[index].high, __ATOMIC_RELAXED),
	};
}

/* Hash of one page's content. */
struct page_hash hash_page(const struct hashes *h, const void *page);

/* Is the page all zeros? */
bool page_is_zero(const void *page);

uint64_t hashes_n_chunks(const struct hashes *h);

/* Brings the digests up to date. One thread at a time. */
void hashes_refresh(struct hashes *h);

/*
 * The proof of equality: the digests of all chunks and, last, that of the machine's state. *n is
 * their number, *root one digest over all of them. NULL without memory; the caller frees.
 */
struct page_hash *hashes_proof(struct hashes *h, const void *state, size_t state_len, size_t *n,
			       struct page_hash *root);

/*
 * Makes the table tell what RAM holds now, of a machine that does not run. tick(arg), when not
 * NULL, is called every few MiB; what it returns other than 0 ends that and is returned.
 */
int hashes_from_ram(struct hashes *h, const struct ram *ram, int (*tick)(void *arg), void *arg);

/* How many pages are not zero, by the table. */
uint64_t hashes_count_held(const struct hashes *h);

/* Bytes of a proof. */
uint64_t hashes_proof_len(const struct hashes *h);

#endif
