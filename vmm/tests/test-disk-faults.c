/* SPDX-License-Identifier: MIT */
/*
 * The block device on a disk that hangs or fails, for real: see fuse-file.h. What matters most is
 * that nothing is called durable that is not, and that a guest whose disk hangs neither moves nor
 * ends.
 */
#include "fuse-file.h"

#include "blk-driver.h"
#include "check-main.h"

#define SIZE (4 * MIB)

static struct vm_disk disk;
static struct fuse_file *file;
static struct driver *d;
static struct blk_slots slots;
static uint64_t mem;
static struct errmsg err;

static void setup(void)
{
	const char *why = NULL;

	file = fuse_file_new(SIZE, &why);
	ck_assert_msg(file != NULL, "%s", why);
	disk = (struct vm_disk){.queues = 1};
	strcpy(disk.path, file->path);
}

static void teardown(void)
{
	fuse_file_stall(file, 0);
	if (d)
		driver_free(d);
	fuse_file_free(file);
}

static void up(uint64_t features)
{
	d = blk_new(&disk);
	driver_up(d, features);
	slots = blk_slots(d);
	mem = driver_alloc_pages(d, MIB);
}

static void start_write(unsigned slot, uint64_t sector)
{
	struct driver_buf b = {mem + slot * 4096ULL, 4096, false};

	disk_pattern(driver_mem(d, b.gpa, 4096), 4096, slot + (unsigned)sector);
	blk_add(d, &slots, slot, 0, BLK_OUT, sector, &b, 1);
	driver_kick(d, 0);
}

static void start_flush(unsigned slot)
{
	blk_add(d, &slots, slot, 0, BLK_FLUSH, 0, NULL, 0);
	driver_kick(d, 0);
}

static unsigned end_of(unsigned slot)
{
	driver_wait_used(d, 0);
	return blk_status(d, &slots, slot);
}

static void works(void)
{
	start_write(0, 64);
	ck_assert_uint_eq(end_of(0), BLK_OK);
	ck_assert_mem_eq(file->shared->data + 64 * 512, driver_mem(d, mem, 4096), 4096);
	ck_assert_uint_eq(blk_read(d, &slots, 64, mem + 65536, 4096), BLK_OK);
	ck_assert_mem_eq(driver_mem(d, mem + 65536, 4096), driver_mem(d, mem, 4096), 4096);
}

/* A file that is being synced takes no writes before that is over; reads it does. */
static void reads(void)
{
	ck_assert_uint_eq(blk_read(d, &slots, 64, mem + 65536, 4096), BLK_OK);
	ck_assert_mem_eq(driver_mem(d, mem + 65536, 4096), file->shared->data + 64 * 512, 4096);
}

START_TEST(it_is_a_disk)
{
	disk.cache = _i ? VM_CACHE_NONE : VM_CACHE_WRITEBACK;
	ck_assert_msg(disk_image_check(&disk, &err) == 0, "%s", err.text);
	up(UINT64_MAX);
	works();
	ck_assert_uint_ge(file->shared->unsynced, 1);
	ck_assert_uint_eq(blk_flush(d, &slots), BLK_OK);
	ck_assert_uint_eq(file->shared->unsynced, 0);
	/* It has no way to zero but to write, which it finds out; and none to discard. */
	memset(file->shared->data, 0xee, MIB);
	ck_assert_uint_eq(blk_range(d, &slots, BLK_ZEROES, 3, 300, 0), BLK_OK);
	for (unsigned i = 0; i < MIB; i++) {
		if ((file->shared->data[i] == 0) != (i >= 3 * 512 && i < 303 * 512))
			ck_abort_msg("byte %u is %#x", i, file->shared->data[i]);
	}
	driver_free(d);
	disk.discard = true;
	up(UINT64_MAX);
	ck_assert_uint_eq(blk_range(d, &slots, BLK_DISCARD, 0, 8, 0), BLK_UNSUPP);
	ck_assert_uint_eq(blk_range(d, &slots, BLK_DISCARD, 0, 8, 0), BLK_UNSUPP);
	ck_assert_uint_eq(blk_range(d, &slots, BLK_ZEROES, 8, 8, 1), BLK_OK);
}
END_TEST

/* ---- durability ---- */

START_TEST(written_through)
{
	/* Asked for, or because the driver knows no flush. */
	disk.cache = _i ? VM_CACHE_WRITETHROUGH : VM_CACHE_WRITEBACK;
	up(_i ? UINT64_MAX : UINT64_MAX & ~BLK_F_FLUSH);
	for (unsigned i = 0; i < 10; i++)
		works();
	ck_assert_uint_eq(file->shared->dsync_writes, file->shared->writes);
	ck_assert_uint_ge(file->shared->writes, 10);
}
END_TEST

