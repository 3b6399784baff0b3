/* SPDX-License-Identifier: MIT */
/*
 * A bare guest that drives disks itself, checks all that it reads, and whose image is looked at
 * from outside afterwards: caches and features, read-only disks, several disks, images that
 * somebody else has, and disks that are none.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "disks.h"

#define COUNT(a) ((int)(sizeof(a) / sizeof((a)[0])))
#define MIB (1ul << 20)
#define LINE_MS 20000
#define END_MS 10000

static void start(struct guest *g, const char *name, const char *disk, const char *args)
{
	guest_start(g, name, "-m", "32M", "-k", bare_elf("virtio"), "--disk", disk, "-p", args,
		    NULL);
}

/* A guest that runs on an image, and has been told that something is durable. */
static void start_one(struct guest *g, const char *name, struct disk *d)
{
	start(g, name, d->path, "rate=4M flush_every=16 report=0");
	disks_ready(g->proc, d, 1);
	proc_expect(g->proc, "^virtio durable ", LINE_MS);
}

/* ---- work ---- */

static const struct {
	const char *disk, *args;
	bool flushes;
} kinds[] = {
	{"", "", true},
	{",cache=writeback", "event_idx=off", true},
	{",cache=writeback,serial=A1-b2", "indirect=off block=1 depth=64", true},
	{",cache=writethrough", "depth=4", false},
	{",cache=unsafe", "block=128 depth=16 flush_every=8", true},
	{",queues=4", "event_idx=off indirect=off block=3", true},
	{",discard=off", "depth=1", true},
	{",cache=none", "", true},
	{",cache=none", "block=1 depth=32", true}, /* less than a unit of direct I/O, perhaps */
	{",cache=none", "block=128 event_idx=off", true},
};

/* Direct I/O needs a file system that has it; the tree's own, if the scratch folder's does not. */
static const char *direct_image(uint64_t size, const char **made)
{
	const char *path = disk_new("direct", size);
	int fd = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);

	*made = NULL;
	if (fd < 0) {
		char *other =
			strdup(harness_path("%s/build/test-virtio-bare.XXXXXX", harness_root()));

		fd = other ? mkostemp(other, O_DIRECT | O_CLOEXEC) : -1;
		if (fd < 0)
			harness_skip("no direct I/O, neither at %s nor below %s/build: %s", path,
				     harness_root(), strerror(errno));
		need(!ftruncate(fd, (off_t)size), "%s: %s", other, strerror(errno));
		path = *made = other;
	}
	close(fd);
	return path;
}

START_TEST(kind)
{
	const char *made = NULL, *line;
	bool direct = strstr(kinds[_i].disk, "none");
	struct disk d = {.path = direct ? direct_image(4 * MIB, &made) : disk_new("disk", 4 * MIB)};
	struct guest g;

	harness_say("'%s', '%s'", kinds[_i].disk, kinds[_i].args);
	start(&g, "vm", harness_path("%s%s", d.path, kinds[_i].disk),
	      harness_path("rate=16M report=0 seed=%d %s", 100 + _i, kinds[_i].args));
	line = guest_expect(&g, "^virtio disk=0 ", LINE_MS);
	ck_assert_uint_eq(kv(line, "capacity"), 4 * MIB / 512);
	ck_assert_uint_eq(kv(line, "flush"), kinds[_i].flushes);
	ck_assert_str_eq(kv_text(line, "serial"), strstr(kinds[_i].disk, "serial") ? "A1-b2" : "");
	d.block = kv(line, "block");
	d.chunks = kv(line, "chunks");
	d.seed = kv(line, "seed");
	proc_fatal(g.proc, DISK_FATAL);
	guest_expect(&g, "^virtio ready disks=1 ", LINE_MS);
	disk_works(g.proc);
	guest_send(&g, "r");
	line = guest_expect(&g, "^virtio t_ms=", LINE_MS);
	need(kv(line, "reads") > 0 && (kv(line, "flushes") > 0) == kinds[_i].flushes, "%s", line);
	disks_quit(g.proc, &d, 1);
	if (made)
		unlink(made);
}
END_TEST

