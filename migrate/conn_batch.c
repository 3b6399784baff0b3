/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <linux/sockios.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../vmm/fault.h"
#include "conn_parts.h"

/* Linux 6.2; older headers lack them. */
#ifndef IORING_SEND_ZC_REPORT_USAGE
#define IORING_SEND_ZC_REPORT_USAGE (1U << 3)
#endif
#ifndef IORING_NOTIF_USAGE_ZC_COPIED
#define IORING_NOTIF_USAGE_ZC_COPIED (1U << 31)
#endif

#define AREA_BYTES (CONN_HEADERS_BYTES + CONN_BATCH_BYTES)

/*
 * Less is copied sooner than accounted for. And a send that is no longer than what one socket
 * buffer holds may find room in the one before, which the kernel then reports as copied.
 */
#define ZEROCOPY_MIN (128 * KIB)

/* Zero copy is given up when about every third batch or more starved the network. */
#define STARVED_MAX 16U

_Static_assert(sizeof(struct wire_frame) + sizeof(struct wire_batch) +
			       WIRE_BATCH_DESCS * sizeof(struct wire_desc) <=
		       CONN_HEADERS_BYTES,
	       "a batch's headers fit in front of its data");

int conn_batches_init(struct conn *c, struct errmsg *err)
{
	void *memory = mmap(NULL, CONN_BATCHES * AREA_BYTES, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		return errmsg_set(err, -ENOMEM, "no memory for the migration's buffers");
	c->memory = memory;
	for (unsigned i = 0; i < CONN_BATCHES; i++)
		c->batch[i].data = c->memory + i * AREA_BYTES + CONN_HEADERS_BYTES;
	return 0;
}

void conn_batches_free(struct conn *c)
{
	if (c->memory)
		munmap(c->memory, CONN_BATCHES * AREA_BYTES);
	for (unsigned i = 0; i < CONN_BATCHES; i++)
		free(c->batch[i].packed);
}

/* ---- zero copy ---- */

/* Once, as the first large batch goes out. */
static void begin_zerocopy(struct conn *c)
{
	struct io_uring_probe *probe = io_uring_get_probe_ring(&c->ring);
	struct iovec iov = {.iov_base = c->memory, .iov_len = CONN_BATCHES * AREA_BYTES};

	c->zc_begun = true;
	c->zc_report = true;
	/* RLIMIT_MEMLOCK may forbid it: the kernel then looks the pages up for each send. */
	if (probe && io_uring_opcode_supported(probe, IORING_OP_SEND_ZC))
		c->zc_registered = io_uring_register_buffers(&c->ring, &iov, 1) == 0;
	else
		c->zerocopy = CONN_ZEROCOPY_NEVER;
	io_uring_free_probe(probe);
}

static bool want_zerocopy(struct conn *c, const struct conn_batch *b)
{
	if (c->zerocopy == CONN_ZEROCOPY_NEVER || b->n_pieces ||
	    b->msg.msg_iov->iov_len < ZEROCOPY_MIN)
		return false;
	if (!c->zc_begun)
		begin_zerocopy(c);
	return c->zerocopy != CONN_ZEROCOPY_NEVER;
}

/* One piece, as what is not packed always is. */
static void prepare_zerocopy(const struct conn *c, struct io_uring_sqe *sqe, const struct iovec *v)
{
	/*
	 * MSG_EOR: the next batch begins a socket buffer of its own. Where two share one the kernel
	 * tells of both only when it has done with both, and so on through all that follow.
	 */
	int flags = conn_waitall(c) | MSG_NOSIGNAL | MSG_EOR;
	unsigned how = c->zc_report ? IORING_SEND_ZC_REPORT_USAGE : 0;

	if (c->zc_registered)
		io_uring_prep_send_zc_fixed(sqe, c->fd, v->iov_base, v->iov_len, flags, how, 0);
	else
		io_uring_prep_send_zc(sqe, c->fd, v->iov_base, v->iov_len, flags, how);
}

/* Not the connection's fault: sent again, the plain way if need be. */
static bool refused_zerocopy(struct conn *c, int res)
{
	if (res != -EOPNOTSUPP && res != -EINVAL && res != -ENOMEM)
		return false;
	if (res == -EINVAL && c->zc_report && c->zerocopy == CONN_ZEROCOPY_ALWAYS)
		c->zc_report = false;
	else
		c->zerocopy = CONN_ZEROCOPY_NEVER;
	return true;
}

/* The kernel refers to nothing of b any more. */
static void settle_batch(struct conn *c, struct conn_batch *b)
{
	if (b->zc_bytes && !b->copied && c->zc_report)
		c->zc_uncopied += b->zc_bytes;
	else if (b->zc_bytes && c->zerocopy == CONN_ZEROCOPY_AUTO)
		c->zerocopy = CONN_ZEROCOPY_NEVER;
	b->zc_bytes = 0;
	b->copied = false;
}

/*
 * A batch that was not copied is free only when the peer has acknowledged it. Where the round trip
 * is longer than the other batches last the network stands idle meanwhile, which copies in the
 * socket's own buffer would prevent. waited: for one to be let go of. Has the socket anything left
 * to put on the network, now that it has been? (A piece of a segment may wait for more.)
 */
static void weigh_wait(struct conn *c, bool waited)
{
	int unsent;

	if (c->zerocopy != CONN_ZEROCOPY_AUTO)
		return;
	if (waited && c->queued == 0 && ioctl(c->fd, SIOCOUTQNSD, &unsent) == 0 &&
	    unsent < (int)PAGE_SIZE)
		c->zc_starved += 2;
	else if (c->zc_starved)
		c->zc_starved--;
	if (c->zc_starved >= STARVED_MAX)
		c->zerocopy = CONN_ZEROCOPY_NEVER;
}

/* ---- sending ---- */

static void submit_oldest(struct conn *c)
{
	unsigned i = (c->next_free + CONN_BATCHES - c->queued) % CONN_BATCHES;
	struct conn_batch *b = &c->batch[i];
	struct io_uring_sqe *sqe;

	c->send_done = false;
	b->held++;
	conn_pace(c, &b->msg);
	b->zerocopy = want_zerocopy(c, b);
	sqe = conn_sqe(c, TAG_BATCH + i);
	if (b->zerocopy)
		prepare_zerocopy(c, sqe, b->msg.msg_iov);
	else
		io_uring_prep_sendmsg(sqe, c->fd, &b->msg,
				      (unsigned)conn_waitall(c) | MSG_NOSIGNAL);
}

/* A send without a copy completes twice, as IORING_CQE_F_MORE says: sent, and let go of. */
void conn_batch_completed(struct conn *c, struct conn_batch *b, const struct io_uring_cqe *cqe)
{
	bool more = cqe->flags & IORING_CQE_F_MORE;

	c->batch_moved = true;
	if (cqe->flags & IORING_CQE_F_NOTIF) {
		if ((uint32_t)cqe->res & IORING_NOTIF_USAGE_ZC_COPIED)
			b->copied = true;
	} else {
		c->send_done = true;
		c->send_res = cqe->res;
		if (more && cqe->res > 0) {
			b->zc_bytes += (uint64_t)cqe->res;
			c->zc_tried += (uint64_t)cqe->res;
		}
	}
	if (!more && --b->held == 0)
		settle_batch(c, b);
}

int conn_batches_reap(struct conn *c, struct errmsg *err)
{
	while (c->queued && c->send_done) {
		struct conn_batch *b =
			&c->batch[(c->next_free + CONN_BATCHES - c->queued) % CONN_BATCHES];
		bool again = b->zerocopy && refused_zerocopy(c, c->send_res);

		conn_paced(c, &b->msg, c->send_res);
		if (c->send_res <= 0 && !again) {
			c->queued = 0;
			return conn_send_error(c, c->send_res ? c->send_res : -EPIPE, err);
		}
		if (!again) {
			c->sent += (uint64_t)c->send_res;
			if (conn_advance(&b->msg, (size_t)c->send_res))
				c->queued--;
			if (c->queued == 0) {
				conn_end_frame(c);
				break;
			}
		}
		submit_oldest(c);
		if (conn_step(c, 0))
			break;
	}
	return 0;
}

/* Until the oldest has been sent, or any is free again. */
static int wait_moved(struct conn *c, struct errmsg *err)
{
	int ret = 0;

	if (!c->queued || !c->send_done) {
		c->batch_moved = false;
		ret = conn_wait(c, &c->batch_moved);
	}
	if (ret)
		return conn_error(c, ret, err);
	return conn_batches_reap(c, err);
}

struct conn_batch *conn_batch(struct conn *c, int *ret, struct errmsg *err)
{
	struct conn_batch *b = &c->batch[c->next_free];
	uint64_t since;
	bool waited;

	*ret = 0;
	/* It may have been let go of meanwhile; an error comes again. */
	if (b->held)
		conn_step(c, 0);
	waited = b->held;
	while (c->queued == CONN_BATCHES || b->held) {
		since = now_ns();
		*ret = wait_moved(c, err);
		c->blocked_ns += now_ns() - since;
		if (*ret)
			return NULL;
	}
	weigh_wait(c, waited);
	b->head = (struct wire_batch){0};
	b->n_pieces = 0;
	b->room = c->rate ? rate_frame(c->rate, CONN_BATCH_BYTES) : CONN_BATCH_BYTES;
	return b;
}

void conn_batch_piece(struct conn_batch *b, const void *piece, size_t len)
{
	struct iovec *last = &b->iov[b->n_pieces];

	if (b->n_pieces && (uint8_t *)last->iov_base + last->iov_len == piece)
		last->iov_len += len;
	else
		b->iov[++b->n_pieces] =
			(struct iovec){.iov_base = (void *)(uintptr_t)piece, .iov_len = len};
}

int conn_poll(struct conn *c, struct errmsg *err)
{
	int ret = conn_step(c, 0);

	if (ret == 0 && c->cancelled)
		ret = -ECANCELED;
	else if (ret == 0 && conn_dead_ns(c))
		ret = -ETIMEDOUT;
	if (ret)
		return conn_error(c, ret, err);
	ret = conn_listen(c, err);
	return ret ? ret : conn_batches_reap(c, err);
}

int conn_send_batch(struct conn *c, struct conn_batch *b, struct errmsg *err)
{
	size_t descs = sizeof(b->head) + b->head.n_descs * sizeof(b->desc[0]);
	size_t contents = wire_batch_contents(&b->head);
	struct wire_frame frame = {
		.magic = WIRE_FRAME_MAGIC,
		.type = WIRE_PAGES,
		.length = (uint32_t)(descs + contents),
	};
	uint8_t *start = b->data - descs - sizeof(frame);

	if (c->queued == 0)
		conn_begin_frame(c);
	frame.seq = c->seq_out++;
	frame.check = wire_check_sum(&frame, &b->head, descs);
	/* They end where the data begins: one piece. head and desc lie side by side, too. */
	memcpy(start, &frame, sizeof(frame));
	memcpy(start + sizeof(frame), &b->head, descs);
	b->iov[0] = (struct iovec){.iov_base = start, .iov_len = sizeof(frame) + descs};
	if (b->head.packed)
		conn_batch_piece(b, b->packed, contents);
	else if (b->n_pieces == 0)
		b->iov[0].iov_len += contents;
	if (fault_frame("send-", wire_type_name(WIRE_PAGES), c->fd))
		start[sizeof(frame) + descs + (b->n_pieces ? 0 : contents / 2) - 1] ^= 1;
	b->msg = (struct msghdr){.msg_iov = b->iov, .msg_iovlen = 1 + b->n_pieces};
	c->next_free = (c->next_free + 1) % CONN_BATCHES;
	c->queued++;
	if (c->queued == 1)
		submit_oldest(c);
	return conn_poll(c, err);
}

void conn_settle(struct conn *c)
{
	conn_step(c, 0);
}

int conn_flush(struct conn *c, struct errmsg *err)
{
	while (c->queued) {
		int ret = wait_moved(c, err);

		if (ret)
			return ret;
	}
	return 0;
}

/* ---- the end ---- */

void conn_batches_drop(struct conn *c)
{
	unsigned drop = c->queued ? c->queued - 1 : 0;

	/* One send is under way at a time. */
	c->next_free = (c->next_free + CONN_BATCHES - drop) % CONN_BATCHES;
	c->seq_out -= drop;
	c->queued -= drop;
}

static bool any_held(const struct conn *c)
{
	for (unsigned i = 0; i < CONN_BATCHES; i++) {
		if (c->batch[i].held)
			return true;
	}
	return false;
}

void conn_batches_end(struct conn *c)
{
	struct linger reset = {.l_onoff = 1, .l_linger = 0};

	for (unsigned i = 0; i < 10 && c->queued && !c->send_done; i++)
		conn_step(c, NS_PER_SEC / 10);
	conn_step(c, 0);
	if (!any_held(c))
		return;
	/*
	 * What the peer has not acknowledged would be sent again and again, for minutes if it is
	 * gone, with our pages pinned: a reset drops it at once. Should the network's hardware hold
	 * on to some, they stay the kernel's until it has done with them, also when unmapped here.
	 */
	setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
	close(c->fd);
	c->fd = -1;
	for (unsigned i = 0; i < 10 && any_held(c); i++)
		conn_step(c, NS_PER_SEC / 10);
}
