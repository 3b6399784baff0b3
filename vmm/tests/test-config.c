/* SPDX-License-Identifier: MIT */
#include <check.h>
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../config.h"
#include "../util.h"

static struct config cfg;
static struct errmsg err;

/* Parses the words after the command's name, which ends with NULL. */
#define PARSE(cmd, ...)                                                                            \
	parse(cmd, (char *[]){(char *)(uintptr_t)(cmd), __VA_ARGS__ __VA_OPT__(, ) NULL})

static int parse(const char *cmd, char **argv)
{
	int argc = 0;

	while (argv[argc])
		argc++;
	memset(&err, 0, sizeof(err));
	return config_parse(command_find(cmd), argc, argv, &cfg, &err);
}

#define ck_ok(expr)                                                                                \
	do {                                                                                       \
		int ret_ = (expr);                                                                 \
		ck_assert_msg(ret_ == 0, "%s: %d %s", #expr, ret_, err.text);                      \
	} while (0)

/* Wrong words must be refused, and the text must name what is wrong. */
#define ck_bad(expr, named)                                                                        \
	do {                                                                                       \
		ck_assert_int_eq(expr, -EINVAL);                                                   \
		ck_assert_msg(strstr(err.text, named), "'%s' does not name %s", err.text, named);  \
		ck_assert_ptr_null(strchr(err.text, '\n'));                                        \
	} while (0)

START_TEST(defaults)
{
	ck_ok(PARSE("run", "-k", "vmlinuz"));
	ck_assert_str_eq(cfg.kernel, "vmlinuz");
	ck_assert_str_eq(cfg.name, "");
	ck_assert_str_eq(cfg.cmdline, "");
	ck_assert_uint_eq(cfg.memory, 0);
	ck_assert_uint_eq(cfg.cpus, 0);
	ck_assert(!cfg.no_reboot && !cfg.paused && !cfg.json && !cfg.verbose && !cfg.quiet);
	ck_ok(PARSE("migrate", "vm1", "tcp:h:1"));
	ck_assert_uint_eq(cfg.downtime_ns, 50 * NS_PER_MS);
	ck_assert_uint_eq(cfg.timeout_ns, 0);
	ck_assert_int_eq(cfg.on_timeout, ON_TIMEOUT_CANCEL);
	ck_assert_int_eq(cfg.verify, MIGRATE_VERIFY_STREAM);
}
END_TEST

START_TEST(every_way_to_give_a_value)
{
	ck_ok(PARSE("run", "-kA", "-i", "B", "--name=n.1_x-y", "--memory", "1G", "-c4"));
	ck_assert_str_eq(cfg.kernel, "A");
	ck_assert_str_eq(cfg.initrd, "B");
	ck_assert_str_eq(cfg.name, "n.1_x-y");
	ck_assert_uint_eq(cfg.memory, GIB);
	ck_assert_uint_eq(cfg.cpus, 4);
	/* A value may look like an option, and contain '='. */
	ck_ok(PARSE("run", "-p", "-x", "--cmdline=root=/dev/vda", "-pquiet", "-p", "--"));
	ck_assert_str_eq(cfg.cmdline, "-x root=/dev/vda quiet --");
	/* Letters run together, the last one with its value. */
	ck_ok(PARSE("run", "-vqkK"));
	ck_assert(cfg.verbose && cfg.quiet);
	ck_assert_str_eq(cfg.kernel, "K");
	/* The last one counts. */
	ck_ok(PARSE("run", "-k", "A", "-k", "B"));
	ck_assert_str_eq(cfg.kernel, "B");
}
END_TEST

START_TEST(words_and_options_mix)
{
	ck_ok(PARSE("migrate", "a", "--json", "tcp:h:1", "--downtime=2s", "--timeout", "5m",
		    "--verify=full", "--on-timeout", "throttle"));
	ck_assert_int_eq(cfg.on_timeout, ON_TIMEOUT_THROTTLE);
	ck_assert_uint_eq(cfg.n_args, 2);
	ck_assert_str_eq(cfg.args[0], "a");
	ck_assert_str_eq(cfg.args[1], "tcp:h:1");
	ck_assert(cfg.json);
	ck_assert_uint_eq(cfg.downtime_ns, 2 * NS_PER_SEC);
	ck_assert_uint_eq(cfg.timeout_ns, 300 * NS_PER_SEC);
	ck_assert_int_eq(cfg.verify, MIGRATE_VERIFY_FULL);
	ck_ok(PARSE("status", "--", "--json"));
	ck_assert(!cfg.json);
	ck_assert_str_eq(cfg.args[0], "--json");
	ck_ok(PARSE("status", "-"));
	ck_assert_str_eq(cfg.args[0], "-");
}
END_TEST

START_TEST(wrong_words_are_named)
{
	ck_bad(PARSE("run", "--bogus"), "'--bogus'");
	ck_bad(PARSE("run", "--kern=x"), "'--kern'");
	ck_bad(PARSE("run", "--kernelx", "y"), "'--kernelx'");
	ck_bad(PARSE("run", "-z"), "'-z'");
	ck_bad(PARSE("run", "-vz"), "'-vz'");
	ck_bad(PARSE("run", "--no-reboot=1"), "'--no-reboot' takes no value");
	ck_bad(PARSE("run", "-k"), "'-k' needs PATH");
	ck_bad(PARSE("run", "--memory"), "'--memory' needs SIZE");
	ck_bad(PARSE("run", "--kernel="), "--kernel");
	ck_bad(PARSE("run", "-k", ""), "--kernel");
	ck_bad(PARSE("run", "vmlinuz"), "'vmlinuz'");
	ck_bad(PARSE("migrate"), "NAME");
	ck_bad(PARSE("migrate", "a"), "URI");
	ck_bad(PARSE("migrate", "a", "b", "surplus"), "'surplus'");
	ck_bad(PARSE("receive"), "URI");
	ck_bad(PARSE("pause"), "NAME");
	ck_bad(PARSE("list", "x"), "'x'");
	/* An option of another command is none of this one. */
	ck_bad(PARSE("list", "--json"), "'--json'");
	ck_bad(PARSE("resume", "--timeout", "1s", "a"), "'--timeout'");
}
END_TEST

START_TEST(bad_values)
{
	static const char *const sizes[] = {"0",       "1",    "15M",  "x", "512MB",
					    "-1",      "1.5G", "16M ", "",  "99999999999999P",
					    "16777217"};
	static const char *const counts[] = {"0", "-1", "", "x", "1x", "4294967296", "1.0"};
	static const char *const times[] = {"0", "0ms", "-1s", "x", "5 s", "99999999999h", ""};
	static const char *const names[] = {"", "a/b", "a b", ".", "..", ".x", "-x", "\xc3\xa4"};
	char long_name[VM_NAME_MAX + 1];

	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++)
		ck_bad(PARSE("run", "-m", (char *)(uintptr_t)sizes[i]), "--memory");
	for (size_t i = 0; i < ARRAY_SIZE(counts); i++)
		ck_bad(PARSE("run", "-c", (char *)(uintptr_t)counts[i]), "--cpus");
	for (size_t i = 0; i < ARRAY_SIZE(times); i++)
		ck_bad(PARSE("migrate", "--downtime", (char *)(uintptr_t)times[i], "a", "b"),
		       "--downtime");
	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		ck_bad(PARSE("run", "-n", (char *)(uintptr_t)names[i]), names[i]);
	ck_bad(PARSE("migrate", "--on-timeout", "maybe", "a", "b"), "'maybe'");
	ck_bad(PARSE("migrate", "--verify", "maybe", "a", "b"), "'maybe'");
	/* An error is one line, whatever it quotes. */
	ck_bad(PARSE("run", "-n", "a\nb"), "'a?b'");
	ck_bad(PARSE("run", "\033[2J"), "'?[2J'");

	memset(long_name, 'a', VM_NAME_MAX);
	long_name[VM_NAME_MAX] = '\0';
	ck_bad(PARSE("run", "-n", long_name), "63");
	long_name[VM_NAME_MAX - 1] = '\0';
	ck_ok(PARSE("run", "-n", long_name));
	ck_assert_str_eq(cfg.name, long_name);
}
END_TEST

