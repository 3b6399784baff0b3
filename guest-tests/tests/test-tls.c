/* SPDX-License-Identifier: MIT */
/*
 * Guests that move over protected connections: to those who may have them, and to nobody else;
 * also when connections break.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "../../migrate/tests/tls-certs.h"
#include "../bare/contract.h"
#include "harness.h"

#define COUNT(a) ((int)(sizeof(a) / sizeof((a)[0])))
#define LINE_MS 15000
#define MOVE_MS 90000
#define URI "tls:127.0.0.1:0"

static void make_files(void)
{
	const char *dir = harness_tmp();
	struct certs_ca ca, other;

	certs_ca(&ca, dir, "ca");
	certs_ca(&other, dir, "other-ca");
	certs_host(&ca, dir, "a", &(struct certs_spec){.names = "DNS:a.test"});
	certs_host(&ca, dir, "b", &(struct certs_spec){.names = "DNS:b.test,IP:127.0.0.1"});
	certs_host(&ca, dir, "elsewhere", &(struct certs_spec){.names = "DNS:elsewhere.test"});
	certs_host(&ca, dir, "expired",
		   &(struct certs_spec){.names = "IP:127.0.0.1", .from_s = -7200, .to_s = -3600});
	certs_host(&other, dir, "stranger", &(struct certs_spec){.names = "IP:127.0.0.1"});
	certs_write(dir, "psk-a", "00112233445566778899aabbccddeeff\n", 0600);
	certs_write(dir, "psk-b", "ff112233445566778899aabbccddeeff\n", 0600);
	certs_write(dir, "open.key", "anything\n", 0644);
	certs_ca_free(&ca);
	certs_ca_free(&other);
}

/* The words of one side: of a certificate's name, or of a key's, said more than once. */
struct words {
	const char *w[3];
};

static struct words words_of(const char *who)
{
	const char *dir = harness_tmp(), *psk = harness_path("--tls-psk=%s/%s", dir, who);

	if (strncmp(who, "psk", 3) == 0)
		return (struct words){{psk, psk, psk}};
	return (struct words){{harness_path("--tls-cert=%s/%s.pem", dir, who),
			       harness_path("--tls-key=%s/%s.key", dir, who),
			       harness_path("--tls-ca=%s/ca.pem", dir)}};
}

static void receive_at(struct dest *d, const char *name, const char *uri, const char *who)
{
	struct words w = words_of(who);

	dest_start(d, name, uri, w.w[0], w.w[1], w.w[2], "--keep=60s", "--json", NULL);
}

/* How long a slow host hashes at the pause is no matter here. */
#define DOWNTIME "--downtime=20s"

static struct proc *move_as(struct guest *g, const char *uri, const char *who, const char *more)
{
	struct words w = words_of(who);

	return move_start(g, uri, w.w[0], w.w[1], w.w[2], "--verify=full", DOWNTIME, more, NULL);
}

/* ---- moves ---- */

static const struct {
	const char *source, *dest, *more;
	unsigned connections;
} moves_by[] = {
	{"a", "b", "--connections=1", 1},
	{"a", "b", "--connections=3", 3},
	{"a", "elsewhere", "--tls-name=elsewhere.test", 0},
	{"psk-a", "psk-a", "--connections=3", 3},
};

START_TEST(moves)
{
	json_t *received;
	struct guest g;
	struct dest d;
	struct move m;

	make_files();
	dirty_start(&g, "t", "64M", "ws=32M rate=20M report=0");
	receive_at(&d, "t-1", URI, moves_by[_i].dest);
	need(strncmp(d.uri, "tls:127.0.0.1:", 14) == 0, "%s", d.uri);
	move_report(move_as(&g, d.uri, moves_by[_i].source, moves_by[_i].more), 0, &m, MOVE_MS);
	received = json_of(proc_expect(d.proc, "^\\{", LINE_MS));
	guest_moved(&g, &d);
	proc_fatal(g.proc, BARE_DIRTY_ERROR "| panic ");
	need(m.verified >= (64 << 20) / 4096, "%s", json_dumps(m.json, JSON_COMPACT));
	need(!moves_by[_i].connections ||
		     json_num(m.json, "connections") == moves_by[_i].connections,
	     "%s", json_dumps(m.json, JSON_COMPACT));
	need(json_num(m.json, "cpu_ms") > 0 && json_num(received, "cpu_ms") > 0, "no CPU time");
	dirty_intact(&g);
	dirty_finish(&g);
}
END_TEST

