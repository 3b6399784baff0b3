/* SPDX-License-Identifier: MIT */
/* The commands that ask something of a running guest's process and show its answer. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd.h"
#include "config.h"
#include "ctl_client.h"
#include "report.h"
#include "rundir.h"

#define LIST_TIMEOUT                                                                               \
	(2 *                                                                                       \
	 NS_PER_SEC) /* for each guest: one that hangs must not hide the others                \
			  */
#define STOP_TIMEOUT (30 * NS_PER_SEC)
#define END_TIMEOUT (30 * NS_PER_SEC) /* for a process to give back a large guest's memory */

/* A word that is not a name has no guest: said as a usage error, before any path is made of it. */
static bool check_name(const char *cmd, const char *name)
{
	if (config_name_ok(name))
		return true;
	log_error("%s: '%.100s' is not a guest's name (see 'godwit list')", cmd, name);
	return false;
}

static const char *text(const json_t *obj, const char *key, const char *missing)
{
	const char *s = json_string_value(json_object_get(obj, key));

	return s && s[0] ? s : missing;
}

static const char *format_uptime(char *buf, size_t len, uint64_t s)
{
	if (s < 3600)
		snprintf(buf, len, "%um%02us", (unsigned)(s / 60), (unsigned)(s % 60));
	else
		snprintf(buf, len, "%uh%02um", (unsigned)(s / 3600), (unsigned)(s / 60 % 60));
	return buf;
}

static void print_migration(const json_t *m)
{
	char line[256];

	if (json_object_get(m, "status")) {
		const char *why = text(m, "error", NULL);

		printf("migration  %s, to %s%s%s\n", text(m, "status", "?"), text(m, "uri", "?"),
		       why ? ": " : "", why ? why : "");
		return;
	}
	if (strcmp(text(m, "phase", "?"), "listening") == 0) {
		printf("migration  waiting for a source at %s\n", text(m, "uri", "?"));
		return;
	}
	report_progress_line(m, line, sizeof(line));
	printf("migration  %s, %s\n", text(m, "uri", "?"), line);
	report_details(m, stdout);
	if (json_object_get(m, "not_converging"))
		printf("           it %s\n", text(m, "not_converging", "?"));
}

static void print_device(const json_t *d)
{
	const char *type = text(d, "type", "?");
	const char *place = text(d, "path", text(d, "tap", text(d, "backend", "")));

	printf("%-10s %s", type, place);
	if (strcmp(type, "disk") == 0)
		printf(", cache=%s%s", text(d, "cache", "?"),
		       json_is_true(json_object_get(d, "readonly")) ? ", read-only" : "");
	else if (strcmp(type, "net") == 0)
		printf(", %s, %s", text(d, "mac", "?"),
		       json_is_true(json_object_get(d, "link")) ? "up" : "no link");
	else if (strcmp(type, "vsock") == 0)
		printf(", cid %llu, %llu connections", (unsigned long long)report_u64(d, "cid"),
		       (unsigned long long)report_u64(d, "connections"));
	printf("\n");
}

static void print_status(const json_t *s)
{
	const json_t *devices = json_object_get(s, "devices"), *d;
	size_t i;
	const json_t *m = json_object_get(s, "migration");
	char ram[32], up[32];

	printf("name       %s\n", text(s, "name", "?"));
	printf("pid        %llu\n", (unsigned long long)report_u64(s, "pid"));
	printf("state      %s\n", text(s, "state", "?"));
	if (json_object_get(s, "ram_bytes")) {
		printf("memory     %s\n",
		       format_size(ram, sizeof(ram), report_u64(s, "ram_bytes")));
		printf("vcpus      %llu\n", (unsigned long long)report_u64(s, "vcpus"));
		printf("kernel     %s\n", text(s, "kernel", "?"));
		if (text(s, "initrd", NULL))
			printf("initrd     %s\n", text(s, "initrd", "?"));
		if (text(s, "cmdline", NULL))
			printf("cmdline    %s\n", text(s, "cmdline", "?"));
		json_array_foreach(devices, i, d)
		{
			print_device(d);
		}
		printf("here for   %s\n", format_uptime(up, sizeof(up), report_u64(s, "uptime_s")));
	}
	if (m)
		print_migration(m);
}

