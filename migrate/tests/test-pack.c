/* SPDX-License-Identifier: MIT */
/*
 * When batches are compressed: at the other end of the connection is a network of a chosen speed,
 * which takes no more than that.
 */
#include "../pack.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "../../vmm/tests/check-main.h"

static struct conn c;
static struct pack p;
static struct errmsg err;
static int network;
static pthread_t network_thread;
static uint64_t network_rate; /* bytes a second; 0: as fast as it can */
static uint64_t content, packed;

/* Takes as much as the rate allows since the beginning. */
static void *take(void *arg)
{
	static uint8_t sink[32768];
	uint64_t start = now_ns(), taken = 0;
	ssize_t n;

	(void)arg;
	while ((n = read(network, sink, sizeof(sink))) > 0) {
		taken += (uint64_t)n;
		while (network_rate && (now_ns() - start) < taken * NS_PER_SEC / network_rate) {
			struct timespec ts = {.tv_nsec = 20000};

			nanosleep(&ts, NULL);
		}
	}
	return NULL;
}

static void begin(enum migrate_compress mode, int level, uint64_t rate)
{
	int fds[2], size = 65536;

	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	setsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
	ck_assert_int_eq(conn_init(&c, fds[0], -1, "peer", &err), 0);
	/* It stands for a network. */
	ck_assert(c.local);
	c.local = false;
	network = fds[1];
	network_rate = rate;
	ck_assert_int_eq(pthread_create(&network_thread, NULL, take, NULL), 0);
	pack_init(&p, mode, level);
	pack_begin_round(&p);
	content = packed = 0;
}

static void end(void)
{
	ck_assert_msg(conn_flush(&c, &err) == 0, "%s", err.text);
	conn_close(&c);
	pthread_join(network_thread, NULL);
	close(network);
	pack_free(&p);
}

enum content { TEXT, RANDOM };

/* Three words of four are one of a few. */
static void fill(uint64_t *word, size_t n, enum content kind, uint64_t *seed)
{
	for (size_t i = 0; i < n; i++) {
		*seed ^= *seed << 13;
		*seed ^= *seed >> 7;
		*seed ^= *seed << 17;
		word[i] = kind == TEXT && i % 4 ? *seed % 16 : *seed;
	}
}

static void send_batches(unsigned n, enum content kind)
{
	uint64_t seed = 4711;

	for (unsigned i = 0; i < n; i++) {
		struct conn_batch *b;
		int ret;

		b = conn_batch(&c, &ret, &err);
		ck_assert_msg(b != NULL, "%s", err.text);
		b->head = (struct wire_batch){.n_descs = 64, .n_data = 64};
		fill((uint64_t *)(void *)b->data, CONN_BATCH_BYTES / 8, kind, &seed);
		ck_assert_int_eq(pack_batch(&p, &c, b, &err), 0);
		content += CONN_BATCH_BYTES;
		packed += b->head.packed ? CONN_BATCH_BYTES : 0;
		ck_assert_int_eq(conn_send_batch(&c, b, &err), 0);
	}
}

START_TEST(slow_network)
{
	begin(MIGRATE_COMPRESS_AUTO, 0, 30 * MIB);
	send_batches(150, TEXT);
	ck_assert_msg(packed * 10 >= content * 6, "only %llu %% was compressed",
		      (unsigned long long)(packed * 100 / content));
	ck_assert_uint_lt(c.sent, content * 8 / 10);
	end();
}
END_TEST

/* What does not become smaller is soon left alone, and not tried for ever. */
START_TEST(slow_network_random_content)
{
	begin(MIGRATE_COMPRESS_AUTO, 0, 60 * MIB);
	send_batches(200, RANDOM);
	ck_assert_uint_eq(packed, 0);
	/* It has been put off again and again. */
	ck_assert_uint_ge(p.rest, 32);
	ck_assert(!p.on);
	/* It gets better: that is noticed. */
	send_batches(600, TEXT);
	ck_assert_uint_gt(packed, 0);
	end();
}
END_TEST

/* A network that is faster than zstd. */
START_TEST(fast_network)
{
	/* It is a thread of this host, and slow while that is busy with something else. */
	for (unsigned tries = 0; tries < 5; tries++) {
		begin(MIGRATE_COMPRESS_AUTO, 0, 0);
		send_batches(200, TEXT);
		end();
		if (packed * 10 <= content)
			return;
	}
	ck_abort_msg("%llu %% was compressed", (unsigned long long)(packed * 100 / content));
}
END_TEST

static atomic_bool busy;

static void *burn(void *arg)
{
	while (busy)
		;
	return arg;
}

