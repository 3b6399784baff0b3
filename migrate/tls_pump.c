/* SPDX-License-Identifier: MIT */
/*
 * The pump of a protected connection: see tls.h.
 *
 * Theory of operation: one thread moves both directions on as far as they go, then waits for what
 * stands in the way: room or bytes at either socket. A direction has one buffer; it is filled again
 * only when it has been emptied, which is what lets either side feel the other's pace.
 *
 * The owner of the plain socket ends it in either direction or in both (shutdown(2), close(2)),
 * from any thread. When he only has done with writing, what he wrote goes out, then close_notify,
 * and the other direction goes on. When he has left, the same happens, within TLS_LINGER_NS, and
 * what still comes is nobody's.
 */
#include <errno.h>
#include <fcntl.h>
#include <openssl/err.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "tls_parts.h"

/* SSL_read() gives one record at a time: less room would make pieces of it. */
#define RECORD_BYTES (16 * KIB)

/*
 * Nothing goes out any more; what has come in is still delivered, and what is still there is read:
 * both may say why the peer left, and that is what counts.
 */
static void fail(struct tls_link *l, int error, int sys)
{
	struct errmsg why = {0};
	int ret = tls_explain(l, error, sys, &why);

	l->out.ended = l->out.told = true;
	l->out.len = 0;
	l->broken = true;
	if (!l->failed && (!l->cause || (why.text[0] && !l->why.text[0]))) {
		l->cause = ret;
		l->why = why;
	}
	shutdown(l->near, SHUT_RD);
}

/* The cause is there before the owner comes upon the end. */
static void end_owner(struct tls_link *l, int how)
{
	if (l->cause && !l->failed)
		atomic_store_explicit(&l->failed, l->cause, memory_order_release);
	shutdown(l->near, how);
}

/* After an operation that gave n: true when it is to be tried again, in the kernel's good time. */
static bool must_wait(struct tls_link *l, int n, int sys)
{
	int error = SSL_get_error(l->ssl, n);

	if (error == SSL_ERROR_WANT_READ)
		return true;
	if (error == SSL_ERROR_WANT_WRITE) {
		l->blocked = true;
		return true;
	}
	fail(l, error, sys);
	return false;
}

/* ---- from the owner to the network ---- */

static void take_from_owner(struct tls_link *l)
{
	struct tls_flow *f = &l->out;
	ssize_t n = recv(l->near, f->data, sizeof(f->data), MSG_DONTWAIT);

	f->at = 0;
	f->len = n > 0 ? (size_t)n : 0;
	/* One who has closed without reading all that was there leaves a reset. */
	if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
		f->ended = true;
}

static void send_records(struct tls_link *l)
{
	struct tls_flow *f = &l->out;

	while (f->len) {
		int n;

		ERR_clear_error();
		errno = 0;
		if (l->records >= l->tls->rekey_records) {
			l->records = 0;
			SSL_key_update(l->ssl, SSL_KEY_UPDATE_NOT_REQUESTED);
		}
		n = SSL_write(l->ssl, f->data + f->at, (int)f->len);
		if (n <= 0) {
			must_wait(l, n, errno);
			return;
		}
		l->records++;
		f->at += (size_t)n;
		f->len -= (size_t)n;
	}
}

/* Nothing follows: the peer is told, by TLS and by TCP. */
static void say_end(struct tls_link *l)
{
	int n;

	ERR_clear_error();
	errno = 0;
	n = SSL_shutdown(l->ssl);
	if (n < 0 && must_wait(l, n, errno))
		return;
	l->out.told = true;
	shutdown(l->net, SHUT_WR);
}

static void pump_out(struct tls_link *l)
{
	l->blocked = false;
	if (!l->out.len && !l->out.ended)
		take_from_owner(l);
	send_records(l);
	if (l->out.ended && !l->out.len && !l->out.told)
		say_end(l);
}

/* ---- from the network to the owner ---- */

/* True when there may be more than there was room for: the library reads ahead. */
static bool take_records(struct tls_link *l)
{
	struct tls_flow *f = &l->in;

	while (!f->ended) {
		int n, sys;

		if (f->at + f->len + RECORD_BYTES > sizeof(f->data))
			return true;
		ERR_clear_error();
		errno = 0;
		n = SSL_read(l->ssl, f->data + f->at + f->len, (int)RECORD_BYTES);
		sys = errno;
		if (n > 0)
			f->len += (size_t)n;
		else if (SSL_get_error(l->ssl, n) == SSL_ERROR_ZERO_RETURN || !must_wait(l, n, sys))
			f->ended = true;
		else
			break;
	}
	return false;
}

