/* SPDX-License-Identifier: MIT */
#include "config.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <string.h>

#include "cmd.h"
#include "config_devices.h"
#include "ram.h"
#include "util.h"

#define AT(field) offsetof(struct config, field), sizeof(((struct config *)0)->field)
#define OPTIONS_END                                                                                \
	{                                                                                          \
		0, NULL, NULL, OPTION_FLAG, 0, 0, NULL                                             \
	}

static const struct option_spec run_options[] = {
	{'n', "name", "NAME", OPTION_NAME, AT(name), "name of the guest (default: vm1, vm2, ...)"},
	{'k', "kernel", "PATH", OPTION_TEXT, AT(kernel), "kernel: bzImage, vmlinux or PVH ELF"},
	{'i', "initrd", "PATH", OPTION_TEXT, AT(initrd), "initial RAM disk"},
	{'p', "cmdline", "TEXT", OPTION_JOIN, AT(cmdline),
	 "kernel command line; given again, it is appended"},
	{'m', "memory", "SIZE", OPTION_MEMORY, AT(memory), "RAM of the guest (default: 512M)"},
	{'c', "cpus", "N", OPTION_COUNT, AT(cpus), "number of vCPUs (default: 1)"},
	{0, "cpu", "LIST", OPTION_CPU, AT(cpu_mask),
	 "CPU features to take away, as in host,-avx2,-avx512f"},
	{0, "disk", "PATH[,...]", OPTION_DISK, AT(devices),
	 "a disk: image or block device; ,ro ,cache=HOW ,serial=TEXT ,queues=N ,discard=off"},
	{0, "net", "KIND[,...]", OPTION_NET, AT(devices),
	 "a network device: user[,hostfwd=tcp:2222:22] or tap:NAME[,queues=N]; ,mac=ADDRESS"},
	{0, "vsock", "PATH[,cid=N]", OPTION_VSOCK, AT(devices),
	 "sockets between host and guest, under PATH and PATH_PORT"},
	{0, "console", "PATH", OPTION_CONSOLE, AT(devices),
	 "a second console (hvc0), at a unix socket"},
	{0, "rng", NULL, OPTION_FLAG, AT(devices.rng), "entropy from the host"},
	{0, "balloon", NULL, OPTION_FLAG, AT(devices.balloon),
	 "memory that the guest does not need goes back to the host; see godwit balloon"},
	{0, "dirty", "HOW", OPTION_DIRTY, AT(dirty),
	 "find what a guest writes as it moves by KVM's log or ring[:ENTRIES] (default: auto)"},
	{0, "confine", "HOW", OPTION_CONFINE, AT(confine),
	 "take from the process what it does not need: on (default), log (says what), off"},
	{0, "user", "NAME[:GROUP]", OPTION_TEXT, AT(user),
	 "when started by root, become this user"},
	{0, "no-reboot", NULL, OPTION_FLAG, AT(no_reboot), "end when the guest resets"},
	{0, "paused", NULL, OPTION_FLAG, AT(paused), "start paused; see godwit resume"},
	{'v', "verbose", NULL, OPTION_FLAG, AT(verbose), "say more on stderr"},
	{'q', "quiet", NULL, OPTION_FLAG, AT(quiet), "say only errors on stderr"},
	OPTIONS_END,
};

