/* SPDX-License-Identifier: MIT */
/*
 * Booting in general: files that are no kernels, initrd and command line against their limits,
 * kernels as distributors ship them, and files made to do harm.
 */
#include <dirent.h>

#include "boot-fixture.h"

START_TEST(not_a_file)
{
	struct errmsg e = {0};

	ck_assert_int_eq(boot_inspect("/nonexistent/vmlinuz", &info, &e), -ENOENT);
	ck_assert_str_eq(e.text, "kernel /nonexistent/vmlinuz: No such file or directory");
	memset(&e, 0, sizeof(e));
	ck_assert_int_eq(boot_inspect(dir, &info, &e), -EISDIR);
	ck_assert_ptr_nonnull(strstr(e.text, "is a directory"));
	memset(&e, 0, sizeof(e));
	ck_assert_int_eq(boot_inspect("/dev/null", &info, &e), -ENOEXEC);
	ck_assert_ptr_nonnull(strstr(e.text, "not a regular file"));
	/* A pipe without a writer must not block. */
	memset(&e, 0, sizeof(e));
	ck_assert_int_eq(mkfifo(vm->cfg.kernel, 0600), 0);
	ck_assert_int_eq(boot_inspect(vm->cfg.kernel, &info, &e), -ENOEXEC);
	ck_assert_ptr_nonnull(strstr(e.text, "not a regular file"));
}
END_TEST

static const struct {
	const char *data;
	size_t len;
	const char *text;
} no_kernels[] = {
	{"", 0, "the file is empty"},
	{"a", 1, "neither bzImage nor ELF, but a text file"},
	{"root:x:0:0\n", 11, "a text file"},
	{"#!/bin/sh\n", 10, "a script"},
	{"\x1f\x8b\x08\0", 4, "unpack it with gunzip"},
	{"\xfd"
	 "7zXZ\0\0",
	 7, "unpack it with unxz"},
	{"\x28\xb5\x2f\xfd", 4, "unpack it with unzstd"},
	{"070701", 6, "an initramfs belongs to -i"},
	{"QFI\xfb", 4, "a disk belongs to --disk"},
	{"MZ\x90\0", 4, "an EFI program"},
	{"\0\1\2\3", 4, "neither bzImage nor ELF"},
	{"\x7f"
	 "ELF",
	 4, "truncated"},
};

START_TEST(not_a_kernel)
{
	file.len = no_kernels[_i].len;
	memcpy(file.data, no_kernels[_i].data, file.len);
	refused(RAM_SIZE, -ENOEXEC, no_kernels[_i].text);
}
END_TEST

START_TEST(arm64_image)
{
	memset(file.data, 0, 4096);
	memcpy(file.data, "MZ", 2);
	memcpy(file.data + 56, "ARM\x64", 4);
	file.len = 4096;
	refused(RAM_SIZE, -ENOEXEC, "an arm64 kernel");
}
END_TEST

/* --- Command line --- */

static void set_cmdline(size_t len)
{
	memset(vm->cfg.cmdline, 'x', len);
	vm->cfg.cmdline[len] = '\0';
}

START_TEST(cmdline_limit)
{
	make_bzimage();
	hdr.cmdline_size = 300;
	set_hdr();
	set_cmdline(300);
	place_ok(RAM_SIZE);
	ck_assert_str_eq(ram_at(BOOT_CMDLINE_GPA, BOOT_CMDLINE_SIZE), vm->cfg.cmdline);
	set_cmdline(301);
	refused(RAM_SIZE, -E2BIG, "the command line has 301 bytes");
	ck_assert_ptr_nonnull(strstr(err.text, "takes 300"));

	/* A header that promises more than there is room for. */
	hdr.cmdline_size = UINT32_MAX;
	set_hdr();
	set_cmdline(VM_CMDLINE_MAX - 1);
	place_ok(RAM_SIZE);
	ck_assert_str_eq(ram_at(BOOT_CMDLINE_GPA, BOOT_CMDLINE_SIZE), vm->cfg.cmdline);

	/* Linux by PVH takes 2047, other PVH kernels all there is. */
	make_elf();
	add_pvh_note(4);
	set_elf();
	place_ok(RAM_SIZE);
	add_note("Linux", 0x101, "\0\0\0\0", 4);
	set_elf();
	refused(RAM_SIZE, -E2BIG, "takes 2047");
	set_cmdline(2047);
	place_ok(RAM_SIZE);
}
END_TEST

/* --- initrd --- */

