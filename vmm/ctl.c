/* SPDX-License-Identifier: MIT */
#include "ctl.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "instance_text.h"
#include "log.h"

#define OUT_MAX (4 * CTL_LINE_MAX) /* that may wait for one client */
/* With so much of it no further request of his is looked at: he is slower than our answers. */
#define OUT_ENOUGH CTL_LINE_MAX
#define TICK_NS NS_PER_SEC
#define ACCEPT_RETRY_NS (100 * NS_PER_MS)

/*
 *	lines in -> in[] -> dispatch() -> handler -> ctl_reply() -> queue -> sending -> lines out
 *
 * Bytes being sent must not move, so what comes meanwhile is gathered in a second buffer, and
 * the two change places when the first is through.
 */
struct buffer {
	char *data;
	size_t len, cap;
};

struct ctl_client {
	struct ctl *ctl;
	struct ctl_client *next;
	int fd;
	struct loop_op recv_op, send_op;
	char *in; /* CTL_LINE_MAX */
	size_t in_len;
	size_t scanned; /* bytes of in known to hold no newline */
	struct buffer queue, sending;
	size_t sent;
	uint64_t last_ns; /* when bytes last went either way */
	bool busy;	  /* a request waits for its answer: the handler holds this client */
	bool dispatching;
	bool eof;     /* no more requests will come */
	bool closing; /* close once everything is sent */
	bool dead;    /* the connection is shut down: only wait for what is pending */
};

struct ctl {
	struct loop *loop;
	int listen_fd;
	const struct ctl_handler *handlers;
	void *arg;
	uint64_t idle_ns;
	struct loop_op accept_op, retry_op, tick_op;
	struct ctl_client *clients;
	unsigned n_clients;
	bool stopping;
};

static void start_accept(struct ctl *ctl);
static void dispatch(struct ctl_client *c);

static void client_free(struct ctl_client *c)
{
	struct ctl_client **p = &c->ctl->clients;

	while (*p != c)
		p = &(*p)->next;
	*p = c->next;
	c->ctl->n_clients--;
	close(c->fd);
	free(c->in);
	free(c->queue.data);
	free(c->sending.data);
	free(c);
}

/* Ends the connection now. The client itself goes when nothing refers to it any more. */
static void client_drop(struct ctl_client *c)
{
	if (c->dead)
		return;
	c->dead = true;
	shutdown(c->fd, SHUT_RDWR);
	loop_cancel(c->ctl->loop, &c->recv_op);
	loop_cancel(c->ctl->loop, &c->send_op);
}

/* To be called last by whatever changed the client's state: c may be gone afterwards. */
static void client_settle(struct ctl_client *c)
{
	bool drained = !c->send_op.pending && c->queue.len == 0;

	if (c->busy || c->dispatching)
		return;
	if (!c->dead && drained && (c->closing || c->eof))
		client_drop(c);
	if (c->dead && !c->recv_op.pending && !c->send_op.pending)
		client_free(c);
}

static void start_send(struct ctl_client *c)
{
	if (c->dead || c->send_op.pending)
		return;
	if (c->sent == c->sending.len) {
		struct buffer empty = c->sending;

		c->sending = c->queue;
		c->queue = empty;
		c->queue.len = 0;
		c->sent = 0;
	}
	if (c->sending.len)
		io_uring_prep_send(loop_sqe(c->ctl->loop, &c->send_op), c->fd,
				   c->sending.data + c->sent, c->sending.len - c->sent,
				   MSG_NOSIGNAL);
}

static bool has_enough(const struct ctl_client *c)
{
	return c->queue.len >= OUT_ENOUGH;
}

static void on_send(struct loop_op *op, int32_t res)
{
	struct ctl_client *c = container_of(op, struct ctl_client, send_op);

	if (res > 0) {
		c->sent += (size_t)res;
		c->last_ns = now_ns();
	}
	if (res > 0 || res == -EINTR || res == -EAGAIN)
		start_send(c);
	else
		client_drop(c);
	/* There may be room for the answers to requests that have come already. */
	if (c->recv_op.pending)
		client_settle(c);
	else
		dispatch(c);
}

/* Queues one line; drops a client that leaves too much of it. */
static void put_line(struct ctl_client *c, const json_t *obj)
{
	AUTO_FREE char *text = NULL;
	size_t len, need;

	if (c->dead || c->closing)
		return;
	text = json_dumps(obj, JSON_COMPACT | JSON_REAL_PRECISION(15));
	if (!text) {
		client_drop(c);
		return;
	}
	len = strlen(text);
	text[len++] = '\n';
	need = c->queue.len + len;
	if (need > OUT_MAX) {
		log_debug("control: dropped a client that does not read");
		client_drop(c);
		return;
	}
	if (need > c->queue.cap) {
		size_t cap = MAX(need, 2 * c->queue.cap);
		char *p = realloc(c->queue.data, cap);

		if (!p) {
			client_drop(c);
			return;
		}
		c->queue.data = p;
		c->queue.cap = cap;
	}
	memcpy(c->queue.data + c->queue.len, text, len);
	c->queue.len = need;
	start_send(c);
}

