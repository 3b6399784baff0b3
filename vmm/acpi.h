/* SPDX-License-Identifier: MIT */
/*
 * ACPI tables (ACPI 6.x): RSDP, XSDT, FADT, MADT, DSDT with what a stock kernel needs to find its
 * CPUs, the IOAPIC, COM1, the RTC, power-off and reset.
 */
#ifndef GODWIT_ACPI_H
#define GODWIT_ACPI_H

#include <stdint.h>

#include "log.h"
#include "vm.h"

/* Area for the tables; reserved in the guest's memory map. */
#define ACPI_TABLES_GPA 0xe0000U
#define ACPI_TABLES_SIZE 0x20000U

/* Writes the tables and sets *rsdp_gpa. -ENOSPC when there are too many vCPUs for the area. */
int acpi_build(struct vm *vm, uint64_t *rsdp_gpa, struct errmsg *err);

#endif
