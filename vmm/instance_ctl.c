/* SPDX-License-Identifier: MIT */
/*
 * What the control socket can ask of a guest: the protocol of godwit(1), CONTROL SOCKET.
 *
 * Theory of operation: a handler looks at the state first and refuses what does not fit it, in
 * words; what takes time is started and the client put among the waiters, which are answered when
 * it has happened, or by the tick when it has not in time.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cmd.h"
#include "config.h"
#include "instance.h"
#include "instance_devices.h"
#include "machine.h"
#include "report.h"

#define TICK_NS (100 * NS_PER_MS)
#define STOP_TIMEOUT_NS (30 * NS_PER_SEC)
#define PAUSE_NS (2 * NS_PER_SEC) /* the loop stands still meanwhile */

/* ---- waiters ---- */

static void on_tick(struct loop_op *op, int32_t res);

static void arm_tick(struct instance *in)
{
	if (in->tick_op.pending || !in->waiters || in->quitting)
		return;
	in->tick_op.done = on_tick;
	loop_timer(&in->loop, &in->tick_op, TICK_NS);
}

/*
 * For a client who is to be told how it ends: before anything begins, which nobody could be told of
 * otherwise. NULL once the client has been told that there is none.
 */
static struct waiter *new_waiter(struct ctl_client *client)
{
	struct waiter *w = calloc(1, sizeof(*w));

	if (w)
		w->client = client;
	else
		ctl_error(client, NULL, "no memory to wait for the outcome: nothing was done");
	return w;
}

/* Keeps the client until what it waits for happens; takes *w over. */
static void wait_for(struct instance *in, struct waiter **w, enum waiter_kind kind,
		     uint64_t deadline_ns)
{
	(*w)->kind = kind;
	(*w)->deadline_ns = deadline_ns;
	(*w)->next = in->waiters;
	in->waiters = *w;
	*w = NULL;
	arm_tick(in);
}

/* Figures of the migration that runs; its clock goes on between its own updates. */
static json_t *migration_progress(struct instance *in)
{
	struct migrate_stats stats;

	migrate_get_stats(in->migration, &stats);
	stats.total_ns = now_ns() - in->migration_start_ns;
	return report_progress(&stats);
}

static void on_tick(struct loop_op *op, int32_t res)
{
	struct instance *in = container_of(op, struct instance, tick_op);
	uint64_t now = now_ns();

	(void)res;
	for (struct waiter **p = &in->waiters, *w; (w = *p);) {
		json_t *progress;

		if (w->deadline_ns && now >= w->deadline_ns) {
			*p = w->next;
			ctl_error(w->client, NULL,
				  "the guest did not power off in time; --force ends it at once");
			free(w);
			continue;
		}
		p = &w->next;
		if (w->kind != WAIT_MIGRATE || !in->migration)
			continue;
		progress = migration_progress(in);
		json_object_set_new(progress, "event", json_string("progress"));
		ctl_event(w->client, progress);
	}
	arm_tick(in);
}

bool instance_stop_pending(const struct instance *in)
{
	for (const struct waiter *w = in->waiters; w; w = w->next) {
		if (w->kind == WAIT_STOP)
			return true;
	}
	return false;
}

static json_t *last_report(struct instance *in)
{
	json_t *report = report_final(&in->last);

	json_object_set_new(report, "name", json_string(in->cfg.name));
	json_object_set_new(report, "uri", report_text(in->migration_uri));
	return report;
}

