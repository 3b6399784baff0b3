/* SPDX-License-Identifier: MIT */
#include "../util.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "check-main.h"

#define UNTOUCHED 0x5a5a5a5a5a5a5a5aULL

START_TEST(sizes)
{
	static const struct {
		const char *text;
		uint64_t bytes;
	} good[] = {
		{"0", 0},
		{"1", 1},
		{"1048576", MIB},
		{"64k", 64 * KIB},
		{"64K", 64 * KIB},
		{"512M", 512 * MIB},
		{"4G", 4 * GIB},
		{"2t", 2048 * GIB},
		{"3P", 3ULL << 50},
		{"16383P", 16383ULL << 50},
		{"18446744073709551615", UINT64_MAX},
		{"007", 7},
	};
	static const char *const bad[] = {"",	 "M",	 "-1",	 "+1",	" 1",  "1 ",  "1MB",
					  "1MM", "1.5G", "0x10", "1e3", "1K1", "abc", "1\n"};
	static const char *const large[] = {"18446744073709551616", "16384P",
					    "99999999999999999999999", "18014398509481984K"};
	uint64_t v;

	for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
		v = UNTOUCHED;
		ck_assert_int_eq(parse_size(good[i].text, &v), 0);
		ck_assert_uint_eq(v, good[i].bytes);
	}
	v = UNTOUCHED;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		ck_assert_msg(parse_size(bad[i], &v) == -EINVAL, "'%s'", bad[i]);
	for (size_t i = 0; i < ARRAY_SIZE(large); i++)
		ck_assert_msg(parse_size(large[i], &v) == -ERANGE, "'%s'", large[i]);
	ck_assert_uint_eq(v, UNTOUCHED);
}
END_TEST

START_TEST(durations)
{
	static const struct {
		const char *text;
		uint64_t ns;
	} good[] = {
		{"50ms", 50 * NS_PER_MS},
		{"2s", 2 * NS_PER_SEC},
		{"1h", 3600 * NS_PER_SEC},
		{"300us", 300000},
		{"5m", 300 * NS_PER_SEC},
		{"7", 7 * NS_PER_SEC},
		{"9ns", 9},
		{"0", 0},
	};
	static const char *const bad[] = {"",	  "ms",	 "-1s", "1.5s", "1d",  "1 s",
					  "1sec", "1MS", "s1",	"1s ",	"1mss"};
	uint64_t v;

	for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
		v = UNTOUCHED;
		ck_assert_int_eq(parse_duration(good[i].text, &v), 0);
		ck_assert_uint_eq(v, good[i].ns);
	}
	v = UNTOUCHED;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		ck_assert_msg(parse_duration(bad[i], &v) == -EINVAL, "'%s'", bad[i]);
	ck_assert_uint_eq(v, UNTOUCHED);
	ck_assert_int_eq(parse_duration("18446744073709551615s", &v), -ERANGE);
	ck_assert_int_eq(parse_duration("5124096h", &v), -ERANGE);
}
END_TEST

START_TEST(numbers)
{
	uint64_t v = UNTOUCHED;

	ck_assert_int_eq(parse_u64("0", 0, 10, &v), 0);
	ck_assert_uint_eq(v, 0);
	ck_assert_int_eq(parse_u64("10", 1, 10, &v), 0);
	ck_assert_uint_eq(v, 10);
	ck_assert_int_eq(parse_u64("18446744073709551615", 0, UINT64_MAX, &v), 0);
	ck_assert_uint_eq(v, UINT64_MAX);
	v = UNTOUCHED;
	ck_assert_int_eq(parse_u64("11", 1, 10, &v), -ERANGE);
	ck_assert_int_eq(parse_u64("0", 1, 10, &v), -ERANGE);
	ck_assert_int_eq(parse_u64("18446744073709551616", 0, UINT64_MAX, &v), -ERANGE);
	ck_assert_int_eq(parse_u64("", 0, 10, &v), -EINVAL);
	ck_assert_int_eq(parse_u64("5K", 0, 10, &v), -EINVAL);
	ck_assert_int_eq(parse_u64("-1", 0, 10, &v), -EINVAL);
	ck_assert_uint_eq(v, UNTOUCHED);
}
END_TEST

START_TEST(sizes_as_text)
{
	char buf[32], small[4];

	ck_assert_str_eq(format_size(buf, sizeof(buf), 0), "0 bytes");
	ck_assert_str_eq(format_size(buf, sizeof(buf), 1023), "1023 bytes");
	ck_assert_str_eq(format_size(buf, sizeof(buf), 64 * MIB), "64 MiB");
	ck_assert_str_eq(format_size(buf, sizeof(buf), 1536), "1.5 KiB");
	ck_assert_str_eq(format_size(buf, sizeof(buf), GIB + GIB / 2), "1.5 GiB");
	ck_assert_str_eq(format_size(buf, sizeof(buf), UINT64_MAX), "16 EiB");
	ck_assert_str_eq(format_size(small, sizeof(small), 64 * MIB), "64 ");
}
END_TEST

