/* SPDX-License-Identifier: MIT */
#include "vsock_mux.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

/* Taken from the listening socket, and from epoll, in one go. */
#define ACCEPT_BATCH 16
#define EVENT_BATCH 64
#define LISTEN_BACKLOG 128

static struct loop *loop_of(const struct vsock_mux *m)
{
	return m->v->dev.vm->loop;
}

/* ---- finding them ---- */

static struct vsock_list *bucket_of(struct vsock_mux *m, uint32_t guest_port, uint32_t host_port)
{
	uint32_t hash = (guest_port * 31 + host_port) * 0x9e3779b1U; /* 2^32 / golden ratio */

	return &m->bucket[hash / (UINT32_MAX / VSOCK_BUCKETS + 1)];
}

struct vsock_conn *vsock_mux_find(struct vsock_mux *m, uint32_t guest_port, uint32_t host_port)
{
	struct vsock_conn *c;

	for (c = LIST_FIRST(bucket_of(m, guest_port, host_port)); c; c = LIST_NEXT(c, bucket)) {
		if (c->guest_port == guest_port && c->host_port == host_port)
			return c;
	}
	return NULL;
}

void vsock_mux_enter(struct vsock_mux *m, struct vsock_conn *c)
{
	LIST_INSERT_HEAD(bucket_of(m, c->guest_port, c->host_port), c, bucket);
	c->in_bucket = true;
}

void vsock_mux_assign_port(struct vsock_mux *m, struct vsock_conn *c)
{
	/* There are more ports than connections. */
	do {
		c->host_port = m->next_port;
		m->next_port =
			m->next_port == VSOCK_LAST_PORT ? VSOCK_FIRST_PORT : m->next_port + 1;
	} while (vsock_mux_find(m, c->guest_port, c->host_port));
}

unsigned vsock_mux_open_conns(const struct vsock_mux *m)
{
	const struct vsock_conn *c;
	unsigned n = 0;

	for (c = LIST_FIRST(&m->all); c; c = LIST_NEXT(c, all))
		n += c->state == VSOCK_OPEN;
	return n;
}

/* ---- letting them in, and time ---- */

/* Waits for host programs, or does not, as it should be now. */
static void update_listening(struct vsock_mux *m)
{
	struct epoll_event ev = {.events = EPOLLIN}; /* and no connection */
	bool want = m->listen_fd >= 0 && vsock_mux_up(m) && m->n_conns < VSOCK_MAX_CONNS &&
		    !m->accept_failed;

	if (want == m->listening)
		return;
	if (epoll_ctl(m->epoll_fd, want ? EPOLL_CTL_ADD : EPOLL_CTL_DEL, m->listen_fd, &ev))
		log_warn("vsock: cannot wait for connections at %s: %s", m->path, strerror(errno));
	else
		m->listening = want;
}

static void arm_epoll(struct vsock_mux *m)
{
	if (!m->epoll_op.pending)
		loop_poll(loop_of(m), &m->epoll_op, m->epoll_fd, POLLIN);
}

void vsock_mux_start_tick(struct vsock_mux *m)
{
	if (!m->tick_op.pending)
		loop_timer(loop_of(m), &m->tick_op, NS_PER_SEC);
}

