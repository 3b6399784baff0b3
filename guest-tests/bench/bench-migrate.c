/* SPDX-License-Identifier: MIT */
/*
 * Migration, against QEMU: the bare payload `dirty` moved from one process to another on this
 * machine, over TCP on loopback or over a link of one gigabit.
 *
 * What the figures are:
 *
 *	total		from the command until the guest runs at the destination and the
 *			source knows. godwit: its report. QEMU: by the tool's clock, until the
 *			source's "completed" and the destination's RESUME have both come
 *	downtime	what the guest lost at the switch: the largest gap in its own clock that
 *			ended about then. QEMU restores that clock, the TSC, as it was, so where
 *			the host can do that the gap does not show; therefore, if it is more, the
 *			time from STOP at the source to RESUME at the destination, by the time
 *			stamps of these events
 *	downtime, own	what the engine claims
 *	largest gap	in the guest's clock, from before the command to after the switch
 *	CPU		seconds of both sides' processes, those of their vCPU threads taken
 *			off, a GiB of RAM; the source's to its end, freeing memory included
 *	memory		the most of memory of its own that each process had during the move:
 *			anonymous memory, guest RAM taken off
 *	wire		what the engine says that it sent. Over the link, what its device sent,
 *			headers and all: QEMU counts compressed pages as if they were not
 *	wire/content	the same against the bytes of the pages that hold something
 *
 * What protection costs is measured against godwit without it, on loopback, where nothing else
 * limits a move: with a pre-shared key, which after the handshake is the same as with certificates.
 *
 * Both sides are started and the guest has filled its memory before anything is measured. Memory
 * that the destination will need is in use, by this tool, until right before the move: a host that
 * is a virtual machine itself may give free memory back to its own host, and then takes longer to
 * get it again than a page takes to arrive.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../bare/contract.h"
#include "../tests/harness.h"
#include "bench-link.h"
#include "bench-qemu.h"
#include "bench.h"

#define MIB ((double)(1 << 20))
#define GIB ((double)(1 << 30))

/* The same for both. QEMU has as many channels as the machine has CPUs. */
#define DOWNTIME_MS 50
#define QEMU_CHANNELS 2
/* More words for `godwit migrate`, each with a comma after it: "--connections=2", */
#define GODWIT_WORDS

#define RUN_S 600
#define READY_MS 300000 /* 4 GiB of first touches, on a busy machine */
#define ANSWER_MS 30000
#define AFTER_MS 30000 /* from the end of a move to that of the source's process */
/* The switch is known on the tool's clock, a gap's end on the guest's: how far apart they may be.
 */
#define SWITCH_WINDOW_MS 80

struct setup {
	unsigned ram_mib;
	const char *payload;  /* options of `dirty` */
	unsigned content_mib; /* of RAM that holds something: ws= */
	unsigned downtime_ms; /* 0: DOWNTIME_MS */
	unsigned give_up_s;   /* after this long a move that has not converged is called off */
	const char *link;     /* its rate; NULL: loopback */
	const char *compress; /* for the QEMU with multifd */
	bool rounds;	      /* figures of single rounds are wanted */
};

/* ---- sides ---- */

/* One process, watched while its guest moves. */
struct side {
	pid_t pid;
	double cpu0, vcpu0; /* at the start */
	double cpu, vcpu;
	double anon; /* the most there was */
	double ram;  /* guest RAM in that */
};

static void side_begin(struct side *s, pid_t pid)
{
	*s = (struct side){
		.pid = pid,
		.cpu0 = bench_cpu(pid),
		.vcpu0 = bench_cpu_vcpus(pid),
	};
	s->cpu = s->cpu0;
	s->vcpu = s->vcpu0;
}

/* The last values that there were: it may end by itself. */
static void side_look(struct side *s)
{
	double cpu = bench_cpu(s->pid), vcpu = bench_cpu_vcpus(s->pid), anon = bench_anon(s->pid);

	if (cpu > s->cpu)
		s->cpu = cpu;
	if (vcpu > s->vcpu)
		s->vcpu = vcpu;
	if (anon > s->anon)
		s->anon = anon;
}

