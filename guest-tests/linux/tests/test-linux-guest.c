/* SPDX-License-Identifier: MIT */
/*
 * The Linux guest program without a machine: its protocol, and that each of its checks finds what
 * it is there for.
 *
 * The program runs as a plain process on two pipes (see init.c). What needs a kernel of its own
 * (its log, power-off) is left to the tests that boot it.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../content.h"
#include "../contract.h"
#include "../kmsg.h"
#include "../options.h"
#include "../records.h"

#define WAIT_MS 30000

struct run {
	pid_t pid;
	int in, out;   /* its stdin, its stdout */
	uint64_t next; /* sequence number to come */
	unsigned int holes, damaged;
	size_t used;
	char data[8192];
	char text[GT_LINE_MAX]; /* the line that `line` points into */
	struct gt_line line;
};

static int64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static void init_path(char path[PATH_MAX])
{
	ssize_t n = readlink("/proc/self/exe", path, PATH_MAX - 16);
	char *slash;

	ck_assert_int_gt(n, 0);
	path[n] = '\0';
	for (int i = 0; i < 2; i++) {
		slash = strrchr(path, '/');
		ck_assert_ptr_nonnull(slash);
		*slash = '\0';
	}
	strcat(path, "/init");
}

static void run_start(struct run *r, const char *a, const char *b, const char *c)
{
	const char *fixed[] = {"gt.report=0", "gt.mem=2M", "gt.verify_ms=20000"};
	char path[PATH_MAX], *argv[8];
	int to[2], from[2], n = 0;

	*r = (struct run){.pid = -1};
	init_path(path);
	argv[n++] = path;
	for (int i = 0; i < 3; i++)
		argv[n++] = strdup(fixed[i]);
	for (int i = 0; i < 3; i++) {
		const char *arg = i == 0 ? a : i == 1 ? b : c;

		if (arg)
			argv[n++] = strdup(arg);
	}
	argv[n] = NULL;
	ck_assert_int_eq(pipe2(to, O_CLOEXEC), 0);
	ck_assert_int_eq(pipe2(from, O_CLOEXEC), 0);
	r->pid = fork();
	ck_assert_int_ge(r->pid, 0);
	if (r->pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		dup2(to[0], 0);
		dup2(from[1], 1);
		execv(path, argv);
		_exit(127);
	}
	for (int i = 1; i < n; i++)
		free(argv[i]);
	close(to[0]);
	close(from[1]);
	r->in = to[1];
	r->out = from[0];
}

static void run_send(struct run *r, const char *command)
{
	char line[GT_LINE_MAX];
	int n = snprintf(line, sizeof(line), "%s\n", command);

	ck_assert_int_eq(write(r->in, line, (size_t)n), n);
}

/* The next line of the protocol into r->line. Returns false at the end of the output. */
static bool run_line(struct run *r)
{
	int64_t end = now_ms() + WAIT_MS;

	for (;;) {
		char *newline = memchr(r->data, '\n', r->used);
		struct pollfd p = {.fd = r->out, .events = POLLIN};
		int64_t left = end - now_ms();
		size_t len;
		ssize_t n;
		int rc;

		if (newline) {
			len = (size_t)(newline + 1 - r->data);
			ck_assert_uint_lt(len, sizeof(r->text));
			memcpy(r->text, r->data, len);
			r->text[len] = '\0';
			r->used -= len;
			memmove(r->data, newline + 1, r->used);
			rc = gt_parse(r->text, &r->line);
			ck_assert_msg(rc != 0, "not a line of the protocol: %s", r->text);
			if (rc < 0) {
				r->damaged++;
				r->next++;
				continue;
			}
			r->holes += r->line.seq != r->next;
			r->next = r->line.seq + 1;
			return true;
		}
		ck_assert_uint_lt(r->used, sizeof(r->data));
		ck_assert_msg(left > 0 && poll(&p, 1, (int)left) == 1, "no line in time; last: %s",
			      r->text);
		n = read(r->out, r->data + r->used, sizeof(r->data) - r->used);
		ck_assert_int_ge(n, 0);
		if (n == 0)
			return false;
		r->used += (size_t)n;
	}
}

