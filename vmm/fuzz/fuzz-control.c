/* SPDX-License-Identifier: MIT */
/*
 * The control socket: any commands with members of any type, lines that are no JSON, to a guest on
 * a KVM that is none (fake_kvm.h), which runs, arrives, is lost in a handover, has ended or is
 * being reset. All of ctl.c and instance_ctl.c, over a real socket. A move that is begun goes
 * nowhere: of the engine only its public functions are there, and what they say is the input's.
 *
 * Whatever is asked,
 *
 *	- each line gets one answer, an object with a boolean "ok", and with words for why not;
 *	- a move that is begun has options within the limits of migrate.h;
 *	- the guest ends or pauses only when it was told to.
 */
#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "../chan.h"
#include "../config.h"
#include "../instance.h"
#include "../machine.h"
#include "fake_kvm.h"
#include "fuzz.h"

#define TEXT_MAX (32 * KIB)
#define MEMBERS_MAX 6U
#define WAIT_NS (20 * NS_PER_SEC)

static const char *const cmds[] = {
	"status", "pause", "resume", "stop", "migrate", "cancel", "balloon", "tune", "teapot", "",
};

static const char *const members[] = {
	"uri",	      "downtime_ms", "timeout_ms",	"verify",	"connections",
	"compress",   "bandwidth",   "peer_timeout_ms", "reconnect_ms", "leave",
	"on_timeout", "force",	     "target_bytes",	"cmd",		"x",
};

static const char *const words[] = {
	"tcp:127.0.0.1:1", "unix:/tmp/x", "unix:",   "tcp::",	 "tcp:[::1]:70000",
	"stream",	   "full",	  "auto",    "off",	 "zstd",
	"zstd:19",	   "zstd:20",	  "cancel",  "throttle", "continue",
	"/tmp/image",	   "relative",	  "migrate", "",	 "status",
};

static const char *const numbers[] = {
	"0",
	"1",
	"-1",
	"33",
	"8000",
	"1e11",
	"1e12",
	"1e-7",
	"1e308",
	"1e400",
	"0.5",
	"-0.0",
	"1000",
	"9223372036854775807",
	"9223372036854775808",
	"-9223372036854775808",
	"4294967296",
	"7999",
	"67108864",
};

struct text {
	char data[TEXT_MAX];
	size_t len;
};

/* ---- requests ---- */

static void put(struct text *t, const char *s, size_t n)
{
	n = MIN(n, sizeof(t->data) - t->len);
	memcpy(t->data + t->len, s, n);
	t->len += n;
}

static void put_word(struct text *t, const char *s)
{
	put(t, s, strlen(s));
}

/* Bytes of the input, within one line. */
static void put_bytes(struct text *t, struct fuzz_in *in)
{
	char raw[256];
	uint8_t n = in_u8(in);

	in_bytes(in, raw, n);
	for (unsigned i = 0; i < n; i++) {
		if (raw[i] == '\n')
			raw[i] = ' ';
	}
	put(t, raw, n);
}

static void put_value(struct text *t, struct fuzz_in *in, unsigned depth)
{
	char number[32];
	uint8_t kind = in_u8(in);

	switch (depth > 3 ? 0 : kind % 12) {
	case 0:
	case 1:
		put_word(t, numbers[in_u8(in) % ARRAY_SIZE(numbers)]);
		break;
	case 2:
		snprintf(number, sizeof(number), "%lld", (long long)in_u64(in));
		put_word(t, number);
		break;
	case 3 ... 5:
		put_word(t, "\"");
		put_word(t, words[in_u8(in) % ARRAY_SIZE(words)]);
		put_word(t, "\"");
		break;
	case 6:
		put_word(t, "\"");
		put_bytes(t, in);
		put_word(t, "\"");
		break;
	case 7:
		put_word(t, "true");
		break;
	case 8:
		put_word(t, "false");
		break;
	case 9:
		put_word(t, "null");
		break;
	case 10:
		put_word(t, "[");
		put_value(t, in, depth + 1);
		put_word(t, "]");
		break;
	default:
		put_word(t, "{\"a\":");
		put_value(t, in, depth + 1);
		put_word(t, "}");
	}
}

