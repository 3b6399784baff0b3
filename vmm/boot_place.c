/* SPDX-License-Identifier: MIT */
/*
 * Finding places in RAM for kernel and initrd, and the memory map that the guest is told.
 */
#include <errno.h>

#include "acpi.h"
#include "boot_image.h"
#include "boot_layout.h"

unsigned boot_memmap(const struct ram *ram, struct boot_range map[BOOT_MAX_RANGES])
{
	unsigned n = 0;

	map[n++] = (struct boot_range){0, BOOT_LOW_RAM_END, BOOT_E820_RAM};
	map[n++] = (struct boot_range){ACPI_TABLES_GPA, ACPI_TABLES_SIZE, BOOT_E820_RESERVED};
	map[n++] = (struct boot_range){BOOT_HIGH_RAM, ram->region[0].size - BOOT_HIGH_RAM,
				       BOOT_E820_RAM};
	if (ram->nregions > 1)
		map[n++] =
			(struct boot_range){ram->region[1].gpa, ram->region[1].size, BOOT_E820_RAM};
	return n;
}

/* RAM size (-m) in MiB of a machine that has [gpa, end) in one region; 0: none has. */
static uint64_t ram_holding(uint64_t gpa, uint64_t end)
{
	uint64_t size;

	if (end <= RAM_LOW_MAX)
		size = end;
	else if (gpa >= RAM_HIGH_BASE)
		size = RAM_LOW_MAX + (end - RAM_HIGH_BASE);
	else
		return 0;
	return ALIGN_UP(MAX(size, RAM_MIN), MIB) / MIB;
}

static bool in_ram(const struct ram *ram, const struct boot_segment *s)
{
	return ram_ptr(ram, s->gpa, s->mem_size);
}

/*
 * Up only: the boot protocol lets a loader put a relocatable kernel below its preferred address,
 * but the 64-bit decompressor takes that address for its lower limit all the same, and would
 * write where there is no RAM.
 */
static void move_kernel(struct boot_image *img, const struct ram *ram)
{
	struct boot_segment *s = &img->segment[0];

	for (unsigned i = 0; i < ram->nregions && !in_ram(ram, s); i++) {
		const struct ram_region *r = &ram->region[i];
		struct boot_segment moved = *s;

		if (r->gpa >= RAM_HIGH_BASE && !img->above_4g)
			break;
		moved.gpa = MAX(s->gpa, r->gpa);
		if (!add_u64(moved.gpa, img->move_align - 1, &moved.gpa))
			break;
		moved.gpa = ALIGN_DOWN(moved.gpa, img->move_align);
		if (in_ram(ram, &moved)) {
			img->info.entry += moved.gpa - s->gpa;
			*s = moved;
		}
	}
}

int boot_fit_kernel(struct boot_image *img, const struct ram *ram, const char *path,
		    struct errmsg *err)
{
	uint64_t need = 0;

	if (img->move_align)
		move_kernel(img, ram);
	for (unsigned i = 0; i < img->n_segments; i++) {
		const struct boot_segment *s = &img->segment[i];
		uint64_t end = s->gpa + s->mem_size, m = ram_holding(s->gpa, end);

		if (in_ram(ram, s))
			continue;
		if (img->move_align && img->above_4g && end > RAM_LOW_MAX)
			m = ram_holding(RAM_HIGH_BASE, RAM_HIGH_BASE + s->mem_size);
		if (m <= ram->size / MIB)
			return errmsg_set(err, -EFBIG,
					  "kernel %s wants memory from %#llx to %#llx, where no "
					  "machine has RAM: link it elsewhere",
					  path, (unsigned long long)s->gpa,
					  (unsigned long long)end);
		need = MAX(need, m);
	}
	if (need)
		return errmsg_set(err, -EFBIG,
				  "kernel %s does not fit into %lluM of RAM: use -m %lluM or more",
				  path, (unsigned long long)(ram->size / MIB),
				  (unsigned long long)need);
	return 0;
}

