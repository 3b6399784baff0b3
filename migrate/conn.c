/* SPDX-License-Identifier: MIT */
#include "conn_parts.h"

#include <errno.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "../vmm/fault.h"
#include "../vmm/uring.h"

#define RING_ENTRIES 16U

/* All that a connection has the kernel do; see uring.h. */
static const uint8_t conn_ops[] = {
	IORING_OP_POLL_ADD, IORING_OP_TIMEOUT, IORING_OP_SENDMSG,
	IORING_OP_RECVMSG,  IORING_OP_SEND_ZC,
};
static const uint8_t conn_registers[] = {IORING_REGISTER_PROBE, IORING_REGISTER_BUFFERS};
static const struct uring_use conn_use = {
	.ops = conn_ops,
	.n_ops = ARRAY_SIZE(conn_ops),
	.registers = conn_registers,
	.n_registers = ARRAY_SIZE(conn_registers),
	.sqe_flags = IOSQE_IO_LINK,
};

/* What the kernel takes for keep-alives, in seconds. */
#define KEEPALIVE_MAX 32767ULL

/* How long a side that gives up waits for the other to read why. */
#define LAST_WORDS_LIMIT (2 * NS_PER_SEC)

/* Where the peer has our own address, or a path here. */
static bool is_local(int fd)
{
	struct sockaddr_storage own = {0}, peer = {0};
	socklen_t own_len = sizeof(own), peer_len = sizeof(peer);
	const struct sockaddr_in *a = (void *)&own, *b = (void *)&peer;
	const struct sockaddr_in6 *a6 = (void *)&own, *b6 = (void *)&peer;

	if (getsockname(fd, (void *)&own, &own_len) || getpeername(fd, (void *)&peer, &peer_len))
		return false;
	if (own.ss_family == AF_INET)
		return a->sin_addr.s_addr == b->sin_addr.s_addr;
	if (own.ss_family == AF_INET6)
		return memcmp(&a6->sin6_addr, &b6->sin6_addr, sizeof(a6->sin6_addr)) == 0;
	return own.ss_family == AF_UNIX;
}

static bool is_tcp(int fd)
{
	int protocol = 0;
	socklen_t len = sizeof(protocol);

	return getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &len) == 0 &&
	       protocol == IPPROTO_TCP;
}

/* The socket that the peer's host is at the other end of. */
static int network_fd(const struct conn *c)
{
	return c->tls ? tls_socket(c->tls) : c->fd;
}

int conn_init(struct conn *c, int fd, int cancel_fd, const char *peer, struct errmsg *err)
{
	return conn_init_over(c, fd, NULL, cancel_fd, peer, err);
}

int conn_init_over(struct conn *c, int fd, struct tls_link *tls, int cancel_fd, const char *peer,
		   struct errmsg *err)
{
	int near = fd, ret = tls ? tls_start(tls, &near, err) : 0;

	if (ret) {
		tls_close(tls);
		*c = (struct conn){.fd = -1};
		return ret;
	}
	*c = (struct conn){
		.fd = near,
		.tls = tls,
		.cancel_fd = cancel_fd,
		.peer = peer,
		.tcp = is_tcp(fd),
		.local = is_local(fd),
		/* Between two sockets of this process there is nothing to be gained. */
		.zerocopy = tls ? CONN_ZEROCOPY_NEVER : CONN_ZEROCOPY_AUTO,
		.deadline_ns = UINT64_MAX,
	};
	pthread_mutex_init(&c->out_lock, NULL);
	conn_set_limit(c, CONN_LIMIT_DEFAULT);
	ret = uring_init(&c->ring, RING_ENTRIES, &conn_use);
	if (ret) {
		errmsg_set(err, ret, "io_uring for the migration: %s", strerror(-ret));
		goto fail;
	}
	c->ring_up = true;
	ret = conn_batches_init(c, err);
	if (ret)
		goto fail;
	return 0;
fail:
	conn_close(c);
	return ret;
}

