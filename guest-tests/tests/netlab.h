/* SPDX-License-Identifier: MIT */
/*
 * A bad network for a test: two hosts and the link between them, by tools/netrelay, whose --help
 * says what a link can be like. They live as long as the test, however it ends.
 *
 *	struct netlab l;
 *
 *	netlab_up(&l, "--rate", "100mbit", "--delay", "10ms", NULL);
 *	netlab_enter(&l, 'b');
 *	dest_start(&d, "vm-1", "tcp:" NETLAB_B ":0", NULL);
 *	netlab_enter(&l, 'a');
 */
#ifndef GODWIT_TESTS_NETLAB_H
#define GODWIT_TESTS_NETLAB_H

#include <stdbool.h>

#include "harness.h"

#define NETLAB_A "10.77.0.1"
#define NETLAB_B "10.77.0.2"

struct netlab {
	struct proc *proc;
	const char *socket;
	int ns_fd[2]; /* a, b */
};

/* Can it be had here? Else why not. Before or within a test. */
bool netlab_possible(char why[256]);

/* Makes it, with these words after `netlab up`; NULL ends them. */
void netlab_up(struct netlab *l, ...) __attribute__((sentinel));

/* The test's process, and what it starts from now on, is on host 'a' or 'b'. */
void netlab_enter(const struct netlab *l, char host);

/* `netlab WORDS...` of this one: "set", "--loss", "1%"; "cut", "a"; ... Gives what it printed. */
const char *netlab_do(const struct netlab *l, ...) __attribute__((sentinel));

/* The counts of what a host sends, for kv(): "a-b sent=... lost=...". */
const char *netlab_counts(const struct netlab *l, char host);

#endif
