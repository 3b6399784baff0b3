/* SPDX-License-Identifier: MIT */
/* The kernel's log, watched for what must not happen to a machine that is moved. */
#ifndef GODWIT_GUEST_LINUX_KMSG_H
#define GODWIT_GUEST_LINUX_KMSG_H

#include <stdbool.h>

enum kmsg_class {
	KMSG_OTHER,
	KMSG_NOTE, /* the clock source watchdog and its like: reported, not an error */
	KMSG_ERROR,
};

enum kmsg_class kmsg_classify(const char *text);

/* Open the log from its first record, not blocking. Returns a file descriptor or -errno. */
int kmsg_open(void);

/* Call problem() for each new record that is one. text is one line, NUL-terminated. */
void kmsg_read(int fd, void (*problem)(void *arg, enum kmsg_class class, const char *text),
	       void *arg);

/*
 * Put a line into the log; without a newline at its end it would wait there for more. Returns
 * false if that is not possible.
 */
bool kmsg_write(const char *text);

#endif
