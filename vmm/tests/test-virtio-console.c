/* SPDX-License-Identifier: MIT */
#include "../virtio_console.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "check-main.h"
#include "virtio-driver.h"

enum {
	RX,
	TX,
};

#define PATTERN_LEN (4 * MIB)

static char dir[64], path[128], other_path[128];
static struct vm_console cfg, other_cfg;
static uint8_t *pattern; /* of a period that is no power of two, nor a divisor of a buffer */
static struct driver *d;

static struct vm_console config_of(char *at, const char *name)
{
	struct vm_console c = {.present = true};

	snprintf(at, sizeof(path), "%s/%s", dir, name);
	snprintf(c.path, sizeof(c.path), "%s", at);
	return c;
}

static void acquire(struct driver *on)
{
	struct errmsg err = {""};
	int ret = virtio_console_ops.acquire(&on->v->dev, &err);

	ck_assert_msg(ret == 0, "acquire: %s", err.text);
}

static void release(struct driver *on)
{
	virtio_console_ops.release(&on->v->dev);
}

static void setup(void)
{
	snprintf(dir, sizeof(dir), "/tmp/godwit-console-XXXXXX");
	ck_assert_ptr_nonnull(mkdtemp(dir));
	cfg = config_of(path, "console");
	other_cfg = config_of(other_path, "other");
	pattern = malloc(PATTERN_LEN);
	ck_assert_ptr_nonnull(pattern);
	for (size_t i = 0; i < PATTERN_LEN; i++)
		pattern[i] = (uint8_t)(i % 251 + i / 65521);
	d = driver_new(&virtio_console_ops, &cfg, RAM_MIN);
	acquire(d);
}

static void teardown(void)
{
	if (d)
		driver_free(d);
	free(pattern);
	unlink(path);
	unlink(other_path);
	ck_assert_int_eq(rmdir(dir), 0);
}

/* ---- the peer ---- */

static int peer_connect(const char *at)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	ck_assert_int_ge(fd, 0);
	snprintf(addr.sun_path, sizeof(addr.sun_path), "%.100s", at);
	if (connect(fd, (struct sockaddr *)&addr, sizeof(addr)) == 0)
		return fd;
	close(fd);
	return -errno;
}

static int peer_of(struct driver *on, const char *at)
{
	int fd = peer_connect(at);

	ck_assert_msg(fd >= 0, "connect: %s", strerror(-fd));
	driver_settle(on);
	return fd;
}

/* The next len bytes that the peer gets must be these. */
static void peer_gets(struct driver *on, int fd, const uint8_t *want, size_t len)
{
	uint64_t deadline = now_ns() + DRIVER_WAIT_NS;
	uint8_t buf[8192];
	size_t at = 0;

	while (at < len) {
		ssize_t n = recv(fd, buf, MIN(sizeof(buf), len - at), 0);

		if (n < 0 && errno == EAGAIN) {
			ck_assert_msg(now_ns() < deadline, "only %zu of %zu bytes came", at, len);
			driver_step(on, NS_PER_MS);
			continue;
		}
		ck_assert_msg(n > 0, "the peer's end after %zu of %zu bytes: %s", at, len,
			      n ? strerror(errno) : "eof");
		ck_assert_msg(memcmp(buf, want + at, (size_t)n) == 0, "a byte from %zu on differs",
			      at);
		at += (size_t)n;
	}
}

static void peer_gets_nothing(struct driver *on, int fd)
{
	uint8_t byte;

	driver_settle(on);
	ck_assert_int_eq(recv(fd, &byte, 1, 0), -1);
	ck_assert_int_eq(errno, EAGAIN);
}

static void peer_gets_end(struct driver *on, int fd)
{
	ssize_t n;
	uint8_t byte;

	driver_run_until(on, (n = recv(fd, &byte, 1, 0)) >= 0 || errno != EAGAIN);
	ck_assert_msg(n <= 0, "a byte");
	ck_assert(n == 0 || errno == ECONNRESET);
	close(fd);
}

static void peer_sends(int fd, const uint8_t *bytes, size_t len)
{
	ck_assert_int_eq(send(fd, bytes, len, MSG_NOSIGNAL), (ssize_t)len);
}

/* As much as the socket takes. */
static size_t peer_stuffs(int fd, const uint8_t *bytes, size_t len)
{
	size_t at = 0;
	ssize_t n;

	while (at < len && (n = send(fd, bytes + at, MIN(len - at, 4096), MSG_NOSIGNAL)) > 0)
		at += (size_t)n;
	return at;
}

/* Takes what is in the socket, while the loop stands still; how much it was. */
static size_t peer_drains(int fd, size_t from)
{
	static uint8_t buf[65536];
	size_t at = 0;
	ssize_t n;

	while ((n = recv(fd, buf, sizeof(buf), 0)) > 0) {
		ck_assert(memcmp(buf, pattern + from + at, (size_t)n) == 0);
		at += (size_t)n;
	}
	return at;
}

