/* SPDX-License-Identifier: MIT */
/*
 * The grid: a guest moved over networks of many rates, round trips and losses, idle and while it
 * writes, each with --verify=full. Source and destination are two hosts of the network laboratory
 * (tools/netrelay). What is asked of every cell:
 *
 *	it ends		long before the cell's limit, whatever the network does
 *	the guest is	at the destination; or, with the reason said, still at the source
 *	it is intact	it checks all its pages itself after the move
 *
 * And what is measured: how long it took, and how far the downtime that the engine expected when it
 * paused was from that which came of it.
 *
 * Guests are larger on faster networks, so that a cell takes seconds to a minute on each.
 */
#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../bare/contract.h"
#include "../tests/harness.h"
#include "../tests/netlab.h"
#include "grid.h"

#define CELLS_MAX 256
#define WORDS_MAX 8
#define READY_MS 300000 /* to fill its memory, or to check it, on a machine that is busy */
#define ANSWER_MS 30000
/* From godwit's own --timeout, which is of everything before the pause, to the cell's: a pause on
 * the slowest network, and what a connection may be silent for. */
#define GRACE_MS 120000
#define JSON_PATH "build/bench/grid.json"

struct grid {
	struct grid_cell cell[CELLS_MAX];
	struct grid_result *result; /* shared with the cells' processes */
	unsigned n;
	const char *words[WORDS_MAX + 1]; /* more for `godwit migrate` */
	unsigned n_words;
	char all_words[512];
	const char *tcp;
};

static const struct rate {
	const char *name;
	unsigned ram_mib, timeout_s;
	const char *idle, *hot; /* options of `dirty` */
} rates[] = {
	{"10mbit", 64, 90, "ws=12M kind=idle", "ws=12M hot=4M kind=new rate=200K"},
	{"100mbit", 256, 60, "ws=64M kind=idle", "ws=64M hot=16M kind=new rate=2M"},
	{"1gbit", 512, 60, "ws=256M kind=idle", "ws=256M hot=64M kind=few rate=20M"},
	{"10gbit", 1024, 60, "ws=768M kind=idle", "ws=768M hot=256M kind=new rate=50M"},
};
static const unsigned rtts[] = {0, 20, 200};
static const char *const losses[] = {"0", "0.5%", "2%"};

/* A few of all kinds, small enough for a test. */
static const struct grid_cell quick[] = {
	{"10mbit", 20, "0", "idle", 32, "ws=2M kind=idle", 30, true},
	{"100mbit", 20, "2%", "hot", 64, "ws=16M hot=4M kind=new rate=1M", 30, false},
	{"100mbit", 200, "0.5%", "idle", 64, "ws=8M kind=idle", 40, true},
	{"1gbit", 20, "0.5%", "hot", 64, "ws=32M hot=8M kind=few rate=5M", 30, false},
	{"10gbit", 0, "0", "hot", 128, "ws=96M hot=32M kind=new rate=20M", 30, true},
	/* Writes faster than any network of its kind: must stay, and say why. */
	{"10mbit", 0, "0", "flood", 32, "ws=8M kind=new", 6, false},
};

/* ---- a cell ---- */

struct job {
	const struct grid *grid;
	unsigned i;
};

static bool client_ended(void *arg)
{
	return !proc_running(arg);
}

static const char *ask(struct proc *p, const char *command, const char *answer)
{
	proc_send(p, command);
	return proc_expect(p, answer, ANSWER_MS);
}

/* It checks every page, and ends. */
static void end_guest(struct guest *g)
{
	guest_send(g, "q");
	guest_expect(g, "^dirty verify .* errors=0$", READY_MS);
	guest_expect(g, "^dirty done .* errors=0$", ANSWER_MS);
}

static void note_network(const struct netlab *l, struct grid_result *r, double seconds)
{
	const char *counts = netlab_counts(l, 'a');

	r->lost = (double)kv(counts, "lost");
	r->dropped = (double)kv(counts, "dropped");
	r->late_us = (double)kv(counts, "late_us");
	if (seconds > 0)
		r->mbit = (double)kv(counts, "bytes") * 8 / 1e6 / seconds;
}

static void note_move(const struct move *m, struct grid_result *r)
{
	r->total_ms = m->total_ms;
	r->wire_mib = (double)m->wire_bytes / (1 << 20);
	r->rounds = (double)m->rounds;
	if (m->error[0] || strcmp(m->status, "completed") != 0)
		snprintf(r->why, sizeof(r->why), "%s", m->error);
	if (strcmp(m->status, "completed") != 0)
		return;
	r->downtime_ms = m->downtime_ms;
	r->target_ms = json_num(m->json, "downtime_target_ms");
	r->estimate_ms = json_num(m->json, "estimate_downtime_ms");
	r->connections = json_num(m->json, "connections");
}

