/* SPDX-License-Identifier: MIT */
/*
 * A link that is slow or breaks: a process that passes connections on, from the source to a
 * receiver no faster than it is told, and back at any speed, until it is told to cut them.
 *
 * Theory of operation: both sides of a connection are read only when the other one's buffer is
 * empty. Reading from the source takes from an allowance that grows with time, by a tenth of a
 * second's worth at most; nor does it go beyond the next cut. The link knows as much of the stream
 * as it takes to see where a frame begins, for a cut at one; of a protected one it knows nothing.
 */
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "../../migrate/wire.h"
#include "harness_private.h"

#define MAX_CONNS 32
#define CHUNK 16384
#define TICK_MS 5

struct half {
	int fd; /* read from here into the buffer; -1 when it has ended */
	int to; /* which is written there */
	char buf[CHUNK];
	size_t len;
	/* Of the frame that is being passed on, or of the prelude: */
	char head[sizeof(struct wire_frame)];
	size_t head_len;
	uint64_t body; /* bytes that follow */
	bool begun;    /* the prelude is over */
};

struct link {
	int listen_fd;
	const char *to_uri;
	uint64_t rate, allowed, at_ms;
	struct half half[MAX_CONNS][2]; /* [0]: towards the receiver */
	unsigned n;
	struct link_plan plan;
	unsigned cuts;	 /* done */
	uint64_t passed; /* bytes towards the receiver */
	bool dead;	 /* nothing gets through any more on what is connected now */
};

_Noreturn static void give_up(const char *what)
{
	fprintf(stderr, "slow link: %s: %s\n", what, strerror(errno));
	_exit(1);
}

/* tcp:127.0.0.1:PORT, the same with tls:, or unix:PATH */
static socklen_t make_address(const char *uri, struct sockaddr_storage *addr)
{
	struct sockaddr_un *un = (struct sockaddr_un *)(void *)addr;
	struct sockaddr_in *in = (struct sockaddr_in *)(void *)addr;
	unsigned port;

	memset(addr, 0, sizeof(*addr));
	if (strncmp(uri, "unix:", 5) == 0) {
		un->sun_family = AF_UNIX;
		snprintf(un->sun_path, sizeof(un->sun_path), "%s", uri + 5);
		return sizeof(*un);
	}
	if (sscanf(uri, "tcp:127.0.0.1:%u", &port) != 1 &&
	    sscanf(uri, "tls:127.0.0.1:%u", &port) != 1)
		fail_test("no link to '%s'", uri);
	in->sin_family = AF_INET;
	in->sin_port = htons((uint16_t)port);
	in->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	return sizeof(*in);
}

