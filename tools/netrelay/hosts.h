/* SPDX-License-Identifier: MIT */
/*
 * The two hosts: network namespaces without names, each with a loopback device and a TUN device
 * whose other end is a file of this process.
 *
 * Theory of operation: nothing is made outside of the two namespaces, and these are kept by this
 * process and what runs in them alone. So all of it is gone with the processes, however they end.
 */
#ifndef GODWIT_NETRELAY_HOSTS_H
#define GODWIT_NETRELAY_HOSTS_H

#include "../../vmm/log.h"

#define HOSTS 2
#define HOST_DEVICE "lab0"
#define HOST_ADDRESS_A "10.77.0.1"
#define HOST_ADDRESS_B "10.77.0.2"

struct host {
	int ns_fd;  /* for setns() */
	int tun_fd; /* packets to and from it (packet.h); does not block */
};

/*
 * Makes both, a first. mtu: of the devices; tcp: the congestion control of new connections, NULL:
 * what the kernel takes. The process is in its own namespace again afterwards. -errno with the
 * cause in err; what was made is closed.
 */
int hosts_make(struct host h[HOSTS], unsigned mtu, const char *tcp, struct errmsg *err);

#endif
