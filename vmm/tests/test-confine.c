/* SPDX-License-Identifier: MIT */
/*
 * Roles, one thread each: what it may still do, what not, and what the helper does for it. The
 * whole of it, in a process with a guest, is guest-tests/tests/test-confine.c.
 */
#include "../confine.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../confine_parts.h"
#include "../util.h"
#include "check-main.h"

extern char **environ;

static struct confine confine;

static void begin(enum confine_mode mode)
{
	struct errmsg err = {""};

	ck_assert_msg(confine_start(&confine, mode, &err) == 0, "%s", err.text);
}

static void end(void)
{
	confine_stop(&confine);
}

/* Runs fn on a thread of that role; what it returns. */
struct on_thread {
	enum confine_role role;
	int (*fn)(void *arg);
	void *arg;
	int ret;
};

static void *run_thread(void *arg)
{
	struct on_thread *t = arg;

	confine_thread(&confine, t->role);
	t->ret = t->fn(t->arg);
	return NULL;
}

static int as(enum confine_role role, int (*fn)(void *arg), void *arg)
{
	struct on_thread t = {.role = role, .fn = fn, .arg = arg};
	pthread_t thread;

	ck_assert_int_eq(pthread_create(&thread, NULL, run_thread, &t), 0);
	ck_assert_int_eq(pthread_join(thread, NULL), 0);
	return t.ret;
}

static int result(long ret)
{
	return ret < 0 ? -errno : 0;
}

/* ---- things to try; each gives 0 or -errno and leaves nothing behind ---- */

static int close_if(long fd)
{
	int ret = result(fd);

	if (fd >= 0)
		close((int)fd);
	return ret;
}

static int try_open(void *path)
{
	return close_if(open(path, O_RDONLY | O_CLOEXEC));
}

static int try_socket(void *arg)
{
	(void)arg;
	return close_if(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
}

/* Of a socket that there is already: nobody listens at that port. */
static int try_connect(void *arg)
{
	const struct sockaddr_in a = {.sin_family = AF_INET,
				      .sin_port = htons(1),
				      .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};

	return result(connect(*(int *)arg, (const struct sockaddr *)&a, sizeof(a)));
}

static int try_exec(void *arg)
{
	char *const none[] = {NULL};

	(void)arg;
	return result(execve("/nonexistent/program", none, none));
}

static int try_fork(void *arg)
{
	long pid = syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL);
	int ret = result(pid);

	(void)arg;
	if (pid == 0)
		_exit(0);
	if (pid > 0)
		waitpid((pid_t)pid, NULL, 0);
	return ret;
}

static void *do_nothing(void *arg)
{
	return arg;
}

static int try_thread(void *arg)
{
	pthread_t thread;
	int ret = -pthread_create(&thread, NULL, do_nothing, NULL);

	(void)arg;
	if (ret == 0)
		pthread_join(thread, NULL);
	return ret;
}

static int try_ptrace(void *arg)
{
	(void)arg;
	return result(ptrace(PTRACE_CONT, getpid(), NULL, NULL));
}

static int try_kill(void *arg)
{
	(void)arg;
	return result(kill(getppid(), 0));
}

static int try_ring(void *arg)
{
	struct io_uring_params p = {0};

	(void)arg;
	return close_if(syscall(SYS_io_uring_setup, 1, &p));
}

static int try_code(void *arg)
{
	void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS,
		       -1, 0);

	(void)arg;
	if (p == MAP_FAILED)
		return -errno;
	munmap(p, 4096);
	return 0;
}

/* What a device does: memory, pipes, waiting. */
static int try_work(void *arg)
{
	int *fds = arg;
	struct pollfd p = {.fd = fds[0], .events = POLLIN};
	char c = 'x';
	void *m = malloc(1 << 20);

	if (!m || write(fds[1], &c, 1) != 1 || poll(&p, 1, 1000) != 1 || read(fds[0], &c, 1) != 1)
		return -errno;
	memset(m, 1, 1 << 20);
	free(m);
	return mprotect(NULL, 0, PROT_READ) ? -errno : 0;
}

static int spawn_true(void *arg)
{
	char *const argv[] = {"true", NULL};
	int status = 0, ret;
	pid_t pid;

	(void)arg;
	ret = -posix_spawnp(&pid, "true", NULL, NULL, argv, environ);
	if (ret == 0 && (waitpid(pid, &status, 0) != pid || status))
		ret = -ECHILD;
	return ret;
}

