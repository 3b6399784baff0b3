/* SPDX-License-Identifier: MIT */
/*
 * The registers, without KVM: its two ends, ioeventfds and irqfds, are this file's, so that each
 * edge can be counted. test-virtio-mmio-kvm.c has the real ones.
 */
#include "../virtio_mmio.h"

#include <fcntl.h>
#include <poll.h>

#include "../kvm.h"
#include "check-main.h"
#include "fake-virtio.h"
#include "virtio-driver.h"

#define SLOT 3U

enum {
	MAGIC = 0x00,
	VERSION = 0x04,
	DEVICE_ID = 0x08,
	VENDOR_ID = 0x0c,
	DEVICE_FEATURES = 0x10,
	DEVICE_FEATURES_SEL = 0x14,
	DRIVER_FEATURES = 0x20,
	DRIVER_FEATURES_SEL = 0x24,
	QUEUE_SEL = 0x30,
	QUEUE_SIZE_MAX = 0x34,
	QUEUE_SIZE = 0x38,
	QUEUE_READY = 0x44,
	QUEUE_NOTIFY = 0x50,
	INTERRUPT_STATUS = 0x60,
	INTERRUPT_ACK = 0x64,
	STATUS = 0x70,
	DESC_LOW = 0x80,
	DESC_HIGH = 0x84,
	DRIVER_LOW = 0x90,
	DRIVER_HIGH = 0x94,
	DEVICE_LOW = 0xa0,
	DEVICE_HIGH = 0xa4,
	SHM_LEN_LOW = 0xb0,
	SHM_LEN_HIGH = 0xb4,
	SHM_BASE_LOW = 0xb8,
	SHM_BASE_HIGH = 0xbc,
	GENERATION = 0xfc,
	CONFIG = 0x100,
};

#define USED 1U
#define CHANGED 2U

/* ---- KVM's ends ---- */

static struct {
	uint64_t gpa, value;
	int fd;
} kicks[16];
static unsigned n_kicks, n_irqs, calls, fail_at;
static uint32_t irq_gsi;
static int irq_fd;

int kvm_ioeventfd(int vm_fd, uint64_t gpa, uint32_t len, uint64_t value, int fd, bool on)
{
	(void)vm_fd;
	ck_assert_uint_eq(len, 4);
	ck_assert_int_ge(fcntl(fd, F_GETFD), 0);
	if (on) {
		if (++calls == fail_at)
			return -ENOSPC;
		kicks[n_kicks].gpa = gpa;
		kicks[n_kicks].value = value;
		kicks[n_kicks++].fd = fd;
		return 0;
	}
	for (unsigned i = 0; i < n_kicks; i++) {
		if (kicks[i].gpa == gpa && kicks[i].value == value && kicks[i].fd == fd) {
			kicks[i] = kicks[--n_kicks];
			return 0;
		}
	}
	ck_abort_msg("an ioeventfd that is not there is taken away");
}

int kvm_irqfd(int vm_fd, uint32_t gsi, int fd)
{
	(void)vm_fd;
	if (++calls == fail_at)
		return -EBUSY;
	irq_gsi = gsi;
	irq_fd = fd;
	n_irqs++;
	return 0;
}

/* Edges since the last look. */
static uint64_t edges(void)
{
	struct pollfd p = {.fd = irq_fd, .events = POLLIN};
	uint64_t n = 0;

	if (poll(&p, 1, 0) == 1)
		ck_assert_int_eq(read(irq_fd, &n, sizeof(n)), sizeof(n));
	return n;
}

/* ---- the machine ---- */

struct machine {
	struct driver *d;
	struct device *dev;
};