/* Nothing but an answer with a reason counts, and the guest has to be where it was. */
static void stayed(struct guest *g, struct grid_result *r)
{
	need(r->why[0], "it gives no reason");
	need(proc_running(g->proc), "the source's process has ended");
	ask(g->proc, "r", "^dirty t_ms=");
	r->outcome = GRID_KEPT;
}

static void run_cell(void *arg)
{
	const struct job *job = arg;
	const struct grid *grid = job->grid;
	const struct grid_cell *c = &grid->cell[job->i];
	struct grid_result *r = &grid->result[job->i];
	const char *const *w = grid->words;
	int timeout_ms = harness_slow((int)c->timeout_s * 1000);
	struct proc *client;
	struct netlab lab;
	struct guest g;
	struct move m;
	struct dest d;

	/* One way is half a round trip. */
	netlab_up(&lab, "--rate", c->rate, "--delay", harness_path("%uus", c->rtt_ms * 500),
		  "--loss", c->loss, "--seed", harness_path("%u", job->i + 1),
		  grid->tcp ? "--tcp" : NULL, grid->tcp, NULL);
	netlab_enter(&lab, 'b');
	dest_start(&d, "vm-1", "tcp:" NETLAB_B ":0", "--json", NULL);
	netlab_enter(&lab, 'a');
	guest_start(&g, "vm", "-q", "-m", harness_path("%uM", c->ram_mib), "-k", bare_elf("dirty"),
		    "-p", harness_path("report=0 %s", c->payload), NULL);
	proc_fatal(g.proc, BARE_DIRTY_ERROR "| panic ");
	proc_fatal(d.proc, BARE_DIRTY_ERROR "| panic ");
	guest_expect(&g, "^dirty ready ", READY_MS);
	ask(g.proc, "zr", "^dirty t_ms=");

	/* Room for the round trips of the handover, and as many for the last pages. */
	client = move_start(&g, d.uri, "--verify=full", harness_path("--timeout=%dms", timeout_ms),
			    harness_path("--downtime=%dms", harness_slow(50 + 6 * (int)c->rtt_ms)),
			    w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], NULL);
	need(harness_until(client_ended, client, (int)c->timeout_s * 1000 + GRACE_MS),
	     "the move hangs");
	need(client->status == 0 || client->status == 1, "exit code %d: %s", client->status,
	     client->err.buf);
	move_report(client, client->status, &m, ANSWER_MS);
	note_network(&lab, r, m.total_ms / 1e3);
	note_move(&m, r);
	if (client->status == 0) {
		guest_moved(&g, &d);
		r->gap_ms = (double)kv(ask(g.proc, "r", "^dirty t_ms="), "gap_us") / 1e3;
		end_guest(&g);
		r->outcome = GRID_MOVED;
	} else {
		need(!c->moves, "it does not move: %s", r->why);
		stayed(&g, r);
		end_guest(&g);
	}
}

/* ---- the grid ---- */

static bool any_of(const char *list, const char *word)
{
	size_t len = strlen(word);

	for (const char *p = list; p; p = strchr(p, ',') ? strchr(p, ',') + 1 : NULL) {
		if (strncmp(p, word, len) == 0 && (p[len] == ',' || !p[len]))
			return true;
	}
	return !list;
}

static void fill(struct grid *g, const char *rate, const char *rtt, const char *loss,
		 const char *guest)
{
	char number[16];

	for (size_t i = 0; i < sizeof(rates) / sizeof(rates[0]); i++) {
		for (size_t k = 0; k < sizeof(rtts) / sizeof(rtts[0]); k++) {
			snprintf(number, sizeof(number), "%u", rtts[k]);
			for (size_t l = 0; l < 2 * sizeof(losses) / sizeof(losses[0]); l++) {
				struct grid_cell c = {
					.rate = rates[i].name,
					.rtt_ms = rtts[k],
					.loss = losses[l / 2],
					.guest = l % 2 ? "hot" : "idle",
					.ram_mib = rates[i].ram_mib,
					.payload = l % 2 ? rates[i].hot : rates[i].idle,
					.timeout_s = rates[i].timeout_s,
				};

				if (any_of(rate, c.rate) && any_of(rtt, number) &&
				    any_of(loss, c.loss) && any_of(guest, c.guest))
					g->cell[g->n++] = c;
			}
		}
	}
}

/* False when a cell is broken, or json cannot be written. */
static bool run(struct grid *g, const char *json)
{
	bool good = true;

	grid_print_head(stdout);
	for (unsigned i = 0; i < g->n; i++) {
		struct job job = {.grid = g, .i = i};
		struct grid_result *r = &g->result[i];
		unsigned limit_s =
			g->cell[i].timeout_s + (GRACE_MS + 2 * READY_MS + 3 * ANSWER_MS) / 1000;
		char why[256] = "";

		if (!harness_run(harness_path("cell %u", i + 1), limit_s, run_cell, &job, why)) {
			r->outcome = GRID_BROKEN;
			snprintf(r->why, sizeof(r->why), "%s", why);
			good = false;
		}
		grid_print_row(stdout, &g->cell[i], r);
		fflush(stdout);
		/* Each time: a grid takes long, and may be interrupted. */
		good = (!json || grid_write_json(json, g->cell, g->result, i + 1, g->all_words)) &&
		       good;
	}
	grid_print_sum(stdout, g->result, g->n);
	return good;
}

