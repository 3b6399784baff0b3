/* SPDX-License-Identifier: MIT */
/* Medians, ratios, aims; the table and the JSON file. */
#include "bench-private.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

enum verdict { NO_AIM, REACHED, NOT_REACHED, UNDECIDED };

/* What a figure of a case comes to. */
struct finding {
	struct bench_spread spread[BENCH_CONTENDERS];
	unsigned peer;		   /* the best one in this figure; 0: none has it */
	struct bench_spread ratio; /* godwit / peer */
	enum verdict verdict;
	char aim[64];
	char why[64]; /* undecided, or not reached for another reason than the figure */
};

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

struct bench_spread bench_spread(double *v, unsigned n)
{
	struct bench_spread s = {.n = n};

	if (n == 0)
		return s;
	qsort(v, n, sizeof(*v), compare);
	s.min = v[0];
	s.max = v[n - 1];
	s.median = n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
	return s;
}

static const struct bench_run *run_at(const struct bench_result *res, unsigned turn, unsigned who)
{
	return &res->runs[turn * res->contenders + who];
}

static struct bench_spread spread_of(const struct bench_result *res, unsigned figure, unsigned who)
{
	double *v = calloc(res->turns, sizeof(*v));
	struct bench_spread s;
	unsigned n = 0;

	if (!v)
		abort();
	for (unsigned t = 0; t < res->turns; t++) {
		if (run_at(res, t, who)->set[figure])
			v[n++] = run_at(res, t, who)->value[figure];
	}
	s = bench_spread(v, n);
	free(v);
	return s;
}

static struct bench_spread ratio_of(const struct bench_result *res, unsigned figure, unsigned peer)
{
	double *v = calloc(res->turns, sizeof(*v));
	struct bench_spread s;
	unsigned n = 0;

	if (!v)
		abort();
	for (unsigned t = 0; t < res->turns; t++) {
		const struct bench_run *ours = run_at(res, t, 0), *theirs = run_at(res, t, peer);

		if (ours->set[figure] && theirs->set[figure] && theirs->value[figure] != 0)
			v[n++] = ours->value[figure] / theirs->value[figure];
	}
	s = bench_spread(v, n);
	free(v);
	return s;
}

static unsigned best_peer(const struct bench_figure *f, const struct finding *at,
			  unsigned contenders)
{
	unsigned best = 0;

	for (unsigned k = 1; k < contenders; k++) {
		double m = at->spread[k].median, b = at->spread[best].median;

		if (at->spread[k].n && (best == 0 || (f->more ? m > b : m < b)))
			best = k;
	}
	return best;
}

static unsigned done_runs(const struct bench_result *res, unsigned who)
{
	unsigned n = 0;

	for (unsigned t = 0; t < res->turns; t++)
		n += run_at(res, t, who)->done;
	return n;
}

static unsigned failed_runs(const struct bench_result *res, unsigned who)
{
	unsigned n = 0;

	for (unsigned t = 0; t < res->turns; t++)
		n += run_at(res, t, who)->done && !run_at(res, t, who)->passed;
	return n;
}

static bool find_other(const struct bench_report *rep, const struct bench_figure *f,
		       struct bench_spread *out)
{
	for (unsigned i = 0; i < rep->n_results; i++) {
		const struct bench_result *res = &rep->results[i];

		if (strcmp(res->c->name, f->same_as))
			continue;
		for (unsigned k = 0; k < res->figures; k++) {
			if (strcmp(res->c->figures[k].name, f->name) == 0)
				*out = spread_of(res, k, 0);
		}
		return out->n > 0;
	}
	return false;
}

