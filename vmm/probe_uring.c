/* SPDX-License-Identifier: MIT */
/*
 * Theory of operation: each operation that godwit uses is carried out once and its effect looked
 * at; that a kernel knows an opcode does not say that a sandbox lets it through. Every wait is
 * bounded.
 */
#include <errno.h>
#include <liburing.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "probe_parts.h"

#define WAIT_SECONDS 1
#define RING_ENTRIES 8U
#define FIXED_BYTES (4 * MIB)

#define SEND_ZC_REPORT_USAGE 8U /* IORING_SEND_ZC_REPORT_USAGE, Linux 6.2 */
#define ZC_COPIED 0x80000000U	/* IORING_NOTIF_USAGE_ZC_COPIED */

#define REMEDY_URING                                                                               \
	"use Linux 5.19 or later; in a container, let its seccomp profile allow io_uring_setup, "  \
	"io_uring_enter and io_uring_register"

struct test {
	struct io_uring ring;
	int a, b; /* two ends of a socket pair */
};

static const char payload[] = "bar-tailed godwit";

/* One completion: 0 with its result, user data and flags, or -errno (-ETIME: none came). */
static int wait_one(struct io_uring *ring, int *res, uint64_t *data, uint32_t *flags)
{
	struct __kernel_timespec ts = {.tv_sec = WAIT_SECONDS};
	struct io_uring_cqe *cqe = NULL;
	int ret = io_uring_wait_cqe_timeout(ring, &cqe, &ts);

	if (ret < 0)
		return ret;
	*res = cqe->res;
	*data = cqe->user_data;
	*flags = cqe->flags;
	io_uring_cqe_seen(ring, cqe);
	return 0;
}

/* Submits what has been prepared and gives the operation's result. */
static int complete(struct io_uring *ring)
{
	uint64_t data;
	uint32_t flags;
	int res, ret;

	ret = io_uring_submit(ring);
	if (ret < 0)
		return ret;
	ret = wait_one(ring, &res, &data, &flags);
	return ret ? ret : res;
}

/* The fd at the other end of what was written there: 0, or -EIO when it is not the payload. */
static int expect_payload(int fd)
{
	char buf[sizeof(payload)] = "";

	if (recv(fd, buf, sizeof(buf), MSG_DONTWAIT) != (ssize_t)sizeof(buf))
		return -EIO;
	return memcmp(buf, payload, sizeof(buf)) == 0 ? 0 : -EIO;
}

static int put_payload(int fd)
{
	return send(fd, payload, sizeof(payload), MSG_DONTWAIT) == (ssize_t)sizeof(payload) ? 0
											    : -EIO;
}

static int sent(struct test *t, int res)
{
	if (res < 0)
		return res;
	return res == (int)sizeof(payload) ? expect_payload(t->b) : -EIO;
}

static int received(const char *buf, int res)
{
	if (res < 0)
		return res;
	return res == (int)sizeof(payload) && memcmp(buf, payload, sizeof(payload)) == 0 ? 0 : -EIO;
}

static int try_write(struct test *t)
{
	io_uring_prep_write(io_uring_get_sqe(&t->ring), t->a, payload, sizeof(payload), 0);
	return sent(t, complete(&t->ring));
}

static int try_send(struct test *t)
{
	io_uring_prep_send(io_uring_get_sqe(&t->ring), t->a, payload, sizeof(payload), 0);
	return sent(t, complete(&t->ring));
}

static int try_read(struct test *t)
{
	char buf[sizeof(payload)] = "";

	if (put_payload(t->b))
		return -EIO;
	io_uring_prep_read(io_uring_get_sqe(&t->ring), t->a, buf, sizeof(buf), 0);
	return received(buf, complete(&t->ring));
}

static int try_recv(struct test *t)
{
	char buf[sizeof(payload)] = "";

	if (put_payload(t->b))
		return -EIO;
	io_uring_prep_recv(io_uring_get_sqe(&t->ring), t->a, buf, sizeof(buf), 0);
	return received(buf, complete(&t->ring));
}

static int try_poll(struct test *t)
{
	int res;

	io_uring_prep_poll_add(io_uring_get_sqe(&t->ring), t->a, POLLOUT);
	res = complete(&t->ring);
	if (res < 0)
		return res;
	return res & POLLOUT ? 0 : -EIO;
}

