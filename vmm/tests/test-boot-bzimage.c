/* SPDX-License-Identifier: MIT */
/* bzImage: what a valid one becomes in guest RAM, and how each way of being invalid is refused. */
#include "boot-fixture.h"

START_TEST(bzimage)
{
	static const struct screen_info no_screen;
	const struct boot_params *bp;
	uint64_t size;

	make_bzimage();
	set_hdr();
	strcpy(vm->cfg.cmdline, "console=ttyS0");
	use_initrd(100000);
	place_ok(RAM_SIZE);
	ck_assert_int_eq(info.format, BOOT_BZIMAGE);
	ck_assert(info.linux_guest);
	ck_assert_uint_eq(info.entry, KERNEL_GPA + 0x200);
	ck_assert_uint_eq(regs.rip, info.entry);
	check_code(KERNEL_GPA);
	check_zero(KERNEL_GPA + CODE_SIZE, hdr.init_size - CODE_SIZE);

	bp = params();
	ck_assert(!memcmp(&bp->screen_info, &no_screen, sizeof(no_screen)));
	ck_assert_uint_eq(bp->sentinel, 0);
	ck_assert_uint_eq(bp->acpi_rsdp_addr, ACPI_TABLES_GPA);
	ck_assert_uint_eq(bp->hdr.type_of_loader, 0xff);
	ck_assert_uint_eq(bp->hdr.loadflags, LOADED_HIGH);
	ck_assert_uint_eq(bp->hdr.init_size, hdr.init_size);
	ck_assert_uint_eq(bp->hdr.code32_start, KERNEL_GPA);
	ck_assert_uint_eq(bp->hdr.cmd_line_ptr, BOOT_CMDLINE_GPA);
	ck_assert_str_eq(ram_at(BOOT_CMDLINE_GPA, BOOT_CMDLINE_SIZE), "console=ttyS0");

	ck_assert_uint_eq(bp->e820_entries, 3);
	ck_assert_uint_eq(bp->e820_table[0].addr, 0);
	ck_assert_uint_eq(bp->e820_table[0].size, 0xa0000);
	ck_assert_uint_eq(bp->e820_table[0].type, 1);
	ck_assert_uint_eq(bp->e820_table[1].addr, ACPI_TABLES_GPA);
	ck_assert_uint_eq(bp->e820_table[1].size, ACPI_TABLES_SIZE);
	ck_assert_uint_eq(bp->e820_table[1].type, 2);
	ck_assert_uint_eq(bp->e820_table[2].addr, 0x100000);
	ck_assert_uint_eq(bp->e820_table[2].size, RAM_SIZE - 0x100000);
	ck_assert_uint_eq(bp->e820_table[2].type, 1);

	/* As high as it can be, in whole pages. */
	ck_assert_uint_eq(ramdisk(bp, &size), RAM_SIZE - 25 * PAGE_SIZE);
	ck_assert_uint_eq(size, 100000);
	ck_assert_str_eq(ram_at(RAM_SIZE - 25 * PAGE_SIZE, size), "initrd start");

	for (uint64_t va = 0; va < 4 * GIB; va += 64 * MIB + 0x1234)
		ck_assert_uint_eq(translate(va), va);
	ck_assert_uint_eq(translate(4 * GIB - 1), 4 * GIB - 1);
	ck_assert_uint_eq(translate(4 * GIB), UINT64_MAX);
}
END_TEST

START_TEST(bzimage_with_short_header)
{
	const struct boot_params *bp;

	/* Protocol 2.12 ends at handover_offset; what follows in the file is code. */
	make_bzimage();
	hdr.version = 0x20c;
	hdr.jump = 0x66eb;
	hdr.kernel_info_offset = 0xdeadbeef;
	set_hdr();
	place_ok(RAM_SIZE);
	bp = params();
	ck_assert_uint_eq(bp->hdr.kernel_info_offset, 0);
	ck_assert_uint_eq(bp->hdr.ramdisk_size, 0);
	/* And a longer one than we know is cut to what fits boot_params. */
	make_bzimage();
	hdr.jump = 0xffeb;
	set_hdr();
	memset(file.data + 0x1f1 + sizeof(hdr), 0x77, 0x80);
	place_ok(RAM_SIZE);
	bp = params();
	ck_assert_uint_eq(bp->edd_mbr_sig_buffer[0], 0);
}
END_TEST

