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
#include "machine_parts.h"
#include "oracle.h"

#define SIZE_UP_MAX 64U /* of a ring that has its place in the arena */

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
			deadline = now_ns() + MACHINE_WAIT_NS;
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

void machine_on_vcpu(struct fuzz_machine *m, void (*fn)(struct fuzz_machine *m), const char *what)
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

void machine_reset(struct fuzz_machine *m)
{
	/* With nothing to wait for it does not. */
	if (m->side->v->inflight)
		machine_on_vcpu(m, do_reset, "the end of a reset");
	else
		do_reset(m);
	oracle_forget_chains();
	need_power_on_state(m);
	memset(m->queue, 0, sizeof(m->queue));
}

void machine_set_reg(struct fuzz_machine *m, uint64_t offset, unsigned size, uint64_t value)
{
	if (offset == REG_STATUS && size == 4 && !(value & 0xff))
		machine_reset(m);
	else
		bus_write(&m->side->vm.mmio, virtio_mmio_gpa(0) + offset, size, value);
}

void machine_set(struct fuzz_machine *m, uint64_t offset, uint32_t value)
{
	machine_set_reg(m, offset, 4, value);
}

static void set64(struct fuzz_machine *m, uint64_t offset, uint64_t value)
{
	machine_set(m, offset, (uint32_t)value);
	machine_set(m, offset + 4, (uint32_t)(value >> 32));
}

void machine_set_queue(struct fuzz_machine *m, unsigned queue, const struct machine_queue *q)
{
	machine_set(m, REG_QUEUE_SEL, queue);
	machine_set(m, REG_QUEUE_SIZE, q->size);
	set64(m, REG_QUEUE_DESC, q->desc);
	set64(m, REG_QUEUE_DRIVER, q->avail);
	set64(m, REG_QUEUE_DEVICE, q->used);
	machine_set(m, REG_QUEUE_READY, 1);
}

static void queue_up(struct fuzz_machine *m, unsigned queue, uint16_t size)
{
	static const uint8_t zeros[0x800];
	struct machine_queue *q = &m->queue[queue];
	uint32_t max;

	machine_set(m, REG_QUEUE_SEL, queue);
	max = (uint32_t)machine_reg(m, REG_QUEUE_SIZE_MAX, 4);
	*q = (struct machine_queue){
		.size = (uint16_t)MIN(MIN(size, max), SIZE_UP_MAX),
		.desc = ARENA + queue * sizeof(zeros),
	};
	q->avail = q->desc + 16 * SIZE_UP_MAX;
	q->used = q->avail + 0x100;
	oracle_store(q->desc, zeros, sizeof(zeros));
	machine_set_queue(m, queue, q);
}

static void negotiate(struct fuzz_machine *m, uint64_t without)
{
	uint64_t take = m->side->v->offered & ~without;
	uint32_t status = VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER;

	machine_set(m, REG_STATUS, VIRTIO_ACKNOWLEDGE);
	machine_set(m, REG_STATUS, status);
	for (unsigned word = 0; word < 2; word++) {
		machine_set(m, REG_DRIVER_FEATURES_SEL, word);
		machine_set(m, REG_DRIVER_FEATURES, (uint32_t)(take >> (32 * word)));
	}
	machine_set(m, REG_STATUS, status | VIRTIO_FEATURES_OK);
}

void machine_up(struct fuzz_machine *m, uint64_t without, uint16_t size)
{
	negotiate(m, without);
	for (unsigned i = 0; i < m->side->v->n_queues; i++)
		queue_up(m, i, size);
	machine_set(m, REG_STATUS, (uint32_t)machine_reg(m, REG_STATUS, 4) | VIRTIO_DRIVER_OK);
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

void machine_store_desc(uint64_t table, unsigned i, uint64_t addr, uint32_t len, unsigned flags,
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

void machine_set_avail_idx(struct machine_queue *q, uint16_t idx)
{
	q->avail_idx = idx;
	oracle_store(q->avail + 2, &idx, sizeof(idx));
}

void machine_offer(struct machine_queue *q, uint16_t head)
{
	if (!q->size)
		return;
	oracle_store(q->avail + 4 + 2ULL * (q->avail_idx % q->size), &head, sizeof(head));
	machine_set_avail_idx(q, (uint16_t)(q->avail_idx + 1));
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
	uint64_t table = ARENA_TABLES + 16ULL * MACHINE_PARTS * (head % 16);

	for (unsigned i = 0; i < n; i++) {
		unsigned flags = (b[i].in ? DESC_IN : 0) | (i + 1 < n ? DESC_NEXT : 0);

		if (indirect) {
			machine_store_desc(table, i, b[i].gpa, b[i].len, flags, i + 1);
		} else {
			uint16_t next = i + 1 < n ? take_desc(q) : 0;

			machine_store_desc(q->desc, at, b[i].gpa, b[i].len, flags, next);
			at = next;
		}
	}
	if (indirect)
		machine_store_desc(q->desc, head, table, 16 * n, DESC_INDIRECT, 0);
	machine_offer(q, head);
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
