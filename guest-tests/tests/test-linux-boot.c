/* SPDX-License-Identifier: MIT */
/* Unmodified Debian kernels boot, find the machine that was asked for, reset and power off. */
#include <fcntl.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "test-linux.h"

/* ---- kernels, images, CPUs ---- */

static const struct {
	const char *kernel, *cpus;
} boots[] = {
	{"6.1/vmlinuz", "1"}, {"6.1/vmlinuz", "2"},  {"6.1/vmlinuz", "4"},  {"6.1/vmlinux", "1"},
	{"6.1/vmlinux", "2"}, {"6.12/vmlinuz", "1"}, {"6.12/vmlinuz", "2"},
};

START_TEST(boot)
{
	const char *kernel = boots[_i].kernel, *cpus = boots[_i].cpus;
	const char *release = harness_path(" kernel=%.*s.", (int)strcspn(kernel, "/"), kernel);
	struct lx x = {.notes = 0};

	guest_start(&x.g, "vm", "-m", "128M", "-c", cpus, "-k", lx_kernel(kernel), "-i",
		    lx_initrd(), "-p", "quiet gt.mode=poweroff", NULL);
	lx_ready(&x, (unsigned)atoi(cpus));
	need(strstr(x.ready, release), "not a kernel %s: '%s'", release, x.ready);
	/* The lines of this mode are few, and say so if the kernel's log holds a complaint. */
	lx_done(&x);
	harness_say("%s, %s CPU(s): ready %llu ms after its start", kernel, cpus,
		    (unsigned long long)kv(x.ready, "t_ms"));
}
END_TEST

/* ---- the machine's description ---- */

START_TEST(machine)
{
	struct lx x = {.notes = 0};
	long long date, rtc, before, after;
	const char *info, *tables;

	guest_start(&x.g, "vm", "-m", "128M", "-c", "2", "-k", lx_kernel("6.1/vmlinuz"), "-i",
		    lx_initrd(), "-p", "quiet gt.mode=idle gt.mem=1M gt.clock=0", NULL);
	lx_ready(&x, 2);
	before = time(NULL);
	info = lx_info(&x);
	after = time(NULL);
	ck_assert_str_eq(lx_fact(info, "clocksource"), "kvm-clock");
	ck_assert_str_eq(lx_fact(info, "online"), "0-1");
	tables = lx_fact(info, "acpi");
	need(strstr(tables, "APIC") && strstr(tables, "DSDT") && strstr(tables, "FACP"),
	     "not all ACPI tables are there: '%s'", tables);
	need(strstr(lx_fact(info, "uart"), "16550A"), "'%s'", lx_fact(info, "uart"));
	need(strstr(lx_fact(info, "rtc"), "rtc_cmos"), "'%s'", lx_fact(info, "rtc"));
	date = strtoll(lx_fact(info, "date"), NULL, 10);
	rtc = strtoll(lx_fact(info, "rtc-date"), NULL, 10);
	need(date >= before - 2 && date <= after + 2, "it is %lld..%lld here and %lld there",
	     before, after, date);
	need(rtc >= before - 2 && rtc <= after + 2, "it is %lld..%lld here and %lld by its RTC",
	     before, after, rtc);
	guest_send(&x.g, "q\n");
	lx_done(&x);
}
END_TEST

/* ---- memory ---- */

START_TEST(small)
{
	struct lx x = {.notes = 0};

	guest_start(&x.g, "vm", "-m", "80M", "-k", lx_kernel("6.1/vmlinuz"), "-i", lx_initrd(),
		    "-p", "quiet gt.mode=poweroff gt.mem=1M", NULL);
	lx_ready(&x, 1);
	lx_done(&x);
}
END_TEST

/* RAM that does not fit below the hole for devices goes on at 4 GiB. */
START_TEST(beyond_4g)
{
	struct lx x = {.notes = 0};
	const char *ram;
	uint64_t kib;

	guest_start(&x.g, "vm", "-m", "3500M", "-k", lx_kernel("6.1/vmlinuz"), "-i", lx_initrd(),
		    "-p", "quiet gt.mode=idle gt.mem=8M", NULL);
	lx_ready(&x, 1);
	kib = kv(x.ready, "mem_kib");
	need(kib > 3300 << 10 && kib <= 3500 << 10, "of 3500 MiB it has %llu KiB",
	     (unsigned long long)kib);
	ram = lx_fact(lx_info(&x), "ram");
	need(strstr(ram, "100000000-"), "no RAM at 4 GiB: %s", ram);
	guest_send(&x.g, "q\n");
	lx_done(&x);
}
END_TEST

