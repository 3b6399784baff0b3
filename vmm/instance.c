/* SPDX-License-Identifier: MIT */
#include "instance.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "boot.h"
#include "cmd.h"
#include "config.h"
#include "config_devices.h"
#include "instance_text.h"
#include "machine.h"
#include "report.h"

#define RECEIVER_NS (30 * NS_PER_SEC) /* for a receiver to end that has been told to */
#define FLUSH_NS                                                                                   \
	(2 * NS_PER_SEC) /* a reader of stdout that takes nothing is not waited for longer */

static void quit(struct instance *in, int status)
{
	if (in->quitting)
		return;
	in->quitting = true;
	in->exit_status = status;
	loop_stop(&in->loop);
}

bool instance_uncertain(struct instance *in)
{
	return in->vm && (vm_paused(in->vm) & VM_PAUSE_LOST);
}

int instance_stop(struct instance *in, int status)
{
	int ret = 0;

	in->stop_wanted = true;
	in->stop_status = status;
	if (in->receiver)
		ret = receive_cancel(in->receiver);
	else if (in->migration)
		ret = migrate_cancel(in->migration);
	else if (in->vm)
		vm_set_end(in->vm, VM_END_STOPPED, "stopped by the user");
	else
		quit(in, status);
	return ret;
}

/* Someone who cannot be asked back (a signal, Ctrl-A x) wants the process to end. */
static void end_by_force(struct instance *in, int status, const char *who)
{
	bool again;

	if (in->quitting)
		return;
	if (instance_uncertain(in)) {
		log_error("%s: this side's paused copy of '%s' is discarded; whether it runs at %s "
			  "is not known",
			  who, in->claim.name, in->migration_uri);
		quit(in, EXIT_UNCERTAIN);
		return;
	}
	again = in->stop_wanted;
	if (instance_stop(in, status) != -EALREADY)
		return;
	if (!again) {
		log_warn("%s: a handover is being committed, waiting for its outcome", who);
		return;
	}
	log_error("%s: left while a handover was being committed; whether the guest runs at the "
		  "other side is not known",
		  who);
	quit(in, EXIT_UNCERTAIN);
}

static void on_quit_key(void *arg)
{
	end_by_force(arg, EXIT_DONE, "Ctrl-A x");
}

/* ---- signals ---- */

static void on_signal(struct loop_op *op, int32_t res)
{
	struct instance *in = container_of(op, struct instance, signal_op);
	struct signalfd_siginfo si;

	if (res == -ECANCELED)
		return;
	while (read(in->signal_fd, &si, sizeof(si)) == (ssize_t)sizeof(si)) {
		int signo = (int)si.ssi_signo;
		char who[16];

		snprintf(who, sizeof(who), "SIG%s", sigabbrev_np(signo));
		log_debug("got %s", who);
		end_by_force(in, EXIT_SIGNAL + signo, who);
	}
	if (!in->quitting)
		loop_poll(&in->loop, &in->signal_op, in->signal_fd, POLLIN);
}

static int init_signals(struct instance *in, struct errmsg *err)
{
	sigset_t set;

	/* Before any thread is there: all of them inherit the mask, and only the loop is told. */
	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGHUP);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	in->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (in->signal_fd < 0)
		return errmsg_set(err, -errno, "signalfd: %s", strerror(errno));
	in->signal_op.done = on_signal;
	loop_poll(&in->loop, &in->signal_op, in->signal_fd, POLLIN);
	return 0;
}

/* ---- the machine ---- */

/* Gives the guest this process's stdin and stdout. It can do without them. */
static int open_console(void *arg)
{
	struct instance *in = arg;
	int ret = console_init(&in->console, &in->loop, &in->serial, STDIN_FILENO, STDOUT_FILENO,
			       on_quit_key, in);

	if (ret) {
		log_warn("no serial line for the guest: %s", strerror(-ret));
		return ret;
	}
	in->console_up = true;
	ret = console_attach(&in->console);
	if (ret)
		log_warn("no input for the guest: %s", strerror(-ret));
	return 0;
}

