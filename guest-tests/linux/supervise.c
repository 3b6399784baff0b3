/* SPDX-License-Identifier: MIT */
#include "supervise.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "disk.h"

#define MS 1000000u   /* in ns */
#define FLOOD_BURST 4 /* lines */
#define FLOOD_REST_MS 10

struct totals {
	uint64_t pages, errors, blocks, execs, regs, back;
	uint64_t gap_ns, gap_at_ns, late_ns, drift_ns;
	unsigned int alive;
	bool full;
};

void guest_error(struct guest *g, const char *format, ...)
{
	char text[300];
	va_list ap;

	va_start(ap, format);
	vsnprintf(text, sizeof(text), format, ap);
	va_end(ap);
	g->errors++;
	say(&g->serial, "error worker=init text=%s", text);
}

static struct totals totals_of(struct guest *g)
{
	struct totals t = {.errors = g->errors, .full = true};

	for (unsigned int i = 0; g->sh && i < g->workers; i++) {
		struct slot *s = &g->sh->slots[i];

		t.pages += get(&s->pages);
		t.errors += get(&s->errors);
		t.blocks += get(&s->blocks);
		t.execs += get(&s->execs);
		t.regs += get(&s->regs);
		t.back += get(&s->back);
		t.full = t.full && get(&s->full);
		t.alive += s->pid != 0 && !s->stalled;
		if (get(&s->gap_ns) > t.gap_ns) {
			t.gap_ns = get(&s->gap_ns);
			t.gap_at_ns = get(&s->gap_at_ns);
		}
		if (get(&s->late_ns) > t.late_ns)
			t.late_ns = get(&s->late_ns);
		if (get(&s->drift_ns) > t.drift_ns)
			t.drift_ns = get(&s->drift_ns);
	}
	return t;
}

/* A small file's text on one line. False when it cannot be read. */
static bool read_line(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, text, size - 1);

	if (fd >= 0)
		close(fd);
	if (n < 0)
		return false;
	text[n] = '\0';
	for (char *c = text; (c = strchr(c, '\n'));)
		*c = ' ';
	return true;
}

/* What the kernel tells of a worker that stands still, and what each CPU is at. */
static void say_where(struct guest *g, const struct slot *slot)
{
	static const char *const files[] = {"stat", "wchan", "syscall", "stack"};
	char path[64], text[600];

	for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
		snprintf(path, sizeof(path), "/proc/%d/%s", (int)slot->pid, files[i]);
		if (read_line(path, text, sizeof(text)))
			say(&g->serial, "where worker=%s file=%s text=%.300s", slot->name, files[i],
			    text);
	}
}

/* The kernel's backtraces of all CPUs, once: only process 1 of a machine of its own asks for them.
 */
static void say_backtraces(struct guest *g)
{
	int trigger = -1, log = -1;
	char text[2000];
	ssize_t n;

	if (g->hosted || g->traced)
		return;
	g->traced = true;
	log = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	trigger = open("/proc/sysrq-trigger", O_WRONLY | O_CLOEXEC);
	if (log >= 0 && trigger >= 0) {
		lseek(log, 0, SEEK_END);
		(void)!write(trigger, "l", 1);
		sleep(1);
		while ((n = read(log, text, sizeof(text) - 1)) > 0) {
			text[n] = '\0';
			text[strcspn(text, "\n")] = '\0';
			say(&g->serial, "kernel text=%.200s", text);
		}
	}
	if (log >= 0)
		close(log);
	if (trigger >= 0)
		close(trigger);
}

/*
 * A worker that does not move is an error, and is said once. Time is counted by looks at it, none
 * of which counts for more than a second: a machine that was paused has not stood still.
 */
