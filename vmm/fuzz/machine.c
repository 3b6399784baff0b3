/* SPDX-License-Identifier: MIT */
#include "machine.h"

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "../kvm.h"
#include "../virtio_mmio.h"
#include "oracle.h"

#define WAIT_NS (10 * NS_PER_SEC)
#define MAX_MOVES 2U
#define MAX_ACTIONS 200U
#define SIZE_UP_MAX 64U /* of a ring that has its place in the arena */
#define PARTS_MAX 8U

enum {
	REG_MAGIC = 0x00,
	REG_DEVICE_FEATURES = 0x10,
	REG_DEVICE_FEATURES_SEL = 0x14,
	REG_DRIVER_FEATURES = 0x20,
	REG_DRIVER_FEATURES_SEL = 0x24,
	REG_QUEUE_SEL = 0x30,
	REG_QUEUE_SIZE_MAX = 0x34,
	REG_QUEUE_SIZE = 0x38,
	REG_QUEUE_READY = 0x44,
	REG_QUEUE_NOTIFY = 0x50,
	REG_STATUS = 0x70,
	REG_QUEUE_DESC = 0x80,
	REG_QUEUE_DRIVER = 0x90,
	REG_QUEUE_DEVICE = 0xa0,
	REG_CONFIG = 0x100,
};

int __wrap_kvm_ioeventfd(int vm_fd, uint64_t gpa, uint32_t len, uint64_t value, int fd, bool on);
int __wrap_kvm_irqfd(int vm_fd, uint32_t gsi, int fd);

int __wrap_kvm_ioeventfd(int vm_fd, uint64_t gpa, uint32_t len, uint64_t value, int fd, bool on)
{
	(void)vm_fd, (void)gpa, (void)len, (void)value, (void)fd, (void)on;
	return 0;
}

int __wrap_kvm_irqfd(int vm_fd, uint32_t gsi, int fd)
{
	(void)vm_fd, (void)gsi, (void)fd;
	return 0;
}

/* ---- the loop, and a thread beside it ---- */

struct mark {
	struct loop_task task;
	bool ran;
};

static void on_mark(struct loop_task *task)
{
	container_of(task, struct mark, task)->ran = true;
}

static void step(struct fuzz_machine *m, uint64_t timeout_ns)
{
	int ret = loop_step(m->loop, timeout_ns);

	fuzz_need(ret == 0, "the loop: %s", strerror(-ret));
}

void machine_until(struct fuzz_machine *m, bool (*done)(void *arg), void *arg, const char *what)
{
	uint64_t deadline = 0;

	while (!done(arg)) {
		step(m, NS_PER_MS / 4);
		if (!deadline)
			deadline = now_ns() + WAIT_NS;
		fuzz_need(now_ns() < deadline, "never came true: %s", what);
	}
}

/* Whatever was kicked or posted, and twice what came of that. */
void machine_settle(struct fuzz_machine *m)
{
	for (unsigned round = 0; round < 3; round++) {
		struct mark mark = {.task = {.run = on_mark}};

		loop_post(m->loop, &mark.task);
		while (!mark.ran)
			step(m, NS_PER_SEC);
	}
}

/* One for the process: what runs on it is waited for. */
static struct {
	bool there;
	sem_t go;
	void (*fn)(struct fuzz_machine *m);
	struct fuzz_machine *m;
	struct loop_task wake;
	atomic_bool done;
} vcpu;

static void on_wake(struct loop_task *task)
{
	(void)task;
}

static void *vcpu_thread(void *arg)
{
	for (;;) {
		struct loop *loop;

		while (sem_wait(&vcpu.go))
			;
		loop = vcpu.m->loop;
		vcpu.fn(vcpu.m);
		vcpu.done = true;
		loop_post(loop, &vcpu.wake);
	}
	return arg;
}

static bool vcpu_done(void *arg)
{
	(void)arg;
	return vcpu.done;
}

static void on_vcpu(struct fuzz_machine *m, void (*fn)(struct fuzz_machine *m), const char *what)
{
	pthread_t thread;

	if (!vcpu.there) {
		vcpu.wake.run = on_wake;
		sem_init(&vcpu.go, 0, 0);
		fuzz_need(!pthread_create(&thread, NULL, vcpu_thread, NULL), "no thread");
		vcpu.there = true;
	}
	vcpu.fn = fn;
	vcpu.m = m;
	vcpu.done = false;
	sem_post(&vcpu.go);
	machine_until(m, vcpu_done, NULL, what);
}