static void on_vm_end(struct vm *vm, void *arg)
{
	struct instance *in = arg;

	(void)vm;
	loop_post(&in->loop, &in->end_task);
}

/* What is to be done by confine_call(), and why it was not. */
struct call {
	struct instance *in;
	struct errmsg *err;
};

static int start_machine(void *arg)
{
	struct call *call = arg;
	struct instance *in = call->in;
	struct errmsg *err = call->err;
	struct boot_info info;
	struct vm *vm;
	int ret;

	ret = machine_create(&vm, &in->cfg, &in->cpuid, &in->loop, &in->serial, err);
	if (ret)
		return ret;
	vm->on_end = on_vm_end;
	vm->on_end_arg = in;
	ret = boot_load(vm, &info, err);
	if (ret == 0)
		ret = vm_acquire_devices(vm, err);
	if (ret == 0)
		ret = vm_start(vm, err);
	if (ret) {
		vm_destroy(vm);
		return ret;
	}
	in->vm = vm;
	in->started_ns = now_ns();
	if (in->start_paused)
		vm_pause(vm, VM_PAUSE_USER);
	vm_resume(vm, VM_PAUSE_START);
	return 0;
}

static int start_machine_by_helper(struct instance *in, struct errmsg *err)
{
	struct call call = {.in = in, .err = err};

	return confine_call(in->cfg.confine, start_machine, &call);
}

/* What it has is known: only passt is a program. */
static void settle_helper(const struct instance *in)
{
	const struct vm_devices *d = &in->cfg.devices;

	for (uint32_t i = 0; i < d->n_nets; i++) {
		if (d->net[i].kind == VM_NET_USER)
			return;
	}
	confine_helper(in->cfg.confine);
}

/*
 * Says what of a guest that came from elsewhere is not on this host: its next reset needs it. The
 * paths are the source's words.
 */
static void warn_of_files(const struct vm_config *cfg)
{
	const struct {
		const char *what, *path, *option;
	} files[] = {{"kernel", cfg->kernel, "-k"}, {"initrd", cfg->initrd, "-i"}};
	char path[VM_PATH_MAX];

	for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
		if (!files[i].path[0] || access(files[i].path, R_OK) == 0)
			continue;
		log_warn("%s %s is not on this host: the guest ends when it resets. 'godwit "
			 "receive %s FILE' names another, --no-reboot says that none is needed",
			 files[i].what, text_plain(path, sizeof(path), files[i].path),
			 files[i].option);
	}
}

/* A reset: the same machine anew, with a new VM in the place of the old one. */
static void restart(struct instance *in)
{
	struct errmsg err = {""}, plain;
	struct vm *old = in->vm;

	log_debug("guest reset");
	in->start_paused = vm_paused(old) & VM_PAUSE_USER;
	/*
	 * A device that is let go may run the loop until the kernel has let go of it, too: a
	 * request or a signal that comes then must not find a machine that is half gone, and one to
	 * end all is not forgotten.
	 */
	in->vm = NULL;
	vm_destroy(old);
	if (in->quitting)
		return;
	if (start_machine_by_helper(in, &err)) {
		log_error("'%s' reset and cannot be booted again: %s%s", in->cfg.name,
			  text_plain(plain.text, sizeof(plain.text), err.text),
			  in->arrived ? "; 'godwit receive -k KERNEL -i INITRD' takes a guest in "
					"with files of this host"
				      : "");
		quit(in, EXIT_FAILED);
	}
}