START_TEST(long_values_are_refused)
{
	char *path = malloc(8192);

	memset(path, 'p', 8191);
	path[8191] = '\0';
	ck_bad(PARSE("run", "-k", path), "--kernel");
	ck_bad(PARSE("run", "-p", path), "--cmdline");
	ck_bad(PARSE("run", "--cpu", path), "--cpu");
	path[VM_PATH_MAX] = '\0';
	ck_bad(PARSE("run", "-k", path), "--kernel");
	path[VM_PATH_MAX - 1] = '\0';
	ck_ok(PARSE("run", "-k", path));
	/* Together too long, though neither is. */
	memset(path, 'p', VM_CMDLINE_MAX);
	path[VM_CMDLINE_MAX / 2] = '\0';
	ck_bad(PARSE("run", "-p", path, "-p", path), "--cmdline");
	free(path);
}
END_TEST

START_TEST(cpu_lists)
{
	ck_ok(PARSE("run", "--cpu", "host"));
	ck_assert_str_eq(cfg.cpu_mask, "");
	ck_ok(PARSE("run", "--cpu", "host,-avx2,-sse4.2", "--cpu=-avx"));
	ck_assert_str_eq(cfg.cpu_mask, "-avx2,-sse4.2,-avx");
	ck_bad(PARSE("run", "--cpu", "EPYC"), "'EPYC'");
	ck_bad(PARSE("run", "--cpu", "host,+avx2"), "'+avx2'");
	ck_bad(PARSE("run", "--cpu", "host,-"), "'-'");
}
END_TEST

