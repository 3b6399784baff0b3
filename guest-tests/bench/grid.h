/* SPDX-License-Identifier: MIT */
/* The grid of moves: a cell, what came of it, and how that is shown. */
#ifndef GODWIT_GRID_H
#define GODWIT_GRID_H

#include <stdbool.h>
#include <stdio.h>

struct grid_cell {
	const char *rate; /* "100mbit" */
	unsigned rtt_ms;
	const char *loss;  /* "0.5%" */
	const char *guest; /* "idle", "hot" */
	unsigned ram_mib;
	const char *payload; /* options of `dirty` */
	unsigned timeout_s;  /* of the move, for godwit; the cell's own limit is above it */
	bool moves;	     /* anything else is broken */
};

enum grid_outcome {
	GRID_BROKEN, /* none of the others: it hung, the guest was damaged, or is nowhere */
	GRID_MOVED,
	GRID_KEPT, /* not moved, and why; the guest is at the source, and intact */
};

struct grid_result {
	enum grid_outcome outcome;
	char why[256]; /* unless it moved */
	double total_ms, wire_mib;
	double target_ms, estimate_ms, downtime_ms; /* as the engine has them */
	double gap_ms;				    /* the longest that the guest saw */
	double rounds, connections;
	double mbit; /* bits of IP a second that arrived at the destination's host, on average */
	double lost, dropped; /* segments from the source, by chance and by a full queue */
	double late_us;	      /* how much later than due the relay was, on average */
};

/* Without the error that the estimate of the downtime had. */
bool grid_error(const struct grid_result *r, double *percent);

void grid_print_head(FILE *to);
void grid_print_row(FILE *to, const struct grid_cell *c, const struct grid_result *r);

/* The closing lines: the median error of the estimates, and how many of what, as tests end. */
void grid_print_sum(FILE *to, const struct grid_result *r, unsigned n);

/* Everything, as an object with "cells" and the sums. False: path cannot be written (said). */
bool grid_write_json(const char *path, const struct grid_cell *c, const struct grid_result *r,
		     unsigned n, const char *words);

#endif
