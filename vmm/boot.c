/* SPDX-License-Identifier: MIT */
/*
 * The steps of a boot, in order; boot_image.h says why they are apart.
 */
#include "boot.h"

#include <errno.h>
#include <string.h>

#include "acpi.h"
#include "boot_image.h"
#include "boot_layout.h"

_Static_assert(VM_CMDLINE_MAX <= BOOT_CMDLINE_SIZE, "layout");

/* Below 1 MiB a kernel may only be where the boot puts nothing. */
static int check_low_segments(const struct boot_file *f, const struct boot_image *img,
			      struct errmsg *err)
{
	for (unsigned i = 0; i < img->n_segments; i++) {
		const struct boot_segment *s = &img->segment[i];
		uint64_t end = s->gpa + s->mem_size;

		if (s->gpa >= BOOT_HIGH_RAM || (s->gpa >= BOOT_LOW_END && end <= BOOT_LOW_RAM_END))
			continue;
		return errmsg_set(err, -ENOEXEC,
				  "kernel %s wants memory from %#llx to %#llx, which boot data and "
				  "ACPI tables need: link it at 1 MiB or above",
				  f->path, (unsigned long long)s->gpa, (unsigned long long)end);
	}
	return 0;
}

int boot_parse(const struct boot_file *f, struct boot_image *img, struct errmsg *err)
{
	uint8_t head[BOOT_HEAD_SIZE];
	size_t len = MIN(f->size, sizeof(head));
	int ret;

	memset(img, 0, sizeof(*img));
	ret = pread_exact(f->fd, head, len, 0);
	if (ret)
		return errmsg_set(err, ret, "kernel %s: %s", f->path, strerror(-ret));
	if (boot_is_bzimage(head, len))
		ret = boot_parse_bzimage(f, head, len, img, err);
	else if (boot_is_elf(head, len))
		ret = boot_parse_elf(f, head, len, img, err);
	else
		ret = boot_not_a_kernel(f, head, len, err);
	return ret ? ret : check_low_segments(f, img, err);
}

int boot_inspect(const char *kernel, struct boot_info *info, struct errmsg *err)
{
	struct boot_image img;
	struct boot_file f;
	int ret;

	ret = boot_file_open(&f, "kernel", kernel, err);
	if (ret)
		return ret;
	ret = boot_parse(&f, &img, err);
	if (!ret)
		*info = img.info;
	boot_file_close(&f);
	return ret;
}

/*
 * Zeros, leaving no memory behind: what has never been touched needs no page, and a kernel's BSS
 * can be large.
 */
static int clear(struct ram *ram, uint64_t gpa, uint64_t len)
{
	uint64_t first = ALIGN_UP(gpa, PAGE_SIZE), last = ALIGN_DOWN(gpa + len, PAGE_SIZE);
	const uint8_t *host = ram_ptr(ram, gpa, len);
	int ret;

	if (!host)
		return -EFAULT;
	if (first >= last)
		return ram_zero(ram, gpa, len);
	ret = ram_zero(ram, gpa, first - gpa);
	if (!ret)
		ret = ram_zero(ram, last, gpa + len - last);
	/* Offset in the file and page index are contiguous over both regions, as in ram.h. */
	if (!ret)
		ret = ram_zero_pages(ram, (uint64_t)(host + (first - gpa) - ram->host) / PAGE_SIZE,
				     (last - first) / PAGE_SIZE);
	return ret;
}

static int load_segments(struct ram *ram, const struct boot_file *f, const struct boot_image *img,
			 struct errmsg *err)
{
	int ret = 0;

	for (unsigned i = 0; i < img->n_segments && !ret; i++) {
		const struct boot_segment *s = &img->segment[i];

		ret = ram_write_file(ram, s->gpa, f->fd, s->file_offset, s->file_size);
		if (!ret)
			ret = clear(ram, s->gpa + s->file_size, s->mem_size - s->file_size);
	}
	return ret ? errmsg_set(err, ret, "kernel %s: loading it: %s", f->path, strerror(-ret)) : 0;
}