START_TEST(bzimage_moves_up)
{
	make_bzimage();
	hdr.pref_address = KERNEL_GPA + 0x1000; /* not aligned as the kernel wants */
	set_hdr();
	place_ok(RAM_SIZE);
	ck_assert_uint_eq(info.entry, KERNEL_GPA + 0x200000 + 0x200);
	check_code(KERNEL_GPA + 0x200000);

	/* Does not fit below the hole. */
	hdr.pref_address = RAM_LOW_MAX - 0x200000;
	set_hdr();
	place_ok(5 * GIB);
	ck_assert_uint_eq(regs.rip, 4 * GIB + 0x200);
	check_code(4 * GIB);
	ck_assert_uint_eq(translate(4 * GIB + 0x200), 4 * GIB + 0x200);
	ck_assert_uint_eq(translate(5 * GIB), UINT64_MAX);
	ck_assert_uint_eq(params()->e820_entries, 4);
	ck_assert_uint_eq(params()->e820_table[3].addr, 4 * GIB);
	ck_assert_uint_eq(params()->e820_table[3].size, 2 * GIB);

	/* Not movable, or not so far: refused. */
	hdr.relocatable_kernel = 0;
	set_hdr();
	refused(5 * GIB, -EFBIG, "where no machine has RAM");
	hdr.relocatable_kernel = 1;
	hdr.xloadflags = XLF_KERNEL_64;
	set_hdr();
	refused(5 * GIB, -EFBIG, "where no machine has RAM");
	hdr.xloadflags |= XLF_CAN_BE_LOADED_ABOVE_4G;
	set_hdr();
	refused(64 * MIB, -EFBIG, "use -m 3075M or more");
}
END_TEST

START_TEST(bzimage_wants_ram)
{
	make_bzimage();
	hdr.pref_address = 16 * MIB;
	hdr.init_size = 0x3378000; /* 51.5 MiB */
	set_hdr();
	refused(64 * MIB, -EFBIG, "does not fit into 64M of RAM: use -m 68M or more");
	place_ok(68 * MIB);
}
END_TEST

SPOIL(bz_old, hdr.version = 0x20b, set_hdr())
SPOIL(bz_32bit, hdr.xloadflags = 0, set_hdr())
SPOIL(bz_zimage, hdr.loadflags = 0, set_hdr())
SPOIL(bz_pref_low, hdr.pref_address = 0x10000, set_hdr())
SPOIL(bz_pref_wraps, hdr.pref_address = UINT64_MAX - 0xfff, set_hdr())
SPOIL(bz_align, hdr.kernel_alignment = 0x300000, set_hdr())
SPOIL(bz_align_zero, hdr.kernel_alignment = 0, set_hdr())
SPOIL(bz_no_code, hdr.syssize = 0x20, set_hdr())
SPOIL(bz_header_end, hdr.jump = 0x10eb, set_hdr())
SPOIL(bz_code_cut, file.len -= 1, set_hdr())
SPOIL(bz_setup_cut, file.len = 1000, set_hdr())
SPOIL(bz_header_cut, file.len = 0x220, set_hdr())
SPOIL(bz_huge, hdr.syssize = UINT32_MAX, set_hdr())

static const struct bad_kernel bad_bzimages[] = {
	{"old", bz_old, "boot protocol 2.11"},
	{"32bit", bz_32bit, "32-bit only"},
	{"zimage", bz_zimage, "zImage"},
	{"pref low", bz_pref_low, "pref_address 0x10000"},
	{"pref wraps", bz_pref_wraps, "pref_address"},
	{"alignment", bz_align, "kernel_alignment 0x300000"},
	{"no alignment", bz_align_zero, "kernel_alignment 0"},
	{"no code", bz_no_code, "syssize 0x20"},
	{"header end", bz_header_end, "malformed setup header"},
	{"code cut", bz_code_cut, "truncated: 5119 bytes, but 5120"},
	{"setup cut", bz_setup_cut, "truncated"},
	{"header cut", bz_header_cut, "truncated: it ends within the setup header"},
	{"huge", bz_huge, "truncated"},
};

START_TEST(bzimage_malformed)
{
	const struct bad_kernel *bad = &bad_bzimages[_i];

	make_bzimage();
	bad->spoil();
	refused(RAM_SIZE, -ENOEXEC, bad->text);
	/* inspect says the same without a machine. */
	memset(&err, 0, sizeof(err));
	ck_assert_int_eq(boot_inspect(vm->cfg.kernel, &info, &err), -ENOEXEC);
	ck_assert_ptr_nonnull(strstr(err.text, bad->text));
	ck_assert_ptr_nonnull(strstr(err.text, vm->cfg.kernel));
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("boot-bzimage");
	TCase *tc = tcase_create("boot-bzimage");

	tcase_set_timeout(tc, 60);
	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_test(tc, bzimage);
	tcase_add_test(tc, bzimage_with_short_header);
	tcase_add_test(tc, bzimage_moves_up);
	tcase_add_test(tc, bzimage_wants_ram);
	tcase_add_loop_test(tc, bzimage_malformed, 0, ARRAY_SIZE(bad_bzimages));
	suite_add_tcase(suite, tc);
	return run_suite(suite);
}
