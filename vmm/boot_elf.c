/* SPDX-License-Identifier: MIT */
/*
 * ELF kernels: PVH by its note, of 32 or 64 bits, and x86-64 by its entry.
 *
 * A file's program headers are turned into the 64-bit form at once, so that all checks are there
 * once. Segments are loaded at their physical addresses.
 */
#include <elf.h>
#include <errno.h>
#include <string.h>

#include "boot_image.h"
#include "boot_layout.h"

#define XEN_ELFNOTE_GUEST_OS 6U
#define XEN_ELFNOTE_PHYS32_ENTRY 18U
#define MAX_PHDRS BOOT_MAX_SEGMENTS /* so that each can be a segment */
#define MAX_NOTES_SIZE (1 * MIB)

struct elf {
	const struct boot_file *f;
	struct boot_image *img;
	struct errmsg *err;
	bool is_64;
	Elf64_Ehdr ehdr;
	uint16_t n_phdrs;
	Elf64_Phdr phdr[MAX_PHDRS];
	bool has_pvh_entry;
	uint64_t pvh_entry;
	bool linux_note;
};

bool boot_is_elf(const uint8_t *head, size_t len)
{
	return len >= SELFMAG && !memcmp(head, ELFMAG, SELFMAG);
}

static const char *machine_name(unsigned machine)
{
	static const struct {
		unsigned machine;
		const char *name;
	} names[] = {
		{EM_386, "32-bit x86"}, {EM_X86_64, "x86-64"}, {EM_AARCH64, "arm64"},
		{EM_ARM, "32-bit Arm"}, {EM_RISCV, "RISC-V"},  {EM_PPC64, "POWER"},
		{EM_S390, "s390"},	{EM_MIPS, "MIPS"},     {EM_LOONGARCH, "LoongArch"},
		{EM_IA_64, "Itanium"},	{EM_SPARCV9, "SPARC"},
	};

	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		if (names[i].machine == machine)
			return names[i].name;
	}
	return "an unknown architecture";
}

static void widen_ehdr(Elf64_Ehdr *to, const Elf32_Ehdr *from)
{
	memcpy(to->e_ident, from->e_ident, EI_NIDENT);
	to->e_type = from->e_type;
	to->e_machine = from->e_machine;
	to->e_version = from->e_version;
	to->e_entry = from->e_entry;
	to->e_phoff = from->e_phoff;
	to->e_phentsize = from->e_phentsize;
	to->e_phnum = from->e_phnum;
}

static void widen_phdr(Elf64_Phdr *to, const Elf32_Phdr *from)
{
	*to = (Elf64_Phdr){
		.p_type = from->p_type,
		.p_flags = from->p_flags,
		.p_offset = from->p_offset,
		.p_vaddr = from->p_vaddr,
		.p_paddr = from->p_paddr,
		.p_filesz = from->p_filesz,
		.p_memsz = from->p_memsz,
		.p_align = from->p_align,
	};
}

static int read_ehdr(struct elf *e, const uint8_t *head, size_t len)
{
	const char *path = e->f->path;
	uint8_t class;

	if (len < EI_NIDENT)
		goto truncated;
	class = head[EI_CLASS];
	if (class != ELFCLASS32 && class != ELFCLASS64)
		return errmsg_set(e->err, -ENOEXEC, "kernel %s: malformed ELF header, class %u",
				  path, class);
	if (head[EI_DATA] != ELFDATA2LSB)
		return errmsg_set(e->err, -ENOEXEC,
				  "kernel %s: a big-endian ELF; godwit runs x86-64 kernels", path);
	e->is_64 = class == ELFCLASS64;
	if (len < (e->is_64 ? sizeof(Elf64_Ehdr) : sizeof(Elf32_Ehdr)))
		goto truncated;
	if (e->is_64) {
		memcpy(&e->ehdr, head, sizeof(e->ehdr));
	} else {
		Elf32_Ehdr ehdr32;

		memcpy(&ehdr32, head, sizeof(ehdr32));
		widen_ehdr(&e->ehdr, &ehdr32);
	}
	if (e->ehdr.e_machine != (e->is_64 ? EM_X86_64 : EM_386))
		return errmsg_set(e->err, -ENOEXEC,
				  "kernel %s is an ELF for %s (%u-bit): godwit runs x86-64 kernels",
				  path, machine_name(e->ehdr.e_machine), e->is_64 ? 64U : 32U);
	if (e->ehdr.e_type != ET_EXEC && e->ehdr.e_type != ET_DYN)
		return errmsg_set(e->err, -ENOEXEC,
				  "kernel %s is an ELF but not executable (type %u): link it", path,
				  e->ehdr.e_type);
	return 0;
truncated:
	return errmsg_set(e->err, -ENOEXEC, "kernel %s is truncated: it ends within the ELF header",
			  path);
}