static const char usage[] =
	"usage: grid [OPTION]... [-- WORD...]\n"
	"\n"
	"Moves a guest over networks of many rates, round trips and losses, and checks that each "
	"move\n"
	"completes, or says why not, and that the guest stays intact. WORDs are for `godwit "
	"migrate`.\n"
	"\n"
	"  --quick         a few small cells (also with GODWIT_GRID_QUICK=1)\n"
	"  --rate LIST     only these, with commas between them: 10mbit,100mbit,1gbit,10gbit\n"
	"  --rtt LIST      0,20,200 (ms)\n"
	"  --loss LIST     0,0.5%,2%\n"
	"  --guest LIST    idle,hot\n"
	"  --tcp NAME      congestion control of both hosts (the kernel's default)\n"
	"  --list          only print the cells\n"
	"  --json PATH     where the results go, too (" JSON_PATH "; with --quick: nowhere)\n"
	"\n"
	"The exit status is 1 when a cell is broken, 77 when networks cannot be made here.\n";

static int take_words(struct grid *g, int n, char **words)
{
	if (n > WORDS_MAX) {
		fprintf(stderr, "grid: more than %d words for migrate\n", WORDS_MAX);
		return 2;
	}
	for (int i = 0; i < n; i++) {
		size_t at = strlen(g->all_words);

		g->words[g->n_words++] = words[i];
		snprintf(g->all_words + at, sizeof(g->all_words) - at, "%s%s", at ? " " : "",
			 words[i]);
	}
	return 0;
}

static int run_all(struct grid *g, const char *json)
{
	size_t size = sizeof(*g->result) * CELLS_MAX;
	bool good;

	g->result = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (g->result == MAP_FAILED) {
		fprintf(stderr, "grid: no memory\n");
		return 1;
	}
	if (json && strcmp(json, JSON_PATH) == 0) {
		(void)mkdir("build", 0777);
		(void)mkdir("build/bench", 0777);
	}
	good = run(g, json);
	harness_end();
	return good ? 0 : 1;
}

int main(int argc, char **argv)
{
	static const struct option longs[] = {
		{"quick", no_argument, NULL, 'q'},	 {"rate", required_argument, NULL, 'r'},
		{"rtt", required_argument, NULL, 't'},	 {"loss", required_argument, NULL, 'l'},
		{"guest", required_argument, NULL, 'g'}, {"tcp", required_argument, NULL, 'c'},
		{"list", no_argument, NULL, 'L'},	 {"json", required_argument, NULL, 'j'},
		{"help", no_argument, NULL, 'h'},	 {NULL, 0, NULL, 0},
	};
	const char *rate = NULL, *rtt = NULL, *loss = NULL, *guest = NULL, *json = NULL;
	bool small = harness_env("GODWIT_GRID_QUICK", 0) == 1, list = false;
	static struct grid g;
	char why[256];
	int c, ret;

	while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		switch (c) {
		case 'q':
			small = true;
			break;
		case 'r':
			rate = optarg;
			break;
		case 't':
			rtt = optarg;
			break;
		case 'l':
			loss = optarg;
			break;
		case 'g':
			guest = optarg;
			break;
		case 'c':
			g.tcp = optarg;
			break;
		case 'L':
			list = true;
			break;
		case 'j':
			json = optarg;
			break;
		case 'h':
			fputs(usage, stdout);
			return 0;
		default:
			fputs(usage, stderr);
			return 2;
		}
	}
	ret = take_words(&g, argc - optind, argv + optind);
	if (ret)
		return ret;
	if (small) {
		memcpy(g.cell, quick, sizeof(quick));
		g.n = sizeof(quick) / sizeof(quick[0]);
	} else {
		fill(&g, rate, rtt, loss, guest);
		json = json ? json : JSON_PATH;
	}
	if (!g.n) {
		fprintf(stderr, "grid: there is no such cell (--list)\n");
		return 2;
	}
	for (unsigned i = 0; list && i < g.n; i++)
		printf("%s %u ms %s %s: %u MiB, %s\n", g.cell[i].rate, g.cell[i].rtt_ms,
		       g.cell[i].loss, g.cell[i].guest, g.cell[i].ram_mib, g.cell[i].payload);
	if (list)
		return 0;
	if (!harness_kvm_works())
		return harness_skip_all("no KVM guest runs on this host (godwit doctor says why)");
	if (!netlab_possible(why))
		return harness_skip_all("%s", why);
	return run_all(&g, json);
}
