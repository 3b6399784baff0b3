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
void conn_end_operation(struct conn *c, const bool *done, int how)
{
	shutdown(c->fd, how);
	while (!*done && conn_step(c, NS_PER_SEC) == 0)
		;
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
