/* SPDX-License-Identifier: MIT */
/*
 * The first process of a Linux guest under test: it tells, from inside, whether the machine that
 * is being moved stays what it was. contract.h says how tests talk to it.
 *
 * It mounts what it needs, starts the workers (work.h), and then is their supervisor: one poll
 * loop over the serial input, the workers' messages, the death of children and the kernel's log.
 * Only the supervisor writes to the serial line, so lines never mix and their numbers have no
 * holes.
 *
 * Started as anything but process 1 it is the same program on stdin and stdout, with its options
 * as arguments: nothing is mounted, the kernel's log is not read, and in place of powering off it
 * exits with 0 (pass) or 1 (fail). Workers, protocol and fault detection are so tested without a
 * machine.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/klog.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "disk.h"
#include "supervise.h"

#define CONSOLE_LEVEL 8 /* klogctl: set the level below which messages reach the console */

static void setup_mounts(void)
{
	static const struct {
		const char *type, *where;
	} mounts[] = {
		{"proc", "/proc"},
		{"sysfs", "/sys"},
		{"devtmpfs", "/dev"},
	};

	for (size_t i = 0; i < sizeof(mounts) / sizeof(mounts[0]); i++) {
		mkdir(mounts[i].where, 0755);
		/* A failure shows by what then is missing: options, or the serial port. */
		(void)mount(mounts[i].type, mounts[i].where, mounts[i].type, 0, NULL);
	}
}

static void setup_tty(struct guest *g)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/dev/%s", g->opt.tty);
	fd = open(path, O_RDWR | O_NOCTTY);
	if (fd < 0)
		fd = open("/dev/console", O_RDWR | O_NOCTTY);
	if (fd >= 0) {
		for (int i = 0; i < 3; i++)
			dup2(fd, i);
		if (fd > 2)
			close(fd);
	}
	(void)serial_raw(0);
	/* What the firmware or kernel wrote last may have no line end. */
	(void)!write(1, "\n", 1);
}

/*
 * Returns 0, or -errno with the reason in err. The command line must be known before the serial
 * port is.
 */
static int read_options(struct guest *g, int argc, char **argv, char *err, size_t err_size)
{
	char text[4096];
	ssize_t n;
	int fd;

	options_default(&g->opt);
	if (g->hosted) {
		/* One word each: no argument can hide another. */
		for (int i = 1; i < argc; i++) {
			if (options_parse(&g->opt, argv[i], err, err_size) < 0)
				return -EINVAL;
		}
		return 0;
	}
	fd = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
	if (n < 0) {
		n = -errno;
		snprintf(err, err_size, "/proc/cmdline: %s", strerror(errno));
	} else {
		text[n] = '\0';
		n = options_parse(&g->opt, text, err, err_size);
	}
	if (fd >= 0)
		close(fd);
	return (int)n;
}

/* Each run has its own content, lest a page of an earlier run pass for one of this. */
static uint64_t seed_from_clock(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	return ((uint64_t)ts.tv_sec << 30 ^ (uint64_t)ts.tv_nsec) | 1;
}

static unsigned int count_cpus(void)
{
	cpu_set_t set;

	return sched_getaffinity(0, sizeof(set), &set) < 0 ? 1 : (unsigned int)CPU_COUNT(&set);
}

static int setup_shared(struct guest *g, char *err, size_t err_size)
{
	struct sysinfo si;
	sigset_t set;
	int fds[2];

	if (sysinfo(&si) == 0 && g->opt.mem > (uint64_t)si.freeram * si.mem_unit / 4 * 3) {
		snprintf(err, err_size, "gt.mem is more than 3/4 of the free memory (%llu KiB)",
			 (unsigned long long)si.freeram * si.mem_unit / 1024);
		return -ENOMEM;
	}
	g->sh = mmap(NULL, sizeof(*g->sh), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		     0);
	if (g->sh == MAP_FAILED)
		goto fail;
	g->sh->seed = g->opt.seed ? g->opt.seed : seed_from_clock();
	atomic_store(&g->sh->rate, g->opt.rate);
	if (pipe2(fds, O_CLOEXEC) < 0)
		goto fail;
	g->msg_in = fds[0];
	g->msg_out = fds[1];
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	g->child_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (g->child_fd < 0)
		goto fail;
	return 0;
fail:
	snprintf(err, err_size, "setting up: %s", strerror(errno));
	return -errno;
}