/* ---- registers ---- */

uint64_t machine_reg(struct fuzz_machine *m, uint64_t offset, unsigned size)
{
	return bus_read(&m->side->vm.mmio, virtio_mmio_gpa(0) + offset, size);
}

static void do_reset(struct fuzz_machine *m)
{
	bus_write(&m->side->vm.mmio, virtio_mmio_gpa(0) + REG_STATUS, 4, 0);
}

static void need_power_on_state(struct fuzz_machine *m)
{
	const struct virtio *v = m->side->v;

	fuzz_need(v->inflight == 0 && !v->resetting, "%u in flight after a reset", v->inflight);
	fuzz_need(v->status == 0 && v->features == 0, "status %#x, features %#llx after a reset",
		  v->status, (unsigned long long)v->features);
	for (unsigned i = 0; i < v->n_queues; i++) {
		const struct virtq *q = &v->queue[i].q;

		fuzz_need(!q->ready && !q->next_avail && !q->next_used && !q->desc && !q->avail &&
				  !q->used,
			  "queue %u is not new after a reset", i);
	}
}

static void reset(struct fuzz_machine *m)
{
	/* With nothing to wait for it does not. */
	if (m->side->v->inflight)
		on_vcpu(m, do_reset, "the end of a reset");
	else
		do_reset(m);
	oracle_forget_chains();
	need_power_on_state(m);
	memset(m->queue, 0, sizeof(m->queue));
}

void machine_set_reg(struct fuzz_machine *m, uint64_t offset, unsigned size, uint64_t value)
{
	if (offset == REG_STATUS && size == 4 && !(value & 0xff))
		reset(m);
	else
		bus_write(&m->side->vm.mmio, virtio_mmio_gpa(0) + offset, size, value);
}

static void set(struct fuzz_machine *m, uint64_t offset, uint32_t value)
{
	machine_set_reg(m, offset, 4, value);
}

static void set64(struct fuzz_machine *m, uint64_t offset, uint64_t value)
{
	set(m, offset, (uint32_t)value);
	set(m, offset + 4, (uint32_t)(value >> 32));
}

static void set_queue(struct fuzz_machine *m, unsigned queue, const struct machine_queue *q)
{
	set(m, REG_QUEUE_SEL, queue);
	set(m, REG_QUEUE_SIZE, q->size);
	set64(m, REG_QUEUE_DESC, q->desc);
	set64(m, REG_QUEUE_DRIVER, q->avail);
	set64(m, REG_QUEUE_DEVICE, q->used);
	set(m, REG_QUEUE_READY, 1);
}

static void queue_up(struct fuzz_machine *m, unsigned queue, uint16_t size)
{
	static const uint8_t zeros[0x800];
	struct machine_queue *q = &m->queue[queue];
	uint32_t max;

	set(m, REG_QUEUE_SEL, queue);
	max = (uint32_t)machine_reg(m, REG_QUEUE_SIZE_MAX, 4);
	*q = (struct machine_queue){
		.size = (uint16_t)MIN(MIN(size, max), SIZE_UP_MAX),
		.desc = ARENA + queue * sizeof(zeros),
	};
	q->avail = q->desc + 16 * SIZE_UP_MAX;
	q->used = q->avail + 0x100;
	oracle_store(q->desc, zeros, sizeof(zeros));
	set_queue(m, queue, q);
}

static void negotiate(struct fuzz_machine *m, uint64_t without)
{
	uint64_t take = m->side->v->offered & ~without;
	uint32_t status = VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER;

	set(m, REG_STATUS, VIRTIO_ACKNOWLEDGE);
	set(m, REG_STATUS, status);
	for (unsigned word = 0; word < 2; word++) {
		set(m, REG_DRIVER_FEATURES_SEL, word);
		set(m, REG_DRIVER_FEATURES, (uint32_t)(take >> (32 * word)));
	}
	set(m, REG_STATUS, status | VIRTIO_FEATURES_OK);
}

void machine_up(struct fuzz_machine *m, uint64_t without, uint16_t size)
{
	negotiate(m, without);
	for (unsigned i = 0; i < m->side->v->n_queues; i++)
		queue_up(m, i, size);
	set(m, REG_STATUS, (uint32_t)machine_reg(m, REG_STATUS, 4) | VIRTIO_DRIVER_OK);
}

