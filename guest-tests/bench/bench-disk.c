/* SPDX-License-Identifier: MIT */
/*
 * What a disk of the guest can do: godwit's virtio-blk against QEMU's (io_uring; with an I/O thread
 * and without), the same payload on the same image.
 *
 * The image is a file below build/bench, full of what the payload expects to find; runs leave it as
 * it is. Through the page cache (writeback) all of it is in there before a run starts, and nothing
 * of it waits to be written; past it (none) nothing of it is in there. So the former tells what a
 * request costs, the latter also what the host's disk can do, which the limits show.
 */
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../bare/contract.h"
#include "../tests/harness.h"
#include "bench-device.h"
#include "bench-qemu.h"
#include "bench.h"

#define IMAGE "build/bench/disk.img"
#define IMAGE_SIZE (512ul << 20)
#define MIB (1ul << 20)

#define BOOT_MS 20000
#define END_MS 20000

struct load {
	const char *op, *order;
	const char *size;
	unsigned depth;
	bool direct;
};

/* ---- the image ---- */

static int fill(int fd)
{
	uint64_t *buf = malloc(MIB);
	int ret = buf ? 0 : -ENOMEM;

	for (uint64_t at = 0; at < IMAGE_SIZE && !ret; at += MIB) {
		uint64_t x = at + 1;

		/* Content that nothing on the way can make smaller. */
		for (size_t i = 0; i < MIB / sizeof(*buf); i++) {
			x = x * 6364136223846793005ul + 1442695040888963407ul;
			buf[i] = x ^ x >> 29;
		}
		for (uint64_t i = 0; i < MIB; i += BLKBENCH_UNIT)
			buf[i / sizeof(*buf)] = BLKBENCH_STAMP + (at + i) / BLKBENCH_UNIT;
		if (pwrite(fd, buf, MIB, (off_t)at) != (ssize_t)MIB)
			ret = errno ? -errno : -EIO;
	}
	free(buf);
	return !ret && fsync(fd) ? -errno : ret;
}

/* Made once, under another name until it is whole. */
static int make_image(void)
{
	struct stat st;
	int fd, ret;

	if (!stat(IMAGE, &st) && st.st_size == (off_t)IMAGE_SIZE)
		return 0;
	(void)mkdir("build", 0777);
	(void)mkdir("build/bench", 0777);
	fd = open(IMAGE ".new", O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0)
		return -errno;
	ret = fill(fd);
	close(fd);
	if (!ret && rename(IMAGE ".new", IMAGE))
		ret = -errno;
	if (ret)
		unlink(IMAGE ".new");
	return ret;
}

static int open_image(bool direct)
{
	return open(IMAGE, O_RDWR | O_CLOEXEC | (direct ? O_DIRECT : 0));
}

static bool prepare(const struct bench_case *c, char why[256])
{
	const struct load *l = c->arg;
	int ret = make_image(), fd;

	if (ret) {
		snprintf(why, 256, IMAGE ": %s", strerror(-ret));
		return false;
	}
	fd = open_image(l->direct);
	if (fd < 0) {
		snprintf(why, 256, IMAGE ": %s%s", strerror(errno),
			 l->direct ? "; its file system has no direct I/O" : "");
		return false;
	}
	close(fd);
	return true;
}

/* The page cache as the case wants it, whoever had the image before. */
static void set_cache(const struct load *l)
{
	int fd = open_image(false);
	char *buf;

	need(fd >= 0, IMAGE ": %s", strerror(errno));
	need(!fdatasync(fd), IMAGE ": %s", strerror(errno));
	if (l->direct) {
		need(!posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), "posix_fadvise");
	} else {
		buf = malloc(MIB);
		need(buf, "out of memory");
		for (uint64_t at = 0; at < IMAGE_SIZE; at += MIB)
			need(pread(fd, buf, MIB, (off_t)at) == (ssize_t)MIB, IMAGE " is short");
		free(buf);
	}
	close(fd);
}

/* ---- runs ---- */

static const char *cmdline(const struct bench_run *r, const struct load *l)
{
	return harness_path("op=%s order=%s size=%s depth=%u warm_ms=%u ms=%u", l->op, l->order,
			    l->size, l->depth, bench_quick(r) ? 100 : 300,
			    bench_quick(r) ? 300 : 1500);
}