/* A part of the file that is known to be in it, into memory that the caller frees. */
static int read_part(const struct elf *e, uint64_t offset, size_t size, uint8_t **data)
{
	int ret;

	*data = malloc(size);
	if (!*data)
		return errmsg_set(e->err, -ENOMEM, "kernel %s: no memory", e->f->path);
	ret = pread_exact(e->f->fd, *data, size, offset);
	if (ret) {
		free(*data);
		*data = NULL;
		errmsg_set(e->err, ret, "kernel %s: reading it: %s", e->f->path, strerror(-ret));
	}
	return ret;
}

static int read_phdrs(struct elf *e)
{
	const char *path = e->f->path;
	size_t entry = e->is_64 ? sizeof(Elf64_Phdr) : sizeof(Elf32_Phdr);
	uint64_t size = (uint64_t)entry * e->ehdr.e_phnum;
	uint8_t *raw;
	int ret;

	if (e->ehdr.e_phnum == 0)
		return errmsg_set(e->err, -ENOEXEC,
				  "kernel %s is an ELF without program headers: link it", path);
	if (e->ehdr.e_phnum > MAX_PHDRS || e->ehdr.e_phentsize != entry)
		return errmsg_set(e->err, -ENOEXEC,
				  "kernel %s: malformed ELF header, %u program headers of %u bytes",
				  path, e->ehdr.e_phnum, e->ehdr.e_phentsize);
	if (e->ehdr.e_phoff > e->f->size || size > e->f->size - e->ehdr.e_phoff)
		return errmsg_set(e->err, -ENOEXEC,
				  "kernel %s is truncated: it ends before its program headers do",
				  path);
	ret = read_part(e, e->ehdr.e_phoff, size, &raw);
	if (ret)
		return ret;
	e->n_phdrs = e->ehdr.e_phnum;
	for (unsigned i = 0; i < e->n_phdrs; i++) {
		Elf32_Phdr phdr32;

		if (e->is_64) {
			memcpy(&e->phdr[i], raw + i * entry, entry);
		} else {
			memcpy(&phdr32, raw + i * entry, entry);
			widen_phdr(&e->phdr[i], &phdr32);
		}
	}
	free(raw);
	return 0;
}

static int add_segment(struct elf *e, unsigned index)
{
	const Elf64_Phdr *p = &e->phdr[index];
	const char *path = e->f->path;
	struct boot_image *img = e->img;
	uint64_t end;

	if (p->p_memsz == 0 && p->p_filesz == 0)
		return 0;
	if (p->p_filesz > p->p_memsz || !add_u64(p->p_paddr, p->p_memsz, &end))
		return errmsg_set(e->err, -ENOEXEC,
				  "kernel %s: malformed program header %u, %#llx bytes of %#llx at "
				  "%#llx",
				  path, index, (unsigned long long)p->p_filesz,
				  (unsigned long long)p->p_memsz, (unsigned long long)p->p_paddr);
	if (p->p_filesz && (p->p_offset > e->f->size || p->p_filesz > e->f->size - p->p_offset))
		return errmsg_set(e->err, -ENOEXEC,
				  "kernel %s is truncated: it ends before segment %u does", path,
				  index);
	for (unsigned i = 0; i < img->n_segments; i++) {
		const struct boot_segment *s = &img->segment[i];

		if (p->p_paddr < s->gpa + s->mem_size && s->gpa < end)
			return errmsg_set(e->err, -ENOEXEC,
					  "kernel %s: malformed program headers, segment %u "
					  "overlaps another at %#llx",
					  path, index, (unsigned long long)p->p_paddr);
	}
	img->segment[img->n_segments++] = (struct boot_segment){
		.gpa = p->p_paddr,
		.mem_size = p->p_memsz,
		.file_offset = p->p_offset,
		.file_size = p->p_filesz,
	};
	return 0;
}

