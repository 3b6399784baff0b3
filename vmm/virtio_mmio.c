/* SPDX-License-Identifier: MIT */
/*
 * Registers are 32 bits wide and aligned (virtio 1.2, section 4.2.2); only the device's own
 * configuration from 0x100 on takes other sizes. Anything else reads as 0 and is dropped when
 * written.
 *
 * The interrupt is an edge: each event makes one, whether or not the last was acknowledged, and
 * the driver finds out from InterruptStatus what it was for. KVM delivers an irqfd's edge from a
 * worker of its own; one that is still on its way when the state is saved would be lost, so a
 * resume makes another edge whenever the status is not 0. A driver takes one too many in its
 * stride.
 */
#include "virtio_mmio.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "kvm.h"

#define MAGIC 0x74726976U  /* "virt" */
#define VENDOR 0x54574447U /* "GDWT" */

enum {
	REG_MAGIC = 0x00,
	REG_VERSION = 0x04,
	REG_DEVICE_ID = 0x08,
	REG_VENDOR_ID = 0x0c,
	REG_DEVICE_FEATURES = 0x10,
	REG_DEVICE_FEATURES_SEL = 0x14,
	REG_DRIVER_FEATURES = 0x20,
	REG_DRIVER_FEATURES_SEL = 0x24,
	REG_QUEUE_SEL = 0x30,
	REG_QUEUE_SIZE_MAX = 0x34,
	REG_QUEUE_SIZE = 0x38,
	REG_QUEUE_READY = 0x44,
	REG_QUEUE_NOTIFY = 0x50,
	REG_INTERRUPT_STATUS = 0x60,
	REG_INTERRUPT_ACK = 0x64,
	REG_STATUS = 0x70,
	REG_QUEUE_DESC_LOW = 0x80,
	REG_QUEUE_DESC_HIGH = 0x84,
	REG_QUEUE_DRIVER_LOW = 0x90,
	REG_QUEUE_DRIVER_HIGH = 0x94,
	REG_QUEUE_DEVICE_LOW = 0xa0,
	REG_QUEUE_DEVICE_HIGH = 0xa4,
	REG_SHM_LEN_LOW = 0xb0,
	REG_SHM_BASE_HIGH = 0xbc,
	REG_CONFIG_GENERATION = 0xfc,
	REG_CONFIG = 0x100,
};

#define INTERRUPT_USED 1U
#define INTERRUPT_CONFIG 2U

/* v->lock guards all of it. */
struct virtio_mmio {
	struct device dev;
	struct virtio *v;
	unsigned slot;
	int irq_fd;
	unsigned n_kicks; /* ioeventfds that are registered */
	bool at_rest;	  /* quiesced, or loaded and not yet resumed */
	uint32_t device_features_sel, driver_features_sel, queue_sel;
	uint32_t interrupt_status;
};

static struct virtio_mmio *to_mmio(struct device *d)
{
	return container_of(d, struct virtio_mmio, dev);
}

static void edge(struct virtio_mmio *m)
{
	uint64_t one = 1;

	if (!m->at_rest)
		(void)!write(m->irq_fd, &one, sizeof(one));
}

static void signal_queue(void *arg, unsigned queue)
{
	struct virtio_mmio *m = arg;

	(void)queue;
	m->interrupt_status |= INTERRUPT_USED;
	edge(m);
}

static void signal_config(void *arg)
{
	struct virtio_mmio *m = arg;

	m->interrupt_status |= INTERRUPT_CONFIG;
	edge(m);
}

static const struct virtio_transport transport = {
	.signal_queue = signal_queue,
	.signal_config = signal_config,
};

/* The queue that is selected, or NULL where the device has none. */
static struct virtq *selected(struct virtio_mmio *m)
{
	return m->queue_sel < m->v->n_queues ? &m->v->queue[m->queue_sel].q : NULL;
}

