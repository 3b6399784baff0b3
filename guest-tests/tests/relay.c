/* SPDX-License-Identifier: MIT */
#include "relay.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* A side whose peer takes nothing is not read further: several batches of pages. */
#define QUEUE_HIGH (2U * 1024 * 1024)
#define READ_CHUNK (256U * 1024)

static void service(struct relay_side *s);
static void watch(struct relay_side *s);

static struct relay_side *peer_of(struct relay_side *s)
{
	return &s->relay->side[s->dir == TO_DEST ? TO_SOURCE : TO_DEST];
}

const char *relay_type_name(unsigned type)
{
	return type == RELAY_PRELUDE ? "prelude" : wire_type_name(type);
}

/* ---- queues ---- */

static void queue_add(struct relay_queue *q, const void *data, size_t len)
{
	if (q->len + len > q->cap) {
		q->cap = 2 * (q->len + len);
		q->data = realloc(q->data, q->cap);
		if (!q->data)
			fail_test("out of memory");
	}
	if (len)
		memcpy(q->data + q->len, data, len);
	q->len += len;
}

static void queue_take(struct relay_queue *q, size_t len)
{
	q->len -= len;
	memmove(q->data, q->data + len, q->len);
}

/* ---- frames ---- */

/* What a frame's check covers: of PAGES not the pages. */
static size_t checked_len(const struct relay_frame *f)
{
	size_t len = relay_payload_len(f);
	struct wire_batch b;

	if (f->type != WIRE_PAGES || len < sizeof(b))
		return len;
	memcpy(&b, f->bytes + sizeof(struct wire_frame), sizeof(b));
	return MIN(len, sizeof(b) + MIN(b.n_descs, WIRE_BATCH_DESCS) * sizeof(struct wire_desc));
}

void relay_fix(struct relay_frame *f)
{
	struct wire_frame h;

	if (f->type == RELAY_PRELUDE)
		return;
	memcpy(&h, f->bytes, sizeof(h));
	h.check = wire_check_sum(&h, relay_payload(f), checked_len(f));
	memcpy(f->bytes, &h, sizeof(h));
}

/* Appends to what goes to the other side. */
static void emit(struct relay_side *s, struct relay_frame *f)
{
	if (s->relay->renumber && f->type != RELAY_PRELUDE) {
		relay_header(f)->seq = s->seq++;
		relay_fix(f);
	}
	queue_add(&peer_of(s)->out, f->bytes, f->len);
}

static void note(struct relay_side *s, const struct relay_frame *f)
{
	struct relay *r = s->relay;
	size_t used = strlen(r->trace);

	/* A long row of PAGES says no more than its first ones. */
	if (f->type == WIRE_PAGES && f->nth > 20)
		return;
	snprintf(r->trace + used, sizeof(r->trace) - used, "%s%c:%s", used ? " " : "",
		 f->dir == TO_DEST ? 'S' : 'D', relay_type_name(f->type));
}

static void record(struct relay *r, const struct relay_frame *f)
{
	if (!r->record || f->dir != TO_DEST)
		return;
	r->take = realloc(r->take, (r->n_takes + 1) * sizeof(*r->take));
	if (!r->take)
		fail_test("out of memory");
	r->take[r->n_takes++] =
		(struct relay_take){.type = f->type, .at = r->tape.len, .len = f->len};
	queue_add(&r->tape, f->bytes, f->len);
}

/* ---- acts ---- */

static void end_connection(struct relay *r, bool reset)
{
	r->ended = true;
	r->reset = reset;
	for (unsigned i = 0; i < 2; i++) {
		r->side[i].out_ended = true;
		r->side[i].held = false;
	}
}

/* Acts that end the connection, or stop it. False when the frame goes on. */
static bool do_stop(struct relay_side *s, struct relay_act *a)
{
	a->done = true;
	switch (a->what) {
	case RELAY_KILL:
		proc_kill(a->victim, SIGKILL);
		end_connection(s->relay, false);
		return true;
	case RELAY_CUT:
	case RELAY_RESET:
		end_connection(s->relay, a->what == RELAY_RESET);
		return true;
	case RELAY_HOLD:
		s->held = true;
		return true;
	default:
		fail_test("an act that cannot be done %s a frame",
			  a->when == RELAY_AFTER ? "after" : "before");
	}
}

