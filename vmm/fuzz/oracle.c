/* SPDX-License-Identifier: MIT */
#include "oracle.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "fuzz.h"

#define NEXT 1U
#define WRITE 2U
#define INDIRECT 4U

/* A chain that a device has: its writable part as offsets into guest memory. */
struct held {
	struct held *next; /* the one that was taken before */
	unsigned queue;
	uint16_t head;
	bool back; /* given back, if it was not another one of that head */
	uint64_t in_len;
	uint32_t n;
	struct part {
		uint64_t at, len;
	} part[];
};

static struct {
	struct ram *ram;
	uint8_t *copy;
	uint64_t copy_size;
	struct held *held;
	struct {
		uint16_t head;
		uint32_t written;
	} put[VIRTQ_MAX_SIZE]; /* not published yet */
	unsigned n_put;
	bool lies;
} oracle;

bool (*oracle_may_zero)(uint64_t index, uint64_t n);
void (*oracle_taken)(unsigned queue, const struct virtq_chain *c);

int __real_virtq_pop(struct virtq *q, struct ram *ram, struct virtq_chain *c, const char **why);
int __wrap_virtq_pop(struct virtq *q, struct ram *ram, struct virtq_chain *c, const char **why);
void __real_virtq_unpop(struct virtq *q);
void __wrap_virtq_unpop(struct virtq *q);
void __real_virtq_push(struct virtq *q, struct ram *ram, uint16_t head, uint32_t written);
void __wrap_virtq_push(struct virtq *q, struct ram *ram, uint16_t head, uint32_t written);
void __real_virtq_put(struct virtq *q, struct ram *ram, uint16_t offset, uint16_t head,
		      uint32_t written);
void __wrap_virtq_put(struct virtq *q, struct ram *ram, uint16_t offset, uint16_t head,
		      uint32_t written);
void __real_virtq_publish(struct virtq *q, struct ram *ram, uint16_t n);
void __wrap_virtq_publish(struct virtq *q, struct ram *ram, uint16_t n);
void __real_virtq_no_kicks(struct virtq *q, struct ram *ram);
void __wrap_virtq_no_kicks(struct virtq *q, struct ram *ram);
bool __real_virtq_want_kicks(struct virtq *q, struct ram *ram);
bool __wrap_virtq_want_kicks(struct virtq *q, struct ram *ram);
int __real_ram_zero_pages(struct ram *ram, uint64_t index, uint64_t n);
int __wrap_ram_zero_pages(struct ram *ram, uint64_t index, uint64_t n);

/* ---- memory and its copy ---- */

/* All of RAM is one region, from 0 on. */
static bool in_ram(uint64_t gpa, uint64_t len)
{
	return gpa <= oracle.ram->size && len <= oracle.ram->size - gpa;
}

static bool is_marked(uint64_t page)
{
	return atomic_load(&oracle.ram->own_dirty[page / 64]) & (1ULL << (page % 64));
}

/* The device may have stored here: as far as it marked the pages. */
static void take_over(uint64_t at, uint64_t len)
{
	uint64_t end = at + len;

	while (at < end) {
		uint64_t page = at / PAGE_SIZE, next = (page + 1) * PAGE_SIZE;

		/* A vector may have all of RAM in it, a hundred times. */
		if (page % 64 == 0 && !atomic_load(&oracle.ram->own_dirty[page / 64]))
			next += 63 * PAGE_SIZE;
		else if (is_marked(page))
			memcpy(oracle.copy + at, oracle.ram->host + at, MIN(end, next) - at);
		at = next;
	}
}

bool oracle_store(uint64_t gpa, const void *buf, uint64_t len)
{
	if (!in_ram(gpa, len))
		return false;
	memcpy(oracle.ram->host + gpa, buf, len);
	memcpy(oracle.copy + gpa, buf, len);
	return true;
}

bool oracle_load(uint64_t gpa, void *buf, uint64_t len)
{
	if (!in_ram(gpa, len))
		return false;
	memcpy(buf, oracle.ram->host + gpa, len);
	return true;
}

