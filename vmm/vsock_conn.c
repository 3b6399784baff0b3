/* SPDX-License-Identifier: MIT */
#include "vsock_conn.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "vsock_mux.h"

/* Seconds. A person may type the line; a guest that answers at all does so at once. */
#define LINE_TICKS 60
#define REQUEST_TICKS 10
/* As long as Linux waits for the RST that answers its SHUTDOWN. */
#define CLOSE_TICKS 8

#define OWED(op) (1U << (op))

/* ---- coming and going ---- */

static struct vsock_conn *new_conn(struct vsock_mux *m, int fd, enum vsock_state state)
{
	struct vsock_conn *c = calloc(1, sizeof(*c));

	if (!c) {
		if (fd >= 0)
			close(fd);
		return NULL;
	}
	c->mux = m;
	c->fd = fd;
	c->state = (uint8_t)state;
	c->interest = VSOCK_NO_INTEREST;
	LIST_INSERT_HEAD(&m->all, c, all);
	m->n_conns++;
	return c;
}

struct vsock_conn *vsock_conn_accepted(struct vsock_mux *m, int fd)
{
	struct vsock_conn *c = new_conn(m, fd, VSOCK_LINE);

	if (c) {
		c->ticks = LINE_TICKS;
		vsock_conn_settle(c);
	}
	return c;
}

struct vsock_conn *vsock_conn_opened(struct vsock_mux *m, int fd, const struct vsock_hdr *request)
{
	struct vsock_conn *c = new_conn(m, fd, VSOCK_OPEN);

	if (c) {
		c->guest_port = request->src_port;
		c->host_port = request->dst_port;
		c->peer_buf_alloc = request->buf_alloc;
		c->peer_fwd_cnt = request->fwd_cnt;
		c->owed = OWED(VSOCK_OP_RESPONSE);
		vsock_mux_enter(m, c);
		vsock_conn_settle(c);
	}
	return c;
}

static void mark_ready(struct vsock_conn *c)
{
	if (c->is_ready || !vsock_conn_has_packet(c))
		return;
	TAILQ_INSERT_TAIL(&c->mux->ready, c, ready);
	c->is_ready = true;
}

struct vsock_conn *vsock_conn_stranded(struct vsock_mux *m, uint32_t guest_port, uint32_t host_port)
{
	struct vsock_conn *c = new_conn(m, -1, VSOCK_RESET);

	if (c) {
		c->guest_port = guest_port;
		c->host_port = host_port;
		c->owed = OWED(VSOCK_OP_RST);
		vsock_mux_enter(m, c);
		mark_ready(c);
	}
	return c;
}

static void drop_buffer(struct vsock_conn *c)
{
	c->fwd_cnt += c->len;
	c->head = c->len = 0;
	free(c->buf);
	c->buf = NULL;
}

static void close_socket(struct vsock_conn *c)
{
	if (c->fd < 0)
		return;
	close(c->fd); /* epoll forgets it by that */
	c->fd = -1;
	c->interest = VSOCK_NO_INTEREST;
}

/* It is nobody any more whom the guest could mean. */
static void leave_guest(struct vsock_conn *c)
{
	c->owed = 0;
	c->readable = false;
	if (c->in_bucket)
		LIST_REMOVE(c, bucket);
	if (c->is_ready)
		TAILQ_REMOVE(&c->mux->ready, c, ready);
	c->in_bucket = c->is_ready = false;
}

void vsock_conn_close(struct vsock_conn *c)
{
	struct vsock_mux *m = c->mux;

	if (c->state == VSOCK_DEAD)
		return;
	leave_guest(c);
	close_socket(c);
	drop_buffer(c);
	c->state = VSOCK_DEAD;
	LIST_REMOVE(c, all);
	m->n_conns--;
	LIST_INSERT_HEAD(&m->dead, c, all);
	loop_post(m->v->dev.vm->loop, &m->reap_task);
}

void vsock_conn_reset(struct vsock_conn *c)
{
	if (c->state == VSOCK_RESET || c->state == VSOCK_DEAD)
		return;
	/* What the guest has not heard of it need not forget. */
	if (!c->in_bucket || (c->owed & OWED(VSOCK_OP_REQUEST))) {
		vsock_conn_close(c);
		return;
	}
	close_socket(c);
	drop_buffer(c);
	c->readable = false;
	c->ticks = 0;
	c->state = VSOCK_RESET;
	c->owed = OWED(VSOCK_OP_RST);
	mark_ready(c);
}