static double seconds(const struct timeval *tv)
{
	return (double)tv->tv_sec + (double)tv->tv_usec / 1e6;
}

/* It has ended: nobody knows better than the kernel. */
static void side_ended(struct side *s, const struct proc *p)
{
	s->cpu = seconds(&p->usage.ru_utime) + seconds(&p->usage.ru_stime);
}

static double side_engine_cpu(const struct side *s)
{
	return s->cpu - s->cpu0 - (s->vcpu - s->vcpu0);
}

/* How much of a mapping as large as guest RAM is resident: QEMU's is anonymous memory. */
static double resident_ram(pid_t pid, double ram_bytes)
{
	const char *path = harness_path("/proc/%d/smaps", (int)pid);
	FILE *f = fopen(path, "re");
	unsigned long from, to, kib;
	double sum = 0;
	bool in = false;
	char line[512];

	need(f, "%s cannot be read", path);
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx-%lx ", &from, &to) == 2)
			in = (double)(to - from) >= ram_bytes / 2;
		else if (in && sscanf(line, "Rss: %lu kB", &kib) == 1)
			sum += (double)kib * 1024;
	}
	fclose(f);
	return sum;
}

/* As much as the destination will need; in large pages, as these are the first to be given back. */
static void *hold_memory(const struct setup *s)
{
	size_t len = (size_t)s->content_mib << 20;
	char *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	need(p != MAP_FAILED, "no %zu MiB of memory: %s", len >> 20, strerror(errno));
	madvise(p, len, MADV_HUGEPAGE);
	need(!madvise(p, len, MADV_POPULATE_WRITE), "%zu MiB of memory: %s", len >> 20,
	     strerror(errno));
	return p;
}

static void release_memory(const struct setup *s, void *p)
{
	munmap(p, (size_t)s->content_mib << 20);
}

/* ---- what the guest says ---- */

static const char *ask(struct proc *p, const char *command, const char *answer)
{
	proc_send(p, command);
	return proc_expect(p, answer, ANSWER_MS);
}

static double wait_ready(struct proc *p)
{
	proc_fatal(p, BARE_DIRTY_ERROR "| panic ");
	proc_expect(p, "^dirty ready ", READY_MS);
	return bench_now();
}

/*
 * The largest gap that ended when the machine switched, in milliseconds. ready_at and switch_at are
 * the tool's time; lost_s is what the guest's clock does not know of.
 */
static double switch_gap_ms(const char *gaps, double ready_at, double switch_at, double lost_s)
{
	double at_ms = (switch_at - ready_at) * 1e3, gap_ms, end_ms, largest = 0;
	const char *p = gaps + strlen(BARE_DIRTY_GAPS);
	unsigned long us, end_us;
	bool any = false;
	int n;

	while (sscanf(p, " %lu@%lu%n", &us, &end_us, &n) == 2) {
		p += n;
		gap_ms = (double)us / 1e3;
		end_ms = (double)end_us / 1e3;
		if (end_ms >= at_ms - lost_s * 1e3 - SWITCH_WINDOW_MS &&
		    end_ms <= at_ms + SWITCH_WINDOW_MS) {
			any = true;
			largest = fmax(largest, gap_ms);
		}
	}
	need(any, "the guest saw nothing of the switch at %.0f ms of its clock: %s", at_ms, gaps);
	return largest;
}

/*
 * After a move. The gaps have been asked for as soon as the guest was there, for only the latest
 * are kept.
 */
