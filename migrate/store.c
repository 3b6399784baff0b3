/* SPDX-License-Identifier: MIT */
#include "store.h"

#include <errno.h>
#include <string.h>

#include "handshake.h"

/* As it comes: head and descriptors side by side, as the frame's check covers them. */
struct batch {
	struct wire_batch head;
	struct wire_desc desc[WIRE_BATCH_DESCS];
};

static int receive_descs(struct store *s, struct conn *c, const struct wire_frame *f,
			 struct batch *b, struct errmsg *err)
{
	size_t descs;
	const char *why;
	int ret;

	b->head = (struct wire_batch){0};
	if (f->length < sizeof(b->head))
		return errmsg_set(err, -EPROTO, "the source sent a PAGES frame of %u bytes",
				  f->length);
	ret = conn_recv(c, &b->head, sizeof(b->head), err);
	if (ret)
		return ret;
	descs = b->head.n_descs * sizeof(b->desc[0]);
	if (b->head.n_descs > WIRE_BATCH_DESCS || f->length < sizeof(b->head) + descs)
		return errmsg_set(err, -EPROTO,
				  "the source sent a PAGES frame of %u descriptors in %u bytes",
				  b->head.n_descs, f->length);
	ret = conn_recv(c, b->desc, descs, err);
	if (ret == 0)
		ret = conn_verify(c, f, b, sizeof(b->head) + descs, err);
	if (ret)
		return ret;
	ret = wire_check_batch(&b->head, b->desc, f->length, s->ram->npages, &why);
	if (ret)
		return errmsg_set(err, ret, "the source sent a malformed PAGES frame: %s", why);
	return 0;
}

/*
 * Pages take memory that they did not take before: the guest may have grown since the handshake,
 * and so may everything else here.
 */
static int check_memory(struct store *s, struct errmsg *err)
{
	uint64_t used = ram_used(s->ram);
	struct host_memory m;

	if (used < s->used + MEMORY_STEP)
		return 0;
	s->used = used;
	host_memory_read(&m);
	return host_memory_check_step(&m, err);
}

/* Contents that were packed take a way round, which a network that is slow enough has time for. */
static int receive_packed(struct store *s, struct conn *c, const struct batch *b,
			  struct errmsg *err)
{
	const uint8_t *page;
	int ret = unpack_prepare(&s->unpack);

	if (ret)
		return errmsg_set(err, ret, "no memory for compressed pages");
	ret = conn_recv(c, s->unpack.packed, b->head.packed, err);
	if (ret)
		return ret;
	if (unpack_pages(&s->unpack, b->head.packed, b->head.n_data))
		return errmsg_set(err, -EBADMSG, "compressed pages were damaged on their way");
	page = s->unpack.pages;
	for (uint32_t i = 0; i < b->head.n_descs; i++) {
		if (b->desc[i].kind != WIRE_PAGE_DATA)
			continue;
		ram_dma_write(s->ram, ram_dma_page(s->ram, b->desc[i].index), page, PAGE_SIZE);
		page += PAGE_SIZE;
	}
	return 0;
}

/* The contents come in the order of the descriptors; neighbours are one piece. */
static int receive_contents(struct store *s, struct conn *c, const struct batch *b,
			    struct errmsg *err)
{
	struct iovec iov[WIRE_BATCH_PAGES];
	unsigned n = 0;
	int ret;

	for (uint32_t i = 0; i < b->head.n_descs; i++) {
		uint8_t *host;

		if (b->desc[i].kind != WIRE_PAGE_DATA)
			continue;
		host = ram_dma_page(s->ram, b->desc[i].index);
		if (n && (uint8_t *)iov[n - 1].iov_base + iov[n - 1].iov_len == host)
			iov[n - 1].iov_len += PAGE_SIZE;
		else
			iov[n++] = (struct iovec){.iov_base = host, .iov_len = PAGE_SIZE};
	}
	ret = conn_recv_vec(c, iov, n, err);
	for (uint32_t i = 0; i < b->head.n_descs; i++) {
		if (b->desc[i].kind == WIRE_PAGE_DATA)
			ram_dma_done(s->ram, ram_page(s->ram, b->desc[i].index), PAGE_SIZE);
	}
	return ret;
}

static int take_data(struct store *s, const struct wire_desc *d, struct errmsg *err)
{
	/* Of what is in guest RAM now, not of what came: that is what the table has to tell. */
	struct page_hash hash = hash_page(s->hashes, ram_page(s->ram, d->index));

	s->hashes->table[d->index] = hash;
	atomic_fetch_add_explicit(&s->pages_stored, 1, memory_order_relaxed);
	if (!hash_equal(&hash, &d->hash))
		return errmsg_set(err, -EBADMSG, "page %llu was damaged on its way",
				  (unsigned long long)d->index);
	return 0;
}

/* A hole's memory is given back; the memory of pages of zeros, if there is any, is stored into. */
static int take_zeros(struct store *s, const struct wire_desc *d, struct errmsg *err)
{
	int ret = 0;

	if (d->kind == WIRE_PAGE_HOLE)
		ret = ram_zero_pages(s->ram, d->index, d->count);
	if (ret)
		return errmsg_set(err, ret, "zeroing pages: %s", strerror(-ret));
	for (uint64_t i = d->index; i < d->index + d->count; i++) {
		if (hash_equal(&s->hashes->table[i], &s->hashes->zero))
			continue;
		if (d->kind == WIRE_PAGE_ZERO) {
			void *host = ram_dma_page(s->ram, i);

			memset(host, 0, PAGE_SIZE);
			ram_dma_done(s->ram, host, PAGE_SIZE);
		}
		s->hashes->table[i] = s->hashes->zero;
	}
	atomic_fetch_add_explicit(&s->pages_zeroed, d->count, memory_order_relaxed);
	return 0;
}

int store_batch(struct store *s, struct conn *c, const struct wire_frame *f, struct errmsg *err)
{
	struct batch b;
	int ret = receive_descs(s, c, f, &b, err);

	if (ret == 0)
		ret = check_memory(s, err);
	if (ret == 0)
		ret = b.head.packed ? receive_packed(s, c, &b, err)
				    : receive_contents(s, c, &b, err);
	for (uint32_t i = 0; i < b.head.n_descs && ret == 0; i++) {
		if (b.desc[i].kind == WIRE_PAGE_DATA)
			ret = take_data(s, &b.desc[i], err);
		else
			ret = take_zeros(s, &b.desc[i], err);
	}
	return ret;
}