START_TEST(ways_to_find_dirty_pages)
{
	static const char *const bad[] = {"",	      "rings",	    "ring:",   "ring:0",
					  "ring:255", "ring:300",   "ring:-1", "ring:1k",
					  "log:1",    "ring:131072"};

	ck_ok(PARSE("run", "-k", "x"));
	ck_assert_int_eq(cfg.dirty.how, DIRTY_AUTO);
	ck_ok(PARSE("receive", "--dirty", "log", "unix:/x"));
	ck_assert_int_eq(cfg.dirty.how, DIRTY_LOG);
	ck_ok(PARSE("run", "--dirty=ring:256"));
	ck_assert_int_eq(cfg.dirty.how, DIRTY_RING);
	ck_assert_uint_eq(cfg.dirty.entries, 256);
	/* The last one counts, all of it. */
	ck_ok(PARSE("run", "--dirty=ring:65536", "--dirty", "ring"));
	ck_assert_int_eq(cfg.dirty.how, DIRTY_RING);
	ck_assert_uint_eq(cfg.dirty.entries, 0);
	ck_ok(PARSE("run", "--dirty=ring:4096", "--dirty", "auto"));
	ck_assert_int_eq(cfg.dirty.how, DIRTY_AUTO);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		ck_bad(PARSE("run", "--dirty", (char *)(uintptr_t)bad[i]), "'--dirty'");
}
END_TEST

START_TEST(ways_to_confine)
{
	ck_ok(PARSE("run", "-k", "x"));
	ck_assert_int_eq(cfg.confine, CONFINE_DEFAULT);
	ck_assert_str_eq(cfg.user, "");
	ck_ok(PARSE("receive", "--confine", "log", "--user=me:us", "unix:/x"));
	ck_assert_int_eq(cfg.confine, CONFINE_LOG);
	ck_assert_str_eq(cfg.user, "me:us");
	ck_ok(PARSE("run", "--confine=off", "--confine=on"));
	ck_assert_int_eq(cfg.confine, CONFINE_ON);
	ck_bad(PARSE("run", "--confine="), "'--confine'");
	ck_bad(PARSE("run", "--confine=maybe"), "'maybe' is none of");
	ck_bad(PARSE("run", "--user="), "'--user'");
	ck_bad(PARSE("migrate", "--confine=on", "a", "unix:/x"), "unknown option");
}
END_TEST

