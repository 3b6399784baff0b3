/* SPDX-License-Identifier: MIT */
/*
 * bzImage: Documentation/arch/x86/boot.rst, "The 64-bit boot protocol".
 *
 *	0      +------------------+
 *	0x1f1  | setup_header     |  ends at 0x202 + the byte at 0x201
 *	       | real-mode code   |  not used: we enter in 64-bit mode
 *	       +------------------+  (setup_sects + 1) * 512
 *	       | protected-mode   |  syssize * 16 bytes; its byte 0x200 is the 64-bit entry
 *	       | code             |
 *	       +------------------+
 *	       | signature, if any|
 *	       +------------------+
 */
#include <errno.h>
#include <string.h>

#include "boot_image.h"
#include "boot_layout.h"

#define HDR_OFFSET 0x1f1U
#define HDR_MAGIC_OFFSET 0x202U
#define HDR_JUMP_OFFSET 0x201U
#define HDR_MAGIC "HdrS"
#define HDR_PARAMS_END 0x290U /* room for the header in boot_params */
#define HDR_MIN_END 0x268U    /* up to handover_offset: what protocol 2.12 has */
#define PROTOCOL_MIN 0x20cU   /* the first with xloadflags */
#define ENTRY64_OFFSET 0x200U
#define SECTOR 512U

_Static_assert(offsetof(struct boot_params, hdr) == HDR_OFFSET, "boot protocol");
_Static_assert(HDR_PARAMS_END <= BOOT_HEAD_SIZE, "the head has the whole header");

bool boot_is_bzimage(const uint8_t *head, size_t len)
{
	return len >= HDR_MAGIC_OFFSET + 4 && !memcmp(head + HDR_MAGIC_OFFSET, HDR_MAGIC, 4);
}

/* Takes the header out of the file, as long as this kernel's is; the rest is zero. */
static int read_header(const struct boot_file *f, const uint8_t *head, size_t len,
		       struct setup_header *hdr, struct errmsg *err)
{
	size_t end = HDR_MAGIC_OFFSET + (size_t)head[HDR_JUMP_OFFSET];

	memset(hdr, 0, sizeof(*hdr));
	if (len < HDR_MIN_END || len < MIN(end, HDR_PARAMS_END))
		return errmsg_set(err, -ENOEXEC,
				  "kernel %s is truncated: it ends within the setup header",
				  f->path);
	memcpy(hdr, head + HDR_OFFSET, HDR_MAGIC_OFFSET + 6 - HDR_OFFSET); /* up to version */
	if (hdr->version < PROTOCOL_MIN)
		return errmsg_set(err, -ENOEXEC,
				  "kernel %s has boot protocol %u.%02u: 2.12 (Linux 3.8) is the "
				  "oldest that godwit boots",
				  f->path, hdr->version >> 8, hdr->version & 0xffU);
	if (end < HDR_MIN_END)
		return errmsg_set(err, -ENOEXEC,
				  "kernel %s has a malformed setup header: it ends at %#zx",
				  f->path, end);
	memcpy(hdr, head + HDR_OFFSET, MIN(end - HDR_OFFSET, sizeof(*hdr)));
	return 0;
}

static int check_header(const struct boot_file *f, const struct setup_header *hdr,
			struct errmsg *err)
{
	uint64_t align = hdr->kernel_alignment;

	if (!(hdr->xloadflags & XLF_KERNEL_64))
		return errmsg_set(err, -ENOEXEC,
				  "kernel %s is 32-bit only: it has no 64-bit entry; use an x86-64 "
				  "kernel",
				  f->path);
	if (!(hdr->loadflags & LOADED_HIGH))
		return errmsg_set(err, -ENOEXEC, "kernel %s is a zImage: use a bzImage", f->path);
	if (hdr->pref_address < BOOT_HIGH_RAM || hdr->pref_address % PAGE_SIZE)
		return errmsg_set(err, -ENOEXEC,
				  "kernel %s has a malformed setup header: pref_address %#llx",
				  f->path, (unsigned long long)hdr->pref_address);
	if (hdr->relocatable_kernel && (align < PAGE_SIZE || (align & (align - 1))))
		return errmsg_set(err, -ENOEXEC,
				  "kernel %s has a malformed setup header: kernel_alignment %#llx",
				  f->path, (unsigned long long)align);
	return 0;
}

int boot_parse_bzimage(const struct boot_file *f, const uint8_t *head, size_t len,
		       struct boot_image *img, struct errmsg *err)
{
	struct setup_header *hdr = &img->hdr;
	struct boot_segment *seg = &img->segment[0];
	uint64_t setup_size, code_size, total, gpa, end;
	int ret;

	ret = read_header(f, head, len, hdr, err);
	if (!ret)
		ret = check_header(f, hdr, err);
	if (ret)
		return ret;

	/* 0 stands for 4, for kernels older than all we boot; the protocol still says so. */
	setup_size = ((hdr->setup_sects ? hdr->setup_sects : 4U) + 1U) * (uint64_t)SECTOR;
	code_size = hdr->syssize * 16ULL;
	total = setup_size + code_size;
	if (code_size <= ENTRY64_OFFSET)
		return errmsg_set(err, -ENOEXEC,
				  "kernel %s has a malformed setup header: syssize %#x", f->path,
				  hdr->syssize);
	if (f->size < total)
		return errmsg_set(err, -ENOEXEC,
				  "kernel %s is truncated: %llu bytes, but %llu of setup and code "
				  "by its header",
				  f->path, (unsigned long long)f->size, (unsigned long long)total);

	gpa = hdr->pref_address;
	img->move_align = hdr->relocatable_kernel ? hdr->kernel_alignment : 0;
	if (img->move_align && gpa % img->move_align)
		gpa += img->move_align - gpa % img->move_align; /* wraps to what is refused below */
	*seg = (struct boot_segment){
		.gpa = gpa,
		.mem_size = MAX((uint64_t)hdr->init_size, code_size),
		.file_offset = setup_size,
		.file_size = code_size,
	};
	if (gpa < hdr->pref_address || !add_u64(gpa, seg->mem_size, &end))
		return errmsg_set(err, -ENOEXEC,
				  "kernel %s has a malformed setup header: pref_address %#llx",
				  f->path, (unsigned long long)hdr->pref_address);
	img->n_segments = 1;
	img->above_4g = hdr->xloadflags & XLF_CAN_BE_LOADED_ABOVE_4G;
	img->initrd_end = hdr->initrd_addr_max + 1ULL;
	img->cmdline_max = hdr->cmdline_size;
	img->info = (struct boot_info){
		.format = BOOT_BZIMAGE,
		.linux_guest = true,
		.entry = seg->gpa + ENTRY64_OFFSET,
	};
	return 0;
}
