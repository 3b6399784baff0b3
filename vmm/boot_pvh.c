/* SPDX-License-Identifier: MIT */
/*
 * What a PVH kernel finds at EBX (Xen docs/misc/pvh, public/arch-x86/hvm/start_info.h), all in one
 * page:
 *
 *	+----------------+ BOOT_PVH_GPA
 *	| start_info     |
 *	| module list    |  the initrd, if there is one
 *	| memory map     |
 *	+----------------+
 */
#include <errno.h>
#include <string.h>

#include "boot_image.h"
#include "boot_layout.h"

#define START_INFO_MAGIC 0x336ec578U
#define START_INFO_VERSION 1U /* the one with a memory map */

struct hvm_start_info {
	uint32_t magic;
	uint32_t version;
	uint32_t flags;
	uint32_t nr_modules;
	uint64_t modlist_paddr;
	uint64_t cmdline_paddr;
	uint64_t rsdp_paddr;
	uint64_t memmap_paddr;
	uint32_t memmap_entries;
	uint32_t reserved;
};

struct hvm_modlist_entry {
	uint64_t paddr;
	uint64_t size;
	uint64_t cmdline_paddr;
	uint64_t reserved;
};

struct hvm_memmap_entry {
	uint64_t addr;
	uint64_t size;
	uint32_t type;
	uint32_t reserved;
};

struct pvh_page {
	struct hvm_start_info info;
	struct hvm_modlist_entry module;
	struct hvm_memmap_entry memmap[BOOT_MAX_RANGES];
};

_Static_assert(sizeof(struct hvm_start_info) == 56, "PVH ABI");
_Static_assert(sizeof(struct hvm_modlist_entry) == 32, "PVH ABI");
_Static_assert(sizeof(struct hvm_memmap_entry) == 24, "PVH ABI");
_Static_assert(sizeof(struct pvh_page) <= BOOT_PVH_SIZE, "layout");

int boot_write_pvh(struct ram *ram, const struct boot_initrd *initrd, uint64_t rsdp,
		   struct errmsg *err)
{
	struct boot_range map[BOOT_MAX_RANGES];
	struct pvh_page page = {
		.info =
			{
				.magic = START_INFO_MAGIC,
				.version = START_INFO_VERSION,
				.cmdline_paddr = BOOT_CMDLINE_GPA,
				.rsdp_paddr = rsdp,
				.memmap_paddr = BOOT_PVH_GPA + offsetof(struct pvh_page, memmap),
			},
	};
	int ret;

	page.info.memmap_entries = boot_memmap(ram, map);
	for (unsigned i = 0; i < page.info.memmap_entries; i++) {
		page.memmap[i].addr = map[i].gpa;
		page.memmap[i].size = map[i].size;
		page.memmap[i].type = map[i].type;
	}
	if (initrd->size) {
		page.info.nr_modules = 1;
		page.info.modlist_paddr = BOOT_PVH_GPA + offsetof(struct pvh_page, module);
		page.module.paddr = initrd->gpa;
		page.module.size = initrd->size;
	}
	ret = ram_write(ram, BOOT_PVH_GPA, &page, sizeof(page));
	return ret ? errmsg_set(err, ret, "writing PVH boot data: %s", strerror(-ret)) : 0;
}
