/* SPDX-License-Identifier: MIT */
/*
 * Lengths in AML come before what they measure and have as many bytes as they need, so an object
 * is appended first and its length is put in front when it is closed.
 */
#include "aml.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "util.h"

enum {
	OP_ZERO = 0x00,
	OP_ONE = 0x01,
	OP_NAME = 0x08,
	OP_BYTE = 0x0a,
	OP_WORD = 0x0b,
	OP_DWORD = 0x0c,
	OP_STRING = 0x0d,
	OP_QWORD = 0x0e,
	OP_SCOPE = 0x10,
	OP_BUFFER = 0x11,
	OP_PACKAGE = 0x12,
	OP_METHOD = 0x14,
	OP_DUAL_NAME = 0x2e,
	OP_MULTI_NAME = 0x2f,
	OP_EXT = 0x5b,
	OP_EXT_DEVICE = 0x82,
	OP_RETURN = 0xa4,
};

#define METHOD_SERIALIZED 0x08U
#define MAX_ARGS 7U
#define MAX_SEGMENTS 255U

#define RES_IRQ 0x22U /* small, two bytes: no flags, so edge, high, exclusive */
#define RES_IO 0x47U
#define RES_END 0x79U
#define RES_MEMORY32_FIXED 0x86U
#define RES_INTERRUPT 0x89U
#define INTERRUPT_CONSUMER 0x01U
#define INTERRUPT_EDGE 0x02U
#define INTERRUPT_SHARED 0x08U

void aml_init(struct aml *a)
{
	*a = (struct aml){0};
}

void aml_free(struct aml *a)
{
	free(a->data);
	*a = (struct aml){0};
}

static void fail(struct aml *a, int err)
{
	if (!a->err)
		a->err = err;
}

/* Makes a gap of n bytes at pos; NULL when there is an error. */
static uint8_t *insert(struct aml *a, size_t pos, size_t n)
{
	uint8_t *data;
	size_t cap;

	if (a->err)
		return NULL;
	if (n > a->cap - a->len) {
		cap = MAX(a->cap * 2, MAX(a->len + n, (size_t)256));
		data = realloc(a->data, cap);
		if (!data) {
			fail(a, -ENOMEM);
			return NULL;
		}
		a->data = data;
		a->cap = cap;
	}
	memmove(a->data + pos + n, a->data + pos, a->len - pos);
	a->len += n;
	return a->data + pos;
}

static void put(struct aml *a, const void *bytes, size_t n)
{
	uint8_t *p = insert(a, a->len, n);

	if (p)
		memcpy(p, bytes, n);
}

static void put_u8(struct aml *a, unsigned v)
{
	uint8_t byte = (uint8_t)v;

	put(a, &byte, 1);
}

/* Little-endian, as this machine is. */
static void put_u16(struct aml *a, uint16_t v)
{
	put(a, &v, sizeof(v));
}

static void put_u32(struct aml *a, uint32_t v)
{
	put(a, &v, sizeof(v));
}

static void open_object(struct aml *a, bool resources)
{
	if (a->depth == AML_MAX_DEPTH) {
		fail(a, -EINVAL);
		return;
	}
	a->open[a->depth].start = a->len;
	a->open[a->depth].resources = resources;
	a->depth++;
}

/* One to four characters, padded with underscores. */
static void put_segment(struct aml *a, const char *text, size_t len)
{
	char seg[4] = {'_', '_', '_', '_'};

	if (len == 0 || len > sizeof(seg)) {
		fail(a, -EINVAL);
		return;
	}
	for (size_t i = 0; i < len; i++) {
		bool letter = (text[i] >= 'A' && text[i] <= 'Z') || text[i] == '_';

		if (!letter && !(i > 0 && text[i] >= '0' && text[i] <= '9'))
			fail(a, -EINVAL);
		seg[i] = text[i];
	}
	put(a, seg, sizeof(seg));
}

static void put_name(struct aml *a, const char *name)
{
	unsigned n = 1;

	if (*name == '\\') {
		put_u8(a, '\\');
		name++;
	}
	while (*name == '^') {
		put_u8(a, '^');
		name++;
	}
	for (const char *p = name; *p; p++)
		n += *p == '.';
	if (n > MAX_SEGMENTS) {
		fail(a, -EINVAL);
		return;
	}
	if (n == 2) {
		put_u8(a, OP_DUAL_NAME);
	} else if (n > 2) {
		put_u8(a, OP_MULTI_NAME);
		put_u8(a, n);
	}
	for (;;) {
		size_t len = strcspn(name, ".");

		put_segment(a, name, len);
		if (name[len] == '\0')
			return;
		name += len + 1;
	}
}

/* PkgLength, counting itself, of len bytes that follow it. Returns its size, 0: too long. */
static size_t encode_pkg_length(size_t len, uint8_t out[4])
{
	size_t n, total;

	if (len + 1 <= 0x3f) {
		out[0] = (uint8_t)(len + 1);
		return 1;
	}
	for (n = 2; n <= 4; n++) {
		total = len + n;
		if (total < (size_t)1 << (4 + 8 * (n - 1)))
			break;
	}
	if (n > 4)
		return 0;
	out[0] = (uint8_t)((n - 1) << 6 | (total & 0xf));
	for (size_t i = 1; i < n; i++)
		out[i] = (uint8_t)(total >> (4 + 8 * (i - 1)));
	return n;
}

