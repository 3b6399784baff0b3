/* SPDX-License-Identifier: MIT */
/*
 * Moves in which one thing goes wrong, of every kind and at every place there is (fault_cells.h),
 * on either side; and what must be true after each: one side owns the guest and its disk's image,
 * its memory and its disk are as they should be, a user was told why, and nothing is left behind.
 *
 * The guest is `virtio`: it writes, reads and flushes a disk and rewrites memory, and looks at all
 * of it. An I/O error, which it has to be told of where a request fails, it takes note of and tries
 * again; any other error ends the test.
 *
 * GODWIT must name a build with FAULTS=1. GODWIT_TEST_FAULTS is the number of moves; beyond the
 * size of the matrix they go over it again, in another way: by TCP, over more connections, with
 * connections that are made anew. GODWIT_TEST_FAULT: only the one with this number, from 1.
 */
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../../vmm/fault.h"
#include "disks.h"
#include "fault_cells.h"
#include "faults.h"
#include "leftovers.h"

#define RAM "64M"
#define RAM_BYTES (64L << 20)
#define WORK "mem=8M mem_rate=4M rate=4M flush_every=16 retry=on"
#define READY_MS 30000
#define MOVE_MS 90000
#define END_MS 20000
#define LOOK_MS 3000
#define ASK_MS 200
#define QUIESCE_MS 5000 /* how long a move waits for a device to come to rest */

/* An I/O error that a request has ended with, VIRTIO_BLK_S_IOERR, is none of these. */
#define FATAL                                                                                      \
	"virtio error ([^s]|status .* status=([02-9]|1[0-9]))| panic |virtio memory .* "           \
	"errors=[1-9]"

/* Of all moves: the tests are processes of their own. */
static struct tally {
	unsigned came, none, moved, stayed, uncertain, lost;
} * tally;

struct run {
	struct cell c;
	unsigned way;
	struct disk disk;
	struct guest g;
	struct dest d;
	struct proc *source, *migrate;
	const char *log, *left;
	const char *held; /* by the source before the move */
	bool leaves;	  /* is to leave its memory behind */
	bool gone;	  /* the guest is no more */
};

static void wish(const struct run *r, enum fault_side side)
{
	if (r->c.sides & side)
		setenv("GODWIT_FAULT", r->c.fault, 1);
	else
		unsetenv("GODWIT_FAULT");
}

static void make_folders(struct run *r)
{
	const char *temporary = harness_path("%s/tmp", harness_tmp());

	leftovers_begin();
	need(mkdir(temporary, 0700) == 0, "%s: %s", temporary, strerror(errno));
	setenv("TMPDIR", temporary, 1);
	r->log = harness_path("%s/fault", harness_tmp());
	r->left = harness_path("%s/left", harness_tmp());
	setenv("GODWIT_FAULT_LOG", r->log, 1);
	r->disk.path = disk_new("disk", 2UL << 20);
}

static void start(struct run *r)
{
	make_folders(r);
	wish(r, AT_SOURCE);
	guest_start(&r->g, "vm", "-q", "-m", RAM, "-k", bare_elf("virtio"), "--disk", r->disk.path,
		    "-p", WORK, NULL);
	r->source = r->g.proc;
	disks_ready(r->source, &r->disk, 1);
	proc_fatal(r->source, FATAL);
	guest_expect(&r->g, "^virtio durable ", READY_MS);
	wish(r, AT_DEST);
	/* By TCP the image is named there, too; otherwise it is the source's path. */
	if (r->way == 1)
		dest_start(&r->d, "there", "tcp:127.0.0.1:0", "--disk", r->disk.path, NULL);
	else
		dest_start(&r->d, "there", "unix:", r->way == 2 ? "--keep=3s" : "--keep=0", NULL);
	proc_fatal(r->d.proc, FATAL);
	unsetenv("GODWIT_FAULT");
	r->held = holdings(r->source, r->log);
	r->migrate = move_start(&r->g, r->d.uri, "--verify=full", "--timeout=30s",
				r->way ? "--connections=3" : "--connections=2",
				r->way == 2 ? "--reconnect=3s" : "--reconnect=0",
				r->leaves ? harness_path("--leave=%s", r->left) : NULL, NULL);
}

static bool came_about(const struct run *r)
{
	struct stat st;

	return stat(r->log, &st) == 0 && st.st_size > 0;
}

/* ---- the guest and its disk ---- */

/* Whatever is lost, and wherever the guest was: what it was told is durable is in the image. */
static void check_durable(const struct run *r)
{
	uint64_t here = disk_told(r->source, &r->disk), there = disk_told(r->d.proc, &r->disk);

	need(here || there, "nothing was durable before the move");
	disk_check(&r->disk, here > there ? here : there, false);
}

