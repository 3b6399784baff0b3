/* SPDX-License-Identifier: MIT */
/* The source's way to a destination: connections by a URI, protected if it says so. */
#ifndef GODWIT_MIGRATE_DIAL_H
#define GODWIT_MIGRATE_DIAL_H

#include "conn.h"

/*
 * Connects to uri, and makes a connection of it, as conn_init() does; with tls, whose handshake may
 * take limit_ns, a protected one. -errno as of uri_connect(), tls_shake() and conn_init() with the
 * cause in err; c->fd is -1 then.
 */
int dial(struct conn *c, const char *uri, struct tls *tls, uint64_t limit_ns, int cancel_fd,
	 struct errmsg *err);

#endif
