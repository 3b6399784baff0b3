/* SPDX-License-Identifier: MIT */
#include "../sbuf.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "../util.h"
#include "check-main.h"

/* A structure with a field of every kind. */
struct all {
	uint8_t a;
	uint16_t b;
	uint32_t c;
	uint64_t d;
	int64_t e;
	bool f, g;
	uint32_t range; /* 3..9 */
	char text[12];
	uint8_t raw[5];
	unsigned long long wide; /* by sb_int, as the kernel's types are */
};

static const struct all sample = {
	.a = 0x12,
	.b = 0x3456,
	.c = 0x789abcde,
	.d = 0x1122334455667788,
	.e = -5,
	.f = true,
	.g = false,
	.range = 9,
	.text = "hello world",
	.raw = {1, 2, 3, 0, 255},
	.wide = 0xfedcba9876543210,
};

static void fields(struct all *v, struct sbuf *s)
{
	sb_u8(s, &v->a);
	sb_u16(s, &v->b);
	sb_u32(s, &v->c);
	sb_u64(s, &v->d);
	sb_i64(s, &v->e);
	sb_bool(s, &v->f);
	sb_bool(s, &v->g);
	sb_u32_range(s, &v->range, 3, 9);
	sb_str(s, v->text, sizeof(v->text));
	sb_bytes(s, v->raw, sizeof(v->raw));
	sb_int(s, v->wide, 64);
}

static void need_equal(const struct all *x, const struct all *y)
{
	ck_assert_uint_eq(x->a, y->a);
	ck_assert_uint_eq(x->b, y->b);
	ck_assert_uint_eq(x->c, y->c);
	ck_assert_uint_eq(x->d, y->d);
	ck_assert_int_eq(x->e, y->e);
	ck_assert(x->f == y->f && x->g == y->g);
	ck_assert_uint_eq(x->range, y->range);
	ck_assert_str_eq(x->text, y->text);
	ck_assert_mem_eq(x->raw, y->raw, sizeof(x->raw));
	ck_assert_uint_eq(x->wide, y->wide);
}

static void save(struct sbuf *s, struct all v)
{
	sb_init_save(s);
	fields(&v, s);
	ck_assert_int_eq(s->err, 0);
	need_equal(&v, &sample);
}

START_TEST(round_trip)
{
	struct all v = {0};
	struct sbuf s, l;

	save(&s, sample);
	sb_init_load(&l, s.data, s.len);
	fields(&v, &l);
	sb_end(&l);
	ck_assert_int_eq(l.err, 0);
	need_equal(&v, &sample);
	sb_free(&s);
}
END_TEST

