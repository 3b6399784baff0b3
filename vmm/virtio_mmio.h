/* SPDX-License-Identifier: MIT */
/*
 * virtio-mmio (virtio 1.2, section 4.2): a page of registers per device in the hole below 4 GiB,
 * described to the guest by ACPI (device "LNRO0005"). Kicks come as ioeventfds, interrupts go out
 * as edges through an irqfd.
 *
 * The transport is a device of its own, made right after the device that it shows; what of it must
 * be saved (selectors, interrupt status) is in its own section.
 */
#ifndef GODWIT_VIRTIO_MMIO_H
#define GODWIT_VIRTIO_MMIO_H

#include "virtio.h"

#define VIRTIO_MMIO_BASE 0xd0000000ULL
#define VIRTIO_MMIO_SIZE 0x1000ULL
#define VIRTIO_MMIO_SLOTS 32U

/* IOAPIC pins that the slots share in turn. */
#define VIRTIO_MMIO_GSI 16U
#define VIRTIO_MMIO_GSIS 8U

struct virtio_mmio_config {
	struct virtio *v;
	unsigned slot; /* below VIRTIO_MMIO_SLOTS; also the device's instance */
};

extern const struct device_ops virtio_mmio_ops; /* config: struct virtio_mmio_config */

static inline uint64_t virtio_mmio_gpa(unsigned slot)
{
	return VIRTIO_MMIO_BASE + slot * VIRTIO_MMIO_SIZE;
}
static inline uint32_t virtio_mmio_gsi(unsigned slot)
{
	return VIRTIO_MMIO_GSI + slot % VIRTIO_MMIO_GSIS;
}

#endif
