/* SPDX-License-Identifier: MIT */
/*
 * The boot loaders: a file that is to be a kernel, an initrd of some size and a command line, into
 * the RAM of a machine.
 *
 * Inputs describe a kernel of each format (bzImage, ELF of 32 and 64 bits, with and without a PVH
 * note) and what is wrong with it, or are a file as it is. Whatever that is,
 *
 *	- what is refused is refused with a reason, and by its look alone before RAM is touched;
 *	- of what is taken RAM holds what the file says, and zeros behind it, in every segment;
 *	- and the initrd, wherever that was put; neither lies over what the guest starts with;
 *	- RAM was stored into by functions of ram.h, which mark it.
 */
#include <elf.h>
#include <errno.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../boot_image.h"
#include "../boot_layout.h"
#include "../ram.h"
#include "fuzz.h"

#define HEAD_MAX 4096U
#define FILE_MAX (4 * MIB)
#define INITRD_MAX (16 * MIB)
#define N_PHDRS 4U
#define NOTE_AT 0x200U
#define XEN_PHYS32_ENTRY 18U

struct kernel {
	uint8_t head[HEAD_MAX];
	size_t len;
	uint64_t size; /* of the file; zeros behind the head */
};

/* ---- files ---- */

static void edit(struct kernel *k, struct fuzz_in *in)
{
	unsigned edits = in_u8(in) % 24;

	for (unsigned i = 0; i < edits; i++) {
		size_t at = in_u16(in) % HEAD_MAX, width = (size_t)1 << in_u8(in) % 4;
		uint64_t value = in_u64(in);

		memcpy(k->head + MIN(at, HEAD_MAX - width), &value, width);
	}
}

static void make_bzimage(struct kernel *k, struct fuzz_in *in)
{
	struct setup_header hdr = {
		.setup_sects = in_u8(in) % 8,
		.syssize = 0x100U + in_u8(in),
		.header = 0x53726448,
		.version = 0x20f,
		.loadflags = LOADED_HIGH,
		.kernel_alignment = 1U << (12 + in_u8(in) % 14),
		.relocatable_kernel = in_u8(in) & 1,
		.xloadflags = XLF_KERNEL_64 | (in_u8(in) & XLF_CAN_BE_LOADED_ABOVE_4G),
		.cmdline_size = in_u16(in),
		.pref_address = 0x100000ULL * (1 + in_u8(in) % 32),
		.init_size = in_u16(in) * 64U,
		.initrd_addr_max = 0x7fffffff >> in_u8(in) % 16,
	};

	memcpy(k->head + 0x1f1, &hdr, sizeof(hdr));
	k->head[0x201] = 0x66;
	k->len = 0x1f1 + sizeof(hdr);
	memset(k->head + 0x400, 0x90, HEAD_MAX - 0x400);
	k->len = HEAD_MAX;
	k->size = 16384;
}

static void make_note(struct kernel *k, uint32_t type, uint32_t entry)
{
	const struct {
		Elf64_Nhdr nh;
		char name[4];
		uint32_t desc;
	} note = {{4, 4, type}, "Xen", entry};

	memcpy(k->head + NOTE_AT, &note, sizeof(note));
}

static void make_elf64(struct kernel *k, struct fuzz_in *in, bool pvh)
{
	uint32_t base = (1 + in_u8(in) % 12) * (uint32_t)MIB;
	Elf64_Ehdr eh = {
		.e_ident = {ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, ELFCLASS64, ELFDATA2LSB},
		.e_type = ET_EXEC,
		.e_machine = EM_X86_64,
		.e_entry = base + 16,
		.e_phoff = sizeof(eh),
		.e_phentsize = sizeof(Elf64_Phdr),
		.e_phnum = 1 + in_u8(in) % N_PHDRS,
	};
	Elf64_Phdr ph[N_PHDRS] = {{0}};

	for (unsigned i = 0; i < N_PHDRS; i++)
		ph[i] = (Elf64_Phdr){
			.p_type = PT_LOAD,
			.p_offset = 0x400 + i * 16U,
			.p_paddr = base + i * 0x10000ULL,
			.p_vaddr = 0xffffffff80000000ULL + i * 0x10000ULL,
			.p_filesz = in_u8(in) * 8U,
			.p_memsz = in_u16(in),
		};
	if (pvh) {
		make_note(k, XEN_PHYS32_ENTRY, base + 4);
		ph[0] = (Elf64_Phdr){.p_type = PT_NOTE, .p_offset = NOTE_AT, .p_filesz = 20};
	}
	memcpy(k->head, &eh, sizeof(eh));
	memcpy(k->head + sizeof(eh), ph, sizeof(ph));
	memset(k->head + 0x400, 0x90, HEAD_MAX - 0x400);
	k->len = HEAD_MAX;
	k->size = HEAD_MAX;
}