static void put_gaps(struct bench_run *r, struct proc *p, double ready_at, double switch_at,
		     double paused_s)
{
	const char *gaps = proc_expect(p, "^" BARE_DIRTY_GAPS, ANSWER_MS);
	double at_switch = switch_gap_ms(gaps, ready_at, switch_at, paused_s);
	double largest = (double)kv(ask(p, "r", "^dirty t_ms="), "gap_us") / 1e3;

	if (paused_s * 1e3 > at_switch)
		at_switch = paused_s * 1e3;
	bench_put(r, "downtime", at_switch);
	bench_put(r, "largest gap", fmax(largest, at_switch));
}

/* Everything arrived: the guest checks all its pages, and ends. */
static void end_guest(struct proc *p)
{
	proc_send(p, "q");
	proc_expect(p, "^dirty verify .* errors=0$", READY_MS);
	proc_expect(p, "^dirty done .* errors=0$", ANSWER_MS);
	proc_ended(p, 0, AFTER_MS);
}

/* ---- figures ---- */

static double ram_bytes(const struct setup *s)
{
	return s->ram_mib * MIB;
}

static unsigned downtime_ms(const struct setup *s)
{
	return s->downtime_ms ? s->downtime_ms : DOWNTIME_MS;
}

/* wire: as the engine says it */
static void put_cost(struct bench_run *r, const struct setup *s, const struct side *src,
		     const struct side *dst, double wire)
{
	double gib = ram_bytes(s) / GIB, content = s->content_mib * MIB;

	if (s->link)
		wire = link_sent();

	bench_put(r, "CPU source", side_engine_cpu(src) / gib);
	bench_put(r, "CPU destination", side_engine_cpu(dst) / gib);
	bench_put(r, "CPU", (side_engine_cpu(src) + side_engine_cpu(dst)) / gib);
	bench_put(r, "memory source", (src->anon - src->ram) / MIB);
	bench_put(r, "memory destination", (dst->anon - dst->ram) / MIB);
	bench_put(r, "wire", wire / MIB);
	if (content > 0)
		bench_put(r, "wire/content", wire / content);
}

/* ---- godwit ---- */

struct godwit_move {
	struct guest *g;
	struct dest *d;
	double switched; /* when the destination had it, by bench_now(); 0: not yet */
	struct proc *client;
	struct side src, dst;
};

static bool godwit_over(void *arg)
{
	struct godwit_move *m = arg;

	side_look(&m->src);
	side_look(&m->dst);
	/* The report is all that it prints by itself. */
	if (m->switched == 0 && strstr(m->d->proc->out.buf, "\"completed\"")) {
		m->switched = bench_now();
		proc_send(m->d->proc, "g");
	}
	/* A move that fails leaves the guest where it is. */
	return !proc_running(m->client) && (m->client->status != 0 || !proc_running(m->g->proc));
}

/* The second round: all that was written during the first, which is all of the hot set. */
static void put_second_round(struct bench_run *r, const struct move *m)
{
	const json_t *second = json_array_get(json_object_get(m->json, "per_round"), 1);

	need(second, "no second round in the report");
	bench_put(r, "round pages", json_num(second, "pages"));
	bench_put(r, "round", json_num(second, "ms"));
}

/* A word for both sides of a protected move. */
static const char *make_psk(void)
{
	const char *path = harness_path("%s/psk", harness_tmp());
	int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	static const char key[] =
		"000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

	need(fd >= 0 && write(fd, key, strlen(key)) == (ssize_t)strlen(key), "%s: %s", path,
	     strerror(errno));
	close(fd);
	return harness_path("--tls-psk=%s", path);
}

