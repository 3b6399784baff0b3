/* SPDX-License-Identifier: MIT */
/*
 * What every device is: one .c file with one ops table.
 *
 * Life of a device:
 *
 *	init -> reset -> (guest runs) -> quiesce -> fields (saving) -> resume or destroy
 *	init -> reset -> fields (loading) -> loaded -> resume -> (guest runs)
 *
 * Restore is the ordinary init followed by load: there is no second way to build a device.
 * Devices are created by vm_add_device() in one explicit, ordered list (machine.c) and are
 * enumerated by the VM; no two devices include each other.
 */
#ifndef GODWIT_DEVICE_H
#define GODWIT_DEVICE_H

#include <stddef.h>
#include <stdint.h>

#include "log.h"
#include "sbuf.h"

struct vm;
struct device;

struct device_ops {
	const char *tag;  /* section tag on the wire, unique with the instance; at most 15 bytes */
	size_t size;	  /* of the structure that starts with struct device */
	uint16_t version; /* of the field list */
	uint16_t min_version; /* oldest that load still understands */

	/*
	 * Claims ports and interrupts, checks config (the device's own type). Fields below
	 * struct device are zero on entry. On error everything is released again. -errno.
	 */
	int (*init)(struct device *d, const void *config);

	/* Power-on state. Also after a guest's reset. No vCPU runs. */
	void (*reset)(struct device *d);

	/*
	 * Stops touching guest RAM and changing state, until resume. vCPUs are stopped already.
	 * Called off the loop's thread, so that it may wait for work that the loop completes;
	 * at most until deadline (now_ns() time), then -ETIMEDOUT and the device goes on as before.
	 */
	int (*quiesce)(struct device *d, uint64_t deadline_ns);
	void (*resume)(struct device *d);

	/* The one field list: saves when s is saving, loads when s is loading. */
	void (*fields)(struct device *d, struct sbuf *s);

	/*
	 * Makes a structure of zeroes, that no init has seen, one that fields and shape can load
	 * into for who only looks (sbuf.h): sets what they go by that is neither zero nor saved.
	 * Takes nothing of the host and allocates nothing. May be NULL: zeroes are enough.
	 */
	void (*blank)(struct device *d);

	/*
	 * After a load: check what was loaded (-EPROTO: state that the device cannot be in) and
	 * make the host side agree with it (interrupt lines, timers). May be NULL.
	 */
	int (*loaded)(struct device *d);

	/*
	 * What a guest may rely on and another host's device must have too (size of a disk,
	 * features that were offered): part of the handshake, before anything is paused. Saving
	 * writes it; loading compares it with this device and may narrow the device to it. Fails s
	 * with -ENOTSUP and what is missing in err. May be NULL.
	 */
	void (*shape)(struct device *d, struct sbuf *s, struct errmsg *err);

	/*
	 * Something of the host that only one guest may have, such as the lock of a disk image:
	 * taken before the guest runs (-errno with the cause in err), and given up when the guest
	 * is handed over; a hand-over that fails takes it again. Quiesced or not yet run. Off the
	 * loop's thread or on it. May be NULL.
	 */
	int (*acquire)(struct device *d, struct errmsg *err);
	void (*release)(struct device *d);

	/*
	 * A move is under way and its pause comes nearer: begin what quiesce would otherwise have
	 * to wait for, such as writing a cache out. Returns at once; the guest runs. Off the loop's
	 * thread. May be NULL.
	 */
	void (*prepare)(struct device *d);

	/* Releases everything. The memory itself is the VM's. */
	void (*destroy)(struct device *d);
};

struct device {
	const struct device_ops *ops;
	struct vm *vm;
	uint32_t instance;
	struct device *next; /* in order of creation */
};

#endif