START_TEST(overflow_is_told)
{
	uint64_t v;

	ck_assert(add_u64(UINT64_MAX - 1, 1, &v) && v == UINT64_MAX);
	ck_assert(!add_u64(UINT64_MAX, 1, &v));
	ck_assert(mul_u64(1ULL << 32, (1ULL << 32) - 1, &v));
	ck_assert(!mul_u64(1ULL << 32, 1ULL << 32, &v));
	ck_assert_uint_eq(ALIGN_UP(4097U, 4096), 8192);
	ck_assert_uint_eq(ALIGN_UP((5ULL << 32) + 1, 4096U), (5ULL << 32) + 4096);
	ck_assert_uint_eq(ALIGN_DOWN((5ULL << 32) + 4097, 4096), (5ULL << 32) + 4096);
	ck_assert_uint_eq(ALIGN_UP(0ULL, 4096), 0);
}
END_TEST

/* ---- exact reads and writes ---- */

static void on_signal(int sig)
{
	(void)sig;
}

struct dribble {
	int fd;
	pthread_t reader;
	const char *text;
};

/* A byte at a time, with a signal for the reader before each. */
static void *dribble(void *arg)
{
	struct dribble *d = arg;

	for (const char *p = d->text; *p; p++) {
		pthread_kill(d->reader, SIGUSR1);
		if (write(d->fd, p, 1) != 1)
			break;
	}
	close(d->fd);
	return NULL;
}

START_TEST(reads_are_exact)
{
	struct sigaction sa = {.sa_handler = on_signal};
	struct dribble d = {.text = "exactly these bytes"};
	char buf[64] = "";
	pthread_t t;
	int fds[2];

	/* No SA_RESTART: reads are interrupted. */
	sigaction(SIGUSR1, &sa, NULL);
	ck_assert_int_eq(pipe(fds), 0);
	d.fd = fds[1];
	d.reader = pthread_self();
	ck_assert_int_eq(pthread_create(&t, NULL, dribble, &d), 0);
	ck_assert_int_eq(read_exact(fds[0], buf, strlen(d.text)), 0);
	ck_assert_str_eq(buf, d.text);
	pthread_join(t, NULL);
	ck_assert_int_eq(read_exact(fds[0], buf, 1), -ENODATA);
	ck_assert_int_eq(read_exact(fds[0], buf, 0), 0);
	close(fds[0]);
	ck_assert_int_eq(read_exact(fds[0], buf, 1), -EBADF);
}
END_TEST

struct drain {
	int fd;
	size_t got;
};

static void *drain(void *arg)
{
	struct drain *d = arg;
	char buf[1000];
	ssize_t n;

	while ((n = read(d->fd, buf, sizeof(buf))) > 0)
		d->got += (size_t)n;
	return NULL;
}

START_TEST(writes_are_exact)
{
	static char big[1 << 20];
	struct drain d = {.got = 0};
	pthread_t t;
	int fds[2];

	signal(SIGPIPE, SIG_IGN);
	ck_assert_int_eq(pipe(fds), 0);
	d.fd = fds[0];
	ck_assert_int_eq(pthread_create(&t, NULL, drain, &d), 0);
	ck_assert_int_eq(write_exact(fds[1], big, sizeof(big)), 0);
	close(fds[1]);
	pthread_join(t, NULL);
	ck_assert_uint_eq(d.got, sizeof(big));
	close(fds[0]);
	ck_assert_int_eq(pipe(fds), 0);
	close(fds[0]);
	ck_assert_int_eq(write_exact(fds[1], big, 1), -EPIPE);
	close(fds[1]);
}
END_TEST

START_TEST(reads_at_an_offset)
{
	char path[] = "/tmp/godwit-util-XXXXXX", buf[8] = "";
	int fd = mkstemp(path);

	ck_assert_int_ge(fd, 0);
	unlink(path);
	ck_assert_int_eq(write_exact(fd, "0123456789", 10), 0);
	ck_assert_int_eq(pread_exact(fd, buf, 4, 6), 0);
	ck_assert_str_eq(buf, "6789");
	ck_assert_int_eq(pread_exact(fd, buf, 5, 6), -ENODATA);
	ck_assert_int_eq(pread_exact(fd, buf, 1, 10), -ENODATA);
	ck_assert_int_eq(pread_exact(fd, buf, 1, 1ULL << 63), -EINVAL);
	/* The file's own position is nobody's business. */
	ck_assert_int_eq((int)lseek(fd, 0, SEEK_CUR), 10);
	close(fd);
}
END_TEST

START_TEST(scopes_clean_up)
{
	int copy;

	{
		AUTO_CLOSE int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
		AUTO_CLOSE int none = -1;
		AUTO_FREE char *text = strdup("freed");

		ck_assert_int_ge(fd, 0);
		ck_assert_int_eq(none, -1);
		ck_assert_str_eq(text, "freed");
		copy = fd;
	}
	ck_assert_int_eq(fcntl(copy, F_GETFD), -1);
	ck_assert_int_eq(errno, EBADF);
}
END_TEST

int main(void)
{
	const TTest *const tests[] = {
		sizes,
		durations,
		numbers,
		sizes_as_text,
		overflow_is_told,
		reads_are_exact,
		writes_are_exact,
		reads_at_an_offset,
		scopes_clean_up,
	};

	return check_main("util", tests, ARRAY_SIZE(tests));
}
