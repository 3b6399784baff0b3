/* SPDX-License-Identifier: MIT */
/* The block device as its driver sees it, and as a migration does. */
#include "blk-driver.h"

#include "check-main.h"

#define SIZE (4 * MIB)
#define SECTORS (SIZE / 512)

static struct vm_disk disk;
static struct driver *d;
static struct blk_slots slots;
static struct errmsg err;
static uint8_t model[SIZE + 1]; /* what must be in the image */
static uint64_t mem;		/* guest memory for data */

static void setup(void)
{
	disk_folder_make();
	disk = disk_new("disk", SIZE);
	disk_pattern(model, SIZE, 1);
	disk_poke(&disk, 0, model, SIZE);
}

static void teardown(void)
{
	if (d)
		driver_free(d);
	disk_folder_remove();
}

static void up(uint64_t features)
{
	d = blk_new(&disk);
	driver_up(d, features);
	slots = blk_slots(d);
	mem = driver_alloc_pages(d, 2 * MIB);
}

static void check_image(void)
{
	static uint8_t got[SIZE + 1];
	uint64_t at = 0;

	disk_peek(&disk, 0, got, SIZE);
	while (at < SIZE && got[at] == model[at])
		at++;
	ck_assert_msg(at == SIZE, "byte %llu is %#x, not %#x", (unsigned long long)at, got[at],
		      model[at]);
}

static void fill(uint64_t gpa, uint32_t len, unsigned seed)
{
	disk_pattern(driver_mem(d, gpa, len), len, seed);
}

/* Writes new data and reads them back: does it work? */
static void works(unsigned seed)
{
	fill(mem, 8192, seed);
	ck_assert_uint_eq(blk_write(d, &slots, 8, mem, 8192), BLK_OK);
	memcpy(model + 4096, driver_mem(d, mem, 8192), 8192);
	ck_assert_uint_eq(blk_read(d, &slots, 8, mem + 65536, 8192), BLK_OK);
	ck_assert_mem_eq(driver_mem(d, mem + 65536, 8192), model + 4096, 8192);
	check_image();
}

/* ---- what is offered ---- */

static uint32_t config32(unsigned offset)
{
	return (uint32_t)virtio_config_read(d->v, offset, 4);
}

START_TEST(configuration)
{
	const uint64_t all = BLK_F_SEG_MAX | BLK_F_BLK_SIZE | BLK_F_FLUSH | BLK_F_TOPOLOGY |
			     BLK_F_MQ | BLK_F_DISCARD | BLK_F_ZEROES;

	disk.queues = 8;
	disk.discard = true;
	d = blk_new(&disk);
	ck_assert_uint_eq(d->v->ops->type, 2);
	ck_assert_uint_eq(d->v->n_queues, 8);
	ck_assert_uint_eq(d->v->offered & 0xffffff, all);
	ck_assert_uint_eq(virtio_config_read(d->v, 0, 8), SECTORS);
	ck_assert_uint_eq(config32(12), 126);
	ck_assert_uint_eq(config32(20), 512);
	ck_assert_uint_eq(virtio_config_read(d->v, 24, 1), 3);
	ck_assert_uint_eq(virtio_config_read(d->v, 26, 2), 8);
	ck_assert_uint_eq(virtio_config_read(d->v, 34, 2), 8);
	ck_assert_uint_ge(config32(36), 1U << 20);
	ck_assert_uint_eq(config32(40), 16);
	ck_assert_uint_eq(config32(44), 8);
	ck_assert_uint_ge(config32(48), 1U << 16);
	ck_assert_uint_eq(config32(52), 1);
	ck_assert_uint_eq(virtio_config_read(d->v, 56, 1), 1);
	ck_assert_uint_eq(virtio_config_read(d->v, 60, 8), 0);
	/* None of it is the driver's. */
	virtio_config_write(d->v, 0, 8, 1);
	virtio_config_write(d->v, 32, 1, 1);
	ck_assert_uint_eq(virtio_config_read(d->v, 0, 8), SECTORS);
	ck_assert_uint_eq(virtio_config_read(d->v, 32, 1), 0);
	driver_free(d);

	disk.queues = 1;
	disk.discard = false;
	d = blk_new(&disk);
	ck_assert_uint_eq(d->v->offered & 0xffffff, all & ~(BLK_F_MQ | BLK_F_DISCARD));
	ck_assert_uint_eq(virtio_config_read(d->v, 56, 1), 0);
	driver_free(d);

	disk.cache = VM_CACHE_WRITETHROUGH;
	d = blk_new(&disk);
	ck_assert_uint_eq(d->v->offered & BLK_F_FLUSH, 0);
	driver_free(d);

	disk.cache = VM_CACHE_UNSAFE;
	disk.readonly = disk.discard = true;
	d = blk_new(&disk);
	ck_assert_uint_eq(d->v->offered & 0xffffff,
			  BLK_F_SEG_MAX | BLK_F_BLK_SIZE | BLK_F_FLUSH | BLK_F_TOPOLOGY | BLK_F_RO);
}
END_TEST

START_TEST(refused_at_init)
{
	struct vm vm = {0};
	struct device *dev = calloc(1, virtio_blk_ops.size);

	dev->vm = &vm;
	dev->ops = &virtio_blk_ops;
	disk.queues = 0;
	ck_assert_int_eq(virtio_blk_ops.init(dev, &disk), -EINVAL);
	disk.queues = 9;
	ck_assert_int_eq(virtio_blk_ops.init(dev, &disk), -EINVAL);
	disk = disk_at("other");
	ck_assert_int_eq(virtio_blk_ops.init(dev, &disk), -ENOENT);
	free(dev);
}
END_TEST

