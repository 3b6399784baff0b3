/* SPDX-License-Identifier: MIT */
/* Bare guests that boot, compute, tell the time, take input, reset and end. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../bare/contract.h"
#include "harness.h"
#include "payload-contract.h"

/* The legacy hole below 1 MiB, which is not RAM to the guest. */
#define LOW_HOLE (384ul << 10)

#define BOOT_MS 15000
#define END_MS 10000

/* ---- hello: what the guest is told about its machine ---- */

static const char *hello_line(struct guest *g)
{
	return guest_expect(g, "^hello cmdline=", BOOT_MS);
}

/* The command line stands between `cmdline="` and the last `" ram=`, whatever is in it. */
static void need_cmdline(const char *line, const char *want)
{
	const char *from = strchr(line, '"') + 1;
	const char *end = NULL;

	for (const char *p = from; (p = strstr(p, "\" ram=")); p++)
		end = p;
	need(end && (size_t)(end - from) == strlen(want) && !strncmp(from, want, strlen(want)),
	     "sent '%s', the guest says: %s", want, line);
}

START_TEST(cmdline)
{
	static const char *const texts[] = {
		"",
		"one",
		"console=ttyS0 quiet  two spaces",
		"a=\"quoted words\" 'b' \\ $HOME `c` %s %n ; & | < >",
	};
	struct guest g;

	guest_start(&g, "vm", "-m", "64M", "-k", bare_elf("hello"), "-p", texts[_i], NULL);
	need_cmdline(hello_line(&g), texts[_i]);
	guest_expect(&g, "^hello done$", END_MS);
	guest_ended(&g, 0, END_MS);
}
END_TEST

START_TEST(cmdline_long)
{
	char text[2001];
	struct guest g;

	for (size_t i = 0; i < sizeof(text) - 1; i++)
		text[i] = (char)(i % 64 == 63 ? ' ' : 'a' + (int)(i % 26));
	text[sizeof(text) - 1] = '\0';
	guest_start(&g, "vm", "-m", "64M", "-k", bare_elf("hello"), "-p", text, NULL);
	need_cmdline(hello_line(&g), text);
	guest_ended(&g, 0, END_MS);
}
END_TEST

START_TEST(cmdline_appended)
{
	struct guest g;

	guest_start(&g, "vm", "-m", "64M", "-p", "a=1", "-k", bare_elf("hello"), "-p", "b=2", NULL);
	need_cmdline(hello_line(&g), "a=1 b=2");
	guest_ended(&g, 0, END_MS);
}
END_TEST

static const struct {
	const char *option;
	uint64_t bytes;
} sizes[] = {
	{"16M", 16ul << 20}, {"64M", 64ul << 20}, {"3G", 3ul << 30},
	{"4G", 4ul << 30},   {"5G", 5ul << 30},	  {"64G", 64ul << 30}, /* more than most hosts */
};

START_TEST(ram_size)
{
	struct guest g;

	guest_start(&g, "vm", "-m", sizes[_i].option, "-k", bare_elf("hello"), NULL);
	ck_assert_uint_eq(kv(hello_line(&g), "ram"), sizes[_i].bytes - LOW_HOLE);
	guest_ended(&g, 0, END_MS);
}
END_TEST

/* Memory on both sides of the hole below 4 GiB is there, and no two addresses share any. */
START_TEST(ram_touch)
{
	static const char *const ram[] = {"512M", "3G", "5G", "48G"};
	static const uint64_t high[] = {0, 0, 1024 / 32, 44 * 1024 / 32};
	uint64_t words;
	struct guest g;
	const char *line;

	guest_start(&g, "vm", "-m", ram[_i], "-k", bare_elf("touch"), "-p", "stride=32M", NULL);
	line = guest_expect(&g, "^touch ready ", BOOT_MS);
	words = kv(line, "words");
	need(kv(line, "high") >= high[_i], "above 4 GiB: %s", line);
	guest_send(&g, "v");
	line = guest_expect(&g, "^touch verify ", BOOT_MS);
	ck_assert_uint_eq(kv(line, "errors"), 0);
	ck_assert_uint_eq(kv(line, "words"), words);
	guest_send(&g, "q");
	guest_expect(&g, "^touch done .* errors=0$", BOOT_MS);
	guest_ended(&g, 0, END_MS);
}
END_TEST

/* ---- vCPUs, timers, registers ---- */

