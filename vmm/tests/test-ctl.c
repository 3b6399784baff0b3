/* SPDX-License-Identifier: MIT */
/* The control socket over real sockets: a server on its own thread, clients that misbehave. */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../ctl.h"
#include "../ctl_client.h"
#include "../rundir.h"
#include "../util.h"

#define WAIT_MS 10000
#define BIG 60000
#define STORM 5000

static char top[] = "/tmp/godwit-test-ctl-XXXXXX"; /* replaced by each test's own folder */
static char dir[64];

static struct server {
	struct loop loop;
	struct rundir_claim claim;
	struct ctl *ctl;
	pthread_t thread;
	struct loop_task stop_task, release_task;
	struct ctl_client *held; /* by the handler `hold`, on the loop's thread */
	atomic_uint holds;
	atomic_bool freed;
} srv;

/* ---- the fake guest's handlers ---- */

static void do_echo(void *arg, struct ctl_client *c, json_t *request)
{
	(void)arg;
	ctl_reply(c, json_pack("{s:O}", "value", json_object_get(request, "value")));
}

static void do_fail(void *arg, struct ctl_client *c, json_t *request)
{
	(void)arg;
	(void)request;
	ctl_error(c, json_pack("{s:i}", "more", 7), "it is %s", "\xff broken");
}

static void do_big(void *arg, struct ctl_client *c, json_t *request)
{
	char text[BIG + 1];

	(void)arg;
	(void)request;
	memset(text, 'x', BIG);
	text[BIG] = '\0';
	ctl_reply(c, json_pack("{s:s}", "big", text));
}

static void do_hold(void *arg, struct ctl_client *c, json_t *request)
{
	struct server *s = arg;

	(void)request;
	s->held = c;
	s->holds++;
}

static void release(struct loop_task *task)
{
	struct server *s = container_of(task, struct server, release_task);

	ctl_event(s->held, json_pack("{s:s}", "event", "soon"));
	ctl_reply(s->held, json_pack("{s:s}", "held", "yes"));
	s->freed = true;
}

/* Many events at once: far more than a client that does not read may make the server keep. */
static void do_storm(void *arg, struct ctl_client *c, json_t *request)
{
	(void)arg;
	(void)request;
	for (int i = 0; i < STORM; i++)
		ctl_event(c, json_pack("{s:s,s:i}", "event", "storm", "i", i));
	ctl_reply(c, NULL);
}

static const struct ctl_handler handlers[] = {
	{"echo", do_echo}, {"fail", do_fail},	{"big", do_big},
	{"hold", do_hold}, {"storm", do_storm}, {NULL, NULL},
};

static void stop(struct loop_task *task)
{
	loop_stop(&container_of(task, struct server, stop_task)->loop);
}

static void *serve(void *arg)
{
	struct server *s = arg;

	loop_run(&s->loop);
	ctl_stop(s->ctl, NS_PER_SEC);
	return NULL;
}

static void start_server(uint64_t idle_ns)
{
	struct errmsg err = {""};

	memset(&srv, 0, sizeof(srv));
	srv.stop_task.run = stop;
	srv.release_task.run = release;
	ck_assert_int_eq(loop_init(&srv.loop), 0);
	ck_assert_msg(rundir_claim(&srv.claim, "g", &err) == 0, "%s", err.text);
	ck_assert_int_eq(
		ctl_start(&srv.ctl, &srv.loop, srv.claim.listen_fd, handlers, &srv, idle_ns), 0);
	pthread_create(&srv.thread, NULL, serve, &srv);
}

static void stop_server(void)
{
	loop_post(&srv.loop, &srv.stop_task);
	pthread_join(srv.thread, NULL);
	rundir_release(&srv.claim);
	loop_destroy(&srv.loop);
}

static void setup(void)
{
	strcpy(top + strlen(top) - 6, "XXXXXX");
	ck_assert_ptr_nonnull(mkdtemp(top));
	snprintf(dir, sizeof(dir), "%s/run", top);
	setenv("GODWIT_RUNDIR", dir, 1);
	signal(SIGPIPE, SIG_IGN);
}

static void teardown(void)
{
	char cmd[128];

	snprintf(cmd, sizeof(cmd), "rm -rf %s", top);
	ck_assert_int_eq(system(cmd), 0);
}

