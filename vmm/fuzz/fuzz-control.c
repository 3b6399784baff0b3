/* SPDX-License-Identifier: MIT */
/*
 * The control socket: any commands with members of any type, lines that are no JSON (requests.h),
 * of several clients at once, some of whom do not read, or leave; to a guest on a KVM that is none
 * (fake_kvm.h), which runs, arrives, is lost in a handover, has ended or is being reset. All of
 * ctl.c and instance_ctl.c, over a real socket. A move that is begun goes nowhere: of the engine
 * only its public functions are there, and what they say is the input's. So is how it ends, which
 * it does when nobody has anything left to say; then the process does.
 *
 * Whatever is asked,
 *
 *	- each request gets one answer, an object with a boolean "ok", and with the words for why
 *	  not that there were, whatever bytes they quote;
 *	- what is refused has changed nothing, and what is not has changed no more than was asked
 *	  for: the guest pauses, runs on, moves and ends only when it was told to;
 *	- a move that is begun has options within the limits of migrate.h, and is the only one.
 *
 * Time goes 64 times as fast for timers as for clocks.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "../chan.h"
#include "../config.h"
#include "../instance.h"
#include "../machine.h"
#include "fake_kvm.h"
#include "requests.h"

#define WAIT_NS (20 * NS_PER_SEC)
#define STEP_NS (NS_PER_MS / 4)
#define QUIET_STEPS 12U
#define ROOM (8 * MIB) /* of one client's answers */
#define CROWD (CTL_CLIENTS_MAX + 3U)
#define QUICKER 64U

/* Bits of the input's second byte; it is also what the engine says. */
enum {
	CANCEL_TOO_LATE = 1,
	NO_START = 2,
	MOVE_ENDS = 4,	      /* else the process does, in the middle of it */
	MACHINE_GOES = 8,     /* before the last requests are looked at */
	NO_PATIENCE = 16,     /* with clients that have nothing to say */
	DEAF_TO_THE_END = 32, /* those that do not read do not leave either */
			      /* The other two: how a move ends. */
};
static uint8_t engine;
static char nothing; /* stands for a move, or a receiver */

/* ---- what handlers do ---- */

struct state {
	const struct vm *vm;
	unsigned paused;
	enum vm_end end;
	bool migrating, stopping;
};

/* By command: what may be another afterwards, unless it was refused. */
static const struct may {
	const char *cmd;
	unsigned pauses, sets, clears; /* reasons: that may change; that have, once it is done */
	bool end, migrate;
} may[] = {
	{.cmd = "pause", .pauses = VM_PAUSE_USER, .sets = VM_PAUSE_USER},
	{.cmd = "resume", .pauses = VM_PAUSE_USER, .clears = VM_PAUSE_USER},
	{.cmd = "resolve", .pauses = VM_PAUSE_LOST | VM_PAUSE_END, .end = true},
	{.cmd = "stop", .pauses = VM_PAUSE_END, .end = true},
	{.cmd = "cancel", .end = true},
	{.cmd = "migrate", .migrate = true},
	{.cmd = NULL},
};

static struct call {
	struct ctl_client *client;
	enum { NOT_YET, DONE, REFUSED } answer;
} * at_hand; /* NULL: none */
static struct state seen;
static unsigned n_asked, n_answered;
static bool ending; /* the process does */

static struct state look(const struct instance *in)
{
	return (struct state){
		.vm = in->vm,
		.paused = in->vm ? vm_paused(in->vm) : 0,
		.end = in->vm ? vm_get_end(in->vm) : VM_END_NONE,
		.migrating = in->migration,
		.stopping = in->stop_wanted,
	};
}

static const struct may *may_of(const char *cmd)
{
	const struct may *m = may;

	while (m->cmd && strcmp(m->cmd, cmd) != 0)
		m++;
	return m;
}

