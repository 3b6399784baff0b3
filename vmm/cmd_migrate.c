/* SPDX-License-Identifier: MIT */
/*
 * godwit migrate: starts a migration by the control socket of the guest's process, shows its
 * progress, and says how it ended.
 *
 * Theory of operation: the guest's process does the work; this one waits for lines on one
 * connection, for signals, and, once the user has cancelled, for the answer to that on a second
 * connection. Whatever is not a final report leaves open where the guest runs: the exit status
 * then is 3, never a guess.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "cmd.h"
#include "config.h"
#include "ctl_client.h"
#include "report.h"

#define SHOW_NS (150 * NS_PER_MS) /* every second line of the process's */
/* The process sends progress ten times a second; this long without a line it hangs. */
#define SILENCE_NS (30 * NS_PER_SEC)
#define END_NS (30 * NS_PER_SEC) /* to give back a large guest's memory */

struct view {
	const char *name;
	bool tty;	/* a line that is overwritten */
	bool rounds;	/* a line per round */
	bool line_open; /* something stands on the terminal's present line */
	uint64_t shown_ns;
	uint64_t round;
	char phase[32]; /* as last heard */
	char round_line[256];
};

static void clear_line(struct view *v)
{
	if (v->line_open)
		fprintf(stderr, "\r\033[K");
	v->line_open = false;
}

/* A line that wraps could not be overwritten. */
static int terminal_width(void)
{
	struct winsize ws;

	return ioctl(STDERR_FILENO, TIOCGWINSZ, &ws) == 0 && ws.ws_col ? ws.ws_col : 80;
}

static void show_progress(struct view *v, json_t *p)
{
	const char *phase;
	uint64_t round = report_u64(p, "round");
	uint64_t now = now_ns();
	char line[256], full[sizeof(line) + VM_NAME_MAX];

	report_plain(p);
	phase = json_string_value(json_object_get(p, "phase"));
	if (phase)
		snprintf(v->phase, sizeof(v->phase), "%s", phase);
	report_progress_line(p, line, sizeof(line));
	if (v->rounds && v->round && round != v->round) {
		clear_line(v);
		log_info("%s", v->round_line);
	}
	v->round = round;
	snprintf(v->round_line, sizeof(v->round_line), "%s", line);
	snprintf(full, sizeof(full), "%s: %s", v->name, line);
	if (v->tty && now - v->shown_ns >= SHOW_NS) {
		fprintf(stderr, "\r%.*s\033[K", terminal_width() - 1, full);
		v->line_open = true;
		v->shown_ns = now;
	}
}

static void print_json(json_t *report)
{
	json_dumpf(report, stdout, REPORT_JSON_FLAGS);
	printf("\n");
	json_decref(report);
}

static int finish(struct view *v, json_t *answer, bool json)
{
	const char *error = json_string_value(json_object_get(answer, "error"));
	const char *status = json_string_value(json_object_get(answer, "status"));
	const char *leave = json_string_value(json_object_get(answer, "leave_error"));
	int result = EXIT_FAILED;

	clear_line(v);
	if (v->rounds && v->round)
		log_info("%s", v->round_line);
	/* An answer without a report refuses what had not begun. */
	if (!status)
		status = v->phase[0] ? "uncertain" : "failed";
	if (strcmp(status, "completed") == 0)
		result = EXIT_DONE;
	else if (strcmp(status, "uncertain") == 0)
		result = EXIT_UNCERTAIN;

	if (result != EXIT_DONE)
		log_error("migrate: %s: %s", v->name, error ? error : "no reason given");
	if (result == EXIT_UNCERTAIN)
		log_error("migrate: look for it at the destination with 'godwit list'; a copy that "
			  "is still here stays paused until 'godwit resolve %s --run' or 'godwit "
			  "resolve %s --discard'",
			  v->name, v->name);
	if (leave)
		log_warn("migrate: %s has moved, but its memory could not be left behind: %s",
			 v->name, leave);
	if (json) {
		json_object_del(answer, "ok");
		json_object_set_new(answer, "status", json_string(status));
		print_json(json_incref(answer));
	} else if (result == EXIT_DONE) {
		report_plain(answer);
		report_summary(answer, stdout);
	}
	return result;
}

/* The report for programs when the guest's process gave none. */
static int finish_unknown(struct view *v, const char *why, bool json)
{
	clear_line(v);
	log_error(
		"migrate: %s: %s (last heard: %s); whether the guest runs at the destination must "
		"be looked up there with 'godwit list'",
		v->name, why, v->phase[0] ? v->phase : "nothing");
	if (json)
		print_json(json_pack("{s:s,s:s,s:o,s:s}", "status", "uncertain", "error", why,
				     "phase", report_text(v->phase), "name", v->name));
	return EXIT_UNCERTAIN;
}

