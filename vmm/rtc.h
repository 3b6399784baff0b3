/* SPDX-License-Identifier: MIT */
/*
 * MC146818 real-time clock and CMOS memory (ports 0x70-0x71, interrupt 8): time of day in UTC
 * with alarm, periodic and update interrupts, 128 bytes of CMOS; century in byte 0x32.
 */
#ifndef GODWIT_RTC_H
#define GODWIT_RTC_H

#include "device.h"

extern const struct device_ops rtc_ops; /* config: NULL */

#endif
