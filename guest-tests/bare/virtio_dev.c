/* SPDX-License-Identifier: MIT */
#include "virtio_dev.h"

/* Where the slots are: first those of godwit, then those of QEMU's microvm. */
#define GODWIT_SLOTS 32u
#define GODWIT_BASE 0xd0000000ul
#define GODWIT_STRIDE 0x1000ul
#define MICROVM_BASE 0xfeb00000ul
#define MICROVM_STRIDE 0x200ul
#define MAGIC 0x74726976u /* "virt" */

enum {
	REG_MAGIC = 0x00,
	REG_VERSION = 0x04,
	REG_DEVICE_ID = 0x08,
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

#define STATUS_ACKNOWLEDGE 1u
#define STATUS_DRIVER 2u
#define STATUS_DRIVER_OK 4u
#define STATUS_FEATURES_OK 8u
#define STATUS_NEEDS_RESET 64u

struct vring_desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags;
	uint16_t next;
};
#define DESC_NEXT 1u
#define DESC_IN 2u
#define DESC_INDIRECT 4u

/* Both rings start with flags and idx, then come the entries. */
#define RING_FLAGS 0
#define RING_IDX 1
#define RING_ENTRIES 2
#define AVAIL_NO_INTERRUPT 1u
#define USED_NO_NOTIFY 1u
#define USED_WORDS 4u /* of 16 bits: id, len */

#define RESET_US 10000000

/* --- Registers --- */

static uint64_t base_of(uint32_t slot)
{
	return slot < GODWIT_SLOTS ? GODWIT_BASE + slot * GODWIT_STRIDE
				   : MICROVM_BASE + (slot - GODWIT_SLOTS) * MICROVM_STRIDE;
}

static uint32_t get(uint32_t slot, uint32_t reg)
{
	return *(volatile uint32_t *)(base_of(slot) + reg);
}

static void set(uint32_t slot, uint32_t reg, uint32_t value)
{
	*(volatile uint32_t *)(base_of(slot) + reg) = value;
}

static void set_address(uint32_t slot, uint32_t reg, uint64_t addr)
{
	set(slot, reg, (uint32_t)addr);
	set(slot, reg + 4, (uint32_t)(addr >> 32));
}

uint32_t vdev_id(uint32_t slot)
{
	if (get(slot, REG_MAGIC) != MAGIC)
		return 0;
	return get(slot, REG_DEVICE_ID);
}

static void add_status(uint32_t slot, uint32_t bits)
{
	set(slot, REG_STATUS, get(slot, REG_STATUS) | bits);
}

void vdev_reset(uint32_t slot)
{
	uint64_t start = rt_tsc();

	set(slot, REG_STATUS, 0);
	while (get(slot, REG_STATUS)) {
		if (rt_tsc() - start > rt_us_to_cycles(RESET_US))
			rt_panic("a virtio device does not reset");
		rt_relax();
	}
}

void vdev_start(struct vdev *dev, uint32_t slot, uint64_t wanted)
{
	uint64_t offered;

	dev->slot = slot;
	if (get(slot, REG_VERSION) != 2)
		rt_panic("a virtio-mmio device is not of version 2");
	vdev_reset(slot);
	add_status(slot, STATUS_ACKNOWLEDGE);
	add_status(slot, STATUS_DRIVER);
	set(slot, REG_DEVICE_FEATURES_SEL, 0);
	offered = get(slot, REG_DEVICE_FEATURES);
	set(slot, REG_DEVICE_FEATURES_SEL, 1);
	offered |= (uint64_t)get(slot, REG_DEVICE_FEATURES) << 32;
	if (!(offered & VDEV_F_VERSION_1))
		rt_panic("a virtio device does not offer VERSION_1");
	dev->features = offered & (wanted | VDEV_F_VERSION_1);
	set(slot, REG_DRIVER_FEATURES_SEL, 0);
	set(slot, REG_DRIVER_FEATURES, (uint32_t)dev->features);
	set(slot, REG_DRIVER_FEATURES_SEL, 1);
	set(slot, REG_DRIVER_FEATURES, (uint32_t)(dev->features >> 32));
	add_status(slot, STATUS_FEATURES_OK);
	if (!(get(slot, REG_STATUS) & STATUS_FEATURES_OK))
		rt_panic("a virtio device refuses features that it offered");
}

void vdev_ready(const struct vdev *dev)
{
	add_status(dev->slot, STATUS_DRIVER_OK);
}

bool vdev_needs_reset(const struct vdev *dev)
{
	return get(dev->slot, REG_STATUS) & STATUS_NEEDS_RESET;
}

uint64_t vdev_config(const struct vdev *dev, uint32_t offset, uint32_t size)
{
	uint64_t at = base_of(dev->slot) + REG_CONFIG + offset;

	switch (size) {
	case 1:
		return *(volatile uint8_t *)at;
	case 2:
		return *(volatile uint16_t *)at;
	case 4:
		return *(volatile uint32_t *)at;
	default:
		/* Wider accesses than 32 bits are not for drivers (4.2.2.2). */
		return *(volatile uint32_t *)at | (uint64_t) * (volatile uint32_t *)(at + 4) << 32;
	}
}

/* --- Rings --- */

static void *zeroed(uint64_t size)
{
	return memset(rt_alloc(size), 0, size);
}

uint32_t vdev_queue_max(const struct vdev *dev, uint32_t index)
{
	set(dev->slot, REG_QUEUE_SEL, index);
	return get(dev->slot, REG_QUEUE_SIZE_MAX);
}