START_TEST(several)
{
	struct disk d[3] = {
		{.path = disk_new("a", 2 * MIB)},
		{.path = disk_new("b", 4 * MIB)},
		{.path = disk_new("c", 1 * MIB + 512)},
	};
	const char *line;
	struct guest g;

	guest_start(&g, "vm", "-m", "32M", "-k", bare_elf("virtio"), "--rng", "--disk", d[0].path,
		    "--disk", harness_path("%s,cache=writethrough", d[1].path), "--disk", d[2].path,
		    "-p", "rate=4M flush_every=16", NULL);
	disks_ready(g.proc, d, 3);
	ck_assert_uint_eq(d[0].chunks, 2 * MIB / 4096);
	ck_assert_uint_eq(d[1].chunks, 4 * MIB / 4096);
	for (unsigned i = 0; i < 3; i++)
		guest_expect(&g, harness_path("^virtio durable disk=%u ", 2 - i), LINE_MS);
	guest_expect(&g, "^virtio t_ms=", LINE_MS);
	line = guest_expect(&g, "^virtio t_ms=", LINE_MS);
	need(kv(line, "rng") > 0, "no random numbers: %s", line);
	disks_quit(g.proc, d, 3);
}
END_TEST

START_TEST(no_disk)
{
	const char *line;
	struct guest g;

	guest_start(&g, "vm", "-m", "32M", "-k", bare_elf("virtio"), "--rng", NULL);
	guest_expect(&g, "^virtio ready disks=0 rng=1 ", LINE_MS);
	guest_expect(&g, "^virtio t_ms=", LINE_MS);
	line = guest_expect(&g, "^virtio t_ms=", LINE_MS);
	need(kv(line, "rng") >= 64 && kv(line, "errors") == 0, "%s", line);
	guest_send(&g, "q");
	guest_expect(&g, "^virtio done .* errors=0$", LINE_MS);
	guest_ended(&g, 0, END_MS);
}
END_TEST

/* What one guest has left there is what the next one finds, and cannot change. */
START_TEST(readonly)
{
	struct disk d = {.path = disk_new("disk", 2 * MIB)};
	const char *line;
	struct guest g;
	uint64_t n;

	start_one(&g, "writer", &d);
	guest_send(&g, "q");
	n = kv(guest_expect(&g, "^virtio verify ", LINE_MS), "n");
	guest_ended(&g, 0, END_MS);
	disk_check(&d, n, true);

	start(&g, "reader", harness_path("%s,ro", d.path), harness_path("from=%lu", n));
	proc_fatal(g.proc, DISK_FATAL);
	line = guest_expect(&g, "^virtio disk=0 ", LINE_MS);
	ck_assert_uint_eq(kv(line, "ro"), 1);
	do {
		line = guest_expect(&g, "^virtio t_ms=", LINE_MS);
	} while (kv(line, "refused") < 20 || kv(line, "reads") < 100);
	ck_assert_uint_eq(kv(line, "errors"), 0);
	guest_send(&g, "q");
	line = guest_expect(&g, "^virtio verify ", LINE_MS);
	need(kv(line, "errors") == 0 && kv(line, "sectors") > 0, "%s", line);
	guest_expect(&g, "^virtio done .* errors=0$", LINE_MS);
	guest_ended(&g, 0, END_MS);
	disk_check(&d, n, true);
}
END_TEST

/* The device stops in the middle of what it does, again and again. */
START_TEST(reboots)
{
	struct disk d = {.path = disk_new("disk", 2 * MIB)};
	struct guest g;

	start(&g, "vm", d.path, "depth=32 flush_every=16 report=0");
	for (int i = 0; i < 5; i++) {
		disks_ready(g.proc, &d, 1);
		guest_expect(&g, "^virtio durable ", LINE_MS);
		guest_send(&g, "b");
	}
	disks_ready(g.proc, &d, 1);
	guest_expect(&g, "^virtio durable ", LINE_MS);
	disks_quit(g.proc, &d, 1);
}
END_TEST

