/* SPDX-License-Identifier: MIT */
/*
 * Disks that are block devices of the host: loop devices, of blocks of 512 and of 4096 bytes. Only
 * root can make one.
 */
#include "blk-driver.h"

#include <linux/loop.h>
#include <sys/ioctl.h>

#include "check-main.h"

#define SIZE (8 * MIB)
#define SECTORS (SIZE / 512)

static struct vm_disk disk, backing;
static struct driver *d;
static struct blk_slots slots;
static uint64_t mem;
static struct errmsg err;
static uint8_t model[SIZE + 1];
static int loop_fd = -1;

/* A loop device on the file; it ends with the last who has it open. -1 where that cannot be. */
static int attach(const char *file, uint32_t block, bool readonly, char *path)
{
	int ctl = open("/dev/loop-control", O_RDWR | O_CLOEXEC), fd = -1;
	int back = open(file, (readonly ? O_RDONLY : O_RDWR) | O_CLOEXEC);
	struct loop_config c = {
		.fd = (uint32_t)back,
		.block_size = block,
		.info.lo_flags = LO_FLAGS_AUTOCLEAR | (readonly ? LO_FLAGS_READ_ONLY : 0),
	};

	/* Somebody else may be quicker to take the free one. */
	for (unsigned tries = 0; tries < 20 && ctl >= 0 && back >= 0; tries++) {
		int n = ioctl(ctl, LOOP_CTL_GET_FREE);

		if (n < 0)
			break;
		snprintf(path, VM_PATH_MAX, "/dev/loop%d", n);
		fd = open(path, (readonly ? O_RDONLY : O_RDWR) | O_CLOEXEC);
		if (fd >= 0 && ioctl(fd, LOOP_CONFIGURE, &c) == 0)
			break;
		if (fd >= 0)
			close(fd);
		fd = -1;
		if (errno != EBUSY)
			break;
	}
	if (back >= 0)
		close(back);
	if (ctl >= 0)
		close(ctl);
	return fd;
}

static void setup(void)
{
	disk_folder_make();
	backing = disk_new("disk", SIZE);
	disk_pattern(model, SIZE, 1);
	disk_poke(&backing, 0, model, SIZE);
}

static void teardown(void)
{
	if (d)
		driver_free(d);
	if (loop_fd >= 0)
		close(loop_fd);
	disk_folder_remove();
}

static void make(uint32_t block, bool readonly)
{
	disk = (struct vm_disk){.queues = 1, .discard = true};
	loop_fd = attach(backing.path, block, readonly, disk.path);
	ck_assert_int_ge(loop_fd, 0);
}

static void up(void)
{
	ck_assert_msg(disk_image_check(&disk, &err) == 0, "%s", err.text);
	d = blk_new(&disk);
	driver_up(d, UINT64_MAX);
	slots = blk_slots(d);
	mem = driver_alloc_pages(d, MIB);
}

static void check_device(void)
{
	static uint8_t got[SIZE + 1];
	uint64_t at = 0;

	disk_peek(&disk, 0, got, SIZE);
	while (at < SIZE && got[at] == model[at])
		at++;
	ck_assert_msg(at == SIZE, "byte %llu is %#x, not %#x", (unsigned long long)at, got[at],
		      model[at]);
}

/* Both block sizes, through the cache and past it. */
START_TEST(everything)
{
	const uint32_t block = _i & 1 ? 4096 : 512;
	struct disk_image img;
	uint64_t full;

	make(block, false);
	disk.cache = _i & 2 ? VM_CACHE_NONE : VM_CACHE_WRITEBACK;
	ck_assert_msg(disk_image_open(&img, &disk, &err) == 0, "%s", err.text);
	ck_assert(img.block);
	ck_assert_uint_eq(img.size, SIZE);
	ck_assert_uint_eq(img.discard_align, block);
	ck_assert_uint_eq(img.io_align, _i & 2 ? block : 1);
	disk_image_close(&img);

	up();
	/* The guest's sectors are of 512 bytes, whatever the device's are. */
	ck_assert_uint_eq(virtio_config_read(d->v, 0, 8), SECTORS);
	ck_assert_uint_eq(virtio_config_read(d->v, 20, 4), 512);
	for (unsigned i = 0; i < 60; i++) {
		uint64_t sector = 1 + i * 61, at = mem + (i % 3) * 100;
		uint32_t len = 512 * (1 + i % 20);

		disk_pattern(driver_mem(d, at, len), len, i);
		ck_assert_uint_eq(blk_write(d, &slots, sector, at, len), BLK_OK);
		memcpy(model + sector * 512, driver_mem(d, at, len), len);
		ck_assert_uint_eq(blk_read(d, &slots, sector - 1, mem + 65536 + i, len + 1024),
				  BLK_OK);
		ck_assert_mem_eq(driver_mem(d, mem + 65536 + i, len + 1024),
				 model + (sector - 1) * 512, len + 1024);
	}
	ck_assert_uint_eq(blk_flush(d, &slots), BLK_OK);
	/* Zeroes of parts of blocks, with and without unmapping. */
	for (unsigned i = 0; i < 20; i++) {
		uint64_t sector = 8192 + i * 97;
		uint32_t n = 1 + i * 3 % 40;

		ck_assert_uint_eq(blk_range(d, &slots, BLK_ZEROES, sector, n, i & 1), BLK_OK);
		memset(model + sector * 512, 0, n * 512);
	}
	ck_assert_uint_eq(blk_flush(d, &slots), BLK_OK);
	check_device();
	/* What is discarded comes back as zeros from a file below; parts of blocks stay. */
	full = disk_allocated(&backing);
	ck_assert_uint_eq(blk_range(d, &slots, BLK_DISCARD, 12288, 2048, 0), BLK_OK);
	memset(model + 6 * MIB, 0, MIB);
	ck_assert_uint_eq(blk_range(d, &slots, BLK_DISCARD, 15001, 3, 0), BLK_OK);
	if (block == 512)
		memset(model + 15001 * 512, 0, 3 * 512);
	ck_assert_uint_le(disk_allocated(&backing), full - MIB + 65536);
	driver_quiesce(d);
	check_device();
	driver_resume(d);
	ck_assert_uint_eq(blk_write(d, &slots, SECTORS - 1, mem, 512), BLK_OK);
	ck_assert_uint_eq(blk_write(d, &slots, SECTORS, mem, 512), BLK_IOERR);
}
END_TEST

