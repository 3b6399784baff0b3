/* SPDX-License-Identifier: MIT */
/*
 * One vsock connection: a stream between a port of the guest and a unix socket of the host
 * (virtio 1.2, section 5.10.6).
 *
 *	LINE       a host program has connected and has not said yet to which port
 *	REQUESTED  the guest is asked (REQUEST is sent, or about to be)
 *	OPEN       bytes flow; each direction may have been shut
 *	RESET      over for the host; the guest is still to be told by an RST
 *	LINGER     over for the guest; what it had sent still goes to the host
 *	DEAD       over; freed once nobody looks at it any more
 *
 *	     accept -> LINE -> REQUESTED -> OPEN -> RESET -> DEAD
 *	a guest's REQUEST --------------------^ `-> LINGER -^
 *
 * Host to guest: nothing is stored here. When the guest has given credit and a receive buffer, the
 * bytes are read from the socket straight into that buffer; until then they stay in the socket,
 * and the program that sends them has to wait.
 *
 * Guest to host: bytes go straight from the guest's buffer to the socket as long as that takes
 * them, the rest into a ring of VSOCK_BUF bytes, which exists only while there is something in
 * it. The guest's credit is VSOCK_BUF less what is in the ring.
 *
 * Packets for the guest are not queued but owed: c->owed says which control packets are, and
 * c->readable that there are bytes. Each is made when a receive buffer is there for it. So what a
 * connection can make us remember is bounded.
 *
 * A clean end: each side says SHUTDOWN for both directions, or each for its own, and the other
 * answers with RST once it has done with the data. What the guest has sent before it went away is
 * always delivered to a host program that reads on.
 *
 * Threads: all with the device's lock held.
 */
#ifndef GODWIT_VSOCK_CONN_H
#define GODWIT_VSOCK_CONN_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

#include "virtq.h"

#define VSOCK_HOST_CID 2ULL
#define VSOCK_BUF 65536U  /* our buf_alloc */
#define VSOCK_LINE_MAX 32 /* of "CONNECT PORT\n" */
#define VSOCK_NO_INTEREST UINT32_MAX

#define VSOCK_TYPE_STREAM 1U

enum vsock_op {
	VSOCK_OP_NONE = 0,
	VSOCK_OP_REQUEST = 1,
	VSOCK_OP_RESPONSE = 2,
	VSOCK_OP_RST = 3,
	VSOCK_OP_SHUTDOWN = 4,
	VSOCK_OP_RW = 5,
	VSOCK_OP_CREDIT_UPDATE = 6,
	VSOCK_OP_CREDIT_REQUEST = 7,
};

/* Flags of SHUTDOWN: the sender of it will not receive, or not send, any more. */
#define VSOCK_SHUT_RCV 1U
#define VSOCK_SHUT_SEND 2U
#define VSOCK_SHUT_BOTH (VSOCK_SHUT_RCV | VSOCK_SHUT_SEND)

/* In front of each packet, little-endian (virtio 1.2, section 5.10.6). */
struct vsock_hdr {
	uint64_t src_cid;
	uint64_t dst_cid;
	uint32_t src_port;
	uint32_t dst_port;
	uint32_t len; /* of the payload */
	uint16_t type;
	uint16_t op;
	uint32_t flags;
	uint32_t buf_alloc; /* the sender's receive buffer */
	uint32_t fwd_cnt;   /* bytes that it has taken out of it, ever, modulo 2^32 */
} __attribute__((packed));

#define VSOCK_HDR_LEN sizeof(struct vsock_hdr)
_Static_assert(VSOCK_HDR_LEN == 44, "virtio 1.2, 5.10.6");

enum vsock_state {
	VSOCK_LINE,
	VSOCK_REQUESTED,
	VSOCK_OPEN,
	VSOCK_RESET,
	VSOCK_LINGER,
	VSOCK_DEAD,
};

struct vsock_mux;

struct vsock_conn {
	LIST_ENTRY(vsock_conn) all;    /* mux->all, or mux->dead */
	LIST_ENTRY(vsock_conn) bucket; /* where it is found by its ports */
	TAILQ_ENTRY(vsock_conn) ready; /* something is owed to the guest */
	struct vsock_mux *mux;
	int fd;
	uint32_t interest; /* what the mux's epoll has for it, or VSOCK_NO_INTEREST */
	uint8_t state;	   /* enum vsock_state */
	bool in_bucket, is_ready;
	uint32_t guest_port, host_port;
	unsigned ticks; /* left until the state is given up; 0: no limit */
	unsigned owed;	/* 1 << enum vsock_op: control packets for the guest */

	/* What either side has said by SHUTDOWN; the host's may still be owed. */
	uint8_t guest_shut, host_shut;

	/* Guest to host. */
	uint8_t *buf; /* ring of VSOCK_BUF bytes, or NULL */
	uint32_t head, len;
	uint32_t fwd_cnt, told_fwd_cnt;
	bool wr_shut; /* the socket has been told that no more comes */

	/* Host to guest. */
	bool readable; /* or was when we looked last */
	bool eof;      /* read to its end */
	bool asked;    /* by CREDIT_REQUEST, and no answer yet */
	uint32_t tx_cnt, peer_buf_alloc, peer_fwd_cnt;

	char line[VSOCK_LINE_MAX];
	unsigned line_len;
};

/* A connection in LINE, or one that a REQUEST has opened; fd is its own from then on. NULL: no
 * memory, fd is closed. */
struct vsock_conn *vsock_conn_accepted(struct vsock_mux *m, int fd);
struct vsock_conn *vsock_conn_opened(struct vsock_mux *m, int fd, const struct vsock_hdr *request);

/* One that the guest believes to have and that does not exist here: RESET, without a socket. */
struct vsock_conn *vsock_conn_stranded(struct vsock_mux *m, uint32_t guest_port,
				       uint32_t host_port);

/* A packet of the guest's for this connection; its payload follows the header in the chain. */
void vsock_conn_packet(struct vsock_conn *c, const struct vsock_hdr *hdr,
		       const struct virtq_chain *chain);

/*
 * Makes the next packet: fills hdr, and the chain's writable part behind the header with payload
 * that the caller has to mark as stored. The payload's length, or -EAGAIN when there is none.
 */
int vsock_conn_next(struct vsock_conn *c, const struct virtq_chain *chain, struct vsock_hdr *hdr);

/* Is there, as far as is known, a packet for the guest? */
bool vsock_conn_has_packet(const struct vsock_conn *c);

/* Epoll says this of its socket. The device is not at rest. */
void vsock_conn_event(struct vsock_conn *c, uint32_t events);

/* Draws the conclusions of whatever has changed. */
void vsock_conn_settle(struct vsock_conn *c);

/* A second has gone by with the device running. */
void vsock_conn_tick(struct vsock_conn *c);

/* The guest has forgotten it: LINGER or DEAD. */
void vsock_conn_guest_gone(struct vsock_conn *c);

/* To RESET: the guest is told. */
void vsock_conn_reset(struct vsock_conn *c);

/* To DEAD. The mux frees it, later and on the loop's thread. */
void vsock_conn_close(struct vsock_conn *c);

#endif