/* The request in hand is answered: on to the next line, if it has come already. */
static void answered(struct ctl_client *c)
{
	c->busy = false;
	c->last_ns = now_ns();
	dispatch(c);
}

static json_t *with_ok(json_t *obj, bool ok)
{
	json_t *line = json_pack("{s:b}", "ok", ok);

	if (line && obj)
		json_object_update_missing(line, obj);
	json_decref(obj);
	return line;
}

void ctl_reply(struct ctl_client *c, json_t *obj)
{
	json_t *line = with_ok(obj, true);

	put_line(c, line);
	json_decref(line);
	answered(c);
}

void ctl_error(struct ctl_client *c, json_t *obj, const char *fmt, ...)
{
	struct errmsg e = {""}, plain;
	json_t *line = with_ok(obj, false);
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(e.text, sizeof(e.text), fmt, ap);
	va_end(ap);
	/* Parts of it may be a path of any bytes, or cut short in the middle of a character. */
	json_object_set_new(line, "error",
			    json_string(text_plain(plain.text, sizeof(plain.text), e.text)));
	put_line(c, line);
	json_decref(line);
	answered(c);
}

void ctl_event(struct ctl_client *c, json_t *obj)
{
	if (!c->send_op.pending && c->queue.len == 0)
		put_line(c, obj);
	json_decref(obj);
}

/* Says what is wrong with the connection itself, then closes it. */
static void refuse(struct ctl_client *c, const char *why)
{
	json_t *line = json_pack("{s:b,s:s}", "ok", 0, "error", why);

	put_line(c, line);
	json_decref(line);
	c->closing = true;
}

static void serve_line(struct ctl_client *c, const char *line, size_t len)
{
	json_error_t jerr;
	json_t *request;
	const char *cmd;

	while (len && (line[len - 1] == '\r' || line[len - 1] == ' '))
		len--;
	if (len == 0)
		return;
	c->busy = true;
	request = json_loadb(line, len, JSON_REJECT_DUPLICATES, &jerr);
	cmd = json_string_value(json_object_get(request, "cmd"));
	if (!request) {
		ctl_error(c, NULL, "not JSON: %.200s", jerr.text);
	} else if (!cmd) {
		ctl_error(c, NULL, "a request is an object with a string \"cmd\"");
	} else {
		const struct ctl_handler *h = c->ctl->handlers;

		while (h->cmd && strcmp(h->cmd, cmd) != 0)
			h++;
		if (h->cmd)
			h->fn(c->ctl->arg, c, request);
		else
			ctl_error(c, NULL, "no command \"%.60s\"", cmd);
	}
	json_decref(request);
}

/* Only when every whole line has been served and answered: a client cannot fill our memory. */
static void start_recv(struct ctl_client *c)
{
	if (c->dead || c->eof || c->closing || c->busy || has_enough(c) || c->recv_op.pending)
		return;
	io_uring_prep_recv(loop_sqe(c->ctl->loop, &c->recv_op), c->fd, c->in + c->in_len,
			   CTL_LINE_MAX - c->in_len, 0);
}

/* Serves the lines that have come, one at a time. May free c. */
static void dispatch(struct ctl_client *c)
{
	if (c->dispatching)
		return;
	c->dispatching = true;
	/* No receive is pending here: the kernel never writes to in[] while lines are moved. */
	while (!c->busy && !c->dead && !c->closing && !has_enough(c)) {
		char *nl = memchr(c->in + c->scanned, '\n', c->in_len - c->scanned);
		AUTO_FREE char *line = NULL;
		size_t len;

		if (!nl) {
			c->scanned = c->in_len;
			if (c->in_len == CTL_LINE_MAX)
				refuse(c, "a line is longer than 64 KiB");
			else if (c->eof && c->in_len)
				refuse(c, "the last line does not end");
			break;
		}
		len = (size_t)(nl - c->in);
		line = malloc(len + 1);
		if (!line) {
			client_drop(c);
			break;
		}
		memcpy(line, c->in, len);
		c->in_len -= len + 1;
		memmove(c->in, nl + 1, c->in_len);
		c->scanned = 0;
		serve_line(c, line, len);
	}
	c->dispatching = false;
	start_recv(c);
	client_settle(c);
}

static void on_recv(struct loop_op *op, int32_t res)
{
	struct ctl_client *c = container_of(op, struct ctl_client, recv_op);

	if (res > 0) {
		c->in_len += (size_t)res;
		c->last_ns = now_ns();
	} else if (res == 0) {
		/* Answers still go out: a client may shut down its side once it has asked. */
		c->eof = true;
	} else if (res != -EINTR && res != -EAGAIN) {
		client_drop(c);
	}
	dispatch(c);
}

/*
 * Once a second while there are clients: those that neither ask nor take their answers go. One
 * that waits for an answer of ours stays, whatever it does.
 */
