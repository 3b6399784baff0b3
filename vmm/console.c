/* SPDX-License-Identifier: MIT */
/*
 * The terminal's state is the process's, not a console's, because signal handlers and atexit() must
 * find it: `term` below is the one file-static thing here.
 */
#include "console.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

#include "util.h"

#define ESCAPE_KEY 0x01 /* Ctrl-A */
#define BACKGROUND_LOOK_NS (250 * NS_PER_MS)

static struct {
	atomic_bool wanted; /* a console is attached to it, and the process goes on */
	atomic_bool raw;    /* we have changed it */
	int fd;
	struct termios cooked;
	struct sigaction old[NSIG];
	bool ours[NSIG];
	bool at_exit;
} term = {.fd = -1};

static bool in_foreground(int fd)
{
	pid_t pg = tcgetpgrp(fd);

	return pg < 0 || pg == getpgrp(); /* no controlling terminal: nobody else has it */
}

/* A background process that sets the terminal would be stopped for it. Signal-safe. */
static void set_terminal(const struct termios *t)
{
	sigset_t ttou, before;

	sigemptyset(&ttou);
	sigaddset(&ttou, SIGTTOU);
	pthread_sigmask(SIG_BLOCK, &ttou, &before);
	tcsetattr(term.fd, TCSANOW, t);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static void put_back(void)
{
	if (!term.raw)
		return;
	/* In the background it has become somebody else's, with their settings. */
	if (in_foreground(term.fd))
		set_terminal(&term.cooked);
	term.raw = false;
}

/* Makes the terminal raw if it is ours to change at this moment; false if not. Signal-safe. */
static bool terminal_take(void)
{
	struct termios raw;

	if (!term.wanted || !in_foreground(term.fd))
		return false;
	/* In the background the shell's own settings would have been seen: look only now. */
	if (!term.raw && tcgetattr(term.fd, &term.cooked) != 0)
		return false;
	raw = term.cooked;
	cfmakeraw(&raw);
	raw.c_cc[VMIN] = 1;
	raw.c_cc[VTIME] = 0;
	/* Before it is: a signal in between then puts back what did not change yet. */
	term.raw = true;
	set_terminal(&raw);
	/* A signal on another thread may have been faster, and has found nothing to put back. */
	if (!term.wanted)
		put_back();
	return true;
}

void console_restore_terminal(void)
{
	int saved_errno = errno;

	/* First: while this thread is on its way out, the loop's must not take it again. */
	term.wanted = false;
	put_back();
	errno = saved_errno;
}

static const int deadly_signals[] = {
	SIGHUP, SIGINT,	 SIGQUIT, SIGILL, SIGTRAP, SIGABRT, SIGBUS,
	SIGFPE, SIGSEGV, SIGTERM, SIGSYS, SIGXCPU, SIGXFSZ,
};

static bool is_fault(int sig)
{
	return sig == SIGILL || sig == SIGTRAP || sig == SIGBUS || sig == SIGFPE ||
	       sig == SIGSEGV || sig == SIGSYS;
}

static void on_deadly(int sig, siginfo_t *info, void *context)
{
	(void)context;
	console_restore_terminal();
	sigaction(sig, &term.old[sig], NULL);
	/* A fault repeats itself when we return, so that its address is still the true one. */
	if (!is_fault(sig) || info->si_code <= 0)
		raise(sig); /* blocked here: takes effect when we return */
}

static void on_stop(int sig, siginfo_t *info, void *context)
{
	int saved_errno = errno;
	struct sigaction ours;
	sigset_t set;

	(void)info;
	(void)context;
	put_back();
	sigaction(sig, &term.old[sig], &ours);
	raise(sig);
	sigemptyset(&set);
	sigaddset(&set, sig);
	pthread_sigmask(SIG_UNBLOCK, &set, NULL); /* stops here */
	sigaction(sig, &ours, NULL);
	errno = saved_errno;
}

static void on_continue(int sig, siginfo_t *info, void *context)
{
	int saved_errno = errno;

	(void)sig;
	(void)info;
	(void)context;
	terminal_take();
	errno = saved_errno;
}

/*
 * Signals that somebody else handles are left to them: they end the process by exit(). So are
 * ignored ones (nohup). Only a fault's handler, a sanitizer's say, has its turn after ours; that of
 * SIGSYS is no fault's, and goes on (confine.h).
 */
static void install_handler(int sig, void (*handler)(int, siginfo_t *, void *))
{
	struct sigaction act = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_RESTART};

	if (term.ours[sig] || sigaction(sig, NULL, &term.old[sig]) != 0)
		return;
	if (!(term.old[sig].sa_flags & SA_SIGINFO) && term.old[sig].sa_handler == SIG_IGN)
		return;
	if ((!is_fault(sig) || sig == SIGSYS) &&
	    ((term.old[sig].sa_flags & SA_SIGINFO) || term.old[sig].sa_handler != SIG_DFL))
		return;
	sigfillset(&act.sa_mask);
	term.ours[sig] = sigaction(sig, &act, NULL) == 0;
}

