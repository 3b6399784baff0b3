/* SPDX-License-Identifier: MIT */
/*
 * The memory worker: a region of anonymous pages, each of which is verified as a whole before it
 * is rewritten.
 *
 * For each page a record says what it must hold; the record lies in memory of its own, so that a
 * page that was not brought up to date and its record disagree. Should both be old alike, the
 * digest over all records, which changes with every one of them, disagrees.
 *
 * Rewrites are of the kinds that a page-saving migration engine treats apart: new content
 * (random, compressible, zeros, or the same as many other pages), the same content again, a few
 * bytes, and there-and-back. The last is the one that catches an engine which hashes a page, then
 * sends it while it changes: a page flips to other content and, at once or a few rewrites later,
 * back to what it was.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "content.h"
#include "work.h"

#define PATCH_MAX 8
#define PENDING 8	/* flipped pages that wait to flip back */
#define SHARED_KINDS 16 /* distinct contents among the pages that are like others */

struct record {
	uint64_t stamp;
	uint64_t back_stamp; /* what it returns to, if flipped */
	uint8_t patches;
	uint8_t back_patches;
	uint8_t flipped;
	uint8_t unused[5];
};

struct region {
	uint64_t *words;
	struct record *records;
	size_t pages;
	uint64_t seed;
	uint64_t digest;
	uint64_t gen;
	uint64_t rng;
	size_t hot; /* the working set: a window that wanders */
	size_t pending[PENDING];
	unsigned int pending_next;
	unsigned int owner;
	uint64_t want[PAGE_WORDS]; /* scratch */
};

static uint64_t *page_words(struct region *r, size_t page)
{
	return r->words + page * PAGE_WORDS;
}

static uint64_t record_digest(const struct record *rec, size_t page)
{
	return mix(rec->stamp ^ mix(page)) +
	       mix(rec->back_stamp + page +
		   ((uint64_t)rec->patches << 56 | (uint64_t)rec->back_patches << 48 |
		    (uint64_t)rec->flipped << 40));
}

static void record_set(struct region *r, size_t page, struct record rec)
{
	r->digest += record_digest(&rec, page) - record_digest(&r->records[page], page);
	r->records[page] = rec;
}

static uint64_t new_stamp(struct region *r, size_t page)
{
	return stamp_make(r->owner, page, ++r->gen);
}

static bool page_verify(struct worker *w, struct region *r, size_t page)
{
	const struct record *rec = &r->records[page];
	char text[300];

	content_make(r->want, PAGE_WORDS, rec->stamp, rec->patches, r->seed);
	add(&w->slot->pages, 1);
	if (memcmp(r->want, page_words(r, page), PAGE_BYTES) == 0)
		return true;
	content_explain(page_words(r, page), r->want, PAGE_WORDS, r->seed, text, sizeof(text));
	worker_error(w, "page %zu of %zu at %p: %s", page, r->pages, (void *)page_words(r, page),
		     text);
	/* Take it right again: one damage is one error. */
	memcpy(page_words(r, page), r->want, PAGE_BYTES);
	return false;
}

static void page_write(struct region *r, size_t page, uint64_t stamp, unsigned int patches)
{
	content_make(r->want, PAGE_WORDS, stamp, patches, r->seed);
	memcpy(page_words(r, page), r->want, PAGE_BYTES);
	/*
	 * The compiler must not join two writes of one page: each is there to be seen by the
	 * migration.
	 */
	__asm__ volatile("" ::: "memory");
}

static void page_renew(struct region *r, size_t page, uint64_t stamp)
{
	page_write(r, page, stamp, 0);
	record_set(r, page, (struct record){.stamp = stamp});
}

static void page_flip(struct region *r, size_t page)
{
	struct record rec = r->records[page];

	rec.back_stamp = rec.stamp;
	rec.back_patches = rec.patches;
	rec.stamp = new_stamp(r, page);
	rec.patches = 0;
	rec.flipped = 1;
	page_write(r, page, rec.stamp, 0);
	record_set(r, page, rec);
}

static void page_unflip(struct region *r, size_t page)
{
	struct record rec = r->records[page];

	page_write(r, page, rec.back_stamp, rec.back_patches);
	record_set(r, page, (struct record){.stamp = rec.back_stamp, .patches = rec.back_patches});
}

static void page_rewrite(struct region *r, size_t page)
{
	struct record rec = r->records[page];

	if (rec.flipped) {
		page_unflip(r, page);
		return;
	}
	switch (rng_next(&r->rng) >> 60) {
	case 0:
	case 1:
	case 2:
	case 3:
	case 4:
		page_renew(r, page, new_stamp(r, page));
		break;
	case 5:
	case 6:
	case 7:
		page_renew(r, page, new_stamp(r, page) | STAMP_COMPRESS);
		break;
	case 8:
	case 9:
		page_write(r, page, rec.stamp, rec.patches);
		break;
	case 10:
	case 11:
		if (rec.stamp == 0 || rec.patches == PATCH_MAX) {
			page_renew(r, page, new_stamp(r, page));
			break;
		}
		content_patch(page_words(r, page), PAGE_WORDS, rec.stamp, rec.patches, r->seed);
		rec.patches++;
		record_set(r, page, rec);
		break;
	case 12:
		page_renew(r, page, 0);
		break;
	case 13:
		page_renew(r, page, STAMP_SHARED | (1 + rng_next(&r->rng) % SHARED_KINDS));
		break;
	case 14:
		page_flip(r, page);
		page_unflip(r, page);
		break;
	case 15:
		page_flip(r, page);
		r->pending[r->pending_next] = page;
		r->pending_next = (r->pending_next + 1) % PENDING;
		break;
	}
}

