/* SPDX-License-Identifier: MIT */
/*
 * decode-stream: what one side of a migration said on one connection, frame by frame. A recording
 * is the bytes of one direction as they came, from the prelude on.
 *
 * Theory of operation: the recording is read once, from front to end, and each frame is taken
 * apart by what receives it in a move: wire.h, sbuf.h, handshake.h, delta.h. What is wrong is said
 * with the offset of the frame it is in. A frame whose header makes sense has an end, so one that
 * is damaged within is passed over; after a header that makes none nothing can be told any more.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "../migrate/conn.h"
#include "../migrate/delta.h"
#include "../migrate/handshake.h"
#include "../migrate/pack.h"
#include "../vmm/clock.h"

static const char usage[] =
	"usage: decode-stream [--sections] [--json] [FILE]\n"
	"\n"
	"Show what one side of a migration sent on one connection: each frame, what a batch of\n"
	"pages is made of, each round, and the sections of the machine's description and state.\n"
	"FILE (standard input without one) has the bytes of one direction, as a relay records\n"
	"them:\n"
	"\n"
	"  socat -r stream tcp-listen:4445,reuseaddr tcp:there:4444 &\n"
	"  godwit migrate --connections 1 NAME tcp:127.0.0.1:4445\n"
	"\n"
	"  --sections  also the fields of sections, as far as they have names\n"
	"  --json      a line of JSON for each frame, and a last one for all\n"
	"\n"
	"Frames and pages are checked as a receiver does. What is damaged or cut off is said with\n"
	"its offset. The exit status is 0 when all is well, 1 when something is not, 2 for a\n"
	"wrong command line or a file that cannot be read.\n";

/* How pages came. */
struct pages {
	uint64_t data, packed, delta, copy, zero, hole;
	uint64_t batches, bytes; /* of contents, as they were on the wire */
};

struct decoder {
	int fd;
	bool sections, json;
	uint64_t at; /* offset of what is read next */
	uint64_t frame_at;
	uint32_t seq;
	uint64_t frames, rounds, problems;
	uint64_t npages; /* of the guest; 0: not known, on a connection without HELLO */
	struct hashes hashes;
	struct unpack unpack;
	struct pages round, all;
	json_t *line; /* of the frame in hand */
};

/* ---- output ---- */

/* Adds to the frame's line: a name, and a value by printf. In JSON numbers stay numbers. */
static void add_text(struct decoder *d, const char *name, const char *fmt, ...) PRINTF(3, 4);
static void add_text(struct decoder *d, const char *name, const char *fmt, ...)
{
	char text[VM_CMDLINE_MAX + 64];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	/* It may be a stranger's. */
	conn_clean_text(text, strlen(text));
	json_object_set_new(d->line, name, json_string(text));
}

static void add_number(struct decoder *d, const char *name, uint64_t value)
{
	json_object_set_new(d->line, name, json_integer((json_int_t)value));
}

