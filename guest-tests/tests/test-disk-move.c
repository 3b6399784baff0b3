/* SPDX-License-Identifier: MIT */
/*
 * A guest with a disk that is moved between two processes of one host while it writes, reads and
 * flushes: the image follows it, belongs to one of them at any time, and a receiver that cannot
 * have it is refused while the guest runs on.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../../vmm/tests/fuse-file.h"
#include "disks.h"
#include "relay.h"

#define COUNT(a) ((int)(sizeof(a) / sizeof((a)[0])))
#define LINE_MS 20000
#define MOVE_MS 40000
#define END_MS 10000
#define STOOD_MS 8000 /* what a move allows devices to come to rest, and more */

static void start(struct guest *g, struct disk *d, const char *words, const char *args)
{
	guest_start(g, "vm", "-m", "32M", "-k", bare_elf("virtio"), "--disk",
		    harness_path("%s%s", d->path, words), "-p", args, NULL);
	disks_ready(g->proc, d, 1);
	guest_expect(g, "^virtio durable ", LINE_MS);
}

/* Moves g to a receiver with these words for --disk, NULL for none. */
static void move_to(struct guest *g, const char *disk, const char *uri)
{
	struct proc *migrate;
	struct dest dest;
	struct move m;

	dest_start(&dest, harness_path("vm-%u", g->moves + 1), uri, disk ? "--disk" : NULL, disk,
		   NULL);
	migrate = move_start(g, dest.uri, NULL);
	move_report(migrate, 0, &m, MOVE_MS);
	guest_moved(g, &dest);
	proc_fatal(g->proc, DISK_FATAL);
}

/* ---- to and fro ---- */

static const struct {
	const char *words, *args;
	unsigned moves;
} loads[] = {
	{"", "rate=4M flush_every=16 depth=16", 20},
	{"", "depth=32 flush_every=8 event_idx=off", 5}, /* flat out */
	{",cache=none", "rate=4M flush_every=16 block=1 indirect=off", 5},
	{",cache=writethrough", "rate=2M flush_every=16", 5},
};

START_TEST(to_and_fro)
{
	struct disk d = {.path = disk_new("disk", 4 * MIB)};
	unsigned most = harness_env("GODWIT_TEST_MOVES", 200), moves = loads[_i].moves;
	struct guest g;

	if (moves > most)
		moves = most;
	harness_say("'%s', '%s': %u moves", loads[_i].words, loads[_i].args, moves);
	if (strstr(loads[_i].words, "none")) {
		int fd = open(d.path, O_RDWR | O_DIRECT | O_CLOEXEC);

		if (fd < 0)
			harness_skip("no direct I/O at %s: %s", d.path, strerror(errno));
		close(fd);
	}
	start(&g, &d, loads[_i].words, harness_path("report=0 %s", loads[_i].args));
	for (unsigned n = 0; n < moves; n++) {
		/* That its process has ended is seen to in there. */
		move_to(&g, NULL, n % 2 ? "unix:" : "tcp:127.0.0.1:0");
		disk_in_use(d.path);
		guest_expect(&g, "^virtio durable ", LINE_MS);
	}
	disk_works(g.proc);
	disks_quit(g.proc, &d, 1);
	disk_is_free(&d);
}
END_TEST

/* ---- receivers that are told another path ---- */

START_TEST(other_path)
{
	struct disk d = {.path = disk_new("disk", 2 * MIB)};
	const char *hard = harness_path("%s/hard", harness_tmp());
	const char *soft = harness_path("%s/soft", harness_tmp());
	struct guest g;

	need(!link(d.path, hard) && !symlink(d.path, soft), "%s", strerror(errno));
	start(&g, &d, "", "rate=4M flush_every=16 report=0");
	move_to(&g, hard, "unix:");
	disk_works(g.proc);
	disk_in_use(d.path);
	move_to(&g, soft, "tcp:127.0.0.1:0");
	disk_works(g.proc);
	disk_in_use(hard);
	move_to(&g, harness_path("%s,cache=writethrough", d.path), "unix:");
	disk_works(g.proc);
	move_to(&g, harness_path("%s,cache=writeback", d.path), "unix:");
	disk_works(g.proc);
	disks_quit(g.proc, &d, 1);
}
END_TEST

START_TEST(two_disks)
{
	struct disk d[2] = {
		{.path = disk_new("a", 2 * MIB)},
		{.path = disk_new("b", 1 * MIB)},
	};
	struct guest g;

	guest_start(&g, "vm", "-m", "32M", "-k", bare_elf("virtio"), "--rng", "--disk", d[0].path,
		    "--disk", d[1].path, "-p", "rate=2M flush_every=16 report=0", NULL);
	disks_ready(g.proc, d, 2);
	for (unsigned i = 0; i < 4; i++) {
		guest_expect(&g, harness_path("^virtio durable disk=%u ", i % 2), LINE_MS);
		move_to(&g, NULL, "unix:");
		disk_in_use(d[0].path);
		disk_in_use(d[1].path);
	}
	disk_works(g.proc);
	disks_quit(g.proc, d, 2);
}
END_TEST