START_TEST(cpus_described)
{
	static const char *const cpus[] = {"1", "2", "3", "64"};
	struct guest g;

	guest_start(&g, "vm", "-m", "64M", "-c", cpus[_i], "-k", bare_elf("hello"), NULL);
	ck_assert_uint_eq(kv(hello_line(&g), "cpus"), strtoul(cpus[_i], NULL, 10));
	guest_ended(&g, 0, END_MS);
}
END_TEST

START_TEST(smp)
{
	static const char *const cpus[] = {"1", "2", "4"};
	const char *line;
	struct guest g;

	guest_start(&g, "vm", "-m", "64M", "-c", cpus[_i], "-k", bare_elf("smp"), NULL);
	proc_fatal(g.proc, BARE_SMP_ERROR "| panic ");
	line = guest_expect(&g, "^smp cpus=", BOOT_MS);
	ck_assert_uint_eq(kv(line, "cpus"), strtoul(cpus[_i], NULL, 10));
	for (int i = 0; i < 2; i++) {
		line = guest_expect(&g, "^smp tick=", BOOT_MS);
		need(kv(line, "min") > 0, "a CPU did nothing: %s", line);
	}
	guest_send(&g, "q");
	line = guest_expect(&g, "^smp done ", BOOT_MS);
	ck_assert_uint_eq(kv(line, "errors"), 0);
	need(kv(line, "ipis") > 0, "no interrupt from CPU to CPU: %s", line);
	guest_ended(&g, 0, END_MS);
}
END_TEST

static const struct {
	const char *args, *src, *pit;
} timers[] = {
	{"lapic=deadline pit=off", "deadline", "none"},
	{"lapic=periodic pit=off", "periodic", "none"},
	{"lapic=off pit=ioapic", "none", "ioapic"},
	{"lapic=off pit=pic", "none", "pic"},
	{"lapic=deadline pit=ioapic hz=50", "deadline", "ioapic"},
};

START_TEST(timer)
{
	uint64_t ticks;
	const char *line;
	struct guest g;

	guest_start(&g, "vm", "-m", "64M", "-k", bare_elf("timer"), "-p", timers[_i].args, NULL);
	proc_fatal(g.proc, BARE_TIMER_ERROR "| panic ");
	line = guest_expect(&g, "^timer (ready|skip) ", BOOT_MS);
	if (strstr(line, " skip "))
		harness_skip("%s: %s", timers[_i].args, kv_text(line, "why"));
	ck_assert_str_eq(kv_text(line, "src"), timers[_i].src);
	ck_assert_str_eq(kv_text(line, "pit"), timers[_i].pit);
	ticks = kv(guest_expect(&g, "^timer ticks=", BOOT_MS), "ticks");
	line = guest_expect(&g, "^timer ticks=", BOOT_MS);
	need(kv(line, "ticks") > ticks, "stopped ticking: %s", line);
	guest_send(&g, "q");
	guest_expect(&g, "^timer done .* lost=0 ", BOOT_MS);
	guest_ended(&g, 0, END_MS);
}
END_TEST

#define PIT_HZ 100
#define PIT_MS 1000 /* enough ticks to tell its rate from another */

static const char *ask_timer(struct guest *g)
{
	guest_send(g, "r");
	return guest_expect(g, "^timer ticks=", BOOT_MS);
}

/*
 * The PIT by way of the I/O APIC, and nothing else that would interrupt: after each move it still
 * ticks, and as fast as it was programmed to. One that has forgotten its divisor ticks 18 times a
 * second. No tick may be one too many either; what is due from a pause comes after it.
 */
START_TEST(timer_moves)
{
	uint64_t ticks, first_ticks, first_ms;
	const char *line;
	struct guest g;

	guest_start(&g, "vm", "-m", "64M", "-k", bare_elf("timer"), "-p",
		    harness_path("lapic=off pit=ioapic hz=%d report=0", PIT_HZ), NULL);
	proc_fatal(g.proc, BARE_TIMER_ERROR "| panic ");
	line = guest_expect(&g, "^timer (ready|skip) ", BOOT_MS);
	if (strstr(line, " skip "))
		harness_skip("%s", kv_text(line, "why"));
	ck_assert_str_eq(kv_text(line, "src"), "none");
	ck_assert_str_eq(kv_text(line, "pit"), "ioapic");
	line = ask_timer(&g);
	first_ticks = kv(line, "pit");
	first_ms = kv(line, "t_ms");
	for (unsigned n = 0; n < 4; n++) {
		uint64_t here_ticks, here_ms, ms;

		guest_move(&g, NULL, n % 2 ? "tcp:127.0.0.1:0" : "unix:", "--verify=full", NULL);
		line = ask_timer(&g);
		here_ticks = kv(line, "pit");
		here_ms = kv(line, "t_ms");
		do {
			line = ask_timer(&g);
			ms = kv(line, "t_ms");
		} while (ms < here_ms + PIT_MS);
		ticks = kv(line, "pit");
		need((ticks - here_ticks) * 1000 * 2 >= (ms - here_ms) * PIT_HZ,
		     "move %u: only %lu ticks in %lu ms", n + 1, ticks - here_ticks, ms - here_ms);
		need((ticks - first_ticks) * 1000 * 4 <= (ms - first_ms) * PIT_HZ * 5,
		     "move %u: %lu ticks in %lu ms are too many", n + 1, ticks - first_ticks,
		     ms - first_ms);
	}
	guest_send(&g, "q");
	guest_expect(&g, "^timer done .* lost=0 ", BOOT_MS);
	guest_ended(&g, 0, END_MS);
}
END_TEST