/* undecided when what it is held against is missing */
static void judge(const struct bench_report *rep, const struct bench_result *res,
		  const struct bench_figure *f, struct finding *at)
{
	struct bench_spread other = {.n = 0};
	bool yes = false, known = at->spread[0].n > 0;

	switch (f->aim) {
	case BENCH_NO_AIM:
		at->verdict = NO_AIM;
		return;
	case BENCH_RATIO_MAX:
	case BENCH_RATIO_MIN:
		snprintf(at->aim, sizeof(at->aim), "%s %.*f of the best peer",
			 f->aim == BENCH_RATIO_MAX ? "<=" : ">=", f->limit == 1 ? 0 : 2, f->limit);
		if (known && at->ratio.n == 0)
			snprintf(at->why, sizeof(at->why), "no peer has it");
		known = known && at->ratio.n > 0;
		yes = f->aim == BENCH_RATIO_MAX ? at->ratio.median <= f->limit
						: at->ratio.median >= f->limit;
		break;
	case BENCH_VALUE_MAX:
	case BENCH_VALUE_MIN:
		snprintf(at->aim, sizeof(at->aim), "%s %g%s%s",
			 f->aim == BENCH_VALUE_MAX ? "<=" : ">=", f->limit, f->unit[0] ? " " : "",
			 f->unit);
		/* What is at least so is so each time. */
		yes = f->aim == BENCH_VALUE_MAX ? at->spread[0].median <= f->limit
						: at->spread[0].min >= f->limit;
		break;
	}
	if (f->same_as && known) {
		size_t n = strlen(at->aim);

		snprintf(at->aim + n, sizeof(at->aim) - n, ", and as %s", f->same_as);
		if (!find_other(rep, f, &other)) {
			snprintf(at->why, sizeof(at->why), "%.40s was not measured", f->same_as);
			known = false;
		} else if (at->spread[0].min > other.max) {
			yes = false;
		}
	}
	at->verdict = !known ? UNDECIDED : yes ? REACHED : NOT_REACHED;
	if (at->spread[0].n == 0 && done_runs(res, 0) == 0) {
		snprintf(at->why, sizeof(at->why), "not measured");
	} else if (at->spread[0].n == 0) {
		at->verdict = NOT_REACHED;
		snprintf(at->why, sizeof(at->why), "godwit has no such figure");
	}
	if (failed_runs(res, 0)) {
		at->verdict = NOT_REACHED;
		snprintf(at->why, sizeof(at->why), "%u runs of godwit failed", failed_runs(res, 0));
	}
}

static struct finding find(const struct bench_report *rep, const struct bench_result *res,
			   unsigned figure)
{
	const struct bench_figure *f = &res->c->figures[figure];
	struct finding at = {.peer = 0};

	for (unsigned k = 0; k < res->contenders; k++)
		at.spread[k] = spread_of(res, figure, k);
	at.peer = best_peer(f, &at, res->contenders);
	if (at.peer)
		at.ratio = ratio_of(res, figure, at.peer);
	judge(rep, res, f, &at);
	return at;
}

static const char *verdict_name(enum verdict v)
{
	switch (v) {
	case NO_AIM:
		return "";
	case REACHED:
		return "reached";
	case NOT_REACHED:
		return "NOT REACHED";
	case UNDECIDED:
		return "undecided";
	}
	return "";
}

/* ---- the machine ---- */

static void first_line(const char *command, char *out, size_t len)
{
	FILE *p = popen(command, "re");

	out[0] = '\0';
	if (!p)
		return;
	if (fgets(out, (int)len, p))
		out[strcspn(out, "\n")] = '\0';
	pclose(p);
}

static void cpu_model(char *out, size_t len)
{
	first_line("sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1", out, len);
}

static double ram_gib(void)
{
	struct sysinfo si;

	return sysinfo(&si) ? 0 : (double)si.totalram * si.mem_unit / (double)(1 << 30);
}

/* ---- the table ---- */

#define W_CELL 26

static void cell_text(char *out, size_t len, const struct bench_spread *s, int digits)
{
	if (s->n == 0)
		snprintf(out, len, "-");
	else
		snprintf(out, len, "%.*f (%.*f..%.*f)", digits, s->median, digits, s->min, digits,
			 s->max);
}

/* The contenders of the widest case are the columns; one of another name says so in its cell. */
static unsigned columns(const struct bench_report *rep)
{
	unsigned n = 0;

	for (unsigned i = 0; i < rep->n_results; i++) {
		if (rep->results[i].contenders > n)
			n = rep->results[i].contenders;
	}
	return n;
}

static int case_width(const struct bench_report *rep)
{
	size_t w = 4;

	for (unsigned i = 0; i < rep->n_results; i++) {
		if (strlen(rep->results[i].c->name) > w)
			w = strlen(rep->results[i].c->name);
	}
	return (int)w;
}

static void print_head(const struct bench_result *res, int width, unsigned cols, FILE *to)
{
	fprintf(to, "%-*s  %-20s %-6s", width, "case", "figure", "unit");
	for (unsigned k = 0; k < cols; k++)
		fprintf(to, " %-*s", W_CELL, k < res->contenders ? res->c->contenders[k].name : "");
	fprintf(to, " %-22s %s\n", "godwit/best peer", "aim");
}

static bool same_contenders(const struct bench_result *a, const struct bench_result *b)
{
	if (a->contenders != b->contenders)
		return false;
	for (unsigned k = 0; k < a->contenders; k++) {
		if (strcmp(a->c->contenders[k].name, b->c->contenders[k].name))
			return false;
	}
	return true;
}

