/* SPDX-License-Identifier: MIT */
/*
 * What a guest's driver can do to vsock, and what programs of the host can: those that connect to
 * the guest, and one that listens for it.
 */
#include "../virtio_vsock.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "../vm_devices.h"
#include "../vsock_conn.h"
#include "machine.h"
#include "oracle.h"

#define RX 0U
#define TX 1U
#define EVENT 2U
#define CID 42U
#define OUR_PORT 5U /* where a program of the host listens */
#define GUEST_PORT 1000U
#define FIRST_PORT 0x40000000U
#define PROGRAMS 4U

struct programs {
	struct vm_vsock config;
	int listener;
	int fd[PROGRAMS];
};

static int listen_at(const char *path)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s_%u", path, OUR_PORT);
	fuzz_need(fd >= 0 && !bind(fd, (struct sockaddr *)&addr, sizeof(addr)) && !listen(fd, 8),
		  "%s: %s", addr.sun_path, strerror(errno));
	return fd;
}

static const void *setup(struct fuzz_machine *m)
{
	struct programs *p = calloc(1, sizeof(*p));

	fuzz_need(p, "no memory");
	p->config.present = true;
	p->config.cid = CID;
	snprintf(p->config.path, sizeof(p->config.path), "%s/vsock", fuzz_folder());
	p->listener = listen_at(p->config.path);
	for (unsigned i = 0; i < PROGRAMS; i++)
		p->fd[i] = -1;
	m->host = p;
	return &p->config;
}

/* ---- programs of the host ---- */

static void hang_up(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static void call(struct programs *p, int *fd)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};

	hang_up(fd);
	memcpy(addr.sun_path, p->config.path, sizeof(p->config.path));
	*fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (connect(*fd, (struct sockaddr *)&addr, sizeof(addr)))
		hang_up(fd);
}