/* Skip to a line with this first word ("" is a report). */
static void run_until(struct run *r, const char *word)
{
	do {
		ck_assert_msg(run_line(r), "ended before \"%s\"", word);
	} while (strcmp(r->line.word, word) != 0);
}

static uint64_t field(struct run *r, const char *key)
{
	uint64_t value = 0;

	ck_assert_msg(gt_field_u64(&r->line, key, &value), "no %s in: %s", key, r->text);
	return value;
}

static void ask(struct run *r, const char *command, const char *word)
{
	run_send(r, command);
	run_until(r, word);
}

static void until_full(struct run *r)
{
	int64_t end = now_ms() + WAIT_MS;

	do {
		ck_assert_int_lt(now_ms(), end);
		poll(NULL, 0, 10);
		ask(r, GT_CMD_REPORT, "");
	} while (!field(r, "full") || !field(r, "blocks") || !field(r, "execs") ||
		 !field(r, "regs"));
}

/* Ask it to quit; returns its exit status, after checking that its last line says the same. */
static int run_quit(struct run *r)
{
	const char *value;
	int status = 0;
	size_t len = 0;
	bool pass;

	ask(r, GT_CMD_QUIT, "done");
	value = gt_field(&r->line, "status", &len);
	ck_assert_ptr_nonnull(value);
	ck_assert_uint_eq(len, 4);
	pass = memcmp(value, "pass", 4) == 0;
	ck_assert_int_eq(run_line(r), false);
	ck_assert_int_eq(waitpid(r->pid, &status, 0), r->pid);
	ck_assert_int_eq(WIFEXITED(status), 1);
	ck_assert_int_eq(WEXITSTATUS(status), pass ? 0 : 1);
	close(r->in);
	close(r->out);
	return WEXITSTATUS(status);
}

/* ---- the contract's own functions ---- */

static void sealed(char *line, const char *body)
{
	sprintf(line, "%s" GT_SUM "%08" PRIx32 "\r\n", body, gt_sum(body, strlen(body)));
}

START_TEST(test_parse)
{
	char line[GT_LINE_MAX];
	struct gt_line parsed;
	uint64_t value = 0;
	size_t len = 0;

	sealed(line, "gt seq=17 t_ms=5 pages=12345 alive=8");
	ck_assert_int_eq(gt_parse(line, &parsed), 1);
	ck_assert_uint_eq(parsed.seq, 17);
	ck_assert_str_eq(parsed.word, "");
	ck_assert(gt_field_u64(&parsed, "pages", &value));
	ck_assert_uint_eq(value, 12345);
	ck_assert(gt_field_u64(&parsed, "t_ms", &value));
	ck_assert_uint_eq(value, 5);
	ck_assert(!gt_field_u64(&parsed, "page", &value));
	ck_assert(!gt_field_u64(&parsed, "sum", &value));
	/* Every single damaged byte shows. */
	for (size_t i = 0; i + 2 < strlen(line); i++) {
		char damaged[GT_LINE_MAX];

		strcpy(damaged, line);
		damaged[i] ^= 1;
		ck_assert_int_le(gt_parse(damaged, &parsed), 0);
	}
	sealed(line, "gt seq=3 error worker=mem0 text=pages=9 and so on");
	ck_assert_int_eq(gt_parse(line, &parsed), 1);
	ck_assert_str_eq(parsed.word, "error");
	ck_assert(!gt_field_u64(&parsed, "pages", &value));
	ck_assert_ptr_nonnull(gt_field(&parsed, "text", &len));
	ck_assert_uint_eq(len, strlen("pages=9 and so on"));
	ck_assert_int_eq(gt_parse("[    1.0] Kernel panic", &parsed), 0);
	ck_assert_int_eq(gt_parse("gt seq=", &parsed), -1);
	ck_assert_int_eq(gt_parse("gt seq=1 r", &parsed), -1);
}
END_TEST

