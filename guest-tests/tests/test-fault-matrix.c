/* SPDX-License-Identifier: MIT */
/*
 * Moves in which one thing goes wrong, of every kind and at every place there is (vmm/fault.h), on
 * either side; and what must be true after each: one side owns the guest, its memory is as it
 * should be, a user was told why, and nothing is left behind.
 *
 * GODWIT must name a build with FAULTS=1. GODWIT_TEST_FAULTS is the number of moves; beyond the
 * size of the matrix they go over it again, in another way: by TCP, over more connections, with
 * connections that are made anew. GODWIT_TEST_FAULT: only the one with this number.
 */
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "faults.h"

#define READY_MS 30000
#define MOVE_MS 90000
#define END_MS 20000
#define LOOK_MS 3000

/* ---- the matrix ---- */

struct cell {
	bool at_dest;
	bool kill, damage; /* memory or stream: must be found out */
	char fault[64];
};

static const char *const to_dest[] = {"HELLO",	   "PING",  "PAGES", "JOIN",
				      "ROUND_END", "STATE", "PROOF", "COMMIT"};
static const char *const to_source[] = {"HELLO_OK", "PONG", "ROUND_ACK", "READY", "RUNNING"};
#define N_TO_DEST ((unsigned)(sizeof(to_dest) / sizeof(*to_dest)))
#define N_FRAMES (N_TO_DEST + (unsigned)(sizeof(to_source) / sizeof(*to_source)))
static const char *const frame_faults[] = {"kill", "cut", "delay", "wire"};
#define N_FRAME_FAULTS ((unsigned)(sizeof(frame_faults) / sizeof(*frame_faults)))

/* Places that are come to often: which time, up to `last`, every `step`. */
static const struct series {
	const char *fault;
	bool at_source, at_dest, damage;
	unsigned last, step;
} series[] = {
	{"refuse@kvm", true, true, false, 60, 1},      {"enomem@alloc", true, true, false, 60, 1},
	{"short@send", true, true, false, 12, 1},      {"ram@stored", false, true, true, 2000, 200},
	{"dirty@harvest", true, false, true, 300, 20},
};
#define N_SERIES ((unsigned)(sizeof(series) / sizeof(*series)))

static void frame_cell(unsigned i, struct cell *c)
{
	unsigned kind = i % N_FRAME_FAULTS, frame = i / N_FRAME_FAULTS % N_FRAMES;
	bool forth = frame < N_TO_DEST;

	c->at_dest = i / N_FRAME_FAULTS / N_FRAMES;
	c->kill = kind == 0;
	snprintf(c->fault, sizeof(c->fault), "%s@%s-%s", frame_faults[kind],
		 forth == c->at_dest ? "recv" : "send",
		 forth ? to_dest[frame] : to_source[frame - N_TO_DEST]);
}

/* The i-th cell; false: there are not so many. */
static bool cell_of(unsigned i, struct cell *c)
{
	*c = (struct cell){.at_dest = false};
	if (i < 2 * N_FRAMES * N_FRAME_FAULTS) {
		frame_cell(i, c);
		return true;
	}
	i -= 2 * N_FRAMES * N_FRAME_FAULTS;
	for (unsigned k = 0; k < N_SERIES; k++) {
		const struct series *s = &series[k];
		unsigned n = (s->last + s->step - 1) / s->step;

		for (unsigned side = 0; side < 2; side++) {
			if (!(side ? s->at_dest : s->at_source))
				continue;
			if (i < n) {
				c->at_dest = side;
				c->damage = s->damage;
				snprintf(c->fault, sizeof(c->fault), "%s#%u", s->fault,
					 1 + i * s->step);
				return true;
			}
			i -= n;
		}
	}
	return false;
}

static unsigned n_cells(void)
{
	struct cell c;
	unsigned n = 0;

	while (cell_of(n, &c))
		n++;
	return n;
}

/* ---- one move ---- */

/* Of all moves: the tests are processes of their own. */
static struct tally {
	unsigned came, none, moved, stayed, uncertain, lost;
} * tally;

struct run {
	struct cell c;
	unsigned way;
	struct guest g;
	struct dest d;
	struct proc *migrate;
	const char *log;
};

static void wish(const struct run *r, bool at_dest)
{
	if (r->c.at_dest == at_dest)
		setenv("GODWIT_FAULT", r->c.fault, 1);
	else
		unsetenv("GODWIT_FAULT");
}

static void start(struct run *r)
{
	r->log = harness_path("%s/fault", harness_tmp());
	setenv("GODWIT_FAULT_LOG", r->log, 1);
	wish(r, false);
	guest_start(&r->g, "vm", "-q", "-m", "64M", "-k", bare_elf("dirty"), "-p", "ws=8M rate=4M",
		    NULL);
	proc_fatal(r->g.proc, "^dirty (error|panic) ");
	guest_expect(&r->g, "^dirty ready ", READY_MS);
	wish(r, true);
	dest_start(&r->d, "there", r->way == 1 ? "tcp:127.0.0.1:0" : "unix:",
		   r->way == 2 ? "--keep=3s" : "--keep=0", NULL);
	unsetenv("GODWIT_FAULT");
	r->migrate = move_start(&r->g, r->d.uri, "--verify=full", "--timeout=30s",
				r->way ? "--connections=3" : "--connections=2",
				r->way == 2 ? "--reconnect=3s" : "--reconnect=0", NULL);
}