/* Others may read what is being saved: not even the same value is written. */
START_TEST(saving_only_reads)
{
	struct all *v =
		mmap(NULL, sizeof(*v), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct sbuf s;

	ck_assert_ptr_ne(v, MAP_FAILED);
	*v = sample;
	ck_assert_int_eq(mprotect(v, sizeof(*v), PROT_READ), 0);
	sb_init_save(&s);
	fields(v, &s);
	ck_assert_int_eq(s.err, 0);
	sb_free(&s);
	munmap(v, sizeof(*v));
}
END_TEST

/* The layout is the wire's: it must not change unnoticed. */
START_TEST(layout)
{
	static const uint8_t want[] = {
		0x12, 0x56, 0x34, 0xde, 0xbc, 0x9a, 0x78, 0x88, 0x77, 0x66, 0x55, 0x44,
		0x33, 0x22, 0x11, 0xfb, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1,
		0,    9,    0,	  0,	0,    11,   0,	  0,	0,    'h',  'e',  'l',
		'l',  'o',  ' ',  'w',	'o',  'r',  'l',  'd',	1,    2,    3,	  0,
		255,  0x10, 0x32, 0x54, 0x76, 0x98, 0xba, 0xdc, 0xfe,
	};
	struct sbuf s;

	save(&s, sample);
	ck_assert_uint_eq(s.len, sizeof(want));
	ck_assert_mem_eq(s.data, want, sizeof(want));
	sb_free(&s);
}
END_TEST

/* Cut at every byte: an error, and nothing beyond the cut is touched. */
START_TEST(truncated)
{
	struct sbuf s, l;

	save(&s, sample);
	for (size_t cut = 0; cut < s.len; cut++) {
		struct all v = {.wide = 77};
		uint8_t *exact = malloc(cut + 1);

		/* A block of just this size, so that a sanitizer sees any byte too many. */
		ck_assert_ptr_nonnull(exact);
		memcpy(exact, s.data, cut);
		sb_init_load(&l, exact, cut);
		fields(&v, &l);
		ck_assert_msg(l.err == -EPROTO, "cut at %zu: %d", cut, l.err);
		ck_assert_uint_eq(v.wide, 77);
		free(exact);
	}
	sb_free(&s);
}
END_TEST

START_TEST(too_long)
{
	uint8_t longer[256] = {0};
	struct all v = {0};
	struct sbuf s, l;

	save(&s, sample);
	memcpy(longer, s.data, s.len);
	sb_init_load(&l, longer, s.len + 1);
	fields(&v, &l);
	ck_assert_int_eq(l.err, 0);
	sb_end(&l);
	ck_assert_int_eq(l.err, -EMSGSIZE);
	sb_free(&s);
}
END_TEST

/* Whatever comes: no crash, and no value that its reader ruled out. */
START_TEST(flipped)
{
	struct sbuf s, l;

	save(&s, sample);
	for (size_t bit = 0; bit < s.len * 8; bit++) {
		struct all v = {.range = 5, .text = "old"};

		s.data[bit / 8] ^= (uint8_t)(1U << (bit % 8));
		sb_init_load(&l, s.data, s.len);
		fields(&v, &l);
		sb_end(&l);
		ck_assert(v.range >= 3 && v.range <= 9);
		ck_assert(memchr(v.text, 0, sizeof(v.text)) != NULL);
		s.data[bit / 8] ^= (uint8_t)(1U << (bit % 8));
	}
	sb_free(&s);
}
END_TEST

START_TEST(strings)
{
	static const struct {
		const char *bytes;
		size_t len;
		int err;
	} bad[] = {
		{"\x04\0\0\0four", 8, -EMSGSIZE}, /* four and its NUL take five */
		{"\xff\xff\xff\xff", 4, -EMSGSIZE}, {"\x03\0\0\0ab", 6, -EPROTO},
		{"\x03\0\0\0a\0b", 7, -EPROTO},	    {"\x03\0\0", 3, -EPROTO},
	};
	char buf[4] = "old", unended[4] = {'f', 'o', 'u', 'r'};
	struct sbuf s;

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		sb_init_load(&s, bad[i].bytes, bad[i].len);
		sb_str(&s, buf, sizeof(buf));
		ck_assert_msg(s.err == bad[i].err, "%zu: %d", i, s.err);
		ck_assert_str_eq(buf, "old");
	}
	sb_init_load(&s, "\x03\0\0\0abc", 7);
	sb_str(&s, buf, sizeof(buf));
	ck_assert_int_eq(s.err, 0);
	ck_assert_str_eq(buf, "abc");
	sb_init_load(&s, "\0\0\0\0", 4);
	sb_str(&s, buf, sizeof(buf));
	ck_assert_str_eq(buf, "");
	/* One that its owner forgot to end is not read past its end. */
	sb_init_save(&s);
	sb_str(&s, unended, sizeof(unended));
	ck_assert_uint_eq(s.len, 4 + 3);
	sb_free(&s);
}
END_TEST

START_TEST(errors_latch)
{
	uint8_t one = 1, after = 42;
	struct sbuf s;

	sb_init_load(&s, "\x07\x01", 2);
	ck_assert_int_eq(sb_fail(&s, -EINVAL), -EINVAL);
	ck_assert_int_eq(sb_fail(&s, -EIO), -EINVAL);
	sb_u8(&s, &after);
	ck_assert_uint_eq(after, 42);
	ck_assert_int_eq(s.err, -EINVAL);

	sb_init_save(&s);
	sb_u8(&s, &one);
	sb_fail(&s, -ENOMEM);
	sb_u8(&s, &one);
	ck_assert_uint_eq(s.len, 1);
	sb_free(&s);
}
END_TEST

