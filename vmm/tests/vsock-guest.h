/* SPDX-License-Identifier: MIT */
/*
 * Both ends of a vsock device for its tests: a guest's driver, packet by packet, and programs of
 * the host with real unix sockets. Include it in one file of a test program only.
 */
#ifndef GODWIT_TESTS_VSOCK_GUEST_H
#define GODWIT_TESTS_VSOCK_GUEST_H

#include <fcntl.h>
#include <linux/sockios.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "check-main.h"
#include "virtio-driver.h"

/* As a whole: some tests set counters to just below their ends, or let time go by faster. */
#include "../virtio_vsock.c"

#define RX 0U
#define TX 1U
#define EVENT 2U
#define CID 3ULL
#define RX_BUFS 64U
#define RX_DATA 4096U
#define TX_SLOTS 64U
#define TX_DATA 8192U

/* The driver's buffers, by the head of the chain that they are in. */
struct guest {
	struct driver *d;
	struct vm_vsock cfg;
	bool starve; /* give no receive buffer back */
	uint64_t rx_at[VSOCK_QUEUE];
	uint64_t tx_mem;
	unsigned tx_used; /* slots that the device has */
	unsigned tx_next;
	uint64_t event_mem;
};

struct packet {
	struct vsock_hdr hdr;
	uint8_t data[RX_DATA];
};

/* A socket of the guest's. */
struct gsock {
	uint32_t port, host_port;
	uint32_t buf_alloc, fwd_cnt, tx_cnt;
	uint32_t peer_alloc, peer_fwd;
};

static char test_dir[64];

/* ---- the guest ---- */

static inline void give_rx_at(struct guest *g, uint64_t at)
{
	/* In two parts, as Linux 6.1 does it. */
	const struct driver_buf bufs[] = {{at, VSOCK_HDR_LEN, true},
					  {at + VSOCK_HDR_LEN, RX_DATA, true}};

	g->rx_at[driver_add(g->d, RX, bufs, 2)] = at;
}

static inline void give_rx(struct guest *g, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		give_rx_at(g, driver_alloc(g->d, VSOCK_HDR_LEN + RX_DATA));
	driver_kick(g->d, RX);
}

static inline void give_event(struct guest *g)
{
	const struct driver_buf buf = {g->event_mem, 4, true};

	driver_poke(g->d, g->event_mem, "\xff\xff\xff\xff", 4);
	driver_add(g->d, EVENT, &buf, 1);
	driver_kick(g->d, EVENT);
}

static inline void guest_up(struct guest *g, uint64_t features)
{
	driver_up(g->d, features);
	g->tx_used = g->tx_next = 0;
	g->tx_mem = driver_alloc_pages(g->d, TX_SLOTS * (uint64_t)TX_DATA);
	g->event_mem = driver_alloc(g->d, 4);
}

static inline void reclaim_tx(struct guest *g)
{
	struct driver_used e;

	while (driver_take_used(g->d, TX, &e)) {
		ck_assert_uint_eq(e.len, 0);
		g->tx_used--;
	}
}

/* Sends as it is told, len bytes of payload whatever the header says. */
static inline void send_raw(struct guest *g, const struct vsock_hdr *hdr, const void *data,
			    uint32_t len)
{
	struct driver_buf bufs[2];
	uint64_t at;

	ck_assert_uint_le(VSOCK_HDR_LEN + len, TX_DATA);
	reclaim_tx(g);
	driver_run_until(g->d, (reclaim_tx(g), g->tx_used < TX_SLOTS));
	at = g->tx_mem + (g->tx_next++ % TX_SLOTS) * (uint64_t)TX_DATA;
	driver_poke(g->d, at, hdr, sizeof(*hdr));
	if (len)
		driver_poke(g->d, at + VSOCK_HDR_LEN, data, len);
	bufs[0] = (struct driver_buf){at, VSOCK_HDR_LEN, false};
	bufs[1] = (struct driver_buf){at + VSOCK_HDR_LEN, len, false};
	driver_add(g->d, TX, bufs, len ? 2 : 1);
	g->tx_used++;
	driver_kick(g->d, TX);
}