START_TEST(fpu)
{
	const char *line;
	struct guest g;

	guest_start(&g, "vm", "-m", "64M", "-k", bare_elf("fpu"), NULL);
	line = guest_expect(&g, "^fpu ready |^fpu skip ", BOOT_MS);
	if (strstr(line, " skip "))
		harness_skip("%s", kv_text(line, "why"));
	line = guest_expect(&g, "^fpu checks=", BOOT_MS);
	need(kv(line, "checks") > 0 && kv(line, "errors") == 0, "%s", line);
	guest_send(&g, "q");
	guest_expect(&g, "^fpu done .* errors=0$", BOOT_MS);
	guest_ended(&g, 0, END_MS);
}
END_TEST

/* ---- reset and power-off ---- */

static const struct {
	const char *byte, *what;
} resets[] = {{"t", "triple fault"}, {"k", "keyboard controller"}, {"c", "port 0xcf9"}};

START_TEST(reset_boots_again)
{
	struct guest g;

	guest_start(&g, "vm", "-m", "64M", "-k", bare_elf("reset"), NULL);
	for (int i = 0; i < 3; i++) {
		guest_expect(&g, "^reset ready$", BOOT_MS);
		guest_send(&g, resets[_i].byte);
	}
	guest_expect(&g, "^reset ready$", BOOT_MS);
	guest_send(&g, "q");
	guest_ended(&g, 0, END_MS);
}
END_TEST

START_TEST(reset_ends)
{
	struct guest g;

	guest_start(&g, "vm", "-m", "64M", "-c", "2", "--no-reboot", "-k", bare_elf("reset"), NULL);
	guest_expect(&g, "^reset ready$", BOOT_MS);
	guest_send(&g, resets[_i].byte);
	guest_ended(&g, 0, END_MS);
	need(strstr(g.proc->err.buf, "--no-reboot"), "%s: does not say why it ended: '%s'",
	     resets[_i].what, g.proc->err.buf);
	need(!guest_next(&g, 0), "it booted again");
}
END_TEST

/* ---- input ---- */

/* Every byte but `q`, more than any buffer on the way holds, comes back as it went. */
START_TEST(input)
{
	static unsigned char bytes[8192];
	size_t len = 0, at;
	struct guest g;

	for (unsigned c = 0; len < sizeof(bytes); c = (c * 5 + 3) % 256) {
		if (c != BARE_CMD_QUIT)
			bytes[len++] = (unsigned char)c;
	}
	guest_start(&g, "vm", "-m", "64M", "-k", bare_elf("hello"), "-p", "echo=1", NULL);
	hello_line(&g);
	at = g.proc->out.taken;
	proc_send_bytes(g.proc, bytes, len);
	guest_send(&g, "q");
	guest_ended(&g, 0, 30000);
	ck_assert_uint_eq(g.proc->out.len - at, len + strlen("hello done\n"));
	ck_assert_mem_eq(g.proc->out.buf + at, bytes, len);
	ck_assert_str_eq(g.proc->out.buf + at + len, "hello done\n");
}
END_TEST

/* Input that is there before the guest looks is not lost. */
START_TEST(input_early)
{
	struct guest g;

	guest_start(&g, "vm", "-m", "64M", "-k", bare_elf("hello"), "-p", "echo=1", NULL);
	guest_send(&g, "early\nq");
	proc_close(g.proc);
	hello_line(&g);
	guest_expect(&g, "^early$", END_MS);
	guest_expect(&g, "^hello done$", END_MS);
	guest_ended(&g, 0, END_MS);
}
END_TEST

