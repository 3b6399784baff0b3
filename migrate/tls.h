/* SPDX-License-Identifier: MIT */
/*
 * Protected transport: TLS 1.3 (RFC 8446) by OpenSSL between the two sides of a move, on each of
 * its connections.
 *
 * Theory of operation: the frames of a connection (conn.h) go through a plain stream socket. Of a
 * protected one that is a pair of UNIX sockets, at whose other end a thread of its own, the pump,
 * turns what is written there into records for the TCP socket, and records into what is read there:
 *
 *	conn  <--->  pair of sockets  <--->  pump, SSL  <--->  TCP socket  <--->  the peer's host
 *
 * The pump takes bytes from either side only when it has got rid of the ones before: it holds no
 * more than TLS_PUMP_BYTES a direction, so a network that is slow is felt by the sender as without
 * it. Progress and signs of life are those of the TCP socket (conn_wait(), conn_heard()).
 *
 * How it ends is told apart as TCP does it. A side that closes in order says close_notify, and the
 * other reads an end of file. A stream that ends without it has been cut: the peer's end is seen as
 * a connection that broke, and so is a record that was damaged or put in by somebody else; what
 * came before that is good, and is delivered.
 *
 * Who is trusted: with certificates (--tls-cert, --tls-key, --tls-ca) each side takes a peer that
 * shows one of the CA, for its purpose (if it names purposes: serverAuth for a destination,
 * clientAuth for a source), in its time; the source also holds the destination's names against the
 * host in the URI, or against --tls-name. Any source with a certificate of the CA may offer a
 * guest: the CA should be one for such hosts alone. With a pre-shared key (--tls-psk) whoever has
 * the key is trusted, in both roles. Either way keys of a connection are fresh (ephemeral
 * Diffie-Hellman): what was recorded cannot be read later with a stolen key, nor be played again.
 * There are no session tickets and no early data. Revocation lists are not looked at: short-lived
 * certificates are the remedy.
 *
 * What it does not do: hide how much is sent and when, or protect what is on the hosts themselves.
 * A peer that has shown nothing yet costs the receiver one handshake at a time, within the limit of
 * time that a plain one has for its first bytes (door.h), and no thread.
 *
 * A process that uses this ignores SIGPIPE.
 */
#ifndef GODWIT_MIGRATE_TLS_H
#define GODWIT_MIGRATE_TLS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "../vmm/log.h"
#include "migrate.h"

#define TLS_PUMP_BYTES (64 * KIB)
/* What the owner of a closed connection had still to say gets so long to be taken by the network.
 */
#define TLS_LINGER_NS (2 * NS_PER_SEC)

struct tls;	 /* one side's credentials; of all its connections, any thread */
struct tls_link; /* one connection */

/*
 * Reads and checks the files; uri: where the source goes to, or the receiver listens. -EINVAL with
 * what is wrong with a file in err, -ENOENT, -EACCES, -ENOMEM. A certificate of our own that is not
 * in its time is only warned of: the clock of the peer counts.
 */
int tls_load(struct tls **out, const struct migrate_tls *files, const char *uri, bool listens,
	     struct errmsg *err);
void tls_free(struct tls *t); /* after all of its links; NULL is allowed */

/*
 * Shakes hands on a connected TCP socket, which it takes over in any case but one: of a receiver's
 * that fails fd stays the caller's, so that he can let the peer read why (door.c). Waits until
 * deadline_ns (now_ns()) and as long as cancel_fd (-1: none) is not readable.
 *
 * -EACCES: who the peer is, or we are to him, is not right; to try again is of no use. -ETIMEDOUT,
 * -ECANCELED, -ECONNRESET and other -errno of TCP, -EPROTO (no TLS 1.3, or damaged), with the cause
 * in err. A destination's refusal of our certificate only comes with the first bytes after it.
 */
int tls_shake(struct tls_link **out, struct tls *t, int fd, int cancel_fd, uint64_t deadline_ns,
	      struct errmsg *err);

/*
 * Before the pump runs, without waiting: what is there, 0 at the peer's end, -EAGAIN, -errno; what
 * could be sent.
 */
ssize_t tls_recv(struct tls_link *l, void *buf, size_t len);
ssize_t tls_send(struct tls_link *l, const void *buf, size_t len);

/* Before the pump runs: there is nothing more to say. */
void tls_end(struct tls_link *l);

/* Starts the pump; *fd, the caller's, is the plain socket. -errno with the cause in err. */
int tls_start(struct tls_link *l, int *fd, struct errmsg *err);

/* The TCP socket, for what the kernel knows of it; the link's. */
int tls_socket(const struct tls_link *l);

/*
 * Once the plain socket has come to an end: 0 if the peer has ended it in order, else why not:
 * -errno as above, with a text in why unless that is a plain -errno of TCP.
 */
int tls_failed(const struct tls_link *l, struct errmsg *why);

/* CPU time that the pump has used so far. */
uint64_t tls_cpu_ns(const struct tls_link *l);

/*
 * Ends the connection, after the plain socket has been closed: what was written there is sent, if
 * the network takes it within TLS_LINGER_NS.
 */
void tls_close(struct tls_link *l);

#endif
