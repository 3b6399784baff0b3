/* SPDX-License-Identifier: MIT */
/*
 * Operations on images of several kinds. Units of direct I/O that no disk here has are set in the
 * image by hand: what is then done to the file must be right on any file.
 */
#include "../disk_io.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include "../util.h"
#include "check-main.h"
#include "disk-fixture.h"

#define SIZE (8 * MIB)

static struct vm_disk desc;
static struct disk_image img;
static struct disk_io disk;
static struct loop loop;
static struct errmsg err;
static uint8_t model[SIZE + 1]; /* what must be in the image */

struct job {
	struct disk_op op;
	struct iovec iov[DISK_IOV_MAX];
	int err;
	unsigned ended;
};

static void open_image(const struct vm_disk *d)
{
	ck_assert_msg(disk_image_open(&img, d, &err) == 0, "%s", err.text);
	ck_assert_msg(disk_image_acquire(&img, &err) == 0, "%s", err.text);
	disk_io_init(&disk, &loop, &img);
}

static void setup(void)
{
	ck_assert_int_eq(loop_init(&loop), 0);
	disk_folder_make();
	desc = disk_new("disk", SIZE);
	disk_pattern(model, SIZE, 1);
	disk_poke(&desc, 0, model, SIZE);
	img.fd = -1;
}

static void teardown(void)
{
	disk_image_close(&img);
	loop_destroy(&loop);
	disk_folder_remove();
}

static void on_ended(struct disk_op *op, int e)
{
	struct job *j = container_of(op, struct job, op);

	j->err = e;
	j->ended++;
}

/* Reads that were bounced come in order, without gaps. */
static void on_store(struct disk_op *op, uint64_t at, const void *buf, size_t len)
{
	const struct job *j = container_of(op, struct job, op);
	const uint8_t *from = buf;

	ck_assert_uint_eq(at, op->done);
	for (uint32_t i = 0; i < op->n_iov && len; i++) {
		size_t take;

		if (at >= j->iov[i].iov_len) {
			at -= j->iov[i].iov_len;
			continue;
		}
		take = MIN(len, j->iov[i].iov_len - at);
		memcpy((uint8_t *)j->iov[i].iov_base + at, from, take);
		from += take;
		len -= take;
		at = 0;
	}
}

static int start(struct job *j, enum disk_verb verb, uint64_t offset, uint64_t len)
{
	j->op.verb = verb;
	j->op.offset = offset;
	j->op.len = len;
	j->op.iov = j->iov;
	j->op.ended = on_ended;
	j->op.store = on_store;
	j->ended = 0;
	return disk_io_start(&disk, &j->op);
}

static void wait_for(struct job *j)
{
	uint64_t deadline = now_ns() + 20 * NS_PER_SEC;

	while (!j->ended) {
		ck_assert_msg(now_ns() < deadline, "the operation does not end");
		ck_assert_int_eq(loop_step(&loop, NS_PER_SEC), 0);
	}
	ck_assert_uint_eq(j->ended, 1);
	ck_assert_ptr_null(j->op.bounce);
}

static int run(struct job *j, enum disk_verb verb, uint64_t offset, uint64_t len)
{
	ck_assert_int_eq(start(j, verb, offset, len), 0);
	ck_assert_uint_eq(j->ended, 0);
	wait_for(j);
	return j->err;
}

/* len bytes at buf as a vector of n parts of odd sizes, after `skip` bytes of something else. */
static void spread(struct job *j, void *buf, uint64_t len, uint32_t n, uint64_t skip)
{
	uint8_t *at = buf;

	j->op.iov_at = skip;
	j->op.n_iov = n;
	for (uint32_t i = 0; i < n; i++) {
		uint64_t take = i == n - 1 ? len : MIN(len, 3 + len / n + i);

		j->iov[i] = (struct iovec){.iov_base = at - (i ? 0 : skip),
					   .iov_len = take + (i ? 0 : skip)};
		at += take;
		len -= take;
	}
}