START_TEST(not_written_through)
{
	static const uint8_t modes[] = {VM_CACHE_WRITEBACK, VM_CACHE_NONE, VM_CACHE_UNSAFE};

	disk.cache = modes[_i];
	/* Not even to a driver that knows no flush, if that is how it is wanted. */
	up(disk.cache == VM_CACHE_UNSAFE ? UINT64_MAX & ~BLK_F_FLUSH : UINT64_MAX);
	works();
	ck_assert_uint_eq(file->shared->dsync_writes, 0);
	ck_assert_uint_eq(file->shared->syncs, 0);
	ck_assert_uint_eq(blk_flush(d, &slots), BLK_OK);
	ck_assert_uint_eq(file->shared->syncs, disk.cache == VM_CACHE_UNSAFE ? 0 : 1);
}
END_TEST

/* A flush is for what was written before it, and is over only when that is durable. */
START_TEST(flush_waits)
{
	up(UINT64_MAX);
	fuse_file_stall(file, FUSE_STALL_SYNC);
	start_write(0, 0);
	ck_assert_uint_eq(end_of(0), BLK_OK);
	start_flush(1);
	driver_run_until(d, file->shared->stalled == 1);
	reads();
	/* Two more flushes: one sync for both, after this one. */
	start_flush(2);
	start_flush(3);
	driver_settle(d);
	ck_assert_uint_eq(file->shared->stalled, 1);
	for (unsigned i = 1; i < 4; i++)
		ck_assert_uint_eq(blk_status(d, &slots, i), BLK_PENDING);
	fuse_file_stall(file, 0);
	for (unsigned i = 1; i < 4; i++)
		driver_wait_used(d, 0);
	for (unsigned i = 1; i < 4; i++)
		ck_assert_uint_eq(blk_status(d, &slots, i), BLK_OK);
	ck_assert_uint_eq(file->shared->syncs, 2);
	ck_assert_uint_eq(file->shared->unsynced, 0);
	/* Nothing new: nothing to do. */
	ck_assert_uint_eq(blk_flush(d, &slots), BLK_OK);
	ck_assert_uint_eq(file->shared->syncs, 2);
}
END_TEST

START_TEST(flush_fails)
{
	up(UINT64_MAX);
	file->shared->error[FUSE_FAIL_SYNC] = EIO;
	works();
	ck_assert_uint_eq(blk_flush(d, &slots), BLK_IOERR);
	/* What is not durable stays so, however often it is asked for. */
	ck_assert_uint_eq(blk_flush(d, &slots), BLK_IOERR);
	ck_assert_int_eq(driver_quiesce_within(d, DRIVER_WAIT_NS), -EIO);
	file->shared->error[FUSE_FAIL_SYNC] = 0;
	/* That last one failed unseen by the guest, which is told now. */
	ck_assert_uint_eq(blk_flush(d, &slots), BLK_IOERR);
	ck_assert_uint_eq(blk_flush(d, &slots), BLK_OK);
	ck_assert_uint_eq(file->shared->unsynced, 0);
	driver_quiesce(d);
}
END_TEST

/*
 * Those that wait while a sync fails may be for data whose loss the kernel has told that one, and
 * will tell nobody again.
 */
START_TEST(failure_is_for_all_who_wait)
{
	up(UINT64_MAX);
	works();
	fuse_file_stall(file, FUSE_STALL_SYNC);
	file->shared->error[FUSE_FAIL_SYNC] = EIO;
	start_flush(1);
	driver_run_until(d, file->shared->stalled == 1);
	start_flush(2);
	driver_settle(d);
	fuse_file_stall(file, 0);
	driver_wait_used(d, 0);
	driver_wait_used(d, 0);
	ck_assert_uint_eq(blk_status(d, &slots, 1), BLK_IOERR);
	ck_assert_uint_eq(blk_status(d, &slots, 2), BLK_IOERR);
	ck_assert_uint_eq(file->shared->syncs, 1);
	file->shared->error[FUSE_FAIL_SYNC] = 0;
	ck_assert_uint_eq(blk_flush(d, &slots), BLK_OK);
}
END_TEST