static void put_request(struct text *t, struct fuzz_in *in)
{
	unsigned n;

	put_word(t, "{\"cmd\":\"");
	put_word(t, cmds[in_u8(in) % ARRAY_SIZE(cmds)]);
	put_word(t, "\"");
	n = in_u8(in) % (MEMBERS_MAX + 1);
	for (unsigned i = 0; i < n; i++) {
		put_word(t, ",\"");
		put_word(t, members[in_u8(in) % ARRAY_SIZE(members)]);
		put_word(t, "\":");
		put_value(t, in, 0);
	}
	put_word(t, "}");
}

/* All lines of an input; the last one may lack its end. */
static void make_text(struct text *t, struct fuzz_in *in)
{
	t->len = 0;
	while (in_left(in) && t->len < TEXT_MAX / 2) {
		uint8_t kind = in_u8(in) % 8;

		if (kind == 0)
			put_bytes(t, in);
		else if (kind == 1)
			put_value(t, in, 0);
		else
			put_request(t, in);
		if (kind != 2)
			put_word(t, kind == 3 ? "\r\n" : "\n");
	}
}

/* Lines that want an answer, one that has no end among them. */
static unsigned count_lines(const struct text *t)
{
	unsigned n = 0;

	for (size_t at = 0; at < t->len;) {
		const char *line = t->data + at, *nl = memchr(line, '\n', t->len - at);
		size_t len = nl ? (size_t)(nl - line) : t->len - at;

		at += len + 1;
		while (nl && len && (line[len - 1] == '\r' || line[len - 1] == ' '))
			len--;
		n += len > 0;
	}
	return n;
}

/* ---- in front of the engine ---- */

static uint8_t engine; /* what it says */
static char nothing;   /* stands for a move, or a receiver */

int __wrap_migrate_start(struct migration **out, struct vm *vm, const struct migrate_options *opt,
			 void (*done)(void *arg), void *arg, struct errmsg *err);
int __wrap_migrate_cancel(struct migration *m);
void __wrap_migrate_tune(struct migration *m, const uint64_t *bandwidth,
			 const uint64_t *downtime_ns);
void __wrap_migrate_get_stats(struct migration *m, struct migrate_stats *out);
int __wrap_receive_cancel(struct receiver *r);
void __wrap_receive_get_stats(struct receiver *r, struct migrate_stats *out);

static void make_stats(struct migrate_stats *st)
{
	*st = (struct migrate_stats){
		.phase = engine % (MIGRATE_DONE + 1),
		.status = engine % (MIGRATE_UNCERTAIN + 1),
		.round = engine,
		.total_ns = (uint64_t)engine << 30,
		.ram_bytes = RAM_MIN,
		.wire_bytes = UINT64_MAX >> engine % 64,
		.rtt_ns = engine,
		.connections = 1 + engine % MIGRATE_CONNECTIONS_MAX,
		.vcpus = 1,
		.bandwidth = (uint64_t)engine << 13,
		.downtime_target_ns = engine,
		.eta_ns = UINT64_MAX >> engine % 64,
	};
	snprintf(st->error.text, sizeof(st->error.text), "words of elsewhere: \xff\x1b");
}

int __wrap_migrate_cancel(struct migration *m)
{
	(void)m;
	return engine & 1 ? -EALREADY : 0;
}

void __wrap_migrate_tune(struct migration *m, const uint64_t *bandwidth,
			 const uint64_t *downtime_ns)
{
	(void)m;
	fuzz_need(!bandwidth || !*bandwidth || *bandwidth >= MIGRATE_BANDWIDTH_MIN, "tuned to %llu",
		  (unsigned long long)*bandwidth);
	fuzz_need(!downtime_ns || *downtime_ns, "tuned to no pause at all");
}

void __wrap_migrate_get_stats(struct migration *m, struct migrate_stats *out)
{
	(void)m;
	make_stats(out);
}

int __wrap_receive_cancel(struct receiver *r)
{
	(void)r;
	return engine & 1 ? -EALREADY : 0;
}

void __wrap_receive_get_stats(struct receiver *r, struct migrate_stats *out)
{
	(void)r;
	make_stats(out);
}

