/* SPDX-License-Identifier: MIT */
/*
 * Confinement, in whole processes: threads that have been taken over get nowhere, and a guest with
 * all that there is gets everywhere it did.
 *
 * For the first, a godwit is run whose vCPU threads and whose loop's thread try what an attacker
 * would once they are confined (attack.c). For the second, everything runs with --confine=log, and
 * no process may have been refused anything. What io_uring refuses is in vmm/tests/test-loop.c.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "../../vmm/confine.h"
#include "disks.h"
#include "harness.h"

#define COUNT(a) ((int)(sizeof(a) / sizeof((a)[0])))
#define LINE_MS 15000
#define MOVE_MS 60000
#define REFUSED "may not "

static const char *attacked(void)
{
	return harness_path("%s/build/guest-tests/tests/godwit-attacked", harness_root());
}

/* ---- threads that have been taken over ---- */

/* What each tries, and the system call that is. */
static const struct {
	const char *what, *call;
} attacks[] = {
	{"open", "openat"},	   {"create", "openat"},
	{"socket-inet", "socket"}, {"socket-unix", "socket"},
	{"connect", "connect"},	   {"bind", "bind"},
	{"execve", "execve"},	   {"fork", "clone"},
	{"ptrace", "ptrace"},	   {"process_vm_readv", "process_vm_readv"},
	{"kill", "kill"},	   {"io_uring_setup", "io_uring_setup"},
	{"mmap-exec", "mmap"},	   {"ioctl-tiocsti", "ioctl"},
	{"fcntl-setown", "fcntl"}, {"chmod", "chmod"},
	{"unlink", "unlink"},
};

static const char *victim(const char *role)
{
	return harness_path("%s/victim-%s", harness_tmp(), role);
}

static void make_victims(void)
{
	static const char *const roles[] = {"vcpu", "loop"};

	setenv("GODWIT_TEST_ATTACK", harness_tmp(), 1);
	for (int i = 0; i < COUNT(roles); i++) {
		int fd = open(victim(roles[i]), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

		need(fd >= 0, "%s: %s", victim(roles[i]), strerror(errno));
		close(fd);
	}
}

static unsigned times(const char *text, const char *what)
{
	unsigned n = 0;

	for (const char *p = text; (p = strstr(p, what)); p += strlen(what))
		n++;
	return n;
}

/* Each thing was tried so often by a thread of that role, and refused, or else done or so. */
static void attacks_failed(struct proc *p, const char *role, unsigned n, bool refused)
{
	for (int i = 0; i < COUNT(attacks); i++) {
		const char *tried = harness_path("attack %s %s ", role, attacks[i].what);
		const char *failed = harness_path("%sEPERM\n", tried);

		need(times(p->err.buf, tried) == n, "'%s' %u times, not %u: %s", tried,
		     times(p->err.buf, tried), n, p->err.buf);
		need(times(p->err.buf, failed) == (refused ? n : 0), "'%s' %u times: %s", failed,
		     times(p->err.buf, failed), p->err.buf);
	}
	need((access(victim(role), F_OK) == 0) == refused, "%s is %s", victim(role),
	     refused ? "gone" : "there");
}

static struct proc *run_attacked(const char *mode)
{
	struct proc *p;

	make_victims();
	p = proc_start("vm", attacked(), "run", "-n", "vm", "-m", "32M",
		       harness_path("--confine=%s", mode), "-k", bare_elf("hello"), NULL);
	proc_expect(p, "^hello done$", LINE_MS);
	proc_ended(p, 0, LINE_MS);
	return p;
}

/* The guest does not notice. */
START_TEST(taken_over)
{
	struct proc *p = run_attacked("on");

	attacks_failed(p, "vcpu", 1, true);
	attacks_failed(p, "loop", 1, true);
	need(access(harness_path("%s/created", harness_tmp()), F_OK) != 0, "a file was made");
	need(!strstr(p->err.buf, REFUSED), "said without being asked: %s", p->err.buf);
}
END_TEST

/* Otherwise the above would show nothing. */
START_TEST(not_confined)
{
	struct proc *p = run_attacked("off");

	attacks_failed(p, "vcpu", 1, false);
	attacks_failed(p, "loop", 1, false);
}
END_TEST

START_TEST(named)
{
	struct proc *p = run_attacked("log");

	attacks_failed(p, "vcpu", 1, true);
	attacks_failed(p, "loop", 1, true);
	for (int i = 0; i < COUNT(attacks); i++) {
		const char *vcpu =
			harness_path("thread 'vcpu0' (vcpu) " REFUSED "%s\n", attacks[i].call);
		const char *loop = harness_path("(loop) " REFUSED "%s\n", attacks[i].call);

		need(strstr(p->err.buf, vcpu), "no '%s': %s", vcpu, p->err.buf);
		need(strstr(p->err.buf, loop), "no '%s': %s", loop, p->err.buf);
	}
	/* And what is no attack is not among them. */
	ck_assert_uint_eq(times(p->err.buf, REFUSED), 2 * COUNT(attacks));
}
END_TEST

/* The threads of a guest that came from elsewhere, and those of one that has been reset. */
START_TEST(taken_over_later)
{
	struct disk d = {.path = disk_new("disk", 1 << 20)};
	struct proc *there;
	struct guest g;
	const char *uri;
	struct move m;

	guest_start(&g, "vm", "-m", "32M", "-k", bare_elf("virtio"), "--disk", d.path, "-p",
		    "rate=1M report=0", NULL);
	disks_ready(g.proc, &d, 1);
	make_victims();
	there = proc_start("there", attacked(), "receive", "-n", "there", "--confine=on",
			   "tcp:127.0.0.1:0", NULL);
	there->guest = true;
	uri = proc_expect(there, "^listening ", LINE_MS) + strlen("listening ");
	move_report(move_start(&g, uri, NULL), 0, &m, MOVE_MS);
	proc_ended(g.proc, 0, LINE_MS);
	proc_expect(there, "^virtio durable ", LINE_MS);
	proc_send(there, "b");
	disks_ready(there, &d, 1);
	disk_works(there);
	disks_quit(there, &d, 1);
	attacks_failed(there, "vcpu", 2, true);
	attacks_failed(there, "loop", 1, true);
}
END_TEST

/* ---- life goes on ---- */

/* No process of this test's may have been refused anything. */
static void need_content(const struct proc *p)
{
	need(!strstr(p->err.buf, REFUSED), "%s: %s", p->label, p->err.buf);
}

static const char *socket_path(const char *kind, unsigned n)
{
	return harness_path("%s/%s%u", harness_tmp(), kind, n);
}

/* Somebody listens at a socket of the guest's. */
static void need_socket(const char *path)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(a.sun_path, sizeof(a.sun_path), "%s", path);
	need(connect(fd, (const struct sockaddr *)&a, sizeof(a)) == 0, "%s: %s", path,
	     strerror(errno));
	close(fd);
}

