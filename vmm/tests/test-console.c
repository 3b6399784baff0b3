/* SPDX-License-Identifier: MIT */
/*
 * The console on every kind of stdin and stdout it may be given: pipes, files, /dev/null, and
 * terminals through openpty(). What happens at the end of a process happens in a child.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <pty.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "../console.h"
#include "../util.h"

#define PATIENCE (10 * NS_PER_SEC)

static struct loop loop;
static struct chan chan;
static struct console con;
static unsigned quits;

static void on_quit(void *arg)
{
	(*(unsigned *)arg)++;
}

static void setup(void)
{
	signal(SIGPIPE, SIG_IGN);
	ck_assert_int_eq(loop_init(&loop), 0);
	ck_assert_int_eq(chan_init(&chan), 0);
}

static void teardown(void)
{
	loop_destroy(&loop);
	chan_destroy(&chan);
}

static void start(int in, int out)
{
	ck_assert_int_eq(console_init(&con, &loop, &chan, in, out, on_quit, &quits), 0);
}

static void guest_prints(const char *text)
{
	ck_assert_uint_eq(chan_send(&chan, text, strlen(text)), strlen(text));
}

/* A turn of the loop, which must not be held up by anything. */
static void turn(void)
{
	uint64_t before = now_ns();

	ck_assert_int_eq(loop_step(&loop, 20 * NS_PER_MS), 0);
	ck_assert_uint_lt(now_ns() - before, 5 * NS_PER_SEC);
}

/* Runs the loop until fd has given len bytes. */
static void expect_bytes(int fd, const void *want, size_t len)
{
	uint64_t deadline = now_ns() + PATIENCE;
	uint8_t *got = malloc(len + 1);
	size_t n = 0;

	ck_assert_ptr_nonnull(got);
	while (n < len && now_ns() < deadline) {
		struct pollfd p = {.fd = fd, .events = POLLIN};
		ssize_t ret;

		turn();
		if (poll(&p, 1, 0) <= 0)
			continue;
		ret = read(fd, got + n, len - n);
		ck_assert_int_gt(ret, 0);
		n += (size_t)ret;
	}
	ck_assert_uint_eq(n, len);
	ck_assert_mem_eq(got, want, len);
	free(got);
}

static void expect_text(int fd, const char *want)
{
	expect_bytes(fd, want, strlen(want));
}

/* Runs the loop until the guest has received this. */
static void guest_receives(const char *want)
{
	uint64_t deadline = now_ns() + PATIENCE;
	char got[256] = "";
	size_t n = 0;

	ck_assert_uint_lt(strlen(want), sizeof(got));
	while (n < strlen(want) && now_ns() < deadline) {
		turn();
		n += chan_recv(&chan, got + n, sizeof(got) - 1 - n);
	}
	ck_assert_str_eq(got, want);
}

static void host_types(int fd, const char *text)
{
	ck_assert_int_eq(write(fd, text, strlen(text)), (ssize_t)strlen(text));
}

static size_t fill_guest_output(void)
{
	uint8_t b;
	size_t n = 0;

	for (b = 0; chan_send(&chan, &b, 1) == 1; b = (uint8_t)(n * 31 + n / 257))
		n++;
	return n;
}

/* What fill_guest_output() sent, n bytes. */
static uint8_t *filled(size_t n)
{
	uint8_t *want = calloc(1, n);

	ck_assert_ptr_nonnull(want);
	for (size_t i = 1; i < n; i++)
		want[i] = (uint8_t)(i * 31 + i / 257);
	return want;
}

static int temp_file(void)
{
	FILE *file = tmpfile();
	int fd;

	ck_assert_ptr_nonnull(file);
	fd = dup(fileno(file));
	fclose(file);
	ck_assert_int_ge(fd, 0);
	return fd;
}

START_TEST(test_output_to_pipe)
{
	int p[2];

	ck_assert_int_eq(pipe(p), 0);
	guest_prints("before ");
	start(-1, p[1]);
	expect_text(p[0], "before ");
	guest_prints("and ");
	guest_prints("after");
	expect_text(p[0], "and after");
	console_destroy(&con);
	close(p[0]);
	close(p[1]);
}
END_TEST