START_TEST(identity)
{
	static const char *const serials[] = {"", "godwit", "exactly-twenty-chars"};
	struct driver_buf b;
	uint32_t used;
	uint8_t *p;

	for (unsigned i = 0; i < 3; i++) {
		uint8_t want[20] = {0};

		memcpy(want, serials[i], strlen(serials[i]));
		strcpy(disk.serial, serials[i]);
		up(UINT64_MAX);
		p = driver_mem(d, mem, 64);
		memset(p, 0xee, 64);
		b = (struct driver_buf){mem, 20, true};
		ck_assert_uint_eq(blk_do(d, &slots, BLK_GET_ID, 0, &b, 1, &used), BLK_OK);
		ck_assert_uint_eq(used, 21);
		ck_assert_mem_eq(p, want, 20);
		ck_assert_uint_eq(p[20], 0xee);
		/* Room for less, or for more. */
		memset(p, 0xee, 64);
		b.len = 5;
		ck_assert_uint_eq(blk_do(d, &slots, BLK_GET_ID, 0, &b, 1, &used), BLK_OK);
		ck_assert_uint_eq(used, 6);
		ck_assert_mem_eq(p, want, 5);
		ck_assert_uint_eq(p[5], 0xee);
		b.len = 64;
		ck_assert_uint_eq(blk_do(d, &slots, BLK_GET_ID, 0, &b, 1, &used), BLK_OK);
		ck_assert_uint_eq(used, 21);
		ck_assert_uint_eq(p[20], 0xee);
		driver_free(d);
		d = NULL;
	}
}
END_TEST

/* ---- reads and writes ---- */

static const uint64_t ring_features[] = {0, VIRTIO_RING_EVENT_IDX, VIRTIO_RING_INDIRECT,
					 UINT64_MAX};

START_TEST(reads_and_writes)
{
	struct driver_buf b[3];
	uint32_t used;

	up(ring_features[_i]);
	for (unsigned i = 0; i < 300; i++) {
		uint64_t sector = i * 7 % (SECTORS - 64);

		/* Three buffers, none of them whole sectors, 24 sectors together. */
		b[0] = (struct driver_buf){mem + 100, 1000, i & 1};
		b[1] = (struct driver_buf){mem + 65536 + 1, 4099, i & 1};
		b[2] = (struct driver_buf){mem + 131072, 24 * 512 - 5099, i & 1};
		if (i & 1) {
			memset(driver_mem(d, mem, 2 * MIB), 0xee, 2 * MIB);
			driver_watch(d);
			ck_assert_uint_eq(blk_do(d, &slots, BLK_IN, sector, b, 3, &used), BLK_OK);
			/* Used ring, status, and the data: 1, 2 and 2 pages. */
			ck_assert_uint_eq(driver_check_dirty(d), 2 + 1 + 2 + 2);
			ck_assert_uint_eq(driver_clean(d), 2 + 1 + 2 + 2);
			ck_assert_uint_eq(used, 24 * 512 + 1);
		} else {
			for (unsigned k = 0; k < 3; k++)
				fill(b[k].gpa, b[k].len, i * 3 + k);
			driver_watch(d);
			ck_assert_uint_eq(blk_do(d, &slots, BLK_OUT, sector, b, 3, &used), BLK_OK);
			ck_assert_uint_eq(driver_check_dirty(d), 2);
			ck_assert_uint_eq(used, 1);
		}
		ck_assert_uint_eq(driver_irqs(d, 0), 1);
		for (unsigned k = 0, at = 0; k < 3; at += b[k].len, k++) {
			uint8_t *p = model + sector * 512 + at;

			if (i & 1)
				ck_assert_mem_eq(driver_mem(d, b[k].gpa, b[k].len), p, b[k].len);
			else
				memcpy(p, driver_mem(d, b[k].gpa, b[k].len), b[k].len);
		}
	}
	check_image();
}
END_TEST

/* Where one buffer ends and another begins says nothing (virtio 1.2, section 2.7.4). */
START_TEST(framing)
{
	struct blk_header h = {.type = BLK_IN, .sector = 16};
	struct driver_buf b[4];
	struct driver_used e;
	uint8_t *p;

	up(0);
	p = driver_mem(d, mem, 8192);
	/* A header in three parts, data and status in one. */
	driver_poke(d, mem, &h, sizeof(h));
	b[0] = (struct driver_buf){mem, 3, false};
	b[1] = (struct driver_buf){mem + 3, 5, false};
	b[2] = (struct driver_buf){mem + 8, 8, false};
	b[3] = (struct driver_buf){mem + 4096, 1025, true};
	driver_add(d, 0, b, 4);
	driver_kick(d, 0);
	e = driver_wait_used(d, 0);
	ck_assert_uint_eq(e.len, 1025);
	ck_assert_mem_eq(p + 4096, model + 8192, 1024);
	ck_assert_uint_eq(p[5120], BLK_OK);

	/* Header and data in one; a part of the status' chain that nothing is for. */
	h = (struct blk_header){.type = BLK_OUT, .sector = 3};
	driver_poke(d, mem, &h, sizeof(h));
	fill(mem + 16, 2048, 3);
	memset(p + 4096, 0xee, 8);
	b[0] = (struct driver_buf){mem, 16 + 2048, false};
	b[1] = (struct driver_buf){mem + 4096, 3, true};
	driver_add(d, 0, b, 2);
	driver_kick(d, 0);
	e = driver_wait_used(d, 0);
	ck_assert_uint_eq(e.len, 1);
	ck_assert_uint_eq(p[4096], 0xee);
	ck_assert_uint_eq(p[4098], BLK_OK);
	memcpy(model + 3 * 512, p + 16, 2048);
	check_image();
}
END_TEST

/* The most segments that are offered, and the most bytes that a request here can have. */
START_TEST(large)
{
	struct driver_buf b[126];
	uint32_t used;

	up(UINT64_MAX);
	for (unsigned round = 0; round < 2; round++) {
		for (unsigned i = 0; i < 126; i++)
			b[i] = (struct driver_buf){mem + i * 8192ULL, 8192, round};
		if (round == 0)
			fill(mem, MIB, 4);
		ck_assert_uint_eq(blk_do(d, &slots, round ? BLK_IN : BLK_OUT, 5, b, 126, &used),
				  BLK_OK);
		ck_assert_uint_eq(used, round ? 126 * 8192 + 1 : 1);
		if (round == 0)
			memcpy(model + 5 * 512, driver_mem(d, mem, MIB), 126 * 8192UL);
		check_image();
		ck_assert_mem_eq(driver_mem(d, mem, MIB), model + 5 * 512, 126 * 8192UL);
		memset(driver_mem(d, mem, MIB), 0, MIB);
	}
	/* All of the disk, into the same memory over and over: more than one piece. */
	for (unsigned i = 0; i < 4; i++)
		b[i] = (struct driver_buf){mem, MIB, true};
	ck_assert_uint_eq(blk_do(d, &slots, BLK_IN, 0, b, 4, &used), BLK_OK);
	ck_assert_uint_eq(used, SIZE + 1);
}
END_TEST

