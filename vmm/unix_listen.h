/* SPDX-License-Identifier: MIT */
/*
 * A unix stream socket that listens at a path of the user's choice.
 */
#ifndef GODWIT_UNIX_LISTEN_H
#define GODWIT_UNIX_LISTEN_H

#include <sys/types.h>
#include <sys/un.h>

#include "confine.h"
#include "log.h"

struct unix_listen {
	struct sockaddr_un addr;
	/* Which file it is: somebody may put another one in its place. */
	dev_t dev;
	ino_t ino;
};

/*
 * Listens at path with mode 0600; what a dead owner left there is replaced. The socket (not
 * blocking, closed on exec), or -errno with the cause in err, which begins with `what`:
 * -EADDRINUSE when somebody alive listens there, -EEXIST when there is a file of another kind,
 * -ENAMETOOLONG.
 */
int unix_listen(struct unix_listen *l, const char *what, const char *path, int backlog,
		struct errmsg *err);

/*
 * Takes the file away if it is still ours, by confine_call(). The socket is the caller's to close.
 */
void unix_unlisten(struct confine *confine, struct unix_listen *l);

#endif