START_TEST(test_output_to_file)
{
	int fd = temp_file();
	char buf[64] = "";

	ck_assert_int_eq(write(fd, "shell\n", 6), 6);
	start(-1, fd);
	guest_prints("guest\n");
	for (uint64_t end = now_ns() + PATIENCE; chan_host_pending(&chan) && now_ns() < end;)
		turn();
	console_destroy(&con);
	/* The offset is shared with whoever gave us the file: nothing is overwritten. */
	ck_assert_int_eq(write(fd, "shell\n", 6), 6);
	ck_assert_int_eq(pread(fd, buf, sizeof(buf) - 1, 0), 18);
	ck_assert_str_eq(buf, "shell\nguest\nshell\n");
	close(fd);
}
END_TEST

/* /dev/null, /dev/full and nothing at all: the guest is never held up. */
START_TEST(test_output_to_nowhere)
{
	static const char *const paths[] = {"/dev/null", "/dev/full", NULL};
	int fd = paths[_i] ? open(paths[_i], O_WRONLY) : -1;

	start(-1, fd);
	for (unsigned round = 0; round < 3; round++) {
		uint64_t end = now_ns() + PATIENCE;

		ck_assert_uint_eq(fill_guest_output(), CHAN_OUT_SIZE);
		while (chan_host_pending(&chan) > 0 && now_ns() < end)
			turn();
		ck_assert_uint_eq(chan_send_room(&chan), CHAN_OUT_SIZE);
	}
	console_destroy(&con);
	if (fd >= 0)
		close(fd);
}
END_TEST

START_TEST(test_reader_goes_away)
{
	char log[4096] = "";
	int p[2], err[2], saved = dup(STDERR_FILENO);
	char *first;

	ck_assert_int_eq(pipe(p), 0);
	ck_assert_int_eq(pipe(err), 0);
	start(-1, p[1]);
	guest_prints("hello");
	expect_text(p[0], "hello");
	close(p[0]);
	dup2(err[1], STDERR_FILENO);
	for (unsigned round = 0; round < 3; round++) {
		uint64_t end = now_ns() + PATIENCE;

		ck_assert_uint_eq(fill_guest_output(), CHAN_OUT_SIZE);
		while (chan_host_pending(&chan) > 0 && now_ns() < end)
			turn();
		ck_assert_uint_eq(chan_send_room(&chan), CHAN_OUT_SIZE);
	}
	dup2(saved, STDERR_FILENO);
	close(saved);
	close(err[1]);
	/* Said once, not for every byte. */
	ck_assert_int_gt(read(err[0], log, sizeof(log) - 1), 0);
	first = strstr(log, "stdout");
	ck_assert_ptr_nonnull(first);
	ck_assert_ptr_null(strstr(first + 1, "stdout"));
	console_destroy(&con);
	close(err[0]);
	close(p[1]);
}
END_TEST

/* A reader that does not read holds up neither the loop nor, when it reads at last, the bytes. */
static void check_stuck_reader(int read_fd)
{
	uint8_t *want = filled(3 * CHAN_OUT_SIZE);
	uint64_t end = now_ns() + 300 * NS_PER_MS;
	size_t n = 0;

	/* A turn that blocked would not come back: see turn(). */
	while (now_ns() < end) {
		n += chan_send(&chan, want + n, 3 * CHAN_OUT_SIZE - n);
		turn();
	}
	ck_assert_uint_eq(chan_send_room(&chan), 0);
	ck_assert_uint_gt(n, CHAN_OUT_SIZE);
	ck_assert_uint_lt(n, 3 * CHAN_OUT_SIZE);
	expect_bytes(read_fd, want, n);
	free(want);
}

START_TEST(test_stuck_pipe_reader)
{
	int p[2];

	ck_assert_int_eq(pipe(p), 0);
	fcntl(p[1], F_SETPIPE_SZ, 8192);
	start(-1, p[1]);
	check_stuck_reader(p[0]);
	console_destroy(&con);
	close(p[0]);
	close(p[1]);
}
END_TEST