/* A sync of the migration's own that fails is the guest's to hear of; until it has, it stays. */
START_TEST(prepared_sync_fails)
{
	up(UINT64_MAX);
	works();
	file->shared->error[FUSE_FAIL_SYNC] = EIO;
	virtio_blk_ops.prepare(&d->v->dev);
	driver_run_until(d, file->shared->syncs == 1);
	driver_settle(d);
	file->shared->error[FUSE_FAIL_SYNC] = 0;
	ck_assert_int_eq(driver_quiesce_within(d, DRIVER_WAIT_NS), -EIO);
	ck_assert(!d->v->stopped);
	works();
	ck_assert_uint_eq(blk_flush(d, &slots), BLK_IOERR);
	driver_quiesce(d);
	ck_assert_uint_eq(file->shared->unsynced, 0);
}
END_TEST

/* ---- rest ---- */

START_TEST(rest_is_durable)
{
	disk.cache = _i ? VM_CACHE_NONE : VM_CACHE_WRITEBACK;
	up(UINT64_MAX);
	works();
	ck_assert_uint_ge(file->shared->unsynced, 1);
	driver_quiesce(d);
	ck_assert_uint_eq(file->shared->unsynced, 0);
	driver_resume(d);
	works();
	virtio_blk_ops.prepare(&d->v->dev);
	driver_run_until(d, file->shared->syncs == 2);
	driver_settle(d);
	ck_assert_uint_eq(file->shared->unsynced, 0);
	/* Prepared: the pause has nothing left to do. */
	driver_quiesce(d);
	ck_assert_uint_eq(file->shared->syncs, 2);
	driver_resume(d);
	/* One at a time, and one for what was written since it began. */
	works();
	fuse_file_stall(file, FUSE_STALL_SYNC);
	virtio_blk_ops.prepare(&d->v->dev);
	driver_run_until(d, file->shared->stalled == 1);
	start_write(5, 128);
	virtio_blk_ops.prepare(&d->v->dev);
	virtio_blk_ops.prepare(&d->v->dev);
	driver_settle(d);
	ck_assert_uint_eq(file->shared->stalled, 1);
	fuse_file_stall(file, 0);
	driver_quiesce(d);
	ck_assert_uint_eq(end_of(5), BLK_OK);
	ck_assert_uint_eq(file->shared->unsynced, 0);
	ck_assert_uint_eq(file->shared->syncs, 4);
}
END_TEST

/*
 * A sync answers for what was written before it began, and for no more: a write that is over only
 * while it is under way needs another.
 */
START_TEST(sync_covers_what_was_before)
{
	up(UINT64_MAX);
	works();
	fuse_file_stall(file, FUSE_STALL_WRITE | FUSE_STALL_SYNC);
	start_write(1, 0);
	driver_run_until(d, file->shared->stalled == 1);
	if (_i)
		virtio_blk_ops.prepare(&d->v->dev);
	else
		start_flush(2);
	driver_settle(d);
	fuse_file_stall(file, FUSE_STALL_SYNC);
	driver_wait_used(d, 0);
	ck_assert_uint_eq(blk_status(d, &slots, 1), BLK_OK);
	driver_run_until(d, file->shared->stalled == 1);
	if (_i) {
		/* Asked for again, there will be one more. */
		virtio_blk_ops.prepare(&d->v->dev);
		driver_settle(d);
		fuse_file_stall(file, 0);
		driver_run_until(d, file->shared->syncs == 2);
		driver_settle(d);
	} else {
		fuse_file_stall(file, 0);
		ck_assert_uint_eq(end_of(2), BLK_OK);
		ck_assert_uint_eq(file->shared->syncs, 1);
	}
	driver_quiesce(d);
	ck_assert_uint_eq(file->shared->syncs, 2);
}
END_TEST

/* A write, a read, or a sync that hangs: no rest; the guest goes on, and so does the disk later. */
START_TEST(hangs)
{
	static const unsigned what[] = {FUSE_STALL_WRITE, FUSE_STALL_READ, FUSE_STALL_SYNC};
	struct driver_buf b;

	up(UINT64_MAX);
	works();
	fuse_file_stall(file, what[_i]);
	b = (struct driver_buf){mem + 65536, 4096, true};
	if (what[_i] == FUSE_STALL_WRITE)
		start_write(1, 128);
	else if (what[_i] == FUSE_STALL_READ)
		blk_add(d, &slots, 1, 0, BLK_IN, 128, &b, 1);
	else
		start_flush(1);
	driver_kick(d, 0);
	driver_run_until(d, file->shared->stalled == 1);
	for (unsigned i = 0; i < 3; i++) {
		ck_assert_int_eq(driver_quiesce_within(d, 50 * NS_PER_MS), -ETIMEDOUT);
		ck_assert(!d->v->stopped);
		/* GET_ID needs no disk: the guest is served. */
		b = (struct driver_buf){mem + 131072, 20, true};
		ck_assert_uint_eq(blk_do(d, &slots, BLK_GET_ID, 0, &b, 1, NULL), BLK_OK);
		ck_assert_uint_eq(blk_status(d, &slots, 1), BLK_PENDING);
	}
	fuse_file_stall(file, 0);
	ck_assert_uint_eq(end_of(1), BLK_OK);
	works();
	driver_quiesce(d);
	ck_assert_uint_eq(file->shared->unsynced, 0);
	driver_resume(d);
	works();
}
END_TEST

