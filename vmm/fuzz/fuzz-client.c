/* SPDX-License-Identifier: MIT */
/*
 * The commands that ask a guest's process, and what it answers: `godwit status`, `list`, `migrate`
 * and the others, each as a whole, with a process that says anything: lines that are no answers,
 * answers with members of any type, and texts that a guest brought from elsewhere.
 *
 * Whatever it says,
 *
 *	- the command ends, with a status that is one of its own;
 *	- what it asked was a request;
 *	- all is well only if the process said so; a guest has moved only if it said that;
 *	- people are shown text, nothing that a terminal obeys, and programs a line of JSON a guest;
 *	- no file descriptor is left.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <jansson.h>

#include "../cmd.h"
#include "../instance_text.h"
#include "../rundir.h"
#include "fuzz.h"

#define LINES_MAX 12U
#define TEXT_MAX (256 * KIB)
#define MEMBERS_MAX 12U
#define DEPTH_MAX 4U
#define ARGS_MAX 6U

static const char *const cmdlines[][ARGS_MAX] = {
	{"status", "guest"},
	{"status"},
	{"list"},
	{"balloon", "guest"},
	{"balloon", "guest", "64M"},
	{"tune", "guest"},
	{"tune", "guest", "--downtime", "20ms"},
	{"stop", "guest"},
	{"pause", "guest"},
	{"resume", "guest"},
	{"cancel", "guest"},
	{"resolve", "guest", "--discard"},
	{"resolve", "guest", "--run"},
	{"migrate", "guest", "unix:there", "-v"},
	{"migrate", "guest", "tcp:127.0.0.1:1", "-q"},
	{"status", "guest", "--json"},
	{"status", "--json"},
	{"balloon", "guest", "--json"},
	{"tune", "guest", "--json"},
	{"migrate", "guest", "unix:there", "--json"},
};

static const char *const keys[] = {
	"ok",
	"error",
	"event",
	"status",
	"phase",
	"uri",
	"name",
	"pid",
	"state",
	"ram_bytes",
	"vcpus",
	"kernel",
	"initrd",
	"cmdline",
	"devices",
	"type",
	"path",
	"tap",
	"backend",
	"cache",
	"readonly",
	"mac",
	"link",
	"cid",
	"connections",
	"uptime_s",
	"migration",
	"not_converging",
	"converging",
	"round",
	"remaining_pages",
	"bytes_per_s",
	"elapsed_ms",
	"eta_ms",
	"round_eta_ms",
	"bandwidth",
	"per_connection",
	"wire_bytes",
	"uncopied_bytes",
	"pages",
	"sent",
	"copied",
	"delta",
	"compressed",
	"downtime_parts",
	"downtime_ms",
	"rounds",
	"verify",
	"throttle",
	"throttle_percent",
	"max_percent",
	"guest_slowed_ms",
	"driver",
	"target_bytes",
	"actual_bytes",
	"used_bytes",
	"guest_total_bytes",
	"estimate_downtime_ms",
	"downtime_target_ms",
	"x",
};

static const char *const words[] = {
	"completed",  "failed", "uncertain", "cancelled", "progress", "listening",    "pre-copy",
	"running",    "disk",	"net",	     "vsock",	  "console",  "balloon",      "\x1b]0;x\a",
	"\302\2332J", "a\r\nb", "\xc3\xa4",  "",	  "/a/path",  "\xe2\x80\xae", "\x7f",
};

static const double reals[] = {0, 1, -1, 0.5, 1e9, 1e18, 1.9e19, 1e300, -1e300};

/* ---- what the process says ---- */

struct process {
	struct rundir_claim claim;
	char text[TEXT_MAX];
	size_t len;
	unsigned lines;
	atomic_bool said; /* to whoever came first */
	atomic_bool quit;
};

static json_t *make_value(struct fuzz_in *in, unsigned depth);

static json_t *make_object(struct fuzz_in *in, unsigned depth)
{
	json_t *obj = json_object();
	unsigned n = in_u8(in) % (MEMBERS_MAX + 1);

	for (unsigned i = 0; i < n && in_left(in); i++) {
		const char *key = keys[in_u8(in) % ARRAY_SIZE(keys)];

		json_object_set_new(obj, key, make_value(in, depth + 1));
	}
	return obj;
}

