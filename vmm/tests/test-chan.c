/* SPDX-License-Identifier: MIT */
#include <check.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../chan.h"
#include "../util.h"

struct side {
	struct chan *chan;
	atomic_uint kicks;
	atomic_bool lock_was_free; /* at the last kick; kicks of two threads may meet */
};

static struct chan chan;
static struct side device, host;

/* A callback that finds the lock taken by its own thread would never get it. */
static void on_kick(void *arg)
{
	struct side *s = arg;
	bool free;

	s->kicks++;
	free = pthread_mutex_trylock(&s->chan->lock) == 0;
	if (free)
		pthread_mutex_unlock(&s->chan->lock);
	s->lock_was_free = free;
}

static void setup(void)
{
	ck_assert_int_eq(chan_init(&chan), 0);
	device = (struct side){.chan = &chan};
	host = (struct side){.chan = &chan};
	chan_set_device(&chan, on_kick, &device);
	chan_set_host(&chan, on_kick, &host);
}

static void teardown(void)
{
	chan_destroy(&chan);
}

/* A host that takes at most max bytes at once. */
struct sink {
	uint8_t data[2 * CHAN_OUT_SIZE];
	size_t len, max;
	int err;
};

static struct sink sink;

static ssize_t sink_write(void *arg, const void *buf, size_t len)
{
	struct sink *s = arg;
	size_t n = MIN(len, s->max);

	if (s->err)
		return s->err;
	ck_assert_uint_le(s->len + n, sizeof(s->data));
	memcpy(s->data + s->len, buf, n);
	s->len += n;
	return (ssize_t)n;
}

static void drain(void)
{
	while (chan_host_write(&chan, sink_write, &sink) > 0)
		;
}

static uint8_t pattern(size_t i)
{
	return (uint8_t)(i * 7 + i / 251);
}

START_TEST(test_order_over_wraps)
{
	uint8_t buf[4000];
	size_t sent = 0, checked = 0;

	/* A piece size that divides neither ring, over several turns of it. */
	while (sent < 5 * CHAN_OUT_SIZE) {
		size_t n;

		for (size_t i = 0; i < sizeof(buf); i++)
			buf[i] = pattern(sent + i);
		n = chan_send(&chan, buf, sizeof(buf));
		ck_assert_uint_eq(n, sizeof(buf));
		sent += n;
		sink.len = 0;
		sink.max = 1537;
		drain();
		for (size_t i = 0; i < sink.len; i++)
			ck_assert_uint_eq(sink.data[i], pattern(checked + i));
		checked += sink.len;
	}
	ck_assert_uint_eq(checked, sent);
}
END_TEST

START_TEST(test_full_and_empty)
{
	static uint8_t big[CHAN_OUT_SIZE + 1];
	uint8_t b;

	ck_assert_uint_eq(chan_recv(&chan, &b, 1), 0);
	ck_assert_uint_eq(chan_send_room(&chan), CHAN_OUT_SIZE);
	ck_assert_uint_eq(chan_send(&chan, big, sizeof(big)), CHAN_OUT_SIZE);
	ck_assert_uint_eq(chan_send(&chan, big, 1), 0);
	ck_assert_uint_eq(chan_send_room(&chan), 0);
	ck_assert_uint_eq(chan_host_pending(&chan), CHAN_OUT_SIZE);

	ck_assert_uint_eq(chan_host_put(&chan, big, sizeof(big)), CHAN_IN_SIZE);
	ck_assert_uint_eq(chan_host_room(&chan), 0);
	ck_assert_uint_eq(chan_recv_avail(&chan), CHAN_IN_SIZE);
}
END_TEST

START_TEST(test_kicks)
{
	static uint8_t buf[CHAN_IN_SIZE];

	chan_send(&chan, "a", 1);
	ck_assert_uint_eq(host.kicks, 1);
	chan_send(&chan, "b", 1);
	ck_assert_uint_eq(host.kicks, 1); /* it has been told, and goes on by itself */
	sink.max = 1;
	ck_assert_int_eq(chan_host_write(&chan, sink_write, &sink), 1);
	ck_assert_uint_eq(device.kicks, 1);
	sink.max = 0;
	ck_assert_int_eq(chan_host_write(&chan, sink_write, &sink), 0);
	ck_assert_uint_eq(device.kicks, 1);
	sink.max = 1;
	drain();
	chan_send(&chan, "c", 1);
	ck_assert_uint_eq(host.kicks, 2);

	device.kicks = host.kicks = 0;
	ck_assert_uint_eq(chan_host_put(&chan, buf, sizeof(buf)), sizeof(buf));
	ck_assert_uint_eq(device.kicks, 1);
	ck_assert_uint_eq(chan_host_put(&chan, buf, 1), 0);
	ck_assert_uint_eq(device.kicks, 1);
	/* A host that met a full ring is told in time, whatever the guest takes at once. */
	while (chan_recv(&chan, buf, 100) > 0)
		;
	ck_assert_uint_eq(host.kicks, 1);

	ck_assert(device.lock_was_free);
	ck_assert(host.lock_was_free);
}
END_TEST