/* Nothing hangs but the sync at the pause itself: its time is up, and the guest is served again. */
START_TEST(last_sync_hangs)
{
	up(UINT64_MAX);
	works();
	fuse_file_stall(file, FUSE_STALL_SYNC);
	ck_assert_int_eq(driver_quiesce_within(d, 50 * NS_PER_MS), -ETIMEDOUT);
	ck_assert(!d->v->stopped);
	reads();
	start_write(5, 128);
	/* The next tries wait for the same sync, and for the write that waits for it. */
	ck_assert_int_eq(driver_quiesce_within(d, 50 * NS_PER_MS), -ETIMEDOUT);
	ck_assert_uint_eq(file->shared->stalled, 1);
	reads();
	fuse_file_stall(file, 0);
	ck_assert_uint_eq(end_of(5), BLK_OK);
	driver_quiesce(d);
	ck_assert_uint_eq(file->shared->unsynced, 0);
	driver_resume(d);
	works();
}
END_TEST

static void *reset_thread(void *arg)
{
	atomic_bool *done = arg;

	virtio_set_status(d->v, 0);
	*done = true;
	return NULL;
}

static bool resetting(void)
{
	bool yes;

	pthread_mutex_lock(&d->v->lock);
	yes = d->v->resetting;
	pthread_mutex_unlock(&d->v->lock);
	return yes;
}

/* A driver that resets its device waits until the read that hangs has stored into its memory. */
START_TEST(reset_waits)
{
	struct driver_buf b;
	atomic_bool done = false;
	pthread_t thread;

	up(UINT64_MAX);
	memset(file->shared->data, 0x77, SIZE);
	b = (struct driver_buf){mem, 65536, true};
	fuse_file_stall(file, FUSE_STALL_READ);
	blk_add(d, &slots, 1, 0, BLK_IN, 0, &b, 1);
	driver_kick(d, 0);
	driver_run_until(d, file->shared->stalled == 1);
	ck_assert_int_eq(pthread_create(&thread, NULL, reset_thread, &done), 0);
	driver_run_until(d, resetting());
	driver_settle(d);
	ck_assert(!done);
	fuse_file_stall(file, 0);
	driver_run_until(d, done);
	pthread_join(thread, NULL);
	ck_assert_uint_eq(*(uint8_t *)driver_mem(d, mem + 65535, 1), 0x77);
	memset(driver_mem(d, mem, 65536), 0, 65536);
	driver_watch(d);
	driver_settle(d);
	ck_assert_uint_eq(driver_check_dirty(d), 0);
	driver_up(d, UINT64_MAX);
	works();
}
END_TEST

static pid_t main_tid;

/* Is the main thread waiting for something? */
static bool main_sleeps(void)
{
	char path[64], text[256];
	const char *end;
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "/proc/self/task/%d/stat", (int)main_tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? 0 : read(fd, text, sizeof(text) - 1);
	if (fd >= 0)
		close(fd);
	text[MAX(n, 0)] = 0;
	end = strrchr(text, ')');
	return end && strncmp(end, ") S", 3) == 0;
}

/* Lets the disk answer once the main thread has come to a stop. */
static void *let_go_thread(void *arg)
{
	uint64_t deadline = now_ns() + DRIVER_WAIT_NS;
	unsigned asleep = 0;

	(void)arg;
	while (asleep < 20 && now_ns() < deadline) {
		asleep = main_sleeps() ? asleep + 1 : 0;
		poll(NULL, 0, 1);
	}
	fuse_file_stall(file, 0);
	return NULL;
}