/* The machine has ended, and no migration holds it. */
static void handle_end(struct instance *in)
{
	enum vm_end end = in->vm ? vm_get_end(in->vm) : VM_END_NONE;

	if (in->quitting || in->migration || in->receiver)
		return;
	switch (end) {
	case VM_END_NONE:
		break;
	case VM_END_POWEROFF:
		log_debug("guest powered off");
		quit(in, EXIT_DONE);
		break;
	case VM_END_RESET:
		/* Many a small guest answers the power button with a reboot. */
		if (in->stop_wanted || instance_stop_pending(in)) {
			quit(in, in->stop_status);
		} else if (in->no_reboot) {
			log_info("guest reset: the end, because of --no-reboot");
			quit(in, EXIT_DONE);
		} else {
			restart(in);
		}
		break;
	case VM_END_CRASH:
		log_error("guest crashed: %s", in->vm->end_why.text);
		quit(in, EXIT_FAILED);
		break;
	case VM_END_STOPPED:
		quit(in, in->stop_status);
		break;
	case VM_END_MOVED:
		quit(in, EXIT_DONE);
		break;
	}
}

static void on_end_task(struct loop_task *task)
{
	struct instance *in = container_of(task, struct instance, end_task);

	/* With the guest gone its move has no purpose; what is left is seen to when it is over. */
	if (in->migration && vm_get_end(in->vm) != VM_END_MOVED)
		in->cancelled_by_end = migrate_cancel(in->migration) == 0;
	handle_end(in);
}

/* ---- moving away ---- */

static void on_migrated(void *arg)
{
	struct instance *in = arg;

	loop_post(&in->loop, &in->migrated_task);
}

struct migrate_call {
	struct call call;
	const struct migrate_options *opt;
};

static int start_migration(void *arg)
{
	struct migrate_call *c = arg;
	struct instance *in = c->call.in;

	return migrate_start(&in->migration, in->vm, c->opt, on_migrated, in, c->call.err);
}

int instance_migrate(struct instance *in, const struct migrate_options *opt, struct errmsg *err)
{
	struct migrate_call c = {.call = {.in = in, .err = err}, .opt = opt};
	int ret = confine_call(in->cfg.confine, start_migration, &c);

	if (ret)
		return ret;
	memcpy(in->migration_uri, opt->uri, sizeof(in->migration_uri));
	in->migration_start_ns = now_ns();
	log_debug("moving '%s' to %s", in->cfg.name, opt->uri);
	return 0;
}

static void on_migrated_task(struct loop_task *task)
{
	struct instance *in = container_of(task, struct instance, migrated_task);
	const char *name = in->cfg.name;

	migrate_get_stats(in->migration, &in->last);
	in->has_last = true;
	migrate_free(in->migration);
	in->migration = NULL;
	if (in->cancelled_by_end && in->last.status == MIGRATE_CANCELLED) {
		in->last.status = MIGRATE_FAILED;
		in->last.error = (struct errmsg){"the guest ended during the migration"};
	}
	in->cancelled_by_end = false;

	switch (in->last.status) {
	case MIGRATE_COMPLETED:
		log_info("%s moved to %s", name, in->migration_uri);
		in->moved = true;
		instance_answer_migration(in);
		quit(in, EXIT_DONE);
		return;
	case MIGRATE_UNCERTAIN:
		log_error("%s: %s. It stays paused: 'godwit resolve %s --run' if its receiver at "
			  "%s has ended and it never ran there, 'godwit resolve %s --discard' if "
			  "it runs there",
			  name, in->last.error.text, name, in->migration_uri, name);
		instance_answer_migration(in);
		/* Who wanted it ended did not know of this. */
		if (in->stop_wanted && in->stop_status > EXIT_SIGNAL)
			quit(in, EXIT_UNCERTAIN);
		in->stop_wanted = false;
		return;
	case MIGRATE_FAILED:
		log_warn("%s was not moved to %s: %s", name, in->migration_uri,
			 in->last.error.text);
		break;
	case MIGRATE_CANCELLED:
		log_info("%s was not moved to %s: cancelled", name, in->migration_uri);
		break;
	}
	instance_answer_migration(in);
	if (in->stop_wanted)
		vm_set_end(in->vm, VM_END_STOPPED, "stopped by the user");
	handle_end(in);
}

