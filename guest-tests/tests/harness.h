/* SPDX-License-Identifier: MIT */
/*
 * What a test program on the host needs to boot guests and to move them: processes with their
 * output, guests, receivers, moves, and a main() that counts.  Built on Check in its forking mode.
 *
 *	START_TEST(moves)
 *	{
 *		struct guest g;
 *		struct move m;
 *
 *		guest_start(&g, "vm", "-m", "64M", "-k", bare_elf("dirty"), "-p", "ws=8M", NULL);
 *		guest_expect(&g, "^dirty ready ", 10000);
 *		guest_move(&g, &m, "tcp:127.0.0.1:0", "--verify=full", NULL);
 *		need(m.downtime_ms < 500, "paused for %.1f ms", m.downtime_ms);
 *		guest_send(&g, "q");
 *		guest_expect(&g, "^dirty done .* errors=0$", 10000);
 *		guest_ended(&g, 0, 10000);
 *	}
 *	END_TEST
 *
 *	int main(void)
 *	{
 *		Suite *s = suite_create("move");
 *
 *		tcase_add_test(harness_case(s, "plain", 30), moves);
 *		return harness_main(s);
 *	}
 *
 * Theory of operation: each test is a process of its own (CK_FORK) with a scratch folder and a
 * GODWIT_RUNDIR in it. Every wait pumps the output of all its children, so none blocks on a full
 * pipe, and every wait has a timeout. A failure anywhere below ends the test at once, so nothing
 * here returns an error. Children die with the test: Check kills its process group, and they ask
 * for a death signal besides. What they printed is copied to files in the scratch folder;
 * harness_main() prints the tails of a failed test's, whatever ended it.
 *
 * Timeouts are milliseconds (seconds where said) and are multiplied by $GODWIT_TEST_SLOW (a
 * number, 1 by default) for sanitizers and emulated hosts.
 *
 * Environment: GODWIT           the program to test ("build/godwit" of the tree)
 *              GODWIT_PAYLOADS  folder of the bare payloads ("build/guest-tests/bare")
 *              GODWIT_TEST_SLOW factor on all timeouts
 *              GODWIT_TEST_KEEP keep scratch folders, and say where they are
 *              CK_RUN_CASE      Check's own: the one test case to run
 */
#ifndef GODWIT_HARNESS_H
#define GODWIT_HARNESS_H

#include <check.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/types.h>

/* ---- the test program ---- */

/*
 * A new test case of s, whose tests may take timeout_s seconds each. One case a subject: CASE names
 * it in the output, and is what CK_RUN_CASE selects.
 */
TCase *harness_case(Suite *s, const char *name, unsigned timeout_s);

/*
 * Runs the suite, prints the failures with the tails of their outputs, and as the last line
 * `N passed, N failed, N skipped`. Gives main()'s status: 0, 1 when any failed, or 77 when all
 * were skipped.
 */
int harness_main(Suite *s);

/*
 * For programs that are no test programs, but want all below: runs fn(arg) as a test that is the
 * only one of a case, and says whether it passed. When it did not, prints why, with the tails of
 * the outputs, on stderr; last_words gets the reason. harness_end() at the end of the program
 * removes the scratch folder.
 */
bool harness_run(const char *name, unsigned timeout_s, void (*fn)(void *arg), void *arg,
		 char last_words[256]);
void harness_end(void);

