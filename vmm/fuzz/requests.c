/* SPDX-License-Identifier: MIT */
#include "requests.h"

#include <stdio.h>

#include "../ctl.h"

#define MEMBERS_MAX 6U

static const char *const cmds[] = {
	"status",  "pause", "resume", "stop", "migrate", "cancel",
	"balloon", "tune",  "teapot", "",     "resolve",
};

static const char *const members[] = {
	"uri",	      "downtime_ms", "timeout_ms",	"verify",	"connections",
	"compress",   "bandwidth",   "peer_timeout_ms", "reconnect_ms", "leave",
	"on_timeout", "force",	     "target_bytes",	"cmd",		"x",
	"how",	      "tls_cert",    "tls_key",		"tls_ca",	"tls_psk",
	"tls_name",
};

static const char *const words[] = {
	"tcp:127.0.0.1:1",
	"unix:/tmp/x",
	"unix:",
	"tcp::",
	"tcp:[::1]:70000",
	"stream",
	"full",
	"auto",
	"off",
	"zstd",
	"zstd:19",
	"zstd:20",
	"cancel",
	"throttle",
	"continue",
	"/tmp/image",
	"relative",
	"migrate",
	"",
	"status",
	"run",
	"discard",
	"tls:host:1",
	"/tmp/pem",
	"host",
	"a\\u0000b",
	"/\\ud800",
	"/\\u00e4\\u001b",
	"tls:[::1]",
};

static const char *const numbers[] = {
	"0",
	"1",
	"-1",
	"33",
	"8000",
	"1e11",
	"1e12",
	"1e-7",
	"1e308",
	"1e400",
	"0.5",
	"-0.0",
	"1000",
	"9223372036854775807",
	"9223372036854775808",
	"-9223372036854775808",
	"4294967296",
	"7999",
	"67108864",
};

static void put(struct requests *r, const char *s, size_t n)
{
	n = MIN(n, sizeof(r->data) - r->len);
	memcpy(r->data + r->len, s, n);
	r->len += n;
}

static void put_word(struct requests *r, const char *s)
{
	put(r, s, strlen(s));
}

static void put_many(struct requests *r, char c, size_t n)
{
	n = MIN(n, sizeof(r->data) - r->len);
	memset(r->data + r->len, c, n);
	r->len += n;
}

/* Bytes of the input, within one line. */
static void put_bytes(struct requests *r, struct fuzz_in *in)
{
	char raw[256];
	uint8_t n = in_u8(in);

	in_bytes(in, raw, n);
	for (unsigned i = 0; i < n; i++) {
		if (raw[i] == '\n')
			raw[i] = ' ';
	}
	put(r, raw, n);
}

static void put_value(struct requests *r, struct fuzz_in *in, unsigned depth)
{
	char number[32];
	uint8_t kind = in_u8(in);

	switch (depth > 3 ? 0 : kind % 13) {
	case 0:
	case 1:
		put_word(r, numbers[in_u8(in) % ARRAY_SIZE(numbers)]);
		break;
	case 2:
		snprintf(number, sizeof(number), "%lld", (long long)in_u64(in));
		put_word(r, number);
		break;
	case 3 ... 5:
		put_word(r, "\"");
		put_word(r, words[in_u8(in) % ARRAY_SIZE(words)]);
		put_word(r, "\"");
		break;
	case 6:
		put_word(r, "\"");
		put_bytes(r, in);
		put_word(r, "\"");
		break;
	case 7:
		put_word(r, "true");
		break;
	case 8:
		put_word(r, "false");
		break;
	case 9:
		put_word(r, "null");
		break;
	case 10:
		put_word(r, "[");
		put_value(r, in, depth + 1);
		put_word(r, "]");
		break;
	case 11:
		put_word(r, "{\"a\":");
		put_value(r, in, depth + 1);
		put_word(r, "}");
		break;
	default:
		/* Longer than a name, a URI or a path may be. */
		put_word(r, "\"");
		put_word(r, words[in_u8(in) % ARRAY_SIZE(words)]);
		put_many(r, '/', in_u8(in) * 8U);
		put_word(r, "\"");
	}
}

