/* SPDX-License-Identifier: MIT */
#include "door.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "conn.h"
#include "uri.h"

/* For one who is turned away to read why. */
#define AWAY_LIMIT NS_PER_SEC
#define RETRY_MS 100

#define BUSY "this receiver is taking in another guest"
#define ONLY_TLS "this receiver takes sources by tls: only"

static void let_go(const struct arrival *a)
{
	if (a->tls)
		tls_close(a->tls);
	else
		close(a->fd);
}

/* What is there now: as of recv(2), but -errno. */
static ssize_t read_some(const struct arrival *a, void *buf, size_t len)
{
	ssize_t n;

	if (a->tls)
		return tls_recv(a->tls, buf, len);
	n = recv(a->fd, buf, len, MSG_DONTWAIT);
	return n < 0 ? -errno : n;
}

/* Until something has come. */
static int wait_for_peer(struct door *d, int fd, uint64_t deadline)
{
	for (;;) {
		struct pollfd fds[] = {{.fd = fd, .events = POLLIN},
				       {.fd = d->quit_fd, .events = POLLIN}};
		uint64_t now = now_ns();

		if (now >= deadline)
			return -ETIMEDOUT;
		if (poll(fds, 2, (int)((deadline - now) / NS_PER_MS) + 1) <= 0)
			continue;
		return fds[1].revents ? -ECANCELED : 0;
	}
}

/* The first thing that a source does is to send it: it need not be waited for long. */
static int read_prelude(struct door *d, struct arrival *a, uint64_t deadline)
{
	size_t got = 0;
	int ret;

	while (got < sizeof(a->prelude)) {
		ssize_t n = read_some(a, (char *)&a->prelude + got, sizeof(a->prelude) - got);

		if (n == 0)
			return got ? -ECONNRESET : -ENODATA;
		if (n < 0 && n != -EAGAIN && n != -EINTR)
			return (int)n;
		if (n > 0) {
			got += (size_t)n;
			continue;
		}
		ret = wait_for_peer(d, a->fd, deadline);
		if (ret)
			return ret;
	}
	return 0;
}

/* False when it could not be told. */
static bool tell(const struct arrival *a, const char *why)
{
	uint32_t why_len = (uint32_t)strlen(why);
	struct wire_prelude p = {
		.version = WIRE_VERSION,
		.min_version = WIRE_MIN_VERSION,
		.session = a->prelude.session,
	};
	struct wire_frame f = {
		.magic = WIRE_FRAME_MAGIC,
		.type = WIRE_REFUSE,
		.length = why_len,
	};
	char buf[sizeof(p) + sizeof(f) + 128];
	size_t len = sizeof(p) + sizeof(f) + why_len;

	memcpy(p.magic, WIRE_MAGIC, sizeof(p.magic));
	f.check = wire_check_sum(&f, why, f.length);
	memcpy(buf, &p, sizeof(p));
	memcpy(buf + sizeof(p), &f, sizeof(f));
	memcpy(buf + sizeof(p) + sizeof(f), why, f.length);
	if (a->tls) {
		if (tls_send(a->tls, buf, len) != (ssize_t)len)
			return false;
		tls_end(a->tls);
		return true;
	}
	if (send(a->fd, buf, len, MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t)len)
		return false;
	shutdown(a->fd, SHUT_WR);
	return true;
}

/*
 * Lets n peers, who have been told, or have not (their fd is -1), read it: closing with unread
 * input would reset the connection and take the text with it.
 */
static void see_off(struct pollfd *p, unsigned n, uint64_t deadline)
{
	char sink[4096];
	unsigned left = 0;

	for (unsigned i = 0; i < n; i++)
		left += p[i].fd >= 0;
	while (left && now_ns() < deadline) {
		if (poll(p, n, 100) <= 0)
			continue;
		for (unsigned i = 0; i < n; i++) {
			if (p[i].fd < 0 || !p[i].revents ||
			    recv(p[i].fd, sink, sizeof(sink), MSG_DONTWAIT) > 0)
				continue;
			p[i].fd = -1;
			left--;
		}
	}
}

