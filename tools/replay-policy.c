/* SPDX-License-Identifier: MIT */
/*
 * replay-policy: what would have been decided in a move that was recorded, had it been given
 * another downtime, timeout or --on-timeout. A recording is what `godwit migrate --json` prints.
 *
 * The guest's part cannot change any more: where the replay decides otherwise than it was, by
 * slowing the guest, say, what follows is as recorded, and is marked.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../vmm/report_trace.h"
#include "../vmm/util.h"

static const char usage[] =
	"usage: replay-policy [--downtime TIME] [--timeout TIME] [--on-timeout WHAT] [REPORT]\n"
	"\n"
	"Replay the rounds of a move, as `godwit migrate --json` has reported it (a file; "
	"standard\n"
	"input without one), and show what is decided after each. The options are those of\n"
	"godwit migrate; without them it is as it was.\n"
	"\n"
	"  left     pages that are dirty when the round is over, and what they would take at a "
	"pause\n"
	"  !        decided otherwise than in the move; the rounds from there on are as recorded\n"
	"\n"
	"The exit status is 0 if it pauses, 1 if it does not, 2 for a wrong command line or "
	"report.\n";

static int bad(const char *what, const char *value)
{
	fprintf(stderr, "replay-policy: %s '%s' (see --help)\n", what, value);
	return 2;
}

static int parse(int argc, char **argv, struct policy_choice *c, bool given[3])
{
	static const struct option options[] = {
		{"downtime", required_argument, NULL, 'd'},
		{"timeout", required_argument, NULL, 't'},
		{"on-timeout", required_argument, NULL, 'o'},
		{"help", no_argument, NULL, 'h'},
		{NULL, 0, NULL, 0},
	};
	int o;

	while ((o = getopt_long(argc, argv, "h", options, NULL)) != -1) {
		switch (o) {
		case 'd':
			given[0] = true;
			if (parse_duration(optarg, &c->downtime_ns) || !c->downtime_ns)
				return bad("not a time such as 50ms:", optarg);
			break;
		case 't':
			given[1] = true;
			if (parse_duration(optarg, &c->timeout_ns) || !c->timeout_ns)
				return bad("not a time such as 30s:", optarg);
			break;
		case 'o':
			given[2] = true;
			if (policy_parse_on_timeout(optarg, &c->on_timeout))
				return bad("none of cancel, throttle and continue:", optarg);
			break;
		case 'h':
			fputs(usage, stdout);
			exit(0);
		default:
			return 2;
		}
	}
	return argc - optind > 1 ? bad("one report at a time, not", argv[optind + 1]) : 0;
}

static double ms(uint64_t ns)
{
	return (double)ns / (double)NS_PER_MS;
}

static void show(const struct policy_facts *f, const struct policy_decision *d, bool other)
{
	printf("%5" PRIu32 " %10.1f %10.1f %9" PRIu64 " %10.1f %8.1f %8.1f %6u%%  %s%s", f->round,
	       ms(f->elapsed_ns), ms(f->round_ns), f->pages, ms(f->pages_ns + f->fixed_ns),
	       (double)f->sent_per_s / (double)MIB,
	       (double)f->dirty_pages_per_s * (double)PAGE_SIZE / (double)MIB, d->throttle,
	       other ? "! " : "", policy_action_name(d->action));
	if (!d->converging)
		printf(", does not converge");
	printf("\n");
}

static int replay(const json_t *report, const struct policy_choice *c)
{
	struct policy_decision d = {.action = POLICY_ROUND}, then;
	struct policy_facts f;
	struct policy p = {0};
	size_t n = 0;

	while (d.action == POLICY_ROUND && report_trace_facts(report, n, &f, &then)) {
		if (n++ == 0 && f.round > 1)
			fprintf(stderr, "replay-policy: rounds 1 to %" PRIu32 " are not in it\n",
				f.round - 1);
		if (n == 1)
			printf("round elapsed_ms   round_ms      left   pause_ms  sent_M/s "
			       "dirty_M/s slowed  then\n");
		policy_decide(&p, c, &f, &d);
		show(&f, &d, d.action != then.action || d.throttle != then.throttle);
		if (d.tell || d.action == POLICY_GIVE_UP)
			printf("      it %s\n", d.why.text);
	}
	if (n == 0) {
		fprintf(stderr, "replay-policy: no rounds with figures in it: a report of the "
				"source's, by `godwit migrate --json`?\n");
		return 2;
	}
	switch (d.action) {
	case POLICY_PAUSE:
		printf("pauses after %.1f s, for %.1f ms\n", ms(f.elapsed_ns) / 1000,
		       ms(f.pages_ns + f.fixed_ns));
		return 0;
	case POLICY_GIVE_UP:
		printf("is given up after %.1f s\n", ms(f.elapsed_ns) / 1000);
		return 1;
	case POLICY_ROUND:
		break;
	}
	printf("would have gone on after %.1f s, where the recording ends\n",
	       ms(f.elapsed_ns) / 1000);
	return 1;
}

int main(int argc, char **argv)
{
	struct policy_choice asked = {0}, c;
	bool given[3] = {false};
	json_error_t err;
	json_t *report;
	int ret = parse(argc, argv, &asked, given);

	if (ret)
		return ret;
	report = optind < argc ? json_load_file(argv[optind], JSON_DISABLE_EOF_CHECK, &err)
			       : json_loadf(stdin, JSON_DISABLE_EOF_CHECK, &err);
	if (!report) {
		fprintf(stderr, "replay-policy: %s:%d: %s\n",
			optind < argc ? argv[optind] : "standard input", err.line, err.text);
		return 2;
	}
	report_trace_choice(report, &c);
	if (given[0])
		c.downtime_ns = asked.downtime_ns;
	if (given[1])
		c.timeout_ns = asked.timeout_ns;
	if (given[2])
		c.on_timeout = asked.on_timeout;
	ret = replay(report, &c);
	json_decref(report);
	return ret;
}