/* Others read the image, too; wherever the guest is, nobody may write it. */
START_TEST(shared_readonly)
{
	struct disk d = {.path = disk_new("disk", 2 * MIB)}, same = d;
	const char *ro = harness_path("%s,ro", d.path), *from;
	struct guest g, other;

	start(&g, &d, "", "rate=4M flush_every=16 report=0");
	guest_send(&g, "q");
	from = harness_path("from=%lu rate=2M report=0",
			    kv(guest_expect(&g, "^virtio verify ", LINE_MS), "n"));
	guest_ended(&g, 0, END_MS);
	guest_start(&g, "vm", "-m", "32M", "-k", bare_elf("virtio"), "--disk", ro, "-p", from,
		    NULL);
	guest_start(&other, "other", "-m", "32M", "-k", bare_elf("virtio"), "--disk", ro, "-p",
		    from, NULL);
	disks_ready(g.proc, &d, 1);
	disks_ready(other.proc, &same, 1);
	for (unsigned i = 0; i < 3; i++) {
		move_to(&g, NULL, "unix:");
		disk_in_use(d.path);
	}
	disks_quit(other.proc, &same, 1);
	disk_in_use(d.path);
	disks_quit(g.proc, &d, 1);
	disk_is_free(&d);
}
END_TEST

/* The machine that has arrived is a whole one: it boots again, and moves on. */
START_TEST(reboots_there)
{
	struct disk d = {.path = disk_new("disk", 2 * MIB)};
	struct guest g;

	start(&g, &d, "", "depth=32 flush_every=16 report=0");
	for (unsigned i = 0; i < 3; i++) {
		move_to(&g, NULL, "unix:");
		guest_expect(&g, "^virtio durable ", LINE_MS);
		guest_send(&g, "b");
		disks_ready(g.proc, &d, 1);
		disk_works(g.proc);
	}
	disks_quit(g.proc, &d, 1);
}
END_TEST

/* ---- receivers that cannot have it ---- */

static const struct {
	const char *name; /* of the receiver's disk; NULL: not told, and the source's is away */
	uint64_t size;
	const char *says;
} wrong[] = {
	{"larger", 3 * MIB, "has 3145728 bytes here, 2097152 at the source"},
	{"smaller", 1 * MIB, "has 1048576 bytes here, 2097152 at the source"},
	{"empty", 0, "has 0 bytes, less than a sector"},
	{NULL, 0, "No such file"},
};

START_TEST(refused)
{
	struct disk d = {.path = disk_new("disk", 2 * MIB)};
	const char *away = harness_path("%s/away", harness_tmp()), *other = NULL;
	struct proc *migrate;
	struct dest dest;
	struct guest g;
	struct move m;

	start(&g, &d, "", "rate=4M flush_every=16 report=0");
	if (wrong[_i].name)
		other = disk_new(wrong[_i].name, wrong[_i].size);
	else
		need(!rename(d.path, away), "%s", strerror(errno));
	dest_start(&dest, "there", "unix:", other ? "--disk" : NULL, other, NULL);
	migrate = move_start(&g, dest.uri, NULL);
	move_report(migrate, 1, &m, MOVE_MS);
	need(strstr(m.error, wrong[_i].says), "'%s'", m.error);
	need(strstr(m.error, other ? other : d.path), "it does not say which: '%s'", m.error);
	/* Nothing but a handshake: the guest was not stopped for that. */
	need(m.rounds == 0 && m.downtime_ms == 0, "%s", json_dumps(m.json, JSON_COMPACT));
	proc_ended(dest.proc, 1, END_MS);
	need(strstr(dest.proc->err.buf, wrong[_i].says), "'%s'", dest.proc->err.buf);
	if (!other)
		need(!rename(away, d.path), "%s", strerror(errno));
	disk_works(g.proc);
	disk_in_use(d.path);
	/* And can be moved to where it fits. */
	move_to(&g, NULL, "unix:");
	disk_works(g.proc);
	disks_quit(g.proc, &d, 1);
}
END_TEST

/* Somebody has the image that the receiver was told: found when it is to be taken, the last thing.
 */
START_TEST(theirs_is_in_use)
{
	struct disk d = {.path = disk_new("disk", 2 * MIB)};
	struct disk theirs = {.path = disk_new("theirs", 2 * MIB)};
	struct guest g, other;
	struct proc *migrate;
	struct dest dest;
	struct move m;

	start(&g, &d, "", "rate=4M flush_every=16 report=0");
	guest_start(&other, "other", "-m", "32M", "-k", bare_elf("virtio"), "--disk", theirs.path,
		    "-p", "rate=1M flush_every=16 report=0 seed=7", NULL);
	disks_ready(other.proc, &theirs, 1);
	dest_start(&dest, "there", "unix:", "--disk", theirs.path, NULL);
	migrate = move_start(&g, dest.uri, NULL);
	move_report(migrate, 1, &m, MOVE_MS);
	need(strstr(m.error, theirs.path) && strstr(m.error, "in use"), "'%s'", m.error);
	proc_ended(dest.proc, 1, END_MS);
	disk_works(g.proc);
	disk_in_use(d.path);
	disks_quit(g.proc, &d, 1);
	disks_quit(other.proc, &theirs, 1);
}
END_TEST

