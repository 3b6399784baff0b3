/* SPDX-License-Identifier: MIT */
#include "../disk_image.h"

#include <sys/mman.h>
#include <sys/wait.h>

#include "../util.h"
#include "check-main.h"
#include "disk-fixture.h"

static struct disk_image img, other;
static struct errmsg err;

static void setup(void)
{
	disk_folder_make();
	err.text[0] = 0;
}

static void teardown(void)
{
	disk_folder_remove();
}

static void need_text(const char *part)
{
	ck_assert_msg(strstr(err.text, part) != NULL, "\"%s\" is not in: %s", part, err.text);
}

/* Opening fails like this, and the message names the path and says this. */
static void refused(const struct vm_disk *d, int ret, const char *part)
{
	int got;

	err.text[0] = 0;
	got = disk_image_open(&img, d, &err);
	ck_assert_msg(got == ret, "%s instead of %s", strerror(-got), strerror(-ret));
	ck_assert_int_eq(img.fd, -1);
	need_text(d->path);
	need_text(part);
	err.text[0] = 0;
	ck_assert_int_eq(disk_image_check(d, &err), ret);
	need_text(part);
	err.text[0] = 0;
}

static void opened(const struct vm_disk *d)
{
	int ret = disk_image_open(&img, d, &err);

	ck_assert_msg(ret == 0, "%s", err.text);
}

static bool is_locked(const struct vm_disk *d)
{
	struct flock fl = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 12345, .l_len = 1};
	int fd = open(d->path, O_RDWR | O_CLOEXEC);

	ck_assert_int_eq(fcntl(fd, F_OFD_GETLK, &fl), 0);
	close(fd);
	return fl.l_type != F_UNLCK;
}