static int try_mmio(struct machine *m, unsigned slot)
{
	const struct virtio_mmio_config cfg = {.v = m->d->v, .slot = slot};
	int ret;

	m->dev = calloc(1, virtio_mmio_ops.size);
	ck_assert_ptr_nonnull(m->dev);
	m->dev->ops = &virtio_mmio_ops;
	m->dev->vm = m->d->vm;
	m->dev->instance = slot;
	ret = virtio_mmio_ops.init(m->dev, &cfg);
	if (ret) {
		free(m->dev);
		m->dev = NULL;
	} else {
		virtio_mmio_ops.reset(m->dev);
	}
	return ret;
}

static struct machine machine_make(void)
{
	struct machine m = {.d = driver_new(&fake_ops, NULL, RAM_MIN)};

	ck_assert_int_eq(try_mmio(&m, SLOT), 0);
	return m;
}

static void machine_end(struct machine *m)
{
	virtio_mmio_ops.destroy(m->dev);
	free(m->dev);
	ck_assert(!fake_of(m->d->v)->wrong);
	driver_free(m->d);
}

static struct machine m;

static void setup(void)
{
	n_kicks = n_irqs = calls = fail_at = 0;
	m = machine_make();
}

static void teardown(void)
{
	machine_end(&m);
}

static uint64_t base(void)
{
	return 0xd0000000 + SLOT * 0x1000;
}

static uint64_t in(uint64_t reg, unsigned size)
{
	return bus_read(&m.d->vm->mmio, base() + reg, size);
}

static void out(uint64_t reg, unsigned size, uint64_t value)
{
	bus_write(&m.d->vm->mmio, base() + reg, size, value);
}

static uint32_t get(uint64_t reg)
{
	return (uint32_t)in(reg, 4);
}

static void set(uint64_t reg, uint32_t value)
{
	out(reg, 4, value);
}

static const struct virtq *queue(unsigned i)
{
	return &m.d->v->queue[i].q;
}

/* A driver that knows nothing but the registers. */
static void bring_up(uint64_t features)
{
	uint64_t offered;

	set(STATUS, 0);
	ck_assert_uint_eq(get(STATUS), 0);
	set(STATUS, VIRTIO_ACKNOWLEDGE);
	set(STATUS, VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER);
	set(DEVICE_FEATURES_SEL, 0);
	offered = get(DEVICE_FEATURES);
	set(DEVICE_FEATURES_SEL, 1);
	offered |= (uint64_t)get(DEVICE_FEATURES) << 32;
	m.d->features = offered & (features | VIRTIO_VERSION_1);
	set(DRIVER_FEATURES_SEL, 0);
	set(DRIVER_FEATURES, (uint32_t)m.d->features);
	set(DRIVER_FEATURES_SEL, 1);
	set(DRIVER_FEATURES, (uint32_t)(m.d->features >> 32));
	set(STATUS, VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER | VIRTIO_FEATURES_OK);
	ck_assert_uint_ne(get(STATUS) & VIRTIO_FEATURES_OK, 0);
	for (unsigned i = 0; i < FAKE_QUEUES; i++) {
		struct driver_queue *q = &m.d->queue[i];
		uint16_t size;

		set(QUEUE_SEL, i);
		ck_assert_uint_eq(get(QUEUE_READY), 0);
		size = (uint16_t)get(QUEUE_SIZE_MAX);
		*q = (struct driver_queue){.size = size, .n_free = size};
		for (unsigned k = 0; k < size; k++)
			q->link[k] = (uint16_t)(k + 1);
		q->desc = driver_alloc_pages(m.d, 16ULL * size);
		q->avail = driver_alloc_pages(m.d, 6 + 2ULL * size);
		q->used = driver_alloc_pages(m.d, 6 + 8ULL * size);
		set(QUEUE_SIZE, size);
		set(DESC_LOW, (uint32_t)q->desc);
		set(DESC_HIGH, (uint32_t)(q->desc >> 32));
		set(DRIVER_LOW, (uint32_t)q->avail);
		set(DRIVER_HIGH, (uint32_t)(q->avail >> 32));
		set(DEVICE_LOW, (uint32_t)q->used);
		set(DEVICE_HIGH, (uint32_t)(q->used >> 32));
		set(QUEUE_READY, 1);
		ck_assert_uint_eq(get(QUEUE_READY), 1);
	}
	set(STATUS, VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER | VIRTIO_FEATURES_OK | VIRTIO_DRIVER_OK);
	driver_settle(m.d);
}