START_TEST(test_content)
{
	static uint64_t a[PAGE_WORDS], b[PAGE_WORDS];
	uint64_t stamp = stamp_make(1, 2, 3), older = stamp_make(1, 2, 2);
	char text[300];

	content_make(a, PAGE_WORDS, stamp, 0, 7);
	content_make(b, PAGE_WORDS, stamp, 0, 8);
	ck_assert_int_ne(memcmp(a + 1, b + 1, sizeof(a) - sizeof(*a)), 0);
	content_make(b, PAGE_WORDS, stamp, 0, 7);
	ck_assert_mem_eq(a, b, sizeof(a));
	/* Patches, one by one or at once. */
	for (unsigned int k = 0; k < 5; k++)
		content_patch(b, PAGE_WORDS, stamp, k, 7);
	ck_assert_mem_ne(a, b, sizeof(a));
	content_make(a, PAGE_WORDS, stamp, 5, 7);
	ck_assert_mem_eq(a, b, sizeof(a));

	content_make(b, PAGE_WORDS, older, 0, 7);
	content_explain(b, a, PAGE_WORDS, 7, text, sizeof(text));
	ck_assert_ptr_nonnull(strstr(text, "looks=whole-old-page"));
	memset(b, 0, sizeof(b));
	content_explain(b, a, PAGE_WORDS, 7, text, sizeof(text));
	ck_assert_ptr_nonnull(strstr(text, "looks=zero"));
	memcpy(b, a, sizeof(b));
	b[100] ^= 1;
	content_explain(b, a, PAGE_WORDS, 7, text, sizeof(text));
	ck_assert_ptr_nonnull(strstr(text, "looks=few-words"));
	ck_assert_ptr_nonnull(strstr(text, "byte=800 words_wrong=1 "));
}
END_TEST

START_TEST(test_kernel_log)
{
	ck_assert_int_eq(kmsg_classify("I/O error, dev vda, sector 8 op 0x1:(WRITE) flags 0x800"),
			 KMSG_ERROR);
	ck_assert_int_eq(kmsg_classify("EXT4-fs error (device vda): ext4_lookup:1: inode #2"),
			 KMSG_ERROR);
	ck_assert_int_eq(kmsg_classify("EXT4-fs (vda): recovery complete"), KMSG_OTHER);
	ck_assert_int_eq(
		kmsg_classify("watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [init:1]"),
		KMSG_ERROR);
	ck_assert_int_eq(kmsg_classify("WARNING: CPU: 0 PID: 1 at kernel/time/tick.c:3 x+0x1/0x2"),
			 KMSG_ERROR);
	ck_assert_int_eq(kmsg_classify("rcu: INFO: rcu_preempt self-detected stall on CPU"),
			 KMSG_ERROR);
	ck_assert_int_eq(kmsg_classify("INFO: task init:1 blocked for more than 120 seconds."),
			 KMSG_ERROR);
	ck_assert_int_eq(
		kmsg_classify(
			"clocksource: timekeeping watchdog on CPU1: Marking clocksource 'tsc' as "
			"unstable because the skew is too large:"),
		KMSG_NOTE);
	ck_assert_int_eq(kmsg_classify("Spectre V2 : WARNING: Unprivileged eBPF is enabled"),
			 KMSG_OTHER);
	ck_assert_int_eq(kmsg_classify("clocksource: Switched to clocksource tsc"), KMSG_OTHER);
}
END_TEST

START_TEST(test_options)
{
	static const char *const wrong[] = {
		"gt.mode=stres",
		"gt.mode",
		"gt.mem=1X",
		"gt.mem=",
		"gt.mem=99999999999999999999",
		"gt.procs=33",
		"gt.rate=-1",
		"gt.unknown=1",
		"gt.tty=../sda",
		"gt.dir=disk",
		"gt.mem=36G",
		"quiet gt.burst=0 ro",
	};
	struct options opt;
	char err[200];

	options_default(&opt);
	ck_assert_int_eq(options_parse(&opt,
				       "console=ttyS0 gt.mem=64M  gt.procs=3\tgt.mode=idle quiet\n",
				       err, sizeof(err)),
			 0);
	ck_assert_uint_eq(opt.mem, 64 << 20);
	ck_assert_uint_eq(opt.procs, 3);
	ck_assert_int_eq(opt.mode, MODE_IDLE);
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
		ck_assert_msg(options_parse(&opt, wrong[i], err, sizeof(err)) == -EINVAL, "%s",
			      wrong[i]);
}
END_TEST

