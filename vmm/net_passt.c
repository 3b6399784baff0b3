/* SPDX-License-Identifier: MIT */
/*
 * passt, a child process that is a router, DHCP server and socket proxy in one and needs no
 * privilege: it turns the guest's frames into ordinary sockets of the host.
 *
 * Theory of operation: we make a pair of sockets and start passt in the foreground on one of them
 * (--fd), over which frames go as net_stream.h says. Nothing has a name in the file system, so two
 * machines never collide, and it does not matter that passt turns into "nobody" when it is started
 * by root. Its standard output is a pipe that it writes its "PID file" to, which it does when it
 * is set up: that is how we know that its ports are bound. Its standard error is a pipe, too, that
 * never blocks it and of which the last line is quoted when it ends.
 *
 * With --fd passt ends when the socket closes, so it cannot outlive us however we end.
 * (PR_SET_PDEATHSIG would not do: the kernel forgets it when passt changes its user, and takes the
 * end of the thread that started it for ours.)
 *
 * passt offloads nothing; frames as large as IP allows make up for it. TCP connections are
 * between passt and their peers, so they do not move with the guest: they break.
 */
#include "net_backend.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "net_stream.h"
#include "util.h"

#define PROGRAM "passt"
#define PASST_MTU 65520 /* the largest that it takes */
#define CHILD_FD 3	/* of the socket, in the child */
#define SPEC_MAX 64

extern char **environ;

struct net_passt {
	struct net_backend b;
	struct net_stream stream;
	pid_t pid; /* 0 when there is none */
	bool ready;
	int pid_fd, ready_fd, words_fd;
};

static struct net_passt *to_passt(struct net_backend *b)
{
	return container_of(b, struct net_passt, b);
}

static int not_installed(struct errmsg *err)
{
	return errmsg_set(
		err, -ENOENT,
		"user networking needs the program " PROGRAM
		", which is not in $PATH; install the Debian package passt, or use a tap");
}

/* What passt is told; its own syntax has no room for anything but addresses and ports. */
static int check_forward(const struct vm_forward *f, struct errmsg *err)
{
	struct in6_addr addr;

	if (f->host[0] && inet_pton(AF_INET, f->host, &addr) != 1 &&
	    inet_pton(AF_INET6, f->host, &addr) != 1)
		return errmsg_set(err, -EINVAL,
				  "port forwarding: %s is not the numeric address of this host",
				  f->host);
	if (f->host_port == 0 || f->guest_port == 0)
		return errmsg_set(err, -EINVAL, "port forwarding: there is no port 0");
	return 0;
}

static int check_forwards(const struct vm_net *cfg, struct errmsg *err)
{
	if (cfg->n_forwards > VM_MAX_FORWARDS)
		return errmsg_set(err, -EINVAL, "port forwarding: at most %d", VM_MAX_FORWARDS);
	for (uint32_t i = 0; i < cfg->n_forwards; i++) {
		int ret = check_forward(&cfg->forward[i], err);

		if (ret)
			return ret;
	}
	return 0;
}

