/* SPDX-License-Identifier: MIT */
/* Frames, and the little input and output that both ends share. */

#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

int64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

int write_all(int fd, const void *data, size_t len)
{
	const char *p = data;

	while (len) {
		ssize_t n = write(fd, p, len);

		if (n < 0 && errno == EAGAIN) {
			struct pollfd pfd = {.fd = fd, .events = POLLOUT};

			poll(&pfd, 1, -1);
			continue;
		}
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		p += n;
		len -= (size_t)n;
	}
	return 0;
}

int send_frame(int sock, enum frame_type type, const void *data, size_t len)
{
	struct frame frame = {.type = type, .length = (uint32_t)len};
	int ret;

	ret = write_all(sock, &frame, sizeof(frame));
	return ret ? ret : write_all(sock, data, len);
}

int send_u32(int sock, enum frame_type type, uint32_t value)
{
	return send_frame(sock, type, &value, sizeof(value));
}

int read_all(int sock, void *data, size_t len, int64_t deadline)
{
	char *p = data;

	while (len) {
		struct pollfd pfd = {.fd = sock, .events = POLLIN};
		int64_t left = deadline - now_ms();
		ssize_t n;

		if (left <= 0 || poll(&pfd, 1, (int)left) == 0)
			return -ETIMEDOUT;
		n = read(sock, p, len);
		if (n < 0 && (errno == EINTR || errno == EAGAIN))
			continue;
		if (n <= 0)
			return n ? -errno : -ECONNRESET;
		p += n;
		len -= (size_t)n;
	}
	return 0;
}

int rx_fill(struct rx *rx, int sock)
{
	ssize_t n = read(sock, rx->buf + rx->used, sizeof(rx->buf) - rx->used);

	if (n < 0 && (errno == EINTR || errno == EAGAIN))
		return 0;
	if (n <= 0)
		return n ? -errno : -ECONNRESET;
	rx->used += (size_t)n;
	return 0;
}

int rx_peek(const struct rx *rx, struct frame *frame)
{
	if (rx->used < sizeof(*frame))
		return 0;
	memcpy(frame, rx->buf, sizeof(*frame));
	if (frame->length > FRAME_MAX)
		return -EPROTO;
	return rx->used - sizeof(*frame) >= frame->length;
}

void rx_drop(struct rx *rx, const struct frame *frame)
{
	size_t len = sizeof(*frame) + frame->length;

	rx->used -= len;
	memmove(rx->buf, rx->buf + len, rx->used);
}

uint32_t rx_u32(const struct rx *rx, const struct frame *frame)
{
	uint32_t value = 0;

	if (frame->length == sizeof(value))
		memcpy(&value, rx->buf + sizeof(*frame), sizeof(value));
	return value;
}

int read_secret(const char *path, char secret[SECRET_LEN])
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return -errno;
	n = read(fd, secret, SECRET_LEN);
	close(fd);
	return n == SECRET_LEN ? 0 : -EINVAL;
}