static void check_image(void)
{
	static uint8_t got[SIZE + 1];
	uint64_t at = 0;

	disk_peek(&desc, 0, got, SIZE);
	while (at < SIZE && got[at] == model[at])
		at++;
	ck_assert_msg(at == SIZE, "byte %llu is %#x, not %#x", (unsigned long long)at, got[at],
		      model[at]);
}

static const struct {
	uint64_t offset, len;
} ranges[] = {
	{0, 512},      {512, 1024},	      {SIZE - 512, 512}, {3584, 4608},
	{4096, 65536}, {512, 5 * MIB + 1536}, {0, SIZE},
};

static void read_all(void)
{
	static uint8_t buf[SIZE + 64];
	struct job *j = calloc(1, sizeof(*j));

	for (size_t i = 0; i < ARRAY_SIZE(ranges); i++) {
		static const uint32_t parts[] = {1, 2, 7, 126};

		for (size_t k = 0; k < ARRAY_SIZE(parts); k++) {
			memset(buf, 0xee, sizeof(buf));
			spread(j, buf + 17, ranges[i].len, parts[k], 0);
			ck_assert_int_eq(run(j, DISK_READ, ranges[i].offset, ranges[i].len), 0);
			ck_assert_uint_eq(j->op.done, ranges[i].len);
			ck_assert_mem_eq(buf + 17, model + ranges[i].offset, ranges[i].len);
			ck_assert_uint_eq(buf[16], 0xee);
			ck_assert_uint_eq(buf[17 + ranges[i].len], 0xee);
		}
	}
	free(j);
}

static void write_all(void)
{
	static uint8_t buf[SIZE + 64];
	struct job *j = calloc(1, sizeof(*j));

	for (unsigned i = 0; i < 4 * ARRAY_SIZE(ranges); i++) {
		const uint64_t at = ranges[i / 4].offset, len = ranges[i / 4].len;

		j->op.durable = i & 1;
		disk_pattern(buf, sizeof(buf), i + 2);
		spread(j, buf + 16 + (i & 2), len, 1 + 41 * (i % 4), 16);
		ck_assert_int_eq(run(j, DISK_WRITE, at, len), 0);
		ck_assert_uint_eq(j->op.done, len);
		memcpy(model + at, buf + 16 + (i & 2), len);
		check_image();
	}
	j->op.iov_at = 0;
	ck_assert_int_eq(run(j, DISK_SYNC, 0, 0), 0);
	free(j);
}

START_TEST(reads_and_writes)
{
	open_image(&desc);
	read_all();
	write_all();
	read_all();
}
END_TEST

/* Units, and whether this kind of I/O is really direct. */
static const struct {
	uint32_t io, mem;
	bool direct;
} units[] = {{512, 512, false}, {4096, 512, false}, {65536, 4096, false}, {0, 0, true}};

START_TEST(reads_and_writes_in_units)
{
	if (units[_i].direct) {
		desc.cache = VM_CACHE_NONE;
		if (disk_image_open(&img, &desc, &err)) {
			fprintf(stderr, "SKIP direct I/O: %s\n", err.text);
			return;
		}
		disk_image_close(&img);
	}
	open_image(&desc);
	if (!units[_i].direct) {
		img.io_align = units[_i].io;
		img.mem_align = units[_i].mem;
	}
	read_all();
	write_all();
	read_all();
}
END_TEST

/* Fills some of the image with zeros, in each way that there is, each in units too. */
START_TEST(zeroes)
{
	struct job *j = calloc(1, sizeof(*j));

	open_image(&desc);
	img.io_align = _i & 1 ? 4096 : 1;
	img.mem_align = _i & 1 ? 4096 : 1;
	for (unsigned way = 0; way < 8; way++) {
		disk.no_zero_range = way & 1;
		disk.no_punch = way & 2;
		j->op.unmap = way & 4;
		j->op.durable = (_i & 2) && way < 2;
		disk_pattern(model, SIZE, way);
		disk_poke(&desc, 0, model, SIZE);
		for (size_t i = 0; i < ARRAY_SIZE(ranges) - 1; i++) {
			memset(model + ranges[i].offset, 0, ranges[i].len);
			ck_assert_int_eq(run(j, DISK_ZERO, ranges[i].offset, ranges[i].len), 0);
			check_image();
		}
	}
	free(j);
}
END_TEST