/* Opens the initrd, if there is to be one, and finds it a place. */
static int fit_initrd(struct boot_file *f, const char *path, const struct boot_image *img,
		      const struct ram *ram, struct boot_initrd *initrd, struct errmsg *err)
{
	int ret;

	if (!path[0])
		return 0;
	ret = boot_file_open(f, "initrd", path, err);
	if (ret)
		return ret;
	initrd->size = f->size;
	return boot_fit_initrd(img, ram, path, initrd, err);
}

static int load_initrd(struct ram *ram, const struct boot_file *f, const struct boot_initrd *initrd,
		       struct errmsg *err)
{
	int ret;

	if (!initrd->size)
		return 0;
	ret = ram_write_file(ram, initrd->gpa, f->fd, 0, initrd->size);
	return ret ? errmsg_set(err, ret, "initrd %s: loading it: %s", f->path, strerror(-ret)) : 0;
}

static int check_cmdline(const struct vm_config *cfg, const struct boot_image *img,
			 struct errmsg *err)
{
	size_t len = strnlen(cfg->cmdline, sizeof(cfg->cmdline));
	size_t max = MIN((size_t)img->cmdline_max, BOOT_CMDLINE_SIZE - 1U);

	if (len > max)
		return errmsg_set(err, -E2BIG,
				  "the command line has %zu bytes, kernel %s takes %zu: shorten it",
				  len, cfg->kernel, max);
	return 0;
}

static int load_cmdline(struct ram *ram, const struct vm_config *cfg, struct errmsg *err)
{
	size_t len = strnlen(cfg->cmdline, sizeof(cfg->cmdline));
	int ret;

	ret = ram_write(ram, BOOT_CMDLINE_GPA, cfg->cmdline, len);
	if (!ret)
		ret = ram_zero(ram, BOOT_CMDLINE_GPA + len, BOOT_CMDLINE_SIZE - len);
	return ret ? errmsg_set(err, ret, "writing the command line: %s", strerror(-ret)) : 0;
}

int boot_place(struct vm *vm, struct boot_info *info, struct boot_regs *regs, struct errmsg *err)
{
	struct boot_file kernel, initrd_file = {.fd = -1};
	struct boot_initrd initrd = {0};
	struct ram *ram = &vm->ram;
	struct boot_image img;
	uint64_t rsdp;
	int ret;

	ret = boot_file_open(&kernel, "kernel", vm->cfg.kernel, err);
	if (ret)
		return ret;
	ret = boot_parse(&kernel, &img, err);
	if (!ret)
		ret = check_cmdline(&vm->cfg, &img, err);
	if (!ret)
		ret = boot_fit_kernel(&img, ram, kernel.path, err);
	if (!ret)
		ret = fit_initrd(&initrd_file, vm->cfg.initrd, &img, ram, &initrd, err);

	/* Kernel, initrd and command line fit: from here on RAM is written. */
	if (!ret)
		ret = load_segments(ram, &kernel, &img, err);
	if (!ret)
		ret = load_initrd(ram, &initrd_file, &initrd, err);
	if (!ret)
		ret = load_cmdline(ram, &vm->cfg, err);
	if (!ret)
		ret = acpi_build(vm, &rsdp, err);
	if (ret)
		goto out;

	*regs = (struct boot_regs){.rip = img.info.entry};
	if (img.info.format == BOOT_PVH) {
		regs->mode = BOOT_MODE_PVH;
		regs->rbx = BOOT_PVH_GPA;
		ret = boot_write_pvh(ram, &initrd, rsdp, err);
	} else {
		regs->mode = BOOT_MODE_LONG;
		regs->rsi = BOOT_PARAMS_GPA;
		ret = boot_write_linux(ram, &img, kernel.path, &initrd, rsdp, err);
	}
	if (!ret)
		*info = img.info;
out:
	boot_file_close(&initrd_file);
	boot_file_close(&kernel);
	return ret;
}

int boot_load(struct vm *vm, struct boot_info *info, struct errmsg *err)
{
	struct boot_regs regs;
	int ret;

	ret = boot_place(vm, info, &regs, err);
	if (ret)
		return ret;
	return boot_set_regs(vm, &regs, err);
}
