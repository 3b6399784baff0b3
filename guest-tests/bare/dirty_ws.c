/* SPDX-License-Identifier: MIT */
/*
 * Content of the working set.
 *
 * Any word of any page at any generation can be computed by itself: a key is mixed from seed, page
 * and variant, and word i is a hash of key and i. So a page is checked without a second copy of it,
 * wholly or in a few places. The generation picks the variant according to the kind of writing:
 *
 *     new     variant g
 *     same    variant 0
 *     zero    variant 0 when g is even, all zeros when it is odd
 *     flip    variant 0 when g is even, 1 when it is odd
 *     few     variant 0, but word slot(g') has its value of variant g' for g' = 1 .. g
 *
 * Where content is to compress (text), three words of four are one of a few, which the hash picks.
 *
 * slot() visits all words in turn, so the last generation that wrote a word is known by arithmetic.
 */

#include "dirty.h"

#define SLOT_STEP 167u	  /* odd: a permutation of 0..511 */
#define SLOT_INVERSE 279u /* 167 * 279 = 1 (mod 512) */
_Static_assert(SLOT_STEP *SLOT_INVERSE % PAGE_WORDS == 1, "inverse of SLOT_STEP");

#define SAMPLES 8u
#define TEXT_WORDS 64u
#define SEARCH 64u /* generations each way when an error is explained */

static inline uint64_t mix(uint64_t x)
{
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
	x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
	return x ^ (x >> 31);
}

static inline uint64_t key_of(const struct working_set *ws, uint64_t page, uint64_t variant)
{
	return mix(mix(ws->seed * 0x9e3779b97f4a7c15 + page) + variant * 0xd1b54a32d192ed03);
}

/* One multiplication: quick, and still beyond any compressor. */
static inline uint64_t hash_of(uint64_t x)
{
	x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93;
	return x ^ (x >> 29);
}

static inline uint64_t word_of(enum content content, uint64_t key, uint64_t i)
{
	uint64_t x = hash_of(key + i * 0x9e3779b97f4a7c15);

	if (content == CONTENT_RANDOM)
		return x;
	if (content == CONTENT_ZERO)
		return 0;
	return i % 4 ? hash_of(x % TEXT_WORDS + 1) : x;
}

static inline uint64_t slot(uint64_t gen)
{
	return gen * SLOT_STEP % PAGE_WORDS;
}

/* What copy[] holds for a generation. It is its own inverse. */
static inline uint64_t gen_copy(uint64_t page, uint64_t gen)
{
	return ~gen ^ (page * 0xff51afd7ed558ccd);
}

static inline uint64_t *page_at(const struct working_set *ws, uint64_t page)
{
	uint64_t offset = page * RT_PAGE_SIZE;
	uint32_t r = 0;

	while (r + 1 < ws->nr_ranges && offset >= ws->ranges[r].size)
		offset -= ws->ranges[r++].size;
	return (uint64_t *)(ws->ranges[r].base + offset);
}

static uint64_t variant_of(const struct working_set *ws, uint64_t gen)
{
	switch (ws->kind) {
	case KIND_NEW:
		return gen;
	case KIND_FLIP:
		return gen & 1;
	case KIND_SAME:
	case KIND_FEW:
	case KIND_ZERO:
	case KIND_IDLE:
		break;
	}
	return 0;
}

static bool is_zero(const struct working_set *ws, uint64_t gen)
{
	return ws->kind == KIND_ZERO && (gen & 1);
}

/* Word i of a page of the kind `few`; base is the key of variant 0. */
static inline uint64_t few_word(const struct working_set *ws, uint64_t page, uint64_t gen,
				uint64_t base, uint64_t i)
{
	uint64_t age = (gen - i * SLOT_INVERSE) % PAGE_WORDS;

	return word_of(ws->content, age < gen ? key_of(ws, page, gen - age) : base, i);
}

static uint64_t expected_word(const struct working_set *ws, uint64_t page, uint64_t gen, uint64_t i)
{
	if (is_zero(ws, gen))
		return 0;
	if (ws->kind == KIND_FEW)
		return few_word(ws, page, gen, key_of(ws, page, 0), i);
	return word_of(ws->content, key_of(ws, page, variant_of(ws, gen)), i);
}

static void write_page(const struct working_set *ws, uint64_t *p, uint64_t key)
{
	enum content content = ws->content;

	for (uint64_t i = 0; i < PAGE_WORDS; i++)
		p[i] = word_of(content, key, i);
}

void fault_add(struct fault_log *log, const struct fault *fault)
{
	uint32_t head = log->head;

	__atomic_store_n(&log->count, log->count + 1, __ATOMIC_RELAXED);
	if (head - __atomic_load_n(&log->tail, __ATOMIC_ACQUIRE) == FAULTS)
		return;
	log->ring[head % FAULTS] = *fault;
	__atomic_store_n(&log->head, head + 1, __ATOMIC_RELEASE);
}

static void page_fault(struct fault_log *log, uint64_t page, uint64_t gen, uint64_t i,
		       uint64_t want, uint64_t got)
{
	const struct fault fault = {
		.type = FAULT_PAGE,
		.page = page,
		.gen = gen,
		.offset = i * sizeof(uint64_t),
		.want = want,
		.got = got,
	};

	fault_add(log, &fault);
}

