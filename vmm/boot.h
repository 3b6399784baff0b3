/* SPDX-License-Identifier: MIT */
/*
 * Direct kernel boot: puts kernel, initrd, command line and tables into guest RAM and sets the
 * boot vCPU's registers.
 *
 * Formats, found by content: bzImage by the 64-bit entry of the Linux boot protocol
 * (Documentation/arch/x86/boot.rst), ELF with a PVH note (XEN_ELFNOTE_PHYS32_ENTRY; Xen
 * docs/misc/pvh), ELF x86-64 without one (a Linux vmlinux by its 64-bit entry).
 *
 * boot_layout.h has the guest-physical addresses of everything that is not the kernel's own choice.
 */
#ifndef GODWIT_BOOT_H
#define GODWIT_BOOT_H

#include <stdbool.h>
#include <stdint.h>

#include "log.h"
#include "vm.h"

enum boot_format {
	BOOT_BZIMAGE,
	BOOT_PVH,
	BOOT_ELF64,
};

struct boot_info {
	enum boot_format format;
	bool linux_guest; /* a Linux kernel: needs ring 0 at native speed */
	uint64_t entry;	  /* gpa of the first instruction */
};

/*
 * Looks at a kernel file without a machine: its format, whether it can be booted at all, and
 * whether it is Linux. -ENOENT, -EISDIR, -ENOEXEC (not a kernel, truncated, 32-bit only, linked
 * where boot data must be), -errno, with path, reason and remedy in err.
 */
int boot_inspect(const char *kernel, struct boot_info *info, struct errmsg *err);

/*
 * Loads what vm->cfg names into a machine that has not run: kernel, initrd, command line, ACPI
 * tables for its devices, boot vCPU registers. Errors as boot_inspect(), and -EFBIG (kernel or
 * initrd do not fit the RAM: err says how much is needed), -E2BIG (command line longer than the
 * kernel takes: err says the limit).
 */
int boot_load(struct vm *vm, struct boot_info *info, struct errmsg *err);

#endif
