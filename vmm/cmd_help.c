/* SPDX-License-Identifier: MIT */
#include <stdio.h>

#include "cmd.h"
#include "config.h"
#include "log.h"

bool cmd_parse(int argc, char **argv, struct config *cfg, int *status)
{
	const struct command *cmd = command_find(argv[0]);
	struct errmsg err = {""};

	if (config_parse(cmd, argc, argv, cfg, &err)) {
		log_error("%s: %s (see 'godwit %s --help')", cmd->name, err.text, cmd->name);
		*status = EXIT_USAGE;
		return false;
	}
	if (cfg->help) {
		config_command_help(cmd, stdout);
		*status = EXIT_DONE;
		return false;
	}
	if (cfg->verbose)
		log_set_level(LOG_DEBUG);
	else if (cfg->quiet)
		log_set_level(LOG_ERROR);
	return true;
}

void cmd_warn_exposed(const struct config *cfg, const char *uri, bool listens)
{
	if (cfg->insecure || !migrate_is_exposed(uri, listens))
		return;
	log_warn("%s: nothing protects the guest's memory on its way, or keeps others from %s: "
		 "use a tls: URI, or say --insecure where the network is trusted",
		 uri, listens ? "sending a guest" : "taking it");
}

int cmd_help(int argc, char **argv)
{
	const struct command *cmd;
	struct config cfg;
	int status;

	if (!cmd_parse(argc, argv, &cfg, &status))
		return status;
	if (cfg.options) {
		config_list_options(stdout);
		return EXIT_DONE;
	}
	if (cfg.n_args == 0) {
		config_help(stdout);
		return EXIT_DONE;
	}
	cmd = command_find(cfg.args[0]);
	if (!cmd) {
		log_error("no command '%s' (see 'godwit help')", cfg.args[0]);
		return EXIT_USAGE;
	}
	config_command_help(cmd, stdout);
	return EXIT_DONE;
}
