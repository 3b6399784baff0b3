/* SPDX-License-Identifier: MIT */
#include "wire.h"

#include <errno.h>
#include <stdbool.h>
#include <xxhash.h>

#include "delta.h"

static const struct {
	const char *name;
	uint32_t max;
} types[WIRE_N_TYPES] = {
	[WIRE_HELLO] = {"HELLO", 64 * 1024},
	[WIRE_HELLO_OK] = {"HELLO_OK", sizeof(struct wire_hello_ok)},
	[WIRE_REFUSE] = {"REFUSE", WIRE_TEXT_MAX},
	[WIRE_PING] = {"PING", 8},
	[WIRE_PONG] = {"PONG", 16},
	[WIRE_PAGES] = {"PAGES", sizeof(struct wire_batch) +
					 WIRE_BATCH_DESCS * sizeof(struct wire_desc) +
					 WIRE_BATCH_PAGES *(uint32_t)PAGE_SIZE},
	[WIRE_ROUND_END] = {"ROUND_END", 4},
	[WIRE_ROUND_ACK] = {"ROUND_ACK", 4},
	[WIRE_STATE] = {"STATE", 64U * 1024 * 1024},
	[WIRE_PROOF] = {"PROOF", 512U * 1024 * 1024},
	[WIRE_READY] = {"READY", 16},
	[WIRE_COMMIT] = {"COMMIT", 16},
	[WIRE_RUNNING] = {"RUNNING", 0},
	[WIRE_FAIL] = {"FAIL", WIRE_TEXT_MAX},
	[WIRE_CANCEL] = {"CANCEL", 0},
	[WIRE_IDLE] = {"IDLE", 0},
	[WIRE_JOIN] = {"JOIN", 0},
	[WIRE_ASK] = {"ASK", WIRE_ASK_PAGES * sizeof(uint64_t)},
	[WIRE_HAVE] = {"HAVE", WIRE_ASK_PAGES * sizeof(struct delta_hashes)},
	[WIRE_HELD] = {"HELD", 512U * 1024 * 1024},
	[WIRE_WANT] = {"WANT", WIRE_WANT_CHUNKS * sizeof(uint32_t)},
	[WIRE_TABLE] = {"TABLE",
			sizeof(struct wire_table) + HASHES_CHUNK * sizeof(struct page_hash)},
};

const char *wire_type_name(unsigned type)
{
	return type < WIRE_N_TYPES && types[type].name ? types[type].name : "?";
}

uint32_t wire_max_length(unsigned type)
{
	return type < WIRE_N_TYPES ? types[type].max : 0;
}

/* How many pages of the guest does it tell of? 0: it is malformed. */
static uint32_t pages_of(const struct wire_desc *d)
{
	switch (d->kind) {
	case WIRE_PAGE_DATA:
		return d->count == 1;
	case WIRE_PAGE_ZERO:
	case WIRE_PAGE_HOLE:
		return d->count;
	case WIRE_PAGE_COPY:
		return 1;
	case WIRE_PAGE_DELTA:
		return delta_length_ok(d->count);
	default:
		return 0;
	}
}

int wire_check_batch(const struct wire_batch *b, const struct wire_desc *descs, uint32_t length,
		     uint64_t npages, const char **why)
{
	uint32_t n_data = 0, delta = 0;
	uint64_t pages = 0;

	*why = "counts beyond the limits";
	if (b->n_descs == 0 || b->n_descs > WIRE_BATCH_DESCS || b->n_data > WIRE_BATCH_PAGES ||
	    b->delta > WIRE_BATCH_PAGES * PAGE_SIZE - b->n_data * PAGE_SIZE)
		return -EPROTO;
	*why = "packed contents that are no smaller";
	if (b->packed && b->packed >= wire_batch_unpacked(b))
		return -EPROTO;
	*why = "length and counts disagree";
	if (length != sizeof(*b) + b->n_descs * sizeof(*descs) + wire_batch_contents(b))
		return -EPROTO;
	for (uint32_t i = 0; i < b->n_descs; i++) {
		const struct wire_desc *d = &descs[i];
		uint32_t n = pages_of(d);

		*why = "unknown kind of page, or a count that it cannot have";
		if (n == 0)
			return -EPROTO;
		*why = "page beyond the guest's RAM";
		if (d->index >= npages || n > npages - d->index ||
		    (d->kind == WIRE_PAGE_COPY && d->count >= npages))
			return -EPROTO;
		/* Or a small frame could keep the receiver busy with zeroing the same pages for
		 * long. */
		*why = "more pages than the guest has";
		pages += n;
		if (pages > npages)
			return -EPROTO;
		n_data += d->kind == WIRE_PAGE_DATA;
		delta += d->kind == WIRE_PAGE_DELTA ? d->count : 0;
	}
	*why = "contents and descriptors disagree";
	return n_data == b->n_data && delta == b->delta ? 0 : -EPROTO;
}

uint64_t wire_check_sum(const struct wire_frame *f, const void *payload, size_t len)
{
	return XXH3_64bits_withSeed(payload, len,
				    XXH3_64bits(f, offsetof(struct wire_frame, check)));
}