static void run_godwit_with(struct bench_run *r, const char *dirty, bool tls)
{
	const struct setup *s = bench_arg(r);
	unsigned give_up = s->give_up_s ? s->give_up_s : 60;
	const char *ram = harness_path("%uM", s->ram_mib);
	struct godwit_move m = {.client = NULL};
	double ready_at;
	struct link_pair link;
	struct move report;
	const char *protection = tls ? make_psk() : "--insecure";
	const char *scheme = tls ? "tls" : "tcp";
	struct guest g;
	struct dest d;
	void *memory;
	bool completed;

	if (s->link) {
		link_make(&link, s->link);
		link_enter_dest(&link);
	}
	dest_start(&d, "vm-1", harness_path("%s:%s:0", scheme, s->link ? LINK_DEST : "127.0.0.1"),
		   protection, "--json", NULL);
	if (s->link)
		link_enter_source(&link);
	guest_start(&g, "vm", "-q", dirty, "-m", ram, "-k", bare_elf("dirty"), "-p", s->payload,
		    NULL);
	ready_at = wait_ready(g.proc);
	ask(g.proc, "zr", "^dirty t_ms=");
	memory = hold_memory(s);
	m.g = &g;
	m.d = &d;
	side_begin(&m.src, g.proc->pid);
	side_begin(&m.dst, d.proc->pid);
	release_memory(s, memory);
	m.client =
		move_start(&g, d.uri, harness_path("--downtime=%ums", downtime_ms(s)),
			   harness_path("--timeout=%us", give_up), protection, GODWIT_WORDS NULL);
	need(harness_until(godwit_over, &m, (int)(give_up + 60) * 1000), "the move does not end");
	completed = m.client->status == 0;
	move_report(m.client, completed ? 0 : 1, &report, 1000);
	bench_put(r, "moved", completed);
	bench_put(r, "rounds", (double)report.rounds);
	if (!completed) {
		bench_note(r, "%s", report.error);
		bench_put(r, "wire", (double)report.wire_bytes / MIB);
		bench_put(r, "largest gap",
			  (double)kv(ask(g.proc, "r", "^dirty t_ms="), "gap_us") / 1e3);
		end_guest(g.proc);
		return;
	}
	side_look(&m.dst);
	side_ended(&m.src, g.proc);
	need(m.switched > 0, "the destination has not reported: '%s'", d.proc->out.buf);
	if (s->rounds)
		put_second_round(r, &report);
	guest_moved(&g, &d);
	put_gaps(r, g.proc, ready_at, m.switched, 0);
	bench_put(r, "total", report.total_ms);
	bench_put(r, "downtime, own", report.downtime_ms);
	m.src.cpu += seconds(&m.client->usage.ru_utime) + seconds(&m.client->usage.ru_stime);
	put_cost(r, s, &m.src, &m.dst, (double)report.wire_bytes);
	end_guest(g.proc);
}

static void run_godwit(struct bench_run *r)
{
	run_godwit_with(r, "--dirty=auto", false);
}

static void run_godwit_tls(struct bench_run *r)
{
	run_godwit_with(r, "--dirty=auto", true);
}

static void run_godwit_log(struct bench_run *r)
{
	run_godwit_with(r, "--dirty=log", false);
}

static void run_godwit_ring(struct bench_run *r)
{
	run_godwit_with(r, "--dirty=ring", false);
}

/* ---- QEMU ---- */

struct qemu_watch {
	struct qemu src, dst;
	struct side src_side, dst_side;
};

static bool qemu_over(void *arg)
{
	struct qemu_watch *w = arg;

	side_look(&w->src_side);
	side_look(&w->dst_side);
	return qemu_move_over(&w->src, &w->dst);
}

static void start_qemus(struct qemu_watch *w, const struct setup *s)
{
	struct qemu_config c = {
		.label = "destination",
		.ram_mib = s->ram_mib,
		.cpus = 1,
		.kernel = bare_elf("dirty"),
		.append = s->payload,
		.incoming = true,
	};
	struct link_pair link;

	if (s->link) {
		link_make(&link, s->link);
		link_enter_dest(&link);
	}
	qemu_start(&w->dst, &c);
	if (s->link)
		link_enter_source(&link);
	c.label = "source";
	c.incoming = false;
	qemu_start(&w->src, &c);
}