/* The host gets its space back for a discard, and for zeroes that may unmap; else it does not. */
START_TEST(space)
{
	struct job *j = calloc(1, sizeof(*j));
	uint64_t full;

	open_image(&desc);
	ck_assert_int_eq(run(j, DISK_SYNC, 0, 0), 0);
	full = disk_allocated(&desc);
	ck_assert_uint_ge(full, SIZE);

	j->op.unmap = false;
	memset(model, 0, MIB);
	ck_assert_int_eq(run(j, DISK_ZERO, 0, MIB), 0);
	check_image();
	if (!disk.no_zero_range)
		ck_assert_uint_ge(disk_allocated(&desc), full);

	j->op.unmap = true;
	memset(model + MIB, 0, MIB);
	ck_assert_int_eq(run(j, DISK_ZERO, MIB, MIB), 0);
	check_image();
	if (disk.no_punch)
		goto out;
	ck_assert_uint_le(disk_allocated(&desc), full - MIB + 65536);

	full = disk_allocated(&desc);
	memset(model + 4 * MIB, 0, MIB);
	ck_assert_int_eq(run(j, DISK_DISCARD, 4 * MIB, MIB), 0);
	check_image();
	ck_assert_uint_le(disk_allocated(&desc), full - MIB + 65536);

	/* The size stays, at the very end as well. */
	j->op.durable = true;
	memset(model + SIZE - MIB, 0, MIB);
	ck_assert_int_eq(run(j, DISK_DISCARD, SIZE - MIB, MIB), 0);
	check_image();
out:
	free(j);
}
END_TEST

/* A device can only give back whole blocks: what lies around them is not touched. */
START_TEST(discards_whole_blocks)
{
	struct job *j = calloc(1, sizeof(*j));

	open_image(&desc);
	img.discard_align = 4096;
	ck_assert_int_eq(run(j, DISK_DISCARD, 512, 3584), 0);
	ck_assert_int_eq(run(j, DISK_DISCARD, 4608, 7168), 0);
	check_image();
	if (!disk.no_punch) {
		memset(model + 4096, 0, 4096);
		ck_assert_int_eq(run(j, DISK_DISCARD, 3584, 5120), 0);
		check_image();
	}
	free(j);
}
END_TEST

/* What is known to be impossible is refused at once. */
START_TEST(no_discard)
{
	struct job *j = calloc(1, sizeof(*j));

	open_image(&desc);
	disk.no_punch = true;
	ck_assert_int_eq(start(j, DISK_DISCARD, 0, 4096), -EOPNOTSUPP);
	ck_assert_uint_eq(disk.writers, 0);
	free(j);
}
END_TEST

/* tmpfs punches, and has no ZERO_RANGE: a memfd is one wherever the tests run. */
START_TEST(learns_what_is_missing)
{
	struct vm_disk d = {.queues = 1};
	struct job *j = calloc(1, sizeof(*j));
	int fd = memfd_create("disk", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	uint8_t buf[4096];

	ck_assert_int_eq(ftruncate(fd, MIB), 0);
	ck_assert_int_eq(pwrite(fd, model, MIB, 0), MIB);
	snprintf(d.path, sizeof(d.path), "/proc/self/fd/%d", fd);
	open_image(&d);
	ck_assert_int_eq(run(j, DISK_ZERO, 512, 4096), 0);
	ck_assert_int_eq(pread(fd, buf, 4096, 512), 4096);
	for (unsigned i = 0; i < 4096; i++)
		ck_assert_uint_eq(buf[i], 0);
	ck_assert_int_eq(pread(fd, buf, 512, 4608), 512);
	ck_assert_mem_eq(buf, model + 4608, 512);
	ck_assert(disk.no_zero_range);
	ck_assert(!disk.no_punch);

	/* Sealed: neither writes nor holes, and no way around it. */
	ck_assert_int_eq(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), 0);
	spread(j, buf, 4096, 1, 0);
	ck_assert_int_eq(run(j, DISK_WRITE, 0, 4096), -EPERM);
	ck_assert_uint_eq(j->op.done, 0);
	ck_assert_int_eq(run(j, DISK_ZERO, 0, 4096), -EPERM);
	ck_assert_int_eq(run(j, DISK_DISCARD, 0, 4096), -EPERM);
	ck_assert_int_eq(run(j, DISK_READ, 0, 4096), 0);
	ck_assert_uint_eq(disk.writers, 0);
	close(fd);
	free(j);
}
END_TEST