/* Zeros first, which the kernel skips, and the archive at the very end: all of it must be there. */
static const char *padded_initrd(off_t pad)
{
	const char *path = harness_path("%s/initrd", harness_tmp());
	char data[65536];
	int in = open(lx_initrd(), O_RDONLY | O_CLOEXEC);
	int out = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	ssize_t n;

	need(in >= 0 && out >= 0, "%s cannot be written", path);
	need(lseek(out, pad, SEEK_SET) == pad, "%s cannot be that large", path);
	while ((n = read(in, data, sizeof(data))) > 0)
		need(write(out, data, (size_t)n) == n, "%s cannot be written", path);
	need(n == 0, "the initramfs cannot be read");
	close(in);
	close(out);
	return path;
}

START_TEST(large_initrd)
{
	struct lx x = {.notes = 0};

	guest_start(&x.g, "vm", "-m", "192M", "-k", lx_kernel("6.1/vmlinuz"), "-i",
		    padded_initrd(60 << 20), "-p", "quiet gt.mode=poweroff", NULL);
	lx_ready(&x, 1);
	lx_done(&x);
}
END_TEST

START_TEST(too_large_initrd)
{
	const char *initrd = padded_initrd(100 << 20);
	struct proc *p = godwit_run(1, "run", "-m", "128M", "-k", lx_kernel("6.1/vmlinuz"), "-i",
				    initrd, NULL);

	need(strstr(p->err.buf, initrd) && strstr(p->err.buf, "use -m "), "it says: %s",
	     p->err.buf);
}
END_TEST

/* ---- resets ---- */

/* What Linux does to reset: by default, and through each device that can. */
static const char *const resets[] = {"", "reboot=t", "reboot=k", "reboot=a", "reboot=p"};

START_TEST(reset)
{
	const char *cmdline =
		harness_path("quiet gt.mode=idle gt.mem=1M gt.clock=0 %s", resets[_i]);
	struct lx x = {.notes = 0};
	pid_t pid;

	guest_start(&x.g, "vm", "-m", "128M", "-c", _i == 0 ? "2" : "1", "-k",
		    lx_kernel("6.1/vmlinuz"), "-i", lx_initrd(), "-p", cmdline, NULL);
	lx_ready(&x, _i == 0 ? 2 : 1);
	pid = (pid_t)json_num(guest_status(&x.g), "pid");
	lx_ask(&x, "reboot", "reboot");
	lx_ready(&x, _i == 0 ? 2 : 1);
	/* The same process under the same name, with a console that still takes input. */
	ck_assert_int_eq((pid_t)json_num(guest_status(&x.g), "pid"), pid);
	ck_assert_int_eq(x.g.proc->pid, pid);
	lx_ask(&x, "echo again", "echo");
	guest_send(&x.g, "q\n");
	lx_done(&x);
}
END_TEST

START_TEST(no_reboot)
{
	struct lx x = {.notes = 0};

	guest_start(&x.g, "vm", "-m", "128M", "--no-reboot", "-k", lx_kernel("6.1/vmlinux"), "-i",
		    lx_initrd(), "-p", "quiet gt.mode=reboot", NULL);
	lx_ready(&x, 1);
	lx_expect(&x, "reboot", LX_ANSWER_MS);
	guest_ended(&x.g, 0, LX_BOOT_MS);
	need(!strstr(strstr(x.g.proc->out.buf, " ready ") + 1, " ready "), "it has booted again");
}
END_TEST

int main(void)
{
	Suite *s = suite_create("linux-boot");
	TCase *tc;

	if (!harness_linux_works())
		return harness_skip_all(
			"no Linux guest runs on this host (godwit doctor says why)");

	tc = harness_case(s, "boot", 60);
	tcase_add_loop_test(tc, boot, 0, COUNT(boots));
	tc = harness_case(s, "machine", 60);
	tcase_add_test(tc, machine);
	tc = harness_case(s, "memory", 60);
	tcase_add_test(tc, small);
	tcase_add_test(tc, beyond_4g);
	tcase_add_test(tc, large_initrd);
	tcase_add_test(tc, too_large_initrd);
	tc = harness_case(s, "reset", 100);
	tcase_add_loop_test(tc, reset, 0, COUNT(resets));
	tcase_add_test(tc, no_reboot);
	return harness_main(s);
}
