/* SPDX-License-Identifier: MIT */
/*
 * The rings alone: virtq.c with whatever a guest writes into its memory and a device that takes and
 * gives back chains as it likes. What is taken is compared by oracle.c with another reading; here,
 * that copying out of and into chains goes where it says.
 */
#include "../virtq.h"

#include <stdlib.h>

#include "machine.h"
#include "oracle.h"

#define TAKEN_MAX 64U
#define MAX_ACTIONS 300U

struct taken {
	uint16_t head;
	uint32_t in_len;
};

struct rig {
	struct ram ram;
	struct virtio_queue queue;
	struct taken taken[TAKEN_MAX];
	unsigned n_taken;
	struct iovec iov[VIRTQ_MAX_SIZE];
	struct virtq_chain c;
};

static struct virtq *ring_of(struct rig *r)
{
	return &r->queue.q;
}

static void any_ring(struct rig *r, struct fuzz_in *in)
{
	struct virtq *q = ring_of(r);
	unsigned how = in_u8(in);
	struct virtq was = *q;
	int ret;

	q->ready = false;
	q->size = (uint16_t)(how & 1 ? in_u16(in) : 1U << (how >> 4) % 11);
	q->desc = machine_gpa(in);
	q->avail = machine_gpa(in);
	q->used = machine_gpa(in);
	if (!(how & 2)) {
		q->desc &= ~15ULL;
		q->avail &= ~1ULL;
		q->used &= ~3ULL;
	}
	if (how & 4) {
		q->next_avail = in_u16(in);
		q->next_used = in_u16(in);
	}
	ret = virtq_enable(q, &r->ram, how & 8);
	fuzz_need((ret == 0) == q->ready, "ready, and not enabled");
	if (ret)
		*q = was;
}

static void any_state(struct rig *r, struct fuzz_in *in)
{
	struct virtq *q = ring_of(r), was = *q;
	uint8_t bytes[48];
	struct sbuf s;

	in_bytes(in, bytes, sizeof(bytes));
	sb_init_load(&s, bytes, sizeof(bytes));
	virtq_fields(q, &s);
	if (s.err || virtq_check(q, &r->ram, in_u8(in) & 1))
		*q = was;
	oracle_state_lies();
}

static void any_desc(struct rig *r, struct fuzz_in *in)
{
	unsigned where = in_u8(in);
	uint64_t table = where & 1 ? ARENA_TABLES : ring_of(r)->desc, addr = machine_gpa(in);
	uint32_t len = machine_len(in);
	uint16_t flags = in_u8(in) & 7, next = in_u8(in);
	uint8_t d[16];

	/* A table's own place now and then. */
	if (where & 128)
		addr = ARENA_TABLES + 16 * (next & 3U);
	memcpy(d, &addr, 8);
	memcpy(d + 8, &len, 4);
	memcpy(d + 12, &flags, 2);
	memcpy(d + 14, &next, 2);
	oracle_store(table + 16 * ((where >> 1) % 64U), d, sizeof(d));
}

static void offer(struct rig *r, uint16_t head)
{
	struct virtq *q = ring_of(r);
	uint16_t idx = 0;

	if (!q->size || !oracle_load(q->avail + 2, &idx, sizeof(idx)))
		return;
	oracle_store(q->avail + 4 + 2ULL * (idx % q->size), &head, sizeof(head));
	idx++;
	oracle_store(q->avail + 2, &idx, sizeof(idx));
}

/* Copies in pieces and as a whole are the same, and no more than there is. */
static void copy_some(struct rig *r, struct fuzz_in *in)
{
	static uint8_t a[4096], b[4096];
	const struct virtq_chain *c = &r->c;
	uint64_t offset = in_u16(in), len = in_u16(in) % sizeof(a);
	struct iovec part[8];
	size_t n = virtq_read(c, offset, a, len), m = 0;

	fuzz_need(n == MIN(len, c->out_len - MIN(offset, c->out_len)), "%zu bytes read of %llu", n,
		  (unsigned long long)c->out_len);
	while (m < n)
		m += virtq_read(c, offset + m, b + m, MIN(n - m, 1 + m));
	fuzz_need(memcmp(a, b, n) == 0, "a chain reads otherwise in pieces");
	m = iov_slice(c->iov, c->n_out, offset, len, part, ARRAY_SIZE(part));
	for (size_t i = 0, at = 0; i < m; at += part[i++].iov_len)
		fuzz_need(at + part[i].iov_len <= n &&
				  memcmp(part[i].iov_base, a + at, part[i].iov_len) == 0,
			  "a slice is of something else");
	n = virtq_write(c, &r->ram, offset, a, len);
	fuzz_need(n == MIN(len, c->in_len - MIN(offset, c->in_len)), "%zu bytes written of %llu", n,
		  (unsigned long long)c->in_len);
	virtq_stored(c, &r->ram, offset, len);
}