static void make_elf32(struct kernel *k, struct fuzz_in *in)
{
	uint32_t base = (1 + in_u8(in) % 12) * (uint32_t)MIB;
	Elf32_Ehdr eh = {
		.e_ident = {ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, ELFCLASS32, ELFDATA2LSB},
		.e_type = ET_EXEC,
		.e_machine = EM_386,
		.e_entry = base,
		.e_phoff = sizeof(eh),
		.e_phentsize = sizeof(Elf32_Phdr),
		.e_phnum = 2,
	};
	const Elf32_Phdr ph[2] = {
		{.p_type = PT_NOTE, .p_offset = NOTE_AT, .p_filesz = 20},
		{.p_type = PT_LOAD,
		 .p_offset = 0x400,
		 .p_paddr = base,
		 .p_filesz = 0x800,
		 .p_memsz = in_u16(in) * 16U},
	};

	make_note(k, XEN_PHYS32_ENTRY, base);
	memcpy(k->head, &eh, sizeof(eh));
	memcpy(k->head + sizeof(eh), ph, sizeof(ph));
	k->len = k->size = HEAD_MAX;
}

static void make_kernel(struct kernel *k, struct fuzz_in *in)
{
	unsigned kind = in_u8(in) % 6;
	uint32_t more;

	memset(k, 0, sizeof(*k));
	switch (kind) {
	case 0:
		k->len = MIN(in_left(in), HEAD_MAX);
		in_bytes(in, k->head, k->len);
		k->size = k->len;
		return;
	case 1:
	case 2:
		make_bzimage(k, in);
		break;
	case 3:
		make_elf64(k, in, true);
		break;
	case 4:
		make_elf64(k, in, false);
		break;
	default:
		make_elf32(k, in);
	}
	edit(k, in);
	more = in_u32(in);
	if (more)
		k->size = more % FILE_MAX;
	k->len = MIN(k->len, k->size);
}

/* A file without a name, found by the path of its descriptor. */
static int make_file(const void *head, size_t len, uint64_t size, char path[64])
{
	int fd = memfd_create("fuzz-boot", MFD_CLOEXEC);

	fuzz_need(fd >= 0 && ftruncate(fd, (off_t)size) == 0 &&
			  pwrite(fd, head, len, 0) == (ssize_t)len,
		  "no file: %s", strerror(errno));
	snprintf(path, 64, "/proc/self/fd/%d", fd);
	return fd;
}

/* ---- what was taken ---- */

static void need_same(const struct ram *ram, uint64_t gpa, int fd, uint64_t offset, uint64_t len,
		      const char *what)
{
	AUTO_FREE uint8_t *want = malloc(len + 1);
	const void *have = ram_ptr(ram, gpa, len);

	fuzz_need(have, "%s lies outside of RAM", what);
	fuzz_need(want && pread_exact(fd, want, len, offset) == 0, "the file cannot be read");
	fuzz_need(!memcmp(have, want, len), "%s in RAM is not what the file says", what);
}

static void need_zeros(const struct ram *ram, uint64_t gpa, uint64_t len)
{
	const uint8_t *p = ram_ptr(ram, gpa, len);

	fuzz_need(p, "memory behind a segment lies outside of RAM");
	fuzz_need(len == 0 || (p[0] == 0 && !memcmp(p, p + 1, len - 1)),
		  "memory behind a segment is not zero");
}

