/* SPDX-License-Identifier: MIT */
/* The test program's frame: places, counting, skips and failures. See harness.h. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "harness_private.h"

#define EXIT_SKIPPED 77
#define TAIL_BYTES 3000 /* of each output of a failed test */

/*
 * What the program's process sets up and its tests inherit by fork(). A test's own memory needs no
 * freeing: its process ends with it.
 */
static struct {
	char root[PATH_MAX];
	char godwit[PATH_MAX];
	char payloads[PATH_MAX];
	char top[PATH_MAX];   /* scratch folder of the program */
	char tmp[PATH_MAX];   /* of the test */
	char skips[PATH_MAX]; /* a byte for each skip */
	const char *program;
	double slow;
	pid_t main_pid;
	const char *file; /* where the test is */
	int line;
} h;

char *harness_copy(const char *text, size_t len)
{
	char *copy = malloc(len + 1);

	if (!copy)
		fail_test("out of memory");
	memcpy(copy, text, len);
	copy[len] = '\0';
	return copy;
}

const char *harness_path(const char *fmt, ...)
{
	char *text;
	va_list ap;

	va_start(ap, fmt);
	if (vasprintf(&text, fmt, ap) < 0)
		abort();
	va_end(ap);
	return text;
}

uint64_t harness_now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

int harness_slow(int ms)
{
	return (int)(ms * h.slow);
}

bool harness_may_make_networks(char why[256])
{
	int status;
	pid_t child = fork();

	if (child == 0)
		_exit(unshare(CLONE_NEWNET) ? 1 : 0);
	if (child < 0 || waitpid(child, &status, 0) != child || status) {
		snprintf(why, 256, "no network namespace can be made (root is needed)");
		return false;
	}
	return true;
}

unsigned harness_env(const char *name, unsigned def)
{
	const char *text = getenv(name);
	unsigned long v;
	char *end;

	if (!text || !text[0])
		return def;
	errno = 0;
	v = strtoul(text, &end, 10);
	if (errno || *end || v == 0 || v > 1000000000) {
		fprintf(stderr, "%s: '%s' is not a positive number\n", name, text);
		exit(2);
	}
	return (unsigned)v;
}

/* ---- places ---- */