static void check_page(uint64_t page, const char *when)
{
	const uint8_t *a = oracle.ram->host + page * PAGE_SIZE, *b = oracle.copy + page * PAGE_SIZE;
	uint64_t at = 0;

	if (memcmp(a, b, PAGE_SIZE) == 0)
		return;
	while (a[at] == b[at])
		at++;
	fuzz_bug("%s: a store at %#llx: %s", when, (unsigned long long)(page * PAGE_SIZE + at),
		 is_marked(page) ? "nobody had offered that memory" : "its page was not marked");
}

void oracle_check(const char *when)
{
	uint64_t n;

	for (const struct held *h = oracle.held; h; h = h->next) {
		for (uint32_t i = 0; i < h->n; i++)
			take_over(h->part[i].at, h->part[i].len);
	}
	for (uint64_t i = 0; ram_next_populated(oracle.ram, &i, &n); i += n) {
		for (uint64_t page = i; page < i + n; page++)
			check_page(page, when);
	}
	for (uint64_t w = 0; w < oracle.ram->npages / 64; w++) {
		if (atomic_load_explicit(&oracle.ram->own_dirty[w], memory_order_relaxed))
			(void)ram_take_own_dirty(oracle.ram, w);
	}
}

void oracle_begin(struct ram *ram)
{
	if (oracle.copy_size < ram->size) {
		if (oracle.copy)
			munmap(oracle.copy, oracle.copy_size);
		oracle.copy_size = ram->size;
		oracle.copy = mmap(NULL, ram->size, PROT_READ | PROT_WRITE,
				   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		fuzz_need(oracle.copy != MAP_FAILED, "no memory");
	}
	oracle.ram = ram;
	oracle.lies = false;
}

/* Pages that are used all the time are worth keeping; where a few of an input were is not. */
#define KEEP_PAGES 64U

void oracle_end(void)
{
	uint64_t n, kept = 0;

	oracle_forget_chains();
	oracle_check("at the end");
	for (uint64_t i = 0; ram_next_populated(oracle.ram, &i, &n); i += n) {
		uint64_t at = i * PAGE_SIZE, len = n * PAGE_SIZE;

		memset(oracle.copy + at, 0, len);
		if (kept + n <= KEEP_PAGES) {
			memset(oracle.ram->host + at, 0, len);
			kept += n;
		} else {
			fallocate(oracle.ram->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				  (off_t)at, (off_t)len);
		}
	}
}

/* ---- who has which chain ---- */

static unsigned queue_of(const struct virtq *q)
{
	return container_of(q, const struct virtio_queue, q)->index;
}

static void hold(const struct virtq *q, const struct virtq_chain *c)
{
	struct held *h = malloc(sizeof(*h) + c->n_in * sizeof(h->part[0]));

	fuzz_need(h, "no memory");
	*h = (struct held){
		.next = oracle.held,
		.queue = queue_of(q),
		.head = c->head,
		.in_len = c->in_len,
		.n = c->n_in,
	};
	for (uint32_t i = 0; i < c->n_in; i++) {
		const struct iovec *v = &c->iov[c->n_out + i];

		h->part[i].at = (uint64_t)((uint8_t *)v->iov_base - oracle.ram->host);
		h->part[i].len = v->iov_len;
	}
	oracle.held = h;
}

static void let_go(struct held **at)
{
	struct held *h = *at;

	for (uint32_t i = 0; i < h->n; i++)
		take_over(h->part[i].at, h->part[i].len);
	*at = h->next;
	free(h);
}

/* The chain of that head with the least room that suffices. */
static struct held **find_held(unsigned queue, uint16_t head, uint32_t written, unsigned *n)
{
	struct held **best = NULL;

	*n = 0;
	for (struct held **at = &oracle.held; *at; at = &(*at)->next) {
		const struct held *h = *at;

		if (h->queue != queue || h->head != head || h->back)
			continue;
		++*n;
		if (h->in_len >= written && (!best || h->in_len < (*best)->in_len))
			best = at;
	}
	return best;
}

/*
 * The same head may be there twice, which is the driver's mistake: which of the two comes back
 * nobody can say, so the device may store into both until the second one does.
 */
static void give_back(const struct virtq *q, uint16_t head, uint32_t written)
{
	unsigned queue = queue_of(q), n;
	struct held **best = find_held(queue, head, written, &n);

	if (!best) {
		fuzz_need(n == 0, "queue %u: head %u given back with %u bytes: it has less room",
			  queue, head, written);
		fuzz_need(oracle.lies, "queue %u: head %u is given back and was not taken", queue,
			  head);
		return;
	}
	(*best)->back = true;
	if (n > 1)
		return;
	for (struct held **at = &oracle.held; *at;) {
		if ((*at)->queue == queue && (*at)->head == head)
			let_go(at);
		else
			at = &(*at)->next;
	}
}

void oracle_forget_chains(void)
{
	while (oracle.held)
		let_go(&oracle.held);
	oracle.n_put = 0;
}

void oracle_state_lies(void)
{
	oracle.lies = true;
}

bool oracle_writable(unsigned queue, uint64_t gpa, uint64_t len)
{
	for (const struct held *h = oracle.held; h; h = h->next) {
		for (uint32_t i = 0; h->queue == queue && i < h->n; i++) {
			const struct part *p = &h->part[i];

			if (gpa >= p->at && len <= p->len && gpa - p->at <= p->len - len)
				return true;
		}
	}
	return false;
}

/* ---- another reading of the ring (virtio 1.2, section 2.7) ---- */

struct walk {
	struct virtq_chain c;
	struct iovec iov[VIRTQ_MAX_SIZE];
};

static uint64_t get(uint64_t gpa, unsigned bytes)
{
	uint64_t v = 0;

	memcpy(&v, oracle.ram->host + gpa, bytes);
	return v;
}

/* false: the chain may not be taken. */
static bool walk_chain(const struct virtq *q, uint16_t head, uint32_t max, struct walk *w)
{
	uint64_t table = q->desc, out = 0, in = 0;
	uint32_t entries = q->size, at = head, links = 0;
	bool nested = false;

	w->c = (struct virtq_chain){.iov = w->iov, .head = head};
	for (;;) {
		uint64_t d = table + 16ULL * at, addr;
		uint32_t len;
		unsigned flags;

		if (at >= entries || !in_ram(d, 16))
			return false;
		addr = get(d, 8);
		len = (uint32_t)get(d + 8, 4);
		flags = (unsigned)get(d + 12, 2);
		if (flags & INDIRECT) {
			if (nested || (flags & NEXT) || !len || len % 16 || len / 16 > q->size)
				return false;
			nested = true;
			table = addr;
			entries = len / 16;
			at = links = 0;
			continue;
		}
		if (!in_ram(addr, len) || (w->c.n_in && !(flags & WRITE)))
			return false;
		if (len) {
			if (w->c.n_out + w->c.n_in == max)
				return false;
			w->iov[w->c.n_out + w->c.n_in] = (struct iovec){
				.iov_base = oracle.ram->host + addr,
				.iov_len = len,
			};
			w->c.n_in += !!(flags & WRITE);
			w->c.n_out += !(flags & WRITE);
			*(flags & WRITE ? &in : &out) += len;
		}
		if (!(flags & NEXT))
			break;
		at = (uint32_t)get(d + 14, 2);
		if (++links == entries)
			return false;
	}
	w->c.out_len = out;
	w->c.in_len = in;
	return in < 1ULL << 32 && out < 1ULL << 32;
}

/* What virtq_pop() is to say. */
static int foretell(const struct virtq *q, uint32_t max, struct walk *w)
{
	uint16_t idx, head;

	if (!q->ready)
		return 0;
	idx = (uint16_t)get(q->avail + 2, 2);
	if (idx == q->next_avail)
		return 0;
	if ((uint16_t)(idx - q->next_avail) > q->size)
		return -EPROTO;
	head = (uint16_t)get(q->avail + 4 + 2ULL * (q->next_avail % q->size), 2);
	return walk_chain(q, head, max, w) ? 1 : -EPROTO;
}

static void compare(const struct virtq *q, const struct walk *want, const struct virtq_chain *c)
{
	fuzz_need(c->head == want->c.head && c->n_out == want->c.n_out && c->n_in == want->c.n_in &&
			  c->out_len == want->c.out_len && c->in_len == want->c.in_len,
		  "queue %u: a chain (head %u) of %u + %u buffers, not of %u + %u", queue_of(q),
		  c->head, c->n_out, c->n_in, want->c.n_out, want->c.n_in);
	for (uint32_t i = 0; i < c->n_out + c->n_in; i++)
		fuzz_need(c->iov[i].iov_base == want->iov[i].iov_base &&
				  c->iov[i].iov_len == want->iov[i].iov_len,
			  "queue %u: head %u: another buffer %u", queue_of(q), c->head, i);
}

int __wrap_virtq_pop(struct virtq *q, struct ram *ram, struct virtq_chain *c, const char **why)
{
	static struct walk want;
	const struct virtio *v = container_of(q, struct virtio_queue, q)->v;
	/* While the kernel stores into buffers, which may be the rings, two readings differ. */
	bool still = !v || !v->inflight;
	int told = still ? foretell(q, c->max, &want) : 0, ret;

	ret = __real_virtq_pop(q, ram, c, why);
	if (still) {
		fuzz_need(ret == told, "queue %u: taking a chain gives %d (%s), not %d",
			  queue_of(q), ret, ret < 0 ? *why : "no error", told);
		if (ret == 1)
			compare(q, &want, c);
	}
	if (ret == 1) {
		hold(q, c);
		if (oracle_taken)
			oracle_taken(queue_of(q), c);
	}
	return ret;
}

void __wrap_virtq_unpop(struct virtq *q)
{
	struct held **at = &oracle.held;

	while (*at && ((*at)->queue != queue_of(q) || (*at)->back))
		at = &(*at)->next;
	fuzz_need(*at, "queue %u: a chain is put back that was not taken", queue_of(q));
	let_go(at);
	oracle.n_put = 0;
	__real_virtq_unpop(q);
}

/* ---- what devices store into the used ring: these bytes and no others ---- */

static void took_entries(const struct virtq *q, uint16_t from, uint16_t n)
{
	for (uint16_t i = 0; q->ready && i < n; i++) {
		uint64_t at = (uint16_t)(from + i) % q->size;

		take_over(q->used + 4 + 8 * at, 8);
	}
}

static void took_field(const struct virtq *q, uint64_t offset)
{
	if (q->ready)
		take_over(q->used + offset, 2);
}

void __wrap_virtq_push(struct virtq *q, struct ram *ram, uint16_t head, uint32_t written)
{
	uint16_t from = q->next_used;

	give_back(q, head, written);
	__real_virtq_push(q, ram, head, written);
	took_entries(q, from, 1);
	took_field(q, 2);
}

/* The guest has it only once it is published. */
void __wrap_virtq_put(struct virtq *q, struct ram *ram, uint16_t offset, uint16_t head,
		      uint32_t written)
{
	/* What a driver's mistake ended halfway is forgotten. */
	if (offset == 0)
		oracle.n_put = 0;
	fuzz_need(offset == oracle.n_put && offset < q->size, "queue %u: entry %u put after %u",
		  queue_of(q), offset, oracle.n_put);
	oracle.put[offset].head = head;
	oracle.put[offset].written = written;
	oracle.n_put++;
	__real_virtq_put(q, ram, offset, head, written);
	took_entries(q, (uint16_t)(q->next_used + offset), 1);
}

void __wrap_virtq_publish(struct virtq *q, struct ram *ram, uint16_t n)
{
	fuzz_need(n == oracle.n_put, "queue %u: %u entries published, not %u", queue_of(q), n,
		  oracle.n_put);
	for (unsigned i = 0; i < n; i++)
		give_back(q, oracle.put[i].head, oracle.put[i].written);
	oracle.n_put = 0;
	__real_virtq_publish(q, ram, n);
	took_field(q, 2);
}

static uint64_t kick_field(const struct virtq *q)
{
	return q->event_idx ? 4 + 8ULL * q->size : 0;
}

void __wrap_virtq_no_kicks(struct virtq *q, struct ram *ram)
{
	__real_virtq_no_kicks(q, ram);
	took_field(q, kick_field(q));
}

bool __wrap_virtq_want_kicks(struct virtq *q, struct ram *ram)
{
	bool ret = __real_virtq_want_kicks(q, ram);

	took_field(q, kick_field(q));
	return ret;
}

int __wrap_ram_zero_pages(struct ram *ram, uint64_t index, uint64_t n)
{
	int ret;

	fuzz_need(oracle_may_zero && oracle_may_zero(index, n),
		  "pages %llu to %llu are given back, and nobody asked for that",
		  (unsigned long long)index, (unsigned long long)(index + n));
	ret = __real_ram_zero_pages(ram, index, n);
	take_over(index * PAGE_SIZE, n * PAGE_SIZE);
	return ret;
}