static bool is_stop(const struct relay_act *a)
{
	return a->what == RELAY_KILL || a->what == RELAY_CUT || a->what == RELAY_RESET ||
	       a->what == RELAY_HOLD;
}

static void flip(const struct relay_act *a, struct relay_frame *f)
{
	size_t skip = f->type == RELAY_PRELUDE ? 0 : sizeof(struct wire_frame);

	if (a->at / 8 >= f->len - skip)
		fail_test("%s has no bit %zu in its %zu bytes", relay_type_name(f->type), a->at,
			  f->len - skip);
	f->bytes[skip + a->at / 8] ^= (uint8_t)(1U << (a->at % 8));
}

/*
 * Forwards one frame, with its acts. False when nothing more of this direction is to be looked at
 * for now; *kept then says whether the frame is to be looked at again.
 */
static bool forward(struct relay_side *s, struct relay_frame *f, bool *kept)
{
	struct relay *r = s->relay;
	bool drop = false, later = false, shorten = false;
	unsigned times = 1;

	*kept = false;
	for (unsigned i = 0; i < r->n_acts; i++) {
		struct relay_act *a = &r->act[i];

		if (a->done || a->dir != f->dir || a->type != f->type ||
		    (a->nth ? a->nth : 1) != f->nth || a == s->after)
			continue;
		if (is_stop(a)) {
			if (a->when == RELAY_AFTER) {
				s->after = a;
				continue;
			}
			*kept = a->what == RELAY_HOLD;
			return !do_stop(s, a);
		}
		a->done = true;
		switch (a->what) {
		case RELAY_DROP:
			drop = true;
			break;
		case RELAY_TWICE:
			times = 2;
			break;
		case RELAY_SWAP:
			later = true;
			break;
		case RELAY_SHORT:
			shorten = true;
			f->len = MIN(f->len, a->at);
			break;
		case RELAY_FLIP:
			flip(a, f);
			break;
		case RELAY_EDIT:
			a->edit(a->arg, f);
			break;
		default:
			fail_test("an act of kind %d", a->what);
		}
		if (a->fix)
			relay_fix(f);
	}
	if (later) {
		queue_add(&s->later, f->bytes, f->len);
		return true;
	}
	for (unsigned i = 0; !drop && i < times; i++)
		emit(s, f);
	if (s->later.len) {
		struct relay_frame first = {
			.dir = s->dir, .bytes = s->later.data, .len = s->later.len};

		first.type = relay_header(&first)->type;
		s->later.len = 0;
		emit(s, &first);
	}
	if (shorten)
		end_connection(r, false);
	return !shorten && !s->after;
}

/* The next whole frame of what was read. False when there is none yet. */
static bool parse(struct relay_side *s, struct relay_frame *f)
{
	struct wire_frame h;

	*f = (struct relay_frame){.dir = s->dir, .bytes = s->in.data, .nth = 1};
	if (!s->prelude) {
		f->len = sizeof(struct wire_prelude);
		if (s->in.len < f->len)
			return false;
		s->raw = memcmp(f->bytes, WIRE_MAGIC, strlen(WIRE_MAGIC)) != 0;
		return !s->raw;
	}
	if (s->in.len < sizeof(h))
		return false;
	memcpy(&h, s->in.data, sizeof(h));
	if (h.magic != WIRE_FRAME_MAGIC || h.type == 0 || h.type >= WIRE_N_TYPES ||
	    h.length > wire_max_length(h.type)) {
		s->raw = true;
		return false;
	}
	f->type = h.type;
	f->nth = s->count[h.type] + 1;
	f->len = sizeof(h) + h.length;
	return s->in.len >= f->len;
}