/* An image that somebody cut short: what is there is read, then it is an error; no endless loop. */
START_TEST(truncated)
{
	struct job *j = calloc(1, sizeof(*j));
	static uint8_t buf[SIZE];

	open_image(&desc);
	img.io_align = img.mem_align = _i ? 4096 : 1;
	ck_assert_int_eq(truncate(desc.path, MIB + 1024), 0);
	spread(j, buf, 4 * MIB - 512, 3, 0);
	ck_assert_int_eq(run(j, DISK_READ, 512, 4 * MIB - 512), -ENODATA);
	ck_assert_uint_eq(j->op.done, MIB + 512);
	ck_assert_mem_eq(buf, model + 512, MIB + 512);
	ck_assert_int_eq(run(j, DISK_READ, 2 * MIB, 2 * MIB), -ENODATA);
	ck_assert_uint_eq(j->op.done, 0);
	if (_i) /* the rest of a unit that is written in part */
		ck_assert_int_eq(run(j, DISK_WRITE, 2 * MIB + 512, 1024), -ENODATA);
	free(j);
}
END_TEST

/* A write that has room for its beginning only. */
START_TEST(no_room)
{
	struct rlimit limit = {.rlim_cur = MIB, .rlim_max = RLIM_INFINITY};
	struct job *j = calloc(1, sizeof(*j));
	static uint8_t buf[SIZE];

	open_image(&desc);
	signal(SIGXFSZ, SIG_IGN);
	ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
	disk_pattern(buf, SIZE, 9);
	spread(j, buf, MIB, 5, 0);
	ck_assert_int_eq(run(j, DISK_WRITE, MIB / 2, MIB), -EFBIG);
	ck_assert_uint_eq(j->op.done, MIB / 2);
	memcpy(model + MIB / 2, buf, MIB / 2);
	check_image();
	ck_assert_int_eq(run(j, DISK_WRITE, 2 * MIB, 4096), -EFBIG);
	free(j);
}
END_TEST

/*
 * Many at once over few units: every write of part of a unit must leave the others' parts alone,
 * and one of whole units must not be undone by the rest of a unit that was read before it.
 */
START_TEST(parts_of_units)
{
	enum { JOBS = 64, ROUNDS = 60, SECTORS = 256 };
	struct job *jobs = calloc(JOBS, sizeof(*jobs));
	uint8_t *bufs = calloc(JOBS, SECTORS * 512);
	unsigned seed = 7;

	ck_assert(jobs && bufs);
	open_image(&desc);
	img.io_align = _i ? 65536 : 4096;
	img.mem_align = 1;
	for (unsigned round = 0; round < ROUNDS; round++) {
		uint64_t at = 0;
		unsigned n = 0;

		/* Neighbours that touch, from one sector to some units long. */
		while (n < JOBS && at < SECTORS) {
			uint64_t len = 1 + (unsigned)rand_r(&seed) % (n % 7 ? 5 : 24);
			uint8_t *buf = bufs + n * SECTORS * 512UL;
			struct job *j = &jobs[n];

			len = MIN(len, SECTORS - at);
			disk_pattern(buf, len * 512, round * JOBS + n);
			spread(j, buf, len * 512, 1 + n % 3, 0);
			if (n % 5 == 4) {
				memset(buf, 0, len * 512);
				j->op.unmap = n & 1;
			}
			disk.no_punch = disk.no_zero_range = round & 1;
			ck_assert_int_eq(
				start(j, n % 5 == 4 ? DISK_ZERO : DISK_WRITE, at * 512, len * 512),
				0);
			memcpy(model + at * 512, buf, len * 512);
			at += len;
			n++;
		}
		while (n)
			wait_for(&jobs[--n]);
		ck_assert_uint_eq(disk.writers, 0);
		ck_assert(!disk.exclusive && !disk.waiting);
	}
	check_image();
	free(jobs);
	free(bufs);
}
END_TEST