/*
 * The other side is on this host, and slow because there is no CPU for it: to take more CPU time
 * would make it slower.
 */
START_TEST(busy_host)
{
	pthread_t thread[64];
	long cpus = sysconf(_SC_NPROCESSORS_ONLN), n = cpus < 64 ? cpus : 64;

	begin(MIGRATE_COMPRESS_AUTO, 0, 30 * MIB);
	c.local = true;
	busy = true;
	for (long i = 0; i < n; i++)
		ck_assert_int_eq(pthread_create(&thread[i], NULL, burn, NULL), 0);
	send_batches(150, TEXT);
	ck_assert_msg(packed * 10 <= content, "%llu %% was compressed",
		      (unsigned long long)(packed * 100 / content));
	busy = false;
	for (long i = 0; i < n; i++)
		pthread_join(thread[i], NULL);
	end();
}
END_TEST

START_TEST(always)
{
	begin(MIGRATE_COMPRESS_ZSTD, 3, 0);
	send_batches(20, TEXT);
	ck_assert_uint_eq(packed, content);
	send_batches(20, RANDOM);
	ck_assert_uint_eq(packed * 2, content);
	end();
}
END_TEST

START_TEST(never)
{
	begin(MIGRATE_COMPRESS_OFF, 0, 30 * MIB);
	send_batches(60, TEXT);
	ck_assert_uint_eq(packed, 0);
	end();
}
END_TEST

/* ---- the other side ---- */

START_TEST(comes_back)
{
	struct conn_batch b = {.head = {.n_descs = 64, .n_data = 64}};
	static uint64_t data[CONN_BATCH_BYTES / 8];
	struct unpack u = {0};
	uint64_t seed = 1;

	begin(MIGRATE_COMPRESS_ZSTD, 1, 0);
	b.data = (uint8_t *)data;
	fill(data, ARRAY_SIZE(data), TEXT, &seed);
	ck_assert_int_eq(pack_batch(&p, &c, &b, &err), 0);
	ck_assert_uint_gt(b.head.packed, 0);
	ck_assert_int_eq(unpack_prepare(&u), 0);
	memcpy(u.packed, b.packed, b.head.packed);
	ck_assert_int_eq(unpack(&u, b.head.packed, 64 * PAGE_SIZE), 0);
	ck_assert_mem_eq(u.contents, data, sizeof(data));

	/* Not as long as it says, cut, followed by something, or not zstd at all. */
	ck_assert_int_eq(unpack(&u, b.head.packed, 63 * PAGE_SIZE), -EBADMSG);
	ck_assert_int_eq(unpack(&u, b.head.packed - 1, 64 * PAGE_SIZE), -EBADMSG);
	ck_assert_int_eq(unpack(&u, b.head.packed + 1, 64 * PAGE_SIZE), -EBADMSG);
	memset(u.packed, 0x55, 4096);
	ck_assert_int_eq(unpack(&u, 4096, 64 * PAGE_SIZE), -EBADMSG);
	unpack_free(&u);
	free(b.packed);
	end();
}
END_TEST

START_TEST(words)
{
	static const char *const bad[] = {"",	     "on",     "zstd:",	  "zstd:0",
					  "zstd:20", "zstd:x", "zstd:-1", "zstd:0000000000001",
					  "ZSTD",    "auto ",  "zstd 3",  "lz4"};
	enum migrate_compress mode;
	int level;

	ck_assert_int_eq(migrate_parse_compress("auto", &mode, &level), 0);
	ck_assert_int_eq(mode, MIGRATE_COMPRESS_AUTO);
	ck_assert_int_eq(migrate_parse_compress("off", &mode, &level), 0);
	ck_assert_int_eq(mode, MIGRATE_COMPRESS_OFF);
	ck_assert_int_eq(migrate_parse_compress("zstd", &mode, &level), 0);
	ck_assert(mode == MIGRATE_COMPRESS_ZSTD && level == MIGRATE_LEVEL_DEFAULT);
	ck_assert_int_eq(migrate_parse_compress("zstd:19", &mode, &level), 0);
	ck_assert(mode == MIGRATE_COMPRESS_ZSTD && level == 19);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		ck_assert_msg(migrate_parse_compress(bad[i], &mode, &level) == -EINVAL, "'%s'",
			      bad[i]);
}
END_TEST

int main(void)
{
	const TTest *const tests[] = {slow_network, slow_network_random_content,
				      fast_network, busy_host,
				      always,	    never,
				      comes_back,   words};

	return check_main("pack", tests, ARRAY_SIZE(tests));
}
