/* SPDX-License-Identifier: MIT */
#include "store.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "../vmm/fault.h"
#include "delta.h"
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

/*
 * Contents that were received beside RAM, into the pages they belong to. all: those of every page,
 * else only the deltas.
 */
static int put_contents(struct store *s, const struct batch *b, const uint8_t *from, bool all,
			struct errmsg *err)
{
	for (uint32_t i = 0; i < b->head.n_descs; i++) {
		const struct wire_desc *d = &b->desc[i];
		void *host;
		int ret = 0;

		if (d->kind != WIRE_PAGE_DELTA && !(all && d->kind == WIRE_PAGE_DATA))
			continue;
		host = ram_dma_page(s->ram, d->index);
		if (d->kind == WIRE_PAGE_DATA) {
			ram_dma_write(s->ram, host, from, PAGE_SIZE);
		} else {
			ret = delta_apply(host, from, d->count);
			ram_dma_done(s->ram, host, PAGE_SIZE);
		}
		if (ret)
			return errmsg_set(err, ret,
					  "the source sent a malformed delta of page %llu",
					  (unsigned long long)d->index);
		from += wire_desc_content(d);
	}
	return 0;
}

/* Contents that were packed take a way round, which a network that is slow enough has time for. */
static int receive_packed(struct store *s, struct conn *c, const struct batch *b,
			  struct errmsg *err)
{
	int ret = conn_recv(c, s->unpack.packed, b->head.packed, err);

	if (ret)
		return ret;
	if (unpack(&s->unpack, b->head.packed, wire_batch_unpacked(&b->head)))
		return errmsg_set(err, -EBADMSG, "compressed pages were damaged on their way");
	return put_contents(s, b, s->unpack.contents, true, err);
}

/* The contents come in the order of the descriptors; neighbours are one piece. */
static int receive_plain(struct store *s, struct conn *c, const struct batch *b, struct errmsg *err)
{
	uint8_t *beside = s->unpack.contents, *to;
	struct iovec iov[WIRE_BATCH_DESCS];
	unsigned n = 0;
	int ret;

	for (uint32_t i = 0; i < b->head.n_descs; i++) {
		size_t len = wire_desc_content(&b->desc[i]);

		if (len == 0)
			continue;
		if (b->desc[i].kind == WIRE_PAGE_DATA) {
			to = ram_dma_page(s->ram, b->desc[i].index);
		} else {
			to = beside;
			beside += len;
		}
		if (n && (uint8_t *)iov[n - 1].iov_base + iov[n - 1].iov_len == to)
			iov[n - 1].iov_len += len;
		else
			iov[n++] = (struct iovec){.iov_base = to, .iov_len = len};
	}
	ret = conn_recv_vec(c, iov, n, err);
	for (uint32_t i = 0; i < b->head.n_descs; i++) {
		if (b->desc[i].kind == WIRE_PAGE_DATA)
			ram_dma_done(s->ram, ram_page(s->ram, b->desc[i].index), PAGE_SIZE);
	}
	if (ret == 0 && b->head.delta)
		ret = put_contents(s, b, s->unpack.contents, false, err);
	return ret;
}

static int receive_contents(struct store *s, struct conn *c, const struct batch *b,
			    struct errmsg *err)
{
	int ret = b->head.packed || b->head.delta ? unpack_prepare(&s->unpack) : 0;

	if (ret)
		return errmsg_set(err, ret, "no memory for compressed pages");
	return b->head.packed ? receive_packed(s, c, b, err) : receive_plain(s, c, b, err);
}

static int take_data(struct store *s, const struct wire_desc *d, struct errmsg *err)
{
	/* Of what is in guest RAM now, not of what came: that is what the table has to tell. */
	struct page_hash hash = hash_page(s->hashes, ram_page(s->ram, d->index));

	hashes_set(s->hashes, d->index, hash);
	if (fault_at(FAULT_RAM, "stored"))
		*(uint8_t *)ram_dma_page(s->ram, d->index) ^= 0x10;
	atomic_fetch_add_explicit(&s->pages_stored, 1, memory_order_relaxed);
	if (!hash_equal(&hash, &d->hash))
		return errmsg_set(err, -EBADMSG, "page %llu was damaged on its way",
				  (unsigned long long)d->index);
	return 0;
}