START_TEST(test_write_error)
{
	chan_send(&chan, "abc", 3);
	sink.max = 100;
	sink.err = -EIO;
	ck_assert_int_eq(chan_host_write(&chan, sink_write, &sink), -EIO);
	ck_assert_uint_eq(device.kicks, 0);
	sink.err = 0;
	drain();
	ck_assert_uint_eq(sink.len, 3);
	ck_assert_mem_eq(sink.data, "abc", 3);
}
END_TEST

static ssize_t source_read(void *arg, void *buf, size_t len)
{
	size_t *calls = arg;

	(*calls)++;
	memset(buf, 'x', MIN(len, 10));
	return (ssize_t)MIN(len, 10);
}

START_TEST(test_host_read)
{
	static uint8_t buf[CHAN_IN_SIZE];
	size_t calls = 0;

	ck_assert_int_eq(chan_host_read(&chan, source_read, &calls), 10);
	ck_assert_uint_eq(device.kicks, 1);
	ck_assert_uint_eq(chan_recv(&chan, buf, sizeof(buf)), 10);
	ck_assert_mem_eq(buf, "xxxxxxxxxx", 10);

	/* No room and frozen: the source must not lose what could not be kept. */
	calls = 0;
	chan_host_put(&chan, buf, sizeof(buf));
	ck_assert_int_eq(chan_host_read(&chan, source_read, &calls), 0);
	chan_recv(&chan, buf, sizeof(buf));
	chan_freeze(&chan);
	ck_assert_int_eq(chan_host_read(&chan, source_read, &calls), 0);
	ck_assert_uint_eq(calls, 0);
}
END_TEST

START_TEST(test_freeze)
{
	chan_send(&chan, "out", 3);
	chan_host_put(&chan, "in", 2);
	chan_freeze(&chan);
	sink.max = 100;
	ck_assert_int_eq(chan_host_write(&chan, sink_write, &sink), 0);
	ck_assert_uint_eq(sink.len, 0);
	ck_assert_uint_eq(chan_host_put(&chan, "x", 1), 0);
	ck_assert_uint_eq(chan_host_pending(&chan), 0);
	ck_assert_uint_eq(chan_host_room(&chan), 0);

	host.kicks = 0;
	chan_thaw(&chan);
	ck_assert_uint_eq(host.kicks, 1);
	drain();
	ck_assert_mem_eq(sink.data, "out", 3);
	ck_assert_uint_eq(chan_recv_avail(&chan), 2);
}
END_TEST

/* A writer that is inside its callback when the freeze comes. */
struct slow {
	int entered[2], go_on[2];
	atomic_bool done;
};

static ssize_t slow_write(void *arg, const void *buf, size_t len)
{
	struct slow *s = arg;
	char b = 0;

	(void)buf;
	ck_assert_int_eq(write(s->entered[1], &b, 1), 1);
	ck_assert_int_eq(read(s->go_on[0], &b, 1), 1);
	s->done = true;
	return (ssize_t)len;
}

static void *slow_writer(void *arg)
{
	chan_host_write(&chan, slow_write, arg);
	return NULL;
}

static void *releaser(void *arg)
{
	struct slow *s = arg;
	struct pollfd never = {.fd = -1};

	/* Leaves chan_freeze() time to return too early, if it does. */
	poll(&never, 1, 50);
	ck_assert_int_eq(write(s->go_on[1], "", 1), 1);
	return NULL;
}

START_TEST(test_freeze_waits_for_write)
{
	struct slow s = {.done = false};
	pthread_t writer, release;
	char b;

	ck_assert_int_eq(pipe(s.entered), 0);
	ck_assert_int_eq(pipe(s.go_on), 0);
	chan_send(&chan, "abc", 3);
	pthread_create(&writer, NULL, slow_writer, &s);
	ck_assert_int_eq(read(s.entered[0], &b, 1), 1);
	pthread_create(&release, NULL, releaser, &s);
	chan_freeze(&chan);
	ck_assert(s.done);
	ck_assert_uint_eq(chan.out.len, 0);
	pthread_join(writer, NULL);
	pthread_join(release, NULL);
	for (unsigned i = 0; i < 2; i++) {
		close(s.entered[i]);
		close(s.go_on[i]);
	}
}
END_TEST

/* Leaves both rings with contents that wrap around their end. */
static void fill_wrapped(void)
{
	static uint8_t buf[CHAN_OUT_SIZE];

	for (size_t i = 0; i < sizeof(buf); i++)
		buf[i] = pattern(i);
	chan_send(&chan, buf, CHAN_OUT_SIZE - 10);
	sink.max = CHAN_OUT_SIZE;
	drain();
	chan_send(&chan, buf, 1000);
	chan_host_put(&chan, buf, CHAN_IN_SIZE - 10);
	chan_recv(&chan, buf, CHAN_IN_SIZE - 10);
	for (size_t i = 0; i < sizeof(buf); i++)
		buf[i] = pattern(i);
	chan_host_put(&chan, buf, 500);
}