/* The end of input is not the end of the guest. */
START_TEST(input_ends)
{
	struct guest g;

	guest_start(&g, "vm", "-m", "64M", "-k", bare_elf("serial"), "-p", "report=20", NULL);
	guest_expect(&g, "^serial n=1 ", BOOT_MS);
	guest_send(&g, "x");
	proc_close(g.proc);
	guest_expect(&g, "^serial got=120 count=1$", END_MS);
	for (int i = 0; i < 20; i++)
		guest_expect(&g, "^serial n=", END_MS);
	ck_assert_str_eq(json_text(guest_status(&g), "state"), "running");
	godwit_run(0, "stop", "--force", g.name, NULL);
	guest_ended(&g, 0, END_MS);
}
END_TEST

/* ---- the guest's process ---- */

START_TEST(pause_resume)
{
	uint64_t n, check;
	struct guest g;
	const char *line;

	guest_start(&g, "vm", "-m", "64M", "-c", "2", "-k", bare_elf("serial"), NULL);
	guest_expect(&g, "^serial n=10 ", BOOT_MS);
	godwit_run(0, "pause", g.name, NULL);
	ck_assert_str_eq(json_text(guest_status(&g), "state"), "paused");
	/* What was on its way has come by now or comes yet; after that there is silence. */
	proc_try(g.proc, "^never$", 200);
	n = g.proc->out.len;
	proc_try(g.proc, "^never$", 300);
	ck_assert_uint_eq(g.proc->out.len, n);
	godwit_run(0, "resume", g.name, NULL);
	ck_assert_str_eq(json_text(guest_status(&g), "state"), "running");
	line = guest_expect(&g, "^serial n=", END_MS);
	n = kv(line, "n");
	for (int i = 0; i < 20; i++) {
		ck_assert_ptr_nonnull(line = guest_next(&g, END_MS));
		check = SERIAL_CHECK(++n);
		ck_assert_str_eq(line, harness_path(SERIAL_FMT, n, check));
	}
	guest_send(&g, "q");
	guest_ended(&g, 0, END_MS);
}
END_TEST

START_TEST(starts_paused)
{
	struct guest g;

	guest_start(&g, "vm", "-m", "64M", "--paused", "-k", bare_elf("hello"), NULL);
	need(!proc_try(g.proc, "^hello ", 500), "it ran");
	ck_assert_str_eq(json_text(guest_status(&g), "state"), "paused");
	godwit_run(0, "resume", g.name, NULL);
	hello_line(&g);
	guest_ended(&g, 0, END_MS);
}
END_TEST

START_TEST(names)
{
	struct guest a, b;
	struct proc *p;

	guest_start(&a, "one", "-m", "64M", "-k", bare_elf("dirty"), "-p", "ws=1M", NULL);
	guest_expect(&a, "^dirty ready ", BOOT_MS);
	/* Taken: refused with a reason that names it. */
	p = godwit_run(1, "run", "-n", "one", "-m", "64M", "-k", bare_elf("hello"), NULL);
	need(strstr(p->err.buf, "one"), "'%s'", p->err.buf);
	guest_start(&b, "two", "-m", "32M", "-c", "2", "-k", bare_elf("dirty"), "-p", "ws=1M",
		    NULL);
	guest_expect(&b, "^dirty ready ", BOOT_MS);
	p = godwit_run(0, "list", NULL);
	proc_expect(p, "^one +running ", 0);
	proc_expect(p, "^two +running ", 0);
	/* A dead owner's name is free again, and is not listed. */
	proc_kill(a.proc, SIGKILL);
	guest_ended(&a, 128 + SIGKILL, END_MS);
	need(!strstr(godwit_run(0, "list", NULL)->out.buf, "one"), "a dead guest is listed");
	guest_start(&a, "one", "-m", "64M", "-k", bare_elf("hello"), NULL);
	guest_ended(&a, 0, BOOT_MS);
	proc_kill(b.proc, SIGTERM);
	guest_ended(&b, 128 + SIGTERM, END_MS);
	need(!strstr(godwit_run(0, "list", NULL)->out.buf, "two"), "an ended guest is listed");
}
END_TEST

START_TEST(stop)
{
	struct guest g;

	guest_start(&g, "vm", "-m", "64M", "-k", bare_elf("dirty"), "-p", "ws=1M", NULL);
	guest_expect(&g, "^dirty ready ", BOOT_MS);
	/* It has nobody to press the power button for. */
	godwit_run(1, "stop", "--timeout", "200ms", g.name, NULL);
	guest_send(&g, "r");
	guest_expect(&g, "^dirty t_ms=", END_MS);
	godwit_run(0, "stop", "--force", g.name, NULL);
	guest_ended(&g, 0, END_MS);
}
END_TEST