static void answer_one(struct instance *in, struct waiter *w)
{
	enum migrate_status status = in->last.status;

	switch (w->kind) {
	case WAIT_MIGRATE:
		if (status == MIGRATE_COMPLETED)
			ctl_reply(w->client, last_report(in));
		else
			ctl_error(w->client, last_report(in), "%s", in->last.error.text);
		break;
	case WAIT_CANCEL:
		if (status == MIGRATE_COMPLETED)
			ctl_error(w->client, NULL, "too late: it has moved to %s",
				  in->migration_uri);
		else if (status == MIGRATE_UNCERTAIN)
			ctl_error(w->client, NULL, "too late: %s", in->last.error.text);
		else
			ctl_reply(w->client, NULL);
		break;
	case WAIT_STOP:
		if (status == MIGRATE_COMPLETED)
			ctl_error(w->client, NULL, "too late: it has moved to %s",
				  in->migration_uri);
		else
			ctl_error(w->client, NULL, "too late: %s", in->last.error.text);
		break;
	}
}

void instance_answer_migration(struct instance *in)
{
	bool here = in->last.status == MIGRATE_FAILED || in->last.status == MIGRATE_CANCELLED;
	bool press = false;

	for (struct waiter **p = &in->waiters, *w; (w = *p);) {
		if (here && w->kind == WAIT_STOP) {
			/* A stop that had to cancel the migration first goes on now. */
			press = true;
			p = &w->next;
			continue;
		}
		*p = w->next;
		answer_one(in, w);
		free(w);
	}
	if (press && !in->stop_wanted)
		machine_power_button(in->vm);
}

void instance_answer_all(struct instance *in)
{
	struct waiter *w;

	while ((w = in->waiters)) {
		in->waiters = w->next;
		/* A migration that is still there is one that could not be given up. */
		if (w->kind == WAIT_STOP)
			ctl_reply(w->client, NULL);
		else
			ctl_error(w->client, json_pack("{s:s}", "status", "uncertain"),
				  "its process ends while its handover is being committed");
		free(w);
	}
}

/* ---- handlers ---- */

/* Members of a request by a jansson format ending in "!": an unknown one is an error. */
#define UNPACK(client, request, ...) unpack_ok(client, &(json_error_t){0}, request, 0, __VA_ARGS__)

static bool unpack_ok(struct ctl_client *client, json_error_t *jerr, json_t *request, size_t flags,
		      const char *fmt, ...)
{
	va_list ap;
	int ret;

	va_start(ap, fmt);
	ret = json_vunpack_ex(request, jerr, flags, fmt, ap);
	va_end(ap);
	if (ret)
		ctl_error(client, NULL, "request: %s", jerr->text);
	return ret == 0;
}

/* Milliseconds of a request to nanoseconds. False when that is no sensible time. */
static bool to_ns(double ms, uint64_t *ns)
{
	if (!(ms > 0 && ms < 1e12))
		return false;
	*ns = (uint64_t)(ms * (double)NS_PER_MS);
	return *ns > 0;
}

/* Bytes a second of a request, 0 for no limit. Says so if that is not what it is. */
static bool take_bandwidth(struct ctl_client *client, json_int_t bytes, uint64_t *out)
{
	*out = (uint64_t)bytes;
	if (bytes == 0 || bytes >= (json_int_t)MIGRATE_BANDWIDTH_MIN)
		return true;
	ctl_error(client, NULL, "bandwidth is neither 0 nor bytes a second, at least %u",
		  MIGRATE_BANDWIDTH_MIN);
	return false;
}

/* An absolute path of a request, or "" for none. Says so if that is not what it is. */
static bool take_path(struct ctl_client *client, const char *member, const char *path,
		      char out[VM_PATH_MAX])
{
	if (path[0] && (path[0] != '/' || strlen(path) >= VM_PATH_MAX)) {
		ctl_error(client, NULL, "%s is not an absolute path", member);
		return false;
	}
	memcpy(out, path, strlen(path) + 1);
	return true;
}

/* Is there a machine that has not ended and is not on its way in? Says so if not. */
static bool have_guest(struct instance *in, struct ctl_client *client)
{
	if (in->receiver)
		ctl_error(client, NULL, "the guest is still arriving");
	else if (!in->vm && !in->quitting)
		ctl_error(client, NULL, "the guest is being reset: try again");
	else if (!in->vm || vm_get_end(in->vm) != VM_END_NONE)
		ctl_error(client, NULL, "the guest has ended");
	else
		return true;
	return false;
}