/* ---- chains ---- */

uint64_t machine_gpa(struct fuzz_in *in)
{
	unsigned where = in_u8(in);
	uint64_t offset = in_u16(in);

	switch (where % 8) {
	case 0:
	case 1:
	case 2:
		return ARENA + offset;
	case 3:
		return RAM_MIN - offset;
	case 4:
		return offset;
	case 5:
		return virtio_mmio_gpa(0) + offset;
	case 6:
		return RAM_HIGH_BASE + offset;
	default:
		return UINT64_MAX - offset;
	}
}

uint32_t machine_len(struct fuzz_in *in)
{
	static const uint32_t odd[] = {
		UINT32_MAX, 1U << 31, UINT32_MAX - 15, (uint32_t)RAM_MIN, 1U << 16,
		1U << 20,   0,	      1U << 24,
	};
	unsigned len = in_u16(in);

	return len < 0xff00 ? len : odd[len % ARRAY_SIZE(odd)];
}

static uint64_t alloc(struct fuzz_machine *m, uint32_t len)
{
	uint64_t at = m->top;

	if (at + len > ARENA + ARENA_SIZE)
		at = ARENA_BUFFERS;
	m->top = ALIGN_UP(at + len, 8ULL);
	return at;
}

struct fuzz_buf machine_out(struct fuzz_machine *m, const void *data, uint32_t len)
{
	struct fuzz_buf b = {.gpa = alloc(m, len), .len = len};

	oracle_store(b.gpa, data, len);
	return b;
}

struct fuzz_buf machine_room(struct fuzz_machine *m, uint32_t len)
{
	return (struct fuzz_buf){.gpa = alloc(m, len), .len = len, .in = true};
}

static void store_desc(uint64_t table, unsigned i, uint64_t addr, uint32_t len, unsigned flags,
		       unsigned next)
{
	uint8_t d[16];
	uint16_t f = (uint16_t)flags, n = (uint16_t)next;

	memcpy(d, &addr, 8);
	memcpy(d + 8, &len, 4);
	memcpy(d + 12, &f, 2);
	memcpy(d + 14, &n, 2);
	oracle_store(table + 16ULL * i, d, sizeof(d));
}

static void set_avail_idx(struct machine_queue *q, uint16_t idx)
{
	q->avail_idx = idx;
	oracle_store(q->avail + 2, &idx, sizeof(idx));
}

static void offer(struct machine_queue *q, uint16_t head)
{
	if (!q->size)
		return;
	oracle_store(q->avail + 4 + 2ULL * (q->avail_idx % q->size), &head, sizeof(head));
	set_avail_idx(q, (uint16_t)(q->avail_idx + 1));
}

/* Descriptors are taken in turn: whether one is free is the guest's own affair. */
static uint16_t take_desc(struct machine_queue *q)
{
	uint16_t at = q->next_desc;

	q->next_desc = (uint16_t)(q->size ? (at + 1) % q->size : 0);
	return at;
}

#define DESC_NEXT 1U
#define DESC_IN 2U
#define DESC_INDIRECT 4U

void machine_chain(struct fuzz_machine *m, unsigned queue, const struct fuzz_buf *b, unsigned n,
		   bool indirect)
{
	struct machine_queue *q = &m->queue[queue];
	uint16_t head = take_desc(q), at = head;
	uint64_t table = ARENA_TABLES + 16ULL * PARTS_MAX * (head % 16);

	for (unsigned i = 0; i < n; i++) {
		unsigned flags = (b[i].in ? DESC_IN : 0) | (i + 1 < n ? DESC_NEXT : 0);

		if (indirect) {
			store_desc(table, i, b[i].gpa, b[i].len, flags, i + 1);
		} else {
			uint16_t next = i + 1 < n ? take_desc(q) : 0;

			store_desc(q->desc, at, b[i].gpa, b[i].len, flags, next);
			at = next;
		}
	}
	if (indirect)
		store_desc(q->desc, head, table, 16 * n, DESC_INDIRECT, 0);
	offer(q, head);
}

void machine_kick(struct fuzz_machine *m, unsigned queue)
{
	uint64_t one = 1;

	if (write(m->side->v->queue[queue].kick_fd, &one, sizeof(one)) != sizeof(one))
		fuzz_bug("a kick: %s", strerror(errno));
}

