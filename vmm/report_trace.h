/* SPDX-License-Identifier: MIT */
/*
 * The part of a migration's report that tells why it went as it went: what was known after each
 * round and what was decided, and how far the guest was slowed for it. It is written here, and read
 * again for replays: each report of a source is a trace.
 */
#ifndef GODWIT_REPORT_TRACE_H
#define GODWIT_REPORT_TRACE_H

#include <jansson.h>
#include <stdio.h>

#include "../migrate/migrate.h"

/* Each adds its members to j, which may be NULL, and stays the caller's. */
void report_trace_progress(json_t *j, const struct migrate_stats *s);
void report_trace_final(json_t *j, const struct migrate_stats *s);
/* Gives j back. */
json_t *report_trace_round(json_t *j, const struct migrate_round *r);

/* To the line of a progress, and to the summary of a final report, where there is something to say.
 */
void report_trace_line(const json_t *progress, char *buf, size_t len);
void report_trace_summary(const json_t *final, FILE *f);

/* ---- reading ---- */

/* What the user had chosen, by a final report. */
void report_trace_choice(const json_t *final, struct policy_choice *c);

/*
 * The i-th round that it has figures of, from 0: its facts and, if wanted, what was decided
 * (without words). False when there is none.
 */
bool report_trace_facts(const json_t *final, size_t i, struct policy_facts *f,
			struct policy_decision *d);

#endif
