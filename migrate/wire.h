/* SPDX-License-Identifier: MIT */
/*
 * The migration stream, version 1. Everything is little-endian and fixed-width.
 *
 * Each side first sends a prelude, whose form never changes, so that any two versions can tell
 * each other apart; then frames:
 *
 *	 0       8        10            12      16            24
 *	+-------+---------+-------------+-------+-------------+
 *	| magic | version | min version | zero  | session     |   prelude, 24 bytes
 *	+-------+---------+-------------+-------+-------------+
 *
 *	 0       4      6       8        12     16      24
 *	+-------+------+-------+--------+------+-------+---------------
 *	| magic | type | flags | length | seq  | check | length bytes of payload ...
 *	+-------+------+-------+--------+------+-------+---------------
 *
 * seq counts the frames of one direction from 0, so a lost or repeated one is noticed. check is
 * XXH3-64 over the payload, seeded with that of the frame's first 16 bytes; in a PAGES frame it
 * covers the descriptors, and each page's own 128-bit hash covers the page. A length is checked
 * against the limit of its type before anything is allocated or read.
 *
 * Frames, in the order of a move (S source, D destination):
 *
 *	S HELLO      sections: config, cpuid, options, msrs, devices
 *	D HELLO_OK   the machine is built; or D REFUSE text: nothing has been paused
 *	D HELD       digests of its table, if it holds something from before (held.h)
 *	S JOIN       empty: first on each other connection, after its prelude
 *	S WANT       chunks             D TABLE of each: hashes of the pages that it holds there
 *	S PING t     D PONG t, its own clock        (several: round trip and clock offset)
 *	S PAGES      pages of a round
 *	S ASK        pages              D HAVE hashes of what it holds of them (delta.h)
 *	S ROUND_END n  on each connection           D ROUND_ACK n: all of it is stored
 *	S STATE      sections: see state.h
 *	S PROOF      digests of the source's table and of its state
 *	D READY      digest of the destination's: holds all, applied all, equal
 *	S COMMIT     the point of no return
 *	D RUNNING
 *	either FAIL text, S CANCEL, either IDLE (alive, busy)
 */
#ifndef GODWIT_MIGRATE_WIRE_H
#define GODWIT_MIGRATE_WIRE_H

#include <stdint.h>

#include "../vmm/util.h"
#include "hashes.h"

#define WIRE_MAGIC "GODWITMV"
#define WIRE_VERSION 1U
#define WIRE_MIN_VERSION 1U	     /* the oldest peer that this code can talk to */
#define WIRE_FRAME_MAGIC 0x54574447U /* "GDWT" */

#define WIRE_BATCH_DESCS 128U  /* descriptors of one PAGES frame at most */
#define WIRE_BATCH_PAGES 64U   /* contents of one PAGES frame at most, in pages */
#define WIRE_ASK_PAGES 1024U   /* of one ASK frame at most */
#define WIRE_WANT_CHUNKS 1024U /* of one WANT frame at most */
#define WIRE_TEXT_MAX 512U

struct wire_prelude {
	char magic[8];
	uint16_t version;
	uint16_t min_version;
	uint32_t zero;
	uint64_t session; /* random, the source's; the destination repeats it */
};

struct wire_frame {
	uint32_t magic;
	uint16_t type;	/* enum wire_type */
	uint16_t flags; /* zero; a receiver refuses others */
	uint32_t length;
	uint32_t seq;
	uint64_t check;
};
_Static_assert(sizeof(struct wire_prelude) == 24, "prelude is 24 bytes on the wire");
_Static_assert(sizeof(struct wire_frame) == 24, "frame header is 24 bytes on the wire");

enum wire_type {
	WIRE_HELLO = 1,
	WIRE_HELLO_OK,
	WIRE_REFUSE,
	WIRE_PING,
	WIRE_PONG,
	WIRE_PAGES,
	WIRE_ROUND_END,
	WIRE_ROUND_ACK,
	WIRE_STATE,
	WIRE_PROOF,
	WIRE_READY,
	WIRE_COMMIT,
	WIRE_RUNNING,
	WIRE_FAIL,
	WIRE_CANCEL,
	WIRE_IDLE,
	WIRE_JOIN,
	WIRE_ASK,
	WIRE_HAVE,
	WIRE_HELD,
	WIRE_WANT,
	WIRE_TABLE,
	WIRE_N_TYPES,
};

/* HELLO_OK payload. */
struct wire_hello_ok {
	uint64_t held; /* 0: all pages are zero; else a HELD frame follows */
};

/* Head of a TABLE frame. */
struct wire_table {
	uint32_t chunk;
	uint32_t n; /* hashes that follow: of all the chunk's pages, or 0 if all are zero */
};

/* "HELLO", ...; "?" for a number that is none. */
const char *wire_type_name(unsigned type);

/* Longest payload that a frame of this type may have; 0 also for unknown types. */
uint32_t wire_max_length(unsigned type);

/*
 * PAGES payload: this head, the descriptors, then the contents in the order of the descriptors that
 * have one; or, if `packed` is not 0, so many bytes that are one zstd frame (RFC 8878) of the same.
 */
struct wire_batch {
	uint32_t n_descs;
	uint32_t n_data; /* WIRE_PAGE_DATA, of 4096 bytes each */
	uint32_t packed; /* fewer than the contents are */
	uint32_t delta;	 /* bytes of all WIRE_PAGE_DELTA together */
};
_Static_assert(sizeof(struct wire_batch) == 16, "head of a batch is 16 bytes on the wire");

enum wire_page_kind {
	WIRE_PAGE_DATA = 1,  /* one page, its content follows */
	WIRE_PAGE_ZERO = 2,  /* `count` pages of zeros */
	WIRE_PAGE_HOLE = 3,  /* the same, and the source's host has no memory for them */
	WIRE_PAGE_COPY = 4,  /* one page, the same as page `count` that came before */
	WIRE_PAGE_DELTA = 5, /* one page, a delta of `count` bytes (delta.h) follows */
};

struct wire_desc {
	uint64_t index;	       /* page, see ram.h */
	uint32_t count;	       /* 1 for WIRE_PAGE_DATA; else see the kinds */
	uint32_t kind;	       /* enum wire_page_kind */
	struct page_hash hash; /* of one page's content */
};
_Static_assert(sizeof(struct wire_desc) == 32, "descriptor is 32 bytes on the wire");

/* Bytes of the contents. */
static inline uint32_t wire_batch_unpacked(const struct wire_batch *b)
{
	return b->n_data * (uint32_t)PAGE_SIZE + b->delta;
}

/* The same, as they lie in the frame. */
static inline uint32_t wire_batch_contents(const struct wire_batch *b)
{
	return b->packed ? b->packed : wire_batch_unpacked(b);
}

/* Bytes of one descriptor's content. */
static inline uint32_t wire_desc_content(const struct wire_desc *d)
{
	return d->kind == WIRE_PAGE_DATA    ? (uint32_t)PAGE_SIZE
	       : d->kind == WIRE_PAGE_DELTA ? d->count
					    : 0;
}

/*
 * Checks a received batch against the limits and against npages: counts, kinds, indices, and
 * that `length` is exactly what they make. 0, or -EPROTO with what is wrong in why.
 */
int wire_check_batch(const struct wire_batch *b, const struct wire_desc *descs, uint32_t length,
		     uint64_t npages, const char **why);

/* check of a frame: over its first 16 bytes and the payload (of a PAGES frame: head and
 * descriptors). */
uint64_t wire_check_sum(const struct wire_frame *f, const void *payload, size_t len);

#endif
