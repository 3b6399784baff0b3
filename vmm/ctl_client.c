/* SPDX-License-Identifier: MIT */
#include "ctl_client.h"

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "rundir.h"

#define LINE_MAX_BYTES                                                                             \
	(16 *                                                                                      \
	 MIB) /* of an answer: its length is the server's, not ours to trust                  \
		    */

int ctl_connect(struct ctl_conn *c, const char *name, struct errmsg *err)
{
	struct timeval tv = {.tv_sec = (time_t)(CTL_CALL_TIMEOUT / NS_PER_SEC)};
	char dir[RUNDIR_PATH_MAX];
	struct sockaddr_un addr;
	struct errmsg why = {""};
	struct ucred cred;
	socklen_t len = sizeof(cred);
	int ret;

	memset(c, 0, sizeof(*c));
	c->fd = -1;
	ret = rundir_path(dir, false, &why);
	if (ret == -ENOENT)
		return errmsg_set(err, -ENOENT, "no guest '%s' runs here (see godwit list)", name);
	if (ret)
		return errmsg_set(err, ret, "%s", why.text);
	ret = rundir_address(dir, name, &addr, err);
	if (ret)
		return ret;

	c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (c->fd < 0)
		return errmsg_set(err, -errno, "socket: %s", strerror(errno));
	/* Connecting and sending wait while the process does not accept: bounded by this. */
	setsockopt(c->fd, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof(tv));
	if (connect(c->fd, (struct sockaddr *)&addr, sizeof(addr))) {
		ret = -errno;
		if (ret == -ECONNREFUSED || ret == -ENOENT)
			ret = errmsg_set(err, -ENOENT, "no guest '%s' runs here (see godwit list)",
					 name);
		else if (ret == -EAGAIN)
			ret = errmsg_set(err, -ETIMEDOUT, "'%s' does not answer", name);
		else
			errmsg_set(err, ret, "cannot connect to %s: %s", addr.sun_path,
				   strerror(-ret));
		goto fail;
	}
	/* Who answers must be who may own the guest. */
	if (getsockopt(c->fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) == 0 && cred.uid != geteuid() &&
	    cred.uid != 0 && geteuid() != 0) {
		ret = errmsg_set(err, -EPERM, "%s is served by another user", addr.sun_path);
		goto fail;
	}
	return 0;

fail:
	ctl_close(c);
	return ret;
}

void ctl_close(struct ctl_conn *c)
{
	if (c->fd >= 0)
		close(c->fd);
	free(c->buf);
	memset(c, 0, sizeof(*c));
	c->fd = -1;
}

int ctl_send(struct ctl_conn *c, json_t *request, struct errmsg *err)
{
	AUTO_FREE char *text = json_dumps(request, JSON_COMPACT | JSON_REAL_PRECISION(15));
	size_t len, done = 0;

	json_decref(request);
	if (!text)
		return errmsg_set(err, -EINVAL, "a word of the request is not UTF-8 text");
	len = strlen(text);
	text[len++] = '\n'; /* in place of the final NUL */
	while (done < len) {
		ssize_t n = send(c->fd, text + done, len - done, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errmsg_set(err, -errno, "cannot send to the guest's process: %s",
					  strerror(errno));
		done += (size_t)n;
	}
	return 0;
}

/* Waits for bytes and reads them. 0, -ETIMEDOUT, -ECONNRESET, -errno. */
static int fill(struct ctl_conn *c, uint64_t deadline)
{
	struct pollfd p = {.fd = c->fd, .events = POLLIN};
	uint64_t now = now_ns();
	uint64_t left = deadline > now ? deadline - now : 0;
	ssize_t n;
	int ret;

	/* Rounded up: a wait must not end before its time. */
	left = MIN((left + NS_PER_MS - 1) / NS_PER_MS, 3600000U);
	ret = poll(&p, 1, (int)left);
	if (ret < 0)
		return errno == EINTR ? 0 : -errno;
	if (ret == 0)
		return now_ns() >= deadline ? -ETIMEDOUT : 0;
	if (c->len == c->cap) {
		size_t cap = c->cap ? 2 * c->cap : 4096;
		char *buf;

		if (cap > LINE_MAX_BYTES)
			return -EPROTO;
		buf = realloc(c->buf, cap);
		if (!buf)
			return -ENOMEM;
		c->buf = buf;
		c->cap = cap;
	}
	n = recv(c->fd, c->buf + c->len, c->cap - c->len, MSG_DONTWAIT);
	if (n < 0)
		return errno == EINTR || errno == EAGAIN ? 0 : -errno;
	if (n == 0)
		return -ECONNRESET;
	c->len += (size_t)n;
	return 0;
}

int ctl_recv(struct ctl_conn *c, json_t **obj, uint64_t timeout_ns, struct errmsg *err)
{
	uint64_t deadline = now_ns() + timeout_ns;
	char *nl;
	int ret;

	while (!(nl = c->len ? memchr(c->buf, '\n', c->len) : NULL)) {
		ret = fill(c, deadline);
		if (ret == -ETIMEDOUT)
			return errmsg_set(err, ret, "the guest's process does not answer");
		if (ret == -ECONNRESET)
			return ret;
		if (ret)
			return errmsg_set(err, ret, "reading from the guest's process: %s",
					  strerror(-ret));
	}
	*obj = json_loadb(c->buf, (size_t)(nl - c->buf), 0, NULL);
	c->len -= (size_t)(nl + 1 - c->buf);
	memmove(c->buf, nl + 1, c->len);
	if (!json_is_object(*obj)) {
		json_decref(*obj);
		*obj = NULL;
		return errmsg_set(err, -EPROTO, "the guest's process answered what is not JSON");
	}
	return 0;
}

int ctl_call(const char *name, json_t *request, uint64_t timeout_ns, json_t **answer,
	     struct errmsg *err)
{
	struct ctl_conn c;
	json_t *obj = NULL;
	int ret = ctl_connect(&c, name, err);

	if (ret) {
		json_decref(request);
		return ret;
	}
	ret = ctl_send(&c, request, err);
	if (ret == 0)
		ret = ctl_recv(&c, &obj, timeout_ns, err);
	if (ret == -ECONNRESET)
		errmsg_set(err, ret, "the process of guest '%s' ended", name);
	if (ret == 0 && !json_is_true(json_object_get(obj, "ok"))) {
		const char *why = json_string_value(json_object_get(obj, "error"));

		ret = errmsg_set(err, -EREMOTEIO, "%s: %s", name, why ? why : "no reason given");
	}
	ctl_close(&c);
	if (ret == 0 && answer)
		*answer = obj;
	else
		json_decref(obj);
	return ret;
}

int ctl_wait_end(struct ctl_conn *c, uint64_t timeout_ns)
{
	uint64_t deadline = now_ns() + timeout_ns;
	int ret;

	do {
		c->len = 0;
		ret = fill(c, deadline);
	} while (ret == 0);
	return ret == -ETIMEDOUT ? ret : 0;
}
