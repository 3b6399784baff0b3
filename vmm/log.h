/* SPDX-License-Identifier: MIT */
/*
 * Log lines on stderr: "godwit: text". Stdout is for results only.
 *
 * The level is set once at start, before threads exist; a line is written by one write(2), so
 * lines of different threads never mix. Control characters in it are shown as '?'. While a terminal
 * is in raw mode lines end in CR LF.
 */
#ifndef GODWIT_LOG_H
#define GODWIT_LOG_H

#include <stdbool.h>

#include "util.h"

enum log_level {
	LOG_ERROR,
	LOG_WARN,
	LOG_INFO,
	LOG_DEBUG,
};

void log_set_level(enum log_level level);

/* A raw terminal wants CR LF; the console says when it is raw. */
void log_set_raw_terminal(bool raw);

void log_msg(enum log_level level, const char *fmt, ...) PRINTF(2, 3);

#define log_error(...) log_msg(LOG_ERROR, __VA_ARGS__)
#define log_warn(...) log_msg(LOG_WARN, __VA_ARGS__)
#define log_info(...) log_msg(LOG_INFO, __VA_ARGS__)
#define log_debug(...) log_msg(LOG_DEBUG, __VA_ARGS__)

/*
 * What a guest, or a disk that fails, can cause a thousand times is told once and then not for
 * LOG_LIMIT_NS. Zeroed at first; the caller's lock guards it.
 */
#define LOG_LIMIT_NS (10 * NS_PER_SEC)

struct log_limit {
	uint64_t told_ns;
	unsigned untold;
	char more[40]; /* for the end of the line: " (and N before it)", or nothing */
};

/* Is it to be told now? */
bool log_allowed(struct log_limit *l);

/*
 * Text of an error that crosses threads or the wire: what failed and what to do about it.
 * Filled where the cause is understood, shown once by whoever reports to the user.
 */
struct errmsg {
	char text[512];
};

/* Fills e (when not NULL and still empty: the first cause wins) and returns err for `return`. */
int errmsg_set(struct errmsg *e, int err, const char *fmt, ...) PRINTF(3, 4);

#endif
