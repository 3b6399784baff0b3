/* SPDX-License-Identifier: MIT */
#include "pages.h"

#include <string.h>

void page_counts_add(struct page_counts *to, const struct page_counts *from)
{
	to->scanned += from->scanned;
	to->zero += from->zero;
	to->unchanged += from->unchanged;
	to->sent += from->sent;
	to->packed += from->packed;
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
	ret = pack_batch(&p->pack, p->conn, b, err);
	if (ret)
		return ret;
	if (b->head.packed)
		count(&p->total.packed, b->head.n_data);
	return conn_send_batch(p->conn, b, err);
}

static int ensure_batch(struct page_path *p, struct errmsg *err)
{
	int ret;

	if (p->batch && p->batch->head.n_descs < WIRE_BATCH_DESCS &&
	    p->batch->head.n_data < WIRE_BATCH_PAGES)
		return 0;
	ret = flush_batch(p, err);
	if (ret)
		return ret;
	p->batch = conn_batch(p->conn, &ret, err);
	if (!p->batch)
		return ret;
	p->batch->head = (struct wire_batch){0};
	return 0;
}

static int add_zeros(struct page_path *p, uint64_t index, enum wire_page_kind kind,
		     struct errmsg *err)
{
	struct wire_desc *last;
	struct conn_batch *b;
	int ret = ensure_batch(p, err);

	if (ret)
		return ret;
	p->hashes->table[index] = p->hashes->zero;
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

static int send_page(struct page_path *p, uint64_t index, struct errmsg *err)
{
	struct page_hash *held = &p->hashes->table[index];
	struct page_hash hash;
	uint8_t *staged;
	int ret = ensure_batch(p, err);

	if (ret)
		return ret;
	staged = p->batch->data + p->batch->head.n_data * PAGE_SIZE;
	memcpy(staged, ram_page(&p->vm->ram, index), PAGE_SIZE);
	if (page_is_zero(staged)) {
		count(&p->total.zero, 1);
		return hash_equal(held, &p->hashes->zero)
			       ? 0
			       : add_zeros(p, index, WIRE_PAGE_ZERO, err);
	}
	hash = hash_page(p->hashes, staged);
	if (hash_equal(held, &hash)) {
		count(&p->total.unchanged, 1);
		return 0;
	}
	p->batch->desc[p->batch->head.n_descs++] = (struct wire_desc){
		.index = index,
		.count = 1,
		.kind = WIRE_PAGE_DATA,
		.hash = hash,
	};
	p->batch->head.n_data++;
	*held = hash;
	count(&p->total.sent, 1);
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
	memset(bitmap, 0, n * sizeof(*bitmap));
	return ret;
}

int pages_send_round(struct page_path *p, struct errmsg *err)
{
	struct page_work *work = p->work;
	uint64_t n_words = p->dirty->n_words, word;
	int ret = 0;

	pack_begin_round(&p->pack);
	while (ret == 0 && !work->stop &&
	       (word = atomic_fetch_add(&work->next, PAGES_RANGE_WORDS)) < n_words) {
		uint64_t n = MIN((uint64_t)PAGES_RANGE_WORDS, n_words - word);
		uint64_t done = p->total.scanned;

		ret = send_range(p, word, n, err);
		if (ret == 0 && p->tick && p->total.scanned != done)
			ret = p->tick(p->tick_arg, err);
	}
	if (ret == 0)
		ret = flush_batch(p, err);
	p->batch = NULL;
	return ret;
}
