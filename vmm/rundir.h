/* SPDX-License-Identifier: MIT */
/*
 * The folder in which running guests are found, and the ownership of a name in it.
 *
 * Theory of operation: a guest called NAME has two files there, NAME.lock and NAME.sock. Who
 * holds the lock (flock) owns the name; the kernel lets go of it when the owner dies, however it
 * dies, so a name whose lock can be taken is free and what its dead owner left is removed. The
 * lock file is unlinked only by who holds its lock, and a lock counts only when the file is still
 * the one at that path: so two processes never hold "the" lock on two different inodes. Who finds
 * it held but nobody listening has met somebody in between (one who comes, who goes, who clears
 * away what a dead one left), and tries again for a moment.
 */
#ifndef GODWIT_RUNDIR_H
#define GODWIT_RUNDIR_H

#include <stdbool.h>
#include <sys/un.h>

#include "log.h"
#include "vm.h"

#define RUNDIR_PATH_MAX sizeof(((struct sockaddr_un *)0)->sun_path)

/*
 * The folder: $GODWIT_RUNDIR, else $XDG_RUNTIME_DIR/godwit, else /run/godwit for root, else
 * /tmp/godwit-UID. It must belong to this user (for root: to anybody) and be writable by nobody
 * else; with create it is made when it is not there. -ENOENT when it is not there, -EPERM when it
 * is not safe, -ENAMETOOLONG, -errno, with the cause in err.
 */
int rundir_path(char dir[RUNDIR_PATH_MAX], bool create, struct errmsg *err);

/* The address of a guest's control socket in dir. -ENAMETOOLONG with the remedy in err. */
int rundir_address(const char *dir, const char *name, struct sockaddr_un *addr, struct errmsg *err);

struct rundir_claim {
	char name[VM_NAME_MAX];
	struct sockaddr_un addr;
	char lock_path[RUNDIR_PATH_MAX];
	int lock_fd;
	int listen_fd; /* bound and listening, mode 0600 */
};

/*
 * Takes the name, removing what a dead owner left. -EADDRINUSE when somebody has it, -errno,
 * with the cause in err.
 */
int rundir_claim(struct rundir_claim *c, const char *name, struct errmsg *err);

/* Takes the first free name of PREFIX1, PREFIX2, ... (from `first` on). Errors as above. */
int rundir_claim_free(struct rundir_claim *c, const char *prefix, unsigned first,
		      struct errmsg *err);

/* Gives the name back and closes the listening socket. */
void rundir_release(struct rundir_claim *c);

/*
 * Removes what a dead owner of this name left. One who lives holds its lock and keeps all. Whoever
 * wants to take the name at the same moment gets it.
 */
void rundir_remove_dead(const char *name);

/*
 * The names that have a socket, sorted; whether its owner lives is for the caller to find out by
 * connecting. *names is the caller's to free(). The number of them, or -errno with the cause in
 * err; a folder that is not there has none.
 */
int rundir_list(char (**names)[VM_NAME_MAX], struct errmsg *err);

#endif
