/* SPDX-License-Identifier: MIT */
/*
 * Batches that are sent without a copy: a peer that reads slowly, or not at all, would notice each
 * byte of a buffer that is used again too soon.
 */
#include "../conn_parts.h"

#include <errno.h>
#include <linux/capability.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../../vmm/tests/check-main.h"

/* Nothing here takes as long unless it hangs. */
#define SOON (20 * NS_PER_SEC)

#define SMALL 4096		/* of a socket's buffer: sends take many turns */
#define LARGE (8 * 1024 * 1024) /* all batches fit, as far as the host allows */

static struct conn c;
static int peer, cancel_fd;
static struct errmsg err;

static void tcp_pair(int fds[2], int room)
{
	struct sockaddr_in addr = {.sin_family = AF_INET,
				   .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t len = sizeof(addr);
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	setsockopt(listener, SOL_SOCKET, SO_RCVBUF, &room, sizeof(room));
	ck_assert_int_eq(bind(listener, (struct sockaddr *)&addr, len), 0);
	ck_assert_int_eq(listen(listener, 1), 0);
	ck_assert_int_eq(getsockname(listener, (struct sockaddr *)&addr, &len), 0);
	fds[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	ck_assert_int_eq(connect(fds[0], (struct sockaddr *)&addr, len), 0);
	fds[1] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	ck_assert_int_ge(fds[1], 0);
	close(listener);
}

static void begin(bool tcp, enum conn_zerocopy how, int send_room)
{
	int fds[2];

	if (tcp)
		tcp_pair(fds, 64 * 1024);
	else
		ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	setsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &send_room, sizeof(send_room));
	peer = fds[1];
	cancel_fd = eventfd(0, EFD_CLOEXEC);
	err = (struct errmsg){""};
	ck_assert_msg(conn_init(&c, fds[0], cancel_fd, "peer", &err) == 0, "%s", err.text);
	c.zerocopy = how;
}

static unsigned held(void)
{
	unsigned n = 0;

	for (unsigned i = 0; i < CONN_BATCHES; i++)
		n += c.batch[i].held;
	return n;
}

/* However it went: it is over soon, and the kernel refers to nothing any more. */
static void end(void)
{
	uint64_t start = now_ns();

	shutdown(c.fd, SHUT_RDWR);
	conn_batches_end(&c);
	ck_assert_uint_eq(held(), 0);
	conn_close(&c);
	ck_assert_uint_lt(now_ns() - start, SOON);
	close(peer);
	close(cancel_fd);
}

/* ---- the peer ---- */

static struct reader {
	pthread_t thread;
	bool slow;
	uint64_t batches, next_page, wrong;
	uint32_t seq;
	unsigned last; /* the type of what came after the batches */
} reader;

static void read_batch(const struct wire_frame *f)
{
	static struct {
		struct wire_batch head;
		struct wire_desc desc[WIRE_BATCH_DESCS];
	} b;
	static uint8_t data[CONN_BATCH_BYTES];
	size_t descs;

	read_exact(peer, &b.head, sizeof(b.head));
	descs = MIN(b.head.n_descs, WIRE_BATCH_DESCS) * sizeof(b.desc[0]);
	read_exact(peer, b.desc, descs);
	reader.wrong += wire_check_sum(f, &b, sizeof(b.head) + descs) != f->check;
	read_exact(peer, data, wire_batch_contents(&b.head));
	for (size_t i = 0; i < wire_batch_contents(&b.head); i += 8)
		reader.wrong +=
			memcmp(data + i, &(uint64_t){reader.next_page + i / PAGE_SIZE}, 8) != 0;
	for (uint32_t i = 0; i < b.head.n_data; i++)
		reader.wrong += b.desc[i].index != reader.next_page + i;
	reader.next_page += b.head.n_data;
	reader.batches++;
}

static void *read_all(void *arg)
{
	struct wire_frame f;

	(void)arg;
	while (read_exact(peer, &f, sizeof(f)) == 0) {
		reader.wrong += f.magic != WIRE_FRAME_MAGIC || f.seq != reader.seq++;
		if (f.type != WIRE_PAGES) {
			reader.last = f.type;
			break;
		}
		read_batch(&f);
		if (reader.slow && reader.batches % 4 == 0)
			usleep(2000);
	}
	shutdown(peer, SHUT_WR);
	return NULL;
}

static void start_reader(bool slow)
{
	reader = (struct reader){.slow = slow};
	ck_assert_int_eq(pthread_create(&reader.thread, NULL, read_all, NULL), 0);
}

static void end_reader(unsigned batches, uint64_t pages, unsigned last)
{
	pthread_join(reader.thread, NULL);
	ck_assert_uint_eq(reader.last, last);
	ck_assert_uint_eq(reader.batches, batches);
	ck_assert_uint_eq(reader.next_page, pages);
	ck_assert_uint_eq(reader.wrong, 0);
}

/* ---- this side ---- */

static int send_batch(uint64_t *page, unsigned n, bool packed)
{
	struct conn_batch *b;
	int ret;

	b = conn_batch(&c, &ret, &err);
	if (!b)
		return ret;
	b->head = (struct wire_batch){.n_descs = n, .n_data = n};
	if (packed && !b->packed)
		b->packed = malloc(CONN_BATCH_BYTES);
	/* Not really packed, but elsewhere, and shorter than it might be. */
	if (packed)
		b->head.packed = (uint32_t)(n * PAGE_SIZE - 8);
	for (unsigned k = 0; k < n; k++, ++*page) {
		b->desc[k] = (struct wire_desc){.index = *page, .count = 1, .kind = WIRE_PAGE_DATA};
		for (size_t at = 0; at < PAGE_SIZE; at += 8)
			memcpy((packed ? b->packed : b->data) + k * PAGE_SIZE + at, page, 8);
	}
	return conn_send_batch(&c, b, &err);
}

/* Of all sizes, some packed; the last thing is a frame that must not overtake any of them. */
static void send_and_compare(unsigned n)
{
	uint64_t page = 0;

	start_reader(true);
	for (unsigned i = 0; i < n; i++) {
		unsigned pages = i % 3 == 0 ? i % WIRE_BATCH_PAGES + 1 : WIRE_BATCH_PAGES;

		ck_assert_msg(send_batch(&page, pages, i % 7 == 6) == 0, "%s", err.text);
	}
	ck_assert_msg(conn_send(&c, WIRE_ROUND_END, "\1\0\0\0", 4, NULL, &err) == 0, "%s",
		      err.text);
	end_reader(n, page, WIRE_ROUND_END);
	ck_assert_uint_gt(c.sent, page * PAGE_SIZE / 2);
}

static const struct {
	bool found, report, registered;
} ways[] = {
	{false, false, false}, /* as this kernel can */
	{true, true, false},   /* RLIMIT_MEMLOCK is in the way */
	{true, false, true},   /* Linux 6.0 and 6.1 */
};

START_TEST(in_order)
{
	begin(true, CONN_ZEROCOPY_ALWAYS, _i % 2 ? LARGE : SMALL);
	c.zc_begun = ways[_i / 2].found;
	c.zc_report = ways[_i / 2].report;
	if (ways[_i / 2].registered)
		ck_assert_int_eq(
			io_uring_register_buffers(
				&c.ring,
				&(struct iovec){c.memory, CONN_BATCHES * (CONN_HEADERS_BYTES +
									  CONN_BATCH_BYTES)},
				1),
			0);
	c.zc_registered = ways[_i / 2].registered;
	send_and_compare(90);
	/* What was acknowledged has been let go of, and is counted. */
	for (unsigned i = 0; i < 2000 && held(); i++, poll(NULL, 0, 10))
		conn_settle(&c);
	ck_assert_uint_eq(held(), 0);
	if (c.zerocopy == CONN_ZEROCOPY_ALWAYS)
		ck_assert_uint_gt(c.zc_tried, c.sent / 2);
	ck_assert_uint_le(c.zc_uncopied, c.zc_report ? c.zc_tried : 0);
	end();
}
END_TEST

/* Over loopback the kernel copies; by itself it is tried, then given up. */
START_TEST(given_up)
{
	begin(true, CONN_ZEROCOPY_AUTO, LARGE);
	send_and_compare(60);
	ck_assert_int_eq(c.zerocopy, CONN_ZEROCOPY_NEVER);
	ck_assert_uint_lt(c.zc_tried, c.sent / 2);
	end();
}
END_TEST

START_TEST(not_over_unix)
{
	begin(false, _i ? CONN_ZEROCOPY_ALWAYS : CONN_ZEROCOPY_AUTO, SMALL);
	send_and_compare(60);
	ck_assert_int_eq(c.zerocopy, CONN_ZEROCOPY_NEVER);
	ck_assert_uint_eq(c.zc_tried, 0);
	end();
}
END_TEST

START_TEST(never)
{
	begin(true, CONN_ZEROCOPY_NEVER, LARGE);
	send_and_compare(60);
	ck_assert(c.zc_tried == 0 && !c.zc_begun);
	end();
}
END_TEST

/* With no memory to be locked the kernel refuses each; root must first give up being above that. */
START_TEST(no_memory_to_lock)
{
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct caps[2] = {0};
	struct rlimit none = {0, 0};

	ck_assert_int_eq((int)syscall(SYS_capset, &head, caps), 0);
	begin(true, CONN_ZEROCOPY_ALWAYS, LARGE);
	/* The ring itself takes some. */
	ck_assert_int_eq(setrlimit(RLIMIT_MEMLOCK, &none), 0);
	send_and_compare(60);
	ck_assert(!c.zc_registered && c.zc_tried == 0);
	end();
}
END_TEST

/* ---- in flight ---- */

/* All batches are with the socket, and most of it is not acknowledged: the peer does not read. */
static void fill_up(uint64_t *page)
{
	begin(true, CONN_ZEROCOPY_ALWAYS, LARGE);
	*page = 0;
	for (unsigned i = 0; i < CONN_BATCHES; i++)
		ck_assert_msg(send_batch(page, WIRE_BATCH_PAGES, false) == 0, "%s", err.text);
	ck_assert_uint_gt(c.batch[CONN_BATCHES - 1].held, 0);
}

/* One that was sent is not free as long as it has not been acknowledged. */
START_TEST(sent_is_not_free)
{
	uint64_t page;

	fill_up(&page);
	c.deadline_ns = now_ns() + 300 * NS_PER_MS;
	ck_assert_int_eq(send_batch(&page, WIRE_BATCH_PAGES, false), -ETIMEDOUT);
	/* Then it is. */
	c.deadline_ns = UINT64_MAX;
	start_reader(false);
	for (unsigned i = 0; i < 10; i++)
		ck_assert_msg(send_batch(&page, WIRE_BATCH_PAGES, false) == 0, "%s", err.text);
	conn_fail(&c, WIRE_FAIL, "that is all");
	end_reader(CONN_BATCHES + 10, page, WIRE_FAIL);
	end();
}
END_TEST

static void *cancel_later(void *arg)
{
	(void)arg;
	usleep(30000);
	eventfd_write(cancel_fd, 1);
	return NULL;
}

START_TEST(cancelled)
{
	uint64_t start = now_ns(), page;
	pthread_t thread;
	int ret = 0;

	fill_up(&page);
	ck_assert_int_eq(pthread_create(&thread, NULL, cancel_later, NULL), 0);
	while (ret == 0)
		ret = send_batch(&page, WIRE_BATCH_PAGES, false);
	ck_assert_int_eq(ret, -ECANCELED);
	pthread_join(thread, NULL);
	/* Nobody reads the last words. */
	if (_i)
		conn_fail(&c, WIRE_CANCEL, "");
	end();
	ck_assert_uint_lt(now_ns() - start, 2 * SOON);
}
END_TEST

static void *vanish_later(void *arg)
{
	(void)arg;
	usleep(30000);
	close(peer);
	return NULL;
}

START_TEST(peer_vanishes)
{
	uint64_t page;
	pthread_t thread;
	int ret = 0;

	fill_up(&page);
	ck_assert_int_eq(pthread_create(&thread, NULL, vanish_later, NULL), 0);
	while (ret == 0)
		ret = send_batch(&page, WIRE_BATCH_PAGES, false);
	ck_assert_msg(ret == -ECONNRESET, "%d: %s", ret, err.text);
	pthread_join(thread, NULL);
	peer = dup(cancel_fd);
	end();
}
END_TEST

/* It is there, but says and takes nothing more: closing does not wait for it. */
START_TEST(closed_in_flight)
{
	uint64_t page;

	fill_up(&page);
	end();
}
END_TEST

int main(void)
{
	Suite *s = suite_create("conn-batch");
	TCase *tc = tcase_create("conn-batch");

	tcase_set_timeout(tc, 120);
	tcase_add_loop_test(tc, in_order, 0, 2 * (int)ARRAY_SIZE(ways));
	tcase_add_test(tc, given_up);
	tcase_add_loop_test(tc, not_over_unix, 0, 2);
	tcase_add_test(tc, never);
	tcase_add_test(tc, no_memory_to_lock);
	tcase_add_test(tc, sent_is_not_free);
	tcase_add_loop_test(tc, cancelled, 0, 2);
	tcase_add_test(tc, peer_vanishes);
	tcase_add_test(tc, closed_in_flight);
	suite_add_tcase(s, tc);
	return check_run(s);
}
