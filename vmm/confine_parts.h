/* SPDX-License-Identifier: MIT */
/* Between the files of confine.h. */
#ifndef GODWIT_CONFINE_PARTS_H
#define GODWIT_CONFINE_PARTS_H

#include "confine.h"

/*
 * The filter of a role, in memory that is the caller's to free(). With report what it refuses
 * raises SIGSYS, and the role is in the data of that (si_errno); otherwise it fails with EPERM.
 * -errno with the cause in err.
 */
int confine_make_filter(enum confine_role role, bool report, struct sock_fprog *out,
			struct errmsg *err);

/* Has SIGSYS, for the whole process, say what was refused, and the call fail with EPERM. */
int confine_report_refusals(struct errmsg *err);

/*
 * A Landlock ruleset that allows nothing of what this kernel's Landlock knows, to be used by
 * confine_restrict_files(). A descriptor, or as confine_probe_landlock().
 */
int confine_make_ruleset(void);

/* The calling thread opens no files, binds and connects no TCP from now on. 0 or -errno. */
int confine_restrict_files(int ruleset);

#ifdef GODWIT_TEST_HOOKS
/* Runs in each thread that has just got its role: what somebody would try who has taken it over. */
void confine_attack(enum confine_role role);
#endif

#endif
