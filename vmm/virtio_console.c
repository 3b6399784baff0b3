/* SPDX-License-Identifier: MIT */
/*
 * Theory of operation:
 *
 *	transmitq ---> out ---> peer's socket		flush(), serve_tx()
 *	receiveq <--- in <--- peer's socket		serve_rx()
 *
 * Nobody holds a chain while the loop turns. A buffer to send that is larger than the room in
 * `out`, or than a turn, is put back, and tx_done remembers how much of it was taken; a buffer to
 * fill is put back when the peer has nothing to say. So there is never a request in flight.
 *
 * `in` is empty but for what was taken off a socket ahead of the guest's buffers: at a pause, and
 * from a peer that has gone.
 *
 * Threads: sockets are opened, shut and used on any thread with the device's lock held, but polled
 * and closed on the loop's only, so that no poll is ever submitted for an fd that is somebody
 * else's by then. Whoever wants such a thing done leaves a mark and posts `tend`.
 */
#include "virtio_console.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "unix_listen.h"
#include "virtio.h"

enum {
	RX,
	TX,
	N_QUEUES,
};

#define QUEUE_SIZE 128U
#define CHUNK 4096U
/* What one turn may take: bytes, and what a buffer costs besides. */
#define TURN (int64_t)(256 * KIB)
#define CHAIN_COST KIB
#define LISTEN_BACKLOG 8
#define ACCEPT_RETRY_NS (100 * NS_PER_MS)

struct ring {
	uint32_t head, len;
	uint8_t data[VIRTIO_CONSOLE_BACKLOG];
};

/* A socket and the polls on it. Freed by sweep() once it is dropped and no poll is pending. */
struct endpoint {
	struct virtio_console *c;
	struct endpoint *next;
	int fd;
	struct loop_op in, out; /* a listener's `out` is the timer of its next try */
	bool in_eof;		/* the peer sends no more; it may still listen */
	bool dropped;
};

struct virtio_console {
	struct virtio v;
	char path[VM_SOCKET_MAX];
	struct unix_listen address;
	struct endpoint *listener, *peer; /* NULL, or one of: */
	struct endpoint *endpoints;
	struct loop_task tend;
	uint64_t tx_done; /* bytes of the next chain to send that are in `out` already */
	struct ring out, in;
};

static struct virtio_console *to_console(struct device *d)
{
	return container_of(d, struct virtio_console, v.dev);
}

static struct loop *loop_of(struct virtio_console *c)
{
	return c->v.dev.vm->loop;
}

/* ---- rings ---- */

static uint32_t ring_room(const struct ring *r)
{
	return (uint32_t)sizeof(r->data) - r->len;
}

/* The first bytes in one piece; how many. */
static uint32_t ring_front(struct ring *r, uint8_t **at)
{
	*at = r->data + r->head;
	return MIN(r->len, (uint32_t)sizeof(r->data) - r->head);
}

static void ring_drop(struct ring *r, uint32_t n)
{
	r->head = (r->head + n) % (uint32_t)sizeof(r->data);
	r->len -= n;
}

/* Where the next bytes go, in one piece; how many may. */
static uint32_t ring_back(struct ring *r, uint8_t **at)
{
	uint32_t tail = (r->head + r->len) % (uint32_t)sizeof(r->data);

	*at = r->data + tail;
	return MIN(ring_room(r), (uint32_t)sizeof(r->data) - tail);
}

static void ring_fields(struct ring *r, struct sbuf *s, const char *name)
{
	size_t mark = sb_enter(s, "%s", name);
	uint32_t len = r->len;

	sb_u32_range(s, &len, 0, sizeof(r->data));
	if (s->loading) {
		sb_bytes(s, r->data, s->err ? 0 : len);
		r->head = 0;
		r->len = s->err ? 0 : len;
	} else {
		uint32_t first = MIN(len, (uint32_t)sizeof(r->data) - r->head);

		sb_bytes(s, r->data + r->head, first);
		sb_bytes(s, r->data, len - first);
	}
	sb_leave(s, mark);
}

