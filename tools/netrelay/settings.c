/* SPDX-License-Identifier: MIT */
#include "settings.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../vmm/util.h"

#define RATE_MAX 1e12

enum kind {
	RATE,
	TIME,
	PROBABILITY,
};

static const struct setting {
	const char *name;
	enum kind kind;
	size_t offset; /* of a uint64_t, or of a double for PROBABILITY */
	const char *none;
} settings[] = {
	{"rate", RATE, offsetof(struct link_config, rate), "none"},
	{"delay", TIME, offsetof(struct link_config, delay_ns), NULL},
	{"jitter", TIME, offsetof(struct link_config, jitter_ns), NULL},
	{"queue", TIME, offsetof(struct link_config, queue_ns), "auto"},
	{"loss", PROBABILITY, offsetof(struct link_config, loss), NULL},
	{"duplicate", PROBABILITY, offsetof(struct link_config, duplicate), NULL},
	{"reorder", PROBABILITY, offsetof(struct link_config, reorder), NULL},
	{"corrupt", PROBABILITY, offsetof(struct link_config, corrupt), NULL},
	{"corrupt-fixed", PROBABILITY, offsetof(struct link_config, corrupt_fixed), NULL},
};

static const struct {
	const char *unit;
	double bits;
} units[] = {{"gbit", 1e9}, {"mbit", 1e6}, {"kbit", 1e3}, {"bit", 1}};

static int parse_rate(const char *text, uint64_t *rate)
{
	char *end;
	double n = strtod(text, &end);

	if (end == text)
		return -EINVAL;
	for (size_t i = 0; i < ARRAY_SIZE(units); i++) {
		if (strcasecmp(end, units[i].unit) == 0 && n * units[i].bits >= 1 &&
		    n * units[i].bits <= RATE_MAX) {
			*rate = (uint64_t)(n * units[i].bits);
			return 0;
		}
	}
	return -EINVAL;
}

static int parse_probability(const char *text, double *p)
{
	char *end;
	double n = strtod(text, &end);

	if (end == text)
		return -EINVAL;
	if (strcmp(end, "%") == 0)
		n /= 100;
	else if (*end)
		return -EINVAL;
	if (!(n >= 0 && n <= 1))
		return -EINVAL;
	*p = n;
	return 0;
}

int settings_set(struct link_config *c, const char *word, struct errmsg *err)
{
	static const char *const wanted[] = {
		[RATE] = "a rate such as 100mbit (bit, kbit, mbit, gbit) or none",
		[TIME] = "a time such as 20ms",
		[PROBABILITY] = "a probability such as 1%, 0.01 or 1e-6",
	};
	size_t len = strcspn(word, "=");
	const char *value = word + len + (word[len] == '=');

	for (size_t i = 0; i < ARRAY_SIZE(settings); i++) {
		const struct setting *s = &settings[i];
		void *at = (char *)c + s->offset;
		int ret;

		if (strlen(s->name) != len || strncmp(s->name, word, len) != 0)
			continue;
		if (s->none && strcmp(value, s->none) == 0) {
			*(uint64_t *)at = 0;
			return 0;
		}
		if (s->kind == RATE)
			ret = parse_rate(value, at);
		else if (s->kind == TIME)
			ret = parse_duration(value, at);
		else
			ret = parse_probability(value, at);
		return ret ? errmsg_set(err, -EINVAL, "'%s' is not %s's value: give %s", value,
					s->name, wanted[s->kind])
			   : 0;
	}
	return errmsg_set(err, -EINVAL, "a link has no '%.*s'", (int)len, word);
}

const char *settings_show(const struct link_config *c, char *text, size_t len)
{
	size_t at = 0;

	text[0] = '\0';
	for (size_t i = 0; i < ARRAY_SIZE(settings) && at < len; i++) {
		const struct setting *s = &settings[i];
		const void *from = (const char *)c + s->offset;
		uint64_t n = s->kind == PROBABILITY ? 0 : *(const uint64_t *)from;
		double p = s->kind == PROBABILITY ? *(const double *)from : 0;
		const char *space = at ? " " : "";

		if (s->kind == PROBABILITY && p > 0)
			at += (size_t)snprintf(text + at, len - at, "%s%s=%g", space, s->name, p);
		else if (s->kind == RATE && n)
			at += (size_t)snprintf(text + at, len - at, "%s%s=%gmbit", space, s->name,
					       (double)n / 1e6);
		else if (s->kind == TIME && n)
			at += (size_t)snprintf(text + at, len - at, "%s%s=%gms", space, s->name,
					       (double)n / 1e6);
	}
	if (!at)
		snprintf(text, len, "ideal");
	return text;
}