static void print_list_line(const json_t *s)
{
	char ram[32], up[32];

	if (!json_object_get(s, "ram_bytes")) {
		printf("%-20s %-10s %8llu\n", text(s, "name", "?"), text(s, "state", "?"),
		       (unsigned long long)report_u64(s, "pid"));
		return;
	}
	printf("%-20s %-10s %8llu %10s %4llu  %s\n", text(s, "name", "?"), text(s, "state", "?"),
	       (unsigned long long)report_u64(s, "pid"),
	       format_size(ram, sizeof(ram), report_u64(s, "ram_bytes")),
	       (unsigned long long)report_u64(s, "vcpus"),
	       format_uptime(up, sizeof(up), report_u64(s, "uptime_s")));
}

static int get_status(const char *name, uint64_t timeout_ns, json_t **out, struct errmsg *err)
{
	int ret = ctl_call(name, json_pack("{s:s}", "cmd", "status"), timeout_ns, out, err);

	if (ret == 0)
		json_object_del(*out, "ok");
	return ret;
}

/* Shows every guest that lives. What a dead one left is removed; one that hangs is named. */
static int for_each_guest(void (*show)(json_t *status, unsigned n), const char *cmd)
{
	char(*names)[VM_NAME_MAX] = NULL;
	struct errmsg err = {""};
	int status = EXIT_DONE;
	unsigned shown = 0;
	int n = rundir_list(&names, &err);

	if (n < 0) {
		log_error("%s: %s", cmd, err.text);
		return EXIT_FAILED;
	}
	for (int i = 0; i < n; i++) {
		struct errmsg why = {""};
		json_t *s = NULL;
		int ret = get_status(names[i], LIST_TIMEOUT, &s, &why);

		if (ret == 0) {
			show(s, shown++);
			json_decref(s);
		} else if (ret == -ENOENT) {
			rundir_remove_dead(names[i]);
		} else if (ret != -ECONNRESET) {
			log_error("%s: %s: %s", cmd, names[i], why.text);
			status = EXIT_FAILED;
		}
	}
	free(names);
	return status;
}

static void show_list(json_t *s, unsigned n)
{
	report_plain(s);
	if (n == 0)
		printf("%-20s %-10s %8s %10s %4s  %s\n", "NAME", "STATE", "PID", "MEMORY", "CPUS",
		       "UPTIME");
	print_list_line(s);
}

static void show_status(json_t *s, unsigned n)
{
	report_plain(s);
	if (n)
		printf("\n");
	print_status(s);
}

static void show_json(json_t *s, unsigned n)
{
	(void)n;
	json_dumpf(s, stdout, REPORT_JSON_FLAGS);
	printf("\n");
}

int cmd_list(int argc, char **argv)
{
	struct config cfg;
	int status;

	if (!cmd_parse(argc, argv, &cfg, &status))
		return status;
	return for_each_guest(show_list, "list");
}

int cmd_tune(int argc, char **argv)
{
	struct errmsg err = {""};
	json_t *request, *answer;
	struct config cfg;
	char rate[32];
	int status;

	if (!cmd_parse(argc, argv, &cfg, &status))
		return status;
	if (!check_name("tune", cfg.args[0]))
		return EXIT_USAGE;
	request = json_pack("{s:s}", "cmd", "tune");
	if (cfg.bandwidth != CONFIG_KEEP)
		json_object_set_new(request, "bandwidth", json_integer((json_int_t)cfg.bandwidth));
	if (cfg.new_downtime_ns)
		json_object_set_new(request, "downtime_ms", report_ms(cfg.new_downtime_ns));
	if (ctl_call(cfg.args[0], request, CTL_CALL_TIMEOUT, &answer, &err)) {
		log_error("tune: %s", err.text);
		return EXIT_FAILED;
	}
	json_object_del(answer, "ok");
	if (cfg.json)
		show_json(answer, 0);
	else
		printf("bandwidth  %s\ndowntime   %.4g ms\n",
		       report_rate(rate, sizeof(rate), report_u64(answer, "bandwidth")),
		       json_number_value(json_object_get(answer, "downtime_target_ms")));
	json_decref(answer);
	return EXIT_DONE;
}

