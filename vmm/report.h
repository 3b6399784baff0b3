/* SPDX-License-Identifier: MIT */
/* A migration's figures as JSON, and that JSON as text for people. */
#ifndef GODWIT_REPORT_H
#define GODWIT_REPORT_H

#include <jansson.h>
#include <stdint.h>
#include <stdio.h>

#include "../migrate/migrate.h"

#define REPORT_JSON_FLAGS (JSON_COMPACT | JSON_REAL_PRECISION(15))

/* Any bytes as a JSON string: what is not UTF-8 (a path may be anything) is shown by '?'. */
json_t *report_text(const char *text);

/* Makes every string in it one that a terminal shows and does not obey (instance_text.h): for
 * people, as some came with a guest from elsewhere. */
void report_plain(json_t *j);

/* Nanoseconds as milliseconds with three decimals. */
json_t *report_ms(uint64_t ns);

/* What a migration may do at present: "bandwidth" in bytes a second, 0 for no limit, and
 * "downtime_target_ms". A new reference. */
json_t *report_limits(const struct migrate_stats *s);

/* "100 Mbit/s", of bytes a second; "unlimited" for 0. Returns buf. */
const char *report_rate(char *buf, size_t len, uint64_t bytes_per_s);

/*
 * What is known while it runs ("phase", "round", "remaining_pages", ...), and what remains once it
 * has ended ("status", "total_ms", "downtime_ms", ...). New references.
 */
json_t *report_progress(const struct migrate_stats *s);
json_t *report_final(const struct migrate_stats *s);

/* The destination's view of the end: what it can know, under the same names. */
json_t *report_received(const struct migrate_stats *s);

/* A report_progress() as text of one line, without its end. */
void report_progress_line(const json_t *progress, char *buf, size_t len);

/* What else a report_progress() of a source tells, as lines on f: limits, connections. */
void report_details(const json_t *progress, FILE *f);

/* A report_final() for people, on f. */
void report_summary(const json_t *final, FILE *f);

/* A number that is not there, or is not one, counts as 0; one that is too large as UINT64_MAX. */
uint64_t report_u64(const json_t *obj, const char *key);

#endif
