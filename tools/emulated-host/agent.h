/* SPDX-License-Identifier: MIT */
/*
 * Run commands in the emulated host (scripts/emulated-host).
 *
 * One static program has both ends. `serve` is the emulated host's process 1: it takes
 * connections and runs one command for each. `exec` is what a person's shell runs: it connects,
 * names the command, and from then on stands for it: standard input, output, errors, signals, the
 * window size and the exit status go through.
 *
 * Theory of operation. A connection is a TCP stream that QEMU's user network hands into the host.
 * Both sides send frames: a type, a length, that many bytes, in the byte order of the machine that
 * runs both. The first one is the request and carries a secret that only who started the host can
 * read, since any local user can reach the port. Standard input is sent against credit: the server
 * grants what it can hold, so that a command which does not read never keeps a signal waiting
 * behind its input. The server says ALIVE when it has nothing else to say; a client that hears
 * nothing for SILENCE_MS takes the host for dead. A client that goes away takes its command along
 * (SIGHUP, then SIGKILL); a command that ends leaves its background children alone.
 */

#ifndef EMULATED_HOST_AGENT_H
#define EMULATED_HOST_AGENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/ioctl.h>

#define FRAME_MAX 65536 /* bytes in any frame but REQUEST */
#define REQUEST_MAX (4U << 20)
#define CREDIT 65536U /* bytes of standard input under way */
#define SECRET_LEN 32
#define ALIVE_MS 2000
#define SILENCE_MS 120000
#define EXIT_LOST 125 /* the host failed, not the command */

enum frame_type {
	/* client to server */
	FRAME_REQUEST = 1, /* struct request, then the strings */
	FRAME_STDIN,	   /* bytes; none of them: end of file */
	FRAME_SIGNAL,	   /* uint32_t */
	FRAME_WINDOW,	   /* struct winsize */
	/* server to client */
	FRAME_STDOUT,
	FRAME_STDERR,
	FRAME_CREDIT, /* uint32_t: so many bytes of input went to the command */
	FRAME_ALIVE,
	FRAME_EXIT, /* uint32_t: status as a shell would give it */
};

struct frame {
	uint32_t type;
	uint32_t length;
};

#define WANT_TTY 1U    /* standard input and output are a terminal */
#define WANT_STDERR 2U /* ... but standard error is not */

/* Followed by: working directory, argc arguments, envc of the environment, each with its NUL. */
struct request {
	char secret[SECRET_LEN];
	uint32_t flags;
	uint32_t argc;
	uint32_t envc;
	struct winsize window;
};

/* Received bytes that do not make a whole frame yet. */
struct rx {
	size_t used;
	unsigned char buf[sizeof(struct frame) + FRAME_MAX];
};

/* Milliseconds of a clock that only goes forward. */
int64_t now_ms(void);

/* Closes *fd unless it is -1, which it is then. */
void close_fd(int *fd);

/* All of it, however long the other side takes. 0 or -errno. */
int write_all(int fd, const void *data, size_t len);

/* Exactly len bytes, before the deadline (of now_ms) passes. 0, -ETIMEDOUT, -ECONNRESET, ... */
int read_all(int sock, void *data, size_t len, int64_t deadline);

/* 0 or -errno. */
int send_frame(int sock, enum frame_type type, const void *data, size_t len);
int send_u32(int sock, enum frame_type type, uint32_t value);

/* Adds what one read gives: 0, or -errno, which is -ECONNRESET at the end of the stream. */
int rx_fill(struct rx *rx, int sock);

/* Whether rx starts with a whole frame: 1, 0, or -EPROTO. */
int rx_peek(const struct rx *rx, struct frame *frame);

/* The bytes of the frame that was peeked at; rx_drop ends their life. */
static inline const unsigned char *rx_data(const struct rx *rx)
{
	return rx->buf + sizeof(struct frame);
}

/* Its number, 0 when it is not one. */
uint32_t rx_u32(const struct rx *rx, const struct frame *frame);
void rx_drop(struct rx *rx, const struct frame *frame);

/* What may stand in a secret's file: exactly SECRET_LEN bytes. 0 or -errno. */
int read_secret(const char *path, char secret[SECRET_LEN]);

/* Process 1 of the emulated host; returns, with an exit status, only when it cannot start. */
int serve(uint16_t port, const char *secret_path);

/*
 * Runs argv on the host behind the port and returns its exit status, or EXIT_LOST after saying
 * why, with the end of the host's console log. With pipes, a terminal is not passed on as one.
 */
int exec_in_host(uint16_t port, const char *secret_path, const char *log, bool pipes, char **argv);

#endif