static void take(struct rig *r, struct fuzz_in *in)
{
	unsigned how = in_u8(in);
	const char *why = "";

	if (r->n_taken == TAKEN_MAX)
		return;
	r->c = (struct virtq_chain){.iov = r->iov, .max = how & 1 ? how >> 4 : VIRTQ_MAX_SIZE};
	if (virtq_pop(ring_of(r), &r->ram, &r->c, &why) != 1)
		return;
	if (how & 2)
		copy_some(r, in);
	if (how & 4) {
		virtq_unpop(ring_of(r));
		return;
	}
	r->taken[r->n_taken].head = r->c.head;
	r->taken[r->n_taken++].in_len = (uint32_t)r->c.in_len;
}

static struct taken untake(struct rig *r, unsigned i)
{
	struct taken t = r->taken[i];

	r->taken[i] = r->taken[--r->n_taken];
	return t;
}

static void give_back(struct rig *r, struct fuzz_in *in)
{
	struct virtq *q = ring_of(r);
	unsigned how = in_u8(in), n = 0;
	struct taken t;

	if (r->n_taken == 0)
		return;
	if (!(how & 1)) {
		t = untake(r, how % r->n_taken);
		virtq_push(q, &r->ram, t.head, t.in_len);
	} else if (q->ready) {
		for (; n < 1U + (how >> 1) % 4 && n < q->size && r->n_taken; n++) {
			t = untake(r, 0);
			virtq_put(q, &r->ram, (uint16_t)n, t.head, t.in_len);
		}
		virtq_publish(q, &r->ram, (uint16_t)n);
	}
}

static void act(struct rig *r, struct fuzz_in *in)
{
	struct virtq *q = ring_of(r);
	uint8_t bytes[32];
	uint64_t gpa;
	uint16_t idx;

	switch (in_u8(in) % 16) {
	case 0:
		any_ring(r, in);
		break;
	case 1:
	case 2:
	case 3:
		any_desc(r, in);
		break;
	case 4:
	case 5:
		offer(r, in_u8(in));
		break;
	case 6:
	case 7:
	case 8:
		take(r, in);
		break;
	case 9:
		give_back(r, in);
		break;
	case 10:
		idx = in_u16(in);
		oracle_store(q->avail + 2, &idx, sizeof(idx));
		break;
	case 11:
		gpa = machine_gpa(in);
		in_bytes(in, bytes, sizeof(bytes));
		oracle_store(gpa, bytes, in_u8(in) % sizeof(bytes));
		break;
	case 12:
		virtq_must_signal(q, &r->ram);
		break;
	case 13:
		virtq_no_kicks(q, &r->ram);
		break;
	case 14:
		fuzz_need(!virtq_want_kicks(q, &r->ram) || q->ready, "chains, and not ready");
		break;
	default:
		any_state(r, in);
	}
}

/* A ring that is new works. */
static void honest(struct rig *r)
{
	static const uint8_t zeros[PAGE_SIZE];
	struct virtq *q = ring_of(r);
	const char *why = "";
	const uint8_t desc[16] = {0, 0x80, 0x10, 0, 0, 0, 0, 0, 16, 0, 0, 0, 2, 0, 0, 0};
	uint16_t idx;

	virtq_reset(q);
	oracle_forget_chains();
	oracle_store(ARENA, zeros, sizeof(zeros));
	q->size = 4;
	q->desc = ARENA;
	q->avail = ARENA + 0x100;
	q->used = ARENA + 0x200;
	fuzz_need(virtq_enable(q, &r->ram, false) == 0, "an ordinary ring is refused");
	oracle_store(q->desc, desc, sizeof(desc));
	offer(r, 0);
	r->c = (struct virtq_chain){.iov = r->iov, .max = 1};
	fuzz_need(virtq_pop(q, &r->ram, &r->c, &why) == 1 && r->c.in_len == 16,
		  "an ordinary chain is refused: %s", why);
	virtq_write(&r->c, &r->ram, 0, "sixteen bytes...", 16);
	virtq_push(q, &r->ram, r->c.head, 16);
	oracle_load(q->used + 2, &idx, sizeof(idx));
	fuzz_need(idx == 1, "it is not given back");
	virtq_reset(q);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct rig *r;
	struct fuzz_in in = {.at = data, .end = data + size};

	if (!r) {
		struct errmsg err = {""};

		r = calloc(1, sizeof(*r));
		fuzz_need(r && ram_init(&r->ram, RAM_MIN, false, &err) == 0, "%s", err.text);
		r->queue.q.max = VIRTQ_MAX_SIZE;
	}
	oracle_begin(&r->ram);
	virtq_reset(ring_of(r));
	r->n_taken = 0;
	any_ring(r, &in);
	for (unsigned n = 0; n < MAX_ACTIONS && in_left(&in); n++)
		act(r, &in);
	oracle_check("in the end");
	honest(r);
	oracle_end();
	return 0;
}