/* How many I/O errors the guest must have been told of by now. */
static unsigned errors_due(const struct run *r)
{
	return r->c.told && came_about(r) ? 1 : 0;
}

static bool was_told(void *arg)
{
	struct run *r = arg;
	const char *line;

	guest_send(&r->g, "r");
	line = guest_expect(&r->g, "^virtio t_ms=", MOVE_MS);
	return kv(line, "errors") == errors_due(r);
}

/* It runs, its disk is its own; it finds all as it should be, and ends; and so is the image. */
static void finish(struct run *r, struct proc *p)
{
	const char *line;
	uint64_t n;

	disk_in_use(r->disk.path);
	holds_again(p, r->held, r->log);
	proc_send(p, "q");
	line = proc_expect(p, "^virtio verify ", MOVE_MS);
	need(kv(line, "sectors") > 0, "%s", line);
	n = kv(line, "n");
	line = proc_expect(p, "^virtio memory ", MOVE_MS);
	need(kv(line, "pages") > 0 && kv(line, "writes") > 0 && kv(line, "errors") == 0, "%s",
	     line);
	line = proc_expect(p, "^virtio done ", MOVE_MS);
	need(kv(line, "errors") == errors_due(r), "%u I/O errors are due: %s", errors_due(r), line);
	proc_ended(p, 0, END_MS);
	need(image_is_free(r->disk.path), "%s is locked, and the guest has ended", r->disk.path);
	disk_check(&r->disk, n, true);
}

static void guest_is_lost(struct run *r)
{
	tally->lost++;
	r->gone = true;
}

/* ---- how a move ended ---- */

/* Does it wait for a source? In any case nothing runs there, nor is it said to. */
static bool listens(const struct run *r)
{
	struct proc *p = godwit_run(-1, "status", "--json", r->d.name, NULL);
	const char *state;

	if (p->status)
		return false;
	state = json_text(json_of(p->out.buf), "state");
	need(strcmp(state, "running") != 0, "nothing has come, and it says: %s", p->out.buf);
	return strcmp(state, "receiving") == 0 &&
	       strcmp(json_text(json_of(p->out.buf), "migration.phase"), "listening") == 0;
}

static bool has_ended(void *arg)
{
	return !proc_running(arg);
}

/* It ends soon, if it does: somebody else is asked only now and then. */
static bool ends_or_listens(void *arg)
{
	struct run *r = arg;

	return harness_until(has_ended, r->d.proc, ASK_MS) || listens(r);
}

/* The receiver ends, or waits on for a source that never came; no guest has run in it. */
static void nothing_there(struct run *r)
{
	const char *line;
	bool waits;
	int status;

	need(harness_until(ends_or_listens, r, END_MS), "the receiver does not end");
	waits = proc_running(r->d.proc);
	/* It may have just been reached by a source that is no more: then it ends by itself. */
	if (waits)
		godwit_run(-1, "cancel", r->d.name, NULL);
	status = proc_wait(r->d.proc, END_MS);
	line = proc_next(r->d.proc, 0);
	need(status == 1 || (r->c.kill && status == 128 + SIGKILL), "the receiver ended with %d",
	     status);
	need(!line, "a guest that did not move has run there: '%s'", line);
	need(status != 1 || waits || r->d.proc->err.len, "the receiver does not say why it ended");
}

/* It runs on here as if nothing had been: it can even be moved. */
static void stays(struct run *r)
{
	tally->stayed++;
	need(r->migrate->err.len, "nobody says why it did not move");
	nothing_there(r);
	need(harness_until(was_told, r, END_MS), "the guest was not told of the I/O error");
	holds_again(r->source, r->held, r->log);
	need(!image_is_free(r->disk.path), "%s is not locked", r->disk.path);
	guest_move(&r->g, NULL, "unix:", NULL);
	finish(r, r->g.proc);
}

/* The guest's memory as it left, or why it is not there. */
static void check_left(const struct run *r)
{
	const char *says = r->migrate->err.buf;
	struct stat st;

	if (r->c.leave && came_about(r)) {
		need(strstr(says, r->left) && strstr(says, "No space left on device"),
		     "it does not say why %s is not there: %s", r->left, says);
		return;
	}
	need(stat(r->left, &st) == 0 && st.st_size == RAM_BYTES, "%s has %lld bytes: %s", r->left,
	     (long long)st.st_size, says);
	unlink(r->left);
}

static void moved(struct run *r)
{
	tally->moved++;
	guest_moved(&r->g, &r->d);
	if (r->leaves)
		check_left(r);
	finish(r, r->g.proc);
}

