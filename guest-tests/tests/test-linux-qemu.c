/* SPDX-License-Identifier: MIT */
/*
 * A PVH image that nobody here wrote, side by side: Debian's vmlinux, booted by its PVH note in
 * godwit and in QEMU's microvm, with the same command line and the same initramfs.
 *
 * What must be equal, word for word:
 *
 *	the kernel's log	"Linux version", "Kernel command line", "Unknown kernel command line
 *				parameters"; their time stamps aside
 *	the ready line		version, kernel, cpus, mode, procs, workers, rate, seed
 *	the info lines		version, cmdline, loader, online
 *	the done line		errors, back, status
 *
 * All else may depend on the machine: its clocks, its devices, how much RAM its firmware keeps.
 */
#include <stdlib.h>

#include "test-linux.h"

/* Loud enough for notices, patient where CPUs are slow, and with words that are nobody's. */
#define CMDLINE                                                                                    \
	"console=ttyS0 loglevel=6 watchdog_thresh=30 rcupdate.rcu_cpu_stall_timeout=100 "          \
	"gt.mode=info gt.seed=7 gt.mem=1M gt.clock=0 side=\"by  side\" same.for=both -- one two"

#define RAM_MIB "192"
#define LOADER_PVH "176" /* 0xb0: by PVH, and not under Xen */

static const char *const notices[] = {
	"Linux version ",
	"Kernel command line: ",
	"Unknown kernel command line parameters ",
};

static const char *const ready_keys[] = {
	"version", "kernel", "cpus", "mode", "procs", "workers", "rate", "seed",
};
static const char *const info_keys[] = {"version", "cmdline", "loader", "online"};
static const char *const done_keys[] = {"errors", "back", "status"};

struct seen {
	const char *notices[COUNT(notices)];
	const char *ready, *info, *done;
};

/* What comes before the first line of init: the kernel's log. */
static void see_log(struct seen *s, const char *text)
{
	const char *body = text[0] == '[' ? strstr(text, "] ") : NULL;

	for (int i = 0; body && i < COUNT(notices); i++) {
		if (!strncmp(body + 2, notices[i], strlen(notices[i])))
			s->notices[i] = body + 2;
	}
}

/* All that it prints, up to the end of its process. */
static void see(struct lx *x, struct seen *s)
{
	const char *text, *body;

	*s = (struct seen){.info = ""};
	while ((text = proc_next(x->g.proc, LX_BOOT_MS))) {
		body = lx_take(x, text);
		if (!body)
			see_log(s, text);
		else if (!strcmp(x->word, "ready"))
			s->ready = body;
		else if (!strcmp(x->word, "info"))
			s->info = harness_path("%s%s\n", s->info, body);
		else if (!strcmp(x->word, "done"))
			s->done = body;
	}
	need(s->ready && s->done, "%s: it did not come to its end", x->g.proc->label);
	for (int i = 0; i < COUNT(notices); i++)
		need(s->notices[i], "%s: no '%s' in the kernel's log", x->g.proc->label,
		     notices[i]);
	proc_ended(x->g.proc, 0, LX_END_MS);
}

static void same_fields(const char *const *keys, int n, const char *ours, const char *theirs)
{
	for (int i = 0; i < n; i++) {
		const char *a = kv_text(ours, keys[i]), *b = kv_text(theirs, keys[i]);

		need(!strcmp(a, b), "%s= is %s in godwit and %s in QEMU", keys[i], a, b);
	}
}

static void compare(const struct seen *ours, const struct seen *theirs)
{
	for (int i = 0; i < COUNT(notices); i++)
		need(!strcmp(ours->notices[i], theirs->notices[i]), "godwit: '%s', QEMU: '%s'",
		     ours->notices[i], theirs->notices[i]);
	same_fields(ready_keys, COUNT(ready_keys), ours->ready, theirs->ready);
	for (int i = 0; i < COUNT(info_keys); i++) {
		const char *a = lx_fact(ours->info, info_keys[i]);
		const char *b = lx_fact(theirs->info, info_keys[i]);

		need(!strcmp(a, b), "%s is '%s' in godwit and '%s' in QEMU", info_keys[i], a, b);
	}
	same_fields(done_keys, COUNT(done_keys), ours->done, theirs->done);
}

static const struct {
	const char *kernel, *cpus;
} images[] = {
	{"6.1/vmlinux", "1"},
	{"6.12/vmlinux", "2"},
};

START_TEST(vmlinux)
{
	const char *kernel = lx_kernel(images[_i].kernel), *cpus = images[_i].cpus;
	struct lx godwit = {.notes = 0}, qemu = {.notes = 0};
	struct seen ours, theirs;

	guest_start(&godwit.g, "vm", "-m", RAM_MIB "M", "-c", cpus, "-k", kernel, "-i", lx_initrd(),
		    "-p", CMDLINE, NULL);
	see(&godwit, &ours);
	/* Of itself its microvm would add what devices it has to the command line. */
	qemu.g.proc = proc_start("qemu", "qemu-system-x86_64", "-machine",
				 "microvm,accel=kvm,auto-kernel-cmdline=off", "-cpu",
				 "max,-arch-capabilities", "-m", RAM_MIB, "-smp", cpus, "-display",
				 "none", "-nodefaults", "-no-user-config", "-serial", "stdio",
				 "-no-reboot", "-kernel", kernel, "-initrd", lx_initrd(), "-append",
				 CMDLINE, NULL);
	see(&qemu, &theirs);

	compare(&ours, &theirs);
	ck_assert_str_eq(lx_fact(ours.info, "cmdline"), CMDLINE);
	ck_assert_str_eq(lx_fact(ours.info, "loader"), LOADER_PVH);
	ck_assert_str_eq(kv_text(ours.ready, "cpus"), cpus);
	ck_assert_str_eq(kv_text(ours.done, "status"), "pass");
	harness_say("%s, %s CPU(s): ready after %llu ms in godwit, %llu ms in QEMU",
		    images[_i].kernel, cpus, (unsigned long long)kv(ours.ready, "t_ms"),
		    (unsigned long long)kv(theirs.ready, "t_ms"));
}
END_TEST

int main(void)
{
	Suite *s = suite_create("linux-qemu");

	if (!harness_linux_works())
		return harness_skip_all(
			"no Linux guest runs on this host (godwit doctor says why)");
	if (system("command -v qemu-system-x86_64 >/dev/null"))
		return harness_skip_all("qemu-system-x86_64 is not installed");
	tcase_add_loop_test(harness_case(s, "vmlinux", 90), vmlinux, 0, COUNT(images));
	return harness_main(s);
}