/* A move that would be begun now; it goes nowhere. */
int __wrap_migrate_start(struct migration **out, struct vm *vm, const struct migrate_options *opt,
			 void (*done)(void *arg), void *arg, struct errmsg *err)
{
	struct errmsg why = {""};

	(void)vm, (void)done, (void)arg;
	fuzz_need(memchr(opt->uri, 0, sizeof(opt->uri)) && config_check_uri(opt->uri, &why) == 0,
		  "a move to nowhere: %s", why.text);
	fuzz_need(opt->downtime_ns > 0, "no pause is short enough");
	fuzz_need(opt->connections <= MIGRATE_CONNECTIONS_MAX, "%u connections", opt->connections);
	fuzz_need(opt->verify <= MIGRATE_VERIFY_FULL && opt->compress <= MIGRATE_COMPRESS_ZSTD,
		  "verify %d, compress %d", opt->verify, opt->compress);
	fuzz_need(opt->compress != MIGRATE_COMPRESS_ZSTD ||
			  (opt->compress_level >= 1 && opt->compress_level <= MIGRATE_LEVEL_MAX),
		  "level %d", opt->compress_level);
	fuzz_need(opt->bandwidth == 0 || opt->bandwidth >= MIGRATE_BANDWIDTH_MIN,
		  "a bandwidth of %llu", (unsigned long long)opt->bandwidth);
	fuzz_need(opt->peer_timeout_ns == 0 || opt->peer_timeout_ns >= MIGRATE_PEER_TIMEOUT_MIN,
		  "a peer timeout of %llu", (unsigned long long)opt->peer_timeout_ns);
	fuzz_need(memchr(opt->leave, 0, sizeof(opt->leave)) &&
			  (!opt->leave[0] || opt->leave[0] == '/'),
		  "memory left at %.20s", opt->leave);
	if (engine & 2)
		return errmsg_set(err, -ECONNREFUSED, "nobody is there");
	*out = (void *)&nothing;
	return 0;
}

/* ---- the guest ---- */

static void on_end(struct vm *vm, void *arg)
{
	(void)vm, (void)arg;
}

static void make_guest(struct instance *in)
{
	static struct cpuid cpuid;
	struct errmsg err = {""};
	int ret;

	if (!cpuid.n)
		fake_kvm_cpuid(&cpuid, 1);
	*in = (struct instance){.cfg = {.name = "guest", .ram_size = RAM_MIN, .vcpus = 1}};
	in->cfg.devices.balloon = true;
	snprintf(in->claim.name, sizeof(in->claim.name), "guest");
	fuzz_need(loop_init(&in->loop) == 0 && chan_init(&in->serial) == 0, "no loop");
	ret = machine_create(&in->vm, &in->cfg, &cpuid, &in->loop, &in->serial, &err);
	if (ret == 0)
		ret = vm_start(in->vm, &err);
	fuzz_need(ret == 0, "no machine: %s", err.text);
	in->vm->on_end = on_end;
	in->started_ns = now_ns();
	vm_resume(in->vm, VM_PAUSE_START);
}

/* Other states than running. */
static void set_state(struct instance *in, unsigned state)
{
	struct errmsg err = {""};

	switch (state) {
	case 1:
		in->receiver = (void *)&nothing;
		snprintf(in->receive_uri, sizeof(in->receive_uri), "unix:/\xc3/x");
		vm_destroy(in->vm);
		in->vm = NULL;
		break;
	case 2:
		vm_pause(in->vm, VM_PAUSE_LOST);
		fuzz_need(vm_quiesce_devices(in->vm, WAIT_NS, &err) == 0, "%s", err.text);
		vm_release_devices(in->vm);
		break;
	case 3:
		vm_set_end(in->vm, VM_END_POWEROFF, "it wanted to");
		break;
	case 4:
		vm_destroy(in->vm);
		in->vm = NULL;
		break;
	case 5:
		make_stats(&in->last);
		in->has_last = true;
		break;
	default:
		break;
	}
}

static void drop_guest(struct instance *in)
{
	vm_destroy(in->vm);
	if (in->tick_op.pending)
		loop_cancel_wait(&in->loop, &in->tick_op);
	chan_destroy(&in->serial);
	loop_destroy(&in->loop);
}

/* ---- answers ---- */

