/* SPDX-License-Identifier: MIT */
/*
 * The command line: words of the input for every command, and what they are made of: sizes, times,
 * rates, URIs, devices.
 *
 * What is refused is refused with -EINVAL and words; what is taken is within the limits of the
 * options, and a description of devices is one that a handshake carries. Who looks at a word later
 * (a URI, features of a CPU, files of TLS) takes it or has words for why not, too.
 */
#include <errno.h>
#include <stdio.h>
#include <unistd.h>

#include "../../migrate/migrate.h"
#include "../../migrate/uri.h"
#include "../config.h"
#include "../config_devices.h"
#include "../ram.h"
#include "fake_kvm.h"
#include "fuzz.h"

#define WORDS_MAX 24
#define WORD_MAX 300

struct words {
	char text[WORDS_MAX][WORD_MAX];
	char *argv[WORDS_MAX + 1];
	int n;
};

static const char *const values[] = {
	"16M",
	"1G",
	"50ms",
	"1h",
	"0",
	"1Gbit",
	"unlimited",
	"zstd:3",
	"auto",
	"ring:4096",
	"throttle",
	"full",
	"disk,ro,cache=none,serial=x,queues=2,discard=off",
	"user,hostfwd=tcp:2222:22,hostfwd=udp:127.0.0.1:53:53,mac=52:54:00:12:34:56",
	"tap:tap0,queues=2",
	"/tmp/s,cid=5",
	"host,-avx2",
	"tcp:localhost:1",
	"unix:/tmp/x",
	"name",
};

static const char *const more_values[] = {
	"tls:[::1]:4444",
	"tcp:0.0.0.0:0",
	"tcp:[::ffff:127.0.0.1]:1",
	"tls::1",
	"-sse4.2,-x2apic,-avx512f",
	"host",
	"/etc/pem",
	"tcp:10.0.0.1:65535",
};

static void to_word(struct words *w, const char *text, size_t len)
{
	char *to = w->text[w->n];

	if (w->n == WORDS_MAX)
		return;
	len = MIN(len, (size_t)WORD_MAX - 1);
	memcpy(to, text, len);
	to[len] = '\0';
	w->argv[w->n++] = to;
}

/* A value: one of ours, with changes, or bytes of the input. */
static size_t make_value(struct fuzz_in *in, char out[WORD_MAX])
{
	uint8_t which = in_u8(in), edits;
	const char *value;
	size_t len;

	if (which >= ARRAY_SIZE(values) && which >> 4 != 0xe) {
		len = in_u8(in);
		in_bytes(in, out, len);
		return len;
	}
	value = which < ARRAY_SIZE(values) ? values[which]
					   : more_values[which % ARRAY_SIZE(more_values)];
	len = strlen(value);
	memcpy(out, value, len);
	edits = in_u8(in) % 8;
	for (unsigned i = 0; i < edits && len; i++) {
		size_t at = in_u8(in) % len;
		uint8_t byte = in_u8(in);

		if (byte) {
			out[at] = (char)byte;
			continue;
		}
		/* Shorter by one. */
		memmove(out + at, out + at + 1, --len - at);
	}
	return len;
}

static void add_option(struct words *w, const struct command *cmd, struct fuzz_in *in)
{
	unsigned n = 0, which = in_u8(in);
	uint8_t how = in_u8(in);
	char text[WORD_MAX], word[2 * WORD_MAX];
	const struct option_spec *o;
	size_t len;

	while (cmd->options[n].name)
		n++;
	len = make_value(in, text);
	if (n == 0 || how % 4 == 0) {
		to_word(w, text, len);
		return;
	}
	o = &cmd->options[which % n];
	text[MIN(len, (size_t)WORD_MAX - 1)] = '\0';
	if (how % 4 == 1 && o->letter)
		snprintf(word, sizeof(word), "-%c%s", o->letter, how & 4 ? "" : text);
	else
		snprintf(word, sizeof(word), "--%s%s%s", o->name, how % 4 == 2 ? "=" : "",
			 how % 4 == 2 ? text : "");
	to_word(w, word, strlen(word));
	if (o->arg && (how % 4 == 3 || how & 4))
		to_word(w, text, strlen(text));
}

/* ---- what was taken ---- */

#define NEED_ENDED(s) fuzz_need(memchr(s, 0, sizeof(s)), #s " does not end")

/* The same on the other side of a handshake. */
static void check_devices(const struct vm_devices *taken)
{
	static struct vm_devices there;
	struct vm_devices copy = *taken;
	struct sbuf s, l;

	sb_init_save(&s);
	vm_devices_fields(&copy, &s);
	fuzz_need(s.err == 0, "devices that cannot be described: %s", strerror(-s.err));
	memset(&there, 0, sizeof(there));
	sb_init_load(&l, s.data, s.len);
	vm_devices_fields(&there, &l);
	sb_end(&l);
	fuzz_need(l.err == 0, "devices that no handshake carries: %s", strerror(-l.err));
	fuzz_need(there.n_disks == taken->n_disks && there.n_nets == taken->n_nets &&
			  there.vsock.cid == taken->vsock.cid,
		  "devices get lost on their way");
	sb_free(&s);
}