START_TEST(booleans_and_ranges)
{
	uint32_t v = 5;
	bool b = true;
	struct sbuf s;

	sb_init_load(&s, "\x02", 1);
	sb_bool(&s, &b);
	ck_assert_int_eq(s.err, -EPROTO);
	ck_assert(b);
	for (uint32_t x = 0; x < 8; x++) {
		uint8_t le[4] = {(uint8_t)x};

		v = 5;
		sb_init_load(&s, le, sizeof(le));
		sb_u32_range(&s, &v, 2, 6);
		ck_assert_int_eq(s.err, x < 2 || x > 6 ? -ERANGE : 0);
		ck_assert_uint_eq(v, x < 2 || x > 6 ? 5 : x);
	}
}
END_TEST

/* ---- sections ---- */

static void add_section(struct sbuf *s, const char *tag, uint32_t instance, uint16_t flags,
			uint32_t value)
{
	size_t mark = sb_section_open(s, tag, instance, 7, flags);

	sb_u32(s, &value);
	sb_section_close(s, mark);
}

START_TEST(sections)
{
	struct sb_section sec;
	struct sbuf s, l, body;
	uint32_t v = 0;

	sb_init_save(&s);
	add_section(&s, "first", 3, 0, 11);
	add_section(&s, "fifteen_letters", 0, SB_OPTIONAL, 12);
	sb_section_close(&s, sb_section_open(&s, "empty", 1, 1, 0));
	ck_assert_int_eq(s.err, 0);

	sb_init_load(&l, s.data, s.len);
	ck_assert_int_eq(sb_section_next(&l, &sec, &body), 1);
	ck_assert_str_eq(sec.tag, "first");
	ck_assert(sec.instance == 3 && sec.version == 7 && sec.flags == 0 && body.version == 7);
	sb_u32(&body, &v);
	sb_end(&body);
	ck_assert(v == 11 && body.err == 0);
	/* A reader of one section cannot get into the next. */
	sb_u32(&body, &v);
	ck_assert_int_eq(body.err, -EPROTO);
	ck_assert_int_eq(sb_section_next(&l, &sec, &body), 1);
	ck_assert_str_eq(sec.tag, "fifteen_letters");
	ck_assert_uint_eq(sec.flags, SB_OPTIONAL);
	ck_assert_int_eq(sb_section_next(&l, &sec, &body), 1);
	ck_assert_uint_eq(body.len, 0);
	ck_assert_int_eq(sb_section_next(&l, &sec, &body), 0);
	sb_free(&s);

	sb_init_save(&s);
	sb_section_open(&s, "sixteen_letters_", 0, 1, 0);
	ck_assert_int_eq(s.err, -EINVAL);
	sb_free(&s);
}
END_TEST

START_TEST(sections_truncated)
{
	struct sb_section sec;
	struct sbuf s, l, body;
	size_t one;

	sb_init_save(&s);
	add_section(&s, "one", 0, 0, 1);
	one = s.len;
	add_section(&s, "two", 0, 0, 2);
	for (size_t cut = 0; cut < s.len; cut++) {
		uint8_t *exact = malloc(cut + 1);
		int ret, n = 0;

		ck_assert_ptr_nonnull(exact);
		memcpy(exact, s.data, cut);
		sb_init_load(&l, exact, cut);
		while ((ret = sb_section_next(&l, &sec, &body)) > 0)
			n++;
		ck_assert_int_eq(n, cut >= one ? 1 : 0);
		ck_assert_msg(ret == (cut == 0 || cut == one ? 0 : -EPROTO), "cut at %zu: %d", cut,
			      ret);
		free(exact);
	}
	sb_free(&s);
}
END_TEST

