/* SPDX-License-Identifier: MIT */
/*
 * What the control socket tells of a guest's devices, and asks of them.
 */
#ifndef GODWIT_INSTANCE_DEVICES_H
#define GODWIT_INSTANCE_DEVICES_H

#include <jansson.h>

#include "vm.h"

/* An array with an object for each device that the user gave the guest; the caller's. */
json_t *instance_devices(const struct vm *vm);

/*
 * The balloon's figures as an object, the caller's. With a target (bytes; UINT64_MAX: none) it is
 * set first. NULL with the cause in err: no balloon, or a target that cannot be.
 */
json_t *instance_balloon(const struct vm *vm, uint64_t target, struct errmsg *err);

#endif
