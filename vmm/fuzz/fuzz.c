/* SPDX-License-Identifier: MIT */
#include "fuzz.h"

#include <dirent.h>
#include <errno.h>
#include <ftw.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "../log.h"

void __wrap_log_msg(enum log_level level, const char *fmt, ...) PRINTF(2, 3);

/* What is logged is formed, for a bug in that is one, and not said: it would be all there is. */
void __wrap_log_msg(enum log_level level, const char *fmt, ...)
{
	char text[1024];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	if (level <= LOG_WARN && getenv("FUZZ_LOG"))
		fprintf(stderr, "log: %s\n", text);
}

void fuzz_bug(const char *fmt, ...)
{
	va_list ap;

	fprintf(stderr, "BUG: ");
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fprintf(stderr, "\n");
	abort();
}

static char folder[64];

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *at)
{
	(void)st, (void)type, (void)at;
	(void)remove(path);
	return 0;
}

static void remove_folder(void)
{
	nftw(folder, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

const char *fuzz_folder(void)
{
	if (!folder[0]) {
		/* Short: names of sockets are. */
		snprintf(folder, sizeof(folder), "/tmp/godwit-fuzz-XXXXXX");
		fuzz_need(mkdtemp(folder), "%s: %s", folder, strerror(errno));
		atexit(remove_folder);
	}
	return folder;
}

void fuzz_need_marks(const struct ram *ram, const char *when)
{
	static const uint8_t zeros[PAGE_SIZE];
	uint64_t first = 0, n;

	for (; ram_next_populated(ram, &first, &n); first += n) {
		for (uint64_t i = first; i < first + n; i++)
			fuzz_need(ram->own_dirty[i / 64] >> i % 64 & 1 ||
					  !memcmp(ram_page(ram, i), zeros, PAGE_SIZE),
				  "%s: page %llu was stored into and is not marked", when,
				  (unsigned long long)i);
	}
}

unsigned count_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	unsigned n = 0;

	fuzz_need(dir, "/proc/self/fd: %s", strerror(errno));
	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}
