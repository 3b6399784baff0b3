/* SPDX-License-Identifier: MIT */
/*
 * virtio socket device (virtio 1.2, section 5.10): stream sockets between the guest and programs
 * of the host, which are reached through unix sockets (vsock_unix.h says how) without any help
 * of the host's kernel.
 *
 * A move does not carry connections. The guest is told so at the destination, before anything else
 * happens there: by the event that the protocol has for this, and by an RST for each connection
 * that it had. Its listening sockets stay.
 */
#ifndef GODWIT_VIRTIO_VSOCK_H
#define GODWIT_VIRTIO_VSOCK_H

#include <stdint.h>

#include "device.h"

extern const struct device_ops virtio_vsock_ops; /* config: struct vm_vsock */

struct virtio_vsock_stats {
	uint32_t connections; /* that are established */
	uint64_t to_guest;    /* bytes of payload since the device was made here */
	uint64_t from_guest;
};

/* d is a device of virtio_vsock_ops. Any thread. */
void virtio_vsock_stats(struct device *d, struct virtio_vsock_stats *stats);

#endif