static bool exists(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static bool exists(const char *fmt, ...)
{
	char path[PATH_MAX];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(path, sizeof(path), fmt, ap);
	va_end(ap);
	return access(path, R_OK) == 0;
}

/* The tree is the nearest folder above this program that looks like it. */
static void find_root(void)
{
	ssize_t n = readlink("/proc/self/exe", h.root, sizeof(h.root) - 1);
	char *slash;

	if (n < 0) {
		perror("/proc/self/exe");
		exit(1);
	}
	h.root[n] = '\0';
	while ((slash = strrchr(h.root, '/'))) {
		*slash = '\0';
		if (exists("%s/Makefile", h.root) && exists("%s/guest-tests/tests", h.root))
			return;
	}
	fprintf(stderr, "this program is not below the tree that it tests\n");
	exit(1);
}

static void absolute(char out[PATH_MAX], const char *env, const char *in_tree)
{
	const char *path = getenv(env);

	if (!path || !path[0])
		snprintf(out, PATH_MAX, "%.3000s/%s", h.root, in_tree);
	else if (!realpath(path, out))
		snprintf(out, PATH_MAX, "%.4000s", path);
}

static void set_default(const char *name, const char *value)
{
	setenv(name, value, 0);
}

static void init_once(void)
{
	const char *slow = getenv("GODWIT_TEST_SLOW");
	const char *tmp = getenv("TMPDIR");

	if (h.main_pid)
		return;
	h.main_pid = getpid();
	h.program = program_invocation_short_name;
	h.slow = 1;
	if (slow && slow[0]) {
		char *end;

		h.slow = strtod(slow, &end);
		if (*end || !(h.slow > 0 && h.slow <= 1000)) {
			fprintf(stderr, "GODWIT_TEST_SLOW: '%s' is not a factor\n", slow);
			exit(2);
		}
	}
	find_root();
	absolute(h.godwit, "GODWIT", "build/godwit");
	absolute(h.payloads, "GODWIT_PAYLOADS", "build/guest-tests/bare");
	if (access(h.godwit, X_OK)) {
		fprintf(stderr, "%s: %s: %s (make builds it, GODWIT= names another)\n", h.program,
			h.godwit, strerror(errno));
		exit(1);
	}
	/* Short: sockets below it have to fit in 108 bytes. */
	snprintf(h.top, sizeof(h.top), "%.3000s/gw-%.20s.XXXXXX", tmp && tmp[0] ? tmp : "/tmp",
		 h.program);
	if (!mkdtemp(h.top)) {
		fprintf(stderr, "%s: %s\n", h.top, strerror(errno));
		exit(1);
	}
	snprintf(h.skips, sizeof(h.skips), "%.3500s/skips", h.top);
	/* A sanitizer's finding must not look like godwit's own exit code 1. */
	set_default("ASAN_OPTIONS", "exitcode=99:detect_stack_use_after_return=0");
	set_default("UBSAN_OPTIONS", "exitcode=99:print_stacktrace=1");
	set_default("TSAN_OPTIONS", "exitcode=99");
	/* Programs of a terminal's own must not leak in. */
	unsetenv("XDG_RUNTIME_DIR");
}

const char *harness_godwit(void)
{
	return h.godwit;
}

const char *harness_root(void)
{
	return h.root;
}

/* Made when first asked for: the name of a test is not known before it has begun. */
const char *harness_tmp(void)
{
	if (h.tmp[0])
		return h.tmp;
	snprintf(h.tmp, sizeof(h.tmp), "%.3500s/%.24s.%d", h.top, tcase_name(), (int)getpid());
	if (mkdir(h.tmp, 0700))
		fail_test("%s: %s", h.tmp, strerror(errno));
	setenv("GODWIT_RUNDIR", harness_path("%s/run", h.tmp), 1);
	return h.tmp;
}

const char *bare_elf(const char *payload)
{
	const char *path = harness_path("%s/%s.elf", h.payloads, payload);

	if (access(path, R_OK))
		fail_test("%s: %s (make bare-payloads builds it)", path, strerror(errno));
	return path;
}

static int doctor(void)
{
	static int status = -1;
	char cmd[PATH_MAX + 64];

	init_once();
	if (status >= 0)
		return status;
	snprintf(cmd, sizeof(cmd), "timeout %d '%s' doctor </dev/null >/dev/null 2>&1",
		 harness_slow(60000) / 1000 + 1, h.godwit);
	status = system(cmd);
	status = WIFEXITED(status) ? WEXITSTATUS(status) : 1;
	return status;
}

/* Exit codes of `godwit doctor`: 4 is bare guests only, 5 is Linux without migration. */
bool harness_kvm_works(void)
{
	int status = doctor();

	return status == 0 || status == 4 || status == 5;
}

bool harness_linux_works(void)
{
	int status = doctor();

	return status == 0 || status == 5;
}

/* ---- one test ---- */

static void begin_test(void)
{
	/* Against a runner that is killed; Check itself kills the group in all other cases. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGPIPE, SIG_IGN);
}

static int remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
	(void)st;
	(void)flag;
	(void)ftw;
	return remove(path);
}

static void remove_tree(const char *path)
{
	if (getenv("GODWIT_TEST_KEEP"))
		fprintf(stderr, "kept: %s\n", path);
	else
		nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* What a test leaves of its folder has failed; so the good ones remove theirs. */
static void end_test(void)
{
	if (h.tmp[0])
		remove_tree(h.tmp);
}

TCase *harness_case(Suite *s, const char *name, unsigned timeout_s)
{
	TCase *tc = tcase_create(name);

	init_once();
	tcase_add_checked_fixture(tc, begin_test, end_test);
	tcase_set_timeout(tc, (int)(timeout_s * h.slow) + 1);
	suite_add_tcase(s, tc);
	return tc;
}

void harness_say(const char *fmt, ...)
{
	char text[1024];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	fprintf(stderr, "%s: %s\n", getpid() == h.main_pid ? h.program : tcase_name(), text);
}

void harness_at(const char *file, int line)
{
	h.file = file;
	h.line = line;
	_mark_point(file, line);
}

_Noreturn static void fail_with(const char *file, int line, const char *cond, const char *text)
{
	proc_collect_now();
	_ck_assert_failed(file, line, cond ? cond : "failed", "%s", text);
	abort();
}

_Noreturn void harness_fail(const char *file, int line, const char *fmt, ...)
{
	char text[4096];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	fail_with(file, line, NULL, text);
}

_Noreturn void harness_fail_here(const char *fmt, ...)
{
	char text[4096];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	fail_with(h.file ? h.file : __FILE__, h.file ? h.line : __LINE__, NULL, text);
}

_Noreturn void harness_fail_cond(const char *file, int line, const char *cond, const char *fmt, ...)
{
	char text[4096];
	va_list ap;
	int n;

	n = snprintf(text, sizeof(text), "not so: %.500s: ", cond);
	va_start(ap, fmt);
	vsnprintf(text + n, sizeof(text) - (size_t)n, fmt, ap);
	va_end(ap);
	fail_with(file, line, cond, text);
}

void harness_skip(const char *fmt, ...)
{
	char text[1024];
	va_list ap;
	int fd;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	fd = open(h.skips, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	if (fd < 0 || write(fd, "s", 1) != 1)
		fail_test("%s: %s", h.skips, strerror(errno));
	close(fd);
	fprintf(stderr, "SKIP %s: %s\n", tcase_name(), text);
	end_test();
	/* Check takes an end with 0 as passed; harness_main() takes it off again. */
	fflush(NULL);
	_exit(0);
}

/* ---- the whole program ---- */

static int summary(int run, int failed, int skipped)
{
	fflush(NULL);
	printf("%d passed, %d failed, %d skipped\n", run - failed - skipped, failed, skipped);
	fflush(stdout);
	if (failed)
		return EXIT_FAILURE;
	return run == skipped ? EXIT_SKIPPED : EXIT_SUCCESS;
}

int harness_skip_all(const char *fmt, ...)
{
	char text[1024];
	va_list ap;

	init_once();
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	fprintf(stderr, "SKIP %s: %s\n", h.program, text);
	remove_tree(h.top);
	return summary(1, 0, 1);
}

static void print_tail(FILE *to, const char *dir, const char *name)
{
	char path[2 * PATH_MAX], buf[TAIL_BYTES + 1];
	struct stat st;
	off_t from;
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st)) {
		if (fd >= 0)
			close(fd);
		return;
	}
	from = st.st_size > TAIL_BYTES ? st.st_size - TAIL_BYTES : 0;
	n = pread(fd, buf, TAIL_BYTES, from);
	close(fd);
	if (n <= 0)
		return;
	fprintf(to, "--- %s%s (%lld bytes)\n", name, from ? ", its end" : "",
		(long long)st.st_size);
	for (ssize_t i = 0; i < n; i++) {
		unsigned char c = (unsigned char)buf[i];

		putc(c == '\n' || c == '\t' || (c >= ' ' && c < 0x7f) ? c : '?', to);
	}
	if (buf[n - 1] != '\n')
		putc('\n', to);
}

static int is_log(const struct dirent *e)
{
	size_t len = strlen(e->d_name);

	return len > 4 && (strcmp(e->d_name + len - 4, ".out") == 0 ||
			   strcmp(e->d_name + len - 4, ".err") == 0);
}

/* Each folder left is of a test that failed; its logs are in the order of the processes' start. */
static void print_tails(FILE *to)
{
	struct dirent **tests, **logs;
	int n = scandir(h.top, &tests, NULL, alphasort);

	for (int i = 0; i < n; i++) {
		char dir[PATH_MAX];
		int m = -1;

		if (tests[i]->d_type == DT_DIR && tests[i]->d_name[0] != '.') {
			snprintf(dir, sizeof(dir), "%.3000s/%s", h.top, tests[i]->d_name);
			m = scandir(dir, &logs, is_log, versionsort);
			fprintf(to, "=== what the processes of %s printed:\n", tests[i]->d_name);
		}
		for (int k = 0; k < m; k++) {
			print_tail(to, dir, logs[k]->d_name);
			free(logs[k]);
		}
		if (m >= 0)
			free(logs);
		free(tests[i]);
	}
	if (n >= 0)
		free(tests);
}

int harness_main(Suite *s)
{
	SRunner *sr = srunner_create(s);
	int failed, run, skipped = 0;
	struct stat st;

	init_once();
	srunner_set_fork_status(sr, CK_FORK);
	srunner_run_all(sr, CK_NORMAL);
	failed = srunner_ntests_failed(sr);
	run = srunner_ntests_run(sr);
	if (stat(h.skips, &st) == 0)
		skipped = (int)st.st_size;
	srunner_free(sr);
	if (failed)
		print_tails(stdout);
	remove_tree(h.top);
	return summary(run, failed, skipped);
}

/* ---- single runs ---- */

static struct {
	void (*fn)(void *arg);
	void *arg;
} the_run;

START_TEST(run_one)
{
	the_run.fn(the_run.arg);
}
END_TEST

/* Folders of runs that failed, once they have been shown. */
static int remove_run(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
	return ftw->level ? remove_one(path, st, flag, ftw) : 0;
}

bool harness_run(const char *name, unsigned timeout_s, void (*fn)(void *arg), void *arg,
		 char last_words[256])
{
	Suite *s = suite_create(name);
	TestResult **results;
	SRunner *sr;
	bool passed;

	the_run.fn = fn;
	the_run.arg = arg;
	tcase_add_test(harness_case(s, name, timeout_s), run_one);
	sr = srunner_create(s);
	srunner_set_fork_status(sr, CK_FORK);
	srunner_run_all(sr, CK_SILENT);
	passed = srunner_ntests_failed(sr) == 0;
	results = srunner_failures(sr);
	if (!passed) {
		snprintf(last_words, 256, "%s", tr_msg(results[0]));
		fprintf(stderr, "%s:%d: %s: %s\n", tr_lfile(results[0]), tr_lno(results[0]), name,
			tr_msg(results[0]));
		print_tails(stderr);
		if (!getenv("GODWIT_TEST_KEEP"))
			nftw(h.top, remove_run, 16, FTW_DEPTH | FTW_PHYS);
	}
	free(results);
	srunner_free(sr);
	return passed;
}

void harness_end(void)
{
	if (h.top[0])
		remove_tree(h.top);
}