static void send_cancel(struct view *v, struct ctl_conn *cancel)
{
	struct errmsg err = {""};

	clear_line(v);
	log_info("cancelling; Ctrl-C again leaves without waiting for the outcome");
	if (ctl_connect(cancel, v->name, &err) == 0)
		ctl_send(cancel, json_pack("{s:s}", "cmd", "cancel"), &err);
	if (err.text[0])
		log_warn("cannot cancel: %s", err.text);
}

static void hear_cancel(struct view *v, struct ctl_conn *cancel)
{
	json_t *answer = NULL;

	if (ctl_recv(cancel, &answer, 0, NULL) == 0 &&
	    !json_is_true(json_object_get(answer, "ok"))) {
		const char *why = json_string_value(json_object_get(answer, "error"));

		clear_line(v);
		log_warn("cannot cancel: %s", why ? why : "no reason given");
	}
	json_decref(answer);
	ctl_close(cancel);
}

static bool interrupted(int signal_fd)
{
	struct signalfd_siginfo si;

	return read(signal_fd, &si, sizeof(si)) == (ssize_t)sizeof(si);
}

/* Takes in what the process has sent by now. The exit status if that was the end, else -1. */
static int hear(struct view *v, struct ctl_conn *conn, uint64_t *heard_ns, bool json)
{
	int status = -1, ret = 0;
	json_t *line;

	while (status < 0 && (ret = ctl_recv(conn, &line, 0, NULL)) == 0) {
		*heard_ns = now_ns();
		if (json_object_get(line, "event"))
			show_progress(v, line);
		else
			status = finish(v, line, json);
		json_decref(line);
	}
	if (status >= 0)
		return status;
	if (ret == -ECONNRESET)
		return finish_unknown(v, "its process has ended or closed the connection", json);
	if (ret != -ETIMEDOUT)
		return finish_unknown(v, "its process cannot be understood", json);
	if (now_ns() - *heard_ns > SILENCE_NS)
		return finish_unknown(v, "its process does not answer", json);
	return -1;
}

/* Follows the migration on conn to its end. */
static int follow(struct view *v, struct ctl_conn *conn, int signal_fd, bool json)
{
	struct ctl_conn cancel = {.fd = -1};
	uint64_t heard_ns = now_ns();
	bool cancelled = false;
	int status = -1;

	while (status < 0) {
		struct pollfd p[] = {
			{.fd = conn->fd, .events = POLLIN},
			{.fd = signal_fd, .events = POLLIN},
			{.fd = cancel.fd, .events = POLLIN},
		};

		poll(p, ARRAY_SIZE(p), 1000);
		status = hear(v, conn, &heard_ns, json);
		if (status >= 0)
			break;
		if (p[2].revents)
			hear_cancel(v, &cancel);
		if (!interrupted(signal_fd))
			continue;
		if (cancelled)
			status = finish_unknown(v, "left, the migration goes on by itself", json);
		else
			send_cancel(v, &cancel);
		cancelled = true;
	}
	ctl_close(&cancel);
	return status;
}

/* A relative path means this process's folder, not that of the guest's process. */
static int absolute_path(const char *path, const char *before, char *out, int size,
			 struct errmsg *err)
{
	AUTO_FREE char *cwd = NULL;
	int n;

	if (path[0] == '/') {
		n = snprintf(out, (size_t)size, "%s%s", before, path);
	} else {
		cwd = getcwd(NULL, 0);
		if (!cwd)
			return errmsg_set(err, -errno, "current folder: %s", strerror(errno));
		n = snprintf(out, (size_t)size, "%s%s/%s", before, cwd, path);
	}
	if (n >= size)
		return errmsg_set(err, -ENAMETOOLONG, "%s is longer than %d bytes",
				  before[0] ? "URI" : "path", size - 1);
	return 0;
}

static int absolute_uri(const char *uri, char out[MIGRATE_URI_MAX], struct errmsg *err)
{
	if (strncmp(uri, "unix:", 5) == 0)
		return absolute_path(uri + 5, "unix:", out, MIGRATE_URI_MAX, err);
	snprintf(out, MIGRATE_URI_MAX, "%s", uri);
	return 0;
}

