/* SPDX-License-Identifier: MIT */
/*
 * The working set of the dirty payload: pages whose whole content follows from the seed, their
 * number and their generation, and the tables that say which generation each page is at.
 */
#ifndef GODWIT_BARE_DIRTY_H
#define GODWIT_BARE_DIRTY_H

#include "rt/rt.h"

#define PAGE_WORDS 512u
#define FAULTS 8u /* per CPU, waiting to be printed; a power of two */

/* In the order of kind_names. */
enum kind {
	KIND_NEW,
	KIND_SAME,
	KIND_FEW,
	KIND_ZERO,
	KIND_FLIP,
	KIND_IDLE,
};

/* In the order of content_names. */
enum content {
	CONTENT_RANDOM,
	CONTENT_TEXT,
	CONTENT_ZERO,
};

struct working_set {
	uint64_t pages;
	uint64_t hot; /* the first so many are rewritten */
	uint64_t seed;
	enum kind kind;
	bool check_all; /* every word before a rewrite, or a sample */
	enum content content;
	struct rt_range ranges[RT_MAX_RANGES];
	uint32_t nr_ranges;
	/*
	 * Generation of each page, twice: gen[n], and copy[n] = gen_copy(n, gen[n]). The two arrays
	 * share no page, so a migration that loses one page of either is found out.
	 */
	uint64_t *gen;
	uint64_t *copy;
};

enum fault_type {
	FAULT_PAGE,  /* a word of a page is wrong */
	FAULT_TABLE, /* gen[] and copy[] disagree */
	FAULT_COUNT, /* generations of a CPU's pages do not add up to its writes */
	FAULT_CLOCK, /* the clock went backwards */
};

struct fault {
	enum fault_type type;
	uint64_t page;	    /* CPU number for FAULT_COUNT and FAULT_CLOCK */
	uint64_t gen;	    /* wanted; FAULT_COUNT: writes; FAULT_CLOCK: cycles */
	uint64_t offset;    /* bytes into the page */
	uint64_t want, got; /* the word; gen[] and copy[]; sum in got */
};

/* Faults found by one CPU, until the boot processor prints them. One writer, one reader. */
struct fault_log {
	struct fault ring[FAULTS];
	uint32_t head, tail; /* atomic */
	uint64_t count;	     /* all, those that found no room included */
};

void fault_add(struct fault_log *log, const struct fault *fault);

/* Take RAM for the set and its tables. ws->pages, hot, seed and kind must be set. */
void ws_alloc(struct working_set *ws);

/* Write generation 0. */
void ws_fill(const struct working_set *ws, uint64_t page);

/* Check the page as ws->check_all says, then write its next generation. */
void ws_rewrite(const struct working_set *ws, uint64_t page, struct fault_log *log);

/* Check every word and the tables; the page's generation is returned. At most one fault a page. */
uint64_t ws_verify(const struct working_set *ws, uint64_t page, struct fault_log *log);

/* The generation near `gen` that has this word at this place: true and *found, or false. */
bool ws_find_generation(const struct working_set *ws, uint64_t page, uint64_t gen, uint64_t offset,
			uint64_t word, uint64_t *found);

#endif