static int try_timeout(struct test *t)
{
	struct __kernel_timespec ts = {.tv_nsec = 1000};
	int res;

	io_uring_prep_timeout(io_uring_get_sqe(&t->ring), &ts, 0, 0);
	res = complete(&t->ring);
	return res == -ETIME ? 0 : res < 0 ? res : -EIO;
}

static int try_cancel(struct test *t)
{
	enum { POLL = 1, CANCEL = 2 };
	struct io_uring_sqe *sqe;
	int poll_res = 0, cancel_res = -EIO;
	int ret;

	sqe = io_uring_get_sqe(&t->ring);
	io_uring_prep_poll_add(sqe, t->a, POLLIN);
	io_uring_sqe_set_data64(sqe, POLL);
	sqe = io_uring_get_sqe(&t->ring);
	io_uring_prep_cancel64(sqe, POLL, 0);
	io_uring_sqe_set_data64(sqe, CANCEL);
	ret = io_uring_submit(&t->ring);
	for (int i = 0; i < 2 && ret >= 0; i++) {
		uint64_t data;
		uint32_t flags;
		int res;

		ret = wait_one(&t->ring, &res, &data, &flags);
		if (ret)
			break;
		*(data == POLL ? &poll_res : &cancel_res) = res;
	}
	if (ret < 0)
		return ret;
	if (cancel_res < 0)
		return cancel_res;
	return poll_res == -ECANCELED ? 0 : -EIO;
}

static const struct operation {
	const char *name;
	int (*try)(struct test *t);
} operations[] = {
	{"POLL_ADD", try_poll}, {"READ", try_read}, {"WRITE", try_write},
	{"SEND", try_send},	{"RECV", try_recv}, {"TIMEOUT", try_timeout},
	{"CANCEL", try_cancel},
};

static int open_ring(struct io_uring *ring, struct probe_item *item)
{
	long disabled = probe_read_number("/proc/sys/kernel/io_uring_disabled", 0);
	int ret = io_uring_queue_init(RING_ENTRIES, ring, 0);

	if (!ret)
		return 0;
	if (ret == -EPERM && disabled > 0)
		probe_not(item, PROBE_MISSING, "`sudo sysctl kernel.io_uring_disabled=0`",
			  "io_uring is turned off (kernel.io_uring_disabled = %ld)", disabled);
	else
		probe_not(item, PROBE_MISSING, REMEDY_URING, "io_uring_setup: %s", strerror(-ret));
	return ret;
}

void probe_uring(struct probe_ctx *ctx, struct probe_item *item)
{
	char done[100] = "", failed[100] = "";
	struct test t;
	int pair[2];

	(void)ctx;
	if (open_ring(&t.ring, item))
		return;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair)) {
		probe_not(item, PROBE_MISSING, "raise `ulimit -n`", "socketpair: %s",
			  strerror(errno));
		io_uring_queue_exit(&t.ring);
		return;
	}
	t.a = pair[0];
	t.b = pair[1];
	/* After a failure completions and bytes may be left over that would mislead the next. */
	for (size_t i = 0; i < ARRAY_SIZE(operations) && !failed[0]; i++) {
		int ret = operations[i].try(&t);

		if (ret)
			snprintf(failed, sizeof(failed), "%s: %s", operations[i].name,
				 strerror(-ret));
		else
			snprintf(done + strlen(done), sizeof(done) - strlen(done), "%s%s",
				 i ? ", " : "", operations[i].name);
	}
	if (failed[0])
		probe_not(item, PROBE_MISSING, REMEDY_URING, "%s", failed);
	else
		probe_ok(item, "%s", done);
	close(t.a);
	close(t.b);
	io_uring_queue_exit(&t.ring);
}

