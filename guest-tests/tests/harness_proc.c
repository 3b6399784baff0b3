/* SPDX-License-Identifier: MIT */
/*
 * Child processes and their output.
 *
 * Theory of operation: all children are on one list, and harness_pump() is one poll() over all
 * their pipes and pidfds and over the watches of the test. Whoever waits for something pumps and
 * looks again. A child has ended once it is reaped; its output has ended when its pipes have, which
 * a grandchild may put off, so waits for lines look at the stream and proc_wait() at both.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <regex.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "harness_private.h"

#define MAX_WATCHES 256
#define MAX_POLL 1024
#define RUN_TIMEOUT 30000
/* The pipes of a process that has ended: what it left in them is there at once. */
#define DRAIN_TIMEOUT 5000

struct watch {
	int fd;
	short events;
	void (*fn)(void *arg, int fd, short revents);
	void *arg;
};

static struct proc *procs;
static unsigned n_procs;
static struct watch watches[MAX_WATCHES];
static unsigned n_watches;

/* ---- words ---- */

void words_add(struct words *w, const char *word)
{
	if (w->n == HARNESS_MAX_ARGS)
		fail_test("more than %d words", HARNESS_MAX_ARGS);
	w->argv[w->n++] = word;
	w->argv[w->n] = NULL;
}

void words_add_list(struct words *w, va_list ap)
{
	const char *word;

	while ((word = va_arg(ap, const char *)))
		words_add(w, word);
}

/* ---- starting ---- */

static void stream_init(struct stream *s, int fd, const char *label, const char *kind)
{
	s->copy_path = harness_path("%s/%02u-%s.%s", harness_tmp(), n_procs, label, kind);
	s->fd = fd;
	s->copy_fd = open(s->copy_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (s->copy_fd < 0)
		fail_test("%s: %s", s->copy_path, strerror(errno));
	s->cap = 4096;
	s->buf = malloc(s->cap);
	if (!s->buf)
		fail_test("out of memory");
	s->buf[0] = '\0';
}

/* In the child: nothing of the test's may stay but the three pipes. */
_Noreturn static void become(const char *const *argv, const int fds[3], pid_t parent)
{
	sigset_t none;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(127);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_DFL);
	for (int i = 0; i < 3; i++) {
		if (dup2(fds[i], i) < 0)
			_exit(127);
	}
	close_range(3, ~0U, 0);
	execvp(argv[0], (char *const *)argv);
	dprintf(2, "%s: %s\n", argv[0], strerror(errno));
	_exit(127);
}

struct proc *proc_startv(const char *label, const char *const *argv)
{
	int in[2], out[2], err[2];
	struct proc *p = calloc(1, sizeof(*p));
	pid_t parent = getpid();

	if (!p || pipe2(in, O_CLOEXEC) || pipe2(out, O_CLOEXEC) || pipe2(err, O_CLOEXEC))
		fail_test("%s: %s", label, strerror(errno));
	snprintf(p->label, sizeof(p->label), "%s", label);
	for (char *c = p->label; *c; c++) {
		if (*c == '/')
			*c = '_';
	}
	n_procs++;
	stream_init(&p->out, out[0], p->label, "out");
	stream_init(&p->err, err[0], p->label, "err");
	p->in = in[1];
	p->status = -1;
	/* Not the other ends: O_NONBLOCK there would surprise the child. */
	fcntl(p->in, F_SETFL, O_NONBLOCK);
	fcntl(out[0], F_SETFL, O_NONBLOCK);
	fcntl(err[0], F_SETFL, O_NONBLOCK);

	fflush(NULL);
	p->pid = fork();
	if (p->pid < 0)
		fail_test("%s: fork: %s", label, strerror(errno));
	if (p->pid == 0)
		become(argv, (const int[3]){in[0], out[1], err[1]}, parent);
	close(in[0]);
	close(out[1]);
	close(err[1]);
	p->pidfd = pidfd_open(p->pid, 0);
	if (p->pidfd < 0)
		fail_test("%s: pidfd_open: %s", label, strerror(errno));
	p->next = procs;
	procs = p;
	return p;
}

struct proc *proc_start(const char *label, const char *prog, ...)
{
	struct words w = {.n = 0};
	va_list ap;