/* ---- coming here ---- */

static int serve(struct instance *in, struct errmsg *err)
{
	int ret = ctl_start(&in->ctl, &in->loop, in->claim.listen_fd, instance_handlers, in,
			    CTL_IDLE_DEFAULT);

	return ret ? errmsg_set(err, ret, "cannot serve the control socket: %s", strerror(-ret))
		   : 0;
}

static void on_serve_task(struct loop_task *task)
{
	struct instance *in = container_of(task, struct instance, serve_task);
	struct errmsg err = {""};

	if (!in->quitting && serve(in, &err))
		log_error("%s", err.text);
}

/*
 * "a" gives "a-" and 2; "a-2", a name that was made here, "a-" and 3: so names do not grow when a
 * guest moves to and fro on one host.
 */
static unsigned split_name(const char *name, char prefix[VM_NAME_MAX])
{
	const char *dash = strrchr(name, '-');
	uint64_t n;

	if (dash && dash[1] != '0' && parse_u64(dash + 1, 2, 999, &n) == 0) {
		snprintf(prefix, VM_NAME_MAX, "%.*s", (int)(dash + 1 - name), name);
		return (unsigned)n + 1;
	}
	/* Room for the dash and three digits, lest two long names become one. */
	snprintf(prefix, VM_NAME_MAX, "%.*s-", VM_NAME_MAX - 5, name);
	return 2;
}

/* A guest that arrives where no name has been chosen for it keeps its own if that is free. */
static int claim_arriving(struct instance *in, const char *name, struct errmsg *err)
{
	char prefix[VM_NAME_MAX];
	struct errmsg why = {""};
	unsigned first;
	int ret;

	if (!config_name_ok(name))
		return errmsg_set(err, -EPROTO, "the source gave its guest a malformed name");
	ret = rundir_claim(&in->claim, name, &why);
	if (ret == -EADDRINUSE) {
		first = split_name(name, prefix);
		ret = rundir_claim_free(&in->claim, prefix, first, err);
	} else if (ret) {
		errmsg_set(err, ret, "%s", why.text);
	}
	if (ret)
		return ret;
	log_info("the guest's name here is %s", in->claim.name);
	loop_post(&in->loop, &in->serve_task);
	return 0;
}

struct build_call {
	struct call call;
	struct vm_config *cfg;
	const struct cpuid *cpuid;
	struct vm **out;
};

/* in->cfg has the paths that the user gave here until it has run. */
static int build(void *arg)
{
	struct build_call *c = arg;
	struct instance *in = c->call.in;
	struct errmsg *err = c->call.err;
	struct vm_config *cfg = c->cfg;
	struct vm *vm;
	int ret;

	if (in->claim.lock_fd < 0) {
		ret = claim_arriving(in, cfg->name, err);
		if (ret)
			return ret;
	}
	snprintf(cfg->name, sizeof(cfg->name), "%s", in->claim.name);
	if (in->cfg.kernel[0])
		memcpy(cfg->kernel, in->cfg.kernel, sizeof(cfg->kernel));
	if (in->cfg.initrd[0])
		memcpy(cfg->initrd, in->cfg.initrd, sizeof(cfg->initrd));
	cfg->dirty = in->cfg.dirty;
	cfg->confine = in->cfg.confine;

	ret = config_override_devices(&cfg->devices, &in->cfg.devices, err);
	if (ret)
		return ret;
	ret = machine_create(&vm, cfg, c->cpuid, &in->loop, &in->serial, err);
	if (ret)
		return ret;
	vm->on_end = on_vm_end;
	vm->on_end_arg = in;
	/* A reason of its own: it stays when the migration takes its reason away. */
	if (in->start_paused)
		vm_pause(vm, VM_PAUSE_USER);
	*c->out = vm;
	return 0;
}

