/* SPDX-License-Identifier: MIT */
/*
 * The network laboratory keeps its promises: delay, rate, loss and damage are what was asked for,
 * as programs on its hosts see them; and godwit's checks find what gets past TCP's.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../bare/contract.h"
#include "netlab.h"

#define PORT 7000
#define WAIT_MS 10000
#define READY_MS 60000

/* ---- sockets ---- */

static struct sockaddr_in address(const char *host)
{
	struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons(PORT)};

	inet_pton(AF_INET, host, &in.sin_addr);
	return in;
}

/* On that host, bound to its address; the test's process is there then. */
static int open_socket(const struct netlab *l, char host, int type)
{
	struct sockaddr_in in = address(host == 'a' ? NETLAB_A : NETLAB_B);
	int fd;

	netlab_enter(l, host);
	fd = socket(AF_INET, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	need(fd >= 0 && bind(fd, (struct sockaddr *)&in, sizeof(in)) == 0, "a socket on %c: %s",
	     host, strerror(errno));
	return fd;
}

static bool ready(int fd, short events, int timeout_ms)
{
	struct pollfd p = {.fd = fd, .events = events};

	return poll(&p, 1, timeout_ms) == 1;
}

/* A TCP connection from a, fd[0], to b, fd[1]. */
static void join_tcp(const struct netlab *l, int fd[2])
{
	struct sockaddr_in to = address(NETLAB_B);
	int listener = open_socket(l, 'b', SOCK_STREAM);

	need(listen(listener, 1) == 0, "listen: %s", strerror(errno));
	fd[0] = open_socket(l, 'a', SOCK_STREAM);
	need(connect(fd[0], (struct sockaddr *)&to, sizeof(to)) == 0 || errno == EINPROGRESS,
	     "connect: %s", strerror(errno));
	need(ready(listener, POLLIN, harness_slow(WAIT_MS)), "no connection");
	fd[1] = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	need(fd[1] >= 0 && ready(fd[0], POLLOUT, harness_slow(WAIT_MS)), "no connection: %s",
	     strerror(errno));
	close(listener);
}

/*
 * Sends until len bytes have arrived, byte i of them being i % 251, and gives the number that did
 * not have the right value. *ms: from the first byte sent to the last one to arrive, so that what
 * follows of it for the link is never too much.
 */
static size_t transfer(const int fd[2], size_t len, double *ms)
{
	size_t sent = 0, got = 0, wrong = 0;
	uint8_t out[65536], in[65536];
	uint64_t start = harness_now_ms(), end = start + (uint64_t)harness_slow(60000);
	struct pollfd p[2] = {{.fd = fd[0], .events = POLLOUT}, {.fd = fd[1], .events = POLLIN}};
	ssize_t n;

	while (got < len) {
		need(harness_now_ms() < end, "%zu bytes of %zu have arrived", got, len);
		p[0].fd = sent < len ? fd[0] : -1;
		poll(p, 2, 100);
		if (sent < len && p[0].revents) {
			size_t want = len - sent < sizeof(out) ? len - sent : sizeof(out);

			for (size_t i = 0; i < want; i++)
				out[i] = (uint8_t)((sent + i) % 251);
			n = send(fd[0], out, want, MSG_NOSIGNAL);
			need(n > 0 || errno == EAGAIN, "send: %s", strerror(errno));
			sent += n > 0 ? (size_t)n : 0;
		}
		n = recv(fd[1], in, sizeof(in), 0);
		need(n > 0 || (n < 0 && errno == EAGAIN), "recv: %s", strerror(errno));
		for (ssize_t i = 0; i < n; i++)
			wrong += in[i] != (uint8_t)((got + (size_t)i) % 251);
		got += n > 0 ? (size_t)n : 0;
	}
	*ms = (double)(harness_now_ms() - start);
	return wrong;
}

/* ---- what the link does ---- */

START_TEST(round_trip)
{
	struct sockaddr_in a = address(NETLAB_A), b = address(NETLAB_B);
	uint64_t start, best = UINT64_MAX, took;
	struct netlab l;
	int from, to;
	char c = 0;

	netlab_up(&l, "--delay", "30ms", NULL);
	to = open_socket(&l, 'b', SOCK_DGRAM);
	from = open_socket(&l, 'a', SOCK_DGRAM);
	/* As many as it takes for one that nothing has held up. */
	for (int i = 0; i < 100 && (i < 10 || best >= 80); i++) {
		start = harness_now_ms();
		need(sendto(from, &c, 1, 0, (struct sockaddr *)&b, sizeof(b)) == 1, "sendto: %s",
		     strerror(errno));
		need(ready(to, POLLIN, harness_slow(WAIT_MS)) && recv(to, &c, 1, 0) == 1,
		     "nothing arrives at b");
		need(sendto(to, &c, 1, 0, (struct sockaddr *)&a, sizeof(a)) == 1, "sendto: %s",
		     strerror(errno));
		need(ready(from, POLLIN, harness_slow(WAIT_MS)) && recv(from, &c, 1, 0) == 1,
		     "nothing comes back to a");
		took = harness_now_ms() - start;
		if (took < best)
			best = took;
	}
	/* The clock of milliseconds may swallow one. */
	need(best >= 59 && best < (uint64_t)harness_slow(80), "%lu ms there and back", best);
}
END_TEST

/*
 * A link of this rate carries no more, and half of it at least: if not in the first two seconds,
 * which a busy host may take to itself, then in others.
 */
static void need_rate(const int fd[2], double mbit)
{
	double ms, seen = 0;

	for (int i = 0; i < 5 && seen < mbit / 2 / harness_slow(1); i++) {
		size_t len = (size_t)(mbit * 2e6 / 8);

		need(transfer(fd, len, &ms) == 0, "damaged");
		seen = (double)len * 8 / ms / 1e3;
		/* What is faster in the first moment is one millisecond's worth. */
		need(seen <= 1.01 * mbit, "%.1f Mbit/s over a link of %.0f", seen, mbit);
	}
	need(seen >= mbit / 2 / harness_slow(1), "%.1f Mbit/s over a link of %.0f", seen, mbit);
}

START_TEST(rate)
{
	struct netlab l;
	double ms;
	int fd[2];

	netlab_up(&l, "--rate", "80mbit", "--delay", "2ms", NULL);
	join_tcp(&l, fd);
	need_rate(fd, 80);
	netlab_do(&l, "set", "--rate", "16mbit", NULL);
	/* What waits in the queue yet does so at the old rate. */
	transfer(fd, 1000000, &ms);
	need_rate(fd, 16);
}
END_TEST

START_TEST(losses)
{
	struct sockaddr_in b = address(NETLAB_B);
	uint64_t lost, n = 0;
	const char *counts;
	int from, to, room = 1 << 24;
	struct netlab l;
	char c[100] = "";

	netlab_up(&l, "--loss", "5%", "--seed", "3", NULL);
	to = open_socket(&l, 'b', SOCK_DGRAM);
	need(setsockopt(to, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof(room)) == 0, "room: %s",
	     strerror(errno));
	from = open_socket(&l, 'a', SOCK_DGRAM);
	for (int i = 0; i < 4000; i++)
		need(sendto(from, c, sizeof(c), 0, (struct sockaddr *)&b, sizeof(b)) == sizeof(c),
		     "sendto: %s", strerror(errno));
	do {
		counts = netlab_counts(&l, 'a');
		while (recv(to, c, sizeof(c), 0) > 0)
			n++;
	} while (kv(counts, "sent") < 4000 || kv(counts, "held"));
	lost = kv(counts, "lost");
	need(lost + n == 4000, "%lu lost and %lu arrived of 4000: %s", lost, n, counts);
	/* Five standard deviations. */
	need(lost >= 200 - 69 && lost <= 200 + 69, "%lu of 4000 lost", lost);
}
END_TEST

START_TEST(cut_and_join)
{
	struct netlab l;
	char c = 'x';
	int fd[2];

	netlab_up(&l, "--delay", "1ms", NULL);
	join_tcp(&l, fd);
	need(send(fd[0], &c, 1, 0) == 1, "send: %s", strerror(errno));
	need(ready(fd[1], POLLIN, harness_slow(WAIT_MS)) && recv(fd[1], &c, 1, 0) == 1,
	     "nothing arrives");
	netlab_do(&l, "cut", NULL);
	need(send(fd[0], &c, 1, 0) == 1, "send: %s", strerror(errno));
	while (kv(netlab_counts(&l, 'a'), "cut") == 0)
		;
	need(!ready(fd[1], POLLIN, 300), "something arrives over a link that is cut");
	netlab_do(&l, "join", NULL);
	need(ready(fd[1], POLLIN, harness_slow(WAIT_MS)) && recv(fd[1], &c, 1, 0) == 1,
	     "nothing arrives over a link that is joined again");
	/* One way only: b's answer does not come. */
	netlab_do(&l, "cut", "b", NULL);
	need(send(fd[0], &c, 1, 0) == 1, "send: %s", strerror(errno));
	need(ready(fd[1], POLLIN, harness_slow(WAIT_MS)), "what a sends was cut, too");
	need(send(fd[1], &c, 1, 0) == 1, "send: %s", strerror(errno));
	need(!ready(fd[0], POLLIN, 300), "what b sends arrives");
}
END_TEST

START_TEST(damage)
{
	struct netlab l;
	double ms;
	int fd[2];

	/* TCP makes good for one kind, and cannot know of the other. */
	netlab_up(&l, "--corrupt", "1e-6", NULL);
	join_tcp(&l, fd);
	need(transfer(fd, 4000000, &ms) == 0, "damage that TCP's sum shows has arrived");
	need(kv(netlab_counts(&l, 'a'), "corrupted") > 0, "nothing was damaged");
	netlab_do(&l, "set", "a", "--corrupt", "0", "--corrupt-fixed", "1e-6", NULL);
	need(transfer(fd, 4000000, &ms) > 0, "no damage has arrived");
}
END_TEST

/* ---- godwit on it ---- */

/* A guest on host a with this payload, and a receiver on b. */
static void begin_move(const struct netlab *l, struct guest *g, struct dest *d, const char *payload)
{
	netlab_enter(l, 'b');
	dest_start(d, "vm-1", "tcp:" NETLAB_B ":0", "--keep=60s", NULL);
	netlab_enter(l, 'a');
	guest_start(g, "vm", "-q", "-m", "64M", "-k", bare_elf("dirty"), "-p",
		    harness_path("%s report=0", payload), NULL);
	proc_fatal(g->proc, BARE_DIRTY_ERROR);
	guest_expect(g, "^dirty ready ", READY_MS);
}

/* It has checked all its pages. */
static void intact(struct guest *g)
{
	guest_send(g, "q");
	guest_expect(g, "^dirty done .* errors=0$", READY_MS);
}

/*
 * Bits flip beneath TCP. The move must not end with a machine that is not the same, and the guest
 * knows: it checks all its pages.
 */
START_TEST(forged_bits)
{
	struct netlab l;
	struct guest g;
	struct dest d;
	struct move m;

	netlab_up(&l, "--rate", "1gbit", "--corrupt-fixed", "2e-8", NULL);
	begin_move(&l, &g, &d, "ws=48M kind=idle");
	/* Eight bits in 400 million: one in three thousand moves would meet none. */
	move_report(move_start(&g, d.uri, "--timeout=60s", NULL), 1, &m, 90000);
	need(m.error[0], "it does not say why");
	need(kv(netlab_counts(&l, 'a'), "forged") > 0, "no bit has flipped");
	intact(&g);
}
END_TEST

/* With another connection for each that was damaged it gets there all the same. */
START_TEST(bits_and_patience)
{
	struct netlab l;
	struct guest g;
	struct dest d;
	struct move m;

	netlab_up(&l, "--rate", "400mbit", "--corrupt-fixed", "2e-8", NULL);
	begin_move(&l, &g, &d, "ws=48M rate=1M");
	move_report(move_start(&g, d.uri, "--timeout=60s", "--reconnect=60s", "--verify=full",
			       "--connections=2", "--compress=off", NULL),
		    0, &m, 90000);
	harness_say("%llu bits flipped, %.0f connections made anew, %.1f MiB on the wire",
		    (unsigned long long)kv(netlab_counts(&l, 'a'), "forged"),
		    json_num(m.json, "reconnects"), (double)m.wire_bytes / 1048576);
	need(json_num(m.json, "reconnects") > 0, "nothing was damaged");
	guest_moved(&g, &d);
	intact(&g);
}
END_TEST

/*
 * A move with a limit leaves the rest of the link to others; without it two of its connections
 * would take two thirds.
 */
START_TEST(others_keep_their_share)
{
	struct proc *client;
	double ms, mbit;
	struct netlab l;
	struct guest g;
	struct dest d;
	struct move m;
	int fd[2];

	netlab_up(&l, "--rate", "40mbit", "--delay", "1ms", NULL);
	join_tcp(&l, fd);
	begin_move(&l, &g, &d, "ws=48M kind=idle");
	client = move_start(&g, d.uri, "--bandwidth=10Mbit", "--connections=2", "--compress=off",
			    NULL);
	while (kv(netlab_counts(&l, 'a'), "bytes") < 500000)
		harness_pump(20);
	need(transfer(fd, 12000000, &ms) == 0, "damaged");
	mbit = 12000000 * 8 / ms / 1e3;
	need(proc_running(client), "the move was over before");
	harness_say("%.1f of 40 Mbit/s beside a move that may have 10", mbit);
	need(mbit >= 24, "%.1f of 40 Mbit/s beside a move that may have 10", mbit);
	godwit_run(-1, "cancel", "vm", NULL);
	move_report(client, 1, &m, WAIT_MS);
	intact(&g);
}
END_TEST

/* What the round trip alone forbids is not tried. */
START_TEST(too_far_for_that)
{
	struct netlab l;
	struct guest g;
	struct dest d;
	struct move m;

	netlab_up(&l, "--delay", "50ms", NULL);
	begin_move(&l, &g, &d, "ws=8M rate=1M");
	move_report(move_start(&g, d.uri, "--downtime=50ms", NULL), 1, &m, WAIT_MS);
	need(strstr(m.error, "on this network (round trip 1") && strstr(m.error, "--downtime="),
	     "'%s'", m.error);
	ck_assert_uint_eq(m.sent, 0);
	intact(&g);
}
END_TEST

/* ---- the script ---- */

/* What it leaves behind ends with the test, if not before. */
static struct proc *script(const char *command, const char *name, int exit_code)
{
	bool up = strcmp(command, "up") == 0;
	struct proc *p = proc_start(command, harness_path("%s/scripts/netlab", harness_root()),
				    command, "--name", name, up ? "--owner" : NULL,
				    harness_path("%d", (int)getpid()), NULL);

	proc_close(p);
	proc_ended(p, exit_code, WAIT_MS);
	return p;
}

/* The process that `up` left behind; readable once it has ended. */
static int watch(const struct proc *up)
{
	int fd = pidfd_open((pid_t)kv(up->out.buf, "pid"), 0);

	need(fd >= 0, "no process after '%s': %s", up->out.buf, strerror(errno));
	return fd;
}

START_TEST(up_and_down)
{
	const char *name = harness_path("test-%d", (int)getpid());
	const char *socket = harness_path("/run/netlab/%s", name);
	struct proc *p;
	int lab;

	p = script("up", name, 0);
	lab = watch(p);
	need(access(socket, F_OK) == 0, "no %s", socket);
	p = script("up", name, 1);
	need(strstr(p->err.buf, "is up already"), "'%s'", p->err.buf);
	p = proc_start("exec", harness_path("%s/scripts/netlab", harness_root()), "exec", "--name",
		       name, "b", "--", "cat", "/proc/net/fib_trie", NULL);
	proc_expect(p, " " NETLAB_B "$", WAIT_MS);
	proc_ended(p, 0, WAIT_MS);
	script("down", name, 0);
	need(access(socket, F_OK), "%s is left", socket);
	need(ready(lab, POLLIN, harness_slow(WAIT_MS)), "its process goes on");
	p = script("down", name, 1);
	need(strstr(p->err.buf, "is not up"), "'%s'", p->err.buf);
}
END_TEST

START_TEST(ends_with_its_owner)
{
	struct proc *owner = proc_start("owner", "sleep", "1000", NULL), *p;
	const char *name = harness_path("%s/lab", harness_tmp());
	int lab;

	p = proc_start("up", harness_path("%s/scripts/netlab", harness_root()), "up", "--name",
		       name, "--owner", harness_path("%d", (int)owner->pid), NULL);
	proc_ended(p, 0, WAIT_MS);
	lab = watch(p);
	need(!ready(lab, POLLIN, 0), "it has ended already");
	proc_kill(owner, SIGTERM);
	need(ready(lab, POLLIN, harness_slow(WAIT_MS)), "it goes on without its owner");
	need(access(name, F_OK), "%s is left", name);
}
END_TEST

/* A laboratory that was killed is in nobody's way. */
START_TEST(up_after_a_kill)
{
	const char *name = harness_path("%s/lab", harness_tmp());
	int lab = watch(script("up", name, 0));

	need(pidfd_send_signal(lab, SIGKILL, NULL, 0) == 0, "kill: %s", strerror(errno));
	need(ready(lab, POLLIN, harness_slow(WAIT_MS)), "it does not end");
	script("up", name, 0);
	script("down", name, 0);
}
END_TEST

START_TEST(bad_words)
{
	static const struct {
		const char *option, *value, *says;
	} bad[] = {
		{"--rate", "fast", "is not rate's value"},
		{"--loss", "200%", "is not loss's value"},
		{"--delay", "soon", "is not delay's value"},
		{"--mtu", "10", "no MTU of"},
		{"--tcp", "nonsense", "congestion control"},
	};
	const char *name = harness_path("%s/lab", harness_tmp());
	struct proc *p;

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		p = proc_start("up", harness_path("%s/scripts/netlab", harness_root()), "up",
			       "--name", name, bad[i].option, bad[i].value, NULL);
		need(proc_wait(p, WAIT_MS) > 0, "%s %s was taken", bad[i].option, bad[i].value);
		need(strstr(p->err.buf, bad[i].says), "%s %s: '%s'", bad[i].option, bad[i].value,
		     p->err.buf);
		need(access(name, F_OK), "%s is left", name);
	}
}
END_TEST

int main(void)
{
	Suite *s = suite_create("netlab");
	char why[256];
	TCase *tc;

	if (!netlab_possible(why))
		return harness_skip_all("%s", why);
	tc = harness_case(s, "link", 90);
	tcase_add_test(tc, round_trip);
	tcase_add_test(tc, rate);
	tcase_add_test(tc, losses);
	tcase_add_test(tc, cut_and_join);
	tcase_add_test(tc, damage);
	tc = harness_case(s, "script", 60);
	tcase_add_test(tc, up_and_down);
	tcase_add_test(tc, ends_with_its_owner);
	tcase_add_test(tc, up_after_a_kill);
	tcase_add_test(tc, bad_words);
	if (harness_kvm_works()) {
		tc = harness_case(s, "godwit", 180);
		tcase_add_test(tc, forged_bits);
		tcase_add_test(tc, bits_and_patience);
		tcase_add_test(tc, too_far_for_that);
		tcase_add_test(tc, others_keep_their_share);
	}
	return harness_main(s);
}