START_TEST(rates)
{
	static const struct {
		const char *text;
		uint64_t bytes_per_s;
	} good[] = {
		{"1Gbit", 125000000},
		{"100Mbit", 12500000},
		{"64kbit", 8000},
		{"64000bit", 8000},
		{"10mbit", 1250000},
		{"125M", 125 * MIB},
		{"8000", 8000},
		{"1g", GIB},
		{"0", 0},
		{"unlimited", 0},
		{"40000Gbit", 5000000000000},
		{"9223372036854775807", INT64_MAX},
	};
	static const char *const bad[] = {"",	    "fast",   "1.5Gbit", "Gbit",  "-1M",
					  "1Gbits", "1 Mbit", "1GB",	 "1Tbit", "1Mbit/s"};
	static const char *const beyond[] = {"63kbit",
					     "7999",
					     "1",
					     "1bit",
					     "9223372036854775808",
					     "99999999999999999999Gbit",
					     "18446744073709551615Gbit"};

	ck_ok(PARSE("migrate", "a", "b"));
	ck_assert_uint_eq(cfg.bandwidth, CONFIG_KEEP);
	for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
		ck_ok(PARSE("migrate", "--bandwidth", (char *)(uintptr_t)good[i].text, "a", "b"));
		ck_assert_msg(cfg.bandwidth == good[i].bytes_per_s, "%s: %llu", good[i].text,
			      (unsigned long long)cfg.bandwidth);
	}
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		ck_bad(PARSE("tune", "--bandwidth", (char *)(uintptr_t)bad[i], "a"),
		       "is not a rate");
	for (size_t i = 0; i < ARRAY_SIZE(beyond); i++)
		ck_bad(PARSE("tune", "--bandwidth", (char *)(uintptr_t)beyond[i], "a"), "64kbit");
}
END_TEST

START_TEST(tuning)
{
	ck_ok(PARSE("tune", "vm"));
	ck_assert(cfg.bandwidth == CONFIG_KEEP && cfg.new_downtime_ns == 0 && !cfg.json);
	ck_ok(PARSE("tune", "vm", "--bandwidth=0", "--downtime=1s", "--json"));
	ck_assert(cfg.bandwidth == 0 && cfg.new_downtime_ns == NS_PER_SEC && cfg.json);
	ck_bad(PARSE("tune"), "NAME");
	ck_bad(PARSE("tune", "vm", "--downtime=0"), "--downtime");
}
END_TEST

START_TEST(peer_timeouts)
{
	ck_ok(PARSE("migrate", "a", "b"));
	ck_assert_uint_eq(cfg.peer_timeout_ns, 0);
	ck_ok(PARSE("migrate", "--peer-timeout=1s", "a", "b"));
	ck_assert_uint_eq(cfg.peer_timeout_ns, NS_PER_SEC);
	ck_ok(PARSE("receive", "--peer-timeout=2m", "b"));
	ck_assert_uint_eq(cfg.peer_timeout_ns, 120 * NS_PER_SEC);
	ck_bad(PARSE("migrate", "--peer-timeout=999ms", "a", "b"), "less than 1s");
	ck_bad(PARSE("receive", "--peer-timeout=0", "b"), "--peer-timeout");
	ck_bad(PARSE("receive", "--peer-timeout=30d", "b"), "--peer-timeout");
}
END_TEST

START_TEST(uris)
{
	static const char *const good[] = {"tcp:h:1", "tcp:[::1]:0", "tcp::0",
					   "tls:h:1", "unix:/x",     "unix:x"};
	static const char *const bad[] = {
		"", "tcp:", "tcp:h", "tcp:h:", "tls:h:", "unix:", "udp:h:1", "fd:3", "/x"};
	char uri[MIGRATE_URI_MAX + 8] = "unix:";

	for (size_t i = 0; i < ARRAY_SIZE(good); i++)
		ck_ok(config_check_uri(good[i], &err));
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		memset(&err, 0, sizeof(err));
		ck_bad(config_check_uri(bad[i], &err), bad[i]);
	}
	memset(uri + 5, 'x', MIGRATE_URI_MAX - 5);
	memset(&err, 0, sizeof(err));
	ck_bad(config_check_uri(uri, &err), "longer");
}
END_TEST