/* Every queue full, of many more requests than there are structures or io_uring entries for. */
START_TEST(many)
{
	const unsigned n = 256;

	disk.queues = 8;
	up(ring_features[_i] | VIRTIO_RING_INDIRECT | BLK_F_FLUSH | BLK_F_MQ);
	fill(mem, MIB, 5);
	for (unsigned round = 0; round < 4; round++) {
		for (unsigned q = 0; q < 8; q++) {
			for (unsigned i = 0; i < n; i++) {
				uint64_t at = (q * n + i) * 512;
				bool in = round & 1;
				struct driver_buf b = {mem + at + (in ? MIB : 0), 512, in};

				blk_add(d, &slots, q * n + i, q, in ? BLK_IN : BLK_OUT,
					q * n + i + round / 2, &b, 1);
			}
		}
		for (unsigned q = 0; q < 8; q++)
			driver_kick(d, q);
		for (unsigned q = 0; q < 8; q++) {
			for (unsigned i = 0; i < n; i++)
				driver_wait_used(d, q);
		}
		for (unsigned i = 0; i < 8 * n; i++)
			ck_assert_uint_eq(blk_status(d, &slots, i), BLK_OK);
		if (!(round & 1))
			memcpy(model + round / 2 * 512, driver_mem(d, mem, MIB), MIB);
		else
			ck_assert_mem_eq(driver_mem(d, mem + MIB, MIB), driver_mem(d, mem, MIB),
					 MIB);
		check_image();
	}
	driver_settle(d);
	ck_assert_uint_eq(d->v->inflight, 0);
	works(6);
}
END_TEST

/* Requests that end at once are served in turns too: the loop's others come in between. */
START_TEST(takes_turns)
{
	struct driver_mark mark = {.task = {.run = driver_on_mark}};
	unsigned n = 0;

	up(VIRTIO_RING_INDIRECT);
	for (unsigned i = 0; i < 256; i++)
		blk_add(d, &slots, i, 0, 99, 0, NULL, 0);
	driver_kick_always(d, 0);
	while (driver_used_idx(d, 0) == 0)
		driver_step(d, NS_PER_SEC);
	/* A driver that adds as fast as it is served does not keep the loop. */
	for (unsigned round = 0; round < 3; round++) {
		struct driver_used e;

		while (driver_take_used(d, 0, &e)) {
			blk_add(d, &slots, n % 256, 0, 99, 0, NULL, 0);
			n++;
		}
		driver_kick(d, 0);
		mark.ran = false;
		loop_post(d->loop, &mark.task);
		driver_run_until(d, mark.ran);
	}
	ck_assert_uint_ge(n, 256);
	/* And none is forgotten. */
	driver_run_until(d, driver_used_idx(d, 0) == d->queue[0].avail_idx);
}
END_TEST

/* ---- caches ---- */

START_TEST(caches)
{
	static const uint8_t modes[] = {VM_CACHE_WRITEBACK, VM_CACHE_NONE, VM_CACHE_WRITETHROUGH,
					VM_CACHE_UNSAFE};
	static const uint32_t odd[] = {0, 512, 1, 2049};

	disk.cache = modes[_i / 2];
	disk.discard = true;
	if (disk.cache == VM_CACHE_NONE && disk_image_check(&disk, &err)) {
		fprintf(stderr, "SKIP direct I/O: %s\n", err.text);
		return;
	}
	/* With flushes and without. */
	up(_i & 1 ? UINT64_MAX : UINT64_MAX & ~BLK_F_FLUSH);
	for (unsigned i = 0; i < 32; i++) {
		uint64_t sector = i * 37;
		uint32_t len = 512 * (1 + i % 9);
		uint64_t at = mem + odd[i % 4];

		fill(at, len, i);
		ck_assert_uint_eq(blk_write(d, &slots, sector, at, len), BLK_OK);
		memcpy(model + sector * 512, driver_mem(d, at, len), len);
		memset(driver_mem(d, mem + MIB, 65536), 0xee, 65536);
		driver_watch(d);
		ck_assert_uint_eq(blk_read(d, &slots, sector, mem + MIB + odd[(i + 1) % 4], len),
				  BLK_OK);
		driver_check_dirty(d);
		ck_assert_mem_eq(driver_mem(d, mem + MIB + odd[(i + 1) % 4], len),
				 model + sector * 512, len);
		if (i % 8 == 0)
			ck_assert_uint_eq(blk_flush(d, &slots), BLK_OK);
	}
	ck_assert_uint_eq(blk_range(d, &slots, BLK_ZEROES, 9, 33, 0), BLK_OK);
	memset(model + 9 * 512, 0, 33 * 512);
	ck_assert_uint_eq(blk_range(d, &slots, BLK_DISCARD, 64, 64, 0), BLK_OK);
	memset(model + 64 * 512, 0, 64 * 512);
	driver_quiesce(d);
	check_image();
	driver_resume(d);
	works(77);
}
END_TEST

/* Flushes of several queues at once are all answered. */
START_TEST(flushes)
{
	disk.queues = 4;
	up(UINT64_MAX);
	for (unsigned round = 0; round < 3; round++) {
		struct driver_buf b = {mem, 65536, false};

		for (unsigned q = 0; q < 4; q++) {
			for (unsigned i = 0; i < 20; i++) {
				if (i % 3)
					blk_add(d, &slots, q * 20 + i, q, BLK_FLUSH, 0, NULL, 0);
				else
					blk_add(d, &slots, q * 20 + i, q, BLK_OUT, 0, &b, 1);
			}
			driver_kick(d, q);
		}
		for (unsigned q = 0; q < 4; q++) {
			for (unsigned i = 0; i < 20; i++)
				ck_assert_uint_eq(driver_wait_used(d, q).len, 1);
		}
		for (unsigned i = 0; i < 80; i++)
			ck_assert_uint_eq(blk_status(d, &slots, i), BLK_OK);
	}
	/* With data that it should not have. */
	ck_assert_uint_eq(
		blk_do(d, &slots, BLK_FLUSH, 7, &(struct driver_buf){mem, 512, false}, 1, NULL),
		BLK_OK);
}
END_TEST