static uint32_t read_reg(struct virtio_mmio *m, uint64_t offset)
{
	const struct virtq *q = selected(m);

	switch (offset) {
	case REG_MAGIC:
		return MAGIC;
	case REG_VERSION:
		return 2;
	case REG_DEVICE_ID:
		return m->v->ops->type;
	case REG_VENDOR_ID:
		return VENDOR;
	case REG_DEVICE_FEATURES:
		return m->device_features_sel > 1
			       ? 0
			       : (uint32_t)(m->v->offered >> (32 * m->device_features_sel));
	case REG_QUEUE_SIZE_MAX:
		return q ? q->max : 0;
	case REG_QUEUE_READY:
		return q && q->ready;
	case REG_INTERRUPT_STATUS:
		return m->interrupt_status;
	case REG_STATUS:
		return m->v->status;
	case REG_CONFIG_GENERATION:
		return m->v->generation;
	default:
		/* There is no shared memory: its length reads as all ones. */
		return offset >= REG_SHM_LEN_LOW && offset <= REG_SHM_BASE_HIGH ? UINT32_MAX : 0;
	}
}

static uint64_t mmio_read(void *dev, uint64_t offset, unsigned size)
{
	struct virtio_mmio *m = dev;
	uint32_t value;

	if (offset >= REG_CONFIG)
		return virtio_config_read(m->v, offset - REG_CONFIG, size);
	if (size != 4 || offset % 4)
		return 0;
	pthread_mutex_lock(&m->v->lock);
	value = read_reg(m, offset);
	pthread_mutex_unlock(&m->v->lock);
	return value;
}

static void set_low(uint64_t *v, uint32_t half)
{
	*v = (*v & ~0xffffffffULL) | half;
}

static void set_high(uint64_t *v, uint32_t half)
{
	*v = (*v & 0xffffffffULL) | (uint64_t)half << 32;
}

static void write_queue(struct virtio_mmio *m, uint64_t offset, uint32_t value)
{
	struct virtq *q = selected(m);

	/* The rings of a queue that is ready stay where they are. */
	if (!q || q->ready)
		return;
	switch (offset) {
	case REG_QUEUE_SIZE:
		q->size = (uint16_t)MIN(value, 0xffffU);
		break;
	case REG_QUEUE_DESC_LOW:
		set_low(&q->desc, value);
		break;
	case REG_QUEUE_DESC_HIGH:
		set_high(&q->desc, value);
		break;
	case REG_QUEUE_DRIVER_LOW:
		set_low(&q->avail, value);
		break;
	case REG_QUEUE_DRIVER_HIGH:
		set_high(&q->avail, value);
		break;
	case REG_QUEUE_DEVICE_LOW:
		set_low(&q->used, value);
		break;
	case REG_QUEUE_DEVICE_HIGH:
		set_high(&q->used, value);
		break;
	default:
		break;
	}
}

static void write_reg(struct virtio_mmio *m, uint64_t offset, uint32_t value)
{
	switch (offset) {
	case REG_DEVICE_FEATURES_SEL:
		m->device_features_sel = value;
		break;
	case REG_DRIVER_FEATURES_SEL:
		m->driver_features_sel = value;
		break;
	case REG_QUEUE_SEL:
		m->queue_sel = value;
		break;
	case REG_INTERRUPT_ACK:
		m->interrupt_status &= ~value;
		break;
	default:
		write_queue(m, offset, value);
	}
}

static uint32_t selector(struct virtio_mmio *m, const uint32_t *which)
{
	uint32_t value;

	pthread_mutex_lock(&m->v->lock);
	value = *which;
	pthread_mutex_unlock(&m->v->lock);
	return value;
}

static void mmio_write(void *dev, uint64_t offset, unsigned size, uint64_t value)
{
	struct virtio_mmio *m = dev;
	struct virtio *v = m->v;
	uint32_t word = (uint32_t)value;

	if (offset >= REG_CONFIG) {
		virtio_config_write(v, offset - REG_CONFIG, size, value);
		return;
	}
	if (size != 4 || offset % 4)
		return;
	switch (offset) {
	case REG_DRIVER_FEATURES:
		virtio_set_features(v, selector(m, &m->driver_features_sel), word);
		break;
	case REG_QUEUE_READY:
		virtio_set_ready(v, selector(m, &m->queue_sel), word == 1);
		break;
	case REG_STATUS:
		virtio_set_status(v, (uint8_t)word);
		if ((uint8_t)word == 0) {
			pthread_mutex_lock(&v->lock);
			m->interrupt_status = 0;
			pthread_mutex_unlock(&v->lock);
		}
		break;
	case REG_QUEUE_NOTIFY:
		/* KVM hands kicks to the ioeventfds; this is one for a queue that has none. */
		break;
	default:
		pthread_mutex_lock(&v->lock);
		write_reg(m, offset, word);
		pthread_mutex_unlock(&v->lock);
	}
}