/* One line of the server's. True when it is an answer, false when an event. */
static bool check_answer(const char *line, size_t len)
{
	json_error_t why;
	json_t *answer = json_loadb(line, len, JSON_REJECT_DUPLICATES, &why);
	const json_t *ok;
	bool is_answer;

	fuzz_need(json_is_object(answer), "an answer that is none: %s: %.*s", why.text,
		  (int)MIN(len, 200U), line);
	is_answer = !json_object_get(answer, "event");
	ok = json_object_get(answer, "ok");
	fuzz_need(!is_answer || json_is_boolean(ok), "an answer without ok: %.*s",
		  (int)MIN(len, 200U), line);
	if (is_answer && json_is_false(ok)) {
		const char *text = json_string_value(json_object_get(answer, "error"));

		fuzz_need(text && text[0], "refused without a reason: %.*s", (int)MIN(len, 200U),
			  line);
	}
	json_decref(answer);
	return is_answer;
}

static unsigned check_answers(const char *data, size_t len)
{
	unsigned n = 0;

	for (size_t at = 0; at < len;) {
		const char *nl = memchr(data + at, '\n', len - at);

		fuzz_need(nl, "an answer without an end");
		n += check_answer(data + at, (size_t)(nl - data) - at);
		at = (size_t)(nl - data) + 1;
	}
	return n;
}

/* A move has ended, as the engine says; or the process does, which answers everybody. */
static void end_waiting(struct instance *in)
{
	if (engine & 4 && in->migration) {
		make_stats(&in->last);
		in->has_last = true;
		in->migration = NULL;
		instance_answer_migration(in);
	} else {
		instance_answer_all(in);
	}
}

/* Until the server has closed; nobody waits for long for something to happen. */
static size_t converse(struct instance *in, int fd, char *out, size_t room)
{
	uint64_t deadline = now_ns() + WAIT_NS;
	size_t len = 0;

	for (;;) {
		ssize_t n = recv(fd, out + len, room - len, MSG_DONTWAIT);

		if (n == 0)
			return len;
		if (n > 0) {
			len += (size_t)n;
			continue;
		}
		fuzz_need(errno == EAGAIN, "the server broke off: %s", strerror(errno));
		fuzz_need(len < room, "the server says too much");
		fuzz_need(now_ns() < deadline, "no answer");
		end_waiting(in);
		loop_step(&in->loop, NS_PER_MS);
	}
}

static int listen_at(struct sockaddr_un *a)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	*a = (struct sockaddr_un){.sun_family = AF_UNIX};
	snprintf(a->sun_path, sizeof(a->sun_path), "%s/control", fuzz_folder());
	unlink(a->sun_path);
	fuzz_need(fd >= 0 && bind(fd, (void *)a, sizeof(*a)) == 0 && listen(fd, 4) == 0, "%s: %s",
		  a->sun_path, strerror(errno));
	return fd;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static char answers[8 * MIB];
	static struct instance instance;
	static struct text text;
	struct fuzz_in in = {data, data + size};
	struct sockaddr_un addr;
	unsigned lines, answered, state;
	int listen_fd, fd;
	struct ctl *ctl;
	size_t len;

	state = in_u8(&in) % 8;
	engine = in_u8(&in);
	make_text(&text, &in);
	lines = count_lines(&text);
	make_guest(&instance);
	set_state(&instance, state);
	listen_fd = listen_at(&addr);
	fuzz_need(ctl_start(&ctl, &instance.loop, listen_fd, instance_handlers, &instance,
			    CTL_IDLE_DEFAULT) == 0,
		  "no server");
	instance.ctl = ctl;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	fuzz_need(fd >= 0 && connect(fd, (void *)&addr, sizeof(addr)) == 0, "no connection: %s",
		  strerror(errno));
	fuzz_need(send(fd, text.data, text.len, MSG_NOSIGNAL) == (ssize_t)text.len, "%s",
		  strerror(errno));
	shutdown(fd, SHUT_WR);
	len = converse(&instance, fd, answers, sizeof(answers));
	answered = check_answers(answers, len);
	fuzz_need(answered == lines, "%u lines, %u answers", lines, answered);
	close(fd);
	ctl_stop(ctl, NS_PER_SEC);
	close(listen_fd);
	drop_guest(&instance);
	return 0;
}
