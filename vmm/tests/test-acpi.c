/* SPDX-License-Identifier: MIT */
/*
 * The ACPI tables as a guest finds them: from the RSDP through every pointer, with checksums; the
 * facts that kernels act on; and what the reference compiler thinks of them.
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../acpi.h"
#include "../acpi_pm.h"
#include "../irq.h"

static struct vm *vm;
static uint64_t rsdp;

static void build(uint32_t vcpus)
{
	struct errmsg err = {0};

	vm = calloc(1, sizeof(*vm));
	ck_assert_ptr_nonnull(vm);
	ck_assert_msg(!ram_init(&vm->ram, RAM_MIN, false, &err), "%s", err.text);
	vm->cfg.vcpus = vcpus;
	ck_assert_msg(!acpi_build(vm, &rsdp, &err), "%s", err.text);
}

static void teardown(void)
{
	if (!vm)
		return;
	ram_destroy(&vm->ram);
	free(vm);
	vm = NULL;
}

static const uint8_t *at(uint64_t gpa, uint64_t len)
{
	ck_assert_uint_ge(gpa, ACPI_TABLES_GPA);
	ck_assert_uint_le(gpa + len, ACPI_TABLES_GPA + ACPI_TABLES_SIZE);
	return ram_ptr(&vm->ram, gpa, len);
}

static uint64_t get(const uint8_t *p, size_t offset, size_t size)
{
	uint64_t v = 0;

	memcpy(&v, p + offset, size);
	return v;
}

static unsigned sum(const uint8_t *p, size_t len)
{
	unsigned s = 0;

	while (len--)
		s += *p++;
	return s & 0xff;
}

static const uint8_t *table(uint64_t gpa, const char *signature, uint32_t *len)
{
	const uint8_t *p = at(gpa, 36);

	ck_assert_mem_eq(p, signature, 4);
	*len = (uint32_t)get(p, 4, 4);
	ck_assert_uint_ge(*len, 36);
	p = at(gpa, *len);
	ck_assert_msg(sum(p, *len) == 0, "checksum of %s", signature);
	return p;
}

/* Entry i of the XSDT. */
static uint64_t xsdt_entry(unsigned i)
{
	const uint8_t *r = at(rsdp, 36), *x;
	uint32_t len;

	x = table(get(r, 24, 8), "XSDT", &len);
	ck_assert_uint_ge(len, 36 + 8 * (i + 1));
	return get(x, 36 + 8 * i, 8);
}

START_TEST(root_pointer)
{
	const uint8_t *r;

	build(1);
	/* Kernels that are not told scan this area in steps of 16 bytes. */
	ck_assert_uint_ge(rsdp, 0xe0000);
	ck_assert_uint_lt(rsdp, 0x100000);
	ck_assert_uint_eq(rsdp % 16, 0);
	r = at(rsdp, 36);
	ck_assert_mem_eq(r, "RSD PTR ", 8);
	ck_assert_uint_eq(r[15], 2);
	ck_assert_uint_eq(get(r, 20, 4), 36);
	ck_assert_uint_eq(sum(r, 20), 0);
	ck_assert_uint_eq(sum(r, 36), 0);
}
END_TEST