static void add(struct driver *d, unsigned q)
{
	driver_add(d, q, &(struct driver_buf){DRIVER_FIRST_GPA, 1, true}, 1);
}

static void round_trip(struct driver *d, unsigned q)
{
	add(d, q);
	driver_kick(d, q);
	driver_wait_used(d, q);
	driver_settle(d);
}

/* ---- built and unbuilt ---- */

START_TEST(connects)
{
	ck_assert_uint_eq(n_irqs, 1);
	ck_assert_uint_eq(irq_gsi, 16 + SLOT);
	ck_assert_uint_eq(n_kicks, FAKE_QUEUES);
	for (unsigned i = 0; i < FAKE_QUEUES; i++) {
		ck_assert_uint_eq(kicks[i].gpa, base() + QUEUE_NOTIFY);
		ck_assert_uint_eq(kicks[i].value, i);
		ck_assert_int_eq(kicks[i].fd, m.d->v->queue[i].kick_fd);
	}
	/* One slot, one device. */
	struct machine other = {.d = m.d};
	unsigned before = n_kicks;

	ck_assert_int_eq(try_mmio(&other, SLOT), -EEXIST);
	ck_assert_uint_eq(n_kicks, before);
	ck_assert_int_eq(try_mmio(&other, VIRTIO_MMIO_SLOTS), -ENOSPC);
	ck_assert_int_eq(try_mmio(&other, UINT32_MAX), -ENOSPC);
	ck_assert_uint_eq(n_kicks, before);
	/* Where they are, and that they share the pins from 16 on. */
	ck_assert_uint_eq(virtio_mmio_gpa(0), 0xd0000000);
	ck_assert_uint_eq(virtio_mmio_gpa(31), 0xd001f000);
	ck_assert_uint_eq(virtio_mmio_gsi(7), 23);
	ck_assert_uint_eq(virtio_mmio_gsi(8), 16);
	ck_assert_uint_eq(virtio_mmio_gsi(31), 23);
}
END_TEST

/* Whatever fails, everything is given back. */
START_TEST(fails_cleanly)
{
	struct machine other = {.d = driver_new(&fake_ops, NULL, RAM_MIN)};
	int lowest = dup(0), again;

	ck_assert_int_ge(lowest, 0);
	close(lowest);
	calls = 0;
	for (fail_at = 1; fail_at <= 1 + FAKE_QUEUES; fail_at++) {
		unsigned before = n_kicks;

		calls = 0;
		ck_assert_int_eq(try_mmio(&other, 9), fail_at == 1 ? -EBUSY : -ENOSPC);
		ck_assert_uint_eq(n_kicks, before);
		ck_assert_ptr_null(other.d->v->transport);
		ck_assert_uint_eq(bus_read(&other.d->vm->mmio, virtio_mmio_gpa(9), 4), UINT64_MAX);
		again = dup(0);
		ck_assert_int_eq(again, lowest);
		close(again);
	}
	fail_at = 0;
	ck_assert_int_eq(try_mmio(&other, 9), 0);
	ck_assert_uint_eq(n_kicks, 2 * FAKE_QUEUES);
	virtio_mmio_ops.destroy(other.dev);
	free(other.dev);
	ck_assert_uint_eq(n_kicks, FAKE_QUEUES);
	ck_assert_ptr_null(other.d->v->transport);
	driver_free(other.d);
}
END_TEST

/* ---- registers ---- */

