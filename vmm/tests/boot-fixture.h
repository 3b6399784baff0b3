/* SPDX-License-Identifier: MIT */
/*
 * What the tests of the kernel loaders share: a folder with a kernel and an initrd made by the
 * test, and a machine that is nothing but RAM. No KVM: boot_place() is all but the registers.
 */
#ifndef GODWIT_BOOT_FIXTURE_H
#define GODWIT_BOOT_FIXTURE_H

#include <check.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../acpi.h"
#include "../boot_image.h"
#include "../boot_layout.h"

#define CODE_SIZE 4096U
#define KERNEL_GPA (4 * MIB)
#define RAM_SIZE (32 * MIB)

static char dir[64];
static struct vm *vm;
static struct boot_info info;
static struct boot_regs regs;
static struct errmsg err;

/* A kernel file under construction. */
static struct {
	uint8_t data[16384];
	size_t len;
} file;

static inline void setup(void)
{
	snprintf(dir, sizeof(dir), "/tmp/godwit-boot-XXXXXX");
	ck_assert_ptr_nonnull(mkdtemp(dir));
	vm = calloc(1, sizeof(*vm));
	ck_assert_ptr_nonnull(vm);
	vm->cfg.vcpus = 2;
	snprintf(vm->cfg.kernel, sizeof(vm->cfg.kernel), "%s/kernel", dir);
}

static inline void teardown(void)
{
	char cmd[128];

	ram_destroy(&vm->ram);
	free(vm);
	snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
	ck_assert_int_eq(system(cmd), 0);
}

static inline void write_path(const char *path, const void *data, size_t len)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(write_exact(fd, data, len), 0);
	close(fd);
}

static inline void use_initrd(uint64_t size)
{
	snprintf(vm->cfg.initrd, sizeof(vm->cfg.initrd), "%s/initrd", dir);
	write_path(vm->cfg.initrd, "initrd start", 12);
	ck_assert_int_eq(truncate(vm->cfg.initrd, (off_t)size), 0);
}

/* Writes the file and places it in a machine with ram bytes, which hold garbage where it is small.
 */
static inline int place(uint64_t ram)
{
	static uint8_t garbage[65536];

	write_path(vm->cfg.kernel, file.data, file.len);
	memset(&err, 0, sizeof(err));
	if (vm->ram.size != ram) {
		if (vm->ram.size)
			ram_destroy(&vm->ram);
		ck_assert_msg(!ram_init(&vm->ram, ram, false, &err), "%s", err.text);
	}
	memset(garbage, 0xee, sizeof(garbage));
	for (uint64_t gpa = 0; ram <= RAM_SIZE && gpa < ram; gpa += sizeof(garbage))
		ram_write(&vm->ram, gpa, garbage, sizeof(garbage));
	return boot_place(vm, &info, &regs, &err);
}

static inline void place_ok(uint64_t ram)
{
	int ret = place(ram);

	ck_assert_msg(ret == 0, "%d: %s", ret, err.text);
	ck_assert_str_eq(err.text, "");
}

static inline void refused(uint64_t ram, int want, const char *text)
{
	int ret = place(ram);

	ck_assert_msg(ret == want, "want %d (%s), got %d: %s", want, text, ret, err.text);
	ck_assert_msg(strstr(err.text, text), "want \"%s\", got: %s", text, err.text);
}

static inline const void *ram_at(uint64_t gpa, uint64_t len)
{
	const void *p = ram_ptr(&vm->ram, gpa, len);

	ck_assert_ptr_nonnull(p);
	return p;
}

static inline void check_zero(uint64_t gpa, uint64_t len)
{
	const uint8_t *p = ram_at(gpa, len);
	uint64_t i = 0;

	while (i < len && p[i] == 0)
		i++;
	ck_assert_msg(i == len, "%#llx is not zero", (unsigned long long)(gpa + i));
}

static inline void fill_code(uint8_t *p)
{
	for (unsigned i = 0; i < CODE_SIZE; i++)
		p[i] = (uint8_t)(i * 7 + i / 256);
}

static inline void check_code(uint64_t gpa)
{
	uint8_t code[CODE_SIZE];

	fill_code(code);
	ck_assert(!memcmp(ram_at(gpa, CODE_SIZE), code, CODE_SIZE));
}