START_TEST(sections_hostile)
{
	struct sb_section sec;
	struct sbuf s, l, body;

	sb_init_save(&s);
	add_section(&s, "x", 0, 0, 1);
	/* A length that ends beyond the buffer, that wraps, a tag without an end, and none. */
	memset(s.data + SB_SECTION_HEADER - 4, 0xff, 4);
	sb_init_load(&l, s.data, s.len);
	ck_assert_int_eq(sb_section_next(&l, &sec, &body), -EPROTO);
	/* And it stays so. */
	ck_assert_int_eq(sb_section_next(&l, &sec, &body), -EPROTO);
	sb_free(&s);

	sb_init_save(&s);
	add_section(&s, "x", 0, 0, 1);
	memset(s.data, 'y', SB_TAG_LEN);
	sb_init_load(&l, s.data, s.len);
	ck_assert_int_eq(sb_section_next(&l, &sec, &body), 1);
	ck_assert_uint_eq(strlen(sec.tag), SB_TAG_LEN);
	memset(s.data, 0, SB_TAG_LEN);
	sb_init_load(&l, s.data, s.len);
	ck_assert_int_eq(sb_section_next(&l, &sec, &body), -EPROTO);
	sb_free(&s);
}
END_TEST

START_TEST(grows)
{
	static uint8_t block[10000];
	struct sbuf s;

	sb_init_save(&s);
	for (unsigned i = 0; i < 100; i++) {
		memset(block, (int)i, sizeof(block));
		sb_bytes(&s, block, sizeof(block));
	}
	ck_assert_int_eq(s.err, 0);
	ck_assert_uint_eq(s.len, 100 * sizeof(block));
	for (unsigned i = 0; i < 100; i++)
		ck_assert_uint_eq(s.data[i * sizeof(block) + 77], i);
	sb_free(&s);
}
END_TEST

/* ---- names ---- */

struct seen {
	char text[1024]; /* "name=value " of each */
};

static void on_field(struct sb_view *view, const char *name, const struct sb_field *f)
{
	struct seen *seen = view->arg;
	size_t at = strlen(seen->text), room = sizeof(seen->text) - at;

	switch (f->kind) {
	case SB_NUMBER:
		snprintf(seen->text + at, room, "%s=%llu ", name, (unsigned long long)f->number);
		break;
	case SB_SIGNED:
		snprintf(seen->text + at, room, "%s=%lld ", name, (long long)f->number);
		break;
	case SB_BITS:
		snprintf(seen->text + at, room, "%s=%#llx ", name, (unsigned long long)f->number);
		break;
	case SB_BOOL:
		snprintf(seen->text + at, room, "%s=%s ", name, f->number ? "yes" : "no");
		break;
	case SB_BYTES:
		snprintf(seen->text + at, room, "%s=%zu@%u ", name, f->len, f->bytes[0]);
		break;
	case SB_TEXT:
		snprintf(seen->text + at, room, "%s='%.*s' ", name, (int)f->len,
			 (const char *)f->bytes);
		break;
	}
}

/* The list that saved and loads tells what there is, and up to where it could be read. */
START_TEST(names)
{
	struct seen seen = {""};
	struct sb_view view = {.field = on_field, .arg = &seen};
	struct all v = {0};
	struct sbuf s, l;

	save(&s, sample);
	sb_init_load(&l, s.data, s.len);
	ck_assert(!sb_looking(&l));
	sb_look(&l, &view);
	ck_assert(sb_looking(&l));
	fields(&v, &l);
	sb_end(&l);
	ck_assert_int_eq(l.err, 0);
	need_equal(&v, &sample);
	ck_assert_str_eq(seen.text,
			 "a=18 b=13398 c=2023406814 d=1234605616436508552 e=-5 f=yes g=no "
			 "range=9 text='hello world' raw=5@1 wide=0xfedcba9876543210 ");

	seen.text[0] = 0;
	sb_init_load(&l, s.data, 5);
	sb_look(&l, &view);
	fields(&v, &l);
	ck_assert_int_eq(l.err, -EPROTO);
	ck_assert_str_eq(seen.text, "a=18 b=13398 ");

	/* A value that is refused is none. */
	seen.text[0] = 0;
	sb_init_load(&l, "\x02", 1);
	sb_look(&l, &view);
	sb_bool(&l, &v.f);
	sb_init_load(&l, "\x02\0\0\0", 4);
	sb_look(&l, &view);
	sb_u32_range(&l, &v.range, 3, 9);
	ck_assert_int_eq(l.err, -ERANGE);
	ck_assert_str_eq(seen.text, "");
	sb_free(&s);
}
END_TEST