/* Ends this test as skipped, which is counted and printed as `SKIP case: why`. */
_Noreturn void harness_skip(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* In main(), instead of harness_main(): nothing of this program can be run. Gives 77. */
int harness_skip_all(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Ends this test as failed. */
#define fail_test(...) harness_fail(__FILE__, __LINE__, __VA_ARGS__)
/* Fails it unless cond; what follows says what was seen instead, as printf does. */
#define need(cond, ...)                                                                            \
	do {                                                                                       \
		if (!(cond))                                                                       \
			harness_fail_cond(__FILE__, __LINE__, #cond, __VA_ARGS__);                 \
	} while (0)
_Noreturn void harness_fail(const char *file, int line, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
_Noreturn void harness_fail_cond(const char *file, int line, const char *cond, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));

/*
 * Where in the test we are, for failures within the harness. The macros at the end of this file
 * call it; a helper of your own that is called from many places may do so, too.
 */
void harness_at(const char *file, int line);

/* A line on stderr that shows where a long test is. */
void harness_say(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/*
 * Before or within a test, by `godwit doctor`: does any KVM guest run here at all, and does Linux?
 * Asked once a process. In main() use them for harness_skip_all().
 */
bool harness_kvm_works(void);
bool harness_linux_works(void);

/* Can network namespaces be made here? Else why not. Before or within a test. */
bool harness_may_make_networks(char why[256]);

/* A positive number of the environment, or def. Anything else there ends the program with 2. */
unsigned harness_env(const char *name, unsigned def);

/* ---- places; the strings live as long as the test ---- */

const char *harness_godwit(void);	       /* the program to test */
const char *harness_root(void);		       /* the tree */
const char *harness_tmp(void);		       /* this test's scratch folder, gone after it */
const char *harness_path(const char *fmt, ...) /* any path or text, made up as by printf */
	__attribute__((format(printf, 1, 2)));
const char *bare_elf(const char *payload); /* .../hello.elf; fails when it is not built */

/* ---- time ---- */

uint64_t harness_now_ms(void); /* monotonic */
int harness_slow(int ms);      /* a timeout with the factor on it, for waits of your own */

/* ---- processes ---- */

/* What came out of one pipe: all of it, and how far lines have been taken from it. */
struct stream {
	int fd;	     /* -1 after its end */
	int copy_fd; /* the file beside it */
	const char *copy_path;
	char *buf; /* NUL-terminated */
	size_t len, cap;
	size_t taken; /* [0, taken) has been given out as lines or skipped */
};

struct proc {
	struct proc *next;
	char label[64]; /* in messages, and the name of its log files */
	pid_t pid;
	int pidfd;     /* -1 once reaped */
	int in;	       /* -1 once closed */
	bool in_close; /* close it when all has been written */
	char *inbuf;   /* not written yet */
	size_t inlen;
	struct stream out, err;
	int status;	     /* exit code, or 128 + the signal; -1 while it runs */
	struct rusage usage; /* once it has ended */
	bool guest;	     /* runs one: a last line that is cut goes on in another process */
	char *fatal;	     /* see proc_fatal(); NULL for none */
};

/*
 * Starts a program, found by PATH, with pipes for stdin, stdout and stderr; its words end with
 * NULL. Freed with the test. Call from the test's first thread only: children die with that one.
 */
struct proc *proc_start(const char *label, const char *prog, ...) __attribute__((sentinel));
struct proc *proc_startv(const char *label, const char *const *argv);

/* The same for a godwit command: godwit_start("status", "status", "--json", "vm", NULL). */
struct proc *godwit_start(const char *label, const char *cmd, ...) __attribute__((sentinel));

/*
 * Runs a godwit command to its end (30 s), which must have this exit code (-1: any). Its output is
 * in ->out.buf and ->err.buf, its code in ->status. Its log files go when it has gone as expected.
 */
struct proc *godwit_run(int exit_code, const char *cmd, ...) __attribute__((sentinel));

/*
 * The next line on stdout (proc_expect_err: stderr) that matches an extended regular expression,
 * without its newline. Lines before it are passed over for good. The last line counts without a
 * newline once the output has ended, but not that of a guest, which a move may have cut. Fails the
 * test when it does not come in time, or cannot come any more. The text lives as long as the test.
 */
const char *proc_expect(struct proc *p, const char *regex, int timeout_ms);
const char *proc_expect_err(struct proc *p, const char *regex, int timeout_ms);
/* The same, but NULL when it does not come in time, or cannot come; all lines seen are taken. */
const char *proc_try(struct proc *p, const char *regex, int timeout_ms);
/* Whatever line is next; NULL as above. */
const char *proc_next(struct proc *p, int timeout_ms);

/* A line on stdout that matches this makes any wait for lines of p fail at once; NULL: none. */
void proc_fatal(struct proc *p, const char *regex);

/* Queues input; proc_close() lets end-of-file follow it. Does not block. */
void proc_send(struct proc *p, const char *text);
void proc_send_bytes(struct proc *p, const void *data, size_t len);
void proc_close(struct proc *p);

/* Its exit code (128 + signal), once it has ended and all output is in; fails when it does not. */
int proc_wait(struct proc *p, int timeout_ms);
/* The same, and that code must be this one. */
void proc_ended(struct proc *p, int exit_code, int timeout_ms);
bool proc_running(struct proc *p);
void proc_kill(struct proc *p, int sig);

/* ---- waiting for anything else ---- */

/* Moves output and input of all children along for up to timeout_ms, less if something happened. */
void harness_pump(int timeout_ms);

/*
 * Pumps until check(arg) is true, looking after every event and each 5 ms. False on timeout.
 */
bool harness_until(bool (*check)(void *arg), void *arg, int timeout_ms);

/*
 * Have fn called from within all waits when fd is ready, as poll() says. One fd has one watch;
 * events 0 ends it. For relays and the like that live in the test's own process. fn must not wait.
 */
void harness_watch(int fd, short events, void (*fn)(void *arg, int fd, short revents), void *arg);

/* ---- lines of key=value, and JSON ---- */

/* The unsigned decimal number after ` key=` in line. False without one. */
bool kv_find(const char *line, const char *key, uint64_t *value);
/* The same; fails the test without one. */
uint64_t kv(const char *line, const char *key);
/* The word after ` key=`, up to the next space; a value in quotes, up to the next quote. */
const char *kv_text(const char *line, const char *key);

/* The last line of text as a JSON object. Freed with the test. */
json_t *json_of(const char *text);
/* A number or string by its path ("pages.sent"). Fails the test when it is not there. */
double json_num(const json_t *obj, const char *path);
const char *json_text(const json_t *obj, const char *path);

/* ---- guests ---- */

/*
 * A guest wherever it is: proc is the process that it runs in at present. Its serial output goes on
 * in the new process's stream after a move, what had not been taken from the old one first, so
 * that a line which the move cut in two is one line again.
 */
struct guest {
	char name[48]; /* its present name */
	char base[32]; /* what names are made of */
	unsigned moves;
	struct proc *proc;
};

/*
 * `godwit run -n NAME ARG...`; returns at once. A NULL ends the words. Names must differ within
 * a test.
 */
void guest_start(struct guest *g, const char *name, ...) __attribute__((sentinel));

/* proc_expect() and so on of the present process. */
const char *guest_expect(struct guest *g, const char *regex, int timeout_ms);
const char *guest_next(struct guest *g, int timeout_ms);
void guest_send(struct guest *g, const char *text);
void guest_ended(struct guest *g, int exit_code, int timeout_ms);

/* `godwit status --json`. Freed with the test. */
json_t *guest_status(struct guest *g);

/*
 * The payload that rewrites its memory (bare/contract.h), with this much RAM and this work, once it
 * is ready. It looks at each page before it rewrites it; dirty_intact() has it look at all of them,
 * dirty_finish(), too, and then it ends with 0.
 */
void dirty_start(struct guest *g, const char *name, const char *ram, const char *work);
void dirty_intact(struct guest *g);
void dirty_finish(struct guest *g);

/* ---- moves ---- */

struct dest {
	struct proc *proc;
	char name[48]; /* what the guest will be called there; "" if the receiver decides */
	char uri[256]; /* what it said it listens at */
};

/*
 * `godwit receive [-n NAME] ARG... URI`, and waits until it listens. name may be NULL.
 * URI: "tcp:127.0.0.1:0" takes a free port; "unix:" is short for a socket in the scratch folder.
 */
void dest_start(struct dest *d, const char *name, const char *uri, ...) __attribute__((sentinel));

/* What `migrate --json` said. */
struct move {
	const char *status;
	const char *error; /* "" if none */
	double total_ms, downtime_ms;
	double pause_ms, last_pages_ms, state_ms, proof_ms, commit_ms; /* parts of downtime_ms */
	uint64_t rounds, wire_bytes;
	uint64_t scanned, zero, unchanged, sent, verified; /* pages */
	json_t *json;					   /* all of it */
};

/*
 * `godwit migrate --json --downtime=D ARG... NAME URI`, D godwit's default with the factor of a
 * slow host on it; returns at once.
 */
struct proc *move_start(struct guest *g, const char *uri, ...) __attribute__((sentinel));

/* Waits for a move_start(), which must end with exit_code, and reads its report. */
void move_report(struct proc *migrate, int exit_code, struct move *m, int timeout_ms);

/*
 * After a move that succeeded: the source's process must end with 0 within 10 s; g lives in d from
 * now on. The source's remaining output comes before that of d; see struct guest.
 */
void guest_moved(struct guest *g, struct dest *d);

/* The same, whatever has become of the source's process: it was killed, say. */
void guest_follow(struct guest *g, struct dest *d);

/*
 * All of it: a new receiver at uri, a migration to it with these words, which must complete, and
 * the swap of the processes. m may be NULL. Time limit: 60 s.
 */
void guest_move(struct guest *g, struct move *m, const char *uri, ...) __attribute__((sentinel));

/*
 * A link of limited speed in front of d: connections to the URI that it gives are passed on. With
 * it a move takes as long as a test needs, however fast the host is. The limit holds from source to
 * destination, over all connections.
 */
const char *slow_link(const struct dest *d, uint64_t bytes_per_s);

#define LINK_CUTS 8

/* The same, and it breaks: all connections at once, at each of these points; new ones are passed
 * on. */
struct link_plan {
	uint64_t rate;		/* bytes a second; 0: no limit */
	unsigned n_cuts;	/* how often it breaks */
	uint64_t at[LINK_CUTS]; /* when so many bytes have gone towards the receiver in all */
	unsigned at_type;	/* or, not 0: before a frame of this type (enum wire_type) */
	bool to_source;		/* which the receiver sends */
	enum {
		LINK_CLOSE,   /* in order: both sides read an end of file */
		LINK_RESET,   /* with a reset, where there is such a thing */
		LINK_SILENCE, /* nothing gets through, until somebody connects anew */
	} how;
};
const char *planned_link(const struct dest *d, const struct link_plan *plan);

/* ---- each call above that may fail tells where it was made ---- */

#ifndef GODWIT_HARNESS_PRIVATE_H
#define HARNESS_AT (harness_at(__FILE__, __LINE__))
#define proc_expect(...) (HARNESS_AT, proc_expect(__VA_ARGS__))
#define proc_expect_err(...) (HARNESS_AT, proc_expect_err(__VA_ARGS__))
#define proc_try(...) (HARNESS_AT, proc_try(__VA_ARGS__))
#define proc_next(...) (HARNESS_AT, proc_next(__VA_ARGS__))
#define proc_wait(...) (HARNESS_AT, proc_wait(__VA_ARGS__))
#define proc_ended(...) (HARNESS_AT, proc_ended(__VA_ARGS__))
#define proc_send(...) (HARNESS_AT, proc_send(__VA_ARGS__))
#define godwit_run(...) (HARNESS_AT, godwit_run(__VA_ARGS__))
#define kv(...) (HARNESS_AT, kv(__VA_ARGS__))
#define kv_text(...) (HARNESS_AT, kv_text(__VA_ARGS__))
#define json_of(...) (HARNESS_AT, json_of(__VA_ARGS__))
#define json_num(...) (HARNESS_AT, json_num(__VA_ARGS__))
#define json_text(...) (HARNESS_AT, json_text(__VA_ARGS__))
#define guest_expect(...) (HARNESS_AT, guest_expect(__VA_ARGS__))
#define guest_next(...) (HARNESS_AT, guest_next(__VA_ARGS__))
#define guest_send(...) (HARNESS_AT, guest_send(__VA_ARGS__))
#define guest_ended(...) (HARNESS_AT, guest_ended(__VA_ARGS__))
#define guest_status(...) (HARNESS_AT, guest_status(__VA_ARGS__))
#define dirty_start(...) (HARNESS_AT, dirty_start(__VA_ARGS__))
#define dirty_intact(...) (HARNESS_AT, dirty_intact(__VA_ARGS__))
#define dirty_finish(...) (HARNESS_AT, dirty_finish(__VA_ARGS__))
#define guest_moved(...) (HARNESS_AT, guest_moved(__VA_ARGS__))
#define guest_move(...) (HARNESS_AT, guest_move(__VA_ARGS__))
#define dest_start(...) (HARNESS_AT, dest_start(__VA_ARGS__))
#define move_report(...) (HARNESS_AT, move_report(__VA_ARGS__))
#define planned_link(...) (HARNESS_AT, planned_link(__VA_ARGS__))
#define slow_link(...) (HARNESS_AT, slow_link(__VA_ARGS__))
#endif

#endif