/* ---- endpoints ---- */

static void let_in(struct virtio_console *c);

/* Owns fd, and closes it when there is no memory (NULL). */
static struct endpoint *endpoint_new(struct virtio_console *c, int fd, loop_done_fn *on_in,
				     loop_done_fn *on_out)
{
	struct endpoint *e = calloc(1, sizeof(*e));

	if (!e) {
		close(fd);
		return NULL;
	}
	*e = (struct endpoint){.c = c, .fd = fd, .next = c->endpoints};
	e->in.done = on_in;
	e->out.done = on_out;
	c->endpoints = e;
	return e;
}

/* Ends it for the other side at once; sweep() does the rest. Takes its owner's pointer away. */
static void endpoint_drop(struct endpoint **owner)
{
	struct endpoint *e = *owner;

	*owner = NULL;
	shutdown(e->fd, SHUT_RDWR);
	e->dropped = true;
	loop_post(loop_of(e->c), &e->c->tend);
}

/* The guest's buffers wait for no peer that is gone. */
static void drop_peer(struct virtio_console *c)
{
	endpoint_drop(&c->peer);
	virtio_serve_all(&c->v);
}

/* Loop's thread. */
static void sweep(struct virtio_console *c)
{
	struct endpoint **p = &c->endpoints;

	while (*p) {
		struct endpoint *e = *p;

		if (!e->dropped || e->in.pending || e->out.pending) {
			p = &e->next;
			continue;
		}
		*p = e->next;
		close(e->fd);
		free(e);
	}
}

/* Has the peer closed, and not just stopped sending? Bytes of its may still be there to read. */
static bool hung_up(const struct endpoint *e)
{
	struct pollfd p = {.fd = e->fd};

	return poll(&p, 1, 0) == 1;
}

/* ---- guest to peer ---- */

/* Writes what the peer takes. Loop's thread, or (not to poll) at a pause. */
static void flush(struct virtio_console *c)
{
	while (c->peer && c->out.len) {
		uint8_t *at;
		uint32_t len = ring_front(&c->out, &at);
		ssize_t n = send(c->peer->fd, at, len, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n > 0)
			ring_drop(&c->out, (uint32_t)n);
		else if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		else
			drop_peer(c);
	}
}

static void poll_out(struct virtio_console *c)
{
	if (c->peer && c->out.len && !c->peer->out.pending)
		loop_poll(loop_of(c), &c->peer->out, c->peer->fd, POLLOUT);
}

/*
 * Takes bytes of a chain from tx_done on, as many as the turn has left or a few more; false when
 * the peer must take some first.
 */
static bool take(struct virtio_console *c, const struct virtq_chain *chain, int64_t *left)
{
	while (c->tx_done<chain->out_len && * left> 0) {
		uint8_t *at;
		uint32_t len;

		if (ring_room(&c->out) == 0) {
			/* Nothing is dropped while somebody waits to be let in. */
			if (!c->peer && c->listener)
				let_in(c);
			flush(c);
		}
		if (ring_room(&c->out) == 0 && c->peer)
			return false;
		if (ring_room(&c->out) == 0)
			ring_drop(&c->out, (uint32_t)MIN(CHUNK, chain->out_len - c->tx_done));
		len = ring_back(&c->out, &at);
		len = (uint32_t)virtq_read(chain, c->tx_done, at, MIN(len, CHUNK));
		c->out.len += len;
		c->tx_done += len;
		*left -= len;
	}
	return true;
}

