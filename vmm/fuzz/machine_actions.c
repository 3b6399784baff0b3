/* SPDX-License-Identifier: MIT */
/* What an input makes a guest do, and what must hold when it has done it. */
#include "machine.h"

#include <stdlib.h>
#include <string.h>

#include "machine_parts.h"
#include "oracle.h"

#define MAX_ACTIONS 200U

enum action {
	REQUEST, /* as a driver would make one */
	CHAIN,	 /* a chain of any buffers */
	KICK,
	SETTLE,
	HOST,  /* the other end does something */
	DESC,  /* a descriptor of a ring */
	TABLE, /* one of an indirect table */
	OFFER, /* any head */
	AVAIL, /* any index */
	EVENT, /* the driver's wishes for interrupts */
	POKE,  /* a few bytes anywhere */
	UP,    /* reset and up again */
	QUEUE, /* a ring elsewhere */
	READY,
	REG_WRITE,
	REG_READ,
	CONFIG,
	RESET,
	PAUSE,
	MOVE,
	N_ACTIONS
};

/* Of 32; what is useful more often is here more often. */
static const uint8_t actions[32] = {
	REQUEST,   REQUEST,  REQUEST, REQUEST, CHAIN, CHAIN, CHAIN, KICK,   KICK,    HOST,  HOST,
	SETTLE,	   DESC,     DESC,    TABLE,   OFFER, AVAIL, EVENT, POKE,   UP,	     QUEUE, READY,
	REG_WRITE, REG_READ, CONFIG,  RESET,   PAUSE, MOVE,  KICK,  SETTLE, REQUEST, HOST,
};
static const uint8_t register_actions[32] = {
	REG_WRITE, REG_WRITE, REG_WRITE, REG_WRITE, REG_WRITE, REG_WRITE, REG_WRITE, REG_WRITE,
	REG_WRITE, REG_WRITE, REG_READ,	 REG_READ,  REG_READ,  CONFIG,	  CONFIG,    CONFIG,
	QUEUE,	   QUEUE,     READY,	 READY,	    REQUEST,   REQUEST,	  KICK,	     SETTLE,
	UP,	   RESET,     PAUSE,	 MOVE,	    OFFER,     AVAIL,	  DESC,	     POKE,
};

static void any_chain(struct fuzz_machine *m, struct fuzz_in *in)
{
	unsigned queue = in_u8(in) % m->side->v->n_queues, shape = in_u8(in);
	unsigned n = 1 + (shape >> 2) % MACHINE_PARTS;
	struct fuzz_buf b[MACHINE_PARTS];

	for (unsigned i = 0; i < n; i++) {
		unsigned kind = in_u8(in);
		uint8_t bytes[64];
		uint32_t len = machine_len(in);

		b[i] = machine_room(m, MIN(len, 4096U));
		b[i].len = len;
		b[i].in = kind & 1;
		if (kind & 2)
			b[i].gpa = machine_gpa(in);
		in_bytes(in, bytes, kind >> 2);
		if (!b[i].in)
			oracle_store(b[i].gpa, bytes, kind >> 2);
	}
	machine_chain(m, queue, b, n, shape & 1);
	if (shape & 2)
		machine_kick(m, queue);
}

static void any_desc(struct fuzz_machine *m, struct fuzz_in *in, enum action a)
{
	struct machine_queue *q = &m->queue[in_u8(in) % m->side->v->n_queues];
	unsigned i = in_u8(in);
	uint64_t addr = machine_gpa(in);
	uint32_t len = machine_len(in);
	unsigned flags = in_u8(in), next = in_u8(in);

	/* Beyond the table now and then. */
	if (next == 0xff)
		next = in_u16(in);
	machine_store_desc(a == DESC ? q->desc : ARENA_TABLES, i, addr, len, flags & 7, next);
}

static void any_store(struct fuzz_in *in)
{
	uint64_t gpa = machine_gpa(in);
	unsigned n = in_u8(in) % 64;
	uint8_t bytes[64];

	in_bytes(in, bytes, n);
	oracle_store(gpa, bytes, n);
}