static void problem(struct decoder *d, const char *fmt, ...) PRINTF(2, 3);
static void problem(struct decoder *d, const char *fmt, ...)
{
	char text[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	conn_clean_text(text, strlen(text));
	d->problems++;
	if (d->line)
		json_object_set_new(d->line, "problem", json_string(text));
	fprintf(stderr, "decode-stream: offset %" PRIu64 ": %s\n", d->frame_at, text);
}

static void begin_line(struct decoder *d, const char *type)
{
	d->frame_at = d->at;
	d->line = json_pack("{s:I,s:s}", "offset", (json_int_t)d->at, "type", type);
	if (!d->line)
		abort();
}

static void print_value(const json_t *value)
{
	if (json_is_integer(value))
		printf("%" JSON_INTEGER_FORMAT, json_integer_value(value));
	else
		printf("%s", json_string_value(value));
}

/* "    1024  HELLO  length=..."; what belongs to sections goes on lines of its own. */
static void end_line(struct decoder *d)
{
	const char *name;
	json_t *value, *section;
	size_t i;

	if (d->json) {
		json_dumpf(d->line, stdout, JSON_COMPACT);
		printf("\n");
		goto out;
	}
	printf("%12" JSON_INTEGER_FORMAT "  %-9s",
	       json_integer_value(json_object_get(d->line, "offset")),
	       json_string_value(json_object_get(d->line, "type")));
	json_object_foreach(d->line, name, value)
	{
		if (strcmp(name, "offset") == 0 || strcmp(name, "type") == 0 ||
		    json_is_array(value))
			continue;
		printf("  %s=", name);
		print_value(value);
	}
	printf("\n");
	json_array_foreach(json_object_get(d->line, "sections"), i, section)
	{
		printf("%12s  -", "");
		json_object_foreach(section, name, value)
		{
			printf("  %s=", name);
			print_value(value);
		}
		printf("\n");
	}
out:
	json_decref(d->line);
	d->line = NULL;
}

/* ---- input ---- */

/* False at the end, or when less than len is left, which is said. */
static bool take(struct decoder *d, void *buf, size_t len, const char *what)
{
	size_t got = 0;

	while (got < len) {
		ssize_t n = read(d->fd, (char *)buf + got, len - got);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0) {
			fprintf(stderr, "decode-stream: reading: %s\n", strerror(errno));
			exit(2);
		}
		if (n == 0)
			break;
		got += (size_t)n;
	}
	d->at += got;
	if (got == len)
		return true;
	if (got || what)
		problem(d, "the recording ends within %s: %zu bytes of %zu are there",
			what ? what : "a frame's header", got, len);
	return false;
}

/* ---- pages ---- */

static void count_pages(struct pages *p, const struct wire_batch *b, const struct wire_desc *desc)
{
	for (uint32_t i = 0; i < b->n_descs; i++) {
		uint64_t *const counts[] = {
			[WIRE_PAGE_DATA] = b->packed ? &p->packed : &p->data,
			[WIRE_PAGE_ZERO] = &p->zero,
			[WIRE_PAGE_HOLE] = &p->hole,
			[WIRE_PAGE_COPY] = &p->copy,
			[WIRE_PAGE_DELTA] = &p->delta,
		};
		bool run = desc[i].kind == WIRE_PAGE_ZERO || desc[i].kind == WIRE_PAGE_HOLE;

		*counts[desc[i].kind] += run ? desc[i].count : 1;
	}
	p->batches++;
	p->bytes += wire_batch_contents(b);
}

static void add_pages(struct decoder *d, const struct pages *p)
{
	const struct {
		const char *name;
		uint64_t n;
	} parts[] = {{"plain", p->data}, {"packed", p->packed}, {"delta", p->delta},
		     {"copy", p->copy},	 {"zero", p->zero},	{"hole", p->hole}};

	for (size_t i = 0; i < ARRAY_SIZE(parts); i++) {
		if (parts[i].n)
			add_number(d, parts[i].name, parts[i].n);
	}
	add_number(d, "bytes", p->bytes);
}

/* Whole pages can be checked with the seed of HELLO; deltas only by who has what was before. */
static void check_contents(struct decoder *d, const struct wire_batch *b,
			   const struct wire_desc *desc, const uint8_t *contents)
{
	for (uint32_t i = 0; i < b->n_descs; i++) {
		struct page_hash hash;

		if (desc[i].kind == WIRE_PAGE_DATA && d->hashes.table) {
			hash = hash_page(&d->hashes, contents);
			if (!hash_equal(&hash, &desc[i].hash))
				problem(d, "page %" PRIu64 " is damaged", desc[i].index);
		}
		contents += wire_desc_content(&desc[i]);
	}
}

