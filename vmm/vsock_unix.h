/* SPDX-License-Identifier: MIT */
/*
 * The host's side of vsock: unix sockets, after the scheme that Firecracker introduced.
 *
 * A host program reaches a port of the guest through the socket at PATH: it connects, says
 * "CONNECT PORT\n", is told "OK HOSTPORT\n", and from there on the bytes are the connection's. A
 * guest that connects to port P of CID 2 reaches the program that listens at PATH_P.
 *
 * Nothing here waits: sockets are non-blocking, and a unix socket connects at once or not at all.
 */
#ifndef GODWIT_VSOCK_UNIX_H
#define GODWIT_VSOCK_UNIX_H

#include <stddef.h>
#include <stdint.h>
#include <sys/un.h>

/* Longest PATH with which PATH_4294967295 still is an address. */
#define VSOCK_SUFFIX_MAX (sizeof("_4294967295") - 1)
#define VSOCK_PATH_MAX (sizeof(((struct sockaddr_un *)0)->sun_path) - 1 - VSOCK_SUFFIX_MAX)

/* A socket connected to PATH_port, or -errno: -ENOENT and -ECONNREFUSED when nobody listens,
 * -EAGAIN when too many wait there already. */
int vsock_connect(const char *path, uint32_t port);

/*
 * The port that a line says, which ends in '\n': "CONNECT PORT", in any case, blanks between and
 * behind it. -EINVAL, -ERANGE.
 */
int vsock_parse_connect(const char *line, size_t len, uint32_t *port);

#endif