struct wait_used {
	struct machine_queue *q;
	uint32_t len;
};

static bool used_came(void *arg)
{
	struct wait_used *w = arg;
	struct machine_queue *q = w->q;
	uint16_t idx = 0;

	oracle_load(q->used + 2, &idx, sizeof(idx));
	if (idx == q->seen)
		return false;
	oracle_load(q->used + 4 + 8ULL * (q->seen % q->size) + 4, &w->len, sizeof(w->len));
	q->seen++;
	return true;
}

uint32_t machine_wait_used(struct fuzz_machine *m, unsigned queue)
{
	struct wait_used w = {.q = &m->queue[queue]};

	machine_until(m, used_came, &w, "an answer");
	return w.len;
}

/* ---- at rest, and elsewhere ---- */

static int quiesce_ret;

static void do_quiesce(struct fuzz_machine *m)
{
	struct machine_side *s = m->side;

	quiesce_ret = s->dev->ops->quiesce(s->dev, now_ns() + WAIT_NS);
	if (quiesce_ret == 0)
		quiesce_ret = s->mmio->ops->quiesce(s->mmio, now_ns() + WAIT_NS);
}

static void quiesce(struct fuzz_machine *m)
{
	on_vcpu(m, do_quiesce, "rest");
	fuzz_need(quiesce_ret == 0, "it does not come to rest: %s", strerror(-quiesce_ret));
	fuzz_need(m->side->v->inflight == 0, "%u in flight at rest", m->side->v->inflight);
	/* From here on a store into what the guest had offered is one too many. */
	oracle_check("before a pause");
}

static void resume(struct fuzz_machine *m)
{
	machine_settle(m);
	oracle_check("at rest");
	m->side->dev->ops->resume(m->side->dev);
	m->side->mmio->ops->resume(m->side->mmio);
}

void machine_at_rest(struct fuzz_machine *m, void (*fn)(struct fuzz_machine *m))
{
	quiesce(m);
	fn(m);
	resume(m);
}

static struct device *add_device(struct machine_side *s, const struct device_ops *ops,
				 const void *config)
{
	struct device *d = calloc(1, ops->size);
	int ret;

	fuzz_need(d, "no memory");
	d->ops = ops;
	d->vm = &s->vm;
	ret = ops->init(d, config);
	fuzz_need(ret == 0, "%s: init: %s", ops->tag, strerror(-ret));
	ops->reset(d);
	return d;
}

static void make_side(struct fuzz_machine *m)
{
	struct machine_side *s = calloc(1, sizeof(*s));
	struct virtio_mmio_config mmio = {0};

	fuzz_need(s, "no memory");
	s->vm.ram = m->ram;
	s->vm.loop = m->loop;
	s->vm.cfg.ram_size = m->ram.size;
	s->vm.kvm_fd = s->vm.vm_fd = -1;
	s->dev = add_device(s, m->target->ops, m->config);
	mmio.v = s->v = container_of(s->dev, struct virtio, dev);
	s->mmio = add_device(s, &virtio_mmio_ops, &mmio);
	m->side = s;
}

static void destroy_side(struct machine_side *s)
{
	s->mmio->ops->destroy(s->mmio);
	free(s->mmio);
	s->dev->ops->destroy(s->dev);
	free(s->dev);
	free(s);
}

static void acquire(struct fuzz_machine *m)
{
	struct device *d = m->side->dev;
	struct errmsg err = {""};
	int ret = d->ops->acquire ? d->ops->acquire(d, &err) : 0;

	fuzz_need(ret == 0, "acquire: %s", err.text);
}

static void release(struct machine_side *s)
{
	if (s->dev->ops->release)
		s->dev->ops->release(s->dev);
}

static void save(struct device *d, struct sbuf *s)
{
	sb_init_save(s);
	s->version = d->ops->version;
	d->ops->fields(d, s);
	fuzz_need(s->err == 0, "%s: saving: %s", d->ops->tag, strerror(-s->err));
}

static int load(struct device *d, struct sbuf *from)
{
	struct sbuf s;

	sb_init_load(&s, from->data, from->len);
	s.version = d->ops->version;
	d->ops->fields(d, &s);
	sb_end(&s);
	if (s.err)
		return s.err;
	return d->ops->loaded ? d->ops->loaded(d) : 0;
}

