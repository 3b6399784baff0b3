/* SPDX-License-Identifier: MIT */
#include "instance_text.h"

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

/* Bytes of the well-formed UTF-8 character at s (Unicode, table 3-7), its value in *c. 0: none. */
static size_t utf8_char(const unsigned char *s, uint32_t *c)
{
	size_t len = s[0] < 0x80 ? 1 : s[0] < 0xc2 ? 0 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;

	if (s[0] > 0xf4 || len == 0)
		return 0;
	*c = len == 1 ? s[0] : s[0] & (0xffU >> (len + 1));
	for (size_t i = 1; i < len; i++) {
		/* The final NUL is no such byte either. */
		if ((s[i] & 0xc0) != 0x80)
			return 0;
		*c = *c << 6 | (s[i] & 0x3fU);
	}
	/* Longer than need be, half of a UTF-16 pair, or beyond the last one. */
	if ((len == 3 && *c < 0x800) || (len == 4 && *c < 0x10000) || *c > 0x10ffff ||
	    (*c >= 0xd800 && *c < 0xe000))
		return 0;
	return len;
}

const char *text_plain(char *buf, size_t len, const char *text)
{
	const unsigned char *s = (const unsigned char *)text;
	size_t n = 0;

	if (len == 0)
		return buf;
	while (*s) {
		uint32_t c = 0;
		size_t bytes = utf8_char(s, &c);
		bool plain = bytes && c >= ' ' && (c < 0x7f || c >= 0xa0);
		size_t out = plain ? bytes : 1;

		if (out >= len - n)
			break;
		if (plain)
			memcpy(buf + n, s, bytes);
		else
			buf[n] = '?';
		n += out;
		s += bytes ? bytes : 1;
	}
	buf[n] = '\0';
	return buf;
}