/* ---- ranges ---- */

START_TEST(ranges)
{
	struct blk_range r[17] = {{0, 8, 0}, {SECTORS - 8, 8, 0}, {64, 0, 0}, {100, 13, 0}};
	uint64_t full;

	disk.discard = true;
	up(UINT64_MAX);
	/* 2 MiB of holes: allocated space shrinks by as much, and the size stays. */
	ck_assert_uint_eq(blk_flush(d, &slots), BLK_OK);
	full = disk_allocated(&disk);
	ck_assert_uint_eq(blk_range(d, &slots, BLK_DISCARD, 2048, 4096, 0), BLK_OK);
	memset(model + MIB, 0, 2 * MIB);
	check_image();
	ck_assert_uint_le(disk_allocated(&disk), full - 2 * MIB + 65536);
	full = disk_allocated(&disk);
	ck_assert_uint_eq(blk_range(d, &slots, BLK_ZEROES, 6144, 1024, 1), BLK_OK);
	memset(model + 3 * MIB, 0, MIB / 2);
	check_image();
	ck_assert_uint_le(disk_allocated(&disk), full - MIB / 2 + 65536);
	full = disk_allocated(&disk);
	ck_assert_uint_eq(blk_range(d, &slots, BLK_ZEROES, 6144 + 1024, 513, 0), BLK_OK);
	memset(model + 3 * MIB + MIB / 2, 0, 513 * 512);
	check_image();
	ck_assert_uint_ge(disk_allocated(&disk) + 65536, full);

	/* Several in one; 16 are the most, of which one is the most for zeroes. */
	ck_assert_uint_eq(blk_ranges(d, &slots, BLK_DISCARD, r, 4), BLK_OK);
	memset(model, 0, 8 * 512);
	memset(model + SIZE - 8 * 512, 0, 8 * 512);
	memset(model + 100 * 512, 0, 13 * 512);
	check_image();
	ck_assert_uint_eq(blk_ranges(d, &slots, BLK_DISCARD, r, 16), BLK_OK);
	ck_assert_uint_eq(blk_ranges(d, &slots, BLK_DISCARD, r, 17), BLK_IOERR);
	ck_assert_uint_eq(blk_ranges(d, &slots, BLK_ZEROES, r, 2), BLK_IOERR);
	ck_assert_uint_eq(blk_ranges(d, &slots, BLK_DISCARD, r, 0), BLK_IOERR);

	/* Flags (virtio 1.2, 5.2.6.2). */
	ck_assert_uint_eq(blk_range(d, &slots, BLK_DISCARD, 800, 8, 1), BLK_UNSUPP);
	ck_assert_uint_eq(blk_range(d, &slots, BLK_DISCARD, 800, 8, 0x80000000), BLK_UNSUPP);
	ck_assert_uint_eq(blk_range(d, &slots, BLK_ZEROES, 800, 8, 2), BLK_UNSUPP);
	ck_assert_uint_eq(blk_range(d, &slots, BLK_ZEROES, 800, 8, 3), BLK_UNSUPP);
	/* Limits, and the ends of the disk and of numbers. */
	for (unsigned i = 0; i < 2; i++) {
		uint32_t type = i ? BLK_ZEROES : BLK_DISCARD;

		ck_assert_uint_eq(blk_range(d, &slots, type, 0, config32(i ? 48 : 36) + 1, 0),
				  BLK_IOERR);
		ck_assert_uint_eq(blk_range(d, &slots, type, 0, UINT32_MAX, 0), BLK_IOERR);
		ck_assert_uint_eq(blk_range(d, &slots, type, SECTORS, 1, 0), BLK_IOERR);
		ck_assert_uint_eq(blk_range(d, &slots, type, SECTORS - 1, 2, 0), BLK_IOERR);
		ck_assert_uint_eq(blk_range(d, &slots, type, SECTORS + 1, 0, 0), BLK_IOERR);
		ck_assert_uint_eq(blk_range(d, &slots, type, UINT64_MAX, 1, 0), BLK_IOERR);
		ck_assert_uint_eq(blk_range(d, &slots, type, UINT64_MAX / 512, 2, 0), BLK_IOERR);
		ck_assert_uint_eq(blk_range(d, &slots, type, UINT64_MAX - 7, 8, 0), BLK_IOERR);
		ck_assert_uint_eq(blk_range(d, &slots, type, 1ULL << 55, 8, 0), BLK_IOERR);
	}
	/* Not whole ranges. */
	for (uint32_t len = 1; len < 48; len += 5)
		ck_assert_uint_eq(blk_do(d, &slots, BLK_DISCARD, 0,
					 &(struct driver_buf){mem, len, false}, 1, NULL),
				  len % 16 ? BLK_IOERR : BLK_OK);
	check_image();
}
END_TEST

/* What was not negotiated is not there. */
START_TEST(ranges_not_negotiated)
{
	disk.discard = true;
	up(BLK_F_FLUSH);
	ck_assert_uint_eq(blk_range(d, &slots, BLK_DISCARD, 0, 8, 0), BLK_UNSUPP);
	ck_assert_uint_eq(blk_range(d, &slots, BLK_ZEROES, 0, 8, 0), BLK_UNSUPP);
	driver_free(d);
	disk.discard = false;
	up(UINT64_MAX);
	ck_assert_uint_eq(blk_range(d, &slots, BLK_DISCARD, 0, 8, 0), BLK_UNSUPP);
	check_image();
}
END_TEST

/* ---- errors ---- */