/* ---- the program ---- */

START_TEST(test_clean_run)
{
	struct run r;
	uint64_t pages;

	run_start(&r, "gt.procs=3", "gt.rate=0", NULL);
	run_until(&r, "ready");
	ck_assert_uint_eq(r.line.seq, 0);
	ck_assert_uint_eq(field(&r, "version"), GT_VERSION);
	ck_assert_uint_eq(field(&r, "procs"), 3);
	pages = field(&r, "workers");
	until_full(&r);
	ck_assert_uint_eq(field(&r, "alive"), pages);
	ask(&r, GT_CMD_VERIFY, "verify");
	ck_assert_uint_eq(field(&r, "new"), 0);
	/* All of gt.mem (three workers, so up to two pages less), and what the others hold. */
	ck_assert_uint_ge(field(&r, "pages"), 512 - 2 + 64);
	/* And it goes on. */
	ask(&r, GT_CMD_REPORT, "");
	pages = field(&r, "pages");
	for (int64_t end = now_ms() + WAIT_MS; field(&r, "pages") == pages;) {
		ck_assert_int_lt(now_ms(), end);
		ask(&r, GT_CMD_REPORT, "");
	}
	ck_assert_int_eq(run_quit(&r), 0);
	ck_assert_uint_eq(r.holes + r.damaged, 0);
}
END_TEST

/* ---- disk workers ---- */

START_TEST(test_records)
{
	uint64_t words[RECORD_WORDS], n = 0;
	unsigned part = 0, seen[RECORDS_SLOTS] = {0};

	for (unsigned kind = 0; kind < RECORDS_KINDS; kind++) {
		record_make(words, kind, 1000 + kind, kind);
		ck_assert(record_sound(words, kind, &n, &part));
		ck_assert_uint_eq(n, 1000 + kind);
		ck_assert_uint_eq(part, kind);
		ck_assert(!record_sound(words, (kind + 1) % RECORDS_KINDS, &n, &part));
		/* Every single damaged byte shows. */
		for (size_t i = 0; i < RECORD_BYTES; i++) {
			((char *)words)[i] ^= 4;
			ck_assert(!record_sound(words, kind, &n, &part));
			((char *)words)[i] ^= 4;
		}
	}
	memset(words, 0, sizeof(words));
	ck_assert(!record_sound(words, RECORDS_IN_LOG, &n, &part));
	/* A slot for each. */
	for (uint64_t i = 0; i < RECORDS_SLOTS; i++)
		ck_assert_uint_eq(seen[records_slot(i)]++, 0);
}
END_TEST

struct folder {
	char path[64], option[80];
	uint64_t told[RECORDS_KINDS];
};

static void folder_make(struct folder *f)
{
	*f = (struct folder){.path = "/tmp/gt-disk.XXXXXX"};
	ck_assert_ptr_nonnull(mkdtemp(f->path));
	snprintf(f->option, sizeof(f->option), "gt.dir=%s", f->path);
}

static void folder_remove(struct folder *f)
{
	char words[100];

	snprintf(words, sizeof(words), "rm -r %s", f->path);
	ck_assert_int_eq(system(words), 0);
}

/* A run until each worker has made so many writes, which it ends well. */
static void folder_fill(struct folder *f, uint64_t writes)
{
	struct run r;
	int64_t end = now_ms() + WAIT_MS;
	bool more = true;

	run_start(&r, "gt.mode=disk", f->option, "gt.disk_us=0");
	while (more) {
		ck_assert_int_lt(now_ms(), end);
		ask(&r, GT_CMD_REPORT, "");
		ck_assert_uint_eq(field(&r, "errors"), 0);
		run_until(&r, "durable");
		more = false;
		for (int kind = 0; kind < RECORDS_KINDS; kind++) {
			char key[20];

			snprintf(key, sizeof(key), "%s0", records_names[kind]);
			f->told[kind] = field(&r, key);
			more = more || f->told[kind] < writes;
		}
		poll(NULL, 0, 10);
	}
	ask(&r, GT_CMD_VERIFY, "verify");
	ck_assert_uint_eq(field(&r, "new"), 0);
	ck_assert_int_eq(run_quit(&r), 0);
}

