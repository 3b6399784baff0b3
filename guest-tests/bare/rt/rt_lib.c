/* SPDX-License-Identifier: MIT */
/*
 * Memory functions that the compiler may call without being asked, and the command line.
 *
 * The empty asm statements keep it from recognising a loop as the very function it is in.
 */

#include "private.h"

void *memcpy(void *restrict dst, const void *restrict src, size_t n)
{
	void *d = dst;

	__asm__ volatile("rep movsb" : "+D"(d), "+S"(src), "+c"(n) : : "memory");
	return dst;
}

void *memset(void *dst, int c, size_t n)
{
	void *d = dst;

	__asm__ volatile("rep stosb" : "+D"(d), "+c"(n) : "a"(c) : "memory");
	return dst;
}

void *memmove(void *dst, const void *src, size_t n)
{
	const uint8_t *s = src;
	uint8_t *d = dst;

	if ((uintptr_t)d - (uintptr_t)s >= n)
		return memcpy(dst, src, n);
	while (n--) {
		d[n] = s[n];
		__asm__ volatile("" : : : "memory");
	}
	return dst;
}

int memcmp(const void *a, const void *b, size_t n)
{
	const uint8_t *x = a, *y = b;

	for (size_t i = 0; i < n; i++) {
		if (x[i] != y[i])
			return x[i] < y[i] ? -1 : 1;
		__asm__ volatile("" : : : "memory");
	}
	return 0;
}

size_t rt_strlen(const char *s)
{
	size_t n = 0;

	while (s[n] != '\0') {
		n++;
		__asm__ volatile("" : : : "memory");
	}
	return n;
}

/* The text after `key=` at the start of a word of the command line, or NULL. The last counts. */
static const char *find_option(const char *key)
{
	size_t len = rt_strlen(key);
	const char *found = NULL;
	bool at_start = true;

	for (const char *p = rt.cmdline; *p != '\0'; p++) {
		if (at_start) {
			size_t i = 0;

			while (i < len && p[i] == key[i])
				i++;
			if (i == len && p[i] == '=')
				found = p + len + 1;
		}
		at_start = *p == ' ';
	}
	return found;
}

static bool ends_word(char c)
{
	return c == '\0' || c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

uint64_t rt_option(const char *key, uint64_t missing)
{
	const char *p = find_option(key);
	uint64_t value = 0;
	uint32_t shift = 0;

	if (!p)
		return missing;
	if (*p < '0' || *p > '9')
		rt_panic_at("option needs a number", key);
	for (; *p >= '0' && *p <= '9'; p++) {
		uint64_t digit = (uint64_t)(*p - '0');

		if (value > (UINT64_MAX - digit) / 10)
			rt_panic_at("option is too large", key);
		value = value * 10 + digit;
	}
	if (*p == 'K' || *p == 'k')
		shift = 10;
	else if (*p == 'M' || *p == 'm')
		shift = 20;
	else if (*p == 'G' || *p == 'g')
		shift = 30;
	if (shift)
		p++;
	if (!ends_word(*p))
		rt_panic_at("option needs a number, with K, M or G at most", key);
	if (value > (UINT64_MAX >> shift))
		rt_panic_at("option is too large", key);
	return value << shift;
}

uint32_t rt_option_word(const char *key, const char *const *words, uint32_t missing)
{
	const char *p = find_option(key);

	if (!p)
		return missing;
	for (uint32_t w = 0; words[w]; w++) {
		size_t len = rt_strlen(words[w]);

		if (memcmp(p, words[w], len) == 0 && ends_word(p[len]))
			return w;
	}
	rt_panic_at("option has none of its values", key);
}