static bool refuse_uncertain(struct instance *in, struct ctl_client *client)
{
	const char *name = in->cfg.name;

	if (!instance_uncertain(in))
		return false;
	ctl_error(client, NULL,
		  "it may run at %s since its migration ended uncertain. 'godwit resolve %s --run' "
		  "if its receiver there has ended and it never ran there, 'godwit resolve %s "
		  "--discard' if it runs there",
		  in->migration_uri, name, name);
	return true;
}

static bool refuse_migrating(struct instance *in, struct ctl_client *client)
{
	if (!in->migration)
		return false;
	ctl_error(client, NULL, "a migration is running ('godwit cancel %s' gives it up)",
		  in->cfg.name);
	return true;
}

static const char *state_name(struct instance *in)
{
	if (in->receiver)
		return "receiving";
	if (!in->vm && in->quitting) /* also one that nothing has come to */
		return "ended";
	if (!in->vm) /* in a reset */
		return in->start_paused ? "paused" : "running";
	if (in->migration)
		return "migrating";
	if (instance_uncertain(in))
		return "uncertain";
	return vm_paused(in->vm) & VM_PAUSE_USER ? "paused" : "running";
}

static void status_migration(struct instance *in, json_t *answer)
{
	struct migrate_stats stats;
	json_t *report;

	if (in->receiver) {
		receive_get_stats(in->receiver, &stats);
		report = report_progress(&stats);
		json_object_set_new(report, "uri", report_text(in->receive_uri));
	} else if (in->migration) {
		report = migration_progress(in);
		json_object_set_new(report, "uri", report_text(in->migration_uri));
	} else if (in->has_last) {
		report = last_report(in);
	} else {
		return;
	}
	json_object_set_new(answer, "migration", report);
}

static void do_status(void *arg, struct ctl_client *client, json_t *request)
{
	struct instance *in = arg;
	const char *cmd;
	json_t *a;

	if (!UNPACK(client, request, "{s:s!}", "cmd", &cmd))
		return;
	a = json_pack("{s:s,s:i,s:s}", "name", in->claim.name, "pid", (int)getpid(), "state",
		      state_name(in));
	if (in->vm) {
		json_object_set_new(a, "ram_bytes", json_integer((json_int_t)in->cfg.ram_size));
		json_object_set_new(a, "vcpus", json_integer(in->cfg.vcpus));
		json_object_set_new(a, "kernel", report_text(in->cfg.kernel));
		json_object_set_new(a, "initrd", report_text(in->cfg.initrd));
		json_object_set_new(a, "cmdline", report_text(in->cfg.cmdline));
		json_object_set_new(a, "devices", instance_devices(in->vm));
		json_object_set_new(
			a, "uptime_s",
			json_integer((json_int_t)((now_ns() - in->started_ns) / NS_PER_SEC)));
		json_object_set_new(a, "started_monotonic_ns",
				    json_integer((json_int_t)in->started_ns));
	}
	status_migration(in, a);
	ctl_reply(client, a);
}

static void do_pause(void *arg, struct ctl_client *client, json_t *request)
{
	struct instance *in = arg;
	struct errmsg err = {""};
	const char *cmd;

	if (!UNPACK(client, request, "{s:s!}", "cmd", &cmd) || !have_guest(in, client) ||
	    refuse_migrating(in, client) || refuse_uncertain(in, client))
		return;
	if (vm_pause_within(in->vm, VM_PAUSE_USER, PAUSE_NS, &err))
		ctl_error(client, NULL, "%s", err.text);
	else
		ctl_reply(client, NULL);
}

struct acquire_call {
	struct vm *vm;
	struct errmsg *err;
};

static int acquire(void *arg)
{
	struct acquire_call *c = arg;

	return vm_acquire_devices(c->vm, c->err);
}

