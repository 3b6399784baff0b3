/* SPDX-License-Identifier: MIT */
/*
 * Limits of the machine: what no migration can beat. One thread each; memory beyond all caches, and
 * touched before.
 */
#include "bench-private.h"

#include <netinet/in.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../../migrate/hashes.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#define MEMORY ((size_t)256 << 20)
#define PAGE ((size_t)4096)
#define CHUNK ((size_t)1 << 20) /* written to a socket at once */
#define TURNS 5
#define GIB_BYTES ((double)(1 << 30))

static char *new_memory(size_t len)
{
	char *p = mmap(NULL, len, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	if (p == MAP_FAILED)
		return NULL;
	for (size_t i = 0; i < len; i += 8)
		memcpy(p + i, &i, sizeof(i));
	return p;
}

static double measure_memcpy(bool quick)
{
	char *a = new_memory(MEMORY), *b = new_memory(MEMORY);
	double start, s = -1;

	(void)quick;
	if (a && b) {
		start = bench_now();
		memcpy(b, a, MEMORY);
		s = bench_now() - start;
	}
	if (a)
		munmap(a, MEMORY);
	if (b)
		munmap(b, MEMORY);
	return s > 0 ? (double)MEMORY / GIB_BYTES / s : -1;
}

static double measure_xxh3(bool quick)
{
	char *a = new_memory(MEMORY);
	volatile uint64_t sink;
	double start, s;
	uint64_t sum = 0;

	(void)quick;
	if (!a)
		return -1;
	start = bench_now();
	for (size_t i = 0; i < MEMORY; i += PAGE)
		sum += XXH3_128bits_withSeed(a + i, PAGE, 1).low64;
	s = bench_now() - start;
	sink = sum;
	(void)sink;
	munmap(a, MEMORY);
	return (double)MEMORY / GIB_BYTES / s;
}

/* What the first store to memory costs that nobody had before: 4 KiB pages, shared as guests' is.
 */
static double measure_touch(bool quick)
{
	double start, s;
	char *p = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	(void)quick;
	if (p == MAP_FAILED)
		return -1;
	start = bench_now();
	for (size_t i = 0; i < MEMORY; i += PAGE)
		p[i] = 1;
	s = bench_now() - start;
	munmap(p, MEMORY);
	return (double)MEMORY / GIB_BYTES / s;
}

/* The other end: reads all there is. */
_Noreturn static void read_all(int listen_fd)
{
	char *buf = new_memory(CHUNK);
	int fd = accept(listen_fd, NULL, NULL);

	while (buf && fd >= 0 && read(fd, buf, CHUNK) > 0)
		;
	/* So that the writer knows that all has been read. */
	_exit(0);
}

static double stream_to(const struct sockaddr_in *addr, size_t total)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	char *buf = new_memory(CHUNK);
	double start, s = -1;
	size_t sent = 0;
	char end;

	if (fd < 0 || !buf || connect(fd, (const struct sockaddr *)addr, sizeof(*addr)))
		goto out;
	start = bench_now();
	while (sent < total) {
		ssize_t n = write(fd, buf, CHUNK);

		if (n <= 0)
			goto out;
		sent += (size_t)n;
	}
	shutdown(fd, SHUT_WR);
	if (read(fd, &end, 1) == 0)
		s = bench_now() - start;
out:
	if (fd >= 0)
		close(fd);
	if (buf)
		munmap(buf, CHUNK);
	return s > 0 ? (double)sent / GIB_BYTES / s : -1;
}

static double measure_tcp(bool quick)
{
	struct sockaddr_in addr = {.sin_family = AF_INET,
				   .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	socklen_t len = sizeof(addr);
	double rate = -1;
	pid_t child;

	if (fd < 0 || bind(fd, (const struct sockaddr *)&addr, sizeof(addr)) || listen(fd, 1) ||
	    getsockname(fd, (struct sockaddr *)&addr, &len))
		goto out;
	fflush(NULL);
	child = fork();
	if (child < 0)
		goto out;
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		read_all(fd);
	}
	rate = stream_to(&addr, (quick ? 1 : 4) * MEMORY);
	if (rate < 0)
		kill(child, SIGKILL);
	waitpid(child, NULL, 0);
out:
	if (fd >= 0)
		close(fd);
	return rate;
}

/* What --verify=stream costs at the pause: 4 GiB, of which 1,000 pages were in the last round. */
static double measure_proof(bool quick)
{
	const uint64_t pages = (4ULL << 30) / PAGE;
	struct page_hash root, *proof = NULL;
	struct hashes h;
	double start, s = -1;
	size_t n;

	(void)quick;
	if (hashes_init(&h, pages, 1))
		return -1;
	hashes_refresh(&h);
	for (uint64_t i = 0; i < 1000; i++)
		hashes_set(&h, i * (pages / 1000), (struct page_hash){.low = i});
	start = bench_now();
	proof = hashes_proof(&h, "state", 5, &n, &root);
	if (proof)
		s = bench_now() - start;
	free(proof);
	hashes_free(&h);
	return s > 0 ? s * 1e3 : -1;
}

static const struct bench_limit standard[] = {
	{"memcpy", "GiB/s", measure_memcpy},
	{"XXH3-128 of 4 KiB pages", "GiB/s", measure_xxh3},
	{"first touch of shared memory", "GiB/s", measure_touch},
	{"TCP on loopback, one stream", "GiB/s", measure_tcp},
	{"proof of 4 GiB, 1,000 new pages", "ms", measure_proof},
	{NULL, NULL, NULL},
};

static void measure_list(struct bench_report *rep, const struct bench_limit *l)
{
	for (; l && l->name && rep->n_limits < BENCH_LIMITS; l++) {
		double values[TURNS];
		struct bench_limit_value *v = &rep->limits[rep->n_limits];
		unsigned n = 0;

		for (unsigned i = 0; i < TURNS; i++) {
			values[n] = l->measure(rep->quick);
			if (values[n] >= 0)
				n++;
		}
		*v = (struct bench_limit_value){l->name, l->unit, bench_spread(values, n)};
		rep->n_limits++;
	}
}

void bench_limits(struct bench_report *rep, const struct bench *b)
{
	measure_list(rep, standard);
	measure_list(rep, b->limits);
}