/* Nothing goes on by itself: a poll that is made again and again would keep a processor busy. */
static void need_idle(struct driver *on)
{
	uint64_t start = now_ns();

	driver_settle(on);
	for (unsigned i = 0; now_ns() - start < 200 * NS_PER_MS; i++) {
		ck_assert_uint_lt(i, 50);
		driver_step(on, 50 * NS_PER_MS);
	}
}

static unsigned open_fds(void)
{
	DIR *fds = opendir("/proc/self/fd");
	unsigned n = 0;

	ck_assert_ptr_nonnull(fds);
	while (readdir(fds))
		n++;
	closedir(fds);
	return n;
}

/* ---- the guest ---- */

/* Makes [from, from + len) of the pattern available to send. */
static void guest_sends(struct driver *on, size_t from, uint32_t len)
{
	uint64_t gpa = driver_alloc(on, len);

	driver_poke(on, gpa, pattern + from, len);
	driver_add(on, TX, &(struct driver_buf){gpa, len, false}, 1);
	driver_kick(on, TX);
}

static unsigned taken(struct driver *on, unsigned queue)
{
	struct driver_used e;
	unsigned n = 0;

	while (driver_take_used(on, queue, &e))
		n++;
	return n;
}

static void guest_sent(struct driver *on, size_t from, uint32_t len)
{
	guest_sends(on, from, len);
	ck_assert_uint_eq(driver_wait_used(on, TX).len, 0);
}

/* Everything that was made available has been given back. */
static void guest_all_sent(struct driver *on)
{
	driver_run_until(on, (taken(on, TX), on->queue[TX].n_free == on->queue[TX].size));
}

static uint64_t guest_listens(struct driver *on, uint32_t len)
{
	uint64_t gpa = driver_alloc(on, len);

	driver_add(on, RX, &(struct driver_buf){gpa, len, true}, 1);
	driver_kick(on, RX);
	return gpa;
}

/* The next input must be these bytes of the pattern, in buffers of this size. */
static void guest_gets(struct driver *on, size_t from, size_t len, uint32_t buffer)
{
	size_t at = 0;

	while (at < len) {
		uint64_t gpa = guest_listens(on, buffer);
		struct driver_used e = driver_wait_used(on, RX);

		ck_assert_uint_gt(e.len, 0);
		ck_assert_uint_le(e.len, MIN(buffer, len - at));
		ck_assert(memcmp(driver_mem(on, gpa, e.len), pattern + from + at, e.len) == 0);
		at += e.len;
	}
}

START_TEST(what_it_is)
{
	ck_assert_uint_eq(d->v->ops->type, 3);
	ck_assert_uint_eq(d->v->n_queues, 2);
	ck_assert_uint_eq(d->v->offered,
			  VIRTIO_VERSION_1 | VIRTIO_RING_EVENT_IDX | VIRTIO_RING_INDIRECT);
}
END_TEST

/* ---- the socket ---- */

START_TEST(bad_paths)
{
	struct device *dev = calloc(1, virtio_console_ops.size);
	struct vm_console c = {.present = true};

	ck_assert_ptr_nonnull(dev);
	dev->ops = &virtio_console_ops;
	dev->vm = d->vm;
	ck_assert_int_eq(virtio_console_ops.init(dev, &c), -EINVAL);
	memset(c.path, 'x', sizeof(c.path));
	ck_assert_int_eq(virtio_console_ops.init(dev, &c), -EINVAL);
	free(dev);
}
END_TEST

START_TEST(socket_comes_and_goes)
{
	struct stat st;

	ck_assert_int_eq(lstat(path, &st), 0);
	ck_assert(S_ISSOCK(st.st_mode));
	ck_assert_uint_eq(st.st_mode & 07777, 0600);
	release(d);
	ck_assert_int_eq(lstat(path, &st), -1);
	ck_assert_int_eq(peer_connect(path), -ENOENT);
	acquire(d);
	close(peer_of(d, path));
	driver_free(d);
	ck_assert_int_eq(lstat(path, &st), -1);
	/* One that never took it, or has given it up, takes nothing away. */
	d = driver_new(&virtio_console_ops, &cfg, RAM_MIN);
	ck_assert_int_eq(lstat(path, &st), -1);
	acquire(d);
	ck_assert_int_eq(unlink(path), 0);
	ck_assert_int_ge(close(open(path, O_CREAT | O_WRONLY, 0600)), 0);
	release(d);
	ck_assert_int_eq(lstat(path, &st), 0);
}
END_TEST

START_TEST(dead_owner_is_replaced)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	release(d);
	snprintf(addr.sun_path, sizeof(addr.sun_path), "%.100s", path);
	ck_assert_int_eq(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	ck_assert_int_eq(listen(fd, 1), 0);
	close(fd);
	acquire(d);
	close(peer_of(d, path));
}
END_TEST

