/* SPDX-License-Identifier: MIT */
/* The end inside: process 1, and one more for each connection. See agent.h. */

#define _GNU_SOURCE
#include "agent.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define REQUEST_MS 10000 /* from connecting to a whole request */
#define HANGUP_MS 5000	 /* what an orphaned command gets between HUP and KILL */
#define PIPE_READS 17	 /* more reads than the largest pipe can fill */

struct session {
	int sock;
	pid_t pid; /* the command, leader of its process group */
	int pidfd;
	int in, out, err; /* our ends of its descriptors, -1 when closed */
	bool tty;	  /* in and out are the terminal's other side */
	bool input_ended;
	size_t pending; /* input that it has not taken yet */
	unsigned char input[CREDIT];
	struct rx rx;
};

/* Reads and checks a request; *blob owns the memory behind the three pointers. */
static int read_request(int sock, const char *secret, struct request *req, char **blob, char **cwd,
			char ***argv, char ***envp)
{
	int64_t deadline = now_ms() + REQUEST_MS;
	struct frame frame;
	size_t len, count;
	char **strings;
	char *p, *end;
	int ret;

	ret = read_all(sock, &frame, sizeof(frame), deadline);
	if (ret)
		return ret;
	if (frame.type != FRAME_REQUEST || frame.length < sizeof(*req) ||
	    frame.length > REQUEST_MAX)
		return -EPROTO;
	ret = read_all(sock, req, sizeof(*req), deadline);
	if (ret)
		return ret;
	if (memcmp(req->secret, secret, SECRET_LEN))
		return -EACCES;
	len = frame.length - sizeof(*req);
	if (req->argc == 0 || req->argc > len || req->envc > len)
		return -EPROTO;

	/* The strings, and behind them two NULL-terminated arrays of pointers to them. */
	count = 1 + (size_t)req->argc + req->envc;
	strings = calloc(count + 2, sizeof(*strings));
	*blob = calloc(1, len + 1);
	if (!strings || !*blob)
		return -ENOMEM;
	ret = read_all(sock, *blob, len, deadline);
	if (ret)
		return ret;
	p = *blob;
	end = p + len;
	*cwd = p;
	*argv = strings;
	*envp = strings + req->argc + 1;
	for (size_t i = 0; i < count; i++) {
		if (p >= end)
			return -EPROTO;
		if (i > 0 && i <= req->argc)
			(*argv)[i - 1] = p;
		else if (i > req->argc)
			(*envp)[i - 1 - req->argc] = p;
		p += strlen(p) + 1;
	}
	return 0;
}

static int open_terminal(const struct winsize *window, int *master, int *slave)
{
	char name[64];

	*master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (*master < 0)
		return -errno;
	if (unlockpt(*master) || ptsname_r(*master, name, sizeof(name)))
		return -errno;
	*slave = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (*slave < 0)
		return -errno;
	ioctl(*master, TIOCSWINSZ, window);
	return 0;
}

/* In the child; says on `report` what failed, or lets exec close it. */
static void run_command(const int fds[3], bool tty, const char *cwd, char **argv, char **envp,
			int report)
{
	sigset_t none;
	int err;

	setsid();
	if (tty)
		ioctl(fds[0], TIOCSCTTY, 0);
	for (int i = 0; i < 3; i++)
		if (dup2(fds[i], i) < 0)
			goto fail;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_DFL);
	signal(SIGCHLD, SIG_DFL);
	if (chdir(cwd)) {
		dprintf(2, "emulated-host: %s is not there inside (--add it); working in /\n", cwd);
		if (chdir("/"))
			goto fail;
	}
	environ = envp;
	execvp(argv[0], argv);
fail:
	err = errno;
	write_all(report, &err, sizeof(err));
	_exit(127);
}