static void look_for_stalls(struct guest *g)
{
	uint64_t now = now_ns(), ms = (now - g->look_ns) / MS;

	if (ms > 1000)
		ms = 1000;
	g->look_ns = now;
	for (unsigned int i = 0; i < g->workers; i++) {
		struct slot *s = &g->sh->slots[i];
		uint64_t beats = get(&s->beats);

		if (beats != s->seen_beats) {
			s->seen_beats = beats;
			s->still_ms = 0;
			s->stalled = false;
			continue;
		}
		s->still_ms += ms;
		if (s->pid && !s->stalled && s->still_ms > g->opt.stuck_ms) {
			s->stalled = true;
			say_where(g, s);
			say_backtraces(g);
			guest_error(g, "worker %s has not moved for %llu ms", s->name,
				    (unsigned long long)s->still_ms);
		}
	}
}

static void say_durable(struct guest *g)
{
	char text[300];
	size_t used = 0;

	for (unsigned int i = 0; i < g->workers; i++) {
		struct slot *s = &g->sh->slots[i];

		if (s->writes && used < sizeof(text) - 64)
			used += (size_t)snprintf(text + used, sizeof(text) - used, " %s=%llu",
						 s->name, (unsigned long long)get(&s->durable));
	}
	text[used] = '\0';
	say(&g->serial, "durable%s", text);
}

static void say_report(struct guest *g)
{
	struct totals t;

	look_for_stalls(g);
	t = totals_of(g);
	say(&g->serial,
	    "t_ms=%llu pages=%llu errors=%llu back=%llu gap_us=%llu gap_at_ms=%llu late_us=%llu "
	    "drift_us=%llu alive=%u full=%d blocks=%llu execs=%llu regs=%llu dmesg=%llu in=%llu",
	    (unsigned long long)now_ns() / MS, (unsigned long long)t.pages,
	    (unsigned long long)t.errors, (unsigned long long)t.back,
	    (unsigned long long)t.gap_ns / 1000, (unsigned long long)t.gap_at_ns / MS,
	    (unsigned long long)t.late_ns / 1000, (unsigned long long)t.drift_ns / 1000, t.alive,
	    t.full, (unsigned long long)t.blocks, (unsigned long long)t.execs,
	    (unsigned long long)t.regs, (unsigned long long)g->kernel_notes,
	    (unsigned long long)g->serial.lines_in);
	if (g->opt.mode == MODE_DISK)
		say_durable(g);
}

/* Orders and verification. */

