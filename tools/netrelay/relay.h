/* SPDX-License-Identifier: MIT */
/*
 * The relay: packets from each host's device through a link (link.h) to the other's, and a socket
 * by which it is told what to do.
 *
 * Theory of operation: one thread, one epoll. Both devices are read as soon as they have something,
 * so that nothing waits or is dropped but in the links; a timer says when the next packet arrives.
 *
 * The socket takes SOCK_SEQPACKET connections, on each of which a request and its answer are one
 * message. Links are numbered by who sends: 0, "a", and 1, "b".
 *
 *	set [a|b] NAME=VALUE...   both links, or that of what this host sends (settings.h)
 *	cut [a|b], join [a|b]
 *	status                    a line for the hosts, and one for each link
 *	down                      end; the connection closes once that is so
 *
 * The answer begins with "ok" or "error ", its text follows.
 */
#ifndef GODWIT_NETRELAY_RELAY_H
#define GODWIT_NETRELAY_RELAY_H

#include "hosts.h"
#include "link.h"

#define RELAY_MESSAGE_MAX 4096

struct relay {
	struct host host[HOSTS];
	struct link link[HOSTS]; /* [i]: of what host[i] sends */
	int listen_fd;		 /* SOCK_SEQPACKET */
	int signal_fd;		 /* readable: end */
	int owner_fd;		 /* the same; -1: none */
	int epoll_fd, timer_fd;
	struct packet *spare; /* to read into */
	bool over;
};

/* Works until it is told to end. host, link and the first three fds are set. -errno. */
int relay_run(struct relay *r, struct errmsg *err);

/* "pid=PID a=/proc/PID/fd/N b=...": how others get to the namespaces. Returns text. */
const char *relay_show_hosts(const struct relay *r, char *text, size_t len);

#endif