static void need_same(const struct state *a, const struct state *b, const char *what)
{
	fuzz_need(a->vm == b->vm && a->paused == b->paused && a->end == b->end &&
			  a->migrating == b->migrating && a->stopping == b->stopping,
		  "%s: paused %#x and now %#x, end %d and %d, moving %d and %d, stopping %d and %d",
		  what, a->paused, b->paused, a->end, b->end, a->migrating, b->migrating,
		  a->stopping, b->stopping);
}

static void check_change(const char *cmd, const struct state *before, const struct state *after,
			 const struct call *call)
{
	const struct may *m = may_of(cmd);

	if (call->answer == REFUSED)
		need_same(before, after, "what was refused has changed something");
	fuzz_need(!((before->paused ^ after->paused) & ~m->pauses), "%s: paused %#x and now %#x",
		  cmd, before->paused, after->paused);
	fuzz_need(m->end || (before->end == after->end && before->stopping == after->stopping),
		  "%s ends the guest", cmd);
	fuzz_need(m->migrate || before->migrating == after->migrating, "%s moves the guest", cmd);
	if (call->answer != DONE)
		return;
	fuzz_need((after->paused & m->sets) == m->sets && !(after->paused & m->clears),
		  "%s is done, and it is paused %#x", cmd, after->paused);
	fuzz_need(strcmp(cmd, "resolve") != 0 || !(after->paused & VM_PAUSE_LOST),
		  "resolved, and it is lost");
}

static void on_request(void *arg, struct ctl_client *client, json_t *request)
{
	const char *cmd = json_string_value(json_object_get(request, "cmd"));
	const struct ctl_handler *h = instance_handlers;
	struct call call = {.client = client}, *outer = at_hand;
	struct instance *in = arg;
	struct state before = look(in), after;
	bool waits;

	need_same(&seen, &before, "nobody asked for it");
	while (strcmp(h->cmd, cmd) != 0)
		h++;
	n_asked++;
	at_hand = &call;
	h->fn(arg, client, request);
	at_hand = outer;
	after = seen = look(in);
	waits = in->waiters && in->waiters->client == client;
	fuzz_need((call.answer == NOT_YET) == waits, "%s is %s and %s", cmd,
		  call.answer ? "answered" : "not answered", waits ? "waits" : "does not wait");
	check_change(cmd, &before, &after, &call);
}

static const struct ctl_handler *checked_handlers(void)
{
	static struct ctl_handler checked[16];
	unsigned n = 0;

	for (const struct ctl_handler *h = instance_handlers; h->cmd; h++) {
		checked[n++] = (struct ctl_handler){h->cmd, on_request};
		fuzz_need(n < ARRAY_SIZE(checked), "more commands than expected");
	}
	return checked;
}

void __real_ctl_reply(struct ctl_client *client, json_t *obj);
void __wrap_ctl_reply(struct ctl_client *client, json_t *obj);
void __real_ctl_error(struct ctl_client *client, json_t *obj, const char *fmt, ...) PRINTF(3, 4);
void __wrap_ctl_error(struct ctl_client *client, json_t *obj, const char *fmt, ...) PRINTF(3, 4);
void __real_loop_timer(struct loop *l, struct loop_op *op, uint64_t ns);
void __wrap_loop_timer(struct loop *l, struct loop_op *op, uint64_t ns);

static void note_answer(const struct ctl_client *client, bool done)
{
	n_answered++;
	if (!at_hand || at_hand->client != client)
		return;
	fuzz_need(at_hand->answer == NOT_YET, "two answers to one request");
	at_hand->answer = done ? DONE : REFUSED;
}

void __wrap_ctl_reply(struct ctl_client *client, json_t *obj)
{
	note_answer(client, true);
	__real_ctl_reply(client, obj);
}

/* How what was refused was explained, as far as it is plain: those that differ. */
#define REASONS_MAX 64U
#define REASON_MAX 24U
static char reasons[REASONS_MAX][REASON_MAX];
static unsigned n_reasons;

/* What the server says by itself. */
static const char *const own_reasons[] = {
	"not JSON",
	"a request is",
	"no command",
	"a line is longer",
	"the last line does",
	"the guest's process ends",
	"too many connections",
};

