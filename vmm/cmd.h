/* SPDX-License-Identifier: MIT */
/*
 * The commands. Each gets its own words, argv[0] being the command's name, and gives the
 * process's exit status.
 */
#ifndef GODWIT_CMD_H
#define GODWIT_CMD_H

#include <stdbool.h>

#include "config.h"

enum cmd_exit {
	EXIT_DONE = 0,
	EXIT_FAILED = 1, /* and, for a migration, the source still runs the guest */
	EXIT_USAGE = 2,
	EXIT_UNCERTAIN = 3, /* whether and where the guest runs is not known */
	EXIT_SIGNAL = 128,  /* plus the signal's number */
};

/*
 * Parses a command's words. When false there is nothing left to do: help has been shown or what is
 * wrong has been said, and the process ends with *status.
 */
bool cmd_parse(int argc, char **argv, struct config *cfg, int *status);

/* Says, unless it is told not to, that a guest goes over a network where others may read it. */
void cmd_warn_exposed(const struct config *cfg, const char *uri, bool listens);

int cmd_run(int argc, char **argv);
int cmd_receive(int argc, char **argv);
int cmd_migrate(int argc, char **argv);
int cmd_tune(int argc, char **argv);
int cmd_status(int argc, char **argv);
int cmd_list(int argc, char **argv);
int cmd_pause(int argc, char **argv);
int cmd_resume(int argc, char **argv);
int cmd_stop(int argc, char **argv);
int cmd_resolve(int argc, char **argv);
int cmd_cancel(int argc, char **argv);
int cmd_balloon(int argc, char **argv);
int cmd_doctor(int argc, char **argv);
int cmd_help(int argc, char **argv);

#endif
