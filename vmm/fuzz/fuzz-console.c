/* SPDX-License-Identifier: MIT */
/* What a guest's driver, and the peer at the socket, can do to the console. */
#include "../virtio_console.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "machine.h"
#include "oracle.h"

#define RX 0U
#define TX 1U
#define PEERS 3U

struct peers {
	struct vm_console config;
	int fd[PEERS];
};

static const void *setup(struct fuzz_machine *m)
{
	struct peers *p = calloc(1, sizeof(*p));

	fuzz_need(p, "no memory");
	p->config.present = true;
	snprintf(p->config.path, sizeof(p->config.path), "%s/console", fuzz_folder());
	for (unsigned i = 0; i < PEERS; i++)
		p->fd[i] = -1;
	m->host = p;
	return &p->config;
}

static void hang_up(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static void call(struct peers *p, int *fd)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};

	hang_up(fd);
	memcpy(addr.sun_path, p->config.path, sizeof(p->config.path));
	*fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	/* Nobody is let in at rest; then there may be too many that wait. */
	if (connect(*fd, (struct sockaddr *)&addr, sizeof(addr)))
		hang_up(fd);
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
	struct peers *p = m->host;
	unsigned what = in_u8(in);
	int *fd = &p->fd[(what >> 4) % PEERS];

	switch (what % 6) {
	case 0:
		call(p, fd);
		break;
	case 1:
		hang_up(fd);
		break;
	case 2:
		drain(*fd);
		break;
	case 3:
		if (*fd >= 0)
			(void)!send(*fd, text, in_u8(in), MSG_NOSIGNAL);
		break;
	case 4:
		if (*fd >= 0)
			(void)!send(*fd, text, in_u16(in), MSG_NOSIGNAL);
		break;
	default:
		if (*fd >= 0)
			shutdown(*fd, in_u8(in) & 1 ? SHUT_RD : SHUT_WR);
	}
}

static void request(struct fuzz_machine *m, struct fuzz_in *in)
{
	unsigned shape = in_u8(in), queue = shape & 1;
	struct fuzz_buf b[3];

	for (unsigned i = 0; i <= (shape >> 1) % 3; i++) {
		unsigned len = in_u8(in);

		/* Some fill the backlog. */
		b[i] = machine_room(m, len & 1 ? len * 64 : len / 2);
		b[i].in = queue == RX;
	}
	machine_chain(m, queue, b, 1 + (shape >> 1) % 3, shape & 64);
	if (!(shape & 128))
		machine_kick(m, queue);
}

/* How far into text these bytes get, which go on from `seen`; text begins with a letter that is
 * nowhere else in it. */
static size_t match(const uint8_t *bytes, size_t n, const char *text, size_t seen)
{
	for (size_t i = 0; i < n && text[seen]; i++)
		seen = bytes[i] == (uint8_t)text[seen] ? seen + 1 : bytes[i] == (uint8_t)text[0];
	return seen;
}

struct hearing {
	int fd;
	const char *text;
	size_t seen;
};

/* Behind whatever the guest has said before. */
static bool heard(void *arg)
{
	struct hearing *h = arg;
	uint8_t bytes[4096];
	ssize_t n;

	while (h->text[h->seen] && (n = recv(h->fd, bytes, sizeof(bytes), MSG_DONTWAIT)) > 0)
		h->seen = match(bytes, (size_t)n, h->text, h->seen);
	return !h->text[h->seen];
}

static void hang_all_up(struct fuzz_machine *m)
{
	struct peers *p = m->host;

	for (unsigned i = 0; i < PEERS; i++)
		hang_up(&p->fd[i]);
	machine_settle(m);
}

#define INPUT 4096U

static void post_input(struct fuzz_machine *m)
{
	const struct fuzz_buf b = {.gpa = ARENA + ARENA_SIZE, .len = INPUT, .in = true};

	machine_chain(m, RX, &b, 1, false);
	machine_kick(m, RX);
}

/* Reads what peers that are gone had said: while it does not fit nobody else is let in. */
static void read_old_input(struct fuzz_machine *m)
{
	struct machine_queue *q = &m->queue[RX];
	uint16_t idx;

	for (;;) {
		if (q->avail_idx == q->seen)
			post_input(m);
		machine_settle(m);
		oracle_load(q->used + 2, &idx, sizeof(idx));
		if (idx == q->seen)
			return;
		machine_wait_used(m, RX);
	}
}

/* There is a buffer in the queue already; what somebody else had said may still come first. */
static void read_answer(struct fuzz_machine *m, const char *text)
{
	uint8_t got[INPUT];
	size_t seen = 0;

	for (;;) {
		uint32_t n = machine_wait_used(m, RX);

		fuzz_need(n > 0 && n <= sizeof(got), "%u bytes of input", n);
		oracle_load(ARENA + ARENA_SIZE, got, n);
		seen = match(got, n, text, seen);
		if (!text[seen])
			return;
		post_input(m);
	}
}

/* Who is turned away, for somebody who is gone has said more than fits, comes again. */
static void call_patiently(struct fuzz_machine *m, struct peers *p, int *fd)
{
	uint8_t byte;

	for (unsigned tries = 0; tries < 100; tries++) {
		read_old_input(m);
		call(p, fd);
		machine_settle(m);
		if (*fd >= 0 && recv(*fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) != 0)
			return;
	}
	fuzz_bug("nobody is let in");
}

static void honest(struct fuzz_machine *m)
{
	static const char text[] = "honest words";
	struct peers *p = m->host;
	struct hearing h = {.text = text};
	const struct fuzz_buf b = machine_out(m, text, sizeof(text) - 1);

	call_patiently(m, p, &p->fd[0]);
	machine_chain(m, TX, &b, 1, false);
	machine_kick(m, TX);
	h.fd = p->fd[0];
	machine_until(m, heard, &h, "what the guest says is heard");
	machine_wait_used(m, TX);
	fuzz_need(send(p->fd[0], text, sizeof(text) - 1, MSG_NOSIGNAL) == sizeof(text) - 1,
		  "the peer is not served: %s", strerror(errno));
	read_answer(m, text);
}

static const struct fuzz_target target = {
	.ops = &virtio_console_ops,
	.variants = 1,
	.setup = setup,
	.request = request,
	.host = host,
	.honest = honest,
	.tidy = hang_all_up,
	.leave = hang_all_up,
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	return fuzz_virtio(&target, data, size);
}