START_TEST(test_fields)
{
	static uint8_t buf[CHAN_IN_SIZE];
	struct sbuf save, load;
	struct chan other;

	fill_wrapped();
	chan_freeze(&chan);
	sb_init_save(&save);
	chan_fields(&chan, &save);
	ck_assert_int_eq(save.err, 0);

	ck_assert_int_eq(chan_init(&other), 0);
	chan_host_put(&other, "stale", 5);
	sb_init_load(&load, save.data, save.len);
	chan_fields(&other, &load);
	sb_end(&load);
	ck_assert_int_eq(load.err, 0);
	/* The other side may still fail, and the source would then write these bytes. */
	ck_assert_uint_eq(chan_host_pending(&other), 0);
	chan_thaw(&other);
	ck_assert_uint_eq(chan_host_pending(&other), 1000);
	sink.len = 0;
	sink.max = CHAN_OUT_SIZE;
	while (chan_host_write(&other, sink_write, &sink) > 0)
		;
	ck_assert_uint_eq(sink.len, 1000);
	ck_assert_uint_eq(chan_recv(&other, buf, sizeof(buf)), 500);
	for (size_t i = 0; i < 1000; i++)
		ck_assert_uint_eq(sink.data[i], pattern(i));
	for (size_t i = 0; i < 500; i++)
		ck_assert_uint_eq(buf[i], pattern(i));
	chan_destroy(&other);

	/* Saving has left the source as it was, should it have to go on. */
	chan_thaw(&chan);
	ck_assert_uint_eq(chan_host_pending(&chan), 1000);
	ck_assert_uint_eq(chan_recv_avail(&chan), 500);
	sb_free(&save);
}
END_TEST

START_TEST(test_fields_hostile)
{
	const uint8_t too_long[] = {0x01, 0x00, 0x01, 0x00, 0};
	struct sbuf save, load;

	fill_wrapped();
	sb_init_save(&save);
	chan_fields(&chan, &save);
	for (size_t len = 0; len < save.len; len += len < 8 ? 1 : 97) {
		struct chan other;

		ck_assert_int_eq(chan_init(&other), 0);
		sb_init_load(&load, save.data, len);
		chan_fields(&other, &load);
		ck_assert_int_lt(load.err, 0);
		chan_destroy(&other);
	}
	sb_free(&save);

	sb_init_load(&load, too_long, sizeof(too_long));
	chan_fields(&chan, &load);
	ck_assert_int_eq(load.err, -ERANGE);
}
END_TEST

#define STRESS_BYTES 400000U

static void *stress_sender(void *arg)
{
	uint64_t deadline = now_ns() + 20 * NS_PER_SEC;

	(void)arg;
	for (size_t i = 0; i < STRESS_BYTES && now_ns() < deadline;) {
		uint8_t b[64];
		size_t n = MIN(sizeof(b), STRESS_BYTES - i);

		for (size_t k = 0; k < n; k++)
			b[k] = pattern(i + k);
		i += chan_send(&chan, b, n);
	}
	return NULL;
}

static ssize_t stress_write(void *arg, const void *buf, size_t len)
{
	size_t *seen = arg;
	const uint8_t *b = buf;

	len = MIN(len, 997U);
	for (size_t i = 0; i < len; i++)
		ck_assert_uint_eq(b[i], pattern(*seen + i));
	*seen += len;
	return (ssize_t)len;
}

START_TEST(test_threads)
{
	uint64_t deadline = now_ns() + 20 * NS_PER_SEC;
	pthread_t sender;
	size_t seen = 0;

	pthread_create(&sender, NULL, stress_sender, NULL);
	for (unsigned turn = 0; seen < STRESS_BYTES && now_ns() < deadline; turn++) {
		if (turn % 16 == 0)
			chan_freeze(&chan);
		if (turn % 16 == 3)
			chan_thaw(&chan);
		chan_host_write(&chan, stress_write, &seen);
	}
	pthread_join(sender, NULL);
	ck_assert_uint_eq(seen, STRESS_BYTES);
}
END_TEST

static Suite *chan_suite(void)
{
	Suite *s = suite_create("chan");
	TCase *t = tcase_create("chan");

	tcase_add_checked_fixture(t, setup, teardown);
	tcase_set_timeout(t, 60);
	tcase_add_test(t, test_order_over_wraps);
	tcase_add_test(t, test_full_and_empty);
	tcase_add_test(t, test_kicks);
	tcase_add_test(t, test_write_error);
	tcase_add_test(t, test_host_read);
	tcase_add_test(t, test_freeze);
	tcase_add_test(t, test_freeze_waits_for_write);
	tcase_add_test(t, test_fields);
	tcase_add_test(t, test_fields_hostile);
	tcase_add_test(t, test_threads);
	suite_add_tcase(s, t);
	return s;
}

int main(void)
{
	SRunner *runner = srunner_create(chan_suite());
	int failed;

	srunner_run_all(runner, CK_ENV);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