/* The living owner does not even hear of it: neither its peer nor its backlog is disturbed. */
START_TEST(living_owner_stays)
{
	struct driver *second = driver_new(&virtio_console_ops, &cfg, RAM_MIN);
	struct errmsg err = {""};
	int fd;

	driver_up(d, UINT64_MAX);
	guest_sent(d, 0, 100);
	ck_assert_int_eq(virtio_console_ops.acquire(&second->v->dev, &err), -EADDRINUSE);
	ck_assert_msg(strstr(err.text, path) != NULL, "%s", err.text);
	driver_settle(d);
	driver_free(second);
	fd = peer_of(d, path);
	peer_gets(d, fd, pattern, 100);
	close(fd);
}
END_TEST

START_TEST(other_file_stays)
{
	struct errmsg err = {""};
	struct stat st;

	release(d);
	ck_assert_int_eq(close(open(path, O_CREAT | O_WRONLY, 0600)), 0);
	ck_assert_int_eq(virtio_console_ops.acquire(&d->v->dev, &err), -EEXIST);
	ck_assert_msg(strstr(err.text, path) != NULL, "%s", err.text);
	ck_assert_int_eq(lstat(path, &st), 0);
	ck_assert(S_ISREG(st.st_mode));
	ck_assert_int_eq(unlink(path), 0);
	ck_assert_int_eq(rmdir(dir), 0);
	err = (struct errmsg){""};
	ck_assert_int_eq(virtio_console_ops.acquire(&d->v->dev, &err), -ENOENT);
	ck_assert_int_eq(mkdir(dir, 0700), 0);
}
END_TEST

/* ---- bytes ---- */

static const uint64_t features[] = {0, VIRTIO_RING_EVENT_IDX, VIRTIO_RING_INDIRECT, UINT64_MAX};

START_TEST(guest_to_peer)
{
	size_t at = 0;
	int fd = peer_of(d, path);

	driver_up(d, features[_i]);
	for (uint32_t i = 0; i < 500; i++) {
		uint32_t len = i * 37 % 6000 + 1;

		guest_sent(d, at, len);
		driver_run_until(d, driver_irqs(d, TX) == 1);
		peer_gets(d, fd, pattern + at, len);
		at += len;
	}
	/* In pieces, the other way of a chain, and larger than all that we keep. */
	for (unsigned indirect = 0; indirect < 2; indirect++) {
		uint64_t gpa = driver_alloc(d, 300000);
		const struct driver_buf bufs[] = {
			{gpa, 1, false}, {gpa + 1, 199999, false}, {gpa + 200000, 100000, false}};

		driver_poke(d, gpa, pattern, 300000);
		if (indirect && virtio_has(d->v, VIRTIO_RING_INDIRECT))
			driver_add_indirect(d, TX, bufs, 3);
		else
			driver_add(d, TX, bufs, 3);
		driver_kick(d, TX);
		peer_gets(d, fd, pattern, 300000);
		driver_wait_used(d, TX);
	}
	/* A buffer of nothing is just given back. */
	driver_add(d, TX, &(struct driver_buf){DRIVER_FIRST_GPA, 0, false}, 1);
	driver_kick(d, TX);
	driver_wait_used(d, TX);
	peer_gets_nothing(d, fd);
	close(fd);
}
END_TEST

/* Exactly the last of it, whatever the sizes; the guest never waits. */
START_TEST(backlog_without_peer)
{
	static const uint32_t sizes[] = {1, 7, 4095, 4097, 65535, 65536, 65537, 200000};
	size_t at = 0;
	int fd;

	driver_up(d, UINT64_MAX);
	for (size_t i = 0; i < 3 * ARRAY_SIZE(sizes); i++) {
		uint32_t len = sizes[(size_t)_i] + (i % 2 ? 3 : 0);

		if (at + len > PATTERN_LEN)
			break;
		guest_sent(d, at, len);
		at += len;
	}
	fd = peer_of(d, path);
	if (at > VIRTIO_CONSOLE_BACKLOG)
		peer_gets(d, fd, pattern + at - VIRTIO_CONSOLE_BACKLOG, VIRTIO_CONSOLE_BACKLOG);
	else
		peer_gets(d, fd, pattern, at);
	peer_gets_nothing(d, fd);
	guest_sent(d, at, 10);
	peer_gets(d, fd, pattern + at, 10);
	close(fd);
}
END_TEST