static inline struct vsock_hdr header_of(const struct gsock *s, unsigned op)
{
	return (struct vsock_hdr){
		.src_cid = CID,
		.dst_cid = VSOCK_HOST_CID,
		.src_port = s->port,
		.dst_port = s->host_port,
		.type = VSOCK_TYPE_STREAM,
		.op = (uint16_t)op,
		.buf_alloc = s->buf_alloc,
		.fwd_cnt = s->fwd_cnt,
	};
}

static inline void send_op(struct guest *g, const struct gsock *s, unsigned op, unsigned flags)
{
	struct vsock_hdr hdr = header_of(s, op);

	hdr.flags = flags;
	send_raw(g, &hdr, NULL, 0);
}

static inline void send_data(struct guest *g, struct gsock *s, const void *data, uint32_t len)
{
	struct vsock_hdr hdr = header_of(s, VSOCK_OP_RW);

	hdr.len = len;
	s->tx_cnt += len;
	send_raw(g, &hdr, data, len);
}

static inline void send_text(struct guest *g, struct gsock *s, const char *text)
{
	send_data(g, s, text, (uint32_t)strlen(text));
}

static inline uint32_t gsock_credit(const struct gsock *s)
{
	uint32_t used = s->tx_cnt - s->peer_fwd;

	return used >= s->peer_alloc ? 0 : s->peer_alloc - used;
}

/* The next packet from the device, if there is one; its buffer is given back. */
static inline bool take_packet(struct guest *g, struct packet *p)
{
	struct driver_used e;
	uint64_t at;

	if (!driver_take_used(g->d, RX, &e))
		return false;
	at = g->rx_at[e.id];
	ck_assert_uint_ge(e.len, VSOCK_HDR_LEN);
	driver_peek(g->d, at, &p->hdr, sizeof(p->hdr));
	ck_assert_uint_eq(e.len, VSOCK_HDR_LEN + p->hdr.len);
	ck_assert_uint_le(p->hdr.len, RX_DATA);
	driver_peek(g->d, at + VSOCK_HDR_LEN, p->data, p->hdr.len);
	ck_assert_uint_eq(p->hdr.dst_cid, CID);
	if (!g->starve) {
		give_rx_at(g, at);
		driver_kick(g->d, RX);
	}
	return true;
}

static inline void next_packet(struct guest *g, struct packet *p)
{
	driver_run_until(g->d, take_packet(g, p));
}

/* It must be this, for this socket. */
static inline void expect_packet(struct guest *g, struct gsock *s, unsigned op, struct packet *p)
{
	next_packet(g, p);
	ck_assert_uint_eq(p->hdr.op, op);
	ck_assert_uint_eq(p->hdr.type, VSOCK_TYPE_STREAM);
	ck_assert_uint_eq(p->hdr.src_cid, VSOCK_HOST_CID);
	ck_assert_uint_eq(p->hdr.src_port, s->host_port);
	ck_assert_uint_eq(p->hdr.dst_port, s->port);
	s->peer_alloc = p->hdr.buf_alloc;
	s->peer_fwd = p->hdr.fwd_cnt;
}

static inline void expect_op(struct guest *g, struct gsock *s, unsigned op)
{
	struct packet p;

	expect_packet(g, s, op, &p);
}

static inline void expect_shutdown(struct guest *g, struct gsock *s, unsigned flags)
{
	struct packet p;

	expect_packet(g, s, VSOCK_OP_SHUTDOWN, &p);
	ck_assert_uint_eq(p.hdr.flags, flags);
}

static inline void expect_guest_text(struct guest *g, struct gsock *s, const char *text)
{
	size_t len = strlen(text), n = 0;
	struct packet p;

	while (n < len) {
		expect_packet(g, s, VSOCK_OP_RW, &p);
		ck_assert_uint_le(p.hdr.len, len - n);
		ck_assert_mem_eq(p.data, text + n, p.hdr.len);
		n += p.hdr.len;
		s->fwd_cnt += p.hdr.len;
	}
}

static inline void expect_silence(struct guest *g)
{
	struct packet p;

	driver_settle(g->d);
	if (take_packet(g, &p))
		ck_abort_msg("op %u comes", p.hdr.op);
}

/*
 * The loop has nothing to do but to wait: nothing is polled for that is there already. A timer may
 * come in between.
 */
