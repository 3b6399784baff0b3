/* SPDX-License-Identifier: MIT */
/*
 * A meter in front of a receiver: connections to its URI are passed on as fast as they come, and
 * how many bytes a source sent in which time is known afterwards.
 *
 * Theory of operation: a thread takes, again and again, all that there is to read. What it takes in
 * one turn was sent between the beginning of the turn before and the end of this one, however late
 * the thread itself comes to run: so a window of turns never shows more than was sent in it.
 */
#ifndef GODWIT_TESTS_METER_H
#define GODWIT_TESTS_METER_H

#include <stdint.h>

#include "harness.h"

struct meter;

struct meter *meter_start(const struct dest *d);
const char *meter_uri(const struct meter *m);

/* Bytes that the source has sent so far, on all connections. */
uint64_t meter_bytes(struct meter *m);

/* The most that it has sent within so many ms, of what it sent after since_ms (harness_now_ms()).
 */
uint64_t meter_worst(struct meter *m, unsigned window_ms, uint64_t since_ms);

/* Bytes a second, from its first byte to its last. */
double meter_mean(struct meter *m);

/* How many connections there have been. */
unsigned meter_connections(struct meter *m);

#endif