/* One buffer takes several turns, as many small ones do, with a peer or without. */
START_TEST(takes_turns)
{
	static const struct driver_buf half = {8 * MIB, PATTERN_LEN / 2, false};
	unsigned turns = 0;
	struct driver_used e;
	int fd;

	driver_up(d, UINT64_MAX);
	driver_poke(d, half.gpa, pattern, half.len);
	driver_add(d, TX, &half, 1);
	driver_kick(d, TX);
	while (!driver_take_used(d, TX, &e)) {
		struct driver_mark mark = {.task = {.run = driver_on_mark}};

		loop_post(d->loop, &mark.task);
		driver_run_until(d, mark.ran);
		turns++;
	}
	ck_assert_uint_ge(turns, 4);
	fd = peer_of(d, path);
	peer_gets(d, fd, pattern + half.len - VIRTIO_CONSOLE_BACKLOG, VIRTIO_CONSOLE_BACKLOG);
	driver_add(d, TX, &half, 1);
	driver_kick(d, TX);
	peer_gets(d, fd, pattern, half.len);
	driver_wait_used(d, TX);
	peer_gets_nothing(d, fd);
	close(fd);
}
END_TEST

/* Nothing is lost, and no more is taken from the guest than fits; the driver need not kick again.
 */
START_TEST(slow_peer)
{
	const uint32_t len = 16384;
	size_t sent = 0;
	unsigned done;
	int fd = peer_of(d, path);

	driver_up(d, features[_i]);
	while (d->queue[TX].n_free) {
		guest_sends(d, sent, len);
		sent += len;
	}
	driver_settle(d);
	driver_settle(d);
	done = taken(d, TX);
	ck_assert_uint_gt(done, 0);
	ck_assert_uint_lt(done, d->queue[TX].size - 10);
	driver_settle(d);
	ck_assert_uint_eq(taken(d, TX), 0);
	peer_gets(d, fd, pattern, sent);
	guest_all_sent(d);
	/* And the next one is heard of. */
	guest_sent(d, 5, 5);
	peer_gets(d, fd, pattern + 5, 5);
	peer_gets_nothing(d, fd);
	close(fd);
}
END_TEST

/*
 * The guest does not go on waiting for a peer that has gone, whether it is found out by listening
 * to it or by talking to it, and its last words are kept.
 */
START_TEST(slow_peer_leaves)
{
	const uint32_t len = 16384;
	size_t sent = 0;
	int fd = peer_of(d, path);

	driver_up(d, UINT64_MAX);
	if (_i == 1)
		guest_listens(d, 10);
	while (d->queue[TX].n_free) {
		guest_sends(d, sent, len);
		sent += len;
	}
	driver_settle(d);
	ck_assert_uint_lt(taken(d, TX), d->queue[TX].size - 10);
	if (_i == 2)
		guest_listens(d, 10);
	driver_settle(d);
	close(fd);
	guest_all_sent(d);
	fd = peer_of(d, path);
	peer_gets(d, fd, pattern + sent - VIRTIO_CONSOLE_BACKLOG, VIRTIO_CONSOLE_BACKLOG);
	close(fd);
}
END_TEST

START_TEST(peer_to_guest)
{
	static const uint32_t buffers[] = {1, 5, 4096, 100000};
	size_t at = 0;
	int fd = peer_of(d, path);

	driver_up(d, features[_i]);
	for (size_t b = 0; b < ARRAY_SIZE(buffers); b++) {
		size_t len = buffers[b] == 1 ? 300 : 20000;

		/* The bytes first, then the buffers, and the other way round. */
		peer_sends(fd, pattern + at, len);
		driver_settle(d);
		guest_gets(d, at, len, buffers[b]);
		at += len;
		for (unsigned i = 0; i < 100; i++) {
			uint64_t gpa = guest_listens(d, buffers[b]);
			struct driver_used e;

			driver_settle(d);
			ck_assert_uint_eq(taken(d, RX), 0);
			driver_irqs(d, RX);
			driver_watch(d);
			peer_sends(fd, pattern + at, 1);
			e = driver_wait_used(d, RX);
			ck_assert_uint_eq(e.len, 1);
			driver_run_until(d, driver_irqs(d, RX) == 1);
			ck_assert_uint_le(driver_check_dirty(d), 2);
			ck_assert(memcmp(driver_mem(d, gpa, 1), pattern + at, 1) == 0);
			at++;
		}
	}
	close(fd);
}
END_TEST

/* Several buffers of one chain are filled in turn. */
START_TEST(input_in_pieces)
{
	int fd = peer_of(d, path);
	uint64_t gpa;

	driver_up(d, UINT64_MAX);
	gpa = driver_alloc(d, 4096);
	driver_add_indirect(
		d, RX,
		(struct driver_buf[]){{gpa, 3, true}, {gpa + 100, 0, true}, {gpa + 200, 5, true}},
		3);
	driver_kick(d, RX);
	peer_sends(fd, pattern, 6);
	ck_assert_uint_eq(driver_wait_used(d, RX).len, 6);
	ck_assert(memcmp(driver_mem(d, gpa, 3), pattern, 3) == 0);
	ck_assert(memcmp(driver_mem(d, gpa + 200, 3), pattern + 3, 3) == 0);
	ck_assert_uint_eq(*(uint8_t *)driver_mem(d, gpa + 203, 1), 0);
	close(fd);
}
END_TEST

