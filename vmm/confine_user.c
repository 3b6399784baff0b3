/* SPDX-License-Identifier: MIT */
/* Another user than root. See confine.h. */
#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "confine.h"
#include "util.h"

/* Names come first: one that is all digits is still a name. */
static int find_user(const char *name, struct passwd **out, struct errmsg *err)
{
	uint64_t number;

	*out = getpwnam(name);
	if (!*out && parse_u64(name, 0, UINT32_MAX - 1, &number) == 0)
		*out = getpwuid((uid_t)number);
	return *out ? 0
		    : errmsg_set(err, -ENOENT, "--user: there is no user '%s' on this host", name);
}

static int find_group(const char *name, gid_t *out, struct errmsg *err)
{
	const struct group *g = getgrnam(name);
	uint64_t number;

	if (!g && parse_u64(name, 0, UINT32_MAX - 1, &number) == 0)
		g = getgrgid((gid_t)number);
	if (!g)
		return errmsg_set(err, -ENOENT, "--user: there is no group '%s' on this host",
				  name);
	*out = g->gr_gid;
	return 0;
}

int confine_user(const char *user, struct errmsg *err)
{
	const char *colon = strchr(user, ':');
	char name[256];
	struct passwd *pw;
	gid_t gid;
	int ret;

	if (geteuid() != 0)
		return errmsg_set(err, -EPERM,
				  "--user %s: only root can become another user: start it as that "
				  "user instead",
				  user);
	snprintf(name, sizeof(name), "%.*s", (int)(colon ? colon - user : (long)strlen(user)),
		 user);
	ret = find_user(name, &pw, err);
	if (ret)
		return ret;
	gid = pw->pw_gid;
	ret = colon ? find_group(colon + 1, &gid, err) : 0;
	if (ret)
		return ret;
	/* Groups first, which only root may change. */
	if (initgroups(pw->pw_name, gid) || setresgid(gid, gid, gid) ||
	    setresuid(pw->pw_uid, pw->pw_uid, pw->pw_uid))
		return errmsg_set(err, -errno, "--user %s: %s", user, strerror(errno));
	/* As a process that this user has started: its own files in /proc are its own. */
	if (prctl(PR_SET_DUMPABLE, 1, 0, 0, 0))
		return errmsg_set(err, -errno, "--user %s: PR_SET_DUMPABLE: %s", user,
				  strerror(errno));
	return 0;
}
