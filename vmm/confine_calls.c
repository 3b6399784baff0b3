/* SPDX-License-Identifier: MIT */
/*
 * Which system calls a role may make, as a filter; and who says what was refused. See confine.h.
 *
 * The lists are of what godwit, its libraries and glibc (2.36 and later) use. A call that is on
 * none of them is refused; one whose arguments tell harm from use is allowed with some of them
 * only.
 */
#include <asm/termbits.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <ucontext.h>
#include <unistd.h>

#include "confine_parts.h"
#include "util.h"

/* In the si_code of SIGSYS; glibc has no name for it. */
#ifndef SYS_SECCOMP
#define SYS_SECCOMP 1
#endif

#define V (1U << CONFINE_VCPU)
#define L (1U << CONFINE_LOOP)
#define M (1U << CONFINE_MIGRATION)
#define H (1U << CONFINE_HELPER)
#define ALL (V | L | M | H)
#define WIDE (M | H)

static const struct call {
	int nr;
	unsigned roles;
} calls[] = {
	/* Descriptors that are open. */
	{SCMP_SYS(read), ALL},
	{SCMP_SYS(readv), ALL},
	{SCMP_SYS(pread64), ALL},
	{SCMP_SYS(preadv), ALL},
	{SCMP_SYS(write), ALL},
	{SCMP_SYS(writev), ALL},
	{SCMP_SYS(pwrite64), ALL},
	{SCMP_SYS(pwritev), ALL},
	{SCMP_SYS(close), ALL},
	{SCMP_SYS(fstat), ALL},
	{SCMP_SYS(lseek), ALL},
	{SCMP_SYS(fcntl), WIDE},
	{SCMP_SYS(fallocate), ALL},
	{SCMP_SYS(fsync), ALL},
	{SCMP_SYS(fdatasync), ALL},
	{SCMP_SYS(eventfd2), ALL},
	{SCMP_SYS(poll), ALL},
	{SCMP_SYS(ppoll), ALL},
	{SCMP_SYS(epoll_ctl), ALL},
	{SCMP_SYS(epoll_wait), ALL},
	{SCMP_SYS(epoll_pwait), ALL},
	{SCMP_SYS(io_uring_enter), L | WIDE},

	/* Sockets that are connected, or listen. */
	{SCMP_SYS(sendto), ALL},
	{SCMP_SYS(sendmsg), ALL},
	{SCMP_SYS(recvfrom), ALL},
	{SCMP_SYS(recvmsg), ALL},
	{SCMP_SYS(shutdown), ALL},
	{SCMP_SYS(accept4), L | WIDE},
	{SCMP_SYS(getsockopt), L | WIDE},

	/* Memory. */
	{SCMP_SYS(brk), ALL},
	{SCMP_SYS(munmap), ALL},
	{SCMP_SYS(mremap), ALL},
	{SCMP_SYS(madvise), ALL},
	{SCMP_SYS(mincore), WIDE},
	{SCMP_SYS(mmap), WIDE},
	{SCMP_SYS(mprotect), WIDE},

	/* Threads that are there, time, and the process itself. */
	{SCMP_SYS(futex), ALL},
	{SCMP_SYS(sched_yield), ALL},
	{SCMP_SYS(getpriority), WIDE},
	{SCMP_SYS(setpriority), WIDE}, /* no higher than it is */
	{SCMP_SYS(sched_getaffinity), ALL},
	{SCMP_SYS(getcpu), ALL},
	{SCMP_SYS(membarrier), ALL},
	{SCMP_SYS(rseq), ALL},
	{SCMP_SYS(set_robust_list), ALL},
	{SCMP_SYS(rt_sigaction), ALL},
	{SCMP_SYS(rt_sigprocmask), ALL},
	{SCMP_SYS(rt_sigreturn), ALL},
	{SCMP_SYS(sigaltstack), ALL},
	{SCMP_SYS(restart_syscall), ALL},
	{SCMP_SYS(clock_gettime), ALL},
	{SCMP_SYS(clock_nanosleep), ALL},
	{SCMP_SYS(nanosleep), ALL},
	{SCMP_SYS(gettimeofday), ALL},
	{SCMP_SYS(time), ALL},
	{SCMP_SYS(timer_create), V},
	{SCMP_SYS(timer_settime), V},
	{SCMP_SYS(timer_delete), V},
	{SCMP_SYS(getpid), ALL},
	{SCMP_SYS(getppid), ALL},
	{SCMP_SYS(getpgrp), ALL},
	{SCMP_SYS(gettid), ALL},
	{SCMP_SYS(getuid), ALL},
	{SCMP_SYS(geteuid), ALL},
	{SCMP_SYS(getgid), ALL},
	{SCMP_SYS(getegid), ALL},
	{SCMP_SYS(getrusage), ALL},
	{SCMP_SYS(sysinfo), ALL},
	{SCMP_SYS(getrandom), ALL},
	{SCMP_SYS(exit), ALL},
	{SCMP_SYS(exit_group), ALL},

	/* A child that has ended, or is to; only one that we have a descriptor of. */
	{SCMP_SYS(wait4), ALL},
	{SCMP_SYS(pidfd_send_signal), ALL},

	/* Files by their names. */
	{SCMP_SYS(open), WIDE},
	{SCMP_SYS(openat), WIDE},
	{SCMP_SYS(access), WIDE},
	{SCMP_SYS(faccessat), WIDE},
	{SCMP_SYS(faccessat2), WIDE},
	{SCMP_SYS(stat), WIDE},
	{SCMP_SYS(lstat), WIDE},
	{SCMP_SYS(newfstatat), WIDE},
	{SCMP_SYS(statx), WIDE},
	{SCMP_SYS(statfs), WIDE},
	{SCMP_SYS(fstatfs), WIDE},
	{SCMP_SYS(readlink), WIDE},
	{SCMP_SYS(readlinkat), WIDE},
	{SCMP_SYS(getdents64), WIDE},
	{SCMP_SYS(getcwd), WIDE},
	{SCMP_SYS(mkdir), WIDE},
	{SCMP_SYS(mkdirat), WIDE},
	{SCMP_SYS(rename), WIDE},
	{SCMP_SYS(renameat), WIDE},
	{SCMP_SYS(renameat2), WIDE},
	{SCMP_SYS(unlink), WIDE},
	{SCMP_SYS(unlinkat), WIDE},
	{SCMP_SYS(fchmod), WIDE},
	{SCMP_SYS(ftruncate), WIDE},
	{SCMP_SYS(fadvise64), WIDE},
	{SCMP_SYS(flock), WIDE},
	{SCMP_SYS(memfd_create), WIDE},
	{SCMP_SYS(pipe2), WIDE},
	{SCMP_SYS(dup), WIDE},
	{SCMP_SYS(dup2), WIDE},
	{SCMP_SYS(dup3), WIDE},

	/* Sockets, and finding addresses. */
	{SCMP_SYS(socket), WIDE},
	{SCMP_SYS(socketpair), WIDE},
	{SCMP_SYS(connect), WIDE},
	{SCMP_SYS(bind), WIDE},
	{SCMP_SYS(listen), WIDE},
	{SCMP_SYS(accept), WIDE},
	{SCMP_SYS(getsockname), WIDE},
	{SCMP_SYS(getpeername), WIDE},
	{SCMP_SYS(setsockopt), WIDE},
	{SCMP_SYS(sendmmsg), WIDE},
	{SCMP_SYS(recvmmsg), WIDE},
	{SCMP_SYS(uname), WIDE},

	/* Rings and threads with less. */
	{SCMP_SYS(epoll_create1), WIDE},
	{SCMP_SYS(io_uring_setup), WIDE},
	{SCMP_SYS(io_uring_register), WIDE},
	{SCMP_SYS(seccomp), WIDE},
	{SCMP_SYS(landlock_restrict_self), WIDE},
	{SCMP_SYS(ioctl), WIDE},

	/* Making a machine: RAM is a file of a tmpfs of its own, if need be of a child's
	   (ram_file.c). */
	{SCMP_SYS(capget), WIDE},
	{SCMP_SYS(clone), H},
	{SCMP_SYS(fork), H},
	{SCMP_SYS(fsopen), H},
	{SCMP_SYS(fsconfig), H},
	{SCMP_SYS(fsmount), H},
};