void give_order(struct guest *g, enum order order)
{
	uint32_t now = atomic_load(&g->sh->order);

	atomic_store(&g->sh->order, (now & ~3u) + 4 + order);
	syscall(SYS_futex, &g->sh->order, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

/* Returns true if there was a message. Each was written whole, so each read yields a whole one. */
static bool take_message(struct guest *g)
{
	struct pollfd p = {.fd = g->msg_in, .events = POLLIN};
	struct msg m;

	if (poll(&p, 1, 0) <= 0 || read(g->msg_in, &m, sizeof(m)) != (ssize_t)sizeof(m))
		return false;
	m.text[sizeof(m.text) - 1] = '\0';
	if (m.worker >= g->workers) {
		guest_error(g, "a message names worker %u of %u", m.worker, g->workers);
	} else if (m.kind == MSG_VERIFIED) {
		g->verify_pages += m.value;
		if (g->verify_left)
			g->verify_left--;
	} else if (m.kind == MSG_FOUND) {
		say(&g->serial, "found worker=%s n=%llu", g->sh->slots[m.worker].name,
		    (unsigned long long)m.value);
	} else {
		say(&g->serial, "error worker=%s text=%s", g->sh->slots[m.worker].name, m.text);
	}
	return true;
}

/* Also reaps orphans, which process 1 inherits. */
static void take_deaths(struct guest *g)
{
	unsigned char drain[1024];
	int status;
	pid_t pid;

	while (read(g->child_fd, drain, sizeof(drain)) > 0)
		;
	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		for (unsigned int i = 0; i < g->workers; i++) {
			struct slot *s = &g->sh->slots[i];

			if (s->pid != pid)
				continue;
			/* Its last words first. */
			while (take_message(g))
				;
			s->pid = 0;
			g->errors++;
			if (s->answers && g->verify_left)
				g->verify_left--;
			say(&g->serial, "death worker=%s cause=%s code=%d", s->name,
			    WIFSIGNALED(status) ? "signal" : "exit",
			    WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
		}
	}
}

static void kernel_problem(void *arg, enum kmsg_class class, const char *text)
{
	struct guest *g = arg;

	if (class == KMSG_NOTE)
		g->kernel_notes++;
	else
		g->errors++;
	say(&g->serial, "dmesg class=%s text=%s", class == KMSG_NOTE ? "note" : "error", text);
}

/*
 * Wait for messages, deaths, kernel messages and, if `input`, for the serial line. Returns true
 * if there is input.
 */
static bool wait_events(struct guest *g, int timeout_ms, bool input)
{
	struct pollfd p[] = {
		{.fd = g->msg_in, .events = POLLIN},
		{.fd = g->child_fd, .events = POLLIN},
		{.fd = g->kmsg_fd, .events = POLLIN},
		{.fd = input ? g->serial.in : -1, .events = POLLIN},
	};

	if (poll(p, sizeof(p) / sizeof(p[0]), timeout_ms) <= 0)
		return false;
	while (take_message(g))
		;
	if (p[1].revents)
		take_deaths(g);
	if (p[2].revents)
		kmsg_read(g->kmsg_fd, kernel_problem, g);
	return p[3].revents != 0;
}

/* All workers stop, each verifies what it holds, and all stay stopped. */
static void verify_all(struct guest *g)
{
	uint64_t start = now_ns(), before = totals_of(g).errors;

	g->verify_pages = 0;
	g->verify_left = 0;
	for (unsigned int i = 0; i < g->workers; i++)
		g->verify_left += g->sh->slots[i].pid && g->sh->slots[i].answers;
	give_order(g, ORDER_VERIFY);
	while (g->verify_left) {
		uint64_t ms = (now_ns() - start) / MS;

		if (ms >= g->opt.verify_ms) {
			for (unsigned int i = 0; i < g->workers; i++) {
				if (g->sh->slots[i].pid)
					say_where(g, &g->sh->slots[i]);
			}
			say_backtraces(g);
			guest_error(g, "verification: %u workers did not answer in %llu ms",
				    g->verify_left, (unsigned long long)ms);
			g->verify_left = 0;
			break;
		}
		wait_events(g, 100, false);
	}
	if (g->kmsg_fd >= 0)
		kmsg_read(g->kmsg_fd, kernel_problem, g);
	say(&g->serial, "verify pages=%llu new=%llu errors=%llu ms=%llu",
	    (unsigned long long)g->verify_pages, (unsigned long long)(totals_of(g).errors - before),
	    (unsigned long long)totals_of(g).errors, (unsigned long long)(now_ns() - start) / MS);
}

/* Ends. */

static void end(struct guest *g, int how, int status)
{
	serial_drain(&g->serial);
	for (unsigned int i = 0; g->sh && i < g->workers; i++) {
		if (g->sh->slots[i].pid)
			kill(g->sh->slots[i].pid, SIGKILL);
	}
	if (g->hosted) {
		while (waitpid(-1, NULL, 0) > 0)
			;
		exit(status);
	}
	reboot(how);
	/* The kernel halts a machine that it cannot power off; process 1 must not return. */
	for (;;)
		pause();
}

static void end_done(struct guest *g)
{
	struct totals t = totals_of(g);
	bool pass = t.errors == 0 && t.back == 0;

	say(&g->serial,
	    "done pages=%llu errors=%llu back=%llu gap_us=%llu late_us=%llu dmesg=%llu t_ms=%llu "
	    "status=%s",
	    (unsigned long long)t.pages, (unsigned long long)t.errors, (unsigned long long)t.back,
	    (unsigned long long)t.gap_ns / 1000, (unsigned long long)t.late_ns / 1000,
	    (unsigned long long)g->kernel_notes, (unsigned long long)now_ns() / MS,
	    pass ? "pass" : "fail");
	end(g, RB_POWER_OFF, !pass);
	__builtin_unreachable();
}

/* Nobody uses the disk any more, and all is on it. */
static void leave_disk(struct guest *g)
{
	if (g->opt.mode != MODE_DISK)
		return;
	for (unsigned int i = 0; i < g->workers; i++) {
		struct slot *s = &g->sh->slots[i];
		pid_t pid = s->pid;

		/* Not a death to be reported. */
		s->pid = 0;
		if (pid && s->writes && kill(pid, SIGKILL) == 0)
			waitpid(pid, NULL, 0);
		else
			s->pid = pid;
	}
	sync();
	if (g->mounted && umount(g->opt.dir) < 0)
		guest_error(g, "umount %s: %s", g->opt.dir, strerror(errno));
	if (g->kmsg_fd >= 0)
		kmsg_read(g->kmsg_fd, kernel_problem, g);
}

void guest_quit(struct guest *g)
{
	verify_all(g);
	leave_disk(g);
	end_done(g);
	__builtin_unreachable();
}

void guest_reboot(struct guest *g)
{
	say(&g->serial, "reboot");
	end(g, RB_AUTOBOOT, 0);
	__builtin_unreachable();
}

void guest_fatal(struct guest *g, const char *why)
{
	g->errors++;
	say(&g->serial, "fatal text=%s", why);
	end_done(g);
	__builtin_unreachable();
}

/* Commands. */

static void corrupt(struct guest *g, const char *what)
{
	static const struct {
		const char *name;
		enum fault fault;
	} faults[] = {
		{"byte", FAULT_BYTE}, {"stale", FAULT_STALE}, {"zero", FAULT_ZERO},
		{"book", FAULT_BOOK}, {"block", FAULT_BLOCK}, {"cow", FAULT_COW},
		{"regs", FAULT_REGS}, {"clock", FAULT_CLOCK}, {"late", FAULT_LATE},
		{"die", FAULT_DIE},
	};

	say(&g->serial, "corrupt what=%s", what);
	if (strcmp(what, "seq") == 0) {
		g->serial.skip = true;
		return;
	}
	if (strcmp(what, "line") == 0) {
		g->serial.damage = true;
		return;
	}
	if (strcmp(what, "kmsg") == 0) {
		if (g->kmsg_fd < 0 || !kmsg_write("WARNING: asked for by a test\n"))
			guest_error(g, "/dev/kmsg cannot be written");
		return;
	}
	for (size_t i = 0; i < sizeof(faults) / sizeof(faults[0]); i++) {
		if (strcmp(what, faults[i].name) == 0) {
			atomic_store(&g->sh->fault, faults[i].fault);
			return;
		}
	}
	guest_error(g, "no such fault: %.60s", what);
}

static bool has_input(const struct guest *g, int timeout_ms)
{
	struct pollfd p = {.fd = g->serial.in, .events = POLLIN};

	return poll(&p, 1, timeout_ms) > 0;
}

/*
 * One without an end goes in bursts. As long as there is more for the port its driver stays in one
 * interrupt, and where a character takes milliseconds nobody else would have that CPU for long.
 */
static void flood(struct guest *g, uint64_t n)
{
	char data[GT_FLOOD_LEN + 1];
	bool burst_ended = false;
	uint64_t i;

	for (i = 0; n ? i < n : !has_input(g, burst_ended ? FLOOD_REST_MS : 0); i++) {
		gt_flood_data((uint32_t)i, data);
		say(&g->serial, "flood i=%llu n=%llu data=%s", (unsigned long long)i,
		    (unsigned long long)n, data);
		burst_ended = !n && i % FLOOD_BURST == FLOOD_BURST - 1;
		if (burst_ended)
			serial_drain(&g->serial);
	}
	say(&g->serial, "flooded n=%llu", (unsigned long long)i);
}

static const char *after(const char *text, const char *prefix)
{
	size_t len = strlen(prefix);

	return strncmp(text, prefix, len) == 0 ? text + len : NULL;
}

static void cache(struct guest *g, uint64_t bytes)
{
	int64_t got = disk_cache(bytes);

	if (got < 0)
		guest_error(g, "reading " DISK_DEVICE ": %s", strerror((int)-got));
	else
		say(&g->serial, "cache bytes=%lld", (long long)got);
}

static void command(void *arg, const char *text)
{
	struct guest *g = arg;
	const char *rest;
	uint64_t n;

	if (strcmp(text, GT_CMD_REPORT) == 0) {
		say_report(g);
	} else if (strcmp(text, GT_CMD_ZERO) == 0) {
		for (unsigned int i = 0; i < g->workers; i++) {
			struct slot *s = &g->sh->slots[i];

			atomic_store(&s->gap_ns, 0);
			atomic_store(&s->gap_at_ns, 0);
			atomic_store(&s->late_ns, 0);
			atomic_store(&s->drift_ns, 0);
		}
		say(&g->serial, "reset");
	} else if (strcmp(text, GT_CMD_VERIFY) == 0) {
		verify_all(g);
		give_order(g, ORDER_RUN);
	} else if (strcmp(text, GT_CMD_QUIT) == 0) {
		guest_quit(g);
	} else if (strcmp(text, GT_CMD_REBOOT) == 0) {
		guest_reboot(g);
	} else if (strcmp(text, GT_CMD_INFO) == 0) {
		info_say(&g->serial);
	} else if (strcmp(text, GT_CMD_MEM) == 0) {
		info_memory(&g->serial);
	} else if ((rest = after(text, GT_CMD_ECHO))) {
		say(&g->serial, "echo %s", rest);
	} else if ((rest = after(text, GT_CMD_FLOOD)) && parse_size(rest, strlen(rest), &n) == 0 &&
		   n <= UINT32_MAX) {
		flood(g, n);
	} else if ((rest = after(text, GT_CMD_CACHE)) && parse_size(rest, strlen(rest), &n) == 0) {
		cache(g, n);
	} else if ((rest = after(text, GT_CMD_RATE)) && parse_size(rest, strlen(rest), &n) == 0 &&
		   n <= RATE_MAX) {
		atomic_store(&g->sh->rate, n);
		say(&g->serial, "rate pages=%llu", (unsigned long long)n);
	} else if (g->opt.corrupt && (rest = after(text, GT_CMD_CORRUPT))) {
		corrupt(g, rest);
	} else {
		say(&g->serial, "unknown text=%s", text);
	}
}

void supervise(struct guest *g)
{
	const uint64_t end_ns = g->opt.secs ? g->start_ns + g->opt.secs * 1000 * MS : 0;

	g->look_ns = now_ns();
	g->report_ns = g->look_ns + g->opt.report_ms * MS;
	for (;;) {
		uint64_t now = now_ns(), next = UINT64_MAX;

		if (end_ns && now >= end_ns)
			guest_quit(g);
		if (g->opt.report_ms && now >= g->report_ns) {
			say_report(g);
			g->report_ns += g->opt.report_ms * MS;
			/* After a pause of the machine one report comes, not all that were due. */
			if (g->report_ns < now)
				g->report_ns = now + g->opt.report_ms * MS;
		}
		if (end_ns)
			next = end_ns;
		if (g->opt.report_ms && g->report_ns < next)
			next = g->report_ns;
		now = now_ns();
		if (wait_events(g,
				next == UINT64_MAX	    ? -1
				: next <= now		    ? 0
				: (next - now) / MS > 60000 ? 60000
							    : (int)((next - now) / MS) + 1,
				true)) {
			int rc = serial_read(&g->serial, command, g);

			/* The end of a pipe is the end of the session; a terminal has none. */
			if (rc <= 0 && g->hosted)
				guest_quit(g);
			if (rc < 0)
				guest_error(g, "serial input: %s", strerror(-rc));
		}
	}
}