void vsock_conn_guest_gone(struct vsock_conn *c)
{
	if (c->state != VSOCK_OPEN || c->len == 0) {
		if (c->state != VSOCK_LINGER)
			vsock_conn_close(c);
		return;
	}
	leave_guest(c);
	c->ticks = 0;
	c->state = VSOCK_LINGER;
	shutdown(c->fd, SHUT_RD);
}

/* ---- what the host's side does ---- */

/* Has the other end gone altogether, or are both directions shut? */
static bool hung_up(const struct vsock_conn *c)
{
	struct pollfd p = {.fd = c->fd};

	return poll(&p, 1, 0) > 0;
}

/* The guest is to know that the host does not receive, or does not send, any more. */
static void tell_shut(struct vsock_conn *c, unsigned flags)
{
	flags &= ~(unsigned)c->host_shut;
	if (!flags)
		return;
	c->host_shut = (uint8_t)(c->host_shut | flags);
	c->owed |= OWED(VSOCK_OP_SHUTDOWN);
	if (flags & VSOCK_SHUT_RCV)
		drop_buffer(c);
	if (c->host_shut == VSOCK_SHUT_BOTH)
		c->ticks = CLOSE_TICKS;
}

/* Nobody takes what the guest sends. What the other end had sent before is still delivered. */
static void write_failed(struct vsock_conn *c)
{
	if (c->state == VSOCK_LINGER)
		vsock_conn_close(c);
	else
		tell_shut(c, VSOCK_SHUT_RCV);
}

static void count_forwarded(struct vsock_conn *c, uint32_t n)
{
	c->fwd_cnt += n;
	if (c->state == VSOCK_OPEN && c->fwd_cnt - c->told_fwd_cnt >= VSOCK_BUF / 2)
		c->owed |= OWED(VSOCK_OP_CREDIT_UPDATE);
}

/* Sends what the socket takes: the number of bytes, or -errno when it never will again. */
static ssize_t send_some(const struct vsock_conn *c, struct iovec *iov, size_t n)
{
	const struct msghdr msg = {.msg_iov = iov, .msg_iovlen = n};
	ssize_t sent = sendmsg(c->fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);

	if (sent < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	return sent;
}

/* From the ring to the socket. */
static void flush(struct vsock_conn *c)
{
	while (c->len) {
		uint32_t first = MIN(c->len, VSOCK_BUF - c->head);
		struct iovec iov[2] = {
			{.iov_base = c->buf + c->head, .iov_len = first},
			{.iov_base = c->buf, .iov_len = c->len - first},
		};
		ssize_t n = send_some(c, iov, 2);

		if (n < 0)
			write_failed(c);
		if (n <= 0)
			return;
		c->head = (c->head + (uint32_t)n) % VSOCK_BUF;
		c->len -= (uint32_t)n;
		count_forwarded(c, (uint32_t)n);
	}
	drop_buffer(c);
}

/* The line is read to its end and no further: what follows is the guest's. */
static void read_line(struct vsock_conn *c)
{
	char *at = c->line + c->line_len;
	size_t room = sizeof(c->line) - c->line_len;
	ssize_t n = recv(c->fd, at, room, MSG_PEEK | MSG_DONTWAIT);
	const char *end;

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0)
		goto fail;
	end = memchr(at, '\n', (size_t)n);
	if (end)
		n = end - at + 1;
	if (recv(c->fd, at, (size_t)n, MSG_DONTWAIT) != n)
		goto fail;
	c->line_len += (unsigned)n;
	if (!end && c->line_len < sizeof(c->line))
		return;
	if (!end || vsock_parse_connect(c->line, c->line_len, &c->guest_port)) {
		log_debug("vsock: a program at the socket did not say \"CONNECT PORT\"");
		goto fail;
	}
	vsock_mux_assign_port(c->mux, c);
	vsock_mux_enter(c->mux, c);
	c->state = VSOCK_REQUESTED;
	c->owed = OWED(VSOCK_OP_REQUEST);
	c->ticks = REQUEST_TICKS;
	return;
fail:
	vsock_conn_close(c);
}

