/* SPDX-License-Identifier: MIT */
/*
 * A bare guest that does to every virtio device what no driver does (../bare/hostile.c). The
 * devices have to ask for their reset and to work after it; here, that the VMM goes on meanwhile,
 * answers, leaves the disk as it was, and can move such a guest.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../bare/contract.h"
#include "disks.h"

#define DISK_SIZE (1ul << 20)
#define LINE_MS 30000
#define END_MS 10000
#define FATAL BARE_HOSTILE_ERROR "| panic "

/* Rings that are right though nobody means them: no bytes, and flags that there are not. */
#define MAY_WORK 3

enum { ID_NET = 1, ID_BLK = 2, ID_CONSOLE = 3, ID_RNG = 4, ID_BALLOON = 5, ID_VSOCK = 19, N_IDS };

static bool has_passt(void)
{
	return system("command -v passt >/dev/null 2>&1") == 0;
}

static void need_untouched(const char *path)
{
	static char content[DISK_SIZE], zeros[DISK_SIZE];
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	need(fd >= 0 && read(fd, content, DISK_SIZE) == (ssize_t)DISK_SIZE, "%s: %s", path,
	     strerror(errno));
	close(fd);
	need(memcmp(content, zeros, DISK_SIZE) == 0, "the disk was written");
}

/* One line about a queue; which device it is of. */
static uint64_t queue_line(struct guest *g)
{
	const char *line = guest_expect(g, "^hostile device ", LINE_MS);
	uint64_t tried = kv(line, "tried");

	need(kv(line, "errors") == 0 && kv(line, "works") == tried && tried > 40, "%s", line);
	need(kv(line, "asked") + MAY_WORK >= tried, "%s", line);
	return kv(line, "id");
}

START_TEST(devices)
{
	const char *disk = disk_new("disk", DISK_SIZE), *line;
	unsigned queues[N_IDS] = {0}, lines = 0;
	bool net = has_passt();
	struct guest g;

	guest_start(&g, "vm", "-m", "32M", "-k", bare_elf("hostile"), "--disk", disk, "--rng",
		    "--balloon", "--vsock", harness_path("%s/v", harness_tmp()), "--console",
		    harness_path("%s/c", harness_tmp()), "-p", "rounds=0", net ? "--net" : NULL,
		    "user", NULL);
	proc_fatal(g.proc, FATAL);
	/* Of the network and vsock one queue each, of the console two, of the balloon five. */
	for (unsigned n = net ? 11 : 10; n > 0; n--) {
		queues[queue_line(&g)]++;
		/* Nobody holds up the loop. */
		godwit_run(0, "status", g.name, NULL);
	}
	need(queues[ID_BLK] == 1 && queues[ID_RNG] == 1 && queues[ID_CONSOLE] == 2 &&
		     queues[ID_BALLOON] == 5 && queues[ID_VSOCK] == 1 && queues[ID_NET] == net,
	     "not every queue was tried");
	guest_send(&g, "q");
	line = guest_expect(&g, "^hostile done ", LINE_MS);
	ck_assert_uint_eq(kv(line, "errors"), 0);
	guest_ended(&g, 0, END_MS);
	need(strstr(g.proc->err.buf, "made a mistake"), "nothing was logged");
	for (const char *p = g.proc->err.buf; (p = strchr(p, '\n')) != NULL; p++)
		lines++;
	need(lines < 100, "%u lines of log: a guest can flood it", lines);
	need_untouched(disk);
}
END_TEST

/* Wherever a device is in its misery, the guest can be moved. */
START_TEST(moves)
{
	const char *disk = disk_new("disk", DISK_SIZE), *line;
	struct guest g;

	guest_start(&g, "vm", "-m", "32M", "-k", bare_elf("hostile"), "--disk", disk, "--rng",
		    "--balloon", "-p", "rounds=0", NULL);
	proc_fatal(g.proc, FATAL);
	for (unsigned n = 0; n < 5; n++) {
		queue_line(&g);
		guest_move(&g, NULL, "tcp:127.0.0.1:0", NULL);
		proc_fatal(g.proc, FATAL);
	}
	queue_line(&g);
	guest_send(&g, "q");
	line = guest_expect(&g, "^hostile done ", LINE_MS);
	ck_assert_uint_eq(kv(line, "errors"), 0);
	guest_ended(&g, 0, END_MS);
	need_untouched(disk);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("virtio-hostile");

	if (!harness_kvm_works())
		return harness_skip_all("no KVM guest runs on this host (godwit doctor says why)");
	tcase_add_test(harness_case(s, "devices", 120), devices);
	tcase_add_test(harness_case(s, "moves", 120), moves);
	return harness_main(s);
}