static bool is_reason(const char *text)
{
	for (size_t i = 0; i < ARRAY_SIZE(own_reasons); i++) {
		if (!strncmp(text, own_reasons[i], strlen(own_reasons[i])))
			return true;
	}
	for (unsigned i = 0; i < n_reasons; i++) {
		if (!strncmp(text, reasons[i], strlen(reasons[i])))
			return true;
	}
	return n_reasons == REASONS_MAX;
}

static void note_reason(const char *text)
{
	size_t len = 0;

	while (len < REASON_MAX - 1 && text[len] >= ' ' && text[len] < 0x7f)
		len++;
	for (unsigned i = 0; i < n_reasons; i++) {
		if (strlen(reasons[i]) == len && !memcmp(reasons[i], text, len))
			return;
	}
	if (n_reasons == REASONS_MAX)
		return;
	memcpy(reasons[n_reasons], text, len);
	reasons[n_reasons++][len] = '\0';
}

void __wrap_ctl_error(struct ctl_client *client, json_t *obj, const char *fmt, ...)
{
	char text[4096];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	note_reason(text);
	note_answer(client, false);
	__real_ctl_error(client, obj, "%s", text);
}

void __wrap_loop_timer(struct loop *l, struct loop_op *op, uint64_t ns)
{
	__real_loop_timer(l, op, ns / QUICKER);
}

/* ---- in front of the engine ---- */

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
		.status = engine >> 6,
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
	fuzz_need(m, "no move is cancelled");
	return engine & CANCEL_TOO_LATE ? -EALREADY : 0;
}

void __wrap_migrate_tune(struct migration *m, const uint64_t *bandwidth,
			 const uint64_t *downtime_ns)
{
	fuzz_need(m, "no move is tuned");
	fuzz_need(!bandwidth || !*bandwidth || *bandwidth >= MIGRATE_BANDWIDTH_MIN, "tuned to %llu",
		  (unsigned long long)*bandwidth);
	fuzz_need(!downtime_ns || *downtime_ns, "tuned to no pause at all");
}

void __wrap_migrate_get_stats(struct migration *m, struct migrate_stats *out)
{
	fuzz_need(m, "figures of no move");
	make_stats(out);
}

int __wrap_receive_cancel(struct receiver *r)
{
	fuzz_need(r, "no receiver is cancelled");
	return engine & CANCEL_TOO_LATE ? -EALREADY : 0;
}

void __wrap_receive_get_stats(struct receiver *r, struct migrate_stats *out)
{
	fuzz_need(r, "figures of no receiver");
	make_stats(out);
}

