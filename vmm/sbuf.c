/* SPDX-License-Identifier: MIT */
#include "sbuf.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

void sb_init_save(struct sbuf *s)
{
	*s = (struct sbuf){0};
}

void sb_init_load(struct sbuf *s, const void *data, size_t len)
{
	/* A loading sbuf only reads; the cast does not give write access to anyone. */
	*s = (struct sbuf){.data = (uint8_t *)(uintptr_t)data, .len = len, .loading = true};
}

void sb_free(struct sbuf *s)
{
	if (!s->loading)
		free(s->data);
	*s = (struct sbuf){0};
}

int sb_fail(struct sbuf *s, int err)
{
	if (!s->err)
		s->err = err;
	return s->err;
}

/* Room for len more bytes at the end of a saving sbuf. */
static uint8_t *extend(struct sbuf *s, size_t len)
{
	size_t need, cap;
	uint8_t *p;

	if (s->err)
		return NULL;
	if (__builtin_add_overflow(s->len, len, &need)) {
		sb_fail(s, -EOVERFLOW);
		return NULL;
	}
	if (need > s->cap) {
		cap = s->cap ? s->cap : 4096;
		while (cap < need && cap <= SIZE_MAX / 2)
			cap *= 2;
		p = cap < need ? NULL : realloc(s->data, cap);
		if (!p) {
			sb_fail(s, -ENOMEM);
			return NULL;
		}
		s->data = p;
		s->cap = cap;
	}
	p = s->data + s->len;
	s->len = need;
	return p;
}

/* The next len bytes of a loading sbuf. */
static const uint8_t *take(struct sbuf *s, size_t len)
{
	const uint8_t *p;

	if (s->err)
		return NULL;
	if (len > s->len - s->pos) {
		sb_fail(s, -EPROTO);
		return NULL;
	}
	p = s->data + s->pos;
	s->pos += len;
	return p;
}

void sb_bytes(struct sbuf *s, void *buf, size_t len)
{
	if (len == 0)
		return;
	if (s->loading) {
		const uint8_t *p = take(s, len);

		if (p)
			memcpy(buf, p, len);
	} else {
		uint8_t *p = extend(s, len);

		if (p)
			memcpy(p, buf, len);
	}
}

void sb_u8(struct sbuf *s, uint8_t *v)
{
	sb_bytes(s, v, 1);
}

void sb_u16(struct sbuf *s, uint16_t *v)
{
	uint16_t le = htole16(*v);

	sb_bytes(s, &le, sizeof(le));
	if (s->loading)
		*v = le16toh(le);
}

void sb_u32(struct sbuf *s, uint32_t *v)
{
	uint32_t le = htole32(*v);

	sb_bytes(s, &le, sizeof(le));
	if (s->loading)
		*v = le32toh(le);
}

void sb_u64(struct sbuf *s, uint64_t *v)
{
	uint64_t le = htole64(*v);

	sb_bytes(s, &le, sizeof(le));
	if (s->loading)
		*v = le64toh(le);
}

void sb_i64(struct sbuf *s, int64_t *v)
{
	uint64_t u = (uint64_t)*v;

	sb_u64(s, &u);
	if (s->loading)
		*v = (int64_t)u;
}

void sb_bool(struct sbuf *s, bool *v)
{
	uint8_t b = *v;

	sb_u8(s, &b);
	if (!s->loading)
		return;
	if (b > 1)
		sb_fail(s, -EPROTO);
	else
		*v = b;
}

void sb_u32_range(struct sbuf *s, uint32_t *v, uint32_t min, uint32_t max)
{
	uint32_t x = *v;

	sb_u32(s, &x);
	if (s->err)
		return;
	if (x < min || x > max)
		sb_fail(s, -ERANGE);
	else if (s->loading)
		*v = x;
}

void sb_str(struct sbuf *s, char *buf, size_t cap)
{
	uint32_t len = s->loading ? 0 : (uint32_t)strnlen(buf, cap - 1);
	const uint8_t *p;

	sb_u32(s, &len);
	if (!s->loading) {
		sb_bytes(s, buf, len);
		return;
	}
	if (!s->err && len >= cap)
		sb_fail(s, -EMSGSIZE);
	p = take(s, len);
	if (!p)
		return;
	if (memchr(p, 0, len)) {
		sb_fail(s, -EPROTO);
		return;
	}
	memcpy(buf, p, len);
	buf[len] = 0;
}

void sb_end(struct sbuf *s)
{
	if (s->loading && s->pos != s->len)
		sb_fail(s, -EMSGSIZE);
}

static void section_header(struct sbuf *s, struct sb_section *sec, uint32_t *len)
{
	sb_bytes(s, sec->tag, SB_TAG_LEN);
	sb_u32(s, &sec->instance);
	sb_u16(s, &sec->version);
	sb_u16(s, &sec->flags);
	sb_u32(s, len);
}

size_t sb_section_open(struct sbuf *s, const char *tag, uint32_t instance, uint16_t version,
		       uint16_t flags)
{
	struct sb_section sec = {.instance = instance, .version = version, .flags = flags};
	size_t mark = s->len;
	uint32_t len = 0;

	if (strlen(tag) >= SB_TAG_LEN) {
		sb_fail(s, -EINVAL);
		return mark;
	}
	memcpy(sec.tag, tag, strlen(tag));
	section_header(s, &sec, &len);
	s->version = version;
	return mark;
}

void sb_section_close(struct sbuf *s, size_t mark)
{
	size_t body;
	uint32_t le;

	if (s->err)
		return;
	body = s->len - mark - SB_SECTION_HEADER;
	if (body > UINT32_MAX) {
		sb_fail(s, -EOVERFLOW);
		return;
	}
	le = htole32((uint32_t)body);
	memcpy(s->data + mark + SB_SECTION_HEADER - sizeof(le), &le, sizeof(le));
}

bool sb_tag_ok(const char *tag)
{
	size_t len =
		strspn(tag, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_");

	return len > 0 && tag[len] == 0;
}

int sb_section_next(struct sbuf *s, struct sb_section *sec, struct sbuf *body)
{
	uint32_t len = 0;
	const uint8_t *p;

	if (s->err)
		return s->err;
	if (s->pos == s->len)
		return 0;
	*sec = (struct sb_section){0};
	section_header(s, sec, &len);
	p = take(s, len);
	if (!p)
		return s->err;
	if (!sb_tag_ok(sec->tag))
		return sb_fail(s, -EPROTO);
	sb_init_load(body, p, len);
	body->version = sec->version;
	return 1;
}
