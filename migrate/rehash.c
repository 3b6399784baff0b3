/* SPDX-License-Identifier: MIT */
#include "rehash.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

#define RANGE 4096U /* pages that a thread takes at a time */
#define THREADS_MAX 8U
#define SAMPLE 1024U /* pages */

struct rehash {
	const struct hashes *h;
	const struct ram *ram;
	_Atomic uint64_t next;	/* the page where the next range begins */
	_Atomic uint64_t first; /* of those that differ, as far as is known; npages: none */
	_Atomic bool stop;
	_Atomic uint64_t cpu_ns;
};

static void differs(struct rehash *r, uint64_t page)
{
	uint64_t first = r->first;

	while (page < first && !atomic_compare_exchange_weak(&r->first, &first, page))
		;
}

/* A hole is as good as zeros; reading it would give it memory. */
static bool as_told(const struct rehash *r, uint64_t page, bool hole)
{
	struct page_hash now = r->h->zero;

	if (hole && hash_equal(&now, &r->h->table[page]))
		return true;
	now = hash_page(r->h, ram_page(r->ram, page));
	return hash_equal(&now, &r->h->table[page]);
}

static void compare_range(struct rehash *r, uint64_t page, uint64_t end)
{
	uint64_t holes[RAM_HOLES_MAX / 64];

	/* What lies behind a page that differs is of no interest any more. */
	for (uint64_t base = page; page < end && page < r->first && !r->stop; base = page) {
		uint64_t last = MIN(base + RAM_HOLES_MAX, end);

		ram_find_holes(r->ram, base, base, last, holes);
		for (; page < last; page++) {
			uint64_t i = page - base;

			if (!as_told(r, page, holes[i / 64] >> i % 64 & 1)) {
				differs(r, page);
				return;
			}
		}
	}
}

/* true when there was another range. */
static bool next_range(struct rehash *r)
{
	uint64_t page = atomic_fetch_add(&r->next, RANGE);

	if (r->stop || page >= r->first)
		return false;
	compare_range(r, page, MIN(page + RANGE, r->h->npages));
	return true;
}

static void *run_rehash(void *arg)
{
	struct rehash *r = arg;

	while (next_range(r))
		;
	r->cpu_ns += thread_cpu_ns();
	return NULL;
}

static unsigned n_threads(const struct hashes *h)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	uint64_t n = MIN(h->npages / RANGE, cpus > 0 ? (uint64_t)cpus : 1);

	return (unsigned)MAX(MIN(n, THREADS_MAX), 1U);
}

int rehash_compare(const struct hashes *h, const struct ram *ram, uint64_t *index,
		   int (*tick)(void *arg), void *arg, uint64_t *cpu_ns)
{
	struct rehash r = {.h = h, .ram = ram, .first = h->npages};
	unsigned n = 0, others = n_threads(h) - 1;
	pthread_t thread[THREADS_MAX];
	int ret = 0;

	/* Without them it takes longer, and that is all. */
	while (n < others && pthread_create(&thread[n], NULL, run_rehash, &r) == 0) {
		pthread_setname_np(thread[n], "migrate-hash");
		n++;
	}
	do {
		ret = tick ? tick(arg) : 0;
	} while (ret == 0 && next_range(&r));
	r.stop = ret != 0;
	while (n > 0)
		pthread_join(thread[--n], NULL);
	*cpu_ns += r.cpu_ns;
	if (ret || r.first == h->npages)
		return ret;
	*index = r.first;
	return -EBADMSG;
}

double rehash_page_ns(const struct hashes *h, const struct ram *ram)
{
	const uint8_t *page[SAMPLE];
	uint64_t first = 0, run, start;
	volatile uint64_t sink; /* what is read only so that it has been read */
	unsigned n = 0;

	/* Touched once: at the pause they will have been mapped long since. */
	for (; n < SAMPLE && ram_next_populated(ram, &first, &run); first += run) {
		for (uint64_t i = first; i < first + run && n < SAMPLE; i++) {
			page[n] = ram_page(ram, i);
			sink = *page[n++];
		}
	}
	start = now_ns();
	for (unsigned i = 0; i < n; i++)
		sink = hash_page(h, page[i]).low;
	(void)sink;
	return n ? (double)(now_ns() - start) / n / n_threads(h) : 0;
}
