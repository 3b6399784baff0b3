/* SPDX-License-Identifier: MIT */
/*
 * A slow network between two processes of a run: two network namespaces joined by a pair of veth
 * devices, of which the source's is limited by tc's token bucket filter.
 *
 * Theory of operation: the namespaces have no names. They belong to the run's process, which moves
 * between them, and to what it starts meanwhile; so they are gone, devices included, when the last
 * of these has ended, however it ended.
 */
#ifndef GODWIT_BENCH_LINK_H
#define GODWIT_BENCH_LINK_H

#include <stdbool.h>

#define LINK_SOURCE "10.88.0.1"
#define LINK_DEST "10.88.0.2"

struct link_pair {
	int source_fd, dest_fd; /* the namespaces */
};

/* Can it be had here? For bench_case.prepare. */
bool link_possible(char why[256]);

/* Makes it, with so many (tc's words: "1gbit") a second from source to destination. */
void link_make(struct link_pair *l, const char *rate);

/* What is started from now on is at that end. */
void link_enter_source(const struct link_pair *l);
void link_enter_dest(const struct link_pair *l);

/* Bytes that have left the source's device. While the process is at the source's end. */
double link_sent(void);

#endif