static void move_shape(struct device *from, struct device *to)
{
	struct errmsg err = {""};
	struct sbuf s, l;

	if (!from->ops->shape)
		return;
	sb_init_save(&s);
	s.version = from->ops->version;
	from->ops->shape(from, &s, NULL);
	sb_init_load(&l, s.data, s.len);
	l.version = s.version;
	to->ops->shape(to, &l, &err);
	sb_end(&l);
	fuzz_need(l.err == 0, "the same device is refused: %s: %s", strerror(-l.err), err.text);
	sb_free(&s);
}

/* What was loaded is what was saved. */
static void need_same(struct device *d, const struct sbuf *was)
{
	struct sbuf s;

	save(d, &s);
	fuzz_need(s.len == was->len && memcmp(s.data, was->data, s.len) == 0,
		  "%s: a state is not the same once loaded", d->ops->tag);
	sb_free(&s);
}

/*
 * To a machine that has the same memory. With a stream that lies the other side may refuse it, and
 * then this one goes on; what it does not refuse it must be able to live with.
 */
static void move(struct fuzz_machine *m, struct fuzz_in *in)
{
	struct machine_side *from = m->side;
	unsigned lies = in_u8(in) % 8;
	struct sbuf dev, mmio;
	int ret;

	if (lies > 4)
		lies = 0;
	if (m->moves++ == MAX_MOVES)
		return;
	if (m->target->before_move)
		m->target->before_move(m);
	quiesce(m);
	save(from->dev, &dev);
	save(from->mmio, &mmio);
	for (unsigned i = 0; i < lies; i++) {
		size_t at = in_u16(in) % dev.len;

		dev.data[at] ^= in_u8(in);
	}
	make_side(m);
	quiesce(m);
	move_shape(from->dev, m->side->dev);
	ret = load(m->side->dev, &dev);
	if (ret == 0)
		ret = load(m->side->mmio, &mmio);
	fuzz_need(ret == 0 || lies, "a state that was saved does not load: %s", strerror(-ret));
	if (lies)
		oracle_state_lies();
	else if (!m->target->unordered)
		need_same(m->side->dev, &dev);
	sb_free(&dev);
	sb_free(&mmio);
	if (ret) {
		destroy_side(m->side);
		m->side = from;
	} else {
		release(from);
		acquire(m);
		destroy_side(from);
	}
	resume(m);
}

/* ---- actions ---- */

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
	unsigned n = 1 + (shape >> 2) % PARTS_MAX;
	struct fuzz_buf b[PARTS_MAX];

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
	store_desc(a == DESC ? q->desc : ARENA_TABLES, i, addr, len, flags & 7, next);
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

	set(m, REG_QUEUE_SEL, queue);
	if (how & 1)
		set(m, REG_QUEUE_READY, 0);
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
	set_queue(m, queue, q);
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
		fuzz_need(!v->queue[i].q.ready || (fixed && v->status) ||
				  (v->status & VIRTIO_FEATURES_OK),
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
	quiesce(m);
	for (unsigned n = in_u8(in) % 3; n > 0 && m->target->host; n--)
		m->target->host(m, in);
	resume(m);
}

static void reset_and_up(struct fuzz_machine *m, struct fuzz_in *in)
{
	/* Bits: no EVENT_IDX, no INDIRECT, nothing of the device's own, then ring sizes. */
	unsigned how = in_u8(in);
	uint64_t without = (how & 1 ? VIRTIO_RING_EVENT_IDX : 0) |
			   (how & 2 ? VIRTIO_RING_INDIRECT : 0) |
			   (how & 4 ? VIRTIO_RING_EVENT_IDX - 1 : 0);

	reset(m);
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
		offer(&m->queue[queue], in_u8(in));
		break;
	case AVAIL:
		queue = in_u8(in) % v->n_queues;
		set_avail_idx(&m->queue[queue], in_u16(in));
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
		set(m, REG_QUEUE_SEL, (queue >> 1) % (v->n_queues + 1));
		set(m, REG_QUEUE_READY, queue & 1);
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
		reset(m);
		break;
	case PAUSE:
		at_rest(m, in);
		break;
	case MOVE:
		move(m, in);
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
	reset(m);
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
	reset(m);
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
	make_side(m);
	acquire(m);
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