static void do_resume(void *arg, struct ctl_client *client, json_t *request)
{
	struct instance *in = arg;
	const char *cmd;

	if (!UNPACK(client, request, "{s:s!}", "cmd", &cmd) || !have_guest(in, client) ||
	    refuse_migrating(in, client) || refuse_uncertain(in, client))
		return;
	vm_resume(in->vm, VM_PAUSE_USER);
	ctl_reply(client, NULL);
}

static void do_resolve(void *arg, struct ctl_client *client, json_t *request)
{
	struct instance *in = arg;
	struct errmsg err = {""};
	struct acquire_call c = {.err = &err};
	const char *cmd, *how;
	bool run;

	if (!UNPACK(client, request, "{s:s,s:s!}", "cmd", &cmd, "how", &how))
		return;
	run = strcmp(how, "run") == 0;
	if (!run && strcmp(how, "discard") != 0) {
		ctl_error(client, NULL, "how is 'run' or 'discard'");
		return;
	}
	if (!have_guest(in, client) || refuse_migrating(in, client))
		return;
	if (!instance_uncertain(in)) {
		ctl_error(client, NULL, "there is nothing to resolve: it is %s here",
			  state_name(in));
		return;
	}
	if (!run) {
		AUTO_FREE struct waiter *w = new_waiter(client);

		if (!w)
			return;
		log_warn("%s is discarded here: the user says that it runs at %s", in->cfg.name,
			 in->migration_uri);
		instance_stop(in, EXIT_DONE);
		wait_for(in, &w, WAIT_STOP, 0);
		return;
	}
	/* Given up for the handover: the destination has it if the guest runs there. */
	c.vm = in->vm;
	if (confine_call(in->cfg.confine, acquire, &c)) {
		ctl_error(client, NULL, "it stays paused: %s", err.text);
		return;
	}
	log_warn("%s runs on here: the user says that it does not run at %s", in->cfg.name,
		 in->migration_uri);
	/* The handover left the devices at rest, too. */
	vm_resume_devices(in->vm);
	vm_resume(in->vm, VM_PAUSE_LOST);
	ctl_reply(client, NULL);
}

static void do_stop(void *arg, struct ctl_client *client, json_t *request)
{
	struct instance *in = arg;
	AUTO_FREE struct waiter *w = NULL;
	uint64_t timeout = STOP_TIMEOUT_NS;
	double timeout_ms = 0;
	const char *cmd;
	int force = 0;

	if (!UNPACK(client, request, "{s:s,s?b,s?F!}", "cmd", &cmd, "force", &force, "timeout_ms",
		    &timeout_ms))
		return;
	if (timeout_ms != 0 && !to_ns(timeout_ms, &timeout)) {
		ctl_error(client, NULL, "timeout_ms is not a time");
		return;
	}
	w = new_waiter(client);
	if (!w)
		return;
	/* One that has not arrived has no power button; the source keeps it. */
	if (force || in->receiver) {
		if (instance_stop(in, in->receiver ? EXIT_FAILED : EXIT_DONE) == -EALREADY)
			log_warn("stop: a handover is being committed, waiting for its outcome");
		wait_for(in, &w, WAIT_STOP, 0);
		return;
	}
	if (!have_guest(in, client) || refuse_uncertain(in, client))
		return;
	if (vm_paused(in->vm) & VM_PAUSE_USER) {
		ctl_error(client, NULL,
			  "a paused guest does not notice its power button: resume it, or --force");
		return;
	}
	if (in->migration) {
		if (migrate_cancel(in->migration)) {
			ctl_error(client, NULL, "its handover to %s is being committed",
				  in->migration_uri);
			return;
		}
	} else {
		machine_power_button(in->vm);
	}
	wait_for(in, &w, WAIT_STOP, now_ns() + timeout);
}

