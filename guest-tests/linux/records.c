/* SPDX-License-Identifier: MIT */
#include "records.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "content.h"

#define MAGIC UINT64_C(0x64726f6365727467) /* "gtrecord" */

enum word {
	W_MAGIC,
	W_KIND,
	W_WRITE,
	W_PART,
	W_FILL, /* and all that follow, but for the last */
	W_SUM = RECORD_WORDS - 1,
};

const char *const records_names[RECORDS_KINDS] = {
	[RECORDS_IN_LOG] = "log",
	[RECORDS_IN_SLOTS] = "slots",
	[RECORDS_IN_SWAP] = "swap",
	[RECORDS_IN_NAMES] = "names",
};

unsigned records_parts(uint64_t n)
{
	return 1 + (unsigned)(mix(n) % RECORDS_PARTS);
}

/* Of all words but the last. */
static uint64_t sum_of(const uint64_t words[RECORD_WORDS])
{
	uint64_t sum = 0;

	for (size_t i = 0; i < W_SUM; i++)
		sum = mix(sum ^ words[i]);
	return sum;
}

void record_make(uint64_t words[RECORD_WORDS], enum records_kind kind, uint64_t n, unsigned part)
{
	words[W_MAGIC] = MAGIC;
	words[W_KIND] = kind;
	words[W_WRITE] = n;
	words[W_PART] = part;
	for (size_t i = W_FILL; i < W_SUM; i++)
		words[i] = mix(n * RECORD_WORDS + i) + part;
	words[W_SUM] = sum_of(words);
}

bool record_sound(const uint64_t words[RECORD_WORDS], enum records_kind kind, uint64_t *n,
		  unsigned *part)
{
	uint64_t want[RECORD_WORDS];

	if (words[W_MAGIC] != MAGIC || words[W_KIND] != kind || words[W_PART] >= RECORDS_PARTS)
		return false;
	*n = words[W_WRITE];
	*part = (unsigned)words[W_PART];
	record_make(want, kind, *n, *part);
	return memcmp(want, words, RECORD_BYTES) == 0;
}

/* ---- looking ---- */

struct look {
	int dir;
	enum records_kind kind;
	char *err;
	size_t err_size;
};