/* Starts the command. 0, or -errno with nothing started; a failed exec sets *exec_errno. */
static int spawn(struct session *s, const struct request *req, const char *cwd, char **argv,
		 char **envp, int *exec_errno)
{
	int pipes[4][2] = {{-1, -1}, {-1, -1}, {-1, -1}, {-1, -1}};
	int slave = -1, fds[3], ret = 0;

	s->tty = req->flags & WANT_TTY;
	for (int i = 0; i < 4; i++)
		if (pipe2(pipes[i], O_CLOEXEC)) {
			ret = -errno;
			goto out;
		}
	fds[0] = pipes[0][0];
	fds[1] = pipes[1][1];
	fds[2] = pipes[2][1];
	if (s->tty) {
		ret = open_terminal(&req->window, &s->out, &slave);
		if (ret)
			goto out;
		fds[0] = slave;
		fds[1] = slave;
		if (!(req->flags & WANT_STDERR))
			fds[2] = slave;
	}

	s->pid = fork();
	if (s->pid < 0) {
		ret = -errno;
		goto out;
	}
	if (s->pid == 0)
		run_command(fds, s->tty, cwd, argv, envp, pipes[3][1]);

	close_fd(&pipes[3][1]);
	if (read(pipes[3][0], exec_errno, sizeof(*exec_errno)) != sizeof(*exec_errno))
		*exec_errno = 0;
	s->pidfd = (int)syscall(SYS_pidfd_open, s->pid, 0);
	if (s->pidfd < 0) {
		ret = -errno;
		goto out;
	}
	if (s->tty) {
		s->in = fcntl(s->out, F_DUPFD_CLOEXEC, 0);
	} else {
		s->in = pipes[0][1];
		s->out = pipes[1][0];
		pipes[0][1] = -1;
		pipes[1][0] = -1;
	}
	s->err = pipes[2][0];
	pipes[2][0] = -1;
	fcntl(s->in, F_SETFL, O_NONBLOCK);
	fcntl(s->out, F_SETFL, O_NONBLOCK);
	fcntl(s->err, F_SETFL, O_NONBLOCK);
out:
	for (int i = 0; i < 4; i++) {
		close_fd(&pipes[i][0]);
		close_fd(&pipes[i][1]);
	}
	close_fd(&slave);
	return ret;
}

/* Passes on one read of *fd, closing it at its end. Returns 1 when there may be more. */
static int pass_output(struct session *s, int *fd, enum frame_type type)
{
	char buf[FRAME_MAX];
	ssize_t n;
	int ret;

	if (*fd < 0)
		return 0;
	n = read(*fd, buf, sizeof(buf));
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (n <= 0) { /* a terminal's end is EIO */
		close_fd(fd);
		return 0;
	}
	ret = send_frame(s->sock, type, buf, (size_t)n);
	return ret ? ret : 1;
}

static int pass_input(struct session *s)
{
	ssize_t n = 0;
	int ret = 0;

	if (s->pending && s->in >= 0) {
		n = write(s->in, s->input, s->pending);
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return 0;
		if (n < 0)
			close_fd(&s->in);
	}
	if (s->in < 0) /* nobody will read it: let the client send what it has */
		n = (ssize_t)s->pending;
	if (n > 0) {
		s->pending -= (size_t)n;
		memmove(s->input, s->input + n, s->pending);
		ret = send_u32(s->sock, FRAME_CREDIT, (uint32_t)n);
	}
	if (s->input_ended && !s->pending && s->in >= 0) {
		/* A terminal has no end of file but the character for it. */
		if (s->tty && write(s->in, "\004", 1) < 0 && errno == EAGAIN)
			return ret;
		close_fd(&s->in);
	}
	return ret;
}

static int handle_frames(struct session *s)
{
	struct frame frame;
	int ret;

	while ((ret = rx_peek(&s->rx, &frame)) > 0) {
		const unsigned char *data = rx_data(&s->rx);

		switch (frame.type) {
		case FRAME_STDIN:
			if (s->pending + frame.length > sizeof(s->input))
				return -EPROTO;
			memcpy(s->input + s->pending, data, frame.length);
			s->pending += frame.length;
			s->input_ended |= !frame.length;
			break;
		case FRAME_SIGNAL:
			kill(-s->pid, (int)rx_u32(&s->rx, &frame));
			break;
		case FRAME_WINDOW:
			if (s->tty && frame.length == sizeof(struct winsize))
				ioctl(s->out, TIOCSWINSZ, data);
			break;
		default:
			return -EPROTO;
		}
		rx_drop(&s->rx, &frame);
	}
	return ret;
}