static const struct option_spec receive_options[] = {
	{'n', "name", "NAME", OPTION_NAME, AT(name),
	 "name of the guest here (default: its name at the source, or that with a number)"},
	{'m', "memory", "SIZE", OPTION_MEMORY, AT(memory), "refuse a guest with other RAM"},
	{'c', "cpus", "N", OPTION_COUNT, AT(cpus), "refuse a guest with another number of vCPUs"},
	{0, "cpu", "LIST", OPTION_CPU, AT(cpu_mask),
	 "CPU features that this host is taken not to have, as in host,-avx2"},
	{'k', "kernel", "PATH", OPTION_TEXT, AT(kernel),
	 "kernel to boot when the guest resets later (default: the source's path)"},
	{'i', "initrd", "PATH", OPTION_TEXT, AT(initrd), "initial RAM disk for that"},
	{0, "disk", "PATH[,...]", OPTION_DISK, AT(devices),
	 "path here of the guest's first disk, of its second when given again, ..."},
	{0, "net", "KIND[,...]", OPTION_NET, AT(devices),
	 "what the guest's first network device is connected to here, ..."},
	{0, "vsock", "PATH", OPTION_VSOCK, AT(devices), "path here of its vsock"},
	{0, "console", "PATH", OPTION_CONSOLE, AT(devices), "path here of its second console"},
	{0, "dirty", "HOW", OPTION_DIRTY, AT(dirty),
	 "find what a guest writes as it moves by KVM's log or ring[:ENTRIES] (default: auto)"},
	{0, "keep", "TIME", OPTION_DURATION_0, AT(keep_ns),
	 "when the connection breaks, keep what has come for so long (default: 10m)"},
	{0, "base", "PATH", OPTION_TEXT, AT(base),
	 "an older image of the guest's memory, see migrate --leave: only what differs is sent"},
	{0, "confine", "HOW", OPTION_CONFINE, AT(confine),
	 "take from the process what it does not need: on (default), log (says what), off"},
	{0, "user", "NAME[:GROUP]", OPTION_TEXT, AT(user),
	 "when started by root, become this user"},
	{0, "no-reboot", NULL, OPTION_FLAG, AT(no_reboot), "end when the guest resets"},
	{0, "paused", NULL, OPTION_FLAG, AT(paused), "leave the guest paused once it is here"},
	{0, "peer-timeout", "TIME", OPTION_PEER_TIMEOUT, AT(peer_timeout_ns),
	 "give up when nothing has come from the source for this long (default: 30s)"},
	{0, "tls-cert", "FILE", OPTION_TEXT, AT(tls.cert),
	 "for a tls: URI: certificate of this side, and of CAs between it and --tls-ca"},
	{0, "tls-key", "FILE", OPTION_TEXT, AT(tls.key),
	 "its private key, which only its owner may read"},
	{0, "tls-ca", "FILE", OPTION_TEXT, AT(tls.ca),
	 "certificate of the CA that the other side's must be of"},
	{0, "tls-psk", "FILE", OPTION_TEXT, AT(tls.psk),
	 "instead of these: a key of hexadecimal digits that both sides have"},
	{0, "insecure", NULL, OPTION_FLAG, AT(insecure),
	 "do not warn that a tcp: URI leaves the guest's memory unprotected"},
	{0, "json", NULL, OPTION_FLAG, AT(json), "print the report of the move on stdout"},
	{'v', "verbose", NULL, OPTION_FLAG, AT(verbose), "say more on stderr"},
	{'q', "quiet", NULL, OPTION_FLAG, AT(quiet), "say only errors on stderr"},
	OPTIONS_END,
};

static const struct option_spec migrate_options[] = {
	{0, "downtime", "TIME", OPTION_DURATION, AT(downtime_ns),
	 "pause only when the rest fits into this (default: 50ms)"},
	{0, "timeout", "TIME", OPTION_DURATION, AT(timeout_ns),
	 "give up when the pause has not been reached by then (default: 1h)"},
	{0, "on-timeout", "WHAT", OPTION_ON_TIMEOUT, AT(on_timeout),
	 "cancel: give up (default); throttle: slow the guest, as needed; continue: go on"},
	{0, "bandwidth", "RATE", OPTION_BANDWIDTH, AT(bandwidth),
	 "send no more than this: 1Gbit, 100Mbit, or 125M a second (default: unlimited)"},
	{0, "peer-timeout", "TIME", OPTION_PEER_TIMEOUT, AT(peer_timeout_ns),
	 "give up when nothing has come from the destination for this long (default: 30s)"},
	{0, "verify", "HOW", OPTION_VERIFY, AT(verify),
	 "stream: compare hashes of what was sent (default); full: rehash all RAM as well"},
	{0, "connections", "N", OPTION_CONNECTIONS, AT(connections),
	 "send over that many connections, 32 at most (default: as the CPUs allow, 1 to 4)"},
	{0, "compress", "HOW", OPTION_COMPRESS, AT(compress),
	 "auto: where the network is slow (default); off; zstd or zstd:LEVEL: always"},
	{0, "reconnect", "TIME", OPTION_DURATION_0, AT(reconnect_ns),
	 "when the connection breaks, try for so long to go on over another (default: 10m)"},
	{0, "leave", "PATH", OPTION_TEXT, AT(leave),
	 "leave an image of the guest's memory here, for its way back: see receive --base"},
	{0, "tls-cert", "FILE", OPTION_TEXT, AT(tls.cert),
	 "for a tls: URI: certificate of this side, and of CAs between it and --tls-ca"},
	{0, "tls-key", "FILE", OPTION_TEXT, AT(tls.key),
	 "its private key, which only its owner may read"},
	{0, "tls-ca", "FILE", OPTION_TEXT, AT(tls.ca),
	 "certificate of the CA that the other side's must be of"},
	{0, "tls-psk", "FILE", OPTION_TEXT, AT(tls.psk),
	 "instead of these: a key of hexadecimal digits that both sides have"},
	{0, "tls-name", "NAME", OPTION_TEXT, AT(tls.name),
	 "name that the destination's certificate must have (default: the URI's host)"},
	{0, "insecure", NULL, OPTION_FLAG, AT(insecure),
	 "do not warn that a tcp: URI leaves the guest's memory unprotected"},
	{0, "json", NULL, OPTION_FLAG, AT(json), "print the report as one line of JSON"},
	{'v', "verbose", NULL, OPTION_FLAG, AT(verbose), "a line per round on stderr"},
	{'q', "quiet", NULL, OPTION_FLAG, AT(quiet), "no progress, only errors on stderr"},
	OPTIONS_END,
};

