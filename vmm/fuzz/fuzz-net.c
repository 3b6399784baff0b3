/* SPDX-License-Identifier: MIT */
/*
 * What a guest's driver can do to the network card, with two backends of our own: one that is as a
 * tap is (headers, offloads, two queue pairs) on pairs of sockets, and one as passt is, a stream.
 * The host's side sends frames, or what is none, does not read, and goes away.
 */
#include "../virtio_net.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../net_backend.h"
#include "../net_stream.h"
#include "machine.h"
#include "oracle.h"

#define PAIRS 2U
#define ROOM (sizeof(struct net_hdr) + NET_FRAME_MAX)

struct wire {
	struct net_backend b;
	unsigned pairs;
	int fd[PAIRS], far[PAIRS];
	struct net_stream stream;
	uint8_t in[PAIRS][ROOM];
};

/* The one of the device that the guest has now: there may be two for a moment. */
static struct wire *wire;
static bool refuses; /* configure() fails */

static struct wire *to_wire(struct net_backend *b)
{
	return container_of(b, struct wire, b);
}

static void hang_up(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

/* ---- backends; defined here, so the linker takes neither net_tap.o nor net_passt.o ---- */

static int wire_check(const struct vm_net *cfg, struct errmsg *err)
{
	(void)cfg, (void)err;
	return 0;
}

static int wire_create(struct net_backend **out, const struct vm_net *cfg)
{
	struct wire *w = calloc(1, sizeof(*w));

	if (!w)
		return -ENOMEM;
	w->b.ops = cfg->kind == VM_NET_TAP ? &net_tap_ops : &net_passt_ops;
	w->b.cfg = *cfg;
	w->b.mtu = 1500;
	w->pairs = cfg->queues;
	for (unsigned i = 0; i < PAIRS; i++)
		w->fd[i] = w->far[i] = -1;
	if (cfg->kind == VM_NET_USER && net_stream_init(&w->stream)) {
		free(w);
		return -ENOMEM;
	}
	*out = &w->b;
	return 0;
}

static void wire_close(struct net_backend *b)
{
	struct wire *w = to_wire(b);

	if (b->cfg.kind == VM_NET_USER)
		net_stream_detach(&w->stream);
	for (unsigned i = 0; i < PAIRS; i++) {
		hang_up(&w->fd[i]);
		hang_up(&w->far[i]);
	}
	b->open = false;
	errmsg_set(&b->gone, -ENOLINK, "the wire is cut");
	if (wire == w)
		wire = NULL;
}

static void wire_destroy(struct net_backend *b)
{
	struct wire *w = to_wire(b);

	wire_close(b);
	if (b->cfg.kind == VM_NET_USER)
		net_stream_destroy(&w->stream);
	free(w);
}

static int wire_open(struct net_backend *b, struct errmsg *err)
{
	struct wire *w = to_wire(b);
	bool tap = b->cfg.kind == VM_NET_TAP;

	(void)err;
	for (unsigned i = 0; i < w->pairs; i++) {
		int fd[2];

		fuzz_need(!socketpair(AF_UNIX,
				      (tap ? SOCK_SEQPACKET : SOCK_STREAM) | SOCK_CLOEXEC |
					      SOCK_NONBLOCK,
				      0, fd),
			  "no sockets: %s", strerror(errno));
		w->far[i] = fd[1];
		if (tap)
			w->fd[i] = fd[0];
		else
			net_stream_attach(&w->stream, fd[0]);
	}
	b->open = true;
	b->gone.text[0] = '\0';
	wire = w;
	return 0;
}

static bool wire_harmless(const struct net_backend *b)
{
	(void)b;
	return false;
}

static int wire_configure(struct net_backend *b, unsigned pairs, unsigned offloads)
{
	fuzz_need(pairs >= 1 && pairs <= to_wire(b)->pairs && offloads < 16,
		  "configured with %u pairs and offloads %#x", pairs, offloads);
	return refuses ? -EIO : 0;
}

static int wire_fd(const struct net_backend *b, unsigned pair)
{
	const struct wire *w = container_of(b, const struct wire, b);

	return b->cfg.kind == VM_NET_TAP ? w->fd[pair] : w->stream.fd;
}

static int tap_recv(struct net_backend *b, unsigned pair, struct net_frame *f)
{
	struct wire *w = to_wire(b);
	ssize_t n;

	do
		n = recv(w->fd[pair], w->in[pair], ROOM, 0);
	while (n > 0 && (size_t)n < sizeof(f->hdr) + NET_FRAME_MIN);
	if (n <= 0)
		return n < 0 && errno == EAGAIN ? 0 : -ENOLINK;
	memcpy(&f->hdr, w->in[pair], sizeof(f->hdr));
	f->data = w->in[pair] + sizeof(f->hdr);
	f->len = (size_t)n - sizeof(f->hdr);
	return 1;
}

static size_t bytes_of(const struct iovec *iov, uint32_t n)
{
	size_t bytes = 0;

	for (uint32_t i = 0; i < n; i++)
		bytes += iov[i].iov_len;
	return bytes;
}

static int tap_send(struct net_backend *b, unsigned pair, const struct iovec *iov, uint32_t n,
		    size_t len)
{
	const struct msghdr msg = {.msg_iov = (struct iovec *)(uintptr_t)iov, .msg_iovlen = n};

	fuzz_need(len + sizeof(struct net_hdr) == bytes_of(iov, n), "a frame of another length");
	if (sendmsg(to_wire(b)->fd[pair], &msg, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0)
		return 0;
	return errno == EPIPE || errno == ECONNRESET ? -ENOLINK : -errno;
}

static int stream_recv(struct net_backend *b, unsigned pair, struct net_frame *f)
{
	int ret;

	(void)pair;
	f->hdr = (struct net_hdr){0};
	ret = net_stream_recv(&to_wire(b)->stream, &f->data, &f->len);
	return ret == -EPROTO ? -ENOLINK : ret;
}

static int stream_send(struct net_backend *b, unsigned pair, const struct iovec *iov, uint32_t n,
		       size_t len)
{
	(void)pair;
	return net_stream_send(&to_wire(b)->stream, iov, n, sizeof(struct net_hdr), len);
}

static int stream_flush(struct net_backend *b)
{
	return net_stream_flush(&to_wire(b)->stream);
}

const struct net_backend_ops net_tap_ops = {
	.name = "tap",
	.offloads = true,
	.pairs = true,
	.check = wire_check,
	.create = wire_create,
	.destroy = wire_destroy,
	.open = wire_open,
	.harmless = wire_harmless,
	.close = wire_close,
	.configure = wire_configure,
	.fd = wire_fd,
	.recv = tap_recv,
	.send = tap_send,
};

const struct net_backend_ops net_passt_ops = {
	.name = "passt",
	.check = wire_check,
	.create = wire_create,
	.destroy = wire_destroy,
	.open = wire_open,
	.harmless = wire_harmless,
	.close = wire_close,
	.fd = wire_fd,
	.recv = stream_recv,
	.send = stream_send,
	.flush = stream_flush,
};

static const void *setup(struct fuzz_machine *m)
{
	static const struct vm_net nets[] = {
		{.kind = VM_NET_TAP, .mac = {0x52, 0x54, 0, 1, 2, 3}, .queues = PAIRS},
		{.kind = VM_NET_USER, .mac = {0x52, 0x54, 0, 1, 2, 3}, .queues = 1},
	};

	return &nets[m->variant];
}

/* ---- the far end ---- */

static void far_send(unsigned pair, const struct net_hdr *hdr, size_t len)
{
	static const uint8_t frame[NET_FRAME_MAX];
	bool tap = wire->b.cfg.kind == VM_NET_TAP;
	uint32_t be = __builtin_bswap32((uint32_t)len);
	struct iovec iov[] = {
		{.iov_base = tap ? (void *)(uintptr_t)hdr : &be,
		 .iov_len = tap ? sizeof(*hdr) : sizeof(be)},
		{.iov_base = (void *)(uintptr_t)frame, .iov_len = len},
	};
	const struct msghdr msg = {.msg_iov = iov, .msg_iovlen = 2};

	(void)!sendmsg(wire->far[pair], &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
}

/* Frames that came, and the last one's beginning. */
static unsigned far_drain(unsigned pair, uint8_t *last, size_t size)
{
	static uint8_t sink[ROOM];
	unsigned n = 0;
	ssize_t got;

	while ((got = recv(wire->far[pair], sink, sizeof(sink), MSG_DONTWAIT)) > 0) {
		memcpy(last, sink, MIN(size, (size_t)got));
		n++;
	}
	return n;
}

static void host(struct fuzz_machine *m, struct fuzz_in *in)
{
	unsigned what = in_u8(in), pair = (what >> 4) % PAIRS;
	struct net_hdr hdr = {0};
	uint8_t junk[32];

	(void)m;
	refuses = what % 8 == 7;
	if (!wire || wire->far[pair] < 0)
		return;
	switch (what % 8) {
	case 0:
	case 1:
		far_send(pair, &hdr, NET_FRAME_MIN + in_u8(in));
		break;
	case 2:
		in_bytes(in, &hdr, sizeof(hdr));
		far_send(pair, &hdr, in_u16(in));
		break;
	case 3:
		for (unsigned n = in_u8(in) % 100; n > 0; n--)
			far_send(pair, &hdr, 1000);
		break;
	case 4:
		far_drain(pair, junk, sizeof(junk));
		break;
	case 5:
		in_bytes(in, junk, sizeof(junk));
		(void)!send(wire->far[pair], junk, what >> 3, MSG_NOSIGNAL | MSG_DONTWAIT);
		break;
	case 6:
		hang_up(&wire->far[pair]);
		break;
	default:
		break;
	}
}

/* ---- the guest's side ---- */

static void control(struct fuzz_machine *m, struct fuzz_in *in)
{
	static const uint8_t lens[] = {1, 2, 6, 8, 0, 8 + 6, 8 + 12, 3};
	/* Behind the pairs in use. */
	unsigned queue = m->side->v->n_queues - 1, what = in_u8(in);
	uint8_t code[2] = {(uint8_t)((what & 7) % 6), (what >> 3) & 1}, data[32];
	uint32_t len = lens[(what >> 4) % 8];
	struct fuzz_buf b[3];

	if (what & 128)
		queue = MIN(2U, queue);
	in_bytes(in, data, len);
	b[0] = machine_out(m, code, sizeof(code));
	b[1] = machine_out(m, data, len);
	b[2] = machine_room(m, 1);
	machine_chain(m, queue, b, 3, what & 4);
	machine_kick(m, queue);
}

static void request(struct fuzz_machine *m, struct fuzz_in *in)
{
	unsigned shape = in_u8(in), queue = shape % (2 * PAIRS), n = 1 + (shape >> 3) % 3;
	struct net_hdr hdr = {0};
	struct fuzz_buf b[4];

	if ((shape & 7) == 7) {
		control(m, in);
		return;
	}
	queue %= m->side->v->n_queues;
	for (unsigned i = 1; i <= n; i++) {
		uint32_t len = in_u8(in);

		b[i] = machine_room(m, len & 1 ? len * 16 : len / 2);
		b[i].in = !(queue % 2);
	}
	if (queue % 2) {
		if (shape & 32)
			in_bytes(in, &hdr, sizeof(hdr));
		b[0] = machine_out(m, &hdr, sizeof(hdr));
		machine_chain(m, queue, b, n + 1, shape & 64);
	} else {
		machine_chain(m, queue, b + 1, n, shape & 64);
	}
	if (!(shape & 128))
		machine_kick(m, queue);
}

static void reopen(struct fuzz_machine *m)
{
	struct device *d = m->side->dev;
	struct errmsg err = {""};

	d->ops->release(d);
	fuzz_need(d->ops->acquire(d, &err) == 0, "acquire: %s", err.text);
}

/* A hand-over that fails, as after it the backend is new: no frames are in it. */
static void tidy(struct fuzz_machine *m)
{
	refuses = false;
	machine_at_rest(m, reopen);
	machine_settle(m);
}

static void before_move(struct fuzz_machine *m)
{
	(void)m;
	refuses = false;
}

static bool frame_came(void *arg)
{
	return far_drain(0, arg, 64) > 0;
}

static void honest(struct fuzz_machine *m)
{
	uint8_t text[64] = {0}, seen[64] = {0};
	const struct net_hdr hdr = {0};
	struct fuzz_buf b[2];
	uint32_t n;

	text[sizeof(hdr) + 20] = 0x77;
	b[0] = machine_out(m, text, sizeof(text));
	machine_chain(m, 1, b, 1, false);
	machine_kick(m, 1);
	machine_until(m, frame_came, seen, "a frame goes out");
	fuzz_need(memchr(seen, 0x77, sizeof(seen)), "another frame went out");
	machine_wait_used(m, 1);

	b[0] = machine_room(m, 2000);
	machine_chain(m, 0, b, 1, false);
	machine_kick(m, 0);
	machine_settle(m);
	far_send(0, &hdr, 100);
	n = machine_wait_used(m, 0);
	fuzz_need(n == 100 + sizeof(hdr), "a frame of 100 bytes comes as %u", n);
}

static const struct fuzz_target target = {
	.ops = &virtio_net_ops,
	.variants = 2,
	.setup = setup,
	.request = request,
	.host = host,
	.honest = honest,
	.tidy = tidy,
	.before_move = before_move,
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	return fuzz_virtio(&target, data, size);
}
