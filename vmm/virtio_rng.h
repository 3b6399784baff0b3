/* SPDX-License-Identifier: MIT */
/*
 * virtio entropy source (virtio 1.2, section 5.4): the guest queues buffers, the host's random
 * number generator fills them. Each buffer gets at most VIRTIO_RNG_MAX bytes, which the protocol
 * allows: a driver that wants more asks again.
 *
 * Nothing of it is state: a moved guest gets the bytes of its new host.
 */
#ifndef GODWIT_VIRTIO_RNG_H
#define GODWIT_VIRTIO_RNG_H

#include "device.h"
#include "util.h"

#define VIRTIO_RNG_MAX (64 * KIB)

extern const struct device_ops virtio_rng_ops; /* no config */

#endif
