/* SPDX-License-Identifier: MIT */
#include "pages.h"

#include <errno.h>
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

static void add_zero(struct page_path *p, uint64_t index)
{
	struct conn_batch *b = p->batch;
	struct wire_desc *last = b->head.n_descs ? &b->desc[b->head.n_descs - 1] : NULL;

	if (last && last->kind == WIRE_PAGE_ZERO && last->index + last->count == index) {
		last->count++;
		return;
	}
	b->desc[b->head.n_descs++] = (struct wire_desc){
		.index = index,
		.count = 1,
		.kind = WIRE_PAGE_ZERO,
		.hash = p->hashes->zero,
	};
}

static int send_page(struct page_path *p, uint64_t index, struct errmsg *err)
{
	struct page_hash *held = &p->hashes->table[index];
	struct page_hash hash;
	uint8_t *staged;
	int ret = ensure_batch(p, err);

	if (ret)
		return ret;
	p->total.scanned++;
	staged = p->batch->data + p->batch->head.n_data * PAGE_SIZE;
	memcpy(staged, ram_page(&p->vm->ram, index), PAGE_SIZE);
	if (page_is_zero(staged)) {
		p->total.zero++;
		if (hash_equal(held, &p->hashes->zero))
			return 0;
		add_zero(p, index);
		*held = p->hashes->zero;
		return 0;
	}
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

/*
 * What is known of the memfd around the page at hand: pages that have never been touched are
 * holes; they read as zeros, and reading them would allocate them. Good for one range only, since
 * it must be asked after the dirty bits are cleared.
 */
struct holes {
	uint64_t hole_end, data_end;
};

static bool is_hole(const struct page_path *p, uint64_t index, struct holes *h)
{
	uint64_t n = 0, next = index;

	if (index >= h->hole_end && index >= h->data_end) {
		if (!ram_next_populated(&p->vm->ram, &next, &n))
			next = p->vm->ram.npages;
		h->hole_end = next;
		h->data_end = next + n;
	}
	return index < h->hole_end;
}

static int send_word(struct page_path *p, uint64_t word, uint64_t bits, struct holes *holes,
		     struct errmsg *err)
{
	while (bits) {
		uint64_t index = word * 64 + (unsigned)__builtin_ctzll(bits);
		int ret;

		bits &= bits - 1;
		if (hash_equal(&p->hashes->table[index], &p->hashes->zero) &&
		    is_hole(p, index, holes)) {
			p->total.scanned++;
			p->total.zero++;
			continue;
		}
		ret = send_page(p, index, err);
		if (ret)
			return ret;
	}
	return 0;
}

int pages_send_round(struct page_path *p, uint64_t pages, struct errmsg *err)
{
	uint64_t *bitmap = p->dirty->bitmap;
	int ret = 0;

	for (uint64_t word = 0; word < p->dirty->n_words && ret == 0; word += PAGES_RANGE_WORDS) {
		uint64_t n = MIN((uint64_t)PAGES_RANGE_WORDS, p->dirty->n_words - word);
		uint64_t done = p->total.scanned, any = 0;
		struct holes holes = {0};

		for (uint64_t i = 0; i < n; i++)
			any |= bitmap[word + i];
		if (!any)
			continue;
		/* Clear, then read: a write from here on makes the page dirty again. */
		ret = dirty_clear(p->dirty, word, n, err);
		for (uint64_t i = 0; i < n && ret == 0; i++) {
			uint64_t bits = bitmap[word + i];

			bitmap[word + i] = 0;
			ret = send_word(p, word + i, bits, &holes, err);
		}
		pages -= MIN(pages, p->total.scanned - done);
		if (ret == 0)
			ret = p->tick(p->tick_arg, pages, err);
	}
	if (ret == 0)
		ret = flush_batch(p, err);
	p->batch = NULL;
	return ret;
}