static void setup_server(void)
{
	setup();
	start_server(CTL_IDLE_DEFAULT);
}

static void teardown_server(void)
{
	stop_server();
	teardown();
}

/* ---- a client that can do anything ---- */

static int dial(void)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	ck_assert_int_eq(connect(fd, (struct sockaddr *)&srv.claim.addr, sizeof(srv.claim.addr)),
			 0);
	return fd;
}

static void say(int fd, const char *text)
{
	ck_assert_int_eq(write_exact(fd, text, strlen(text)), 0);
}

/* Next line without its newline; false at the end of the connection. */
static bool hear(int fd, char *line, size_t size)
{
	size_t n = 0;

	for (;;) {
		struct pollfd p = {.fd = fd, .events = POLLIN};

		ck_assert_msg(poll(&p, 1, WAIT_MS) == 1, "no answer in time");
		ck_assert_uint_lt(n, size);
		if (read(fd, line + n, 1) != 1)
			return false;
		if (line[n] == '\n') {
			line[n] = '\0';
			return true;
		}
		n++;
	}
}

#define expect(fd, want)                                                                           \
	do {                                                                                       \
		char line_[512] = "";                                                              \
		ck_assert_msg(hear(fd, line_, sizeof(line_)), "closed instead of %s", want);       \
		ck_assert_msg(strstr(line_, want), "got %s, not %s", line_, want);                 \
	} while (0)

#define expect_end(fd)                                                                             \
	do {                                                                                       \
		char line_[512] = "";                                                              \
		ck_assert_msg(!hear(fd, line_, sizeof(line_)), "got %s, not the end", line_);      \
	} while (0)

/* Whatever another client has done, the next one is served. */
static void check_alive(void)
{
	int fd = dial();

	say(fd, "{\"cmd\":\"echo\",\"value\":\"alive\"}\n");
	expect(fd, "{\"ok\":true,\"value\":\"alive\"}");
	close(fd);
}

static void wait_for_holds(unsigned n)
{
	for (int i = 0; srv.holds < n && i < WAIT_MS; i++)
		poll(NULL, 0, 1);
	ck_assert_uint_eq(srv.holds, n);
}

/* ---- the protocol ---- */

START_TEST(answers)
{
	int fd = dial();

	say(fd, "{\"cmd\":\"echo\",\"value\":[1,{\"a\":null}]}\n");
	expect(fd, "{\"ok\":true,\"value\":[1,{\"a\":null}]}");
	/* Bytes that are not UTF-8 make no line that is not JSON, and take no other words away. */
	say(fd, "{\"cmd\":\"fail\"}\n");
	expect(fd, "{\"ok\":false,\"more\":7,\"error\":\"it is ? broken\"}");
	say(fd, "{\"cmd\":\"nonsense\"}\r\n");
	expect(fd, "no command \\\"nonsense\\\"");
	close(fd);
}
END_TEST

START_TEST(garbage_gets_errors)
{
	static const char *const garbage[] = {
		"hello\n",
		"{\n",
		"\x01\x02\xff\xfe\n",
		"[]\n",
		"null\n",
		"\"cmd\"\n",
		"{\"cmd\":1}\n",
		"{\"cmd\":null}\n",
		"{\"Cmd\":\"echo\"}\n",
		"{\"cmd\":\"echo\",\"cmd\":\"echo\"}\n",
		"{\"cmd\":\"echo\"} {\"cmd\":\"echo\"}\n",
		"{\"cmd\":\"ec\\u0000ho\"}\n",
		"{\"cmd\":\"%s%n%n%n\"}\n",
	};
	char deep[20002];
	int fd = dial();

	for (size_t i = 0; i < ARRAY_SIZE(garbage); i++) {
		say(fd, garbage[i]);
		expect(fd, "{\"ok\":false,\"error\":\"");
	}
	memset(deep, '[', 20000);
	strcpy(deep + 20000, "\n");
	say(fd, deep);
	expect(fd, "{\"ok\":false,\"error\":\"");
	ck_assert_int_eq(write_exact(fd, "{\"cmd\":\"echo\"\0}\n", 16), 0);
	expect(fd, "{\"ok\":false,\"error\":\"");
	/* Empty lines are no requests; the connection still works. */
	say(fd, "\n \n\r\n{\"cmd\":\"echo\",\"value\":1}\n");
	expect(fd, "{\"ok\":true,\"value\":1}");
	close(fd);
}
END_TEST

