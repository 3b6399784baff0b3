/* SPDX-License-Identifier: MIT */
/* The command and the recording: see decode.h. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "decode.h"

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
	"  --sections  also the fields of sections: registers, devices, what the guest is made of\n"
	"  --json      a line of JSON for each frame, and a last one for all; registers, "
	"addresses\n"
	"              and flags are strings in hex\n"
	"\n"
	"Frames, pages and sections are checked as a receiver does. What is damaged or cut off is\n"
	"said with its offset. The exit status is 0 when all is well, 1 when something is not, 2\n"
	"for a wrong command line or a file that cannot be read.\n";

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
