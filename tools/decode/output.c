/* SPDX-License-Identifier: MIT */
#include "decode.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../migrate/conn.h"
#include "../../vmm/vm.h"

/* Of the fields of sections. */
#define INDENT 17
#define COLUMNS 100

json_t *clean_string(const char *text, size_t len)
{
	char *copy = strndup(text, len);
	json_t *value;

	if (!copy)
		abort();
	conn_clean_text(copy, strlen(copy));
	value = json_string(copy);
	free(copy);
	return value;
}

void add_text(struct decoder *d, const char *name, const char *fmt, ...)
{
	char text[VM_CMDLINE_MAX + 64];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	json_object_set_new(d->line, name, clean_string(text, strlen(text)));
}

void add_number(struct decoder *d, const char *name, uint64_t value)
{
	json_object_set_new(d->line, name, json_integer((json_int_t)value));
}

void problem(struct decoder *d, const char *fmt, ...)
{
	char text[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	conn_clean_text(text, strlen(text));
	d->problems++;
	if (d->line)
		json_object_set_new(d->line, "problem", json_string(text));
	fprintf(stderr, "decode-stream: offset %" PRIu64 ": %s\n", d->frame_at, text);
}

void begin_line(struct decoder *d, const char *type)
{
	d->frame_at = d->at;
	d->line = json_pack("{s:I,s:s}", "offset", (json_int_t)d->at, "type", type);
	if (!d->line)
		abort();
}

/* "name=value"; the caller's to free(). */
static char *in_words(const char *name, const json_t *value)
{
	char *text = NULL;
	int len;

	if (json_is_string(value))
		len = asprintf(&text, "%s=%s", name, json_string_value(value));
	else if (json_is_boolean(value))
		len = asprintf(&text, "%s=%d", name, json_is_true(value));
	else
		len = asprintf(&text, "%s=%" JSON_INTEGER_FORMAT, name, json_integer_value(value));
	if (len < 0)
		abort();
	return text;
}

/* All but lists and objects, on this line. */
static void print_plain(json_t *object)
{
	const char *name;
	json_t *value;

	json_object_foreach(object, name, value)
	{
		char *text;

		if (strcmp(name, "offset") == 0 || strcmp(name, "type") == 0 ||
		    json_is_array(value) || json_is_object(value))
			continue;
		text = in_words(name, value);
		printf("  %s", text);
		free(text);
	}
	printf("\n");
}

/* As many on a line as there is room for. */
static void print_fields(json_t *fields)
{
	size_t at = 0;
	const char *name;
	json_t *value;

	json_object_foreach(fields, name, value)
	{
		char *text = in_words(name, value);
		size_t len = strlen(text);

		if (at && at + 2 + len > COLUMNS) {
			printf("\n");
			at = 0;
		}
		if (at)
			printf("  %s", text);
		else
			printf("%*s%s", INDENT, "", text);
		at += (at ? 2 : INDENT) + len;
		free(text);
	}
	if (at)
		printf("\n");
}

/* "    1024  HELLO  length=..."; what belongs to sections goes on lines of its own. */
void end_line(struct decoder *d)
{
	json_t *section;
	size_t i;

	if (d->json) {
		json_dumpf(d->line, stdout, JSON_COMPACT);
		printf("\n");
		goto out;
	}
	printf("%12" JSON_INTEGER_FORMAT "  %-9s",
	       json_integer_value(json_object_get(d->line, "offset")),
	       json_string_value(json_object_get(d->line, "type")));
	print_plain(d->line);
	json_array_foreach(json_object_get(d->line, "sections"), i, section)
	{
		printf("%12s  -", "");
		print_plain(section);
		print_fields(json_object_get(section, "fields"));
	}
out:
	json_decref(d->line);
	d->line = NULL;
}