static int passt_check(const struct vm_net *cfg, struct errmsg *err)
{
	const char *path = getenv("PATH");
	int ret = check_forwards(cfg, err);

	if (ret)
		return ret;
	/* As execvp() goes about it. */
	for (const char *dir = path ? path : ""; *dir; dir += *dir == ':') {
		size_t len = strcspn(dir, ":");
		char file[4096];
		int n = snprintf(file, sizeof(file), "%.*s/%s", (int)len, dir, PROGRAM);

		if (n > 0 && (size_t)n < sizeof(file) && access(file, X_OK) == 0)
			return 0;
		dir += len;
	}
	return not_installed(err);
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

/* The last line of what it has said on its standard error, fit to be quoted; "" for none. */
static void last_words(const struct net_passt *p, char *line, size_t size)
{
	char text[4096];
	size_t len = 0;
	ssize_t n;

	line[0] = '\0';
	do {
		/* Of more than fits, the end. */
		if (len > sizeof(text) / 2) {
			memmove(text, text + len - sizeof(text) / 2, sizeof(text) / 2);
			len = sizeof(text) / 2;
		}
		n = read(p->words_fd, text + len, sizeof(text) - 1 - len);
		len += n > 0 ? (size_t)n : 0;
	} while (n > 0 || (n < 0 && errno == EINTR));
	text[len] = '\0';
	for (char *save = NULL, *s = strtok_r(text, "\r\n", &save); s;
	     s = strtok_r(NULL, "\r\n", &save)) {
		/* Where no syslog runs it complains of that, too. */
		if (strstr(s, "to syslog"))
			continue;
		snprintf(line, size, "%s", s);
	}
	for (char *c = line; *c; c++) {
		if (*c < ' ' || *c > '~')
			*c = '?';
	}
}

static void describe_end(struct net_passt *p, int status)
{
	char words[256], how[64];

	if (WIFEXITED(status))
		snprintf(how, sizeof(how), "ended with exit status %d", WEXITSTATUS(status));
	else
		snprintf(how, sizeof(how), "was ended by signal %d", WTERMSIG(status));
	last_words(p, words, sizeof(words));
	errmsg_set(&p->b.gone, -ENOLINK, PROGRAM " %s%s%s", how, words[0] ? ": " : "", words);
}

static void passt_close(struct net_backend *b)
{
	struct net_passt *p = to_passt(b);
	int status = 0;

	b->open = false;
	p->ready = false;
	net_stream_detach(&p->stream);
	if (p->pid) {
		/*
		 * It has nothing to tidy up, and what its sockets are bound to must be free. By its
		 * descriptor: confined threads may signal nobody else (confine.h).
		 */
		if (p->pid_fd >= 0)
			pidfd_send_signal(p->pid_fd, SIGKILL, NULL, 0);
		else
			kill(p->pid, SIGKILL);
		while (waitpid(p->pid, &status, 0) < 0 && errno == EINTR)
			;
		p->pid = 0;
		describe_end(p, status);
	}
	close_fd(&p->pid_fd);
	close_fd(&p->ready_fd);
	close_fd(&p->words_fd);
}

static void passt_destroy(struct net_backend *b)
{
	struct net_passt *p = to_passt(b);

	passt_close(b);
	net_stream_destroy(&p->stream);
	free(p);
}

static int passt_create(struct net_backend **out, const struct vm_net *cfg)
{
	struct net_passt *p;
	int ret = check_forwards(cfg, NULL);

	if (ret)
		return ret;
	p = calloc(1, sizeof(*p));
	if (!p)
		return -ENOMEM;
	p->b.ops = &net_passt_ops;
	p->b.cfg = *cfg;
	p->b.mtu = PASST_MTU;
	p->pid_fd = p->ready_fd = p->words_fd = -1;
	ret = net_stream_init(&p->stream);
	if (ret) {
		free(p);
		return ret;
	}
	*out = &p->b;
	return 0;
}

/* Without ports of the host's it can run beside the source's. */
static bool passt_harmless(const struct net_backend *b)
{
	return b->cfg.n_forwards == 0;
}

struct command {
	const char *argv[16 + 2 * VM_MAX_FORWARDS];
	char spec[VM_MAX_FORWARDS][SPEC_MAX];
	char fd[8], mtu[8];
};

static void make_command(struct command *c, const struct vm_net *cfg)
{
	unsigned n = 0;

	snprintf(c->fd, sizeof(c->fd), "%d", CHILD_FD);
	snprintf(c->mtu, sizeof(c->mtu), "%d", PASST_MTU);
	c->argv[n++] = PROGRAM;
	c->argv[n++] = "--foreground";
	c->argv[n++] = "--quiet";
	c->argv[n++] = "--fd";
	c->argv[n++] = c->fd;
	c->argv[n++] = "--pid";
	c->argv[n++] = "/proc/self/fd/1";
	c->argv[n++] = "--mtu";
	c->argv[n++] = c->mtu;
	for (uint32_t i = 0; i < cfg->n_forwards; i++) {
		const struct vm_forward *f = &cfg->forward[i];

		snprintf(c->spec[i], SPEC_MAX, "%s%s%u:%u", f->host, f->host[0] ? "/" : "",
			 f->host_port, f->guest_port);
		c->argv[n++] = f->udp ? "--udp-ports" : "--tcp-ports";
		c->argv[n++] = c->spec[i];
	}
	c->argv[n] = NULL;
}

/* Starts it with these as descriptors 1, 2 and CHILD_FD. 0 or -errno. */
static int spawn(struct net_passt *p, int out, int words, int sock)
{
	posix_spawn_file_actions_t files;
	posix_spawnattr_t attr;
	struct command c;
	sigset_t none, all;
	int ret;

	make_command(&c, &p->b.cfg);
	sigemptyset(&none);
	sigfillset(&all);
	ret = posix_spawn_file_actions_init(&files);
	if (ret)
		return -ret;
	ret = posix_spawnattr_init(&attr);
	if (ret)
		goto free_files;
	/* A session of its own: Ctrl-C at our terminal is not for it. */
	posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF |
						POSIX_SPAWN_SETSID);
	posix_spawnattr_setsigmask(&attr, &none);
	posix_spawnattr_setsigdefault(&attr, &all);
	ret = posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
	if (ret == 0)
		ret = posix_spawn_file_actions_adddup2(&files, out, 1);
	if (ret == 0)
		ret = posix_spawn_file_actions_adddup2(&files, words, 2);
	if (ret == 0)
		ret = posix_spawn_file_actions_adddup2(&files, sock, CHILD_FD);
	if (ret == 0)
		ret = posix_spawn_file_actions_addclosefrom_np(&files, CHILD_FD + 1);
	if (ret == 0)
		ret = posix_spawnp(&p->pid, PROGRAM, &files, &attr, (char *const *)c.argv, environ);
	if (ret)
		p->pid = 0;
	posix_spawnattr_destroy(&attr);
free_files:
	posix_spawn_file_actions_destroy(&files);
	return -ret;
}