static void need_sockets(unsigned n)
{
	need_socket(socket_path("vsock", n));
	need_socket(socket_path("console", n));
}

/* The child of p's that is passt; 0: none. */
static pid_t passt_of(const struct proc *p)
{
	char line[256] = "", comm[64];
	struct proc *ps = proc_start("ps", "ps", "-o", "pid=,comm=", "--ppid",
				     harness_path("%d", (int)p->pid), NULL);
	proc_ended(ps, 0, LINE_MS);
	for (char *at = ps->out.buf, *end; (end = strchr(at, '\n')); at = end + 1) {
		int pid;

		snprintf(line, sizeof(line), "%.*s", (int)(end - at), at);
		if (sscanf(line, "%d %63s", &pid, comm) == 2 && strncmp(comm, "passt", 5) == 0)
			return pid;
	}
	return 0;
}

/* Every device: --net user only where passt finds a way out of this host. */
static void start_with_all(struct guest *g, struct disk *d, bool net)
{
	guest_start(g, "vm", "-m", "64M", "-c", "2", "-k", bare_elf("virtio"), "--confine=log",
		    "--disk", d->path, "--rng", "--balloon", "--vsock", socket_path("vsock", 0),
		    "--console", socket_path("console", 0), "-p", "rate=1M report=0",
		    net ? "--net" : NULL, "user", NULL);
	disks_ready(g->proc, d, 1);
	need_sockets(0);
}

static void dest_with_all(struct dest *d, unsigned n, const char *base)
{
	dest_start(d, harness_path("vm-%u", n), "unix:", "--confine=log", "--keep=60s", "--vsock",
		   socket_path("vsock", n), "--console", socket_path("console", n),
		   base ? "--base" : NULL, base, NULL);
}