/* Passes on what has come. */
static void pass(struct relay_side *s)
{
	struct relay *r = s->relay;
	struct relay_side *p = peer_of(s);
	struct relay_frame f;
	bool kept, go = true;

	while (go && !r->ended && !s->held && !s->after && !s->raw && parse(s, &f)) {
		size_t len = f.len;

		go = forward(s, &f, &kept);
		if (kept)
			break;
		note(s, &f);
		record(r, &f);
		s->prelude = true;
		s->count[f.type]++;
		queue_take(&s->in, len);
	}
	if (r->ended)
		s->in.len = 0;
	if (s->held || s->after || r->ended)
		return;
	if (s->raw || s->in_ended) {
		queue_add(&p->out, s->in.data, s->in.len);
		s->in.len = 0;
	}
	if (s->in_ended)
		p->out_ended = true;
}

/* ---- sockets ---- */

static void read_side(struct relay_side *s)
{
	static uint8_t buf[READ_CHUNK];

	while (!s->in_ended && (s->in.len < QUEUE_HIGH || s->relay->ended)) {
		ssize_t n = recv(s->fd, buf, sizeof(buf), MSG_DONTWAIT);

		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		if (n <= 0)
			s->in_ended = true;
		else if (!s->relay->ended)
			queue_add(&s->in, buf, (size_t)n);
	}
}

