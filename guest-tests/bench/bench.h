/* SPDX-License-Identifier: MIT */
/*
 * Measuring godwit against others: cases, runs in turn, medians with their spread, aims, a table
 * and a JSON file.
 *
 *	static void run_godwit(struct bench_run *r)
 *	{
 *		struct guest g;
 *
 *		guest_start(&g, "vm", "-k", bare_elf("hello"), NULL);
 *		...
 *		bench_put(r, "boot", harness_now_ms() - start);
 *	}
 *
 *	static const struct bench_figure figures[] = {
 *		{.name = "boot", .unit = "ms", .aim = BENCH_RATIO_MAX, .limit = 0.5},
 *		{0},
 *	};
 *	static const struct bench_case cases[] = {
 *		{
 *			.name = "boot/hello",
 *			.what = "from the start to the payload's first line",
 *			.contenders = {{"godwit", run_godwit}, {"qemu", run_qemu}},
 *			.figures = figures,
 *			.timeout_s = 30,
 *		},
 *		{0},
 *	};
 *
 *	int main(int argc, char **argv)
 *	{
 *		return bench_main(argc, argv, &(struct bench){.name = "boot", .cases = cases});
 *	}
 *
 * Theory of operation: a case has contenders, of which the first is godwit. A turn runs each of
 * them once, and every other turn in reverse order; so what the machine does meanwhile hits all
 * alike, and the figures of one turn belong together. Ratios are formed within a turn. The figure
 * of godwit is held against the peer whose median is the best in that very figure.
 *
 * A run is a test of the harness (../tests/harness.h), so all of that can be used in it: it has a
 * process of its own with a scratch folder, a time limit, and a process group that dies with it and
 * with the tool. need() and fail_test() end it as failed: this is shown, counted, and no aim is
 * reached by a case with failed runs of godwit. It hands its figures back with bench_put().
 */
#ifndef GODWIT_BENCH_H
#define GODWIT_BENCH_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define BENCH_CONTENDERS 4
#define BENCH_NAME 32

enum bench_aim {
	BENCH_NO_AIM,
	BENCH_RATIO_MAX, /* godwit / best peer, median of the turns, is at most limit */
	BENCH_RATIO_MIN, /* the same, at least limit */
	BENCH_VALUE_MAX, /* godwit's median is at most limit */
	BENCH_VALUE_MIN, /* each of godwit's values is at least limit */
};

struct bench_figure {
	const char *name; /* up to BENCH_NAME - 1 characters; what bench_put() calls it */
	const char *unit; /* "ms", "MiB/s", "" */
	bool more;	  /* more is better; else less is */
	enum bench_aim aim;
	double limit;
	/*
	 * A case before this one: godwit's values here are to overlap with its values there, or to
	 * be lower. Comes on top of the aim.
	 */
	const char *same_as;
	int digits; /* after the point, in the table */
};

struct bench_case;

/* One run of one contender; lives in memory that is shared with the tool. */
struct bench_run;

struct bench_contender {
	const char *name; /* "godwit", "qemu", ... */
	void (*run)(struct bench_run *r);
};

struct bench_case {
	const char *name; /* "disk/read-4k-qd1": what --case selects */
	const char *what; /* one line for people */
	/* The first is godwit. Those unused are zero. */
	struct bench_contender contenders[BENCH_CONTENDERS];
	const struct bench_figure *figures; /* ends with an empty one */
	unsigned timeout_s;		    /* of a single run */
	const void *arg;		    /* the case's own; bench_arg() in a run */
	/*
	 * Around all runs of the case, in the tool's own process: network namespaces, files. False:
	 * cannot be measured here, and why (printed, and in the JSON). undo also runs after a
	 * prepare that failed, and when the tool is interrupted. May be NULL.
	 */
	bool (*prepare)(const struct bench_case *c, char why[256]);
	void (*undo)(const struct bench_case *c);
};

/* A limit of the machine, measured at the start beside memcpy, XXH3 and a TCP stream. */
struct bench_limit {
	const char *name;
	const char *unit;
	double (*measure)(bool quick); /* negative: cannot be measured */
};

struct bench {
	const char *name;		  /* of the tool; the file is build/bench/NAME.json */
	const struct bench_case *cases;	  /* ends with an empty one */
	const struct bench_limit *limits; /* more than the standard ones, or NULL; ends likewise */
};

/* Parses the options (--help says which), measures, prints. Gives main()'s status. */
int bench_main(int argc, char **argv, const struct bench *b);

/* ---- within a run ---- */

/* A figure of this run. One that is not among the case's is an error; so is one twice. */
void bench_put(struct bench_run *r, const char *figure, double value);

/* A line for people about this run, in the JSON too: what a figure cannot say. The last one counts.
 */
void bench_note(struct bench_run *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

const void *bench_arg(const struct bench_run *r);
bool bench_quick(const struct bench_run *r); /* --quick: less of everything that scales */

/* ---- tools for runs ---- */

double bench_now(void); /* seconds, monotonic */

/*
 * CPU seconds that a live process has used, all its threads ever: of all of it; and of those
 * threads among the live ones that run guests ("vcpu..." of godwit, "CPU n/KVM" of QEMU with -name
 * debug-threads=on). Negative when there is no such process.
 */
double bench_cpu(pid_t pid);
double bench_cpu_vcpus(pid_t pid);

/* Bytes, now: proportional share (slow: it walks the page tables), and the part of it that is not a
 * shared mapping (anonymous memory: not guest RAM, when that is a memfd). -1 without one. */
double bench_pss(pid_t pid);
double bench_anon(pid_t pid);

#endif