START_TEST(identity)
{
	ck_assert_uint_eq(get(MAGIC), 0x74726976);
	ck_assert_uint_eq(get(VERSION), 2);
	ck_assert_uint_eq(get(DEVICE_ID), FAKE_TYPE);
	ck_assert_uint_ne(get(VENDOR_ID), 0);
	/* None of them can be written. */
	for (uint64_t reg = MAGIC; reg <= DEVICE_FEATURES; reg += 4) {
		uint32_t before = get(reg);

		set(reg, ~before);
		ck_assert_uint_eq(get(reg), before);
	}
}
END_TEST

START_TEST(feature_registers)
{
	uint64_t offered = m.d->v->offered;

	ck_assert_uint_eq(get(DEVICE_FEATURES), (uint32_t)offered);
	set(DEVICE_FEATURES_SEL, 1);
	ck_assert_uint_eq(get(DEVICE_FEATURES), offered >> 32);
	for (uint32_t sel = 2; sel; sel <<= 1) {
		set(DEVICE_FEATURES_SEL, sel);
		ck_assert_uint_eq(get(DEVICE_FEATURES), 0);
	}
	set(DEVICE_FEATURES_SEL, UINT32_MAX);
	ck_assert_uint_eq(get(DEVICE_FEATURES), 0);
	set(DRIVER_FEATURES, VIRTIO_F(5) | VIRTIO_F(6));
	ck_assert_uint_eq(m.d->v->features, VIRTIO_F(5));
	set(DRIVER_FEATURES_SEL, 1);
	set(DRIVER_FEATURES, 1);
	ck_assert_uint_eq(m.d->v->features, VIRTIO_F(5) | VIRTIO_VERSION_1);
	for (uint32_t sel = 2; sel; sel <<= 1) {
		set(DRIVER_FEATURES_SEL, sel);
		set(DRIVER_FEATURES, UINT32_MAX);
	}
	ck_assert_uint_eq(m.d->v->features, VIRTIO_F(5) | VIRTIO_VERSION_1);
	/* They are not read back. */
	ck_assert_uint_eq(
		get(DRIVER_FEATURES) | get(DRIVER_FEATURES_SEL) | get(DEVICE_FEATURES_SEL), 0);
}
END_TEST