START_TEST(opens_files)
{
	struct vm_disk d = disk_new("disk", MIB);

	opened(&d);
	ck_assert_uint_eq(img.size, MIB);
	ck_assert_uint_eq(img.tail, 0);
	ck_assert(!img.block && !img.readonly && !img.locked);
	ck_assert_uint_eq(img.io_align, 1);
	/* io_uring does not wait for files that are O_NONBLOCK. */
	ck_assert_int_eq(fcntl(img.fd, F_GETFL) & (O_NONBLOCK | O_ACCMODE), O_RDWR);
	ck_assert_int_eq(fcntl(img.fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
	/* An image that is only open may be opened, locked and run by somebody else. */
	ck_assert(!is_locked(&d));
	disk_image_close(&img);
	ck_assert_int_eq(img.fd, -1);
	disk_image_close(&img);
	ck_assert_int_eq(disk_image_check(&d, &err), 0);
	ck_assert(!is_locked(&d));
}
END_TEST

START_TEST(rounds_down)
{
	struct vm_disk d = disk_new("disk", MIB + 700);

	opened(&d);
	ck_assert_uint_eq(img.size, MIB + 512);
	ck_assert_uint_eq(img.tail, 188);
	disk_image_close(&img);
	d = disk_new("disk", 512);
	opened(&d);
	ck_assert_uint_eq(img.size, 512);
	disk_image_close(&img);
}
END_TEST

START_TEST(refuses)
{
	struct vm_disk d = disk_at("disk");

	refused(&d, -ENOENT, "create it");
	d = disk_new("disk", 511);
	refused(&d, -EINVAL, "less than a sector");
	d = disk_new("disk", 0);
	refused(&d, -EINVAL, "less than a sector");
	d.readonly = true;
	refused(&d, -EINVAL, "less than a sector");
	d = disk_at(".");
	refused(&d, -EISDIR, "");
	d.readonly = true;
	refused(&d, -EISDIR, "is a directory");
	d = disk_at("fifo");
	ck_assert_int_eq(mkfifo(d.path, 0600), 0);
	refused(&d, -EINVAL, "neither a file nor a block device");
	d.readonly = true;
	refused(&d, -EINVAL, "neither a file nor a block device");
	strcpy(d.path, "/dev/null");
	refused(&d, -EINVAL, "neither a file nor a block device");
	d = disk_at("link");
	ck_assert_int_eq(symlink("link", d.path), 0);
	refused(&d, -ELOOP, strerror(ELOOP));
}
END_TEST

/* Root may write to a file without a permission; a file system that is read-only it may not. */
START_TEST(no_permission)
{
	struct vm_disk d = disk_new("disk", MIB);

	ck_assert_int_eq(chmod(d.path, 0400), 0);
	if (geteuid() == 0) {
		ck_assert_int_eq(chmod(disk_folder, 0755), 0);
		ck_assert_int_eq(chmod(d.path, 0444), 0);
		ck_assert_int_eq(seteuid(65534), 0);
	}
	refused(&d, -EACCES, "add ,ro to the disk");
	d.readonly = true;
	opened(&d);
	ck_assert_int_eq(fcntl(img.fd, F_GETFL) & O_ACCMODE, O_RDONLY);
	disk_image_close(&img);
	ck_assert_int_eq(seteuid(getuid()), 0);
}
END_TEST

START_TEST(direct)
{
	struct vm_disk d = disk_new("disk", MIB);
	void *p;

	d.cache = VM_CACHE_NONE;
	if (disk_image_open(&img, &d, &err)) {
		/* A file system without it says so in words. */
		need_text("use cache=writeback");
		fprintf(stderr, "SKIP direct I/O: %s\n", err.text);
		return;
	}
	ck_assert_int_ne(fcntl(img.fd, F_GETFL) & O_DIRECT, 0);
	ck_assert_uint_ge(img.io_align, 1);
	ck_assert_uint_le(img.io_align, 65536);
	/* What it says is true. */
	ck_assert_int_eq(posix_memalign(&p, 65536, 2 * 65536), 0);
	ck_assert_int_eq(pread(img.fd, (char *)p + img.mem_align, img.io_align, img.io_align),
			 (ssize_t)img.io_align);
	free(p);
	ck_assert_int_eq(disk_image_acquire(&img, &err), 0);
	ck_assert_int_ne(fcntl(img.fd, F_GETFL) & O_DIRECT, 0);
	disk_image_close(&img);
}
END_TEST

/* Where statx does not tell the unit, it is found by trying; a pipe has none. */
START_TEST(direct_without_word)
{
	struct vm_disk d = {.queues = 1, .cache = VM_CACHE_NONE};
	int fd = memfd_create("disk", MFD_CLOEXEC);

	ck_assert_int_eq(ftruncate(fd, MIB), 0);
	snprintf(d.path, sizeof(d.path), "/proc/self/fd/%d", fd);
	if (disk_image_open(&img, &d, &err)) {
		/* tmpfs before Linux 6.6. */
		need_text("use cache=writeback");
	} else {
		ck_assert_uint_ge(img.io_align, 512);
		ck_assert_uint_le(img.io_align, 4096);
		disk_image_close(&img);
	}
	close(fd);
}
END_TEST

START_TEST(locks)
{
	struct vm_disk d = disk_new("disk", MIB);

	opened(&d);
	ck_assert_int_eq(disk_image_open(&other, &d, &err), 0);
	ck_assert_int_eq(disk_image_acquire(&img, &err), 0);
	ck_assert(img.locked && is_locked(&d));
	ck_assert_int_eq(disk_image_acquire(&img, &err), 0);

	ck_assert_int_eq(disk_image_acquire(&other, &err), -EBUSY);
	need_text(d.path);
	need_text("in use by another process");
	need_text("may write to it");
	need_text("stop that one first");
	ck_assert(!other.locked);
	ck_assert_int_ge(other.fd, 0);

	disk_image_release(&img);
	ck_assert(!img.locked && !is_locked(&d));
	ck_assert_int_eq(disk_image_acquire(&other, &err), 0);
	err.text[0] = 0;
	ck_assert_int_eq(disk_image_acquire(&img, &err), -EBUSY);
	disk_image_close(&other);
	ck_assert(!is_locked(&d));
	ck_assert_int_eq(disk_image_acquire(&img, &err), 0);
	disk_image_close(&img);
	ck_assert(!is_locked(&d));
}
END_TEST

START_TEST(readers_share)
{
	struct vm_disk d = disk_new("disk", MIB), ro = d;
	struct disk_image writer;

	ro.readonly = true;
	opened(&ro);
	ck_assert_int_eq(disk_image_open(&other, &ro, &err), 0);
	ck_assert_int_eq(disk_image_open(&writer, &d, &err), 0);
	ck_assert_int_eq(disk_image_acquire(&img, &err), 0);
	ck_assert_int_eq(disk_image_acquire(&other, &err), 0);
	ck_assert_int_eq(disk_image_acquire(&writer, &err), -EBUSY);
	need_text("which reads it");
	disk_image_release(&img);
	disk_image_release(&other);
	ck_assert_int_eq(disk_image_acquire(&writer, &err), 0);
	err.text[0] = 0;
	ck_assert_int_eq(disk_image_acquire(&img, &err), -EBUSY);
	need_text("may write to it");
	disk_image_close(&writer);
	disk_image_close(&other);
	disk_image_close(&img);
}
END_TEST

/* A lock of the old kind tells whose it is. */
START_TEST(names_a_process)
{
	struct vm_disk d = disk_new("disk", MIB);
	int ready[2], go[2], status;
	char byte, text[32];
	pid_t pid;

	ck_assert_int_eq(pipe(ready), 0);
	ck_assert_int_eq(pipe(go), 0);
	pid = fork();
	if (pid == 0) {
		struct flock fl = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
		int fd = open(d.path, O_RDWR);

		close(go[1]);
		if (fcntl(fd, F_SETLK, &fl) == 0)
			(void)!write(ready[1], "x", 1);
		(void)!read(go[0], &byte, 1);
		_exit(0);
	}
	close(ready[1]);
	ck_assert_int_eq(read(ready[0], &byte, 1), 1);
	opened(&d);
	ck_assert_int_eq(disk_image_acquire(&img, &err), -EBUSY);
	snprintf(text, sizeof(text), "process %d;", (int)pid);
	need_text(text);
	close(go[1]);
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert_int_eq(disk_image_acquire(&img, &err), 0);
	disk_image_close(&img);
}
END_TEST

START_TEST(another_size)
{
	struct vm_disk d = disk_new("disk", MIB);

	opened(&d);
	ck_assert_int_eq(truncate(d.path, 2 * MIB), 0);
	ck_assert_int_eq(disk_image_acquire(&img, &err), -ESTALE);
	need_text(d.path);
	need_text("2097152 bytes now, 1048576 when");
	ck_assert(!img.locked && !is_locked(&d));
	ck_assert_int_eq(truncate(d.path, MIB), 0);
	ck_assert_int_eq(disk_image_acquire(&img, &err), 0);
	disk_image_close(&img);
}
END_TEST

/* Before the guest ran here, another file of that name is another disk. */
START_TEST(another_file)
{
	struct vm_disk d = disk_new("disk", MIB), moved = disk_at("moved");

	opened(&d);
	ck_assert_int_eq(rename(d.path, moved.path), 0);
	ck_assert_int_eq(disk_image_acquire(&img, &err), -ENOENT);
	need_text(d.path);
	disk_new("disk", MIB);
	err.text[0] = 0;
	ck_assert_int_eq(disk_image_acquire(&img, &err), -ESTALE);
	need_text("another file");
	ck_assert(!is_locked(&d) && !is_locked(&moved));
	ck_assert_int_eq(rename(moved.path, d.path), 0);
	ck_assert_int_eq(disk_image_acquire(&img, &err), 0);
	ck_assert(is_locked(&d));

	/* Once it did, it keeps its disk: a hand-over that failed must not lose it. */
	ck_assert_int_eq(rename(d.path, moved.path), 0);
	disk_image_release(&img);
	ck_assert_int_eq(disk_image_acquire(&img, &err), 0);
	ck_assert(is_locked(&moved));
	disk_new("disk", MIB);
	disk_image_release(&img);
	ck_assert_int_eq(disk_image_acquire(&img, &err), 0);
	ck_assert(is_locked(&moved) && !is_locked(&d));
	disk_image_close(&img);
}
END_TEST

/* What was written since the guest gave it up is a guest's that ran elsewhere. */
START_TEST(written_since)
{
	struct vm_disk d = disk_new("disk", MIB);
	uint64_t end = now_ns() + 10 * NS_PER_SEC;
	struct stat before, now;
	int fd;

	opened(&d);
	ck_assert_int_eq(disk_image_acquire(&img, &err), 0);
	ck_assert_int_eq(pwrite(img.fd, "own", 3, 0), 3);
	disk_image_release(&img);
	ck_assert_int_eq(disk_image_acquire(&img, &err), 0);
	disk_image_release(&img);

	fd = open(d.path, O_RDWR | O_CLOEXEC);
	ck_assert_int_eq(fstat(fd, &before), 0);
	/* The file system's clock ticks in milliseconds. */
	do {
		ck_assert_int_eq(pwrite(fd, "other", 5, 0), 5);
		ck_assert_int_eq(fstat(fd, &now), 0);
	} while (memcmp(&now.st_mtim, &before.st_mtim, sizeof(now.st_mtim)) == 0 && now_ns() < end);
	close(fd);
	ck_assert_int_eq(disk_image_acquire(&img, &err), -ESTALE);
	need_text(d.path);
	need_text("run elsewhere");
	ck_assert(!img.locked && !is_locked(&d));
	disk_image_close(&img);
}
END_TEST

/* The lock does not go before the last request that used the file: it goes at once. */
START_TEST(release_is_at_once)
{
	struct vm_disk d = disk_new("disk", MIB);
	int copy;

	opened(&d);
	ck_assert_int_eq(disk_image_acquire(&img, &err), 0);
	copy = dup(img.fd);
	disk_image_release(&img);
	ck_assert(!is_locked(&d));
	disk_image_close(&img);
	close(copy);
}
END_TEST

int main(void)
{
	const TTest *const tests[] = {
		opens_files,
		rounds_down,
		refuses,
		no_permission,
		direct,
		direct_without_word,
		locks,
		readers_share,
		names_a_process,
		another_size,
		another_file,
		written_since,
		release_is_at_once,
	};
	Suite *s = suite_create("disk-image");
	TCase *tc = tcase_create("disk-image");
	SRunner *sr;
	int failed;

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_set_timeout(tc, 60);
	for (size_t i = 0; i < ARRAY_SIZE(tests); i++)
		tcase_add_test(tc, tests[i]);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