START_TEST(help_wins)
{
	ck_ok(PARSE("migrate", "--help"));
	ck_assert(cfg.help);
	ck_ok(PARSE("run", "-h", "--nonsense"));
	ck_assert(cfg.help);
	ck_ok(PARSE("run", "-k", "x"));
	ck_assert(!cfg.help);
}
END_TEST

/* ---- the tables against what people read ---- */

/* Options as "COMMAND --name -n ARG", sorted by appearance, newline after each. */
struct listing {
	char *text;
	size_t len;
};

static struct listing table_options(void)
{
	struct listing l;
	FILE *f = open_memstream(&l.text, &l.len);

	config_list_options(f);
	fclose(f);
	return l;
}

/* Text of a man(7) line such as .BR: its words without blanks between, unless quoted. */
static void plain(const char *in, char *out)
{
	bool quoted = false;

	for (in += strcspn(in, " "); *in && *in != '\n'; in++) {
		if (*in == '"')
			quoted = !quoted;
		else if (in[0] == '\\' && in[1] == 'f')
			in += 2;
		else if (*in == '\\')
			*out++ = *++in;
		else if (*in != ' ' || quoted)
			*out++ = *in;
	}
	*out = '\0';
}

/* "-n, --name NAME" of command to a line as config_list_options() writes it. */
static void add_entry(FILE *f, const char *command, const char *entry)
{
	char letter = 0, name[64] = "", arg[64] = "";

	if (entry[0] == '-' && entry[1] != '-') {
		letter = entry[1];
		ck_assert_msg(strncmp(entry + 2, ", --", 4) == 0, "man page: %s", entry);
		entry += 4;
	}
	ck_assert_int_ge(sscanf(entry, "--%63s %63s", name, arg), 1);
	fprintf(f, "%s --%s", command, name);
	if (letter)
		fprintf(f, " -%c", letter);
	fprintf(f, "%s%s\n", arg[0] ? " " : "", arg);
}

static struct listing page_options(const char *path)
{
	char line[1024], text[1024], command[64] = "";
	struct listing l;
	FILE *out = open_memstream(&l.text, &l.len);
	FILE *page = fopen(path, "r");
	bool in_commands = false, item = false;

	ck_assert_msg(page, "%s: %s (the tests run from the top of the tree)", path,
		      strerror(errno));
	while (fgets(line, sizeof(line), page)) {
		if (strncmp(line, ".SH ", 4) == 0) {
			in_commands = strncmp(line, ".SH COMMANDS", 12) == 0;
		} else if (in_commands && strncmp(line, ".SS ", 4) == 0) {
			ck_assert_int_eq(sscanf(line, ".SS %63s", command), 1);
			ck_assert_msg(command_find(command), "man page: no command %s", command);
			fprintf(out, "%s\n", command);
		} else if (in_commands && item) {
			plain(line, text);
			ck_assert_msg(text[0] == '-', "man page, %s: not an option: %s", command,
				      line);
			add_entry(out, command, text);
		}
		item = strcmp(line, ".TP\n") == 0;
	}
	fclose(page);
	fclose(out);
	return l;
}

/* Is line, with its newline, one of text's lines? */
static bool has_line(const char *text, const char *line, size_t len)
{
	for (const char *p = text; *p; p = strchr(p, '\n') + 1) {
		if (strncmp(p, line, len) == 0)
			return true;
	}
	return false;
}

