/* SPDX-License-Identifier: MIT */
/* The measuring tools' frame: options, turns, runs. See bench.h. */
#include "bench-private.h"

#include <dirent.h>
#include <errno.h>
#include <fnmatch.h>
#include <getopt.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "../tests/harness.h"

#define DEFAULT_PAIRS 5
#define QUICK_PAIRS 2
#define MAX_PAIRS 1000
#define MAX_PATTERNS 16
#define BUSY_LOAD 0.5

struct options {
	bool list, quick;
	unsigned pairs;
	const char *patterns[MAX_PATTERNS];
	unsigned n_patterns;
	const char *json;
};

static volatile sig_atomic_t interrupted;

static void on_signal(int sig)
{
	interrupted = sig;
}

/* ---- within a run ---- */

static unsigned count_figures(const struct bench_case *c)
{
	unsigned n = 0;

	while (c->figures[n].name)
		n++;
	return n;
}

static unsigned count_contenders(const struct bench_case *c)
{
	unsigned n = 0;

	while (n < BENCH_CONTENDERS && c->contenders[n].name)
		n++;
	return n;
}

void bench_put(struct bench_run *r, const char *figure, double value)
{
	for (unsigned i = 0; r->c->figures[i].name; i++) {
		if (strcmp(r->c->figures[i].name, figure))
			continue;
		need(!r->set[i], "%s: the figure '%s' twice", r->c->name, figure);
		r->value[i] = value;
		r->set[i] = true;
		return;
	}
	fail_test("%s has no figure '%s'", r->c->name, figure);
}

void bench_note(struct bench_run *r, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(r->note, sizeof(r->note), fmt, ap);
	va_end(ap);
}

const void *bench_arg(const struct bench_run *r)
{
	return r->c->arg;
}

bool bench_quick(const struct bench_run *r)
{
	return r->quick;
}

double bench_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

/* ---- other processes ---- */

