/* SPDX-License-Identifier: MIT */
#include "vsock_unix.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include "util.h"

#define LINE_MAX_LEN 64

int vsock_connect(const char *path, uint32_t port)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int fd, n, ret;

	n = snprintf(addr.sun_path, sizeof(addr.sun_path), "%s_%u", path, port);
	if (n < 0 || (size_t)n >= sizeof(addr.sun_path))
		return -ENAMETOOLONG;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	if (connect(fd, (const struct sockaddr *)&addr, sizeof(addr)) == 0)
		return fd;
	ret = -errno;
	close(fd);
	return ret;
}

int vsock_parse_connect(const char *line, size_t len, uint32_t *port)
{
	static const char word[] = "connect";
	char text[LINE_MAX_LEN];
	char *number;
	uint64_t value;
	int ret;

	if (len >= sizeof(text) || memchr(line, '\0', len))
		return -EINVAL;
	memcpy(text, line, len);
	while (len && isspace((unsigned char)text[len - 1]))
		len--;
	text[len] = '\0';
	if (strncasecmp(text, word, strlen(word)) != 0)
		return -EINVAL;
	number = text + strlen(word);
	if (!isblank((unsigned char)*number))
		return -EINVAL;
	number += strspn(number, " \t");
	/* The largest one means "any port" to a guest. */
	ret = parse_u64(number, 0, UINT32_MAX - 1, &value);
	if (ret)
		return ret;
	*port = (uint32_t)value;
	return 0;
}