static const struct boot_segment *overlapping(const struct boot_image *img, uint64_t gpa,
					      uint64_t size)
{
	for (unsigned i = 0; i < img->n_segments; i++) {
		const struct boot_segment *s = &img->segment[i];

		if (s->gpa < gpa + size && gpa < s->gpa + s->mem_size)
			return s;
	}
	return NULL;
}

/* Highest page-aligned place for size bytes in [lo, hi), which is RAM, that the kernel leaves. */
static bool find_gap(const struct boot_image *img, uint64_t lo, uint64_t hi, uint64_t size,
		     uint64_t *gpa)
{
	const struct boot_segment *s;
	uint64_t top = hi;

	for (;;) {
		if (top < lo || size > top - lo)
			return false;
		*gpa = ALIGN_DOWN(top - size, PAGE_SIZE);
		if (*gpa < lo)
			return false;
		s = overlapping(img, *gpa, size);
		if (!s)
			return true;
		top = s->gpa;
	}
}

/* Size in whole pages of the largest gap in [lo, hi). */
static uint64_t largest_gap(const struct boot_image *img, uint64_t lo, uint64_t hi)
{
	uint64_t best = 0, unused;

	/* A gap starts at lo or where a segment ends: halve towards the largest that fits. */
	for (uint64_t step = hi > lo ? ALIGN_DOWN(hi - lo, PAGE_SIZE) : 0; step >= PAGE_SIZE;
	     step = ALIGN_DOWN(step / 2, PAGE_SIZE)) {
		while (best + step <= hi - lo && find_gap(img, lo, hi, best + step, &unused))
			best += step;
	}
	return best;
}

int boot_fit_initrd(const struct boot_image *img, const struct ram *ram, const char *path,
		    struct boot_initrd *initrd, struct errmsg *err)
{
	uint64_t low_end = ram->region[0].size, limit = MIN(img->initrd_end, low_end);
	uint64_t size = initrd->size, kernel_end = BOOT_HIGH_RAM, room, end, m = 0;
	char size_text[32], room_text[32];

	if (size > INT64_MAX)
		return errmsg_set(err, -EFBIG, "initrd %s is too large", path);
	if (find_gap(img, BOOT_HIGH_RAM, limit, size, &initrd->gpa))
		return 0;
	room = largest_gap(img, BOOT_HIGH_RAM, limit);
	if (img->above_4g) {
		if (find_gap(img, BOOT_HIGH_RAM, low_end, size, &initrd->gpa))
			return 0;
		room = largest_gap(img, BOOT_HIGH_RAM, low_end);
		for (unsigned i = 1; i < ram->nregions; i++) {
			const struct ram_region *r = &ram->region[i];

			if (find_gap(img, r->gpa, r->gpa + r->size, size, &initrd->gpa))
				return 0;
			room = MAX(room, largest_gap(img, r->gpa, r->gpa + r->size));
		}
	}

	for (unsigned i = 0; i < img->n_segments; i++) {
		end = img->segment[i].gpa + img->segment[i].mem_size;
		if (end <= RAM_LOW_MAX)
			kernel_end = MAX(kernel_end, ALIGN_UP(end, PAGE_SIZE));
	}
	end = kernel_end + ALIGN_UP(size, PAGE_SIZE);
	if (end <= MIN(img->above_4g ? UINT64_MAX : img->initrd_end, RAM_LOW_MAX))
		m = ram_holding(kernel_end, end);
	else if (img->above_4g)
		m = ram_holding(RAM_HIGH_BASE, RAM_HIGH_BASE + ALIGN_UP(size, PAGE_SIZE));
	format_size(size_text, sizeof(size_text), size);
	format_size(room_text, sizeof(room_text), room);
	if (m > ram->size / MIB)
		return errmsg_set(err, -EFBIG,
				  "initrd %s has %s, but the kernel leaves room for %s: use -m "
				  "%lluM or more",
				  path, size_text, room_text, (unsigned long long)m);
	return errmsg_set(err, -EFBIG,
			  "initrd %s has %s, but this kernel leaves room for %s: make it smaller",
			  path, size_text, room_text);
}
