/* SPDX-License-Identifier: MIT */
/*
 * What goes out on a connection but for batches of pages (conn_batch.c): the prelude, frames, signs
 * of life and last words; and the pace at which anything does. See conn.h.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>

#include "../vmm/fault.h"
#include "conn_parts.h"

/* How long a side that gives up waits for the other to read why. */
#define LAST_WORDS_LIMIT (2 * NS_PER_SEC)

/* ---- pieces ---- */

static size_t message_len(const struct msghdr *msg)
{
	size_t len = 0;

	for (size_t i = 0; i < msg->msg_iovlen; i++)
		len += msg->msg_iov[i].iov_len;
	return len;
}

/* Leaves the first n bytes of it. */
static void cut_message(struct conn *c, struct msghdr *msg, size_t n)
{
	struct iovec *v = msg->msg_iov;

	for (size_t i = 0; i < msg->msg_iovlen; i++, v++) {
		if (n < v->iov_len) {
			c->cut = (struct conn_cut){v, v->iov_len, msg->msg_iovlen};
			v->iov_len = n;
			msg->msg_iovlen = i + 1;
			return;
		}
		n -= v->iov_len;
	}
}

void conn_pace(struct conn *c, struct msghdr *msg)
{
	uint64_t now, turn;
	struct io_uring_sqe *sqe;

	if (!c->rate || rate_get(c->rate) == 0) {
		if (fault_at(FAULT_SHORT, "send"))
			cut_message(c, msg, 1 + message_len(msg) / 3);
		return;
	}
	cut_message(c, msg, rate_piece(c->rate));
	now = now_ns();
	turn = rate_take(c->rate, now, message_len(msg));
	if (turn <= now)
		return;
	c->turn = (struct __kernel_timespec){.tv_sec = (long long)(turn / NS_PER_SEC),
					     .tv_nsec = (long long)(turn % NS_PER_SEC)};
	sqe = conn_sqe(c, TAG_NONE);
	io_uring_prep_timeout(sqe, &c->turn, 0, IORING_TIMEOUT_ABS | IORING_TIMEOUT_ETIME_SUCCESS);
	sqe->flags |= IOSQE_IO_LINK;
}

void conn_paced(struct conn *c, struct msghdr *msg, int res)
{
	size_t asked = message_len(msg), done = res > 0 ? (size_t)res : 0;

	if (c->rate && done < asked)
		rate_give_back(c->rate, asked - done);
	if (c->cut.iov) {
		c->cut.iov->iov_len = c->cut.len;
		msg->msg_iovlen = c->cut.n;
		c->cut.iov = NULL;
	}
}
/* ---- frames ---- */

/*
 * A send failed because the peer is gone: it may have said why before, and that is what the user
 * wants to know.
 */
int conn_send_error(struct conn *c, int ret, struct errmsg *err)
{
	if (ret == -EPIPE || ret == -ECONNRESET || ret == -ECONNABORTED) {
		struct errmsg said = {0};
		struct wire_frame f;

		for (;;) {
			int r = conn_recv_header(c, &f, &said);

			if (r == -ECONNABORTED)
				return errmsg_set(err, r, "%s", said.text);
			if (r || f.length || f.type == WIRE_PAGES)
				break;
		}
	}
	return conn_error(c, ret, err);
}
void conn_begin_frame(struct conn *c)
{
	pthread_mutex_lock(&c->out_lock);
	c->out_busy = true;
	pthread_mutex_unlock(&c->out_lock);
}

void conn_end_frame(struct conn *c)
{
	pthread_mutex_lock(&c->out_lock);
	c->out_busy = false;
	pthread_mutex_unlock(&c->out_lock);
}

/* Sends one message; *taken turns true once any byte may have left. */
static int send_all(struct conn *c, struct msghdr *msg, bool *taken, struct errmsg *err)
{
	for (;;) {
		int ret;

		c->send_done = false;
		conn_pace(c, msg);
		io_uring_prep_sendmsg(conn_sqe(c, TAG_SEND), c->fd, msg,
				      (unsigned)conn_waitall(c) | MSG_NOSIGNAL);
		ret = conn_wait(c, &c->send_done);
		if (ret && !c->send_done) {
			*taken = true;
			conn_end_operation(c, &c->send_done, SHUT_RDWR);
		}
		conn_paced(c, msg, c->send_res);
		if (c->send_done && c->send_res > 0) {
			*taken = true;
			c->sent += (uint64_t)c->send_res;
		}
		if (ret)
			return conn_error(c, ret, err);
		if (c->send_res <= 0)
			return conn_send_error(c, c->send_res ? c->send_res : -EPIPE, err);
		if (conn_advance(msg, (size_t)c->send_res))
			return 0;
	}
}

