/* SPDX-License-Identifier: MIT */
/* A person at the console, and the commands that end a guest: terminal, input, power button. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>

#include "test-linux.h"

#define QUIET_GUEST "quiet gt.mode=idle gt.mem=1M gt.clock=0 gt.report=0"

/* ---- pipes ---- */

START_TEST(input)
{
	struct lx x = {.notes = 0};
	const char *line;

	guest_start(&x.g, "vm", "-m", "128M", "-k", lx_kernel("6.1/vmlinuz"), "-i", lx_initrd(),
		    "-p", QUIET_GUEST, NULL);
	lx_ready(&x, 1);
	line = lx_ask(&x, "echo some words,  two blanks", "echo");
	ck_assert_str_eq(line, "echo some words,  two blanks");
	/* More than any buffer on the way holds, at once. */
	for (int i = 0; i < 200; i++)
		guest_send(&x.g, harness_path("echo %d abcdefghijklmnopqrstuvwxyz\n", i));
	for (int i = 0; i < 200; i++) {
		line = lx_expect(&x, "echo", LX_ANSWER_MS);
		ck_assert_str_eq(line, harness_path("echo %d abcdefghijklmnopqrstuvwxyz", i));
	}
	/* Without a terminal this is a character like others. */
	guest_send(&x.g, "echo \x01x still here\n");
	ck_assert_str_eq(lx_expect(&x, "echo", LX_ANSWER_MS), "echo .x still here");
	guest_send(&x.g, "q\n");
	lx_done(&x);
}
END_TEST

START_TEST(end_of_input)
{
	struct lx x = {.notes = 0};

	guest_start(&x.g, "vm", "-m", "128M", "-k", lx_kernel("6.1/vmlinuz"), "-i", lx_initrd(),
		    "-p", "quiet gt.mode=idle gt.mem=1M gt.report=200", NULL);
	lx_ready(&x, 1);
	guest_send(&x.g, "echo last\n");
	proc_close(x.g.proc);
	lx_expect(&x, "echo", LX_ANSWER_MS);
	for (int i = 0; i < 5; i++)
		lx_expect(&x, "", LX_ANSWER_MS);
	/* Nor does a move need any. */
	guest_move(&x.g, NULL, "unix:", NULL);
	lx_ask(&x, "r", "");
	godwit_run(0, "stop", "--force", x.g.name, NULL);
	guest_ended(&x.g, 0, LX_END_MS);
}
END_TEST

/* ---- terminals ---- */

struct terminal {
	int master, slave;
	struct termios before;
	pid_t pid;
	int status; /* as of waitpid(), once it has ended */
	char text[65536];
	size_t len, taken;
};

static bool has_left(void *arg)
{
	struct terminal *t = arg;

	return waitpid(t->pid, &t->status, WNOHANG) == t->pid;
}

static void on_master(void *arg, int fd, short revents)
{
	struct terminal *t = arg;
	ssize_t n;

	(void)revents;
	need(t->len < sizeof(t->text) - 1, "much too much came out of the terminal");
	n = read(fd, t->text + t->len, sizeof(t->text) - 1 - t->len);
	if (n > 0)
		t->len += (size_t)n;
	t->text[t->len] = '\0';
}

/* godwit as the foreground process of a terminal of its own, which stays open here. */
static void terminal_run(struct terminal *t, const char *const *argv)
{
	memset(t, 0, sizeof(*t));
	need(openpty(&t->master, &t->slave, NULL, NULL, NULL) == 0, "openpty: %s", strerror(errno));
	fcntl(t->master, F_SETFD, FD_CLOEXEC);
	fcntl(t->master, F_SETFL, O_NONBLOCK);
	need(tcgetattr(t->slave, &t->before) == 0, "tcgetattr: %s", strerror(errno));
	fflush(NULL);
	t->pid = fork();
	need(t->pid >= 0, "fork: %s", strerror(errno));
	if (t->pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		setsid();
		if (ioctl(t->slave, TIOCSCTTY, 0) || dup2(t->slave, 0) < 0 ||
		    dup2(t->slave, 1) < 0 || dup2(t->slave, 2) < 0)
			_exit(126);
		close_range(3, ~0U, 0);
		execv(argv[0], (char *const *)argv);
		_exit(127);
	}
	harness_watch(t->master, POLLIN, on_master, t);
}

