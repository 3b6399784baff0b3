/* SPDX-License-Identifier: MIT */
/*
 * The machine's state as sections: vcpu (one each), irqchip, pit, clock, run (is it
 * paused by its user?), then every device.
 *
 * That is also the order of loading. A machine that is to load was built by the ordinary init and
 * has never run.
 */
#ifndef GODWIT_MIGRATE_STATE_H
#define GODWIT_MIGRATE_STATE_H

#include <stdint.h>

#include "../vmm/sbuf.h"
#include "../vmm/vm.h"

/*
 * Saves the state of a stopped machine with quiesced devices into s. clock_offset_ns: what to
 * add to this host's now_ns() to get the destination's. -errno with the cause in err.
 */
int state_save(struct vm *vm, int64_t clock_offset_ns, struct sbuf *s, struct errmsg *err);

/*
 * Loads it. Everything the source listed must be there exactly once, in any version that this
 * side understands; unknown sections are refused unless marked optional. -EPROTO (malformed),
 * -ENOTSUP (this host cannot), -errno with the cause in err.
 */
int state_load(struct vm *vm, const void *data, size_t len, struct errmsg *err);

/*
 * The list of devices, each with its shape (device.h), for the handshake. Loading compares it with
 * vm's: -ENOTSUP names the first difference.
 */
void state_device_list(struct vm *vm, struct sbuf *s, struct errmsg *err);

#endif