static bool wants_input(const struct vsock_conn *c)
{
	return c->state == VSOCK_OPEN && !c->eof && !(c->guest_shut & VSOCK_SHUT_RCV);
}

/* ---- what the guest does ---- */

/* What the guest lets us send; a guest that takes credit back gets nothing more for a while. */
static uint32_t credit(const struct vsock_conn *c)
{
	uint32_t used = c->tx_cnt - c->peer_fwd_cnt;

	return used >= c->peer_buf_alloc ? 0 : c->peer_buf_alloc - used;
}

/* Behind what is in the ring. There is room: the guest had credit for it. */
static int store(struct vsock_conn *c, const struct virtq_chain *chain, uint64_t offset,
		 uint32_t len)
{
	uint32_t tail, first;

	if (!c->buf)
		c->buf = malloc(VSOCK_BUF);
	if (!c->buf)
		return -ENOMEM;
	tail = (c->head + c->len) % VSOCK_BUF;
	first = MIN(len, VSOCK_BUF - tail);
	virtq_read(chain, offset, c->buf + tail, first);
	virtq_read(chain, offset + first, c->buf, len - first);
	c->len += len;
	return 0;
}

static void take_data(struct vsock_conn *c, const struct vsock_hdr *hdr,
		      const struct virtq_chain *chain)
{
	struct vsock_mux *m = c->mux;
	uint32_t len = hdr->len;
	ssize_t sent = 0;

	/* More than it has credit for, more than it has sent, or after it said that it would not.
	 */
	if (c->state != VSOCK_OPEN || (c->guest_shut & VSOCK_SHUT_SEND) ||
	    len > chain->out_len - VSOCK_HDR_LEN || len > VSOCK_BUF - c->len) {
		vsock_conn_reset(c);
		return;
	}
	m->from_guest += len;
	if (c->host_shut & VSOCK_SHUT_RCV) {
		count_forwarded(c, len);
		return;
	}
	if (c->len == 0) {
		uint32_t n = iov_slice(chain->iov, chain->n_out, VSOCK_HDR_LEN, len, m->iov,
				       ARRAY_SIZE(m->iov));

		sent = n ? send_some(c, m->iov, n) : 0;
		if (sent < 0) {
			write_failed(c);
			count_forwarded(c, len);
			return;
		}
		count_forwarded(c, (uint32_t)sent);
	}
	if (sent < len && store(c, chain, VSOCK_HDR_LEN + (uint64_t)sent, len - (uint32_t)sent))
		vsock_conn_reset(c);
}

/* The guest has accepted what a host program asked for. */
static void take_response(struct vsock_conn *c)
{
	char text[32];
	int n;

	if (c->state != VSOCK_REQUESTED || (c->owed & OWED(VSOCK_OP_REQUEST))) {
		vsock_conn_reset(c);
		return;
	}
	c->state = VSOCK_OPEN;
	c->ticks = 0;
	n = snprintf(text, sizeof(text), "OK %u\n", c->host_port);
	/* The first bytes into an empty socket: there is room, unless nobody is there. */
	if (send(c->fd, text, (size_t)n, MSG_DONTWAIT | MSG_NOSIGNAL) != n)
		vsock_conn_reset(c);
}

static void take_shutdown(struct vsock_conn *c, unsigned flags)
{
	if (c->state != VSOCK_OPEN) {
		vsock_conn_reset(c);
		return;
	}
	flags &= VSOCK_SHUT_BOTH & ~(unsigned)c->guest_shut;
	c->guest_shut = (uint8_t)(c->guest_shut | flags);
	if (flags & VSOCK_SHUT_RCV) {
		c->readable = false;
		shutdown(c->fd, SHUT_RD);
	}
}