static void take_note(struct elf *e, const char *name, size_t name_len, uint32_t type,
		      const uint8_t *desc, uint32_t desc_len)
{
	bool is_xen = name_len == sizeof("Xen") && !memcmp(name, "Xen", name_len);

	if (name_len == sizeof("Linux") && !memcmp(name, "Linux", name_len))
		e->linux_note = true;
	if (is_xen && type == XEN_ELFNOTE_GUEST_OS && desc_len >= 5 && !memcmp(desc, "linux", 5) &&
	    (desc_len == 5 || desc[5] == '\0'))
		e->linux_note = true;
	if (is_xen && type == XEN_ELFNOTE_PHYS32_ENTRY && (desc_len == 4 || desc_len == 8)) {
		e->pvh_entry = 0;
		memcpy(&e->pvh_entry, desc, desc_len);
		e->has_pvh_entry = true;
	}
}

/* Name and description sizes, type, then both, each padded to the alignment. */
static int parse_notes(struct elf *e, const uint8_t *data, uint64_t size, uint64_t align)
{
	uint64_t pos = 0;

	while (size - pos >= sizeof(Elf64_Nhdr)) {
		uint64_t room = size - pos, name_end, desc_at;
		Elf64_Nhdr n;

		/* 32-bit sizes in 64-bit sums: nothing here can wrap. */
		memcpy(&n, data + pos, sizeof(n));
		name_end = sizeof(n) + (uint64_t)n.n_namesz;
		desc_at = ALIGN_UP(name_end, align);
		if (name_end > room || (n.n_descsz && desc_at + n.n_descsz > room))
			return errmsg_set(e->err, -ENOEXEC,
					  "kernel %s: malformed notes, one at offset %llu runs "
					  "past their end",
					  e->f->path, (unsigned long long)pos);
		take_note(e, (const char *)data + pos + sizeof(n), n.n_namesz, n.n_type,
			  n.n_descsz ? data + pos + desc_at : data, n.n_descsz);
		pos += MIN(ALIGN_UP(desc_at + n.n_descsz, align), room);
	}
	return 0;
}

static int read_notes(struct elf *e, unsigned index)
{
	const Elf64_Phdr *p = &e->phdr[index];
	uint8_t *data;
	int ret;

	if (p->p_filesz == 0)
		return 0;
	if (p->p_offset > e->f->size || p->p_filesz > e->f->size - p->p_offset)
		return errmsg_set(e->err, -ENOEXEC,
				  "kernel %s is truncated: it ends before its notes do",
				  e->f->path);
	if (p->p_filesz > MAX_NOTES_SIZE)
		return errmsg_set(e->err, -ENOEXEC,
				  "kernel %s: malformed notes, %llu bytes of them", e->f->path,
				  (unsigned long long)p->p_filesz);
	ret = read_part(e, p->p_offset, p->p_filesz, &data);
	if (ret)
		return ret;
	ret = parse_notes(e, data, p->p_filesz, p->p_align == 8 ? 8 : 4);
	free(data);
	return ret;
}

static bool in_segment(const struct boot_image *img, uint64_t gpa)
{
	for (unsigned i = 0; i < img->n_segments; i++) {
		const struct boot_segment *s = &img->segment[i];

		if (gpa >= s->gpa && gpa - s->gpa < s->mem_size)
			return true;
	}
	return false;
}

