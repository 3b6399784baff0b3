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
 * Loads one section into nothing, for who only looks at it: body has a view (sbuf.h). ops: of the
 * device whose it is, NULL when it is no device's. -ENOTSUP with the cause in err (no machine has
 * such a section, or this godwit does not read its version), else what is wrong with the body.
 */
int state_look(const struct sb_section *sec, const struct device_ops *ops, struct sbuf *body,
	       struct errmsg *err);

/*
 * The list of devices, each with its shape (device.h), for the handshake. Loading compares it with
 * vm's: -ENOTSUP names the first difference.
 */
void state_device_list(struct vm *vm, struct sbuf *s, struct errmsg *err);

/*
 * Loads such a list into nothing, for who only looks at it: s has a view (sbuf.h). find: any device
 * by its tag, or NULL. Fails s with -ENOTSUP at one that is not known.
 */
typedef const struct device_ops *state_find_device(const char *tag);
void state_look_at_list(state_find_device *find, struct sbuf *s);

#endif