/* Broken in the middle, in each way that there is: it goes on from where it was. */
START_TEST(goes_on)
{
	const struct link_plan plan = {
		.n_cuts = 2, .at = {10 << 20, 25 << 20}, .how = _i ? LINK_RESET : LINK_CLOSE};
	struct guest g;
	struct dest d;
	struct move m;

	make_files();
	dirty_start(&g, "t", "64M", "ws=40M rate=5M report=0");
	receive_at(&d, "t-1", URI, "b");
	move_report(move_as(&g, planned_link(&d, &plan), "a", "--reconnect=60s"), 0, &m, MOVE_MS);
	guest_moved(&g, &d);
	proc_fatal(g.proc, BARE_DIRTY_ERROR "| panic ");
	ck_assert_uint_eq((unsigned)json_num(m.json, "reconnects"), 2);
	need(json_num(m.json, "held_pages") > 1000, "%s", json_dumps(m.json, JSON_COMPACT));
	dirty_intact(&g);
	dirty_finish(&g);
}
END_TEST

/* A network that goes silent: both sides notice, by what TCP and the other side do not say. */
START_TEST(goes_silent)
{
	const struct link_plan plan = {.n_cuts = 1, .at = {15 << 20}, .how = LINK_SILENCE};
	struct words a, b;
	struct guest g;
	struct dest d;
	struct move m;

	make_files();
	dirty_start(&g, "t", "64M", "ws=40M kind=idle report=0");
	a = words_of("a");
	b = words_of("b");
	dest_start(&d, "t-1", URI, b.w[0], b.w[1], b.w[2], "--keep=60s", "--peer-timeout=10m",
		   NULL);
	move_report(move_start(&g, planned_link(&d, &plan), a.w[0], a.w[1], a.w[2],
			       "--reconnect=60s", "--peer-timeout=2s", "--verify=full", DOWNTIME,
			       NULL),
		    0, &m, MOVE_MS);
	guest_moved(&g, &d);
	need(json_num(m.json, "reconnects") >= 1, "%s", json_dumps(m.json, JSON_COMPACT));
	dirty_intact(&g);
	dirty_finish(&g);
}
END_TEST

/* Where somebody else listens when it comes back, who is not the one: that is the end of it. */
START_TEST(another_answers)
{
	const struct link_plan plan = {.n_cuts = 1, .at = {10 << 20}};
	struct dest d, other;
	struct proc *p;
	struct guest g;
	struct move m;

	make_files();
	dirty_start(&g, "t", "64M", "ws=40M kind=idle report=0");
	receive_at(&d, "first", URI, "b");
	p = move_as(&g, planned_link(&d, &plan), "a", "--reconnect=10m");
	proc_expect_err(d.proc, "are kept for", 30000);
	proc_kill(d.proc, SIGKILL);
	proc_wait(d.proc, 10000);
	receive_at(&other, "second", d.uri, "stranger");
	move_report(p, 1, &m, MOVE_MS);
	need(strstr(m.error, "; and then: the destination's certificate is not of the CA"), "%s",
	     m.error);
	dirty_intact(&g);
	dirty_finish(&g);
}
END_TEST

/* ---- refusals ---- */