/* What conn_fail() does, to peers that there is no connection for: n of them at once. */
static void turn_away(const struct arrival *a, unsigned n, const char *why)
{
	struct pollfd p[DOOR_QUEUE];

	for (unsigned i = 0; i < n; i++)
		p[i] = (struct pollfd){.fd = tell(&a[i], why) ? a[i].fd : -1, .events = POLLIN};
	see_off(p, n, now_ns() + AWAY_LIMIT);
	for (unsigned i = 0; i < n; i++)
		let_go(&a[i]);
}

/* ---- the queue; with the lock held ---- */

static void take(struct door *d, unsigned i, struct arrival *a)
{
	*a = d->queue[i];
	memmove(&d->queue[i], &d->queue[i + 1], (--d->n - i) * sizeof(d->queue[0]));
}

/* A source that tries again and again leaves those that it has given up. */
static void drop_left(struct door *d)
{
	struct arrival a;

	for (unsigned i = 0; i < d->n;) {
		struct pollfd p = {.fd = d->queue[i].fd, .events = POLLRDHUP};

		if (poll(&p, 1, 0) <= 0) {
			i++;
			continue;
		}
		take(d, i, &a);
		let_go(&a);
	}
}

/* ---- the door's thread ---- */

/* True when it is in the queue now. */
static bool let_in(struct door *d, const struct arrival *a)
{
	uint64_t one = 1;
	bool in;

	pthread_mutex_lock(&d->lock);
	if (d->n == DOOR_QUEUE)
		drop_left(d);
	in = d->n < DOOR_QUEUE && (!d->busy || a->prelude.session == d->session);
	if (in) {
		d->queue[d->n++] = *a;
		(void)!write(d->arrived_fd, &one, sizeof(one));
	}
	pthread_mutex_unlock(&d->lock);
	return in;
}

/* Does he speak godwit's plain protocol, by his first byte? Then he forgot to say tls:. */
static bool is_plain(int fd)
{
	char first = 0;

	return recv(fd, &first, 1, MSG_PEEK | MSG_DONTWAIT) == 1 && first == WIRE_MAGIC[0];
}

/* Says why somebody was not let in, but not as often as he may try. */
static void note_refusal(struct door *d, const char *why)
{
	if (log_allowed(&d->refusals))
		log_warn("a peer was refused: %s%s", why, d->refusals.more);
}

/* 0, or 1 when he has been turned away, and a is gone. */
static int check_peer(struct door *d, struct arrival *a, uint64_t deadline)
{
	struct pollfd p = {.fd = a->fd, .events = POLLIN};
	struct errmsg why = {0};
	int ret = wait_for_peer(d, a->fd, deadline);

	if (ret == 0 && is_plain(a->fd)) {
		ret = read_prelude(d, a, deadline);
		if (ret)
			return ret;
		note_refusal(d, "it does not speak TLS");
		turn_away(a, 1, ONLY_TLS);
		return 1;
	}
	if (ret == 0)
		ret = tls_shake(&a->tls, d->tls, a->fd, d->quit_fd, deadline, &why);
	/* Whoever just left is not worth a word. */
	if (ret != -EACCES && ret != -EPROTO && ret != -EBADMSG)
		return ret;
	note_refusal(d, why.text);
	/* The library has told him. */
	shutdown(a->fd, SHUT_WR);
	see_off(&p, 1, MIN(now_ns() + AWAY_LIMIT, deadline));
	close(a->fd);
	return 1;
}

static void meet(struct door *d, int fd)
{
	uint64_t deadline = now_ns() + CONN_PRELUDE_LIMIT;
	struct arrival a = {.fd = fd};
	int ret = d->tls ? check_peer(d, &a, deadline) : 0;

	if (ret > 0)
		return;
	if (ret == 0)
		ret = read_prelude(d, &a, deadline);
	if (ret == 0 && let_in(d, &a))
		return;
	if (ret == -ETIMEDOUT)
		log_info("a peer connected and did not begin within %llu s: waiting for another",
			 (unsigned long long)(CONN_PRELUDE_LIMIT / NS_PER_SEC));
	else if (ret == -ENODATA)
		log_debug("a peer connected and left without a word");
	else if (ret == 0)
		log_debug("a peer that connected during a move was turned away: it is of another "
			  "migration");
	if (ret == 0)
		turn_away(&a, 1, BUSY);
	else
		let_go(&a);
}

