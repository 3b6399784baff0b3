/* SPDX-License-Identifier: MIT */
/*
 * Theory of operation: QMP is lines of JSON on a unix socket. Its input is a watch of the harness,
 * so events are taken in whenever anything is waited for; a command waits for its own answer. The
 * time at which an event is heard is the tool's; the time stamp in it is QEMU's, from when it
 * happened.
 */
#include "bench-qemu.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "bench.h"

#define START_MS 20000
#define COMMAND_MS 20000
#define QUIT_MS 30000
#define MAX_WORDS 64
#define UNLIMITED ((json_int_t)1 << 50) /* bytes a second */

bool qemu_installed(void)
{
	return system("command -v " QEMU_PROGRAM " >/dev/null") == 0;
}

/* ---- QMP ---- */

static double stamp(const json_t *event)
{
	const json_t *t = json_object_get(event, "timestamp");

	return json_number_value(json_object_get(t, "seconds")) +
	       json_number_value(json_object_get(t, "microseconds")) / 1e6;
}

static void on_event(struct qemu *q, const char *name, const json_t *event)
{
	const json_t *data = json_object_get(event, "data");
	const char *status = json_string_value(json_object_get(data, "status"));

	if (strcmp(name, "STOP") == 0) {
		q->stopped_s = stamp(event);
	} else if (strcmp(name, "RESUME") == 0) {
		q->resumed_s = stamp(event);
		q->resumed_at = bench_now();
	} else if (strcmp(name, "MIGRATION") == 0 && status) {
		snprintf(q->migration, sizeof(q->migration), "%s", status);
		if (strcmp(status, "completed") == 0)
			q->completed_at = bench_now();
	}
}

static void on_line(struct qemu *q, const char *line, size_t len)
{
	json_t *j = json_loadb(line, len, 0, NULL);
	const char *event = json_string_value(json_object_get(j, "event"));

	need(j, "%s: QMP says '%.*s'", q->proc->label, (int)len, line);
	if (event) {
		on_event(q, event, j);
	} else if (!json_object_get(j, "QMP")) {
		need(!q->answer, "%s: an answer to no command: '%.*s'", q->proc->label, (int)len,
		     line);
		q->answer = json_incref(j);
	}
	json_decref(j);
}

static void take_lines(struct qemu *q)
{
	char *from = q->buf, *end;

	while ((end = memchr(from, '\n', q->len - (size_t)(from - q->buf)))) {
		on_line(q, from, (size_t)(end - from));
		from = end + 1;
	}
	q->len -= (size_t)(from - q->buf);
	memmove(q->buf, from, q->len);
}

static void on_input(void *arg, int fd, short revents)
{
	struct qemu *q = arg;
	ssize_t n;

	(void)revents;
	do {
		if (q->cap - q->len < 4096) {
			q->cap = q->cap ? 2 * q->cap : 16384;
			q->buf = realloc(q->buf, q->cap);
			need(q->buf, "out of memory");
		}
		n = read(fd, q->buf + q->len, q->cap - q->len);
		if (n > 0)
			q->len += (size_t)n;
	} while (n > 0);
	if (n == 0)
		harness_watch(fd, 0, NULL, NULL);
	take_lines(q);
}

static bool has_answer(void *arg)
{
	const struct qemu *q = arg;

	return q->answer != NULL;
}

json_t *qemu_command(struct qemu *q, const char *command, json_t *arguments)
{
	json_t *j = json_pack("{s:s}", "execute", command), *answer;
	char *text;
	size_t len;

	if (arguments)
		json_object_set_new(j, "arguments", arguments);
	text = json_dumps(j, JSON_COMPACT);
	need(text, "out of memory");
	len = strlen(text);
	need(write(q->qmp, text, len) == (ssize_t)len, "%s: QMP: %s", q->proc->label,
	     strerror(errno));
	need(harness_until(has_answer, q, COMMAND_MS), "%s: no answer to %s", q->proc->label,
	     command);
	answer = q->answer;
	q->answer = NULL;
	need(json_object_get(answer, "return"), "%s: %s: %s", q->proc->label, text,
	     json_dumps(answer, JSON_COMPACT));
	free(text);
	json_decref(j);
	return json_object_get(answer, "return");
}

struct attempt {
	struct qemu *q;
	const char *path;
};

static bool can_connect(void *arg)
{
	const struct attempt *a = arg;
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", a->path);
	need(proc_running(a->q->proc), "%s: has ended: %s", a->q->proc->label, a->q->proc->err.buf);
	if (fd >= 0 && connect(fd, (struct sockaddr *)&addr, sizeof(addr)) == 0) {
		fcntl(fd, F_SETFL, O_NONBLOCK);
		a->q->qmp = fd;
		return true;
	}
	if (fd >= 0)
		close(fd);
	return false;
}

