/* SPDX-License-Identifier: MIT */
#include "report_trace.h"

#include <stddef.h>
#include <string.h>

#include "report.h"
#include "util.h"

/* One list for writing and reading. */
static const struct field {
	const char *name;
	size_t offset;
	bool time; /* nanoseconds, shown as milliseconds */
} fields[] = {
	{"elapsed_ms", offsetof(struct policy_facts, elapsed_ns), true},
	{"round_ms", offsetof(struct policy_facts, round_ns), true},
	{"left_pages", offsetof(struct policy_facts, pages), false},
	{"left_wire_bytes", offsetof(struct policy_facts, wire_bytes), false},
	{"left_ms", offsetof(struct policy_facts, pages_ns), true},
	{"next_left_ms", offsetof(struct policy_facts, next_ns), true},
	{"fixed_ms", offsetof(struct policy_facts, fixed_ns), true},
	{"floor_ms", offsetof(struct policy_facts, floor_ns), true},
	{"rtt_ms", offsetof(struct policy_facts, rtt_ns), true},
	{"sent_bytes_per_s", offsetof(struct policy_facts, sent_per_s), false},
	{"dirty_pages_per_s", offsetof(struct policy_facts, dirty_pages_per_s), false},
};

static json_t *whole(uint64_t v)
{
	return json_integer((json_int_t)MIN(v, (uint64_t)INT64_MAX));
}

/* To the nanosecond: what is replayed shall be what was. */
static json_t *exact_ms(uint64_t ns)
{
	return json_real((double)ns / (double)NS_PER_MS);
}

json_t *report_trace_round(json_t *j, const struct migrate_round *r)
{
	if (!r->facts.round)
		return j;
	for (size_t i = 0; i < ARRAY_SIZE(fields); i++) {
		uint64_t v;

		memcpy(&v, (const char *)&r->facts + fields[i].offset, sizeof(v));
		json_object_set_new(j, fields[i].name, fields[i].time ? exact_ms(v) : whole(v));
	}
	json_object_set_new(j, "throttle_percent", json_integer(r->facts.throttle));
	json_object_set_new(j, "converging", json_boolean(r->converging));
	json_object_set_new(j, "then", json_string(policy_action_name(r->then)));
	json_object_set_new(j, "next_throttle_percent", json_integer(r->next_throttle));
	return j;
}

void report_trace_progress(json_t *j, const struct migrate_stats *s)
{
	/* A destination knows nothing of it. */
	if (!s->choice.downtime_ns)
		return;
	json_object_set_new(j, "throttle_percent", json_integer(s->throttle));
	json_object_set_new(j, "converging", json_boolean(s->converging));
	if (!s->converging)
		json_object_set_new(j, "not_converging", report_text(s->not_converging.text));
}

void report_trace_final(json_t *j, const struct migrate_stats *s)
{
	json_t *vcpus = json_array();

	for (uint32_t i = 0; i < MIN(s->vcpus, MIGRATE_VCPUS_KEPT); i++) {
		if (s->vcpu_slowed_ns[i])
			json_array_append_new(vcpus, json_pack("{s:I,s:o}", "vcpu", (json_int_t)i,
							       "slowed_ms",
							       report_ms(s->vcpu_slowed_ns[i])));
	}
	json_object_set_new(j, "converging", json_boolean(s->converging));
	json_object_set_new(j, "timeout_ms", exact_ms(s->choice.timeout_ns));
	json_object_set_new(j, "on_timeout",
			    json_string(policy_on_timeout_name(s->choice.on_timeout)));
	json_object_set_new(j, "throttle",
			    json_pack("{s:I,s:o,s:o}", "max_percent", (json_int_t)s->throttle_max,
				      "guest_slowed_ms", report_ms(s->slowed_ns), "vcpus", vcpus));
}

void report_trace_line(const json_t *progress, char *buf, size_t len)
{
	uint64_t percent = report_u64(progress, "throttle_percent");
	bool stuck = json_is_false(json_object_get(progress, "converging"));

	if (percent)
		snprintf(buf, len, ", guest slowed by %llu %%", (unsigned long long)percent);
	else if (stuck)
		snprintf(buf, len, ", does not converge");
}

void report_trace_summary(const json_t *final, FILE *f)
{
	const json_t *t = json_object_get(final, "throttle");

	if (report_u64(t, "max_percent"))
		fprintf(f, "  the guest was slowed by up to %llu %%, %.1f s in all\n",
			(unsigned long long)report_u64(t, "max_percent"),
			json_number_value(json_object_get(t, "guest_slowed_ms")) / 1000);
}

/* ---- reading ---- */

static uint64_t ns_of(const json_t *obj, const char *key)
{
	double ns = json_number_value(json_object_get(obj, key)) * (double)NS_PER_MS + 0.5;

	return ns >= 0x1p64 ? UINT64_MAX : ns > 0 ? (uint64_t)ns : 0;
}

void report_trace_choice(const json_t *final, struct policy_choice *c)
{
	const char *on_timeout = json_string_value(json_object_get(final, "on_timeout"));

	*c = (struct policy_choice){
		.downtime_ns = ns_of(final, "downtime_target_ms"),
		.timeout_ns = ns_of(final, "timeout_ms"),
	};
	if (on_timeout)
		policy_parse_on_timeout(on_timeout, &c->on_timeout);
}

static enum policy_action action_of(const char *name)
{
	enum policy_action a = POLICY_ROUND;

	while (a < POLICY_GIVE_UP && strcmp(policy_action_name(a), name) != 0)
		a++;
	return a;
}

bool report_trace_facts(const json_t *final, size_t i, struct policy_facts *f,
			struct policy_decision *d)
{
	const json_t *list = json_object_get(final, "per_round"), *r = NULL;
	const char *then = NULL;

	for (size_t at = 0; at < json_array_size(list) && !then; at++) {
		r = json_array_get(list, at);
		then = json_string_value(json_object_get(r, "then"));
		if (then && i--)
			then = NULL;
	}
	if (!then)
		return false;
	*f = (struct policy_facts){
		.round = (uint32_t)report_u64(r, "round"),
		.throttle = (uint32_t)MIN(report_u64(r, "throttle_percent"), POLICY_THROTTLE_MAX),
	};
	for (size_t n = 0; n < ARRAY_SIZE(fields); n++) {
		const char *name = fields[n].name;
		uint64_t v = fields[n].time ? ns_of(r, name) : report_u64(r, name);

		memcpy((char *)f + fields[n].offset, &v, sizeof(v));
	}
	if (d)
		*d = (struct policy_decision){
			.action = action_of(then),
			.throttle = (unsigned)report_u64(r, "next_throttle_percent"),
			.converging = json_is_true(json_object_get(r, "converging")),
		};
	return true;
}