static void on_pages(struct decoder *d, const struct wire_frame *f, const uint8_t *payload)
{
	struct wire_desc desc[WIRE_BATCH_DESCS];
	struct pages here = {0};
	const uint8_t *contents;
	struct wire_batch b;
	size_t descs;
	const char *why;

	if (f->length < sizeof(b)) {
		problem(d, "PAGES of %u bytes", f->length);
		return;
	}
	memcpy(&b, payload, sizeof(b));
	descs = b.n_descs * sizeof(desc[0]);
	if (b.n_descs > WIRE_BATCH_DESCS || f->length < sizeof(b) + descs) {
		problem(d, "PAGES of %u descriptors in %u bytes", b.n_descs, f->length);
		return;
	}
	if (wire_check_sum(f, payload, sizeof(b) + descs) != f->check) {
		problem(d, "PAGES is damaged");
		return;
	}
	memcpy(desc, payload + sizeof(b), descs);
	/* Of another connection than the first, the guest's size is not known. */
	if (wire_check_batch(&b, desc, f->length, d->npages ? d->npages : UINT64_MAX, &why)) {
		problem(d, "malformed PAGES: %s", why);
		return;
	}
	count_pages(&here, &b, desc);
	count_pages(&d->round, &b, desc);
	count_pages(&d->all, &b, desc);
	add_number(d, "first_page", desc[0].index);
	add_pages(d, &here);
	contents = payload + sizeof(b) + descs;
	if (b.packed) {
		if (unpack_prepare(&d->unpack)) {
			problem(d, "no memory for compressed pages");
			return;
		}
		memcpy(d->unpack.packed, contents, b.packed);
		if (unpack(&d->unpack, b.packed, wire_batch_unpacked(&b))) {
			problem(d, "compressed pages are damaged");
			return;
		}
		contents = d->unpack.contents;
	}
	check_contents(d, &b, desc, contents);
}

/* ---- sections ---- */

static void field(json_t *section, const char *name, uint64_t value)
{
	json_object_set_new(section, name, json_integer((json_int_t)value));
}

static void field_text(json_t *section, const char *name, const char *value)
{
	char text[VM_CMDLINE_MAX + 1];

	snprintf(text, sizeof(text), "%s", value);
	conn_clean_text(text, strlen(text));
	json_object_set_new(section, name, json_string(text));
}

static void fields_of_config(json_t *s, const struct vm_config *c)
{
	field_text(s, "name", c->name);
	field(s, "ram_size", c->ram_size);
	field(s, "vcpus", c->vcpus);
	field_text(s, "kernel", c->kernel);
	field_text(s, "initrd", c->initrd);
	field_text(s, "cmdline", c->cmdline);
	field(s, "disks", c->devices.n_disks);
	for (uint32_t i = 0; i < c->devices.n_disks; i++) {
		char name[32];

		snprintf(name, sizeof(name), "disk%u", i);
		field_text(s, name, c->devices.disk[i].path);
	}
	field(s, "nets", c->devices.n_nets);
	if (c->devices.vsock.present)
		field(s, "vsock_cid", c->devices.vsock.cid);
	if (c->devices.console.present)
		field_text(s, "console", c->devices.console.path);
	field(s, "rng", c->devices.rng);
	field(s, "balloon", c->devices.balloon);
}

static void fields_of_hello(json_t *s, const char *tag, const struct hello *h)
{
	char seed[20];

	if (strcmp(tag, "config") == 0) {
		fields_of_config(s, &h->cfg);
	} else if (strcmp(tag, "cpuid") == 0) {
		field(s, "leaves", h->cpuid.n);
	} else if (strcmp(tag, "options") == 0) {
		field(s, "tsc_khz", h->tsc_khz);
		snprintf(seed, sizeof(seed), "%016" PRIx64, h->hash_seed);
		field_text(s, "hash_seed", seed);
		field(s, "ram_used", h->ram_used);
		field(s, "verify", h->verify);
		field(s, "connections", h->connections);
		field(s, "rounds", h->rounds);
	} else if (strcmp(tag, "msrs") == 0) {
		field(s, "msrs", h->n_msrs);
	}
}