/* More at once than io_uring has entries. */
START_TEST(more_than_the_ring)
{
	enum { JOBS = 1500 };
	struct job *jobs = calloc(JOBS, sizeof(*jobs));
	uint8_t *bufs = malloc(JOBS * 512UL);

	ck_assert(jobs && bufs);
	open_image(&desc);
	disk_pattern(bufs, JOBS * 512UL, 3);
	memcpy(model, bufs, JOBS * 512UL);
	for (unsigned i = 0; i < JOBS; i++) {
		spread(&jobs[i], bufs + i * 512UL, 512, 1, 0);
		ck_assert_int_eq(start(&jobs[i], DISK_WRITE, i * 512ULL, 512), 0);
	}
	for (unsigned i = 0; i < JOBS; i++) {
		wait_for(&jobs[i]);
		ck_assert_int_eq(jobs[i].err, 0);
	}
	check_image();
	free(jobs);
	free(bufs);
}
END_TEST

/* Whatever is under way is over when it is abandoned, and nobody is told. */
START_TEST(abandoned)
{
	enum { JOBS = 40 };
	struct job *jobs = calloc(JOBS, sizeof(*jobs));
	uint8_t *buf = malloc(SIZE);

	ck_assert(jobs && buf);
	open_image(&desc);
	img.io_align = 4096;
	img.mem_align = 1;
	for (unsigned i = 0; i < JOBS; i++) {
		spread(&jobs[i], buf, MIB + 512, 1, 0);
		ck_assert_int_eq(start(&jobs[i], i % 2 ? DISK_WRITE : DISK_READ, 0, MIB + 512), 0);
	}
	ck_assert_int_eq(loop_step(&loop, NS_PER_SEC), 0);
	for (unsigned i = 0; i < JOBS; i++) {
		unsigned ended = jobs[i].ended;

		disk_io_abandon(&disk, &jobs[i].op);
		ck_assert(!jobs[i].op.io.pending);
		ck_assert_ptr_null(jobs[i].op.bounce);
		ck_assert_uint_eq(jobs[i].ended, ended);
	}
	free(buf); /* sanitizers see a late store */
	free(jobs);
	for (unsigned i = 0; i < 3; i++)
		ck_assert_int_eq(loop_step(&loop, NS_PER_MS), 0);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("disk-io");
	TCase *tc = tcase_create("disk-io");
	SRunner *sr;
	int failed;

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_set_timeout(tc, 120);
	tcase_add_test(tc, reads_and_writes);
	tcase_add_loop_test(tc, reads_and_writes_in_units, 0, ARRAY_SIZE(units));
	tcase_add_loop_test(tc, zeroes, 0, 4);
	tcase_add_test(tc, space);
	tcase_add_test(tc, discards_whole_blocks);
	tcase_add_test(tc, no_discard);
	tcase_add_test(tc, learns_what_is_missing);
	tcase_add_loop_test(tc, truncated, 0, 2);
	tcase_add_test(tc, no_room);
	tcase_add_loop_test(tc, parts_of_units, 0, 2);
	tcase_add_test(tc, more_than_the_ring);
	tcase_add_test(tc, abandoned);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
