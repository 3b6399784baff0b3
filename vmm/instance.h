/* SPDX-License-Identifier: MIT */
/*
 * The one guest of a process: its loop, its console, its machine, its name and control socket, and
 * at most one migration. What `run` and `receive` have in common, which is all but the beginning.
 *
 *	                instance_boot()
 *	instance_init() -----------------> running <-> paused ---> ended: guest, user, crash
 *	       |                            |   ^  \
 *	       | instance_receive()         |   |   `-- reset: a new machine in its place
 *	       v                            v   | failed, cancelled
 *	   receiving ---- arrived ------>  migrating -----------> ended: moved
 *	       |                            |
 *	       v                            v
 *	     ended: nothing came           uncertain: paused until the user decides
 *
 * Everything here runs on the loop's thread. What opens files, makes machines or starts threads it
 * has done by the helper (confine.h), and waits for it. What ends an operation (a machine's end, a
 * migration's) is handled by a task of the instance's own, never within the callback that tells of
 * it: the handler frees what called.
 */
#ifndef GODWIT_INSTANCE_H
#define GODWIT_INSTANCE_H

#include <stdbool.h>
#include <stdint.h>

#include "../migrate/migrate.h"
#include "chan.h"
#include "confine.h"
#include "console.h"
#include "cpuid.h"
#include "ctl.h"
#include "log.h"
#include "loop.h"
#include "rundir.h"
#include "vm.h"

/* A request of the control socket whose answer waits for something to happen. */
struct waiter {
	struct waiter *next;
	struct ctl_client *client;
	enum waiter_kind {
		WAIT_MIGRATE, /* gets progress, and the report */
		WAIT_CANCEL,
		WAIT_STOP,
	} kind;
	uint64_t deadline_ns; /* of a stop; 0 for none */
};

struct instance {
	/* Set by the command before it boots or receives. */
	struct vm_config cfg;
	struct cpuid cpuid;
	bool no_reboot;
	bool start_paused;
	bool json; /* receive: the report goes to stdout */

	struct confine confine;
	struct loop loop;
	struct chan serial;
	struct console console;
	struct rundir_claim claim;
	struct ctl *ctl;
	struct vm *vm; /* NULL while receiving, and for a moment in a reset */
	uint64_t started_ns;
	bool loop_up, serial_up, console_up;

	struct migration *migration;
	char migration_uri[MIGRATE_URI_MAX];
	uint64_t migration_start_ns;
	struct migrate_stats last; /* of the latest migration from here, once it has ended */
	bool has_last;
	bool cancelled_by_end; /* not the user: the guest powered off or reset meanwhile */
	struct receiver *receiver;
	char receive_uri[MIGRATE_URI_MAX];

	struct waiter *waiters;
	struct loop_op tick_op; /* while there are waiters: progress, deadlines */
	struct loop_task end_task, migrated_task, received_task, serve_task;

	int signal_fd;
	struct loop_op signal_op;

	bool stop_wanted; /* end it as soon as no migration is in the way */
	int stop_status;  /* and this is the process's exit status then */
	bool moved;
	bool arrived; /* came from elsewhere, as did its paths unless they were replaced */
	bool quitting;
	int exit_status;
};

/*
 * Loop, serial line and signals. SIGINT, SIGTERM and SIGHUP end the guest
 * from here on. -errno with the cause in err; instance_destroy() it in any case.
 */
int instance_init(struct instance *in, struct errmsg *err);

/*
 * The same for a process that is to have little: it becomes that user ("": stays who it is), and is
 * confined from instance_run() on; what this thread may not do any more is then done by
 * confine_call(). Before there are threads. -errno as above.
 */
int instance_init_confined(struct instance *in, const char *user, enum confine_mode mode,
			   struct errmsg *err);

/* Takes a name ("": the first free of vm1, vm2, ...) and opens its control socket. -errno. */
int instance_claim(struct instance *in, const char *name, struct errmsg *err);

/*
 * Builds the machine of in->cfg with the CPU in->cpuid, boots its kernel and lets it run, with the
 * console on it. -errno with the cause in err.
 */
int instance_boot(struct instance *in, struct errmsg *err);

/*
 * Listens for a guest and takes it in; in->receive_uri is where. Without a claimed name it gets the
 * source's, or that with a number. kernel and initrd replace the source's paths unless "".
 * -errno with the cause in err.
 */
int instance_receive(struct instance *in, const struct receive_options *opt, const char *kernel,
		     const char *initrd, struct errmsg *err);

/* Runs until all is over, confined. The process's exit status. */
int instance_run(struct instance *in);

void instance_destroy(struct instance *in);

/* ---- between instance.c and instance_ctl.c ---- */

extern const struct ctl_handler instance_handlers[];

/*
 * Ends the guest, after giving up a migration that is in the way; the process then exits with
 * status. -EALREADY when a handover is being committed: it is ended, or has moved, after that.
 */
int instance_stop(struct instance *in, int status);

/* Starts a migration. Errors as migrate_start(). */
int instance_migrate(struct instance *in, const struct migrate_options *opt, struct errmsg *err);

/* Is the outcome of a handover unknown, and the guest therefore not ours to run? */
bool instance_uncertain(struct instance *in);

/* Has the power button been pressed for somebody who waits for the end? */
bool instance_stop_pending(const struct instance *in);

/* The migration has ended with in->last: answers who waited for that. */
void instance_answer_migration(struct instance *in);

/* The process ends: answers everybody. */
void instance_answer_all(struct instance *in);

#endif