static json_t *make_array(struct fuzz_in *in, unsigned depth)
{
	json_t *list = json_array();
	unsigned n = in_u8(in) % 4;

	for (unsigned i = 0; i < n; i++)
		json_array_append_new(list, make_value(in, depth + 1));
	return list;
}

static json_t *make_text(struct fuzz_in *in)
{
	char bytes[64];
	json_t *text;
	uint8_t n = in_u8(in) % sizeof(bytes);

	in_bytes(in, bytes, n);
	text = json_stringn(bytes, n);
	return text ? text : json_string("?");
}

static json_t *make_value(struct fuzz_in *in, unsigned depth)
{
	uint8_t kind = in_u8(in) % 12;

	if (depth >= DEPTH_MAX && (kind == 6 || kind == 7 || kind == 8))
		kind = 0;
	switch (kind) {
	case 0 ... 2:
		return json_string(words[in_u8(in) % ARRAY_SIZE(words)]);
	case 3:
		return make_text(in);
	case 4:
		return json_integer((json_int_t)in_u64(in));
	case 5:
		return json_real(reals[in_u8(in) % ARRAY_SIZE(reals)]);
	case 6:
	case 7:
		return make_object(in, depth);
	case 8:
		return make_array(in, depth);
	case 9:
		return json_true();
	case 10:
		return json_false();
	default:
		return json_null();
	}
}

static void put(struct process *p, const char *text, size_t len)
{
	len = MIN(len, sizeof(p->text) - p->len);
	memcpy(p->text + p->len, text, len);
	p->len += len;
}

/* An answer, an event, or a line of the input. */
static void add_line(struct process *p, struct fuzz_in *in)
{
	uint8_t kind = in_u8(in) % 8;
	char bytes[256], *text;
	json_t *obj;

	p->lines++;
	if (kind == 0) {
		size_t len = in_u8(in);

		in_bytes(in, bytes, len);
		put(p, bytes, len);
	} else {
		obj = make_object(in, 0);
		if (kind < 5)
			json_object_set_new(obj, "ok", json_boolean(kind != 4));
		if (kind == 5)
			json_object_set_new(obj, "event", json_string("progress"));
		text = json_dumps(obj, JSON_COMPACT);
		fuzz_need(text, "no memory");
		put(p, text, strlen(text));
		free(text);
		json_decref(obj);
	}
	/* It may lack its end. */
	if (kind != 7)
		put(p, "\n", 1);
}

/* Is there a line that says so? */
static bool says(const struct process *p, bool (*what)(const json_t *line))
{
	const char *at = p->text, *end = p->text + p->len, *nl;
	bool found = false;

	for (; !found && (nl = memchr(at, '\n', (size_t)(end - at))); at = nl + 1) {
		json_t *line = json_loadb(at, (size_t)(nl - at), 0, NULL);

		found = what(line);
		json_decref(line);
	}
	return found;
}

static bool is_ok(const json_t *line)
{
	return json_is_true(json_object_get(line, "ok"));
}

static bool is_completed(const json_t *line)
{
	const char *status = json_string_value(json_object_get(line, "status"));

	return status && !strcmp(status, "completed");
}

static void read_request(int fd)
{
	char line[4096];
	size_t len = 0;
	json_t *request;

	while (len < sizeof(line) && !memchr(line, '\n', len)) {
		ssize_t n = recv(fd, line + len, sizeof(line) - len, 0);

		/* One that only looks whether anybody is there. */
		if (n <= 0)
			return;
		len += (size_t)n;
	}
	request = json_loadb(line, len - 1, JSON_REJECT_DUPLICATES, NULL);
	fuzz_need(json_is_string(json_object_get(request, "cmd")), "no request: %.*s", (int)len,
		  line);
	json_decref(request);
}

/* All that it has to say goes to whoever comes first. */
static void *run_process(void *arg)
{
	struct process *p = arg;

	while (!p->quit) {
		struct pollfd wait = {.fd = p->claim.listen_fd, .events = POLLIN};
		int fd;

		if (poll(&wait, 1, 2) <= 0)
			continue;
		fd = accept4(p->claim.listen_fd, NULL, NULL, SOCK_CLOEXEC);
		if (fd < 0)
			continue;
		read_request(fd);
		if (!p->said)
			(void)!send(fd, p->text, p->len, MSG_NOSIGNAL);
		p->said = true;
		close(fd);
	}
	return NULL;
}

/* ---- the command ---- */

