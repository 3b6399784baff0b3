/* SPDX-License-Identifier: MIT */
/*
 * The driver's side of a virtio device, for unit tests: a machine without KVM that has one device,
 * and what a guest's driver does with it. Two such machines make a migration.
 *
 *	struct driver *d = driver_new(&virtio_foo_ops, &config, RAM_MIN);
 *
 *	driver_up(d, VIRTIO_FOO_F_BAR);			to DRIVER_OK, every queue at its largest
 *	driver_add(d, 0, bufs, n);			a chain of direct descriptors
 *	driver_kick(d, 0);				if the device wants to hear of it
 *	driver_wait_used(d, 0, &e);			runs the loop until the chain is back
 *	ck_assert(driver_irqs(d, 0));			was there an interrupt?
 *	to = driver_move(d, &config);			saved, copied, loaded; driver_resume(to)
 *	driver_free(d);
 *
 * Where a test wants what no proper driver does, driver_desc() and driver_offer() write the rings
 * as they are told. The driver's stores leave no dirty marks, as a guest's do not; so
 * driver_watch() and driver_check_dirty() around what a device does show whether it marked
 * every page that it stored into.
 *
 * The test's thread is the loop's thread, and steps the loop; no function here sleeps, and each
 * wait is bounded by DRIVER_WAIT_NS.
 */
#ifndef GODWIT_TESTS_VIRTIO_DRIVER_H
#define GODWIT_TESTS_VIRTIO_DRIVER_H

#include <check.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../virtio.h"

#define DRIVER_WAIT_NS (20 * NS_PER_SEC)
#define DRIVER_FIRST_GPA (1 * MIB) /* of what driver_alloc() gives */

/* Flags of descriptors and rings (virtio 1.2, section 2.7). */
#define DRIVER_NEXT 1U
#define DRIVER_WRITE 2U
#define DRIVER_INDIRECT 4U
#define DRIVER_NO_INTERRUPT 1U
#define DRIVER_NO_NOTIFY 1U

struct driver_desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags;
	uint16_t next;
};

struct driver_used {
	uint32_t id;
	uint32_t len;
};

/* A buffer of a chain: for the device to read, or (in) to write. */
struct driver_buf {
	uint64_t gpa;
	uint32_t len;
	bool in;
};

struct driver_queue {
	uint16_t size;
	uint64_t desc, avail, used;
	uint16_t avail_idx; /* of the next entry that the driver makes available */
	uint16_t seen;	    /* of the next used entry to look at */
	uint16_t n_free, free_head;
	uint16_t link[VIRTQ_MAX_SIZE];	    /* of free ones, and of a chain's */
	uint16_t chain_len[VIRTQ_MAX_SIZE]; /* by its head */
	uint64_t table[VIRTQ_MAX_SIZE];	    /* indirect ones, by head; kept for the next time */
	uint32_t table_len[VIRTQ_MAX_SIZE];
	uint16_t kicked; /* avail_idx at the last look at whether to kick */
	bool own_event;	 /* the test sets used_event; else each used entry interrupts */
};

struct driver {
	struct vm *vm;
	struct loop *loop;
	struct virtio *v;
	struct driver_queue queue[VIRTIO_MAX_QUEUES];
	uint64_t features; /* negotiated */
	uint64_t top;	   /* next free guest-physical address */
	atomic_uint queue_irqs[VIRTIO_MAX_QUEUES], config_irqs;
	atomic_uint barrier;
	uint8_t *watched; /* what was in RAM at driver_watch() */

	/* Of driver_new(). */
	struct vm own_vm;
	struct loop own_loop;
	struct device *own_dev;
};

/* ---- the machine ---- */

static inline void driver_on_queue(void *arg, unsigned queue)
{
	struct driver *d = arg;

	d->queue_irqs[queue]++;
}

static inline void driver_on_config(void *arg)
{
	struct driver *d = arg;

	d->config_irqs++;
}

static const struct virtio_transport driver_transport = {
	.signal_queue = driver_on_queue,
	.signal_config = driver_on_config,
};