	words_add(&w, prog);
	va_start(ap, prog);
	words_add_list(&w, ap);
	va_end(ap);
	return proc_startv(label, w.argv);
}

struct proc *godwit_start(const char *label, const char *cmd, ...)
{
	struct words w = {.n = 0};
	va_list ap;

	words_add(&w, harness_godwit());
	words_add(&w, cmd);
	va_start(ap, cmd);
	words_add_list(&w, ap);
	va_end(ap);
	return proc_startv(label, w.argv);
}

struct proc *godwit_run(int exit_code, const char *cmd, ...)
{
	struct words w = {.n = 0};
	struct proc *p;
	va_list ap;

	words_add(&w, harness_godwit());
	words_add(&w, cmd);
	va_start(ap, cmd);
	words_add_list(&w, ap);
	va_end(ap);
	p = proc_startv(cmd, w.argv);
	proc_close(p);
	if (exit_code < 0)
		proc_wait(p, RUN_TIMEOUT);
	else
		proc_ended(p, exit_code, RUN_TIMEOUT);
	/* There may be hundreds, and what failed is somewhere else. */
	unlink(p->out.copy_path);
	unlink(p->err.copy_path);
	return p;
}

/* ---- the pump ---- */

static void stream_close(struct stream *s)
{
	close(s->fd);
	close(s->copy_fd);
	s->fd = -1;
}

/* Copies to the file are for people; the test goes by the buffer. */
static void copy_out(int fd, const char *data, size_t len)
{
	ssize_t n = write(fd, data, len);

	(void)n;
}

/* Reads what is there. True when something was, be it the end. */
static bool stream_read(struct stream *s)
{
	bool any = false;

	while (s->fd >= 0) {
		ssize_t n;

		if (s->cap - s->len < 4097) {
			s->cap *= 2;
			s->buf = realloc(s->buf, s->cap);
			if (!s->buf)
				fail_test("out of memory");
		}
		n = read(s->fd, s->buf + s->len, s->cap - s->len - 1);
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return any;
		any = true;
		if (n <= 0) {
			stream_close(s);
			return true;
		}
		copy_out(s->copy_fd, s->buf + s->len, (size_t)n);
		s->len += (size_t)n;
		s->buf[s->len] = '\0';
	}
	return any;
}

static void close_input(struct proc *p)
{
	if (p->in >= 0)
		close(p->in);
	p->in = -1;
	p->inlen = 0;
}

static void write_input(struct proc *p)
{
	while (p->in >= 0 && p->inlen) {
		ssize_t n = write(p->in, p->inbuf, p->inlen);

		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		if (n < 0) {
			/* Nobody reads any more. */
			close_input(p);
			return;
		}
		p->inlen -= (size_t)n;
		memmove(p->inbuf, p->inbuf + n, p->inlen);
	}
	if (p->in_close)
		close_input(p);
}

/* True when it has ended just now. */
static bool reap(struct proc *p)
{
	int status;

	if (p->pidfd < 0 || wait4(p->pid, &status, WNOHANG, &p->usage) != p->pid)
		return false;
	close(p->pidfd);
	p->pidfd = -1;
	p->status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
	return true;
}

static bool service(struct proc *p)
{
	bool any = stream_read(&p->out);

	any = stream_read(&p->err) || any;
	write_input(p);
	return reap(p) || any;
}

void harness_watch(int fd, short events, void (*fn)(void *arg, int fd, short revents), void *arg)
{
	unsigned i = 0;

	while (i < n_watches && watches[i].fd != fd)
		i++;
	if (!events) {
		if (i < n_watches)
			watches[i] = watches[--n_watches];
		return;
	}
	if (i == MAX_WATCHES)
		fail_test("more than %d watches", MAX_WATCHES);
	watches[i] = (struct watch){fd, events, fn, arg};
	if (i == n_watches)
		n_watches++;
}

/* The functions may add and end watches: go by what was polled, and look each up again. */
static bool run_watches(const struct pollfd *fds, unsigned n)
{
	bool any = false;

	for (unsigned k = 0; k < n; k++) {
		for (unsigned i = 0; fds[k].revents && i < n_watches; i++) {
			if (watches[i].fd != fds[k].fd)
				continue;
			watches[i].fn(watches[i].arg, fds[k].fd, fds[k].revents);
			any = true;
			break;
		}
	}
	return any;
}

