/* SPDX-License-Identifier: MIT */
/*
 * The two variables of this file are the process's way to talk to its stderr, not the state of
 * anything it does; they are written at start and by the console.
 */
#include "log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <unistd.h>

static _Atomic int log_level = LOG_INFO;
static atomic_bool log_raw_terminal;

void log_set_level(enum log_level level)
{
	log_level = (int)level;
}

void log_set_raw_terminal(bool raw)
{
	log_raw_terminal = raw;
}

void log_msg(enum log_level level, const char *fmt, ...)
{
	static const char *const prefix[] = {"", "warning: ", "", "debug: "};
	char line[1024];
	va_list ap;
	int n, m;

	if ((int)level > log_level)
		return;
	n = snprintf(line, sizeof(line), "godwit: %s", prefix[level]);
	va_start(ap, fmt);
	m = vsnprintf(line + n, sizeof(line) - (size_t)n - 2, fmt, ap);
	va_end(ap);
	if (m < 0)
		return;
	m = MIN(n + m, (int)sizeof(line) - 3);
	/* A line may quote what came from elsewhere: a terminal is to show it, not to obey it. */
	for (; n < m; n++) {
		if ((unsigned char)line[n] < ' ' || line[n] == 0x7f)
			line[n] = '?';
	}
	if (log_raw_terminal)
		line[n++] = '\r';
	line[n++] = '\n';
	/* Nobody can be told when stderr is gone. */
	(void)!write(STDERR_FILENO, line, (size_t)n);
}

bool log_allowed(struct log_limit *l)
{
	uint64_t now = now_ns();

	if (l->told_ns && now - l->told_ns < LOG_LIMIT_NS) {
		l->untold++;
		return false;
	}
	l->more[0] = '\0';
	if (l->untold)
		snprintf(l->more, sizeof(l->more), " (and %u before it)", l->untold);
	l->told_ns = now;
	l->untold = 0;
	return true;
}

int errmsg_set(struct errmsg *e, int err, const char *fmt, ...)
{
	va_list ap;

	if (!e || e->text[0])
		return err;
	va_start(ap, fmt);
	vsnprintf(e->text, sizeof(e->text), fmt, ap);
	va_end(ap);
	return err;
}