/* Copies what the source has sent before: the table tells whether it has come. */
static int take_copy(struct store *s, const struct wire_desc *d, struct errmsg *err)
{
	if (!hash_equal(&s->hashes->table[d->count], &d->hash))
		return errmsg_set(
			err, -EPROTO,
			"the source sent page %llu as a copy of page %u, which is another",
			(unsigned long long)d->index, d->count);
	ram_dma_write(s->ram, ram_dma_page(s->ram, d->index), ram_page(s->ram, d->count),
		      PAGE_SIZE);
	return take_data(s, d, err);
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
		hashes_set(s->hashes, i, s->hashes->zero);
	}
	atomic_fetch_add_explicit(&s->pages_zeroed, d->count, memory_order_relaxed);
	return 0;
}

static int take(struct store *s, const struct wire_desc *d, struct errmsg *err)
{
	switch (d->kind) {
	case WIRE_PAGE_ZERO:
	case WIRE_PAGE_HOLE:
		return take_zeros(s, d, err);
	case WIRE_PAGE_COPY:
		return take_copy(s, d, err);
	default:
		return take_data(s, d, err);
	}
}

/* Nobody knows how far contents have got into the pages: the table tells what is in them now. */
static void take_what_came(struct store *s, const struct batch *b)
{
	for (uint32_t i = 0; i < b->head.n_descs; i++) {
		const struct wire_desc *d = &b->desc[i];

		if (d->kind == WIRE_PAGE_DATA || d->kind == WIRE_PAGE_DELTA)
			hashes_set(s->hashes, d->index,
				   hash_page(s->hashes, ram_page(s->ram, d->index)));
	}
}

int store_batch(struct store *s, struct conn *c, const struct wire_frame *f, struct errmsg *err)
{
	struct batch b;
	int ret = receive_descs(s, c, f, &b, err);

	if (ret == 0)
		ret = check_memory(s, err);
	if (ret)
		return ret;
	ret = receive_contents(s, c, &b, err);
	for (uint32_t i = 0; i < b.head.n_descs && ret == 0; i++)
		ret = take(s, &b.desc[i], err);
	if (ret)
		take_what_came(s, &b);
	return ret;
}

/* Reading a page that nothing was ever stored in would take memory for it. */
static const void *held(const struct store *s, uint64_t index)
{
	static const uint8_t zeros[PAGE_SIZE];

	return hash_equal(&s->hashes->table[index], &s->hashes->zero) ? zeros
								      : ram_page(s->ram, index);
}

int store_answer(struct store *s, struct conn *c, const struct wire_frame *f, struct errmsg *err)
{
	uint64_t index[WIRE_ASK_PAGES];
	struct delta_hashes *have;
	uint32_t n = f->length / sizeof(index[0]);
	int ret;

	if (n == 0 || f->length % sizeof(index[0]))
		return errmsg_set(err, -EPROTO, "the source sent an ASK frame of %u bytes",
				  f->length);
	ret = conn_recv(c, index, f->length, err);
	if (ret == 0)
		ret = conn_verify(c, f, index, f->length, err);
	if (ret)
		return ret;
	have = malloc(n * sizeof(*have));
	if (!have)
		return errmsg_set(err, -ENOMEM, "no memory for hashes of blocks");
	for (uint32_t i = 0; i < n && ret == 0; i++) {
		if (index[i] >= s->ram->npages)
			ret = errmsg_set(err, -EPROTO,
					 "the source asks for page %llu, beyond the guest's RAM",
					 (unsigned long long)index[i]);
		else
			delta_hash(held(s, index[i]), s->hashes->seed, &have[i]);
	}
	if (ret == 0)
		ret = conn_send(c, WIRE_HAVE, have, (uint32_t)(n * sizeof(*have)), NULL, err);
	free(have);
	return ret;
}
