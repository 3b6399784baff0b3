/* SPDX-License-Identifier: MIT */
/*
 * The disk workers: each writes to files in a folder of its own, waits until the disk has it, and
 * only then counts it as durable. records.h says what they leave.
 *
 * The four kinds are what programs do that must not lose anything: append to a log and change its
 * file from time to time; rewrite in place; replace a file by renaming another over it; make and
 * remove files. So blocks, sizes, directories and the allocation of all three are under way at any
 * time.
 *
 * A worker begins with what is in its folder: it goes on from the last write that is there. The
 * supervisor tells which that is, so whoever knows what was durable before can compare.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "content.h"
#include "records.h"
#include "work.h"

#define LOOK_EVERY 64 /* rounds between looks at all that is there */
#define BATCH_MAX 8

struct writer {
	struct worker *w;
	enum records_kind kind;
	int dir;
	int file; /* the log's last, or the slots; -1: none open */
	uint64_t n;
};

/* ---- steps, each of which must succeed: nobody could go on from half a write ---- */

static int open_file(struct writer *d, const char *name, int flags)
{
	int fd = openat(d->dir, name, flags | O_CLOEXEC, 0600);

	if (fd < 0)
		worker_die(d->w, name);
	return fd;
}

static void write_record(struct writer *d, int fd, uint64_t n, unsigned part, off_t at)
{
	uint64_t words[RECORD_WORDS];
	ssize_t put;

	record_make(words, d->kind, n, part);
	put = pwrite(fd, words, RECORD_BYTES, at);
	if (put >= 0 && put != (ssize_t)RECORD_BYTES)
		errno = ENOSPC;
	if (put != (ssize_t)RECORD_BYTES)
		worker_die(d->w, "write");
}

static void flush(struct writer *d, int fd)
{
	if (fsync(fd) < 0)
		worker_die(d->w, "fsync");
}

static void remove_file(struct writer *d, const char *name)
{
	if (unlinkat(d->dir, name, 0) < 0 && errno != ENOENT)
		worker_die(d->w, name);
}

/* All files before the last but one, from the first on: there are no gaps. */
static void remove_logs(struct writer *d, uint64_t last)
{
	uint64_t first = last;
	char name[40];

	do {
		snprintf(name, sizeof(name), "log.%" PRIu64, first - 1);
	} while (first > 0 && faccessat(d->dir, name, F_OK, 0) == 0 && first--);
	for (; first + 1 < last; first++) {
		snprintf(name, sizeof(name), "log.%" PRIu64, first);
		remove_file(d, name);
	}
}

/* ---- a round of each kind: one fsync, and more where names change. Gives the writes made. ---- */

static unsigned round_log(struct writer *d)
{
	uint64_t file = d->n / RECORDS_LOG, at = d->n % RECORDS_LOG;
	unsigned n = 1 + (unsigned)(mix(d->n) % BATCH_MAX);
	char name[40];

	if (n > RECORDS_LOG - at)
		n = (unsigned)(RECORDS_LOG - at);
	if (at == 0 && d->file >= 0) {
		close(d->file);
		d->file = -1;
	}
	if (d->file < 0) {
		snprintf(name, sizeof(name), "log.%" PRIu64, file);
		d->file = open_file(d, name, O_RDWR | O_CREAT);
		/* What a crash has left behind what is there. */
		if (ftruncate(d->file, (off_t)(at * RECORD_BYTES)) < 0)
			worker_die(d->w, "ftruncate");
	}
	for (unsigned i = 0; i < n; i++)
		write_record(d, d->file, d->n + i, 0, (off_t)((at + i) * RECORD_BYTES));
	flush(d, d->file);
	if (at == 0) {
		flush(d, d->dir);
		remove_logs(d, file);
	}
	return n;
}

static unsigned round_slots(struct writer *d)
{
	unsigned n = 1 + (unsigned)(mix(d->n) % BATCH_MAX);

	if (d->file < 0) {
		d->file = open_file(d, "slots", O_RDWR | O_CREAT);
		if (ftruncate(d->file, RECORDS_SLOTS * RECORD_BYTES) < 0)
			worker_die(d->w, "ftruncate");
		flush(d, d->dir);
	}
	for (unsigned i = 0; i < n; i++)
		write_record(d, d->file, d->n + i, 0,
			     (off_t)(records_slot(d->n + i) * RECORD_BYTES));
	if (fdatasync(d->file) < 0)
		worker_die(d->w, "fdatasync");
	return n;
}

