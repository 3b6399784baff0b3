/* SPDX-License-Identifier: MIT */
/* The end outside, which stands for the command that runs inside. See agent.h. */

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
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <termios.h>
#include <unistd.h>

#define LOG_TAIL 2000 /* bytes */

struct client {
	int sock;
	int signals;
	bool tty; /* our terminal is the command's */
	bool stdin_open;
	uint32_t credit;
	struct rx rx;
};

static int connect_host(uint16_t port)
{
	struct sockaddr_in addr = {
		.sin_family = AF_INET,
		.sin_port = htons(port),
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};
	int sock, one = 1;

	sock = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (sock < 0)
		return -errno;
	if (connect(sock, (struct sockaddr *)&addr, sizeof(addr))) {
		int ret = -errno;

		close(sock);
		return ret;
	}
	setsockopt(sock, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	return sock;
}

static int send_request(const struct client *c, const char *secret, char **argv)
{
	struct request req = {.flags = 0};
	size_t size = 0, used;
	char *cwd, *buf = NULL;
	FILE *f;
	int ret;

	memcpy(req.secret, secret, SECRET_LEN);
	if (c->tty) {
		req.flags |= WANT_TTY;
		if (!isatty(2))
			req.flags |= WANT_STDERR;
		ioctl(0, TIOCGWINSZ, &req.window);
	}
	while (argv[req.argc])
		req.argc++;
	while (environ[req.envc])
		req.envc++;

	cwd = getcwd(NULL, 0);
	f = open_memstream(&buf, &size);
	if (!f)
		return -ENOMEM;
	fwrite(&req, sizeof(req), 1, f);
	fputs(cwd ? cwd : "/", f);
	fputc('\0', f);
	for (uint32_t i = 0; i < req.argc; i++)
		fwrite(argv[i], strlen(argv[i]) + 1, 1, f);
	for (uint32_t i = 0; i < req.envc; i++)
		fwrite(environ[i], strlen(environ[i]) + 1, 1, f);
	used = (size_t)ftell(f);
	ret = fclose(f) ? -ENOMEM : 0;
	if (!ret && used > REQUEST_MAX)
		ret = -E2BIG;
	if (!ret)
		ret = send_frame(c->sock, FRAME_REQUEST, buf, used);
	free(buf);
	free(cwd);
	return ret;
}

static int pass_stdin(struct client *c)
{
	char buf[FRAME_MAX];
	ssize_t n = read(0, buf, c->credit < sizeof(buf) ? c->credit : sizeof(buf));

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (n <= 0) {
		c->stdin_open = false;
		n = 0;
	}
	c->credit -= (uint32_t)n;
	return send_frame(c->sock, FRAME_STDIN, buf, (size_t)n);
}

static int pass_signal(struct client *c)
{
	struct signalfd_siginfo info;
	struct winsize window;

	if (read(c->signals, &info, sizeof(info)) != sizeof(info))
		return 0;
	if (info.ssi_signo != SIGWINCH)
		return send_u32(c->sock, FRAME_SIGNAL, info.ssi_signo);
	if (ioctl(0, TIOCGWINSZ, &window))
		return 0;
	return send_frame(c->sock, FRAME_WINDOW, &window, sizeof(window));
}

/* 0 to go on, 1 when the command has ended with *status, -errno. */
static int handle_replies(struct client *c, int *status)
{
	struct frame frame;
	int ret;

	while ((ret = rx_peek(&c->rx, &frame)) > 0) {
		const unsigned char *data = rx_data(&c->rx);

		switch (frame.type) {
		case FRAME_STDOUT:
		case FRAME_STDERR:
			ret = write_all(frame.type == FRAME_STDOUT ? 1 : 2, data, frame.length);
			if (ret == -EPIPE) { /* as if the command had written there itself */
				*status = 128 + SIGPIPE;
				return 1;
			}
			break;
		case FRAME_CREDIT:
			c->credit += rx_u32(&c->rx, &frame);
			break;
		case FRAME_ALIVE:
			break;
		case FRAME_EXIT:
			*status = (int)rx_u32(&c->rx, &frame);
			return 1;
		default:
			return -EPROTO;
		}
		rx_drop(&c->rx, &frame);
	}
	return ret;
}

static int client_loop(struct client *c, int *status)
{
	int64_t heard = now_ms();
	int ret;

	for (;;) {
		struct pollfd pfd[] = {
			{.fd = c->sock, .events = POLLIN},
			{.fd = c->signals, .events = POLLIN},
			{.fd = c->stdin_open && c->credit ? 0 : -1, .events = POLLIN},
		};
		int n = poll(pfd, 3, ALIVE_MS);

		if (n < 0)
			continue;
		if (pfd[0].revents) {
			ret = rx_fill(&c->rx, c->sock);
			if (!ret)
				ret = handle_replies(c, status);
			if (ret)
				return ret;
			heard = now_ms();
		} else if (now_ms() - heard > SILENCE_MS) {
			return -ETIMEDOUT;
		}
		if (pfd[1].revents && (ret = pass_signal(c)))
			return ret;
		if (pfd[2].revents && (ret = pass_stdin(c)))
			return ret;
	}
}

static void print_log_tail(const char *path)
{
	char buf[LOG_TAIL];
	ssize_t n;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return;
	if (lseek(fd, -LOG_TAIL, SEEK_END) < 0)
		lseek(fd, 0, SEEK_SET);
	n = read(fd, buf, sizeof(buf));
	if (n > 0) {
		fprintf(stderr, "emulated-host: its console log ends so:\n");
		fwrite(buf, 1, (size_t)n, stderr);
	}
	close(fd);
}

static int open_signals(void)
{
	static const int forwarded[] = {SIGINT,	 SIGTERM, SIGHUP,  SIGQUIT,
					SIGUSR1, SIGUSR2, SIGWINCH};
	sigset_t set;

	sigemptyset(&set);
	for (size_t i = 0; i < sizeof(forwarded) / sizeof(forwarded[0]); i++) {
		/* A shell starts background jobs with SIGINT ignored, and then it never comes. */
		signal(forwarded[i], SIG_DFL);
		sigaddset(&set, forwarded[i]);
	}
	signal(SIGPIPE, SIG_IGN);
	sigprocmask(SIG_BLOCK, &set, NULL);
	return signalfd(-1, &set, SFD_CLOEXEC);
}

int exec_in_host(uint16_t port, const char *secret_path, const char *log, bool pipes, char **argv)
{
	static struct client c = {.stdin_open = true, .credit = CREDIT};
	struct termios saved, raw;
	char secret[SECRET_LEN];
	bool restore = false;
	int status = EXIT_LOST;
	int ret;

	ret = read_secret(secret_path, secret);
	if (ret) {
		fprintf(stderr, "emulated-host: %s: %s\n", secret_path, strerror(-ret));
		return EXIT_LOST;
	}
	c.tty = !pipes && isatty(0) && isatty(1);
	c.signals = open_signals();
	c.sock = connect_host(port);
	ret = c.sock < 0 ? c.sock : send_request(&c, secret, argv);
	if (ret)
		goto out;
	if (c.tty && tcgetattr(0, &saved) == 0) {
		raw = saved;
		cfmakeraw(&raw);
		restore = tcsetattr(0, TCSADRAIN, &raw) == 0;
	}
	ret = client_loop(&c, &status);
	if (restore)
		tcsetattr(0, TCSADRAIN, &saved);
out:
	if (ret < 0) {
		fprintf(stderr, "emulated-host: lost the emulated host: %s\n",
			ret == -ETIMEDOUT ? "it no longer answers" : strerror(-ret));
		print_log_tail(log);
		return EXIT_LOST;
	}
	return status;
}