static const struct bus_ops mmio_ops = {.read = mmio_read, .write = mmio_write};

static int connect_kicks(struct virtio_mmio *m)
{
	uint64_t notify = virtio_mmio_gpa(m->slot) + REG_QUEUE_NOTIFY;

	for (; m->n_kicks < m->v->n_queues; m->n_kicks++) {
		int ret = kvm_ioeventfd(m->dev.vm->vm_fd, notify, 4, m->n_kicks,
					m->v->queue[m->n_kicks].kick_fd, true);

		if (ret)
			return ret;
	}
	return 0;
}

static void mmio_destroy(struct device *d)
{
	struct virtio_mmio *m = to_mmio(d);
	uint64_t notify = virtio_mmio_gpa(m->slot) + REG_QUEUE_NOTIFY;

	while (m->n_kicks > 0) {
		m->n_kicks--;
		kvm_ioeventfd(d->vm->vm_fd, notify, 4, m->n_kicks, m->v->queue[m->n_kicks].kick_fd,
			      false);
	}
	virtio_attach(m->v, NULL, NULL);
	if (m->irq_fd >= 0)
		close(m->irq_fd);
}

static int mmio_init(struct device *d, const void *config)
{
	struct virtio_mmio *m = to_mmio(d);
	const struct virtio_mmio_config *c = config;
	struct bus_range range = {
		.len = VIRTIO_MMIO_SIZE,
		.name = "virtio-mmio",
		.ops = &mmio_ops,
		.dev = m,
	};
	int ret;

	m->v = c->v;
	m->slot = c->slot;
	m->irq_fd = -1;
	if (c->slot >= VIRTIO_MMIO_SLOTS)
		return -ENOSPC;
	range.base = virtio_mmio_gpa(c->slot);
	m->irq_fd = eventfd(0, EFD_CLOEXEC);
	if (m->irq_fd < 0)
		return -errno;
	ret = kvm_irqfd(d->vm->vm_fd, virtio_mmio_gsi(c->slot), m->irq_fd);
	if (ret == 0)
		ret = connect_kicks(m);
	if (ret == 0)
		ret = bus_add(&d->vm->mmio, &range);
	if (ret) {
		mmio_destroy(d);
		return ret;
	}
	virtio_attach(m->v, &transport, m);
	return 0;
}

static void mmio_reset(struct device *d)
{
	struct virtio_mmio *m = to_mmio(d);

	m->device_features_sel = m->driver_features_sel = m->queue_sel = 0;
	m->interrupt_status = 0;
}

static int mmio_quiesce(struct device *d, uint64_t deadline_ns)
{
	struct virtio_mmio *m = to_mmio(d);

	(void)deadline_ns;
	pthread_mutex_lock(&m->v->lock);
	m->at_rest = true;
	pthread_mutex_unlock(&m->v->lock);
	return 0;
}

static void mmio_resume(struct device *d)
{
	struct virtio_mmio *m = to_mmio(d);

	pthread_mutex_lock(&m->v->lock);
	m->at_rest = false;
	if (m->interrupt_status)
		edge(m);
	pthread_mutex_unlock(&m->v->lock);
}

static void mmio_fields(struct device *d, struct sbuf *s)
{
	struct virtio_mmio *m = to_mmio(d);

	sb_u32(s, &m->device_features_sel);
	sb_u32(s, &m->driver_features_sel);
	sb_u32(s, &m->queue_sel);
	sb_x32(s, &m->interrupt_status);
}

static int mmio_loaded(struct device *d)
{
	const struct virtio_mmio *m = to_mmio(d);

	return m->interrupt_status & ~(INTERRUPT_USED | INTERRUPT_CONFIG) ? -EPROTO : 0;
}

const struct device_ops virtio_mmio_ops = {
	.tag = "virtio-mmio",
	.size = sizeof(struct virtio_mmio),
	.version = 1,
	.min_version = 1,
	.init = mmio_init,
	.reset = mmio_reset,
	.quiesce = mmio_quiesce,
	.resume = mmio_resume,
	.fields = mmio_fields,
	.loaded = mmio_loaded,
	.destroy = mmio_destroy,
};