START_TEST(initrd_errors)
{
	make_bzimage();
	set_hdr();
	snprintf(vm->cfg.initrd, sizeof(vm->cfg.initrd), "%s/none", dir);
	refused(RAM_SIZE, -ENOENT, "/none: No such file or directory");
	snprintf(vm->cfg.initrd, sizeof(vm->cfg.initrd), "%s", dir);
	refused(RAM_SIZE, -EISDIR, "initrd");
	use_initrd(0);
	refused(RAM_SIZE, -ENOEXEC, "the file is empty");

	/* Kernel up to 7 MiB: 25 MiB are left. */
	use_initrd(25 * MIB);
	place_ok(RAM_SIZE);
	use_initrd(25 * MIB + 1);
	refused(RAM_SIZE, -EFBIG, "room for 25 MiB: use -m 33M or more");
	place_ok(33 * MIB);
	use_initrd(1ULL << 40); /* a sparse file: more than any address space is fine to ask for */
	refused(RAM_SIZE, -EFBIG, "use -m 1051648M or more");
}
END_TEST

START_TEST(initrd_limit)
{
	uint64_t size;

	/* The kernel's limit first, all of low RAM where that is not enough and allowed. */
	make_bzimage();
	hdr.initrd_addr_max = 10 * MIB - 1;
	set_hdr();
	use_initrd(2 * MIB);
	place_ok(RAM_SIZE);
	ck_assert_uint_eq(ramdisk(params(), &size), 8 * MIB);
	use_initrd(4 * MIB);
	place_ok(RAM_SIZE);
	ck_assert_uint_eq(ramdisk(params(), &size), RAM_SIZE - 4 * MIB);
	ck_assert_uint_eq(size, 4 * MIB);
	hdr.xloadflags = XLF_KERNEL_64;
	set_hdr();
	refused(RAM_SIZE, -EFBIG, "this kernel leaves room for 3 MiB: make it smaller");

	/* Below the kernel where that is the only place. */
	hdr.pref_address = 8 * MIB;
	hdr.initrd_addr_max = 9 * MIB;
	set_hdr();
	place_ok(RAM_SIZE);
	ck_assert_uint_eq(ramdisk(params(), &size), 4 * MIB);
	check_code(8 * MIB);
}
END_TEST

START_TEST(initrd_above_4g)
{
	uint64_t size;

	make_bzimage();
	hdr.init_size = (uint32_t)(RAM_LOW_MAX - KERNEL_GPA - MIB);
	set_hdr();
	use_initrd(5 * MIB);
	place_ok(5 * GIB);
	ck_assert_uint_eq(ramdisk(params(), &size), 6 * GIB - 5 * MIB);
	ck_assert_uint_eq(size, 5 * MIB);
	ck_assert_str_eq(ram_at(6 * GIB - 5 * MIB, size), "initrd start");
	hdr.xloadflags = XLF_KERNEL_64;
	set_hdr();
	refused(5 * GIB, -EFBIG, "room for 3 MiB");
}
END_TEST

/* --- Real kernels --- */

START_TEST(shipped_kernels)
{
	static const char *const names[] = {"6.1/vmlinuz", "6.1/vmlinux", "6.12/vmlinuz",
					    "6.12/vmlinux"};
	unsigned found = 0;

	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		struct boot_info seen;
		bool packed = names[i][strlen(names[i]) - 1] == 'z';
		int ret;

		snprintf(vm->cfg.kernel, sizeof(vm->cfg.kernel), "build/kernels/%s", names[i]);
		if (access(vm->cfg.kernel, R_OK))
			continue;
		found++;
		memset(&err, 0, sizeof(err));
		ck_assert_msg(!boot_inspect(vm->cfg.kernel, &seen, &err), "%s", err.text);
		ck_assert_int_eq(seen.format, packed ? BOOT_BZIMAGE : BOOT_PVH);
		ck_assert(seen.linux_guest);
		ck_assert_int_eq(ram_init(&vm->ram, 64 * MIB, false, &err), 0);
		ret = boot_place(vm, &info, &regs, &err);
		ck_assert_msg(packed ? ret == -EFBIG : ret == 0 || ret == -EFBIG, "%s", err.text);
		ram_destroy(&vm->ram);
		memset(&err, 0, sizeof(err));
		ck_assert_int_eq(ram_init(&vm->ram, 128 * MIB, false, &err), 0);
		ret = boot_place(vm, &info, &regs, &err);
		ck_assert_msg(!ret, "%s", err.text);
		ck_assert_uint_eq(info.entry, seen.entry);
		ck_assert_ptr_nonnull(ram_ptr(&vm->ram, info.entry, 16));
		ram_destroy(&vm->ram);
	}
	if (!found)
		fprintf(stderr, "SKIPPED shipped_kernels: none under build/kernels, run "
				"scripts/guest-kernel\n");
}
END_TEST