static int complain(const struct look *l, int ret, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

static int complain(const struct look *l, int ret, const char *format, ...)
{
	int n = snprintf(l->err, l->err_size, "%s: ", records_names[l->kind]);
	va_list ap;

	if (n < 0 || (size_t)n >= l->err_size)
		return ret;
	va_start(ap, format);
	vsnprintf(l->err + n, l->err_size - (size_t)n, format, ap);
	va_end(ap);
	return ret;
}

/*
 * A whole file of up to max records. *n gets the bytes that it has; what is beyond the end is
 * zeros. A file that is not there is an empty one, and -ENOENT; other errors are in err.
 */
static int read_file(const struct look *l, const char *name, uint64_t *words, size_t max, size_t *n)
{
	size_t size = max * RECORD_BYTES;
	int fd = openat(l->dir, name, O_RDONLY | O_CLOEXEC), ret = 0;

	*n = 0;
	memset(words, 0, size);
	if (fd < 0 && errno == ENOENT)
		return -ENOENT;
	if (fd < 0)
		return complain(l, -errno, "%s: %s", name, strerror(errno));
	/* What is clean is dropped, and comes from the disk again. */
	posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	while (*n < size) {
		ssize_t got = pread(fd, (char *)words + *n, size - *n, (off_t)*n);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			ret = complain(l, -errno, "%s: %s", name, strerror(errno));
		if (got <= 0)
			break;
		*n += (size_t)got;
	}
	close(fd);
	return ret;
}

/* The numbers at the end of file names with this prefix: the least and the greatest. */
struct numbers {
	uint64_t first, last;
	size_t count;
};

static int find_numbers(const struct look *l, const char *prefix, struct numbers *out)
{
	int fd = openat(l->dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *e;

	*out = (struct numbers){.count = 0};
	if (!dir) {
		if (fd >= 0)
			close(fd);
		return complain(l, -EIO, "the folder cannot be read: %s", strerror(errno));
	}
	while ((e = readdir(dir))) {
		char *end;
		uint64_t n;

		if (strncmp(e->d_name, prefix, strlen(prefix)) != 0)
			continue;
		n = strtoull(e->d_name + strlen(prefix), &end, 10);
		if (*end)
			continue;
		if (out->count == 0 || n < out->first)
			out->first = n;
		if (out->count == 0 || n > out->last)
			out->last = n;
		out->count++;
	}
	closedir(dir);
	return 0;
}

static bool is_write(const struct look *l, const uint64_t *words, uint64_t want, unsigned want_part)
{
	uint64_t n;
	unsigned part;

	return record_sound(words, l->kind, &n, &part) && n == want && part == want_part;
}

/* Too few: err says what there is in place of the first that is missing. */
static int missing(const struct look *l, uint64_t found, uint64_t told, const uint64_t *words)
{
	return complain(l, -EBADMSG,
			"write %" PRIu64 " of the %" PRIu64 " that were durable is not there; "
			"in its place are magic=%016" PRIx64 " kind=%" PRIu64 " write=%" PRIu64
			" part=%" PRIu64,
			found, told, words[W_MAGIC], words[W_KIND], words[W_WRITE], words[W_PART]);
}

static int look_log(const struct look *l, uint64_t told, uint64_t *found)
{
	static uint64_t words[RECORDS_LOG * RECORD_WORDS];
	struct numbers files;
	char name[40];
	uint64_t n;
	size_t bytes;
	int ret = find_numbers(l, "log.", &files);

	if (ret)
		return ret;
	n = files.first * RECORDS_LOG;
	for (uint64_t file = files.first;; file++) {
		unsigned i = 0;

		snprintf(name, sizeof(name), "log.%" PRIu64, file);
		ret = read_file(l, name, words, RECORDS_LOG, &bytes);
		if (ret && ret != -ENOENT)
			return ret;
		while (i < RECORDS_LOG && is_write(l, words + i * RECORD_WORDS, n, 0)) {
			i++;
			n++;
		}
		if (i == RECORDS_LOG)
			continue;
		if (n < told)
			return missing(l, n, told, words + i * RECORD_WORDS);
		break;
	}
	if (files.first > 0 && files.first > files.last - 1)
		return complain(l, -EBADMSG, "there is no file before log.%" PRIu64, files.last);
	*found = n;
	return 0;
}

static bool all_zero(const uint64_t *words)
{
	for (size_t i = 0; i < RECORD_WORDS; i++) {
		if (words[i])
			return false;
	}
	return true;
}

static int look_slots(const struct look *l, uint64_t told, uint64_t *found)
{
	static uint64_t words[RECORDS_SLOTS * RECORD_WORDS];
	uint64_t least = UINT64_MAX;
	unsigned at = 0;
	size_t bytes;
	int ret = read_file(l, "slots", words, RECORDS_SLOTS, &bytes);

	if (ret && ret != -ENOENT)
		return ret;
	for (uint64_t first = 0; first < RECORDS_SLOTS; first++) {
		unsigned slot = records_slot(first), part;
		const uint64_t *w = words + slot * RECORD_WORDS;
		uint64_t n, next = first;

		if (!all_zero(w)) {
			/* A sector is written as a whole: half of one is damage. */
			if (!record_sound(w, l->kind, &n, &part) || records_slot(n) != slot)
				return complain(l, -EBADMSG, "slot %u is damaged", slot);
			next = n + RECORDS_SLOTS;
		}
		if (next < least) {
			least = next;
			at = slot;
		}
	}
	if (least < told)
		return missing(l, least, told, words + at * RECORD_WORDS);
	*found = least;
	return 0;
}

static int look_swap(const struct look *l, uint64_t told, uint64_t *found)
{
	static uint64_t words[(RECORDS_PARTS + 1) * RECORD_WORDS];
	unsigned part;
	size_t bytes;
	uint64_t n;
	int ret = read_file(l, "state", words, RECORDS_PARTS + 1, &bytes);

	if (ret == -ENOENT && told == 0) {
		*found = 0;
		return 0;
	}
	if (ret == -ENOENT)
		return complain(l, -EBADMSG, "there is no state, and %" PRIu64 " were durable",
				told);
	if (ret)
		return ret;
	/* It was durable before it got its name: there is no half of it. */
	if (!record_sound(words, l->kind, &n, &part) ||
	    bytes != (size_t)records_parts(n) * RECORD_BYTES)
		return complain(l, -EBADMSG, "the state, of %zu bytes, is damaged", bytes);
	for (unsigned i = 0; i < records_parts(n); i++) {
		if (!is_write(l, words + i * RECORD_WORDS, n, i))
			return complain(l, -EBADMSG,
					"part %u of the state of write %" PRIu64 " is damaged", i,
					n);
	}
	if (n + 1 < told)
		return complain(l, -EBADMSG,
				"the state is that of write %" PRIu64 ", and %" PRIu64
				" were durable",
				n, told);
	*found = n + 1;
	return 0;
}

static int look_names(const struct look *l, uint64_t told, uint64_t *found)
{
	static uint64_t words[2 * RECORD_WORDS];
	struct numbers files;
	char name[40];
	uint64_t n;
	size_t bytes;
	int ret = find_numbers(l, "f.", &files);

	if (ret)
		return ret;
	*found = 0;
	if (!files.count && told == 0)
		return 0;
	n = files.count ? files.last + 1 : 0;
	/* The last one may just have got its name. */
	for (bool last = true; n > 0; last = false, n--) {
		snprintf(name, sizeof(name), "f.%" PRIu64, n - 1);
		ret = read_file(l, name, words, 2, &bytes);
		if (ret && ret != -ENOENT)
			return ret;
		if (bytes == RECORD_BYTES && is_write(l, words, n - 1, 0))
			break;
		if (!last || n <= told)
			return missing(l, n - 1, told, words);
	}
	if (n < told)
		return missing(l, n, told, words);
	for (uint64_t i = n > RECORDS_NAMES ? n - RECORDS_NAMES : 0; i < n; i++) {
		snprintf(name, sizeof(name), "f.%" PRIu64, i);
		ret = read_file(l, name, words, 2, &bytes);
		if (ret && ret != -ENOENT)
			return ret;
		if (bytes != RECORD_BYTES || !is_write(l, words, i, 0))
			return missing(l, i, told, words);
	}
	if (n > RECORDS_NAMES + 1 && files.first < n - RECORDS_NAMES - 1)
		return complain(l, -EBADMSG,
				"f.%" PRIu64 ", which was removed before f.%" PRIu64
				" was made, is there",
				files.first, n - 1);
	*found = n;
	return 0;
}

int records_look(int dir_fd, enum records_kind kind, uint64_t told, uint64_t *found, char *err,
		 size_t err_size)
{
	const struct look l = {.dir = dir_fd, .kind = kind, .err = err, .err_size = err_size};

	switch (kind) {
	case RECORDS_IN_LOG:
		return look_log(&l, told, found);
	case RECORDS_IN_SLOTS:
		return look_slots(&l, told, found);
	case RECORDS_IN_SWAP:
		return look_swap(&l, told, found);
	default:
		return look_names(&l, told, found);
	}
}