static const struct option_spec tune_options[] = {
	{0, "bandwidth", "RATE", OPTION_BANDWIDTH, AT(bandwidth),
	 "send no more than this from now on, as for migrate"},
	{0, "downtime", "TIME", OPTION_DURATION, AT(new_downtime_ns),
	 "pause only when the rest fits into this"},
	{0, "json", NULL, OPTION_FLAG, AT(json), "print what is in force as one line of JSON"},
	OPTIONS_END,
};

static const struct option_spec status_options[] = {
	{0, "json", NULL, OPTION_FLAG, AT(json), "one line of JSON per guest"},
	OPTIONS_END,
};

static const struct option_spec resolve_options[] = {
	{0, "run", NULL, OPTION_FLAG, AT(run),
	 "it goes on here: its receiver has ended, and it never ran there"},
	{0, "discard", NULL, OPTION_FLAG, AT(discard), "it runs there: what is here is let go"},
	OPTIONS_END,
};

static const struct option_spec stop_options[] = {
	{0, "timeout", "TIME", OPTION_DURATION, AT(timeout_ns),
	 "wait this long for the guest to power off (default: 30s)"},
	{0, "force", NULL, OPTION_FLAG, AT(force), "end the guest at once"},
	OPTIONS_END,
};

static const struct option_spec doctor_options[] = {
	{0, "json", NULL, OPTION_FLAG, AT(json), "print the findings as one line of JSON"},
	OPTIONS_END,
};

static const struct option_spec help_options[] = {
	{0, "options", NULL, OPTION_FLAG, AT(options), "list every option of every command"},
	OPTIONS_END,
};

static const struct option_spec no_options[] = {OPTIONS_END};

const struct command commands[] = {
	{"run", cmd_run, "-k KERNEL [-i INITRD] [-p CMDLINE] [-m SIZE] [-c N] [OPTION]...",
	 "boot a guest, its serial line on stdin and stdout", 0, 0, run_options},
	{"receive", cmd_receive, "[OPTION]... URI", "wait for a guest that migrates here", 1, 1,
	 receive_options},
	{"migrate", cmd_migrate, "[OPTION]... NAME URI", "move a running guest to a receiver", 2, 2,
	 migrate_options},
	{"tune", cmd_tune, "[--bandwidth RATE] [--downtime TIME] NAME",
	 "show or change the limits of a guest's migration while it runs", 1, 1, tune_options},
	{"status", cmd_status, "[--json] [NAME]", "what a guest, or every guest, is doing", 0, 1,
	 status_options},
	{"list", cmd_list, "", "one line per guest", 0, 0, no_options},
	{"pause", cmd_pause, "NAME", "stop a guest's vCPUs", 1, 1, no_options},
	{"resume", cmd_resume, "NAME", "let a paused guest run on", 1, 1, no_options},
	{"stop", cmd_stop, "[--timeout TIME] [--force] NAME",
	 "press a guest's power button and wait until it is gone", 1, 1, stop_options},
	{"resolve", cmd_resolve, "--run|--discard NAME",
	 "say where a guest is whose migration ended uncertain", 1, 1, resolve_options},
	{"cancel", cmd_cancel, "NAME", "give up a guest's migration", 1, 1, no_options},
	{"balloon", cmd_balloon, "[--json] NAME [SIZE]",
	 "show how much memory a guest has given back, or ask it for SIZE", 1, 2, status_options},
	{"doctor", cmd_doctor, "[--json]", "what this host can do, and the fix for what it cannot",
	 0, 0, doctor_options},
	{"help", cmd_help, "[COMMAND]", "this text, or a command's", 0, 1, help_options},
	{NULL, NULL, NULL, NULL, 0, 0, NULL},
};