static void terminal_type(struct terminal *t, const char *keys)
{
	ssize_t len = (ssize_t)strlen(keys);

	need(write(t->master, keys, (size_t)len) == len, "the terminal takes no input");
}

struct sight {
	struct terminal *t;
	const char *text;
};

static bool is_seen(void *arg)
{
	struct sight *s = arg;
	char *found = strstr(s->t->text + s->t->taken, s->text);

	if (found)
		s->t->taken = (size_t)(found - s->t->text) + strlen(s->text);
	return found;
}

static void terminal_expect(struct terminal *t, const char *text, int timeout_ms)
{
	struct sight s = {t, text};

	need(harness_until(is_seen, &s, timeout_ms), "the terminal shows no '%s', but: %s", text,
	     t->text + t->taken);
}

static void terminal_left(struct terminal *t, int status)
{
	struct termios now;

	need(harness_until(has_left, t, LX_END_MS), "godwit is still there: %s", t->text);
	need(t->status == status, "godwit ended with wait status %#x: %s", (unsigned)t->status,
	     t->text);
	need(tcgetattr(t->slave, &now) == 0, "tcgetattr: %s", strerror(errno));
	need(now.c_iflag == t->before.c_iflag && now.c_oflag == t->before.c_oflag &&
		     now.c_cflag == t->before.c_cflag && now.c_lflag == t->before.c_lflag &&
		     memcmp(now.c_cc, t->before.c_cc, sizeof(now.c_cc)) == 0,
	     "the terminal is not as it was: lflag %#x, was %#x", now.c_lflag, t->before.c_lflag);
}

/* Boots a guest on t, and checks that the terminal passes every key on. */
static void terminal_boot(struct terminal *t)
{
	struct termios now;
	const char *const argv[] = {
		harness_godwit(),	  "run", "-n",	      "vm", "-m",	 "128M", "-k",
		lx_kernel("6.1/vmlinuz"), "-i",	 lx_initrd(), "-p", QUIET_GUEST, NULL,
	};

	terminal_run(t, argv);
	terminal_expect(t, " ready ", LX_BOOT_MS);
	terminal_expect(t, "\n", LX_ANSWER_MS);
	need(tcgetattr(t->slave, &now) == 0, "tcgetattr: %s", strerror(errno));
	need(!(now.c_lflag & (ICANON | ECHO | ISIG | IEXTEN)), "lflag is %#x", now.c_lflag);
	need(!(now.c_iflag & (ICRNL | IXON | ISTRIP)), "iflag is %#x", now.c_iflag);
	need(!(now.c_oflag & OPOST), "oflag is %#x", now.c_oflag);
}

START_TEST(escape_key)
{
	static struct terminal t;

	terminal_boot(&t);
	terminal_type(&t, "echo typed\r");
	terminal_expect(&t, " echo typed sum=", LX_ANSWER_MS);
	/* What would interrupt, stop or end a program at a terminal: all of it is the guest's. */
	terminal_type(&t, "echo \x03\x1a\x04\x1c|\r");
	terminal_expect(&t, " echo ....| sum=", LX_ANSWER_MS);
	terminal_type(&t, "echo \x01"
			  "a|\r");
	terminal_expect(&t, " echo .| sum=", LX_ANSWER_MS);
	terminal_type(&t, "\x01h");
	terminal_expect(&t, "Ctrl-A x", LX_ANSWER_MS);
	terminal_type(&t, "echo on\r");
	terminal_expect(&t, " echo on sum=", LX_ANSWER_MS);
	terminal_type(&t, "\x01x");
	terminal_left(&t, 0);
}
END_TEST

/* The terminal is given back as well when the guest ends by itself, or godwit by a signal. */
START_TEST(terminal_after_end)
{
	static struct terminal t;

	terminal_boot(&t);
	if (_i == 0)
		terminal_type(&t, "q\r");
	else
		kill(t.pid, SIGTERM);
	terminal_left(&t, _i == 0 ? 0 : (128 + SIGTERM) << 8);
}
END_TEST