#define NEED_PATH(s)                                                                               \
	fuzz_need(memchr(s, 0, sizeof(s)) && (!(s)[0] || (s)[0] == '/'), #s " is %.20s", s)

/* A move that would be begun now; it goes nowhere. */
int __wrap_migrate_start(struct migration **out, struct vm *vm, const struct migrate_options *opt,
			 void (*done)(void *arg), void *arg, struct errmsg *err)
{
	const struct instance *in = arg;
	struct errmsg why = {""};

	(void)done;
	fuzz_need(!in->migration && vm_get_end(vm) == VM_END_NONE &&
			  !(vm_paused(vm) & VM_PAUSE_LOST),
		  "a move of a guest that is not here to be moved");
	fuzz_need(memchr(opt->uri, 0, sizeof(opt->uri)) && config_check_uri(opt->uri, &why) == 0,
		  "a move to nowhere: %s", why.text);
	fuzz_need(opt->downtime_ns > 0, "no pause is short enough");
	fuzz_need(opt->connections <= MIGRATE_CONNECTIONS_MAX, "%u connections", opt->connections);
	fuzz_need(opt->verify <= MIGRATE_VERIFY_FULL && opt->compress <= MIGRATE_COMPRESS_ZSTD,
		  "verify %d, compress %d", opt->verify, opt->compress);
	fuzz_need(opt->on_timeout <= ON_TIMEOUT_CONTINUE, "on timeout: %d", opt->on_timeout);
	fuzz_need(opt->compress != MIGRATE_COMPRESS_ZSTD ||
			  (opt->compress_level >= 1 && opt->compress_level <= MIGRATE_LEVEL_MAX),
		  "level %d", opt->compress_level);
	fuzz_need(opt->bandwidth == 0 || opt->bandwidth >= MIGRATE_BANDWIDTH_MIN,
		  "a bandwidth of %llu", (unsigned long long)opt->bandwidth);
	fuzz_need(opt->peer_timeout_ns == 0 || opt->peer_timeout_ns >= MIGRATE_PEER_TIMEOUT_MIN,
		  "a peer timeout of %llu", (unsigned long long)opt->peer_timeout_ns);
	NEED_PATH(opt->leave);
	NEED_PATH(opt->tls.cert);
	NEED_PATH(opt->tls.key);
	NEED_PATH(opt->tls.ca);
	NEED_PATH(opt->tls.psk);
	fuzz_need(memchr(opt->tls.name, 0, sizeof(opt->tls.name)), "a name without end");
	if (migrate_check_tls(opt->uri, &opt->tls, err))
		return -EINVAL;
	if (engine & NO_START)
		return errmsg_set(err, -ECONNREFUSED, "nobody is there");
	*out = (void *)&nothing;
	return 0;
}

/* ---- the guest ---- */

static void on_end(struct vm *vm, void *arg)
{
	(void)vm, (void)arg;
}

/* Paths may be any bytes. */
static const struct vm_config *config(void)
{
	static struct vm_config c;
	struct vm_devices *d = &c.devices;
	int fd;

	if (c.ram_size)
		return &c;
	c = (struct vm_config){.name = "guest", .ram_size = RAM_MIN, .vcpus = 1};
	snprintf(c.kernel, sizeof(c.kernel), "/boot/\xffk");
	d->n_disks = 1;
	snprintf(d->disk[0].path, sizeof(d->disk[0].path), "%s/disk\xc3", fuzz_folder());
	fd = open(d->disk[0].path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	fuzz_need(fd >= 0 && ftruncate(fd, 65536) == 0, "no disk: %s", strerror(errno));
	close(fd);
	d->disk[0].queues = 1;
	d->vsock = (struct vm_vsock){.present = true, .cid = 3};
	snprintf(d->vsock.path, sizeof(d->vsock.path), "%s/vsock", fuzz_folder());
	d->console.present = true;
	snprintf(d->console.path, sizeof(d->console.path), "%s/console", fuzz_folder());
	d->rng = d->balloon = true;
	return &c;
}

static void make_guest(struct instance *in)
{
	static struct cpuid cpuid;
	struct errmsg err = {""};
	int ret;

	if (!cpuid.n)
		fake_kvm_cpuid(&cpuid, 1);
	*in = (struct instance){.cfg = *config()};
	snprintf(in->claim.name, sizeof(in->claim.name), "guest");
	fuzz_need(loop_init(&in->loop) == 0 && chan_init(&in->serial) == 0, "no loop");
	ret = machine_create(&in->vm, &in->cfg, &cpuid, &in->loop, &in->serial, &err);
	if (ret == 0)
		ret = vm_acquire_devices(in->vm, &err);
	if (ret == 0)
		ret = vm_start(in->vm, &err);
	fuzz_need(ret == 0, "no machine: %s", err.text);
	in->vm->on_end = on_end;
	in->started_ns = now_ns();
	vm_resume(in->vm, VM_PAUSE_START);
}

struct rest {
	struct vm *vm;
	struct loop *loop;
	struct loop_task wake;
	atomic_bool done;
};

static void on_wake(struct loop_task *task)
{
	(void)task;
}

static void *run_rest(void *arg)
{
	struct rest *r = arg;
	struct errmsg err = {""};

	fuzz_need(vm_quiesce_devices(r->vm, WAIT_NS, &err) == 0, "no rest: %s", err.text);
	vm_release_devices(r->vm);
	r->done = true;
	loop_post(r->loop, &r->wake);
	return NULL;
}

/* As a handover leaves it whose outcome nobody knows. */
static void lose(struct instance *in)
{
	struct rest r = {.vm = in->vm, .loop = &in->loop, .wake = {.run = on_wake}};
	pthread_t thread;

	vm_pause(in->vm, VM_PAUSE_LOST);
	seen = look(in);
	fuzz_need(!pthread_create(&thread, NULL, run_rest, &r), "no thread");
	while (!r.done)
		loop_step(&in->loop, NS_PER_SEC);
	pthread_join(thread, NULL);
	loop_unpost(&in->loop, &r.wake);
}

/* Somebody else's guest writes to the disk now. -1: cannot be. */
static int take_disk(void)
{
	struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
	int fd = open(config()->devices.disk[0].path, O_RDWR | O_CLOEXEC);

	fuzz_need(fd >= 0 && fcntl(fd, F_OFD_SETLK, &whole) == 0, "a disk that was given up: %s",
		  strerror(errno));
	return fd;
}

/* Other states than running. Returns an fd to close, or -1. */
static int set_state(struct instance *in, unsigned state)
{
	switch (state) {
	case 1:
		in->receiver = (void *)&nothing;
		snprintf(in->receive_uri, sizeof(in->receive_uri), "unix:/\xc3/x");
		vm_destroy(in->vm);
		in->vm = NULL;
		break;
	case 2:
		lose(in);
		break;
	case 3:
		vm_set_end(in->vm, VM_END_POWEROFF, "it wanted to");
		break;
	case 4:
		vm_destroy(in->vm);
		in->vm = NULL;
		in->start_paused = engine & MACHINE_GOES;
		break;
	case 5:
		make_stats(&in->last);
		in->has_last = true;
		break;
	case 6:
		lose(in);
		return take_disk();
	case 7:
		vm_pause(in->vm, VM_PAUSE_USER);
		break;
	default:
		break;
	}
	return -1;
}

/* Who waited when the process ended. */
static unsigned free_waiters(struct instance *in)
{
	struct waiter *w;
	unsigned n = 0;

	for (; (w = in->waiters); n++) {
		in->waiters = w->next;
		free(w);
	}
	return n;
}

static void drop_guest(struct instance *in)
{
	vm_destroy(in->vm);
	if (in->tick_op.pending)
		loop_cancel_wait(&in->loop, &in->tick_op);
	chan_destroy(&in->serial);
	loop_destroy(&in->loop);
}

/* The move has ended, as the engine says: what instance.c does then. */
static void end_move(struct instance *in)
{
	make_stats(&in->last);
	in->has_last = true;
	in->migration = NULL;
	if (in->last.status == MIGRATE_COMPLETED)
		vm_set_end(in->vm, VM_END_MOVED, "it has moved");
	if (in->last.status == MIGRATE_UNCERTAIN)
		lose(in);
	seen = look(in);
	instance_answer_migration(in);
	if (in->last.status == MIGRATE_UNCERTAIN)
		in->stop_wanted = false;
	else if (in->stop_wanted)
		vm_set_end(in->vm, VM_END_STOPPED, "stopped by the user");
	seen = look(in);
}

/* And the process does, in the order of instance_destroy(). */
static void end_process(struct instance *in)
{
	if (in->vm)
		vm_set_end(in->vm, VM_END_POWEROFF, "it wanted to");
	seen = look(in);
	ending = in->quitting = true;
	instance_answer_all(in);
	loop_step(&in->loop, 0);
	in->migration = NULL;
	if (engine & MACHINE_GOES) {
		struct vm *vm = in->vm;

		in->vm = NULL;
		seen = look(in);
		vm_destroy(vm);
	}
	seen = look(in);
}

/* Nobody has anything to say, or waits for an answer. False when nothing more will happen. */
static bool go_on(struct instance *in)
{
	if (in->migration && !ending && engine & MOVE_ENDS)
		end_move(in);
	else if (!ending)
		end_process(in);
	else
		return false;
	return true;
}

/* ---- clients ---- */

struct client {
	const struct requests *r;
	size_t sent;
	char *out;
	size_t len, looked_at;
	int fd; /* -1: it has left */
	unsigned answers;
	bool shut, ended;
};

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

		fuzz_need(text && text[0] && is_reason(text), "refused without a reason: %.*s",
			  (int)MIN(len, 200U), line);
	}
	json_decref(answer);
	return is_answer;
}