void conn_set_limit(struct conn *c, uint64_t limit_ns)
{
	int ms = (int)MIN(limit_ns / NS_PER_MS, KEEPALIVE_MAX * 1000), s = ms / 1000;
	int idle = MAX(s / 2, 1), interval = MAX(s / 4, 1);

	c->limit_ns = limit_ns;
	if (!c->tcp)
		return;
	/* What is sent must be acknowledged within the limit, and so must a probe after half of it.
	 */
	setsockopt(network_fd(c), IPPROTO_TCP, TCP_USER_TIMEOUT, &ms, sizeof(ms));
	setsockopt(network_fd(c), IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle));
	setsockopt(network_fd(c), IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof(interval));
}

struct io_uring_sqe *conn_sqe(struct conn *c, unsigned tag)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&c->ring);

	/* There are never more under way than the ring has entries. */
	if (!sqe)
		abort();
	io_uring_sqe_set_data64(sqe, tag);
	return sqe;
}

static void take_completion(struct conn *c, const struct io_uring_cqe *cqe)
{
	uint64_t tag = io_uring_cqe_get_data64(cqe);

	switch (tag) {
	case TAG_SEND:
		c->send_done = true;
		c->send_res = cqe->res;
		break;
	case TAG_RECV:
		c->recv_done = true;
		c->recv_res = cqe->res;
		break;
	case TAG_CANCEL_POLL:
		c->cancel_polled = false;
		if (cqe->res > 0)
			c->cancelled = true;
		break;
	case TAG_NONE:
		break;
	default:
		conn_batch_completed(c, &c->batch[tag - TAG_BATCH], cqe);
		break;
	}
}

int conn_step(struct conn *c, uint64_t wait_ns)
{
	struct __kernel_timespec ts = {
		.tv_sec = (long long)(wait_ns / NS_PER_SEC),
		.tv_nsec = (long long)(wait_ns % NS_PER_SEC),
	};
	struct io_uring_cqe *cqe;
	int ret;

	if (c->cancel_fd >= 0 && !c->cancel_polled && !c->cancelled) {
		io_uring_prep_poll_add(conn_sqe(c, TAG_CANCEL_POLL), c->cancel_fd, POLLIN);
		c->cancel_polled = true;
	}
	ret = io_uring_submit_and_wait_timeout(&c->ring, &cqe, wait_ns ? 1 : 0,
					       wait_ns ? &ts : NULL, NULL);
	if (ret < 0 && ret != -ETIME && ret != -EINTR && ret != -EAGAIN)
		return ret;
	while (io_uring_peek_cqe(&c->ring, &cqe) == 0) {
		take_completion(c, cqe);
		io_uring_cqe_seen(&c->ring, cqe);
	}
	return 0;
}

uint64_t conn_dead_ns(const struct conn *c)
{
	return c->main ? c->main->dead_ns : c->dead_ns;
}

int conn_waitall(const struct conn *c)
{
	return c->tcp ? MSG_WAITALL : 0;
}

/*
 * Numbers that change whenever anything has gone from here to the peer's host, or come from there:
 * an operation on many bytes may be under way for long, with a peer that is slow and alive. (A UNIX
 * socket can only tell what has not been taken yet; no operation of it is on more bytes than come
 * at once.)
 */
static void read_progress(const struct conn *c, uint64_t *out, uint64_t *in)
{
	struct tcp_info info = {0};
	socklen_t len = sizeof(info);
	int unsent = 0;

	*out = *in = 0;
	if (!c->tcp && ioctl(c->fd, SIOCOUTQ, &unsent) == 0) {
		*out = (uint64_t)unsent;
	} else if (c->tcp && getsockopt(network_fd(c), IPPROTO_TCP, TCP_INFO, &info, &len) == 0) {
		*out = info.tcpi_bytes_acked;
		*in = info.tcpi_bytes_received;
	}
}

uint64_t conn_heard(const struct conn *c)
{
	uint64_t out, in;
	int unread = 0;

	if (c->tcp) {
		read_progress(c, &out, &in);
		return in;
	}
	(void)ioctl(c->fd, SIOCINQ, &unread);
	return c->received + (uint64_t)unread;
}