static void put_request(struct requests *r, struct fuzz_in *in)
{
	unsigned n;

	put_word(r, "{\"cmd\":\"");
	put_word(r, cmds[in_u8(in) % ARRAY_SIZE(cmds)]);
	put_word(r, "\"");
	n = in_u8(in) % (MEMBERS_MAX + 1);
	for (unsigned i = 0; i < n; i++) {
		put_word(r, ",\"");
		put_word(r, members[in_u8(in) % ARRAY_SIZE(members)]);
		put_word(r, "\":");
		put_value(r, in, 0);
	}
	put_word(r, "}");
}

/* The last line, a few hundred times: one who does not read the answers has them pile up. */
static void repeat(struct requests *r, unsigned n)
{
	static char line[REQUESTS_ROOM];
	size_t len = 0;

	while (len < r->len && (len == 0 || r->data[r->len - 1 - len] != '\n'))
		len++;
	if (len == 0 || r->data[r->len - 1] != '\n')
		return;
	memcpy(line, r->data + r->len - len, len);
	while (n-- && r->len + len < sizeof(r->data) / 2)
		put(r, line, len);
}

unsigned requests_make(struct requests all[REQUESTS_CLIENTS], struct fuzz_in *in, bool *crowd)
{
	struct requests *r = all;
	unsigned n = 1;
	char letter;

	*crowd = false;
	r->manner = ASKS;
	r->len = 0;
	r->early = SIZE_MAX;
	while (in_left(in)) {
		uint8_t kind = in_u8(in) % 16;

		/* Others may have more to say. */
		if (r->len >= sizeof(r->data) / 2 && kind != 10)
			continue;

		switch (kind) {
		case 0:
			put_bytes(r, in);
			break;
		case 1:
			put_value(r, in, 0);
			break;
		case 10:
			/* Somebody else, to whom the rest belongs. */
			if (n == REQUESTS_CLIENTS)
				continue;
			r = &all[n++];
			r->manner = in_u8(in) % MANNERS;
			r->len = 0;
			r->early = SIZE_MAX;
			continue;
		case 11:
			repeat(r, 1 + in_u8(in) * 8U);
			continue;
		case 12:
			letter = in_u8(in) & 1 ? ' ' : 'x';
			put_many(r, letter, CTL_LINE_MAX - 2 + in_u8(in) % 4);
			break;
		case 13:
			put_word(r, "  \r");
			break;
		case 14:
			*crowd = true;
			continue;
		case 15:
			r->early = MIN(r->early, r->len);
			continue;
		default:
			put_request(r, in);
		}
		if (kind != 2)
			put_word(r, kind == 3 ? "\r\n" : "\n");
	}
	for (unsigned i = 0; i < n; i++) {
		r = &all[i];
		/* One without an end is answered to those alone who say that it is all. */
		if (r->manner == STAYS && r->len)
			r->data[r->len - 1] = '\n';
		r->early = MIN(r->early, r->len);
	}
	return n;
}

/* Its lines that want an answer; *too_long says whether the last one is. */
static unsigned count(const struct requests *r, bool *too_long)
{
	unsigned n = 0;

	*too_long = false;
	for (size_t at = 0; at < r->len && !*too_long;) {
		const char *line = r->data + at, *nl = memchr(line, '\n', r->len - at);
		size_t len = nl ? (size_t)(nl - line) : r->len - at;

		at += len + 1;
		*too_long = len >= CTL_LINE_MAX;
		while (nl && !*too_long && len && (line[len - 1] == '\r' || line[len - 1] == ' '))
			len--;
		n += len > 0;
	}
	return n;
}

unsigned requests_count(const struct requests *r)
{
	bool ignored;

	return count(r, &ignored);
}

bool requests_too_long(const struct requests *r)
{
	bool too_long;

	count(r, &too_long);
	return too_long;
}