static int passt_open(struct net_backend *b, struct errmsg *err)
{
	struct net_passt *p = to_passt(b);
	/* Ours first, the child's second. */
	int sock[2] = {-1, -1}, out[2] = {-1, -1}, words[2] = {-1, -1};
	int ret;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sock) || pipe2(out, O_CLOEXEC) ||
	    pipe2(words, O_CLOEXEC | O_NONBLOCK)) {
		ret = errmsg_set(err, -errno, "a socket for " PROGRAM ": %s", strerror(errno));
		goto out;
	}
	/* It opens its standard output by name, when it is somebody else already. */
	if (fchmod(out[1], 0622)) {
		ret = errmsg_set(err, -errno, "a pipe for " PROGRAM ": %s", strerror(errno));
		goto out;
	}
	/* Descriptors that the child puts others in the place of must be none of these. */
	for (int *fd = (int[]){sock[1], out[1], words[1], -1}; *fd >= 0; fd++) {
		if (*fd <= STDERR_FILENO) {
			ret = errmsg_set(err, -EBADF, "standard input, output or error is closed");
			goto out;
		}
	}
	ret = spawn(p, out[1], words[1], sock[1]);
	if (ret) {
		if (ret == -ENOENT)
			not_installed(err);
		errmsg_set(err, ret, PROGRAM " does not start: %s", strerror(-ret));
		goto out;
	}
	p->pid_fd = pidfd_open(p->pid, 0);
	if (p->pid_fd < 0) {
		ret = errmsg_set(err, -errno, "pidfd_open: %s", strerror(errno));
		passt_close(b);
		goto out;
	}
	net_stream_attach(&p->stream, sock[0]);
	p->ready_fd = out[0];
	p->words_fd = words[0];
	sock[0] = out[0] = words[0] = -1;
	b->open = true;
	b->gone.text[0] = '\0';
out:
	for (unsigned i = 0; i < 2; i++) {
		close_fd(&sock[i]);
		close_fd(&out[i]);
		close_fd(&words[i]);
	}
	return ret;
}

static int passt_ready(struct net_backend *b, uint64_t deadline_ns, struct errmsg *err)
{
	struct net_passt *p = to_passt(b);
	struct pollfd fds[] = {
		{.fd = p->ready_fd, .events = POLLIN},
		{.fd = p->pid_fd, .events = POLLIN},
	};
	char text[256];

	if (p->ready)
		return 0;
	for (;;) {
		uint64_t now = now_ns();
		int n;

		if (now >= deadline_ns)
			return errmsg_set(err, -ETIMEDOUT, PROGRAM " does not get ready");
		n = poll(fds, ARRAY_SIZE(fds),
			 (int)MIN((deadline_ns - now) / NS_PER_MS + 1, 1000ULL));
		if (n < 0 && errno != EINTR)
			return errmsg_set(err, -errno, "poll: %s", strerror(errno));
		if (n > 0)
			break;
	}
	if (!(fds[0].revents & POLLIN) || read(p->ready_fd, text, sizeof(text)) <= 0) {
		struct errmsg why;

		passt_close(b);
		why = b->gone;
		return errmsg_set(err, -EIO, "%s", why.text);
	}
	p->ready = true;
	/* What it said so far is no reason for what may come. */
	last_words(p, text, sizeof(text));
	if (text[0])
		log_debug(PROGRAM ": %s", text);
	return 0;
}

static int passt_fd(const struct net_backend *b, unsigned pair)
{
	(void)pair;
	return container_of(b, const struct net_passt, b)->stream.fd;
}

static int passt_watch_fd(const struct net_backend *b)
{
	return container_of(b, const struct net_passt, b)->pid_fd;
}

static int passt_recv(struct net_backend *b, unsigned pair, struct net_frame *f)
{
	int ret;

	(void)pair;
	f->hdr = (struct net_hdr){0};
	ret = net_stream_recv(&to_passt(b)->stream, &f->data, &f->len);
	if (ret != -EPROTO)
		return ret;
	errmsg_set(&b->gone, -EPROTO, PROGRAM " sent a frame of %zu bytes", f->len);
	return -ENOLINK;
}

static int passt_send(struct net_backend *b, unsigned pair, const struct iovec *iov, uint32_t n,
		      size_t len)
{
	(void)pair;
	return net_stream_send(&to_passt(b)->stream, iov, n, sizeof(struct net_hdr), len);
}

static int passt_flush(struct net_backend *b)
{
	return net_stream_flush(&to_passt(b)->stream);
}

const struct net_backend_ops net_passt_ops = {
	.name = "passt",
	.check = passt_check,
	.create = passt_create,
	.destroy = passt_destroy,
	.open = passt_open,
	.harmless = passt_harmless,
	.ready = passt_ready,
	.close = passt_close,
	.fd = passt_fd,
	.watch_fd = passt_watch_fd,
	.recv = passt_recv,
	.send = passt_send,
	.flush = passt_flush,
};
