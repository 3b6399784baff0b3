/* SPDX-License-Identifier: MIT */
/*
 * All vsock connections of a guest: who is who, whose turn it is, and who is let in.
 *
 * Packets for the guest come from two places: a bounded list of RSTs for what belongs to no
 * connection, and the connections that owe something, which take turns, a packet each. While the
 * list is full no packet may be taken from the guest (vsock_mux_full()): each might need an answer.
 *
 * The device says by m->closed that the guest is not to be talked to for now: nothing is accepted
 * then, and there are no connections that it knows. While the device is at rest nothing is read
 * from or written to any socket. vsock_mux_wake() sets things going again.
 *
 * Sockets are waited for by an epoll of all of them, whose descriptor the loop polls: a poll by
 * io_uring also ends when the other end has shut its sending direction (POLLRDHUP), asked or not,
 * and would go round and round on a connection that is half closed.
 *
 * Threads: all with the device's lock held unless it says otherwise; any thread, or the loop's
 * where it says so.
 */
#ifndef GODWIT_VSOCK_MUX_H
#define GODWIT_VSOCK_MUX_H

#include "sbuf.h"
#include "unix_listen.h"
#include "virtio.h"
#include "vm_devices.h"
#include "vsock_conn.h"
#include "vsock_unix.h"

#define VSOCK_MAX_CONNS 1024U
#define VSOCK_MAX_REPLIES 256U
#define VSOCK_BUCKETS 256U
#define VSOCK_QUEUE 256U /* size of the queues, and so the most buffers of a packet */

/* Ports that the host's ends of connections to the guest have. */
#define VSOCK_FIRST_PORT 0x40000000U
#define VSOCK_LAST_PORT 0x7fffffffU

/* An RST to something that is no connection. */
struct vsock_reply {
	uint64_t src_cid; /* as whom the guest had addressed us */
	uint32_t src_port, dst_port;
	uint16_t type;
};

LIST_HEAD(vsock_list, vsock_conn);
TAILQ_HEAD(vsock_tailq, vsock_conn);

struct vsock_mux {
	struct virtio *v;
	uint64_t cid; /* the guest's */
	char path[VM_SOCKET_MAX];

	/*
	 * Packets may be there for the guest: have them fetched. Called on the loop's thread, and
	 * only while vsock_mux_up().
	 */
	void (*kick)(struct vsock_mux *m);
	bool closed; /* set by the device */

	struct vsock_list all, dead, bucket[VSOCK_BUCKETS];
	struct vsock_tailq ready;
	unsigned n_conns; /* in all */
	uint32_t next_port;

	struct vsock_reply reply[VSOCK_MAX_REPLIES]; /* a ring */
	unsigned first_reply, n_replies;

	int epoll_fd;
	struct loop_op epoll_op, tick_op;
	int listen_fd; /* -1: none */
	struct unix_listen address;
	bool listening;	    /* epoll knows the listener */
	bool accept_failed; /* by lack of something: the next tick tries again */
	struct loop_task reap_task;
	struct iovec iov[VSOCK_QUEUE]; /* of one packet's payload */

	uint64_t to_guest, from_guest; /* bytes of payload, ever */
};

/* 0 or -errno with nothing left behind. */
int vsock_mux_init(struct vsock_mux *m, struct virtio *v, const struct vm_vsock *cfg,
		   void (*kick)(struct vsock_mux *m));

/* Closes everything. Loop's thread, lock not held. */
void vsock_mux_destroy(struct vsock_mux *m);

/* Starts to listen, or stops. Lock not held. -errno with the cause in err. */
int vsock_mux_listen(struct vsock_mux *m, struct errmsg *err);
void vsock_mux_unlisten(struct vsock_mux *m);

/* The guest has forgotten all connections. */
void vsock_mux_reset(struct vsock_mux *m);

/* The guest may be talked to: waits for what there is to wait for. Cheap. Loop's thread. */
void vsock_mux_wake(struct vsock_mux *m);

/* May the guest's side of things move now? */
static inline bool vsock_mux_up(const struct vsock_mux *m)
{
	return virtio_live(m->v) && !m->closed;
}

/* No more packets may be taken from the guest until it has taken some of ours. */
static inline bool vsock_mux_full(const struct vsock_mux *m)
{
	return m->n_replies == VSOCK_MAX_REPLIES;
}

/* Is there, as far as is known, a packet for the guest? */
static inline bool vsock_mux_has_packet(const struct vsock_mux *m)
{
	return m->n_replies || !TAILQ_EMPTY(&m->ready);
}

/* A packet from the guest: only while !vsock_mux_full(). Loop's thread. */
void vsock_mux_packet(struct vsock_mux *m, const struct vsock_hdr *hdr,
		      const struct virtq_chain *chain);

/* The next packet for the guest: as vsock_conn_next(). Loop's thread. */
int vsock_mux_next(struct vsock_mux *m, const struct virtq_chain *chain, struct vsock_hdr *hdr);

/* Those in OPEN. */
unsigned vsock_mux_open_conns(const struct vsock_mux *m);

/*
 * State: not the connections, but by which ports the guest knows them, so that whoever loads it
 * can tell the guest that they are gone; and which port of the host's is next, so that it is
 * none that the guest still has a closed socket for.
 */
void vsock_mux_fields(struct vsock_mux *m, struct sbuf *s);

/* ---- for vsock_conn.c ---- */

/* By the ports of its ends, or NULL. */
struct vsock_conn *vsock_mux_find(struct vsock_mux *m, uint32_t guest_port, uint32_t host_port);

/* Makes c be found by its ports. */
void vsock_mux_enter(struct vsock_mux *m, struct vsock_conn *c);

/* Gives c a free port of the host's, for its guest_port. */
void vsock_mux_assign_port(struct vsock_mux *m, struct vsock_conn *c);

/* A second's ticks go on while there are connections. Loop's thread. */
void vsock_mux_start_tick(struct vsock_mux *m);

#endif
