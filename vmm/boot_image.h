/* SPDX-License-Identifier: MIT */
/*
 * What the parts of the boot loader share; boot.h is for everybody else.
 *
 * A boot is three steps that depend on less and less of the world:
 *
 *	parse	file only:	format, segments, limits		-> struct boot_image
 *	place	image and RAM:	everything goes into guest RAM		-> struct boot_regs
 *	regs	vCPU only:	registers of the boot vCPU
 *
 * so that the first two, which see what a stranger's file says, run without KVM.
 */
#ifndef GODWIT_BOOT_IMAGE_H
#define GODWIT_BOOT_IMAGE_H

#include <asm/bootparam.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "boot.h"
#include "log.h"
#include "ram.h"
#include "vm.h"

#define BOOT_MAX_SEGMENTS 64U
#define BOOT_HEAD_SIZE 1024U /* of a file's start: enough to know what it is */

/* x86 COMMAND_LINE_SIZE less the NUL, where no header says what the kernel takes. */
#define BOOT_LINUX_CMDLINE_MAX 2047U

struct boot_file {
	int fd;
	const char *path; /* the caller's */
	uint64_t size;
};

/* Part of a file and where it goes; memory beyond file_size is zero. */
struct boot_segment {
	uint64_t gpa;
	uint64_t mem_size;
	uint64_t file_offset;
	uint64_t file_size;
};

struct boot_image {
	struct boot_info info;
	unsigned n_segments;
	struct boot_segment segment[BOOT_MAX_SEGMENTS];
	uint64_t move_align;	 /* the only segment may move up by multiples of this; 0: may not */
	bool above_4g;		 /* kernel and initrd may lie above 4 GiB */
	uint64_t initrd_end;	 /* the initrd should end at or below this address */
	uint32_t cmdline_max;	 /* bytes without the NUL */
	struct setup_header hdr; /* of boot_params; not for PVH */
};

enum boot_mode {
	BOOT_MODE_PVH,	/* 32-bit protected mode, no paging */
	BOOT_MODE_LONG, /* 64-bit mode on the page tables of boot_layout.h */
};

struct boot_regs {
	enum boot_mode mode;
	uint64_t rip;
	uint64_t rbx; /* hvm_start_info */
	uint64_t rsi; /* boot_params */
};

struct boot_initrd {
	uint64_t gpa;
	uint64_t size; /* 0: none */
};

#define BOOT_E820_RAM 1U
#define BOOT_E820_RESERVED 2U

struct boot_range {
	uint64_t gpa;
	uint64_t size;
	uint32_t type; /* BOOT_E820_*, the same numbers in PVH */
};

#define BOOT_MAX_RANGES 4

/*
 * Opens a regular file that is not empty; what is "kernel" or "initrd", for err. Not blocked by
 * pipes. -ENOENT, -EISDIR, -ENOEXEC (empty, not a regular file), -errno.
 */
int boot_file_open(struct boot_file *f, const char *what, const char *path, struct errmsg *err);
void boot_file_close(struct boot_file *f);

/* Fills err with what the file is instead of a kernel, and what to do. Returns -ENOEXEC. */
int boot_not_a_kernel(const struct boot_file *f, const uint8_t *head, size_t len,
		      struct errmsg *err);

/*
 * Parses a kernel file of any format. On success every segment lies in the file, none wraps, and
 * no two overlap; nothing is known about RAM yet. Errors as boot_inspect().
 */
int boot_parse(const struct boot_file *f, struct boot_image *img, struct errmsg *err);

/* The formats; head is the file's first len bytes and has the format's magic. */
bool boot_is_bzimage(const uint8_t *head, size_t len);
int boot_parse_bzimage(const struct boot_file *f, const uint8_t *head, size_t len,
		       struct boot_image *img, struct errmsg *err);
bool boot_is_elf(const uint8_t *head, size_t len);
int boot_parse_elf(const struct boot_file *f, const uint8_t *head, size_t len,
		   struct boot_image *img, struct errmsg *err);

/*
 * Puts all of vm->cfg into vm->ram and says how the boot vCPU starts. Uses nothing else of the
 * machine. Errors as boot_load().
 */
int boot_place(struct vm *vm, struct boot_info *info, struct boot_regs *regs, struct errmsg *err);

/*
 * Placement (boot_place.c): moves a movable kernel to where it fits and checks that every
 * segment lies in RAM that is free; finds the initrd a place. -EFBIG with what would do in err.
 */
int boot_fit_kernel(struct boot_image *img, const struct ram *ram, const char *path,
		    struct errmsg *err);
int boot_fit_initrd(const struct boot_image *img, const struct ram *ram, const char *path,
		    struct boot_initrd *initrd, struct errmsg *err);

/* The guest's memory map, in order of address; returns the number of entries. */
unsigned boot_memmap(const struct ram *ram, struct boot_range map[BOOT_MAX_RANGES]);

/*
 * The tables of each entry: boot_params, page tables and GDT of the 64-bit one (boot_linux.c),
 * hvm_start_info with its lists for PVH (boot_pvh.c). The command line is at BOOT_CMDLINE_GPA.
 * -EFBIG when the kernel lies too high for the page tables.
 */
int boot_write_linux(struct ram *ram, const struct boot_image *img, const char *path,
		     const struct boot_initrd *initrd, uint64_t rsdp, struct errmsg *err);
int boot_write_pvh(struct ram *ram, const struct boot_initrd *initrd, uint64_t rsdp,
		   struct errmsg *err);

/* Sets the registers of the boot vCPU, and memory types to write-back on all. -errno. */
int boot_set_regs(struct vm *vm, const struct boot_regs *regs, struct errmsg *err);

#endif
