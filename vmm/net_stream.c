/* SPDX-License-Identifier: MIT */
#include "net_stream.h"

#include <arpa/inet.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "net_backend.h"
#include "util.h"
#include "virtq.h"

#define LEN_BYTES sizeof(uint32_t)
#define RECORD_MAX (LEN_BYTES + NET_FRAME_MAX)
#define IN_SIZE (2 * RECORD_MAX)

int net_stream_init(struct net_stream *s)
{
	*s = (struct net_stream){.fd = -1};
	s->in = malloc(IN_SIZE);
	s->rest = malloc(RECORD_MAX);
	s->iov = calloc(IOV_MAX, sizeof(*s->iov));
	if (s->in && s->rest && s->iov)
		return 0;
	net_stream_destroy(s);
	return -ENOMEM;
}

void net_stream_destroy(struct net_stream *s)
{
	net_stream_detach(s);
	free(s->in);
	free(s->rest);
	free(s->iov);
	*s = (struct net_stream){.fd = -1};
}

void net_stream_attach(struct net_stream *s, int fd)
{
	net_stream_detach(s);
	s->fd = fd;
}

void net_stream_detach(struct net_stream *s)
{
	if (s->fd >= 0)
		close(s->fd);
	s->fd = -1;
	s->in_start = s->in_end = 0;
	s->rest_start = s->rest_end = 0;
}

/* Reads what there is, at least one byte: 1, 0, -ENOLINK. */
static int fill(struct net_stream *s)
{
	ssize_t got;

	if (s->in_start == s->in_end) {
		s->in_start = s->in_end = 0;
	} else if (IN_SIZE - s->in_start < RECORD_MAX) {
		/* What has begun here may not fit behind its beginning. */
		memmove(s->in, s->in + s->in_start, s->in_end - s->in_start);
		s->in_end -= s->in_start;
		s->in_start = 0;
	}
	do
		got = recv(s->fd, s->in + s->in_end, IN_SIZE - s->in_end, MSG_DONTWAIT);
	while (got < 0 && errno == EINTR);
	if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
		return 0;
	if (got <= 0)
		return -ENOLINK;
	s->in_end += (size_t)got;
	return 1;
}

int net_stream_recv(struct net_stream *s, const uint8_t **data, size_t *len)
{
	int ret;

	do {
		size_t there = s->in_end - s->in_start;

		if (there >= LEN_BYTES) {
			uint32_t be;

			memcpy(&be, s->in + s->in_start, sizeof(be));
			*len = ntohl(be);
			if (*len < NET_FRAME_MIN || *len > NET_FRAME_MAX)
				return -EPROTO;
			if (there - LEN_BYTES >= *len) {
				*data = s->in + s->in_start + LEN_BYTES;
				s->in_start += LEN_BYTES + *len;
				return 1;
			}
		}
		ret = fill(s);
	} while (ret > 0);
	return ret;
}

/* The bytes that went, -EAGAIN, -ENOLINK. */
static ssize_t put(struct net_stream *s, struct iovec *iov, size_t n)
{
	const struct msghdr msg = {.msg_iov = iov, .msg_iovlen = n};
	ssize_t sent;

	do
		sent = sendmsg(s->fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
	while (sent < 0 && errno == EINTR);
	if (sent >= 0)
		return sent;
	return errno == EAGAIN || errno == EWOULDBLOCK ? -EAGAIN : -ENOLINK;
}

int net_stream_flush(struct net_stream *s)
{
	while (s->rest_start < s->rest_end) {
		struct iovec iov = {
			.iov_base = s->rest + s->rest_start,
			.iov_len = s->rest_end - s->rest_start,
		};
		ssize_t sent = put(s, &iov, 1);

		if (sent < 0)
			return (int)sent;
		s->rest_start += (size_t)sent;
	}
	return 0;
}

/* Copies what is behind the first `skip` bytes of iov[0 .. n). It fits: a record is no larger. */
static void keep_rest(struct net_stream *s, const struct iovec *iov, uint32_t n, size_t skip)
{
	s->rest_start = s->rest_end = 0;
	for (uint32_t i = 0; i < n; i++) {
		size_t from = MIN(skip, iov[i].iov_len);

		skip -= from;
		memcpy(s->rest + s->rest_end, (const uint8_t *)iov[i].iov_base + from,
		       iov[i].iov_len - from);
		s->rest_end += iov[i].iov_len - from;
	}
}

int net_stream_send(struct net_stream *s, const struct iovec *iov, uint32_t n, uint64_t offset,
		    size_t len)
{
	uint32_t be = htonl((uint32_t)len);
	uint32_t parts;
	ssize_t sent;
	int ret;

	if (len < NET_FRAME_MIN || len > NET_FRAME_MAX)
		return -EMSGSIZE;
	ret = net_stream_flush(s);
	if (ret)
		return ret;
	s->iov[0] = (struct iovec){.iov_base = &be, .iov_len = sizeof(be)};
	parts = iov_slice(iov, n, offset, len, s->iov + 1, IOV_MAX - 1);
	if (parts == 0)
		return -EMSGSIZE;
	sent = put(s, s->iov, parts + 1);
	if (sent < 0)
		return (int)sent;
	if ((size_t)sent == LEN_BYTES + len)
		return 0;
	keep_rest(s, s->iov, parts + 1, (size_t)sent);
	return 1;
}
