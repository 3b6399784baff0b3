/* SPDX-License-Identifier: MIT */
/*
 * virtio console (virtio 1.2, section 5.3) with its one port: a second channel beside the UART,
 * /dev/hvc0 to the guest, a unix stream socket to the host.
 *
 * The socket (mode 0600) is listened at while this machine owns the guest: from acquire() to
 * release(). One peer at a time is served; another one is accepted and closed at once.
 *
 *	guest -> peer	Without a peer the last VIRTIO_CONSOLE_BACKLOG bytes are kept for the next
 *			one and older ones are dropped: a guest must not hang because nobody
 *			looks. With a peer nothing is dropped: the guest's buffers wait when the
 *			backlog is full.
 *	peer -> guest	No more is read from the peer than the guest has buffers for.
 *
 * A migration carries the backlog, the bytes that the peer had sent before the pause (at most
 * as many again), and the place inside a buffer of the guest that was only sent in part. The
 * connection is not carried: the peer sees its end and connects anew, at the destination's socket.
 */
#ifndef GODWIT_VIRTIO_CONSOLE_H
#define GODWIT_VIRTIO_CONSOLE_H

#include "device.h"
#include "util.h"
#include "vm_devices.h"

#define VIRTIO_CONSOLE_BACKLOG (64 * KIB)

extern const struct device_ops virtio_console_ops; /* config: const struct vm_console * */

#endif