static int build_arriving(void *arg, struct vm_config *cfg, const struct cpuid *cpuid,
			  struct vm **out, struct errmsg *err)
{
	struct instance *in = arg;
	struct build_call c = {
		.call = {.in = in, .err = err}, .cfg = cfg, .cpuid = cpuid, .out = out};

	return confine_call(in->cfg.confine, build, &c);
}

static void on_received(void *arg)
{
	struct instance *in = arg;

	loop_post(&in->loop, &in->received_task);
}

static void print_report(const struct migrate_stats *stats)
{
	json_t *report = report_received(stats);

	json_dumpf(report, stdout, REPORT_JSON_FLAGS);
	putchar('\n');
	fflush(stdout);
	json_decref(report);
}

/* Looks at the host's files and terminal. */
static int welcome(void *arg)
{
	struct instance *in = arg;

	if (!in->no_reboot)
		warn_of_files(&in->cfg);
	/* Only now: the report comes before anything that the guest writes. */
	return open_console(in);
}

static void on_received_task(struct loop_task *task)
{
	struct instance *in = container_of(task, struct instance, received_task);
	struct migrate_stats stats;
	struct vm *vm;

	receive_get_stats(in->receiver, &stats);
	vm = receive_vm(in->receiver);
	receive_free(in->receiver);
	in->receiver = NULL;
	if (in->json && !in->quitting)
		print_report(&stats);
	if (stats.status != MIGRATE_COMPLETED) {
		if (stats.status != MIGRATE_CANCELLED)
			log_error("no guest came to run here: %s", stats.error.text);
		else
			log_debug("receiving was cancelled");
		quit(in, in->stop_wanted ? in->stop_status : EXIT_FAILED);
		/* Last, as it may run the loop: who asks for something then changes nothing. */
		vm_destroy(vm);
		return;
	}

	in->vm = vm;
	if (in->quitting)
		return;
	in->cfg = vm->cfg;
	in->cpuid = vm->cpuid;
	in->started_ns = now_ns();
	log_info("%s %s", in->cfg.name, in->start_paused ? "is here, paused" : "runs here now");
	in->arrived = true;
	confine_call(in->cfg.confine, welcome, in);
	settle_helper(in);
	if (in->stop_wanted)
		vm_set_end(in->vm, VM_END_STOPPED, "stopped by the user");
	handle_end(in);
}

int instance_receive(struct instance *in, const struct receive_options *opt, const char *kernel,
		     const char *initrd, struct errmsg *err)
{
	struct receive_options with_build = *opt;
	int ret;

	with_build.build = build_arriving;
	with_build.build_arg = in;
	with_build.confine = in->cfg.confine;
	snprintf(in->cfg.kernel, sizeof(in->cfg.kernel), "%s", kernel);
	snprintf(in->cfg.initrd, sizeof(in->cfg.initrd), "%s", initrd);
	ret = receive_listen(&in->receiver, &with_build, in->receive_uri, err);
	if (ret)
		return ret;
	ret = receive_start(in->receiver, &in->loop, on_received, in, err);
	if (ret) {
		receive_free(in->receiver);
		in->receiver = NULL;
	}
	return ret;
}

/* ---- life ---- */

/* From here on instance_destroy() is fine. */
static void begin(struct instance *in)
{
	memset(in, 0, sizeof(*in));
	in->claim.lock_fd = in->claim.listen_fd = in->signal_fd = -1;
}

