/* SPDX-License-Identifier: MIT */
/*
 * godwit doctor: what this host can do, and the remedy for what it cannot.
 *
 * Exit status: 0 Linux guests and migration are both possible, 1 neither is, 2 wrong usage,
 * 4 bare guests can run and migrate but Linux cannot run, 5 Linux can run but not migrate. 3 is
 * left out: elsewhere it means that a guest's whereabouts are not known.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cmd.h"
#include "log.h"
#include "probe.h"
#include "probe_report.h"

static const char exit_help[] = "\n"
				"exit status:\n"
				"  0  Linux guests and migration are both possible\n"
				"  1  neither is\n"
				"  2  wrong usage\n"
				"  4  bare guests run and migrate, Linux guests do not run\n"
				"  5  Linux guests run, migration is not possible\n";

int cmd_doctor(int argc, char **argv)
{
	struct config cfg = {.help = false};
	struct probe_report report;
	const char *term = getenv("TERM");
	int status, ret;

	if (!cmd_parse(argc, argv, &cfg, &status)) {
		if (cfg.help)
			fputs(exit_help, stdout);
		return status;
	}
	probe_all(&report);
	if (cfg.json) {
		ret = probe_print_json(&report, stdout);
		if (ret) {
			log_error("doctor: %s", strerror(-ret));
			return EXIT_FAILED;
		}
	} else {
		probe_print(&report, stdout,
			    isatty(STDOUT_FILENO) && !getenv("NO_COLOR") &&
				    !(term && strcmp(term, "dumb") == 0));
	}
	return (int)probe_status(&report);
}