static void remove_handler(int sig, void (*handler)(int, siginfo_t *, void *))
{
	struct sigaction act;

	if (term.ours[sig] && sigaction(sig, NULL, &act) == 0 && act.sa_sigaction == handler)
		sigaction(sig, &term.old[sig], NULL);
	term.ours[sig] = false;
}

static int terminal_attach(int fd)
{
	struct termios now;

	if (term.wanted)
		return -EBUSY;
	if (tcgetattr(fd, &now) != 0)
		return -errno;
	if (!term.at_exit && atexit(console_restore_terminal) != 0)
		return -ENOMEM;
	term.at_exit = true;
	term.fd = fd;
	term.wanted = true;
	for (size_t i = 0; i < ARRAY_SIZE(deadly_signals); i++)
		install_handler(deadly_signals[i], on_deadly);
	install_handler(SIGTSTP, on_stop);
	install_handler(SIGCONT, on_continue);
	terminal_take();
	return 0;
}

static void terminal_detach(void)
{
	console_restore_terminal();
	for (size_t i = 0; i < ARRAY_SIZE(deadly_signals); i++)
		remove_handler(deadly_signals[i], on_deadly);
	remove_handler(SIGTSTP, on_stop);
	remove_handler(SIGCONT, on_continue);
}

static void in_start(struct console *c);
static void out_start(struct console *c);

static int in_fd(const struct console *c)
{
	return c->own_in >= 0 ? c->own_in : c->in_fd;
}

static int out_fd(const struct console *c)
{
	return c->own_out >= 0 ? c->own_out : c->out_fd;
}

/* What the user typed, without our own keys; gives the bytes that are the guest's. */
static size_t filter_keys(struct console *c, uint8_t *to, const uint8_t *from, size_t len)
{
	size_t n = 0;

	for (size_t i = 0; i < len; i++) {
		if (!c->escape && from[i] == ESCAPE_KEY) {
			c->escape = true;
		} else if (!c->escape) {
			to[n++] = from[i];
		} else {
			c->escape = false;
			if (from[i] == 'a' || from[i] == ESCAPE_KEY)
				to[n++] = ESCAPE_KEY;
			else if (from[i] == 'x')
				c->quit_key = true;
			else if (from[i] == 'h')
				c->help_key = true;
		}
	}
	return n;
}

static ssize_t read_input(void *arg, void *buf, size_t len)
{
	struct console *c = arg;
	struct pollfd p = {.fd = in_fd(c), .events = POLLIN};
	ssize_t n;

	/* Another reader of the same pipe may have been faster. */
	if (c->own_in < 0 && poll(&p, 1, 0) == 0)
		return 0;
	n = read(in_fd(c), c->in_buf, MIN(len, sizeof(c->in_buf)));
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (n < 0)
		n = -errno;
	if (n <= 0) {
		c->in_eof = true;
		return n;
	}
	if (c->in_is_tty)
		return (ssize_t)filter_keys(c, buf, c->in_buf, (size_t)n);
	memcpy(buf, c->in_buf, (size_t)n);
	return n;
}

static void show_help(void)
{
	dprintf(STDERR_FILENO, "\r\ngodwit: Ctrl-A x  stop the guest and leave\r\n"
			       "        Ctrl-A a  send a Ctrl-A to the guest\r\n"
			       "        Ctrl-A h  this help\r\n");
}

static void on_input(struct loop_op *op, int32_t res)
{
	struct console *c = container_of(op, struct console, in_op);
	ssize_t n;

	if (!c->attached)
		return;
	if (res == -ECANCELED) { /* detached, and attached again since */
		in_start(c);
		return;
	}
	c->quit_key = c->help_key = false;
	n = chan_host_read(c->chan, read_input, c);
	if (n < 0)
		log_warn("console: reading stdin: %s: no more input", strerror((int)-n));
	if (c->help_key)
		show_help();
	in_start(c);
	if (c->quit_key && c->on_quit)
		c->on_quit(c->on_quit_arg);
}

static void on_background_look(struct loop_op *op, int32_t res)
{
	(void)res;
	in_start(container_of(op, struct console, in_op));
}

static void in_start(struct console *c)
{
	if (!c->attached || c->in_eof || c->in_op.pending)
		return;
	if (c->in_is_tty && !(term.raw ? in_foreground(term.fd) : terminal_take())) {
		c->in_op.done = on_background_look;
		loop_timer(c->loop, &c->in_op, BACKGROUND_LOOK_NS);
	} else if (chan_host_room(c->chan) > 0) { /* else the channel kicks */
		c->in_op.done = on_input;
		loop_poll(c->loop, &c->in_op, in_fd(c), POLLIN);
	}
}