/* What of the state is neither KVM's nor a device's. */
static void fields_of_state(struct decoder *d, json_t *s, const char *tag, struct sbuf *body)
{
	struct vm_clock clock = {0};
	bool paused = false;

	if (strcmp(tag, "clock") == 0) {
		clock_fields(&clock, body);
		sb_end(body);
		field(s, "read_at_ns", clock.read_at_ns);
		field(s, "kvmclock_ns", clock.kvmclock_ns);
		field(s, "tsc_khz", clock.tsc_khz);
		field(s, "vcpus", clock.n);
		if (!body->err)
			field(s, "tsc", clock.tsc[0]);
		clock_free(&clock);
	} else if (strcmp(tag, "run") == 0) {
		sb_bool(body, &paused);
		sb_end(body);
		field(s, "paused", paused);
	} else {
		return;
	}
	if (body->err)
		problem(d, "state section %s is malformed", tag);
}

/* Each section with its digest, by which two recordings can be compared. */
static void add_sections(struct decoder *d, const uint8_t *payload, uint32_t len,
			 const struct hello *hello)
{
	json_t *list = json_array();
	struct sb_section sec;
	struct sbuf s, body;
	int ret;

	sb_init_load(&s, payload, len);
	while ((ret = sb_section_next(&s, &sec, &body)) > 0) {
		json_t *one = json_pack("{s:s,s:I,s:I,s:I}", "section", sec.tag, "instance",
					(json_int_t)sec.instance, "version",
					(json_int_t)sec.version, "length", (json_int_t)body.len);
		char text[20];

		snprintf(text, sizeof(text), "%016" PRIx64, XXH3_64bits(body.data, body.len));
		json_object_set_new(one, "digest", json_string(text));
		if (sec.flags & SB_OPTIONAL)
			field(one, "optional", 1);
		if (d->sections && hello)
			fields_of_hello(one, sec.tag, hello);
		else if (d->sections)
			fields_of_state(d, one, sec.tag, &body);
		json_array_append_new(list, one);
	}
	if (ret)
		problem(d, "the sections are malformed from byte %zu of the payload on", s.pos);
	add_number(d, "n_sections", json_array_size(list));
	json_object_set_new(d->line, "sections", list);
}

static void on_hello(struct decoder *d, const uint8_t *payload, uint32_t len)
{
	struct hello *h = malloc(sizeof(*h));
	struct errmsg err = {""};

	if (!h)
		abort();
	if (hello_load(h, payload, len, &err)) {
		problem(d, "%s", err.text);
		add_sections(d, payload, len, NULL);
		free(h);
		return;
	}
	add_text(d, "name", "%s", h->cfg.name);
	add_number(d, "ram", h->cfg.ram_size);
	add_number(d, "vcpus", h->cfg.vcpus);
	add_number(d, "connections", h->connections);
	d->npages = h->cfg.ram_size / PAGE_SIZE;
	hashes_free(&d->hashes);
	/* The seed is all that is wanted of it. */
	if (hashes_init(&d->hashes, 1, h->hash_seed))
		abort();
	add_sections(d, payload, len, h);
	free(h);
}

/* ---- the other frames ---- */

/* Payloads that are one number or two. */
static void add_numbers(struct decoder *d, const struct wire_frame *f, const uint8_t *payload,
			size_t width, const char *first, const char *second)
{
	uint64_t v[2] = {0};

	if (f->length != width * (second ? 2 : 1)) {
		problem(d, "%s of %u bytes", wire_type_name(f->type), f->length);
		return;
	}
	for (unsigned i = 0; i < (second ? 2U : 1U); i++) {
		memcpy(&v[i], payload + i * width, width);
		add_number(d, i ? second : first, v[i]);
	}
}