START_TEST(test_stuck_terminal_reader)
{
	int master, slave;
	struct termios t;

	ck_assert_int_eq(openpty(&master, &slave, NULL, NULL, NULL), 0);
	tcgetattr(slave, &t);
	cfmakeraw(&t);
	tcsetattr(slave, TCSANOW, &t);
	start(-1, slave);
	check_stuck_reader(master);
	console_destroy(&con);
	close(master);
	close(slave);
}
END_TEST

/* Another writer to the same socket takes the room between our look at it and our write. */
START_TEST(test_shared_socket)
{
	static const uint8_t junk[4096];
	size_t junk_len = 0;
	ssize_t n;
	int s[2];

	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, s), 0);
	start(-1, s[1]);
	turn();
	ck_assert_uint_eq(chan_send(&chan, "hello", 5), 5);
	turn();
	/* The look. */
	io_uring_submit(&loop.ring);
	while ((n = send(s[1], junk, sizeof(junk), MSG_DONTWAIT)) > 0)
		junk_len += (size_t)n;
	/* Would not come back if it blocked: see turn(). */
	turn();
	turn();
	while (junk_len > 0) {
		uint8_t drop[4096];

		n = recv(s[0], drop, MIN(junk_len, sizeof(drop)), 0);
		ck_assert_int_gt(n, 0);
		junk_len -= (size_t)n;
	}
	expect_bytes(s[0], (const uint8_t *)"hello", 5);
	console_destroy(&con);
	close(s[0]);
	close(s[1]);
}
END_TEST

START_TEST(test_input_from_pipe)
{
	int p[2];

	ck_assert_int_eq(pipe(p), 0);
	start(p[0], -1);
	host_types(p[1], "not yet");
	for (unsigned i = 0; i < 5; i++)
		turn();
	ck_assert_uint_eq(chan_recv_avail(&chan), 0);
	ck_assert_int_eq(console_attach(&con), 0);
	guest_receives("not yet");
	/* Escapes are for people: a script's bytes pass as they are. */
	host_types(p[1], "\x01x\x01h\x01\x01!");
	guest_receives("\x01x\x01h\x01\x01!");
	ck_assert_uint_eq(quits, 0);
	host_types(p[1], "last");
	close(p[1]);
	guest_receives("last");
	console_destroy(&con);
	close(p[0]);
}
END_TEST

/* The end of input ends nothing else, and costs nothing. */
START_TEST(test_input_ends)
{
	int in = -1, out[2];

	if (_i == 0)
		in = open("/dev/null", O_RDONLY);
	if (_i == 1) {
		in = temp_file();
		host_types(in, "file");
		lseek(in, 0, SEEK_SET);
	}
	ck_assert_int_eq(pipe(out), 0);
	start(in, out[1]);
	ck_assert_int_eq(console_attach(&con), 0);
	if (_i == 1)
		guest_receives("file");
	for (uint64_t end = now_ns() + PATIENCE; !con.in_eof && now_ns() < end;)
		turn();
	ck_assert(con.in_eof);
	ck_assert(!con.in_op.pending);
	guest_prints("still here");
	expect_text(out[0], "still here");
	ck_assert(!con.in_op.pending);
	console_destroy(&con);
	if (in >= 0)
		close(in);
	close(out[0]);
	close(out[1]);
}
END_TEST

START_TEST(test_input_waits_for_guest)
{
	static uint8_t sent[3 * CHAN_IN_SIZE], got[3 * CHAN_IN_SIZE];
	uint64_t end = now_ns() + PATIENCE;
	size_t n = 0;
	int p[2];

	for (size_t i = 0; i < sizeof(sent); i++)
		sent[i] = (uint8_t)(i * 13 + i / 256);
	ck_assert_int_eq(pipe(p), 0);
	ck_assert_int_eq(write(p[1], sent, sizeof(sent)), sizeof(sent));
	start(p[0], -1);
	ck_assert_int_eq(console_attach(&con), 0);
	while (chan_recv_avail(&chan) < CHAN_IN_SIZE && now_ns() < end)
		turn();
	turn();
	ck_assert(!con.in_op.pending);
	while (n < sizeof(got) && now_ns() < end) {
		n += chan_recv(&chan, got + n, MIN(sizeof(got) - n, 700U));
		turn();
	}
	ck_assert_uint_eq(n, sizeof(got));
	ck_assert_mem_eq(got, sent, sizeof(got));
	console_destroy(&con);
	close(p[0]);
	close(p[1]);
}
END_TEST