void qemu_start(struct qemu *q, const struct qemu_config *c)
{
	const char *path = harness_path("%s/%s.qmp", harness_tmp(), c->label);
	const char *argv[MAX_WORDS];
	struct attempt a = {q, path};
	unsigned n = 0;

	const char *const first[] = {
		QEMU_PROGRAM,
		"-name",
		"guest,debug-threads=on",
		"-machine",
		harness_path("microvm,accel=kvm,auto-kernel-cmdline=off%s",
			     c->machine ? c->machine : ""),
		/* This one is not dropped by itself where KVM cannot have it. */
		"-cpu",
		"host,-arch-capabilities",
		"-m",
		harness_path("%u", c->ram_mib),
		"-smp",
		harness_path("%u", c->cpus),
		"-display",
		"none",
		"-nodefaults",
		"-no-user-config",
		"-no-reboot",
		"-serial",
		"stdio",
		"-qmp",
		harness_path("unix:%s,server=on,wait=off", path),
		"-kernel",
		c->kernel,
		"-append",
		c->append,
	};

	for (; n < sizeof(first) / sizeof(first[0]); n++)
		argv[n] = first[n];
	if (c->incoming) {
		argv[n++] = "-incoming";
		argv[n++] = "defer";
	}
	for (unsigned i = 0; c->extra && c->extra[i]; i++) {
		need(n < MAX_WORDS - 1, "%s: too many words", c->label);
		argv[n++] = c->extra[i];
	}
	argv[n] = NULL;
	*q = (struct qemu){.qmp = -1};
	q->proc = proc_startv(c->label, argv);
	q->proc->guest = true;
	need(harness_until(can_connect, &a, START_MS), "%s: no QMP at %s", c->label, path);
	harness_watch(q->qmp, POLLIN, on_input, q);
	qemu_command(q, "qmp_capabilities", NULL);
}

void qemu_quit(struct qemu *q)
{
	qemu_command(q, "quit", NULL);
	proc_ended(q->proc, 0, QUIT_MS);
	harness_watch(q->qmp, 0, NULL, NULL);
	close(q->qmp);
	q->qmp = -1;
}

/* ---- moves ---- */

static void set_capability(struct qemu *q, const char *name)
{
	qemu_command(q, "migrate-set-capabilities",
		     json_pack("{s:[{s:s,s:b}]}", "capabilities", "capability", name, "state", 1));
}

static void prepare(struct qemu *q, const struct qemu_move *m)
{
	json_t *parameters = json_pack("{s:I,s:I}", "max-bandwidth", UNLIMITED, "downtime-limit",
				       (json_int_t)m->downtime_ms);

	set_capability(q, "events");
	if (m->channels) {
		set_capability(q, "multifd");
		json_object_set_new(parameters, "multifd-channels",
				    json_integer((json_int_t)m->channels));
	}
	if (m->compression)
		json_object_set_new(parameters, "multifd-compression", json_string(m->compression));
	qemu_command(q, "migrate-set-parameters", parameters);
}

/* Where a destination listens that was told to take any port. */
static const char *listens_at(struct qemu *q)
{
	const json_t *info = qemu_command(q, "query-migrate", NULL);
	const json_t *at = json_array_get(json_object_get(info, "socket-address"), 0);

	need(at, "%s: it does not say where it listens: %s", q->proc->label,
	     json_dumps(info, JSON_COMPACT));
	return harness_path("tcp:%s:%s", json_text(at, "host"), json_text(at, "port"));
}

void qemu_move_start(struct qemu *src, struct qemu *dst, const struct qemu_move *m, double *start_s)
{
	const char *uri;

	prepare(dst, m);
	prepare(src, m);
	qemu_command(dst, "migrate-incoming",
		     json_pack("{s:s}", "uri", harness_path("tcp:%s:0", m->host)));
	uri = listens_at(dst);
	*start_s = bench_now();
	qemu_command(src, "migrate", json_pack("{s:s}", "uri", uri));
}

static bool has_failed(const struct qemu *q)
{
	return strcmp(q->migration, "failed") == 0 || strcmp(q->migration, "cancelled") == 0;
}

bool qemu_move_over(const struct qemu *src, const struct qemu *dst)
{
	return has_failed(src) || (src->completed_at > 0 && dst->resumed_at > 0);
}

static double number(const json_t *obj, const char *key)
{
	return json_number_value(json_object_get(obj, key));
}

void qemu_move_result(struct qemu *src, struct qemu *dst, double start_s, struct qemu_moved *out)
{
	const json_t *info = qemu_command(src, "query-migrate", NULL);
	const json_t *ram = json_object_get(info, "ram");

	need(json_object_get(info, "status"), "%s: no migration: %s", src->proc->label,
	     json_dumps(info, JSON_COMPACT));
	*out = (struct qemu_moved){
		.completed = strcmp(json_text(info, "status"), "completed") == 0,
		.own_total_s = number(info, "total-time") / 1e3,
		.own_downtime_s = number(info, "downtime") / 1e3,
		.wire_bytes = number(ram, "transferred"),
		.rounds = number(ram, "dirty-sync-count"),
	};
	if (!out->completed)
		return;
	out->total_s = (src->completed_at > dst->resumed_at ? src->completed_at : dst->resumed_at) -
		       start_s;
	out->pause_s = dst->resumed_s - src->stopped_s;
}

static bool gave_up(void *arg)
{
	return has_failed(arg);
}

void qemu_move_cancel(struct qemu *src)
{
	qemu_command(src, "migrate_cancel", NULL);
	need(harness_until(gave_up, src, COMMAND_MS), "%s: the move is not cancelled: it is %s",
	     src->proc->label, src->migration);
}
