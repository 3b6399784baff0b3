/* SPDX-License-Identifier: MIT */
/*
 * What a thread might do that somebody has taken over. Linked into a godwit of its own, which
 * test-confine.c runs: each thread that a guest can reach tries all of this as soon as it is
 * confined, if $GODWIT_TEST_ATTACK names a folder, and says how it went on stderr:
 *
 *	attack ROLE WHAT ERROR		ERROR is a name such as EPERM, or "done"
 *
 * Nothing here harms a process that is not confined: what could is aimed at nothing.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../../vmm/confine_parts.h"

/* In that folder. */
static _Thread_local char victim[4096], created[4096];

static long closed(long fd)
{
	if (fd >= 0)
		close((int)fd);
	return fd;
}

static long open_file(void)
{
	return closed(open("/etc/passwd", O_RDONLY | O_CLOEXEC));
}

static long create_file(void)
{
	return closed(open(created, O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
}

static long remove_file(void)
{
	return unlink(victim);
}

static long make_inet(void)
{
	return closed(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
}

static long make_unix(void)
{
	return closed(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
}

static long connect_out(void)
{
	const struct sockaddr_un a = {.sun_family = AF_UNIX, .sun_path = "/nonexistent/socket"};

	return connect(STDERR_FILENO, (const struct sockaddr *)&a, sizeof(a));
}

static long bind_here(void)
{
	const struct sockaddr_un a = {.sun_family = AF_UNIX, .sun_path = "/nonexistent/socket"};

	return bind(STDERR_FILENO, (const struct sockaddr *)&a, sizeof(a));
}

static long start_program(void)
{
	char *const none[] = {NULL};

	return execve("/nonexistent/program", none, none);
}

static long fork_here(void)
{
	long pid = syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL);

	if (pid == 0)
		syscall(SYS_exit, 0);
	if (pid > 0)
		waitpid((pid_t)pid, NULL, 0);
	return pid;
}

static long debug_somebody(void)
{
	return ptrace(PTRACE_CONT, getpid(), NULL, NULL);
}

static long read_somebody(void)
{
	char to, from = 'x';
	const struct iovec a = {&to, 1}, b = {&from, 1};

	return process_vm_readv(getpid(), &a, 1, &b, 1, 0);
}

static long signal_somebody(void)
{
	return kill(getppid(), 0);
}

static long make_ring(void)
{
	struct io_uring_params p = {0};

	return closed(syscall(SYS_io_uring_setup, 1, &p));
}

static long make_code(void)
{
	void *p = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		return -1;
	return munmap(p, 4096);
}

static long type_a_key(void)
{
	return ioctl(STDERR_FILENO, TIOCSTI, "x");
}

/* Has whoever reads what we write be sent SIGIO, were it said. */
static long signal_by_file(void)
{
	long ret = fcntl(STDERR_FILENO, F_SETOWN, getppid());

	return ret ? ret : fcntl(STDERR_FILENO, F_SETOWN, 0);
}

static long widen_a_file(void)
{
	return chmod(created, 0666);
}

static const struct {
	const char *what;
	long (*fn)(void);
} attacks[] = {
	{"open", open_file},
	{"create", create_file},
	{"socket-inet", make_inet},
	{"socket-unix", make_unix},
	{"connect", connect_out},
	{"bind", bind_here},
	{"execve", start_program},
	{"fork", fork_here},
	{"ptrace", debug_somebody},
	{"process_vm_readv", read_somebody},
	{"kill", signal_somebody},
	{"io_uring_setup", make_ring},
	{"mmap-exec", make_code},
	{"ioctl-tiocsti", type_a_key},
	{"fcntl-setown", signal_by_file},
	{"chmod", widen_a_file},
	{"unlink", remove_file},
};

void confine_attack(enum confine_role role)
{
	const char *dir = getenv("GODWIT_TEST_ATTACK");

	if (!dir || (role != CONFINE_VCPU && role != CONFINE_LOOP))
		return;
	snprintf(created, sizeof(created), "%s/created", dir);
	snprintf(victim, sizeof(victim), "%s/victim-%s", dir, confine_role_name(role));
	for (size_t i = 0; i < sizeof(attacks) / sizeof(attacks[0]); i++) {
		char line[160];
		int n;

		errno = 0;
		n = snprintf(line, sizeof(line), "attack %s %s %s\n", confine_role_name(role),
			     attacks[i].what,
			     attacks[i].fn() < 0 ? strerrorname_np(errno) : "done");
		(void)!write(STDERR_FILENO, line, (size_t)n);
	}
}
