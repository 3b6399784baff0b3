/* SPDX-License-Identifier: MIT */
/*
 * Bounded buffer for state: one field list serves save, load and being looked at.
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
 * Looking: a loading sbuf with a view (sb_look()) tells it each field by name, which the macros
 * below take from how the list writes it: sb_u8(s, &u->lcr) is "lcr". Whoever loads so wants to
 * see what there is, and has no machine: a list must not act on what it loads then (sb_looking()),
 * neither ask KVM nor the host for anything.
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

struct sb_view;

struct sbuf {
	uint8_t *data;
	size_t len; /* bytes that are there */
	size_t pos; /* where a loading sbuf reads next */
	size_t cap;
	bool loading;
	uint16_t version;     /* of the section being saved or loaded, for fields that came later */
	int err;	      /* 0, or the first error as -errno */
	struct sb_view *view; /* NULL unless somebody only looks */
};

enum sb_kind {
	SB_NUMBER, /* of things, bytes, an index, a time */
	SB_SIGNED,
	SB_BITS, /* a register, an address, flags: for the reader in hex */
	SB_BOOL,
	SB_BYTES,
	SB_TEXT, /* not NUL-terminated */
};

/* A field as it came. */
struct sb_field {
	enum sb_kind kind;
	uint64_t number;      /* SB_SIGNED: to be cast to int64_t */
	const uint8_t *bytes; /* SB_BYTES, SB_TEXT */
	size_t len;
};

struct sb_view {
	/* Is told each field: "rip", "cs.base", "queue[3].used", "msr[0x174]". */
	void (*field)(struct sb_view *view, const char *name, const struct sb_field *f);
	void *arg;
	/* sbuf's own: the group that is open, and what stands for an index. */
	char prefix[64];
	char index[24];
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
 *
 *	sb_u8, sb_u16, sb_u32, sb_u64(s, uintN_t *v)	a number
 *	sb_x8, sb_x16, sb_x32, sb_x64(s, uintN_t *v)	the same, but shown in hex
 *	sb_i64(s, int64_t *v)
 *	sb_bool(s, bool *v)				loading anything but 0 and 1 is -EPROTO
 *	sb_bytes(s, void *buf, size_t len)
 *	sb_u32_range(s, uint32_t *v, min, max)		-ERANGE when loading another one: for
 *							indices and counts
 *	sb_str(s, char *buf, size_t cap)		NUL-terminated, in a buffer of cap bytes;
 *							-EMSGSIZE when loading one that does not fit
 */
#define sb_u8(s, v) sb_u8_as((s), (v), #v, SB_NUMBER)
#define sb_u16(s, v) sb_u16_as((s), (v), #v, SB_NUMBER)
#define sb_u32(s, v) sb_u32_as((s), (v), #v, SB_NUMBER)
#define sb_u64(s, v) sb_u64_as((s), (v), #v, SB_NUMBER)
#define sb_x8(s, v) sb_u8_as((s), (v), #v, SB_BITS)
#define sb_x16(s, v) sb_u16_as((s), (v), #v, SB_BITS)
#define sb_x32(s, v) sb_u32_as((s), (v), #v, SB_BITS)
#define sb_x64(s, v) sb_u64_as((s), (v), #v, SB_BITS)
#define sb_i64(s, v) sb_i64_as((s), (v), #v)
#define sb_bool(s, v) sb_bool_as((s), (v), #v)
#define sb_bytes(s, buf, len) sb_bytes_as((s), (buf), (len), #buf)
#define sb_u32_range(s, v, min, max) sb_u32_range_as((s), (v), (min), (max), #v)
#define sb_str(s, buf, cap) sb_str_as((s), (buf), (cap), #buf)

/*
 * A register of the kernel's structures: any integer lvalue of 8, 4, 2 or 1 bytes in 64, 32, 16 or
 * 8 bits. The kernel's __u64 is another type than uint64_t, so its address must not be passed to
 * sb_u64().
 */
#define sb_int(s, lvalue, bits)                                                                    \
	do {                                                                                       \
		uint##bits##_t sb_tmp = (lvalue);                                                  \
		sb_u##bits##_as((s), &sb_tmp, #lvalue, SB_BITS);                                   \
		if ((s)->loading)                                                                  \
			(lvalue) = sb_tmp;                                                         \
	} while (0)

/*
 * The functions behind. name: the field as an expression, of which what follows the first "." or
 * "->" is shown, and in it what sb_index() or sb_key() said last for what is in brackets. NULL: the
 * field is not shown.
 */
void sb_u8_as(struct sbuf *s, uint8_t *v, const char *name, enum sb_kind kind);
void sb_u16_as(struct sbuf *s, uint16_t *v, const char *name, enum sb_kind kind);
void sb_u32_as(struct sbuf *s, uint32_t *v, const char *name, enum sb_kind kind);
void sb_u64_as(struct sbuf *s, uint64_t *v, const char *name, enum sb_kind kind);
void sb_i64_as(struct sbuf *s, int64_t *v, const char *name);
void sb_bool_as(struct sbuf *s, bool *v, const char *name);
void sb_bytes_as(struct sbuf *s, void *buf, size_t len, const char *name);
void sb_u32_range_as(struct sbuf *s, uint32_t *v, uint32_t min, uint32_t max, const char *name);
void sb_str_as(struct sbuf *s, char *buf, size_t cap, const char *name);

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

/* ---- names ---- */

/* Makes a loading sbuf tell view its fields from now on; view->field and arg are set. */
void sb_look(struct sbuf *s, struct sb_view *view);

/* Is what is loaded only looked at? Then there is no machine that it is for. */
static inline bool sb_looking(const struct sbuf *s)
{
	return s->view;
}

/* For the fields of an array's element that follow: its index, or what it is known by, in hex. */
void sb_index(struct sbuf *s, uint32_t index);
void sb_key(struct sbuf *s, uint32_t key);

/*
 * The fields that follow belong to a group within the one that is open: "queue[3]". Returns a mark
 * for sb_leave(), which closes it. Nothing of this is on the wire.
 */
size_t sb_enter(struct sbuf *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void sb_leave(struct sbuf *s, size_t mark);

#endif
