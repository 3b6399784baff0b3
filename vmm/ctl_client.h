/* SPDX-License-Identifier: MIT */
/* The commands' side of the control socket: one blocking connection, every wait bounded. */
#ifndef GODWIT_CTL_CLIENT_H
#define GODWIT_CTL_CLIENT_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

#include "log.h"
#include "util.h"

#define CTL_CALL_TIMEOUT (10 * NS_PER_SEC)

struct ctl_conn {
	int fd;
	char *buf;
	size_t len, cap;
};

/*
 * Connects to the guest's process. -ENOENT when no guest of that name runs here, -EPERM,
 * -ETIMEDOUT, -errno, with the cause in err. ctl_close() it.
 */
int ctl_connect(struct ctl_conn *c, const char *name, struct errmsg *err);
void ctl_close(struct ctl_conn *c);

/* Sends one request, whose reference is taken. -errno with the cause in err. */
int ctl_send(struct ctl_conn *c, json_t *request, struct errmsg *err);

/*
 * Next line that the process sent. -ETIMEDOUT, -ECONNRESET when it closed the connection (without
 * a text in err: what that means is for the caller to say), -EPROTO, -errno. timeout_ns 0 takes
 * only what is there.
 */
int ctl_recv(struct ctl_conn *c, json_t **obj, uint64_t timeout_ns, struct errmsg *err);

/*
 * One request and its answer, within timeout_ns. 0 when the answer is "ok", *answer (may be NULL)
 * then holds it; -EREMOTEIO with its "error" in err when not; else as above.
 */
int ctl_call(const char *name, json_t *request, uint64_t timeout_ns, json_t **answer,
	     struct errmsg *err);

/* Waits until the process has closed the connection, as it does when it ends. -ETIMEDOUT. */
int ctl_wait_end(struct ctl_conn *c, uint64_t timeout_ns);

#endif
