/* SPDX-License-Identifier: MIT */
/* ELF kernels, PVH and by entry: what valid ones become, and how invalid ones are refused. */
#include "boot-fixture.h"

static void check_segments(void)
{
	const uint8_t *p = ram_at(BSS_GPA, BSS_SIZE);

	check_code(KERNEL_GPA);
	for (unsigned i = 0; i < BSS_DATA; i++)
		ck_assert_uint_eq(p[i], 0x5a);
	check_zero(BSS_GPA + BSS_DATA, BSS_SIZE - BSS_DATA);
	/* And nothing beyond. */
	ck_assert_uint_eq(*(const uint8_t *)ram_at(BSS_GPA + BSS_SIZE, 1), 0xee);
	ck_assert_uint_eq(*(const uint8_t *)ram_at(KERNEL_GPA + CODE_SIZE, 1), 0xee);
}

static uint64_t start_info(unsigned offset, size_t size)
{
	uint64_t v = 0;

	ck_assert_int_eq(regs.mode, BOOT_MODE_PVH);
	memcpy(&v, ram_at(regs.rbx + offset, size), size);
	return v;
}

/* Start info, field by field at the offsets of the ABI. */
static void check_start_info(uint64_t initrd_size)
{
	const uint64_t *module;
	const uint8_t *map;
	uint64_t ram = 0;

	ck_assert_uint_eq(start_info(0, 4), 0x336ec578);
	ck_assert_uint_eq(start_info(4, 4), 1);
	ck_assert_uint_eq(start_info(8, 4), 0);
	ck_assert_uint_eq(start_info(12, 4), initrd_size ? 1 : 0);
	ck_assert_str_eq(ram_at(start_info(24, 8), 1), vm->cfg.cmdline);
	ck_assert_uint_eq(start_info(32, 8), ACPI_TABLES_GPA);
	if (initrd_size) {
		module = ram_at(start_info(16, 8), 32);
		ck_assert_uint_eq(module[0] % PAGE_SIZE, 0);
		ck_assert_uint_eq(module[1], initrd_size);
		ck_assert_str_eq(ram_at(module[0], initrd_size), "initrd start");
	}
	map = ram_at(start_info(40, 8), 24 * start_info(48, 4));
	for (unsigned i = 0; i < start_info(48, 4); i++) {
		uint64_t size;
		uint32_t type;

		memcpy(&size, map + 24 * i + 8, 8);
		memcpy(&type, map + 24 * i + 16, 4);
		if (type == 1)
			ram += size;
	}
	ck_assert_uint_eq(ram, vm->ram.size - 0x60000);
}

START_TEST(pvh)
{
	/* 64-bit and 32-bit files, both sizes of the entry, both alignments of notes. */
	for (unsigned i = 0; i < 8; i++) {
		make_elf();
		phdr[PH_NOTE].p_align = i & 1 ? 8 : 4;
		add_note("GNU", 3, "build-id build-id 20", 20);
		add_pvh_note(i & 2 ? 4 : 8);
		add_note("Other", 18, "\0\0\0\0", 4);
		if (i & 4)
			set_elf32(EM_386);
		else
			set_elf();
		strcpy(vm->cfg.cmdline, "a=1 b=2");
		use_initrd(5000);
		place_ok(RAM_SIZE);
		ck_assert_int_eq(info.format, BOOT_PVH);
		ck_assert(!info.linux_guest);
		ck_assert_uint_eq(info.entry, ENTRY);
		ck_assert_uint_eq(regs.rip, ENTRY);
		check_segments();
		check_start_info(5000);
		vm->cfg.initrd[0] = '\0';
		place_ok(RAM_SIZE);
		check_start_info(0);
	}
}
END_TEST

START_TEST(pvh_linux)
{
	make_elf();
	add_pvh_note(8);
	add_note("Xen", 6, "linux", 6);
	set_elf();
	place_ok(RAM_SIZE);
	ck_assert_int_eq(info.format, BOOT_PVH);
	ck_assert(info.linux_guest);

	make_elf();
	add_note("Linux", 0x101, "\0\0\0\0", 4);
	add_pvh_note(4);
	set_elf();
	place_ok(RAM_SIZE);
	ck_assert(info.linux_guest);

	make_elf();
	add_pvh_note(4);
	add_note("Xen", 6, "linuxulator", 12);
	set_elf();
	place_ok(RAM_SIZE);
	ck_assert(!info.linux_guest);
}
END_TEST

/* The smallest machine, and a payload linked at 1 MiB. */
START_TEST(pvh_in_16_mib)
{
	uint32_t entry = 0x100004;

	make_elf();
	phdr[PH_TEXT].p_paddr = 0x100000;
	phdr[PH_BSS].p_paddr = 0x200000;
	phdr[PH_BSS].p_memsz = 12 * MIB;
	add_note("Xen", 18, &entry, 4);
	set_elf();
	place_ok(RAM_MIN);
	ck_assert_uint_eq(regs.rip, entry);
	check_code(0x100000);
	check_zero(0x200000 + BSS_DATA, 12 * MIB - BSS_DATA);
	check_start_info(0);
}
END_TEST