/* A way to be invalid, and what is said of it. */
struct bad_kernel {
	const char *name;
	void (*spoil)(void);
	const char *text;
};

#define SPOIL(name, change, store)                                                                 \
	static void name(void)                                                                     \
	{                                                                                          \
		change;                                                                            \
		store;                                                                             \
	}

/* --- What 64-bit entries find --- */

/* Through the tables that the boot vCPU starts with. */
static inline uint64_t translate(uint64_t va)
{
	const uint64_t *table = ram_at(BOOT_PML4_GPA, PAGE_SIZE);
	uint64_t e = table[va >> 39 & 511];

	ck_assert_uint_eq(e & 0x83, 3);
	table = ram_at(e & ~0xfffULL, PAGE_SIZE);
	e = table[va >> 30 & 511];
	if (!(e & 1))
		return UINT64_MAX;
	ck_assert_uint_eq(e & 0x83, 3);
	table = ram_at(e & ~0xfffULL, PAGE_SIZE);
	e = table[va >> 21 & 511];
	ck_assert_uint_eq(e & 0x83, 0x83);
	return (e & ~0x1fffffULL) + (va & 0x1fffff);
}

static inline const struct boot_params *params(void)
{
	ck_assert_int_eq(regs.mode, BOOT_MODE_LONG);
	ck_assert_uint_eq(regs.rsi, BOOT_PARAMS_GPA);
	return ram_at(regs.rsi, sizeof(struct boot_params));
}

static inline uint64_t ramdisk(const struct boot_params *bp, uint64_t *size)
{
	*size = bp->hdr.ramdisk_size | (uint64_t)bp->ext_ramdisk_size << 32;
	return bp->hdr.ramdisk_image | (uint64_t)bp->ext_ramdisk_image << 32;
}

/* --- bzImage --- */

static struct setup_header hdr;

static inline void make_bzimage(void)
{
	hdr = (struct setup_header){
		.setup_sects = 1,
		.syssize = CODE_SIZE / 16,
		.boot_flag = 0xaa55,
		.jump = 0x6aeb,
		.header = 0x53726448,
		.version = 0x20f,
		.loadflags = LOADED_HIGH | KASLR_FLAG,
		.initrd_addr_max = 0x7fffffff,
		.kernel_alignment = 0x200000,
		.relocatable_kernel = 1,
		.xloadflags = XLF_KERNEL_64 | XLF_CAN_BE_LOADED_ABOVE_4G,
		.cmdline_size = 2047,
		.pref_address = KERNEL_GPA,
		.init_size = 0x300000,
	};
	file.len = 1024 + CODE_SIZE;
	memset(file.data, 0, file.len);
	file.data[0x1ef] = 0xff; /* the sentinel that must not be copied */
	fill_code(file.data + 1024);
}

/* The header as it stands now goes into the file. */
static inline void set_hdr(void)
{
	memcpy(file.data + 0x1f1, &hdr, sizeof(hdr));
}

/* --- ELF --- */

enum {
	PH_NOTE,
	PH_TEXT,
	PH_BSS,
	N_PHDRS,
};

#define TEXT_OFFSET 0x1000U
#define NOTE_OFFSET 0x800U
#define BSS_GPA (KERNEL_GPA + 0x100000)
#define BSS_SIZE 0x5678U
#define BSS_DATA 0x123U /* bytes of it that are in the file */
#define ENTRY (KERNEL_GPA + 0x10)
#define VIRT_BASE 0xffffffff80000000ULL

static Elf64_Ehdr ehdr;
static Elf64_Phdr phdr[N_PHDRS];

static inline void add_note(const char *name, uint32_t type, const void *desc, uint32_t desc_len)
{
	Elf64_Nhdr n = {(uint32_t)strlen(name) + 1, desc_len, type};
	uint64_t align = phdr[PH_NOTE].p_align, pos = NOTE_OFFSET + phdr[PH_NOTE].p_filesz;
	uint64_t desc_at =
		ALIGN_UP(pos + sizeof(n) + n.n_namesz - NOTE_OFFSET, align) + NOTE_OFFSET;

	memcpy(file.data + pos, &n, sizeof(n));
	memcpy(file.data + pos + sizeof(n), name, n.n_namesz);
	memcpy(file.data + desc_at, desc, desc_len);
	phdr[PH_NOTE].p_filesz = ALIGN_UP(desc_at + desc_len - NOTE_OFFSET, align);
	phdr[PH_NOTE].p_memsz = phdr[PH_NOTE].p_filesz;
}