/*
 * One rewrite in eight goes to a page that may wait to flip back, which gives it some sixty
 * rewrites in between. Most others fall on an eighth of the region, so that some pages are always
 * hot.
 */
static size_t page_choose(struct region *r)
{
	uint64_t x = rng_next(&r->rng);
	size_t window = r->pages / 8 + 1;

	if ((x & 7) == 1)
		return r->pending[x >> 8 & (PENDING - 1)];
	if ((x & 0xfff) == 2)
		r->hot = (size_t)(x >> 16) % r->pages;
	if ((x & 3) == 0)
		return (size_t)(x >> 16) % r->pages;
	return (r->hot + (size_t)(x >> 16) % window) % r->pages;
}

static uint64_t region_verify(struct worker *w)
{
	struct region *r = w->data;
	uint64_t digest = 0;

	for (size_t page = 0; page < r->pages; page++) {
		page_verify(w, r, page);
		digest += record_digest(&r->records[page], page);
		add(&w->slot->beats, 1);
	}
	if (digest != r->digest) {
		worker_error(w, "records of %zu pages have digest %016llx, must have %016llx",
			     r->pages, (unsigned long long)digest, (unsigned long long)r->digest);
		r->digest = digest;
	}
	return r->pages;
}

static void region_fault(struct worker *w, struct region *r)
{
	size_t page = (size_t)(rng_next(&r->rng) % r->pages);
	uint64_t *words = page_words(r, page);
	static uint64_t old[PAGE_WORDS];
	struct record rec;

	if (worker_fault(w, FAULT_BYTE)) {
		((unsigned char *)words)[rng_next(&r->rng) % PAGE_BYTES] ^= 0x10;
	} else if (worker_fault(w, FAULT_ZERO)) {
		page_renew(r, page, new_stamp(r, page));
		memset(words, 0, PAGE_BYTES);
	} else if (worker_fault(w, FAULT_STALE)) {
		memcpy(old, words, PAGE_BYTES);
		page_renew(r, page, new_stamp(r, page));
		memcpy(words, old, PAGE_BYTES);
	} else if (worker_fault(w, FAULT_BOOK)) {
		memcpy(old, words, PAGE_BYTES);
		rec = r->records[page];
		page_renew(r, page, new_stamp(r, page));
		memcpy(words, old, PAGE_BYTES);
		r->records[page] = rec;
	} else if (worker_fault(w, FAULT_DIE)) {
		abort();
	}
}

/*
 * Every page once, in order. Until a page's turn it is zeros, and its record says so:
 * verification always holds.
 */
static void region_fill(struct worker *w, struct region *r)
{
	for (size_t page = 0; page < r->pages; page++) {
		worker_turn(w);
		page_verify(w, r, page);
		switch (page % 8) {
		case 0:
			break; /* some stay untouched zeros */
		case 1:
			page_renew(r, page, STAMP_SHARED | (1 + page / 8 % SHARED_KINDS));
			break;
		case 2:
		case 3:
		case 4:
			page_renew(r, page, new_stamp(r, page) | STAMP_COMPRESS);
			break;
		default:
			page_renew(r, page, new_stamp(r, page));
		}
	}
	atomic_store(&w->slot->full, 1);
}

void work_mem(struct worker *w)
{
	struct region *r = worker_map(w, sizeof(*r));
	uint64_t due = 0, burst = 0;
	size_t page;

	r->pages = (size_t)(w->opt->mem / w->opt->procs / PAGE_BYTES);
	if (r->pages == 0)
		r->pages = 1;
	r->words = worker_map(w, r->pages * PAGE_BYTES);
	r->records = worker_map(w, r->pages * sizeof(*r->records));
	/*
	 * Half the workers keep small pages, so that both sizes of mapping are there where the
	 * kernel has both.
	 */
	if (w->number % 2)
		madvise(r->words, r->pages * PAGE_BYTES, MADV_NOHUGEPAGE);
	r->seed = w->sh->seed;
	r->owner = w->number;
	r->rng = mix(w->sh->seed + w->number) | 1;
	for (page = 0; page < r->pages; page++)
		r->digest += record_digest(&r->records[page], page);
	w->data = r;
	w->verify = region_verify;

	region_fill(w, r);
	for (;;) {
		uint64_t rate = get(&w->sh->rate);

		worker_turn(w);
		region_fault(w, r);
		if (w->opt->mode == MODE_IDLE) {
			worker_rest(w, 500000);
			continue;
		}
		if (rate && burst == 0) {
			uint64_t now = now_ns();

			/*
			 * Bursts of a fiftieth of a second; time lost (the machine was paused) is
			 * not made up for.
			 */
			burst = rate / 50 + 1;
			due += burst * 1000000000u / rate;
			if (due > now && due - now < 10000000000u) {
				worker_rest(w, (due - now) / 1000);
				continue;
			}
			due = now;
		}
		if (burst)
			burst--;
		page = page_choose(r);
		page_verify(w, r, page);
		page_rewrite(r, page);
	}
}
