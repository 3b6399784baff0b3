/* SPDX-License-Identifier: MIT */
/* Guests and their moves, and what their lines and reports say. See harness.h. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../bare/contract.h"
#include "harness_private.h"

#define LINE_TIMEOUT 15000
#define LISTEN_TIMEOUT 10000
#define MOVE_TIMEOUT 60000
#define LEAVE_TIMEOUT 10000
#define DOWNTIME 50 /* ms: godwit's own default */

/* ---- lines ---- */

static const char *kv_at(const char *line, const char *key)
{
	size_t len = strlen(key);

	for (const char *p = line; (p = strstr(p, key)); p += len) {
		if (p[len] == '=' && (p == line || p[-1] == ' '))
			return p + len + 1;
	}
	return NULL;
}

bool kv_find(const char *line, const char *key, uint64_t *value)
{
	const char *p = kv_at(line, key);
	char *end;

	if (!p || *p < '0' || *p > '9')
		return false;
	errno = 0;
	*value = strtoull(p, &end, 10);
	return !errno && (*end == ' ' || *end == '\0');
}

uint64_t kv(const char *line, const char *key)
{
	uint64_t value;

	if (!kv_find(line, key, &value))
		fail_test("no number '%s=' in '%s'", key, line);
	return value;
}

const char *kv_text(const char *line, const char *key)
{
	const char *p = kv_at(line, key);

	if (!p)
		fail_test("no '%s=' in '%s'", key, line);
	if (*p == '"')
		return harness_copy(p + 1, strcspn(p + 1, "\""));
	return harness_copy(p, strcspn(p, " "));
}

json_t *json_of(const char *text)
{
	size_t end = strlen(text), from;
	json_error_t err;
	json_t *obj;

	while (end && text[end - 1] == '\n')
		end--;
	from = end;
	while (from && text[from - 1] != '\n')
		from--;
	obj = json_loadb(text + from, end - from, JSON_REJECT_DUPLICATES, &err);
	if (!json_is_object(obj))
		fail_test("no JSON object (%s): '%.*s'", obj ? "of another type" : err.text,
			  (int)(end - from), text + from);
	return obj;
}

static const json_t *json_at(const json_t *obj, const char *path)
{
	const json_t *at = obj;
	char part[64];

	for (const char *p = path; at && *p;) {
		size_t len = strcspn(p, ".");

		snprintf(part, sizeof(part), "%.*s", (int)len, p);
		at = json_object_get(at, part);
		p += len + (p[len] == '.');
	}
	return at;
}

_Noreturn static void json_missing(const json_t *obj, const char *path, const char *what)
{
	fail_test("no %s '%s' in %s", what, path, json_dumps(obj, JSON_COMPACT));
}

double json_num(const json_t *obj, const char *path)
{
	const json_t *v = json_at(obj, path);

	if (!json_is_number(v))
		json_missing(obj, path, "number");
	return json_number_value(v);
}

const char *json_text(const json_t *obj, const char *path)
{
	const json_t *v = json_at(obj, path);

	if (!json_is_string(v))
		json_missing(obj, path, "string");
	return json_string_value(v);
}

/* ---- guests ---- */

void guest_start(struct guest *g, const char *name, ...)
{
	struct words w = {.n = 0};
	va_list ap;

	*g = (struct guest){.moves = 0};
	snprintf(g->base, sizeof(g->base), "%s", name);
	snprintf(g->name, sizeof(g->name), "%s", name);
	words_add(&w, harness_godwit());
	words_add(&w, "run");
	words_add(&w, "-n");
	words_add(&w, g->name);
	va_start(ap, name);
	words_add_list(&w, ap);
	va_end(ap);
	g->proc = proc_startv(name, w.argv);
	g->proc->guest = true;
}

const char *guest_expect(struct guest *g, const char *regex, int timeout_ms)
{
	return proc_expect(g->proc, regex, timeout_ms);
}

const char *guest_next(struct guest *g, int timeout_ms)
{
	return proc_next(g->proc, timeout_ms);
}

void guest_send(struct guest *g, const char *text)
{
	proc_send(g->proc, text);
}

void guest_ended(struct guest *g, int exit_code, int timeout_ms)
{
	proc_ended(g->proc, exit_code, timeout_ms);
}

json_t *guest_status(struct guest *g)
{
	return json_of(godwit_run(0, "status", "--json", g->name, NULL)->out.buf);
}

/* ---- the guest that rewrites its memory ---- */

void dirty_start(struct guest *g, const char *name, const char *ram, const char *work)
{
	guest_start(g, name, "-m", ram, "-k", bare_elf("dirty"), "-p", work, NULL);
	proc_fatal(g->proc, BARE_DIRTY_ERROR "| panic ");
	guest_expect(g, "^dirty ready ", LINE_TIMEOUT);
}

void dirty_intact(struct guest *g)
{
	const char *line;

	guest_send(g, "v");
	line = guest_expect(g, "^dirty verify ", LINE_TIMEOUT);
	if (kv(line, "errors") != 0)
		fail_test("%s", line);
}

void dirty_finish(struct guest *g)
{
	guest_send(g, "q");
	guest_expect(g, "^dirty done .* errors=0$", LINE_TIMEOUT);
	guest_ended(g, 0, LINE_TIMEOUT);
}