/*
 * Of sockets, of a tap whose guest changes its mind, and of the terminal, which whatever thread is
 * about to end the process by a signal puts back (console.c). Newer versions of glibc use the
 * second kind of these.
 */
static const unsigned long controls[] = {
	FIONREAD, TIOCOUTQ, TUNSETOFFLOAD, TUNSETQUEUE, TIOCGPGRP, TIOCGWINSZ, TCGETS,
	TCSETS,	  TCSETSW,  TCSETSF,	   TCGETS2,	TCSETS2,   TCSETSW2,   TCSETSF2,
};

/* Not F_SETOWN, which has the kernel send signals to others. */
static const int file_controls[] = {
	F_GETFD, F_GETFL, F_SETFL, F_OFD_GETLK, F_OFD_SETLK, F_DUPFD_CLOEXEC,
};

/* All of KVM's are of this type. */
#define KVM_TYPE_MASK 0xff00U
#define KVM_TYPE 0xae00U

/* What nobody here needs, nor what passt does, which inherits it. */
static const int never[] = {
	SCMP_SYS(ptrace),
	SCMP_SYS(process_vm_readv),
	SCMP_SYS(process_vm_writev),
	SCMP_SYS(pidfd_getfd),
	SCMP_SYS(kcmp),
	SCMP_SYS(bpf),
	SCMP_SYS(perf_event_open),
	SCMP_SYS(userfaultfd),
	SCMP_SYS(init_module),
	SCMP_SYS(finit_module),
	SCMP_SYS(delete_module),
	SCMP_SYS(kexec_load),
	SCMP_SYS(kexec_file_load),
	SCMP_SYS(reboot),
	SCMP_SYS(swapon),
	SCMP_SYS(swapoff),
	SCMP_SYS(acct),
	SCMP_SYS(quotactl),
	SCMP_SYS(add_key),
	SCMP_SYS(request_key),
	SCMP_SYS(keyctl),
	SCMP_SYS(open_by_handle_at),
	SCMP_SYS(settimeofday),
	SCMP_SYS(clock_settime),
	SCMP_SYS(adjtimex),
	SCMP_SYS(clock_adjtime),
	SCMP_SYS(iopl),
	SCMP_SYS(ioperm),
	SCMP_SYS(modify_ldt),
	SCMP_SYS(mknod),
	SCMP_SYS(mknodat),
	SCMP_SYS(syslog),
};