/* The files that the guest's process is to read: by paths that are good for it, too. */
static int absolute_files(struct config *cfg, struct errmsg *err)
{
	const struct {
		const char *option;
		char *path;
	} files[] = {
		{"leave", cfg->leave},	 {"tls-cert", cfg->tls.cert}, {"tls-key", cfg->tls.key},
		{"tls-ca", cfg->tls.ca}, {"tls-psk", cfg->tls.psk},
	};
	char path[VM_PATH_MAX];
	struct errmsg why = {""};
	int ret;

	for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
		if (!files[i].path[0])
			continue;
		ret = absolute_path(files[i].path, "", path, sizeof(path), &why);
		if (ret)
			return errmsg_set(err, ret, "--%s: %.400s", files[i].option, why.text);
		memcpy(files[i].path, path, sizeof(path));
	}
	return 0;
}

static void add_text(json_t *r, const char *member, const char *text)
{
	if (text[0])
		json_object_set_new(r, member, report_text(text));
}

static json_t *make_request(const struct config *cfg, const char *uri)
{
	json_t *r = json_pack("{s:s,s:o,s:o,s:s}", "cmd", "migrate", "uri", report_text(uri),
			      "downtime_ms", report_ms(cfg->downtime_ns), "verify",
			      cfg->verify == MIGRATE_VERIFY_FULL ? "full" : "stream");

	if (cfg->timeout_ns)
		json_object_set_new(r, "timeout_ms", report_ms(cfg->timeout_ns));
	if (cfg->on_timeout != ON_TIMEOUT_CANCEL)
		json_object_set_new(r, "on_timeout",
				    json_string(policy_on_timeout_name(cfg->on_timeout)));
	if (cfg->connections)
		json_object_set_new(r, "connections", json_integer(cfg->connections));
	if (cfg->compress[0])
		json_object_set_new(r, "compress", json_string(cfg->compress));
	json_object_set_new(r, "reconnect_ms", report_ms(cfg->reconnect_ns));
	add_text(r, "leave", cfg->leave);
	if (cfg->bandwidth != CONFIG_KEEP)
		json_object_set_new(r, "bandwidth", json_integer((json_int_t)cfg->bandwidth));
	if (cfg->peer_timeout_ns)
		json_object_set_new(r, "peer_timeout_ms", report_ms(cfg->peer_timeout_ns));
	add_text(r, "tls_cert", cfg->tls.cert);
	add_text(r, "tls_key", cfg->tls.key);
	add_text(r, "tls_ca", cfg->tls.ca);
	add_text(r, "tls_psk", cfg->tls.psk);
	add_text(r, "tls_name", cfg->tls.name);
	return r;
}

/* Before the request is out a failure is plain: nothing has been started. */
static int not_started(const char *name, const struct errmsg *err, bool json)
{
	log_error("migrate: %s", err->text);
	if (json)
		print_json(json_pack("{s:s,s:o,s:s}", "status", "failed", "error",
				     report_text(err->text), "name", name));
	return EXIT_FAILED;
}

int cmd_migrate(int argc, char **argv)
{
	char uri[MIGRATE_URI_MAX];
	struct errmsg err = {""};
	struct ctl_conn conn;
	struct config cfg;
	struct view v;
	sigset_t set;
	int status;
	AUTO_CLOSE int signal_fd = -1;

	if (!cmd_parse(argc, argv, &cfg, &status))
		return status;
	if (!config_name_ok(cfg.args[0])) {
		log_error("migrate: '%.100s' is not a guest's name (see 'godwit list')",
			  cfg.args[0]);
		return EXIT_USAGE;
	}
	if (config_check_uri(cfg.args[1], &err) || absolute_uri(cfg.args[1], uri, &err)) {
		log_error("migrate: %s (see 'godwit migrate --help')", err.text);
		return EXIT_USAGE;
	}
	if (migrate_check_tls(uri, &cfg.tls, &err) || absolute_files(&cfg, &err)) {
		log_error("migrate: %s", err.text);
		return EXIT_USAGE;
	}
	cmd_warn_exposed(&cfg, uri, false);
	v = (struct view){
		.name = cfg.args[0],
		.tty = isatty(STDERR_FILENO) && !cfg.quiet,
		.rounds = cfg.verbose,
	};

	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (signal_fd < 0) {
		log_error("signalfd: %s", strerror(errno));
		return EXIT_FAILED;
	}
	if (ctl_connect(&conn, v.name, &err))
		return not_started(v.name, &err, cfg.json);
	if (ctl_send(&conn, make_request(&cfg, uri), &err)) {
		ctl_close(&conn);
		return not_started(v.name, &err, cfg.json);
	}
	status = follow(&v, &conn, signal_fd, cfg.json);
	/* So that the guest's name is free here when we are back: the next guest may come for it.
	 */
	if (status == EXIT_DONE && ctl_wait_end(&conn, END_NS))
		log_warn("'%s' has moved, but its process here has not ended yet", v.name);
	ctl_close(&conn);
	return status;
}