static size_t encode_integer(uint64_t value, uint8_t out[9])
{
	size_t n = value <= 1		 ? 0
		   : value <= UINT8_MAX	 ? 1
		   : value <= UINT16_MAX ? 2
		   : value <= UINT32_MAX ? 4
					 : 8;

	switch (n) {
	case 0:
		out[0] = value ? OP_ONE : OP_ZERO;
		return 1;
	case 1:
		out[0] = OP_BYTE;
		break;
	case 2:
		out[0] = OP_WORD;
		break;
	case 4:
		out[0] = OP_DWORD;
		break;
	default:
		out[0] = OP_QWORD;
		break;
	}
	memcpy(out + 1, &value, n);
	return n + 1;
}

void aml_end(struct aml *a)
{
	uint8_t head[9];
	size_t start, n;
	uint8_t *p;

	if (a->depth == 0) {
		fail(a, -EINVAL);
		return;
	}
	a->depth--;
	start = a->open[a->depth].start;
	if (a->open[a->depth].resources) {
		put_u8(a, RES_END);
		put_u8(a, 0); /* no checksum */
		n = encode_integer(a->len - start, head);
		p = insert(a, start, n);
		if (p)
			memcpy(p, head, n);
	}
	n = encode_pkg_length(a->len - start, head);
	if (n == 0) {
		fail(a, -EMSGSIZE);
		return;
	}
	p = insert(a, start, n);
	if (p)
		memcpy(p, head, n);
}

void aml_scope(struct aml *a, const char *name)
{
	put_u8(a, OP_SCOPE);
	open_object(a, false);
	put_name(a, name);
}

void aml_device(struct aml *a, const char *name)
{
	put_u8(a, OP_EXT);
	put_u8(a, OP_EXT_DEVICE);
	open_object(a, false);
	put_name(a, name);
}

void aml_method(struct aml *a, const char *name, unsigned n_args, bool serialized)
{
	if (n_args > MAX_ARGS)
		fail(a, -EINVAL);
	put_u8(a, OP_METHOD);
	open_object(a, false);
	put_name(a, name);
	put_u8(a, n_args | (serialized ? METHOD_SERIALIZED : 0));
}

void aml_package(struct aml *a, uint8_t n_elements)
{
	put_u8(a, OP_PACKAGE);
	open_object(a, false);
	put_u8(a, n_elements);
}

void aml_resources(struct aml *a)
{
	put_u8(a, OP_BUFFER);
	open_object(a, true);
}

void aml_name(struct aml *a, const char *name)
{
	put_u8(a, OP_NAME);
	put_name(a, name);
}

void aml_return(struct aml *a)
{
	put_u8(a, OP_RETURN);
}

void aml_integer(struct aml *a, uint64_t value)
{
	uint8_t bytes[9];
	size_t n = encode_integer(value, bytes);

	put(a, bytes, n);
}

void aml_string(struct aml *a, const char *text)
{
	for (const char *p = text; *p; p++) {
		if (*p & 0x80)
			fail(a, -EINVAL);
	}
	put_u8(a, OP_STRING);
	put(a, text, strlen(text) + 1);
}

/* Five bits a letter, four a digit, most significant byte first (ACPI 6.x section 19.3.4). */
void aml_eisaid(struct aml *a, const char *id)
{
	uint32_t v = 0;

	if (strlen(id) != 7) {
		fail(a, -EINVAL);
		return;
	}
	for (unsigned i = 0; i < 7; i++) {
		const char *digits = "0123456789ABCDEF", *d = strchr(digits, id[i]);

		if (i < 3 ? id[i] < 'A' || id[i] > 'Z' : !d) {
			fail(a, -EINVAL);
			return;
		}
		if (i < 3)
			v = v << 5 | ((uint32_t)id[i] - 'A' + 1);
		else
			v = v << 4 | (uint32_t)(d - digits);
	}
	put_u8(a, OP_DWORD);
	put_u32(a, __builtin_bswap32(v));
}

/* A descriptor outside a resource buffer would be taken for code. */
static bool in_resources(struct aml *a)
{
	if (a->depth > 0 && a->open[a->depth - 1].resources)
		return true;
	fail(a, -EINVAL);
	return false;
}

void aml_res_io(struct aml *a, uint16_t base, uint8_t len)
{
	if (!in_resources(a))
		return;
	put_u8(a, RES_IO);
	put_u8(a, 1);	  /* decodes 16 bits */
	put_u16(a, base); /* lowest and highest base: the same */
	put_u16(a, base);
	put_u8(a, 1); /* alignment */
	put_u8(a, len);
}

void aml_res_irq(struct aml *a, unsigned irq)
{
	if (!in_resources(a))
		return;
	if (irq > 15) {
		fail(a, -EINVAL);
		return;
	}
	put_u8(a, RES_IRQ);
	put_u16(a, (uint16_t)(1U << irq));
}

void aml_res_memory32(struct aml *a, uint32_t base, uint32_t len, bool writable)
{
	if (!in_resources(a))
		return;
	put_u8(a, RES_MEMORY32_FIXED);
	put_u16(a, 9);
	put_u8(a, writable);
	put_u32(a, base);
	put_u32(a, len);
}

void aml_res_interrupt(struct aml *a, uint32_t gsi, enum aml_interrupt mode)
{
	if (!in_resources(a))
		return;
	put_u8(a, RES_INTERRUPT);
	put_u16(a, 6);
	put_u8(a, INTERRUPT_CONSUMER | (mode == AML_LEVEL_HIGH ? 0 : INTERRUPT_EDGE) |
			  (mode == AML_EDGE_HIGH_SHARED ? INTERRUPT_SHARED : 0));
	put_u8(a, 1);
	put_u32(a, gsi);
}