static const struct {
	int (*fn)(void *arg);
	const char *name;
	int plain; /* what comes of it where nothing is confined */
	unsigned may;
} tries[] = {
	{try_socket, "socket", 0, 1U << CONFINE_MIGRATION | 1U << CONFINE_HELPER},
	{try_ring, "io_uring_setup", 0, 1U << CONFINE_MIGRATION | 1U << CONFINE_HELPER},
	{try_thread, "pthread_create", 0, 1U << CONFINE_MIGRATION | 1U << CONFINE_HELPER},
	{try_code, "mmap", 0, 1U << CONFINE_MIGRATION | 1U << CONFINE_HELPER},
	{try_fork, "clone", 0, 1U << CONFINE_HELPER},
	{try_kill, "kill", 0, 0},
	{try_exec, "execve", -ENOENT, 0},
	{try_ptrace, "ptrace", -ESRCH, 0},
};

START_TEST(refused)
{
	const enum confine_role role = (enum confine_role)_i;
	int fds[2], sock = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	bool wide = role == CONFINE_MIGRATION || role == CONFINE_HELPER;

	ck_assert_int_eq(pipe(fds), 0);
	begin(CONFINE_ON);
	for (size_t i = 0; i < ARRAY_SIZE(tries); i++) {
		int want = tries[i].may & 1U << role ? tries[i].plain : -EPERM;
		int got = as(role, tries[i].fn, NULL);

		ck_assert_msg(got == want, "%s as %s: %d", tries[i].name, confine_role_name(role),
			      got);
		/* It is the role that does it. */
		ck_assert_int_eq(tries[i].fn(NULL), tries[i].plain);
	}
	ck_assert_int_eq(as(role, try_open, "/dev/null"), wide ? 0 : -EPERM);
	ck_assert_int_eq(as(role, try_connect, &sock), wide ? -ECONNREFUSED : -EPERM);
	ck_assert_int_eq(as(role, try_work, fds), 0);
	end();
}
END_TEST

START_TEST(off)
{
	begin(CONFINE_OFF);
	ck_assert_int_eq(as(CONFINE_VCPU, try_open, "/dev/null"), 0);
	ck_assert_int_eq(as(CONFINE_VCPU, try_socket, NULL), 0);
	ck_assert_int_eq(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), 0);
	end();
}
END_TEST

START_TEST(process)
{
	struct rlimit core;

	begin(CONFINE_ON);
	ck_assert_int_eq(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), 1);
	ck_assert_int_eq(getrlimit(RLIMIT_CORE, &core), 0);
	ck_assert_uint_eq(core.rlim_cur, 0);
	ck_assert_uint_eq(core.rlim_max, 0);
	end();
}
END_TEST

/* ---- Landlock, where no filter hides it ---- */

struct restricted {
	int ruleset, sock;
	int opened, created, connected, kept;
};

