/* SPDX-License-Identifier: MIT */
/*
 * The machine as godwit sells it: a VM with its devices, in one explicit order, the same for a
 * guest that boots here and for one that arrives.
 */
#ifndef GODWIT_MACHINE_H
#define GODWIT_MACHINE_H

#include "chan.h"
#include "vm.h"

/*
 * vm_create() and every device. serial is the channel of COM1; it outlives the machine.
 * -errno with the cause in err, nothing left behind.
 */
int machine_create(struct vm **out, const struct vm_config *cfg, const struct cpuid *cpuid,
		   struct loop *loop, struct chan *serial, struct errmsg *err);

/* Any device that a machine can have, by its tag; NULL: there is none of that. */
const struct device_ops *machine_device_ops(const char *tag);

/* Presses the machine's power button. */
void machine_power_button(struct vm *vm);

#endif