static int open_socket(const char *uri, bool listens)
{
	struct sockaddr_storage addr;
	socklen_t len = make_address(uri, &addr);
	int fd = socket(addr.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int (*attach)(int, const struct sockaddr *, socklen_t) = listens ? bind : connect;

	if (fd < 0 || attach(fd, (struct sockaddr *)&addr, len) || (listens && listen(fd, 16))) {
		if (fd >= 0)
			close(fd);
		return -1;
	}
	return fd;
}

static void accept_one(struct link *l)
{
	int from = accept4(l->listen_fd, NULL, NULL, SOCK_CLOEXEC), to;

	if (from < 0)
		return;
	if (l->dead) {
		/* What stood still is forgotten: the network is another one now. */
		l->dead = false;
		l->n = 0;
	}
	if (l->n == MAX_CONNS)
		give_up("too many connections");
	to = open_socket(l->to_uri, false);
	if (to < 0) {
		close(from);
		return;
	}
	l->half[l->n][0] = (struct half){.fd = from, .to = to};
	l->half[l->n][1] = (struct half){.fd = to, .to = from};
	l->n++;
}

static void end_half(struct half *h)
{
	shutdown(h->to, SHUT_WR);
	h->fd = -1;
	h->len = 0;
}

/* Does a frame of this type begin within the n bytes at p, which go on where the last ended? */
static bool find_frame(struct half *h, const char *p, size_t n, unsigned type)
{
	for (size_t i = 0; i < n;) {
		struct wire_frame f;
		size_t take;

		if (h->body) {
			take = h->body < n - i ? (size_t)h->body : n - i;
			h->body -= take;
			i += take;
			continue;
		}
		take = sizeof(f) - h->head_len < n - i ? sizeof(f) - h->head_len : n - i;
		memcpy(h->head + h->head_len, p + i, take);
		h->head_len += take;
		i += take;
		if (h->head_len < sizeof(f))
			continue;
		h->head_len = 0;
		if (!h->begun) {
			h->begun = true;
			continue;
		}
		memcpy(&f, h->head, sizeof(f));
		h->body = f.length;
		if (f.type == type)
			return true;
	}
	return false;
}

/* Ends every connection as the plan says; or lets them stand, with nothing getting through. */
static void cut(struct link *l)
{
	struct linger reset = {.l_onoff = 1, .l_linger = 0};

	l->cuts++;
	if (l->plan.how == LINK_SILENCE) {
		l->dead = true;
		return;
	}
	for (unsigned i = 0; i < 2 * l->n; i++) {
		int fd = l->half[i / 2][i % 2].to;

		if (l->plan.how == LINK_RESET)
			setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
		close(fd);
	}
	l->n = 0;
}

/* How much may be passed on until the next cut that goes by bytes. */
static uint64_t until_cut(const struct link *l)
{
	if (l->cuts >= l->plan.n_cuts || l->plan.at_type)
		return UINT64_MAX;
	return l->plan.at[l->cuts] > l->passed ? l->plan.at[l->cuts] - l->passed : 0;
}

/* Looks at what half i of a connection has just read. True when it is where all is cut. */
static bool meets_cut(struct link *l, struct half *h, unsigned i, size_t got)
{
	if (i == 0)
		l->passed += got;
	if (l->cuts >= l->plan.n_cuts)
		return false;
	if (!l->plan.at_type)
		return i == 0 && l->passed >= l->plan.at[l->cuts];
	if (i != (l->plan.to_source ? 1U : 0U))
		return false;
	return find_frame(h, h->buf, got, l->plan.at_type);
}

static size_t read_half(struct half *h, uint64_t limit)
{
	ssize_t n;

	if (h->fd < 0 || h->len || !limit)
		return 0;
	n = recv(h->fd, h->buf, limit < CHUNK ? (size_t)limit : CHUNK, MSG_DONTWAIT);
	if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
		end_half(h);
	if (n <= 0)
		return 0;
	h->len = (size_t)n;
	return h->len;
}

static void write_half(struct half *h)
{
	ssize_t n;

	if (h->len == 0)
		return;
	n = send(h->to, h->buf, h->len, MSG_DONTWAIT | MSG_NOSIGNAL);
	if (n < 0 && errno != EAGAIN && errno != EINTR) {
		/* Nobody reads: the sender shall know. */
		shutdown(h->fd, SHUT_RD);
		end_half(h);
	} else if (n > 0) {
		h->len -= (size_t)n;
		memmove(h->buf, h->buf + n, h->len);
	}
}

static void refill(struct link *l)
{
	uint64_t now = harness_now_ms();

	if (!l->rate) {
		l->allowed = MAX_CONNS * CHUNK;
		return;
	}
	l->allowed += l->rate * (now - l->at_ms) / 1000;
	if (l->allowed > l->rate / 10)
		l->allowed = l->rate / 10;
	/* Less than a byte's time is kept for later. */
	if (l->rate * (now - l->at_ms) >= 1000)
		l->at_ms = now;
}

_Noreturn static void run(struct link *l)
{
	for (;;) {
		struct pollfd p[1 + 4 * MAX_CONNS];
		nfds_t n = 0;

		refill(l);
		p[n++] = (struct pollfd){.fd = l->listen_fd, .events = POLLIN};
		for (unsigned i = 0; i < 2 * l->n; i++) {
			struct half *h = &l->half[i / 2][i % 2];
			bool may_read = h->fd >= 0 && !h->len && (i % 2 || l->allowed) && !l->dead;

			if (may_read)
				p[n++] = (struct pollfd){.fd = h->fd, .events = POLLIN};
			if (h->len && !l->dead)
				p[n++] = (struct pollfd){.fd = h->to, .events = POLLOUT};
		}
		/* Without a limit, or with nothing to pass on, there is nothing to wake up for. */
		if (poll(p, n, l->rate && l->n ? TICK_MS : -1) < 0 && errno != EINTR)
			give_up("poll");
		refill(l);
		if (p[0].revents)
			accept_one(l);
		for (unsigned i = 0; i < 2 * l->n && !l->dead; i++) {
			struct half *h = &l->half[i / 2][i % 2];
			uint64_t limit = i % 2 ? CHUNK : l->allowed;
			size_t got;

			if (i % 2 == 0 && until_cut(l) < limit)
				limit = until_cut(l);
			got = read_half(h, limit);
			if (i % 2 == 0)
				l->allowed -= got;
			if (meets_cut(l, h, i % 2, got)) {
				cut(l);
				break;
			}
			write_half(h);
		}
	}
}

const char *slow_link(const struct dest *d, uint64_t bytes_per_s)
{
	return planned_link(d, &(struct link_plan){.rate = bytes_per_s});
}

/* Where connections to to_uri are to go instead: what TLS is spoken on is TCP. */
static int listen_like(const char *to_uri, const char **uri)
{
	static unsigned links;
	struct sockaddr_in in;
	socklen_t len = sizeof(in);
	int fd;

	if (strncmp(to_uri, "tls:", 4) != 0) {
		*uri = harness_path("unix:%s/link%u", harness_tmp(), links++);
		return open_socket(*uri, true);
	}
	*uri = "tls:127.0.0.1:0";
	fd = open_socket(*uri, true);
	if (fd >= 0 && getsockname(fd, (struct sockaddr *)&in, &len) == 0)
		*uri = harness_path("tls:127.0.0.1:%u", ntohs(in.sin_port));
	return fd;
}

const char *planned_link(const struct dest *d, const struct link_plan *plan)
{
	const char *uri;
	int listen_fd = listen_like(d->uri, &uri);
	struct sockaddr_storage unused;
	struct link *l;
	pid_t parent = getpid(), pid;

	if (listen_fd < 0)
		fail_test("%s: %s", uri, strerror(errno));
	make_address(d->uri, &unused);
	l = calloc(1, sizeof(*l));
	if (!l)
		fail_test("out of memory");
	l->to_uri = harness_copy(d->uri, strlen(d->uri));
	l->plan = *plan;
	l->rate = plan->rate;
	l->at_ms = harness_now_ms();
	fflush(NULL);
	pid = fork();
	if (pid < 0)
		fail_test("fork: %s", strerror(errno));
	if (pid) {
		close(listen_fd);
		free(l);
		return uri;
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(1);
	/* Nothing of the test's may be held open from here: pipes end when the test closes them. */
	if (dup2(listen_fd, 3) < 0)
		_exit(1);
	close_range(4, ~0U, 0);
	l->listen_fd = 3;
	run(l);
}
