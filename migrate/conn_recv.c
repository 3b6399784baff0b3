/* SPDX-License-Identifier: MIT */
/* What comes in on a connection: bytes, frames, and the prelude before them. See conn.h. */
#include <errno.h>
#include <poll.h>
#include <string.h>

#include "../vmm/fault.h"
#include "conn_parts.h"

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
			conn_end_operation(c, &c->recv_done, SHUT_RD);
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
/* ---- the prelude ---- */

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
