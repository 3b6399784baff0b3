/* SPDX-License-Identifier: MIT */
#include "held.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct table_frame {
	struct wire_table head;
	struct page_hash hash[HASHES_CHUNK];
};

static uint32_t chunk_pages(const struct hashes *h, uint64_t chunk)
{
	return (uint32_t)MIN(h->npages - chunk * HASHES_CHUNK, (uint64_t)HASHES_CHUNK);
}

/* ---- destination ---- */

int held_announce(struct hashes *h, struct conn *c, struct errmsg *err)
{
	uint64_t len = hashes_n_chunks(h) * sizeof(*h->digest);

	if (len > wire_max_length(WIRE_HELD))
		return errmsg_set(err, -EMSGSIZE, "the guest has more RAM than can be offered");
	hashes_refresh(h);
	return conn_send(c, WIRE_HELD, h->digest, (uint32_t)len, NULL, err);
}

/* A source that sends pages before it has what it asked for is told nonsense, and no more. */
static int send_table(const struct hashes *h, struct conn *c, uint32_t chunk, struct errmsg *err)
{
	struct table_frame t = {.head = {.chunk = chunk}};
	uint32_t n = chunk_pages(h, chunk);

	for (uint32_t i = 0; i < n; i++) {
		t.hash[i] = hashes_peek(h, (uint64_t)chunk * HASHES_CHUNK + i);
		if (!hash_equal(&t.hash[i], &h->zero))
			t.head.n = n;
	}
	return conn_send(c, WIRE_TABLE, &t,
			 (uint32_t)(sizeof(t.head) + t.head.n * sizeof(t.hash[0])), NULL, err);
}

int held_answer(const struct hashes *h, struct conn *c, const struct wire_frame *f,
		const uint8_t *payload, struct errmsg *err)
{
	int ret = 0;

	if (f->length == 0 || f->length % sizeof(uint32_t))
		return errmsg_set(err, -EPROTO, "the source sent a WANT frame of %u bytes",
				  f->length);
	for (uint32_t at = 0; at < f->length && ret == 0; at += (uint32_t)sizeof(uint32_t)) {
		uint32_t chunk;

		memcpy(&chunk, payload + at, sizeof(chunk));
		if (chunk >= hashes_n_chunks(h))
			return errmsg_set(err, -EPROTO,
					  "the source wants the hashes of chunk %u, beyond the "
					  "guest's RAM",
					  chunk);
		ret = send_table(h, c, chunk, err);
	}
	return ret;
}

/* ---- source ---- */

int held_receive(const struct hashes *h, struct conn *c, struct page_hash **digests,
		 struct errmsg *err)
{
	size_t size = hashes_n_chunks(h) * sizeof(**digests);
	uint32_t len;
	int ret;

	*digests = NULL;
	if (size > wire_max_length(WIRE_HELD))
		return errmsg_set(err, -EPROTO, "the destination offers more than it can");
	*digests = malloc(size + 1);
	if (!*digests)
		return errmsg_set(err, -ENOMEM, "no memory for what the destination holds");
	ret = conn_expect(c, WIRE_HELD, *digests, (uint32_t)size, &len, err);
	if (ret == 0 && len != size)
		ret = errmsg_set(err, -EPROTO, "the destination offers %u bytes of digests", len);
	if (ret) {
		free(*digests);
		*digests = NULL;
	}
	return ret;
}

static int adopt_chunk(struct hashes *h, struct conn *c, uint32_t chunk, uint64_t *bitmap,
		       struct errmsg *err)
{
	uint32_t n = chunk_pages(h, chunk), len;
	struct table_frame t;
	int ret = conn_expect(c, WIRE_TABLE, &t, sizeof(t), &len, err);

	if (ret)
		return ret;
	if (len < sizeof(t.head) || t.head.chunk != chunk || (t.head.n && t.head.n != n) ||
	    len != sizeof(t.head) + t.head.n * sizeof(t.hash[0]))
		return errmsg_set(err, -EPROTO,
				  "the destination sent a malformed TABLE frame of chunk %u",
				  chunk);
	for (uint32_t i = 0; i < n; i++) {
		uint64_t index = (uint64_t)chunk * HASHES_CHUNK + i;
		struct page_hash theirs = t.head.n ? t.hash[i] : h->zero;

		if (hash_equal(&h->table[index], &theirs))
			continue;
		hashes_set(h, index, theirs);
		bitmap[index / 64] |= 1ULL << (index % 64);
	}
	return 0;
}

int held_adopt(struct hashes *h, struct conn *c, const struct page_hash *digests, uint64_t *bitmap,
	       struct errmsg *err)
{
	uint64_t chunks = hashes_n_chunks(h);
	uint32_t want[WIRE_WANT_CHUNKS];
	int ret = 0;

	hashes_refresh(h);
	for (uint64_t at = 0; at < chunks && ret == 0;) {
		uint32_t n = 0;

		for (; at < chunks && n < WIRE_WANT_CHUNKS; at++) {
			if (!hash_equal(&h->digest[at], &digests[at]))
				want[n++] = (uint32_t)at;
		}
		if (n)
			ret = conn_send(c, WIRE_WANT, want, n * (uint32_t)sizeof(want[0]), NULL,
					err);
		for (uint32_t i = 0; i < n && ret == 0; i++)
			ret = adopt_chunk(h, c, want[i], bitmap, err);
	}
	return ret;
}