int conn_send(struct conn *c, enum wire_type type, const void *payload, uint32_t length,
	      bool *taken, struct errmsg *err)
{
	struct wire_frame f = {
		.magic = WIRE_FRAME_MAGIC,
		.type = (uint16_t)type,
		.length = length,
	};
	struct iovec iov[2] = {
		{.iov_base = &f, .iov_len = sizeof(f)},
		{.iov_base = (void *)(uintptr_t)payload, .iov_len = length},
	};
	struct msghdr msg = {.msg_iov = iov, .msg_iovlen = length ? 2 : 1};
	bool unused;
	int ret;

	if (!taken)
		taken = &unused;
	*taken = false;
	ret = conn_flush(c, err);
	if (ret)
		return ret;
	conn_begin_frame(c);
	f.seq = c->seq_out++;
	f.check = wire_check_sum(&f, payload, length);
	if (fault_frame("send-", wire_type_name(type), c->fd))
		f.check ^= 1;
	ret = send_all(c, &msg, taken, err);
	/* In the middle of one nothing else can be said any more. */
	if (ret == 0)
		conn_end_frame(c);
	return ret;
}
int conn_send_prelude(struct conn *c, uint64_t session, struct errmsg *err)
{
	struct wire_prelude p = {
		.version = WIRE_VERSION, .min_version = WIRE_MIN_VERSION, .session = session};
	struct iovec iov = {.iov_base = &p, .iov_len = sizeof(p)};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
	bool taken;

	memcpy(p.magic, WIRE_MAGIC, sizeof(p.magic));
	return send_all(c, &msg, &taken, err);
}
/* ---- signs of life ---- */

static void send_idle(struct conn *c)
{
	struct wire_frame f = {.magic = WIRE_FRAME_MAGIC, .type = WIRE_IDLE, .seq = c->seq_out};
	ssize_t n;

	f.check = wire_check_sum(&f, NULL, 0);
	/* Where there is no room the peer has enough to read. */
	n = send(c->fd, &f, sizeof(f), MSG_NOSIGNAL | MSG_DONTWAIT);
	if (n <= 0)
		return;
	c->seq_out++;
	c->sent += (uint64_t)n;
	if (c->rate)
		rate_take(c->rate, now_ns(), (size_t)n);
	if (n < (ssize_t)sizeof(f))
		conn_break(c);
}

void conn_tell(struct conn *c)
{
	pthread_mutex_lock(&c->out_lock);
	if (c->tells && !c->out_busy && c->told_sent == c->sent)
		send_idle(c);
	c->told_sent = c->sent;
	pthread_mutex_unlock(&c->out_lock);
}

static void set_tells(struct conn *c, bool tells)
{
	pthread_mutex_lock(&c->out_lock);
	c->tells = tells;
	pthread_mutex_unlock(&c->out_lock);
}

void conn_let_tell(struct conn *c)
{
	set_tells(c, true);
}

void conn_hush(struct conn *c)
{
	set_tells(c, false);
}
/* ---- last words ---- */

void conn_fail(struct conn *c, enum wire_type type, const char *text)
{
	uint64_t deadline = now_ns() + LAST_WORDS_LIMIT;
	size_t len = strnlen(text, WIRE_TEXT_MAX);
	struct wire_frame f = {
		.magic = WIRE_FRAME_MAGIC,
		.type = (uint16_t)type,
		.length = (uint32_t)len,
	};
	struct errmsg ignored = {0};
	char buf[sizeof(f) + WIRE_TEXT_MAX], sink[4096];

	/* In the middle of a batch the peer could not make sense of it: let the one under way end.
	 */
	conn_hush(c);
	conn_batches_drop(c);
	c->cancel_fd = -1;
	c->cancelled = false;
	c->deadline_ns = deadline;
	while (c->queued && now_ns() < deadline) {
		if (conn_step(c, NS_PER_SEC / 10) ||
		    (c->send_done && conn_batches_reap(c, &ignored)))
			return;
	}
	if (c->queued)
		return;
	f.seq = c->seq_out++;
	f.check = wire_check_sum(&f, text, len);
	memcpy(buf, &f, sizeof(f));
	memcpy(buf + sizeof(f), text, len);
	if (send(c->fd, buf, sizeof(f) + len, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
		return;
	shutdown(c->fd, SHUT_WR);
	/* Closing with unread input would reset the connection and take the text with it. */
	while (now_ns() < deadline) {
		struct pollfd p = {.fd = c->fd, .events = POLLIN};

		if (poll(&p, 1, 100) > 0 && recv(c->fd, sink, sizeof(sink), MSG_DONTWAIT) <= 0)
			break;
	}
}