/* e_entry is physical in a vmlinux; other kernels give the virtual address they are linked at. */
static bool physical_entry(const struct elf *e, uint64_t *gpa)
{
	if (in_segment(e->img, e->ehdr.e_entry)) {
		*gpa = e->ehdr.e_entry;
		return true;
	}
	for (unsigned i = 0; i < e->n_phdrs; i++) {
		const Elf64_Phdr *p = &e->phdr[i];

		if (p->p_type == PT_LOAD && e->ehdr.e_entry >= p->p_vaddr &&
		    e->ehdr.e_entry - p->p_vaddr < p->p_memsz) {
			*gpa = p->p_paddr + (e->ehdr.e_entry - p->p_vaddr);
			return true;
		}
	}
	return false;
}

/* The header of boot_params that a bzImage would have brought. */
static void synthesize_header(struct setup_header *hdr)
{
	*hdr = (struct setup_header){
		.boot_flag = 0xaa55,
		.header = 0x53726448, /* "HdrS" */
		.version = 0x20c,
		.loadflags = LOADED_HIGH,
		.kernel_alignment = 0x1000000,
		.initrd_addr_max = 0x7fffffff,
		.cmdline_size = BOOT_LINUX_CMDLINE_MAX,
	};
}

static int choose_entry(struct elf *e)
{
	struct boot_image *img = e->img;

	if (e->has_pvh_entry) {
		img->info.format = BOOT_PVH;
		img->info.linux_guest = e->linux_note;
		img->info.entry = e->pvh_entry;
		img->initrd_end = RAM_HIGH_BASE; /* the guest starts with 32-bit addresses */
		img->cmdline_max = e->linux_note ? BOOT_LINUX_CMDLINE_MAX : BOOT_CMDLINE_SIZE - 1;
		if (e->pvh_entry > UINT32_MAX || !in_segment(img, e->pvh_entry))
			return errmsg_set(e->err, -ENOEXEC,
					  "kernel %s: malformed PVH note, entry %#llx is in no "
					  "segment",
					  e->f->path, (unsigned long long)e->pvh_entry);
		return 0;
	}
	if (!e->is_64)
		return errmsg_set(e->err, -ENOEXEC,
				  "kernel %s is a 32-bit ELF without a PVH note: use an x86-64 "
				  "kernel, or one with CONFIG_PVH",
				  e->f->path);
	img->info.format = BOOT_ELF64;
	img->info.linux_guest = true;
	img->initrd_end = 0x80000000;
	img->above_4g = true;
	img->cmdline_max = BOOT_LINUX_CMDLINE_MAX;
	synthesize_header(&img->hdr);
	if (!physical_entry(e, &img->info.entry))
		return errmsg_set(e->err, -ENOEXEC,
				  "kernel %s: malformed ELF header, entry %#llx is in no segment",
				  e->f->path, (unsigned long long)e->ehdr.e_entry);
	return 0;
}

int boot_parse_elf(const struct boot_file *f, const uint8_t *head, size_t len,
		   struct boot_image *img, struct errmsg *err)
{
	struct elf e = {.f = f, .img = img, .err = err};
	int ret;

	ret = read_ehdr(&e, head, len);
	if (!ret)
		ret = read_phdrs(&e);
	for (unsigned i = 0; !ret && i < e.n_phdrs; i++) {
		if (e.phdr[i].p_type == PT_LOAD)
			ret = add_segment(&e, i);
		else if (e.phdr[i].p_type == PT_NOTE)
			ret = read_notes(&e, i);
		else if (e.phdr[i].p_type == PT_INTERP)
			ret = errmsg_set(err, -ENOEXEC,
					 "%s is not a kernel but a program of a user space",
					 f->path);
	}
	if (!ret && img->n_segments == 0)
		ret = errmsg_set(err, -ENOEXEC, "kernel %s is an ELF with nothing to load: link it",
				 f->path);
	if (!ret)
		ret = choose_entry(&e);
	return ret;
}
