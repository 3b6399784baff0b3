/* SPDX-License-Identifier: MIT */
/*
 * Moves that end while one side is busy by itself: it hashes all of RAM (--verify=full), or it
 * stores a guest that has grown beyond what the host has.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <unistd.h>

#include "faults.h"

/* ---- hashing ---- */

/* Takes long enough to be hashed that a request can come meanwhile. */
#define BIG_MIB 256
#define NEEDED_MIB 1200

static unsigned long available_mib(void)
{
	unsigned long kib = 0;
	char line[128];
	FILE *f = fopen("/proc/meminfo", "re");

	while (f && fgets(line, sizeof(line), f) && sscanf(line, "MemAvailable: %lu kB", &kib) != 1)
		;
	if (f)
		fclose(f);
	return kib / 1024;
}

static void start_big(struct scene *s)
{
	if (available_mib() < NEEDED_MIB)
		harness_skip("needs %u MiB of memory", NEEDED_MIB);
	*s = (struct scene){.migrate = NULL};
	guest_start(&s->g, "vm", "-m", "384M", "-k", bare_elf("dirty"), "-p",
		    harness_path("ws=%uM kind=idle", BIG_MIB), NULL);
	proc_fatal(s->g.proc, "^dirty (error|panic) ");
	guest_expect(&s->g, "^dirty ready ", 30000);
	dest_start(&s->d, "vm-at-dest", "unix:", NULL);
	s->relay = relay_start("unix:", s->d.uri);
}

/* Who is asked, by a connection that is there already: a process would come too late. */
struct request {
	int fd;
	const char *text;
};

static struct request request_to(const char *name, const char *text)
{
	return (struct request){
		.fd = relay_connect(harness_path("unix:%s/%s.sock", getenv("GODWIT_RUNDIR"), name)),
		.text = text,
	};
}

static void ask_now(void *arg, struct relay_frame *f)
{
	const struct request *r = arg;
	size_t len = strlen(r->text);

	(void)f;
	need(send(r->fd, r->text, len, MSG_NOSIGNAL) == (ssize_t)len, "%s", strerror(errno));
}

static void still_there(struct scene *s)
{
	need(strcmp(json_text(guest_status(&s->g), "state"), "running") == 0, "it does not run");
	/* It looks at all of its memory before it goes. */
	guest_send(&s->g, "q");
	guest_expect(&s->g, "^dirty done .* errors=0$", 30000);
	guest_ended(&s->g, 0, 20000);
}

#define CANCEL "{\"cmd\":\"cancel\"}\n"

/* Both sides hash between STATE and PROOF; cancelled there, at either, it gets to no proof. */
START_TEST(both_hash)
{
	struct request r;
	struct scene s;

	start_big(&s);
	r = request_to(_i ? s.d.name : s.g.name, CANCEL);
	relay_act(s.relay, (struct relay_act){.dir = TO_DEST,
					      .type = WIRE_STATE,
					      .what = RELAY_EDIT,
					      .edit = ask_now,
					      .arg = &r});
	s.migrate = move_start(&s.g, s.relay->uri, "--connections=1", "--verify=full",
			       "--downtime=10s", NULL);
	scene_report(&s, 1, _i ? "the destination says: cancelled" : "cancelled");
	need(strcmp(s.m.status, _i ? "failed" : "cancelled") == 0, "status '%s'", s.m.status);
	need(relay_seen(s.relay, TO_DEST, WIRE_PROOF) == 0, "the proof went out all the same: %s",
	     s.relay->trace);
	proc_ended(s.d.proc, 1, 10000);
	still_there(&s);
	close(r.fd);
}
END_TEST

/* ---- a host that runs out of memory ---- */

/*
 * What the host has, as all processes of this test see it from now on; they have a /proc/meminfo of
 * the test's own.
 */
static void host_has(unsigned mib)
{
	const char *path = harness_path("%s/meminfo", harness_tmp());
	static bool mounted;
	FILE *f;

	if (!mounted && (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL)))
		harness_skip("cannot have a /proc/meminfo of its own: %s", strerror(errno));
	f = fopen(path, "we");
	need(f, "%s: %s", path, strerror(errno));
	fprintf(f,
		"MemTotal:       16777216 kB\n"
		"MemFree:               0 kB\n"
		"MemAvailable:   %8u kB\n"
		"SwapTotal:             0 kB\n"
		"SwapFree:              0 kB\n",
		mib * 1024);
	fclose(f);
	need(mounted || mount(path, "/proc/meminfo", NULL, MS_BIND, NULL) == 0, "%s",
	     strerror(errno));
	mounted = true;
}

static void memory_goes(void *arg, struct relay_frame *f)
{
	const unsigned *mib = arg;

	(void)f;
	host_has(*mib);
}

static void start_300(struct scene *s)
{
	*s = (struct scene){.migrate = NULL};
	guest_start(&s->g, "vm", "-m", "384M", "-k", bare_elf("dirty"), "-p", "ws=300M kind=idle",
		    NULL);
	proc_fatal(s->g.proc, "^dirty (error|panic) ");
	guest_expect(&s->g, "^dirty ready ", 30000);
	dest_start(&s->d, "vm-at-dest", "unix:", NULL);
	s->relay = relay_start("unix:", s->d.uri);
}

/* There was enough at the handshake; then others took it. */
START_TEST(runs_out)
{
	static const unsigned left = 100;
	struct scene s;

	host_has(4000);
	start_300(&s);
	relay_act(s.relay, (struct relay_act){.dir = TO_DEST,
					      .type = WIRE_PAGES,
					      .nth = 2,
					      .what = RELAY_EDIT,
					      .edit = memory_goes,
					      .arg = (void *)(uintptr_t)&left});
	scene_migrate(&s);
	scene_report(&s, 1,
		     "the destination says: this host runs out of memory .*: 100 MiB are left");
	need(s.m.downtime_ms <= 0, "it was paused for that: %.3f ms", s.m.downtime_ms);
	dest_refused(&s, "no guest came to run here: this host runs out of memory");
	still_there(&s);
}
END_TEST

/* Too little from the start, and enough. */
START_TEST(has_memory)
{
	struct scene s;

	host_has(200);
	start_300(&s);
	scene_migrate(&s);
	scene_report(&s, 1, "refuses: the guest uses [0-9.]+ MiB of memory, this host has 200 MiB");
	need(relay_seen(s.relay, TO_DEST, WIRE_PAGES) == 0, "%s", s.relay->trace);
	dest_refused(&s, "this host has 200 MiB available");
	host_has(500);
	guest_move(&s.g, NULL, "unix:", NULL);
	still_there(&s);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("faults-midway");

	if (!harness_kvm_works())
		return harness_skip_all("no KVM guest runs here");
	tcase_add_loop_test(harness_case(s, "both-hash", 120), both_hash, 0, 2);
	tcase_add_test(harness_case(s, "memory", 120), runs_out);
	tcase_add_test(harness_case(s, "enough", 120), has_memory);
	return harness_main(s);
}
