/* SPDX-License-Identifier: MIT */
/*
 * Ethernet frames over a stream socket, as passt and QEMU's "socket" and "stream" backends speak:
 * each frame behind its length, four bytes, big-endian.
 *
 * The socket never blocks us. A frame that the socket took a part of is completed from a copy of
 * its rest before anything else is sent.
 */
#ifndef GODWIT_NET_STREAM_H
#define GODWIT_NET_STREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

struct net_stream {
	int fd; /* -1 when none is attached */
	uint8_t *in;
	size_t in_start, in_end; /* bytes of in[] that were read and not handed out */
	uint8_t *rest;
	size_t rest_start, rest_end;
	struct iovec *iov;
};

/* Detached; -ENOMEM. */
int net_stream_init(struct net_stream *s);
void net_stream_destroy(struct net_stream *s);

/* Takes over a connected stream socket; closes it again, forgetting what is half done. */
void net_stream_attach(struct net_stream *s, int fd);
void net_stream_detach(struct net_stream *s);

/*
 * The next whole frame: 1 with *data and *len (good until the next call), 0 when it is not all
 * there, -ENOLINK when the peer has closed, -EPROTO for a length that no frame has: then *len is
 * that length.
 */
int net_stream_recv(struct net_stream *s, const uint8_t **data, size_t *len);

/*
 * Sends the frame that is len bytes from offset on of iov[0 .. n). 0, or 1 when the socket is full
 * and net_stream_flush() has to send the rest; -EAGAIN and nothing is taken; -ENOLINK; -EMSGSIZE
 * for one in too many pieces.
 */
int net_stream_send(struct net_stream *s, const struct iovec *iov, uint32_t n, uint64_t offset,
		    size_t len);
int net_stream_flush(struct net_stream *s); /* 0, -EAGAIN, -ENOLINK */

#endif