/* A peer cannot make us keep what no guest takes. */
START_TEST(input_waits_for_buffers)
{
	int fd = peer_of(d, path);
	size_t len, again;

	driver_up(d, UINT64_MAX);
	len = peer_stuffs(fd, pattern, PATTERN_LEN);
	ck_assert_uint_lt(len, PATTERN_LEN);
	driver_settle(d);
	again = peer_stuffs(fd, pattern + len, PATTERN_LEN - len);
	ck_assert_uint_eq(again, 0);
	guest_gets(d, 0, 10, 10);
	guest_gets(d, 10, len - 10, 4096);
	driver_settle(d);
	ck_assert_uint_gt(peer_stuffs(fd, pattern + len, 4096), 0);
	close(fd);
}
END_TEST

/* ---- peers that come and go ---- */

START_TEST(second_peer_is_refused)
{
	int first = peer_of(d, path), second;

	driver_up(d, UINT64_MAX);
	guest_sent(d, 0, 10);
	for (unsigned i = 0; i < 20; i++) {
		second = peer_of(d, path);
		peer_gets_end(d, second);
		guest_sent(d, 10 + i, 1);
	}
	peer_gets(d, first, pattern, 30);
	peer_sends(first, pattern, 5);
	guest_gets(d, 0, 5, 100);
	/* Its place is free once it is gone, at once. */
	for (unsigned i = 0; i < 20; i++) {
		close(first);
		first = peer_of(d, path);
		guest_sent(d, i, 1);
		peer_gets(d, first, pattern + i, 1);
	}
	close(first);
}
END_TEST

/* What a peer said before it left reaches the guest, even if the next one has come already. */
START_TEST(last_words)
{
	int fd = peer_of(d, path);

	driver_up(d, UINT64_MAX);
	peer_sends(fd, pattern, 5000);
	close(fd);
	fd = peer_of(d, path);
	peer_sends(fd, pattern + 5000, 5000);
	guest_sent(d, 0, 10);
	peer_gets(d, fd, pattern, 10);
	driver_settle(d);
	guest_gets(d, 0, 10000, 999);
	close(fd);
}
END_TEST

/* A peer with more to say than we may keep holds its place until the guest has heard it. */
START_TEST(many_last_words)
{
	int fd = peer_of(d, path);
	size_t len;

	driver_up(d, UINT64_MAX);
	len = peer_stuffs(fd, pattern, PATTERN_LEN);
	ck_assert_uint_gt(len, VIRTIO_CONSOLE_BACKLOG);
	close(fd);
	peer_gets_end(d, peer_of(d, path));
	guest_gets(d, 0, len, 4096);
	guest_listens(d, 10);
	driver_settle(d);
	fd = peer_of(d, path);
	peer_sends(fd, pattern, 1);
	ck_assert_uint_eq(driver_wait_used(d, RX).len, 1);
	close(fd);
}
END_TEST

/* One that sends no more still listens. */
START_TEST(half_closed)
{
	int fd = peer_of(d, path);

	driver_up(d, UINT64_MAX);
	peer_sends(fd, pattern, 3);
	ck_assert_int_eq(shutdown(fd, SHUT_WR), 0);
	guest_gets(d, 0, 3, 3);
	guest_listens(d, 10);
	driver_settle(d);
	need_idle(d);
	guest_sent(d, 0, 1000);
	peer_gets(d, fd, pattern, 1000);
	peer_gets_end(d, peer_of(d, path));
	guest_sent(d, 7, 7);
	peer_gets(d, fd, pattern + 7, 7);
	close(fd);
	fd = peer_of(d, path);
	peer_sends(fd, pattern, 4);
	ck_assert_uint_eq(driver_wait_used(d, RX).len, 4);
	close(fd);
}
END_TEST

/* A peer that goes is gone, and not only once the next one comes. */
START_TEST(leaves_nothing_behind)
{
	unsigned before;

	driver_up(d, UINT64_MAX);
	guest_listens(d, 10);
	driver_settle(d);
	before = open_fds();
	for (unsigned i = 0; i < 5; i++) {
		int fd = peer_of(d, path);

		peer_gets_end(d, peer_of(d, path));
		close(fd);
		driver_settle(d);
		ck_assert_uint_eq(open_fds(), before);
		release(d);
		driver_settle(d);
		ck_assert_uint_eq(open_fds(), before - 1);
		acquire(d);
		driver_settle(d);
		ck_assert_uint_eq(open_fds(), before);
	}
	need_idle(d);
}
END_TEST

/* ---- drivers ---- */

