/* SPDX-License-Identifier: MIT */
#ifndef GODWIT_GUEST_LINUX_INFO_H
#define GODWIT_GUEST_LINUX_INFO_H

#include "serial.h"

/* Say what the kernel found: CPUs, memory ranges, clock sources, ACPI tables, RTC, interrupts. */
void info_say(struct serial *s);

/* The answer to `mem`. */
void info_memory(struct serial *s);

#endif