/* A TCP connection over loopback: Unix sockets do not take zero copy. */
static int tcp_pair(int pair[2])
{
	struct sockaddr_in addr = {
		.sin_family = AF_INET,
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};
	socklen_t len = sizeof(addr);
	AUTO_CLOSE int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int ret;

	pair[0] = pair[1] = -1;
	if (listener < 0 || bind(listener, (struct sockaddr *)&addr, sizeof(addr)) ||
	    listen(listener, 1) || getsockname(listener, (struct sockaddr *)&addr, &len))
		return -errno;
	pair[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (pair[0] < 0)
		return -errno;
	if (connect(pair[0], (struct sockaddr *)&addr, sizeof(addr)) && errno != EINPROGRESS) {
		ret = -errno;
	} else if (poll(&(struct pollfd){.fd = listener, .events = POLLIN}, 1,
			WAIT_SECONDS * 1000) != 1) {
		ret = -ETIMEDOUT;
	} else {
		pair[1] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		ret = pair[1] < 0 ? -errno : 0;
	}
	if (ret)
		close(pair[0]);
	return ret;
}

/* 0 with the notification's word on copying, or -errno. */
static int send_zc(struct io_uring *ring, int fd, uint16_t how, uint32_t *usage)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(ring);
	uint64_t data;
	uint32_t flags;
	int sent_res = 0, res, ret;

	io_uring_prep_send_zc(sqe, fd, payload, sizeof(payload), 0, how);
	ret = io_uring_submit(ring);
	if (ret < 0)
		return ret;
	for (;;) {
		ret = wait_one(ring, &res, &data, &flags);
		if (ret)
			return ret;
		if (flags & IORING_CQE_F_NOTIF) {
			*usage = (uint32_t)res;
			break;
		}
		sent_res = res;
		if (!(flags & IORING_CQE_F_MORE))
			break;
	}
	if (sent_res < 0)
		return sent_res;
	return sent_res == (int)sizeof(payload) ? 0 : -EIO;
}

void probe_uring_zc(struct probe_ctx *ctx, struct probe_item *item)
{
	struct io_uring ring;
	uint32_t usage = 0;
	int pair[2];
	int ret;

	(void)ctx;
	if (open_ring(&ring, item))
		return;
	ret = tcp_pair(pair);
	if (ret) {
		probe_not(item, PROBE_LIMITED, "bring the loopback device up: `ip link set lo up`",
			  "not tried: no TCP connection over loopback: %s", strerror(-ret));
		goto out;
	}
	ret = send_zc(&ring, pair[0], SEND_ZC_REPORT_USAGE, &usage);
	if (ret == -EINVAL) /* Linux 6.0 and 6.1 do not report */
		ret = send_zc(&ring, pair[0], 0, &usage);
	if (!ret &&
	    poll(&(struct pollfd){.fd = pair[1], .events = POLLIN}, 1, WAIT_SECONDS * 1000) == 1)
		ret = expect_payload(pair[1]);
	if (ret)
		probe_not(item, PROBE_LIMITED,
			  "use Linux 6.0 or later; until then sent pages are copied once more",
			  "SEND_ZC: %s", strerror(-ret));
	else
		probe_ok(item, "SEND_ZC%s",
			 usage & ZC_COPIED ? " (over loopback the kernel copies anyway)" : "");
	close(pair[0]);
	close(pair[1]);
out:
	io_uring_queue_exit(&ring);
}

void probe_memlock(struct probe_ctx *ctx, struct probe_item *item)
{
	char limit[32] = "unlimited";
	struct io_uring ring;
	struct rlimit rl;
	struct iovec iov = {.iov_len = FIXED_BYTES};
	int ret;

	(void)ctx;
	if (open_ring(&ring, item))
		return;
	if (getrlimit(RLIMIT_MEMLOCK, &rl) == 0 && rl.rlim_cur != RLIM_INFINITY)
		format_size(limit, sizeof(limit), rl.rlim_cur);
	iov.iov_base =
		mmap(NULL, iov.iov_len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ret = iov.iov_base == MAP_FAILED ? -errno : io_uring_register_buffers(&ring, &iov, 1);
	if (ret)
		probe_not(item, PROBE_LIMITED,
			  "raise the limit: `ulimit -l unlimited`, or LimitMEMLOCK= in a unit",
			  "4 MiB cannot be registered with io_uring: %s (RLIMIT_MEMLOCK is %s)",
			  strerror(-ret), limit);
	else
		probe_ok(item, "4 MiB registered with io_uring; RLIMIT_MEMLOCK is %s", limit);
	if (iov.iov_base != MAP_FAILED)
		munmap(iov.iov_base, iov.iov_len);
	io_uring_queue_exit(&ring);
}
