/* SPDX-License-Identifier: MIT */
#include "pages.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define COPIES 16384U /* power of two */
/* Ranges that are asked for together. */
#define GROUP_RANGES 256U

void page_counts_add(struct page_counts *to, const struct page_counts *from)
{
	to->scanned += from->scanned;
	to->zero += from->zero;
	to->unchanged += from->unchanged;
	to->sent += from->sent;
	to->packed += from->packed;
	to->delta += from->delta;
	to->copied += from->copied;
}

void page_path_free(struct page_path *p)
{
	pack_free(&p->pack);
	asks_free(&p->asks);
	free(p->copies);
	p->copies = NULL;
}

/* One thread stores: no need of what an atomic addition costs. */
static void count(_Atomic uint64_t *counter, uint64_t n)
{
	uint64_t now = atomic_load_explicit(counter, memory_order_relaxed);

	atomic_store_explicit(counter, now + n, memory_order_relaxed);
}

static int flush_batch(struct page_path *p, struct errmsg *err)
{
	struct conn_batch *b = p->batch;
	int ret;

	p->batch = NULL;
	if (!b || b->head.n_descs == 0)
		return 0;
	ret = b->n_pieces ? 0 : pack_batch(&p->pack, p->conn, b, err);
	if (ret)
		return ret;
	if (b->head.packed)
		count(&p->total.packed, b->head.n_data);
	ret = conn_send_batch(p->conn, b, err);
	/* Where the network is slow a range takes long. */
	if (ret == 0 && p->tick)
		ret = p->tick(p->tick_arg, err);
	return ret;
}

static int ensure_batch(struct page_path *p, struct errmsg *err)
{
	int ret;

	if (p->batch && p->batch->head.n_descs < WIRE_BATCH_DESCS &&
	    wire_batch_unpacked(&p->batch->head) + PAGE_SIZE <= p->batch->room)
		return 0;
	ret = flush_batch(p, err);
	if (ret)
		return ret;
	p->batch = conn_batch(p->conn, &ret, err);
	return p->batch ? 0 : ret;
}

static int add_zeros(struct page_path *p, uint64_t index, enum wire_page_kind kind,
		     struct errmsg *err)
{
	struct wire_desc *last;
	struct conn_batch *b;
	int ret = ensure_batch(p, err);

	if (ret)
		return ret;
	hashes_set(p->hashes, index, p->hashes->zero);
	b = p->batch;
	last = b->head.n_descs ? &b->desc[b->head.n_descs - 1] : NULL;
	if (last && last->kind == kind && last->index + last->count == index) {
		last->count++;
		return 0;
	}
	b->desc[b->head.n_descs++] = (struct wire_desc){
		.index = index,
		.count = 1,
		.kind = kind,
		.hash = p->hashes->zero,
	};
	return 0;
}

/* The page that has this content and was sent before, or NULL; this one is noted from now on. */
static const uint32_t *find_copy(struct page_path *p, uint64_t index, const struct page_hash *hash)
{
	uint32_t *entry = &p->copies[hash->low % COPIES], found = *entry;

	if (found && hash_equal(&p->hashes->table[found - 1], hash))
		return entry;
	if (index < UINT32_MAX)
		*entry = (uint32_t)index + 1;
	return NULL;
}

/* Where the batch's next content goes. */
static uint8_t *staging(const struct page_path *p)
{
	return p->batch->data + wire_batch_unpacked(&p->batch->head);
}

