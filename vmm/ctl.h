/* SPDX-License-Identifier: MIT */
/*
 * The control socket's server, on the loop.
 *
 * Theory of operation: clients send requests, one JSON object per line with a member "cmd"; each
 * gets exactly one answer line with a boolean "ok", and "error" when that is false. Requests of
 * one connection are served one after the other; while one waits for its answer, lines with
 * "event" may come first (progress of a migration). Any number of connections is served side by
 * side, up to a limit. Requests may come ahead of their answers: while much of these is not taken
 * no further one is looked at.
 *
 * A client can do no more harm than its own: only the owner of the process and root are let in,
 * a line is at most CTL_LINE_MAX bytes, what is not JSON is answered with an error, a client that
 * is idle or does not take its answers is dropped, events for a slow one are left out, and nothing
 * here ever waits.
 */
#ifndef GODWIT_CTL_H
#define GODWIT_CTL_H

#include <jansson.h>

#include "loop.h"
#include "util.h"

#define CTL_LINE_MAX (64 * KIB)
#define CTL_CLIENTS_MAX 32
#define CTL_IDLE_DEFAULT (30 * NS_PER_SEC)

struct ctl;
struct ctl_client;

/*
 * A request's handler, on the loop's thread. It answers with ctl_reply() or ctl_error(), now or
 * later; until then client stays valid even when its connection is gone. request is borrowed.
 */
struct ctl_handler {
	const char *cmd;
	void (*fn)(void *arg, struct ctl_client *client, json_t *request);
};

/*
 * Serves listen_fd, which stays the caller's, with handlers (ended by a NULL cmd; they must
 * outlive the server). A client that is idle for idle_ns is dropped within a second. 0 or -ENOMEM.
 */
int ctl_start(struct ctl **out, struct loop *loop, int listen_fd,
	      const struct ctl_handler *handlers, void *arg, uint64_t idle_ns);

/*
 * The answer of the request that client waits for: obj, whose reference is taken and to which
 * "ok": true is added at the front (NULL: nothing but that). After it client must not be used.
 */
void ctl_reply(struct ctl_client *client, json_t *obj);

/* The same with "ok": false and the reason, which may quote any bytes (instance_text.h); obj (may
 * be NULL) can carry more. */
void ctl_error(struct ctl_client *client, json_t *obj, const char *fmt, ...) PRINTF(3, 4);

/* A line before the answer; left out when the client has not taken the last one yet. */
void ctl_event(struct ctl_client *client, json_t *obj);

/*
 * Stops accepting, gives clients at most timeout_ns to take what is on its way to them, closes
 * all and frees. Runs the loop meanwhile. Requests still without an answer get an error. NULL is
 * allowed.
 */
void ctl_stop(struct ctl *ctl, uint64_t timeout_ns);

#endif