int conn_wait(struct conn *c, const bool *done)
{
	bool patient = c->between_frames && c->patient, looked = false;
	uint64_t since = now_ns(), before[2] = {0};

	while (!*done) {
		uint64_t now = now_ns(), moved[2];
		uint64_t deadline = MIN(patient ? UINT64_MAX : since + c->limit_ns, c->deadline_ns);
		int ret;

		if (now >= deadline || conn_dead_ns(c))
			return -ETIMEDOUT;
		ret = conn_step(c, MIN(deadline - now, CONN_TELL_NS));
		if (ret)
			return ret;
		if (c->cancelled && !*done)
			return -ECANCELED;
		if (*done || now_ns() - now < CONN_TELL_NS)
			continue;
		/* It takes long. */
		read_progress(c, &moved[0], &moved[1]);
		if (looked && moved[done == &c->recv_done] != before[done == &c->recv_done])
			since = now_ns();
		memcpy(before, moved, sizeof(before));
		looked = true;
	}
	return c->cancelled ? -ECANCELED : 0;
}

void conn_break(struct conn *c)
{
	shutdown(c->fd, SHUT_RDWR);
}

void conn_close(struct conn *c)
{
	/* The kernel lets go of our buffers only when every operation has ended. */
	if (c->ring_up) {
		shutdown(c->fd, SHUT_RDWR);
		conn_batches_end(c);
		io_uring_queue_exit(&c->ring);
	}
	if (c->fd >= 0)
		close(c->fd);
	if (c->tls)
		tls_close(c->tls);
	pthread_mutex_destroy(&c->out_lock);
	conn_batches_free(c);
	*c = (struct conn){.fd = -1};
}

int conn_error(struct conn *c, int ret, struct errmsg *err)
{
	bool broke = ret == -ENODATA || ret == -EPIPE || ret == -ECONNRESET;
	uint64_t dead_ns = conn_dead_ns(c);
	struct errmsg why;
	int failed;

	if (dead_ns && ret != -ECANCELED)
		return errmsg_set(err, -ETIMEDOUT, "nothing has come from the %s for %.3g s",
				  c->peer, (double)dead_ns / (double)NS_PER_SEC);
	/* What it was to TLS, which knows more. */
	failed = broke && c->tls ? tls_failed(c->tls, &why) : 0;
	if (failed && why.text[0])
		return errmsg_set(err, failed, "%s", why.text);
	if (failed)
		ret = failed;
	switch (ret) {
	case -ECANCELED:
		return errmsg_set(err, ret, "cancelled");
	case -ETIMEDOUT:
		if (now_ns() >= c->deadline_ns)
			return errmsg_set(err, ret, "the %s does not answer in the time allowed",
					  c->peer);
		return errmsg_set(err, ret, "the %s has made no progress for %.3g s", c->peer,
				  (double)c->limit_ns / (double)NS_PER_SEC);
	case -ENODATA:
		return errmsg_set(err, -ECONNRESET, "the %s closed the connection", c->peer);
	case -EPIPE:
	case -ECONNRESET:
	case -ECONNABORTED:
		return errmsg_set(err, -ECONNRESET, "the connection to the %s broke", c->peer);
	/* What TCP gives up with when it has been told, on the way, why nothing gets through. */
	case -EHOSTUNREACH:
	case -EHOSTDOWN:
	case -ENETUNREACH:
	case -ENETDOWN:
	case -ENETRESET:
	case -ENONET:
	case -ECONNREFUSED:
		return errmsg_set(err, -ECONNRESET, "the connection to the %s broke: %s", c->peer,
				  strerror(-ret));
	default:
		return errmsg_set(err, ret, "connection to the %s: %s", c->peer, strerror(-ret));
	}
}