/* ---- rules: 0 or -errno, as all of libseccomp ---- */

/* The call whose argument is that value. */
static int allow_with(scmp_filter_ctx f, int nr, unsigned arg, scmp_datum_t value)
{
	const struct scmp_arg_cmp cmp = {.arg = arg, .op = SCMP_CMP_EQ, .datum_a = value};

	return seccomp_rule_add_array(f, SCMP_ACT_ALLOW, nr, 1, &cmp);
}

/* The call of whose argument these bits are that value. */
static int allow_bits(scmp_filter_ctx f, int nr, unsigned arg, scmp_datum_t bits,
		      scmp_datum_t value)
{
	const struct scmp_arg_cmp cmp = {
		.arg = arg, .op = SCMP_CMP_MASKED_EQ, .datum_a = bits, .datum_b = value};

	return seccomp_rule_add_array(f, SCMP_ACT_ALLOW, nr, 1, &cmp);
}

static int add_controls(scmp_filter_ctx f)
{
	int ret = allow_bits(f, SCMP_SYS(ioctl), 1, KVM_TYPE_MASK, KVM_TYPE);

	for (size_t i = 0; i < ARRAY_SIZE(controls) && ret == 0; i++)
		ret = allow_with(f, SCMP_SYS(ioctl), 1, controls[i]);
	for (size_t i = 0; i < ARRAY_SIZE(file_controls) && ret == 0; i++)
		ret = allow_with(f, SCMP_SYS(fcntl), 1, (scmp_datum_t)file_controls[i]);
	return ret;
}