static const struct {
	const char *source, *dest;
	const char *source_says, *dest_says;
	const char *then; /* this source is taken by the same receiver */
} refused[] = {
	{"stranger", "b", "the destination refuses our certificate: it is not of the CA",
	 "a peer was refused: the source's certificate is not of the CA", "a"},
	{"expired", "b", "the destination refuses our certificate: it has expired",
	 "a peer was refused: the source's certificate has expired", "a"},
	{"a", "elsewhere", "the destination's certificate is not for '127.0.0.1'",
	 "a peer was refused: the source refuses our certificate", NULL},
	{"a", "expired", "the destination's certificate has expired",
	 "a peer was refused: the source refuses our certificate: it has expired", NULL},
	{"psk-b", "psk-a", "the destination holds another pre-shared key",
	 "a peer was refused: the source holds another pre-shared key", "psk-a"},
	{"a", "psk-a", "the destination uses no certificates",
	 "a peer was refused: the source does not use a pre-shared key", "psk-a"},
	{NULL, "b", "this receiver takes sources by tls: only",
	 "a peer was refused: it does not speak TLS", "a"},
};

START_TEST(refuses)
{
	const char *who = refused[_i].source;
	struct proc *p;
	struct guest g;
	struct dest d;
	struct move m;

	make_files();
	dirty_start(&g, "t", "32M", "ws=4M report=0");
	receive_at(&d, "t-1", URI, refused[_i].dest);
	if (who)
		p = move_as(&g, d.uri, who, "--reconnect=60s");
	else
		p = move_start(&g, harness_path("tcp:%s", d.uri + 4), NULL);
	move_report(p, 1, &m, MOVE_MS);
	need(strstr(m.error, refused[_i].source_says), "%s", m.error);
	proc_expect_err(d.proc, refused[_i].dest_says, 10000);
	ck_assert(proc_running(d.proc));
	dirty_intact(&g);
	if (refused[_i].then) {
		move_report(move_as(&g, d.uri, refused[_i].then, "--connections=2"), 0, &m,
			    MOVE_MS);
		guest_moved(&g, &d);
		dirty_intact(&g);
	}
	dirty_finish(&g);
}
END_TEST

/* ---- words ---- */

static void need_err(struct proc *p, const char *text)
{
	need(strstr(p->err.buf, text), "'%s' instead of '%s'", p->err.buf, text);
}

START_TEST(wrong_words)
{
	struct words b;
	const char *open_key, *none, *out_of_place;
	struct guest g;
	struct move m;

	make_files();
	b = words_of("b");
	open_key = harness_path("--tls-key=%s/open.key", harness_tmp());
	none = harness_path("--tls-ca=%s/none.pem", harness_tmp());
	out_of_place = b.w[0];
	need_err(godwit_run(2, "receive", URI, NULL), "a tls: URI needs --tls-cert");
	need_err(godwit_run(2, "migrate", "x", "tls:127.0.0.1:1", NULL), "needs --tls-cert");
	need_err(godwit_run(2, "receive", out_of_place, "tcp:127.0.0.1:0", NULL),
		 "are for a tls: URI");
	need_err(godwit_run(1, "receive", b.w[0], open_key, b.w[2], URI, NULL),
		 "others than its owner may use it (mode 0644)");
	need_err(godwit_run(1, "receive", b.w[0], b.w[1], none, URI, NULL), "none.pem: No such");
	/* Read by the guest's process, before it does anything. */
	dirty_start(&g, "t", "32M", "ws=4M report=0");
	move_report(move_start(&g, "tls:127.0.0.1:1", b.w[0], b.w[1], none, NULL), 1, &m, LINE_MS);
	need(strstr(m.error, "none.pem: No such file"), "%s", m.error);
	dirty_intact(&g);
	dirty_finish(&g);
}
END_TEST

