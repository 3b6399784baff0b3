/* SPDX-License-Identifier: MIT */
/*
 * The command line: which commands there are, which options each takes, and what was asked for.
 *
 * Theory of operation: one table per command says everything about its options: it drives
 * the parser, --help and the listing that a test holds against the man page. An option is a
 * place in struct config and a kind, so a new one is a line in a table and a field.
 */
#ifndef GODWIT_CONFIG_H
#define GODWIT_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "../migrate/migrate.h"
#include "confine.h"
#include "log.h"
#include "vm.h"

#define CONFIG_ARGS_MAX 2
#define CONFIG_KEEP UINT64_MAX

/* Everything that any command can be told. What a command has no option for keeps its default. */
struct config {
	unsigned n_args;
	const char *args[CONFIG_ARGS_MAX]; /* words that are not options, in order */
	bool help;

	char name[VM_NAME_MAX]; /* "" when not given */
	char kernel[VM_PATH_MAX];
	char initrd[VM_PATH_MAX];
	char cmdline[VM_CMDLINE_MAX];
	char cpu_mask[256]; /* as cpuid_host() takes it */
	uint64_t memory;    /* bytes; 0 when not given */
	uint32_t cpus;	    /* 0 when not given */
	struct vm_devices devices;
	struct dirty_config dirty;
	bool no_reboot;
	bool paused;
	enum confine_mode confine;
	char user[256]; /* "" when not given */

	uint64_t downtime_ns;
	uint64_t timeout_ns; /* of a migration, or of a stop; 0 when not given */
	enum on_timeout on_timeout;
	enum migrate_verify verify;
	uint32_t connections;	  /* 0 when not given */
	char compress[16];	  /* "" when not given */
	uint64_t bandwidth;	  /* bytes a second, 0 for no limit; CONFIG_KEEP when not given */
	uint64_t new_downtime_ns; /* of tune; 0 when not given */
	uint64_t peer_timeout_ns; /* 0 when not given */
	uint64_t reconnect_ns;
	uint64_t keep_ns;
	char leave[VM_PATH_MAX];
	char base[VM_PATH_MAX];
	struct migrate_tls tls;
	bool insecure;
	bool force;
	bool run, discard; /* of resolve */

	bool json;
	bool options; /* help --options */
	bool verbose;
	bool quiet;
};

enum option_kind {
	OPTION_FLAG,	     /* bool */
	OPTION_TEXT,	     /* char[size], not empty; given twice, the last one counts */
	OPTION_JOIN,	     /* char[size]; given twice, the second is appended after a blank */
	OPTION_CPU,	     /* char[size]: features to take away */
	OPTION_NAME,	     /* char[size]: a guest's name */
	OPTION_MEMORY,	     /* uint64_t: size of a guest's RAM */
	OPTION_COUNT,	     /* uint32_t, at least 1 */
	OPTION_CONNECTIONS,  /* uint32_t, 1 to MIGRATE_CONNECTIONS_MAX */
	OPTION_DURATION,     /* uint64_t nanoseconds */
	OPTION_DURATION_0,   /* the same, 0 being one */
	OPTION_PEER_TIMEOUT, /* the same, from MIGRATE_PEER_TIMEOUT_MIN */
	OPTION_BANDWIDTH,    /* uint64_t bytes a second; 0: no limit */
	OPTION_ON_TIMEOUT,   /* enum on_timeout */
	OPTION_VERIFY,	     /* enum migrate_verify */
	OPTION_COMPRESS,     /* char[], as it is given */
	OPTION_DIRTY,	     /* struct dirty_config */
	OPTION_CONFINE,	     /* enum confine_mode */
	OPTION_DISK,	     /* this and the rest: struct vm_devices, which it is added to */
	OPTION_NET,
	OPTION_VSOCK,
	OPTION_CONSOLE,
};

struct option_spec {
	char letter; /* 0 for none */
	const char *name;
	const char *arg; /* what --help calls its value; NULL for a flag */
	enum option_kind kind;
	size_t offset, size; /* in struct config */
	const char *help;
};

struct command {
	const char *name;
	int (*action)(int argc, char **argv);
	const char *synopsis; /* after "godwit NAME" */
	const char *help;     /* one line */
	unsigned min_args, max_args;
	const struct option_spec *options; /* ended by a NULL name */
};

/* Every command, ended by a NULL name. */
extern const struct command commands[];

/* NULL when there is none of that name. */
const struct command *command_find(const char *name);

/*
 * Fills cfg with defaults and then with what argv[1..] says. -EINVAL with the wrong word and what
 * is wrong with it in err. With --help cfg->help is set and nothing more is checked.
 */
int config_parse(const struct command *cmd, int argc, char **argv, struct config *cfg,
		 struct errmsg *err);

/* Text of `godwit --help` and of `godwit COMMAND --help`. */
void config_help(FILE *f);
void config_command_help(const struct command *cmd, FILE *f);

/* One line per option, "COMMAND --name [-n] [ARG]", for programs. */
void config_list_options(FILE *f);

/* 1 to 63 of [A-Za-z0-9._-], not starting with '.' or '-'. */
bool config_name_ok(const char *name);

/* tcp:HOST:PORT, tls:HOST:PORT or unix:PATH, as far as that can be told without looking at the
 * host. */
int config_check_uri(const char *uri, struct errmsg *err);

#endif