static void write_side(struct relay_side *s)
{
	while (s->out.len) {
		ssize_t n = send(s->fd, s->out.data, s->out.len, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return;
		if (n < 0) {
			/* Nobody takes it any more; what he said before he left is still read. */
			s->out.len = 0;
			s->out_ended = true;
			break;
		}
		queue_take(&s->out, (size_t)n);
	}
	if (!s->out_ended || s->out_shut)
		return;
	s->out_shut = true;
	if (s->relay->reset) {
		struct linger now = {.l_onoff = 1};

		setsockopt(s->fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
		harness_watch(s->fd, 0, NULL, NULL);
		close(s->fd);
		s->fd = -1;
		s->in_ended = true;
		return;
	}
	shutdown(s->fd, s->relay->ended ? SHUT_RDWR : SHUT_WR);
}

static void on_ready(void *arg, int fd, short revents)
{
	(void)fd;
	(void)revents;
	service(arg);
}

static void watch(struct relay_side *s)
{
	bool full =
		!s->relay->ended && (s->in.len >= QUEUE_HIGH || peer_of(s)->out.len >= QUEUE_HIGH);
	short events = 0;

	if (s->fd < 0)
		return;
	if (!s->in_ended && !full)
		events |= POLLIN;
	if (s->out.len)
		events |= POLLOUT;
	/* Not watched at all, since the end of it would be reported for ever. */
	harness_watch(s->fd, events, on_ready, s);
}

/* What was delivered may let the direction go on that leads to this side. */
static void run_after(struct relay_side *s)
{
	struct relay_act *a = s->after;

	if (!a || peer_of(s)->out.len)
		return;
	s->after = NULL;
	do_stop(s, a);
}

static void service(struct relay_side *s)
{
	struct relay *r = s->relay;

	if (s->fd >= 0)
		read_side(s);
	/* Each pass may end with an act that lets the next one go on. */
	for (unsigned i = 0; i < 4; i++) {
		for (unsigned k = 0; k < 2; k++)
			pass(&r->side[k]);
		for (unsigned k = 0; k < 2; k++) {
			if (r->side[k].fd >= 0)
				write_side(&r->side[k]);
		}
		for (unsigned k = 0; k < 2; k++)
			run_after(&r->side[k]);
	}
	for (unsigned k = 0; k < 2; k++)
		watch(&r->side[k]);
}

static socklen_t parse_uri(const char *uri, struct sockaddr_storage *addr)
{
	struct sockaddr_un *un = (struct sockaddr_un *)addr;
	struct sockaddr_in *in = (struct sockaddr_in *)addr;
	char host[64];
	unsigned port;

	memset(addr, 0, sizeof(*addr));
	if (strncmp(uri, "unix:", 5) == 0 && strlen(uri + 5) < sizeof(un->sun_path)) {
		un->sun_family = AF_UNIX;
		strcpy(un->sun_path, uri + 5);
		return sizeof(*un);
	}
	if (sscanf(uri, "tcp:%63[0-9.]:%u", host, &port) != 2 ||
	    inet_pton(AF_INET, host, &in->sin_addr) != 1)
		fail_test("'%s' is no URI for a relay", uri);
	in->sin_family = AF_INET;
	in->sin_port = htons((uint16_t)port);
	return sizeof(*in);
}

int relay_connect(const char *uri)
{
	struct sockaddr_storage addr;
	socklen_t len = parse_uri(uri, &addr);
	int fd = socket(addr.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || connect(fd, (struct sockaddr *)&addr, len))
		fail_test("%s: %s", uri, strerror(errno));
	return fd;
}

int relay_listen(const char *uri, char out[256])
{
	static unsigned sockets;
	struct sockaddr_storage addr;
	struct sockaddr_in bound;
	socklen_t len;
	int fd;

	if (strcmp(uri, "unix:") == 0)
		uri = harness_path("unix:%s/relay%u", harness_tmp(), sockets++);
	len = parse_uri(uri, &addr);
	fd = socket(addr.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || bind(fd, (struct sockaddr *)&addr, len) || listen(fd, 4))
		fail_test("%s: %s", uri, strerror(errno));
	snprintf(out, 256, "%s", uri);
	if (addr.ss_family == AF_INET) {
		len = sizeof(bound);
		if (getsockname(fd, (struct sockaddr *)&bound, &len))
			fail_test("%s: %s", uri, strerror(errno));
		snprintf(out, 256, "tcp:127.0.0.1:%u", ntohs(bound.sin_port));
	}
	return fd;
}

static void on_connect(void *arg, int fd, short revents)
{
	struct relay *r = arg;

	(void)revents;
	r->side[TO_DEST].fd = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
	if (r->side[TO_DEST].fd < 0)
		fail_test("%s: %s", r->uri, strerror(errno));
	harness_watch(fd, 0, NULL, NULL);
	close(fd);
	r->listen_fd = -1;
	r->side[TO_SOURCE].fd = relay_connect(r->to_uri);
	for (unsigned i = 0; i < 2; i++)
		watch(&r->side[i]);
}

struct relay *relay_start(const char *uri, const char *to_uri)
{
	struct relay *r = calloc(1, sizeof(*r));

	if (!r)
		fail_test("out of memory");
	snprintf(r->to_uri, sizeof(r->to_uri), "%s", to_uri);
	for (unsigned i = 0; i < 2; i++)
		r->side[i] = (struct relay_side){.relay = r, .fd = -1, .dir = (enum relay_dir)i};
	r->listen_fd = relay_listen(uri, r->uri);
	harness_watch(r->listen_fd, POLLIN, on_connect, r);
	return r;
}

void relay_act(struct relay *r, struct relay_act act)
{
	if (r->n_acts == RELAY_MAX_ACTS)
		fail_test("more than %d acts", RELAY_MAX_ACTS);
	r->act[r->n_acts++] = act;
}

struct act_wait {
	struct relay *r;
	unsigned n;
};

static bool act_done(void *arg)
{
	const struct act_wait *w = arg;

	return w->r->act[w->n].done;
}

void relay_wait(struct relay *r, unsigned n, int timeout_ms)
{
	struct act_wait w = {r, n};

	if (!harness_until(act_done, &w, timeout_ms))
		fail_test("%s number %u did not come; what came: %s",
			  relay_type_name(r->act[n].type), r->act[n].nth ? r->act[n].nth : 1,
			  r->trace);
}

void relay_hold(struct relay *r)
{
	for (unsigned i = 0; i < 2; i++)
		r->side[i].held = true;
}

void relay_go(struct relay *r)
{
	for (unsigned i = 0; i < 2; i++)
		r->side[i].held = false;
	service(&r->side[TO_DEST]);
}

void relay_cut(struct relay *r)
{
	end_connection(r, false);
	service(&r->side[TO_DEST]);
}

unsigned relay_seen(const struct relay *r, enum relay_dir dir, unsigned type)
{
	return r->side[dir].count[type];
}

void relay_all_done(struct relay *r)
{
	for (unsigned i = 0; i < r->n_acts; i++)
		relay_wait(r, i, 0);
}