/* What a guest can reach. */
static int add_narrow(scmp_filter_ctx f)
{
	int ret = add_controls(f);

	if (ret == 0)
		ret = allow_bits(f, SCMP_SYS(mmap), 2, PROT_EXEC, 0);
	if (ret == 0)
		ret = allow_bits(f, SCMP_SYS(mprotect), 2, PROT_EXEC, 0);
	/* fstat(), in some versions of glibc. */
	if (ret == 0)
		ret = allow_with(f, SCMP_SYS(newfstatat), 3, AT_EMPTY_PATH);
	return ret;
}

/* Threads, which clone3() would not let us tell from processes: glibc does without it. */
static int add_threads(scmp_filter_ctx f, unsigned role)
{
	int ret = seccomp_rule_add(f, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);

	if (ret == 0 && role == M)
		ret = allow_bits(f, SCMP_SYS(clone), 0, CLONE_THREAD, CLONE_THREAD);
	if (ret == 0 && role == H)
		ret = allow_with(f, SCMP_SYS(unshare), 0, CLONE_NEWUSER | CLONE_NEWNS);
	return ret;
}

static int add_rules(scmp_filter_ctx f, unsigned role)
{
	int ret = 0;

	for (size_t i = 0; i < ARRAY_SIZE(calls) && ret == 0; i++) {
		if (calls[i].roles & role)
			ret = seccomp_rule_add(f, SCMP_ACT_ALLOW, calls[i].nr, 0);
	}
	if (ret == 0)
		ret = allow_with(f, SCMP_SYS(tgkill), 0, (scmp_datum_t)getpid());
	if (ret == 0)
		ret = allow_with(f, SCMP_SYS(prctl), 0, PR_SET_NAME);
	if (ret == 0)
		ret = allow_with(f, SCMP_SYS(prctl), 0, PR_GET_NAME);
	if (ret == 0)
		ret = role & WIDE ? add_threads(f, role) : add_narrow(f);
	/* First what is done a thousand times a second. */
	for (int *nr = (int[]){SCMP_SYS(ioctl), SCMP_SYS(io_uring_enter), SCMP_SYS(futex), -1};
	     *nr >= 0 && ret == 0; nr++)
		ret = seccomp_syscall_priority(f, *nr, 255);
	return ret;
}

static int add_never(scmp_filter_ctx f)
{
	int ret = 0;

	for (size_t i = 0; i < ARRAY_SIZE(never) && ret == 0; i++)
		ret = seccomp_rule_add(f, SCMP_ACT_ERRNO(EPERM), never[i], 0);
	return ret;
}

/* ---- the filter as the kernel takes it ---- */

/* libseccomp only writes it to files, in version 2.5. */
static int export(scmp_filter_ctx f, struct sock_fprog *out)
{
	AUTO_CLOSE int fd = memfd_create("godwit-seccomp", MFD_CLOEXEC);
	struct sock_filter *code;
	off_t len;
	int ret;

	if (fd < 0)
		return -errno;
	ret = seccomp_export_bpf(f, fd);
	if (ret)
		return ret;
	len = lseek(fd, 0, SEEK_END);
	if (len <= 0 || len > (off_t)(BPF_MAXINSNS * sizeof(*code)))
		return -E2BIG;
	code = malloc((size_t)len);
	if (!code)
		return -ENOMEM;
	if (pread(fd, code, (size_t)len, 0) != (ssize_t)len) {
		free(code);
		return -EIO;
	}
	*out = (struct sock_fprog){.len = (unsigned short)((size_t)len / sizeof(*code)),
				   .filter = code};
	return 0;
}

