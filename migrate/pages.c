/* SPDX-License-Identifier: MIT */
#include "pages.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

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

/* ---- holes ---- */

/*
 * Pages of the memfd that nobody has touched, or that were given back: they read as zeros, and
 * reading them would allocate them. That is as true of a moment only as everything about a
 * guest's memory: a hole may be stored into right after it was looked at. So it is asked after
 * the dirty bits are cleared, range by range, and such a store is in the next round. The other
 * way round, a page that is given back between the look and the copy is allocated again by the
 * copy; it is sent as zeros all the same, and what that costs is less than a range.
 */
struct holes {
	uint64_t bits[PAGES_RANGE_WORDS]; /* of one range */
};

/* The first page at or after index that may hold something; index itself where nobody knows. */
static uint64_t next_data(const struct ram *ram, uint64_t index)
{
	off_t at = lseek(ram->fd, (off_t)(index * PAGE_SIZE), SEEK_DATA);

	if (at < 0)
		return errno == ENXIO ? ram->npages : index;
	return MAX((uint64_t)at / PAGE_SIZE, index);
}

/*
 * Which of the pages [first, end) of the range from `base` on are holes. SEEK_DATA tells how long
 * a hole is at the price of one call; but SEEK_HOLE walks through all memory that lies behind,
 * which would make a round quadratic. So pages in memory are found with mincore(). It takes those
 * in swap for absent, hence SEEK_DATA has the last word on each that is not there.
 */
static void find_holes(const struct ram *ram, uint64_t base, uint64_t first, uint64_t end,
		       struct holes *h)
{
	unsigned char in_core[PAGES_RANGE_WORDS * 64];
	bool asked = false;

	*h = (struct holes){0};
	for (uint64_t at = first; at < end;) {
		uint64_t data = next_data(ram, at);

		for (; at < MIN(data, end); at++)
			h->bits[(at - base) / 64] |= 1ULL << ((at - base) % 64);
		if (++at >= end)
			break;
		if (!asked && mincore((void *)(uintptr_t)ram_page(ram, at), (end - at) * PAGE_SIZE,
				      in_core + (at - first)))
			break; /* not known: none is taken for a hole */
		asked = true;
		while (at < end && in_core[at - first] & 1)
			at++;
	}
}

static int send_hole(struct page_path *p, uint64_t index, struct errmsg *err)
{
	struct page_hash *held = &p->hashes->table[index];
	int ret;

	p->total.scanned++;
	p->total.zero++;
	if (hash_equal(held, &p->hashes->zero))
		return 0;
	ret = ensure_batch(p, err);
	if (ret)
		return ret;
	add_zero(p, index);
	*held = p->hashes->zero;
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

		ret = holes >> bit & 1 ? send_hole(p, index, err) : send_page(p, index, err);
	}
	return ret;
}

/* Sends the pages of n words from `word` on, and takes their bits. */
static int send_range(struct page_path *p, uint64_t word, uint64_t n, struct errmsg *err)
{
	uint64_t *bitmap = p->dirty->bitmap + word;
	uint64_t lo = 0, hi = n;
	struct holes holes;
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
	find_holes(&p->vm->ram, word * 64, (word + lo) * 64 + (unsigned)__builtin_ctzll(bitmap[lo]),
		   (word + hi) * 64 - (unsigned)__builtin_clzll(bitmap[hi - 1]), &holes);
	for (uint64_t i = lo; i < hi && ret == 0; i++) {
		uint64_t bits = bitmap[i];

		bitmap[i] = 0;
		ret = send_word(p, word + i, bits, holes.bits[i], err);
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