START_TEST(wrong_usage)
{
	struct proc *p = godwit_run(2, "run", NULL);

	need(p->err.len > 0 && p->out.len == 0, "'%s'", p->out.buf);
	godwit_run(2, "run", "-k", bare_elf("hello"), "--no-such-option", NULL);
	godwit_run(2, "run", "-k", bare_elf("hello"), "-m", "64X", NULL);
	godwit_run(2, "nonsense", NULL);
	p = godwit_run(1, "run", "-k", "/no/such/kernel", NULL);
	need(strstr(p->err.buf, "/no/such/kernel"), "'%s'", p->err.buf);
	godwit_run(1, "status", "nobody", NULL);
}
END_TEST

/* ---- the same ELF in another hypervisor ---- */

static const char *qemu_machine(void)
{
	return access("/dev/kvm", R_OK | W_OK) ? "microvm,accel=tcg" : "microvm,accel=kvm:tcg";
}

START_TEST(same_in_qemu)
{
	static const char text[] = "same text=\"for both\" x";
	const char *ours, *theirs;
	struct proc *qemu;
	struct guest g;

	if (system("command -v qemu-system-x86_64 >/dev/null"))
		harness_skip("qemu-system-x86_64 is not installed");
	guest_start(&g, "vm", "-m", "64M", "-c", "2", "-k", bare_elf("hello"), "-p", text, NULL);
	ours = hello_line(&g);
	guest_expect(&g, "^hello done$", END_MS);
	guest_ended(&g, 0, END_MS);

	/* QEMU drops unknown features by itself, but not this one where KVM cannot have it. */
	qemu = proc_start("qemu", "qemu-system-x86_64", "-machine", qemu_machine(), "-cpu",
			  access("/dev/kvm", R_OK | W_OK) ? "max" : "max,-arch-capabilities", "-m",
			  "64", "-smp", "2", "-display", "none", "-nodefaults", "-no-user-config",
			  "-serial", "stdio", "-no-reboot", "-kernel", bare_elf("hello"), "-append",
			  text, NULL);
	proc_close(qemu);
	theirs = proc_expect(qemu, "^hello cmdline=", 2 * BOOT_MS);
	proc_expect(qemu, "^hello done$", END_MS);
	proc_ended(qemu, 0, END_MS);

	need_cmdline(ours, text);
	need_cmdline(theirs, text);
	ck_assert_uint_eq(kv(ours, "cpus"), kv(theirs, "cpus"));
	/* Firmware of theirs keeps some pages of low memory. */
	need(kv(theirs, "ram") <= kv(ours, "ram") &&
		     kv(ours, "ram") - kv(theirs, "ram") <= 1ul << 20,
	     "ours: %s; theirs: %s", ours, theirs);
}
END_TEST

#define COUNT(a) ((int)(sizeof(a) / sizeof((a)[0])))

int main(void)
{
	Suite *s = suite_create("bare");
	TCase *tc;

	if (!harness_kvm_works())
		return harness_skip_all("no KVM guest runs on this host (godwit doctor says why)");

	tc = harness_case(s, "hello", 40);
	tcase_add_loop_test(tc, cmdline, 0, 4);
	tcase_add_test(tc, cmdline_long);
	tcase_add_test(tc, cmdline_appended);
	tc = harness_case(s, "ram", 60);
	tcase_add_loop_test(tc, ram_size, 0, COUNT(sizes));
	tcase_add_loop_test(tc, ram_touch, 0, 4);
	tc = harness_case(s, "cpus", 60);
	tcase_add_loop_test(tc, cpus_described, 0, 4);
	tcase_add_loop_test(tc, smp, 0, 3);
	tcase_add_loop_test(tc, timer, 0, COUNT(timers));
	tcase_add_test(tc, timer_moves);
	tcase_add_test(tc, fpu);
	tc = harness_case(s, "reset", 60);
	tcase_add_loop_test(tc, reset_boots_again, 0, COUNT(resets));
	tcase_add_loop_test(tc, reset_ends, 0, COUNT(resets));
	tc = harness_case(s, "input", 60);
	tcase_add_test(tc, input);
	tcase_add_test(tc, input_early);
	tcase_add_test(tc, input_ends);
	tc = harness_case(s, "process", 60);
	tcase_add_test(tc, pause_resume);
	tcase_add_test(tc, starts_paused);
	tcase_add_test(tc, names);
	tcase_add_test(tc, stop);
	tcase_add_test(tc, wrong_usage);
	tc = harness_case(s, "qemu", 60);
	tcase_add_test(tc, same_in_qemu);
	return harness_main(s);
}