static void give_to_owner(struct tls_link *l)
{
	struct tls_flow *f = &l->in;
	ssize_t n = send(l->near, f->data + f->at, f->len, MSG_DONTWAIT | MSG_NOSIGNAL);

	if (n < 0 && errno != EAGAIN && errno != EINTR)
		l->deaf = true;
	if (n <= 0)
		return;
	f->at += (size_t)n;
	f->len -= (size_t)n;
	if (!f->len)
		f->at = 0;
}

static void pump_in(struct tls_link *l)
{
	struct tls_flow *f = &l->in;

	l->more = false;
	if (l->deaf)
		return;
	l->more = take_records(l);
	if (f->len)
		give_to_owner(l);
	/* Otherwise it is he who is waited for. */
	l->more = l->more && !f->len;
	if (f->ended && !f->len && !f->told) {
		end_owner(l, l->cause ? SHUT_RDWR : SHUT_WR);
		f->told = true;
	}
}

/* ---- both ---- */

static bool is_over(const struct tls_link *l)
{
	return l->out.told && (l->deaf || l->in.told);
}

/* How long to wait at most, in milliseconds; -1: for as long as it takes. */
static int wait_ms(const struct tls_link *l)
{
	uint64_t now = now_ns();

	if (l->more)
		return 0;
	if (!l->left)
		return -1;
	/* He left more behind than what has been taken. */
	if (!l->out.ended && !l->out.len)
		return 0;
	return now < l->linger_until ? (int)((l->linger_until - now) / NS_PER_MS) + 1 : 0;
}

/* False when one who has left has had his time. */
static bool wait_for_either(struct tls_link *l)
{
	bool out_full = l->out.len || (l->out.ended && !l->out.told);
	bool in_room = !l->deaf && !l->in.ended &&
		       l->in.at + l->in.len + RECORD_BYTES <= sizeof(l->in.data);
	short near = 0, net = 0;
	struct pollfd p[2];

	if (!out_full && !l->out.ended)
		near |= POLLIN;
	if (l->in.len && !l->deaf)
		near |= POLLOUT;
	if (in_room)
		net |= POLLIN;
	if (out_full || l->blocked)
		net |= POLLOUT;
	/* That the owner leaves is always of interest, and once; of the network only what is
	 * asked for: its end would be told again and again. */
	p[0] = (struct pollfd){.fd = l->left ? -1 : l->near, .events = near};
	p[1] = (struct pollfd){.fd = net ? l->net : -1, .events = net};
	if (poll(p, 2, wait_ms(l)) < 0 && errno != EINTR)
		return false;
	if (!l->left && (p[0].revents & (POLLHUP | POLLERR | POLLNVAL))) {
		l->left = l->deaf = true;
		l->linger_until = now_ns() + TLS_LINGER_NS;
	}
	return !l->left || now_ns() < l->linger_until;
}

static void *run_pump(void *arg)
{
	struct tls_link *l = arg;
	sigset_t pipe;

	sigemptyset(&pipe);
	sigaddset(&pipe, SIGPIPE);
	pthread_sigmask(SIG_BLOCK, &pipe, NULL);
	thread_give_way();
	do {
		pump_out(l);
		pump_in(l);
	} while (!is_over(l) && wait_for_either(l));
	/* Of one that did not end in order: the peer learns it now. */
	if (!l->out.told || l->cause)
		shutdown(l->net, SHUT_RDWR);
	end_owner(l, SHUT_RDWR);
	ERR_clear_error();
	l->cpu_ns = thread_cpu_ns();
	l->over = true;
	return NULL;
}

int tls_start(struct tls_link *l, int *fd, struct errmsg *err)
{
	int pair[2], ret;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
		return errmsg_set(err, -errno, "a pair of sockets for TLS: %s", strerror(errno));
	l->near = pair[1];
	ret = -pthread_create(&l->thread, NULL, run_pump, l);
	if (ret) {
		close(pair[0]);
		return errmsg_set(err, ret, "starting a thread of the migration: %s",
				  strerror(-ret));
	}
	l->started = true;
	pthread_setname_np(l->thread, "migrate-tls");
	*fd = pair[0];
	return 0;
}

int tls_failed(const struct tls_link *l, struct errmsg *why)
{
	int ret = atomic_load_explicit(&l->failed, memory_order_acquire);

	*why = (struct errmsg){0};
	if (ret)
		*why = l->why;
	return ret;
}

uint64_t tls_cpu_ns(const struct tls_link *l)
{
	struct timespec ts;
	clockid_t clock;

	if (!l->started || l->over || pthread_getcpuclockid(l->thread, &clock) ||
	    clock_gettime(clock, &ts))
		return l->cpu_ns;
	return (uint64_t)ts.tv_sec * NS_PER_SEC + (uint64_t)ts.tv_nsec;
}

void tls_close(struct tls_link *l)
{
	if (l->started)
		pthread_join(l->thread, NULL);
	else
		tls_end(l);
	SSL_free(l->ssl);
	if (l->near >= 0)
		close(l->near);
	close(l->net);
	free(l);
}