void vsock_conn_packet(struct vsock_conn *c, const struct vsock_hdr *hdr,
		       const struct virtq_chain *chain)
{
	if (c->state == VSOCK_RESET) {
		/* It knows already; else it soon will. */
		if (hdr->op == VSOCK_OP_RST)
			vsock_conn_close(c);
		return;
	}
	c->peer_buf_alloc = hdr->buf_alloc;
	c->peer_fwd_cnt = hdr->fwd_cnt;
	switch (hdr->op) {
	case VSOCK_OP_RESPONSE:
		take_response(c);
		break;
	case VSOCK_OP_RST:
		vsock_conn_guest_gone(c);
		break;
	case VSOCK_OP_SHUTDOWN:
		take_shutdown(c, hdr->flags);
		break;
	case VSOCK_OP_RW:
		take_data(c, hdr, chain);
		break;
	case VSOCK_OP_CREDIT_UPDATE:
		break;
	case VSOCK_OP_CREDIT_REQUEST:
		if (c->state == VSOCK_OPEN)
			c->owed |= OWED(VSOCK_OP_CREDIT_UPDATE);
		break;
	default: /* a second REQUEST, or what there is not */
		vsock_conn_reset(c);
	}
	vsock_conn_settle(c);
}

/* ---- packets for the guest ---- */

static bool can_read(const struct vsock_conn *c)
{
	return wants_input(c) && c->readable && credit(c);
}

bool vsock_conn_has_packet(const struct vsock_conn *c)
{
	return c->owed || can_read(c);
}

static void header(struct vsock_conn *c, struct vsock_hdr *hdr, enum vsock_op op)
{
	*hdr = (struct vsock_hdr){
		.src_cid = VSOCK_HOST_CID,
		.dst_cid = c->mux->cid,
		.src_port = c->host_port,
		.dst_port = c->guest_port,
		.type = VSOCK_TYPE_STREAM,
		.op = (uint16_t)op,
		.buf_alloc = VSOCK_BUF,
		.fwd_cnt = c->fwd_cnt,
	};
	c->told_fwd_cnt = c->fwd_cnt;
}

/* Reads from the socket into the chain, behind where the header goes: bytes, 0 for none now. */
static uint32_t read_data(struct vsock_conn *c, const struct virtq_chain *chain)
{
	struct iovec *iov = c->mux->iov;
	uint64_t room = MIN(chain->in_len - VSOCK_HDR_LEN, VSOCK_BUF);
	uint32_t want = MIN((uint32_t)room, credit(c));
	uint32_t n = iov_slice(chain->iov + chain->n_out, chain->n_in, VSOCK_HDR_LEN, want, iov,
			       ARRAY_SIZE(c->mux->iov));
	ssize_t got = readv(c->fd, iov, (int)n);

	if (got < 0 && errno != EAGAIN && errno != EINTR)
		vsock_conn_reset(c);
	if (got == 0) {
		c->eof = true;
		tell_shut(c, hung_up(c) ? VSOCK_SHUT_BOTH : VSOCK_SHUT_SEND);
	}
	/* A short read was the last for now. */
	c->readable = got == want;
	if (got <= 0)
		return 0;
	c->tx_cnt += (uint32_t)got;
	c->mux->to_guest += (uint64_t)got;
	return (uint32_t)got;
}

/* The first of these that is owed, which it then is no longer. */
static enum vsock_op take_owed(struct vsock_conn *c, const enum vsock_op *ops, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		if (c->owed & OWED(ops[i])) {
			c->owed &= ~OWED(ops[i]);
			return ops[i];
		}
	}
	return VSOCK_OP_NONE;
}

int vsock_conn_next(struct vsock_conn *c, const struct virtq_chain *chain, struct vsock_hdr *hdr)
{
	static const enum vsock_op before[] = {VSOCK_OP_RST, VSOCK_OP_REQUEST, VSOCK_OP_RESPONSE,
					       VSOCK_OP_CREDIT_UPDATE};
	static const enum vsock_op after[] = {VSOCK_OP_RST, VSOCK_OP_SHUTDOWN,
					      VSOCK_OP_CREDIT_REQUEST};
	enum vsock_op op = take_owed(c, before, ARRAY_SIZE(before));

	if (op == VSOCK_OP_NONE && can_read(c)) {
		uint32_t len = read_data(c, chain);

		if (len) {
			header(c, hdr, VSOCK_OP_RW);
			hdr->len = len;
			return (int)len;
		}
	}
	if (op == VSOCK_OP_NONE)
		op = take_owed(c, after, ARRAY_SIZE(after));
	if (op == VSOCK_OP_NONE)
		return -EAGAIN;
	header(c, hdr, op);
	if (op == VSOCK_OP_SHUTDOWN)
		hdr->flags = c->host_shut;
	if (op == VSOCK_OP_RST)
		vsock_conn_close(c);
	return 0;
}

/* ---- conclusions ---- */

