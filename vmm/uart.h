/* SPDX-License-Identifier: MIT */
/*
 * 16550A UART at COM1 (ports 0x3f8-0x3ff, ISA interrupt 4), after the National Semiconductor
 * PC16550D data sheet. Its line is a channel (chan.h).
 */
#ifndef GODWIT_UART_H
#define GODWIT_UART_H

#include "chan.h"
#include "device.h"

struct uart_config {
	uint16_t port;
	uint32_t gsi;
	struct chan *chan; /* the owner's; outlives the device */
};

extern const struct device_ops uart_ops; /* config: struct uart_config */

#endif