/* The page as it is best sent; it lies in staging, or, of a guest at rest, in its RAM. */
static void add_content(struct page_path *p, uint64_t index, const struct page_hash *hash,
			const uint8_t *page)
{
	const struct delta_hashes *have = asks_have(&p->asks, index);
	const uint32_t *copy = find_copy(p, index, hash);
	struct wire_batch *head = &p->batch->head;
	struct wire_desc *d = &p->batch->desc[head->n_descs++];
	uint8_t *staged = staging(p);
	bool direct = page != staged;
	uint32_t delta = 0;

	*d = (struct wire_desc){.index = index, .count = 1, .kind = WIRE_PAGE_DATA, .hash = *hash};
	count(&p->total.sent, 1);
	if (copy) {
		d->kind = WIRE_PAGE_COPY;
		d->count = *copy - 1;
		count(&p->total.copied, 1);
		return;
	}
	if (have) {
		if (direct)
			memcpy(staged, page, PAGE_SIZE);
		delta = delta_make(staged, p->hashes->seed, have);
		asks_count(&p->asks, delta ? delta : (uint32_t)PAGE_SIZE);
	}
	if (delta) {
		d->kind = WIRE_PAGE_DELTA;
		d->count = delta;
		head->delta += delta;
		count(&p->total.delta, 1);
	} else {
		head->n_data++;
	}
	if (direct)
		conn_batch_piece(p->batch, delta ? staged : page, wire_desc_content(d));
}

static int send_page(struct page_path *p, uint64_t index, struct errmsg *err)
{
	const struct page_hash *held = &p->hashes->table[index];
	struct page_hash hash;
	const uint8_t *page;
	int ret = ensure_batch(p, err);

	if (ret)
		return ret;
	page = ram_page(&p->vm->ram, index);
	/* Of a guest that runs nothing is looked at but a copy. */
	if (!p->direct)
		page = memcpy(staging(p), page, PAGE_SIZE);
	if (page_is_zero(page)) {
		count(&p->total.zero, 1);
		return hash_equal(held, &p->hashes->zero)
			       ? 0
			       : add_zeros(p, index, WIRE_PAGE_ZERO, err);
	}
	hash = hash_page(p->hashes, page);
	if (hash_equal(held, &hash)) {
		count(&p->total.unchanged, 1);
		return 0;
	}
	add_content(p, index, &hash, page);
	hashes_set(p->hashes, index, hash);
	return 0;
}

/* ---- rounds ---- */

/* Of 64 pages from word * 64 on: those that may hold something. */
static int send_word(struct page_path *p, uint64_t word, uint64_t bits, struct errmsg *err)
{
	int ret = 0;

	for (; bits && ret == 0; bits &= bits - 1)
		ret = send_page(p, word * 64 + (unsigned)__builtin_ctzll(bits), err);
	return ret;
}

/*
 * Holes come after the range's other pages: as contents were stored the destination may have taken
 * memory for all of it. If there were none (`alone`) it has memory only for what it holds.
 */
static int send_holes(struct page_path *p, uint64_t word, uint64_t bits, bool alone,
		      struct errmsg *err)
{
	int ret = 0;

	for (; bits && ret == 0; bits &= bits - 1) {
		uint64_t index = word * 64 + (unsigned)__builtin_ctzll(bits);

		count(&p->total.zero, 1);
		if (!alone || !hash_equal(&p->hashes->table[index], &p->hashes->zero))
			ret = add_zeros(p, index, WIRE_PAGE_HOLE, err);
	}
	return ret;
}

/* Sends the pages of n words from `word` on, and takes their bits. */
static int send_range(struct page_path *p, uint64_t word, uint64_t n, struct errmsg *err)
{
	uint64_t *bitmap = p->dirty->bitmap + word;
	uint64_t holes[PAGES_RANGE_WORDS], lo = 0, hi = n, sent = p->total.sent;
	int ret;

	while (lo < n && !bitmap[lo])
		lo++;
	if (lo == n)
		return 0;
	while (!bitmap[hi - 1])
		hi--;
	/* Clear, then read: a write from here on makes the page dirty again. */
	ret = dirty_clear(p->dirty, word, n, err);
	if (ret)
		return ret;
	/* After the clearing, too: a hole that the guest stores into now is in the next round. */
	ram_find_holes(&p->vm->ram, word * 64,
		       (word + lo) * 64 + (unsigned)__builtin_ctzll(bitmap[lo]),
		       (word + hi) * 64 - (unsigned)__builtin_clzll(bitmap[hi - 1]), holes);
	for (uint64_t i = lo; i < hi && ret == 0; i++) {
		count(&p->total.scanned, (unsigned)__builtin_popcountll(bitmap[i]));
		ret = send_word(p, word + i, bitmap[i] & ~holes[i], err);
	}
	for (uint64_t i = lo; i < hi && ret == 0; i++)
		ret = send_holes(p, word + i, bitmap[i] & holes[i], p->total.sent == sent, err);
	/* What was cleared and not sent is still due, on a connection that takes this one's place.
	 */
	if (ret == 0)
		memset(bitmap, 0, n * sizeof(*bitmap));
	return ret;
}