START_TEST(man_page_lists_the_same_options)
{
	struct listing table = table_options();
	struct listing page = page_options("vmm/godwit.1");
	const char *end;

	ck_assert_uint_gt(table.len, 100);
	for (const char *p = table.text; *p; p = end + 1) {
		end = strchr(p, '\n');
		ck_assert_msg(has_line(page.text, p, (size_t)(end - p) + 1),
			      "the man page lacks: %.*s", (int)(end - p), p);
	}
	for (const char *p = page.text; *p; p = end + 1) {
		end = strchr(p, '\n');
		if (memchr(p, ' ', (size_t)(end - p)))
			ck_assert_msg(has_line(table.text, p, (size_t)(end - p) + 1),
				      "only the man page has: %.*s", (int)(end - p), p);
	}
	for (const struct command *c = commands; c->name; c++) {
		char line[64];

		snprintf(line, sizeof(line), "%s\n", c->name);
		ck_assert_msg(has_line(page.text, line, strlen(line)),
			      "the man page lacks command %s", c->name);
	}
	free(table.text);
	free(page.text);
}
END_TEST

START_TEST(help_lists_every_option)
{
	for (const struct command *c = commands; c->name; c++) {
		struct listing l;
		FILE *f = open_memstream(&l.text, &l.len);

		config_command_help(c, f);
		fclose(f);
		ck_assert_ptr_nonnull(strstr(l.text, c->help));
		for (const struct option_spec *o = c->options; o->name; o++) {
			char word[80];

			snprintf(word, sizeof(word), " --%s%s%s ", o->name, o->arg ? " " : "",
				 o->arg ? o->arg : "");
			ck_assert_msg(strstr(l.text, word), "%s --help lacks%s", c->name, word);
			ck_assert_ptr_nonnull(strstr(l.text, o->help));
		}
		/* Eighty columns on a terminal would be best; a hundred is what fits. */
		for (char *line = strtok(l.text, "\n"); line; line = strtok(NULL, "\n"))
			ck_assert_msg(strlen(line) <= 110, "%s", line);
		free(l.text);
	}
}
END_TEST

START_TEST(tables_are_sound)
{
	static const size_t sizes[] = {
		[OPTION_FLAG] = sizeof(bool),
		[OPTION_MEMORY] = sizeof(uint64_t),
		[OPTION_COUNT] = sizeof(uint32_t),
		[OPTION_DURATION] = sizeof(uint64_t),
		[OPTION_PEER_TIMEOUT] = sizeof(uint64_t),
		[OPTION_BANDWIDTH] = sizeof(uint64_t),
		[OPTION_VERIFY] = sizeof(enum migrate_verify),
	};

	for (const struct command *c = commands; c->name; c++) {
		ck_assert_ptr_nonnull(c->action);
		ck_assert_uint_le(c->max_args, CONFIG_ARGS_MAX);
		for (const struct option_spec *o = c->options; o->name; o++) {
			size_t want = o->kind < ARRAY_SIZE(sizes) ? sizes[o->kind] : 0;

			ck_assert_msg(!want || o->size == want, "%s --%s: size", c->name, o->name);
			ck_assert_int_eq(o->kind == OPTION_FLAG, o->arg == NULL);
			for (const struct option_spec *p = o + 1; p->name; p++) {
				ck_assert_str_ne(o->name, p->name);
				ck_assert(!o->letter || o->letter != p->letter);
			}
		}
	}
}
END_TEST

int main(void)
{
	Suite *s = suite_create("config");
	TCase *t = tcase_create("config");
	SRunner *r;
	int failed;

	tcase_add_test(t, defaults);
	tcase_add_test(t, every_way_to_give_a_value);
	tcase_add_test(t, words_and_options_mix);
	tcase_add_test(t, wrong_words_are_named);
	tcase_add_test(t, bad_values);
	tcase_add_test(t, long_values_are_refused);
	tcase_add_test(t, cpu_lists);
	tcase_add_test(t, ways_to_find_dirty_pages);
	tcase_add_test(t, ways_to_confine);
	tcase_add_test(t, rates);
	tcase_add_test(t, tuning);
	tcase_add_test(t, peer_timeouts);
	tcase_add_test(t, uris);
	tcase_add_test(t, help_wins);
	tcase_add_test(t, man_page_lists_the_same_options);
	tcase_add_test(t, help_lists_every_option);
	tcase_add_test(t, tables_are_sound);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