static void need_free(uint64_t gpa, uint64_t len, const char *what)
{
	fuzz_need(len == 0 || gpa >= BOOT_HIGH_RAM ||
			  (gpa >= BOOT_LOW_END && gpa + len <= BOOT_LOW_RAM_END),
		  "%s at %#llx lies over what the guest starts with", what,
		  (unsigned long long)gpa);
}

static void check(struct vm *vm, const struct boot_info *info, int kernel_fd, int initrd_fd,
		  uint64_t initrd_size)
{
	struct boot_initrd initrd = {.size = initrd_size};
	struct boot_image img = {0};
	struct boot_file f;
	struct errmsg err = {""};

	fuzz_need(boot_file_open(&f, "kernel", vm->cfg.kernel, &err) == 0 &&
			  boot_parse(&f, &img, &err) == 0 &&
			  boot_fit_kernel(&img, &vm->ram, f.path, &err) == 0,
		  "what was booted cannot be: %s", err.text);
	boot_file_close(&f);
	for (unsigned i = 0; i < img.n_segments; i++) {
		const struct boot_segment *s = &img.segment[i];

		need_free(s->gpa, s->mem_size, "a segment");
		need_same(&vm->ram, s->gpa, kernel_fd, s->file_offset, s->file_size, "a segment");
		need_zeros(&vm->ram, s->gpa + s->file_size, s->mem_size - s->file_size);
	}
	if (initrd_size) {
		fuzz_need(boot_fit_initrd(&img, &vm->ram, "", &initrd, &err) == 0,
			  "the initrd has no place: %s", err.text);
		need_free(initrd.gpa, initrd.size, "the initrd");
		need_same(&vm->ram, initrd.gpa, initrd_fd, 0, initrd.size, "the initrd");
	}
	fuzz_need(ram_ptr(&vm->ram, info->entry, 1), "the entry %#llx is not in RAM",
		  (unsigned long long)info->entry);
	fuzz_need(!strcmp(ram_ptr(&vm->ram, BOOT_CMDLINE_GPA, 1), vm->cfg.cmdline),
		  "the command line is another one");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct kernel k;
	static struct vm vm;
	static const uint8_t initrd_head[64] = "070701";
	struct fuzz_in in = {data, data + size};
	struct boot_info info = {0}, looked = {0};
	struct boot_regs regs = {0};
	struct errmsg err = {""}, why = {""};
	uint64_t initrd_size, ram_size;
	int kernel_fd, initrd_fd, ret, look;
	char path[64];

	memset(&vm, 0, sizeof(vm));
	vm.cfg.vcpus = 1;
	ram_size = RAM_MIN + in_u8(&in) % 16 * MIB;
	initrd_size = in_u32(&in) % INITRD_MAX;
	memset(vm.cfg.cmdline, 'x', in_u16(&in) % VM_CMDLINE_MAX);
	make_kernel(&k, &in);
	kernel_fd = make_file(k.head, k.len, k.size, path);
	memcpy(vm.cfg.kernel, path, sizeof(path));
	initrd_fd =
		make_file(initrd_head, MIN(sizeof(initrd_head), initrd_size), initrd_size, path);
	if (initrd_size)
		memcpy(vm.cfg.initrd, path, sizeof(path));
	fuzz_need(ram_init(&vm.ram, ram_size, false, &err) == 0, "no RAM: %s", err.text);

	look = boot_inspect(vm.cfg.kernel, &looked, &why);
	ret = boot_place(&vm, &info, &regs, &err);
	fuzz_need(look == 0 || why.text[0], "refused without a reason");
	fuzz_need(ret == 0 || err.text[0], "refused without a reason: %s", strerror(-ret));
	fuzz_need(look == 0 || (ret == look && ram_used(&vm.ram) == 0),
		  "what does not look like a kernel has got into RAM");
	if (ret == 0) {
		fuzz_need(looked.format == info.format, "it looked like another format");
		check(&vm, &info, kernel_fd, initrd_fd, initrd_size);
	}
	fuzz_need_marks(&vm.ram, "booting");
	ram_destroy(&vm.ram);
	close(kernel_fd);
	close(initrd_fd);
	return 0;
}
