/* SPDX-License-Identifier: MIT */
#include "options.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "contract.h"

static const char *const mode_names[MODE_COUNT] = {
	[MODE_STRESS] = "stress", [MODE_IDLE] = "idle", [MODE_POWEROFF] = "poweroff",
	[MODE_REBOOT] = "reboot", [MODE_INFO] = "info", [MODE_SHELL] = "shell",
	[MODE_DISK] = "disk",
};

#define FIELD(name) offsetof(struct options, name)

/*
 * Every numeric option: its bounds are those within which the program's arithmetic cannot
 * overflow.
 */
static const struct {
	const char *name;
	size_t field;
	uint64_t min, max;
} numbers[] = {
	{GT_OPT_PROCS, FIELD(procs), 0, 32},
	{GT_OPT_MEM, FIELD(mem), 0, UINT64_C(1) << 35},
	{GT_OPT_RATE, FIELD(rate), 0, RATE_MAX},
	{GT_OPT_SECS, FIELD(secs), 0, 100000000},
	{GT_OPT_REPORT, FIELD(report_ms), 0, 100000000},
	{GT_OPT_CLOCK, FIELD(clock), 0, 1},
	{GT_OPT_CLOCK_US, FIELD(clock_us), 10, 10000000},
	{GT_OPT_BURST, FIELD(burst), 1, 1000000},
	{GT_OPT_STUCK, FIELD(stuck_ms), 10, 100000000},
	{GT_OPT_PAIR, FIELD(pair_us), 0, 1000000000},
	{GT_OPT_CHURN, FIELD(churn_ms), 0, 1000000},
	{GT_OPT_REGS, FIELD(regs_us), 0, 1000000000},
	{GT_OPT_DISK, FIELD(disk_us), 0, 1000000000},
	{GT_OPT_VERIFY, FIELD(verify_ms), 1, 100000000},
	{GT_OPT_SEED, FIELD(seed), 1, UINT64_MAX},
	{GT_OPT_CORRUPT, FIELD(corrupt), 0, 1},
};

const char *mode_name(enum mode mode)
{
	return mode_names[mode];
}

int parse_size(const char *text, size_t len, uint64_t *value)
{
	unsigned int shift = 0;
	uint64_t v = 0;

	if (len > 1) {
		switch (text[len - 1]) {
		case 'G':
			shift += 10;
			/* fall through */
		case 'M':
			shift += 10;
			/* fall through */
		case 'K':
			shift += 10;
			len--;
		}
	}
	if (len == 0)
		return -EINVAL;
	for (size_t i = 0; i < len; i++) {
		if (!isdigit((unsigned char)text[i]) ||
		    __builtin_mul_overflow(v, UINT64_C(10), &v) ||
		    __builtin_add_overflow(v, (uint64_t)(text[i] - '0'), &v))
			return -EINVAL;
	}
	if (v > UINT64_MAX >> shift)
		return -EINVAL;
	*value = v << shift;
	return 0;
}

void options_default(struct options *opt)
{
	*opt = (struct options){
		.mode = MODE_STRESS,
		.procs = 2,
		.mem = 16 << 20,
		.rate = 500,
		.report_ms = 1000,
		.clock = 1,
		.clock_us = 2000,
		.burst = 8,
		.stuck_ms = 30000,
		.pair_us = 20000,
		.churn_ms = 100,
		.regs_us = 10000,
		.disk_us = 5000,
		.verify_ms = 120000,
		.tty = "ttyS0",
	};
}

static int parse_mode(struct options *opt, const char *value, size_t len)
{
	for (enum mode m = 0; m < MODE_COUNT; m++) {
		if (strlen(mode_names[m]) == len && memcmp(mode_names[m], value, len) == 0) {
			opt->mode = m;
			return 0;
		}
	}
	return -EINVAL;
}

/* A file name in /dev: no slash, so that it stays there. */
static int parse_tty(struct options *opt, const char *value, size_t len)
{
	if (len == 0 || len >= sizeof(opt->tty) || memchr(value, '/', len))
		return -EINVAL;
	memcpy(opt->tty, value, len);
	opt->tty[len] = '\0';
	return 0;
}

static int parse_dir(struct options *opt, const char *value, size_t len)
{
	if (len == 0 || len >= sizeof(opt->dir) || value[0] != '/')
		return -EINVAL;
	memcpy(opt->dir, value, len);
	opt->dir[len] = '\0';
	return 0;
}

static bool is_name(const char *name, const char *word, size_t len)
{
	return strlen(name) == len && memcmp(name, word, len) == 0;
}

static int parse_one(struct options *opt, const char *word, size_t len)
{
	const char *eq = memchr(word, '=', len);
	const char *value;
	size_t name_len, value_len;

	if (!eq)
		return -EINVAL;
	name_len = (size_t)(eq - word);
	value = eq + 1;
	value_len = len - name_len - 1;

	if (is_name(GT_OPT_MODE, word, name_len))
		return parse_mode(opt, value, value_len);
	if (is_name(GT_OPT_TTY, word, name_len))
		return parse_tty(opt, value, value_len);
	if (is_name(GT_OPT_DIR, word, name_len))
		return parse_dir(opt, value, value_len);
	for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
		uint64_t v;

		if (!is_name(numbers[i].name, word, name_len))
			continue;
		if (parse_size(value, value_len, &v) < 0 || v < numbers[i].min ||
		    v > numbers[i].max)
			return -EINVAL;
		memcpy((char *)opt + numbers[i].field, &v, sizeof(v));
		return 0;
	}
	return -EINVAL;
}

int options_parse(struct options *opt, const char *cmdline, char *err, size_t err_size)
{
	static const char space[] = " \t\r\n";
	const char *p = cmdline;

	for (;;) {
		size_t len;

		p += strspn(p, space);
		len = strcspn(p, space);
		if (len == 0)
			return 0;
		if (strncmp(p, GT_OPT_PREFIX, strlen(GT_OPT_PREFIX)) == 0 &&
		    parse_one(opt, p, len) < 0) {
			snprintf(err, err_size, "option %.*s is unknown or out of its range",
				 len > 100 ? 100 : (int)len, p);
			return -EINVAL;
		}
		p += len;
	}
}