static void add_digest(struct decoder *d, const struct wire_frame *f, const uint8_t *payload)
{
	struct page_hash h;

	if (f->length != sizeof(h)) {
		problem(d, "%s of %u bytes", wire_type_name(f->type), f->length);
		return;
	}
	memcpy(&h, payload, sizeof(h));
	add_text(d, "digest", "%016" PRIx64 "%016" PRIx64, h.high, h.low);
}

/* A list of things that are all of one size. */
static void add_count(struct decoder *d, const struct wire_frame *f, const char *name, size_t size)
{
	if (f->length % size)
		problem(d, "%s of %u bytes", wire_type_name(f->type), f->length);
	else
		add_number(d, name, f->length / size);
}

static void on_round_end(struct decoder *d, const struct wire_frame *f, const uint8_t *payload)
{
	add_numbers(d, f, payload, sizeof(uint32_t), "round", NULL);
	add_number(d, "batches", d->round.batches);
	add_pages(d, &d->round);
	d->round = (struct pages){0};
	d->rounds++;
}

static void on_table(struct decoder *d, const struct wire_frame *f, const uint8_t *payload)
{
	struct wire_table t;

	if (f->length < sizeof(t)) {
		problem(d, "TABLE of %u bytes", f->length);
		return;
	}
	memcpy(&t, payload, sizeof(t));
	add_number(d, "chunk", t.chunk);
	add_number(d, "hashes", t.n);
	if (f->length != sizeof(t) + (uint64_t)t.n * sizeof(struct page_hash))
		problem(d, "TABLE of %u hashes in %u bytes", t.n, f->length);
}

static void on_payload(struct decoder *d, const struct wire_frame *f, const uint8_t *payload)
{
	switch (f->type) {
	case WIRE_HELLO:
		on_hello(d, payload, f->length);
		break;
	case WIRE_HELLO_OK:
		add_numbers(d, f, payload, sizeof(uint64_t), "held", NULL);
		break;
	case WIRE_PING:
		add_numbers(d, f, payload, sizeof(uint64_t), "time", NULL);
		break;
	case WIRE_PONG:
		add_numbers(d, f, payload, sizeof(uint64_t), "time", "own_time");
		break;
	case WIRE_ROUND_END:
		on_round_end(d, f, payload);
		break;
	case WIRE_ROUND_ACK:
		add_numbers(d, f, payload, sizeof(uint32_t), "round", NULL);
		break;
	case WIRE_STATE:
		add_sections(d, payload, f->length, NULL);
		break;
	case WIRE_PROOF:
	case WIRE_HELD:
		add_count(d, f, "digests", sizeof(struct page_hash));
		break;
	case WIRE_READY:
	case WIRE_COMMIT:
		add_digest(d, f, payload);
		break;
	case WIRE_REFUSE:
	case WIRE_FAIL:
		add_text(d, "text", "%.*s", (int)f->length, (const char *)payload);
		break;
	case WIRE_ASK:
		add_count(d, f, "pages", sizeof(uint64_t));
		break;
	case WIRE_HAVE:
		add_count(d, f, "pages", sizeof(struct delta_hashes));
		break;
	case WIRE_WANT:
		add_count(d, f, "chunks", sizeof(uint32_t));
		break;
	case WIRE_TABLE:
		on_table(d, f, payload);
		break;
	default:
		break;
	}
}

/* ---- the recording ---- */

static bool decode_prelude(struct decoder *d)
{
	struct wire_prelude p;

	begin_line(d, "prelude");
	if (!take(d, &p, sizeof(p), "the prelude"))
		goto bad;
	if (memcmp(p.magic, WIRE_MAGIC, sizeof(p.magic)) != 0 || p.zero) {
		problem(d, "this is no recording of a migration: it does not begin with %s",
			WIRE_MAGIC);
		goto bad;
	}
	add_number(d, "version", p.version);
	add_number(d, "min_version", p.min_version);
	add_text(d, "session", "%016" PRIx64, p.session);
	if (p.version < WIRE_MIN_VERSION || p.min_version > WIRE_VERSION) {
		problem(d, "a protocol of version %u down to %u, this program reads %u", p.version,
			p.min_version, WIRE_VERSION);
		goto bad;
	}
	end_line(d);
	return true;
bad:
	end_line(d);
	return false;
}