static inline void expect_idle(struct guest *g)
{
	driver_settle(g->d);
	for (unsigned i = 0; i < 5; i++) {
		uint64_t before = now_ns();

		driver_step(g->d, 20 * NS_PER_MS);
		if (now_ns() - before >= 20 * NS_PER_MS)
			return;
	}
	ck_abort_msg("the loop goes round and round");
}

static inline struct virtio_vsock_stats stats_of(struct guest *g)
{
	struct virtio_vsock_stats st;

	virtio_vsock_stats(&g->d->v->dev, &st);
	return st;
}

/* ---- the host ---- */

static inline struct sockaddr_un address_of(const char *path)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};

	ck_assert_uint_lt(strlen(path), sizeof(addr.sun_path));
	memcpy(addr.sun_path, path, strlen(path) + 1);
	return addr;
}

/* A program of the host that connects to the device's socket. */
static inline int host_connect(struct guest *g)
{
	struct sockaddr_un addr = address_of(g->cfg.path);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	ck_assert_int_ge(fd, 0);
	ck_assert_msg(connect(fd, (struct sockaddr *)&addr, sizeof(addr)) == 0, "connect: %s",
		      strerror(errno));
	return fd;
}

static inline void host_say(int fd, const char *text)
{
	ck_assert_int_eq(send(fd, text, strlen(text), MSG_NOSIGNAL), (ssize_t)strlen(text));
}

static inline void host_expect(struct guest *g, int fd, const char *text)
{
	size_t len = strlen(text), n = 0;
	char got[256];

	ck_assert_uint_lt(len, sizeof(got));
	while (n < len) {
		ssize_t ret;

		driver_run_until(g->d, (ret = recv(fd, got + n, len - n, MSG_DONTWAIT)) >= 0 ||
					       errno != EAGAIN);
		ck_assert_msg(ret > 0, "got %zu of \"%s\", then %s", n, text,
			      ret ? strerror(errno) : "the end");
		n += (size_t)ret;
	}
	got[n] = '\0';
	ck_assert_str_eq(got, text);
}

static inline void host_expect_eof(struct guest *g, int fd)
{
	ssize_t ret;
	char byte;

	driver_run_until(g->d, (ret = recv(fd, &byte, 1, MSG_DONTWAIT)) >= 0 || errno != EAGAIN);
	ck_assert_int_eq(ret, 0);
}

static inline bool host_silent(int fd)
{
	char byte;

	return recv(fd, &byte, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN;
}

/* A program that listens for the guest's connections to that port. */
static inline int host_listen(struct guest *g, uint32_t port)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
	struct sockaddr_un addr;

	snprintf(path, sizeof(path), "%s_%u", g->cfg.path, port);
	unlink(path);
	addr = address_of(path);
	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	ck_assert_int_eq(listen(fd, 1024), 0);
	return fd;
}