static void any_queue(struct fuzz_machine *m, struct fuzz_in *in)
{
	unsigned queue = in_u8(in) % m->side->v->n_queues, how = in_u8(in);
	struct machine_queue *q = &m->queue[queue];

	machine_set(m, REG_QUEUE_SEL, queue);
	if (how & 1)
		machine_set(m, REG_QUEUE_READY, 0);
	q->size = (uint16_t)(how & 2 ? in_u16(in) : 1U << (how >> 4) % 11);
	q->desc = machine_gpa(in);
	q->avail = machine_gpa(in);
	q->used = machine_gpa(in);
	/* Most have to be where they may. */
	if (!(how & 4)) {
		q->desc &= ~15ULL;
		q->avail &= ~1ULL;
		q->used &= ~3ULL;
	}
	/* Of a ring that has been in use only the place may be new. */
	if (how & 8)
		q->avail_idx = m->side->v->queue[queue].q.next_avail;
	machine_set_queue(m, queue, q);
}

static unsigned size_of(struct fuzz_in *in)
{
	return 1U << in_u8(in) % 4;
}

static void read_registers(struct fuzz_machine *m, struct fuzz_in *in)
{
	const struct virtio *v = m->side->v;
	uint64_t offset = in_u16(in) % 0x208;

	machine_reg(m, offset, size_of(in));
	fuzz_need(machine_reg(m, REG_MAGIC, 4) == 0x74726976, "the magic number has changed");
	fuzz_need(machine_reg(m, REG_STATUS, 4) == v->status, "another status");
	fuzz_need(!(v->features & ~v->offered), "features that were not offered");
	fuzz_need(v->status & VIRTIO_FEATURES_OK ? v->features & VIRTIO_VERSION_1
						 : !(v->status & VIRTIO_DRIVER_OK),
		  "status %#x with features %#llx", v->status, (unsigned long long)v->features);
}

static void write_register(struct fuzz_machine *m, struct fuzz_in *in)
{
	const struct virtio *v = m->side->v;
	uint64_t features = v->features, offset = in_u16(in) % 0x208;
	unsigned size = size_of(in);
	bool fixed = v->status & VIRTIO_FEATURES_OK;
	uint64_t value = offset == REG_STATUS ? in_u8(in) : in_u64(in);

	machine_set_reg(m, offset, size, value);
	fuzz_need(!fixed || !v->status || v->features == features,
		  "features have changed once they were settled");
	for (unsigned i = 0; i < v->n_queues; i++)
		fuzz_need(!v->queue[i].q.ready || (v->status & VIRTIO_FEATURES_OK),
			  "a queue is ready before the features are");
}

static void any_event(struct fuzz_machine *m, struct fuzz_in *in)
{
	struct machine_queue *q = &m->queue[in_u8(in) % m->side->v->n_queues];
	uint16_t flags = in_u8(in), event = in_u16(in);

	oracle_store(q->avail, &flags, sizeof(flags));
	oracle_store(q->avail + 4 + 2ULL * q->size, &event, sizeof(event));
}

static void at_rest(struct fuzz_machine *m, struct fuzz_in *in)
{
	machine_quiesce(m);
	for (unsigned n = in_u8(in) % 3; n > 0 && m->target->host; n--)
		m->target->host(m, in);
	machine_resume(m);
}

static void reset_and_up(struct fuzz_machine *m, struct fuzz_in *in)
{
	/* Bits: no EVENT_IDX, no INDIRECT, nothing of the device's own, then ring sizes. */
	unsigned how = in_u8(in);
	uint64_t without = (how & 1 ? VIRTIO_RING_EVENT_IDX : 0) |
			   (how & 2 ? VIRTIO_RING_INDIRECT : 0) |
			   (how & 4 ? VIRTIO_RING_EVENT_IDX - 1 : 0);

	machine_reset(m);
	/* Bits of the input for what each device has of its own. */
	if (how & 8)
		without |= in_u32(in) & 0xffffff;
	machine_up(m, without, (uint16_t)(1U << (how >> 4) % 7));
}

