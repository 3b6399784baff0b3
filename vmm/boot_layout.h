/* SPDX-License-Identifier: MIT */
/*
 * Where a boot puts things in guest-physical memory, below the kernel.
 *
 *	0x000000 +------------------------------+
 *	         | vectors, BIOS data: zeros    |
 *	0x000500 | GDT                          |
 *	0x001000 | boot_params                  |  bzImage, ELF64
 *	0x002000 | command line                 |
 *	0x003000 | hvm_start_info and its lists |  PVH
 *	0x004000 | unused: guests like to start |
 *	         | their other CPUs at 0x8000   |
 *	0x009000 | page tables                  |  bzImage, ELF64
 *	0x013000 +------------------------------+  BOOT_LOW_END
 *	         | RAM, free                    |
 *	0x0a0000 +------------------------------+  BOOT_LOW_RAM_END
 *	         | not in the memory map        |
 *	0x0e0000 | ACPI tables, RSDP first      |  reserved in the memory map
 *	0x100000 +------------------------------+  BOOT_HIGH_RAM
 *	         | kernel                       |  bzImage at its preferred address (16 MiB),
 *	         |                              |  ELF where it is linked
 *	         | ...                          |
 *	         | initrd                       |  as high as kernel and RAM allow
 *	         +------------------------------+  end of low RAM, at most 3 GiB
 *
 * Everything here is read by the guest when it starts and is free for it afterwards, but for the
 * ACPI tables.
 */
#ifndef GODWIT_BOOT_LAYOUT_H
#define GODWIT_BOOT_LAYOUT_H

#define BOOT_GDT_GPA 0x500U
#define BOOT_PARAMS_GPA 0x1000U
#define BOOT_CMDLINE_GPA 0x2000U
#define BOOT_CMDLINE_SIZE 0x1000U /* with the final NUL */
#define BOOT_PVH_GPA 0x3000U
#define BOOT_PVH_SIZE 0x1000U
#define BOOT_PML4_GPA 0x9000U
#define BOOT_PDPT_GPA 0xa000U
#define BOOT_PD_GPA 0xb000U
#define BOOT_PD_MAX 8U /* GiBs that can be mapped: the first four, and where the kernel is */
#define BOOT_LOW_END (BOOT_PD_GPA + BOOT_PD_MAX * 0x1000U)

#define BOOT_LOW_RAM_END 0xa0000U
#define BOOT_HIGH_RAM 0x100000U

/* Selectors that the Linux boot protocol prescribes; PVH leaves them open. */
#define BOOT_CS 0x10U
#define BOOT_DS 0x18U

#endif