static bool runs_there(struct run *r)
{
	if (!proc_running(r->d.proc))
		return false;
	proc_send(r->d.proc, "r");
	return proc_try(r->d.proc, "^virtio t_ms=", LOOK_MS);
}

/* Of the source; "ended" when its process has. */
static const char *state_now(struct run *r)
{
	struct proc *p = godwit_run(-1, "status", "--json", r->g.name, NULL);

	return p->status == 0 ? json_text(json_of(p->out.buf), "state") : "ended";
}

static bool is_over(void *arg)
{
	return strcmp(state_now(arg), "migrating") != 0;
}

/* It runs there: even a user who is wrong cannot have it run here, for its disk is there. */
static void discard(struct run *r)
{
	struct proc *p = godwit_run(1, "resolve", "--run", r->g.name, NULL);

	need(strstr(p->err.buf, "it stays paused") && strstr(p->err.buf, r->disk.path), "'%s'",
	     p->err.buf);
	guest_silent(r->source);
	godwit_run(0, "resolve", "--discard", r->g.name, NULL);
	proc_ended(r->source, 0, END_MS);
	finish(r, r->d.proc);
}

static bool is_free(void *arg)
{
	return image_is_free(((struct run *)arg)->disk.path);
}

/* It does not run there; it may have, for a moment, and then it has written its disk, or not. */
static void run_again(struct run *r)
{
	struct proc *p;

	if (proc_running(r->d.proc))
		proc_kill(r->d.proc, SIGKILL);
	proc_wait(r->d.proc, END_MS);
	need(harness_until(is_free, r, END_MS), "%s is locked, and nobody is there", r->disk.path);
	check_durable(r);
	p = godwit_run(-1, "resolve", "--run", r->g.name, NULL);
	if (p->status == 0) {
		finish(r, r->source);
		return;
	}
	need(p->status == 1 && strstr(p->err.buf, r->disk.path) &&
		     strstr(p->err.buf, "was written after this guest gave it up"),
	     "resolve ended with %d: '%s'", p->status, p->err.buf);
	godwit_run(0, "resolve", "--discard", r->g.name, NULL);
	proc_ended(r->source, 0, END_MS);
	guest_is_lost(r);
}

/* As a user does to whom `migrate` could not say how it ended. */
static void look(struct run *r)
{
	const char *state;

	/* The source had no memory left for an answer, perhaps: the move goes on. */
	need(harness_until(is_over, r, MOVE_MS), "the migration does not end");
	state = state_now(r);
	if (strcmp(state, "ended") == 0) {
		moved(r);
		return;
	}
	if (strcmp(state, "running") == 0) {
		stays(r);
		return;
	}
	tally->uncertain++;
	need(strcmp(state, "uncertain") == 0, "exit code 3, and the state is %s", state);
	guest_silent(r->source);
	if (runs_there(r))
		discard(r);
	else
		run_again(r);
}

/* The source has died: either it had handed the guest over, or the guest has died with it. */
static void source_died(struct run *r)
{
	proc_wait(r->source, END_MS);
	if (runs_there(r)) {
		tally->moved++;
		finish(r, r->d.proc);
		return;
	}
	nothing_there(r);
	guest_is_lost(r);
}

/* ---- what is due after this fault ---- */

/* A guest that stood before the fault was over waited in vain. */
static bool was_over(const struct run *r)
{
	const json_t *j = json_of(r->migrate->out.buf);

	return json_num(j, "total_ms") - json_num(j, "downtime_ms") >
	       (double)(FAULT_HANG_NS / NS_PER_MS) - QUIESCE_MS;
}

static void check_end(const struct run *r, int status)
{
	const char *says = r->migrate->err.buf;
	bool due = true;

	switch (r->c.ends) {
	case ENDS_ANYHOW:
		break;
	case ENDS_MOVED:
		due = status == 0;
		break;
	case ENDS_FAILED:
		due = status == 1;
		break;
	case ENDS_LATE:
		due = status == 1 || (status == 0 && was_over(r));
		break;
	case ENDS_UNCERTAIN:
		due = status == 3;
		break;
	}
	need(due, "migrate ended with %d: %s", status, status ? says : r->migrate->out.buf);
	if (status == 0)
		return;
	need(!r->c.says || strstr(says, r->c.says), "it does not say '%s': %s", r->c.says, says);
	need(!r->c.names_disk || strstr(says, r->disk.path) ||
		     strstr(r->d.proc->err.buf, r->disk.path),
	     "neither side says which disk: %s", says);
}