START_TEST(beyond_the_end)
{
	static const uint64_t sectors[] = {
		SECTORS,
		SECTORS - 1,
		SECTORS - 7,
		SECTORS + 1,
		UINT64_MAX,
		UINT64_MAX - 7,
		UINT64_MAX / 512,
		UINT64_MAX / 512 - 7,
		UINT64_MAX / 512 + 1,
		1ULL << 55,
		(1ULL << 55) + SECTORS - 8,
		INT64_MAX / 512,
		1ULL << 63,
	};
	struct driver_buf b;
	uint32_t used;

	up(UINT64_MAX);
	memset(driver_mem(d, mem, 4096), 0xee, 4096);
	for (unsigned i = 0; i < ARRAY_SIZE(sectors); i++) {
		for (unsigned in = 0; in < 2; in++) {
			b = (struct driver_buf){mem, 4096, in};
			ck_assert_uint_eq(
				blk_do(d, &slots, in ? BLK_IN : BLK_OUT, sectors[i], &b, 1, &used),
				BLK_IOERR);
			ck_assert_uint_eq(used, 1);
		}
	}
	/* Not whole sectors. */
	for (uint32_t len = 1; len < 2000; len += 37) {
		for (unsigned in = 0; in < 2; in++) {
			b = (struct driver_buf){mem, len, in};
			ck_assert_uint_eq(blk_do(d, &slots, in ? BLK_IN : BLK_OUT, 0, &b, 1, &used),
					  BLK_IOERR);
		}
	}
	for (unsigned i = 0; i < 4096; i++)
		ck_assert_uint_eq(*(uint8_t *)driver_mem(d, mem + i, 1), 0xee);
	/* Nothing at all, within the disk. */
	ck_assert_uint_eq(blk_do(d, &slots, BLK_IN, SECTORS, NULL, 0, &used), BLK_OK);
	ck_assert_uint_eq(blk_do(d, &slots, BLK_OUT, 0, NULL, 0, &used), BLK_OK);
	ck_assert_uint_eq(blk_do(d, &slots, BLK_IN, SECTORS + 1, NULL, 0, &used), BLK_IOERR);
	ck_assert_uint_eq(blk_read(d, &slots, SECTORS - 8, mem, 4096), BLK_OK);
	ck_assert_uint_eq(blk_write(d, &slots, SECTORS - 8, mem, 4096), BLK_OK);
	check_image();
	ck_assert(!driver_needs_reset(d));
}
END_TEST

START_TEST(unknown_types)
{
	static const uint32_t types[] = {2,  3,	 5,  7,	 10,	     12,
					 14, 15, 16, 26, 0x80000000, UINT32_MAX};
	struct driver_buf b = {0};
	uint32_t used;

	up(UINT64_MAX);
	b = (struct driver_buf){mem, 512, true};
	for (unsigned i = 0; i < ARRAY_SIZE(types); i++) {
		ck_assert_uint_eq(blk_do(d, &slots, types[i], 0, &b, 1, &used), BLK_UNSUPP);
		ck_assert_uint_eq(used, 1);
	}
	works(2);
}
END_TEST

START_TEST(readonly)
{
	disk.readonly = disk.discard = true;
	up(UINT64_MAX);
	ck_assert_uint_eq(blk_read(d, &slots, 8, mem, 4096), BLK_OK);
	ck_assert_mem_eq(driver_mem(d, mem, 4096), model + 4096, 4096);
	ck_assert_uint_eq(blk_write(d, &slots, 8, mem, 4096), BLK_IOERR);
	ck_assert_uint_eq(blk_range(d, &slots, BLK_DISCARD, 0, 8, 0), BLK_UNSUPP);
	ck_assert_uint_eq(blk_range(d, &slots, BLK_ZEROES, 0, 8, 0), BLK_UNSUPP);
	ck_assert_uint_eq(blk_flush(d, &slots), BLK_OK);
	driver_quiesce(d);
	driver_resume(d);
	check_image();
}
END_TEST

/* The host's file ends where it did not: an I/O error, for ever or until it is back. */
START_TEST(image_cut_short)
{
	struct driver_buf b;
	uint32_t used;

	up(UINT64_MAX);
	ck_assert_int_eq(truncate(disk.path, MIB), 0);
	b = (struct driver_buf){mem, 8192, true};
	memset(driver_mem(d, mem, 8192), 0xee, 8192);
	driver_watch(d);
	ck_assert_uint_eq(blk_do(d, &slots, BLK_IN, 2048 - 8, &b, 1, &used), BLK_IOERR);
	/* What was stored is marked, and told. */
	driver_check_dirty(d);
	ck_assert_uint_eq(used, 4096 + 1);
	ck_assert_mem_eq(driver_mem(d, mem, 4096), model + MIB - 4096, 4096);
	for (unsigned i = 0; i < 100; i++)
		ck_assert_uint_eq(blk_read(d, &slots, 4096, mem, 8192), BLK_IOERR);
	ck_assert_uint_eq(blk_read(d, &slots, 0, mem, 8192), BLK_OK);
	memset(model + MIB, 0, SIZE - MIB);
	ck_assert_int_eq(truncate(disk.path, SIZE), 0);
	works(3);
}
END_TEST

/* Drivers' mistakes: the device stops, touches nothing, and a reset heals it. */
START_TEST(mistakes)
{
	struct blk_header h = {.type = BLK_IN, .sector = 0};

	up(VIRTIO_RING_INDIRECT);
	for (unsigned i = 0; i < 9; i++) {
		uint64_t hdr = driver_alloc(d, 16), sts = driver_alloc_pages(d, 1);
		struct driver_buf b[130];

		driver_poke(d, hdr, &h, sizeof(h));
		memset(driver_mem(d, mem, 65536), 0xee, 65536);
		b[0] = (struct driver_buf){hdr, 16, false};
		b[1] = (struct driver_buf){mem, 512, true};
		b[2] = (struct driver_buf){sts, 1, true};
		switch (i) {
		case 0: /* nothing to write to */
			driver_add(d, 0, b, 1);
			break;
		case 1: /* no header */
			driver_add(d, 0, b + 1, 2);
			break;
		case 2: /* half a header */
			b[0].len = 15;
			driver_add(d, 0, b, 3);
			break;
		case 3: /* a status that cannot be written */
			b[1].in = b[2].in = false;
			driver_add(d, 0, b, 3);
			break;
		case 4: /* outside memory */
			b[1].gpa = 1ULL << 40;
			driver_add(d, 0, b, 3);
			break;
		case 5: /* what wraps around */
			b[1] = (struct driver_buf){UINT64_MAX - 100, 512, true};
			driver_add(d, 0, b, 3);
			break;
		case 6: /* to read behind to write */
			b[1].in = true;
			b[2] = (struct driver_buf){hdr, 16, false};
			driver_add(d, 0, b, 3);
			break;
		case 7: /* too many */
			for (unsigned k = 1; k < 129; k++)
				b[k] = (struct driver_buf){mem, 512, true};
			driver_add_indirect(d, 0, b, 129);
			break;
		default: /* a head that is none */
			driver_offer(d, 0, 5000);
		}
		driver_kick_always(d, 0);
		driver_run_until(d, driver_needs_reset(d));
		driver_settle(d);
		ck_assert_uint_eq(driver_used_idx(d, 0), 0);
		for (unsigned k = 0; k < 65536; k += 64)
			ck_assert_uint_eq(*(uint8_t *)driver_mem(d, mem + k, 1), 0xee);
		driver_up(d, VIRTIO_RING_INDIRECT);
		works(10 + i);
		driver_up(d, VIRTIO_RING_INDIRECT);
	}
	ck_assert_uint_eq(d->v->inflight, 0);
}
END_TEST