static int setup_disk(struct guest *g, char *err, size_t err_size)
{
	int ret = g->hosted ? 0 : modules_load(err, err_size);

	if (ret || g->opt.mode != MODE_DISK || g->opt.dir[0])
		return ret;
	if (g->hosted) {
		snprintf(err, err_size, "there is no disk here: give " GT_OPT_DIR);
		return -ENODEV;
	}
	snprintf(g->opt.dir, sizeof(g->opt.dir), "/disk");
	ret = disk_mount(g->opt.dir, err, err_size);
	g->mounted = ret == 0;
	return ret;
}

/* A shell with the serial line as its terminal. That it fails, or is not there, is an error. */
static void run_shell(struct guest *g)
{
	char *argv[] = {(char[]){"-sh"}, NULL};
	char *envp[] = {(char[]){"HOME=/"}, (char[]){"PATH=/bin:/sbin:/usr/bin:/usr/sbin"},
			(char[]){"TERM=linux"}, NULL};
	struct termios t;
	sigset_t none;
	int status = 0;
	pid_t pid;

	if (g->hosted || access("/bin/sh", X_OK) < 0) {
		guest_error(g, "there is no /bin/sh here");
		return;
	}
	pid = fork();
	if (pid < 0) {
		guest_error(g, "fork: %s", strerror(errno));
		return;
	}
	if (pid == 0) {
		sigemptyset(&none);
		sigprocmask(SIG_SETMASK, &none, NULL);
		setsid();
		ioctl(0, TIOCSCTTY, 1);
		if (tcgetattr(0, &t) == 0) {
			t.c_iflag |= ICRNL;
			t.c_lflag |= ICANON | ECHO | ECHOE | ECHOK | ISIG | IEXTEN;
			tcsetattr(0, TCSANOW, &t);
		}
		execve("/bin/sh", argv, envp);
		_exit(127);
	}
	while (wait(&status) != pid) /* reaps orphans as well */
		;
	/* The end of the session has hung up the terminal, for everybody who had it open. */
	setup_tty(g);
	if (status != 0)
		guest_error(g, "the shell ended with wait status 0x%x", (unsigned int)status);
}

static void say_ready(struct guest *g)
{
	struct sysinfo si = {0};
	struct utsname uts = {0};
	uint64_t now = now_ns();

	uname(&uts);
	sysinfo(&si);
	say(&g->serial,
	    "ready version=%d kernel=%s cpus=%u mem_kib=%llu mode=%s procs=%llu workers=%u "
	    "rate=%llu "
	    "simd=%s seed=%llu init_ms=%llu t_ms=%llu",
	    GT_VERSION, uts.release, g->cpus, (unsigned long long)si.totalram * si.mem_unit / 1024,
	    mode_name(g->opt.mode), (unsigned long long)g->opt.procs, g->workers,
	    (unsigned long long)g->opt.rate, regs_level(), (unsigned long long)g->sh->seed,
	    (unsigned long long)(now - g->start_ns) / 1000000, (unsigned long long)now / 1000000);
}

int main(int argc, char **argv)
{
	static struct guest guest;
	struct guest *g = &guest;
	char err[200];
	int rc;

	if (argc > 1 && strcmp(argv[1], CHURN_ARG) == 0)
		return churn_child(argc, argv);

	*g = (struct guest){
		.start_ns = now_ns(),
		.hosted = getpid() != 1,
		.kmsg_fd = -1,
		.serial = {.in = 0, .out = 1},
	};
	if (!g->hosted)
		setup_mounts();
	rc = read_options(g, argc, argv, err, sizeof(err));
	if (!g->hosted) {
		setup_tty(g);
		/*
		 * Kernel messages must not break into our lines; they are read from the log and
		 * reported.
		 */
		(void)klogctl(CONSOLE_LEVEL, NULL, 1);
		g->kmsg_fd = kmsg_open();
	}
	if (rc < 0)
		guest_fatal(g, err);
	if (!g->hosted && g->kmsg_fd < 0)
		guest_fatal(g, "/dev/kmsg cannot be opened");
	if (setup_shared(g, err, sizeof(err)) < 0 || setup_disk(g, err, sizeof(err)) < 0)
		guest_fatal(g, err);

	g->cpus = count_cpus();
	atomic_store(&g->sh->order, ORDER_HOLD);
	start_workers(g);
	say_ready(g);
	switch (g->opt.mode) {
	case MODE_POWEROFF:
		guest_quit(g);
	case MODE_REBOOT:
		guest_reboot(g);
	case MODE_INFO:
		info_say(&g->serial);
		guest_quit(g);
	case MODE_SHELL:
		run_shell(g);
		guest_quit(g);
	default:
		give_order(g, ORDER_RUN);
		supervise(g);
	}
}