/* A kernel with text and a data segment that is mostly BSS; no notes yet. */
static inline void make_elf(void)
{
	file.len = TEXT_OFFSET + CODE_SIZE + BSS_DATA;
	memset(file.data, 0, file.len);
	fill_code(file.data + TEXT_OFFSET);
	memset(file.data + TEXT_OFFSET + CODE_SIZE, 0x5a, BSS_DATA);
	ehdr = (Elf64_Ehdr){
		.e_ident = {0x7f, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB, EV_CURRENT},
		.e_type = ET_EXEC,
		.e_machine = EM_X86_64,
		.e_version = EV_CURRENT,
		.e_entry = ENTRY,
		.e_phoff = sizeof(Elf64_Ehdr),
		.e_ehsize = sizeof(Elf64_Ehdr),
		.e_phentsize = sizeof(Elf64_Phdr),
		.e_phnum = N_PHDRS,
	};
	phdr[PH_NOTE] = (Elf64_Phdr){.p_type = PT_NOTE, .p_offset = NOTE_OFFSET, .p_align = 4};
	phdr[PH_TEXT] = (Elf64_Phdr){.p_type = PT_LOAD,
				     .p_offset = TEXT_OFFSET,
				     .p_vaddr = VIRT_BASE + KERNEL_GPA,
				     .p_paddr = KERNEL_GPA,
				     .p_filesz = CODE_SIZE,
				     .p_memsz = CODE_SIZE};
	phdr[PH_BSS] = (Elf64_Phdr){.p_type = PT_LOAD,
				    .p_offset = TEXT_OFFSET + CODE_SIZE,
				    .p_vaddr = VIRT_BASE + BSS_GPA,
				    .p_paddr = BSS_GPA,
				    .p_filesz = BSS_DATA,
				    .p_memsz = BSS_SIZE};
}

static inline void set_elf(void)
{
	memcpy(file.data, &ehdr, sizeof(ehdr));
	memcpy(file.data + sizeof(ehdr), phdr, sizeof(phdr));
}

/* The same file as ELF32. */
static inline void set_elf32(uint16_t machine)
{
	Elf32_Ehdr e = {
		.e_type = ehdr.e_type,
		.e_machine = machine,
		.e_version = ehdr.e_version,
		.e_entry = (uint32_t)ehdr.e_entry,
		.e_phoff = sizeof(Elf32_Ehdr),
		.e_ehsize = sizeof(Elf32_Ehdr),
		.e_phentsize = sizeof(Elf32_Phdr),
		.e_phnum = ehdr.e_phnum,
	};

	memcpy(e.e_ident, ehdr.e_ident, EI_NIDENT);
	e.e_ident[EI_CLASS] = ELFCLASS32;
	memcpy(file.data, &e, sizeof(e));
	for (unsigned i = 0; i < N_PHDRS; i++) {
		Elf32_Phdr p = {
			.p_type = phdr[i].p_type,
			.p_offset = (uint32_t)phdr[i].p_offset,
			.p_vaddr = (uint32_t)phdr[i].p_paddr,
			.p_paddr = (uint32_t)phdr[i].p_paddr,
			.p_filesz = (uint32_t)phdr[i].p_filesz,
			.p_memsz = (uint32_t)phdr[i].p_memsz,
			.p_align = (uint32_t)phdr[i].p_align,
		};

		memcpy(file.data + sizeof(e) + i * sizeof(p), &p, sizeof(p));
	}
}

static inline void add_pvh_note(uint32_t desc_len)
{
	uint64_t entry = ENTRY;

	add_note("Xen", 18, &entry, desc_len);
}

static inline int run_suite(Suite *suite)
{
	SRunner *runner = srunner_create(suite);
	int failed;

	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

#endif
