/* SPDX-License-Identifier: MIT */
/* What the parts of the measuring tools share, and cases have no business with. */
#ifndef GODWIT_BENCH_PRIVATE_H
#define GODWIT_BENCH_PRIVATE_H

#include <stdio.h>

#include "bench.h"

#define BENCH_FIGURES 32 /* of a case, at most */
#define BENCH_LIMITS 16
#define BENCH_WHY 256

struct bench_run {
	const struct bench_case *c;
	bool quick;
	bool done, passed;
	double value[BENCH_FIGURES];
	bool set[BENCH_FIGURES];
	char note[BENCH_WHY];
	char why[BENCH_WHY]; /* it failed */
};

/* A case that has been measured, or is being measured. */
struct bench_result {
	const struct bench_case *c;
	unsigned contenders, figures;
	unsigned turns;		 /* room in runs */
	struct bench_run *runs;	 /* [turn * contenders + contender] */
	double load;		 /* of the machine, when the case began */
	double others;		 /* share of the machine's CPU time that went elsewhere meanwhile */
	char why_not[BENCH_WHY]; /* not measured */
};

struct bench_spread {
	unsigned n;
	double median, min, max;
};

struct bench_limit_value {
	const char *name, *unit;
	struct bench_spread spread;
};

struct bench_report {
	const char *tool;
	bool quick;
	unsigned turns;
	double load;  /* at the start */
	bool rebuilt; /* godwit is not the program that it was at the start */
	struct bench_limit_value limits[BENCH_LIMITS];
	unsigned n_limits;
	struct bench_result *results;
	unsigned n_results;
};

/* Orders values. */
struct bench_spread bench_spread(double *values, unsigned n);

/* The standard limits, and those of b; prints each as it comes. */
void bench_limits(struct bench_report *rep, const struct bench *b);

/* The machine, its limits, and the table. */
void bench_print(const struct bench_report *rep, FILE *to);

/* Writes it to path, by way of a file beside it. 0 or -errno. */
int bench_write_json(const struct bench_report *rep, const char *path);

#endif