START_TEST(oversized_lines_end_the_connection)
{
	char *line = malloc(CTL_LINE_MAX + 1);
	int fd = dial();

	/* The longest that is allowed, newline included... */
	memset(line, ' ', CTL_LINE_MAX);
	memcpy(line, "{\"cmd\":\"echo\",\"value\":1", 23);
	line[CTL_LINE_MAX - 2] = '}';
	line[CTL_LINE_MAX - 1] = '\n';
	line[CTL_LINE_MAX] = '\0';
	say(fd, line);
	expect(fd, "{\"ok\":true,\"value\":1}");
	/* ... and one more byte. */
	line[CTL_LINE_MAX - 1] = ' ';
	say(fd, line);
	expect(fd, "longer than 64 KiB");
	expect_end(fd);
	close(fd);
	free(line);
	check_alive();
}
END_TEST

START_TEST(endless_line)
{
	char piece[4096];
	int fd = dial();
	size_t sent = 0;

	memset(piece, 'x', sizeof(piece));
	/* Much more than the limit: the server stops reading, it does not gather. */
	for (; sent < 64 * CTL_LINE_MAX; sent += sizeof(piece)) {
		if (send(fd, piece, sizeof(piece), MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
			break;
	}
	ck_assert_uint_lt(sent, 64 * CTL_LINE_MAX);
	expect(fd, "longer than 64 KiB");
	close(fd);
	check_alive();
}
END_TEST

START_TEST(half_lines)
{
	int fd = dial();

	/* Gone in the middle of a line. */
	say(fd, "{\"cmd\":\"ec");
	close(fd);
	check_alive();
	/* The other half comes later, after others were served. */
	fd = dial();
	say(fd, "{\"cmd\":\"echo\",");
	check_alive();
	say(fd, "\"value\":2}\n{\"cmd\":");
	expect(fd, "{\"ok\":true,\"value\":2}");
	say(fd, "\"echo\",\"value\":3}\n");
	expect(fd, "{\"ok\":true,\"value\":3}");
	/* A last line that never ends. */
	say(fd, "{\"cmd\":\"echo\"}");
	shutdown(fd, SHUT_WR);
	expect(fd, "does not end");
	expect_end(fd);
	close(fd);
	/* Byte by byte. */
	fd = dial();
	for (const char *p = "{\"cmd\":\"echo\",\"value\":4}\n"; *p; p++)
		ck_assert_int_eq(write_exact(fd, p, 1), 0);
	expect(fd, "{\"ok\":true,\"value\":4}");
	close(fd);
}
END_TEST

START_TEST(requests_of_one_connection_are_served_in_turn)
{
	char text[8192] = "", want[64];
	size_t n = 0;
	int fd = dial();

	for (int i = 0; i < 200; i++)
		n += (size_t)snprintf(text + n, sizeof(text) - n,
				      "{\"cmd\":\"echo\",\"value\":%d}\n", i);
	say(fd, text);
	for (int i = 0; i < 200; i++) {
		snprintf(want, sizeof(want), "{\"ok\":true,\"value\":%d}", i);
		expect(fd, want);
	}
	/* One that is answered later holds the next one up, but no other connection. */
	say(fd, "{\"cmd\":\"hold\"}\n{\"cmd\":\"echo\",\"value\":\"second\"}\n");
	wait_for_holds(1);
	check_alive();
	loop_post(&srv.loop, &srv.release_task);
	expect(fd, "{\"event\":\"soon\"}");
	expect(fd, "{\"ok\":true,\"held\":\"yes\"}");
	expect(fd, "{\"ok\":true,\"value\":\"second\"}");
	close(fd);
}
END_TEST

START_TEST(answers_reach_a_client_that_has_shut_down_its_side)
{
	int fd = dial();

	say(fd, "{\"cmd\":\"hold\"}\n{\"cmd\":\"echo\",\"value\":5}\n");
	shutdown(fd, SHUT_WR);
	wait_for_holds(1);
	loop_post(&srv.loop, &srv.release_task);
	expect(fd, "soon");
	expect(fd, "held");
	expect(fd, "{\"ok\":true,\"value\":5}");
	expect_end(fd);
	close(fd);
}
END_TEST

START_TEST(client_gone_before_its_answer)
{
	int fd = dial();

	say(fd, "{\"cmd\":\"hold\"}\n");
	wait_for_holds(1);
	close(fd);
	check_alive();
	loop_post(&srv.loop, &srv.release_task);
	for (int i = 0; !srv.freed && i < WAIT_MS; i++)
		poll(NULL, 0, 1);
	ck_assert(srv.freed);
	check_alive();
}
END_TEST

START_TEST(many_clients)
{
	int fds[CTL_CLIENTS_MAX], one;

	for (int i = 0; i < CTL_CLIENTS_MAX; i++) {
		fds[i] = dial();
		say(fds[i], "{\"cmd\":\"echo\",\"value\":6}\n");
		expect(fds[i], "{\"ok\":true,\"value\":6}");
	}
	one = dial();
	expect(one, "too many connections");
	expect_end(one);
	close(one);
	/* Those that are in go on, and room is made by going. */
	say(fds[0], "{\"cmd\":\"echo\",\"value\":7}\n");
	expect(fds[0], "{\"ok\":true,\"value\":7}");
	close(fds[3]);
	for (int i = 0; i < WAIT_MS; i++) {
		char line[128] = "";

		one = dial();
		say(one, "{\"cmd\":\"echo\",\"value\":8}\n");
		if (hear(one, line, sizeof(line)) && strstr(line, "\"value\":8"))
			break;
		close(one);
		one = -1;
	}
	ck_assert_int_ge(one, 0);
	close(one);
	for (int i = 0; i < CTL_CLIENTS_MAX; i++) {
		if (i != 3)
			close(fds[i]);
	}
}
END_TEST

START_TEST(client_that_never_reads_is_dropped)
{
	static const char request[] = "{\"cmd\":\"big\"}\n";
	int fd, i;

	stop_server();
	start_server(NS_PER_SEC / 2);
	fd = dial();
	/* Its answers fill the socket, then the server's limit; then it is idle, and soon out. */
	for (i = 0; i < 100000; i++) {
		if (send(fd, request, sizeof(request) - 1, MSG_NOSIGNAL) < 0)
			break;
	}
	ck_assert_int_lt(i, 100000);
	check_alive();
	close(fd);
}
END_TEST

/* More answers than a socket and the server hold. */
START_TEST(requests_ahead_of_their_answers)
{
	static char some[BIG];
	const int n = 40;
	int fd = dial(), lines = 0;

	for (int i = 0; i < n; i++)
		say(fd, "{\"cmd\":\"big\"}\n");
	while (lines < n) {
		struct pollfd p = {.fd = fd, .events = POLLIN};
		ssize_t len;

		ck_assert_msg(poll(&p, 1, WAIT_MS) == 1, "no answer in time");
		len = read(fd, some, sizeof(some));
		ck_assert_int_gt(len, 0);
		for (ssize_t i = 0; i < len; i++)
			lines += some[i] == '\n';
	}
	close(fd);
	check_alive();
}
END_TEST

START_TEST(events_for_a_slow_client_are_left_out)
{
	char line[256];
	int events = 0;
	int fd = dial();

	say(fd, "{\"cmd\":\"storm\"}\n");
	while (hear(fd, line, sizeof(line)) && strstr(line, "event"))
		events++;
	ck_assert_str_eq(line, "{\"ok\":true}");
	ck_assert_int_ge(events, 1);
	ck_assert_int_lt(events, STORM);
	close(fd);
}
END_TEST

START_TEST(stop_answers_who_still_waits)
{
	int fd = dial(), idle = dial();

	say(fd, "{\"cmd\":\"hold\"}\n");
	wait_for_holds(1);
	stop_server();
	expect(fd, "{\"ok\":false,\"error\":\"the guest's process ends\"}");
	expect_end(fd);
	expect_end(idle);
	close(fd);
	close(idle);
	start_server(CTL_IDLE_DEFAULT);
}
END_TEST

START_TEST(idle_client_is_dropped)
{
	int idle, held;

	stop_server();
	start_server(50 * NS_PER_MS);
	idle = dial();
	held = dial();
	say(held, "{\"cmd\":\"hold\"}\n");
	wait_for_holds(1);
	expect_end(idle);
	/* Who waits for us is not idle. */
	loop_post(&srv.loop, &srv.release_task);
	expect(held, "soon");
	expect(held, "held");
	close(idle);
	close(held);
}
END_TEST

START_TEST(client_calls)
{
	struct errmsg err = {""};
	json_t *answer = NULL;

	ck_assert_int_eq(ctl_call("g", json_pack("{s:s,s:s}", "cmd", "echo", "value", "x"),
				  NS_PER_SEC, &answer, &err),
			 0);
	ck_assert_str_eq(json_string_value(json_object_get(answer, "value")), "x");
	json_decref(answer);
	ck_assert_int_eq(ctl_call("g", json_pack("{s:s}", "cmd", "nope"), NS_PER_SEC, NULL, &err),
			 -EREMOTEIO);
	ck_assert_ptr_nonnull(strstr(err.text, "no command"));
	memset(&err, 0, sizeof(err));
	ck_assert_int_eq(
		ctl_call("nobody", json_pack("{s:s}", "cmd", "echo"), NS_PER_SEC, NULL, &err),
		-ENOENT);
	ck_assert_ptr_nonnull(strstr(err.text, "'nobody'"));
	/* An answer that does not come. */
	memset(&err, 0, sizeof(err));
	ck_assert_int_eq(
		ctl_call("g", json_pack("{s:s}", "cmd", "hold"), 50 * NS_PER_MS, NULL, &err),
		-ETIMEDOUT);
	loop_post(&srv.loop, &srv.release_task);
}
END_TEST

/* ---- names ---- */

static mode_t mode_of(const char *path)
{
	struct stat st;

	ck_assert_msg(lstat(path, &st) == 0, "%s: %s", path, strerror(errno));
	return st.st_mode & 07777;
}

START_TEST(claim_and_release)
{
	struct errmsg err = {""};
	struct rundir_claim a, b;

	umask(0);
	ck_assert_int_eq(rundir_claim(&a, "x", &err), 0);
	ck_assert_uint_eq(mode_of(dir), 0700);
	ck_assert_uint_eq(mode_of(a.addr.sun_path), 0600);
	ck_assert_int_eq(rundir_claim(&b, "x", &err), -EADDRINUSE);
	ck_assert_ptr_nonnull(strstr(err.text, "name already taken"));
	ck_assert_int_eq(rundir_claim(&b, "y", &err), 0);
	rundir_release(&b);
	rundir_release(&a);
	rundir_release(&a); /* harmless */
	ck_assert_int_ne(access(a.addr.sun_path, F_OK), 0);
	ck_assert_int_ne(access(a.lock_path, F_OK), 0);
	ck_assert_int_eq(rundir_claim(&a, "x", &err), 0);
	rundir_release(&a);
}
END_TEST

/* Leaves behind what a process does that was killed while it owned name. */
static void leave_dead(const char *name)
{
	pid_t pid = fork();
	int status;

	ck_assert_int_ge(pid, 0);
	if (pid == 0) {
		struct rundir_claim c;

		if (rundir_claim(&c, name, NULL))
			_exit(1);
		kill(getpid(), SIGKILL);
		_exit(1);
	}
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert(WIFSIGNALED(status));
}

START_TEST(dead_owner_is_replaced)
{
	struct errmsg err = {""};
	struct rundir_claim c;
	char path[96];

	leave_dead("x");
	snprintf(path, sizeof(path), "%s/x.sock", dir);
	ck_assert_uint_eq(mode_of(path), 0600);
	ck_assert_int_eq(ctl_call("x", json_pack("{s:s}", "cmd", "echo"), NS_PER_SEC, NULL, &err),
			 -ENOENT);
	ck_assert_int_eq(rundir_claim(&c, "x", &err), 0);
	rundir_release(&c);
}
END_TEST

/* A live owner whose lock file somebody removed still has its name. */
START_TEST(live_listener_without_lock_is_respected)
{
	struct errmsg err = {""};
	struct rundir_claim a, b;

	ck_assert_int_eq(rundir_claim(&a, "x", &err), 0);
	ck_assert_int_eq(unlink(a.lock_path), 0);
	ck_assert_int_eq(rundir_claim(&b, "x", &err), -EADDRINUSE);
	ck_assert_int_eq(access(a.addr.sun_path, F_OK), 0);
	rundir_release(&a);
}
END_TEST

#define RACERS 6

/* One racer: waits for the start, claims, tells by a byte whether it got the name, then holds it.
 */
static void race(int start, int result, int end)
{
	struct rundir_claim c;
	char go, won;

	if (read(start, &go, 1) < 0)
		_exit(2);
	won = rundir_claim(&c, "x", NULL) == 0;
	if (write(result, &won, 1) != 1)
		_exit(2);
	if (read(end, &go, 1) < 0)
		_exit(2);
	if (won)
		rundir_release(&c);
	_exit(0);
}

START_TEST(race_for_a_dead_owners_name_has_one_winner)
{
	for (int round = 0; round < 40; round++) {
		int start[2], result[2], end[2], winners = 0;
		pid_t pid[RACERS];

		if (round % 2)
			leave_dead("x");
		ck_assert(pipe(start) == 0 && pipe(result) == 0 && pipe(end) == 0);
		for (int i = 0; i < RACERS; i++) {
			pid[i] = fork();
			ck_assert_int_ge(pid[i], 0);
			if (pid[i] == 0) {
				close(start[1]);
				close(end[1]);
				race(start[0], result[1], end[0]);
			}
		}
		close(start[1]);
		for (int i = 0; i < RACERS; i++) {
			char won;

			ck_assert_int_eq(read_exact(result[0], &won, 1), 0);
			winners += won;
		}
		close(end[1]);
		for (int i = 0; i < RACERS; i++) {
			int status;

			waitpid(pid[i], &status, 0);
			ck_assert_int_eq(status, 0);
		}
		ck_assert_int_eq(winners, 1);
		close(start[0]);
		close(result[0]);
		close(result[1]);
		close(end[0]);
	}
}
END_TEST

#define CLAIMERS 4
#define CLAIMS 100

/*
 * Owners that come and go: never two at once, seen by a file that only the owner may create. This
 * is where an unlinked lock file would let two in.
 */
START_TEST(owners_that_come_and_go_never_overlap)
{
	char token[96];
	pid_t pid[CLAIMERS];

	ck_assert_int_eq(mkdir(dir, 0700), 0);
	snprintf(token, sizeof(token), "%s/owner", top);
	for (int i = 0; i < CLAIMERS; i++) {
		pid[i] = fork();
		ck_assert_int_ge(pid[i], 0);
		if (pid[i])
			continue;
		/* The case's time limit ends one that never gets its turn. */
		for (int won = 0; won < CLAIMS;) {
			struct rundir_claim c;
			int fd;

			if (rundir_claim(&c, "x", NULL))
				continue;
			won++;
			fd = open(token, O_CREAT | O_EXCL | O_WRONLY, 0600);
			if (fd < 0)
				_exit(3);
			close(fd);
			unlink(token);
			rundir_release(&c);
		}
		_exit(0);
	}
	for (int i = 0; i < CLAIMERS; i++) {
		int status;

		waitpid(pid[i], &status, 0);
		ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == 0,
			      "claimer %d: %d (3: two owners at once)", i, WEXITSTATUS(status));
	}
}
END_TEST

START_TEST(free_names)
{
	char prefix[VM_NAME_MAX];
	struct errmsg err = {""};
	struct rundir_claim a, b, c;

	ck_assert_int_eq(rundir_claim_free(&a, "vm", 1, &err), 0);
	ck_assert_str_eq(a.name, "vm1");
	ck_assert_int_eq(rundir_claim_free(&b, "vm", 1, &err), 0);
	ck_assert_str_eq(b.name, "vm2");
	rundir_release(&a);
	leave_dead("vm1");
	ck_assert_int_eq(rundir_claim_free(&a, "vm", 1, &err), 0);
	ck_assert_str_eq(a.name, "vm1");
	/* A prefix as long as a name leaves room for the number all the same. */
	memset(prefix, 'a', sizeof(prefix) - 1);
	prefix[sizeof(prefix) - 1] = '\0';
	ck_assert_msg(rundir_claim_free(&c, prefix, 2, &err) == 0, "%s", err.text);
	ck_assert_uint_eq(strlen(c.name), VM_NAME_MAX - 1);
	ck_assert_str_eq(c.name + VM_NAME_MAX - 3, "a2");
	rundir_release(&c);
	rundir_release(&a);
	rundir_release(&b);
}
END_TEST

START_TEST(list_of_names)
{
	static const char *const names[] = {"b10", "b9", "a"};
	char(*found)[VM_NAME_MAX];
	struct errmsg err = {""};
	struct rundir_claim c[3];
	char path[96];

	/* No folder: no guests. */
	ck_assert_int_eq(rundir_list(&found, &err), 0);
	for (int i = 0; i < 3; i++)
		ck_assert_int_eq(rundir_claim(&c[i], names[i], &err), 0);
	snprintf(path, sizeof(path), "%s/stray.txt", dir);
	close(open(path, O_CREAT | O_WRONLY, 0600));
	ck_assert_int_eq(rundir_list(&found, &err), 3);
	ck_assert_str_eq(found[0], "a");
	ck_assert_str_eq(found[1], "b9");
	ck_assert_str_eq(found[2], "b10");
	free(found);
	for (int i = 0; i < 3; i++)
		rundir_release(&c[i]);
}
END_TEST

static bool has_files(const char *name)
{
	char sock[96], lock[96];

	snprintf(sock, sizeof(sock), "%s/%s.sock", dir, name);
	snprintf(lock, sizeof(lock), "%s/%s.lock", dir, name);
	ck_assert_int_eq(access(sock, F_OK) == 0, access(lock, F_OK) == 0);
	return access(sock, F_OK) == 0;
}

START_TEST(what_the_dead_left_is_removed)
{
	struct errmsg err = {""};
	struct rundir_claim a, b;
	char path[96];
	int fd;

	/* Neither folder nor name. */
	rundir_remove_dead("x");
	leave_dead("x");
	ck_assert(has_files("x"));
	ck_assert_int_eq(rundir_claim(&a, "a", &err), 0);
	rundir_remove_dead("none");
	ck_assert(!has_files("none"));
	rundir_remove_dead("a");
	ck_assert(has_files("a"));
	rundir_remove_dead("x");
	ck_assert(!has_files("x"));
	/* A live one whose lock file somebody removed, and one that is not ours, keep listening. */
	ck_assert_int_eq(unlink(a.lock_path), 0);
	rundir_remove_dead("a");
	ck_assert_int_eq(access(a.addr.sun_path, F_OK), 0);
	rundir_release(&a);
	/* One who has the lock and does not listen yet is none of the dead. */
	ck_assert_int_eq(rundir_claim(&b, "b", &err), 0);
	close(b.listen_fd);
	b.listen_fd = -1;
	rundir_remove_dead("b");
	ck_assert(has_files("b"));
	rundir_release(&b);
	/* And what is not a socket's is not touched. */
	snprintf(path, sizeof(path), "%s/x.sock.txt", dir);
	fd = open(path, O_CREAT | O_WRONLY, 0600);
	ck_assert_int_ge(fd, 0);
	close(fd);
	rundir_remove_dead("x");
	ck_assert_int_eq(access(path, F_OK), 0);
}
END_TEST

/* Clearing away never costs anybody his name, taken or about to be. */
START_TEST(clearing_away_disturbs_nobody)
{
	struct errmsg err = {""};
	pid_t pid[3];

	ck_assert_int_eq(mkdir(dir, 0700), 0);
	for (int i = 0; i < 3; i++) {
		pid[i] = fork();
		ck_assert_int_ge(pid[i], 0);
		/* As fast as one may do so, but not as all that the host does. */
		while (pid[i] == 0) {
			rundir_remove_dead("x");
			poll(NULL, 0, 1);
		}
	}
	for (int i = 0; i < 300; i++) {
		struct rundir_claim c;

		if (i % 10 == 0)
			leave_dead("x");
		ck_assert_msg(rundir_claim(&c, "x", &err) == 0, "round %d: %s", i, err.text);
		ck_assert_int_eq(access(c.addr.sun_path, F_OK), 0);
		ck_assert_int_eq(access(c.lock_path, F_OK), 0);
		rundir_release(&c);
	}
	for (int i = 0; i < 3; i++) {
		kill(pid[i], SIGKILL);
		waitpid(pid[i], NULL, 0);
	}
}
END_TEST

START_TEST(unsafe_folders_are_refused)
{
	char path[RUNDIR_PATH_MAX + 64];
	struct errmsg err = {""};
	struct rundir_claim c;

	ck_assert_int_eq(mkdir(dir, 0700), 0);
	ck_assert_int_eq(chmod(dir, 0777), 0);
	ck_assert_int_eq(rundir_claim(&c, "x", &err), -EPERM);
	ck_assert_ptr_nonnull(strstr(err.text, dir));
	ck_assert_int_eq(chmod(dir, 0700), 0);

	memset(&err, 0, sizeof(err));
	snprintf(path, sizeof(path), "%s/link", top);
	ck_assert_int_eq(symlink(dir, path), 0);
	setenv("GODWIT_RUNDIR", path, 1);
	ck_assert_int_eq(rundir_claim(&c, "x", &err), -ENOTDIR);

	memset(&err, 0, sizeof(err));
	memset(path, 'd', sizeof(path) - 1);
	path[0] = '/';
	path[sizeof(path) - 1] = '\0';
	setenv("GODWIT_RUNDIR", path, 1);
	ck_assert_int_eq(rundir_claim(&c, "x", &err), -ENAMETOOLONG);
	ck_assert_ptr_nonnull(strstr(err.text, "GODWIT_RUNDIR"));

	/* Another user's folder: only root may use it. */
	setenv("GODWIT_RUNDIR", dir, 1);
	if (geteuid() == 0) {
		ck_assert_int_eq(chown(dir, 12345, 12345), 0);
		ck_assert_int_eq(rundir_claim(&c, "x", &err), 0);
		rundir_release(&c);
		ck_assert_int_eq(chmod(top, 0711), 0);
		ck_assert_int_eq(seteuid(54321), 0);
		memset(&err, 0, sizeof(err));
		ck_assert_int_eq(rundir_claim(&c, "x", &err), -EPERM);
		ck_assert_ptr_nonnull(strstr(err.text, "12345"));
		ck_assert_int_eq(seteuid(0), 0);
	}
}
END_TEST

int main(void)
{
	Suite *s = suite_create("ctl");
	TCase *server = tcase_create("server"), *names = tcase_create("names");
	SRunner *r;
	int failed;

	tcase_add_checked_fixture(server, setup_server, teardown_server);
	tcase_add_test(server, answers);
	tcase_add_test(server, garbage_gets_errors);
	tcase_add_test(server, oversized_lines_end_the_connection);
	tcase_add_test(server, endless_line);
	tcase_add_test(server, half_lines);
	tcase_add_test(server, requests_of_one_connection_are_served_in_turn);
	tcase_add_test(server, answers_reach_a_client_that_has_shut_down_its_side);
	tcase_add_test(server, client_gone_before_its_answer);
	tcase_add_test(server, many_clients);
	tcase_add_test(server, client_that_never_reads_is_dropped);
	tcase_add_test(server, requests_ahead_of_their_answers);
	tcase_add_test(server, events_for_a_slow_client_are_left_out);
	tcase_add_test(server, stop_answers_who_still_waits);
	tcase_add_test(server, idle_client_is_dropped);
	tcase_add_test(server, client_calls);
	tcase_set_timeout(server, 60);
	suite_add_tcase(s, server);

	tcase_add_checked_fixture(names, setup, teardown);
	tcase_add_test(names, claim_and_release);
	tcase_add_test(names, dead_owner_is_replaced);
	tcase_add_test(names, live_listener_without_lock_is_respected);
	tcase_add_test(names, race_for_a_dead_owners_name_has_one_winner);
	tcase_add_test(names, owners_that_come_and_go_never_overlap);
	tcase_add_test(names, free_names);
	tcase_add_test(names, list_of_names);
	tcase_add_test(names, what_the_dead_left_is_removed);
	tcase_add_test(names, clearing_away_disturbs_nobody);
	tcase_add_test(names, unsafe_folders_are_refused);
	tcase_set_timeout(names, 60);
	suite_add_tcase(s, names);

	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