/* As vm_add_device(): a device after init and reset; a transport that counts interrupts. */
static inline struct driver *driver_new(const struct device_ops *ops, const void *config,
					uint64_t ram_size)
{
	struct driver *d = calloc(1, sizeof(*d));
	struct errmsg err = {""};
	int ret;

	ck_assert_ptr_nonnull(d);
	ck_assert_int_eq(loop_init(&d->own_loop), 0);
	ck_assert_msg(ram_init(&d->own_vm.ram, ram_size, false, &err) == 0, "%s", err.text);
	d->own_vm.cfg.ram_size = ram_size;
	d->own_vm.cfg.vcpus = 1;
	d->own_vm.loop = &d->own_loop;
	d->own_vm.kvm_fd = d->own_vm.vm_fd = -1;
	d->own_dev = calloc(1, ops->size);
	ck_assert_ptr_nonnull(d->own_dev);
	d->own_dev->ops = ops;
	d->own_dev->vm = &d->own_vm;
	ret = ops->init(d->own_dev, config);
	ck_assert_msg(ret == 0, "init: %s", strerror(-ret));
	ops->reset(d->own_dev);
	d->vm = &d->own_vm;
	d->loop = &d->own_loop;
	d->v = container_of(d->own_dev, struct virtio, dev);
	d->top = DRIVER_FIRST_GPA;
	virtio_attach(d->v, &driver_transport, d);
	return d;
}

/* The driver of a device in a machine that the test has made, which keeps its own transport. */
static inline struct driver *driver_of(struct vm *vm, struct virtio *v)
{
	struct driver *d = calloc(1, sizeof(*d));

	ck_assert_ptr_nonnull(d);
	d->vm = vm;
	d->loop = vm->loop;
	d->v = v;
	d->top = DRIVER_FIRST_GPA;
	return d;
}

static inline void driver_free(struct driver *d)
{
	if (d->own_dev) {
		d->own_dev->ops->destroy(d->own_dev);
		free(d->own_dev);
		loop_destroy(&d->own_loop);
		ram_destroy(&d->own_vm.ram);
	}
	free(d->watched);
	free(d);
}

/* ---- the loop ---- */

static inline void driver_step(struct driver *d, uint64_t timeout_ns)
{
	int ret = loop_step(d->loop, timeout_ns);

	if (ret)
		ck_abort_msg("loop_step: %s", strerror(-ret));
}

struct driver_mark {
	struct loop_task task;
	bool ran;
};

static inline void driver_on_mark(struct loop_task *task)
{
	container_of(task, struct driver_mark, task)->ran = true;
}

/*
 * Runs the loop until whatever was kicked or posted before has been served, and what that posted,
 * and until it would sleep: for tests which expect that nothing more happens without a kick.
 */
static inline void driver_settle(struct driver *d)
{
	uint64_t deadline = now_ns() + DRIVER_WAIT_NS;

	for (unsigned round = 0; round < 4; round++) {
		struct driver_mark mark = {.task = {.run = driver_on_mark}};

		loop_post(d->loop, &mark.task);
		while (!mark.ran) {
			ck_assert_msg(now_ns() < deadline, "the loop does not come to rest");
			driver_step(d, NS_PER_SEC);
		}
	}
	while (d->loop->looks) {
		ck_assert_msg(now_ns() < deadline, "the loop does not sleep");
		driver_step(d, 0);
	}
}