/* Memory that a hanging read, or what waits for a hanging sync, may still use is not freed. */
START_TEST(destroy_waits)
{
	struct driver_buf b;
	pthread_t thread;

	up(UINT64_MAX);
	works();
	main_tid = gettid();
	b = (struct driver_buf){mem, 65536, true};
	fuse_file_stall(file, _i ? FUSE_STALL_SYNC : FUSE_STALL_READ);
	if (_i)
		start_flush(2);
	else
		blk_add(d, &slots, 1, 0, BLK_IN, 0, &b, 1);
	driver_kick(d, 0);
	driver_run_until(d, file->shared->stalled == 1);
	start_flush(3);
	driver_settle(d);
	ck_assert_int_eq(pthread_create(&thread, NULL, let_go_thread, NULL), 0);
	driver_free(d);
	d = NULL;
	/* It was the disk's answer that ended the wait, not the other way round. */
	ck_assert_uint_eq(file->shared->stall, 0);
	pthread_join(thread, NULL);
}
END_TEST

/* ---- errors ---- */

START_TEST(told_of_errors)
{
	static const int errors[] = {EIO, ENOSPC, EDQUOT, ENOMEM, ESTALE};

	up(UINT64_MAX);
	for (unsigned i = 0; i < ARRAY_SIZE(errors); i++) {
		file->shared->error[FUSE_FAIL_WRITE] = errors[i];
		start_write(1, 0);
		ck_assert_uint_eq(end_of(1), BLK_IOERR);
		ck_assert_uint_eq(blk_range(d, &slots, BLK_ZEROES, 0, 8, 0), BLK_IOERR);
		file->shared->error[FUSE_FAIL_WRITE] = 0;
		file->shared->error[FUSE_FAIL_READ] = errors[i];
		ck_assert_uint_eq(blk_read(d, &slots, 0, mem, 4096), BLK_IOERR);
		file->shared->error[FUSE_FAIL_READ] = 0;
		works();
	}
	ck_assert(!driver_needs_reset(d));
	driver_quiesce(d);
}
END_TEST

/* The file system goes away altogether. */
START_TEST(gone)
{
	up(UINT64_MAX);
	works();
	fuse_file_stall(file, FUSE_STALL_WRITE);
	start_write(1, 0);
	driver_run_until(d, file->shared->stalled == 1);
	kill(file->server, SIGKILL);
	ck_assert_uint_eq(end_of(1), BLK_IOERR);
	ck_assert_uint_eq(blk_read(d, &slots, 0, mem, 4096), BLK_IOERR);
	ck_assert_uint_eq(blk_flush(d, &slots), BLK_IOERR);
	ck_assert_int_lt(driver_quiesce_within(d, DRIVER_WAIT_NS), 0);
	ck_assert(!d->v->stopped);
}
END_TEST

/* May this host's user do it at all? In a process of its own, for the namespaces. */
static const char *probe(void)
{
	static char text[128];
	int fds[2];
	ssize_t n;

	if (pipe(fds))
		return "no pipe";
	if (fork() == 0) {
		const char *why = NULL;
		char path[] = "/tmp/godwit-fuse-XXXXXX";
		int fd = mkstemp(path);

		if (fuse_mount(path, &why) < 0)
			(void)!write(fds[1], why, strlen(why));
		else
			umount2(path, MNT_DETACH);
		close(fd);
		unlink(path);
		_exit(0);
	}
	close(fds[1]);
	n = read(fds[0], text, sizeof(text) - 1);
	close(fds[0]);
	wait(NULL);
	return n > 0 ? text : NULL;
}

int main(void)
{
	const char *why = probe();
	Suite *s = suite_create("disk-faults");
	TCase *tc = tcase_create("disk-faults");
	SRunner *sr;
	int failed;

	if (why)
		return check_skip("disk-faults", why);
	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_set_timeout(tc, 50);
	tcase_add_loop_test(tc, it_is_a_disk, 0, 2);
	tcase_add_loop_test(tc, written_through, 0, 2);
	tcase_add_loop_test(tc, not_written_through, 0, 3);
	tcase_add_test(tc, flush_waits);
	tcase_add_test(tc, flush_fails);
	tcase_add_test(tc, failure_is_for_all_who_wait);
	tcase_add_test(tc, prepared_sync_fails);
	tcase_add_loop_test(tc, rest_is_durable, 0, 2);
	tcase_add_loop_test(tc, sync_covers_what_was_before, 0, 2);
	tcase_add_loop_test(tc, hangs, 0, 3);
	tcase_add_test(tc, last_sync_hangs);
	tcase_add_test(tc, reset_waits);
	tcase_add_loop_test(tc, destroy_waits, 0, 2);
	tcase_add_test(tc, told_of_errors);
	tcase_add_test(tc, gone);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
