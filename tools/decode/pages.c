/* SPDX-License-Identifier: MIT */
#include "decode.h"

#include <inttypes.h>
#include <string.h>

static void count_pages(struct pages *p, const struct wire_batch *b, const struct wire_desc *desc)
{
	for (uint32_t i = 0; i < b->n_descs; i++) {
		uint64_t *const counts[] = {
			[WIRE_PAGE_DATA] = b->packed ? &p->packed : &p->data,
			[WIRE_PAGE_ZERO] = &p->zero,
			[WIRE_PAGE_HOLE] = &p->hole,
			[WIRE_PAGE_COPY] = &p->copy,
			[WIRE_PAGE_DELTA] = &p->delta,
		};
		bool run = desc[i].kind == WIRE_PAGE_ZERO || desc[i].kind == WIRE_PAGE_HOLE;

		*counts[desc[i].kind] += run ? desc[i].count : 1;
	}
	p->batches++;
	p->bytes += wire_batch_contents(b);
}

void add_pages(struct decoder *d, const struct pages *p)
{
	const struct {
		const char *name;
		uint64_t n;
	} parts[] = {{"plain", p->data}, {"packed", p->packed}, {"delta", p->delta},
		     {"copy", p->copy},	 {"zero", p->zero},	{"hole", p->hole}};

	for (size_t i = 0; i < ARRAY_SIZE(parts); i++) {
		if (parts[i].n)
			add_number(d, parts[i].name, parts[i].n);
	}
	add_number(d, "bytes", p->bytes);
}

/* Whole pages can be checked with the seed of HELLO; deltas only by who has what was before. */
static void check_contents(struct decoder *d, const struct wire_batch *b,
			   const struct wire_desc *desc, const uint8_t *contents)
{
	for (uint32_t i = 0; i < b->n_descs; i++) {
		struct page_hash hash;

		if (desc[i].kind == WIRE_PAGE_DATA && d->hashes.table) {
			hash = hash_page(&d->hashes, contents);
			if (!hash_equal(&hash, &desc[i].hash))
				problem(d, "page %" PRIu64 " is damaged", desc[i].index);
		}
		contents += wire_desc_content(&desc[i]);
	}
}

void on_pages(struct decoder *d, const struct wire_frame *f, const uint8_t *payload)
{
	struct wire_desc desc[WIRE_BATCH_DESCS];
	struct pages here = {0};
	const uint8_t *contents;
	struct wire_batch b;
	size_t descs;
	const char *why;

	if (f->length < sizeof(b)) {
		problem(d, "PAGES of %u bytes", f->length);
		return;
	}
	memcpy(&b, payload, sizeof(b));
	descs = b.n_descs * sizeof(desc[0]);
	if (b.n_descs > WIRE_BATCH_DESCS || f->length < sizeof(b) + descs) {
		problem(d, "PAGES of %u descriptors in %u bytes", b.n_descs, f->length);
		return;
	}
	if (wire_check_sum(f, payload, sizeof(b) + descs) != f->check) {
		problem(d, "PAGES is damaged");
		return;
	}
	memcpy(desc, payload + sizeof(b), descs);
	/* Of another connection than the first, the guest's size is not known. */
	if (wire_check_batch(&b, desc, f->length, d->npages ? d->npages : UINT64_MAX, &why)) {
		problem(d, "malformed PAGES: %s", why);
		return;
	}
	count_pages(&here, &b, desc);
	count_pages(&d->round, &b, desc);
	count_pages(&d->all, &b, desc);
	add_number(d, "first_page", desc[0].index);
	add_pages(d, &here);
	contents = payload + sizeof(b) + descs;
	if (b.packed) {
		if (unpack_prepare(&d->unpack)) {
			problem(d, "no memory for compressed pages");
			return;
		}
		memcpy(d->unpack.packed, contents, b.packed);
		if (unpack(&d->unpack, b.packed, wire_batch_unpacked(&b))) {
			problem(d, "compressed pages are damaged");
			return;
		}
		contents = d->unpack.contents;
	}
	check_contents(d, &b, desc, contents);
}