static void serve_tx(struct virtio_console *c)
{
	struct virtio_turn turn = virtio_begin_turn(&c->v, TX, TURN);
	struct iovec iov[QUEUE_SIZE];
	struct virtq_chain chain = {.iov = iov, .max = QUEUE_SIZE};

	while (virtio_next(&turn, &chain)) {
		if (chain.n_in) {
			virtio_fail(&c->v, "a buffer to send that is to be written");
			break;
		}
		turn.left -= (int64_t)CHAIN_COST;
		if (!take(c, &chain, &turn.left)) {
			virtq_unpop(&c->v.queue[TX].q);
			poll_out(c); /* which goes on here */
			return;
		}
		if (c->tx_done < chain.out_len) {
			virtq_unpop(&c->v.queue[TX].q); /* and the next turn goes on */
			continue;
		}
		c->tx_done = 0;
		virtio_push(&c->v, TX, chain.head, 0);
	}
	flush(c);
	poll_out(c);
}

/* ---- peer to guest ---- */

/* What recv() says of the peer. 0 also when it sends no more. */
static uint32_t receive(struct virtio_console *c, void *buf, uint32_t len)
{
	struct endpoint *e = c->peer;
	ssize_t n;

	if (!e || e->in_eof)
		return 0;
	n = recv(e->fd, buf, len, MSG_DONTWAIT);
	if (n > 0)
		return (uint32_t)n;
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	e->in_eof = true;
	if (n < 0 || hung_up(e))
		drop_peer(c);
	return 0;
}

/* Takes off the socket what fits into `in`, ahead of the guest; how much it was. */
static uint32_t receive_ahead(struct virtio_console *c)
{
	uint32_t before = c->in.len, n;

	do {
		uint8_t *at;
		uint32_t len = ring_back(&c->in, &at);

		n = len ? receive(c, at, len) : 0;
		c->in.len += n;
	} while (n);
	return c->in.len - before;
}

/* The next bytes for the guest. */
static uint32_t next_input(struct virtio_console *c, void *buf, uint32_t len)
{
	uint8_t *at;
	uint32_t n;

	if (c->in.len == 0)
		return receive(c, buf, len);
	n = MIN(ring_front(&c->in, &at), len);
	memcpy(buf, at, n);
	ring_drop(&c->in, n);
	return n;
}

static void serve_rx(struct virtio_console *c)
{
	struct virtio *v = &c->v;
	struct virtio_turn turn = virtio_begin_turn(v, RX, TURN);
	struct iovec iov[QUEUE_SIZE];
	struct virtq_chain chain = {.iov = iov, .max = QUEUE_SIZE};
	uint8_t chunk[CHUNK];

	while (virtio_next(&turn, &chain)) {
		uint32_t n;

		if (chain.n_out || !chain.in_len) {
			virtio_fail(v, "a buffer for input that cannot be written");
			return;
		}
		n = next_input(c, chunk, (uint32_t)MIN(chain.in_len, sizeof(chunk)));
		if (n == 0) {
			/* It is the peer that is waited for: no kick is of use. */
			virtq_unpop(&v->queue[RX].q);
			if (c->peer && !c->peer->in_eof && !c->peer->in.pending)
				loop_poll(loop_of(c), &c->peer->in, c->peer->fd, POLLIN);
			return;
		}
		virtq_write(&chain, &v->dev.vm->ram, 0, chunk, n);
		virtio_push(v, RX, chain.head, n);
		turn.left -= (int64_t)(CHAIN_COST + n);
	}
}

/* ---- on the loop's thread ---- */

static void console_serve(struct virtio *v, unsigned queue)
{
	struct virtio_console *c = container_of(v, struct virtio_console, v);

	if (queue == RX)
		serve_rx(c);
	else
		serve_tx(c);
}

/* Both are about a peer's socket; while the device is at rest its state must stay as it is. */
static void on_readable(struct loop_op *op, int32_t res)
{
	struct endpoint *e = container_of(op, struct endpoint, in);
	struct virtio_console *c = e->c;

	(void)res; /* recv() says it clearer */
	pthread_mutex_lock(&c->v.lock);
	if (e->dropped)
		sweep(c);
	else if (virtio_live(&c->v) && c->v.queue[RX].q.ready)
		serve_rx(c);
	pthread_mutex_unlock(&c->v.lock);
}