bool conn_advance(struct msghdr *msg, size_t n)
{
	while (msg->msg_iovlen && n >= msg->msg_iov->iov_len) {
		n -= msg->msg_iov->iov_len;
		msg->msg_iov++;
		msg->msg_iovlen--;
	}
	if (msg->msg_iovlen == 0)
		return true;
	msg->msg_iov->iov_base = (char *)msg->msg_iov->iov_base + n;
	msg->msg_iov->iov_len -= n;
	return false;
}

/* An operation on a buffer of the caller's must not outlive his call. */
static void end_operation(struct conn *c, const bool *done, int how)
{
	shutdown(c->fd, how);
	while (!*done && conn_step(c, NS_PER_SEC) == 0)
		;
}

int conn_recv_vec(struct conn *c, struct iovec *iov, unsigned n, struct errmsg *err)
{
	struct msghdr msg = {.msg_iov = iov, .msg_iovlen = n};

	while (!conn_advance(&msg, 0)) {
		int ret;

		c->recv_done = false;
		io_uring_prep_recvmsg(conn_sqe(c, TAG_RECV), c->fd, &msg,
				      (unsigned)conn_waitall(c));
		ret = conn_wait(c, &c->recv_done);
		if (ret && !c->recv_done)
			end_operation(c, &c->recv_done, SHUT_RD);
		if (ret)
			return conn_error(c, ret, err);
		if (c->recv_res <= 0)
			return conn_error(c, c->recv_res ? c->recv_res : -ENODATA, err);
		c->received += (uint64_t)c->recv_res;
		conn_advance(&msg, (size_t)c->recv_res);
	}
	return 0;
}

int conn_recv(struct conn *c, void *buf, size_t len, struct errmsg *err)
{
	struct iovec iov = {.iov_base = buf, .iov_len = len};

	return conn_recv_vec(c, &iov, 1, err);
}

/* A peer's words go to terminals and into JSON: plain ASCII only. */
void conn_clean_text(char *text, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		if (text[i] < ' ' || text[i] > '~')
			text[i] = '?';
	}
	text[len] = 0;
}

/* The next one, IDLE included. */
static int recv_any_header(struct conn *c, struct wire_frame *f, struct errmsg *err)
{
	char text[WIRE_TEXT_MAX + 1];
	int ret;

	c->between_frames = true;
	ret = conn_recv(c, f, sizeof(*f), err);
	c->between_frames = false;
	if (ret)
		return ret;
	if (f->magic != WIRE_FRAME_MAGIC)
		return errmsg_set(err, -EPROTO, "the %s sent what is no frame (magic %#x)", c->peer,
				  f->magic);
	if (f->seq != c->seq_in)
		return errmsg_set(err, -EPROTO, "the %s sent frame %u where %u was due", c->peer,
				  f->seq, c->seq_in);
	c->seq_in++;
	if (f->type == 0 || f->type >= WIRE_N_TYPES || f->flags)
		return errmsg_set(err, -EPROTO, "the %s sent a frame of unknown type %u, flags %#x",
				  c->peer, f->type, f->flags);
	if (f->length > wire_max_length(f->type))
		return errmsg_set(err, -EPROTO,
				  "the %s sent a %s frame of %u bytes, %u are allowed", c->peer,
				  wire_type_name(f->type), f->length, wire_max_length(f->type));
	if (fault_frame("recv-", wire_type_name(f->type), c->fd))
		f->check ^= 1;
	if (f->type != WIRE_IDLE && f->type != WIRE_CANCEL && f->type != WIRE_FAIL)
		return 0;
	ret = conn_recv(c, text, f->length, err);
	if (ret == 0)
		ret = conn_verify(c, f, text, f->length, err);
	if (ret || f->type == WIRE_IDLE)
		return ret;
	if (f->type == WIRE_CANCEL)
		return errmsg_set(err, -ECONNABORTED, "the %s cancelled", c->peer);
	conn_clean_text(text, f->length);
	c->peer_failed = true;
	return errmsg_set(err, -ECONNABORTED, "the %s says: %s", c->peer, text);
}

