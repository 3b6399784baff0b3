/* SPDX-License-Identifier: MIT */
#include "pages.h"

#include <string.h>

static int flush_batch(struct page_path *p, struct errmsg *err)
{
	struct conn_batch *b = p->batch;

	p->batch = NULL;
	if (!b || b->head.n_descs == 0)
		return 0;
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

/* A page that is all zeros, or that the host has no memory for. */
static int send_zero(struct page_path *p, uint64_t index, struct errmsg *err)
{
	struct page_hash *held = &p->hashes->table[index];
	struct wire_desc *last;
	struct conn_batch *b;
	int ret;

	p->total.zero++;
	if (hash_equal(held, &p->hashes->zero))
		return 0;
	ret = ensure_batch(p, err);
	if (ret)
		return ret;
	*held = p->hashes->zero;
	b = p->batch;
	last = b->head.n_descs ? &b->desc[b->head.n_descs - 1] : NULL;
	if (last && last->kind == WIRE_PAGE_ZERO && last->index + last->count == index) {
		last->count++;
		return 0;
	}
	b->desc[b->head.n_descs++] = (struct wire_desc){
		.index = index,
		.count = 1,
		.kind = WIRE_PAGE_ZERO,
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
	if (page_is_zero(staged))
		return send_zero(p, index, err);
	hash = hash_page(p->hashes, staged);
	if (hash_equal(held, &hash)) {
		p->total.unchanged++;
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
	p->total.sent++;
	return 0;
}

/* ---- rounds ---- */

static int send_word(struct page_path *p, uint64_t word, uint64_t bits, uint64_t holes,
		     struct errmsg *err)
{
	int ret = 0;

	for (; bits && ret == 0; bits &= bits - 1) {
		unsigned bit = (unsigned)__builtin_ctzll(bits);
		uint64_t index = word * 64 + bit;

		p->total.scanned++;
		ret = holes >> bit & 1 ? send_zero(p, index, err) : send_page(p, index, err);
	}
	return ret;
}

/* Sends the pages of n words from `word` on, and takes their bits. */
static int send_range(struct page_path *p, uint64_t word, uint64_t n, struct errmsg *err)
{
	uint64_t *bitmap = p->dirty->bitmap + word;
	uint64_t lo = 0, hi = n;
	uint64_t holes[PAGES_RANGE_WORDS];
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
		uint64_t bits = bitmap[i];

		bitmap[i] = 0;
		ret = send_word(p, word + i, bits, holes[i], err);
	}
	return ret;
}

int pages_send_round(struct page_path *p, uint64_t pages, struct errmsg *err)
{
	int ret = 0;

	for (uint64_t word = 0; word < p->dirty->n_words && ret == 0; word += PAGES_RANGE_WORDS) {
		uint64_t n = MIN((uint64_t)PAGES_RANGE_WORDS, p->dirty->n_words - word);
		uint64_t done = p->total.scanned;

		ret = send_range(p, word, n, err);
		if (ret || p->total.scanned == done)
			continue;
		pages -= MIN(pages, p->total.scanned - done);
		ret = p->tick(p->tick_arg, pages, err);
	}
	if (ret == 0)
		ret = flush_batch(p, err);
	p->batch = NULL;
	return ret;
}