static int folder_look(struct folder *f, enum records_kind kind, uint64_t more, uint64_t *found)
{
	char path[100], err[300];
	int fd, ret;

	snprintf(path, sizeof(path), "%s/%s", f->path, records_names[kind]);
	fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	ck_assert_int_ge(fd, 0);
	ret = records_look(fd, kind, f->told[kind] + more, found, err, sizeof(err));
	close(fd);
	return ret;
}

/* All is there for whoever looks, and for the next run, which goes on from it. */
START_TEST(test_disk)
{
	uint64_t found[RECORDS_KINDS];
	struct folder f;
	struct run r;

	folder_make(&f);
	folder_fill(&f, 20);
	folder_fill(&f, 40);
	for (enum records_kind kind = 0; kind < RECORDS_KINDS; kind++) {
		ck_assert_int_eq(folder_look(&f, kind, 0, &found[kind]), 0);
		ck_assert_uint_ge(found[kind], f.told[kind]);
		/* One more than there are is one that is missing. */
		ck_assert_int_eq(
			folder_look(&f, kind, found[kind] - f.told[kind] + 1, &found[kind]),
			-EBADMSG);
		ck_assert_int_eq(folder_look(&f, kind, 0, &found[kind]), 0);
	}
	run_start(&r, "gt.mode=disk", f.option, NULL);
	for (int i = 0; i < RECORDS_KINDS; i++) {
		const char *name;
		size_t len;

		run_until(&r, "found");
		name = gt_field(&r.line, "worker", &len);
		ck_assert_ptr_nonnull(name);
		for (int kind = 0; kind < RECORDS_KINDS; kind++) {
			if (strncmp(name, records_names[kind], len - 1) == 0)
				ck_assert_uint_eq(field(&r, "n"), found[kind]);
		}
	}
	ck_assert_int_eq(run_quit(&r), 0);
	folder_remove(&f);
}
END_TEST

/* Words of a shell in a worker's folder. */
static const struct {
	enum records_kind kind;
	const char *words;
} harms[] = {
	{RECORDS_IN_LOG,
	 "printf x | dd of=$(ls log.* | sort -t. -k2nr | head -n 1) bs=1 seek=5 conv=notrunc"},
	{RECORDS_IN_LOG, "truncate -s 512 $(ls log.* | sort -t. -k2nr | tail -n 1)"},
	{RECORDS_IN_LOG, "rm log.*"},
	{RECORDS_IN_SLOTS, "printf x | dd of=slots bs=1 seek=5000 conv=notrunc"},
	{RECORDS_IN_SLOTS, "dd if=/dev/zero of=slots bs=512 seek=20 count=1 conv=notrunc"},
	{RECORDS_IN_SLOTS, "cp slots old; dd if=old of=slots bs=512 seek=3 count=1 conv=notrunc"},
	{RECORDS_IN_SWAP, "printf x | dd of=state bs=1 seek=500 conv=notrunc"},
	{RECORDS_IN_SWAP, "truncate -s -1 state"},
	{RECORDS_IN_SWAP, "rm state"},
	{RECORDS_IN_NAMES, "rm $(ls f.* | sort -t. -k2nr | head -n 3 | tail -n 1)"},
	{RECORDS_IN_NAMES, ": >$(ls f.* | sort -t. -k2nr | head -n 2 | tail -n 1)"},
	{RECORDS_IN_NAMES, "cp $(ls f.* | sort -t. -k2nr | head -n 1) f.1"},
};

