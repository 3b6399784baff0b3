/* SPDX-License-Identifier: MIT */
/*
 * What Linux expects at its 64-bit entry (Documentation/arch/x86/boot.rst): boot_params with
 * setup header and memory map, a GDT, and page tables that map the kernel one to one.
 *
 * screen_info stays zero: there is no VGA, and a kernel that believed in one would write to it.
 */
#include <errno.h>
#include <string.h>

#include "boot_image.h"
#include "boot_layout.h"

#define PTE_PRESENT_WRITE 0x3ULL
#define PTE_LARGE 0x80ULL
#define PTES 512U
#define LOADER_UNDEFINED 0xff

_Static_assert(sizeof(struct boot_params) == PAGE_SIZE, "boot protocol");
_Static_assert(BOOT_PARAMS_GPA + sizeof(struct boot_params) <= BOOT_CMDLINE_GPA, "layout");

static uint32_t low32(uint64_t v)
{
	return (uint32_t)(v & UINT32_MAX);
}

static int write_boot_params(struct ram *ram, const struct boot_image *img,
			     const struct boot_initrd *initrd, uint64_t rsdp)
{
	struct boot_params bp = {.hdr = img->hdr, .acpi_rsdp_addr = rsdp};
	struct boot_range map[BOOT_MAX_RANGES];
	unsigned n = boot_memmap(ram, map);

	bp.hdr.type_of_loader = LOADER_UNDEFINED;
	/* Flags of the real-mode code and of the kernel's own, not the loader's to pass on. */
	bp.hdr.loadflags &= (uint8_t) ~(CAN_USE_HEAP | KASLR_FLAG);
	bp.hdr.setup_data = 0;
	bp.hdr.code32_start = low32(img->segment[0].gpa);
	bp.hdr.cmd_line_ptr = BOOT_CMDLINE_GPA;
	bp.hdr.ramdisk_image = low32(initrd->gpa);
	bp.hdr.ramdisk_size = low32(initrd->size);
	bp.ext_ramdisk_image = low32(initrd->gpa >> 32);
	bp.ext_ramdisk_size = low32(initrd->size >> 32);
	for (unsigned i = 0; i < n; i++) {
		bp.e820_table[i].addr = map[i].gpa;
		bp.e820_table[i].size = map[i].size;
		bp.e820_table[i].type = map[i].type;
	}
	bp.e820_entries = (uint8_t)n;
	return ram_write(ram, BOOT_PARAMS_GPA, &bp, sizeof(bp));
}

/*
 * One to one in 2 MiB pages, which every x86-64 CPU has: the first 4 GiB, and each GiB above that
 * the kernel occupies. -EFBIG when there are more of those than page directories, or they are
 * beyond the one PDPT.
 */
static int write_page_tables(struct ram *ram, const struct boot_image *img)
{
	uint64_t pml4[PTES] = {BOOT_PDPT_GPA | PTE_PRESENT_WRITE};
	uint64_t pdpt[PTES] = {0};
	uint64_t pd[PTES];
	unsigned n_pd = 0;
	int ret;

	for (uint64_t gib = 0; gib < PTES; gib++) {
		bool used = gib < 4;

		for (unsigned i = 0; i < img->n_segments && !used; i++) {
			const struct boot_segment *s = &img->segment[i];

			used = s->gpa < (gib + 1) * GIB && gib * GIB < s->gpa + s->mem_size;
		}
		if (!used)
			continue;
		if (n_pd == BOOT_PD_MAX)
			return -EFBIG;
		for (unsigned i = 0; i < PTES; i++)
			pd[i] = (gib * GIB + i * 2 * MIB) | PTE_PRESENT_WRITE | PTE_LARGE;
		pdpt[gib] = (BOOT_PD_GPA + n_pd * PAGE_SIZE) | PTE_PRESENT_WRITE;
		ret = ram_write(ram, BOOT_PD_GPA + n_pd * PAGE_SIZE, pd, sizeof(pd));
		if (ret)
			return ret;
		n_pd++;
	}
	for (unsigned i = 0; i < img->n_segments; i++) {
		if (img->segment[i].gpa + img->segment[i].mem_size > PTES * GIB)
			return -EFBIG;
	}
	ret = ram_write(ram, BOOT_PML4_GPA, pml4, sizeof(pml4));
	if (!ret)
		ret = ram_write(ram, BOOT_PDPT_GPA, pdpt, sizeof(pdpt));
	return ret;
}

int boot_write_linux(struct ram *ram, const struct boot_image *img, const char *path,
		     const struct boot_initrd *initrd, uint64_t rsdp, struct errmsg *err)
{
	int ret;

	ret = write_page_tables(ram, img);
	if (ret == -EFBIG)
		return errmsg_set(err, ret,
				  "kernel %s spreads over too many GiB above 4 GiB for the boot "
				  "page tables: link it below",
				  path);
	if (!ret)
		ret = write_boot_params(ram, img, initrd, rsdp);
	return ret ? errmsg_set(err, ret, "kernel %s: writing boot data: %s", path, strerror(-ret))
		   : 0;
}