START_TEST(queue_registers)
{
	static const uint16_t sizes[] = FAKE_QUEUE_SIZES;
	static const uint32_t nowhere[] = {FAKE_QUEUES, 31, 32, 0x10000, 0x80000000, UINT32_MAX};
	struct virtq before[FAKE_QUEUES];

	set(STATUS, VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER);
	set(DRIVER_FEATURES_SEL, 1);
	set(DRIVER_FEATURES, 1);
	set(STATUS, VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER | VIRTIO_FEATURES_OK);
	for (unsigned i = 0; i < FAKE_QUEUES; i++) {
		set(QUEUE_SEL, i);
		ck_assert_uint_eq(get(QUEUE_SIZE_MAX), sizes[i]);
		set(QUEUE_SIZE, 4);
		set(DESC_LOW, 0x89abcde0 + i);
		set(DESC_HIGH, 0x01234567);
		set(DRIVER_HIGH, 0x11223344);
		set(DRIVER_LOW, 0x55667788);
		set(DEVICE_LOW, 0x99aabbcc);
		set(DEVICE_HIGH, 0xddeeff00);
		ck_assert_uint_eq(queue(i)->size, 4);
		ck_assert_uint_eq(queue(i)->desc, 0x0123456789abcde0 + i);
		ck_assert_uint_eq(queue(i)->avail, 0x1122334455667788);
		ck_assert_uint_eq(queue(i)->used, 0xddeeff0099aabbcc);
		set(DESC_LOW, 0);
		ck_assert_uint_eq(queue(i)->desc, 0x0123456700000000);
		set(DESC_HIGH, 0);
		ck_assert_uint_eq(queue(i)->desc, 0);
	}
	/* A queue that is not there has no size, is never ready, and takes nothing. */
	for (unsigned i = 0; i < FAKE_QUEUES; i++)
		before[i] = *queue(i);
	for (size_t i = 0; i < ARRAY_SIZE(nowhere); i++) {
		set(QUEUE_SEL, nowhere[i]);
		ck_assert_uint_eq(get(QUEUE_SIZE_MAX), 0);
		for (uint64_t reg = QUEUE_SIZE; reg <= DEVICE_HIGH; reg += 4) {
			if (reg != STATUS && reg != INTERRUPT_ACK)
				set(reg, 1);
		}
		ck_assert_uint_eq(get(QUEUE_READY), 0);
	}
	for (unsigned i = 0; i < FAKE_QUEUES; i++)
		ck_assert(memcmp(&before[i], queue(i), sizeof(before[i])) == 0);
	ck_assert_uint_eq(get(STATUS) & VIRTIO_NEEDS_RESET, 0);
	/* A size that 16 bits cannot say is no size that they can. */
	set(QUEUE_SEL, 0);
	set(DESC_LOW, 0x10000);
	set(DRIVER_LOW, 0x20000);
	set(DRIVER_HIGH, 0);
	set(DEVICE_LOW, 0x30000);
	set(DEVICE_HIGH, 0);
	set(QUEUE_SIZE, 0x10008);
	set(QUEUE_READY, 1);
	ck_assert_uint_eq(get(QUEUE_READY), 0);
	ck_assert_uint_ne(get(STATUS) & VIRTIO_NEEDS_RESET, 0);
	set(QUEUE_SIZE, 8);
	set(QUEUE_READY, 1);
	ck_assert_uint_eq(get(QUEUE_READY), 1);
	/* Once it is ready it stays where it is. */
	before[0] = *queue(0);
	set(QUEUE_SIZE, 4);
	for (uint64_t reg = DESC_LOW; reg <= DEVICE_HIGH; reg += 4)
		set(reg, 0x7000);
	ck_assert(memcmp(&before[0], queue(0), sizeof(before[0])) == 0);
	/* Only 1 is ready. */
	set(QUEUE_READY, 3);
	ck_assert_uint_eq(get(QUEUE_READY), 0);
	set(QUEUE_READY, 0x101);
	ck_assert_uint_eq(get(QUEUE_READY), 0);
}
END_TEST

/* Other widths than 32 bits, and between registers: nothing is read and nothing happens. */
START_TEST(widths)
{
	bring_up(UINT64_MAX);
	for (uint64_t reg = 0; reg < CONFIG; reg++) {
		static const unsigned sizes[] = {1, 2, 4, 8};

		for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
			if (sizes[i] == 4 && reg % 4 == 0)
				continue;
			ck_assert_uint_eq(in(reg, sizes[i]), 0);
			out(reg, sizes[i], 0);
			out(reg, sizes[i], UINT64_MAX);
		}
	}
	ck_assert_uint_eq(get(STATUS), VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER | VIRTIO_FEATURES_OK |
					       VIRTIO_DRIVER_OK);
	for (unsigned i = 0; i < FAKE_QUEUES; i++)
		round_trip(m.d, i);
}
END_TEST

