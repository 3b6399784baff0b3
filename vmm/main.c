/* SPDX-License-Identifier: MIT */
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cmd.h"
#include "config.h"
#include "log.h"

/* Whoever started us with stdin, stdout or stderr closed must not find a guest's file there. */
static bool fill_standard_fds(void)
{
	int fd;

	do
		fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	while (fd >= 0 && fd <= STDERR_FILENO);
	if (fd < 0)
		return false;
	close(fd);
	return true;
}

int main(int argc, char **argv)
{
	const struct command *cmd;
	int status;

	if (!fill_standard_fds())
		return EXIT_FAILED;

	if (argc < 2) {
		config_help(stderr);
		return EXIT_USAGE;
	}
	if (strcmp(argv[1], "--version") == 0) {
		printf("godwit %s\n", GODWIT_VERSION);
		return EXIT_DONE;
	}
	if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
		config_help(stdout);
		return EXIT_DONE;
	}
	cmd = command_find(argv[1]);
	if (!cmd) {
		log_error("no command '%s' (see 'godwit help')", argv[1]);
		return EXIT_USAGE;
	}
	status = cmd->action(argc - 1, argv + 1);
	/* Results that could not be written are not results. */
	if (fflush(stdout) != 0 && status == EXIT_DONE) {
		log_error("cannot write to stdout");
		status = EXIT_FAILED;
	}
	return status;
}
