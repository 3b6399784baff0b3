/* SPDX-License-Identifier: MIT */
/*
 * The rings in guest memory (virtio 1.2, section 2.7), all fields little-endian:
 *
 *	desc	size * { u64 addr, u32 len, u16 flags, u16 next }
 *	avail	u16 flags, u16 idx, u16 ring[size], u16 used_event
 *	used	u16 flags, u16 idx, { u32 id, u32 len } ring[size], u16 avail_event
 *
 * Order matters in four places: the entries of the available ring are read after its idx
 * (acquire); the used idx is stored after the entries and the data (release); whether to interrupt
 * is read after the used idx was stored, and a last look at the available ring is taken after a
 * kick was asked for (full barriers): with either the other way round both sides may sleep.
 */
#include "virtq.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>

#define DESC_NEXT 1U
#define DESC_WRITE 2U
#define DESC_INDIRECT 4U
#define AVAIL_NO_INTERRUPT 1U
#define USED_NO_NOTIFY 1U

struct desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags;
	uint16_t next;
};
_Static_assert(sizeof(struct desc) == 16, "virtio 1.2, 2.7.5");

struct used_elem {
	uint32_t id;
	uint32_t len;
};

#define AVAIL_IDX 2U
#define AVAIL_RING 4U
#define USED_IDX 2U
#define USED_RING 4U

static uint64_t desc_bytes(const struct virtq *q)
{
	return sizeof(struct desc) * q->size;
}

/* With the event fields, which are there whether or not they are negotiated. */
static uint64_t avail_bytes(const struct virtq *q)
{
	return AVAIL_RING + 2ULL * q->size + 2;
}

static uint64_t used_bytes(const struct virtq *q)
{
	return USED_RING + sizeof(struct used_elem) * q->size + 2;
}

static uint64_t used_event_at(const struct virtq *q)
{
	return q->avail + AVAIL_RING + 2ULL * q->size;
}

static uint64_t avail_event_at(const struct virtq *q)
{
	return q->used + USED_RING + sizeof(struct used_elem) * q->size;
}

/* The addresses were checked by virtq_enable() and are aligned: these cannot fail. */
static uint16_t load_u16(const struct ram *ram, uint64_t gpa)
{
	const _Atomic uint16_t *p = ram_ptr(ram, gpa, sizeof(uint16_t));

	return p ? atomic_load_explicit(p, memory_order_acquire) : 0;
}

static void store_u16(struct ram *ram, uint64_t gpa, uint16_t value)
{
	_Atomic uint16_t *p = ram_dma(ram, gpa, sizeof(uint16_t));

	if (!p)
		return;
	atomic_store_explicit(p, value, memory_order_release);
	ram_dma_done(ram, (const void *)p, sizeof(uint16_t));
}

void virtq_reset(struct virtq *q)
{
	*q = (struct virtq){.max = q->max, .size = q->max};
}

static int check_rings(const struct virtq *q, const struct ram *ram)
{
	if (q->size == 0 || q->size > q->max || (q->size & (q->size - 1)))
		return -EPROTO;
	if (q->desc % 16 || q->avail % 2 || q->used % 4)
		return -EPROTO;
	if (!ram_ptr(ram, q->desc, desc_bytes(q)) || !ram_ptr(ram, q->avail, avail_bytes(q)) ||
	    !ram_ptr(ram, q->used, used_bytes(q)))
		return -EPROTO;
	return 0;
}

int virtq_enable(struct virtq *q, const struct ram *ram, bool event_idx)
{
	int ret = check_rings(q, ram);

	if (ret)
		return ret;
	q->event_idx = event_idx;
	q->ready = true;
	return 0;
}

bool virtq_pending(const struct virtq *q, const struct ram *ram)
{
	return q->ready && load_u16(ram, q->avail + AVAIL_IDX) != q->next_avail;
}