/* Is it lines of text, as any terminal shows them? */
static void check_text(const char *out, size_t len)
{
	static char plain[1 << 20];
	const char *at = out, *end = out + len;

	fuzz_need(!memchr(out, 0, len), "people are shown a NUL");
	while (at < end) {
		char *nl = memchr(at, '\n', (size_t)(end - at));

		fuzz_need(nl, "a line without an end: %.200s", at);
		*nl = '\0';
		text_plain(plain, sizeof(plain), at);
		fuzz_need(strcmp(plain, at) == 0, "people are shown what is no text: %.200s",
			  plain);
		at = nl + 1;
	}
}

static void check_json(const char *out, size_t len)
{
	const char *at = out, *end = out + len;

	while (at < end) {
		const char *nl = memchr(at, '\n', (size_t)(end - at));
		json_t *j;

		fuzz_need(nl, "a line without an end: %.200s", at);
		j = json_loadb(at, (size_t)(nl - at), 0, NULL);
		fuzz_need(json_is_object(j), "a program is told %.*s", (int)(nl - at), at);
		json_decref(j);
		at = nl + 1;
	}
}

static void check_status(const struct process *p, const struct command *cmd, int status)
{
	bool migrate = !strcmp(cmd->name, "migrate");
	/* One that goes without a word has ended, as it was told; and others are not asked. */
	bool may_be_silent = !strcmp(cmd->name, "stop") || !strcmp(cmd->name, "resolve") ||
			     !strcmp(cmd->name, "list") || !strcmp(cmd->name, "status");

	fuzz_need(status == EXIT_DONE || status == EXIT_FAILED ||
			  (migrate && status == EXIT_UNCERTAIN),
		  "%s exits with %d", cmd->name, status);
	if (status != EXIT_DONE)
		return;
	if (migrate)
		fuzz_need(says(p, is_completed), "it has moved, and nobody said so");
	else
		fuzz_need(may_be_silent || says(p, is_ok), "%s is done, and nobody said so",
			  cmd->name);
}

static void run_command(struct process *p, unsigned which)
{
	const char *const *words_of = cmdlines[which];
	const struct command *cmd = command_find(words_of[0]);
	FILE *own = stdout;
	char *argv[ARGS_MAX + 1] = {NULL}, *out = NULL;
	bool json = false;
	size_t len = 0;
	int argc = 0, status;
	sigset_t mask;

	fuzz_need(cmd, "no command %s", words_of[0]);
	for (; argc < (int)ARGS_MAX && words_of[argc]; argc++) {
		argv[argc] = strdup(words_of[argc]);
		json |= !strcmp(words_of[argc], "--json");
	}
	stdout = open_memstream(&out, &len);
	fuzz_need(stdout, "no memory");
	pthread_sigmask(SIG_SETMASK, NULL, &mask);
	status = cmd->action(argc, argv);
	pthread_sigmask(SIG_SETMASK, &mask, NULL);
	fclose(stdout);
	stdout = own;
	if (json)
		check_json(out, len);
	else
		check_text(out, len);
	check_status(p, cmd, status);
	free(out);
	while (argc)
		free(argv[--argc]);
}

static void make_folder(void)
{
	static bool made;
	char path[128];

	if (made)
		return;
	made = true;
	snprintf(path, sizeof(path), "%s/run", fuzz_folder());
	fuzz_need(mkdir(path, 0700) == 0, "%s: %s", path, strerror(errno));
	setenv("GODWIT_RUNDIR", path, 1);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct process p;
	struct fuzz_in in = {data, data + size};
	struct errmsg err = {""};
	pthread_t thread;
	unsigned which, fds;
	int ret;

	make_folder();
	memset(&p, 0, sizeof(p));
	fds = count_fds();
	which = in_u8(&in) % ARRAY_SIZE(cmdlines);
	while (in_left(&in) && p.lines < LINES_MAX)
		add_line(&p, &in);
	ret = rundir_claim(&p.claim, "guest", &err);
	fuzz_need(ret == 0, "no name: %s", err.text);
	fuzz_need(!pthread_create(&thread, NULL, run_process, &p), "no thread");
	run_command(&p, which);
	p.quit = true;
	pthread_join(thread, NULL);
	rundir_release(&p.claim);
	fuzz_need(count_fds() == fds, "%u file descriptors before, %u after", fds, count_fds());
	return 0;
}