/* Frozen, the console takes nothing off stdin: the bytes are the next reader's. */
START_TEST(test_freeze)
{
	int in[2], out[2], n = 0;
	struct pollfd p;

	ck_assert_int_eq(pipe(in), 0);
	ck_assert_int_eq(pipe(out), 0);
	start(in[0], out[1]);
	ck_assert_int_eq(console_attach(&con), 0);
	turn();
	chan_freeze(&chan);
	host_types(in[1], "later");
	guest_prints("later");
	for (unsigned i = 0; i < 5; i++)
		turn();
	ck_assert_int_eq(ioctl(in[0], FIONREAD, &n), 0);
	ck_assert_int_eq(n, 5);
	p = (struct pollfd){.fd = out[0], .events = POLLIN};
	ck_assert_int_eq(poll(&p, 1, 0), 0);
	chan_thaw(&chan);
	expect_text(out[0], "later");
	guest_receives("later");
	console_destroy(&con);
	for (unsigned i = 0; i < 2; i++) {
		close(in[i]);
		close(out[i]);
	}
}
END_TEST

START_TEST(test_detach_and_attach)
{
	int p[2];

	ck_assert_int_eq(pipe(p), 0);
	start(p[0], -1);
	ck_assert_int_eq(console_attach(&con), 0);
	host_types(p[1], "one");
	guest_receives("one");
	console_detach(&con);
	ck_assert_int_eq(console_attach(&con), 0); /* the old wait has not ended yet */
	host_types(p[1], "two");
	guest_receives("two");
	console_detach(&con);
	turn();
	turn();
	host_types(p[1], "three");
	for (unsigned i = 0; i < 5; i++)
		turn();
	ck_assert_uint_eq(chan_recv_avail(&chan), 0);
	ck_assert_int_eq(console_attach(&con), 0);
	guest_receives("three");
	console_destroy(&con);
	close(p[0]);
	close(p[1]);
}
END_TEST

START_TEST(test_flush)
{
	uint64_t before;
	uint8_t *want;
	int p[2];

	ck_assert_int_eq(pipe(p), 0);
	start(-1, p[1]);
	guest_prints("last words");
	console_flush(&con, PATIENCE);
	expect_text(p[0], "last words");
	ck_assert_uint_eq(chan_host_pending(&chan), 0);

	fcntl(p[1], F_SETPIPE_SZ, 4096);
	ck_assert_uint_eq(fill_guest_output(), CHAN_OUT_SIZE);
	before = now_ns();
	console_flush(&con, 100 * NS_PER_MS);
	ck_assert_uint_ge(now_ns() - before, 100 * NS_PER_MS);
	ck_assert_uint_lt(now_ns() - before, 5 * NS_PER_SEC);
	want = filled(CHAN_OUT_SIZE);
	expect_bytes(p[0], want, CHAN_OUT_SIZE);
	free(want);
	close(p[0]);
	ck_assert_uint_eq(fill_guest_output(), CHAN_OUT_SIZE);
	console_flush(&con, PATIENCE); /* nobody reads: nothing to wait for */
	ck_assert_uint_eq(chan_host_pending(&chan), 0);
	console_destroy(&con);
	close(p[1]);
}
END_TEST