START_TEST(mistakes)
{
	int fd = peer_of(d, path);

	for (unsigned i = 0; i < 6; i++) {
		uint64_t gpa;

		driver_up(d, UINT64_MAX);
		gpa = driver_alloc(d, 64);
		switch (i) {
		case 0:
			driver_add(d, TX, &(struct driver_buf){gpa, 4, true}, 1);
			break;
		case 1:
			driver_add(d, TX, (struct driver_buf[]){{gpa, 4, false}, {gpa, 4, true}},
				   2);
			break;
		case 2:
			driver_add(d, RX, &(struct driver_buf){gpa, 4, false}, 1);
			break;
		case 3:
			driver_add(d, RX, (struct driver_buf[]){{gpa, 4, false}, {gpa, 4, true}},
				   2);
			break;
		case 4:
			driver_add(d, RX, &(struct driver_buf){gpa, 0, true}, 1);
			break;
		default:
			driver_add(d, TX, &(struct driver_buf){UINT64_MAX, 4, false}, 1);
		}
		driver_kick_always(d, RX);
		driver_kick_always(d, TX);
		driver_run_until(d, driver_needs_reset(d));
		driver_settle(d);
		ck_assert_uint_eq(taken(d, RX) + taken(d, TX), 0);
	}
	driver_up(d, UINT64_MAX);
	guest_sent(d, 0, 9);
	peer_gets(d, fd, pattern, 9);
	peer_gets_nothing(d, fd);
	close(fd);
}
END_TEST

/* A driver that starts anew in the middle of a buffer that was sent in part. */
START_TEST(reset_in_mid_buffer)
{
	int fd = peer_of(d, path);
	uint8_t byte = 0;
	size_t n = 0;

	driver_up(d, UINT64_MAX);
	guest_sends(d, 0, 3000000);
	driver_settle(d);
	ck_assert_uint_eq(taken(d, TX), 0);
	driver_up(d, UINT64_MAX);
	/* What was taken is sent; then comes the new driver's, from its start. */
	guest_sends(d, 4000000, 10);
	while (n < 3000000) {
		ssize_t ret = recv(fd, &byte, 1, 0);

		if (ret < 0) {
			driver_settle(d);
			if (recv(fd, &byte, 1, MSG_PEEK) < 0)
				break;
			continue;
		}
		if (byte != pattern[n])
			break;
		n++;
	}
	ck_assert_uint_gt(n, VIRTIO_CONSOLE_BACKLOG);
	ck_assert_uint_lt(n, 3000000);
	ck_assert_uint_eq(byte, pattern[4000000]);
	peer_gets(d, fd, pattern + 4000001, 9);
	close(fd);
}
END_TEST

/* ---- at rest, and elsewhere ---- */

START_TEST(at_rest)
{
	int fd = peer_of(d, path), second;
	struct sbuf before, after;

	driver_up(d, UINT64_MAX);
	guest_listens(d, 100);
	driver_settle(d);
	driver_quiesce(d);
	driver_save(d, &before);
	driver_watch(d);
	/* Everything that could move it. */
	peer_sends(fd, pattern, 10);
	guest_sends(d, 0, 10);
	driver_kick_always(d, TX);
	driver_kick_always(d, RX);
	second = peer_of(d, path);
	driver_settle(d);
	ck_assert_uint_eq(driver_check_dirty(d), 0);
	ck_assert_uint_eq(driver_clean(d), 0);
	peer_gets_nothing(d, fd);
	peer_gets_nothing(d, second);
	driver_save(d, &after);
	ck_assert_uint_eq(before.len, after.len);
	ck_assert(memcmp(before.data, after.data, before.len) == 0);
	sb_free(&before);
	sb_free(&after);
	/* And then it all happens. */
	driver_resume(d);
	peer_gets(d, fd, pattern, 10);
	ck_assert_uint_eq(driver_wait_used(d, RX).len, 10);
	peer_gets_end(d, second);
	close(fd);
}
END_TEST

/* The same when there is much to say, to a peer that would listen by now. */
START_TEST(at_rest_with_backlog)
{
	int fd = peer_of(d, path), second;
	struct sbuf before, after;
	size_t at;

	driver_up(d, UINT64_MAX);
	guest_sends(d, 0, 3000000);
	driver_settle(d);
	/* What it takes at the last moment it gets; then no more. */
	at = peer_drains(fd, 0);
	ck_assert_int_eq(virtio_console_ops.quiesce(&d->v->dev, now_ns() + NS_PER_SEC), 0);
	driver_save(d, &before);
	ck_assert_uint_ne(peer_drains(fd, at), 0);
	second = peer_of(d, path);
	need_idle(d);
	peer_gets_nothing(d, fd);
	driver_save(d, &after);
	ck_assert_uint_eq(before.len, after.len);
	ck_assert(memcmp(before.data, after.data, before.len) == 0);
	sb_free(&before);
	sb_free(&after);
	close(second);
	close(fd);
}
END_TEST