/*
 * A guest that offers one head again and again while it is under way has more requests in flight
 * than the queue has descriptors; each is answered, and none is lost or counted twice.
 */
START_TEST(one_head_many_times)
{
	const struct blk_header h = {.type = BLK_IN};
	uint64_t hdr;

	up(0);
	hdr = driver_alloc(d, 32);
	driver_poke(d, hdr, &h, sizeof(h));
	driver_desc(d, 0, 0, hdr, 16, DRIVER_NEXT, 1);
	driver_desc(d, 0, 1, mem, 65536, DRIVER_NEXT | DRIVER_WRITE, 2);
	driver_desc(d, 0, 2, hdr + 16, 1, DRIVER_WRITE, 0);
	for (unsigned round = 0; round < 4; round++) {
		for (unsigned i = 0; i < 256; i++)
			driver_offer(d, 0, 0);
		driver_kick_always(d, 0);
		driver_step(d, NS_PER_SEC);
	}
	/* Whether it took that for a mistake depends on how fast it was; it must come to rest. */
	driver_run_until(d, driver_needs_reset(d) || driver_used_idx(d, 0) == 1024);
	driver_quiesce(d);
	ck_assert_uint_eq(d->v->inflight, 0);
	driver_resume(d);
	driver_up(d, UINT64_MAX);
	works(4);
}
END_TEST

/* Without the lock nothing is read or written. */
START_TEST(not_acquired)
{
	d = driver_new(&virtio_blk_ops, &disk, 32 * MIB);
	driver_up(d, UINT64_MAX);
	slots = blk_slots(d);
	mem = driver_alloc_pages(d, 2 * MIB);
	memset(driver_mem(d, mem, 4096), 0xee, 4096);
	ck_assert_uint_eq(blk_write(d, &slots, 0, mem, 4096), BLK_IOERR);
	ck_assert_uint_eq(blk_read(d, &slots, 0, mem, 4096), BLK_IOERR);
	ck_assert_uint_eq(blk_range(d, &slots, BLK_ZEROES, 0, 8, 0), BLK_IOERR);
	check_image();
	ck_assert_uint_eq(d->v->inflight, 0);
	ck_assert_int_eq(virtio_blk_ops.acquire(&d->v->dev, &err), 0);
	works(5);
	virtio_blk_ops.release(&d->v->dev);
	ck_assert_uint_eq(blk_read(d, &slots, 0, mem, 4096), BLK_IOERR);
}
END_TEST

/* ---- resets ---- */

static void *reset_thread(void *arg)
{
	atomic_bool *done = arg;

	virtio_set_status(d->v, 0);
	*done = true;
	return NULL;
}

/* The vCPU that resets waits until the kernel stores into guest memory no more. */
START_TEST(reset_in_flight)
{
	struct driver_buf b;

	up(UINT64_MAX);
	for (unsigned round = 0; round < 20; round++) {
		atomic_bool done = false;
		pthread_t thread;

		for (unsigned i = 0; i < 200; i++) {
			b = (struct driver_buf){mem + i * 4096, 4096, i & 1};
			blk_add(d, &slots, i, 0,
				i % 10 == 8 ? BLK_FLUSH
				: i & 1	    ? BLK_IN
					    : BLK_OUT,
				i, i % 10 == 8 ? NULL : &b, i % 10 != 8);
		}
		driver_kick(d, 0);
		for (unsigned i = 0; i <= round % 3; i++)
			driver_step(d, NS_PER_SEC);
		ck_assert_int_eq(pthread_create(&thread, NULL, reset_thread, &done), 0);
		driver_run_until(d, done);
		pthread_join(thread, NULL);
		ck_assert_uint_eq(d->v->inflight, 0);
		ck_assert_uint_eq(d->v->status, 0);
		/* The memory is the driver's again. */
		driver_watch(d);
		driver_settle(d);
		ck_assert_uint_eq(driver_check_dirty(d), 0);
		d->top = mem + 2 * MIB;
		driver_up(d, UINT64_MAX);
	}
	/* What was written, and what not, was up to the resets. */
	disk_peek(&disk, 0, model, SIZE);
	works(6);
}
END_TEST

/* ---- rest and moves ---- */

START_TEST(rest_in_flight)
{
	struct driver_buf b;
	unsigned n = 0;

	up(UINT64_MAX);
	fill(mem, MIB, 8);
	for (unsigned i = 0; i < 200; i++) {
		b = (struct driver_buf){mem + i * 4096ULL, 4096, false};
		blk_add(d, &slots, i, 0, BLK_OUT, i * 8, &b, 1);
	}
	driver_kick(d, 0);
	driver_step(d, NS_PER_SEC);
	driver_quiesce(d);
	n = driver_used_idx(d, 0);
	ck_assert_uint_eq(d->v->inflight, 0);
	/* At rest it stores nothing and serves nothing. */
	driver_watch(d);
	driver_kick_always(d, 0);
	driver_settle(d);
	ck_assert_uint_eq(driver_check_dirty(d), 0);
	ck_assert_uint_eq(driver_used_idx(d, 0), n);
	driver_resume(d);
	while (n < 200)
		n = driver_used_idx(d, 0), driver_step(d, NS_PER_MS);
	memcpy(model, driver_mem(d, mem, 200 * 4096), 200 * 4096);
	check_image();
}
END_TEST

