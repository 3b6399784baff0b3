/* SPDX-License-Identifier: MIT */
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "grid.h"

#define NEVER_PAUSED 1e-3 /* ms */

static const char *const outcomes[] = {
	[GRID_BROKEN] = "BROKEN",
	[GRID_MOVED] = "moved",
	[GRID_KEPT] = "kept",
};

bool grid_error(const struct grid_result *r, double *percent)
{
	if (r->outcome != GRID_MOVED || r->downtime_ms < NEVER_PAUSED)
		return false;
	*percent = 100 * (r->estimate_ms - r->downtime_ms) / r->downtime_ms;
	return true;
}

void grid_print_head(FILE *to)
{
	fprintf(to, "%-8s %4s %5s %-5s %-7s %8s %6s %6s %8s %8s %8s %8s %6s\n", "rate", "rtt",
		"loss", "guest", "outcome", "total s", "Mbit/s", "rounds", "target", "estimate",
		"downtime", "gap ms", "error");
}

void grid_print_row(FILE *to, const struct grid_cell *c, const struct grid_result *r)
{
	double error;

	fprintf(to, "%-8s %4u %5s %-5s %-7s ", c->rate, c->rtt_ms, c->loss, c->guest,
		outcomes[r->outcome]);
	if (r->outcome == GRID_BROKEN) {
		fprintf(to, "%s\n", r->why);
		return;
	}
	fprintf(to, "%8.1f %6.1f %6.0f ", r->total_ms / 1e3, r->mbit, r->rounds);
	if (r->outcome == GRID_KEPT) {
		fprintf(to, "%s\n", r->why);
		return;
	}
	fprintf(to, "%8.1f %8.1f %8.1f %8.1f ", r->target_ms, r->estimate_ms, r->downtime_ms,
		r->gap_ms);
	if (grid_error(r, &error))
		fprintf(to, "%+5.0f%%", error);
	fprintf(to, "\n");
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

struct sums {
	unsigned outcome[3], within; /* downtime within its target */
	unsigned n_errors;
	double median; /* of the errors' sizes */
};

static struct sums sum_up(const struct grid_result *r, unsigned n)
{
	double *errors = calloc(n + 1, sizeof(*errors)), e;
	struct sums s = {.n_errors = 0};

	for (unsigned i = 0; i < n && errors; i++) {
		s.outcome[r[i].outcome]++;
		if (grid_error(&r[i], &e))
			errors[s.n_errors++] = fabs(e);
		s.within += r[i].outcome == GRID_MOVED && r[i].downtime_ms <= r[i].target_ms;
	}
	if (s.n_errors) {
		qsort(errors, s.n_errors, sizeof(*errors), by_value);
		s.median = (errors[(s.n_errors - 1) / 2] + errors[s.n_errors / 2]) / 2;
	}
	free(errors);
	return s;
}

void grid_print_sum(FILE *to, const struct grid_result *r, unsigned n)
{
	struct sums s = sum_up(r, n);

	fprintf(to, "%u moved, %u kept, %u broken\n", s.outcome[GRID_MOVED], s.outcome[GRID_KEPT],
		s.outcome[GRID_BROKEN]);
	if (s.n_errors)
		fprintf(to,
			"downtime within its target in %u of %u moves; median error of the "
			"estimate %.0f %%\n",
			s.within, s.outcome[GRID_MOVED], s.median);
	fprintf(to, "%u passed, %u failed, 0 skipped\n", n - s.outcome[GRID_BROKEN],
		s.outcome[GRID_BROKEN]);
}

static json_t *cell_json(const struct grid_cell *c, const struct grid_result *r)
{
	json_t *j = json_pack("{s:s, s:i, s:s, s:s, s:i, s:s, s:i, s:s, s:s}", "rate", c->rate,
			      "rtt_ms", (int)c->rtt_ms, "loss", c->loss, "guest", c->guest,
			      "ram_mib", (int)c->ram_mib, "payload", c->payload, "timeout_s",
			      (int)c->timeout_s, "outcome", outcomes[r->outcome], "why", r->why);
	const struct {
		const char *name;
		double value;
	} numbers[] = {
		{"total_ms", r->total_ms},
		{"wire_mib", r->wire_mib},
		{"downtime_target_ms", r->target_ms},
		{"estimate_downtime_ms", r->estimate_ms},
		{"downtime_ms", r->downtime_ms},
		{"gap_ms", r->gap_ms},
		{"rounds", r->rounds},
		{"connections", r->connections},
		{"mbit_s", r->mbit},
		{"segments_lost", r->lost},
		{"segments_dropped", r->dropped},
		{"relay_late_us", r->late_us},
	};
	double error;

	for (unsigned i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
		json_object_set_new(j, numbers[i].name, json_real(numbers[i].value));
	if (grid_error(r, &error))
		json_object_set_new(j, "error_percent", json_real(error));
	return j;
}

bool grid_write_json(const char *path, const struct grid_cell *c, const struct grid_result *r,
		     unsigned n, const char *words)
{
	struct sums s = sum_up(r, n);
	json_t *cells = json_array(), *all;
	bool done;

	for (unsigned i = 0; i < n; i++)
		json_array_append_new(cells, cell_json(&c[i], &r[i]));
	all = json_pack("{s:s, s:i, s:i, s:i, s:i, s:f, s:o}", "migrate", words, "moved",
			(int)s.outcome[GRID_MOVED], "kept", (int)s.outcome[GRID_KEPT], "broken",
			(int)s.outcome[GRID_BROKEN], "within_target", (int)s.within,
			"median_error_percent", s.median, "cells", cells);
	done = all && json_dump_file(all, path, JSON_INDENT(1) | JSON_REAL_PRECISION(8)) == 0;
	if (!done)
		fprintf(stderr, "grid: %s cannot be written\n", path);
	json_decref(all);
	return done;
}