static void add_poll(struct pollfd *fds, unsigned *n, int fd, short events)
{
	if (fd < 0)
		return;
	if (*n == MAX_POLL)
		fail_test("too many processes");
	fds[(*n)++] = (struct pollfd){.fd = fd, .events = events};
}

void harness_pump(int timeout_ms)
{
	struct pollfd fds[MAX_POLL];
	unsigned n = 0, first;

	for (unsigned i = 0; i < n_watches; i++)
		add_poll(fds, &n, watches[i].fd, watches[i].events);
	first = n;
	for (struct proc *p = procs; p; p = p->next) {
		add_poll(fds, &n, p->out.fd, POLLIN);
		add_poll(fds, &n, p->err.fd, POLLIN);
		add_poll(fds, &n, p->pidfd, POLLIN);
		add_poll(fds, &n, p->inlen ? p->in : -1, POLLOUT);
	}
	if (poll(fds, n, timeout_ms) <= 0)
		return;
	run_watches(fds, first);
	for (struct proc *p = procs; p; p = p->next)
		service(p);
}

void proc_collect_now(void)
{
	for (struct proc *p = procs; p; p = p->next)
		service(p);
}

static int left_ms(uint64_t deadline)
{
	uint64_t now = harness_now_ms();

	return now >= deadline ? 0 : (int)(deadline - now);
}

static uint64_t deadline_in(int timeout_ms)
{
	return harness_now_ms() + (uint64_t)harness_slow(timeout_ms);
}

bool harness_until(bool (*check)(void *arg), void *arg, int timeout_ms)
{
	uint64_t deadline = deadline_in(timeout_ms);

	while (!check(arg)) {
		int left = left_ms(deadline);

		if (!left)
			return false;
		harness_pump(left < 5 ? left : 5);
	}
	return true;
}

/* ---- lines ---- */

static void compile(regex_t *re, const char *regex)
{
	char text[256];
	int ret = regcomp(re, regex, REG_EXTENDED | REG_NOSUB);

	if (ret) {
		regerror(ret, re, text, sizeof(text));
		fail_test("'%s': %s", regex, text);
	}
}

static bool matches(const char *line, const char *regex)
{
	regex_t re;
	bool yes;

	compile(&re, regex);
	yes = regexec(&re, line, 0, NULL, 0) == 0;
	regfree(&re);
	return yes;
}

/* The next line that has come whole, or the rest after the end of output; NULL: not there yet. */
static char *take_line(struct stream *s, bool only_whole)
{
	char *from = s->buf + s->taken;
	char *end = memchr(from, '\n', s->len - s->taken);
	size_t len;
	char *line;

	if (!end && (only_whole || s->fd >= 0 || s->taken == s->len))
		return NULL;
	len = end ? (size_t)(end - from) : s->len - s->taken;
	line = harness_copy(from, len);
	s->taken += len + (end ? 1 : 0);
	/* Serial lines may end in CR LF. */
	if (len && line[len - 1] == '\r')
		line[len - 1] = '\0';
	return line;
}

/* regex NULL: any line. NULL: none in time, or none any more. */
static char *wait_line(struct proc *p, struct stream *s, const char *regex, int timeout_ms)
{
	uint64_t deadline = deadline_in(timeout_ms);
	regex_t re;
	char *line;

	if (regex)
		compile(&re, regex);
	for (;;) {
		while ((line = take_line(s, p->guest && s == &p->out))) {
			if (s == &p->out && p->fatal && matches(line, p->fatal))
				fail_test("%s: said '%s'", p->label, line);
			if (!regex || regexec(&re, line, 0, NULL, 0) == 0)
				goto out;
		}
		if (s->fd < 0 || !left_ms(deadline))
			goto out;
		harness_pump(left_ms(deadline));
	}
out:
	if (regex)
		regfree(&re);
	return line;
}