/* Who looks at them next. */
static void check_cpu(const char *mask)
{
	static struct cpuid host;
	struct errmsg err = {""};
	struct kvm_caps caps;
	int fd = kvm_open(&caps, &err);
	int ret = cpuid_host(&host, fd, mask, &err);

	fuzz_need(ret == 0 || (ret == -EINVAL && err.text[0]), "--cpu %s: %d, %s", mask, ret,
		  err.text);
	close(fd);
}

static void check_tls(const struct migrate_tls *tls, const char *uri)
{
	struct errmsg err = {""};
	int ret;

	NEED_ENDED(tls->cert);
	NEED_ENDED(tls->key);
	NEED_ENDED(tls->ca);
	NEED_ENDED(tls->psk);
	NEED_ENDED(tls->name);
	ret = migrate_check_tls(uri, tls, &err);
	fuzz_need(ret == 0 || (ret == -EINVAL && err.text[0]), "TLS is refused with %d: %s", ret,
		  err.text);
}

static void check_dirty(const struct dirty_config *d)
{
	fuzz_need(d->how <= DIRTY_RING, "dirty pages are found by %d", d->how);
	fuzz_need(!d->entries || (d->entries >= DIRTY_RING_MIN && d->entries <= DIRTY_RING_MAX &&
				  !(d->entries & (d->entries - 1))),
		  "a ring of %u entries", d->entries);
}

static void check_config(const struct config *c)
{
	fuzz_need(!c->name[0] || config_name_ok(c->name), "a name that is none: %.64s", c->name);
	NEED_ENDED(c->kernel);
	NEED_ENDED(c->initrd);
	NEED_ENDED(c->cmdline);
	NEED_ENDED(c->cpu_mask);
	NEED_ENDED(c->leave);
	NEED_ENDED(c->base);
	NEED_ENDED(c->compress);
	NEED_ENDED(c->user);
	fuzz_need(!c->memory || (c->memory >= RAM_MIN && c->memory % PAGE_SIZE == 0),
		  "a memory of %llu", (unsigned long long)c->memory);
	fuzz_need(c->connections <= MIGRATE_CONNECTIONS_MAX, "%u connections", c->connections);
	fuzz_need(!c->bandwidth || c->bandwidth >= MIGRATE_BANDWIDTH_MIN, "a bandwidth of %llu",
		  (unsigned long long)c->bandwidth);
	fuzz_need(!c->peer_timeout_ns || c->peer_timeout_ns >= MIGRATE_PEER_TIMEOUT_MIN,
		  "a peer timeout of %llu", (unsigned long long)c->peer_timeout_ns);
	fuzz_need(c->downtime_ns && c->downtime_ns <= INT64_MAX / 2 &&
			  c->timeout_ns <= INT64_MAX / 2 && c->reconnect_ns <= INT64_MAX / 2 &&
			  c->keep_ns <= INT64_MAX / 2 && c->new_downtime_ns <= INT64_MAX / 2,
		  "a time that nothing can be added to");
	fuzz_need(c->verify <= MIGRATE_VERIFY_FULL && c->on_timeout <= ON_TIMEOUT_CONTINUE &&
			  c->confine <= CONFINE_LOG,
		  "verify %d, on timeout %d, confine %d", c->verify, c->on_timeout, c->confine);
	fuzz_need(c->n_args <= CONFIG_ARGS_MAX, "%u words", c->n_args);
	check_dirty(&c->dirty);
	check_devices(&c->devices);
	if (c->cpu_mask[0])
		check_cpu(c->cpu_mask);
	if (c->n_args)
		check_tls(&c->tls, c->args[c->n_args - 1]);
}

static void parse_words(struct fuzz_in *in)
{
	static struct words w;
	static struct config cfg;
	struct errmsg err = {""};
	const struct command *cmd = commands;
	unsigned options;
	int ret;

	for (unsigned n = in_u8(in) % 16; n && cmd[1].name; n--)
		cmd++;
	options = in_u8(in) % 8;
	w.n = 0;
	to_word(&w, cmd->name, strlen(cmd->name));
	for (unsigned i = 0; i < options; i++)
		add_option(&w, cmd, in);
	w.argv[w.n] = NULL;
	ret = config_parse(cmd, w.n, w.argv, &cfg, &err);
	fuzz_need(ret == 0 || (ret == -EINVAL && err.text[0]), "refused with %d: %s", ret,
		  err.text);
	if (ret == 0 && !cfg.help)
		check_config(&cfg);
}