int conn_recv_header(struct conn *c, struct wire_frame *f, struct errmsg *err)
{
	int ret;

	do
		ret = recv_any_header(c, f, err);
	while (ret == 0 && f->type == WIRE_IDLE);
	return ret;
}

static bool peer_spoke(const struct conn *c)
{
	struct pollfd p = {.fd = c->fd, .events = POLLIN};
	struct wire_frame f;
	ssize_t n;

	if (poll(&p, 1, 0) <= 0)
		return false;
	if (!c->due)
		return true;
	n = recv(c->fd, &f, sizeof(f), MSG_PEEK | MSG_DONTWAIT);
	return n <= 0 || (n == sizeof(f) && f.type != c->due);
}

int conn_listen(struct conn *c, struct errmsg *err)
{
	struct wire_frame f;
	int ret;

	while (peer_spoke(c)) {
		ret = recv_any_header(c, &f, err);
		if (ret)
			return ret;
		if (f.type != WIRE_IDLE)
			return errmsg_set(err, -EPROTO, "the %s sent %s where nothing was due",
					  c->peer, wire_type_name(f.type));
	}
	return 0;
}

int conn_verify(const struct conn *c, const struct wire_frame *f, const void *payload, size_t len,
		struct errmsg *err)
{
	if (wire_check_sum(f, payload, len) == f->check)
		return 0;
	return errmsg_set(err, -EBADMSG, "a %s frame from the %s was damaged on its way",
			  wire_type_name(f->type), c->peer);
}

int conn_expect(struct conn *c, enum wire_type type, void *payload, uint32_t cap, uint32_t *len,
		struct errmsg *err)
{
	struct wire_frame f;
	int ret = conn_recv_header(c, &f, err);

	if (ret)
		return ret;
	if (f.type != type)
		return errmsg_set(err, -EPROTO, "the %s sent %s where %s was due", c->peer,
				  wire_type_name(f.type), wire_type_name(type));
	if (f.length > cap)
		return errmsg_set(err, -EPROTO,
				  "the %s sent a %s frame of %u bytes, at most %u fit here",
				  c->peer, wire_type_name(type), f.length, cap);
	ret = conn_recv(c, payload, f.length, err);
	if (ret)
		return ret;
	if (len)
		*len = f.length;
	return conn_verify(c, &f, payload, f.length, err);
}

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

/* ---- frames going out ---- */

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
			end_operation(c, &c->send_done, SHUT_RDWR);
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

static int check_prelude(const struct conn *c, const struct wire_prelude *p, uint64_t *session,
			 struct errmsg *err)
{
	if (memcmp(p->magic, WIRE_MAGIC, sizeof(p->magic)) != 0 || p->zero)
		return errmsg_set(err, -EPROTO, "the %s does not speak godwit's migration protocol",
				  c->peer);
	*session = p->session;
	if (p->version < WIRE_MIN_VERSION || p->min_version > WIRE_VERSION)
		return errmsg_set(err, -EPROTONOSUPPORT,
				  "the %s speaks migration protocol %u (down to %u), this godwit "
				  "%u (down to %u): use "
				  "versions that have one in common",
				  c->peer, p->version, p->min_version, WIRE_VERSION,
				  WIRE_MIN_VERSION);
	return 0;
}

int conn_recv_prelude(struct conn *c, uint64_t *session, struct errmsg *err)
{
	struct wire_prelude p;
	int ret = conn_recv(c, &p, sizeof(p), err);

	return ret ? ret : check_prelude(c, &p, session, err);
}

int conn_take_prelude(struct conn *c, const struct wire_prelude *p, uint64_t *session,
		      struct errmsg *err)
{
	c->received += sizeof(*p);
	return check_prelude(c, p, session, err);
}

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

uint64_t conn_cpu_ns(const struct conn *c)
{
	return c->tls ? tls_cpu_ns(c->tls) : 0;
}

bool conn_peer_gone(const struct conn *c)
{
	struct pollfd p = {.fd = c->fd, .events = POLLIN | POLLRDHUP};

	return poll(&p, 1, 0) > 0 && (p.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
}