static const char *must_line(struct proc *p, struct stream *s, const char *regex, int timeout_ms)
{
	char *line = wait_line(p, s, regex, timeout_ms);

	if (line)
		return line;
	/* Its exit code, if it has ended, says more than that its output has. */
	harness_pump(50);
	if (s->fd >= 0)
		fail_test("%s: no line like '%s' within %d ms", p->label, regex,
			  harness_slow(timeout_ms));
	fail_test("%s: its output ended without a line like '%s' (exit code %d)", p->label, regex,
		  p->status);
}

const char *proc_expect(struct proc *p, const char *regex, int timeout_ms)
{
	return must_line(p, &p->out, regex, timeout_ms);
}

const char *proc_expect_err(struct proc *p, const char *regex, int timeout_ms)
{
	return must_line(p, &p->err, regex, timeout_ms);
}

const char *proc_try(struct proc *p, const char *regex, int timeout_ms)
{
	return wait_line(p, &p->out, regex, timeout_ms);
}

const char *proc_next(struct proc *p, int timeout_ms)
{
	return wait_line(p, &p->out, NULL, timeout_ms);
}

void proc_fatal(struct proc *p, const char *regex)
{
	p->fatal = regex ? harness_copy(regex, strlen(regex)) : NULL;
}

void proc_carry(struct proc *from, struct proc *to)
{
	struct stream *a = &from->out, *b = &to->out;
	size_t carried = a->len - a->taken, rest = b->len - b->taken;
	size_t cap = b->taken + carried + rest + 4096;
	char *buf = malloc(cap);

	if (!buf)
		fail_test("out of memory");
	memcpy(buf, b->buf, b->taken);
	memcpy(buf + b->taken, a->buf + a->taken, carried);
	memcpy(buf + b->taken + carried, b->buf + b->taken, rest);
	a->taken = a->len;
	b->buf = buf;
	b->cap = cap;
	b->len += carried;
	b->buf[b->len] = '\0';
	to->fatal = from->fatal;
}

/* ---- input ---- */

void proc_send_bytes(struct proc *p, const void *data, size_t len)
{
	if (p->in < 0 || p->in_close)
		fail_test("%s: its input is closed", p->label);
	p->inbuf = realloc(p->inbuf, p->inlen + len);
	if (!p->inbuf)
		fail_test("out of memory");
	memcpy(p->inbuf + p->inlen, data, len);
	p->inlen += len;
	write_input(p);
}

void proc_send(struct proc *p, const char *text)
{
	proc_send_bytes(p, text, strlen(text));
}

void proc_close(struct proc *p)
{
	p->in_close = true;
	write_input(p);
}

/* ---- the end ---- */

static bool has_ended(void *arg)
{
	struct proc *p = arg;

	return p->pidfd < 0;
}

static bool is_drained(void *arg)
{
	struct proc *p = arg;

	return p->out.fd < 0 && p->err.fd < 0;
}

int proc_wait(struct proc *p, int timeout_ms)
{
	if (!harness_until(has_ended, p, timeout_ms))
		fail_test("%s: has not ended within %d ms", p->label, harness_slow(timeout_ms));
	if (!harness_until(is_drained, p, DRAIN_TIMEOUT))
		fail_test("%s: has ended, but left somebody who holds its output", p->label);
	close_input(p);
	return p->status;
}

/* The last line of stderr is why, most often. */
static const char *last_words(const struct proc *p)
{
	size_t end = p->err.len, from;

	while (end && p->err.buf[end - 1] == '\n')
		end--;
	from = end;
	while (from && p->err.buf[from - 1] != '\n')
		from--;
	return end ? harness_path(": %.*s", (int)(end - from), p->err.buf + from) : "";
}

void proc_ended(struct proc *p, int exit_code, int timeout_ms)
{
	int status = proc_wait(p, timeout_ms);

	if (status != exit_code)
		fail_test("%s: exit code %d instead of %d%s", p->label, status, exit_code,
			  last_words(p));
}

bool proc_running(struct proc *p)
{
	reap(p);
	return p->pidfd >= 0;
}

void proc_kill(struct proc *p, int sig)
{
	if (proc_running(p) && kill(p->pid, sig))
		fail_test("%s: kill: %s", p->label, strerror(errno));
}
