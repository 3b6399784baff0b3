/* SPDX-License-Identifier: MIT */
#include "serial.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <termios.h>
#include <unistd.h>

int serial_raw(int fd)
{
	struct termios t;

	if (tcgetattr(fd, &t) < 0)
		return -errno;
	cfmakeraw(&t);
	t.c_oflag |= OPOST | ONLCR;
	t.c_cflag |= CLOCAL | CREAD;
	t.c_cflag &= ~(tcflag_t)(HUPCL | CRTSCTS);
	/*
	 * The speed is nothing to an emulated UART, but the driver scales its drain timeouts by
	 * it.
	 */
	if (cfsetspeed(&t, B115200) < 0 || tcsetattr(fd, TCSANOW, &t) < 0)
		return -errno;
	return 0;
}

static void write_all(int fd, const char *data, size_t len)
{
	while (len > 0) {
		ssize_t n = write(fd, data, len);

		if (n > 0) {
			data += n;
			len -= (size_t)n;
		} else if (n < 0 && errno == EAGAIN) {
			struct pollfd p = {.fd = fd, .events = POLLOUT};

			poll(&p, 1, 1000);
		} else if (n < 0 && errno != EINTR) {
			return; /* nobody to tell: the line was the way to tell it */
		}
	}
}

void say(struct serial *s, const char *format, ...)
{
	/* Room for the sum, the line end and a NUL stays free whatever the format yields. */
	char line[GT_LINE_MAX];
	const size_t room = sizeof(line) - strlen(GT_SUM) - 8 - 2 - 1;
	size_t len;
	va_list ap;
	int n;

	n = snprintf(line, sizeof(line), GT_PREFIX "%" PRIu64 " ", s->seq++);
	len = (size_t)n;
	va_start(ap, format);
	n = vsnprintf(line + len, room - len, format, ap);
	va_end(ap);
	if (n > 0)
		len += (size_t)n < room - len ? (size_t)n : room - len - 1;
	for (size_t i = 0; i < len; i++) {
		if (line[i] == '\t')
			line[i] = ' ';
		else if (line[i] < ' ' || line[i] > '~')
			line[i] = '.';
	}
	n = snprintf(line + len, sizeof(line) - len, GT_SUM "%08" PRIx32 "\n", gt_sum(line, len));
	if (s->damage)
		line[len / 2] ^= 1;
	if (!s->skip)
		write_all(s->out, line, len + (size_t)n);
	s->damage = s->skip = false;
}

void serial_drain(struct serial *s)
{
	if (isatty(s->out))
		tcdrain(s->out);
}

int serial_read(struct serial *s, void (*line)(void *arg, const char *text), void *arg)
{
	char data[512];
	ssize_t n = read(s->in, data, sizeof(data));

	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 1 : -errno;
	for (ssize_t i = 0; i < n; i++) {
		if (data[i] == '\n' || data[i] == '\r') {
			if (s->used == 0)
				continue; /* the LF of CR LF, or an empty line */
			s->partial[s->used] = '\0';
			s->used = 0;
			s->lines_in++;
			line(arg, s->partial);
		} else if (s->used < sizeof(s->partial) - 1) {
			s->partial[s->used++] = data[i];
		}
	}
	return n > 0;
}