static void check_answers(struct client *c)
{
	const char *nl;

	while ((nl = memchr(c->out + c->looked_at, '\n', c->len - c->looked_at))) {
		c->answers +=
			check_answer(c->out + c->looked_at, (size_t)(nl - c->out) - c->looked_at);
		c->looked_at = (size_t)(nl - c->out) + 1;
	}
}

static int call(void)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(a.sun_path, sizeof(a.sun_path), "%s/control", fuzz_folder());
	fuzz_need(fd >= 0 && connect(fd, (void *)&a, sizeof(a)) == 0, "no connection: %s",
		  strerror(errno));
	return fd;
}

static void leave(struct client *c)
{
	if (c->fd >= 0)
		close(c->fd);
	c->fd = -1;
}

static void speak(struct client *c, size_t until)
{
	while (c->sent < until && !c->ended) {
		ssize_t n = send(c->fd, c->r->data + c->sent, until - c->sent,
				 MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n > 0)
			c->sent += (size_t)n;
		else if (errno == EAGAIN)
			return;
		else
			c->sent = c->r->len;
	}
	if (c->sent == c->r->len && c->r->manner == ASKS && !c->shut) {
		shutdown(c->fd, SHUT_WR);
		c->shut = true;
	}
	if (c->sent == c->r->len && c->r->manner == LEAVES)
		leave(c);
}