START_TEST(fixed_hardware)
{
	const uint8_t *f, *facs;
	uint32_t len, flags;

	build(1);
	f = table(xsdt_entry(0), "FACP", &len);
	ck_assert_uint_eq(len, 276);
	ck_assert_uint_eq(f[8], 6);
	table(get(f, 140, 8), "DSDT", &len);
	ck_assert_uint_eq(get(f, 40, 4), get(f, 140, 8));

	/* FACS: 64-byte aligned, without checksum, one of the two pointers. */
	ck_assert_uint_eq(get(f, 132, 8), 0);
	ck_assert_uint_eq(get(f, 36, 4) % 64, 0);
	facs = at(get(f, 36, 4), 64);
	ck_assert_mem_eq(facs, "FACS", 4);
	ck_assert_uint_eq(get(facs, 4, 4), 64);

	ck_assert_uint_eq(get(f, 46, 2), IRQ_SCI);
	ck_assert_uint_eq(get(f, 48, 4), 0); /* SMI_CMD: always in ACPI mode */
	ck_assert_uint_eq(get(f, 56, 4), ACPI_PM1A_EVT);
	ck_assert_uint_eq(get(f, 64, 4), ACPI_PM1A_CNT);
	ck_assert_uint_eq(f[88], 4);
	ck_assert_uint_eq(f[89], 2);
	/* The same in the generic address structures: I/O space, width, address. */
	ck_assert_uint_eq(f[148], 1);
	ck_assert_uint_eq(f[149], 32);
	ck_assert_uint_eq(get(f, 152, 8), ACPI_PM1A_EVT);
	ck_assert_uint_eq(f[172], 1);
	ck_assert_uint_eq(f[173], 16);
	ck_assert_uint_eq(get(f, 176, 8), ACPI_PM1A_CNT);
	ck_assert_uint_eq(get(f, 76, 4), 0); /* no PM timer */

	ck_assert_uint_eq(f[116], 1);
	ck_assert_uint_eq(f[117], 8);
	ck_assert_uint_eq(get(f, 120, 8), ACPI_RESET_PORT);
	ck_assert_uint_eq(f[128], ACPI_RESET_VALUE);

	/* IAPC_BOOT_ARCH: legacy devices and a CMOS RTC, no 8042, no VGA. */
	ck_assert_uint_eq(get(f, 109, 2), 0x5);
	flags = (uint32_t)get(f, 112, 4);
	ck_assert(flags & 1U);		/* WBINVD */
	ck_assert(!(flags & 1U << 4));	/* power button: fixed */
	ck_assert(flags & 1U << 5);	/* sleep button: not fixed, so absent */
	ck_assert(flags & 1U << 10);	/* reset register */
	ck_assert(!(flags & 1U << 20)); /* not hardware-reduced */
}
END_TEST

static void check_madt(uint32_t vcpus)
{
	unsigned cpus = 0, ioapics = 0, pit = 0, sci = 0, nmi = 0, x2nmi = 0;
	const uint8_t *m, *e;
	uint32_t len, pos;

	build(vcpus);
	m = table(xsdt_entry(1), "APIC", &len);
	ck_assert_uint_eq(get(m, 36, 4), 0xfee00000);
	ck_assert_uint_eq(get(m, 40, 4), 1);
	for (pos = 44; pos < len; pos += e[1]) {
		e = m + pos;
		ck_assert_uint_le(pos + 2, len);
		ck_assert_uint_ge(e[1], 2);
		ck_assert_uint_le(pos + e[1], len);
		switch (e[0]) {
		case 0:
			ck_assert_uint_eq(e[1], 8);
			ck_assert_uint_lt(cpus, 255);
			ck_assert_uint_eq(e[2], cpus);
			ck_assert_uint_eq(e[3], cpus);
			ck_assert_uint_eq(get(e, 4, 4), 1);
			cpus++;
			break;
		case 1:
			ck_assert_uint_eq(get(e, 4, 4), 0xfec00000);
			ck_assert_uint_eq(get(e, 8, 4), 0);
			ioapics++;
			break;
		case 2:
			ck_assert_uint_eq(e[1], 10);
			if (e[3] == 0 && get(e, 4, 4) == 2 && get(e, 8, 2) == 0)
				pit++;
			/* Level, active high. */
			if (e[3] == IRQ_SCI && get(e, 4, 4) == IRQ_SCI && get(e, 8, 2) == 0xd)
				sci++;
			break;
		case 4:
			ck_assert_uint_eq(e[2], 0xff);
			ck_assert_uint_eq(e[5], 1);
			nmi++;
			break;
		case 9:
			ck_assert_uint_eq(e[1], 16);
			ck_assert_uint_ge(cpus, 255);
			ck_assert_uint_eq(get(e, 4, 4), cpus);
			ck_assert_uint_eq(get(e, 8, 4), 1);
			ck_assert_uint_eq(get(e, 12, 4), cpus);
			cpus++;
			break;
		case 10:
			x2nmi++;
			break;
		default:
			ck_abort_msg("MADT entry of type %u", e[0]);
		}
	}
	ck_assert_uint_eq(pos, len);
	ck_assert_uint_eq(cpus, vcpus);
	ck_assert_uint_eq(ioapics, 1);
	ck_assert_uint_eq(pit, 1);
	ck_assert_uint_eq(sci, 1);
	ck_assert_uint_eq(nmi, 1);
	ck_assert_uint_eq(x2nmi, vcpus > 255);
	teardown();
}

