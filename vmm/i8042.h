/* SPDX-License-Identifier: MIT */
/*
 * What is left of the keyboard controller (ports 0x60 and 0x64): command 0xfe resets the machine;
 * nothing is attached, and a guest that looks finds no controller. Port 0x61 is the PIT's.
 */
#ifndef GODWIT_I8042_H
#define GODWIT_I8042_H

#include "device.h"

extern const struct device_ops i8042_ops; /* config: NULL */

#endif