START_TEST(with_all)
{
	const char *image = harness_path("%s/ram", harness_tmp());
	struct disk disk = {.path = disk_new("disk", 4 << 20)};
	struct proc *was;
	struct guest g;
	struct dest d;
	struct move m;

	start_with_all(&g, &disk, false);
	ck_assert_str_eq(json_text(guest_status(&g), "state"), "running");
	godwit_run(0, "pause", g.name, NULL);
	ck_assert_str_eq(json_text(guest_status(&g), "state"), "paused");
	godwit_run(0, "resume", g.name, NULL);
	godwit_run(0, "balloon", g.name, NULL);
	disk_works(g.proc);

	/* Away, reset there, and home again. */
	was = g.proc;
	dest_with_all(&d, 1, NULL);
	move_report(move_start(&g, d.uri, harness_path("--leave=%s", image), NULL), 0, &m, MOVE_MS);
	guest_moved(&g, &d);
	need_content(was);
	need(access(image, R_OK) == 0, "no %s", image);
	need(access(socket_path("vsock", 0), F_OK) && access(socket_path("console", 0), F_OK),
	     "its sockets are left behind");
	need_sockets(1);
	disk_works(g.proc);

	was = g.proc;
	dest_with_all(&d, 2, image);
	move_report(move_start(&g, d.uri, NULL), 0, &m, MOVE_MS);
	need(json_num(m.json, "held_pages") > 0, "%s", json_dumps(m.json, JSON_COMPACT));
	guest_moved(&g, &d);
	need_content(was);
	guest_send(&g, "b");
	disks_ready(g.proc, &disk, 1);
	need_sockets(2);
	godwit_run(0, "pause", g.name, NULL);
	godwit_run(0, "resume", g.name, NULL);
	disk_works(g.proc);
	disks_quit(g.proc, &disk, 1);
	need_content(g.proc);
	need(access(socket_path("vsock", 2), F_OK) && access(socket_path("console", 2), F_OK),
	     "its sockets are left behind");
}
END_TEST

/* One that fails leaves all as it was; by the network's fault it goes on over another connection.
 */
START_TEST(moves_that_break)
{
	const struct link_plan plan = {.n_cuts = 1, .at = {4 << 20}};
	struct guest g;
	struct dest d;
	struct move m;

	guest_start(&g, "vm", "-m", "64M", "-k", bare_elf("dirty"), "--confine=log", "-p",
		    "ws=16M rate=2M report=0", NULL);
	guest_expect(&g, "^dirty ready ", LINE_MS);
	move_report(move_start(&g, harness_path("unix:%s/none", harness_tmp()), NULL), 1, &m,
		    MOVE_MS);
	dest_start(&d, "refuses", "unix:", "--confine=log", "-m", "32M", NULL);
	move_report(move_start(&g, d.uri, NULL), 1, &m, MOVE_MS);
	proc_ended(d.proc, 1, LINE_MS);
	need_content(d.proc);
	dest_start(&d, "there", "tcp:127.0.0.1:0", "--confine=log", "--keep=60s", NULL);
	move_report(move_start(&g, planned_link(&d, &plan), "--reconnect=60s", "--verify=full",
			       "--connections=3", "--compress=zstd", NULL),
		    0, &m, MOVE_MS);
	need(json_num(m.json, "reconnects") >= 1, "%s", json_dumps(m.json, JSON_COMPACT));
	need_content(g.proc);
	guest_moved(&g, &d);
	guest_send(&g, "v");
	guest_expect(&g, "^dirty verify .* errors=0$", LINE_MS);
	guest_send(&g, "q");
	guest_ended(&g, 0, LINE_MS);
	need_content(g.proc);
}
END_TEST

/* Dirty rings and vCPUs that are slowed have timers and threads of their own. */
START_TEST(throttled)
{
	struct guest g;
	struct dest d;
	struct move m;

	guest_start(&g, "vm", "-m", "64M", "-k", bare_elf("dirty"), "--confine=log",
		    "--dirty=ring:1024", "-p", "ws=16M report=0", NULL);
	guest_expect(&g, "^dirty ready ", LINE_MS);
	dest_start(&d, "there", "unix:", "--confine=log", NULL);
	move_report(move_start(&g, slow_link(&d, 16 << 20), "--on-timeout=throttle", "--timeout=2s",
			       NULL),
		    0, &m, 2 * MOVE_MS);
	need_content(g.proc);
	guest_moved(&g, &d);
	guest_send(&g, "q");
	guest_ended(&g, 0, LINE_MS);
	need_content(g.proc);
}
END_TEST

/* The terminal is the loop's to change, and is put back at the end. */
START_TEST(terminal)
{
	const char *cmd = harness_path("stty sane; '%s' run -n vm -m 64M --confine=log -k '%s' "
				       "-p 'ws=8M report=0'; stty -a",
				       harness_godwit(), bare_elf("dirty"));
	struct proc *p = proc_start("pty", "script", "-qec", "true", "/dev/null", NULL);

	if (proc_wait(p, LINE_MS))
		harness_skip("no terminals here: %s", p->err.buf);
	p = proc_start("script", "script", "-qec", cmd, "/dev/null", NULL);
	proc_expect(p, "^dirty ready ", LINE_MS);
	proc_send(p, "v");
	proc_expect(p, "^dirty verify .* errors=0$", LINE_MS);
	proc_send(p, "\001x");
	proc_expect(p, "[^-]icanon ", LINE_MS);
	proc_ended(p, 0, LINE_MS);
	need(!strstr(p->out.buf, REFUSED), "%s", p->out.buf);
}
END_TEST

