/* SPDX-License-Identifier: MIT */
#include "netlab.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define UP_MS 10000
#define COMMAND_MS 10000
#define WORDS_MAX 32

static const char *program(void)
{
	return harness_path("%s/build/tools/netrelay/netrelay", harness_root());
}

bool netlab_possible(char why[256])
{
	if (!harness_may_make_networks(why))
		return false;
	if (access("/dev/net/tun", R_OK | W_OK)) {
		snprintf(why, 256, "/dev/net/tun: %s (modprobe tun?)", strerror(errno));
		return false;
	}
	return true;
}

static struct proc *start(const char *label, const char *socket, const char *command, va_list ap)
{
	const char *argv[WORDS_MAX + 1] = {program(), command, "--name", socket};
	unsigned n = 4;

	/* A laboratory that is the test's own dies with it. */
	if (strcmp(command, "up") == 0)
		argv[n++] = "--foreground";
	while ((argv[n] = va_arg(ap, const char *)))
		need(++n < WORDS_MAX, "more than %d words", WORDS_MAX);
	return proc_startv(label, argv);
}

void netlab_up(struct netlab *l, ...)
{
	const char *line, *host[] = {"a", "b"};
	va_list ap;

	l->socket = harness_path("%s/netlab", harness_tmp());
	va_start(ap, l);
	l->proc = start("netlab", l->socket, "up", ap);
	va_end(ap);
	line = proc_expect(l->proc, "^pid=", UP_MS);
	for (int i = 0; i < 2; i++) {
		l->ns_fd[i] = open(kv_text(line, host[i]), O_RDONLY | O_CLOEXEC);
		need(l->ns_fd[i] >= 0, "%s: %s", line, strerror(errno));
	}
}

void netlab_enter(const struct netlab *l, char host)
{
	need(setns(l->ns_fd[host == 'b'], CLONE_NEWNET) == 0, "entering host %c: %s", host,
	     strerror(errno));
}

const char *netlab_do(const struct netlab *l, ...)
{
	const char *command;
	struct proc *p;
	va_list ap;

	va_start(ap, l);
	command = va_arg(ap, const char *);
	p = start("netlab-command", l->socket, command, ap);
	va_end(ap);
	proc_ended(p, 0, COMMAND_MS);
	return p->out.buf ? p->out.buf : "";
}

const char *netlab_counts(const struct netlab *l, char host)
{
	const char *all = netlab_do(l, "status", NULL);
	const char *line = strstr(all, host == 'a' ? "\na-b sent=" : "\nb-a sent=");

	need(line, "no counts in '%s'", all);
	return harness_path("%.*s", (int)strcspn(line + 1, "\n"), line + 1);
}
