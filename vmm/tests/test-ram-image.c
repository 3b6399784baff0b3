/* SPDX-License-Identifier: MIT */
/* Guest RAM in a file and back. */
#include "../ram_image.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "check-main.h"

/* Beyond the hole below 4 GiB, too; next to nothing of it is ever touched. */
#define SIZE (RAM_LOW_MAX + 64 * MIB)

static const uint64_t gpa[] = {0,
			       5 * PAGE_SIZE,
			       40 * MIB,
			       RAM_LOW_MAX - PAGE_SIZE,
			       RAM_HIGH_BASE,
			       RAM_HIGH_BASE + 64 * MIB - PAGE_SIZE};

static char dir[] = "/tmp/godwit-ram-image-XXXXXX", path[64];
static struct errmsg err;

static void begin(void)
{
	err = (struct errmsg){0};
	strcpy(dir + strlen(dir) - 6, "XXXXXX");
	ck_assert_ptr_nonnull(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/ram", dir);
}

static void end(void)
{
	unlink(path);
	ck_assert_msg(rmdir(dir) == 0, "something is left in %s", dir);
}

START_TEST(there_and_back)
{
	uint8_t page[PAGE_SIZE], got[PAGE_SIZE];
	struct ram ram, other;
	struct stat st;
	int fd;

	begin();
	ck_assert_int_eq(ram_init(&ram, SIZE, false, &err), 0);
	for (size_t i = 0; i < ARRAY_SIZE(gpa); i++) {
		memset(page, (int)i + 1, sizeof(page));
		ck_assert_int_eq(ram_write(&ram, gpa[i], page, sizeof(page)), 0);
	}
	ck_assert_msg(ram_image_save(&ram, path, &err) == 0, "%s", err.text);
	ck_assert_int_eq(stat(path, &st), 0);
	ck_assert_uint_eq(st.st_mode & 0777, 0600);
	ck_assert_uint_eq((uint64_t)st.st_size, SIZE);
	ck_assert_msg((uint64_t)st.st_blocks * 512 < 32 * MIB, "holes take disk space");

	fd = open(path, O_RDONLY | O_CLOEXEC);
	ck_assert_int_eq(ram_init(&other, SIZE, false, &err), 0);
	ck_assert_msg(ram_image_load(&other, fd, &err) == 0, "%s", err.text);
	for (size_t i = 0; i < ARRAY_SIZE(gpa); i++) {
		memset(page, (int)i + 1, sizeof(page));
		ck_assert_int_eq(ram_read(&other, gpa[i], got, sizeof(got)), 0);
		ck_assert_int_eq(memcmp(page, got, sizeof(got)), 0);
	}
	ck_assert_uint_le(ram_used(&other), 32 * MIB);
	close(fd);
	ram_destroy(&ram);
	ram_destroy(&other);
	end();
}
END_TEST

START_TEST(another_length)
{
	struct ram ram;
	int fd;

	begin();
	ck_assert_int_eq(ram_init(&ram, RAM_MIN, false, &err), 0);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	ck_assert_int_eq(ftruncate(fd, RAM_MIN - PAGE_SIZE), 0);
	ck_assert_int_eq(ram_image_load(&ram, fd, &err), -EINVAL);
	ck_assert_msg(strstr(err.text, "16773120 bytes, the guest's RAM has 16777216"), "%s",
		      err.text);
	close(fd);
	ram_destroy(&ram);
	end();
}
END_TEST

/*
 * A file system with blocks of less than a page, whose data begins in the middle of one: what
 * lseek() would say there of a file of which only the first page's second half is no hole.
 */
static bool small_blocks;

off_t lseek(int fd, off_t offset, int whence)
{
	const off_t begin = PAGE_SIZE / 2, end = PAGE_SIZE;

	if (!small_blocks || (whence != SEEK_DATA && whence != SEEK_HOLE))
		return (off_t)syscall(SYS_lseek, fd, offset, whence);
	if (whence == SEEK_HOLE)
		return offset >= begin && offset < end ? end : offset;
	if (offset < end)
		return offset < begin ? begin : offset;
	errno = ENXIO;
	return -1;
}

START_TEST(half_a_page)
{
	struct ram ram;
	char got[8];
	int fd;

	begin();
	ck_assert_int_eq(ram_init(&ram, RAM_MIN, false, &err), 0);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	ck_assert_int_eq(ftruncate(fd, RAM_MIN), 0);
	ck_assert_int_eq(pwrite(fd, "content", 8, PAGE_SIZE / 2), 8);
	small_blocks = true;
	ck_assert_msg(ram_image_load(&ram, fd, &err) == 0, "%s", err.text);
	small_blocks = false;
	ck_assert_int_eq(ram_read(&ram, PAGE_SIZE / 2, got, sizeof(got)), 0);
	ck_assert_str_eq(got, "content");
	close(fd);
	ram_destroy(&ram);
	end();
}
END_TEST

/* What is there stays there until all of the new one is. */
START_TEST(nowhere_to_save)
{
	char there[80];
	struct ram ram;
	struct stat st;

	begin();
	ck_assert_int_eq(ram_init(&ram, RAM_MIN, false, &err), 0);
	snprintf(there, sizeof(there), "%s/none/ram", dir);
	ck_assert_int_eq(ram_image_save(&ram, there, &err), -ENOENT);
	err = (struct errmsg){0};
	/* A folder cannot be replaced, and nothing else is left. */
	ck_assert_int_eq(mkdir(path, 0700), 0);
	ck_assert_int_lt(ram_image_save(&ram, path, &err), 0);
	ck_assert_int_eq(stat(path, &st), 0);
	ck_assert(S_ISDIR(st.st_mode));
	rmdir(path);
	ram_destroy(&ram);
	end();
}
END_TEST

START_TEST(changes_hands)
{
	struct ram ram, other = {.fd = -1};

	begin();
	ck_assert_int_eq(ram_init(&ram, RAM_MIN, false, &err), 0);
	ck_assert_int_eq(ram_write(&ram, 4096, "content", 8), 0);
	ram_move(&other, &ram);
	ck_assert_int_eq(ram.fd, -1);
	ram_destroy(&ram);
	ck_assert_str_eq((const char *)ram_page(&other, 1), "content");
	ram_destroy(&other);
	end();
}
END_TEST

int main(void)
{
	const TTest *const tests[] = {there_and_back, another_length, half_a_page, nowhere_to_save,
				      changes_hands};

	return check_main("ram-image", tests, ARRAY_SIZE(tests));
}