START_TEST(other_registers)
{
	static const uint64_t known[] = {
		MAGIC,		VERSION,     DEVICE_ID,	       VENDOR_ID, DEVICE_FEATURES,
		QUEUE_SIZE_MAX, QUEUE_READY, INTERRUPT_STATUS, STATUS,	  GENERATION};

	/* There is no shared memory: its length is -1, whichever is asked for. */
	for (uint32_t id = 0; id < 3; id++) {
		set(0xac, id);
		ck_assert_uint_eq(get(SHM_LEN_LOW), UINT32_MAX);
		ck_assert_uint_eq(get(SHM_LEN_HIGH), UINT32_MAX);
		ck_assert_uint_eq(get(SHM_BASE_LOW), UINT32_MAX);
		ck_assert_uint_eq(get(SHM_BASE_HIGH), UINT32_MAX);
	}
	for (uint64_t reg = 0; reg < CONFIG; reg += 4) {
		bool is_known = reg >= SHM_LEN_LOW && reg <= SHM_BASE_HIGH;

		for (size_t i = 0; i < ARRAY_SIZE(known); i++)
			is_known |= reg == known[i];
		if (!is_known)
			ck_assert_uint_eq(get(reg), 0);
	}
	/* A kick that KVM did not take, for it is for no queue. */
	bring_up(UINT64_MAX);
	set(QUEUE_NOTIFY, FAKE_QUEUES);
	set(QUEUE_NOTIFY, UINT32_MAX);
	driver_settle(m.d);
	round_trip(m.d, 0);
	/* Beyond the page it is somebody else's. */
	ck_assert_uint_eq(in(0x1000, 4), UINT64_MAX);
	ck_assert_uint_eq(in(0xffe, 4), UINT64_MAX);
	ck_assert_uint_eq(bus_read(&m.d->vm->mmio, base() - 4, 4), UINT64_MAX);
}
END_TEST

START_TEST(config_space)
{
	uint32_t generation = get(GENERATION);

	for (unsigned i = 0; i < FAKE_CONFIG_LEN; i++)
		ck_assert_uint_eq(in(CONFIG + i, 1), 0x10 + i);
	ck_assert_uint_eq(in(CONFIG + 2, 2), 0x1312);
	ck_assert_uint_eq(in(CONFIG + 4, 4), 0x17161514);
	ck_assert_uint_eq(in(CONFIG + 8, 8), 0x1f1e1d1c1b1a1918);
	ck_assert_uint_eq(in(CONFIG + FAKE_CONFIG_LEN, 4), 0);
	ck_assert_uint_eq(in(0xff8, 8), 0);
	out(CONFIG + FAKE_WRITABLE, 4, 0xa1b2c3d4);
	ck_assert_uint_eq(in(CONFIG + FAKE_WRITABLE, 4), 0xa1b2c3d4);
	out(CONFIG + 0, 4, 0xffffffff);
	out(0xff8, 8, UINT64_MAX);
	ck_assert_uint_eq(in(CONFIG + 0, 4), 0x13121110);
	ck_assert_uint_eq(fake_of(m.d->v)->written, 1);
	ck_assert_uint_eq(get(GENERATION), generation);
	pthread_mutex_lock(&m.d->v->lock);
	virtio_set_config(m.d->v, 0, "abc", 3);
	pthread_mutex_unlock(&m.d->v->lock);
	ck_assert_uint_ne(get(GENERATION), generation);
	/* Nobody is up who could be interrupted. */
	ck_assert_uint_eq(get(INTERRUPT_STATUS), 0);
	ck_assert_uint_eq(edges(), 0);
}
END_TEST

/* ---- interrupts ---- */

static void change_config(struct driver *d, char c)
{
	pthread_mutex_lock(&d->v->lock);
	virtio_set_config(d->v, 0, &c, 1);
	pthread_mutex_unlock(&d->v->lock);
}