/* libseccomp has no word for the data that SIGSYS brings along. */
static void tell_role(struct sock_fprog *p, enum confine_role role)
{
	for (unsigned i = 0; i < p->len; i++) {
		struct sock_filter *insn = &p->filter[i];

		if (insn->code == (BPF_RET | BPF_K) && insn->k == SECCOMP_RET_TRAP)
			insn->k |= (unsigned)role;
	}
}

int confine_make_filter(enum confine_role role, bool report, struct sock_fprog *out,
			struct errmsg *err)
{
	uint32_t refuse = report ? SCMP_ACT_TRAP : SCMP_ACT_ERRNO(EPERM);
	bool launcher = role == CONFINE_LAUNCHER;
	scmp_filter_ctx f = seccomp_init(launcher ? SCMP_ACT_ALLOW : refuse);
	int ret;

	if (!f)
		return errmsg_set(err, -ENOMEM, "no memory for a seccomp filter");
	/* The numbers of other architectures: nobody calls by those by mistake. */
	ret = seccomp_attr_set(f, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
	if (ret == 0)
		ret = launcher ? add_never(f) : add_rules(f, 1U << role);
	if (ret == 0)
		ret = export(f, out);
	if (ret == 0)
		tell_role(out, role);
	else
		errmsg_set(err, ret, "seccomp filter of the %s: %s", confine_role_name(role),
			   strerror(-ret));
	seccomp_release(f);
	return ret;
}

/* ---- saying what was refused ---- */

/*
 * A signal handler has no argument that is its own, and may not ask libseccomp, which allocates:
 * written once, before there is a filter.
 */
#define NAMES 512
static char *call_names[NAMES];

static void on_refusal(int sig, siginfo_t *info, void *context)
{
	int nr = info->si_syscall, role = info->si_errno;
	ucontext_t *uc = context;
	char thread[16] = "?", line[160];
	int n;

	(void)sig;
	if (info->si_code != SYS_SECCOMP)
		return;
	prctl(PR_GET_NAME, thread);
	n = snprintf(line, sizeof(line), "godwit: confine: thread '%s' (%s) may not %s\n", thread,
		     role >= 0 && role < CONFINE_ROLES ? confine_role_name((enum confine_role)role)
						       : "?",
		     nr >= 0 && nr < NAMES && call_names[nr] ? call_names[nr] : "do that");
	(void)!write(STDERR_FILENO, line, (size_t)n);
	uc->uc_mcontext.gregs[REG_RAX] = -EPERM;
}

int confine_report_refusals(struct errmsg *err)
{
	struct sigaction sa = {.sa_sigaction = on_refusal, .sa_flags = SA_SIGINFO | SA_NODEFER};

	for (int nr = 0; nr < NAMES; nr++) {
		if (!call_names[nr])
			call_names[nr] = seccomp_syscall_resolve_num_arch(SCMP_ARCH_NATIVE, nr);
	}
	sigemptyset(&sa.sa_mask);
	if (sigaction(SIGSYS, &sa, NULL))
		return errmsg_set(err, -errno, "sigaction: %s", strerror(errno));
	return 0;
}

int confine_parse_mode(const char *text, enum confine_mode *mode)
{
	static const char *const names[] = {
		[CONFINE_OFF] = "off", [CONFINE_ON] = "on", [CONFINE_LOG] = "log"};

	for (unsigned i = 0; i < ARRAY_SIZE(names); i++) {
		if (strcmp(text, names[i]) == 0) {
			*mode = (enum confine_mode)i;
			return 0;
		}
	}
	return -EINVAL;
}