START_TEST(pauses)
{
	struct disk d = {.path = disk_new("disk", 2 * MIB)};
	struct guest g;

	start(&g, "vm", d.path, "depth=32 flush_every=16 report=0");
	disks_ready(g.proc, &d, 1);
	for (int i = 0; i < 5; i++) {
		guest_expect(&g, "^virtio durable ", LINE_MS);
		godwit_run(0, "pause", g.name, NULL);
		disk_in_use(d.path);
		disk_check(&d, disk_told(g.proc, &d), false);
		godwit_run(0, "resume", g.name, NULL);
	}
	disk_works(g.proc);
	disks_quit(g.proc, &d, 1);
}
END_TEST

/* ---- one image, one guest ---- */

START_TEST(in_use)
{
	struct disk d = {.path = disk_new("disk", 2 * MIB)};
	const char *hard = harness_path("%s/hard", harness_tmp());
	const char *soft = harness_path("%s/soft", harness_tmp());
	struct guest g;

	need(!link(d.path, hard) && !symlink(d.path, soft), "%s", strerror(errno));
	start_one(&g, "vm", &d);
	disk_in_use(d.path);
	disk_in_use(harness_path("%s,ro", d.path));
	disk_in_use(harness_path("%s,cache=unsafe", d.path));
	disk_in_use(hard);
	disk_in_use(soft);
	disk_works(g.proc);
	disks_quit(g.proc, &d, 1);
	disk_is_free(&d);
}
END_TEST

START_TEST(twice_in_one_guest)
{
	const char *path = disk_new("disk", MIB);
	struct proc *p = godwit_run(1, "run", "-n", "vm", "-m", "32M", "-k", bare_elf("hello"),
				    "--disk", path, "--disk", path, NULL);

	need(strstr(p->err.buf, path) && strstr(p->err.buf, "in use"), "'%s'", p->err.buf);
	need(p->out.len == 0, "it ran: '%s'", p->out.buf);
}
END_TEST

START_TEST(shared_readonly)
{
	const char *path = disk_new("disk", 2 * MIB), *ro = harness_path("%s,ro", path);
	struct disk d = {.path = path}, fresh;
	struct guest a, b;

	start(&a, "one", ro, "report=0 rate=1M");
	disks_ready(a.proc, &d, 1);
	start(&b, "two", ro, "report=0 rate=1M");
	disks_ready(b.proc, &d, 1);
	disk_in_use(path);
	guest_send(&a, "q");
	guest_expect(&a, "^virtio done .* errors=0$", LINE_MS);
	guest_ended(&a, 0, END_MS);
	/* The other one still reads it. */
	disk_in_use(path);
	guest_send(&b, "q");
	guest_expect(&b, "^virtio done .* errors=0$", LINE_MS);
	guest_ended(&b, 0, END_MS);
	fresh = d;
	disk_is_free(&fresh);
}
END_TEST

/* What it was told is durable is there, and its lock has gone with it. */
START_TEST(killed)
{
	struct disk d = {.path = disk_new("disk", 4 * MIB)};
	struct guest g;

	start(&g, "vm", d.path, "depth=32 flush_every=16 report=0");
	disks_ready(g.proc, &d, 1);
	disk_works(g.proc);
	proc_kill(g.proc, SIGKILL);
	guest_ended(&g, 128 + SIGKILL, END_MS);
	need(disk_told(g.proc, &d) > 0, "nothing was durable");
	disk_check(&d, disk_told(g.proc, &d), false);
	disk_is_free(&d);
}
END_TEST

/* ---- disks that are none ---- */

enum file { NONE, FILE_OF, FOLDER, FIFO };