START_TEST(bare_payloads)
{
	const char *folder = "build/guest-tests/bare";
	DIR *d = opendir(folder);
	unsigned found = 0;
	struct dirent *e;

	while (d && (e = readdir(d))) {
		size_t len = strlen(e->d_name);
		int ret;

		if (len < 4 || strcmp(e->d_name + len - 4, ".elf"))
			continue;
		found++;
		snprintf(vm->cfg.kernel, sizeof(vm->cfg.kernel), "%s/%s", folder, e->d_name);
		memset(&err, 0, sizeof(err));
		ck_assert_int_eq(ram_init(&vm->ram, RAM_MIN, false, &err), 0);
		ret = boot_place(vm, &info, &regs, &err);
		ck_assert_msg(!ret, "%s", err.text);
		ck_assert_int_eq(info.format, BOOT_PVH);
		ck_assert(!info.linux_guest);
		ram_destroy(&vm->ram);
	}
	if (d)
		closedir(d);
	if (!found)
		fprintf(stderr, "SKIPPED bare_payloads: none in %s, run make bare-payloads\n",
			folder);
}
END_TEST

/* --- Files made to do harm --- */

static uint32_t rng_state;

static uint32_t rng(uint32_t n)
{
	rng_state ^= rng_state << 13;
	rng_state ^= rng_state >> 17;
	rng_state ^= rng_state << 5;
	return rng_state % n;
}

static void make_pvh(void)
{
	make_elf();
	add_note("Xen", 6, "linux", 6);
	add_pvh_note(4);
	set_elf();
}

static void make_pvh32(void)
{
	make_pvh();
	set_elf32(EM_386);
}

static void make_elf64(void)
{
	make_elf();
	set_elf();
}

static void make_bz(void)
{
	make_bzimage();
	set_hdr();
}

/* Bytes that often matter, beside random ones. */
static uint8_t nasty(void)
{
	static const uint8_t bytes[] = {0, 1, 2, 4, 0x7f, 0x80, 0xff};

	return rng(2) ? bytes[rng(sizeof(bytes))] : (uint8_t)rng(256);
}

START_TEST(hostile)
{
	static void (*const make[])(void) = {make_bz, make_elf64, make_pvh, make_pvh32};
	unsigned accepted = 0;

	use_initrd(10000);
	ck_assert_int_eq(ram_init(&vm->ram, RAM_SIZE, false, &err), 0);
	rng_state = 0x9e3779b9U + (uint32_t)_i;
	for (unsigned round = 0; round < 1000; round++) {
		/* Half of the damage goes where the structures are. */
		uint32_t n = rng(6), at;
		int ret;

		make[_i]();
		while (n--) {
			at = rng(2) ? rng((uint32_t)file.len) : rng(1024);
			if (rng(4) == 0) {
				for (unsigned i = 0; i < 8 && at + i < file.len; i++)
					file.data[at + i] = 0xff;
			} else {
				file.data[at] = nasty();
			}
		}
		if (rng(4) == 0)
			file.len = rng((uint32_t)file.len);
		write_path(vm->cfg.kernel, file.data, file.len);
		memset(&err, 0, sizeof(err));
		ret = boot_place(vm, &info, &regs, &err);
		if (ret == 0) {
			accepted++;
			ck_assert_ptr_nonnull(ram_ptr(&vm->ram, regs.rip, 1));
			ck_assert_str_eq(err.text, "");
			continue;
		}
		ck_assert_msg(ret == -ENOEXEC || ret == -EFBIG || ret == -E2BIG, "%d: %s", ret,
			      err.text);
		ck_assert_str_ne(err.text, "");
		ck_assert_ptr_null(strchr(err.text, '\n'));
	}
	/* Neither all harmless nor all broken: else nothing was tested. */
	ck_assert_uint_gt(accepted, 50);
	ck_assert_uint_lt(accepted, 950);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("boot");
	TCase *tc = tcase_create("boot");

	tcase_set_timeout(tc, 120);
	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_add_test(tc, not_a_file);
	tcase_add_loop_test(tc, not_a_kernel, 0, ARRAY_SIZE(no_kernels));
	tcase_add_test(tc, arm64_image);
	tcase_add_test(tc, cmdline_limit);
	tcase_add_test(tc, initrd_errors);
	tcase_add_test(tc, initrd_limit);
	tcase_add_test(tc, initrd_above_4g);
	tcase_add_test(tc, shipped_kernels);
	tcase_add_test(tc, bare_payloads);
	tcase_add_loop_test(tc, hostile, 0, 4);
	suite_add_tcase(suite, tc);
	return run_suite(suite);
}