/* The end of the machine is not the end of what it has said. */
START_TEST(last_words_of_the_guest)
{
	int fd = peer_of(d, path);
	uint8_t byte;
	size_t at;

	driver_up(d, UINT64_MAX);
	guest_sends(d, 0, 1000000);
	driver_settle(d);
	at = peer_drains(fd, 0);
	driver_free(d);
	d = NULL;
	ck_assert_uint_gt(peer_drains(fd, at), 0);
	ck_assert_int_eq(recv(fd, &byte, 1, 0), 0);
	close(fd);
}
END_TEST

/*
 * A buffer in the middle of being sent, a full backlog and input that the guest has no room for:
 * all of it arrives, in order and once.
 */
START_TEST(moves)
{
	struct driver *to;
	uint8_t got[8192];
	size_t at = 0, in_len;
	ssize_t n;
	int fd = peer_of(d, path);

	driver_up(d, features[_i]);
	guest_sends(d, 0, 2000000);
	guest_sends(d, 2000000, 500000);
	driver_settle(d);
	peer_sends(fd, pattern, 3000);
	in_len = 3000;
	guest_gets(d, 0, 1000, 1000);
	to = driver_move(d, &other_cfg);
	/* What the peer has got until now it keeps. */
	release(d);
	driver_settle(d);
	while ((n = recv(fd, got, sizeof(got), 0)) > 0) {
		ck_assert(memcmp(got, pattern + at, (size_t)n) == 0);
		at += (size_t)n;
	}
	ck_assert_int_eq(n, 0);
	ck_assert_uint_gt(at, 0);
	ck_assert_uint_lt(at, 2000000);
	close(fd);

	acquire(to);
	fd = peer_connect(other_path);
	ck_assert_int_ge(fd, 0);
	driver_watch(to);
	driver_settle(to);
	peer_gets_nothing(to, fd);
	ck_assert_uint_eq(driver_clean(to), 0);
	driver_resume(to);
	peer_gets(to, fd, pattern + at, 2500000 - at);
	guest_all_sent(to);
	peer_gets_nothing(to, fd);
	peer_sends(fd, pattern + in_len, 1000);
	guest_gets(to, 1000, in_len - 1000 + 1000, 700);
	ck_assert_uint_eq(driver_needs_reset(to), false);
	close(fd);
	driver_free(d);
	d = to;
}
END_TEST

/* The hand-over fails at the last moment: the guest goes on here and has lost nothing. */
START_TEST(comes_back)
{
	int fd = peer_of(d, path);
	uint8_t got[4096];
	size_t at = 0;
	ssize_t n;

	driver_up(d, UINT64_MAX);
	guest_sends(d, 0, 1000000);
	driver_settle(d);
	driver_quiesce(d);
	peer_sends(fd, pattern, 500);
	for (unsigned i = 0; i < 3; i++) {
		release(d);
		acquire(d);
	}
	release(d);
	ck_assert_int_eq(peer_connect(path), -ENOENT);
	while ((n = recv(fd, got, sizeof(got), 0)) > 0) {
		ck_assert(memcmp(got, pattern + at, (size_t)n) == 0);
		at += (size_t)n;
	}
	ck_assert_int_eq(n, 0);
	close(fd);
	acquire(d);
	driver_resume(d);
	fd = peer_of(d, path);
	/* It had no peer for a moment: the last of the buffer are there. */
	driver_run_until(d, taken(d, TX) == 1);
	peer_gets(d, fd, pattern + 1000000 - VIRTIO_CONSOLE_BACKLOG, VIRTIO_CONSOLE_BACKLOG);
	guest_gets(d, 0, 500, 4096);
	close(fd);
}
END_TEST

START_TEST(hostile_state)
{
	const uint32_t big = VIRTIO_CONSOLE_BACKLOG + 1;
	const uint64_t huge = 1ULL << 32;
	struct driver *to;
	struct sbuf s;
	size_t at;

	driver_up(d, UINT64_MAX);
	guest_sent(d, 0, 300);
	driver_quiesce(d);
	driver_save(d, &s);
	to = driver_arriving(d, &other_cfg);
	/* The last fields: tx_done, the length of `out` and 300 bytes, the length of `in`. */
	at = s.len - 4 - 300 - 4 - 8;
	for (size_t len = 0; len < s.len; len++)
		ck_assert_int_lt(driver_load(to, s.data, len), 0);
	ck_assert_int_eq(driver_load(to, s.data, s.len), 0);
	memcpy(s.data + s.len - 4, &big, sizeof(big));
	ck_assert_int_eq(driver_load(to, s.data, s.len), -ERANGE);
	memset(s.data + s.len - 4, 0, 4);
	memcpy(s.data + at + 8, &big, sizeof(big));
	ck_assert_int_eq(driver_load(to, s.data, s.len), -ERANGE);
	memcpy(s.data + at + 8, &(uint32_t){300}, sizeof(big));
	memcpy(s.data + at, &huge, sizeof(huge));
	ck_assert_int_eq(driver_load(to, s.data, s.len), -EPROTO);
	/* Further in than the next buffer reaches: the buffer counts as sent. */
	memcpy(s.data + at, &(uint64_t){UINT32_MAX}, sizeof(huge));
	ck_assert_int_eq(driver_load(to, s.data, s.len), 0);
	sb_free(&s);
	driver_resume(to);
	guest_sends(to, 0, 10);
	driver_wait_used(to, TX);
	driver_settle(to);
	driver_free(to);
}
END_TEST