/* Until the command ends (0) or the client does (-errno). */
static int session_loop(struct session *s)
{
	int ret;

	for (;;) {
		struct pollfd pfd[] = {
			{.fd = s->sock, .events = POLLIN},
			{.fd = s->pidfd, .events = POLLIN},
			{.fd = s->out, .events = POLLIN},
			{.fd = s->err, .events = POLLIN},
			{.fd = s->pending || s->input_ended ? s->in : -1, .events = POLLOUT},
		};
		int n = poll(pfd, 5, ALIVE_MS);

		if (n == 0) {
			ret = send_frame(s->sock, FRAME_ALIVE, NULL, 0);
			if (ret)
				return ret;
		}
		if (n <= 0)
			continue;
		if (pfd[0].revents) {
			ret = rx_fill(&s->rx, s->sock);
			if (!ret)
				ret = handle_frames(s);
			if (ret)
				return ret;
		}
		if (pfd[2].revents && (ret = pass_output(s, &s->out, FRAME_STDOUT)) < 0)
			return ret;
		if (pfd[3].revents && (ret = pass_output(s, &s->err, FRAME_STDERR)) < 0)
			return ret;
		ret = pass_input(s);
		if (ret)
			return ret;
		if (pfd[1].revents)
			break;
	}

	/* What the command itself wrote is in the pipes; what its children may yet write is not. */
	for (int i = 0; i < PIPE_READS; i++) {
		ret = pass_output(s, &s->out, FRAME_STDOUT);
		if (ret >= 0)
			ret = pass_output(s, &s->err, FRAME_STDERR);
		if (ret < 0)
			return ret;
	}
	return 0;
}

static int wait_status(pid_t pid)
{
	int status;

	if (waitpid(pid, &status, 0) != pid)
		return EXIT_LOST;
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

static void hang_up(struct session *s)
{
	struct pollfd pfd = {.fd = s->pidfd, .events = POLLIN};

	kill(-s->pid, SIGHUP);
	kill(-s->pid, SIGCONT);
	poll(&pfd, 1, HANGUP_MS);
	kill(-s->pid, SIGKILL);
}

static void session(int sock, const char *secret)
{
	static struct session s = {.pidfd = -1, .in = -1, .out = -1, .err = -1};
	char **argv, **envp, *cwd, *blob = NULL;
	struct request req;
	int exec_errno = 0, status, ret;
	char text[512];

	s.sock = sock;
	ret = read_request(sock, secret, &req, &blob, &cwd, &argv, &envp);
	if (ret == 0)
		ret = spawn(&s, &req, cwd, argv, envp, &exec_errno);
	if (ret) {
		snprintf(text, sizeof(text), "emulated-host: cannot run a command: %s\n",
			 strerror(-ret));
		send_frame(sock, FRAME_STDERR, text, strlen(text));
		send_u32(sock, FRAME_EXIT, EXIT_LOST);
		return;
	}
	ret = session_loop(&s);
	if (ret)
		hang_up(&s);
	status = wait_status(s.pid);
	if (exec_errno) {
		status = exec_errno == ENOENT ? 127 : 126;
		snprintf(text, sizeof(text), "emulated-host: %.400s: %s\n", argv[0],
			 strerror(exec_errno));
		send_frame(sock, FRAME_STDERR, text, strlen(text));
	}
	send_u32(sock, FRAME_EXIT, (uint32_t)status);
}

static void on_child(int sig)
{
	(void)sig;
}

int serve(uint16_t port, const char *secret_path)
{
	struct sockaddr_in addr = {
		.sin_family = AF_INET,
		.sin_port = htons(port),
	};
	struct sigaction sa = {.sa_handler = on_child};
	char secret[SECRET_LEN];
	sigset_t blocked, during;
	int fd, sock, one = 1;

	if (read_secret(secret_path, secret)) {
		fprintf(stderr, "emulated-host: failed: no secret in %s\n", secret_path);
		return 1;
	}

	signal(SIGPIPE, SIG_IGN);
	sigaction(SIGCHLD, &sa, NULL);
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGCHLD);
	sigprocmask(SIG_BLOCK, &blocked, &during);

	fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (fd < 0 || bind(fd, (struct sockaddr *)&addr, sizeof(addr)) || listen(fd, 64)) {
		perror("emulated-host: failed: cannot listen");
		return 1;
	}
	puts("emulated-host: ready");
	fflush(stdout);

	/* Takes connections, and buries whatever dies. */
	for (;;) {
		struct pollfd pfd = {.fd = fd, .events = POLLIN};
		pid_t pid;

		ppoll(&pfd, 1, NULL, &during);
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
		sock = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
		if (sock < 0)
			continue;
		setsockopt(sock, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		pid = fork();
		if (pid == 0) {
			close(fd);
			session(sock, secret);
			_exit(0);
		}
		if (pid < 0)
			perror("emulated-host: cannot fork");
		close(sock);
	}
}