/* One buffer of a chain, checked, into the vector. */
static int add_buffer(struct virtq_chain *c, struct ram *ram, const struct desc *d,
		      const char **why)
{
	bool in = d->flags & DESC_WRITE;
	void *host = ram_dma(ram, d->addr, d->len);

	*why = "a buffer outside its memory";
	if (!host)
		return -EPROTO;
	*why = "a buffer to read behind one to write";
	if (!in && c->n_in)
		return -EPROTO;
	/* Allowed by no driver's needs; a vector must not have empty parts in its middle. */
	if (d->len == 0)
		return 0;
	*why = "a chain of too many buffers";
	if (c->n_out + c->n_in == c->max)
		return -EPROTO;
	c->iov[c->n_out + c->n_in] = (struct iovec){.iov_base = host, .iov_len = d->len};
	if (in) {
		c->n_in++;
		c->in_len += d->len;
	} else {
		c->n_out++;
		c->out_len += d->len;
	}
	return 0;
}

/* Walks a table of n descriptors from `at`. A table may hold one indirect descriptor, as its last.
 */
static int walk(struct virtq *q, struct ram *ram, struct virtq_chain *c, uint64_t table, uint32_t n,
		uint16_t at, bool indirect, const char **why)
{
	/* A chain without a loop has no more links than the table has entries. */
	for (uint32_t links = 0; links < n; links++) {
		struct desc d;
		int ret;

		*why = "a descriptor beyond its table";
		if (at >= n || ram_read(ram, table + at * sizeof(d), &d, sizeof(d)))
			return -EPROTO;
		if (d.flags & DESC_INDIRECT) {
			*why = "a malformed indirect descriptor";
			if (indirect || (d.flags & DESC_NEXT) || d.len == 0 ||
			    d.len % sizeof(struct desc) || d.len / sizeof(struct desc) > q->size)
				return -EPROTO;
			return walk(q, ram, c, d.addr, d.len / (uint32_t)sizeof(struct desc), 0,
				    true, why);
		}
		ret = add_buffer(c, ram, &d, why);
		if (ret)
			return ret;
		if (!(d.flags & DESC_NEXT))
			return 0;
		at = d.next;
	}
	*why = "a chain that goes in a circle";
	return -EPROTO;
}

int virtq_pop(struct virtq *q, struct ram *ram, struct virtq_chain *c, const char **why)
{
	uint16_t idx, head;
	int ret;

	if (!q->ready)
		return 0;
	idx = load_u16(ram, q->avail + AVAIL_IDX);
	if (idx == q->next_avail)
		return 0;
	*why = "more available entries than the queue has";
	if ((uint16_t)(idx - q->next_avail) > q->size)
		return -EPROTO;
	head = load_u16(ram, q->avail + AVAIL_RING + 2ULL * (q->next_avail & (q->size - 1U)));
	c->head = head;
	c->n_out = c->n_in = 0;
	c->out_len = c->in_len = 0;
	ret = walk(q, ram, c, q->desc, q->size, head, false, why);
	if (ret)
		return ret;
	*why = "a chain of more than 4 GiB";
	if (c->out_len > UINT32_MAX || c->in_len > UINT32_MAX)
		return -EPROTO;
	q->next_avail++;
	return 1;
}

void virtq_unpop(struct virtq *q)
{
	q->next_avail--;
}

void virtq_put(struct virtq *q, struct ram *ram, uint16_t offset, uint16_t head, uint32_t written)
{
	struct used_elem e = {.id = head, .len = written};
	uint16_t at = (uint16_t)(q->next_used + offset) & (uint16_t)(q->size - 1U);

	if (q->ready)
		(void)ram_write(ram, q->used + USED_RING + at * sizeof(e), &e, sizeof(e));
}

void virtq_publish(struct virtq *q, struct ram *ram, uint16_t n)
{
	if (!q->ready)
		return;
	q->next_used = (uint16_t)(q->next_used + n);
	store_u16(ram, q->used + USED_IDX, q->next_used);
}

void virtq_push(struct virtq *q, struct ram *ram, uint16_t head, uint32_t written)
{
	virtq_put(q, ram, 0, head, written);
	virtq_publish(q, ram, 1);
}

bool virtq_must_signal(struct virtq *q, const struct ram *ram)
{
	uint16_t old = q->signalled, event;
	bool valid = q->signalled_valid;

	if (!q->ready)
		return false;
	atomic_thread_fence(memory_order_seq_cst);
	if (!q->event_idx)
		return !(load_u16(ram, q->avail) & AVAIL_NO_INTERRUPT);
	q->signalled = q->next_used;
	q->signalled_valid = true;
	event = load_u16(ram, used_event_at(q));
	/* Has next_used passed the event since it was last looked at? (virtio 1.2, 2.7.7.2) */
	return !valid || (uint16_t)(q->next_used - event - 1) < (uint16_t)(q->next_used - old);
}

