/* SPDX-License-Identifier: MIT */
/*
 * What a process that runs a guest may still do: as little as it needs.
 *
 * Theory of operation: a guest that breaks out of its devices is a thread of ours that runs its
 * code. Each thread therefore has a role, and once it has one it may make only the system calls of
 * that role (seccomp(2), by libseccomp):
 *
 *	vcpu		KVM_RUN, and what devices do as they serve the guest: read, write, wake
 *	loop		that, and waiting, accepting, controlling; io_uring with the operations
 *			that loop.c names and no others (uring.h)
 *	migration	that, and what a move needs: files, sockets, threads
 *	helper		that, and what making a machine needs, but no programs
 *	launcher	everything but what nobody here needs: debugging others, loading kernel
 *			code, clocks, and so on
 *
 * vcpu and loop threads, which are all that a guest can reach, cannot open files, make or connect
 * sockets, start programs or threads, signal others, nor map memory that can be executed. Where the
 * kernel has Landlock, they could neither open a file nor bind or connect TCP if a call let them.
 *
 * A reset, a lost network, a guest's connection to a vsock port of the host and the start of a move
 * need more than that. They are functions that the loop's thread, or a vCPU's, has run by the
 * helper, a thread of its own, and waits for (confine_call()). That one begins as a launcher, and
 * becomes a helper once it is known that the guest has no network through passt, a program that is
 * started anew when it was lost. Threads inherit the filters of the one that makes them, and can
 * only add to them. So the helper is made before anything is confined, and makes the threads of
 * moves, and those of the vCPUs after a reset; they take their roles themselves.
 *
 * This does not part threads from each other's memory: who can write anywhere can have the helper
 * do something else. It makes that much harder than a call, and what the helper itself may not do,
 * and with it the whole process, is refused in any case. It is one wall more, not the only one.
 *
 * What is not allowed fails with EPERM, and the guest goes on: no harm comes of it that way
 * either, and a call that was forgotten here costs what wanted it and not the guest. With
 * CONFINE_LOG each such call is said on stderr besides, by name, with its thread and role; but for
 * a launcher's, whose filter goes on in programs that know nothing of that.
 *
 * Kernel documentation: userspace-api/seccomp_filter.rst, userspace-api/landlock.rst,
 * userspace-api/no_new_privs.rst; io_uring_register_restrictions(3).
 */
#ifndef GODWIT_CONFINE_H
#define GODWIT_CONFINE_H

#include <linux/filter.h>
#include <pthread.h>
#include <stdbool.h>

#include "log.h"

enum confine_mode {
	CONFINE_OFF,
	CONFINE_ON,
	CONFINE_LOG, /* as CONFINE_ON, and says what is refused */
};

/*
 * The runtimes of ASan and TSan make calls of their own, in any thread: they open files, and at the
 * end start threads that stop all others with ptrace(2). A filter that lets them would be none.
 */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define CONFINE_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define CONFINE_SANITIZED 1
#endif
#endif
#ifdef CONFINE_SANITIZED
#define CONFINE_DEFAULT CONFINE_OFF
#else
#define CONFINE_DEFAULT CONFINE_ON
#endif

enum confine_role {
	CONFINE_VCPU,
	CONFINE_LOOP,
	CONFINE_MIGRATION,
	CONFINE_HELPER,
	CONFINE_LAUNCHER,
	CONFINE_ROLES,
};

const char *confine_role_name(enum confine_role role);

/* One process's. Zeroed it confines nothing, and confine_call() runs things where it is called. */
struct confine {
	enum confine_mode mode;
	struct sock_fprog filter[CONFINE_ROLES]; /* made at the start, as threads may not */
	int ruleset;				 /* Landlock's, which allows nothing; -1: none */

	/* The helper. */
	pthread_t thread;
	bool up;
	pthread_mutex_t turn; /* held by who has something done */
	pthread_mutex_t lock; /* guards the rest */
	pthread_cond_t changed;
	int (*fn)(void *arg); /* NULL: nothing to do */
	void *arg;
	int ret;
	bool quit;
};

/*
 * Prepares all roles, forbids the process new privileges and core files (which would hold the
 * guest's memory), and starts the helper. Nothing else is confined yet. Signals that are blocked
 * stay blocked in the helper. What this host does not have is logged at debug level and done
 * without. -ENOTSUP in a build with ASan or TSan unless the mode is CONFINE_OFF, -errno, with the
 * cause in err; confine_stop() it in any case.
 */
int confine_start(struct confine *c, enum confine_mode mode, struct errmsg *err);

/* Ends the helper. Threads stay as they are. */
void confine_stop(struct confine *c);

/*
 * Gives the calling thread its role, for good; it may take a stricter one later. Nothing where c is
 * NULL or off. The process's first thread must have started the vCPUs and so on by then.
 */
void confine_thread(const struct confine *c, enum confine_role role);

/*
 * Runs fn(arg) on the helper, one at a time, and returns what it did. c may be NULL. Any thread;
 * from the helper itself it is a plain call. The caller must not hold what fn waits for.
 */
int confine_call(struct confine *c, int (*fn)(void *arg), void *arg);

/* The helper needs no programs any more. From any thread. */
void confine_helper(struct confine *c);

/* "on", "log", "off". -EINVAL. */
int confine_parse_mode(const char *text, enum confine_mode *mode);

/*
 * Becomes the user "NAME" or "NAME:GROUP" (names or numbers) with the groups that he is in; without
 * GROUP, his own. Before threads exist. As what follows is done by that user, files, devices and
 * the folder of control sockets have to be his. -EPERM unless root, -ENOENT for somebody unknown,
 * -errno, with the cause and the remedy in err.
 */
int confine_user(const char *user, struct errmsg *err);

/* For doctor: 0 when the kernel has seccomp filters, or -errno. */
int confine_probe_seccomp(void);
/* Landlock's ABI version from 1 on; -ENOSYS when the kernel has none, -EOPNOTSUPP when it is off.
 */
int confine_probe_landlock(void);

#endif