/* passt is a program: it is there again after it was lost, after a reset, and after a move. */
START_TEST(user_network)
{
	struct disk disk = {.path = disk_new("disk", 4 << 20)};
	struct proc *p;
	struct guest g;
	struct dest d;
	struct move m;
	pid_t pid;

	p = godwit_run(-1, "run", "-n", "probe", "-m", "32M", "-k", bare_elf("hello"), "--net",
		       "user", NULL);
	if (p->status)
		harness_skip("no user network here: %s", p->err.buf);
	start_with_all(&g, &disk, true);
	pid = passt_of(g.proc);
	need(pid > 0, "no passt");
	need(kill(pid, SIGKILL) == 0, "%s", strerror(errno));
	proc_expect_err(g.proc, "net 0: passt works again", LINE_MS);
	guest_send(&g, "b");
	disks_ready(g.proc, &disk, 1);
	need(passt_of(g.proc) > 0, "no passt after a reset");
	p = g.proc;
	dest_with_all(&d, 1, NULL);
	move_report(move_start(&g, d.uri, NULL), 0, &m, MOVE_MS);
	guest_moved(&g, &d);
	need_content(p);
	pid = passt_of(g.proc);
	need(pid > 0, "no passt after a move");
	need(kill(pid, SIGKILL) == 0, "%s", strerror(errno));
	proc_expect_err(g.proc, "net 0: passt works again", LINE_MS);
	disk_works(g.proc);
	disks_quit(g.proc, &disk, 1);
	need_content(g.proc);
}
END_TEST

/* ---- another user ---- */

/* With a /dev/kvm that is his, in a mount namespace: the host's stays as it is. */
START_TEST(another_user)
{
	static const char script[] =
		"cp --preserve=mode,ownership -R /dev/kvm \"$1/kvm\" && chmod 666 \"$1/kvm\" && "
		"mount --bind \"$1/kvm\" /dev/kvm && test -w /dev/kvm || exit 77; "
		"shift; exec \"$@\"";
	const char *tmp = harness_tmp(), *elf = harness_path("%s/dirty.elf", tmp);
	const char *run = harness_path("%s/his", tmp), *line;
	struct guest g = {.name = "vm", .base = "vm"};
	struct proc *p;

	if (geteuid() != 0)
		harness_skip("not root");
	need(chmod(tmp, 0755) == 0 && chmod(harness_path("%s/..", tmp), 0755) == 0 &&
		     mkdir(run, 0700) == 0 && chown(run, 65534, 65534) == 0,
	     "%s", strerror(errno));
	proc_ended(proc_start("cp", "cp", bare_elf("dirty"), elf, NULL), 0, LINE_MS);
	setenv("GODWIT_RUNDIR", run, 1);
	g.proc = proc_start("vm", "unshare", "-m", "sh", "-c", script, "sh", tmp, harness_godwit(),
			    "run", "-n", "vm", "-m", "64M", "--user=65534:65534", "-k", elf, "-p",
			    "ws=8M report=0", NULL);
	line = proc_try(g.proc, "^dirty ready ", LINE_MS);
	if (!line && proc_wait(g.proc, LINE_MS) == 77)
		harness_skip("no mount namespace with a device here");
	need(line, "it did not start: %s", g.proc->err.buf);
	p = proc_start("grep", "grep", "-cE", "^(Uid:.65534.65534.65534.65534|NoNewPrivs:.1)$",
		       harness_path("/proc/%d/status", (int)g.proc->pid), NULL);
	proc_ended(p, 0, LINE_MS);
	ck_assert_str_eq(p->out.buf, CONFINE_DEFAULT == CONFINE_OFF ? "1\n" : "2\n");
	ck_assert_str_eq(json_text(guest_status(&g), "state"), "running");
	guest_send(&g, "q");
	guest_ended(&g, 0, LINE_MS);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("confine");
	TCase *tc;

	if (!harness_kvm_works())
		return harness_skip_all("no KVM guest runs here: see godwit doctor");
	if (confine_probe_seccomp())
		return harness_skip_all("no seccomp filters here: see godwit doctor");
	tc = harness_case(s, "attacks", 60);
	tcase_add_test(tc, taken_over);
	tcase_add_test(tc, not_confined);
	tcase_add_test(tc, named);
	tcase_add_test(tc, taken_over_later);
	tc = harness_case(s, "life", 180);
	tcase_add_test(tc, with_all);
	tcase_add_test(tc, moves_that_break);
	tcase_add_test(tc, throttled);
	tcase_add_test(tc, terminal);
	tcase_add_test(tc, user_network);
	tcase_add_test(harness_case(s, "user", 60), another_user);
	return harness_main(s);
}