/* A disk that does not answer, for which the loop stands still here: no rest, and it goes on. */
START_TEST(no_rest)
{
	struct driver_buf b;
	struct driver_used e;

	up(UINT64_MAX);
	fill(mem, 4096, 9);
	b = (struct driver_buf){mem, 4096, false};
	blk_add(d, &slots, 0, 0, BLK_OUT, 0, &b, 1);
	driver_kick(d, 0);
	driver_run_until(d, d->v->inflight == 1);
	ck_assert_int_eq(virtio_blk_ops.quiesce(&d->v->dev, now_ns() + 20 * NS_PER_MS), -ETIMEDOUT);
	e = driver_wait_used(d, 0);
	ck_assert_uint_eq(e.len, 1);
	memcpy(model, driver_mem(d, mem, 4096), 4096);
	works(10);
	/* The same when it is the sync that does not end. */
	ck_assert_int_eq(virtio_blk_ops.quiesce(&d->v->dev, now_ns() + 20 * NS_PER_MS), -ETIMEDOUT);
	ck_assert(!d->v->stopped);
	works(11);
	ck_assert_int_eq(virtio_blk_ops.quiesce(&d->v->dev, now_ns()), -ETIMEDOUT);
	driver_quiesce(d);
	/* With nothing written since, there is nothing to wait for. */
	ck_assert_int_eq(virtio_blk_ops.quiesce(&d->v->dev, now_ns()), 0);
	driver_resume(d);
	ck_assert_uint_eq(blk_read(d, &slots, 0, mem, 4096), BLK_OK);
	ck_assert_int_eq(virtio_blk_ops.quiesce(&d->v->dev, now_ns()), 0);
	driver_resume(d);
	works(12);
	/* A guest's own flush is as good. */
	ck_assert_uint_eq(blk_flush(d, &slots), BLK_OK);
	ck_assert_int_eq(virtio_blk_ops.quiesce(&d->v->dev, now_ns()), 0);
	driver_resume(d);
	/* And what prepare() began. */
	works(13);
	virtio_blk_ops.prepare(&d->v->dev);
	virtio_blk_ops.prepare(&d->v->dev);
	driver_quiesce(d);
	driver_resume(d);
	works(14);
}
END_TEST

/* Durable already, or not wanted. */
START_TEST(rest_needs_no_sync)
{
	disk.cache = _i ? VM_CACHE_UNSAFE : VM_CACHE_WRITETHROUGH;
	up(UINT64_MAX);
	driver_quiesce(d);
	driver_resume(d);
	works(12);
	ck_assert_uint_eq(blk_range(d, &slots, BLK_ZEROES, 0, 8, 0), BLK_OK);
	virtio_blk_ops.prepare(&d->v->dev);
	ck_assert_int_eq(virtio_blk_ops.quiesce(&d->v->dev, now_ns()), 0);
}
END_TEST

/*
 * From one machine to another with the same image, requests in flight; the lock moves with the
 * guest, and never do two have it.
 */
START_TEST(moves)
{
	struct driver_buf b;
	struct driver *to;
	unsigned n;

	disk.queues = 2;
	up(UINT64_MAX);
	works(20);
	fill(mem, MIB, 21);
	for (unsigned i = 0; i < 100; i++) {
		b = (struct driver_buf){mem + i * 4096ULL, 4096, false};
		blk_add(d, &slots, i, i & 1, BLK_OUT, i * 8, &b, 1);
	}
	memcpy(model, driver_mem(d, mem, 100 * 4096), 100 * 4096);
	driver_kick(d, 0);
	driver_step(d, NS_PER_SEC);
	driver_quiesce(d);
	/* The other queue's kick came too late: the destination must find what is on its ring. */
	driver_kick_always(d, 1);
	driver_settle(d);
	n = driver_used_idx(d, 0);

	to = driver_move(d, &disk);
	ck_assert_int_eq(virtio_blk_ops.acquire(&to->v->dev, &err), -EBUSY);
	ck_assert_ptr_nonnull(strstr(err.text, disk.path));
	virtio_blk_ops.release(&d->v->dev);
	ck_assert_int_eq(virtio_blk_ops.acquire(&to->v->dev, NULL), 0);
	err.text[0] = 0;
	ck_assert_int_eq(virtio_blk_ops.acquire(&d->v->dev, &err), -EBUSY);
	driver_settle(to);
	ck_assert_uint_eq(driver_used_idx(to, 0), n);
	driver_watch(to);
	driver_resume(to);
	for (unsigned q = 0; q < 2; q++) {
		for (unsigned i = 0; i < 50; i++)
			driver_wait_used(to, q);
	}
	driver_check_dirty(to);
	ck_assert_uint_eq(driver_used_idx(d, 0), n);
	for (unsigned i = 0; i < 100; i++)
		ck_assert_uint_eq(blk_status(to, &slots, i), BLK_OK);
	driver_free(d);
	d = to;
	check_image();
	works(22);
}
END_TEST

/* The hand-over fails at the last moment: the source takes its disk again and runs on. */
START_TEST(comes_back)
{
	struct driver *to;

	up(UINT64_MAX);
	works(30);
	to = driver_move(d, &disk);
	virtio_blk_ops.release(&d->v->dev);
	ck_assert_int_eq(virtio_blk_ops.acquire(&to->v->dev, NULL), 0);
	driver_free(to);
	ck_assert_int_eq(virtio_blk_ops.acquire(&d->v->dev, NULL), 0);
	driver_resume(d);
	works(31);
}
END_TEST