static void say(int fd, const void *buf, size_t len)
{
	if (fd >= 0)
		(void)!send(fd, buf, len, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static void drain(int fd)
{
	static uint8_t sink[64 * KIB];

	while (fd >= 0 && recv(fd, sink, sizeof(sink), MSG_DONTWAIT) > 0)
		;
}

static void host(struct fuzz_machine *m, struct fuzz_in *in)
{
	static const uint8_t text[64 * KIB];
	struct programs *p = m->host;
	unsigned what = in_u8(in);
	int *fd = &p->fd[(what >> 4) % PROGRAMS];
	uint8_t junk[40];
	int n;

	switch (what % 8) {
	case 0:
		call(p, fd);
		break;
	case 1:
		hang_up(fd);
		*fd = accept4(p->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
		break;
	case 2:
		n = snprintf((char *)junk, sizeof(junk), "CONNECT %u\n", in_u8(in) % 4);
		say(*fd, junk, (size_t)n);
		break;
	case 3:
		say(*fd, text, in_u16(in));
		break;
	case 4:
		drain(*fd);
		break;
	case 5:
		hang_up(fd);
		break;
	case 6:
		if (*fd >= 0)
			shutdown(*fd, what & 128 ? SHUT_RD : SHUT_WR);
		break;
	default:
		in_bytes(in, junk, sizeof(junk));
		say(*fd, junk, what >> 3);
	}
}

/* ---- the guest ---- */

static struct vsock_hdr header(uint32_t guest_port, uint32_t host_port, enum vsock_op op)
{
	return (struct vsock_hdr){
		.src_cid = CID,
		.dst_cid = VSOCK_HOST_CID,
		.src_port = guest_port,
		.dst_port = host_port,
		.type = VSOCK_TYPE_STREAM,
		.op = (uint16_t)op,
		.buf_alloc = 4096,
	};
}

static void packet(struct fuzz_machine *m, struct fuzz_in *in, unsigned shape)
{
	unsigned what = in_u8(in), ports = in_u8(in);
	uint32_t host_port = ports & 16 ? FIRST_PORT + (ports >> 5) : OUR_PORT + (ports >> 5) % 2;
	struct vsock_hdr h = header(ports % 4, host_port, (what & 15) % 9);
	struct fuzz_buf b[3];
	unsigned n = 1;

	h.flags = what >> 6;
	if (what & 16)
		h.buf_alloc = in_u32(in);
	if (what & 32)
		h.fwd_cnt = in_u32(in);
	if (h.op == VSOCK_OP_RW) {
		uint32_t len = in_u8(in);

		len = len & 1 ? len * 64 : len / 2;
		h.len = shape & 8 ? in_u32(in) : len;
		b[n++] = machine_room(m, len / 2);
		b[n++] = machine_room(m, len - len / 2);
		b[1].in = b[2].in = false;
	}
	if (shape & 16)
		((uint8_t *)&h)[in_u8(in) % sizeof(h)] ^= in_u8(in);
	b[0] = machine_out(m, &h, sizeof(h));
	machine_chain(m, TX, b, n, shape & 32);
}

static void request(struct fuzz_machine *m, struct fuzz_in *in)
{
	unsigned shape = in_u8(in), queue = shape % 4 == 0 ? RX : shape % 16 == 5 ? EVENT : TX;
	struct fuzz_buf b[2];

	if (queue == TX) {
		packet(m, in, shape);
	} else {
		b[0] = machine_room(m, in_u8(in));
		b[1] = machine_room(m, in_u8(in) * 32U);
		machine_chain(m, queue, b, 1 + (shape >> 6) % 2, shape & 32);
	}
	if (!(shape & 128))
		machine_kick(m, queue);
}

static void hang_all_up(struct fuzz_machine *m)
{
	struct programs *p = m->host;
	int fd;

	for (unsigned i = 0; i < PROGRAMS; i++)
		hang_up(&p->fd[i]);
	while ((fd = accept4(p->listener, NULL, NULL, SOCK_CLOEXEC)) >= 0)
		close(fd);
	machine_settle(m);
}

static void send_packet(struct fuzz_machine *m, struct vsock_hdr h, const char *text)
{
	struct fuzz_buf b[2];

	h.len = (uint32_t)strlen(text);
	b[0] = machine_out(m, &h, sizeof(h));
	b[1] = machine_out(m, text, h.len);
	machine_chain(m, TX, b, 2, false);
	machine_kick(m, TX);
	machine_wait_used(m, TX);
}

/* The next packet of our connection; programs that are gone may have asked for another. */
static struct vsock_hdr get_packet(struct fuzz_machine *m, char *text, uint32_t size)
{
	struct vsock_hdr h;

	do {
		const struct fuzz_buf b = machine_room(m, 1024);
		uint32_t n;

		machine_chain(m, RX, &b, 1, false);
		machine_kick(m, RX);
		n = machine_wait_used(m, RX);
		fuzz_need(n >= sizeof(h), "a packet of %u bytes", n);
		oracle_load(b.gpa, &h, sizeof(h));
		fuzz_need(h.len == n - sizeof(h) && h.len <= size, "a packet of %u bytes says %u",
			  n, h.len);
		oracle_load(b.gpa + sizeof(h), text, h.len);
	} while (h.dst_port != GUEST_PORT);
	return h;
}

static void honest(struct fuzz_machine *m)
{
	static const char text[] = "honest words";
	struct programs *p = m->host;
	char back[64] = "";
	struct vsock_hdr h;

	send_packet(m, header(GUEST_PORT, OUR_PORT, VSOCK_OP_REQUEST), "");
	h = get_packet(m, back, sizeof(back));
	fuzz_need(h.op == VSOCK_OP_RESPONSE, "a request is answered with %u", h.op);
	p->fd[0] = accept4(p->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	fuzz_need(p->fd[0] >= 0, "nobody has connected");
	send_packet(m, header(GUEST_PORT, OUR_PORT, VSOCK_OP_RW), text);
	fuzz_need(recv(p->fd[0], back, sizeof(back), 0) == sizeof(text) - 1 &&
			  memcmp(back, text, sizeof(text) - 1) == 0,
		  "the guest's words do not arrive");
	say(p->fd[0], text, sizeof(text) - 1);
	h = get_packet(m, back, sizeof(back));
	fuzz_need(h.op == VSOCK_OP_RW && h.len == sizeof(text) - 1 &&
			  memcmp(back, text, sizeof(text) - 1) == 0,
		  "the host's words do not arrive: op %u, %u bytes", h.op, h.len);
	send_packet(m, header(GUEST_PORT, OUR_PORT, VSOCK_OP_RST), "");
}

static const struct fuzz_target target = {
	.ops = &virtio_vsock_ops,
	.variants = 1,
	.setup = setup,
	.request = request,
	.host = host,
	.honest = honest,
	.tidy = hang_all_up,
	.leave = hang_all_up,
	.unordered = true,
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	return fuzz_virtio(&target, data, size);
}