/* ---- somebody takes the image just when neither side has it ---- */

struct thief {
	const char *path;
	int fd;
};

static void steal(void *arg, struct relay_frame *f)
{
	struct flock fl = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
	struct thief *t = arg;

	(void)f;
	t->fd = open(t->path, O_RDWR | O_CLOEXEC);
	need(t->fd >= 0 && !fcntl(t->fd, F_OFD_SETLK, &fl),
	     "the image is still locked when COMMIT is sent: %s", strerror(errno));
}

START_TEST(stolen)
{
	struct disk d = {.path = disk_new("disk", 2 * MIB)};
	struct thief thief = {.path = d.path};
	struct relay *relay;
	struct proc *migrate, *p;
	struct dest dest;
	struct guest g;
	struct move m;

	start(&g, &d, "", "rate=4M flush_every=16 report=0");
	dest_start(&dest, "there", "unix:", NULL);
	relay = relay_start("unix:", dest.uri);
	relay_act(relay, (struct relay_act){.dir = TO_DEST,
					    .type = WIRE_COMMIT,
					    .what = RELAY_EDIT,
					    .edit = steal,
					    .arg = &thief});
	migrate = move_start(&g, relay->uri, "--connections=1", NULL);
	/* The destination must not run it without its disk, nor must the source. */
	move_report(migrate, 3, &m, MOVE_MS);
	relay_all_done(relay);
	need(strstr(m.error, "in use"), "'%s'", m.error);
	proc_ended(dest.proc, 1, END_MS);
	p = godwit_run(1, "resolve", "--run", g.name, NULL);
	need(strstr(p->err.buf, "it stays paused") && strstr(p->err.buf, d.path), "'%s'",
	     p->err.buf);
	while (proc_try(g.proc, "^virtio ", 20))
		;
	need(!proc_try(g.proc, "^virtio ", 1000), "it runs");
	close(thief.fd);
	godwit_run(0, "resolve", "--run", g.name, NULL);
	disk_works(g.proc);
	disks_quit(g.proc, &d, 1);
}
END_TEST

/* ---- a disk that does not answer ---- */

static void move_while_stalled(struct fuse_file *f, unsigned stall)
{
	struct disk d = {.path = f->path};
	struct proc *migrate;
	struct dest dest;
	struct guest g;
	struct move m;
	const char *line;

	start(&g, &d, "", "rate=4M flush_every=16 report=0 depth=16");
	need(f->shared->syncs > 0, "told that it is durable, and nobody has synced");
	move_to(&g, NULL, "unix:");
	disk_works(g.proc);

	guest_send(&g, "zr");
	guest_expect(&g, "^virtio t_ms=", LINE_MS);
	dest_start(&dest, "there", "unix:", NULL);
	fuse_file_stall(f, stall);
	migrate = move_start(&g, dest.uri, NULL);
	move_report(migrate, 1, &m, MOVE_MS);
	need(strstr(m.error, "does not come to rest"), "'%s'", m.error);
	proc_ended(dest.proc, 1, END_MS);
	/* It runs, but for its disk, and has not stood for long. */
	guest_send(&g, "r");
	line = guest_expect(&g, "^virtio t_ms=", LINE_MS);
	ck_assert_uint_eq(kv(line, "errors"), 0);
	need(kv(line, "gap_us") < (uint64_t)harness_slow(STOOD_MS) * 1000, "%s", line);
	disk_in_use(d.path);

	fuse_file_stall(f, 0);
	disk_works(g.proc);
	move_to(&g, NULL, "unix:");
	disk_works(g.proc);
	disks_quit(g.proc, &d, 1);
}

START_TEST(stalled)
{
	const char *why = NULL;
	struct fuse_file *f;

	harness_tmp();
	f = fuse_file_new(2 * MIB, &why);
	if (!f)
		harness_skip("no file system of our own: %s", why);
	move_while_stalled(f, _i ? FUSE_STALL_SYNC : FUSE_STALL_WRITE);
	fuse_file_free(f);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("disk-move");
	TCase *tc;

	if (!harness_kvm_works())
		return harness_skip_all("no KVM guest runs on this host (godwit doctor says why)");
	tc = harness_case(s, "to-and-fro", 200);
	tcase_add_loop_test(tc, to_and_fro, 0, COUNT(loads));
	tc = harness_case(s, "other-path", 100);
	tcase_add_test(tc, other_path);
	tcase_add_test(tc, two_disks);
	tcase_add_test(tc, shared_readonly);
	tcase_add_test(tc, reboots_there);
	tc = harness_case(s, "refused", 100);
	tcase_add_loop_test(tc, refused, 0, COUNT(wrong));
	tcase_add_test(tc, theirs_is_in_use);
	tcase_add_test(tc, stolen);
	tc = harness_case(s, "stalled", 100);
	tcase_add_loop_test(tc, stalled, 0, 2);
	return harness_main(s);
}