int instance_init(struct instance *in, struct errmsg *err)
{
	int ret;

	begin(in);
	in->end_task.run = on_end_task;
	in->migrated_task.run = on_migrated_task;
	in->received_task.run = on_received_task;
	in->serve_task.run = on_serve_task;

	ret = loop_init(&in->loop);
	if (ret == -ENOSYS || ret == -EPERM)
		return errmsg_set(err, ret,
				  "io_uring is not available here (%s): sysctl "
				  "kernel.io_uring_disabled=0 or the container's seccomp filter "
				  "(see godwit doctor)",
				  strerror(-ret));
	if (ret)
		return errmsg_set(err, ret, "io_uring: %s", strerror(-ret));
	in->loop_up = true;
	ret = init_signals(in, err);
	if (ret)
		return ret;
	ret = chan_init(&in->serial);
	if (ret)
		return errmsg_set(err, ret, "serial line: %s", strerror(-ret));
	in->serial_up = true;
	return 0;
}

int instance_init_confined(struct instance *in, const char *user, enum confine_mode mode,
			   struct errmsg *err)
{
	int ret;

	begin(in);
	ret = user[0] ? confine_user(user, err) : 0;
	if (ret == 0)
		ret = instance_init(in, err);
	if (ret)
		return ret;
	/* Reads the seed of its hashes from a device, which later is too late. */
	json_object_seed(0);
	in->cfg.confine = &in->confine;
	return confine_start(&in->confine, mode, err);
}

int instance_claim(struct instance *in, const char *name, struct errmsg *err)
{
	int ret;

	if (name[0])
		ret = rundir_claim(&in->claim, name, err);
	else
		ret = rundir_claim_free(&in->claim, "vm", 1, err);
	return ret ? ret : serve(in, err);
}

int instance_boot(struct instance *in, struct errmsg *err)
{
	int ret;

	snprintf(in->cfg.name, sizeof(in->cfg.name), "%s", in->claim.name);
	if (getrandom(in->cfg.id, sizeof(in->cfg.id), 0) != sizeof(in->cfg.id))
		return errmsg_set(err, -EIO, "no random numbers: %s", strerror(errno));
	ret = start_machine_by_helper(in, err);
	if (ret)
		return ret;
	open_console(in);
	settle_helper(in);
	return 0;
}

int instance_run(struct instance *in)
{
	int ret;

	confine_thread(in->cfg.confine, CONFINE_LOOP);
	ret = loop_run(&in->loop);
	if (ret) {
		log_error("event loop: %s", strerror(-ret));
		return EXIT_FAILED;
	}
	return in->exit_status;
}

/* Its machine may be in the making: it goes the way it always goes, by on_received_task(). */
static void end_receiver(struct instance *in)
{
	uint64_t deadline = now_ns() + RECEIVER_NS;

	receive_cancel(in->receiver);
	while (in->receiver && now_ns() < deadline)
		loop_step(&in->loop, NS_PER_SEC);
}

static int give_name_back(void *claim)
{
	rundir_release(claim);
	return 0;
}

void instance_destroy(struct instance *in)
{
	struct vm *vm;

	in->quitting = true;
	instance_answer_all(in);
	/* Sends the answers off before what follows takes its time. */
	if (in->loop_up)
		loop_step(&in->loop, 0);
	if (in->console_up) {
		/* What a moved guest had not written yet has moved with it. */
		if (!in->moved)
			console_flush(&in->console, FLUSH_NS);
		console_destroy(&in->console);
	}
	if (in->migration) {
		migrate_cancel(in->migration);
		migrate_free(in->migration);
		in->migration = NULL;
	}
	if (in->receiver)
		end_receiver(in);
	/* Not to be found by a request that comes while it goes; see restart(). */
	vm = in->vm;
	in->vm = NULL;
	vm_destroy(vm);
	/* The name is free before anybody who waits for our end is told of it. */
	confine_call(in->cfg.confine, give_name_back, &in->claim);
	ctl_stop(in->ctl, NS_PER_SEC);
	if (in->serial_up)
		chan_destroy(&in->serial);
	if (in->loop_up)
		loop_destroy(&in->loop);
	/* Signals stay blocked: one more must not take the exit status away. */
	if (in->signal_fd >= 0)
		close(in->signal_fd);
	confine_stop(&in->confine);
}