static void set_interest(struct vsock_conn *c, uint32_t want)
{
	struct epoll_event ev = {.events = want, .data.ptr = c};
	int op = EPOLL_CTL_MOD;

	if (want == c->interest)
		return;
	if (c->interest == VSOCK_NO_INTEREST)
		op = EPOLL_CTL_ADD;
	else if (want == VSOCK_NO_INTEREST)
		op = EPOLL_CTL_DEL;
	if (epoll_ctl(c->mux->epoll_fd, op, c->fd, &ev)) {
		log_warn("vsock: cannot wait for a connection's socket: %s; it is closed",
			 strerror(errno));
		vsock_conn_reset(c);
		return;
	}
	c->interest = want;
}

/* What is waited for; 0 is for being told of a hang-up only, which comes with all others too. */
static uint32_t wanted(const struct vsock_conn *c)
{
	uint32_t want = c->len ? EPOLLOUT : 0;

	switch (c->state) {
	case VSOCK_LINE:
		return EPOLLIN;
	case VSOCK_REQUESTED:
		return 0;
	case VSOCK_OPEN:
		if (wants_input(c) && !c->readable)
			want |= EPOLLIN;
		else if (!want && (wants_input(c) || c->host_shut == VSOCK_SHUT_BOTH))
			want = VSOCK_NO_INTEREST;
		return want;
	case VSOCK_LINGER:
		return EPOLLOUT;
	default:
		return VSOCK_NO_INTEREST;
	}
}

/* Takes from an event what it is good for; false: nothing. */
static bool use_event(struct vsock_conn *c, uint32_t events)
{
	bool hangup = events & (EPOLLHUP | EPOLLERR), used = false;

	if (c->len && (hangup || (events & EPOLLOUT))) {
		flush(c);
		used = true;
	}
	switch (c->state) {
	case VSOCK_LINE:
		read_line(c);
		return true;
	case VSOCK_REQUESTED:
		if (hangup)
			vsock_conn_reset(c);
		return hangup;
	case VSOCK_OPEN:
		if (wants_input(c) && !c->readable && (hangup || (events & EPOLLIN))) {
			c->readable = true;
			return true;
		}
		if (!wants_input(c) && hangup && c->host_shut != VSOCK_SHUT_BOTH) {
			tell_shut(c, VSOCK_SHUT_BOTH);
			return true;
		}
		return used;
	default:
		return used;
	}
}

/*
 * Interest in something grows when it is wanted, and shrinks only when an event comes that nobody
 * wants: as long as bytes are read as they come, nothing needs to be said to epoll.
 */
void vsock_conn_event(struct vsock_conn *c, uint32_t events)
{
	bool used = use_event(c, events);

	vsock_conn_settle(c);
	if (!used && c->fd >= 0)
		set_interest(c, wanted(c));
}

static void settle_open(struct vsock_conn *c)
{
	if ((c->guest_shut & VSOCK_SHUT_SEND) && c->len == 0) {
		if (c->guest_shut == VSOCK_SHUT_BOTH) {
			vsock_conn_reset(c);
			return;
		}
		if (!c->wr_shut)
			shutdown(c->fd, SHUT_WR);
		c->wr_shut = true;
	}
	if (credit(c)) {
		c->asked = false;
	} else if (c->readable && !c->asked) {
		c->asked = true;
		c->owed |= OWED(VSOCK_OP_CREDIT_REQUEST);
	}
}

void vsock_conn_settle(struct vsock_conn *c)
{
	uint32_t want;

	if (c->state == VSOCK_OPEN)
		settle_open(c);
	else if (c->state == VSOCK_LINGER && c->len == 0)
		vsock_conn_close(c);
	want = wanted(c);
	if (want != VSOCK_NO_INTEREST &&
	    (c->interest == VSOCK_NO_INTEREST || (want & ~c->interest)))
		set_interest(c, want);
	mark_ready(c);
}

void vsock_conn_tick(struct vsock_conn *c)
{
	/* That the other end does not read any more is no event while the socket is full. */
	if (c->len) {
		flush(c);
		vsock_conn_settle(c);
	}
	if (c->ticks == 0 || --c->ticks > 0)
		return;
	if (c->state == VSOCK_LINE)
		vsock_conn_close(c);
	else
		vsock_conn_reset(c);
}