/* What a receiver is told of its own devices, put into those of a guest; paths become absolute. */
static void put_here(const struct vm_devices *theirs, const struct vm_devices *ours)
{
	static struct vm_devices d;
	struct errmsg err = {""};
	int ret;

	d = *theirs;
	ret = config_override_devices(&d, ours, &err);
	fuzz_need(ret == 0 || err.text[0], "devices are refused without a reason");
	if (ret)
		return;
	ret = config_absolute_paths(&d, &err);
	fuzz_need(ret == 0 || err.text[0], "paths are refused without a reason");
	for (uint32_t i = 0; i < d.n_disks && ret == 0; i++)
		fuzz_need(d.disk[i].path[0] == '/', "%s is no absolute path", d.disk[i].path);
	err = (struct errmsg){""};
	fuzz_need(config_choose_macs(&d, &err) == 0, "no addresses: %s", err.text);
	for (uint32_t i = 0; i < d.n_nets; i++)
		fuzz_need(!(d.net[i].mac[0] & 1), "the address of a group is a device's");
	check_devices(&d);
}

/* ---- single values ---- */

static struct vm_devices earlier; /* of the same input */

/* Where a guest goes: what the engine takes the command line does. */
static void check_uri(const char *text)
{
	char host[MIGRATE_URI_MAX];
	struct errmsg err = {""}, why = {""};
	int first = config_check_uri(text, &err), ret = uri_check(text, &why);
	bool exposed = uri_is_exposed(text, false), listens = uri_is_exposed(text, true);

	fuzz_need(first == 0 || err.text[0], "a URI is refused without a reason");
	fuzz_need(ret == 0 || why.text[0], "a URI is refused without a reason");
	fuzz_need(ret || first == 0 || strlen(text) >= MIGRATE_URI_MAX, "'%s': %s", text, err.text);
	fuzz_need(uri_host(text, host, sizeof(host), &why) == ret, "'%s' has a host, or none",
		  text);
	fuzz_need(ret || memchr(host, 0, sizeof(host)), "a host without end");
	fuzz_need(!exposed || (listens && ret == 0 && !uri_is_tls(text) && host[0]),
		  "'%s' is exposed", text);
}

static void parse_value(struct fuzz_in *in)
{
	static struct vm_devices d;
	enum migrate_compress mode;
	struct errmsg err = {""};
	char text[WORD_MAX];
	uint64_t v = 0;
	int level, ret;

	text[make_value(in, text) % WORD_MAX] = '\0';
	ret = parse_size(text, &v);
	fuzz_need(ret == 0 || ret == -EINVAL || ret == -ERANGE, "parse_size: %d", ret);
	ret = parse_duration(text, &v);
	fuzz_need(ret == 0 || ret == -EINVAL || ret == -ERANGE, "parse_duration: %d", ret);
	ret = migrate_parse_bandwidth(text, &v);
	fuzz_need(ret || !v || v >= MIGRATE_BANDWIDTH_MIN, "'%s' is a bandwidth of %llu", text,
		  (unsigned long long)v);
	level = 0;
	if (migrate_parse_compress(text, &mode, &level) == 0 && mode == MIGRATE_COMPRESS_ZSTD)
		fuzz_need(level >= 1 && level <= MIGRATE_LEVEL_MAX, "'%s' is level %d", text,
			  level);
	check_uri(text);
	memset(&d, 0, sizeof(d));
	for (unsigned i = 0; i < 2; i++) {
		int (*const parsers[])(struct vm_devices *, const char *, struct errmsg *) = {
			config_disk, config_net, config_vsock, config_console};

		for (size_t k = 0; k < ARRAY_SIZE(parsers); k++) {
			err = (struct errmsg){""};
			ret = parsers[k](&d, text, &err);
			fuzz_need(ret == 0 || err.text[0], "'%s' is refused without a reason",
				  text);
		}
	}
	check_devices(&d);
	put_here(&earlier, &d);
	put_here(&d, &earlier);
	earlier = d;
}

/* Texts about options, of which there is one for each command. */
static void show_help(void)
{
	static bool shown;
	FILE *f = shown ? NULL : fopen("/dev/null", "we");

	if (!f)
		return;
	shown = true;
	config_help(f);
	config_list_options(f);
	for (const struct command *c = commands; c->name; c++) {
		fuzz_need(command_find(c->name) == c, "%s is not found", c->name);
		config_command_help(c, f);
	}
	fclose(f);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fuzz_in in = {data, data + size};

	show_help();
	memset(&earlier, 0, sizeof(earlier));
	while (in_left(&in)) {
		if (in_u8(&in) & 1)
			parse_words(&in);
		else
			parse_value(&in);
	}
	return 0;
}
