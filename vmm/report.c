/* SPDX-License-Identifier: MIT */
#include "report.h"

#include <stdlib.h>
#include <string.h>

#include "instance_text.h"
#include "report_trace.h"
#include "util.h"

static json_int_t jint(uint64_t v)
{
	return (json_int_t)MIN(v, (uint64_t)INT64_MAX);
}

json_t *report_text(const char *text)
{
	json_t *j = json_string(text);
	AUTO_FREE char *copy = NULL;

	if (j || !(copy = strdup(text)))
		return j;
	for (char *p = copy; *p; p++) {
		if ((unsigned char)*p >= 0x80)
			*p = '?';
	}
	return json_string(copy);
}

static void make_plain(json_t *string)
{
	const char *text = json_string_value(string);
	size_t room = strlen(text) + 1;
	AUTO_FREE char *plain = malloc(room);

	json_string_set(string, plain ? text_plain(plain, room, text) : "?");
}

void report_plain(json_t *j)
{
	const char *key;
	json_t *member;
	size_t i;

	if (json_is_string(j))
		make_plain(j);
	json_object_foreach(j, key, member)
	{
		report_plain(member);
	}
	json_array_foreach(j, i, member)
	{
		report_plain(member);
	}
}

json_t *report_ms(uint64_t ns)
{
	uint64_t us = ns / NS_PER_US;

	return json_real((double)us / 1000);
}

static const char *verify_name(enum migrate_verify v)
{
	return v == MIGRATE_VERIFY_FULL ? "full" : "stream";
}

static json_t *report_pages(const struct migrate_stats *s)
{
	return json_pack("{s:I,s:I,s:I,s:I,s:I,s:I,s:I}", "scanned", jint(s->pages_scanned), "zero",
			 jint(s->pages_zero), "unchanged", jint(s->pages_unchanged), "sent",
			 jint(s->pages_sent), "copied", jint(s->pages_copied), "delta",
			 jint(s->pages_delta), "compressed", jint(s->pages_compressed));
}

static json_t *report_zerocopy(const struct migrate_stats *s)
{
	return json_pack("{s:I,s:I}", "tried_bytes", jint(s->zc_tried_bytes), "uncopied_bytes",
			 jint(s->zc_uncopied_bytes));
}

json_t *report_limits(const struct migrate_stats *s)
{
	return json_pack("{s:I,s:o}", "bandwidth", jint(s->bandwidth), "downtime_target_ms",
			 report_ms(s->downtime_target_ns));
}

static json_t *report_each(const struct migrate_stats *s)
{
	json_t *list = json_array();

	for (uint32_t i = 0; i < MIN(s->connections, MIGRATE_CONNECTIONS_MAX); i++) {
		const struct migrate_connection *c = &s->each[i];

		json_array_append_new(list, json_pack("{s:I,s:I,s:I}", "wire_bytes", jint(c->bytes),
						      "bytes_per_s", jint(c->bytes_per_s),
						      "uncopied_bytes", jint(c->uncopied_bytes)));
	}
	return list;
}

json_t *report_progress(const struct migrate_stats *s)
{
	json_t *j = json_pack("{s:s,s:I,s:o,s:I,s:I,s:I,s:I,s:I,s:o,s:o}", "phase",
			      migrate_phase_name(s->phase), "round", (json_int_t)s->round,
			      "elapsed_ms", report_ms(s->total_ns), "ram_bytes", jint(s->ram_bytes),
			      "wire_bytes", jint(s->wire_bytes), "bytes_per_s",
			      jint(s->bytes_per_s), "dirty_pages_per_s", jint(s->dirty_pages_per_s),
			      "remaining_pages", jint(s->remaining_pages), "pages", report_pages(s),
			      "zerocopy", report_zerocopy(s));

	report_trace_progress(j, s);
	/* The destination has no limits, and foresees nothing. */
	if (!j || !s->downtime_target_ns)
		return j;
	json_object_update_new(j, report_limits(s));
	json_object_set_new(j, "per_connection", report_each(s));
	/* What is not known is left out. */
	if (s->round_eta_ns)
		json_object_set_new(j, "round_eta_ms", report_ms(s->round_eta_ns));
	if (s->eta_ns)
		json_object_set_new(j, "eta_ms", report_ms(s->eta_ns));
	if (s->estimate_downtime_ns)
		json_object_set_new(j, "estimate_downtime_ms", report_ms(s->estimate_downtime_ns));
	return j;
}

/* From the oldest that is known. */
static json_t *report_rounds(const struct migrate_stats *s)
{
	uint32_t first =
		s->round > MIGRATE_ROUNDS_KEPT ? s->round - (uint32_t)MIGRATE_ROUNDS_KEPT + 1 : 1;
	json_t *list = json_array();

	for (uint32_t n = first; n <= s->round; n++) {
		const struct migrate_round *r = &s->rounds[n % MIGRATE_ROUNDS_KEPT];

		/* One that was broken off has no figures. */
		if (r->number == n)
			json_array_append_new(
				list,
				report_trace_round(json_pack("{s:I,s:o,s:I,s:I,s:I}", "round",
							     (json_int_t)n, "ms", report_ms(r->ns),
							     "pages", jint(r->pages), "sent",
							     jint(r->sent), "wire_bytes",
							     jint(r->wire_bytes)),
						   r));
	}
	return list;
}