/* What a lost, torn or stale write would look like is found. */
START_TEST(test_disk_harm)
{
	uint64_t found;
	struct folder f;
	char words[300];

	folder_make(&f);
	folder_fill(&f, 2 * RECORDS_SLOTS);
	for (enum records_kind kind = 0; kind < RECORDS_KINDS; kind++) {
		ck_assert_int_eq(folder_look(&f, kind, 0, &found), 0);
		f.told[kind] = found;
	}
	snprintf(words, sizeof(words), "exec 2>/dev/null; cd %s/%s && %s", f.path,
		 records_names[harms[_i].kind], harms[_i].words);
	ck_assert_int_eq(system(words), 0);
	for (enum records_kind kind = 0; kind < RECORDS_KINDS; kind++)
		ck_assert_msg(folder_look(&f, kind, 0, &found) ==
				      (kind == harms[_i].kind ? -EBADMSG : 0),
			      "%s, looked at after: %s", records_names[kind], harms[_i].words);
	folder_remove(&f);
}
END_TEST

/* A running worker sees it too. */
START_TEST(test_disk_wrong)
{
	char words[200];
	struct folder f;
	struct run r;

	folder_make(&f);
	run_start(&r, "gt.mode=disk", f.option, NULL);
	for (int64_t end = now_ms() + WAIT_MS;;) {
		ask(&r, GT_CMD_REPORT, "");
		if (field(&r, "full"))
			break;
		ck_assert_int_lt(now_ms(), end);
		poll(NULL, 0, 10);
	}
	ask(&r, GT_CMD_VERIFY, "verify");
	ck_assert_uint_eq(field(&r, "errors"), 0);
	snprintf(words, sizeof(words),
		 "printf x | dd of=%s/log/log.0 bs=1 seek=100 conv=notrunc 2>/dev/null", f.path);
	ck_assert_int_eq(system(words), 0);
	ask(&r, GT_CMD_VERIFY, "error");
	run_until(&r, "verify");
	ck_assert_uint_ge(field(&r, "new"), 1);
	ck_assert_int_eq(run_quit(&r), 1);
	folder_remove(&f);
}
END_TEST

static const char *const faults[] = {
	"byte", "stale", "zero", "book", "block", "cow", "regs", "clock", "late", "die",
};

/* Each kind of damage, done by the program to itself, is found and makes the run fail. */
START_TEST(test_fault)
{
	char command[64];
	struct run r;

	run_start(&r, "gt.corrupt=1", "gt.churn_ms=10", NULL);
	until_full(&r);
	ck_assert_uint_eq(field(&r, "errors"), 0);
	snprintf(command, sizeof(command), "%s%s", GT_CMD_CORRUPT, faults[_i]);
	ask(&r, command, "corrupt");
	/* A worker takes it when it comes round to it, so perhaps after the first verification. */
	for (int64_t end = now_ms() + WAIT_MS;;) {
		ask(&r, GT_CMD_VERIFY, "verify");
		if (field(&r, "errors") > 0)
			break;
		ck_assert_msg(now_ms() < end, "%s was not found", faults[_i]);
		poll(NULL, 0, 10);
	}
	ck_assert_int_eq(run_quit(&r), 1);
	ck_assert_uint_eq(r.holes + r.damaged, 0);
}
END_TEST