START_TEST(processors)
{
	check_madt(1);
	check_madt(2);
	check_madt(255);
	check_madt(256);
	check_madt(VM_MAX_VCPUS);
}
END_TEST

START_TEST(too_many_processors)
{
	struct errmsg err = {0};

	build(1);
	vm->cfg.vcpus = 100000;
	ck_assert_int_eq(acpi_build(vm, &rsdp, &err), -ENOSPC);
	ck_assert_ptr_nonnull(strstr(err.text, "100000 vCPUs"));
}
END_TEST

/* Only the pages of the area are touched. */
START_TEST(stays_in_its_area)
{
	build(VM_MAX_VCPUS);
	for (uint64_t gpa = 0; gpa < RAM_MIN; gpa += PAGE_SIZE) {
		uint64_t page = gpa / PAGE_SIZE;
		bool dirty = vm->ram.own_dirty[page / 64] >> (page % 64) & 1;
		bool inside = gpa >= ACPI_TABLES_GPA && gpa < ACPI_TABLES_GPA + ACPI_TABLES_SIZE;

		if (dirty && !inside)
			ck_abort_msg("page at %#llx written", (unsigned long long)gpa);
	}
}
END_TEST

static void save(const char *path, const void *data, size_t len)
{
	FILE *f = fopen(path, "wb");

	ck_assert_ptr_nonnull(f);
	ck_assert_uint_eq(fwrite(data, 1, len, f), len);
	ck_assert_int_eq(fclose(f), 0);
}

static bool file_has(const char *path, const char *text)
{
	static char buf[65536];
	FILE *f = fopen(path, "r");
	size_t n;

	ck_assert_ptr_nonnull(f);
	n = fread(buf, 1, sizeof(buf) - 1, f);
	buf[n] = '\0';
	fclose(f);
	return strstr(buf, text);
}

/* The reference compiler disassembles every table and takes its own output back. */
START_TEST(reference_compiler)
{
	char dir[] = "/tmp/godwit-acpi-XXXXXX", cmd[256], path[128];
	const uint8_t *f, *p;
	uint32_t len;

	if (system("command -v iasl >/dev/null 2>&1")) {
		fprintf(stderr, "SKIPPED reference_compiler: no iasl (package acpica-tools)\n");
		return;
	}
	build(300);
	ck_assert_ptr_nonnull(mkdtemp(dir));
	f = table(xsdt_entry(0), "FACP", &len);
	snprintf(path, sizeof(path), "%s/facp.aml", dir);
	save(path, f, len);
	p = table(get(f, 40, 4), "DSDT", &len);
	snprintf(path, sizeof(path), "%s/dsdt.aml", dir);
	save(path, p, len);
	snprintf(path, sizeof(path), "%s/facs.aml", dir);
	save(path, at(get(f, 36, 4), 64), 64);
	p = table(xsdt_entry(1), "APIC", &len);
	snprintf(path, sizeof(path), "%s/apic.aml", dir);
	save(path, p, len);

	/* Complaints are counted in the last line of each run, and errors in the status too. */
	snprintf(cmd, sizeof(cmd),
		 "cd %s && for t in dsdt facp facs apic; do timeout 20 iasl -d $t.aml && "
		 "timeout 20 iasl -p again-$t $t.dsl || exit 1; done >log 2>&1 && "
		 "! grep -E '[1-9][0-9]* (Errors|Warnings)' log",
		 dir);
	ck_assert_msg(!system(cmd), "iasl complains: see %s/log", dir);
	snprintf(path, sizeof(path), "%s/dsdt.dsl", dir);
	ck_assert(file_has(path, "\"PNP0501\""));
	ck_assert(file_has(path, "\"PNP0B00\""));
	ck_assert(file_has(path, "\\_S5"));

	snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
	ck_assert_int_eq(system(cmd), 0);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("acpi");
	TCase *tc = tcase_create("acpi");
	SRunner *runner;
	int failed;

	tcase_set_timeout(tc, 120);
	tcase_add_checked_fixture(tc, NULL, teardown);
	tcase_add_test(tc, root_pointer);
	tcase_add_test(tc, fixed_hardware);
	tcase_add_test(tc, processors);
	tcase_add_test(tc, too_many_processors);
	tcase_add_test(tc, stays_in_its_area);
	tcase_add_test(tc, reference_compiler);
	suite_add_tcase(suite, tc);
	runner = srunner_create(suite);
	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
