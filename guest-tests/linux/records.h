/* SPDX-License-Identifier: MIT */
/*
 * What the disk workers leave in their folders, one folder a worker: known to the guest, which
 * writes it, and to tests, which look for it in the image of a guest that is no more.
 *
 * A worker makes writes numbered from 0, and says how many of them are durable. A write is one or
 * more records: 512 bytes, since a sector is what a disk writes as a whole, that tell which worker
 * and write they belong to and are a pure function of that. What a folder holds after a crash:
 *
 *	log	files log.K, RECORDS_LOG writes each, appended to. All from the first file that is
 *		there on; that is the last but one, until the last one has been begun
 *	slots	one file, written in place. In each slot the latest write to it, or a newer one
 *	swap	`state`, of one to RECORDS_PARTS records: made as `state.new`, then renamed. All of
 *		its records are of one write
 *	names	files f.N, one a write, made and later removed: the last RECORDS_NAMES, perhaps
 *		the one before them as well
 */
#ifndef GODWIT_GUEST_LINUX_RECORDS_H
#define GODWIT_GUEST_LINUX_RECORDS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum records_kind {
	RECORDS_IN_LOG,
	RECORDS_IN_SLOTS,
	RECORDS_IN_SWAP,
	RECORDS_IN_NAMES,
	RECORDS_KINDS,
};

/* "log" and so on: names of folders and, with a number behind, of workers. */
extern const char *const records_names[RECORDS_KINDS];

#define RECORD_BYTES 512u
#define RECORD_WORDS (RECORD_BYTES / sizeof(uint64_t))

#define RECORDS_LOG 256u
#define RECORDS_SLOTS 64u
#define RECORDS_PARTS 16u
#define RECORDS_NAMES 6u

/* The slot that write n goes to. */
static inline unsigned records_slot(uint64_t n)
{
	return (unsigned)(n * 29 % RECORDS_SLOTS);
}

/* How many records the state of write n has. */
unsigned records_parts(uint64_t n);

/* Record number `part` of write n (part 0 unless it is a state's). */
void record_make(uint64_t words[RECORD_WORDS], enum records_kind kind, uint64_t n, unsigned part);

/* Whether that is what a worker of this kind writes; *n and *part get what it says it is. */
bool record_sound(const uint64_t words[RECORD_WORDS], enum records_kind kind, uint64_t *n,
		  unsigned *part);

/*
 * Looks through a folder, past the page cache where it can. The first `told` writes were durable.
 * *found gets how many writes are there, without a gap, `told` at least. Returns 0, -EBADMSG with
 * the cause in err if something is missing or is not as it should be, or another -errno with the
 * file in err.
 */
int records_look(int dir_fd, enum records_kind kind, uint64_t told, uint64_t *found, char *err,
		 size_t err_size);

#endif