START_TEST(test_serial)
{
	char data[GT_FLOOD_LEN + 1], text[GT_INPUT_MAX + 100], echo[GT_INPUT_MAX + 100];
	const char *value;
	struct run r;
	size_t len;

	run_start(&r, "gt.corrupt=1", "gt.procs=1", NULL);
	run_until(&r, "ready");
	ask(&r, "flood=300", "flood");
	for (uint32_t i = 0; i < 300; i++) {
		ck_assert_str_eq(r.line.word, "flood");
		ck_assert_uint_eq(field(&r, "i"), i);
		ck_assert_uint_eq(field(&r, "n"), 300);
		value = gt_field(&r.line, "data", &len);
		ck_assert_ptr_nonnull(value);
		gt_flood_data(i, data);
		ck_assert_uint_eq(len, GT_FLOOD_LEN);
		ck_assert_mem_eq(value, data, len);
		ck_assert(run_line(&r));
	}
	ck_assert_str_eq(r.line.word, "flooded");
	ck_assert_uint_eq(field(&r, "n"), 300);
	/* Without a number of lines the next input ends it, and is not lost. */
	ask(&r, "flood=0", "flood");
	for (uint32_t i = 0; i < 300; i++) {
		ck_assert_str_eq(r.line.word, "flood");
		ck_assert_uint_eq(field(&r, "i"), i);
		ck_assert(run_line(&r));
	}
	ask(&r, "echo enough", "flooded");
	ck_assert_uint_ge(field(&r, "n"), 300);
	run_until(&r, "echo");

	ask(&r, "echo one  two=3", "echo");
	ck_assert_uint_eq(r.line.body_len, strlen("echo one  two=3"));
	ck_assert_mem_eq(r.line.body, "echo one  two=3", r.line.body_len);
	/* Input longer than the contract allows is cut, and harms nothing. */
	memset(text, 'x', sizeof(text));
	text[sizeof(text) - 1] = '\0';
	snprintf(echo, sizeof(echo), GT_CMD_ECHO "%.*s", (int)(sizeof(echo) - 8), text);
	ask(&r, echo, "echo");
	ck_assert_uint_eq(r.line.body_len, GT_INPUT_MAX - 1);
	ask(&r, "rate=7K", "rate");
	ck_assert_uint_eq(field(&r, "pages"), 7168);
	ask(&r, "flood=x", "unknown");
	ask(&r, "nonsense", "unknown");
	ask(&r, GT_CMD_REPORT, "");
	ck_assert_uint_eq(field(&r, "in"), 9);
	ask(&r, GT_CMD_MEM, "mem");
	ck_assert_uint_gt(field(&r, "total_kib"), field(&r, "available_kib"));
	ck_assert_uint_gt(field(&r, "available_kib"), 0);
	ask(&r, GT_CMD_INFO, "info");
	ask(&r, GT_CMD_ZERO, "reset");
	ck_assert_uint_eq(r.holes + r.damaged, 0);

	/* A lost and a damaged line show. */
	ask(&r, GT_CMD_CORRUPT "seq", "corrupt");
	run_send(&r, "echo this line is lost");
	ask(&r, GT_CMD_REPORT, "");
	ck_assert_uint_eq(r.holes, 1);
	ask(&r, GT_CMD_CORRUPT "line", "corrupt");
	run_send(&r, "echo this line is damaged");
	ask(&r, GT_CMD_REPORT, "");
	ck_assert_uint_eq(r.damaged, 1);
	ck_assert_uint_eq(r.holes, 1);
	ck_assert_int_eq(run_quit(&r), 0);
}
END_TEST

/*
 * The workers of a program, by the kernel's list of its children. The first are the clock
 * workers.
 */
static size_t children(pid_t pid, pid_t *list, size_t max)
{
	char path[64];
	size_t n = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/children", (int)pid, (int)pid);
	f = fopen(path, "re");
	ck_assert_ptr_nonnull(f);
	while (n < max && fscanf(f, "%d", &list[n]) == 1)
		n++;
	fclose(f);
	return n;
}

static void stand_still(pid_t *list, size_t n, int ms)
{
	struct timespec ts = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L};

	for (size_t i = 0; i < n; i++)
		ck_assert_int_eq(kill(list[i], SIGSTOP), 0);
	nanosleep(&ts, NULL);
	for (size_t i = 0; i < n; i++)
		ck_assert_int_eq(kill(list[i], SIGCONT), 0);
}

/*
 * What a stopped machine does to its clocks, done to the workers: the gap and the late wake-up
 * are seen.
 */
START_TEST(test_gap)
{
	pid_t list[64];
	struct run r;
	size_t n;

	run_start(&r, "gt.procs=1", NULL, NULL);
	until_full(&r);
	ask(&r, GT_CMD_ZERO, "reset");
	n = children(r.pid, list, 64);
	ck_assert_uint_gt(n, 2);
	stand_still(list, n, 400);
	for (int64_t end = now_ms() + WAIT_MS;;) {
		ask(&r, GT_CMD_REPORT, "");
		if (field(&r, "gap_us") >= 400000 && field(&r, "late_us") >= 390000)
			break;
		ck_assert_msg(now_ms() < end, "the gap was not seen: %s", r.text);
		poll(NULL, 0, 10);
	}
	ck_assert_uint_gt(field(&r, "gap_at_ms"), 0);
	ck_assert_int_eq(run_quit(&r), 0);
}
END_TEST