const struct command *command_find(const char *name)
{
	for (const struct command *c = commands; c->name; c++) {
		if (strcmp(c->name, name) == 0)
			return c;
	}
	return NULL;
}

bool config_name_ok(const char *name)
{
	static const char allowed[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
				      "0123456789._-";
	size_t len = strlen(name);

	return len > 0 && len < VM_NAME_MAX && strspn(name, allowed) == len && name[0] != '.' &&
	       name[0] != '-';
}

int config_check_uri(const char *uri, struct errmsg *err)
{
	if (strlen(uri) >= MIGRATE_URI_MAX)
		return errmsg_set(err, -EINVAL, "URI is longer than %d bytes", MIGRATE_URI_MAX - 1);
	if (strncmp(uri, "tcp:", 4) == 0 || strncmp(uri, "tls:", 4) == 0) {
		const char *port = strrchr(uri + 4, ':');

		if (!port || port[1] == '\0')
			return errmsg_set(err, -EINVAL, "URI '%s' is not %.4sHOST:PORT", uri, uri);
		return 0;
	}
	if (strncmp(uri, "unix:", 5) == 0) {
		if (uri[5] == '\0')
			return errmsg_set(err, -EINVAL, "URI '%s' is not unix:PATH", uri);
		return 0;
	}
	return errmsg_set(err, -EINVAL,
			  "URI '%s' is none of tcp:HOST:PORT, tls:HOST:PORT and unix:PATH", uri);
}

/* "host,-avx2,-sse4.2" to "-avx2,-sse4.2"; the names themselves are checked by cpuid_host(). */
static int set_cpu(const char *value, char *dst, size_t size, struct errmsg *err)
{
	char copy[256];
	char *save, *word;
	size_t n = strlen(dst);

	if (strlen(value) >= sizeof(copy))
		return errmsg_set(err, -EINVAL, "value of '--cpu' is too long");
	strcpy(copy, value);
	for (word = strtok_r(copy, ",", &save); word; word = strtok_r(NULL, ",", &save)) {
		size_t len = strlen(word);

		if (strcmp(word, "host") == 0)
			continue;
		if (word[0] != '-' || len < 2)
			return errmsg_set(err, -EINVAL,
					  "'--cpu': '%s' is neither 'host' nor '-FEATURE'", word);
		if (n + len + 2 > size)
			return errmsg_set(err, -EINVAL, "value of '--cpu' is too long");
		n += (size_t)snprintf(dst + n, size - n, "%s%s", n ? "," : "", word);
	}
	return 0;
}

static int set_text(const struct option_spec *o, const char *value, char *dst, bool join,
		    struct errmsg *err)
{
	size_t n = join ? strlen(dst) : 0;

	if (!join && value[0] == '\0')
		return errmsg_set(err, -EINVAL, "'--%s' needs a value that is not empty", o->name);
	if (n + (n ? 1 : 0) + strlen(value) >= o->size)
		return errmsg_set(err, -EINVAL, "value of '--%s' is longer than %zu bytes", o->name,
				  o->size - 1);
	snprintf(dst + n, o->size - n, "%s%s", n ? " " : "", value);
	return 0;
}

static int set_memory(const char *value, uint64_t *dst, struct errmsg *err)
{
	int ret = parse_size(value, dst);

	if (ret == -ERANGE)
		return errmsg_set(err, -EINVAL, "'--memory': '%s' is more than 64 bits hold",
				  value);
	if (ret)
		return errmsg_set(err, -EINVAL, "'--memory': '%s' is not a size such as 512M or 4G",
				  value);
	if (*dst < RAM_MIN)
		return errmsg_set(err, -EINVAL, "'--memory': '%s' is less than 16M", value);
	if (*dst % PAGE_SIZE)
		return errmsg_set(err, -EINVAL, "'--memory': '%s' is not a multiple of 4K", value);
	return 0;
}

static int set_dirty(const struct option_spec *o, const char *value, struct dirty_config *dst,
		     struct errmsg *err)
{
	uint64_t entries = 0;
	bool ok = true;

	*dst = (struct dirty_config){.how = DIRTY_RING};
	if (strcmp(value, "auto") == 0)
		dst->how = DIRTY_AUTO;
	else if (strcmp(value, "log") == 0)
		dst->how = DIRTY_LOG;
	else if (strncmp(value, "ring:", 5) == 0)
		ok = parse_u64(value + 5, DIRTY_RING_MIN, DIRTY_RING_MAX, &entries) == 0 &&
		     (entries & (entries - 1)) == 0;
	else
		ok = strcmp(value, "ring") == 0;
	dst->entries = (uint32_t)entries;
	return ok ? 0
		  : errmsg_set(err, -EINVAL,
			       "'--%s': '%s' is none of 'auto', 'log', 'ring' and 'ring:ENTRIES' "
			       "with a power of two from %u to %u",
			       o->name, value, DIRTY_RING_MIN, DIRTY_RING_MAX);
}

static int set_option(const struct option_spec *o, const char *value, struct config *cfg,
		      struct errmsg *err)
{
	void *dst = (char *)cfg + o->offset;
	uint64_t v;
	int ret;

	if (!value && o->kind != OPTION_FLAG)
		return errmsg_set(err, -EINVAL, "option '--%s' needs a value", o->name);
	switch (o->kind) {
	case OPTION_FLAG:
		*(bool *)dst = true;
		return 0;
	case OPTION_TEXT:
		return set_text(o, value, dst, false, err);
	case OPTION_JOIN:
		return set_text(o, value, dst, true, err);
	case OPTION_CPU:
		return set_cpu(value, dst, o->size, err);
	case OPTION_NAME:
		if (!config_name_ok(value))
			return errmsg_set(err, -EINVAL,
					  "'%s' is not a name: 1 to %d letters, digits, '.', '_' "
					  "and '-', not first '.' or '-'",
					  value, VM_NAME_MAX - 1);
		return set_text(o, value, dst, false, err);
	case OPTION_MEMORY:
		return set_memory(value, dst, err);
	case OPTION_COUNT:
		if (parse_u64(value, 1, UINT32_MAX, &v))
			return errmsg_set(err, -EINVAL, "'--%s': '%s' is not a number from 1 on",
					  o->name, value);
		*(uint32_t *)dst = (uint32_t)v;
		return 0;
	case OPTION_CONNECTIONS:
		if (parse_u64(value, 1, MIGRATE_CONNECTIONS_MAX, &v))
			return errmsg_set(err, -EINVAL, "'--%s': '%s' is not a number from 1 to %u",
					  o->name, value, MIGRATE_CONNECTIONS_MAX);
		*(uint32_t *)dst = (uint32_t)v;
		return 0;
	case OPTION_BANDWIDTH:
		ret = migrate_parse_bandwidth(value, dst);
		if (ret == -ERANGE)
			return errmsg_set(err, -EINVAL,
					  "'--%s': '%s' is less than 64kbit or too much", o->name,
					  value);
		if (ret)
			return errmsg_set(err, -EINVAL,
					  "'--%s': '%s' is not a rate such as 1Gbit, 100Mbit, 125M "
					  "or unlimited",
					  o->name, value);
		return 0;
	case OPTION_DURATION:
	case OPTION_DURATION_0:
	case OPTION_PEER_TIMEOUT:
		/* Half the range, so that adding it to a point in time cannot overflow. */
		if (parse_duration(value, dst) || *(uint64_t *)dst > INT64_MAX / 2)
			return errmsg_set(err, -EINVAL,
					  "'--%s': '%s' is not a time such as 50ms, 30s or 1h",
					  o->name, value);
		if (*(uint64_t *)dst == 0 && o->kind == OPTION_DURATION)
			return errmsg_set(err, -EINVAL, "'--%s' must be more than 0", o->name);
		if (o->kind == OPTION_PEER_TIMEOUT && *(uint64_t *)dst < MIGRATE_PEER_TIMEOUT_MIN)
			return errmsg_set(err, -EINVAL, "'--%s': '%s' is less than 1s", o->name,
					  value);
		return 0;
	case OPTION_DISK:
		return config_disk(dst, value, err);
	case OPTION_NET:
		return config_net(dst, value, err);
	case OPTION_VSOCK:
		return config_vsock(dst, value, err);
	case OPTION_CONSOLE:
		return config_console(dst, value, err);
	case OPTION_COMPRESS: {
		enum migrate_compress mode;
		int level;

		if (migrate_parse_compress(value, &mode, &level))
			return errmsg_set(err, -EINVAL,
					  "'--%s': '%s' is none of 'auto', 'off', 'zstd' and "
					  "'zstd:LEVEL' with a level from 1 to %d",
					  o->name, value, MIGRATE_LEVEL_MAX);
		memcpy(dst, value, strlen(value) + 1);
		return 0;
	}
	case OPTION_DIRTY:
		return set_dirty(o, value, dst, err);
	case OPTION_CONFINE:
		if (confine_parse_mode(value, dst))
			return errmsg_set(err, -EINVAL,
					  "'--%s': '%s' is none of 'on', 'log' and 'off'", o->name,
					  value);
		return 0;
	case OPTION_ON_TIMEOUT:
		if (policy_parse_on_timeout(value, dst))
			return errmsg_set(err, -EINVAL,
					  "'--%s': '%s' is none of 'cancel', 'throttle' and "
					  "'continue'",
					  o->name, value);
		return 0;
	case OPTION_VERIFY:
		if (strcmp(value, "stream") == 0)
			*(enum migrate_verify *)dst = MIGRATE_VERIFY_STREAM;
		else if (strcmp(value, "full") == 0)
			*(enum migrate_verify *)dst = MIGRATE_VERIFY_FULL;
		else
			return errmsg_set(err, -EINVAL,
					  "'--%s': '%s' is neither 'stream' nor 'full'", o->name,
					  value);
		return 0;
	}
	return -EINVAL;
}

static const struct option_spec *find_long(const struct command *cmd, const char *word, size_t len)
{
	for (const struct option_spec *o = cmd->options; o->name; o++) {
		if (strlen(o->name) == len && memcmp(o->name, word, len) == 0)
			return o;
	}
	return NULL;
}

static const struct option_spec *find_letter(const struct command *cmd, char letter)
{
	for (const struct option_spec *o = cmd->options; o->name; o++) {
		if (o->letter == letter)
			return o;
	}
	return NULL;
}

/* A word that starts with "--". *i is moved on when the next word is its value. */
static int parse_long(const struct command *cmd, int argc, char **argv, int *i, struct config *cfg,
		      struct errmsg *err)
{
	const char *word = argv[*i] + 2;
	size_t len = strcspn(word, "=");
	const char *value = word[len] ? word + len + 1 : NULL;
	const struct option_spec *o;

	if (len == 4 && !value && memcmp(word, "help", 4) == 0) {
		cfg->help = true;
		return 0;
	}
	o = find_long(cmd, word, len);
	if (!o)
		return errmsg_set(err, -EINVAL, "unknown option '--%.*s'", (int)MIN(len, 60U),
				  word);
	if (!o->arg && value)
		return errmsg_set(err, -EINVAL, "option '--%s' takes no value", o->name);
	if (o->arg && !value) {
		if (*i + 1 >= argc)
			return errmsg_set(err, -EINVAL, "option '--%s' needs %s", o->name, o->arg);
		value = argv[++*i];
	}
	return set_option(o, value, cfg, err);
}

/* A word of letters: flags may be run together, a value may follow its letter at once. */
static int parse_letters(const struct command *cmd, int argc, char **argv, int *i,
			 struct config *cfg, struct errmsg *err)
{
	const char *word = argv[*i];

	for (const char *p = word + 1; *p && !cfg->help; p++) {
		const struct option_spec *o = find_letter(cmd, *p);
		const char *value = NULL;
		int ret;

		if (!o && *p == 'h') {
			cfg->help = true;
			return 0;
		}
		if (!o)
			return errmsg_set(err, -EINVAL, "unknown option '-%c'%s%s%s", *p,
					  word[2] ? " in '" : "", word[2] ? word : "",
					  word[2] ? "'" : "");
		if (o->arg) {
			if (!p[1] && *i + 1 >= argc)
				return errmsg_set(err, -EINVAL, "option '-%c' needs %s", *p,
						  o->arg);
			value = p[1] ? p + 1 : argv[++*i];
		}
		ret = set_option(o, value, cfg, err);
		if (ret || value)
			return ret;
	}
	return 0;
}

int config_parse(const struct command *cmd, int argc, char **argv, struct config *cfg,
		 struct errmsg *err)
{
	bool only_args = false;
	int ret = 0;

	memset(cfg, 0, sizeof(*cfg));
	cfg->downtime_ns = MIGRATE_DOWNTIME_DEFAULT;
	cfg->verify = MIGRATE_VERIFY_STREAM;
	cfg->reconnect_ns = cfg->keep_ns = MIGRATE_KEEP_DEFAULT;
	cfg->bandwidth = CONFIG_KEEP;
	cfg->confine = CONFINE_DEFAULT;
	for (int i = 1; i < argc && ret == 0 && !cfg->help; i++) {
		const char *word = argv[i];

		if (!only_args && strcmp(word, "--") == 0) {
			only_args = true;
		} else if (!only_args && strncmp(word, "--", 2) == 0) {
			ret = parse_long(cmd, argc, argv, &i, cfg, err);
		} else if (!only_args && word[0] == '-' && word[1]) {
			ret = parse_letters(cmd, argc, argv, &i, cfg, err);
		} else if (cfg->n_args < cmd->max_args) {
			cfg->args[cfg->n_args++] = word;
		} else {
			ret = errmsg_set(err, -EINVAL, "unexpected word '%.200s'", word);
		}
	}
	if (ret == 0 && !cfg->help && cfg->n_args < cmd->min_args)
		ret = errmsg_set(err, -EINVAL, "%s is missing",
				 cmd->min_args == 2 ? (cfg->n_args ? "the destination's URI"
								   : "a guest's NAME")
				 : strstr(cmd->synopsis, "URI") ? "the URI to listen at"
								: "a guest's NAME");
	/* It quotes words that may hold anything; it stays one line and harmless to a terminal. */
	for (char *p = err->text; ret && *p; p++) {
		if (iscntrl((unsigned char)*p))
			*p = '?';
	}
	return ret;
}

void config_help(FILE *f)
{
	fprintf(f, "usage: godwit COMMAND [OPTION]... [ARGUMENT]...\n\n"
		   "A small hypervisor for Linux guests that can be moved while they run.\n\n");
	for (const struct command *c = commands; c->name; c++)
		fprintf(f, "  %-9s %s\n", c->name, c->help);
	fprintf(f, "\n'godwit COMMAND --help' shows a command's options, 'godwit --version' the "
		   "version; more in godwit(1).\n");
}

void config_command_help(const struct command *cmd, FILE *f)
{
	fprintf(f, "usage: godwit %s%s%s\n\n%s\n\n", cmd->name, cmd->synopsis[0] ? " " : "",
		cmd->synopsis, cmd->help);
	for (const struct option_spec *o = cmd->options; o->name; o++) {
		char left[64];

		snprintf(left, sizeof(left), "%c%c%c --%s%s%s", o->letter ? '-' : ' ',
			 o->letter ? o->letter : ' ', o->letter ? ',' : ' ', o->name,
			 o->arg ? " " : "", o->arg ? o->arg : "");
		fprintf(f, "  %-22s %s\n", left, o->help);
	}
	fprintf(f, "  %-22s %s\n", "-h, --help", "this text");
}

void config_list_options(FILE *f)
{
	for (const struct command *c = commands; c->name; c++) {
		for (const struct option_spec *o = c->options; o->name; o++) {
			fprintf(f, "%s --%s", c->name, o->name);
			if (o->letter)
				fprintf(f, " -%c", o->letter);
			fprintf(f, "%s%s\n", o->arg ? " " : "", o->arg ? o->arg : "");
		}
	}
}