static void hear(struct client *c)
{
	while (!c->ended && c->fd >= 0) {
		ssize_t n;

		fuzz_need(c->len < ROOM, "the server says too much");
		n = recv(c->fd, c->out + c->len, ROOM - c->len, MSG_DONTWAIT);
		if (n < 0 && errno == EAGAIN)
			break;
		/* What it does not read is lost, and that is told to who has sent it. */
		fuzz_need(n >= 0 || errno == ECONNRESET, "the server broke off: %s",
			  strerror(errno));
		c->ended = n <= 0;
		c->len += n > 0 ? (size_t)n : 0;
	}
	check_answers(c);
}

/* Says and hears what there is. True while there may be more. */
static bool step(struct client *c)
{
	if (c->fd < 0)
		return false;
	speak(c, ending ? c->r->len : c->r->early);
	if (c->fd < 0)
		return false;
	if (c->r->manner == DEAF)
		return true;
	hear(c);
	if (c->r->manner == STAYS && c->answers >= requests_count(c->r))
		leave(c);
	return !c->ended && c->fd >= 0;
}

static bool step_all(struct client *clients, unsigned n)
{
	bool more = false;

	for (unsigned i = 0; i < n; i++)
		more |= step(&clients[i]);
	return more;
}

/* Until all have left, or nothing will happen any more. */
static void converse(struct instance *in, struct client *clients, unsigned n)
{
	uint64_t deadline = now_ns() + WAIT_NS;
	unsigned quiet = 0, before = 0;

	while (step_all(clients, n)) {
		loop_step(&in->loop, STEP_NS);
		quiet = before == n_asked + n_answered ? quiet + 1 : 0;
		before = n_asked + n_answered;
		fuzz_need(now_ns() < deadline, "no end is found");
		if (quiet < QUIET_STEPS)
			continue;
		quiet = 0;
		if (!go_on(in))
			break;
	}
}

/* More than are served; they are told so, or nothing. */
static void check_crowd(const int *fds, unsigned n, unsigned clients)
{
	static char text[4096];
	unsigned told = 0;

	for (unsigned i = 0; i < n; i++) {
		ssize_t len = recv(fds[i], text, sizeof(text), MSG_DONTWAIT);

		close(fds[i]);
		if (len <= 0)
			continue;
		fuzz_need(text[len - 1] == '\n' && check_answer(text, (size_t)len - 1),
			  "one of many is told something else");
		told++;
	}
	fuzz_need(told <= n + clients - CTL_CLIENTS_MAX, "%u were sent away", told);
}

