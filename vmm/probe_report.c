/* SPDX-License-Identifier: MIT */
#include "probe_report.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#define REASONS_MAX 3

static const struct {
	const char *word;
	const char *colour;
} results[] = {
	[PROBE_OK] = {"ok", "\033[32m"},
	[PROBE_MISSING] = {"missing", "\033[31m"},
	[PROBE_LIMITED] = {"limited", "\033[33m"},
};

enum probe_status probe_status(const struct probe_report *r)
{
	if (r->can_linux)
		return r->can_migrate ? PROBE_STATUS_ALL : PROBE_STATUS_NO_MIGRATION;
	return r->can_migrate ? PROBE_STATUS_NO_LINUX : PROBE_STATUS_NONE;
}

static bool for_run(const struct probe_item *item)
{
	return item->needed_run;
}

static bool for_linux(const struct probe_item *item)
{
	return item->needed_run || item->needed_linux;
}

static bool for_migration(const struct probe_item *item)
{
	return item->needed_run || item->needed_migration;
}

static void verdict(const struct probe_report *r, FILE *f, bool colour, const char *what, bool can,
		    bool (*needed)(const struct probe_item *item))
{
	unsigned shown = 0;

	fprintf(f, "%-14s %s%s%s", what,
		colour ? results[can ? PROBE_OK : PROBE_MISSING].colour : "", can ? "yes" : "no",
		colour ? "\033[0m" : "");
	for (unsigned i = 0; i < r->n && !can; i++) {
		const struct probe_item *item = &r->item[i];

		if (item->result != PROBE_MISSING || !needed(item))
			continue;
		if (shown == REASONS_MAX) {
			fputs(", ...", f);
			break;
		}
		fprintf(f, "%s%s", shown++ ? ", " : " (", item->name);
	}
	fputs(shown ? ")\n" : "\n", f);
}

void probe_print(const struct probe_report *r, FILE *f, bool colour)
{
	const char *last = "";
	int width = 0;

	for (unsigned i = 0; i < r->n; i++)
		width = MAX(width, (int)strlen(r->item[i].name));
	for (unsigned i = 0; i < r->n; i++) {
		const struct probe_item *item = &r->item[i];

		fprintf(f, "%-*s  %s%-7s%s  %s\n", width, item->name,
			colour ? results[item->result].colour : "", results[item->result].word,
			colour ? "\033[0m" : "", item->detail);
		if (item->remedy[0] && strcmp(item->remedy, last) != 0)
			fprintf(f, "%*s  -> %s\n", width, "", item->remedy);
		last = item->remedy;
	}
	fputc('\n', f);
	verdict(r, f, colour, "Linux guests:", r->can_linux, for_linux);
	verdict(r, f, colour, "Migration:", r->can_migrate, for_migration);
	verdict(r, f, colour, "Bare guests:", r->can_run, for_run);
}

/* Adds the strings that apply to a new array. */
static json_t *needed_for(const struct probe_item *item)
{
	json_t *list = json_array();

	if (list &&
	    ((item->needed_run && json_array_append_new(list, json_string("bare"))) ||
	     (item->needed_linux && json_array_append_new(list, json_string("linux"))) ||
	     (item->needed_migration && json_array_append_new(list, json_string("migration"))))) {
		json_decref(list);
		return NULL;
	}
	return list;
}

int probe_print_json(const struct probe_report *r, FILE *f)
{
	json_t *items = json_array(), *all;
	char *text = NULL;
	int ret = -ENOMEM;

	for (unsigned i = 0; i < r->n; i++) {
		const struct probe_item *item = &r->item[i];

		/* A NULL anywhere makes the next call fail, up to the dump. */
		json_array_append_new(
			items, json_pack("{s:s, s:s, s:o, s:s, s:s}", "name", item->name, "result",
					 results[item->result].word, "needed_for", needed_for(item),
					 "detail", item->detail, "remedy", item->remedy));
	}
	if (json_array_size(items) != r->n) {
		json_decref(items);
		return -ENOMEM;
	}
	all = json_pack("{s:b, s:b, s:b, s:i, s:o}", "linux", r->can_linux, "migration",
			r->can_migrate, "bare", r->can_run, "status", (int)probe_status(r), "items",
			items);
	if (all)
		text = json_dumps(all, JSON_COMPACT);
	json_decref(all);
	if (text)
		ret = fprintf(f, "%s\n", text) < 0 ? -EIO : 0;
	free(text);
	return ret;
}