/* Is it a header from which the frame's end can be told? */
static bool check_header(struct decoder *d, const struct wire_frame *f)
{
	if (f->magic != WIRE_FRAME_MAGIC)
		problem(d, "no frame (magic %#x)", f->magic);
	else if (f->type == 0 || f->type >= WIRE_N_TYPES || f->flags)
		problem(d, "a frame of unknown type %u, flags %#x", f->type, f->flags);
	else if (f->length > wire_max_length(f->type))
		problem(d, "%s of %u bytes, %u are allowed", wire_type_name(f->type), f->length,
			wire_max_length(f->type));
	else
		return true;
	return false;
}

/* False when there is nothing more that could be told. */
static bool decode_frame(struct decoder *d)
{
	uint8_t *payload = NULL;
	struct wire_frame f;
	bool go_on = false;

	d->frame_at = d->at;
	if (!take(d, &f, sizeof(f), NULL))
		return false;
	d->at -= sizeof(f);
	begin_line(d, f.magic == WIRE_FRAME_MAGIC ? wire_type_name(f.type) : "?");
	d->at += sizeof(f);
	if (!check_header(d, &f))
		goto out;
	add_number(d, "seq", f.seq);
	add_number(d, "length", f.length);
	if (f.seq != d->seq)
		problem(d, "%s has number %u, %u is due", wire_type_name(f.type), f.seq, d->seq);
	d->seq = f.seq + 1;
	payload = malloc((size_t)f.length + 1);
	if (!payload) {
		problem(d, "no memory for %u bytes", f.length);
		goto out;
	}
	if (!take(d, payload, f.length, wire_type_name(f.type)))
		goto out;
	go_on = true;
	d->frames++;
	if (f.type == WIRE_PAGES)
		on_pages(d, &f, payload);
	else if (wire_check_sum(&f, payload, f.length) != f.check)
		problem(d, "%s is damaged", wire_type_name(f.type));
	else
		on_payload(d, &f, payload);
out:
	end_line(d);
	free(payload);
	return go_on;
}

static void decode(struct decoder *d)
{
	bool go_on = decode_prelude(d);

	while (go_on)
		go_on = decode_frame(d);
	begin_line(d, "end");
	add_number(d, "frames", d->frames);
	add_number(d, "rounds", d->rounds);
	add_number(d, "batches", d->all.batches);
	add_pages(d, &d->all);
	add_number(d, "problems", d->problems);
	end_line(d);
	hashes_free(&d->hashes);
	unpack_free(&d->unpack);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{"sections", no_argument, NULL, 's'},
		{"json", no_argument, NULL, 'j'},
		{"help", no_argument, NULL, 'h'},
		{NULL, 0, NULL, 0},
	};
	struct decoder d = {.fd = STDIN_FILENO};
	int o;

	while ((o = getopt_long(argc, argv, "h", options, NULL)) != -1) {
		switch (o) {
		case 's':
			d.sections = true;
			break;
		case 'j':
			d.json = true;
			break;
		case 'h':
			fputs(usage, stdout);
			return 0;
		default:
			fputs(usage, stderr);
			return 2;
		}
	}
	if (argc - optind > 1) {
		fputs(usage, stderr);
		return 2;
	}
	if (optind < argc)
		d.fd = open(argv[optind], O_RDONLY | O_CLOEXEC);
	if (d.fd < 0) {
		fprintf(stderr, "decode-stream: %s: %s\n", argv[optind], strerror(errno));
		return 2;
	}
	decode(&d);
	if (d.fd != STDIN_FILENO)
		close(d.fd);
	return d.problems ? 1 : 0;
}