/* ---- threads: acquire, quiesce and the like come from another one while the loop runs ---- */

struct mover {
	struct device *dev;
	atomic_bool done;
};

static void *move_around(void *arg)
{
	struct mover *m = arg;

	for (unsigned i = 0; i < 200; i++) {
		struct errmsg err = {""};
		struct sbuf s;

		ck_assert_int_eq(virtio_console_ops.quiesce(m->dev, now_ns() + DRIVER_WAIT_NS), 0);
		sb_init_save(&s);
		virtio_console_ops.fields(m->dev, &s);
		sb_free(&s);
		if (i % 2) {
			virtio_console_ops.release(m->dev);
			ck_assert_int_eq(virtio_console_ops.acquire(m->dev, &err), 0);
		}
		virtio_console_ops.resume(m->dev);
	}
	m->done = true;
	return NULL;
}

START_TEST(threads)
{
	struct mover m = {.dev = &d->v->dev};
	size_t in_peer = 0, in_guest = 0, out = 0;
	pthread_t thread;
	int fd = -1;

	driver_up(d, UINT64_MAX);
	ck_assert_int_eq(pthread_create(&thread, NULL, move_around, &m), 0);
	while (!m.done) {
		uint8_t buf[4096];
		ssize_t n;

		if (fd < 0 && (fd = peer_connect(path)) < 0) {
			driver_step(d, NS_PER_MS);
			continue;
		}
		n = recv(fd, buf, sizeof(buf), 0);
		if (n == 0 || (n < 0 && errno != EAGAIN)) {
			close(fd);
			fd = -1;
			continue;
		}
		if (send(fd, buf, 64, MSG_NOSIGNAL) == 64)
			in_peer += 64;
		if (d->queue[RX].n_free)
			guest_listens(d, 64);
		if (d->queue[TX].n_free && d->top < 14 * MIB) {
			guest_sends(d, 0, 100);
			out += 100;
		}
		driver_step(d, 0);
		in_guest += taken(d, RX);
		taken(d, TX);
	}
	pthread_join(thread, NULL);
	driver_settle(d);
	ck_assert(!driver_needs_reset(d));
	ck_assert_uint_gt(in_peer, 0);
	ck_assert_uint_gt(out, 0);
	(void)in_guest;
	if (fd >= 0)
		close(fd);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("virtio-console");
	TCase *tc = tcase_create("virtio-console");
	SRunner *sr;
	int failed;

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_set_timeout(tc, 60);
	tcase_add_test(tc, what_it_is);
	tcase_add_test(tc, bad_paths);
	tcase_add_test(tc, socket_comes_and_goes);
	tcase_add_test(tc, dead_owner_is_replaced);
	tcase_add_test(tc, living_owner_stays);
	tcase_add_test(tc, other_file_stays);
	tcase_add_loop_test(tc, guest_to_peer, 0, ARRAY_SIZE(features));
	tcase_add_loop_test(tc, backlog_without_peer, 0, 8);
	tcase_add_loop_test(tc, slow_peer, 0, ARRAY_SIZE(features));
	tcase_add_test(tc, takes_turns);
	tcase_add_loop_test(tc, slow_peer_leaves, 0, 3);
	tcase_add_loop_test(tc, peer_to_guest, 0, ARRAY_SIZE(features));
	tcase_add_test(tc, input_in_pieces);
	tcase_add_test(tc, input_waits_for_buffers);
	tcase_add_test(tc, second_peer_is_refused);
	tcase_add_test(tc, last_words);
	tcase_add_test(tc, many_last_words);
	tcase_add_test(tc, half_closed);
	tcase_add_test(tc, mistakes);
	tcase_add_test(tc, reset_in_mid_buffer);
	tcase_add_test(tc, leaves_nothing_behind);
	tcase_add_test(tc, at_rest);
	tcase_add_test(tc, at_rest_with_backlog);
	tcase_add_test(tc, last_words_of_the_guest);
	tcase_add_loop_test(tc, moves, 0, ARRAY_SIZE(features));
	tcase_add_test(tc, comes_back);
	tcase_add_test(tc, hostile_state);
	tcase_add_test(tc, threads);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