START_TEST(moves)
{
	struct vm_disk file = disk_new("other", SIZE);
	struct driver *to;

	make(4096, false);
	disk.cache = VM_CACHE_NONE;
	up();
	disk_pattern(driver_mem(d, mem, 4096), 4096, 3);
	ck_assert_uint_eq(blk_write(d, &slots, 3, mem, 4096), BLK_OK);
	to = driver_move(d, &disk);
	ck_assert_int_eq(virtio_blk_ops.acquire(&to->v->dev, &err), -EBUSY);
	virtio_blk_ops.release(&d->v->dev);
	ck_assert_int_eq(virtio_blk_ops.acquire(&to->v->dev, NULL), 0);
	driver_resume(to);
	driver_free(d);
	d = to;
	ck_assert_uint_eq(blk_read(d, &slots, 3, mem + 8192, 4096), BLK_OK);
	ck_assert_mem_eq(driver_mem(d, mem + 8192, 4096), driver_mem(d, mem, 4096), 4096);
	/* From a device to a file, as after a copy: another host's disk may be another kind. */
	file.discard = true;
	disk_peek(&disk, 0, model, SIZE);
	disk_poke(&file, 0, model, SIZE);
	to = driver_move(d, &file);
	ck_assert_int_eq(virtio_blk_ops.acquire(&to->v->dev, NULL), 0);
	driver_resume(to);
	driver_free(d);
	d = to;
	ck_assert_uint_eq(blk_read(d, &slots, 3, mem + 16384, 4096), BLK_OK);
	ck_assert_mem_eq(driver_mem(d, mem + 16384, 4096), driver_mem(d, mem, 4096), 4096);
}
END_TEST

START_TEST(refused)
{
	int fd;

	make(512, false);
	/* As a mount does it. */
	fd = open(disk.path, O_RDWR | O_EXCL | O_CLOEXEC);
	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(disk_image_check(&disk, &err), -EBUSY);
	ck_assert_ptr_nonnull(strstr(err.text, "mounted or held"));
	disk.readonly = true;
	ck_assert_int_eq(disk_image_check(&disk, NULL), 0);
	close(fd);
	disk.readonly = false;
	ck_assert_int_eq(disk_image_check(&disk, NULL), 0);
	close(loop_fd);

	make(512, true);
	err.text[0] = 0;
	ck_assert_int_lt(disk_image_check(&disk, &err), 0);
	ck_assert_ptr_nonnull(strstr(err.text, ",ro"));
	disk.readonly = true;
	up();
	ck_assert_uint_eq(blk_read(d, &slots, 0, mem, 4096), BLK_OK);
	ck_assert_mem_eq(driver_mem(d, mem, 4096), model, 4096);
	ck_assert_uint_eq(blk_write(d, &slots, 0, mem, 4096), BLK_IOERR);
}
END_TEST

/* The last sector is no multiple of a page, nor of the physical block that guests are told of. */
START_TEST(odd_end)
{
	ck_assert_int_eq(truncate(backing.path, SIZE + 512), 0);
	make(512, false);
	disk.cache = VM_CACHE_NONE;
	up();
	ck_assert_uint_eq(virtio_config_read(d->v, 0, 8), SECTORS + 1);
	ck_assert_uint_eq(blk_write(d, &slots, SECTORS, mem, 512), BLK_OK);
	ck_assert_uint_eq(blk_read(d, &slots, SECTORS, mem, 512), BLK_OK);
}
END_TEST

static bool can_attach(void)
{
	char file[] = "/tmp/godwit-disk-XXXXXX", path[VM_PATH_MAX];
	int back = mkstemp(file), fd = -1;

	if (back >= 0 && ftruncate(back, MIB) == 0)
		fd = attach(file, 512, false, path);
	if (fd >= 0)
		close(fd);
	if (back >= 0)
		close(back);
	unlink(file);
	return fd >= 0;
}

int main(void)
{
	Suite *s = suite_create("disk-block");
	TCase *tc = tcase_create("disk-block");
	SRunner *sr;
	int failed;

	if (!can_attach())
		return check_skip("disk-block", "no loop devices for this user");
	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_set_timeout(tc, 60);
	tcase_add_loop_test(tc, everything, 0, 4);
	tcase_add_test(tc, moves);
	tcase_add_test(tc, refused);
	tcase_add_test(tc, odd_end);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
