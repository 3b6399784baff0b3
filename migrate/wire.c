/* SPDX-License-Identifier: MIT */
#include "wire.h"

#include <errno.h>
#include <stdbool.h>
#include <xxhash.h>

static const struct {
	const char *name;
	uint32_t max;
} types[WIRE_N_TYPES] = {
	[WIRE_HELLO] = {"HELLO", 64 * 1024},
	[WIRE_HELLO_OK] = {"HELLO_OK", 0},
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
};

const char *wire_type_name(unsigned type)
{
	return type < WIRE_N_TYPES && types[type].name ? types[type].name : "?";
}

uint32_t wire_max_length(unsigned type)
{
	return type < WIRE_N_TYPES ? types[type].max : 0;
}

int wire_check_batch(const struct wire_batch *b, const struct wire_desc *descs, uint32_t length,
		     uint64_t npages, const char **why)
{
	uint32_t n_data = 0;
	uint64_t pages = 0;

	*why = "counts beyond the limits";
	if (b->n_descs == 0 || b->n_descs > WIRE_BATCH_DESCS || b->n_data > WIRE_BATCH_PAGES)
		return -EPROTO;
	*why = "packed contents that are no smaller";
	if (b->zero || (b->packed && b->packed >= b->n_data * PAGE_SIZE))
		return -EPROTO;
	*why = "length and counts disagree";
	if (length != sizeof(*b) + b->n_descs * sizeof(*descs) + wire_batch_contents(b))
		return -EPROTO;
	for (uint32_t i = 0; i < b->n_descs; i++) {
		const struct wire_desc *d = &descs[i];

		*why = "page beyond the guest's RAM";
		if (d->count == 0 || d->index >= npages || d->count > npages - d->index)
			return -EPROTO;
		/* Or a small frame could keep the receiver busy with zeroing the same pages for
		 * long. */
		*why = "more pages than the guest has";
		pages += d->count;
		if (pages > npages)
			return -EPROTO;
		*why = "unknown kind of page";
		if (d->kind == WIRE_PAGE_DATA) {
			if (d->count != 1)
				return -EPROTO;
			n_data++;
		} else if (d->kind != WIRE_PAGE_ZERO && d->kind != WIRE_PAGE_HOLE) {
			return -EPROTO;
		}
	}
	*why = "number of contents and descriptors disagree";
	return n_data == b->n_data ? 0 : -EPROTO;
}

uint64_t wire_check_sum(const struct wire_frame *f, const void *payload, size_t len)
{
	return XXH3_64bits_withSeed(payload, len,
				    XXH3_64bits(f, offsetof(struct wire_frame, check)));
}