static void on_tick(struct loop_op *op, int32_t res)
{
	struct ctl *ctl = container_of(op, struct ctl, tick_op);
	uint64_t now = now_ns();
	struct ctl_client *next;

	(void)res;
	for (struct ctl_client *c = ctl->clients; c; c = next) {
		next = c->next;
		if (!c->busy && now - c->last_ns > ctl->idle_ns)
			client_drop(c);
		client_settle(c);
	}
	if (ctl->clients && !ctl->stopping)
		loop_timer(ctl->loop, &ctl->tick_op, TICK_NS);
}

static bool may_connect(int fd)
{
	struct ucred cred;
	socklen_t len = sizeof(cred);

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len))
		return false;
	return cred.uid == 0 || cred.uid == geteuid();
}

static void add_client(struct ctl *ctl, int fd)
{
	static const char full[] = "{\"ok\":false,\"error\":\"too many connections\"}\n";
	struct ctl_client *c;

	if (!may_connect(fd)) {
		log_warn("control: refused a connection of another user");
		close(fd);
		return;
	}
	if (ctl->n_clients == CTL_CLIENTS_MAX) {
		/* A fresh socket has room for a line; if not, the client sees the end only. */
		(void)!send(fd, full, sizeof(full) - 1, MSG_DONTWAIT | MSG_NOSIGNAL);
		close(fd);
		return;
	}
	c = calloc(1, sizeof(*c));
	if (c)
		c->in = malloc(CTL_LINE_MAX);
	if (!c || !c->in) {
		free(c);
		close(fd);
		return;
	}
	c->ctl = ctl;
	c->fd = fd;
	c->last_ns = now_ns();
	c->recv_op.done = on_recv;
	c->send_op.done = on_send;
	c->next = ctl->clients;
	ctl->clients = c;
	ctl->n_clients++;
	start_recv(c);
	if (!ctl->tick_op.pending)
		loop_timer(ctl->loop, &ctl->tick_op, TICK_NS);
}

static void on_accept(struct loop_op *op, int32_t res)
{
	struct ctl *ctl = container_of(op, struct ctl, accept_op);

	if (ctl->stopping) {
		if (res >= 0)
			close(res);
		return;
	}
	if (res >= 0)
		add_client(ctl, res);
	if (res >= 0 || res == -EINTR || res == -ECONNABORTED || res == -EAGAIN)
		start_accept(ctl);
	else /* out of fds or memory: it may pass */
		loop_timer(ctl->loop, &ctl->retry_op, ACCEPT_RETRY_NS);
}

static void on_retry(struct loop_op *op, int32_t res)
{
	struct ctl *ctl = container_of(op, struct ctl, retry_op);

	(void)res;
	if (!ctl->stopping)
		start_accept(ctl);
}

static void start_accept(struct ctl *ctl)
{
	io_uring_prep_accept(loop_sqe(ctl->loop, &ctl->accept_op), ctl->listen_fd, NULL, NULL,
			     SOCK_CLOEXEC);
}

int ctl_start(struct ctl **out, struct loop *loop, int listen_fd,
	      const struct ctl_handler *handlers, void *arg, uint64_t idle_ns)
{
	struct ctl *ctl = calloc(1, sizeof(*ctl));

	if (!ctl)
		return -ENOMEM;
	ctl->loop = loop;
	ctl->listen_fd = listen_fd;
	ctl->handlers = handlers;
	ctl->arg = arg;
	ctl->idle_ns = idle_ns;
	ctl->accept_op.done = on_accept;
	ctl->retry_op.done = on_retry;
	ctl->tick_op.done = on_tick;
	start_accept(ctl);
	*out = ctl;
	return 0;
}

static bool any_pending(const struct ctl *ctl)
{
	return ctl->clients || ctl->accept_op.pending || ctl->retry_op.pending ||
	       ctl->tick_op.pending;
}

void ctl_stop(struct ctl *ctl, uint64_t timeout_ns)
{
	uint64_t deadline, now;
	struct ctl_client *next;

	if (!ctl)
		return;
	ctl->stopping = true;
	loop_cancel(ctl->loop, &ctl->accept_op);
	loop_cancel(ctl->loop, &ctl->retry_op);
	loop_cancel(ctl->loop, &ctl->tick_op);
	for (struct ctl_client *c = ctl->clients; c; c = next) {
		next = c->next;
		if (c->busy) {
			/* Not dispatch(): nobody is there any more to serve a further request. */
			refuse(c, "the guest's process ends");
			c->busy = false;
		}
		c->closing = true;
		client_settle(c);
	}

	deadline = now_ns() + timeout_ns;
	while (any_pending(ctl) && (now = now_ns()) < deadline)
		loop_step(ctl->loop, deadline - now);
	for (struct ctl_client *c = ctl->clients; c; c = next) {
		next = c->next;
		client_drop(c);
		client_settle(c);
	}
	deadline = now_ns() + NS_PER_SEC;
	while (any_pending(ctl) && (now = now_ns()) < deadline)
		loop_step(ctl->loop, deadline - now);
	/* What the kernel would not end in a second it may still write to: better left than freed.
	 */
	if (!any_pending(ctl))
		free(ctl);
}