/* Whoever lists guests clears away after those that have died. */
static bool is_cleared(void *arg)
{
	(void)arg;
	godwit_run(-1, "list", NULL);
	return folder_is_empty(getenv("GODWIT_RUNDIR"));
}

/* All have ended, each in its own way; a process that was killed could not clear up. */
static void nothing_left(struct run *r)
{
	bool dead = r->d.proc->status == 128 + SIGKILL;

	proc_wait(r->source, END_MS);
	proc_wait(r->d.proc, END_MS);
	no_process_left();
	/* A request that the kernel still has keeps the lock of a process that was killed. */
	need(harness_until(is_free, r, r->c.kill || dead ? END_MS : 0),
	     "%s is locked, and all have ended", r->disk.path);
	if (r->gone)
		check_durable(r);
	if (r->c.kill || dead)
		need(harness_until(is_cleared, r, END_MS), "the dead are still listed");
	folder_holds_only(getenv("GODWIT_RUNDIR"), "^$");
	folder_holds_only(getenv("TMPDIR"), "^$");
	folder_holds_only(harness_tmp(), dead ? "^(run|tmp|fault|disk|move0|.*\\.(out|err))$"
					      : "^(run|tmp|fault|disk|.*\\.(out|err))$");
}

static unsigned moves, cells, only;

START_TEST(one)
{
	unsigned i = moves == UINT_MAX ? (unsigned)_i : fault_pick((unsigned)_i, moves);
	struct run r = {.way = i / cells % 3, .c = fault_cell(i % cells)};
	bool came;
	int status;

	r.leaves = r.c.leave || r.way == 2;
	start(&r);
	harness_say("%u: %s at %s, way %u", i + 1, r.c.fault,
		    r.c.sides == AT_BOTH     ? "both sides"
		    : r.c.sides == AT_SOURCE ? "the source"
					     : "the destination",
		    r.way);
	status = proc_wait(r.migrate, MOVE_MS);
	came = came_about(&r);
	need(came || status == 0, "it failed without a fault: %s", r.migrate->err.buf);
	if (came)
		check_end(&r, status);
	if (r.c.kill && r.c.sides == AT_SOURCE && came) {
		source_died(&r);
	} else if (status == 0) {
		moved(&r);
	} else if (status == 3) {
		look(&r);
	} else {
		need(status == 1, "migrate ended with %d", status);
		stays(&r);
	}
	nothing_left(&r);
	if (came_about(&r))
		tally->came++;
	else
		tally->none++;
}
END_TEST

/* A host that stands still for a second in a round of few bytes is not taken for a slow network. */
START_TEST(hiccup)
{
	struct guest g;
	struct dest d;
	struct move m;

	unsetenv("GODWIT_FAULT");
	dirty_start(&g, "vm", "64M", "ws=64K kind=idle report=0");
	setenv("GODWIT_FAULT_LOG", harness_path("%s/fault", harness_tmp()), 1);
	setenv("GODWIT_FAULT", "delay@recv-PAGES", 1);
	dest_start(&d, "there", "unix:", NULL);
	unsetenv("GODWIT_FAULT");
	move_report(move_start(&g, d.uri, NULL), 0, &m, MOVE_MS);
	need(m.total_ms > 1000 && m.rounds > 2, "it was not held up: %s",
	     json_dumps(m.json, JSON_COMPACT));
	guest_moved(&g, &d);
	dirty_intact(&g);
	dirty_finish(&g);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("fault-matrix");
	int status;

	if (!harness_kvm_works())
		return harness_skip_all("no KVM guest runs here");
	tally = mmap(NULL, sizeof(*tally), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		     0);
	if (tally == MAP_FAILED) {
		perror("mmap");
		return 1;
	}
	cells = fault_cells();
	moves = harness_env("GODWIT_TEST_FAULTS", 40);
	only = harness_env("GODWIT_TEST_FAULT", UINT_MAX);
	if (only != UINT_MAX)
		moves = UINT_MAX;
	tcase_add_loop_test(harness_case(s, "one", 240), one, only == UINT_MAX ? 0 : (int)only - 1,
			    only == UINT_MAX ? (int)moves : (int)only);
	if (only == UINT_MAX)
		tcase_add_test(harness_case(s, "hiccup", 120), hiccup);
	fprintf(stderr, "%u moves over %u cells\n", moves, cells);
	status = harness_main(s);
	fprintf(stderr,
		"%u faults came about, %u did not; %u moved, %u stayed, %u were uncertain, %u "
		"died with their source\n",
		tally->came, tally->none, tally->moved, tally->stayed, tally->uncertain,
		tally->lost);
	return status;
}