START_TEST(interrupts)
{
	bring_up(UINT64_MAX);
	for (unsigned i = 0; i < FAKE_QUEUES; i++) {
		round_trip(m.d, i);
		ck_assert_uint_eq(get(INTERRUPT_STATUS), USED);
		ck_assert_uint_eq(edges(), 1);
		/* Not read, not acknowledged: the next event still is an edge. */
		round_trip(m.d, i);
		ck_assert_uint_eq(get(INTERRUPT_STATUS), USED);
		ck_assert_uint_eq(edges(), 1);
		set(INTERRUPT_ACK, USED);
		ck_assert_uint_eq(get(INTERRUPT_STATUS), 0);
	}
	change_config(m.d, 'x');
	ck_assert_uint_eq(get(INTERRUPT_STATUS), CHANGED);
	ck_assert_uint_eq(edges(), 1);
	round_trip(m.d, 0);
	ck_assert_uint_eq(get(INTERRUPT_STATUS), USED | CHANGED);
	ck_assert_uint_eq(edges(), 1);
	/* Only what is acknowledged is gone; the status itself is read only. */
	set(INTERRUPT_ACK, USED);
	ck_assert_uint_eq(get(INTERRUPT_STATUS), CHANGED);
	set(INTERRUPT_STATUS, 0);
	set(INTERRUPT_ACK, ~CHANGED);
	ck_assert_uint_eq(get(INTERRUPT_STATUS), CHANGED);
	set(INTERRUPT_ACK, CHANGED);
	ck_assert_uint_eq(get(INTERRUPT_STATUS), 0);
	ck_assert_uint_eq(edges(), 0);
	/* A driver's mistake is a change of the configuration. */
	fake_of(m.d->v)->does = FAKE_FAILS;
	driver_kick_always(m.d, 0);
	driver_settle(m.d);
	ck_assert_uint_eq(get(INTERRUPT_STATUS), CHANGED);
	ck_assert_uint_eq(edges(), 1);
	ck_assert_uint_ne(get(STATUS) & VIRTIO_NEEDS_RESET, 0);
	/* A reset takes all of it back. */
	set(STATUS, 0);
	ck_assert_uint_eq(get(STATUS), 0);
	ck_assert_uint_eq(get(INTERRUPT_STATUS), 0);
	fake_of(m.d->v)->does = FAKE_ANSWERS;
	bring_up(0);
	round_trip(m.d, 0);
	ck_assert_uint_eq(edges(), 1);
}
END_TEST

/* ---- at rest, and elsewhere ---- */

static void quiesce(struct machine *at)
{
	driver_quiesce(at->d);
	ck_assert_int_eq(virtio_mmio_ops.quiesce(at->dev, now_ns() + NS_PER_SEC), 0);
}

/* In the order of their creation, and the loop is quick in between. */
static void resume(struct machine *at)
{
	driver_resume(at->d);
	virtio_mmio_ops.resume(at->dev);
}

START_TEST(at_rest)
{
	bring_up(UINT64_MAX);
	quiesce(&m);
	/* Nothing is interrupted by what happens meanwhile, and nothing of it is forgotten. */
	change_config(m.d, 'y');
	ck_assert_uint_eq(edges(), 0);
	add(m.d, 0);
	driver_kick_always(m.d, 0);
	driver_settle(m.d);
	ck_assert_uint_eq(driver_used_idx(m.d, 0), 0);
	resume(&m);
	ck_assert_uint_eq(driver_used_idx(m.d, 0), 1);
	ck_assert_uint_eq(get(INTERRUPT_STATUS), USED | CHANGED);
	ck_assert_uint_ge(edges(), 1);
	set(INTERRUPT_ACK, USED | CHANGED);
	/* With nothing to tell there is nothing told. */
	quiesce(&m);
	resume(&m);
	ck_assert_uint_eq(edges(), 0);
	/* An edge that may have been on its way comes again. */
	round_trip(m.d, 1);
	ck_assert_uint_eq(edges(), 1);
	quiesce(&m);
	ck_assert_uint_eq(edges(), 0);
	resume(&m);
	ck_assert_uint_eq(edges(), 1);
	ck_assert_uint_eq(get(INTERRUPT_STATUS), USED);
}
END_TEST

static void save(struct machine *at, struct sbuf *s)
{
	sb_init_save(s);
	s->version = virtio_mmio_ops.version;
	virtio_mmio_ops.fields(at->dev, s);
	ck_assert_int_eq(s->err, 0);
}

static int load(struct machine *at, const void *data, size_t len)
{
	struct sbuf s;

	sb_init_load(&s, data, len);
	s.version = virtio_mmio_ops.version;
	virtio_mmio_ops.fields(at->dev, &s);
	sb_end(&s);
	return s.err ? s.err : virtio_mmio_ops.loaded(at->dev);
}