static void *run_door(void *arg)
{
	struct door *d = arg;
	struct errmsg err = {0};
	int fd = 0;

	/* Another error than being told to end: what was accepted in vain. */
	while (fd != -ECANCELED) {
		fd = uri_accept(d->listen_fd, d->quit_fd, UINT64_MAX, &err);
		if (fd >= 0) {
			meet(d, fd);
		} else if (fd != -ECANCELED) {
			log_debug("%s", err.text);
			/* Without a free file descriptor, say, the next try would fail at once. */
			poll(&(struct pollfd){.fd = d->quit_fd, .events = POLLIN}, 1, RETRY_MS);
		}
		err = (struct errmsg){0};
		if (fd == -EBADF || fd == -EINVAL || fd == -ENOTSOCK)
			break;
	}
	return NULL;
}

static void free_door(struct door *d)
{
	pthread_mutex_destroy(&d->lock);
	if (d->quit_fd >= 0)
		close(d->quit_fd);
	if (d->arrived_fd >= 0)
		close(d->arrived_fd);
	*d = (struct door){0};
}

int door_open(struct door *d, int listen_fd, struct tls *tls, struct errmsg *err)
{
	int ret;

	*d = (struct door){
		.listen_fd = listen_fd,
		.tls = tls,
		.quit_fd = eventfd(0, EFD_CLOEXEC),
		.arrived_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK),
	};
	pthread_mutex_init(&d->lock, NULL);
	ret = d->quit_fd < 0 || d->arrived_fd < 0 ? -EMFILE
						  : -pthread_create(&d->thread, NULL, run_door, d);
	if (ret) {
		free_door(d);
		return errmsg_set(err, ret, "starting a thread for sources: %s", strerror(-ret));
	}
	d->up = true;
	pthread_setname_np(d->thread, "receive-door");
	return 0;
}

void door_close(struct door *d)
{
	uint64_t one = 1;

	if (!d->up)
		return;
	(void)!write(d->quit_fd, &one, sizeof(one));
	pthread_join(d->thread, NULL);
	for (unsigned i = 0; i < d->n; i++)
		let_go(&d->queue[i]);
	free_door(d);
}

void door_admit(struct door *d, bool busy, uint64_t session)
{
	struct arrival away[DOOR_QUEUE];
	unsigned n = 0;

	pthread_mutex_lock(&d->lock);
	d->busy = busy;
	d->session = session;
	for (unsigned i = 0; busy && i < d->n;) {
		if (d->queue[i].prelude.session == session)
			i++;
		else
			take(d, i, &away[n++]);
	}
	pthread_mutex_unlock(&d->lock);
	turn_away(away, n, BUSY);
}

bool door_waiting(struct door *d)
{
	bool any;

	pthread_mutex_lock(&d->lock);
	drop_left(d);
	any = d->n > 0;
	pthread_mutex_unlock(&d->lock);
	return any;
}

static bool take_first(struct door *d, struct arrival *a)
{
	uint64_t count;
	bool any;

	pthread_mutex_lock(&d->lock);
	any = d->n > 0;
	if (any)
		take(d, 0, a);
	else
		(void)!read(d->arrived_fd, &count, sizeof(count));
	pthread_mutex_unlock(&d->lock);
	return any;
}

int door_wait(struct door *d, uint64_t deadline_ns, int cancel_fd, struct arrival *a,
	      struct errmsg *err)
{
	struct pollfd fds[] = {{.fd = d->arrived_fd, .events = POLLIN},
			       {.fd = cancel_fd, .events = POLLIN}};

	while (!take_first(d, a)) {
		uint64_t now = now_ns();
		int timeout = -1;

		if (now >= deadline_ns)
			return errmsg_set(err, -ETIMEDOUT, "no source came in the time allowed");
		if (deadline_ns != UINT64_MAX)
			timeout = (int)MIN((deadline_ns - now) / NS_PER_MS + 1, 3600000ULL);
		if (poll(fds, 2, timeout) > 0 && fds[1].revents)
			return errmsg_set(err, -ECANCELED, "cancelled");
	}
	return 0;
}