static void run_qemu(struct bench_run *r, struct qemu_move move)
{
	const struct setup *s = bench_arg(r);
	unsigned give_up = s->give_up_s ? s->give_up_s : 60;
	struct qemu_watch *w = calloc(1, sizeof(*w));
	struct qemu_moved res;
	double ready_at, start;
	void *memory;

	need(w, "out of memory");
	start_qemus(w, s);
	ready_at = wait_ready(w->src.proc);
	ask(w->src.proc, "zr", "^dirty t_ms=");
	memory = hold_memory(s);
	move.downtime_ms = downtime_ms(s);
	move.host = s->link ? LINK_DEST : "127.0.0.1";
	side_begin(&w->src_side, w->src.proc->pid);
	side_begin(&w->dst_side, w->dst.proc->pid);
	release_memory(s, memory);
	qemu_move_start(&w->src, &w->dst, &move, &start);
	if (!harness_until(qemu_over, w, (int)give_up * 1000))
		qemu_move_cancel(&w->src);
	else
		proc_send(w->dst.proc, "g");
	qemu_move_result(&w->src, &w->dst, start, &res);
	bench_put(r, "moved", res.completed);
	bench_put(r, "rounds", res.rounds);
	if (!res.completed) {
		bench_note(r, "not done within %u s", give_up);
		bench_put(r, "wire", res.wire_bytes / MIB);
		bench_put(r, "largest gap",
			  (double)kv(ask(w->src.proc, "r", "^dirty t_ms="), "gap_us") / 1e3);
		end_guest(w->src.proc);
		return;
	}
	w->src_side.ram = resident_ram(w->src.proc->pid, ram_bytes(s));
	qemu_quit(&w->src);
	side_ended(&w->src_side, w->src.proc);
	side_look(&w->dst_side);
	w->dst_side.ram = resident_ram(w->dst.proc->pid, ram_bytes(s));
	put_gaps(r, w->dst.proc, ready_at, start + res.total_s, res.pause_s);
	bench_put(r, "total", res.total_s * 1e3);
	bench_put(r, "downtime, own", res.own_downtime_s * 1e3);
	put_cost(r, s, &w->src_side, &w->dst_side, res.wire_bytes);
	end_guest(w->dst.proc);
}

static void run_qemu_plain(struct bench_run *r)
{
	run_qemu(r, (struct qemu_move){.channels = 0});
}

static void run_qemu_multifd(struct bench_run *r)
{
	run_qemu(r, (struct qemu_move){.channels = QEMU_CHANNELS});
}

static void run_qemu_zstd(struct bench_run *r)
{
	run_qemu(r, (struct qemu_move){.channels = QEMU_CHANNELS, .compression = "zstd"});
}

/* ---- cases ---- */

static bool possible(const struct bench_case *c, char why[256])
{
	const struct setup *s = c->arg;

	if (!qemu_installed()) {
		snprintf(why, 256, "qemu-system-x86_64 is not installed");
		return false;
	}
	return !s->link || link_possible(why);
}

static bool has_ring(const struct bench_case *c, char why[256])
{
	int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	bool has = fd >= 0 && ioctl(fd, KVM_CHECK_EXTENSION, KVM_CAP_DIRTY_LOG_RING) > 0;

	(void)c;
	if (fd >= 0)
		close(fd);
	if (!has)
		snprintf(why, 256, "this KVM has no dirty rings");
	return has;
}

/* Aims, as parts of an initializer. */
#define NONE
#define AT_MOST(x) .aim = BENCH_RATIO_MAX, .limit = (x) /* of the better QEMU */
#define BELOW(x) .aim = BENCH_VALUE_MAX, .limit = (x)
#define ALWAYS .aim = BENCH_VALUE_MIN, .limit = 1

/* 0.4 % of RAM and 16 MiB. */
#define MEMORY(ram_mib) BELOW((ram_mib)*0.004 + 16)