START_TEST(elf64)
{
	const struct boot_params *bp;
	uint64_t size;

	/* A vmlinux has a physical entry; others give the virtual one. */
	for (unsigned i = 0; i < 2; i++) {
		make_elf();
		if (i)
			ehdr.e_entry += VIRT_BASE;
		set_elf();
		use_initrd(5000);
		place_ok(RAM_SIZE);
		ck_assert_int_eq(info.format, BOOT_ELF64);
		ck_assert(info.linux_guest);
		ck_assert_uint_eq(info.entry, ENTRY);
		ck_assert_uint_eq(regs.rip, ENTRY);
		check_segments();
		bp = params();
		ck_assert_uint_eq(bp->hdr.header, 0x53726448);
		ck_assert_uint_eq(bp->hdr.boot_flag, 0xaa55);
		ck_assert_uint_ge(bp->hdr.version, 0x20c);
		ck_assert_uint_eq(bp->hdr.type_of_loader, 0xff);
		ck_assert_str_eq(ram_at(ramdisk(bp, &size), 5000), "initrd start");
		ck_assert_uint_eq(size, 5000);
		ck_assert_uint_eq(translate(ENTRY), ENTRY);
	}
}
END_TEST

START_TEST(elf_above_4g)
{
	make_elf();
	phdr[PH_BSS].p_paddr = 6 * GIB;
	set_elf();
	refused(RAM_SIZE, -EFBIG, "use -m 5121M or more");
	place_ok(6 * GIB);
	ck_assert_uint_eq(*(const uint8_t *)ram_at(6 * GIB, 1), 0x5a);
	ck_assert_uint_eq(translate(6 * GIB + 5), 6 * GIB + 5);
	ck_assert_uint_eq(translate(5 * GIB), UINT64_MAX);

	/* In the hole, or more than the page tables map. */
	phdr[PH_BSS].p_paddr = 3 * GIB;
	set_elf();
	refused(6 * GIB, -EFBIG, "where no machine has RAM");
	phdr[PH_BSS].p_paddr = 3 * GIB - PAGE_SIZE;
	set_elf();
	refused(6 * GIB, -EFBIG, "where no machine has RAM");
	phdr[PH_BSS].p_paddr = 4 * GIB;
	phdr[PH_BSS].p_memsz = 5 * GIB;
	set_elf();
	refused(9 * GIB, -EFBIG, "boot page tables");
}
END_TEST

/* With the entry in it. */
static void move_text(uint64_t gpa)
{
	phdr[PH_TEXT].p_paddr = gpa;
	ehdr.e_entry = gpa + 0x10;
}

SPOIL(elf_class, ehdr.e_ident[EI_CLASS] = 7, set_elf())
SPOIL(elf_big, ehdr.e_ident[EI_DATA] = ELFDATA2MSB, set_elf())
SPOIL(elf_arm, ehdr.e_machine = EM_AARCH64, set_elf())
SPOIL(elf_odd, ehdr.e_machine = 0x7777, set_elf())
SPOIL(elf_object, ehdr.e_type = ET_REL, set_elf())
SPOIL(elf_no_phdrs, ehdr.e_phnum = 0, set_elf())
SPOIL(elf_many_phdrs, ehdr.e_phnum = 0xffff, set_elf())
SPOIL(elf_phentsize, ehdr.e_phentsize = 32, set_elf())
SPOIL(elf_phoff, ehdr.e_phoff = UINT64_MAX - 8, set_elf())
SPOIL(elf_phdrs_cut, file.len = sizeof(ehdr) + 8, set_elf())
SPOIL(elf_header_cut, file.len = 20, set_elf())
SPOIL(elf_cut, file.len -= 1, set_elf())
SPOIL(elf_no_load, phdr[PH_TEXT].p_type = phdr[PH_BSS].p_type = PT_NULL, set_elf())
SPOIL(elf_sizes, phdr[PH_TEXT].p_memsz = CODE_SIZE - 1, set_elf())
SPOIL(elf_wraps, phdr[PH_TEXT].p_paddr = UINT64_MAX - 5, set_elf())
SPOIL(elf_offset, phdr[PH_TEXT].p_offset = UINT64_MAX - 5, set_elf())
SPOIL(elf_overlap, phdr[PH_BSS].p_paddr = KERNEL_GPA + CODE_SIZE - 1, set_elf())
SPOIL(elf_zero, move_text(0), set_elf())
SPOIL(elf_low, move_text(BOOT_LOW_END - 1), set_elf())
SPOIL(elf_acpi, move_text(0xe0000), set_elf())
SPOIL(elf_up_to_hole, move_text(0xa0000 - CODE_SIZE + 1), set_elf())
SPOIL(elf_entry, ehdr.e_entry = 0x1234, set_elf())
SPOIL(elf_interp, phdr[PH_NOTE].p_type = PT_INTERP, set_elf())
SPOIL(note_offset, phdr[PH_NOTE].p_offset = UINT64_MAX - 5; phdr[PH_NOTE].p_filesz = 16, set_elf())
SPOIL(note_huge, phdr[PH_NOTE].p_filesz = file.len, set_elf())
SPOIL(note_name, add_note("Xen", 18, "\0\0\0\0", 4); file.data[NOTE_OFFSET + 1] = 0xff, set_elf())
SPOIL(note_name_only, add_note("Xen", 18, "", 0); file.data[NOTE_OFFSET + 1] = 0xff, set_elf())
SPOIL(note_desc, add_note("Xen", 18, "\0\0\0\0", 4); file.data[NOTE_OFFSET + 7] = 0xff, set_elf())
SPOIL(note_entry, add_note("Xen", 18, "\0\0\0\0", 4), set_elf())
SPOIL(note_entry_64, add_note("Xen", 18, "\0\0\0\0\1\0\0\0", 8), set_elf())