START_TEST(moves)
{
	struct machine to = {0}, from = m;
	struct sbuf state, own;

	bring_up(UINT64_MAX);
	round_trip(m.d, 1);
	ck_assert_uint_eq(edges(), 1);
	set(DEVICE_FEATURES_SEL, 1);
	set(DRIVER_FEATURES_SEL, 7);
	set(QUEUE_SEL, 2);
	quiesce(&m);
	driver_save(m.d, &state);
	save(&m, &own);

	to.d = driver_arriving(m.d, NULL);
	ck_assert_int_eq(try_mmio(&to, SLOT), 0);
	ck_assert_int_eq(virtio_mmio_ops.quiesce(to.dev, 0), 0);
	for (size_t len = 0; len < own.len; len++)
		ck_assert_int_eq(load(&to, own.data, len), -EPROTO);
	ck_assert_int_eq(driver_load(to.d, state.data, state.len), 0);
	ck_assert_int_eq(load(&to, own.data, own.len), 0);
	m = to;
	ck_assert_uint_eq(edges(), 0);
	resume(&to);
	/* The driver has not seen the last one. */
	ck_assert_uint_eq(edges(), 1);
	ck_assert_uint_eq(get(INTERRUPT_STATUS), USED);
	ck_assert_uint_eq(get(DEVICE_FEATURES), m.d->v->offered >> 32);
	ck_assert_uint_eq(get(QUEUE_SIZE_MAX), 16);
	ck_assert_uint_eq(get(QUEUE_READY), 1);
	set(INTERRUPT_ACK, USED);
	round_trip(m.d, 2);
	ck_assert_uint_eq(edges(), 1);
	machine_end(&from);
	sb_free(&state);
	sb_free(&own);
}
END_TEST

/* Selectors may be any, the interrupt status knows two bits. */
START_TEST(hostile_state)
{
	static const struct {
		size_t offset;
		uint32_t value;
		int want;
	} edits[] = {
		{0, UINT32_MAX, 0},   {4, UINT32_MAX, 0},	 {8, UINT32_MAX, 0},
		{12, 3, 0},	      {12, 4, -EPROTO},		 {12, 0x80000000, -EPROTO},
		{12, 0x103, -EPROTO}, {12, UINT32_MAX, -EPROTO},
	};

	bring_up(UINT64_MAX);
	for (size_t i = 0; i < ARRAY_SIZE(edits); i++) {
		struct sbuf s;

		quiesce(&m);
		save(&m, &s);
		ck_assert_uint_eq(s.len, 16);
		memcpy(s.data + edits[i].offset, &edits[i].value, 4);
		ck_assert_int_eq(load(&m, s.data, s.len), edits[i].want);
		memset(s.data, 0, 16);
		if (edits[i].want)
			ck_assert_int_eq(load(&m, s.data, s.len), 0);
		resume(&m);
		for (uint64_t reg = 0; reg < CONFIG; reg += 4)
			get(reg);
		set(QUEUE_SIZE, 1);
		set(QUEUE_READY, 0);
		ck_assert_int_eq(load(&m, s.data, s.len), 0);
		sb_free(&s);
		bring_up(UINT64_MAX);
		round_trip(m.d, 0);
	}
}
END_TEST

int main(void)
{
	const TTest *const tests[] = {connects,		 fails_cleanly,	  identity,
				      feature_registers, queue_registers, widths,
				      other_registers,	 config_space,	  interrupts,
				      at_rest,		 moves,		  hostile_state};
	Suite *s = suite_create("virtio-mmio");
	TCase *tc = tcase_create("virtio-mmio");
	SRunner *sr;
	int failed;

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_set_timeout(tc, 60);
	for (size_t i = 0; i < ARRAY_SIZE(tests); i++)
		tcase_add_test(tc, tests[i]);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
