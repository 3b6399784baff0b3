/* SPDX-License-Identifier: MIT */
/* Starting the workers: which ones a mode has, and what a fresh worker must let go of. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "records.h"
#include "supervise.h"

struct pair_fds {
	int pipe_in, pipe_out, ring;
};

/*
 * In the new process: no way to the serial line (only the supervisor may write there), no signals
 * blocked, and no life beyond the supervisor's.
 */
static void detach(struct guest *g)
{
	int null = open("/dev/null", O_RDWR);
	sigset_t none;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	for (int fd = 0; null >= 0 && fd < 3; fd++)
		dup2(null, fd);
	if (null > 2)
		close(null);
	close(g->msg_in);
	close(g->child_fd);
	if (g->kmsg_fd >= 0)
		close(g->kmsg_fd);
}

static void start_one(struct guest *g, const char *kind, unsigned int number,
		      void (*run)(struct worker *w), bool answers, const struct pair_fds *fds)
{
	struct worker w = {
		.index = g->workers,
		.number = number,
		.msg_fd = g->msg_out,
		.pipe_in = fds ? fds->pipe_in : -1,
		.pipe_out = fds ? fds->pipe_out : -1,
		.ring_fd = fds ? fds->ring : -1,
		.opt = &g->opt,
		.sh = g->sh,
	};
	pid_t pid;

	if (g->workers == WORKER_MAX) {
		guest_error(g, "no room for worker %s%u", kind, number);
		return;
	}
	w.slot = &g->sh->slots[w.index];
	snprintf(w.slot->name, sizeof(w.slot->name), "%s%u", kind, number);
	w.slot->answers = answers;
	/* Only memory workers have anything to fill. */
	atomic_store(&w.slot->full, run != work_mem);
	pid = fork();
	if (pid < 0) {
		guest_error(g, "starting %s: %s", w.slot->name, strerror(errno));
		return;
	}
	if (pid == 0) {
		detach(g);
		worker_hold(&w);
		run(&w);
		_exit(1);
	}
	w.slot->pid = pid;
	g->workers++;
}

static void start_pair(struct guest *g)
{
	int there[2] = {-1, -1}, back[2] = {-1, -1};
	int ring = memfd_create("gt-ring", MFD_CLOEXEC);

	if (ring < 0 || ftruncate(ring, PAIR_RING_BYTES) < 0 || pipe2(there, O_CLOEXEC) < 0 ||
	    pipe2(back, O_CLOEXEC) < 0) {
		guest_error(g, "starting the pair: %s", strerror(errno));
	} else {
		start_one(g, "send", 0, work_send, true,
			  &(struct pair_fds){back[0], there[1], ring});
		start_one(g, "recv", 0, work_recv, false,
			  &(struct pair_fds){there[0], back[1], ring});
	}
	/*
	 * The two have their own copies. That each also has the other's ends does no harm: their
	 * death is reported.
	 */
	for (int i = 0; i < 2; i++) {
		if (there[i] >= 0)
			close(there[i]);
		if (back[i] >= 0)
			close(back[i]);
	}
	if (ring >= 0)
		close(ring);
}

static void start_disk(struct guest *g)
{
	static void (*const runs[RECORDS_KINDS])(struct worker * w) = {
		[RECORDS_IN_LOG] = work_log,
		[RECORDS_IN_SLOTS] = work_slots,
		[RECORDS_IN_SWAP] = work_swap,
		[RECORDS_IN_NAMES] = work_names,
	};

	for (int kind = 0; kind < RECORDS_KINDS; kind++) {
		struct slot *s = &g->sh->slots[g->workers];

		start_one(g, records_names[kind], 0, runs[kind], true, NULL);
		s->writes = true;
		/* Once it has begun. It waits for an order. */
		atomic_store(&s->full, 0);
	}
}

void start_workers(struct guest *g)
{
	const struct options *o = &g->opt;

	if (o->mode != MODE_STRESS && o->mode != MODE_IDLE && o->mode != MODE_DISK)
		return;
	for (unsigned int i = 0; o->clock && i < g->cpus; i++)
		start_one(g, "clock", i, work_clock, false, NULL);
	for (unsigned int i = 0; i < o->procs; i++)
		start_one(g, "mem", i, work_mem, true, NULL);
	if (o->mode == MODE_DISK)
		start_disk(g);
	if (o->mode != MODE_STRESS)
		return;
	if (o->pair_us)
		start_pair(g);
	if (o->churn_ms)
		start_one(g, "churn", 0, work_churn, true, NULL);
	if (o->regs_us)
		start_one(g, "regs", 0, work_regs, true, NULL);
}
