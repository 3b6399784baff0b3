/* SPDX-License-Identifier: MIT */
/*
 * ACPI fixed hardware (ACPI 6.x section 4.8): PM1a event and control blocks, SCI, the power
 * button, S5, and the reset register at 0xcf9.
 */
#ifndef GODWIT_ACPI_PM_H
#define GODWIT_ACPI_PM_H

#include "device.h"

#define ACPI_PM1A_EVT 0x600U /* 4 bytes: status, enable */
#define ACPI_PM1A_CNT 0x604U /* 2 bytes */
#define ACPI_RESET_PORT 0xcf9U
#define ACPI_RESET_VALUE 0x06U
#define ACPI_S5_SLP_TYP 0U /* 0x2000 (SLP_EN) to PM1a_CNT powers off */

extern const struct device_ops acpi_pm_ops; /* config: NULL */

/* Presses the power button: the guest gets an SCI. Any thread. */
void acpi_pm_power_button(struct device *d);

#endif
