/* SPDX-License-Identifier: MIT */
#include "dial.h"

#include "uri.h"

int dial(struct conn *c, const char *uri, struct tls *tls, uint64_t limit_ns, int cancel_fd,
	 struct errmsg *err)
{
	int fd = uri_connect(uri, cancel_fd, CONN_OPEN_LIMIT, err), ret = 0;
	struct tls_link *link = NULL;

	c->fd = -1;
	if (fd < 0)
		return fd;
	if (tls)
		ret = tls_shake(&link, tls, fd, cancel_fd, now_ns() + limit_ns, err);
	return ret ? ret : conn_init_over(c, fd, link, cancel_fd, "destination", err);
}