static inline int host_accept(struct guest *g, int listener)
{
	int fd;

	driver_run_until(g->d, (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0);
	return fd;
}

/* ---- connections ---- */

/* From the host to a port of the guest, which accepts it: the host's fd. */
static inline int connect_in(struct guest *g, struct gsock *s, uint32_t port, uint32_t buf_alloc)
{
	int fd = host_connect(g);
	struct packet p;
	char text[64];

	snprintf(text, sizeof(text), "CONNECT %u\n", port);
	host_say(fd, text);
	next_packet(g, &p);
	ck_assert_uint_eq(p.hdr.op, VSOCK_OP_REQUEST);
	ck_assert_uint_eq(p.hdr.dst_port, port);
	*s = (struct gsock){.port = port,
			    .host_port = p.hdr.src_port,
			    .buf_alloc = buf_alloc,
			    .peer_alloc = p.hdr.buf_alloc,
			    .peer_fwd = p.hdr.fwd_cnt};
	send_op(g, s, VSOCK_OP_RESPONSE, 0);
	snprintf(text, sizeof(text), "OK %u\n", s->host_port);
	host_expect(g, fd, text);
	return fd;
}

/* From the guest to a listening program: its fd. */
static inline int connect_out(struct guest *g, struct gsock *s, int listener, uint32_t guest_port,
			      uint32_t host_port, uint32_t buf_alloc)
{
	*s = (struct gsock){.port = guest_port, .host_port = host_port, .buf_alloc = buf_alloc};
	send_op(g, s, VSOCK_OP_REQUEST, 0);
	expect_op(g, s, VSOCK_OP_RESPONSE);
	return host_accept(g, listener);
}

/* ---- setting up ---- */

static inline void acquire(struct guest *g)
{
	struct errmsg err = {""};

	ck_assert_msg(g->d->v->dev.ops->acquire(&g->d->v->dev, &err) == 0, "%s", err.text);
}

static inline struct guest *guest_new(uint64_t features)
{
	struct guest *g = calloc(1, sizeof(*g));

	ck_assert_ptr_nonnull(g);
	g->cfg.present = true;
	g->cfg.cid = CID;
	snprintf(g->cfg.path, sizeof(g->cfg.path), "%s/v.sock", test_dir);
	g->d = driver_new(&virtio_vsock_ops, &g->cfg, RAM_MIN);
	acquire(g);
	guest_up(g, features);
	give_rx(g, RX_BUFS);
	return g;
}

static inline void guest_free(struct guest *g)
{
	driver_free(g->d);
	free(g);
}

/* The same guest at another device; the driver goes on with what it knows. */
static inline struct guest *guest_move(struct guest *from)
{
	struct guest *g = malloc(sizeof(*g));

	ck_assert_ptr_nonnull(g);
	*g = *from;
	g->d = driver_move(from->d, &g->cfg);
	return g;
}

/* ---- a test program ---- */

/* What a test works with. */
static struct guest *g;
static struct gsock s;

static inline void setup(void)
{
	snprintf(test_dir, sizeof(test_dir), "/tmp/godwit-vsock-XXXXXX");
	ck_assert_ptr_nonnull(mkdtemp(test_dir));
	signal(SIGPIPE, SIG_DFL); /* must not be needed */
	g = guest_new(UINT64_MAX);
}

static inline void teardown(void)
{
	char command[128];

	guest_free(g);
	snprintf(command, sizeof(command), "rm -rf %s", test_dir);
	ck_assert_int_eq(system(command), 0);
}

/* A test case of the suite, its tests with a guest each. */
static inline TCase *new_case(Suite *suite, const char *name)
{
	TCase *tc = tcase_create(name);

	tcase_set_timeout(tc, 60);
	tcase_add_checked_fixture(tc, setup, teardown);
	suite_add_tcase(suite, tc);
	return tc;
}

static inline int run_suite(Suite *suite)
{
	SRunner *runner = srunner_create(suite);
	int failed;

	srunner_run_all(runner, CK_ENV);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

/* Fills what the socket and the ring hold; the bytes that the guest has sent then. */
static inline uint32_t stuff(void)
{
	uint32_t total = 0;
	uint8_t data[4096];

	for (;;) {
		uint32_t n = MIN(gsock_credit(&s), (uint32_t)sizeof(data));
		struct packet p;

		if (n == 0) {
			driver_settle(g->d);
			if (!take_packet(g, &p))
				return total;
			ck_assert_uint_eq(p.hdr.op, VSOCK_OP_CREDIT_UPDATE);
			s.peer_fwd = p.hdr.fwd_cnt;
			continue;
		}
		for (uint32_t i = 0; i < n; i++)
			data[i] = (uint8_t)((total + i) * 2654435761U >> 24);
		send_data(g, &s, data, n);
		total += n;
	}
}

/* Reads what is there of the total that stuff() has sent and of which n were read; the new n. */
static inline uint32_t unstuff_some(int fd, uint32_t n, uint32_t total)
{
	uint8_t data[5000];
	ssize_t ret;

	while (n < total && (ret = recv(fd, data, sizeof(data), MSG_DONTWAIT)) >= 0) {
		ck_assert_int_gt(ret, 0);
		for (ssize_t i = 0; i < ret; i++, n++)
			ck_assert_uint_eq(data[i], (uint8_t)(n * 2654435761U >> 24));
	}
	ck_assert(n == total || errno == EAGAIN);
	return n;
}

/* Reads all of it, and then the end. */
static inline void unstuff(int fd, uint32_t n, uint32_t total)
{
	driver_run_until(g->d, (n = unstuff_some(fd, n, total)) == total);
	host_expect_eof(g, fd);
}

#endif