static void act(struct fuzz_machine *m, struct fuzz_in *in, enum action a)
{
	struct virtio *v = m->side->v;
	unsigned queue;

	switch (a) {
	case REQUEST:
		m->target->request(m, in);
		break;
	case CHAIN:
		any_chain(m, in);
		break;
	case KICK:
		machine_kick(m, in_u8(in) % v->n_queues);
		break;
	case SETTLE:
		machine_settle(m);
		break;
	case HOST:
		if (m->target->host)
			m->target->host(m, in);
		break;
	case DESC:
	case TABLE:
		any_desc(m, in, a);
		break;
	case OFFER:
		queue = in_u8(in) % v->n_queues;
		machine_offer(&m->queue[queue], in_u8(in));
		break;
	case AVAIL:
		queue = in_u8(in) % v->n_queues;
		machine_set_avail_idx(&m->queue[queue], in_u16(in));
		break;
	case EVENT:
		any_event(m, in);
		break;
	case POKE:
		any_store(in);
		break;
	case UP:
		reset_and_up(m, in);
		break;
	case QUEUE:
		any_queue(m, in);
		break;
	case READY:
		queue = in_u8(in);
		machine_set(m, REG_QUEUE_SEL, (queue >> 1) % (v->n_queues + 1));
		machine_set(m, REG_QUEUE_READY, queue & 1);
		break;
	case REG_WRITE:
		write_register(m, in);
		break;
	case REG_READ:
		read_registers(m, in);
		break;
	case CONFIG:
		machine_set_reg(m, REG_CONFIG + in_u8(in), size_of(in), in_u64(in));
		break;
	case RESET:
		machine_reset(m);
		break;
	case PAUSE:
		at_rest(m, in);
		break;
	case MOVE:
		machine_move(m, in);
		break;
	case N_ACTIONS:
		break;
	}
}

static bool nothing_in_flight(void *arg)
{
	const struct fuzz_machine *m = arg;

	return m->side->v->inflight == 0;
}

static void end_of_input(struct fuzz_machine *m)
{
	const struct fuzz_target *t = m->target;

	machine_settle(m);
	/* What is under way stores still, and is marked once it has ended. */
	if (nothing_in_flight(m))
		oracle_check("in the end");
	machine_reset(m);
	machine_settle(m);
	oracle_check("after the reset");
	if (t->tidy)
		t->tidy(m);
	m->top = ARENA_BUFFERS;
	machine_up(m, 0, 16);
	t->honest(m);
	machine_until(m, nothing_in_flight, m, "nothing in flight");
	if (t->leave)
		t->leave(m);
	machine_reset(m);
	machine_settle(m);
}

static struct fuzz_machine *make_machine(const struct fuzz_target *t, unsigned variant)
{
	static struct loop loop;
	static bool loop_there;
	struct fuzz_machine *m = calloc(1, sizeof(*m));
	struct errmsg err = {""};
	int ret;

	fuzz_need(m, "no memory");
	ret = loop_there ? 0 : loop_init(&loop);
	fuzz_need(ret == 0, "io_uring: %s", strerror(-ret));
	loop_there = true;
	fuzz_need(ram_init(&m->ram, RAM_MIN, false, &err) == 0, "%s", err.text);
	m->target = t;
	m->variant = variant;
	m->loop = &loop;
	m->config = t->setup ? t->setup(m) : NULL;
	machine_make_side(m);
	machine_acquire(m);
	return m;
}

int fuzz_virtio(const struct fuzz_target *t, const uint8_t *data, size_t size)
{
	static struct fuzz_machine *machines[MACHINE_VARIANTS];
	struct fuzz_in in = {.at = data, .end = data + size};
	unsigned variant = in_u8(&in) % MAX(t->variants, 1U);
	struct fuzz_machine *m = machines[variant];

	if (!m)
		m = machines[variant] = make_machine(t, variant);
	oracle_begin(&m->ram);
	m->top = ARENA_BUFFERS;
	m->moves = 0;
	if (!t->registers)
		reset_and_up(m, &in);
	for (unsigned n = 0; n < MAX_ACTIONS && in_left(&in); n++)
		act(m, &in, (t->registers ? register_actions : actions)[in_u8(&in) % 32]);
	end_of_input(m);
	oracle_end();
	return 0;
}