static void do_migrate(void *arg, struct ctl_client *client, json_t *request)
{
	struct instance *in = arg;
	AUTO_FREE struct waiter *w = NULL;
	struct migrate_options opt = {.downtime_ns = MIGRATE_DOWNTIME_DEFAULT,
				      .reconnect_ns = MIGRATE_KEEP_DEFAULT};
	double downtime_ms = 0, timeout_ms = 0, peer_timeout_ms = 0, reconnect_ms = -1;
	const char *cmd, *uri, *verify = "stream", *compress = "auto", *leave = "";
	const char *on_timeout = "cancel";
	const char *cert = "", *key = "", *ca = "", *psk = "", *tls_name = "";
	json_int_t connections = 0, bandwidth = 0;
	struct errmsg err = {""};

	if (!UNPACK(client, request,
		    "{s:s,s:s,s?F,s?F,s?s,s?I,s?s,s?I,s?F,s?F,s?s,s?s,s?s,s?s,s?s,s?s,s?s!}", "cmd",
		    &cmd, "uri", &uri, "downtime_ms", &downtime_ms, "timeout_ms", &timeout_ms,
		    "verify", &verify, "connections", &connections, "compress", &compress,
		    "bandwidth", &bandwidth, "peer_timeout_ms", &peer_timeout_ms, "reconnect_ms",
		    &reconnect_ms, "leave", &leave, "on_timeout", &on_timeout, "tls_cert", &cert,
		    "tls_key", &key, "tls_ca", &ca, "tls_psk", &psk, "tls_name", &tls_name))
		return;
	if (config_check_uri(uri, &err)) {
		ctl_error(client, NULL, "%s", err.text);
		return;
	}
	if ((downtime_ms != 0 && !to_ns(downtime_ms, &opt.downtime_ns)) ||
	    (timeout_ms != 0 && !to_ns(timeout_ms, &opt.timeout_ns))) {
		ctl_error(client, NULL, "downtime_ms or timeout_ms is not a time");
		return;
	}
	if (reconnect_ms == 0)
		opt.reconnect_ns = 0;
	else if (reconnect_ms != -1 && !to_ns(reconnect_ms, &opt.reconnect_ns)) {
		ctl_error(client, NULL, "reconnect_ms is not a time");
		return;
	}
	if (!take_path(client, "leave", leave, opt.leave) ||
	    !take_path(client, "tls_cert", cert, opt.tls.cert) ||
	    !take_path(client, "tls_key", key, opt.tls.key) ||
	    !take_path(client, "tls_ca", ca, opt.tls.ca) ||
	    !take_path(client, "tls_psk", psk, opt.tls.psk))
		return;
	if (strlen(tls_name) >= sizeof(opt.tls.name)) {
		ctl_error(client, NULL, "tls_name is too long");
		return;
	}
	memcpy(opt.tls.name, tls_name, strlen(tls_name) + 1);
	if (peer_timeout_ms != 0 && (!to_ns(peer_timeout_ms, &opt.peer_timeout_ns) ||
				     opt.peer_timeout_ns < MIGRATE_PEER_TIMEOUT_MIN)) {
		ctl_error(client, NULL, "peer_timeout_ms is not a time from one second on");
		return;
	}
	if (!take_bandwidth(client, bandwidth, &opt.bandwidth))
		return;
	if (policy_parse_on_timeout(on_timeout, &opt.on_timeout)) {
		ctl_error(client, NULL,
			  "on_timeout is none of \"cancel\", \"throttle\" and \"continue\"");
		return;
	}
	if (strcmp(verify, "stream") != 0 && strcmp(verify, "full") != 0) {
		ctl_error(client, NULL, "verify is neither \"stream\" nor \"full\"");
		return;
	}
	if (connections < 0 || connections > MIGRATE_CONNECTIONS_MAX) {
		ctl_error(client, NULL, "connections is not a number from 1 to %u",
			  MIGRATE_CONNECTIONS_MAX);
		return;
	}
	opt.connections = (unsigned)connections;
	if (migrate_parse_compress(compress, &opt.compress, &opt.compress_level)) {
		ctl_error(client, NULL,
			  "compress is none of \"auto\", \"off\", \"zstd\" and \"zstd:LEVEL\"");
		return;
	}
	opt.verify = strcmp(verify, "full") ? MIGRATE_VERIFY_STREAM : MIGRATE_VERIFY_FULL;
	memcpy(opt.uri, uri, strlen(uri) + 1);

	if (!have_guest(in, client) || refuse_migrating(in, client) || refuse_uncertain(in, client))
		return;
	w = new_waiter(client);
	if (!w)
		return;
	if (instance_migrate(in, &opt, &err))
		ctl_error(client, NULL, "%s", err.text);
	else
		wait_for(in, &w, WAIT_MIGRATE, 0);
}