static void measure(struct bench_run *r, struct proc *p, const struct load *l)
{
	double cpu, requests, seconds;
	const char *line;

	proc_fatal(p, BARE_BLKBENCH_ERROR "| panic | skip ");
	proc_expect(p, "^blkbench ready ", BOOT_MS);
	device_cpus_guest(p);
	proc_expect(p, "^" BARE_BLKBENCH_GO "$", BOOT_MS);
	cpu = device_cpu_s(p);
	line = proc_expect(p, "^blkbench result ", END_MS);
	cpu = device_cpu_s(p) - cpu;
	need(kv(line, "errors") == 0 && kv(line, "requests") > 0, "%s", line);
	requests = (double)kv(line, "requests");
	seconds = (double)kv(line, "ns") / 1e9;
	if (strcmp(l->size, "4K") == 0)
		bench_put(r, "rate", requests / seconds);
	else
		bench_put(r, "rate", (double)kv(line, "bytes") / (double)MIB / seconds);
	bench_put(r, "cpu", cpu / requests * 1e5);
	bench_put(r, "slowest", (double)kv(line, "slow_us") / 1e3);
	bench_note(r, "%.2f kicks a request, device %.0f %% of a CPU",
		   (double)kv(line, "kicks") / requests, cpu / seconds * 100);
	proc_expect(p, "^blkbench done errors=0$", END_MS);
	proc_wait(p, END_MS);
}

static void run_godwit(struct bench_run *r)
{
	const struct load *l = bench_arg(r);
	struct guest g;

	device_cpus_begin();
	set_cache(l);
	guest_start(&g, "vm", "-m", "256M", "-k", bare_elf("blkbench"), "--disk",
		    l->direct ? IMAGE ",cache=none" : IMAGE ",cache=writeback", "-p", cmdline(r, l),
		    NULL);
	measure(r, g.proc, l);
}

static void run_qemu(struct bench_run *r, bool iothread)
{
	const struct load *l = bench_arg(r);
	const char *const words[] = {
		"-global",
		"virtio-mmio.force-legacy=false",
		"-object",
		"iothread,id=io",
		"-blockdev",
		harness_path("driver=file,node-name=disk,filename=" IMAGE
			     ",aio=io_uring,cache.direct=%s",
			     l->direct ? "on" : "off"),
		"-device",
		harness_path("virtio-blk-device,drive=disk%s", iothread ? ",iothread=io" : ""),
		NULL,
	};
	struct qemu q;

	device_cpus_begin();
	set_cache(l);
	qemu_start(&q, &(struct qemu_config){.label = "qemu",
					     .ram_mib = 256,
					     .cpus = 1,
					     .kernel = bare_elf("blkbench"),
					     .append = cmdline(r, l),
					     .extra = words});
	measure(r, q.proc, l);
}

static void run_qemu_main(struct bench_run *r)
{
	run_qemu(r, false);
}

static void run_qemu_iothread(struct bench_run *r)
{
	run_qemu(r, true);
}

/* ---- cases ---- */

#define FIGURES(unit_)                                                                             \
	{                                                                                          \
		{.name = "rate",                                                                   \
		 .unit = unit_,                                                                    \
		 .more = true,                                                                     \
		 .aim = BENCH_RATIO_MIN,                                                           \
		 .limit = BENCH_DEVICE_EQUAL},                                                     \
			{.name = "cpu", .unit = "s/100k", .digits = 2},                            \
			{.name = "slowest", .unit = "ms", .digits = 1},                            \
		{                                                                                  \
			0                                                                          \
		}                                                                                  \
	}

static const struct bench_figure small_figures[] = FIGURES("IOPS");
static const struct bench_figure large_figures[] = FIGURES("MiB/s");

#define CASE(name_, what_, op_, order_, size_, depth_, direct_, figures_)                          \
	{                                                                                          \
		.name = "disk/" name_, .what = what_,                                              \
		.contenders = {{"godwit", run_godwit},                                             \
			       {"qemu", run_qemu_main},                                            \
			       {"qemu-iothread", run_qemu_iothread}},                              \
		.figures = figures_, .timeout_s = 60,                                              \
		.arg = &(const struct load){.op = op_,                                             \
					    .order = order_,                                       \
					    .size = size_,                                         \
					    .depth = depth_,                                       \
					    .direct = direct_},                                    \
		.prepare = prepare,                                                                \
	}
#define SMALL(cache, what_, direct)                                                                \
	CASE(cache "/randread-4k-qd1", "random reads of 4 KiB, one at a time, " what_, "read",     \
	     "random", "4K", 1, direct, small_figures),                                            \
		CASE(cache "/randread-4k-qd32", "random reads of 4 KiB, 32 at a time, " what_,     \
		     "read", "random", "4K", 32, direct, small_figures),                           \
		CASE(cache "/randwrite-4k-qd1", "random writes of 4 KiB, one at a time, " what_,   \
		     "write", "random", "4K", 1, direct, small_figures),                           \
		CASE(cache "/randwrite-4k-qd32", "random writes of 4 KiB, 32 at a time, " what_,   \
		     "write", "random", "4K", 32, direct, small_figures)