static bool came_about(const struct run *r)
{
	struct stat st;

	return stat(r->log, &st) == 0 && st.st_size > 0;
}

static void finish(struct proc *p)
{
	proc_send(p, "q");
	proc_expect(p, "^dirty done .* errors=0$", MOVE_MS);
	proc_ended(p, 0, END_MS);
}

static bool has_ended(void *arg)
{
	return !proc_running(arg);
}

static bool listens(const struct run *r)
{
	struct proc *p = godwit_run(-1, "status", "--json", r->d.name, NULL);

	return p->status == 0 &&
	       strcmp(json_text(json_of(p->out.buf), "migration.phase"), "listening") == 0;
}

/* The receiver ends, or waits on for a source that never came; no guest has run in it. */
static void nothing_there(struct run *r)
{
	bool waits = !harness_until(has_ended, r->d.proc, LOOK_MS) && listens(r);
	const char *line;
	int status;

	if (waits)
		godwit_run(0, "cancel", r->d.name, NULL);
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
	guest_move(&r->g, NULL, "unix:", NULL);
	finish(r->g.proc);
}

static bool runs_there(struct run *r)
{
	if (!proc_running(r->d.proc))
		return false;
	proc_send(r->d.proc, "r");
	return proc_try(r->d.proc, "^dirty t_ms=", LOOK_MS);
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

/* As a user does to whom `migrate` could not say how it ended. */
static void look(struct run *r)
{
	const char *state;

	/* The source had no memory left for an answer, perhaps: the move goes on. */
	need(harness_until(is_over, r, MOVE_MS), "the migration does not end");
	state = state_now(r);
	if (strcmp(state, "ended") == 0) {
		tally->moved++;
		guest_moved(&r->g, &r->d);
		finish(r->g.proc);
		return;
	}
	if (strcmp(state, "running") == 0) {
		stays(r);
		return;
	}
	tally->uncertain++;
	need(strcmp(state, "uncertain") == 0, "exit code 3, and the state is %s", state);
	guest_silent(r->g.proc);
	if (runs_there(r)) {
		guest_silent(r->g.proc);
		godwit_run(0, "resolve", "--discard", r->g.name, NULL);
		finish(r->d.proc);
		return;
	}
	if (proc_running(r->d.proc))
		proc_kill(r->d.proc, SIGKILL);
	proc_wait(r->d.proc, END_MS);
	godwit_run(0, "resolve", "--run", r->g.name, NULL);
	finish(r->g.proc);
}

/* The source has died: either it had handed the guest over, or the guest has died with it. */
static void source_died(struct run *r)
{
	proc_wait(r->g.proc, END_MS);
	if (runs_there(r)) {
		tally->moved++;
		finish(r->d.proc);
		return;
	}
	tally->lost++;
	nothing_there(r);
}

static void nothing_left(const struct run *r)
{
	const char *folder = getenv("GODWIT_RUNDIR");
	DIR *dir = opendir(folder);
	struct dirent *e;

	/* What a process leaves that was killed, the next one removes. */
	if (!dir || r->c.kill)
		goto out;
	while ((e = readdir(dir)))
		need(!strstr(e->d_name, ".sock"), "%s/%s is left behind", folder, e->d_name);
out:
	if (dir)
		closedir(dir);
}

static unsigned moves, cells, only;

START_TEST(one)
{
	/* In few moves as much as possible of it. */
	unsigned i = moves < cells ? (unsigned)_i * cells / moves : (unsigned)_i;
	struct run r = {.way = i / cells % 3};
	int status;

	cell_of(i % cells, &r.c);
	start(&r);
	harness_say("%u: %s at the %s, way %u", i, r.c.fault,
		    r.c.at_dest ? "destination" : "source", r.way);
	status = proc_wait(r.migrate, MOVE_MS);
	if (came_about(&r))
		tally->came++;
	else
		tally->none++;
	if (r.c.kill && !r.c.at_dest && came_about(&r)) {
		source_died(&r);
	} else if (status == 0) {
		tally->moved++;
		guest_moved(&r.g, &r.d);
		finish(r.g.proc);
	} else if (status == 3) {
		look(&r);
	} else {
		need(status == 1, "migrate ended with %d", status);
		need(came_about(&r), "it failed without a fault: %s", r.migrate->err.buf);
		stays(&r);
	}
	nothing_left(&r);
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
	cells = n_cells();
	moves = harness_env("GODWIT_TEST_FAULTS", 40);
	only = harness_env("GODWIT_TEST_FAULT", UINT_MAX);
	if (only != UINT_MAX)
		moves = UINT_MAX;
	tcase_add_loop_test(harness_case(s, "one", 240), one, only == UINT_MAX ? 0 : (int)only,
			    only == UINT_MAX ? (int)moves : (int)only + 1);
	fprintf(stderr, "%u moves over %u cells\n", moves, cells);
	status = harness_main(s);
	fprintf(stderr,
		"%u faults came about, %u did not; %u moved, %u stayed, %u were uncertain, %u "
		"died with their source\n",
		tally->came, tally->none, tally->moved, tally->stayed, tally->uncertain,
		tally->lost);
	return status;
}