static void print_row(const struct bench_report *rep, const struct bench_result *res,
		      unsigned figure, int width, unsigned cols, FILE *to)
{
	const struct bench_figure *f = &res->c->figures[figure];
	struct finding at = find(rep, res, figure);
	char text[96];
	bool any = f->aim != BENCH_NO_AIM;

	for (unsigned k = 0; k < res->contenders; k++)
		any = any || at.spread[k].n;
	if (!any)
		return;
	fprintf(to, "%-*s  %-20s %-6s", width, res->c->name, f->name, f->unit);
	for (unsigned k = 0; k < cols; k++) {
		text[0] = '\0';
		if (k < res->contenders)
			cell_text(text, sizeof(text), &at.spread[k], f->digits);
		fprintf(to, " %-*s", W_CELL, text);
	}
	text[0] = '\0';
	if (at.ratio.n)
		cell_text(text, sizeof(text), &at.ratio, 2);
	fprintf(to, " %-22s", text);
	if (at.verdict != NO_AIM)
		fprintf(to, " %s: %s%s%s", at.aim, verdict_name(at.verdict), at.why[0] ? ", " : "",
			at.why);
	fprintf(to, "\n");
}

static void print_remarks(const struct bench_result *res, int width, FILE *to)
{
	if (res->why_not[0])
		fprintf(to, "%-*s  NOT MEASURED: %s\n", width, res->c->name, res->why_not);
	for (unsigned k = 0; k < res->contenders; k++) {
		for (unsigned t = 0; t < res->turns; t++) {
			const struct bench_run *run = run_at(res, t, k);

			if (run->done && !run->passed)
				fprintf(to, "%-*s  %s, run %u FAILED: %s\n", width, res->c->name,
					res->c->contenders[k].name, t + 1, run->why);
		}
	}
	if (res->others > 0.05)
		fprintf(to, "%-*s  note: other programs had %.0f %% of the machine's CPU time\n",
			width, res->c->name, res->others * 100);
	/* Those of the first run stand for all. */
	for (unsigned k = 0; k < res->contenders; k++) {
		if (res->turns && run_at(res, 0, k)->note[0])
			fprintf(to, "%-*s  note: %s: %s\n", width, res->c->name,
				res->c->contenders[k].name, run_at(res, 0, k)->note);
	}
}

static void print_machine(const struct bench_report *rep, FILE *to)
{
	char cpu[128], qemu[128];
	struct utsname u;

	uname(&u);
	cpu_model(cpu, sizeof(cpu));
	first_line("qemu-system-x86_64 --version 2>/dev/null", qemu, sizeof(qemu));
	fprintf(to, "machine: %ld CPUs (%s), %.1f GiB of RAM, Linux %s\n",
		sysconf(_SC_NPROCESSORS_ONLN), cpu, ram_gib(), u.release);
	fprintf(to, "godwit %s against %s\n", GODWIT_VERSION, qemu[0] ? qemu : "no QEMU");
	fprintf(to, "load average at the start: %.2f%s\n", rep->load,
		rep->load > 0.5 ? " (others used the machine: expect wide spreads)" : "");
	if (rep->rebuilt)
		fprintf(to, "WORTHLESS: godwit was built anew meanwhile, these are two programs\n");
	fprintf(to, "limits, median (min..max):\n");
	for (unsigned i = 0; i < rep->n_limits; i++) {
		char text[96];

		cell_text(text, sizeof(text), &rep->limits[i].spread, 2);
		fprintf(to, "  %-32s %s %s\n", rep->limits[i].name, text, rep->limits[i].unit);
	}
}

void bench_print(const struct bench_report *rep, FILE *to)
{
	unsigned cols = columns(rep);
	int width = case_width(rep);

	print_machine(rep, to);
	fprintf(to, "%u turns of all contenders%s; each cell is median (min..max)\n\n", rep->turns,
		rep->quick ? ", --quick: for trying out, not for claims" : "");
	for (unsigned i = 0; i < rep->n_results; i++) {
		const struct bench_result *res = &rep->results[i];

		if (i == 0 || !same_contenders(res, res - 1))
			print_head(res, width, cols, to);
		for (unsigned f = 0; f < res->figures; f++)
			print_row(rep, res, f, width, cols, to);
		print_remarks(res, width, to);
	}
	fflush(to);
}

/* ---- JSON ---- */

static json_t *spread_json(const struct bench_spread *s)
{
	if (s->n == 0)
		return json_null();
	return json_pack("{s:i,s:f,s:f,s:f}", "n", (int)s->n, "median", s->median, "min", s->min,
			 "max", s->max);
}

