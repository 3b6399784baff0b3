/* SPDX-License-Identifier: MIT */
#include "bench-link.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../tests/harness.h"

#define COMMAND_MS 10000

static int new_namespace(void)
{
	int fd;

	need(unshare(CLONE_NEWNET) == 0, "a network namespace: %s", strerror(errno));
	fd = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	need(fd >= 0, "/proc/self/ns/net: %s", strerror(errno));
	return fd;
}

static void enter(int fd)
{
	need(setns(fd, CLONE_NEWNET) == 0, "entering a network namespace: %s", strerror(errno));
}

/* A command line of ip or tc, by a shell. */
static void command(const char *line)
{
	struct proc *p = proc_start("net", "/bin/sh", "-ec", line, NULL);

	proc_close(p);
	proc_ended(p, 0, COMMAND_MS);
}

bool link_possible(char why[256])
{
	if (!harness_may_make_networks(why))
		return false;
	if (system("command -v tc >/dev/null && command -v ip >/dev/null")) {
		snprintf(why, 256, "ip and tc are not installed (Debian: iproute2)");
		return false;
	}
	return true;
}

void link_make(struct link_pair *l, const char *rate)
{
	l->source_fd = new_namespace();
	l->dest_fd = new_namespace();
	/* The process's own descriptor, as ip is another process that does not inherit it. */
	command(harness_path("ip link set lo up\n"
			     "ip link add dest0 type veth peer name source0\n"
			     "ip link set source0 netns /proc/%d/fd/%d\n"
			     "ip address add " LINK_DEST "/24 dev dest0\n"
			     "ip link set dest0 up\n",
			     (int)getpid(), l->source_fd));
	link_enter_source(l);
	/* The bucket holds what may pass at once: several packets as large as segmentation makes
	 * them. */
	command(harness_path("ip link set lo up\n"
			     "ip address add " LINK_SOURCE "/24 dev source0\n"
			     "ip link set source0 up\n"
			     "tc qdisc add dev source0 root tbf rate %s burst 256k latency 50ms\n",
			     rate));
}

void link_enter_source(const struct link_pair *l)
{
	enter(l->source_fd);
}

void link_enter_dest(const struct link_pair *l)
{
	enter(l->dest_fd);
}

double link_sent(void)
{
	/* As seen from the namespace that this process is in. */
	FILE *f = fopen("/proc/self/net/dev", "re");
	double received, sent = -1;
	char line[512];

	need(f, "/proc/self/net/dev: %s", strerror(errno));
	while (fgets(line, sizeof(line), f)) {
		/* Received: bytes packets errs drop fifo frame compressed multicast; sent: bytes */
		if (sscanf(line, " source0: %lf %*s %*s %*s %*s %*s %*s %*s %lf", &received,
			   &sent) == 2)
			break;
	}
	fclose(f);
	need(sent >= 0, "source0 is not in /proc/self/net/dev");
	return sent;
}
