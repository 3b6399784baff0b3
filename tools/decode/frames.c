/* SPDX-License-Identifier: MIT */
#include "decode.h"

#include <inttypes.h>
#include <string.h>

#include "../../migrate/delta.h"

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

void on_payload(struct decoder *d, const struct wire_frame *f, const uint8_t *payload)
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
		on_state(d, payload, f->length);
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