/* ---- moves ---- */

static void dest_startv(struct dest *d, const char *name, const char *uri, va_list ap)
{
	static unsigned sockets;
	struct words w = {.n = 0};
	const char *line;

	*d = (struct dest){.proc = NULL};
	words_add(&w, harness_godwit());
	words_add(&w, "receive");
	/* One try each, so that a test of what fails sees it; a later word wins. */
	words_add(&w, "--keep=0");
	if (name) {
		snprintf(d->name, sizeof(d->name), "%s", name);
		words_add(&w, "-n");
		words_add(&w, d->name);
	}
	words_add_list(&w, ap);
	if (strcmp(uri, "unix:") == 0)
		uri = harness_path("unix:%s/move%u", harness_tmp(), sockets++);
	words_add(&w, uri);
	d->proc = proc_startv(name ? name : "receive", w.argv);
	d->proc->guest = true;
	line = proc_expect(d->proc, "^listening ", LISTEN_TIMEOUT);
	snprintf(d->uri, sizeof(d->uri), "%s", line + strlen("listening "));
}

void dest_start(struct dest *d, const char *name, const char *uri, ...)
{
	va_list ap;

	va_start(ap, uri);
	dest_startv(d, name, uri, ap);
	va_end(ap);
}

static struct proc *move_startv(struct guest *g, const char *uri, va_list ap)
{
	struct words w = {.n = 0};
	struct proc *p;

	words_add(&w, harness_godwit());
	words_add(&w, "migrate");
	words_add(&w, "--json");
	/*
	 * A slow host needs longer for the same pages: by the default, a guest that always writes
	 * might never leave it. A later --downtime wins.
	 */
	words_add(&w, harness_path("--downtime=%dms", harness_slow(DOWNTIME)));
	words_add(&w, "--reconnect=0");
	words_add_list(&w, ap);
	words_add(&w, g->name);
	words_add(&w, uri);
	p = proc_startv(harness_path("migrate-%s", g->name), w.argv);
	proc_close(p);
	return p;
}

struct proc *move_start(struct guest *g, const char *uri, ...)
{
	struct proc *p;
	va_list ap;

	va_start(ap, uri);
	p = move_startv(g, uri, ap);
	va_end(ap);
	return p;
}

/* A report of a move that never began holds little more than its error. */
static double num_or_0(const json_t *obj, const char *path)
{
	return json_number_value(json_at(obj, path));
}

static uint64_t count(const json_t *obj, const char *path, bool must)
{
	return (uint64_t)(must ? json_num(obj, path) : num_or_0(obj, path));
}

void move_report(struct proc *migrate, int exit_code, struct move *m, int timeout_ms)
{
	const json_t *error;
	json_t *j;
	bool must;

	proc_ended(migrate, exit_code, timeout_ms);
	j = json_of(migrate->out.buf);
	must = exit_code == 0;
	error = json_object_get(j, "error");
	*m = (struct move){
		.status = json_text(j, "status"),
		.error = error ? json_text(j, "error") : "",
		.total_ms = must ? json_num(j, "total_ms") : num_or_0(j, "total_ms"),
		.downtime_ms = must ? json_num(j, "downtime_ms") : num_or_0(j, "downtime_ms"),
		.pause_ms = num_or_0(j, "downtime_parts.pause_ms"),
		.last_pages_ms = num_or_0(j, "downtime_parts.last_pages_ms"),
		.state_ms = num_or_0(j, "downtime_parts.state_ms"),
		.proof_ms = num_or_0(j, "downtime_parts.proof_ms"),
		.commit_ms = num_or_0(j, "downtime_parts.commit_ms"),
		.rounds = count(j, "rounds", must),
		.wire_bytes = count(j, "wire_bytes", must),
		.scanned = count(j, "pages.scanned", must),
		.zero = count(j, "pages.zero", must),
		.unchanged = count(j, "pages.unchanged", must),
		.sent = count(j, "pages.sent", must),
		.verified = count(j, "verified_pages", must),
		.json = j,
	};
	need((exit_code == 0) == (strcmp(m->status, "completed") == 0),
	     "exit code %d with status '%s'", exit_code, m->status);
}

void guest_moved(struct guest *g, struct dest *d)
{
	proc_ended(g->proc, 0, LEAVE_TIMEOUT);
	guest_follow(g, d);
}

void guest_follow(struct guest *g, struct dest *d)
{
	proc_carry(g->proc, d->proc);
	g->proc = d->proc;
	g->moves++;
	if (d->name[0])
		snprintf(g->name, sizeof(g->name), "%s", d->name);
}

void guest_move(struct guest *g, struct move *m, const char *uri, ...)
{
	struct proc *migrate;
	struct move unused;
	struct dest d;
	va_list ap;

	dest_start(&d, harness_path("%s-%u", g->base, g->moves + 1), uri, NULL);
	va_start(ap, uri);
	migrate = move_startv(g, d.uri, ap);
	va_end(ap);
	move_report(migrate, 0, m ? m : &unused, MOVE_TIMEOUT);
	guest_moved(g, &d);
}