static unsigned round_swap(struct writer *d)
{
	int fd = open_file(d, "state.new", O_WRONLY | O_CREAT | O_TRUNC);

	for (unsigned i = 0; i < records_parts(d->n); i++)
		write_record(d, fd, d->n, i, (off_t)(i * RECORD_BYTES));
	flush(d, fd);
	close(fd);
	if (renameat(d->dir, "state.new", d->dir, "state") < 0)
		worker_die(d->w, "rename");
	flush(d, d->dir);
	return 1;
}

static unsigned round_names(struct writer *d)
{
	char name[40];
	int fd;

	snprintf(name, sizeof(name), "f.%" PRIu64, d->n);
	fd = open_file(d, name, O_WRONLY | O_CREAT | O_TRUNC);
	write_record(d, fd, d->n, 0, 0);
	flush(d, fd);
	close(fd);
	flush(d, d->dir);
	snprintf(name, sizeof(name), "f.%" PRIu64, d->n - RECORDS_NAMES);
	if (d->n >= RECORDS_NAMES)
		remove_file(d, name);
	return 1;
}

/* ---- the worker ---- */

/* All that it has written is there, no more and no less. Gives how many writes that is. */
static uint64_t look(struct worker *w)
{
	struct writer *d = w->data;
	uint64_t found = 0;
	char err[300];

	if (records_look(d->dir, d->kind, d->n, &found, err, sizeof(err)) < 0)
		worker_error(w, "%s", err);
	else if (found != d->n)
		worker_error(w, "%" PRIu64 " writes are there, %" PRIu64 " were made", found, d->n);
	return 0; /* pages */
}

/* The folder, and where to go on in it. */
static void begin(struct writer *d)
{
	const char *name = records_names[d->kind];
	int top = open(d->w->opt->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	char err[300];

	if (top < 0 || (mkdirat(top, name, 0700) < 0 && errno != EEXIST))
		worker_die(d->w, d->w->opt->dir);
	d->dir = openat(top, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (d->dir < 0)
		worker_die(d->w, name);
	flush(d, top);
	close(top);
	if (records_look(d->dir, d->kind, 0, &d->n, err, sizeof(err)) < 0) {
		worker_error(d->w, "%s", err);
		_exit(1);
	}
	/* What the one before us had no time to remove. */
	if (d->kind == RECORDS_IN_LOG && d->n > 0)
		remove_logs(d, (d->n - 1) / RECORDS_LOG);
	if (d->kind == RECORDS_IN_NAMES && d->n > RECORDS_NAMES) {
		snprintf(err, sizeof(err), "f.%" PRIu64, d->n - 1 - RECORDS_NAMES);
		remove_file(d, err);
	}
	atomic_store(&d->w->slot->durable, d->n);
	worker_tell(d->w, MSG_FOUND, d->n);
}

static void work_disk(struct worker *w, enum records_kind kind)
{
	static unsigned (*const rounds[RECORDS_KINDS])(struct writer * d) = {
		[RECORDS_IN_LOG] = round_log,
		[RECORDS_IN_SLOTS] = round_slots,
		[RECORDS_IN_SWAP] = round_swap,
		[RECORDS_IN_NAMES] = round_names,
	};
	struct writer d = {.w = w, .kind = kind, .file = -1};

	begin(&d);
	w->data = &d;
	w->verify = look;
	for (uint64_t round = 1;; round++) {
		worker_turn(w);
		d.n += rounds[kind](&d);
		atomic_store(&w->slot->durable, d.n);
		atomic_store(&w->slot->full, 1);
		if (round % LOOK_EVERY == 0)
			look(w);
		worker_rest(w, w->opt->disk_us);
	}
}

void work_log(struct worker *w)
{
	work_disk(w, RECORDS_IN_LOG);
	_exit(1);
}

void work_slots(struct worker *w)
{
	work_disk(w, RECORDS_IN_SLOTS);
	_exit(1);
}

void work_swap(struct worker *w)
{
	work_disk(w, RECORDS_IN_SWAP);
	_exit(1);
}

void work_names(struct worker *w)
{
	work_disk(w, RECORDS_IN_NAMES);
	_exit(1);
}
