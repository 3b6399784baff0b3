/* SPDX-License-Identifier: MIT */
/*
 * decode-stream: what one side of a migration said on one connection, frame by frame. A recording
 * is the bytes of one direction as they came, from the prelude on.
 *
 * Theory of operation: the recording is read once, from front to end, and each frame is taken
 * apart by what receives it in a move: wire.h, sbuf.h, handshake.h, state.h, delta.h. What is wrong
 * is said with the offset of the frame it is in. A frame whose header makes sense has an end, so
 * one that is damaged within is passed over; after a header that makes none nothing can be told
 * any more. It needs no KVM and nothing of the machine that was moved.
 *
 *	main.c		options, the recording
 *	frames.c	frames that are simple
 *	pages.c		batches of pages
 *	sections.c	the machine's description and state
 *	output.c	a line for each frame
 */
#ifndef GODWIT_TOOLS_DECODE_H
#define GODWIT_TOOLS_DECODE_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "../../migrate/hashes.h"
#include "../../migrate/pack.h"
#include "../../migrate/wire.h"
#include "../../vmm/util.h"

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

/* ---- output.c ---- */

/* Adds to the frame's line: a name, and a value by printf. In JSON numbers stay numbers. */
void add_text(struct decoder *d, const char *name, const char *fmt, ...) PRINTF(3, 4);
void add_number(struct decoder *d, const char *name, uint64_t value);

/* Says what is wrong with the frame in hand, and where that is; it also goes on its line. */
void problem(struct decoder *d, const char *fmt, ...) PRINTF(2, 3);

/* What comes next in the recording has a line of its own; end_line() prints it. */
void begin_line(struct decoder *d, const char *type);
void end_line(struct decoder *d);

/* A stranger's text, without what does things to a terminal. */
json_t *clean_string(const char *text, size_t len);

/* ---- pages.c ---- */

void add_pages(struct decoder *d, const struct pages *p);
void on_pages(struct decoder *d, const struct wire_frame *f, const uint8_t *payload);

/* ---- sections.c ---- */

void on_hello(struct decoder *d, const uint8_t *payload, uint32_t len);
void on_state(struct decoder *d, const uint8_t *payload, uint32_t len);

/* ---- frames.c ---- */

/* Any frame but PAGES, whose checksum is right. */
void on_payload(struct decoder *d, const struct wire_frame *f, const uint8_t *payload);

#endif