#define LARGE(cache, what_, direct)                                                                \
	CASE(cache "/read-1m-qd1", "reads of 1 MiB in a row, one at a time, " what_, "read",       \
	     "sequential", "1M", 1, direct, large_figures),                                        \
		CASE(cache "/read-1m-qd32", "reads of 1 MiB in a row, 32 at a time, " what_,       \
		     "read", "sequential", "1M", 32, direct, large_figures),                       \
		CASE(cache "/write-1m-qd1", "writes of 1 MiB in a row, one at a time, " what_,     \
		     "write", "sequential", "1M", 1, direct, large_figures),                       \
		CASE(cache "/write-1m-qd32", "writes of 1 MiB in a row, 32 at a time, " what_,     \
		     "write", "sequential", "1M", 32, direct, large_figures)

static const struct bench_case cases[] = {
	SMALL("writeback", "through the page cache", false),
	LARGE("writeback", "through the page cache", false),
	SMALL("none", "past the page cache", true),
	LARGE("none", "past the page cache", true),
	{0},
};

/* ---- limits: the same reads by this program, without a guest ---- */

struct reader {
	struct io_uring ring;
	int fd;
	char *buf;
	uint64_t size, places;
	bool random;
	uint64_t next, under_way;
};

static void start_read(struct reader *r, uint64_t slot)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&r->ring);
	uint64_t n = r->next;

	r->next = r->random ? n * 6364136223846793005ul + 1442695040888963407ul : n + 1;
	n = (r->random ? n >> 24 : n) % r->places;
	io_uring_prep_read(sqe, r->fd, r->buf + slot * r->size, (unsigned)r->size, n * r->size);
	io_uring_sqe_set_data64(sqe, slot);
	r->under_way++;
}

/* Reads until so long after now, and to the end what is under way then. Negative: one failed. */
static double read_for(struct reader *r, double seconds)
{
	double start = bench_now(), end = 0;
	uint64_t done = 0;
	bool failed = false;

	while (r->under_way) {
		struct io_uring_cqe *cqe;

		if (io_uring_submit_and_wait(&r->ring, 1) < 0)
			return -1;
		while (io_uring_peek_cqe(&r->ring, &cqe) == 0) {
			uint64_t slot = cqe->user_data;

			failed |= cqe->res != (int32_t)r->size;
			io_uring_cqe_seen(&r->ring, cqe);
			r->under_way--;
			done++;
			end = bench_now();
			if (!failed && end - start < seconds)
				start_read(r, slot);
		}
	}
	return failed ? -1 : (double)done / (end - start);
}

/* Requests a second of reads past the page cache, or negative. */
static double host_reads(uint64_t size, unsigned depth, bool random, double seconds)
{
	struct reader r = {
		.fd = make_image() ? -1 : open_image(true),
		.size = size,
		.places = IMAGE_SIZE / size,
		.random = random,
	};
	double rate = -1;

	if (r.fd < 0)
		return -1;
	if (posix_memalign((void **)&r.buf, 4096, size * depth) == 0) {
		if (io_uring_queue_init(depth, &r.ring, 0) == 0) {
			for (unsigned i = 0; i < depth; i++)
				start_read(&r, i);
			rate = read_for(&r, seconds);
			io_uring_queue_exit(&r.ring);
		}
		free(r.buf);
	}
	close(r.fd);
	return rate;
}

static double limit_4k_qd1(bool quick)
{
	return host_reads(4096, 1, true, quick ? 0.2 : 1);
}

static double limit_4k_qd32(bool quick)
{
	return host_reads(4096, 32, true, quick ? 0.2 : 1);
}

static double limit_1m_qd32(bool quick)
{
	return host_reads(MIB, 32, false, quick ? 0.2 : 1);
}

static const struct bench_limit limits[] = {
	{"the host's disk, random reads of 4 KiB, one at a time", "IOPS", limit_4k_qd1},
	{"the host's disk, random reads of 4 KiB, 32 at a time", "IOPS", limit_4k_qd32},
	{"the host's disk, reads of 1 MiB, 32 at a time", "MiB/s", limit_1m_qd32},
	{0},
};

int main(int argc, char **argv)
{
	return bench_main(argc, argv,
			  &(struct bench){.name = "disk", .cases = cases, .limits = limits});
}