/* The figures of a move, with the aims that the case has for some of them. */
#define FIGURES(ram_mib, total, cpu, gap, down, moves, content)                                    \
	{.name = "total", .unit = "ms", total},                                                    \
		{.name = "moved", .unit = "", .more = true, moves},                                \
		{.name = "downtime", .unit = "ms", .digits = 1, down},                             \
		{.name = "downtime, own", .unit = "ms", .digits = 1},                              \
		{.name = "largest gap", .unit = "ms", .digits = 1, gap},                           \
		{.name = "CPU", .unit = "s/GiB", .digits = 2, cpu},                                \
		{.name = "CPU source", .unit = "s/GiB", .digits = 2},                              \
		{.name = "CPU destination", .unit = "s/GiB", .digits = 2},                         \
		{.name = "wire", .unit = "MiB"},                                                   \
		{.name = "wire/content", .unit = "", .digits = 3, content},                        \
		{.name = "rounds", .unit = ""},                                                    \
		{.name = "memory source", .unit = "MiB", .digits = 1, MEMORY(ram_mib)},            \
		{.name = "memory destination", .unit = "MiB", .digits = 1, MEMORY(ram_mib)},       \
	{                                                                                          \
		.name = NULL                                                                       \
	}

static const struct bench_figure idle_1g[] = {
	FIGURES(1024, AT_MOST(0.5), AT_MOST(0.7), AT_MOST(0.5), NONE, ALWAYS, NONE),
};
static const struct bench_figure idle_4g[] = {
	FIGURES(4096, AT_MOST(0.5), AT_MOST(0.7), AT_MOST(0.5), BELOW(5), ALWAYS, NONE),
};
static const struct bench_figure zeros_1g[] = {
	FIGURES(1024, NONE, NONE, NONE, NONE, ALWAYS, NONE),
};
static const struct bench_figure new_rate[] = {
	FIGURES(1024, NONE, NONE, NONE, AT_MOST(1.0 / 3), ALWAYS, NONE),
};
static const struct bench_figure new_flat[] = {
	FIGURES(1024, NONE, NONE, NONE, NONE, NONE, NONE),
};
static const struct bench_figure same_flat[] = {
	FIGURES(1024, NONE, NONE, NONE, NONE, NONE, BELOW(1.02)),
};
static const struct bench_figure few_flat[] = {
	FIGURES(1024, NONE, NONE, NONE, NONE, ALWAYS, BELOW(1.05)),
};
static const struct bench_figure text_1gbit[] = {
	FIGURES(1024, AT_MOST(0.6), NONE, NONE, NONE, ALWAYS, NONE),
};
static const struct bench_figure round_1g[] = {
	{.name = "round", .unit = "ms", .digits = 2},
	{.name = "round pages", .unit = ""},
	FIGURES(1024, NONE, NONE, NONE, NONE, ALWAYS, NONE),
};
static const struct bench_figure round_16g[] = {
	{.name = "round", .unit = "ms", .digits = 2, BELOW(2), .same_as = "round-1g"},
	{.name = "round pages", .unit = ""},
	FIGURES(16384, NONE, NONE, NONE, NONE, ALWAYS, NONE),
};

static const struct bench_figure dirty_rounds[] = {
	{.name = "round", .unit = "ms", .digits = 2},
	{.name = "round pages", .unit = ""},
	FIGURES(16384, NONE, NONE, NONE, NONE, ALWAYS, NONE),
};
static const struct bench_figure dirty_moves[] = {
	FIGURES(1024, NONE, NONE, NONE, NONE, NONE, NONE),
};

/* 24 MiB are for the payload, its tables and firmware. */
#define FILL_1G "ws=1000M report=0 "
#define FILL_4G "ws=4050M report=0 "
#define HOT_256M FILL_1G "hot=256M "
/* All of the hot set is written again during the first round, and a few of its pages in the next.
 */
#define HOT_4M "ws=256M hot=4000K kind=new rate=20M report=0"

#define GODWIT                                                                                     \
	{                                                                                          \
		"godwit", run_godwit                                                               \
	}
