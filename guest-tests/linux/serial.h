/* SPDX-License-Identifier: MIT */
/* The serial line: numbered, checksummed lines out, commands in. See contract.h. */
#ifndef GODWIT_GUEST_LINUX_SERIAL_H
#define GODWIT_GUEST_LINUX_SERIAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "contract.h"

struct serial {
	int in, out;  /* the same terminal, or two pipes */
	uint64_t seq; /* of the next line */
	uint64_t lines_in;
	bool skip;   /* next line is numbered but not written (corrupt seq) */
	bool damage; /* one bit of the next line flips (corrupt line) */
	size_t used;
	char partial[GT_INPUT_MAX];
};

/*
 * Set the terminal fd raw, but with CR LF line ends on output (a person may be looking), 115200
 * 8N1, and drop no input. Returns 0 or -errno.
 */
int serial_raw(int fd);

/*
 * Write one line: the sequence number before the format, the checksum after it. Control
 * characters become '.'.
 */
void say(struct serial *s, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Wait until all that was written has left the UART. */
void serial_drain(struct serial *s);

/*
 * Read what there is and call line(arg, text) for each whole line. Returns 1 while the input
 * lives, 0 at its end, or -errno.
 */
int serial_read(struct serial *s, void (*line)(void *arg, const char *text), void *arg);

#endif