static unsigned open_fds(void)
{
	unsigned n = 0;

	for (int fd = 0; fd < 1024; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

START_TEST(test_descriptors_are_left_alone)
{
	int master, slave, p[2], flags_tty, flags_pipe;
	unsigned before;

	ck_assert_int_eq(openpty(&master, &slave, NULL, NULL, NULL), 0);
	ck_assert_int_eq(pipe(p), 0);
	flags_tty = fcntl(slave, F_GETFL);
	flags_pipe = fcntl(p[1], F_GETFL);
	before = open_fds();
	start(slave, p[1]);
	ck_assert_int_eq(console_attach(&con), 0);
	guest_prints("x");
	expect_text(p[0], "x");
	ck_assert_int_eq(fcntl(slave, F_GETFL), flags_tty);
	ck_assert_int_eq(fcntl(p[1], F_GETFL), flags_pipe);
	console_destroy(&con);
	ck_assert_uint_eq(open_fds(), before);
	close(p[0]);
	close(p[1]);
	close(master);
	close(slave);
}
END_TEST

static bool is_raw(int fd)
{
	struct termios t;

	ck_assert_int_eq(tcgetattr(fd, &t), 0);
	return !(t.c_lflag & (ICANON | ECHO | ISIG)) && !(t.c_oflag & OPOST) &&
	       !(t.c_iflag & (ICRNL | IXON));
}

static void check_same(int fd, const struct termios *want)
{
	struct termios t;

	ck_assert_int_eq(tcgetattr(fd, &t), 0);
	ck_assert_uint_eq(t.c_iflag, want->c_iflag);
	ck_assert_uint_eq(t.c_oflag, want->c_oflag);
	ck_assert_uint_eq(t.c_cflag, want->c_cflag);
	ck_assert_uint_eq(t.c_lflag, want->c_lflag);
	ck_assert_mem_eq(t.c_cc, want->c_cc, sizeof(t.c_cc));
}

START_TEST(test_terminal)
{
	struct termios cooked;
	struct console second;
	struct chan other;
	int master, slave;

	ck_assert_int_eq(openpty(&master, &slave, NULL, NULL, NULL), 0);
	ck_assert_int_eq(tcgetattr(slave, &cooked), 0);
	start(slave, slave);
	check_same(slave, &cooked);
	ck_assert_int_eq(console_attach(&con), 0);
	ck_assert(is_raw(slave));
	host_types(master, "ls\r\x03\x1a\x04");
	guest_receives("ls\r\x03\x1a\x04"); /* Ctrl-C, -Z and -D are the guest's */
	guest_prints("a\nb\r\n");
	expect_text(master, "a\nb\r\n");

	ck_assert_int_eq(chan_init(&other), 0);
	ck_assert_int_eq(console_init(&second, &loop, &other, slave, -1, NULL, NULL), 0);
	ck_assert_int_eq(console_attach(&second), -EBUSY);
	console_destroy(&second);
	chan_destroy(&other);
	ck_assert(is_raw(slave));

	console_detach(&con);
	check_same(slave, &cooked);
	ck_assert_int_eq(console_attach(&con), 0);
	ck_assert(is_raw(slave));
	console_destroy(&con);
	check_same(slave, &cooked);
	close(master);
	close(slave);
}
END_TEST

/* A raw terminal does not turn LF into CR LF, and a log on it would go down in steps. */
START_TEST(test_log_on_terminal)
{
	int master, slave, saved = dup(STDERR_FILENO);

	ck_assert_int_eq(openpty(&master, &slave, NULL, NULL, NULL), 0);
	dup2(slave, STDERR_FILENO);
	start(slave, -1);
	ck_assert_int_eq(console_attach(&con), 0);
	log_info("raw");
	console_detach(&con);
	log_info("cooked");
	dup2(saved, STDERR_FILENO);
	close(saved);
	expect_text(master, "godwit: raw\r\ngodwit: cooked\r\n");
	console_destroy(&con);
	close(master);
	close(slave);
}
END_TEST

START_TEST(test_escape_keys)
{
	char help[512] = "";
	int master, slave, err[2], saved = dup(STDERR_FILENO);

	ck_assert_int_eq(openpty(&master, &slave, NULL, NULL, NULL), 0);
	ck_assert_int_eq(pipe(err), 0);
	start(slave, -1);
	ck_assert_int_eq(console_attach(&con), 0);
	host_types(master, "1\x01"
			   "a2\x01\x01"
			   "3\x01q4");
	guest_receives("1\x01"
		       "2\x01"
		       "34");
	/* In two reads. */
	host_types(master, "\x01");
	for (uint64_t end = now_ns() + PATIENCE; !con.escape && now_ns() < end;)
		turn();
	host_types(master, "a!");
	guest_receives("\x01!");

	dup2(err[1], STDERR_FILENO);
	host_types(master, "\x01h.");
	guest_receives(".");
	dup2(saved, STDERR_FILENO);
	close(err[1]);
	ck_assert_int_gt(read(err[0], help, sizeof(help) - 1), 0);
	ck_assert_ptr_nonnull(strstr(help, "Ctrl-A x"));

	ck_assert_uint_eq(quits, 0);
	host_types(master, "bye\x01x");
	guest_receives("bye");
	for (uint64_t end = now_ns() + PATIENCE; quits == 0 && now_ns() < end;)
		turn();
	ck_assert_uint_eq(quits, 1);
	console_destroy(&con);
	close(saved);
	close(err[0]);
	close(master);
	close(slave);
}
END_TEST

START_TEST(test_terminal_hangs_up)
{
	int master, slave, out[2];

	ck_assert_int_eq(openpty(&master, &slave, NULL, NULL, NULL), 0);
	ck_assert_int_eq(pipe(out), 0);
	start(slave, out[1]);
	ck_assert_int_eq(console_attach(&con), 0);
	close(master);
	for (uint64_t end = now_ns() + PATIENCE; !con.in_eof && now_ns() < end;)
		turn();
	ck_assert(con.in_eof);
	guest_prints("alone");
	expect_text(out[0], "alone");
	console_destroy(&con);
	close(slave);
	close(out[0]);
	close(out[1]);
}
END_TEST

enum way_out {
	OUT_EXIT,
	OUT_SIGTERM,
	OUT_SIGINT,
	OUT_SIGHUP,
	OUT_SIGQUIT,
	OUT_ABORT,
	OUT_FAULT,
	OUT_THREAD_FAULT,
	N_WAYS_OUT,
};

static void *fault(void *arg)
{
	*(volatile int *)arg = 1;
	return NULL;
}

/* A process that owns the terminal and ends in one of the ways. Never returns. */
static void leave(enum way_out way, int slave, int ready)
{
	void *forbidden = mmap(NULL, PAGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	pthread_t t;
	int null = open("/dev/null", O_WRONLY);

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	/* A sanitizer's report of the intended fault is not what the reader wants to see. */
	dup2(null, STDERR_FILENO);
	setpgid(0, 0);
	signal(SIGINT, SIG_DFL); /* Check has its own */
	signal(SIGTERM, SIG_DFL);
	chan_destroy(&chan);
	if (loop_init(&loop) || chan_init(&chan) ||
	    console_init(&con, &loop, &chan, slave, -1, NULL, NULL) || console_attach(&con))
		_exit(99);
	if (!is_raw(slave) || write(ready, "", 1) != 1)
		_exit(98);
	switch (way) {
	case OUT_EXIT:
		exit(7);
	case OUT_ABORT:
		abort();
	case OUT_FAULT:
		fault(forbidden);
		break;
	case OUT_THREAD_FAULT:
		pthread_create(&t, NULL, fault, forbidden);
		break;
	default:
		break;
	}
	for (uint64_t end = now_ns() + PATIENCE; now_ns() < end;)
		loop_step(&loop, NS_PER_SEC);
	_exit(97);
}

START_TEST(test_every_way_out)
{
	static const int by_signal[N_WAYS_OUT] = {
		[OUT_SIGTERM] = SIGTERM,
		[OUT_SIGINT] = SIGINT,
		[OUT_SIGHUP] = SIGHUP,
		[OUT_SIGQUIT] = SIGQUIT,
	};
	int master, slave, ready[2], status;
	struct termios cooked;
	pid_t pid;
	char b;

	ck_assert_int_eq(openpty(&master, &slave, NULL, NULL, NULL), 0);
	ck_assert_int_eq(tcgetattr(slave, &cooked), 0);
	ck_assert_int_eq(pipe(ready), 0);
	pid = fork();
	if (pid == 0)
		leave((enum way_out)_i, slave, ready[1]);
	ck_assert_int_eq(read(ready[0], &b, 1), 1);
	if (by_signal[_i])
		kill(pid, by_signal[_i]);
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	check_same(slave, &cooked);
	/* And it died of what it died of; a sanitizer turns faults into exits of its own. */
	if (by_signal[_i]) {
		ck_assert(WIFSIGNALED(status));
		ck_assert_int_eq(WTERMSIG(status), by_signal[_i]);
	} else if (_i == OUT_EXIT) {
		ck_assert(WIFEXITED(status));
		ck_assert_int_eq(WEXITSTATUS(status), 7);
	} else {
		ck_assert(!WIFEXITED(status) || WEXITSTATUS(status) < 97);
	}
	close(master);
	close(slave);
	close(ready[0]);
	close(ready[1]);
}
END_TEST

static volatile sig_atomic_t mine;

static void my_handler(int sig)
{
	mine = sig;
}

START_TEST(test_others_handlers_stay)
{
	struct sigaction act;
	int master, slave;

	signal(SIGTERM, my_handler);
	signal(SIGHUP, SIG_IGN);
	signal(SIGINT, SIG_DFL); /* Check has its own */
	ck_assert_int_eq(openpty(&master, &slave, NULL, NULL, NULL), 0);
	start(slave, -1);
	ck_assert_int_eq(console_attach(&con), 0);
	raise(SIGTERM);
	ck_assert_int_eq(mine, SIGTERM);
	raise(SIGHUP);
	ck_assert(is_raw(slave));
	console_destroy(&con);
	ck_assert_int_eq(sigaction(SIGTERM, NULL, &act), 0);
	ck_assert_ptr_eq((void *)act.sa_handler, (void *)my_handler);
	ck_assert_int_eq(sigaction(SIGINT, NULL, &act), 0);
	ck_assert(act.sa_handler == SIG_DFL);
	close(master);
	close(slave);
}
END_TEST

static bool wait_raw(int fd, bool raw)
{
	struct pollfd never = {.fd = -1};

	for (uint64_t end = now_ns() + PATIENCE; now_ns() < end; poll(&never, 1, 5)) {
		if (is_raw(fd) == raw)
			return true;
	}
	return false;
}

START_TEST(test_stop_and_continue)
{
	int master, slave, ready[2], status;
	struct termios cooked;
	pid_t pid;
	char b;

	ck_assert_int_eq(openpty(&master, &slave, NULL, NULL, NULL), 0);
	ck_assert_int_eq(tcgetattr(slave, &cooked), 0);
	ck_assert_int_eq(pipe(ready), 0);
	pid = fork();
	if (pid == 0)
		leave(OUT_SIGTERM, slave, ready[1]);
	ck_assert_int_eq(read(ready[0], &b, 1), 1);
	for (unsigned i = 0; i < 2; i++) {
		kill(pid, SIGTSTP);
		ck_assert_int_eq(waitpid(pid, &status, WUNTRACED), pid);
		ck_assert(WIFSTOPPED(status));
		ck_assert_int_eq(WSTOPSIG(status), SIGTSTP);
		check_same(slave, &cooked);
		kill(pid, SIGCONT);
		ck_assert(wait_raw(slave, true));
	}
	kill(pid, SIGTERM);
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert(WIFSIGNALED(status));
	check_same(slave, &cooked);
	close(master);
	close(slave);
	close(ready[0]);
	close(ready[1]);
}
END_TEST

/*
 * A job in the background of its terminal: the session's leader stands for the shell. Exit status 0
 * when the job left the terminal alone, then took it when it came to the foreground.
 */
static void shell(int slave)
{
	struct termios cooked;
	int go[2], status;
	pid_t job;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (setsid() < 0 || ioctl(slave, TIOCSCTTY, 0) < 0 || tcgetattr(slave, &cooked) || pipe(go))
		_exit(10);
	signal(SIGTTOU, SIG_IGN);
	job = fork();
	if (job == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		signal(SIGTTOU, SIG_DFL);
		setpgid(0, 0);
		if (loop_init(&loop) || chan_init(&chan) ||
		    console_init(&con, &loop, &chan, slave, -1, NULL, NULL) || console_attach(&con))
			_exit(1);
		for (unsigned i = 0; i < 5; i++)
			loop_step(&loop, 20 * NS_PER_MS);
		if (is_raw(slave) || write(go[1], "", 1) != 1)
			_exit(2);
		for (uint64_t end = now_ns() + PATIENCE; !chan_recv_avail(&chan) && now_ns() < end;)
			loop_step(&loop, 20 * NS_PER_MS);
		_exit(chan_recv_avail(&chan) && is_raw(slave) ? 0 : 3);
	}
	setpgid(job, job);
	if (read(go[0], &status, 1) != 1)
		_exit(11);
	if (tcsetpgrp(slave, job) || !wait_raw(slave, true))
		_exit(12);
	/* The host's keystroke is typed by the test when it sees the terminal raw. */
	if (waitpid(job, &status, WUNTRACED) != job || !WIFEXITED(status))
		_exit(13);
	_exit(WEXITSTATUS(status));
}

START_TEST(test_background_job)
{
	int master, slave, status;
	pid_t pid;

	ck_assert_int_eq(openpty(&master, &slave, NULL, NULL, NULL), 0);
	pid = fork();
	if (pid == 0) {
		close(master);
		shell(slave);
	}
	ck_assert(wait_raw(slave, true));
	host_types(master, "k");
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert(WIFEXITED(status));
	ck_assert_int_eq(WEXITSTATUS(status), 0);
	close(master);
	close(slave);
}
END_TEST

#define STRESS_BYTES 300000U

static void *vcpu(void *arg)
{
	uint64_t deadline = now_ns() + 2 * PATIENCE;

	(void)arg;
	for (size_t i = 0; i < STRESS_BYTES && now_ns() < deadline;) {
		uint8_t b = (uint8_t)(i * 31 + i / 257);

		i += chan_send(&chan, &b, 1);
	}
	return NULL;
}

START_TEST(test_threads)
{
	uint8_t *want = filled(STRESS_BYTES);
	pthread_t t;
	int p[2];

	ck_assert_int_eq(pipe(p), 0);
	start(-1, p[1]);
	pthread_create(&t, NULL, vcpu, NULL);
	expect_bytes(p[0], want, STRESS_BYTES);
	pthread_join(t, NULL);
	console_destroy(&con);
	free(want);
	close(p[0]);
	close(p[1]);
}
END_TEST

static Suite *console_suite(void)
{
	Suite *s = suite_create("console");
	TCase *t = tcase_create("console");

	tcase_add_checked_fixture(t, setup, teardown);
	tcase_set_timeout(t, 60);
	tcase_add_test(t, test_output_to_pipe);
	tcase_add_test(t, test_output_to_file);
	tcase_add_loop_test(t, test_output_to_nowhere, 0, 3);
	tcase_add_test(t, test_reader_goes_away);
	tcase_add_test(t, test_stuck_pipe_reader);
	tcase_add_test(t, test_shared_socket);
	tcase_add_test(t, test_stuck_terminal_reader);
	tcase_add_test(t, test_input_from_pipe);
	tcase_add_loop_test(t, test_input_ends, 0, 3);
	tcase_add_test(t, test_input_waits_for_guest);
	tcase_add_test(t, test_freeze);
	tcase_add_test(t, test_detach_and_attach);
	tcase_add_test(t, test_flush);
	tcase_add_test(t, test_descriptors_are_left_alone);
	tcase_add_test(t, test_terminal);
	tcase_add_test(t, test_log_on_terminal);
	tcase_add_test(t, test_escape_keys);
	tcase_add_test(t, test_terminal_hangs_up);
	tcase_add_loop_test(t, test_every_way_out, 0, N_WAYS_OUT);
	tcase_add_test(t, test_others_handlers_stay);
	tcase_add_test(t, test_stop_and_continue);
	tcase_add_test(t, test_background_job);
	tcase_add_test(t, test_threads);
	suite_add_tcase(s, t);
	return s;
}

int main(void)
{
	SRunner *runner = srunner_create(console_suite());
	int failed;

	srunner_run_all(runner, CK_ENV);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