/* A machine of groups, arrays and tables; what goes without a name is passed over. */
struct nest {
	struct pair {
		uint8_t lo, hi;
	} pair[2];
	uint16_t reg[3];
	struct {
		uint32_t x;
	} in;
};

static void nest_fields(struct nest *n, struct sbuf *s)
{
	size_t outer = sb_enter(s, "nest"), inner;
	uint8_t count = 2;

	for (unsigned i = 0; i < 2; i++) {
		struct pair *p = &n->pair[i];

		inner = sb_enter(s, "pair[%u]", i);
		sb_u8(s, &p->lo);
		sb_x8(s, &(*p).hi);
		sb_leave(s, inner);
	}
	sb_leave(s, outer);
	for (uint32_t i = 0; i < 3; i++) {
		sb_index(s, i);
		sb_u16(s, &n->reg[i]);
	}
	sb_key(s, 0x174);
	sb_u16_as(s, &n->reg[0], "table[i]", SB_BITS);
	sb_u16_as(s, &n->reg[0], NULL, SB_BITS);
	sb_u16(s, &n->reg[2]);
	sb_x32(s, &n->in.x);
	sb_u8(s, &count);
}

START_TEST(nested_names)
{
	struct nest n = {{{1, 2}, {3, 4}}, {5, 6, 7}, {0xabcd}}, m = {0};
	struct seen seen = {""};
	struct sb_view view = {.field = on_field, .arg = &seen};
	struct sbuf s, l;

	sb_init_save(&s);
	nest_fields(&n, &s);
	ck_assert_int_eq(s.err, 0);
	ck_assert_uint_eq(s.len, 4 + 6 + 6 + 4 + 1);
	sb_init_load(&l, s.data, s.len);
	sb_look(&l, &view);
	nest_fields(&m, &l);
	sb_end(&l);
	ck_assert_int_eq(l.err, 0);
	ck_assert_str_eq(
		seen.text,
		"nest.pair[0].lo=1 nest.pair[0].hi=0x2 "
		"nest.pair[1].lo=3 nest.pair[1].hi=0x4 "
		"reg[0]=5 reg[1]=6 reg[2]=7 table[0x174]=0x5 reg[2]=7 in.x=0xabcd count=2 ");
	/* Names too long for their room end early, and nothing else happens. */
	seen.text[0] = 0;
	sb_init_load(&l, s.data, s.len);
	sb_look(&l, &view);
	for (unsigned i = 0; i < 20; i++)
		sb_enter(&l, "%s", "a_name_of_some_length");
	sb_u8(&l, &m.pair[0].lo);
	sb_leave(&l, 0);
	sb_u8(&l, &m.pair[0].hi);
	ck_assert_int_eq(l.err, 0);
	ck_assert_int_eq(strncmp(seen.text, "a_name_of_some_length.a_name", 28), 0);
	sb_free(&s);
}
END_TEST

int main(void)
{
	const TTest *const tests[] = {
		round_trip,
		saving_only_reads,
		layout,
		truncated,
		too_long,
		flipped,
		strings,
		errors_latch,
		booleans_and_ranges,
		sections,
		sections_truncated,
		sections_hostile,
		grows,
		names,
		nested_names,
	};

	return check_main("sbuf", tests, ARRAY_SIZE(tests));
}