static void on_writable(struct loop_op *op, int32_t res)
{
	struct endpoint *e = container_of(op, struct endpoint, out);
	struct virtio_console *c = e->c;

	(void)res;
	pthread_mutex_lock(&c->v.lock);
	if (e->dropped) {
		sweep(c);
	} else if (virtio_live(&c->v) && c->v.queue[TX].q.ready) {
		serve_tx(c);
	} else if (!c->v.stopped) {
		flush(c);
		poll_out(c);
	}
	pthread_mutex_unlock(&c->v.lock);
}

/* A peer that is gone makes place for the next one, unless bytes of its do not fit anywhere. */
static void look_after_peer(struct virtio_console *c)
{
	if (!c->peer || !hung_up(c->peer))
		return;
	receive_ahead(c);
	if (c->peer && ring_room(&c->in))
		drop_peer(c);
}

static void on_retry(struct loop_op *op, int32_t res)
{
	struct endpoint *e = container_of(op, struct endpoint, out);

	(void)res;
	loop_post(loop_of(e->c), &e->c->tend);
}

/* Accepts one that waits, and serves it if there is no other. */
static void let_in(struct virtio_console *c)
{
	struct endpoint *l = c->listener;
	int fd = accept4(l->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

	if (fd < 0) {
		/* Whoever came is still there when it is for want of fds or memory. */
		if (!l->out.pending &&
		    (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM))
			loop_timer(loop_of(c), &l->out, ACCEPT_RETRY_NS);
		return;
	}
	look_after_peer(c);
	if (c->peer) {
		log_debug("console %u: %s has its peer: another one is turned away",
			  c->v.dev.instance, c->path);
		close(fd);
		return;
	}
	c->peer = endpoint_new(c, fd, on_readable, on_writable);
	virtio_serve_all(&c->v);
}

static void on_accept(struct loop_op *op, int32_t res)
{
	struct endpoint *e = container_of(op, struct endpoint, in);
	struct virtio_console *c = e->c;

	(void)res;
	pthread_mutex_lock(&c->v.lock);
	/* At rest: whoever comes waits for the resume, or is refused by the release. */
	if (!e->dropped && !c->v.stopped)
		let_in(c);
	loop_post(loop_of(c), &c->tend);
	pthread_mutex_unlock(&c->v.lock);
}

static void on_tend(struct loop_task *task)
{
	struct virtio_console *c = container_of(task, struct virtio_console, tend);
	struct endpoint *l;

	pthread_mutex_lock(&c->v.lock);
	sweep(c);
	if (!c->v.stopped) {
		l = c->listener;
		if (l && !l->in.pending && !l->out.pending)
			loop_poll(loop_of(c), &l->in, l->fd, POLLIN);
		flush(c);
		poll_out(c);
	}
	pthread_mutex_unlock(&c->v.lock);
}

/* ---- the socket ---- */

static int console_acquire(struct device *d, struct errmsg *err)
{
	struct virtio_console *c = to_console(d);
	int ret = 0;

	pthread_mutex_lock(&c->v.lock);
	if (!c->listener)
		ret = unix_listen(&c->address, "console", c->path, LISTEN_BACKLOG, err);
	if (ret >= 0 && !c->listener) {
		c->listener = endpoint_new(c, ret, on_accept, on_retry);
		ret = 0;
		if (!c->listener) {
			unix_unlisten(c->v.dev.vm->cfg.confine, &c->address);
			ret = errmsg_set(err, -ENOMEM, "console: no memory");
		}
		loop_post(loop_of(c), &c->tend);
	}
	pthread_mutex_unlock(&c->v.lock);
	return ret;
}

/* With the lock held. */
static void stop_listening(struct virtio_console *c)
{
	if (!c->listener)
		return;
	unix_unlisten(c->v.dev.vm->cfg.confine, &c->address);
	endpoint_drop(&c->listener);
}

static void console_release(struct device *d)
{
	struct virtio_console *c = to_console(d);
	int left = 0;
	uint32_t late;

	pthread_mutex_lock(&c->v.lock);
	stop_listening(c);
	/* If the hand-over fails, the guest gets it here after all. */
	late = receive_ahead(c);
	if (c->peer && ioctl(c->peer->fd, FIONREAD, &left) == 0)
		late += (uint32_t)left;
	if (late)
		log_warn("console %u: %u bytes that came while the guest was handed over do not "
			 "go with it",
			 d->instance, late);
	if (c->peer)
		endpoint_drop(&c->peer);
	pthread_mutex_unlock(&c->v.lock);
}

/* ---- life ---- */

static void console_driver_reset(struct virtio *v)
{
	container_of(v, struct virtio_console, v)->tx_done = 0;
}

static const struct virtio_ops ops = {
	.type = VIRTIO_TYPE_CONSOLE,
	.name = "console",
	.serve = console_serve,
	.reset = console_driver_reset,
};

static int console_init(struct device *d, const void *config)
{
	static const uint16_t sizes[N_QUEUES] = {[RX] = QUEUE_SIZE, [TX] = QUEUE_SIZE};
	struct virtio_console *c = to_console(d);
	const struct vm_console *cfg = config;

	if (!cfg->path[0] || !memchr(cfg->path, 0, sizeof(cfg->path)))
		return -EINVAL;
	memcpy(c->path, cfg->path, sizeof(c->path));
	c->tend.run = on_tend;
	return virtio_init(&c->v, &ops, 0, sizes, N_QUEUES);
}

static int console_quiesce(struct device *d, uint64_t deadline_ns)
{
	struct virtio_console *c = to_console(d);
	int ret = virtio_quiesce(d, deadline_ns);

	if (ret)
		return ret;
	/* What can be said and heard here still is; the rest is carried. */
	pthread_mutex_lock(&c->v.lock);
	flush(c);
	receive_ahead(c);
	pthread_mutex_unlock(&c->v.lock);
	return 0;
}

static void console_resume(struct device *d)
{
	struct virtio_console *c = to_console(d);

	virtio_resume(d);
	loop_post(loop_of(c), &c->tend);
}

static void console_fields(struct device *d, struct sbuf *s)
{
	struct virtio_console *c = to_console(d);

	virtio_fields(d, s);
	pthread_mutex_lock(&c->v.lock);
	sb_u64(s, &c->tx_done);
	ring_fields(&c->out, s, "out");
	ring_fields(&c->in, s, "in");
	pthread_mutex_unlock(&c->v.lock);
}

static int console_loaded(struct device *d)
{
	const struct virtio_console *c = to_console(d);
	int ret = virtio_loaded(d);

	if (ret)
		return ret;
	/* Of a chain's bytes to read, of which there are fewer; take() bears any. */
	return c->tx_done > UINT32_MAX ? -EPROTO : 0;
}

static void console_destroy(struct device *d)
{
	struct virtio_console *c = to_console(d);
	struct loop *loop = loop_of(c);

	pthread_mutex_lock(&c->v.lock);
	if (!c->v.stopped)
		flush(c);
	stop_listening(c);
	pthread_mutex_unlock(&c->v.lock);
	while (c->endpoints) {
		struct endpoint *e = c->endpoints;

		c->endpoints = e->next;
		loop_cancel_wait(loop, &e->in);
		loop_cancel_wait(loop, &e->out);
		close(e->fd);
		free(e);
	}
	loop_unpost(loop, &c->tend);
	virtio_destroy(&c->v);
}

const struct device_ops virtio_console_ops = {
	.tag = "virtio-console",
	.size = sizeof(struct virtio_console),
	.version = 1,
	.min_version = 1,
	.init = console_init,
	.reset = virtio_reset,
	.quiesce = console_quiesce,
	.resume = console_resume,
	.fields = console_fields,
	.loaded = console_loaded,
	.shape = virtio_shape,
	.acquire = console_acquire,
	.release = console_release,
	.destroy = console_destroy,
};