static json_t *figure_json(const struct bench_report *rep, const struct bench_result *res,
			   unsigned figure)
{
	const struct bench_figure *f = &res->c->figures[figure];
	struct finding at = find(rep, res, figure);
	json_t *j = json_pack("{s:s,s:s,s:b}", "figure", f->name, "unit", f->unit, "more_is_better",
			      f->more);

	for (unsigned k = 0; k < res->contenders; k++) {
		json_t *values = json_array(), *who = spread_json(&at.spread[k]);

		/* With a place for each turn, so that those of one turn can be told. */
		for (unsigned t = 0; t < res->turns; t++)
			json_array_append_new(values,
					      run_at(res, t, k)->set[figure]
						      ? json_real(run_at(res, t, k)->value[figure])
						      : json_null());
		if (json_is_object(who))
			json_object_set_new(who, "values", values);
		else
			json_decref(values);
		json_object_set_new(j, res->c->contenders[k].name, who);
	}
	if (at.ratio.n) {
		json_object_set_new(j, "ratio", spread_json(&at.ratio));
		json_object_set_new(j, "best_peer", json_string(res->c->contenders[at.peer].name));
	}
	if (at.verdict != NO_AIM) {
		json_object_set_new(j, "aim", json_string(at.aim));
		json_object_set_new(j, "reached",
				    at.verdict == UNDECIDED ? json_null()
							    : json_boolean(at.verdict == REACHED));
		if (at.why[0])
			json_object_set_new(j, "why", json_string(at.why));
	}
	return j;
}

static json_t *case_json(const struct bench_report *rep, const struct bench_result *res)
{
	json_t *j = json_pack("{s:s,s:s,s:f}", "case", res->c->name, "what", res->c->what, "load",
			      res->load);
	json_t *figures = json_array(), *runs = json_array();

	json_object_set_new(j, "others_cpu", json_real(res->others));
	if (res->why_not[0])
		json_object_set_new(j, "not_measured", json_string(res->why_not));
	for (unsigned f = 0; f < res->figures; f++)
		json_array_append_new(figures, figure_json(rep, res, f));
	json_object_set_new(j, "figures", figures);
	for (unsigned t = 0; t < res->turns; t++) {
		for (unsigned k = 0; k < res->contenders; k++) {
			const struct bench_run *run = run_at(res, t, k);

			if (!run->done || (run->passed && !run->note[0]))
				continue;
			json_array_append_new(runs, json_pack("{s:s,s:i,s:b,s:s}", "contender",
							      res->c->contenders[k].name, "turn",
							      (int)t + 1, "passed", run->passed,
							      run->passed ? "note" : "why",
							      run->passed ? run->note : run->why));
		}
	}
	json_object_set_new(j, "remarks", runs);
	return j;
}

static json_t *report_json(const struct bench_report *rep)
{
	char cpu[128], qemu[128], when[32];
	json_t *limits = json_array(), *cases = json_array(), *j;
	time_t now = time(NULL);
	struct utsname u;
	struct tm tm;

	uname(&u);
	cpu_model(cpu, sizeof(cpu));
	first_line("qemu-system-x86_64 --version 2>/dev/null", qemu, sizeof(qemu));
	gmtime_r(&now, &tm);
	strftime(when, sizeof(when), "%Y-%m-%dT%H:%M:%SZ", &tm);
	j = json_pack("{s:s,s:s,s:s,s:s,s:i,s:b,s:f,s:{s:i,s:s,s:f,s:s}}", "tool", rep->tool,
		      "godwit", GODWIT_VERSION, "qemu", qemu, "date", when, "turns",
		      (int)rep->turns, "quick", rep->quick, "load", rep->load, "machine", "cpus",
		      (int)sysconf(_SC_NPROCESSORS_ONLN), "cpu", cpu, "ram_gib", ram_gib(),
		      "kernel", u.release);
	for (unsigned i = 0; i < rep->n_limits; i++) {
		json_t *l = json_pack("{s:s,s:s}", "limit", rep->limits[i].name, "unit",
				      rep->limits[i].unit);

		json_object_set_new(l, "spread", spread_json(&rep->limits[i].spread));
		json_array_append_new(limits, l);
	}
	for (unsigned i = 0; i < rep->n_results; i++)
		json_array_append_new(cases, case_json(rep, &rep->results[i]));
	json_object_set_new(j, "rebuilt_meanwhile", json_boolean(rep->rebuilt));
	json_object_set_new(j, "limits", limits);
	json_object_set_new(j, "cases", cases);
	return j;
}

int bench_write_json(const struct bench_report *rep, const char *path)
{
	json_t *j = report_json(rep);
	char temp[4096];
	int ret = 0;

	if (!j)
		return -ENOMEM;
	if (snprintf(temp, sizeof(temp), "%s.new", path) >= (int)sizeof(temp))
		ret = -ENAMETOOLONG;
	else if (json_dump_file(j, temp, JSON_INDENT(1) | JSON_REAL_PRECISION(6)) ||
		 rename(temp, path))
		ret = errno ? -errno : -EIO;
	json_decref(j);
	return ret;
}