#define QEMUS                                                                                      \
	{"qemu", run_qemu_plain},                                                                  \
	{                                                                                          \
		"qemu-multifd", run_qemu_multifd                                                   \
	}
#define LOG_AND_RING                                                                               \
	{"godwit-log", run_godwit_log},                                                            \
	{                                                                                          \
		"godwit-ring", run_godwit_ring                                                     \
	}
#define QEMU_ZSTD                                                                                  \
	{                                                                                          \
		"qemu-zstd", run_qemu_zstd                                                         \
	}

static const struct bench_case cases[] = {
	{
		.name = "idle-1g",
		.what = "1 GiB of random content, the guest spins",
		.contenders = {GODWIT, QEMUS},
		.figures = idle_1g,
		.timeout_s = RUN_S,
		.prepare = possible,
		.arg = &(const struct setup){.ram_mib = 1024,
					     .content_mib = 1000,
					     .payload = FILL_1G "kind=idle"},
	},
	{
		.name = "idle-4g",
		.what = "4 GiB of random content, the guest spins",
		.contenders = {GODWIT, QEMUS},
		.figures = idle_4g,
		.timeout_s = RUN_S,
		.prepare = possible,
		.arg = &(const struct setup){.ram_mib = 4096,
					     .content_mib = 4050,
					     .payload = FILL_4G "kind=idle"},
	},
	{
		.name = "zeros-1g",
		.what = "1 GiB that has been written with zeros",
		.contenders = {GODWIT, QEMUS},
		.figures = zeros_1g,
		.timeout_s = RUN_S,
		.prepare = possible,
		.arg = &(const struct setup){.ram_mib = 1024,
					     .content_mib = 1000,
					     .payload = FILL_1G "kind=idle content=zero"},
	},
	{
		.name = "new-50m",
		.what = "1 GiB, new content in 256 MiB of it at 50 MiB/s",
		.contenders = {GODWIT, QEMUS},
		.figures = new_rate,
		.timeout_s = RUN_S,
		.prepare = possible,
		.arg = &(const struct setup){.ram_mib = 1024,
					     .content_mib = 1000,
					     .payload = HOT_256M "kind=new rate=50M"},
	},
	{
		.name = "new-200m",
		.what = "1 GiB, new content in 256 MiB of it at 200 MiB/s",
		.contenders = {GODWIT, QEMUS},
		.figures = new_rate,
		.timeout_s = RUN_S,
		.prepare = possible,
		.arg = &(const struct setup){.ram_mib = 1024,
					     .content_mib = 1000,
					     .payload = HOT_256M "kind=new rate=200M",
					     .give_up_s = 30},
	},
	{
		.name = "new-flat",
		.what = "1 GiB, new content in 256 MiB of it flat out",
		.contenders = {GODWIT, QEMUS},
		.figures = new_flat,
		.timeout_s = RUN_S,
		.prepare = possible,
		.arg = &(const struct setup){.ram_mib = 1024,
					     .content_mib = 1000,
					     .payload = HOT_256M "kind=new",
					     .give_up_s = 15},
	},
	{
		.name = "same-flat",
		.what = "1 GiB, the same content rewritten in 256 MiB of it flat out",
		.contenders = {GODWIT, QEMUS},
		.figures = same_flat,
		.timeout_s = RUN_S,
		.prepare = possible,
		.arg = &(const struct setup){.ram_mib = 1024,
					     .content_mib = 1000,
					     .payload = HOT_256M "kind=same",
					     .give_up_s = 15},
	},
	{
		.name = "few-flat",
		.what = "1 GiB, 8 bytes of each page changed in 256 MiB of it flat out",
		.contenders = {GODWIT, QEMUS},
		.figures = few_flat,
		.timeout_s = RUN_S,
		.prepare = possible,
		.arg = &(const struct setup){.ram_mib = 1024,
					     .content_mib = 1000,
					     .payload = HOT_256M "kind=few",
					     .give_up_s = 15},
	},
	{
		.name = "text-1gbit",
		.what = "1 GiB that compresses to 0.4, over a link of 1 Gbit/s",
		.contenders = {GODWIT, QEMUS, QEMU_ZSTD},
		.figures = text_1gbit,
		.timeout_s = RUN_S,
		.prepare = possible,
		.arg = &(const struct setup){.ram_mib = 1024,
					     .content_mib = 1000,
					     .payload = FILL_1G "kind=idle content=text",
					     .link = "1gbit"},
	},
	{
		.name = "round-1g",
		.what = "1 GiB guest: the second round, of 1,000 dirty pages",
		.contenders = {GODWIT},
		.figures = round_1g,
		.timeout_s = RUN_S,
		.prepare = possible,
		.arg = &(const struct setup){.ram_mib = 1024,
					     .content_mib = 256,
					     .payload = HOT_4M,
					     .downtime_ms = 1,
					     .rounds = true},
	},
	{
		.name = "round-16g",
		.what = "16 GiB guest: the second round, of 1,000 dirty pages",
		.contenders = {GODWIT},
		.figures = round_16g,
		.timeout_s = RUN_S,
		.prepare = possible,
		.arg = &(const struct setup){.ram_mib = 16384,
					     .content_mib = 256,
					     .payload = HOT_4M,
					     .downtime_ms = 1,
					     .rounds = true},
	},
	/* With protection and without. */
	{
		.name = "tls-1g",
		.what = "1 GiB of random content, the guest spins: by tls and by tcp",
		.contenders = {{"godwit-tls", run_godwit_tls}, {"godwit-tcp", run_godwit}},
		.figures = dirty_moves,
		.timeout_s = RUN_S,
		.arg = &(const struct setup){.ram_mib = 1024,
					     .content_mib = 1000,
					     .payload = FILL_1G "kind=idle"},
	},
	/* The two ways to find dirty pages against each other. */
	{
		.name = "ring-round-1g",
		.what = "1 GiB guest: the second round, of 1,000 dirty pages, by log and ring",
		.contenders = {LOG_AND_RING},
		.figures = dirty_rounds,
		.timeout_s = RUN_S,
		.prepare = has_ring,
		.arg = &(const struct setup){.ram_mib = 1024,
					     .content_mib = 256,
					     .payload = HOT_4M,
					     .downtime_ms = 1,
					     .rounds = true},
	},
	{
		.name = "ring-round-16g",
		.what = "16 GiB guest: the second round, of 1,000 dirty pages, by log and ring",
		.contenders = {LOG_AND_RING},
		.figures = dirty_rounds,
		.timeout_s = RUN_S,
		.prepare = has_ring,
		.arg = &(const struct setup){.ram_mib = 16384,
					     .content_mib = 256,
					     .payload = HOT_4M,
					     .downtime_ms = 1,
					     .rounds = true},
	},
	{
		.name = "ring-new-200m",
		.what = "1 GiB, new content in 256 MiB of it at 200 MiB/s, by log and ring",
		.contenders = {LOG_AND_RING},
		.figures = dirty_moves,
		.timeout_s = RUN_S,
		.prepare = has_ring,
		.arg = &(const struct setup){.ram_mib = 1024,
					     .content_mib = 1000,
					     .payload = HOT_256M "kind=new rate=200M",
					     .give_up_s = 30},
	},
	{
		.name = "ring-few-flat",
		.what = "1 GiB, 8 bytes of each page changed in 256 MiB flat out, by log and ring",
		.contenders = {LOG_AND_RING},
		.figures = dirty_moves,
		.timeout_s = RUN_S,
		.prepare = has_ring,
		.arg = &(const struct setup){.ram_mib = 1024,
					     .content_mib = 1000,
					     .payload = HOT_256M "kind=few",
					     .give_up_s = 15},
	},
	{.name = NULL},
};

int main(int argc, char **argv)
{
	return bench_main(argc, argv, &(const struct bench){.name = "migrate", .cases = cases});
}
