/* SPDX-License-Identifier: MIT */
/*
 * Where a migration goes: tcp:HOST:PORT (an IPv6 address in brackets), tls:HOST:PORT, which is the
 * same TCP connection, to be protected by tls.h; unix:PATH.
 */
#ifndef GODWIT_MIGRATE_URI_H
#define GODWIT_MIGRATE_URI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../vmm/log.h"

/* 0, or -EINVAL with what is wrong in err. Opens nothing. */
int uri_check(const char *uri, struct errmsg *err);

/* Is what goes there to be protected (tls:)? Would anybody on the network see it (tcp: to anything
 * but loopback; listens: of a receiver, which is at all addresses without a host)? */
bool uri_is_tls(const char *uri);
bool uri_is_exposed(const char *uri, bool listens);

/* The host of a tcp: or tls: URI, without brackets; "" for none. -EINVAL as uri_check(). */
int uri_host(const char *uri, char *out, size_t len, struct errmsg *err);

/*
 * Connects: an fd, or -errno with the cause in err. Gives up after timeout_ns (-ETIMEDOUT) or
 * when cancel_fd becomes readable (-ECANCELED).
 */
int uri_connect(const char *uri, int cancel_fd, uint64_t timeout_ns, struct errmsg *err);

/*
 * Binds and listens: an fd; out (of len bytes) gets the URI to connect to, a port of 0 resolved.
 * A unix: path left behind by a dead process is taken over. -EADDRINUSE when in use, -errno.
 */
int uri_listen(const char *uri, char *out, size_t len, struct errmsg *err);

/* Waits for one peer until deadline_ns (now_ns(); UINT64_MAX: for good): an fd, -ECANCELED,
 * -ETIMEDOUT, -errno. */
int uri_accept(int listen_fd, int cancel_fd, uint64_t deadline_ns, struct errmsg *err);

/* Removes a unix: URI's file. */
void uri_unlink(const char *uri);

#endif