bool vdev_place(const struct vdev *dev, uint32_t index, uint32_t size, uint64_t desc,
		uint64_t avail, uint64_t used)
{
	uint32_t slot = dev->slot;

	set(slot, REG_QUEUE_SEL, index);
	set(slot, REG_QUEUE_SIZE, size);
	set_address(slot, REG_QUEUE_DESC, desc);
	set_address(slot, REG_QUEUE_DRIVER, avail);
	set_address(slot, REG_QUEUE_DEVICE, used);
	set(slot, REG_QUEUE_READY, 1);
	return get(slot, REG_QUEUE_READY) == 1;
}

void vdev_unplace(const struct vdev *dev, uint32_t index)
{
	set(dev->slot, REG_QUEUE_SEL, index);
	set(dev->slot, REG_QUEUE_READY, 0);
}

void vdev_kick(const struct vdev *dev, uint32_t index)
{
	set(dev->slot, REG_QUEUE_NOTIFY, index);
}

void vring_start(struct vring *ring, struct vdev *dev, uint32_t index, uint32_t most)
{
	vring_start_of(ring, dev, index, VRING_PARTS, most);
}

void vring_start_of(struct vring *ring, struct vdev *dev, uint32_t index, uint32_t parts,
		    uint32_t most)
{
	uint32_t size = vdev_queue_max(dev, index);

	if (size > VRING_MOST)
		size = VRING_MOST;
	if (size < parts)
		rt_panic("a virtio queue is not there, or too short");
	*ring = (struct vring){.dev = dev, .index = index, .size = size, .parts = parts};
	ring->requests = size / parts < most ? size / parts : most;
	ring->desc = zeroed(size * sizeof(*ring->desc));
	ring->indirect = zeroed(ring->requests * parts * sizeof(*ring->indirect));
	ring->avail = zeroed((RING_ENTRIES + size + 1) * sizeof(uint16_t));
	ring->used = zeroed((RING_ENTRIES + size * USED_WORDS + 1) * sizeof(uint16_t));
	ring->given = zeroed(ring->requests);
	if (!(dev->features & VDEV_F_EVENT_IDX))
		ring->avail[RING_FLAGS] = AVAIL_NO_INTERRUPT;
	if (!vdev_place(dev, index, size, (uint64_t)ring->desc, (uint64_t)ring->avail,
			(uint64_t)ring->used))
		rt_panic("a virtio queue does not become ready");
}

/* Writes a chain to n descriptors at `table`, the first of which has number `first`. */
static void write_chain(volatile struct vring_desc *table, uint32_t first, const struct vbuf *buf,
			uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		table[i].addr = (uint64_t)buf[i].addr;
		table[i].len = buf[i].len;
		table[i].flags =
			(uint16_t)((buf[i].in ? DESC_IN : 0) | (i + 1 < n ? DESC_NEXT : 0));
		table[i].next = (uint16_t)(first + i + 1);
	}
}

/* Does the device want to hear of entry next - 1? (2.7.10) */
static bool wants_kick(const struct vring *ring)
{
	uint16_t event;

	if (!(ring->dev->features & VDEV_F_EVENT_IDX))
		return !(ring->used[RING_FLAGS] & USED_NO_NOTIFY);
	event = ring->used[RING_ENTRIES + ring->size * USED_WORDS];
	return (uint16_t)(ring->next - 1) == event;
}

void vring_submit(struct vring *ring, uint32_t request, const struct vbuf *buf, uint32_t n)
{
	uint32_t first = request * ring->parts;
	volatile struct vring_desc *desc = ring->desc + first;

	if (request >= ring->requests || ring->given[request] || n > ring->parts)
		rt_panic("a request is under way already");
	/* Every other one by a table of its own, so that both kinds are on the ring. */
	if ((ring->dev->features & VDEV_F_INDIRECT) && (request & 1)) {
		volatile struct vring_desc *table = ring->indirect + first;

		write_chain(table, 0, buf, n);
		desc->addr = (uint64_t)table;
		desc->len = (uint32_t)(n * sizeof(*table));
		desc->flags = DESC_INDIRECT;
	} else {
		write_chain(desc, first, buf, n);
	}
	ring->given[request] = 1;
	ring->waiting++;
	ring->avail[RING_ENTRIES + ring->next % ring->size] = (uint16_t)first;
	__atomic_thread_fence(__ATOMIC_RELEASE);
	ring->avail[RING_IDX] = ++ring->next;
	/* The index must be seen before the device's wish is read. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (!wants_kick(ring))
		return;
	ring->kicks++;
	vdev_kick(ring->dev, ring->index);
}

bool vring_take(struct vring *ring, uint32_t *request, uint32_t *len)
{
	const volatile uint16_t *entry;
	uint32_t id;

	if (ring->used[RING_IDX] == ring->seen)
		return false;
	__atomic_thread_fence(__ATOMIC_ACQUIRE);
	entry = ring->used + RING_ENTRIES + ring->seen % ring->size * USED_WORDS;
	id = *(const volatile uint32_t *)entry;
	*len = *(const volatile uint32_t *)(entry + 2);
	*request = id / ring->parts;
	if (id % ring->parts || *request >= ring->requests || !ring->given[*request])
		rt_panic("a virtio device gives back what it did not have");
	ring->given[*request] = 0;
	ring->waiting--;
	ring->seen++;
	/* With an event index, an interrupt is wanted for an entry that is long gone: for none. */
	if (ring->dev->features & VDEV_F_EVENT_IDX)
		ring->avail[RING_ENTRIES + ring->size] = (uint16_t)(ring->seen - 1);
	return true;
}