/* Runs the loop until the condition holds; the test fails when it does not come true. */
#define driver_run_until(d, condition)                                                             \
	do {                                                                                       \
		uint64_t driver_deadline = now_ns() + DRIVER_WAIT_NS;                              \
		while (!(condition)) {                                                             \
			if (now_ns() >= driver_deadline)                                           \
				ck_abort_msg("never came true: %s", #condition);                   \
			driver_step(d, 10 * NS_PER_MS);                                            \
		}                                                                                  \
	} while (0)

/* ---- guest memory: stores without a dirty mark, as the guest's are ---- */

static inline void *driver_mem(struct driver *d, uint64_t gpa, uint64_t len)
{
	void *p = ram_dma(&d->vm->ram, gpa, len);

	/* Check notes each assertion that holds in a file: too slow for this one. */
	if (!p)
		ck_abort_msg("no RAM at %#llx + %llu", (unsigned long long)gpa,
			     (unsigned long long)len);
	return p;
}

/* Zeroed guest memory; an area of a page or more starts at a page. Never given back. */
static inline uint64_t driver_alloc(struct driver *d, uint64_t len)
{
	uint64_t gpa = ALIGN_UP(d->top, len >= PAGE_SIZE ? PAGE_SIZE : 16);

	d->top = gpa + len;
	memset(driver_mem(d, gpa, len), 0, len);
	return gpa;
}

/* A page or more of its own, so that its dirty marks are nobody else's. */
static inline uint64_t driver_alloc_pages(struct driver *d, uint64_t len)
{
	return driver_alloc(d, ALIGN_UP(len, PAGE_SIZE));
}

/* The driver's stores are no change that driver_check_dirty() looks for. */
static inline void driver_unwatch(struct driver *d, const void *host, uint64_t len)
{
	if (d->watched)
		memcpy(d->watched + ((const uint8_t *)host - d->vm->ram.host), host, len);
}

static inline void driver_poke(struct driver *d, uint64_t gpa, const void *buf, uint64_t len)
{
	void *p = driver_mem(d, gpa, len);

	memcpy(p, buf, len);
	driver_unwatch(d, p, len);
}

static inline void driver_peek(struct driver *d, uint64_t gpa, void *buf, uint64_t len)
{
	memcpy(buf, driver_mem(d, gpa, len), len);
}

static inline uint16_t driver_load16(struct driver *d, uint64_t gpa)
{
	return atomic_load_explicit((_Atomic uint16_t *)driver_mem(d, gpa, 2),
				    memory_order_acquire);
}

static inline void driver_store16(struct driver *d, uint64_t gpa, uint16_t value)
{
	_Atomic uint16_t *p = driver_mem(d, gpa, sizeof(value));

	atomic_store_explicit(p, value, memory_order_release);
	driver_unwatch(d, (const void *)p, sizeof(value));
}

/* ---- dirty marks ---- */

/* Takes all marks; the number there were. */
static inline unsigned driver_clean(struct driver *d)
{
	unsigned n = 0;

	for (uint64_t w = 0; w < ALIGN_UP(d->vm->ram.npages, 64ULL) / 64; w++)
		n += (unsigned)__builtin_popcountll(ram_take_own_dirty(&d->vm->ram, w));
	return n;
}

/* Is the page of gpa (below the hole) marked? The mark stays. */
static inline bool driver_is_dirty(struct driver *d, uint64_t gpa)
{
	uint64_t page = gpa / PAGE_SIZE;

	return atomic_load(&d->vm->ram.own_dirty[page / 64]) & (1ULL << (page % 64));
}

/* Takes all marks; they must be of exactly these pages. */
static inline void driver_need_dirty(struct driver *d, const uint64_t *gpas, size_t n)
{
	uint64_t pages[64] = {0};
	size_t n_pages = 0;

	ck_assert_uint_le(n, ARRAY_SIZE(pages));
	for (size_t i = 0; i < n; i++) {
		uint64_t page = gpas[i] / PAGE_SIZE;
		size_t at = 0;

		ck_assert_msg(driver_is_dirty(d, gpas[i]), "%#llx is not marked dirty",
			      (unsigned long long)gpas[i]);
		while (at < n_pages && pages[at] != page)
			at++;
		pages[at] = page;
		n_pages = MAX(n_pages, at + 1);
	}
	ck_assert_uint_eq(driver_clean(d), n_pages);
}

/* Copies what RAM holds; of the rest both stay the zeros that they are. */
static inline void driver_copy_ram(uint8_t *to, struct driver *from)
{
	struct ram *ram = &from->vm->ram;
	uint64_t n;

	for (uint64_t i = 0; ram_next_populated(ram, &i, &n); i += n)
		memcpy(to + i * PAGE_SIZE, ram->host + i * PAGE_SIZE, n * PAGE_SIZE);
}

/* Remembers RAM as it is and takes all marks: from here on only the device may store. */
static inline void driver_watch(struct driver *d)
{
	if (!d->watched)
		d->watched = calloc(1, d->vm->ram.size);
	ck_assert_ptr_nonnull(d->watched);
	driver_copy_ram(d->watched, d);
	driver_clean(d);
}

/*
 * Each page that has changed since driver_watch() must be marked (invariant: our own writes are
 * dirty too). Marks stay. The number of pages that changed.
 */
static inline unsigned driver_check_dirty(struct driver *d)
{
	struct ram *ram = &d->vm->ram;
	unsigned changed = 0;
	uint64_t n;

	ck_assert_ptr_nonnull(d->watched);
	for (uint64_t i = 0; ram_next_populated(ram, &i, &n); i += n) {
		for (uint64_t page = i; page < i + n; page++) {
			if (memcmp(d->watched + page * PAGE_SIZE, ram_page(ram, page), PAGE_SIZE) ==
			    0)
				continue;
			if (!(atomic_load(&ram->own_dirty[page / 64]) & (1ULL << (page % 64))))
				ck_abort_msg("page %llu was stored into and not marked dirty",
					     (unsigned long long)page);
			changed++;
		}
	}
	return changed;
}

/* ---- the rings, as they are told ---- */

static inline void driver_desc_at(struct driver *d, uint64_t table, unsigned i, uint64_t addr,
				  uint32_t len, unsigned flags, unsigned next)
{
	struct driver_desc desc = {
		.addr = addr, .len = len, .flags = (uint16_t)flags, .next = (uint16_t)next};

	driver_poke(d, table + i * sizeof(desc), &desc, sizeof(desc));
}

static inline void driver_desc(struct driver *d, unsigned queue, unsigned i, uint64_t addr,
			       uint32_t len, unsigned flags, unsigned next)
{
	driver_desc_at(d, d->queue[queue].desc, i, addr, len, flags, next);
}

static inline void driver_set_avail_idx(struct driver *d, unsigned queue, uint16_t idx)
{
	struct driver_queue *q = &d->queue[queue];

	q->avail_idx = idx;
	driver_store16(d, q->avail + 2, idx);
}

/* Makes a head available. */
static inline void driver_offer(struct driver *d, unsigned queue, unsigned head)
{
	struct driver_queue *q = &d->queue[queue];

	driver_store16(d, q->avail + 4 + 2ULL * (q->avail_idx & (q->size - 1U)), (uint16_t)head);
	driver_set_avail_idx(d, queue, (uint16_t)(q->avail_idx + 1));
}

static inline uint16_t driver_used_idx(struct driver *d, unsigned queue)
{
	return driver_load16(d, d->queue[queue].used + 2);
}

static inline uint16_t driver_used_flags(struct driver *d, unsigned queue)
{
	return driver_load16(d, d->queue[queue].used);
}

static inline uint16_t driver_avail_event(struct driver *d, unsigned queue)
{
	struct driver_queue *q = &d->queue[queue];

	return driver_load16(d, q->used + 4 + 8ULL * q->size);
}

static inline void driver_set_used_event(struct driver *d, unsigned queue, uint16_t event)
{
	struct driver_queue *q = &d->queue[queue];

	driver_store16(d, q->avail + 4 + 2ULL * q->size, event);
}

static inline void driver_set_avail_flags(struct driver *d, unsigned queue, uint16_t flags)
{
	driver_store16(d, d->queue[queue].avail, flags);
}

/* ---- chains, as a proper driver makes them ---- */

static inline unsigned driver_flags_of(const struct driver_buf *b, bool last)
{
	return (b->in ? DRIVER_WRITE : 0) | (last ? 0 : DRIVER_NEXT);
}

/* Makes a chain of n buffers available; its head. The queue must have room. No kick. */
static inline uint16_t driver_add(struct driver *d, unsigned queue, const struct driver_buf *b,
				  unsigned n)
{
	struct driver_queue *q = &d->queue[queue];
	uint16_t head = q->free_head, at = head;

	if (n == 0 || n > q->n_free)
		ck_abort_msg("%u descriptors of %u free ones", n, q->n_free);
	for (unsigned i = 0; i < n; i++) {
		driver_desc(d, queue, at, b[i].gpa, b[i].len, driver_flags_of(&b[i], i == n - 1),
			    q->link[at]);
		at = q->link[at];
	}
	q->free_head = at;
	q->n_free = (uint16_t)(q->n_free - n);
	q->chain_len[head] = (uint16_t)n;
	driver_offer(d, queue, head);
	return head;
}

/* The same by one indirect descriptor. */
static inline uint16_t driver_add_indirect(struct driver *d, unsigned queue,
					   const struct driver_buf *b, unsigned n)
{
	struct driver_queue *q = &d->queue[queue];
	uint16_t head = q->free_head;

	if (q->n_free == 0)
		ck_abort_msg("no free descriptor");
	if (q->table_len[head] < n) {
		q->table[head] = driver_alloc(d, n * sizeof(struct driver_desc));
		q->table_len[head] = n;
	}
	for (unsigned i = 0; i < n; i++)
		driver_desc_at(d, q->table[head], i, b[i].gpa, b[i].len,
			       driver_flags_of(&b[i], i == n - 1), i + 1);
	driver_desc(d, queue, head, q->table[head], n * (uint32_t)sizeof(struct driver_desc),
		    DRIVER_INDIRECT, 0);
	q->free_head = q->link[head];
	q->n_free--;
	q->chain_len[head] = 1;
	driver_offer(d, queue, head);
	return head;
}

/* The next used entry, if there is one; its descriptors are free again. */
static inline bool driver_take_used(struct driver *d, unsigned queue, struct driver_used *e)
{
	struct driver_queue *q = &d->queue[queue];
	uint16_t tail;

	if (driver_used_idx(d, queue) == q->seen)
		return false;
	driver_peek(d, q->used + 4 + sizeof(*e) * (q->seen & (q->size - 1U)), e, sizeof(*e));
	q->seen++;
	if (!q->own_event)
		driver_set_used_event(d, queue, q->seen);
	if (e->id >= q->size)
		ck_abort_msg("used entry %u of %u", e->id, q->size);
	if (!q->chain_len[e->id]) /* one of driver_offer()'s */
		return true;
	tail = (uint16_t)e->id;
	for (unsigned i = 1; i < q->chain_len[e->id]; i++)
		tail = q->link[tail];
	q->link[tail] = q->free_head;
	q->free_head = (uint16_t)e->id;
	q->n_free = (uint16_t)(q->n_free + q->chain_len[e->id]);
	q->chain_len[e->id] = 0;
	return true;
}

/* Runs the loop until there is one. */
static inline struct driver_used driver_wait_used(struct driver *d, unsigned queue)
{
	struct driver_used e = {0};

	driver_run_until(d, driver_take_used(d, queue, &e));
	return e;
}

/* ---- notifications ---- */

/* A kick whether or not it is wanted, as KVM delivers it: through the eventfd. */
static inline void driver_kick_always(struct driver *d, unsigned queue)
{
	uint64_t one = 1;

	if (write(d->v->queue[queue].kick_fd, &one, sizeof(one)) != sizeof(one))
		ck_abort_msg("the kick of queue %u: %s", queue, strerror(errno));
}

/* Does the device want a kick for what was made available since the last look? */
static inline bool driver_wants_kick(struct driver *d, unsigned queue)
{
	struct driver_queue *q = &d->queue[queue];
	uint16_t old = q->kicked, now = q->avail_idx;

	atomic_fetch_add(&d->barrier, 1); /* TSan knows no fences */
	q->kicked = now;
	if (now == old)
		return false;
	if (d->features & VIRTIO_RING_EVENT_IDX)
		return (uint16_t)(now - driver_avail_event(d, queue) - 1) < (uint16_t)(now - old);
	return !(driver_used_flags(d, queue) & DRIVER_NO_NOTIFY);
}

/* A kick if it is wanted. */
static inline bool driver_kick(struct driver *d, unsigned queue)
{
	bool wanted = driver_wants_kick(d, queue);

	if (wanted)
		driver_kick_always(d, queue);
	return wanted;
}

/* Interrupts for used buffers of a queue, or for the configuration, since the last call. */
static inline unsigned driver_irqs(struct driver *d, unsigned queue)
{
	return atomic_exchange(&d->queue_irqs[queue], 0);
}

static inline unsigned driver_config_irqs(struct driver *d)
{
	return atomic_exchange(&d->config_irqs, 0);
}

/* ---- bringing it up ---- */

/* RESET to FEATURES_OK with those of `wanted` that are offered, VERSION_1 among them. */
static inline void driver_negotiate(struct driver *d, uint64_t wanted)
{
	uint64_t take = (wanted | VIRTIO_VERSION_1) & d->v->offered;

	virtio_set_status(d->v, 0);
	virtio_set_status(d->v, VIRTIO_ACKNOWLEDGE);
	virtio_set_status(d->v, VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER);
	virtio_set_features(d->v, 0, (uint32_t)take);
	virtio_set_features(d->v, 1, (uint32_t)(take >> 32));
	virtio_set_status(d->v, VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER | VIRTIO_FEATURES_OK);
	ck_assert_uint_ne(d->v->status & VIRTIO_FEATURES_OK, 0);
	ck_assert_uint_eq(d->v->features, take);
	d->features = take;
}

/* Gives a queue new rings of that many entries, each on pages of its own, and readies it. */
static inline void driver_queue_up(struct driver *d, unsigned queue, uint16_t size)
{
	struct driver_queue *q = &d->queue[queue];
	struct virtq *vq = &d->v->queue[queue].q;

	ck_assert_uint_le(size, VIRTQ_MAX_SIZE);
	*q = (struct driver_queue){.size = size, .n_free = size};
	for (unsigned i = 0; i < size; i++)
		q->link[i] = (uint16_t)(i + 1);
	q->desc = driver_alloc_pages(d, 16ULL * size);
	q->avail = driver_alloc_pages(d, 6 + 2ULL * size);
	q->used = driver_alloc_pages(d, 6 + 8ULL * size);
	pthread_mutex_lock(&d->v->lock);
	vq->size = size;
	vq->desc = q->desc;
	vq->avail = q->avail;
	vq->used = q->used;
	pthread_mutex_unlock(&d->v->lock);
	virtio_set_ready(d->v, queue, true);
	ck_assert(vq->ready);
}

static inline void driver_ok(struct driver *d)
{
	virtio_set_status(d->v, VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER | VIRTIO_FEATURES_OK |
					VIRTIO_DRIVER_OK);
	ck_assert_uint_ne(d->v->status & VIRTIO_DRIVER_OK, 0);
}

/* All of it: every queue at its largest, and the loop has served what there was to serve. */
static inline void driver_up(struct driver *d, uint64_t wanted)
{
	driver_negotiate(d, wanted);
	for (unsigned i = 0; i < d->v->n_queues; i++)
		driver_queue_up(d, i, d->v->queue[i].q.max);
	driver_ok(d);
	driver_settle(d);
}

static inline bool driver_needs_reset(struct driver *d)
{
	bool needs;

	pthread_mutex_lock(&d->v->lock);
	needs = d->v->status & VIRTIO_NEEDS_RESET;
	pthread_mutex_unlock(&d->v->lock);
	return needs;
}

/* ---- at rest, and elsewhere ---- */

struct driver_quiesce_job {
	struct device *dev;
	uint64_t deadline_ns;
	int ret;
	atomic_bool done;
};

static inline void *driver_quiesce_thread(void *arg)
{
	struct driver_quiesce_job *job = arg;

	job->ret = job->dev->ops->quiesce(job->dev, job->deadline_ns);
	job->done = true;
	return NULL;
}

/* Quiesces off the loop's thread, while the loop runs; what quiesce says. */
static inline int driver_quiesce_within(struct driver *d, uint64_t timeout_ns)
{
	struct driver_quiesce_job job = {.dev = &d->v->dev, .deadline_ns = now_ns() + timeout_ns};
	pthread_t thread;

	ck_assert_int_eq(pthread_create(&thread, NULL, driver_quiesce_thread, &job), 0);
	driver_run_until(d, job.done);
	pthread_join(thread, NULL);
	return job.ret;
}

static inline void driver_quiesce(struct driver *d)
{
	ck_assert_int_eq(driver_quiesce_within(d, DRIVER_WAIT_NS), 0);
}

static inline void driver_resume(struct driver *d)
{
	d->v->dev.ops->resume(&d->v->dev);
	driver_settle(d);
}

/* The section's body, of a device at rest. sb_free() it. */
static inline void driver_save(struct driver *d, struct sbuf *s)
{
	const struct device_ops *ops = d->v->dev.ops;

	sb_init_save(s);
	s->version = ops->version;
	ops->fields(&d->v->dev, s);
	ck_assert_int_eq(s->err, 0);
}

static inline void driver_save_shape(struct driver *d, struct sbuf *s)
{
	const struct device_ops *ops = d->v->dev.ops;

	sb_init_save(s);
	s->version = ops->version;
	ops->shape(&d->v->dev, s, NULL);
	ck_assert_int_eq(s->err, 0);
}

/* Loads into a device that is fresh and at rest, up to and with loaded(); 0 or -errno. */
static inline int driver_load(struct driver *d, const void *data, size_t len)
{
	const struct device_ops *ops = d->v->dev.ops;
	struct sbuf s;

	sb_init_load(&s, data, len);
	s.version = ops->version;
	ops->fields(&d->v->dev, &s);
	sb_end(&s);
	if (s.err)
		return s.err;
	return ops->loaded ? ops->loaded(&d->v->dev) : 0;
}

/* What a device says to another one's shape: 0 or -errno with the reason in err. */
static inline int driver_load_shape(struct driver *d, const void *data, size_t len,
				    struct errmsg *err)
{
	const struct device_ops *ops = d->v->dev.ops;
	struct sbuf s;

	sb_init_load(&s, data, len);
	s.version = ops->version;
	ops->shape(&d->v->dev, &s, err);
	sb_end(&s);
	return s.err;
}

/*
 * A second machine with the first one's memory and the driver's own bookkeeping, its device built
 * with config and at rest: what a destination is before the state comes.
 */
static inline struct driver *driver_arriving(struct driver *from, const void *config)
{
	struct driver *d = driver_new(from->v->dev.ops, config, from->vm->ram.size);

	driver_quiesce(d);
	driver_copy_ram(d->vm->ram.host, from);
	memcpy(d->queue, from->queue, sizeof(d->queue));
	d->features = from->features;
	d->top = from->top;
	return d;
}

/*
 * Quiesces the device, saves it and loads it into a second machine, which is not resumed yet. The
 * first stays at rest: driver_resume() it, or driver_free().
 */
static inline struct driver *driver_move(struct driver *from, const void *config)
{
	struct errmsg err = {""};
	struct sbuf shape, state;
	struct driver *d;
	int ret;

	driver_save_shape(from, &shape);
	driver_quiesce(from);
	driver_save(from, &state);
	d = driver_arriving(from, config);
	ret = driver_load_shape(d, shape.data, shape.len, &err);
	ck_assert_msg(ret == 0, "shape: %s: %s", strerror(-ret), err.text);
	ret = driver_load(d, state.data, state.len);
	ck_assert_msg(ret == 0, "load: %s", strerror(-ret));
	sb_free(&shape);
	sb_free(&state);
	return d;
}

#endif