static ssize_t write_output(void *arg, const void *buf, size_t len)
{
	struct console *c = arg;
	ssize_t n;

	if (c->out_gone)
		return (ssize_t)len;
	/* Another writer to the same socket may have taken the room that poll saw. */
	n = c->out_is_socket ? send(c->out_fd, buf, MIN(len, c->out_max), MSG_DONTWAIT)
			     : write(out_fd(c), buf, MIN(len, c->out_max));
	if (n >= 0)
		return n;
	if (errno == EAGAIN || errno == EINTR)
		return 0;
	c->out_gone = true;
	log_warn("console: writing to stdout: %s: the guest runs on, its output is dropped",
		 strerror(errno));
	return (ssize_t)len;
}

static void on_output(struct loop_op *op, int32_t res)
{
	struct console *c = container_of(op, struct console, out_op);

	(void)res; /* whatever poll has to say, write says it clearer */
	if (c->dying)
		return;
	chan_host_write(c->chan, write_output, c);
	out_start(c);
}

static void out_start(struct console *c)
{
	if (c->out_op.pending)
		return;
	while (c->out_gone && chan_host_write(c->chan, write_output, c) > 0)
		;
	if (chan_host_pending(c->chan) > 0)
		loop_poll(c->loop, &c->out_op, out_fd(c), POLLOUT);
}

static void run_kick(struct loop_task *task)
{
	struct console *c = container_of(task, struct console, kick);

	if (c->dying)
		return;
	out_start(c);
	in_start(c);
}

/* The channel calls this on a vCPU's thread. */
static void on_chan(void *arg)
{
	struct console *c = arg;

	loop_post(c->loop, &c->kick);
}

/*
 * O_NONBLOCK belongs to the open file, which we share with the shell; opening it again gives one of
 * our own. Terminals need it (POLLOUT promises room for a single byte) and so do pipes with
 * other writers. -1 for what cannot be opened: sockets, another user's terminal.
 */
static int open_own(int fd, int access)
{
	char path[32];
	struct stat st;

	if (fd < 0 || fstat(fd, &st) != 0)
		return -1;
	if (!isatty(fd) && !(S_ISFIFO(st.st_mode) && access == O_WRONLY))
		return -1;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return open(path, access | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
}

int console_init(struct console *c, struct loop *loop, struct chan *chan, int in, int out,
		 void (*on_quit)(void *arg), void *arg)
{
	struct stat st;

	*c = (struct console){
		.loop = loop,
		.chan = chan,
		.in_fd = in,
		.out_fd = out,
		.in_is_tty = in >= 0 && isatty(in),
		.in_eof = in < 0,
		.out_gone = out < 0,
		.kick = {.run = run_kick},
		.on_quit = on_quit,
		.on_quit_arg = arg,
	};
	c->own_in = open_own(in, O_RDONLY);
	c->own_out = open_own(out, O_WRONLY);
	c->out_max = c->own_out < 0 && out >= 0 && isatty(out) ? 1 : PIPE_BUF;
	c->out_is_socket = out >= 0 && fstat(out, &st) == 0 && S_ISSOCK(st.st_mode);
	c->in_op.done = on_input;
	c->out_op.done = on_output;
	chan_set_host(chan, on_chan, c);
	out_start(c);
	return 0;
}

int console_attach(struct console *c)
{
	int ret;

	if (c->attached)
		return 0;
	if (c->in_is_tty) {
		ret = terminal_attach(c->in_fd);
		if (ret)
			return ret;
		log_set_raw_terminal(isatty(STDERR_FILENO));
	}
	c->attached = true;
	c->escape = false;
	in_start(c);
	return 0;
}

void console_detach(struct console *c)
{
	if (!c->attached)
		return;
	c->attached = false;
	loop_cancel(c->loop, &c->in_op);
	if (c->in_is_tty) {
		terminal_detach();
		log_set_raw_terminal(false);
	}
}

void console_flush(struct console *c, uint64_t timeout_ns)
{
	uint64_t now = now_ns();
	uint64_t deadline = now + MIN(timeout_ns, UINT64_MAX - now);

	while (chan_host_pending(c->chan) > 0 && now < deadline) {
		struct pollfd p = {.fd = out_fd(c), .events = POLLOUT};
		uint64_t ms = MIN((deadline - now) / NS_PER_MS + 1, (uint64_t)INT_MAX);

		if (!c->out_gone && poll(&p, 1, (int)ms) == 0)
			break;
		chan_host_write(c->chan, write_output, c);
		now = now_ns();
	}
}

void console_destroy(struct console *c)
{
	console_detach(c);
	c->dying = true;
	chan_set_host(c->chan, NULL, NULL);
	loop_unpost(c->loop, &c->kick);
	loop_cancel(c->loop, &c->out_op);
	/* The kernel still holds the operations' memory; cancelled ones end at once. */
	while ((c->in_op.pending || c->out_op.pending) && loop_step(c->loop, NS_PER_SEC) == 0)
		;
	if (c->own_in >= 0)
		close(c->own_in);
	if (c->own_out >= 0)
		close(c->own_out);
	c->own_in = c->own_out = -1;
}