static int try_restricted(void *arg)
{
	struct restricted *r = arg;
	int fd = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	char c;

	confine_restrict_files(r->ruleset);
	r->opened = try_open("/etc/passwd");
	r->created = close_if(open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
	r->connected = try_connect(&r->sock);
	r->kept = read(fd, &c, 1) == 1 ? 0 : -errno;
	close(fd);
	return 0;
}

START_TEST(landlock)
{
	struct restricted r = {.ruleset = confine_make_ruleset(),
			       .sock = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};
	int version = confine_probe_landlock();

	if (version < 0) {
		fprintf(stderr, "no Landlock here: %s\n", strerror(-version));
		return;
	}
	begin(CONFINE_OFF);
	ck_assert_int_eq(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
	as(CONFINE_LOOP, try_restricted, &r);
	ck_assert_int_eq(r.opened, -EACCES);
	ck_assert_int_eq(r.created, -EACCES);
	if (version >= 4)
		ck_assert_int_eq(r.connected, -EACCES);
	ck_assert_int_eq(r.kept, 0);
	/* Only that thread. */
	ck_assert_int_eq(try_open("/etc/passwd"), 0);
	end();
}
END_TEST

/* ---- the helper ---- */

static int open_by_helper(void *arg)
{
	(void)arg;
	return confine_call(&confine, try_open, "/dev/null");
}

static int spawn_by_helper(void *arg)
{
	return confine_call(&confine, spawn_true, arg);
}

/* A call within a call. */
static int twice_by_helper(void *arg)
{
	return confine_call(&confine, open_by_helper, arg);
}

START_TEST(helper)
{
	begin(CONFINE_ON);
	for (int role = CONFINE_VCPU; role <= CONFINE_LOOP; role++) {
		ck_assert_int_eq(as((enum confine_role)role, open_by_helper, NULL), 0);
		ck_assert_int_eq(as((enum confine_role)role, twice_by_helper, NULL), 0);
		ck_assert_int_eq(as((enum confine_role)role, spawn_by_helper, NULL), 0);
	}
	/* What nobody needs not even the launcher may. */
	ck_assert_int_eq(confine_call(&confine, try_ptrace, NULL), -EPERM);
	ck_assert_int_eq(confine_call(&confine, try_exec, NULL), -ENOENT);
	confine_helper(&confine);
	ck_assert_int_eq(confine_call(&confine, try_exec, NULL), -EPERM);
	ck_assert_int_eq(as(CONFINE_LOOP, open_by_helper, NULL), 0);
	/* Without one, all is done where it is called. */
	ck_assert_int_eq(confine_call(NULL, try_exec, NULL), -ENOENT);
	end();
	ck_assert_int_eq(confine_call(&confine, try_exec, NULL), -ENOENT);
}
END_TEST

#define CALLERS 8
#define CALLS 500

static int count(void *arg)
{
	return (*(int *)arg)++;
}

static void *call_often(void *arg)
{
	for (int i = 0; i < CALLS; i++)
		confine_call(&confine, count, arg);
	return NULL;
}

/* One at a time: nothing else guards what they do. */
START_TEST(many_callers)
{
	pthread_t thread[CALLERS];
	int n = 0;

	begin(CONFINE_ON);
	for (int i = 0; i < CALLERS; i++)
		ck_assert_int_eq(pthread_create(&thread[i], NULL, call_often, &n), 0);
	for (int i = 0; i < CALLERS; i++)
		ck_assert_int_eq(pthread_join(thread[i], NULL), 0);
	ck_assert_int_eq(n, CALLERS * CALLS);
	end();
}
END_TEST

/* ---- saying what was refused ---- */

static int refused_by_name(void *arg)
{
	pthread_setname_np(pthread_self(), "thread-x");
	(void)arg;
	return try_open("/dev/null");
}

START_TEST(said)
{
	char text[512] = "";
	int fds[2];

	ck_assert_int_eq(pipe(fds), 0);
	ck_assert_int_eq(dup2(fds[1], STDERR_FILENO), STDERR_FILENO);
	begin(CONFINE_LOG);
	ck_assert_int_eq(as(CONFINE_LOOP, refused_by_name, NULL), -EPERM);
	ck_assert_int_gt(read(fds[0], text, sizeof(text) - 1), 0);
	ck_assert_str_eq(text, "godwit: confine: thread 'thread-x' (loop) may not openat\n");
	end();
}
END_TEST

START_TEST(modes)
{
	enum confine_mode m = CONFINE_OFF;

	ck_assert_int_eq(confine_parse_mode("on", &m), 0);
	ck_assert_int_eq(m, CONFINE_ON);
	ck_assert_int_eq(confine_parse_mode("log", &m), 0);
	ck_assert_int_eq(m, CONFINE_LOG);
	ck_assert_int_eq(confine_parse_mode("off", &m), 0);
	ck_assert_int_eq(m, CONFINE_OFF);
	ck_assert_int_eq(confine_parse_mode("maybe", &m), -EINVAL);
	ck_assert_int_eq(confine_parse_mode("", &m), -EINVAL);
}
END_TEST

/* ---- another user ---- */

START_TEST(user)
{
	struct errmsg err = {""};
	uid_t uid, euid, suid;

	if (geteuid() != 0) {
		ck_assert_int_eq(confine_user("nobody", &err), -EPERM);
		ck_assert_msg(strstr(err.text, "only root"), "%s", err.text);
		return;
	}
	ck_assert_int_eq(confine_user("no-such-user", &err), -ENOENT);
	ck_assert_msg(strstr(err.text, "no-such-user"), "%s", err.text);
	err.text[0] = '\0';
	ck_assert_int_eq(confine_user("nobody:no-such-group", &err), -ENOENT);
	ck_assert_msg(strstr(err.text, "no-such-group"), "%s", err.text);
	err.text[0] = '\0';
	ck_assert_int_eq(geteuid(), 0);
	ck_assert_msg(confine_user("65534:12", &err) == 0, "%s", err.text);
	ck_assert_int_eq(getresuid(&uid, &euid, &suid), 0);
	ck_assert_uint_eq(uid, 65534);
	ck_assert_uint_eq(euid, 65534);
	ck_assert_uint_eq(suid, 65534);
	ck_assert_uint_eq(getegid(), 12);
	ck_assert_int_ne(setuid(0), 0);
	/* Its own descriptors have names that are its own. */
	ck_assert_int_eq(access("/proc/self/fd/0", F_OK), 0);
}
END_TEST

int main(void)
{
	Suite *s;
	TCase *tc;

#ifdef CONFINE_SANITIZED
	return check_skip("confine", "builds with ASan and TSan are not confined");
#endif
	if (confine_probe_seccomp())
		return check_skip("confine", "no seccomp filters here");
	s = suite_create("confine");
	tc = tcase_create("confine");
	tcase_set_timeout(tc, 120);
	tcase_add_loop_test(tc, refused, CONFINE_VCPU, CONFINE_LAUNCHER);
	tcase_add_test(tc, off);
	tcase_add_test(tc, process);
	tcase_add_test(tc, landlock);
	tcase_add_test(tc, helper);
	tcase_add_test(tc, many_callers);
	tcase_add_test(tc, said);
	tcase_add_test(tc, modes);
	tcase_add_test(tc, user);
	suite_add_tcase(s, tc);
	return check_run(s);
}