/* A worker that stands still for longer than gt.stuck_ms is an error, even if it moves again. */
START_TEST(test_stall)
{
	pid_t list[64];
	struct run r;
	size_t n;

	run_start(&r, "gt.stuck_ms=300", "gt.clock=0", NULL);
	until_full(&r);
	n = children(r.pid, list, 64);
	ck_assert_uint_gt(n, 0);
	ck_assert_int_eq(kill(list[0], SIGSTOP), 0);
	for (int64_t end = now_ms() + WAIT_MS;;) {
		ask(&r, GT_CMD_REPORT, "");
		if (field(&r, "errors") > 0)
			break;
		ck_assert_msg(now_ms() < end, "the stall was not seen: %s", r.text);
		poll(NULL, 0, 50);
	}
	ck_assert_int_eq(kill(list[0], SIGCONT), 0);
	ck_assert_int_eq(run_quit(&r), 1);
}
END_TEST

/* Told to end before its workers have had any time: each still verifies and answers. */
START_TEST(test_hurried)
{
	struct run r;

	for (int i = 0; i < 20; i++) {
		run_start(&r, "gt.mode=stress", "gt.procs=8", "gt.verify_ms=3000");
		ck_assert_int_eq(run_quit(&r), 0);
	}
}
END_TEST

START_TEST(test_ends)
{
	int status = 0;
	struct run r;

	/* An option that it does not know. */
	run_start(&r, "gt.mode=stres", NULL, NULL);
	run_until(&r, "fatal");
	run_until(&r, "done");
	ck_assert_int_eq(waitpid(r.pid, &status, 0), r.pid);
	ck_assert_int_eq(WEXITSTATUS(status), 1);
	close(r.in);
	close(r.out);

	/* Its time is over. */
	run_start(&r, "gt.secs=1", NULL, NULL);
	run_until(&r, "done");
	ck_assert_int_eq(waitpid(r.pid, &status, 0), r.pid);
	ck_assert_int_eq(WEXITSTATUS(status), 0);
	close(r.in);
	close(r.out);

	/*
	 * Killed, it leaves no worker behind: the workers hold no end of its output, but die of
	 * its death.
	 */
	run_start(&r, NULL, NULL, NULL);
	until_full(&r);
	{
		pid_t list[64];
		size_t n = children(r.pid, list, 64);
		int64_t end = now_ms() + WAIT_MS;

		ck_assert_uint_gt(n, 0);
		ck_assert_int_eq(prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
		ck_assert_int_eq(kill(r.pid, SIGKILL), 0);
		while (n > 0) {
			pid_t pid = waitpid(-1, &status, WNOHANG);

			for (size_t i = 0; pid > 0 && i < n; i++) {
				if (list[i] == pid)
					list[i] = list[--n];
			}
			ck_assert_int_lt(now_ms(), end);
			poll(NULL, 0, 10);
		}
	}
	close(r.in);
	close(r.out);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("linux-guest");
	TCase *t = tcase_create("all");
	SRunner *sr;
	int failed;

	signal(SIGPIPE, SIG_IGN);
	tcase_set_timeout(t, 120);
	tcase_add_test(t, test_parse);
	tcase_add_test(t, test_content);
	tcase_add_test(t, test_kernel_log);
	tcase_add_test(t, test_options);
	tcase_add_test(t, test_clean_run);
	tcase_add_test(t, test_records);
	tcase_add_test(t, test_disk);
	tcase_add_loop_test(t, test_disk_harm, 0, (int)(sizeof(harms) / sizeof(harms[0])));
	tcase_add_test(t, test_disk_wrong);
	tcase_add_loop_test(t, test_fault, 0, (int)(sizeof(faults) / sizeof(faults[0])));
	tcase_add_test(t, test_serial);
	tcase_add_test(t, test_gap);
	tcase_add_test(t, test_stall);
	tcase_add_test(t, test_hurried);
	tcase_add_test(t, test_ends);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_NORMAL);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