static void accept_some(struct vsock_mux *m)
{
	for (unsigned i = 0; i < ACCEPT_BATCH && m->n_conns < VSOCK_MAX_CONNS; i++) {
		int fd = accept4(m->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

		if (fd < 0 && (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED))
			return;
		if (fd < 0 || !vsock_conn_accepted(m, fd)) {
			log_warn("vsock: cannot take a connection at %s: %s; trying again", m->path,
				 fd < 0 ? strerror(errno) : "out of memory");
			m->accept_failed = true;
			vsock_mux_start_tick(m);
			return;
		}
		vsock_mux_start_tick(m);
	}
}

static void on_events(struct loop_op *op, int32_t res)
{
	struct vsock_mux *m = container_of(op, struct vsock_mux, epoll_op);
	struct epoll_event events[EVENT_BATCH];
	int n;

	(void)res; /* what there is to know, epoll says */
	pthread_mutex_lock(&m->v->lock);
	/* Epoll forgets nothing: who lets the device go on has it looked at again. */
	if (m->v->stopped)
		goto out;
	n = epoll_wait(m->epoll_fd, events, EVENT_BATCH, 0);
	/* What comes of one event concerns no connection but its own: none here goes stale. */
	for (int i = 0; i < n; i++) {
		if (events[i].data.ptr)
			vsock_conn_event(events[i].data.ptr, events[i].events);
		else if (vsock_mux_up(m))
			accept_some(m);
	}
	update_listening(m);
	arm_epoll(m);
	if (vsock_mux_up(m))
		m->kick(m);
out:
	pthread_mutex_unlock(&m->v->lock);
}

int vsock_mux_listen(struct vsock_mux *m, struct errmsg *err)
{
	int ret = 0;

	pthread_mutex_lock(&m->v->lock);
	if (m->listen_fd < 0) {
		ret = unix_listen(&m->address, "vsock", m->path, LISTEN_BACKLOG, err);
		m->listen_fd = MAX(ret, -1);
		ret = MIN(ret, 0);
	}
	/* A machine that runs already has nothing else that would bring it to its notice. */
	virtio_serve_all(m->v);
	pthread_mutex_unlock(&m->v->lock);
	return ret;
}

/* Whoever waits to be accepted is refused. */
static void stop_listening(struct vsock_mux *m)
{
	if (m->listen_fd < 0)
		return;
	unix_unlisten(m->v->dev.vm->cfg.confine, &m->address);
	close(m->listen_fd);
	m->listen_fd = -1;
	m->listening = false;
}

void vsock_mux_unlisten(struct vsock_mux *m)
{
	pthread_mutex_lock(&m->v->lock);
	stop_listening(m);
	pthread_mutex_unlock(&m->v->lock);
}

static void on_tick(struct loop_op *op, int32_t res)
{
	struct vsock_mux *m = container_of(op, struct vsock_mux, tick_op);
	struct vsock_conn *c, *next;

	if (res == -ECANCELED)
		return;
	pthread_mutex_lock(&m->v->lock);
	/* While the device is at rest no time goes by. */
	if (!m->v->stopped) {
		m->accept_failed = false;
		/* The driver has made a mistake, and nobody knows when it will be back. */
		if (m->v->status & VIRTIO_NEEDS_RESET)
			vsock_mux_reset(m);
		for (c = LIST_FIRST(&m->all); c; c = next) {
			next = LIST_NEXT(c, all);
			vsock_conn_tick(c);
		}
		update_listening(m);
		arm_epoll(m);
		if (vsock_mux_up(m))
			m->kick(m);
	}
	if (m->n_conns || m->accept_failed)
		vsock_mux_start_tick(m);
	pthread_mutex_unlock(&m->v->lock);
}

static void free_dead(struct vsock_mux *m)
{
	struct vsock_conn *c;

	while ((c = LIST_FIRST(&m->dead))) {
		LIST_REMOVE(c, all);
		free(c);
	}
}

/* Who closes a connection may still look at it: it is freed by a task of its own. */
static void reap(struct loop_task *task)
{
	struct vsock_mux *m = container_of(task, struct vsock_mux, reap_task);

	pthread_mutex_lock(&m->v->lock);
	free_dead(m);
	update_listening(m);
	pthread_mutex_unlock(&m->v->lock);
}

/* ---- life ---- */

int vsock_mux_init(struct vsock_mux *m, struct virtio *v, const struct vm_vsock *cfg,
		   void (*kick)(struct vsock_mux *m))
{
	m->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (m->epoll_fd < 0)
		return -errno;
	m->v = v;
	m->cid = cfg->cid;
	memcpy(m->path, cfg->path, sizeof(m->path));
	m->kick = kick;
	m->next_port = VSOCK_FIRST_PORT;
	m->listen_fd = -1;
	m->epoll_op.done = on_events;
	m->tick_op.done = on_tick;
	m->reap_task.run = reap;
	LIST_INIT(&m->all);
	LIST_INIT(&m->dead);
	for (unsigned i = 0; i < VSOCK_BUCKETS; i++)
		LIST_INIT(&m->bucket[i]);
	TAILQ_INIT(&m->ready);
	return 0;
}

void vsock_mux_reset(struct vsock_mux *m)
{
	struct vsock_conn *c, *next;

	for (c = LIST_FIRST(&m->all); c; c = next) {
		next = LIST_NEXT(c, all);
		vsock_conn_guest_gone(c);
	}
	m->n_replies = 0;
}

void vsock_mux_destroy(struct vsock_mux *m)
{
	struct loop *loop = loop_of(m);
	struct vsock_conn *c;

	stop_listening(m);
	while ((c = LIST_FIRST(&m->all)))
		vsock_conn_close(c);
	free_dead(m);
	loop_cancel_wait(loop, &m->epoll_op);
	loop_cancel_wait(loop, &m->tick_op);
	loop_unpost(loop, &m->reap_task);
	close(m->epoll_fd);
}

void vsock_mux_wake(struct vsock_mux *m)
{
	update_listening(m);
	arm_epoll(m);
}

/* ---- packets ---- */

/* It belongs to no connection, and the guest is to know. */
static void refuse(struct vsock_mux *m, const struct vsock_hdr *hdr)
{
	struct vsock_reply *r;

	/* An RST is never the answer to an RST. */
	if (hdr->op == VSOCK_OP_RST || vsock_mux_full(m))
		return;
	r = &m->reply[(m->first_reply + m->n_replies++) % VSOCK_MAX_REPLIES];
	*r = (struct vsock_reply){
		.src_cid = hdr->dst_cid,
		.src_port = hdr->dst_port,
		.dst_port = hdr->src_port,
		.type = hdr->type,
	};
}

static void next_reply(struct vsock_mux *m, struct vsock_hdr *hdr)
{
	const struct vsock_reply *r = &m->reply[m->first_reply];

	*hdr = (struct vsock_hdr){
		.src_cid = r->src_cid,
		.dst_cid = m->cid,
		.src_port = r->src_port,
		.dst_port = r->dst_port,
		.type = r->type,
		.op = VSOCK_OP_RST,
	};
	m->first_reply = (m->first_reply + 1) % VSOCK_MAX_REPLIES;
	m->n_replies--;
}

struct wanted {
	const struct vsock_mux *m;
	uint32_t port;
};

static int connect_wanted(void *arg)
{
	const struct wanted *w = arg;

	return vsock_connect(w->m->path, w->port);
}

/* The guest wants to reach a program of the host's. */
static void open_for_guest(struct vsock_mux *m, const struct vsock_hdr *hdr)
{
	struct wanted w = {.m = m, .port = hdr->dst_port};
	int fd;

	if (m->n_conns >= VSOCK_MAX_CONNS) {
		log_debug("vsock: the guest has too many connections");
		refuse(m, hdr);
		return;
	}
	fd = confine_call(m->v->dev.vm->cfg.confine, connect_wanted, &w);
	if (fd < 0)
		log_debug("vsock: the guest's connection to %s_%u: %s", m->path, hdr->dst_port,
			  strerror(-fd));
	if (fd < 0 || !vsock_conn_opened(m, fd, hdr))
		refuse(m, hdr);
	else
		vsock_mux_start_tick(m);
}

void vsock_mux_packet(struct vsock_mux *m, const struct vsock_hdr *hdr,
		      const struct virtq_chain *chain)
{
	struct vsock_conn *c;

	/* Not from this guest, whoever it says it is: there is nobody to answer. */
	if (hdr->src_cid != m->cid)
		return;
	if (hdr->dst_cid != VSOCK_HOST_CID || hdr->type != VSOCK_TYPE_STREAM) {
		refuse(m, hdr);
		return;
	}
	c = vsock_mux_find(m, hdr->src_port, hdr->dst_port);
	if (c)
		vsock_conn_packet(c, hdr, chain);
	else if (hdr->op == VSOCK_OP_REQUEST)
		open_for_guest(m, hdr);
	else
		refuse(m, hdr);
}

int vsock_mux_next(struct vsock_mux *m, const struct virtq_chain *chain, struct vsock_hdr *hdr)
{
	struct vsock_conn *c;

	if (m->n_replies) {
		next_reply(m, hdr);
		return 0;
	}
	while ((c = TAILQ_FIRST(&m->ready))) {
		int len;

		/* Who has more to say does so when the others have had their turn. */
		TAILQ_REMOVE(&m->ready, c, ready);
		c->is_ready = false;
		len = vsock_conn_next(c, chain, hdr);
		vsock_conn_settle(c);
		if (len >= 0)
			return len;
	}
	return -EAGAIN;
}

/* ---- state ---- */

static void load_stranded(struct vsock_mux *m, struct sbuf *s, uint32_t n)
{
	if (!sb_looking(s))
		vsock_mux_reset(m);
	for (uint32_t i = 0; i < n && !s->err; i++) {
		uint32_t guest_port = 0, host_port = 0;
		size_t mark = sb_enter(s, "conn[%u]", i);

		sb_u32(s, &guest_port);
		sb_u32(s, &host_port);
		sb_leave(s, mark);
		if (s->err || sb_looking(s))
			continue;
		if (vsock_mux_find(m, guest_port, host_port))
			sb_fail(s, -EPROTO);
		else if (!vsock_conn_stranded(m, guest_port, host_port))
			sb_fail(s, -ENOMEM);
	}
}

void vsock_mux_fields(struct vsock_mux *m, struct sbuf *s)
{
	struct vsock_conn *c;
	uint32_t conns = 0;

	sb_u32_range(s, &m->next_port, VSOCK_FIRST_PORT, VSOCK_LAST_PORT);
	for (c = LIST_FIRST(&m->all); c; c = LIST_NEXT(c, all))
		conns += c->in_bucket;
	sb_u32_range(s, &conns, 0, VSOCK_MAX_CONNS);
	if (s->loading) {
		load_stranded(m, s, conns);
		return;
	}
	for (c = LIST_FIRST(&m->all); c; c = LIST_NEXT(c, all)) {
		if (!c->in_bucket)
			continue;
		sb_u32(s, &c->guest_port);
		sb_u32(s, &c->host_port);
	}
}