/* Generation of a page, and whether the tables agree on it. */
static bool read_gen(const struct working_set *ws, uint64_t page, uint64_t *gen,
		     struct fault_log *log)
{
	*gen = ws->gen[page];
	if (ws->copy[page] == gen_copy(page, *gen))
		return true;

	const struct fault fault = {
		.type = FAULT_TABLE,
		.page = page,
		.gen = *gen,
		.want = *gen,
		.got = gen_copy(page, ws->copy[page]),
	};

	fault_add(log, &fault);
	return false;
}

static bool check_all(const struct working_set *ws, uint64_t page, uint64_t gen,
		      struct fault_log *log)
{
	const uint64_t *p = page_at(ws, page);
	uint64_t key = key_of(ws, page, variant_of(ws, gen));
	bool zero = is_zero(ws, gen), few = ws->kind == KIND_FEW;
	enum content content = ws->content;
	uint64_t wrong = 0, i;

	/* Without a branch for each word; which one it was is found out afterwards. */
	if (zero)
		for (i = 0; i < PAGE_WORDS; i++)
			wrong |= p[i];
	else if (few)
		for (i = 0; i < PAGE_WORDS; i++)
			wrong |= p[i] ^ few_word(ws, page, gen, key, i);
	else
		for (i = 0; i < PAGE_WORDS; i++)
			wrong |= p[i] ^ word_of(content, key, i);
	if (!wrong)
		return true;
	for (i = 0; i < PAGE_WORDS; i++) {
		uint64_t want = expected_word(ws, page, gen, i), got = p[i];

		if (want != got) {
			page_fault(log, page, gen, i, want, got);
			return false;
		}
	}
	/* It was wrong, and now it is not: memory changes while it is looked at. */
	page_fault(log, page, gen, 0, wrong, 0);
	return false;
}

/*
 * A sample. Between generations next to each other every word changes, save with `few`: there it is
 * one word, so the last two that changed are looked at, and the one that is to change next.
 */
static void check_sample(const struct working_set *ws, uint64_t page, uint64_t gen,
			 struct fault_log *log)
{
	const uint64_t *p = page_at(ws, page);
	uint64_t key = key_of(ws, page, variant_of(ws, gen));
	bool zero = is_zero(ws, gen), few = ws->kind == KIND_FEW;
	uint64_t turn = (page * 29 + gen * 13) % (PAGE_WORDS / SAMPLES);

	for (uint64_t s = 0; s < SAMPLES; s++) {
		uint64_t i = s * (PAGE_WORDS / SAMPLES) + turn, want;

		if (few && s < 3)
			i = slot(gen + 1 - s);
		want = zero  ? 0
		       : few ? few_word(ws, page, gen, key, i)
			     : word_of(ws->content, key, i);
		if (p[i] != want) {
			page_fault(log, page, gen, i, want, p[i]);
			return;
		}
	}
}

void ws_alloc(struct working_set *ws)
{
	ws->gen = rt_alloc(ws->pages * sizeof(*ws->gen));
	ws->copy = rt_alloc(ws->pages * sizeof(*ws->copy));
	ws->nr_ranges = RT_MAX_RANGES;
	rt_alloc_ranges(ws->pages, ws->ranges, &ws->nr_ranges);
}

void ws_fill(const struct working_set *ws, uint64_t page)
{
	write_page(ws, page_at(ws, page), key_of(ws, page, 0));
	ws->gen[page] = 0;
	ws->copy[page] = gen_copy(page, 0);
}

void ws_rewrite(const struct working_set *ws, uint64_t page, struct fault_log *log)
{
	uint64_t *p = page_at(ws, page);
	uint64_t gen;

	read_gen(ws, page, &gen, log);
	if (ws->check_all)
		check_all(ws, page, gen, log);
	else
		check_sample(ws, page, gen, log);
	gen++;
	ws->gen[page] = gen;
	ws->copy[page] = gen_copy(page, gen);
	if (is_zero(ws, gen))
		memset(p, 0, RT_PAGE_SIZE);
	else if (ws->kind == KIND_FEW)
		p[slot(gen)] = word_of(ws->content, key_of(ws, page, gen), slot(gen));
	else
		write_page(ws, p, key_of(ws, page, variant_of(ws, gen)));
}

uint64_t ws_verify(const struct working_set *ws, uint64_t page, struct fault_log *log)
{
	uint64_t gen;

	if (read_gen(ws, page, &gen, log))
		check_all(ws, page, gen, log);
	return gen;
}

bool ws_find_generation(const struct working_set *ws, uint64_t page, uint64_t gen, uint64_t offset,
			uint64_t word, uint64_t *found)
{
	uint64_t i = offset / sizeof(uint64_t);

	for (uint64_t d = 1; d <= SEARCH; d++) {
		if (d <= gen && expected_word(ws, page, gen - d, i) == word) {
			*found = gen - d;
			return true;
		}
		if (expected_word(ws, page, gen + d, i) == word) {
			*found = gen + d;
			return true;
		}
	}
	return false;
}
