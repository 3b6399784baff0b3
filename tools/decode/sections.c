/* SPDX-License-Identifier: MIT */
/*
 * Sections are named and taken apart by the field lists that save and load them (sbuf.h), so what
 * is shown here is what a receiver would make of them: each field under the name that it has in
 * the source.
 */
#include "decode.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "../../migrate/handshake.h"
#include "../../migrate/state.h"
#include "../../vmm/machine.h"

/* Of bytes that are too many for people, how many are shown to them. */
#define SHOWN_BYTES 32U

/* A section in hand. */
struct section {
	struct decoder *d;
	const char *of; /* "state section", "HELLO section" */
	struct sb_section head;
	json_t *fields;
	char last[128]; /* the field that came last */
};

static json_t *hex_bytes(const uint8_t *bytes, size_t len, size_t most)
{
	size_t n = MIN(len, most), size = 2 * n + 40;
	char *text = malloc(size);
	json_t *value;

	if (!text)
		abort();
	text[0] = 0;
	for (size_t i = 0; i < n; i++)
		snprintf(text + 2 * i, 3, "%02x", bytes[i]);
	if (n < len)
		snprintf(text + 2 * n, size - 2 * n, "... (%zu bytes)", len);
	value = json_string(text);
	free(text);
	return value;
}

static json_t *value_of(const struct decoder *d, const struct sb_field *f)
{
	char text[24];

	switch (f->kind) {
	case SB_NUMBER:
		if (f->number <= INT64_MAX)
			return json_integer((json_int_t)f->number);
		/* JSON's do not go so far, nor has any that is right. */
		snprintf(text, sizeof(text), "%" PRIu64, f->number);
		return json_string(text);
	case SB_SIGNED:
		return json_integer((json_int_t)f->number);
	case SB_BITS:
		snprintf(text, sizeof(text), "0x%" PRIx64, f->number);
		return json_string(text);
	case SB_BOOL:
		return json_boolean(f->number);
	case SB_BYTES:
		return hex_bytes(f->bytes, f->len, d->json ? f->len : SHOWN_BYTES);
	default:
		return clean_string((const char *)f->bytes, f->len);
	}
}

static void on_field(struct sb_view *view, const char *name, const struct sb_field *f)
{
	struct section *sec = view->arg;

	snprintf(sec->last, sizeof(sec->last), "%s", name);
	if (json_object_get(sec->fields, name))
		problem(sec->d, "%s %s %u has two fields %s", sec->of, sec->head.tag,
			sec->head.instance, name);
	json_object_set_new(sec->fields, name, value_of(sec->d, f));
}

/* hello: NULL when the section is one of a state. */
static void look_into(struct section *sec, struct hello *hello, struct sbuf *body)
{
	struct sb_view view = {.field = on_field, .arg = sec};
	struct errmsg why = {""};
	int ret;

	sb_look(body, &view);
	if (hello)
		ret = hello_look(hello, &sec->head, machine_device_ops, body);
	else
		ret = state_look(&sec->head, machine_device_ops(sec->head.tag), body, &why);
	/* A receiver passes over those that it does not know. */
	if (ret == 0 || (ret == -ENOTSUP && !body->err && sec->head.flags & SB_OPTIONAL))
		return;
	if (why.text[0] || !body->err)
		problem(sec->d, "%s %s %u: %s", sec->of, sec->head.tag, sec->head.instance,
			why.text[0] ? why.text : "of a kind or version that is not known here");
	else
		problem(sec->d, "%s %s %u is malformed at byte %zu, after %s", sec->of,
			sec->head.tag, sec->head.instance, body->pos,
			sec->last[0] ? sec->last : "its beginning");
}

/* Each section with its digest, by which two recordings can be compared. */
static void add_sections(struct decoder *d, const uint8_t *payload, uint32_t len,
			 struct hello *hello)
{
	struct section sec = {.d = d, .of = hello ? "HELLO section" : "state section"};
	json_t *list = json_array();
	struct sbuf s, body;
	int ret;

	sb_init_load(&s, payload, len);
	while ((ret = sb_section_next(&s, &sec.head, &body)) > 0) {
		json_t *one =
			json_pack("{s:s,s:I,s:I,s:I}", "section", sec.head.tag, "instance",
				  (json_int_t)sec.head.instance, "version",
				  (json_int_t)sec.head.version, "length", (json_int_t)body.len);
		char text[20];

		snprintf(text, sizeof(text), "%016" PRIx64, XXH3_64bits(body.data, body.len));
		json_object_set_new(one, "digest", json_string(text));
		if (sec.head.flags & SB_OPTIONAL)
			json_object_set_new(one, "optional", json_true());
		sec.fields = json_object();
		sec.last[0] = 0;
		look_into(&sec, hello, &body);
		if (d->sections)
			json_object_set(one, "fields", sec.fields);
		json_decref(sec.fields);
		json_array_append_new(list, one);
	}
	if (ret)
		problem(d, "the sections are malformed from byte %zu of the payload on", s.pos);
	add_number(d, "n_sections", json_array_size(list));
	json_object_set_new(d->line, "sections", list);
}

void on_state(struct decoder *d, const uint8_t *payload, uint32_t len)
{
	add_sections(d, payload, len, NULL);
}

void on_hello(struct decoder *d, const uint8_t *payload, uint32_t len)
{
	struct hello *h = malloc(sizeof(*h));
	struct errmsg err = {""};

	if (!h)
		abort();
	if (hello_load(h, payload, len, &err))
		problem(d, "%s", err.text);
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