json_t *report_final(const struct migrate_stats *s)
{
	json_t *j =
		json_pack("{s:s,s:o,s:o,s:I,s:I,s:o,s:s,s:I}", "status",
			  migrate_status_name(s->status), "total_ms", report_ms(s->total_ns),
			  "downtime_ms", report_ms(s->downtime_ns), "rounds", (json_int_t)s->round,
			  "wire_bytes", jint(s->wire_bytes), "pages", report_pages(s), "verify",
			  verify_name(s->verify), "verified_pages", jint(s->verified_pages));

	if (!j)
		return NULL;
	json_object_set_new(j, "ram_bytes", json_integer(jint(s->ram_bytes)));
	json_object_set_new(j, "downtime_target_ms", report_ms(s->downtime_target_ns));
	json_object_set_new(j, "estimate_downtime_ms", report_ms(s->estimate_downtime_ns));
	json_object_set_new(j, "rtt_ms", report_ms(s->rtt_ns));
	json_object_set_new(j, "connections", json_integer(s->connections));
	json_object_set_new(j, "cpu_ms", report_ms(s->cpu_ns));
	json_object_set_new(j, "per_round", report_rounds(s));
	json_object_set_new(j, "zerocopy", report_zerocopy(s));
	json_object_set_new(j, "reconnects", json_integer(s->reconnects));
	json_object_set_new(j, "held_pages", json_integer(jint(s->held_pages)));
	json_object_set_new(j, "failed_pause_ms", report_ms(s->failed_pause_ns));
	json_object_set_new(j, "downtime_parts",
			    json_pack("{s:o,s:o,s:o,s:o,s:o}", "pause_ms", report_ms(s->pause_ns),
				      "last_pages_ms", report_ms(s->last_pages_ns), "state_ms",
				      report_ms(s->state_ns), "proof_ms", report_ms(s->proof_ns),
				      "commit_ms", report_ms(s->commit_ns)));
	report_trace_final(j, s);
	if (s->leave_error.text[0])
		json_object_set_new(j, "leave_error", report_text(s->leave_error.text));
	if (s->status != MIGRATE_COMPLETED)
		json_object_set_new(j, "error", report_text(s->error.text));
	return j;
}

json_t *report_received(const struct migrate_stats *s)
{
	json_t *j = json_pack("{s:s,s:o,s:I,s:I,s:{s:I,s:I},s:s,s:I,s:I}", "status",
			      migrate_status_name(s->status), "total_ms", report_ms(s->total_ns),
			      "rounds", (json_int_t)s->round, "wire_bytes", jint(s->wire_bytes),
			      "pages", "zero", jint(s->pages_zero), "sent", jint(s->pages_sent),
			      "verify", verify_name(s->verify), "verified_pages",
			      jint(s->verified_pages), "ram_bytes", jint(s->ram_bytes));

	json_object_set_new(j, "connections", json_integer(s->connections));
	json_object_set_new(j, "reconnects", json_integer(s->reconnects));
	json_object_set_new(j, "held_pages", json_integer(jint(s->held_pages)));
	json_object_set_new(j, "cpu_ms", report_ms(s->cpu_ns));
	if (s->status != MIGRATE_COMPLETED)
		json_object_set_new(j, "error", report_text(s->error.text));
	return j;
}

uint64_t report_u64(const json_t *obj, const char *key)
{
	double v = json_number_value(json_object_get(obj, key));

	return v >= 0x1p64 ? UINT64_MAX : v > 0 ? (uint64_t)v : 0;
}

static double number(const json_t *obj, const char *key)
{
	return json_number_value(json_object_get(obj, key));
}

static const char *text(const json_t *obj, const char *key)
{
	const char *s = json_string_value(json_object_get(obj, key));

	return s ? s : "?";
}

const char *report_rate(char *buf, size_t len, uint64_t bytes_per_s)
{
	static const char *const units[] = {"", "k", "M", "G", "T"};
	double v = (double)bytes_per_s * 8;
	unsigned u = 0;

	if (bytes_per_s == 0) {
		snprintf(buf, len, "unlimited");
		return buf;
	}
	while (v >= 1000 && u + 1 < ARRAY_SIZE(units)) {
		v /= 1000;
		u++;
	}
	snprintf(buf, len, "%.4g %sbit/s", v, units[u]);
	return buf;
}

/* "3.2 s", "12 min" */
static void format_time(char *buf, size_t len, double ms)
{
	if (ms < 9950)
		snprintf(buf, len, "%.1f s", ms / 1000);
	else if (ms < 120000)
		snprintf(buf, len, "%.0f s", ms / 1000);
	else
		snprintf(buf, len, "%.0f min", ms / 60000);
}