/* The same of the control socket, for programs. */
START_TEST(asked_by_programs)
{
	static const struct {
		const char *request, *answer;
	} asked[] = {
		{"{\"cmd\":\"migrate\",\"uri\":\"tls:h:1\"}\n", "a tls: URI needs"},
		{"{\"cmd\":\"migrate\",\"uri\":\"tls:h:1\",\"tls_psk\":\"x\"}\n",
		 "tls_psk is not an absolute path"},
		{"{\"cmd\":\"migrate\",\"uri\":\"tls:h:1\",\"tls_psk\":\"/none\"}\n",
		 "--tls-psk /none: No such file"},
		{"{\"cmd\":\"migrate\",\"uri\":\"tcp:h:1\",\"tls_psk\":\"/none\"}\n",
		 "are for a tls: URI"},
	};
	struct sockaddr_un un = {.sun_family = AF_UNIX};
	struct timeval tv = {.tv_sec = harness_slow(20000) / 1000};
	struct guest g;
	FILE *f;
	int fd;

	dirty_start(&g, "t", "32M", "ws=4M report=0");
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
	snprintf(un.sun_path, sizeof(un.sun_path), "%s/%s.sock", getenv("GODWIT_RUNDIR"), g.name);
	need(connect(fd, (struct sockaddr *)&un, sizeof(un)) == 0, "%s", strerror(errno));
	f = fdopen(fd, "r+");
	ck_assert_ptr_nonnull(f);
	for (int i = 0; i < COUNT(asked); i++) {
		char line[4096] = "";

		need(write(fd, asked[i].request, strlen(asked[i].request)) > 0, "%s",
		     strerror(errno));
		need(fgets(line, sizeof(line), f), "no answer to %s", asked[i].request);
		need(strstr(line, "\"ok\":false") && strstr(line, asked[i].answer),
		     "'%s' does not say '%s'", line, asked[i].answer);
	}
	fclose(f);
	dirty_intact(&g);
	dirty_finish(&g);
}
END_TEST

/* Files are where the user stands who says `migrate`, not where the guest was started. */
START_TEST(relative_paths)
{
	struct guest g;
	struct dest d;
	struct move m;

	make_files();
	dirty_start(&g, "t", "32M", "ws=4M report=0");
	receive_at(&d, "t-1", URI, "b");
	ck_assert_int_eq(chdir(harness_tmp()), 0);
	move_report(move_start(&g, d.uri, "--tls-cert=a.pem", "--tls-key", "a.key", "--tls-ca",
			       "./ca.pem", NULL),
		    0, &m, MOVE_MS);
	guest_moved(&g, &d);
	dirty_finish(&g);
}
END_TEST

/* What goes over a network unprotected is said once, unless that is known. */
START_TEST(warns)
{
	static const char warning[] = "nothing protects the guest's memory";
	struct dest d;

	dest_start(&d, "all", "tcp:0.0.0.0:0", NULL);
	proc_expect_err(d.proc, warning, LINE_MS);
	proc_kill(d.proc, SIGTERM);
	proc_wait(d.proc, LINE_MS);
	dest_start(&d, "known", "tcp:0.0.0.0:0", "--insecure", NULL);
	proc_kill(d.proc, SIGTERM);
	proc_wait(d.proc, LINE_MS);
	need(!strstr(d.proc->err.buf, warning), "%s", d.proc->err.buf);
	dest_start(&d, "own", "tcp:127.0.0.1:0", NULL);
	proc_kill(d.proc, SIGTERM);
	proc_wait(d.proc, LINE_MS);
	need(!strstr(d.proc->err.buf, warning), "%s", d.proc->err.buf);
	need_err(godwit_run(1, "migrate", "nobody", "tcp:192.0.2.1:1", NULL), warning);
	need(!strstr(godwit_run(1, "migrate", "--insecure", "nobody", "tcp:192.0.2.1:1", NULL)
			     ->err.buf,
		     warning),
	     "it warns");
}
END_TEST

int main(void)
{
	Suite *s = suite_create("tls");
	TCase *tc;

	if (!harness_kvm_works())
		return harness_skip_all("no KVM guest runs here: see godwit doctor");
	tcase_add_loop_test(harness_case(s, "moves", 120), moves, 0, COUNT(moves_by));
	tc = harness_case(s, "breaks", 180);
	tcase_add_loop_test(tc, goes_on, 0, 2);
	tcase_add_test(tc, goes_silent);
	tcase_add_test(tc, another_answers);
	tcase_add_loop_test(harness_case(s, "refuses", 120), refuses, 0, COUNT(refused));
	tc = harness_case(s, "words", 120);
	tcase_add_test(tc, wrong_words);
	tcase_add_test(tc, asked_by_programs);
	tcase_add_test(tc, relative_paths);
	tcase_add_test(tc, warns);
	return harness_main(s);
}