double bench_cpu(pid_t pid)
{
	struct timespec ts;
	clockid_t clock;

	if (clock_getcpuclockid(pid, &clock) || clock_gettime(clock, &ts))
		return -1;
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static bool read_text(char *buf, size_t len, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
static bool read_text(char *buf, size_t len, const char *fmt, ...)
{
	char path[128];
	va_list ap;
	size_t n;
	FILE *f;

	va_start(ap, fmt);
	vsnprintf(path, sizeof(path), fmt, ap);
	va_end(ap);
	f = fopen(path, "re");
	if (!f)
		return false;
	n = fread(buf, 1, len - 1, f);
	fclose(f);
	buf[n] = '\0';
	return n > 0;
}

/* A thread's own CPU clock is for its process only; schedstat is as fine, and for all. */
double bench_cpu_vcpus(pid_t pid)
{
	char path[64], text[64];
	struct dirent *e;
	double sum = 0;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
	dir = opendir(path);
	if (!dir)
		return -1;
	while ((e = readdir(dir))) {
		if (e->d_name[0] == '.' ||
		    !read_text(text, sizeof(text), "%s/%.20s/comm", path, e->d_name))
			continue;
		if (strncmp(text, "vcpu", 4) && strncmp(text, "CPU ", 4))
			continue;
		if (read_text(text, sizeof(text), "%s/%.20s/schedstat", path, e->d_name))
			sum += strtod(text, NULL) / 1e9;
	}
	closedir(dir);
	return sum;
}

double bench_anon(pid_t pid)
{
	unsigned long long size, resident, shared;
	char text[128];

	if (!read_text(text, sizeof(text), "/proc/%d/statm", (int)pid) ||
	    sscanf(text, "%llu %llu %llu", &size, &resident, &shared) != 3 || shared > resident)
		return -1;
	return (double)(resident - shared) * (double)sysconf(_SC_PAGESIZE);
}

double bench_pss(pid_t pid)
{
	char text[4096], *at;

	if (!read_text(text, sizeof(text), "/proc/%d/smaps_rollup", (int)pid))
		return -1;
	at = strstr(text, "\nPss:");
	return at ? strtod(at + 5, NULL) * 1024 : -1;
}

/*
 * CPU seconds that the whole machine has spent, or lost to its own host, since it was started; and
 * those of this program and of all that it has started and seen the end of.
 */
static double machine_cpu(void)
{
	/* user nice system idle iowait irq softirq steal, in clock ticks */
	unsigned long long v[8] = {0};
	char text[256];

	if (!read_text(text, sizeof(text), "/proc/stat") ||
	    sscanf(text, "cpu %llu %llu %llu %llu %llu %llu %llu %llu", &v[0], &v[1], &v[2], &v[3],
		   &v[4], &v[5], &v[6], &v[7]) < 7)
		return 0;
	return (double)(v[0] + v[1] + v[2] + v[5] + v[6] + v[7]) / (double)sysconf(_SC_CLK_TCK);
}

static double rusage_cpu(int who)
{
	struct rusage u;

	getrusage(who, &u);
	return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
	       (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static double own_cpu(void)
{
	return rusage_cpu(RUSAGE_SELF) + rusage_cpu(RUSAGE_CHILDREN);
}

/* ---- runs ---- */

struct call {
	const struct bench_contender *who;
	struct bench_run *run;
};

static void do_run(void *arg)
{
	const struct call *call = arg;

	call->who->run(call->run);
}

/* One run in a process of its own. */
static void run_once(const struct bench_case *c, unsigned contender, struct bench_run *run)
{
	struct call call = {.who = &c->contenders[contender], .run = run};
	char name[64];

	snprintf(name, sizeof(name), "%s-%s", c->name, call.who->name);
	for (char *p = name; *p; p++) {
		if (*p == '/')
			*p = '-';
	}
	run->passed = harness_run(name, c->timeout_s, do_run, &call, run->why);
	/* Half a run's figures are worth nothing. */
	if (!run->passed)
		memset(run->set, 0, sizeof(run->set));
	run->done = true;
}

static void say_run(const struct bench_result *res, const struct bench_run *run, const char *who)
{
	const struct bench_figure *f = res->c->figures;

	fprintf(stderr, "  %s:", who);
	if (!run->passed)
		fprintf(stderr, " FAILED: %s", run->why);
	for (unsigned i = 0; i < res->figures; i++) {
		if (run->set[i])
			fprintf(stderr, " %s=%.*f%s", f[i].name, f[i].digits, run->value[i],
				f[i].unit);
	}
	fprintf(stderr, "%s%s\n", run->note[0] ? "; " : "", run->note);
}

static void measure(struct bench_result *res)
{
	const struct bench_case *c = res->c;
	double start = bench_now(), machine = machine_cpu(), own = own_cpu(), others;
	unsigned n = res->contenders;

	getloadavg(&res->load, 1);
	fprintf(stderr, "%s: %s\n", c->name, c->what);
	if (c->prepare && !c->prepare(c, res->why_not)) {
		fprintf(stderr, "  not measured: %s\n", res->why_not);
		if (!res->why_not[0])
			snprintf(res->why_not, sizeof(res->why_not), "it could not be prepared");
		goto out;
	}
	for (unsigned turn = 0; turn < res->turns && !interrupted; turn++) {
		/* Who goes first differs, so that nobody always finds what the other left. */
		for (unsigned i = 0; i < n && !interrupted; i++) {
			unsigned k = turn % 2 ? n - 1 - i : i;
			struct bench_run *run = &res->runs[turn * n + k];

			run_once(c, k, run);
			if (!interrupted)
				say_run(res, run, c->contenders[k].name);
			else
				run->done = false;
		}
	}
out:
	if (c->undo)
		c->undo(c);
	others = (machine_cpu() - machine) - (own_cpu() - own);
	others /= (bench_now() - start) * (double)sysconf(_SC_NPROCESSORS_ONLN);
	res->others = others > 0 ? others : 0;
}

/* Shared with the runs, which are other processes. */
static bool result_init(struct bench_result *res, const struct bench_case *c,
			const struct options *opt)
{
	size_t bytes;

	*res = (struct bench_result){
		.c = c,
		.contenders = count_contenders(c),
		.figures = count_figures(c),
		.turns = opt->pairs,
	};
	if (res->figures > BENCH_FIGURES || res->contenders == 0) {
		fprintf(stderr, "%s: a wrong number of figures or contenders\n", c->name);
		return false;
	}
	bytes = sizeof(*res->runs) * res->turns * res->contenders;
	res->runs = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (res->runs == MAP_FAILED) {
		perror("memory for results");
		return false;
	}
	for (unsigned i = 0; i < res->turns * res->contenders; i++) {
		res->runs[i].c = c;
		res->runs[i].quick = opt->quick;
	}
	return true;
}

/* ---- the program ---- */

static void usage(FILE *to, const struct bench *b)
{
	fprintf(to,
		"usage: bench-%s [--list] [--pairs N] [--case PATTERN]... [--quick] [--json PATH]\n"
		"\n"
		"  --list          only print the cases\n"
		"  --pairs N       runs of each contender in a case (%d)\n"
		"  --case PATTERN  only cases whose name has this shell pattern in it\n"
		"  --quick         %d pairs, and less of what can be less: to see that it works\n"
		"  --json PATH     where the results go (build/bench/%s.json)\n",
		b->name, DEFAULT_PAIRS, QUICK_PAIRS, b->name);
}

static bool parse(int argc, char **argv, const struct bench *b, struct options *opt, int *status)
{
	static const struct option longs[] = {
		{"list", no_argument, NULL, 'l'},
		{"pairs", required_argument, NULL, 'p'},
		{"case", required_argument, NULL, 'c'},
		{"quick", no_argument, NULL, 'q'},
		{"json", required_argument, NULL, 'j'},
		{"help", no_argument, NULL, 'h'},
		{NULL, 0, NULL, 0},
	};
	unsigned long n;
	char *end;
	int c;

	*status = 2;
	while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		switch (c) {
		case 'l':
			opt->list = true;
			break;
		case 'p':
			n = strtoul(optarg, &end, 10);
			if (*end || n == 0 || n > MAX_PAIRS) {
				fprintf(stderr, "--pairs: '%s' is not a number up to %d\n", optarg,
					MAX_PAIRS);
				return false;
			}
			opt->pairs = (unsigned)n;
			break;
		case 'c':
			if (opt->n_patterns == MAX_PATTERNS) {
				fprintf(stderr, "--case: more than %d\n", MAX_PATTERNS);
				return false;
			}
			opt->patterns[opt->n_patterns++] = optarg;
			break;
		case 'q':
			opt->quick = true;
			break;
		case 'j':
			opt->json = optarg;
			break;
		case 'h':
			usage(stdout, b);
			*status = 0;
			return false;
		default:
			usage(stderr, b);
			return false;
		}
	}
	if (optind != argc) {
		usage(stderr, b);
		return false;
	}
	if (!opt->pairs)
		opt->pairs = opt->quick ? QUICK_PAIRS : DEFAULT_PAIRS;
	return true;
}

static bool wanted(const struct options *opt, const char *name)
{
	char pattern[256];

	for (unsigned i = 0; i < opt->n_patterns; i++) {
		snprintf(pattern, sizeof(pattern), "*%.250s*", opt->patterns[i]);
		if (fnmatch(pattern, name, 0) == 0)
			return true;
	}
	return opt->n_patterns == 0;
}

static unsigned list_cases(const struct options *opt, const struct bench_case *cases,
			   const struct bench_case **out)
{
	unsigned n = 0;

	for (const struct bench_case *c = cases; c->name; c++) {
		if (!wanted(opt, c->name))
			continue;
		if (out)
			out[n] = c;
		n++;
	}
	return n;
}

static void catch_signals(void)
{
	const struct sigaction sa = {.sa_handler = on_signal};

	sigaction(SIGINT, &sa, NULL);
	sigaction(SIGTERM, &sa, NULL);
	sigaction(SIGHUP, &sa, NULL);
}

/* Did the runs all come to their end? Whether aims are reached is no matter of the exit status. */
static bool all_passed(const struct bench_report *rep)
{
	for (unsigned i = 0; i < rep->n_results; i++) {
		const struct bench_result *res = &rep->results[i];

		for (unsigned k = 0; k < res->turns * res->contenders; k++) {
			if (res->runs[k].done && !res->runs[k].passed)
				return false;
		}
	}
	return true;
}

/* Which program is it? Somebody may build while it is measured. */
static struct timespec built_at(void)
{
	struct stat st = {.st_size = 0};

	stat(harness_godwit(), &st);
	return st.st_mtim;
}

static int run_all(const struct bench *b, const struct options *opt,
		   const struct bench_case **cases, unsigned n)
{
	struct bench_report rep = {.tool = b->name, .quick = opt->quick, .turns = opt->pairs};
	const char *json =
		opt->json ? opt->json
			  : harness_path("%s/build/bench/%s.json", harness_root(), b->name);
	struct timespec built = built_at(), now;
	int ret;

	rep.results = calloc(n, sizeof(*rep.results));
	if (!rep.results)
		return 1;
	if (!opt->json)
		mkdir(harness_path("%s/build/bench", harness_root()), 0777);
	catch_signals();
	getloadavg(&rep.load, 1);
	if (rep.load > BUSY_LOAD)
		fprintf(stderr,
			"warning: the load average is %.2f: others use this machine, and the "
			"figures "
			"show it\n",
			rep.load);
	bench_limits(&rep, b);
	for (unsigned i = 0; i < n && !interrupted; i++) {
		if (!result_init(&rep.results[i], cases[i], opt))
			return 1;
		rep.n_results++;
		measure(&rep.results[i]);
		now = built_at();
		rep.rebuilt = now.tv_sec != built.tv_sec || now.tv_nsec != built.tv_nsec;
		/* What there is, should the rest not come to its end. */
		ret = bench_write_json(&rep, json);
		if (ret) {
			fprintf(stderr, "%s: %s\n", json, strerror(-ret));
			return 1;
		}
	}
	bench_print(&rep, stdout);
	fprintf(stderr, "written: %s\n", json);
	return interrupted ? 128 + interrupted : !all_passed(&rep) || rep.rebuilt;
}

int bench_main(int argc, char **argv, const struct bench *b)
{
	struct options opt = {.list = false};
	const struct bench_case **cases;
	int status;
	unsigned n;

	if (!parse(argc, argv, b, &opt, &status))
		return status;
	n = list_cases(&opt, b->cases, NULL);
	if (n == 0) {
		fprintf(stderr, "no case is called like that (--list shows all names)\n");
		return 2;
	}
	cases = calloc(n, sizeof(const struct bench_case *));
	if (!cases)
		return 1;
	list_cases(&opt, b->cases, cases);
	if (opt.list) {
		for (unsigned i = 0; i < n; i++)
			printf("%-24s %s\n", cases[i]->name, cases[i]->what);
		free(cases);
		return 0;
	}
	if (!harness_kvm_works()) {
		fprintf(stderr, "no KVM guest runs on this host (godwit doctor says why)\n");
		harness_end();
		return 1;
	}
	status = run_all(b, &opt, cases, n);
	harness_end();
	free(cases);
	return status;
}