int cmd_status(int argc, char **argv)
{
	struct errmsg err = {""};
	struct config cfg;
	json_t *s;
	int status;

	if (!cmd_parse(argc, argv, &cfg, &status))
		return status;
	if (cfg.n_args == 0)
		return for_each_guest(cfg.json ? show_json : show_status, "status");
	if (!check_name("status", cfg.args[0]))
		return EXIT_USAGE;
	if (get_status(cfg.args[0], CTL_CALL_TIMEOUT, &s, &err)) {
		log_error("status: %s", err.text);
		return EXIT_FAILED;
	}
	if (cfg.json)
		show_json(s, 0);
	else
		show_status(s, 0);
	json_decref(s);
	return EXIT_DONE;
}

/* A command that is one request to the guest that its only word names. */
static int simple(int argc, char **argv)
{
	struct errmsg err = {""};
	struct config cfg;
	int status;

	if (!cmd_parse(argc, argv, &cfg, &status))
		return status;
	if (!check_name(argv[0], cfg.args[0]))
		return EXIT_USAGE;
	if (ctl_call(cfg.args[0], json_pack("{s:s}", "cmd", argv[0]), CTL_CALL_TIMEOUT, NULL,
		     &err)) {
		log_error("%s: %s", argv[0], err.text);
		return EXIT_FAILED;
	}
	return EXIT_DONE;
}

int cmd_pause(int argc, char **argv)
{
	return simple(argc, argv);
}

int cmd_resume(int argc, char **argv)
{
	return simple(argc, argv);
}

int cmd_cancel(int argc, char **argv)
{
	return simple(argc, argv);
}

/*
 * A request that ends the guest within timeout_ns, which it keeps itself. Waits until its process
 * has gone, not only until it says that it will. Takes request over.
 */
static int call_to_end(const char *name, json_t *request, uint64_t timeout_ns, struct errmsg *err)
{
	struct ctl_conn c;
	json_t *answer = NULL;
	int ret = ctl_connect(&c, name, err);

	if (ret) {
		json_decref(request);
		return ret;
	}
	ret = ctl_send(&c, request, err);
	/* This is for one that hangs. */
	if (ret == 0)
		ret = ctl_recv(&c, &answer, timeout_ns + CTL_CALL_TIMEOUT, err);
	if (ret == 0 && !json_is_true(json_object_get(answer, "ok")))
		ret = errmsg_set(err, -EREMOTEIO, "%s: %s", name,
				 text(answer, "error", "no reason given"));
	if (ret == 0 && ctl_wait_end(&c, END_TIMEOUT))
		ret = errmsg_set(err, -ETIMEDOUT, "'%s' has ended, but its process has not", name);
	/* Gone before it could answer: gone all the same. */
	if (ret == -ECONNRESET)
		ret = 0;
	json_decref(answer);
	ctl_close(&c);
	return ret;
}

int cmd_stop(int argc, char **argv)
{
	struct errmsg err = {""};
	uint64_t timeout_ns;
	struct config cfg;
	int status;

	if (!cmd_parse(argc, argv, &cfg, &status))
		return status;
	if (!check_name("stop", cfg.args[0]))
		return EXIT_USAGE;
	timeout_ns = cfg.timeout_ns ? cfg.timeout_ns : STOP_TIMEOUT;
	if (call_to_end(cfg.args[0],
			json_pack("{s:s,s:b,s:o}", "cmd", "stop", "force", cfg.force, "timeout_ms",
				  report_ms(timeout_ns)),
			timeout_ns, &err)) {
		log_error("stop: %s", err.text);
		return EXIT_FAILED;
	}
	return EXIT_DONE;
}

int cmd_resolve(int argc, char **argv)
{
	struct errmsg err = {""};
	struct config cfg;
	json_t *request;
	int status;

	if (!cmd_parse(argc, argv, &cfg, &status))
		return status;
	if (!check_name("resolve", cfg.args[0]))
		return EXIT_USAGE;
	if (cfg.run == cfg.discard) {
		log_error("resolve: say --run if the receiver of '%s' has ended and it never ran "
			  "there, or --discard if it runs there ('godwit status %s' names the "
			  "receiver)",
			  cfg.args[0], cfg.args[0]);
		return EXIT_USAGE;
	}
	request = json_pack("{s:s,s:s}", "cmd", "resolve", "how", cfg.run ? "run" : "discard");
	if (cfg.run ? ctl_call(cfg.args[0], request, CTL_CALL_TIMEOUT, NULL, &err)
		    : call_to_end(cfg.args[0], request, 0, &err)) {
		log_error("resolve: %s", err.text);
		return EXIT_FAILED;
	}
	return EXIT_DONE;
}