void virtq_no_kicks(struct virtq *q, struct ram *ram)
{
	if (!q->ready)
		return;
	/* An event that is not near is passed by nobody; one too many in 32768 does no harm. */
	if (!q->event_idx)
		store_u16(ram, q->used, USED_NO_NOTIFY);
	else if (q->kicks)
		store_u16(ram, avail_event_at(q), (uint16_t)(q->next_avail + 0x8000U));
	q->kicks = false;
}

bool virtq_want_kicks(struct virtq *q, struct ram *ram)
{
	if (!q->ready)
		return false;
	if (q->event_idx)
		store_u16(ram, avail_event_at(q), q->next_avail);
	else
		store_u16(ram, q->used, 0);
	q->kicks = true;
	atomic_thread_fence(memory_order_seq_cst);
	return virtq_pending(q, ram);
}

uint32_t iov_slice(const struct iovec *iov, uint32_t n, uint64_t offset, uint64_t len,
		   struct iovec *out, uint32_t max)
{
	uint32_t used = 0;

	for (uint32_t i = 0; i < n && len; i++) {
		uint64_t take;

		if (offset >= iov[i].iov_len) {
			offset -= iov[i].iov_len;
			continue;
		}
		if (used == max)
			return 0;
		take = MIN(len, iov[i].iov_len - offset);
		out[used++] = (struct iovec){.iov_base = (char *)iov[i].iov_base + offset,
					     .iov_len = take};
		len -= take;
		offset = 0;
	}
	return len ? 0 : used;
}

size_t virtq_read(const struct virtq_chain *c, uint64_t offset, void *buf, size_t len)
{
	size_t done = 0;

	for (uint32_t i = 0; i < c->n_out && done < len; i++) {
		const struct iovec *v = &c->iov[i];
		size_t take;

		if (offset >= v->iov_len) {
			offset -= v->iov_len;
			continue;
		}
		take = MIN(len - done, v->iov_len - (size_t)offset);
		memcpy((char *)buf + done, (const char *)v->iov_base + offset, take);
		done += take;
		offset = 0;
	}
	return done;
}

size_t virtq_write(const struct virtq_chain *c, struct ram *ram, uint64_t offset, const void *buf,
		   size_t len)
{
	size_t done = 0;

	for (uint32_t i = c->n_out; i < c->n_out + c->n_in && done < len; i++) {
		const struct iovec *v = &c->iov[i];
		size_t take;

		if (offset >= v->iov_len) {
			offset -= v->iov_len;
			continue;
		}
		take = MIN(len - done, v->iov_len - (size_t)offset);
		ram_dma_write(ram, (char *)v->iov_base + offset, (const char *)buf + done, take);
		done += take;
		offset = 0;
	}
	return done;
}

void virtq_stored(const struct virtq_chain *c, struct ram *ram, uint64_t offset, uint64_t len)
{
	for (uint32_t i = c->n_out; i < c->n_out + c->n_in && len; i++) {
		const struct iovec *v = &c->iov[i];
		uint64_t take;

		if (offset >= v->iov_len) {
			offset -= v->iov_len;
			continue;
		}
		take = MIN(len, v->iov_len - offset);
		ram_dma_done(ram, (const char *)v->iov_base + offset, take);
		len -= take;
		offset = 0;
	}
}

void virtq_fields(struct virtq *q, struct sbuf *s)
{
	sb_u16(s, &q->size);
	sb_bool(s, &q->ready);
	sb_x64(s, &q->desc);
	sb_x64(s, &q->avail);
	sb_x64(s, &q->used);
	sb_u16(s, &q->next_avail);
	sb_u16(s, &q->next_used);
	sb_u16(s, &q->signalled);
	sb_bool(s, &q->signalled_valid);
}

int virtq_check(struct virtq *q, const struct ram *ram, bool event_idx)
{
	q->event_idx = event_idx;
	if (!q->ready)
		return 0;
	return check_rings(q, ram);
}
