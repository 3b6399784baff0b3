/* SPDX-License-Identifier: MIT */
/* A probe_report as text, as JSON and as an exit status. */
#ifndef GODWIT_PROBE_REPORT_H
#define GODWIT_PROBE_REPORT_H

#include <stdbool.h>
#include <stdio.h>

#include "probe.h"

/* What a host can be used for, as exit status of `godwit doctor`. 2 is wrong usage. */
enum probe_status {
	PROBE_STATUS_ALL = 0,	       /* Linux guests and migration */
	PROBE_STATUS_NONE = 1,	       /* neither */
	PROBE_STATUS_NO_LINUX = 4,     /* bare guests and migration, no Linux guests */
	PROBE_STATUS_NO_MIGRATION = 5, /* Linux guests, no migration */
};

enum probe_status probe_status(const struct probe_report *r);

/*
 * An item a line, its remedy on the next one unless the item before had the same, and three
 * verdicts at the end with what stands in the way. colour: with terminal escapes.
 */
void probe_print(const struct probe_report *r, FILE *f, bool colour);

/*
 * One object on one line:
 *	{"linux":false,"migration":true,"bare":true,"status":4,"items":[{"name":"kvm",
 *	 "result":"ok","needed_for":["bare","linux","migration"],"detail":"...","remedy":""},...]}
 * 0, -ENOMEM, or -EIO when it cannot be written.
 */
int probe_print_json(const struct probe_report *r, FILE *f);

#endif