/* ---- groups of ranges ---- */

struct group {
	uint64_t word[GROUP_RANGES]; /* where each begins */
	unsigned n;
	uint64_t pages;
};

static uint64_t range_words(const struct page_path *p, uint64_t word)
{
	return MIN((uint64_t)PAGES_RANGE_WORDS, p->dirty->n_words - word);
}

/* The next range that has dirty pages, which are counted. False when none is left. */
static bool take_range(struct page_path *p, struct group *g)
{
	uint64_t word, pages = 0;

	do {
		word = atomic_fetch_add(&p->work->next, PAGES_RANGE_WORDS);
		if (word >= p->dirty->n_words || p->work->stop)
			return false;
		for (uint64_t i = 0; i < range_words(p, word); i++)
			pages += (unsigned)__builtin_popcountll(p->dirty->bitmap[word + i]);
	} while (pages == 0);
	g->word[g->n++] = word;
	g->pages += pages;
	return true;
}

/* Puts pages of the range that the destination holds in an older form on the list. */
static void list_range(struct page_path *p, uint64_t word, unsigned room)
{
	for (uint64_t i = 0; i < range_words(p, word); i++) {
		for (uint64_t bits = p->dirty->bitmap[word + i]; bits; bits &= bits - 1) {
			uint64_t index = (word + i) * 64 + (unsigned)__builtin_ctzll(bits);

			if (p->asks.n == room)
				return;
			if (!hash_equal(&p->hashes->table[index], &p->hashes->zero))
				asks_add(&p->asks, index);
		}
	}
}

/*
 * What this worker does next: one range, or, where the destination is to be asked for what it
 * holds, as many as one question is for. False when nothing is left, or with *ret on an error.
 */
static bool begin_group(struct page_path *p, struct group *g, int *ret, struct errmsg *err)
{
	int room;

	g->n = 0;
	g->pages = 0;
	if (!take_range(p, g))
		return false;
	room = asks_begin(&p->asks, err);
	if (room < 0)
		*ret = room;
	if (room <= 0)
		return room == 0;
	while (p->asks.on && g->pages + PAGES_RANGE_WORDS * 64ULL <= (unsigned)room &&
	       g->n < GROUP_RANGES && take_range(p, g))
		;
	for (unsigned i = 0; i < g->n; i++)
		list_range(p, g->word[i], (unsigned)room);
	*ret = asks_send(&p->asks, p->conn, &p->work->net, err);
	return *ret == 0;
}

static int begin_round(struct page_path *p, struct errmsg *err)
{
	pack_begin_round(&p->pack);
	/* What is compressed has to lie in one piece. */
	p->direct = p->work->at_rest && !pack_is_on(&p->pack);
	if (!p->copies)
		p->copies = malloc(COPIES * sizeof(*p->copies));
	if (!p->copies)
		return errmsg_set(err, -ENOMEM, "no memory for a table of pages");
	/* What was sent in an earlier round may be about to change. */
	memset(p->copies, 0, COPIES * sizeof(*p->copies));
	return 0;
}

int pages_send_round(struct page_path *p, struct errmsg *err)
{
	int ret = begin_round(p, err);
	struct group g;

	while (ret == 0 && begin_group(p, &g, &ret, err)) {
		for (unsigned i = 0; i < g.n && ret == 0; i++) {
			ret = send_range(p, g.word[i], range_words(p, g.word[i]), err);
			if (ret == 0 && p->tick)
				ret = p->tick(p->tick_arg, err);
		}
		asks_decide(&p->asks, &p->work->net);
	}
	if (ret == 0)
		ret = flush_batch(p, err);
	p->batch = NULL;
	return ret;
}