static void check_client(struct client *c, bool whole)
{
	unsigned lines = requests_count(c->r);

	fuzz_need(c->looked_at == c->len || !c->ended || !whole, "an answer without an end");
	fuzz_need(c->answers <= lines, "%u lines, %u answers", lines, c->answers);
	if (whole && c->r->manner <= STAYS)
		fuzz_need(c->answers == lines, "%u lines, %u answers only", lines, c->answers);
}

/* All clients with the guest in this state. */
static void serve(struct instance *in, struct client *clients, unsigned n, bool crowded)
{
	bool hasty = engine & NO_PATIENCE, deaf = false;
	bool whole[REQUESTS_CLIENTS];
	int crowd[CROWD];

	for (unsigned i = 0; i < n; i++)
		clients[i].fd = call();
	for (unsigned i = 0; crowded && i < CROWD; i++)
		crowd[i] = call();
	converse(in, clients, n);
	/* Each is let in, or sent away. */
	for (unsigned i = 0; crowded && i < 2 * CROWD; i++)
		loop_step(&in->loop, STEP_NS);
	for (unsigned i = 0; i < n; i++) {
		struct client *c = &clients[i];

		/* Else something was still to be said when the process ended. */
		whole[i] = !hasty && (c->ended || c->fd < 0) && !requests_too_long(c->r);
		if (c->r->manner == DEAF && !(engine & DEAF_TO_THE_END))
			leave(c);
		deaf |= c->fd >= 0 && c->r->manner == DEAF;
	}
	ctl_stop(in->ctl, deaf ? 20 * NS_PER_MS : NS_PER_SEC);
	n_answered += free_waiters(in);
	fuzz_need(n_asked == n_answered, "%u requests, %u answers", n_asked, n_answered);
	for (unsigned i = 0; i < n; i++) {
		hear(&clients[i]);
		check_client(&clients[i], whole[i]);
		leave(&clients[i]);
	}
	if (crowded)
		check_crowd(crowd, CROWD, n);
}

static int listen_there(void)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct sockaddr_un a = {.sun_family = AF_UNIX};

	snprintf(a.sun_path, sizeof(a.sun_path), "%s/control", fuzz_folder());
	unlink(a.sun_path);
	fuzz_need(fd >= 0 && bind(fd, (void *)&a, sizeof(a)) == 0 && listen(fd, 64) == 0, "%s: %s",
		  a.sun_path, strerror(errno));
	return fd;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct requests requests[REQUESTS_CLIENTS];
	static char answers[REQUESTS_CLIENTS][ROOM];
	static struct instance instance;
	struct client clients[REQUESTS_CLIENTS] = {0};
	struct fuzz_in in = {data, data + size};
	unsigned n, state, fds;
	int listen_fd, thief;
	bool crowded;

	config();
	fds = count_fds();
	state = in_u8(&in) % 8;
	engine = in_u8(&in);
	n = requests_make(requests, &in, &crowded);
	for (unsigned i = 0; i < n; i++)
		clients[i] = (struct client){.r = &requests[i], .out = answers[i]};
	at_hand = NULL;
	n_asked = n_answered = n_reasons = 0;
	ending = false;

	make_guest(&instance);
	thief = set_state(&instance, state);
	seen = look(&instance);
	listen_fd = listen_there();
	fuzz_need(ctl_start(&instance.ctl, &instance.loop, listen_fd, checked_handlers(), &instance,
			    engine & NO_PATIENCE ? 4 * NS_PER_MS : CTL_IDLE_DEFAULT) == 0,
		  "no server");
	serve(&instance, clients, n, crowded);
	close(listen_fd);
	if (thief >= 0)
		close(thief);
	drop_guest(&instance);
	fuzz_need(count_fds() == fds, "%u file descriptors before, %u after", fds, count_fds());
	return 0;
}