static void elf32_no_note(void)
{
	set_elf32(EM_386);
}

static void elf32_arm(void)
{
	set_elf32(EM_ARM);
}

static void elf32_amd64(void)
{
	add_pvh_note(4);
	set_elf32(EM_X86_64);
}

static const struct bad_kernel bad_elfs[] = {
	{"class", elf_class, "class 7"},
	{"big-endian", elf_big, "big-endian"},
	{"arm64", elf_arm, "is an ELF for arm64"},
	{"odd machine", elf_odd, "an unknown architecture"},
	{"object file", elf_object, "not executable"},
	{"no program headers", elf_no_phdrs, "without program headers"},
	{"65535 program headers", elf_many_phdrs, "malformed ELF header"},
	{"size of program headers", elf_phentsize, "malformed ELF header"},
	{"place of program headers", elf_phoff, "ends before its program headers"},
	{"program headers cut", elf_phdrs_cut, "ends before its program headers"},
	{"header cut", elf_header_cut, "ends within the ELF header"},
	{"segment cut", elf_cut, "ends before segment 2"},
	{"nothing to load", elf_no_load, "nothing to load"},
	{"file larger than memory", elf_sizes, "malformed program header 1"},
	{"address wraps", elf_wraps, "malformed program header 1"},
	{"offset wraps", elf_offset, "ends before segment 1"},
	{"overlap", elf_overlap, "overlaps"},
	{"at 0", elf_zero, "which boot data and ACPI tables need"},
	{"in the page tables", elf_low, "which boot data and ACPI tables need"},
	{"in the ACPI tables", elf_acpi, "which boot data and ACPI tables need"},
	{"into the video hole", elf_up_to_hole, "which boot data and ACPI tables need"},
	{"entry", elf_entry, "entry 0x1234 is in no segment"},
	{"program", elf_interp, "a program of a user space"},
	{"notes beyond the file", note_offset, "ends before its notes"},
	{"too many notes", note_huge, "ends before its notes"},
	{"name of a note", note_name, "malformed notes"},
	{"name of a note with nothing else", note_name_only, "malformed notes"},
	{"description of a note", note_desc, "malformed notes"},
	{"PVH entry", note_entry, "entry 0 is in no segment"},
	{"PVH entry above 4G", note_entry_64, "entry 0x100000000 is in no segment"},
	{"ELF32 without a note", elf32_no_note, "32-bit ELF without a PVH note"},
	{"ELF32 for Arm", elf32_arm, "is an ELF for 32-bit Arm"},
	{"ELF32 for x86-64", elf32_amd64, "is an ELF for x86-64 (32-bit)"},
};

START_TEST(elf_malformed)
{
	const struct bad_kernel *bad = &bad_elfs[_i];

	make_elf();
	bad->spoil();
	refused(RAM_SIZE, -ENOEXEC, bad->text);
	ck_assert_ptr_nonnull(strstr(err.text, vm->cfg.kernel));
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("boot-elf");
	TCase *tc = tcase_create("boot-elf");

	tcase_set_timeout(tc, 60);
	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_test(tc, pvh);
	tcase_add_test(tc, pvh_linux);
	tcase_add_test(tc, pvh_in_16_mib);
	tcase_add_test(tc, elf64);
	tcase_add_test(tc, elf_above_4g);
	tcase_add_loop_test(tc, elf_malformed, 0, ARRAY_SIZE(bad_elfs));
	suite_add_tcase(suite, tc);
	return run_suite(suite);
}
