/* SPDX-License-Identifier: MIT */
/*
 * Bounded buffer for state: one field list serves save and load.
 *
 * Theory of operation: a field function such as
 *
 *	void uart_fields(struct device *d, struct sbuf *s)
 *	{
 *		sb_u8(s, &u->lcr);
 *		sb_u8(s, &u->mcr);
 *	}
 *
 * appends the fields when s is saving and fills them when s is loading. Everything is fixed-width
 * little-endian. An error (the buffer ends, a value is out of its limits, no memory) is latched in
 * s->err and makes every later call do nothing, so that a field list needs no checks of its own;
 * whoever started the section looks at s->err once. A loading sbuf never reads past its end and
 * never allocates by a length that it did not check.
 *
 * Sections: tag (16 bytes, NUL padded), instance, version, length, then the body. A reader skips
 * a section whose tag it does not know only when the section is marked optional.
 *
 *	 0       16        20         22      24        28
 *	+-------+---------+----------+-------+---------+----------
 *	| tag   | instance| version  | flags | length  | body ...
 *	+-------+---------+----------+-------+---------+----------
 */
#ifndef GODWIT_SBUF_H
#define GODWIT_SBUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SB_TAG_LEN 16
#define SB_SECTION_HEADER 28
#define SB_OPTIONAL 1U /* section flag: a reader that does not know the tag may skip it */

struct sbuf {
	uint8_t *data;
	size_t len; /* bytes that are there */
	size_t pos; /* where a loading sbuf reads next */
	size_t cap;
	bool loading;
	uint16_t version; /* of the section being saved or loaded, for fields that came later */
	int err;	  /* 0, or the first error as -errno */
};

struct sb_section {
	char tag[SB_TAG_LEN + 1];
	uint32_t instance;
	uint16_t version;
	uint16_t flags;
};

/* An empty buffer that grows as fields are saved. sb_free() it. */
void sb_init_save(struct sbuf *s);

/* Loads from data, which stays the caller's and must outlive s. */
void sb_init_load(struct sbuf *s, const void *data, size_t len);

void sb_free(struct sbuf *s);

/* Latches an error (-errno) unless one is latched. Returns s->err. */
int sb_fail(struct sbuf *s, int err);

/*
 * One field each. On an error when loading the field is left as it was; saving only reads it, so
 * that what other threads read may be saved meanwhile.
 */
void sb_u8(struct sbuf *s, uint8_t *v);
void sb_u16(struct sbuf *s, uint16_t *v);
void sb_u32(struct sbuf *s, uint32_t *v);
void sb_u64(struct sbuf *s, uint64_t *v);
void sb_i64(struct sbuf *s, int64_t *v);
void sb_bool(struct sbuf *s, bool *v); /* loading anything but 0 and 1 is -EPROTO */
void sb_bytes(struct sbuf *s, void *buf, size_t len);

/*
 * Any integer lvalue of 8, 4, 2 or 1 bytes in 64, 32, 16 or 8 bits: the kernel's __u64 is another
 * type than uint64_t, so its address must not be passed to sb_u64().
 */
#define sb_int(s, lvalue, bits)                                                                    \
	do {                                                                                       \
		uint##bits##_t sb_tmp = (lvalue);                                                  \
		sb_u##bits((s), &sb_tmp);                                                          \
		if ((s)->loading)                                                                  \
			(lvalue) = sb_tmp;                                                         \
	} while (0)

/* A u32 that must be min..max, -ERANGE when loading another one: for indices and counts. */
void sb_u32_range(struct sbuf *s, uint32_t *v, uint32_t min, uint32_t max);

/* A NUL-terminated string in a buffer of cap bytes; -EMSGSIZE when loading one that does not fit.
 */
void sb_str(struct sbuf *s, char *buf, size_t cap);

/* Fails with -EMSGSIZE unless a loading sbuf is at its end (call after the last field). */
void sb_end(struct sbuf *s);

/*
 * Opens a section when saving; returns a mark for sb_section_close(). Sections do not nest
 * within one sbuf.
 */
size_t sb_section_open(struct sbuf *s, const char *tag, uint32_t instance, uint16_t version,
		       uint16_t flags);
void sb_section_close(struct sbuf *s, size_t mark);

/* Letters, digits, dash and underscore: tags are shown in messages, wherever they came from. */
bool sb_tag_ok(const char *tag);

/*
 * Next section of a loading sbuf: fills *sec and makes *body a loading sbuf of just its bytes.
 * 1 when there was one, 0 at the end, -errno (-EPROTO: malformed).
 */
int sb_section_next(struct sbuf *s, struct sb_section *sec, struct sbuf *body);

#endif