static const struct {
	enum file file;
	uint64_t size;
	const char *words;
	int code;
	const char *says; /* besides the path */
} wrong[] = {
	{NONE, 0, "", 1, "No such file"},
	{NONE, 0, ",ro", 1, "No such file"},
	{FOLDER, 0, "", 1, "directory"},
	{FOLDER, 0, ",ro", 1, "directory"},
	{FIFO, 0, "", 1, "neither a file nor a block device"},
	{FIFO, 0, ",ro", 1, "neither a file nor a block device"},
	{FILE_OF, 0, "", 1, "has 0 bytes, less than a sector"},
	{FILE_OF, 511, ",ro", 1, "has 511 bytes, less than a sector"},
	{FILE_OF, MIB, ",foo", 2, "'foo' is none of"},
	{FILE_OF, MIB, ",cache=maybe", 2, "cache=maybe is none of"},
	{FILE_OF, MIB, ",queues=0", 2, "queues=0 is not"},
	{FILE_OF, MIB, ",serial=123456789012345678901", 2, "serial"},
	{FILE_OF, MIB, ",discard=perhaps", 2, "neither on nor off"},
	{FILE_OF, MIB, ",", 2, "'' is none of"},
};

START_TEST(refused)
{
	const char *path = harness_path("%s/disk", harness_tmp());
	struct proc *p;

	switch (wrong[_i].file) {
	case NONE:
		break;
	case FILE_OF:
		disk_new("disk", wrong[_i].size);
		break;
	case FOLDER:
		need(!mkdir(path, 0700), "%s", strerror(errno));
		break;
	case FIFO:
		need(!mkfifo(path, 0600), "%s", strerror(errno));
		break;
	}
	p = godwit_run(wrong[_i].code, "run", "-n", "vm", "-m", "32M", "-k", bare_elf("hello"),
		       "--disk", harness_path("%s%s", path, wrong[_i].words), NULL);
	need(strstr(p->err.buf, wrong[_i].says), "does not say '%s': '%s'", wrong[_i].says,
	     p->err.buf);
	need(wrong[_i].code == 2 || strstr(p->err.buf, path), "does not name %s: '%s'", path,
	     p->err.buf);
	need(p->out.len == 0, "it ran: '%s'", p->out.buf);
	/* What else is wrong with it a receiver looks at when it knows how the guest has it. */
	if (wrong[_i].code != 2 && wrong[_i].file != NONE)
		return;
	p = godwit_run(wrong[_i].code, "receive", "--disk",
		       harness_path("%s%s", path, wrong[_i].words), "tcp:127.0.0.1:0", NULL);
	need(strstr(p->err.buf, wrong[_i].says), "receive does not say '%s': '%s'", wrong[_i].says,
	     p->err.buf);
	need(p->out.len == 0, "it listened: '%s'", p->out.buf);
}
END_TEST

START_TEST(no_path)
{
	static const char *const words[] = {"", ",ro", ",cache=none"};

	for (int i = 0; i < COUNT(words); i++) {
		struct proc *p =
			godwit_run(2, "run", "-k", bare_elf("hello"), "--disk", words[i], NULL);

		need(strstr(p->err.buf, "path"), "'%s': '%s'", words[i], p->err.buf);
	}
}
END_TEST

int main(void)
{
	Suite *s = suite_create("virtio-bare");
	TCase *tc;

	if (!harness_kvm_works())
		return harness_skip_all("no KVM guest runs on this host (godwit doctor says why)");
	tc = harness_case(s, "kinds", 90);
	tcase_add_loop_test(tc, kind, 0, COUNT(kinds));
	tc = harness_case(s, "devices", 90);
	tcase_add_test(tc, several);
	tcase_add_test(tc, no_disk);
	tcase_add_test(tc, readonly);
	tc = harness_case(s, "life", 90);
	tcase_add_test(tc, reboots);
	tcase_add_test(tc, pauses);
	tcase_add_test(tc, killed);
	tc = harness_case(s, "in-use", 90);
	tcase_add_test(tc, in_use);
	tcase_add_test(tc, twice_in_one_guest);
	tcase_add_test(tc, shared_readonly);
	tc = harness_case(s, "refused", 60);
	tcase_add_loop_test(tc, refused, 0, COUNT(wrong));
	tcase_add_test(tc, no_path);
	return harness_main(s);
}
