/* SPDX-License-Identifier: MIT */
/* Roles of threads, and the helper. See confine.h. */
#include "confine.h"

#include <errno.h>
#include <linux/seccomp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "confine_parts.h"

const char *confine_role_name(enum confine_role role)
{
	static const char *const names[CONFINE_ROLES] = {
		[CONFINE_VCPU] = "vcpu",	   [CONFINE_LOOP] = "loop",
		[CONFINE_MIGRATION] = "migration", [CONFINE_HELPER] = "helper",
		[CONFINE_LAUNCHER] = "launcher",
	};

	return names[role];
}

/* ---- threads ---- */

static bool guest_reaches(enum confine_role role)
{
	return role == CONFINE_VCPU || role == CONFINE_LOOP;
}

static int set_filter(const struct sock_fprog *filter)
{
	return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, filter) ? -errno : 0;
}

void confine_thread(const struct confine *c, enum confine_role role)
{
	int ret;

	if (c && c->mode != CONFINE_OFF) {
		/* Before the filter, which would refuse that, too. */
		ret = guest_reaches(role) && c->ruleset >= 0 ? confine_restrict_files(c->ruleset)
							     : 0;
		if (ret)
			log_debug("Landlock for the %s: %s", confine_role_name(role),
				  strerror(-ret));
		ret = c->filter[role].filter ? set_filter(&c->filter[role]) : 0;
		if (ret)
			log_debug("seccomp filter for the %s: %s", confine_role_name(role),
				  strerror(-ret));
	}
#ifdef GODWIT_TEST_HOOKS
	confine_attack(role);
#endif
}

/* ---- the helper ---- */

static void *run_helper(void *arg)
{
	struct confine *c = arg;

	confine_thread(c, CONFINE_LAUNCHER);
	pthread_mutex_lock(&c->lock);
	while (!c->quit) {
		if (!c->fn) {
			pthread_cond_wait(&c->changed, &c->lock);
			continue;
		}
		/* Nobody but who has the turn touches these. */
		pthread_mutex_unlock(&c->lock);
		c->ret = c->fn(c->arg);
		pthread_mutex_lock(&c->lock);
		c->fn = NULL;
		pthread_cond_broadcast(&c->changed);
	}
	pthread_mutex_unlock(&c->lock);
	return NULL;
}

int confine_call(struct confine *c, int (*fn)(void *arg), void *arg)
{
	int ret;

	if (!c || !c->up || pthread_equal(pthread_self(), c->thread))
		return fn(arg);
	pthread_mutex_lock(&c->turn);
	pthread_mutex_lock(&c->lock);
	c->fn = fn;
	c->arg = arg;
	pthread_cond_broadcast(&c->changed);
	while (c->fn)
		pthread_cond_wait(&c->changed, &c->lock);
	ret = c->ret;
	pthread_mutex_unlock(&c->lock);
	pthread_mutex_unlock(&c->turn);
	return ret;
}

static int become_helper(void *arg)
{
	confine_thread(arg, CONFINE_HELPER);
	return 0;
}

void confine_helper(struct confine *c)
{
	if (c)
		confine_call(c, become_helper, c);
}

static int start_helper(struct confine *c, struct errmsg *err)
{
	int ret;

	pthread_mutex_init(&c->turn, NULL);
	pthread_mutex_init(&c->lock, NULL);
	pthread_cond_init(&c->changed, NULL);
	ret = -pthread_create(&c->thread, NULL, run_helper, c);
	if (ret)
		return errmsg_set(err, ret, "starting the helper's thread: %s", strerror(-ret));
	pthread_setname_np(c->thread, "helper");
	c->up = true;
	return 0;
}

/* ---- the whole of it ---- */

static int make_filters(struct confine *c, struct errmsg *err)
{
	int ret = confine_probe_seccomp();

	if (ret) {
		log_debug("no seccomp filters here (%s): system calls are not confined",
			  strerror(-ret));
		return 0;
	}
	for (unsigned i = 0; i < CONFINE_ROLES && ret == 0; i++)
		ret = confine_make_filter((enum confine_role)i, c->mode == CONFINE_LOG,
					  &c->filter[i], err);
	if (ret == 0 && c->mode == CONFINE_LOG)
		ret = confine_report_refusals(err);
	return ret;
}

int confine_start(struct confine *c, enum confine_mode mode, struct errmsg *err)
{
	const struct rlimit none = {0, 0};
	int ret;

	*c = (struct confine){.mode = mode, .ruleset = -1};
#ifdef CONFINE_SANITIZED
	if (mode != CONFINE_OFF)
		return errmsg_set(err, -ENOTSUP,
				  "this is a build with sanitizers, which need system calls that "
				  "no filter may allow: --confine=off");
#endif
	if (mode == CONFINE_OFF)
		return 0;
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return errmsg_set(err, -errno, "no_new_privs: %s", strerror(errno));
	if (setrlimit(RLIMIT_CORE, &none))
		log_debug("core files are not forbidden: %s", strerror(errno));
	ret = make_filters(c, err);
	if (ret)
		return ret;
	c->ruleset = confine_make_ruleset();
	if (c->ruleset < 0)
		log_debug("no Landlock here (%s): that files cannot be opened is left to seccomp",
			  strerror(-c->ruleset));
	c->ruleset = MAX(c->ruleset, -1);
	return start_helper(c, err);
}

void confine_stop(struct confine *c)
{
	if (c->up) {
		pthread_mutex_lock(&c->lock);
		c->quit = true;
		pthread_cond_broadcast(&c->changed);
		pthread_mutex_unlock(&c->lock);
		pthread_join(c->thread, NULL);
		pthread_cond_destroy(&c->changed);
		pthread_mutex_destroy(&c->lock);
		pthread_mutex_destroy(&c->turn);
	}
	if (c->mode != CONFINE_OFF && c->ruleset >= 0)
		close(c->ruleset);
	for (unsigned i = 0; i < CONFINE_ROLES; i++)
		free(c->filter[i].filter);
	*c = (struct confine){.ruleset = -1};
}