static void do_cancel(void *arg, struct ctl_client *client, json_t *request)
{
	struct instance *in = arg;
	AUTO_FREE struct waiter *w = NULL;
	const char *cmd;
	int ret;

	if (!UNPACK(client, request, "{s:s!}", "cmd", &cmd))
		return;
	if (!in->receiver && !in->migration) {
		ctl_error(client, NULL, "no migration is running");
		return;
	}
	w = new_waiter(client);
	if (!w)
		return;
	/* Only what was in time may go on to end the process: a guest that has arrived is the last
	 * one. */
	ret = in->receiver ? receive_cancel(in->receiver) : migrate_cancel(in->migration);
	if (ret == 0 && in->receiver)
		instance_stop(in, EXIT_FAILED);
	if (ret)
		ctl_error(client, NULL, "too late: the handover is being committed");
	else
		wait_for(in, &w, in->receiver ? WAIT_STOP : WAIT_CANCEL, 0);
}

static void do_tune(void *arg, struct ctl_client *client, json_t *request)
{
	struct instance *in = arg;
	json_int_t bandwidth = -1;
	double downtime_ms = 0;
	struct migrate_stats stats;
	uint64_t rate, ns;
	const char *cmd;

	if (!UNPACK(client, request, "{s:s,s?I,s?F!}", "cmd", &cmd, "bandwidth", &bandwidth,
		    "downtime_ms", &downtime_ms))
		return;
	if (json_object_get(request, "bandwidth") && !take_bandwidth(client, bandwidth, &rate))
		return;
	if (downtime_ms != 0 && !to_ns(downtime_ms, &ns)) {
		ctl_error(client, NULL, "downtime_ms is not a time");
		return;
	}
	if (!in->migration) {
		ctl_error(client, NULL, "%s",
			  in->receiver ? "the source has the limits: tune it there"
				       : "no migration is running");
		return;
	}
	migrate_tune(in->migration, json_object_get(request, "bandwidth") ? &rate : NULL,
		     downtime_ms != 0 ? &ns : NULL);
	migrate_get_stats(in->migration, &stats);
	ctl_reply(client, report_limits(&stats));
}

static void do_balloon(void *arg, struct ctl_client *client, json_t *request)
{
	struct instance *in = arg;
	struct errmsg err = {""};
	json_int_t target = -1;
	const char *cmd;
	json_t *a;

	if (!UNPACK(client, request, "{s:s,s?I!}", "cmd", &cmd, "target_bytes", &target) ||
	    !have_guest(in, client))
		return;
	/* Less than 0 is as good as not given: it is shown what there is. */
	a = instance_balloon(in->vm, target < 0 ? UINT64_MAX : (uint64_t)target, &err);
	if (a)
		ctl_reply(client, a);
	else
		ctl_error(client, NULL, "%s", err.text);
}

const struct ctl_handler instance_handlers[] = {
	{"status", do_status}, {"pause", do_pause},
	{"resume", do_resume}, {"resolve", do_resolve},
	{"stop", do_stop},     {"migrate", do_migrate},
	{"cancel", do_cancel}, {"balloon", do_balloon},
	{"tune", do_tune},     {NULL, NULL},
};