/* ---- ends from outside ---- */

START_TEST(forced)
{
	struct lx x = {.notes = 0};
	struct proc *p;

	guest_start(&x.g, "vm", "-m", "128M", "-c", "2", "-k", lx_kernel("6.1/vmlinuz"), "-i",
		    lx_initrd(), "-p", "quiet gt.mode=idle gt.mem=1M", NULL);
	lx_ready(&x, 2);
	/* This guest has nobody who hears the power button: that is said, and it runs on. */
	p = godwit_run(1, "stop", "--timeout", "500ms", x.g.name, NULL);
	need(strstr(p->err.buf, x.g.name), "it says: %s", p->err.buf);
	lx_ask(&x, "echo still here", "echo");
	godwit_run(0, "stop", "--force", x.g.name, NULL);
	guest_ended(&x.g, 0, LX_END_MS);
	godwit_run(1, "status", x.g.name, NULL);
}
END_TEST

/*
 * An initramfs whose init loads the drivers of the power button and of input events, waits for one
 * event and powers off.
 */
static const char *button_initrd(void)
{
	static const char script[] =
		"#!/bin/sh\n"
		"/bin/busybox mount -t proc proc /proc\n"
		"mount -t devtmpfs dev /dev\n"
		"for module in $(cat /modules/order); do insmod /modules/$module; done\n"
		"echo init waits\n"
		"head -c 1 /dev/input/event0 >/dev/null\n"
		"echo init heard the button\n"
		"poweroff -f\n";
	const char *init = harness_path("%s/init", harness_tmp());
	const char *modules = harness_path("%s/modules", harness_tmp());
	const char *out = harness_path("%s/button.cpio", harness_tmp());
	struct proc *p;
	FILE *f;

	p = proc_start("guest-kernel", harness_path("%s/scripts/guest-kernel", harness_root()),
		       "6.1", "--modules", modules, "evdev", "button", NULL);
	proc_ended(p, 0, LX_BOOT_MS);
	f = fopen(harness_path("%s/order", modules), "we");
	need(f && fputs(p->out.buf, f) >= 0 && fclose(f) == 0, "%s cannot be written", modules);
	f = fopen(init, "we");
	need(f && fputs(script, f) >= 0 && fclose(f) == 0 && chmod(init, 0755) == 0,
	     "%s cannot be written", init);
	p = proc_start("initramfs", harness_path("%s/scripts/initramfs", harness_root()),
		       "--busybox", out, harness_path("%s=/init", init),
		       harness_path("%s=/modules", modules), NULL);
	proc_ended(p, 0, LX_BOOT_MS);
	return out;
}

/* Where it was booted, and where it has moved to. */
START_TEST(power_button)
{
	struct guest g;

	guest_start(&g, "vm", "-m", "128M", "-c", "2", "-k", lx_kernel("6.1/vmlinuz"), "-i",
		    button_initrd(), "-p", "quiet", NULL);
	guest_expect(&g, "^init waits", LX_BOOT_MS);
	if (_i == 1)
		guest_move(&g, NULL, "unix:", NULL);
	godwit_run(0, "stop", g.name, NULL);
	guest_expect(&g, "^init heard the button", LX_ANSWER_MS);
	guest_ended(&g, 0, LX_END_MS);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("linux-console");
	TCase *tc;

	if (!harness_linux_works())
		return harness_skip_all(
			"no Linux guest runs on this host (godwit doctor says why)");

	tc = harness_case(s, "pipe", 120);
	tcase_add_test(tc, input);
	tcase_add_test(tc, end_of_input);
	tc = harness_case(s, "terminal", 100);
	tcase_add_test(tc, escape_key);
	tcase_add_loop_test(tc, terminal_after_end, 0, 2);
	tc = harness_case(s, "stop", 100);
	tcase_add_test(tc, forced);
	tcase_add_loop_test(tc, power_button, 0, 2);
	return harness_main(s);
}
