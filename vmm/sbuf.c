/* SPDX-License-Identifier: MIT */
#include "sbuf.h"

#include <endian.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
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

/* ---- names ---- */

/* "&u->lcr" is lcr, "io->redirtbl[i].bits" is redirtbl[7].bits. */
static void shown_name(const struct sb_view *view, const char *name, char *out, size_t size)
{
	size_t dot = strcspn(name, "."), arrow = strcspn(name, "-"), first, open, close;

	first = dot < arrow ? dot : arrow;
	if (name[first] == '.')
		name += first + 1;
	else if (name[first] && name[first + 1] == '>')
		name += first + 2;
	name += strspn(name, "&(*");
	open = strcspn(name, "[");
	close = strcspn(name, "]");
	if (name[open] && name[close] && open < close &&
	    (name[open + 1] < '0' || name[open + 1] > '9'))
		snprintf(out, size, "%s%.*s[%s%s", view->prefix, (int)open, name, view->index,
			 name + close);
	else
		snprintf(out, size, "%s%s", view->prefix, name);
}

/* A field was loaded. */
static void tell(struct sbuf *s, const char *name, struct sb_field f)
{
	char shown[sizeof(s->view->prefix) + 128];

	if (!s->view || s->err || !name)
		return;
	shown_name(s->view, name, shown, sizeof(shown));
	s->view->field(s->view, shown, &f);
}

static void tell_number(struct sbuf *s, const char *name, enum sb_kind kind, uint64_t number)
{
	tell(s, name, (struct sb_field){.kind = kind, .number = number});
}

static void tell_bytes(struct sbuf *s, const char *name, enum sb_kind kind, const void *bytes,
		       size_t len)
{
	tell(s, name, (struct sb_field){.kind = kind, .bytes = bytes, .len = len});
}

void sb_look(struct sbuf *s, struct sb_view *view)
{
	view->prefix[0] = view->index[0] = 0;
	s->view = view;
}

void sb_index(struct sbuf *s, uint32_t index)
{
	if (s->view)
		snprintf(s->view->index, sizeof(s->view->index), "%u", index);
}

void sb_key(struct sbuf *s, uint32_t key)
{
	if (s->view)
		snprintf(s->view->index, sizeof(s->view->index), "0x%x", key);
}

size_t sb_enter(struct sbuf *s, const char *fmt, ...)
{
	size_t mark, len;
	va_list ap;

	if (!s->view)
		return 0;
	mark = strlen(s->view->prefix);
	va_start(ap, fmt);
	vsnprintf(s->view->prefix + mark, sizeof(s->view->prefix) - mark, fmt, ap);
	va_end(ap);
	len = strlen(s->view->prefix);
	snprintf(s->view->prefix + len, sizeof(s->view->prefix) - len, ".");
	return mark;
}

void sb_leave(struct sbuf *s, size_t mark)
{
	if (s->view)
		s->view->prefix[mark] = 0;
}

/* ---- fields ---- */

static void move_bytes(struct sbuf *s, void *buf, size_t len)
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

void sb_bytes_as(struct sbuf *s, void *buf, size_t len, const char *name)
{
	move_bytes(s, buf, len);
	tell_bytes(s, name, SB_BYTES, buf, len);
}

void sb_u8_as(struct sbuf *s, uint8_t *v, const char *name, enum sb_kind kind)
{
	move_bytes(s, v, 1);
	tell_number(s, name, kind, *v);
}

void sb_u16_as(struct sbuf *s, uint16_t *v, const char *name, enum sb_kind kind)
{
	uint16_t le = htole16(*v);

	move_bytes(s, &le, sizeof(le));
	if (s->loading)
		*v = le16toh(le);
	tell_number(s, name, kind, *v);
}

void sb_u32_as(struct sbuf *s, uint32_t *v, const char *name, enum sb_kind kind)
{
	uint32_t le = htole32(*v);

	move_bytes(s, &le, sizeof(le));
	if (s->loading)
		*v = le32toh(le);
	tell_number(s, name, kind, *v);
}

void sb_u64_as(struct sbuf *s, uint64_t *v, const char *name, enum sb_kind kind)
{
	uint64_t le = htole64(*v);

	move_bytes(s, &le, sizeof(le));
	if (s->loading)
		*v = le64toh(le);
	tell_number(s, name, kind, *v);
}

void sb_i64_as(struct sbuf *s, int64_t *v, const char *name)
{
	uint64_t u = (uint64_t)*v;

	sb_u64_as(s, &u, name, SB_SIGNED);
	if (s->loading)
		*v = (int64_t)u;
}

void sb_bool_as(struct sbuf *s, bool *v, const char *name)
{
	uint8_t b = *v;

	move_bytes(s, &b, 1);
	if (!s->loading)
		return;
	if (b > 1)
		sb_fail(s, -EPROTO);
	else
		*v = b;
	tell_number(s, name, SB_BOOL, b);
}

void sb_u32_range_as(struct sbuf *s, uint32_t *v, uint32_t min, uint32_t max, const char *name)
{
	uint32_t x = *v;

	sb_u32_as(s, &x, NULL, SB_NUMBER);
	if (s->err)
		return;
	if (x < min || x > max)
		sb_fail(s, -ERANGE);
	else if (s->loading)
		*v = x;
	tell_number(s, name, SB_NUMBER, x);
}

void sb_str_as(struct sbuf *s, char *buf, size_t cap, const char *name)
{
	uint32_t len = s->loading ? 0 : (uint32_t)strnlen(buf, cap - 1);
	const uint8_t *p;

	sb_u32_as(s, &len, NULL, SB_NUMBER);
	if (!s->loading) {
		move_bytes(s, buf, len);
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
	tell_bytes(s, name, SB_TEXT, p, len);
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