START_TEST(shapes)
{
	struct vm_disk other = disk_new("other", SIZE + 512);
	struct driver *to;
	struct sbuf s;

	d = blk_new(&disk);
	driver_save_shape(d, &s);

	to = driver_new(&virtio_blk_ops, &other, RAM_MIN);
	ck_assert_int_eq(driver_load_shape(to, s.data, s.len, &err), -ENOTSUP);
	ck_assert_ptr_nonnull(strstr(err.text, "disk 0: "));
	ck_assert_ptr_nonnull(strstr(err.text, other.path));
	ck_assert_ptr_nonnull(strstr(err.text, "has 4194816 bytes here, 4194304 at the source"));
	driver_free(to);

	other = disk;
	other.readonly = true;
	to = driver_new(&virtio_blk_ops, &other, RAM_MIN);
	err.text[0] = 0;
	ck_assert_int_eq(driver_load_shape(to, s.data, s.len, &err), -ENOTSUP);
	ck_assert_ptr_nonnull(strstr(err.text, "is read-only here, the guest has it writable"));
	driver_free(to);

	other = disk;
	other.queues = 2;
	to = driver_new(&virtio_blk_ops, &other, RAM_MIN);
	ck_assert_int_lt(driver_load_shape(to, s.data, s.len, &err), 0);
	driver_free(to);

	/* Too short: no more than an error. */
	for (size_t len = 0; len < s.len; len++) {
		to = driver_new(&virtio_blk_ops, &disk, RAM_MIN);
		ck_assert_int_eq(driver_load_shape(to, s.data, len, &err), -EPROTO);
		driver_free(to);
	}
	sb_free(&s);
	driver_free(d);

	disk.readonly = true;
	d = blk_new(&disk);
	driver_save_shape(d, &s);
	disk.readonly = false;
	to = driver_new(&virtio_blk_ops, &disk, RAM_MIN);
	err.text[0] = 0;
	ck_assert_int_eq(driver_load_shape(to, s.data, s.len, &err), -ENOTSUP);
	ck_assert_ptr_nonnull(strstr(err.text, "is writable here, the guest has it read-only"));
	driver_free(to);
	sb_free(&s);
}
END_TEST

/* The cache mode is the host's affair: a guest may come from any to any. */
START_TEST(changes_cache)
{
	struct vm_disk other = disk;
	struct driver *to;

	disk.cache = _i & 1 ? VM_CACHE_WRITETHROUGH : VM_CACHE_WRITEBACK;
	other.cache = _i & 1 ? VM_CACHE_WRITEBACK : VM_CACHE_WRITETHROUGH;
	up(UINT64_MAX);
	works(40);
	to = driver_move(d, &other);
	ck_assert_uint_eq(virtio_has(to->v, BLK_F_FLUSH), virtio_has(d->v, BLK_F_FLUSH));
	driver_free(d);
	d = to;
	ck_assert_int_eq(virtio_blk_ops.acquire(&d->v->dev, NULL), 0);
	driver_resume(d);
	works(41);
	ck_assert_uint_eq(blk_flush(d, &slots), BLK_OK);
	/* Durable when it was told so, either way: no flush by this guest is needed. */
	works(42);
	ck_assert_int_eq(virtio_blk_ops.quiesce(&d->v->dev, now_ns()), 0);
}
END_TEST

/* State from a hostile source: refused, or a device that harms nobody. */
START_TEST(hostile_state)
{
	struct driver *to;
	struct sbuf s;
	uint8_t *copy;

	up(UINT64_MAX);
	works(50);
	driver_quiesce(d);
	driver_save(d, &s);
	copy = malloc(s.len);
	for (size_t len = 0; len < s.len; len += 7) {
		to = driver_arriving(d, &disk);
		ck_assert_int_eq(driver_load(to, s.data, len), -EPROTO);
		driver_free(to);
	}
	/* A capacity that is not this disk's: the configuration is behind status and features. */
	memcpy(copy, s.data, s.len);
	ck_assert_mem_eq(copy + 13, &(uint64_t){SECTORS}, 8);
	copy[13 + 3] ^= 1;
	to = driver_arriving(d, &disk);
	ck_assert_int_eq(driver_load(to, copy, s.len), -EPROTO);
	driver_free(to);
	for (size_t i = 0; i < s.len; i++) {
		int ret;

		memcpy(copy, s.data, s.len);
		copy[i] ^= (uint8_t)(1U << (i % 8));
		to = driver_arriving(d, &disk);
		ret = driver_load(to, copy, s.len);
		if (ret == 0) {
			/* No lock, so no I/O: but rings and the guest's memory are gone through. */
			to->v->dev.ops->resume(&to->v->dev);
			driver_settle(to);
		}
		driver_free(to);
	}
	sb_free(&s);
	free(copy);
	check_image();
}
END_TEST

/* What is under way when the machine ends is waited for. */
START_TEST(destroyed_in_flight)
{
	struct driver_buf b;

	for (unsigned round = 0; round < 10; round++) {
		up(UINT64_MAX);
		for (unsigned i = 0; i < 200; i++) {
			b = (struct driver_buf){mem + i * 4096, 4096, i & 1};
			blk_add(d, &slots, i, 0,
				i & 1	 ? BLK_IN
				: i % 20 ? BLK_OUT
					 : BLK_FLUSH,
				i, &b, 1);
		}
		driver_kick(d, 0);
		for (unsigned i = 0; i < round % 4; i++)
			driver_step(d, NS_PER_SEC);
		if (round & 1)
			virtio_blk_ops.prepare(&d->v->dev);
		driver_free(d);
		d = NULL;
	}
}
END_TEST

int main(void)
{
	Suite *s = suite_create("virtio-blk");
	TCase *tc = tcase_create("virtio-blk");
	SRunner *sr;
	int failed;

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_set_timeout(tc, 120);
	tcase_add_test(tc, configuration);
	tcase_add_test(tc, refused_at_init);
	tcase_add_test(tc, identity);
	tcase_add_loop_test(tc, reads_and_writes, 0, 4);
	tcase_add_test(tc, framing);
	tcase_add_test(tc, large);
	tcase_add_loop_test(tc, many, 0, 2);
	tcase_add_test(tc, takes_turns);
	tcase_add_loop_test(tc, caches, 0, 8);
	tcase_add_test(tc, flushes);
	tcase_add_test(tc, ranges);
	tcase_add_test(tc, ranges_not_negotiated);
	tcase_add_test(tc, beyond_the_end);
	tcase_add_test(tc, unknown_types);
	tcase_add_test(tc, readonly);
	tcase_add_test(tc, image_cut_short);
	tcase_add_test(tc, mistakes);
	tcase_add_test(tc, one_head_many_times);
	tcase_add_test(tc, not_acquired);
	tcase_add_test(tc, reset_in_flight);
	tcase_add_test(tc, rest_in_flight);
	tcase_add_test(tc, no_rest);
	tcase_add_loop_test(tc, rest_needs_no_sync, 0, 2);
	tcase_add_test(tc, moves);
	tcase_add_test(tc, comes_back);
	tcase_add_test(tc, shapes);
	tcase_add_loop_test(tc, changes_cache, 0, 2);
	tcase_add_test(tc, hostile_state);
	tcase_add_test(tc, destroyed_in_flight);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