/* ", 12 s to go, pause of 20 ms": what can be foreseen, or "". */
static void foreseen(const json_t *p, char *buf, size_t len)
{
	double all = number(p, "eta_ms"), round = number(p, "round_eta_ms");
	double pause = number(p, "estimate_downtime_ms");
	char time[32], expected[48] = "";

	buf[0] = 0;
	if (pause > 0)
		snprintf(expected, sizeof(expected), ", pause of %.0f ms", pause);
	format_time(time, sizeof(time), all > 0 ? all : round);
	if (all > 0 || round > 0)
		snprintf(buf, len, ", %s to go%s%s", time, all > 0 ? "" : " in this round",
			 all > 0 ? expected : "");
}

void report_progress_line(const json_t *p, char *buf, size_t len)
{
	char left[32], rate[32], dirty[32], to_go[96];

	if (report_u64(p, "round") == 0) {
		snprintf(buf, len, "%s, %.1f s", text(p, "phase"), number(p, "elapsed_ms") / 1000);
		return;
	}
	format_size(left, sizeof(left), report_u64(p, "remaining_pages") * PAGE_SIZE);
	format_size(rate, sizeof(rate), report_u64(p, "bytes_per_s"));
	format_size(dirty, sizeof(dirty), report_u64(p, "dirty_pages_per_s") * PAGE_SIZE);
	foreseen(p, to_go, sizeof(to_go));
	snprintf(buf, len, "%s, round %.0f: %s left, %s/s, guest writes %s/s, %.1f s%s",
		 text(p, "phase"), number(p, "round"), left, rate, dirty,
		 number(p, "elapsed_ms") / 1000, to_go);
	report_trace_line(p, buf + strlen(buf), len - strlen(buf));
}

void report_details(const json_t *p, FILE *f)
{
	const json_t *list = json_object_get(p, "per_connection"), *c;
	char rate[32], sent[32], speed[32];
	size_t i;

	if (json_object_get(p, "bandwidth")) {
		fprintf(f, "limits     %s, pause of %.0f ms",
			report_rate(rate, sizeof(rate), report_u64(p, "bandwidth")),
			number(p, "downtime_target_ms"));
		if (json_object_get(p, "estimate_downtime_ms"))
			fprintf(f, ", expected %.0f ms", number(p, "estimate_downtime_ms"));
		fprintf(f, "\n");
	}
	json_array_foreach(list, i, c)
	{
		fprintf(f, "connection %zu: %s sent, %s/s%s\n", i + 1,
			format_size(sent, sizeof(sent), report_u64(c, "wire_bytes")),
			format_size(speed, sizeof(speed), report_u64(c, "bytes_per_s")),
			report_u64(c, "uncopied_bytes") ? ", without a copy" : "");
	}
}

/* " (120 copied, 7 compressed)": how pages were sent if not as they are; "" if all were. */
static void sent_how(const json_t *pages, char *buf, size_t len)
{
	static const char *const keys[] = {"copied", "delta", "compressed"};
	static const char *const words[] = {"copied", "as changes", "compressed"};
	size_t used = 0;

	buf[0] = 0;
	for (size_t i = 0; i < ARRAY_SIZE(keys); i++) {
		if (number(pages, keys[i]) > 0 && used < len)
			used += (size_t)snprintf(buf + used, len - used, "%s%.0f %s",
						 used ? ", " : " (", number(pages, keys[i]),
						 words[i]);
	}
	if (used && used < len)
		snprintf(buf + used, len - used, ")");
}

void report_summary(const json_t *final, FILE *f)
{
	const json_t *pages = json_object_get(final, "pages");
	const json_t *parts = json_object_get(final, "downtime_parts");
	char wire[32], ram[32], how[128];

	format_size(wire, sizeof(wire), report_u64(final, "wire_bytes"));
	format_size(ram, sizeof(ram), report_u64(final, "ram_bytes"));
	sent_how(pages, how, sizeof(how));
	fprintf(f, "%s in %.0f ms, downtime %.1f ms (expected %.1f), %.0f rounds\n",
		text(final, "status"), number(final, "total_ms"), number(final, "downtime_ms"),
		number(final, "estimate_downtime_ms"), number(final, "rounds"));
	fprintf(f,
		"  %s on the wire for %s of RAM: %.0f pages sent%s, %.0f zero, %.0f unchanged; "
		"%.0f verified (%s)\n",
		wire, ram, number(pages, "sent"), how, number(pages, "zero"),
		number(pages, "unchanged"), number(final, "verified_pages"), text(final, "verify"));
	fprintf(f,
		"  downtime: pause %.1f ms, last pages %.1f, state %.1f, proof %.1f, "
		"commit %.1f; round trip %.2f ms\n",
		number(parts, "pause_ms"), number(parts, "last_pages_ms"),
		number(parts, "state_ms"), number(parts, "proof_ms"), number(parts, "commit_ms"),
		number(final, "rtt_ms"));
	report_trace_summary(final, f);
}
